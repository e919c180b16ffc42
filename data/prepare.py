"""From a corpus to what training reads: text, tokenizer, tokens. The only file that knows datatrove.

Each is a folder `<name>-<key>` in the store, whose key is a hash of all that determines its bytes:

    text       train/*.jsonl, valid.jsonl.gz    read, deduplicated and split
    tokenizer  tokenizer.model                  trained on the training text
    tokens     train.bin, train.idx             in Megatron's format, one end of document after each document

A folder is built under another name and renamed when it is complete, manifest.json included.
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
import platform
import re
import shutil
import signal
import struct
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from glob import has_magic
from importlib.metadata import version
from pathlib import Path
from typing import Any

from data import corpus as corpora
from data.corpus import check
from data.tokenizer import OPTIONS, SAMPLE_BYTES, SMALLEST, Tokenizer, train

__all__ = ["check", "prepare"]

LAYOUT = 1  # of the folders; a change of this file or of corpus.py that alters their bytes raises it
TASKS = 16  # shards of the work: fixed, so that nothing depends on the number of cores
# MinHash as in FineWeb (arXiv:2406.17557): documents whose 5-grams are about 75 % the same are duplicates.
SHINGLE, BUCKETS, HASHES = 5, 14, 8

Run = Callable[..., None]  # (stage, pipeline, tasks): names a stage on the terminal and runs datatrove steps


def prepare(corpus: str, tokenizer: str, vocab: int, store: Path) -> dict[str, Any]:
    """Prepare a corpus for training, with a tokenizer of `vocab` pieces trained on another or the same one.

    `corpus` and `tokenizer`, of which the training text counts, are names or files, see `data.corpus.load`.
    What is there already is not built again; several processes may call this at once. Of duplicate documents
    the first is kept, and held-out packages come first: a training document that resembles a held-out one
    goes. Duplicates are sought within each component of a blend.

    Returns a manifest, JSON-able:
        corpus, sha256 (of the text)
        train: [{prefix (of .bin and .idx), weight}], the weights adding up to 1
        valid: [path of .jsonl.gz with {text, id, metadata}]
        tokenizer: {path, sha256, vocab, corpus}
        counts: {train and valid: {documents, bytes (of UTF-8), tokens (with an end of document each)},
                 duplicates: {exact, near}}
        mismatch: [a sentence for each text that is not the one its specification records]
    Raises ValueError, naming what is allowed, before any work where that is possible.
    """
    store = Path(store)
    for name in (corpus, tokenizer):
        check(name)
    if vocab < SMALLEST:
        raise ValueError(f"vocab={vocab} is too small: at least {SMALLEST}")
    model, model_sha = _tokenizer(tokenizer, vocab, store)
    weights = _components(corpus)
    texts = [_text(name, store) for name in weights]
    tokens = [_tokens(name, folder, about, model, model_sha, store)
              for name, (folder, about) in zip(weights, texts, strict=True)]
    abouts = [about for _, about in texts]
    shas = [about["sha256"] for about in abouts]
    mismatch = [about["mismatch"] for about in abouts if about["mismatch"]]
    for sentence in mismatch:
        warnings.warn(sentence, stacklevel=2)
    counts = {split: {"documents": sum(about[split]["documents"] for about in abouts),
                      "bytes": sum(about[split]["bytes"] for about in abouts),
                      "tokens": sum(count[split] for _, count in tokens)} for split in ("train", "valid")}
    counts["duplicates"] = {kind: sum(about["duplicates"][kind] for about in abouts)
                            for kind in ("exact", "near")}
    return {
        "corpus": corpus,
        "sha256": shas[0] if len(shas) == 1 else _hash([shas, list(weights.values())]),
        "train": [{"prefix": str(folder / "train"), "weight": weight}
                  for (folder, _), weight in zip(tokens, weights.values(), strict=True)],
        "valid": [str(folder / "valid.jsonl.gz") for folder, _ in texts],
        "tokenizer": {"path": str(model), "sha256": model_sha, "vocab": vocab, "corpus": tokenizer},
        "counts": counts,
        "mismatch": mismatch,
    }


# Text

def _text(name: str, store: Path) -> tuple[Path, dict[str, Any]]:
    """Folder and manifest of the deduplicated text of a corpus that is no blend."""
    spec = corpora.load(name)
    recorded = spec.pop("sha256", None)
    inputs: dict[str, Any]
    if "files" in spec:
        files = [[unit.name, _content(unit.path, store)] for unit in corpora.units(spec)]
        inputs = {"files": files, "share": corpora.VALID_SHARE}
    else:
        inputs = {**spec, "python": platform.python_version_tuple()[:2]}
    inputs |= {"minhash": [SHINGLE, BUCKETS, HASHES], "datatrove": version("datatrove")}
    folder, about = _folder(store, _label(name), inputs, partial(_make_text, spec))
    about["mismatch"] = ""
    if recorded and recorded != about["sha256"]:
        about["mismatch"] = (f"the text of {name} has the sha256 {about['sha256']}, but its specification "
                             f"records {recorded}: results on the two cannot be compared")
    return folder, about


def _make_text(spec: dict[str, Any], work: Path, run: Run) -> dict[str, Any]:
    from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupBuckets, MinhashDedupFilter
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import JsonlWriter

    scratch = work / "scratch"
    read, signed, pairs, removed = (scratch / name for name in ("read", "signed", "pairs", "removed"))
    for folder in (read, removed):
        folder.mkdir(parents=True)
    for rank in range(TASKS):  # empty shards too: later the n-th file is read by the n-th task
        (read / f"{rank:05d}.jsonl").touch()
    config = MinhashConfig(n_grams=SHINGLE, num_buckets=BUCKETS, hashes_per_bucket=HASHES)
    run("reading", [partial(_read, spec, corpora.units(spec)), JsonlWriter(str(read), compression=None),
                    partial(_digest, read), _signature(signed, config)], TASKS)
    run("finding duplicates",
        [MinhashDedupBuckets(str(signed), str(pairs), config=config, lines_to_buffer=1000)], BUCKETS)
    run("removing duplicates", [partial(_keep_first, read, pairs, removed)], 1)
    again = JsonlReader(str(read), compression=None, glob_pattern="*.jsonl", add_file_path=False)
    run("writing text", [again, MinhashDedupFilter(str(removed)), partial(_split, spec),
                         JsonlWriter(str(work), "${split}/${rank}.jsonl", compression=None)], TASKS)
    about = _gather(spec, work) | {"duplicates": json.loads((removed / "counts.json").read_text())}
    shutil.rmtree(scratch)
    shutil.rmtree(work / "valid")
    return about


def _gather(spec: dict[str, Any], work: Path) -> dict[str, Any]:
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
                share = f" ({corpora.VALID_SHARE:.0%} of the documents are for validation)"
                raise ValueError(f"{spec['name']}: too little text, no document is left for {split}"
                                 + (share if "files" in spec else ""))
            counts[split] = {"documents": documents, "bytes": size}
    return {"sha256": sha.hexdigest(), **counts}


# Pipeline steps. To datatrove a step is any function of (documents, rank, number of tasks).

def _read(spec: dict[str, Any], units: list[corpora.Unit], _: Any, rank: int, tasks: int) -> Iterator[Any]:
    """The documents of this task's share of the files: contiguous, and equal in bytes."""
    from datatrove.data import Document

    total, start = sum(unit.size for unit in units) or 1, 0
    gc.disable()  # a syntax tree has many nodes and no cycle: collecting is a fifth of the time of parsing
    try:
        for unit in units:
            if start * tasks // total == rank:
                for name, text in corpora.documents(spec, unit):
                    yield Document(text, name, metadata={"package": unit.package} if unit.package else {})
            start += unit.size
    finally:
        gc.enable()


def _digest(folder: Path, documents: Any, rank: int, _: int) -> Iterator[Any]:
    """Records what finds exact duplicates: documents of fewer words than a shingle have no signature."""
    with open(folder / f"{rank:05d}.digests", "wb") as file:
        for document in documents:
            file.write(hashlib.blake2b(document.text.encode(), digest_size=16).digest())
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


def _keep_first(read: Path, pairs: Path, removed: Path, *_: Any) -> None:
    """Marks all documents but the first, in reading order, of each cluster of exact and near duplicates.

    In place of datatrove's own step, which keeps the root of its union-find: often not the held-out document.
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
            node, digest = (int(path.stem), index), digests[16 * index:16 * (index + 1)]
            if first.setdefault(digest, node) != node:
                exact.add(node)
                join(first[digest], node)
    for path in sorted(pairs.glob("*.dups")):
        for rank_a, a, rank_b, b in struct.iter_unpack("<4I", path.read_bytes()):
            join((rank_a, a), (rank_b, b))

    gone = sorted(node for node in parent if root(node) != node)
    for rank in {rank for rank, _ in gone}:
        indices = [index for owner, index in gone if owner == rank]
        (removed / f"{rank:06d}.remove").write_bytes(struct.pack(f"<{len(indices)}I", *indices))
    (removed / "counts.json").write_text(json.dumps({"exact": len(exact), "near": len(gone) - len(exact)}))


def _split(spec: dict[str, Any], documents: Any, *_: Any) -> Iterator[Any]:
    for document in documents:
        held_out = corpora.held_out(spec, document.metadata.get("package", ""), document.text)
        document.metadata["split"] = "valid" if held_out else "train"
        yield document


# Tokenizer and tokens

def _tokenizer(name: str, vocab: int, store: Path) -> tuple[Path, str]:
    """Path and hash of the tokenizer trained on a corpus; the components of a blend are taken whole."""
    texts = [_text(part, store) for part in _components(name)]
    size = sum(about["train"]["bytes"] for _, about in texts)

    def make(work: Path, run: Run) -> dict[str, Any]:
        run("training")
        documents = (json.loads(line)["text"] for folder, _ in texts for line in _lines(folder / "train"))
        (work / "tokenizer.model").write_bytes(train(documents, size, vocab))
        return {"sha256": Tokenizer(work / "tokenizer.model").sha256}

    inputs = {"text": [about["sha256"] for _, about in texts], "vocab": vocab,
              "options": [OPTIONS, SAMPLE_BYTES], "sentencepiece": version("sentencepiece")}
    folder, about = _folder(store, f"{_label(name)}-tokenizer-{vocab}", inputs, make)
    return folder / "tokenizer.model", about["sha256"]


def _tokens(name: str, text: Path, about: dict[str, Any], model: Path, model_sha: str,
            store: Path) -> tuple[Path, dict[str, int]]:
    """Folder of the training text as tokens; numbers of tokens of the training and the validation text."""

    def make(work: Path, run: Run) -> dict[str, Any]:
        from datatrove.pipeline.readers import JsonlReader
        from datatrove.pipeline.tokens import MegatronDocumentTokenizer

        write = MegatronDocumentTokenizer(str(work), batch_size=1000)
        write.tokenizer = encoder = _Encoder(model)
        # A single task writes a single file, in the order of the text; encode_batch uses the cores.
        run("tokenizing", [JsonlReader(str(text / "train"), compression=None, add_file_path=False), write], 1)
        for suffix in (".bin", ".idx"):
            os.replace(work / f"00000_tokens{suffix}", work / f"train{suffix}")
        with gzip.open(text / "valid.jsonl.gz", "rt", encoding="utf-8") as file:
            valid = sum(len(encoder.encode_batch([json.loads(line)["text"]])[0].ids) for line in file)
        return {"train": (work / "train.bin").stat().st_size // write.token_size, "valid": valid}

    inputs = {"text": about["sha256"], "tokenizer": model_sha, "datatrove": version("datatrove"),
              "sentencepiece": version("sentencepiece")}
    return _folder(store, f"{_label(name)}-tokens", inputs, make)


class _Encoder:
    """The tokenizer in the form in which datatrove calls one."""

    def __init__(self, path: Path):
        self.tokenizer = Tokenizer(path)

    def get_vocab_size(self) -> int:
        return self.tokenizer.vocab_size

    def encode_batch(self, texts: list[str]) -> list[argparse.Namespace]:
        return [argparse.Namespace(ids=[*ids, self.tokenizer.eod])
                for ids in self.tokenizer.encode_batch(texts, threads=_cores())]


# The store

def _folder(store: Path, name: str, inputs: dict[str, Any],
            make: Callable[[Path, Run], dict[str, Any]]) -> tuple[Path, dict[str, Any]]:
    """A folder and what `make(folder, run)` returned: now, or earlier from the same inputs."""
    inputs = json.loads(json.dumps({"layout": LAYOUT, **inputs}))
    folder = store / f"{name}-{_hash(inputs)[:8]}"
    if not folder.exists():
        store.mkdir(parents=True, exist_ok=True)
        with open(store / ".lock", "w") as lock:
            fcntl.lockf(lock, fcntl.LOCK_EX)  # others wait here; unlike flock's, not inherited by children
            if not folder.exists():
                for left in store.glob("partial-*"):  # by a killed process
                    shutil.rmtree(left, ignore_errors=True)
                work = store / f"partial-{os.getpid()}"
                work.mkdir()
                try:
                    with _progress(store, name) as run:
                        made = make(work, run)
                    manifest = json.dumps({"inputs": inputs, "made": made}, indent=1)
                    (work / "manifest.json").write_text(manifest)
                    os.replace(work, folder)
                finally:
                    shutil.rmtree(work, ignore_errors=True)
    manifest = json.loads((folder / "manifest.json").read_text())
    if manifest["inputs"] != inputs:
        raise ValueError(f"{folder} was made from something else: remove it")
    return folder, manifest["made"]


@contextlib.contextmanager
def _progress(store: Path, name: str) -> Iterator[Run]:
    """A line on the terminal; what datatrove and its processes say goes to prepare.log in the store."""
    from rich.console import Console
    from rich.progress import Progress, ProgressColumn, SpinnerColumn, Task, TextColumn, TimeElapsedColumn
    from rich.progress_bar import ProgressBar

    class Done(ProgressColumn):
        max_refresh = 0.5  # seconds

        def render(self, task: Task) -> ProgressBar:
            logs = task.fields["logs"]  # where datatrove leaves a file for each finished task
            done = len(list(Path(logs, "completions").glob("*"))) if logs else task.completed
            return ProgressBar(total=task.total or 1, completed=done, width=24)

    sys.stderr.flush()
    terminal = os.dup(2)
    with open(store / "prepare.log", "ab") as log, open(terminal, "w", encoding="utf-8") as screen:
        columns = (SpinnerColumn(), TextColumn("{task.description}"), Done(), TimeElapsedColumn())
        with Progress(*columns, console=Console(file=screen), redirect_stdout=False,
                      redirect_stderr=False) as progress:
            line = progress.add_task(f"data: {name}", total=None, logs="")

            def run(stage: str, pipeline: list[Any] | None = None, tasks: int = 1) -> None:
                with tempfile.TemporaryDirectory() as logs:
                    progress.update(line, description=f"data: {name}, {stage}", total=tasks, logs=logs)
                    if pipeline:
                        _execute(pipeline, tasks, logs)
                    progress.update(line, logs="")

            os.dup2(log.fileno(), 2)
            try:
                yield run
            finally:
                sys.stderr.flush()
                os.dup2(terminal, 2)
            progress.update(line, description=f"data: {name}", total=1, completed=1)


_executing = False


def _execute(pipeline: list[Any], tasks: int, logs: str) -> None:
    from datatrove.executor import LocalPipelineExecutor

    global _executing
    _executing = True
    try:
        # fork: the other methods import the caller's script again, which would wait here for itself without a
        # guard on its name. The tasks touch neither torch nor a lock of this process' other threads.
        LocalPipelineExecutor(pipeline, tasks=tasks, workers=min(tasks, _cores()), logging_dir=logs,
                              start_method="fork").run()
    finally:
        _executing = False


def _end_with_parent() -> None:
    """Called in each forked process: those that datatrove's executor forks would outlive a kill."""
    if _executing and sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # 1: PR_SET_PDEATHSIG


os.register_at_fork(after_in_child=_end_with_parent)


def _content(path: Path, store: Path) -> str:
    """Hash of a file's content, remembered while the file's size and time of change stay the same."""
    state = path.stat()
    seen = [str(path.resolve()), state.st_size, state.st_mtime_ns]
    note = store / "hashes" / _hash(seen)[:32]
    if not note.exists():
        with open(path, "rb") as file:
            sha = hashlib.file_digest(file, "sha256").hexdigest()
        note.parent.mkdir(parents=True, exist_ok=True)
        partial_note = note.with_suffix(f".{os.getpid()}")
        partial_note.write_text(sha)
        os.replace(partial_note, note)
    return note.read_text()


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _components(name: str) -> dict[str, float]:
    return corpora.load(name).get("blend", {name: 1.0})


def _lines(folder: Path) -> Iterator[bytes]:
    for path in sorted(folder.glob("*.jsonl")):
        with open(path, "rb") as file:
            yield from file


def _label(name: str) -> str:
    """A corpus' name as part of a folder's; of a path the last two parts, without wildcard and extension."""
    plain = [part for part in Path(name).parts if not has_magic(part)] or ["files"]
    return re.sub(r"\W+", "-", "-".join(plain[-2:]).partition(".")[0]).strip("-") or "files"


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m data.prepare",
        description="Prepare a corpus for training: read, deduplicate, tokenize. Prints the manifest.",
        epilog=f"Corpora: {', '.join(corpora.known())}; or a file, folder or quoted glob of "
               f"{', '.join(corpora.EXTENSIONS)}: JSON lines with \"text\", as in C4 and The Pile, or "
               "documents separated by blank lines, as in OSCAR v1.")
    add = parser.add_argument
    add("corpus", help="name, or path on disk")
    add("--tokenizer", metavar="CORPUS", help="what the tokenizer is trained on (the corpus itself)")
    add("--vocab", type=int, metavar="N", default=4096, help="pieces of the tokenizer (%(default)s)")
    add("--store", type=Path, metavar="DIR", default=Path("runs/data"), help="where to write (%(default)s)")
    given = parser.parse_args()
    try:
        made = prepare(given.corpus, given.tokenizer or given.corpus, given.vocab, given.store)
    except ValueError as error:
        parser.exit(2, f"{error}\n")
    print(json.dumps(made, indent=1))


if __name__ == "__main__":
    main()
