"""How long a piece of work takes on a device."""

import time
from collections.abc import Callable

import torch


def least_seconds(work: Callable[[], object], device: torch.device, repetitions: int, warm_up: int = 0) -> float:
    """The seconds of the fastest of `repetitions` calls of `work`, which come after `warm_up` calls that are not timed.
    Each call is timed until `device` has finished."""
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
    """Wait until a GPU has finished all work that was launched on it; returns at once for a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
