"""The levels of a study that adds seeds until it is decided, against simulated normal means."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from ablations import rundir
from ablations.criteria import Criteria
from ablations.study import from_args
from eval.report import undecided as undecided_command
from eval.report.comparison.gather import gather_findings
from eval.report.request import Request
from eval.report.undecided import undecided_arms
from eval.statistics import sequential
from eval.statistics.comparison import apply_holm_correction, compare
from eval.statistics.parts import LEVEL, Variance, interval_half_width
from eval.statistics.sequential import alpha_share, interim_levels
from eval.statistics.verdicts import seeds_cannot_decide, seeds_to_decide
from launch import local
from launch.local import run_until_decided
from tests.calibration import simulation
from tests.made_study import ARMS, Study, make, register, registered, rewrite

NO_ITEMS = Variance(0.0, np.inf)


@pytest.mark.parametrize("most", [2, 4, 10])
def test_what_normal_means_spend_by_each_look_is_what_is_allowed(most):
    """200,000 sums of normal results of known variance; standard error of a rate of 5 % is 0.05 %."""
    sums = np.random.default_rng(most).normal(size=(200_000, most)).cumsum(1)
    p = 2 * stats.norm.sf(abs(sums) / np.sqrt(np.arange(1, most + 1)))[:, 1:]
    passed = np.logical_or.accumulate(p <= interim_levels(0.05, most), axis=1).mean(0)
    allowed = 0.05 * (np.arange(2, most + 1) / most) ** 2
    assert passed == pytest.approx(allowed, abs=0.0015)


def test_levels_are_exact_to_three_digits(monkeypatch):
    coarse = interim_levels(0.04, 10)
    monkeypatch.setattr(sequential, "POINTS", 3201)
    assert interim_levels.__wrapped__(0.04, 10) == pytest.approx(coarse, rel=1e-3)


def test_levels_of_normal_means_alone_would_be_too_wide_for_students_t(monkeypatch):
    """Two arms, at most 10 seeds, 20,000 null studies; standard error 0.15 %."""
    x = np.random.default_rng(8).normal(size=(20_000, 2, 10))

    def wrong() -> float:
        return float(simulation.simulate_sequential(x).ever[..., :2].any((1, 2)).mean())

    assert 0.04 < wrong() <= 0.054
    monkeypatch.setattr(sequential, "SHARE_FOR_STUDENT", 1.0)
    assert wrong() == pytest.approx(0.058, abs=0.005)


def test_there_is_no_look_before_the_second_seed_and_none_beyond_the_last():
    assert alpha_share(1, 10) == alpha_share(11, 10) == 0.0 and 0 < alpha_share(2, 10) < alpha_share(10, 10) < 1
    c = apply_holm_correction({"a": compare(99.0, Variance(1.0, 2), NO_ITEMS, share=0.0)})["a"]
    assert not c.is_significant and not c.is_equivalent(1000.0) and c.threshold == np.inf


def test_a_look_has_its_share_of_the_level_in_p_in_the_threshold_and_in_equivalence():
    seeds = Variance(1.0, 4)
    for part in (0.05, 0.4):
        edge = interval_half_width(part * LEVEL, seeds, NO_ITEMS)
        below, above = (
            apply_holm_correction({"a": compare(edge * x, seeds, NO_ITEMS, share=part)})["a"] for x in (0.999, 1.001)
        )
        assert above.is_significant and not below.is_significant and above.threshold == pytest.approx(edge)
        inside = interval_half_width(2 * part * LEVEL, seeds, NO_ITEMS)
        assert below.is_equivalent(below.difference + 1.001 * inside)
        assert not below.is_equivalent(below.difference + 0.999 * inside)


def test_more_seeds_are_foreseen_by_the_levels_that_they_will_have():
    c = compare(1.0, Variance(2 * 0.5**2 / 3, 2), NO_ITEMS)
    fixed, sequential_ = seeds_to_decide(c, 2, 3), seeds_to_decide(c, 2, 3, most=12)
    assert fixed and sequential_ and 3 < fixed < sequential_ <= 12
    assert seeds_to_decide(compare(0.01, Variance(1.0, 2), NO_ITEMS), 2, 3, most=12) is None


def test_a_seed_of_every_arm_is_added_until_nothing_is_undecided_or_none_is_left(tmp_path):
    """The loop of MORE=auto; the runs leave their directories, as those of launch.train do."""

    def add(until: int, fails_at: int = 0) -> tuple[list[int], list[str], list[int]]:
        out = tmp_path / f"{until},{fails_at}"
        ran: list[int] = []

        def run(study):
            for cell in study.cells:
                cell.dir.mkdir(parents=True, exist_ok=True)
            ran.append(len(study.seeds))
            return ["baseline, seed 3: out of memory"] if fails_at == len(study.seeds) else []

        words = ["POS=alibi", "SIZE=nano", "SEEDS=2", "MORE=auto", "MAX_SEEDS=5", f"OUT={out}"]
        study, failures = run_until_decided(from_args(words), run, lambda study: len(study.seeds) < until)
        assert from_args(words).seeds == study.seeds  # the same command goes on where it was
        assert study.criteria == from_args(words).criteria
        return study.seeds, failures, ran

    assert add(until=2) == ([1, 2], [], [2])
    assert add(until=4) == ([1, 2, 3, 4], [], [2, 3, 4])
    assert add(until=99) == ([1, 2, 3, 4, 5], [], [2, 3, 4, 5])
    seeds, failures, _ = add(until=99, fails_at=3)
    assert seeds == [1, 2, 3] and failures  # what failed is not buried under more runs


def test_a_study_of_a_fixed_number_of_seeds_adds_none(tmp_path):
    study = from_args(["POS=alibi", "SIZE=nano", f"OUT={tmp_path}"])
    assert run_until_decided(study, lambda study: [], lambda study: True)[0].seeds == [1, 2]


def test_which_arms_more_seeds_may_decide(tmp_path):
    study = make(Study(tmp_path / "runs", arms=list(ARMS)))
    assert list(undecided_arms(gather_findings(study))[0]) == ["pos=none"]
    assert list(undecided_arms(gather_findings(replace(study, seeds=[1])))[0]) == ["pos=alibi", "pos=none"]
    wide = Criteria(margins={"bits/byte": 0.5}, seeds=3)
    assert undecided_arms(gather_findings(replace(study, criteria=wide))) == ({}, {})
    with pytest.raises(ValueError, match="no run of pos=learned has a result in suite, which decides"):
        undecided_arms(gather_findings(replace(study, criteria=Criteria("suite", seeds=3))))


def by_groups_of_text(study: Study, groups: int, spread: float) -> Study:
    """The study with its documents in so many groups, of which the arm pos=none is better and worse in turn by
    `spread` bits per byte, with every seed alike: what only more groups would tell."""
    for cell in (study.cell(arm, seed) for arm in study.arms for seed in study.seeds):
        sign = spread * float(np.log(2)) * (cell.delta == ARMS["pos=none"])

        def grouped(row: dict, sign: float = sign) -> dict:
            group = int(row["id"][1:]) % groups
            return row | {"cluster": f"групп{group}", "nats": row["nats"] + sign * (-1) ** group * row["bytes"]}

        rewrite(cell.dir, grouped)
    return study


def test_no_seed_is_added_where_only_more_groups_of_text_would_tell(tmp_path, monkeypatch, capsys):
    study = make(Study(tmp_path / "runs", arms=["pos=learned", "pos=none"]))
    study = by_groups_of_text(study, groups=4, spread=0.3)
    more, of_items = undecided_arms(gather_findings(study))
    assert more == {} and list(of_items) == ["pos=none"]
    assert of_items["pos=none"] == "undecided: more seeds would not tell, more groups of items than these 4 would"
    monkeypatch.setattr("eval.report.request.parse_request", lambda _: Request(study))
    assert undecided_command.main(["POS=none"]) == 0
    assert capsys.readouterr().out == f"pos=none: {of_items['pos=none']}; no seed is added for its sake\n"
    margin = Criteria(margins={"bits/byte": 0.01}, seeds=3)
    assert list(undecided_arms(gather_findings(replace(study, criteria=margin)))[1]) == [
        "pos=none"
    ]  # nor would it be equivalent
    other = by_groups_of_text(make(Study(tmp_path / "few", arms=list(study.arms))), groups=4, spread=0.0005)
    assert list(undecided_arms(gather_findings(other))[0]) == ["pos=none"]  # the seeds are most of its noise


def test_seeds_that_cannot_decide_are_those_that_no_further_seed_would_have_made_decide():
    """Simulated studies of 10 seeds and 4 groups: of those that would be stopped, almost none is decided later, at the
    whole level and with the mean of all seeds, although the difference is up to three times the noise of the groups."""
    rng, stopped, lost = np.random.default_rng(3), 0, 0
    for true in np.repeat([0.0, 1.0, 3.0], 300):
        of_groups, of_seeds = rng.normal(0, 2.0, 4), rng.normal(0, 0.5, 10)
        items = Variance(float(of_groups.var(ddof=1) / 4), 3)
        means = true + of_groups.mean() + np.cumsum(of_seeds) / np.arange(1, 11)
        looks = [
            compare(means[n - 1], Variance(float(of_seeds[:n].var(ddof=1) / n), n - 1), items, items_alone=items)
            for n in range(2, 11)
        ]
        if any(seeds_cannot_decide(look, None) for look in looks[:4]):
            stopped += 1
            lost += abs(looks[-1].difference) > looks[-1].threshold
    assert stopped > 300 and lost / stopped < 0.01


def test_seeds_may_decide_where_the_margin_can_still_be_reached_or_the_items_show_what_seeds_average_out():
    seeds, items = Variance(1e-4, 3), Variance(1.0, 3)
    hopeless = compare(0.5, seeds, items, items_alone=items)
    assert seeds_cannot_decide(hopeless, None) and seeds_cannot_decide(hopeless, 1.0)
    assert not seeds_cannot_decide(hopeless, 4.0)
    moved_far = compare(0.5, Variance(4.0, 3), items, items_alone=items)
    assert not seeds_cannot_decide(moved_far, None) and not seeds_cannot_decide(compare(0.5, None, items), None)
    shown_by_both = compare(0.5, seeds, items, items_alone=Variance(0.001, 3))
    assert not seeds_cannot_decide(shown_by_both, None)


def test_seeds_are_not_added_by_a_margin_or_metric_that_was_chosen_after_the_runs(tmp_path, monkeypatch, capsys):
    study = make(Study(tmp_path / "runs", arms=list(ARMS)))
    before = Criteria(margins={"bits/byte": 0.0001}, seeds=10, sequential=True)
    register(study, before)

    def looked(made, *flags: str) -> int:
        monkeypatch.setattr(undecided_command.request, "parse_request", lambda _: Request(made))
        return undecided_command.main([*flags, "POS=alibi", "MORE=auto"])

    assert looked(registered(study, before), "--criteria") == 0
    assert looked(registered(study, before)) == 3
    wide = replace(before, margins={"bits/byte": 0.9})
    capsys.readouterr()
    for flags in ([], ["--criteria"]):
        assert looked(registered(study, wide, words=("MARGIN=0.9",)), *flags) == 2
        assert "the margin was chosen after the runs had begun" in (said := capsys.readouterr().err)
        assert "FIRST_SEED=11: new runs" in said
    assert looked(registered(study, replace(before, metric="zero-shot"), words=("METRIC=zero-shot",))) == 2
    assert "the metric was chosen after the runs had begun" in capsys.readouterr().err
    # the baseline may be older, of another study
    for arm in study.arms[1:]:
        for seed in study.seeds:
            shutil.rmtree(study.cell(arm, seed).dir)
    for seed in study.seeds:
        (study.cell(study.arms[0], seed).dir / rundir.REGISTERED).unlink()
    assert looked(registered(study, replace(wide, metric="zero-shot")), "--criteria") == 0


def test_a_margin_that_came_too_late_is_refused_before_a_run_is_begun(tmp_path, monkeypatch, capfd):
    words = ["POS=alibi", "SIZE=nano", "MORE=auto", f"OUT={tmp_path}"]
    of = from_args(words)
    for cell in of.cells:
        made = make(Study(tmp_path / "made", arms=["pos=learned"], seeds=[cell.run.seed])) if cell.run.seed else None
        shutil.copytree(made.cell("pos=learned", cell.run.seed).dir, cell.dir)
        shutil.rmtree(tmp_path / "made")
        rundir.append_registration(cell.dir, of.registration, 0)
    monkeypatch.setattr(local, "run_study", lambda study: pytest.fail("a run was begun"))
    assert local.main([*words, "MARGIN=0.9"]) == 2
    assert "the margin was chosen after the runs had begun" in capfd.readouterr().err
