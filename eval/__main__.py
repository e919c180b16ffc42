"""python -m eval RUN_DIR ...: evaluates runs; writes samples.jsonl.gz, then eval.json, into each run directory.

Weights saved during training (layout.eval_at) are evaluated too, also while the run is still training; their scores are
in eval-step_N.json. Every run is evaluated on the tasks made from held-out text (eval/tasks/probes.py), and with
--tasks also on tasks of lm-eval, with data on this machine (eval/tasks/mirror.py). Without a run directory, the command
says whether the tasks of --tasks could be run; without --data as well, whether lm-eval has such tasks.

Exit codes: 0; 1 when a run could not be evaluated, or not on all tasks; 2 when the command is not valid, or a directory
is not that of a run that can be evaluated. A run that fails is named; all other runs are evaluated.
"""

import argparse
import sys
from pathlib import Path

from ablations import rundir, safe_files
from eval import location
from eval.tasks import choice, mirror
from eval.tasks.choice import TaskRequest
from eval.weights import weights_to_evaluate

ABOUT = """Evaluate finished runs, and the weights that a run has saved so far. Weights that have a result of the
requested tasks are not evaluated again."""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m eval", description=ABOUT)
    add = parser.add_argument
    add("runs", nargs="*", type=Path, metavar="RUN_DIR", help="directory of a run")
    add("--tasks", default="", metavar="NAMES", help="suite, multilingual, or any of lm-eval's, with commas between")
    add("--data", type=Path, metavar="FOLDER", help="where their data is (make eval-data)")
    add("--shots", type=int, metavar="N", help="examples in each prompt (default: as each task's definition says)")
    add("--store", type=Path, metavar="FOLDER", help="where the runs' prepared data is (default: data in their OUT)")
    add("--precision", choices=("fp32", "bf16"), help="default: bf16 on a GPU, fp32 elsewhere")
    add("--processes", type=int, default=0, help="default: one for each GPU, or one")
    add("--rank", type=int, default=0, help=argparse.SUPPRESS)
    add("--weights", default="", help=argparse.SUPPRESS)  # of a rank: those of `Weights.name`
    args = parser.parse_args(argv)
    tasks = [name.strip() for name in args.tasks.split(",") if name.strip()]
    if not args.runs and not tasks:
        parser.error("give the directory of a run, or --tasks")
    if args.processes < 0 or not 0 <= args.rank <= max(0, args.processes - 1):
        parser.error(f"--processes {args.processes}: a number of processes, or 0 for one on each GPU")
    if args.shots is not None and args.shots < 0:
        parser.error(f"--shots {args.shots}: a number of examples, 0 or more")
    try:
        if args.runs and tasks and not args.data:
            raise ValueError("--tasks needs --data, the folder that `make eval-data` has filled")
        if not args.runs and not (args.data and (args.data / mirror.MANIFEST).exists()):
            check_task_names(tasks)  # a name that lm-eval does not know is told before data that is not here
        requested = TaskRequest(tasks, mirror.Mirror(args.data), args.shots) if tasks and args.data else None
        if requested and not args.runs:
            print(f"{choice.check_tasks(requested)} tasks can be run")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    code = 0
    for directory in args.runs:
        try:
            check_run(directory)
        except (ValueError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            code = 2
            continue
        try:
            evaluate_run(directory, requested, args)
        except (ValueError, OSError) as error:
            # FileNotFoundError too: training may go back to an earlier step and remove what it had kept
            name = "" if str(directory) in str(error) else f"{directory}: "
            advice = safe_files.storage_error_message(error) if isinstance(error, OSError) else ""
            print(f"error: {name}{advice or error}", file=sys.stderr)
            code = code or 1
    return code


def check_task_names(tasks: list[str]) -> None:
    """Check that lm-eval has the named tasks and that they can be run here. The data of the tasks is not needed. A name
    may be that of a task or of a group, or a pattern such as mmlu_*. Names in eval/tasks/tasks.yaml are checked without
    lm-eval, which takes seconds to import. Raises ValueError where lm-eval does not know a name, or its tasks cannot be
    run here."""
    if unlisted := [name for name in mirror.names(tasks) if name not in mirror.names_in_groups()]:
        from eval.tasks.definitions import definitions

        definitions(unlisted)


def check_run(directory: Path) -> None:
    """Check that a directory is a run directory with weights that can be evaluated. Raises ValueError where it is no
    run directory, is damaged, or has no such weights yet."""
    location.read_run_json(directory)
    if weights_to_evaluate(directory):
        return
    lacking = rundir.DONE if not (directory / rundir.DONE).exists() else rundir.WEIGHTS
    raise ValueError(
        f"{directory} has no {lacking}: only a finished run can be evaluated, or one that has kept weights on the way "
        "(layout.eval_at)"
    )


def evaluate_run(directory: Path, requested: TaskRequest | None, args: argparse.Namespace) -> None:
    """Evaluate all saved weights of a run that have no up-to-date result, and print the scores of each set of weights.
    `requested`: tasks of lm-eval to run besides those made from held-out text; `args`: the parsed command line. Raises
    ValueError where a task failed; the results of all other tasks are written."""
    from eval import results
    from eval.evaluation import evaluate_weights

    run = location.read_run_json(directory)
    failed: dict[str, str] = {}
    for weights in weights_to_evaluate(directory):
        if args.weights not in ("", weights.name):
            continue
        if args.rank:
            evaluate_weights(directory, weights, requested, args.store, args.precision, args.processes, args.rank)
            continue
        result = results.current_result(directory, run, weights, requested, args.precision)
        if result is None:
            extended = requested and results.add_earlier_tasks(directory, weights, requested)
            result = evaluate_weights(directory, weights, extended, args.store, args.precision, args.processes)
        position = f" at {weights.tokens:,} tokens" if weights.tokens else ""
        print(safe_files.printable(f"{run['cell']}{position}: {results.summary_line(result)}"), flush=True)
        failed |= result.get("lm_eval_tasks", {}).get("failed", {})
    if failed:
        raise ValueError("these tasks failed:\n  " + "\n  ".join(f"{name}: {why}" for name, why in failed.items()))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("\ninterrupted; the same command continues", file=sys.stderr)
        sys.exit(rundir.Exit.INTERRUPTED)
