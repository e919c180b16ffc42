"""Checks which predictions of a study came true."""

from typing import NamedTuple

from ablations.prediction import INTERACTION, Prediction, distinct_predictions
from eval.report.comparison.compare import METRICS, alpha_share_function, compare_arms, interval_in_words
from eval.report.comparison.contrasts import compare_contrast
from eval.report.comparison.criteria import registered_contents
from eval.report.comparison.findings import Findings
from eval.statistics.comparison import Comparison
from eval.statistics.parts import LEVEL, interval_half_width

HELD, FAILED, UNDECIDED = "held", "failed", "undecided"


class CheckedPrediction(NamedTuple):
    """A prediction of a study, what was measured, and whether it came true."""

    text: str
    metric: str
    outcome: str  # HELD, FAILED or UNDECIDED
    measured: str
    registered: bool  # before the runs, as `was_registered` says


def checked_predictions(findings: Findings) -> list[CheckedPrediction]:
    """The predictions of a study with their outcomes. A prediction that is both in the study file and in PREDICT= is
    listed once."""
    return [
        CheckedPrediction(p.text, p.metric, *prediction_outcome(findings, p), was_registered(findings, p))
        for p in distinct_predictions(findings.study.predictions)
    ]


def was_registered(findings: Findings, prediction: Prediction) -> bool:
    """Whether a prediction was registered before the first step of the runs that decide it.

    Some of these runs, often those of the baseline, may belong to earlier studies and lack the registration. It is
    enough that all but one of the predicted arms have it. For an interaction one of its four arms is enough, since the
    other three alone do not show the interaction.
    """
    texts = {
        run: content.get("predictions") for run, content in registered_contents(findings.study, findings.cells).items()
    }
    before = {
        run for run, registered in texts.items() if isinstance(registered, list) and prediction.text in registered
    }
    begun = {run for run, cell in findings.cells.items() if "run" in cell}
    late = {arm for arm, _ in begun - before} & set(prediction.arms)
    return bool(before) and len(late) <= (len(prediction.arms) - 1 if prediction.kind == INTERACTION else 1)


def prediction_outcome(findings: Findings, prediction: Prediction) -> tuple[str, str]:
    """The outcome of a prediction: (HELD, FAILED or UNDECIDED; a text on what was measured, or why nothing was)."""
    metric = prediction.metric
    if metric not in findings.results:
        return UNDECIDED, f"{metric} was not measured"
    if prediction.kind == INTERACTION:
        compared = {f"{prediction.arms[0]} × {prediction.arms[1]}": compare_interaction(findings, prediction)}
    else:
        neighbours = zip(prediction.arms, prediction.arms[1:], strict=False)
        compared = {
            f"{first} − {second}": compare_two_arms(findings, metric, first, second) for first, second in neighbours
        }
    known = {name: c for name, c in compared.items() if c}
    if len(known) < len(compared):
        return UNDECIDED, f"{next(name for name in compared if name not in known)}: cannot be compared"
    digits = METRICS[metric].digits + 1
    factors = 2 if prediction.kind == INTERACTION else 1
    measured = "; ".join(
        f"{name}: {c.difference:+.{digits}f}{interval_text(c, metric, factors)}" for name, c in known.items()
    )
    comparisons = list(known.values())
    if not all(c.seeds and c.replicated and c.has_enough_items for c in comparisons):
        return UNDECIDED, f"{measured}; not replicated, or of too few items"
    if prediction.interval:
        return interval_outcome(comparisons[0], prediction.interval), measured
    return order_outcome(comparisons), measured


def compare_two_arms(findings: Findings, metric: str, first: str, second: str) -> Comparison | None:
    """Compare two arms on a metric, `first` minus `second`; None where they cannot be compared."""
    results = {arm: row for arm, row in findings.distinct_results(metric).items() if row}
    if not {first, second} <= set(results):
        return None
    spending = alpha_share_function(findings.study.criteria, 1)
    return compare_arms(findings.cells, results, first, second, metric, findings.controlled, None, spending)


def compare_interaction(findings: Findings, prediction: Prediction) -> Comparison | None:
    """Compare the interaction of two changes with 0; None where the four arms cannot be compared. The interaction is
    the effect of both together minus the sum of their separate effects, y11 - y10 - y01 + y00. `prediction`: its `arms`
    are the first change, the second, both, and the baseline."""
    first, second, both, neither = prediction.arms
    results = {arm: row for arm, row in findings.distinct_results(prediction.metric).items() if row}
    weights = {both: 1.0, first: -1.0, second: -1.0, neither: 1.0}
    return compare_contrast(findings.cells, results, weights, prediction.metric)


def interval_text(c: Comparison, metric: str, factors: int = 1) -> str:
    """The 95 % confidence interval of a difference as text, such as ", 95 % interval +0.012 to +0.034"; "" where the
    noise is unknown. `factors`: 1 for a difference of two arms, 2 for an interaction, as in `interval_in_words`."""
    if not c.seeds or not c.has_enough_items:
        return ""
    half_width = interval_half_width(c.share * LEVEL, c.seeds, c.items)
    return f", 95 % interval {interval_in_words(c.difference, half_width, metric, factors)}"


def order_outcome(differences: list[Comparison]) -> str:
    """The outcome (HELD, FAILED or UNDECIDED) of a predicted order of arms, from the smallest value to the largest.
    `differences`: the comparison of each arm with the next one in that order."""
    if any(c.difference > 0 and c.p <= c.share * LEVEL / len(differences) for c in differences):
        return FAILED
    return HELD if all(c.difference < 0 and c.p <= c.share * LEVEL for c in differences) else UNDECIDED


def interval_outcome(c: Comparison, interval: tuple[float, float]) -> str:
    """The outcome (HELD, FAILED or UNDECIDED) of a prediction that a difference lies in an interval, (low, high)."""
    low, high = interval
    assert c.seeds
    level = c.share * LEVEL
    within, around = interval_half_width(2 * level, c.seeds, c.items), interval_half_width(level, c.seeds, c.items)
    if low <= c.difference - within and c.difference + within <= high:
        return HELD
    return FAILED if c.difference + around < low or c.difference - around > high else UNDECIDED
