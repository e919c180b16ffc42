"""The shape of a model and the variant of each of its factors. No torch here: planning needs it."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class ModelConfig:
    """One decoder-only transformer. Every field is an axis that a study may vary.

    Raises:
        ValueError: when the fields do not make a model together; the message says what would.
    """

    layers: int
    hidden: int
    heads: int
    seq: int  # training length, tokens
    vocab: int  # size of the tokenizer, before padding
    vocab_multiple: int  # the embedding has as many rows as the next multiple of this
    pos: Literal["none", "learned", "rotary", "alibi", "sinusoidal", "scaled-sinusoidal"]
    act: Literal["gelu", "swiglu", "swiglu-unmatched", "geglu"]
    norm: Literal["layernorm", "rmsnorm"]
    block: Literal["pre-ln", "post-ln", "parallel"]
    objective: Literal["causal", "prefix"]  # prefix: both ways inside a prefix of each sequence, and no loss on it
    qk_scaling: bool  # scores divided by the layer's number, multiplied back in fp32: only fp16 needs it
    embnorm: bool  # LayerNorm after the token lookup, before positions
    qkv_bias: bool  # biases of the query, key and value projections
    linear_bias: bool  # biases of all other linear layers
    tied: bool  # the output matrix is the token embedding
    dropout: float  # of the embeddings and of what attention and MLP add to the residual stream
    attn_dropout: float  # of the attention probabilities
    rotary_base: float
    init_std: float
    norm_eps: float

    def __post_init__(self) -> None:
        for name in ("layers", "hidden", "heads", "seq", "vocab", "vocab_multiple"):
            if getattr(self, name) < 1:
                raise ValueError(f"model.{name} must be at least 1, not {getattr(self, name)}")
        for name in ("dropout", "attn_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"model.{name}={getattr(self, name)}: must lie between 0 and 1, 1 excluded")
        if self.hidden % self.heads:
            fits = [n for n in range(1, self.hidden + 1) if self.hidden % n == 0]
            near = sorted(sorted(fits, key=lambda n: abs(n - self.heads))[:4])
            raise ValueError(
                f"model.heads={self.heads} does not divide model.hidden={self.hidden}; "
                f"near it, {', '.join(map(str, near))} do"
            )
        if self.qk_scaling and self.layers < 2:
            raise ValueError("model.qk_scaling=true does nothing in the first layer, and there is no other")
        if self.pos == "rotary" and self.head_dim % 2:
            raise ValueError(f"model.pos=rotary needs an even head dimension, not {self.head_dim}")

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    @property
    def padded_vocab(self) -> int:
        """Rows of the embedding: the next multiple of 128 as Megatron pads (50,257 -> 50,304), or of another number."""
        return -(-self.vocab // self.vocab_multiple) * self.vocab_multiple

    @property
    def ffn(self) -> int:
        """Inner width of the MLP.

        GELU has 4 x hidden. SwiGLU and GEGLU have three matrices where GELU has two, so they are matched in
        parameters at 2/3 of that, rounded down to a multiple of 8 as in BigScience's runs (hidden 2048 -> 5456);
        `swiglu-unmatched` keeps 4 x hidden and has half as many parameters again.
        """
        return 8 * self.hidden // 3 // 8 * 8 if self.act in ("swiglu", "geglu") else 4 * self.hidden
