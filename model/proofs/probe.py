"""Tools of the activity proofs: hooks, forward passes, whole parameters, and comparisons of tensors."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

# Models are annotated as Any, since proofs rely on what a model computes and not on its class.
TOLERANCE = 0.02  # absolute and relative; bf16 keeps 8 bits, so a chain of a few operations errs by 1 % at most


@dataclass(frozen=True)
class Proof:
    """The result of an activity proof, as run.json and the report show it."""

    factor: str  # the setting, such as model.pos
    value: str  # as configured
    passed: bool
    detail: str  # what was measured

    def json(self) -> dict[str, Any]:
        return asdict(self)


@contextmanager
def hooks() -> Iterator[Any]:
    """A context for forward hooks. It yields a function that takes the handle of a hook; when the context ends, all
    these hooks are removed."""
    handles: list[Any] = []
    try:
        yield handles.append
    finally:
        for handle in handles:
            handle.remove()


def heads_of_rank(model: Any) -> range:
    """The range of this rank's attention heads, among all heads of a layer."""
    H = model.cfg.heads // model.tp.size
    return range(model.tp.rank * H, (model.tp.rank + 1) * H)


def whole_parameter(model: Any, name: str) -> Tensor:
    """The whole parameter `name`, gathered from all ranks where tensor parallelism divides it. All ranks call this
    function together."""
    return model.tp.gather(name, model.get_parameter(name))


def increasing_tokens(model: Any, T: int) -> Tensor:
    """The token ids 0, 1, 2, ..., T - 1, as [1, T]; from 0 again at the end of the vocabulary."""
    return (torch.arange(T, device=model.embed.weight.device) % model.cfg.vocab)[None]


def extent_arguments(model: Any, tokens: Tensor, extent: int = 1) -> dict[str, Tensor]:
    """Keyword arguments of the model's forward pass over `tokens` [B, T]: {"extents_B": [B], all equal to the prefix
    length `extent`} under the prefix objective, else {}. A prefix of 1 token is causal."""
    if model.cfg.objective != "prefix":
        return {}
    return {"extents_B": torch.full((len(tokens),), extent, device=tokens.device)}


def hidden_states(model: Any, tokens: Tensor, extent: int = 1) -> Tensor:
    """The model's hidden states after the last norm, [B, T, D], for token ids [B, T]. `extent`: the prefix length of
    all sequences, under the prefix objective."""
    return model.hidden_states(tokens, **extent_arguments(model, tokens, extent))


def embedding_sum(model: Any, T: int, tokens: Tensor | None = None) -> Tensor:
    """The sum of token embeddings and positions, before any norm of that sum: [B, T, D] in float64. `prove_norms` shows
    that this sum, or its norm, enters the first layer. `tokens`: token ids [B, T]; None: one sequence of T times token
    0."""
    sums: list[Tensor] = []  # inputs of the norm of the sum
    first_inputs: list[Tensor] = []  # inputs of the first layer, used where a model has no such norm
    with hooks() as on:
        on(model.sumnorm.register_forward_pre_hook(lambda m, args: sums.append(args[0])))
        on(model.blocks[0].register_forward_pre_hook(lambda m, args: first_inputs.append(args[0])))
        zeros = torch.zeros(1, T, dtype=torch.long, device=model.embed.weight.device)
        hidden_states(model, zeros if tokens is None else tokens)
    return (sums or first_inputs)[0].double()


def is_close(x: Tensor, expected: Tensor, scale: float) -> bool:
    """Whether two tensors have the same shape, and all elements differ by at most TOLERANCE x (scale + |expected|)."""
    if x.shape != expected.shape:
        return False
    return bool(((x.double() - expected.double()).abs() <= TOLERANCE * (scale + expected.double().abs())).all())


def round_to_bits(x: Tensor, bits: int) -> Tensor:
    """`x` rounded to `bits` significant bits, ties to even."""
    mantissa, exponent = torch.frexp(x)
    return torch.ldexp((mantissa * 2**bits).round() / 2**bits, exponent)


def relative_error(x: Tensor, exact: Tensor) -> float:
    """The relative error of `x` as an approximation of `exact`, in the Euclidean norm over all elements."""
    return float((x.double() - exact).norm() / exact.norm())
