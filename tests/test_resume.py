"""A run that is stopped, killed, damaged, widened or narrowed goes on as if nothing had happened."""

import json
import os
import random
import re
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from ablations import safe_files
from ablations.rundir import checkpoints
from ablations.safe_files import Damaged
from ablations.study import from_args
from launch.repair import repair_run_directory
from tests.conftest import Launch
from tests.moments import after_row, after_save, before_done, in_save
from tests.tiny_run import result, words

Start = Callable[..., Launch]
KILLS = int(os.environ.get("KILLS", "8"))  # 50 in .ci/run


def folder(out: Path, store: Path) -> Path:
    """An output root that shares the data store."""
    out.mkdir()
    (out / "data").symlink_to(store / "data")
    return out


def begin(launch: Start, argv: list[str], ranks: int = 1, prepare: Callable[[], None] | None = None) -> Launch:
    cell = from_args(argv).cells[1]
    cell.dir.mkdir(parents=True, exist_ok=True)
    return launch(["--cell", "1", *argv], cell.dir / "test.log", ranks, prepare)


def train(launch: Start, argv: list[str], ranks: int = 1) -> Path:
    """To the end. Returns the run directory."""
    started = begin(launch, argv, ranks)
    assert started.wait() == 0, started.output
    return from_args(argv).cells[1].dir


def text(path: Path) -> str:
    try:
        return path.read_text()
    except FileNotFoundError:  # not there yet, or just being replaced by a run that begins
        return ""


def steps(run: Path) -> int:
    return text(run / "metrics.jsonl").count("\n")


def seconds(run: Path) -> list[float]:
    return [json.loads(x)["seconds"] for x in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_kill_9_at_any_moment_and_the_same_command_ends_in_the_same_bits(
    launch: Start, corpus: str, store: Path, tmp_path: Path, precision: str
) -> None:
    # with dropout, so that random numbers must be resumed as well
    change = {"train.precision": precision, "model.dropout": 0.1, "model.attn_dropout": 0.1}
    calm = words(corpus, tmp_path / "calm", **change)
    (tmp_path / "calm").mkdir()
    (tmp_path / "calm/data").symlink_to(store / "data")
    process = launch(["--cell", "1", *calm], tmp_path / "log")
    assert process.wait() == 0, process.output

    stormy = words(corpus, tmp_path / "stormy", **change)
    (tmp_path / "stormy").mkdir()
    (tmp_path / "stormy/data").symlink_to(store / "data")
    folder = from_args(stormy).cells[1].dir
    rng = random.Random(precision)

    for moment in (
        partial(after_row, rng.randrange(1, 8)),  # before there is a checkpoint
        partial(in_save, "step_8", tensors_written=True),
        partial(after_row, rng.randrange(9, 24)),
        before_done,
    ):
        launch(["--cell", "1", *stormy], tmp_path / "log", prepare=moment).wait_for_kill()
        assert not (folder / "done").exists()
    process = launch(["--cell", "1", *stormy], tmp_path / "log")
    assert process.wait() == 0, process.output
    weights, metrics = result(folder)
    calm_weights, calm_metrics = result(from_args(calm).cells[1].dir)
    assert metrics == calm_metrics and len(metrics) == 24
    assert weights == calm_weights
    record = json.loads((folder / "run.json").read_text())
    assert len(record["continued"]) >= 3
    assert all(launch["execution"]["compiled"] == "never" for launch in (record, *record["continued"]))


def until(condition: Callable[[], Any], started: Launch) -> None:
    while not condition() and started.running():
        time.sleep(0.001)


def test_kills_leave_no_trace(launch: Start, corpus: str, store: Path, tmp_path: Path) -> None:
    """SIGKILL at random moments. With dropout; checkpoints at every other step, so that many fall into a save."""
    change = {"model.dropout": 0.1, "model.attn_dropout": 0.1, "layout.save_every": 2, "train.tokens": 60 * 4 * 32}
    calm = train(launch, words(corpus, folder(tmp_path / "calm", store), **change))
    argv = words(corpus, folder(tmp_path / "stormy", store), **change)
    run = from_args(argv).cells[1].dir
    rng, kills, inside = random.Random(1), 0, 0
    while kills < KILLS:
        started = begin(launch, argv)
        pid = started.processes[0].pid
        until(lambda: f'"pid": {pid}' in text(run / "heartbeat.json"), started)  # noqa: B023  # it is in its loop
        time.sleep(rng.expovariate(1 / 0.1))  # a step and a save take some 20 ms
        alive = started.running()
        started.kill()
        if not alive:
            assert (run / "done").exists(), started.output
            shutil.rmtree(run)  # and once more from the start
            run.mkdir()
            continue
        kills += 1
        inside += any(not (p / "checkpoint.json").exists() for p in (run / "checkpoints").glob("step_*"))
    assert train(launch, argv) == run
    assert KILLS < 50 or inside, "too few kills fell into a save to mean anything"
    assert result(run) == result(calm) and steps(run) == 60


def test_a_damaged_checkpoint_costs_steps_and_nothing_else(
    launch: Start, corpus: str, store: Path, tmp_path: Path
) -> None:
    change = {"layout.save_every": 8, "model.dropout": 0.1, "train.precision": "bf16"}
    calm = train(launch, words(corpus, folder(tmp_path / "calm", store), **change))
    argv = words(corpus, folder(tmp_path / "damaged", store), **change)
    run = train(launch, argv)
    (run / "done").unlink()
    os.truncate(run / "checkpoints/step_24/rank_0.safetensors", 1000)
    before = seconds(run)
    started = begin(launch, argv)
    assert started.wait() == 0 and "step_24 is damaged" in started.output
    assert result(run) == result(calm)
    assert seconds(run)[:16] == before[:16] and sorted(seconds(run)) == seconds(run)  # the clock goes on, too


def test_a_damaged_run_is_repaired_from_its_last_checkpoint(
    launch: Start, corpus: str, store: Path, tmp_path: Path
) -> None:
    argv = words(corpus, folder(tmp_path / "out", store))
    run, cell = train(launch, argv), from_args(argv).cells[1]
    whole = result(run)
    record = json.loads((run / "run.json").read_text())
    assert repair_run_directory(cell) == ""

    def flip(name: str) -> None:
        content = bytearray((run / name).read_bytes())
        content[len(content) // 2] ^= 1
        (run / name).write_bytes(content)

    (run / "run.json").write_text("[]")
    assert "run.json was damaged" in repair_run_directory(cell) and (run / "damaged_run.json").read_text() == "[]"
    train(launch, argv)
    again = json.loads((run / "run.json").read_text())
    same = ("fingerprint", "config", "data", "parameters", "effective", "proofs")
    assert result(run) == whole and {k: again[k] for k in same} == {k: record[k] for k in same}
    for damage in (
        lambda: flip("weights.safetensors"),
        (run / "weights.safetensors").unlink,
        lambda: os.truncate(run / "weights.safetensors", 500),
        lambda: (run / "done").write_bytes(b"\xff"),
    ):
        damage()
        assert str(run) in repair_run_directory(cell) and not (run / "done").exists()
        train(launch, argv)
        assert result(run) == whole and repair_run_directory(cell) == ""

    for name in ("checkpoints/step_16/checkpoint.json", "checkpoints/step_24/checkpoint.json", "weights.safetensors"):
        flip(name)
    before = sorted(path.name for path in run.iterdir())
    with pytest.raises(Damaged, match=f"weights.safetensors.*to train the run anew, rename {re.escape(str(run))}"):
        repair_run_directory(cell)
    (run / "run.json").write_text("")
    with pytest.raises(Damaged, match="run.json is damaged.*no checkpoint that is known to be this run's"):
        repair_run_directory(cell)
    assert sorted(path.name for path in run.iterdir()) == before  # nothing that may be of use is lost


def test_who_asks_for_a_stop_gets_one_and_nothing_is_lost(
    launch: Start, corpus: str, store: Path, tmp_path: Path
) -> None:
    change = {"layout.save_every": 1000, "train.tokens": 2000 * 4 * 32}
    out = folder(tmp_path / "out", store)
    argv = words(corpus, out, **change)
    run = from_args(argv).cells[1].dir

    started = begin(launch, argv)
    until(lambda: steps(run) >= 3, started)
    (run / "stop").write_text("ten minutes left")
    assert started.wait() == 75 and "ten minutes left" in started.output
    (first,) = checkpoints(run / "checkpoints")
    assert steps(run) == int(first.name[5:])

    started = begin(launch, argv)  # the stop file was meant for the process before
    until(lambda: steps(run) >= int(first.name[5:]) + 3, started)
    os.kill(started.processes[0].pid or 0, 15)
    assert started.wait() == 75 and "SIGTERM" in started.output
    second = checkpoints(run / "checkpoints")[0]
    assert int(second.name[5:]) > int(first.name[5:])

    started = begin(launch, argv)
    until(lambda: steps(run) >= int(second.name[5:]) + 3, started)
    (out / "stop").write_text("everybody out")
    assert started.wait() == 76 and "everybody out" in started.output
    assert begin(launch, argv).wait() == 76
    rows = [json.loads(x)["step"] for x in (run / "metrics.jsonl").read_text().splitlines()]
    assert rows == list(range(1, len(rows) + 1))  # nothing lost, nothing twice


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_any_width_and_zero_stage_continues_any_other(
    launch: Start, corpus: str, store: Path, tmp_path: Path, precision: str
) -> None:
    """1 -> 2 -> 4 -> 2 ranks, ZeRO 1 -> 2 -> 1 -> 2: the same data in the same order, losses equal up to rounding."""
    fixed = {"layout.micro_batch": 1, "layout.save_every": 1000, "train.precision": precision}
    calm = train(launch, words(corpus, folder(tmp_path / "calm", store), **fixed))
    out = folder(tmp_path / "wide", store)
    for ranks, zero, stop in ((1, 1, 4), (2, 2, 10), (4, 1, 16), (2, 2, 24)):
        # a budget is part of what a run is: it is killed when the checkpoint of the step is whole
        every = {"layout.processes": ranks, "layout.zero": zero, "layout.save_every": stop}
        argv = words(corpus, out, **(fixed | every))
        run = from_args(argv).cells[1].dir
        if stop == 24:
            train(launch, argv, ranks)
        else:
            begin(launch, argv, ranks, partial(after_save, f"step_{stop}")).wait_for_kill()
    record = json.loads((run / "run.json").read_text())
    assert [c["hardware"]["ranks"] for c in record["continued"]] == [2, 4, 2]
    rel = 2e-5 if precision == "fp32" else 5e-3
    assert [r[2] for r in result(run)[1]] == pytest.approx([r[2] for r in result(calm)[1]], rel=rel)
    assert [r[3] for r in result(run)[1]] == [r[3] for r in result(calm)[1]]


def test_after_a_spike_the_run_goes_back_and_past_the_data(
    launch: Start, corpus: str, store: Path, tmp_path: Path
) -> None:
    """At so low a learning rate the loss is noise; the spike that it takes is chosen from an undisturbed run."""
    change = {"train.lr": 1e-5, "layout.save_every": 2, "layout.keep": 100}
    calm = [r[2] for r in result(train(launch, words(corpus, folder(tmp_path / "calm", store), **change)))[1]]
    above = [loss - sorted(calm[:i])[i // 2] for i, loss in enumerate(calm) if i >= 8]
    spike = sorted(above)[-1] * 0.999  # the highest of them only
    assert spike > 0
    at = 8 + above.index(max(above)) + 1  # the step of the spike
    argv = words(
        corpus,
        folder(tmp_path / "run", store),
        **change,
        **{"train.spike": spike, "train.skip": 3, "train.rollbacks": 5},
    )
    run = train(launch, argv)
    record = json.loads((run / "run.json").read_text())
    first = record["rollbacks"][0]
    back = (at - 3) // 2 * 2
    assert first["back_to"] == back and f"step {at}: " in first["why"]
    assert first["samples_left_out"] == [4 * back, 4 * (at + 3)]
    events = [line["event"] for line in safe_files.read_json_lines(run / "events.jsonl")[0]]
    assert [event for event in events if event != "slow"][0] == "rollback"  # slow: of this machine, not of the run
    rows = result(run)[1]
    assert [r[0] for r in rows] == list(range(1, 25))  # each step once
    if len(record["rollbacks"]) == 1:
        assert [r[2] for r in rows[:back]] == calm[:back]
        # the weights hardly move at this rate: what the next steps see are the samples after those left out
        from data.batches import Batches
        from model.gpt import GPT

        cell = from_args(argv).cells[1]
        model = GPT(cell.run.model, cell.run.seed)
        with safe_open(run / f"checkpoints/step_{back}/rank_0.safetensors", "pt") as saved, torch.no_grad():
            for name, p in model.named_parameters():
                p.copy_(saved.get_tensor(f"{name}|weight|0").view_as(p))
        sources = [(s["prefix"], s["weight"]) for s in record["data"]["train"]]
        batch = Batches(sources, cell.run.model.seq, 1).batch(range(4 * (at + 3), 4 * (at + 4)))
        assert rows[back][2] == pytest.approx(model.loss(model.objective.batch(batch)).item(), rel=1e-5)
    # and the same once more
    again = train(
        launch,
        words(
            corpus,
            folder(tmp_path / "again", store),
            **change,
            **{"train.spike": spike, "train.skip": 3, "train.rollbacks": 5},
        ),
    )
    assert result(again) == result(run)


def test_a_spike_without_a_checkpoint_before_it_ends_the_run(
    launch: Start, corpus: str, store: Path, tmp_path: Path
) -> None:
    change = {"train.lr": 1e-5, "layout.save_every": 1000, "train.spike": 1e-4, "train.skip": 3, "train.rollbacks": 1}
    argv = words(corpus, folder(tmp_path / "run", store), **change)
    started = begin(launch, argv)
    assert started.wait() == 1
    assert "no checkpoint at least train.skip=3 steps before" in (from_args(argv).cells[1].dir / "failed").read_text()
