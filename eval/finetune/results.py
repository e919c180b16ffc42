"""The stored results of fine-tuning on GLUE: a file for each task and seed, and the table of them all."""

from pathlib import Path
from typing import Any

import numpy as np

from ablations import safe_files
from eval.finetune import metrics
from eval.finetune.tasks import TASKS


def read_result(path: Path, name: str) -> dict[str, Any] | None:
    """Read the result of a fine-tuning from its file TASK-SEED.json; None where the file is missing. `path`: the file;
    `name`: the task. Raises Damaged where the file does not hold such a result."""
    task = TASKS[name]
    scores = dict.fromkeys((task.cramming_metric, *task.leaderboard_metrics), (int, float))
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
    """Summarise results of fine-tuning over seeds, in percent. This is the table glue.json.

    Args:
        results: {task: [result of `finetune` for each seed]}.

    Returns:
        scores: {task: {"study": summary by the metric of "Cramming", "leaderboard": summary by the metrics of
            gluebenchmark.com, "collapsed": number of seeds that gave the same answer to every item}}. MNLI's
            mismatched set is the task "mnli-mm".
        study, leaderboard: the means over GLUE (`metrics.glue_means`) of the medians of these summaries.

    A summary has these keys:
        median, lowest, highest: the score over seeds.
        seeds: the number of seeds.
        metric: the names of the metrics that are averaged.
        chance: the score where every class is equally likely for every item.
        items: the number of scored items.
        constant: the best score of a model that always predicts one class. Missing for a regression and for results of
            earlier versions.
    """
    table: dict[str, Any] = {}
    for name, seeds in results.items():
        task = TASKS[name]
        for split in task.splits:
            sets = [result["sets"][split] for result in seeds]
            entry: dict[str, Any] = {"collapsed": sum(scored_set["collapsed"] for scored_set in sets)}
            for kind, keys in (("study", (task.cramming_metric,)), ("leaderboard", task.leaderboard_metrics)):
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
