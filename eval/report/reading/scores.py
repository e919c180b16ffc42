"""Recomputes the scores of an evaluation from its items, and checks that eval.json has the same scores."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from ablations.rundir import EVAL, SAMPLES
from ablations.safe_files import Damaged
from eval.statistics.items import SINGLE_ITEM_PREFIX, Stratum, finite_or_none, stderr_over_tasks, stratum_of_clusters
from eval.tasks.suite import mean_suite_scores

# metrics that are the mean of their items'; others (F1, a correlation) are as the evaluation says
MEAN_METRICS = ("acc", "acc_norm", "acc_mutual_info", "exact_match")
TOLERANCE = 1e-6  # of a score, in its units: sums in another order, and numbers rounded to 15 digits in a file


class Outcome(NamedTuple):
    """The outcome of one item, as the ratio `value` / `weight`. For bits per byte these are the bits and bytes of a
    document, for other metrics the score and 1. `cluster`: the name of the passage or document that the item shares
    with other items; "" where it shares none."""

    value: float
    weight: float
    cluster: str = ""


def checked_scores(result: dict[str, Any], outcomes: Mapping[str, Mapping[str, Outcome]]) -> dict[str, Any]:
    """Check all scores of an evaluation against its items. Returns the content of eval.json, with standard errors that
    allow for items which share a passage or document.

    Args:
        result: the content of eval.json.
        outcomes: the content of samples.jsonl.gz, {task: {id of the item: outcome}}.

    Raises:
        Damaged: a score is not the one that its items give.
    """
    tasks = {name: checked_task_score(name, entry, outcomes.get(name, {})) for name, entry in result["tasks"].items()}
    result = result | {"tasks": tasks}
    losses = [name for name, entry in tasks.items() if entry["metric"] == "bits_per_byte"]
    counted = [name for name, entry in tasks.items() if entry.get("mean")]
    of_suite = [name for name, entry in tasks.items() if entry.get("suite")]
    overall = mean_suite_scores([result])
    chances = {
        "zero_shot": 100 * mean_over_entries([tasks[name] for name in counted], "chance"),
        "suite": overall["chance"] if overall else np.nan,
    }
    for key, names, value in (
        ("bits_per_byte", losses, mean_over_entries([tasks[name] for name in losses])),
        ("zero_shot", counted, 100 * mean_over_entries([tasks[name] for name in counted])),
        ("suite", of_suite, overall["value"] if overall else np.nan),
    ):
        claimed = result.get(key)
        if claimed and not abs(claimed["value"] - value) <= TOLERANCE * max(1.0, abs(value)):
            raise disagreement_error(key, claimed["value"], value)
        chance = chances.get(key, np.nan)
        if claimed and np.isfinite(chance) and claimed.get("chance") is not None:
            if not abs(claimed["chance"] - chance) <= TOLERANCE * max(1.0, abs(chance)):
                raise Damaged(
                    f"{EVAL} has a chance of {claimed['chance']:.6g} for {key}, and its tasks give {chance:.6g}"
                )
        if claimed and any(has_clusters(outcomes.get(name, {})) for name in names):
            error = stderr_of_mean([tasks[name] for name in names], [outcomes.get(name, {}) for name in names])
            result[key] = claimed | {"stderr": finite_or_none((1.0 if key == "bits_per_byte" else 100.0) * error)}
    return result


def stderr_of_mean(entries: list[dict[str, Any]], outcomes: list[Mapping[str, Outcome]]) -> float:
    """The standard error of the unweighted mean of several tasks' scores, in their unit. Items that share a passage or
    document count as dependent, also across tasks. A task whose metric is not a mean or ratio over items, such as F1,
    counts as independent of the others. `entries`: the tasks' entries in eval.json; `outcomes`: for each of these tasks
    {id of the item: outcome}."""
    strata = [stratum_of_outcomes(rows) for entry, rows in zip(entries, outcomes, strict=True) if is_over_items(entry)]
    others = np.array([entry.get("stderr") for entry in entries if not is_over_items(entry)], float)  # None becomes nan
    of_items = (len(strata) * stderr_over_tasks(strata)) ** 2 if strata else 0.0
    return float(np.sqrt(of_items + (others**2).sum())) / len(entries)


def stratum_of_outcomes(outcomes: Mapping[str, Outcome]) -> Stratum:
    """The items of a task in a single run as a Stratum, [1, items or clusters]. Items that share a passage or a
    document are summed into one cluster. `outcomes`: {id of the item: outcome}."""
    values, weights = (np.array([getattr(row, key) for row in outcomes.values()], float) for key in ("value", "weight"))
    return stratum_of_clusters(
        values[None], weights, [row.cluster or f"{SINGLE_ITEM_PREFIX}{item}" for item, row in outcomes.items()]
    )


def is_over_items(entry: dict[str, Any]) -> bool:
    """Whether the score of a task can be recomputed from its items. True for bits per byte (a ratio of sums) and
    accuracies (means), False for F1 and correlations. `entry`: the task's entry under "tasks" in eval.json."""
    return entry["metric"] == "bits_per_byte" or entry["metric"] in MEAN_METRICS


def checked_task_score(name: str, entry: dict[str, Any], outcomes: Mapping[str, Outcome]) -> dict[str, Any]:
    """Check the score of a task against its items. Returns the task's entry in eval.json.

    Where items share a passage or document, the standard error is computed over these clusters, and "clusters" is their
    number. Metrics that are not a mean or ratio over items are not checked.

    Args:
        name: the task.
        entry: the task's entry under "tasks" in eval.json.
        outcomes: {id of the item: outcome}.

    Raises:
        Damaged: the score is not the one that the items give, there are no items, or an item's accuracy is not between
            0 and 1.
    """
    if not is_over_items(entry):
        return entry
    values, weights = (np.array([getattr(row, key) for row in outcomes.values()], float) for key in ("value", "weight"))
    if not weights.sum():
        raise Damaged(f"{SAMPLES} has no items of {name}, on which {EVAL} has a score")
    if entry["metric"] in MEAN_METRICS and not ((values >= 0) & (values <= 1)).all():
        raise Damaged(f"{SAMPLES} has an item of {name} that is not between 0 and 1")
    value = float(values.sum() / weights.sum())
    if not abs(entry["value"] - value) <= TOLERANCE * max(1.0, abs(value)):
        raise disagreement_error(name, entry["value"], value)
    if not has_clusters(outcomes):
        return entry
    clusters = stratum_of_outcomes(outcomes)
    return entry | {"stderr": finite_or_none(stderr_over_tasks([clusters])), "clusters": len(clusters.weights)}


def has_clusters(outcomes: Mapping[str, Outcome]) -> bool:
    """Whether any two items of a task share a passage or a document. `outcomes`: {id of the item: outcome}."""
    names = [row.cluster for row in outcomes.values() if row.cluster]
    return len(set(names)) < len(names)


def mean_over_entries(entries: list[dict[str, Any]], key: str = "value") -> float:
    """The unweighted mean over tasks of one number in their entries in eval.json; NaN where there are no tasks, or one
    lacks the number. `key`: the name of the number, "value" or "chance"."""
    numbers = [entry.get(key) for entry in entries]
    return float(np.mean(np.array(numbers, float))) if entries else float("nan")  # None becomes nan


def disagreement_error(name: str, claimed: float, value: float) -> Damaged:
    return Damaged(f"{EVAL} has {claimed:.6g} for {name}, and the items in {SAMPLES} give {value:.6g}")
