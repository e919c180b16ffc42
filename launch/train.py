"""Trains one cell of a study: `python -m launch.train --cell 3 POS=alibi`.

Run it again to continue: it picks up the last whole checkpoint, and on a CPU the finished run equals an undisturbed
one bit for bit. Under torchrun or Slurm the same command is one rank of many.
"""

import argparse
import fcntl
import json
import math
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ablations.budget import learning_rate
from ablations.config import ConfigError, Run
from ablations.study import Cell, from_args
from launch import manifest


class Diverged(RuntimeError):
    """Training cannot go on."""


def train(cell: Cell, store: Path) -> None:
    """From the first step, or from the last checkpoint, to the end of the budget."""
    from data.batches import Batches
    from launch import engine as ds
    from launch.log import Log
    from model.gpt import GPT

    run, folder = cell.run, cell.dir
    rank, world = ds.start(run)
    data = manifest.prepare_data(run, store)
    engine = ds.build(GPT(run.model, run.seed), run, world)
    manifest.write(cell, engine, data, store, world)  # proofs first: a run that is not what it says stops here

    sources = [(s["prefix"], s["weight"]) for s in data["train"]]
    batches = Batches(sources, run.model.seq, run.train.batch, run.seed)
    mine = slice(rank * run.train.batch // world, (rank + 1) * run.train.batch // world)

    state = engine.load(folder / "checkpoints") or {"step": 0, "seconds": 0.0, "losses": []}
    step, before, losses = state["step"], state["seconds"], state["losses"]
    log = Log(folder, run, cell.name, step) if rank == 0 else None
    began = time.perf_counter()
    tick, ticked = began, step
    while step < run.steps:
        lr = learning_rate(run.train, (step + 1) / run.steps)
        loss, norm = engine.step(batches.batch(step, mine), lr, seed=(run.seed * 1_000_003 + step) * world + rank)
        step += 1
        losses.append(loss)
        stop_if_diverged(run, step, loss, norm)
        if step % run.layout.log_every == 0 or step == run.steps:
            now = time.perf_counter()
            if log:
                tokens = run.train.batch * run.model.seq
                log.write({
                    "step": step, "tokens": step * tokens, "loss": math.fsum(losses) / len(losses), "lr": engine.lr,
                    "grad_norm": norm, "tokens_per_second": (step - ticked) * tokens / (now - tick),
                    "seconds": before + now - began,
                })  # fmt: skip
            tick, ticked, losses = now, step, []
        if step % run.layout.save_every == 0 or step == run.steps:
            seconds = before + time.perf_counter() - began
            engine.save(folder / "checkpoints", step, {"step": step, "seconds": seconds, "losses": losses})

    engine.write_weights(folder / "weights.safetensors")
    if log:
        log.close()
        seconds = before + time.perf_counter() - began
        done = {"steps": step, "tokens": step * run.train.batch * run.model.seq, "seconds": seconds, "ranks": world}
        ds.replace_text(folder / "done", json.dumps(done))


def stop_if_diverged(run: Run, step: int, loss: float, norm: float) -> None:
    """Raises:
    Diverged: for a loss or gradient that is no number, or a loss well above that of a uniform guess.
    """
    limit = math.log(run.model.vocab) + run.train.divergence
    cure = "Try a lower train.lr or a longer train.warmup."
    if not (math.isfinite(loss) and math.isfinite(norm)):
        raise Diverged(f"step {step}: the loss is {loss} and the gradient norm {norm}. {cure}")
    if loss > limit:
        raise Diverged(f"step {step}: loss {loss:.3f}, above log(vocab) + train.divergence = {limit:.3f}. {cure}")


@contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Only one process (its first rank) may write a run directory."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        if int(os.environ.get("RANK", "0")) == 0:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigError(f"another process is training {folder}") from None
        yield


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m launch.train", description=__doc__)
    parser.add_argument("--cell", type=int, required=True, help="the run's place in the plan: python -m ablations plan")
    parser.add_argument("words", nargs="+", metavar="NAME=VALUE", help="the study, as for `python -m ablations`")
    args = parser.parse_args(argv)
    try:
        study = from_args(args.words)
        if not 0 <= args.cell < len(study.cells):
            raise ConfigError(f"--cell {args.cell}: the plan has the cells 0 to {len(study.cells) - 1}")
        cell = study.cells[args.cell]
        cell.check_recorded()
        if (cell.dir / "done").exists():
            print(f"{cell.name} is finished")
            return 0
        with owned(cell.dir):
            (cell.dir / "failed").unlink(missing_ok=True)
            train(cell, study.out / "data")
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (Diverged, manifest.Mismatch) as error:
        (cell.dir / "failed").write_text(f"{error}\n")
        print(f"error: {cell.name}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
