"""Feed-forward blocks. The inner width is `ModelConfig.ffn`, matched in parameters unless the name says otherwise."""

import math
from typing import Any, get_args, get_type_hints

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import ModelConfig
from model.linear import ONEDNN, Linear, gelu_product
from model.shard import WHOLE, Whole

CHUNK = 2**17  # numbers whose fp32 work stays in a core's cache


class GELU(nn.Module):
    """down(gelu(up(x))), with the tanh approximation of GPT-2 and of Megatron's fused kernel."""

    def __init__(self, cfg: ModelConfig, tp: Whole = WHOLE):
        super().__init__()
        self.up = tp.column(cfg.hidden, cfg.ffn, cfg.linear_bias)
        self.down = tp.row(cfg.ffn, cfg.hidden, cfg.linear_bias)

    def forward(self, x_BTD: Tensor) -> Tensor:
        if _scoring() and ONEDNN and x_BTD.device.type == "cpu" and isinstance(self.up, Linear):
            return self.down(gelu_product(x_BTD, self.up.weight, self.up.bias))
        return self.down(gelu(self.up(x_BTD)))


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)) (Shazeer 2020). Gate and up are kept apart so that no layout can scramble them."""

    def __init__(self, cfg: ModelConfig, tp: Whole = WHOLE):
        super().__init__()
        self.gate = tp.column(cfg.hidden, cfg.ffn, cfg.linear_bias)
        self.up = tp.column(cfg.hidden, cfg.ffn, cfg.linear_bias)
        self.down = tp.row(cfg.ffn, cfg.hidden, cfg.linear_bias)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x_BTD)) * self.up(x_BTD))


class GEGLU(SwiGLU):
    """down(gelu(gate(x)) * up(x)), tanh approximation (Shazeer 2020)."""

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.down(gelu(self.gate(x_BTD)) * self.up(x_BTD))


def _scoring() -> bool:
    """Whether this is evaluation: training and proofs, with a gradient or without, are not in inference mode. Asked in
    a graph that is compiled, the question would cut it in two."""
    return not torch.compiler.is_compiling() and torch.is_inference_mode_enabled()


def gelu(x: Tensor) -> Tensor:
    """GELU in its tanh approximation, 0.5 x (1 + tanh(u)) with u = sqrt(2/pi) (x + 0.044715 x^3)."""
    if x.is_cuda:
        return F.gelu(x, approximate="tanh")
    return _sigmoid_gelu(x) if torch.compiler.is_compiling() else _GELU.apply(x)


def _sigmoid_gelu(x: Tensor) -> Tensor:
    """x sigmoid(2u), which is the same: on a CPU a sigmoid costs a quarter of a tanh, compiled or not."""
    x32 = x.float()
    return (x32 * torch.sigmoid(2 * math.sqrt(2 / math.pi) * (x32 + 0.044715 * x32 * x32 * x32))).to(x.dtype)


class _GELU(torch.autograd.Function):
    """The same a few numbers at a time, with the derivative, kept in place of x, from the same sigmoid: 1.6 ms against
    torch's 2.8 for 2048 x 512 numbers on one core, forward and backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.contiguous()
        y, slope = torch.empty_like(x), torch.empty_like(x)
        linear = 2 * math.sqrt(2 / math.pi)
        parts = (t.view(-1).split(CHUNK) for t in (x, y, slope))
        for x_n, y_n, slope_n in zip(*parts, strict=True):
            x_n = x_n.float()
            u2 = torch.addcmul(x_n * linear, x_n * x_n, x_n, value=0.044715 * linear)
            if not ctx.needs_input_grad[0]:
                torch.mul(x_n, u2.sigmoid_(), out=y_n)
                continue
            s = torch.sigmoid(u2)
            torch.mul(x_n, s, out=y_n)
            # x d(2u)/dx = 3 (2u) - 2 linear x
            torch.add(s, torch.ops.aten.sigmoid_backward(u2.sub_(x_n, alpha=2 / 3 * linear), s), alpha=3, out=slope_n)
        ctx.save_for_backward(slope)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (slope,) = ctx.saved_tensors
        return grads[0] * slope


MLPS: dict[str, type[nn.Module]] = {"gelu": GELU, "swiglu": SwiGLU, "swiglu-unmatched": SwiGLU, "geglu": GEGLU}
assert set(MLPS) == set(get_args(get_type_hints(ModelConfig)["act"]))
