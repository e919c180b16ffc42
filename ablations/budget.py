"""The budget drives the run: stop, batch size and learning rate are pure functions of the step and of what is spent."""

import math

from ablations.settings import TrainConfig


def batch_sizes(train: TrainConfig) -> list[int]:
    """The batch sizes of the ramp, in sequences; the last of them, or without a ramp the only one, is `batch`."""
    if not train.ramp:
        return [train.batch]
    first, more, _ = train.ramp
    return [*range(first, train.batch, more), train.batch]


def stages(train: TrainConfig) -> list[tuple[int, int, int]]:
    """(first step, first sample, batch size) of each stretch of steps with one batch size.

    Megatron's ramp: the samples of the ramp are divided evenly among the increments, and a batch has the size that
    belongs to the number of samples seen before it.
    """
    sizes = batch_sizes(train)
    found, step, sample = [], 0, 0
    for i, size in enumerate(sizes):
        found.append((step, sample, size))
        if size != train.batch:
            # steps until (i + 1) increments' worth of samples are seen; none where a batch is larger than an increment
            end = (i + 1) * train.ramp[2]
            left = max(0, end - sample * (len(sizes) - 1))
            count = -(-left // (size * (len(sizes) - 1)))
            step, sample = step + count, sample + count * size
    return found


def samples(train: TrainConfig, step: int) -> range:
    """The numbers of the samples in the batch of `step`; steps and samples are counted from 0."""
    first_step, first, size = [stage for stage in stages(train) if stage[0] <= step][-1]
    begin = first + (step - first_step) * size
    return range(begin, begin + size)


def steps(train: TrainConfig, count: int) -> int:
    """Whole steps that `count` samples are enough for."""
    stage = [stage for stage in stages(train) if stage[1] <= count]
    first_step, first, size = stage[-1]
    # a stage that is begun at `count` exactly has no step yet
    return first_step + (count - first) // size


def learning_rate(train: TrainConfig, t: float) -> float:
    """Linear warm-up to the peak, then a cosine down to `min_lr` x the peak at t = 1, and flat from there (GPT-3).

    Args:
        t: tokens seen as a share of the decay horizon: `train.decay_tokens`, or the budget where that is 0.
    """
    if t < train.warmup:
        return train.lr * t / train.warmup
    if train.warmup >= 1:
        return train.lr
    share = min(1.0, (t - train.warmup) / (1 - train.warmup))
    cosine = (1 + math.cos(math.pi * share)) / 2
    return train.lr * (train.min_lr + (1 - train.min_lr) * cosine)
