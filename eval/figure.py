"""The figure of a report: loss curves, their paired differences, the held-out result. matplotlib and nothing
else."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np

# Okabe and Ito's colours, told apart under every common colour blindness; the baseline is black.
COLOURS = ["#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]
BINS = 48  # equal in log tokens; one training batch is far noisier than the differences looked for

Curve = tuple[np.ndarray, np.ndarray]  # tokens, loss


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
    means = {seed: np.array([np.mean([row[t] for t in common[bins == b]]) for b in kept])
             for seed, row in values.items()}  # fmt: skip
    return np.array([common[bins == b].mean() for b in kept]), means


def draw(
    title: str,
    curves: dict[str, dict[int, Curve]],
    held_out: dict[str, dict[int, float]],
    noise: dict[str, float],
    paths: list[Path],
) -> None:
    """Draws to .png and .svg files, the same bytes every time.

    Args:
        curves: {arm: {seed: (tokens, training loss in nats per token)}}, the baseline first.
        held_out: {arm: {seed: bits per byte}}.
        noise: {arm: standard error of its difference from the baseline, bits per byte}.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    style: dict[Any, Any] = {
        "font.size": 9, "axes.titlesize": 9, "axes.labelsize": 9, "axes.titlelocation": "left",
        "axes.spines.top": False, "axes.spines.right": False, "savefig.dpi": 150,
        "svg.hashsalt": "megahour",  # else the ids in an SVG are random
    }  # fmt: skip
    with plt.rc_context(style), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        fig = plt.figure(figsize=(9, 5.6), layout="constrained")
        grid = fig.add_gridspec(2, 2, width_ratios=[2.4, 1], height_ratios=[1.6, 1])
        top = fig.add_subplot(grid[0, 0])
        below = fig.add_subplot(grid[1, 0], sharex=top)
        right = fig.add_subplot(grid[:, 1])
        colour = {arm: COLOURS[i % len(COLOURS)] for i, arm in enumerate(held_out)}
        baseline = next(iter(held_out))
        fig.suptitle(title, x=0.01, ha="left", fontsize=10, fontweight="bold")

        lines(top, {arm: seeds for arm, seeds in curves.items() if seeds}, colour)
        top.set(xscale="log", ylabel="training loss (nats/token)")
        top.set_title("Training loss: mean over seeds, seeds thin")
        top.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        top.xaxis.set_major_formatter(FuncFormatter(lambda tokens, _: human(tokens)))
        top.xaxis.set_minor_locator(NullLocator())
        top.tick_params(labelbottom=False)

        paired = {arm: {seed: (t, loss) for seed in seeds if seed in curves.get(baseline, {})
                        for t, loss in [subtract(seeds[seed], curves[baseline][seed])] if len(t)}
                  for arm, seeds in curves.items() if arm != baseline}  # fmt: skip
        below.axhline(0, color=colour[baseline], lw=1)
        lines(below, {arm: seeds for arm, seeds in paired.items() if seeds}, colour, zoom=True)
        below.set(xlabel="training tokens", ylabel="difference (nats/token)",
                  title=f"Same seed, same batches: arm minus {baseline}; below zero is better")

        for x, (arm, row) in enumerate(held_out.items()):
            for seed, value in sorted(row.items()):
                right.plot(x, value, "o", ms=4, mfc="none", color=colour[arm])
                if arm != baseline and seed in held_out[baseline]:
                    right.plot([0, x], [held_out[baseline][seed], value], color="0.85", lw=0.8, zorder=0)
            if row:
                mean = float(np.mean(list(row.values())))
                right.plot([x - 0.22, x + 0.22], [mean, mean], color=colour[arm], lw=2)
                if arm in noise:
                    right.errorbar(x + 0.3, mean, noise[arm], color=colour[arm], capsize=3, lw=1)
        right.set(xlim=(-0.6, len(held_out) - 0.3), ylabel="held-out loss (bits/byte)",
                  title="Held-out text: seeds, mean;\nbar: ± noise of the difference")
        right.set_xticks(range(len(held_out)), [arm.replace("=", "=\n") for arm in held_out])
        right.margins(y=0.12)
        for path in paths:
            metadata = {"Date": None} if path.suffix == ".svg" else {"Software": None}
            fig.savefig(path, metadata=metadata)
        plt.close(fig)


def human(tokens: float) -> str:
    """200000 -> "200K"."""
    for scale, suffix in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if tokens >= scale:
            return f"{tokens / scale:g}{suffix}"
    return f"{tokens:g}"


def subtract(a: Curve, b: Curve) -> Curve:
    """a - b at the tokens that both have."""
    other = dict(zip(*b, strict=True))
    common = [(t, loss - other[t]) for t, loss in zip(*a, strict=True) if t in other]
    return np.array([t for t, _ in common]), np.array([loss for _, loss in common])


def lines(axes: Any, arms: dict[str, dict[int, Curve]], colour: dict[str, str], zoom: bool = False) -> None:
    """Seeds thin, their mean thick, the arm's name at its end. zoom: limits from the later half of the
    curves."""
    ends: list[list] = []
    later: list[np.ndarray] = []
    for arm, seeds in arms.items():
        tokens, values = binned(seeds)
        if not len(tokens):
            continue
        for value in values.values():
            axes.plot(tokens, value, color=colour[arm], lw=0.6, alpha=0.4)
        mean = np.mean(list(values.values()), axis=0)
        axes.plot(tokens, mean, color=colour[arm], lw=1.6)
        ends.append([mean[-1], arm, tokens[-1]])
        later += [value[len(value) // 2 :] for value in values.values()]
    if zoom and later:
        flat = np.concatenate([*later, [0.0]])
        room = 0.15 * float(np.ptp(flat)) or 1.0
        axes.set_ylim(flat.min() - room, flat.max() + room)
    low, high = axes.get_ylim()
    least, last = 0.09 * (high - low), -np.inf  # labels that would cover each other move apart
    for y, arm, x in sorted(ends):
        last = max(y, last + least)
        axes.annotate(arm, (x, y), xytext=(1.02, (last - low) / (high - low)), textcoords="axes fraction",
                      color=colour[arm], va="center", annotation_clip=False)
