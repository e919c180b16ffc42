"""From the files of a corpus to its text: datatrove's pipelines read the documents, split them into training and
held-out ones, filter them, and remove duplicates."""

from __future__ import annotations

import gc
import gzip
import hashlib
import json
import pickle
import platform
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from data import corpus as corpora
from data import dedup, filters, substrings
from data.disk import write_text
from data.documents import read_documents
from data.filters import DEFAULT_RECIPE, FilterStep, Recipe
from data.readers import Ledger, SourceFile, check_problem_count
from data.sources import installed_distribution, recorded_checksums, source_files
from data.store import RunStage, Store, content_hash, content_hashes, digest, folder_label, prepared_folder

# A corpus is read in shards, one for each task. Their number depends on the files alone, so that no result depends on
# the number of cores.
MIN_SHARDS = 16
MOST_NAMES = 20  # files of a corpus that a manifest names
MAX_SHARDS = 1000  # Slurm's usual limit for the tasks of an array
MIN_SHARD_BYTES = 1 << 25  # of compressed files; untuned


def prepared_text(name: str, recipe: Recipe, store: Store) -> tuple[Path, dict[str, Any]]:
    """The filtered and deduplicated text of a corpus that is not a blend: the folder with train/*.jsonl and
    valid.jsonl.gz, and the manifest. Missing text is prepared. `name`: the corpus; `recipe`: which documents are
    removed; `store`: the store of prepared data.

    The manifest is a dictionary:
        sha256: of the text
        train, valid: {"documents": number, "bytes": number}
        share: the share of the documents that is held out
        duplicates: {"exact" and "near": the number of documents removed as copies}
        unsigned: the number of documents too short for a MinHash signature
        steps: [the `filters.step_report` of each filter]
        tasks: the result of `filters.count_contaminated`; {} where the text is not compared with evaluation tasks
        problems, read: the problems in the files, and {kind: number of records that were left out} (see `Ledger`)
        source: the `source_identity` of the corpus
        left_out: [a sentence for each kind of file that is not read]
        mismatch: a sentence where the text has another sha256 than its specification records, else ""

    Raises:
        ValueError: there are more problems in the files than the recipe allows, or no document is left.
    """
    spec = corpora.load_specification(name, store.path)
    recorded_sha = spec.pop("sha256", None)
    files: list[SourceFile] = []  # in a corpus of packages they are listed when the text is made: it takes a second
    inputs: dict[str, Any]
    known_problems: list[str] = []
    source = None
    if "files" in spec:
        files = source_files(spec, store.path, store.build)
        hashes = content_hashes(files, store)
        known_problems = checksum_problems(spec, files, hashes)
        source = _identity_of_files(files, hashes)
        inputs = {key: spec[key] for key in ("layout", "text", "where") if spec.get(key)}
        inputs |= {
            "files": [[file.name, sha] for file, sha in zip(files, hashes, strict=True)],
            "share": corpora.held_out_share(spec, files),
        }
    else:
        for package, release in spec["packages"].items():
            installed_distribution(package, release)  # raises where the package is not installed in this version
        inputs = {**spec, "python": platform.python_version_tuple()[:2]}
    # without allow_errors: the text is the same, and the number of problems is checked below at each use
    inputs |= {
        "minhash": [dedup.SHINGLE, dedup.BUCKETS, dedup.HASHES],
        "datatrove": version("datatrove"),
        "dedup": recipe.dedup,
        "quality": recipe.quality,
        "decontaminate": _tasks_hash(recipe, store),
        **({"substring": recipe.substring} if recipe.substring else {}),
    }
    check_problem_count(known_problems, recipe.allow_errors)

    def make(work: Path, run: RunStage) -> dict[str, Any]:
        entries = _make_text(spec, files, recipe, known_problems, work, run)
        if source_identity(name, store) != source:
            raise ValueError(f"the files of {name} changed while they were read: give the same command again")
        return entries

    folder, manifest = prepared_folder(store, folder_label(name), inputs, make)
    check_problem_count(manifest["problems"], recipe.allow_errors)
    manifest |= {"source": source, "left_out": spec.get("left_out", []), "mismatch": ""}
    if recorded_sha and recorded_sha != manifest["sha256"] and recipe._replace(allow_errors=0) == DEFAULT_RECIPE:
        manifest["mismatch"] = (
            f"the text of {name} has the sha256 {manifest['sha256']}, but its specification "
            f"records {recorded_sha}: results on the two cannot be compared"
        )
    return folder, manifest


def source_identity(name: str, store: Store) -> dict[str, Any] | None:
    """The identity of the files of a corpus that is not a blend, as they are now; None for a corpus of packages, which
    are identified by their versions. `store`: the store of prepared data, which keeps the hashes of files, so that only
    changed files are read.

    Returns {"files": number of files, "bytes": their total size, "sha256": a hash of their names and contents, "names":
    the names of the first MOST_NAMES files}.
    """
    spec = corpora.load_specification(name, store.path)
    if "files" not in spec:
        return None
    files = source_files(spec, store.path, store.build)
    return _identity_of_files(files, content_hashes(files, store))


def _identity_of_files(files: list[SourceFile], hashes: list[str]) -> dict[str, Any]:
    named = [[file.name, sha] for file, sha in zip(files, hashes, strict=True)]
    return {
        "files": len(files),
        "bytes": sum(file.size for file in files),
        "sha256": digest(named),
        "names": [file.name for file in files[:MOST_NAMES]],
    }


def checksum_problems(spec: dict[str, Any], files: list[SourceFile], hashes: list[str]) -> list[str]:
    """Compare the files of a corpus with the lists of checksums in their folders (see `sources.recorded_checksums`).
    Returns a sentence for each file that has another sha256 or is missing in the list; [] if there is no list. `spec`:
    the specification of the corpus; `files`: its files; `hashes`: the sha256 of each file."""
    sums = recorded_checksums(spec)
    if sums is None:
        return []
    return [
        f"{file.path}: its sha256 is {sha}, but the list beside it says {sums.get(file.name, 'nothing of it')}"
        for file, sha in zip(files, hashes, strict=True)
        if sums.get(file.name) != sha
    ]


def _tasks_hash(recipe: Recipe, store: Store) -> str:
    """A hash of the evaluation tasks in the folder data.decontaminate, so that the text is made anew when the tasks
    change; "none" where the recipe names no folder."""
    if recipe.decontaminate == "none":
        return "none"
    files = filters.task_files(recipe.decontaminate)
    hashes = {task: [content_hash(path, store) for path in paths] for task, paths in files.items()}
    return digest([filters.NGRAM, hashes])


class WorkFolders(NamedTuple):
    """The folders for the intermediate files of each step, inside the folder in which a text is being made."""

    read: Path  # the documents that the filters kept, a .jsonl file for each task, and their hashes
    signatures: Path  # the MinHash signatures of the documents
    pairs: Path  # the pairs of near duplicates
    removed: Path  # the numbers of the documents that are removed as duplicates
    problems: Path  # the report of each task that reads files, see `_read_files`
    tasks: Path  # the hashes of the n-grams of evaluation tasks
    reports: Path  # a folder for each filter, with its reports
    uncut: Path  # the documents without duplicates, before repeated stretches are cut
    spans: Path  # the repeated stretches


def _make_text(
    spec: dict[str, Any], files: list[SourceFile], recipe: Recipe, known_problems: list[str], work: Path, run: RunStage
) -> dict[str, Any]:
    """Write the text of a corpus to a folder. Returns the entries for the manifest (see `prepared_text`).

    Args:
        spec: the specification of the corpus.
        files: the files that the corpus is read from; empty for a corpus of packages, whose files are listed here.
        recipe: which documents are removed.
        known_problems: a sentence for each problem with the files that was found before reading.
        work: the folder for the text.
        run: a function that runs one stage of the work (see `store.RunStage`).

    Raises:
        ValueError: there are more problems than allowed, no document is left, or files that a task had written are
            lost.
    """
    folders = WorkFolders(*(work / "scratch" / name for name in WorkFolders._fields))
    files = files or source_files(spec)
    count = _shard_count(spec, files)
    for folder in (folders.read, folders.removed, folders.problems, folders.uncut, folders.spans):
        folder.mkdir(parents=True, exist_ok=True)
    for rank in range(count):  # empty shards too: later the n-th file is read by the n-th task
        (folders.read / f"{rank:05d}.jsonl").touch()
        (folders.uncut / f"{rank:05d}.jsonl").touch()
    filtering = filters.filter_names(recipe)
    task_counts: dict[str, Any] = {}
    if "decontaminate" in filtering:
        task_counts = filters.index_tasks(recipe.decontaminate, folders.tasks)
    share = corpora.held_out_share(spec, files)
    problems, left_out, total = _read_and_filter(spec, files, recipe, known_problems, share, folders, count, run)
    _remove_duplicates(recipe, folders, count, work, run)
    duplicates = {
        kind: sum(json.loads(path.read_text("utf-8"))[kind] for path in folders.removed.glob("*.counts"))
        for kind in ("exact", "near")
    }
    copies = sum(duplicates.values())
    manifest = _gather_held_out(spec, work, share, total, left_out, copies) | {"duplicates": duplicates}
    cuts = ["substring"] if recipe.substring else []
    steps = [filters.summed_report(folders.reports / name) for name in [*filtering, "duplicates", *cuts]]
    filtered = sum(step["in"][0] - step["out"][0] for step in steps[: len(filtering)])
    emptied = sum(step["in"][0] - step["out"][0] for step in steps[len(filtering) + 1 :])
    compared = total - filtered
    left = sum(manifest[split]["documents"] for split in ("train", "valid"))
    signed = dedup.count_signatures(folders.signatures)
    if not dedup.count_digests(folders.read) == compared == left + copies + emptied:
        raise ValueError(
            f"{spec['name']}: of {compared:,} documents {left:,} are left and {copies:,} were copies: what "
            "tasks had written was lost, as in a power loss. The same command begins anew"
        )
    shutil.rmtree(work / "valid", ignore_errors=True)
    return manifest | {
        "unsigned": compared - signed,
        "problems": problems,
        "read": left_out,
        "share": share,
        "steps": steps,
        "tasks": filters.count_contaminated(task_counts, folders.tasks) if task_counts else {},
    }


def _shard_count(spec: dict[str, Any], files: list[SourceFile]) -> int:
    """The number of shards of a corpus, each of which is read by a task of its own."""
    if "files" not in spec:
        return MIN_SHARDS
    return max(MIN_SHARDS, min(len(files), MAX_SHARDS, sum(file.size for file in files) // MIN_SHARD_BYTES))


def _read_and_filter(
    spec: dict[str, Any],
    files: list[SourceFile],
    recipe: Recipe,
    known_problems: list[str],
    share: float,
    folders: WorkFolders,
    count: int,
    run: RunStage,
) -> tuple[list[str], dict[str, int], int]:
    """Read and filter the documents of a corpus, and write the remaining ones, their hashes and their MinHash
    signatures. Returns (a sentence for each problem, {kind: number of records that were left out}, number of documents
    that were read). Raises ValueError if there are more problems than allowed.

    `share`: the share of the documents that is held out; `folders`: where to write; `count`: the number of tasks; the
    other arguments are the same as for `_make_text`.
    """
    from datatrove.pipeline.writers import JsonlWriter

    make: dict[str, Callable[[int], Callable[[Any], str]]] = {
        "c4": partial(filters.quality_filter, "c4"),
        "gopher": partial(filters.quality_filter, "gopher"),
        "decontaminate": partial(filters.decontamination_filter, folders.tasks),
    }
    pickled = folders.read.with_name("files.pickle")
    pickled.write_bytes(pickle.dumps([spec, files]))
    failure = None
    try:
        run(
            "reading",
            [
                partial(_read_files, pickled, share, recipe.allow_errors - len(known_problems), folders.problems),
                *(FilterStep(name, make[name], folders.reports / name) for name in filters.filter_names(recipe)),
                JsonlWriter(str(folders.read), compression=None),
                partial(dedup.write_digests, folders.read),
                dedup.signature_step(folders.signatures),
            ],
            count,
        )
    except Exception as error:
        failure = error  # if the readers met more problems than allowed, the problems are reported in its place
    problems, left_out, total = _summed_reports(folders.problems)
    check_problem_count(known_problems + problems, recipe.allow_errors)
    if failure:
        raise failure
    return known_problems + problems, left_out, total


def _remove_duplicates(recipe: Recipe, folders: WorkFolders, count: int, work: Path, run: RunStage) -> None:
    """Remove duplicates, cut repeated stretches where the recipe asks for that, and write the text to train/ and valid/
    in the folder `work`. `folders`: the folders of the intermediate files; `count`: the number of shards; `run`: a
    function that runs one stage of the work (see `store.RunStage`)."""
    from datatrove.pipeline.writers import JsonlWriter

    run("finding duplicates", [dedup.matching_pairs_step(folders.signatures, folders.pairs)], dedup.BUCKETS)
    choose = partial(dedup.choose_removals, folders.read, folders.pairs, folders.removed, recipe.dedup)
    run("removing duplicates", [choose], 1)
    text = JsonlWriter(str(work), "${split}/${rank}.jsonl", compression=None)
    remove = FilterStep("duplicates", partial(dedup.duplicate_filter, folders.removed), folders.reports / "duplicates")
    target = JsonlWriter(str(folders.uncut), compression=None) if recipe.substring else text
    run("writing text", [partial(_read_documents, folders.read), remove, target], count)
    if recipe.substring:
        find = partial(substrings.find_repeats, folders.uncut, recipe.substring, folders.spans)
        run("finding repeated stretches", [find], 1)
        cut = FilterStep("substring", partial(substrings.repeat_filter, folders.spans), folders.reports / "substring")
        run("cutting repeated stretches", [partial(_read_documents, folders.uncut), cut, text], count)


def _read_files(
    pickled: Path, share: float, allowed: int, reports: Path, _: Any, rank: int, tasks: int
) -> Iterator[Any]:
    """A step that reads a part of a corpus' files, yields their documents in datatrove's form, and writes a report.
    Each task reads some files in a row, such that all tasks read about the same number of bytes.

    Args:
        pickled: a pickle of (specification of the corpus, list of all its files).
        share: the share of documents that is held out.
        allowed: how many problems this task tolerates.
        reports: the folder for the report, <rank>.json: {"problems" and "counts": those of a `Ledger`, "documents":
            number of documents}.
        rank, tasks: the number of this task, from 0, and the number of all tasks.
    """
    from datatrove.data import Document

    spec, files = pickle.loads(pickled.read_bytes())
    total_bytes, start, count = sum(file.size for file in files) or 1, 0, 0
    ledger = Ledger(allowed)
    gc.disable()  # a syntax tree has many nodes and no cycle: garbage collection takes a fifth of the time of parsing
    try:
        for file in files:
            if min(start * tasks // total_bytes, tasks - 1) == rank:  # an empty file at the end starts at the total
                for name, text, labels in read_documents(spec, file, ledger):
                    split = "valid" if corpora.is_held_out(spec, file.package, text, share) else "train"
                    count += 1
                    yield Document(text, name, metadata={**labels, "split": split})
            start += file.size
    finally:
        gc.enable()
        # whole or not at all: where one task fails the others are ended, and then all reports are read
        summary = {"problems": ledger.problems, "counts": ledger.counts, "documents": count}
        write_text(reports / f"{rank:05d}.json", json.dumps(summary))


def _read_documents(read: Path, _: Any, rank: int, __: int) -> Iterator[Any]:
    """A step that yields the documents that an earlier step has written to <rank>.jsonl in the folder `read`, in
    datatrove's form. It replaces datatrove's own reader, which would decode the file by the locale's encoding."""
    import orjson
    from datatrove.data import Document

    with open(read / f"{rank:05d}.jsonl", "rb") as file:
        for line in file:
            try:
                record = orjson.loads(line)
            except orjson.JSONDecodeError:
                continue  # half a line, after a power loss: `_make_text` finds that a document is missing
            yield Document(record["text"], record["id"], metadata=record["metadata"])


def _summed_reports(folder: Path) -> tuple[list[str], dict[str, int], int]:
    """The sum of the reports that the tasks of `_read_files` have written to a folder: (a sentence for each problem,
    {kind: number of records that were left out}, number of documents)."""
    reports = [json.loads(path.read_text("utf-8")) for path in sorted(folder.glob("*.json"))]
    kinds = sorted({kind for report in reports for kind in report["counts"]})
    return (
        [problem for report in reports for problem in report["problems"]],
        {kind: sum(report["counts"].get(kind, 0) for report in reports) for kind in kinds},
        sum(report["documents"] for report in reports),
    )


def _gather_held_out(
    spec: dict[str, Any], work: Path, share: float, total: int, left_out: dict[str, int], copies: int
) -> dict[str, Any]:
    """Gather the held-out documents in one file, valid.jsonl.gz, and hash and count all documents. Returns {"sha256": a
    hash of all text, "train" and "valid": {"documents": number, "bytes": number}}. Raises ValueError if no document is
    left for training or for validation.

    `work`: the folder with the shards in train/ and valid/; the other arguments are for the error message (see
    `_no_documents_message`).
    """
    import orjson

    sha, counts = hashlib.sha256(), {}
    # neither name nor time in the gzip header, so that equal text gives equal files
    with open(work / "valid.jsonl.gz", "wb") as raw, gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as packed:
        for split in ("train", "valid"):
            count = size = 0
            for line in shard_lines(work / split):
                text = orjson.loads(line)["text"].encode()
                sha.update(len(text).to_bytes(8, "big") + text)
                count, size = count + 1, size + len(text)
                if split == "valid":
                    packed.write(line)
            if not count:
                raise ValueError(_no_documents_message(spec, split, share, total, left_out, copies))
            counts[split] = {"documents": count, "bytes": size}
    return {"sha256": sha.hexdigest(), **counts}


def _no_documents_message(
    spec: dict[str, Any], split: str, share: float, total: int, left_out: dict[str, int], copies: int
) -> str:
    """The error message for a corpus without a document for training or for validation: the reason, and what the user
    can do.

    Args:
        spec: the specification of the corpus.
        split: "train" or "valid".
        share: the share of documents that is held out.
        total: the number of documents that were read.
        left_out: {kind: number of records that were left out}.
        copies: the number of documents that were removed as duplicates.
    """
    sentence = f"{spec['name']}: too little text, no document is left for {split}"
    if "files" not in spec:
        return sentence
    if left_out.get("not selected") and not total:
        return f"{spec['name']}: no document is selected by where={spec['where']}, of {left_out['not selected']:,}"
    if copies and split == "train":
        return (
            f"{sentence}: of {total:,} documents {copies:,} are copies or near copies of others, and what resembles a "
            "held-out document, directly or by way of others, is not trained on"
        )
    copied = f", {copies:,} of which are copies or near copies of others," if copies else ""
    return (
        f"{sentence}: of {total:,} documents{copied} {share:.2g} are held out, chosen by the hash of their text. "
        "Give more documents (a long one can be cut into several), or hold out more of them by a corpus of your own, "
        "such as\n"
        f"  files: ['*.jsonl']\n  path: {spec.get('root', 'folder')}\n  share: 0.25\n"
        "in a file small.yaml, and DATA=small.yaml"
    )


def shard_lines(folder: Path) -> Iterator[bytes]:
    """Yield the lines of all shards (*.jsonl) in a folder, in order. A line is a document in JSON."""
    for path in sorted(folder.glob("*.jsonl")):
        with open(path, "rb") as file:
            yield from file
