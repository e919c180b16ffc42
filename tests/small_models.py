"""Small models of every variant, for the tests of models. Ranks import it too, so that it must import nothing slow."""

import itertools
from dataclasses import asdict, replace

import torch

from model.config import ModelConfig
from model.gpt import BLOCKS, GPT
from model.mlp import MLPS
from model.norm import NORMS
from model.objective import Batch
from model.position import POSITIONS

SMALL = ModelConfig(
    layers=2,
    hidden=48,
    heads=6,
    seq=32,
    vocab=120,
    pos="learned",
    act="gelu",
    norm="layernorm",
    embnorm=False,
    block="pre-ln",
    qkv_bias=True,
    linear_bias=True,
    tied=True,
    dropout=0.0,
    attn_dropout=0.0,
    rotary_base=10000.0,
    init_std=0.02,
    norm_eps=1e-5,
    vocab_multiple=128,
    objective="causal",
    mask_rate=0.15,
    ffn_width=0,
    sumnorm=False,
    final_norm=True,
    head_transform="none",
    output_bias=False,
    qk_scaling=False,
)
VARIANTS = [
    replace(SMALL, pos=pos, act=act, norm=norm, embnorm=embnorm)
    for pos, act, norm, embnorm in itertools.product(POSITIONS, MLPS, NORMS, (False, True))
] + [
    replace(SMALL, pos="rotary", block=block, act=act, norm=norm, qkv_bias=not bare, linear_bias=bare, tied=bare)
    for block, act, norm, bare in itertools.product(BLOCKS, ("gelu", "geglu"), NORMS, (False, True))
]


def name(cfg: ModelConfig) -> str:
    """A name for a configuration: the settings that differ from SMALL, such as "pos=alibi,act=swiglu"."""
    changed = [f"{k}={v}" for k, v in asdict(cfg).items() if v != getattr(SMALL, k)]
    return ",".join(changed) or "baseline"


def tokens(cfg: ModelConfig, T: int, B: int = 3) -> torch.Tensor:
    """Random token ids [B, T], the same in every call."""
    return torch.randint(cfg.vocab, (B, T), generator=torch.Generator().manual_seed(0))


def next_tokens(rows: torch.Tensor) -> Batch:
    """The batch of a causal model: `rows` [B, T + 1] as inputs [B, T] and targets [B, T], shifted by one token."""
    return Batch(rows[:, :-1], rows[:, 1:])


def scrambled(model: GPT) -> GPT:
    """Add noise to every parameter of a model, in place, so that a missing gain or bias changes the outputs."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=generator) * 0.1)
    return model
