"""Reads run directories for a report.

A run directory may be damaged, and may come from anyone. A damaged file is reported in the "state" or "damage" of the
run, and does not affect other runs. Functions that read one file raise Damaged if it is not a file that this project
writes, or lacks an entry that a report needs.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ablations import rundir, safe_files
from ablations.budget import clock_seconds
from ablations.safe_files import Damaged, first_misfit, printable
from ablations.values import join_names
from eval.finetune.metrics import glue_means
from eval.finetune.results import read_result, summarise_over_seeds
from eval.finetune.tasks import TASKS
from eval.report.reading.scores import Outcome, checked_scores
from eval.statistics.items import LN2

NUMBER = rundir.NUMBER
Cells = dict[tuple[str, int], dict[str, Any]]  # {(arm, seed): what `read_run` gives}

# What a report uses of a run's files (the form: `safe_files.first_misfit`).
RUN_FORM: dict[str, Any] = {
    "seed": int,
    "config": {
        "model": {"pos": str, "seq": int},
        "data": {"corpus": str},
        "train": {"tokens": int},
        "eval": {"corpora": list},
        "layout": dict,
    },
    "commit": {"sha": str},
    "versions": dict,
    "hardware": {"device": str, "ranks": int, "threads": int},
    "data": {
        "sha256": str,
        "tokenizer": {"corpus": str, "vocab": int, "sha256": str},
        "mismatch?": list,
        "notes?": list,
    },
    "parameters": {"count": int},
    "proofs": list,
    "effective": dict,
    "continued?": list,
    "rollbacks?": list,
    "registered?": str,
}
LIST_FORMS = {  # what the elements of a run's lists hold
    "proofs": {"factor": str, "passed": bool},
    "continued": {},
    "rollbacks": {"back_to": int, "samples_left_out": list, "why": str},
}
DONE_FORM: dict[str, Any] = {"steps?": int, "seconds?": NUMBER, "budget_seconds?": NUMBER, "compile_seconds?": NUMBER}
SCORE_FORM: dict[str, Any] = {"value": NUMBER, "stderr?": NUMBER, "chance?": NUMBER}
TASK_FORM = SCORE_FORM | {"metric": str, "n": int, "guess?": NUMBER, "context_tokens?": list, "higher_is_better?": bool}
EVALUATION_FORM: dict[str, Any] = {
    "tasks": dict,
    "corpora?": list,
    "lm_eval?": str,
    "precision?": str,
    "lm_eval_tasks?": {"missing?": list, "failed?": dict},
    "omitted": list,
    "bits_per_byte": SCORE_FORM,
    "zero_shot?": SCORE_FORM,
    "suite?": SCORE_FORM | {"tasks": int, "of": int},
    "by_domain?": dict,
    "by_position?": {"positions": list, "bits_per_byte": list},
    "seconds": NUMBER,
}


_GLUE_MEANS_FORM = {"nine_numbers?": NUMBER, "eight_tasks?": NUMBER, "numbers": int}
GLUE_TABLE_FORM = {
    "scores": dict,
    "study": _GLUE_MEANS_FORM,
    "leaderboard": _GLUE_MEANS_FORM,
    "setting?": dict,
    "inputs_version?": int,
    "data_sha256?": dict,
}
GLUE_SCORE_FORM = {
    **{"median": NUMBER, "lowest": NUMBER, "highest": NUMBER, "seeds": int, "metric": str, "chance": NUMBER},
    **{"items?": int, "constant?": NUMBER},
}


def read_manifest(directory: Path) -> dict[str, Any]:
    """The content of run.json in a run directory. Raises Damaged where the file is missing, is not that of a run, or
    lacks an entry, as files of earlier versions may."""
    path = directory / rundir.RUN
    run = safe_files.read_json(path, [key for key in RUN_FORM if not key.endswith("?")])
    if run is None:
        raise Damaged(f"{path} is missing: a run directory has one")
    key = first_misfit(run, RUN_FORM)
    for name, shape in LIST_FORMS.items() if not key else ():
        for entry in run.get(name) or []:
            key = key or first_misfit(entry, shape, name)
            key = key or (name if name == "proofs" and not {"value", "detail"} <= entry.keys() else "")
            key = key or (name if name == "rollbacks" and len(entry["samples_left_out"]) != 2 else "")
    if key:
        raise Damaged(f"{path} is damaged, or of another version: {key} is not what a run has there")
    return run


def read_evaluation(path: Path) -> dict[str, Any]:
    """The content of eval.json, or of eval-step_N.json, which has the evaluation of weights saved during training.
    Raises Damaged where the file is missing or damaged, or a score is not finite."""
    result = safe_files.read_json(path)
    if result is None:
        raise Damaged(f"{path} is missing")
    key = first_misfit(result, EVALUATION_FORM)
    for task, entry in result["tasks"].items() if not key else ():
        key = key or first_misfit(entry, TASK_FORM, f"tasks.{task}")
        if not key and entry.get("suite"):
            key = next((f"tasks.{task}.{name}" for name in ("stderr", "chance", "guess") if name not in entry), "")
    for corpus, losses in (result.get("by_domain") or {}).items() if not key else ():
        for domain, loss in losses.items() if isinstance(losses, dict) else [("", None)]:
            key = key or first_misfit(loss, SCORE_FORM | {"n": int}, f"by_domain.{corpus}.{domain}")
    if key:
        raise Damaged(f"{path} is damaged, or of another version: {key} is not what an evaluation has there")
    tasks = {
        in_one_line(task): entry | {"metric": in_one_line(entry["metric"])} for task, entry in result["tasks"].items()
    }
    domains = {
        in_one_line(corpus): {in_one_line(domain): loss for domain, loss in losses.items()}
        for corpus, losses in (result.get("by_domain") or {}).items()
    }
    return result | {"tasks": tasks, "by_domain": domains}


def read_samples(path: Path) -> dict[str, dict[str, Outcome]]:
    """The outcomes in a samples.jsonl.gz: {task: {id of the item: outcome}}. Raises Damaged where a line is not the
    outcome of an item, or an item of a task occurs twice."""
    outcomes: dict[str, dict[str, Outcome]] = {}
    for number, row in enumerate(safe_files.read_gzip_json_lines(path, ["task", "id"]), start=1):
        shape = {"task": str} | ({"nats": NUMBER, "bytes": NUMBER} if "nats" in row else {"value": NUMBER})
        if key := first_misfit(row, shape):
            raise Damaged(f"{path} is damaged in line {number}: {key}")
        if row.get("bytes", 0) < 0:
            raise Damaged(f"{path} is damaged in line {number}: bytes is below 0")
        of_task, item = outcomes.setdefault(in_one_line(row["task"]), {}), str(row["id"])
        if item in of_task:
            raise Damaged(f"{path} is damaged in line {number}: the item {item[:60]!r} stands twice")
        value, weight = (row["nats"] / LN2, row["bytes"]) if "nats" in row else (row["value"], 1)
        outcome = Outcome(value, weight, "" if row.get("cluster") is None else str(row["cluster"]))
        of_task[item] = outcome
    return outcomes


def read_run(directory: Path) -> dict[str, Any]:
    """The content of a run directory. Damage is reported in the result, and no error is raised.

    Returns:
        state: "" for a run that is finished and evaluated; else a phrase on what is missing or wrong. It is the only
            entry where run.json is missing or damaged.
        damage: a sentence for each damaged file that a report can do without.
        run, metrics, done, registered, eval, samples, glue: the contents of the files; missing where there is no such
            file.
        checkpoints: the evaluations of weights saved during training, in the order of training.
    """
    try:
        return _read_run_files(directory)
    except Damaged as error:
        return {"state": f"damaged ({_without_path(error, directory)})"}


def _read_run_files(directory: Path) -> dict[str, Any]:
    """The result of `read_run`. Raises Damaged where run.json is damaged."""
    why = " ".join(safe_files.read_text(directory / rundir.FAILED).split())
    failed = f"failed ({why})" if (directory / rundir.FAILED).exists() else ""
    if not (directory / rundir.RUN).exists():
        return {"state": failed or "not started"}
    cell: dict[str, Any] = {"state": failed or "not finished", "run": read_manifest(directory), "damage": []}
    if (directory / rundir.METRICS).exists():
        keys = ("step", "tokens", "loss", "seconds", "tokens_per_second")
        rows, damage = safe_files.read_json_lines(directory / rundir.METRICS, keys, rundir.METRIC_TYPES)
        possible = [row for row in rows if row["step"] > 0 and row["tokens"] > 0 and row["seconds"] >= 0]
        if len(possible) < len(rows):
            damage = f"{rundir.METRICS} is damaged: {len(rows) - len(possible)} lines have numbers that no run has"
        cell["metrics"] = list({row["step"]: row for row in possible}.values())
        cell["damage"] += [damage] if damage else []
    cell["registered"], damage = rundir.read_registrations(directory)
    first = cell["registered"][0]["sha256"] if cell["registered"] else ""
    if not damage and cell["run"].get("registered", first) != first:
        damage = f"{rundir.REGISTERED} does not begin with what {rundir.RUN} says was registered first"
    cell["damage"] += [damage] if damage else []

    def undamaged(read: Callable[[Path], Any], path: Path) -> Any:
        """The result of `read(path)`; None where the file is missing or damaged. Damage is added to the run's
        "damage"."""
        try:
            return read(path) if path.exists() else None
        except Damaged as error:
            cell["damage"].append(str(error))

    of_steps = [undamaged(read_evaluation, path) for path in sorted(directory.glob("eval-*.json"))]
    checkpoints = [result for result in of_steps if result and isinstance(result.get("tokens"), int)]
    cell["checkpoints"] = sorted(checkpoints, key=lambda result: result["tokens"])
    if (done := undamaged(_training_summary, directory / rundir.DONE)) is not None:
        cell["done"] = done
    if (directory / rundir.DONE).exists():
        try:
            cell |= _read_evaluated_run(directory)
        except Damaged as error:
            cell["state"] = f"damaged ({_without_path(error, directory)})"
    if table := undamaged(read_glue_table, directory / rundir.GLUE / rundir.GLUE_TABLE):
        cell["glue"] = table
    cell["damage"] = [_without_path(damage, directory) for damage in cell["damage"]]
    return cell


def _read_evaluated_run(directory: Path) -> dict[str, Any]:
    """The entries "eval", "samples" and "state" of a finished run; only "state" where it is not evaluated. Raises
    Damaged where a file is damaged, or a score is not the one that its items give."""
    if not (directory / rundir.EVAL).exists() or not (directory / rundir.SAMPLES).exists():
        return {"state": "not evaluated"}
    result, outcomes = read_evaluation(directory / rundir.EVAL), read_samples(directory / rundir.SAMPLES)
    if result.get("samples_sha256") not in (None, safe_files.sha256(directory / rundir.SAMPLES)):
        raise Damaged(f"{rundir.SAMPLES} is not the file that {rundir.EVAL} was written with")
    return {"eval": checked_scores(result, outcomes), "samples": outcomes, "state": ""}


def _training_summary(path: Path) -> dict[str, Any]:
    """The content of the file `done`, which training writes at its end. Raises Damaged where an entry has the wrong
    type."""
    done = safe_files.read_json(path) or {}
    if key := first_misfit(done, DONE_FORM):
        raise Damaged(f"{path} is damaged: {key}")
    return done


def read_glue_table(path: Path) -> dict[str, Any] | None:
    """The table of fine-tuning on GLUE (eval/finetune) in a file glue.json; None where the file does not exist. Raises
    Damaged where it is not such a table, its scores and means do not fit together, or its scores are not those of the
    results of single seeds that lie beside it."""
    table = safe_files.read_json(path, ["scores", "study", "leaderboard"])
    if table is None:
        return None
    key = first_misfit(table, GLUE_TABLE_FORM)
    for name, entry in table["scores"].items() if not key else ():
        key = key or first_misfit(
            entry, {"study": GLUE_SCORE_FORM, "leaderboard": GLUE_SCORE_FORM, "collapsed": int}, f"scores.{name}"
        )
    if key:
        raise Damaged(f"{path} is damaged: {key}")
    for kind in ("study", "leaderboard"):
        scores = {name: entry[kind] for name, entry in table["scores"].items()}
        for name, score in scores.items():
            if not score["lowest"] <= score["median"] <= score["highest"]:
                raise Damaged(f"{path} is damaged: the median of {name} is not between its lowest and highest score")
        means = glue_means({name: score["median"] for name, score in scores.items()})
        if any(not _is_equal(table[kind].get(key), value) for key, value in means.items()):
            raise Damaged(f"{path} is damaged: the means of {kind} are not those of its scores")
    for task in TASKS.keys() & table["scores"].keys():
        _check_glue_scores(path, table, task)
    return table


def _check_glue_scores(path: Path, table: dict[str, Any], task: str) -> None:
    """Compare the scores on a task of GLUE with those that the results of single seeds give, the files TASK-SEED.json
    beside the table. Nothing is compared where fewer results lie there than the table counts. `path`: that of
    glue.json; `table`: its content. Raises Damaged where a result is damaged, or a score differs."""
    conditions = {key: table.get(key) for key in ("model_sha256", "setting", "inputs_version")}
    conditions["data_sha256"] = (table.get("data_sha256") or {}).get(task)
    results = {}
    for file in sorted(path.parent.glob(f"{task}-*.json"), key=lambda file: (len(file.name), file.name)):
        result = read_result(file, task)
        if result and all(result.get(key) == value for key, value in conditions.items()):
            results[file.name] = result
    seeds = table["scores"][task]["study"]["seeds"]
    if not 0 < seeds <= len(results):
        return
    # an earlier version counted the first seeds alone where fewer were asked for than were there
    names = list(results)[:seeds]
    for name, entry in summarise_over_seeds({task: [results[name] for name in names]})["scores"].items():
        for kind in ("study", "leaderboard"):
            given = table["scores"].get(name, {}).get(kind, {})
            wrong = [key for key in ("median", "lowest", "highest") if not _is_equal(given.get(key), entry[kind][key])]
            if wrong or table["scores"][name]["collapsed"] != entry["collapsed"]:
                said = f"the {wrong[0]} of {name}" if wrong else f"the number of seeds of {name} that collapsed"
                raise Damaged(f"{path} is damaged: {said} is not that of {join_names(names)} beside it")


def _is_equal(a: float | None, b: float | None) -> bool:
    """Whether two numbers are equal up to rounding, or both are None."""
    return a is b is None or (a is not None and b is not None and math.isclose(a, b, rel_tol=1e-9))


def _without_path(message: Damaged | str, directory: Path) -> str:
    """A message about a file of a run directory, without the path of that directory."""
    return printable(str(message).replace(f"{directory}/", "")).rstrip(".")


def read_cells(study: Any) -> Cells:
    """Read the run directories of all planned runs of a study or collection: {(arm, seed): result of `read_run`}."""
    planned = {(arm, seed): study.cell(arm, seed) for arm in study.arms for seed in study.seeds}
    return {key: read_run(cell.dir) for key, cell in planned.items() if cell}


def in_one_line(value: Any) -> str:
    """A value from a JSON file, such as a setting in run.json, as text in one line without control characters."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return ", ".join(f"{key} {in_one_line(entry)}" for key, entry in value.items())
    if isinstance(value, list):
        return ", ".join(map(in_one_line, value)) or "none"
    return printable(str(value)).replace("\n", " ")


def runs_in_words(runs: list[tuple[str, int]]) -> str:
    """Runs as text, grouped by arm: "pos=alibi (seeds 1, 2); pos=none (seed 1)". `runs`: pairs (arm, seed)."""
    seeds: dict[str, list[str]] = {}
    for arm, seed in runs:
        seeds.setdefault(arm, []).append(str(seed))
    return "; ".join(
        f"{arm} ({'seeds' if len(numbers) > 1 else 'seed'} {', '.join(numbers)})" for arm, numbers in seeds.items()
    )


def has_clock_budget(cell: dict[str, Any]) -> bool:
    """Whether the budget of a run is a wall clock (or of a form that this version does not know), and not a number of
    tokens. `cell`: the content of the run directory; False where it has no run.json."""
    return "run" in cell and cell["run"]["config"]["train"].get("budget", "tokens") != "tokens"


def budget_seconds(cell: dict[str, Any]) -> float | None:
    """The budget of a run in seconds of wall clock; None where the budget is in tokens or of an unknown form. `cell`:
    the content of the run directory."""
    try:
        return clock_seconds(cell["run"]["config"]["train"]["budget"]) if has_clock_budget(cell) else None
    except (ValueError, TypeError):
        return None
