"""DeepSpeed, and nothing else of ours knows it: its configuration is generated from a `Run`; step, save, load."""

import logging
import os
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ablations.config import ConfigError, Run
from model.count import parameters


def start(run: Run) -> tuple[int, int]:
    """Join the process group (one process is a group too). Returns (rank, world size).

    The group is described by the usual RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT; without them
    this is a group of one.
    """
    cuda = torch.cuda.is_available()
    if not cuda:
        os.environ["DS_ACCELERATOR"] = "cpu"
        torch.set_num_threads(run.layout.threads)
    torch.use_deterministic_algorithms(not cuda)  # on a CPU a resumed run equals an undisturbed one bit for bit
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # nothing here reads memory it did not write
    local = int(os.environ.setdefault("LOCAL_RANK", "0"))
    if cuda:
        torch.cuda.set_device(local)
    deepspeed, backend = _deepspeed(), "nccl" if cuda else "gloo"
    if "RANK" not in os.environ and not dist.is_initialized():  # no port, no network
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    deepspeed.init_distributed(dist_backend=backend, verbose=False)
    return dist.get_rank(), dist.get_world_size()


def _deepspeed() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import deepspeed
        from deepspeed.ops import __compatible_ops__
    from deepspeed.utils import logger

    logger.setLevel(logging.ERROR)
    # a shared-memory collective for inference: compiling it takes a minute, and training never calls it
    __compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def deepspeed_config(run: Run, world: int) -> dict[str, Any]:
    """DeepSpeed's JSON. bf16 keeps fp32 master weights and accumulates gradients in fp32.

    Raises:
        ConfigError: when the global batch cannot be spread over the ranks in whole micro-batches.
    """
    accumulate = run.train.batch // (run.layout.micro_batch * world)
    if accumulate * run.layout.micro_batch * world != run.train.batch:
        raise ConfigError(
            f"train.batch={run.train.batch} is no multiple of {world} ranks x "
            f"layout.micro_batch={run.layout.micro_batch}"
        )
    # DeepSpeed's buckets, 500 million elements by default, are allocated in full however small the model
    # and must be even (its alignment factor)
    bucket = min(500_000_000, parameters(run.model) // 2 * 2)
    config: dict[str, Any] = {
        "train_batch_size": run.train.batch,
        "train_micro_batch_size_per_gpu": run.layout.micro_batch,
        "gradient_accumulation_steps": accumulate,
        "gradient_clipping": run.train.clip,
        "zero_optimization": {
            "stage": run.layout.zero,
            "reduce_bucket_size": bucket,
            "allgather_bucket_size": bucket,
        },
        "zero_allow_untested_optimizer": True,  # torch's own AdamW
        "steps_per_print": 10**9,
    }
    if run.train.precision == "bf16":
        config |= {"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}}
    return config


@dataclass
class Engine:
    """A model under DeepSpeed. `step` is one optimizer step on one global batch."""

    ds: Any
    run: Run
    device: torch.device

    @property
    def model(self) -> Any:
        """The GPT itself."""
        return self.ds.module.model

    @property
    def lr(self) -> float:
        """The learning rate that the optimizer holds, whatever it was meant to be."""
        return float(self.ds.optimizer.param_groups[0]["lr"])

    def step(self, rows_bS: Tensor, lr: float, seed: int = 0) -> tuple[float, float]:
        """One optimizer step on this rank's rows of the global batch, [rows, seq + 1] token ids.

        Args:
            seed: of what this step and rank drop. Random numbers have no state that a resume could lose.

        Returns:
            The loss of the whole global batch before the step, nats per token, and the gradient norm before clipping.
        """
        for group in self.ds.optimizer.param_groups:
            group["lr"] = lr
        torch.manual_seed(seed)
        total = torch.zeros((), device=self.device)
        for micro_bS in rows_bS.to(self.device).split(self.run.layout.micro_batch):
            loss = self.ds(micro_bS)
            self.ds.backward(loss)
            self.ds.step()
            total += loss.detach().float()
        total /= len(rows_bS) // self.run.layout.micro_batch
        if dist.get_world_size() > 1:
            dist.all_reduce(total)
            total /= dist.get_world_size()
        return float(total), float(self.ds.get_global_grad_norm())

    def groups(self) -> list[dict[str, Any]]:
        """The optimizer's parameter groups as DeepSpeed holds them: the model's parameters and their weight decay."""
        optimizer = self.ds.optimizer
        held = optimizer.bf16_groups if hasattr(optimizer, "bf16_groups") else optimizer.bit16_groups
        return [
            {"params": list(params), "weight_decay": group["weight_decay"]}
            for params, group in zip(held, optimizer.param_groups, strict=True)
        ]

    def effective(self) -> dict[str, Any]:
        """What the live engine and model would do, in the configuration's own terms, read from them and not from it."""
        groups = self.ds.optimizer.param_groups
        one = {k: {g[k] if k != "betas" else tuple(g[k]) for g in groups} for k in ("eps", "betas")}
        decays = {g["weight_decay"] for g in groups} - {0.0} or {0.0}
        (eps,), (betas,), (decay,) = one["eps"], one["betas"], decays
        dtypes = {p.dtype for p in self.model.parameters()}
        names = {torch.bfloat16: "bf16", torch.float32: "fp32"}
        blocks, cfg = self.model.blocks, self.model.cfg
        return {
            "train.batch": self.ds.train_batch_size(),
            "train.clip": self.ds.gradient_clipping(),
            "train.eps": eps,
            "train.beta1": betas[0],
            "train.beta2": betas[1],
            "train.weight_decay": decay,
            "train.precision": names[dtypes.pop()] if len(dtypes) == 1 else f"mixed {dtypes}",
            "model.layers": len(blocks),
            "model.hidden": self.model.embed.embedding_dim,
            "model.heads": blocks[0].attn.heads,
            "model.norm_eps": blocks[0].norm1.eps,
            "model.init_std": cfg.init_std if _std_is(self.model.embed.weight, cfg.init_std) else "another",
        }

    def save(self, folder: Path, step: int, state: dict[str, Any]) -> None:
        """Write checkpoint `step`; `latest` names it only once it is whole, and the one before is kept."""
        tag = f"step_{step}"
        self.ds.save_checkpoint(str(folder), tag=tag, client_state=state, save_latest=False)
        dist.barrier()
        if dist.get_rank() == 0:
            for file in (folder / tag).iterdir():
                _sync(file)
            replace_text(folder / "latest", tag)
            for old in sorted(folder.glob("step_*"), key=_number)[:-2]:
                shutil.rmtree(old)
        dist.barrier()

    def load(self, folder: Path) -> dict[str, Any] | None:
        """Continue from the last whole checkpoint. Returns the state given to `save`, or None when there is none."""
        if not (folder / "latest").exists():
            return None
        tag = (folder / "latest").read_text().strip()
        path, state = self.ds.load_checkpoint(str(folder), tag=tag)
        if path is None:
            raise RuntimeError(f"{folder / tag} is named by `latest` and cannot be loaded")
        for newer in folder.glob("step_*"):  # begun and never finished
            if _number(newer) > _number(Path(tag)) and dist.get_rank() == 0:
                shutil.rmtree(newer)
        dist.barrier()
        return state

    def write_weights(self, path: Path) -> None:
        """model.state_dict() as trained, in safetensors; whole or absent."""
        if dist.get_rank() == 0:
            from safetensors.torch import save

            tmp = path.with_name(path.name + ".tmp")
            tmp.write_bytes(save({k: v.cpu().contiguous() for k, v in self.model.state_dict().items()}))
            _sync(tmp)
            os.replace(tmp, path)
        dist.barrier()


class Loss(nn.Module):
    """What DeepSpeed calls: token ids in, the loss out. The model is inside."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model: Any = model

    def forward(self, rows_bS: Tensor) -> Tensor:
        return self.model.loss(rows_bS)


def build(model: nn.Module, run: Run, world: int) -> Engine:
    """Put `model` under DeepSpeed with AdamW; matrices are decayed, biases and norm gains are not."""
    import deepspeed

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
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ds, *_ = deepspeed.initialize(model=Loss(model), optimizer=optimizer, config=deepspeed_config(run, world))
    ds.checkpoint_engine = _weights_only(ds.checkpoint_engine)
    return Engine(ds, run, next(model.parameters()).device)


def _weights_only(engine: Any) -> Any:
    """DeepSpeed unpickles whatever a checkpoint holds; this lets tensors and plain values through, nothing else."""

    def load(path: str, map_location: Any = None) -> Any:
        with torch.serialization.safe_globals(_harmless()):
            return torch.load(path, map_location=map_location, weights_only=True)

    engine.load = load
    return engine


def _harmless() -> list[Any]:
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    return [LossScaler, ZeroStageEnum, fragment_address]


def _std_is(weight: Tensor, std: float) -> bool:
    return abs(float(weight.detach().float().std()) / std - 1) < 0.05


def _number(path: Path) -> int:
    return int(path.name.rpartition("_")[2])


def _sync(path: Path) -> None:
    with open(path, "rb") as f:
        os.fsync(f.fileno())


def replace_text(path: Path, text: str) -> None:
    """Write a small file so that it is either the old one or the whole new one, also after a power loss."""
    tmp = path.with_name(path.name + ".tmp")
    with open(tmp, "w") as f:
        f.write(text)
        f.flush()
        os.fsync(f.fileno())
    os.replace(tmp, path)
