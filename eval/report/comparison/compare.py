"""Compares two arms on a metric: over the tasks that both were evaluated on, paired by seed and by item."""

from collections.abc import Callable, Iterable
from itertools import combinations
from math import inf
from typing import Any, NamedTuple

import numpy as np

from ablations.criteria import Criteria
from eval.report.comparison.comparable import Run, comparable_tasks, have_same_text, tasks_in_metric, tasks_of_any_run
from eval.report.reading.runs import Cells
from eval.statistics.comparison import Comparison, compare, corrected_family
from eval.statistics.items import SINGLE_ITEM_PREFIX, Stratum, independent_items, noise_parts, stratum_of_clusters
from eval.statistics.parts import LEVEL, Variance
from eval.statistics.seeds import Results, noise_floor, seed_variance, welch
from eval.statistics.sequential import alpha_share
from eval.statistics.verdicts import possible_places


class Metric(NamedTuple):
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
    """The largest possible size of an effect in the unit of a metric; inf for bits/byte. With one factor an effect is a
    difference of two arms, with two factors a difference of two such differences, and so on. `factors`: the number of
    factors of the effect."""
    return 2.0 ** (factors - 1) * METRICS[metric].largest


def interval_in_words(difference: float, half_width: float, metric: str, factors: int = 1) -> str:
    """A confidence interval as text, such as "+0.012 to +0.034", cut at the largest effect that the metric allows.
    `factors`: the number of factors whose interaction the difference is; 1: a difference of two arms."""
    most, digits = largest_effect(metric, factors), METRICS[metric].digits + 1
    low, high = max(-most, difference - half_width), min(most, difference + half_width)
    return f"{low:+.{digits}f} to {high:+.{digits}f}"


class Items(NamedTuple):
    """The items of a task that all of several runs have in common, sorted by name."""

    names: list[str]
    values: np.ndarray  # [runs, items]
    weights: np.ndarray  # [items]
    clusters: list[str]  # [items]: a name shared by items that are not independent


def common_items(cells: Cells, arm: str, seeds: Iterable[int], task: str) -> Items:
    """The items of a task that an arm's runs at the given seeds have in common, with the value of each item in each
    run. Items without weight, such as a document of no bytes, are left out. `cells`: {(arm, seed): content of the run
    directory}."""
    rows = [cells[arm, seed]["samples"].get(task, {}) for seed in seeds]
    names = sorted(set.intersection(*map(set, rows))) if rows else []
    names = [name for name in names if rows[0][name].weight > 0]
    values = np.array([[row[name].value for name in names] for row in rows], float).reshape(len(rows), len(names))
    weights = np.array([rows[0][name].weight for name in names], float)
    return Items(names, values, weights, [rows[0][name].cluster or f"{SINGLE_ITEM_PREFIX}{name}" for name in names])


def arm_strata(cells: Cells, arm: str, seeds: list[int], metric: str) -> list[Stratum]:
    """The results of an arm on the items of each task of a metric, averaged over seeds and in the unit of the metric:
    for each task a Stratum [1, items or clusters]. Tasks on which the runs have no item in common are left out.
    `cells`: {(arm, seed): content of the run directory}."""
    strata = []
    for task in tasks_of_any_run(cells, [(arm, seed) for seed in seeds], metric):
        items = common_items(cells, arm, seeds, task)
        if items.names:
            means = METRICS[metric].scale * items.values.mean(0, keepdims=True)
            strata.append(stratum_of_clusters(means, items.weights, items.clusters))
    return strata


class Pairing(NamedTuple):
    """The seeds with which an arm and the baseline are compared, and the tasks."""

    seeds: tuple[list[int], list[int]]  # of the arm and of the baseline
    paired: bool  # the same seeds, at least one
    tasks: list[str]  # on which both were evaluated in the same way; empty: the arms are not compared
    left_out: list[str]  # tasks of the metric on which only one was evaluated, or both in different ways


def choose_pairing(cells: Cells, results: Results, arm: str, baseline: str, metric: str) -> Pairing | None:
    """The seeds and tasks with which two arms are compared; None where either arm has no result.

    The seeds that both arms have are paired. Where the arms share no seed, or only one although both have several, the
    comparison is unpaired and uses all seeds of each arm. `cells`: {(arm, seed): content of the run directory};
    `results`: {arm: {seed: result on the metric}}.
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
    """The results of the arms as means over the given tasks alone, {arm: {seed: result}}.

    The results of an arm that was evaluated on exactly these tasks are unchanged. Any other arm is left out if one of
    its runs lacks one of the tasks, or if its runs were evaluated on them in different ways. `cells`: {(arm, seed):
    content of the run directory}; `results`: {arm: {seed: result on the metric, over all tasks of the run}}.
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
    """The differences of two arms, `arm` minus `baseline`, on the items of each task: for each task a Stratum [seeds,
    items or clusters] in the unit of the metric. Where the seeds are not paired, the results of each arm are averaged
    over its seeds before they are subtracted: [1, items or clusters]. `pairs`: the seeds and tasks of the
    comparison."""
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
    controlled: bool,
    floor: Variance | None,
    share: Callable[[int], float] = lambda seeds: 1.0,
    borrowed: Variance | None = None,
) -> Comparison | None:
    """The comparison of two arms (`arm` minus `baseline`), without multiple-comparison correction; None where either
    arm has no result, or the arms have no task in common that was evaluated in the same way.

    Args:
        cells: {(arm, seed): content of the run directory}.
        results: {arm: {seed: result on the metric}}.
        controlled: whether the other arms in `results` may be used to estimate the noise.
        floor: the variance between runs that differ only in the seed, used where the two arms share a single seed; None
            where it is unknown.
        share: a function of the number of seeds: the share of alpha (LEVEL) that a test at this number may use.
        borrowed: the variance of single runs from a stored noise floor (floor.py), pooled with the variance that the
            seeds of `results` show; None without a noise floor. Not used where tasks are left out of the comparison or
            its seeds are not paired.
    """
    pairs = choose_pairing(cells, results, arm, baseline, metric)
    if pairs is None or not pairs.tasks:
        return None
    on_tasks = results_on_tasks(cells, results, metric, pairs.tasks)
    ours, theirs = on_tasks[arm], on_tasks[baseline]
    mean = float(np.mean([ours[s] for s in pairs.seeds[0]]) - np.mean([theirs[s] for s in pairs.seeds[1]]))
    pool = on_tasks if controlled else {arm: ours, baseline: theirs}
    part = (
        seed_variance(pool, arm, baseline, None if pairs.left_out else borrowed)
        if pairs.paired
        else welch(ours.values(), theirs.values())
    )
    parts = difference_strata(cells, arm, baseline, pairs, metric)
    independent, replicated = independent_items(parts), part is not None or not floor
    if part is None and floor:
        part = Variance(floor.variance * (1 / len(pairs.seeds[0]) + 1 / len(pairs.seeds[1])), floor.dof)
    spent = share(min(map(len, pairs.seeds))) if replicated else 1.0
    noise = noise_parts(part, parts, level=LEVEL * spent or LEVEL)
    return compare(mean, noise.seeds, noise.items, replicated, independent, spent, noise.planned, noise.items_alone)


def alpha_share_function(criteria: Criteria, tests: int) -> Callable[[int], float]:
    """A function of the number of seeds: the share of alpha (LEVEL) that the test at this number may use. The share is
    always 1 where the number of seeds was fixed before the runs, so that there is only one test. `tests`: the number of
    comparisons that alpha is divided over."""
    return lambda seeds: alpha_share(seeds, criteria.seeds, tests) if criteria.sequential else 1.0


def compare_with_baseline(
    study: Any,
    cells: Cells,
    results: Results,
    metric: str,
    noise: Results | None = None,
    borrowed: Variance | None = None,
) -> dict[str, Comparison]:
    """The comparison of each arm with the baseline on a metric, {arm: Comparison}, without multiple-comparison
    correction. Arms that cannot be compared are left out.

    Args:
        study: a study or a Collection, which says the arms, the baseline, and by what criteria arms are judged.
        cells: {(arm, seed): content of the run directory}, whose items give the noise of items.
        results: {arm: {seed: result on the metric}}, the baseline among them.
        metric: a key of METRICS.
        noise: {group: {seed: result}} of runs outside the study; the runs of a group differ only in the seed. These
            runs add to the estimate of the noise where an arm shares a single seed with the baseline.
        borrowed: the variance of single runs from a stored noise floor (floor.py), pooled with the variance that the
            study's own seeds show; None without a noise floor.
    """
    if study.tuning:  # what other learning rates scatter does not count here
        results = {arm: row for arm, row in results.items() if arm in study.tuning.factors}
    floor = noise_floor({**(noise or {}), **{f"own {arm}": row for arm, row in results.items()}})
    spending = alpha_share_function(study.criteria, len(study.compared_arms))
    compared = {
        arm: compare_arms(cells, results, arm, study.arms[0], metric, study.controlled, floor, spending, borrowed)
        for arm in study.compared_arms
        if arm in results
    }
    return {arm: comparison for arm, comparison in compared.items() if comparison}


def rank_arms(study: Any, cells: Cells, results: Results, metric: str) -> list[tuple[dict[str, str], dict[str, float]]]:
    """Rankings of the arms, one for each group of arms that can be ranked together: [({arm: its place as text, such as
    "1" or "2–4"}, {arm: its mean over seeds})].

    An arm joins a group if it was evaluated on all tasks that the group has in common, or if these include all of its
    own. Means are over the tasks that all arms of the group have. Within a group every pair of arms is compared,
    corrected for the number of pairs. `cells`: {(arm, seed): content of the run directory}; `results`: {arm: {seed:
    result on the metric}}.
    """
    floor, groups = noise_floor(results), []
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
        adjusted = corrected_family({f"{i}": c for i, c in enumerate(pairs.values()) if c})
        counts = {key: adjusted[f"{i}"].is_significant if c else False for i, (key, c) in enumerate(pairs.items())}
        values = {arm: float(np.mean(list(means[arm].values()))) for arm in same if arm in means}
        if values.keys() >= set(same):
            groups.append((possible_places(values, counts, METRICS[metric].higher_is_better), values))
    return groups
