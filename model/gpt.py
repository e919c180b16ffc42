"""The whole forward pass of a GPT-3-style decoder.

Shapes are in the names: B sequences, T tokens, D hidden, H heads, K head dimension, V padded vocabulary.
"""

from typing import get_args, get_type_hints

from torch import Tensor, nn

from model import attention
from model.config import ModelConfig
from model.init import initialise
from model.linear import Linear, linear
from model.mlp import MLPS
from model.norm import NORMS
from model.objective import cross_entropy
from model.position import POSITIONS


class Attention(nn.Module):
    def __init__(self, cfg: ModelConfig):
        super().__init__()
        self.heads = cfg.heads
        self.qkv = Linear(cfg.hidden, 3 * cfg.hidden, cfg.qkv_bias)
        self.proj = Linear(cfg.hidden, cfg.hidden, cfg.linear_bias)

    def forward(self, x_BTD: Tensor, attend: attention.Attend) -> Tensor:
        B, T, D = x_BTD.shape
        q_BHTK, k_BHTK, v_BHTK = self.qkv(x_BTD).view(B, T, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(attend(q_BHTK, k_BHTK, v_BHTK).transpose(1, 2).reshape(B, T, D))


class Block(nn.Module):
    """Pre-LN: each part reads the normalised residual stream and adds to it (GPT-2)."""

    def __init__(self, cfg: ModelConfig):
        super().__init__()
        self.norm1 = NORMS[cfg.norm](cfg.hidden, cfg.norm_eps)
        self.attn = Attention(cfg)
        self.norm2 = NORMS[cfg.norm](cfg.hidden, cfg.norm_eps)
        self.mlp = MLPS[cfg.act](cfg)
        self.drop = nn.Dropout(cfg.dropout)

    def forward(self, x_BTD: Tensor, attend: attention.Attend) -> Tensor:
        x_BTD = x_BTD + self.drop(self.attn(self.norm1(x_BTD), attend))
        return x_BTD + self.drop(self.mlp(self.norm2(x_BTD)))


class PostLN(Block):
    """The sum is normalised, and the next part reads that (Vaswani et al. 2017, GPT-1); there is no final norm."""

    def forward(self, x_BTD: Tensor, attend: attention.Attend) -> Tensor:
        x_BTD = self.norm1(x_BTD + self.drop(self.attn(x_BTD, attend)))
        return self.norm2(x_BTD + self.drop(self.mlp(x_BTD)))


class Parallel(Block):
    """Attention and MLP read the same normalised input, with one norm for both (GPT-J, PaLM)."""

    def __init__(self, cfg: ModelConfig):
        super().__init__(cfg)
        del self.norm2

    def forward(self, x_BTD: Tensor, attend: attention.Attend) -> Tensor:
        y_BTD = self.norm1(x_BTD)
        return x_BTD + self.drop(self.attn(y_BTD, attend)) + self.drop(self.mlp(y_BTD))


BLOCKS: dict[str, type[Block]] = {"pre-ln": Block, "post-ln": PostLN, "parallel": Parallel}
assert set(BLOCKS) == set(get_args(get_type_hints(ModelConfig)["block"]))


class GPT(nn.Module):
    """A decoder-only language model, with weights drawn from `seed` (see model/init.py)."""

    def __init__(self, cfg: ModelConfig, seed: int = 1):
        super().__init__()
        self.cfg = cfg
        self.embed = nn.Embedding(cfg.padded_vocab, cfg.hidden)
        self.embnorm = nn.LayerNorm(cfg.hidden, cfg.norm_eps) if cfg.embnorm else nn.Identity()
        self.position = POSITIONS[cfg.pos](cfg)
        self.drop = nn.Dropout(cfg.dropout)
        self.blocks = nn.ModuleList(BLOCKS[cfg.block](cfg) for _ in range(cfg.layers))
        self.norm = nn.Identity() if cfg.block == "post-ln" else NORMS[cfg.norm](cfg.hidden, cfg.norm_eps)
        self.head = None if cfg.tied else Linear(cfg.hidden, cfg.padded_vocab, bias=False)
        initialise(self, cfg, seed)

    @property
    def max_length(self) -> int | None:
        """The longest input, in tokens; None where nothing in the architecture limits it."""
        return self.position.max_length

    def hidden(self, tokens_BT: Tensor) -> Tensor:
        """[B, T] token ids -> [B, T, D], what the output matrix reads."""
        x_BTD = self.drop(self.position.embed(self.embnorm(self.embed(tokens_BT))))
        dropout = self.cfg.attn_dropout if self.training else 0.0
        attend = attention.prepare(self.position, self.cfg.heads, x_BTD, dropout)
        for block in self.blocks:
            x_BTD = block(x_BTD, attend)
        return self.norm(x_BTD)

    def project(self, x: Tensor) -> Tensor:
        """[..., D] -> logits [..., V]; no bias."""
        return linear(x, (self.embed if self.head is None else self.head).weight)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """[B, T] token ids -> logits [B, T, V]."""
        return self.project(self.hidden(tokens_BT))

    def loss(self, tokens_BS: Tensor) -> Tensor:
        """[B, T + 1] token ids -> mean cross-entropy of the T next tokens, nats per token, fp32."""
        logits_BTV = self(tokens_BS[:, :-1])
        return cross_entropy(logits_BTV.flatten(0, 1), tokens_BS[:, 1:].flatten())
