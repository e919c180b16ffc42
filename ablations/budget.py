"""The budget of a run, in tokens or by the wall clock; its batch sizes and learning rate over the budget."""

import re
from dataclasses import dataclass
from typing import NamedTuple

from ablations.schedule import SCHEDULES, WITH_WARMUP
from ablations.settings import TrainConfig

UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}  # of a wall clock, in seconds
# A leap year: beyond it a slip is likelier than a study (untuned).
LONGEST_CLOCK = 366 * UNITS["d"]
FORMS = "tokens, or a time with its unit, one of s, m, h and d, such as 90s, 10m or 24h"


@dataclass(frozen=True)
class TokenBudget:
    """A budget in tokens: the run ends with the last whole step that they are enough for."""

    horizon: int  # tokens at which the schedule ends: train.decay_tokens, or those of all steps

    def share(self, tokens: int, seconds: float) -> float:
        """t of the schedule, in [0, 1] and above after its end: the share of the horizon that `tokens` are."""
        return tokens / self.horizon


@dataclass(frozen=True)
class ClockBudget:
    """A budget in seconds of training and compiling, over all launches of the run; preparing data does not count. How
    many tokens are trained depends on the machine.
    """

    seconds: float

    def share(self, tokens: int, seconds: float) -> float:
        """t of the schedule and of the batch sizes, in [0, 1]: the share of the budget that `seconds` are."""
        return seconds / self.seconds


Budget = TokenBudget | ClockBudget


def clock_seconds(text: str) -> float | None:
    """The seconds of a `train.budget` such as "24h"; None for "tokens".

    Raises:
        ValueError: for anything else, naming what is allowed.
    """
    if text == "tokens":
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", text, re.ASCII)
    if match and match[2] in UNITS and float(match[1]) > 0:
        seconds = float(match[1]) * UNITS[match[2]]
        if seconds > LONGEST_CLOCK:
            raise ValueError(f"train.budget={text[:60]}: at most {LONGEST_CLOCK / UNITS['d']:g}d of a wall clock")
        return seconds
    hint = "the number has no unit: " if match and not match[2] else ""
    if count := re.fullmatch(r"(\d+(?:\.\d+)?)([KMB])", text, re.ASCII):
        minutes = f"; minutes are {count[1]}m" if count[2] == "M" else ""
        hint = f"{count[2]} counts tokens, as in TOKENS={text}{minutes}. Allowed are "
    raise ValueError(f"train.budget={text}: {hint}{FORMS}")


class Stage(NamedTuple):
    """Consecutive steps with one batch size."""

    step: int  # number of its first step, counted from 0
    sample: int  # number of its first sample (sequence), counted from 0
    size: int  # batch size: sequences in each step


@dataclass(frozen=True)
class BatchSizes:
    """The batch size of every step: constant, or growing from sizes[0] to sizes[-1] while `ramp` samples are trained.

    Megatron's ramp: its samples are divided evenly among the increments, and a batch has the size that belongs to the
    number of samples before it.
    """

    sizes: tuple[int, ...]  # ascending; one size where there is no ramp
    ramp: int = 0  # samples that the ramp takes; 0 where there is none, or where the clock drives it

    @property
    def stages(self) -> list[Stage]:
        increments = len(self.sizes) - 1
        stages, step, sample = [], 0, 0
        for i, size in enumerate(self.sizes):
            stages.append(Stage(step, sample, size))
            if i < increments:
                # steps until (i + 1) increments' worth of samples are seen; none where a batch is larger than that
                missing = max(0, (i + 1) * self.ramp - sample * increments)
                count = -(-missing // (size * increments))
                step, sample = step + count, sample + count * size
        return stages

    def samples(self, step: int) -> range:
        """The numbers of the samples in the batch of `step`, both counted from 0."""
        stage = [stage for stage in self.stages if stage.step <= step][-1]
        begin = stage.sample + (step - stage.step) * stage.size
        return range(begin, begin + stage.size)

    def steps(self, samples: int) -> int:
        """How many whole steps `samples` are enough for."""
        stage = [stage for stage in self.stages if stage.sample <= samples][-1]
        return stage.step + (samples - stage.sample) // stage.size

    def at(self, ramped: float) -> int:
        """The batch size when the share `ramped` of the ramp has passed, by the clock; each size lasts equally long."""
        return self.sizes[min(len(self.sizes) - 1, int(ramped * (len(self.sizes) - 1)))]


def learning_rate(train: TrainConfig, t: float) -> float:
    """The learning rate when the share `t` of the budget is used up; after t = 1 it is that of t = 1.

    A schedule gives a share of the peak: 0 stands for train.min_lr x the peak. The warm-up is linear, from 0.
    """
    if train.schedule in WITH_WARMUP and t < train.warmup:
        return train.lr * t / train.warmup
    if train.schedule in WITH_WARMUP and train.warmup >= 1:
        return train.lr
    share = SCHEDULES[train.schedule](min(t, 1.0), train.warmup)
    return train.lr * (train.min_lr + (1 - train.min_lr) * share)
