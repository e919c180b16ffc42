"""The log of a run: metrics.jsonl has everything, Weights & Biases gets a copy of each line."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ablations import rundir, safe_files
from ablations.config import Run


class Log:
    """Appends rows to metrics.jsonl, flushed line by line, and copies each to Weights & Biases (offline by default).
    A failure of Weights & Biases is printed, and training goes on without it."""

    def __init__(self, folder: Path, run: Run, name: str, last_step: int):
        """Args:
        last_step: the step of the checkpoint that the run continues from, 0 for a new run. Rows of later steps are
            removed from metrics.jsonl: these steps are trained again.
        """
        self.path = folder / rundir.METRICS
        self.rewind(last_step)
        self.wandb = _wandb(folder, run, name)

    def rewind(self, last_step: int) -> None:
        """Remove the rows after step `last_step`, and damaged lines, which are reported on the terminal."""
        safe_files.read_bytes(self.path)  # raises Damaged for a link or a folder, which must not be overwritten
        rows, damage = safe_files.read_lines(self.path, ["step"], rundir.METRIC_TYPES)
        if damage:
            print(damage, flush=True)
        safe_files.write_text(self.path, "".join(json.dumps(row) + "\n" for row in rows if row["step"] <= last_step))
        self.file = safe_files.open_to_write(self.path, append=True)

    def write(self, row: dict[str, Any]) -> None:
        self.file.write(json.dumps(row, allow_nan=False).encode() + b"\n")
        self.file.flush()
        self._mirror(lambda w: w.log({k: v for k, v in row.items() if k != "step"}, step=row["step"]))

    def sync(self) -> None:
        """Wait until every row is on the disk."""
        os.fsync(self.file.fileno())

    def close(self) -> None:
        self.file.close()
        self._mirror(lambda w: w.finish())

    def _mirror(self, act: Callable[[Any], Any]) -> None:
        try:
            if self.wandb:
                act(self.wandb)
        except Exception as error:  # see _wandb
            print(f"W&B stopped ({type(error).__name__}: {error}); metrics.jsonl goes on", flush=True)
            self.wandb = None


def _wandb(folder: Path, run: Run, name: str) -> Any:
    """A W&B run, or None where it is disabled or cannot be started: that must not stop training."""
    mode: Any = os.environ.get("WANDB_MODE", run.layout.wandb)
    if mode == "disabled":
        return None
    try:
        import wandb

        # It loads W&B Launch for inputs that nobody staged, which takes a second of each run.
        wandb.Run._detect_and_apply_job_inputs = lambda run: None  # type: ignore
        settings = wandb.Settings(
            console="off", x_disable_stats=True, x_disable_meta=True, x_save_requirements=False, silent=True
        )
        return wandb.init(
            project="megahour",
            name=name,
            id=_wandb_id(folder),
            mode=mode,
            resume="allow",
            dir=str(folder),
            config=run.flat(),
            settings=settings,
        )
    except Exception as error:  # no network, no account, not installed, another version: all the same to us
        print(f"W&B is not available ({type(error).__name__}: {error}); metrics.jsonl has everything", flush=True)
        return None


def _wandb_id(folder: Path) -> str:
    """The W&B id of a run directory: the same for all launches of a run, another one under another output root."""
    root = hashlib.sha256(str(folder.resolve().parent.parent).encode()).hexdigest()[:8]
    return f"{folder.parent.name}-{folder.name}-{root}".replace("=", "-").replace(",", "-")
