"""The cost of a run so far: processor-hours, estimated energy, FLOPs."""

from typing import Any

from ablations.plan.hardware import peak_flops

# (a word of the device's name, watts, what they are). A GPU's board at its limit; one core of a processor's. Neither
# memory, network, cooling nor idle neighbours are in them: an estimate from below for the machine, from above for the
# processor.
WATTS = [
    ("GB200", 1200, "NVIDIA data sheet, board limit"),
    ("B200", 1000, "NVIDIA data sheet, board limit"),
    ("H200", 700, "NVIDIA data sheet, SXM, board limit"),
    ("H100 PCIe", 350, "NVIDIA data sheet, board limit"),
    ("H100", 700, "NVIDIA data sheet, SXM, board limit"),
    ("A100-PCI", 300, "NVIDIA data sheet, board limit of 80 GB"),
    ("A100", 400, "NVIDIA data sheet, SXM, board limit"),
    ("V100-PCI", 250, "NVIDIA data sheet, board limit"),
    ("V100", 300, "NVIDIA data sheet, SXM2, board limit"),
    ("L40S", 350, "NVIDIA data sheet, board limit"),
    ("T4", 70, "NVIDIA data sheet, board limit"),
]
CORE = (4.4, "280 W of an AMD EPYC 7763 over its 64 cores, assumed for any")
MOST_FLOPS = 1e18  # for a token: of 10**17 weights; more is no model, but a damaged configuration
GPUS = ("NVIDIA", "Tesla", "GeForce", "RTX", "Quadro", "AMD Instinct")


def cost_so_far(cell: dict[str, Any]) -> dict[str, Any]:
    """The cost of a run so far. `cell`: the content of the run directory, which has to have run.json and lines in its
    log.

    Returns:
        unit: "GPU" or "core"; processors: the number of GPUs or cores.
        seconds, tokens, flops: of training; flops None for a model that this version does not know.
        hours: of all processors together.
        kwh: estimated energy; watts: power of one processor; both None where no power is known.
        power: the source of `watts`, or that none is known.
        peak: FLOPs that the devices could have done in this time; None where their peak is unknown.
    """
    hardware, last = cell["run"]["hardware"], cell["metrics"][-1]
    device = hardware["device"]
    known = next(((watts, source) for word, watts, source in WATTS if word.lower() in device.lower()), None)
    gpu = known is not None or any(word in device for word in GPUS)
    processors = hardware["ranks"] * (1 if gpu else hardware["threads"])
    watts, source = known or ((None, "no power is known for it") if gpu else CORE)
    hours = last["seconds"] / 3600 * processors
    per_token = flops_per_token(cell["run"]["config"]["model"])
    return {
        "unit": "GPU" if gpu else "core",
        "processors": processors,
        "seconds": last["seconds"],
        "hours": hours,
        "kwh": hours * watts / 1000 if watts else None,
        "watts": watts,
        "power": source,
        "tokens": last["tokens"],
        "flops": last["tokens"] * per_token if per_token else None,
        "peak": peak_flops(device, hardware["ranks"], last["seconds"]),
    }


def flops_per_token(model: dict[str, Any]) -> int | None:
    """The training FLOPs per token of a model; None where this version cannot tell, since the run may have been made by
    an older or newer version. `model`: the entry "model" of a run's configuration."""
    from model.config import ModelConfig
    from model.count import flops_per_token

    try:
        flops = flops_per_token(ModelConfig(**model))
        return flops if 0 < flops < MOST_FLOPS else None
    except (TypeError, ValueError, AttributeError, ArithmeticError):
        return None
