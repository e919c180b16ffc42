"""The training engine, the only file that knows DeepSpeed: builds it from a `Run`, and steps, saves and loads."""

import ctypes
import logging
import math
import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median_low
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ablations import rundir
from ablations.config import ConfigError, Run, spread
from data.batches import uncompiled_imports
from launch import attention_kernel
from launch.bf16 import use_device_updates
from launch.checkpoint import KINDS, CheckpointError, Checkpoints, Fragment
from launch.manifest import Diverged
from model import attention, proof
from model.count import parameters
from model.fp8 import FP8_LAYERS, weights_cast
from model.gpt import GPT, prepare_to_compile
from model.linear import Layers
from model.objective import Batch, SpecialTokens
from model.shard import SINGLE, Ranks, dimension

SCALER = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")  # the state of DeepSpeed's loss scaler


def start(run: Run) -> tuple[int, int]:
    """Join the process group (one process is a group too). Returns (rank, world size).

    The group is described by the usual RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT; without them
    this is a group of one.
    """
    cuda = torch.cuda.is_available()
    if not cuda:
        os.environ["DS_ACCELERATOR"] = "cpu"
        torch.set_num_threads(run.layout.threads)
        keep_freed_memory()
    # On a CPU a resumed run equals an undisturbed one bit for bit. This is torch.use_deterministic_algorithms without
    # torch's compiler, which takes a second to load and is told in `Engine.compile`.
    torch._C._set_deterministic_algorithms(not cuda)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # nothing here reads memory it did not write
    local = int(os.environ.setdefault("LOCAL_RANK", "0"))
    if cuda:
        torch.cuda.set_device(local)
    deepspeed, backend = _deepspeed(), "nccl" if cuda else "gloo"
    if "RANK" not in os.environ and not dist.is_initialized():  # no port, no network
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    deepspeed.init_distributed(dist_backend=backend, verbose=False)
    return dist.get_rank(), dist.get_world_size()


def ranks(run: Run) -> Ranks:
    """The tensor parallel group of this rank: those that together hold one copy of the model. Call it after `start`.

    Raises:
        ConfigError: the number of ranks is no multiple of layout.tp.
    """
    if run.layout.tp == 1:
        return SINGLE
    if dist.get_world_size() % run.layout.tp:
        raise ConfigError(f"{dist.get_world_size()} ranks were started: no multiple of layout.tp={run.layout.tp}")
    from model.parallel import TensorParallel

    return TensorParallel(run.layout.tp)


def layers(run: Run, tp: Ranks) -> Layers:
    """The factory of the model's linear layers, for the run's precision and its tensor parallel group.

    Raises:
        ConfigError: for FP8 under tensor parallelism.
    """
    if run.train.precision != "fp8":
        return tp.layers
    if tp.size > 1:
        raise ConfigError("train.precision=fp8 needs layout.tp=1: the layers that are cut multiply in bf16 at least")
    return FP8_LAYERS


def model_of(run: Run) -> GPT:
    """The run's model as it is initialised, after `start`."""
    tp = ranks(run)
    return GPT(run.model, run.seed, tp, layers(run, tp))


def keep_freed_memory() -> None:
    """Have glibc keep freed memory for this process. It returns large blocks to the system, and each step then has to
    get them again, zeroed: 19% of a step in bf16 and 16% in fp32, measured at the nano size on one core.

    Does nothing with another C library.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # malloc.h
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)
        mallopt(M_TOP_PAD, 64 << 20)


def _deepspeed() -> Any:
    """The module deepspeed, imported without its warnings, its log lines, and an extension that nothing here uses."""
    with warnings.catch_warnings(), uncompiled_imports():
        warnings.simplefilter("ignore")
        import deepspeed

        with suppress(ImportError):  # in some versions; every ZeRO optimizer asks whether this is what it was given
            import deepspeed.runtime.zero.muon.muon_optimizer
        from deepspeed.ops import __compatible_ops__
    from deepspeed.utils import logger

    logger.setLevel(logging.ERROR)
    # a shared-memory collective for inference: compiling it takes a minute, and training never calls it
    __compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def deepspeed_config(run: Run, replicas: int) -> dict[str, Any]:
    """DeepSpeed's configuration of a run. bf16 keeps fp32 master weights and accumulates gradients in fp32; so does
    fp8, which is bf16 to DeepSpeed. fp16 keeps fp32 master weights, and fp16 gradients of a scaled loss.

    Args:
        replicas: copies of the model.

    Raises:
        ConfigError: a global batch cannot be divided among the replicas in whole micro-batches.
    """
    spread(run, replicas)
    # DeepSpeed's buckets, 500 million elements by default, are allocated in full however small the model
    # and must be even (its alignment factor)
    bucket = min(500_000_000, parameters(run.model) // run.layout.tp // 2 * 2)
    config: dict[str, Any] = {
        "train_batch_size": run.train.batch,
        "train_micro_batch_size_per_gpu": run.layout.micro_batch,
        "gradient_accumulation_steps": run.train.batch // (run.layout.micro_batch * replicas),
        "gradient_clipping": run.train.clip,
        "zero_optimization": {"stage": run.layout.zero, "reduce_bucket_size": bucket, "allgather_bucket_size": bucket},
        "zero_allow_untested_optimizer": True,  # torch's own AdamW
        "steps_per_print": 10**9,
        # its timer has the host wait for the device twice in every micro-batch, and is compiled with the model, which
        # is then compiled again when the timer begins to count
        "timers": {"throughput": {"enabled": False}},
    }
    if run.train.precision in ("bf16", "fp8"):
        config |= {"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}}
        if torch.cuda.is_available():  # or the ranks' sums are rounded to bf16 before they are added
            config["communication_data_type"] = "fp32"
    if run.train.precision == "fp16":
        config["fp16"] = {
            "enabled": True,
            "initial_scale_power": run.train.loss_scale_power,
            "loss_scale_window": run.train.loss_scale_window,
            "hysteresis": run.train.loss_scale_hysteresis,
            "min_loss_scale": run.train.loss_scale_min,
        }
    return config


class Step(NamedTuple):
    """The result of an optimizer step, the same on all ranks."""

    loss: float  # of the whole global batch before the step, nats per predicted token
    grad_norm: float  # before clipping
    save: bool  # whether any rank wants a checkpoint now
    leave: bool  # whether any rank wants training to stop
    seconds: float = 0.0  # on the clock of the first rank after the step; 0 where there is none


class Pending:
    """An optimizer step that was launched on the device, and may not be finished.

    Args:
        values: loss and norm, and with several ranks the sums of save, leave and seconds: on the device.
        save, leave, seconds: of this rank, where it is alone.
    """

    def __init__(self, values: list[Tensor | float], save: bool, leave: bool, seconds: Callable[[], float]):
        self.values, self.save, self.leave, self.seconds = values, save, leave, seconds
        self.copied: Any = None
        if isinstance(values[0], Tensor) and values[0].is_cuda:
            # A copy that is asked for later would wait for the steps that were handed over in between.
            on_device = torch.stack([torch.as_tensor(v, dtype=torch.float32, device=values[0].device) for v in values])
            host = torch.empty(len(values), pin_memory=True)
            self.values = [*host.copy_(on_device, non_blocking=True)]
            self.copied = torch.cuda.Event()
            self.copied.record()

    def read(self) -> Step:
        """Wait for the step, and return its result."""
        if self.copied is not None:
            self.copied.synchronize()
        loss, norm, *votes = (float(value) for value in self.values)
        if not votes:
            return Step(loss, norm, self.save, self.leave, self.seconds())
        save, leave, seconds = votes
        return Step(loss, norm, save > 0, leave > 0, seconds)  # seconds in fp32: to 8 ms in a day


@dataclass
class Engine:
    """A model with its optimizer, under DeepSpeed. `step` makes one optimizer step on one global batch."""

    ds: Any
    run: Run
    device: torch.device
    forwards: list[Callable[[], float]] = field(default_factory=list)  # how long the last ones took
    compile_seconds: float = 0.0  # before the first step, and no part of training
    proofs: list[proof.Proof] = field(default_factory=list)  # that the compiled graph is the model
    attention_seconds: dict[str, float] = field(default_factory=dict)  # of the kernels that were timed, best first

    @property
    def model(self) -> Any:
        """The GPT itself."""
        return self.ds.module.model

    def compile(self) -> None:
        """Compile the model and its loss with torch.compile, forward and backward, for micro-batches of the run's size;
        then prove that the graph computes the same as the model (`proof.compiled`). No gradients are left behind."""
        began, model, random = time.perf_counter(), self.run.model, torch.Generator().manual_seed(0)
        if self.device.type == "cpu":
            from torch._functorch import config

            # the backward pass computes anew what is cheap: at nano in bf16, 13% less memory in no more time
            config.activation_memory_budget = 0.8
            if model.block == "parallel":  # or torch 2.13 writes C++ in which two sums have one name
                from torch._inductor import config as inductor

                inductor.cpp.max_horizontal_fusion_size = 1
        torch.use_deterministic_algorithms(self.device.type == "cpu")
        prepare_to_compile()
        loss = self.ds.module
        if self.device.type == "cuda":  # in a graph it would be made in every forward pass
            attention.prepare_masks(self.model.objective, model.seq, self.device)
        loss.compile(dynamic=False, mode="reduce-overhead" if self.cuda_graphs else None)
        rows = torch.randint(model.vocab, (self.run.layout.micro_batch, model.seq + 1), generator=random)
        batch = self.model.objective.batch(rows, tokens=SpecialTokens(mask=0)).to(self.device)

        def graph(batch: Batch) -> Tensor:
            with weights_cast(self.model):
                return loss(batch)

        if model.dropout or model.attn_dropout:  # what training calls, and then a graph that drops nothing, to compare
            torch.autograd.grad(graph(batch), list(loss.parameters()))  # .backward() would fire DeepSpeed's hooks
            loss.eval()
        self.proofs = [proof.compiled(self.model, graph, loss.forward, batch)]
        loss.train()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
        self.compile_seconds = time.perf_counter() - began

    @property
    def cuda_graphs(self) -> bool:
        """Whether forward and backward are replayed as CUDA graphs (no CPU has them)."""
        return self.run.layout.compile == "reduce-overhead"

    @property
    def execution(self) -> dict[str, Any]:
        """For the record: choices that depend on the machine, and change only how numbers are rounded."""
        optimizer = self.ds.optimizer
        ours = getattr(optimizer.step, "__name__", "") == "device_step"
        return {
            "attention": self.model.attention_kernel,
            "attention_seconds": self.attention_seconds,
            "compiled": self.run.layout.compile if self.compile_seconds else "never",
            "micro_batch": self.run.layout.micro_batch,
            "gradients": "reduce-scatter, fp32" if ours else f"DeepSpeed, {self.ds.communication_data_type}",
        }

    @property
    def lr(self) -> float:
        """The learning rate in effect, read from the optimizer."""
        return float(self.ds.optimizer.param_groups[0]["lr"])

    @property
    def parameter_groups(self) -> list[dict[str, Any]]:
        """As DeepSpeed holds them: {"params": the model's own parameters, "weight_decay": float}."""
        optimizer = self.ds.optimizer
        groups = optimizer.bf16_groups if hasattr(optimizer, "bf16_groups") else optimizer.bit16_groups
        return [
            {"params": list(params), "weight_decay": group["weight_decay"]}
            for params, group in zip(groups, optimizer.param_groups, strict=True)
        ]

    def held_settings(self) -> dict[str, Any]:
        """{setting: value in effect}, read from DeepSpeed and AdamW, by the names of the configuration."""
        groups = self.ds.optimizer.param_groups
        (eps,), (betas,) = {group["eps"] for group in groups}, {tuple(group["betas"]) for group in groups}
        (decay,) = {group["weight_decay"] for group in groups} - {0.0} or {0.0}
        settings = {
            "train.batch": self.ds.train_batch_size(),
            "train.clip": self.ds.gradient_clipping(),
            "train.eps": eps,
            "train.beta1": betas[0],
            "train.beta2": betas[1],
            "train.weight_decay": decay,
        }
        if any(p.dtype == torch.float16 for p in self.model.parameters()):
            scaler = self.ds.optimizer.loss_scaler
            settings |= {
                "train.loss_scale_power": math.log2(scaler.cur_scale),
                "train.loss_scale_window": scaler.scale_window,
                "train.loss_scale_hysteresis": scaler.delayed_shift,
                "train.loss_scale_min": scaler.min_scale,
            }
        return settings

    @property
    def scaled(self) -> dict[str, Any]:
        """For the log, in fp16: {"overflows": steps so far that updated nothing, "loss_scale": of the next step}."""
        if self.run.train.precision != "fp16":
            return {}
        return {"overflows": self.ds.skipped_steps, "loss_scale": self.ds.optimizer.loss_scaler.cur_scale}

    @property
    def scaling(self) -> dict[str, Any]:
        """The state of fp16's dynamic loss scaling; assign it to continue from there. Empty in other precisions."""
        if self.run.train.precision != "fp16":
            return {}
        return {"overflows": self.ds.skipped_steps, **{k: getattr(self.ds.optimizer.loss_scaler, k) for k in SCALER}}

    @scaling.setter
    def scaling(self, state: dict[str, Any]) -> None:
        self.ds.skipped_steps = state.get("overflows", 0)
        for key in state.keys() & set(SCALER):
            setattr(self.ds.optimizer.loss_scaler, key, state[key])

    def step(self, *args: Any, **named: Any) -> Step:
        """`launch` a step, wait for it, and return its result."""
        return self.launch(*args, **named).read()

    def launch(
        self,
        batch: Batch,
        lr: float,
        seed: int = 0,
        save: bool = False,
        leave: bool = False,
        clock: Callable[[], float] = lambda: 0.0,
    ) -> Pending:
        """Make one optimizer step on this rank's sequences of the global batch. On a GPU it may still be under way when
        this returns.

        Args:
            seed: of this step's dropout on this rank. It is set anew for each step, so that a resume loses no state.
            save, leave: whether this rank wants a checkpoint after the step, or training to stop. Both are reduced
                together with the loss, so that all ranks know of them at the same step and at no further cost.
            clock: seconds of training so far. Those of the first rank are sent along with the loss too: ranks have to
                agree on them where they end the run or determine the learning rate.

        Where gradients overflow in fp16 the norm is infinite and the step is skipped: the batch is used up, weights
        and optimizer stay as they were, and the loss scale goes down.

        Raises:
            Diverged: gradients overflow at the smallest loss scale.
        """
        for group in self.ds.optimizer.param_groups:
            group["lr"] = lr
        torch.manual_seed(seed)
        total = torch.zeros((), device=self.device)
        micros = batch.to(self.device).split(self.run.layout.micro_batch)
        weights = self._weights(batch.split(self.run.layout.micro_batch))  # counted before they are on a GPU
        replicas = dist.get_world_size() // self.model.tp.size
        self.ds.set_train_batch_size(len(batch.inputs_BT) * replicas)  # the batches of a ramp differ
        with weights_cast(self.model):  # the last micro-batch's step updates the weights, and no forward pass follows
            for i, (micro, weight) in enumerate(zip(micros, weights, strict=True), start=1):
                # DeepSpeed counts micro-batches modulo their number in a batch, which is wrong once that has changed
                self.ds.set_gradient_accumulation_boundary(i == len(micros))
                if self.cuda_graphs:
                    torch.compiler.cudagraph_mark_step_begin()  # nothing of the micro-batch before is wanted any more
                with self._busy():
                    loss = self.ds(micro) * weight
                self.ds.backward(loss)
                try:
                    self.ds.step()
                except Exception as error:  # DeepSpeed raises nothing narrower
                    if "loss scale already at minimum" not in str(error):
                        raise
                    least = self.run.train.loss_scale_min
                    raise Diverged(f"gradients overflow in fp16 even at train.loss_scale_min={least}") from None
                total += loss.detach().float()
        total /= len(micros)
        norm: Any = self.ds.get_global_grad_norm()
        if dist.get_world_size() == 1:
            return Pending([total, norm], save, leave, clock)
        reading = clock() if dist.get_rank() == 0 else 0.0
        votes = torch.tensor([float(save), float(leave), reading])
        if self.device.type == "cuda":
            votes = votes.pin_memory()  # or the copy would wait for the step
        sums = torch.cat((total[None], votes.to(self.device, non_blocking=True)))
        dist.all_reduce(sums)
        return Pending([sums[0] / dist.get_world_size(), norm, *sums[1:]], save, leave, clock)

    @contextmanager
    def _busy(self) -> Iterator[None]:
        """Times what is inside, a forward pass: work that a rank does without waiting for another."""
        if self.device.type == "cuda":
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            first.record()
            yield
            last.record()
            self.forwards.append(lambda: first.elapsed_time(last) / 1000)
        else:
            began = time.perf_counter()
            yield
            seconds = time.perf_counter() - began
            self.forwards.append(lambda: seconds)

    def busy(self) -> list[float]:
        """Seconds that each rank spent in forward passes since the last call. All ranks call it together."""
        mine = torch.zeros(dist.get_world_size(), device=self.device)
        mine[dist.get_rank()] = sum(seconds() for seconds in self.forwards)
        self.forwards.clear()
        if len(mine) > 1:
            dist.all_reduce(mine)
        return mine.tolist()

    def _weights(self, micros: list[Batch]) -> list[float]:
        """Factors of the micro-batches' mean losses, with which their mean is the mean over all tokens that the global
        batch predicts, however it is divided among ranks and micro-batches."""
        if all(micro.even for micro in micros):
            return [1.0] * len(micros)
        counts = [micro.predictions for micro in micros]
        total = torch.tensor(sum(counts), device=self.device)
        if dist.get_world_size() > 1:
            dist.all_reduce(total)
        return [count * len(micros) * dist.get_world_size() / int(total) for count in counts]

    def pieces(self) -> list[Fragment]:
        """This rank's share of the fp32 master weights and of AdamW's moments, as views, by parameter and position."""
        fragments, tp = [], self.model.tp
        for name, param in self.model.named_parameters():
            mapping = param._hp_mapping  # DeepSpeed's own record of which part of a parameter this rank updates
            if mapping is None:
                continue
            flat = self.ds.optimizer.param_groups[mapping.param_group_index]["params"][0]
            adam = self.ds.optimizer.state[flat]
            if not adam:  # no step was made yet: what AdamW would begin with
                zero = torch.zeros((), dtype=torch.float32, device=flat.device)
                adam |= {"step": zero, "exp_avg": torch.zeros_like(flat), "exp_avg_sq": torch.zeros_like(flat)}
            start, span = mapping.lp_fragment_address.start, mapping.hp_fragment_address
            part = (tp.rank, tp.size) if dimension(name) is not None else (0, 1)
            data = {"weight": mapping.hp_fragment.detach()}
            data |= {kind: adam[kind].detach().narrow(0, span.start, span.numel) for kind in KINDS[1:]}
            fragments += [Fragment(name, kind, start, data[kind], tuple(param.shape), *part) for kind in KINDS]
        return fragments

    def save(self, checkpoints: Checkpoints, step: int, progress: dict[str, Any]) -> None:
        """Begin to write checkpoint `step`; see `Checkpoints.save`.

        Raises:
            CheckpointError: the save before this one has failed, or the ranks' weights are no longer the same.
        """
        self._same_weights(step)
        steps = {float(adam["step"]) for adam in self.ds.optimizer.state.values() if adam} or {0.0}  # fp16 may skip all
        assert len(steps) == 1, "AdamW's step counters differ between parameter groups"
        optimizer = {"adam_step": steps.pop(), "scaling": self.scaling}
        checkpoints.save(step, self.pieces(), {"optimizer": optimizer, "progress": progress})

    def load(self, checkpoints: Checkpoints, before: int | None = None) -> dict[str, Any] | None:
        """Continue from the newest complete checkpoint (of a step below `before`), written at any parallel layout.

        Returns:
            The progress given to `save`, or None when there is no checkpoint.
        """
        state = checkpoints.load(self.pieces(), before)
        if state is None:
            return None
        for adam in self.ds.optimizer.state.values():
            adam["step"].fill_(state["optimizer"]["adam_step"])
        self.scaling = state["optimizer"]["scaling"]
        self.ds.optimizer.update_lp_params()  # what is computed with, from the fp32 masters of all ranks
        return state["progress"]

    def _same_weights(self, step: int) -> None:
        """Check that copies of the same weights on several ranks are equal, bit for bit. A GPU or a cable may compute
        or transmit wrong numbers silently; and training itself never compares the copies of parameters that tensor
        parallelism does not cut.

        Raises:
            CheckpointError: they differ; naming the ranks.
        """
        if dist.get_world_size() == 1:
            return
        rank, size = dist.get_rank(), self.model.tp.size
        sums = torch.zeros(2, dist.get_world_size(), dtype=torch.int64, device=self.device)
        bits = {2: torch.int16, 4: torch.int32}
        for name, p in self.model.named_parameters():
            cut = dimension(name) is not None
            sums[int(cut), rank] += p.detach().view(bits[p.element_size()]).sum()
        dist.all_reduce(sums)
        common_sums, cut_sums = (
            sums.tolist()
        )  # of uncut parameters, equal on all ranks; of cut ones, equal where `rank % size` is
        differing = [
            r
            for r in range(len(common_sums))
            if common_sums[r] != median_low(common_sums) or cut_sums[r] != median_low(cut_sums[r % size :: size])
        ]
        if differing:
            ranks = ", ".join(map(str, differing))
            raise CheckpointError(
                f"step {step}: the weights of rank {ranks} differ from the others'. Nothing was saved; the same "
                "command goes back to the last checkpoint."
            )

    def write_weights(self, path: Path) -> None:
        """Write model.state_dict() of the whole model to a safetensors file, which is complete or absent. A
        collective."""
        state = {}
        for name, part in self.model.state_dict().items():
            whole = self.model.tp.gather(name, part)
            if dist.get_rank() == 0:
                state[name] = whole.cpu().contiguous()
        if dist.get_rank() == 0:
            from safetensors.torch import save

            rundir.write_bytes(path, save(state))
        dist.barrier()


class Loss(nn.Module):
    """The module that DeepSpeed wraps: from a `Batch` to the model's loss."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model: Any = model

    def forward(self, batch: Batch) -> Tensor:
        return self.model.loss(batch)


def build(model: Any, run: Run, world: int) -> Engine:
    """The engine that trains `model` with AdamW under DeepSpeed, on `world` ranks. Matrices have weight decay; biases
    and norm gains have none.

    Under tensor parallelism ZeRO spreads the optimizer over the ranks that hold the same part of the model.
    """
    import deepspeed

    graphs = run.layout.compile == "reduce-overhead"
    if graphs and (run.train.precision not in ("bf16", "fp8") or run.layout.zero != 1 or model.tp.size > 1):
        # elsewhere gradients are kept between micro-batches, and would lie where the next graph writes
        raise ConfigError(
            "layout.compile=reduce-overhead needs train.precision=bf16 or fp8, layout.zero=1 and layout.tp=1"
        )
    if run.train.precision == "fp16" and not torch.cuda.is_available():
        # DeepSpeed refuses where oneDNN has no fast fp16; torch's other kernels are slow and correct
        deepspeed.accelerator.get_accelerator().is_fp16_supported = lambda: True
    named = list(model.named_parameters())
    matrices = [p for _, p in named if p.dim() >= 2]
    vectors = [p for _, p in named if p.dim() < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": run.train.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
        lr=run.train.lr,
        betas=(run.train.beta1, run.train.beta2),
        eps=run.train.eps,
        fused=True,
    )
    mpu, size = None, model.tp.size
    if size > 1:
        from model.parallel import MPU

        mpu = MPU(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = deepspeed_config(run, world // size)
        ds, *_ = deepspeed.initialize(model=Loss(model), optimizer=optimizer, config=config, mpu=mpu)
    bf16 = hasattr(ds.optimizer, "bf16_groups")
    if world == size and bf16:
        ds.enable_backward_allreduce = False  # one copy of the model: its gradients are summed already
    engine = Engine(ds, run, next(model.parameters()).device)
    if bf16 and engine.device.type == "cpu":
        free_fp32_gradients_between_steps(ds.optimizer)
    elif bf16 and size == 1:
        use_device_updates(ds)
    engine.attention_seconds = attention_kernel.choose(model, run.layout.micro_batch)
    if dist.get_rank() == 0 and engine.attention_seconds:
        timed = ", ".join(f"{name} {1000 * s:.2f} ms" for name, s in engine.attention_seconds.items())
        print(f"attention by {model.attention_kernel}; one layer, forward and backward: {timed}", flush=True)
    if dist.get_rank() == 0 and size > 1 and engine.device.type == "cuda" and run.layout.compile == "auto":
        print("tensor parallelism: the model is not compiled, and slower than with layout.tp=1", flush=True)
    # auto: not with tensor parallelism, whose layers communicate; not on a CPU, where a nano run is over sooner
    auto = torch.cuda.is_available() and size == 1
    if {"auto": auto, "never": False}.get(run.layout.compile, True):
        engine.compile()
    return engine


def free_fp32_gradients_between_steps(optimizer: Any) -> None:
    """Have DeepSpeed's bf16 optimizer free the fp32 sums of all gradients after each update, and write the first
    gradients instead of adding them to zeros. It would keep the sums allocated, although activations, which are largest
    while there are no sums yet, could use that memory (unless micro-batches are accumulated).

    Not for a GPU, where accumulation is the rule, and whose allocator may not find so large a block again.
    """
    flat, add = optimizer.fp32_groups_gradients_flat, optimizer.update_hp_grads
    sizes = [sums.untyped_storage().nbytes() for sums in flat]

    def clear_hp_grads() -> None:
        for sums in flat:
            sums.untyped_storage().resize_(0)
        optimizer.fp32_groups_has_gradients = [[False] * len(group) for group in optimizer.bf16_groups]

    @torch.no_grad()
    def update_hp_grads(clear_lp_grads: bool = False) -> None:
        if flat[0].untyped_storage().nbytes():
            add(clear_lp_grads)
            return
        groups = zip(flat, sizes, optimizer.fp32_groups_gradients, optimizer.bf16_groups, strict=True)
        for i, (whole, size, sums, params) in enumerate(groups):
            whole.untyped_storage().resize_(size)
            whole[sum(p.numel() for p in params) :].zero_()  # what fills it up
            torch._foreach_copy_(sums, [p.grad.view(-1) for p in params])
            optimizer.fp32_groups_has_gradients[i] = [True] * len(params)

    optimizer.clear_hp_grads, optimizer.update_hp_grads = clear_hp_grads, update_hp_grads
    clear_hp_grads()
