"""Normalisations: torch's LayerNorm and RMSNorm, which have fused kernels. Both take (width, eps)."""

from typing import get_args, get_type_hints

from torch import nn

from model.config import ModelConfig

NORMS: dict[str, type[nn.Module]] = {"layernorm": nn.LayerNorm, "rmsnorm": nn.RMSNorm}
assert set(NORMS) == set(get_args(get_type_hints(ModelConfig)["norm"]))
