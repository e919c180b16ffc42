"""Section: tuned arms: loss against learning rate, and the verdicts with each arm at its own best rate."""

from typing import Any

from ablations import drawing
from ablations.document.blocks import Block, Figure, Section, Table
from ablations.drawing import Line
from eval.report.comparison.compare import METRICS
from eval.report.comparison.findings import Findings
from eval.report.comparison.tuned import (
    CHOICE_METRIC,
    comparisons_at_best_rate,
    learning_rate_sensitivity,
    losses_by_rate,
)
from eval.statistics.comparison import Comparison

WORDS = """\
Every arm was run at the same learning rates, so with the same budget: {rates}. At {common:g}, the baseline's, an arm
differs from the baseline by its factor alone; elsewhere by the factor and the declared rate. The comparison of arms at
their best is of the factor with its tuning."""

BASIN = """\
Bits per byte by learning rate, mean over seeds. Sensitivity: how far the loss lies above its least, on average over
these rates; small is a wide basin (Wortsman et al. 2023, arXiv:2309.14322)."""

BEST = """\
Each arm at its own best: the rate is chosen by held-out loss, on other seeds and the other half of the documents than
are judged, and the halves are swapped, so that a lucky run does not judge itself. The noise counts what choosing adds
(eval/report/comparison/tuned.py)."""


def tuning_section(findings: Findings) -> Section:
    title = "Learning rates"
    if not (tuning := findings.study.tuning):
        return Section(title, [])
    rates = ", ".join(f"{rate:g}" for rate in tuning.rates)
    blocks: list[Block] = [WORDS.format(rates=rates, common=tuning.common)]
    basins = {arm: losses for arm in tuning.factors if (losses := losses_by_rate(findings, arm))}
    digits = METRICS[CHOICE_METRIC].digits + 1
    rows = [
        [
            arm,
            *(f"{losses[rate]:.{digits}f}" if rate in losses else "missing" for rate in tuning.rates),
            best_rate(losses, tuning.rates),
            f"{learning_rate_sensitivity(losses):.{digits}f}" if len(losses) > 1 else "-",
        ]
        for arm, losses in basins.items()
    ]
    if rows:
        blocks += [BASIN, Table(["arm", *(f"{rate:g}" for rate in tuning.rates), "best", "sensitivity"], rows)]
        blocks.append(Figure(loss_figure(findings, basins), "A curve that is low over many rates is easy to tune."))
    for name in findings.results:
        lines = [verdict_line(findings, arm, name, c) for arm, c in comparisons_at_best_rate(findings, name).items()]
        head = [name, "at the common rate", "verdict", "each at its best", "counts above", "verdict", "do they agree"]
        if lines:
            blocks += [BEST, Table(head, lines)] if name == CHOICE_METRIC else [Table(head, lines)]
    if not any(comparisons_at_best_rate(findings, name) for name in findings.results):
        blocks.append("No arm can be compared at its best yet: runs at the common rate, or documents, are too few.")
    return Section(title, blocks)


def blocks_for_terminal(findings: Findings) -> list[str | Table]:
    """A list with one table for the terminal: the verdicts with each arm at its own best learning rate. They may differ
    from those of the main table, which are at the common rate. [] where no arm can be compared so."""
    rows = [
        [
            arm,
            f"{c.difference:+.{METRICS[findings.primary].digits + 1}f}",
            findings.judge(c, findings.primary).words,
            agreement,
        ]
        for arm, c in comparisons_at_best_rate(findings, findings.primary).items()
        for agreement in [verdict_line(findings, arm, findings.primary, c)[-1].replace("**", "")]
    ]
    head = [f"each arm at its best rate, {findings.primary}", "difference", "verdict", "as at the common rate"]
    return [Table(head, rows)] if rows else []


def best_rate(losses: dict[float, float], rates: tuple[float, ...]) -> str:
    """The learning rate with the least loss as text, with a warning if that rate is at an end of the grid. `losses`:
    {learning rate: loss}; `rates`: all rates of the grid, rising."""
    best = min(losses, key=losses.__getitem__)
    return (
        f"{best:g}, at an end of the grid: a better one may lie beyond"
        if best in (rates[0], rates[-1])
        else f"{best:g}"
    )


def loss_figure(findings: Findings, basins: dict[str, dict[float, float]]) -> str:
    """A figure (SVG) of loss against learning rate. `basins`: {arm: {learning rate: loss}}."""
    curves = [
        Line(arm, findings.colour(arm), list(losses), list(losses.values()), findings.line_style(arm))
        for arm, losses in basins.items()
        if len(losses) > 1
    ]
    rates = sorted({rate for curve in curves for rate in curve.x})
    return drawing.line_plot("Loss by learning rate", curves, "learning rate", "bits per byte", logx=True, xticks=rates)


def verdict_line(findings: Findings, arm: str, metric: str, c: Comparison) -> list[str]:
    """A table row on an arm: its difference from the baseline and the verdict at the common learning rate, then at the
    best rates, and whether the verdicts agree. `c`: the comparison at the best rates."""
    digits = METRICS[metric].digits + 1
    common, best = findings.comparisons[metric].get(arm), findings.judge(c, metric)
    ours = (
        [f"{common.difference:+.{digits}f}", findings.verdict(arm, metric).words] if common else ["-", "not compared"]
    )
    threshold = f"{c.threshold:.{digits}f}" if c.seeds and c.has_enough_items else "unknown"
    agreement = agreement_text(findings.verdict(arm, metric).kind, best.kind) if common else "-"
    words = f"**{best.words}**" if c.is_significant else best.words
    return [arm, *ours, f"{c.difference:+.{digits}f}", threshold, words, agreement]


def agreement_text(common: str, best: str) -> str:
    """A text on whether two verdicts on an arm agree, such as "yes" or "no: better at the common rate, ...". `common`:
    the kind of the verdict ("better", "worse", "equivalent" or "undecided") with all arms at the common learning rate;
    `best`: the kind with each arm at its own best rate."""
    if common == best:
        return "yes"
    if {common, best} == {"better", "worse"}:
        return "**no, they contradict each other**: the verdict at the common rate is one on the rate"
    return f"no: {common} at the common rate, {best} at each arm's best"


def tuning_for_record(findings: Findings) -> list[dict[str, Any]]:
    """The results of tuning as the record's run.json stores them: for each arm its loss at each learning rate, and its
    verdicts at the best rates. [] where learning rates were not tuned."""
    if not (tuning := findings.study.tuning):
        return []
    best = {name: comparisons_at_best_rate(findings, name) for name in findings.results}
    lines = []
    for arm in tuning.factors:
        losses = losses_by_rate(findings, arm)
        line: dict[str, Any] = {"arm": arm, "bits_per_byte": {f"{rate:g}": loss for rate, loss in losses.items()}}
        if losses:
            line |= {"best": min(losses, key=losses.__getitem__), "sensitivity": learning_rate_sensitivity(losses)}
        line["at_best"] = {
            METRICS[name].key: {"difference": c[arm].difference, "verdict": findings.judge(c[arm], name).words}
            | (
                {"agrees": agreement_text(findings.verdict(arm, name).kind, findings.judge(c[arm], name).kind) == "yes"}
                if arm in findings.comparisons[name]
                else {}
            )
            for name, c in best.items()
            if arm in c
        }
        lines.append(line)
    return lines
