"""Whole studies on a real Slurm, with real training: with an unfit node, and with a rank that hangs."""

import inspect
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Cluster
from conftest import copy_code

from ablations.rundir import read_attempts
from ablations.site import read_site
from ablations.study import from_args

ROOT = Path(__file__).parents[2]
TINY = {
    "model.layers": 1,
    "model.hidden": 32,
    "model.heads": 2,
    "model.seq": 32,
    "model.vocab": 512,
    "train.tokens": 12 * 4 * 32,
    "train.batch": 4,
    "train.precision": "fp32",
    "train.lr": 1e-3,
    "layout.micro_batch": 1,
    "layout.log_every": 1,
    "layout.save_every": 6,
    "layout.eval_at": 0.4,
    "layout.wandb": "disabled",
}
SITE = """
export SBATCH_PARTITION=spot SBATCH_TIMELIMIT=30 SBATCH_GPUS_PER_NODE=2 NODE_MTBF_HOURS=99
[ -z "${SLURM_JOB_ID:-}" ] || echo "the site's own commands run on $(hostname)"
"""
# What a site names for a container: it notes what it was asked to run, and runs it.
NAMED_PYTHON = f"""#!/bin/sh
echo "$SLURM_JOB_ID $*" >>launch/asked
exec {sys.executable} "$@"
"""


def test_make_submits_and_refuses_what_it_does_not_know() -> None:
    def make(*words: str) -> str:
        done = subprocess.run(["make", "-n", "-o", ".venv/ready", *words], cwd=ROOT, capture_output=True, text=True)
        return " ".join((done.stdout + done.stderr).split())

    said = make("ablation", "STUDY=norm", "ON=slurm", "NODES=4", "SITE=x")
    assert "-m launch.slurm.submit --nodes '4' --site 'x' 'STUDY=norm'" in said
    assert "ON=fire: only slurm" in make("ablation", "STUDY=norm", "ON=fire")
    assert "launch.local" in make("ablation", "STUDY=norm")


@pytest.mark.parametrize("name", ["generic", "jean-zay"])
def test_the_example_sites_say_what_sbatch_reads(name: str) -> None:
    found = read_site(name)
    assert {"SBATCH_TIMELIMIT", "SBATCH_GPUS_PER_NODE", "NODE_MTBF_HOURS"} <= found.keys()
    assert all(k.startswith("SBATCH_") or k == "NODE_MTBF_HOURS" for k in found)


@pytest.fixture
def unfit(slurm: Cluster) -> Iterator[str]:
    """A node whose shared memory is too small to train with."""
    slurm.on("node1", "mount", "-o", "remount,size=1m", "/dev/shm")
    yield "node1"
    slurm.on("node1", "mount", "-o", "remount,size=1g", "/dev/shm")


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """A study of two runs on a corpus of its own."""
    import numpy

    docs = sorted({d for n in dir(numpy) if (d := inspect.getdoc(getattr(numpy, n))) and len(d) > 300})
    corpus = tmp_path / "docs.jsonl"
    corpus.write_text("".join(json.dumps({"text": d}) + "\n" for d in docs))
    setting = " ".join(f"{k}={v}" for k, v in TINY.items())
    return ["POS=alibi", "SIZE=nano", f"DATA={corpus}", "SEEDS=1", f"SET={setting}", f"OUT={tmp_path}/runs"]


def instead(words: list[str], settings: dict[str, float]) -> list[str]:
    """The study with other settings than TINY's."""
    setting = " ".join(f"{k}={v}" for k, v in (TINY | settings).items())
    return [f"SET={setting}" if word.startswith("SET=") else word for word in words]


@pytest.mark.timeout(600)
def test_a_study_from_submission_to_report(slurm: Cluster, tmp_path: Path, unfit: str, words: list[str]) -> None:
    code = copy_code(tmp_path / "code")
    (code / "launch/site.sh").write_text(f"{SITE}export PYTHON=launch/python\n")
    (code / "launch/python").write_text(NAMED_PYTHON)
    (code / "launch/python").chmod(0o755)
    make = ["make", "--old-file=.venv/ready", "ablation", "ON=slurm", "NODES=2"]
    said = slurm.run(*make, *words, cwd=code)
    train, evaluate, report = (x.split()[1].rstrip(":") for x in said.splitlines() if x.startswith("job "))
    assert "make status" in said and "train.log" in said
    again = slurm.run(sys.executable, "-m", "launch.slurm.submit", "--nodes", "2", *words, cwd=code)
    assert again.count("already in the queue") == 2

    cells = from_args(words).cells
    logs = {p.name: p.read_text()[-3000:] for c in cells for p in [c.dir / "train.log"] if p.exists()}
    for i in range(2):
        assert slurm.wait(f"{train}_{i}", seconds=300)["JobState"] == "COMPLETED", logs
        assert slurm.job(f"{train}_{i}")["Partition"] == "spot" and slurm.job(f"{train}_{i}")["TimeLimit"] == "00:30:00"
    assert (tmp_path / "runs/bad_nodes").read_text().startswith(f"{unfit} /dev/shm has ")
    ends = [line["how"] for c in cells for line in read_attempts(c.dir)[0] if line["event"] == "end"]
    assert sorted(e for e in ends if unfit not in e) == ["finished", "finished"]
    assert any(e.startswith("bad nodes: ") and unfit in e for e in ends)
    for cell in cells:
        nodes = [line["nodes"] for line in read_attempts(cell.dir)[0] if line["event"] == "start"][-1]
        assert unfit not in slurm.run("scontrol", "show", "hostnames", nodes).split()
        record = json.loads((cell.dir / "run.json").read_text())
        assert record["hardware"]["ranks"] == 4 and record["config"]["layout"]["mtbf"] == 99

    # the same run in one process, here
    here = [w.replace(f"OUT={tmp_path}/runs", f"OUT={tmp_path}/here") for w in words]
    (tmp_path / "here").mkdir()
    (tmp_path / "here/data").symlink_to(tmp_path / "runs/data")
    env = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_")}
    subprocess.run([sys.executable, "-m", "launch.train", "--cell", "1", *here], cwd=code, env=env, check=True)
    one, four = (
        [json.loads(x)["loss"] for x in (c.dir / "metrics.jsonl").read_text().splitlines()]
        for c in (from_args(here).cells[1], cells[1])
    )
    assert len(four) == 12 and four == pytest.approx(one, rel=1e-5)

    assert slurm.wait(report, seconds=200)["JobState"] == "COMPLETED"
    assert [slurm.job(f"{evaluate}_{i}")["JobState"] for i in range(2)] == ["COMPLETED"] * 2
    for cell in cells:  # what four ranks kept at two fifths of the budget, judged by the job that judges the end
        kept = json.loads((cell.dir / "eval-step_5.json").read_text())
        assert kept["tokens"] == 5 * 4 * 32 and not list(cell.dir.glob("*.parts"))
    assert "Score against tokens" in next((code / "ablations/records").glob("*/report.md")).read_text()
    assert "bits/byte" in next((code / "ablations/records").glob("*/report.md")).read_text()
    asked = (code / "launch/asked").read_text()  # every job ran the site's Python
    assert {"launch.train", "eval", "eval.report"} <= set(re.findall(r"-m (\S+)", asked))
    nothing = slurm.run(sys.executable, "-m", "launch.slurm.submit", "--nodes", "2", *words, cwd=code)
    assert "nothing to submit" in nothing


@pytest.mark.timeout(300)
def test_submitting_again_judges_what_runs_have_kept_so_far(slurm: Cluster, tmp_path: Path, words: list[str]) -> None:
    """Of two runs that are in the queue, one has been at work before."""
    code = copy_code(tmp_path / "code")
    (code / "launch/site.sh").write_text(SITE)
    env = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_")}
    subprocess.run([sys.executable, "-m", "launch.train", "--cell", "1", *words], cwd=code, env=env, check=True)
    cells = from_args(words).cells
    (cells[1].dir / "done").unlink()
    job = slurm.run("sbatch", "--parsable", "--hold", "--wrap", "sleep 1").strip()
    for cell in cells:
        cell.dir.mkdir(parents=True, exist_ok=True)
        (cell.dir / "attempts.jsonl").write_text(json.dumps({"time": 1, "event": "submitted", "job": job}) + "\n")
    said = slurm.run(sys.executable, "-m", "launch.slurm.submit", "--nodes", "2", *words, cwd=code)
    assert said.count("already in the queue") == 2 and "trains" not in said
    (line,) = [x for x in said.splitlines() if "evaluates what runs that go on have kept" in x]
    evaluate = line.split()[1].rstrip(":")
    assert slurm.wait(f"{evaluate}_1", seconds=200)["JobState"] == "COMPLETED"
    assert (cells[1].dir / "eval-step_5.json").exists() and not (cells[1].dir / "eval.json").exists()
    assert not list(cells[0].dir.glob("eval*"))
    said = slurm.run(sys.executable, "-m", "launch.slurm.submit", "--nodes", "2", *words, cwd=code)
    assert "nothing to submit" in said
    slurm.run("scancel", job)


@pytest.mark.timeout(600)
def test_a_node_with_a_slow_cable_is_left_out(slurm: Cluster, tmp_path: Path, words: list[str]) -> None:
    code = copy_code(tmp_path / "code")
    words = instead(words, {"train.batch": 3, "train.tokens": 1536})
    (tmp_path / "runs").mkdir()
    slow = "tbf rate 40mbit burst 64kb latency 50ms".split()
    slurm.run("tc", "qdisc", "add", "dev", "to-node2", "root", *slow)
    try:
        place = ["--nodes=3", "--nodelist=node2", "--array=1"]
        job = slurm.run("sbatch", "--parsable", *place, "launch/run.sh", *words, cwd=code)
        run = from_args(words).cells[1].dir
        end = time.monotonic() + 200
        while not any(line["event"] == "end" for line in read_attempts(run)[0]):
            assert time.monotonic() < end, (run / "train.log").read_text()
            time.sleep(0.1)
        assert next(line["how"] for line in read_attempts(run)[0] if line["event"] == "end") == "bad nodes: node2"
        assert (tmp_path / "runs/bad_nodes").read_text().startswith("node2 its network runs at ")
        slurm.run("scancel", f"{job}_1")
    finally:
        slurm.run("tc", "qdisc", "del", "dev", "to-node2", "root")


@pytest.mark.timeout(600)
def test_a_rank_that_hangs_is_found_and_the_run_goes_on(slurm: Cluster, tmp_path: Path, words: list[str]) -> None:
    """One of two ranks stands still, alive: the other says where it waits, and the run goes back into the queue."""
    code = copy_code(tmp_path / "code")
    setting = {"train.tokens": 51200, "layout.save_every": 50, "layout.hang": 20, "layout.patience": 10}  # 400 steps
    words = instead(words, setting)
    (tmp_path / "runs").mkdir()
    job = slurm.run("sbatch", "--parsable", "--nodes=2", "--array=1", "launch/run.sh", *words, cwd=code) + "_1"
    run = from_args(words).cells[1].dir
    end = time.monotonic() + 200
    while not (run / "metrics.jsonl").exists() or (run / "metrics.jsonl").read_text().count("\n") < 60:
        assert time.monotonic() < end, slurm.job(job)
        time.sleep(0.05)
    job_nodes = slurm.run("scontrol", "show", "hostnames", slurm.job(job)["NodeList"]).split()
    find = "grep -qs launch.train $p/cmdline && grep -qs python $p/comm"
    slurm.on(job_nodes[1], "sh", "-c", f"for p in /proc/[0-9]*; do if {find}; then kill -STOP ${{p#/proc/}}; fi; done")

    assert slurm.wait(job, seconds=300)["JobState"] == "COMPLETED", (run / "train.log").read_text()[-3000:]
    assert slurm.job(job)["Restarts"] == "1"
    first, last = (line for line in read_attempts(run)[0] if line["event"] == "end")
    assert first["how"].startswith("srun's exit code ") and first["again"] and last["how"] == "finished"
    begun = [line["step"] for line in read_attempts(run)[0] if line["event"] == "start"]
    assert begun[0] == 0 and begun[1] in range(50, 400, 50)
    stacks = (run / "stacks/rank_0.txt").read_text()
    assert stacks.startswith(f"{job_nodes[0]}, after step ") and "train.py" in stacks
    assert "distributed_c10d.py" in stacks  # in which collective it waits depends on when the other one stopped
    hang = next(json.loads(x) for x in (run / "events.jsonl").read_text().splitlines() if '"hang"' in x)
    assert hang["detail"].startswith(f"rank 0 on {job_nodes[0]}: no step for ")
    steps = [json.loads(x)["step"] for x in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 401))
