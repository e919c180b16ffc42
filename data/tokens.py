"""Token files in Megatron's format: writes them from texts, reads and joins them, and copies documents from them.

A token file is a pair of files: .bin has the tokens of all documents end to end, .idx the lengths and offsets of the
documents. Each gets its name when it is complete, the .idx last.

As a command, python -m data.tokens tokenizes a corpus as it is: nothing is removed or held out, and the files are byte
for byte those of Megatron-LM's preprocess_data. A study uses data.prepare instead.
"""

from __future__ import annotations

import argparse
import os
import shutil
import struct
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from data.readers import SourceFile
    from data.tokenizer_base import Tokenizer

MAGIC = b"MMIDIDX\0\0"
HEADER = struct.Struct("<9sQBQQ")  # magic, version, code of the type, number of sequences, number of documents plus 1
DTYPES: dict[int, np.dtype] = {8: np.dtype("<u2"), 4: np.dtype("<i4")}  # {Megatron's code: type of a token}
# Characters that are encoded at once: the cost of a call does not matter, and memory stays small.
BATCH_CHARACTERS = 1 << 22
CHECKED_CHARACTERS = 8192  # characters of the first document of each batch that are encoded by the reference too
CHUNK = 1 << 20  # documents whose offsets are computed at once


class Count(NamedTuple):
    """The amount of text in some documents, and its number of tokens."""

    documents: int
    bytes: int  # of the text in UTF-8
    words: int  # separated by spaces and ASCII control characters
    tokens: int  # end-of-document tokens included

    def __add__(self, other: Any) -> Count:
        return Count(*(a + b for a, b in zip(self, other, strict=True)))


def summed_counts(parts: Iterable[Mapping[str, Iterable[int]]]) -> dict[str, Count]:
    """Sum counts by domain: {domain: Count}. `parts`: several {domain: the fields of a Count}."""
    counts: dict[str, Count] = defaultdict(lambda: Count(0, 0, 0, 0))
    for part in parts:
        for domain, count in part.items():
            counts[domain] += count
    return dict(counts)


def token_dtype(vocab: int) -> np.dtype:
    """The type of a token in token files, by Megatron's rule: 2 bytes for a vocabulary of fewer than 65,500 ids, else 4
    bytes."""
    return DTYPES[8 if vocab < 65500 else 4]


def write_token_file(
    prefix: str | Path, documents: Iterable[tuple[str, str]], tokenizer: Tokenizer
) -> dict[str, Count]:
    """Write documents to a token file, each followed by the end-of-document token. Returns {domain: the counts of its
    documents}. Memory does not grow with the text, except by 4 bytes per document.

    Args:
        prefix: the path of the .bin and .idx file, without extension.
        documents: pairs (text, domain); the domain is "" for documents without one.
        tokenizer: the tokenizer that encodes the texts.

    Raises:
        RuntimeError: the tokenizer gives other ids than its reference; this is checked on the beginning of one text in
            each batch.
    """
    prefix, kind = str(prefix), token_dtype(tokenizer.vocab_size)
    lengths: list[np.ndarray] = []
    domains: dict[str, Count] = defaultdict(lambda: Count(0, 0, 0, 0))
    with open(prefix + ".bin.part", "wb") as file:
        for batch in _batches(documents):
            texts = [text for text, _ in batch]
            tokenizer.check_against_reference([texts[0][:CHECKED_CHARACTERS]])
            ids, counts = tokenizer.token_arrays(texts)
            tokens = np.empty(len(ids) + len(counts), kind)
            ends = np.cumsum(counts + 1) - 1
            of_text = np.ones(len(tokens), bool)
            of_text[ends] = False
            tokens[of_text], tokens[ends] = ids, tokenizer.eod
            tokens.tofile(file)
            lengths.append((counts + 1).astype("<i4"))
            for (_, domain), *count in zip(batch, *_byte_and_word_counts(texts), (counts + 1).tolist(), strict=True):
                domains[domain] += (1, *count)
    os.replace(prefix + ".bin.part", prefix + ".bin")
    _write_index(prefix, kind, [np.concatenate(lengths, dtype="<i4") if lengths else np.empty(0, "<i4")])
    return dict(domains)


def join_files(parts: list[str | Path], prefix: str | Path) -> None:
    """Join several token files to one. `parts`: the paths of the files to join, in order; `prefix`: the path of the new
    file; all paths are without extension. Raises ValueError where some parts have tokens of 2 bytes and others of 4."""
    prefix, indices = str(prefix), [read_index(part) for part in parts]
    if len({kind for kind, _ in indices}) != 1:
        raise ValueError(f"token files to be joined must hold tokens of one width: {', '.join(map(str, parts))}")
    with open(prefix + ".bin.part", "wb") as out:
        for part in parts:
            with open(f"{part}.bin", "rb") as file:
                shutil.copyfileobj(file, out, 1 << 22)
    os.replace(prefix + ".bin.part", prefix + ".bin")
    _write_index(prefix, indices[0][0], [lengths for _, lengths in indices])


def read_index(prefix: str | Path) -> tuple[np.dtype, np.ndarray]:
    """Read the index of a token file. Returns the type of a token; and the number of tokens of each sequence, int32
    [sequences], memory-mapped. A sequence is a document in files written here. `prefix`: the path of the .bin and .idx
    file, without extension. Raises ValueError where the .idx file is not an index of this format, or does not belong to
    the .bin file."""
    with open(f"{prefix}.idx", "rb") as file:
        header = file.read(HEADER.size)
    magic, version, code, count, _ = HEADER.unpack(header) if len(header) == HEADER.size else (b"", 0, 0, 0, 0)
    if magic != MAGIC or version != 1 or code not in DTYPES:
        raise ValueError(f"{prefix}.idx is not an index of Megatron's with tokens of 2 or 4 bytes")
    lengths = np.memmap(f"{prefix}.idx", "<i4", "r", HEADER.size, (count,)) if count else np.empty(0, "<i4")
    size, needed = Path(f"{prefix}.bin").stat().st_size, int(lengths.sum(dtype=np.int64)) * DTYPES[code].itemsize
    if size != needed:
        raise ValueError(f"{prefix}.bin has {size} bytes, but its index says {needed}")
    return DTYPES[code], lengths


def sequence_offsets(prefix: str | Path) -> np.ndarray:
    """Where each sequence of a token file begins in the .bin file, in bytes: int64 [sequences], memory-mapped.
    `prefix`: the path of the .bin and .idx file, without extension. Raises ValueError as `read_index` does."""
    count = len(read_index(prefix)[1])
    start = HEADER.size + 4 * count  # after the lengths
    return np.memmap(f"{prefix}.idx", "<i8", "r", start, (count,)) if count else np.empty(0, "<i8")


def _write_index(prefix: str, kind: np.dtype, parts: list[np.ndarray]) -> None:
    count = sum(map(len, parts))
    code = next(code for code, known in DTYPES.items() if known == kind)
    with open(prefix + ".idx.part", "wb") as file:
        file.write(HEADER.pack(MAGIC, 1, code, count, count + 1))
        for lengths in parts:
            lengths.astype("<i4", copy=False).tofile(file)
        offset = 0
        for lengths in parts:
            for start in range(0, len(lengths), CHUNK):
                ends = offset + np.cumsum(lengths[start : start + CHUNK], dtype="<i8") * kind.itemsize
                np.concatenate(([offset], ends[:-1]), dtype="<i8").tofile(file)
                offset = int(ends[-1])
        for start in range(0, count + 1, CHUNK):
            np.arange(start, min(start + CHUNK, count + 1), dtype="<i8").tofile(file)
    os.replace(prefix + ".idx.part", prefix + ".idx")


def _batches(documents: Iterable[tuple[str, str]]) -> Iterator[list[tuple[str, str]]]:
    batch, size = [], 0
    for document in documents:
        batch.append(document)
        size += len(document[0])
        if size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _byte_and_word_counts(texts: list[str]) -> tuple[list[int], list[int]]:
    """The number of UTF-8 bytes of each text, and the number of words of each text, as two lists. Words are separated
    by spaces and ASCII control characters."""
    encoded = [text.encode() for text in texts]
    is_space = np.frombuffer(b"\n" + b"\n".join(encoded), np.uint8) <= 32
    begins_word, start, words = is_space[:-1] > is_space[1:], 0, []
    for text in encoded:
        words.append(int(np.count_nonzero(begins_word[start : start + len(text)])))
        start += len(text) + 1
    return [len(text) for text in encoded], words


def copy_documents(source: str | Path, documents: np.ndarray, prefix: str | Path) -> None:
    """Copy documents from one token file to a new one. `source`: the path of the existing file; `documents`: the
    numbers of the documents to copy, from 0, in the order in which they are written; `prefix`: the path of the new
    file. Paths are without extension."""
    prefix = str(prefix)
    kind, lengths = read_index(source)
    starts = np.cumsum(lengths, dtype=np.int64) - lengths
    flat = np.memmap(f"{source}.bin", kind, "r")
    with open(prefix + ".bin.part", "wb") as out:
        for number in documents:
            flat[starts[number] : starts[number] + lengths[number]].tofile(out)
    os.replace(prefix + ".bin.part", prefix + ".bin")
    _write_index(prefix, kind, [np.asarray(lengths)[documents]])


def tokenize(corpus: str, tokenizer: str | Path, prefix: str | Path, workers: int = 1) -> dict[str, Count]:
    """Write all documents of a corpus to a token file; returns {domain: the counts of its documents}.

    Args:
        corpus: the name of a corpus, or a file, folder or glob.
        tokenizer: the path of the tokenizer.
        prefix: the path of the new .bin and .idx file, without extension.
        workers: the number of processes, each of which tokenizes a file at a time. It does not change the result.

    Raises:
        ValueError: the corpus or the tokenizer cannot be used; the message says why.
    """
    from data import corpus as corpora
    from data.sources import source_files

    spec = corpora.load_specification(corpus)
    if "blend" in spec:
        raise ValueError(f"{corpus} is a blend: tokenize {', '.join(spec['blend'])} one by one")
    files = source_files(spec)
    scratch = Path(f"{prefix}.parts")
    scratch.mkdir(parents=True, exist_ok=True)
    parts = [scratch / f"{number:06d}" for number in range(len(files))]
    try:
        with ProcessPoolExecutor(workers) as pool:
            counts_of_files = list(pool.map(partial(_tokenize_file, spec, tokenizer), files, parts))
        join_files(list(parts), prefix)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return summed_counts(counts_of_files)


def _tokenize_file(spec: dict[str, Any], tokenizer: str | Path, file: SourceFile, part: Path) -> dict[str, Count]:
    from data.documents import read_documents

    return write_token_file(
        part,
        ((text, labels.get("domain", "")) for _, text, labels in read_documents(spec, file)),
        _cached_tokenizer(tokenizer),
    )


@lru_cache(maxsize=1)
def _cached_tokenizer(path: str | Path) -> Any:  # once in each worker
    from data.tokenizer import load_tokenizer

    return load_tokenizer(path)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m data.tokens", description="Tokenize a corpus as it is.")
    add = parser.add_argument
    add("corpus", help="name, file, folder or quoted glob")
    add(
        "--tokenizer",
        metavar="PATH",
        required=True,
        help="a SentencePiece model, a tokenizer.json, or the folder of GPT-2's vocab.json and merges.txt",
    )
    add("--to", metavar="PREFIX", required=True, help="writes PREFIX.bin and PREFIX.idx")
    add("--workers", type=int, metavar="N", default=1, help="processes, each with a file at a time (%(default)s)")
    args = parser.parse_args()
    try:
        counts = tokenize(args.corpus, args.tokenizer, args.to, args.workers)
    except ValueError as error:
        parser.exit(2, f"error: {error}\n")
    for domain, count in sorted(counts.items()):
        print(
            f"{domain or 'documents':24} {count.documents:>12,} documents {count.bytes:>16,} bytes "
            f"{count.tokens:>15,} tokens  {count.tokens / count.bytes:.4f} per byte  "
            f"{count.tokens / max(count.words, 1):.3f} per word"
        )


if __name__ == "__main__":
    main()
