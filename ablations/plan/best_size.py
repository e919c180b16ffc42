"""The number of parameters with the least loss at each amount of compute, fitted to runs by the first two approaches of
Hoffmann et al. 2022: the envelope of training curves, and runs of equal compute (IsoFLOP). Their third approach is in
ablations/plan/law_fit.py."""

import math
from collections.abc import Sequence

from ablations.plan.law_fit import Point, UndeterminedLaw


def envelope(points: Sequence[Point], bins: int = 12) -> tuple[float, float]:
    """Fit N = coefficient x C^exponent, the best number of parameters N for C FLOPs, by Hoffmann's approach 1: the size
    with the least loss in each range of compute, from the training curves of several sizes.

    Args:
        points: parameters, tokens and loss at several moments of the training of each size.
        bins: the number of ranges into which the compute of the points is divided, of equal width in log C. A range
            whose best size is its smallest or largest is left out.

    Returns:
        (coefficient, exponent).

    Raises:
        UndeterminedLaw: the ranges that are left have fewer than three different best sizes.
    """
    import numpy as np

    logs = np.array([math.log(point.compute) for point in points])
    edges = np.linspace(logs.min(), logs.max() + 1e-9, bins + 1)
    best = []
    for low, high in zip(edges, edges[1:], strict=False):
        inside = [point for point, log in zip(points, logs, strict=True) if low <= log < high]
        if not inside:
            continue
        winner = min(inside, key=lambda point: point.loss)
        # beside the smallest and the largest size of a bin there may be a better one that was not trained so far
        if min(point.n for point in inside) < winner.n < max(point.n for point in inside):
            best.append(winner)
    if len({point.n for point in best}) < 3:
        raise UndeterminedLaw(
            "fewer than three sizes are the best of others at some compute: more sizes, or longer runs"
        )
    slope, level = np.polyfit([math.log(p.compute) for p in best], [math.log(p.n) for p in best], 1)
    return float(math.exp(level)), float(slope)


def isoflop(points: Sequence[Point], tolerance: float = 0.05) -> tuple[float, float]:
    """Fit N = coefficient x C^exponent, the best number of parameters N for C FLOPs, by Hoffmann's approach 2: the
    minimum of a parabola of the loss in log N, for each group of runs with equal compute.

    Args:
        points: the finished runs. Groups with fewer than three sizes, or without a minimum between their sizes, are
            left out.
        tolerance: the relative difference in FLOPs from the least of a group, below which a run counts as one of the
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
        middle = -slope / (2 * curve) if curve > 0 else math.inf
        if x.min() <= middle <= x.max():
            minima.append((math.log(group[0].compute), middle))
    if len(minima) < 2:
        raise UndeterminedLaw(
            "fewer than two groups of equal compute have a best size inside: more sizes on both sides"
        )
    slope, level = np.polyfit([c for c, _ in minima], [n for _, n in minima], 1)
    return float(math.exp(level)), float(slope)
