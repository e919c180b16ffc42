"""Where runs stand, from files alone."""

import ast
import contextlib
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from ablations import config, machine, safe_files
from ablations.__main__ import main as from_plan
from ablations.config import ConfigError
from ablations.rundir import State
from ablations.safe_files import last_undamaged_json_line
from ablations.status import duration_text, run_state, status_table
from ablations.study import from_args
from ablations.words import change_to_checkout
from launch import local, train
from launch.lock import run_lock
from launch.processes import CommandFailed, Processes, child_environment, gpu_count
from launch.slurm import attempts as slurm_attempts
from tests.conftest import mark_as_trained

ROOT = Path(__file__).parents[1]
NOW = 1_800_000_000.0


def line(path: Path, *rows: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as f:
        f.writelines(json.dumps(r) + "\n" for r in rows)


def metrics(folder: Path, step: int) -> None:
    """As launch/train.py writes them."""
    line(
        folder / "metrics.jsonl",
        *(
            {
                "step": s,
                "tokens": s * 2048,
                "loss": 8.3 - s / 100,
                "lr": 1e-3,
                "grad_norm": 1.0,
                "tokens_per_second": 2048.0,
                "seconds": float(s),
            }
            for s in range(8, step + 1, 8)
        ),
    )


def beat(folder: Path, at: float, step: int) -> None:
    """As launch/watch.py writes them."""
    line(
        folder / "heartbeat.json",
        {"time": at, "step": step, "nodes": ["node1", "node2"], "ranks": 4, "host": "node1", "pid": 7, "job": "71"},
    )


START = {"event": "start", "job": "70_1", "restart": 0, "nodes": "node[1-2]", "step": 0}
END = {"event": "end", "job": "70_1", "step": 64, "code": 75, "how": "time limit", "again": True}


@pytest.mark.parametrize(
    ("attempts", "heartbeat", "files", "expected"),
    [
        ([], None, [], {"state": "not started"}),
        ([], None, ["run.json"], {"state": "stopped"}),
        ([{"time": -9, "event": "submitted", "job": "70_1"}], None, [], {"state": "queued", "why": "job 70_1"}),
        ([{"time": -9} | START], None, [], {"state": "starting", "silent": 9.0, "nodes": "node[1-2]"}),
        ([{"time": -1000} | START], None, [], {"state": "stalled", "silent": 1000.0}),
        (
            [{"time": -1000} | START],
            (-3, 70),
            [],
            {
                "state": "running",
                "step": 70,
                "silent": 3.0,
                "nodes": "node1,node2",
                "left": (512 - 64) * 1.0,
                "attempts": 1,
            },
        ),
        ([{"time": -1000} | START], (-90, 70), [], {"state": "stalled", "step": 70, "silent": 90.0}),
        # its node's clock may be ahead of ours, but not by more than Slurm stands: that clock has been set back since
        ([{"time": -1000} | START], (+200, 70), [], {"state": "running", "step": 70}),
        ([{"time": -1000} | START], (+4000, 70), [], {"state": "stalled", "step": 70}),
        # a heartbeat of the attempt before says nothing of this one
        ([{"time": -1000} | START, {"time": -5} | START], (-90, 70), [], {"state": "starting", "attempts": 2}),
        ([{"time": -1000} | START, {"time": -5} | END], None, [], {"state": "queued", "why": "time limit at step 64"}),
        (
            [{"time": -1000} | START, {"time": -5} | END | {"how": "cancelled", "again": False}],
            None,
            ["run.json"],
            {"state": "stopped", "why": "cancelled at step 64"},
        ),
        ([{"time": -1000} | START], (-3, 70), ["failed"], {"state": "failed", "why": "failed"}),
        ([{"time": -1000} | START], None, ["done"], {"state": "trained, not evaluated"}),
        ([{"time": -1000} | START], None, ["done", "eval.json"], {"state": "finished", "bits_per_byte": 2.5}),
    ],
)
def test_state(tmp_path: Path, attempts: list, heartbeat: Any, files: list[str], expected: dict[str, Any]) -> None:
    cell = from_args(["POS=alibi", "SIZE=nano", f"OUT={tmp_path}"]).cells[1]
    for row in attempts:
        line(cell.dir / "attempts.jsonl", row | {"time": NOW + row["time"]})
    if heartbeat:
        beat(cell.dir, NOW + heartbeat[0], heartbeat[1])
    metrics(cell.dir, 64)
    content = {"eval.json": '{"bits_per_byte": {"value": 2.5}, "zero_shot": null}'}
    content["run.json"] = '{"fingerprint": "0", "config": {}}'
    for name in files:
        (cell.dir / name).write_text(content.get(name, name))
    if "done" in files:
        mark_as_trained(cell.dir)
    found = run_state(cell, NOW)
    assert {k: found.get(k) for k in expected} == expected and found["state"] in State


def test_a_run_that_left_while_its_job_was_killed_is_not_starting(tmp_path: Path) -> None:
    """`scancel` where Slurm waits too short for the job to write how it ended: the ranks have saved and removed their
    heartbeat."""
    cell = from_args(["POS=alibi", "SIZE=nano", f"OUT={tmp_path}"]).cells[1]
    line(cell.dir / "attempts.jsonl", {"time": NOW - 300} | START)
    metrics(cell.dir, 64)
    for silent, expected in ((9, "running"), (70, "stalled"), (400, "starting")):  # the last: rows of an attempt before
        os.utime(cell.dir / "metrics.jsonl", (NOW - silent,) * 2)
        assert run_state(cell, NOW)["state"] == expected


def test_a_run_on_this_machine_is_known_by_its_lock_and_a_torn_line_is_no_line(tmp_path: Path) -> None:
    cell = from_args(["POS=alibi", "SIZE=nano", f"OUT={tmp_path}"]).cells[1]
    line(cell.dir / "attempts.jsonl", {"time": 5.0} | START, {"time": 6.0} | END)
    with open(cell.dir / "attempts.jsonl", "a") as f:
        f.write('{"time": 7, "eve')
    assert run_state(cell)["state"] == "queued"
    with open(cell.dir / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert run_state(cell)["state"] == "starting"
        beat(cell.dir, time.time() + 1, 3)
        assert run_state(cell)["state"] == "running"
    assert run_state(cell)["state"] == "queued"


def test_a_clock_that_was_set_back_does_not_stall_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cell = from_args(["POS=alibi", "SIZE=nano", f"OUT={tmp_path}"]).cells[1]
    beat(cell.dir, time.time() - 3, 70)  # of a launch that was killed
    with run_lock(cell.dir):
        assert run_state(cell)["state"] == "starting"
        os.utime(cell.dir / "lock", (time.time() + 7200,) * 2)  # since when, by the clock as it was
        beat(cell.dir, time.time() - 3, 71)
        assert run_state(cell)["state"] == "running" and run_state(cell)["step"] == 71
    (cell.dir / "heartbeat.json").unlink()
    beat(cell.dir, time.time() + 7200, 71)
    monkeypatch.setattr(slurm_attempts, "is_locked", lambda folder: True)  # by a node that is gone
    assert not slurm_attempts.is_trained_by_another_job(cell.dir)


@pytest.mark.parametrize(("text", "step"), [('{"step": 8, "lo', None), ('{"step": 8}\n{"step": 16, "lo', 8)])
def test_a_log_that_a_kill_has_cut_is_read_as_far_as_it_is_whole(tmp_path: Path, text: str, step: int | None) -> None:
    (tmp_path / "metrics.jsonl").write_text(text)
    assert last_undamaged_json_line(tmp_path / "metrics.jsonl")[0].get("step") == step


def test_of_two_commands_that_begin_a_run_at_once_one_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = from_args(["POS=alibi", "SIZE=nano", f"OUT={tmp_path}"])
    cell, asked = study.cells[1], []

    def command(words: list[str], log: Path, ranks: int, threads: int) -> None:
        asked.append(words[2])
        if len(asked) == 1:  # the other one has taken the lock since we looked, and finishes soon
            lock = open(cell.dir / "lock", "w")  # noqa: SIM115
            fcntl.flock(lock, fcntl.LOCK_EX)

            def finish() -> None:
                mark_as_trained(cell.dir)
                lock.close()

            threading.Timer(0.2, finish).start()
            raise CommandFailed("another process is training")

    processes = Processes()
    monkeypatch.setattr(processes, "run", command)
    local.finish_run(study, cell, {}, processes)
    assert asked == ["launch.train", "eval"]


def test_a_finished_run_that_cannot_be_judged_again_is_named_and_stops_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = from_args(["POS=alibi", "SIZE=nano", "SEEDS=1", f"OUT={tmp_path}"])
    for cell in study.cells:
        mark_as_trained(cell.dir)
        (cell.dir / "eval.json").write_text("{}")
    monkeypatch.setattr(local, "prepare_missing_data", lambda *_: None)
    monkeypatch.setattr(local, "describe_epochs", lambda _: [])
    failures = sorted(local.run_study(study))
    assert [line.split(":")[0] for line in failures] == ["pos=alibi, seed 1", "pos=learned, seed 1"]
    assert all("has no run.json" in line for line in failures)


def test_notes_on_the_text_are_not_said_again_after_its_preparation_has_said_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    note, epochs, caution = "note: web: größer", "web: 100.0% of 1M tokens is 0.5 epochs", "NOTE: judged elsewhere"
    monkeypatch.setattr(local, "prepare_missing_data", lambda *_: print(note))  # as python -m data.prepare does
    monkeypatch.setattr(local, "describe_epochs", lambda _: [epochs, note, caution])
    monkeypatch.setattr(local, "finish_runs", lambda *_: [])
    assert local.run_study(from_args(["POS=alibi", "SIZE=nano", "SEEDS=1", f"OUT={tmp_path}"])) == []
    said = capsys.readouterr().out
    assert said.count(note) == said.count(epochs) == said.count(caution) == 1


@pytest.mark.parametrize("listed", [True, False], ids=["the driver's list", "device files alone"])
@pytest.mark.parametrize(("visible", "ranks"), [(None, 4), ("0,2", 2), ("3", 1), ("", 1), ("0,1,2,3,4,5", 4)])
def test_a_rank_for_each_gpu_that_may_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, visible: str | None, ranks: int, listed: bool
) -> None:
    monkeypatch.setattr(machine, "DRIVER", tmp_path / "gpus")
    monkeypatch.setattr(machine, "DEVICES", tmp_path / "dev")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("MEGAHOUR_GPU", raising=False)
    assert not machine.has_gpu()
    for i in range(4):
        (tmp_path / (f"gpus/0000:0{i}" if listed else f"dev/nvidia{i}")).mkdir(parents=True)
    (tmp_path / "dev/nvidiactl").mkdir(parents=True)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert gpu_count() == ranks and machine.has_gpu() == (visible != "")


def test_every_rank_knows_how_many_share_its_machine(tmp_path: Path) -> None:
    cell = from_args(["POS=alibi", "SIZE=nano", f"OUT={tmp_path}"]).cells[1]
    cell.dir.mkdir(parents=True)
    names = ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "LOCAL_RANK")
    command = [sys.executable, "-c", f"import os; print(*map(os.environ.get, {names}))"]
    Processes().run(command, cell.dir / "log", 2, threads=1)
    assert sorted((cell.dir / "log").read_text().splitlines()) == ["2 2 0", "2 2 1"]


def test_a_process_alone_waits_for_no_ranks_that_the_environment_speaks_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a pod, or a shell that torchrun has started."""
    left = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    left += ("TORCHELASTIC_RUN_ID", "SLURM_JOB_ID")
    for name in left:
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("KEPT", "1")
    command = [sys.executable, "-c", f"import os; print(*sorted(set({[*left, 'KEPT']}) & os.environ.keys()))"]
    Processes().run(command, tmp_path / "log", 1, threads=1)
    assert (tmp_path / "log").read_text().split() == ["KEPT"]


LEAVES = """
import pathlib, signal, sys, time
run = pathlib.Path(sys.argv[1])
def save(*_):
    (run / "saved").touch()
    sys.exit(75)
signal.signal(signal.SIGTERM, signal.SIG_IGN if sys.argv[2] == "deaf" else save)
(run / "started").write_text("straße")
time.sleep(240)
"""


@pytest.mark.parametrize(
    ("kind", "number", "signals"),
    [
        ("hears", signal.SIGINT, 1),
        ("deaf", signal.SIGINT, 2),
        ("hears", signal.SIGTERM, 1),
        ("hears", signal.SIGHUP, 1),
    ],
)
def test_ctrl_c_stops_all_runs_and_a_second_one_at_once(
    tmp_path: Path, kind: str, number: signal.Signals, signals: int
) -> None:
    """Four runs, one at a time, each as a process that saves when it is asked to leave, or that does not hear."""
    study = from_args(["POS=alibi", "SIZE=nano", f"OUT={tmp_path}"])
    code = f"""
import signal, sys
from launch import local
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # it is ignored where the tests run under nohup
local.prepare_missing_data, local.describe_epochs, local.runs_at_a_time = lambda *_: None, lambda _: [], lambda _: 1
def finish(study, cell, phases, processes):
    cell.dir.mkdir(parents=True)
    processes.run([sys.executable, "-c", {LEAVES!r}, str(cell.dir), "{kind}"], cell.dir / "train.log", 1, 1)
local.finish_run = finish
sys.exit(local.main({study.words!r}))
"""
    printed = tmp_path / "printed"
    with open(printed, "wb") as output:
        command = subprocess.Popen(
            [sys.executable, "-c", code], cwd=ROOT, start_new_session=True, stdout=output, stderr=subprocess.STDOUT
        )
    end = time.monotonic() + 120
    while not (study.cells[0].dir / "started").exists():
        assert command.poll() is None and time.monotonic() < end
        time.sleep(0.02)
    # as a terminal does at Ctrl-C, or when it closes, to every process of the command; `kill` to this one
    (os.kill if number == signal.SIGTERM else os.killpg)(command.pid, number)
    if signals == 2:
        while "Ctrl-C once more" not in printed.read_text():
            assert command.poll() is None and time.monotonic() < end
            time.sleep(0.02)
        assert command.poll() is None  # it waits for what is being saved
        os.killpg(command.pid, signal.SIGINT)
    assert command.wait(120) == 130
    said = printed.read_text()
    assert "Ctrl-C once more" in said
    assert (study.cells[0].dir / "saved").exists() == (kind == "hears")
    assert ("the same command continues" in said) == (kind == "hears")
    assert not any((cell.dir / "started").exists() for cell in study.cells[1:])
    while processes_of(tmp_path):  # what is killed takes a moment to be gone
        assert time.monotonic() < end + 120
        time.sleep(0.02)


@pytest.mark.parametrize("module", ["launch.local", "data.prepare"])
def test_ctrl_c_while_data_is_prepared_is_one_sentence(tmp_path: Path, module: str) -> None:
    text, out = tmp_path / "тексты.jsonl", tmp_path / "out"
    text.write_text("".join(json.dumps({"text": f"Ein Satz, Nummer {i}: ∑{i * 7}."}) + "\n" for i in range(20_000)))
    words = ["POS=alibi", f"DATA={text}", "SIZE=nano", f"OUT={out}"]
    if module == "data.prepare":
        words = [str(text), "--vocab", "400", "--workers", "2", "--store", str(out / "data")]
    code = "import runpy, signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    code += f"sys.argv = {['x', *words]!r}; runpy.run_module({module!r}, run_name='__main__')"
    command = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    end = time.monotonic() + 120
    while not (out / "data").exists():
        assert command.poll() is None and time.monotonic() < end
        time.sleep(0.02)
    os.killpg(command.pid, signal.SIGINT)
    said = command.communicate(timeout=120)[0].decode()
    assert command.returncode == 130 and "Traceback" not in said
    assert said.endswith("\ninterrupted; the same command continues\n") and said.count("interrupted") == 1


def processes_of(folder: Path) -> list[str]:
    """The command lines of processes that name a folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found.append(path.read_text(errors="replace"))
    return [line for line in found if str(folder) in line]


def test_a_study_begun_where_there_is_bf16_goes_on_where_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same command, the same directories, the same runs; and a new arm is trained as its baseline was."""
    words = ["POS=alibi", "SIZE=nano", f"OUT={tmp_path}"]
    monkeypatch.setattr(config, "has_bf16", lambda: True)
    begun = from_args(words)
    assert begun.base.train.precision == "bf16"
    first = begun.cells[0]
    first.dir.mkdir(parents=True)
    safe_files.write_json(first.dir / "run.json", {"fingerprint": first.run.fingerprint, "config": first.config})
    monkeypatch.setattr(config, "has_bf16", lambda: False)
    assert from_args(["POS=alibi", "SIZE=nano", f"OUT={tmp_path / 'new'}"]).base.train.precision == "fp32"
    for later in (from_args(words), from_args(["POS=none", "SIZE=nano", f"OUT={tmp_path}"])):
        assert {cell.run.train.precision for cell in later.cells} == {"bf16"}
        later.cells[0].check_same_configuration()
    assert [cell.run for cell in from_args(words).cells] == [cell.run for cell in begun.cells]
    said = from_args([*words, "SET=train.precision=bf16"])  # the same directories, also where it is said
    assert [(cell.run, cell.dir) for cell in said.cells] == [(cell.run, cell.dir) for cell in begun.cells]
    with pytest.raises(ConfigError, match="train.precision: bf16 there, fp32 now"):
        from_args([*words, "SET=train.precision=fp32"]).cells[0].check_same_configuration()


def test_a_locale_that_is_not_utf_8_changes_no_word(tmp_path: Path) -> None:
    env = os.environ | {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}
    command = [sys.executable, "-m", "launch.local", "POS=alibi", "DATA=straße.jsonl", f"OUT={tmp_path}"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True)
    assert done.returncode == 2 and "straße.jsonl" in done.stderr.decode()
    started = subprocess.run([*command[:1], "-c", "print('≈')"], env=env | child_environment(), capture_output=True)
    assert started.stdout.decode() == "≈\n"
    said = subprocess.run(["make", "-pn", "-f", str(ROOT / "Makefile"), "help"], cwd=ROOT, capture_output=True)
    assert b"\nPYTHONUTF8 := 1\n" in said.stdout and "export PYTHONUTF8=1" in (ROOT / "launch/run.sh").read_text()


def test_an_out_that_cannot_be_written_is_named_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() or os.system(f"mount -t tmpfs -o ro tmpfs {disk}"):
        pytest.skip("needs root to mount a file system")
    monkeypatch.setattr(local, "prepare_missing_data", lambda *_: None)
    monkeypatch.setattr(local, "describe_epochs", lambda _: [])
    try:
        words = ["POS=alibi", "SIZE=nano", "SEEDS=1", f"OUT={disk}"]
        assert from_plan(["status", *words]) == 0
        failures = local.run_study(from_args(words))
        assert len(failures) == 2
        assert all(str(disk) in line and "Choose an OUT that can be written" in line for line in failures), failures
        assert train.main(["--cell", "0", *words]) == 1
        said = capsys.readouterr().err
        assert str(disk) in said and "Choose an OUT that can be written" in said and "Traceback" not in said
    finally:
        os.system(f"umount {disk}")


def test_words_mean_the_same_from_any_folder(tmp_path: Path) -> None:
    """Training runs in the checkout."""
    command = [sys.executable, "-m", "ablations", "plan", "POS=alibi", "SIZE=nano", "SEEDS=1"]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    for out, where in ((["OUT=mine"], f"{tmp_path}/mine/nano"), ([], " runs/nano")):
        done = subprocess.run([*command, *out], cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
        assert done.stdout.count(f"{where}/baseline,seed=1") == 1
    words = change_to_checkout(["OUT=runs", "SET=train.lr=1e-3"])
    assert words == ["OUT=runs", "SET=train.lr=1e-3"] and not list(tmp_path.iterdir())
    with contextlib.chdir(tmp_path):
        assert change_to_checkout(["RUNS=a /b", "NOISE=c"]) == [f"RUNS={tmp_path}/a /b", f"NOISE={tmp_path}/c"]
        assert Path.cwd() == ROOT


def test_a_study_whose_report_fails_has_not_succeeded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(local, "run_study", lambda study: [])  # so that the report has nothing to say
    assert local.main(["POS=alibi", f"OUT={tmp_path}"]) == 1 and "There is no report" in capsys.readouterr().out


COUNTING = """
import collections, os, sys
opened = collections.Counter()
def count(event, arguments):
    if event == "open" and isinstance(arguments[0], str) and arguments[0].startswith(sys.argv[1]):
        opened[os.path.basename(arguments[0])] += 1
sys.addaudithook(count)
from ablations.__main__ import main
code = main(["status", *sys.argv[2:]])
heavy = {"torch", "numpy", "scipy", "rich"} & sys.modules.keys()
print(dict(opened), sorted(heavy), len([name for name in sys.modules if name.split(".")[0] in ("ablations", "model")]))
sys.exit(code)
"""


def test_the_status_of_200_runs_reads_each_small_file_once_without_torch_or_slurm(tmp_path: Path) -> None:
    words = ["POS=alibi", "SIZE=nano", "SEEDS=100", f"OUT={tmp_path}"]
    study = from_args(words)
    assert len(study.cells) == 200
    for i, cell in enumerate(study.cells):
        metrics(cell.dir, 512)
        line(cell.dir / "attempts.jsonl", *([{"time": time.time()} | START] * (1 + i % 5)))
        beat(cell.dir, time.time() + 60, 300)
    command = [sys.executable, "-c", COUNTING, str(tmp_path), *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"PATH": ""})
    assert done.stdout.count(" running ") == 200 and done.stdout.count("node1,node2") == 200, done.stderr[-500:]
    opened, heavy, modules = re.fullmatch(r"(\{.*\}) (\[.*\]) (\d+)", done.stdout.splitlines()[-1]).groups()  # type: ignore[union-attr]
    small = ("metrics.jsonl", "attempts.jsonl", "heartbeat.json", "run.json", "done", "eval.json", "lock")
    times = ast.literal_eval(opened)
    assert {name: times.pop(name, 0) // 200 for name in small} == dict.fromkeys(small, 1)
    assert sum(times.values()) <= 1 and heavy == "[]" and int(modules) < 40, (times, heavy, modules)


def test_damage_is_named_and_takes_down_no_other_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    study = from_args(["POS=alibi", "SIZE=nano", "SEEDS=5", f"OUT={tmp_path}"])
    folders = [cell.dir for cell in study.cells]
    for folder in folders:
        folder.mkdir(parents=True)
    (folders[0] / "run.json").write_text("[]")
    (folders[0] / "checkpoints/step_8").mkdir(parents=True)
    (folders[1] / "failed").write_bytes(b"no caf\xe9 \x1b]0;owned\x07\x1b[31m")
    (folders[2] / "attempts.jsonl").write_text('{"time": 1, "job": "7_1"}\n{"event": "end", "job": "7_1"}\n')
    metrics(folders[3], 16)
    with open(folders[3] / "metrics.jsonl", "ab") as file:
        file.write(b'{"step": 24, "loss": 1.\xff}\n')
    mark_as_trained(folders[4])
    (folders[4] / "eval.json").write_text('{"bits_per')
    mark_as_trained(folders[5])
    (folders[5] / "weights.safetensors").unlink()
    (folders[6] / "run.json").write_bytes(b"\xff\xfe")
    beat(folders[7], NOW, 3)
    (folders[7] / "heartbeat.json").write_text('{"time": "noon"}')
    line(folders[7] / "attempts.jsonl", {"time": time.time()} | START)

    shown = status_table(study)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", shown)
    lines = dict(enumerate(shown.splitlines()[2:]))
    expected = {
        0: ("damaged", "run.json"),
        1: ("failed", r"no caf� \x1b]0;owned\x07\x1b[31m"),
        2: ("stopped", "attempts.jsonl is damaged: line 1 left out"),
        3: ("not started", "metrics.jsonl is damaged in its last lines"),
        4: ("trained, not evaluated", "eval.json is damaged"),
        5: ("damaged", "weights.safetensors is missing"),
        6: ("damaged", "run.json is damaged"),
        7: ("starting", ""),
        8: ("not started", ""),
    }
    for i, (name, why) in expected.items():
        assert f" {name}" in lines[i] and why in lines[i], (i, lines[i])
    assert from_plan(["plan", *study.words]) == 0 and "run.json" not in capsys.readouterr().err

    worked = []
    monkeypatch.setattr(local, "prepare_missing_data", lambda *_: None)
    monkeypatch.setattr(local, "describe_epochs", lambda _: [])
    monkeypatch.setattr(
        local, "finish_run", lambda study, cell, phases, processes: worked.append(study.cells.index(cell))
    )
    failures = sorted(local.run_study(study))
    assert len(failures) == 2 and sorted(worked) == [1, 2, 3, 4, 6, 7, 8, 9]
    assert f"{folders[5]}/weights.safetensors" in failures[0] and f"{folders[0]}/run.json is damaged" in failures[1]
    assert (folders[6] / "damaged_run.json").exists()  # nothing was trained there yet: it begins anew
    assert not (folders[6] / "run.json").exists()


def test_numbers_that_no_run_has_are_damage(tmp_path: Path) -> None:
    """An integer of JSON may be larger than any float, and a time may lie before every heartbeat."""
    study = from_args(["POS=alibi", "SEEDS=1", "SIZE=atto", "TOKENS=8K", f"OUT={tmp_path}"])
    folder = study.cells[0].dir
    large = "1" + "0" * 400
    for file, rows in {
        "metrics.jsonl": ['{"step": 1, "loss": %s}', '{"step": %s, "loss": 2}', '{"step": 1, "loss": 1e308}'],
        "attempts.jsonl": ['{"event": "start", "job": "1", "time": %s}', '{"event": "end", "job": "1", "step": %s}'],
        "run.json": ['{"fingerprint": "a", "config": {}, "seed": %s}'],
        "done": ['{"steps": %s}'],
    }.items():
        for row in rows:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / file).write_text(row.replace("%s", large) + "\n")
            assert f"{file} is damaged" in status_table(study), row
        (folder / file).unlink()
    line(folder / "attempts.jsonl", {"time": -1e30} | START)
    assert run_state(study.cells[0])["state"] == State.STALLED


def test_the_table_says_only_what_there_is(tmp_path: Path) -> None:
    study = from_args(["POS=alibi", "SIZE=nano", "SEEDS=1", f"OUT={tmp_path}"])
    assert status_table(study).splitlines()[1].split() == ["run", "state"]
    metrics(study.cells[0].dir, 16)
    assert status_table(study).splitlines()[1].split() == ["run", "state", "step", "loss", "tokens/s"]


def test_a_small_screen_shows_first_what_needs_a_look(tmp_path: Path) -> None:
    study = from_args(["POS=alibi", "SIZE=nano", "SEEDS=10", f"OUT={tmp_path}"])
    mark_as_trained(study.cells[9].dir)
    for i, reason in {3: "the disk is full\nof logs", 17: "spike"}.items():
        study.cells[i].dir.mkdir(parents=True)
        (study.cells[i].dir / "failed").write_text(reason)
    whole, small = status_table(study).splitlines(), status_table(study, 60, 7).splitlines()
    assert whole[-1] == "20 runs: 2 failed, 1 trained, not evaluated, 17 not started" and len(whole) == 23
    assert len(small) == 6 and max(map(len, small)) <= 60 and small[-1].startswith(whole[-1][:40])
    assert [line.split()[0] for line in small[2:5]] == ["3", "9", "17"] and "the disk" in small[2]


def test_durations() -> None:
    assert [duration_text(s) for s in (0, 75, 4000, 200_000)] == ["0:00", "1:15", "1 h 06 min", "2 d 7 h"]
