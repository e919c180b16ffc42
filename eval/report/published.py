"""What eval/report/published.yaml says, as a report shows it: each number with its mark."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from eval.report import figure
from eval.report.compare import Found, words_of
from eval.report.table import Figure, Table
from eval.statistics import Comparison, Part, Stratum, bootstrap, compare, interval, verdict

WARNING = """\
{paper}. **Unverified** numbers were recalled, not read in the paper: they are here to show the form, and are no
result to quote. Other tasks, another harness, another scale: nothing here is ranked with anything there."""


@cache
def load() -> dict[str, Any]:
    import yaml

    return yaml.safe_load((Path(__file__).parent / "published.yaml").read_text())


def tables(keys: set[str]) -> list[dict[str, Any]]:
    """Those whose factor is one of the keys."""
    return [table for table in load()["tables"] if table["factor"] in keys]


def title(table: dict[str, Any]) -> str:
    return f"{table['title']}: {table['where']} ({table['mark']}, {table['source']})"


def columns(table: dict[str, Any]) -> list[str]:
    return table.get("columns", ["theirs"])


def rows(table: dict[str, Any]) -> list[tuple[str, list[float | None]]]:
    return [(name, value if isinstance(value, list) else [value]) for name, value in table["rows"].items()]


def external() -> Table:
    """Models of others, as rows with their source."""
    lines = [
        [e["name"], e["parameters"], e["tokens"], f"{e['mean']:.2f}", e["mark"], e["source"]]
        for e in load()["external"]
    ]
    head = ["model", "parameters", "tokens", "mean of 27 tasks", "mark", "source"]
    return Table(head, lines, f"Models of others, from {load()['paper']}; never ranked with runs: another evaluation")


def task_difference(one: str, other: str) -> tuple[Comparison, list[Stratum]]:
    """Two corpora by the published accuracies of each task, in points: no item was published, so their errors are those
    of independent samples, and one run of each, so nothing is known of the seeds.

    The strata hold the difference of each task, for a bootstrap over tasks.
    """
    known = load()["per_task"]
    a, b = (known["columns"].index(name) for name in (one, other))
    numbers = np.array([row for row in known["rows"].values()], float)
    n, p, q = numbers[:, 0], numbers[:, a] / 100, numbers[:, b] / 100
    variance = (p * (1 - p) / (n - 1) + q * (1 - q) / (n - 1)) * 1e4
    items = Part(float(variance.sum()) / len(n) ** 2, float(n.min() - 1))
    difference = 100 * (p - q)
    return compare(float(difference.mean()), None, items), [(np.array([[d]]), np.ones(1)) for d in difference]


def corpora() -> list:
    """The corpora of the study by published accuracies of every task, compared as this report compares; and their means
    through training."""
    known, paths = load()["per_task"], load()["trajectories"]
    names = known["columns"][1:]
    lines = []
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            c, parts = task_difference(one, other)
            low, high = interval(bootstrap(parts, tasks=True), len(parts))
            ends = f"{low:+.2f} to {high:+.2f}"
            lines.append([f"{one} minus {other}", f"{c.difference:+.2f}", f"{c.noise:.2f}", ends, verdict(c, True, 2)])
    head = ["", "difference", "noise from the items", "95 % over tasks", "verdict"]
    curves = [figure.Line(name, i, paths["tokens"], values) for i, (name, values) in enumerate(paths["rows"].items())]
    art = figure.lines("BigScience: mean accuracy through training", curves, "training tokens", "% over 27 tasks")
    cells = [
        [name, *(f"{value:.2f}" if isinstance(value, float) else str(value) for value in row)]
        for name, row in known["rows"].items()
    ]
    return [
        Table(head, lines, f"Mean accuracy over 27 tasks, {known['where']} ({known['mark']}, {known['source']})"),
        Figure(art, f"{paths['where']} ({paths['mark']} from {paths['source']})"),
        Table(["task", *known["columns"]], cells, f"Accuracy of each task ({known['mark']}, {known['source']})"),
    ]


def beside(f: Found) -> list:
    """What the BigScience study found for the same factor, marked for how far it can be trusted."""
    keys = {key for arm in f.study.arms for seed in f.study.seeds if (c := f.study.cell(arm, seed)) for key in c.delta}
    name = "suite" if "suite" in f.results else "zero-shot"
    blocks: list = []
    for known in tables(keys):
        theirs = rows(known)
        own = {value: arm for value, _ in theirs for arm in f.study.arms if arm.split("=")[-1] == value}
        # as ours are from the baseline, where it is one of theirs
        reference, first = next((row for row in theirs if own.get(row[0]) == f.baseline), theirs[0])
        head = ["", *columns(known), f"difference from {reference}"]
        head += [f"here: {name}", "here: difference", "here: verdict"] if own else []
        lines = []
        for value, numbers in theirs:
            apart = [f"{n - b:+.2f}" for n, b in zip(numbers, first, strict=True) if n is not None and b is not None]
            line = [value, *("-" if n is None else f"{n:.2f}" for n in numbers), ", ".join(apart) or "-"]
            arm = own.get(value, "")
            results, c = list(f.results[name].get(arm, {}).values()), f.compared[name].get(arm)
            line += [f"{np.mean(results):.1f}" if results else "-"] if own else []
            said = "baseline" if arm == f.baseline else "-"
            line += [f"{c.difference:+.1f}" if c else "-", words_of(f, arm, name) if c else said] if own else []
            lines.append(line)
        blocks.append(Table(head, lines, title(known)))
        blocks += [known["note"]] if "note" in known else []
    if blocks:
        blocks = [WARNING.format(paper=load()["paper"]), *blocks]
        blocks += corpora() if "data.corpus" in keys else []
    if not f.controlled and "suite" in f.results:
        blocks += [external()]
    return blocks
