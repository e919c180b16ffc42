"""By what a report decides: metric, margin and number of seeds, registered before the runs or chosen later."""

import json
import re
from dataclasses import replace

import pytest

from ablations import rundir
from ablations.criteria import Criteria
from ablations.document.formats import markdown
from eval.report.__main__ import main
from eval.report.comparison.gather import gather_findings
from eval.report.contents import make_sections
from eval.report.record import write_record_files
from eval.statistics.sequential import alpha_share
from tests.made_study import ARMS, Study, make, register, registered, report, rewrite, section, shift


def test_a_margin_makes_equivalent_arms_and_what_is_undecided_says_what_is_missing(tmp_path):
    study = make(Study(tmp_path / "runs", arms=list(ARMS)))
    report(study, tmp_path / "out")
    text = section((tmp_path / "out/report.md").read_text(), "Differences from the baseline")
    assert "**Undecided**: not more than noise. What is missing" in text and "* pos=none, bits/byte: " in text
    assert "pos=alibi, bits/byte: " not in text.split("**Undecided**")[1] and "equivalent" not in text
    findings = gather_findings(replace(study, criteria=Criteria(margins={"bits/byte": 0.05}, seeds=3)))
    assert findings.verdict_in_words("pos=none", "bits/byte") == "exploratory: equivalent within 0.05 bits/byte"
    assert findings.verdict_in_words("pos=alibi", "bits/byte").startswith("better by 0.0")
    assert findings.verdict_in_words("pos=none", "zero-shot").startswith("undecided: about ")
    write_record_files(findings, tmp_path / "out")
    text = section((tmp_path / "out/report.md").read_text(), "Differences from the baseline")
    assert "* pos=none, bits/byte" not in text and "Margin of bits/byte: 0.05 bits/byte, chosen after the runs" in text
    # a run takes 102.4 s of one core; with less noise than this two more seeds of three arms would be enough
    for arm in study.arms:
        for seed in study.seeds:
            rewrite(study.cell(arm, seed).dir, lambda row: row | {"nats": 2.0 * row["bytes"]})
            shift(study.cell(arm, seed).dir, {"pos=none": 0.1}.get(arm, 0.0) + 0.03 * (seed - 2) * (arm != "pos=none"))
    report(study, tmp_path / "out")
    text = section((tmp_path / "out/report.md").read_text(), "Differences from the baseline")
    more, hours = re.search(
        r"pos=none, bits/byte: about (\d+) more seeds? of each arm would tell, (.*) core-hours", text
    ).groups()
    assert float(hours) == pytest.approx(int(more) * 3 * 102.4 / 3600, rel=0.05)


@pytest.mark.parametrize("margin", ["0", "-1", "x", "0.1,1,2", "inf", "nan"])
def test_a_margin_is_a_number_above_zero(margin, capsys):
    assert main(["POS=alibi", f"MARGIN={margin}"]) == 2
    assert f"MARGIN={margin}: a number above 0, in bits per byte" in capsys.readouterr().err


def test_the_margin_that_was_registered_counts_and_one_that_is_typed_later_is_exploratory(tmp_path):
    study = make(Study(tmp_path / "runs", arms=list(ARMS)))
    before = Criteria(margins={"bits/byte": 0.05}, seeds=3)
    register(study, before)
    assert (
        gather_findings(registered(study, before)).verdict_in_words("pos=none", "bits/byte")
        == "equivalent within 0.05 bits/byte"
    )
    # the study file says something else by now
    wide = Criteria(margins={"bits/byte": 0.09}, seeds=3)
    assert (
        gather_findings(registered(study, wide)).verdict_in_words("pos=none", "bits/byte")
        == "equivalent within 0.05 bits/byte"
    )
    typed = gather_findings(registered(study, wide, words=("MARGIN=0.09",)))
    assert typed.verdict_in_words("pos=none", "bits/byte") == "exploratory: equivalent within 0.09 bits/byte"
    same = gather_findings(registered(study, before, words=("MARGIN=0.05",)))
    assert same.verdict_in_words("pos=none", "bits/byte") == "equivalent within 0.05 bits/byte"
    # one arm may be older than the question, as the baseline that studies share; not two
    (study.cell("pos=learned", 1).dir / rundir.REGISTERED).unlink()
    assert (
        gather_findings(registered(study, before)).verdict_in_words("pos=none", "bits/byte")
        == "equivalent within 0.05 bits/byte"
    )
    (study.cell("pos=alibi", 2).dir / rundir.REGISTERED).unlink()
    some = gather_findings(registered(study, before))
    assert some.verdict_in_words("pos=none", "bits/byte") == "exploratory: equivalent within 0.05 bits/byte"
    write_record_files(some, tmp_path / "out")
    entries = json.loads((tmp_path / "out/run.json").read_text())["comparisons"]
    decisions = {(e["arm"], e["metric"]): (e["decision"], e["exploratory"]) for e in entries}
    assert decisions["pos=none", "bits_per_byte"] == ("equivalent", True)
    assert decisions["pos=alibi", "bits_per_byte"] == ("better", False) and decisions["pos=alibi", "zero_shot"] == (
        "better",
        True,
    )


def test_the_metric_that_was_registered_decides(tmp_path):
    study = make(Study(tmp_path / "runs", arms=list(ARMS)))
    by_score = Criteria(metric="zero-shot", seeds=3)
    register(study, by_score)
    named = gather_findings(registered(study, by_score))
    assert named.verdict_in_words("pos=alibi", "zero-shot").startswith("better by 5.6")
    assert named.verdict_in_words("pos=alibi", "bits/byte").startswith("exploratory: better by")
    assert "better by 5.6" in report(registered(study, by_score), tmp_path / "out").splitlines()[2]
    late = gather_findings(registered(study))  # by bits per byte, which no run had named
    assert late.verdict_in_words("pos=alibi", "bits/byte").startswith("exploratory: ")
    assert "chosen after the runs, which named zero-shot" in section(
        markdown("t", make_sections(late)), "Differences from the baseline"
    )


def test_seeds_that_were_added_until_it_was_decided_are_judged_so_without_being_told(tmp_path):
    """Looked at after 3 of at most 10 seeds, what one look would call better is not yet."""
    study = make(Study(tmp_path / "runs", arms=list(ARMS)))
    plain = gather_findings(registered(study)).comparisons["bits/byte"]["pos=none"]
    register(study, Criteria(seeds=10, sequential=True))
    looked = gather_findings(registered(study))
    assert looked.study.criteria == Criteria(seeds=10, sequential=True)
    c = looked.comparisons["bits/byte"]["pos=none"]
    assert c.share == alpha_share(3, 10, 2) < 0.1 and c.threshold > 2 * plain.threshold
    alibi = looked.comparisons["bits/byte"]["pos=alibi"]
    assert alibi.adjusted == pytest.approx(2 * alibi.p / c.share) and alibi.p < 0.05
    assert (
        "Seeds are added until every arm is decided or only more groups of items would decide it, up to 10"
        in section(markdown("t", make_sections(looked)), "Differences from the baseline")
    )
