"""The progress of a run's training: the part of a checkpoint other than weights and optimizer, and the numbers that
follow from it."""

from dataclasses import dataclass, field
from typing import Any

from ablations.budget import ClockBudget
from ablations.config import Run


@dataclass
class TrainingState:
    """The state of the training loop, whose fields are written into every checkpoint under their names."""

    step: int = 0
    samples: int = 0  # sequences trained on; those that were left out are not counted
    seconds: float = 0.0  # of training, in all launches, on the clock of the first rank
    compile_seconds: float = 0.0  # in all launches; counted in `seconds` where the budget is a time
    losses: list[float] = field(default_factory=list)  # since the last line of the log
    recent: list[float] = field(default_factory=list)  # of the last 64 steps, to tell a spike from noise
    skipped: int = 0  # samples that were left out after divergences
    rollbacks: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def from_checkpoint(cls, run: Run, saved: dict[str, Any] | None) -> "TrainingState":
        """The state from `saved`, the fields that `Engine.load` read from a checkpoint; the state of step 0 where that
        is None. Where an older version's checkpoint lacks the number of samples, it is computed from `run`."""
        state = cls(**(saved or {}))
        if saved and "samples" not in saved:
            state.samples = run.samples(state.step).start
        return state

    def budget_is_used_up(self, run: Run) -> bool:
        """Whether the run's budget is used up: its steps are made, or where the budget is a time, a step has ended at
        or after that time."""
        if isinstance(run.budget, ClockBudget):
            return self.seconds >= run.budget.seconds
        return self.step >= run.steps

    def next_samples(self, run: Run) -> range:
        """The numbers of the samples (sequences) in the batch of the next step. Samples are counted from 0 over the
        whole run; those left out after divergences are not counted."""
        if not isinstance(run.budget, ClockBudget):
            return run.samples(self.step)
        ramped = run.budget.share(0, self.seconds) / run.train.ramp_share if run.train.ramp else 1.0
        return range(self.samples, self.samples + run.batch_sizes.size_at(ramped))
