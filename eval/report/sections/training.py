"""Section: training loss against tokens, FLOPs and time, and its difference from the baseline."""

from typing import Any

import numpy as np

from ablations import drawing
from ablations.document.blocks import Figure, Section
from ablations.drawing import Line
from eval.report.comparison.findings import Findings
from eval.report.reading.curves import average_in_bins, loss_curve, subtract_curves
from eval.report.reading.expense import cost_so_far
from eval.report.reading.runs import budget_seconds

AXES = ("tokens", "FLOPs", "hours")
AXES_BY_CLOCK = ("seconds", "tokens", "FLOPs")  # where the budget of all runs is a wall clock


def training_section(findings: Findings) -> Section:
    return Section(
        "Training",
        [*findings.warning_on_losses(), *map(Figure, loss_curves(findings)), *map(Figure, paired_curves(findings))],
    )


def loss_curves(findings: Findings) -> list[str]:
    """Figures (SVG) of the training loss of all arms, one for each axis in AXES (AXES_BY_CLOCK for wall-clock budgets).
    Thin lines are seeds, thick lines their mean. An arm whose cost is unknown on an axis is left out of the figure."""
    cells = findings.cells_with_entry("metrics")
    clock = all_by_clock(cells)
    figures = []
    for axis in AXES_BY_CLOCK if clock else AXES:
        lines = []
        for arm, seeds in cells.items():
            factors = {seed: cost_per_token_or_second(cell, axis, clock) for seed, cell in seeds.items()}
            known = [factor for factor in factors.values() if factor]
            if len(known) < len(factors):
                continue
            x, means = average_in_bins({seed: loss_curve(cell, clock) for seed, cell in seeds.items()})
            for seed, mean in means.items():
                lines.append(Line(f"{arm}, seed {seed}", findings.colour(arm), x * factors[seed], mean, "thin"))
            if len(x):
                mean_loss = np.mean(list(means.values()), axis=0)
                lines.append(
                    Line(arm, findings.colour(arm), x * float(np.mean(known)), mean_loss, findings.line_style(arm))
                )
        units = {cost_so_far(cell)["unit"] for seeds in cells.values() for cell in seeds.values()}
        label = f"{'-'.join(sorted(units))}-hours" if axis == "hours" else f"training {axis}"
        label = "seconds of training" if axis == "seconds" else label
        figures.append(drawing.line_plot(f"Training loss against {axis}", lines, label, "nats per token", logx=True))
    return [figure for figure in figures if figure]


def all_by_clock(cells: dict[str, dict[int, dict[str, Any]]]) -> bool:
    """Whether the budget of all runs is a wall clock. `cells`: {arm: {seed: content of the run directory}}."""
    return all(budget_seconds(cell) for seeds in cells.values() for cell in seeds.values())


def cost_per_token_or_second(cell: dict[str, Any], axis: str, clock: bool) -> float | None:
    """The mean cost of a training token of a run, or with `clock` of a second of training; None where it is unknown.
    `cell`: the content of the run directory; `axis`: the unit of the cost, "tokens", "seconds", "FLOPs" or "hours" (of
    all processors)."""
    expense = cost_so_far(cell)
    total, units = expense[axis.lower()], expense["seconds" if clock else "tokens"]
    return total / units if total and units else None


def paired_curves(findings: Findings) -> list[str]:
    """A list with one figure (SVG): the training loss of each arm minus that of the baseline at the same seed. [] where
    training losses cannot be compared, or the baseline has none."""
    cells = findings.cells_with_entry("metrics")
    if findings.warning_on_losses() or findings.baseline not in cells:
        return []
    clock = all_by_clock(cells)
    lines = []
    for arm, seeds in cells.items():
        differences = {
            seed: subtract_curves(loss_curve(cell, clock), loss_curve(cells[findings.baseline][seed], clock))
            for seed, cell in seeds.items()
            if arm != findings.baseline and seed in cells[findings.baseline]
        }
        differences = {seed: difference for seed, difference in differences.items() if len(difference[0])}
        if not differences:
            continue
        x, means = average_in_bins(differences)
        lines += [Line(f"{arm}, seed {seed}", findings.colour(arm), x, mean, "thin") for seed, mean in means.items()]
        if len(x):
            lines.append(
                Line(arm, findings.colour(arm), x, np.mean(list(means.values()), axis=0), findings.line_style(arm))
            )
    batches = ", same batches" if findings.same_batches() and not clock else ""
    unit = "seconds of training" if clock else "training tokens"
    return [
        drawing.line_plot(
            f"Same seed{batches}: minus the baseline",
            lines,
            f"{unit}; below zero is better",
            "nats per token",
            True,
            zero=True,
            zoom=True,
        )
    ]
