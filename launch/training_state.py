"""The state of the training loop: the part of a checkpoint other than weights and optimizer."""

from dataclasses import dataclass, field
from typing import Any

from ablations.budget import ClockBudget
from ablations.config import Run


@dataclass
class TrainingState:
    """The state of the training loop. Every checkpoint has its fields, under their names."""

    step: int = 0
    samples: int = 0  # samples (sequences) trained on, without those in `skipped`
    seconds: float = 0.0  # seconds of training in all launches, on the clock of the first rank
    compile_seconds: float = 0.0  # seconds of compiling in all launches; part of `seconds` where the budget is a time
    losses: list[float] = field(default_factory=list)  # losses of the steps since the last line of the log
    recent: list[float] = field(default_factory=list)  # losses of the last 64 steps, to tell a spike from noise
    skipped: int = 0  # samples that were left out after divergences
    rollbacks: list[dict[str, Any]] = field(default_factory=list)  # see manifest.record_rollbacks

    @classmethod
    def from_checkpoint(cls, run: Run, saved: dict[str, Any] | None) -> "TrainingState":
        """The training state in a checkpoint. `saved`: {field: value}, as `Engine.load` returns it; None: the run has
        no checkpoint, and begins at step 0. `run`: its batches give the number of samples where an older version did
        not save it."""
        state = cls(**(saved or {}))
        if saved and "samples" not in saved:
            state.samples = run.samples(state.step).start
        return state

    def budget_is_used_up(self, run: Run) -> bool:
        """Whether the run's budget is used up: all its steps are made or, where the budget is a time, that time has
        passed by the end of the last step."""
        if isinstance(run.budget, ClockBudget):
            return self.seconds >= run.budget.seconds
        return self.step >= run.steps

    def next_samples(self, run: Run) -> range:
        """The range of sample numbers (sequences) in the batch of the next step. The run's samples are numbered from 0,
        without those that are skipped after divergences."""
        if not isinstance(run.budget, ClockBudget):
            return run.samples(self.step)
        ramped = run.budget.used_share(0, self.seconds) / run.train.ramp_share if run.train.ramp else 1.0
        return range(self.samples, self.samples + run.batch_sizes.size_at(ramped))
