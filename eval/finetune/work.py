"""Runs several fine-tunings (tasks and seeds) in parallel, with a progress bar. Each result is written as soon as its
fine-tuning is finished."""

import ctypes
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from ablations import safe_files
from ablations.status import duration_text

# Seconds between lines where there is no terminal: the least, and as a share of the time since the start. As in
# launch/progress.py, untuned.
SHORTEST_PAUSE, PAUSE_SHARE = 15.0, 0.05
REFRESH_SECONDS = 0.5  # seconds between looks at what the processes have done


class FineTuning(NamedTuple):
    """One fine-tuning to be done: a task of GLUE and a seed."""

    name: str  # of the task
    seed: int
    conditions: dict[str, Any]  # what else the result depends on, from `eval.finetune.train.result_conditions`
    steps: int  # of the optimizer

    @property
    def label(self) -> str:
        """The name of the fine-tuning for the user: its task and seed."""
        return f"{self.name}, seed {self.seed}"

    def file(self, folder: Path) -> Path:
        """The file of the result in the folder of results, TASK-SEED.json."""
        return folder / f"{self.name}-{self.seed}.json"


class SharedInputs(NamedTuple):
    """The model, data and settings that all fine-tunings of a command share. The object can be pickled for worker
    processes."""

    folder: Path  # of the results
    source: Any  # the pretrained model: eval.finetune.source.PretrainedModel
    data: list[Path]
    setting: Any  # eval.finetune.train.Setting


def stored_result(path: Path, conditions: dict[str, Any]) -> dict[str, Any] | None:
    """Read the stored result of a fine-tuning; None where it cannot be reused. That is so where the file is missing or
    damaged, or was made under other conditions. `path`: the file; `conditions`: the entries that the result must have:
    task, seed, model, data and setting."""
    from eval.finetune.results import read_result

    try:
        result = read_result(path, conditions["task"])
    except safe_files.Damaged as error:
        print(f"{error} It does not count.", file=sys.stderr)
        return None
    return result if result is not None and conditions.items() <= result.items() else None


def run_fine_tuning(work: SharedInputs, item: FineTuning, progress: Callable[[int, int], None]) -> dict[str, Any]:
    """Fine-tune on one task with one seed, write the result to its file, and return it.

    Args:
        work: the inputs that all fine-tunings share.
        item: the fine-tuning.
        progress: a function that is called after every step with the number of finished steps and of all steps.

    Raises:
        ValueError: the task's data has changed since the command began; the result belongs to neither version of it.
    """
    import torch

    from eval.finetune.train import finetune, result_conditions

    source, setting = work.source, work.setting
    device = "cuda" if torch.cuda.is_available() else "cpu"
    make_backbone, encode = partial(source.backbone, setting), source.encoder(setting.longest)
    result = finetune(item.name, work.data, make_backbone, encode, setting, item.seed, device, progress)
    if result_conditions(item.name, work.data, setting, item.conditions["model_sha256"]) != item.conditions:
        raise ValueError("its data changed while it was fine-tuned on: give the same command again")
    result = item.conditions | {"seed": item.seed} | result
    safe_files.write_json(item.file(work.folder), result)
    return result


def run_fine_tunings(
    work: SharedInputs, items: list[FineTuning], jobs: int, results: dict[tuple[str, int], dict[str, Any]]
) -> list[str]:
    """Run several fine-tunings. Returns a sentence for each one that failed.

    Args:
        work: the inputs that all fine-tunings share.
        items: the fine-tunings.
        jobs: how many fine-tunings run at a time, each in a process of its own; with 1 they run in this process.
        results: {(task, seed): result}, to which the results are added.
    """
    failed: list[str] = []

    def collect(item: FineTuning, get_result: Callable[[], dict[str, Any]]) -> None:
        try:
            results[item.name, item.seed] = get_result()
        except (ValueError, RuntimeError) as error:
            failed.append(f"{item.label}: {error}")

    with show_progress(items) as show:
        if jobs == 1:
            for number, item in enumerate(items):
                past_steps = sum(finished.steps for finished in items[:number])

                def progress(step: int, steps: int, past_steps: int = past_steps, label: str = item.label) -> None:
                    show(past_steps + step, f"{label}, step {step} of {steps}")

                collect(item, partial(run_fine_tuning, work, item, progress))
                show(past_steps + item.steps, item.label, True)
            return failed
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // jobs)))
        context = multiprocessing.get_context("spawn")
        steps = context.Value("q", 0)
        with ProcessPoolExecutor(jobs, context, _set_up_worker, (steps,)) as pool:
            try:
                started = {pool.submit(_finetune_in_pool, work, item): item for item in items}
                running = set(started)
                while running:
                    ended, running = wait(running, REFRESH_SECONDS, FIRST_COMPLETED)
                    for future in ended:
                        collect(started[future], future.result)
                        show(steps.value, started[future].label, True)
                    show(steps.value, f"all tasks, step {steps.value} of {sum(item.steps for item in items)}")
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                for child in multiprocessing.active_children():
                    child.terminate()
                raise
    return failed


_steps: Any = None  # in a process of the pool: the steps that all of them have done


def _set_up_worker(steps: Any) -> None:
    """Set up a worker process: keep the counter of finished steps that all workers share, and have the kernel kill the
    process when its parent dies (Linux: PR_SET_PDEATHSIG). `steps`: the counter, a multiprocessing Value."""
    global _steps
    _steps = steps
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def _finetune_in_pool(work: SharedInputs, item: FineTuning) -> dict[str, Any]:
    """Run one fine-tuning in a worker process, and count its steps in the counter that all workers share. Returns the
    result."""

    def progress(step: int, _: int) -> None:
        with _steps.get_lock():
            _steps.value += 1

    return run_fine_tuning(work, item, progress)


@contextmanager
def show_progress(items: list[FineTuning]) -> Iterator[Callable[..., None]]:
    """A context that shows the progress of several fine-tunings: a bar on a terminal, elsewhere lines of text. A line
    is printed when a fine-tuning ends, and at most every 15 seconds while steps are done (launch/progress.py reads
    these lines in glue.log). `items`: the fine-tunings.

    Yields a function with three arguments:
        1. the number of optimizer steps that all fine-tunings together have finished;
        2. the name of the fine-tuning at work, or of the one that has just ended;
        3. True where one has ended; may be left out.
    """
    from rich.console import Console
    from rich.progress import Progress

    total, ended = sum(item.steps for item in items), 0
    began = printed = time.monotonic()
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        line = bar.add_task("fine-tuning", total=total)

        def show(steps: int, words: str, is_end: bool = False) -> None:
            nonlocal ended, printed
            ended += is_end
            bar.update(line, completed=steps, description=f"fine-tuning, {ended} of {len(items)} done")
            now = time.monotonic()
            if console.is_terminal or not (is_end or now - printed > max(SHORTEST_PAUSE, PAUSE_SHARE * (now - began))):
                return
            printed = now
            remaining = (
                f"{duration_text((now - began) * (total - steps) / steps)} left" if steps else "time left unknown"
            )
            print(f"{words}: {ended} of {len(items)} done, {remaining}", file=sys.stderr, flush=True)

        if items and not console.is_terminal:
            print(f"all tasks, step 0 of {total}: 0 of {len(items)} done", file=sys.stderr, flush=True)
        yield show
