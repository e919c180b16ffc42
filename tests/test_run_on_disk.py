"""A run and its disk: the lock, what is written first, torn lines, links of a stranger, slow and read-only storage."""

import dataclasses
import errno
import fcntl
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from ablations.config import resolve
from ablations.safe_files import Damaged
from ablations.study import from_args
from tests.conftest import free_port
from tests.forked import Command
from tests.tiny_run import in_process, study, words


def test_one_process_owns_a_run(tmp_path: Path) -> None:
    from ablations.config import ConfigError
    from launch.lock import run_lock

    with run_lock(tmp_path), pytest.raises(ConfigError, match="another process is training"), run_lock(tmp_path):
        pass


def test_who_looks_whether_a_run_is_locked_is_no_other_trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shared lock for a moment, as in ablations/status.py: it is gone after the first two pauses."""
    from launch.lock import run_lock

    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 2:
            look.close()

    look = open(tmp_path / "lock", "w")  # noqa: SIM115
    fcntl.flock(look, fcntl.LOCK_SH)
    monkeypatch.setattr("launch.lock.time.sleep", pause)
    with run_lock(tmp_path):
        assert len(pauses) == 2


def test_a_file_system_without_locks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is none here to try it on; this is what flock(2) says on Lustre, as it was mounted by default for long."""
    from ablations.config import ConfigError
    from data import disk
    from launch.lock import run_lock

    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr(fcntl, "lockf", refuse)
    with pytest.raises(ConfigError, match=r"cannot be locked \(Function not implemented\)"), run_lock(tmp_path):
        pass
    with pytest.raises(ValueError, match="cannot be locked"), disk.locked(tmp_path / "store/.lock"):
        pass


def slow_disk() -> None:
    """Each file of a checkpoint that the first rank writes takes 3 s."""
    from launch import checkpoint

    save = checkpoint.save_file

    def slowly(*what: Any) -> None:
        if os.environ.get("RANK", "0") == "0":
            time.sleep(3)
        save(*what)

    checkpoint.save_file = slowly


def test_a_storage_slower_than_patience_is_no_hang(corpus: str, store: Path, tmp_path: Path) -> None:
    (tmp_path / "data").symlink_to(store / "data")
    change = {"layout.patience": 2, "layout.hang": 2, "layout.save_every": 8, "train.tokens": 12 * 4 * 32}
    argv = ["--cell", "1", *words(corpus, tmp_path, **change)]
    done = Command(tmp_path / "printed", "launch.train", argv, prepare=slow_disk).wait()
    assert done.returncode == 0 and "hang" not in done.stdout + done.stderr, done


def test_ranks_leave_when_the_checkpoint_of_all_is_whole(corpus: str, store: Path, tmp_path: Path) -> None:
    """Under Slurm the first one to leave ends the others."""
    (tmp_path / "data").symlink_to(store / "data")
    argv = words(
        corpus, tmp_path, **{"train.tokens": 2000 * 4 * 32, "layout.micro_batch": 2, "layout.save_every": 10000}
    )
    run = from_args(argv).cells[1].dir
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    both = [
        Command(
            tmp_path / f"printed {rank}",
            "launch.train",
            ["--cell", "1", *argv],
            group | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            slow_disk,
        )
        for rank in range(2)
    ]
    try:
        end = time.monotonic() + 100
        while not ((run / "metrics.jsonl").exists() and (run / "metrics.jsonl").read_text().count("\n") > 5):
            assert time.monotonic() < end and all(process.running() for process in both)
            time.sleep(0.02)
        (run / "stop").write_text("leave")
        while all(process.running() for process in both):
            time.sleep(0.01)
        assert list(run.glob("checkpoints/step_*/checkpoint.json"))
        assert [process.wait(60).returncode for process in both] == [75, 75]
    finally:
        for process in both:
            process.kill()


def test_lines_that_a_power_loss_has_torn_are_written_anew(tmp_path: Path) -> None:
    """A file system may have the end of what was written last, and zeros or old blocks in place of its beginning."""
    from launch.log import Log

    whole = [json.dumps({"step": step, "loss": 1.5}) + "\n" for step in (1, 2, 3)]
    (tmp_path / "metrics.jsonl").write_bytes("".join(whole).encode() + b"\0" * 9 + b'\xff": 1.5}\n{"step": 5}\n{"st')
    Log(tmp_path, resolve(), "a run", 3).close()
    assert (tmp_path / "metrics.jsonl").read_text() == "".join(whole)


def test_a_strangers_links_are_not_followed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from launch.log import Log
    from launch.processes import Processes
    from launch.train import main
    from launch.watch import Watch, record_event

    words = ["POS=alibi", "SIZE=nano", f"OUT={tmp_path}"]
    run, mine = from_args(words).cells[1].dir, tmp_path / "mine"
    run.mkdir(parents=True)
    mine.write_text("private")
    for name in ("lock", "metrics.tmp", "metrics.jsonl.tmp", "heartbeat.json", "heartbeat.json.tmp", "events.jsonl"):
        (run / name).symlink_to(mine)
    (run / "train.log").symlink_to(mine)
    assert main(["--cell", "1", *words]) == 1
    assert f"{run / 'lock'}'. Files here are not written through symbolic links" in capsys.readouterr().err
    (run / "metrics.jsonl").symlink_to(mine)
    with pytest.raises(Damaged, match="metrics.jsonl is a symbolic link"):
        Log(run, resolve(), "a run", 0)
    (run / "metrics.jsonl").unlink()
    Log(run, resolve(), "a run", 0).close()
    with Watch(run, tmp_path, 9, 0, ["a"], hang=100, patience=100):
        record_event(run, 1, "slow", "said")
    with pytest.raises(OSError):
        Processes().run([sys.executable, "-c", "print('overwritten')"], run / "train.log", 1, threads=1)
    assert mine.read_text() == "private"


def test_two_output_roots_are_two_runs_to_wandb(tmp_path: Path) -> None:
    from launch.log import _wandb_id

    one, other = (_wandb_id(tmp_path / root / "nano" / "baseline,seed=1") for root in "ab")
    assert one != other and one == _wandb_id(tmp_path / "b/../a/nano/baseline,seed=1")
    assert one.startswith("nano-baseline-seed-1-")


def test_a_node_that_cannot_write_gets_as_far_as_preflight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which names it. On a real file system that is read-only."""
    from launch import preflight
    from launch.lock import run_lock

    if os.geteuid() or os.system(f"mount -t tmpfs -o ro tmpfs {tmp_path}"):
        pytest.skip("needs root to mount a file system")
    try:
        monkeypatch.setenv("RANK", "3")
        with run_lock(tmp_path):
            assert preflight._reason_not_writable(tmp_path) == "Read-only file system"
    finally:
        os.system(f"umount {tmp_path}")


def test_what_counts_is_on_the_disk_first(
    corpus: str, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lines of the log before the checkpoint that comes after them; `done` before W&B, which may wait for long."""
    cell = dataclasses.replace(study(corpus, tmp_path).cells[1], dir=tmp_path / "run")
    cell.dir.mkdir()
    settled: dict[str, str] = {}
    saves, finished, fsync, replace = [], [], os.fsync, os.replace

    def spy(file: int) -> None:
        name = os.readlink(f"/proc/self/fd/{file}")
        settled[name] = Path(name).read_text() if name.endswith("metrics.jsonl") else ""
        fsync(file)

    def check(old: Any, new: Any) -> None:
        if Path(new).name == "checkpoint.json":
            lines = settled.get(str(cell.dir / "metrics.jsonl"), "").count("\n")
            saves.append((json.loads(Path(old).read_text())["step"], lines))
        replace(old, new)

    class Mirror:
        def log(self, *_: Any, **__: Any) -> None: ...

        def finish(self) -> None:
            finished.append((cell.dir / "done").exists())

    monkeypatch.setattr(os, "fsync", spy)
    monkeypatch.setattr(os, "replace", check)
    monkeypatch.setattr("launch.log._start_wandb", lambda *_: Mirror())
    in_process(cell, store)
    assert saves == [(8, 8), (16, 16), (24, 24)] and finished == [True]
