"""What is minimised: the cross-entropy of the next token, of all tokens or of those behind a prefix."""

from collections.abc import Callable, Iterable
from typing import Any, get_args, get_type_hints

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from model.config import ModelConfig
from model.linear import linear, product, weight_grad


def causal(seed: int, samples: Iterable[int], T: int) -> Tensor | None:
    """Each token sees those before it, and all but the first are predicted: there is no prefix."""
    return None


def prefix(seed: int, samples: Iterable[int], T: int) -> Tensor | None:
    """Prefix-LM (Raffel et al. 2020, section 3.2): the tokens of a prefix see each other both ways, and are not
    predicted; the rest is causal.

    Args:
        samples: numbers of the samples, counted from the first of the run. The length depends on seed and number alone,
            so that no resume, rank, micro-batch or batch size changes it.
        T: tokens of the input.

    Returns:
        The length of each sample's prefix [B], uniform from 1 (the same as causal) to T (one token is predicted).
    """
    return torch.tensor([np.random.default_rng([seed, n]).integers(1, T, endpoint=True) for n in samples])


OBJECTIVES: dict[str, Callable[[int, Iterable[int], int], Tensor | None]] = {"causal": causal, "prefix": prefix}
assert set(OBJECTIVES) == set(get_args(get_type_hints(ModelConfig)["objective"]))


def predicted(prefix_B: Tensor, T: int) -> Tensor:
    """Which of T inputs predict a token that is not in the prefix, [B, T]: its last one is the first to do so."""
    return torch.arange(T, device=prefix_B.device) >= prefix_B[:, None] - 1


def check_prefix(objective: str, given: bool) -> None:
    """Raises:
    ValueError: when a model of the prefix objective is not told the prefixes, or a causal one is.
    """
    if objective == "prefix" and not given:
        raise ValueError("model.objective=prefix: give the length of each sequence's prefix (1: causal)")
    if objective == "causal" and given:
        raise ValueError("model.objective=causal has no prefix: it was not trained to see what comes after")


# Rows of logits whose fp32 work stays in a core's cache. Measured at 2048 x 4096 bf16 logits with the projection,
# forward and backward, one core: 24 ms (32 to 512 rows: 24 to 25), against 88 ms for F.cross_entropy(logits.float()). A
# GPU wants few, large kernels (untuned).
ROWS_CPU, ROWS_GPU = 128, 4096


def cross_entropy(x_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
    """Mean of -log softmax(x @ weight.T)[target] in nats, fp32 whatever the precision of x."""
    if torch.compiler.is_compiling():  # one fused kernel
        return F.cross_entropy(linear(x_ND, weight_VD).float(), targets_N)
    return _CrossEntropy.apply(x_ND, weight_VD, targets_N)


class _CrossEntropy(torch.autograd.Function):
    """The logits' gradient overwrites them, a few rows at a time and in fp32: [N, V] is held once."""

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
        rows = ROWS_GPU if x_ND.is_cuda else ROWS_CPU
        total = torch.zeros((), device=x_ND.device)
        logits_NV = product(x_ND, weight_VD)
        for logits, target in zip(logits_NV.split(rows), targets_N[:, None].split(rows), strict=True):
            p = logits.float()  # in fp32 the logits themselves: all of this happens in place
            torch.softmax(p, dim=-1, out=p)
            total -= p.gather(1, target).clamp_min(torch.finfo(p.dtype).tiny).log().sum()  # at most 87 nats a token
            logits.copy_(p.scatter_add_(1, target, torch.full_like(target, -1, dtype=p.dtype)))
        ctx.save_for_backward(x_ND, weight_VD, logits_NV)
        return total / len(targets_N)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        x_ND, weight_VD, grad_NV = ctx.saved_tensors
        scale = grads[0] / len(x_ND)
        return product(grad_NV, weight_VD.t()) * scale, weight_grad(grad_NV, x_ND * scale), None
