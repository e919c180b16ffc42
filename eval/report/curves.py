"""Training curves made ready to draw: read from a run's log, averaged in common bins, and subtracted."""

from typing import Any

import numpy as np

BINS = 48  # equal in log tokens; one training batch is far noisier than the differences looked for

Curve = tuple[np.ndarray, np.ndarray]  # x, y


def curve(cell: dict[str, Any]) -> Curve:
    """Tokens and training loss, [lines of the log]."""
    rows = cell["metrics"]
    return np.array([row["tokens"] for row in rows]), np.array([row["loss"] for row in rows])


def binned(curves: dict[int, Curve]) -> tuple[np.ndarray, dict[int, np.ndarray]]:
    """Curves of one arm or of differences, averaged in common bins: tokens [bins], {seed: values [bins]}.

    Only steps that every curve has are used, so that all seeds are averaged over the same tokens.
    """
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


def subtract(a: Curve, b: Curve) -> Curve:
    """a - b at the tokens that both have."""
    subtrahend = dict(zip(*b, strict=True))
    common = [(t, loss - subtrahend[t]) for t, loss in zip(*a, strict=True) if t in subtrahend]
    return np.array([t for t, _ in common]), np.array([loss for _, loss in common])
