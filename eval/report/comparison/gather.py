"""Reads the runs of a study and compares them: makes its findings."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ablations.criteria import Criteria
from eval.report.comparison.comparable import (
    arms_with_other_text,
    arms_without_effect,
    exclude_copies,
    exclude_misplaced_runs,
    refusal_sentences,
)
from eval.report.comparison.compare import METRICS, compare_with_baseline
from eval.report.comparison.contrasts import factorial_effects
from eval.report.comparison.criteria import (
    criteria_in_effect,
    exceeded_seed_plan,
    noise_floor_was_registered,
    registered_metric,
)
from eval.report.comparison.findings import Findings
from eval.report.comparison.floor import noise_floor_variance, reason_floor_not_usable
from eval.report.comparison.leading import compare_leader
from eval.report.comparison.mismatches import find_mismatches
from eval.report.reading.collection import Collection, collect_runs
from eval.report.reading.external import External
from eval.report.reading.runs import Cells, in_one_line, read_cells, runs_in_words
from eval.report.reading.short_names import with_short_names
from eval.statistics.comparison import Comparison, apply_holm_correction
from eval.statistics.parts import Variance
from eval.statistics.seeds import Results


def gather_findings(
    study: Any, noise: Sequence[Path] = (), beside: str = "checked", external: Sequence[External] = ()
) -> Findings:
    """Read the runs of a study and compare them.

    Args:
        study: a Study or a Collection.
        noise: directories of runs outside the study that differ only in the seed, to estimate the noise between seeds.
        beside: which published results to show, one of `eval.report.request.BESIDE`.
        external: GLUE results of external checkpoints.

    Raises:
        ValueError: a directory in `noise` is damaged, or the stored noise floor was measured on another baseline.
    """
    found = read_cells(study)
    cells = exclude_copies(exclude_misplaced_runs(study, found))
    criteria, margins_named_before = criteria_in_effect(study, cells)
    baseline_is_there = any(arm == study.arms[0] and "eval" in cell for (arm, _), cell in cells.items())
    check_noise_floor(criteria, cells if baseline_is_there else found, study.arms[0])
    metric_before, floor_before = registered_metric(study, cells), noise_floor_was_registered(study, cells)
    planned = exceeded_seed_plan(study, cells)
    study, cells = with_short_names(study, cells)
    study = replace(study, criteria=criteria)
    results = results_by_metric(study, cells)
    noise_words, noise_results = noise_of_other_runs(noise, list(results)) if noise else ("", {})
    findings = Findings(
        study,
        cells,
        results,
        comparisons={},
        mismatches=[
            *find_mismatches(study, cells),
            *(f"{row.name} (external): {row.damage}" for row in external if row.damage),
        ],
        refusals=refusal_sentences(cells),
        noise=noise_words,
        copies=arms_without_effect(cells),
        other_text=arms_with_other_text(cells, study.arms[0]),
        published_shown=beside,
        external=list(external),
        registered_margins=margins_named_before,
        registered_metric=metric_before,
        noise_floor_registered=floor_before,
        seeds_planned=planned,
    )
    stored_variances = noise_floor_variances(study, cells, list(results))
    compared, of_factorial = {}, {}
    for metric in results:
        distinct = findings.distinct_results(metric)
        arms = compare_with_baseline(
            study, cells, distinct, metric, noise_results.get(metric), stored_variances.get(metric)
        )
        estimates = factorial_effects(study.factorial, study.arms[0], cells, distinct, metric)
        compared[metric], of_factorial[metric] = correct_comparisons(arms, estimates)
    leader_compared = {}
    if study.controlled and len(primary := compared.get(findings.primary, {})) > 1:
        distinct, floor = findings.distinct_results(findings.primary), stored_variances.get(findings.primary)
        leader_compared = compare_leader(study, cells, distinct, primary, findings.primary, floor)
    return findings._replace(comparisons=compared, effects=of_factorial, leader_compared=leader_compared)


def results_by_metric(study: Collection, cells: Cells) -> dict[str, Results]:
    """The results of a study on all metrics, {metric: {arm: {seed: result}}}. These are bits/byte, the primary metric,
    any other metric with a result, and zero-shot unless all runs are masked language models. `cells`: {(arm, seed):
    content of the run directory}."""
    objectives = {cell["run"]["config"]["model"].get("objective") for cell in cells.values() if "run" in cell}
    zero_shot = set() if objectives == {"mlm"} else {"zero-shot"}  # an encoder has no likelihood of a continuation
    expected = {"bits/byte", study.criteria.metric} | zero_shot
    results = {metric: results_on_metric(study, cells, metric) for metric in METRICS}
    return {metric: rows for metric, rows in results.items() if any(rows.values()) or metric in expected}


def results_on_metric(study: Collection, cells: Cells, metric: str) -> Results:
    """The results of a study on one metric, {arm: {seed: result}}. Runs without a result are left out. `cells`: {(arm,
    seed): content of the run directory}."""
    key = METRICS[metric].key
    return {
        arm: {
            seed: cells[arm, seed]["eval"][key]["value"]
            for seed in study.seeds
            if cells.get((arm, seed), {}).get("eval", {}).get(key)
        }
        for arm in study.arms
    }


def noise_of_other_runs(directories: Sequence[Path], metrics: list[str]) -> tuple[str, dict[str, Results]]:
    """Read runs outside the study, to estimate the noise between seeds. Returns (a description of these runs, {metric:
    {arm: {seed: result}}}). Raises ValueError where a run directory is damaged."""
    group = collect_runs([("", path) for path in directories], "")
    if group.damaged:
        raise ValueError("; ".join(group.damaged))
    sizes = dict.fromkeys(
        f"{place.config.get('size')}, {run_length_in_words(place.config['train'])}" for place in group.runs.values()
    )
    cells = exclude_copies(read_cells(group))
    words = f"{runs_in_words(list(group.runs))}; {' and '.join(sizes)}"
    return words, {metric: results_on_metric(group, cells, metric) for metric in metrics}


def run_length_in_words(train: dict[str, Any]) -> str:
    """The length of a run as text, such as "1,000,000 tokens", or its wall-clock budget. `train`: the entry "train" of
    the run's configuration."""
    budget = train.get("budget", "tokens")
    return f"{train['tokens']:,} tokens" if budget == "tokens" else in_one_line(budget)


def correct_comparisons(
    arms: dict[str, Comparison], effects: dict[int, Comparison]
) -> tuple[dict[str, Comparison], dict[int, Comparison]]:
    """Apply the multiple-comparison correction to all comparisons of a study on a metric, as one family. Returns
    (`arms`, `effects`), both corrected.

    With separate families of 5 % for arms, main effects and interactions, 8 to 12 % of factorials without any effect
    would have a wrong verdict (docs/statistics.md). `arms`: {arm: comparison with the baseline}; `effects`: {bit mask
    of the effect's factors: comparison with 0}, {} where the study is not a factorial.
    """
    both = apply_holm_correction(arms | effects)
    return {arm: both[arm] for arm in arms}, {effect: both[effect] for effect in effects}


def check_noise_floor(criteria: Criteria, cells: Cells, baseline: str) -> None:
    """Raise ValueError where the stored noise floor of a study was measured with another baseline, text, budget or
    evaluation. `cells`: {(arm, seed): content of the run directory}."""
    floor = criteria.noise_floor
    if floor is not None and (reason := reason_floor_not_usable(floor, cells, baseline)):
        raise ValueError(f"the noise floor {floor.name} is not that of this study: {reason}")


def noise_floor_variances(study: Collection, cells: Cells, metrics: list[str]) -> dict[str, Variance]:
    """The variance of a single run between seeds, from the study's stored noise floor: {metric: variance}. Metrics that
    the floor lacks are left out; {} without a noise floor. `cells`: {(arm, seed): content of the run directory}."""
    floor = study.criteria.noise_floor
    if floor is None:
        return {}
    parts = {metric: noise_floor_variance(floor, cells, study.arms[0], metric) for metric in metrics}
    return {metric: part for metric, part in parts.items() if part}
