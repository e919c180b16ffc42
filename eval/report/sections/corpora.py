"""Section: bits per byte on each corpus of the models trained on each corpus, with the noise."""

from math import inf

import numpy as np

from ablations import drawing
from ablations.document.blocks import Figure, Section, Table, plus_minus
from eval.report.comparison.comparable import tasks_of_any_run
from eval.report.comparison.findings import Findings
from eval.report.sections.tasks import standard_error
from eval.statistics.parts import Variance
from eval.statistics.seeds import Results, arm_mean_stderr


def corpora_section(findings: Findings) -> Section:
    title = "Trained on, evaluated on"
    evaluated = findings.cells_with_entry("eval")
    tasks = tasks_of_any_run(
        findings.cells, [(arm, seed) for arm, seeds in evaluated.items() for seed in seeds], "bits/byte"
    )
    arms = [
        arm
        for arm, seeds in evaluated.items()
        if all(task in cell["eval"]["tasks"] for cell in seeds.values() for task in tasks)
    ]
    if len(tasks) < 2 or len(arms) < 2:
        return Section(title, [])
    values = {}  # {(arm, task): (mean, standard error)}
    for task in tasks:
        results: Results = {
            arm: {seed: cell["eval"]["tasks"][task]["value"] for seed, cell in evaluated[arm].items()} for arm in arms
        }
        for arm in arms:
            of_items = Variance(standard_error(findings, arm, sorted(results[arm]), task) ** 2, inf)
            error = arm_mean_stderr(results, arm, of_items)
            values[arm, task] = (float(np.mean(list(results[arm].values()))), error)
    lines, colours = [], []
    for arm in arms:
        lines.append([arm, *(plus_minus(*values[arm, task], 3) for task in tasks)])
        row: list[tuple[str, float, str] | None] = []
        for task in tasks:
            column = [values[other, task][0] for other in arms]
            value, error = values[arm, task]
            middle, half_range = (max(column) + min(column)) / 2, (max(column) - min(column)) / 2 or 1.0
            tip = f"{arm} on {task}: {plus_minus(value, error, 3)}"
            row.append((f"{value:.3f}", (middle - value) / half_range, tip))
        colours.append(row)
    head = [f"on {task.rpartition('/')[0]}" for task in tasks]
    return Section(
        title,
        [
            "Held-out bits per byte, lower is better, ± standard error over seeds and documents. Compare within a "
            "column.",
            Table(["trained", *head], lines),
            Figure(
                drawing.heat_map("Bits per byte: trained (rows), held-out text (columns)", arms, head, colours),
                "Coloured within each column, from its worst to its best.",
            ),
        ],
    )
