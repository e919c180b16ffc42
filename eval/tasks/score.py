"""Log-likelihoods and greedy continuations of token ids under a GPT.

To save work, common beginnings of inputs are computed once (eval/tasks/rows.py), equal requests are scored once, and
the output matrix is applied only where a scored token is predicted.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eval.tasks.journal import Journal, request_key
from eval.tasks.rows import Input, Row, Tokens, batch_inputs, pack_rows, representatives, split_into_batches
from model.attention import Arrangement
from model.objective import Objective

Score = tuple[float, bool]  # log-likelihood in nats; whether greedy decoding would give every scored token

# Tokens of a forward pass, padding included. Measured on one core with 14M parameters: 1024 is 1.1 to 1.3 times as fast
# as 4096, and 512 and 2048 as 1024 within a tenth. A GPU wants many (untuned).
BATCH_CPU, BATCH_GPU = 1024, 32768
MAX_SHARED_ROW = (
    4096  # tokens, at most, of a row that several inputs share: its attention computes a matrix of all its scores
)
# Rows of logits whose log-softmax is taken at once.
ROWS_CPU, ROWS_GPU = 128, 4096
NOT_FINITE = "the model's scores are not numbers (NaN or infinite): its weights are damaged, or training diverged"


@torch.inference_mode()
def score_pairs(
    model: Any,
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
    batch: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    journal: Journal | None = None,
) -> list[Score]:
    """The scores of pairs (context, continuation) of token ids. Returns for each pair (log p(continuation | context) in
    nats, whether greedy decoding from the context gives the continuation).

    If an input is too long for the model, the beginning of the context is cut off. If the continuation alone is too
    long, it is scored in pieces of half the longest input. With the prefix objective, the context is the prefix.

    Args:
        model: a GPT in evaluation mode, on any device.
        pairs: the pairs of token ids.
        batch: the number of tokens of a forward pass, including padding; None: a default for the device.
        progress: a function that is called after every forward pass with the number of finished tokens and of all
            tokens.
        journal: scores that are known already; new scores are added to it.

    Raises:
        ValueError: the model's objective gives no likelihood of a text from left to right, or a score is NaN.
    """
    longest, objective = model.max_length, model.objective
    journal = journal or Journal()
    if longest and any(len(continuation) > longest for _, continuation in pairs):
        pieces = [split_to_fit(context, continuation, longest) for context, continuation in pairs]
        scores = iter(score_pairs(model, [piece for parts in pieces for piece in parts], batch, progress, journal))
        scored = [[next(scores) for _ in parts] for parts in pieces]
        return [(sum(nats for nats, _ in parts), all(best for _, best in parts)) for parts in scored]
    keys = [request_key(context, continuation) for context, continuation in pairs]
    inputs = [input_of_pair(context, continuation, longest, objective) for context, continuation in pairs]
    representative = representatives(inputs)
    pairs_of: dict[Input, list[int]] = {}  # an input that is run, and the pairs whose scores its outputs give
    for i, pair_input in enumerate(inputs):
        pairs_of.setdefault(representative[pair_input], []).append(i)
    device = next(model.parameters()).device
    batch = batch or (BATCH_GPU if device.type == "cuda" else BATCH_CPU)
    packed = pack_rows(pairs_of, model.cfg.hidden, MAX_SHARED_ROW)
    done, total = 0, sum(map(len, packed))
    for group in journal.batches_of_rank(list(split_into_batches(packed, batch))):
        positions = output_positions(group, pairs, inputs, pairs_of)
        numbers = list(positions)  # of the pairs of this batch
        done += sum(map(len, group))
        if all(keys[i] in journal for i in numbers):
            continue
        outputs, index = np.unique(np.concatenate(list(positions.values())), return_inverse=True)
        x_ND = model.hidden_states(*batch_inputs(group, device, objective), rows_N=torch.from_numpy(outputs).to(device))
        logp, greedy = token_scores(model, x_ND, index, np.concatenate([np.asarray(pairs[i][1]) for i in numbers]))
        starts = np.cumsum([0] + [len(pairs[i][1]) for i in numbers])[:-1]
        nats, best = np.add.reduceat(logp, starts), np.logical_and.reduceat(greedy, starts)
        if not np.isfinite(nats).all():
            raise ValueError(NOT_FINITE)
        journal.add({keys[i]: scores for i, *scores in zip(numbers, nats.tolist(), best.tolist(), strict=True)})
        progress(done, total)
    if not journal.wait_until_complete(keys):
        return score_pairs(model, pairs, batch, progress, journal)
    return [(nats, best) for nats, best in (journal.get(key, (0.0, False)) for key in keys)]


def input_of_pair(
    context: Sequence[int], continuation: Sequence[int], longest: int | None, objective: Objective
) -> Input:
    """The input that a model reads to score a continuation: context and continuation without its last token, which is
    only predicted. `longest`: the model's longest input, in tokens; the beginning of a longer input is cut off; None:
    unlimited."""
    tokens = (*context, *continuation)[:-1]
    tokens = tokens[-longest:] if longest else tokens
    return Input(tokens, objective.evaluation_extent(len(tokens) - len(continuation) + 1))


def output_positions(
    group: Sequence[Row],
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
    inputs: Sequence[Input],
    pairs_of: Mapping[Input, Sequence[int]],
) -> dict[int, np.ndarray]:
    """The positions in a batch whose outputs predict the continuation of each pair: {number of the pair: positions in
    the flattened batch}.

    Args:
        group: the rows of the batch, the longest first.
        pairs: all pairs (context, continuation) of token ids.
        inputs: the input of each pair.
        pairs_of: {input in a row: numbers of the pairs that are scored by its outputs}.
    """
    positions = {}
    for b, row in enumerate(group):
        earlier = 0  # tokens of the branches before this one
        for branch in row.inputs:
            for i in pairs_of[branch]:
                in_input = np.arange(len(inputs[i].tokens) - len(pairs[i][1]), len(inputs[i].tokens))
                positions[i] = b * len(group[0]) + np.where(in_input < row.stem, in_input, in_input + earlier)
            earlier += len(branch.tokens) - row.stem
    return positions


def split_to_fit(
    context: Sequence[int], continuation: Sequence[int], longest: int
) -> list[tuple[Sequence[int], Sequence[int]]]:
    """Split a pair (context, continuation) whose continuation has more than `longest` tokens. The continuation is cut
    into pieces of longest / 2 tokens; the context of a piece is everything before it. A shorter pair is returned
    unchanged, in a list of one."""
    if len(continuation) <= longest:
        return [(context, continuation)]
    half = max(1, longest // 2)
    starts = range(0, len(continuation), half)
    return [([*context, *continuation[:start]], continuation[start : start + half]) for start in starts]


def token_scores(model: Any, x_ND: Tensor, index: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The scores of target tokens: (the log-probability of each in nats, float64 [targets]; whether it is the likeliest
    token of its output, bool [targets]). An output that several targets use is multiplied with the output matrix once.

    Args:
        model: a GPT.
        x_ND: outputs of the model's last layer.
        index: [targets], for each target the row of `x_ND` that predicts it.
        target: [targets], the token ids.
    """
    order = np.argsort(index, kind="stable")
    logp, greedy = np.empty(len(index)), np.empty(len(index), bool)
    step = ROWS_GPU if x_ND.is_cuda else ROWS_CPU
    for first in range(0, len(x_ND), step):
        block = order[np.searchsorted(index[order], first) : np.searchsorted(index[order], first + step)]
        logp_NV = model.project(x_ND[first : first + step]).float().log_softmax(-1)
        n, v = (torch.from_numpy(a).to(x_ND.device) for a in (index[block] - first, target[block]))
        logp[block] = logp_NV[n, v].double().cpu().numpy()
        greedy[block] = is_likeliest(logp_NV, n, v).cpu().numpy()
    return logp, greedy


def is_likeliest(logp_NV: Tensor, n: Tensor, v: Tensor) -> Tensor:
    """Whether greedy decoding would take the target token at its output, for each target: bool [targets]. Of equally
    likely tokens greedy decoding takes the one with the lowest id.

    Args:
        logp_NV: the log-probabilities of the outputs.
        n: int64 [targets], the row of `logp_NV` of each target.
        v: int64 [targets], the token id of each target.
    """
    if logp_NV.is_cuda:
        return logp_NV.argmax(-1)[n] == v
    # on a CPU argmax takes longer than log_softmax, and amax a tenth of it
    likeliest = logp_NV[n, v] == logp_NV.amax(-1)[n]
    (equal,) = likeliest.nonzero(as_tuple=True)
    likeliest[equal] = logp_NV[n[equal]].argmax(-1) == v[equal]
    return likeliest


# ------------------------------------------------------------------------------------------- greedy continuation


@torch.inference_mode()
def greedy_continuations(
    model: Any,
    contexts: Sequence[Sequence[int]],
    max_new: int,
    is_end: Callable[[list[int]], bool],
    batch: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    journal: Journal | None = None,
) -> list[list[int]]:
    """The greedy continuation of each context as token ids, computed with a cache of keys and values.

    Where context and `max_new` tokens exceed the model's longest input, the beginning of the context is cut off.

    Args:
        model: a GPT in evaluation mode, on any device.
        contexts: token ids, at least one in each context.
        max_new: the largest number of tokens of a continuation.
        is_end: a function that takes the ids of a continuation so far, and returns whether the continuation ends with
            them.
        batch: the number of tokens of a forward pass, including padding; None: a default for the device.
        progress: a function that is called after every batch with the number of tokens of finished contexts and of all
            contexts.
        journal: continuations that are known already; new continuations are added to it.
    """
    longest, journal = model.max_length, journal or Journal()
    device = next(model.parameters()).device
    batch = batch or (BATCH_GPU if device.type == "cuda" else BATCH_CPU)
    fitting = [tuple(ids[-(longest - max_new) :] if longest else ids) for ids in contexts]
    keys = [request_key(ids, (-max_new,)) for ids in fitting]
    requests = sorted(set(zip(fitting, keys, strict=True)), key=lambda request: (-len(request[0]), request))
    done, total = 0, sum(len(ids) for ids, _ in requests)
    groups: list[list[tuple[Tokens, str]]] = []
    for request in requests:  # the new tokens have keys and values too
        if not groups or (len(groups[-1]) + 1) * (len(groups[-1][0][0]) + max_new) > 2 * batch:
            groups.append([])
        groups[-1].append(request)
    for group in journal.batches_of_rank(groups):
        done += sum(len(ids) for ids, _ in group)
        if all(key in journal for _, key in group):
            continue
        decoded = decode_batch(model, [ids for ids, _ in group], max_new, is_end)
        journal.add({key: ids for (_, key), ids in zip(group, decoded, strict=True)})
        progress(done, total)
    if not journal.wait_until_complete(keys):
        return greedy_continuations(model, contexts, max_new, is_end, batch, progress, journal)
    return [journal.get(key, []) for key in keys]


def decode_batch(model: Any, group: list[Tokens], max_new: int, is_end: Callable[[list[int]], bool]) -> list[list[int]]:
    """The greedy continuation of each context of one batch, as token ids.

    Args:
        model: a GPT in evaluation mode.
        group: the contexts, the longest first.
        max_new: the largest number of tokens of a continuation.
        is_end: a function that takes the ids of a continuation so far, and returns whether the continuation ends with
            them.
    """
    device, objective = next(model.parameters()).device, model.objective
    decoded: list[list[int]] = [[] for _ in group]
    length, P = torch.tensor([len(ids) for ids in group], device=device), len(group[0])
    x_BT = torch.tensor([[*ids, *[0] * (P - len(ids))] for ids in group], device=device)
    t = torch.arange(P, device=device)
    real_BP = t < length[:, None]
    extents_B = torch.tensor([objective.evaluation_extent(len(ids)) for ids in group], device=device)
    b = torch.arange(len(group), device=device)[:, None, None]
    sees_BTP = objective.sees(extents_B, b, t[:, None], t).expand(len(group), P, P)
    arrangement = Arrangement(t.expand(len(group), P), sees_BTP, past=[])
    x_BD = model.hidden_states(x_BT, arrangement)[torch.arange(len(group), device=device), length - 1]
    alive = list(range(len(group)))
    for step in range(max_new):
        logit_B, token_B = model.project(x_BD)[:, : model.cfg.vocab].max(-1)  # the rest is padding, and no text
        if not torch.isfinite(logit_B).all():
            raise ValueError(NOT_FINITE)
        for i, token in zip(alive, token_B.tolist(), strict=True):
            decoded[i].append(token)
        unfinished = [n for n, i in enumerate(alive) if not is_end(decoded[i])]
        if not unfinished or step + 1 == max_new:
            break
        assert arrangement.past is not None
        past_positions_BP = arrangement.positions_BT
        if arrangement.past_positions_BP is not None:
            past_positions_BP = torch.cat((arrangement.past_positions_BP, past_positions_BP), dim=1)
        if len(unfinished) < len(alive):
            kept_indices = torch.tensor(unfinished, device=device)
            alive = [alive[n] for n in unfinished]
            arrangement.past[:] = [(k[kept_indices], v[kept_indices]) for k, v in arrangement.past]
            token_B, length, real_BP, past_positions_BP = (
                token_B[kept_indices],
                length[kept_indices],
                real_BP[kept_indices],
                past_positions_BP[kept_indices],
            )
        real_BP = torch.cat((real_BP, real_BP.new_ones(len(alive), 1)), dim=1)
        arrangement = Arrangement((length + step)[:, None], real_BP[:, None], arrangement.past, past_positions_BP)
        x_BD = model.hidden_states(token_B[:, None], arrangement)[:, 0]
    return decoded
