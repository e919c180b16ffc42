"""Held-out loss by the number of context tokens, up to four times the training length, always for the same predicted
tokens.

A piece of held-out text is read in windows that begin half a training length apart. So every scored block of half a
training length is once at the beginning of a window, once after one block, once after two, and so on up to the end of a
window. Along the curve only the length of the context differs, and not the predicted tokens. All arms are measured on
the same text.

`BEYOND_TRAINING_LENGTH` says how each position scheme works beyond the training length, for which nothing is trained or
changed.
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
    """A piece of held-out text. `ids`: its token ids; `size`: the UTF-8 bytes of the blocks whose loss is measured,
    end-of-document tokens excluded."""

    ids: list[int]  # [tokens_per_piece(seq)]
    size: int


def tokens_per_piece(seq: int) -> int:
    """The number of tokens of a piece of held-out text: the scored blocks, the context of the first of them in the
    longest window, and a token at the beginning, which is never predicted. `seq`: the training length in tokens."""
    return (WINDOW_LENGTHS * BLOCKS_PER_LENGTH - 1 + SCORED_BLOCKS) * (seq // BLOCKS_PER_LENGTH) + 1


def pieces(texts: Sequence[str], tokenizer: Any, seq: int) -> list[Piece]:
    """Pieces of held-out text, at most MAX_PIECES: the beginnings of documents that are long enough by their bytes,
    then shorter documents joined by end-of-document tokens, as in training.

    Documents with characters that the tokenizer cannot represent are left out, since the number of bytes behind an
    unknown token is not known.

    Args:
        texts: documents in the order of `probes.sorted_texts`.
        tokenizer: the tokenizer of the run.
        seq: the training length in tokens.
    """
    unknown = getattr(tokenizer, "count_unknown", None)
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
    """The loss in bits per byte as a function of the number of tokens of context.

    Args:
        pieces: pieces of held-out text.
        seq: the training length in tokens.
        longest: the model's longest input, in tokens; None: unlimited.
        score: a function such as `Scorer.score`, which takes pairs (context, continuation) of token ids. It returns for
            each pair the log-likelihood of the continuation in nats, and whether greedy decoding would give it.

    Returns:
        {"positions": the numbers of tokens before the middle of the scored block; "bits_per_byte" and "stderr" (over
        pieces), a number for each position; "tokens" and "bytes": the size of the scored text}; None where there are no
        pieces.
    """
    w, bins = seq // BLOCKS_PER_LENGTH, WINDOW_LENGTHS * BLOCKS_PER_LENGTH
    window_bins = [b for b in range(bins) if not longest or (b + 1) * w <= longest]
    if not pieces or not w:
        return None
    pairs, places = [], []
    for p, piece in enumerate(pieces):
        for block in range(bins - 1, bins - 1 + SCORED_BLOCKS):
            for b in window_bins:
                start, end = (block - b) * w, block * w + 1
                pairs.append((piece.ids[start:end], piece.ids[end : end + w]))
                places.append((b, p))
    nats = np.zeros((len(window_bins), len(pieces)))
    for (b, p), (log_likelihood, _) in zip(places, score(pairs), strict=True):
        nats[b, p] -= log_likelihood
    sizes = np.array([piece.size for piece in pieces], float)
    return {
        "positions": [(b + 0.5) * w for b in window_bins],
        "bits_per_byte": [float(piece_nats.sum() / LN2 / sizes.sum()) for piece_nats in nats],
        "stderr": [ratio_stderr(piece_nats / LN2, sizes) if len(sizes) > 1 else None for piece_nats in nats],
        "tokens": len(pieces) * SCORED_BLOCKS * w,
        "bytes": int(sizes.sum()),
    }


def mean_curve(curves: list[dict | None]) -> dict | None:
    """The unweighted mean over corpora of their curves of loss by position; None where no corpus has a curve. `curves`:
    for each corpus what `loss_by_position` returned."""
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
