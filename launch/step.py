"""The result of an optimizer step, and how it is read from the device."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Step(NamedTuple):
    """The result of an optimizer step, equal on all ranks."""

    loss: float  # mean loss of the global batch, before the update; nats per predicted token
    grad_norm: float  # norm of the gradients of all ranks, before clipping
    save: bool  # whether any rank requested a checkpoint
    stop: bool  # whether any rank requested that training stop
    seconds: float = 0.0  # seconds of training by the end of the step, on the first rank's clock; 0 without a clock


class PendingStep:
    """An optimizer step that the device may still be computing. `read` waits for it and returns its result.

    Args:
        values: tensors on the device: loss and gradient norm. With several ranks also the sums over ranks of `save` and
            `stop`, and the seconds of training on the first rank's clock.
        save: whether this rank requests a checkpoint; used where there is a single rank.
        stop: whether this rank requests that training stop; used where there is a single rank.
        seconds: returns the seconds of training so far; used where there is a single rank.
    """

    def __init__(self, values: list[Tensor | float], save: bool, stop: bool, seconds: Callable[[], float]):
        self.values, self.save, self.stop, self.seconds = values, save, stop, seconds
        self.copied: Any = None
        if isinstance(values[0], Tensor) and values[0].is_cuda:
            # the copy to the host starts here: started later, it would wait for the steps launched in between
            on_device = torch.stack([torch.as_tensor(v, dtype=torch.float32, device=values[0].device) for v in values])
            host = torch.empty(len(values), pin_memory=True)
            self.values = [*host.copy_(on_device, non_blocking=True)]
            self.copied = torch.cuda.Event()
            self.copied.record()

    def read(self) -> Step:
        """Wait for the step, and return its result."""
        if self.copied is not None:
            self.copied.synchronize()
        loss, norm, *votes = (float(value) for value in self.values)
        if not votes:
            return Step(loss, norm, self.save, self.stop, self.seconds())
        save, stop, seconds = votes
        return Step(loss, norm, save > 0, stop > 0, seconds)  # fp32 holds the seconds of a day to within 8 ms
