"""The state of every run of a study, from a few small files in its run directory, without torch or Slurm."""

import contextlib
import time
from typing import Any

from ablations import rundir, safe_files
from ablations.rundir import State
from ablations.safe_files import Damaged
from ablations.study import Cell, Study
from ablations.values import short_number

SILENT_SECONDS = 60.0  # without a heartbeat (there is one every 5 s), after which a run counts as stalled; untuned
STARTUP_SECONDS = 900.0  # the same before the first heartbeat: a slow file system delays torch's import; untuned
MOST_CLOCK_SKEW = 300.0  # seconds that a node's clock may be ahead of ours; Slurm refuses more (munge's TTL)
UPDATE_SECONDS = 2.0  # seconds between updates of a live view
REPAIR_HINT = "The same command repairs it."


def run_state(cell: Cell, now: float | None = None) -> dict[str, Any]:
    """The state of a run according to the files of its directory, as {fact: value}.

    Args:
        cell: the run.
        now: the time in seconds since the epoch; None: the present time.

    Returns the facts "state", a `State`, and "attempts", the number of attempts under Slurm. Where they are known,
    also:
        "step", "tokens", "loss", "tokens_per_second" and the rest of the last row of metrics.jsonl
        "left": the seconds to the end of the run at its present speed
        "silent": the seconds since the last heartbeat
        "nodes": the names of the nodes, as text with commas
        "on_the_way": [number of evaluated, number of all] weights that were saved during training
        "why": the reason for the state
        "bits_per_byte", "zero_shot": the scores in eval.json of a finished run
    """
    folder = cell.dir
    metric, damaged_metrics = rundir.last_metric(folder)
    attempts, damaged_attempts = rundir.read_attempts(folder)
    facts: dict[str, Any] = dict(metric)
    facts["attempts"] = sum(line["event"] == "start" for line in attempts)
    if saved := len(rundir.checkpoints(folder / rundir.CHECKPOINTS, "weights")):
        facts["on_the_way"] = [saved - len(rundir.steps_to_evaluate(folder)), saved]
    facts |= _state_by_files(cell, facts, attempts, time.time() if now is None else now)
    if notes := [note for note in (facts.get("why"), damaged_metrics, damaged_attempts) if note]:
        facts["why"] = "; ".join(notes)
    return facts


def _state_by_files(cell: Cell, facts: dict[str, Any], attempts: list[dict[str, Any]], now: float) -> dict[str, Any]:
    """The state of a run by the files in its directory. Returns {"state": `State`} and entries that explain it: "why",
    the scores of a finished run, or the entries of `_running_state`.

    Args:
        cell: the run.
        facts: the last row of metrics.jsonl, {} if there is none; it may have further entries.
        attempts: the rows of attempts.jsonl, the oldest first.
        now: the time in seconds since the epoch.
    """
    folder = cell.dir
    damaged_scores: dict[str, Any] = {}
    try:
        run = rundir.read_run(folder, REPAIR_HINT)
        trained = rundir.read_done(folder)
    except Damaged as error:
        return {"state": State.DAMAGED, "why": str(error)}
    try:
        if (scores := safe_files.read_json(folder / rundir.EVAL, cure=REPAIR_HINT)) is not None:
            return {"state": State.FINISHED} | _headline_scores(scores)
    except Damaged as error:
        damaged_scores = {"why": str(error)}
    if trained is not None:
        return {"state": State.TRAINED} | damaged_scores
    if (folder / rundir.FAILED).exists():
        return {"state": State.FAILED, "why": safe_files.read_text(folder / rundir.FAILED)}
    last = attempts[-1] if attempts else {}
    locked = rundir.is_locked(folder)
    if locked or last.get("event") == "start":
        return _running_state(cell, facts, attempts, locked, now)
    if last.get("event") == "submitted" or last.get("again"):
        return {"state": State.QUEUED, "why": _attempt_end_text(last) or f"job {last['job']}"}
    if last:
        return {"state": State.STOPPED, "why": _attempt_end_text(last)}
    return {"state": State.NOT_STARTED if run is None else State.STOPPED}


def _running_state(
    cell: Cell, facts: dict[str, Any], attempts: list[dict[str, Any]], locked: bool, now: float
) -> dict[str, Any]:
    """The state of a run that a process has locked or Slurm has started: starting, running, or stalled, which means
    without a heartbeat for too long. Returns the facts "state", "nodes", "silent" and "step" of `run_state`, and "left"
    if it is known.

    Args:
        cell: the run.
        facts: the last row of metrics.jsonl, {} if there is none; it may have further entries.
        attempts: the rows of attempts.jsonl, the oldest first.
        locked: whether a process holds the lock of the run directory.
        now: the time in seconds since the epoch.
    """
    starts = [line for line in attempts if line["event"] == "start"]
    start = starts[-1] if starts else {}
    since = (cell.dir / rundir.LOCK).stat().st_mtime if locked else start.get("time", 0.0)
    heartbeat = rundir.read_heartbeat(cell.dir)
    # A heartbeat of an earlier attempt is removed by the process that takes the lock; without a lock times must tell.
    alive = bool(heartbeat) and (locked or heartbeat["time"] >= since)
    step = facts.get("step", 0)
    begun = alive
    if not alive and not locked and step > start.get("step", 0):
        # it has trained since this start, and its processes removed the heartbeat, but the job could not write its end
        trained = (cell.dir / rundir.METRICS).stat().st_mtime
        begun, since = trained > since, max(trained, since)
    silent = now - (heartbeat["time"] if alive else since)
    if alive:
        step = max(step, heartbeat.get("step", 0))
    nodes = ",".join(map(str, heartbeat.get("nodes", []))) or start.get("nodes", "")
    work: dict[str, Any] = {"nodes": nodes, "silent": silent, "step": step}
    if facts.get("tokens_per_second", 0) > 0 and (left := cell.run.seconds_left(facts)) is not None:
        work["left"] = left
    # a time far ahead of ours was written before our clock was set back
    if not -MOST_CLOCK_SKEW <= silent <= (SILENT_SECONDS if begun else STARTUP_SECONDS):
        return work | {"state": State.STALLED}
    return work | {"state": State.RUNNING if begun else State.STARTING}


def _attempt_end_text(line: dict[str, Any]) -> str:
    """How an attempt under Slurm ended, as text; "" where the row is about something else. `line`: a row of
    attempts.jsonl."""
    if line["event"] != "end":
        return ""
    reason = f", {line['why']}" if "why" in line else ""
    return f"{line.get('how', 'ended')}{reason} at step {line.get('step', 0)}"


def status_table(study: Study, width: int | None = None, height: int | None = None) -> str:
    """The states of all runs of a study as text: a title, a table with a line for each run, and the number of runs in
    each state.

    Args:
        width: characters to which lines are cut; None: no limit.
        height: the number of lines on the screen; None: no limit. If not all runs fit, the runs are shown whose states
            come first in `State`.
    """
    head = ("run", "state", "step", "loss", "tokens/s", "left", "heard", "tries", "nodes", "judged", "")
    rows: list[tuple[str, ...]] = [head]
    for i, cell in enumerate(study.cells):
        facts = run_state(cell)
        score = f"{facts['bits_per_byte']:.3f} bits/byte" if "bits_per_byte" in facts else ""
        explanation = facts.get("why", score)
        rows.append(
            (
                f"{i} {cell.name}",
                facts["state"],
                cell.run.step_text(facts["step"]) if "step" in facts else "",
                f"{facts['loss']:.3f}" if "loss" in facts else "",
                short_number(facts["tokens_per_second"]) if "tokens_per_second" in facts else "",
                duration_text(facts["left"]) if "left" in facts else "",
                duration_text(facts["silent"]) if "silent" in facts else "",
                str(facts["attempts"] or ""),
                facts.get("nodes", ""),
                "{} of {} on the way".format(*facts["on_the_way"]) if "on_the_way" in facts else "",
                explanation.splitlines()[0] if explanation else "",
            )
        )
    states = [row[1] for row in rows[1:]]
    number = f"{len(states)} run{'s' * (len(states) != 1)}"
    counts = f"{number}: {', '.join(f'{states.count(name)} {name}' for name in State if name in states)}"
    if height and len(rows) > (room := max(2, height - 3)):
        order = [*State]
        shown = sorted(range(1, len(rows)), key=lambda i: order.index(State(rows[i][1])))[: room - 1]
        counts += f"; {len(shown)} of {len(states)} are shown"
        rows = [rows[0], *(rows[i] for i in sorted(shown))]
    used = [any(row[c] for row in rows[1:]) for c in range(len(rows[0]))]
    rows = [tuple(safe_files.printable(x) for x, u in zip(row, used, strict=True) if u) for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(x.ljust(w) for x, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(line[:width] for line in (study.title, *lines, counts))


def watch(study: Study) -> None:
    """Show the table of a study's runs on the terminal, updated every UPDATE_SECONDS seconds, until Ctrl-C."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console()

    def now() -> Text:
        text = status_table(study, console.width, console.height - 1)
        return Text(f"{text}\n{time.strftime('%T')}; Ctrl-C ends this view, not the runs")

    with contextlib.suppress(KeyboardInterrupt), Live(now(), console=console, auto_refresh=False) as live:
        while True:
            time.sleep(UPDATE_SECONDS)
            live.update(now(), refresh=True)


def duration_text(seconds: float) -> str:
    """A number of seconds as text: "1:15" for 75, "1 h 06 min" for 4000."""
    s = max(0, int(seconds))
    if s >= 48 * 3600:
        return f"{s // 86400} d {s % 86400 // 3600} h"
    return f"{s // 3600} h {s % 3600 // 60:02} min" if s >= 3600 else f"{s // 60}:{s % 60:02}"


def _headline_scores(scores: dict[str, Any]) -> dict[str, float]:
    """The scores of a finished run that the status shows: {"bits_per_byte": value, "zero_shot": value}. A score that is
    missing or no number is left out. `scores`: the content of eval.json."""
    headlines = {name: scores.get(name) for name in ("bits_per_byte", "zero_shot")}
    values = {name: score.get("value") for name, score in headlines.items() if isinstance(score, dict)}
    return {name: value for name, value in values.items() if isinstance(value, rundir.NUMBER)}
