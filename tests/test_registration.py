"""What a study registers before its runs (ablations/registration.py), and predictions that a report can check."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ablations import rundir
from ablations.prediction import distinct_predictions, parse_prediction, predictions_about
from ablations.registration import NOTHING_EXPECTED, describe_changes, registration_of
from ablations.study import Study, from_args, study_names
from ablations.values import ConfigError
from eval.report import track_record
from eval.report.__main__ import main
from eval.report.comparison import predictions
from eval.report.comparison.gather import gather_findings
from eval.report.record import write_record_files
from eval.statistics.comparison import compare
from eval.statistics.parts import Variance
from launch import local
from launch import train as training
from tests import made_study

ARMS = ["pos=learned", "pos=alibi", "pos=rotary"]


def test_a_prediction_is_an_order_or_an_interval() -> None:
    order = parse_prediction("alibi < pos=rotary < baseline", ARMS)
    assert order.arms == ("pos=alibi", "pos=rotary", "pos=learned") and order.interval is None
    assert order.metric == "bits/byte"
    interval = parse_prediction("zero-shot: alibi - learned in [-inf, 0.5]", ARMS)
    assert (interval.metric, interval.arms) == ("zero-shot", ("pos=alibi", "pos=learned"))
    assert interval.interval == (-np.inf, 0.5)
    arms = ["baseline", "pos=alibi", "act=swiglu", "pos=alibi+act=swiglu"]
    interaction = parse_prediction("swiglu x alibi in [-1, 1]", arms)
    assert interaction.arms == ("act=swiglu", "pos=alibi", "pos=alibi+act=swiglu", "baseline")


def test_a_claim_that_file_and_words_make_counts_once() -> None:
    texts = ["alibi < learned", "pos=alibi < baseline", "zero-shot: alibi < learned", "alibi - learned in [-1, 0]"]
    parsed = [parse_prediction(text, ARMS) for text in [*texts, "alibi - learned in [-1.0, 0]"]]
    assert [prediction.text for prediction in distinct_predictions(parsed)] == [texts[0], *texts[2:]]


def test_the_question_of_many_typed_arms_is_short_and_its_older_words_are_no_change(tmp_path: Path) -> None:
    words = ["ARM=model.layers=2,3,5,6", "SIZE=nano", f"OUT={tmp_path}"]
    study = from_args(words)
    assert study.question == "Which model.layers is best: 4 (the baseline), 2, 3, 5 or 6?"
    older = "Does model.layers=2 or model.layers=3 or model.layers=5 or model.layers=6 beat the baseline?"
    then = {"layers=2, seed 1": registration_of(study) | {"question": older}}
    assert describe_changes(registration_of(study), then, 10) == []
    assert (
        len(
            describe_changes(
                registration_of(study), {"a": registration_of(study) | {"question": "Is deeper better?"}}, 10
            )
        )
        == 1
    )
    fewer = registration_of(from_args(["ARM=model.layers=2,3", *words[1:]]))
    assert fewer["question"] == "Does model.layers=2 or model.layers=3 beat the baseline?"
    assert [line.split(" after")[0] for line in describe_changes(registration_of(study), {"a": fewer}, 10)] == [
        "the question was changed",
        "the arms were changed",
    ]
    mixed = from_args(["ARM=model.layers=2 train.lr=1e-3 train.beta2=0.9", *words[1:]])
    assert mixed.question == "Which of these beats the baseline: model.layers=2, train.lr=1e-3 or train.beta2=0.9?"
    many = from_args([f"ARM=model.layers={','.join(map(str, range(5, 17)))}", *words[1:]])
    assert many.question == "Which model.layers is best: 4 (the baseline), 5, 6, 7, 8, 9, 10, 11 or 5 others?"
    assert many.title.startswith("layers, 13 arms, nano, ") and study.title.startswith("layers, 5 arms, nano, ")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("alibi", "A < B < C"),
        ("alibi < ", "pos=learned, pos=alibi"),
        ("alibi < sinusoïdal", "pos=learned, pos=alibi"),
        ("alibi < alibi", "twice"),
        ("alibi - learned in [2, 1]", "lower is first"),
        ("alibi - learned in [1]", "lower is first"),
        ("alibi - learned in 1, 2", "lower is first"),
        ("alibi - learned in [nan, 2]", "lower is first"),
        ("alibi - learned - rotary in [1, 2]", "A - B in"),
        ("alibi x learned x rotary in [1, 2]", "A x B in"),
        ("alibi x rotary in [1, 2]", "pos=alibi\\+pos=rotary: CROSS=1 makes it"),
        ("alibi x rotary < 3", "'alibi x rotary' is not one arm"),
        ("loss: alibi < learned", "bits/byte, zero-shot, suite"),
    ],
)
def test_what_is_no_prediction_is_refused_by_what_would_be(text: str, named: str) -> None:
    with pytest.raises(ConfigError, match="(?s)" + named.replace("[", "\\[")):
        parse_prediction(text, ARMS)
    with pytest.raises(ConfigError):
        from_args(["POS=alibi,rotary", "SIZE=nano", f"PREDICT={text}"])


def test_a_name_that_two_arms_share_is_refused() -> None:
    arms = ["tied=true", "tied=false", "embnorm=false"]
    with pytest.raises(ConfigError, match="not one arm"):
        parse_prediction("false < tied=true", arms)
    assert parse_prediction("tied=false < tied=true", arms).arms == ("tied=false", "tied=true")
    assert predictions_about(["false < tied=true", "baseline < embnorm=false"], arms)[0].arms[1] == "embnorm=false"


def test_a_studys_predictions_are_those_of_its_arms_and_of_the_words() -> None:
    study = from_args(["POS=alibi", "SIZE=nano", "PREDICT=alibi - learned in [-0.3, -0.05]"])
    assert [p.text for p in study.predictions] == ["alibi < learned", "alibi - learned in [-0.3, -0.05]"]
    whole = from_args(["STUDY=position", "SIZE=nano"])
    assert {arm for p in whole.predictions for arm in p.arms} == set(whole.arms)
    for name in study_names():  # each names arms that its study has
        from_args([f"STUDY={name}", "SIZE=nano"])


def test_a_trial_makes_no_prediction_that_was_not_typed(tmp_path: Path) -> None:
    """A few steps that show whether a study works are no test of what its file predicts of whole runs."""
    for question in (["POS=alibi"], ["STUDY=position"]):
        for length, trial in (
            (["SIZE=nano"], False),
            (["SIZE=nano", "TOKENS=1048576"], False),
            (["SIZE=nano", "TOKENS=1048064"], True),
            (["SIZE=nano", "SET=train.tokens=8K"], True),
            (["SIZE=pico"], False),
            (["SIZE=125m", "TOKENS=2.5B"], False),  # of 112B: 20 for each parameter
            (["SIZE=125m", "TOKENS=1B"], True),
            (["SIZE=nano", "SET=train.budget=10m"], False),
        ):
            made = from_args([*question, *length, f"OUT={tmp_path}"])
            assert (made.predictions == [] == registration_of(made)["predictions"]) == trial, (question, length)
    typed = from_args(["POS=alibi", "SIZE=nano", "TOKENS=8K", "PREDICT=alibi < learned", f"OUT={tmp_path}"])
    assert [prediction.text for prediction in typed.predictions] == ["alibi < learned"]


# ------------------------------------------------------------------------------------------------ in the run directory


def test_a_registration_is_a_chain_of_hashes_and_the_same_is_not_written_twice(tmp_path: Path) -> None:
    first = registration_of(from_args(["POS=alibi", "SIZE=nano"]))
    later = registration_of(from_args(["POS=alibi", "SIZE=nano", "METRIC=zero-shot", "MARGIN=0.01,1"]))
    other = registration_of(from_args(["ACT=swiglu", "SIZE=nano"]))
    for step, what in enumerate([first, first, other, first, later]):
        rundir.append_registration(tmp_path, what, step)
    lines, problem = rundir.read_registrations(tmp_path)
    assert not problem
    assert [(line["step"], line["content"]) for line in lines] == [(0, first), (2, other), (4, later)]

    path = tmp_path / rundir.REGISTERED
    path.write_text(path.read_text().replace("ALiBi at or above rotary", "Rotary at or above ALiBi", 1))
    lines, problem = rundir.read_registrations(tmp_path)
    assert "changed after it was written" in problem and not lines


def test_a_refused_command_registers_nothing_in_finished_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["POS=alibi", "SIZE=nano", "SEEDS=1", f"OUT={tmp_path}"]
    study = from_args(words)
    monkeypatch.setattr(local, "repair_run_directory", lambda cell: "")
    monkeypatch.setattr(local, "is_evaluated", lambda cell: False)
    for cell in study.cells:
        cell.dir.mkdir(parents=True)
        (cell.dir / rundir.WEIGHTS).write_bytes(b"")
        rundir.write_done(cell.dir, {"steps": 7})

    def lines() -> int:
        return sum(len(rundir.read_registrations(cell.dir)[0]) for cell in study.cells)

    assert local.main([*words, "TASKS=helaswag"]) == 2 and lines() == 0
    assert "no task 'helaswag' in lm-eval (did you mean hellaswag?)" in capfd.readouterr().err
    assert local.main([*words, "GLUE=/nirgends"]) == 2 and lines() == 0

    def refuse(study: Study, cells: Any) -> None:
        raise ConfigError("another corpus is there now")

    monkeypatch.setattr(local, "prepare_missing_data", refuse)
    assert local.main(words) == 2 and lines() == 0
    monkeypatch.setattr(local, "prepare_missing_data", lambda study, cells: None)
    monkeypatch.setattr(local, "finish_run", lambda *_: None)
    assert local.run_study(study) == [] and lines() == 2
    assert [line["step"] for line in rundir.read_registrations(study.cells[0].dir)[0]] == [7]


def test_of_several_ranks_one_registers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["POS=alibi", "SIZE=nano", "SEEDS=1", f"OUT={tmp_path}"]
    monkeypatch.setattr(training, "train", lambda cell, out: None)
    for rank, lines in (("1", 0), ("0", 1)):
        monkeypatch.setenv("RANK", rank)
        assert training.main(["--cell", "0", *words]) == 0
        assert len(rundir.read_registrations(from_args(words).cells[0].dir)[0]) == lines


def test_lines_that_were_taken_out_of_a_registration_are_noticed(tmp_path: Path) -> None:
    for seeds in (2, 3, 4):
        rundir.append_registration(
            tmp_path, registration_of(from_args(["POS=alibi", "SIZE=nano", f"SEEDS={seeds}"])), 0
        )
    path = tmp_path / rundir.REGISTERED
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(lines[0] + lines[2])
    kept, problem = rundir.read_registrations(tmp_path)
    assert len(kept) == 1 and "hash differs" in problem


def test_what_was_changed_is_told_in_words_and_after_how_many_runs() -> None:
    then = registration_of(from_args(["POS=alibi", "SIZE=nano", "SEEDS=4"]))
    now = registration_of(from_args(["POS=alibi", "SIZE=nano", "SEEDS=4", "METRIC=suite", "MARGIN=0.02,1"]))
    runs = {f"pos=alibi, seed {seed}": then if seed <= 3 else now for seed in range(1, 9)}
    assert describe_changes(now, runs, 8) == [
        "the metric was changed after 3 of 8 runs had begun: then `bits/byte`, now `suite`",
        "the margin was changed after 3 of 8 runs had begun: "
        "then `bits/byte 0.01 bits/byte, zero-shot 1 points, suite 1 points`, "
        "now `bits/byte 0.02 bits/byte, zero-shot 1 points, suite 1 points`",
    ]
    assert describe_changes(now, dict.fromkeys(runs, now), 8) == []
    stopped = registration_of(from_args(["POS=alibi", "SIZE=nano", "SEEDS=2", "MORE=auto"]))
    said = describe_changes(stopped, {"pos=alibi, seed 1": then}, 20)
    assert any(line.startswith("the stopping rule was changed after 1 of 20 runs") for line in said)
    assert any(line.startswith("the seeds were changed") and "`1 to 4`, now `1 to 10`" in line for line in said)


# ------------------------------------------------------------------------------------------------ predictions checked


def registering(study: Any, lines: list[str], steps: dict[str, int]) -> Any:
    """A study of tests/made_study.py that expects `lines`, registered in its runs at these steps by arm."""
    study.predictions = [parse_prediction(line, study.arms) for line in lines]
    study.registration = {"study": "position", "metric": "bits/byte", "predictions": lines}
    for arm, step in steps.items():
        for seed in study.seeds:
            rundir.append_registration(study.cell(arm, seed).dir, study.registration, step)
    return study


def outcomes(study: Any) -> dict[str, str]:
    return {row.text: row.outcome for row in predictions.checked_predictions(gather_findings(study))}


def test_a_report_counts_a_shared_prediction_once(tmp_path: Path) -> None:
    study = made_study.make(made_study.Study(tmp_path))
    lines = ["alibi < learned", "alibi - learned in [-1, 0]", "alibi < learned", "pos=alibi < baseline"]
    rows = predictions.checked_predictions(
        gather_findings(registering(study, lines, {"pos=alibi": 0, "pos=learned": 0}))
    )
    assert [row.text for row in rows] == lines[:2] and all(row.registered for row in rows)


def test_predictions_hold_fail_or_stay_open_as_a_t_test_says(tmp_path: Path) -> None:
    """EFFECT in tests/made_study.py: alibi -0.06, none +0.001 against noise of some 0.003."""
    arms = ["pos=learned", "pos=alibi", "pos=none"]
    study = made_study.make(made_study.Study(tmp_path, arms=arms))
    expected = {
        "alibi < learned": "held",
        "learned < alibi": "failed",
        "learned < none": "undecided",
        "alibi < learned < none": "undecided",
        "none < alibi < learned": "failed",
        "alibi - learned in [-0.1, -0.02]": "held",
        "alibi - learned in [-0.01, 0.1]": "failed",
        "alibi - learned in [-0.06, 0.1]": "undecided",
        "none - learned in [-0.05, 0.05]": "held",
        "suite: alibi < learned": "undecided",
    }
    assert outcomes(registering(study, list(expected), dict.fromkeys(arms, 0))) == expected
    study.seeds = [1]
    assert set(outcomes(study).values()) == {"undecided"}


def test_an_order_of_null_differences_is_called_right_or_wrong_in_few_studies() -> None:
    """Simulated: three arms that do not differ, four seeds. Both neighbours must rise, so held is rare; failed is the
    complement for reversed orders, and corrected for their number."""
    rng, studies = np.random.default_rng(1), 4000
    calls = []
    for _ in range(studies):
        x = rng.normal(size=(3, 4))
        rest = x - x.mean(0) - x.mean(1, keepdims=True) + x.mean()
        part = Variance(float((rest**2).sum()) / 6 * 2 / 4, 6)
        neighbours = [compare(float(x[i].mean() - x[i + 1].mean()), part, Variance(0.0, np.inf)) for i in (0, 1)]
        calls.append(predictions.order_outcome(neighbours))
    assert calls.count("held") / studies < 0.025 and calls.count("failed") / studies < 0.05


def test_an_interval_that_ends_at_the_truth_is_called_held_in_5_percent() -> None:
    rng, studies = np.random.default_rng(2), 4000
    calls = []
    for _ in range(studies):
        d = rng.normal(0.0, 1.0, 5)
        c = compare(float(d.mean()), Variance(float(d.var(ddof=1)) / 5, 4), Variance(0.0, np.inf))
        calls.append(predictions.interval_outcome(c, (-np.inf, 0.0)))
    assert calls.count("held") / studies == pytest.approx(0.05, abs=0.012)
    assert calls.count("failed") / studies == pytest.approx(0.025, abs=0.008)


def test_the_report_says_what_was_registered_when_and_which_predictions_held(tmp_path: Path) -> None:
    study = made_study.make(made_study.Study(tmp_path / "runs"))
    registering(study, ["alibi < learned"], {"pos=learned": 512, "pos=alibi": 0})
    write_record_files(gather_findings(study), tmp_path / "record")
    text = (tmp_path / "record/report.md").read_text()
    assert "cannot be told" not in text
    assert "registered before the first step in 3 of 6 runs" in text
    assert "for a question that came later: pos=learned (seeds 1, 2, 3)" in text
    assert "nothing was changed since" in text
    assert "| `alibi < learned` | bits/byte | yes | **held** |" in text

    study.registration = study.registration | {"metric": "zero-shot"}
    write_record_files(gather_findings(study), tmp_path / "record")
    text = (tmp_path / "record/report.md").read_text()
    assert "the metric was changed after 6 of 6 runs had begun: then `bits/byte`, now `zero-shot`" in text
    summary = json.loads((tmp_path / "record/run.json").read_text())["registration"]
    assert summary["before_the_first_step"] == 3 and len(summary["changed"]) == 1


def test_a_prediction_that_came_after_its_arms_is_no_registered_one(tmp_path: Path) -> None:
    study = made_study.make(made_study.Study(tmp_path))
    registering(study, ["alibi < learned"], {"pos=learned": 0, "pos=alibi": 0})
    late = dataclasses.replace(study)
    late.predictions = [parse_prediction("learned < alibi", study.arms)]  # written when the results were known
    late.registration = study.registration | {"predictions": ["learned < alibi"]}
    for arm in study.arms:
        for seed in study.seeds:
            rundir.append_registration(study.cell(arm, seed).dir, late.registration, 512)
    assert [row.registered for row in predictions.checked_predictions(gather_findings(study))] == [True]
    assert [row.registered for row in predictions.checked_predictions(gather_findings(late))] == [False]


def test_a_registration_that_is_not_the_one_of_run_json_is_named(tmp_path: Path) -> None:
    study = made_study.make(made_study.Study(tmp_path))
    registering(study, [], dict.fromkeys(study.arms, 0))
    folder = study.cell("pos=alibi", 2).dir
    made_study.change(folder / "run.json", "registered", to="0" * 64)
    assert any("registered.jsonl does not begin" in line for line in gather_findings(study).mismatches)
    for _ in range(2):  # of another registration; of none
        write_record_files(gather_findings(study), tmp_path / "record")
        text = (tmp_path / "record/report.md").read_text()
        assert "nothing was changed since" not in text and "cannot be told of every run" in text
        (folder / rundir.REGISTERED).unlink(missing_ok=True)
        made_study.change(folder / "run.json", "registered", to="")


def test_a_report_without_words_counts_the_predictions_of_all_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    study = made_study.make(made_study.Study(tmp_path / "runs"))
    lines = ["alibi < learned", "learned < alibi", "alibi - learned in [-0.06, 0.1]"]
    registering(study, lines, dict.fromkeys(study.arms, 0))
    write_record_files(gather_findings(study), tmp_path / "records/one")
    (tmp_path / "records/old").mkdir()
    (tmp_path / "records/old/run.json").write_text(json.dumps({"name": "old", "runs": []}))  # of before
    (tmp_path / "records/broken").mkdir()
    (tmp_path / "records/broken/run.json").write_text('{"predictions": [1]}')
    monkeypatch.setattr("eval.report.__main__.RECORDS", tmp_path / "records")
    assert main([f"OUT={tmp_path / 'nowhere'}"]) == 0
    said = capsys.readouterr()
    assert "Registered before the runs: 1 held, 1 failed, 1 undecided, 50% of those that are decided held." in said.out
    assert "broken/run.json is damaged" in said.err
    predictions, _ = track_record.read_predictions([tmp_path / "records"])
    assert [line["outcome"] for line in predictions] == ["held", "failed", "undecided"]


def test_a_study_registers_everything_that_it_is_decided_by() -> None:
    """A field of a study that decides something and is not registered could be changed without a trace."""
    study: Study = from_args(["POS=alibi", "SIZE=nano", "TASKS=suite"])
    registration = registration_of(study)
    assert json.loads(json.dumps(registration)) == registration
    assert registration["arms"] == {"pos=learned": {}, "pos=alibi": {"model.pos": "alibi"}}
    assert registration["tasks"] == "suite"
    assert {field.name for field in dataclasses.fields(study.criteria)} == {
        "metric",
        "margins",
        "seeds",
        "sequential",
        "noise_floor",
    }


def test_what_was_expected_is_said_to_be_of_before_the_runs_only_where_it_was(tmp_path: Path) -> None:
    def head(name: str, steps: dict[str, int], expect: str, then: str) -> str:
        study = made_study.make(made_study.Study(tmp_path / name, expect=expect))
        for arm, step in steps.items():
            for seed in study.seeds:
                rundir.append_registration(study.cell(arm, seed).dir, {"study": "position", "expected": then}, step)
        study.registration = {"study": "position", "expected": expect}  # type: ignore[attr-defined]
        write_record_files(gather_findings(study), tmp_path / "record")
        return (tmp_path / "record/report.md").read_text().split("pos=learned")[0]

    first = {"pos=learned": 0, "pos=alibi": 0}
    before, after = (
        "**Expected, written before the runs.** ALiBi.",
        "**Expected, written after the runs had begun.** ALiBi.",
    )
    assert before in head("before", first, "ALiBi.", "ALiBi.")
    assert before in head("shared baseline", {"pos=learned": 512, "pos=alibi": 0}, "ALiBi.", "ALiBi.")
    assert after in head("changed", first, "ALiBi.", "Learned.")
    assert after in head("late", {"pos=learned": 512, "pos=alibi": 512}, "ALiBi.", "ALiBi.")
    assert "**Expected, not registered before the runs.** ALiBi." in head("of an older version", {}, "ALiBi.", "")
    nothing = head("nothing", first, NOTHING_EXPECTED, NOTHING_EXPECTED)
    assert "Nothing was expected in writing before the runs." in nothing and "Expected, " not in nothing


def test_of_records_with_one_name_that_in_the_first_folder_counts(tmp_path: Path) -> None:
    line = {"text": "alibi < learned", "metric": "bits/byte", "measured": "-0.1", "registered": True}
    for folder, outcome in (("z first", "held"), ("a second", "failed")):
        (tmp_path / folder / "größe").mkdir(parents=True)
        (tmp_path / folder / "größe/run.json").write_text(json.dumps({"predictions": [line | {"outcome": outcome}]}))
    predictions, damaged = track_record.read_predictions([tmp_path / "z first", tmp_path / "a second"])
    assert [prediction["outcome"] for prediction in predictions] == ["held"] and not damaged
