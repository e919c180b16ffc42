"""The clock of a run: seconds of training in all its launches."""

import time
from collections.abc import Callable


class Clock:
    """A clock that counts the seconds of training of a run, over all its launches. Steps, saving checkpoints and
    compiling count; preparing data and starting processes do not.

    A continued run begins with the seconds that its checkpoint recorded. Steps that were lost because the run was
    killed are not counted.
    """

    def __init__(self, before: float, now: Callable[[], float] = time.perf_counter):
        """
        Args:
            before: seconds of training in earlier launches.
            now: a monotonic clock: returns the time in seconds.
        """
        self.now = now
        self.start = now() - before

    def read(self) -> float:
        """Seconds of training so far."""
        return self.now() - self.start
