"""What is minimised: the cross-entropy of the next token."""

from typing import Any

import torch
from torch import Tensor

# Rows of logits whose fp32 work stays in a core's cache. Measured at 2048 x 4096 bf16 logits with the projection,
# forward and backward, one core: 29 ms, against 88 ms for F.cross_entropy(logits.float()). A GPU wants few, large
# kernels (untuned).
ROWS_CPU, ROWS_GPU = 128, 4096


def cross_entropy(logits_NV: Tensor, targets_N: Tensor) -> Tensor:
    """Mean of -log softmax(logits)[target] in nats, fp32 whatever the precision of the logits."""
    return _CrossEntropy.apply(logits_NV, targets_N)


class _CrossEntropy(torch.autograd.Function):
    """Takes loss and gradient in one pass over the logits, in fp32, a few rows at a time; keeps the gradient only."""

    @staticmethod
    def forward(ctx: Any, logits_NV: Tensor, targets_N: Tensor) -> Tensor:
        rows = ROWS_GPU if logits_NV.is_cuda else ROWS_CPU
        total = torch.zeros((), device=logits_NV.device)
        grad_NV = torch.empty_like(logits_NV)
        parts = (x.split(rows) for x in (logits_NV, targets_N[:, None], grad_NV))
        for logits, target, grad in zip(*parts, strict=True):
            log_p = torch.log_softmax(logits, dim=-1, dtype=torch.float32)
            total -= log_p.gather(1, target).sum()
            p = log_p.exp_()
            grad.copy_(p.scatter_add_(1, target, torch.full_like(target, -1, dtype=p.dtype)))
        ctx.save_for_backward(grad_NV)
        return total / len(targets_N)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (grad_NV,) = ctx.saved_tensors
        return grad_NV * (grads[0] / len(grad_NV)), None
