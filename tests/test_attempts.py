"""What launch/run.sh does next, decided from files; what launch/slurm/submit.py asks sbatch for.

tests/slurm has the rest.
"""

import fcntl
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, Any

import pytest

from ablations.config import ConfigError
from ablations.rundir import last_step, read_attempts
from ablations.site import find_site_file, read_site
from ablations.status import run_state
from ablations.study import from_args
from launch.slurm import attempts as launch_attempts
from launch.slurm import submit as submit_command
from launch.slurm.attempts import (
    PREEMPTED,
    REQUEUED,
    attempts_without_progress,
    end_attempt,
    record_attempt,
    start_attempt,
)
from launch.slurm.submit import (
    _index_ranges,
    add_mtbf,
    is_fully_evaluated,
    options_of_job,
    runs_in_queue,
    sbatch,
    submit,
)
from tests.conftest import mark_as_trained
from tests.schemas import checked

ROOT = Path(__file__).parents[1]


def began(folder: Path, job: str, step: int, *hows: str) -> None:
    """Attempts that began at `step` and ended so; "" is an end without a word."""
    folder.mkdir(parents=True, exist_ok=True)
    for how in hows:
        record_attempt(folder, event="start", job=job, step=step)
        if how:
            record_attempt(folder, event="end", job=job, step=step, how=how, again=True)


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
    assert attempts_without_progress(tmp_path, "7_0", 64) == n


def test_a_checkpoint_without_its_manifest_is_none(tmp_path: Path) -> None:
    for step, whole in ((64, True), (128, False)):
        (tmp_path / f"checkpoints/step_{step}").mkdir(parents=True)
        if whole:
            (tmp_path / f"checkpoints/step_{step}/checkpoint.json").write_text("{}")
    assert last_step(tmp_path) == 64


@pytest.fixture
def cell(tmp_path: Path) -> Any:
    return from_args(["POS=alibi", "SIZE=nano", f"OUT={tmp_path}"]).cells[1]


def running(monkeypatch: pytest.MonkeyPatch, **said: Any) -> list[tuple[str, set[str]]]:
    """What Slurm says of the job; returns the requeues that are asked for."""
    asked: list[tuple[str, set[str]]] = []
    now = {"state": "RUNNING", "reason": "None", "restarts": 0, "preempted": False, "excluded": set()} | said
    monkeypatch.setattr(launch_attempts, "job_state", lambda job: now)
    monkeypatch.setattr(launch_attempts, "requeue", lambda job, nodes: asked.append((job, nodes)))
    monkeypatch.setattr(launch_attempts, "node_names", lambda nodes: set(nodes.split(",")) - {""})
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
def test_what_is_next(
    cell: Any,
    monkeypatch: pytest.MonkeyPatch,
    files: list[str],
    code: int,
    told: str,
    said: dict,
    how: str,
    again: bool,
) -> None:
    content = {
        "train.log": "11: noise\n 0: error: train.batch=8 is odd\nsrun: error: node1\n",  # srun fills labels up
        "../../bad_nodes": "node2 too hot\nnode9 too cold\n",
    }
    asked = running(monkeypatch, **said)
    cell.dir.mkdir(parents=True)
    (cell.dir / "train.log").write_text("0: error: of an attempt before\n")
    assert start_attempt("7_1", cell, cell.dir.parents[1]) == 0
    for name in files:
        with open(cell.dir / name, "a") as f:
            f.write(content.get(name, name))
    assert (end_attempt("7_1", cell.dir, code, told) == 0) == (how == "finished")
    last = read_attempts(cell.dir)[0][-1]
    assert (last["how"], last["again"]) == (how, again)
    requeued = again and told != "LIMIT"  # that was done at once
    assert asked == ([("7_1", {"node2"} if "bad" in how else set())] if requeued else [])
    if files == ["train.log"]:
        assert (cell.dir / "failed").read_text().strip() == last["why"] == "train.batch=8 is odd"


def test_nothing_starts_that_is_finished_or_killed_or_hopeless(cell: Any, capsys: pytest.CaptureFixture) -> None:
    out = cell.dir.parents[1]
    (out / "stop").write_text("fire")
    assert start_attempt("7_1", cell, out) == 76 and not cell.dir.exists()
    cell.dir.mkdir(parents=True)
    launch_attempts.record_attempt(cell.dir, event="submitted", job="7_1")
    assert start_attempt("7_1", cell, out) == 76
    assert run_state(cell)["state"] == "stopped" and f"by the file {out}/stop" in run_state(cell)["why"]
    (out / "stop").unlink()
    began(cell.dir, "7_1", 0, "", "", "")
    assert start_attempt("7_1", cell, out) == 1 and "3 attempts" in (cell.dir / "failed").read_text()
    assert start_attempt("8_1", cell, out) == 0 and not (cell.dir / "failed").exists()
    assert capsys.readouterr().out.strip() == str(cell.dir)
    mark_as_trained(cell.dir)
    assert start_attempt("8_1", cell, out) == 0
    assert capsys.readouterr().out == ""


def training(folder: Path, job: str) -> IO[str]:
    """As somebody who trains there: the lock held, the heart beating."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = open(folder / "lock", "w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    (folder / "heartbeat.json").write_text(json.dumps({"time": time.time(), "job": job}))
    return lock


def test_a_second_job_leaves_a_run_alone(cell: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    out = cell.dir.parents[1]
    monkeypatch.setattr(launch_attempts, "LEAVING_SECONDS", 0.0)
    monkeypatch.setenv("SLURM_JOB_ID", "9")
    with training(cell.dir, "8"):
        (cell.dir / "stop").touch()  # the other job is asked to save and leave
        before = sorted(p.name for p in cell.dir.iterdir())
        assert start_attempt("9_1", cell, out) == 1
        assert sorted(p.name for p in cell.dir.iterdir()) == before
    assert start_attempt("9_1", cell, out) == 0  # it is gone
    with training(cell.dir, "9"):
        assert start_attempt("9_1", cell, out) == 0  # an attempt before of the same job, on its way out


def test_what_a_second_job_says_is_not_taken_for_the_firsts(cell: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both began at the same moment, and write one train.log."""
    asked, out = running(monkeypatch), cell.dir.parents[1]
    assert start_attempt("8_1", cell, out) == 0 and start_attempt("9_1", cell, out) == 0
    monkeypatch.setenv("SLURM_JOB_ID", "9")
    with training(cell.dir, "8"):
        assert end_attempt("9_1", cell.dir, 75, "") == 75
        assert read_attempts(cell.dir)[0][-1]["how"] == "another job trains this run" and not asked
        began(cell.dir, "9_1", 0, "", "")
        monkeypatch.setattr(launch_attempts, "is_trained_by_another_job", lambda folder: False)
        assert start_attempt("9_1", cell, out) == 1 and not (cell.dir / "failed").exists()
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    assert end_attempt("8_1", cell.dir, 75, "USR1") == 75 and asked == [("8_1", set())]


def test_a_machine_without_slurm_is_named_before_any_data_is_prepared(
    cell: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from launch.slurm import submit as module

    prepared: list[Any] = []
    monkeypatch.setattr(module, "prepare_missing_data", lambda *words: prepared.append(words))
    monkeypatch.setattr(module, "check_evaluation", lambda *words: prepared.append(words))
    monkeypatch.setenv("PATH", str(tmp_path))
    study = from_args(["POS=alibi", "SIZE=nano", f"OUT={tmp_path}"])
    with pytest.raises(ConfigError, match="there is no sbatch on this machine"):
        submit(study, [], {}, 1)
    assert not prepared


def test_a_controller_that_does_not_answer_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "scontrol").write_text(f"""#!/bin/bash
echo "$*" >> {tmp_path}/asked
if [ $(wc -l < {tmp_path}/asked) -lt 3 ]; then
  echo "slurm_load_jobs error: Unable to contact slurm controller (connect failure)" >&2; exit 1
fi
echo "JobId=7 JobState=RUNNING Reason=None Restarts=2"
""")
    (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(launch_attempts, "PAUSE_SECONDS", 0.0)
    assert launch_attempts.job_state("7")["restarts"] == 2
    (tmp_path / "asked").unlink()
    launch_attempts.requeue("7", set())
    assert (tmp_path / "asked").read_text() == "requeue 7\n" * 3


def test_where_slurm_says_nothing_a_run_goes_back_all_the_same(cell: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """How often the job was requeued before is not known then."""
    monkeypatch.setenv("SLURM_RESTART_COUNT", "4")
    asked = running(monkeypatch, state="unknown", restarts=0)
    assert start_attempt("7_1", cell, cell.dir.parents[1]) == 0
    assert end_attempt("7_1", cell.dir, 143, "") == 143 and asked == [("7_1", set())]


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of the path."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    return tmp_path / "bin"


def command(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/bash\n{script}\n")
    (folder / name).chmod(0o755)


def test_a_queue_that_cannot_be_asked_is_not_taken_for_empty(tmp_path: Path, commands: Path) -> None:
    study = from_args(["POS=alibi", "SIZE=nano", f"OUT={tmp_path}"])
    began(study.cells[0].dir, "7_0", 0, "")
    command(commands, "squeue", "echo 7_0")
    assert runs_in_queue(study) == {0: "7_0"}
    command(commands, "squeue", "echo slurm_load_jobs error: Socket timed out >&2; exit 1")
    with pytest.raises(ConfigError, match="Socket timed out"):
        runs_in_queue(study)


def test_jobs_that_run_no_script_of_ours_read_the_site_too(
    tmp_path: Path, commands: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here sbatch runs what it is given at once."""
    command(commands, "sbatch", f"bash > {tmp_path}/said")
    (tmp_path / "my site.sh").write_text("export HF_HUB_OFFLINE=1")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("SITE", raising=False)
    for given, said in (({"SITE": f"{tmp_path}/my site.sh"}, "offline 1\n"), ({}, "offline\n")):
        sbatch([], given, "echo offline $HF_HUB_OFFLINE")
        assert (tmp_path / "said").read_text() == said


def test_what_a_site_says_wrong_is_said_before_anything_is_submitted(
    tmp_path: Path, commands: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command(commands, "sbatch", f"touch {tmp_path}/submitted; echo 7")
    monkeypatch.setattr("launch.slurm.submit.prepare_missing_data", lambda *_: None)
    study = from_args(["POS=alibi", "SIZE=nano", f"OUT={tmp_path}/runs"])
    with pytest.raises(ConfigError, match=r"layout\.mtbf"):
        submit(study, [], {"NODE_MTBF_HOURS": "10k"}, 1)
    assert not (tmp_path / "submitted").exists()


def test_tasks_that_cannot_be_run_are_said_before_anything_is_submitted(
    tmp_path: Path, commands: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    command(commands, "sbatch", f"touch {tmp_path}/submitted; echo 7")
    monkeypatch.setattr("launch.slurm.submit.prepare_missing_data", lambda *_: None)
    study = from_args(["POS=alibi", "SIZE=nano", "TASKS=suite", f"OUT={tmp_path}/runs"])
    with pytest.raises(ConfigError, match="cannot be judged by TASKS"):
        submit(study, [], {}, 1)
    assert "make eval-data" in capfd.readouterr().err and not (tmp_path / "submitted").exists()


def test_finished_runs_are_submitted_to_be_judged_by_what_their_evaluation_lacks(
    tmp_path: Path, commands: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from eval.results import result_conditions
    from eval.weights import Weights

    command(commands, "sbatch", f"cat >> {tmp_path}/asked; echo 7")
    for name in ("prepare_missing_data", "check_evaluation"):
        monkeypatch.setattr(f"launch.slurm.submit.{name}", lambda *_: None)
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks/manifest.json").write_text("[]")
    words = ["POS=alibi", "SIZE=nano", "SEEDS=1", f"OUT={tmp_path}/runs"]
    (tmp_path / "weights").write_text("")
    for cell in from_args(words).cells:
        cell.dir.mkdir(parents=True)
        (cell.dir / "run.json").write_text(json.dumps({"fingerprint": cell.run.fingerprint, "config": cell.config}))
        mark_as_trained(cell.dir)

    def evaluated(change: dict[str, Any], *more: str) -> str:
        """What is said when the second of two finished runs has another evaluation than the first."""
        for cell, other in zip(from_args(words).cells, ({}, change), strict=True):
            had = result_conditions({"config": cell.config}, Weights(tmp_path / "weights"))
            had |= {"lm_eval_tasks": {"asked": ["copa", "rte"]}} | other
            (cell.dir / "eval.json").write_text(json.dumps(had))
        submit(from_args([*words, *more]), [], {}, 1)
        said = capsys.readouterr().out
        if "evaluates what is trained" in said:
            assert "trains" not in said and "runs=([1]=" in (tmp_path / "asked").read_text()
            (tmp_path / "asked").unlink()
            return "judged"
        return said.strip().partition(":")[0]

    nothing, tasks = "nothing to submit", ["TASKS=rte", f"EVAL_DATA={tmp_path}/tasks"]
    assert evaluated({}) == evaluated({}, *tasks) == nothing
    assert evaluated({"version": 0}) == evaluated({"lm_eval": "0.1"}) == "judged"
    other = {"lm_eval_tasks": {"asked": ["copa"]}}
    assert evaluated(other) == nothing and evaluated(other, *tasks) == "judged"
    five = {"lm_eval_tasks": {"asked": ["copa", "rte"], "shots": 5}}
    assert evaluated(five, *tasks) == "judged"  # asked with other examples in the prompts
    other_shots = {
        n: is_fully_evaluated(from_args([*words, *tasks, f"SHOTS={n}"]), from_args(words).cells[1]) for n in (0, 5)
    }
    assert other_shots == {0: False, 5: True}
    kept = from_args(words).cells[1].dir / "checkpoints/weights_8/checkpoint.json"
    kept.parent.mkdir(parents=True)
    kept.write_text("{}")
    assert evaluated({}) == "judged"
    kept.unlink()
    assert is_fully_evaluated(from_args([*words, *tasks]), cell := from_args(words).cells[1])
    os.utime(cell.dir / "eval.json", (1, 1))
    assert not is_fully_evaluated(from_args([*words, *tasks]), cell)  # data of tasks has come since


def test_bad_nodes_are_left_out_besides_those_that_were_asked_for(
    tmp_path: Path, commands: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command(commands, "sbatch", f'cat >/dev/null; echo "$*" >> {tmp_path}/asked; echo 7')
    monkeypatch.setattr("launch.slurm.submit.prepare_missing_data", lambda *_: None)
    study = from_args(["POS=alibi", "SIZE=nano", f"OUT={tmp_path}/runs"])
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/bad_nodes").write_text("node2 too hot\n")
    jobs = submit(study, ["--nodes=1", "--exclude=node[7-9]"], {}, 1)
    assert [(job["does"], job["runs"]) for job in jobs] == [
        ("train", [0, 1, 2, 3]),
        ("evaluate", [0, 1, 2, 3]),
        ("report", [0, 1, 2, 3]),
    ]
    said = (tmp_path / "asked").read_text().splitlines()
    assert len(said) == 3 and all(line.split().count("--exclude=node[7-9],node2") == 1 for line in said)
    assert not any("--exclude=node[7-9] " in line for line in said)


@pytest.mark.parametrize("sign", [":", "/"])
def test_gpus_are_asked_for_as_every_version_of_slurm_names_them(commands: Path, sign: str) -> None:
    command(commands, "scontrol", f"echo JobId=7 NumNodes=2-2 TresPerNode=gres{sign}gpu:a100:4 TimeLimit=01:00:00")
    assert options_of_job("7") == ["--nodes=2", "--time=01:00:00", "--gres=gpu:a100:4"]


def test_data_are_built_before_there_are_ranks(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Ranks wait for each other half an hour at most. launch/run.sh reads the run's folder from standard output."""
    rng = random.Random(1)
    docs = [" ".join("".join(rng.choices("aeinorst", k=5)) for _ in range(40)) for _ in range(300)]
    (tmp_path / "docs.txt").write_text("\n\n".join(docs))
    words = ["POS=alibi", "SIZE=nano", f"DATA={tmp_path}/docs.txt", f"OUT={tmp_path}/runs"]
    small = [*words, "SET=model.vocab=300"]
    cell = from_args(small).cells[1]
    assert launch_attempts.main(["start", "7_1", "1", *small]) == 0
    assert capfd.readouterr().out == f"{cell.dir}\n" and read_attempts(cell.dir)[0][-1]["event"] == "start"
    assert sorted(p.name.rsplit("-", 1)[0] for p in (tmp_path / "runs/data").glob("*-*")) == [
        f"{tmp_path.name}-docs",
        f"{tmp_path.name}-docs-tokenizer-300",
        f"{tmp_path.name}-docs-tokens",
    ]
    large = [*words, "SET=model.vocab=60000"]
    cell = from_args(large).cells[1]
    assert launch_attempts.main(["start", "8_1", "1", *large]) == 2
    said = capfd.readouterr()
    assert not said.out and "60000" in said.err
    assert run_state(cell)["state"] == "stopped" and "slurm/8_1.log" in run_state(cell)["why"]
    mark_as_trained(cell.dir)
    assert launch_attempts.main(["start", "8_1", "1", *large]) == 0  # of a finished run nothing is asked


def test_array_ranges() -> None:
    assert _index_ranges([0, 1, 2, 5, 7, 8]) == "0-2,5,7-8" and _index_ranges([3]) == "3"


def test_the_sites_mtbf_reaches_the_runs_unless_they_name_one() -> None:
    given = {"NODE_MTBF_HOURS": "99"}
    assert add_mtbf(["POS=alibi", "SET=a=1"], given) == ["POS=alibi", "SET=a=1 layout.mtbf=99"]
    assert add_mtbf(["POS=alibi"], given) == ["POS=alibi", "SET=layout.mtbf=99"]
    assert add_mtbf(["SET=layout.mtbf=1"], given) == ["SET=layout.mtbf=1"]
    assert add_mtbf(["POS=alibi"], {}) == ["POS=alibi"]
    study = from_args(add_mtbf(["POS=alibi", "SIZE=nano"], given))
    assert study.cells[0].dir == from_args(["POS=alibi", "SIZE=nano"]).cells[0].dir


def test_a_site_that_does_not_exist_is_named_with_those_that_do() -> None:
    with pytest.raises(ConfigError, match="generic, jean-zay"):
        find_site_file("marenostrum")
    assert read_site("jean-zay")["SBATCH_GPUS_PER_NODE"] == "8"


def test_without_slurm_submission_says_so(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "launch.slurm.submit", "--nodes", "0", "POS=alibi", f"OUT={tmp_path}"]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert said.returncode == 2 and "NODES=0" in said.stderr


def test_a_submission_is_an_answer(
    tmp_path: Path, commands: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    command(commands, "sbatch", "cat >/dev/null; echo 7")
    for name in ("prepare_missing_data", "check_evaluation"):
        monkeypatch.setattr(f"launch.slurm.submit.{name}", lambda *_: None)
    words = ["POS=alibi", "SIZE=nano", f"OUT={tmp_path}/läufe", "FORMAT=json"]
    assert submit_command.main(words) == 0
    said = capfd.readouterr()
    answer = checked(said.out)
    assert answer["kind"] == "submission" and [job["does"] for job in answer["jobs"]] == ["train", "evaluate", "report"]
    assert "job 7: trains 4 runs" in said.err and answer["logs"].startswith(f"{tmp_path}/läufe")
    for wrong in (["POS=nope", "FORMAT=json"], ["--nodes", "no", *words]):
        assert submit_command.main(wrong) == 2
        said = capfd.readouterr()
        assert checked(said.out)["error"] in said.err
