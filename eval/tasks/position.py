"""Loss by position, up to four times the training length: the same tokens, predicted with more and more before them.

A piece of held-out text is read through windows that begin half a training length apart. So every block of half a
training length that is scored stands once at the beginning of a window, once after one block, once after two, and so on
up to the end of a window: what differs along the curve is how much comes before, never what is predicted. All arms are
asked about the same text.

What happens beyond the training length differs by scheme (`BEYOND`), and nothing is trained or changed for it.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from eval.statistics.items import LN2, ratio_stderr
from eval.tasks.probes import MANY_BYTES

# Untuned: 4,096 tokens are predicted at nano, in some seconds on one core.
TIMES = 4  # training lengths: the longest window
PARTS = 2  # blocks in a training length
PIECES = 8  # of text ...
BLOCKS = 4  # ... with so many blocks each that are scored at every position

BEYOND = {
    "none": "nothing has to be extended: only the mask says how much came before",
    "learned": "there is no vector beyond the training length, so the curve ends there",
    "rotary": "the rotation goes on, to distances that no training step has shown",
    "alibi": "the slopes go on: what lies further back weighs less",
    "sinusoidal": "the sines go on, to positions that no training step has shown",
    "scaled-sinusoidal": "the sines go on, to positions that no training step has shown",
}


class Piece(NamedTuple):
    """Text of `length(seq)` tokens. size: bytes of the blocks that are scored; the end of a document has none."""

    ids: list[int]
    size: int


def length(seq: int) -> int:
    """Tokens of a piece: those that are scored, those before them in the longest window, and one to begin with."""
    return (TIMES * PARTS - 1 + BLOCKS) * (seq // PARTS) + 1


def pieces(texts: Sequence[str], tokenizer: Any, seq: int) -> list[Piece]:
    """Pieces of held-out text, PIECES at most: the beginnings of documents that are long enough by their bytes, then
    others, one after another with the end-of-document token between them, as in training.

    Documents with characters that the tokenizer does not know are left out: the bytes of such tokens are not known.

    texts: in the order of `probes.documents`.
    """
    unknown = getattr(tokenizer, "unknown", None)
    n, w = length(seq), seq // PARTS
    most = int(MANY_BYTES * n)
    long = [text for text in texts if len(text.encode()) >= most]
    made, ids = list[Piece](), list[int]()
    for text in [*long, *(text for text in texts if len(text.encode()) < most)]:
        if unknown and unknown(text[:most])[0]:
            continue
        ids += [*tokenizer.encode(text[:most]), tokenizer.eod]
        if len(ids) >= n:
            first = (TIMES * PARTS - 1) * w + 1
            size = len(tokenizer.decode(ids[:n]).encode()) - len(tokenizer.decode(ids[:first]).encode())
            made.append(Piece(ids[:n], size))
            ids = []
        if len(made) == PIECES:
            break
    return made


def curve(
    pieces: Sequence[Piece],
    seq: int,
    longest: int | None,
    score: Callable[[list[tuple[list[int], list[int]]]], list[tuple[float, bool]]],
) -> dict | None:
    """Bits per byte by the number of tokens before.

    Args:
        longest: the model's longest input, in tokens; None: it has none.
        score: log-likelihoods in nats of (given, scored) token ids, as `harness.Scorer.score`.

    Returns:
        {"positions": tokens before the middle of each block, "bits_per_byte", "stderr": over pieces, "tokens" and
        "bytes": scored at each position}; None where there is no text.
    """
    w, bins = seq // PARTS, TIMES * PARTS
    reach = [b for b in range(bins) if not longest or (b + 1) * w <= longest]
    if not pieces or not w:
        return None
    asked, where = [], []
    for p, piece in enumerate(pieces):
        for block in range(bins - 1, bins - 1 + BLOCKS):
            for b in reach:
                start, at = (block - b) * w, block * w + 1
                asked.append((piece.ids[start:at], piece.ids[at : at + w]))
                where.append((b, p))
    nats = np.zeros((len(reach), len(pieces)))
    for (b, p), (found, _) in zip(where, score(asked), strict=True):
        nats[b, p] -= found
    sizes = np.array([piece.size for piece in pieces], float)
    return {
        "positions": [(b + 0.5) * w for b in reach],
        "bits_per_byte": [float(each.sum() / LN2 / sizes.sum()) for each in nats],
        "stderr": [ratio_stderr(each / LN2, sizes) if len(sizes) > 1 else None for each in nats],
        "tokens": len(pieces) * BLOCKS * w,
        "bytes": int(sizes.sum()),
    }


def mean(curves: list[dict | None]) -> dict | None:
    """Of several corpora, unweighted, as the held-out loss is."""
    have = [each for each in curves if each]
    if not have:
        return None
    errors = np.array([each["stderr"] for each in have], float)
    return {
        "positions": have[0]["positions"],
        "bits_per_byte": np.mean([each["bits_per_byte"] for each in have], axis=0).tolist(),
        "stderr": None if np.isnan(errors).any() else (np.sqrt((errors**2).sum(0)) / len(have)).tolist(),
        "tokens": sum(each["tokens"] for each in have),
        "bytes": sum(each["bytes"] for each in have),
    }
