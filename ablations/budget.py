"""The budget of a run, in tokens or by the wall clock; the batch sizes and the learning rate on the way."""

import re
from dataclasses import dataclass
from typing import NamedTuple

from ablations.schedule import SCHEDULES, WITH_WARMUP
from ablations.settings import TrainConfig

UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}  # of a wall clock, in seconds
FORMS = "tokens, or a time with its unit, one of s, m, h and d, such as 90s, 10m or 24h"


@dataclass(frozen=True)
class TokenBudget:
    """A run ends with the last whole step that its tokens are enough for."""

    horizon: int  # tokens at which the schedule ends: train.decay_tokens, or those of all steps

    def share(self, tokens: int, seconds: float) -> float:
        """t of the schedule: how much is used up when `tokens` are trained."""
        return tokens / self.horizon


@dataclass(frozen=True)
class ClockBudget:
    """A run ends when its time is used up: of training and compiling, in all its launches, but not of preparing data.

    How many tokens that is depends on the machine.
    """

    seconds: float

    def share(self, tokens: int, seconds: float) -> float:
        """t of the schedule and of the batch sizes: how much is used up after `seconds`."""
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
        return float(match[1]) * UNITS[match[2]]
    hint = "the number has no unit: " if match and not match[2] else ""
    if count := re.fullmatch(r"(\d+(?:\.\d+)?)([KMB])", text, re.ASCII):
        minutes = f"; minutes are {count[1]}m" if count[2] == "M" else ""
        hint = f"{count[2]} counts tokens, as in TOKENS={text}{minutes}. Allowed are "
    raise ValueError(f"train.budget={text}: {hint}{FORMS}")


class Stage(NamedTuple):
    """A stretch of steps with one batch size; steps and samples (sequences) are counted from 0."""

    step: int  # the first
    sample: int  # the first
    size: int  # sequences in each step


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
        """The numbers of the samples in the batch of `step`."""
        stage = [stage for stage in self.stages if stage.step <= step][-1]
        begin = stage.sample + (step - stage.step) * stage.size
        return range(begin, begin + stage.size)

    def steps(self, samples: int) -> int:
        """Whole steps that so many samples are enough for."""
        stage = [stage for stage in self.stages if stage.sample <= samples][-1]
        return stage.step + (samples - stage.sample) // stage.size

    def at(self, ramped: float) -> int:
        """The batch size when the share `ramped` of the ramp has passed, by the clock: the same increments, evenly."""
        return self.sizes[min(len(self.sizes) - 1, int(ramped * (len(self.sizes) - 1)))]


def learning_rate(train: TrainConfig, t: float) -> float:
    """The learning rate when the share `t` of the budget is used up; after t = 1 it stays as it is there.

    A schedule gives a share of the peak; `train.min_lr` raises its zero. The warm-up is linear, from 0.
    """
    if train.schedule in WITH_WARMUP and t < train.warmup:
        return train.lr * t / train.warmup
    if train.schedule in WITH_WARMUP and train.warmup >= 1:
        return train.lr
    share = SCHEDULES[train.schedule](min(t, 1.0), train.warmup)
    return train.lr * (train.min_lr + (1 - train.min_lr) * share)
