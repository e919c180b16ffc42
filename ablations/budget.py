"""The budget of a run, in tokens or by the wall clock; its batch sizes and learning rate over the budget."""

import re
from dataclasses import dataclass
from typing import NamedTuple

from ablations.schedule import SCHEDULES, WITH_WARMUP
from ablations.settings import TrainConfig

UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}  # of a wall clock, in seconds
# A leap year: beyond it a slip is likelier than a study (untuned).
LONGEST_CLOCK = 366 * UNITS["d"]
ALLOWED_BUDGETS = "tokens, or a time with its unit, one of s, m, h and d, such as 90s, 10m or 24h"


@dataclass(frozen=True)
class TokenBudget:
    """A budget in tokens: the run ends with the last step that does not exceed the budget."""

    horizon: int  # tokens at which the schedule ends: train.decay_tokens, or those of all steps

    def share(self, tokens: int, seconds: float) -> float:
        """The share of the schedule that has passed after `tokens` trained tokens; above 1 after the schedule's end.
        `seconds` is not used."""
        return tokens / self.horizon


@dataclass(frozen=True)
class ClockBudget:
    """A budget in seconds of training and compiling, over all launches of the run; preparing data does not count. How
    many tokens are trained in that time depends on the machine."""

    seconds: float

    def share(self, tokens: int, seconds: float) -> float:
        """The share of the budget that has passed after `seconds` of training; at or above 1 at the end of the run.
        `tokens` is not used."""
        return seconds / self.seconds


Budget = TokenBudget | ClockBudget


def clock_seconds(text: str) -> float | None:
    """The seconds of a wall clock in the setting train.budget, such as "24h"; None where the setting is "tokens".
    Raises ValueError where the text is neither; the message names what is allowed."""
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
    raise ValueError(f"train.budget={text}: {hint}{ALLOWED_BUDGETS}")


class RampStage(NamedTuple):
    """A part of a batch-size ramp: consecutive steps with one batch size."""

    step: int  # number of its first step, counted from 0
    sample: int  # number of its first sample (sequence), counted from 0
    size: int  # batch size: sequences in each step


@dataclass(frozen=True)
class BatchSizes:
    """The batch size of every step: constant, or growing from sizes[0] to sizes[-1] over the first `ramp` samples.

    As in Megatron, the samples of the ramp are divided evenly among the sizes, and the size of a batch follows from the
    number of samples before it.
    """

    sizes: tuple[int, ...]  # ascending; one size where there is no ramp
    ramp: int = 0  # samples that the ramp takes; 0 where there is none, or where the clock drives it

    @property
    def stages(self) -> list[RampStage]:
        increments = len(self.sizes) - 1
        stages, step, sample = [], 0, 0
        for i, size in enumerate(self.sizes):
            stages.append(RampStage(step, sample, size))
            if i < increments:
                # steps until (i + 1) increments' worth of samples are seen; none where a batch is larger than that
                missing = max(0, (i + 1) * self.ramp - sample * increments)
                count = -(-missing // (size * increments))
                step, sample = step + count, sample + count * size
        return stages

    def samples(self, step: int) -> range:
        """The indices, from 0, of the samples (sequences) in the batch of step `step`, also from 0."""
        stage = [stage for stage in self.stages if stage.step <= step][-1]
        begin = stage.sample + (step - stage.step) * stage.size
        return range(begin, begin + stage.size)

    def steps(self, samples: int) -> int:
        """The number of steps that together use no more than `samples` samples."""
        stage = [stage for stage in self.stages if stage.sample <= samples][-1]
        return stage.step + (samples - stage.sample) // stage.size

    def at(self, ramped: float) -> int:
        """The batch size at a moment of a ramp by the wall clock, in which each batch size lasts equally long.
        `ramped`: the share of the ramp that has passed."""
        return self.sizes[min(len(self.sizes) - 1, int(ramped * (len(self.sizes) - 1)))]


def learning_rate(train: TrainConfig, t: float) -> float:
    """The learning rate when the share `t` of the budget is used up; after t = 1 it stays the same.

    The value of the schedule at t is scaled so that 1 becomes train.lr, and 0 becomes train.min_lr x train.lr. The
    warm-up is linear, from 0. `train`: the settings of the section `train`; `t`: what the method `share` of the run's
    budget returns.
    """
    if train.schedule in WITH_WARMUP and t < train.warmup:
        return train.lr * t / train.warmup
    if train.schedule in WITH_WARMUP and train.warmup >= 1:
        return train.lr
    share = SCHEDULES[train.schedule](min(t, 1.0), train.warmup)
    return train.lr * (train.min_lr + (1 - train.min_lr) * share)
