"""The first section of a report: the question, a table with a line for each arm, and what its numbers mean."""

from math import nan

import numpy as np

from eval.report.blocks import Figure, Image, Section, Table, plus_minus
from eval.report.compare import METRICS, arm_strata
from eval.report.findings import Findings
from eval.report.sections.challenge import broken_rules
from eval.report.sections.differences import forest
from eval.report.sections.registered import expectation
from eval.report.sections.tasks import suite_examples
from eval.statistics.items import independent_items, item_part
from eval.statistics.seeds import arms_that_scatter_more, level_stderr


def section(f: Findings) -> Section:
    arms = " Corrected for the number of arms." if len(f.study.compared) > 1 else ""
    forests = [Figure(forest(f, name), f"Bars: 95 % intervals over seeds and items.{arms}") for name in f.results]
    question = [f"**Question.** {f.study.question}", expectation(f)]
    image = Image("figure.svg", "Loss curves and differences")
    return Section("", [*question, *arms_without_effect(f), table(f), *footnotes(f), *forests, image])


def table(f: Findings, head: str = "arm") -> Table:
    """A table with a line for each arm: its score on each metric, and the verdict by the primary metric.

    Args:
        head: the title of the first column.
    """
    lines = []
    for arm in f.study.arms:
        numbers = [score_text(f, arm, name) for name in METRICS if name in f.results]
        name = f"{arm} (baseline)" if arm == f.baseline != "baseline" else arm
        lines.append([name, *numbers, "; ".join(verdict_phrases(f, arm))])
    return Table([head, *f.results, "verdict"], lines)


def score_text(f: Findings, arm: str, metric: str) -> str:
    """An arm's mean over seeds with its standard error, as text; "-" where there is no result."""
    row = f.results[metric][arm]
    if not row:
        return "-"
    pool = f.results[metric] if f.controlled else {arm: row}
    strata = arm_strata(f.cells, arm, sorted(row), metric)
    error = level_stderr(pool, arm, item_part(strata))
    if (independent_items(strata) or 0) < 2:
        error = nan  # a single document or passage tells no noise
    return plus_minus(float(np.mean(list(row.values()))), error, METRICS[metric].digits)


def verdict_phrases(f: Findings, arm: str) -> list[str]:
    """The phrases in an arm's column "verdict": the verdict, or why there is none; broken rules of Cramming; missing
    runs."""
    results = f.results[f.primary]
    words = []
    if arm in f.compared[f.primary]:
        words.append(f.marked_verdict(arm, f.primary))
    if arm in f.same:
        words.append(f"**the same as {f.same[arm]}, bit for bit**")
    if not words and arm != f.baseline and results[arm] and results[f.baseline]:
        if arm in f.other_text:
            words.append("**read another text under the same name: not compared**")
        elif f.refusals:
            words.append("evaluated differently: not compared")
    rules = dict.fromkeys(rule for seed in f.study.seeds for rule in broken_rules(f.cells.get((arm, seed), {})))
    words += [f"**breaks a rule of Cramming: {rule}**" for rule in rules]
    planned = [seed for seed in f.study.seeds if (arm, seed) in f.cells]
    missing = len(planned) - len(results[arm])
    if missing:
        states = [f.cells[arm, seed]["state"] for seed in planned]
        counts = {word: sum(state.startswith(word) for state in states) for word in ("failed", "damaged")}
        reasons = "".join(f", {count} {word}" for word, count in counts.items() if count)
        words.append(f"{missing} of {len(planned)} runs missing{reasons}")
    return words


def arms_without_effect(f: Findings) -> list[str]:
    """Sentences about arms whose runs trained exactly as those of another arm."""
    return [
        f"**{arm} did nothing.** Its runs logged the same losses and gradient norms as those of {other}, seed by seed, "
        "at every step and to the last digit. They are no second measurement, and not compared: what sets the two "
        "apart had no effect here, and what it would do where it has one is not known from these runs."
        for arm, other in f.same.items()
    ]


def footnotes(f: Findings) -> list[str]:
    lines = [decided_by(f)]
    evaluations = [cell["eval"] for cell in f.cells.values() if "eval" in cell]
    for name, metric in METRICS.items():
        if name not in f.results:
            continue
        scores = [evaluation[metric.key] for evaluation in evaluations if evaluation.get(metric.key)]
        chance = f" (chance {scores[0]['chance']:.1f})" if scores and "chance" in scores[0] else ""
        what = held_out_loss(f) if name == "bits/byte" else f"mean accuracy in %{chance}"
        if name == "suite" and scores:
            tasks, of = scores[0]["tasks"], scores[0]["of"]
            examples = suite_examples(evaluations)
            kind = "tasks" if examples else "zero-shot tasks"
            what = f"mean accuracy in % over {tasks} of BigScience's {of} {kind}{examples}{chance}"
        verdicts = "; ".join(f"{arm} {f.verdict(arm, name)}" for arm in f.compared[name] if name != f.primary)
        better = "higher" if metric.higher_is_better else "lower"
        lines.append(f"{name}: {what}, {better} is better{f'; it says: {verdicts}' if verdicts else ''}.")
    return [
        " ".join(lines),
        "±: standard error of that number alone. Arms share seeds and documents, so differences are surer.",
        *unequal_tasks(f),
        *uneven_seeds(f),
    ]


def held_out_loss(f: Findings) -> str:
    """What bits/byte means here: the loss of the whole text, or that of the masked tokens."""
    models = [cell["run"]["config"]["model"] for cell in f.cells.values() if "run" in cell]
    rates = {model.get("mask_rate") for model in models if model.get("objective") == "mlm"}
    if not rates:
        return "held-out loss"
    share = " or ".join(f"{rate:.0%}" for rate in sorted(rates) if isinstance(rate, float))
    return (
        f"held-out loss of the masked tokens ({share}) over the bytes they stand for, comparable at one mask rate only"
    )


def decided_by(f: Findings) -> str:
    """Sentences on the metric and the margin of the verdicts, and whether they were chosen after the runs."""
    if f.primary == f.primary_before:
        words = f"The verdict is on {f.primary}, the primary metric; what the others say is exploratory."
    else:
        before = f.primary_before or "one metric in some runs and another in others"
        words = f"The verdict is on {f.primary}, exploratory: chosen after the runs, which named {before}."
    late = [
        f"Margin of {name}: {margin:g} {METRICS[name].unit}, exploratory: chosen after the runs."
        for name, margin in f.margins.items()
        if name in f.results and name not in f.named_before
    ]
    if f.seeds_planned:
        late.append(
            f"Seeds were added after the first {f.seeds_planned}, which were all that was planned: looking more than "
            "once makes wrong verdicts likelier than 5 %. MORE=auto from the start has a level for each look."
        )
    return " ".join([words, *late])


def unequal_tasks(f: Findings) -> list[str]:
    """Sentences about tasks that are left out of a comparison, because only one of the two arms has them or they were
    evaluated differently."""
    return [
        f"**{arm}, {name}: compared with {f.baseline} on what both were asked in the same way**, without "
        f"{', '.join(left_out)}. The means in the table are over all that each was asked."
        for name in f.results
        for arm in f.compared[name]
        if (left_out := f.tasks_left_out(arm, name))
    ]


def uneven_seeds(f: Findings) -> list[str]:
    """Sentences about arms whose seeds scatter significantly more than those of other arms, so that one pooled variance
    does not fit all."""
    return [
        f"**{arm}: its seeds scatter more in {name} than those of the other arms** (F test, p = {p:.2g}, corrected for "
        "the number of arms). One variance is assumed for all. What is compared with this arm is judged by the "
        "variance of that difference alone where it asks for more; the noise of all other differences is overstated."
        for name in (f.results if f.controlled else ())
        for arm, p in arms_that_scatter_more({arm: row for arm, row in f.distinct_results(name).items() if row}).items()
    ]
