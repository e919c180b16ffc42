"""Runs a study on this machine, one or more of its runs at a time: `python -m launch.local POS=alibi`.

Each run is trained and evaluated by processes that this module starts. They share nothing but the run directory. After
an interruption the same command continues: finished runs are kept, and unfinished ones continue from their last
checkpoint.
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
from ablations.noise_floor import check_same_baseline
from ablations.plan.epochs import describe_epochs
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
from launch.repair import is_evaluated, is_fine_tuned, repair_run_directory

STDERR = 2  # file descriptor of standard error


def run_study(study: Study) -> list[str]:
    """Prepare data, then train and evaluate every run of the study that is not finished.

    Returns:
        A line for each run that failed, with the reason; empty when none did.

    Raises:
        ConfigError: before any training, for a fault that concerns all runs, such as a corpus that cannot be prepared.
        Interrupted: Ctrl-C, SIGTERM or SIGHUP ended the command; every run in training has saved a checkpoint.
    """
    glue_tasks = check_evaluation(study)
    concurrency = runs_at_a_time(study)
    cells, trained, failures = repair_cells(study)
    todo = unfinished_cells(study, cells, glue_tasks)
    for cell in todo:
        if cell.dir not in trained:
            check_compiler(cell.run)
    if todo:
        prepare_missing_data(study, todo)
    register_finished(study, trained)
    if not todo:
        return failures
    about_text = [line for line in describe_epochs(study) if not line.startswith("note: ")]  # said by the preparation
    print(*about_text, *filter(None, [study.compiled_why]), "", sep="\n", flush=True)
    return failures + finish_runs(study, todo, concurrency)


def repair_cells(study: Study) -> tuple[list[Cell], dict[Path, int], list[str]]:
    """Repair the damaged run directories of a study.

    Returns:
        (the runs whose directories are undamaged or repaired, {run directory: steps trained} for the runs that are
        trained, a line for each run whose directory cannot be repaired).
    """
    cells, trained, failures = [], {}, []
    for cell in study.cells:
        try:
            if repaired := repair_run_directory(cell):
                print(repaired, flush=True)
            if done := rundir.read_done(cell.dir):
                trained[cell.dir] = int(done.get("steps", 1))
            cells.append(cell)
        except Damaged as error:  # the other runs go on
            failures.append(f"{cell.name}: {error}")
    return cells, trained, failures


def unfinished_cells(study: Study, cells: list[Cell], glue_tasks: list[str]) -> list[Cell]:
    """The runs among `cells` that remain to be trained, evaluated, fine-tuned or exported.

    This function first evaluates trained runs on tasks that were added or changed since their evaluation. If that fails
    for a run, it returns all of `cells`. `glue_tasks`: the GLUE tasks that the study asks for.
    """
    todo = [cell for cell in cells if not is_evaluated(cell)]
    seeds = int(study.word_value("GLUE_SEEDS") or rundir.GLUE_SEEDS)
    without_glue = [cell for cell in cells if glue_tasks and not is_fine_tuned(cell, glue_tasks, seeds)]
    if evaluated := [str(cell.dir) for cell in cells if cell not in todo]:
        options = [*study.eval_options, "--store", str(study.out / rundir.DATA)]
        if not _python_succeeds("-m", "eval", *options, *evaluated):
            todo = cells  # one process for each run then names the run that fails, and the others go on
    unexported = [cell for cell in cells if study.exports and not rundir.is_exported(cell.dir)]
    return [cell for cell in cells if cell in todo or cell in without_glue or cell in unexported]


def finish_runs(study: Study, todo: list[Cell], concurrency: int) -> list[str]:
    """Train and evaluate the runs `todo`, up to `concurrency` at a time, and show their progress. Returns a line for
    each run that failed, with the reason. Raises Interrupted where a signal ended the command."""
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
            reason = safe_files.storage_error_message(error) if isinstance(error, OSError) else str(error)
            if not reason:
                raise
            phases[cell.dir] = "failed"
            failures.append(f"{cell.name}: {reason}")

    done = threading.Event()
    display = threading.Thread(target=progress.show_progress, args=(progress.Progress(todo, phases, concurrency), done))
    display.start()
    try:
        with processes.stop_on_signals(), ThreadPoolExecutor(concurrency) as pool:
            for future in [pool.submit(work, cell) for cell in todo]:
                future.result()
    finally:
        done.set()
        display.join()
        print(flush=True)
    if processes.stopping:
        raise Interrupted
    return failures


def register_finished(study: Study, trained: dict[Path, int]) -> None:
    """Register the study (its question and criteria) in the directories of runs that are trained already, as by another
    study. Call this after all checks, so that a refused command registers nothing. `trained`: {run directory: steps
    trained}."""
    for folder, steps in trained.items():
        with suppress(OSError):  # a folder that can only be read: the report then says that the registration is missing
            rundir.append_registration(folder, study.registration, steps)


def _python_succeeds(*words: str) -> bool:
    """Run `python words` as a child process without standard output. Returns whether its exit code is 0."""
    return _python_exit_code(*words, output=subprocess.DEVNULL) == 0


def _python_exit_code(*words: str, output: int | None = None) -> int:
    """Run `python words` as a child process (see `_run_python`), and return its exit code."""
    return _run_python(*words, output=output).returncode


def _run_python(*words: str, output: int | None = None) -> subprocess.CompletedProcess[str]:
    """Run `python words` as a child process, and wait for it. The child ignores Ctrl-C: this process ends it and raises
    KeyboardInterrupt. `output`: a file descriptor for the child's standard output; None: that of this process."""
    return subprocess.run(
        [sys.executable, *words],
        cwd=ROOT,
        env=child_environment(),
        stdout=output,
        text=True,
        preexec_fn=ignore_ctrl_c_and_die_with_parent,
    )


def check_evaluation(study: Study) -> list[str]:
    """Check, before any training, that the runs can be evaluated, fine-tuned and exported as the study asks, and that
    its NOISE_FLOOR is of its baseline. Returns the GLUE tasks on which each run is to be fine-tuned; [] where the study
    has no word GLUE=.

    Raises:
        ConfigError: the noise floor is of another baseline; tasks.yaml and the code define different tasks; or the runs
            cannot be evaluated on TASKS, fine-tuned on GLUE, or exported (EXPORT=1).
    """
    check_same_baseline(study.criteria.noise_floor, study.base)
    if not _python_succeeds("-m", "eval.tasks.probes"):
        raise ConfigError("the runs cannot be judged; the reason stands above")
    if study.exports and not _python_succeeds("-m", "eval.exportable", *study.words):
        raise ConfigError("not every run can be exported (EXPORT=1); the reasons stand above")
    glue_tasks = []
    if study.glue_options:
        checked = _run_python("-m", "eval.finetune", *study.glue_options, output=subprocess.PIPE)
        if checked.returncode:
            raise ConfigError("the runs cannot be fine-tuned on GLUE; the reason stands above")
        glue_tasks = checked.stdout.partition(":")[2].replace(",", " ").split()  # fine-tuning: cola, rte
    if study.eval_options and not _python_succeeds("-m", "eval", *study.eval_options):
        raise ConfigError("the runs cannot be judged by TASKS; the reason stands above")
    return glue_tasks


def prepare_missing_data(study: Study, cells: list[Cell]) -> None:
    """Prepare the corpora, tokenizers and token files that the runs `cells` need and that are missing. Raises
    ConfigError where a corpus cannot be prepared, or differs from the one on which earlier runs of the study were
    trained."""
    from data.corpus import missing_files
    from launch.data_identity import check_prepared_data, check_source_files

    check_source_files(study)
    store = study.out / rundir.DATA
    requests = []  # the arguments of `python -m data.prepare`, one list for each call
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
        if not _python_succeeds("-m", "data.prepare", corpus, *options, "--told", "--store", str(store)):
            raise ConfigError(f"the corpus {corpus} cannot be prepared; the reason stands above")
    check_prepared_data(study)


def runs_at_a_time(study: Study) -> int:
    """The number of runs to train at a time: JOBS where the user gives it; else one on a machine with a GPU, and as
    many as the cores allow on a machine without.

    Raises ConfigError where a wall clock ends the runs, and JOBS is more than the processors allow: each run would then
    make fewer steps.
    """
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
    """Train a run unless it is trained, then evaluate it. Also fine-tune it on GLUE and export it where the study asks
    for that.

    Args:
        study: the study that the run belongs to.
        cell: the run.
        phases: {run directory: the run's phase in words, such as "training"}; updated for the progress display.
        processes: starts the commands as child processes.

    Raises:
        CommandFailed: a command exited with an error; the message is the last error in its log.
        Interrupted: Ctrl-C, SIGTERM or SIGHUP ended the commands.
    """
    cell.dir.mkdir(parents=True, exist_ok=True)

    def execute(phase: str, words: list[str], log: str, ranks: int = 1) -> None:
        phases[cell.dir] = phase
        processes.run([sys.executable, *words], cell.dir / log, ranks, cell.run.layout.threads)

    trained = False
    while not trained:
        while rundir.is_locked(cell.dir):
            if processes.stopping:
                raise Interrupted
            phases[cell.dir] = "trained by another process"
            time.sleep(0.5)
        try:
            if rundir.read_done(cell.dir) is None:
                words = ["-m", "launch.train", "--cell", str(study.cells.index(cell)), *study.words]
                execute("training", words, rundir.TRAIN_LOG, cell.run.layout.processes or gpu_count())
            trained = True
        except CommandFailed:
            if not rundir.is_locked(cell.dir):  # else another process has just begun to train the run
                raise
    folder, store = str(cell.dir), ["--store", str(study.out / rundir.DATA)]
    execute("evaluating", ["-m", "eval", *study.eval_options, *store, folder], rundir.EVAL_LOG)
    if study.glue_options:
        execute("fine-tuning", ["-m", "eval.finetune", folder, *study.glue_options, *store], rundir.GLUE_LOG)
    if study.exports:
        execute("exporting", ["-m", "eval.export", folder, *store], rundir.EXPORT_LOG)


def run_until_decided(
    study: Study, run: Callable[[Study], list[str]], undecided: Callable[[Study], bool]
) -> tuple[Study, list[str]]:
    """Run a study; with MORE=auto, then add seeds, one at a time for all arms. This ends when no arm is undecided that
    more seeds may decide, or the study has as many seeds as it may have.

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
    """Check, before any training, that a study with MORE=auto chose its metric, margin and noise floor before its first
    run. Raises ConfigError where it did not: its verdicts would be exploratory, and more seeds would not help.
    `output`: a file descriptor to print to; None: standard output."""
    if study.criteria.sequential and any((cell.dir / rundir.RUN).exists() for cell in study.cells):
        if _python_exit_code("-m", "eval.report.undecided", "--criteria", *study.words, output=output) == Exit.INVALID:
            raise ConfigError("no seeds are added (MORE=auto); the reason stands above")


def has_undecided_arms(study: Study, output: int | None = None) -> bool:
    """Whether the study has arms that are undecided and that more seeds may decide. Prints their names. `output`: a
    file descriptor to print to; None: standard output. Raises ConfigError where the runs cannot be compared."""
    code = _python_exit_code("-m", "eval.report.undecided", *study.words, output=output)
    if code not in (Exit.FINISHED, Exit.UNDECIDED):
        raise ConfigError("whether the arms are decided cannot be said; the reason stands above")
    return code == Exit.UNDECIDED


def main(words: list[str]) -> int:
    """Train and evaluate the runs that are not finished, then write the report.

    With FORMAT=json, standard output has the report's answer alone; the exit code is the report's unless a run failed.
    `words`: the NAME=VALUE words of the command line. Returns the exit code, an `Exit`.
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
    """Train and evaluate the runs that are not finished, and have `python -m eval.report` write the report. Prints
    errors. `words`: the NAME=VALUE words of the command line; `json_to`: the stream for errors as JSON; None where
    FORMAT=json is not asked for. Returns the exit code, an `Exit`."""
    as_json = json_to is not None

    def error_exit(reason: str, code: Exit) -> Exit:
        answers.print_error(reason, as_json, json_to)
        return code

    began = time.monotonic()
    try:
        _, words = answers.extract_format(words)
        study = from_args(change_to_checkout(words))
        print(f"{study.title}\n  question  {study.question}\n  expected  {study.expect}", flush=True)
        print(*([f"  {study.trial_note}"] if study.trial_note else []), "", sep="\n", flush=True)
        check_criteria(study, STDERR if as_json else None)
        study, failures = run_until_decided(
            study, run_study, lambda study: has_undecided_arms(study, STDERR if as_json else None)
        )
        for failure in failures:
            print(f"failed: {safe_files.printable(failure)}", file=sys.stderr)
        reported = _python_exit_code("-m", "eval.report", *study.words, *(["FORMAT=json"] if as_json else []))
        for cell in study.cells if study.glue_options else []:
            print(f"{cell.name}: GLUE  {progress.glue_text(cell) or 'no scores'}", flush=True)
    except ConfigError as error:
        return error_exit(str(error), Exit.INVALID)
    except OSError as error:
        if not (reason := safe_files.storage_error_message(error)):
            raise
        return error_exit(reason, Exit.FAILED)
    except (Interrupted, KeyboardInterrupt):
        print("\ninterrupted; the same command continues", file=sys.stderr)
        return Exit.INTERRUPTED
    seconds = int(time.monotonic() - began)
    # with JSON, INVALID may be the exit code of a report that was written
    written = as_json or reported in (Exit.FINISHED, Exit.REFUSED)
    print(f"\n{seconds // 60} min {seconds % 60} s.{'' if written else ' There is no report'}")
    if as_json and not failures:
        return reported
    return Exit.FAILED if failures or reported else Exit.FINISHED


if __name__ == "__main__":
    restart_in_utf8_mode("launch.local", sys.argv[1:])
    sys.exit(main(sys.argv[1:]))
