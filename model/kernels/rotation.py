"""Rotation of queries and keys, for rotary positions. Its gradient is the inverse rotation."""

from typing import Any

import torch
from torch import Tensor


def formula(x_BHTK: Tensor, cos_TK: Tensor, sin_TK: Tensor) -> Tensor:
    """Rotate queries or keys in plain torch, the reference for the kernel of this file: coordinates i and i + K/2, a
    pair (a, b), become (a cos - b sin, b cos + a sin)."""
    half = x_BHTK.shape[-1] // 2
    a, b = x_BHTK[..., :half], x_BHTK[..., half:]
    cos, sin = cos_TK[..., :half], sin_TK[..., :half]
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


def rotate(x_BHTK: Tensor, cos_TK: Tensor, sin_TK: Tensor) -> Tensor:
    """Rotate queries or keys as `formula` does, in two passes over the numbers. `x_BHTK`: queries or keys; `cos_TK`,
    `sin_TK`: cosines and sines of the angles, the same in both halves of the K coordinates."""
    return _Rotation.apply(x_BHTK, cos_TK, sin_TK)


class _Rotation(torch.autograd.Function):
    """The rotation with a hand-written gradient, which takes half as many passes over the numbers as autograd's."""

    @staticmethod
    def forward(ctx: Any, x_BHTK: Tensor, cos_TK: Tensor, sin_TK: Tensor) -> Tensor:
        ctx.save_for_backward(cos_TK, sin_TK)
        return _rotate_by_sign(x_BHTK, cos_TK, sin_TK, 1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        cos_TK, sin_TK = ctx.saved_tensors
        return _rotate_by_sign(grads[0], cos_TK, sin_TK, -1), None, None


def _rotate_by_sign(x_BHTK: Tensor, cos_TK: Tensor, sin_TK: Tensor, sign: int) -> Tensor:
    x_BHTK = x_BHTK.contiguous()  # as attention wants it; torch's loops over the products are then long
    a, b = x_BHTK.chunk(2, dim=-1)
    return torch.addcmul(x_BHTK * cos_TK, torch.cat((-b, a), dim=-1), sin_TK, value=sign)
