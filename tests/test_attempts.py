"""What launch/run.sh does next, decided from files; what launch/submit.py asks sbatch for. tests/slurm has the rest."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ablations.config import ConfigError
from ablations.site import find, site
from ablations.status import attempts, last_checkpoint
from ablations.study import from_args
from launch import attempts as launch_attempts
from launch.attempts import PREEMPTED, REQUEUED, end, in_vain, start, write
from launch.submit import _ranges, with_mtbf

ROOT = Path(__file__).parents[1]


def began(folder: Path, job: str, step: int, *hows: str) -> None:
    """Attempts that began at `step` and ended so; "" is an end without a word."""
    folder.mkdir(parents=True, exist_ok=True)
    for how in hows:
        write(folder, event="start", job=job, step=step)
        if how:
            write(folder, event="end", job=job, step=step, how=how, again=True)


@pytest.mark.parametrize(
    ("hows", "n"),
    [
        ((), 0),
        (("srun's exit code 1",), 1),
        (("", "", ""), 3),  # power losses
        (("time limit", PREEMPTED, "", REQUEUED), 2),  # Slurm's own doing is not the run's fault
    ],
)
def test_attempts_in_vain(tmp_path: Path, hows: tuple[str, ...], n: int) -> None:
    began(tmp_path, "6_0", 0, "", "")  # another submission: asking again is asking anew
    began(tmp_path, "7_0", 0, "", "")  # got as far as step 64
    began(tmp_path, "7_0", 64, *hows)
    assert in_vain(tmp_path, "7_0", 64) == n


def test_a_checkpoint_without_its_manifest_is_none(tmp_path: Path) -> None:
    for step, whole in ((64, True), (128, False)):
        (tmp_path / f"checkpoints/step_{step}").mkdir(parents=True)
        if whole:
            (tmp_path / f"checkpoints/step_{step}/checkpoint.json").write_text("{}")
    assert last_checkpoint(tmp_path) == 64


@pytest.fixture
def cell(tmp_path: Path) -> Any:
    return from_args(["POS=alibi", "SIZE=nano", f"OUT={tmp_path}"]).cells[1]


def running(monkeypatch: pytest.MonkeyPatch, **said: Any) -> list[tuple[str, set[str]]]:
    """What Slurm says of the job; returns the requeues that are asked for."""
    asked: list[tuple[str, set[str]]] = []
    now = {"state": "RUNNING", "reason": "None", "restarts": 0, "preempted": False, "excluded": set()} | said
    monkeypatch.setattr(launch_attempts, "slurm", lambda job: now)
    monkeypatch.setattr(launch_attempts, "requeue", lambda job, nodes: asked.append((job, nodes)))
    monkeypatch.setattr(launch_attempts, "expand", lambda nodes: set(nodes.split(",")) - {""})
    monkeypatch.setenv("SLURM_JOB_NODELIST", "node1,node2")
    return asked


@pytest.mark.parametrize(
    ("files", "code", "told", "said", "how", "again"),
    [
        (["done"], 0, "", {}, "finished", False),
        (["done"], 143, "TERM", {"state": "COMPLETING"}, "finished", False),
        ([], 75, "USR1", {}, "warned of the time limit", True),
        ([], 143, "TERM", {}, PREEMPTED, True),
        ([], 143, "TERM", {"state": "COMPLETING", "reason": "TimeLimit"}, "time limit", True),
        ([], 75, "", {"preempted": True}, PREEMPTED, True),
        ([], 143, "LIMIT", {"state": "COMPLETING", "restarts": 1}, "time limit", True),
        ([], 143, "TERM", {"state": "COMPLETING"}, "cancelled", False),
        ([], 143, "TERM", {"state": "COMPLETING", "restarts": 1}, REQUEUED, False),
        ([], 137, "", {}, "srun's exit code 137", True),
        ([], 1, "", {"state": "unknown"}, "srun's exit code 1", True),  # the controller is busy
        (["failed"], 1, "", {}, "failed", False),
        (["../../stop"], 143, "", {}, "killed", False),
        (["../../bad_nodes"], 143, "", {}, "bad nodes: node2", True),
        (["train.log"], 2, "", {}, "failed", False),
        (["train.log"], 143, "", {}, "failed", False),  # of another rank, which was ended for it
    ],
)
def test_what_is_next(cell: Any, monkeypatch: pytest.MonkeyPatch, files: list[str], code: int, told: str,
                      said: dict, how: str, again: bool) -> None:  # fmt: skip
    content = {"train.log": "1: noise\n0: error: train.batch=8 is odd\nsrun: error: node1\n",
               "../../bad_nodes": "node2 too hot\nnode9 too cold\n"}  # fmt: skip
    asked = running(monkeypatch, **said)
    cell.dir.mkdir(parents=True)
    (cell.dir / "train.log").write_text("0: error: of an attempt before\n")
    assert start("7_1", cell, cell.dir.parents[1]) == 0
    for name in files:
        with open(cell.dir / name, "a") as f:
            f.write(content.get(name, name))
    assert (end("7_1", cell.dir, code, told) == 0) == (how == "finished")
    last = attempts(cell.dir)[-1]
    assert (last["how"], last["again"]) == (how, again)
    requeued = again and told != "LIMIT"  # that was done at once
    assert asked == ([("7_1", {"node2"} if "bad" in how else set())] if requeued else [])
    if files == ["train.log"]:
        assert (cell.dir / "failed").read_text().strip() == last["why"] == "train.batch=8 is odd"


def test_nothing_starts_that_is_finished_or_killed_or_hopeless(cell: Any, capsys: pytest.CaptureFixture) -> None:
    out = cell.dir.parents[1]
    (out / "stop").write_text("fire")
    assert start("7_1", cell, out) == 76 and not cell.dir.exists()
    (out / "stop").unlink()
    began(cell.dir, "7_1", 0, "", "", "")
    assert start("7_1", cell, out) == 1 and "3 attempts" in (cell.dir / "failed").read_text()
    assert start("8_1", cell, out) == 0 and not (cell.dir / "failed").exists()
    assert capsys.readouterr().out.strip() == str(cell.dir)
    (cell.dir / "done").touch()
    assert start("8_1", cell, out) == 0
    assert capsys.readouterr().out == ""


def test_array_ranges() -> None:
    assert _ranges([0, 1, 2, 5, 7, 8]) == "0-2,5,7-8" and _ranges([3]) == "3"


def test_the_sites_mtbf_reaches_the_runs_unless_they_name_one() -> None:
    given = {"NODE_MTBF_HOURS": "99"}
    assert with_mtbf(["POS=alibi", "SET=a=1"], given) == ["POS=alibi", "SET=a=1 layout.mtbf=99"]
    assert with_mtbf(["SET=layout.mtbf=1"], given) == ["SET=layout.mtbf=1"]
    assert with_mtbf(["POS=alibi"], {}) == ["POS=alibi"]
    study = from_args(with_mtbf(["POS=alibi", "SIZE=nano"], given))
    assert study.cells[0].dir == from_args(["POS=alibi", "SIZE=nano"]).cells[0].dir


def test_a_site_that_does_not_exist_is_named_with_those_that_do() -> None:
    with pytest.raises(ConfigError, match="generic, jean-zay"):
        find("marenostrum")
    assert site("jean-zay")["SBATCH_GPUS_PER_NODE"] == "8"


def test_without_slurm_submission_says_so(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "launch.submit", "--nodes", "0", "POS=alibi", f"OUT={tmp_path}"]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert said.returncode == 2 and "NODES=0" in said.stderr
