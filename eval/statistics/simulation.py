"""Judges many simulated studies at once by the rules of this package, for docs/statistics.md and the tests.

The rules are implemented here a second time, for arrays of studies, because one study at a time takes a millisecond.
tests/test_calibration.py checks that both implementations decide alike. Every arm of a study has every seed.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from eval.statistics.parts import LEVEL
from eval.statistics.sequential import FIRST_LOOK, share

WORSE, UNDECIDED, BETTER, EQUIVALENT = -1, 0, 1, 2  # decisions; BETTER is a difference above 0


@dataclass(frozen=True)
class Noise:
    """Variances, from seeds or from items, of the differences from the baseline, [studies, arms - 1], with their
    degrees of freedom."""

    variance: np.ndarray
    dof: np.ndarray


def quantiles(level: float, parts: list[Noise]) -> np.ndarray:
    """Half-widths of the 1 - level intervals, as `parts.quantile` for arrays."""
    from scipy.special import stdtrit

    return np.sqrt(sum(stdtrit(part.dof, level / 2) ** 2 * part.variance for part in parts))


def residuals(x: np.ndarray) -> np.ndarray:
    """Residual sums of squares, [studies], of results [studies, arms, seeds] after fitting arms and seeds."""
    rest = x - x.mean(2, keepdims=True) - x.mean(1, keepdims=True) + x.mean((1, 2), keepdims=True)
    return (rest**2).sum((1, 2))


def seed_noise(x: np.ndarray, floor: Noise | None = None) -> Noise:
    """As `seeds.seed_part`, for results [studies, arms, seeds].

    floor: the variance of single runs of a stored noise floor, [studies, 1].
    """
    from scipy.special import fdtrc

    R, A, n = x.shape
    if A == n == 2:
        whole, dof = ((x - x.mean(2, keepdims=True)) ** 2).sum((1, 2)), 2
    else:
        whole, dof = residuals(x), (A - 1) * (n - 1)
    variance, degrees = np.repeat((whole / dof * 2 / n)[:, None], A - 1, 1), np.full((R, A - 1), float(dof))
    pooled = Noise(variance, degrees)
    if floor:
        single = pooled.variance * n / 2
        borrows = fdtrc(degrees, floor.dof, single / floor.variance) > LEVEL
        both = degrees + floor.dof
        mixed = 2 / n * (degrees * single + floor.dof * floor.variance) / both
        pooled = Noise(np.where(borrows, mixed, variance), np.where(borrows, both, degrees))
    if A < 3:
        return pooled
    others = (A - 2) * (n - 1)
    stands_out = np.zeros((R, A), bool)
    for arm in range(A):
        rest = residuals(np.delete(x, arm, 1))
        ratio = ((whole - rest) / (dof - others)) / (rest / others)
        stands_out[:, arm] = A * fdtrc(dof - others, others, ratio) <= LEVEL
    uneven = stands_out[:, 1:] | stands_out[:, :1]
    differences_alone = Noise((x[:, 1:] - x[:, :1]).var(2, ddof=1) / n, np.full((R, A - 1), n - 1.0))
    plain = Noise(variance, degrees)
    asks_more = quantiles(LEVEL, [differences_alone]) > quantiles(LEVEL, [plain])
    variance, degrees = (
        np.where(uneven, np.where(asks_more, theirs, mine), with_floor)
        for theirs, mine, with_floor in (
            (differences_alone.variance, plain.variance, pooled.variance),
            (differences_alone.dof, plain.dof, pooled.dof),
        )
    )
    return Noise(variance, degrees)


def item_noise(d: np.ndarray, weights: np.ndarray) -> Noise:
    """As `items.item_part`, for one task in many studies.

    Args:
        d: differences of two arms, [studies, seeds, items].
        weights: [studies, items].
    """
    S, n = d.shape[1:]
    total = weights.sum(-1, keepdims=True)

    def influences(a: np.ndarray, b: np.ndarray, whole: np.ndarray) -> np.ndarray:
        return (a - a.sum(-1, keepdims=True) / whole * b) / (whole - b)

    variance = (n - 1) / n * (influences(d.mean(1), weights, total) ** 2).sum(-1)
    if S > 1:
        e = influences(d, weights[:, None], total[:, None])
        e = e - e.mean(1, keepdims=True)
        variance = np.maximum(0.0, variance - (n - 1) / n * (e**2).sum((1, 2)) / ((S - 1) * S))
    effective = total[:, 0] ** 2 / (weights**2).sum(-1)
    return Noise(variance[:, None], effective[:, None] - 1)


def decisions(
    differences: np.ndarray, parts: list[Noise], margin: float | None = None, portion: float = 1.0
) -> np.ndarray:
    """WORSE, UNDECIDED, BETTER or EQUIVALENT for each difference, [studies, arms - 1], by Holm's correction and then
    two one-sided tests.

    portion: the share of LEVEL that this look at the results may use.
    """
    tests, size = differences.shape[1], abs(differences)
    counts = np.zeros(differences.shape, bool)
    for _ in range(tests):  # Holm: with r rejected, the next has LEVEL / (tests - r)
        rejected = counts.sum(1)
        for r in range(tests):
            at = rejected == r
            if at.any():
                counts[at] |= (size > quantiles(portion * LEVEL / (tests - r), parts))[at]
    verdicts = np.where(counts, np.sign(differences), UNDECIDED).astype(int)
    if margin is not None:
        inside = size + quantiles(2 * portion * LEVEL / tests, parts) <= margin
        verdicts[~counts & inside] = EQUIVALENT
    return verdicts


def decide_all(
    x: np.ndarray, margin: float | None = None, floor: Noise | None = None, portion: float = 1.0
) -> np.ndarray:
    """Decisions, [studies, arms - 1], from results [studies, arms, seeds] without noise of items."""
    means = x.mean(2)
    return decisions(means[:, 1:] - means[:, :1], [seed_noise(x, floor)], margin, portion)


@dataclass(frozen=True)
class Sequence:
    """The outcome of simulated studies that add seeds: their decisions, and the number of seeds when they stopped."""

    decisions: np.ndarray  # [studies, arms - 1]
    seeds: np.ndarray  # [studies]
    ever: np.ndarray  # [studies, arms - 1, 3]: whether WORSE, BETTER, EQUIVALENT was the decision at any look


def sequence(x: np.ndarray, margin: float | None = None, portion: Callable[[int, int, int], float] = share) -> Sequence:
    """Simulate studies that add seeds until every arm is decided: the decisions at the end and at any look, and the
    number of seeds at the end.

    Args:
        x: results [studies, arms, seeds] for the largest possible number of seeds.
        portion: a function of (seeds so far, most seeds, tests) for the share of LEVEL that a look may use.
    """
    R, A, most = x.shape
    final, seeds = np.zeros((R, A - 1), int), np.full(R, most)
    ever, going = np.zeros((R, A - 1, 3), bool), np.ones(R, bool)
    for n in range(FIRST_LOOK, most + 1):
        now = decide_all(x[going, :, :n], margin, portion=portion(n, most, A - 1))
        final[going] = now
        ever[going] |= now[..., None] == np.array([WORSE, BETTER, EQUIVALENT])
        stops = (now != UNDECIDED).all(1)
        at = np.flatnonzero(going)[stops]
        seeds[at], going[at] = n, False
    return Sequence(final, seeds, ever)
