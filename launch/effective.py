"""Reads the settings in effect from the engine and its model, to be compared with the configured ones."""

from typing import Any

from torch import Tensor, nn

from model import proof
from model.norm import NORMS

NORM_CLASSES: tuple[type[nn.Module], ...] = (nn.LayerNorm, *NORMS.values())  # embnorm is always a LayerNorm


def settings_in_effect(engine: Any) -> dict[str, Any]:
    """Read the settings in effect from the engine and its model. Returns {setting: value in effect}, with names as in
    the configuration, such as "model.layers". All ranks call this function together.

    Three values are a text, such as "other", where they differ from the configuration: model.norm_eps,
    model.vocab_multiple and model.init_std. The caller's comparison with the configuration then fails.

    `engine`: a launch.engine.Engine before its first step.
    """
    blocks, cfg, tp = engine.model.blocks, engine.model.cfg, engine.model.tp
    embed = tp.gather("embed.weight", engine.model.embed.weight)
    norms: list[Any] = [module for module in engine.model.modules() if isinstance(module, NORM_CLASSES)]
    epsilons = sorted({norm.eps for norm in norms})
    return engine.settings_in_effect() | {
        "train.precision": proof.prove_precision(engine.model).value,
        "model.layers": len(blocks),
        "model.hidden": engine.model.embed.embedding_dim,
        "model.vocab_multiple": cfg.vocab_multiple if len(embed) == cfg.padded_vocab else "other",
        "model.heads": blocks[0].attn.heads * tp.size,
        "model.norm_eps": epsilons[0] if len(epsilons) == 1 else f"not the same in all norms: {epsilons}",
        "model.init_std": cfg.init_std if _has_standard_deviation(embed, cfg.init_std) else "another",
        "layout.tp": tp.size,
    }


def _has_standard_deviation(weight: Tensor, std: float) -> bool:
    """Whether a weight's standard deviation is `std`, within 5 %."""
    return abs(float(weight.detach().float().std()) / std - 1) < 0.05
