"""Decides which runs may be compared, and on which tasks: only runs that were evaluated in the same way and read the
same text.

If anything about a task differs between two runs (items, prompts, version ...), the task is left out of their
comparison, and the report says so. Two runs are not compared at all in two cases:

* their evaluations differ as a whole: in the version of our tasks or of lm-eval, or in precision;
* they name the same corpus or tokenizer, and the content differs.
"""

import hashlib
import json
from collections.abc import Iterable
from itertools import combinations
from typing import Any

from ablations.run import ABSENT
from ablations.values import flatten
from eval.report.reading.runs import Cells, in_one_line, runs_in_words

EVALUATION_KEYS = ("version", "lm_eval", "precision")  # of an evaluation
TASK_KEYS = ("metric", "version", "chance", "mean", "suite", "higher_is_better")  # of a task in eval.json
ADDED_KEYS = ("prompts", "items' text", "clusters")  # earlier evaluations did not say it: compared where both do

Run = tuple[str, int]  # arm, seed


def task_conditions(cell: dict[str, Any], task: str) -> dict[str, Any]:
    """The conditions of a run's evaluation on a task, {name: value}: version, items, prompts, number of examples and so
    on. The scores of two runs are compared only where these are equal. `cell`: the content of a run directory."""
    entry, outcomes = cell["eval"]["tasks"][task], sorted(cell["samples"].get(task, {}).items())
    conditions = {key: entry[key] for key in TASK_KEYS if key in entry}
    if isinstance(entry.get("data"), dict):
        conditions["data"] = entry["data"].get("sha256")
    if entry.get("shots"):  # evaluations before it was written had none
        conditions["shots"] = entry["shots"]
    conditions["items"] = short_hash([(item, outcome.weight) for item, outcome in outcomes])
    for name, key in (("prompts", "prompts_sha256"), ("items' text", "items_sha256")):
        if key in entry:
            conditions[name] = entry[key]
    if any(outcome.cluster for _, outcome in outcomes):
        conditions["clusters"] = short_hash([outcome.cluster for _, outcome in outcomes])
    return conditions


def short_hash(value: Any) -> str:
    """A short hash (12 hexadecimal digits) of a JSON value, to compare values that are too long to show."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:12]


def conditions_by_task(cell: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The conditions of evaluation of all tasks of a run: {task: `task_conditions`}. They are cached in `cell` (the
    content of the run directory), since hashing up to 40,000 items is slow."""
    if "conditions" not in cell:
        cell["conditions"] = {task: task_conditions(cell, task) for task in cell["eval"]["tasks"]}
    return cell["conditions"]


def are_comparable(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Whether the scores of two runs on a task may be compared. `a`, `b`: the `task_conditions` of the task in the two
    runs. Earlier evaluations did not record the conditions in ADDED_KEYS; these are compared only if both runs have
    them."""
    return all(
        a.get(key) == b.get(key) for key in a.keys() | b.keys() if key not in ADDED_KEYS or (key in a and key in b)
    )


def counts_in_metric(entry: dict[str, Any], metric: str) -> bool:
    """Whether a task counts in a metric, "bits/byte", "zero-shot" or "suite". `entry`: the task's entry in
    eval.json."""
    return {
        "bits/byte": entry["metric"] == "bits_per_byte",
        "zero-shot": bool(entry.get("mean")),
        "suite": bool(entry.get("suite")),
    }[metric]


def tasks_in_metric(cell: dict[str, Any], metric: str) -> list[str]:
    """The tasks of an evaluated run that count in a metric, in the order of evaluation. `cell`: the content of the run
    directory."""
    return [task for task, entry in cell["eval"]["tasks"].items() if counts_in_metric(entry, metric)]


def comparable_tasks(cells: Cells, runs: list[Run], metric: str) -> list[str]:
    """The tasks of a metric that can be compared over all of the given runs, in the order of evaluation; empty where
    the evaluations of the runs differ in general (EVALUATION_KEYS). `cells`: {(arm, seed): content of the run
    directory}; `runs`: at least one (arm, seed)."""
    first, *others = (cells[run] for run in runs)
    if any(first["eval"].get(key) != other["eval"].get(key) for other in others for key in EVALUATION_KEYS):
        return []
    conditions = conditions_by_task(first)
    return [
        task
        for task in tasks_in_metric(first, metric)
        if all(
            task in conditions_by_task(other) and are_comparable(conditions[task], conditions_by_task(other)[task])
            for other in others
        )
    ]


def tasks_of_any_run(cells: Cells, runs: Iterable[Run], metric: str) -> list[str]:
    """The tasks of a metric that at least one of the given runs was evaluated on. `cells`: {(arm, seed): content of the
    run directory}."""
    return list(dict.fromkeys(task for run in runs for task in tasks_in_metric(cells[run], metric)))


def evaluation_conditions(cell: dict[str, Any]) -> dict[str, Any]:
    """The conditions of a run's whole evaluation, as a flat dictionary: {"version": value, ..., "TASK: chance": value,
    ...}. `cell`: the content of the run directory."""
    flat = {key: cell["eval"].get(key) for key in ("version", "lm_eval", "corpora", "precision")}
    for task, conditions in conditions_by_task(cell).items():
        flat |= {f"{task}: {key}": value for key, value in conditions.items()}
    return flat


def were_evaluated_alike(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two evaluated runs were evaluated in the same way, on every task. `one`, `other`: the contents of their
    run directories."""
    ours, theirs = conditions_by_task(one), conditions_by_task(other)
    whole = all(one["eval"].get(key) == other["eval"].get(key) for key in EVALUATION_KEYS)
    return whole and ours.keys() == theirs.keys() and all(are_comparable(ours[task], theirs[task]) for task in ours)


def group_by_evaluation(cells: Cells) -> list[list[Run]]:
    """Group the evaluated runs so that all runs of a group were evaluated in the same way on every task. Returns a list
    of groups, each a list of (arm, seed). `cells`: {(arm, seed): content of the run directory}."""
    classes: list[list[Run]] = []
    for run, cell in cells.items():
        if "eval" in cell:
            home = next((runs for runs in classes if were_evaluated_alike(cells[runs[0]], cell)), None)
            if home is None:
                classes.append([run])
            else:
                home.append(run)
    return classes


def refusal_sentences(cells: Cells) -> list[str]:
    """Sentences on runs that were evaluated differently from the first evaluated run, and are not compared with it.
    Each is about one group of runs, and says what differs. `cells`: {(arm, seed): content of the run directory}."""
    lines: list[str] = []
    first_class, *other_classes = group_by_evaluation(cells) or [[]]
    for runs in other_classes:
        first, other = evaluation_conditions(cells[first_class[0]]), evaluation_conditions(cells[runs[0]])
        reasons: list[str] = []
        lacking: list[str] = []
        additional: list[str] = []
        for key in dict.fromkeys([*first, *other]):
            task, _, what = key.rpartition(": ")
            if task and (f"{task}: items" in first) != (f"{task}: items" in other):  # a task that only one of them has
                if what == "items":
                    (lacking if key in first else additional).append(task)
            elif first.get(key) != other.get(key) and not (
                what in ADDED_KEYS and (key not in first or key not in other)
            ):
                reasons.append(
                    f"{key} {in_one_line(other.get(key, 'unknown'))}, not {in_one_line(first.get(key, 'unknown'))}"
                )
        if lacking:
            reasons.append(f"without {', '.join(lacking)}")
        if additional:
            reasons.append(f"with {', '.join(additional)}")
        lines.append(f"{runs_in_words(runs)}: {'; '.join(reasons)}")
    return lines


# ------------------------------------------------------------------------------------------------ the text


def text_hashes(cell: dict[str, Any]) -> dict[str, str]:
    """The hashes of the training text and the tokenizer of a run: {description: sha256}, with two entries. The keys
    describe what the run asked for: corpus and preparation, or kind of tokenizer. Two runs with the same key can be
    compared only if its hash is the same. `cell`: the content of the run directory."""
    data, settings = cell["run"]["data"], cell["run"]["config"]["data"]
    tokenizer = data["tokenizer"]
    declared = json.dumps({key: value for key, value in settings.items() if not key.startswith("tokenizer")})
    kind = settings.get("tokenizer_kind", "")
    return {
        f"text of {declared}": data["sha256"],
        f"tokenizer of {tokenizer['corpus']}, {kind}, with {tokenizer['vocab']} pieces": tokenizer["sha256"],
    }


def have_same_text(cells: Cells, runs: Iterable[Run]) -> bool:
    """Whether some runs read the same text wherever they name the same corpus, and used the same tokenizer wherever
    they name the same one. `cells`: {(arm, seed): content of the run directory}."""
    read: dict[str, str] = {}
    return all(
        read.setdefault(declared, sha256) == sha256
        for run in runs
        for declared, sha256 in text_hashes(cells[run]).items()
    )


def arms_with_other_text(cells: Cells, baseline: str) -> list[str]:
    """The arms that are not compared with the baseline, because a corpus or tokenizer has the same name in both but
    another content. `cells`: {(arm, seed): content of the run directory}."""
    evaluated = [run for run, cell in cells.items() if "eval" in cell]
    base = [run for run in evaluated if run[0] == baseline]
    arms = dict.fromkeys(arm for arm, _ in evaluated if arm != baseline)
    return [
        arm for arm in arms if base and not have_same_text(cells, [*base, *(run for run in evaluated if run[0] == arm)])
    ]


def arms_without_effect(cells: Cells) -> dict[str, str]:
    """The arms that trained exactly like an earlier arm: {arm: the earlier arm}. All losses and gradient norms are
    equal at every seed that both have, so the setting in which they differ had no effect. `cells`: {(arm, seed):
    content of the run directory}."""
    logs: dict[str, dict[int, list]] = {}
    for (arm, seed), cell in cells.items():
        if cell["state"] in ("", "not evaluated") and cell.get("metrics"):
            rows = [(row["step"], row["loss"], row.get("grad_norm")) for row in cell["metrics"]]
            logs.setdefault(arm, {})[seed] = rows
    copies: dict[str, str] = {}
    for one, other in combinations(logs, 2):
        seeds = logs[one].keys() & logs[other].keys()
        if seeds and not {one, other} & copies.keys() and all(logs[one][seed] == logs[other][seed] for seed in seeds):
            copies[other] = one
    return copies


def exclude_copies(cells: Cells) -> Cells:
    """Remove the results of runs that are copies of an earlier run. Returns all `cells`, {(arm, seed): content of the
    run directory}; the "state" of a copy says that it is one.

    A run is a copy if it has another seed than the earlier run, but exactly the same log or the same evaluated weights.
    It is no second measurement.
    """
    first: dict[tuple[str, str], Run] = {}
    distinct: Cells = {}
    for (arm, seed), cell in cells.items():
        logged = [(row["step"], row["loss"], row.get("grad_norm")) for row in cell.get("metrics") or []]
        weights = cell.get("eval", {}).get("weights_sha256")
        keys = [(kind, json.dumps(value)) for kind, value in (("logged", logged), ("weights", weights)) if value]
        original = next((first[key] for key in keys if key in first), (arm, seed))
        if original[1] == seed:
            distinct[arm, seed] = cell
        else:
            state = (
                f"trained exactly as {original[0]}, seed {original[1]}, to the last digit: one is a copy of the other"
            )
            entries = {key: value for key, value in cell.items() if key in ("run", "registered", "damage")}
            distinct[arm, seed] = entries | {"state": state}
        for key in keys:
            first.setdefault(key, (arm, seed))
    return distinct


def exclude_misplaced_runs(study: Any, cells: Cells) -> Cells:
    """Remove the results of runs that lie in the directory of another arm or another seed. Returns all `cells`, {(arm,
    seed): content of the run directory}. Of a misplaced run only the registration is left, and a "state" that says what
    is wrong.

    A run is misplaced if its seed, or a setting in which the arms differ, is not that of its directory. If an earlier
    version did not record a setting, the value that it always used is taken. `study`: a Study or a Collection.
    """
    planned = {run: study.cell(*run) for run in cells}
    deltas = {key for cell in planned.values() for key in cell.delta}
    varied = sorted(key for key in deltas - {"size"} if not key.startswith("layout."))
    kept: Cells = {}
    for run, cell in cells.items():
        there = ABSENT | flatten(cell["run"]["config"]) if "run" in cell else {}
        here = flatten(planned[run].config)
        others = [key for key in [*varied, "seed"] if key in there and there[key] != here.get(key)]
        kept[run] = cell
        if others:
            held, meant = (
                ", ".join(f"{key}={in_one_line(config.get(key))}" for key in others) for config in (there, here)
            )
            kept[run] = {key: entry for key, entry in cell.items() if key == "registered"}
            kept[run]["state"] = f"its folder holds a run with {held}, where the study has {meant}"
    return kept
