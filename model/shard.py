"""How tensor parallelism divides each parameter among ranks, by the parameter's name.

| parameter                            | the part of each rank                                                   |
|--------------------------------------|-------------------------------------------------------------------------|
| embed.weight, head.weight, output.bias | consecutive rows of the padded vocabulary                             |
| qkv.weight, qkv.bias                 | whole heads, the same for q, k and v: rows are [3, heads, K]            |
| up.*, gate.*                         | consecutive rows of the inner width, the same for both                  |
| proj.weight, down.weight             | the columns for the features that the rank has computed                 |
| norms, positions, other biases       | everything; all ranks have equal copies                                 |

This file needs no torch.distributed and no megatron-core, unlike model/parallel.py.
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
    """The part of parameter `name` for rank `rank` of a tensor parallel group of `size` ranks. `full`: the whole
    parameter, or another tensor of its shape."""
    dim = shard_dimension(name)
    if dim is None or size == 1:
        return full
    if name.split(".")[-2] == "qkv":
        return full.unflatten(0, (3, -1)).tensor_split(size, dim=1)[rank].flatten(0, 1)
    return full.tensor_split(size, dim)[rank]


def unshard(name: str, parts: Sequence[Tensor]) -> Tensor:
    """Join the parts of parameter `name` to the whole. `parts`: the parts that `shard` makes, in the order of ranks."""
    dim = shard_dimension(name)
    if dim is None or len(parts) == 1:
        return parts[0]
    if name.split(".")[-2] == "qkv":
        return torch.cat([part.unflatten(0, (3, -1)) for part in parts], dim=1).flatten(0, 1)
    return torch.cat(list(parts), dim)


def full_shape(name: str, shape: Sequence[int], size: int) -> list[int]:
    """The shape of the whole parameter `name`. `shape`: that of its part on one of `size` ranks."""
    return [n * size if i == shard_dimension(name) else n for i, n in enumerate(shape)]


class RankGroup:
    """The tensor parallel group of this process: the ranks that hold one copy of the model together. This class is a
    group of one rank; `model.parallel.TensorParallel` is a group of several.

    rank: the number of this rank in the group.
    size: the number of ranks.
    layers: the factory of the model's layers, which makes this rank's parts.
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
        """Wrap the attention function `attend` so that dropout is drawn differently on each rank, since the ranks have
        different heads. Returns the wrapped function."""
        return attend

    def gather(self, name: str, part: Tensor) -> Tensor:
        """Gather the whole of parameter `name`, or of its gradient, from all ranks. `part`: that of this rank. All
        ranks call this method together."""
        return part

    def gather_objects(self, value: Any) -> list[Any]:
        """Gather the `value` of every rank, in the order of ranks. All ranks call this method together."""
        return [value]


SINGLE_RANK = RankGroup()
