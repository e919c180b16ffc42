"""Shows how far the runs of a study are while launch/local.py works on them: bars on a terminal, else lines."""

import sys
import threading
import time
from pathlib import Path

from ablations.rundir import last_metric
from ablations.study import Cell
from ablations.values import human

LINES = 15.0  # seconds between the lines for a run in training where there is no terminal; untuned


def show(cells: list[Cell], phases: dict[Path, str], done: threading.Event) -> None:
    """Show the progress of all cells until `done` is set.

    Args:
        phases: {run directory: "waiting", "training", "evaluating", ...}; changed by other threads meanwhile.
    """
    (bars if sys.stdout.isatty() else lines)(cells, phases, done)


def lines(cells: list[Cell], phases: dict[Path, str], done: threading.Event) -> None:
    """Print a line when a run's phase changes, and every LINES seconds one for each run in training."""
    printed, shown = 0.0, dict(phases)
    while not done.wait(0.5):
        due = time.monotonic() - printed > LINES
        for cell in cells:
            phase = phases[cell.dir]
            if phase != shown[cell.dir] or (due and phase == "training"):
                print(f"{cell.name:32} {describe(cell, phase)}", flush=True)
            shown[cell.dir] = phase
        if due:
            printed = time.monotonic()


def bars(cells: list[Cell], phases: dict[Path, str], done: threading.Event) -> None:
    """A bar for each run, and one for all of them."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = [TextColumn("{task.description:32}"), BarColumn(24), TextColumn("{task.fields[words]}")]
    with Progress(*columns, TimeElapsedColumn(), refresh_per_second=4) as bar:
        total = bar.add_task("all runs", total=sum(c.run.length for c in cells), words="")
        rows = {c.dir: bar.add_task(c.name, total=c.run.length, words="waiting", start=False) for c in cells}
        ended = False
        while not ended:
            ended = done.wait(0.25)
            finished = 0.0
            for cell in cells:
                row, phase = rows[cell.dir], phases[cell.dir]
                trained = phase in ("evaluating", "finished")
                position = cell.run.length if trained else cell.run.position(last_metric(cell.dir)[0])
                finished += position
                if phase != "waiting" and not bar.tasks[row].started:
                    bar.start_task(row)
                if phase in ("finished", "failed", "stopped"):
                    bar.stop_task(row)
                bar.update(row, completed=position, words=describe(cell, phase))
            bar.update(total, completed=finished)


def describe(cell: Cell, phase: str) -> str:
    """A run's phase in words; of one in training its step, loss, tokens per second and remaining time."""
    metric, _ = last_metric(cell.dir)
    speed = metric.get("tokens_per_second", 0)
    if phase != "training" or not metric:
        return "starting" if phase == "training" else phase
    left = ""
    if speed > 0 and (seconds := cell.run.seconds_left(metric)) is not None:
        left = f"  {human(speed)} tokens/s  {int(seconds) // 60}:{int(seconds) % 60:02d} left"
    return f"step {cell.run.step_of_all(metric['step'])}  loss {metric['loss']:.3f}{left}"
