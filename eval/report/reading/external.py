"""GLUE results of external checkpoints, as `python -m eval.finetune --external CHECKPOINT --to FOLDER` wrote them."""

from pathlib import Path
from typing import Any, NamedTuple

from ablations import rundir
from ablations.safe_files import Damaged, printable
from eval.report.reading.runs import in_one_line, read_glue_table

# What of a setting follows from the model: which token has seen all of a text, and how many tokens it can read.
MODEL_SETTINGS = ("pooling", "longest")
REASONS_SHOWN = 3  # that are written out


class External(NamedTuple):
    """The GLUE results of a checkpoint that is not a run."""

    name: str  # of the folder with the results
    table: dict[str, Any]  # the content of glue.json; empty where it is damaged
    damage: str = ""  # what is wrong with glue.json


def read_external(folder: Path) -> External:
    """The GLUE results in a folder that eval.finetune has written. Raises ValueError where the folder has no glue.json.
    Where that file is damaged, the result says so."""
    name, damage = printable(folder.absolute().name), ""
    try:
        table = read_glue_table(folder / rundir.GLUE_TABLE)
    except Damaged as error:
        table, damage = {}, printable(str(error).replace(f"{folder}/", "")).rstrip(".")
    if table is None:
        raise ValueError(
            f"EXTERNAL: {folder} has no {rundir.GLUE_TABLE}; python -m eval.finetune --external CHECKPOINT --to FOLDER "
            "writes one"
        )
    return External(name, table, damage)


def read_all_external(folders: list[str]) -> list[External]:
    """The GLUE results of several checkpoints, in the order of the folders. Raises ValueError where a folder has no
    glue.json, or two folders have the same name."""
    rows = [read_external(Path(folder)) for folder in folders]
    names = [row.name for row in rows]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"EXTERNAL: two folders are called {twice[0]}; rows of a report need different names")
    return rows


def conditions_to_compare(table: dict[str, Any], task: str) -> dict[str, Any]:
    """The conditions of fine-tuning on a task of GLUE: {name: value}. Two models can be shown in one table only if
    these are equal. `table`: the content of a glue.json."""
    entry, setting = table["scores"][task], table.get("setting") or {}
    return {
        "metric": entry["study"]["metric"],
        "leaderboard metric": entry["leaderboard"]["metric"],
        "version of the inputs": table.get("inputs_version"),
        "sha256 of the data": (table.get("data_sha256") or {}).get(task.removesuffix("-mm")),
        **{name: value for name, value in setting.items() if name not in MODEL_SETTINGS},
    }


def reason_not_comparable(table: dict[str, Any], runs: list[dict[str, Any]], task: str) -> str:
    """Why a checkpoint cannot be shown beside the runs on a task of GLUE, as text; "" where it can. Either no run was
    fine-tuned on the task, or one was under other conditions. `table`: the content of the checkpoint's glue.json;
    `runs`: the contents of the runs' glue.json."""
    having = [run for run in runs if task in run["scores"]]
    if not having:
        return "no run was asked it"
    checkpoint = conditions_to_compare(table, task)
    for run in having:
        other = conditions_to_compare(run, task)
        names = [name for name in {**checkpoint, **other} if checkpoint.get(name) != other.get(name)]
        if names:
            more = "; ..." if len(names) > REASONS_SHOWN else ""
            return (
                "; ".join(
                    value_beside_runs(name, checkpoint.get(name), [other.get(name)]) for name in names[:REASONS_SHOWN]
                )
                + more
            )
    return ""


def differing_conditions(table: dict[str, Any], runs: list[dict[str, Any]], tasks: list[str]) -> list[str]:
    """Sentences on harmless differences between the fine-tuning of a checkpoint and of the runs beside it: settings
    that follow from the model, and the number of seeds. `table`: the content of the checkpoint's glue.json; `runs`: the
    contents of the runs' glue.json; `tasks`: the tasks of GLUE on which both are shown."""
    lines = []
    for name in MODEL_SETTINGS:
        value, others = (table.get("setting") or {}).get(name), [(run.get("setting") or {}).get(name) for run in runs]
        if any(other != value for other in others):
            lines.append(value_beside_runs(name, value, others))
    for task in tasks:
        value = table["scores"][task]["study"]["seeds"]
        others = [run["scores"][task]["study"]["seeds"] for run in runs if task in run["scores"]]
        if any(other != value for other in others):
            lines.append(value_beside_runs("fine-tuning seeds", value, others))
    return list(dict.fromkeys(lines))


def value_beside_runs(name: str, value: Any, others: list[Any]) -> str:
    """Text on a value that differs between a checkpoint and the runs, such as "pooling mean, of the runs first".
    `name`: the name of the value; `value`: that of the checkpoint; `others`: those of the runs. None stands for a value
    that was not recorded."""
    words = dict.fromkeys("not recorded" if other is None else in_one_line(other)[:60] for other in others)
    return f"{name} {'not recorded' if value is None else in_one_line(value)[:60]}, of the runs {' and '.join(words)}"
