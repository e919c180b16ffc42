"""The log of a run: metrics.jsonl has everything, Weights & Biases gets a copy of each line."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ablations import rundir
from ablations.config import Run


class Log:
    """Appends to metrics.jsonl, flushed line by line; and to W&B, offline by default. Without W&B training goes on."""

    def __init__(self, folder: Path, run: Run, name: str, last_step: int):
        """Args:
        last_step: of the checkpoint that the run continues from. Later lines are removed: those steps come again.
        """
        self.path = folder / rundir.METRICS
        self.rewind(last_step)
        self.wandb = _wandb(folder, run, name)

    def rewind(self, last_step: int) -> None:
        """Remove what came after `last_step`, and lines that are damaged."""
        rundir.read_bytes(self.path)  # Damaged, where it is no file: what it has must not be lost
        rows, damage = rundir.read_lines(self.path, ["step"], rundir.METRIC_TYPES)
        if damage:
            print(damage, flush=True)
        kept = [json.dumps(row) + "\n" for row in rows if row["step"] <= last_step]
        rundir.write_text(self.path, "".join(kept))
        self.file = rundir.open_to_write(self.path, append=True)

    def write(self, row: dict[str, Any]) -> None:
        self.file.write(json.dumps(row, allow_nan=False).encode() + b"\n")
        self.file.flush()
        self._mirror(lambda w: w.log({k: v for k, v in row.items() if k != "step"}, step=row["step"]))

    def sync(self) -> None:
        """Until every line is on the disk."""
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
    """A W&B run, or None: a mirror that cannot be had must not stop a training run."""
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
            id=_ident(folder),
            mode=mode,
            resume="allow",
            dir=str(folder),
            config=run.flat(),
            settings=settings,
        )
    except Exception as error:  # no network, no account, not installed, another version: all the same to us
        print(f"W&B is not available ({type(error).__name__}: {error}); metrics.jsonl has everything", flush=True)
        return None


def _ident(folder: Path) -> str:
    """The same for all launches of a run, and another one below another output root."""
    root = hashlib.sha256(str(folder.resolve().parent.parent).encode()).hexdigest()[:8]
    return f"{folder.parent.name}-{folder.name}-{root}".replace("=", "-").replace(",", "-")
