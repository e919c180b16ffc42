"""The memory per GPU under Megatron-DeepSpeed's 3D parallelism, for models that need pipeline parallelism. (Our engine
does not have it; its memory is in model/memory.py.)

The memory of weights, gradients and optimizer states (ZeRO-1) is computed exactly. Four constants are fitted to
published measurements (published.csv) by ablations/plan/calibrate.py: further bytes for each weight (copies and buffers
of DeepSpeed and NCCL), a factor on the activations, bytes for each logit, and the overhead of a process.
"""

from ablations.plan.hardware import GIB, GPU
from ablations.plan.throughput import Layout, Shape, calibration

FITTED = ("bytes for each weight", "activations", "bytes for each logit", "GiB for each process")
EDGE = 0.03  # the relative error of the estimate: its median on held-out rows


def memory_parts(shape: Shape, layout: Layout, flash: bool, fp32_sums: bool, last: bool) -> list[float]:
    """The memory of a GPU of the first or last pipeline stage as a list: first the exactly known part in GiB, then for
    each constant in FITTED its coefficient.

    Activations follow Korthikanti et al. 2022: 10 + 24 / tp bytes per hidden value and 5 per attention score. With
    recomputation they are the input of each layer, and all activations of one layer.

    Args:
        shape: the dimensions of the model.
        layout: the parallel layout.
        flash: whether attention is one kernel that does not write the scores to memory.
        fp32_sums: whether gradients are summed in fp32 beside the 16-bit gradients, as in BigScience's bf16 runs of
            2022.
        last: whether the stage is the last one, else the first one.
    """
    tp, hidden, rows = layout.tp, shape.hidden, layout.micro_batch * shape.seq
    layers = (shape.layers + 2) / layout.pp - 1 if layout.embedding_slots else shape.layers / layout.pp
    weights = (layers * shape.layer_weights + shape.vocab * hidden) / tp
    scores = 0.0 if flash else 5 * rows * shape.seq * shape.heads / tp
    layer = (10 + 24 / tp) * rows * hidden + scores
    in_flight = 1 if last else min(layout.pp, layout.micro_batches)  # micro-batches, with a schedule of 1F1B
    stored = layers * 2 * rows * hidden * in_flight + layer if layout.recompute else layers * layer * in_flight
    logits = rows * shape.vocab / tp if last or layout.pp == 1 else 0.0
    exact = weights * ((8 if fp32_sums else 4) + 12 / layout.dp)
    return [part / GIB for part in (exact, weights, stored, logits, GIB)]


def peak_memory(shape: Shape, layout: Layout, flash: bool = False, fp32_sums: bool = True) -> float:
    """The peak memory in GiB of a GPU of the first or the last pipeline stage, whichever needs more. `flash`: whether
    attention is one kernel that does not write the scores to memory; `fp32_sums`: whether gradients are summed in fp32
    beside the 16-bit gradients."""
    fitted = calibration()["memory"]["fitted"]
    return max(total_memory(memory_parts(shape, layout, flash, fp32_sums, last), fitted) for last in (False, True))


def total_memory(parts: list[float], fitted: dict[str, float]) -> float:
    """The memory in GiB: the exactly known part plus the sum of coefficient x constant. `parts`: the result of
    `memory_parts`; `fitted`: the constants, {name in FITTED: value}."""
    exact, *coefficients = parts
    return exact + sum(fitted[name] * part for name, part in zip(FITTED, coefficients, strict=True))


def memory_verdict(gib: float, gpu: GPU) -> str:
    """Whether `gib` GiB fit into the GPU's memory, in words: "fits", "at the edge" (they fit, but by less than the
    error of the estimate), or "does not fit"."""
    if gib * (1 + EDGE) <= gpu.memory:
        return "fits"
    return "at the edge" if gib <= gpu.memory else "does not fit"
