"""Compares two arms on a metric: over the tasks that both were evaluated on, paired by seed and by item."""

from collections.abc import Callable, Iterable
from itertools import combinations
from math import inf
from typing import Any, NamedTuple

import numpy as np

from ablations.criteria import Criteria
from eval.report.comparison.comparable import Run, comparable_tasks, have_same_text, tasks_in_metric, tasks_of_any_run
from eval.report.reading.runs import Cells
from eval.statistics.comparison import Comparison, apply_holm_correction, compare
from eval.statistics.items import SINGLE_ITEM_PREFIX, Stratum, independent_items, noise_parts, stratum_of_clusters
from eval.statistics.parts import LEVEL, Variance
from eval.statistics.seeds import Results, seed_variance, welch_variance, within_arm_variance
from eval.statistics.sequential import alpha_share
from eval.statistics.verdicts import possible_ranks


class Metric(NamedTuple):
    """A metric by which arms are compared."""

    key: str  # in eval.json
    higher_is_better: bool
    digits: int
    scale: float  # from the outcome of an item to the unit of the metric
    unit: str
    largest: float  # the largest possible difference of two arms


METRICS = {
    "bits/byte": Metric("bits_per_byte", False, 3, 1.0, "bits/byte", inf),
    "zero-shot": Metric("zero_shot", True, 1, 100.0, "points", 100.0),
    "suite": Metric("suite", True, 1, 100.0, "points", 100.0),
}


def largest_effect(metric: str, factors: int = 1) -> float:
    """The largest possible absolute effect in the unit of a metric; inf for bits/byte. `factors`: the number of factors
    of the effect. With one factor the effect is a difference of two arms, with two a difference of two such
    differences, and so on."""
    return 2.0 ** (factors - 1) * METRICS[metric].largest


def interval_in_words(difference: float, half_width: float, metric: str, factors: int = 1) -> str:
    """A confidence interval as text, such as "+0.012 to +0.034". It is cut at the largest effect that the metric
    allows. `factors`: 1 for the difference of two arms or a main effect, 2
    for the interaction of two factors, and so on: it may be up to 2 ** (factors - 1) times as large."""
    most, digits = largest_effect(metric, factors), METRICS[metric].digits + 1
    low, high = max(-most, difference - half_width), min(most, difference + half_width)
    return f"{low:+.{digits}f} to {high:+.{digits}f}"


class Items(NamedTuple):
    """The items of a task that several runs have in common, sorted by name."""

    names: list[str]
    values: np.ndarray  # [runs, items]
    weights: np.ndarray  # [items]
    clusters: list[str]  # [items]: a name shared by items that are not independent


def common_items(cells: Cells, arm: str, seeds: Iterable[int], task: str) -> Items:
    """The items of a task that all runs of an arm (at the given seeds) have in common, with their values in each run.
    Items of weight 0, such as an empty document, are left out. `cells`: {(arm, seed): content of the run directory}."""
    rows = [cells[arm, seed]["samples"].get(task, {}) for seed in seeds]
    names = sorted(set.intersection(*map(set, rows))) if rows else []
    names = [name for name in names if rows[0][name].weight > 0]
    values = np.array([[row[name].value for name in names] for row in rows], float).reshape(len(rows), len(names))
    weights = np.array([rows[0][name].weight for name in names], float)
    return Items(names, values, weights, [rows[0][name].cluster or f"{SINGLE_ITEM_PREFIX}{name}" for name in names])


def arm_strata(cells: Cells, arm: str, seeds: list[int], metric: str) -> list[Stratum]:
    """The results of an arm on the items of each task of a metric, averaged over seeds, in the unit of the metric.
    Returns a list with a Stratum [1, items or clusters] for each task. Tasks on which the runs have no item in common
    are left out. `cells`: {(arm, seed): content of the run directory}."""
    strata = []
    for task in tasks_of_any_run(cells, [(arm, seed) for seed in seeds], metric):
        items = common_items(cells, arm, seeds, task)
        if items.names:
            means = METRICS[metric].scale * items.values.mean(0, keepdims=True)
            strata.append(stratum_of_clusters(means, items.weights, items.clusters))
    return strata


class Pairing(NamedTuple):
    """The seeds and tasks on which an arm and the baseline are compared."""

    seeds: tuple[list[int], list[int]]  # of the arm and of the baseline
    paired: bool  # the same seeds, at least one
    tasks: list[str]  # on which both were evaluated in the same way; empty: the arms are not compared
    left_out: list[str]  # tasks of the metric on which only one was evaluated, or both in different ways


def choose_pairing(cells: Cells, results: Results, arm: str, baseline: str, metric: str) -> Pairing | None:
    """Choose the seeds and tasks on which two arms are compared; None where either arm has no result.

    Seeds that both arms have are paired. The comparison is unpaired, with all seeds of each arm, in two cases: the arms
    share no seed; or they share only one, although both have several. `cells`: {(arm, seed): content of the run
    directory}; `results`: {arm: {seed: result on the metric}}.
    """
    ours, theirs = results[arm], results[baseline]
    shared = sorted(ours.keys() & theirs.keys())
    if not ours or not theirs:
        return None
    unpaired = not shared or (len(shared) < 2 and min(len(ours), len(theirs)) > 1)
    seeds = (sorted(ours), sorted(theirs)) if unpaired else (shared, shared)
    runs: list[Run] = [(arm, seed) for seed in seeds[0]] + [(baseline, seed) for seed in seeds[1]]
    tasks = comparable_tasks(cells, runs, metric) if have_same_text(cells, runs) else []
    left_out = [task for task in tasks_of_any_run(cells, runs, metric) if task not in tasks]
    return Pairing(seeds, not unpaired, tasks, left_out)


def results_on_tasks(cells: Cells, results: Results, metric: str, tasks: list[str]) -> Results:
    """The results of the arms, averaged over some of the metric's tasks: {arm: {seed: result}}.

    An arm that was evaluated on exactly these tasks keeps its results. Another arm is left out if one of its runs lacks
    one of the tasks, or if its runs were evaluated on them differently. `cells`: {(arm, seed): content of the run
    directory}; `results`: {arm: {seed: result over all tasks of the metric}}.
    """
    on_tasks: Results = {}
    for arm, row in results.items():
        runs: list[Run] = [(arm, seed) for seed in row]
        if all(set(tasks_in_metric(cells[run], metric)) == set(tasks) for run in runs):
            on_tasks[arm] = row
        elif tasks and set(tasks) <= set(comparable_tasks(cells, runs, metric)):
            scale = METRICS[metric].scale
            on_tasks[arm] = {
                seed: scale * float(np.mean([cells[arm, seed]["eval"]["tasks"][task]["value"] for task in tasks]))
                for seed in row
            }
    return on_tasks


def difference_strata(cells: Cells, arm: str, baseline: str, pairs: Pairing, metric: str) -> list[Stratum]:
    """The differences `arm` minus `baseline` on the items of each task, in the unit of the metric. Returns a list with
    a Stratum [seeds, items or clusters] for each task. If seeds are not paired, each arm is averaged over its seeds
    first: [1, items or clusters]. `pairs`: the seeds and tasks of the comparison."""
    differences = []
    for task in pairs.tasks:
        ours, theirs = (
            common_items(cells, arm, pairs.seeds[0], task),
            common_items(cells, baseline, pairs.seeds[1], task),
        )
        if not ours.names:
            continue
        if pairs.paired:
            d_SN = ours.values - theirs.values
        else:
            d_SN = (ours.values.mean(0) - theirs.values.mean(0))[None]
        clusters = [
            a if not a.startswith(SINGLE_ITEM_PREFIX) else b
            for a, b in zip(ours.clusters, theirs.clusters, strict=True)
        ]
        differences.append(stratum_of_clusters(METRICS[metric].scale * d_SN, ours.weights, clusters))
    return differences


def compare_arms(
    cells: Cells,
    results: Results,
    arm: str,
    baseline: str,
    metric: str,
    pool_all_arms: bool,
    fallback_variance: Variance | None,
    share_of_alpha: Callable[[int], float] = lambda seeds: 1.0,
    stored_variance: Variance | None = None,
) -> Comparison | None:
    """Compare two arms (`arm` minus `baseline`), without multiple-comparison correction. None where either arm has no
    result, or no task can be compared.

    Args:
        cells: {(arm, seed): content of the run directory}.
        results: {arm: {seed: result on the metric}}.
        pool_all_arms: whether the noise between seeds is pooled over all arms in `results`; else over the two arms
            only.
        fallback_variance: the variance of a single run between seeds, used where the two arms share only one seed; None
            where it is unknown.
        share_of_alpha: a function of the number of seeds; returns the share of alpha (LEVEL) that the test may use
            then.
        stored_variance: the variance of a single run from a stored noise floor (floor.py); None without one. It is
            pooled with that of `results`, unless tasks are left out or the seeds are not paired.
    """
    pairs = choose_pairing(cells, results, arm, baseline, metric)
    if pairs is None or not pairs.tasks:
        return None
    on_tasks = results_on_tasks(cells, results, metric, pairs.tasks)
    ours, theirs = on_tasks[arm], on_tasks[baseline]
    mean = float(np.mean([ours[s] for s in pairs.seeds[0]]) - np.mean([theirs[s] for s in pairs.seeds[1]]))
    pool = on_tasks if pool_all_arms else {arm: ours, baseline: theirs}
    part = (
        seed_variance(pool, arm, baseline, None if pairs.left_out else stored_variance)
        if pairs.paired
        else welch_variance(ours.values(), theirs.values())
    )
    parts = difference_strata(cells, arm, baseline, pairs, metric)
    independent, replicated = independent_items(parts), part is not None or not fallback_variance
    if part is None and fallback_variance:
        part = Variance(
            fallback_variance.variance * (1 / len(pairs.seeds[0]) + 1 / len(pairs.seeds[1])), fallback_variance.dof
        )
    spent = share_of_alpha(min(map(len, pairs.seeds))) if replicated else 1.0
    noise = noise_parts(part, parts, level=LEVEL * spent or LEVEL)
    return compare(mean, noise.seeds, noise.items, replicated, independent, spent, noise.planned, noise.items_alone)


def alpha_share_function(criteria: Criteria, tests: int) -> Callable[[int], float]:
    """Make a function of the number of seeds that returns the share of alpha (LEVEL) which the test at this number may
    use. The share is always 1 unless seeds are added until the study is decided. `tests`: the number of comparisons
    that share alpha."""
    return lambda seeds: alpha_share(seeds, criteria.seeds, tests) if criteria.sequential else 1.0


def compare_with_baseline(
    study: Any,
    cells: Cells,
    results: Results,
    metric: str,
    noise: Results | None = None,
    stored_variance: Variance | None = None,
) -> dict[str, Comparison]:
    """Compare each arm with the baseline on a metric, without multiple-comparison correction: {arm: Comparison}. Arms
    that cannot be compared are left out.

    Args:
        study: a Study or a Collection, with the arms, the baseline and the criteria.
        cells: {(arm, seed): content of the run directory}.
        results: {arm: {seed: result on the metric}}, with the baseline.
        metric: a key of METRICS.
        noise: {group: {seed: result}} of runs outside the study, where runs of a group differ only in the seed. They
            add to the estimate of the noise for arms that share only one seed with the baseline. None: no such runs.
        stored_variance: the variance of a single run from a stored noise floor (floor.py), pooled with that of the
            study's own seeds; None without one.
    """
    if study.tuning:  # what other learning rates scatter does not count here
        results = {arm: row for arm, row in results.items() if arm in study.tuning.factors}
    floor = within_arm_variance({**(noise or {}), **{f"own {arm}": row for arm, row in results.items()}})
    spending = alpha_share_function(study.criteria, len(study.compared_arms))
    compared = {
        arm: compare_arms(
            cells, results, arm, study.arms[0], metric, study.controlled, floor, spending, stored_variance
        )
        for arm in study.compared_arms
        if arm in results
    }
    return {arm: comparison for arm, comparison in compared.items() if comparison}


def rank_arms(study: Any, cells: Cells, results: Results, metric: str) -> list[tuple[dict[str, str], dict[str, float]]]:
    """Rank the arms, within groups that were evaluated on common tasks. Returns for each group ({arm: its place as
    text, such as "1" or "2–4"}, {arm: its mean over seeds}).

    Groups grow arm by arm. An arm joins a group in two cases: it has all common tasks of the group; or the group has
    all tasks of the arm, which are then the common tasks. Means are over the common tasks. All pairs of arms of a group
    are compared, corrected for their number. `cells`: {(arm, seed): content of the run directory}; `results`: {arm:
    {seed: result on the metric}}.
    """
    floor, groups = within_arm_variance(results), []
    ungrouped = [arm for arm in study.arms if results[arm]]
    while ungrouped:
        first, *others = ungrouped
        runs: list[Run] = [(first, seed) for seed in results[first]]
        tasks = comparable_tasks(cells, runs, metric)
        same = [first]
        for arm in others:
            arm_runs: list[Run] = [(arm, seed) for seed in results[arm]]
            shared = comparable_tasks(cells, [*runs, *arm_runs], metric)
            if (
                shared
                and set(shared) in (set(tasks), set(tasks_in_metric(cells[arm_runs[0]], metric)))
                and have_same_text(cells, [*runs, *arm_runs])
            ):
                tasks, same, runs = shared, [*same, arm], [*runs, *arm_runs]
        ungrouped = [arm for arm in ungrouped if arm not in same]
        means = results_on_tasks(cells, {arm: results[arm] for arm in same}, metric, tasks)
        both = list(combinations(same, 2))
        spending = alpha_share_function(study.criteria, len(both))
        pairs = {(a, b): compare_arms(cells, results, a, b, metric, False, floor, spending) for a, b in both}
        adjusted = apply_holm_correction({f"{i}": c for i, c in enumerate(pairs.values()) if c})
        counts = {key: adjusted[f"{i}"].is_significant if c else False for i, (key, c) in enumerate(pairs.items())}
        values = {arm: float(np.mean(list(means[arm].values()))) for arm in same if arm in means}
        if values.keys() >= set(same):
            groups.append((possible_ranks(values, counts, METRICS[metric].higher_is_better), values))
    return groups
