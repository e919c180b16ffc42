"""Which predictions of a study came true."""

from typing import NamedTuple

from ablations.prediction import Prediction
from eval.report.compare import METRICS, compare_pair, share_of_alpha
from eval.report.criteria import registered_contents
from eval.report.findings import Findings
from eval.statistics.comparison import Comparison
from eval.statistics.parts import LEVEL, interval_half_width

HELD, FAILED, UNDECIDED = "held", "failed", "undecided"


class Checked(NamedTuple):
    """A prediction, what was measured, and whether it came true."""

    text: str
    metric: str
    outcome: str  # HELD, FAILED or UNDECIDED
    measured: str
    registered: bool  # before the runs: of the arms that it is about, at most one had begun


def checked_predictions(findings: Findings) -> list[Checked]:
    return [
        Checked(p.text, p.metric, *outcome(findings, p), was_registered(findings, p))
        for p in findings.study.predictions
    ]


def was_registered(findings: Findings, prediction: Prediction) -> bool:
    """Whether a prediction was registered before the first step of all runs of its arms but for those of one arm, which
    may be from an earlier study, since studies share their baseline."""
    texts = {
        run: content.get("predictions") for run, content in registered_contents(findings.study, findings.cells).items()
    }
    before = {
        run for run, registered in texts.items() if isinstance(registered, list) and prediction.text in registered
    }
    begun = {run for run, cell in findings.cells.items() if "run" in cell}
    late = {arm for arm, _ in begun - before} & set(prediction.arms)
    return bool(before) and len(late) <= 1


def outcome(findings: Findings, prediction: Prediction) -> tuple[str, str]:
    """The outcome of a prediction, HELD, FAILED or UNDECIDED; and what was measured, in words."""
    metric = prediction.metric
    neighbours = list(zip(prediction.arms, prediction.arms[1:], strict=False))
    if metric not in findings.results:
        return UNDECIDED, f"{metric} was not measured"
    results = {arm: row for arm, row in findings.distinct_results(metric).items() if row}
    compared: list[Comparison] = []
    for first, second in neighbours:
        there = {first, second} <= set(results)
        spending = share_of_alpha(findings.study.criteria, 1)
        c = (
            compare_pair(findings.cells, results, first, second, metric, findings.controlled, None, spending)
            if there
            else None
        )
        if c is None:
            return UNDECIDED, f"{first} and {second} cannot be compared"
        compared.append(c)
    digits = METRICS[metric].digits + 1
    measured = "; ".join(
        f"{first} − {second}: {c.difference:+.{digits}f}{half_width(c, digits)}"
        for (first, second), c in zip(neighbours, compared, strict=True)
    )
    if not all(c.seeds and c.replicated and c.enough_items for c in compared):
        return UNDECIDED, f"{measured}; not replicated, or of too few items"
    if prediction.interval:
        return judged_interval(compared[0], prediction.interval), measured
    return judged_order(compared), measured


def half_width(c: Comparison, digits: int) -> str:
    """The half-width of the 95 % confidence interval of a difference as text, such as " ± 0.012"; "" where the noise is
    unknown."""
    return (
        f" ± {interval_half_width(c.share * LEVEL, c.seeds, c.items):.{digits}f}" if c.seeds and c.enough_items else ""
    )


def judged_order(differences: list[Comparison]) -> str:
    """The outcome of a predicted order of arms, the smallest value first. `differences`: the comparison of each arm
    with the next one in that order."""
    if any(c.difference > 0 and c.p <= c.share * LEVEL / len(differences) for c in differences):
        return FAILED
    return HELD if all(c.difference < 0 and c.p <= c.share * LEVEL for c in differences) else UNDECIDED


def judged_interval(c: Comparison, interval: tuple[float, float]) -> str:
    """The outcome of a predicted interval, (low, high), of a difference."""
    low, high = interval
    assert c.seeds
    level = c.share * LEVEL
    within, around = interval_half_width(2 * level, c.seeds, c.items), interval_half_width(level, c.seeds, c.items)
    if low <= c.difference - within and c.difference + within <= high:
        return HELD
    return FAILED if c.difference + around < low or c.difference - around > high else UNDECIDED
