"""Comparisons of arms with the baseline: p-values, thresholds, and Holm's correction for the number of arms.

Holm's step-down correction needs only the p-values, and holds under any dependence. max-T and Dunnett's test, which use
that all arms share a baseline, would lower the threshold by a few per cent. But max-T by permutation cannot reach 5 %
with two or three seeds, and Dunnett's tables do not cover noise from two sources.

Equivalence: a difference within the noise does not show that two arms are equal. Where a margin was named, two arms are
equivalent if two one-sided tests are both significant (Schuirmann 1987, J. Pharmacokinet. Biopharm. 15): if the
1 - 2 LEVEL interval of the difference lies inside the margin. With several arms, LEVEL is divided by their number.
Where the difference is as large as the margin, at most 5 % of studies say equivalent (tests/test_false_verdicts.py).

A study that adds seeds until it is decided has several interim analyses, each with a share of LEVEL
(eval/statistics/sequential.py).
"""

from collections.abc import Hashable
from dataclasses import dataclass, replace
from math import inf, nan, sqrt
from typing import TypeVar

import numpy as np

from eval.statistics.items import FEWEST_ITEMS
from eval.statistics.parts import LEVEL, Variance, interval_half_width

MAX_ITERATIONS = 1000  # at most, for a p-value; scipy's own 100 are too few for one difference of some thousands

Name = TypeVar("Name", bound=Hashable)  # of a comparison in a family


@dataclass(frozen=True)
class Comparison:
    """A difference between two arms, or an effect of a factorial, with its noise and its significance. Differences and
    thresholds are in the unit of the metric."""

    difference: float
    seeds: Variance | None  # None: one seed, and no noise floor is known
    items: Variance
    threshold: float  # |difference| above which it is significant; in a family, after Holm's correction
    p: float  # two-sided
    adjusted: float = float("nan")  # p after Holm's correction, over the arms of the study
    replicated: bool = True  # False: seen with one seed
    independent: int | None = None  # items of the task with the fewest; None: it is not known how many there are
    family: int = 1  # how many comparisons it is one of
    share: float = 1.0  # of LEVEL that this interim analysis may spend; below 1 where seeds are added until decided
    planned: tuple[Variance, Variance] | None = None  # from seeds and items, for plans: items.NoiseParts
    items_alone: Variance | None = None  # the part of the items that more seeds leave; None: not known

    @property
    def noise(self) -> float:
        """The standard error of the difference, from seeds and items together."""
        return sqrt((self.seeds.variance if self.seeds else 0.0) + self.items.variance)

    @property
    def planning_variances(self) -> tuple[Variance, Variance]:
        """The variances for planning more seeds or another study: (from the seeds, from the items)."""
        return self.planned or (self.seeds or Variance(0.0, inf), self.items)

    @property
    def has_enough_items(self) -> bool:
        """Whether there are enough independent items to estimate their noise; True where their number is unknown."""
        return self.independent is None or self.independent >= FEWEST_ITEMS

    def is_equivalent(self, margin: float | None) -> bool:
        """Whether the difference lies significantly within ±`margin`, by two one-sided tests. False where the margin is
        None, or the noise is not known well enough."""
        if margin is None or not self.seeds or not self.replicated or not self.has_enough_items or not self.share:
            return False
        level = self.share * LEVEL / self.family
        return abs(self.difference) + interval_half_width(2 * level, self.seeds, self.items) <= margin

    @property
    def is_significant(self) -> bool:
        """Whether the difference is significant and was seen with more than one seed. The p-value after Holm's
        correction counts, where there is one."""
        p = self.p if np.isnan(self.adjusted) else self.adjusted
        return self.replicated and self.has_enough_items and bool(p <= LEVEL)


def compare(
    difference: float,
    seeds: Variance | None,
    items: Variance,
    replicated: bool = True,
    independent: int | None = None,
    share: float = 1.0,
    planned: tuple[Variance, Variance] | None = None,
    items_alone: Variance | None = None,
) -> Comparison:
    """Compare two arms by their difference and its noise, without multiple-comparison correction.

    Args:
        difference: one arm minus the other, in the unit of the metric.
        seeds: the variance of the difference from the seeds; None where it is unknown. The p-value and the threshold
            then count the items only, and are too small.
        items: the variance of the difference from the items.
        replicated: whether the difference was seen with more than one seed.
        independent: the number of independent items in the task with the fewest; None where it is unknown. Below
            FEWEST_ITEMS the p-value is NaN, and the verdict is undecided.
        share: the share of LEVEL that this interim analysis may use (sequential.py).
        planned: the variances (from the seeds, from the items) for planning more seeds or another study; None: the same
            as `seeds` and `items`.
        items_alone: the variance from the items without the interaction of seeds and items; None where it is unknown.
    """
    known = seeds or Variance(0.0, inf)
    too_few = independent is not None and independent < FEWEST_ITEMS
    return Comparison(
        difference,
        seeds,
        items,
        threshold=interval_half_width(LEVEL, known, items),
        p=nan if too_few else p_value(abs(difference), known, items),
        replicated=replicated and seeds is not None,
        independent=independent,
        share=share,
        planned=planned,
        items_alone=items_alone,
    )


def p_value(size: float, seeds: Variance, items: Variance) -> float:
    """The two-sided p-value of a difference, from 1e-15 to 1: the level at which its confidence interval ends at zero.

    Args:
        size: the absolute difference.
        seeds: the variance of the difference from the seeds.
        items: the variance of the difference from the items.
    """
    from scipy.optimize import brentq

    def excess(level: float) -> float:
        """The half-width of the interval at a level, minus the difference."""
        return interval_half_width(level, seeds, items) - size

    low, high = 1e-15, 1 - 1e-12
    if size == 0:  # a tie, also where nothing scatters
        return 1.0
    if excess(low) <= 0:
        return low
    if excess(high) >= 0:
        return 1.0
    return float(brentq(excess, low, high, xtol=1e-16, maxiter=MAX_ITERATIONS))


def holm(p: list[float]) -> list[float]:
    """p-values after Holm's multiple-comparison correction (Holm 1979), in the given order. NaN does not count as a
    comparison, and remains NaN."""
    order = [i for i in np.argsort(p, kind="stable") if not np.isnan(p[i])]
    adjusted, least = [float("nan")] * len(p), 0.0
    for rank, i in enumerate(order):
        least = max(least, min(1.0, (len(order) - rank) * p[i]))
        adjusted[i] = least
    return adjusted


def apply_holm_correction(comparisons: dict[Name, Comparison]) -> dict[Name, Comparison]:
    """Apply Holm's multiple-comparison correction to a family of comparisons. Returns {name: comparison with corrected
    p-value and threshold}.

    The threshold of a comparison is the half-width of its interval at its level in Holm's procedure. The procedure
    stops at the first comparison that is not significant, and all later ones have the level of that one. Each p-value
    is first divided by the share of LEVEL that its interim analysis may use. Comparisons whose p-value is NaN do not
    count, and get no corrected p-value.
    """
    p_values = {arm: min(1.0, c.p / c.share) if c.share else 1.0 for arm, c in comparisons.items()}
    p_values |= {arm: nan for arm, c in comparisons.items() if np.isnan(c.p)}
    adjusted = holm(list(p_values.values()))
    counting = sum(p <= LEVEL for p in adjusted)
    tested = [arm for arm, c in comparisons.items() if not np.isnan(c.p)]
    rank = {arm: i for i, arm in enumerate(sorted(tested, key=lambda arm: p_values[arm]))}
    corrected = {}
    for (arm, c), p in zip(comparisons.items(), adjusted, strict=True):
        level = LEVEL / (len(tested) - min(rank[arm], counting)) if len(tested) > 1 and arm in rank else LEVEL
        least = interval_half_width(c.share * level, c.seeds or Variance(0.0, inf), c.items) if c.share else inf
        corrected[arm] = replace(c, adjusted=p, threshold=least, family=max(1, len(tested)))
    return corrected
