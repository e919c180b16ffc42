"""Times functions that run on a CPU or a GPU."""

import time
from collections.abc import Callable

import torch


def least_seconds(work: Callable[[], object], device: torch.device, repetitions: int, warm_up: int = 0) -> float:
    """Call `work` repeatedly, and return the seconds of the fastest call. A call lasts until `device` has finished its
    work. `repetitions`: the number of timed calls; `warm_up`: the number of calls before them that are not timed."""
    least = float("inf")
    for i in range(warm_up + repetitions):
        wait_for(device)
        began = time.perf_counter()
        work()
        wait_for(device)
        if i >= warm_up:
            least = min(least, time.perf_counter() - began)
    return least


def wait_for(device: torch.device) -> None:
    """Wait until a GPU has finished all work that was launched on it. On a CPU, return at once."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
