"""Which of the requested evaluation tasks can be run: lm-eval knows them, and their data is on disk and undamaged."""

import sys
from typing import TYPE_CHECKING

from eval.tasks import mirror

if TYPE_CHECKING:
    from eval.tasks.definitions import Definition


def available(
    tasks: list[str], data: mirror.Mirror, shots: int | None = None, tell: bool = True
) -> tuple[dict[str, "Definition"], list[str]]:
    """lm-eval's definitions of the tasks whose data is here and undamaged, and the names of the other tasks.

    Args:
        tasks: names of tasks, groups or tags, or patterns such as mmlu_*.
        shots: examples in each prompt; None: as each task's definition says.
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
    """The number of tasks that can be run. The first requests of each are made, as in the evaluation of a trained run.

    Raises:
        ValueError: a requested task cannot be run (see `available`), or its own code fails on the data.
    """
    from eval.tasks import harness

    definitions, _ = available(tasks, data, shots)
    unable = [f"{name}: {why}" for name in definitions if (why := harness.reason_not_to_run(definitions[name], data))]
    if unable:
        raise ValueError("these tasks cannot be run:\n  " + "\n  ".join(unable))
    return len(definitions)
