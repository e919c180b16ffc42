"""Commands in processes of their own: the ranks of a run start together and end together, and none outlives this one.

What is started here does not hear Ctrl-C, which a terminal sends to every process: this process does, and decides.
"""

import ctypes
import locale
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from ablations import rundir
from ablations.study import ROOT

# What tells a process that it is a rank of many. Left in a shell by torchrun or a pod, it would have a run wait for
# ranks that nobody starts. SLURM_JOB_ID: launch/run.sh starts those that belong to a job.
OF_RANKS = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "SLURM_JOB_ID"}
OF_RANKS |= {"GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_RANK", "ROLE_NAME", "ROLE_WORLD_SIZE"}  # of torchrun


class Failed(RuntimeError):
    """A command ended badly; its log says why."""


class Interrupted(RuntimeError):
    """A command was ended because somebody asked for it."""


def environment() -> dict[str, str]:
    """The environment without what tells a process that it is a rank of many, and in UTF-8 whatever the locale."""
    env = {k: v for k, v in os.environ.items() if k not in OF_RANKS and not k.startswith("TORCHELASTIC_")}
    return env | {"PYTHONUTF8": "1"}


def in_utf8(module: str, words: list[str]) -> None:
    """Start the command anew where the locale is not UTF-8: this process would read its words and files otherwise than
    those that it starts."""
    if not sys.flags.utf8_mode and locale.getencoding().lower() != "utf-8":
        os.execve(sys.executable, [sys.executable, "-m", module, *words], environment())


def die_with_parent() -> None:
    """For `preexec_fn`: a process must not outlive a killed parent unseen (Linux: PR_SET_PDEATHSIG)."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def _independent() -> None:
    """For `preexec_fn`: as `die_with_parent`, and Ctrl-C is the parent's to hear."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with_parent()


def gpus(devices: Path = Path("/proc/driver/nvidia/gpus")) -> int:
    """How many GPUs this machine has, or how many of them CUDA_VISIBLE_DEVICES names; at least 1, for a CPU."""
    there, visible = len(list(devices.glob("*"))), os.environ.get("CUDA_VISIBLE_DEVICES")
    return max(1, there if visible is None else min(there, len([x for x in visible.split(",") if x.strip()])))


class Processes:
    """What is running now. Threads start commands with `run`; the main thread may end them all."""

    def __init__(self) -> None:
        self.running: list[subprocess.Popen[bytes]] = []
        self.starting = threading.Lock()  # nothing is started that a signal then misses
        self.stopping = False

    def run(self, command: list[str], log: Path, ranks: int, threads: int) -> None:
        """Run `command` once for each rank, its output added to `log`; when one ends badly, end the others.

        Raises:
            Failed: a rank ended badly; with what it said last.
            Interrupted: `stop` was called.
        """
        with rundir.open_to_write(log, append=True) as output, self.starting:
            if self.stopping:
                raise Interrupted
            env = environment() | {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
            children = [
                subprocess.Popen(
                    command,
                    cwd=ROOT,
                    stdout=output,
                    stderr=output,
                    stdin=subprocess.DEVNULL,
                    preexec_fn=_independent,
                    env=env | {"PYTHONUNBUFFERED": "1"} | variables,
                )
                for variables in _of_each_rank(ranks)
            ]
            self.running += children
        while any(child.poll() is None for child in children):
            if any(child.poll() not in (None, 0) for child in children):
                for child in children:
                    child.kill()
            time.sleep(0.05)
        with self.starting:
            self.running = [child for child in self.running if child not in children]
        codes = [child.returncode for child in children if child.returncode]
        if codes and self.stopping:
            raise Interrupted
        if codes:
            killed_by = f"killed by {signal.Signals(-codes[0]).name}" if codes[0] < 0 else ""
            raise Failed(f"{killed_by or last_error(log)}  (log: {log}; the same command continues)")

    def stop(self) -> None:
        """Ask all to leave: training saves what it has. Nothing is started any more."""
        self.stopping = True
        with self.starting:
            for child in self.running:
                child.terminate()

    def kill(self) -> None:
        for child in self.running:
            child.kill()

    @contextmanager
    def stopped_by_signals(self) -> Iterator[None]:
        """Inside, Ctrl-C or SIGTERM stops all, and a second one ends all at once, this process too."""

        def handle(number: int, frame: FrameType | None) -> None:
            if self.stopping:
                self.kill()
                os._exit(rundir.Exit.INTERRUPTED)
            self.stopping = True
            # `stop` waits for a lock that the interrupted thread may hold
            threading.Thread(target=self.stop, daemon=True).start()
            print("\nstopping: each run saves what it has; Ctrl-C once more ends them at once", flush=True)

        before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _of_each_rank(ranks: int) -> list[dict[str, str]]:
    """For each rank, the variables by which it finds the others; none where there is but one."""
    if ranks == 1:
        return [{}]
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    group |= {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
    return [group | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]


def last_error(log: Path) -> str:
    """The last error that a log names, or its last line."""
    lines = [line for line in rundir.read_text(log).splitlines() if line.strip()]
    at = max((i for i, line in enumerate(lines) if line.startswith("error: ")), default=-1)
    return "\n".join(lines[at:]).removeprefix("error: ")
