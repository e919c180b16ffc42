"""Held-out loss by context length, up to four times the training length, always for the same tokens.

A piece of held-out text is read in windows that begin half a training length apart. So every scored block of half a
training length is once at the beginning of a window, once after one block, once after two, and so on up to the end of a
window. Along the curve only the length of the context differs, and not the predicted tokens. All arms are measured on
the same text.

`BEYOND_TRAINING_LENGTH` says how each position scheme works beyond the training length; nothing is trained or changed
for it.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from eval.statistics.items import LN2, ratio_stderr
from eval.tasks.probes import MANY_BYTES

# Untuned: 4,096 tokens are predicted at nano, in some seconds on one core.
WINDOW_LENGTHS = 4  # training lengths: the longest window
BLOCKS_PER_LENGTH = 2  # blocks in a training length
MAX_PIECES = 8  # pieces of text
SCORED_BLOCKS = 4  # blocks of a piece that are scored at every context length

CUT_TO_TRAINING_LENGTH = ("learned",)  # longer inputs are cut: there is no vector for them
BEYOND_TRAINING_LENGTH = {
    "none": "nothing has to be extended: only the mask says how much came before",
    "learned": "there is no vector beyond the training length, so the curve ends there",
    "rotary": "the rotation goes on, to distances that no training step has shown",
    "alibi": "the slopes go on: what lies further back weighs less",
    "sinusoidal": "the sines go on, to positions that no training step has shown",
    "scaled-sinusoidal": "the sines go on, to positions that no training step has shown",
}


class Piece(NamedTuple):
    """A piece of held-out text: its token ids, and the UTF-8 bytes of its scored blocks, end-of-document excluded."""

    ids: list[int]  # [tokens_per_piece(seq)]
    size: int


def tokens_per_piece(seq: int) -> int:
    """The tokens of a piece for the training length `seq`: the scored blocks, the context of the first one in the
    longest window, and a token at the beginning, which is never predicted."""
    return (WINDOW_LENGTHS * BLOCKS_PER_LENGTH - 1 + SCORED_BLOCKS) * (seq // BLOCKS_PER_LENGTH) + 1


def pieces(texts: Sequence[str], tokenizer: Any, seq: int) -> list[Piece]:
    """Pieces of held-out text, at most MAX_PIECES: the beginnings of documents that are long enough by their bytes,
    then shorter documents joined by end-of-document tokens, as in training.

    Documents with characters that the tokenizer cannot represent are left out, since the number of bytes behind an
    unknown token is not known. `texts`: documents in the order of `probes.documents`; `tokenizer`: the tokenizer of the
    run; `seq`: the training length in tokens.
    """
    unknown = getattr(tokenizer, "unknown", None)
    n, w = tokens_per_piece(seq), seq // BLOCKS_PER_LENGTH
    most = int(MANY_BYTES * n)
    long = [text for text in texts if len(text.encode()) >= most]
    chosen, ids = list[Piece](), list[int]()
    for text in [*long, *(text for text in texts if len(text.encode()) < most)]:
        if unknown and unknown(text[:most])[0]:
            continue
        ids += [*tokenizer.encode(text[:most]), tokenizer.eod]
        if len(ids) >= n:
            first = (WINDOW_LENGTHS * BLOCKS_PER_LENGTH - 1) * w + 1
            size = len(tokenizer.decode(ids[:n]).encode()) - len(tokenizer.decode(ids[:first]).encode())
            chosen.append(Piece(ids[:n], size))
            ids = []
        if len(chosen) == MAX_PIECES:
            break
    return chosen


def loss_by_position(
    pieces: Sequence[Piece],
    seq: int,
    longest: int | None,
    score: Callable[[list[tuple[list[int], list[int]]]], list[tuple[float, bool]]],
) -> dict | None:
    """The loss in bits per byte by the number of tokens of context.

    Args:
        pieces: pieces of held-out text.
        seq: the training length in tokens.
        longest: the model's longest input, in tokens; None: unlimited.
        score: a function that returns for pairs (context, continuation) of token ids the log-likelihoods in nats of the
            continuations, as `Scorer.score`.

    Returns:
        {"positions": the numbers of tokens before the middle of the scored block; "bits_per_byte" and "stderr" (over
        pieces), a number for each position; "tokens" and "bytes", the numbers of scored ones}; None where there are no
        pieces.
    """
    w, bins = seq // BLOCKS_PER_LENGTH, WINDOW_LENGTHS * BLOCKS_PER_LENGTH
    reach = [b for b in range(bins) if not longest or (b + 1) * w <= longest]
    if not pieces or not w:
        return None
    pairs, where = [], []
    for p, piece in enumerate(pieces):
        for block in range(bins - 1, bins - 1 + SCORED_BLOCKS):
            for b in reach:
                start, at = (block - b) * w, block * w + 1
                pairs.append((piece.ids[start:at], piece.ids[at : at + w]))
                where.append((b, p))
    nats = np.zeros((len(reach), len(pieces)))
    for (b, p), (log_likelihood, _) in zip(where, score(pairs), strict=True):
        nats[b, p] -= log_likelihood
    sizes = np.array([piece.size for piece in pieces], float)
    return {
        "positions": [(b + 0.5) * w for b in reach],
        "bits_per_byte": [float(piece_nats.sum() / LN2 / sizes.sum()) for piece_nats in nats],
        "stderr": [ratio_stderr(piece_nats / LN2, sizes) if len(sizes) > 1 else None for piece_nats in nats],
        "tokens": len(pieces) * SCORED_BLOCKS * w,
        "bytes": int(sizes.sum()),
    }


def mean_curve(curves: list[dict | None]) -> dict | None:
    """The unweighted mean of the curves of several corpora, just as the held-out loss is averaged over corpora. None
    where there is no curve."""
    present = [curve for curve in curves if curve]
    if not present:
        return None
    errors = np.array([curve["stderr"] for curve in present], float)
    return {
        "positions": present[0]["positions"],
        "bits_per_byte": np.mean([curve["bits_per_byte"] for curve in present], axis=0).tolist(),
        "stderr": None if np.isnan(errors).any() else (np.sqrt((errors**2).sum(0)) / len(present)).tolist(),
        "tokens": sum(curve["tokens"] for curve in present),
        "bytes": sum(curve["bytes"] for curve in present),
    }
