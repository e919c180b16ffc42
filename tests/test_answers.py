"""Answers for programs (FORMAT=json): each fits its schema in docs/schema, and exit codes say what came out."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ablations import rundir, safe_files
from ablations.__main__ import main as ablations_main
from ablations.card import identity_card
from ablations.criteria import Criteria
from ablations.document.blocks import Table
from ablations.plan import ladder, laws
from data import prepare
from eval import export
from eval.finetune import __main__ as finetune
from eval.report import __main__ as report_command
from eval.report import noise
from eval.report.comparison.gather import gather_findings
from eval.report.outcome import EXIT_CODES, study_outcome
from eval.report.request import Request
from eval.tasks import fetch
from launch import local
from launch.slurm import submit
from tests import made_study, test_plan_ladder, test_plan_laws
from tests.calibration import tables as calibration
from tests.schemas import SCHEMAS, checked, misfits

ROOT = Path(__file__).parents[1]


def test_the_checker_of_schemas_refuses_what_does_not_fit() -> None:
    schema = json.loads((SCHEMAS / "error.json").read_text())
    good = {"kind": "error", "version": 1, "error": "überall"}
    assert not misfits(good, schema)
    for bad in (
        {**good, "more": 1},
        {**good, "error": 1},
        {**good, "kind": "plan"},
        {"kind": "error", "version": 1},
        [],
    ):
        assert misfits(bad, schema)
    assert misfits([True], {"type": "array", "items": {"type": "integer"}})


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        (["plan", "POS=alibi", "SIZE=nano"], "plan"),
        (["plan", "STUDY=cram", "SIZE=nano"], "plan"),
        (["plan", "POS=alibi", "ACT=swiglu", "NORM=rmsnorm", "CROSS=1/2", "SIZE=nano"], "plan"),
        (["plan", "POS=alibi", "LR=tune", "SIZE=nano", "MARGIN=0.01"], "plan"),
        (["plan", "POS=alibi", "SIZE=14m", "ON=a100", "OUT=woanders"], "study-cost"),
        (["plan", "POS=alibi", "SIZE=nano", "ON=a100", "SET=train.budget=1h", "BUDGET=1 week, 1x8 a100"], "study-cost"),
        (["plan", "BUDGET=18 weeks, 52x8 A100-80, 4 spare", "NEED=300B-400B"], "budget-plan"),
        (["plan", "BUDGET=2 weeks, 1x8 h100"], "budget-plan"),
        (["status", "POS=alibi", "SIZE=nano"], "status"),
        (["show", "POS=alibi", "SIZE=nano"], "configuration"),
        (["diff", "A=nano", "B=crammed-v2"], "difference"),
        (["reference"], "reference"),
    ],
)
def test_every_answer_fits_its_schema(words: list[str], kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert ablations_main([*words, "FORMAT=json"]) == 0
    answer = checked(capsys.readouterr().out)
    assert answer["kind"] == kind
    if "command" in answer and answer["kind"] != "budget-plan":  # where runs are is a part of it
        assert ("OUT=woanders" in answer["command"].split()) == ("OUT=woanders" in words)
    if "CROSS=1/2" in words:
        assert answer["aliased"]["pos=alibi"] == {"act=swiglu × norm=rmsnorm": -0.5}


def test_a_plan_says_what_added_seeds_may_cost_at_most(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", "POS=alibi", "SIZE=nano", "MORE=auto", "MAX_SEEDS=7"]
    assert ablations_main([*words, "FORMAT=json"]) == 0
    answer = checked(capsys.readouterr().out)
    flops = sum(cell["flops"] for cell in answer["cells"])
    assert answer["at_most"] == {"seeds": 7, "runs": 14, "flops": 3.5 * flops, "tokens": 14 * 1048576}
    assert ablations_main(words) == 0
    said = capsys.readouterr().out
    assert f"at most 7 of each arm (MAX_SEEDS): 14 runs, {3.5 * flops:.2e} FLOPs in all" in said
    assert "with all 7 seeds" in said
    assert ablations_main([*words[:3], "FORMAT=json"]) == 0 and checked(capsys.readouterr().out)["at_most"] is None

    on_hardware = ["plan", "POS=alibi", "SIZE=14m", "ON=a100", "MORE=auto", "MAX_SEEDS=7"]
    assert ablations_main([*on_hardware, "FORMAT=json"]) == 0
    most = checked(capsys.readouterr().out)
    assert most["at_most"]["gpu_hours"] == pytest.approx(3.5 * most["gpu_hours"])
    assert most["at_most"]["disk_gb"] == pytest.approx(3.5 * most["disk_gb"])
    budget = f"BUDGET={2 * most['gpu_hours']:.6f} GPU-hours"  # enough for the seeds that are there from the start
    assert ablations_main([*on_hardware, budget]) == 2
    said = capsys.readouterr().out
    assert (
        "at most (MORE=auto, MAX_SEEDS=7): 14 runs" in said and "with all 7 seeds (MAX_SEEDS), and the budget" in said
    )


@pytest.mark.parametrize(
    "words",
    [["plan", "POS=nope"], ["status"], ["diff", "A=nano"], ["show", "POS=alibi", "COLOUR=red"], ["card", "RUN=/dev"]],
)
def test_a_refused_request_is_an_answer_too_and_ends_with_2(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert ablations_main([*words, "FORMAT=json"]) == 2
    said = capsys.readouterr()
    assert checked(said.out)["kind"] == "error" and said.err.startswith("error: ")


def test_a_study_that_does_not_fit_its_hardware_is_told_in_its_plan_on_standard_error_and_by_2(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["plan", "POS=alibi", "SIZE=1b3", "ON=1x1 v100-16", "BUDGET=1 GPU-hours", "FORMAT=json"]
    assert ablations_main(words) == 2
    said = capsys.readouterr()
    answer = checked(said.out)
    assert answer["kind"] == "study-cost" and answer["refused"]
    assert said.err.splitlines() == [f"refused: {reason}" for reason in answer["refused"]]


def test_another_format_is_refused_by_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("plan", "status"):
        assert ablations_main([command, "POS=alibi", "FORMAT=jason"]) == 2
        assert "text, json (did you mean json?)" in capsys.readouterr().err


def test_make_has_one_answer_on_standard_output_whatever_is_refused() -> None:
    """The runs' own command comes first in these recipes: it too refuses in JSON."""
    for words in (["ablation", "POS=nope"], ["noise", "SIZE=nope"], ["ladder", "POS=nope", "SIZES=nano,mini,small"]):
        command = ["make", "-o", ".venv/ready", *words, "FORMAT=json"]
        done = subprocess.run(command, cwd=ROOT, env=without_make(), capture_output=True, text=True)
        assert done.returncode == 2 and checked(done.stdout)["kind"] == "error" and "nope" in done.stderr, words


@pytest.mark.parametrize(
    "words",
    [
        ["plan", "POS=alibi", 'COLOUR="rot\\"'],  # a word that the command does not use
        ["data"],  # a word that it needs
        ["card", "RUN="],  # a word without a value
        ["cram", "BUDGET=1 week"],
        ["ablation", "POS=alibi", 'ON="\\\t"'],
    ],
)
def test_what_make_itself_refuses_is_an_answer_too(words: list[str]) -> None:
    command = ["make", "-n", "-o", ".venv/ready", *words, "FORMAT=json"]
    done = subprocess.run(command, cwd=ROOT, env=without_make(), capture_output=True, text=True)
    assert done.returncode == 2 and checked(done.stdout)["error"] in " ".join(done.stderr.split())


def test_make_refuses_another_format_before_runs() -> None:
    command = ["make", "-n", "-o", ".venv/ready", "noise", "FORMAT=x"]
    done = subprocess.run(command, cwd=ROOT, env=without_make(), capture_output=True, text=True)
    assert done.returncode == 2 and "text, json" in done.stderr and not done.stdout


def test_make_hands_format_to_every_command() -> None:
    """All goals that answer anything: a new one without FORMAT is noticed."""
    makefile = (ROOT / "Makefile").read_text()
    goals = set(re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)[0].split())
    goals -= {"test", "test-slurm", "chaos", "check", "mutations", "loc", "help", "clean", "docs"}  # of this checkout
    goals = {goal for goal in goals if not goal.startswith("bench")}
    words = {
        "data": ["CORPUS=c4"],
        "glue": ["RUN=x"],
        "card": ["RUN=x"],
        "export": ["RUN=x", "TO=y"],
        "laws": ["RUNS=x"],
    }
    for goal in goals:
        command = ["make", "-n", "-o", ".venv/ready", goal, *words.get(goal, []), "FORMAT=json"]
        done = subprocess.run(command, cwd=ROOT, env=without_make(), capture_output=True, text=True, check=True)
        assert re.search(r"FORMAT=json|--format 'json'", done.stdout), goal


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (ablations_main, ["nonesuch", "FORMAT=json"]),
        (ablations_main, ["plan", "--größe", "POS=alibi", "FORMAT=json"]),
        (laws.main, ["--format", "json", "--nonesuch"]),
        (ladder.main, ["POS=alibi", "FORMAT=json"]),
        (finetune.main, ["--seeds", "many", "--format", "json"]),
        (export.main, ["--format=json"]),
        (fetch.main, ["--format", "json"]),
        (prepare.main, ["--format", "json"]),
        (submit.main, ["--nonesuch", "POS=alibi", "FORMAT=json"]),
        (calibration.main, ["--format", "json", "more"]),
    ],
)
def test_what_a_parser_of_options_refuses_is_an_answer_too(
    command: Any, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        command(words)
    said = capsys.readouterr()
    assert ended.value.code == 2 and checked(said.out)["error"] in said.err
    with pytest.raises(SystemExit):
        command([word for word in words if word not in ("FORMAT=json", "--format", "json", "--format=json")])
    assert not capsys.readouterr().out


def test_requests_that_have_no_answer_in_json_are_refused_as_one(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["status", "--watch", "POS=alibi", "SIZE=nano"], ["reference", "--write"]):
        assert ablations_main([*words, "FORMAT=json"]) == 2
        assert "FORMAT=json" in checked(capsys.readouterr().out)["error"]


def test_the_tables_of_the_calibration_are_an_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(calibration, "PAGE", tmp_path / "statistics.md")
    (tmp_path / "statistics.md").write_text("# Page\n\n## Räten\n\nWords.\n\n| seeds |\n|---|\n\nMore words.\n")
    monkeypatch.setattr(calibration, "make_tables", lambda: {"Räten": [Table(["seeds", "wrong"], [["2", "4.9 %"]])]})
    assert calibration.main(["--format", "json"]) == 0
    (table,) = checked(capsys.readouterr().out)["tables"]
    assert table["section"] == "Räten" and table["rows"] == [["2", "4.9 %"]]
    page = "# Page\n\n## Räten\n\nWords.\n\n| seeds | wrong |\n|---|---|\n| 2 | 4.9 % |\n\nMore words.\n"
    assert (tmp_path / "statistics.md").read_text() == page


def without_make() -> dict[str, str]:
    """The environment without what a `make test` above leaves in it."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}


def test_every_schema_is_of_an_answer_and_in_no_need_of_a_network() -> None:
    kinds = {path.stem for path in SCHEMAS.glob("*.json")}
    modules = [
        path
        for room in ("ablations", "data", "eval", "launch", "tests/calibration")
        for path in (ROOT / room).rglob("*.py")
    ]
    sources = " ".join(path.read_text() for path in modules)
    assert kinds == set(re.findall(r'answer\("([\w-]+)"', sources)) | {"plan", "status", "configuration"}
    assert not any("$ref" in path.read_text() for path in SCHEMAS.glob("*.json"))


# ------------------------------------------------------------------------------------------------ the card of a run


def test_a_card_says_what_a_run_is_and_what_is_damaged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = made_study.make(made_study.Study(tmp_path))
    folder = study.cell("pos=alibi", 2).dir
    rundir.append_registration(folder, {"study": "position", "question": "Welche?"}, 0)
    assert ablations_main(["card", f"RUN={folder}"]) == 0
    answer = checked(capsys.readouterr().out)
    assert answer["run"]["arm"] == "pos=alibi" and answer["run"]["delta"] == {"model.pos": "alibi"}
    assert answer["data"]["sha256"] == "text" and answer["data"]["tokenizer"]["sha256"] == "pieces"
    assert answer["evaluation"]["version"] == 1 and answer["evaluation"]["lm_eval"] == "0.4.13"
    assert answer["evaluation"]["tasks"]["pydocs/last_word"]["metric"] == "acc"
    assert answer["registered"][0]["study"] == "position"

    (folder / "eval.json").write_text("{")
    damaged = identity_card(folder)
    assert damaged["evaluation"] is None and any("eval.json is damaged" in line for line in damaged["damaged"])
    made_study.change(folder / "run.json", "proofs", to=3)  # a stranger's
    made_study.change(folder / "run.json", "parameters", to=[])
    made_study.change(folder / "run.json", "data", to={"tokenizer": 1})
    assert identity_card(folder)["proofs"] == []
    with pytest.raises(safe_files.Damaged, match="no run directory"):
        identity_card(tmp_path / "nirgends")


# ------------------------------------------------------------------------------------------------ verdicts


def reported(study: Any, words: list[str], monkeypatch: pytest.MonkeyPatch, folder: Path) -> int:
    """`python -m eval.report WORDS` of a study of tests/made_study.py."""
    monkeypatch.setattr(report_command.request, "parse_request", lambda _: Request(study))
    monkeypatch.setattr(report_command, "RECORDS", folder / "records")
    return report_command.main([*words, "POS=alibi"])


def test_exit_codes_say_whether_a_study_is_decided(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """alibi differs by 20 times the noise and none by less than it."""
    study = made_study.make(made_study.Study(tmp_path / "runs"))
    assert reported(study, ["FORMAT=json"], monkeypatch, tmp_path) == 0
    answer = checked(capsys.readouterr().out)
    assert answer["verdict"]["outcome"] == "decided" and answer["verdict"]["arms"]["pos=alibi"]["kind"] == "better"
    assert (Path(answer["written"]) / "report.md").exists()
    assert reported(study, ["VERDICT=1"], monkeypatch, tmp_path) == 0
    assert capsys.readouterr().out.endswith("decided, by bits/byte\n")

    three = made_study.make(made_study.Study(tmp_path / "three", arms=list(made_study.ARMS)))
    assert reported(three, ["VERDICT=1"], monkeypatch, tmp_path) == 3
    capsys.readouterr()
    assert reported(three, ["FORMAT=json"], monkeypatch, tmp_path) == 3
    assert checked(capsys.readouterr().out)["verdict"]["outcome"] == "undecided"
    assert reported(three, [], monkeypatch, tmp_path) == 0  # a plain report is no verdict

    for seed in study.seeds:  # evaluated by another version of the tasks
        made_study.change(study.cell("pos=alibi", seed).dir / "eval.json", "version", to=2)
    assert reported(study, ["VERDICT=1"], monkeypatch, tmp_path) == 2
    assert study_outcome(gather_findings(study))["arms"]["pos=alibi"]["kind"] == "refused"
    assert EXIT_CODES == {"decided": 0, "undecided": 3, "refused": 2}


def test_a_verdict_by_what_was_chosen_after_the_runs_decides_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    study = made_study.make(made_study.Study(tmp_path / "runs", arms=["pos=learned", "pos=none"]))
    before = Criteria(margins={"bits/byte": 0.05}, seeds=3)
    made_study.register(study, before)
    assert reported(made_study.registered(study, before), ["VERDICT=1"], monkeypatch, tmp_path) == 0
    assert "exploratory: chosen after" not in capsys.readouterr().out

    wide = Criteria(margins={"bits/byte": 0.09}, seeds=3)
    typed = made_study.registered(study, wide, words=("MARGIN=0.09",))
    assert reported(typed, ["VERDICT=1"], monkeypatch, tmp_path) == 3
    said = capsys.readouterr().out
    assert "Margin of bits/byte: 0.09 bits/byte, exploratory: chosen after the runs." in said
    assert said.endswith("undecided, by bits/byte\n")

    scores = Criteria("zero-shot", {"bits/byte": 0.05, "zero-shot": 90.0}, seeds=3)
    by_score = made_study.registered(study, scores, words=("METRIC=zero-shot", "MARGIN=0.05,90"))
    assert reported(by_score, ["VERDICT=1"], monkeypatch, tmp_path) == 3
    said = capsys.readouterr().out
    assert "The verdict is on zero-shot, exploratory: chosen after the runs, which named bits/byte" in said
    assert "the primary metric" not in said
    assert reported(by_score, ["FORMAT=json"], monkeypatch, tmp_path) == 3
    verdict = checked(capsys.readouterr().out)["verdict"]
    assert verdict["outcome"] == "undecided" and verdict["arms"]["pos=none"]["exploratory"] is True
    assert verdict["arms"]["pos=none"]["kind"] == "equivalent"


def test_a_verdict_without_a_study_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["VERDICT=1"], ["VERDICT=1", f"OUT={tmp_path}"]):
        assert report_command.main(words) == 2
        assert "VERDICT=1 needs a study" in capsys.readouterr().err


def test_a_study_without_results_is_undecided(tmp_path: Path) -> None:
    study = made_study.make(made_study.Study(tmp_path))
    for seed in study.seeds:
        (study.cell("pos=alibi", seed).dir / "done").unlink()
    assert study_outcome(gather_findings(study))["outcome"] == "undecided"


def test_a_report_of_a_design_fits_the_schema(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.test_factorial import crossed
    from tests.test_tuning import CONTRADICTING, tuned_study

    for study in (crossed(tmp_path / "crossed", 0.05, [1, 2]), tuned_study(tmp_path / "tuned", CONTRADICTING, [1, 2])):
        reported(study, ["FORMAT=json"], monkeypatch, tmp_path)
        record = checked(capsys.readouterr().out)["record"]
        assert record["effects"] or record["learning_rates"]


def test_a_report_of_all_records_is_an_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(report_command, "RECORDS", tmp_path)
    assert report_command.main(["FORMAT=json", f"OUT={tmp_path}"]) == 0
    assert checked(capsys.readouterr().out)["counts"] == {"held": 0, "failed": 0, "undecided": 0}
    assert report_command.main(["FORMAT=json", "VERDICT=maybe"]) == 2


def test_a_noise_floor_is_an_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = made_study.make(made_study.Study(tmp_path / "runs", arms=["pos=learned"], seeds=[1001, 1002, 1003]))
    monkeypatch.setattr(noise.request, "parse_request", lambda _: Request(runs))
    monkeypatch.setattr(noise, "FOLDER", tmp_path / "noise")
    assert noise.main(["STUDY=baseline", "FORMAT=json"]) == 0
    answer = checked(capsys.readouterr().out)
    assert answer["floor"] == json.loads(Path(answer["written"]).read_text())
    assert answer["floor"]["metrics"]["bits/byte"]["dof"] == 2
    (runs.cell("pos=learned", 1001).dir / "done").unlink()
    assert noise.main(["STUDY=baseline", "FORMAT=json"]) == 2
    assert "3 are needed" in checked(capsys.readouterr().out)["error"]


def test_a_ladder_is_an_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    losses = {("nano", "learned"): 2.7, ("nano", "alibi"): 2.6, ("mini", "learned"): 2.5, ("mini", "alibi"): 2.42}
    losses |= {("small", "learned"): 2.3, ("small", "alibi"): 2.24}
    test_plan_ladder.judged(tmp_path, losses)
    words = ["--sizes", "small,nano,mini", "POS=alibi", f"OUT={tmp_path}", "FORMAT=json"]
    assert ladder.main(words) == 0
    answer = checked(capsys.readouterr().out)
    assert [arm["verdict"] for arm in answer["arms"]] == ["better"] and len(answer["pairs"]) == 6
    assert answer["against_target"] is None and (Path(answer["written"]) / "figure.svg").exists()
    test_plan_ladder.judged(tmp_path, {("14m", "learned"): 2.0, ("14m", "alibi"): 1.97})
    assert ladder.main(words) == 0
    score = {"hits": 1, "misses": 0, "open": 0, "order_accuracy": 1.0}
    assert checked(capsys.readouterr().out)["against_target"] == {"ladder": score, "largest_size": score}
    assert ladder.main([*words, "SIZE=nano"]) == 2
    assert "SIZES=" in checked(capsys.readouterr().out)["error"]


def test_a_law_is_an_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [
        str(test_plan_laws.finished(tmp_path / f"{size}-{tokens}", tokens, size=size))
        for size in ("nano", "mini", "small", "14m")
        for tokens in (1_000_000, 4_000_000, 16_000_000)
    ]
    assert laws.main([*folders, "--format", "json"]) == 0
    answer = checked(capsys.readouterr().out)
    alpha = answer["values"]["alpha"]
    assert [alpha[end] for end in ("low", "value", "high")] == pytest.approx([0.3478] * 3, abs=1e-4) and len(
        answer["points"]
    ) == 12
    assert "problem" in answer["other_ways"]["way 2, equal compute"] and not answer["may_have_no_floor"]
    assert len(answer["without_largest"]["relative_errors"]) == 3
    assert laws.main([*folders, "--format", "json", "--form", "compute"]) == 0
    assert checked(capsys.readouterr().out)["other_ways"] == {}
    for words, why in (
        ([*folders[:3]], "cannot determine"),
        ([*folders[:3], "--form", "compute"], "largest size"),
        ([*folders, "--form", "hofmann"], "hoffmann?"),
        ([], "no runs are named"),
    ):
        assert laws.main([*words, "--format", "json"]) == 2
        assert why in checked(capsys.readouterr().out)["error"]
    assert laws.main([*folders, "--format", "jason"]) == 2


def test_an_ablation_answers_as_its_report_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Of runs that are not there: standard output has the report's answer alone, and its exit code is the command's."""

    def nothing(study: Any) -> list[str]:
        print("fährt")
        return []

    monkeypatch.setattr(local, "run_study", nothing)
    monkeypatch.setattr(local, "ROOT", tmp_path)  # records go there
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    words = ["POS=alibi", "SIZE=nano", f"OUT={tmp_path}"]
    assert local.main([*words, "FORMAT=json"]) == 2
    assert "no run of this study has begun" in checked(capfd.readouterr().out)["error"]
    test_plan_ladder.judged(tmp_path, {("nano", "learned"): 2.7, ("nano", "alibi"): 2.6})  # and not done
    assert local.main([*words, "FORMAT=json"]) == 3
    said = capfd.readouterr()
    assert checked(said.out)["verdict"]["outcome"] == "undecided" and "fährt" in said.err
    assert local.main(words) == 0 and "fährt" in capfd.readouterr().out  # without FORMAT as ever
    monkeypatch.setattr(local, "run_study", lambda study: ["a run failed"])
    assert local.main([*words, "FORMAT=json"]) == 1
    assert checked(capfd.readouterr().out)["kind"] == "report"
    assert local.main([*words, "FORMAT=jason"]) == 2
    assert local.main(["POS=nope", "FORMAT=json"]) == 2
    assert "pos=nope" in checked(capfd.readouterr().out)["error"]


def test_json_is_alone_on_standard_output_of_the_real_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ablations", "show", "POS=alibi", "SIZE=nano", "FORMAT=json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert checked(done.stdout)["arms"].keys() == {"pos=learned", "pos=alibi"}
