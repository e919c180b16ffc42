"""The budget of a run, in tokens or by the wall clock; its batch sizes and learning rate over the budget."""

import re
from dataclasses import dataclass
from typing import NamedTuple

from ablations.schedule import SCHEDULES, WITH_WARMUP
from ablations.settings import TrainConfig

UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}  # {unit of a wall clock: seconds}
LONGEST_CLOCK = 366 * UNITS["d"]  # seconds; a longer budget is taken for a typing error. Untuned
ALLOWED_BUDGETS = "tokens, or a time with its unit, one of s, m, h and d, such as 90s, 10m or 24h"


@dataclass(frozen=True)
class TokenBudget:
    """A budget in tokens: the learning-rate schedule advances with the number of trained tokens."""

    horizon: int  # tokens at which the schedule ends: train.decay_tokens, or all tokens of the run

    def used_share(self, tokens: int, seconds: float) -> float:
        """The share of the schedule that has passed after `tokens` trained tokens; above 1 after the schedule's end.
        `seconds` is not used, but needed by ClockBudget."""
        return tokens / self.horizon


@dataclass(frozen=True)
class ClockBudget:
    """A budget in seconds of wall clock. Training and compiling count, over all launches of the run; preparing data
    does not. The number of tokens that are trained in that time depends on the machine."""

    seconds: float

    def used_share(self, tokens: int, seconds: float) -> float:
        """The share of the budget that has passed after `seconds` of training; at or above 1 at the end of the run.
        `tokens` is not used, but needed by TokenBudget."""
        return seconds / self.seconds


Budget = TokenBudget | ClockBudget


def clock_seconds(text: str) -> float | None:
    """The number of seconds that the setting train.budget allows, such as 86400 for "24h"; None for "tokens", where no
    clock ends the run. Raises ValueError where the text is neither; the message names what is allowed."""
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
    """A stage of a batch-size ramp: consecutive steps with one batch size."""

    step: int  # number of its first step, counted from 0
    sample: int  # number of its first sample (sequence), counted from 0
    size: int  # batch size: sequences in each step


@dataclass(frozen=True)
class BatchSizes:
    """The batch size of every step, in sequences: constant, or growing from sizes[0] to sizes[-1] over the first `ramp`
    samples (sequences).

    As in Megatron, each size but the last gets the same number of samples, rounded up to whole steps. The size of a
    batch follows from the number of samples before it.
    """

    sizes: tuple[int, ...]  # ascending; one size where there is no ramp
    ramp: int = 0  # samples that the ramp takes; 0 where there is none, or where the clock drives it

    @property
    def stages(self) -> list[RampStage]:
        """The stages of the ramp in order, one for each batch size; a stage may have no steps. The last one has no
        end."""
        increments = len(self.sizes) - 1
        stages, step, sample = [], 0, 0
        for i, size in enumerate(self.sizes):
            stages.append(RampStage(step, sample, size))
            if i < increments:
                # steps to the end of this size's share of the ramp; none where the batches before reached beyond it
                missing = max(0, (i + 1) * self.ramp - sample * increments)
                count = -(-missing // (size * increments))
                step, sample = step + count, sample + count * size
        return stages

    def samples(self, step: int) -> range:
        """The indices of the samples (sequences) in the batch of a step. Steps and samples are counted from 0."""
        stage = [stage for stage in self.stages if stage.step <= step][-1]
        begin = stage.sample + (step - stage.step) * stage.size
        return range(begin, begin + stage.size)

    def whole_steps(self, samples: int) -> int:
        """The largest number of steps that together use at most `samples` samples (sequences)."""
        stage = [stage for stage in self.stages if stage.sample <= samples][-1]
        return stage.step + (samples - stage.sample) // stage.size

    def size_at(self, ramp_share: float) -> int:
        """The batch size during a ramp that the wall clock drives, in which each batch size lasts equally long.
        `ramp_share`: the share of the ramp's time that has passed; from 1 on the batch has its final size."""
        return self.sizes[min(len(self.sizes) - 1, int(ramp_share * (len(self.sizes) - 1)))]


def learning_rate(train: TrainConfig, t: float) -> float:
    """The learning rate when the share `t` of the budget is used up. It stays constant after t = 1.

    Schedules with a warm-up first rise linearly from 0 to the peak train.lr. The value of the schedule at t, from 0 to
    1, is then mapped to the range from train.min_lr x train.lr to train.lr.

    Args:
        train: the settings of the section `train`.
        t: the used share of the budget, from the method `used_share` of TokenBudget or ClockBudget.
    """
    if train.schedule in WITH_WARMUP and t < train.warmup:
        return train.lr * t / train.warmup
    if train.schedule in WITH_WARMUP and train.warmup >= 1:
        return train.lr
    share = SCHEDULES[train.schedule](min(t, 1.0), train.warmup)
    return train.lr * (train.min_lr + (1 - train.min_lr) * share)
