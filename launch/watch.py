"""Watches training from a thread: writes a heartbeat, ends a process that hangs, reports slow training, and notices
requests to stop."""

import faulthandler
import os
import signal
import socket
import statistics
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

from ablations import rundir, safe_files
from ablations.rundir import Exit
from ablations.safe_files import Damaged

HEARTBEAT_SECONDS = 5.0  # seconds between heartbeats; untuned
DUMP_TIMEOUT = 60.0  # seconds that writing the stacks of a hang may take; then the process exits anyway; untuned
STARTUP_SECONDS = 1800.0  # seconds that the first step may take: compilation, building the data index; untuned
STORAGE_SECONDS = 1800.0  # seconds that a checkpoint may take to be written or read: 2 TB at 1.2 GB/s; untuned
SLOW_SHARE = 0.75  # training below this share of its usual throughput, or of the median rank's speed, is slow; untuned


class StopTraining(RuntimeError):
    """This process ends before the run is finished, though nothing is wrong with the run. Either training was asked to
    stop and has saved a checkpoint, or it cannot begin now: a node is unfit, there is a stop file, or another process
    trains the run. `code`: the exit code of the process, an `Exit`."""

    def __init__(self, reason: str, code: int):
        super().__init__(reason)
        self.code = code


class Watch:
    """A context around the training of one rank. Its thread ends the process when training hangs, and notices requests
    to stop.

    A hang is a step, or the saving or loading of a checkpoint, that takes longer than the property `limit`. The thread
    then records an event, writes the stacks of all threads into the run directory, and exits the process with
    Exit.RESUBMIT. Under Slurm launch/run.sh requeues the job, and training continues from the last checkpoint.

    A request to stop is SIGTERM, or a file `stop` that the first rank finds. It sets `stop_reason`; the training loop
    then saves a checkpoint and raises StopTraining.

    On the first rank the thread also writes the heartbeat, a file with the time, the step and the nodes, every few
    seconds. `make status` tells a running process from a dead one by the heartbeat's age.

    Args:
        folder: the run directory; a file `stop` in it makes the run save and exit, to be submitted again.
        out: the output root; a file `stop` there ends all runs below it, and keeps new ones from starting.
        steps: the steps of the whole run, for the heartbeat; None where a wall clock ends the run.
        rank: the number of this rank.
        hosts: for each rank the name of its node.
        hang, patience: a step hangs when it takes `hang` times as long as the median step, and at least `patience`
            seconds.
    """

    def __init__(
        self, folder: Path, out: Path, steps: int | None, rank: int, hosts: Sequence[str], hang: float, patience: float
    ):
        self.folder, self.out, self.steps, self.rank = folder, out, steps, rank
        self.hosts, self.hang, self.patience = list(hosts), hang, patience
        self.step = 0
        self.stop_reason = ""  # why the run should stop: "SIGTERM", or the path and content of a stop file
        self.last_progress = time.monotonic()  # when the last step ended, or a save or reload began or ended
        self.durations: deque[float] = deque(maxlen=101)  # seconds of the last steps
        self.speeds: list[float] = []  # tokens per second, one for each call of `record_speed`
        self.is_slow = self.is_storing = False
        self.ended = threading.Event()  # set when the context is left
        self.thread = threading.Thread(target=self._watch_until_ended, daemon=True)

    def __enter__(self) -> "Watch":
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, lambda *_: setattr(self, "stop_reason", "SIGTERM"))
        self._write_heartbeat()
        self.thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.ended.set()
        self.thread.join()
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if self.rank == 0:
            (self.folder / rundir.HEARTBEAT).unlink(missing_ok=True)

    def step_ended(self, step: int) -> None:
        """Record that step `step` has just ended. The times between these calls determine `limit`."""
        now = time.monotonic()
        if self.step:  # not of the first step, which also compiles and warms up
            self.durations.append(now - self.last_progress)
        self.step, self.last_progress = step, now

    @contextmanager
    def allow_storage_time(self) -> Iterator[None]:
        """A context for saving or loading a checkpoint, in which `limit` is at least STORAGE_SECONDS."""
        self.last_progress, self.is_storing = time.monotonic(), True
        yield
        self.last_progress, self.is_storing = time.monotonic(), False

    @property
    def limit(self) -> float:
        """Seconds after which a step counts as a hang: `hang` times the median step, and at least `patience`. Longer
        during the first steps of a launch, and while a checkpoint is saved or loaded."""
        if self.is_storing:
            return max(STORAGE_SECONDS, self.patience)
        if len(self.durations) < 3:
            return max(STARTUP_SECONDS, self.patience)
        return max(self.patience, self.hang * statistics.median(self.durations))

    def _watch_until_ended(self) -> None:
        last_heartbeat = last_wake = time.monotonic()
        while not self.ended.wait(pause := min(0.5, self.limit / 4)):
            now = time.monotonic()
            # where this thread slept longer than `pause`, the whole process was stopped (Ctrl-Z, a paused machine), and
            # that time does not count against the step
            self.last_progress += max(0.0, now - last_wake - pause)
            last_wake = now
            if now - self.last_progress > self.limit:
                self._end_hung_process(now - self.last_progress)
            if self.rank == 0:
                self.stop_reason = self.stop_reason or self._read_stop_file()
                if now - last_heartbeat > HEARTBEAT_SECONDS:
                    self._write_heartbeat()
                    last_heartbeat = now

    def _read_stop_file(self) -> str:
        for folder in (self.out, self.folder):
            path = folder / rundir.STOP
            with suppress(Damaged):  # where a network file system does not answer, the thread tries again later
                if (content := safe_files.read_bytes(path)) is not None:
                    return f"{path}: {safe_files.printable(content.decode(errors='replace')).strip()}"
        return ""

    def _write_heartbeat(self) -> None:
        """Write the heartbeat file, on the first rank."""
        if self.rank:
            return
        heartbeat = {
            "time": time.time(),
            "step": self.step,
            "steps": self.steps,
            "nodes": sorted(set(self.hosts)),
            "ranks": len(self.hosts),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "job": os.environ.get("SLURM_JOB_ID", ""),
            "limit": self.limit,
        }
        with suppress(OSError):  # such as a full disk, which the next checkpoint reports
            safe_files.write_json(self.folder / rundir.HEARTBEAT, heartbeat, durable=False)

    def _end_hung_process(self, seconds: float) -> None:
        """Write the stacks of all threads of this rank to a file, and exit the process with Exit.RESUBMIT. `seconds`:
        the time since the last progress. The other ranks wait for this one, and end by their own limit or by Slurm."""
        try:
            faulthandler.dump_traceback_later(DUMP_TIMEOUT, exit=True)  # the file system may be what hangs
            stacks = safe_files.path_inside(self.folder, f"{rundir.STACKS}/rank_{self.rank}.txt")
            storage = ", storage not answering (layout.patience: how long it may take)" if self.is_storing else ""
            detail = (
                f"rank {self.rank} on {socket.gethostname()}: no step for {seconds:.0f} s{storage}, "
                f"stacks in {stacks.parent}"
            )
            record_event(self.folder, self.step, "hang", detail)
            stacks.parent.mkdir(exist_ok=True)
            with safe_files.open_to_write(stacks) as file:
                file.write(f"{socket.gethostname()}, after step {self.step}: nothing for {seconds:.0f} s\n".encode())
                file.flush()
                faulthandler.dump_traceback(file, all_threads=True)
        finally:
            os._exit(Exit.RESUBMIT)

    def record_speed(self, tokens_per_second: float, forward_seconds: Sequence[float]) -> None:
        """Record the throughput, and write an event when training has become much slower than before. The event names a
        rank that computes much longer than the median rank. The next event is written only after training has been fast
        again.

        Args:
            tokens_per_second: the throughput since the last call.
            forward_seconds: for each rank, its seconds in forward passes since the last call. They include no waiting
                for other ranks.
        """
        self.speeds.append(tokens_per_second)
        if self.rank or len(self.speeds) < 15:  # too few to know what is usual
            return
        usual, now = statistics.median(self.speeds), statistics.median(self.speeds[-5:])
        was_slow, self.is_slow = self.is_slow, now < SLOW_SHARE * usual
        if was_slow or not self.is_slow:
            return
        slowest = max(range(len(forward_seconds)), key=forward_seconds.__getitem__)
        median = statistics.median(forward_seconds)
        cause = ""
        if len(forward_seconds) > 1 and forward_seconds[slowest] > median / SLOW_SHARE:
            ratio = forward_seconds[slowest] / median
            cause = f"; rank {slowest} on {self.hosts[slowest]} computes {ratio:.2f} times as long as the median"
        record_event(self.folder, self.step, "slow", f"{now:,.0f} tokens/s, usually {usual:,.0f}{cause}")


def stop_reason(folder: Path) -> str:
    """The reason to stop that a stop file in `folder` gives: "path: content", or the path alone where the file is
    empty; "" where there is no stop file. `folder`: a run directory or the output root."""
    path = folder / rundir.STOP
    if not path.exists():
        return ""
    content = safe_files.read_text(path)
    return f"{path}: {content}" if content else str(path)


def record_event(folder: Path, step: int, kind: str, detail: str) -> None:
    """Append an incident of a run to events.jsonl in its directory `folder`, and print it. `step`: the last step that
    has ended; `kind`: one word, such as "hang"; `detail`: a sentence about what happened."""
    with suppress(OSError):
        safe_files.append_row(
            folder / rundir.EVENTS, {"time": time.time(), "step": step, "event": kind, "detail": detail}
        )
    print(f"step {step}: {kind}: {detail}", flush=True)
