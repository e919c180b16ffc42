"""The criteria by which a study decides, named before its runs: metric, margins of equivalence, and stopping rule."""

from dataclasses import dataclass, field
from typing import Any

from ablations.noise_floor import NoiseFloor
from ablations.values import ConfigError, did_you_mean, parse_number

METRICS = {"bits/byte": "bits/byte", "zero-shot": "points", "suite": "points"}  # {metric: its unit}
UNITS = ("bits/byte", "points")
PRIMARY = "bits/byte"  # held-out loss, the primary metric of a study that names no other
LARGEST_MARGIN = 1000.0  # above any difference in bits per byte or points
MAX_SEEDS = 10  # of each arm, to which MORE=auto adds seeds unless the word MAX_SEEDS is given; untuned


@dataclass(frozen=True)
class Criteria:
    """The criteria by which a study is decided, named before its runs. With other criteria the same runs may give other
    verdicts.

    metric: the primary metric; results in other metrics are exploratory.
    margins: {metric: a difference below which two arms count as equivalent}. Without a margin, equivalence is never
        concluded.
    seeds: the number of seeds of each arm; with `sequential` the largest number.
    sequential: whether seeds are added until every arm is decided. The results are then tested several times, each time
        with a part of the significance level.
    noise_floor: a stored noise floor, whose degrees of freedom are added to those of the study's seeds; None: none.
    """

    metric: str = PRIMARY
    margins: dict[str, float] = field(default_factory=dict)
    seeds: int = 2
    sequential: bool = False
    noise_floor: NoiseFloor | None = None


def check_metric(name: Any, where: str) -> str:
    """Check that `name` is one of METRICS, and return it. `where`: the word or file that named the metric, for the
    message. Raises ConfigError where there is no such metric."""
    if not isinstance(name, str) or name not in METRICS:
        raise ConfigError(
            f"{where}: {str(name)[:60]!r} is not one of {', '.join(METRICS)}{did_you_mean(str(name)[:60], METRICS)}"
        )
    return name


def margins_from_file(value: Any, metric: str, where: str) -> dict[str, float]:
    """The margins of equivalence that a study file declares, {metric: number}. Raises ConfigError if a margin is no
    number above 0, or there is no such metric.

    Args:
        value: the entry `margin` of the file: a number, for the primary metric, or {metric: number}.
        metric: the primary metric.
        where: the name of the file, for the message.
    """
    margins = value if isinstance(value, dict) else {metric: value}
    for name, margin in margins.items():
        check_metric(name, f"{where}: margin")
        if isinstance(margin, bool) or not isinstance(margin, int | float) or not 0 < margin <= LARGEST_MARGIN:
            raise ConfigError(
                f"{where}: margin of {name} is {str(margin)[:60]}: a number above 0 is needed, in {METRICS[name]}"
            )
    return {name: float(margin) for name, margin in margins.items()}


def margins_from_word(text: str) -> dict[str, float]:
    """The margins of equivalence that MARGIN= asks for, {metric: number}. `text`: one number in bits per byte, or two
    with a comma, the second in points (percentage points of accuracy). Raises ConfigError where the text is neither, or
    a number is not above 0."""
    try:
        numbers = [parse_number(number) for number in text.split(",")] if text.strip() else []
        valid = len(numbers) <= len(UNITS) and all(0 < number <= LARGEST_MARGIN for number in numbers)
    except ValueError:
        valid = False
    if not valid:
        raise ConfigError(
            f"MARGIN={text[:60]}: a number above 0, in bits per byte, is needed; and after a comma one in points"
        )
    by_unit = dict(zip(UNITS, numbers, strict=False))
    return {metric: by_unit[unit] for metric, unit in METRICS.items() if unit in by_unit}
