"""The sections of a report in their order. A new section is a file in eval/report/sections and a line here."""

from ablations.document.blocks import Section
from eval.report.comparison.findings import Findings
from eval.report.sections import (
    challenge,
    composition,
    context_length,
    corpora,
    cost,
    differences,
    domains,
    during_training,
    factorial,
    glue,
    overview,
    proofs,
    published,
    ranking,
    registered,
    reproduction,
    scaling,
    settings,
    tasks,
    training,
    tuning,
)

NO_MISMATCH = """\
Nothing. Every run is finished; but for the line that makes an arm, all have the same configuration, text,
tokenizer, commit, versions, hardware and layout."""

SECTIONS = (
    overview.section,
    registered.section,
    ranking.section,
    settings.differing_settings,
    composition.section,
    settings.fixed_settings,
    differences.section,
    factorial.section,
    tuning.section,
    training.section,
    during_training.section,
    context_length.section,
    domains.section,
    corpora.section,
    scaling.section,
    tasks.section,
    glue.section,
    published.section,
    challenge.section,
    cost.section,
    proofs.section,
    lambda findings: Section(
        "What does not match", ["\n".join(f"* {line}" for line in findings.mismatches) or NO_MISMATCH]
    ),
    reproduction.section,
)


def contents(findings: Findings) -> list[Section]:
    """The sections of a report in order, without empty ones."""
    sections = [section(findings) for section in SECTIONS]
    return [section for section in sections if not section.is_empty]
