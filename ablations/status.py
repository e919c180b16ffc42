"""Where every run of a study stands, from its files alone: no torch, no Slurm, a few small reads for each run."""

import contextlib
import fcntl
import json
import time
from pathlib import Path
from typing import Any

from ablations.study import Cell, Study, human, last_line

SILENT = 60.0  # seconds without a heartbeat (there is one every 5) after which a run counts as stalled; untuned
STARTUP = 900.0  # seconds before the first heartbeat that are still a start: torch on a slow file system; untuned


def state(cell: Cell, now: float | None = None) -> dict[str, Any]:
    """{"state", "step", "loss", "tokens_per_second", "left", "silent", "nodes", "attempts", "on_the_way",
    "why"}, as far as known.

    "left" and "silent" (since the last heartbeat) are seconds; "attempts" counts what was begun under Slurm;
    "on_the_way" is [how many of the weights that were kept are evaluated, how many were kept].
    """
    now = time.time() if now is None else now
    found: dict[str, Any] = dict(last_line(cell.dir / "metrics.jsonl") or {})
    tries = attempts(cell.dir)
    last = tries[-1] if tries else {}
    found["attempts"] = sum(line["event"] == "start" for line in tries)
    if kept := len(list(cell.dir.glob("checkpoints/weights_*/checkpoint.json"))):
        found["on_the_way"] = [kept - len(unjudged(cell.dir)), kept]
    if (cell.dir / "eval.json").exists():
        return found | {"state": "finished"} | _scores(cell.dir / "eval.json")
    if (cell.dir / "done").exists():
        return found | {"state": "trained, not evaluated"}
    if (cell.dir / "failed").exists():
        return found | {"state": "failed", "why": (cell.dir / "failed").read_text().strip()}
    beat = _json(cell.dir / "heartbeat.json")
    begun: dict[str, Any] = next((line for line in reversed(tries) if line["event"] == "start"), {})
    here = locked(cell.dir)
    if here or last.get("event") == "start":
        since = (cell.dir / "lock").stat().st_mtime if here else begun["time"]
        alive = beat.get("time", 0) >= since  # else it is the heartbeat of an attempt before
        silent = now - (beat["time"] if alive else since)
        found |= {"nodes": ",".join(beat.get("nodes", [])) or begun.get("nodes", ""), "silent": silent}
        found["step"] = max(found.get("step", 0), beat.get("step", 0)) if alive else found.get("step", 0)
        if "tokens_per_second" in found:
            found["left"] = (cell.run.tokens - found["tokens"]) / found["tokens_per_second"]
        if silent > (SILENT if alive else STARTUP):
            return found | {"state": "stalled"}
        return found | {"state": "running" if alive else "starting"}
    if last.get("event") == "submitted" or last.get("again"):
        return found | {"state": "queued", "why": _ended(last) or f"job {last['job']}"}
    if last:
        return found | {"state": "stopped", "why": _ended(last)}
    return found | {"state": "stopped" if (cell.dir / "run.json").exists() else "not started"}


def _ended(line: dict[str, Any]) -> str:
    if line["event"] != "end":
        return ""
    return f"{line['how']}{', ' + line['why'] if 'why' in line else ''} at step {line['step']}"


def attempts(folder: Path) -> list[dict[str, Any]]:
    """attempts.jsonl: what was submitted, begun and ended under Slurm; see launch/slurm/attempts.py."""
    try:
        text = (folder / "attempts.jsonl").read_text()
    except FileNotFoundError:
        return []
    lines = []
    for line in text.splitlines():
        with contextlib.suppress(ValueError):  # a power loss may leave half a line
            lines.append(json.loads(line))
    return lines


def last_checkpoint(folder: Path) -> int:
    """The step of the newest whole checkpoint of a run, 0 without one."""
    return max((int(p.parent.name[5:]) for p in folder.glob("checkpoints/step_*/checkpoint.json")), default=0)


def unjudged(folder: Path) -> list[int]:
    """The steps at which a run has kept its weights (layout.eval_at), as far as they are not evaluated."""
    kept = (int(p.parent.name[8:]) for p in folder.glob("checkpoints/weights_*/checkpoint.json"))
    return sorted(step for step in kept if not (folder / f"eval-step_{step}.json").exists())


def locked(run_dir: Path) -> bool:
    """Whether a process on this machine holds the run directory."""
    try:
        with open(run_dir / "lock") as f:
            fcntl.flock(f, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def table(study: Study, width: int | None = None, height: int | None = None) -> str:
    """A line for each run; on a screen of `height` lines those that fit, what needs a look before what does not."""
    head = ("run", "state", "step", "loss", "tokens/s", "left", "heard", "tries", "nodes", "judged", "")
    rows: list[tuple[str, ...]] = [head]
    for i, cell in enumerate(study.cells):
        s = state(cell)
        score = f"{s['bits_per_byte']:.3f} bits/byte" if "bits_per_byte" in s else ""
        rows.append(
            (
                f"{i} {cell.name}",
                s["state"],
                f"{s['step']}/{cell.run.steps}" if "step" in s else "",
                f"{s['loss']:.3f}" if "loss" in s else "",
                human(s["tokens_per_second"]) if "tokens_per_second" in s else "",
                duration(s["left"]) if "left" in s else "",
                duration(s["silent"]) if "silent" in s else "",
                str(s["attempts"] or ""),
                s.get("nodes", ""),
                "{} of {} on the way".format(*s["on_the_way"]) if "on_the_way" in s else "",
                s.get("why", score).splitlines()[0] if s.get("why", score) else "",
            )
        )
    states = [row[1] for row in rows[1:]]
    counts = ", ".join(f"{states.count(name)} {name}" for name in STATES if name in states)
    if height and len(rows) > (room := max(2, height - 3)):
        shown = sorted(range(1, len(rows)), key=lambda i: STATES.index(rows[i][1]))[: room - 1]
        counts += f"; {len(shown)} of {len(states)} are shown"
        rows = [rows[0], *(rows[i] for i in sorted(shown))]
    used = [any(row[c] for row in rows[1:]) for c in range(len(rows[0]))]
    rows = [tuple(x for x, u in zip(row, used, strict=True) if u) for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(x.ljust(w) for x, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(line[:width] for line in (study.title, *lines, counts))


# What a run can be, what needs a look first.
STATES = (
    "failed",
    "stalled",
    "stopped",
    "running",
    "starting",
    "queued",
    "trained, not evaluated",
    "not started",
    "finished",
)


def watch(study: Study, seconds: float = 2.0) -> None:
    """The table, again and again, until Ctrl-C."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console()

    def now() -> Text:
        text = table(study, console.width, console.height - 1)
        return Text(f"{text}\n{time.strftime('%T')}; Ctrl-C ends this view, not the runs")

    with contextlib.suppress(KeyboardInterrupt), Live(now(), console=console, auto_refresh=False) as live:
        while True:
            time.sleep(seconds)
            live.update(now(), refresh=True)


def duration(seconds: float) -> str:
    """75 -> "1:15"; 4000 -> "1 h 06 min"."""
    s = max(0, int(seconds))
    if s >= 48 * 3600:
        return f"{s // 86400} d {s % 86400 // 3600} h"
    return f"{s // 3600} h {s % 3600 // 60:02} min" if s >= 3600 else f"{s // 60}:{s % 60:02}"


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}


def _scores(path: Path) -> dict[str, Any]:
    scores = json.loads(path.read_text())
    return {k: scores[k]["value"] for k in ("bits_per_byte", "zero_shot") if scores.get(k)}
