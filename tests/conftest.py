"""Fixtures for all tests. Each process computes on one thread: the suite runs on as many processes as there are
cores."""

import contextlib
import gc
import inspect
import json
import multiprocessing
import os
import random
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ablations import rundir
from data import execute
from data.disk import locked, write_text
from launch.processes import RANK_VARIABLES

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("WANDB_MODE", "disabled")
for variable in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
    os.environ.setdefault(variable, "1")
os.environ["DS_ACCELERATOR"] = "cpu"
os.environ["CUDA_VISIBLE_DEVICES"] = ""  # tests are of a CPU; tests/gpu.sh is for a GPU
# Otherwise each process that compiles starts a pool of processes for compiling, each of which imports torch.
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
# Commands in tests are forked from one server for each test process, which has imported slow modules once.
multiprocessing.set_forkserver_preload(["tests.preload"])


def pytest_collection_finish() -> None:
    """Exempt all objects that exist by now, such as imported modules, from garbage collection. DeepSpeed asks for a
    collection at each start of an engine, and it would search them each time."""
    gc.collect()
    gc.freeze()


# Environment variables that a test may set in its process, and later tests must not inherit: `make plan ON=` claims a
# GPU, and Hugging Face's Trainer names ranks, for which a process that is forked later would wait.
LEFT_BEHIND = {"MEGAHOUR_GPU", *RANK_VARIABLES}


@pytest.fixture(autouse=True)
def environment_as_before() -> Iterator[None]:
    before = {name: os.environ[name] for name in LEFT_BEHIND & os.environ.keys()}
    yield
    for name in LEFT_BEHIND & os.environ.keys():
        del os.environ[name]
    os.environ.update(before)


@pytest.fixture(scope="session", autouse=True)
def one_worker() -> Iterator[None]:
    """Data are prepared in the test's own process and in two shards, which is faster for small texts than a worker for
    each core and sixteen shards. The defaults are tested, too: by tests/test_data_prepare.py, and by commands that
    tests start as processes of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(execute, "usable_cores", lambda: 1)
        patch.setattr("data.text.MIN_SHARDS", 2)
        yield


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all processes of the test session have in common."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


@pytest.fixture(scope="session")
def corpus(shared: Path) -> str:
    """The path of a corpus of numpy's docstrings: JSON lines, as C4's files have them."""
    import numpy

    path = shared / "numpy" / "docs.jsonl"
    with locked(shared / "numpy.lock"):
        if not path.exists():
            docs = {inspect.getdoc(getattr(numpy, n)) for n in dir(numpy)}
            lines = [json.dumps({"text": d}) + "\n" for d in sorted(d for d in docs if d and len(d) > 300)]
            write_text(path, "".join(lines))
    return str(path)


@pytest.fixture(scope="session")
def store(shared: Path) -> Path:
    """An output root for runs, with a store of prepared data: data that one test prepares are there for others."""
    (shared / "runs" / "data").mkdir(parents=True, exist_ok=True)
    return shared / "runs"


def mark_as_trained(run_dir: Path) -> None:
    """Write weights and the file `done` into a run directory, as launch/train.py does at the end of training."""
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / rundir.WEIGHTS).write_bytes(b"weights")
    rundir.write_done(run_dir, {"steps": 512})


def free_port() -> str:
    """A port at which nothing listens, below 32768: by default, Linux gives connections ports from there on, so that
    none takes this port before the ranks listen at it."""
    while True:
        port = random.SystemRandom().randrange(20_000, 32_768)
        with socket.socket() as s, contextlib.suppress(OSError):
            s.bind(("127.0.0.1", port))
            return str(port)


class Launch:
    """`python -m launch.train ARGV` on one or more ranks. Each rank is a process, forked from one that has imported
    torch.

    Args:
        context: the forkserver's context of multiprocessing.
        argv: the arguments of launch.train.
        ranks: the number of ranks.
        log: a file for the output of all ranks.
        prepare: a function that each rank calls before training; None: nothing is called.
    """

    def __init__(
        self,
        context: multiprocessing.context.BaseContext,
        argv: list[str],
        ranks: int,
        log: Path,
        prepare: Callable[[], None] | None,
    ):
        port = free_port()
        self.log = log
        self.processes = []
        for rank in range(ranks):
            group = (
                {
                    "RANK": str(rank),
                    "WORLD_SIZE": str(ranks),
                    "LOCAL_RANK": str(rank),
                    "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": port,
                }
                if ranks > 1
                else {}
            )
            process = context.Process(target=_train, args=(argv, group, log, prepare))  # type: ignore[attr-defined]
            process.start()
            self.processes.append(process)

    @property
    def output(self) -> str:
        """What all ranks have printed so far."""
        return self.log.read_text() if self.log.exists() else ""

    def running(self) -> bool:
        return any(p.is_alive() for p in self.processes)

    def kill(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()

    def wait(self, seconds: float = 240) -> int:
        """Wait until all ranks have ended. Returns the first exit code that is not 0, or 0."""
        end = time.monotonic() + seconds
        for process in self.processes:
            process.join(max(0.0, end - time.monotonic()))
        assert not self.running(), f"still running after {seconds} s: {self.output}"
        return next((p.exitcode for p in self.processes if p.exitcode), 0)

    def wait_for_kill(self, seconds: float = 120) -> None:
        """Wait until the first rank has killed itself (tests/moments.py), and kill the others, which wait for it."""
        first = self.processes[0]
        first.join(seconds)
        assert first.exitcode == -signal.SIGKILL, (first.exitcode, self.output)
        self.kill()


def _train(argv: list[str], group: dict[str, str], log: Path, prepare: Callable[[], None] | None) -> None:
    os.environ.update(group)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    from launch.train import main

    if prepare:
        prepare()
    code = main(argv)
    os._exit(code)  # without Python's slow shutdown: all files are on the disk by now


@pytest.fixture(scope="session")
def launch() -> Iterator[Callable[..., Launch]]:
    context = multiprocessing.get_context("forkserver")
    launched: list[Launch] = []

    def start(argv: list[str], log: Path, ranks: int = 1, prepare: Callable[[], None] | None = None) -> Launch:
        launched.append(Launch(context, argv, ranks, log, prepare))
        return launched[-1]

    yield start
    for one in launched:
        one.kill()
