"""Section: what was registered before the runs, what was changed since, and which predictions came true."""

from typing import Any

from ablations import rundir
from ablations.document.blocks import Block, Section, Table
from ablations.registration import NOTHING_EXPECTED, describe_changes
from eval.report.comparison.criteria import arms_registered_late, first_registrations, registered_contents
from eval.report.comparison.findings import Findings
from eval.report.comparison.predictions import checked_predictions
from eval.report.reading.runs import runs_in_words

HEAD = """\
What a study asks and expects is written into the directory of each run before its first step, with a hash."""

CHECKED = """\
Predictions compare values of the metric as they are: in bits/byte, less is better. An order **held** when every
difference between neighbours has its sign and is more than noise (p ≤ 0.05), and **failed** when one of them has the
other sign beyond noise, corrected for their number. An interval held when two one-sided tests say that the difference
lies in it, and failed when the 95 % interval of the difference lies outside. All else is undecided. Each prediction is
a claim of its own: there is no correction for how many there are, nor in the intervals under "measured" (where seeds
are added until it is decided, these are wider, so that they hold at all looks together). **Before the runs**: it stood
in the directories of the arms that it is about before their first step; one of them may be older, since studies share
their baseline."""


UNCHANGED = "nothing was changed since"
UNKNOWN = "whether anything was changed since cannot be told of every run"


def registration_section(findings: Findings) -> Section:
    blocks: list[Block] = []
    if findings.study.registration:
        blocks += [
            HEAD,
            "\n".join(
                f"* {line}."
                for line in [
                    *registration_sentences(findings),
                    *(changes_since(findings) or [unchanged_sentence(findings)]),
                ]
            ),
        ]
    if checked := checked_predictions(findings):
        rows = [
            [f"`{row.text}`", row.metric, "yes" if row.registered else "no", f"**{row.outcome}**", row.measured]
            for row in checked
        ]
        blocks += [Table(["predicted", "of", "before the runs", "outcome", "measured"], rows), CHECKED]
    return Section("Registered before the runs", blocks)


def registrations_by_time(findings: Findings) -> dict[tuple[str, int], dict[str, Any]]:
    """The first registration of the study in each run: {(arm, seed): parsed line of registered.jsonl}, the earliest
    first. Runs without a registration of this study are left out."""
    return dict(sorted(first_registrations(findings.study, findings.cells).items(), key=lambda item: item[1]["time"]))


def registration_sentences(findings: Findings) -> list[str]:
    """Sentences on how many runs registered this study before their first step, which runs registered it later, and
    which did not."""
    first = registrations_by_time(findings)
    before = [run for run, line in first.items() if line["step"] == 0]
    later = [run for run, line in first.items() if line["step"] > 0]
    without = [run for run, cell in findings.cells.items() if "run" in cell and run not in first]
    lines = [f"registered before the first step in {len(before)} of {len(findings.cells)} runs"]
    if later:
        lines.append(
            f"registered only after training had begun, for a question that came later: {runs_in_words(later)}"
        )
    if without:
        lines.append(f"not registered: {runs_in_words(without)}")
    return lines


def changes_since(findings: Findings) -> list[str]:
    """A sentence for each registered value that has changed since the runs began."""
    registered = {
        f"{arm}, seed {seed}": line["content"] for (arm, seed), line in registrations_by_time(findings).items()
    }
    return describe_changes(findings.study.registration, registered, len(findings.cells))


def unchanged_sentence(findings: Findings) -> str:
    """The sentence of a study without known changes since its registration: either that nothing was changed; or that
    this is unknown, because a run's registration is missing or damaged."""
    known = registrations_by_time(findings)
    damaged = any(rundir.REGISTERED in line for cell in findings.cells.values() for line in cell.get("damage", []))
    return (
        UNKNOWN
        if damaged or any("run" in findings.cells[run] and run not in known for run in findings.cells)
        else UNCHANGED
    )


def expectation_text(findings: Findings) -> str:
    """The expectation of the study as text, with a remark on whether it was written before the runs. It was if all runs
    registered it before their first step. The runs of one arm may lack it, since they may be from an earlier study."""
    expect = findings.study.expect
    if expect.startswith(NOTHING_EXPECTED):
        return f"Nothing was expected in writing before the runs.{expect.removeprefix(NOTHING_EXPECTED)}"
    study, cells = findings.study, findings.cells
    registered = [content.get("expected") for content in registered_contents(study, cells).values()]
    late = arms_registered_late(study, cells, lambda content: content.get("expected") == expect)
    if expect in registered and len(late) <= 1:
        when = "written before the runs"
    elif first_registrations(study, cells):
        when = "written after the runs had begun"
    else:
        when = "not registered before the runs"
    return f"**Expected, {when}.** {expect}"


def registration_summary(findings: Findings) -> dict[str, Any]:
    """The registration of the study as the record's run.json stores it; {} for a collection.

    Returns:
        before_the_first_step: the number of runs that registered the study before their first step.
        runs: the number of all runs.
        changed: sentences on what has changed since.
    """
    if not findings.study.registration:
        return {}
    before = sum(line["step"] == 0 for line in registrations_by_time(findings).values())
    return {"before_the_first_step": before, "runs": len(findings.cells), "changed": changes_since(findings)}
