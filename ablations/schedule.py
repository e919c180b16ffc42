"""Learning-rate schedules. A schedule is a function of t, the used share of the budget, that returns the learning rate
as a share of the peak.

Every schedule also takes `warmup` (train.warmup, a share of the budget), though only some use it. The linear warm-up
itself is made by budget.learning_rate, which calls the schedules of WITH_WARMUP for the time after it.

A schedule is one function and one line in one of the two tables below, whose names are the values of `train.schedule`.
The tests iterate over the tables.
"""

import math
from collections.abc import Callable

Shape = Callable[[float, float], float]  # (t in [0, 1], train.warmup) -> share of the peak, in [0, 1]

RISE = 0.05  # the first share of the budget, in which budget-inverse-sqrt rises
COOLDOWN = 0.2  # the last share of the budget, in which warmup-stable-decay falls; Hägele et al. 2024
DECAY_ENDS = (0.25, 0.5, 1.0)  # shares of the budget at which warmup-stable-decay-stable reaches 0; untuned


def share_after_warmup(t: float, warmup: float) -> float:
    """The share of the time after the warm-up that has passed: 0 at t = warmup, 1 at t = 1."""
    return min(1.0, (t - warmup) / (1 - warmup))


def cosine(t: float, warmup: float) -> float:
    """Half a cosine, from the peak at the end of the warm-up to 0 at t = 1 (Loshchilov & Hutter 2017; GPT-3)."""
    return (1 + math.cos(math.pi * share_after_warmup(t, warmup))) / 2


def linear(t: float, warmup: float) -> float:
    """A straight line from the peak at the end of the warm-up to 0 at t = 1 (BERT, Devlin et al. 2019)."""
    return 1 - share_after_warmup(t, warmup)


def constant(t: float, warmup: float) -> float:
    """The peak, at every t after the warm-up."""
    return 1.0


def inverse_sqrt(t: float, warmup: float) -> float:
    """Falls as one over the square root of t, from the peak at the end of the warm-up (Vaswani et al. 2017)."""
    return math.sqrt(warmup / t)


def dive(t: float, warmup: float) -> float:
    """The peak from the end of the warm-up to half the budget, then a straight line to 0 ("dive" of Geiping & Goldstein
    2023)."""
    return min(1.0, (1 - t) / 0.5)


def dive_slow(t: float, warmup: float) -> float:
    """The peak from the end of the warm-up to a quarter of the budget, then a straight line to 0 ("dive-slow" of
    Geiping & Goldstein 2023)."""
    return min(1.0, (1 - t) / 0.75)


def warmup_stable_decay(t: float, warmup: float) -> float:
    """The peak until the last fifth of the budget (COOLDOWN), then a fall to 0 as 1 - sqrt(x), where x is the share of
    that fifth that has passed (Hägele et al. 2024, 1-sqrt cooldown)."""
    return 1 - math.sqrt(max(0.0, (t - (1 - COOLDOWN)) / COOLDOWN))


def warmup_stable_decay_stable(t: float, warmup: float) -> float:
    """The peak after the warm-up, with a fall to 0 before each of DECAY_ENDS, after which the peak returns at once
    ("WSD-S" of Wen et al. 2024). Each fall is the one of warmup-stable-decay for a budget that ends there.

    So one run replaces runs of several lengths: layout.eval_at=0.25,0.5 saves and evaluates the weights after the first
    two falls.
    """
    end = next(end for end in DECAY_ENDS if t <= end)
    return warmup_stable_decay(t / end, warmup)


def one_cycle(t: float, warmup: float) -> float:
    """A triangle: from 0 up to the peak at half the budget and down to 0 ("one-cycle" of Geiping & Goldstein 2023)."""
    return min(2 * t, 2 - 2 * t)


def budget_triangle2(t: float, warmup: float) -> float:
    """A triangle: from a quarter of the peak up to the peak at 3/4 of the budget, and down to 0 (the schedule that
    Geiping & Goldstein 2023 adopted)."""
    return min(0.25 + t, 4 - 4 * t)


def budget_inverse_sqrt(t: float, warmup: float) -> float:
    """A linear rise from 0 to the peak in the first twentieth of the budget (RISE), then a fall as one over the square
    root of t. This is "inverse-sqrt" of Geiping & Goldstein 2023, who warm up for 30,000 of at most 600,000
    micro-batches."""
    return min(t / RISE, math.sqrt(RISE / t)) if t else 0.0


def ramp(t: float, warmup: float) -> float:
    """A straight line from 0 up to the peak at t = 1 ("ramp" of Geiping & Goldstein 2023)."""
    return t


# Schedules after a linear warm-up, which rises from 0 to the peak during the first `train.warmup` of the budget.
WITH_WARMUP: dict[str, Shape] = {
    "cosine": cosine,
    "linear": linear,
    "constant": constant,
    "inverse-sqrt": inverse_sqrt,
    "dive": dive,
    "dive-slow": dive_slow,
    "warmup-stable-decay": warmup_stable_decay,
    "warmup-stable-decay-stable": warmup_stable_decay_stable,
}
# Schedules that begin with a rise of their own, and do not use `train.warmup`.
WITHOUT_WARMUP: dict[str, Shape] = {
    "one-cycle": one_cycle,
    "budget-triangle2": budget_triangle2,
    "budget-inverse-sqrt": budget_inverse_sqrt,
    "ramp": ramp,
}
SCHEDULES = WITH_WARMUP | WITHOUT_WARMUP
