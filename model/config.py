"""The shape of a model and the variant of each factor. This file does not import torch, so that plans can be made
without it."""

from dataclasses import dataclass
from typing import Literal

from model.setting import check_ranges, check_types, setting

GATED = ("swiglu", "swiglu-unmatched", "geglu")  # activations with a third matrix, the gate


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The configuration of one transformer. A study may vary every field.

    Fields with a default (`absent`) were added later; the default is the value of runs that were recorded without the
    field. Raises ValueError where the fields do not fit together; the message says which values would.
    """

    layers: int = setting("transformer blocks", at_least=1)
    hidden: int = setting("width of the residual stream", at_least=1)
    heads: int = setting("attention heads per block; must divide model.hidden", at_least=1)
    seq: int = setting("training length", "tokens", at_least=1)
    vocab: int = setting("size of the tokenizer, before padding", "tokens", at_least=1)
    vocab_multiple: int = setting(
        "the embedding has as many rows as the next multiple of this", "rows", "Megatron", at_least=1
    )
    pos: Literal["none", "learned", "rotary", "alibi", "sinusoidal", "scaled-sinusoidal"] = setting(
        "position scheme", source="GPT-2"
    )
    act: Literal["gelu", "swiglu", "swiglu-unmatched", "geglu"] = setting(
        "activation; swiglu and geglu are matched in parameters at 2/3 of the inner width, swiglu-unmatched is not",
        source="GPT-2",
    )
    ffn_width: int = setting("inner width of the MLP; 0: what model.act says", "columns", "GPT-2", at_least=0, absent=0)
    norm: Literal["layernorm", "rmsnorm"] = setting("normalisation layers", source="GPT-2")
    block: Literal["pre-ln", "post-ln", "parallel"] = setting(
        "order of a block; parallel: attention and MLP side by side after one norm", source="GPT-2"
    )
    objective: Literal["causal", "prefix", "mlm"] = setting(
        "what is predicted; prefix: tokens of a prefix see each other both ways, and only the rest is predicted; "
        "mlm: all tokens see each other, and masked ones are predicted"
    )
    mask_rate: float = setting(
        "share of each sequence's tokens that is masked and predicted",
        source="Devlin et al. 2019",
        at_least=0.15,
        at_most=0.6,
        absent=0.15,
        only_with={"model.objective": ("mlm",)},
    )
    qk_scaling: bool = setting(
        "fp16 only: scores are divided by the layer's number, and multiplied back in fp32 (Megatron)"
    )
    embnorm: bool = setting("LayerNorm after the token lookup, before positions", source="GPT-2")
    sumnorm: bool = setting(
        "norm of the sum of token embeddings and positions (BERT, Cramming)", source="GPT-2", absent=False
    )
    final_norm: bool = setting(
        "norm after the last block; post-ln blocks end with one anyway",
        source="GPT-2",
        absent=True,
        only_with={"model.block": ("pre-ln", "parallel")},
    )
    head_transform: Literal["none", "linear", "bert"] = setting(
        "before the output matrix; linear: a linear layer; bert: a linear layer, GELU and a norm",
        source="GPT-2",
        absent="none",
    )
    output_bias: bool = setting("a bias of the logits (BERT)", source="GPT-2", absent=False)
    qkv_bias: bool = setting("biases of the query, key and value projections", source="GPT-2")
    linear_bias: bool = setting("biases of all other linear layers", source="GPT-2")
    tied: bool = setting("the output matrix is the token embedding", source="GPT-2")
    dropout: float = setting(
        "dropout of the embeddings and of what attention and MLP add to the residual stream",
        source="untuned; BigScience's runs had 0.1",
        at_least=0,
        below=1,
    )
    attn_dropout: float = setting(
        "dropout of the attention probabilities", source="untuned; BigScience's runs had 0.1", at_least=0, below=1
    )
    rotary_base: float = setting(
        "base of the rotary wavelengths", source="Su et al. 2021", above=0, only_with={"model.pos": ("rotary",)}
    )
    init_std: float = setting(
        "standard deviation of the initial weights",
        source="Megatron's default, used by BigScience's 1.3B runs",
        above=0,
    )
    norm_eps: float = setting("added to the variance in each norm", source="GPT-2", above=0)

    def __post_init__(self) -> None:
        check_types("model", self)
        check_ranges("model", self)
        if self.hidden % self.heads:
            fits = [n for n in range(1, self.hidden + 1) if self.hidden % n == 0]
            near = sorted(sorted(fits, key=lambda n: abs(n - self.heads))[:4])
            raise ValueError(
                f"model.heads={self.heads} does not divide model.hidden={self.hidden}; "
                f"near it, {', '.join(map(str, near))} do"
            )
        if self.qk_scaling and self.layers < 2:
            raise ValueError("model.qk_scaling=true does nothing in the first layer, and there is no other")
        if self.objective == "mlm" and not 0 < self.masked_per_sequence < self.seq:
            raise ValueError(
                f"model.mask_rate={self.mask_rate} masks {self.masked_per_sequence} of model.seq={self.seq} tokens: "
                "at least one must be masked, and one must not"
            )
        if self.pos == "rotary" and self.head_dim % 2:
            raise ValueError(f"model.pos=rotary needs an even head dimension, not {self.head_dim}")

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    @property
    def masked_per_sequence(self) -> int:
        """The number of masked tokens in a training sequence, under the MLM objective."""
        return round(self.mask_rate * self.seq)

    @property
    def needs_mask_token(self) -> bool:
        """Whether the objective needs a tokenizer with a mask token."""
        return self.objective == "mlm"

    @property
    def predicted_per_sequence(self) -> int:
        """The number of outputs of a training sequence that are multiplied with the output matrix and enter the loss.
        For the prefix objective, whose number is random, this is `seq`."""
        return self.masked_per_sequence if self.objective == "mlm" else self.seq

    @property
    def padded_vocab(self) -> int:
        """The rows of the embedding: `vocab` rounded up to a multiple of `vocab_multiple`, as in Megatron (50,257 ->
        50,304)."""
        return -(-self.vocab // self.vocab_multiple) * self.vocab_multiple

    @property
    def mlp_matrix_count(self) -> int:
        """The number of weight matrices in an MLP: up, down and, for some activations, the gate."""
        return 3 if self.act in GATED else 2

    @property
    def mlp_width(self) -> int:
        """The inner width of the MLP: `ffn_width` or, where that is 0, the width that the activation implies.

        GELU has 4 x hidden. SwiGLU and GEGLU have three matrices instead of two, so that 2/3 of this width gives the
        same number of parameters; it is rounded down to a multiple of 8, as in BigScience's runs (hidden 2048 -> 5456).
        `swiglu-unmatched` has 4 x hidden, and so 1.5 times the parameters.
        """
        if self.ffn_width:
            return self.ffn_width
        return 8 * self.hidden // 3 // 8 * 8 if self.act in ("swiglu", "geglu") else 4 * self.hidden
