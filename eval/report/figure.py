"""Curves of a report made ready to draw: averaged in common bins, and subtracted. Drawing itself: ablations/drawing.py,
which the plan uses too."""

import numpy as np

from ablations.drawing import SERIES, STYLE, Line, ending, forest, heat, lines, scale, sheet, signed, ticks, wide

__all__ = ["SERIES", "STYLE", "Line", "binned", "ending", "forest", "heat", "lines"]
__all__ += ["scale", "sheet", "signed", "subtract", "ticks", "wide"]

BINS = 48  # equal in log tokens; one training batch is far noisier than the differences looked for

Curve = tuple[np.ndarray, np.ndarray]  # x, y


def binned(curves: dict[int, Curve]) -> tuple[np.ndarray, dict[int, np.ndarray]]:
    """Curves of one arm or of differences, averaged in common bins: tokens [bins], {seed: values [bins]}.

    Only steps that every curve has are used, so that all seeds are averaged over the same tokens.
    """
    common = np.array(sorted(set.intersection(*(set(tokens) for tokens, _ in curves.values()))))
    if not len(common):
        return common, {seed: common for seed in curves}
    position = np.log(common / common[0]) / (np.log(common[-1] / common[0]) or 1.0)
    bins = np.minimum(position * BINS, BINS - 1).astype(int)
    kept = np.unique(bins)
    values = {seed: dict(zip(tokens, loss, strict=True)) for seed, (tokens, loss) in curves.items()}
    means = {
        seed: np.array([np.mean([row[t] for t in common[bins == b]]) for b in kept]) for seed, row in values.items()
    }
    return np.array([common[bins == b].mean() for b in kept]), means


def subtract(a: Curve, b: Curve) -> Curve:
    """a - b at the tokens that both have."""
    other = dict(zip(*b, strict=True))
    common = [(t, loss - other[t]) for t, loss in zip(*a, strict=True) if t in other]
    return np.array([t for t, _ in common]), np.array([loss for _, loss in common])
