"""Compares arms, each at its own best learning rate.

The best of several runs is partly the luckiest, so the data that chose a rate must not judge it. The choice is
therefore cross-fitted. The documents are divided into two halves. For each seed and half, the rate is chosen by the
other seeds on the other half. If an arm is hard to tune, the chosen rate is often not its best one. The result then
contains this cost of tuning.

Cross-fitting makes results covary, and a choice that varies between studies adds variance. The variance of an arm's
mean over n seeds is s**2 / n where one rate is best by far, and larger where rates are nearly as good. It is always
multiplied by VARIANCE_FACTOR_OF_CHOICE: the largest increase in simulations, rounded up (30,000 studies of each kind:
one rate the best by 0.5 to 4 standard errors; 2, 3, 5 and 10 seeds). Without this factor, 10 to 15 % of studies of
three equal rates find an arm better or worse (400 simulated studies of each kind). Rates of false verdicts:
tests/test_tuning.py.

Two terms are used below. A label is the name of an arm at one learning rate. The common rate is the learning rate at
which the main table compares all arms.
"""

import hashlib
from typing import NamedTuple

import numpy as np

from eval.report.comparison.comparable import Run, comparable_tasks, have_same_text
from eval.report.comparison.compare import METRICS, common_items
from eval.report.comparison.findings import Findings
from eval.statistics.comparison import Comparison, apply_holm_correction, compare
from eval.statistics.items import FEWEST_ITEMS, Stratum, independent_items, noise_parts, stratum_of_clusters
from eval.statistics.parts import Variance
from eval.statistics.seeds import Results, arms_that_scatter_more, residual_squares, wider_variance

# {rates to choose from: the most by which choosing multiplies a variance}: see above
VARIANCE_FACTOR_OF_CHOICE = {1: 1.0, 2: 1.75, 3: 2.15, 4: 2.3, 5: 2.5, 6: 2.65, 7: 2.75, 8: 2.85, 9: 2.9}
CHOICE_METRIC = "bits/byte"  # what a learning rate is chosen by, whatever the verdict is on
JUDGED_METRICS = ("bits/byte", "suite")  # not zero-shot: its questions are made from the text that chooses


class ClusteredTask(NamedTuple):
    """The results of a task, summed over clusters of items, for several labels. A label names an arm at one learning
    rate."""

    values: dict[str, np.ndarray]  # {label: [seeds, clusters]}
    weights: np.ndarray  # [clusters]
    half: np.ndarray  # [clusters], 0 or 1
    clusters: tuple[str, ...] = ()  # their names

    def losses(self, label: str, half: int) -> np.ndarray:
        """The loss of a label on one half of the documents, [seeds]. `half`: 0 or 1."""
        chosen = self.half == half
        return self.values[label][:, chosen].sum(1) / self.weights[chosen].sum()


def assign_halves(names: list[str]) -> np.ndarray:
    """Divide names into two halves of equal size, in the order of their hashes. Returns the half, 0 or 1, of each name,
    [names]."""
    digests = [hashlib.sha256(name.encode()).hexdigest() for name in names]
    half = np.zeros(len(names), int)
    half[np.argsort(digests, kind="stable")[1::2]] = 1
    return half


class Candidates(NamedTuple):
    """The runs of several arms at all learning rates, from which each arm's best rate is chosen. A label names an arm
    at one learning rate."""

    labels: dict[str, list[str]]  # {arm: its labels, by rising rate}
    seeds: list[int]
    tasks: list[ClusteredTask]  # of CHOICE_METRIC


def candidate_runs(findings: Findings, arms: list[str], metric: str = CHOICE_METRIC) -> Candidates | None:
    """The runs from which the best learning rate of each arm is chosen. None where learning rates are not tuned, an arm
    has no result at the common rate, or there are too few documents for two halves. `arms`: their names at the common
    rate; `metric`: the metric whose tasks are read."""
    tuning, results = findings.study.tuning, findings.distinct_results(CHOICE_METRIC)
    if not tuning or not all(results.get(arm) for arm in arms):
        return None
    seeds = sorted(set.intersection(*(set(results[arm]) for arm in arms)))
    # a rate at which a seed has diverged, or is not finished, is none to choose
    labels = {
        arm: [x for x in tuning.labels_by_rate(arm).values() if set(seeds) <= results.get(x, {}).keys()] for arm in arms
    }
    flat = [label for of_arm in labels.values() for label in of_arm]
    runs: list[Run] = [(label, seed) for label in flat for seed in seeds]
    names = comparable_tasks(findings.cells, runs, metric) if runs and have_same_text(findings.cells, runs) else []
    tasks = [task_outcomes(findings, flat, seeds, task, METRICS[metric].scale) for task in names]
    too_few = metric == CHOICE_METRIC and any(len(task.weights) < FEWEST_ITEMS for task in tasks)
    return None if too_few or not tasks else Candidates(labels, seeds, tasks)


def task_outcomes(findings: Findings, labels: list[str], seeds: list[int], task: str, scale: float) -> ClusteredTask:
    """The results of one task for several labels (an arm at one learning rate). `scale`: the factor from the outcome of
    an item to the unit of the metric."""
    items = {label: common_items(findings.cells, label, seeds, task) for label in labels}
    first = next(iter(items.values()))
    strata = {label: stratum_of_clusters(scale * i.values, i.weights, i.clusters) for label, i in items.items()}
    clusters = sorted(set(first.clusters))
    names = clusters if len(clusters) < len(first.clusters) else first.clusters  # as stratum_of_clusters has them
    weights = next(iter(strata.values())).weights
    return ClusteredTask(
        {label: s.differences for label, s in strata.items()}, weights, assign_halves(names), tuple(names)
    )


def chosen_label(c: Candidates, arm: str, seed: int, half: int | None) -> str:
    """The label of an arm (its name at one learning rate) whose rate is the best for judging one seed on one half of
    the documents. The rate is chosen by the other seeds on the other half.

    Args:
        c: the runs to choose from.
        seed: the index of the judged seed. If it is the only seed, it chooses too.
        half: the judged half of the documents (0 or 1); None: both halves choose.
    """
    others = [s for s in range(len(c.seeds)) if s != seed] or [seed]
    judged_by = [1 - half] if half is not None else [0, 1]
    losses = [
        np.mean([task.losses(label, other)[others].mean() for task in c.tasks for other in judged_by])
        for label in c.labels[arm]
    ]
    return c.labels[arm][int(np.argmin(losses))]


def cross_fitted_outcomes(c: Candidates, arm: str, tasks: list[ClusteredTask], by_half: bool) -> list[np.ndarray]:
    """The outcomes of an arm, each at a learning rate that was chosen by other seeds: for each task an array [seeds,
    clusters].

    Args:
        c: the runs from which the rates are chosen.
        tasks: the tasks to compute outcomes of.
        by_half: whether `tasks` consist of the documents that choose the rates. If so, each half of them is taken at
            the rate that the other half chose.
    """
    outcomes = []
    for task in tasks:
        values = np.empty((len(c.seeds), len(task.weights)))
        for seed in range(len(c.seeds)):
            for half in (0, 1):
                judged = task.half == half
                label = chosen_label(c, arm, seed, half if by_half else None)
                values[seed, judged] = task.values[label][seed, judged]
        outcomes.append(values)
    return outcomes


def comparisons_at_best_rate(findings: Findings, metric: str) -> dict[str, Comparison]:
    """The comparison of each arm with the baseline, each at its own best learning rate: {arm: Comparison}, after
    multiple-comparison correction. {} where learning rates are not tuned, or the metric is not in JUDGED_METRICS."""
    compared = {}
    for arm in findings.study.compared_arms if findings.study.tuning and metric in JUDGED_METRICS else ():
        c, judged = (candidate_runs(findings, [arm, findings.baseline], name) for name in (CHOICE_METRIC, metric))
        if c and judged and c.seeds == judged.seeds:
            compared[arm] = compare_at_best_rates(
                c, judged.tasks, arm, findings.baseline, metric == CHOICE_METRIC, results_of_labels(findings, c, metric)
            )
    return apply_holm_correction(compared)


def results_of_labels(findings: Findings, c: Candidates, metric: str) -> Results:
    """The results on a metric of all candidates: {label: {seed: result}}. A label names an arm at one learning rate."""
    flat = [label for labels in c.labels.values() for label in labels]
    return {label: {seed: findings.results[metric][label][seed] for seed in c.seeds} for label in flat}


def compare_at_best_rates(
    c: Candidates, tasks: list[ClusteredTask], arm: str, baseline: str, by_half: bool, results: Results
) -> Comparison:
    """Compare two arms, each at its own best learning rate, without multiple-comparison correction.

    Args:
        c: the runs of both arms at all rates, from which the rates are chosen.
        tasks: the tasks that are judged.
        by_half: whether `tasks` consist of the documents that choose the rates (see `cross_fitted_outcomes`).
        results: {label: {seed: result}} of both arms at all rates, for the noise.
    """
    ours, theirs = (cross_fitted_outcomes(c, name, tasks, by_half) for name in (arm, baseline))
    strata = [Stratum(a - b, task.weights, task.clusters) for a, b, task in zip(ours, theirs, tasks, strict=True)]
    by_seed = np.mean([s.differences.sum(1) / s.weights.sum() for s in strata], axis=0)
    choice = VARIANCE_FACTOR_OF_CHOICE[max(map(len, c.labels.values()))]
    noise, independent = (
        noise_parts(variance_at_best_rates(results, by_seed, choice), strata, choice),
        independent_items(strata),
    )
    return compare(float(by_seed.mean()), noise.seeds, noise.items, independent=independent, planned=noise.planned)


def variance_at_best_rates(results: Results, by_seed: np.ndarray, choice: float) -> Variance | None:
    """The variance of the mean difference of two arms, from seeds and from the choice of rates; None with one seed. It
    is pooled over all rates of both arms. If runs scatter unequally, the variance of the differences between seeds is
    used where it gives a wider interval.

    Args:
        results: {label: {seed: result}} of both arms at all rates.
        by_seed: the difference for each seed, [seeds].
        choice: the factor by which the choice of rates multiplies the variance (VARIANCE_FACTOR_OF_CHOICE).
    """
    n = len(by_seed)
    if n < 2:
        return None
    squares, dof = residual_squares(results)
    pooled = Variance(choice * squares / dof * 2 / n, dof)
    return wider_variance(pooled, by_seed, choice) if arms_that_scatter_more(results) else pooled


# ------------------------------------------------------------------------------------------------ the basin


def losses_by_rate(findings: Findings, arm: str) -> dict[float, float]:
    """The loss of an arm at each learning rate: {learning rate: mean bits per byte over seeds}. A rate is left out if
    it lacks a seed that is finished at the common rate. `arm`: its name at the common rate."""
    tuning, results = findings.study.tuning, findings.results[CHOICE_METRIC]
    if not tuning:
        return {}
    seeds = results[arm].keys()
    labels = {
        rate: label for rate, label in tuning.labels_by_rate(arm).items() if seeds and seeds <= results[label].keys()
    }
    return {rate: float(np.mean([results[label][seed] for seed in seeds])) for rate, label in labels.items()}


def learning_rate_sensitivity(losses: dict[float, float]) -> float:
    """The LR sensitivity of Wortsman et al. 2023 (arXiv:2309.14322): how much the loss exceeds its minimum, averaged
    over learning rates. The rates are evenly spaced in their logarithm. Diverged runs are left out; the paper counts
    them with the initial loss. `losses`: {learning rate: loss}."""
    return float(np.mean(list(losses.values())) - min(losses.values()))
