"""The answer to a study's question, in one sentence at the top of the report.

It states the verdicts of the table on arms against the baseline. The leading arm is also compared with other arms
(eval/report/comparison/leading.py); this is corrected for having chosen the leader by its result.
"""

from ablations.document.blocks import Table
from ablations.values import join_names
from eval.report.comparison.compare import METRICS
from eval.report.comparison.findings import Findings
from eval.report.comparison.leading import leading_arm
from eval.statistics.verdicts import margin_text

OPPOSITE_KINDS = {"better": "worse", "worse": "better"}

PAIRS = """\
**The leading arm against the others**, for the answer at the top. The leader was chosen by its result, so each p-value
is multiplied by the number of pairs of arms, {pairs}; against the baseline the verdicts above hold."""


def answer(findings: Findings) -> str:
    """The answer to the study's question in one or two sentences. "" where no arm is compared with the baseline yet, or
    for a Collection, whose runs are ranked instead (sections/ranking.py)."""
    metric = findings.primary
    compared = findings.comparisons.get(metric, {})
    if not findings.controlled or not compared:
        return ""
    if len(compared) == 1:
        text, kinds = answer_for_one_arm(findings, next(iter(compared)))
    else:
        text, kinds = answer_for_several_arms(findings)
    if findings.study.tuning:
        text = f"At the common learning rate: {text}"
    if any(findings.is_exploratory_if(kind, metric) for kind in kinds):
        text = f"Exploratory, by a metric, margin or noise floor that was chosen after the runs: {text}"
    missing = [arm for arm in findings.study.compared_arms if arm not in compared]
    not_compared = f" Not compared: {join_names(missing)}." if missing else ""
    if text.startswith(("of ", "undecided: ")):  # else it is the name of an arm, or a capital already
        text = f"{text[0].upper()}{text[1:]}"
    return f"**Answer.** {text}.{not_compared}"


def answer_for_one_arm(findings: Findings, arm: str) -> tuple[str, list[str]]:
    """The answer of a study with one arm besides the baseline: (text, [kind of the arm's verdict]). The kind is
    "better", "worse", "equivalent" or "undecided"."""
    metric = findings.primary
    definition, baseline = METRICS[metric], baseline_in_words(findings)
    kind, difference = findings.verdict(arm, metric).kind, findings.comparisons[metric][arm].difference
    if kind in ("better", "worse"):
        size = f"{abs(difference):.{definition.digits}f} {definition.unit}"
        return f"{arm} is {kind} than {baseline} by {size}", [kind]
    if kind == "equivalent":
        return f"{arm} is equivalent to {baseline} within {margin_text(findings.margins[metric], definition.unit)}", [
            kind
        ]
    return f"undecided: {arm} cannot be told from {baseline} in {metric}", [kind]


def answer_for_several_arms(findings: Findings) -> tuple[str, list[str]]:
    """The answer of a study of several arms: (text, the kinds of the verdicts that it rests on). A kind is "better",
    "worse", "equivalent" or "undecided"."""
    metric, baseline = findings.primary, findings.baseline
    compared = findings.comparisons[metric]
    leader, others = leading_arm(compared, baseline, metric), [baseline, *compared]
    others.remove(leader)
    kinds = {arm: leader_verdict_kind(findings, leader, arm) for arm in others}
    names = {arm: "the baseline" if arm == baseline else arm for arm in others}
    ahead = [arm for arm in others if kinds[arm] == "better"]
    even = [names[arm] for arm in others if kinds[arm] == "equivalent"]
    open_ = [names[arm] for arm in others if kinds[arm] in ("undecided", "worse")]
    lead = lead_in_words(findings, leader)
    whom = baseline_in_words(findings) if leader == baseline else leader
    if len(ahead) == len(others):
        return f"of {len(others) + 1} arms {whom} is best{lead}, and ahead of every other arm", list(kinds.values())
    clauses = []
    if open_:
        clauses.append(f"cannot be told from {join_names(open_) if len(open_) < len(others) else 'any other arm'}")
    if even:
        margin = f"{margin_text(findings.margins[metric], METRICS[metric].unit)}"
        clauses.append(f"is equivalent to {join_names(even)} within {margin}")
    if ahead:
        clauses.append("is ahead of every other arm")
    best = "highest" if METRICS[metric].higher_is_better else "lowest"
    text = f"of {len(others) + 1} arms {whom} has the {best} {metric}{lead}; it {join_names(clauses)}"
    if not ahead and not even:
        text = f"undecided: {text}"
    better = [arm for arm in compared if arm != leader and findings.verdict(arm, metric).kind == "better"]
    if better and kinds.get(baseline) != "better":  # the leader is noisier than these
        text += f". Better than the baseline: {join_names(better)}"
        kinds[better[0]] = "better"
    return text, list(kinds.values())


def leader_verdict_kind(findings: Findings, leader: str, arm: str) -> str:
    """The kind of the verdict on the leading arm against another arm: "better", "worse", "equivalent" or "undecided".
    Either arm may be the baseline."""
    metric, baseline = findings.primary, findings.baseline
    if arm == baseline:
        return findings.verdict(leader, metric).kind
    if leader == baseline:
        kind = findings.verdict(arm, metric).kind
        return OPPOSITE_KINDS.get(kind, kind)
    comparison = findings.leader_compared.get(arm)
    return findings.judge(comparison, metric).kind if comparison else "undecided"


def lead_in_words(findings: Findings, leader: str) -> str:
    """The difference of the leading arm from the baseline as text, such as ", 0.174 below the baseline (pos=learned)";
    "" where the baseline leads."""
    if leader == findings.baseline:
        return ""
    definition = METRICS[findings.primary]
    size = abs(findings.comparisons[findings.primary][leader].difference)
    side = "above" if definition.higher_is_better else "below"
    return f", {size:.{definition.digits}f} {definition.unit} {side} {baseline_in_words(findings)}"


def baseline_in_words(findings: Findings) -> str:
    name = findings.baseline
    return "the baseline" if name == "baseline" else f"the baseline ({name})"


def pairs_table(findings: Findings) -> list[str | Table]:
    """A paragraph and a table that compare the leading arm with all other arms except the baseline; [] where the
    baseline leads, or there are no such arms."""
    metric = findings.primary
    if not findings.leader_compared:
        return []
    leader, digits = leading_arm(findings.comparisons[metric], findings.baseline, metric), METRICS[metric].digits + 1
    rows = [
        [
            f"{leader} − {arm}",
            f"{c.difference:+.{digits}f}",
            f"{c.noise:.{digits}f}" if c.seeds and c.has_enough_items else "unknown",
            f"{c.adjusted:.2g}" if c.seeds and c.has_enough_items else "-",
            findings.judge(c, metric).kind,
        ]
        for arm, c in findings.leader_compared.items()
    ]
    pairs = next(iter(findings.leader_compared.values())).family
    return [PAIRS.format(pairs=pairs), Table([metric, "difference", "noise", "p", "verdict"], rows)]
