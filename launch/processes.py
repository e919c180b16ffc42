"""Starts commands as child processes. The ranks of a run start and end together, and all children end with this
process.

Ctrl-C in a terminal, or closing it, sends a signal (SIGINT, SIGHUP) to all its processes. The children ignore both;
this process handles them and ends the children.
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
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from ablations import rundir, safe_files
from ablations.machine import installed_gpus
from ablations.study import ROOT

# Environment variables by which a process knows that it is one of many ranks. Children do not inherit them: where
# torchrun or a container has left them in the shell, a run would wait for ranks that nobody starts. SLURM_JOB_ID is
# among them, since launch/run.sh, not this file, starts the ranks of a Slurm job.
RANK_VARIABLES = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "SLURM_JOB_ID"}
RANK_VARIABLES |= {"GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_RANK", "ROLE_NAME", "ROLE_WORLD_SIZE"}  # torchrun's

PR_SET_PDEATHSIG = 1  # of Linux's <sys/prctl.h>: the signal that a process gets when its parent dies


class CommandFailed(RuntimeError):
    """A command exited with an error; the message is the last error in its log."""


class Interrupted(RuntimeError):
    """A command was ended by Ctrl-C, SIGTERM or SIGHUP to this process."""


def child_environment() -> dict[str, str]:
    """The environment of child processes: that of this process without RANK_VARIABLES, and with Python in UTF-8
    mode."""
    env = {k: v for k, v in os.environ.items() if k not in RANK_VARIABLES and not k.startswith("TORCHELASTIC_")}
    return env | {"PYTHONUTF8": "1"}


def restart_in_utf8_mode(module: str, words: list[str]) -> None:
    """Replace this process by `python -m module words` in Python's UTF-8 mode, unless the locale is UTF-8. Otherwise
    this process would decode arguments and files differently from its children."""
    if not sys.flags.utf8_mode and locale.getencoding().lower() != "utf-8":
        os.execve(sys.executable, [sys.executable, "-m", module, *words], child_environment())


def ignore_ctrl_c_and_die_with_parent() -> None:
    """Have this child process ignore SIGINT and SIGHUP, and have the kernel kill it when its parent dies. For the
    argument `preexec_fn` of subprocess.Popen."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def gpu_count() -> int:
    """The number of GPUs of this machine that CUDA_VISIBLE_DEVICES allows; 1 where there is no GPU."""
    installed, visible = installed_gpus(), os.environ.get("CUDA_VISIBLE_DEVICES")
    return max(1, installed if visible is None else min(installed, len([x for x in visible.split(",") if x.strip()])))


class Processes:
    """The running child processes. Worker threads start them with `run`; the main thread can end all of them."""

    def __init__(self) -> None:
        self.running: list[subprocess.Popen[bytes]] = []
        self.starting = threading.Lock()  # held while children are started, so that `stop` misses none
        self.stopping = False

    def run(self, command: list[str], log: Path, ranks: int, threads: int) -> None:
        """Start `command` once for each rank, and wait until all ranks have exited. When a rank exits with an error,
        kill the others.

        Args:
            command: the program and its arguments, the same for every rank.
            log: the file to which the output of all ranks is added.
            ranks: how many processes to start.
            threads: CPU threads of each process (OMP_NUM_THREADS).

        Raises:
            CommandFailed: a rank exited with an error; the message is the last error in `log`.
            Interrupted: `stop` was called.
        """
        with safe_files.open_to_write(log, append=True) as output, self.starting:
            if self.stopping:
                raise Interrupted
            env = child_environment() | {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
            children = [
                subprocess.Popen(
                    command,
                    cwd=ROOT,
                    stdout=output,
                    stderr=output,
                    stdin=subprocess.DEVNULL,
                    preexec_fn=ignore_ctrl_c_and_die_with_parent,
                    env=env | {"PYTHONUNBUFFERED": "1"} | variables,
                )
                for variables in _rank_environments(ranks)
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
            raise CommandFailed(f"{killed_by or last_error(log)}  (log: {log}; the same command continues)")

    def stop(self) -> None:
        """Send SIGTERM to all running commands, and start no more: `run` then raises Interrupted. A command that trains
        saves a checkpoint and exits."""
        self.stopping = True
        with self.starting:
            for child in self.running:
                child.terminate()

    def kill(self) -> None:
        for child in self.running:
            child.kill()

    @contextmanager
    def stop_on_signals(self) -> Iterator[None]:
        """A context in which signals to this process end its commands. The first SIGINT (Ctrl-C), SIGTERM or SIGHUP
        (closed terminal) calls `stop`. The second kills all commands and ends this process. SIGHUP is ignored under
        nohup."""

        def handle(number: int, frame: FrameType | None) -> None:
            if self.stopping:
                self.kill()
                os._exit(rundir.Exit.INTERRUPTED)
            self.stopping = True
            # on a thread, since `stop` waits for a lock that the interrupted thread may hold
            threading.Thread(target=self.stop, daemon=True).start()
            with suppress(OSError):  # the terminal may be closed
                print("\nstopping: each run saves what it has; Ctrl-C once more ends them at once", flush=True)

        numbers = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            numbers.append(signal.SIGHUP)
        before = {number: signal.signal(number, handle) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _rank_environments(ranks: int) -> list[dict[str, str]]:
    """The environment variables by which torch.distributed finds the other ranks: a list with {name: value} for each of
    `ranks` ranks. [{}] for a single rank."""
    if ranks == 1:
        return [{}]
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    group |= {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
    return [group | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]


def last_error(log: Path) -> str:
    """The last error in a log file: the text after the last "error: " at the beginning of a line, to the end of the
    file. Without such a line, the last line that is not blank."""
    lines = [line for line in safe_files.read_text(log).splitlines() if line.strip()]
    first = max((i for i, line in enumerate(lines) if line.startswith("error: ")), default=-1)
    return "\n".join(lines[first:]).removeprefix("error: ")
