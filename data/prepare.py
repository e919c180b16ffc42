"""From a corpus to what training reads: deduplicated text, a tokenizer, Megatron's .bin/.idx. Run: --help.

Three kinds of artefact in the store, each a folder `<name>-<key>` whose key is a hash of all that determines its
bytes: text (train/*.jsonl, valid.jsonl.gz), tokenizer (tokenizer.model), tokens (train.bin, train.idx). Each is built
in a temporary folder and renamed when it is complete, its manifest.json written last. The only file that knows
datatrove, whose steps need not be classes: the ones here are functions.
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
import platform
import re
import shutil
import struct
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from data import corpus as corpora
from data.corpus import check
from data.tokenizer import Tokenizer, train

__all__ = ["check", "prepare"]

LAYOUT = 1      # of the artefacts: a change that alters their bytes raises it
TASKS = 16      # shards of a corpus: fixed, so that the order of documents does not depend on the machine
SHINGLE, BUCKETS, HASHES = 5, 14, 8  # MinHash: similarity of about 0.75 and more, as FineWeb (arXiv:2406.17557)


def prepare(corpus: str, tokenizer: str, vocab: int, store: Path) -> dict[str, Any]:
    """Prepare `corpus` for training with a tokenizer of `vocab` pieces trained on the training split of `tokenizer`.

    Corpora are names or files (see data.corpus.load). Takes no time when all is built; several processes may call it
    at once. Returns the manifest, JSON-able: "corpus", "sha256" of the text, "train" [{"prefix", "weight"}] (the weights
    add up to 1), "valid" [path of .jsonl.gz with {"text", "id", "metadata"}], "tokenizer" {"path", "sha256", "vocab",
    "corpus"}, "counts" {"train" and "valid": {"documents", "bytes" (UTF-8), "tokens" (one end of document each)},
    "duplicates": {"exact", "near"}}. Raises ValueError, naming what is allowed, before any work.
    """
    store = Path(store)
    for name in (corpus, tokenizer):
        check(name)
    model, model_sha = _tokenizer(tokenizer, vocab, store)
    parts = []
    for name, weight in _components(corpus).items():
        text, about = _text(name, store)
        tokens, counts = _tokens(name, text, about, model, model_sha, store)
        parts.append((weight, text, about, tokens, counts))
    sums = [f"{about['sha256']} {weight}" for weight, _, about, _, _ in parts]
    return {
        "corpus": corpus,
        "sha256": parts[0][2]["sha256"] if len(parts) == 1 else hashlib.sha256("\n".join(sums).encode()).hexdigest(),
        "train": [{"prefix": str(tokens / "train"), "weight": weight} for weight, _, _, tokens, _ in parts],
        "valid": [str(text / "valid.jsonl.gz") for _, text, *_ in parts],
        "tokenizer": {"path": str(model), "sha256": model_sha, "vocab": vocab, "corpus": tokenizer},
        "counts": {
            **{split: {"documents": sum(about[split]["documents"] for _, _, about, _, _ in parts),
                       "bytes": sum(about[split]["bytes"] for _, _, about, _, _ in parts),
                       "tokens": sum(counts[split] for *_, counts in parts)} for split in ("train", "valid")},
            "duplicates": {kind: sum(about["duplicates"][kind] for _, _, about, _, _ in parts)
                           for kind in ("exact", "near")},
        },
    }


# The three artefacts

def _text(name: str, store: Path) -> tuple[Path, dict[str, Any]]:
    """Folder and manifest of a corpus' deduplicated text."""
    spec = corpora.load(name)
    expected = spec.pop("sha256", None)
    if "files" in spec:
        root = [(unit.name, _sha256(unit.path, store)) for unit in corpora.units(spec)]
        inputs = {"files": root, "share": corpora.VALID_SHARE}
    else:
        inputs = {**spec, "python": platform.python_version_tuple()[:2]}
    inputs |= {"minhash": [SHINGLE, BUCKETS, HASHES], "datatrove": version("datatrove")}
    folder, manifest = _artefact(store, _label(name), inputs, partial(_make_text, spec))
    if expected and expected != manifest["sha256"]:
        warnings.warn(f"{name}: the text's sha256 is {manifest['sha256']}, but data/corpora/{name}.yaml records "
                      f"{expected}: results are not comparable with those on that text", stacklevel=2)
    return folder, manifest


def _make_text(spec: dict[str, Any], work: Path, run: Callable[..., None]) -> dict[str, Any]:
    from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupBuckets, MinhashDedupFilter
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import JsonlWriter

    scratch = work / "scratch"
    read, signed, pairs, removed = (scratch / name for name in ("read", "signed", "pairs", "removed"))
    for folder in (read, removed):
        folder.mkdir(parents=True)
    for rank in range(TASKS):  # an empty shard must exist too: the n-th file is read by the n-th task
        (read / f"{rank:05d}.jsonl").touch()
    config = MinhashConfig(n_grams=SHINGLE, num_buckets=BUCKETS, hashes_per_bucket=HASHES)
    # Short documents have no shingles and so no signature; their exact copies are found by their digests.
    run("reading", [partial(_read, spec, corpora.units(spec)), JsonlWriter(str(read), compression=None), partial(_digest, read),
                    _signature(signed, config)], TASKS)
    run("finding duplicates", [MinhashDedupBuckets(str(signed), str(pairs), config=config, lines_to_buffer=1000)],
        BUCKETS)
    run("finding duplicates", [partial(_keep_first, read, pairs, removed)], 1)
    run("writing text", [JsonlReader(str(read), compression=None, glob_pattern="*.jsonl", add_file_path=False),
                         MinhashDedupFilter(str(removed)), partial(_split, spec),
                         JsonlWriter(str(work), "${split}/${rank}.jsonl", compression=None)], TASKS)
    manifest = _describe(spec, work)
    manifest["duplicates"] = json.loads((removed / "counts.json").read_text())
    shutil.rmtree(scratch)
    shutil.rmtree(work / "valid")
    return manifest


def _describe(spec: dict[str, Any], work: Path) -> dict[str, Any]:
    """Counts and hash of the text; the validation documents, gathered into one file."""
    sha, counts = hashlib.sha256(), {}
    with open(work / "valid.jsonl.gz", "wb") as raw, gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as packed:
        for split in ("train", "valid"):
            documents = size = 0
            for path in sorted((work / split).glob("*.jsonl")):
                for line in open(path, "rb"):
                    text = json.loads(line)["text"].encode()
                    sha.update(len(text).to_bytes(8, "big") + text)
                    documents, size = documents + 1, size + len(text)
                    if split == "valid":
                        packed.write(line)
            if not documents:
                raise ValueError(f"corpus {spec['name']}: no document is left for {split}; it needs more text"
                                 + (f" ({corpora.VALID_SHARE:.0%} of its documents are for validation)"
                                    if "files" in spec else ""))
            counts[split] = {"documents": documents, "bytes": size}
    return {"sha256": sha.hexdigest(), **counts}


def _tokenizer(name: str, vocab: int, store: Path) -> tuple[Path, str]:
    """Path and hash of the tokenizer trained on a corpus; the components of a blend are taken whole."""
    texts = [_text(part, store) for part in _components(name)]
    size = sum(about["train"]["bytes"] for _, about in texts)

    def make(work: Path, run: Callable[..., None]) -> dict[str, Any]:
        run("training the tokenizer")
        documents = (text for folder, _ in texts for text in _train_texts(folder))
        (work / "tokenizer.model").write_bytes(train(documents, size, vocab))
        return {"sha256": Tokenizer(work / "tokenizer.model").sha256}

    inputs = {"text": [about["sha256"] for _, about in texts], "vocab": vocab, "sentencepiece": version("sentencepiece")}
    folder, manifest = _artefact(store, f"{_label(name)}-tokenizer-{vocab}", inputs, make)
    return folder / "tokenizer.model", manifest["sha256"]


def _tokens(name: str, text: Path, about: dict[str, Any], model: Path, model_sha: str,
            store: Path) -> tuple[Path, dict[str, int]]:
    """Folder and number of tokens of a corpus' training text in Megatron's format, and of its validation text."""

    def make(work: Path, run: Callable[..., None]) -> dict[str, Any]:
        from datatrove.pipeline.readers import JsonlReader
        from datatrove.pipeline.tokens import MegatronDocumentTokenizer

        write = MegatronDocumentTokenizer(str(work), save_filename="all", batch_size=1000)
        write.tokenizer = _Encoder(model)
        # One task keeps one file in the order of the documents; the cores are used inside encode_batch.
        run("tokenizing", [JsonlReader(str(text / "train"), compression=None, add_file_path=False), write], 1)
        for suffix in (".bin", ".idx"):
            os.replace(work / f"all_00000_tokens{suffix}", work / f"train{suffix}")
        with gzip.open(text / "valid.jsonl.gz", "rt", encoding="utf-8") as file:
            valid = sum(len(encoded.ids) for encoded in write.tokenizer.encode_batch(
                [json.loads(line)["text"] for line in file]))
        width = write.token_size
        return {"train": (work / "train.bin").stat().st_size // width, "valid": valid}

    inputs = {"text": about["sha256"], "tokenizer": model_sha, "datatrove": version("datatrove"),
              "sentencepiece": version("sentencepiece")}
    return _artefact(store, f"{_label(name)}-tokens", inputs, make)


class _Encoder:
    """Our tokenizer in the form in which datatrove calls one."""

    def __init__(self, path: Path):
        self.tokenizer = Tokenizer(path)

    def get_vocab_size(self) -> int:
        return self.tokenizer.vocab_size

    def encode_batch(self, texts: list[str]) -> list[argparse.Namespace]:
        return [argparse.Namespace(ids=[*ids, self.tokenizer.eod])
                for ids in self.tokenizer.encode_batch(texts, threads=_cores())]


# Pipeline steps: (documents, rank, number of tasks) -> documents

def _read(spec: dict[str, Any], units: list[corpora.Unit], _: Any, rank: int, tasks: int) -> Iterator[Any]:
    """The documents of a contiguous share, by bytes, of the corpus' files."""
    from datatrove.data import Document

    total, start = sum(unit.size for unit in units) or 1, 0
    gc.disable()  # syntax trees have no cycles, but many nodes: a fifth of the time of parsing
    try:
        for unit in units:
            if start * tasks // total == rank:
                for name, text in corpora.documents(spec, unit):
                    yield Document(text, name, metadata={"package": unit.package} if unit.package else {})
            start += unit.size
    finally:
        gc.enable()


def _digest(folder: Path, documents: Any, rank: int, _: int) -> Iterator[Any]:
    with open(folder / f"{rank:05d}.digests", "wb") as file:
        for document in documents:
            file.write(hashlib.blake2b(document.text.encode(), digest_size=16).digest())
            yield document


class _Words:
    """datatrove's own word tokenizers need packages for each language; its simplified text is split at spaces."""
    word_tokenize = staticmethod(str.split)


def _signature(folder: Path, config: Any) -> Any:
    from datatrove.pipeline.dedup.minhash import MinhashDedupSignature
    from datatrove.utils.word_tokenizers import WhitespaceTokenizer

    step = MinhashDedupSignature(str(folder), config=config, language=WhitespaceTokenizer())
    step.word_tokenizer = _Words()
    return step


def _keep_first(read: Path, pairs: Path, removed: Path, *_: Any) -> None:
    """Keep the first document of each cluster of exact and near duplicates, in reading order.

    Held-out packages are read first, so that of two like documents the copy in the training text goes. (datatrove's
    own step keeps whichever its union-find made the root.)
    """
    first: dict[bytes, tuple[int, int]] = {}
    parent: dict[tuple[int, int], tuple[int, int]] = {}
    exact = set()

    def root(node: tuple[int, int]) -> tuple[int, int]:
        while (above := parent.get(node, node)) != node:
            parent[node] = node = parent.get(above, above)
        return node

    def join(a: tuple[int, int], b: tuple[int, int]) -> None:
        low, high = sorted((root(a), root(b)))
        parent[high] = low

    for path in sorted(read.glob("*.digests")):
        digests = path.read_bytes()
        for index in range(len(digests) // 16):
            node, digest = (int(path.stem), index), digests[16 * index:16 * index + 16]
            if first.setdefault(digest, node) != node:
                exact.add(node)
                join(first[digest], node)
    for path in sorted(pairs.glob("*.dups")):
        for a, i, b, j in struct.iter_unpack("<4I", path.read_bytes()):
            join((a, i), (b, j))

    gone = sorted(node for node in parent if root(node) != node)
    for rank in {rank for rank, _ in gone}:
        indices = [index for owner, index in gone if owner == rank]
        (removed / f"{rank:06d}.remove").write_bytes(struct.pack(f"<{len(indices)}I", *indices))
    (removed / "counts.json").write_text(json.dumps({"exact": len(exact), "near": len(gone) - len(exact)}))


def _split(spec: dict[str, Any], documents: Any, *_: Any) -> Iterator[Any]:
    for document in documents:
        package = document.metadata.get("package", "")
        document.metadata["split"] = "valid" if corpora.held_out(spec, package, document.text) else "train"
        yield document


# The store

def _artefact(store: Path, name: str, inputs: dict[str, Any],
              make: Callable[[Path, Callable[..., None]], dict[str, Any]]) -> tuple[Path, Any]:
    """Folder and manifest of one artefact, built by `make(folder, run)` unless it is there; others wait meanwhile."""
    inputs = json.loads(json.dumps({"layout": LAYOUT, **inputs}))
    key = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:8]
    folder, work = store / f"{name}-{key}", store / f".{name}-{key}.partial"
    if not (folder / "manifest.json").is_file():
        store.mkdir(parents=True, exist_ok=True)
        with open(store / f".{name}-{key}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (folder / "manifest.json").is_file():
                shutil.rmtree(work, ignore_errors=True)  # what a killed process left
                work.mkdir()
                with _progress(store, name) as run:
                    made = make(work, run)
                shutil.rmtree(work / "logs", ignore_errors=True)
                (work / "manifest.json").write_text(json.dumps({"inputs": inputs, "made": made}, indent=1))
                os.replace(work, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    if manifest["inputs"] != inputs:
        raise ValueError(f"{folder} was made from something else: remove it")
    return folder, manifest["made"]


@contextlib.contextmanager
def _progress(store: Path, name: str) -> Iterator[Callable[..., None]]:
    """A line on the terminal that names the stage; all that datatrove and its workers say goes to store/prepare.log."""
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    sys.stderr.flush()
    terminal = os.dup(2)
    with open(store / "prepare.log", "ab") as log, open(terminal, "w", encoding="utf-8") as screen:
        columns = SpinnerColumn(finished_text="✓"), TextColumn("{task.description}"), TimeElapsedColumn()
        with Progress(*columns, console=Console(file=screen)) as progress:
            line = progress.add_task(f"data {name}", total=1)

            def run(stage: str, pipeline: list[Any] | None = None, tasks: int = 1) -> None:
                progress.update(line, description=f"data {name}: {stage}")
                if pipeline:
                    _execute(pipeline, tasks)

            os.dup2(log.fileno(), 2)
            try:
                yield run
            finally:
                sys.stderr.flush()
                os.dup2(terminal, 2)
            progress.update(line, description=f"data {name}", completed=1)


def _execute(pipeline: list[Any], tasks: int) -> None:
    import tempfile

    from datatrove.executor import LocalPipelineExecutor

    with tempfile.TemporaryDirectory() as logs:
        LocalPipelineExecutor(pipeline=pipeline, tasks=tasks, workers=min(tasks, _cores()), logging_dir=logs).run()


def _sha256(path: Path, store: Path) -> str:
    """Hash of a file's content, remembered in the store while its size and time of change stay the same."""
    state = path.stat()
    name = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]
    note, known = store / "hashes" / name, [state.st_size, state.st_mtime_ns]
    with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):
        *seen, sha = json.loads(note.read_text())
        if seen == known:
            return sha
    with open(path, "rb") as file:
        sha = hashlib.file_digest(file, "sha256").hexdigest()
    note.parent.mkdir(parents=True, exist_ok=True)
    partial_note = note.with_suffix(f".{os.getpid()}")
    partial_note.write_text(json.dumps([*known, sha]))
    os.replace(partial_note, note)
    return sha


def _components(name: str) -> dict[str, float]:
    return corpora.load(name).get("blend", {name: 1.0})


def _train_texts(folder: Path) -> Iterator[str]:
    for path in sorted((folder / "train").glob("*.jsonl")):
        for line in open(path, "rb"):
            yield json.loads(line)["text"]


def _label(name: str) -> str:
    """A corpus' name as part of a file name: of a path, its last two parts."""
    return re.sub(r"[^\w.]+", "-", "-".join(Path(name).parts[-2:])).strip("-.")[:40] or "files"


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m data.prepare", description="Prepare a corpus for training: read, deduplicate, tokenize.",
        epilog=f"Corpora: {', '.join(corpora.known())}; or a file, folder or quoted glob of "
               f"{', '.join(corpora.EXTENSIONS)} (JSON lines with \"text\" as in C4 and The Pile; OSCAR v1 text).")
    parser.add_argument("corpus", help="name, or path of files on disk")
    parser.add_argument("--tokenizer", metavar="CORPUS", help="corpus that the tokenizer is trained on (CORPUS itself)")
    parser.add_argument("--vocab", type=int, default=4096, help="pieces of the tokenizer (%(default)s)")
    parser.add_argument("--store", type=Path, default=Path("runs/data"), help="where all is written (%(default)s)")
    given = parser.parse_args()
    try:
        made = prepare(given.corpus, given.tokenizer or given.corpus, given.vocab, given.store)
    except ValueError as error:
        parser.error(str(error))
    print(json.dumps(made, indent=1))


if __name__ == "__main__":
    main()
