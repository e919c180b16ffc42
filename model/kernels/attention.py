"""Attention that computes the matrix of scores, a block of queries at a time. In bf16 on a CPU it is faster than
torch's."""

from typing import Any

import torch
from torch import Tensor


def formula(q_NTK: Tensor, k_NTK: Tensor, v_NTK: Tensor, bias_NTT: Tensor) -> Tensor:
    """Attention in plain torch, the reference for the kernel of this file: softmax(q k' / sqrt(K) + bias) v for N =
    sequences x heads; the bias is minus infinity where a query does not see a key."""
    score_NTT = q_NTK @ k_NTK.mT / q_NTK.shape[-1] ** 0.5 + bias_NTT
    return score_NTT.softmax(dim=-1) @ v_NTK


def attend(
    q_NTK: Tensor, k_NTK: Tensor, v_NTK: Tensor, bias_NTT: Tensor, rows: int, layer: int = 1, dropout: float = 0.0
) -> Tensor:
    """Compute attention, softmax(q k' / sqrt(K) + bias) v, in blocks of `rows` queries.

    A block uses no keys after its last query. So `rows` must be T where a query may see a later key.

    Args:
        q_NTK, k_NTK, v_NTK: queries, keys and values of N = sequences x heads.
        bias_NTT: added to the scores; minus infinity where a query does not see a key. It gets a gradient where it
            requires one.
        rows: queries in a block.
        layer: the layer's number for QK layer scaling: scores are computed divided by it, so that they do not overflow
            in fp16, and multiplied by it in fp32 before softmax (Megatron's --apply-query-key-layer-scaling). 1: no
            scaling.
        dropout: the share of the probabilities that is dropped.
    """
    return _Attention.apply(q_NTK, k_NTK, v_NTK, bias_NTT, rows, layer, dropout)


class _Attention(torch.autograd.Function):
    """Attention with its gradient. It stores the blocks of probabilities and the dropout masks for the backward
    pass."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, rows: int, layer: int, dropout: float
    ) -> Tensor:
        ctx.rows, ctx.dropout, ctx.scale = rows, dropout, q.shape[-1] ** -0.5
        out, saved = [], []
        for start in range(0, q.shape[1], rows):
            block, visible = slice(start, start + rows), slice(start + rows)
            score = torch.baddbmm(
                bias[:, block, visible], q[:, block], k[:, visible].mT, beta=1 / layer, alpha=ctx.scale / layer
            )
            p = (score if layer == 1 else score.float() * layer).softmax(dim=-1).to(v.dtype)
            kept = torch.empty_like(p, dtype=torch.bool).bernoulli_(1 - dropout) if dropout else None
            out.append(torch.bmm(_apply_dropout(p, kept, dropout), v[:, visible]))
            saved += [p, kept]
        ctx.save_for_backward(q, k, v, *saved)
        return torch.cat(out, dim=1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, *saved = ctx.saved_tensors
        dq, dk, dv = [], torch.zeros_like(k), torch.zeros_like(v)
        dbias = q.new_zeros(len(q), q.shape[1], k.shape[1]) if ctx.needs_input_grad[3] else None
        for start, p, kept in zip(range(0, q.shape[1], ctx.rows), saved[::2], saved[1::2], strict=True):
            block, visible = slice(start, start + ctx.rows), slice(start + ctx.rows)
            grad = grads[0][:, block]
            dp = _apply_dropout(torch.bmm(grad, v[:, visible].mT), kept, ctx.dropout)
            ds = torch._softmax_backward_data(dp, p, -1, p.dtype)
            dq.append(torch.bmm(ds, k[:, visible]))
            dk[:, visible] += torch.bmm(ds.mT, q[:, block])
            dv[:, visible] += torch.bmm(_apply_dropout(p, kept, ctx.dropout).mT, grad)
            if dbias is not None:
                dbias[:, block, visible] = ds
        return torch.cat(dq, dim=1).mul_(ctx.scale), dk.mul_(ctx.scale), dv, dbias, None, None, None


def _apply_dropout(p: Tensor, kept: Tensor | None, dropout: float) -> Tensor:
    """Zero the dropped probabilities, and divide the rest by 1 - `dropout`. `p`: probabilities, or their gradients;
    `kept`: bool, True where a probability is kept; None: no dropout."""
    return p if kept is None else p * kept / (1 - dropout)
