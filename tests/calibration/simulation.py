"""Judges many simulated studies at once by the rules of this package, for docs/statistics.md and the tests.

The rules are implemented here a second time, for arrays of studies, because one study at a time takes a millisecond.
tests/test_calibration.py checks that both implementations decide alike. Every arm of a study has every seed.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from eval.statistics.parts import LEVEL
from eval.statistics.sequential import FIRST_LOOK, alpha_share

WORSE, UNDECIDED, BETTER, EQUIVALENT = -1, 0, 1, 2  # decisions; BETTER is a difference above 0


@dataclass(frozen=True)
class Noise:
    """Variances that the seeds, or the items, give to the differences of arms from the baseline in many studies, with
    their degrees of freedom: arrays [studies, arms - 1]."""

    variance: np.ndarray
    dof: np.ndarray


def interval_half_widths(level: float, parts: list[Noise]) -> np.ndarray:
    """Half-widths of the 1 - `level` confidence intervals of differences whose variances are the sums of `parts`, by
    the formula of `interval_half_width` in eval/statistics/parts.py."""
    from scipy.special import stdtrit

    return np.sqrt(sum(stdtrit(part.dof, level / 2) ** 2 * part.variance for part in parts))


def residuals(x: np.ndarray) -> np.ndarray:
    """The residual sum of squares of each arm, [studies, arms], after fitting means of arms and of seeds to results x,
    [studies, arms, seeds]."""
    residual = x - x.mean(2, keepdims=True) - x.mean(1, keepdims=True) + x.mean((1, 2), keepdims=True)
    return (residual**2).sum(2)


def arms_that_scatter_more(x: np.ndarray) -> np.ndarray:
    """A bool array [studies, arms]: whether the arm scatters significantly more between seeds than the other arms of
    its study. All False with fewer than three arms. The test is `seeds.arms_that_scatter_more`, here for arrays. `x`:
    results [studies, arms, seeds]."""
    from scipy.special import fdtrc

    R, A, n = x.shape
    if A < 3:
        return np.zeros((R, A), bool)
    of_arm, others_dof = residuals(x), (A - 2) * (n - 1)
    whole = of_arm.sum(1, keepdims=True)
    others_squares = whole - of_arm * A / (A - 1)  # without the arm
    ratio = ((whole - others_squares) / (n - 1)) / (others_squares / others_dof)
    return A * fdtrc(n - 1, others_dof, ratio) <= LEVEL


def seed_noise(x: np.ndarray, floor: Noise | None = None) -> Noise:
    """The variance that the seeds give to each arm's difference from the baseline, as `seeds.seed_variance` has it for
    one study. `x`: results [studies, arms, seeds], the baseline first; `floor`: the variance of single runs of a stored
    noise floor, [studies, 1]; None without a noise floor."""
    from scipy.special import fdtrc

    R, A, n = x.shape
    if A == n == 2:
        whole, dof = ((x - x.mean(2, keepdims=True)) ** 2).sum((1, 2)), 2
    else:
        whole, dof = residuals(x).sum(1), (A - 1) * (n - 1)
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
    outstanding = arms_that_scatter_more(x)
    uneven = outstanding[:, 1:] | outstanding[:, :1]
    differences_alone = Noise((x[:, 1:] - x[:, :1]).var(2, ddof=1) / n, np.full((R, A - 1), n - 1.0))
    plain = Noise(variance, degrees)
    asks_more = interval_half_widths(LEVEL, [differences_alone]) > interval_half_widths(LEVEL, [plain])
    variance, degrees = (
        np.where(uneven, np.where(asks_more, theirs, mine), with_floor)
        for theirs, mine, with_floor in (
            (differences_alone.variance, plain.variance, pooled.variance),
            (differences_alone.dof, plain.dof, pooled.dof),
        )
    )
    return Noise(variance, degrees)


def contrast_noise(x: np.ndarray, weights: np.ndarray) -> Noise:
    """The variance that the seeds give to weighted sums of arms, [studies, contrasts], as `contrast_variance` in
    eval/report/comparison/contrasts.py has it for one study. `x`: results [studies, arms, seeds]; `weights`: the
    weights of the arms in each sum, [contrasts, arms]."""
    R, A, n = x.shape
    degrees = np.full((R, len(weights)), float((A - 1) * (n - 1)))
    pooled = (residuals(x).sum(1) / ((A - 1) * (n - 1)) / n)[:, None] * (weights**2).sum(1)
    alone = np.einsum("ca,ran->rcn", weights, x).var(2, ddof=1) / n
    parts = Noise(pooled, degrees), Noise(alone, np.full((R, len(weights)), n - 1.0))
    asks_more = interval_half_widths(LEVEL, [parts[1]]) > interval_half_widths(LEVEL, [parts[0]])
    unpooled = arms_that_scatter_more(x).any(axis=1, keepdims=True) & asks_more
    return Noise(np.where(unpooled, alone, pooled), np.where(unpooled, n - 1.0, degrees))


def item_noise(d: np.ndarray, weights: np.ndarray) -> tuple[Noise, np.ndarray]:
    """Two arrays [studies, 1]: the variance that the items of one task give to the difference of two arms (as Noise),
    and the part of this variance that is the interaction of seeds and items. `items.item_variance_with_interaction` has
    both for one study.

    Args:
        d: differences of two arms, [studies, seeds, items].
        weights: the weights of the items, [studies, items].
    """
    S, n = d.shape[1:]
    total = weights.sum(-1, keepdims=True)

    def influences(a: np.ndarray, b: np.ndarray, whole: np.ndarray) -> np.ndarray:
        return (a - a.sum(-1, keepdims=True) / whole * b) / (whole - b)

    variance = (n - 1) / n * (influences(d.mean(1), weights, total) ** 2).sum(-1)
    interaction = np.zeros_like(variance)
    if S > 1:
        e = influences(d, weights[:, None], total[:, None])
        e = e - e.mean(1, keepdims=True)
        interaction = (n - 1) / n * (e**2).sum((1, 2)) / ((S - 1) * S)
    effective = total[:, 0] ** 2 / (weights**2).sum(-1)
    return Noise(variance[:, None], effective[:, None] - 1), interaction[:, None]


def noise_parts(seeds: Noise, whole: Noise, interaction: np.ndarray) -> list[Noise]:
    """The noise of differences as a list: the part from the seeds, the part from the items. The interaction of seeds
    and items is in both variances, and is subtracted from the one that leaves the wider interval, as in
    `items.noise_parts`.

    Args:
        seeds: the variance from the seeds, the interaction included.
        whole: the variance from the items, the interaction included.
        interaction: the variance of the interaction of seeds and items, [studies, arms - 1].
    """
    with_seeds = [seeds, Noise(np.maximum(0.0, whole.variance - interaction), whole.dof)]
    with_items = [Noise(np.maximum(0.0, seeds.variance - interaction), seeds.dof), whole]
    wider = interval_half_widths(LEVEL, with_items) > interval_half_widths(LEVEL, with_seeds)
    return [Noise(np.where(wider, a.variance, b.variance), b.dof) for a, b in zip(with_items, with_seeds, strict=True)]


def p_values(differences: np.ndarray, noise: Noise) -> np.ndarray:
    """Two-sided p-values of differences by Student's t; 1 for a difference of exactly 0, even where its noise is 0."""
    from scipy.special import stdtr

    with np.errstate(divide="ignore", invalid="ignore"):
        t = abs(differences) / np.sqrt(noise.variance)
    return np.where(differences == 0, 1.0, 2 * stdtr(noise.dof, -t))


def holm(p: np.ndarray, level: float) -> np.ndarray:
    """A bool array [studies, tests]: whether the p-value is significant after Holm's correction within its study. `p`:
    p-values, [studies, tests]; `level`: the family-wise significance level."""
    order = p.argsort(1)
    passes = np.take_along_axis(p, order, 1) * np.arange(p.shape[1], 0, -1) <= level
    rejected = np.empty(p.shape, bool)
    np.put_along_axis(rejected, order, np.logical_and.accumulate(passes, axis=1), 1)
    return rejected


def decisions(
    differences: np.ndarray, parts: list[Noise], margin: float | None = None, portion: float = 1.0
) -> np.ndarray:
    """The decision on each difference: WORSE, UNDECIDED, BETTER or EQUIVALENT, [studies, arms - 1], by Holm's
    correction and then two one-sided tests.

    Args:
        differences: arms minus baseline, [studies, arms - 1].
        parts: the variances that add up to that of a difference.
        margin: differences within it count as equivalent; None: no decision is EQUIVALENT.
        portion: the share of alpha (LEVEL) that this look at the results may use.
    """
    tests, size = differences.shape[1], abs(differences)
    counts = np.zeros(differences.shape, bool)
    if len(parts) == 1:
        counts = holm(p_values(differences, parts[0]), portion * LEVEL)
    for _ in range(tests if len(parts) > 1 else 0):  # of two parts there is no p in closed form
        rejected = counts.sum(1)
        for r in range(tests):  # with r rejected, the next has LEVEL / (tests - r)
            at = rejected == r
            if at.any():
                counts[at] |= (size > interval_half_widths(portion * LEVEL / (tests - r), parts))[at]
    verdicts = np.where(counts, np.sign(differences), UNDECIDED).astype(int)
    if margin is not None:
        inside = size + interval_half_widths(2 * portion * LEVEL / tests, parts) <= margin
        verdicts[~counts & inside] = EQUIVALENT
    return verdicts


def decide_all(
    x: np.ndarray, margin: float | None = None, floor: Noise | None = None, portion: float = 1.0
) -> np.ndarray:
    """The decision (WORSE, UNDECIDED, BETTER or EQUIVALENT) on each arm of simulated studies, [studies, arms - 1], from
    the noise of seeds alone.

    Args:
        x: results [studies, arms, seeds], the baseline first.
        margin: differences within it count as equivalent; None: no decision is EQUIVALENT.
        floor: the variance of single runs of a stored noise floor, [studies, 1]; None without a noise floor.
        portion: the share of alpha (LEVEL) that this look at the results may use.
    """
    means = x.mean(2)
    return decisions(means[:, 1:] - means[:, :1], [seed_noise(x, floor)], margin, portion)


def factorial_decisions(x: np.ndarray, weights: np.ndarray, families: list[list[int]]) -> np.ndarray:
    """The decisions (WORSE, UNDECIDED or BETTER) of a factorial, [studies, arms - 1 + effects]: first on its arms other
    than the baseline, then on its effects.

    Args:
        x: results [studies, arms, seeds], the baseline first.
        weights: the weights of the arms in each effect, [effects, arms].
        families: lists of column numbers of the result; Holm's correction is made within each list. A column that is in
            no list is UNDECIDED.
    """
    means = x.mean(2)
    values = np.concatenate([means[:, 1:] - means[:, :1], means @ weights.T], 1)
    arms, effects = seed_noise(x), contrast_noise(x, weights)
    variance = np.concatenate([arms.variance, effects.variance], 1)
    dof = np.concatenate([arms.dof, effects.dof], 1)
    verdicts = np.zeros(values.shape, int)
    for family in families:
        verdicts[:, family] = decisions(values[:, family], [Noise(variance[:, family], dof[:, family])])
    return verdicts


@dataclass(frozen=True)
class SequentialOutcome:
    """The outcome of simulated studies that add seeds until they are decided: the decisions, and the number of seeds at
    which each study stopped."""

    decisions: np.ndarray  # [studies, arms - 1]
    seeds: np.ndarray  # [studies]
    ever: np.ndarray  # [studies, arms - 1, 3]: whether WORSE, BETTER, EQUIVALENT was the decision at any look


def simulate_sequential(
    x: np.ndarray, margin: float | None = None, portion: Callable[[int, int, int], float] = alpha_share
) -> SequentialOutcome:
    """Simulate studies that add seeds until every arm is decided, or the seeds of `x` are used up.

    Args:
        x: results [studies, arms, seeds] for the largest possible number of seeds, the baseline first.
        margin: differences within it count as equivalent; None: no decision is EQUIVALENT.
        portion: a function of (seeds so far, most seeds, tests) for the share of alpha (LEVEL) that a look may use.
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
    return SequentialOutcome(final, seeds, ever)
