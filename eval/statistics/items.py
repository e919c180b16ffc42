"""The noise of items: evaluation items are a sample, and another sample would give another result.

Items of the same passage or document are not independent. They are summed into one cluster, which counts as one item.
Both arms answer the same items, so the noise is the variance of the per-item differences (Miller 2024,
arXiv:2411.00640). Several tasks may be made from the same documents. The influences of a document on all tasks are then
summed before they are squared.

The variance is estimated by the jackknife. It has n - 1 degrees of freedom for n items of equal size, and fewer where
sizes differ (Kish's effective number). Of null studies, in which no arms differ, 1 to 5.5 % then have a wrong verdict,
with 2 to 50 documents. This holds for equal and unequal sizes, and for differences with the tails of Student's t with 3
degrees of freedom. The linearised variance with n - 1 degrees of freedom is worse. It gives 14 % for 5 documents of
log-normal sizes (sigma 1), 10 % for 20 and 8 % for 50 (20,000 and 40,000 simulated studies of each kind).

From a single document the noise cannot be estimated. With two documents, a difference of five times the noise is
detected in three studies of ten. So there is no decision below FEWEST_ITEMS.

Seeds and items together are a mixed model with crossed random effects: difference[seed, item] = mean + seed + item +
residual. The residual contains the interaction of seed and item. Where every seed has every item, the variance of the
mean is the mean square between seeds, plus the one between items, minus the residual mean square, which is in both
(Cornfield & Tukey 1956, Ann. Math. Stat. 27; the F'' of Clark 1973). The residual is subtracted from one of the two,
and neither may fall below zero.

The residual must not always be subtracted from the mean square between items. With three or four groups of items the
result may be below zero by chance. It then counts as zero, although the items do give noise. With 3 groups as noisy as
the residual, 18 % of null studies of 6 arms with 5 seeds had a wrong verdict, and 7 % of studies of 2 arms. So the
residual is subtracted where this leaves the wider interval (`noise_parts`). Then at most 5 % have a wrong verdict
(docs/statistics.md, "Few groups of items").
"""

from collections.abc import Sequence
from dataclasses import replace
from math import inf, isfinite, isinf, nan, sqrt
from typing import NamedTuple

import numpy as np

from eval.statistics.parts import LEVEL, Variance, interval_half_width, sum_of_variances

LN2 = float(np.log(2))
SINGLE_ITEM_PREFIX = "item "  # begins the name of a cluster that is a single item
FEWEST_ITEMS = 3  # independent items (or clusters of them) of a task that can tell its noise: see the head of this file


class Stratum(NamedTuple):
    """The results of one task by seed and item: differences between two arms, or the values of a single run. The result
    of a seed on this task is sum(differences) / sum(weights).

    The items are assumed to be independent: `stratum_of_clusters` first sums the items of a passage or document. Two
    strata may have clusters in common, where their tasks are made from the same held-out text.
    """

    differences: np.ndarray  # [seeds, items]
    weights: np.ndarray  # [items]
    clusters: tuple[str, ...] = ()  # the name of each item's cluster; empty: no other stratum has one of them


def stratum_of_clusters(d_SN: np.ndarray, w_N: np.ndarray, clusters: Sequence[str]) -> Stratum:
    """Build the stratum of a task by summing its items within clusters. Where every item is a cluster of its own, the
    items stay as they are.

    This makes the standard error of a ratio of sums cluster-robust (Liang & Zeger 1986, Biometrika 73; Cochran 1977,
    section 9.7), and resampling a cluster bootstrap (Davison & Hinkley 1997, Bootstrap Methods, section 3.8).

    Args:
        d_SN: results or differences, [seeds, items].
        w_N: the weights of the items.
        clusters: the name of each item's cluster.
    """
    names, index = np.unique(np.asarray(clusters, dtype=object), return_inverse=True)
    if len(names) == len(w_N):
        return Stratum(d_SN, w_N, tuple(clusters))
    sums_SC = np.stack([np.bincount(index, row, minlength=len(names)) for row in d_SN])
    return Stratum(sums_SC, np.bincount(index, w_N, minlength=len(names)), tuple(names))


def independent_items(strata: list[Stratum]) -> int | None:
    """The number of independent items in the stratum (task) with the fewest; None where there is no stratum."""
    return min((len(stratum.weights) for stratum in strata), default=None)


def effective_number_of_items(weights: np.ndarray) -> float:
    """Kish's effective number of items, sum(w)**2 / sum(w**2) (Kish 1965, Survey Sampling, section 11.2): the number of
    items of equal weight that would estimate the variance equally well. `weights`: the weights of the items."""
    w = np.asarray(weights, float)
    return float(w.sum() ** 2 / (w**2).sum())


def finite_or_none(error: float) -> float | None:
    """The standard error; None where it is NaN or infinite, which JSON cannot represent."""
    return error if isfinite(error) else None


def ratio_stderr(numerators: np.ndarray, denominators: np.ndarray) -> float:
    """The standard error of the ratio sum(numerators) / sum(denominators) over independent items, by the jackknife. NaN
    for fewer than two items.

    Without item i the ratio r changes by -(a_i - r b_i) / (sum(b) - b_i), with numerators a and denominators b. With
    equal denominators this is the standard error of the mean. The linearised error (Cochran 1977, Sampling Techniques,
    section 6.3) divides by sum(b) alone, and is too small where a few items are large.
    """
    n, a, b = len(numerators), np.asarray(numerators, float), np.asarray(denominators, float)
    if n < 2:
        return nan
    return float(sqrt((n - 1) / n * (jackknife_influences(a, b) ** 2).sum()))


def jackknife_influences(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The change of the ratio sum(a) / sum(b) that each item makes, [..., items]: the ratio with the item minus the
    ratio without it. Infinite for an item that makes up all of sum(b).

    Args:
        a: numerators, [..., items].
        b: denominators, [items].
    """
    total = b.sum()
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.nan_to_num((a - a.sum(-1, keepdims=True) / total * b) / (total - b), nan=inf, posinf=inf, neginf=-inf)


def item_variance(strata: list[Stratum]) -> Variance:
    """The variance from the items of the difference between two arms, without the interaction of seeds and items. The
    interaction is part of the variance from the seeds.

    The difference is the mean over tasks of sum(differences) / sum(weights). A task with a single item contributes
    nothing, since its variance is unknown. `strata`: the differences on the items of each task.
    """
    whole, interaction = item_variance_with_interaction(strata)
    if isinf(whole.variance):
        return whole
    return replace(whole, variance=max(0.0, whole.variance - interaction))


def stderr_over_tasks(strata: list[Stratum]) -> float:
    """The standard error of a run's mean over tasks of sum(results) / sum(weights). The jackknife leaves out a cluster
    from all its tasks at once. Infinite where a cluster makes up a whole task. NaN where there is no task, or a task
    has fewer than two clusters. `strata`: the results of each task, [1, items or clusters]."""
    if not strata or any(len(stratum.weights) < 2 for stratum in strata):
        return nan
    return sqrt(item_variance(strata).variance)


def item_variance_with_interaction(strata: list[Stratum]) -> tuple[Variance, float]:
    """The variance from the items of the difference between two arms, with the interaction of seeds and items. Returns
    (this variance, the part of it that is the interaction).

    The difference is the mean over tasks of sum(differences) / sum(weights). `strata`: the differences on the items of
    each task.
    """
    parts, interaction = [], 0.0
    for together in strata_with_common_clusters([stratum for stratum in strata if len(stratum.weights) > 1]):
        influences_SN, weights_N = influences_by_cluster(together, len(strata))
        S, n = influences_SN.shape
        whole = (n - 1) / n * float((influences_SN.mean(0) ** 2).sum())
        parts.append(Variance(whole, effective_number_of_items(weights_N) - 1))
        if S > 1:
            interaction += (n - 1) / n * float(((influences_SN - influences_SN.mean(0)) ** 2).sum()) / ((S - 1) * S)
    return sum_of_variances(parts), interaction


def shareable_cluster_names(stratum: Stratum) -> set[str]:
    """The names of a stratum's clusters that may also occur in other strata: documents and passages. Left out are
    single items, whose names begin with SINGLE_ITEM_PREFIX and mean something in their own task only."""
    return {name for name in stratum.clusters if not name.startswith(SINGLE_ITEM_PREFIX)}


def strata_with_common_clusters(strata: list[Stratum]) -> list[list[Stratum]]:
    """Group the strata that have clusters in common. Strata of different groups have no cluster in common."""
    groups: list[tuple[set[str], list[Stratum]]] = []  # (the names in a group, its strata)
    for stratum in strata:
        names, together, others = shareable_cluster_names(stratum), [stratum], []
        for group in groups:
            if names & group[0]:
                names, together = names | group[0], group[1] + together
            else:
                others.append(group)
        groups = [*others, (names, together)]
    return [together for _, together in groups]


def influences_by_cluster(strata: list[Stratum], tasks: int) -> tuple[np.ndarray, np.ndarray]:
    """The influence and the weight of each cluster on the mean over tasks: (influences [seeds, clusters], weights
    [clusters]). A cluster of several strata is one column. Its weight is the sum of its shares of their weights.

    Args:
        strata: the strata whose clusters are counted.
        tasks: the number of tasks in the mean, which may be more than the number of `strata`.
    """
    columns: dict[object, int] = {}
    places = []
    for number, stratum in enumerate(strata):
        shared = shareable_cluster_names(stratum)
        names = stratum.clusters or [""] * len(stratum.weights)
        keys = [name if name in shared else (number, i) for i, name in enumerate(names)]
        places.append([columns.setdefault(key, len(columns)) for key in keys])
    seeds = len(strata[0].differences)
    influences_SN, weights_N = np.zeros((seeds, len(columns))), np.zeros(len(columns))
    for stratum, place in zip(strata, places, strict=True):
        np.add.at(influences_SN.T, place, jackknife_influences(stratum.differences, stratum.weights).T / tasks)
        np.add.at(weights_N, place, stratum.weights / stratum.weights.sum())
    return influences_SN, weights_N


class NoiseParts(NamedTuple):
    """The noise of a difference from its seeds and its items, for its verdict and for planning further studies."""

    seeds: Variance | None  # None: unknown
    items: Variance
    planned: tuple[Variance, Variance] | None  # (of seeds, of items); None: as for the verdict
    items_alone: Variance  # without what single seeds do to single items, which more seeds average out


def noise_parts(seeds: Variance | None, strata: list[Stratum], factor: float = 1.0, level: float = LEVEL) -> NoiseParts:
    """Divide the noise of a difference into the part from the seeds and the part from the items. Both estimates contain
    the interaction of seeds and items. It is subtracted from the one that leaves the wider interval, so that it counts
    once.

    The variances for planning are more cautious. The variance from the seeds keeps the interaction. The variance from
    the items is without it only if the verdict uses that estimate and it is above zero.

    Args:
        seeds: the variance of the difference from the seeds, the interaction included; None where it is unknown.
        strata: the differences on the items of each task.
        factor: the factor by which `seeds` was multiplied; the variance from the items is multiplied by it too.
        level: the significance level of the intervals that are compared; above 0.
    """
    whole, interaction = item_variance_with_interaction(strata)
    whole, interaction = replace(whole, variance=factor * whole.variance), factor * interaction
    alone = item_variance(strata)
    items = replace(alone, variance=factor * alone.variance)
    if seeds is None or isinf(whole.variance):
        return NoiseParts(seeds, items, None, items)
    with_seeds = (seeds, items)
    with_items = (replace(seeds, variance=max(0.0, seeds.variance - interaction)), whole)
    verdict = max(with_seeds, with_items, key=lambda parts: interval_half_width(level, *parts))
    planned = (seeds, items if verdict is with_seeds and items.variance else whole)
    return NoiseParts(*verdict, planned, items)
