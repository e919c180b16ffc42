"""Standard errors, paired comparisons and verdicts. numpy and scipy, no model and no files.

What may be concluded. An arm's result x[arm, seed] is taken as arm + seed + residual. Two things make a difference
between two arms uncertain, and both are counted:

* the seeds. s**2 is the residual variance after removing arms and seeds, pooled over all arms of the study, with
  (A - 1)(n - 1) degrees of freedom for A arms and n seeds; the difference of two arm means has the variance
  s**2 * 2 / n (randomised blocks: Fisher 1935; Montgomery, Design and Analysis of Experiments, ch. 4). With two arms
  this is the paired t-test. Cells may be missing: then it is least squares on the same model. With two arms and two
  seeds a single degree of freedom would be left, and a difference would have to be 12.7 times its noise. There the
  seeds are not removed, s**2 is the variance within arms with A (n - 1) = 2 degrees of freedom, and 4.3 times is
  enough: the ordinary t-test, which errs on the large side when the arms of a seed share something and loses power
  only when they correlate by more than 0.88. The design alone decides this. Runs that share no seeds (others') are
  not paired: Welch's variance and degrees of freedom (Welch 1947, Biometrika 34).
  One s**2 for all assumes that the seeds scatter all arms alike. Where an arm of three or more stands out by an F
  test, its differences (all, if it is the baseline) are judged by their own variance with n - 1 degrees of freedom
  where that asks for more than s**2, and the report says so. Two seeds can hardly show it, and of two arms nothing can:
  with two seeds and five times the noise in one of them, 8 % of null studies have a wrong verdict. Of four arms, one
  with five times the noise of the others, 9, 9 and 4 % have one with 2, 3 and 5 seeds (11, 11 and 5 % when that is the
  baseline; by s**2 alone 9, 10 and 9 %, and 11 to 13 %); with twice the noise 4 to 5 %, and all alike 4 %. The price:
  what 80 % of studies would see, 78 % do. Own variances throughout would be exact, and see it in 13, 28 and 50 %;
  leaving an arm that stands out out of s**2 as well is wrong more often with 2 and 3 seeds than s**2 alone. (20,000
  simulated studies of each kind, without noise of items; tests/test_statistics.py holds the rates.)
* the items (held-out documents, questions), of which there could have been others. Those that share a passage or a
  document are not independent: they count as one, their sum. The variance is that of the jackknife over these, with
  n - 1 degrees of freedom for n of equal size and fewer where sizes differ (Kish's effective number). With the
  linearised variance and n - 1, 14 % of null studies of 5 documents of log-normal sizes (sigma 1) have a wrong verdict,
  10 % with 20 and 8 % with 50; so counted, 1 to 5.5 % with 2 to 50, of equal sizes or not, and also where differences
  have the tails of Student's t with 3 degrees of freedom (20,000 and 40,000 simulated studies of each kind). One
  document knows no noise at all, and of two a difference of five times the noise is seen in three studies of ten: below
  FEWEST_ITEMS there is no verdict. Both arms answered the same items, so it is the variance of the per-item differences
  (Miller 2024, arXiv:2411.00640).

Both at once is the mixed model with crossed random effects, difference[seed, item] = mean + seed + item + rest. Its
estimate of the variance of the mean is closed where every seed has every item: the mean square between seeds plus
the one between items minus that of the rest, which is in both (Cornfield & Tukey 1956, Ann. Math. Stat. 27; the F''
of Clark 1973). The rest is taken from the items' part, and a part is never below zero.

A difference counts when it exceeds sqrt(t1**2 v1 + t2**2 v2), where t is the 0.975 quantile of Student's t with the
degrees of freedom of each part: Banerjee (1960, Sankhya 22) proved that this has at least its nominal coverage.
Welch and Satterthwaite's one t for both parts is not used: with so few degrees of freedom for the seeds it calls up
to 8 % of null differences real (tests/test_statistics.py).

Several arms: Holm's step-down correction. It needs nothing but the p-values and holds under any dependence. max-T and
Dunnett's test, which know that all arms share a baseline, would gain a few per cent of the threshold; but max-T by
permutation cannot reach 5 % with two or three seeds, and Dunnett's tables do not cover two parts of noise.

With one seed nothing is better or worse: a difference that the items or a known noise floor explain is within noise,
any other is not replicated.

Equivalence. Within noise is not the same as equal. Where a margin was named, two arms are equivalent within it when two
one-sided tests both say so (Schuirmann 1987, J. Pharmacokinet. Biopharm. 15): when the 1 - 2 LEVEL interval of the
difference lies inside the margin; of several arms, at LEVEL divided by their number. Of differences as large as the
margin at most 5 % of studies say equivalent (tests/test_statistics.py). What is neither is undecided, and
`seeds_to_decide` says what is missing.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import inf, isinf, nan, sqrt
from typing import NamedTuple

import numpy as np

LEVEL = 0.05  # chance of any wrong verdict on a metric when there is no difference
LN2 = float(np.log(2))
MOST_SEEDS = 20  # beyond which it is not said how many would tell: by then another question is the better use of them
DRAWS = 4000  # of the bootstrap: the ends of a 95 % interval to some 3 % of its width
FEWEST_ITEMS = 3  # independent items (or clusters of them) of a task that can tell its noise: see the head of this file
Results = dict[str, dict[int, float]]  # {arm: {seed: result}}


class Stratum(NamedTuple):
    """The results of one task: a seed's sum(differences) / sum(weights) is the difference of two arms on it.

    The items are taken as independent. Of those that share a passage or a document there is one, their sum: see
    `by_cluster`.
    """

    differences: np.ndarray  # [seeds, items]
    weights: np.ndarray  # [items]


def by_cluster(d_SN: np.ndarray, w_N: np.ndarray, clusters: Sequence[str]) -> Stratum:
    """A stratum whose items are clusters: sums over the items of each. As it is, where every item is its own cluster.

    The standard error of a ratio of sums over clusters is the cluster-robust one (Liang & Zeger 1986, Biometrika 73;
    Cochran 1977, section 9.7), and drawing them with replacement is the cluster bootstrap (Davison & Hinkley 1997,
    Bootstrap Methods, section 3.8).
    """
    names, index = np.unique(np.asarray(clusters, dtype=object), return_inverse=True)
    if len(names) == len(w_N):
        return Stratum(d_SN, w_N)
    sums_SC = np.stack([np.bincount(index, row, minlength=len(names)) for row in d_SN])
    return Stratum(sums_SC, np.bincount(index, w_N, minlength=len(names)))


def independent_items(strata: list[Stratum]) -> int | None:
    """How many independent items the task with the fewest has; None without any task."""
    return min((len(stratum.weights) for stratum in strata), default=None)


def effective_number(weights: np.ndarray) -> float:
    """How many items of equal weight say as much about a variance: sum(w)**2 / sum(w**2) (Kish 1965, Survey Sampling,
    section 11.2)."""
    w = np.asarray(weights, float)
    return float(w.sum() ** 2 / (w**2).sum())


def mean_stderr(values: np.ndarray) -> float:
    """Standard error of the mean of independent items; nan for fewer than two."""
    return float(np.std(values, ddof=1) / sqrt(len(values))) if len(values) > 1 else float("nan")


def ratio_stderr(numerators: np.ndarray, denominators: np.ndarray) -> float:
    """Standard error of sum(numerators) / sum(denominators) over independent items, by the jackknife: bits per byte,
    where documents of different lengths are the items. nan for fewer than two.

    Leaving item i out moves the ratio r by -(a_i - r b_i) / (sum(b) - b_i). With equal denominators this is the
    standard error of the mean. The linearised error (Cochran 1977, Sampling Techniques, section 6.3) divides by sum(b)
    alone and is too small where a few items are large: see the head of this file.
    """
    n, a, b = len(numerators), np.asarray(numerators, float), np.asarray(denominators, float)
    if n < 2:
        return nan
    return float(sqrt((n - 1) / n * (influences(a, b) ** 2).sum()))


def influences(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """What each item, [..., items], adds to sum(a) / sum(b): minus the change of the ratio when it is left out. An item
    that is all of sum(b) has infinite influence."""
    total = b.sum()
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.nan_to_num((a - a.sum(-1, keepdims=True) / total * b) / (total - b), nan=inf, posinf=inf, neginf=-inf)


@dataclass(frozen=True)
class Part:
    """A variance and its degrees of freedom."""

    variance: float
    dof: float


@dataclass(frozen=True)
class Comparison:
    """An arm against the baseline. difference: arm - baseline, in the units of the metric."""

    difference: float
    seeds: Part | None  # None: one seed, and no noise floor is known
    items: Part
    threshold: float  # |difference| above which it counts; of several, after Holm's correction
    p: float  # two-sided
    adjusted: float = float("nan")  # p after Holm's correction, over the arms of the study
    replicated: bool = True  # False: seen with one seed
    independent: int | None = None  # items of the task with the fewest; None: it is not known how many there are
    family: int = 1  # how many comparisons it is one of

    @property
    def noise(self) -> float:
        """Standard error of the difference."""
        return sqrt((self.seeds.variance if self.seeds else 0.0) + self.items.variance)

    @property
    def enough_items(self) -> bool:
        """Whether the items can tell their part of the noise."""
        return self.independent is None or self.independent >= FEWEST_ITEMS

    def equivalent(self, margin: float | None) -> bool:
        """Whether the difference is smaller than a margin, in the units of the metric, by two one-sided tests."""
        if margin is None or not self.seeds or not self.replicated or not self.enough_items:
            return False
        return abs(self.difference) + quantile(2 * LEVEL / self.family, self.seeds, self.items) <= margin

    @property
    def counts(self) -> bool:
        """Whether the difference is more than noise, and seen more than once."""
        p = self.p if np.isnan(self.adjusted) else self.adjusted
        return self.replicated and self.enough_items and bool(p <= LEVEL)


def seed_part(results: Results, arm: str, baseline: str) -> Part | None:
    """The variance that the seeds give to the mean difference of two arms over the seeds they share.

    None when these are fewer than two: a difference that was seen once is not replicated.
    """
    shared = len(results[arm].keys() & results[baseline].keys())
    if shared < 2:
        return None
    left, dof = residual(results)
    if dof < 2:
        left, dof = residual(results, seeds=False)
    pooled = Part(left / dof * 2 / shared, dof)
    if not {arm, baseline} & outstanding(results).keys():
        return pooled
    apart = np.array([results[arm][s] - results[baseline][s] for s in results[arm].keys() & results[baseline].keys()])
    own = Part(float(apart.var(ddof=1)) / shared, shared - 1)
    return max(pooled, own, key=lambda part: quantile(LEVEL, part, Part(0.0, inf)))


def residual(results: Results, seeds: bool = True) -> tuple[float, int]:
    """What least squares leave of the results after the means of arms and of seeds (or of arms alone): the sum of
    squares, and its degrees of freedom."""
    cells = [(arm, seed) for arm in results for seed in results[arm]]
    if not cells:
        return 0.0, 0
    y = np.array([results[arm][seed] for arm, seed in cells])
    means = [*results, *({seed for _, seed in cells} if seeds else ())]
    design = np.array([[mean in cell for mean in means] for cell in cells], float)
    rest = y - design @ np.linalg.lstsq(design, y)[0]
    return float(rest @ rest), len(cells) - int(np.linalg.matrix_rank(design))


def outstanding(results: Results) -> dict[str, float]:
    """{arm: p} of the arms whose seeds scatter more than those of the others do, corrected for the number of arms.

    What an arm adds to the residual sum of squares, against what there is without it: F, exact where all arms are
    alike (Chow 1960, Econometrica 28). It takes two other arms to tell.
    """
    from scipy.special import fdtrc

    found = {}
    whole, dof = residual(results)
    if whole <= 1e-20 * sum(value**2 for row in results.values() for value in row.values()):
        return {}  # rounding
    for arm in results:
        rest, others = residual({a: row for a, row in results.items() if a != arm})
        if others > 0 and dof > others:
            ratio = (whole - rest) / (dof - others) / (rest / others) if rest else inf
            found[arm] = min(1.0, len(results) * float(fdtrc(dof - others, others, ratio)))
    return {arm: p for arm, p in found.items() if p <= LEVEL}


def welch(ours: Iterable[float], theirs: Iterable[float]) -> Part | None:
    """The variance of the difference of two means of runs that share no seeds; None where either has a single run.

    Without any variance in either, the degrees of freedom are the smaller ones of the two.
    """
    rows = [np.array(list(row), float) for row in (ours, theirs)]
    if min(map(len, rows)) < 2:
        return None
    parts = [Part(float(row.var(ddof=1)) / len(row), len(row) - 1) for row in rows]
    return add(parts) if any(part.variance for part in parts) else Part(0.0, min(part.dof for part in parts))


def noise_floor(results: Results) -> Part | None:
    """The variance between runs that differ in nothing but the seed, pooled over the arms that have several; None where
    no arm has."""
    rows = [np.array(list(row.values()), float) for row in results.values() if len(row) > 1]
    dof = sum(len(row) - 1 for row in rows)
    return Part(sum(float(((row - row.mean()) ** 2).sum()) for row in rows) / dof, dof) if dof else None


def level_stderr(results: Results, arm: str, items: Part) -> float:
    """Standard error of an arm's own mean: the seeds' variance within arms, pooled over them, and the
    items'."""
    floor = noise_floor(results)
    return sqrt((floor.variance / len(results[arm]) if floor else 0.0) + items.variance)


def add(parts: list[Part]) -> Part:
    """The sum of independent parts, with Satterthwaite's degrees of freedom; for strata, which are all
    large."""
    variance = sum(part.variance for part in parts)
    if not variance:
        return Part(0.0, inf)
    return Part(variance, variance**2 / sum(part.variance**2 / part.dof for part in parts))


def item_part(strata: list[Stratum]) -> Part:
    """The variance that the items give to an unweighted mean over strata (tasks, corpora) of ratios, without what is
    left of seeds and items together, which the seeds' part holds.

    Accuracy: differences of outcomes, weights 1. Bits per byte: bits and bytes. Of a stratum with a single item nothing
    is known, and nothing counted: `compare` then gives no verdict.
    """
    parts, rest, T = [], 0.0, len(strata)
    for d_SN, w_N in strata:
        S, n = d_SN.shape
        if n < 2:
            continue
        parts.append(Part(ratio_stderr(d_SN.mean(0), w_N) ** 2 / T**2, effective_number(w_N) - 1))
        if S > 1:
            e_SN = influences(d_SN, w_N)
            e_SN -= e_SN.mean(0)
            rest += (n - 1) / n * float((e_SN**2).sum()) / ((S - 1) * S * T**2)
    whole = add(parts)
    if isinf(whole.variance):
        return whole
    return replace(whole, variance=max(0.0, whole.variance - rest))


def bootstrap(strata: list[Stratum], tasks: bool = False, draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """Mean differences over strata, [draws], of resampled items; or of resampled strata (`tasks`), each as it is.

    Items, or clusters of them (`by_cluster`): within each stratum, with replacement, both arms answering the same
    (paired); averaged over seeds. Strata:
    the tasks as a sample of tasks there could be; what their items add is in the differences that are drawn.
    """
    rng, T = np.random.default_rng(seed), len(strata)
    if tasks:
        d_T = np.array([d_SN.mean(0).sum() / w_N.sum() for d_SN, w_N in strata])
        return d_T[rng.integers(0, T, (draws, T))].mean(1) if T > 1 else np.full(draws, np.nan)
    total = np.zeros(draws)
    for d_SN, w_N in strata:
        # equal items are drawn together: accuracies have few different outcomes, and tasks up to 40,000 items
        pairs, count = np.unique(np.stack([d_SN.mean(0), w_N], 1), axis=0, return_counts=True)
        times = rng.multinomial(len(w_N), count / len(w_N), draws)
        total += times @ pairs[:, 0] / (times @ pairs[:, 1])
    return total / T


def interval(draws: np.ndarray, n: float = inf) -> tuple[float, float]:
    """The 95 % interval of bootstrap draws.

    n: how many values were resampled, where they are few: resampling n values lacks a factor sqrt(1 - 1/n) of their
    spread and knows no Student's t, so the percentiles are taken further out (Hesterberg 2015, arXiv:1411.5279, the
    expanded percentile interval).
    """
    from scipy.special import ndtr, stdtrit

    out = LEVEL / 2 if isinf(n) or n < 2 else float(ndtr(stdtrit(n - 1, LEVEL / 2) * sqrt(n / (n - 1))))
    low, high = np.quantile(draws, [out, 1 - out])
    return float(low), float(high)


def quantile(alpha: float, seeds: Part, items: Part) -> float:
    """Half-width of the 1 - alpha interval of Banerjee (1960)."""
    from scipy.special import stdtrit  # the quantile of Student's t

    return sqrt(
        sum(float(stdtrit(part.dof, alpha / 2)) ** 2 * part.variance for part in (seeds, items) if part.variance)
    )


def compare(
    difference: float, seeds: Part | None, items: Part, replicated: bool = True, independent: int | None = None
) -> Comparison:
    """One comparison, before any correction for others; p is the level at which the interval just touches zero.

    Args:
        seeds: None when nothing is known about them; then p and threshold count the items alone, and are too small.
        independent: how many independent items the task with the fewest has (`independent_items`). Below FEWEST_ITEMS
            p is nan, and there is no verdict. None where it is not known.
    """
    from scipy.optimize import brentq

    known = seeds or Part(0.0, inf)
    threshold = quantile(LEVEL, known, items)
    size = abs(difference)
    low, high = 1e-15, 1 - 1e-12
    if size >= quantile(low, known, items):
        p = low
    elif size <= quantile(high, known, items):
        p = 1.0
    else:
        p = float(brentq(lambda alpha: quantile(alpha, known, items) - size, low, high, xtol=1e-16))
    if independent is not None and independent < FEWEST_ITEMS:
        p = nan
    replicated = replicated and seeds is not None
    return Comparison(difference, seeds, items, threshold, p, replicated=replicated, independent=independent)


def holm(p: list[float]) -> list[float]:
    """p-values adjusted for being several, in their order (Holm 1979). nan is not counted and stays."""
    order = [i for i in np.argsort(p, kind="stable") if not np.isnan(p[i])]
    adjusted, least = [float("nan")] * len(p), 0.0
    for rank, i in enumerate(order):
        least = max(least, min(1.0, (len(order) - rank) * p[i]))
        adjusted[i] = least
    return adjusted


def family(comparisons: dict[str, Comparison]) -> dict[str, Comparison]:
    """The same comparisons, each with its p-value after Holm's correction for all of them, and with the threshold that
    goes with it: of the level that Holm's step has, or the first step that fails."""
    adjusted = holm([c.p for c in comparisons.values()])
    counting = sum(p <= LEVEL for p in adjusted)
    tested = [arm for arm, c in comparisons.items() if not np.isnan(c.p)]
    rank = {arm: i for i, arm in enumerate(sorted(tested, key=lambda arm: comparisons[arm].p))}
    found = {}
    for (arm, c), p in zip(comparisons.items(), adjusted, strict=True):
        level = LEVEL / (len(tested) - min(rank[arm], counting)) if len(tested) > 1 and arm in rank else LEVEL
        least = quantile(level, c.seeds or Part(0.0, inf), c.items)
        found[arm] = replace(c, adjusted=p, threshold=least, family=max(1, len(tested)))
    return found


def seeds_to_decide(c: Comparison, arms: int, seeds: int, margin: float | None = None) -> int | None:
    """With how many seeds a study of `arms` arms would find a difference more than noise, or smaller than the margin,
    if the difference and the noise of one seed stay as they are; None where MOST_SEEDS would not do.

    seeds: from which the comparison was made.
    """
    if not c.seeds or not c.enough_items:
        return None
    level = LEVEL / max(1, arms - 1)
    for n in range(seeds + 1, MOST_SEEDS + 1):
        dof = 2 if arms == n == 2 else (arms - 1) * (n - 1)
        part = Part(c.seeds.variance * seeds / n, dof)
        size = abs(c.difference)
        if size > quantile(level, part, c.items):
            return n
        if margin is not None and size + quantile(2 * level, part, c.items) <= margin:
            return n
    return None


def verdict(
    comparison: Comparison, higher_is_better: bool, digits: int = 3, margin: float | None = None, unit: str = ""
) -> str:
    """In words: better or worse by how much and how many times the noise; equivalent within the margin, where there is
    one; within noise; not replicated; or no verdict, where a task has fewer than FEWEST_ITEMS independent items."""
    if not comparison.enough_items:
        return f"no verdict: {comparison.independent} independent item{'' if comparison.independent == 1 else 's'}"
    p = comparison.p if np.isnan(comparison.adjusted) else comparison.adjusted
    if not p <= LEVEL and comparison.equivalent(margin):
        return f"equivalent within {margin:g} {unit}".rstrip()
    if not p <= LEVEL:
        return "within noise"
    if not comparison.replicated:
        return "one seed: not replicated"
    word = "better" if (comparison.difference > 0) == higher_is_better else "worse"
    size = abs(comparison.difference)
    times = size / comparison.noise if comparison.noise else inf
    words = f"{word} by {size:.{digits}f} ({'∞' if isinf(times) else f'{times:.0f}'} × noise)"
    return f"{words}, less than the margin" if comparison.equivalent(margin) else words


def places(results: dict[str, float], counts: dict[tuple[str, str], bool], higher_is_better: bool) -> dict[str, str]:
    """{arm: "1" or "2-4"}: the places that an arm may have, counting only differences that are more than noise.

    counts: {(one, other): whether these two differ by more than noise}, of every pair once.
    """

    def beats(a: str, b: str) -> bool:
        return counts[(a, b) if (a, b) in counts else (b, a)] and (results[a] > results[b]) == higher_is_better

    found = {}
    for a in results:
        first = 1 + sum(beats(b, a) for b in results if b != a)
        last = len(results) - sum(beats(a, b) for b in results if b != a)
        found[a] = str(first) if first == last else f"{first}–{last}"
    return found


def power_law(points: list[tuple[float, float]]) -> dict[str, float] | None:
    """loss = scale x compute ** -exponent through the lower envelope, by least squares in logarithms; None where fewer
    than three points are on it. The envelope: what no point with less or equal compute undercuts."""
    best: list[tuple[float, float]] = []
    for x, y in sorted(points):
        if not best or y < best[-1][1]:
            best.append((x, y))
    if len(best) < 3:
        return None
    x, y = np.log(np.array(best)).T
    slope, intercept = np.polyfit(x, y, 1)
    return {"scale": float(np.exp(intercept)), "exponent": -float(slope), "points": len(best)}
