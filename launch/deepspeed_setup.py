"""Starts and configures DeepSpeed. No other file imports deepspeed; launch/engine.py uses the engine made with it."""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
import torch.distributed as dist

from ablations.config import Run, fit_micro_batch
from model.allocator import keep_freed_memory
from model.count import count_parameters


def initialise_process(run: Run) -> tuple[int, int]:
    """Set up this process for training (device, threads, determinism), and join the process group of torch.distributed.

    The usual environment variables describe the group: RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT.
    Without RANK this process is the only rank. Returns (rank, world size).
    """
    cuda = torch.cuda.is_available()
    if not cuda:
        os.environ["DS_ACCELERATOR"] = "cpu"
        torch.set_num_threads(run.layout.threads)
        keep_freed_memory()
    # On a CPU a resumed run equals an undisturbed one bit for bit. This is torch.use_deterministic_algorithms without
    # torch's compiler, which takes a second to load; launch/compiling.py sets it for the compiler too.
    torch._C._set_deterministic_algorithms(not cuda)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # nothing here reads memory it did not write
    local = int(os.environ.setdefault("LOCAL_RANK", "0"))
    if cuda:
        torch.cuda.set_device(local)
    deepspeed, backend = import_deepspeed(), "nccl" if cuda else "gloo"
    if "RANK" not in os.environ and not dist.is_initialized():  # no port, no network
        gpu = torch.device("cuda", local) if cuda else None  # NCCL guesses it otherwise, and warns
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, device_id=gpu)
    deepspeed.init_distributed(dist_backend=backend, verbose=False)
    return dist.get_rank(), dist.get_world_size()


@contextmanager
def uncompiled_imports() -> Iterator[None]:
    """A context in which torch.compile returns functions uncompiled. For imports of libraries that compile their own
    functions at import: training does not call these, and loading torch's compiler takes long."""
    compiler, torch.compile = torch.compile, lambda function=None, **options: function or (lambda f: f)  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.compile = compiler


def import_deepspeed() -> Any:
    """Import DeepSpeed and return the module. Silences its warnings, logs and memory reports, and keeps it from
    compiling its shared-memory extension, which training never calls."""
    with warnings.catch_warnings(), uncompiled_imports():
        warnings.simplefilter("ignore")
        import deepspeed

        with suppress(ImportError):  # some versions lack it; others need it in every ZeRO optimizer, to check a type
            import deepspeed.runtime.zero.muon.muon_optimizer
        from deepspeed.ops import __compatible_ops__
    from deepspeed.utils import logger

    logger.setLevel(logging.ERROR)
    # DeepSpeed's bf16 optimizer prints the use of memory six times, and has Python collect garbage each time
    from deepspeed.runtime import bf16_optimizer

    bf16_optimizer.see_memory_usage = lambda message, force=False: None
    # a shared-memory collective for inference: compiling it takes a minute, and training never calls it
    __compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def deepspeed_config(run: Run, replicas: int) -> dict[str, Any]:
    """The configuration of a run for `deepspeed.initialize`.

    Master weights are fp32. For train.precision=bf16 and fp8, DeepSpeed is configured for bf16 with fp32 sums of
    gradients. For fp16, the loss is scaled and gradients are fp16.

    Args:
        run: the run's configuration, with a micro-batch.
        replicas: copies of the model that train in data parallel.

    Raises:
        ConfigError: the global batch cannot be divided among the replicas in whole micro-batches.
    """
    fit_micro_batch(run, replicas)
    # DeepSpeed allocates buckets of 500 million elements by default, however small the model; a bucket's size must be
    # even (its alignment factor)
    bucket = min(500_000_000, count_parameters(run.model) // run.layout.tp // 2 * 2)
    config: dict[str, Any] = {
        "train_batch_size": run.train.batch,
        "train_micro_batch_size_per_gpu": run.layout.micro_batch,
        "gradient_accumulation_steps": run.train.batch // (run.layout.micro_batch * replicas),
        "gradient_clipping": run.train.clip,
        "zero_optimization": {"stage": run.layout.zero, "reduce_bucket_size": bucket, "allgather_bucket_size": bucket},
        "zero_allow_untested_optimizer": True,  # torch's own AdamW
        "steps_per_print": 10**9,
        # DeepSpeed's timer has the host wait for the device twice in every micro-batch. It is also compiled with the
        # model, which is compiled again when the timer begins to count.
        "timers": {"throughput": {"enabled": False}},
    }
    if run.train.precision in ("bf16", "fp8"):
        config |= {"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}}
        if torch.cuda.is_available():  # otherwise each rank's sum is rounded to bf16 before the ranks' sums are added
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
