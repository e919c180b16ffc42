"""Causal attention: one score formula, three executors.

score[h, q, k] = rotate(q) . rotate(k) / sqrt(K) + bias(h, q, k) for k <= q, and minus infinity beyond. Where a sequence
has a prefix, its tokens are seen from everywhere: k <= q or k < prefix.

`plain` writes the scores out: it is the oracle, and in bf16 on a CPU it is also the fast one. `masked` hands bias and
mask to torch's attention, whose CPU kernel is the fast one in fp32. In both a bias costs nothing, because it is added
with the causal mask. `fused` gives the formula to FlexAttention, which compiles it into a flash kernel on a GPU (it has
no backward on a CPU).
"""

import functools
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from model.position import Position

ROWS = 128  # queries at a time in `plain`: in bf16 at 256 tokens 64 took 2% longer, all 256 at once 19% (one core)
Attend = Callable[..., Tensor]  # of q, k, v; and the layer's number, from 1, where QK layer scaling is on


@dataclass
class Places:
    """Where the tokens of a batch stand and what each sees, when that does not follow from their order
    (eval/tasks/score.py).

    at_BT: the position of each token. sees_BTS: whether a token (T) sees another: those of the past, then these
    (S = P + T). Each must see one at least.
    past: for each layer the keys and values [B, H, P, K] of tokens seen before; a forward pass appends its own, and
    at_BP has their positions. None keeps nothing.
    two_way: that sees_BTS lets the tokens of a context see each other both ways, as the prefix objective needs.
    """

    at_BT: Tensor
    sees_BTS: Tensor
    past: list[tuple[Tensor, Tensor]] | None = None
    at_BP: Tensor | None = None
    two_way: bool = False


def prepare(
    position: Position,
    heads: int,
    x_BTD: Tensor,
    dropout: float | None = None,
    places: Places | None = None,
    prefix_B: Tensor | None = None,
    qk_scaling: bool = False,
) -> Attend:
    """The attention that every layer of one forward pass shares, for inputs like `x_BTD`.

    `dropout` is the share of the attention probabilities that is dropped. The fused kernel cannot, so a GPU runs one of
    the others, also with 0, where nothing is dropped now: what is proved and judged is what trains. None: never.
    `prefix_B`: so many tokens of each sequence are seen from everywhere in it (none: causal).
    `qk_scaling`: see `plain`; in the others, scores are fp32 and never overflow.

    Returns a function of q, k, v, each [B, H, T, K], giving [B, H, T, K]. Positions act here and nowhere else in
    attention, so no layer can miss them.
    """
    if places:
        return placed(position, heads, x_BTD, places)
    if x_BTD.is_cuda and dropout is None and not qk_scaling:
        return fused(position, heads, x_BTD, prefix_B)
    executor = masked if x_BTD.dtype == torch.float32 and not qk_scaling else plain
    return executor(position, heads, x_BTD, dropout or 0.0, prefix_B)


def visible_bias(position: Position, heads: int, x_BTD: Tensor, prefix_B: Tensor | None = None) -> Tensor:
    """The bias, and minus infinity for what is not seen: [T, T], or [H, T, T] where heads differ; with a prefix
    [B, 1, T, T] or [B, H, T, T]."""
    T = x_BTD.shape[1]
    at = functools.partial(torch.arange, device=x_BTD.device)
    h, q, k = at(heads)[:, None, None], at(T)[:, None], at(T)
    seen = k <= q
    if prefix_B is not None:
        seen = seen | (k < prefix_B[:, None, None, None])
    return torch.where(seen, position.bias(h, q, k), -math.inf).to(x_BTD.dtype)


def plain(
    position: Position, heads: int, x_BTD: Tensor, dropout: float = 0.0, prefix_B: Tensor | None = None
) -> Attend:
    """Scores as a matrix product: of [B x H, T, T], the half that is seen is held in memory.

    With a `layer` above 1, QK layer scaling: scores are written divided by it, so that those of fp16 do not overflow,
    and multiplied back in fp32, where softmax is taken (Megatron's --apply-query-key-layer-scaling).
    """
    B, T, _ = x_BTD.shape
    bias = visible_bias(position, heads, x_BTD, prefix_B)
    # where heads or prefixes differ, one copy for each sequence of the batch serves all layers
    bias_NTT = bias.expand(B * heads, T, T) if bias.dim() == 2 else bias.expand(B, heads, T, T).reshape(-1, T, T)

    rows = ROWS if prefix_B is None else T  # with a prefix every query may see every key

    def attend(q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor, layer: int = 1) -> Tensor:
        q_BHTK, k_BHTK = position.rotate(q_BHTK, k_BHTK)
        q, k, v = (x.reshape(B * heads, T, -1) for x in (q_BHTK, k_BHTK, v_BHTK))
        return _Plain.apply(q, k, v, bias_NTT, rows, layer, dropout).view(B, heads, T, -1)

    return attend


class _Plain(torch.autograd.Function):
    """softmax(q k' / sqrt(K) + bias) v, some queries at a time: each block has keys up to its own last position only.

    Kept for the backward pass are the blocks of probabilities, and which of them dropout let through.
    """

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, rows: int, layer: int, dropout: float
    ) -> Tensor:
        ctx.rows, ctx.dropout, ctx.scale = rows, dropout, q.shape[-1] ** -0.5
        out, kept = [], []
        for start in range(0, q.shape[1], rows):
            block, seen = slice(start, start + rows), slice(start + rows)
            score = torch.baddbmm(
                bias[:, block, seen], q[:, block], k[:, seen].mT, beta=1 / layer, alpha=ctx.scale / layer
            )
            p = (score if layer == 1 else score.float() * layer).softmax(dim=-1).to(v.dtype)
            through = torch.empty_like(p, dtype=torch.bool).bernoulli_(1 - dropout) if dropout else None
            out.append(torch.bmm(_dropped(p, through, dropout), v[:, seen]))
            kept += [p, through]
        ctx.save_for_backward(q, k, v, *kept)
        return torch.cat(out, dim=1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, *kept = ctx.saved_tensors
        dq, dk, dv = [], torch.zeros_like(k), torch.zeros_like(v)
        for start, p, through in zip(range(0, q.shape[1], ctx.rows), kept[::2], kept[1::2], strict=True):
            block, seen = slice(start, start + ctx.rows), slice(start + ctx.rows)
            grad = grads[0][:, block]
            dp = _dropped(torch.bmm(grad, v[:, seen].mT), through, ctx.dropout)
            ds = torch._softmax_backward_data(dp, p, -1, p.dtype)
            dq.append(torch.bmm(ds, k[:, seen]))
            dk[:, seen] += torch.bmm(ds.mT, q[:, block])
            dv[:, seen] += torch.bmm(_dropped(p, through, ctx.dropout).mT, grad)
        return torch.cat(dq, dim=1).mul_(ctx.scale), dk.mul_(ctx.scale), dv, None, None, None, None


def _dropped(p: Tensor, through: Tensor | None, dropout: float) -> Tensor:
    return p if through is None else p * through / (1 - dropout)


def masked(
    position: Position, heads: int, x_BTD: Tensor, dropout: float = 0.0, prefix_B: Tensor | None = None
) -> Attend:
    """torch's scaled_dot_product_attention; with a float mask of three dimensions it would take its slow path."""
    T = x_BTD.shape[1]
    bias = visible_bias(position, heads, x_BTD, prefix_B)
    bias = bias if bias.dim() == 4 else bias.view(1, -1, T, T)

    def attend(q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor) -> Tensor:
        q, k = position.rotate(q_BHTK, k_BHTK)
        v = v_BHTK
        if q is not q_BHTK:
            # the three were parts of one tensor, and v alone would keep it all; the output takes the layout of q, and
            # in any but this one it would be kept twice, here and as the next layer reads it
            q, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, v))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout)

    return attend


def placed(position: Position, heads: int, x_BTD: Tensor, places: Places) -> Attend:
    """Tokens at any places, seeing what `places` says, and keys and values of earlier passes. No dropout."""
    B, T, _ = x_BTD.shape
    at_BT, past, passed = places.at_BT, places.past, itertools.count()
    at_BS = at_BT if places.at_BP is None else torch.cat((places.at_BP, at_BT), dim=1)
    h = torch.arange(heads, device=x_BTD.device)[:, None, None]
    bias = position.bias(h, at_BT[:, None, :, None], at_BS[:, None, None, :])
    bias = torch.where(places.sees_BTS[:, None], bias, -math.inf).to(x_BTD.dtype)  # [B, 1 or H, T, S]
    written_out = x_BTD.dtype != torch.float32 and not x_BTD.is_cuda  # see `prepare`
    if written_out:
        bias = bias.expand(B, heads, T, -1).reshape(B * heads, T, -1)

    def attend(q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor, layer: int = 1) -> Tensor:
        q_BHTK, k_BHTK = position.rotate(q_BHTK, k_BHTK, at_BT)
        if past is not None:
            i = next(passed)
            if i < len(past):
                k_BHTK, v_BHTK = (torch.cat(pair, dim=2) for pair in zip(past[i], (k_BHTK, v_BHTK), strict=True))
            past[i : i + 1] = [(k_BHTK, v_BHTK)]
        if not written_out:
            return F.scaled_dot_product_attention(q_BHTK, k_BHTK, v_BHTK, bias)
        q, k, v = (x.reshape(B * heads, x.shape[2], -1) for x in (q_BHTK, k_BHTK, v_BHTK))
        score_NTS = torch.baddbmm(bias, q, k.transpose(1, 2), alpha=1 / math.sqrt(q.shape[-1]))
        return torch.bmm(score_NTS.softmax(dim=-1), v).view(B, heads, T, -1)

    return attend


def fused(position: Position, heads: int, x_BTD: Tensor, prefix_B: Tensor | None = None) -> Attend:
    """FlexAttention with a causal block mask, or one for each sequence where they have a prefix."""
    from torch.nn.attention.flex_attention import flex_attention

    T = x_BTD.shape[1]
    flex: Any = _compiled_flex() if x_BTD.is_cuda else flex_attention
    block_mask = _causal_mask(T, x_BTD.device) if prefix_B is None else _prefix_mask(T, prefix_B)

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


def _prefix_mask(T: int, prefix_B: Tensor) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    def seen(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (k <= q) | (k < prefix_B[b])

    return create_block_mask(seen, len(prefix_B), None, T, T, device=prefix_B.device)
