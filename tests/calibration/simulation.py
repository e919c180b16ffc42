"""Decides many simulated studies at once by the rules of eval/statistics, for docs/statistics.md and the tests.

The rules are implemented here a second time, for arrays of studies, because eval/statistics takes a millisecond per
study. tests/test_calibration.py checks that both implementations decide alike. Every arm of a study has every seed.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from eval.statistics.parts import LEVEL
from eval.statistics.sequential import FIRST_LOOK, alpha_share

WORSE, UNDECIDED, BETTER, EQUIVALENT = -1, 0, 1, 2  # decisions; BETTER is a difference above 0


@dataclass(frozen=True)
class Noise:
    """Variances of the differences between arms and the baseline in many studies, with their degrees of freedom. Both
    are arrays [studies, arms - 1]."""

    variance: np.ndarray
    dof: np.ndarray


def interval_half_widths(level: float, parts: list[Noise]) -> np.ndarray:
    """The half-widths of the 1 - `level` confidence intervals of differences, by the formula of `interval_half_width`
    in eval/statistics/parts.py. `parts`: the variances that add up to the variance of a difference."""
    from scipy.special import stdtrit

    return np.sqrt(sum(stdtrit(part.dof, level / 2) ** 2 * part.variance for part in parts))


def residual_squares(x: np.ndarray) -> np.ndarray:
    """The residual sum of squares of each arm, [studies, arms], after fitting the means of arms and of seeds. `x`:
    results [studies, arms, seeds]."""
    residual = x - x.mean(2, keepdims=True) - x.mean(1, keepdims=True) + x.mean((1, 2), keepdims=True)
    return (residual**2).sum(2)


def arms_that_scatter_more(x: np.ndarray) -> np.ndarray:
    """Whether each arm scatters significantly more between seeds than the other arms of its study: bool [studies,
    arms]. All False with fewer than three arms. The test is that of `seeds.arms_that_scatter_more`. `x`: results
    [studies, arms, seeds]."""
    from scipy.special import fdtrc

    R, A, n = x.shape
    if A < 3:
        return np.zeros((R, A), bool)
    of_arm, others_dof = residual_squares(x), (A - 2) * (n - 1)
    whole = of_arm.sum(1, keepdims=True)
    others_squares = whole - of_arm * A / (A - 1)  # without the arm
    ratio = ((whole - others_squares) / (n - 1)) / (others_squares / others_dof)
    return A * fdtrc(n - 1, others_dof, ratio) <= LEVEL


def seed_noise(x: np.ndarray, floor: Noise | None = None) -> Noise:
    """The variance from the seeds of each arm's difference from the baseline, by the rule of `seeds.seed_variance`.

    Args:
        x: results [studies, arms, seeds], the baseline first.
        floor: the variance of single runs of a stored noise floor, [studies, 1]; None without a noise floor.
    """
    from scipy.special import fdtrc

    R, A, n = x.shape
    if A == n == 2:
        whole, dof = ((x - x.mean(2, keepdims=True)) ** 2).sum((1, 2)), 2
    else:
        whole, dof = residual_squares(x).sum(1), (A - 1) * (n - 1)
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
    """The variance from the seeds of weighted sums of arms, [studies, contrasts], by the rule of `contrast_variance` in
    eval/report/comparison/contrasts.py.

    Args:
        x: results [studies, arms, seeds].
        weights: the weights of the arms in each sum, [contrasts, arms].
    """
    R, A, n = x.shape
    degrees = np.full((R, len(weights)), float((A - 1) * (n - 1)))
    pooled = (residual_squares(x).sum(1) / ((A - 1) * (n - 1)) / n)[:, None] * (weights**2).sum(1)
    alone = np.einsum("ca,ran->rcn", weights, x).var(2, ddof=1) / n
    parts = Noise(pooled, degrees), Noise(alone, np.full((R, len(weights)), n - 1.0))
    asks_more = interval_half_widths(LEVEL, [parts[1]]) > interval_half_widths(LEVEL, [parts[0]])
    unpooled = arms_that_scatter_more(x).any(axis=1, keepdims=True) & asks_more
    return Noise(np.where(unpooled, alone, pooled), np.where(unpooled, n - 1.0, degrees))


def item_noise(d: np.ndarray, weights: np.ndarray) -> tuple[Noise, np.ndarray]:
    """The variance from the items of the difference between two arms on one task, by the rule of
    `items.item_variance_with_interaction`. Returns (this variance, the part of it that is the interaction of seeds and
    items), both for [studies, 1].

    Args:
        d: differences of two arms, [studies, seeds, items].
        weights: the weights of the items, [studies, items].
    """
    S, n = d.shape[1:]
    total = weights.sum(-1, keepdims=True)

    def influences(a: np.ndarray, b: np.ndarray, whole: np.ndarray) -> np.ndarray:
        """The jackknife influences of items on sum(a) / sum(b). `whole`: sum(b)."""
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
    """Divide the noise of differences into the part from the seeds and the part from the items, as a list. The
    interaction of seeds and items is in both variances. It is subtracted from the one that leaves the wider interval,
    as in `items.noise_parts`.

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


def holm_rejections(p: np.ndarray, level: float) -> np.ndarray:
    """Whether each p-value is significant after Holm's correction within its study: bool [studies, tests]. `p`:
    p-values, [studies, tests]; `level`: the family-wise significance level."""
    order = p.argsort(1)
    passes = np.take_along_axis(p, order, 1) * np.arange(p.shape[1], 0, -1) <= level
    rejected = np.empty(p.shape, bool)
    np.put_along_axis(rejected, order, np.logical_and.accumulate(passes, axis=1), 1)
    return rejected


def decisions(
    differences: np.ndarray, parts: list[Noise], margin: float | None = None, share: float = 1.0
) -> np.ndarray:
    """The decision on each difference, [studies, arms - 1]: WORSE, UNDECIDED, BETTER or EQUIVALENT. Holm's correction
    comes first, then two one-sided tests.

    Args:
        differences: arms minus baseline, [studies, arms - 1].
        parts: the variances that add up to the variance of a difference.
        margin: differences within it count as equivalent; None: no decision is EQUIVALENT.
        share: the share of LEVEL that this interim analysis may use.
    """
    tests, size = differences.shape[1], abs(differences)
    counts = np.zeros(differences.shape, bool)
    if len(parts) == 1:
        counts = holm_rejections(p_values(differences, parts[0]), share * LEVEL)
    for _ in range(tests if len(parts) > 1 else 0):  # of two parts there is no p in closed form
        rejected = counts.sum(1)
        for r in range(tests):  # with r rejected, the next has LEVEL / (tests - r)
            at = rejected == r
            if at.any():
                counts[at] |= (size > interval_half_widths(share * LEVEL / (tests - r), parts))[at]
    verdicts = np.where(counts, np.sign(differences), UNDECIDED).astype(int)
    if margin is not None:
        inside = size + interval_half_widths(2 * share * LEVEL / tests, parts) <= margin
        verdicts[~counts & inside] = EQUIVALENT
    return verdicts


def decide_all(
    x: np.ndarray, margin: float | None = None, floor: Noise | None = None, share: float = 1.0
) -> np.ndarray:
    """The decision on each arm of simulated studies, [studies, arms - 1], from the noise of seeds alone: WORSE,
    UNDECIDED, BETTER or EQUIVALENT.

    Args:
        x: results [studies, arms, seeds], the baseline first.
        margin: differences within it count as equivalent; None: no decision is EQUIVALENT.
        floor: the variance of single runs of a stored noise floor, [studies, 1]; None without a noise floor.
        share: the share of LEVEL that this interim analysis may use.
    """
    means = x.mean(2)
    return decisions(means[:, 1:] - means[:, :1], [seed_noise(x, floor)], margin, share)


def factorial_decisions(x: np.ndarray, weights: np.ndarray, families: list[list[int]]) -> np.ndarray:
    """The decisions (WORSE, UNDECIDED or BETTER) of factorial studies, [studies, arms - 1 + effects]. The columns are
    the arms other than the baseline, then the effects.

    Args:
        x: results [studies, arms, seeds], the baseline first.
        weights: the weights of the arms in each effect, [effects, arms].
        families: lists of columns; Holm's correction is made within each list. A column that is in no list is
            UNDECIDED.
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
    x: np.ndarray, margin: float | None = None, share: Callable[[int, int, int], float] = alpha_share
) -> SequentialOutcome:
    """Simulate studies that add seeds until every arm is decided, or all seeds of `x` are used.

    Args:
        x: results [studies, arms, seeds] for the largest possible number of seeds, the baseline first.
        margin: differences within it count as equivalent; None: no decision is EQUIVALENT.
        share: a function of (seeds so far, largest number of seeds, number of tests) to the share of LEVEL that an
            interim analysis may use.
    """
    R, A, most = x.shape
    final, seeds = np.zeros((R, A - 1), int), np.full(R, most)
    ever, going = np.zeros((R, A - 1, 3), bool), np.ones(R, bool)
    for n in range(FIRST_LOOK, most + 1):
        now = decide_all(x[going, :, :n], margin, share=share(n, most, A - 1))
        final[going] = now
        ever[going] |= now[..., None] == np.array([WORSE, BETTER, EQUIVALENT])
        stops = (now != UNDECIDED).all(1)
        at = np.flatnonzero(going)[stops]
        seeds[at], going[at] = n, False
    return SequentialOutcome(final, seeds, ever)
