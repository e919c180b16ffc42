"""The output projection and cross-entropy together, a block of rows at a time, so that the logits [N, V] are never
stored as a whole."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from model.kernels.linear import linear, product, weight_gradient

# Rows of logits at a time, and rows whose softmax is taken at a time, in fp32. On a CPU few are enough, and more only
# take memory; but each block of rows costs one sum over the weight's gradient. A GPU wants large kernels (untuned).
ROWS_CPU, SOFTMAX_CPU, ROWS_GPU = 512, 128, 4096


def formula(x_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
    """The cross-entropy in plain torch, the reference for the kernel of this file: the mean of -log softmax(x @
    weight.T)[target] over N outputs, in nats, computed in the precision of x."""
    logp_NV = (x_ND @ weight_VD.mT).log_softmax(dim=-1)
    return -logp_NV[torch.arange(len(targets_N), device=x_ND.device), targets_N].mean()


def cross_entropy(x_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
    """Mean of -log softmax(x @ weight.T)[target] over N outputs, in nats; the softmax is computed in fp32 whatever the
    precision of x."""
    if x_ND.is_cuda and torch.compiler.is_compiling():  # one fused kernel
        return F.cross_entropy(linear(x_ND, weight_VD).float(), targets_N)
    return _loss_in_blocks(x_ND, weight_VD, targets_N)


def _loss_in_blocks(x_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
    return _CrossEntropy.apply(x_ND, weight_VD, targets_N)


def prepare_to_compile() -> None:
    """Have torch.compile call `_loss_in_blocks` as an opaque function, without tracing its loop. Call this before
    torch.compile."""
    global _loss_in_blocks
    if not hasattr(_loss_in_blocks, "_torchdynamo_disable"):
        _loss_in_blocks = torch.compiler.disable(_loss_in_blocks)


class _CrossEntropy(torch.autograd.Function):
    """Cross-entropy whose forward pass also computes the gradients of x and weight, a block of rows at a time. The
    backward pass only multiplies them by the incoming gradient, a number. The weight's gradient is summed in fp32."""

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
        rows, few = (ROWS_GPU, ROWS_GPU) if x_ND.is_cuda else (ROWS_CPU, SOFTMAX_CPU)
        total = torch.zeros((), device=x_ND.device)
        x_grad, weight_grad_VD = torch.empty_like(x_ND), torch.zeros_like(weight_VD, dtype=torch.float32)
        for start in range(0, len(x_ND), rows):
            block = slice(start, start + rows)
            logits = product(x_ND[block], weight_VD)
            parts = range(0, len(logits), few)
            total += sum(
                _loss_with_gradient_in_place(logits[i : i + few], targets_N[block][i : i + few, None]) for i in parts
            )
            if any(ctx.needs_input_grad):
                x_grad[block] = product(logits, weight_VD.t())
                weight_grad_VD += weight_gradient(logits, x_ND[block])
            del logits  # before the next ones are made
        ctx.save_for_backward(x_grad, weight_grad_VD)
        return total / len(targets_N)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        x_grad, weight_grad_VD = ctx.saved_tensors
        scale = grads[0] / len(x_grad)
        rounded = torch.empty_like(weight_grad_VD, dtype=x_grad.dtype)
        return x_grad * scale, torch.mul(weight_grad_VD, scale, out=rounded), None


def _loss_with_gradient_in_place(logits_NV: Tensor, target_N1: Tensor) -> Tensor:
    """The sum of the rows' cross-entropies. The logits are overwritten with their gradient: softmax minus one-hot."""
    p = logits_NV.float()  # in fp32 the logits themselves: all of this happens in place
    torch.softmax(p, dim=-1, out=p)
    loss = -p.gather(1, target_N1).clamp_min(torch.finfo(p.dtype).tiny).log().sum()  # at most 87 nats a token
    logits_NV.copy_(p.scatter_add_(1, target_N1, torch.full_like(target_N1, -1, dtype=p.dtype)))
    return loss
