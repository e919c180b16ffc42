"""A minimal GPT, written for speed alone: the peer "minimal, learned" of tests/bench.py.

It has GPT-2's architecture (pre-LN, learned positions, tied embeddings, GELU by tanh). Attention is written out as
matrix products, which torch.compile fuses with mask and softmax. Like all peers, it is trained by the loop in
tests/bench_rows.py in its fastest setting, such as compiled, in bf16 with fp32 masters.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Block(nn.Module):
    def __init__(self, heads: int, D: int, ffn: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.qkv, self.proj = nn.LayerNorm(D), nn.Linear(D, 3 * D), nn.Linear(D, D)
        self.norm2, self.up, self.down = nn.LayerNorm(D), nn.Linear(D, ffn), nn.Linear(ffn, D)

    def forward(self, x_BTD: Tensor, mask_TT: Tensor) -> Tensor:
        B, T, D = x_BTD.shape
        q_BHTK, k_BHTK, v_BHTK = self.qkv(self.norm1(x_BTD)).view(B, T, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        score_BHTT = q_BHTK @ k_BHTK.mT / math.sqrt(D // self.heads) + mask_TT
        x_BTD = x_BTD + self.proj((score_BHTT.softmax(-1) @ v_BHTK).transpose(1, 2).reshape(B, T, D))
        return x_BTD + self.down(F.gelu(self.up(self.norm2(x_BTD)), approximate="tanh"))


class MinimalGPT(nn.Module):
    def __init__(self, vocab: int, seq: int, layers: int, heads: int, D: int, ffn: int):
        super().__init__()
        self.embed, self.table = nn.Embedding(vocab, D), nn.Parameter(torch.zeros(seq, D))
        nn.init.normal_(self.embed.weight, std=0.02)
        self.blocks = nn.ModuleList(Block(heads, D, ffn) for _ in range(layers))
        self.norm = nn.LayerNorm(D)
        self.register_buffer("mask_TT", torch.full((seq, seq), -math.inf).triu(1), persistent=False)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """[B, T] token ids -> logits [B, T, V]; T is `seq`."""
        x_BTD = self.embed(tokens_BT) + self.table
        for block in self.blocks:
            x_BTD = block(x_BTD, self.mask_TT)
        return self.norm(x_BTD) @ self.embed.weight.T
