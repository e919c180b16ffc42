"""Locks a run directory for the process that trains the run."""

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ablations import rundir, safe_files
from ablations.config import ConfigError
from ablations.rundir import Exit
from launch.watch import StopTraining


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """A context in which this process holds the lock of a run directory, so that no other process trains the run. Only
    the first rank locks; on other ranks nothing happens.

    Files of an earlier launch are removed first: `failed`, the heartbeat, half-written weights, and without Slurm also
    `stop`. If another process holds the lock, this function tries again for a second. Under Slurm it does so for a
    minute, since the process of the previous attempt may still be ending.

    Args:
        folder: the run directory; created when it is missing.

    Raises:
        StopTraining: under Slurm, another process holds the lock; the job should be submitted again.
        ConfigError: without Slurm, another process holds the lock; or the file system has no locks.
    """
    if os.environ.get("RANK", "0") != "0":
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    under_slurm = "SLURM_JOB_ID" in os.environ
    # without Slurm one second: ablations/status.py takes the lock for a moment, to see whether it is held
    attempts, interval = (60, 1.0) if under_slurm else (10, 0.1)
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(rundir.lock(folder))
                break
            except BlockingIOError:
                if attempts:
                    attempts -= 1
                    time.sleep(interval)
                elif under_slurm:  # a second job, or the lock of a lost node: not the run's fault
                    raise StopTraining(f"another process is training {folder}", Exit.RESUBMIT) from None
                else:
                    raise ConfigError(f"another process is training {folder}") from None
            except OSError as error:
                if safe_files.storage_error_message(error):
                    raise
                raise ConfigError(  # such as a Lustre file system that was mounted without `flock`
                    f"{folder} cannot be locked ({error.strerror}): choose an OUT elsewhere, "
                    "or have this file system mounted with locks"
                ) from None
        for name in (rundir.FAILED, rundir.HEARTBEAT):
            (folder / name).unlink(missing_ok=True)
        safe_files.remove_leftovers(folder / rundir.WEIGHTS)
        if not under_slurm:  # under Slurm launch/run.sh removes it earlier, before Slurm's warning can write a new one
            (folder / rundir.STOP).unlink(missing_ok=True)
        yield
