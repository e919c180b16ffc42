"""Runs datatrove's pipelines on this machine, as arrays of Slurm jobs, or on Ray. Finished tasks are not run again."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parent.parent
KINDS = ("local", "slurm", "ray")
POLL = 2.0  # seconds between two looks at the queue


class Executor(NamedTuple):
    """Where the tasks of a preparation run.

    Args:
        kind: "local" (this machine), "slurm" or "ray".
        workers: the number of tasks that run at a time; 0: one for each core of this machine, or on a cluster all at
            once.
        options: options of datatrove's executor. Slurm needs time and partition, and takes others, such as
            mem_per_cpu_gb or qos; those that datatrove does not know go to sbatch. Ray takes address, mem_per_cpu_gb,
            cpus_per_task.
    """

    kind: str = "local"
    workers: int = 0
    options: dict[str, str] = {}


HERE = Executor()


def check(how: Executor) -> None:
    """Check the kind, the number of workers and the options of an executor.

    Raises:
        ValueError: the kind is unknown, the number of workers is negative, or an option is missing or not allowed; the
            message names what is allowed.
    """
    if how.kind not in KINDS:
        raise ValueError(f"EXECUTOR={how.kind} is not one of {', '.join(KINDS)}")
    if how.workers < 0:
        raise ValueError(f"WORKERS={how.workers}: a number of tasks at a time, or 0")
    if how.kind == "slurm" and (missing := {"partition", "time"} - set(how.options)):
        raise ValueError(f'EXECUTOR=slurm needs {" and ".join(sorted(missing))}: OPTIONS="partition=cpu time=9:00"')
    if how.kind == "local" and how.options:
        raise ValueError(f"EXECUTOR=local has no options: {', '.join(how.options)}")


def cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0))


def run(how: Executor, pipeline: list[Any], tasks: int, logs: str) -> None:
    """Run the tasks of a datatrove pipeline and wait for them. Tasks that are completed according to the folder `logs`
    are not run again.

    Args:
        how: where the tasks run.
        pipeline: datatrove's steps.
        tasks: the number of tasks.
        logs: the folder in which datatrove notes completed tasks.

    Raises:
        RuntimeError: on a cluster, a task failed; the message names the logs. On this machine the task's own error is
            raised.
    """
    {"local": _local, "slurm": _slurm, "ray": _ray}[how.kind](how, pipeline, tasks, logs)


_executing = False


def _local(how: Executor, pipeline: list[Any], tasks: int, logs: str) -> None:
    from datatrove.executor import LocalPipelineExecutor

    global _executing
    _executing = True
    try:
        # fork: the other methods import the caller's script again, which would wait here for itself without a
        # guard on its name. The tasks touch neither torch nor a lock of this process' other threads.
        executor = LocalPipelineExecutor(
            pipeline, tasks=tasks, workers=min(tasks, how.workers or cores()), logging_dir=logs, start_method="fork"
        )
        with python_folders_computed_once():
            executor.run()
    finally:
        _executing = False


@contextlib.contextmanager
def python_folders_computed_once() -> Iterator[None]:
    """A context in which `sysconfig.get_path` computes each folder once.

    datatrove makes three loggers for each task, and for each of them loguru looks up 36 folders of Python's
    installation. That took 3 ms (measured), for a small corpus 0.4 s of all the time that its preparation computes.
    """
    get_path = sysconfig.get_path
    sysconfig.get_path = functools.cache(get_path)  # type: ignore[assignment]
    try:
        yield
    finally:
        sysconfig.get_path = get_path


def _end_with_parent() -> None:
    """Have the kernel kill this process when its parent dies. This is called in the processes that datatrove's executor
    forks, which would otherwise go on after the parent is killed."""
    if _executing and sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # 1: PR_SET_PDEATHSIG
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to hear, which then ends this process


os.register_at_fork(after_in_child=_end_with_parent)


def _slurm(how: Executor, pipeline: list[Any], tasks: int, logs: str) -> None:
    import inspect

    from datatrove.executor import SlurmPipelineExecutor

    class Quiet(SlurmPipelineExecutor):
        def launch_merge_stats(self) -> None:
            pass  # another job, for statistics that nobody reads

    job_file = Path(logs, "job")
    if job_file.exists():  # left by a process that was killed: its jobs would write the same files
        _cancel(job_file.read_text())
    known = inspect.signature(SlurmPipelineExecutor.__init__).parameters
    options: dict[str, Any] = {
        name: int(value) if value.isdigit() else value for name, value in how.options.items() if name in known
    }
    rest = {name: value for name, value in how.options.items() if name not in known}
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    options.setdefault("env_command", f'export PATH="{Path(sys.executable).parent}:$PATH" PYTHONPATH="{paths}"')
    # Slurm's own requeue of a lost node's task is safe: a task writes its files anew
    executor = Quiet(
        pipeline,
        tasks=tasks,
        workers=how.workers or -1,
        logging_dir=logs,
        sbatch_args=rest or None,
        **({"job_name": "megahour-data", "qos": "", "mail_type": "NONE"} | options),
    )
    executor.run()
    if executor.job_id == -1:
        return
    job_file.write_text(str(executor.job_id))
    try:
        while executor.get_incomplete_ranks() and _alive(str(executor.job_id)):
            time.sleep(POLL)
    except BaseException:
        _cancel(str(executor.job_id))
        raise
    for _ in range(15):  # a network file system may show the last files late
        if not (left := executor.get_incomplete_ranks()):
            job_file.unlink()
            return
        time.sleep(POLL)
    raise RuntimeError(
        f"{len(left)} of {tasks} tasks did not finish, the first is {left[0]}; see {logs}/slurm_logs. "
        "The same command does these again"
    )


def _alive(job: str) -> bool:
    """Whether Slurm's queue still has an element of a job array. True also while Slurm does not answer. `job`: the id
    of the array."""
    queue = subprocess.run(
        [
            "squeue",
            "--noheader",
            "--jobs",
            job,
            "--states",
            "PENDING,RUNNING,CONFIGURING,COMPLETING,REQUEUED,SUSPENDED,RESIZING",
        ],
        capture_output=True,
        text=True,
    )
    if queue.returncode:
        return "Invalid job id" not in queue.stderr
    return bool(queue.stdout.strip())


def _cancel(job: str) -> None:
    """Cancel a job array of Slurm, and wait until it has left the queue. `job`: the id of the array."""
    subprocess.run(["scancel", job.strip()], capture_output=True)
    while _alive(job.strip()):
        time.sleep(POLL)


def _ray(how: Executor, pipeline: list[Any], tasks: int, logs: str) -> None:
    try:
        import ray
    except ImportError:
        raise ValueError("EXECUTOR=ray needs ray: pip install '.[ray]'") from None
    from datatrove.executor.ray import RayPipelineExecutor

    options = dict(how.options)
    address = options.pop("address", None)
    if not ray.is_initialized():
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        ray.init(
            address=address,
            runtime_env={"env_vars": {"PYTHONPATH": path}},
            log_to_driver=False,
            logging_level="ERROR",
            include_dashboard=False if address is None else None,
        )
    executor = RayPipelineExecutor(
        pipeline,
        tasks=tasks,
        workers=how.workers or -1,
        logging_dir=logs,
        **{
            name: float(value) if "." in value else int(value) if value.isdigit() else value
            for name, value in options.items()
        },
    )
    executor.run()
    if left := executor.get_incomplete_ranks(skip_completed=True):
        raise RuntimeError(
            f"{len(left)} of {tasks} tasks did not finish, the first is {left[0]}; see {logs}/logs. "
            "The same command does these again"
        )


@contextlib.contextmanager
def stderr_in(path: Path) -> Any:
    """A context in which the standard error of this process and its children is appended to the file `path`. Yields a
    file descriptor of the original standard error."""
    sys.stderr.flush()
    terminal = os.dup(2)
    with open(path, "ab") as log:
        os.dup2(log.fileno(), 2)
        try:
            yield terminal
        finally:
            sys.stderr.flush()
            os.dup2(terminal, 2)
            os.close(terminal)
