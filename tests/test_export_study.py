"""EXPORT=1: every finished run becomes a Hugging Face checkpoint, and what cannot be one is refused before training."""

import json
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from ablations import rundir
from ablations.config import ConfigError
from ablations.study import from_args
from data import tokenizer as tokenizers
from eval import export, exportable
from launch import local
from launch.slurm import submit
from model import hub
from tests.conftest import mark_as_trained
from tests.schemas import checked
from tests.test_attempts import command, commands  # noqa: F401  # a fixture
from tests.test_hub import SMALL, run_directory

NANO = ["SIZE=nano", "SEEDS=1", "EXPORT=1"]


@pytest.mark.parametrize(
    ("question", "refused"),
    [
        (["POS=rotary,alibi,none"], {"pos=alibi": "nearest, BLOOM, has not", "pos=none": "model.pos=none (it has"}),
        (
            ["POS=rotary", "SET=data.tokenizer_kind=unigram"],
            dict.fromkeys(["pos=learned", "pos=rotary"], "a tokenizer of the kind unigram is not exported"),
        ),
    ],
)
def test_what_cannot_be_exported_is_refused_before_any_work_with_each_arm_and_why(
    question: list[str],
    refused: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(local, "prepare_missing_data", lambda *_: pytest.fail("data are prepared"))
    assert local.main([*question, *NANO, f"OUT={tmp_path}/out"]) == rundir.Exit.INVALID
    errors = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert errors.pop() == "error: not every run can be exported (EXPORT=1); the reasons stand above"
    assert [line.split(": ")[1] for line in errors] == list(refused)
    assert all(why in line for line, why in zip(errors, refused.values(), strict=True)), errors
    assert not list(tmp_path.iterdir())
    local.check_evaluation(from_args([*question, *NANO[:2], f"OUT={tmp_path}/out"]))  # unless an export is asked for


def test_a_file_with_a_tokenizer_is_read_before_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = ["añadir 語", *Path(local.__file__).read_text().splitlines()]
    for kind in ("unigram", "bpe"):
        (tmp_path / f"{kind}.model").write_bytes(tokenizers.train(text, 20_000, 400, kind))
        setting = f"SET=data.tokenizer_kind=file data.tokenizer={tmp_path}/{kind}.model model.vocab=400"
        code = exportable.main(["POS=rotary", setting, *NANO])
        error = capsys.readouterr().err
        assert (code, "kind unigram is not exported" in error) == ((2, True) if kind == "unigram" else (0, False)), (
            error
        )


def test_in_the_run_directory_an_export_of_earlier_weights_is_replaced_and_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = ["añadir 語", *Path(local.__file__).read_text().splitlines()]
    (tmp_path / "tokenizer.model").write_bytes(tokenizers.train(text, 20_000, 400))
    tokenizer = tokenizers.load_tokenizer(tmp_path / "tokenizer.model")
    run = run_directory(tmp_path / "out", replace(SMALL, vocab=400), tokenizer, text)
    written = []
    for weights in ("first", "first", "second"):
        if weights == "second":
            state = load_file(run / rundir.WEIGHTS)
            save_file({name: x + 1 for name, x in state.items()}, run / rundir.WEIGHTS)
            rundir.write_done(run, {"steps": 1})
            assert not rundir.is_exported(run)
        assert export.main([str(run), "--format", "json"]) == 0 and rundir.is_exported(run)
        answer = checked(capsys.readouterr().out)
        assert answer["new"] == (len(written) != 1) and bool(answer["verified"]) == answer["new"]
        written.append((run / rundir.HUB).stat().st_ino)
    assert export.main([str(run)]) == 0 and "it is there already" in capsys.readouterr().out
    assert written[0] == written[1] != written[2]
    assert export.main([str(run), "--to", str(run / rundir.HUB)]) == 2  # a folder that is named is never replaced
    assert "hub exists; name a folder that does not" in capsys.readouterr().err
    (run / rundir.HUB / "config.json").write_text('{"trained_by": {"fingerprint": "another"}}')
    assert export.main([str(run), "--format", "json"]) == 2
    assert "hub exists" in checked(capsys.readouterr().out)["error"]
    assert (run / rundir.HUB / "model.safetensors").exists()


def test_of_two_exports_of_a_run_at_once_the_second_finds_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = ["añadir 語", *Path(local.__file__).read_text().splitlines()]
    (tmp_path / "tokenizer.model").write_bytes(tokenizers.train(text, 20_000, 400))
    tokenizer = tokenizers.load_tokenizer(tmp_path / "tokenizer.model")
    run = run_directory(tmp_path / "out", replace(SMALL, vocab=400), tokenizer, text)
    verify = hub.verify

    def overtaken(draft: Path, *rest: Any) -> float:
        shutil.copytree(draft, run / rundir.HUB)
        return verify(draft, *rest)

    monkeypatch.setattr(hub, "verify", overtaken)
    drafts = [run / f".{rundir.HUB}.{number}" for number in (7, 8)]  # of a process that was killed, and one at work
    for draft in drafts:
        draft.mkdir()
        (draft / "model.safetensors").write_text("half")
    os.utime(drafts[0], (0, 0))
    assert export.main([str(run)]) == 0, capsys.readouterr().err
    assert rundir.is_exported(run) and list(run.glob(f".{rundir.HUB}*")) == [drafts[1]]


@pytest.mark.parametrize("value", ["0", "yes", "hub"])
def test_the_word_is_1_or_left_out(value: str) -> None:
    with pytest.raises(ConfigError, match=f"EXPORT={value}: 1, or leave it out"):
        from_args(["POS=alibi", f"EXPORT={value}"])
    assert from_args(["POS=alibi", "EXPORT=1"]).exports and not from_args(["POS=alibi"]).exports


def test_on_slurm_the_job_that_judges_exports(
    tmp_path: Path,
    commands: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    command(commands, "sbatch", f"cat > {tmp_path}/script.$(ls {tmp_path} | grep -c script); echo 7")
    command(commands, "stand-in", f'echo "$*" >> "{tmp_path}/started"')
    monkeypatch.setattr(submit, "PYTHON", f"{commands}/stand-in")
    monkeypatch.setattr(submit, "prepare_missing_data", lambda *_: None)
    out = tmp_path / "a b"
    with pytest.raises(ConfigError, match="not every run can be exported"):
        submit.submit(from_args(["POS=alibi", *NANO, f"OUT={out}"]), [], {}, 1)
    assert "pos=alibi: no architecture" in capfd.readouterr().err and not list(tmp_path.glob("script*"))
    study = from_args(["POS=rotary", *NANO, f"OUT={out}"])
    submit.submit(study, [], {}, 1)
    run = study.cells[1].dir
    job = ["bash", str(tmp_path / "script.1")]  # after that of the array that trains
    done = []
    for prepare in (lambda: None, lambda: mark_as_trained(run)):
        prepare()
        (tmp_path / "started").unlink(missing_ok=True)
        subprocess.run(job, env=os.environ | {"SLURM_ARRAY_TASK_ID": "1"}, check=True)
        done.append((tmp_path / "started").read_text().splitlines())
    judge, exporting = (f"-m {module} --store {out}/data {run}" for module in ("eval", "eval.export"))
    assert done == [[judge], [judge, exporting]]  # a run that goes on cannot be exported yet


def test_a_run_that_is_judged_and_not_exported_is_submitted_again(tmp_path: Path) -> None:
    study = from_args(["POS=rotary", *NANO, f"OUT={tmp_path}"])
    cell = study.cells[1]
    mark_as_trained(cell.dir)
    (cell.dir / rundir.EVAL).write_text(json.dumps(submit._current_evaluation_versions()))
    assert submit.is_fully_evaluated(from_args(["POS=rotary", *NANO[:2], f"OUT={tmp_path}"]), cell)
    assert not submit.is_fully_evaluated(study, cell)
    (cell.dir / rundir.HUB).mkdir()
    weights = json.loads((cell.dir / rundir.DONE).read_text())["weights"]["sha256"]
    (cell.dir / rundir.HUB / "config.json").write_text(json.dumps({"trained_by": {"weights": weights}}))
    assert submit.is_fully_evaluated(study, cell)
