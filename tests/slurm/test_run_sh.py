"""launch/run.sh on a real Slurm, with a stand-in for training: what only a real one shows."""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cluster import Cluster

from ablations.rundir import read_attempts
from ablations.status import run_state
from ablations.study import from_args

ROOT = Path(__file__).parents[2]
STUDY = ["STUDY=position", "SEEDS=1", "SET=layout.micro_batch=1"]  # 4 runs


def sbatch(slurm: Cluster, code: Path, *arguments: str, **keywords: object) -> str:
    return slurm.run("sbatch", "--parsable", *arguments, **({"cwd": code} | keywords))  # type: ignore


def folder(code: Path, cell: int = 0, words: list[str] = STUDY) -> Path:
    return code / from_args(words).cells[cell].dir


def log(code: Path, job: str) -> str:
    path = code / f"runs/slurm/{job}.log"
    return path.read_text() if path.exists() else ""


def steps(run: Path) -> list[int]:
    path = run / "metrics.jsonl"
    return [json.loads(line)["step"] for line in path.read_text().splitlines()] if path.exists() else []


def until(what: Callable[[], object], seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.05)


def ends(run: Path) -> list[str]:
    return [line["how"] for line in read_attempts(run)[0] if line["event"] == "end"]


def test_the_script_passes_shellcheck() -> None:
    if not shutil.which("shellcheck"):
        pytest.skip("shellcheck is not installed")
    subprocess.run(["shellcheck", "launch/run.sh", *(ROOT / "launch/sites").glob("*.sh")], cwd=ROOT, check=True)


def test_without_slurm_it_is_the_same_study_on_this_machine() -> None:
    env = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_")} | {"PYTHON": "echo"}
    for words, study in (([], "STUDY=baseline SEEDS=1"), (["norm", "SIZE=nano"], "STUDY=norm SIZE=nano")):
        said = subprocess.run([ROOT / "launch/run.sh", *words], env=env, cwd="/", capture_output=True, text=True)
        assert said.stdout == f"-m launch.local {study}\n", said


def test_slurms_json_is_never_read() -> None:  # it differs between versions
    for path in [*(ROOT / "launch").glob("*.py"), *(ROOT / "launch").glob("*.sh"), *(ROOT / "ablations").glob("*.py")]:
        assert "--json" not in path.read_text()


def test_sbatch_runs_the_baseline_from_any_folder_and_in_a_fresh_checkout(slurm: Cluster, code: Path) -> None:
    """$0 is a copy in the spool; there is no folder for the log yet."""
    assert not (code / "runs").exists()
    job = sbatch(slurm, code, "run.sh", cwd=code / "launch")
    assert slurm.wait(job)["JobState"] == "COMPLETED", log(code, job)
    run = folder(code, words=["STUDY=baseline", "SEEDS=1"])
    assert (run / "done").exists() and steps(run) == list(range(1, 61))
    assert str(run.relative_to(code)) in log(code, job) and "finished" in log(code, job)
    again = sbatch(slurm, code, "launch/run.sh")
    assert slurm.wait(again)["JobState"] == "COMPLETED" and "is finished" in log(code, again)


def test_a_rank_on_each_gpu_of_each_node_and_none_calls_itself_localhost(slurm: Cluster, code: Path) -> None:
    wanted = ["--nodes=2", "--gpus-per-node=2", "--cpus-per-gpu=3", "--array=0"]
    job = sbatch(slurm, code, *wanted, "launch/run.sh", *STUDY)
    assert slurm.wait(f"{job}_0")["JobState"] == "COMPLETED", log(code, f"{job}_0")
    lines = (folder(code) / "train.log").read_text().splitlines()
    said = [json.loads(line[line.index("{") :]) for line in lines if "MASTER_ADDR" in line]
    ranks = sorted(said, key=lambda r: r["RANK"])
    nodes = [r["host"] for r in ranks]
    assert [(r["RANK"], r["LOCAL_RANK"]) for r in ranks] == [("0", "0"), ("1", "1"), ("2", "0"), ("3", "1")]
    assert {r["LOCAL_WORLD_SIZE"] for r in ranks} == {"2"}
    assert {r["WORLD_SIZE"] for r in ranks} == {"4"} and {r["CUDA_VISIBLE_DEVICES"] for r in ranks} == {"0,1"}
    assert nodes[0] == nodes[1] != nodes[2] == nodes[3]
    assert {r["MASTER_ADDR"] for r in ranks} == {nodes[0]} and len({r["MASTER_PORT"] for r in ranks}) == 1


def test_a_warned_task_saves_goes_back_alone_and_continues(slurm: Cluster, code: Path) -> None:
    """The log is kept; in an array the last task's bare id is the array's; who asks for a requeue survives;
    ranks get no USR1; a signal does not end the wait for srun."""
    array = sbatch(slurm, code, "--array=0-1", "launch/run.sh", *STUDY)
    other, last = f"{array}_0", f"{array}_1"
    run = folder(code, 1)
    for n in range(3):
        until(lambda n=n: len(steps(run)) > 15 * n + 5)  # type: ignore[misc]
        for _ in range(3):
            slurm.run("scancel", "--batch", "--signal=USR1", last)
            time.sleep(0.02)
        until(lambda n=n: len(ends(run)) > n)  # type: ignore[misc]
    assert slurm.wait(last)["JobState"] == "COMPLETED", log(code, last)
    assert slurm.job(last)["Restarts"] == "3" and slurm.job(other)["Restarts"] == "0"
    assert ends(run) == ["warned of the time limit"] * 3 + ["finished"]
    assert {line["code"] for line in read_attempts(run)[0] if line["event"] == "end" and line["again"]} == {75}
    assert steps(run) == list(range(1, 61))  # nothing lost, nothing twice
    assert log(code, last).count("back into the queue") == 3
    assert (run / "train.log").read_text().count("MASTER_ADDR") == 4


def test_a_study_becomes_an_array_with_the_same_options(slurm: Cluster, code: Path) -> None:
    """What depends on a run that failed is cancelled, and the report is written all the same."""
    (code / "runs").mkdir()
    (code / "runs/trouble").write_text("diverge 3")
    wanted = ["--nodes=2", "--time=50", "--gres=gpu:1", "--exclude=node4", "--mem=90M"]
    job = sbatch(slurm, code, *wanted, "launch/run.sh", *STUDY)
    assert slurm.wait(job)["JobState"] == "COMPLETED", log(code, job)
    lines = [line for line in log(code, job).splitlines() if line.startswith("job ")]
    train, evaluate, report = (line.split()[1].rstrip(":") for line in lines)
    for i in range(4):
        made = slurm.wait(f"{train}_{i}", "RUNNING", "COMPLETED", "FAILED")
        assert (made["NumNodes"], made["TimeLimit"], made["ExcNodeList"]) == ("2", "00:50:00", "node4")
        assert (made["TresPerNode"], made["MinMemoryNode"]) == ("gres:gpu:1", "90M")
    for i in range(3):
        assert slurm.wait(f"{train}_{i}")["JobState"] == "COMPLETED"
        assert slurm.wait(f"{evaluate}_{i}")["JobState"] == "FAILED"  # the stand-in leaves nothing to evaluate
    assert slurm.wait(f"{train}_3")["JobState"] == "FAILED"
    assert slurm.wait(f"{evaluate}_3")["JobState"] == "CANCELLED"
    assert slurm.wait(report)["JobState"] == "COMPLETED", log(code, report)
    assert list((code / "ablations/records").glob("*/report.md"))


def test_percent_1_is_one_at_a_time(slurm: Cluster, code: Path) -> None:
    array = sbatch(slurm, code, "--array=0-3%1", "launch/run.sh", *STUDY)
    for i in range(4):
        assert slurm.wait(f"{array}_{i}", seconds=240)["JobState"] == "COMPLETED"
    spans = sorted([line["time"] for line in read_attempts(folder(code, i))[0]] for i in range(4))
    assert all(a[1] <= b[0] for a, b in zip(spans, spans[1:], strict=False)), spans


def test_a_run_that_always_crashes_is_given_up_after_three_attempts(slurm: Cluster, code: Path) -> None:
    (code / "runs").mkdir()
    (code / "runs/trouble").write_text("crash")
    array = sbatch(slurm, code, "--array=2", "launch/run.sh", *STUDY)
    assert slurm.wait(f"{array}_2")["JobState"] == "FAILED"
    run = folder(code, 2)
    assert sum(line["event"] == "start" for line in read_attempts(run)[0]) == 3
    assert "3 attempts" in (run / "failed").read_text()
    (code / "runs/trouble").unlink()
    array = sbatch(slurm, code, "--array=2", "launch/run.sh", *STUDY)  # submitting again is asking again
    assert slurm.wait(f"{array}_2")["JobState"] == "COMPLETED"
    assert (run / "done").exists() and not (run / "failed").exists()


def test_cancelled_means_cancelled_and_submitting_again_continues(slurm: Cluster, code: Path) -> None:
    job = sbatch(slurm, code, "launch/run.sh")
    cell = from_args(["STUDY=baseline", "SEEDS=1"]).cells[0]
    run = code / cell.dir
    until(lambda: len(steps(run)) > 10)
    slurm.run("scancel", job)
    until(lambda: ends(run))
    time.sleep(3)  # for a requeue that must not come
    now = slurm.job(job)
    assert (now["JobState"], now["Restarts"]) == ("CANCELLED", "0") and ends(run) == ["cancelled"]
    os.chdir(code)
    try:
        assert run_state(cell)["state"] == "stopped" and "cancelled at step" in run_state(cell)["why"]
    finally:
        os.chdir(ROOT)
    again = sbatch(slurm, code, "launch/run.sh")
    assert slurm.wait(again)["JobState"] == "COMPLETED" and steps(run) == list(range(1, 61))


def test_the_kill_switch_ends_what_runs_and_what_waits(slurm: Cluster, code: Path) -> None:
    array = sbatch(slurm, code, "--array=0-3%2", "launch/run.sh", *STUDY)
    until(lambda: len(steps(folder(code, 0))) > 5 and len(steps(folder(code, 1))) > 5)
    (code / "runs/stop").write_text("the machine room is on fire")
    for i in range(4):
        assert slurm.wait(f"{array}_{i}", seconds=240)["JobState"] == "FAILED"
        assert slurm.job(f"{array}_{i}")["Restarts"] == "0"
    assert ends(folder(code, 0)) == ["killed"] and not steps(folder(code, 3))
    assert "on fire" in log(code, f"{array}_3")
    (code / "runs/stop").unlink()
    array = sbatch(slurm, code, "--array=0", "launch/run.sh", *STUDY)
    assert slurm.wait(f"{array}_0")["JobState"] == "COMPLETED" and steps(folder(code, 0)) == list(range(1, 61))


def test_a_bad_node_is_left_out_from_then_on(slurm: Cluster, code: Path) -> None:
    (code / "runs").mkdir()
    (code / "runs/trouble").write_text("bad node2")
    job = sbatch(slurm, code, "--nodes=2", "--nodelist=node[1-2]", "--array=0", "launch/run.sh", *STUDY)
    until(lambda: ends(folder(code)))
    assert ends(folder(code)) == ["bad nodes: node2"]
    until(lambda: slurm.job(f"{job}_0")["ExcNodeList"] == "node2")
    slurm.run("scancel", f"{job}_0")  # Slurm can do nothing for a job that insists on the node
    job = sbatch(slurm, code, "--nodes=3", "--array=1", "launch/run.sh", *STUDY)
    assert slurm.wait(f"{job}_1")["JobState"] == "COMPLETED", log(code, f"{job}_1")
    nodes = [line["nodes"] for line in read_attempts(folder(code, 1))[0] if line["event"] == "start"]
    assert nodes == ["node[1-3]", "node[1,3-4]"]


def test_a_node_that_does_not_see_the_code_gives_its_work_to_another(slurm: Cluster, code: Path) -> None:
    """As where a file system is not mounted; of the node that the script runs on, and of another.

    On a loaded machine Slurm itself may requeue a job once more, as where a node answers too late (the cluster of these
    tests waits seconds); no job meets the node without the code a second time.
    """
    (code / "runs").mkdir()
    for node, nodes, others in (("node1", 1, "node[2-4]"), ("node2", 3, "node4")):
        slurm.on(node, "mount", "-t", "tmpfs", "tmpfs", str(code))
        slurm.run("scontrol", "update", f"NodeName={others}", "State=drain", "Reason=the others shall be asked first")
        job = sbatch(slurm, code, f"--nodes={nodes}", f"--array={nodes}", "launch/run.sh", *STUDY) + f"_{nodes}"
        try:
            until(lambda job=job: slurm.job(job)["Restarts"] != "0")  # type: ignore[misc]
        finally:
            slurm.run("scontrol", "update", f"NodeName={others}", "State=resume")
        assert slurm.wait(job)["JobState"] == "COMPLETED", log(code, job)
        slurm.on(node, "umount", str(code))
        now = slurm.job(job)
        assert now["ExcNodeList"] == node, log(code, job)
        assert node not in slurm.run("scontrol", "show", "hostnames", now["NodeList"]).split()
    assert ends(folder(code, 1))[-1] == ends(folder(code, 3))[-1] == "finished"
    assert ends(folder(code, 3)).count("bad nodes: node2") == 1, log(code, job)
    assert (code / "runs/bad_nodes").read_text() == "node2 cannot run .venv/bin/python\n"


@pytest.mark.parametrize("attentive", [True, False])
def test_preempted_it_comes_back(slurm: Cluster, code: Path, attentive: bool) -> None:
    """Ranks that leave within the grace period must not end the job."""
    (code / "runs").mkdir()
    job = sbatch(slurm, code, "--partition=spot", "--array=0", "launch/run.sh", *STUDY)
    run = folder(code)
    if not attentive:
        (code / "runs/trouble").write_text("deaf")
    until(lambda: len(steps(run)) > 25)
    rival = sbatch(slurm, code, "--nodes=4", "--exclusive", "--wrap", "sleep 2")
    assert slurm.wait(rival)["JobState"] == "COMPLETED"
    assert slurm.wait(f"{job}_0")["JobState"] == "COMPLETED", log(code, f"{job}_0")
    assert int(slurm.job(f"{job}_0")["Restarts"]) >= 1 and steps(run)[-1] == 60
    assert "srun's exit code" not in str(ends(run)), ends(run)


def test_at_the_time_limit_it_goes_back_into_the_queue(slurm: Cluster, code: Path) -> None:
    """Once warned, once without a warning. Slurm looks at the clock every 30 s."""
    (code / "runs").mkdir()
    (code / "runs/trouble").write_text("long")
    late = sbatch(slurm, code, "--array=0", "--signal=B:USR1@1", "--time=10", "launch/run.sh", *STUDY) + "_0"
    warned = sbatch(slurm, code, "--array=1", "--signal=B:USR1@60", "--time=10", "launch/run.sh", *STUDY) + "_1"
    for job, cell, left in ((late, 0, 1), (warned, 1, 55)):
        until(lambda cell=cell: len(steps(folder(code, cell))) > 5)  # type: ignore[misc]
        limit = time.strftime("%FT%T", time.localtime(time.time() + left))
        slurm.run("scontrol", "update", f"JobId={job}", f"EndTime={limit}")
    for job, cell, how in ((late, 0, "time limit"), (warned, 1, "warned of the time limit")):
        until(lambda cell=cell: ends(folder(code, cell)))  # type: ignore[misc]
        assert ends(folder(code, cell)) == [how], log(code, job)
    (code / "runs/trouble").unlink()
    for job, cell in ((late, 0), (warned, 1)):
        assert slurm.wait(job)["JobState"] == "COMPLETED", log(code, job)
        assert ends(folder(code, cell))[-1] == "finished", log(code, job)


def test_power_loss_and_a_pulled_cable(slurm: Cluster, code: Path) -> None:
    """Of the node that the script runs on, and of another."""
    (code / "runs").mkdir()
    (code / "runs/trouble").write_text("long")
    job = sbatch(slurm, code, "--nodes=2", "--array=0", "launch/run.sh", *STUDY) + "_0"
    run, lost = folder(code), []
    for n, (which, what) in enumerate(((1, slurm.unplug), (0, slurm.power_off))):
        until(lambda n=n: len([x for x in read_attempts(run)[0] if x["event"] == "start"]) == n + 1)  # type: ignore[misc]
        until(lambda n=n: max(steps(run), default=0) > 20 * (n + 1))  # type: ignore[misc]
        nodes = slurm.run("scontrol", "show", "hostnames", slurm.job(job)["NodeList"]).split()
        lost.append(nodes[which])
        what(nodes[which])
    (code / "runs/trouble").unlink()
    assert slurm.wait(job, seconds=240)["JobState"] == "COMPLETED", log(code, job)
    assert (run / "done").exists() and int(slurm.job(job)["Restarts"]) >= 2
    used = slurm.run("scontrol", "show", "hostnames", slurm.job(job)["NodeList"]).split()
    assert not set(used) & set(lost)
