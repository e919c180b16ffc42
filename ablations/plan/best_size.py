"""The best size at each amount of compute, fitted to runs by the first two approaches of Hoffmann et al. 2022: the
envelope of training curves, and runs of equal compute (IsoFLOP). Their third approach is the law of
ablations/plan/law_fit.py."""

import math
from collections.abc import Sequence

from ablations.plan.law_fit import Point, UndeterminedLaw


def envelope(points: Sequence[Point], bins: int = 12) -> tuple[float, float]:
    """Hoffmann's approach 1: from the training curves of several sizes, find the size with the least loss at each
    amount of compute.

    Args:
        points: moments of the training of several sizes.
        bins: how many amounts of compute are compared.

    Returns:
        (coefficient, exponent) of N = coefficient x C^exponent, the best number of parameters for C FLOPs.

    Raises:
        UndeterminedLaw: fewer than three sizes are the best anywhere.
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
    """Hoffmann's approach 2: for each group of runs with equal compute, find the minimum of a parabola of the loss in
    log N.

    Args:
        points: the runs.
        tolerance: the relative difference in compute up to which runs are of one group.

    Returns:
        (coefficient, exponent) of N = coefficient x C^exponent, the best number of parameters for C FLOPs.

    Raises:
        UndeterminedLaw: fewer than two groups of equal compute have a minimum between their sizes.
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
