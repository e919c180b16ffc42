"""Makes the entries of eval.json from the results of tasks: one for each task, with standard error and chance level,
and the means over tasks."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from eval.statistics.items import (
    LN2,
    SINGLE_ITEM_PREFIX,
    Stratum,
    finite_or_none,
    stderr_over_tasks,
    stratum_of_clusters,
)
from eval.tasks import mirror, probes
from eval.tasks.suite import mean_suite_scores

Tasks = dict[str, tuple[dict, list[dict]]]  # {name: (its entry in tasks.yaml, items)}
Samples = list[dict[str, Any]]  # the outcomes of a task's items, as they are written to samples.jsonl.gz


def held_out_entries(tasks: Tasks, outcomes: dict[str, dict]) -> tuple[dict[str, dict], Samples]:
    """Make the entries of eval.json for the tasks made from held-out text. Returns ({task: entry}, the lines of
    samples.jsonl.gz).

    Args:
        tasks: {task: (its entry in tasks.yaml, its items)}.
        outcomes: {task: result from `harness.run_held_out_tasks`}.
    """
    entries, rows = {}, []
    for name, outcome in outcomes.items():
        spec, items = tasks[name]
        samples = outcome["samples"]
        rows += [{"task": name, **sample} for sample in samples]
        if spec["metric"] == "bits_per_byte":
            total = document_loss(samples)
            levels = {"bytes": total["bytes"], "stderr": total["stderr"], "chance": None, "guess": None}
        else:
            chance = probes.chance_accuracy(items, spec["chance"])
            guess = max(chance, probes.chance_accuracy(items, "commonest"))
            levels = {"stderr": stderr_of_mean([samples]), "chance": chance, "guess": guess}
        entries[name] = {
            "metric": spec["metric"],
            **{key: value for key, value in outcome.items() if key != "samples"},
            **levels,
            "n": len(items),
            "version": probes.load_specification()["version"],
            "shots": 0,
            "higher_is_better": spec["higher_is_better"],
            "mean": spec.get("mean", False),
            "suite": False,
        }
    return entries, rows


def lm_eval_entries(outcomes: dict[str, dict]) -> tuple[dict[str, dict], Samples]:
    """Make the entries of eval.json for tasks of lm-eval. Returns ({task: entry}, the lines of samples.jsonl.gz).
    `outcomes`: {task: result from `harness.run_lm_eval_tasks`}."""
    entries, rows = {}, []
    for name, outcome in outcomes.items():
        samples = outcome["samples"]
        rows += [{"task": name, **sample} for sample in samples]
        entries[name] = {
            **{key: value for key, value in outcome.items() if key != "samples"},
            "stderr": stderr_of_mean([samples]) if outcome["metric"] in ("acc", "exact_match") else None,
            "mean": False,
            "suite": name in mirror.suite(),
        }
    return entries, rows


def document_loss(samples: Samples) -> dict[str, Any]:
    """The held-out loss of a text: {"value": bits per byte, "stderr", "bytes", "n": number of samples}. The value is
    the sum of bits over the sum of bytes, so that each byte has the same weight. `samples`: {"id", "nats", "bytes",
    maybe "cluster"} of each document or piece."""
    nats, sizes = (np.array([sample[key] for sample in samples], float) for key in ("nats", "bytes"))
    return {
        "value": float(nats.sum() / LN2 / sizes.sum()),
        "stderr": stderr_of_mean([samples]),
        "bytes": round(sizes.sum()),
        "n": len(samples),
    }


def clustered_stratum(samples: Samples) -> Stratum:
    """The results of one task, summed over clusters, as the `Stratum` from which standard errors are computed. Items of
    one cluster share a passage, a document or another source, and so are dependent. `samples`: {"id", "value"} or
    {"id", "nats", "bytes"} of each item, with "cluster" where items share a source."""
    whole_texts = any("nats" in sample for sample in samples)
    values = [sample["nats"] / LN2 if whole_texts else sample["value"] for sample in samples]
    weights = [sample["bytes"] if whole_texts else 1.0 for sample in samples]
    names = [sample.get("cluster") or f"{SINGLE_ITEM_PREFIX}{sample['id']}" for sample in samples]
    return stratum_of_clusters(np.array([values], float), np.array(weights, float), names)


def stderr_of_mean(tasks: Iterable[Samples]) -> float | None:
    """The standard error of the unweighted mean over tasks, which may share clusters of items. None where a task has
    fewer than two clusters. `tasks`: the samples of each task, in the form of `clustered_stratum`."""
    return finite_or_none(stderr_over_tasks([clustered_stratum(samples) for samples in tasks]))


def losses_by_domain(corpora: Iterable[str], outcomes: dict[str, dict]) -> dict[str, dict[str, Any]]:
    """The held-out loss of each domain, a part of a corpus with one origin (such as Wikipedia in The Pile): {corpus:
    {domain: result of `document_loss`}}. `outcomes`: {"corpus/domain": result of `harness.run_held_out_tasks`}."""
    return {
        corpus: {
            name.removeprefix(f"{corpus}/"): document_loss(outcome["samples"])
            for name, outcome in outcomes.items()
            if name.startswith(f"{corpus}/")
        }
        for corpus in corpora
    }


def mean_loss(tasks: dict[str, dict], rows: Samples) -> dict[str, float | None]:
    """The unweighted mean of the held-out loss over corpora: {"value": bits per byte, "stderr"}. `tasks`: {task: entry
    of eval.json}; `rows`: the lines of samples.jsonl.gz."""
    losses = [name for name, entry in tasks.items() if entry["metric"] == "bits_per_byte"]
    return {
        "value": mean_over_tasks([tasks[name] for name in losses], "value"),
        "stderr": stderr_of_named_tasks(losses, rows),
    }


def zero_shot_mean(tasks: dict[str, dict], rows: Samples) -> dict[str, float | None] | None:
    """The zero-shot mean: the mean accuracy in percent over the tasks that tasks.yaml marks "mean". Returns {"value",
    "stderr", "chance"}; None where no such task was evaluated. `tasks`: {task: entry of eval.json}; `rows`: the lines
    of samples.jsonl.gz."""
    names = [name for name, entry in tasks.items() if entry["mean"]]
    if not names:
        return None
    means = {key: mean_over_tasks([tasks[name] for name in names], key) for key in ("value", "chance")}
    means = {"value": means["value"], "stderr": stderr_of_named_tasks(names, rows), "chance": means["chance"]}
    return {key: None if value is None else 100 * value for key, value in means.items()}


def stderr_of_named_tasks(names: list[str], rows: Samples) -> float | None:
    """The standard error of the unweighted mean over some tasks. `names`: the tasks; `rows`: the lines of
    samples.jsonl.gz; lines of other tasks are ignored."""
    samples: dict[str, Samples] = {name: [] for name in names}
    for row in rows:
        if row["task"] in samples:
            samples[row["task"]].append(row)
    return stderr_of_mean(samples.values())


def suite_scores(result: dict[str, Any], rows: Samples) -> dict[str, Any] | None:
    """The scores of BigScience's suite of 27 tasks in one evaluation, as in `mean_suite_scores` (eval/tasks/suite.py).
    NaN is replaced by None, which JSON can hold. None where the evaluation has no task of the suite. `result`: the
    content of eval.json; `rows`: the lines of samples.jsonl.gz."""
    scores = mean_suite_scores([result])
    if scores is None:
        return None
    scores = {key: finite_or_none(value) if isinstance(value, float) else value for key, value in scores.items()}
    of_tasks = stderr_of_named_tasks([name for name, entry in result["tasks"].items() if entry["suite"]], rows)
    if scores["stderr"] is not None and of_tasks is not None:  # tasks may share passages
        scores["stderr"] = 100 * of_tasks
    return scores


def mean_over_tasks(entries: list[dict], key: str) -> float | None:
    """The unweighted mean over tasks of one number in their entries of eval.json; None where an entry has None for it.
    `key`: the name of the number, such as "value" or "chance"."""
    values = [entry[key] for entry in entries]
    return None if None in values else float(np.mean(values))
