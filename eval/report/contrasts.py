"""Effects of a factorial: contrasts of all arms, paired by seed and by item, with the noise of both."""

import numpy as np

from ablations.factorial import Factorial
from eval.report.comparable import Run, same_text, shared_tasks
from eval.report.compare import METRICS, item_scores, results_on
from eval.report.runs import Cells
from eval.statistics.comparison import Comparison, compare
from eval.statistics.items import Stratum, by_cluster, independent_items, item_part
from eval.statistics.parts import LEVEL, Part, quantile
from eval.statistics.seeds import Results, outstanding, residual

Coefficients = dict[str, float]  # {arm: its weight}


def effects(
    design: Factorial | None, baseline: str, cells: Cells, results: Results, name: str
) -> dict[int, Comparison]:
    """{effect: its estimate and noise} of a factorial on a metric, before any correction for their number. Empty for
    another study, and while a combination has no result."""
    if not design:
        return {}
    results = {arm: row for arm, row in results.items() if row}
    estimates = {}
    for effect in design.effects:
        weights = {design.label(c) or baseline: w for c, w in design.coefficients(effect).items()}
        if comparison := contrast(cells, results, weights, name):
            estimates[effect] = comparison
    return estimates


def contrast(cells: Cells, results: Results, weights: Coefficients, name: str) -> Comparison | None:
    """The weighted sum of arms, over the seeds that all of them have and the tasks on which all were evaluated in the
    same way; None where there are no such seeds or tasks."""
    if not weights.keys() <= results.keys():
        return None
    seeds = sorted(set.intersection(*(set(results[arm]) for arm in weights)))
    runs: list[Run] = [(arm, seed) for arm in weights for seed in seeds]
    tasks = shared_tasks(cells, runs, name) if runs and same_text(cells, runs) else []
    if not tasks:
        return None
    on_tasks = {arm: row for arm, row in results_on(cells, results, name, tasks).items() if arm in weights}
    shared = {arm: {seed: row[seed] for seed in seeds} for arm, row in on_tasks.items()}
    by_seed = np.array([sum(w * shared[arm][seed] for arm, w in weights.items()) for seed in seeds])
    strata = contrast_strata(cells, seeds, tasks, weights, name)
    seed_noise = contrast_part(shared, weights, by_seed)
    return compare(float(by_seed.mean()), seed_noise, item_part(strata), independent=independent_items(strata))


def contrast_part(results: Results, weights: Coefficients, by_seed: np.ndarray) -> Part | None:
    """The variance that the seeds give to the mean of a contrast, as `eval.statistics.seed_part` has it of two arms:
    the residual variance of arms and seeds, pooled; the contrast's own where an arm scatters more than the others and
    that asks for more. None with one seed."""
    seeds = len(by_seed)
    if seeds < 2:
        return None
    left, dof = residual(results)
    pooled = Part(left / dof * sum(w * w for w in weights.values()) / seeds, dof)
    if not outstanding(results):
        return pooled
    contrast_alone = Part(float(by_seed.var(ddof=1)) / seeds, seeds - 1)
    return max(pooled, contrast_alone, key=lambda part: quantile(LEVEL, part, Part(0.0, np.inf)))


def contrast_strata(
    cells: Cells, seeds: list[int], tasks: list[str], weights: Coefficients, name: str
) -> list[Stratum]:
    """Per task, the contrast item by item [seeds, items or clusters], and the items' weights."""
    strata = []
    for task in tasks:
        items = {arm: item_scores(cells, arm, seeds, task) for arm in weights}
        first = next(iter(items.values()))
        if not first.names:
            continue
        values = sum(w * items[arm].values for arm, w in weights.items())
        strata.append(by_cluster(METRICS[name].scale * np.asarray(values), first.weights, first.clusters))
    return strata
