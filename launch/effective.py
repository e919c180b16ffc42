"""What a live engine would do, read from it and not from the configuration.

`engine` is a launch.engine.Engine.
"""

import math
from typing import Any

import torch
from torch import Tensor

from model import proof


def groups(engine: Any) -> list[dict[str, Any]]:
    """The optimizer's parameter groups as DeepSpeed holds them: the model's parameters and their weight decay."""
    optimizer = engine.ds.optimizer
    held = optimizer.bf16_groups if hasattr(optimizer, "bf16_groups") else optimizer.bit16_groups
    return [
        {"params": list(params), "weight_decay": group["weight_decay"]}
        for params, group in zip(held, optimizer.param_groups, strict=True)
    ]


def effective(engine: Any) -> dict[str, Any]:
    """What the live engine and model would do, in the configuration's own terms, read from them and not from it."""
    groups = engine.ds.optimizer.param_groups
    one = {k: {g[k] if k != "betas" else tuple(g[k]) for g in groups} for k in ("eps", "betas")}
    decays = {g["weight_decay"] for g in groups} - {0.0} or {0.0}
    (eps,), (betas,), (decay,) = one["eps"], one["betas"], decays
    dtypes = {p.dtype for p in engine.model.parameters()}
    blocks, cfg, tp = engine.model.blocks, engine.model.cfg, engine.model.tp
    embed = tp.gather("embed.weight", engine.model.embed.weight)
    scaling = {}
    if torch.float16 in dtypes:
        scaler = engine.ds.optimizer.loss_scaler
        scaling = {
            "train.loss_scale_power": math.log2(scaler.cur_scale),
            "train.loss_scale_window": scaler.scale_window,
            "train.loss_scale_hysteresis": scaler.delayed_shift,
            "train.loss_scale_min": scaler.min_scale,
        }
    return scaling | {
        "train.batch": engine.ds.train_batch_size(),
        "train.clip": engine.ds.gradient_clipping(),
        "train.eps": eps,
        "train.beta1": betas[0],
        "train.beta2": betas[1],
        "train.weight_decay": decay,
        "train.precision": proof.precision(engine.model).value,
        "model.layers": len(blocks),
        "model.hidden": engine.model.embed.embedding_dim,
        "model.vocab_multiple": cfg.vocab_multiple if len(embed) == cfg.padded_vocab else "other",
        "model.heads": blocks[0].attn.heads * tp.size,
        "model.norm_eps": blocks[0].norm1.eps,
        "model.init_std": cfg.init_std if _std_is(embed, cfg.init_std) else "another",
        "layout.tp": tp.size,
    }


def _std_is(weight: Tensor, std: float) -> bool:
    return abs(float(weight.detach().float().std()) / std - 1) < 0.05
