"""Removes repeated stretches of text, the exact-substring duplicates of Lee et al. 2022, without a suffix array.

A stretch of `length` or more characters that occurs twice consists of windows of `length` characters that occur twice.
So every window is hashed, and windows with equal hashes are compared character by character. A character is removed if
it lies in a window whose text occurred before. First occurrences are kept. Held-out text counts as coming first, and is
kept whole. The result is exact, and depends only on the order of the documents.

datatrove's own step calls a Rust program that is not available as a package; a suffix array would need more memory and
another dependency. Memory: about 8 bytes for each character of the corpus, and 70 for each of WINDOWS (measured,
docs/data.md).
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

MIN_LENGTH = 20  # characters: shorter stretches are phrases of the language; untuned
WINDOWS = 1 << 25  # windows that are sorted at once; a larger corpus is gone through several times; untuned
CHUNK = 1 << 22  # windows that are hashed, or characters that are compared, at once; untuned
BASE = 0x9E3779B97F4A7C15  # base of the polynomial hash: 2^64 divided by the golden ratio, an odd number


def find_repeats(documents_folder: Path, length: int, results_folder: Path, *_: Any) -> None:
    """Find the stretches to cut from the training documents, and write a file <shard>.npy for each shard, int64
    [stretches, 3]. The columns are the number of the document in the shard, the index of the stretch's first character
    in the document, and the index after its last one. Documents are numbered from 0, without the held-out ones.

    Args:
        documents_folder: the folder with the shards (.jsonl) of documents, which have "split" in their "metadata".
        length: the number of characters of the shortest stretch that is cut.
        results_folder: the folder for the .npy files.
        _: what datatrove passes to a step; not used.
    """
    import numpy as np
    import orjson

    shards = sorted(documents_folder.glob("*.jsonl"))
    texts: dict[bool, list[np.ndarray]] = {True: [], False: []}  # {is held out: documents as code points}
    places: list[tuple[int, int]] = []  # (shard, number of the document in the shard) of the training documents
    for shard, path in enumerate(shards):
        number = 0
        with open(path, "rb") as file:
            for line in file:
                document = orjson.loads(line)
                held_out = document["metadata"]["split"] == "valid"
                texts[held_out].append(np.frombuffer(document["text"].encode("utf-32-le"), np.uint32))
                if not held_out:
                    places.append((shard, number))
                    number += 1
    documents = texts[True] + texts[False]
    ends = np.cumsum([len(document) for document in documents], dtype=np.int64)
    codes = np.concatenate([*documents, np.zeros(0, np.uint32)])
    first_training = len(texts[True])
    documents.clear()
    texts.clear()
    repeated = repeated_characters(codes, ends, length)
    rows: list[list[tuple[int, int, int]]] = [[] for _ in shards]
    for document, (shard, number) in enumerate(places, first_training):
        start = int(ends[document - 1]) if document else 0
        edges = np.flatnonzero(np.diff(repeated[start : ends[document]].astype(np.int8), prepend=0, append=0))
        rows[shard] += [(number, int(first), int(end)) for first, end in edges.reshape(-1, 2)]
    for path, spans in zip(shards, rows, strict=True):
        np.save(results_folder / f"{path.stem}.npy", np.array(spans, np.int64).reshape(-1, 3))


def repeated_characters(codes: np.ndarray, ends: np.ndarray, length: int, at_once: int = WINDOWS) -> np.ndarray:
    """Whether each character lies in a window whose text occurred before: bool [characters]. A window is `length`
    characters in a row of one document.

    Args:
        codes: [characters], the code points of all documents, end to end.
        ends: [documents], where each document ends in `codes`.
        length: the number of characters of a window.
        at_once: the number of windows that are sorted at once, which limits memory.
    """
    import numpy as np

    passes = -(-len(codes) // at_once)
    edges = np.zeros(len(codes) + 1, np.int8)  # 1 where a repeated window begins, -1 where it ends
    for number in range(passes):
        hashes, starts = [], []
        for first in range(0, len(codes), CHUNK):
            windows = np.arange(first, min(first + CHUNK, len(codes) - length + 1))  # where they begin
            if not len(windows):
                break
            in_one_document = windows + length <= ends[np.searchsorted(ends, windows, "right")]
            keys = window_hashes(codes[first : first + len(windows) + length - 1], length)
            chosen = in_one_document & (keys % np.uint64(passes) == number)
            hashes.append(keys[chosen])
            starts.append(windows[chosen])
        if hashes:
            repeats = _repeated_windows(codes, np.concatenate(hashes), np.concatenate(starts), length)
            edges[repeats] += 1
            edges[repeats + length] -= 1
    return np.cumsum(edges[:-1], dtype=np.int32) > 0


def window_hashes(codes: np.ndarray, length: int) -> np.ndarray:
    """A polynomial hash modulo 2^64 of every window of `length` code points: uint64 [len(codes) - length + 1].

    First the hashes of windows of 1, 2, 4, 8 ... code points are computed, each from the hashes of the two halves of
    the window. A window of `length` consists of parts of these sizes, and its hash is joined from their hashes.
    """
    import numpy as np

    mixed = codes.astype(np.uint64) + np.uint64(1)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)  # spreads the few bits of a code point (splitmix64)
    mixed ^= mixed >> np.uint64(31)
    hashes, width = mixed, 1  # the hashes of all windows of `width` code points, a power of two
    result: np.ndarray | None = None  # the hashes of all windows of `joined_width` code points
    joined_width = 0
    while True:
        factor = np.uint64(pow(BASE, width, 2**64))
        if length & width:
            result = hashes if result is None else result[: len(hashes) - joined_width] * factor + hashes[joined_width:]
            joined_width += width
        if 2 * width > length:
            assert result is not None
            return result
        hashes, width = hashes[:-width] * factor + hashes[width:], 2 * width


def _repeated_windows(codes: np.ndarray, hashes: np.ndarray, starts: np.ndarray, length: int) -> np.ndarray:
    """The starts of the windows with the same text as an earlier window: int64 [repeated windows].

    Args:
        codes: [characters], the code points of all documents.
        hashes, starts: [windows], the hash of each window and where it begins in `codes`; the starts ascend.
        length: the number of characters of a window.
    """
    import numpy as np

    order = np.argsort(hashes, kind="stable")
    hashes, starts = hashes[order], starts[order]
    repeats = [starts[:0]]
    while len(hashes):
        new = np.r_[True, hashes[1:] != hashes[:-1]]
        firsts = starts[np.maximum.accumulate(np.where(new, np.arange(len(new)), 0))]
        others = np.flatnonzero(~new)
        same = _equal_windows(codes, firsts[others], starts[others], length)
        repeats.append(starts[others[same]])
        differing = others[~same]  # another text with the same hash: these are compared among themselves
        hashes, starts = hashes[differing], starts[differing]
    return np.concatenate(repeats)


def _equal_windows(codes: np.ndarray, a: np.ndarray, b: np.ndarray, length: int) -> np.ndarray:
    """Whether the two windows of each pair have the same text: bool [pairs]. `codes`: [characters], the code points of
    all documents; `a`, `b`: [pairs], where the first and the second window of each pair begin in `codes`; `length`: the
    number of characters of a window."""
    import numpy as np

    same = np.empty(len(a), bool)
    step, offsets = max(1, CHUNK // length), np.arange(length)
    for i in range(0, len(a), step):
        left, right = (codes[starts[i : i + step, None] + offsets] for starts in (a, b))
        same[i : i + step] = (left == right).all(axis=1)
    return same


def repeat_filter(spans: Path, rank: int) -> Callable[[Any], str]:
    """The filter (see data/filters.py) that cuts the stretches that `find_repeats` has found from the training
    documents of a shard. `spans`: the folder with the files of `find_repeats`; `rank`: the number of the shard."""
    import numpy as np

    rows = np.load(spans / f"{rank:05d}.npy")
    number = count()

    def cut_repeats(document: Any) -> str:
        """Cut the repeats from the next document. Returns the reason to remove the document, or "" where some text is
        left."""
        document_number = next(number)
        first, last = np.searchsorted(rows[:, 0], (document_number, document_number + 1))
        text, pieces, previous_end = document.text, [], 0
        for _, begin, end in rows[first:last].tolist():
            pieces.append(text[previous_end:begin])
            previous_end = end
        document.text = "".join([*pieces, text[previous_end:]])
        return "" if document.text.strip() else "nothing but stretches that stood before"

    return cut_repeats
