"""External checkpoints in a report: rows beside the runs, on what both were asked; damaged ones cost nothing else."""

import json
from pathlib import Path
from typing import Any

import pytest

from ablations import rundir
from eval.finetune.metrics import glue_means
from eval.report.__main__ import main
from eval.report.reading.external import reason_not_comparable
from tests.made_study import Study, make, section
from tests.test_glue_report import table

SETTING = {"epochs": 5, "batch": 16, "lr": 4e-5, "pooling": "first", "longest": 128}


def results(score: float, **changes: Any) -> dict[str, Any]:
    """A glue.json as eval/finetune writes it: every task but MNLI scores `score`."""
    conditions = {
        "setting": SETTING,
        "inputs_version": rundir.GLUE_INPUTS_VERSION,
        "data_sha256": {"cola": {"train": "aa", "dev": "bb"}, "mnli": {"train": "cc"}},
    }
    return conditions | table(0.8, 0.6, score, 0.1) | changes


def write(folder: Path, content: dict[str, Any] | str) -> Path:
    folder.mkdir(parents=True)
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / "glue.json").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    monkeypatch.chdir(tmp_path)
    study = make(Study(tmp_path / "runs", seeds=[1, 2]))
    for arm in study.arms:
        for seed in study.seeds:
            write(study.cell(arm, seed).dir / "glue", results(0.5))
    return study


def glue_section(tmp_path: Path) -> str:
    (path,) = tmp_path.glob("ablations/records/*/report.md")
    return section(path.read_text(encoding="utf-8"), "GLUE")


def row(text: str, name: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {name} ")]
    return [cell.strip() for cell in line.strip("|").split("|")[1:]]


def test_rows_stand_beside_the_runs_and_nothing_is_tested(
    study: Study, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    same, one = write(tmp_path / "bért", results(0.7)), write(tmp_path / "broken one", '{"scores": {"cola": 1')
    other = write(tmp_path / "hurried", results(0.9, setting=SETTING | {"epochs": 1}))
    words = [f"RUNS={study.root}", f"OUT={tmp_path}", f"EXTERNAL={same} '{one}' {other}"]
    assert main(words) == 0
    assert " not match: see the report" in capsys.readouterr().out
    text = glue_section(tmp_path)
    # MNLI, MNLI-mm, then seven tasks; (0.8 + 0.6 + 7 x 0.7) / 9 and (0.7 + 7 x 0.7) / 8; there STS-B counts 40
    assert row(text, "bért (external)") == ["80.0", "60.0", *["70.0"] * 7, "70.0", "70.0", "66.2"]
    assert sum(line.endswith(" 54.4 | 52.5 | 50.0 |") for line in text.splitlines()) == len(study.arms)
    assert "| hurried" not in text and "hurried (external) is not shown on MNLI, MNLI-mm" in text
    assert "epochs 1, of the runs 5" in text and "Not tested: one checkpoint" in text
    assert "broken one (external) is left out: glue.json is damaged" in text and str(tmp_path) not in text
    assert not any(word in text for word in ("better", "worse", "equivalent"))
    (path,) = tmp_path.glob("ablations/records/*/report.md")
    report = path.read_text(encoding="utf-8")
    assert "broken one (external): glue.json is damaged" in section(report, "What does not match")
    assert str(tmp_path) not in report and "EXTERNAL=" in report


def test_what_follows_from_a_model_is_said_and_shown(study: Study, tmp_path: Path) -> None:
    content = results(0.7, setting=SETTING | {"pooling": "last", "longest": 64})
    for kind in ("study", "leaderboard"):
        content["scores"]["cola"][kind]["seeds"] = 2
    decoder = write(tmp_path / "gpt2", content)
    assert main([f"RUNS={study.root}", f"OUT={tmp_path}", f"EXTERNAL={decoder}"]) == 0
    text = glue_section(tmp_path)
    assert row(text, "gpt2 (external)")[-1] == "66.2"
    for words in (
        "pooling last, of the runs first",
        "longest 64, of the runs 128",
        "fine-tuning seeds 2, of the runs 1",
    ):
        assert f"gpt2 (external): {words}." in text


def without(table: dict[str, Any], task: str) -> dict[str, Any]:
    """A table of GLUE as it is where a task was not asked."""
    scores = {name: entry for name, entry in table["scores"].items() if name != task}
    means = {
        kind: glue_means({name: entry[kind]["median"] for name, entry in scores.items()})
        for kind in ("study", "leaderboard")
    }
    return table | {"scores": scores} | means


def test_a_task_that_was_asked_otherwise_leaves_the_others(study: Study, tmp_path: Path) -> None:
    content = results(0.7)
    content["data_sha256"] = content["data_sha256"] | {"mnli": {"train": "other"}}
    content["scores"]["cola"]["study"]["metric"] = "accuracy"
    content = without(content, "qqp")
    for arm in study.arms:  # and the runs were not asked RTE
        for seed in study.seeds:
            path = study.cell(arm, seed).dir / "glue" / "glue.json"
            fewer = json.loads(path.read_text())
            path.write_text(json.dumps(without(fewer, "rte")))
    folder = write(tmp_path / "bert", content)
    assert main([f"RUNS={study.root}", f"OUT={tmp_path}", f"EXTERNAL={folder}"]) == 0
    text = glue_section(tmp_path)
    # the columns: MNLI, MNLI-mm, SST-2, STS-B, QNLI, QQP, MRPC, CoLA, and the means, which are of all nine alone
    assert row(text, "bert (external)") == ["-", "-", "70.0", "70.0", "70.0", "-", "70.0", "-", "-", "-", "-"]
    assert "is not shown on MNLI, MNLI-mm: sha256 of the data" in text
    assert "is not shown on CoLA: metric accuracy, of the runs mcc." in text
    assert "is not shown on RTE: no run was asked it." in text


@pytest.mark.parametrize(
    "change, reason",
    [
        ({}, ""),
        ({"setting": SETTING | {"longest": 512, "pooling": "mean"}}, ""),
        ({"setting": SETTING | {"lr": 1e-4}}, "lr 0.0001, of the runs 4e-05"),
        ({"inputs_version": 1}, "version of the inputs 1, of the runs 2"),
        ({"inputs_version": None}, "version of the inputs not recorded, of the runs 2"),
        ({"data_sha256": None}, "sha256 of the data not recorded, of the runs train aa, dev bb"),
    ],
)
def test_what_has_to_be_equal(change: dict[str, Any], reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rundir, "GLUE_INPUTS_VERSION", 2)
    assert reason_not_comparable(results(0.7, **change), [results(0.5)], "cola") == reason
    # one run that was asked otherwise is enough
    assert reason_not_comparable(results(0.7), [results(0.5), results(0.5, setting=SETTING | {"epochs": 3})], "cola")


def test_bad_requests_are_named(study: Study, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    runs = f"RUNS={study.root}"
    one, two = write(tmp_path / "a/bert", results(0.7)), write(tmp_path / "b/bert", results(0.7))
    for words, why in (
        ([f"EXTERNAL={tmp_path / 'nowhere'}"], "has no glue.json; python -m eval.finetune --external"),
        ([f"EXTERNAL={one} {two}"], "two folders are called bert"),
        ([f"EXTERNAL={one}", f"EXTERNAL={two}"], "EXTERNAL is given twice"),
    ):
        assert main([runs, *words, f"OUT={tmp_path}"]) == 2
        assert why in capsys.readouterr().err
    assert not (tmp_path / "ablations").exists()


def test_without_runs_on_glue_it_is_said(study: Study, tmp_path: Path) -> None:
    for arm in study.arms:
        for seed in study.seeds:
            (study.cell(arm, seed).dir / "glue" / "glue.json").unlink()
    folder = write(tmp_path / "bert", results(0.7))
    assert main([f"RUNS={study.root}", f"OUT={tmp_path}", f"EXTERNAL={folder}"]) == 0
    assert "No run of this report was fine-tuned on GLUE" in glue_section(tmp_path)
