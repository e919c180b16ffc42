"""Plans for budgets that are too small for studies at the usual model size (first_studies.STUDY_SIZE). For each study
the plan gives the largest size that the budget pays for, and the least difference that the study detects there.

A budget in core-hours, or in GPU-hours on named hardware, gets only this kind of plan. A budget of machines for a time
is planned by decision.py, which also says what to train.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from ablations.config import Run, resolve, sizes_and_presets
from ablations.plan import power, site_speed
from ablations.plan.document import Document
from ablations.plan.extrapolation import LEAST_SIZES
from ablations.plan.first_studies import STUDY_SIZE, decoder_studies
from ablations.plan.hardware import GPU
from ablations.plan.layouts import training_time
from ablations.plan.published_laws import TOKENS_PER_PARAMETER
from ablations.plan.resources import HOUR, Budget, amount_text
from ablations.study_file import read_study
from ablations.values import short_number
from model.count import flops_per_token

SEEDS = 3  # of each arm: with two, a study of two arms sees little (docs/planning.md); assumed
GPU_SIZES = (STUDY_SIZE, "760m", "350m", "125m", "14m")  # the largest first
CORE_SIZES = ("small", "mini", "nano", "pico", "femto", "atto")
LARGEST_PYDOCS_RUN = 1e8  # tokens, the most that a run may read of pydocs, which has little text; assumed
SMALLEST_WITH_ROWS = "125m"  # below it no published speed was fitted, and the prediction is extrapolated
LEAST_GPU_HOURS = 0.1  # of a run, for its start, compilation and evaluation; assumed
# Measured on one core of an AMD EPYC with AVX512-BF16, two runs at a time (README): the tokens per second at which
# `make ablation POS=alibi` trains nano, and the ratio of its whole time to its training. Its four runs train for 90 s
# each, and take 260 s on two cores with data, evaluation and report.
NANO_TOKENS_PER_SECOND, TOTAL_OVER_TRAINING = 11_700.0, 1.45


class Device(NamedTuple):
    """The kind of device on which studies would run, a GPU or a CPU core: its model sizes, and a function for the cost
    of a run."""

    unit: str  # "GPU-hours" or "core-hours"
    sizes: tuple[str, ...]  # names of sizes, the largest first
    precision: str  # the setting train.precision of its runs
    hours: Callable[[Run], float]  # the cost of a run, in `unit`; inf where it does not fit
    basis: str  # where `hours` is from, as text


class AffordableStudy(NamedTuple):
    """A study at the largest model size that a budget pays for, with its cost and the least difference between arms
    that it can detect."""

    study: str
    size: str
    tokens: int
    arms: int
    seeds: int
    runs: int
    hours: float  # of all runs, in the unit of the device
    least: float | None  # the least detectable difference in bits per byte; None: no record has the noise
    record: str  # the name of the record with the noise; "" where `least` is None


def gpu_device(gpu: GPU, per_node: int, longest: float = math.inf) -> Device:
    """The `Device` for a kind of GPU. The cost of a run is counted on one GPU, or on a whole node where the run does
    not fit on one GPU or would take too long there.

    Args:
        gpu: the kind of GPU.
        per_node: the number of GPUs in a node.
        longest: the longest time that a run may take, in seconds.
    """
    speed = site_speed.read_site_speed(gpu)

    def hours(run: Run) -> float:
        """The GPU-hours of a run on one GPU, else on a node; inf where neither does."""
        for gpus in dict.fromkeys((1, per_node)):
            seconds, _ = training_time(run, gpu, gpus, speed)
            if math.isfinite(seconds) and seconds <= longest:
                return max(LEAST_GPU_HOURS, seconds / HOUR * gpus)
        return math.inf

    basis = (
        f"predicted, on one GPU, or a node of {per_node} where one does not hold it; below {SMALLEST_WITH_ROWS} "
        f"extrapolated, and no run counts as less than {LEAST_GPU_HOURS:g} (assumed)"
    )
    return Device("GPU-hours", GPU_SIZES, gpu.precision, hours, basis)


def core_device() -> Device:
    """The `Device` for a CPU core of the kind on which training at size nano was timed. The cost of other sizes is in
    proportion to their FLOPs."""
    nano = resolve([("size", "nano")]).model
    flops_per_second = NANO_TOKENS_PER_SECOND * flops_per_token(nano) / TOTAL_OVER_TRAINING

    def hours(run: Run) -> float:
        """The core-hours of a run."""
        return run.tokens * flops_per_token(run.model) / flops_per_second / HOUR

    basis = (
        f"measured for nano on one core of an AMD EPYC with AVX512-BF16: {NANO_TOKENS_PER_SECOND:,.0f} tokens/s, "
        f"{TOTAL_OVER_TRAINING:g} times that with evaluation and report; other sizes by their FLOPs (assumed)"
    )
    return Device("core-hours", CORE_SIZES, "bf16", hours, basis)


def candidate_runs(device: Device) -> list[Run]:
    """The runs of the baseline from which a plan chooses, the largest size first. Each trains on TOKENS_PER_PARAMETER
    tokens per parameter, or on the default tokens of its size where these are fewer. STUDY_SIZE is in the list twice:
    with its default tokens, then with TOKENS_PER_PARAMETER."""
    runs = []
    for size in device.sizes:
        settings = [("size", size), ("train.precision", device.precision)]
        run = resolve(settings)
        # two digits, so that the number can be written as TOKENS= of a command
        tokens = int(float(f"{TOKENS_PER_PARAMETER * sizes_and_presets()[size]['params']:.2g}"))
        if size == STUDY_SIZE:
            runs.append(run)
        runs.append(resolve([*settings, ("train.tokens", tokens)]) if tokens < run.train.tokens else run)
    return runs


def affordable_studies(device: Device, hours: float) -> list[AffordableStudy]:
    """The studies in ablations/studies that train decoders, each at the largest size that a budget pays for. The
    cheapest comes first. Studies that cost too much at every size are left out. `hours`: the budget, in the unit of the
    device."""
    costs = [(run, device.hours(run)) for run in candidate_runs(device)]
    studies = []
    for name, arms in decoder_studies():
        runs = arms * SEEDS
        compares_text = any(key == "data.corpus" for key, _ in read_study(name).arms)
        most_tokens = LARGEST_PYDOCS_RUN if compares_text else math.inf  # the corpora that are compared are small
        fitting = ((run, cost) for run, cost in costs if cost * runs <= hours and run.tokens <= most_tokens)
        if largest := next(fitting, None):
            run, cost = largest
            least, record = (None, "") if compares_text else detectable_bits_per_byte(run, arms)
            studies.append(
                AffordableStudy(name, run.size, run.train.tokens, arms, SEEDS, runs, cost * runs, least, record)
            )
    return sorted(studies, key=lambda study: study.hours)


def detectable_bits_per_byte(run: Run, arms: int) -> tuple[float | None, str]:
    """The least difference between arms that a study detects at the size of `run` with SEEDS seeds, by the noise in the
    record of an earlier study. Returns (difference in bits per byte, name of the record). (None, "") where no record
    has the noise at this size and on the text that `study_command` names. `arms`: the number of arms, the baseline
    included."""
    record = power.recorded_noise(run, texts={"c4" if run.tokens > LARGEST_PYDOCS_RUN else run.data.corpus: ""})
    noise = record["noise"].get("bits/byte") if record else None
    if not record or not noise or record["other_text"]:
        return None, ""
    dof = noise.get("items_dof") or math.inf
    return power.detectable_difference(noise["seed_sd"], noise["items"], arms, SEEDS, items_dof=dof), record["record"]


def affordable_ladder(device: Device, hours: float, arms: int) -> tuple[list[str], str, float] | None:
    """The largest ladder that a budget pays for on CPU cores. A ladder is the same study at several sizes, extrapolated
    to a larger target size.

    Args:
        device: the device; ladders are planned only for CPU cores.
        hours: the budget, in the unit of the device.
        arms: the number of arms of the study, the baseline included.

    Returns:
        (names of the sizes, the smallest first; name of the target size; hours that the ladder takes). None where the
        budget pays for no ladder, or the device is a GPU.
    """
    if device.sizes != CORE_SIZES:
        return None
    sizes = device.sizes
    for first in range(len(sizes) - LEAST_SIZES + 1):
        ladder = sizes[first : first + LEAST_SIZES]
        cost = sum(device.hours(resolve([("size", size)])) for size in ladder) * arms * SEEDS
        if cost <= hours:
            return [*reversed(ladder)], sizes[first - 1] if first else "14m", cost
    return None


def add_studies(out: Document, device: Device, studies: list[AffordableStudy], hours: float, larger_model: str) -> None:
    """Add to the document `out` a table of the studies that a budget pays for, and notes on what they tell about a
    larger model.

    Args:
        out: the document.
        device: the device on which the studies would run.
        studies: the studies, from `affordable_studies`; where the list is empty, the document says that no study fits.
        hours: the budget, in the unit of the device.
        larger_model: the name of the larger model in the text, such as "a larger model".
    """
    if not studies:
        out.add_text(
            f"No study of ablations/studies with {SEEDS} seeds fits into {amount_text(hours)} {device.unit}, not at "
            f"{device.sizes[-1]} either."
        )
        return
    rows = [
        [
            study.study,
            study.size,
            short_number(study.tokens),
            f"{study.arms} x {study.seeds}",
            amount_text(study.hours),
            f"{study.hours / hours:.0%}",
            f"{study.least:.2g} bits/byte ({study.record})" if study.least is not None else "unknown",
            study_command(study),
        ]
        for study in studies
    ]
    head = ["study", "size", "tokens", "arms x seeds", device.unit, f"of {amount_text(hours)}", "sees", "command"]
    out.add_table(head, rows)
    out.add_text(f"{device.unit}: {device.basis}. Each row alone fits; together they may not.")
    out.add_text(
        f"Sees: with a chance of {power.POWER:.0%}, by the noise of the record that is named; unknown where no record "
        "has the noise of that size and text (make noise measures it)."
    )
    out.add_text(f"What such a study tells about {larger_model}, and what not:")
    ladder = affordable_ladder(device, hours, studies[0].arms)
    points = [
        "It tells which arm is better at its own size, budget and text, with an error rate that is known; an effect "
        "that it does not see may be there all the same.",
        "It does not tell how large the effect is at the larger size, nor that it has the same sign there: arms may "
        "cross.",
        "It is judged by held-out bits per byte: at these sizes most of the 27 tasks are near chance (assumed).",
    ]
    if ladder:
        sizes, target, cost = ladder
        points.append(
            f"A ladder extrapolates the difference, with an interval: make ladder STUDY={studies[0].study} "
            f"SEEDS={SEEDS} SIZES={','.join(sizes)} TARGET={target} ({amount_text(cost)} {device.unit}). Of two real "
            "ones one was sure of a wrong sign (measured: docs/planning.md)."
        )
    else:
        points.append(
            "A ladder (make ladder SIZES=nano,mini,small TARGET=14m) extrapolates the difference over sizes, with an "
            "interval. Of two real ones one was sure of a wrong sign (measured: docs/planning.md)."
        )
    points.append(
        "Loss against size and tokens can be extrapolated from runs of several sizes: make laws RUNS=... gives "
        "intervals, and refuses runs that do not determine a law."
    )
    out.add_bullets(points)


def study_command(study: AffordableStudy) -> str:
    """The `make ablation` command that runs a study. Runs of more than LARGEST_PYDOCS_RUN tokens read the corpus C4
    instead of pydocs, which has too little text."""
    default_tokens = resolve([("size", study.size)]).train.tokens
    tokens = f" TOKENS={short_number(study.tokens)}" if study.tokens < default_tokens else ""
    text = " DATA=c4" if study.tokens > LARGEST_PYDOCS_RUN else ""
    return f"make ablation STUDY={study.study} SIZE={study.size}{tokens} SEEDS={study.seeds}{text}"


def budget_device(budget: Budget) -> Device | None:
    """The device that a budget pays for: a CPU core for core-hours, a GPU for GPU-hours or money with named hardware.
    None for any other budget."""
    if budget.kind == "core-hours":
        return core_device()
    return gpu_device(budget.gpu, budget.gpu.node) if budget.gpu and budget.kind in ("gpu-hours", "money") else None


def document(budget: Budget, device: Device, hours: float) -> Document:
    """The document on the studies that a budget pays for. `hours`: the budget, in the unit of the device."""
    out = Document(f"What to ask with {budget.text}")
    out.add_text(
        f"{amount_text(hours)} {device.unit} say how much, not how fast: what to train needs machines for a time, such "
        "as BUDGET='2 weeks, 1x8 a100'. Which studies they pay, each at the largest size at which it fits:"
    )
    add_studies(out, device, affordable_studies(device, hours), hours, "a larger model")
    return out


def as_json(budget: Budget, device: Device, hours: float) -> dict[str, Any]:
    """The studies that a budget pays for, as an object for FORMAT=json. Its keys are "budget" (the user's text),
    "unit", "hours", and "studies": for each study the fields of `AffordableStudy` and its "command". `hours`: the
    budget, in the unit of the device."""
    rows = [study._asdict() | {"command": study_command(study)} for study in affordable_studies(device, hours)]
    return {"budget": budget.text, "unit": device.unit, "hours": hours, "studies": rows}
