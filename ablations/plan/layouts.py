"""The parallel layouts in which a run fits on given GPUs, ordered by predicted speed. They include layouts with
activation recomputation, which our engine does not have yet.

Every layout that is returned fits into memory by model/memory.py, and divides every batch of the run among its ranks.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from ablations.config import Run
from ablations.plan.hardware import GIB, GPU
from ablations.plan.pipeline_memory import EDGE
from ablations.plan.site_speed import SiteSpeed, predict_at_site
from ablations.plan.throughput import Layout, PredictedStep, Shape, calibration
from model.memory import estimate_memory

MICRO_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
LAYOUTS_SHOWN = 4


@dataclass(frozen=True)
class FittingLayout:
    """A parallel layout in which all arms of a study fit. `steps`: the predicted step time of each arm; `gib`: the
    memory of a GPU in GiB, for the arm that needs the most."""

    layout: Layout
    steps: tuple[PredictedStep, ...]  # one for each run that was asked about
    gib: float

    @property
    def seconds(self) -> float:
        return sum(step.seconds for step in self.steps)

    @property
    def words(self) -> str:
        layout = self.layout
        again = ", recomputed" if layout.recompute else ""
        return f"dp {layout.dp} x tp {layout.tp}, micro-batch {layout.micro_batch}, ZeRO {layout.zero}{again}"

    @property
    def settings_text(self) -> str:
        """This layout as KEY=VALUE settings with spaces between them, as SET= takes them on the command line."""
        layout = self.layout
        return (
            f"layout.processes={layout.gpus} layout.tp={layout.tp} layout.micro_batch={layout.micro_batch} "
            f"layout.zero={layout.zero}"
        )


def rank_memory(run: Run, layout: Layout) -> float:
    """The memory that one rank needs in GiB: its tensors, and the overhead of a process, fitted to published
    measurements."""
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


def fitting_layouts(
    runs: Sequence[Run], gpu: GPU, gpus: int, site: SiteSpeed | None = None
) -> tuple[list[FittingLayout], list[str]]:
    """Find the parallel layouts in which all runs fit into memory. All arms of a study get the same layout, so that
    they differ only in what the study asks.

    Args:
        runs: the runs, such as one of each arm.
        gpu: the kind of GPU.
        gpus: the number of GPUs of each run.
        site: speeds measured on this kind of GPU, by which predictions are corrected; None: there are none.

    Returns:
        (the layouts, the fastest first; sentences that say why other layouts were refused).
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
        need = max(rank_memory(run, layout) for run in runs)
        least_memory = min(least_memory, need)
        if need * (1 + EDGE) > gpu.memory:
            refused.setdefault("memory", "")
            continue
        steps = tuple(predict_at_site(Shape.of(run.model), layout, gpu, site) for run in runs)
        fitting.append(FittingLayout(layout, steps, need))
    if not fitting and "memory" in refused:
        refused["memory"] = (
            f"does not fit: the least of all layouts is {least_memory:.1f} GiB on each of {gpus} {gpu.name}, "
            f"which have {gpu.memory:.1f}"
        )
    fitting.sort(key=lambda candidate: (candidate.seconds, candidate.layout.zero, candidate.layout.micro_batch))
    return fitting, [reason for reason in refused.values() if reason]


def training_time(run: Run, gpu: GPU, gpus: int, site: SiteSpeed | None) -> tuple[float, str]:
    """The seconds that a run trains in the fastest layout that our engine has: (seconds, the basis of the prediction in
    words); (inf, "") where none fits. The arguments are those of `fitting_layouts`."""
    best = best_layout(fitting_layouts([run], gpu, gpus, site)[0])
    if not best or best.layout.recompute:
        return math.inf, ""
    step = best.steps[0]
    return run.tokens / (run.train.batch * run.model.seq) * step.seconds, step.basis


def _indivisible_reason(run: Run, tp: int) -> str:
    """The reason why tensor parallelism over `tp` ranks cannot divide the model of a run, as a sentence; "" where it
    can."""
    for name, number in (
        ("heads", run.model.heads),
        ("inner width", run.model.ffn),
        ("rows of the embedding", run.model.padded_vocab),
    ):
        if number % tp:
            return f"tensor parallel {tp} does not divide the {name}, {number}"
    return ""


def _uneven_batch_reason(run: Run, dp: int, micro: int) -> str:
    """The reason why a batch of the run cannot be divided evenly among `dp` data-parallel replicas in micro-batches of
    `micro` sequences, as a sentence; "" where all its batches can."""
    for size in run.batch_sizes.sizes:
        if size % (dp * micro):
            where = "the batch" if size == run.train.batch else "a batch of the ramp"
            return f"{where}, {size}, is no multiple of {dp} replicas x micro-batch {micro}"
    return ""


def best_layout(candidates: list[FittingLayout]) -> FittingLayout | None:
    """The fastest of the candidates that our engine has, which are those without recomputation, else the fastest; None
    where there are no candidates. `candidates`: the layouts, the fastest first."""
    return min(candidates, key=lambda candidate: candidate.layout.recompute, default=None)


def best_of_each_kind(candidates: list[FittingLayout]) -> list[FittingLayout]:
    """Up to LAYOUTS_SHOWN of the candidates, the fastest first: the two fastest, and the fastest for each other
    combination of tensor-parallel size and recomputation. `candidates`: the layouts, the fastest first."""
    kinds: dict[tuple[int, bool], FittingLayout] = {}
    for candidate in candidates:
        kinds.setdefault((candidate.layout.tp, candidate.layout.recompute), candidate)
    shown = candidates[:2] + [candidate for candidate in kinds.values() if candidate not in candidates[:2]]
    return sorted(shown[:LAYOUTS_SHOWN], key=lambda candidate: candidate.seconds)
