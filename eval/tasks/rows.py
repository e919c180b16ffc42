"""Packs the inputs of a model into rows and batches, so that a common beginning of several inputs is computed once.

For example, the choices after one context have the context in common. Such inputs share a row of the batch: first the
stem, their common beginning, then a branch for the rest of each input. A token of a branch sees only the stem and its
own branch, at its original position (`Arrangement` in model/attention.py). So its output is the same as for the input
alone. Rows of similar length form a batch.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from model.attention import Arrangement
from model.objective import Objective

Tokens = tuple[int, ...]


class Input(NamedTuple):
    """A sequence of token ids that a model reads. `extent`: the length of its bidirectional prefix; 0 where the
    objective of the model is causal."""

    tokens: Tokens
    extent: int  # the length of the prefix, from `Objective.evaluation_extent`; 0 where the objective is causal


class Row(NamedTuple):
    """A row of a batch: inputs that share their first `stem` tokens. Its length is the stem plus all branches."""

    stem: int
    inputs: list[Input]

    def __len__(self) -> int:
        return self.stem + sum(len(branch.tokens) - self.stem for branch in self.inputs)


def representatives(inputs: Iterable[Input]) -> dict[Input, Input]:
    """Find inputs that need no forward pass of their own, because a longer input begins with them. Returns {input: the
    longest such input, or the input itself}."""
    representative: dict[Input, Input] = {}
    longer = Input((), 0)
    for sequence in sorted(set(inputs), key=lambda x: (x.extent, x.tokens), reverse=True):
        is_beginning = longer.extent == sequence.extent and longer.tokens[: len(sequence.tokens)] == sequence.tokens
        representative[sequence] = representative[longer] if is_beginning else sequence
        longer = sequence
    return representative


def pack_rows(inputs: Iterable[Input], hidden: int, max_tokens: int) -> list[Row]:
    """Distribute inputs over rows of a batch. Inputs with a common beginning share a row where that saves work. Longer
    rows come first.

    The work of a row of n tokens is estimated as n for its matrix products plus n^2 / (2 x hidden) for attention, which
    computes the scores of the whole row. Per token the products take 24 hidden^2 FLOPs and attention 4 n hidden,
    counted three times because it runs slower (untuned).

    Args:
        inputs: the inputs, all different.
        hidden: the width of the model.
        max_tokens: the largest number of tokens of a row that several inputs share.
    """

    def work(n: int) -> float:
        return n + n * n / (2 * hidden)

    packed: list[Row] = []
    for sequence in sorted(inputs, key=lambda x: (x.extent, x.tokens)):
        if packed and packed[-1].inputs[-1].extent == sequence.extent:
            row = packed[-1]
            stem = common_prefix_length(row.inputs[-1].tokens, sequence.tokens, row.stem)
            k = len(row.inputs)
            n = len(row) + (k - 1) * row.stem + len(sequence.tokens) - k * stem
            cheaper = work(n) < work(len(row)) + work(len(sequence.tokens))
            if stem and stem >= sequence.extent and n <= max_tokens and cheaper:
                packed[-1] = Row(stem, [*row.inputs, sequence])
                continue
        packed.append(Row(len(sequence.tokens), [sequence]))
    return sorted(packed, key=lambda row: (-len(row), row.inputs[0].tokens))


def common_prefix_length(a: Tokens, b: Tokens, limit: int) -> int:
    """The number of tokens that two inputs have in common at their beginning, counted up to `limit`."""
    n = min(len(a), len(b), limit)
    if a[:n] == b[:n]:
        return n
    return next(i for i in range(n) if a[i] != b[i])


def split_into_batches(rows: Iterable[Row], max_tokens: int) -> Iterator[list[Row]]:
    """Divide rows into batches of at most `max_tokens` tokens, padding included; a longer row is a batch alone. `rows`:
    sorted by falling length."""
    group: list[Row] = []
    for row in rows:
        if group and (len(group) + 1) * len(group[0]) > max_tokens:
            yield group
            group = []
        group.append(row)
    if group:
        yield group


def batch_inputs(rows: list[Row], device: torch.device, objective: Objective) -> tuple[Tensor, Arrangement | None]:
    """The arguments of `GPT.hidden` for a batch of rows: (token ids [B, T], padded on the right; the arrangement of
    positions and attention mask). The arrangement is None where every row has one input and the model is causal.

    Args:
        rows: the rows of the batch, the longest first.
        device: the device of the tensors.
        objective: the objective of the model, which says which tokens see each other.
    """
    B, T = len(rows), max(map(len, rows))
    tokens_BT, positions_BT, branch_BT = np.zeros((3, B, T), np.int64)  # branch 0 is the stem, -1 the padding
    for b, row in enumerate(rows):
        tokens_BT[b, : row.stem] = row.inputs[0].tokens[: row.stem]
        positions_BT[b, : row.stem] = range(row.stem)
        start = row.stem
        for number, sequence in enumerate(row.inputs, start=1):
            end = start + len(sequence.tokens) - row.stem
            tokens_BT[b, start:end] = sequence.tokens[row.stem :]
            positions_BT[b, start:end] = range(row.stem, len(sequence.tokens))
            branch_BT[b, start:end] = number
            start = end
        branch_BT[b, start:] = -1
    ids_BT = torch.from_numpy(tokens_BT).to(device)
    if objective.causal and not (branch_BT > 0).any():  # what pads on the right is never seen
        return ids_BT, None
    branch, pos = torch.from_numpy(branch_BT).to(device), torch.from_numpy(positions_BT).to(device)
    extents_B = torch.tensor([row.inputs[0].extent for row in rows], device=device)
    row_B = torch.arange(B, device=device)[:, None, None]
    same_input = (branch[:, None, :] == 0) | (branch[:, None, :] == branch[:, :, None])
    return ids_BT, Arrangement(pos, same_input & objective.sees(extents_B, row_B, pos[:, :, None], pos[:, None, :]))
