"""The first section of a report: the question, a table with a line for each arm, and what its numbers mean."""

from math import nan

import numpy as np

from ablations.document.blocks import Figure, Image, Section, Table, plus_minus
from ablations.values import join_names
from eval.report.comparison.compare import METRICS, arm_strata
from eval.report.comparison.findings import Findings
from eval.report.reading.runs import in_one_line
from eval.report.sections.answer import answer
from eval.report.sections.challenge import broken_rules
from eval.report.sections.differences import forest_plot
from eval.report.sections.registered import expectation_text
from eval.report.sections.tasks import shots_text
from eval.statistics.items import independent_items, item_variance
from eval.statistics.seeds import arm_mean_stderr, arms_that_scatter_more
from eval.statistics.verdicts import margin_text


def overview_section(findings: Findings) -> Section:
    arms = " Corrected for the number of arms." if len(findings.study.compared_arms) > 1 else ""
    forests = [
        Figure(
            forest_plot(findings, name), f"Bars: 95 % intervals over seeds and items; an arrow: wider than drawn.{arms}"
        )
        for name in findings.results
    ]
    question = [f"**Question.** {findings.study.question}", expectation_text(findings)]
    question += [text for text in [answer(findings)] if text]
    image = Image("figure.svg", "Loss curves and differences")
    listed_notes = "\n".join(f"* {line}" for line in notes_on_numbers(findings))
    return Section(
        "",
        [
            *question,
            *arms_without_effect(findings),
            overview_table(findings),
            image,
            *forests,
            *caution_paragraphs(findings),
            "**How to read the table**",
            listed_notes,
        ],
    )


def overview_table(findings: Findings, head: str = "arm") -> Table:
    """A table with a line for each arm: its score on each metric, and the verdict by the primary metric. `head`: the
    title of the first column."""
    lines = []
    for arm in findings.study.arms:
        numbers = [score_text(findings, arm, name) for name in METRICS if name in findings.results]
        name = f"{arm} (baseline)" if arm == findings.baseline != "baseline" else arm
        lines.append([name, *numbers, "; ".join(verdict_phrases(findings, arm))])
    return Table([head, *findings.results, "verdict"], lines)


def score_text(findings: Findings, arm: str, metric: str) -> str:
    """An arm's mean over seeds with its standard error, as text; "-" where the arm has no result."""
    row = findings.results[metric][arm]
    if not row:
        return "-"
    pool = findings.results[metric] if findings.controlled else {arm: row}
    strata = arm_strata(findings.cells, arm, sorted(row), metric)
    error = arm_mean_stderr(pool, arm, item_variance(strata))
    if (independent_items(strata) or 0) < 2:
        error = nan  # a single document or passage tells no noise
    return plus_minus(float(np.mean(list(row.values()))), error, METRICS[metric].digits)


def verdict_phrases(findings: Findings, arm: str) -> list[str]:
    """The phrases in an arm's column "verdict": the verdict, or why there is none; broken rules; missing runs."""
    results = findings.results[findings.primary]
    words = []
    if arm in findings.comparisons[findings.primary]:
        words.append(findings.verdict_in_markup(arm, findings.primary))
    if arm in findings.copies:
        words.append(f"**the same as {findings.copies[arm]}, bit for bit**")
    if not words and arm != findings.baseline and results[arm] and results[findings.baseline]:
        if arm in findings.other_text:
            words.append("**read another text under the same name: not compared**")
        elif findings.refusals:
            words.append("evaluated differently: not compared")
    rules = dict.fromkeys(
        rule for seed in findings.study.seeds for rule in broken_rules(findings.cells.get((arm, seed), {}))
    )
    words += [f"**breaks a rule of Cramming: {rule}**" for rule in rules]
    planned = [seed for seed in findings.study.seeds if (arm, seed) in findings.cells]
    missing = len(planned) - len(results[arm])
    if missing:
        states = [findings.cells[arm, seed]["state"] for seed in planned]
        counts = {word: sum(state.startswith(word) for state in states) for word in ("failed", "damaged")}
        reasons = "".join(f", {count} {word}" for word, count in counts.items() if count)
        words.append(f"{missing} of {len(planned)} runs missing{reasons}")
    return words


def arms_without_effect(findings: Findings) -> list[str]:
    """A sentence for each arm whose runs trained exactly as those of another arm."""
    return [
        f"**{arm} did nothing.** Its runs logged the same losses and gradient norms as those of {other}, seed by seed, "
        "at every step and to the last digit. They are no second measurement, and not compared: what sets the two "
        "apart had no effect here, and what it would do where it has one is not known from these runs."
        for arm, other in findings.copies.items()
    ]


def caution_paragraphs(findings: Findings) -> list[str]:
    """Paragraphs on what limits the comparison; [] where nothing does. They are about seeds that were added after a
    look at the results, tasks that are left out, arms with more noise than others, and warnings of the data
    preparation."""
    return [
        *note_on_added_seeds(findings),
        *notes_on_tasks_left_out(findings),
        *notes_on_uneven_seeds(findings),
        *notes_on_text(findings),
    ]


def notes_on_numbers(findings: Findings) -> list[str]:
    """Notes below the table that explain its numbers, a line each: the verdict, each metric with its verdicts, ±, ×
    noise and p."""
    return [
        criteria_note(findings),
        *(line for name in METRICS if name in findings.results for line in metric_notes(findings, name)),
        "±: one standard error of that number alone, from seeds and items. Arms share seeds and documents, so the "
        'noise of a difference is mostly much smaller: "Differences from the baseline" has it.',
        "× noise: a difference divided by its noise, which is its own standard error.",
        "p: two-sided, corrected for the number of arms. Where few seeds or few groups of items tell the noise, it "
        "takes far more than twice the noise for p ≤ 0.05.",
    ]


def metric_notes(findings: Findings, name: str) -> list[str]:
    """One or two lines on a metric of the table: what it is and which direction is better; and the verdicts on it.
    Verdicts on the primary metric are in the table and not repeated. `name`: the metric."""
    metric = METRICS[name]
    evaluations = [cell["eval"] for cell in findings.cells.values() if "eval" in cell]
    scores = [evaluation[metric.key] for evaluation in evaluations if evaluation.get(metric.key)]
    chance = f" (chance {scores[0]['chance']:.1f})" if scores and "chance" in scores[0] else ""
    what = held_out_loss_phrase(findings) if name == "bits/byte" else f"mean accuracy in %{chance}"
    if name == "suite" and scores:
        tasks, of = scores[0]["tasks"], scores[0]["of"]
        examples = shots_text(evaluations)
        kind = "tasks" if examples else "zero-shot tasks"
        what = f"mean accuracy in % over {tasks} of BigScience's {of} {kind}{examples}{chance}"
    verdicts = verdict_clauses(findings, name) if name != findings.primary else ""
    better = "higher" if metric.higher_is_better else "lower"
    return [f"{name}: {what}, {better} is better.", *([f"On {name}, {verdicts}."] if verdicts else [])]


def verdict_clauses(findings: Findings, metric: str) -> str:
    """The verdicts on a metric as clauses: "pos=alibi is undecided: ...; pos=none: exploratory: better by ...". Arms
    that are undecided for the same reason share a clause."""
    arms_of: dict[str, list[str]] = {}
    for arm in findings.comparisons[metric]:
        arms_of.setdefault(findings.verdict_in_words(arm, metric), []).append(arm)
    clauses = []
    for words, arms in arms_of.items():
        verb = "are" if len(arms) > 1 else "is"
        undecided = words.startswith("undecided")
        clauses.append(f"{join_names(arms)} {verb} {words}" if undecided else f"{join_names(arms)}: {words}")
    return "; ".join(clauses)


def held_out_loss_phrase(findings: Findings) -> str:
    """A phrase on what bits/byte measures in this study: "held-out loss" or, for masked language models, the loss of a
    share of the tokens."""
    models = [run["config"]["model"] for run in findings.runs]
    rates = {model.get("mask_rate") for model in models if model.get("objective") == "mlm"}
    if not rates:
        return "held-out loss"
    share = " or ".join(f"{rate:.0%}" for rate in sorted(rates) if isinstance(rate, float))
    return (
        f"held-out loss of the masked tokens ({share}) over the bytes they stand for, comparable at one mask rate only"
    )


def criteria_note(findings: Findings) -> str:
    """A line on the primary metric, and on margins of equivalence that were chosen after the runs."""
    if findings.primary == findings.registered_metric:
        words = f"The verdict is on {findings.primary}, the primary metric; what the others say is exploratory."
    else:
        before = findings.registered_metric or "one metric in some runs and another in others"
        words = f"The verdict is on {findings.primary}, exploratory: chosen after the runs, which named {before}."
    late = [
        f"Margin of {name}: {margin_text(margin, METRICS[name].unit)}, exploratory: chosen after the runs."
        for name, margin in findings.margins.items()
        if name in findings.results and name not in findings.registered_margins
    ]
    return " ".join([words, *late])


def note_on_added_seeds(findings: Findings) -> list[str]:
    """A list with one sentence, if seeds were added after a look at the results without a rule for adding them; else
    []."""
    if not findings.seeds_planned:
        return []
    return [
        f"**Seeds were added after the first {findings.seeds_planned}**, which were all that was planned: looking more "
        "than once makes wrong verdicts likelier than 5 %. MORE=auto from the start has a level for each look."
    ]


def notes_on_tasks_left_out(findings: Findings) -> list[str]:
    """A sentence for each comparison that leaves out tasks: only one of the two arms was evaluated on them, or both in
    different ways."""
    return [
        f"**{arm}, {name}: compared with {findings.baseline} on what both were asked in the same way**, without "
        f"{', '.join(left_out)}. The means in the table are over all that each was asked."
        for name in findings.results
        for arm in findings.comparisons[name]
        if (left_out := findings.tasks_left_out(arm, name))
    ]


def notes_on_text(findings: Findings) -> list[str]:
    """A sentence for each warning of the data preparation about the text of the runs, such as that the tokenizer drops
    a share of the bytes. Filters that removed nothing are not mentioned."""
    recorded = [cell["run"]["data"].get("notes") or [] for cell in findings.cells.values() if "run" in cell]
    distinct = dict.fromkeys(in_one_line(note) for notes in recorded for note in notes)
    return [f"**Of the text**: {note}." for note in distinct if not note.endswith(" nothing")]


def notes_on_uneven_seeds(findings: Findings) -> list[str]:
    """A sentence for each metric and arm with significantly more noise between seeds than the other arms (F test). A
    variance pooled over all arms does not fit such arms. [] for a Collection."""
    return [
        f"**{arm}: its seeds scatter more in {name} than those of the other arms** (F test, p = {p:.2g}, corrected for "
        "the number of arms). One variance is assumed for all. What is compared with this arm is judged by the "
        "variance of that difference alone where it asks for more; the noise of all other differences is overstated."
        for name in (findings.results if findings.controlled else ())
        for arm, p in arms_that_scatter_more(
            {arm: row for arm, row in findings.distinct_results(name).items() if row}
        ).items()
    ]
