"""Linear layers whose products have operands of eight bits.

| product         | of                               | summed, on Hopper                            |
|-----------------|----------------------------------|----------------------------------------------|
| output          | input (e4m3), weight (e4m3)      | "fast": with fewer bits than fp32's 24       |
| input gradient  | gradient (e5m2), weight (e4m3)   | in fp32                                      |
| weight gradient | gradient (e5m2), input (e4m3)    | in fp32                                      |

Formats: Micikevicius et al. 2022 (arXiv 2209.05433). Fast sums in the forward pass alone are the default of Transformer
Engine and torchao. Each operand is multiplied by a number of its own that brings its largest magnitude between half of
the format's largest and that ("current" or "dynamic" scaling, tensor by tensor). The number is a power of two, so that
scaling rounds nothing, nothing overflows, and what else is in a tensor (a larger micro-batch) changes how a value is
rounded only where it is close to zero. A NaN or an infinity makes the whole product NaN, so that it is seen. On a CPU
torch computes the same products slowly.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import ScalingType, scaled_mm

FORWARD, BACKWARD = torch.float8_e4m3fn, torch.float8_e5m2


def formula(x_ND: Tensor, weight_FD: Tensor, bias_F: Tensor | None = None) -> Tensor:
    """The output in float64, of operands rounded to e4m3. It is for the output only: the gradients are those of the
    table, and not of this function."""
    x, w = scale(x_ND, FORWARD), scale(weight_FD, FORWARD)
    rounded = (cast(t, by, FORWARD).double() / by.double() for t, by in ((x_ND, x), (weight_FD, w)))
    x64_ND, w64_FD = rounded
    return x64_ND @ w64_FD.mT + (0.0 if bias_F is None else bias_F.double())


def scale(x: Tensor, kind: torch.dtype) -> Tensor:
    """The largest power of two (fp32) that max |x| can be multiplied by and still be representable in `kind`; NaN where
    x is not finite."""
    room = torch.finfo(kind).max / x.abs().amax().float().clamp_min(2.0**-100)  # of zeros: any number will do
    return room / (2 * torch.frexp(room).mantissa)


def cast(x: Tensor, by: Tensor, kind: torch.dtype) -> Tensor:
    return (x * by.to(x.dtype)).to(kind)


def product(
    a_NK: Tensor, a: Tensor, b_KM: Tensor, b: Tensor, bias_M: Tensor | None = None, fast: bool = False
) -> Tensor:
    """a_NK @ b_KM + bias_M in bf16, of operands that were multiplied by `a` and `b`.

    GPUs want the left operand by rows, the right one by columns, and K and M as multiples of 16 (ablations/config.py).
    """
    one = ScalingType.TensorWise
    return scaled_mm(
        a_NK.contiguous(),
        b_KM.t().contiguous().t(),
        1 / a,
        one,
        1 / b,
        one,
        bias=bias_M,
        output_dtype=torch.bfloat16,
        use_fast_accum=fast,
    )


def linear(x_ND: Tensor, weight_FD: Tensor, bias_F: Tensor | None = None) -> Tensor:
    """x @ weight.T + bias, with its gradients, in bf16: the products of the table."""
    return _Products.apply(x_ND, weight_FD, bias_F)


class _Products(torch.autograd.Function):
    """For the backward pass it stores the input in eight bits, and the weight unchanged, which is cast again there."""

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, weight_FD: Tensor, bias_F: Tensor | None) -> Tensor:
        x, w = scale(x_ND, FORWARD), scale(weight_FD, FORWARD)
        x8_ND = cast(x_ND, x, FORWARD)
        ctx.save_for_backward(x8_ND, weight_FD, x, w)
        return product(x8_ND, x, cast(weight_FD, w, FORWARD).t(), w, bias_F, fast=True)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        x8_ND, weight_FD, x, w = ctx.saved_tensors
        g = scale(grads[0], BACKWARD)
        g8_NF = cast(grads[0], g, BACKWARD)
        bias_grad = grads[0].sum(0) if ctx.needs_input_grad[2] else None
        x_grad = product(g8_NF, g, cast(weight_FD, w, FORWARD), w)
        return x_grad, product(g8_NF.t(), g, x8_ND, x), bias_grad
