"""Which of the requested evaluation tasks can be run: lm-eval knows them, and their data is on disk and undamaged."""

import sys
from typing import TYPE_CHECKING

from eval.tasks import mirror

if TYPE_CHECKING:
    from eval.tasks.definitions import Definition


def available(
    tasks: list[str], data: mirror.Mirror, shots: int | None = None, tell: bool = True
) -> tuple[dict[str, "Definition"], list[str]]:
    """The tasks that can be run, because their data is in the folder and undamaged: {task: lm-eval's definition}; and
    the names of the requested tasks that cannot be run.

    Args:
        tasks: names of tasks, groups or tags, or patterns such as mmlu_*.
        data: the folder of task data.
        shots: the number of examples in each prompt; None: as each task's definition says.
        tell: whether to print which tasks of a group are left out, and why.

    Raises:
        ValueError: a task that was requested by its own name cannot be run, or no task of a group can.
    """
    from eval.tasks.definitions import definitions as defined

    requested = {name: defined(mirror.names([name]), shots) for name in tasks}
    definitions = {task: definition for members in requested.values() for task, definition in members.items()}
    lacking = {task: why for task, definition in definitions.items() if (why := data.lacks_any(definition.sources))}
    unable = [f"{name}: {lacking[name]}" for name in requested if name in lacking]
    unable += [
        f"{name}: {data.folder} has the data of none of its {len(members)} tasks"
        for name, members in requested.items()
        if name not in members and members.keys() <= lacking.keys()
    ]
    if unable:
        raise ValueError("these tasks cannot be run:\n  " + "\n  ".join(unable))
    for task, why in lacking.items() if tell else ():
        print(f"missing: {task}: {why}", file=sys.stderr)
    return {task: definition for task, definition in definitions.items() if task not in lacking}, list(lacking)


def check(tasks: list[str], data: mirror.Mirror, shots: int | None = None) -> int:
    """Check that tasks can be run, by making the first requests of each as in the evaluation of a trained run. Returns
    the number of tasks that can be run.

    Args:
        tasks: names of tasks, groups or tags, or patterns such as mmlu_*.
        data: the folder of task data.
        shots: the number of examples in each prompt; None: as each task's definition says.

    Raises:
        ValueError: a task that was requested by its own name cannot be run, no task of a group can, or a task's own
            code fails on the data.
    """
    from eval.tasks import harness

    definitions, _ = available(tasks, data, shots)
    unable = [f"{name}: {why}" for name in definitions if (why := harness.reason_not_to_run(definitions[name], data))]
    if unable:
        raise ValueError("these tasks cannot be run:\n  " + "\n  ".join(unable))
    return len(definitions)
