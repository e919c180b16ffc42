"""Standard errors, paired comparisons and verdicts. numpy and scipy, no model and no files.

What may be concluded. An arm's result x[arm, seed] is taken as arm + seed + residual. Two things make a
difference between two arms uncertain, and both are counted:

* the seeds. s**2 is the residual variance after removing arms and seeds, pooled over all arms of the study,
  with (A - 1)(n - 1) degrees of freedom for A arms and n seeds; the difference of two arm means has the
  variance s**2 * 2 / n (randomised blocks: Fisher 1935; Montgomery, Design and Analysis of Experiments, ch.
  4). With two arms this is the paired t-test. Cells may be missing: then it is least squares on the same
  model. With two arms and two seeds a single degree of freedom would be left, and a difference would have to
  be 12.7 times its noise. There the seeds are not removed, s**2 is the variance within arms with A (n - 1) =
  2 degrees of freedom, and 4.3 times is enough: the ordinary t-test, which errs on the large side when the
  arms of a seed share something and loses power only when they correlate by more than 0.88. The design alone
  decides this.
* the items (held-out documents, questions), of which there could have been others. Both arms answered the
  same ones, so it is the variance of the per-item differences, averaged over seeds (Miller 2024,
  arXiv:2411.00640).

`noise` is the square root of the sum of the two variances. What the seeds do to single items is in both of
them, so it errs on the large side. A difference counts when it exceeds sqrt(t1**2 v1 + t2**2 v2), where t is
the 0.975 quantile of Student's t with the degrees of freedom of each part: Banerjee (1960, Sankhya 22) proved
that this has at least its nominal coverage. Welch and Satterthwaite's one t for both is not used: with so few
degrees of freedom for the seeds it calls up to 8 % of null differences real (tests/test_statistics.py).
"""

from dataclasses import dataclass, replace
from math import inf, isinf, sqrt

import numpy as np

LEVEL = 0.05  # chance of any wrong verdict in a report when there is no difference
LN2 = float(np.log(2))
Results = dict[str, dict[int, float]]  # {arm: {seed: result}}


def mean_stderr(values: np.ndarray) -> float:
    """Standard error of the mean of independent items; nan for fewer than two."""
    return float(np.std(values, ddof=1) / sqrt(len(values))) if len(values) > 1 else float("nan")


def ratio_stderr(numerators: np.ndarray, denominators: np.ndarray) -> float:
    """Standard error of sum(numerators) / sum(denominators) over items, linearised (Cochran 1977, Sampling
    Techniques, section 6.3): bits per byte, where documents of different lengths are the items."""
    n, a, b = len(numerators), np.asarray(numerators, float), np.asarray(denominators, float)
    if n < 2:
        return float("nan")
    residuals = a - a.sum() / b.sum() * b
    return float(sqrt(n / (n - 1) * (residuals**2).sum()) / b.sum())


@dataclass(frozen=True)
class Part:
    """A variance and its degrees of freedom."""

    variance: float
    dof: float


@dataclass(frozen=True)
class Comparison:
    """An arm against the baseline. difference: arm - baseline, in the units of the metric."""

    difference: float
    seeds: Part | None  # None: fewer than two seeds in common
    items: Part
    threshold: float  # |difference| above which it counts, alone; inf when it cannot be told
    p: float  # two-sided; nan when it cannot be told
    adjusted: float = float("nan")  # p after Holm's correction, over the arms of the study

    @property
    def noise(self) -> float:
        """Standard error of the difference."""
        return sqrt((self.seeds.variance if self.seeds else 0.0) + self.items.variance)


def seed_part(results: Results, arm: str, baseline: str) -> Part | None:
    """The variance that the seeds give to the mean difference of two arms over the seeds they share.

    None when these are fewer than two: a difference that was seen once is not replicated.
    """
    shared = len(results[arm].keys() & results[baseline].keys())
    if shared < 2:
        return None
    arms = list(results)
    seeds = sorted({seed for row in results.values() for seed in row})
    cells = [(a, s) for a in arms for s in results[a]]
    y = np.array([results[a][s] for a, s in cells])
    columns = np.array([[a == c for c in arms] + [s == c for c in seeds] for a, s in cells], float)
    for design in (columns, columns[:, : len(arms)]):
        dof = len(cells) - int(np.linalg.matrix_rank(design))
        if dof > 1:
            break
    residual = y - design @ np.linalg.lstsq(design, y)[0]
    return Part(float(residual @ residual) / dof * 2 / shared, dof)


def level_stderr(results: Results, arm: str, items: Part) -> float:
    """Standard error of an arm's own mean: the seeds' variance within arms, pooled over them, and the
    items'."""
    rows = [np.array(list(row.values())) for row in results.values()]
    dof = sum(len(row) - 1 for row in rows if len(row))
    pooled = sum(float(((row - row.mean()) ** 2).sum()) for row in rows if len(row)) / dof if dof else 0.0
    return sqrt(pooled / len(results[arm]) + items.variance)


def add(parts: list[Part]) -> Part:
    """The sum of independent parts, with Satterthwaite's degrees of freedom; for strata, which are all
    large."""
    variance = sum(part.variance for part in parts)
    if not variance:
        return Part(0.0, inf)
    return Part(variance, variance**2 / sum(part.variance**2 / part.dof for part in parts))


def item_part(strata: list[tuple[np.ndarray, np.ndarray]]) -> Part:
    """The variance that the items give to an unweighted mean over strata (tasks, corpora) of ratios.

    strata: for each, (differences, weights) per item: sum(differences) / sum(weights) is the stratum's
    difference. Accuracy: differences of outcomes averaged over seeds, weights 1. Bits per byte: bits and
    bytes.
    """
    parts = [Part(ratio_stderr(d, w) ** 2 / len(strata) ** 2, len(d) - 1) for d, w in strata if len(d) > 1]
    return add(parts)


def quantile(alpha: float, seeds: Part, items: Part) -> float:
    """Half-width of the 1 - alpha interval of Banerjee (1960)."""
    from scipy.special import stdtrit  # the quantile of Student's t

    return sqrt(sum(float(stdtrit(part.dof, alpha / 2)) ** 2 * part.variance for part in (seeds, items)
                    if part.variance))


def compare(difference: float, seeds: Part | None, items: Part) -> Comparison:
    """One comparison, before any correction for others; p is the level at which the interval just touches
    zero."""
    from scipy.optimize import brentq

    if seeds is None:
        return Comparison(difference, None, items, inf, float("nan"))
    threshold = quantile(LEVEL, seeds, items)
    size = abs(difference)
    low, high = 1e-15, 1 - 1e-12
    if size >= quantile(low, seeds, items):
        p = low
    elif size <= quantile(high, seeds, items):
        p = 1.0
    else:
        p = float(brentq(lambda alpha: quantile(alpha, seeds, items) - size, low, high, xtol=1e-16))
    return Comparison(difference, seeds, items, threshold, p)


def holm(p: list[float]) -> list[float]:
    """p-values adjusted for being several, in their order (Holm 1979). nan is not counted and stays."""
    order = [i for i in np.argsort(p, kind="stable") if not np.isnan(p[i])]
    adjusted, least = [float("nan")] * len(p), 0.0
    for rank, i in enumerate(order):
        least = max(least, min(1.0, (len(order) - rank) * p[i]))
        adjusted[i] = least
    return adjusted


def family(comparisons: dict[str, Comparison]) -> dict[str, Comparison]:
    """The same comparisons, each with its p-value after Holm's correction for all of them."""
    adjusted = holm([c.p for c in comparisons.values()])
    return {arm: replace(c, adjusted=p) for (arm, c), p in zip(comparisons.items(), adjusted, strict=True)}


def verdict(comparison: Comparison, higher_is_better: bool, digits: int = 3) -> str:
    """In words: better or worse by how much and how many times the noise; within noise; not replicated."""
    if comparison.seeds is None:
        return "one seed: not replicated"
    p = comparison.p if np.isnan(comparison.adjusted) else comparison.adjusted
    if not p <= LEVEL:
        return "within noise"
    word = "better" if (comparison.difference > 0) == higher_is_better else "worse"
    size = abs(comparison.difference)
    times = size / comparison.noise if comparison.noise else inf
    return f"{word} by {size:.{digits}f} ({'∞' if isinf(times) else f'{times:.0f}'} × noise)"
