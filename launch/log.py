"""Writes the log of a run: rows of metrics in metrics.jsonl, and a copy of each row in Weights & Biases."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ablations import rundir, safe_files
from ablations.config import Run


class Log:
    """The log of a run: rows of metrics appended to metrics.jsonl and copied to Weights & Biases (offline by default).
    Each row is flushed. An error of Weights & Biases is printed, and training continues without it."""

    def __init__(self, folder: Path, run: Run, name: str, last_step: int):
        """Args:
        folder: the run directory.
        run: the run's configuration, which Weights & Biases gets.
        name: the run's name in Weights & Biases.
        last_step: the step of the checkpoint that the run continues from, 0 for a new run. Rows of later steps are
            removed from metrics.jsonl, since these steps are trained again."""
        self.path = folder / rundir.METRICS
        self.rewind(last_step)
        self.wandb = _start_wandb(folder, run, name)

    def rewind(self, last_step: int) -> None:
        """Remove from metrics.jsonl the rows of steps after `last_step`, and damaged lines, which are reported on the
        terminal. Raises Damaged where metrics.jsonl is a link or a folder, which must not be overwritten."""
        safe_files.read_bytes(self.path)  # raises Damaged for a link or a folder
        rows, damage = safe_files.read_json_lines(self.path, ["step"], rundir.METRIC_TYPES)
        if damage:
            print(damage, flush=True)
        safe_files.write_text(self.path, "".join(json.dumps(row) + "\n" for row in rows if row["step"] <= last_step))
        self.file = safe_files.open_to_write(self.path, append=True)

    def write(self, row: dict[str, Any]) -> None:
        self.file.write(json.dumps(row, allow_nan=False).encode() + b"\n")
        self.file.flush()
        self._copy_to_wandb(lambda w: w.log({k: v for k, v in row.items() if k != "step"}, step=row["step"]))

    def sync(self) -> None:
        """Wait until every row is on the disk."""
        os.fsync(self.file.fileno())

    def close(self) -> None:
        self.file.close()
        self._copy_to_wandb(lambda w: w.finish())

    def _copy_to_wandb(self, send: Callable[[Any], Any]) -> None:
        try:
            if self.wandb:
                send(self.wandb)
        except Exception as error:  # see _start_wandb
            print(f"W&B stopped ({type(error).__name__}: {error}); metrics.jsonl goes on", flush=True)
            self.wandb = None


def _start_wandb(folder: Path, run: Run, name: str) -> Any:
    """Start, or resume, a run named `name` in Weights & Biases. `folder`: the run directory. Returns the wandb.Run;
    None where Weights & Biases is disabled or cannot be started. WANDB_MODE disables it or, where that is not set,
    layout.wandb. If it cannot be started, the reason is printed and training continues."""
    mode: Any = os.environ.get("WANDB_MODE", run.layout.wandb)
    if mode == "disabled":
        return None
    try:
        import wandb

        # This method loads W&B Launch, which is not used here and would take a second of each run.
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
    """The id, in Weights & Biases, of the run in directory `folder`. All launches of a run have the same id; runs under
    different output roots have different ids."""
    root = hashlib.sha256(str(folder.resolve().parent.parent).encode()).hexdigest()[:8]
    return f"{folder.parent.name}-{folder.name}-{root}".replace("=", "-").replace(",", "-")
