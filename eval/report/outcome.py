"""The outcome of a study for programs: whether it is decided, as a word and an exit code."""

from typing import Any

from ablations.rundir import Exit
from eval.report.comparison.findings import Findings

EXIT_CODES = {"decided": int(Exit.FINISHED), "undecided": int(Exit.UNDECIDED), "refused": int(Exit.INVALID)}


def study_outcome(findings: Findings) -> dict[str, Any]:
    """The verdict on each arm by the primary metric, and the outcome of the study.

    The outcome is "refused" where arms have results that cannot be compared. It is "undecided" where an arm is
    undecided, has no result, or has an exploratory verdict. Else it is "decided". A verdict is exploratory where it
    depends on a metric, margin or noise floor that was chosen after the runs.

    Returns:
        metric: the primary metric.
        outcome: one of EXIT_CODES.
        arms: {arm: {"kind": "better", "worse", "equivalent", "undecided" or "refused"; "words": the verdict as text;
            "exploratory": whether it is exploratory}}.
    """
    name, arms = findings.primary, {}
    results = findings.results.get(name, {})
    for arm in findings.study.compared_arms:
        if arm in findings.comparisons.get(name, {}):
            decision = findings.verdict(arm, name)
            arms[arm] = {
                "kind": decision.kind,
                "words": decision.words,
                "exploratory": findings.is_exploratory(arm, name),
            }
        elif results.get(arm) and results.get(findings.baseline):
            arms[arm] = {"kind": "refused", "words": "not comparable with the baseline", "exploratory": False}
        else:
            arms[arm] = {"kind": "undecided", "words": "no result yet", "exploratory": False}
    kinds = {"undecided" if arm["exploratory"] else arm["kind"] for arm in arms.values()}
    word = "refused" if "refused" in kinds else "undecided" if "undecided" in kinds or not kinds else "decided"
    return {"metric": name, "outcome": word, "arms": arms}
