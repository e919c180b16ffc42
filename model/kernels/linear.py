"""Products with a weight matrix; in fp32 on a CPU, by oneDNN.

torch computes them by MKL, which uses only AVX2 on processors that are not Intel's. Time of oneDNN as a share of MKL's,
on one core of an AMD EPYC at the nano size: forward 0.43 to 0.67, input gradient 0.41 to 0.45, weight gradient 0.47 to
0.52.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

ONEDNN = torch.backends.mkldnn.is_available()


def formula(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A linear layer in plain torch, the reference for the kernel of this file: x @ weight.T + bias for x [..., D],
    weight [F, D], bias [F]."""
    y = x @ weight.mT
    return y if bias is None else y + bias


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x @ weight.T + bias for x [..., D], weight [F, D], bias [F]; in fp32 on a CPU by oneDNN."""
    return _OneDNNLinear.apply(x, weight, bias) if _uses_onednn(x) else F.linear(x, weight, bias)


def _uses_onednn(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype == torch.float32 and ONEDNN


def product(a_ND: Tensor, b_FD: Tensor, bias_F: Tensor | None = None) -> Tensor:
    """a @ b.T + bias, not differentiable."""
    if not _uses_onednn(a_ND):
        return F.linear(a_ND, b_FD, bias_F)
    return (_onednn_operator if torch.compiler.is_compiling() else _onednn_product)(a_ND, b_FD, bias_F)


def gelu_product(a_ND: Tensor, b_FD: Tensor, bias_F: Tensor | None) -> Tensor:
    """gelu(a @ b.T + bias) in the tanh approximation; not differentiable, on a CPU only."""
    return torch.ops.mkldnn._linear_pointwise(a_ND, b_FD, bias_F, "gelu", [], "tanh")


def _onednn_product(a_ND: Tensor, b_FD: Tensor, bias_F: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(a_ND, b_FD, bias_F, "none", [], "")


@torch.library.custom_op("megahour::onednn", mutates_args=())
def _onednn_operator(a_ND: Tensor, b_FD: Tensor, bias_F: Tensor | None) -> Tensor:
    """a @ b.T + bias by oneDNN, as a custom operator that torch.compile does not trace. Its own version of oneDNN's
    operator takes weights to be constant."""
    return _onednn_product(a_ND, b_FD, bias_F)


@_onednn_operator.register_fake
def _(a_ND: Tensor, b_FD: Tensor, bias_F: Tensor | None) -> Tensor:
    return a_ND.new_empty(len(a_ND), len(b_FD))


def weight_gradient(grad_NF: Tensor, x_ND: Tensor) -> Tensor:
    """The gradient of a weight, grad.T @ x: [F, D].

    oneDNN copies a left operand that is transposed. In fp32 on a CPU the transposed product, x.T @ grad, is therefore
    computed where x is narrower than grad, and the result is transposed.
    """
    if _uses_onednn(x_ND) and grad_NF.shape[1] > x_ND.shape[1]:
        return product(x_ND.t(), grad_NF.t()).t()
    return product(grad_NF.t(), x_ND.t())


class _OneDNNLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return product(x.flatten(0, -2), weight, bias).view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        x, weight = ctx.saved_tensors
        x_ND, grad_NF = x.flatten(0, -2), grads[0].flatten(0, -2)
        bias_grad = grad_NF.sum(0) if ctx.needs_input_grad[2] else None
        return product(grad_NF, weight.t()).view_as(x), weight_gradient(grad_NF, x_ND), bias_grad
