"""Section: differences of the arms from the baseline, by seed, with their noise, and the differences that such a study
can detect."""

from math import inf, isinf

import numpy as np

from ablations import drawing
from ablations.document.blocks import Block, Section, Table
from ablations.plan.power import POWER, detectable_difference
from eval.report.comparison.compare import METRICS, choose_pairing, difference_strata
from eval.report.comparison.findings import Findings, noise_for_planning
from eval.report.sections.answer import pairs_table
from eval.statistics.bootstrap import bootstrap_differences, bootstrap_interval
from eval.statistics.comparison import Comparison
from eval.statistics.parts import Variance, interval_half_width
from eval.statistics.seeds import within_arm_variance
from eval.statistics.verdicts import margin_text

PAIRED = """\
Arm minus {baseline} at the same seed: {batches}the same initial weights where the arms have them in common.
For bits/byte, negative is better. For scores, in points, positive is better."""

UNPLANNED = """\
Minus {baseline}, by seed where both have the seed. Runs that were not planned together may differ in more than one
thing: see above. For bits/byte, negative is better. For scores, in points, positive is better."""

NOISE = """\
Noise is the standard error of the difference, from two sources. Seeds: what is left of the results after the mean of
each arm and of each seed is taken out (of each arm alone where there are two arms and two seeds), pooled over the
arms, as if the seeds scattered all arms alike. Items: the arms are compared document by document and question by
question, and others could have been drawn. The interaction of seeds and items is in both estimates, so it is
subtracted from one of them, the one that leaves the wider interval; if nothing of that estimate remains, the table
says "not above zero". A difference counts when it is larger than "counts above", the half-width of its 95 % interval
corrected as p is: many times the noise where there are few seeds or few groups of items (degrees of freedom, d.o.f.),
because the noise itself is then badly known; more seeds do not make up for few groups of items: hold out text of more
sources (docs/statistics.md). "None possible": larger than any difference from the baseline's score can be, since a
score lies between 0 and 100 %. p is two-sided, after Holm's correction for the number of arms, in a factorial of arms
and effects.

Bootstrap: 95 % intervals of the difference, paired, over other items of the same tasks, and over other tasks like
these. They do not contain the noise between seeds, except for what single seeds do to single items. With few groups of
items or few tasks they are too short. Formulas and sources: docs/statistics.md and the files of eval/statistics."""

NOT_ABOVE_ZERO = "not above zero"  # an estimate of a variance that is not above zero: eval/statistics/items.py
STUDIES_SHOWN = (2, 3, 5, 10)  # numbers of seeds for which it is said what a study would see


def differences_section(findings: Findings) -> Section:
    title, tables = "Differences from the baseline", comparison_tables(findings)
    if not tables:
        return Section(
            title, [f"No arm can be compared with the baseline{': see above' if findings.copies else ' yet'}."]
        )
    batches = "the same batches in the same order, and " if findings.same_batches() else ""
    words = PAIRED if findings.controlled else UNPLANNED
    blocks: list[Block] = [
        words.format(baseline=findings.baseline, batches=batches),
        *tables,
        *pairs_table(findings),
        NOISE,
    ]
    if findings.noise:
        blocks.append(
            f"Where an arm shares one seed with {findings.baseline}, the seeds' part is what other runs tell, and "
            f"these arms if they have several seeds: {findings.noise}."
        )
    return Section(
        title,
        [*blocks, criteria_paragraph(findings)] + undecided_paragraphs(findings) + noise_floor_paragraphs(findings),
    )


def comparison_tables(findings: Findings) -> list[Table]:
    """Three tables with a line for each comparison: the differences by seed, their noise and verdict, and their
    bootstrap intervals. Empty where there is no comparison."""
    by_seed, tests, intervals = [], [], []
    for name in findings.results:
        digits = METRICS[name].digits + 1
        for arm, c in findings.comparisons[name].items():
            ours, theirs = findings.results[name][arm], findings.results[name][findings.baseline]
            signed = [
                f"{ours[seed] - theirs[seed]:+.{digits}f}" if seed in ours and seed in theirs else "-"
                for seed in findings.study.seeds
            ]
            label, mean = f"{arm}, {name}", f"{c.difference:+.{digits}f}"
            by_seed.append([label, *signed, mean])
            tests.append(
                [
                    label,
                    mean,
                    *noise_cells(c, digits, largest_difference(findings, name)),
                    findings.verdict_in_markup(arm, name),
                ]
            )
            intervals += [[label, mean, *line] for line in bootstrap_intervals(findings, arm, name)]
    if not by_seed:
        return []
    return [
        Table(["", *(f"seed {seed}" for seed in findings.study.seeds), "mean"], by_seed),
        Table(["", "difference", "from the seeds", "from the items", "noise", "counts above", "p", "verdict"], tests),
        Table(["bootstrap, 95 %", "difference", "over items", "over tasks", "tasks"], intervals),
    ]


def noise_cells(c: Comparison, digits: int, largest: float) -> list[str]:
    """Five table cells about the noise of a difference: the standard error from seeds, from items and from both, the
    threshold of significance, and the p-value.

    Args:
        c: the comparison with the difference.
        digits: the number of decimals.
        largest: the largest possible difference. A threshold beyond it is not shown as a number.
    """
    items = f"{c.items.variance**0.5:.{digits}f} ({c.items.dof:.2g} d.o.f.)" if c.has_enough_items else "unknown"
    if c.has_enough_items and c.items.variance == 0:
        items = NOT_ABOVE_ZERO
    if c.seeds is None or not c.has_enough_items:
        return ["unknown", items, "unknown", "-", "-"]
    seeds = f"{c.seeds.variance**0.5:.{digits}f} ({c.seeds.dof:.0f} d.o.f.)" if c.seeds.variance else NOT_ABOVE_ZERO
    above = f"{c.threshold:.{digits}f}" if c.threshold <= largest else "none possible"
    return [seeds, items, f"{c.noise:.{digits}f}", above, f"{c.adjusted:.2g}"]


def largest_difference(findings: Findings, metric: str) -> float:
    """The largest possible difference from the baseline's mean in a metric, since scores lie between 0 and 100 %; inf
    for bits/byte."""
    most, baseline = METRICS[metric].largest, findings.results[metric][findings.baseline]
    if isinf(most):
        return inf
    mean = float(np.mean(list(baseline.values())))
    return max(mean, most - mean)


def bootstrap_intervals(findings: Findings, arm: str, metric: str) -> list[list[str]]:
    """Table rows with the bootstrap intervals of an arm's difference from the baseline, over items and over tasks, and
    the number of tasks. The list has one row, or none where there are no items."""
    pairs = choose_pairing(findings.cells, findings.results[metric], arm, findings.baseline, metric)
    parts = difference_strata(findings.cells, arm, findings.baseline, pairs, metric) if pairs else []
    if not parts:
        return []
    digits = METRICS[metric].digits + 1
    low, high = bootstrap_interval(bootstrap_differences(parts))
    line = [f"{low:+.{digits}f} to {high:+.{digits}f}", "-", str(len(parts))]
    if len(parts) > 2:
        low, high = bootstrap_interval(bootstrap_differences(parts, tasks=True), len(parts))
        line[1] = f"{low:+.{digits}f} to {high:+.{digits}f}"
    return [line]


def criteria_paragraph(findings: Findings) -> str:
    """A paragraph on the criteria of the verdicts: the primary metric, the margins, the stored noise floor, and the
    rule for adding seeds. It names the criteria that were chosen after the runs."""
    sentences = [f"**Decided by {findings.primary}**, the primary metric; verdicts on others are exploratory."]
    if findings.primary != findings.registered_metric:
        before = findings.registered_metric or "one metric in some runs and another in others"
        sentences.append(f"It was chosen after the runs, which named {before}: its verdicts are exploratory too.")
    for name, margin in findings.margins.items():
        was_registered = name in findings.registered_margins
        when = "named before the runs" if was_registered else "chosen after the runs, so exploratory"
        if name in findings.results:
            sentences.append(f"Margin of {name}: {margin_text(margin, METRICS[name].unit)}, {when}.")
    if floor := findings.study.criteria.noise_floor:
        was_registered = findings.noise_floor_registered
        when = "named before the runs" if was_registered else "chosen after the runs, so verdicts are exploratory"
        sentences.append(
            f"Noise floor: {floor.identity}, {len(floor.content['runs'])} runs of the same baseline at other seeds, "
            f"code {floor.code}, {when}. Its degrees of freedom are added to those of "
            "the seeds here, but where these scatter more (F test); it holds if the arms scatter as the baseline does."
        )
    if findings.study.criteria.sequential:
        sentences.append(
            "Seeds are added until every arm is decided or only more groups of items would decide it, up to "
            f"{findings.study.criteria.seeds}: each look at the results has a share of the level, so that looking "
            "often makes no winners (docs/statistics.md)."
        )
    return " ".join(sentences)


def undecided_paragraphs(findings: Findings) -> list[Block]:
    """Two paragraphs on the undecided comparisons: how many more seeds would decide each, and their cost. [] where all
    are decided, or for a Collection."""
    lines = []
    for name in METRICS:
        for arm in findings.comparisons.get(name, {}) if findings.controlled else ():
            if not findings.verdict(arm, name).decided:
                words = findings.verdict(arm, name).words.removeprefix("undecided: ")
                lines.append(f"* {arm}, {name}: {words}.")
    if not lines:
        return []
    margins = " and ".join(
        f"{margin_text(margin, METRICS[name].unit)}{'' if name == METRICS[name].unit else f' in {name}'}"
        for name, margin in findings.margins.items()
        if name in findings.results
    )
    question = f"more than noise, nor surely less than the margin of {margins}" if margins else "more than noise"
    head = f"**Undecided**: not {question}. What is missing, if the difference and the noise of one seed stay as here:"
    return [head, "\n".join(lines)]


def noise_floor_paragraphs(findings: Findings) -> list[Block]:
    """A paragraph for each metric on the noise between seeds. It states the largest difference between two runs that
    differ only in the seed, in 19 of 20 cases; and the smallest differences that studies with 2, 3, 5 and 10 seeds
    detect."""
    lines: list[Block] = []
    arms, tests = 1 + len(findings.study.compared_arms), findings.study.number_of_tests
    for name, noise in noise_for_planning(findings).items():
        metric = METRICS[name]
        # with what the arms of a seed share: two seeds do not share it
        floor = within_arm_variance(findings.distinct_results(name))
        assert floor
        widest = interval_half_width(0.05, Variance(2 * floor.variance, floor.dof), Variance(0.0, np.inf))
        resolutions = [
            f"{least:.{metric.digits + 1}f} with {n}"
            if least <= largest_difference(findings, name)
            else f"no possible difference with {n}"
            for n in STUDIES_SHOWN
            for least in [
                detectable_difference(
                    noise["seed_sd"], noise["items"], arms, n, tests, items_dof=noise["items_dof"] or np.inf
                )
            ]
        ]
        lines.append(
            f"**Noise floor, {name}.** Two runs that differ in the seed alone lie up to {widest:.{metric.digits + 1}f} "
            f"{metric.unit} apart, 19 times in 20. If the noise is as measured here, a study of {arms} "
            f"arms sees with a chance of {POWER:.0%} differences from {', '.join(resolutions)} seeds."
        )
    return lines


def forest_plot(findings: Findings, metric: str) -> str:
    """A figure (SVG) of the differences of all arms from the baseline, with the confidence intervals by which the
    verdicts decide."""
    definition, effects = METRICS[metric], []
    for arm, c in findings.comparisons.get(metric, {}).items():
        kind = "same"
        if c.is_significant:
            kind = "good" if (c.difference > 0) == definition.higher_is_better else "bad"
        half_width = c.threshold if c.seeds and c.has_enough_items else np.inf
        effects.append((arm, c.difference, half_width, kind, findings.verdict(arm, metric).label))
    better = "right" if definition.higher_is_better else "left"
    title = f"{metric}: difference from the baseline"
    return drawing.forest_plot(title, effects, f"{definition.unit}; {better} of the line is better", definition.largest)
