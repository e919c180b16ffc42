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
from data.store import Run, Store, label, prepared
from data.text import lines, prepared_text
from data.tokenizer import (
    EXTRA_IDS,
    SAMPLE_BYTES,
    AnyTokenizer,
    check_parity,
    load_tokenizer,
    train,
    unexportable,
    vocabularies,
)
from data.tokenizer import read as read_tokenizer

LIBRARIES = {"bpe": "sentencepiece", "unigram": "sentencepiece", "byte-bpe": "tokenizers", "wordpiece": "tokenizers"}
COVERED = 256  # held-out documents that are encoded at once to count unknown tokens


def prepared_tokenizer(
    name: str, vocab: int, kind: str, recipe: Recipe, store: Store, mask: bool = False
) -> tuple[Path, dict[str, Any]]:
    """Path of the tokenizer of a corpus, and its manifest (see `_about`). Where it is missing it is trained; for a
    blend, on all of its components, whatever their weights.

    Args:
        name: the corpus; for kind="file", the path of an existing tokenizer.
        vocab: how many pieces it has.
        mask: whether it needs an id for a masked token. This makes a difference for byte-bpe only.
    """
    if kind == "file":
        return _existing(name, vocab, store)
    texts = [prepared_text(part, recipe, store) for part in corpora.components(name, store.path)]
    size = sum(about["train"]["bytes"] for _, about in texts)
    library = LIBRARIES[kind]
    file = "tokenizer.json" if library == "tokenizers" else "tokenizer.model"
    mask = mask and kind == "byte-bpe"

    def make(work: Path, run: Run) -> dict[str, Any]:
        run("training")
        documents = (json.loads(line)["text"] for folder, _ in texts for line in lines(folder / "train"))
        (work / file).write_bytes(train(documents, size, vocab, kind, mask))
        return _about(load_tokenizer(work / file))

    inputs = {
        "text": [about["sha256"] for _, about in texts],
        "vocab": vocab,
        "kind": kind,
        "options": [OPTIONS, SAMPLE_BYTES],
        library: version(library),
        **({"mask": True} if mask else {}),
    }
    folder, about = prepared(store, f"{label(name)}-tokenizer-{vocab}", inputs, make)
    return folder / file, about


def _about(tokenizer: AnyTokenizer) -> dict[str, Any]:
    """The entries of a tokenizer's manifest: sha256, lossless, eod, mask, specials, unexportable. Raises ValueError
    where the tokenizer gives other ids than Hugging Face's tokenizers."""
    check_parity(tokenizer)
    names = ("sha256", "lossless", "eod", "mask", "specials")
    return {name: getattr(tokenizer, name) for name in names} | {"unexportable": unexportable(tokenizer)}


def _existing(path: str, vocab: int, store: Store) -> tuple[Path, dict[str, Any]]:
    """Path of a copy of the tokenizer in the file `path`, and its manifest (see `_about`). Raises ValueError where
    `vocab` is not the number of its pieces, or that number and the extra ids that it allows."""
    file, content = read_tokenizer(path)

    def make(work: Path, _: Run) -> dict[str, Any]:
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
        return _about(loaded)

    inputs = {"content": hashlib.sha256(content).hexdigest(), "vocab": vocab}
    folder, about = prepared(store, f"{label(path)}-tokenizer-{vocab}", inputs, make)
    return folder / file, about


def prepared_tokens(
    name: str, text: Path, about: dict[str, Any], model: Path, model_sha: str, recipe: Recipe, store: Store
) -> tuple[Path, dict[str, Any]]:
    """Folder of the training text as token files, and its manifest: counts of tokens, documents and bytes, the steps of
    the preparation, notes.

    Args:
        name: of the corpus.
        text, about: its text and that text's manifest, from `prepared_text`.
        model, model_sha: file and hash of the tokenizer.
    """

    def make(work: Path, run: Run) -> dict[str, Any]:
        from data import tokens

        parts, shards = work / "scratch", sorted((text / "train").glob("*.jsonl"))
        parts.mkdir(exist_ok=True)
        run("tokenizing", [partial(_tokenize, text / "train", model, parts, "sentences" in recipe.order)], len(shards))
        prefixes: list[str | Path] = [parts / shard.stem for shard in shards]
        left, steps = _arrange(prefixes, shards, recipe, work)
        covered, held_out = _coverage(load_tokenizer(model), text / "valid.jsonl.gz")
        domains: dict[str, list[int]] = {}
        for prefix in prefixes:
            for domain, count in json.loads(Path(f"{prefix}.domains").read_text("utf-8")).items():
                before = domains.get(domain, [0] * len(count))
                domains[domain] = [a + b for a, b in zip(before, count, strict=True)]
        documents = (sum(count[0] for count in domains.values()), held_out)
        if documents != (written := tuple(about[split]["documents"] for split in ("train", "valid"))):
            raise ValueError(
                f"{text} holds {documents[0]:,} and {documents[1]:,} documents for training and validation, not "
                f"the {written[0]:,} and {written[1]:,} that were written there. "
                "Remove it, and it is made again"
            )
        lengths = tokens.read(work / "train")[1]
        manifest: dict[str, Any] = {
            "train": int(lengths.sum()),
            "valid": covered.tokens + held_out,  # each document has an end-of-document token
            "covered": covered._asdict(),
            "domains": domains,
            **left,
            "steps": [*about["steps"], *steps],
        }
        manifest["notes"] = report.notes(name, recipe, manifest["steps"], about, covered)
        report.write(work, name, recipe, about, manifest, lengths, text)
        return manifest

    inputs = {
        "text": [about["sha256"], text.name],
        "tokenizer": model_sha,
        "compress": recipe.compress,
        "order": recipe.order,
        "sentencepiece": version("sentencepiece"),
        "tokenizers": version("tokenizers"),
    }
    return prepared(store, f"{label(name)}-tokens", inputs, make)


def _coverage(tokenizer: AnyTokenizer, valid: Path) -> tuple[Coverage, int]:
    """The coverage of the held-out text (a .jsonl.gz) by the tokenizer, and the number of its documents."""
    total, count = Coverage(0, 0, 0, 0), 0
    with gzip.open(valid, "rt", encoding="utf-8") as file:
        while texts := [json.loads(line)["text"] for line in islice(file, COVERED)]:
            total += tokenizer.coverage(texts)
            count += len(texts)
    return total, count


def _tokenize(folder: Path, model: Path, parts: Path, by_sentences: bool, _: Any, rank: int, __: int) -> None:
    """Write shard number `rank` of the training text as a token file in `parts`, and beside it the characters, bytes
    and sentences of each document (.npy, [3, documents]) and the counts of each domain (.domains)."""
    import numpy as np
    import orjson

    from data import tokens

    shard = sorted(folder.glob("*.jsonl"))[rank]
    sizes: list[tuple[int, int, int]] = []

    def documents() -> Iterator[tuple[str, str]]:
        with open(shard, "rb") as file:
            for line in file:
                document = orjson.loads(line)
                labels, text = document.get("metadata", {}), document["text"]
                sentences = sum(map(text.count, filters.SENTENCE_ENDS)) if by_sentences else 1
                sizes.append((len(text), len(text.encode()), sentences))
                yield text, labels.get("domain", "")

    prefix = parts / shard.stem
    domains = tokens.write(prefix, documents(), load_tokenizer(model))
    np.save(f"{prefix}.npy", np.array(sizes, np.int64).reshape(-1, 3).T)
    Path(f"{prefix}.domains").write_text(json.dumps(domains), "utf-8")


def _arrange(
    prefixes: list[str | Path], shards: list[Path], recipe: Recipe, work: Path
) -> tuple[dict[str, int], list[dict[str, Any]]]:
    """Join the token files of the shards to work/train, without documents that data.compress removes, in the order of
    data.order. Returns {"documents", "bytes"} of what is left, and reports of these steps, as of `filters.Step`.

    Args:
        prefixes: of the token files, without extension.
        shards: the text of each.
    """
    import numpy as np

    from data import tokens

    characters, sizes, sentences = np.concatenate([np.load(f"{prefix}.npy") for prefix in prefixes], axis=1)
    if not recipe.compress and recipe.order == "random":
        tokens.join(prefixes, work / "train")
        return {"documents": len(sizes), "bytes": int(sizes.sum())}, []
    tokens.join(prefixes, work / "scratch" / "all")
    kind, lengths = tokens.read(work / "scratch" / "all")
    flat = np.memmap(work / "scratch" / "all.bin", kind, "r")
    starts = np.cumsum(lengths, dtype=np.int64) - lengths
    dense = filters.too_dense(lengths - 1, characters, recipe.compress)  # without the end of document
    left = np.flatnonzero(~dense)
    if not len(left):
        raise ValueError(f"data.compress={recipe.compress} removes all of the {len(dense)} training documents")
    steps = []
    if recipe.compress:
        steps.append(_dense_step(dense, lengths, characters, sizes, prefixes, shards, recipe.compress))
    mean_sentence = characters / np.maximum(sentences, 1)
    ordered = left[filters.document_order(recipe.order, flat, starts[left], lengths[left], mean_sentence[left])]
    tokens.select(work / "scratch" / "all", ordered, work / "train")
    if recipe.order != "random":
        moved = int((ordered != left).sum())
        counts = [len(left), int(sizes[left].sum())]
        steps.append(
            {
                "step": recipe.order,
                "in": counts,
                "out": counts,
                "changed": 0,
                "moved": moved,
                "reasons": {},
                "examples": [],
                "lengths": {"in": {}, "out": {}},
            }
        )
    return {"documents": len(left), "bytes": int(sizes[left].sum())}, steps


def _dense_step(
    dense: Any, lengths: Any, characters: Any, sizes: Any, prefixes: list[str | Path], shards: list[Path], limit: float
) -> dict[str, Any]:
    """The report of data.compress, in the form of `filters.Step`.

    Args:
        dense: bool [documents], those that are removed.
        lengths, characters, sizes: [documents], tokens, characters and bytes.
        prefixes, shards: as in `_arrange`.
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
                "text": document["text"][: filters.EXCERPT],
            }
        )

    def lengths_of(sizes: Any) -> dict[int, int]:
        powers, counts = np.unique(np.log2(sizes).astype(int), return_counts=True)
        return dict(zip(powers.tolist(), counts.tolist(), strict=True))

    return {
        "step": "compress",
        "in": [len(dense), int(sizes.sum())],
        "out": [int((~dense).sum()), int(sizes[~dense].sum())],
        "changed": 0,
        "reasons": {why: int(dense.sum())} if dense.any() else {},
        "examples": examples,
        "lengths": {"in": lengths_of(sizes), "out": lengths_of(sizes[~dense])},
    }
