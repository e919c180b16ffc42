"""Training curves for figures: read from the log of a run, averaged in bins, and subtracted."""

from typing import Any

import numpy as np

from eval.report.reading.runs import budget_seconds

GRID_POINTS = 200  # points in time, equally far apart, at which a run is read whose budget is a wall clock
BINS = 48  # equal in log tokens; one training batch is far noisier than the differences looked for

Curve = tuple[np.ndarray, np.ndarray]  # x, y


def loss_curve(cell: dict[str, Any], clock: bool = False) -> Curve:
    """The training loss of a run: (tokens trained so far, loss), arrays [lines of the log]. `cell`: the content of the
    run directory.

    With `clock`, for runs with a wall-clock budget: (seconds of training, loss), arrays [points in time]. Such runs are
    logged at different times. Their losses are therefore interpolated linearly, at times that are the same for all runs
    of one budget.
    """
    rows = cell["metrics"]
    loss = np.array([row["loss"] for row in rows])
    if not clock:
        return np.array([row["tokens"] for row in rows]), loss
    seconds = np.array([row["seconds"] for row in rows])
    budget = budget_seconds(cell)
    assert budget is not None, "a curve over seconds is for runs whose budget is a wall clock"
    times = np.round(np.linspace(0, budget, GRID_POINTS + 1)[1:], 9)
    times = times[(times >= seconds[0]) & (times <= seconds[-1])]
    return times, np.interp(times, seconds, loss)


def average_in_bins(curves: dict[int, Curve]) -> tuple[np.ndarray, dict[int, np.ndarray]]:
    """Average the curves of one arm in bins: (tokens or seconds [bins], {seed: mean value [bins]}). Only points that
    every curve has are used, so that all seeds are averaged over the same points. `curves`: {seed: curve}, of losses or
    of differences of losses."""
    common = np.array(sorted(set.intersection(*(set(tokens) for tokens, _ in curves.values()))))
    if not len(common):
        return common, {seed: common for seed in curves}
    position = np.log(common / common[0]) / (np.log(common[-1] / common[0]) or 1.0)
    bins = np.minimum(position * BINS, BINS - 1).astype(int)
    used = np.unique(bins)
    values = {seed: dict(zip(tokens, loss, strict=True)) for seed, (tokens, loss) in curves.items()}
    means = {
        seed: np.array([np.mean([row[t] for t in common[bins == b]]) for b in used]) for seed, row in values.items()
    }
    return np.array([common[bins == b].mean() for b in used]), means


def subtract_curves(a: Curve, b: Curve) -> Curve:
    """The difference of two curves, a - b, at the tokens or seconds that both have."""
    subtrahend = dict(zip(*b, strict=True))
    common = [(t, loss - subtrahend[t]) for t, loss in zip(*a, strict=True) if t in subtrahend]
    return np.array([t for t, _ in common]), np.array([loss for _, loss in common])
