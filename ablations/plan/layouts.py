"""The parallel layouts in which a run fits into the memory of given GPUs, sorted by predicted speed. Some have
activation recomputation, which our engine does not have yet.

Every layout fits into memory by the estimate of model/memory.py, and divides every batch of the run evenly among the
ranks.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from ablations.config import Run
from ablations.plan.hardware import GIB, GPU
from ablations.plan.pipeline_memory import EDGE
from ablations.plan.site_speed import SiteSpeed, predict_step_at_site
from ablations.plan.throughput import Layout, PredictedStep, Shape, calibration
from model.memory import estimate_memory

MICRO_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
LAYOUTS_SHOWN = 4


@dataclass(frozen=True)
class FittingLayout:
    """A parallel layout in which all arms of a study fit into memory. `steps`: the predicted step time of each arm;
    `gib`: the memory per GPU in GiB, for the arm that needs the most."""

    layout: Layout
    steps: tuple[PredictedStep, ...]  # one for each arm, in the order of the arms
    gib: float

    @property
    def seconds(self) -> float:
        """The sum of the predicted step times of all arms."""
        return sum(step.seconds for step in self.steps)

    @property
    def label(self) -> str:
        layout = self.layout
        recomputed = ", recomputed" if layout.recompute else ""
        return f"dp {layout.dp} x tp {layout.tp}, micro-batch {layout.micro_batch}, ZeRO {layout.zero}{recomputed}"

    @property
    def settings_text(self) -> str:
        """This layout as KEY=VALUE settings separated by spaces, for SET= on the command line."""
        layout = self.layout
        return (
            f"layout.processes={layout.gpus} layout.tp={layout.tp} layout.micro_batch={layout.micro_batch} "
            f"layout.zero={layout.zero}"
        )


def memory_of_rank(run: Run, layout: Layout) -> float:
    """The memory of one rank in GiB: its tensors, and the overhead of a process (fitted to published measurements)."""
    precision = run.train.precision
    tensors = estimate_memory(
        run.model,
        layout.micro_batch,
        precision,
        layout.zero,
        layout.dp,
        max(1, int(layout.micro_batches)),
        gpu=True,
        tp=layout.tp,
        recompute=layout.recompute,
    )["total"]
    return tensors / GIB + float(calibration()["memory"]["fitted"]["GiB for each process"])


def layouts_that_fit(
    runs: Sequence[Run], gpu: GPU, gpus: int, site: SiteSpeed | None = None
) -> tuple[list[FittingLayout], list[str]]:
    """Find the parallel layouts in which all runs fit into memory. All arms of a study get the same layout, so that
    they differ only in what the study compares.

    Args:
        runs: the runs, for example one of each arm.
        gpu: the kind of GPU.
        gpus: the number of GPUs of each run.
        site: speeds measured on this kind of GPU, by which predictions are corrected; None: there are none.

    Returns:
        (the layouts, the fastest first; sentences on why other layouts were refused).
    """
    fitting: list[FittingLayout] = []
    refused: dict[str, str] = {}
    least_memory = math.inf
    for tp, zero, recompute, micro in itertools.product((1, 2, 4, 8), (1, 2), (False, True), MICRO_BATCHES):
        if gpus % tp or tp > min(gpu.node, gpus):
            continue
        if reason := next((reason for run in runs if (reason := _indivisible_reason(run, tp))), ""):
            refused.setdefault(f"tp {tp}", reason)
            continue
        dp = gpus // tp
        if reason := next((reason for run in runs if (reason := _uneven_batch_reason(run, dp, micro))), ""):
            refused.setdefault(f"dp {dp}", reason)
            continue
        layout = Layout(gpus, tp, 1, micro, runs[0].train.batch, zero, recompute)
        memory = max(memory_of_rank(run, layout) for run in runs)
        least_memory = min(least_memory, memory)
        if memory * (1 + EDGE) > gpu.memory:
            refused.setdefault("memory", "")
            continue
        steps = tuple(predict_step_at_site(Shape.of(run.model), layout, gpu, site) for run in runs)
        fitting.append(FittingLayout(layout, steps, memory))
    if not fitting and "memory" in refused:
        refused["memory"] = (
            f"does not fit: the least of all layouts is {least_memory:.1f} GiB on each of {gpus} {gpu.name}, "
            f"which have {gpu.memory:.1f}"
        )
    fitting.sort(key=lambda candidate: (candidate.seconds, candidate.layout.zero, candidate.layout.micro_batch))
    return fitting, [reason for reason in refused.values() if reason]


def training_time(run: Run, gpu: GPU, gpus: int, site: SiteSpeed | None) -> tuple[float, str]:
    """The training time of a run in the fastest layout that our engine has: (seconds, the basis of the prediction in
    words); (inf, "") where none fits. `gpus`: the number of GPUs; `site`: speeds measured on this kind of GPU, or
    None."""
    best = best_layout(layouts_that_fit([run], gpu, gpus, site)[0])
    if not best or best.layout.recompute:
        return math.inf, ""
    step = best.steps[0]
    return run.tokens / (run.train.batch * run.model.seq) * step.seconds, step.basis


def _indivisible_reason(run: Run, tp: int) -> str:
    """A sentence on why tensor parallelism over `tp` ranks cannot divide the model of a run; "" where it can."""
    for name, number in (
        ("heads", run.model.heads),
        ("inner width", run.model.mlp_width),
        ("rows of the embedding", run.model.padded_vocab),
    ):
        if number % tp:
            return f"tensor parallel {tp} does not divide the {name}, {number}"
    return ""


def _uneven_batch_reason(run: Run, dp: int, micro: int) -> str:
    """A sentence on why a batch of the run cannot be divided evenly among `dp` data-parallel replicas in micro-batches
    of `micro` sequences; "" where all its batches can."""
    for size in run.batch_sizes.sizes:
        if size % (dp * micro):
            where = "the batch" if size == run.train.batch else "a batch of the ramp"
            return f"{where}, {size}, is no multiple of {dp} replicas x micro-batch {micro}"
    return ""


def best_layout(candidates: list[FittingLayout]) -> FittingLayout | None:
    """The fastest layout without activation recomputation, which our engine does not have. Where all candidates
    recompute, the fastest of all; None where there are no candidates. `candidates`: the layouts, the fastest first."""
    return min(candidates, key=lambda candidate: candidate.layout.recompute, default=None)


def layouts_to_show(candidates: list[FittingLayout]) -> list[FittingLayout]:
    """The layouts to show in a plan, the fastest first and at most LAYOUTS_SHOWN. They are the two fastest, and the
    fastest for each other combination of tensor-parallel size and recomputation. `candidates`: the layouts, the fastest
    first."""
    kinds: dict[tuple[int, bool], FittingLayout] = {}
    for candidate in candidates:
        kinds.setdefault((candidate.layout.tp, candidate.layout.recompute), candidate)
    shown = candidates[:2] + [candidate for candidate in kinds.values() if candidate not in candidates[:2]]
    return sorted(shown[:LAYOUTS_SHOWN], key=lambda candidate: candidate.seconds)
