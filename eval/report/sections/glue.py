"""Section: GLUE results of fine-tuned runs (eval/finetune), beside external checkpoints and published results."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from ablations.document.blocks import Section, Table
from eval.report.comparison.findings import Findings
from eval.report.reading.external import External, differing_conditions, reason_not_comparable
from eval.report.sections.challenge import MARK, broken_rules

TASKS = {
    "mnli": "MNLI",
    "mnli-mm": "MNLI-mm",
    "sst2": "SST-2",
    "stsb": "STS-B",
    "rte": "RTE",
    "qnli": "QNLI",
    "qqp": "QQP",
    "mrpc": "MRPC",
    "cola": "CoLA",
}
MEANS = {  # columns: by whose metrics, and which mean
    "mean of nine": ("study", "nine_numbers"),
    "of eight tasks": ("study", "eight_tasks"),
    "of eight, leaderboard": ("leaderboard", "eight_tasks"),
}
INTRODUCTION = """\
Each number is the median over {seeds} fine-tuning seeds in points, averaged over the {runs}; one setting for all
tasks, five epochs at most, metrics as in "Cramming" ({metrics}). *: at least one seed gave the same answer to every
item. The nine-number mean counts MNLI twice, as "Cramming" does; the eight-task mean averages its two sets first; on
the leaderboard's metrics MRPC and QQP count accuracy too, STS-B Spearman. Means only where all nine numbers are there.
Chance: every class is as likely, whatever the item. One answer to all: the answer whose score is best when it is given
to every item, for F1 above chance. A score tells of something learned only where it is above both.
Published rows: Geiping and Goldstein 2022, other data, size and hardware; nothing here is ranked with them."""

ONE_ANSWER = "one answer to all"
EXTERNAL = """\
External rows: other checkpoints, fine-tuned with the same setting but for the dropout of their own configuration, and
shown on the tasks that the runs were asked in the same way. Not tested: one checkpoint tells nothing of the noise
between seeds of training, and it differs from the runs in more than a line."""
NOTHING_TO_COMPARE = (
    "No run of this report was fine-tuned on GLUE, so that there is nothing to show external checkpoints beside."
)


@cache
def load_published_rows() -> list[dict[str, Any]]:
    """The published results of glue.yaml, a dictionary for each row of the table."""
    import yaml

    return yaml.safe_load((Path(__file__).parent / "glue.yaml").read_text(encoding="utf-8"))["rows"]


def glue_section(findings: Findings) -> Section:
    title = "GLUE"
    arms = {arm: [cell["glue"] for cell in seeds.values()] for arm, seeds in findings.cells_with_entry("glue").items()}
    if not arms:
        return Section(title, [NOTHING_TO_COMPARE] if findings.external else [])
    runs = [table for tables in arms.values() for table in tables]
    study_scores = {name: entry["study"] for table in runs for name, entry in table["scores"].items()}
    names = [name for name in TASKS if name in study_scores]
    marked = {
        arm: f"{arm} {MARK}" if any(broken_rules(cell) for cell in seeds.values()) else arm
        for arm, seeds in findings.cells_with_entry("glue").items()
    }
    lines = [
        [
            marked[arm],
            *(task_text(tables, name) for name in names),
            *(mean_text(tables, *mean) for mean in MEANS.values()),
        ]
        for arm, tables in arms.items()
    ]
    external_lines, notes = external_rows(findings.external, runs, names)
    lines += external_lines
    for row_name, key, form in (("chance", "chance", ".1f"), (ONE_ANSWER, "constant", ".1f"), ("items", "items", "d")):
        cells = (format(study_scores[name][key], form) if key in study_scores[name] else "-" for name in names)
        lines.append([row_name, *cells, *("" for _ in MEANS)])
    for row in load_published_rows():
        if findings.published_shown == "none" or (row["mark"] == "unverified" and findings.published_shown != "all"):
            continue
        numbers = [f"{row[name]:.1f}" if name in row else "-" for name in names]
        lines.append([f"{row['name']} ({row['mark']})", *numbers, f"{row['mean']:.1f}", eight_task_mean_text(row), "-"])
    counts = sorted({entry["study"]["seeds"] for table in runs for entry in table["scores"].values()})
    most_runs = max(map(len, arms.values()))
    text = INTRODUCTION.format(
        seeds=" or ".join(map(str, counts)),
        runs="one run of each arm" if most_runs == 1 else f"{most_runs} runs of each arm",
        metrics=", ".join(f"{TASKS[name]}: {study_scores[name]['metric']}" for name in names),
    )
    if any(name != arm for arm, name in marked.items()):
        text += f" {MARK}: breaks a rule of the challenge (Rules of Cramming)."
    about_external = [EXTERNAL, "\n".join(notes)] if findings.external else []
    scores = Table(["", *(TASKS[name] for name in names), *MEANS], lines)
    return Section(title, [text, scores, *filter(None, about_external)])


def external_rows(
    external: list[External], runs: list[dict[str, Any]], names: list[str]
) -> tuple[list[list[str]], list[str]]:
    """The table rows of external checkpoints, and sentences about these checkpoints. `runs`: the contents of the runs'
    glue.json; `names`: the tasks that are columns."""
    rows, notes = [], []
    for name, table, damage in external:
        title = f"{name} (external)"
        if damage:
            notes.append(f"* {title} is left out: {damage}.")
            continue
        reasons = {task: reason_not_comparable(table, runs, task) for task in TASKS if task in table["scores"]}
        shown = {task: table["scores"][task] for task, reason in reasons.items() if not reason}
        for reason in dict.fromkeys(filter(None, reasons.values())):
            tasks = ", ".join(TASKS[task] for task, task_reason in reasons.items() if task_reason == reason)
            notes.append(f"* {title} is not shown on {tasks}: {reason}.")
        if shown:
            notes += [f"* {title}: {remark}." for remark in differing_conditions(table, runs, list(shown))]
            complete = len(shown) == len(reasons)
            means = (mean_text([table], *mean) if complete else "-" for mean in MEANS.values())
            rows.append([title, *(task_text([{"scores": shown}], task) for task in names), *means])
        elif not reasons:
            notes.append(f"* {title} is left out: it has no task of GLUE.")
    return rows, notes


def task_text(tables: list[dict[str, Any]], name: str) -> str:
    """The mean score of an arm on a task, as text; "-" without scores. A "*" marks a seed whose training failed.
    `tables`: the contents of glue.json of the arm's runs; `name`: the task."""
    scores = [table["scores"][name] for table in tables if name in table["scores"]]
    if not scores:
        return "-"
    collapsed = "*" if any(score["collapsed"] for score in scores) else ""
    return f"{np.mean([score['study']['median'] for score in scores]):.1f}{collapsed}"


def eight_task_mean_text(row: dict[str, Any]) -> str:
    """The eight-task mean of a published row, as text; "-" where the row lacks one of the nine numbers. `row`: an entry
    of "rows" in glue.yaml, {task: score in points}."""
    if not all(name in row for name in TASKS):
        return "-"
    mnli = (row["mnli"] + row["mnli-mm"]) / 2
    return f"{np.mean([mnli, *(row[name] for name in TASKS if not name.startswith('mnli'))]):.1f}"


def mean_text(tables: list[dict[str, Any]], metrics: str, mean: str) -> str:
    """The mean over GLUE of an arm, averaged over its runs, as text; "-" where a run lacks one of the nine numbers.

    Args:
        tables: the contents of glue.json of the arm's runs.
        metrics: "study" or "leaderboard".
        mean: "nine_numbers" or "eight_tasks".
    """
    complete = [table[metrics][mean] for table in tables if table[metrics]["numbers"] == 9]
    return f"{np.mean(complete):.1f}" if len(complete) == len(tables) else "-"
