"""The compute-optimal number of parameters as a power law of compute, fitted to training runs. These are the first two
approaches of Hoffmann et al. 2022: the envelope of training curves, and runs of equal compute (IsoFLOP). The third
approach, a parametric law of the loss, is in ablations/plan/law_fit.py."""

import itertools
import math
from collections.abc import Sequence

from ablations.plan.law_fit import Point, UndeterminedLaw


def fit_envelope(points: Sequence[Point], bins: int = 12) -> tuple[float, float]:
    """Fit N = coefficient x C^exponent, the compute-optimal number of parameters N for C FLOPs, by Hoffmann's approach
    1. It divides the compute into bins, and takes the size with the least loss in each bin.

    Args:
        points: the loss at several moments in the training of each size.
        bins: the number of bins, of equal width in log C. A bin is left out where its best size is the smallest or
            largest one in it.

    Returns:
        (coefficient, exponent).

    Raises:
        UndeterminedLaw: the remaining bins have fewer than three different best sizes.
    """
    import numpy as np

    logs = np.array([math.log(point.compute) for point in points])
    edges = np.linspace(logs.min(), logs.max() + 1e-9, bins + 1)
    best = []
    for low, high in itertools.pairwise(edges):
        inside = [point for point, log in zip(points, logs, strict=True) if low <= log < high]
        if not inside:
            continue
        winner = min(inside, key=lambda point: point.loss)
        # if the best size is the smallest or the largest of its bin, one that was not trained may be better still
        if min(point.n for point in inside) < winner.n < max(point.n for point in inside):
            best.append(winner)
    if len({point.n for point in best}) < 3:
        raise UndeterminedLaw(
            "fewer than three sizes are the best of others at some compute: more sizes, or longer runs"
        )
    slope, level = np.polyfit([math.log(p.compute) for p in best], [math.log(p.n) for p in best], 1)
    return float(math.exp(level)), float(slope)


def fit_isoflop(points: Sequence[Point], tolerance: float = 0.05) -> tuple[float, float]:
    """Fit N = coefficient x C^exponent, the compute-optimal number of parameters N for C FLOPs, by Hoffmann's approach
    2. It groups the runs by compute, fits a parabola to loss against log N in each group, and takes its minimum.

    Args:
        points: the finished runs. Groups with fewer than three sizes, or whose minimum is outside the range of their
            sizes, are left out.
        tolerance: the largest relative difference in FLOPs between a run and the run with the least compute of its
            group.

    Returns:
        (coefficient, exponent).

    Raises:
        UndeterminedLaw: fewer than two groups are left.
    """
    import numpy as np

    groups: list[list[Point]] = []
    for point in sorted(points, key=lambda point: point.compute):
        if groups and point.compute / groups[-1][0].compute < 1 + tolerance:
            groups[-1].append(point)
        else:
            groups.append([point])
    minima = []
    for group in groups:
        x = np.array([math.log(point.n) for point in group])
        if len(set(x)) < 3:
            continue
        curve, slope, _ = np.polyfit(x, [point.loss for point in group], 2)
        minimum = -slope / (2 * curve) if curve > 0 else math.inf
        if x.min() <= minimum <= x.max():
            minima.append((math.log(group[0].compute), minimum))
    if len(minima) < 2:
        raise UndeterminedLaw(
            "fewer than two groups of equal compute have a best size inside: more sizes on both sides"
        )
    slope, level = np.polyfit([c for c, _ in minima], [n for _, n in minima], 1)
    return float(math.exp(level)), float(slope)
