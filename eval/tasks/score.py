"""Log-likelihoods and greedy continuations of token ids under a GPT, with nothing computed twice.

Inputs that begin alike (the choices of a question behind its context, the questions about one passage) share a row of
the batch: a stem, and branches that continue it. A token of a branch stands where it would stand in its own input, and
sees the stem and its own branch (`Arrangement` in model/attention.py), so what it computes is what it would compute
alone. Rows of similar length go together, and only what is scored meets the output matrix.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from model.attention import Arrangement
from model.objective import Objective

Tokens = tuple[int, ...]
Score = tuple[float, bool]  # log-likelihood in nats; whether each scored token is the likeliest

# Tokens of a forward pass, padding included. Measured on one core with 14M parameters: 1024 is 1.1 to 1.3 times as fast
# as 4096, and 512 and 2048 as 1024 within a tenth. A GPU wants many (untuned).
BATCH_CPU, BATCH_GPU = 1024, 32768
JOINED = 4096  # tokens of a row in which inputs are joined, at most: its scores are a matrix
# Rows of logits whose log-softmax is taken at once.
ROWS_CPU, ROWS_GPU = 128, 4096
NOT_FINITE = "the model's scores are not numbers (NaN or infinite): its weights are damaged, or training diverged"


class Input(NamedTuple):
    """What a model reads. `extent`: see `Objective.extent`; 0 where the objective is causal."""

    tokens: Tokens
    extent: int


class Row(NamedTuple):
    """Inputs that share their first `stem` tokens."""

    stem: int
    inputs: list[Input]

    def __len__(self) -> int:
        return self.stem + sum(len(each.tokens) - self.stem for each in self.inputs)


@torch.inference_mode()
def likelihoods(
    model: Any,
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
    batch: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    journal: "Journal | None" = None,
) -> list[Score]:
    """For token ids (given, scored): log p(scored | given), and whether greedy decoding would say it.

    Where the model has a longest input, what is given is cut from the left; elsewhere nothing is. More scored tokens
    than it can be given are scored in pieces of half that length. With the prefix objective, what is given is the
    prefix.

    Raises:
        ValueError: when the model's objective gives no likelihood of a text from left to right.

    Args:
        model: a GPT, in evaluation, on any device.
        batch: tokens of a forward pass.
        progress: called after every forward pass with the tokens done and the tokens in all.
        journal: what was scored before, and where what is scored now is kept.
    """
    longest, objective = model.max_length, model.objective
    journal = journal or Journal()
    if longest and any(len(scored) > longest for _, scored in pairs):
        pieces = [cut(given, scored, longest) for given, scored in pairs]
        scores = iter(likelihoods(model, [pair for each in pieces for pair in each], batch, progress, journal))
        parts = [[next(scores) for _ in each] for each in pieces]
        return [(sum(nats for nats, _ in each), all(best for _, best in each)) for each in parts]
    keys = [digest(given, scored) for given, scored in pairs]
    inputs: dict[int, Input] = {}
    for i, (given, scored) in enumerate(pairs):
        tokens = (*given, *scored)[:-1]
        tokens = tokens[-longest:] if longest else tokens
        inputs[i] = Input(tokens, objective.extent(len(tokens) - len(scored) + 1))

    serves = served(inputs.values())
    wanted: dict[Input, list[int]] = {}
    for i, each in inputs.items():
        wanted.setdefault(serves[each], []).append(i)
    device = next(model.parameters()).device
    batch = batch or (BATCH_GPU if device.type == "cuda" else BATCH_CPU)
    grouped = rows(wanted, model.cfg.hidden, JOINED)
    done, total = 0, sum(map(len, grouped))
    for group in journal.share(list(batches(grouped, batch))):
        asked: list[int] = []
        where: list[np.ndarray] = []  # places in the flat batch whose outputs predict what is scored
        for b, row in enumerate(group):
            beyond = 0  # tokens of the branches before
            for each in row.inputs:
                for i in wanted[each]:
                    at = np.arange(len(inputs[i].tokens) - len(pairs[i][1]), len(inputs[i].tokens))
                    where.append(b * len(group[0]) + np.where(at < row.stem, at, at + beyond))
                    asked.append(i)
                beyond += len(each.tokens) - row.stem
        done += sum(map(len, group))
        if all(keys[i] in journal for i in asked):
            continue
        places, index = np.unique(np.concatenate(where), return_inverse=True)
        x_ND = model.hidden(*arrange(group, device, objective), only=torch.from_numpy(places).to(device))
        logp, greedy = measure(model, x_ND, index, np.concatenate([np.asarray(pairs[i][1]) for i in asked]))
        starts = np.cumsum([0] + [len(pairs[i][1]) for i in asked])[:-1]
        nats, best = np.add.reduceat(logp, starts), np.logical_and.reduceat(greedy, starts)
        if not np.isfinite(nats).all():
            raise ValueError(NOT_FINITE)
        journal.add({keys[i]: found for i, *found in zip(asked, nats.tolist(), best.tolist(), strict=True)})
        progress(done, total)
    if not journal.complete(keys):
        return likelihoods(model, pairs, batch, progress, journal)
    return [(nats, best) for nats, best in (journal.get(key, (0.0, False)) for key in keys)]


def cut(given: Sequence[int], scored: Sequence[int], longest: int) -> list[tuple[Sequence[int], Sequence[int]]]:
    """A pair as it is, or, where there is more to score than the model can be given, in pieces of half of that."""
    if len(scored) <= longest:
        return [(given, scored)]
    half = max(1, longest // 2)
    return [([*given, *scored[:at]], scored[at : at + half]) for at in range(0, len(scored), half)]


def measure(model: Any, x_ND: Tensor, index: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For outputs `x_ND`: the log-probabilities, in float64, of tokens `target` at `index` of them, and whether each
    is the likeliest. Every output is projected once, whoever asks about it."""
    order = np.argsort(index, kind="stable")
    logp, greedy = np.empty(len(index)), np.empty(len(index), bool)
    step = ROWS_GPU if x_ND.is_cuda else ROWS_CPU
    for first in range(0, len(x_ND), step):
        asked = order[np.searchsorted(index[order], first) : np.searchsorted(index[order], first + step)]
        logp_NV = model.project(x_ND[first : first + step]).float().log_softmax(-1)
        likeliest = logp_NV.argmax(-1)
        n, v = (torch.from_numpy(a).to(x_ND.device) for a in (index[asked] - first, target[asked]))
        logp[asked] = logp_NV[n, v].double().cpu().numpy()
        greedy[asked] = (likeliest[n] == v).cpu().numpy()
    return logp, greedy


# ------------------------------------------------------------------------------------------- rows and batches


def served(inputs: Iterable[Input]) -> dict[Input, Input]:
    """For each input, one that begins with it and is run in its stead: four choices of one word are a single pass.

    In lexicographic order an input stands right before those that begin with it.
    """
    serves: dict[Input, Input] = {}
    after = Input((), 0)
    for each in sorted(set(inputs), key=lambda x: (x.extent, x.tokens), reverse=True):
        begins = after.extent == each.extent and after.tokens[: len(each.tokens)] == each.tokens
        serves[each] = serves[after] if begins else each
        after = each
    return serves


def rows(inputs: Iterable[Input], hidden: int, most: int) -> list[Row]:
    """Inputs that begin alike, together where that saves work; longest row first.

    The work of a row of n tokens is taken as n + n^2 / (2 x hidden): its matrix products, and attention, which computes
    the scores of the whole row. Per token the products are 24 hidden^2 FLOPs and attention 4 n hidden, counted three
    times because it runs slower (untuned).

    most: tokens of a row, where inputs are joined.
    """

    def work(n: int) -> float:
        return n + n * n / (2 * hidden)

    made: list[Row] = []
    for each in sorted(inputs, key=lambda x: (x.extent, x.tokens)):
        if made and made[-1].inputs[-1].extent == each.extent:
            row = made[-1]
            stem = common(row.inputs[-1].tokens, each.tokens, row.stem)
            k = len(row.inputs)
            n = len(row) + (k - 1) * row.stem + len(each.tokens) - k * stem
            cheaper = work(n) < work(len(row)) + work(len(each.tokens))
            if stem and stem >= each.extent and n <= most and cheaper:
                made[-1] = Row(stem, [*row.inputs, each])
                continue
        made.append(Row(len(each.tokens), [each]))
    return sorted(made, key=lambda row: (-len(row), row.inputs[0].tokens))


def common(a: Tokens, b: Tokens, most: int) -> int:
    """How many tokens two inputs have in common at the beginning, at most `most`."""
    n = min(len(a), len(b), most)
    if a[:n] == b[:n]:
        return n
    return next(i for i in range(n) if a[i] != b[i])


def batches(rows: Iterable[Row], most: int) -> Iterator[list[Row]]:
    """Cuts rows, longest first, into batches of at most so many tokens with padding, and at least one row."""
    group: list[Row] = []
    for row in rows:
        if group and (len(group) + 1) * len(group[0]) > most:
            yield group
            group = []
        group.append(row)
    if group:
        yield group


def arrange(group: list[Row], device: torch.device, objective: Objective) -> tuple[Tensor, Arrangement | None]:
    """A batch as `GPT.hidden` takes it: tokens [B, T], padded on the right, and their arrangement (None: each follows
    from its order)."""
    B, T = len(group), max(map(len, group))
    tokens_BT, at_BT, branch_BT = np.zeros((3, B, T), np.int64)  # branch 0 is the stem, -1 the padding
    for b, row in enumerate(group):
        tokens_BT[b, : row.stem] = row.inputs[0].tokens[: row.stem]
        at_BT[b, : row.stem] = range(row.stem)
        start = row.stem
        for number, each in enumerate(row.inputs, start=1):
            end = start + len(each.tokens) - row.stem
            tokens_BT[b, start:end] = each.tokens[row.stem :]
            at_BT[b, start:end] = range(row.stem, len(each.tokens))
            branch_BT[b, start:end] = number
            start = end
        branch_BT[b, start:] = -1
    x_BT = torch.from_numpy(tokens_BT).to(device)
    if objective.causal and not (branch_BT > 0).any():  # what pads on the right is never seen
        return x_BT, None
    branch, at = torch.from_numpy(branch_BT).to(device), torch.from_numpy(at_BT).to(device)
    extents_B = torch.tensor([row.inputs[0].extent for row in group], device=device)
    row_B = torch.arange(B, device=device)[:, None, None]
    together = (branch[:, None, :] == 0) | (branch[:, None, :] == branch[:, :, None])
    return x_BT, Arrangement(at, together & objective.sees(extents_B, row_B, at[:, :, None], at[:, None, :]))


# ------------------------------------------------------------------------------------------- greedy continuation


@torch.inference_mode()
def continuations(
    model: Any,
    contexts: Sequence[Sequence[int]],
    new: int,
    ended: Callable[[list[int]], bool],
    batch: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    journal: "Journal | None" = None,
) -> list[list[int]]:
    """The likeliest next token, `new` times, after each context; with keys and values kept from step to step.

    A context is cut from the left where, with `new` tokens, it would be longer than the model's longest input.

    ended: whether a continuation so far is long enough; what it has then is returned.
    """
    longest, journal = model.max_length, journal or Journal()
    device = next(model.parameters()).device
    batch = batch or (BATCH_GPU if device.type == "cuda" else BATCH_CPU)
    cut = [tuple(ids[-(longest - new) :] if longest else ids) for ids in contexts]
    keys = [digest(ids, (-new,)) for ids in cut]
    todo = sorted(set(zip(cut, keys, strict=True)), key=lambda each: (-len(each[0]), each))
    done, total = 0, sum(len(ids) for ids, _ in todo)
    groups: list[list[tuple[Tokens, str]]] = []
    for each in todo:  # the new tokens have keys and values too
        if not groups or (len(groups[-1]) + 1) * (len(groups[-1][0][0]) + new) > 2 * batch:
            groups.append([])
        groups[-1].append(each)
    for group in journal.share(groups):
        done += sum(len(ids) for ids, _ in group)
        if all(key in journal for _, key in group):
            continue
        found = extend(model, [ids for ids, _ in group], new, ended)
        journal.add({key: ids for (_, key), ids in zip(group, found, strict=True)})
        progress(done, total)
    if not journal.complete(keys):
        return continuations(model, contexts, new, ended, batch, progress, journal)
    return [journal.get(key, []) for key in keys]


def extend(model: Any, group: list[Tokens], new: int, ended: Callable[[list[int]], bool]) -> list[list[int]]:
    """`continuations` of contexts in one batch, the longest first."""
    device, objective = next(model.parameters()).device, model.objective
    made: list[list[int]] = [[] for _ in group]
    length, P = torch.tensor([len(ids) for ids in group], device=device), len(group[0])
    x_BT = torch.tensor([[*ids, *[0] * (P - len(ids))] for ids in group], device=device)
    t = torch.arange(P, device=device)
    real_BP = t < length[:, None]
    extents_B = torch.tensor([objective.extent(len(ids)) for ids in group], device=device)
    b = torch.arange(len(group), device=device)[:, None, None]
    sees_BTP = objective.sees(extents_B, b, t[:, None], t).expand(len(group), P, P)
    arrangement = Arrangement(t.expand(len(group), P), sees_BTP, past=[])
    x_BD = model.hidden(x_BT, arrangement)[torch.arange(len(group), device=device), length - 1]
    alive = list(range(len(group)))
    for step in range(new):
        logit_B, token_B = model.project(x_BD)[:, : model.cfg.vocab].max(-1)  # the rest is padding, and no text
        if not torch.isfinite(logit_B).all():
            raise ValueError(NOT_FINITE)
        for i, token in zip(alive, token_B.tolist(), strict=True):
            made[i].append(token)
        keep = [n for n, i in enumerate(alive) if not ended(made[i])]
        if not keep or step + 1 == new:
            break
        assert arrangement.past is not None
        at_BP = arrangement.at_BT
        if arrangement.at_BP is not None:
            at_BP = torch.cat((arrangement.at_BP, at_BP), dim=1)
        if len(keep) < len(alive):
            rest = torch.tensor(keep, device=device)
            alive = [alive[n] for n in keep]
            arrangement.past[:] = [(k[rest], v[rest]) for k, v in arrangement.past]
            token_B, length, real_BP, at_BP = token_B[rest], length[rest], real_BP[rest], at_BP[rest]
        real_BP = torch.cat((real_BP, real_BP.new_ones(len(alive), 1)), dim=1)
        arrangement = Arrangement((length + step)[:, None], real_BP[:, None], arrangement.past, at_BP)
        x_BD = model.hidden(token_B[:, None], arrangement)[:, 0]
    return made


# ------------------------------------------------------------------------------------------- what is kept


def digest(given: Sequence[int], scored: Sequence[int]) -> str:
    """Identifies a request, whatever its place among others."""
    return hashlib.sha256(np.array([len(given), *given, *scored], np.int64).tobytes()).hexdigest()[:24]


class Journal:
    """What has been scored, in memory and, given a folder, in a file that grows by a batch at a time.

    After a kill, the next process begins with what the files hold, whoever wrote them. Several processes with the same
    requests divide the batches among them: `rank` of `ranks`; the first waits for the others and reads what they wrote.

    folder: holds a file of each rank. identity: what the outcomes depend on; files that say otherwise are ignored.
    working: whether the other ranks all are at work still.
    """

    def __init__(
        self,
        folder: Path | None = None,
        identity: dict | None = None,
        rank: int = 0,
        ranks: int = 1,
        working: Callable[[], bool] = lambda: False,
    ):
        self.folder, self.identity, self.rank, self.ranks, self.working = folder, identity, rank, ranks, working
        self.known: dict[str, Any] = {}
        self.read: dict[Path, int] = {}
        if folder is None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        self.refresh()
        # a file of its own for each process: two that were started twice by mistake do not write into one another's
        self.file = open(folder / f"{rank}-{os.getpid()}.jsonl", "ab")
        self._line({"identity": identity})

    def __contains__(self, key: str) -> bool:
        return key in self.known

    def get(self, key: str, other: Any) -> Any:
        """What was scored. `other` is for a rank that is not the first: nobody reads its results."""
        return self.known.get(key, other) if self.rank else self.known[key]

    def share(self, batches: list[Any]) -> list[Any]:
        """The batches that this process is to do: every so manieth, so that all have long and short ones."""
        return batches[self.rank :: self.ranks]

    def add(self, found: dict[str, Any]) -> None:
        self.known |= found
        if self.folder:
            self._line(found)

    def _line(self, content: Any) -> None:
        self.file.write(json.dumps(content).encode() + b"\n")
        self.file.flush()

    def refresh(self) -> None:
        """Reads what has been written since; a line that a kill has cut is left out."""
        assert self.folder is not None
        head = json.dumps({"identity": self.identity}).encode() + b"\n"
        for path in sorted(self.folder.glob("*.jsonl")):
            with open(path, "rb") as file:
                file.seek(self.read.get(path, 0))
                content = file.read()
            if path in self.read or content.startswith(head):
                whole = content[: content.rfind(b"\n") + 1]
                self.read[path] = self.read.get(path, 0) + len(whole)
                for line in whole.splitlines():
                    self.known |= json.loads(line)

    def complete(self, keys: list[str]) -> bool:
        """Whether all is known, when the other ranks have done their share. False: one is gone, and this process is on
        its own now. Nobody asks the others for results: they are always done."""
        if self.rank:
            return True
        while self.ranks > 1 and not all(key in self.known for key in keys):
            working = self.working()
            self.refresh()
            if not working and not all(key in self.known for key in keys):
                self.ranks = 1
                return False
            time.sleep(0.05)
        return True

    def close(self) -> None:
        if self.folder:
            self.file.close()
