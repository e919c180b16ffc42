"""The user's request for tasks of lm-eval, and the choice of those that can be run."""

import sys
from typing import TYPE_CHECKING, NamedTuple

from eval.tasks.mirror import Mirror, names

if TYPE_CHECKING:
    from eval.tasks.definitions import Definition


class TaskRequest(NamedTuple):
    """A user's request to evaluate on tasks of lm-eval."""

    names: list[str]  # of tasks, groups or tags; or patterns such as mmlu_*
    data: Mirror  # the folder of task data
    shots: int | None = None  # examples in each prompt; None: as each task's definition says


def available_tasks(requested: TaskRequest, tell: bool = True) -> tuple[dict[str, "Definition"], list[str]]:
    """Select the requested tasks whose data is complete and undamaged in the folder of task data.

    Args:
        requested: the requested tasks and the folder of their data.
        tell: whether to print which tasks of a group cannot be run, and why.

    Returns:
        ({task that can be run: its definition in lm-eval}, the names of the tasks that cannot be run).

    Raises:
        ValueError: a task that was requested by its own name cannot be run, or no task of a requested group can.
    """
    from eval.tasks.definitions import definitions as defined

    members_of = {name: defined(names([name]), requested.shots) for name in requested.names}
    definitions = {task: definition for members in members_of.values() for task, definition in members.items()}
    data = requested.data
    reasons = {
        task: why for task, definition in definitions.items() if (why := data.why_any_unusable(definition.sources))
    }
    problems = [f"{name}: {reasons[name]}" for name in members_of if name in reasons]
    problems += [
        f"{name}: {data.folder} has the data of none of its {len(members)} tasks"
        for name, members in members_of.items()
        if name not in members and members.keys() <= reasons.keys()
    ]
    if problems:
        raise ValueError("these tasks cannot be run:\n  " + "\n  ".join(problems))
    for task, why in reasons.items() if tell else ():
        print(f"missing: {task}: {why}", file=sys.stderr)
    return {task: definition for task, definition in definitions.items() if task not in reasons}, list(reasons)


def check_tasks(requested: TaskRequest) -> int:
    """Check that requested tasks can be run, by building the first requests of each, without a model. Returns the
    number of tasks that can be run. Raises ValueError where a task that was requested by its own name cannot be run, no
    task of a requested group can, or a task's own code fails."""
    from eval.tasks import harness

    definitions, _ = available_tasks(requested)
    reasons = {name: harness.reason_not_to_run(definition, requested.data) for name, definition in definitions.items()}
    if unable := [f"{name}: {why}" for name, why in reasons.items() if why]:
        raise ValueError("these tasks cannot be run:\n  " + "\n  ".join(unable))
    return len(definitions)
