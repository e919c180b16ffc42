"""Causal attention: one score formula, three executors.

score[h, q, k] = rotate(q) . rotate(k) / sqrt(K) + bias(h, q, k) for k <= q, and minus infinity beyond.

`plain` writes the scores out: it is the oracle, and in bf16 on a CPU it is also the fast one. `masked` hands bias and
mask to torch's attention, whose CPU kernel is the fast one in fp32. In both a bias costs nothing, because it is added
with the causal mask. `fused` gives the formula to FlexAttention, which compiles it into a flash kernel on a GPU (it has
no backward on a CPU).
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from model.position import Position

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def prepare(position: Position, heads: int, x_BTD: Tensor, dropout: float = 0.0) -> Attend:
    """The attention that every layer of one forward pass shares, for inputs like `x_BTD`.

    `dropout` is the share of the attention probabilities that is dropped; the fused kernel cannot, so with it a GPU
    runs one of the others.

    Returns a function of q, k, v, each [B, H, T, K], giving [B, H, T, K]. Positions act here and nowhere else in
    attention, so no layer can miss them.
    """
    if x_BTD.is_cuda and not dropout:
        return fused(position, heads, x_BTD)
    return (masked if x_BTD.dtype == torch.float32 else plain)(position, heads, x_BTD, dropout)


def causal_bias(position: Position, heads: int, x_BTD: Tensor) -> Tensor:
    """The bias, and minus infinity for the future: [T, T], or [H, T, T] where heads differ."""
    T = x_BTD.shape[1]
    at = functools.partial(torch.arange, device=x_BTD.device)
    h, q, k = at(heads)[:, None, None], at(T)[:, None], at(T)
    return torch.where(k <= q, position.bias(h, q, k), -math.inf).to(x_BTD.dtype)


def plain(position: Position, heads: int, x_BTD: Tensor, dropout: float = 0.0) -> Attend:
    """Scores as a matrix product: [B x H, T, T] is held in memory."""
    B, T, _ = x_BTD.shape
    bias = causal_bias(position, heads, x_BTD)
    # where heads differ, one copy for each sequence of the batch serves all layers
    bias_NTT = bias.expand(B * heads, T, T) if bias.dim() == 2 else bias.repeat(B, 1, 1)

    def attend(q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor) -> Tensor:
        q_BHTK, k_BHTK = position.rotate(q_BHTK, k_BHTK)
        q, k, v = (x.reshape(B * heads, T, -1) for x in (q_BHTK, k_BHTK, v_BHTK))
        score_NTT = torch.baddbmm(bias_NTT, q, k.transpose(1, 2), alpha=q.shape[-1] ** -0.5)
        return torch.bmm(F.dropout(score_NTT.softmax(dim=-1), dropout), v).view(B, heads, T, -1)

    return attend


def masked(position: Position, heads: int, x_BTD: Tensor, dropout: float = 0.0) -> Attend:
    """torch's scaled_dot_product_attention; with a float mask of three dimensions it would take its slow path."""
    T = x_BTD.shape[1]
    bias = causal_bias(position, heads, x_BTD).view(1, -1, T, T)

    def attend(q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor) -> Tensor:
        q_BHTK, k_BHTK = position.rotate(q_BHTK, k_BHTK)
        return F.scaled_dot_product_attention(q_BHTK, k_BHTK, v_BHTK, attn_mask=bias, dropout_p=dropout)

    return attend


def fused(position: Position, heads: int, x_BTD: Tensor) -> Attend:
    """FlexAttention with a causal block mask."""
    from torch.nn.attention.flex_attention import flex_attention

    T = x_BTD.shape[1]
    flex: Any = _compiled_flex() if x_BTD.is_cuda else flex_attention
    block_mask = _causal_mask(T, x_BTD.device)

    def score(s: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return s + position.bias(h, q, k).to(s.dtype)

    def attend(q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor) -> Tensor:
        q_BHTK, k_BHTK = position.rotate(q_BHTK, k_BHTK)
        return flex(q_BHTK, k_BHTK, v_BHTK, score_mod=score, block_mask=block_mask)

    return attend


@functools.cache
def _compiled_flex() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention)


@functools.lru_cache(maxsize=8)
def _causal_mask(T: int, device: torch.device) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    return create_block_mask(lambda b, h, q, k: k <= q, None, None, T, T, device=device)
