"""The design LR=tune: every arm is run at the same learning rates, and judged at the best of them."""

import math
from dataclasses import dataclass

from ablations.values import ConfigError, parse_number

# of LR=tune: steps by a factor of two are common in sweeps of learning rates; how many is untuned
DEFAULT_MULTIPLES = (0.5, 1.0, 2.0)
MOST_RATES = 9
MOST_SEEDS = 10  # up to which verdicts on tuned arms are calibrated (eval/report/comparison/tuned.py)
LARGEST_MULTIPLE = 1024.0


@dataclass(frozen=True)
class Tuning:
    """The design of a study in which every arm is run at several learning rates."""

    rates: tuple[float, ...]  # the learning rates, rising
    common: float  # the baseline's learning rate, one of `rates`
    arms: dict[str, tuple[str, float]]  # {label: (label of this arm at the baseline's learning rate, learning rate)}

    @property
    def factors(self) -> list[str]:
        """The labels of the arms at the baseline's learning rate, the baseline first."""
        return [label for label, (factor, _) in self.arms.items() if label == factor]

    def labels_by_rate(self, factor: str) -> dict[float, str]:
        """The labels of an arm at each learning rate, {learning rate: label}, the lowest rate first. `factor`: the
        label of the arm at the baseline's learning rate."""
        return dict(sorted((rate, label) for label, (name, rate) in self.arms.items() if name == factor))

    @property
    def in_words(self) -> str:
        """The design as text for the plan: how many arms, at which learning rates."""
        grid = ", ".join(f"{rate:g}" for rate in self.rates)
        return (
            f"{len(self.factors)} arms at {len(self.rates)} learning rates each: {grid}. Runs at {self.common:g} "
            "differ from the baseline by their factor alone, the others by the factor and the declared rate"
        )


def parse_multiples(text: str) -> tuple[float, ...]:
    """The multiples of the baseline's learning rate that LR= asks for, in ascending order. `text`: the value of LR:
    "tune", or multiples such as "0.25,0.5,1,2". Raises ConfigError where the text is neither; the message names what is
    allowed."""
    if text == "tune":
        return DEFAULT_MULTIPLES
    try:
        numbers = tuple(sorted(parse_number(part) for part in text.split(",")))
    except ValueError:
        numbers = (math.nan,)
    if (
        not all(1 / LARGEST_MULTIPLE <= number <= LARGEST_MULTIPLE for number in numbers)
        or len(set(numbers)) < len(numbers)
        or not 2 <= len(numbers) <= MOST_RATES
        or 1.0 not in numbers
    ):
        raise ConfigError(
            f"LR={text[:60]}: tune, or 2 to {MOST_RATES} multiples of the baseline's learning rate with commas between "
            "them, 1 among them: LR=0.25,0.5,1,2"
        )
    return numbers
