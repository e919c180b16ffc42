"""`python -m launch.local POS=alibi`: runs a study on this machine, with a few of its runs at a time.

Training and evaluation are separate commands, which share nothing but the run directory: this file starts them as
processes and reads what they leave there. After an interruption the same command continues: finished runs are kept, a
half-finished one goes on from its last checkpoint.
"""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import TextIO

from ablations import answers, rundir, safe_files
from ablations.compilation import check_compiler
from ablations.config import ConfigError
from ablations.machine import has_gpu
from ablations.plan.epochs import epochs_of_text
from ablations.rundir import Exit
from ablations.safe_files import Damaged
from ablations.study import ROOT, Cell, Study, from_args
from ablations.words import change_to_checkout
from launch import progress
from launch.processes import (
    CommandFailed,
    Interrupted,
    Processes,
    child_environment,
    gpu_count,
    ignore_ctrl_c_and_die_with_parent,
    restart_in_utf8_mode,
)
from launch.repair import is_evaluated, is_fine_tuned, repair

STDERR = 2  # file descriptor of standard error


def run(study: Study) -> list[str]:
    """Prepare data, then train and evaluate every run of the study that is not finished.

    Returns:
        A line for each run that failed, with the reason; empty when none did.

    Raises:
        ConfigError: before any training, for what concerns all runs, such as a corpus that cannot be prepared.
        Interrupted: Ctrl-C, SIGTERM or SIGHUP ended the command; every run in training has saved a checkpoint.
    """
    check_tasks(study)
    at_once = runs_at_a_time(study)
    cells, trained, failures = repaired_cells(study)
    todo = unfinished_cells(study, cells)
    for cell in todo:
        if cell.dir not in trained:
            check_compiler(cell.run)
    if todo:
        prepare(study, todo)
    register_finished(study, trained)
    if not todo:
        return failures
    print(*epochs_of_text(study), *filter(None, [study.compiled_why]), "", sep="\n", flush=True)
    return failures + finish_runs(study, todo, at_once)


def repaired_cells(study: Study) -> tuple[list[Cell], dict[Path, int], list[str]]:
    """Repair damaged run directories of a study. Returns (the runs whose directories are undamaged now, {run directory:
    steps trained} of the trained ones among these runs, a line for each run that is left out because its directory
    cannot be repaired)."""
    cells, trained, failures = [], {}, []
    for cell in study.cells:
        try:
            if repaired := repair(cell):
                print(repaired, flush=True)
            if done := rundir.read_done(cell.dir):
                trained[cell.dir] = int(done.get("steps", 1))
            cells.append(cell)
        except Damaged as error:  # the other runs go on
            failures.append(f"{cell.name}: {error}")
    return cells, trained, failures


def unfinished_cells(study: Study, cells: list[Cell]) -> list[Cell]:
    """The runs among `cells` that remain to be trained, evaluated, fine-tuned or exported. Evaluated runs are first
    evaluated here on tasks that were added or changed since; where that fails, all of `cells` are returned."""
    todo = [cell for cell in cells if not is_evaluated(cell)]
    untuned = [cell for cell in cells if study.glue_options and not is_fine_tuned(cell)]
    if evaluated := [str(cell.dir) for cell in cells if cell not in todo]:
        options = [*study.eval_options, "--store", str(study.out / rundir.DATA)]
        if not _command_succeeds("-m", "eval", *options, *evaluated):
            todo = cells  # each in a process of its own, so that the one that fails is named and stops no other
    unexported = [cell for cell in cells if study.exports and not rundir.is_exported(cell.dir)]
    return [cell for cell in cells if cell in todo or cell in untuned or cell in unexported]


def finish_runs(study: Study, todo: list[Cell], at_once: int) -> list[str]:
    """Train and evaluate the runs `todo`, up to `at_once` at a time, and show their progress. Returns a line for each
    run that failed, with the reason. Raises Interrupted where a signal ended the command."""
    failures: list[str] = []
    phases = {cell.dir: "waiting" for cell in todo}
    processes = Processes()

    def work(cell: Cell) -> None:
        try:
            finish_run(study, cell, phases, processes)
            phases[cell.dir] = "finished"
        except Interrupted:
            phases[cell.dir] = "stopped"
        except (CommandFailed, Damaged, OSError) as error:
            reason = safe_files.storage_error(error) if isinstance(error, OSError) else str(error)
            if not reason:
                raise
            phases[cell.dir] = "failed"
            failures.append(f"{cell.name}: {reason}")

    shown = threading.Event()
    display = threading.Thread(target=progress.show_progress, args=(progress.Progress(todo, phases, at_once), shown))
    display.start()
    try:
        with processes.stopped_by_signals(), ThreadPoolExecutor(at_once) as pool:
            for future in [pool.submit(work, cell) for cell in todo]:
                future.result()
    finally:
        shown.set()
        display.join()
        print(flush=True)
    if processes.stopping:
        raise Interrupted
    return failures


def register_finished(study: Study, trained: dict[Path, int]) -> None:
    """Register the study (its question and criteria) in the directories of its runs that are trained already: for
    another study, or before this study was changed. Call this after all checks, so that a refused command registers
    nothing. `trained`: {run directory: the number of steps that the run was trained}."""
    for folder, steps in trained.items():
        with suppress(OSError):  # of a folder that can only be read: the report then says that it is not there
            rundir.register(folder, study.registration, steps)


def _command_succeeds(*words: str) -> bool:
    """Run `python words` as a child process whose output is discarded. Returns whether it exits with 0."""
    return _exit_code(*words, output=subprocess.DEVNULL) == 0


def _exit_code(*words: str, output: int | None = None) -> int:
    """Run `python words` as a child process that ignores Ctrl-C, and return the child's exit code. At Ctrl-C this
    process ends the child and raises KeyboardInterrupt. `output`: a file descriptor for the child's standard output;
    None: the standard output of this process."""
    ended_by_us = ignore_ctrl_c_and_die_with_parent
    command = [sys.executable, *words]
    return subprocess.run(command, cwd=ROOT, env=child_environment(), stdout=output, preexec_fn=ended_by_us).returncode


def check_tasks(study: Study) -> None:
    """Check, before hours are spent on training, that the runs can be evaluated, fine-tuned and exported as the study
    asks. Raises ConfigError where a task made from held-out text is defined in tasks.yaml but not in the code, or in
    the code alone; or where the runs cannot be evaluated on TASKS, fine-tuned on GLUE, or exported (EXPORT=1)."""
    if not _command_succeeds("-m", "eval.tasks.probes"):
        raise ConfigError("the runs cannot be judged; the reason stands above")
    if study.exports and not _command_succeeds("-m", "eval.exportable", *study.words):
        raise ConfigError("not every run can be exported (EXPORT=1); the reasons stand above")
    if study.glue_options and not _command_succeeds("-m", "eval.finetune", *study.glue_options):
        raise ConfigError("the runs cannot be fine-tuned on GLUE; the reason stands above")
    if study.eval_options and not _command_succeeds("-m", "eval", *study.eval_options):
        raise ConfigError("the runs cannot be judged by TASKS; the reason stands above")


def prepare(study: Study, cells: list[Cell]) -> None:
    """Prepare the missing corpora, tokenizers and token files that the runs `cells` of a study need. Raises ConfigError
    where a corpus cannot be prepared, or differs from the corpus that the study's earlier runs were trained on."""
    from data.corpus import missing_files
    from launch.data_identity import check_files, check_prepared

    check_files(study)
    store = study.out / rundir.DATA
    requests = []
    for data, vocab, masks in {(c.run.data, c.run.model.vocab, c.run.model.needs_mask_token): 0 for c in cells}:
        recipe = [f"data.{name}={value}" for name, value in data.recipe._asdict().items()]
        tokenizer = ["--tokenizer", data.tokenizer, "--kind", data.tokenizer_kind, "--vocab", str(vocab)]
        tokenizer += ["--mask"] if masks else []
        requests.append([data.corpus, *tokenizer, "--set", *recipe])
    held_out = {(corpus, c.run.data.allow_errors): 0 for c in cells for corpus in c.run.eval.corpora}
    requests += [[corpus, "--held-out", "--set", f"data.allow_errors={errors}"] for corpus, errors in held_out]
    for sentence in missing_files((corpus for c in cells for corpus in c.run.corpora), store):
        print(f"warning: {sentence}", file=sys.stderr)
    for corpus, *options in requests:
        if not _command_succeeds("-m", "data.prepare", corpus, *options, "--told", "--store", str(store)):
            raise ConfigError(f"the corpus {corpus} cannot be prepared; the reason stands above")
    check_prepared(study)


def runs_at_a_time(study: Study) -> int:
    """The number of runs to train at a time: JOBS where the user gives it; else one on a machine with a GPU, and on
    CPUs as many as the cores allow. Raises ConfigError where the budget is a wall clock and JOBS is more than the
    processors allow, since each run would then train less."""
    layout = study.base.layout
    cores = len(os.sched_getaffinity(0))
    most = 1 if has_gpu() else max(1, cores // (layout.threads * max(layout.processes, 1)))
    if study.jobs and study.jobs > most and study.base.ends_by_clock:
        raise ConfigError(
            f"JOBS={study.jobs}: a wall clock ends these runs, so that each needs processors of its own; "
            f"{'a GPU machine' if has_gpu() else f'{cores} cores'} can train {most} at a time"
        )
    return study.jobs or most


def finish_run(study: Study, cell: Cell, phases: dict[Path, str], processes: Processes) -> None:
    """Bring one run to its end: train it unless it is trained, evaluate it, and fine-tune it on GLUE and export it
    where the study asks for that.

    Args:
        phases: {run directory: the run's phase in words, such as "training"}; updated for the progress display.
        processes: starts the commands as child processes.

    Raises:
        CommandFailed: a command exited with an error; the message is the last error in its log.
        Interrupted: Ctrl-C, SIGTERM or SIGHUP ended the commands.
    """
    cell.dir.mkdir(parents=True, exist_ok=True)
    threads = cell.run.layout.threads
    trained = False
    while not trained:
        while rundir.is_locked(cell.dir):
            if processes.stopping:
                raise Interrupted
            phases[cell.dir] = "trained by another process"
            time.sleep(0.5)
        try:
            if rundir.read_done(cell.dir) is None:
                phases[cell.dir] = "training"
                command = [sys.executable, "-m", "launch.train", "--cell", str(study.cells.index(cell)), *study.words]
                processes.run(command, cell.dir / rundir.TRAIN_LOG, cell.run.layout.processes or gpu_count(), threads)
            trained = True
        except CommandFailed:
            if not rundir.is_locked(cell.dir):  # else another process was first, by a moment
                raise
    phases[cell.dir] = "evaluating"
    store = str(study.out / rundir.DATA)
    command = [sys.executable, "-m", "eval", *study.eval_options, "--store", store, str(cell.dir)]
    processes.run(command, cell.dir / rundir.EVAL_LOG, 1, threads)
    if study.glue_options:
        phases[cell.dir] = "fine-tuning"
        command = [sys.executable, "-m", "eval.finetune", str(cell.dir), *study.glue_options, "--store", store]
        processes.run(command, cell.dir / rundir.GLUE_LOG, 1, threads)
    if study.exports:
        phases[cell.dir] = "exporting"
        command = [sys.executable, "-m", "eval.export", str(cell.dir), "--store", store]
        processes.run(command, cell.dir / rundir.EXPORT_LOG, 1, threads)


def run_until_decided(
    study: Study, run: Callable[[Study], list[str]], undecided: Callable[[Study], bool]
) -> tuple[Study, list[str]]:
    """Run a study. With MORE=auto, add one seed to every arm and run again, until every arm is decided, only more items
    would decide it, or the largest number of seeds is reached.

    Args:
        study: the study with its first seeds.
        run: trains and evaluates the runs of a study, and returns a line for each run that failed.
        undecided: whether an arm of a study is undecided and more seeds may decide it.

    Returns:
        (the study with all its seeds, a line for each run that failed in the last call of `run`).
    """
    failures = run(study)
    while study.criteria.sequential and not failures and len(study.seeds) < study.criteria.seeds and undecided(study):
        seeds = len(study.seeds) + 1
        words = [word for word in study.words if not word.startswith("SEEDS=")]
        study = from_args([*words, f"SEEDS={seeds}"])
        print(
            f"\nundecided: seed {study.seeds[-1]} of every arm, {seeds} of at most {study.criteria.seeds}\n", flush=True
        )
        failures = run(study)
    return study, failures


def check_criteria(study: Study, output: int | None = None) -> None:
    """Check, before anything is trained, that a study that adds seeds (MORE=auto) decides by criteria that were named
    before its runs, since its verdicts would not count otherwise. Raises ConfigError where the study adds seeds, and
    its metric, margin or noise floor was chosen after its runs. `output`: a file descriptor to print to; None: standard
    output."""
    if study.criteria.sequential and any((cell.dir / rundir.RUN).exists() for cell in study.cells):
        if _exit_code("-m", "eval.report.undecided", "--criteria", *study.words, output=output) == Exit.INVALID:
            raise ConfigError("no seeds are added (MORE=auto); the reason stands above")


def is_undecided(study: Study, output: int | None = None) -> bool:
    """Whether an arm is undecided and more seeds may decide it. Prints the names of these arms, to the file descriptor
    `output` or standard output. Raises ConfigError where the runs cannot be compared."""
    code = _exit_code("-m", "eval.report.undecided", *study.words, output=output)
    if code not in (Exit.FINISHED, Exit.UNDECIDED):
        raise ConfigError("whether the arms are decided cannot be said; the reason stands above")
    return code == Exit.UNDECIDED


def main(words: list[str]) -> int:
    """Train and evaluate the runs that are not finished, then write the report.

    With FORMAT=json only the report's answer is printed to standard output, and the report's exit code is returned
    unless a run failed. `words`: the NAME=VALUE words of the command line. Returns the exit code, an `Exit`.
    """
    if words in (["-h"], ["--help"]):
        print(f"{__doc__}\nNAME=VALUE words: see `make help`.")
        return Exit.FINISHED
    if not answers.asks_for_json(words):
        return run_and_report(words)
    standard_output = sys.stdout
    with redirect_stdout(sys.stderr):
        return run_and_report(words, standard_output)


def run_and_report(words: list[str], json_to: TextIO | None = None) -> int:
    """Train and evaluate the runs that are not finished, write the report, and print errors. `words`: the NAME=VALUE
    words of the command line; `json_to`: the stream to which errors are written as JSON; None where FORMAT=json is not
    asked for. The report prints its own answer. Returns the exit code, an `Exit`."""
    as_json = json_to is not None

    def refused(reason: str, code: Exit) -> Exit:
        answers.print_error(reason, as_json, json_to)
        return code

    began = time.monotonic()
    try:
        _, words = answers.extract_format(words)
        study = from_args(change_to_checkout(words))
        print(f"{study.title}\n  question  {study.question}\n  expected  {study.expect}\n", flush=True)
        check_criteria(study, STDERR if as_json else None)
        study, failures = run_until_decided(study, run, lambda study: is_undecided(study, STDERR if as_json else None))
        for failure in failures:
            print(f"failed: {safe_files.printable(failure)}", file=sys.stderr)
        reported = _exit_code("-m", "eval.report", *study.words, *(["FORMAT=json"] if as_json else []))
    except ConfigError as error:
        return refused(str(error), Exit.INVALID)
    except OSError as error:
        if not (reason := safe_files.storage_error(error)):
            raise
        return refused(reason, Exit.FAILED)
    except (Interrupted, KeyboardInterrupt):
        print("\ninterrupted; the same command continues", file=sys.stderr)
        return Exit.INTERRUPTED
    seconds = int(time.monotonic() - began)
    # of an answer in JSON, INVALID may be the verdict of a report that is written
    written = as_json or reported in (Exit.FINISHED, Exit.REFUSED)
    print(f"\n{seconds // 60} min {seconds % 60} s.{'' if written else ' There is no report'}")
    if as_json and not failures:
        return reported
    return Exit.FAILED if failures or reported else Exit.FINISHED


if __name__ == "__main__":
    restart_in_utf8_mode("launch.local", sys.argv[1:])
    sys.exit(main(sys.argv[1:]))
