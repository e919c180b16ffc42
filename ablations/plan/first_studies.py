"""The order in which a budget should run the studies in ablations/studies. For each study: its cost, the least
difference that it can detect, and its published effect."""

import bisect
import functools
from typing import Any

from ablations.config import resolve
from ablations.plan import power, site_speed
from ablations.plan.layouts import training_time
from ablations.plan.resources import HOUR, Cluster
from ablations.study_file import read_study, study_names

STUDY_SIZE, STUDY_SEEDS, STUDY_SHARE = "1b3", 2, 0.1  # of ablations: size, least seeds, share of the budget (assumed)
MOST_SEEDS = 8  # with more seeds the noise hardly falls, as most of it is from the items of the tasks
# {study: published effect, in points of the mean of 27 tasks} (tables 2 to 4 of BigScience's paper: unverified)
EFFECTS = {"position": 2.0, "embedding_norm": 1.2, "corpus": 1.1, "activation": 0.16}


def ranked_studies(machines: Cluster) -> tuple[list[dict[str, Any]], str]:
    """The studies of decoders in ablations/studies at STUDY_SIZE, in the order in which to run them.

    Studies that can detect their published effect come first, then studies without a published effect. Last come
    studies that cannot detect it with MOST_SEEDS seeds. Within each kind the cheapest comes first. Differences are in
    points (percent) of the mean score on BigScience's 27 evaluation tasks.

    Args:
        machines: the cluster, on which each run has one node.

    Returns:
        (a row for each study, the source of the predicted hours as text). A row is {"study": name, "arms", "seeds": of
        each arm, "runs", "gpu_hours": of all runs, "least": the least detectable difference, "effect": the published
        difference or None, "sees": whether the effect can be detected, "within": see below}. "within" is whether the
        rows up to this one together cost at most the share STUDY_SHARE of the budget.
    """
    gpu = machines.gpu
    run = resolve([("size", STUDY_SIZE), ("train.precision", gpu.precision)])
    seconds, basis = training_time(run, gpu, machines.per_node, site_speed.read_site_speed(gpu))
    hours = seconds / HOUR * machines.per_node
    basis = basis or f"{STUDY_SIZE} does not fit on {machines.per_node} {gpu.name}"
    rows: list[dict[str, Any]] = []
    for name, arms in decoder_studies():
        effect = EFFECTS.get(name)
        enough = seeds_needed(effect, arms) if effect else None
        seeds = enough or STUDY_SEEDS
        runs, least = arms * seeds, detectable_points(arms, seeds)
        rows.append(
            {"study": name, "arms": arms, "seeds": seeds, "runs": runs, "gpu_hours": runs * hours}
            | {"least": least, "effect": effect, "sees": enough is not None}
        )
    rows.sort(key=lambda row: (not row["sees"], row["effect"] is not None, row["gpu_hours"]))
    spent = 0.0
    for row in rows:
        spent += row["gpu_hours"]
        row["within"] = spent <= STUDY_SHARE * machines.gpu_hours
    return rows, basis


def decoder_studies() -> list[tuple[str, int]]:
    """The studies in ablations/studies that train decoders on a number of tokens: (name, number of arms with the
    baseline) of each. Studies of encoders, and of runs whose budget is a time, are left out."""
    considered = []
    for name in study_names():
        study = read_study(name)
        base = dict(study.base)
        if study.arms and base.get("model.objective") != "mlm" and "train.budget" not in base:
            considered.append((name, 1 + len(study.arms)))
    return considered


@functools.cache
def detectable_points(arms: int, seeds: int) -> float:
    """The least difference that a study can detect, in points (percent) of the mean score on BigScience's 27 evaluation
    tasks. `arms`: the number of arms with the baseline; `seeds`: the number of seeds of each arm."""
    return power.detectable_difference(power.SUITE_SEED_SD, power.SUITE_ERROR, arms, seeds)


def seeds_needed(effect: float, arms: int) -> int | None:
    """The least number of seeds of each arm with which a study can detect an effect; None where MOST_SEEDS are not
    enough. `effect`: a difference in points of the mean score on BigScience's 27 evaluation tasks; `arms`: the number
    of arms with the baseline."""
    counts = range(STUDY_SEEDS, MOST_SEEDS + 1)
    if detectable_points(arms, MOST_SEEDS) > effect:
        return None
    # the least detectable difference falls with more seeds, which allows a binary search
    return counts[bisect.bisect_left(counts, -effect, key=lambda seeds: -detectable_points(arms, seeds))]
