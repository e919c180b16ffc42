"""The held-out loss as a function of the number of context tokens, up to four times the training length.

The same tokens are predicted at every context length, so that only the context differs. To this end a text is read in
overlapping windows, which begin half a training length apart. Each scored block, half a training length of tokens, thus
stands at every place of a window: at its beginning, after one block, after two, and so on. All arms are measured on the
same text.

Nothing is trained or changed for lengths beyond the training length. `BEYOND_TRAINING_LENGTH` says how each position
scheme works there.
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
    """A piece of held-out text. `ids`: its token ids; `size`: the UTF-8 bytes of its scored blocks, without
    end-of-document tokens."""

    ids: list[int]  # [tokens_per_piece(seq)]
    size: int


def tokens_per_piece(seq: int) -> int:
    """The number of tokens of a piece of held-out text. It has one first token that is never predicted, the longest
    context of the first scored block, and the scored blocks. `seq`: the training length in tokens."""
    return (WINDOW_LENGTHS * BLOCKS_PER_LENGTH - 1 + SCORED_BLOCKS) * (seq // BLOCKS_PER_LENGTH) + 1


def cut_pieces(texts: Sequence[str], tokenizer: Any, seq: int) -> list[Piece]:
    """Cut at most MAX_PIECES pieces from held-out text. Documents that are long enough come first, cut to one piece
    each. Then shorter documents are joined by end-of-document tokens, as in training.

    Documents with characters that the tokenizer cannot represent are left out, since the bytes of an unknown token are
    not known.

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
    """The loss as a function of the number of context tokens; None without pieces.

    Args:
        pieces: pieces of held-out text.
        seq: the training length in tokens.
        longest: the model's longest input, in tokens; None: unlimited.
        score: a function such as `Scorer.score`. It takes pairs (context, continuation) of token ids, and returns for
            each (log-likelihood of the continuation in nats, whether greedy decoding would give it).

    Returns:
        positions: the numbers of tokens before the middle of the scored block.
        bits_per_byte: the loss at each position.
        stderr: its standard error over pieces, at each position.
        tokens, bytes: the size of the scored text.
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
    """The mean over corpora of curves of loss by position, in the form of `loss_by_position`; None where no corpus has
    a curve. `curves`: the curve of each corpus, or None."""
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
