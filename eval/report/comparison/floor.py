"""Decides whether a study may use a stored noise floor (ablations/noise_floor.py), and computes the variance from
it."""

from typing import Any

from ablations.noise_floor import REASONS_SHOWN, NoiseFloor, different_settings
from ablations.run import ABSENT
from ablations.values import flatten
from eval.report.comparison.comparable import EVALUATION_KEYS, conditions_by_task, short_hash, tasks_in_metric
from eval.report.reading.collection import is_setting
from eval.report.reading.runs import Cells
from eval.statistics.parts import Variance
from eval.statistics.seeds import within_arm_variance


def floor_conditions(cell: dict[str, Any]) -> dict[str, Any]:
    """The conditions of a run under which a noise floor was measured: {"settings": {...}, "text": {...}, "evaluation":
    {...}}. The floor can be used for another run only if these are equal. If an earlier version did not have a setting,
    the value that it always used is taken. `cell`: the content of the directory of an evaluated run."""
    data, config = cell["run"]["data"], ABSENT | flatten(cell["run"]["config"])
    settings = {key: value for key, value in config.items() if is_setting(key)}
    text = {"text": data["sha256"], "tokenizer": data["tokenizer"]["sha256"]}
    evaluation = {key: cell["eval"].get(key) for key in (*EVALUATION_KEYS, "corpora")}
    return {"settings": settings, "text": text, "evaluation": evaluation}


def hash_of_task_conditions(cell: dict[str, Any], metric: str) -> str:
    """A hash of the conditions of evaluation (items, prompts, versions ...) of all tasks of a metric. `cell`: the
    content of the directory of an evaluated run."""
    by_task = conditions_by_task(cell)
    return short_hash([[task, by_task[task]] for task in tasks_in_metric(cell, metric)])


def reason_floor_not_usable(floor: NoiseFloor, cells: Cells, baseline: str) -> str:
    """Why a study may not use a noise floor, as text: how its baseline differs from the runs of the floor. "" where it
    may use the floor, or no run of the baseline is evaluated yet. `cells`: {(arm, seed): content of the run
    directory}."""
    judged = [cell for (arm, _), cell in cells.items() if arm == baseline and "eval" in cell]
    if not judged:
        return ""
    conditions, stored = floor_conditions(judged[0]), floor.content
    reasons = different_settings(floor, flatten(judged[0]["run"]["config"]))
    for part in ("text", "evaluation"):
        for key in dict.fromkeys([*stored[part], *conditions[part]]):
            before, now = stored[part].get(key), conditions[part].get(key)
            if before != now:
                label = f"the {key}" if part == "text" else key
                reasons.append(f"{label}: {str(before)[:60]} there, {str(now)[:60]} here")
    return "; ".join(reasons[:REASONS_SHOWN]) + ("; ..." if len(reasons) > REASONS_SHOWN else "")


def noise_floor_variance(floor: NoiseFloor, cells: Cells, baseline: str, metric: str) -> Variance | None:
    """The variance of a single run between seeds, estimated from the runs of a noise floor. Runs that are part of the
    study are not used. None where fewer than two runs are left, the floor lacks the metric, or it was evaluated on
    other tasks than the baseline. `cells`: {(arm, seed): content of the run directory}."""
    stored = floor.content["metrics"].get(metric)
    judged = [cell for (arm, _), cell in cells.items() if arm == baseline and "eval" in cell]
    if not stored or not judged or stored["tasks"] != hash_of_task_conditions(judged[0], metric):
        return None
    study_runs = {cell["run"].get("fingerprint") for cell in cells.values() if "run" in cell}
    return within_arm_variance(
        {"floor": {i: x for i, (run, x) in enumerate(stored["results"].items()) if run not in study_runs}}
    )
