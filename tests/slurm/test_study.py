"""A whole study on a real Slurm, with real training: 2 nodes x 2 ranks for each run, one of the nodes unfit."""

import inspect
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Cluster
from conftest import copy_code

from ablations.site import site
from ablations.status import attempts
from ablations.study import from_args

ROOT = Path(__file__).parents[2]
TINY = {
    "model.layers": 1, "model.hidden": 32, "model.heads": 2, "model.seq": 32, "model.vocab": 512,
    "train.tokens": 12 * 4 * 32, "train.batch": 4, "train.precision": "fp32", "train.lr": 1e-3,
    "layout.micro_batch": 1, "layout.log_every": 1, "layout.save_every": 6, "layout.wandb": "disabled",
}  # fmt: skip
SITE = """
export SBATCH_PARTITION=spot SBATCH_TIMELIMIT=30 SBATCH_GPUS_PER_NODE=2 NODE_MTBF_HOURS=99
[ -z "${SLURM_JOB_ID:-}" ] || echo "the site's own commands run on $(hostname)"
"""


def test_make_submits_and_refuses_what_it_does_not_know() -> None:
    def make(*words: str) -> str:
        done = subprocess.run(["make", "-n", "-o", ".venv/ready", *words], cwd=ROOT, capture_output=True, text=True)
        return " ".join((done.stdout + done.stderr).split())

    said = make("ablation", "STUDY=norm", "ON=slurm", "NODES=4", "SITE=x")
    assert "-m launch.submit --nodes '4' --site 'x' 'STUDY=norm'" in said
    assert "ON=fire: only slurm" in make("ablation", "STUDY=norm", "ON=fire")
    assert "ablations run" in make("ablation", "STUDY=norm")


@pytest.mark.parametrize("name", ["generic", "jean-zay"])
def test_the_example_sites_say_what_sbatch_reads(name: str) -> None:
    found = site(name)
    assert {"SBATCH_TIMELIMIT", "SBATCH_GPUS_PER_NODE", "NODE_MTBF_HOURS"} <= found.keys()
    assert all(k.startswith("SBATCH_") or k == "NODE_MTBF_HOURS" for k in found)


@pytest.fixture
def unfit(slurm: Cluster) -> Iterator[str]:
    """A node whose shared memory is too small to train with."""
    slurm.on("node1", "mount", "-o", "remount,size=1m", "/dev/shm")
    yield "node1"
    slurm.on("node1", "mount", "-o", "remount,size=1g", "/dev/shm")


@pytest.mark.timeout(600)
def test_a_study_from_submission_to_report(slurm: Cluster, tmp_path: Path, unfit: str) -> None:
    import numpy

    code = copy_code(tmp_path / "code")
    (code / "launch/site.sh").write_text(SITE)
    docs = sorted({d for n in dir(numpy) if (d := inspect.getdoc(getattr(numpy, n))) and len(d) > 300})
    corpus = tmp_path / "docs.jsonl"
    corpus.write_text("".join(json.dumps({"text": d}) + "\n" for d in docs))
    setting = " ".join(f"{k}={v}" for k, v in TINY.items())
    words = ["POS=alibi", "SIZE=nano", f"DATA={corpus}", "SEEDS=1", f"SET={setting}", f"OUT={tmp_path}/runs"]
    said = slurm.run(sys.executable, "-m", "launch.submit", "--nodes", "2", *words, cwd=code)
    train, evaluate, report = (x.split()[1].rstrip(":") for x in said.splitlines() if x.startswith("job "))
    assert "make status" in said and "train.log" in said
    again = slurm.run(sys.executable, "-m", "launch.submit", "--nodes", "2", *words, cwd=code)
    assert again.count("already in the queue") == 2

    cells = from_args(words).cells
    logs = {p.name: p.read_text()[-3000:] for c in cells for p in [c.dir / "train.log"] if p.exists()}
    for i in range(2):
        assert slurm.wait(f"{train}_{i}", seconds=300)["JobState"] == "COMPLETED", logs
        assert slurm.job(f"{train}_{i}")["Partition"] == "spot" and slurm.job(f"{train}_{i}")["TimeLimit"] == "00:30:00"
    assert (tmp_path / "runs/bad_nodes").read_text().startswith(f"{unfit} /dev/shm has ")
    ends = [line["how"] for c in cells for line in attempts(c.dir) if line["event"] == "end"]
    assert sorted(e for e in ends if unfit not in e) == ["finished", "finished"]
    assert any(e.startswith("bad nodes: ") and unfit in e for e in ends)
    for cell in cells:
        nodes = [line["nodes"] for line in attempts(cell.dir) if line["event"] == "start"][-1]
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
    assert "bits/byte" in next((code / "ablations/records").glob("*/report.md")).read_text()
    nothing = slurm.run(sys.executable, "-m", "launch.submit", "--nodes", "2", *words, cwd=code)
    assert "nothing to submit" in nothing
