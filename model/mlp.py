"""Feed-forward blocks. The inner width is `ModelConfig.ffn`, matched in parameters unless the name says otherwise."""

from typing import get_args, get_type_hints

import torch.nn.functional as F
from torch import Tensor, nn

from model.config import ModelConfig
from model.linear import Linear


class GELU(nn.Module):
    """down(gelu(up(x))), with the tanh approximation of GPT-2 and of Megatron's fused kernel."""

    def __init__(self, cfg: ModelConfig):
        super().__init__()
        self.up = Linear(cfg.hidden, cfg.ffn, cfg.linear_bias)
        self.down = Linear(cfg.ffn, cfg.hidden, cfg.linear_bias)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x_BTD), approximate="tanh"))


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)) (Shazeer 2020). Gate and up are kept apart so that no layout can scramble them."""

    def __init__(self, cfg: ModelConfig):
        super().__init__()
        self.gate = Linear(cfg.hidden, cfg.ffn, cfg.linear_bias)
        self.up = Linear(cfg.hidden, cfg.ffn, cfg.linear_bias)
        self.down = Linear(cfg.ffn, cfg.hidden, cfg.linear_bias)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x_BTD)) * self.up(x_BTD))


class GEGLU(SwiGLU):
    """down(gelu(gate(x)) * up(x)), tanh approximation (Shazeer 2020)."""

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.down(F.gelu(self.gate(x_BTD), approximate="tanh") * self.up(x_BTD))


MLPS: dict[str, type[nn.Module]] = {"gelu": GELU, "swiglu": SwiGLU, "swiglu-unmatched": SwiGLU, "geglu": GEGLU}
assert set(MLPS) == set(get_args(get_type_hints(ModelConfig)["act"]))
