"""Reads the held-out loss of a finished run, for scaling laws and ladders, and checks that it equals the mean loss of
the evaluated items."""

import hashlib
import math
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

from ablations import rundir, safe_files
from ablations.safe_files import Damaged

TOLERANCE = 1e-6  # relative error of a loss, from the order of summation and from numbers rounded to 15 digits in files
FORM = {"bits_per_byte": {"value": rundir.NUMBER}, "tasks?": dict}
# entries that must be equal for a comparison of two losses: those of the evaluation, and those of each of its tasks
EVALUATION_KEYS = ("version", "lm_eval", "precision", "corpora")
TASK_KEYS = ("version", "n", "bytes", "items_sha256")


class HeldOutLoss(NamedTuple):
    """The held-out loss of a run, in bits per byte, with the settings and data of its evaluation. Two losses can be
    compared only where settings and data are equal."""

    value: float  # bits per byte
    evaluation: dict[str, Any]  # {name: value} of the settings and data of the evaluation


def read_held_out_loss(path: Path) -> HeldOutLoss | None:
    """Read the held-out loss in the file eval.json, or eval-step_N.json, at `path`; None where there is no such file.

    Raises:
        Damaged: the file is damaged, has no loss above 0, or its loss differs from the loss of the items in
            samples.jsonl.gz. (Only the items of an eval.json are stored.)
    """
    scores = safe_files.read_json(path)
    if scores is None:
        return None
    if misfit := safe_files.first_misfit(scores, FORM):
        raise Damaged(f"{path} is damaged, or of another version: {misfit} is not what an evaluation has there")
    value = float(scores["bits_per_byte"]["value"])
    if value <= 0:
        raise Damaged(f"{path} is damaged: {value:g} bits per byte")
    loss_tasks = {
        name: task
        for name, task in (scores.get("tasks") or {}).items()
        if isinstance(task, dict) and task.get("metric") == "bits_per_byte"
    }
    if path.name == rundir.EVAL and "samples_sha256" in scores:
        _check_items(path, scores, list(loss_tasks), value)
    evaluation = {key: scores.get(key) for key in EVALUATION_KEYS}
    evaluation |= {f"{name}: {key}": task.get(key) for name, task in sorted(loss_tasks.items()) for key in TASK_KEYS}
    return HeldOutLoss(value, evaluation)


def _check_items(path: Path, scores: dict[str, Any], tasks: list[str], value: float) -> None:
    """Check that a loss is the mean over tasks of the losses that the items in samples.jsonl.gz give. Raises Damaged
    where it is not.

    Args:
        path: the eval.json, beside which samples.jsonl.gz is.
        scores: the content of the eval.json.
        tasks: the names of the tasks whose metric is bits per byte.
        value: the loss in the eval.json, in bits per byte.
    """
    samples = path.with_name(rundir.SAMPLES)
    if hashlib.sha256(safe_files.read_bytes(samples) or b"").hexdigest() != scores["samples_sha256"]:
        raise Damaged(f"{samples} is not the file that {path.name} was written with")
    nats: dict[str, float] = defaultdict(float)
    sizes: dict[str, float] = defaultdict(float)
    for row in safe_files.read_gzip_json_lines(samples, ("task", "id")):
        if row["task"] in tasks:
            if misfit := safe_files.first_misfit(row, {"nats": rundir.NUMBER, "bytes": rundir.NUMBER}):
                raise Damaged(f"{samples} is damaged: {misfit} is not what an item has there")
            nats[row["task"]] += row["nats"]
            sizes[row["task"]] += row["bytes"]
    if not tasks or not all(sizes[task] > 0 for task in tasks):
        raise Damaged(f"{samples} has no items of the loss in {path.name}")
    mean = sum(nats[task] / math.log(2) / sizes[task] for task in tasks) / len(tasks)
    if abs(mean - value) > TOLERANCE * max(1.0, mean):
        raise Damaged(f"{path} has {value:.6g} bits per byte, and the items in {samples.name} give {mean:.6g}")


def evaluation_differences(first: HeldOutLoss, second: HeldOutLoss) -> str:
    """The differences between the evaluations of two runs, as text such as "precision bf16, not fp32" (the second run's
    value, then the first's). "" where their losses can be compared."""
    keys = dict.fromkeys([*first.evaluation, *second.evaluation])
    return "; ".join(
        f"{key} {str(second.evaluation.get(key))[:60]}, not {str(first.evaluation.get(key))[:60]}"
        for key in keys
        if first.evaluation.get(key) != second.evaluation.get(key)
    )
