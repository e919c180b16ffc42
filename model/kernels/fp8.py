"""Linear layers that multiply in FP8.

| product         | of                               | precision of the sums on Hopper              |
|-----------------|----------------------------------|----------------------------------------------|
| output          | input (e4m3), weight (e4m3)      | below fp32 ("fast")                          |
| input gradient  | gradient (e5m2), weight (e4m3)   | fp32                                         |
| weight gradient | gradient (e5m2), input (e4m3)    | fp32                                         |

Formats: Micikevicius et al. 2022 (arXiv 2209.05433). Fast sums in the forward pass alone are the default of Transformer
Engine and torchao.

Each tensor has its own scale, computed from its present values ("current" or "dynamic" scaling). The scale is a power
of two, so that it rounds nothing. It brings the largest magnitude between half of the format's largest number and that
number, so that nothing overflows. Other values in a tensor, as in a larger micro-batch, change only the rounding of
values close to zero. A NaN or an infinity makes the whole product NaN. On a CPU torch computes the same products
slowly.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import ScalingType, scaled_mm

FORWARD, BACKWARD = torch.float8_e4m3fn, torch.float8_e5m2


def formula(x_ND: Tensor, weight_FD: Tensor, bias_F: Tensor | None = None) -> Tensor:
    """The output of an FP8 linear layer, computed in float64 from operands rounded to e4m3. Autograd of this formula
    does not give the gradients of the FP8 layer."""
    x, w = fp8_scale(x_ND, FORWARD), fp8_scale(weight_FD, FORWARD)
    rounded = (cast_to_fp8(t, by, FORWARD).double() / by.double() for t, by in ((x_ND, x), (weight_FD, w)))
    x64_ND, w64_FD = rounded
    return x64_ND @ w64_FD.mT + (0.0 if bias_F is None else bias_F.double())


def fp8_scale(x: Tensor, kind: torch.dtype) -> Tensor:
    """The scale of a tensor, by which it is multiplied before the cast to FP8: the largest power of two for which every
    product is within the range of the format `kind`. Returns a scalar tensor (fp32); NaN where x is not finite."""
    room = torch.finfo(kind).max / x.abs().amax().float().clamp_min(2.0**-100)  # of zeros: any number will do
    return room / (2 * torch.frexp(room).mantissa)


def cast_to_fp8(x: Tensor, scale: Tensor, kind: torch.dtype) -> Tensor:
    """Multiply a tensor by its `scale`, and round the product to the FP8 format `kind`."""
    return (x * scale.to(x.dtype)).to(kind)


def product(
    a_NK: Tensor, a_scale: Tensor, b_KM: Tensor, b_scale: Tensor, bias_M: Tensor | None = None, fast: bool = False
) -> Tensor:
    """Multiply FP8 operands: a_NK @ b_KM, divided by both scales, + bias_M, in bf16.

    GPUs need the left operand in row-major and the right one in column-major order, and K and M as multiples of 16
    (checked in ablations/rules.py).

    Args:
        a_NK: the left operand in FP8, already multiplied by its scale.
        a_scale: the scale of `a_NK`.
        b_KM: the right operand in FP8, already multiplied by its scale.
        b_scale: the scale of `b_KM`.
        bias_M: added to the product.
        fast: whether the sums may have fewer bits than fp32.
    """
    one = ScalingType.TensorWise
    return scaled_mm(
        a_NK.contiguous(),
        b_KM.t().contiguous().t(),
        1 / a_scale,
        one,
        1 / b_scale,
        one,
        bias=bias_M,
        output_dtype=torch.bfloat16,
        use_fast_accum=fast,
    )


class Weight(NamedTuple):
    """A weight in FP8, stored twice, since a GPU needs the right operand in column-major order.

    w8_FD: for the product with the input.
    w8_DF: the transpose, for the product with the gradient of the output.
    scale: the number by which the weight was multiplied before the cast.
    """

    w8_FD: Tensor
    w8_DF: Tensor
    scale: Tensor


def cast_weight(weight_FD: Tensor) -> Weight:
    """Cast a weight [F, D] to FP8 with its own scale."""
    by = fp8_scale(weight_FD, FORWARD)
    w8_FD = cast_to_fp8(weight_FD, by, FORWARD)
    return Weight(w8_FD, w8_FD.t().contiguous(), by)


def linear(x_ND: Tensor, weight_FD: Tensor, bias_F: Tensor | None = None, weight: Weight | None = None) -> Tensor:
    """x @ weight.T + bias in bf16, with FP8 products in the forward and backward pass (see the table in
    model/kernels/fp8.py).

    Args:
        x_ND: the input, bf16.
        weight_FD: the weight, bf16.
        bias_F: added to the product.
        weight: the result of `cast_weight` for `weight_FD`; None: the weight is cast here, and again in the backward
            pass.
    """
    return _Products.apply(x_ND, weight_FD, bias_F, *(weight or (None, None, None)))


class _Products(torch.autograd.Function):
    """The output of an FP8 linear layer, with its gradients. For the backward pass it stores the input in FP8, and the
    weight in FP8 if it was given so."""

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
        x = fp8_scale(x_ND, FORWARD)
        x8_ND = cast_to_fp8(x_ND, x, FORWARD)
        if w8_FD is None or w8_DF is None or w is None:
            w = fp8_scale(weight_FD, FORWARD)
            w8_FD = cast_to_fp8(weight_FD, w, FORWARD)
            ctx.save_for_backward(x8_ND, x, w, weight_FD)
        else:
            ctx.save_for_backward(x8_ND, x, w, w8_DF)
        return product(x8_ND, x, w8_FD.t(), w, bias_F, fast=True)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x8_ND, x, w, stored = ctx.saved_tensors
        w8_FD = stored.t() if stored.dtype == FORWARD else cast_to_fp8(stored, w, FORWARD)
        g = fp8_scale(grads[0], BACKWARD)
        g8_NF = cast_to_fp8(grads[0], g, BACKWARD)
        bias_grad = grads[0].sum(0) if ctx.needs_input_grad[2] else None
        x_grad = product(g8_NF, g, w8_FD, w)
        return x_grad, product(g8_NF.t(), g, x8_ND, x), bias_grad, None, None, None
