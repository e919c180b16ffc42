"""The answer at the top of a report (eval/report/sections/answer.py, eval/report/comparison/leading.py): the same
sentence as from loops written out, and how often it claims what is not so."""

import json
from itertools import combinations
from math import inf, sqrt
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from ablations.criteria import Criteria
from eval.report.comparison.findings import Findings
from eval.report.comparison.leading import corrected_for_pairs, leading_arm
from eval.report.sections.answer import answer
from eval.statistics.comparison import apply_holm_correction, compare
from eval.statistics.parts import Variance
from eval.statistics.seeds import Results, arms_that_scatter_more, seed_variance
from tests.made_study import ARMS, Study, make, register, registered, report, section

METRIC = "bits/byte"  # less is better
NO_ITEMS = Variance(0.0, inf)


def difference(results: Results, arm: str, other: str):
    size = float(np.mean(list(results[arm].values())) - np.mean(list(results[other].values())))
    return compare(size, seed_variance(results, arm, other), NO_ITEMS)


def findings_of(x: np.ndarray, margin: float | None = None) -> Findings:
    """The findings of a study whose only noise is that of seeds.

    Args:
        x: losses, [arms, seeds]; arm a is the baseline, then b, c and so on.
    """
    arms = [chr(ord("a") + i) for i in range(len(x))]
    results = {arm: dict(enumerate(map(float, row))) for arm, row in zip(arms, x, strict=True)}
    compared = apply_holm_correction({arm: difference(results, arm, "a") for arm in arms[1:]})
    leader, pairs = leading_arm(compared, "a", METRIC), len(arms) * (len(arms) - 1) // 2
    others = [arm for arm in arms[1:] if arm != leader] if leader != "a" and len(arms) > 2 else []
    criteria = Criteria(margins={METRIC: margin} if margin else {}, seeds=x.shape[1])
    study = SimpleNamespace(arms=arms, compared_arms=arms[1:], controlled=True, tuning=None, criteria=criteria)
    return Findings(
        study,
        cells={},
        results={METRIC: results},
        comparisons={METRIC: compared},
        mismatches=[],
        refusals=[],
        registered_margins=frozenset([METRIC]),
        leader_compared={arm: corrected_for_pairs(difference(results, leader, arm), pairs) for arm in others},
    )


def written_out(x: np.ndarray, margin: float) -> str:
    """The answer by loops: t-tests with the residual variance of arms and seeds, Holm's correction against the
    baseline, Bonferroni's for all pairs."""
    A, n = x.shape
    rest = sum((x[i, s] - x[i].mean() - x[:, s].mean() + x.mean()) ** 2 for i in range(A) for s in range(n))
    dof = (A - 1) * (n - 1)
    error = sqrt(2 * rest / dof / n)

    def p(i: int, j: int) -> float:
        return 2 * stats.t.sf(abs(x[i].mean() - x[j].mean()) / error, dof)

    def within(i: int, j: int, level: float) -> bool:
        return abs(x[i].mean() - x[j].mean()) + stats.t.isf(level, dof) * error <= margin

    verdicts, passed = {}, True
    for rank, i in enumerate(sorted(range(1, A), key=lambda i: p(i, 0))):
        passed = passed and p(i, 0) * (A - 1 - rank) <= 0.05
        better = "better" if x[i].mean() < x[0].mean() else "worse"
        verdicts[i] = better if passed else "equivalent" if within(i, 0, 0.05 / (A - 1)) else "undecided"
    first = min(range(A), key=lambda i: x[i].mean())
    behind, even, unknown = [], [], []
    for i in range(A):
        if i == first:
            continue
        if 0 in (i, first):
            kind = verdicts[i or first]
        else:
            pairs = len(list(combinations(range(A), 2)))
            kind = "better" if p(i, first) * pairs <= 0.05 else "open"
            kind = "equivalent" if kind == "open" and within(i, first, 0.05 / pairs) else kind
        name = "the baseline" if i == 0 else "abcdefgh"[i]
        (behind if kind in ("better", "worse") else even if kind == "equivalent" else unknown).append(name)
    who = "abcdefgh"[first] if first else "the baseline (a)"
    lead = f", {x[0].mean() - x[first].mean():.3f} bits/byte below the baseline (a)" if first else ""
    if len(behind) == A - 1:
        return f"**Answer.** Of {A} arms {who} is best{lead}, and ahead of every other arm."

    def join_names(names: list[str]) -> str:
        return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]

    clauses = []
    if unknown:
        clauses.append(f"cannot be told from {join_names(unknown) if len(unknown) < A - 1 else 'any other arm'}")
    if even:
        clauses.append(f"is equivalent to {join_names(even)} within {margin:g} bits/byte")
    if behind:
        clauses.append("is ahead of every other arm")
    text = f"f {A} arms {who} has the lowest bits/byte{lead}; it {join_names(clauses)}."
    text = f"**Answer.** O{text}" if behind or even else f"**Answer.** Undecided: o{text}"
    better = [i for i in verdicts if verdicts[i] == "better" and i != first]
    assert not better or "the baseline" in behind  # one variance for all: the leader is surely ahead, too
    return text


def test_the_answer_is_that_of_loops_written_out() -> None:
    rng, forms = np.random.default_rng(61), set()
    for number in range(120):
        arms, seeds = 3 + number % 3, 3 + number % 4
        x = rng.normal(2.5, 0.01, (arms, seeds)) + rng.choice([0.0, 0.0, -0.02, -0.05, 0.06], (arms, 1))
        x += rng.normal(0, 0.1, seeds)  # what the arms of a seed share
        findings = findings_of(x, margin=0.04)
        if arms_that_scatter_more(findings.results[METRIC]):
            continue
        assert answer(findings) == written_out(x, 0.04)
        text = answer(findings)
        forms |= {
            word for word in ("is best", "Undecided", "equivalent", "cannot be told", "baseline (a) is") if word in text
        }
    assert len(forms) == 5


@pytest.mark.parametrize("arms, seeds", [(4, 3), (6, 5)])
def test_of_equal_arms_the_leader_is_seldom_called_better_than_another(arms: int, seeds: int) -> None:
    """400 studies: 5 % are 20, with a standard deviation of 4.4. Without the correction they are more."""
    rng, wrong, uncorrected, quiet = np.random.default_rng(62), 0, 0, 0
    for _ in range(400):
        findings = findings_of(rng.normal(size=(arms, seeds)))
        against_others = findings.leader_compared.values()
        wrong += any(c.is_significant for c in against_others)
        uncorrected += any(c.p <= 0.05 for c in against_others)
        if quiet < 40 and not any(c.is_significant for c in (*against_others, *findings.comparisons[METRIC].values())):
            text, quiet = answer(findings), quiet + 1
            assert "best" not in text and "ahead" not in text and "better" not in text
    assert wrong <= 33 < uncorrected and quiet == 40


def test_a_leader_that_is_ahead_is_seen() -> None:
    rng = np.random.default_rng(63)
    seen = [answer(findings_of(rng.normal(size=(4, 5)) - [[0], [6], [0], [0]])) for _ in range(20)]
    assert sum("Of 4 arms b is best, " in text for text in seen) > 17


def test_an_arm_that_is_better_is_named_where_a_noisier_one_leads() -> None:
    """The leader's own seeds scatter so that it cannot be told from the baseline; c surely is better."""
    x = np.random.default_rng(64).normal(0, 0.01, (4, 6)) - [[0.0], [3.0], [2.6], [0.0]]
    x[1] += [3.0, -3.0, 2.0, -2.0, 1.0, -1.0]
    lead = f"{x[0].mean() - x[1].mean():.3f} bits/byte below the baseline (a)"
    assert answer(findings_of(x)) == (
        f"**Answer.** Undecided: of 4 arms b has the lowest bits/byte, {lead}; it cannot be told from any other arm. "
        "Better than the baseline: c."
    )


def test_every_form_of_a_report_opens_with_the_answer(tmp_path) -> None:
    study = make(Study(tmp_path / "runs", arms=list(ARMS)))
    criteria = Criteria(seeds=3)
    register(study, criteria)
    screen = report(registered(study, criteria), tmp_path / "out")
    record = json.loads((tmp_path / "out/run.json").read_text())
    size = next(
        c["difference"] for c in record["comparisons"] if c["arm"] == "pos=alibi" and c["metric"] == "bits_per_byte"
    )
    lead = f"{-size:.3f} bits/byte below the baseline (pos=learned)"
    expected = f"Of 3 arms pos=alibi is best, {lead}, and ahead of every other arm."
    assert record["answer"] == expected and f"\n\nAnswer. {expected}\n" in screen
    text = (tmp_path / "out/report.md").read_text()
    assert text.index("**Question.**") < text.index(f"**Answer.** {expected}\n") < text.index("| arm |")
    pairs = section(text, "Differences from the baseline").split("**The leading arm against the others**")[1]
    assert (
        "multiplied by the number of pairs of arms, 3;" in pairs.replace("\n", " ")
        and "| pos=alibi − pos=none | -0.0" in pairs
    )
    late = registered(study, Criteria("zero-shot", seeds=3), words=("METRIC=zero-shot",))
    assert "Answer. Exploratory, by a metric, margin or noise floor that was chosen after" in report(
        late, tmp_path / "late"
    )


def test_one_arm_is_better_worse_equivalent_or_undecided() -> None:
    x = np.random.default_rng(65).normal(0, 0.001, (2, 5))
    size = float(x[1].mean() - x[0].mean())
    worse, better = f"{size + 0.5:.3f} bits/byte", f"{0.5 - size:.3f} bits/byte"
    assert answer(findings_of(x + [[0.0], [0.5]])) == f"**Answer.** b is worse than the baseline (a) by {worse}."
    assert answer(findings_of(x - [[0.0], [0.5]])) == f"**Answer.** b is better than the baseline (a) by {better}."
    assert answer(findings_of(x, margin=0.2)) == "**Answer.** b is equivalent to the baseline (a) within 0.2 bits/byte."
    assert answer(findings_of(x)) == "**Answer.** Undecided: b cannot be told from the baseline (a) in bits/byte."
