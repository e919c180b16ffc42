"""Runs datatrove's pipelines on this machine, as arrays of Slurm jobs, or on Ray. A pipeline is a list of steps, run as
numbered tasks, one for each shard of a corpus. Finished tasks are not run again."""

from __future__ import annotations

import contextlib
import copy
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
POLL_SECONDS = 2.0  # seconds between two looks at the queue


class Executor(NamedTuple):
    """The kind of machine that runs the tasks of a preparation, and how many tasks run at a time.

    Args:
        kind: "local" (this machine), "slurm" or "ray".
        workers: the number of tasks that run at a time. 0: on this machine a task for each core, on a cluster all at
            once.
        options: {name: value}, options of datatrove's executor. Slurm needs time and partition, and takes others, such
            as mem_per_cpu_gb or qos; options that datatrove does not know go to sbatch. Ray takes address,
            mem_per_cpu_gb and cpus_per_task.
    """

    kind: str = "local"
    workers: int = 0
    options: dict[str, str] = {}


THIS_MACHINE = Executor()


def check_executor(executor: Executor) -> None:
    """Raise ValueError where the kind of an executor is unknown, the number of workers is negative, or an option is
    missing or not allowed."""
    if executor.kind not in KINDS:
        raise ValueError(f"EXECUTOR={executor.kind} is not one of {', '.join(KINDS)}")
    if executor.workers < 0:
        raise ValueError(f"WORKERS={executor.workers}: a number of tasks at a time, or 0")
    if executor.kind == "slurm" and (missing := {"partition", "time"} - set(executor.options)):
        raise ValueError(f'EXECUTOR=slurm needs {" and ".join(sorted(missing))}: OPTIONS="partition=cpu time=9:00"')
    if executor.kind == "local" and executor.options:
        raise ValueError(f"EXECUTOR=local has no options: {', '.join(executor.options)}")


def usable_cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0))


def run_pipeline(executor: Executor, pipeline: list[Any], tasks: int, logs: str) -> None:
    """Run the tasks of a datatrove pipeline and wait for them.

    Args:
        executor: where the tasks run.
        pipeline: the steps of the pipeline.
        tasks: the number of tasks.
        logs: the folder for datatrove's logs. Tasks that are completed according to this folder are not run again.

    Raises:
        RuntimeError: on a cluster, tasks did not finish; the message names their logs. A task that fails on this
            machine raises its own error.
    """
    {"local": _run_locally, "slurm": _run_on_slurm, "ray": _run_on_ray}[executor.kind](executor, pipeline, tasks, logs)


_runs_local_tasks = False


def _run_locally(executor: Executor, pipeline: list[Any], tasks: int, logs: str) -> None:
    from datatrove.executor import LocalPipelineExecutor

    global _runs_local_tasks
    _runs_local_tasks = True
    try:
        # fork: other start methods import the caller's script again; a script without `if __name__ == "__main__"` would
        # then wait here for itself. The tasks use neither torch nor a lock of another thread of this process.
        workers = min(tasks, executor.workers or usable_cores())
        runner = LocalPipelineExecutor(pipeline, tasks=tasks, workers=workers, logging_dir=logs, start_method="fork")
        with python_folders_computed_once():
            if workers > 1:
                runner.run()
            else:
                _run_in_this_process(runner)
    finally:
        _runs_local_tasks = False


def _run_in_this_process(runner: Any) -> None:
    """Run the tasks of a LocalPipelineExecutor of datatrove that are not completed, in this process. The executor's
    method `run` starts a further process even for a single worker, which costs as much as a small task."""
    pipeline = runner.pipeline
    for rank in runner.get_incomplete_ranks():
        runner.pipeline = copy.deepcopy(pipeline)  # its steps count what they read and write
        runner._run_for_rank(rank)


@contextlib.contextmanager
def python_folders_computed_once() -> Iterator[None]:
    """A context in which `sysconfig.get_path` computes each folder of Python's installation only once.

    datatrove makes three loggers for each task, and for each logger the library loguru looks up 36 such folders. That
    took 3 ms for a task, and 0.4 s of the preparation of a small corpus (measured).
    """
    get_path = sysconfig.get_path
    sysconfig.get_path = functools.cache(get_path)  # type: ignore[assignment]
    try:
        yield
    finally:
        sysconfig.get_path = get_path


def _end_with_parent() -> None:
    """Have the kernel kill this process when its parent dies. It is called in every forked process, and acts in those
    that run tasks of datatrove, which would otherwise go on after the parent is killed."""
    if _runs_local_tasks and sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # 1: PR_SET_PDEATHSIG
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # after Ctrl-C the parent ends this process


os.register_at_fork(after_in_child=_end_with_parent)


def _run_on_slurm(executor: Executor, pipeline: list[Any], tasks: int, logs: str) -> None:
    import inspect

    from datatrove.executor import SlurmPipelineExecutor

    class Quiet(SlurmPipelineExecutor):
        def launch_merge_stats(self) -> None:
            pass  # another job, for statistics that nobody reads

    job_file = Path(logs, "job")
    if job_file.exists():  # left by a process that was killed: its jobs would write the same files
        _cancel(job_file.read_text())
    parameters = inspect.signature(SlurmPipelineExecutor.__init__).parameters
    options: dict[str, Any] = {
        name: int(value) if value.isdigit() else value for name, value in executor.options.items() if name in parameters
    }
    sbatch_options = {name: value for name, value in executor.options.items() if name not in parameters}
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    options.setdefault("env_command", f'export PATH="{Path(sys.executable).parent}:$PATH" PYTHONPATH="{paths}"')
    # Slurm's own requeue of a lost node's task is safe: a task writes its files anew
    runner = Quiet(
        pipeline,
        tasks=tasks,
        workers=executor.workers or -1,
        logging_dir=logs,
        sbatch_args=sbatch_options or None,
        **({"job_name": "megahour-data", "qos": "", "mail_type": "NONE"} | options),
    )
    runner.run()
    if runner.job_id == -1:
        return
    job_file.write_text(str(runner.job_id))
    try:
        while runner.get_incomplete_ranks() and _in_queue(str(runner.job_id)):
            time.sleep(POLL_SECONDS)
    except BaseException:
        _cancel(str(runner.job_id))
        raise
    for _ in range(15):  # a network file system may show the last files late
        if not (unfinished := runner.get_incomplete_ranks()):
            job_file.unlink()
            return
        time.sleep(POLL_SECONDS)
    raise _unfinished_error(unfinished, tasks, f"{logs}/slurm_logs")


def _unfinished_error(unfinished: list[int], tasks: int, logs: str) -> RuntimeError:
    return RuntimeError(
        f"{len(unfinished)} of {tasks} tasks did not finish, the first is {unfinished[0]}; see {logs}. "
        "The same command does these again"
    )


def _in_queue(job: str) -> bool:
    """Whether Slurm's queue still has a task of the job array with the id `job`. Also True while Slurm does not
    answer."""
    states = "PENDING,RUNNING,CONFIGURING,COMPLETING,REQUEUED,SUSPENDED,RESIZING"
    queue = subprocess.run(["squeue", "--noheader", "--jobs", job, "--states", states], capture_output=True, text=True)
    if queue.returncode:
        return "Invalid job id" not in queue.stderr
    return bool(queue.stdout.strip())


def _cancel(job: str) -> None:
    """Cancel the job array with the id `job`, and wait until it has left Slurm's queue."""
    subprocess.run(["scancel", job.strip()], capture_output=True)
    while _in_queue(job.strip()):
        time.sleep(POLL_SECONDS)


def _run_on_ray(executor: Executor, pipeline: list[Any], tasks: int, logs: str) -> None:
    try:
        import ray
    except ImportError:
        raise ValueError("EXECUTOR=ray needs ray: pip install '.[ray]'") from None
    from datatrove.executor.ray import RayPipelineExecutor

    options = dict(executor.options)
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
    runner = RayPipelineExecutor(
        pipeline,
        tasks=tasks,
        workers=executor.workers or -1,
        logging_dir=logs,
        **{
            name: float(value) if "." in value else int(value) if value.isdigit() else value
            for name, value in options.items()
        },
    )
    runner.run()
    if unfinished := runner.get_incomplete_ranks(skip_completed=True):
        raise _unfinished_error(unfinished, tasks, f"{logs}/logs")


@contextlib.contextmanager
def stderr_appended_to(path: Path) -> Any:
    """A context in which the standard error of this process and its children is appended to the file `path`. Yields a
    file descriptor of the original standard error."""
    sys.stderr.flush()
    original = os.dup(2)
    with open(path, "ab") as log:
        os.dup2(log.fileno(), 2)
        try:
            yield original
        finally:
            sys.stderr.flush()
            os.dup2(original, 2)
            os.close(original)
