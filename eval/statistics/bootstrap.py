"""Intervals from resampled items and tasks."""

from math import inf, isinf, sqrt

import numpy as np

from eval.statistics.items import Stratum
from eval.statistics.parts import LEVEL

DRAWS = 4000  # of the bootstrap: the ends of a 95 % interval to some 3 % of its width


def bootstrap(strata: list[Stratum], tasks: bool = False, draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """Bootstrap draws of the difference of two arms, an array [draws]. The difference is the mean over strata (tasks)
    of sum(differences) / sum(weights).

    Items, or clusters of items (`stratum_of_clusters`), are resampled with replacement within each stratum. Both arms
    get the same items (paired), and differences are averaged over seeds. With `tasks` whole strata are resampled
    instead, as a sample from a population of tasks; the noise of their items is contained in the resampled differences.
    With `tasks` and a single stratum all draws are NaN. `strata`: for each task the differences of two arms, [seeds,
    items], and the weights of the items; `draws`: how many; `seed`: of the random numbers.
    """
    rng, T = np.random.default_rng(seed), len(strata)
    if tasks:
        d_T = np.array([d_SN.mean(0).sum() / w_N.sum() for d_SN, w_N, *_ in strata])
        return d_T[rng.integers(0, T, (draws, T))].mean(1) if T > 1 else np.full(draws, np.nan)
    total = np.zeros(draws)
    for d_SN, w_N, *_ in strata:
        # equal items are drawn together: accuracies have few different outcomes, and tasks up to 40,000 items
        pairs, count = np.unique(np.stack([d_SN.mean(0), w_N], 1), axis=0, return_counts=True)
        times = rng.multinomial(len(w_N), count / len(w_N), draws)
        total += times @ pairs[:, 0] / (times @ pairs[:, 1])
    return total / T


def interval(draws: np.ndarray, n: float = inf) -> tuple[float, float]:
    """The 95 % interval of bootstrap draws, (low, high).

    Args:
        draws: the draws, [draws].
        n: how many values were resampled, where they are few: resampling n values lacks a factor sqrt(1 - 1/n) of their
            spread and ignores Student's t, so the percentiles are taken further out (Hesterberg 2015, arXiv:1411.5279,
            the expanded percentile interval).
    """
    from scipy.special import ndtr, stdtrit

    out = LEVEL / 2 if isinf(n) or n < 2 else float(ndtr(stdtrit(n - 1, LEVEL / 2) * sqrt(n / (n - 1))))
    low, high = np.quantile(draws, [out, 1 - out])
    return float(low), float(high)
