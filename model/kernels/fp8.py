"""Linear layers whose products have operands of eight bits.

| product         | of                               | summed, on Hopper                            |
|-----------------|----------------------------------|----------------------------------------------|
| output          | input (e4m3), weight (e4m3)      | "fast": with fewer bits than fp32's 24       |
| input gradient  | gradient (e5m2), weight (e4m3)   | in fp32                                      |
| weight gradient | gradient (e5m2), input (e4m3)    | in fp32                                      |

Formats: Micikevicius et al. 2022 (arXiv 2209.05433). Fast sums in the forward pass alone are the default of Transformer
Engine and torchao. Each operand is multiplied by a number of its own ("current" or "dynamic" scaling, tensor by
tensor): its largest magnitude then lies between half of the largest number of the format and that number. The
multiplier is a power of two, so that scaling rounds nothing and nothing overflows. What else is in a tensor (a larger
micro-batch) changes how a value is rounded only where the value is close to zero. A NaN or an infinity makes the whole
product NaN. On a CPU torch computes the same products slowly.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import ScalingType, scaled_mm

FORWARD, BACKWARD = torch.float8_e4m3fn, torch.float8_e5m2


def formula(x_ND: Tensor, weight_FD: Tensor, bias_F: Tensor | None = None) -> Tensor:
    """The output of an FP8 linear layer in float64: the product of operands rounded to e4m3. Its autograd gradients
    are not those of the FP8 layer."""
    x, w = scale(x_ND, FORWARD), scale(weight_FD, FORWARD)
    rounded = (cast(t, by, FORWARD).double() / by.double() for t, by in ((x_ND, x), (weight_FD, w)))
    x64_ND, w64_FD = rounded
    return x64_ND @ w64_FD.mT + (0.0 if bias_F is None else bias_F.double())


def scale(x: Tensor, kind: torch.dtype) -> Tensor:
    """The number by which a tensor is multiplied before it is cast to FP8: the largest power of two (fp32) for which
    the product is still representable in the format `kind`; NaN where x is not finite."""
    room = torch.finfo(kind).max / x.abs().amax().float().clamp_min(2.0**-100)  # of zeros: any number will do
    return room / (2 * torch.frexp(room).mantissa)


def cast(x: Tensor, by: Tensor, kind: torch.dtype) -> Tensor:
    """Multiply a tensor by its scale `by`, and round the product to the FP8 format `kind`."""
    return (x * by.to(x.dtype)).to(kind)


def product(
    a_NK: Tensor, a: Tensor, b_KM: Tensor, b: Tensor, bias_M: Tensor | None = None, fast: bool = False
) -> Tensor:
    """a_NK @ b_KM + bias_M in bf16, from FP8 operands; the scales of both are divided out again.

    GPUs want the left operand by rows, the right one by columns, and K and M as multiples of 16 (ablations/config.py).

    Args:
        a_NK: the left operand in FP8, already multiplied by its scale.
        a: the scale of `a_NK`.
        b_KM: the right operand in FP8, already multiplied by its scale.
        b: the scale of `b_KM`.
        bias_M: added to the product.
        fast: whether the sums may have fewer bits than fp32.
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


class Weight(NamedTuple):
    """A weight in FP8, twice: w8_FD for the product with the input, and its transpose w8_DF for the product with the
    gradient of the output, since a GPU wants the right operand by columns. `scale`: the number by which the weight was
    multiplied before the cast."""

    w8_FD: Tensor
    w8_DF: Tensor
    scale: Tensor


def cast_weight(weight_FD: Tensor) -> Weight:
    """Cast a weight [F, D] to FP8 with a scale of its own."""
    by = scale(weight_FD, FORWARD)
    w8_FD = cast(weight_FD, by, FORWARD)
    return Weight(w8_FD, w8_FD.t().contiguous(), by)


def linear(x_ND: Tensor, weight_FD: Tensor, bias_F: Tensor | None = None, weight: Weight | None = None) -> Tensor:
    """x @ weight.T + bias in bf16, with FP8 products in the forward and backward pass, as in the table at the top of
    model/kernels/fp8.py.

    Args:
        x_ND: the input, bf16.
        weight_FD: the weight, bf16.
        bias_F: added to the product.
        weight: what `cast_weight` made of `weight_FD`; None: the weight is cast here, and again in the backward pass.
    """
    return _Products.apply(x_ND, weight_FD, bias_F, *(weight or (None, None, None)))


class _Products(torch.autograd.Function):
    """The products of an FP8 linear layer with their gradients. For the backward pass it stores the input in eight
    bits, and the weight as it was given, in eight bits or not."""

    @staticmethod
    def forward(
        ctx: Any,
        x_ND: Tensor,
        weight_FD: Tensor,
        bias_F: Tensor | None,
        w8_FD: Tensor | None,
        w8_DF: Tensor | None,
        w: Tensor | None,
    ) -> Tensor:
        x = scale(x_ND, FORWARD)
        x8_ND = cast(x_ND, x, FORWARD)
        if w8_FD is None or w8_DF is None or w is None:
            w = scale(weight_FD, FORWARD)
            w8_FD = cast(weight_FD, w, FORWARD)
            ctx.save_for_backward(x8_ND, x, w, weight_FD)
        else:
            ctx.save_for_backward(x8_ND, x, w, w8_DF)
        return product(x8_ND, x, w8_FD.t(), w, bias_F, fast=True)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x8_ND, x, w, stored = ctx.saved_tensors
        w8_FD = stored.t() if stored.dtype == FORWARD else cast(stored, w, FORWARD)
        g = scale(grads[0], BACKWARD)
        g8_NF = cast(grads[0], g, BACKWARD)
        bias_grad = grads[0].sum(0) if ctx.needs_input_grad[2] else None
        x_grad = product(g8_NF, g, w8_FD, w)
        return x_grad, product(g8_NF.t(), g, x8_ND, x), bias_grad, None, None, None
