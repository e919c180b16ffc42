"""Runs tasks through lm-eval: this project's own tasks, whose items are made from held-out text, and lm-eval's
tasks."""

import hashlib
import json
import logging
import math
from collections import Counter
from typing import Any

from datasets import Dataset
from lm_eval.api.task import ConfigurableTask
from lm_eval.evaluator import evaluate as lm_evaluate

from eval.tasks.definitions import FAILURES, Definition, error_in_one_line, is_greedy
from eval.tasks.definitions import definitions as definitions  # for those who `from eval import harness`
from eval.tasks.mirror import Mirror, Source
from eval.tasks.probes import short_hash
from eval.tasks.scorer import Scorer

SPLITS = ("training_split", "validation_split", "test_split", "fewshot_split")
EXAMPLES_SEED = 1234  # draws the examples of a prompt; lm-eval's own
FIRST_REQUESTS = 3  # items whose requests are built to see whether a task can be run
# Columns of data sets whose text several items may share: MultiRC, BoolQ, RACE, SQuAD and its like, XNLI.
PASSAGE_COLUMNS = ("paragraph", "passage", "article", "context", "story", "premise")


# ------------------------------------------------------------------------------------------------ our tasks


def lm_eval_task(name: str, spec: dict, items: list[dict]) -> ConfigurableTask:
    """An lm-eval task object for a task made from held-out text. `spec`: the task's entry in tasks.yaml, which says how
    it is scored; `items`: the task's items, from eval/tasks/probes.py."""
    kind = spec["output_type"]
    metrics = {spec["metric"]: "bits_per_byte" if kind == "loglikelihood_rolling" else "mean"}
    if kind == "loglikelihood":
        metrics["perplexity"] = "perplexity"
    if kind == "multiple_choice":
        metrics["acc"] = "mean"
    return ConfigurableTask(
        config={
            "task": name,
            "output_type": kind,
            "metric_list": [
                {
                    "metric": metric,
                    "aggregation": aggregation,
                    "higher_is_better": metric not in ("perplexity", "bits_per_byte"),
                }
                for metric, aggregation in metrics.items()
            ],
            "custom_dataset": lambda **_: {"test": Dataset.from_list(items)},
            "test_split": "test",
            "num_fewshot": 0,
            "doc_to_text": "context",
            "doc_to_target": "target",
            "target_delimiter": "",
            **({"doc_to_choice": "choices"} if kind == "multiple_choice" else {}),
        }
    )


def run_held_out_tasks(scorer: Scorer, tasks: dict[str, tuple[dict, list[dict]]]) -> dict[str, dict]:
    """Run tasks made from held-out text through lm-eval.

    Args:
        scorer: the model.
        tasks: {task: (its entry in tasks.yaml, its items)}.

    Returns {task: result}, where a result has:
        value: the value of the task's metric.
        acc, perplexity: accuracy where the task has choices, and perplexity where it predicts words, unless that is the
            metric.
        context_tokens: [smallest, largest] number of tokens of an item's context; not for whole texts.
        prompts_sha256, items_sha256: hashes of the prompts and of the items.
        samples: for each item in their order {"id", "cluster", "value": 0 or 1}, or for a whole text {"id", "cluster",
            "nats", "bytes", and "unknown_bytes" where there are any}.
    """
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    lm_tasks = {name: lm_eval_task(name, spec, items) for name, (spec, items) in tasks.items()}
    run = lm_evaluate(lm=scorer, task_dict={"tasks": lm_tasks, "groups": {}}, bootstrap_iters=0, log_samples=True)
    results = {}
    for name, (spec, items) in tasks.items():
        values = {key.split(",")[0]: value for key, value in run["results"][name].items()}
        extra = {"acc", "perplexity"} & values.keys() - {spec["metric"]}
        result: dict[str, Any] = {"value": values[spec["metric"]], **{key: values[key] for key in sorted(extra)}}
        rolling = spec["output_type"] == "loglikelihood_rolling"
        if not rolling:
            lengths = [len(scorer.encode(item["context"])) for item in items]
            result["context_tokens"] = [min(lengths), max(lengths)]
        ordered = sorted(run["samples"][name], key=lambda row: row["doc_id"])
        samples = []
        for row in ordered:
            value, item = row[spec["metric"]], items[row["doc_id"]]
            sample = {"id": item["id"]} | ({"cluster": item["cluster"]} if "cluster" in item else {})
            if rolling:
                sample |= {"nats": -value[0], "bytes": value[1]}
                if unknown := scorer.unknown_bytes(item["target"]):
                    sample["unknown_bytes"] = unknown
            else:
                sample["value"] = int(value)
            samples.append(sample)
        result["prompts_sha256"] = sha256([row["arguments"] for row in ordered])
        result["items_sha256"] = sha256([item["id"] for item in items])
        results[name] = result | {"samples": samples}
    return results


# ------------------------------------------------------------------------------------------------ lm-eval's tasks


def build_task(definition: Definition, mirror: Mirror) -> ConfigurableTask:
    """An lm-eval task object that reads only task data on this machine. Splits that the task does not need are removed
    from its definition, since lm-eval would load them. `mirror`: the folder of task data."""
    config, shots, examples = definition.config, definition.shots, definition.examples
    tables = {split.split: mirror.table(split) for split in definition.sources}
    config = {key: value for key, value in config.items() if key not in ("tag", "group", "task_list")}
    if not shots:
        config.pop("fewshot_config", None)
    splits = {key: config[key] if config.get(key) in tables else None for key in SPLITS}
    if not shots:
        splits |= {"training_split": None, "fewshot_split": None}
    if config.get("test_split") and not (shots and examples and examples.split == config.get("validation_split")):
        splits["validation_split"] = None
    lm_task = ConfigurableTask(
        config={**config, **splits, "num_fewshot": shots, "dataset_kwargs": None, "custom_dataset": lambda **_: tables}
    )
    lm_task.set_fewshot_seed(EXAMPLES_SEED)
    return lm_task


def reason_not_to_run(definition: Definition, mirror: Mirror) -> str:
    """The reason why a task cannot be run on the data in the folder, as text; "" where it can. The task and its first
    requests are built without a model, so that errors are found before a run is trained. `mirror`: the folder of task
    data."""
    settings = definition.config.get("generation_kwargs") or {}
    if not isinstance(settings, dict) or not is_greedy(settings):
        return "it asks for sampled answers, or several beams, and only greedy ones are made here"
    try:
        lm_task = build_task(definition, mirror)
        lm_task.build_all_requests(limit=FIRST_REQUESTS, rank=0, world_size=1)
        return "" if lm_task.instances else "it has no items"
    except FAILURES as error:
        return error_in_one_line(error)


def run_lm_eval_tasks(
    scorer: Scorer, tasks: dict[str, Definition], mirror: Mirror
) -> tuple[dict[str, dict], dict[str, str]]:
    """Run tasks of lm-eval. A task that fails does not affect other tasks.

    Args:
        scorer: the model.
        tasks: {task: definition}.
        mirror: the folder of task data.

    Returns ({task: result}, {task that failed: reason}). A result has:
        metric, value: the name and the value of the task's main metric; other metrics are entries by their names.
        version, shots: the version of the task, and the number of examples in each prompt.
        n: the number of items.
        chance, guess: the scores that need no knowledge (`scores_without_knowledge`).
        data, examples: the splits of the items and of the examples in the prompts, with their hashes.
        context_tokens: [smallest, largest] number of tokens of an item's context.
        prompts_sha256, items_sha256: hashes of the prompts and of the items.
        samples: [{"id", "value", "cluster"}, ...], one for each item.
    """
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    failed: dict[str, str] = {}
    lm_tasks: dict[str, ConfigurableTask] = {}
    for name, definition in tasks.items():
        try:
            lm_tasks[name] = build_task(definition, mirror)
        except OSError:
            raise
        except FAILURES as error:
            failed[name] = error_in_one_line(error)
    results: dict[str, dict] = {}
    try:
        results = _run_together(scorer, lm_tasks)
    except OSError:
        raise  # of the disk: the journal cannot be written
    except FAILURES:  # one of them fails: run each alone; the journal has what was scored already
        for name in lm_tasks:
            try:
                lm_tasks[name] = build_task(tasks[name], mirror)
                results |= _run_together(scorer, {name: lm_tasks[name]})
            except OSError:
                raise
            except FAILURES as error:
                failed[name] = error_in_one_line(error)
    for name, result in results.items():
        result["shots"] = tasks[name].shots
        result["data"] = _data_origin(mirror, tasks[name].source)
        if examples := tasks[name].examples:
            result["examples"] = _data_origin(mirror, examples)
    return results, failed


def _run_together(scorer: Scorer, lm_tasks: dict[str, ConfigurableTask]) -> dict[str, dict]:
    """Run several lm-eval tasks together, so that a request of two tasks is scored only once. Returns {task: result, as
    in `run_lm_eval_tasks`}."""
    if not lm_tasks:
        return {}
    run = lm_evaluate(lm=scorer, task_dict={"tasks": lm_tasks, "groups": {}}, bootstrap_iters=0, log_samples=True)
    return {name: _task_result(scorer, lm_tasks[name], run, name) for name in lm_tasks}


def _data_origin(mirror: Mirror, source: Source) -> dict:
    """The origin of the data of a split: its path, configuration and split name on the hub, number of rows, hash and
    revision. `mirror`: the folder of task data."""
    entry = mirror.entries[source]
    return {**source._asdict(), **{key: entry.get(key) for key in ("rows", "sha256", "revision")}}


def _task_result(scorer: Scorer, lm_task: ConfigurableTask, run: Any, name: str) -> dict:
    """The result of one task, as in `run_lm_eval_tasks`. `run`: lm-eval's return value for all tasks that ran together;
    `name`: the name of the task in it. Raises ValueError where the value of its main metric is not finite."""
    values = {
        key.split(",")[0]: value
        for key, value in run["results"][name].items()
        if isinstance(value, float | int) and "_stderr" not in key
    }
    metrics = [entry["metric"] for entry in lm_task.config.metric_list or [] if isinstance(entry["metric"], str)]
    metrics = metrics or list(values)
    metric = next((headline for headline in ("acc", "exact_match") if headline in metrics), metrics[0])
    if not math.isfinite(values[metric]):
        raise ValueError(f"its {metric} is {values[metric]}, which is no number")
    rows, first_filter = {}, None  # where a task filters its answers in several ways, the first counts
    for row in run["samples"][name]:
        first_filter = first_filter or row["filter"]
        if row["filter"] == first_filter:
            rows[row["doc_id"]] = row
    ordered = [rows[i] for i in sorted(rows)]
    questions = [json.dumps([row["arguments"], row["target"]], default=str) for row in ordered]
    repeats: Counter[str] = Counter()
    samples = []
    for row, question in zip(ordered, questions, strict=True):
        repeats[question] += 1
        repetition = f"-{repeats[question]}" if repeats[question] > 1 else ""  # the same question twice is two items
        if isinstance(row[metric], float | int):
            sample = {"id": short_hash(question) + repetition, "value": float(row[metric])}
            samples.append(sample | passage_cluster(row["doc"]))
    contexts = [len(scorer.encode(argument[0])) for row in ordered for argument in row["arguments"][:1]]
    return {
        "metric": metric,
        "value": values[metric],
        **{key: values[key] for key in metrics if key in values and key != metric and math.isfinite(values[key])},
        **scores_without_knowledge(lm_task.config.output_type, metric, ordered),
        "version": lm_task.VERSION,
        "n": len(ordered),
        "higher_is_better": lm_task.higher_is_better()[metric],
        "context_tokens": [min(contexts), max(contexts)],
        "prompts_sha256": sha256([row["arguments"] for row in ordered]),
        "items_sha256": sha256([[row["doc"], row["target"]] for row in ordered]),
        "samples": samples,
    }


def sha256(value: Any) -> str:
    """The sha256 of a value written as JSON, with sorted keys; parts that JSON cannot hold are converted by str()."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def passage_cluster(doc: Any) -> dict[str, str]:
    """The cluster of an item: {"cluster": hash of its passage, article or premise}; {} where it has none. Items with
    the same passage are dependent. `doc`: the item's row of the data set."""
    if not isinstance(doc, dict):
        return {}
    for column in PASSAGE_COLUMNS:
        if isinstance(doc.get(column), str) and doc[column].strip():
            return {"cluster": short_hash(" ".join(doc[column].split()))}
    return {}


def scores_without_knowledge(kind: str, metric: str, rows: list[dict]) -> dict[str, float | None]:
    """The scores that a model without knowledge can reach, from 0 to 1: {"chance", "guess"}. Both are None for metrics
    other than accuracy and exact match.

    "chance" is the expected score of a random option; 0 where the answer is free text.

    "guess" is the score of the best constant answer, and at least "chance". A constant answer is the number of an
    option, or a text where the answer is free. Where each item has its own options, their numbers mean nothing, and
    "guess" is a little above "chance".

    Args:
        kind: lm-eval's output_type of the task.
        metric: the name of its main metric.
        rows: lm-eval's logged samples, one for each item.
    """
    free_text = metric == "exact_match" or kind == "loglikelihood"
    if not (free_text or (kind == "multiple_choice" and metric == "acc")):
        return {"chance": None, "guess": None}
    accepted = [set(map(str, row["target"] if isinstance(row["target"], list) else [row["target"]])) for row in rows]
    counts = Counter(answer for answers in accepted for answer in answers)
    commonest = max(counts.values(), default=0) / len(rows)
    if free_text:
        return {"chance": 0.0, "guess": commonest}
    # acc_mutual_info asks for each option a second time, without a context
    options = [sum(argument[0] != "" for argument in row["arguments"]) or len(row["arguments"]) for row in rows]
    chance = sum(len(right) / number for number, right in zip(options, accepted, strict=True)) / len(rows)
    return {"chance": chance, "guess": max(chance, commonest)}
