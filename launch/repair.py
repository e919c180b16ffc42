"""Repairs a damaged run directory from the run's own checkpoints, so that training can continue."""

import os

from ablations import rundir, safe_files
from ablations.safe_files import Damaged
from ablations.study import Cell


def repair_run_directory(cell: Cell) -> str:
    """Repair a damaged run directory, so that `launch.train` can continue the run. Does nothing while the run is being
    trained.

    A damaged run.json is renamed; training writes a new one when it starts. Where the file `done` or the weights are
    damaged, `done` is removed. Training then continues from the last checkpoint, and writes both again.

    Returns:
        What was damaged, as a sentence for the terminal; "" where nothing was.

    Raises:
        Damaged: there is no checkpoint of this run to continue from.
        ConfigError: the directory holds a run of another configuration.
    """
    if rundir.is_locked(cell.dir):  # it is being trained
        return ""
    repairs = []
    run, done = cell.dir / rundir.RUN, cell.dir / rundir.DONE
    try:
        cell.check_same_configuration()
    except Damaged as error:
        if not _has_checkpoint(cell) and (done.exists() or (cell.dir / rundir.CHECKPOINTS).exists()):
            raise Damaged(f"{error} There is no checkpoint that is known to be this run's.") from None
        os.replace(run, run.with_name(f"damaged_{run.name}"))
        done.unlink(missing_ok=True)
        repairs.append(f"{run} was damaged and is written anew")
    try:
        rundir.read_done(cell.dir, verify=not is_evaluated(cell))
    except Damaged as error:
        if not _has_checkpoint(cell):
            raise Damaged(f"{error} But there is no checkpoint: to train the run anew, rename {cell.dir}.") from None
        done.unlink()
        repairs.append(str(error))
    return f"{cell.name}: {'; '.join(repairs)}" if repairs else ""


def is_trained(cell: Cell) -> bool:
    """Whether a run is trained to its end, and its weights file has the recorded size. The hash of the weights is not
    compared; `repair_run_directory` does that."""
    try:
        return rundir.read_done(cell.dir) is not None
    except Damaged:
        return False


def is_evaluated(cell: Cell) -> bool:
    """Whether the run directory has an undamaged eval.json. Which tasks it has scores for is not checked."""
    try:
        return safe_files.read_json(cell.dir / rundir.EVAL) is not None
    except Damaged:
        return False


def is_fine_tuned(cell: Cell, tasks: list[str], seeds: int) -> bool:
    """Whether the run directory has an undamaged table of GLUE results, with each of `tasks` over at least `seeds`
    fine-tuning seeds. The results must be of the present version of GLUE's inputs (`rundir.GLUE_INPUTS_VERSION`)."""
    form = {"study": {"seeds": int}}
    try:
        table = safe_files.read_json(cell.dir / rundir.GLUE / rundir.GLUE_TABLE, ["scores"])
    except Damaged:
        return False
    if not table or safe_files.first_misfit(table, {"scores": dict.fromkeys(tasks, form)}):
        return False
    enough = all(table["scores"][name]["study"]["seeds"] >= seeds for name in tasks)
    return enough and table.get("inputs_version") == rundir.GLUE_INPUTS_VERSION


def _has_checkpoint(cell: Cell) -> bool:
    """Whether the run has a checkpoint of its own configuration, with an undamaged checkpoint.json."""
    for folder in rundir.checkpoints(cell.dir / rundir.CHECKPOINTS):
        try:
            if rundir.read_checkpoint(folder).get("run", {}).get("fingerprint") == cell.run.fingerprint:
                return True
        except Damaged:
            continue
    return False
