"""The whole forward pass of a transformer: a GPT-3-style decoder, or with the MLM objective an encoder.

Shapes are in the names: B sequences, T tokens, D hidden, H heads, K head dimension, V padded vocabulary.
"""

import functools
from collections.abc import Callable
from typing import Any, get_args, get_type_hints

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model import attention, position
from model.config import ModelConfig
from model.init import initialise
from model.kernels import cross_entropy
from model.kernels.gelu import gelu
from model.linear import Layers, Linear
from model.mlp import MLPS
from model.norm import NORMS
from model.objective import OBJECTIVES, Batch
from model.position import POSITIONS
from model.shard import SINGLE_RANK, RankGroup


def prepare_to_compile() -> None:
    """Register the functions that torch.compile is to call as they are, without tracing them. Call it before
    torch.compile.

    It is not done at import, since torch would then load its compiler, which takes a second or two.
    """
    cross_entropy.prepare_to_compile()
    position.prepare_to_compile()


class Attention(nn.Module):
    """Multi-head self-attention, with one projection to queries, keys and values, and an output projection."""

    def __init__(self, cfg: ModelConfig, tp: RankGroup, layers: Layers):
        super().__init__()
        self.heads = cfg.heads // tp.size
        self.qkv = layers.column(cfg.hidden, 3 * cfg.hidden, cfg.qkv_bias)
        self.proj = layers.row(cfg.hidden, cfg.hidden, cfg.linear_bias)

    def forward(self, x_BTD: Tensor, attend: attention.Attend, rows_N: Tensor | None) -> Tensor:
        B, T, _ = x_BTD.shape
        q_BHTK, k_BHTK, v_BHTK = self.qkv(x_BTD).view(B, T, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(select_rows(attend(q_BHTK, k_BHTK, v_BHTK).transpose(1, 2).reshape(B, T, -1), rows_N))


def select_rows(x_BTD: Tensor, rows_N: Tensor | None) -> Tensor:
    """Flatten a batch to [B x T, D], and select the rows with the indices `rows_N` (int64): [N, D]. Without `rows_N`,
    the batch unchanged, [B, T, D]."""
    return x_BTD if rows_N is None else x_BTD.flatten(0, 1)[rows_N]


class Block(nn.Module):
    """A pre-LN transformer block: attention and MLP each read the normalised residual stream and add to it (GPT-2)."""

    def __init__(self, cfg: ModelConfig, tp: RankGroup, layers: Layers):
        super().__init__()
        self.norm1 = NORMS[cfg.norm](cfg.hidden, cfg.norm_eps)
        self.attn = Attention(cfg, tp, layers)
        self.norm2 = NORMS[cfg.norm](cfg.hidden, cfg.norm_eps)
        self.mlp = MLPS[cfg.act](cfg, layers)
        self.drop = nn.Dropout(cfg.dropout)

    def forward(self, x_BTD: Tensor, attend: attention.Attend, rows_N: Tensor | None = None) -> Tensor:
        x_BTD = select_rows(x_BTD, rows_N) + self.drop(self.attn(self.norm1(x_BTD), attend, rows_N))
        return x_BTD + self.drop(self.mlp(self.norm2(x_BTD)))


class PostLNBlock(Block):
    """A post-LN transformer block: each of attention and MLP is added to the residual stream, and the sum is normalised
    (Vaswani et al. 2017, GPT-1). There is no final norm."""

    def forward(self, x_BTD: Tensor, attend: attention.Attend, rows_N: Tensor | None = None) -> Tensor:
        x_BTD = self.norm1(select_rows(x_BTD, rows_N) + self.drop(self.attn(x_BTD, attend, rows_N)))
        return self.norm2(x_BTD + self.drop(self.mlp(x_BTD)))


class ParallelBlock(Block):
    """A parallel transformer block: attention and MLP read the same normalised input, from a single norm (GPT-J,
    PaLM)."""

    def __init__(self, cfg: ModelConfig, tp: RankGroup, layers: Layers):
        super().__init__(cfg, tp, layers)
        del self.norm2

    def forward(self, x_BTD: Tensor, attend: attention.Attend, rows_N: Tensor | None = None) -> Tensor:
        y_BTD = self.norm1(x_BTD)
        x_BTD = select_rows(x_BTD, rows_N) + self.drop(self.attn(y_BTD, attend, rows_N))
        return x_BTD + self.drop(self.mlp(select_rows(y_BTD, rows_N)))


BLOCKS: dict[str, type[Block]] = {"pre-ln": Block, "post-ln": PostLNBlock, "parallel": ParallelBlock}
assert set(BLOCKS) == set(get_args(get_type_hints(ModelConfig)["block"]))


class LinearTransform(nn.Module):
    """A linear layer before the output matrix (the published Cramming code of 2022)."""

    def __init__(self, cfg: ModelConfig):
        super().__init__()
        self.dense = Linear(cfg.hidden, cfg.hidden, cfg.linear_bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.dense(x)


class BertTransform(LinearTransform):
    """A linear layer, GELU and a norm before the output matrix (Devlin et al. 2019, their code)."""

    def __init__(self, cfg: ModelConfig):
        super().__init__(cfg)
        self.norm = NORMS[cfg.norm](cfg.hidden, cfg.norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(gelu(self.dense(x)))


TRANSFORMS: dict[str, Callable[[ModelConfig], nn.Module]] = {
    "none": nn.Identity,
    "linear": LinearTransform,
    "bert": BertTransform,
}
assert set(TRANSFORMS) == set(get_args(get_type_hints(ModelConfig)["head_transform"]))


class OutputBias(nn.Module):
    """The bias of the logits; under tensor parallelism, of this rank's part of the vocabulary."""

    def __init__(self, cfg: ModelConfig, tp: RankGroup):
        super().__init__()
        self.bias = nn.Parameter(torch.empty(cfg.padded_vocab // tp.size))


class GPT(nn.Module):
    """A transformer language model: a causal decoder, or an encoder where model.objective=mlm. Its initial weights are
    drawn from a seed (model/init.py).

    Args:
        cfg: the shape of the model and the variant of each factor.
        seed: the run's seed, from which the weights are drawn.
        tp: the tensor parallel group, the ranks that hold the model together; by default this rank has it whole.
        layers: the factory of the linear layers; by default `tp.layers`, which multiply in the precision of the
            weights.
    """

    def __init__(self, cfg: ModelConfig, seed: int = 1, tp: RankGroup = SINGLE_RANK, layers: Layers | None = None):
        super().__init__()
        layers = layers or tp.layers
        self.cfg, self.tp, self.objective = cfg, tp, OBJECTIVES[cfg.objective](cfg)
        self.embed: Any = layers.embedding(cfg.padded_vocab, cfg.hidden)
        self.embnorm = nn.LayerNorm(cfg.hidden, cfg.norm_eps) if cfg.embnorm else nn.Identity()
        self.sumnorm = NORMS[cfg.norm](cfg.hidden, cfg.norm_eps) if cfg.sumnorm else nn.Identity()
        self.position = POSITIONS[cfg.pos](cfg)
        self.position.first_head = tp.rank * cfg.heads // tp.size
        self.drop = nn.Dropout(cfg.dropout)
        self.blocks = nn.ModuleList(BLOCKS[cfg.block](cfg, tp, layers) for _ in range(cfg.layers))
        last = cfg.final_norm and cfg.block != "post-ln"
        self.norm = NORMS[cfg.norm](cfg.hidden, cfg.norm_eps) if last else nn.Identity()
        self.transform = TRANSFORMS[cfg.head_transform](cfg)
        self.head: Any = None if cfg.tied else layers.column(cfg.hidden, cfg.padded_vocab, bias=False)
        self.output: Any = OutputBias(cfg, tp) if cfg.output_bias else None
        self.attention_kernel: str | None = None  # on a GPU; see attention.make_attention
        initialise(self, cfg, seed, tp)

    @property
    def max_length(self) -> int | None:
        """The longest input, in tokens; None: unlimited."""
        return self.position.max_length

    def hidden_states(
        self,
        tokens_BT: Tensor,
        arrangement: attention.Arrangement | None = None,
        extents_B: Tensor | None = None,
        rows_N: Tensor | None = None,
    ) -> Tensor:
        """The model without its output layers: token ids [B, T] -> hidden states [B, T, D], after the final norm. With
        `rows_N`, [N, D].

        Args:
            tokens_BT: token ids.
            arrangement: positions of the tokens and what each sees; None: both follow from the order of tokens.
            extents_B: [B], the length of each sequence's prefix under the prefix objective; None under the others. Not
                used with an arrangement.
            rows_N: int64, the indices in the flattened batch [B x T] of the outputs to return; None: all. For other
                tokens the last block computes only keys and values.

        Raises:
            ValueError: `extents_B` is missing under the prefix objective, or given under another, without an
                arrangement.
        """
        if arrangement is None:
            self.objective.check_extents(extents_B)
        positions_BT = arrangement.positions_BT if arrangement else None
        x_BTD = self.drop(self.sumnorm(self.position.embed(self.embnorm(self.embed(tokens_BT)), positions_BT)))
        dropout = (self.cfg.attn_dropout if self.training else 0.0) if self.cfg.attn_dropout else None
        heads, objective = self.cfg.heads // self.tp.size, self.objective
        attend = attention.make_attention(
            self.position,
            heads,
            x_BTD,
            dropout,
            arrangement,
            objective,
            extents_B,
            self.cfg.qk_scaling,
            self.attention_kernel,
        )
        if dropout:
            attend = self.tp.draw_dropout_by_rank(attend)
        for number, block in enumerate(self.blocks, start=1):
            last = rows_N if number == self.cfg.layers else None
            x_BTD = block(x_BTD, functools.partial(attend, layer=number) if self.cfg.qk_scaling else attend, last)
        return self.norm(x_BTD)

    @property
    def output_weight(self) -> Tensor:
        """The output matrix [V, D]: the token embedding where model.tied is true. Under tensor parallelism, this rank's
        rows."""
        return (self.embed if self.head is None else self.head).weight

    def project(self, x: Tensor) -> Tensor:
        """Apply the output layers: hidden states [..., D] -> logits [..., V]."""
        return self.tp.project(*self._logit_factors(x))

    def _logit_factors(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The factors (x, weight) of the logits x @ weight.T: the hidden states after the head's transform, and the
        output matrix. A bias of the logits becomes one more column of the matrix, and `x` gets a column of ones."""
        x, weight = self.transform(x), self.output_weight
        if self.output is None:
            return x, weight
        return F.pad(x, (0, 1), value=1.0), torch.cat((weight, self.output.bias[:, None]), dim=1)

    def forward(self, tokens_BT: Tensor, extents_B: Tensor | None = None) -> Tensor:
        """[B, T] token ids -> logits [B, T, V]. `extents_B`: [B], the length of each sequence's prefix under the prefix
        objective; None under the others."""
        return self.project(self.hidden_states(tokens_BT, extents_B=extents_B))

    def loss(self, batch: Batch) -> Tensor:
        """Mean cross-entropy over the predicted tokens of a batch, in nats per token, fp32."""
        x_BTD = self.hidden_states(batch.inputs_BT, extents_B=batch.extents_B)
        return self.tp.loss(*self._logit_factors(batch.select(x_BTD)), batch.select(batch.targets_BT))
