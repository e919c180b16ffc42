"""FP8: the matrix products of the blocks' linear layers with operands of eight bits, in a model that is bf16 otherwise.

| product         | of                               | summed, on Hopper                            |
|-----------------|----------------------------------|----------------------------------------------|
| output          | input (e4m3), weight (e4m3)      | "fast": with fewer bits than fp32's 24       |
| input gradient  | gradient (e5m2), weight (e4m3)   | in fp32                                      |
| weight gradient | gradient (e5m2), input (e4m3)    | in fp32                                      |

Formats: Micikevicius et al. 2022 (arXiv 2209.05433). Fast sums in the forward pass alone are the default of Transformer
Engine and torchao. Each operand is multiplied by a number of its own that brings its largest magnitude between half of
the format's largest and that ("current" or "dynamic" scaling, tensor by tensor). The number is a power of two, so that
scaling rounds nothing, nothing overflows, and what else is in a tensor (a larger micro-batch) changes how a value is
rounded only where it is close to zero. A NaN or an infinity makes the whole product NaN, so that it is seen.

Embeddings, norms, attention's own products, the output matrix and the loss are not in FP8. Weights are bf16 (with fp32
masters, as in bf16): they are evaluated and exported as those of a bf16 run. On a CPU torch computes the same products
slowly.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import ScalingType, scaled_mm

from model.shard import Whole

FORWARD, BACKWARD = torch.float8_e4m3fn, torch.float8_e5m2


def scale(x: Tensor, kind: torch.dtype) -> Tensor:
    """The largest power of two, fp32, with which max |x| stays within `kind`; NaN where x is not finite."""
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


class Linear(nn.Linear):
    """torch.nn.Linear in FP8.

    Raises:
        TypeError: when it is asked to compute in anything but bf16.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype != torch.bfloat16:
            raise TypeError(f"layers in fp8 belong to a bf16 model, and were given {x.dtype}")
        return _Products.apply(x.flatten(0, -2), self.weight, self.bias).view(*x.shape[:-1], -1)


class _Products(torch.autograd.Function):
    """Of the input its eight bits are kept; the weight, which is there anyway, is cast again."""

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


class Eight(Whole):
    """Makes the layers of a model whose blocks compute in FP8 (the output matrix comes from `column` too, but only its
    weight is read, by the products of model/objective.py)."""

    def column(self, into: int, out: int, bias: bool) -> nn.Module:
        return Linear(into, out, bias)

    row = column


EIGHT = Eight()
