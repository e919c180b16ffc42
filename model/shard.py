"""How tensor parallelism divides each parameter among ranks, as functions of the parameter's name.

| parameter                            | a rank of `size` keeps                                                  |
|--------------------------------------|-------------------------------------------------------------------------|
| embed.weight, head.weight, output.bias | a run of the padded vocabulary's rows                                   |
| qkv.weight, qkv.bias                 | whole heads, the same ones of q, of k and of v: rows are [3, heads, K]  |
| up.*, gate.*                         | a run of the inner width's rows, the same one of both                   |
| proj.weight, down.weight             | the columns that read what it computed                                  |
| all else: norms, positions, and the biases of proj and down | everything; they are equal on all ranks          |

No torch.distributed and no megatron-core here: model/parallel.py has those.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from model.kernels.cross_entropy import cross_entropy
from model.kernels.linear import linear
from model.linear import LAYERS, Layers

# Layers whose weight is cut by its rows, and by its columns
ROWS, COLUMNS = ("embed", "head", "output", "qkv", "up", "gate"), ("proj", "down")


def shard_dimension(name: str) -> int | None:
    """The dimension along which tensor parallelism divides parameter `name`; None where every rank holds all."""
    owner, kind = name.split(".")[-2:]
    if owner in ROWS:
        return 0
    return 1 if owner in COLUMNS and kind == "weight" else None


def shard(name: str, full: Tensor, rank: int, size: int) -> Tensor:
    """The part of parameter `name` that rank `rank` of a tensor parallel group of `size` ranks holds. `full`: the whole
    parameter, or a tensor of its shape, such as its gradient."""
    dim = shard_dimension(name)
    if dim is None or size == 1:
        return full
    if name.split(".")[-2] == "qkv":
        return full.unflatten(0, (3, -1)).tensor_split(size, dim=1)[rank].flatten(0, 1)
    return full.tensor_split(size, dim)[rank]


def unshard(name: str, parts: Sequence[Tensor]) -> Tensor:
    """The whole of parameter `name`. `parts`: the parts of all ranks, in the order of ranks, as `shard` makes them."""
    dim = shard_dimension(name)
    if dim is None or len(parts) == 1:
        return parts[0]
    if name.split(".")[-2] == "qkv":
        return torch.cat([part.unflatten(0, (3, -1)) for part in parts], dim=1).flatten(0, 1)
    return torch.cat(list(parts), dim)


def full_shape(name: str, shape: Sequence[int], size: int) -> list[int]:
    """The shape of the whole parameter `name`, whose part on one of `size` ranks has the shape `shape`."""
    return [n * size if i == shard_dimension(name) else n for i, n in enumerate(shape)]


class RankGroup:
    """The tensor parallel group of this process: the ranks that hold one copy of the model together. This class is the
    group of a single rank; `model.parallel.TensorParallel` is the group of several.

    rank, size: the number of this rank in the group, and the number of ranks.
    layers: the factory of the model's layers, of which each rank holds its part.
    """

    rank, size = 0, 1
    layers: Layers = LAYERS

    def loss(self, x_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
        """Mean of -log softmax(x @ weight.T)[target] over N outputs and the whole vocabulary, in nats, fp32.
        `weight_VD`: the rows of the output matrix that this rank holds."""
        return cross_entropy(x_ND, weight_VD, targets_N)

    def project(self, x: Tensor, weight_VD: Tensor) -> Tensor:
        """Logits of the whole vocabulary on every rank: [..., D] -> [..., V]. `weight_VD`: the rows of the output
        matrix that this rank holds."""
        return linear(x, weight_VD)

    def draw_dropout_by_rank(self, attend: Any) -> Any:
        """Wrap the attention function `attend` so that its dropout differs between ranks: the heads of two ranks must
        not drop equal probabilities. Returns the wrapped function."""
        return attend

    def gather(self, name: str, part: Tensor) -> Tensor:
        """Gather the whole of parameter `name`, or its gradient, from the parts of all ranks. `part`: the part of this
        rank. All ranks call this method together."""
        return part

    def gather_objects(self, value: Any) -> list[Any]:
        """Gather the `value` of every rank, as a list in the order of ranks. All ranks call this method together."""
        return [value]


SINGLE_RANK = RankGroup()
