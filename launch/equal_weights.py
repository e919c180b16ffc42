"""Checks that the copies of a weight on several ranks are still equal."""

from statistics import median_low
from typing import Any

import torch
import torch.distributed as dist

from launch.checkpoint import CheckpointError
from model.shard import shard_dimension


def check_equal_weights(model: Any, step: int) -> None:
    """Check that all copies of a weight, on different ranks, are equal bit for bit. All ranks call this function
    together.

    A faulty GPU or cable may silently produce wrong numbers, and nothing else in training compares the copies. Each
    rank sums the bits of its weights, and the ranks compare these sums. Parameters that tensor parallelism divides are
    summed apart from the others, since only some ranks have the same part.

    `model`: a model.gpt.GPT, as this rank holds it; `step`: the number of the step, for the message. Raises
    CheckpointError where the copies differ; the message names the ranks.
    """
    if dist.get_world_size() == 1:
        return
    rank, size = dist.get_rank(), model.tp.size
    sums = torch.zeros(2, dist.get_world_size(), dtype=torch.int64, device=next(model.parameters()).device)
    bits = {2: torch.int16, 4: torch.int32}
    for name, p in model.named_parameters():
        cut = shard_dimension(name) is not None
        sums[int(cut), rank] += p.detach().view(bits[p.element_size()]).sum()
    dist.all_reduce(sums)
    # sums of uncut parameters are equal on all ranks, those of cut ones on ranks with the same `rank % size`
    common_sums, cut_sums = sums.tolist()
    differing = [
        r
        for r in range(len(common_sums))
        if common_sums[r] != median_low(common_sums) or cut_sums[r] != median_low(cut_sums[r % size :: size])
    ]
    if differing:
        ranks = ", ".join(map(str, differing))
        raise CheckpointError(
            f"step {step}: the weights of rank {ranks} differ from the others'. Nothing was saved; the same "
            "command goes back to the last checkpoint."
        )
