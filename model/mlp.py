"""The MLPs of a transformer layer. With the inner widths of `ModelConfig.mlp_width`, all have the same number of
parameters, except those whose name ends in "unmatched"."""

from typing import get_args, get_type_hints

import torch.nn.functional as F
from torch import Tensor, nn

from model.config import ModelConfig
from model.inference import in_inference_mode
from model.kernels.gelu import gelu
from model.kernels.linear import ONEDNN, gelu_product
from model.linear import LAYERS, Layers, Linear


class GELU(nn.Module):
    """down(gelu(up(x))), with the tanh approximation of GPT-2 and of Megatron's fused kernel."""

    def __init__(self, cfg: ModelConfig, layers: Layers = LAYERS):
        super().__init__()
        self.up = layers.column(cfg.hidden, cfg.mlp_width, cfg.linear_bias)
        self.down = layers.row(cfg.mlp_width, cfg.hidden, cfg.linear_bias)

    def forward(self, x_BTD: Tensor) -> Tensor:
        if in_inference_mode() and ONEDNN and x_BTD.device.type == "cpu" and isinstance(self.up, Linear):
            return self.down(gelu_product(x_BTD, self.up.weight, self.up.bias))
        return self.down(gelu(self.up(x_BTD)))


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)) (Shazeer 2020). Gate and up are two matrices and not a joint one, of which tensor
    parallelism could give a rank rows of gate alone."""

    def __init__(self, cfg: ModelConfig, layers: Layers = LAYERS):
        super().__init__()
        self.gate = layers.column(cfg.hidden, cfg.mlp_width, cfg.linear_bias)
        self.up = layers.column(cfg.hidden, cfg.mlp_width, cfg.linear_bias)
        self.down = layers.row(cfg.mlp_width, cfg.hidden, cfg.linear_bias)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x_BTD)) * self.up(x_BTD))


class GEGLU(SwiGLU):
    """down(gelu(gate(x)) * up(x)), tanh approximation (Shazeer 2020)."""

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.down(gelu(self.gate(x_BTD)) * self.up(x_BTD))


MLPS: dict[str, type[nn.Module]] = {"gelu": GELU, "swiglu": SwiGLU, "swiglu-unmatched": SwiGLU, "geglu": GEGLU}
assert set(MLPS) == set(get_args(get_type_hints(ModelConfig)["act"]))
