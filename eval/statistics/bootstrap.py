"""Bootstrap intervals of differences between arms, by resampling items or tasks."""

from math import inf, isinf, sqrt

import numpy as np

from eval.statistics.items import Stratum
from eval.statistics.parts import LEVEL

DRAWS = 4000  # of the bootstrap: the ends of a 95 % interval to some 3 % of its width


def bootstrap_differences(strata: list[Stratum], tasks: bool = False, draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """Draw bootstrap replicates of the difference between two arms. Returns an array [draws].

    The difference is the mean over tasks of sum(differences) / sum(weights). Items are resampled with replacement
    within each task. Both arms get the same items, and differences are averaged over seeds first.

    Args:
        strata: for each task the differences of the two arms on its items, or on clusters of items.
        tasks: whether to resample whole tasks instead of items. A single task then gives NaN only.
        draws: the number of replicates.
        seed: the seed of the random numbers.
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


def bootstrap_interval(draws: np.ndarray, n: float = inf) -> tuple[float, float]:
    """The 95 % percentile interval of bootstrap replicates, (low, high).

    Args:
        draws: the replicates, [draws].
        n: the number of resampled values, where it is small. Percentile intervals of few values are too narrow, so
            percentiles further out are taken (the expanded percentile interval, Hesterberg 2015, arXiv:1411.5279).
    """
    from scipy.special import ndtr, stdtrit

    out = LEVEL / 2 if isinf(n) or n < 2 else float(ndtr(stdtrit(n - 1, LEVEL / 2) * sqrt(n / (n - 1))))
    low, high = np.quantile(draws, [out, 1 - out])
    return float(low), float(high)
