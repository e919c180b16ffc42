"""The budget drives the run: learning rate and stop are functions of t, the fraction of it that is spent."""

import math

from ablations.config import TrainConfig


def learning_rate(train: TrainConfig, t: float) -> float:
    """Linear warm-up to the peak, then a cosine down to `min_lr` x the peak at t = 1 (GPT-3's schedule, in fractions).

    Args:
        t: spent share of the budget, in (0, 1].
    """
    if t < train.warmup:
        return train.lr * t / train.warmup
    if train.warmup >= 1:
        return train.lr
    cosine = (1 + math.cos(math.pi * (t - train.warmup) / (1 - train.warmup))) / 2
    return train.lr * (train.min_lr + (1 - train.min_lr) * cosine)
