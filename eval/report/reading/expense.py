"""The cost of a run so far: processor-hours, estimated energy, FLOPs."""

from typing import Any

from ablations.plan.hardware import gpu_of_device

# (watts, their source) of one core of a processor. Neither memory, network, cooling nor idle neighbours are in it, nor
# in the watts of a GPU: an estimate from below for the machine, from above for the processor.
CORE = (4.4, "280 W of an AMD EPYC 7763 over its 64 cores, assumed for any")
MOST_FLOPS = 1e18  # for a token: of 10**17 weights; more is no model, but a damaged configuration
# by which a GPU is recognised that gpus.csv lacks
GPU_WORDS = ("NVIDIA", "Tesla", "GeForce", "RTX", "Quadro", "AMD Instinct")


def cost_so_far(cell: dict[str, Any]) -> dict[str, Any]:
    """The cost of a run so far. `cell`: the content of the run directory, with run.json and at least one line of its
    log.

    Returns:
        unit: "GPU" or "core", the kind of processor.
        processors: the number of GPUs or cores.
        seconds, tokens, flops: the training time, tokens and FLOPs; flops is None for a model that this version does
            not know.
        hours: GPU-hours or core-hours.
        kwh: estimated energy; None where no power is known.
        watts: the power of one processor; None where it is not known.
        power: the source of `watts`, or that none is known.
        peak: the FLOPs that the processors could have done in this time; None where their peak is unknown.
    """
    hardware, last = cell["run"]["hardware"], cell["metrics"][-1]
    device = hardware["device"]
    gpu = gpu_of_device(device)
    is_gpu = gpu is not None or any(word in device for word in GPU_WORDS)
    processors = hardware["ranks"] * (1 if is_gpu else hardware["threads"])
    watts, source = (None, "no power is known for it") if is_gpu else CORE
    if gpu:
        watts, source = gpu.watts, f"at most: {gpu.name} in ablations/plan/gpus.csv"
    hours = last["seconds"] / 3600 * processors
    per_token = flops_per_token(cell["run"]["config"]["model"])
    return {
        "unit": "GPU" if is_gpu else "core",
        "processors": processors,
        "seconds": last["seconds"],
        "hours": hours,
        "kwh": hours * watts / 1000 if watts else None,
        "watts": watts,
        "power": source,
        "tokens": last["tokens"],
        "flops": last["tokens"] * per_token if per_token else None,
        "peak": gpu.peak * hardware["ranks"] * last["seconds"] if gpu else None,
    }


def flops_per_token(model: dict[str, Any]) -> int | None:
    """The training FLOPs per token of a model; None where this version does not know the model. `model`: the entry
    "model" of a run's configuration."""
    from model.config import ModelConfig
    from model.count import flops_per_token

    try:
        flops = flops_per_token(ModelConfig(**model))
        return flops if 0 < flops < MOST_FLOPS else None
    except (TypeError, ValueError, AttributeError, ArithmeticError):
        return None
