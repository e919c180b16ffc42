"""How one architecture of Hugging Face is written in their files: a `Format`, and how tensors are laid out in it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from model.config import ModelConfig

# Each layout is a pair: ours -> theirs (one or several), and theirs -> ours. Biases [F] go the way of weights [F, D].

Layout = tuple[Callable[[Tensor, int], list[Tensor]], Callable[[list[Tensor], int], Tensor]]

SAME: Layout = (lambda x, heads: [x], lambda xs, heads: xs[0])
TRANSPOSED: Layout = (lambda x, heads: [x.t()], lambda xs, heads: xs[0].t())  # GPT-2
TWICE: Layout = (lambda x, heads: [x, x], lambda xs, heads: xs[0])  # one tensor that their file holds two times
SPLIT: Layout = (lambda x, heads: list(x.chunk(3)), lambda xs, heads: _join(xs))  # q, k and v apart
BY_HEAD: Layout = (  # q, k, v of the first head, then of the second
    lambda x, heads: [x.unflatten(0, (3, heads, -1)).transpose(0, 1).flatten(0, 2)],
    lambda xs, heads: xs[0].unflatten(0, (heads, 3, -1)).transpose(0, 1).flatten(0, 2),
)


def _join(xs: list[Tensor]) -> Tensor:
    from torch import cat

    return cat(xs)


@dataclass(frozen=True)
class Format:
    """One architecture of Hugging Face.

    needs: for each of our settings that it fixes, the values it can compute.
    sizes: our settings that are free, under their names.
    fixed: all other settings that decide what it computes, for a model of ours.
    dropout: their shares of dropout -> ours. They do not act in inference.
    weights: our module -> theirs below `prefix`, {} for the layer; several where ours is one.
    layouts: modules that are not kept as ours are.
    head: their name of the output matrix, where it is not the token embedding.
    constants: shapes of tensors that ours has not and that are written as zeros, which changes nothing.
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
        """Whether it generates text from left to right."""
        return self.needs["objective"] == ("causal",)
