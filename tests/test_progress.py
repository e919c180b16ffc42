"""What is shown while a study runs: lines where there is no terminal, bars on one, and the time that is left."""

import contextlib
import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from threading import Event
from typing import cast

import pytest

from ablations import rundir
from ablations.study import Cell, from_args
from launch import progress
from launch.progress import Progress, cells_on_screen, progress_lines

ROOT = Path(__file__).parents[1]
STEPS, TOKENS_OF_STEP = 32, 2048  # of a run of the studies below


def cells_in(out: Path, seeds: int = 1) -> list[Cell]:
    return from_args(["POS=alibi", f"SEEDS={seeds}", "SIZE=nano", "TOKENS=65536", f"OUT={out}"]).cells


def log(cell: Cell, step: int, speed: float = 1024.0) -> None:
    """Write the line of a step into the metrics of a run, as launch/log.py does."""
    cell.dir.mkdir(parents=True, exist_ok=True)
    row = {"step": step, "tokens": step * TOKENS_OF_STEP, "loss": 8.25, "tokens_per_second": speed, "seconds": 1.0}
    with open(cell.dir / rundir.METRICS, "a") as file:
        file.write(json.dumps(row) + "\n")


class Script:
    """In place of the event that ends the display: at each look the next thing happens; after the last one it ends."""

    def __init__(self, *acts: Callable[[], object]):
        self.acts = list(acts)

    def wait(self, seconds: float) -> bool:
        self.acts.pop(0)()
        return not self.acts


def test_without_a_terminal_there_is_a_line_for_each_change_and_now_and_then_one_about_all_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "PAUSE_SHARE", 0.0)
    one, other = cells_in(tmp_path)
    assert one.run.steps == STEPS and one.run.tokens == STEPS * TOKENS_OF_STEP
    phases = {one.dir: "waiting", other.dir: "waiting"}

    def becomes(phase: str) -> Callable[[], None]:
        return lambda: phases.update({one.dir: phase})

    def pause(seconds: float) -> Callable[[], None]:
        return lambda: monkeypatch.setattr(progress, "SHORTEST_PAUSE", seconds)

    def judged() -> None:
        scores = {"bits_per_byte": {"value": 2.5}, "zero_shot": {"value": 33.25}}
        (one.dir / rundir.EVAL).write_text(json.dumps(scores))
        phases[one.dir] = "finished"

    def tuned(left: str) -> Callable[[], object]:
        return lambda: (one.dir / rundir.GLUE_LOG).write_text(f"rte, seed 1, step 7 of 9: 0 of 2 done, {left} left\n")

    acts = [pause(1000), pause(1000), becomes("training"), pause(1000), lambda: log(one, 8), lambda: log(one, 16)]
    acts += [pause(-1), pause(-1), pause(1000), becomes("evaluating"), pause(-1), pause(-1), pause(1000)]
    acts += [becomes("fine-tuning"), tuned("2:00"), pause(-1), pause(-1), tuned("1:00"), pause(1000), judged]
    shown = [*progress_lines(Progress([one, other], phases, 1), cast(Event, Script(*acts)))]
    assert shown == [
        "pos=learned, seed 1  starting",
        "pos=learned, seed 1  step 8/32  loss 8.250  1.02K tokens/s  0:48 left",
        "all runs             25% trained  0 of 2 finished  at least 1:36 left",
        "pos=learned, seed 1  evaluating",
        "all runs             50% trained  0 of 2 finished  at least 1:04 left",
        "pos=learned, seed 1  fine-tuning",
        "all runs             50% trained  0 of 2 finished  1:04 left",  # evaluation took no time
        "pos=learned, seed 1  fine-tuning  rte, seed 1, step 7 of 9: 0 of 2 done, 2:00 left",
        "pos=learned, seed 1  fine-tuning  rte, seed 1, step 7 of 9: 0 of 2 done, 1:00 left",
        "pos=learned, seed 1  finished  2.500 bits/byte  zero-shot 33.2 %",
    ]


def test_the_time_left_is_that_of_a_queue_in_which_the_next_run_takes_the_place_of_the_first_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    cells = cells_in(tmp_path, seeds=3)
    phases = dict.fromkeys((cell.dir for cell in cells), "waiting")
    study = Progress(cells, phases, 2)
    assert study.seconds_left is None and "left" not in study.summary
    for cell in cells[:2]:
        phases[cell.dir] = "training"
    study.update()
    now[0] = 10.0
    log(cells[0], STEPS // 2)  # at 1,024 tokens/s a run takes 64 s
    log(cells[1], 3 * STEPS // 4)
    study.update()
    # each start takes 10 s: the first ends after 32 s, the second after 16; 4 runs of 74 s take the places of these
    assert study.seconds_left == max(16 + 74 + 74, 32 + 74 + 74) and study.summary.endswith("at least 3:00 left")
    phases[cells[1].dir] = "evaluating"
    now[0] = 26.0
    log(cells[0], 3 * STEPS // 4)
    log(cells[1], STEPS)
    study.update()
    now[0] = 31.0
    phases[cells[1].dir] = "finished"
    study.update()  # evaluation took 5 s
    assert study.seconds_left == max(21 + 79 + 79, 79 + 79) and study.summary == "1 of 6 finished  2:59 left"
    for cell in cells:
        phases[cell.dir] = "failed"
    study.update()
    assert study.summary == "1 of 6 finished  5 failed"


def test_where_the_screen_has_no_room_runs_at_work_are_shown_first(tmp_path: Path) -> None:
    cells = cells_in(tmp_path, seeds=3)
    states = ["finished", "finished", "waiting", "failed", "training", "training"]
    phases = {cell.dir: state for cell, state in zip(cells, states, strict=True)}
    study = Progress(cells, phases, 2)
    study.update()
    order = [4, 5, 3, 2, 1, 0]
    for room in range(1, 7):
        assert cells_on_screen(study, room) == {cells[i].dir for i in order[:room]}
    assert cells_on_screen(study, 0) == {cells[4].dir}


def test_on_a_terminal_a_run_has_one_line_that_changes_in_place(tmp_path: Path) -> None:
    script = f"""
import threading
from pathlib import Path
from tests.test_progress import Script, cells_in, log
from launch.progress import Progress, show_progress
cells = cells_in(Path({str(tmp_path)!r}))
phases = dict.fromkeys((cell.dir for cell in cells), "waiting")
def train():
    phases[cells[0].dir] = "training"
    log(cells[0], 8)
show_progress(Progress(cells, phases, 2), Script(train, lambda: log(cells[0], 16), lambda: log(cells[0], 24)))
"""
    main, terminal = pty.openpty()
    size = {"TERM": "xterm", "COLUMNS": "100", "LINES": "24"}
    child = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=terminal, env=os.environ | size)
    os.close(terminal)
    output = b""
    with contextlib.suppress(OSError):  # how Linux says that the other end is closed
        while more := os.read(main, 4096):
            output += more
    assert child.wait(60) == 0
    screen = [""]
    for part in re.split(r"(\x1b\[1A|\x1b\[2K|\r|\n)", output.decode()):  # as a terminal does it
        if part == "\n":
            screen.append("")
        elif part == "\x1b[1A":
            screen.pop()
        elif part == "\x1b[2K":
            screen[-1] = ""
        else:
            screen[-1] += re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", part).strip("\r")
    rows = [" ".join(re.sub("[━╸╺]", "", line).split()) for line in screen if line.strip()]
    assert rows == [
        "all runs 0 of 2 finished at least 1:04 left",
        "pos=learned, seed 1 step 24/32 loss 8.250 1.02K tokens/s 0:16 left",
        "pos=alibi, seed 1 waiting",
    ]
