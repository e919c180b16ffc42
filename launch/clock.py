"""The clock of a run: seconds of training in all its launches."""

import time
from collections.abc import Callable


class Clock:
    """Seconds of training of a run, over all its launches. Steps, saving checkpoints and compiling count; preparing
    data and starting processes do not.

    A continued run begins with the seconds that its checkpoint recorded, so steps that a kill destroyed count neither
    as training nor as time.
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
