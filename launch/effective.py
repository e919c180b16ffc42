"""What a live engine would do, read from it and its model and not from the configuration."""

from typing import Any

from torch import Tensor, nn

from model import proof
from model.norm import NORMS

NORM_CLASSES: tuple[type[nn.Module], ...] = (nn.LayerNorm, *NORMS.values())  # embnorm is always a LayerNorm


def effective(engine: Any) -> dict[str, Any]:
    """What a launch.engine.Engine and its model would do, in the configuration's own terms."""
    blocks, cfg, tp = engine.model.blocks, engine.model.cfg, engine.model.tp
    embed = tp.gather("embed.weight", engine.model.embed.weight)
    in_norms: list[Any] = [module.eps for module in engine.model.modules() if isinstance(module, NORM_CLASSES)]
    epsilons = sorted(set(in_norms))
    return engine.held_settings() | {
        "train.precision": proof.precision(engine.model).value,
        "model.layers": len(blocks),
        "model.hidden": engine.model.embed.embedding_dim,
        "model.vocab_multiple": cfg.vocab_multiple if len(embed) == cfg.padded_vocab else "other",
        "model.heads": blocks[0].attn.heads * tp.size,
        "model.norm_eps": epsilons[0] if len(epsilons) == 1 else f"not the same in all norms: {epsilons}",
        "model.init_std": cfg.init_std if _std_is(embed, cfg.init_std) else "another",
        "layout.tp": tp.size,
    }


def _std_is(weight: Tensor, std: float) -> bool:
    return abs(float(weight.detach().float().std()) / std - 1) < 0.05
