"""Position schemes, one class each. The base class is the scheme without positions; each other scheme overrides some of
its methods."""

import functools
import math
from typing import get_args, get_type_hints

import torch
from torch import Tensor, nn

from model.config import ModelConfig
from model.kernels import rotation


class Position(nn.Module):
    """The base class of position schemes, and itself the scheme `none`. A scheme overrides `embed`, `rotate` or `bias`;
    the model calls all three, whatever the scheme."""

    max_length: int | None = None  # tokens; None: no limit
    # Of this rank's heads, the index of the first among all heads of a layer: tensor parallelism divides them.
    first_head = 0

    def __init__(self, cfg: ModelConfig):
        super().__init__()

    @property
    def has_bias(self) -> bool:
        """Whether the scheme adds a bias to the scores, as ALiBi does."""
        return type(self).bias is not Position.bias

    def embed(self, x_BTD: Tensor, positions_BT: Tensor | None = None) -> Tensor:
        """Add position embeddings to the token embeddings `x_BTD` (learned and sinusoidal schemes); other schemes
        return `x_BTD`. Without `positions_BT` the positions are 0 to T - 1."""
        return x_BTD

    def rotate(self, q_BHTK: Tensor, k_BHTK: Tensor, positions_BT: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Rotate queries and keys by their positions (rotary); other schemes return them unchanged. Without
        `positions_BT` the positions are 0 to T - 1. Returns (queries, keys)."""
        return q_BHTK, k_BHTK

    def bias(self, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        """The bias, in fp32, of the scaled score of head `h` (counted from 0 on this rank) between query position `q`
        and key position `k`.

        h, q and k are integer tensors that broadcast. Only differences along `k` matter, since softmax ignores a bias
        that is equal for all keys.
        """
        return torch.zeros((), device=k.device)


class Learned(Position):
    """A trained vector for each absolute position, added to the token embedding (GPT-2, GPT-3)."""

    def __init__(self, cfg: ModelConfig):
        super().__init__(cfg)
        self.table = nn.Parameter(torch.empty(cfg.seq, cfg.hidden))
        self.max_length = cfg.seq

    def embed(self, x_BTD: Tensor, positions_BT: Tensor | None = None) -> Tensor:
        T = x_BTD.shape[1] if positions_BT is None else int(positions_BT.max()) + 1
        if T > self.table.shape[0]:
            raise ValueError(f"learned positions end at {self.table.shape[0]} tokens; the input has {T}")
        if positions_BT is not None:
            return x_BTD + self.table[positions_BT]
        return x_BTD + self.table[:T]


class Sinusoidal(Position):
    """Fixed sines and cosines of geometric wavelengths, added to the token embedding (Vaswani et al. 2017).

    The paper multiplies the token embedding by sqrt(D) first. Here it is not multiplied, so that at model.init_std=0.02
    the sines and cosines are 35 times as large as it is.
    """

    def waves(self, x_BTD: Tensor, positions_BT: Tensor | None = None) -> Tensor:
        """The sines and cosines to add: [T, D], or [B, T, D] with `positions_BT`. At position t, coordinate 2i is the
        sine and coordinate 2i + 1 the cosine of t / 10000^(2i/D). `x_BTD`: its shape, precision and device are read."""
        _, T, D = x_BTD.shape
        at = functools.partial(torch.arange, device=x_BTD.device, dtype=torch.float32)
        angle = (at(T) if positions_BT is None else positions_BT)[..., None] * 10000.0 ** (-at(0, D, 2) / D)
        return torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(-2)[..., :D].to(x_BTD.dtype)

    def embed(self, x_BTD: Tensor, positions_BT: Tensor | None = None) -> Tensor:
        return x_BTD + self.waves(x_BTD, positions_BT)


class ScaledSinusoidal(Sinusoidal):
    """Sinusoidal positions times one trained number, which starts at 1/sqrt(D) (Hua et al. 2022, used in Cramming)."""

    def __init__(self, cfg: ModelConfig):
        super().__init__(cfg)
        self.scale = nn.Parameter(torch.empty(1))

    def embed(self, x_BTD: Tensor, positions_BT: Tensor | None = None) -> Tensor:
        return x_BTD + self.scale * self.waves(x_BTD, positions_BT)


class Rotary(Position):
    """Rotates pairs of query and key coordinates by an angle proportional to the position (Su et al. 2021).

    The whole head dimension is rotated, coordinate i paired with i + K/2 (the GPT-NeoX layout).
    """

    def __init__(self, cfg: ModelConfig):
        super().__init__(cfg)
        self.base = cfg.rotary_base

    def rotate(self, q_BHTK: Tensor, k_BHTK: Tensor, positions_BT: Tensor | None = None) -> tuple[Tensor, Tensor]:
        T, K = q_BHTK.shape[-2:]
        T = T if positions_BT is None else int(positions_BT.max()) + 1
        cos, sin = _rotary_waves(self.base, T, K, q_BHTK.dtype, q_BHTK.device)
        if positions_BT is not None:
            cos, sin = cos[positions_BT][:, None], sin[positions_BT][:, None]
        return rotation.rotate(q_BHTK, cos, sin), rotation.rotate(k_BHTK, cos, sin)


def prepare_to_compile() -> None:
    """Make rotary's cosines and sines constants of compiled graphs, which would otherwise compute them again for every
    head."""
    torch.compiler.assume_constant_result(_rotary_waves)


def _rotary_waves(base: float, T: int, K: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """The cosines and sines, each [T, K], of the angles by which rotary turns K coordinates at positions 0 to T - 1."""
    # fp32: in bf16 the angles of neighbouring late positions would coincide
    freq = base ** (-torch.arange(0, K, 2, device=device, dtype=torch.float32) / K)
    angle_TK = torch.outer(torch.arange(T, device=device, dtype=torch.float32), freq).repeat(1, 2)
    return angle_TK.cos().to(dtype), angle_TK.sin().to(dtype)


class ALiBi(Position):
    """Subtracts slope x distance from each score, a slope for each head (Press et al. 2021).

    The distance is |q - k|, the same in both directions, for objectives in which a query sees later keys.
    """

    def __init__(self, cfg: ModelConfig):
        super().__init__(cfg)
        self.slopes: Tensor
        self.register_buffer("slopes", torch.tensor(alibi_slopes(cfg.heads)), persistent=False)

    def _apply(self, fn, recurse=True):
        # A model cast to bf16 casts its buffers too, and 2^-0.5 is no bf16 number: keep the slopes in fp32.
        super()._apply(fn, recurse)
        self.slopes = torch.tensor(alibi_slopes(len(self.slopes)), device=self.slopes.device)
        return self

    def bias(self, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return -self.slopes[self.first_head + h] * (q - k).abs()


def alibi_slopes(heads: int) -> list[float]:
    """ALiBi's slope for each of `heads` heads: 2^(-8i/n), i = 1..n, where the number n of heads is a power of two. For
    another number: all slopes for the next lower power of two, then the first, third, fifth ... slope for twice that
    power (Press et al. 2021, appendix A and their reference code)."""
    n = 2 ** math.floor(math.log2(heads))
    slopes = [2 ** (-8 * i / n) for i in range(1, n + 1)]
    return slopes + [2 ** (-8 * i / (2 * n)) for i in range(1, 2 * (heads - n), 2)]


POSITIONS: dict[str, type[Position]] = {
    "none": Position,
    "learned": Learned,
    "rotary": Rotary,
    "alibi": ALiBi,
    "sinusoidal": Sinusoidal,
    "scaled-sinusoidal": ScaledSinusoidal,
}
assert set(POSITIONS) == set(get_args(get_type_hints(ModelConfig)["pos"]))
