"""Attention: one formula for the scores, and several functions that compute it.

score[h, q, k] = rotate(q) . rotate(k) / sqrt(K) + bias(h, q, k) where query q sees key k, and minus infinity elsewhere.
The objective defines which keys a query sees (`Objective.sees`): where it is causal, k <= q.

| function             | how it computes                                | where it is used                        |
|----------------------|------------------------------------------------|-----------------------------------------|
| `plain_attention`    | the matrix of scores; the reference in tests   | in bf16 on a CPU: the fastest there     |
| `masked_attention`   | torch's attention, bias and mask in one tensor | in fp32 on a CPU: the fastest there     |
| `maskless_attention` | torch's attention without a mask tensor        | on a GPU, for schemes without a bias    |
| `flexattention`      | FlexAttention, compiled to a Triton kernel     | on a GPU, for any scheme                |
| `arranged_attention` | as one of the first two                        | in evaluation, for an `Arrangement`     |

Without a mask tensor, torch may use its cuDNN and flash kernels. FlexAttention has no backward pass on a CPU.
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
from torch.nn.attention import SDPBackend, sdpa_kernel

from model.inference import in_inference_mode
from model.kernels import attention as kernel
from model.objective import Objective
from model.position import Position

# Queries at a time in `plain_attention`: in bf16 at 256 tokens 64 took 2% longer, all 256 at once 19% (one core).
QUERIES_AT_ONCE = 128
# Queries at a time in `masked_attention` while text is scored, with the keys up to the last of them. ALiBi at nano over
# inputs of up to 1024 tokens (one core, other work beside it): all at once took 1.24 times as long; 128 or 512 as long.
QUERIES_AT_ONCE_IN_SCORING = 256
Attend = Callable[..., Tensor]  # of q, k, v; and the layer's number, from 1, where QK layer scaling is on

# The kernels of torch's attention that need no mask tensor: launch/attention_kernel.py times them beside Flex.
TORCH_KERNELS = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}
FLEX = "flex"
# Not "AUTO", which gives inputs of fewer than 128 tokens to another kernel: the proofs would measure one that does not
# train.
FLEX_OPTIONS = {"BACKEND": "TRITON"}


@dataclass
class Arrangement:
    """The positions of a batch's tokens, and which tokens each one sees, where these do not follow from the order of
    tokens. Used in evaluation, for sequences that share a row of the batch (eval/tasks/rows.py), and for a key-value
    cache.

    positions_BT: the position of each token.
    sees_BTS: bool, at [b, t, s] whether token t of sequence b sees token s. The S tokens are the P cached ones, then
        the T of the batch. Each token has to see at least one.
    past: the key-value cache: for each layer the keys and values of earlier tokens, each [B, H, P, K]. A forward pass
        appends those of the batch. An empty list: begin a cache. None: no cache.
    past_positions_BP: the positions of the cached tokens; None: nothing is cached.
    """

    positions_BT: Tensor
    sees_BTS: Tensor
    past: list[tuple[Tensor, Tensor]] | None = None
    past_positions_BP: Tensor | None = None


def make_attention(
    position: Position,
    heads: int,
    x_BTD: Tensor,
    dropout: float | None = None,
    arrangement: Arrangement | None = None,
    objective: Objective | None = None,
    extents_B: Tensor | None = None,
    qk_scaling: bool = False,
    kernel_name: str | None = None,
) -> Attend:
    """Make the attention function that all layers of one forward pass share. It is the fastest for the device, the
    precision and the arguments.

    The returned function contains all effects of positions on attention, so that no layer can miss them.

    Args:
        position: the position scheme, which rotates queries and keys or adds a bias to the scores.
        heads: attention heads on this rank.
        x_BTD: the input of the first layer; its shape, precision and device are read.
        dropout: the share of the attention probabilities that is dropped. None: this model never drops any. With a
            number, even 0, a GPU uses a kernel that can drop, so that evaluation and proofs use the kernel that trains.
        arrangement: positions of the tokens and what each sees; None: both follow from the order of tokens.
        objective: which tokens see each other; needed where there is no arrangement.
        extents_B: [B], the length of each sequence's prefix under the prefix objective; None under the others.
        qk_scaling: whether to avoid overflow in fp16: scores are computed divided by the layer's number, and multiplied
            by it in fp32. Functions that compute scores in fp32 ignore it.
        kernel_name: the kernel on a GPU: "cudnn", "flash", "efficient" or "flex"; None: torch chooses. Only "flex" is
            used where `can_skip_mask_tensor` is false.

    Returns:
        A function of q, k and v, each [B, H, T, K], with the result [B, H, T, K]. With `qk_scaling` it takes the
        layer's number, `layer`, too.
    """
    if arrangement:
        return arranged_attention(position, heads, x_BTD, arrangement, dropout or 0.0)
    assert objective is not None
    if x_BTD.is_cuda and dropout is None and not qk_scaling:
        if kernel_name != FLEX and can_skip_mask_tensor(position, extents_B):
            return maskless_attention(position, objective, kernel_name)
        return flexattention(position, heads, x_BTD, objective, extents_B)
    executor = masked_attention if x_BTD.dtype == torch.float32 and not qk_scaling else plain_attention
    return executor(position, heads, x_BTD, objective, extents_B, dropout or 0.0)


def masked_bias(
    position: Position,
    heads: int,
    x_BTD: Tensor,
    objective: Objective,
    extents_B: Tensor | None = None,
    queries: range | None = None,
) -> Tensor:
    """The bias that is added to the scores, with minus infinity where a query does not see a key.

    Args:
        position: the position scheme.
        heads: attention heads on this rank.
        x_BTD: [B, T, D]; its shape, precision and device are read.
        objective: which tokens see each other.
        extents_B: the lengths of prefixes under the prefix objective, else None.
        queries: a range of Q positions, for which alone the bias is returned; None: all T.

    Returns:
        [Q, S]; [H, Q, S] where heads differ; [B, 1, Q, S] or [B, H, Q, S] where sequences differ. Without `queries`
        both Q and S are T. With `queries`, S is `queries.stop`, so that keys after the last query are left out.
    """
    B, T, _ = x_BTD.shape
    at = functools.partial(torch.arange, device=x_BTD.device)
    queries = queries or range(T)
    b, h = at(B)[:, None, None, None], at(heads)[:, None, None]
    q, k = at(queries.start, queries.stop)[:, None], at(queries.stop)
    seen = objective.sees(extents_B, b, q, k)
    return torch.where(seen, position.bias(h, q, k), -math.inf).to(x_BTD.dtype)


def plain_attention(
    position: Position,
    heads: int,
    x_BTD: Tensor,
    objective: Objective,
    extents_B: Tensor | None = None,
    dropout: float = 0.0,
) -> Attend:
    """Make an attention function, of q, k and v [B, H, T, K], that computes the matrix of scores, a block of queries at
    a time. Under a causal objective a block has no scores of keys after its last query.

    Arguments as for `make_attention`. The returned function also takes the number of the layer, for QK layer scaling.
    """
    B, T, _ = x_BTD.shape
    bias = masked_bias(position, heads, x_BTD, objective, extents_B)
    # where heads or sequences differ, one copy for each sequence of the batch serves all layers
    bias_NTT = bias.expand(B * heads, T, T) if bias.dim() == 2 else bias.expand(B, heads, T, T).reshape(-1, T, T)

    rows = QUERIES_AT_ONCE if objective.causal else T  # otherwise every query may see every key

    def attend(q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor, layer: int = 1) -> Tensor:
        q_BHTK, k_BHTK = position.rotate(q_BHTK, k_BHTK)
        q, k, v = (x.reshape(B * heads, T, -1) for x in (q_BHTK, k_BHTK, v_BHTK))
        return kernel.attend(q, k, v, bias_NTT, rows, layer, dropout).view(B, heads, T, -1)

    return attend


def masked_attention(
    position: Position,
    heads: int,
    x_BTD: Tensor,
    objective: Objective,
    extents_B: Tensor | None = None,
    dropout: float = 0.0,
) -> Attend:
    """Make an attention function, of q, k and v [B, H, T, K], that calls torch's scaled_dot_product_attention with bias
    and mask in one float tensor. The tensor has four dimensions, since torch is slow with three.

    Arguments as for `make_attention`. When a causal model scores text, queries are divided into blocks of
    QUERIES_AT_ONCE_IN_SCORING; a block gets no keys after its last query.
    """
    T = x_BTD.shape[1]
    rows = QUERIES_AT_ONCE_IN_SCORING if objective.causal and in_inference_mode() else T
    blocks = [range(start, min(start + rows, T)) for start in range(0, T, rows)]
    biases = [masked_bias(position, heads, x_BTD, objective, extents_B, block) for block in blocks]
    biases = [bias if bias.dim() == 4 else bias.view(1, -1, *bias.shape[-2:]) for bias in biases]

    def attend(q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor) -> Tensor:
        q, k = position.rotate(q_BHTK, k_BHTK)
        v = v_BHTK
        if q is not q_BHTK:
            # the three were parts of one tensor, and v alone would keep it all; the output takes the layout of q, and
            # in any but this one it would be kept twice, here and as the next layer reads it
            q, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, v))
        if len(blocks) == 1:
            return F.scaled_dot_product_attention(q, k, v, attn_mask=biases[0], dropout_p=dropout)
        out_BTHK = q.new_empty(len(q), T, heads, q.shape[-1])
        for block, bias in zip(blocks, biases, strict=True):
            of_block, visible = slice(block.start, block.stop), slice(block.stop)
            out_BHTK = F.scaled_dot_product_attention(
                q[:, :, of_block], k[:, :, visible], v[:, :, visible], attn_mask=bias, dropout_p=dropout
            )
            out_BTHK[:, of_block] = out_BHTK.transpose(1, 2)
        return out_BTHK.transpose(1, 2)

    return attend


def can_skip_mask_tensor(position: Position, extents_B: Tensor | None) -> bool:
    """Whether `maskless_attention` applies: the position scheme adds nothing to the scores, and all sequences have the
    same mask. `extents_B`: the lengths of prefixes under the prefix objective, else None."""
    return not position.has_bias and extents_B is None


def maskless_attention(
    position: Position, objective: Objective, kernel_name: str | None = None, allow_plain: bool = True
) -> Attend:
    """Make an attention function that calls torch's scaled_dot_product_attention without a mask tensor. A query sees
    all keys up to its own position under a causal objective, else all keys.

    Args:
        position: a position scheme without a bias.
        objective: which tokens see each other.
        kernel_name: the kernel to use, "cudnn", "flash" or "efficient"; None: torch chooses.
        allow_plain: whether torch may use its plain attention where no allowed kernel supports the shape or precision.
            If not, the returned function raises RuntimeError there.
    """
    backends = list(TORCH_KERNELS.values()) if kernel_name is None else [TORCH_KERNELS[kernel_name]]
    if allow_plain:
        backends.append(SDPBackend.MATH)

    def attend(q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor) -> Tensor:
        q_BHTK, k_BHTK = position.rotate(q_BHTK, k_BHTK)
        with sdpa_kernel(backends):
            return F.scaled_dot_product_attention(q_BHTK, k_BHTK, v_BHTK, is_causal=objective.causal)

    return attend


def arranged_attention(
    position: Position, heads: int, x_BTD: Tensor, arrangement: Arrangement, dropout: float = 0.0
) -> Attend:
    """Make an attention function, of q, k and v [B, H, T, K], for tokens at given positions or with a key-value cache.
    A token attends to those tokens, cached or of the batch, for which `arrangement.sees_BTS` is true. Arguments as for
    `make_attention`."""
    B, T, _ = x_BTD.shape
    positions_BT, past, passed = arrangement.positions_BT, arrangement.past, itertools.count()
    at_BS = (
        positions_BT
        if arrangement.past_positions_BP is None
        else torch.cat((arrangement.past_positions_BP, positions_BT), dim=1)
    )
    h = torch.arange(heads, device=x_BTD.device)[:, None, None]
    bias = position.bias(h, positions_BT[:, None, :, None], at_BS[:, None, None, :])
    bias = torch.where(arrangement.sees_BTS[:, None], bias, -math.inf).to(x_BTD.dtype)  # [B, 1 or H, T, S]
    written_out = x_BTD.dtype != torch.float32 and not x_BTD.is_cuda  # see `make_attention`
    if written_out:
        bias = bias.expand(B, heads, T, -1).reshape(B * heads, T, -1)

    def attend(q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor, layer: int = 1) -> Tensor:
        q_BHTK, k_BHTK = position.rotate(q_BHTK, k_BHTK, positions_BT)
        if past is not None:
            i = next(passed)
            if i < len(past):
                k_BHTK, v_BHTK = (torch.cat(pair, dim=2) for pair in zip(past[i], (k_BHTK, v_BHTK), strict=True))
            past[i : i + 1] = [(k_BHTK, v_BHTK)]
        if not written_out:
            return F.scaled_dot_product_attention(q_BHTK, k_BHTK, v_BHTK, bias, dropout)
        q, k, v = (x.reshape(B * heads, x.shape[2], -1) for x in (q_BHTK, k_BHTK, v_BHTK))
        score_NTS = torch.baddbmm(bias, q, k.transpose(1, 2), alpha=1 / math.sqrt(q.shape[-1]))
        return torch.bmm(F.dropout(score_NTS.softmax(dim=-1), dropout), v).view(B, heads, T, -1)

    return attend


def flexattention(
    position: Position, heads: int, x_BTD: Tensor, objective: Objective, extents_B: Tensor | None = None
) -> Attend:
    """Make an attention function, of q, k and v [B, H, T, K], that calls FlexAttention. All sequences have the same
    block mask, or with `extents_B` each its own. Arguments as for `make_attention`; `heads` is ignored."""
    from torch.nn.attention.flex_attention import flex_attention

    T = x_BTD.shape[1]
    flex: Any = _compiled_flex() if x_BTD.is_cuda else flex_attention
    if extents_B is None:
        block_mask = shared_block_mask(objective, T, x_BTD.device)
    else:
        block_mask = _block_mask_by_sequence(objective.sees, T, extents_B)

    def score(s: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return s + position.bias(h, q, k).to(s.dtype)

    score_mod = score if position.has_bias else None

    def attend(q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor) -> Tensor:
        q_BHTK, k_BHTK = position.rotate(q_BHTK, k_BHTK)
        return flex(q_BHTK, k_BHTK, v_BHTK, score_mod=score_mod, block_mask=block_mask, kernel_options=FLEX_OPTIONS)

    return attend


@functools.cache
def _compiled_flex() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention)


BLOCK_MASKS: dict[tuple[Any, ...], Any] = {}  # by objective, length and device


def shared_block_mask(objective: Objective, T: int, device: torch.device) -> Any:
    """FlexAttention's block mask for T tokens, where all sequences have the same mask. It is made once and cached.

    Call this function before a forward pass is compiled: a compiled graph without a cached mask makes it in every
    forward pass.
    """
    from torch.nn.attention.flex_attention import create_block_mask

    key = (type(objective), T, device)
    if key in BLOCK_MASKS:
        return BLOCK_MASKS[key]
    sees = objective.sees
    block_mask = create_block_mask(lambda b, h, q, k: sees(None, b, q, k), None, None, T, T, device=device)
    if not torch.compiler.is_compiling():
        BLOCK_MASKS[key] = block_mask
    return block_mask


def prepare_block_mask(objective: Objective, T: int, device: torch.device) -> None:
    """Make and cache the block mask for a compiled forward pass of T tokens. Does nothing where masks differ between
    sequences."""
    if not objective.has_extents:
        shared_block_mask(objective, T, device)


def _block_mask_by_sequence(sees: Callable[..., Tensor], T: int, extents_B: Tensor) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    def seen(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return sees(extents_B, b, q, k)

    return create_block_mask(seen, len(extents_B), None, T, T, device=extents_B.device)
