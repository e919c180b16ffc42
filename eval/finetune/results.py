"""The stored results of fine-tuning on GLUE: a file for each task and seed, and the table of them all."""

from pathlib import Path
from typing import Any

import numpy as np

from ablations import safe_files
from eval.finetune import metrics
from eval.finetune.tasks import TASKS


def read_result(path: Path, name: str) -> dict[str, Any] | None:
    """Read the result of a fine-tuning, which eval.finetune wrote to a file TASK-SEED.json. None where the file is
    missing. `path`: the file; `name`: the task. Raises Damaged where the file is no such result."""
    task = TASKS[name]
    scores = dict.fromkeys((task.study, *task.leaderboard), (int, float))
    form = {"metrics": scores, "chance": scores, "constant?": list, "collapsed": bool, "items": list}
    result = safe_files.read_json(path, ["sets", "task", "seed"], {"sets": dict})
    if result is None:
        return None
    sets = result["sets"]
    key = safe_files.first_misfit(sets, dict.fromkeys(task.splits, form), "sets")
    for split in () if key else task.splits:
        for constant_scores in sets[split].get("constant") or ():
            key = key or safe_files.first_misfit(constant_scores, scores, f"sets.{split}.constant")
    if key:
        raise safe_files.Damaged(f"{path} is damaged: {key} is not what a result has there.")
    return result


def summarise_over_seeds(results: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Summarise the results of fine-tuning over seeds, as the table of GLUE in points (percent).

    Args:
        results: {task: [result of `finetune` for each seed]}.

    Returns:
        {"scores": {task: {"study": summary, "leaderboard": summary, "collapsed": number of seeds whose training
        failed}}, "study", "leaderboard": the means over GLUE of the medians, from `metrics.glue_means`}. "study" uses
        the metric that "Cramming" reports, "leaderboard" the metrics of gluebenchmark.com.
        A summary is {"median", "lowest", "highest": over seeds, "seeds": their number, "metric": names, "chance": the
        score of constant outputs, "items": number of scored items, "constant": the best score of one answer to every
        item}. "constant" is missing for a regression and for results of earlier versions.
        MNLI's mismatched set is the task "mnli-mm".
    """
    table: dict[str, Any] = {}
    for name, seeds in results.items():
        task = TASKS[name]
        for split in task.splits:
            sets = [result["sets"][split] for result in seeds]
            entry: dict[str, Any] = {"collapsed": sum(scored_set["collapsed"] for scored_set in sets)}
            for kind, keys in (("study", (task.study,)), ("leaderboard", task.leaderboard)):
                values = [100 * float(np.mean([scored_set["metrics"][key] for key in keys])) for scored_set in sets]
                entry[kind] = {
                    "median": float(np.median(values)),
                    "lowest": min(values),
                    "highest": max(values),
                    "seeds": len(values),
                    "metric": " and ".join(keys),
                    "chance": 100 * float(np.mean([sets[0]["chance"][key] for key in keys])),
                    "items": len(sets[0]["items"]),
                }
                if constant := sets[0].get("constant"):
                    best = max(float(np.mean([scores[key] for key in keys])) for scores in constant)
                    entry[kind]["constant"] = 100 * best
            table[f"{name}-mm" if split == "dev_mismatched" else name] = entry
    medians = {
        kind: {name: entry[kind]["median"] for name, entry in table.items()} for kind in ("study", "leaderboard")
    }
    return {"scores": table, **{kind: metrics.glue_means(values) for kind, values in medians.items()}}
