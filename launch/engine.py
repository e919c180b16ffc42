"""The training engine: trains, saves and loads a model with its optimizer under DeepSpeed."""

import inspect
import math
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ablations import safe_files
from ablations.config import ConfigError, Run
from launch import attention_kernel
from launch.bf16 import free_fp32_gradients_between_steps, install_gpu_update
from launch.checkpoint import KINDS, Checkpoints, Fragment
from launch.compiling import compile_model
from launch.deepspeed_setup import deepspeed_config, import_deepspeed
from launch.equal_weights import check_equal_weights
from launch.manifest import Diverged
from launch.step import PendingStep, Step
from model import proof
from model.fp8 import fp8_weight_copies
from model.objective import Batch
from model.shard import shard_dimension

SCALER = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")  # the state of DeepSpeed's loss scaler


@dataclass
class Engine:
    """This rank's model and optimizer under DeepSpeed, with methods that train, save and load them. `ds`: DeepSpeed's
    engine."""

    ds: Any
    run: Run
    device: torch.device
    forward_timers: list[Callable[[], float]] = field(default_factory=list)  # each returns the seconds of one pass
    compile_seconds: float = 0.0  # seconds of compiling, before the first step; 0 where the model is not compiled
    proofs: list[proof.Proof] = field(default_factory=list)  # of the compiled graph: that its gradients are the model's
    attention_seconds: dict[str, float] = field(default_factory=dict)  # what attention_kernel.choose_kernel returned

    @property
    def model(self) -> Any:
        """The model.gpt.GPT that is trained, as this rank holds it."""
        return self.ds.module.model

    @property
    def cuda_graphs(self) -> bool:
        """Whether forward and backward passes are replayed as CUDA graphs. Without effect on a CPU."""
        return self.run.layout.compile == "reduce-overhead"

    @property
    def execution_details(self) -> dict[str, Any]:
        """How this machine executes training, for run.json. These choices change results by no more than rounding.
        Keys: "attention" (the kernel), "attention_seconds" ({kernel: seconds}), "compiled" (the mode of layout.compile,
        or "never"), "micro_batch" (sequences), "gradients" (how ranks sum gradients)."""
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
        """The optimizer's groups of parameters, read from DeepSpeed: [{"params": parameters of the model,
        "weight_decay": float}]."""
        optimizer = self.ds.optimizer
        groups = optimizer.bf16_groups if hasattr(optimizer, "bf16_groups") else optimizer.bit16_groups
        return [
            {"params": list(params), "weight_decay": group["weight_decay"]}
            for params, group in zip(groups, optimizer.param_groups, strict=True)
        ]

    def settings_in_effect(self) -> dict[str, Any]:
        """Read the settings in effect from DeepSpeed and AdamW. Returns {setting: value in effect}, with names as in
        the configuration, such as "train.clip"."""
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
    def loss_scale_metrics(self) -> dict[str, Any]:
        """The state of fp16's loss scaling, for the log: "overflows", the number of steps skipped because gradients
        overflowed, and "loss_scale", the scale of the next step. Empty in other precisions."""
        if self.run.train.precision != "fp16":
            return {}
        return {"overflows": self.ds.skipped_steps, "loss_scale": self.ds.optimizer.loss_scaler.cur_scale}

    @property
    def loss_scaling_state(self) -> dict[str, Any]:
        """The state of fp16's dynamic loss scaling, as {name: value} for a checkpoint; empty in other precisions.
        Assigning it restores the state from a checkpoint."""
        if self.run.train.precision != "fp16":
            return {}
        return {"overflows": self.ds.skipped_steps, **{k: getattr(self.ds.optimizer.loss_scaler, k) for k in SCALER}}

    @loss_scaling_state.setter
    def loss_scaling_state(self, state: dict[str, Any]) -> None:
        self.ds.skipped_steps = state.get("overflows", 0)
        for key in state.keys() & set(SCALER):
            setattr(self.ds.optimizer.loss_scaler, key, state[key])

    def step(self, *args: Any, **named: Any) -> Step:
        """Make one optimizer step, wait for it, and return its result. Takes the arguments of `launch_step`."""
        return self.launch_step(*args, **named).read()

    def launch_step(
        self,
        batch: Batch,
        lr: float,
        seed: int = 0,
        save: bool = False,
        stop: bool = False,
        clock: Callable[[], float] = lambda: 0.0,
    ) -> PendingStep:
        """Launch one optimizer step on this rank's sequences of the global batch. On a GPU this returns before the step
        is computed.

        Where gradients overflow in fp16, the update is skipped and the norm is infinite. Weights and optimizer stay as
        they were, the batch counts as trained on, and the loss scale is lowered.

        Args:
            batch: this rank's sequences, on the host.
            lr: the learning rate of this step.
            seed: for this step's dropout on this rank. It is set at each step, so that a checkpoint needs no state of
                the random number generator.
            save: whether this rank requests a checkpoint after the step. All ranks learn of it, since requests are
                reduced together with the loss.
            stop: whether this rank requests that training stop; reduced like `save`.
            clock: returns the seconds of training so far. All ranks use the first rank's value, which may end the run
                or set the learning rate; it is sent with the loss.

        Returns:
            A `PendingStep`, whose method `read` waits for the device and returns the step's result.

        Raises:
            Diverged: gradients overflow at the smallest loss scale.
        """
        for group in self.ds.optimizer.param_groups:
            group["lr"] = lr
        torch.manual_seed(seed)
        loss = self._train_on(batch)
        norm: Any = self.ds.get_global_grad_norm()
        if dist.get_world_size() == 1:
            return PendingStep([loss, norm], save, stop, clock)
        reading = clock() if dist.get_rank() == 0 else 0.0
        votes = torch.tensor([float(save), float(stop), reading])
        if self.device.type == "cuda":
            votes = votes.pin_memory()  # without pinning, the copy would wait for the step
        sums = torch.cat((loss[None], votes.to(self.device, non_blocking=True)))
        dist.all_reduce(sums)
        return PendingStep([sums[0] / dist.get_world_size(), norm, *sums[1:]], save, stop, clock)

    def _train_on(self, batch: Batch) -> Tensor:
        """Run forward and backward passes on this rank's sequences, and update the weights. Returns the mean loss over
        the micro-batches, as a scalar on the device. Raises Diverged where gradients overflow at the smallest loss
        scale."""
        total = torch.zeros((), device=self.device)
        micros = batch.to(self.device).split(self.run.layout.micro_batch)
        # from the batch on the host: counting on a GPU would wait for it
        weights = self._micro_batch_factors(batch.split(self.run.layout.micro_batch))
        replicas = dist.get_world_size() // self.model.tp.size
        self.ds.set_train_batch_size(len(batch.inputs_BT) * replicas)  # the batches of a ramp differ
        with fp8_weight_copies(self.model):  # no forward pass follows the update at the end
            for i, (micro, weight) in enumerate(zip(micros, weights, strict=True), start=1):
                # DeepSpeed counts micro-batches modulo their number in a batch, which is wrong once that has changed
                self.ds.set_gradient_accumulation_boundary(i == len(micros))
                if self.cuda_graphs:
                    torch.compiler.cudagraph_mark_step_begin()  # the last micro-batch's tensors may be overwritten
                with self._timed_forward():
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
        return total / len(micros)

    @contextmanager
    def _timed_forward(self) -> Iterator[None]:
        """A context that measures the seconds of the forward pass inside it. It appends to `forward_timers` a function
        that returns them."""
        if self.device.type == "cuda":
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            first.record()
            yield
            last.record()
            self.forward_timers.append(lambda: first.elapsed_time(last) / 1000)
        else:
            began = time.perf_counter()
            yield
            seconds = time.perf_counter() - began
            self.forward_timers.append(lambda: seconds)

    def forward_seconds(self) -> list[float]:
        """The seconds that each rank spent in forward passes since the last call, in the order of ranks. All ranks
        call this method together."""
        mine = torch.zeros(dist.get_world_size(), device=self.device)
        mine[dist.get_rank()] = sum(seconds() for seconds in self.forward_timers)
        self.forward_timers.clear()
        if len(mine) > 1:
            dist.all_reduce(mine)
        return mine.tolist()

    def _micro_batch_factors(self, micros: list[Batch]) -> list[float]:
        """Factors for the mean losses of this rank's micro-batches, which may differ in the number of tokens that they
        predict. With them, the mean over micro-batches and ranks is the mean over all predicted tokens of the global
        batch."""
        if all(micro.has_equal_counts for micro in micros):
            return [1.0] * len(micros)
        counts = [micro.prediction_count for micro in micros]
        total = torch.tensor(sum(counts), device=self.device)
        if dist.get_world_size() > 1:
            dist.all_reduce(total)
        return [count * len(micros) * dist.get_world_size() / int(total) for count in counts]

    def fragments(self) -> list[Fragment]:
        """This rank's fragments of the fp32 master weights and of AdamW's two moments. Their tensors are views of the
        live state: to write into them is to load a checkpoint."""
        fragments, tp = [], self.model.tp
        for name, param in self.model.named_parameters():
            mapping = param._hp_mapping  # DeepSpeed's own record of which part of a parameter this rank updates
            if mapping is None:
                continue
            flat = self.ds.optimizer.param_groups[mapping.param_group_index]["params"][0]
            adam = self.ds.optimizer.state[flat]
            if not adam:  # before the first step: the zeros that AdamW would begin with
                zero = torch.zeros((), dtype=torch.float32, device=flat.device)
                adam |= {"step": zero, "exp_avg": torch.zeros_like(flat), "exp_avg_sq": torch.zeros_like(flat)}
            start, span = mapping.lp_fragment_address.start, mapping.hp_fragment_address
            part = (tp.rank, tp.size) if shard_dimension(name) is not None else (0, 1)
            data = {"weight": mapping.hp_fragment.detach()}
            data |= {kind: adam[kind].detach().narrow(0, span.start, span.numel) for kind in KINDS[1:]}
            fragments += [Fragment(name, kind, start, data[kind], tuple(param.shape), *part) for kind in KINDS]
        return fragments

    def save(self, checkpoints: Checkpoints, step: int, progress: dict[str, Any]) -> None:
        """Begin to write checkpoint `step` in the background. All ranks call this method together. `progress`: the
        state of the training loop, as values that JSON can hold, equal on all ranks; `load` returns it. Raises
        CheckpointError where the previous save has failed, or the ranks' copies of a weight are no longer equal."""
        check_equal_weights(self.model, step)
        steps = {float(adam["step"]) for adam in self.ds.optimizer.state.values() if adam} or {0.0}  # fp16 may skip all
        assert len(steps) == 1, "AdamW's step counters differ between parameter groups"
        optimizer = {"adam_step": steps.pop(), "scaling": self.loss_scaling_state}
        checkpoints.save(step, self.fragments(), {"optimizer": optimizer, "progress": progress})

    def load(self, checkpoints: Checkpoints, before: int | None = None) -> dict[str, Any] | None:
        """Load the newest checkpoint that is complete and undamaged, written at any parallel layout, into the model and
        the optimizer. All ranks call this method together.

        Args:
            checkpoints: the run's checkpoints.
            before: consider only checkpoints of steps before this one; None: all.

        Returns:
            The `progress` that was given to `save`; None when there is no checkpoint.

        Raises:
            CheckpointError: the checkpoint lacks elements that the model needs, or all checkpoints are damaged.
            RunFailed: the checkpoint is of another run.
        """
        state = checkpoints.load(self.fragments(), before)
        if state is None:
            return None
        for adam in self.ds.optimizer.state.values():
            adam["step"].fill_(state["optimizer"]["adam_step"])
        self.loss_scaling_state = state["optimizer"]["scaling"]
        self.ds.optimizer.update_lp_params()  # the weights of the forward pass, from the fp32 masters
        return state["progress"]

    def write_weights(self, path: Path) -> None:
        """Write the weights of the whole model to the safetensors file `path`. All ranks call this method together. An
        interruption leaves no half-written file."""
        state = {}
        for name, part in self.model.state_dict().items():
            whole = self.model.tp.gather(name, part)
            if dist.get_rank() == 0:
                state[name] = whole.cpu().contiguous()
        if dist.get_rank() == 0:
            from safetensors.torch import save

            safe_files.write_bytes(path, save(state))
        dist.barrier()


class Loss(nn.Module):
    """A module whose forward pass computes the model's loss of a `Batch`. DeepSpeed trains it in place of the model,
    whose forward pass returns logits."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model: Any = model

    def forward(self, batch: Batch) -> Tensor:
        return self.model.loss(batch)


class AdamW(torch.optim.AdamW):
    """torch's AdamW without the decorators that keep torch.compile out of its methods. A call of a decorated method
    loads the compiler, which takes more than a second at the start of a run; the optimizer is never compiled here."""

    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.Optimizer.zero_grad)
    step = torch.no_grad()(inspect.unwrap(torch.optim.Adam.step))


def build_adamw(model: nn.Module, run: Run) -> AdamW:
    """The AdamW optimizer with the run's settings. Matrices have weight decay; biases and norm gains have none, except
    for the gain of the embedding norm with train.decay_embnorm."""
    with_decay: list[nn.Parameter] = []
    without: list[nn.Parameter] = []
    for name, p in model.named_parameters():
        decayed = p.dim() >= 2 or (run.train.decay_embnorm and name == "embnorm.weight")
        (with_decay if decayed else without).append(p)
    return AdamW(
        [{"params": with_decay, "weight_decay": run.train.weight_decay}, {"params": without, "weight_decay": 0.0}],
        lr=run.train.lr,
        betas=(run.train.beta1, run.train.beta2),
        eps=run.train.eps,
        fused=True,
    )


def build_engine(model: Any, run: Run, world: int) -> Engine:
    """Set up the engine that trains a model under DeepSpeed: optimizer, ZeRO, and the fastest attention kernel. Also
    compiles the model where layout.compile asks for it.

    Args:
        model: a model.gpt.GPT with its initial weights. With tensor parallelism, ZeRO divides the optimizer among the
            ranks that hold the same part of the model.
        run: the run's configuration, with a micro-batch.
        world: the number of ranks.

    Raises:
        ConfigError: CUDA graphs (layout.compile=reduce-overhead) do not work with the layout or precision.
    """
    deepspeed = import_deepspeed()
    graphs = run.layout.compile == "reduce-overhead"
    if graphs and (run.train.precision not in ("bf16", "fp8") or run.layout.zero != 1 or model.tp.size > 1):
        # elsewhere gradients are kept between micro-batches, and would lie where the next graph writes
        raise ConfigError(
            "layout.compile=reduce-overhead needs train.precision=bf16 or fp8, layout.zero=1 and layout.tp=1"
        )
    if run.train.precision == "fp16" and not torch.cuda.is_available():
        # DeepSpeed refuses fp16 on CPUs without fast fp16 in oneDNN, where torch's other kernels are slow and correct
        deepspeed.accelerator.get_accelerator().is_fp16_supported = lambda: True
    mpu, size = None, model.tp.size
    if size > 1:
        from model.parallel import MPU

        mpu = MPU(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = deepspeed_config(run, world // size)
        ds, *_ = deepspeed.initialize(model=Loss(model), optimizer=build_adamw(model, run), config=config, mpu=mpu)
    bf16 = hasattr(ds.optimizer, "bf16_groups")
    if world == size and bf16:
        ds.enable_backward_allreduce = False  # one copy of the model: its gradients are summed already
    engine = Engine(ds, run, next(model.parameters()).device)
    if bf16 and engine.device.type == "cpu":
        free_fp32_gradients_between_steps(ds.optimizer)
    elif bf16 and size == 1:
        install_gpu_update(ds)
    engine.attention_seconds = attention_kernel.choose_kernel(model, run.layout.micro_batch)
    if dist.get_rank() == 0 and engine.attention_seconds:
        timed = ", ".join(f"{name} {1000 * s:.2f} ms" for name, s in engine.attention_seconds.items())
        print(f"attention by {model.attention_kernel}; one layer, forward and backward: {timed}", flush=True)
    if dist.get_rank() == 0 and size > 1 and engine.device.type == "cuda" and run.layout.compile == "auto":
        print("tensor parallelism: the model is not compiled, and slower than with layout.tp=1", flush=True)
    # auto: not with tensor parallelism, whose layers communicate. On a CPU the study has decided before
    # (ablations/compilation.py)
    auto = torch.cuda.is_available() and size == 1
    if {"auto": auto, "never": False}.get(run.layout.compile, True):
        compile_model(engine)
    return engine
