"""What a study decides by, named before its runs: the metric, the differences that do not matter, and when it stops."""

from dataclasses import dataclass, field
from typing import Any

from ablations.noise_floor import NoiseFloor
from ablations.values import ConfigError, did_you_mean

METRICS = {"bits/byte": "bits/byte", "zero-shot": "points", "suite": "points"}  # {metric: its unit}
UNITS = ("bits/byte", "points")
PRIMARY = "bits/byte"  # held-out loss; unless a study names another metric
LARGEST_MARGIN = 1000.0  # above any difference in bits per byte or points
MAX_SEEDS = 10  # to which MORE=auto adds seeds unless MAX_SEEDS says otherwise; untuned


@dataclass(frozen=True)
class Criteria:
    """How a study is decided. Two studies with the same runs and other criteria may come to other verdicts.

    metric: the primary one; what the others say is exploratory.
    margins: {metric: a difference below which two arms count as equivalent}; without one, equivalence is not concluded.
    seeds: of each arm, or with `sequential` the most there may be.
    noise_floor: a stored one, whose degrees of freedom are added to those of the study's seeds.
    sequential: seeds are added until every arm is decided, and each look at the results spends a part of the level.
    """

    metric: str = PRIMARY
    margins: dict[str, float] = field(default_factory=dict)
    seeds: int = 2
    sequential: bool = False
    noise_floor: NoiseFloor | None = None


def check_metric(name: Any, where: str) -> str:
    """Raises ConfigError unless `name` is a metric; `where`: for the message, what named it."""
    if not isinstance(name, str) or name not in METRICS:
        raise ConfigError(
            f"{where}: {str(name)[:60]!r} is not one of {', '.join(METRICS)}{did_you_mean(str(name)[:60], METRICS)}"
        )
    return name


def margins_of_file(value: Any, metric: str, where: str) -> dict[str, float]:
    """`margin:` of a study file: a number, of the primary metric, or {metric: number}. Raises ConfigError."""
    margins = value if isinstance(value, dict) else {metric: value}
    for name, margin in margins.items():
        check_metric(name, f"{where}: margin")
        if isinstance(margin, bool) or not isinstance(margin, int | float) or not 0 < margin <= LARGEST_MARGIN:
            raise ConfigError(
                f"{where}: margin of {name} is {str(margin)[:60]}: a number above 0 is needed, in {METRICS[name]}"
            )
    return {name: float(margin) for name, margin in margins.items()}


def margins_of_word(text: str) -> dict[str, float]:
    """MARGIN=: one number in bits per byte, or two, the second in points. Raises ConfigError."""
    try:
        numbers = [float(number) for number in text.split(",")] if text.strip() else []
        sensible = len(numbers) <= len(UNITS) and all(0 < number <= LARGEST_MARGIN for number in numbers)
    except ValueError:
        sensible = False
    if not sensible:
        raise ConfigError(
            f"MARGIN={text[:60]}: a number above 0, in bits per byte, is needed; and after a comma one in points"
        )
    by_unit = dict(zip(UNITS, numbers, strict=False))
    return {metric: by_unit[unit] for metric, unit in METRICS.items() if unit in by_unit}
