"""Section: main effects and interactions of a factorial, and which of them are aliased in a fraction."""

from typing import Any

from ablations.document.blocks import Block, Section, Table
from eval.report.comparison.compare import METRICS, interval_in_words
from eval.report.comparison.findings import Findings
from eval.statistics.comparison import Comparison

WORDS = """\
{design}. Every run differs from the baseline by the factors of its name alone, and along each edge of the design, from
one combination to the next, one setting differs; what does not is listed under "What does not match".

A main effect is what changing the factor does, averaged over the other factors. An interaction is what the second
factor changes about the effect of the first: for two, both together minus what each does alone. Paired by seed; noise
and intervals as under "Differences from the baseline"; Holm's correction is for all that is judged on a metric: the
combinations against the baseline, the main effects and the interactions together."""


NONE_YET = "There are no effects yet: every combination needs a result with the same seed."
HEAD = ["effect", "estimate", "95 % interval, corrected", "noise", "p", "verdict"]


def factorial_section(findings: Findings) -> Section:
    design = findings.study.factorial
    if not design:
        return Section("Main effects and interactions", [])
    rows = effect_rows(findings)
    words_of_design = design.in_words[0].upper() + design.in_words[1:]
    blocks: list[Block] = [WORDS.format(design=words_of_design), Table(HEAD, rows) if rows else NONE_YET]
    if design.aliasing:
        blocks.append(
            "**Aliased.** In a fraction, an effect is told together with others, of which its estimate has so much:"
        )
        blocks.append("\n".join(f"* {line}" for line in design.aliasing))
    return Section("Main effects and interactions", blocks)


def effect_rows(findings: Findings) -> list[list[str]]:
    """The rows of the table of effects (columns: HEAD), for each metric the main effects first."""
    design = findings.study.factorial
    assert design
    return [
        [
            f"{design.effect_name(effect)}, {name}",
            *estimate_cells(c, name, effect.bit_count()),
            verdict_text(findings, name, effect, c),
        ]
        for name in findings.results
        for effect, c in findings.effects.get(name, {}).items()
    ]


def blocks_for_terminal(findings: Findings) -> list[str | Table]:
    """The table of effects for the terminal, or a sentence that there are none yet; empty where the study is no
    factorial."""
    design = findings.study.factorial
    if not design:
        return []
    rows = [
        [effect, estimate, interval, verdict] for effect, estimate, interval, _, _, verdict in effect_rows(findings)
    ]
    blocks: list[str | Table] = [Table([*HEAD[:3], HEAD[-1]], rows) if rows else NONE_YET]
    if rows and design.aliasing:
        blocks.append("A fraction: each effect is told together with others, which the report lists.")
    return blocks


def estimate_cells(c: Comparison, metric: str, factors: int) -> list[str]:
    """Four table cells about an effect: the estimate, its confidence interval, its standard error and the p-value.
    `factors`: the number of factors of the effect."""
    digits = METRICS[metric].digits + 1
    estimate = f"{c.difference:+.{digits}f}"
    if not c.seeds or not c.has_enough_items:
        return [estimate, "unknown", "unknown", "-"]
    ends = interval_in_words(c.difference, c.threshold, metric, factors)
    return [estimate, ends, f"{c.noise:.{digits}f}", f"{c.adjusted:.2g}"]


def verdict_text(findings: Findings, metric: str, effect: int, c: Comparison) -> str:
    """The verdict on an effect as text, in bold where the effect is significant. An interaction is "better together" or
    "worse together" than the sum of the factors' own effects. `effect`: bit mask of the effect's factors; `c`: its
    comparison with 0."""
    decision = findings.judge(c, metric)
    sentence = decision.words
    if effect.bit_count() > 1 and decision.kind in ("better", "worse"):
        sentence = sentence.replace(decision.kind, f"{decision.kind} together", 1)
    late = findings.is_exploratory_if(decision.kind, metric)
    sentence = f"exploratory: {sentence}" if late or metric != findings.primary else sentence
    return f"**{sentence}**" if c.is_significant else sentence


def noise_for_record(c: Comparison) -> dict[str, float]:
    """The noise of a comparison as the record's run.json stores it: {"noise", "counts_above": threshold, "p"}; {} where
    the noise is unknown."""
    if not c.seeds or not c.has_enough_items:
        return {}
    return {"noise": c.noise, "counts_above": c.threshold, "p": c.adjusted}


def effects_for_record(findings: Findings) -> list[dict[str, Any]]:
    """The effects as the record's run.json stores them: a list with a dictionary for each metric and effect; [] where
    the study is no factorial."""
    design = findings.study.factorial
    lines: list[dict[str, Any]] = []
    if not design:
        return lines
    for name in findings.results:
        for effect, c in findings.effects.get(name, {}).items():
            line = {"effect": design.effect_name(effect), "metric": METRICS[name].key, "estimate": c.difference}
            line["verdict"] = verdict_text(findings, name, effect, c).replace("**", "")
            line |= noise_for_record(c)
            if shares := design.aliases(effect):
                line["aliased_with"] = {design.effect_name(other): share for other, share in shares.items()}
            lines.append(line)
    return lines
