"""Processes that end by SIGKILL at a moment which is chosen beforehand. Who watches from outside, and kills a process
then, is too late on a busy machine.

Each function is for `prepare` of tests/forked.py and of the fixture `launch`, with `functools.partial`.
"""

import os
import signal
from pathlib import Path
from typing import Any


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def after_row(step: int) -> None:
    """When the row of a step, or of one after it, is in metrics.jsonl."""
    from launch.log import Log

    write = Log.write

    def write_and_end(self: Log, row: dict[str, Any]) -> None:
        write(self, row)
        if row["step"] >= step:
            _kill()

    Log.write = write_and_end  # type: ignore[method-assign]


def in_save(folder: str, tensors_written: bool) -> None:
    """While a checkpoint is written: its folder, such as "step_8", is there; its tensors may be; its index is not."""
    from launch import checkpoint

    save_file = checkpoint.save_file

    def save_and_end(tensors: Any, file: Path) -> None:
        here = file.parent.name == folder
        if tensors_written or not here:
            save_file(tensors, file)
        if here:
            _kill()

    checkpoint.save_file = save_and_end


def after_save(folder: str) -> None:
    """When a checkpoint is whole. On its first rank only, which writes the index."""
    from ablations import rundir

    write_checkpoint = rundir.write_checkpoint

    def write_and_end(path: Path, index: dict[str, Any]) -> None:
        write_checkpoint(path, index)
        if path.name == folder:
            _kill()

    rundir.write_checkpoint = write_and_end


def before_done() -> None:
    """When the weights at the end are written, and the file `done` is not."""
    from ablations import rundir

    rundir.write_done = lambda *_: _kill()


def after_outcomes(folder: str, batches: int) -> None:
    """When the outcomes of some batches of an evaluation are in the journal in `folder`."""
    from eval.tasks.journal import Journal

    add, left = Journal.add, [batches]

    def add_and_end(self: Journal, outcomes: dict[str, Any]) -> None:
        add(self, outcomes)
        left[0] -= self.folder is not None and self.folder.name == folder
        if not left[0]:
            _kill()

    Journal.add = add_and_end  # type: ignore[method-assign]
