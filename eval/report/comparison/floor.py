"""Whether a study may use a stored noise floor (ablations/noise_floor.py), and the variance that it then gives."""

from typing import Any

from ablations.noise_floor import REASONS_SHOWN, NoiseFloor, different_settings
from ablations.run import ABSENT
from ablations.values import flatten
from eval.report.comparison.comparable import EVALUATION_KEYS, conditions_by_task, short_hash, tasks_in_metric
from eval.report.reading.collection import is_setting
from eval.report.reading.runs import Cells
from eval.statistics.parts import Variance
from eval.statistics.seeds import noise_floor


def floor_conditions(cell: dict[str, Any]) -> dict[str, Any]:
    """Everything that has to be equal in two runs so that a noise floor measured with one holds for the other:
    {"settings", "text", "evaluation"}, a dictionary each. Settings that an earlier version did not have get the value
    that was then in effect. `cell`: the content of an evaluated run's directory."""
    data, config = cell["run"]["data"], ABSENT | flatten(cell["run"]["config"])
    settings = {key: value for key, value in config.items() if is_setting(key)}
    text = {"text": data["sha256"], "tokenizer": data["tokenizer"]["sha256"]}
    evaluation = {key: cell["eval"].get(key) for key in (*EVALUATION_KEYS, "corpora")}
    return {"settings": settings, "text": text, "evaluation": evaluation}


def hash_of_tasks(cell: dict[str, Any], metric: str) -> str:
    """A hash of everything in the tasks of a metric that must be equal for comparing scores: items, prompts, versions.
    `cell`: the content of an evaluated run's directory."""
    identities = conditions_by_task(cell)
    return short_hash([[task, identities[task]] for task in tasks_in_metric(cell, metric)])


def reason_floor_not_usable(floor: NoiseFloor, cells: Cells, baseline: str) -> str:
    """The reason why a study may not use a noise floor, as text: what its baseline differs in from the floor's runs. ""
    where the study may use it, or no run of the baseline is evaluated yet. `cells`: {(arm, seed): content of the run
    directory}."""
    judged = [cell for (arm, _), cell in cells.items() if arm == baseline and "eval" in cell]
    if not judged:
        return ""
    identity, stored = floor_conditions(judged[0]), floor.content
    reasons = different_settings(floor, flatten(judged[0]["run"]["config"]))
    for part in ("text", "evaluation"):
        for key in dict.fromkeys([*stored[part], *identity[part]]):
            before, now = stored[part].get(key), identity[part].get(key)
            if before != now:
                label = f"the {key}" if part == "text" else key
                reasons.append(f"{label}: {str(before)[:60]} there, {str(now)[:60]} here")
    return "; ".join(reasons[:REASONS_SHOWN]) + ("; ..." if len(reasons) > REASONS_SHOWN else "")


def noise_floor_variance(floor: NoiseFloor, cells: Cells, baseline: str, metric: str) -> Variance | None:
    """The variance of a single run, from the runs of a noise floor that are not part of the study. None where there are
    fewer than two such runs, the floor lacks the metric, or its runs were evaluated on other tasks than the baseline.
    `cells`: {(arm, seed): content of the run directory}."""
    stored = floor.content["metrics"].get(metric)
    judged = [cell for (arm, _), cell in cells.items() if arm == baseline and "eval" in cell]
    if not stored or not judged or stored["tasks"] != hash_of_tasks(judged[0], metric):
        return None
    study_runs = {cell["run"].get("fingerprint") for cell in cells.values() if "run" in cell}
    return noise_floor(
        {"floor": {i: x for i, (run, x) in enumerate(stored["results"].items()) if run not in study_runs}}
    )
