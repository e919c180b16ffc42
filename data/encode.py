"""From text to tokens: trains or copies a tokenizer, and writes the training text of a corpus as token files, with its
documents in the order that the recipe asks for."""

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
    allowed_vocab_sizes,
    check_parity,
    load_tokenizer,
    read_tokenizer,
    reason_not_exportable,
    train,
)
from data.tokenizer_base import Tokenizer

# the library that trains each kind of tokenizer
LIBRARIES = {"bpe": "sentencepiece", "unigram": "sentencepiece", "byte-bpe": "tokenizers", "wordpiece": "tokenizers"}
COVERAGE_BATCH = 256  # held-out documents that are encoded at once to count unknown tokens


def prepared_tokenizer(
    name: str, vocab: int, kind: str, recipe: Recipe, store: Store, mask: bool = False
) -> tuple[Path, dict[str, Any]]:
    """The tokenizer of a corpus: the path of its file, and its manifest (see `_tokenizer_manifest`). A missing
    tokenizer is trained; for a blend, on the text of all components, whatever their weights.

    Args:
        name: the corpus; for kind="file", the path of an existing tokenizer.
        vocab: the number of the tokenizer's pieces.
        kind: one of `tokenizer.KINDS`.
        recipe: how the text that the tokenizer is trained on is prepared.
        store: the store of prepared data.
        mask: whether the tokenizer needs an id for a masked token; this changes the training of kind="byte-bpe" only.
    """
    if kind == "file":
        return _copied_tokenizer(name, vocab, store)
    texts = [prepared_text(component, recipe, store) for component in corpora.components(name, store.path)]
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
    """The manifest of a tokenizer, a dictionary: "sha256", "lossless", "eod", "mask" and "specials" are its attributes
    (see `Tokenizer`); "unexportable" is the reason why a run with it cannot be exported, or "". Raises ValueError where
    the tokenizer gives other ids than Hugging Face's tokenizers."""
    check_parity(tokenizer)
    names = ("sha256", "lossless", "eod", "mask", "specials")
    return {name: getattr(tokenizer, name) for name in names} | {"unexportable": reason_not_exportable(tokenizer)}


def _copied_tokenizer(path: str, vocab: int, store: Store) -> tuple[Path, dict[str, Any]]:
    """Copy an existing tokenizer into the store. Returns the path of the copy, and its manifest (see
    `_tokenizer_manifest`). Raises ValueError if there is no tokenizer at `path`, or it does not allow `vocab` (see
    `tokenizer.allowed_vocab_sizes`).

    `path`: the tokenizer, in a format of `tokenizer.read_tokenizer`; `vocab`: the setting model.vocab.
    """
    file, content = read_tokenizer(path)

    def make(work: Path, _: RunStage) -> dict[str, Any]:
        (work / file).write_bytes(content)
        loaded = load_tokenizer(work / file)
        if vocab not in (allowed := allowed_vocab_sizes(loaded)):
            alternative = ""
            if len(allowed) > 1:
                extra = f"T5's {EXTRA_IDS} extra ids" if loaded.kind == "unigram" else "an id for a masked token"
                alternative = f", or {allowed[1]} with {extra}"
            raise ValueError(
                f"the tokenizer {path} has {loaded.vocab_size} pieces: model.vocab={vocab} must be that{alternative}"
            )
        return _tokenizer_manifest(loaded)

    inputs = {"content": hashlib.sha256(content).hexdigest(), "vocab": vocab}
    folder, manifest = prepared_folder(store, f"{folder_label(path)}-tokenizer-{vocab}", inputs, make)
    return folder / file, manifest


def prepared_tokens(
    name: str, text: Path, text_manifest: dict[str, Any], model: Path, model_sha: str, recipe: Recipe, store: Store
) -> tuple[Path, dict[str, Any]]:
    """The training text of a corpus as token files: the folder with train.bin and train.idx, and its manifest. Missing
    token files are made.

    Args:
        name: the name of the corpus.
        text, text_manifest: the folder of the corpus' text and the manifest of the text, from `prepared_text`.
        model, model_sha: the file of the tokenizer, and the sha256 of the file.
        recipe: the recipe of the corpus; its data.compress and data.order are applied here.
        store: the store of prepared data.

    The manifest is a dictionary:
        train, valid: the number of tokens, end-of-document tokens included
        documents, bytes: of the training text
        covered: the `Coverage` of the held-out text, as a dictionary
        domains: {domain: the `tokens.Count` of its training documents, as a list}
        steps: [the `filters.step_report` of each step of the preparation]
        notes: [a sentence for each thing that the user should know]
    """

    def make(work: Path, run: RunStage) -> dict[str, Any]:
        from data import tokens

        scratch, shards = work / "scratch", sorted((text / "train").glob("*.jsonl"))
        scratch.mkdir(exist_ok=True)
        tokenize = partial(_tokenize, text / "train", model, scratch, "sentences" in recipe.order)
        run("tokenizing", [tokenize], len(shards))
        prefixes: list[str | Path] = [scratch / shard.stem for shard in shards]
        sizes, steps = _join_in_order(prefixes, shards, recipe, work)
        covered, held_out, lost = _held_out_coverage(load_tokenizer(model), text / "valid.jsonl.gz")
        domains = tokens.summed_counts(json.loads(Path(f"{prefix}.domains").read_text("utf-8")) for prefix in prefixes)
        documents = (sum(count.documents for count in domains.values()), held_out)
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
            **sizes,
            "steps": [*text_manifest["steps"], *steps],
        }
        manifest["notes"] = report.notes(name, recipe, manifest["steps"], text_manifest, covered, lost)
        report.write_report(work, name, recipe, text_manifest, manifest, lengths, text)
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
    """Measure how well a tokenizer represents the held-out text. Returns the `Coverage`; the number of documents; and a
    lower bound of the number of bytes that the tokenizer changes or drops before it splits the text into pieces.
    `valid`: the held-out text, a .jsonl.gz file."""
    total, count, lost = Coverage(0, 0, 0, 0), 0, 0
    with gzip.open(valid, "rt", encoding="utf-8") as file:
        while texts := [json.loads(line)["text"] for line in islice(file, COVERAGE_BATCH)]:
            total += tokenizer.coverage(texts)
            count += len(texts)
            lost += sum(map(tokenizer.lost_bytes, texts))
    return total, count, max(0, lost - total.unknown_bytes)


def _tokenize(folder: Path, model: Path, results: Path, count_sentences: bool, _: Any, rank: int, __: int) -> None:
    """A step of datatrove's pipeline that tokenizes one shard of the training text. It writes files named like the
    shard:
        .bin and .idx: a token file
        .npy: int64 [3, documents], the numbers of characters, bytes and sentences of each document
        .domains: {domain: the `tokens.Count` of its documents}, as JSON

    Args:
        folder: the folder with the shards of the training text.
        model: the file of the tokenizer.
        results: the folder for the files.
        count_sentences: whether sentences are counted; else each document counts as one sentence.
        rank: the number of the task, which is also the number of the shard.
        _, __: the documents from an earlier step and the number of tasks; not used.
    """
    import numpy as np
    import orjson

    from data import tokens

    shard = sorted(folder.glob("*.jsonl"))[rank]
    sizes: list[tuple[int, int, int]] = []

    def texts_with_domains() -> Iterator[tuple[str, str]]:  # fills `sizes` too
        with open(shard, "rb") as file:
            for line in file:
                document = orjson.loads(line)
                labels, text = document.get("metadata", {}), document["text"]
                sentences = sum(map(text.count, filters.SENTENCE_ENDS)) if count_sentences else 1
                sizes.append((len(text), len(text.encode()), sentences))
                yield text, labels.get("domain", "")

    prefix = results / shard.stem
    domains = tokens.write_token_file(prefix, texts_with_domains(), load_tokenizer(model))
    np.save(f"{prefix}.npy", np.array(sizes, np.int64).reshape(-1, 3).T)
    Path(f"{prefix}.domains").write_text(json.dumps(domains), "utf-8")


def _join_in_order(
    prefixes: list[str | Path], shards: list[Path], recipe: Recipe, work: Path
) -> tuple[dict[str, int], list[dict[str, Any]]]:
    """Join the token files of the shards to one, train.bin and train.idx, in the order that data.order asks for and
    without the documents that data.compress removes. Returns {"documents", "bytes"} of the remaining text; and a
    `filters.step_report` for each of data.compress and data.order that is set. The report on data.order has the further
    entry "moved", the number of documents that changed their place.

    Args:
        prefixes: the paths of the shards' token files, without extension.
        shards: the files with the text of the shards.
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
    dtype, lengths = tokens.read_index(work / "scratch" / "all")
    flat = np.memmap(work / "scratch" / "all.bin", dtype, "r")
    starts = np.cumsum(lengths, dtype=np.int64) - lengths
    dense = filters.dense_documents(lengths - 1, characters, recipe.compress)  # without the end of document
    left = np.flatnonzero(~dense)  # the numbers of the documents that are left
    if not len(left):
        raise ValueError(f"data.compress={recipe.compress} removes all of the {len(dense)} training documents")
    steps = []
    if recipe.compress:
        steps.append(_compression_report(dense, lengths, characters, sizes, prefixes, shards, recipe.compress))
    mean_sentence = characters / np.maximum(sentences, 1)
    ordered = left[filters.document_order(recipe.order, flat, starts[left], lengths[left], mean_sentence[left])]
    tokens.copy_documents(work / "scratch" / "all", ordered, work / "train")
    if recipe.order != "random":
        reordering = filters.step_report(recipe.order, sizes[left], sizes[left])  # no document is removed
        steps.append(reordering | {"moved": int((ordered != left).sum()), "lengths": {"in": {}, "out": {}}})
    return {"documents": len(left), "bytes": int(sizes[left].sum())}, steps


def _compression_report(
    dense: Any, lengths: Any, characters: Any, sizes: Any, prefixes: list[str | Path], shards: list[Path], limit: float
) -> dict[str, Any]:
    """The `filters.step_report` on the documents that data.compress removes.

    Args:
        dense: bool [documents], True for the documents that are removed.
        lengths, characters, sizes: [documents], the number of tokens, characters and UTF-8 bytes of each document.
        prefixes, shards: the paths of the shards' token files without extension, and the files with their text.
        limit: data.compress, in tokens per character.
    """
    import numpy as np

    ends = np.cumsum([np.load(f"{prefix}.npy").shape[1] for prefix in prefixes])
    examples = []
    for number in np.flatnonzero(dense)[: filters.EXAMPLES].tolist():
        shard = int(np.searchsorted(ends, number, "right"))
        with open(shards[shard], "rb") as file:
            line_number = number - int(ends[shard - 1] if shard else 0)
            document = json.loads(next(line for index, line in enumerate(file) if index == line_number))
        ratio = (int(lengths[number]) - 1) / int(characters[number])
        examples.append(
            {
                "id": document["id"],
                "why": f"{ratio:.3f} tokens per character",
                "text": document["text"][: filters.EXCERPT_CHARACTERS],
            }
        )
    reasons = {f"{limit:g} tokens per character or more": int(dense.sum())} if dense.any() else {}
    return filters.step_report("compress", sizes, sizes[~dense], reasons, examples)
