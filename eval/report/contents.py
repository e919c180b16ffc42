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
    overview.overview_section,
    registered.registration_section,
    ranking.ranking_section,
    settings.differing_settings,
    composition.composition_section,
    settings.fixed_settings,
    differences.differences_section,
    factorial.factorial_section,
    tuning.tuning_section,
    training.training_section,
    during_training.during_training_section,
    context_length.context_length_section,
    domains.domains_section,
    corpora.corpora_section,
    scaling.scaling_section,
    tasks.tasks_section,
    glue.glue_section,
    published.published_section,
    challenge.challenge_section,
    cost.cost_section,
    proofs.proofs_section,
    lambda findings: Section(
        "What does not match", ["\n".join(f"* {line}" for line in findings.mismatches) or NO_MISMATCH]
    ),
    reproduction.reproduction_section,
)


def make_sections(findings: Findings) -> list[Section]:
    """Make the sections of a report, in order. Empty ones are left out."""
    sections = [section(findings) for section in SECTIONS]
    return [section for section in sections if not section.is_empty]
