"""Section: scores against trained tokens, from weights that were saved during training and from the final ones."""

import numpy as np

from ablations import drawing
from ablations.document.blocks import Block, Figure, Section, Table
from ablations.drawing import Line
from ablations.values import short_number
from eval.report.comparison.compare import METRICS
from eval.report.comparison.findings import Findings

EQUAL_KEYS = (
    "version",
    "lm_eval",
    "corpora",
    "precision",
)  # of two evaluations of one run that are points of one curve


def used_the_same_items(result: dict, end: dict, metric: str) -> bool:
    """Whether two evaluations of a run used the same items for a metric, so that they can be points of one curve.

    Args:
        result: the content of eval-step_N.json, for weights saved during training.
        end: the content of eval.json, for the final weights.
        metric: the key of the metric in eval.json.
    """

    def suite_data(evaluation: dict) -> list[tuple[str, str]]:
        tasks = evaluation["tasks"].items() if metric == "suite" else ()
        return sorted((name, task.get("data", {}).get("sha256", "")) for name, task in tasks if task.get("suite"))

    return all(result.get(key) == end.get(key) for key in EQUAL_KEYS) and suite_data(result) == suite_data(end)


def during_training_section(findings: Findings) -> Section:
    cells = findings.cells_with_entry("checkpoints")
    blocks: list[Block] = []
    for name, metric in METRICS.items() if cells else ():
        lines = []
        shown: dict[int, dict[str, str]] = {}  # {tokens: {arm: score}}
        for arm, seeds in cells.items():
            means = scores_during_training(seeds, metric.key)
            lines.append(Line(arm, findings.colour(arm), list(means), list(means.values()), findings.line_style(arm)))
            for tokens, value in means.items():
                shown.setdefault(tokens, {})[arm] = f"{value:.{metric.digits}f}"
        figure = drawing.line_plot(f"{name} against tokens", lines, "training tokens", metric.unit, logx=True)
        if figure:
            rows = [[short_number(tokens), *(shown[tokens].get(arm, "-") for arm in cells)] for tokens in sorted(shown)]
            blocks += [Figure(figure), Table(["training tokens", *cells], rows, name)]
    return Section("Score against tokens", blocks)


def scores_during_training(seeds: dict[int, dict], key: str) -> dict[int, float]:
    """The scores of an arm during training: {training tokens: mean score over seeds}. Points at which one of the seeds
    has no score are left out. `seeds`: {seed: content of the run directory}; `key`: the key of the metric in
    eval.json."""
    values: dict[int, list[float]] = {}
    for cell in seeds.values():
        points = {result["tokens"]: result for result in cell["checkpoints"]}
        if "eval" in cell and cell.get("metrics"):
            tokens = cell["metrics"][-1]["tokens"]
            points[tokens] = {"tokens": tokens, **cell["eval"]}
        for result in points.values():
            if result.get(key) and used_the_same_items(result, points[max(points)], key):
                values.setdefault(result["tokens"], []).append(result[key]["value"])
    return {tokens: float(np.mean(values[tokens])) for tokens in sorted(values) if len(values[tokens]) == len(seeds)}
