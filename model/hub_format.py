"""The class `Format`: how our models are written as one architecture of Hugging Face, setting by setting and tensor by
tensor."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from model.config import ModelConfig

# A layout is a pair of functions: from our tensor to theirs (one or several), and back. Biases [F] are rearranged like
# the rows of weights [F, D].

Layout = tuple[Callable[[Tensor, int], list[Tensor]], Callable[[list[Tensor], int], Tensor]]

UNCHANGED: Layout = (lambda x, heads: [x], lambda xs, heads: xs[0])
TRANSPOSED: Layout = (lambda x, heads: [x.t()], lambda xs, heads: xs[0].t())  # GPT-2
DUPLICATED: Layout = (lambda x, heads: [x, x], lambda xs, heads: xs[0])  # one tensor that their file holds two times
SEPARATE_QKV: Layout = (lambda x, heads: list(x.chunk(3)), lambda xs, heads: _join(xs))  # q, k and v apart
QKV_BY_HEAD: Layout = (  # q, k, v of the first head, then of the second
    lambda x, heads: [x.unflatten(0, (3, heads, -1)).transpose(0, 1).flatten(0, 2)],
    lambda xs, heads: xs[0].unflatten(0, (heads, 3, -1)).transpose(0, 1).flatten(0, 2),
)


def _join(xs: list[Tensor]) -> Tensor:
    from torch import cat

    return cat(xs)


# {our setting: theirs} of the sizes of a model, under the names that most architectures use
SIZE_NAMES = {
    "layers": "num_hidden_layers",
    "hidden": "hidden_size",
    "heads": "num_attention_heads",
    "seq": "max_position_embeddings",
    "norm_eps": "layer_norm_eps",
    "init_std": "initializer_range",
}


@dataclass(frozen=True)
class Format:
    """How our models are written as one architecture of Hugging Face's transformers.

    name: the architecture's name in messages.
    model_type, architecture: its names in config.json.
    prefix: the beginning of the names of all its tensors but the output matrix.
    needs: {our setting: the values with which the architecture computes the same as our model}.
    sizes: {our setting: Hugging Face's name for it}, for settings that may have any value.
    fixed: a function of our configuration. It returns {Hugging Face's setting: value} for all other settings on which
        the computation depends.
    dropout: {Hugging Face's name of a dropout probability: our setting}. Dropout does not act in inference.
    weights: {our module: Hugging Face's modules that hold its tensors}. The names lack `prefix`, and have {} for the
        number of the layer.
    layouts: {our module: the `Layout` that converts its tensors}. The tensors of other modules are stored unchanged.
    head: Hugging Face's name of an output matrix that is not the token embedding.
    constants: a function of our configuration. It returns {name: shape} of tensors that our model does not have; they
        are zeros and have no effect.
    """

    name: str
    model_type: str
    architecture: str
    prefix: str
    needs: Mapping[str, tuple]
    sizes: Mapping[str, str]
    fixed: Callable[[ModelConfig], dict[str, Any]]
    dropout: Mapping[str, str]
    weights: Mapping[str, tuple[str, ...]]
    layouts: Mapping[str, Layout]
    head: str = "lm_head.weight"
    constants: Callable[[ModelConfig], Mapping[str, tuple[int, ...]]] = field(default=lambda cfg: {})

    @property
    def causal(self) -> bool:
        """Whether the architecture generates text from left to right."""
        return self.needs["objective"] == ("causal",)
