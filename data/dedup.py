"""Finds duplicate documents, exact ones by hash and near ones by MinHash, and decides which of them are removed.

The work is done by steps of datatrove's pipelines. A pipeline runs as numbered tasks, one for each shard of the corpus.
A step is any function of (documents, number of the task, number of tasks).
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, count
from pathlib import Path
from typing import Any

# MinHash as in FineWeb (arXiv:2406.17557): documents whose 5-grams are about 75 % the same are duplicates.
SHINGLE, BUCKETS, HASHES = 5, 14, 8
# Characters of scripts that are written without spaces between words. A character of the first kind (Chinese, Japanese)
# is about a word. A letter of the second kind (Thai, Lao, Myanmar, Khmer) is not, a word has about four.
IDEOGRAPHS = "\u3041-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
UNSPACED_LETTERS = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\ua9e0-\ua9ff\uaa60-\uaa7f"
LETTERS_PER_WORD = 4  # letters that are taken for a word; untuned
MIN_DISTINCT_SHARE = 0.5  # share of distinct shingles, below which a document's numbers are compared too; untuned
MERSENNE = 2**61 - 1  # the prime modulus of datatrove's hash functions
SHINGLES_AT_ONCE = 256  # shingles that are hashed at once: with 112 functions the hashes stay in a core's cache
DIGEST_BYTES = 16
RECORD_BYTES = DIGEST_BYTES + 1  # a document's digest, and whether it is held out


def write_digests(folder: Path, documents: Any, rank: int, _: int) -> Iterator[Any]:
    """A step that writes the hash of each document, and whether the document is held out, to a file for
    `choose_removals`, and yields the documents unchanged. Documents with equal hashes are exact duplicates.

    Args:
        folder: the folder for the file, <rank>.digests.
        documents: datatrove's documents, with "split" ("train" or "valid") in their metadata.
        rank: the number of the task.
        _: the number of tasks; not used.
    """
    with open(folder / f"{rank:05d}.digests", "wb") as file:
        for document in documents:
            file.write(hashlib.blake2b(document.text.encode(), digest_size=DIGEST_BYTES).digest())
            file.write(bytes([document.metadata["split"] == "valid"]))
            yield document


def count_digests(folder: Path) -> int:
    """The number of documents whose hashes `write_digests` has written to a folder."""
    return sum(path.stat().st_size for path in _digest_files(folder)) // RECORD_BYTES


def _digest_files(folder: Path) -> list[Path]:
    """The paths of the files that `write_digests` has written to a folder, made from the names of the shards (*.jsonl)
    in this folder. The folder is not searched for them: on a network file system, its list may lack files that another
    machine has just written."""
    return [path.with_suffix(".digests") for path in sorted(folder.glob("*.jsonl"))]


class WordsAndCharacters:
    """Splits text into words, for shingles (n-grams of SHINGLE words). It replaces datatrove's own tokenizers, which
    need a package for each language.

    Text with spaces is split at spaces. In scripts without spaces a word is a character (Chinese, Japanese), or each
    string of LETTERS_PER_WORD letters (Thai and the like); these strings overlap. So a shingle is 5 words of English, 5
    characters of Chinese, or 8 letters of Thai.
    """

    _unspaced = re.compile(f"[{IDEOGRAPHS}]|[{UNSPACED_LETTERS}]+|[^{IDEOGRAPHS}{UNSPACED_LETTERS}\\s]+")
    _any = re.compile(f"[{IDEOGRAPHS}{UNSPACED_LETTERS}]")
    _letters = re.compile(f"[{UNSPACED_LETTERS}]")

    def word_tokenize(self, text: str) -> list[str]:
        """The words of a text, in order. In scripts with spaces these are the words that str.split finds."""
        if not self._any.search(text):
            return text.split()
        words: list[str] = []
        for part in self._unspaced.findall(text):
            if self._letters.match(part):
                words += [part[at : at + LETTERS_PER_WORD] for at in range(max(1, len(part) - LETTERS_PER_WORD + 1))]
            else:
                words.append(part)
        return words


def signature_step(folder: Path) -> Any:
    """The step of datatrove's pipeline that computes the MinHash signature of each document and writes it to
    `folder`."""
    from dataclasses import replace

    import numpy as np
    from datatrove.pipeline.dedup.minhash import MinhashDedupSignature
    from datatrove.utils.text import simplify_text
    from datatrove.utils.word_tokenizers import WhitespaceTokenizer

    class Signature(MinhashDedupSignature):  # type: ignore[misc]
        """datatrove's step, with another treatment of numbers. datatrove replaces every number by 0; here numbers are
        compared in documents with few distinct shingles. Tables and logs, for example, may differ in numbers only."""

        def get_shingles(self, text: str) -> Any:
            shingles = self.shingles(text, config.norm_config)
            if len(set(shingles)) < MIN_DISTINCT_SHARE * len(shingles):
                shingles = self.shingles(text, with_numbers)
            return np.fromiter(shingles, np.uint64, len(shingles)).reshape(-1, 1)

        def shingles(self, text: str, norm: Any) -> list[int]:
            if text.isascii():  # without accents to remove, for which datatrove looks at every character
                norm = replace(norm, norm_unicode_diacritics=False)
            words = self.word_tokenizer.word_tokenize(simplify_text(text, norm))
            return [self._hash_func(" ".join(words[at : at + SHINGLE])) for at in range(len(words) - SHINGLE + 1)]

        def get_signature(self, shingles: Any) -> list[list[int]]:
            return minhashes(shingles, *self.parameters).reshape(BUCKETS, HASHES).tolist()

    config = _minhash_config()
    with_numbers = replace(config.norm_config, norm_numbers=False)
    step = Signature(str(folder), config=config, language=WhitespaceTokenizer())
    step.word_tokenizer = WordsAndCharacters()
    return step


def minhashes(shingles: Any, a: Any, b: Any) -> Any:
    """The MinHash values of a document, uint64 [functions]: the smallest value of each hash function over all shingles.
    The hash of x is (a x + b) mod 2^64 mod MERSENNE. The result is datatrove's, in a third of its time.

    `shingles`: uint64 [shingles, 1], the shingles as numbers; `a`, `b`: uint64 [1, functions], the parameters of the
    hash functions.
    """
    import numpy as np

    least = np.full(a.shape[1], MERSENNE, np.uint64)
    prime, bits = np.uint64(MERSENNE), np.uint64(MERSENNE.bit_length())
    for start in range(0, len(shingles), SHINGLES_AT_ONCE):
        hashes = shingles[start : start + SHINGLES_AT_ONCE] * a
        hashes += b
        high = hashes >> bits
        hashes &= prime
        hashes += high  # now below 2 MERSENNE, and equal modulo MERSENNE
        np.subtract(hashes, prime, out=high)  # wraps to a large number where it was the remainder already
        np.minimum(hashes, high, out=hashes)
        np.minimum(least, hashes.min(axis=0), out=least)
    return least


def count_signatures(folder: Path) -> int:
    """The number of documents whose MinHash signatures are in `folder`, computed from the size of the files of the
    first bucket. A document has HASHES hashes of 8 bytes in a bucket, and its number in 4 bytes."""
    return sum(path.stat().st_size for path in (folder / "bucket_000").glob("*.minhash.sig")) // (8 * HASHES + 4)


def matching_pairs_step(signatures: Path, pairs: Path) -> Any:
    """The step of datatrove's pipeline that finds the pairs of near duplicates: documents whose signatures have equal
    hashes in one of the BUCKETS buckets. The step runs as BUCKETS tasks. `signatures`: the folder with the signatures;
    `pairs`: the folder for the result."""
    from datatrove.pipeline.dedup.minhash import MinhashDedupBuckets

    return MinhashDedupBuckets(str(signatures), str(pairs), config=_minhash_config(), lines_to_buffer=1000)


def _minhash_config() -> Any:
    from datatrove.pipeline.dedup.minhash import MinhashConfig

    return MinhashConfig(n_grams=SHINGLE, num_buckets=BUCKETS, hashes_per_bucket=HASHES)


def choose_removals(read: Path, pairs: Path, removed: Path, dedup: str, *_: Any) -> None:
    """Decide, for each cluster of exact and near duplicates, which documents are removed, and write their numbers to
    files.

    One document of each cluster is kept: the first held-out one, or the first in reading order where none is held out.
    In a cluster without a held-out document, dedup="none" removes nothing, and dedup="exact" removes identical copies
    only. datatrove's own step keeps an arbitrary document, which often is not the held-out one.

    Memory: 32 bytes for each document, and a few hundred bytes for each document that has a duplicate.

    Args:
        read: the folder with the hashes, from `write_digests`.
        pairs: the folder with the pairs of near duplicates, from `matching_pairs_step`.
        removed: the folder for the result. For each task with removed documents there are two files: <rank>.json,
            {"exact" and "near": [number of a document in the task, ...]}, and <rank>.counts, {"exact" and "near":
            number of documents}.
        dedup: the setting data.dedup: "near", "exact" or "none".
        _: what datatrove passes to a step; not used.
    """
    import numpy as np

    files = _digest_files(read)
    records = [np.fromfile(path, np.dtype([("digest", f"V{DIGEST_BYTES}"), ("valid", "?")])) for path in files]
    # documents are numbered over all tasks: those of a task follow those of the task before
    ends = np.cumsum([len(of_task) for of_task in records])
    starts = {int(path.stem): int(end - len(of_task)) for path, of_task, end in zip(files, records, ends, strict=True)}
    hashes = np.concatenate([of_task["digest"] for of_task in records])
    valid = np.concatenate([of_task["valid"] for of_task in records])
    del records
    halves = np.ascontiguousarray(hashes).view("<u8").reshape(-1, 2)
    order = np.lexsort((np.arange(len(halves)), halves[:, 1], halves[:, 0]))
    equals_previous = (halves[order[1:]] == halves[order[:-1]]).all(axis=1)
    exact = set(order[1:][equals_previous].tolist())
    equal_pairs = zip(order[:-1][equals_previous].tolist(), order[1:][equals_previous].tolist(), strict=True)
    similar_pairs = (
        (starts[rank_a] + a, starts[rank_b] + b)
        for path in sorted(pairs.glob("*.dups"))
        for rank_a, a, rank_b, b in struct.iter_unpack("<4I", path.read_bytes())
    )
    removals: dict[int, dict[str, list[int]]] = {}
    for members in _clusters(chain(equal_pairs, similar_pairs)):
        keeper = next((node for node in members if valid[node]), members[0])
        for node in members:
            if node != keeper and (valid[keeper] or dedup == "near" or dedup == "exact" and node in exact):
                rank = int(files[int(np.searchsorted(ends, node, "right"))].stem)
                kind = "exact" if node in exact else "near"
                removals.setdefault(rank, {"exact": [], "near": []})[kind].append(node - starts[rank])
    for rank, kinds in removals.items():
        counts = {kind: len(nodes) for kind, nodes in kinds.items()}
        (removed / f"{rank:05d}.json").write_text(json.dumps(kinds), "utf-8")
        (removed / f"{rank:05d}.counts").write_text(json.dumps(counts), "utf-8")


def _clusters(pairs: Iterable[tuple[int, int]]) -> list[list[int]]:
    """The connected components of the graph whose edges are the given pairs of document numbers, found by union-find.
    Each component is a list of document numbers in ascending order."""
    parent: dict[int, int] = {}

    def root(node: int) -> int:
        while (above := parent.get(node, node)) != node:
            parent[node] = node = parent.get(above, above)
        return node

    for a, b in pairs:
        low, high = sorted((root(a), root(b)))
        parent[high] = low
        parent.setdefault(low, low)
    clusters: dict[int, list[int]] = {}
    for node in sorted(parent):
        clusters.setdefault(root(node), []).append(node)
    return list(clusters.values())


def duplicate_filter(removed: Path, rank: int) -> Callable[[Any], str]:
    """The filter (see data/filters.py) that removes the documents that `choose_removals` has listed. `removed`: the
    folder with these lists; `rank`: the number of the task whose documents are filtered."""
    path = removed / f"{rank:05d}.json"
    kinds = json.loads(path.read_text("utf-8")) if path.exists() else {}
    reasons = {index: f"{kind} copy" for kind, indices in kinds.items() for index in indices}
    number = count()
    return lambda _: reasons.get(next(number), "")
