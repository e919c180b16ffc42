"""Predictions of a study that its report can check: an order of arms, an interval for a difference, or for an
interaction.

alibi < rotary < learned                    in bits/byte, where less is better
alibi - learned in [-0.3, -0.05]            the difference of two arms; -inf and inf are allowed as ends
alibi x swiglu in [-0.02, 0.02]             the interaction: the change by both, minus the changes by each alone
zero-shot: learned < alibi                  the values of another metric

An arm is named by its label (pos=alibi), by its value where no other arm has the same (alibi), or as `baseline`.
"""

import math
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

from ablations.criteria import METRICS, PRIMARY, check_metric
from ablations.values import ConfigError, parse_number

FORM = (
    f"a prediction is `A < B < C`, `A - B in [low, high]` or `A x B in [low, high]`, with {' or '.join(METRICS)} and a "
    "colon before it or not"
)
DIFFERENCE, INTERACTION, ORDER = " - ", " x ", " < "  # the kinds of predictions, each as its sign between two arms


class Prediction(NamedTuple):
    """A prediction about the arms of a study, as `parse_prediction` reads it."""

    text: str  # as it was written
    metric: str  # one of METRICS
    arms: tuple[str, ...]  # the labels of the arms, in the order that `kind` needs
    interval: tuple[float, float] | None = None  # (low, high), in the unit of the metric; None for an order
    # ORDER: arms in which the metric rises. DIFFERENCE: the arm from which the other is subtracted, the other arm.
    # INTERACTION: two arms, the arm with the changes of both, the baseline
    kind: str = ORDER


def distinct_predictions(predictions: Sequence[Prediction]) -> list[Prediction]:
    """The predictions without repetitions: of several that make the same claim, the first. A study file and PREDICT=
    may contain the same prediction."""
    claims = {(p.metric, p.kind, p.arms, p.interval): p for p in reversed(predictions)}
    return [p for p in predictions if claims[p.metric, p.kind, p.arms, p.interval] is p]


def parse_prediction(text: str, arms: Sequence[str]) -> Prediction:
    """Read a prediction from its text. `text`: the prediction, such as "alibi < learned"; `arms`: the labels of the
    study's arms, the baseline first. Raises ConfigError where the text is not a prediction, or names an arm that the
    study does not have."""
    before, colon, after = text.partition(": ")
    metric, claim = (before.strip(), after) if colon else (PRIMARY, text)
    check_metric(metric, repr(text))
    left, is_interval, right = claim.partition(" in ")
    kind = ORDER if not is_interval else INTERACTION if INTERACTION in left else DIFFERENCE
    names = left.split(kind)
    if (is_interval and len(names) != 2) or len(names) < 2:
        raise ConfigError(f"{text!r}: {FORM}")
    labels = [find_arm(name.strip(), arms, text) for name in names]
    if len(set(labels)) < len(labels):
        raise ConfigError(f"{text!r} names an arm twice; {FORM}")
    if kind == INTERACTION:
        labels += [find_combined_arm(labels[0], labels[1], arms, text), arms[0]]
    return Prediction(text.strip(), metric, tuple(labels), parse_interval(right, text) if is_interval else None, kind)


def find_combined_arm(first: str, second: str, arms: Sequence[str], text: str) -> str:
    """The label of the arm with the changes of two other arms, such as "pos=alibi+act=swiglu".

    Args:
        first, second: the labels of the two other arms.
        arms: the labels of the study's arms, the baseline first.
        text: the prediction, for the error message.

    Raises:
        ConfigError: the study has no such arm.
    """
    labels = [label for label in (f"{first}+{second}", f"{second}+{first}") if label in arms]
    if not labels:
        raise ConfigError(
            f"{text!r} is about an interaction, for which the study needs an arm {first}+{second}: CROSS=1 makes it"
        )
    return labels[0]


def find_arm(name: str, arms: Sequence[str], text: str) -> str:
    """The label of the arm that a prediction calls `name`: a label such as "pos=alibi", its value alone, or "baseline".
    `arms`: the labels of the study's arms, the baseline first; `text`: the prediction, for the error message. Raises
    ConfigError where no arm or several arms have this name; the message names the arms."""
    if name in arms:
        return name
    if name == "baseline":
        return arms[0]
    labels = [label for label in arms if label.partition("=")[2] == name]
    if len(labels) != 1:
        raise ConfigError(f"{text!r}: {name!r} is not one arm of {', '.join(arms)}; {FORM}")
    return labels[0]


def parse_interval(text: str, prediction: str) -> tuple[float, float]:
    """The two ends of an interval in a prediction, (low, high). `text`: the interval, such as "[-0.3, -0.05]";
    `prediction`: the whole prediction, for the error message. Raises ConfigError where the text is not two numbers in
    brackets, the lower one first."""
    text = text.strip()
    try:
        low, high = (parse_number(number) for number in text.removeprefix("[").removesuffix("]").split(","))
    except ValueError:
        low, high = math.nan, math.nan
    if not (text.startswith("[") and text.endswith("]") and low < high):
        raise ConfigError(f"{prediction!r}: {text} is no interval, two numbers of which the lower is first; {FORM}")
    return low, high


def predictions_about(texts: Sequence[str], arms: Sequence[str]) -> list[Prediction]:
    """The predictions of a study file whose arms are run. The other predictions are left out, since a file may have
    more arms than are run. `texts`: all predictions of the file; `arms`: the labels of the arms that are run, the
    baseline first."""
    predictions = []
    for text in texts:
        with suppress(ConfigError):
            predictions.append(parse_prediction(text, arms))
    return predictions
