"""Section: training loss against tokens, FLOPs and hours, and its difference from the baseline."""

import numpy as np

from ablations import drawing
from ablations.drawing import Line
from eval.report.blocks import Figure, Section
from eval.report.curves import binned, curve, subtract
from eval.report.expense import spent
from eval.report.findings import Findings

AXES = ("tokens", "FLOPs", "hours")


def section(f: Findings) -> Section:
    return Section("Training", [*f.caution(), *map(Figure, loss_curves(f)), *map(Figure, paired_curves(f))])


def loss_curves(f: Findings) -> list[str]:
    """A figure for each of AXES: thin lines are seeds, thick ones their mean."""
    cells = f.cells_with("metrics")
    figures = []
    for axis in AXES:
        lines = []
        for arm, seeds in cells.items():
            factors = {seed: per_token(cell, axis) for seed, cell in seeds.items()}
            known = [factor for factor in factors.values() if factor]
            if len(known) < len(factors):
                continue
            x, means = binned({seed: curve(cell) for seed, cell in seeds.items()})
            for seed, mean in means.items():
                lines.append(Line(f"{arm}, seed {seed}", f.colour(arm), x * factors[seed], mean, "thin"))
            if len(x):
                mean_loss = np.mean(list(means.values()), axis=0)
                lines.append(Line(arm, f.colour(arm), x * float(np.mean(known)), mean_loss, f.line_style(arm)))
        units = {spent(cell)["unit"] for seeds in cells.values() for cell in seeds.values()}
        label = f"{'-'.join(sorted(units))}-hours" if axis == "hours" else f"training {axis}"
        figures.append(drawing.lines(f"Training loss against {axis}", lines, label, "nats per token", logx=True))
    return [figure for figure in figures if figure]


def per_token(cell: dict, axis: str) -> float | None:
    """The cost of a token on an axis: 1 token, FLOPs, or processor-hours. Hours are the run's mean, which smooths over
    pauses and resumes."""
    expense = spent(cell)
    total = expense[axis.lower()]
    return total / expense["tokens"] if total else None


def paired_curves(f: Findings) -> list[str]:
    """A figure of the difference in training loss between each arm and the baseline at the same seed."""
    cells = f.cells_with("metrics")
    if f.caution() or f.baseline not in cells:
        return []
    lines = []
    for arm, seeds in cells.items():
        differences = {
            seed: subtract(curve(cell), curve(cells[f.baseline][seed]))
            for seed, cell in seeds.items()
            if arm != f.baseline and seed in cells[f.baseline]
        }
        differences = {seed: difference for seed, difference in differences.items() if len(difference[0])}
        if not differences:
            continue
        x, means = binned(differences)
        lines += [Line(f"{arm}, seed {seed}", f.colour(arm), x, mean, "thin") for seed, mean in means.items()]
        if len(x):
            lines.append(Line(arm, f.colour(arm), x, np.mean(list(means.values()), axis=0), f.line_style(arm)))
    batches = ", same batches" if f.same_batches() else ""
    return [
        drawing.lines(
            f"Same seed{batches}: minus {f.baseline}",
            lines,
            "training tokens; below zero is better",
            "nats per token",
            True,
            zero=True,
            zoom=True,
        )
    ]
