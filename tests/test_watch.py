"""What runs beside the loop and before it: verdicts on nodes, refusal by arithmetic, heartbeat, hangs, stops."""

import dataclasses
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ablations import safe_files
from ablations.config import ConfigError, resolve
from launch import preflight
from launch.preflight import (
    MAX_CLOCK_DIFFERENCE,
    MIN_SHARED_BYTES,
    Node,
    check_fits_memory,
    checkpoint_bytes,
    unfit_nodes,
)
from launch.watch import STORAGE_SECONDS, Watch, stop_reason
from model.memory import estimate_memory
from tests.test_checkpoint import alone  # noqa: F401  # a fixture


def events(run_dir: Path) -> list[dict[str, Any]]:
    return safe_files.read_json_lines(run_dir / "events.jsonl", ["step", "event", "detail"])[0]


ROOT = Path(__file__).parents[1]
GOOD = Node(
    "n",
    matmul_speed=1e12,
    link_speed=1e9,
    free_memory=1.0,
    free_shm=1 << 30,
    free_disk=1 << 40,
    write_problem="",
    clock=1e9,
)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"matmul_speed": 0.5e12}, "a matrix product runs at 50% of the usual speed"),
        ({"link_speed": 0.1e9}, "its network runs at 10% of the usual speed"),
        ({"free_memory": 0.5}, "only 50% of a GPU's memory is free"),
        ({"free_shm": MIN_SHARED_BYTES - 1}, "/dev/shm has 63 MiB free"),
        ({"write_problem": "Read-only file system"}, "cannot write into the run directory (Read-only file system)"),
        ({"clock": 1e9 + 2 * MAX_CLOCK_DIFFERENCE}, "the clock is +60 s off"),
    ],
)
def test_a_bad_node_is_named_and_good_ones_are_not(change: dict, why: str) -> None:
    nodes = [dataclasses.replace(GOOD, host=f"node{i}", matmul_speed=1e12 * (1 + 0.05 * i)) for i in range(4)]
    assert unfit_nodes(nodes) == {}
    found = unfit_nodes([*nodes, dataclasses.replace(GOOD, host="bad", **change)])
    assert list(found) == ["bad"] and found["bad"].startswith(why[:20])


def test_one_node_alone_is_judged_by_what_needs_no_comparison() -> None:
    assert unfit_nodes([GOOD]) == {} == unfit_nodes([dataclasses.replace(GOOD, link_speed=0.0)])
    assert unfit_nodes([dataclasses.replace(GOOD, free_shm=0)])


def test_what_cannot_fit_is_refused_by_arithmetic_and_told_what_fits() -> None:
    check_fits_memory(resolve([("size", "nano")]), 1)
    big = resolve([("size", "1b3"), ("layout.micro_batch", 512), ("train.precision", "fp32")])
    with pytest.raises(ConfigError, match=r"the run needs .* GB on each rank, by estimate, of"):
        check_fits_memory(big, 1)
    with pytest.raises(ConfigError, match=r"layout.micro_batch=\d+ would need"):
        check_fits_memory(big, 64)  # ZeRO makes room


def test_ranks_on_one_machine_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine where one rank of the run just fits, and two do not."""
    run = resolve([("size", "125m"), ("layout.micro_batch", 4), ("train.precision", "fp32")])
    need = estimate_memory(run.model, 4, "fp32", run.layout.zero, 2, run.train.batch // 8, False, 1)["total"]
    monkeypatch.setattr(os, "sysconf", lambda name: int(1.2 * need) if name == "SC_PHYS_PAGES" else 1)
    check_fits_memory(run, 2)  # on a machine each
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="GB on each rank, by estimate"):
        check_fits_memory(run, 2)


def test_a_run_that_goes_on_needs_no_room_for_what_it_has(
    tmp_path: Path, alone: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With room for 3.5 checkpoints it begins, and after a requeue two of them are there."""
    run = resolve([("size", "nano"), ("layout.keep", 2), ("layout.eval_at", "0.5")])
    (milestone,) = run.milestones
    one = checkpoint_bytes(run)

    def free(copies: float) -> list[Node]:
        monkeypatch.setattr(preflight, "measure_node", lambda _: dataclasses.replace(GOOD, free_disk=int(copies * one)))
        return preflight.check_nodes(run, tmp_path, tmp_path)

    assert free(3.5)
    with pytest.raises(ConfigError, match="GB free; 3 more checkpoints and the weights at 1 shares"):
        free(3.0)
    for name in ("step_8", "step_16", f"weights_{milestone}"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
        (tmp_path / "checkpoints" / name / "checkpoint.json").write_text("{}")
    assert free(1.1)
    with pytest.raises(ConfigError, match="GB free; 1 more checkpoints need"):
        free(0.9)


def watch(
    folder: Path, rank: int = 0, hosts: tuple[str, ...] = ("a", "b"), patience: float = 60.0, hang: float = 5
) -> Watch:
    (folder / "run").mkdir(exist_ok=True)
    return Watch(folder / "run", folder, steps=100, rank=rank, hosts=hosts, hang=hang, patience=patience)


def until(condition: Callable[[], Any]) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def has_looked(w: Watch) -> None:
    """Wait until the thread of a watch has looked at everything once more, from beginning to end."""
    looks, look = [], w._read_stop_file

    def counted() -> str:
        reason = look()
        looks.append(reason)
        return reason

    w._read_stop_file = counted  # type: ignore[method-assign]
    until(lambda: len(looks) >= 2)


def test_the_heartbeat_says_where_a_run_is_and_goes_with_it(tmp_path: Path) -> None:
    path = tmp_path / "run/heartbeat.json"
    with watch(tmp_path) as w:
        beat = json.loads(path.read_text())
        assert beat["step"] == 0 and beat["steps"] == 100 and beat["nodes"] == ["a", "b"] and beat["pid"] == os.getpid()
        w.step_ended(7)
        w._write_heartbeat()
        assert json.loads(path.read_text())["step"] == 7
    assert not path.exists()
    with watch(tmp_path, rank=1):
        assert not path.exists()


def test_a_stop_file_is_heard(tmp_path: Path) -> None:
    with watch(tmp_path) as w:
        has_looked(w)
        assert not w.stop_reason
        (tmp_path / "run/stop").write_text("10 minutes left")
        until(lambda: w.stop_reason)
        assert "10 minutes left" in w.stop_reason
    assert not stop_reason(tmp_path)
    (tmp_path / "stop").write_text("everybody out")
    assert "everybody out" in stop_reason(tmp_path)


def test_a_stop_file_that_cannot_be_read_now_is_read_later(tmp_path: Path) -> None:
    """The thread that looks for it goes on: it is also what finds hangs."""
    with watch(tmp_path) as w:
        (tmp_path / "run/stop").mkdir()  # an error that is not "no such file", as of a network file system
        has_looked(w)
        (tmp_path / "run/stop").rmdir()
        (tmp_path / "run/stop").write_bytes(b"caf\xe9")
        until(lambda: w.stop_reason)
        assert "caf" in w.stop_reason and w.thread.is_alive()


def test_sigterm_asks_for_a_stop(tmp_path: Path) -> None:
    with watch(tmp_path) as w:
        os.kill(os.getpid(), signal.SIGTERM)
        until(lambda: w.stop_reason)
        assert w.stop_reason == "SIGTERM"
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_hang_leaves_the_stacks_and_the_right_exit_code(tmp_path: Path) -> None:
    """A process that makes quick steps and then none."""
    code = f"""
import time
from pathlib import Path
from launch.watch import Watch
def waits_for_ever():
    time.sleep(240)
with Watch(Path({str(tmp_path)!r}), Path({str(tmp_path.parent)!r}), 100, 3, ["a"] * 4, hang=5, patience=1.0) as w:
    for step in range(1, 20):
        w.step_ended(step)
    waits_for_ever()
"""
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 75, process.stderr  # before its sleep is over: then it would be 0
    stacks = (tmp_path / "stacks/rank_3.txt").read_text()
    assert "waits_for_ever" in stacks and "after step 19" in stacks
    assert events(tmp_path)[-1]["event"] == "hang"


@pytest.mark.parametrize(("disk", "dump_timeout", "code"), [("refuses", 60, 75), ("hangs", 3, 1)])
def test_a_hang_ends_also_where_nothing_can_be_written(tmp_path: Path, disk: str, dump_timeout: int, code: int) -> None:
    """A network file system that is away is what makes steps hang."""
    if disk == "refuses":
        (tmp_path / "stacks").touch()  # a folder cannot be made there
    else:
        (tmp_path / "stacks").mkdir()
        os.mkfifo(tmp_path / "stacks/rank_3.txt")  # opening it waits for ever
    script = f"""
import time
from pathlib import Path
from launch import watch
watch.DUMP_TIMEOUT = {dump_timeout}
with watch.Watch(Path({str(tmp_path)!r}), Path({str(tmp_path.parent)!r}), 9, 3, ["a"] * 4, hang=5, patience=0.2) as w:
    for step in range(1, 9):
        w.step_ended(step)
    time.sleep(240)
"""
    process = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == code, process.stderr
    assert events(tmp_path)[-1]["event"] == "hang"


def test_a_process_that_was_stopped_for_a_while_is_no_hang(tmp_path: Path) -> None:
    """As by Ctrl-Z and `fg`, or by a machine that is paused, in the middle of a step."""
    code = f"""
import time
from pathlib import Path
from launch.watch import Watch
with Watch(Path({str(tmp_path)!r}), Path({str(tmp_path.parent)!r}), 100, 3, ["a"] * 4, hang=5, patience=3.0) as w:
    for step in range(1, 6):
        w.step_ended(step)
    print("trains", flush=True)
    end = time.thread_time() + 0.05  # of computing, which does not go on while the process is stopped
    while time.thread_time() < end:
        pass
    w.step_ended(6)
"""
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE)
    assert process.stdout and process.stdout.readline() == b"trains\n"
    os.kill(process.pid, signal.SIGSTOP)
    time.sleep(4)  # more than its patience
    os.kill(process.pid, signal.SIGCONT)
    assert process.wait(60) == 0, events(tmp_path)
    assert not events(tmp_path)


def test_slow_steps_are_no_hang(tmp_path: Path) -> None:
    hangs: list[float] = []
    with watch(tmp_path, patience=0.5, hang=1000) as w:
        w._end_hung_process = hangs.append  # type: ignore[method-assign]  # it would end this process
        for step in range(1, 6):
            time.sleep(0.2)  # a thousand of them are minutes
            w.step_ended(step)
        assert w.limit == 1000 * statistics.median(w.durations) > 60.0
        until(lambda: time.monotonic() > w.last_progress + w.patience)
        has_looked(w)
    assert not hangs


def test_storage_has_a_clock_of_its_own(tmp_path: Path) -> None:
    hangs: list[float] = []
    with watch(tmp_path, patience=0.5) as w:
        w._end_hung_process = hangs.append  # type: ignore[method-assign]  # it would end this process
        for step in range(1, 6):
            w.step_ended(step)
        with w.allow_storage_time():
            assert w.limit == STORAGE_SECONDS
            until(lambda: time.monotonic() > w.last_progress + w.patience)  # longer than a step may take
            has_looked(w)
            stored = time.monotonic()
        assert w.limit == max(0.5, 5 * statistics.median(w.durations)) and w.last_progress >= stored
    assert not hangs


def test_slowness_is_said_and_the_slow_rank_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    w = watch(tmp_path, hosts=("a", "b", "c"))
    for _ in range(20):
        w.record_speed(1000.0, [1.0, 1.0, 1.0])
    for _ in range(9):
        w.record_speed(900.0, [1.0, 1.0, 1.2])
    w.record_speed(100.0, [1.0, 1.0, 9.0])  # once is nothing: a save, a neighbour
    assert events(tmp_path / "run") == []
    for _ in range(9):
        w.record_speed(500.0, [1.0, 1.1, 2.2])
    (said,) = events(tmp_path / "run")  # once until it is over
    assert said["event"] == "slow" and "500 tokens/s, usually 1,000; rank 2 on c computes 2.00 times" in said["detail"]
    for _ in range(20):
        w.record_speed(1000.0, [1.0, 1.0, 1.0])
    for _ in range(9):
        w.record_speed(500.0, [1.0, 1.0, 1.0])
    assert len(events(tmp_path / "run")) == 2 and "rank" not in events(tmp_path / "run")[1]["detail"]
