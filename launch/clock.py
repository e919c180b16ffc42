"""The clock of a run: seconds of training in all its launches."""

import time
from collections.abc import Callable


class Clock:
    """Goes on from where the checkpoint stood. Steps, saving and compiling count; preparing data and starting do not.

    What a kill destroys counts neither as training nor as time: the run stands where its last checkpoint stood.
    """

    def __init__(self, before: float, now: Callable[[], float] = time.perf_counter):
        """
        Args:
            before: seconds on the clock already.
            now: a clock that never goes back, in seconds.
        """
        self.now = now
        self.start = now() - before

    def read(self) -> float:
        """Seconds of training so far."""
        return self.now() - self.start
