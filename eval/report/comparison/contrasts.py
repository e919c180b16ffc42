"""The effects of a factorial: contrasts (weighted sums) of all arms, paired by seed and by item. Their noise has a part
from seeds and a part from items."""

import numpy as np

from ablations.factorial import Factorial
from eval.report.comparison.comparable import Run, comparable_tasks, have_same_text
from eval.report.comparison.compare import METRICS, common_items, results_on_tasks
from eval.report.reading.runs import Cells
from eval.statistics.comparison import Comparison, compare
from eval.statistics.items import Stratum, independent_items, noise_parts, stratum_of_clusters
from eval.statistics.parts import Variance
from eval.statistics.seeds import Results, arms_that_scatter_more, residual_squares, wider_variance

Coefficients = dict[str, float]  # {arm: its weight}


def factorial_effects(
    design: Factorial | None, baseline: str, cells: Cells, results: Results, metric: str
) -> dict[int, Comparison]:
    """The effects of a factorial, each compared with 0: {bit mask of the effect's factors: Comparison}, without
    multiple-comparison correction. Empty where a combination of factors has no result yet, or `design` is None (the
    study is no factorial).

    Args:
        baseline: the arm in which no factor is changed.
        cells: {(arm, seed): content of the run directory}.
        results: {arm: {seed: result on the metric}}.
    """
    if not design:
        return {}
    results = {arm: row for arm, row in results.items() if row}
    estimates = {}
    for effect in design.effects:
        weights = {design.arm_label(c) or baseline: w for c, w in design.coefficients(effect).items()}
        if comparison := compare_contrast(cells, results, weights, metric):
            estimates[effect] = comparison
    return estimates


def compare_contrast(cells: Cells, results: Results, weights: Coefficients, metric: str) -> Comparison | None:
    """Compare a weighted sum of arms with 0. Only seeds that all of these arms have, and tasks on which all were
    evaluated in the same way, are used; None where there are none. `cells`: {(arm, seed): content of the run
    directory}; `results`: {arm: {seed: result on the metric}}; `weights`: {arm: its weight}."""
    if not weights.keys() <= results.keys():
        return None
    seeds = sorted(set.intersection(*(set(results[arm]) for arm in weights)))
    runs: list[Run] = [(arm, seed) for arm in weights for seed in seeds]
    tasks = comparable_tasks(cells, runs, metric) if runs and have_same_text(cells, runs) else []
    if not tasks:
        return None
    on_tasks = {arm: row for arm, row in results_on_tasks(cells, results, metric, tasks).items() if arm in weights}
    shared = {arm: {seed: row[seed] for seed in seeds} for arm, row in on_tasks.items()}
    by_seed = np.array([sum(w * shared[arm][seed] for arm, w in weights.items()) for seed in seeds])
    strata = contrast_strata(cells, seeds, tasks, weights, metric)
    noise = noise_parts(contrast_variance(shared, weights, by_seed), strata)
    independent = independent_items(strata)
    return compare(float(by_seed.mean()), noise.seeds, noise.items, independent=independent, planned=noise.planned)


def contrast_variance(results: Results, weights: Coefficients, by_seed: np.ndarray) -> Variance | None:
    """The variance between seeds of the mean of a contrast (a weighted sum of arms); None with one seed.

    It is the residual variance after fitting arms and seeds, pooled over arms, as in
    `eval.statistics.seeds.seed_variance`. If an arm scatters more than the others, the variance of the contrast itself
    between seeds is used where it gives a wider interval. `results`: {arm: {seed: result}}; `weights`: {arm: its
    weight}; `by_seed`: the contrast for each seed, [seeds].
    """
    seeds = len(by_seed)
    if seeds < 2:
        return None
    squares, dof = residual_squares(results)
    pooled = Variance(squares / dof * sum(w * w for w in weights.values()) / seeds, dof)
    return wider_variance(pooled, by_seed) if arms_that_scatter_more(results) else pooled


def contrast_strata(
    cells: Cells, seeds: list[int], tasks: list[str], weights: Coefficients, metric: str
) -> list[Stratum]:
    """The weighted sum of arms on the items of each task, in the unit of the metric: a list with a Stratum [seeds,
    items or clusters] for each task. `cells`: {(arm, seed): content of the run directory}; `weights`: {arm: its
    weight}."""
    strata = []
    for task in tasks:
        items = {arm: common_items(cells, arm, seeds, task) for arm in weights}
        first = next(iter(items.values()))
        if not first.names:
            continue
        values = sum(w * items[arm].values for arm, w in weights.items())
        strata.append(stratum_of_clusters(METRICS[metric].scale * np.asarray(values), first.weights, first.clusters))
    return strata
