"""Runs that must not begin, or cannot go on, stop and say why."""

import dataclasses
import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ablations import rundir
from ablations.status import run_state
from ablations.study import from_args
from tests.conftest import Launch
from tests.tiny_run import in_process, study, words


def test_a_diverging_run_stops_and_says_why(
    launch: Callable[..., Launch], corpus: str, store: Path, tmp_path: Path
) -> None:
    argv = words(corpus, store, **{"train.lr": 1000.0, "train.warmup": 0.0})
    process = launch(["--cell", "1", *argv], tmp_path / "log")
    assert process.wait() == 1 and "Try a lower train.lr" in process.output
    cell = from_args(argv).cells[1]
    assert run_state(cell)["state"] == "failed" and "train.lr" in run_state(cell)["why"]
    assert not (cell.dir / "done").exists()
    lines, _ = rundir.read_registrations(cell.dir)  # before the first step, whatever became of the run
    assert [(line["step"], line["content"]) for line in lines] == [(0, from_args(argv).registration)]


def test_a_run_whose_factor_is_inactive_stops_before_the_first_step(
    corpus: str, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from launch.train import main
    from model import attention
    from model.position import Position

    prepare = attention.make_attention
    monkeypatch.setattr(attention, "make_attention", lambda p, *args: prepare(Position(p), *args))
    argv = words(corpus, store, **{"train.lr": 1.1e-3})
    assert main(["--cell", "1", *argv]) == 1
    cell = from_args(argv).cells[1]
    assert "model.pos=alibi" in (cell.dir / "failed").read_text()
    assert not (cell.dir / "run.json").exists() and not (cell.dir / "metrics.jsonl").exists()


@pytest.mark.parametrize(("key", "lost"), [("train.clip", "gradient_clipping"), ("train.batch", "train_batch_size")])
def test_a_setting_lost_on_its_way_to_the_engine_stops_the_run(
    corpus: str, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, lost: str
) -> None:
    from launch import deepspeed_setup, engine
    from launch.manifest import Mismatch

    whole = deepspeed_setup.deepspeed_config

    def without(run: Any, world: int) -> dict[str, Any]:
        config = whole(run, world)
        del config[lost]
        if lost == "train_batch_size":
            config["gradient_accumulation_steps"] = 2
        return config

    monkeypatch.setattr(engine, "deepspeed_config", without)
    change = {"train.clip": 0.5}  # DeepSpeed's own default is 1
    cell = dataclasses.replace(study(corpus, tmp_path, change).cells[0], dir=tmp_path / "run")
    cell.dir.mkdir()
    with pytest.raises(Mismatch, match=key):
        in_process(cell, store)


def test_a_decayed_norm_gain_stops_the_run(
    corpus: str, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through DeepSpeed, in whose own groups the audit looks."""
    from launch import engine
    from launch.manifest import Mismatch

    adamw = engine.AdamW

    def careless(groups: list[dict[str, Any]], **kw: Any) -> torch.optim.Optimizer:
        moved = groups[1]["params"].pop(0)
        groups[0]["params"].append(moved)
        return adamw(groups, **kw)

    monkeypatch.setattr(engine, "AdamW", careless)
    cell = dataclasses.replace(study(corpus, tmp_path).cells[0], dir=tmp_path / "run")
    cell.dir.mkdir()
    with pytest.raises(Mismatch, match="blocks.0.norm1.weight is decayed"):
        in_process(cell, store)


def test_other_data_under_the_same_name_stop_a_continued_run(corpus: str, store: Path, tmp_path: Path) -> None:
    from launch.manifest import Mismatch

    cell = dataclasses.replace(study(corpus, tmp_path).cells[0], dir=tmp_path / "run")
    cell.dir.mkdir()
    in_process(cell, store)
    record = json.loads((cell.dir / "run.json").read_text())
    record["data"]["sha256"] = "0" * 64
    (cell.dir / "run.json").write_text(json.dumps(record))
    with pytest.raises(Mismatch, match="not the one that the run began with"):
        in_process(cell, store)


def test_under_slurm_a_run_that_another_job_holds_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ablations.rundir import Exit
    from launch.lock import run_lock
    from launch.watch import StopTraining

    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setattr("launch.lock.time.sleep", lambda _: None)
    with (
        run_lock(tmp_path),
        pytest.raises(StopTraining, match="another process is training") as stop,
        run_lock(tmp_path),
    ):
        pass
    assert stop.value.code == Exit.RESUBMIT


@pytest.mark.parametrize(
    ("said", "slurm", "given_up"),
    [("Input/output error", True, False), ("Input/output error", False, True)]
    + [(os.strerror(number), True, True) for number in (errno.ENOSPC, errno.EDQUOT)],
)
def test_what_may_go_better_is_tried_again_under_slurm(
    said: str, slurm: bool, given_up: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """A storage that hiccups while a checkpoint is written; a full disk waits for somebody to make room."""
    from launch import train
    from launch.checkpoint import Checkpoints
    from launch.slurm.attempts import last_configuration_error

    def training(cell: Any, out: Path) -> None:
        checkpoints = Checkpoints(cell.dir / "checkpoints", 2)
        checkpoints.error = OSError(said)
        checkpoints.raise_save_error()

    if slurm:
        monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setattr(train, "train", training)
    cell = from_args(["POS=alibi", "SIZE=nano", f"OUT={tmp_path}"]).cells[0]
    assert train.main(["--cell", "0", "POS=alibi", "SIZE=nano", f"OUT={tmp_path}"]) == 1
    error = capsys.readouterr().err
    assert said in error and (cell.dir / "failed").exists() == given_up
    (cell.dir / "train.log").write_text(f"0: {error}")
    assert bool(last_configuration_error(cell.dir, "7")) == given_up
