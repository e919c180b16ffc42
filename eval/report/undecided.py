"""python -m eval.report.undecided POS=alibi ...: prints the arms that are undecided and that more seeds may decide.

The verdicts are those of the report by the primary metric. Exit codes: 0, there are no such arms; 3, there are; 2, the
words are not valid, or the metric, the margin or the noise floor was chosen after the runs had begun. With --criteria
only the latter is checked.
"""

import sys

from ablations.rundir import Exit
from ablations.safe_files import printable
from eval.report import request
from eval.report.criteria import criteria_chosen_late
from eval.report.findings import Findings
from eval.report.gather import gather


def undecided_arms(findings: Findings) -> dict[str, str]:
    """The arms that are undecided for lack of seeds, and not of items: {arm: its verdict in words}. Raises ValueError
    where the baseline has no result in the primary metric."""
    if not findings.results[findings.primary][findings.baseline]:
        raise ValueError(f"no run of {findings.baseline} has a result in {findings.primary}, which decides")
    compared = findings.comparisons.get(findings.primary, {})
    return {
        arm: findings.decision(arm, findings.primary).words
        for arm, comparison in compared.items()
        if not findings.decision(arm, findings.primary).decided and comparison.enough_items
    }


def check_criteria(findings: Findings) -> None:
    """Check that verdicts of these runs can be more than exploratory if seeds are added. Raises ValueError where the
    metric, the margin or the noise floor was chosen after the runs had begun."""
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
        requested = request.parse([word for word in words if word != CRITERIA_ONLY])
        findings = gather(requested.study, requested.noise, requested.beside)
        check_criteria(findings)
        arms = {} if CRITERIA_ONLY in words else undecided_arms(findings)
    except ValueError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return Exit.INVALID
    for arm, verdict in arms.items():
        print(printable(f"{arm}: {verdict}"))
    return Exit.UNDECIDED if arms else Exit.FINISHED


if __name__ == "__main__":
    from ablations.words import change_to_checkout

    sys.exit(main(change_to_checkout(sys.argv[1:])))
