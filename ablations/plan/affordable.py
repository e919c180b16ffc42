"""Studies for a budget that is too small for studies at the usual size (first_studies.STUDY_SIZE): each study at the
largest size at which the budget pays for it, and what such a study can and cannot tell about a larger model.

A budget of core-hours, or of GPU-hours on named hardware, is planned in this way alone. What to train is planned only
for machines for a time (decision.py).
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from ablations.config import Run, resolve, sizes_and_presets
from ablations.plan import power, site_speed
from ablations.plan.document import Document
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
LARGE = 1e8  # tokens of a run, beyond which it does not read pydocs; assumed
LADDER_SIZES = 3  # a ladder's least
SMALLEST_WITH_ROWS = "125m"  # below it no published speed was fitted, and the prediction is extrapolated
LEAST_GPU_HOURS = 0.1  # of a run: it starts, compiles and is evaluated; assumed
# Measured on one core of an AMD EPYC with AVX512-BF16, two runs at a time (README): `make ablation POS=alibi` trains
# nano at so many tokens a second; its four runs of 90 s take 260 s on two cores with data, evaluation and report.
NANO_TOKENS_PER_SECOND, WHOLE_OVER_TRAINING = 11_700.0, 1.45


class Device(NamedTuple):
    """The kind of device on which a study would run (a GPU or a CPU core): the unit of its hours, the model sizes that
    are considered on it, and a function that gives the hours of a run."""

    unit: str  # "GPU-hours" or "core-hours"
    sizes: tuple[str, ...]  # the largest first
    precision: str  # the setting train.precision of its runs
    hours: Callable[[Run], float]  # of a run; inf where it does not fit
    basis: str  # of these hours, in words


class Offer(NamedTuple):
    """A study at the largest model size at which a budget pays for it, with its cost and the least difference that it
    detects."""

    study: str
    size: str
    tokens: int
    arms: int
    seeds: int
    runs: int
    hours: float
    least: float | None  # bits per byte, the least difference that it sees; None: no record has the noise of its size
    record: str  # from which the noise is; ""


def gpu_device(gpu: GPU, per_node: int, longest: float = math.inf) -> Device:
    """The `Device` for a kind of GPU. A run is counted on one GPU, or on a whole node where it does not fit on one GPU
    or would take too long there. `per_node`: the number of GPUs in a node; `longest`: the largest number of seconds of
    a run."""
    speed = site_speed.read_site_speed(gpu)

    def hours(run: Run) -> float:
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
    """The `Device` for a CPU core of the kind on which the training of size nano was timed."""
    nano = resolve([("size", "nano")]).model
    flops = NANO_TOKENS_PER_SECOND * flops_per_token(nano) / WHOLE_OVER_TRAINING  # a second, all work counted

    def hours(run: Run) -> float:
        return run.tokens * flops_per_token(run.model) / flops / HOUR

    basis = (
        f"measured for nano on one core of an AMD EPYC with AVX512-BF16: {NANO_TOKENS_PER_SECOND:,.0f} tokens/s, "
        f"{WHOLE_OVER_TRAINING:g} times that with evaluation and report; other sizes by their FLOPs (assumed)"
    )
    return Device("core-hours", CORE_SIZES, "bf16", hours, basis)


def runs_by_size(device: Device) -> list[Run]:
    """The run of the baseline at each size of the device, the largest size first. Sizes other than STUDY_SIZE get
    TOKENS_PER_PARAMETER tokens for each parameter where their own budget is larger; STUDY_SIZE is there twice, with its
    own budget and with that number."""
    runs = []
    for size in device.sizes:
        settings = [("size", size), ("train.precision", device.precision)]
        own = resolve(settings)
        few = int(float(f"{TOKENS_PER_PARAMETER * sizes_and_presets()[size]['params']:.2g}"))  # as a command can say it
        if size == STUDY_SIZE:
            runs.append(own)
        runs.append(resolve([*settings, ("train.tokens", few)]) if few < own.train.tokens else own)
    return runs


def offers(device: Device, hours: float) -> list[Offer]:
    """The studies of ablations/studies that train decoders, each at the largest size at which `hours` hours on the
    device pay for it, the cheapest study first. Studies for which the hours are too few at every size are left out."""
    costs = [(run, device.hours(run)) for run in runs_by_size(device)]
    found = []
    for name, arms in decoder_studies():
        count = arms * SEEDS
        compares_text = any(key == "data.corpus" for key, _ in read_study(name).arms)
        most = LARGE if compares_text else math.inf  # tokens: the corpora that are compared are small
        fitting = next(((run, cost) for run, cost in costs if cost * count <= hours and run.tokens <= most), None)
        if fitting:
            run, cost = fitting
            least, record = least_seen(run, arms)
            found.append(Offer(name, run.size, run.train.tokens, arms, SEEDS, count, cost * count, least, record))
    return sorted(found, key=lambda offer: offer.hours)


def least_seen(run: Run, arms: int) -> tuple[float | None, str]:
    """The least difference that a study of `arms` arms with SEEDS seeds detects at the size of `run`, by the noise in a
    stored record: (bits per byte, the name of the record); (None, "") where no record has the noise at this size."""
    known = power.recorded_noise(run)
    noise = known["noise"].get("bits/byte") if known else None
    if not known or not noise:
        return None, ""
    dof = noise.get("items_dof") or math.inf
    return power.detectable(noise["seed_sd"], noise["items"], arms, SEEDS, items_dof=dof), known["record"]


def affordable_ladder(device: Device, hours: float, arms: int) -> tuple[list[str], str, float] | None:
    """The largest ladder (the same study at several sizes, extrapolated to a larger one) for which `hours` hours on the
    device pay: (its sizes, the smallest first; the target, which is the next larger size; the hours that the ladder
    takes). None where the hours pay for no ladder, or the device is not a CPU core. `arms`: the number of arms of the
    study."""
    if device.sizes != CORE_SIZES:
        return None
    sizes = [*device.sizes]
    for first in range(len(sizes) - LADDER_SIZES + 1):
        chosen = sizes[first : first + LADDER_SIZES]
        cost = sum(device.hours(resolve([("size", size)])) for size in chosen) * arms * SEEDS
        if cost <= hours:
            return chosen[::-1], sizes[first - 1] if first else "14m", cost
    return None


def write_offers(out: Document, device: Device, found: list[Offer], hours: float, target: str) -> None:
    """Add to the document `out` a table of the offered studies, and what they can and cannot tell about a larger model.

    Args:
        device: the kind of device on which the studies would run.
        found: the studies, from `offers`; where there are none, the document says that no study fits.
        hours: the hours of the budget, in the unit of the device.
        target: the larger model, in words for the text.
    """
    if not found:
        out.text(
            f"No study of ablations/studies with {SEEDS} seeds fits into {amount_text(hours)} {device.unit}, not at "
            f"{device.sizes[-1]} either."
        )
        return
    rows = [
        [
            offer.study,
            offer.size,
            short_number(offer.tokens),
            f"{offer.arms} x {offer.seeds}",
            amount_text(offer.hours),
            f"{offer.hours / hours:.0%}",
            f"{offer.least:.2g} bits/byte ({offer.record})" if offer.least is not None else "unknown",
            command_of(offer),
        ]
        for offer in found
    ]
    head = ["study", "size", "tokens", "arms x seeds", device.unit, f"of {amount_text(hours)}", "sees", "command"]
    out.table(head, rows)
    out.text(f"{device.unit}: {device.basis}. Each row alone fits; together they may not.")
    out.text(
        f"Sees: with a chance of {power.POWER:.0%}, by the noise of the record that is named; unknown where no record "
        "has the noise of that size (make noise measures it)."
    )
    out.text(f"What such a study tells about {target}, and what not:")
    ladder = affordable_ladder(device, hours, found[0].arms)
    points = [
        "It tells which arm is better at its own size, budget and text, with an error rate that is known; an effect "
        "that it does not see may be there all the same.",
        "It does not tell how large the effect is at the larger size, nor that it has the same sign there: arms may "
        "cross.",
        "It is judged by held-out bits per byte: at these sizes most of the 27 tasks are near chance (assumed).",
    ]
    if ladder:
        sizes, aim, cost = ladder
        points.append(
            f"A ladder extrapolates the difference, with an interval: make ladder STUDY={found[0].study} SEEDS={SEEDS} "
            f"SIZES={','.join(sizes)} TARGET={aim} ({amount_text(cost)} {device.unit}). Of two real ones one was sure "
            "of a wrong sign (measured: docs/planning.md)."
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
    out.bullets(points)


def command_of(offer: Offer) -> str:
    """The `make ablation` command that runs an offered study. Runs of more than LARGE tokens read C4, since pydocs has
    less text."""
    own = resolve([("size", offer.size)]).train.tokens
    tokens = f" TOKENS={short_number(offer.tokens)}" if offer.tokens < own else ""
    text = " DATA=c4" if offer.tokens > LARGE else ""
    return f"make ablation STUDY={offer.study} SIZE={offer.size}{tokens} SEEDS={offer.seeds}{text}"


def device_of(budget: Budget) -> Device | None:
    """The device of a budget that is an amount of core-hours, of GPU-hours on named hardware, or of money for named
    hardware; None for any other budget."""
    if budget.kind == "core-hours":
        return core_device()
    return gpu_device(budget.gpu, budget.gpu.node) if budget.gpu and budget.kind in ("gpu-hours", "money") else None


def document(budget: Budget, device: Device, hours: float) -> Document:
    """The document of the studies for which a budget of hours pays. `hours`: the hours of the budget, in the unit of
    the device."""
    out = Document(f"What to ask with {budget.text}")
    out.text(
        f"{amount_text(hours)} {device.unit} say how much, not how fast: what to train needs machines for a time, such "
        "as BUDGET='2 weeks, 1x8 a100'. Which studies they pay, each at the largest size at which it fits:"
    )
    write_offers(out, device, offers(device, hours), hours, "a larger model")
    return out


def as_json(budget: Budget, device: Device, hours: float) -> dict[str, Any]:
    """The studies for which a budget of hours pays, as an object for FORMAT=json. `hours`: the hours of the budget, in
    the unit of the device."""
    rows = [offer._asdict() | {"command": command_of(offer)} for offer in offers(device, hours)]
    return {"budget": budget.text, "unit": device.unit, "hours": hours, "studies": rows}
