"""Takes the place of launch/train.py in tests of the script around it: the same files and exit codes, no torch.

A file `trouble` in the output root says what goes wrong: "crash", "diverge CELL", "deaf" (to the stop file),
"bad NODE", "long" (40 s).
"""

import argparse
import json
import os
import signal
import socket
import sys
import time

from ablations.rundir import last_step, write_done
from ablations.study import from_args

parser = argparse.ArgumentParser()
parser.add_argument("--cell", type=int)
parser.add_argument("words", nargs="+")
args = parser.parse_args()
study = from_args(args.words)
run, rank = study.cells[args.cell].dir, int(os.environ["RANK"])
trouble = (study.out / "trouble").read_text().split() if (study.out / "trouble").exists() else [""]
names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "CUDA_VISIBLE_DEVICES")
print(json.dumps({n: os.environ.get(n) for n in names} | {"host": socket.gethostname()}), flush=True)

if trouble[0] == "crash":
    sys.exit("crash")
if trouble[0] == "diverge" and args.cell == int(trouble[1]):
    (run / "failed").write_text("step 7: the loss is nan")
    sys.exit(1)
if trouble[0] == "bad" and socket.gethostname() == trouble[1]:
    (study.out / "bad_nodes").write_text(f"{trouble[1]} it is haunted\n")
    sys.exit(77)
asked = []
signal.signal(signal.SIGTERM, lambda *_: asked.append(75))


def save(step: int) -> None:
    if rank == 0:
        folder = run / f"checkpoints/step_{step}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "checkpoint.json").write_text("{}")


STEPS = 400 if trouble[0] == "long" else 60
for step in range(last_step(run), STEPS):
    if trouble[0] != "deaf":
        asked += [76] * (study.out / "stop").exists() + [75] * (run / "stop").exists()
    if asked:
        save(step)
        sys.exit(asked[0])
    if step % 20 == 0 and step:
        save(step)
    if rank == 0:
        with open(run / "metrics.jsonl", "a") as f:
            print(json.dumps({"step": step + 1, "host": socket.gethostname()}), file=f)
    time.sleep(0.1)
if rank == 0:
    save(STEPS)
    (run / "weights.safetensors").write_bytes(b"")
    write_done(run, {})
