"""From text to tokens: trains or copies the tokenizer, and writes the training text as token files, in order."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Iterator
from functools import partial
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

from data import corpus as corpora
from data import filters, report
from data.coverage import Coverage
from data.filters import Recipe
from data.sentencepiece_model import OPTIONS
from data.store import RunStage, Store, folder_label, prepared_folder
from data.text import prepared_text, shard_lines
from data.tokenizer import (
    EXTRA_IDS,
    SAMPLE_BYTES,
    check_parity,
    load_tokenizer,
    reason_not_exportable,
    train,
    vocabularies,
)
from data.tokenizer import read as read_tokenizer
from data.tokenizer_base import Tokenizer

LIBRARIES = {"bpe": "sentencepiece", "unigram": "sentencepiece", "byte-bpe": "tokenizers", "wordpiece": "tokenizers"}
COVERAGE_BATCH = 256  # held-out documents that are encoded at once to count unknown tokens


def prepared_tokenizer(
    name: str, vocab: int, kind: str, recipe: Recipe, store: Store, mask: bool = False
) -> tuple[Path, dict[str, Any]]:
    """The tokenizer of a corpus: the path of its file, and its manifest, as `_tokenizer_manifest` makes it. A missing
    tokenizer is trained; for a blend, on the text of all components, whatever their weights.

    Args:
        name: the corpus; for kind="file", the path of an existing tokenizer.
        vocab: the number of the tokenizer's pieces.
        kind: one of `tokenizer.KINDS`.
        recipe: how the text that the tokenizer is trained on is prepared.
        mask: whether the tokenizer needs an id for a masked token; only byte-bpe is trained differently then.
    """
    if kind == "file":
        return _copied_tokenizer(name, vocab, store)
    texts = [prepared_text(part, recipe, store) for part in corpora.components(name, store.path)]
    size = sum(manifest["train"]["bytes"] for _, manifest in texts)
    library = LIBRARIES[kind]
    file = "tokenizer.json" if library == "tokenizers" else "tokenizer.model"
    mask = mask and kind == "byte-bpe"

    def make(work: Path, run: RunStage) -> dict[str, Any]:
        run("training")
        documents = (json.loads(line)["text"] for folder, _ in texts for line in shard_lines(folder / "train"))
        (work / file).write_bytes(train(documents, size, vocab, kind, mask))
        return _tokenizer_manifest(load_tokenizer(work / file))

    inputs = {
        "text": [manifest["sha256"] for _, manifest in texts],
        "vocab": vocab,
        "kind": kind,
        "options": [OPTIONS, SAMPLE_BYTES],
        library: version(library),
        **({"mask": True} if mask else {}),
    }
    folder, manifest = prepared_folder(store, f"{folder_label(name)}-tokenizer-{vocab}", inputs, make)
    return folder / file, manifest


def _tokenizer_manifest(tokenizer: Tokenizer) -> dict[str, Any]:
    """The manifest of a tokenizer: its attributes "sha256", "lossless", "eod", "mask" and "specials" (see `Tokenizer`),
    and "unexportable", the reason why a run with it cannot be exported, or "". Raises ValueError where the tokenizer
    gives other ids than Hugging Face's tokenizers."""
    check_parity(tokenizer)
    names = ("sha256", "lossless", "eod", "mask", "specials")
    return {name: getattr(tokenizer, name) for name in names} | {"unexportable": reason_not_exportable(tokenizer)}


def _copied_tokenizer(path: str, vocab: int, store: Store) -> tuple[Path, dict[str, Any]]:
    """Copy an existing tokenizer (`tokenizer.read` says in which formats) into the store; returns the path of the copy,
    and its manifest. Raises ValueError where there is no tokenizer at `path`, or `vocab` is neither the number of its
    pieces nor that number plus the extra ids that `tokenizer.vocabularies` allows."""
    file, content = read_tokenizer(path)

    def make(work: Path, _: RunStage) -> dict[str, Any]:
        (work / file).write_bytes(content)
        loaded = load_tokenizer(work / file)
        if vocab not in (allowed := vocabularies(loaded)):
            more = ""
            if len(allowed) > 1:
                what = f"T5's {EXTRA_IDS} extra ids" if loaded.kind == "unigram" else "an id for a masked token"
                more = f", or {allowed[1]} with {what}"
            raise ValueError(
                f"the tokenizer {path} has {loaded.vocab_size} pieces: model.vocab={vocab} must be that" + more
            )
        return _tokenizer_manifest(loaded)

    inputs = {"content": hashlib.sha256(content).hexdigest(), "vocab": vocab}
    folder, manifest = prepared_folder(store, f"{folder_label(path)}-tokenizer-{vocab}", inputs, make)
    return folder / file, manifest


def prepared_tokens(
    name: str, text: Path, text_manifest: dict[str, Any], model: Path, model_sha: str, recipe: Recipe, store: Store
) -> tuple[Path, dict[str, Any]]:
    """The folder with the training text as token files, and its manifest: counts of tokens, documents and bytes, the
    reports of all steps of the preparation, and notes. Missing token files are made.

    Args:
        name: the name of the corpus.
        text, text_manifest: the folder of its text and the manifest of that text, from `prepared_text`.
        model, model_sha: the file of the tokenizer, and the sha256 of that file.
        recipe: the recipe of the corpus; here its data.compress and data.order are applied.
    """

    def make(work: Path, run: RunStage) -> dict[str, Any]:
        from data import tokens

        parts, shards = work / "scratch", sorted((text / "train").glob("*.jsonl"))
        parts.mkdir(exist_ok=True)
        run("tokenizing", [partial(_tokenize, text / "train", model, parts, "sentences" in recipe.order)], len(shards))
        prefixes: list[str | Path] = [parts / shard.stem for shard in shards]
        left, steps = _join_in_order(prefixes, shards, recipe, work)
        covered, held_out, lost = _held_out_coverage(load_tokenizer(model), text / "valid.jsonl.gz")
        domains: dict[str, list[int]] = {}
        for prefix in prefixes:
            for domain, count in json.loads(Path(f"{prefix}.domains").read_text("utf-8")).items():
                before = domains.get(domain, [0] * len(count))
                domains[domain] = [a + b for a, b in zip(before, count, strict=True)]
        documents = (sum(count[0] for count in domains.values()), held_out)
        if documents != (written := tuple(text_manifest[split]["documents"] for split in ("train", "valid"))):
            raise ValueError(
                f"{text} holds {documents[0]:,} and {documents[1]:,} documents for training and validation, not "
                f"the {written[0]:,} and {written[1]:,} that were written there. "
                "Remove it, and it is made again"
            )
        lengths = tokens.read_index(work / "train")[1]
        manifest: dict[str, Any] = {
            "train": int(lengths.sum()),
            "valid": covered.tokens + held_out,  # each document has an end-of-document token
            "covered": covered._asdict(),
            "domains": domains,
            **left,
            "steps": [*text_manifest["steps"], *steps],
        }
        manifest["notes"] = report.notes(name, recipe, manifest["steps"], text_manifest, covered, lost)
        report.write(work, name, recipe, text_manifest, manifest, lengths, text)
        return manifest

    inputs = {
        "text": [text_manifest["sha256"], text.name],
        "tokenizer": model_sha,
        "compress": recipe.compress,
        "order": recipe.order,
        "sentencepiece": version("sentencepiece"),
        "tokenizers": version("tokenizers"),
    }
    return prepared_folder(store, f"{folder_label(name)}-tokens", inputs, make)


def _held_out_coverage(tokenizer: Tokenizer, valid: Path) -> tuple[Coverage, int, int]:
    """Three results, in this order: how much of the held-out text the tokenizer can represent; the number of held-out
    documents; and a lower bound of the bytes that the tokenizer changes or drops before it splits the text into pieces.
    `valid`: the held-out text, a .jsonl.gz file."""
    total, count, lost = Coverage(0, 0, 0, 0), 0, 0
    with gzip.open(valid, "rt", encoding="utf-8") as file:
        while texts := [json.loads(line)["text"] for line in islice(file, COVERAGE_BATCH)]:
            total += tokenizer.coverage(texts)
            count += len(texts)
            lost += sum(map(tokenizer.bytes_not_given_back, texts))
    return total, count, max(0, lost - total.unknown_bytes)


def _tokenize(folder: Path, model: Path, parts: Path, by_sentences: bool, _: Any, rank: int, __: int) -> None:
    """Tokenize shard number `rank` of the training text in `folder` with the tokenizer in the file `model`. Writes
    three files to `parts`, named like the shard: a token file (.bin, .idx); the characters, bytes and sentences of each
    document (.npy, int64 [3, documents]); and the `Count` of each domain (.domains, JSON). Without `by_sentences` each
    document counts as one sentence."""
    import numpy as np
    import orjson

    from data import tokens

    shard = sorted(folder.glob("*.jsonl"))[rank]
    sizes: list[tuple[int, int, int]] = []

    def texts_with_domains() -> Iterator[tuple[str, str]]:  # and their sizes are noted
        with open(shard, "rb") as file:
            for line in file:
                document = orjson.loads(line)
                labels, text = document.get("metadata", {}), document["text"]
                sentences = sum(map(text.count, filters.SENTENCE_ENDS)) if by_sentences else 1
                sizes.append((len(text), len(text.encode()), sentences))
                yield text, labels.get("domain", "")

    prefix = parts / shard.stem
    domains = tokens.write(prefix, texts_with_domains(), load_tokenizer(model))
    np.save(f"{prefix}.npy", np.array(sizes, np.int64).reshape(-1, 3).T)
    Path(f"{prefix}.domains").write_text(json.dumps(domains), "utf-8")


def _join_in_order(
    prefixes: list[str | Path], shards: list[Path], recipe: Recipe, work: Path
) -> tuple[dict[str, int], list[dict[str, Any]]]:
    """Join the token files of the shards to work/train, in the order that data.order asks for, and without the
    documents that data.compress removes. Returns {"documents", "bytes"} of the remaining text; and a list with the
    reports on data.compress and data.order, as far as they were applied, in the form of `filters.FilterStep`.

    Args:
        prefixes: the paths of the shards' token files, without extension.
        shards: the files with the text of each shard.
        recipe: the recipe of the corpus.
        work: the folder for the result.

    Raises:
        ValueError: data.compress removes every document.
    """
    import numpy as np

    from data import tokens

    characters, sizes, sentences = np.concatenate([np.load(f"{prefix}.npy") for prefix in prefixes], axis=1)
    if not recipe.compress and recipe.order == "random":
        tokens.join_files(prefixes, work / "train")
        return {"documents": len(sizes), "bytes": int(sizes.sum())}, []
    tokens.join_files(prefixes, work / "scratch" / "all")
    kind, lengths = tokens.read_index(work / "scratch" / "all")
    flat = np.memmap(work / "scratch" / "all.bin", kind, "r")
    starts = np.cumsum(lengths, dtype=np.int64) - lengths
    dense = filters.dense_documents(lengths - 1, characters, recipe.compress)  # without the end of document
    left = np.flatnonzero(~dense)
    if not len(left):
        raise ValueError(f"data.compress={recipe.compress} removes all of the {len(dense)} training documents")
    steps = []
    if recipe.compress:
        steps.append(_compression_report(dense, lengths, characters, sizes, prefixes, shards, recipe.compress))
    mean_sentence = characters / np.maximum(sentences, 1)
    ordered = left[filters.document_order(recipe.order, flat, starts[left], lengths[left], mean_sentence[left])]
    tokens.copy_documents(work / "scratch" / "all", ordered, work / "train")
    if recipe.order != "random":
        same = filters.step_report(recipe.order, sizes[left], sizes[left])  # no document is removed
        steps.append(same | {"moved": int((ordered != left).sum()), "lengths": {"in": {}, "out": {}}})
    return {"documents": len(left), "bytes": int(sizes[left].sum())}, steps


def _compression_report(
    dense: Any, lengths: Any, characters: Any, sizes: Any, prefixes: list[str | Path], shards: list[Path], limit: float
) -> dict[str, Any]:
    """The report, in the form of `filters.FilterStep`, on the documents that data.compress removes.

    Args:
        dense: bool [documents], True for the documents that are removed.
        lengths, characters, sizes: [documents], the tokens, characters and UTF-8 bytes of each document.
        prefixes, shards: the paths of the shards' token files without extension, and the files with their text.
        limit: data.compress, in tokens per character.
    """
    import numpy as np

    why = f"{limit:g} tokens per character or more"
    ends = np.cumsum([np.load(f"{prefix}.npy").shape[1] for prefix in prefixes])
    examples = []
    for number in np.flatnonzero(dense)[: filters.EXAMPLES].tolist():
        shard = int(np.searchsorted(ends, number, "right"))
        with open(shards[shard], "rb") as file:
            at = number - int(ends[shard - 1] if shard else 0)
            document = json.loads(next(line for index, line in enumerate(file) if index == at))
        ratio = (int(lengths[number]) - 1) / int(characters[number])
        examples.append(
            {
                "id": document["id"],
                "why": f"{ratio:.3f} tokens per character",
                "text": document["text"][: filters.EXCERPT_CHARACTERS],
            }
        )
    return filters.step_report(
        "compress", sizes, sizes[~dense], {why: int(dense.sum())} if dense.any() else {}, examples
    )
