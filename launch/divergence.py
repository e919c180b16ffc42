"""Recognises divergence, and rolls a run back to an earlier checkpoint."""

import math
import statistics
from typing import TYPE_CHECKING

from ablations.config import Run
from ablations.study import Cell
from launch import manifest
from launch.training_state import TrainingState
from launch.watch import record_event

if TYPE_CHECKING:
    from launch.checkpoint import Checkpoints
    from launch.engine import Engine


def divergence_reason(run: Run, step: int, recent: list[float], loss: float, norm: float) -> str:
    """The reason why a step counts as a divergence, as a sentence; "" where it does not.

    A step is a divergence in three cases:

    * Its loss or gradient norm is NaN or infinite. In fp16 an infinite norm is none: gradients overflow until the loss
      scale fits.
    * Its loss is above log(vocabulary), the loss of a uniform guess, by more than train.divergence.
    * Its loss is above the median of the recent losses by more than train.spike (0: no such limit).

    Args:
        run: the run's configuration.
        step: the number of the step.
        recent: losses of the steps before, up to 64; train.spike applies once there are 8.
        loss: the loss of the step, nats per predicted token.
        norm: the gradient norm of the step, before clipping.
    """
    limit = math.log(run.model.vocab) + run.train.divergence
    overflow = run.train.precision == "fp16" and norm == math.inf
    if not (math.isfinite(loss) and (math.isfinite(norm) or overflow)):
        return f"step {step}: the loss is {loss} and the gradient norm {norm}"
    if loss > limit:
        return f"step {step}: loss {loss:.3f}, above log(vocab) + train.divergence = {limit:.3f}"
    if run.train.spike and len(recent) >= 8 and loss > statistics.median(recent) + run.train.spike:
        return (
            f"step {step}: loss {loss:.3f}, more than train.spike={run.train.spike:g} above the median "
            f"{statistics.median(recent):.3f} of the last {len(recent)} steps"
        )
    return ""


def roll_back(
    cell: Cell, engine: "Engine", checkpoints: "Checkpoints", state: TrainingState, reason: str, batch_size: int
) -> TrainingState:
    """After a divergence, load a checkpoint from at least train.skip steps before it. All data from there to train.skip
    steps after the divergence are skipped (Chowdhery et al. 2022, section 5.1). The run's clock is not set back.

    Args:
        cell: the run.
        engine: its weights and optimizer are overwritten from the checkpoint.
        checkpoints: the run's checkpoints.
        state: the training state at the step that diverged.
        reason: the sentence that `divergence_reason` returned.
        batch_size: sequences in the batch that diverged.

    Returns:
        The training state to continue from.

    Raises:
        manifest.Diverged: the run has been rolled back train.rollbacks times already, or no checkpoint is early enough.
    """
    train, cure = cell.run.train, "Try a lower train.lr or a longer train.warmup."
    if not train.rollbacks:
        raise manifest.Diverged(f"{reason}. {cure}")
    if len(state.rollbacks) == train.rollbacks:
        raise manifest.Diverged(f"{reason}, after going back {train.rollbacks} times. {cure}")
    checkpoints.wait()
    saved = engine.load(checkpoints, before=state.step - train.skip + 1)
    if saved is None:
        before = f"no checkpoint at least train.skip={train.skip} steps before"
        raise manifest.Diverged(f"{reason}, and there is {before}. {cure}")
    earlier = TrainingState.from_checkpoint(cell.run, saved)
    first = earlier.samples
    earlier.skipped = state.skipped + state.samples - first + train.skip * batch_size
    left_out = [first + state.skipped, first + earlier.skipped]
    rollback = {"why": reason, "back_to": earlier.step, "samples_left_out": left_out}
    earlier.rollbacks = [*state.rollbacks, rollback]
    earlier.seconds = state.seconds
    manifest.record_rollbacks(cell, earlier.rollbacks)
    record_event(
        cell.dir, state.step, "rollback", f"{reason}; back to step {earlier.step}, samples {left_out} left out"
    )
    return earlier
