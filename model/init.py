"""Initial weights: each parameter is drawn from the seed and its own name.

So two models with the same seed share every weight whose name and shape they have in common.

| parameter                                         | drawn from              | source                              |
|---------------------------------------------------|-------------------------|-------------------------------------|
| embed.weight, position.table                      | N(0, std)               | GPT-2; std 0.02 is Megatron's default |
| attn.qkv.weight, mlp.up.weight, mlp.gate.weight   | N(0, std)               | GPT-2                               |
| attn.proj.weight, mlp.down.weight                 | N(0, std / sqrt(2 L))   | GPT-2: they feed the residual stream |
| head.weight, where it is not the embedding        | N(0, std)               | as the embedding                    |
| transform.dense.weight                            | N(0, std)               | BERT                                |
| norm gains (.weight of norm, norm1, norm2, embnorm, sumnorm) | 1            |                                     |
| position.scale                                    | 1 / sqrt(D)             | Hua et al. 2022                     |
| all biases                                        | 0                       |                                     |
"""

import hashlib
import math

import torch
from torch import nn

from model.config import ModelConfig
from model.shard import SINGLE_RANK, RankGroup, full_shape, shard


@torch.no_grad()
def initialise(model: nn.Module, cfg: ModelConfig, seed: int, tp: RankGroup = SINGLE_RANK) -> None:
    """Draw all parameters of a model (model.gpt.GPT) in place, on the CPU in fp32, so that they are the same on every
    device.

    Under tensor parallelism each rank draws whole parameters and keeps its part, so that the weights are the same
    whatever the number of ranks. Raises ValueError where a parameter is not in the table at the top of model/init.py.
    """
    for name, p in model.named_parameters():
        module, _, kind = name.rpartition(".")
        owner = module.rpartition(".")[2]
        if kind == "bias":
            p.zero_()
        elif owner in ("norm", "norm1", "norm2", "embnorm", "sumnorm"):
            p.fill_(1.0)
        elif name == "position.scale":
            p.fill_(cfg.hidden**-0.5)
        elif owner in ("proj", "down"):
            _draw_normal(p, cfg.init_std / math.sqrt(2 * cfg.layers), seed, name, tp)
        elif owner in ("embed", "position", "qkv", "up", "gate", "head", "dense"):
            _draw_normal(p, cfg.init_std, seed, name, tp)
        else:
            raise ValueError(f"model/init.py does not say how {name} is drawn")


def _draw_normal(p: torch.Tensor, std: float, seed: int, name: str, tp: RankGroup) -> None:
    if p.is_meta:  # counting only
        return
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    full = torch.empty(full_shape(name, p.shape, tp.size), dtype=torch.float32).normal_(0.0, std, generator=generator)
    p.copy_(shard(name, full, tp.rank, tp.size))
