"""Recomputes the scores of an evaluation from its items, and compares them with those in eval.json."""

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
    """The result of one item as numerator (`value`) and denominator (`weight`): for bits per byte the bits and bytes of
    a document, else the score and 1.

    cluster: the passage or document that the item shares with other items; "" where it shares none.
    """

    value: float
    weight: float
    cluster: str = ""


def checked_scores(result: dict[str, Any], outcomes: Mapping[str, Mapping[str, Outcome]]) -> dict[str, Any]:
    """Check the scores of an evaluation against its items. Returns the content of eval.json; where items share a
    passage or document, its standard errors take this into account. `result`: the content of eval.json; `outcomes`: the
    content of samples.jsonl.gz, {task: {id of the item: outcome}}. Raises Damaged where a score differs from the one
    that its items give."""
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
    """The standard error of the unweighted mean of several tasks' scores, in the unit of these scores. Items that share
    a passage or document are not taken as independent, also across tasks. Tasks whose metric is not a mean or ratio
    over items, such as F1, are taken as independent of all other tasks. `entries`: the tasks' entries in eval.json;
    `outcomes`: for each of these tasks {id of the item: outcome}."""
    strata = [stratum_of_outcomes(rows) for entry, rows in zip(entries, outcomes, strict=True) if is_over_items(entry)]
    others = np.array([entry.get("stderr") for entry in entries if not is_over_items(entry)], float)  # None becomes nan
    of_items = (len(strata) * stderr_over_tasks(strata)) ** 2 if strata else 0.0
    return float(np.sqrt(of_items + (others**2).sum())) / len(entries)


def stratum_of_outcomes(outcomes: Mapping[str, Outcome]) -> Stratum:
    """The items of a task as a Stratum whose differences are the values of a single run, [1, items]. Items that share a
    passage or a document are summed into one. `outcomes`: {id of the item: outcome}."""
    values, weights = (np.array([getattr(row, key) for row in outcomes.values()], float) for key in ("value", "weight"))
    return stratum_of_clusters(
        values[None], weights, [row.cluster or f"{SINGLE_ITEM_PREFIX}{item}" for item, row in outcomes.items()]
    )


def is_over_items(entry: dict[str, Any]) -> bool:
    """Whether the metric of a task can be recomputed from its items: bits per byte, which are a ratio of sums over
    items, and accuracies, which are means; not F1 or a correlation. `entry`: the task's entry under "tasks" in
    eval.json."""
    return entry["metric"] == "bits_per_byte" or entry["metric"] in MEAN_METRICS


def checked_task_score(name: str, entry: dict[str, Any], outcomes: Mapping[str, Outcome]) -> dict[str, Any]:
    """Check the score of a task against its items, and return the task's entry.

    Where items share a passage or document, the returned entry has a standard error over these groups of items, and
    their number as "clusters". A metric that is not a mean or ratio over items is not checked. `name`: the task;
    `entry`: the task's entry under "tasks" in eval.json; `outcomes`: {id of the item: outcome}. Raises Damaged where
    the score differs from the one that the items give, there are no items, or an accuracy of an item is not between 0
    and 1.
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
    """The unweighted mean over tasks of a number of their entries in eval.json; NaN where there are no tasks, or one
    has no such number. `key`: the name of the number, "value" or "chance"."""
    numbers = [entry.get(key) for entry in entries]
    return float(np.mean(np.array(numbers, float))) if entries else float("nan")  # None becomes nan


def disagreement_error(name: str, claimed: float, value: float) -> Damaged:
    return Damaged(f"{EVAL} has {claimed:.6g} for {name}, and the items in {SAMPLES} give {value:.6g}")
