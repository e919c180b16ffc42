"""The numbers of eval.json: the entry of each task with its standard error and chance level, and the means over
tasks."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from eval.statistics.items import LN2, finite_or_none, ratio_stderr, stderr_of_mean
from eval.tasks import mirror, probes
from eval.tasks.suite import suite

Tasks = dict[str, tuple[dict, list[dict]]]  # {name: (its entry in tasks.yaml, items)}
Samples = list[dict[str, Any]]  # the outcomes of a task's items, as they are written to samples.jsonl.gz


def held_out_entries(tasks: Tasks, outcomes: dict[str, dict]) -> tuple[dict[str, dict], Samples]:
    """Make the entries of eval.json for the tasks made from held-out text. Returns {task: entry}, and the lines of
    samples.jsonl.gz. `tasks`: {task: (its entry in tasks.yaml, its items)}; `outcomes`: {task: its result from
    `harness.evaluate`}."""
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
            levels = {"stderr": accuracy_stderr(samples), "chance": chance, "guess": guess}
        entries[name] = {
            "metric": spec["metric"],
            **{key: value for key, value in outcome.items() if key != "samples"},
            **levels,
            "n": len(items),
            "version": probes.specification()["version"],
            "shots": 0,
            "higher_is_better": spec["higher_is_better"],
            "mean": spec.get("mean", False),
            "suite": False,
        }
    return entries, rows


def lm_eval_entries(outcomes: dict[str, dict]) -> tuple[dict[str, dict], Samples]:
    """Make the entries of eval.json for tasks of lm-eval. Returns {task: entry}, and the lines of samples.jsonl.gz.
    `outcomes`: {task: its result from `harness.evaluate_named`}."""
    entries, rows = {}, []
    for name, outcome in outcomes.items():
        samples = outcome["samples"]
        rows += [{"task": name, **sample} for sample in samples]
        entries[name] = {
            **{key: value for key, value in outcome.items() if key != "samples"},
            "stderr": accuracy_stderr(samples) if outcome["metric"] in ("acc", "exact_match") else None,
            "mean": False,
            "suite": name in mirror.suite(),
        }
    return entries, rows


def document_loss(samples: Samples) -> dict[str, Any]:
    """The loss over documents: {"value": bits per byte, "stderr", "bytes", "n": number of documents}. Each byte has the
    same weight: the value is the ratio of the sums, and not the mean of the documents' ratios. `samples`: [{"nats",
    "bytes"}] of the documents."""
    nats, sizes = (np.array([sample[key] for sample in samples], float) for key in ("nats", "bytes"))
    return {
        "value": float(nats.sum() / LN2 / sizes.sum()),
        "stderr": finite_or_none(ratio_stderr(nats / LN2, sizes)),
        "bytes": round(sizes.sum()),
        "n": len(samples),
    }


def losses_by_domain(corpora: Iterable[str], outcomes: dict[str, dict]) -> dict[str, dict[str, Any]]:
    """The held-out loss of each domain: {corpus: {domain: loss}}. `outcomes`: {"corpus/domain": its result from
    `harness.evaluate`}."""
    return {
        corpus: {
            name.removeprefix(f"{corpus}/"): document_loss(outcome["samples"])
            for name, outcome in outcomes.items()
            if name.startswith(f"{corpus}/")
        }
        for corpus in corpora
    }


def zero_shot(entries: Iterable[dict]) -> dict[str, float | None] | None:
    """The mean over the tasks that count in it, in percent: {"value", "stderr", "chance"}; None where there are none.
    `entries`: the tasks' entries in eval.json."""
    counted = [entry for entry in entries if entry["mean"]]
    if not counted:
        return None
    means = {key: mean_over_tasks(counted, key) for key in ("value", "stderr", "chance")}
    return {key: None if value is None else 100 * value for key, value in means.items()}


def suite_scores(result: dict[str, Any]) -> dict[str, Any] | None:
    """The scores of BigScience's suite of tasks in one evaluation, with NaN replaced by None, which JSON can hold; None
    where the evaluation has no task of the suite. `result`: the content of eval.json."""
    scores = suite([result])
    return scores and {
        key: finite_or_none(value) if isinstance(value, float) else value for key, value in scores.items()
    }


def mean_over_tasks(entries: list[dict], key: str) -> float | None:
    """The unweighted mean over tasks of the values under `key` in their entries of eval.json; for key="stderr" the
    standard error of a mean over independent tasks. None where one of the values is None."""
    if any(entry[key] is None for entry in entries):
        return None
    values = np.array([entry[key] for entry in entries])
    return float(np.sqrt((values**2).sum()) if key == "stderr" else values.sum()) / len(values)


def accuracy_stderr(samples: Samples) -> float | None:
    """The standard error of a mean over independent items; None for fewer than two."""
    return finite_or_none(stderr_of_mean(np.array([sample["value"] for sample in samples], float)))
