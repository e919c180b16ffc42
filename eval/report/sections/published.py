"""Section: published results of the BigScience study beside ours, from eval/report/sections/published.yaml, each marked
by how well its source was verified."""

import csv
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from ablations import drawing
from ablations.document.blocks import Block, Figure, Section, Table
from eval.report.comparison.findings import Findings
from eval.statistics.bootstrap import bootstrap_differences, bootstrap_interval
from eval.statistics.comparison import Comparison, compare
from eval.statistics.items import Stratum
from eval.statistics.parts import Variance
from eval.statistics.verdicts import verdict

WARNING = "{paper}. Other tasks, another harness, another scale: nothing here is ranked with anything there."
UNVERIFIED = """\
**Unverified** numbers were recalled, not read in the paper: they are here to show the form, and are no result to quote.
"""


@cache
def load_published() -> dict[str, Any]:
    """The content of published.yaml, the published results of the BigScience study."""
    import yaml

    return yaml.safe_load((Path(__file__).parent / "published.yaml").read_text(encoding="utf-8"))


@cache
def published_checkpoints() -> dict[str, np.ndarray]:
    """The published accuracies of all saved checkpoints of the BigScience runs: {corpus: [checkpoints, tasks], in %},
    in the order of training. Their source is under "saves" in published.yaml."""
    with (Path(__file__).parent / "published_saves.csv").open(encoding="utf-8", newline="") as file:
        _, *lines = csv.reader(file)
    corpora = dict.fromkeys(line[0] for line in lines)
    return {name: np.array([line[2:] for line in lines if line[0] == name], float) for name in corpora}


def is_shown(part: dict[str, Any], beside: str) -> bool:
    """Whether an entry of published.yaml is shown, by how well its source was verified. `part`: the entry, with its
    "mark"; `beside`: the value of BESIDE=, "checked", "all" or "none"."""
    return beside == "all" or (beside == "checked" and part["mark"] != "unverified")


def published_section(findings: Findings) -> Section:
    """The published results on the factor that this study varies; without blocks where there are none."""
    known = load_published()
    factors = findings.factors()
    blocks: list[Block] = []
    for table in known["tables"]:
        if table["factor"] in factors and is_shown(table, findings.published_shown):
            blocks += [table_with_ours(findings, table), *([table["note"]] if "note" in table else [])]
    if "data.corpus" in factors and is_shown(known["per_task"], findings.published_shown):
        blocks += corpus_comparison()
    if not findings.controlled and "suite" in findings.results:
        models = other_models_table(findings.published_shown)
        blocks += [models] if models.rows else []
    if blocks:
        warning = WARNING.format(paper=known["paper"])
        blocks.insert(0, f"{UNVERIFIED.strip()} {warning}" if findings.published_shown == "all" else warning)
    return Section("Beside the BigScience study", blocks)


def table_with_ours(findings: Findings, table: dict[str, Any]) -> Table:
    """A table of published results, with our own results beside those of the same setting. `table`: an entry of
    "tables" in published.yaml."""
    name = "suite" if "suite" in findings.results else "zero-shot"
    theirs = table_rows(table)
    arms = {value: arm for value, _ in theirs for arm in findings.study.arms if arm.split("=")[-1] == value}
    # differences are from our baseline, where it is one of theirs
    reference, first = next((row for row in theirs if arms.get(row[0]) == findings.baseline), theirs[0])
    head = ["", *table_columns(table), f"difference from {reference}"]
    if arms:
        head += [f"here: {name}", "here: difference", "here: verdict"]
    lines = []
    for value, numbers in theirs:
        differences = [f"{n - b:+.2f}" for n, b in zip(numbers, first, strict=True) if n is not None and b is not None]
        line = [value, *("-" if n is None else f"{n:.2f}" for n in numbers), ", ".join(differences) or "-"]
        if arms:
            arm = arms.get(value, "")
            results = list(findings.results[name].get(arm, {}).values())
            comparison = findings.comparisons[name].get(arm)
            line.append(f"{np.mean(results):.1f}" if results else "-")
            line.append(f"{comparison.difference:+.1f}" if comparison else "-")
            without = "baseline" if arm == findings.baseline else "-"
            line.append(findings.verdict_in_words(arm, name) if comparison else without)
        lines.append(line)
    return Table(head, lines, f"{table['title']}: {table['where']} ({table['mark']}, {table['source']})")


def table_columns(table: dict[str, Any]) -> list[str]:
    return table.get("columns", ["theirs"])


def table_rows(table: dict[str, Any]) -> list[tuple[str, list[float | None]]]:
    return [(name, value if isinstance(value, list) else [value]) for name, value in table["rows"].items()]


def other_models_table(beside: str) -> Table:
    """A table of models that authors outside the BigScience study published, with their sources. `beside`: the value of
    BESIDE=, "checked", "all" or "none"."""
    lines = [
        [model["name"], model["parameters"], model["tokens"], f"{model['mean']:.2f}", model["mark"], model["source"]]
        for model in load_published()["external"]
        if is_shown(model, beside)
    ]
    head = ["model", "parameters", "tokens", "mean of 27 tasks", "mark", "source"]
    return Table(
        head, lines, f"Models of others, from {load_published()['paper']}; never ranked with runs: another evaluation"
    )


def task_difference(corpus: str, reference: str) -> tuple[Comparison, list[Stratum]]:
    """Compare the published accuracies of two corpora, `corpus` minus `reference`, in points. Returns (the comparison,
    a Stratum for each task, for a bootstrap over tasks). Corpora are named as in published.yaml.

    Single items were not published, so the standard errors are those of independent samples. There is only one run of
    each corpus, so the noise between seeds is unknown.
    """
    known = load_published()["per_task"]
    a, b = (known["columns"].index(name) for name in (corpus, reference))
    numbers = np.array([row for row in known["rows"].values()], float)
    n, p, q = numbers[:, 0], numbers[:, a] / 100, numbers[:, b] / 100
    variance = (p * (1 - p) / (n - 1) + q * (1 - q) / (n - 1)) * 1e4
    items = Variance(float(variance.sum()) / len(n) ** 2, float(n.min() - 1))
    difference = 100 * (p - q)
    return compare(float(difference.mean()), None, items), [Stratum(np.array([[d]]), np.ones(1)) for d in difference]


def compared_corpora(sign: str) -> list[list[str]]:
    """Table rows for all pairs of published corpora: names, difference, standard error from items, 95 % bootstrap
    interval over tasks, verdict. `sign`: the text between the two names."""
    rows = []
    for one, other in combinations(load_published()["per_task"]["columns"][1:], 2):
        c, strata = task_difference(one, other)
        low, high = bootstrap_interval(bootstrap_differences(strata, tasks=True), len(strata))
        ends = f"{low:+.2f} to {high:+.2f}"
        words = verdict(c, True, 2).words
        rows.append([f"{one} {sign} {other}", f"{c.difference:+.2f}", f"{c.noise:.2f}", ends, words])
    return rows


def corpus_comparison() -> list[Block]:
    """The corpora of the published study: their differences, judged by the rules of this report, their mean accuracies
    during training, and their accuracies on every task."""
    known, paths = load_published()["per_task"], load_published()["trajectories"]
    head, lines = ["", "difference", "noise from the items", "95 % over tasks", "verdict"], compared_corpora("minus")
    curves = [drawing.Line(name, i, paths["tokens"], values) for i, (name, values) in enumerate(paths["rows"].items())]
    figure = drawing.line_plot(
        "BigScience: mean accuracy through training", curves, "training tokens", "% over 27 tasks"
    )
    cells = [
        [name, *(f"{value:.2f}" if isinstance(value, float) else str(value) for value in row)]
        for name, row in known["rows"].items()
    ]
    return [
        Table(head, lines, f"Mean accuracy over 27 tasks, {known['where']} ({known['mark']}, {known['source']})"),
        Figure(figure, f"{paths['where']} ({paths['mark']} from {paths['source']})"),
        Table(["task", *known["columns"]], cells, f"Accuracy of each task ({known['mark']}, {known['source']})"),
    ]
