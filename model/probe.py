"""How proofs look into a model: known tensors go in at hooks, what comes out is compared (model/proof.py)."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

# Models are typed Any in proofs: they must not lean on what a class promises.
TOLERANCE = 0.02  # absolute and relative; bf16 keeps 8 bits, so a chain of a few operations errs by 1 % at most


@dataclass(frozen=True)
class Proof:
    factor: str  # the configuration key
    value: str  # as declared
    passed: bool
    detail: str  # what was measured

    def json(self) -> dict[str, Any]:
        return asdict(self)


@contextmanager
def hooks() -> Iterator[Any]:
    """Collects hook handles and removes them all, whatever happens."""
    handles: list[Any] = []
    try:
        yield handles.append
    finally:
        for handle in handles:
            handle.remove()


def heads(model: Any) -> range:
    """The heads that this rank computes."""
    H = model.cfg.heads // model.tp.size
    return range(model.tp.rank * H, (model.tp.rank + 1) * H)


def whole(model: Any, name: str) -> Tensor:
    """A parameter, whatever the rank holds of it. All ranks call it together."""
    return model.tp.gather(name, model.get_parameter(name))


def tokens(model: Any, T: int) -> Tensor:
    return (torch.arange(T, device=model.embed.weight.device) % model.cfg.vocab)[None]


def extents(model: Any, tokens: Tensor, extent: int = 1) -> dict[str, Tensor]:
    """The argument that a model needs beside the tokens where its objective has extents, all of the same size. For
    the prefix objective it is the prefix's length, and 1 is the same as causal."""
    if model.cfg.objective != "prefix":
        return {}
    return {"extents_B": torch.full((len(tokens),), extent, device=tokens.device)}


def hidden(model: Any, tokens: Tensor, extent: int = 1) -> Tensor:
    return model.hidden(tokens, **extents(model, tokens, extent))


def embedded(model: Any, T: int, tokens: Tensor | None = None) -> Tensor:
    """Token embeddings with positions, before the norm of their sum, [B, T, D] in float64; by default for one token
    repeated at T positions. `norms` in model/proof_layers.py shows that they are what enters the first layer."""
    seen: list[Tensor] = []
    entered: list[Tensor] = []  # the first layer, where the norm of the sum is left out
    with hooks() as on:
        on(model.sumnorm.register_forward_pre_hook(lambda m, args: seen.append(args[0])))
        on(model.blocks[0].register_forward_pre_hook(lambda m, args: entered.append(args[0])))
        zeros = torch.zeros(1, T, dtype=torch.long, device=model.embed.weight.device)
        hidden(model, zeros if tokens is None else tokens)
    return (seen or entered)[0].double()


def close(x: Tensor, expected: Tensor, scale: float) -> bool:
    """Equal to TOLERANCE, relative to the larger of `scale` and the expected value."""
    if x.shape != expected.shape:
        return False
    return bool(((x.double() - expected.double()).abs() <= TOLERANCE * (scale + expected.double().abs())).all())


def rounded(x: Tensor, bits: int) -> Tensor:
    """To so many significant bits, ties to even."""
    mantissa, exponent = torch.frexp(x)
    return torch.ldexp((mantissa * 2**bits).round() / 2**bits, exponent)


def relative(x: Tensor, exact: Tensor) -> float:
    return float((x.double() - exact).norm() / exact.norm())
