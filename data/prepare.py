"""From a corpus to what training reads: text, tokenizer, tokens. Knows datatrove, as do filters.py and execute.py.

Each is a folder `<name>-<key>` in the store, whose key is a hash of all that determines its bytes:

    text       train/*.jsonl, valid.jsonl.gz      read, filtered, deduplicated and split
    tokenizer  tokenizer.model or .json           trained on the training text, or a copy of one that exists
    tokens     train.bin, train.idx, report.md    in Megatron's format, one end of document after each document

A folder is built under another name, partial-..., and renamed when it is complete, manifest.json included. After a kill
the same call goes on where it was: tasks that were finished are not done again.
As a command: python -m data.prepare --help
"""
from __future__ import annotations

import argparse
import contextlib
import fcntl
import gc
import gzip
import hashlib
import json
import os
import pickle
import platform
import re
import shutil
import struct
import sys
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from glob import has_magic
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from data import corpus as corpora
from data import execute, filters, report
from data import tokenizer as tokenizers
from data.corpus import Missing, check
from data.execute import Executor
from data.filters import Recipe, Step
from data.readers import Ledger, listed
from data.tokenizer import KINDS, OPTIONS, SAMPLE_BYTES, SMALLEST, load_tokenizer, train

__all__ = ["Missing", "check", "epochs", "held_out", "prepare"]

LAYOUT = 2  # of the folders; a change of this file or of those it calls that alters their bytes raises it
TASKS = 16  # shards of the work at least; their number depends on the files alone, so that nothing depends on the cores
MOST_TASKS, SHARD = 1000, 1 << 25  # of many files: at most so many (Slurm's usual limit), of so many bytes or more
STEP_KEYS = ("step", "in", "out", "changed", "moved", "reasons")  # of those of the report, what run.json records
# MinHash as in FineWeb (arXiv:2406.17557): documents whose 5-grams are about 75 % the same are duplicates.
SHINGLE, BUCKETS, HASHES = 5, 14, 8

PLAIN, HERE = Recipe(), Executor()

Run = Callable[..., None]  # (stage, pipeline, tasks): names a stage on the terminal and runs datatrove steps


class Place(NamedTuple):
    """Where things are built, and how; build=False: only what is there already."""
    store: Path
    executor: Executor = HERE
    build: bool = True


def prepare(corpus: str, tokenizer: str, vocab: int, store: Path, kind: str = "bpe", recipe: Recipe = PLAIN,
            executor: Executor = HERE, build: bool = True) -> dict[str, Any]:
    """Prepare a corpus for training, with a tokenizer of `vocab` pieces trained on another or the same one.

    `corpus` and `tokenizer`, of which the training text counts, are names or files, see `data.corpus.load`; with
    kind=file `tokenizer` is a tokenizer that exists, see `data.tokenizer.read`. `recipe` is for the corpus; the
    tokenizer's text is prepared by the default one, so that arms that differ in it share the tokenizer. What is there
    already is not built again; several processes may call this at once. Of duplicate documents the first is kept, or a
    held-out one. Duplicates are sought within each component of a blend.

    Returns a manifest, JSON-able:
        corpus, recipe, sha256 (of the training and validation text, and of what the recipe did to the tokens)
        train: [{prefix (of .bin and .idx), weight, corpus, tokens}], the weights adding up to 1
        valid: [path of .jsonl.gz with {text, id, metadata}]
        tokenizer: {path, sha256, vocab, corpus, kind}
        counts: {train and valid: {documents, bytes (of UTF-8), tokens (with an end of document each)},
                 duplicates: {exact, near}}
        steps: [{corpus, step, in, out: [documents, bytes], ...}], reports: [path of report.md]
        notes: [a sentence for each thing to know, such as a filter that removed nothing]
        mismatch: [a sentence for each text that is not the one its specification records]
    Raises ValueError, naming what is allowed, before any work where that is possible; and Missing where something is
    not there and build is false.
    """
    place = Place(Path(store), executor, build)
    for name in (corpus, tokenizer) if kind != "file" else (corpus,):
        check(name, place.store)
    if kind not in KINDS:
        raise ValueError(f"a tokenizer of kind {kind!r}: there are {', '.join(KINDS)}")
    filters.check(recipe)
    execute.check(executor)
    if vocab < SMALLEST and kind != "file":
        raise ValueError(f"vocab={vocab} is too small: at least {SMALLEST}")
    plain = Recipe(allow_errors=recipe.allow_errors)
    model, model_sha = _tokenizer(tokenizer, vocab, kind, plain, place)
    spec = corpora.load(corpus, place.store)
    weights = spec.get("blend", {corpus: 1.0})
    texts = [_text(name, recipe, place) for name in weights]
    tokens = [_tokens(name, folder, about, model, model_sha, recipe, place)
              for name, (folder, about) in zip(weights, texts, strict=True)]
    _unchanged(model, model_sha, tokens)
    abouts, counted = [about for _, about in texts], [about for _, about in tokens]
    if spec.get("alpha") is not None:
        sizes = [about["train"] ** spec["alpha"] for about in counted]
        weights = {name: size / sum(sizes) for name, size in zip(weights, sizes, strict=True)}
    shas = [_hash([about["sha256"], recipe.compress, recipe.order]) if recipe.compress or recipe.order != "random"
            else about["sha256"] for about in abouts]
    mismatch = [about["mismatch"] for about in abouts if about["mismatch"]]
    for sentence in mismatch:
        warnings.warn(sentence, stacklevel=2)
    counts = {split: {"documents": sum(about[split]["documents"] for about in abouts),
                      "bytes": sum(about[split]["bytes"] for about in abouts),
                      "tokens": sum(about[split] for about in counted)} for split in ("train", "valid")}
    counts["train"]["documents"] = sum(about["documents"] for about in counted)
    counts["train"]["bytes"] = sum(about["bytes"] for about in counted)
    counts["duplicates"] = {kind: sum(about["duplicates"][kind] for about in abouts)
                            for kind in ("exact", "near")}
    return {
        "corpus": corpus,
        "recipe": recipe._asdict(),
        "sha256": shas[0] if len(shas) == 1 else _hash([shas, list(weights.values())]),
        "train": [{"prefix": str(folder / "train"), "weight": weight, "corpus": name, "tokens": about["train"]}
                  for (folder, about), (name, weight) in zip(tokens, weights.items(), strict=True)],
        "valid": [str(folder / "valid.jsonl.gz") for folder, _ in texts],
        "tokenizer": {"path": str(model), "sha256": model_sha, "vocab": vocab, "corpus": tokenizer, "kind": kind},
        "counts": counts,
        "steps": [{"corpus": name, **{key: step[key] for key in STEP_KEYS if key in step}}
                  for name, about in zip(weights, counted, strict=True) for step in about["steps"]],
        "reports": [str(folder / "report.md") for folder, _ in tokens],
        "notes": [note for about in counted for note in about["notes"]],
        "mismatch": mismatch,
    }


def held_out(corpus: str, store: Path, allow_errors: int = 0) -> list[str]:
    """The files of the validation text of a corpus by the default recipe: the same for all arms of a study."""
    place = Place(Path(store))
    return [str(_text(name, Recipe(allow_errors=allow_errors), place)[0] / "valid.jsonl.gz")
            for name in _components(corpus, place)]


def epochs(manifest: dict[str, Any], tokens: int) -> list[dict[str, Any]]:
    """How often a run of `tokens` tokens reads each source: [{corpus, share, tokens, epochs}]."""
    return [{"corpus": source["corpus"], "share": source["weight"], "tokens": source["tokens"],
             "epochs": tokens * source["weight"] / source["tokens"]} for source in manifest["train"]]


# Text

def _text(name: str, recipe: Recipe, place: Place) -> tuple[Path, dict[str, Any]]:
    """Folder and manifest of the filtered and deduplicated text of a corpus that is no blend."""
    spec = corpora.load(name, place.store)
    recorded = spec.pop("sha256", None)
    units = corpora.units(spec, place.store, place.build)
    inputs: dict[str, Any]
    wrong: list[str] = []
    if "files" in spec:
        hashes = _contents(units, place)
        wrong = _wrong(spec, units, hashes)
        inputs = {key: spec[key] for key in ("layout", "text", "where") if spec.get(key)}
        inputs |= {"files": [[unit.name, sha] for unit, sha in zip(units, hashes, strict=True)],
                   "share": corpora.valid_share(spec, units)}
    else:
        inputs = {**spec, "python": platform.python_version_tuple()[:2]}
    # what is read is the same whatever errors are allowed; whether there were too many is asked below, each time
    inputs |= {"minhash": [SHINGLE, BUCKETS, HASHES], "datatrove": version("datatrove"),
               "dedup": recipe.dedup, "quality": recipe.quality, "decontaminate": _tasks_hash(recipe, place)}
    if len(wrong) > recipe.allow_errors:
        raise ValueError(listed(wrong, recipe.allow_errors))
    folder, about = _folder(place, _label(name), inputs, partial(_make_text, spec, units, recipe, wrong))
    if len(about["problems"]) > recipe.allow_errors:
        raise ValueError(listed(about["problems"], recipe.allow_errors))
    about["mismatch"] = ""
    if recorded and recorded != about["sha256"] and recipe._replace(allow_errors=0) == PLAIN:
        about["mismatch"] = (f"the text of {name} has the sha256 {about['sha256']}, but its specification "
                             f"records {recorded}: results on the two cannot be compared")
    return folder, about


def _wrong(spec: dict[str, Any], units: list[corpora.Unit], hashes: list[str]) -> list[str]:
    """A sentence for each file that is not what the list of checksums beside it says, or that it does not name."""
    sums = corpora.checksums(spec)
    if sums is None:
        return []
    return [f"{unit.path}: its sha256 is {sha}, but the list beside it says {sums.get(unit.name, 'nothing of it')}"
            for unit, sha in zip(units, hashes, strict=True) if sums.get(unit.name) != sha]


def _tasks_hash(recipe: Recipe, place: Place) -> str:
    if recipe.decontaminate == "none":
        return "none"
    found = filters.tasks(recipe.decontaminate)
    return _hash([filters.NGRAM, {task: [_content(path, place) for path in paths] for task, paths in found.items()}])


def _make_text(spec: dict[str, Any], units: list[corpora.Unit], recipe: Recipe, wrong: list[str], work: Path,
               run: Run) -> dict[str, Any]:
    from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupBuckets
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import JsonlWriter

    scratch = work / "scratch"
    read, signed, pairs, removed, met, tasks, stages = (
        scratch / name for name in ("read", "signed", "pairs", "removed", "problems", "tasks", "stages"))
    for folder in (read, removed, met):
        folder.mkdir(parents=True, exist_ok=True)
    count = TASKS
    if "files" in spec:
        count = max(TASKS, min(len(units), MOST_TASKS, sum(unit.size for unit in units) // SHARD))
    for rank in range(count):  # empty shards too: later the n-th file is read by the n-th task
        (read / f"{rank:05d}.jsonl").touch()
    asked = filters.steps(recipe)
    about_tasks: dict[str, Any] = {}
    if "decontaminate" in asked:
        about_tasks = filters.index(recipe.decontaminate, tasks)
    make: dict[str, Any] = {"c4": partial(filters.quality, "c4"), "gopher": partial(filters.quality, "gopher"),
                            "decontaminate": partial(filters.decontaminate, tasks)}
    share = corpora.valid_share(spec, units)
    config = MinhashConfig(n_grams=SHINGLE, num_buckets=BUCKETS, hashes_per_bucket=HASHES)
    try:
        (scratch / "units.pickle").write_bytes(pickle.dumps([spec, units]))
        run("reading", [partial(_read, scratch / "units.pickle", share, recipe.allow_errors - len(wrong), met),
                        *(Step(name, make[name], stages / name) for name in asked),
                        JsonlWriter(str(read), compression=None), partial(_digest, read),
                        _signature(signed, config)], count)
    except Exception:
        problems, _ = _met(met)
        if len(wrong + problems) > recipe.allow_errors:
            raise ValueError(listed(wrong + problems, recipe.allow_errors)) from None
        raise
    problems, counts = _met(met)
    if len(wrong + problems) > recipe.allow_errors:
        raise ValueError(listed(wrong + problems, recipe.allow_errors))
    run("finding duplicates",
        [MinhashDedupBuckets(str(signed), str(pairs), config=config, lines_to_buffer=1000)], BUCKETS)
    run("removing duplicates", [partial(_keep_first, read, pairs, removed, recipe.dedup)], 1)
    again = JsonlReader(str(read), compression=None, glob_pattern="*.jsonl", add_file_path=False)
    run("writing text", [again, Step("duplicates", partial(_duplicates, removed), stages / "duplicates"),
                         JsonlWriter(str(work), "${split}/${rank}.jsonl", compression=None)], count)
    about = _gather(spec, work, share)
    about["duplicates"] = {kind: sum(json.loads(path.read_text())[kind] for path in removed.glob("*.counts"))
                           for kind in ("exact", "near")}
    shutil.rmtree(work / "valid", ignore_errors=True)
    return about | {
        "problems": wrong + problems, "read": counts, "share": share,
        "steps": [filters.summary(name, stages / name) for name in [*asked, "duplicates"]],
        "tasks": filters.contamination(about_tasks, tasks) if about_tasks else {},
    }


def _met(folder: Path) -> tuple[list[str], dict[str, int]]:
    """The problems that the readers met, and what they counted."""
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    kinds = sorted({kind for each in found for kind in each["counts"]})
    return ([problem for each in found for problem in each["problems"]],
            {kind: sum(each["counts"].get(kind, 0) for each in found) for kind in kinds})


def _gather(spec: dict[str, Any], work: Path, share: float) -> dict[str, Any]:
    """Hash and counts of the text; puts the held-out documents into one file."""
    sha, counts = hashlib.sha256(), {}
    # Neither name nor time in the gzip header: the same text is the same file.
    with open(work / "valid.jsonl.gz", "wb") as raw, gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as packed:
        for split in ("train", "valid"):
            documents = size = 0
            for line in _lines(work / split):
                text = json.loads(line)["text"].encode()
                sha.update(len(text).to_bytes(8, "big") + text)
                documents, size = documents + 1, size + len(text)
                if split == "valid":
                    packed.write(line)
            if not documents:
                said = f" ({share:.2g} of the documents are for validation)"
                raise ValueError(f"{spec['name']}: too little text, no document is left for {split}"
                                 + (said if "files" in spec else ""))
            counts[split] = {"documents": documents, "bytes": size}
    return {"sha256": sha.hexdigest(), **counts}


# Pipeline steps. To datatrove a step is any function of (documents, rank, number of tasks).

def _read(of: Path, share: float, allowed: int, met: Path, _: Any, rank: int, tasks: int) -> Iterator[Any]:
    """The documents of this task's share of the files: contiguous, and equal in bytes."""
    from datatrove.data import Document

    spec, units = pickle.loads(of.read_bytes())
    total, start = sum(unit.size for unit in units) or 1, 0
    ledger = Ledger(allowed)
    gc.disable()  # a syntax tree has many nodes and no cycle: collecting is a fifth of the time of parsing
    try:
        for unit in units:
            if start * tasks // total == rank:
                for name, text, labels in corpora.documents(spec, unit, ledger):
                    split = "valid" if corpora.held_out(spec, unit.package, text, share) else "train"
                    yield Document(text, name, metadata={**labels, "split": split})
            start += unit.size
    finally:
        gc.enable()
        (met / f"{rank:05d}.json").write_text(json.dumps({"problems": ledger.problems, "counts": ledger.counts}))


def _digest(folder: Path, documents: Any, rank: int, _: int) -> Iterator[Any]:
    """Records what finds exact duplicates: documents of fewer words than a shingle have no signature."""
    with open(folder / f"{rank:05d}.digests", "wb") as file:
        for document in documents:
            file.write(hashlib.blake2b(document.text.encode(), digest_size=16).digest())
            file.write(bytes([document.metadata["split"] == "valid"]))
            yield document


class _Words:
    """datatrove's own need a package for each language; spaces will do for its simplified text."""
    word_tokenize = staticmethod(str.split)


def _signature(folder: Path, config: Any) -> Any:
    from datatrove.pipeline.dedup.minhash import MinhashDedupSignature
    from datatrove.utils.word_tokenizers import WhitespaceTokenizer

    step = MinhashDedupSignature(str(folder), config=config, language=WhitespaceTokenizer())
    step.word_tokenizer = _Words()
    return step


def _keep_first(read: Path, pairs: Path, removed: Path, dedup: str, *_: Any) -> None:
    """Chooses which documents of each cluster of exact and near duplicates go.

    One stays: the first held-out document, or else the first of all in reading order. dedup=none and dedup=exact
    spare training documents that resemble no held-out one; exact takes those that are copies to the letter.
    In place of datatrove's own step, which keeps the root of its union-find: often not the held-out document.
    Memory: 32 bytes for each document, and a few hundred for each that has a like.
    """
    import numpy as np

    parent: dict[int, int] = {}

    def root(node: int) -> int:
        while (above := parent.get(node, node)) != node:
            parent[node] = node = parent.get(above, above)
        return node

    def join(a: int, b: int) -> None:
        low, high = sorted((root(a), root(b)))
        parent[high] = low
        parent.setdefault(low, low)

    files = sorted(read.glob("*.digests"))
    found = [np.fromfile(path, np.dtype([("digest", "V16"), ("valid", "?")])) for path in files]
    ends = np.cumsum([len(each) for each in found])
    starts = {int(path.stem): int(end - len(each)) for path, each, end in zip(files, found, ends, strict=True)}
    digests = np.concatenate([each["digest"] for each in found])
    valid = np.concatenate([each["valid"] for each in found])
    del found
    halves = np.ascontiguousarray(digests).view("<u8").reshape(-1, 2)
    order = np.lexsort((np.arange(len(halves)), halves[:, 1], halves[:, 0]))
    same = (halves[order[1:]] == halves[order[:-1]]).all(axis=1)
    exact = set(order[1:][same].tolist())
    for a, b in zip(order[:-1][same].tolist(), order[1:][same].tolist(), strict=True):
        join(a, b)
    for path in sorted(pairs.glob("*.dups")):
        for rank_a, a, rank_b, b in struct.iter_unpack("<4I", path.read_bytes()):
            join(starts[rank_a] + a, starts[rank_b] + b)

    clusters: dict[int, list[int]] = {}
    for node in sorted(parent):
        clusters.setdefault(root(node), []).append(node)
    gone: dict[int, dict[str, list[int]]] = {}
    for members in clusters.values():
        keeper = next((node for node in members if valid[node]), members[0])
        for node in members:
            if node != keeper and (valid[keeper] or dedup == "near" or dedup == "exact" and node in exact):
                shard = int(np.searchsorted(ends, node, "right"))
                rank = int(files[shard].stem)
                kind = "exact" if node in exact else "near"
                gone.setdefault(rank, {"exact": [], "near": []})[kind].append(node - starts[rank])
    for rank, kinds in gone.items():
        (removed / f"{rank:05d}.json").write_text(json.dumps(kinds))
        (removed / f"{rank:05d}.counts").write_text(json.dumps({kind: len(each) for kind, each in kinds.items()}))


def _duplicates(removed: Path, rank: int) -> Callable[[Any], str]:
    path = removed / f"{rank:05d}.json"
    kinds = json.loads(path.read_text()) if path.exists() else {}
    why = {index: f"{kind} copy" for kind, indices in kinds.items() for index in indices}
    number = iter(range(1 << 62))
    return lambda _: why.get(next(number), "")


# Tokenizer and tokens

def _tokenizer(name: str, vocab: int, kind: str, recipe: Recipe, place: Place) -> tuple[Path, str]:
    """Path and hash of the tokenizer trained on a corpus; the components of a blend are taken whole."""
    if kind == "file":
        return _existing(name, vocab, place)
    texts = [_text(part, recipe, place) for part in _components(name, place)]
    size = sum(about["train"]["bytes"] for _, about in texts)
    file = "tokenizer.json" if kind == "byte-bpe" else "tokenizer.model"

    def make(work: Path, run: Run) -> dict[str, Any]:
        run("training")
        documents = (json.loads(line)["text"] for folder, _ in texts for line in _lines(folder / "train"))
        (work / file).write_bytes(train(documents, size, vocab, kind))
        return {"sha256": load_tokenizer(work / file).sha256}

    library = "tokenizers" if kind == "byte-bpe" else "sentencepiece"
    inputs = {"text": [about["sha256"] for _, about in texts], "vocab": vocab, "kind": kind,
              "options": [OPTIONS, SAMPLE_BYTES], library: version(library)}
    folder, about = _folder(place, f"{_label(name)}-tokenizer-{vocab}", inputs, make)
    return folder / file, about["sha256"]


def _existing(path: str, vocab: int, place: Place) -> tuple[Path, str]:
    """Path and hash of a copy of a tokenizer that exists."""
    file, content = tokenizers.read(path)

    def make(work: Path, _: Run) -> dict[str, Any]:
        (work / file).write_bytes(content)
        loaded = load_tokenizer(work / file)
        if vocab not in (allowed := tokenizers.vocabularies(loaded)):
            more = f", or {allowed[-1]} with T5's {tokenizers.EXTRA_IDS} extra ids" if len(allowed) > 1 else ""
            raise ValueError(f"the tokenizer {path} has {loaded.vocab_size} pieces: model.vocab={vocab} must be that"
                             + more)
        return {"sha256": loaded.sha256}

    inputs = {"content": hashlib.sha256(content).hexdigest(), "vocab": vocab}
    folder, about = _folder(place, f"{_label(path)}-tokenizer-{vocab}", inputs, make)
    return folder / file, about["sha256"]


def _tokens(name: str, text: Path, about: dict[str, Any], model: Path, model_sha: str, recipe: Recipe,
            place: Place) -> tuple[Path, dict[str, Any]]:
    """Folder of the training text as tokens; its manifest: tokens of the training and validation text, steps, notes."""

    def make(work: Path, run: Run) -> dict[str, Any]:
        from data import tokens

        parts, shards = work / "scratch", sorted((text / "train").glob("*.jsonl"))
        parts.mkdir(exist_ok=True)
        run("tokenizing", [partial(_tokenize, text / "train", model, parts)], len(shards))
        prefixes: list[str | Path] = [parts / shard.stem for shard in shards]
        kept, steps = _arrange(prefixes, shards, recipe, work)
        valid = 0
        tokenizer = load_tokenizer(model)
        with gzip.open(text / "valid.jsonl.gz", "rt", encoding="utf-8") as file:
            for line in file:
                valid += len(tokenizer.encode(json.loads(line)["text"])) + 1
        domains: dict[str, list[int]] = {}
        for prefix in prefixes:
            for domain, count in json.loads(Path(f"{prefix}.domains").read_text()).items():
                before = domains.get(domain, [0] * len(count))
                domains[domain] = [a + b for a, b in zip(before, count, strict=True)]
        lengths = tokens.read(work / "train")[1]
        made: dict[str, Any] = {"train": int(lengths.sum()), "valid": valid, "domains": domains, **kept,
                "steps": [*about["steps"], *steps]}
        made["notes"] = report.notes(name, recipe, made["steps"], about)
        report.write(work, name, recipe, about, made, lengths, text)
        return made

    inputs = {"text": [about["sha256"], text.name], "tokenizer": model_sha, "compress": recipe.compress,
              "order": recipe.order, "sentencepiece": version("sentencepiece")}
    return _folder(place, f"{_label(name)}-tokens", inputs, make)


def _unchanged(model: Path, model_sha: str, tokens: list[tuple[Path, dict[str, Any]]]) -> None:
    """Raises ValueError unless the tokenizer is the one of the tokens, and they are as many as were written: with
    another one in its place a model would be trained on ids that mean something else."""
    found = hashlib.sha256(model.read_bytes()).hexdigest()
    if found != model_sha:
        raise ValueError(f"{model} is not the tokenizer that the tokens were made with: its sha256 is {found}, theirs "
                         f"{model_sha}. Remove {model.parent}, and it is made again")
    for folder, about in tokens:
        size = (folder / "train.bin").stat().st_size
        if size not in (2 * about["train"], 4 * about["train"]):
            raise ValueError(f"{folder}/train.bin has {size} bytes, not those of the {about['train']} tokens that were "
                             f"written there. Remove {folder}, and it is made again")


def _tokenize(folder: Path, model: Path, parts: Path, _: Any, rank: int, __: int) -> None:
    """One shard of the training text as a token file, and the characters of each of its documents."""
    import numpy as np
    import orjson

    from data import tokens

    shard = sorted(folder.glob("*.jsonl"))[rank]
    characters: list[int] = []
    sizes: list[int] = []

    def documents() -> Iterator[tuple[str, str]]:
        with open(shard, "rb") as file:
            for line in file:
                document = orjson.loads(line)
                labels, text = document.get("metadata", {}), document["text"]
                characters.append(len(text))
                sizes.append(len(text.encode()))
                yield text, labels.get("domain", "")

    prefix = parts / shard.stem
    domains = tokens.write(prefix, documents(), load_tokenizer(model))
    np.save(f"{prefix}.npy", np.array([characters, sizes], np.int64).reshape(2, -1))
    Path(f"{prefix}.domains").write_text(json.dumps(domains))


def _arrange(prefixes: list[str | Path], shards: list[Path], recipe: Recipe,
             work: Path) -> tuple[dict[str, int], list[dict[str, Any]]]:
    """Join the token files of the shards, without what is too dense and in the recipe's order; what that left."""
    import numpy as np

    from data import tokens

    characters, sizes = np.concatenate([np.load(f"{prefix}.npy") for prefix in prefixes], axis=1)
    if not recipe.compress and recipe.order == "random":
        tokens.join(prefixes, work / "train")
        return {"documents": len(sizes), "bytes": int(sizes.sum())}, []
    tokens.join(prefixes, work / "scratch" / "all")
    kind, lengths = tokens.read(work / "scratch" / "all")
    flat = np.memmap(work / "scratch" / "all.bin", kind, "r")
    starts = np.cumsum(lengths, dtype=np.int64) - lengths
    dense = filters.too_dense(lengths - 1, characters, recipe.compress)  # without the end of document
    kept = np.flatnonzero(~dense)
    if not len(kept):
        raise ValueError(f"data.compress={recipe.compress} removes all of the {len(dense)} training documents")
    steps = []
    if recipe.compress:
        steps.append(_dense_step(dense, lengths, characters, sizes, prefixes, shards, recipe.compress))
    chosen = kept[filters.sequence(recipe.order, flat, starts[kept], lengths[kept])]
    tokens.select(work / "scratch" / "all", chosen, work / "train")
    if recipe.order != "random":
        moved = int((chosen != kept).sum())
        both = [len(kept), int(sizes[kept].sum())]
        steps.append({"step": recipe.order, "in": both, "out": both, "changed": 0, "moved": moved, "reasons": {},
                      "examples": [], "lengths": {"in": {}, "out": {}}})
    return {"documents": len(kept), "bytes": int(sizes[kept].sum())}, steps


def _dense_step(dense: Any, lengths: Any, characters: Any, sizes: Any, prefixes: list[str | Path], shards: list[Path],
                limit: float) -> dict[str, Any]:
    """What a `filters.Step` would have reported of the compressibility filter."""
    import numpy as np

    why = f"{limit:g} tokens per character or more"
    ends = np.cumsum([np.load(f"{prefix}.npy").shape[1] for prefix in prefixes])
    examples = []
    for number in np.flatnonzero(dense)[:filters.EXAMPLES].tolist():
        shard = int(np.searchsorted(ends, number, "right"))
        with open(shards[shard], "rb") as file:
            at = number - int(ends[shard - 1] if shard else 0)
            document = json.loads(next(line for index, line in enumerate(file) if index == at))
        ratio = (int(lengths[number]) - 1) / int(characters[number])
        examples.append({"id": document["id"], "why": f"{ratio:.3f} tokens per character",
                         "text": document["text"][:filters.EXCERPT]})
    bins = {side: dict(zip(*(each.tolist() for each in np.unique(np.log2(sizes[mask]).astype(int), return_counts=True)),
                           strict=True)) for side, mask in (("in", np.full(len(dense), True)), ("out", ~dense))}
    return {"step": "compress", "in": [len(dense), int(sizes.sum())],
            "out": [int((~dense).sum()), int(sizes[~dense].sum())], "changed": 0,
            "reasons": {why: int(dense.sum())} if dense.any() else {}, "examples": examples, "lengths": bins}


# The store

def _folder(place: Place, name: str, inputs: dict[str, Any],
            make: Callable[[Path, Run], dict[str, Any]]) -> tuple[Path, dict[str, Any]]:
    """A folder and what `make(folder, run)` returned: now, or earlier from the same inputs.

    A killed `make` finds its unfinished folder again; one that raised ValueError leaves none.
    """
    store = place.store
    inputs = json.loads(json.dumps({"layout": LAYOUT, **inputs}))
    folder = store / f"{name}-{_hash(inputs)[:8]}"
    if not folder.exists():
        if not place.build:
            raise Missing(f"{folder} is not prepared")
        store.mkdir(parents=True, exist_ok=True)
        with open(store / ".lock", "w") as lock:
            fcntl.lockf(lock, fcntl.LOCK_EX)  # others wait here; unlike flock's, not inherited by children
            if not folder.exists():
                work = store / f"partial-{folder.name}"
                work.mkdir(exist_ok=True)
                try:
                    if not (work / "manifest.json").exists():
                        with _progress(place, name, work / "logs") as run:
                            made = make(work, run)
                        (work / "manifest.tmp").write_text(json.dumps({"inputs": inputs, "made": made}, indent=1))
                        os.replace(work / "manifest.tmp", work / "manifest.json")
                    # from here on nothing of these is needed, whenever a kill comes
                    for rest in ("scratch", "logs"):
                        shutil.rmtree(work / rest, ignore_errors=True)
                    os.replace(work, folder)
                except ValueError:
                    shutil.rmtree(work, ignore_errors=True)
                    raise
    manifest = json.loads((folder / "manifest.json").read_text())
    if manifest["inputs"] != inputs:
        raise ValueError(f"{folder} was made from something else: remove it")
    return folder, manifest["made"]


@contextlib.contextmanager
def _progress(place: Place, name: str, logs: Path) -> Iterator[Run]:
    """A line on the terminal; what datatrove and its processes say goes to prepare.log in the store."""
    from rich.console import Console
    from rich.progress import Progress, ProgressColumn, SpinnerColumn, Task, TextColumn, TimeElapsedColumn
    from rich.progress_bar import ProgressBar

    class Done(ProgressColumn):
        max_refresh = 0.5  # seconds

        def render(self, task: Task) -> ProgressBar:
            folder = task.fields["logs"]  # where datatrove leaves a file for each finished task
            done = len(list(Path(folder, "completions").glob("*"))) if folder else task.completed
            return ProgressBar(total=task.total or 1, completed=done, width=24)

    with execute.stderr_in(place.store / "prepare.log") as terminal, \
            open(os.dup(terminal), "w", encoding="utf-8") as screen:
        columns = (SpinnerColumn(), TextColumn("{task.description}"), Done(), TimeElapsedColumn())
        with Progress(*columns, console=Console(file=screen), redirect_stdout=False,
                      redirect_stderr=False) as progress:
            line = progress.add_task(f"data: {name}", total=None, logs="")

            def run(stage: str, pipeline: list[Any] | None = None, tasks: int = 1) -> None:
                folder = str(logs / stage.replace(" ", "-"))
                progress.update(line, description=f"data: {name}, {stage}", total=tasks, logs=folder)
                if pipeline:
                    execute.run(place.executor, pipeline, tasks, folder)
                progress.update(line, logs="")

            yield run
            progress.update(line, description=f"data: {name}", total=1, completed=1)


def _contents(units: list[corpora.Unit], place: Place) -> list[str]:
    """Hash of each file's content: what the hub says it is, or as read here, some at a time."""
    with ThreadPoolExecutor(execute.cores()) as pool:
        return list(pool.map(lambda unit: unit.sha256 or _content(Path(unit.path), place), units))


def _content(path: Path, place: Place) -> str:
    """Hash of a file's content, remembered while the file's size and time of change stay the same."""
    state = path.stat()
    seen = [str(path.resolve()), state.st_size, state.st_mtime_ns]
    note = place.store / "hashes" / _hash(seen)[:32]
    if not note.exists():
        if not place.build:
            raise Missing(f"{path} has not been read")
        with open(path, "rb") as file:
            sha = hashlib.file_digest(file, "sha256").hexdigest()
        note.parent.mkdir(parents=True, exist_ok=True)
        partial_note = note.with_suffix(f".{os.getpid()}")
        partial_note.write_text(sha)
        os.replace(partial_note, note)
    return note.read_text()


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _components(name: str, place: Place) -> dict[str, float]:
    return corpora.load(name, place.store).get("blend", {name: 1.0})


def _lines(folder: Path) -> Iterator[bytes]:
    for path in sorted(folder.glob("*.jsonl")):
        with open(path, "rb") as file:
            yield from file


def _label(name: str) -> str:
    """A corpus' name as part of a folder's; of a path the last two parts, without wildcard and extension."""
    plain = [part for part in Path(name).parts if not has_magic(part)] or ["files"]
    return re.sub(r"\W+", "-", "-".join(plain[-2:]).partition(".")[0]).strip("-") or "files"


def main() -> None:
    fields = ", ".join(Recipe._fields)
    parser = argparse.ArgumentParser(
        prog="python -m data.prepare",
        description="Prepare a corpus for training: read, filter, deduplicate, tokenize. Prints the manifest.",
        epilog=f"Corpora: {', '.join(corpora.known())}; or a file, folder or quoted glob of "
               f"{', '.join(corpora.EXTENSIONS)}: JSON lines with \"text\", as in C4 and The Pile, or "
               "documents separated by blank lines, as in OSCAR v1.")
    add = parser.add_argument
    add("corpus", help="name, or path on disk")
    add("--tokenizer", metavar="CORPUS", help="what the tokenizer is trained on (the corpus itself)")
    add("--vocab", type=int, metavar="N", default=4096, help="pieces of the tokenizer (%(default)s)")
    add("--kind", choices=KINDS, default="bpe", help="of tokenizer; file: --tokenizer is one that exists (%(default)s)")
    add("--store", type=Path, metavar="DIR", default=Path("runs/data"), help="where to write (%(default)s)")
    add("--from", dest="folder", metavar="DIR", help="where the files of a named corpus lie; remembered in the store")
    add("--set", metavar="data.KEY=VALUE", nargs="*", default=[], help=f"of {fields}: see data/filters.py")
    add("--held-out", action="store_true", help="no more than the validation text; prints its files")
    add("--executor", choices=execute.KINDS, default="local", help="what runs the tasks (%(default)s)")
    add("--workers", type=int, metavar="N", default=0, help="tasks at a time (one for each core; a cluster: all)")
    add("--options", metavar="KEY=VALUE", nargs="*", default=[],
        help="of the executor: Slurm's partition, time, mem_per_cpu_gb, account ...; Ray's address ...")
    given = parser.parse_args()
    try:
        options = dict(_pair(word) for word in given.options)
        executor = Executor(given.executor, given.workers, options)
        recipe = _recipe(dict(_pair(word.removeprefix("data.")) for word in given.set))
        if given.folder:
            corpora.locate(given.corpus, given.folder, given.store)
        if given.held_out:
            print("\n".join(held_out(given.corpus, given.store, recipe.allow_errors)))
            return
        made = prepare(given.corpus, given.tokenizer or given.corpus, given.vocab, given.store,
                       given.kind, recipe, executor)
    except ValueError as error:
        parser.exit(2, f"error: {error}\n")
    except RuntimeError as error:
        parser.exit(1, f"error: {error}\n")
    for note in made["notes"]:
        print(note, file=sys.stderr)
    print(json.dumps(made, indent=1))


def _pair(word: str) -> tuple[str, str]:
    name, equals, value = word.partition("=")
    if not equals:
        raise ValueError(f"{word!r}: KEY=VALUE is needed")
    return name, value


def _recipe(given: dict[str, str]) -> Recipe:
    if unknown := set(given) - set(Recipe._fields):
        raise ValueError(f"there is no data.{sorted(unknown)[0]}; there are {', '.join(Recipe._fields)}")
    try:
        return Recipe(**{name: type(getattr(Recipe(), name))(value) for name, value in given.items()})  # type: ignore
    except ValueError:
        raise ValueError(f"data.{', data.'.join(f'{n}={v}' for n, v in given.items())}: a number is needed") from None


if __name__ == "__main__":
    # tasks are pickled by the name of their module, which must not be __main__
    from data import prepare as imported

    imported.main()
