"""From the files of a corpus to its text: read, filtered, deduplicated and split, by datatrove."""

from __future__ import annotations

import gc
import gzip
import hashlib
import json
import pickle
import platform
import shutil
from collections.abc import Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from data import corpus as corpora
from data import dedup, filters, store
from data.filters import PLAIN, Recipe, Step
from data.readers import Ledger, tolerate
from data.store import Place, Run

TASKS = 16  # shards of the work at least; their number depends on the files alone, so that nothing depends on the cores
MOST_TASKS, SHARD = 1000, 1 << 25  # of many files: at most so many (Slurm's usual limit), of so many bytes or more


def prepared_text(name: str, recipe: Recipe, place: Place) -> tuple[Path, dict[str, Any]]:
    """Folder and manifest of the filtered and deduplicated text of a corpus that is no blend."""
    spec = corpora.load(name, place.store)
    recorded = spec.pop("sha256", None)
    units = corpora.units(spec, place.store, place.build)
    inputs: dict[str, Any]
    wrong: list[str] = []
    if "files" in spec:
        hashes = store.contents(units, place)
        wrong = not_as_listed(spec, units, hashes)
        inputs = {key: spec[key] for key in ("layout", "text", "where") if spec.get(key)}
        inputs |= {
            "files": [[unit.name, sha] for unit, sha in zip(units, hashes, strict=True)],
            "share": corpora.valid_share(units),
        }
    else:
        inputs = {**spec, "python": platform.python_version_tuple()[:2]}
    # what is read is the same whatever errors are allowed; whether there were too many is asked below, each time
    inputs |= {
        "minhash": [dedup.SHINGLE, dedup.BUCKETS, dedup.HASHES],
        "datatrove": version("datatrove"),
        "dedup": recipe.dedup,
        "quality": recipe.quality,
        "decontaminate": _tasks_hash(recipe, place),
    }
    tolerate(wrong, recipe.allow_errors)
    folder, about = store.folder(place, store.label(name), inputs, partial(_make_text, spec, units, recipe, wrong))
    tolerate(about["problems"], recipe.allow_errors)
    about["mismatch"] = ""
    if recorded and recorded != about["sha256"] and recipe._replace(allow_errors=0) == PLAIN:
        about["mismatch"] = (
            f"the text of {name} has the sha256 {about['sha256']}, but its specification "
            f"records {recorded}: results on the two cannot be compared"
        )
    return folder, about


def not_as_listed(spec: dict[str, Any], units: list[corpora.Unit], hashes: list[str]) -> list[str]:
    """A sentence for each file that is not what the list of checksums beside it says, or that it does not name."""
    sums = corpora.checksums(spec)
    if sums is None:
        return []
    return [
        f"{unit.path}: its sha256 is {sha}, but the list beside it says {sums.get(unit.name, 'nothing of it')}"
        for unit, sha in zip(units, hashes, strict=True)
        if sums.get(unit.name) != sha
    ]


def _tasks_hash(recipe: Recipe, place: Place) -> str:
    if recipe.decontaminate == "none":
        return "none"
    found = filters.tasks(recipe.decontaminate)
    hashes = {task: [store.content(path, place) for path in paths] for task, paths in found.items()}
    return store.digest([filters.NGRAM, hashes])


def _make_text(
    spec: dict[str, Any], units: list[corpora.Unit], recipe: Recipe, wrong: list[str], work: Path, run: Run
) -> dict[str, Any]:
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import JsonlWriter

    scratch = work / "scratch"
    read, signed, pairs, removed, met, tasks, stages = (
        scratch / name for name in ("read", "signed", "pairs", "removed", "problems", "tasks", "stages")
    )
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
    make: dict[str, Any] = {
        "c4": partial(filters.quality, "c4"),
        "gopher": partial(filters.quality, "gopher"),
        "decontaminate": partial(filters.decontaminate, tasks),
    }
    share = corpora.valid_share(units)
    (scratch / "units.pickle").write_bytes(pickle.dumps([spec, units]))
    failure = None
    try:
        run(
            "reading",
            [
                partial(_read, scratch / "units.pickle", share, recipe.allow_errors - len(wrong), met),
                *(Step(name, make[name], stages / name) for name in asked),
                JsonlWriter(str(read), compression=None),
                partial(dedup.digests, read),
                dedup.signature(signed),
            ],
            count,
        )
    except Exception as error:
        failure = error  # where the readers met more problems than allowed, those are what is wrong
    problems, counts, documents = _met(met)
    tolerate(wrong + problems, recipe.allow_errors)
    if failure:
        raise failure
    run("finding duplicates", [dedup.pairs(signed, pairs)], dedup.BUCKETS)
    run("removing duplicates", [partial(dedup.keep_first, read, pairs, removed, recipe.dedup)], 1)
    again = JsonlReader(str(read), compression=None, glob_pattern="*.jsonl", add_file_path=False)
    run(
        "writing text",
        [
            again,
            Step("duplicates", partial(dedup.duplicates, removed), stages / "duplicates"),
            JsonlWriter(str(work), "${split}/${rank}.jsonl", compression=None),
        ],
        count,
    )
    about = _gather(spec, work, share)
    about["duplicates"] = {
        kind: sum(json.loads(path.read_text())[kind] for path in removed.glob("*.counts")) for kind in ("exact", "near")
    }
    steps = [filters.summary(name, stages / name) for name in [*asked, "duplicates"]]
    kept = documents - sum(step["in"][0] - step["out"][0] for step in steps[:-1])
    left = sum(about[split]["documents"] for split in ("train", "valid"))
    copies = sum(about["duplicates"].values())
    if not dedup.recorded(read) == kept == left + copies:  # of a line that it cannot read datatrove only warns
        raise ValueError(
            f"{spec['name']}: of {kept:,} documents {left:,} are left and {copies:,} were copies: what "
            "tasks had written was lost, as in a power loss. The same command begins anew"
        )
    shutil.rmtree(work / "valid", ignore_errors=True)
    return about | {
        "problems": wrong + problems,
        "read": counts,
        "share": share,
        "steps": steps,
        "tasks": filters.contamination(about_tasks, tasks) if about_tasks else {},
    }


def _read(of: Path, share: float, allowed: int, met: Path, _: Any, rank: int, tasks: int) -> Iterator[Any]:
    """The documents of this task's share of the files: contiguous, and equal in bytes."""
    from datatrove.data import Document

    spec, units = pickle.loads(of.read_bytes())
    total, start, count = sum(unit.size for unit in units) or 1, 0, 0
    ledger = Ledger(allowed)
    gc.disable()  # a syntax tree has many nodes and no cycle: collecting is a fifth of the time of parsing
    try:
        for unit in units:
            if min(start * tasks // total, tasks - 1) == rank:  # an empty file at the end begins at the total
                for name, text, labels in corpora.documents(spec, unit, ledger):
                    split = "valid" if corpora.held_out(spec, unit.package, text, share) else "train"
                    count += 1
                    yield Document(text, name, metadata={**labels, "split": split})
            start += unit.size
    finally:
        gc.enable()
        # whole or not at all: where one task fails the others are ended, and then this is read
        found = {"problems": ledger.problems, "counts": ledger.counts, "documents": count}
        corpora.write_whole(met / f"{rank:05d}.json", json.dumps(found))


def _met(folder: Path) -> tuple[list[str], dict[str, int], int]:
    """The problems that the readers met, what else they counted, and the documents."""
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    kinds = sorted({kind for each in found for kind in each["counts"]})
    return (
        [problem for each in found for problem in each["problems"]],
        {kind: sum(each["counts"].get(kind, 0) for each in found) for kind in kinds},
        sum(each["documents"] for each in found),
    )


def _gather(spec: dict[str, Any], work: Path, share: float) -> dict[str, Any]:
    """Hash and counts of the text; puts the held-out documents into one file."""
    sha, counts = hashlib.sha256(), {}
    # Neither name nor time in the gzip header: the same text is the same file.
    with open(work / "valid.jsonl.gz", "wb") as raw, gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as packed:
        for split in ("train", "valid"):
            documents = size = 0
            for line in lines(work / split):
                text = json.loads(line)["text"].encode()
                sha.update(len(text).to_bytes(8, "big") + text)
                documents, size = documents + 1, size + len(text)
                if split == "valid":
                    packed.write(line)
            if not documents:
                said = f" ({share:.2g} of the documents are for validation)"
                raise ValueError(
                    f"{spec['name']}: too little text, no document is left for {split}"
                    + (said if "files" in spec else "")
                )
            counts[split] = {"documents": documents, "bytes": size}
    return {"sha256": sha.hexdigest(), **counts}


def lines(folder: Path) -> Iterator[bytes]:
    """The documents of a folder of shards as JSON, in order."""
    for path in sorted(folder.glob("*.jsonl")):
        with open(path, "rb") as file:
            yield from file
