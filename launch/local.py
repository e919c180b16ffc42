"""`python -m launch.local POS=alibi`: runs the cells of a study on this machine, a few at a time, each in a process.

Training and evaluation meet in the run directory only, so this file starts them as commands and reads what they
leave there. Run again after any interruption: finished cells are kept, a half-finished one continues.
"""

import ctypes
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ablations.config import ConfigError
from ablations.machine import has_gpu
from ablations.plan.reading import reading
from ablations.status import locked
from ablations.study import ROOT, Cell, Study, from_anywhere, from_args, human, last_line


class Failed(RuntimeError):
    """A command of a cell ended badly; its log says why."""


def run(study: Study) -> list[str]:
    """Prepare data, train and evaluate every cell that is not finished.

    Returns:
        What failed, a line for each cell; empty when all is well.
    """
    for cell in study.cells:
        cell.check_recorded()
    check_tasks(study)
    todo = [c for c in study.cells if not (c.dir / "eval.json").exists()]
    if evaluated := [str(c.dir) for c in study.cells if c not in todo]:
        # at once, unless the tasks have another version by now or there are more
        command = [sys.executable, "-m", "eval", *study.judged, *evaluated]
        if subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, preexec_fn=_die_with_parent).returncode:
            todo = study.cells  # each on its own: what fails is named, and keeps no other run from its evaluation
    if not todo:
        return []
    prepare(study, todo)
    print(*reading(study), "", sep="\n", flush=True)
    failures: list[str] = []
    phase = {c.dir: "waiting" for c in todo}

    def lane(cell: Cell) -> None:
        try:
            _finish(study, cell, phase)
            phase[cell.dir] = "finished"
        except Failed as error:
            phase[cell.dir] = "failed"
            failures.append(f"{cell.name}: {error}")

    done = threading.Event()
    watcher = threading.Thread(target=_watch, args=(todo, phase, done))
    watcher.start()
    try:
        with ThreadPoolExecutor(jobs(study)) as pool:
            for future in [pool.submit(lane, cell) for cell in todo]:
                future.result()
    finally:
        done.set()
        watcher.join()
    return failures


def check_tasks(study: Study) -> None:
    """A task that cannot be run is said now, not when the runs are trained.

    Raises:
        ConfigError: when the runs cannot be judged by TASKS.
    """
    if not study.judged:
        return
    command = [sys.executable, "-m", "eval", *study.judged]
    if subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, preexec_fn=_die_with_parent).returncode:
        raise ConfigError("the runs cannot be judged by TASKS; the reason stands above")


def prepare(study: Study, cells: list[Cell]) -> None:
    """Corpora, tokenizers and tokens that the cells need, where they are missing.

    Raises:
        ConfigError: when one cannot be had, or is another than the study's runs were trained on.
    """
    from data.corpus import incomplete
    from launch.data_identity import check_files, check_prepared

    check_files(study)
    asked = []
    for data, vocab in {(c.run.data, c.run.model.vocab): 0 for c in cells}:
        given = [f"data.{name}={value}" for name, value in data.recipe._asdict().items()]
        tokenizer = ["--tokenizer", data.tokenizer, "--kind", data.tokenizer_kind, "--vocab", str(vocab)]
        asked.append([data.corpus, *tokenizer, "--set", *given])
    judged = {(corpus, c.run.data.allow_errors): 0 for c in cells for corpus in c.run.eval.corpora}
    asked += [[corpus, "--held-out", "--set", f"data.allow_errors={errors}"] for corpus, errors in judged]
    store = study.out / "data"
    for sentence in incomplete((corpus for c in cells for corpus in c.run.corpora), store):
        print(f"warning: {sentence}", file=sys.stderr)
    for what in asked:
        corpus = what[0]
        command = [sys.executable, "-m", "data.prepare", *what, "--told", "--store", str(store)]
        if subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, preexec_fn=_die_with_parent).returncode:
            raise ConfigError(f"the corpus {corpus} cannot be prepared; the reason stands above")
    check_prepared(study)


def jobs(study: Study) -> int:
    """How many runs at a time: as many as there are cores for on a CPU, one on a GPU."""
    if study.jobs:
        return study.jobs
    layout = study.base.layout
    return 1 if has_gpu() else max(1, len(os.sched_getaffinity(0)) // (layout.threads * max(layout.processes, 1)))


def _finish(study: Study, cell: Cell, phase: dict[Path, str]) -> None:
    """Train, if need be, then evaluate."""
    cell.dir.mkdir(parents=True, exist_ok=True)
    trained = False
    while not trained:
        while locked(cell.dir):
            phase[cell.dir] = "trained by another process"
            time.sleep(0.5)
        try:
            if not (cell.dir / "done").exists():
                phase[cell.dir] = "training"
                index = str(study.cells.index(cell))
                command = [sys.executable, "-m", "launch.train", "--cell", index, *study.words]
                _command(command, cell, "train.log", cell.run.layout.processes or _gpus())
            trained = True
        except Failed:
            if not locked(cell.dir):  # else another process was first, by a moment
                raise
    phase[cell.dir] = "evaluating"
    _command([sys.executable, "-m", "eval", *study.judged, str(cell.dir)], cell, "eval.log", 1)


def _command(command: list[str], cell: Cell, log: str, ranks: int) -> None:
    """Run `command` once for each rank; when one ends badly, end the others."""
    threads = str(cell.run.layout.threads)
    env = os.environ | {"OMP_NUM_THREADS": threads, "OMP_WAIT_POLICY": "PASSIVE", "PYTHONUNBUFFERED": "1"}
    if ranks > 1:
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            env |= {
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(s.getsockname()[1]),
                "WORLD_SIZE": str(ranks),
                "LOCAL_WORLD_SIZE": str(ranks),
            }
    path = cell.dir / log
    with open(path, "ab") as out:
        children = [
            subprocess.Popen(
                command,
                cwd=ROOT,
                stdout=out,
                stderr=out,
                stdin=subprocess.DEVNULL,
                preexec_fn=_die_with_parent,
                env=env | ({"RANK": str(r), "LOCAL_RANK": str(r)} if ranks > 1 else {}),
            )
            for r in range(ranks)
        ]
        while any(c.poll() is None for c in children):
            if any(c.poll() not in (None, 0) for c in children):
                for c in children:
                    c.kill()
            time.sleep(0.05)
    bad = [c.returncode for c in children if c.returncode]
    if bad:
        lines = [x for x in path.read_text(errors="replace").splitlines() if x.strip()]
        at = max((i for i, x in enumerate(lines) if x.startswith("error: ")), default=-1)
        said = "\n".join(lines[at:]).removeprefix("error: ")
        how = f"killed by {signal.Signals(-bad[0]).name}" if bad[0] < 0 else said
        raise Failed(f"{how}  (log: {path}; the same command continues)")


def _die_with_parent() -> None:
    """A training process must not outlive a killed parent unseen (Linux: PR_SET_PDEATHSIG)."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def _gpus(devices: Path = Path("/proc/driver/nvidia/gpus")) -> int:
    """Those of this machine, or of them those that CUDA_VISIBLE_DEVICES names; at least 1, for a CPU."""
    there, visible = len(list(devices.glob("*"))), os.environ.get("CUDA_VISIBLE_DEVICES")
    return max(1, there if visible is None else min(there, len([x for x in visible.split(",") if x.strip()])))


# ------------------------------------------------------------------------------------------------ progress


def _watch(cells: list[Cell], phase: dict[Path, str], done: threading.Event) -> None:
    """Show how far every cell is, from metrics.jsonl: a bar each on a terminal, else a line now and then."""
    if not sys.stdout.isatty():
        told, shown = 0.0, dict(phase)
        while not done.wait(0.5):
            due = time.monotonic() - told > 15
            for cell in cells:
                here = phase[cell.dir]
                if here != shown[cell.dir] or (due and here == "training"):
                    print(f"{cell.name:32} {_words(cell, here)}", flush=True)
                shown[cell.dir] = here
            told = time.monotonic() if due else told
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    text = [TextColumn("{task.description:32}"), BarColumn(24), TextColumn("{task.fields[words]}")]
    with Progress(*text, TimeElapsedColumn(), refresh_per_second=4) as bar:
        total = bar.add_task("all runs", total=sum(c.run.steps for c in cells), words="")
        rows = {c.dir: bar.add_task(c.name, total=c.run.steps, words="waiting", start=False) for c in cells}
        while True:
            ended = done.wait(0.25)
            finished = 0
            for cell in cells:
                row, here = last_line(cell.dir / "metrics.jsonl") or {}, phase[cell.dir]
                step = cell.run.steps if here in ("evaluating", "finished") else row.get("step", 0)
                finished += step
                if here != "waiting" and not bar.tasks[rows[cell.dir]].started:
                    bar.start_task(rows[cell.dir])
                if here in ("finished", "failed"):
                    bar.stop_task(rows[cell.dir])
                bar.update(rows[cell.dir], completed=step, words=_words(cell, here))
            bar.update(total, completed=finished)
            if ended:
                return


def _words(cell: Cell, phase: str) -> str:
    row: dict[str, Any] = last_line(cell.dir / "metrics.jsonl") or {}
    if phase != "training" or not row:
        return "starting" if phase == "training" else phase
    left = (cell.run.tokens - row["tokens"]) / row["tokens_per_second"]
    return (
        f"step {row['step']}/{cell.run.steps}  loss {row['loss']:.3f}  {human(row['tokens_per_second'])} tokens/s  "
        f"{int(left) // 60}:{int(left) % 60:02d} left"
    )


# ------------------------------------------------------------------------------------------------ the command


def main(words: list[str]) -> int:
    """Trains and evaluates what is not finished, then writes the report. Exit codes: 0, 1 (something failed), 2 (the
    command is not valid), 130 (interrupted)."""
    if words in (["-h"], ["--help"], []):
        print(f"{__doc__}\nNAME=VALUE words: see `make help`.")
        return 0
    began = time.monotonic()
    try:
        study = from_args(from_anywhere(words))
        print(f"{study.title}\n  question  {study.question}\n  expected  {study.expect}\n", flush=True)
        failures = run(study)
        for failure in failures:
            print(f"failed: {failure}", file=sys.stderr)
        unreported = subprocess.run([sys.executable, "-m", "eval.report", *study.words], cwd=ROOT).returncode
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted; the same command continues", file=sys.stderr)
        return 130
    seconds = int(time.monotonic() - began)
    print(f"\n{seconds // 60} min {seconds % 60} s." + (" There is no report" if unreported else ""))
    return 1 if failures or unreported else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
