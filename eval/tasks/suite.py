"""The overall scores of BigScience's suite of 27 tasks (eval/tasks/tasks.yaml), in one evaluation or averaged over
several."""

from typing import Any

import numpy as np

from eval.tasks import mirror

# A task is one that the runs can do when they beat the best guess by so many standard errors; tasks.yaml says so too.
STANDARD_ERRORS_ABOVE_GUESS = 2


def mean_suite_scores(evaluations: list[dict]) -> dict[str, Any] | None:
    """The mean scores of the suite in points (percent), over the evaluations and over the tasks that all of them have.
    None where they share no task of the suite.

    Args:
        evaluations: contents of eval.json, of one run or of all runs compared. A task of the suite has "suite": true,
            and "value", "stderr", "chance" and "guess" as fractions of 1.

    Returns:
        value, stderr, chance: unweighted means over the tasks; stderr is the standard error over items.
        corrected, corrected_stderr: the mean of (value - chance) / (1 - chance), and its standard error.
        tasks, of: the number of tasks that were counted, and the number of tasks in the suite.
        runs: the number of evaluations.
        able: the tasks on which the runs together are significantly better than guessing (see tasks.yaml).
        able_value: the mean score over these tasks; None where there are none.
    """
    entries = [
        {name: entry for name, entry in evaluation["tasks"].items() if entry.get("suite")} for evaluation in evaluations
    ]
    names = [name for name in mirror.suite() if all(name in tasks for tasks in entries)]
    if not names:
        return None
    value, stderr, chance, guess = (
        np.array([[tasks[name][key] for name in names] for tasks in entries], float)  # [runs, tasks]
        for key in ("value", "stderr", "chance", "guess")
    )
    above_guess = value.mean(0) - guess.mean(0)
    # the same items in all runs: more runs do not make the standard error of a task smaller
    able = above_guess > STANDARD_ERRORS_ABOVE_GUESS * stderr.mean(0)
    scale = 1 - chance
    return {
        "value": 100 * float(value.mean()),
        "stderr": 100 * float(np.sqrt((stderr**2).mean(0).sum()) / len(names)),
        "chance": 100 * float(chance.mean()),
        "corrected": 100 * float(((value - chance) / scale).mean()),
        "corrected_stderr": 100 * float(np.sqrt(((stderr / scale) ** 2).mean(0).sum()) / len(names)),
        "tasks": len(names),
        "of": len(mirror.suite()),
        "runs": len(evaluations),
        "able": [name for name, can in zip(names, able, strict=True) if can],
        "able_value": 100 * float(value[:, able].mean()) if able.any() else None,
    }
