"""Starts commands as processes that are forked from one that has imported torch, which saves seconds for each."""

import multiprocessing
import os
import runpy
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]


class Command:
    """`python -m module arguments`, started in the folder of the project.

    Args:
        folder: a folder for the command's output, in the files `stdout` and `stderr`.
        module: the module to run.
        arguments: the command's arguments.
        env: environment variables for the command, besides those of this process.
        prepare: a function that the process calls before the command. Its module is imported before the environment is
            set, and must not import a module that reads the environment.
    """

    def __init__(
        self,
        folder: Path,
        module: str,
        arguments: Sequence[object],
        env: dict[str, str] | None = None,
        prepare: Callable[[], None] | None = None,
    ):
        folder.mkdir(parents=True, exist_ok=True)
        self.output, self.errors = folder / "stdout", folder / "stderr"
        for path in (self.output, self.errors):
            path.write_bytes(b"")
        words = [str(argument) for argument in arguments]
        args = (module, words, dict(os.environ) | (env or {}), self.output, self.errors, prepare)
        self.process = multiprocessing.get_context("forkserver").Process(target=_run, args=args)
        self.process.start()

    def running(self) -> bool:
        return self.process.exitcode is None

    def kill(self) -> None:
        self.process.kill()
        self.process.join()

    def wait(self, seconds: float = 240) -> subprocess.CompletedProcess[str]:
        """Wait until the command has ended, and return its exit code and output. Raises AssertionError after
        `seconds`."""
        self.process.join(seconds)
        if self.running():
            self.kill()
            raise AssertionError(f"still running after {seconds} s: {self.errors.read_text()}")
        return subprocess.CompletedProcess(
            [], self.process.exitcode or 0, self.output.read_text(), self.errors.read_text()
        )


def _run(
    module: str,
    arguments: list[str],
    env: dict[str, str],
    output: Path,
    errors: Path,
    prepare: Callable[[], None] | None,
) -> None:
    os.environ.clear()
    os.environ.update(env)
    os.chdir(ROOT)
    for number, path in ((1, output), (2, errors)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), number)
    if prepare:
        prepare()
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)  # multiprocessing exits with the code of sys.exit


def without_pauses() -> None:
    """Make time.sleep return at once, in a process that passes this function as `prepare`: Hugging Face's clients would
    wait 1 to 8 s between their five attempts."""
    time.sleep = lambda seconds: None
