"""The proof by chaos: a study on a Slurm of 4 nodes while everything fails that fails elsewhere; `make chaos`.

The same study runs twice: undisturbed, and while nodes lose power, cables are pulled, ranks are killed, jobs are
preempted, meet their time limits and are cancelled. Afterwards every run must be finished with the very weights and
metrics of the undisturbed one, each step counted once. The table goes to docs/reliability.md with --write.
"""

import argparse
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
from cluster import Cluster, cannot, cluster  # noqa: E402
from conftest import ROOT, copy_code  # noqa: E402

from ablations.rundir import read_attempts  # noqa: E402
from ablations.study import Cell, from_args  # noqa: E402

MARK = "<!-- make chaos writes from here -->", "<!-- to here -->"


def step(cell: Cell) -> int:
    """The last step that the run has logged; what a killed attempt logged beyond its checkpoint is done again."""
    try:
        return json.loads((cell.dir / "metrics.jsonl").read_text().splitlines()[-1])["step"]
    except (OSError, IndexError, ValueError):
        return 0


def submit(slurm: Cluster, code: Path, words: list[str], partition: str) -> str:
    env = {"SBATCH_PARTITION": partition, "SBATCH_TIMELIMIT": "60", "SBATCH_SIGNAL": "B:USR1@20"}
    count = len(from_args(words).cells)
    command = ["sbatch", "--parsable", "--nodes=2", f"--array=0-{count - 1}", "launch/run.sh", *words]
    return slurm.run(*command, cwd=code, env=env)


def wait_for(slurm: Cluster, cells: list[Cell], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not all((c.dir / "done").exists() for c in cells):
        for cell in cells:
            if (cell.dir / "failed").exists():
                raise SystemExit(f"{cell.dir}: {(cell.dir / 'failed').read_text()}")
        if time.monotonic() > end:
            raise SystemExit(f"not finished after {seconds:.0f} s\n{slurm.run('squeue')}\n{slurm.run('sinfo')}")
        time.sleep(0.2)


# ----------------------------------------------------------------------------------------------- what goes wrong


def nodes_of(slurm: Cluster, job: str) -> list[str]:
    return slurm.run("scontrol", "show", "hostnames", slurm.job(job)["NodeList"]).split()


def power_loss(slurm: Cluster, job: str, rng: random.Random) -> str:
    node = rng.choice(nodes_of(slurm, job))
    slurm.power_off(node)
    threading.Timer(25, lambda: slurm.has_power(node) or slurm.power_on(node)).start()
    return f"{node}, {'where the script ran' if node == slurm.job(job)['BatchHost'] else 'another node'}"


def cable(slurm: Cluster, job: str, rng: random.Random) -> str:
    node = rng.choice(nodes_of(slurm, job))
    slurm.unplug(node)
    threading.Timer(30, slurm.plug, [node]).start()
    return node


def preemption(slurm: Cluster, job: str, rng: random.Random) -> str:
    slurm.run("sbatch", "--partition=main", "--nodes=4", "--exclusive", "--output=/dev/null", "--wrap", "sleep 3")
    return "all runs at once"


def time_limit(slurm: Cluster, job: str, rng: random.Random) -> str:
    left = rng.choice([1, 19])
    limit = time.strftime("%FT%T", time.localtime(time.time() + left))
    slurm.run("scontrol", "update", f"JobId={job}", f"EndTime={limit}")
    return f"{left} s left"


def killed_rank(slurm: Cluster, job: str, rng: random.Random) -> str:
    node = rng.choice(nodes_of(slurm, job))
    find = "grep -qs launch.train $p/cmdline && grep -qs python $p/comm"
    slurm.on(node, "sh", "-c", f"for p in /proc/[0-9]*; do if {find}; then kill -KILL ${{p#/proc/}}; fi; done")
    return f"SIGKILL on {node}"


def requeued(slurm: Cluster, job: str, rng: random.Random) -> str:
    slurm.run("scontrol", "requeue", job)
    return "by an administrator"


def cancelled(slurm: Cluster, job: str, rng: random.Random) -> str:
    slurm.run("scancel", job)
    return "and submitted again"


FAULTS: list[tuple[str, Callable[[Cluster, str, random.Random], str]]] = [
    ("power loss", power_loss),
    ("cable pulled", cable),
    ("preemption", preemption),
    ("time limit", time_limit),
    ("rank killed", killed_rank),
    ("requeue", requeued),
    ("cancel", cancelled),
]


def storm(slurm: Cluster, code: Path, words: list[str], count: int, seed: int) -> list[dict]:
    """Run the study through `count` faults, one after another, each once training goes on. Returns a row for each."""
    rng, cells, rows = random.Random(seed), from_args(words).cells, []
    array = submit(slurm, code, words, "spot")
    jobs = {c.dir: f"{array}_{i}" for i, c in enumerate(cells)}
    while len(rows) < count:
        open_ = [c for c in cells if not (c.dir / "done").exists()]
        if not open_:
            break
        at = {c.dir: step(c) for c in open_}
        time.sleep(rng.uniform(2, 8))
        moving = [c for c in open_ if step(c) > at[c.dir] and slurm.job(jobs[c.dir])["JobState"] == "RUNNING"]
        if not moving:
            continue
        cell, (name, act) = rng.choice(moving), FAULTS[len(rows) % len(FAULTS)]
        reached, began = step(cell), time.time()
        tries = len(read_attempts(cell.dir)[0])
        where = act(slurm, jobs[cell.dir], rng)
        row = {"fault": name, "where": where, "run": cell.name, "step": reached}
        if name == "cancel":
            slurm.wait(jobs[cell.dir])
            index = cells.index(cell)
            env = {"SBATCH_PARTITION": "spot", "SBATCH_TIMELIMIT": "60", "SBATCH_SIGNAL": "B:USR1@20"}
            again = ["sbatch", "--parsable", "--nodes=2", f"--array={index}", "launch/run.sh", *words]
            jobs[cell.dir] = slurm.run(*again, cwd=code, env=env) + f"_{index}"
        # until it has begun again and is where it was
        end = time.monotonic() + 240
        while not (begun := [x for x in read_attempts(cell.dir)[0][tries:] if x["event"] == "start"]):
            if time.monotonic() > end or (cell.dir / "done").exists():
                break
            time.sleep(0.1)
        if not begun:  # it finished before it could be hit
            continue
        ends = [x for x in read_attempts(cell.dir)[0][tries:] if x["event"] == "end"]
        while step(cell) <= reached and not (cell.dir / "done").exists() and time.monotonic() < end:
            time.sleep(0.1)
        row |= {
            "from": begun[0]["step"],
            "down": begun[0]["time"] - began,
            "seconds": time.time() - began,
            "ended": ends[0]["how"] if ends and ends[0]["time"] <= begun[0]["time"] else "no word",
        }
        rows.append(row)
        print(
            f"{len(rows):3} {name} ({where}) at step {reached} of {cell.name}: from step {row['from']} again, "
            f"{row['seconds']:.0f} s lost",
            flush=True,
        )
    wait_for(slurm, cells, 900)
    return rows


def same(quiet: Cell, storm: Cell) -> str:
    """What differs between an undisturbed run and one that went through the storm, or nothing."""
    clock = ("tokens_per_second", "seconds")
    a, b = (
        [{k: v for k, v in json.loads(x).items() if k not in clock} for x in (c.dir / "metrics.jsonl").open()]
        for c in (quiet, storm)
    )
    if [r["step"] for r in b] != list(range(1, quiet.run.steps + 1)):
        return "steps are missing or counted twice"
    if a != b:
        return f"metrics differ from step {next(x['step'] for x, y in zip(a, b, strict=True) if x != y)} on"
    if (quiet.dir / "weights.safetensors").read_bytes() != (storm.dir / "weights.safetensors").read_bytes():
        return "weights differ"
    x, y = (json.loads((c.dir / "done").read_text()) for c in (quiet, storm))
    return "" if (x["steps"], x["tokens"]) == (y["steps"], y["tokens"]) else "the budgets differ"


def table(rows: list[dict], verdicts: dict[str, str], about: str) -> str:
    lines = [
        "| fault | where | at step | the script says | again from step | s until it ran again | s lost |",
        "|---|---|---:|---|---:|---:|---:|",
    ]
    lines += [
        f"| {r['fault']} | {r['where']} | {r['step']} | {r['ended']} | {r['from']} | {r['down']:.0f} | "
        f"{r['seconds']:.0f} |"
        for r in rows
    ]
    wrong = "; ".join(f"{k}: {v}" for k, v in verdicts.items() if v)
    right = "Every run is finished, and its metrics and weights are those of the undisturbed run, bit for bit."
    return "\n".join([about, "", *lines, "", wrong or right])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="nano", help="nano, or tiny: a run takes seconds")
    parser.add_argument("--faults", type=int, default=14)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--write", action="store_true", help="put the table into docs/reliability.md")
    args = parser.parse_args()
    if reason := cannot():
        raise SystemExit(reason)
    setting = "layout.micro_batch=4 layout.log_every=1 layout.save_every=8 layout.wandb=disabled train.precision=fp32"
    if args.size == "tiny":
        setting += " model.layers=1 model.hidden=32 model.heads=2 model.seq=64 train.tokens=1M"
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    study = ["POS=alibi,rotary", "SEEDS=1", "SIZE=nano", f"SET={setting}"]
    words = {out: [*study, f"OUT={folder / out}"] for out in ("quiet", "storm")}
    code = copy_code(folder / "code")
    for out in words.values():
        Path(out[-1][4:]).mkdir()
    (folder / "storm/data").symlink_to(folder / "quiet/data")
    if (ROOT / "runs/data").exists():
        (folder / "quiet/data").symlink_to(ROOT / "runs/data")
    what = ["pydocs", "--tokenizer", "pydocs", "--vocab", "4096", "--store", str(folder / "quiet/data")]
    subprocess.run([sys.executable, "-m", "data.prepare", *what], cwd=code, check=True, stdout=subprocess.DEVNULL)
    os.environ["OMP_NUM_THREADS"] = "1"
    with cluster(4) as slurm:
        began = time.time()
        quiet = from_args(words["quiet"]).cells
        submit(slurm, code, words["quiet"], "spot")
        wait_for(slurm, quiet, 1200)
        calm = time.time() - began
        print(f"undisturbed: {calm:.0f} s", flush=True)
        slurm.tidy()
        began = time.time()
        rows = storm(slurm, code, words["storm"], args.faults, args.seed)
        took = time.time() - began
    cells = from_args(words["storm"]).cells
    verdicts = {s.name: same(q, s) for q, s in zip(quiet, cells, strict=True)}
    starts = sum(x["event"] == "start" for c in cells for x in read_attempts(c.dir)[0])
    about = (
        f"{len(cells)} runs of {cells[0].run.steps} steps ({args.size}), each on 2 of 4 nodes, two CPU cores in all: "
        f"{calm:.0f} s undisturbed, {took:.0f} s with {len(rows)} faults and {starts} attempts. "
        f'Command: `make chaos ARGS="--size {args.size} --faults {args.faults} --seed {args.seed}"`.'
    )
    text = table(rows, verdicts, about)
    print(text)
    if args.write:
        path = ROOT / "docs/reliability.md"
        path.parent.mkdir(exist_ok=True)
        old = path.read_text() if path.exists() else f"# Reliability\n\n## Chaos\n\n{MARK[0]}\n{MARK[1]}\n"
        if MARK[0] not in old:
            old = f"{old.rstrip()}\n\n## Chaos\n\n{MARK[0]}\n{MARK[1]}\n"
        between = re.compile(f"{re.escape(MARK[0])}.*{re.escape(MARK[1])}", re.DOTALL)
        path.write_text(between.sub(lambda _: f"{MARK[0]}\n{text}\n{MARK[1]}", old))
    bad = any(verdicts.values())
    if not bad:
        shutil.rmtree(folder)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
