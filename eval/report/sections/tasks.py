"""Section: results task by task: accuracy against chance as a heat map, the three means of the suite, and a table of
tasks."""

from collections.abc import Iterable

import numpy as np

from ablations import drawing
from ablations.document.blocks import Block, Figure, Section, Table, plus_minus
from eval.report.comparison.comparable import Run, group_by_evaluation
from eval.report.comparison.compare import common_items
from eval.report.comparison.findings import Findings
from eval.statistics.items import ratio_stderr, stratum_of_clusters
from eval.tasks.position import CUT_TO_TRAINING_LENGTH
from eval.tasks.suite import mean_suite_scores

HeatCell = tuple[str, float, str] | None  # (text, colour, tip) of drawing.heat_map

SUITE = """\
Unweighted means over tasks and seeds ± standard error over items. Above chance: of (accuracy - chance) / (1 - chance).
The last column: of the tasks that these runs can do, those where all of them together beat the better of a guess among
the options and always the commonest answer by two standard errors. They are: {able}."""

TASKS = """\
Mean over seeds ± standard error over items; in % but for bits_per_byte. Where the context is longer than a model's
longest input, as with learned positions, it is cut from the left. What the tasks ask: eval/tasks/tasks.yaml."""

COPY_TASKS = """\
**Copying.** copy_absent asks the questions of copy_inside without the snippet. An arm whose score with the snippet is
not above that by more than two standard errors of their difference may guess, and is not shown to copy. The tasks of
copying count in the mean all the same."""
COPYING, WITHOUT_SNIPPET = ("copy_inside", "copy_beyond"), "copy_absent"  # tasks of eval/tasks/probes.py
STANDARD_ERRORS = 2  # above which a score is above another, as in the heat map: 95 % of a normal distribution


def shots_text(evaluations: Iterable[dict]) -> str:
    """Text on the number of examples in the prompts of the suite's tasks, such as " with 5 examples in each prompt"; ""
    without examples. `evaluations`: contents of eval.json."""
    tasks = [task for evaluation in evaluations for task in evaluation["tasks"].values() if task.get("suite")]
    numbers = sorted({task.get("shots") or 0 for task in tasks})
    return f" with {' or '.join(map(str, numbers))} examples in each prompt" if any(numbers) else ""


def suite_means(findings: Findings) -> list[Block]:
    """A paragraph and a table of the three means over the suite of tasks (see eval/tasks/tasks.yaml), by arm. Runs that
    were evaluated differently from the first run are left out. [] where no run has the suite."""
    comparable = next(iter(group_by_evaluation(findings.cells)), [])
    evaluations = {run: findings.cells[run]["eval"] for run in comparable if findings.cells[run]["eval"].get("suite")}
    together = mean_suite_scores(list(evaluations.values())) if evaluations else None
    if not together:
        return []
    able, lines = together["able"], []
    for arm in findings.study.arms:
        arm_evaluations = [evaluation for run, evaluation in evaluations.items() if run[0] == arm]
        result = mean_suite_scores(arm_evaluations) if arm_evaluations else None
        if result:
            scores = [100 * evaluation["tasks"][name]["value"] for evaluation in arm_evaluations for name in able]
            lines.append(
                [
                    arm,
                    plus_minus(result["value"], result["stderr"], 2),
                    plus_minus(result["corrected"], result["corrected_stderr"], 2),
                    f"{np.mean(scores):.2f}" if scores else "-",
                ]
            )
    head = ["arm", "accuracy", "above chance", f"accuracy, {len(able)} tasks"]
    return [
        SUITE.format(able=", ".join(able) or "none"),
        Table(
            head,
            lines,
            f"{together['tasks']} of BigScience's {together['of']} tasks{shots_text(evaluations.values())}, in %",
        ),
    ]


def tasks_section(findings: Findings) -> Section:
    evaluated = {run: cell["eval"]["tasks"] for run, cell in findings.cells.items() if "eval" in cell}
    lines: list[list[str]] = []
    heat: dict[str, list[HeatCell]] = {}  # {task with a chance level: a cell for each arm}
    for task in dict.fromkeys(task for tasks in evaluated.values() for task in tasks):
        entries = {run: tasks[task] for run, tasks in evaluated.items() if task in tasks}
        entry = next(iter(entries.values()))
        scores = [score_of(findings, arm, task, entries) for arm in findings.study.arms]
        lines.append(task_columns(task, entry) + [text for text, _ in scores])
        if entry["metric"] != "bits_per_byte" and entry.get("chance") is not None:
            heat[task] = [cell for _, cell in scores]
    head = ["task", "metric", "items", "context, tokens", "chance", *findings.study.arms]
    return Section(
        "Task by task",
        [
            heat_map(findings, heat),
            *suite_means(findings),
            TASKS,
            Table(head, lines),
            *copying_notes(findings, evaluated),
        ]
        if lines
        else [],
    )


def copying_notes(findings: Findings, evaluated: dict[Run, dict]) -> list[str]:
    """Notes on arms whose scores on the copying tasks show no copying: they are no better with the snippet than without
    it, or their input is cut before the snippet. A paragraph and a list; [] where there is no such arm.

    Args:
        evaluated: {(arm, seed): {task: its entry in eval.json}}.
    """
    tasks = dict.fromkeys(task for of_run in evaluated.values() for task in of_run)
    sentences = []
    for task in tasks:
        folder, slash, name = task.rpartition("/")
        control = f"{folder}{slash}{WITHOUT_SNIPPET}"
        if name not in COPYING:
            continue
        if control in tasks:
            arms = [
                arm for arm in findings.study.arms if lacks_evidence_of_copying(findings, arm, task, control, evaluated)
            ]
            if arms:
                sentences.append(f"{task}: not shown to copy: {', '.join(arms)}.")
        configs = {run[0]: findings.cells[run]["run"]["config"]["model"] for run in evaluated if task in evaluated[run]}
        cut = [arm for arm, model in configs.items() if model.get("pos") in CUT_TO_TRAINING_LENGTH]
        if name == "copy_beyond" and cut and len(cut) < len(configs):
            sentences.append(
                f"{task}: the input of {', '.join(cut)} is cut to the training length, and the snippet with it, so the "
                "task favours the other arms by design."
            )
    return [COPY_TASKS, "\n".join(f"* {sentence}" for sentence in sentences)] if sentences else []


def lacks_evidence_of_copying(
    findings: Findings, arm: str, task: str, control: str, evaluated: dict[Run, dict]
) -> bool:
    """Whether an arm's score on a copying task fails to exceed its score on the control task by STANDARD_ERRORS
    standard errors. The two scores are taken as independent. False where the arm was not evaluated on both. `control`:
    the control task; `evaluated`: {(arm, seed): {task: its entry in eval.json}}."""
    seeds = [
        seed for (run_arm, seed), of_run in evaluated.items() if run_arm == arm and {task, control} <= of_run.keys()
    ]
    if not seeds:
        return False
    above = float(
        np.mean([evaluated[arm, seed][task]["value"] - evaluated[arm, seed][control]["value"] for seed in seeds])
    )
    error = np.hypot(standard_error(findings, arm, seeds, task), standard_error(findings, arm, seeds, control))
    return not above > STANDARD_ERRORS * error


def score_of(findings: Findings, arm: str, task: str, entries: dict[Run, dict]) -> tuple[str, HeatCell]:
    """The score of an arm on a task: (text, cell of the heat map); ("-", None) where the arm was not evaluated on it.
    `entries`: {(arm, seed): the task's entry in eval.json}."""
    seeds = [seed for run_arm, seed in entries if run_arm == arm]
    if not seeds:
        return "-", None
    entry = next(iter(entries.values()))
    scale, digits = (1.0, 3) if entry["metric"] == "bits_per_byte" else (100.0, 1)
    chance = 100 * (entry.get("chance") or 0)
    mean = scale * float(np.mean([entries[arm, seed]["value"] for seed in seeds]))
    error = scale * standard_error(findings, arm, seeds, task)
    text = plus_minus(mean, error, digits)
    above = (mean - chance) / (100 - chance) if abs(mean - chance) > 2 * error and chance < 100 else 0.0
    return text, (f"{mean:.1f}", 2 * above, f"{task}, {arm}: {text}, chance {chance:.1f}")


def heat_map(findings: Findings, cells: dict[str, list[HeatCell]]) -> Figure:
    """A figure of accuracies, coloured by their distance from chance. `cells`: {task: [cell of each arm]}. A cell is
    (text, number for the colour, above 0 for above chance, tooltip), or None."""
    corpora = {task.rpartition("/")[0] for task in cells} - {""}
    names = [task.rpartition("/")[2] if len(corpora) == 1 else task for task in cells]
    columns = [arm.split("=", 1)[-1] if findings.controlled else arm for arm in findings.study.arms]
    title, rows = "Accuracy in %, coloured by its distance from chance", list(cells.values())
    note = "Blue above chance, orange below; grey: within two standard errors of it."
    return Figure(drawing.heat_map(title, names, columns, rows) if names else "", note)


def task_columns(task: str, entry: dict) -> list[str]:
    """The columns in a task's row that do not depend on the arm: name, metric, number of items, tokens of context,
    chance level. `entry`: the task's entry in eval.json."""
    counted = entry["metric"] == "bits_per_byte" or entry.get("mean") or entry.get("suite")
    name = task if counted else f"{task} (not in the mean)"
    if entry.get("shots") is not None and "data" in entry:  # one of lm-eval's: ours have no examples
        name += f", {entry['shots']} shot{'' if entry['shots'] == 1 else 's'}"
    items = str(entry["n"])
    if entry.get("clusters"):
        items += f" in {entry['clusters']} groups"
    lengths = " to ".join(map(str, entry.get("context_tokens") or "-"))
    chance = "-" if entry.get("chance") is None else f"{100 * entry['chance']:.1f}"
    return [name, entry["metric"], items, lengths, chance]


def standard_error(findings: Findings, arm: str, seeds: list[int], task: str) -> float:
    """The standard error of an arm's score on a task, averaged over the given seeds: over items, or over clusters of
    items that are not independent. NaN where the runs have no items in common."""
    items = common_items(findings.cells, arm, seeds, task)
    if not items.names:
        return float("nan")
    sums, sizes, _ = stratum_of_clusters(items.values.mean(0, keepdims=True), items.weights, items.clusters)
    return ratio_stderr(sums[0], sizes)
