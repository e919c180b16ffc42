"""The studies of ablations/studies with which a budget should begin: the cost of each, the least difference that it can
detect, and the effect that was published for it."""

import bisect
import functools
from typing import Any

from ablations.config import resolve
from ablations.plan import power, site_speed
from ablations.plan.layouts import training_time
from ablations.plan.resources import HOUR, Cluster
from ablations.study_file import read_study, study_names

STUDY_SIZE, STUDY_SEEDS, STUDY_SHARE = "1b3", 2, 0.1  # ablations: size, seeds at least, share of the budget (assumed)
MOST_SEEDS = 8  # more are not considered; with so many the items of the tasks decide
# Effects in points of the mean of 27 tasks (tables 2 to 4 of the paper: unverified) say which study is worth its cost
# first: one whose expected effect can be seen.
EFFECTS = {"position": 2.0, "embedding_norm": 1.2, "corpus": 1.1, "activation": 0.16}


def first_studies(machines: Cluster) -> tuple[list[dict[str, Any]], str]:
    """The cost of each study of decoders in ablations/studies at STUDY_SIZE, with one node for each run, and the least
    difference that it detects.

    Studies that can detect their published effect come first, then studies without a published effect, last those for
    which MOST_SEEDS seeds would not be enough. Within each kind the cheapest comes first. Differences are in points
    (percent) of the mean score on BigScience's 27 tasks.

    Args:
        machines: the cluster.

    Returns:
        (a row for each study, the source of the predicted hours as text). A row is {"study": name, "arms", "seeds" of
        each arm, "runs", "gpu_hours" of all runs, "least": the least difference that the study detects, "effect": the
        published difference or None, "sees": whether the study can detect it, "within": whether the rows down to this
        one cost at most the share STUDY_SHARE of the budget}.
    """
    gpu = machines.gpu
    run = resolve([("size", STUDY_SIZE), ("train.precision", gpu.precision)])
    seconds, basis = training_time(run, gpu, machines.per_node, site_speed.read_site_speed(gpu))
    hours = seconds / HOUR * machines.per_node
    basis = basis or f"{STUDY_SIZE} does not fit on {machines.per_node} {gpu.name}"
    result: list[dict[str, Any]] = []
    for name, arms in decoder_studies():
        effect = EFFECTS.get(name)
        seeds = seeds_needed(effect, arms) if effect else None
        runs = arms * (seeds or STUDY_SEEDS)
        least = least_detectable(arms, seeds or STUDY_SEEDS)
        result.append(
            {"study": name, "arms": arms, "seeds": seeds or STUDY_SEEDS, "runs": runs, "gpu_hours": runs * hours}
            | {"least": least, "effect": effect, "sees": seeds is not None}
        )
    result.sort(key=lambda entry: (not entry["sees"], entry["effect"] is not None, entry["gpu_hours"]))
    spent = 0.0
    for entry in result:
        spent += entry["gpu_hours"]
        entry["within"] = spent <= STUDY_SHARE * machines.gpu_hours
    return result, basis


def decoder_studies() -> list[tuple[str, int]]:
    """The studies of ablations/studies that a plan considers: (name, number of arms with the baseline). Left out are
    studies of encoders and of runs that a wall clock ends, which are not trained at STUDY_SIZE and not evaluated on the
    27 tasks."""
    considered = []
    for name in study_names():
        study = read_study(name)
        base = dict(study.base)
        if study.arms and base.get("model.objective") != "mlm" and "train.budget" not in base:
            considered.append((name, 1 + len(study.arms)))
    return considered


@functools.cache
def least_detectable(arms: int, seeds: int) -> float:
    """The least difference that a study detects, in points (percent) of the mean score on BigScience's 27 tasks.
    `arms`: the number of arms with the baseline; `seeds`: the number of seeds of each arm."""
    return power.detectable(power.SUITE_SEED_SD, power.SUITE_ERROR, arms, seeds)


def seeds_needed(effect: float, arms: int) -> int | None:
    """The number of seeds of each arm with which a study detects a difference; None where MOST_SEEDS seeds are not
    enough. `effect`: the difference in points (percent) of the mean score on BigScience's 27 tasks; `arms`: the number
    of arms with the baseline."""
    counts = range(STUDY_SEEDS, MOST_SEEDS + 1)
    if least_detectable(arms, MOST_SEEDS) > effect:
        return None
    # more seeds see smaller effects, so that the first that are enough can be found by halving
    return counts[bisect.bisect_left(counts, -effect, key=lambda seeds: -least_detectable(arms, seeds))]
