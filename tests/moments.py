"""Functions that have the calling process kill itself by SIGKILL later, at a chosen moment. A watcher from outside
would kill it too late on a busy machine.

Each function is an argument `prepare` of tests/forked.py or of the fixture `launch`, with `functools.partial`.
"""

import os
import signal
from pathlib import Path
from typing import Any


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def after_row(step: int) -> None:
    """Kill the process once the row of step `step`, or of a later step, is in metrics.jsonl."""
    from launch.log import Log

    write = Log.write

    def write_and_end(self: Log, row: dict[str, Any]) -> None:
        write(self, row)
        if row["step"] >= step:
            _kill()

    Log.write = write_and_end  # type: ignore[method-assign]


def in_save(folder: str, tensors_written: bool) -> None:
    """Kill the process while it writes a checkpoint, before its index. `folder`: the checkpoint's folder, such as
    "step_8"; `tensors_written`: whether the file of tensors is written first."""
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
    """Kill the process once the checkpoint in `folder` is complete. Only for the first rank, which writes the index."""
    from ablations import rundir

    write_checkpoint = rundir.write_checkpoint

    def write_and_end(path: Path, index: dict[str, Any]) -> None:
        write_checkpoint(path, index)
        if path.name == folder:
            _kill()

    rundir.write_checkpoint = write_and_end


def before_done() -> None:
    """Kill the process after training, when the weights are written and the file `done` is not."""
    from ablations import rundir

    rundir.write_done = lambda *_: _kill()


def after_outcomes(folder: str, batches: int) -> None:
    """Kill the process once the outcomes of a number of `batches` of an evaluation are in the journal in `folder`."""
    from eval.tasks.journal import Journal

    add, remaining = Journal.add, batches

    def add_and_end(self: Journal, outcomes: dict[str, Any]) -> None:
        nonlocal remaining
        add(self, outcomes)
        remaining -= self.folder is not None and self.folder.name == folder
        if not remaining:
            _kill()

    Journal.add = add_and_end  # type: ignore[method-assign]
