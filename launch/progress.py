"""Shows the progress of a study's runs, while launch/local.py trains and evaluates them.

On a terminal, bars for each run and for all runs are updated in place. Elsewhere (a pipe, a log file) a line is printed
at each change of a run's state, and at times a line about all runs.
"""

import heapq
import re
import statistics
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from ablations import rundir, safe_files, status
from ablations.rundir import last_metric
from ablations.safe_files import printable
from ablations.study import Cell
from ablations.values import short_number

SHORTEST_PAUSE = 15.0  # seconds between lines about all runs; untuned
# The pause grows with the time since the start, as this share of it: a day makes some hundred lines. Untuned.
PAUSE_SHARE = 0.05
LOG_BYTES = 20_000  # of the end of a log that are searched for a line about progress
STAGES = ("starting", "training", "evaluating", "fine-tuning", "exporting")  # the states of a run at work, in order
ENDED = ("finished", "failed", "stopped")  # the states of a run that this command is done with


class Progress:
    """The states of the runs of a command, and an estimate of the time left.

    The state of a run is its phase in `phases`, with one exception: a run in training is "starting" until it has logged
    a loss.

    Args:
        cells: the runs, in the order in which they are begun.
        phases: {run directory: "waiting", "training", "evaluating", ...}; changed by other threads meanwhile.
        concurrency: the number of runs that are at work at a time.
    """

    def __init__(self, cells: list[Cell], phases: dict[Path, str], concurrency: int):
        self.cells, self.phases, self.concurrency = cells, phases, concurrency
        self.state = {cell.dir: "waiting" for cell in cells}
        self.since = {cell.dir: time.monotonic() for cell in cells}
        self.metric = {cell.dir: last_metric(cell.dir)[0] for cell in cells}
        self.scores: dict[Path, str] = {}  # {run directory of a finished run: its scores as text}
        self.durations: dict[str, list[float]] = {}  # {state: seconds, for each run that has been in it and left it}

    def update(self) -> list[Cell]:
        """Read the phases and metrics of all runs. Returns the runs whose state has changed since the last call."""
        changed = []
        for cell in self.cells:
            phase, before = self.phases[cell.dir], self.state[cell.dir]
            if before in ENDED:
                continue
            if phase != "waiting":
                self.metric[cell.dir] = last_metric(cell.dir)[0]
            state = "starting" if phase == "training" and not self.metric[cell.dir] else phase
            if state != before:
                self.durations.setdefault(before, []).append(time.monotonic() - self.since[cell.dir])
                self.state[cell.dir], self.since[cell.dir] = state, time.monotonic()
                if state == "finished":
                    self.scores[cell.dir] = score_text(cell)
                changed.append(cell)
        return changed

    def trained_length(self, cell: Cell) -> float:
        """How far a run is trained: in steps, or in seconds where the budget is a time (as `cell.run.length`)."""
        trained = self.state[cell.dir] in ("finished", *STAGES[2:])
        return cell.run.length if trained else cell.run.progress(self.metric[cell.dir])

    @property
    def finished_share(self) -> float:
        """The share of all runs' training that is done, from 0 to 1."""
        return sum(map(self.trained_length, self.cells)) / sum(cell.run.length for cell in self.cells)

    @property
    def seconds_left(self) -> float | None:
        """An estimate of the seconds until all runs have ended; None while no run has logged a speed.

        Stages that no run has completed yet, such as evaluation, are not included. A run without a logged speed is
        given the median speed of the other runs. Waiting runs begin in order, as soon as fewer than `concurrency` runs
        are at work.
        """
        speeds = [metric["tokens_per_second"] for metric in self.metric.values() if metric.get("tokens_per_second")]
        if not speeds:
            return None
        ends: list[float] = []  # a heap: when the runs that were begun last will end
        for cell in sorted(self.cells, key=lambda cell: self.state[cell.dir] == "waiting"):
            if self.state[cell.dir] not in ENDED:
                begin = heapq.heappop(ends) if len(ends) >= self.concurrency else 0.0
                heapq.heappush(ends, begin + self._seconds_left_of(cell, statistics.median(speeds)))
        return max(ends, default=0.0)

    def _seconds_left_of(self, cell: Cell, speed: float) -> float:
        """An estimate of the seconds that a run still needs, without the time that it waits. `speed`: tokens per
        second, for a run that has logged no speed."""
        state, metric = self.state[cell.dir], {"tokens": 0, "tokens_per_second": speed} | self.metric[cell.dir]
        usual = {stage: statistics.median(self.durations[stage]) for stage in STAGES if stage in self.durations}
        usual["training"] = cell.run.seconds_left(metric) or 0.0
        stages = STAGES[STAGES.index(state) :] if state in STAGES else STAGES
        seconds = sum(usual.get(stage, 0.0) for stage in stages)
        if state in STAGES and state != "training":
            seconds -= min(usual.get(state, 0.0), time.monotonic() - self.since[cell.dir])
        return seconds

    def describe(self, cell: Cell) -> str:
        """The state of a run as text. In training: step, loss, speed and time left. When finished: the scores.
        Otherwise the state's name."""
        state, metric = self.state[cell.dir], self.metric[cell.dir]
        if state == "training":
            facts = [f"step {cell.run.step_text(metric['step'])}", f"loss {metric['loss']:.3f}"]
            if metric.get("tokens_per_second", 0) > 0:
                facts.append(f"{short_number(metric['tokens_per_second'])} tokens/s")
                if (left := cell.run.seconds_left(metric)) is not None:
                    facts.append(f"{status.duration_text(left)} left")
            return "  ".join(facts)
        if state == "fine-tuning":
            return f"{state}  {fine_tuning_text(cell)}".rstrip()
        return f"finished  {self.scores[cell.dir]}" if state == "finished" else state

    @property
    def summary(self) -> str:
        """The progress of all runs as text: how many have finished, failed or stopped, and the time left."""
        states = [self.state[cell.dir] for cell in self.cells]
        counts = [f"{states.count('finished')} of {len(states)} finished"]
        counts += [f"{states.count(name)} {name}" for name in ENDED[1:] if name in states]
        if not set(states) <= set(ENDED) and (left := self.seconds_left or 0.0) >= 1:
            counts.append(f"{'' if 'evaluating' in self.durations else 'at least '}{status.duration_text(left)} left")
        return "  ".join(counts)


def score_text(cell: Cell) -> str:
    """The headline scores of an evaluated run as text, such as "1.234 bits/byte zero-shot 40.1 %"."""
    facts = status.run_state(cell)
    words = [f"{facts['bits_per_byte']:.3f} bits/byte"] if "bits_per_byte" in facts else []
    words += [f"zero-shot {facts['zero_shot']:.1f} %"] if "zero_shot" in facts else []
    return "  ".join(words)


def fine_tuning_text(cell: Cell) -> str:
    """The progress of a run's fine-tuning: the last such line in glue.log, which eval/finetune/work.py writes. An
    example is "rte, seed 1, step 120 of 780: 3 of 10 done, 3:10 left". "" where there is none."""
    try:
        log = safe_files.read_bytes(cell.dir / rundir.GLUE_LOG) or b""
    except safe_files.Damaged:
        return ""
    lines = re.findall(r"^.*: \d+ of \d+ done.*$", log[-LOG_BYTES:].decode(errors="replace"), re.MULTILINE)
    return lines[-1] if lines else ""


def glue_text(cell: Cell) -> str:
    """The GLUE scores of a fine-tuned run as text, such as "cola 12.3  rte 52.7  mean of 2 of nine numbers 32.5"; ""
    where there are none. The nine numbers are those of which the GLUE benchmark's score is the mean."""
    try:
        table = safe_files.read_json(cell.dir / rundir.GLUE / rundir.GLUE_TABLE, ["scores", "study"]) or {}
    except safe_files.Damaged:
        return ""
    means = {"study": {"nine_numbers": rundir.NUMBER, "numbers": int}}
    if not table or safe_files.first_misfit(table, {"scores": dict, **means}):
        return ""
    form = {name: {"study": {"median": rundir.NUMBER}} for name in table["scores"]}
    if safe_files.first_misfit(table["scores"], form):
        return ""
    words = [f"{printable(name)} {entry['study']['median']:.1f}" for name, entry in table["scores"].items()]
    count = table["study"]["numbers"]
    words.append(
        f"mean of {'all nine' if count == 9 else f'{count} of nine'} numbers {table['study']['nine_numbers']:.1f}"
    )
    return "  ".join(words)


def show_progress(progress: Progress, done: threading.Event) -> None:
    """Show the progress of all runs until `done` is set: as bars on a terminal, as lines elsewhere."""
    from rich.console import Console

    console = Console()
    if console.is_terminal and not console.is_dumb_terminal:
        show_bars(progress, done)
    else:
        for line in progress_lines(progress, done):
            print(line, flush=True)


def progress_lines(progress: Progress, done: threading.Event) -> Iterator[str]:
    """Yield the progress as lines of text until `done` is set.

    A change of a run's state gives a line. Every 15 seconds, and more rarely after a while, a line about all runs
    follows, and one for each run in fine-tuning. These lines are left out where nothing has changed.
    """
    width = max(len(cell.name) for cell in progress.cells)
    began = printed = time.monotonic()
    last = ""
    told: dict[Path, str] = {}  # {run directory: the last line about its fine-tuning}
    ended = False
    while not ended:
        ended = done.wait(0.5)
        for cell in progress.update():
            yield printable(f"{cell.name:{width}}  {progress.describe(cell)}")
        now = time.monotonic()
        if not ended and now - printed > max(SHORTEST_PAUSE, PAUSE_SHARE * (now - began)):
            printed, before = now, last
            last = f"{'all runs':{width}}  {progress.finished_share:.0%} trained  {progress.summary}"
            if last != before:
                yield last
            for cell in progress.cells:
                if progress.state[cell.dir] == "fine-tuning" and (words := progress.describe(cell)) != told.get(
                    cell.dir
                ):
                    told[cell.dir] = words
                    yield printable(f"{cell.name:{width}}  {words}")


def show_bars(progress: Progress, done: threading.Event) -> None:
    """Show a progress bar for each run, as far as the screen has room, and one for all runs, until `done` is set."""
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bars

    def text(name: str) -> TextColumn:
        return TextColumn(f"{{task.{name}}}", markup=False)

    with Bars(text("description"), BarColumn(16), text("fields[words]"), refresh_per_second=4) as bar:
        total = bar.add_task("all runs", total=1.0, words="")
        rows = {
            cell.dir: bar.add_task(printable(cell.name), total=cell.run.length, words="waiting")
            for cell in progress.cells
        }
        ended = False
        while not ended:
            ended = done.wait(0.25)
            progress.update()
            shown = cells_on_screen(progress, bar.console.height - 2)  # the last line of a screen, and that of all runs
            for cell in progress.cells:
                bar.update(
                    rows[cell.dir],
                    completed=progress.trained_length(cell),
                    words=progress.describe(cell),
                    visible=ended or cell.dir in shown,
                )
            bar.update(total, completed=progress.finished_share, words=progress.summary)


def cells_on_screen(progress: Progress, most: int) -> set[Path]:
    """The directories of the runs to show on a screen with room for `most` runs. The order of preference is: runs at
    work, failed, stopped, waiting, finished. Of the finished runs, the study's last ones are shown."""

    def priority(numbered: tuple[int, Cell]) -> tuple[int, int]:
        number, cell = numbered
        state = progress.state[cell.dir]
        order = ("failed", "stopped", "waiting", "finished")
        return (order.index(state) + 1 if state in order else 0, -number if state == "finished" else number)

    return {cell.dir for _, cell in sorted(enumerate(progress.cells), key=priority)[: max(1, most)]}
