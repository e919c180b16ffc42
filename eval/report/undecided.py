"""python -m eval.report.undecided POS=alibi ...: prints the arms that are undecided, and which of them more seeds
cannot decide.

The verdicts are those of the report by the primary metric. Exit codes: 0, more seeds can decide no arm; 3, they may
decide an arm; 2, the words are not valid, a run cannot be read, or the metric, the margin or the noise floor was chosen
after the runs had begun. With --criteria only these errors are looked for, and the exit code is 0 or 2.
"""

import sys

from ablations.rundir import Exit
from ablations.safe_files import printable
from eval.report import request
from eval.report.comparison.criteria import criteria_chosen_late
from eval.report.comparison.findings import Findings
from eval.report.comparison.gather import gather_findings
from eval.statistics.verdicts import seeds_cannot_decide


def undecided_arms(findings: Findings) -> tuple[dict[str, str], dict[str, str]]:
    """The arms that are undecided by the primary metric, as two dictionaries {arm: its verdict in words}: the arms that
    more seeds may decide, and the arms that only more items can decide. Raises ValueError where the baseline has no
    result in the primary metric."""
    if not findings.results[findings.primary][findings.baseline]:
        raise ValueError(f"no run of {findings.baseline} has a result in {findings.primary}, which decides")
    compared, margin = findings.comparisons.get(findings.primary, {}), findings.margins.get(findings.primary)
    verdicts = {arm: findings.verdict(arm, findings.primary) for arm in compared}
    words = {arm: verdict.words for arm, verdict in verdicts.items() if not verdict.decided}
    of_items = {
        arm: text
        for arm, text in words.items()
        if not compared[arm].has_enough_items or seeds_cannot_decide(compared[arm], margin)
    }
    return {arm: text for arm, text in words.items() if arm not in of_items}, of_items


def check_criteria(findings: Findings) -> None:
    """Check that the criteria were registered before the runs, since otherwise verdicts stay exploratory even with more
    seeds. Raises ValueError where the metric, the margin or the noise floor was chosen after the runs had begun."""
    if late := criteria_chosen_late(findings.study, findings.cells):
        fresh = findings.study.seeds[0] + findings.study.criteria.seeds
        verb = "were" if len(late) > 1 else "was"
        raise ValueError(
            f"the {' and the '.join(late)} {verb} chosen after the runs had begun: verdicts by it are exploratory, "
            f"however many seeds are added. For a verdict that counts: FIRST_SEED={fresh}: new runs, which register it "
            "before their first step; or the command without it, which goes on by what was registered"
        )


CRITERIA_ONLY = "--criteria"


def main(words: list[str]) -> int:
    try:
        requested = request.parse_request([word for word in words if word != CRITERIA_ONLY])
        findings = gather_findings(requested.study, requested.noise, requested.beside)
        check_criteria(findings)
        arms, of_items = ({}, {}) if CRITERIA_ONLY in words else undecided_arms(findings)
    except (ValueError, OSError) as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return Exit.INVALID
    for arm, verdict in of_items.items():
        print(printable(f"{arm}: {verdict}; no seed is added for its sake"))
    for arm, verdict in arms.items():
        print(printable(f"{arm}: {verdict}"))
    return Exit.UNDECIDED if arms else Exit.FINISHED


if __name__ == "__main__":
    from ablations.words import change_to_checkout

    sys.exit(main(change_to_checkout(sys.argv[1:])))
