"""The whole forward pass of a GPT-3-style decoder: pre-LN, dense causal attention, biases, tied embeddings.

Shapes are in the names: B sequences, T tokens, D hidden, H heads, K head dimension, V padded vocabulary.
"""

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
        self.qkv = Linear(cfg.hidden, 3 * cfg.hidden)
        self.proj = Linear(cfg.hidden, cfg.hidden)

    def forward(self, x_BTD: Tensor, attend: attention.Attend) -> Tensor:
        B, T, D = x_BTD.shape
        q_BHTK, k_BHTK, v_BHTK = self.qkv(x_BTD).view(B, T, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(attend(q_BHTK, k_BHTK, v_BHTK).transpose(1, 2).reshape(B, T, D))


class Block(nn.Module):
    def __init__(self, cfg: ModelConfig):
        super().__init__()
        self.norm1 = NORMS[cfg.norm](cfg.hidden, cfg.norm_eps)
        self.attn = Attention(cfg)
        self.norm2 = NORMS[cfg.norm](cfg.hidden, cfg.norm_eps)
        self.mlp = MLPS[cfg.act](cfg)

    def forward(self, x_BTD: Tensor, attend: attention.Attend) -> Tensor:
        x_BTD = x_BTD + self.attn(self.norm1(x_BTD), attend)
        return x_BTD + self.mlp(self.norm2(x_BTD))


class GPT(nn.Module):
    """A decoder-only language model, with weights drawn from `seed` (see model/init.py)."""

    def __init__(self, cfg: ModelConfig, seed: int = 1):
        super().__init__()
        self.cfg = cfg
        self.embed = nn.Embedding(cfg.padded_vocab, cfg.hidden)
        self.embnorm = nn.LayerNorm(cfg.hidden, cfg.norm_eps) if cfg.embnorm else nn.Identity()
        self.position = POSITIONS[cfg.pos](cfg)
        self.blocks = nn.ModuleList(Block(cfg) for _ in range(cfg.layers))
        self.norm = NORMS[cfg.norm](cfg.hidden, cfg.norm_eps)
        initialise(self, cfg, seed)

    @property
    def max_length(self) -> int | None:
        """The longest input, in tokens; None where nothing in the architecture limits it."""
        return self.position.max_length

    def hidden(self, tokens_BT: Tensor) -> Tensor:
        """[B, T] token ids -> [B, T, D], after the final norm."""
        x_BTD = self.position.embed(self.embnorm(self.embed(tokens_BT)))
        attend = attention.prepare(self.position, self.cfg.heads, x_BTD)
        for block in self.blocks:
            x_BTD = block(x_BTD, attend)
        return self.norm(x_BTD)

    def project(self, x: Tensor) -> Tensor:
        """[..., D] -> logits [..., V], through the embedding matrix (tied, no bias)."""
        return linear(x, self.embed.weight)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """[B, T] token ids -> logits [B, T, V]."""
        return self.project(self.hidden(tokens_BT))

    def loss(self, tokens_BS: Tensor) -> Tensor:
        """[B, T + 1] token ids -> mean cross-entropy of the T next tokens, nats per token, fp32."""
        logits_BTV = self(tokens_BS[:, :-1])
        return cross_entropy(logits_BTV.flatten(0, 1), tokens_BS[:, 1:].flatten())
