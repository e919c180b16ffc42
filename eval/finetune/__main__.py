"""python -m eval.finetune RUN_DIR --data FOLDER: fine-tunes a run on GLUE; or with --external FOLDER --to FOLDER a
checkpoint of Hugging Face's, for comparison. Without a run and a checkpoint the command says on which tasks of --data a
run could be fine-tuned; with --tasks alone, whether there are such tasks.

Each task and seed gives a file glue/TASK-SEED.json with the outcome of every item; glue/glue.json is the table of all
results, also of tasks that an earlier command fine-tuned on. After a kill the same command continues with the missing
tasks and seeds. All tasks are trained with the same settings.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablations import answers, rundir, safe_files

if TYPE_CHECKING:
    from eval.finetune.work import FineTuning

FOLDER = rundir.GLUE  # of results, in a run directory


def main(argv: list[str] | None = None) -> int:
    parser = answers.Parser(prog="python -m eval.finetune", description="Fine-tune a model on GLUE.")
    add = parser.add_argument
    add("run", nargs="?", type=Path, metavar="RUN_DIR", help="of a finished run")
    add("--external", type=Path, metavar="FOLDER", help="a checkpoint of Hugging Face's, in place of a run")
    add(
        "--to",
        type=Path,
        metavar="FOLDER",
        help="where the results of --external go; make report EXTERNAL=FOLDER shows them",
    )
    add("--data", type=Path, metavar="FOLDER", action="append", default=[], help="of GLUE; may be repeated")
    add("--store", type=Path, metavar="FOLDER", help="the run's prepared data (default: data in its OUT)")
    add("--tasks", default="", metavar="NAMES", help="with commas or blanks between (default: all whose data is there)")
    add("--seeds", type=int, default=rundir.GLUE_SEEDS, metavar="N", help="%(default)s")
    add("--jobs", type=int, default=1, metavar="N", help="tasks and seeds at a time (%(default)s)")
    add("--pooling", choices=("first", "mean", "last"), help="default: last for decoders, first for encoders")
    add("--epochs", type=int, metavar="N", help="5 at most (default)")
    answers.add_format_option(parser)
    args = parser.parse_args(argv)
    try:
        return run_command(args)
    except (ValueError, OSError) as error:
        answers.print_error(str(error), args.format == "json")
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted; the same command continues", file=sys.stderr)
        return rundir.Exit.INTERRUPTED


def run_command(args: argparse.Namespace) -> int:
    """Run the fine-tuning that the parsed command line asks for. Returns the exit code: 0, or 1 where a fine-tuning
    failed. Raises ValueError where the command is not valid, or no task could be fine-tuned."""
    if args.run is None and args.external is None and (args.data or args.tasks):
        from eval.finetune.tasks import parse_task_names

        if args.format == "json":
            raise ValueError("FORMAT=json is of results: give the directory of a run")
        names = parse_task_names(args.tasks)
        return print_available_tasks(args.data, names, all_needed=bool(args.tasks)) if args.data else 0
    check_arguments(args)

    from eval.finetune.results import summarise_over_seeds
    from eval.finetune.source import PretrainedModel
    from eval.finetune.train import Setting, model_conditions
    from eval.finetune.work import SharedInputs, run_fine_tunings

    source = PretrainedModel(args.run, args.external, args.store)
    setting = Setting(pooling=args.pooling or source.pooling())
    if args.epochs is not None:
        setting = replace(setting, epochs=args.epochs)
    setting = replace(setting, longest=min(setting.longest, source.longest() or setting.longest))
    sha256 = source.sha256()
    task_conditions = conditions_by_task(args, setting, sha256)
    if args.run:
        safe_files.path_inside(args.run, FOLDER)
    folder = args.to if args.external else args.run / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    results, todo = stored_results_and_pending(args, setting, task_conditions, folder)
    failed = run_fine_tunings(SharedInputs(folder, source, args.data, setting), todo, args.jobs, results)
    for why in failed:
        print(f"error: {why}", file=sys.stderr)
    if not results:
        raise ValueError("no task could be fine-tuned; the reasons stand above")
    by_task = all_stored_results(args, setting, sha256, folder, task_conditions)
    table = summarise_over_seeds(by_task)
    conditions = {
        **model_conditions(setting, sha256),
        "data_sha256": {name: of_seeds[0]["data_sha256"] for name, of_seeds in by_task.items()},
    }
    safe_files.write_json(folder / rundir.GLUE_TABLE, conditions | table, indent=1)
    if args.format == "json":
        print(answers.json_answer("glue", {"written": str(folder), "failed": failed, **conditions, **table}))
    else:
        print(table_text(table))
    return 1 if failed else 0


def check_arguments(args: argparse.Namespace) -> None:
    """Check the parsed command line. Raises ValueError where options contradict each other, such as both a run and a
    checkpoint, or a number is out of range."""
    if (args.run is None) == (args.external is None):
        raise ValueError("give the directory of a run, or --external and --to")
    if args.external and not args.to:
        raise ValueError("--external needs --to, a folder for its results")
    if args.external and args.to.resolve() == args.external.resolve():
        raise ValueError("--to is the folder of the checkpoint: its results need a folder of their own")
    if args.seeds < 1 or args.jobs < 1:
        raise ValueError("--seeds and --jobs are numbers from 1 on")


def conditions_by_task(args: argparse.Namespace, setting: Any, sha256: str) -> dict[str, dict[str, Any]]:
    """The conditions under which a result on each task of GLUE stays valid: {task: `train.result_conditions` of the
    task}. Tasks whose data is missing are left out and named on the terminal.

    Args:
        args: the parsed command line.
        setting: the hyperparameters, an eval.finetune.train.Setting.
        sha256: the hash of the pretrained model.

    Raises:
        ValueError: data is missing for a task that the user named, or for all tasks.
    """
    from eval.finetune.tasks import parse_task_names
    from eval.finetune.train import result_conditions

    task_conditions = {}
    for name in parse_task_names(args.tasks):
        try:
            task_conditions[name] = result_conditions(name, args.data, setting, sha256)
        except ValueError as error:
            if args.tasks:
                raise
            print(f"missing: {error}", file=sys.stderr)
    if not task_conditions:
        raise ValueError("there is data of no task: GLUE_DATA=folder of make glue (--data here) names GLUE's files")
    return task_conditions


def stored_results_and_pending(
    args: argparse.Namespace, setting: Any, task_conditions: dict[str, dict[str, Any]], folder: Path
) -> tuple[dict[tuple[str, int], dict[str, Any]], list["FineTuning"]]:
    """Find which fine-tunings are done. Returns ({(task, seed): stored result}, the fine-tunings that are still to
    run). A stored result counts only if it was made under the same conditions.

    Args:
        args: the parsed command line.
        setting: the hyperparameters, an eval.finetune.train.Setting.
        task_conditions: {task: `train.result_conditions` of the task}.
        folder: the folder of the results.
    """
    from eval.finetune.tasks import load_split
    from eval.finetune.work import FineTuning, stored_result

    results, missing = {}, []
    for name, conditions in task_conditions.items():
        steps = setting.steps(len(load_split(name, "train", args.data)))
        for seed in range(1, args.seeds + 1):
            item = FineTuning(name, seed, conditions, steps)
            if (result := stored_result(item.file(folder), conditions | {"seed": seed})) is None:
                missing.append(item)
            else:
                results[name, seed] = result
    return results, missing


def all_stored_results(
    args: argparse.Namespace, setting: Any, sha256: str, folder: Path, task_conditions: dict[str, dict[str, Any]]
) -> dict[str, list[dict[str, Any]]]:
    """All valid results in a folder, those of earlier commands too: {task: results, by rising seed}.

    A result is left out if it was made with other weights, settings or data. If that removes all results of a task that
    is in the table glue.json, the task is named on the terminal. Where this command has no data of a task, the data is
    taken to be unchanged.

    Args:
        args: the parsed command line.
        setting: the hyperparameters, an eval.finetune.train.Setting.
        sha256: the hash of the pretrained model.
        folder: the folder of the results.
        task_conditions: {task of this command: `train.result_conditions` of the task}.
    """
    from eval.finetune.tasks import TASKS, find_split
    from eval.finetune.train import model_conditions, result_conditions
    from eval.finetune.work import stored_result

    try:
        listed = (safe_files.read_json(folder / rundir.GLUE_TABLE, ["scores"], {"scores": dict}) or {"scores": {}})[
            "scores"
        ]
    except safe_files.Damaged:
        listed = {}
    earlier: dict[str, list[dict[str, Any]]] = {}
    for name in TASKS:
        conditions = {"task": name, **model_conditions(setting, sha256)}
        if all(find_split(name, split, args.data) for split in ("train", *TASKS[name].splits)):
            conditions = task_conditions.get(name) or result_conditions(name, args.data, setting, sha256)
        for path in sorted(folder.glob(f"{name}-*.json"), key=lambda path: (len(path.name), path.name)):
            seed = path.stem.removeprefix(f"{name}-")
            if not seed.isdecimal():
                continue
            result = stored_result(path, conditions | {"seed": int(seed)})
            if result and isinstance(result.get("data_sha256"), dict):
                conditions["data_sha256"] = result["data_sha256"]
                earlier.setdefault(name, []).append(result)
        if name in listed and name not in earlier:
            print(f"{name} was in {rundir.GLUE_TABLE}, with other weights, settings or data: left out", file=sys.stderr)
    return earlier


def print_available_tasks(folders: list[Path], names: list[str], all_needed: bool = False) -> int:
    """Print the tasks of GLUE on which a run can be fine-tuned, with the data in some folders. Returns the exit code 0.

    Args:
        folders: folders with data of GLUE.
        names: the tasks to look for.
        all_needed: whether it is an error if any of these tasks lacks data; otherwise one with data is enough.

    Raises:
        ValueError: a folder does not exist, a file is damaged, no task has its data, or a needed task lacks data.
    """
    from eval.finetune.tasks import TASKS, find_split, load_split

    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"{folder}: no such folder; one with GLUE's files is needed, such as CoLA/train.tsv")
    lacking = {name: [s for s in ("train", *TASKS[name].splits) if not find_split(name, s, folders)] for name in names}
    available = [name for name in names if not lacking[name]]
    if not available:
        raise ValueError(
            f"{', '.join(map(str, folders))}: no data of any of {', '.join(names)}, such as CoLA/train.tsv "
            "and CoLA/dev.tsv"
        )
    if all_needed and (missing := [f"{name} ({', '.join(lacking[name])})" for name in names if lacking[name]]):
        raise ValueError(f"{', '.join(map(str, folders))}: no data of {'; '.join(missing)}")
    for name in available:  # what is damaged is said before anything is trained
        for split in ("train", *TASKS[name].splits):
            load_split(name, split, folders)
    print(f"fine-tuning: {', '.join(available)}")
    return 0


def table_text(table: dict[str, Any]) -> str:
    """The table of fine-tuning results as text for a terminal. Each task has a line with the median and the range over
    seeds. At the end stand the means over GLUE. `table`: from `eval.finetune.results.summarise_over_seeds`."""
    lines = []
    for name, entry in table["scores"].items():
        study = entry["study"]
        line = (
            f"{name:8} {study['metric']:9} {study['median']:6.1f}  ({study['lowest']:.1f} to {study['highest']:.1f}, "
        )
        constant = f", one answer to all {study['constant']:.1f}" if "constant" in study else ""
        line += f"{study['seeds']} seeds; {study['items']} items; chance {study['chance']:.1f}{constant})"
        if entry["collapsed"]:
            line += f"  {entry['collapsed']} COLLAPSED: the same answer to every item"
        lines.append(line)
    for kind in ("study", "leaderboard"):
        means = table[kind]
        only = "" if means["numbers"] == 9 else f" ONLY {means['numbers']} OF"
        lines.append(
            f"{kind} metrics: mean of{only} nine numbers {means['nine_numbers']:.1f}, of the eight tasks "
            f"{means['eight_tasks']:.1f}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
