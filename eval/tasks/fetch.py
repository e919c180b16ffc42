"""Downloads the data of evaluation tasks from the hub, each data set at a pinned revision: `make eval-data`.

    python -m eval.tasks.fetch --to FOLDER [--tasks suite,blimp] [--from FOLDER_OF_REPOSITORIES]

It runs on a machine with a network. Evaluation, on compute nodes without one, reads the folder (eval/tasks/mirror.py).
"""

import gzip
import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

from ablations import answers, safe_files
from eval.tasks.mirror import Mirror, Source, names, suite

NAMED_TASKS = 5  # that a message names
ANSWER_SECONDS = 10.0  # seconds that the hub has for an answer, before its data sets are asked for; untuned
LOGIQA = "https://raw.githubusercontent.com/lgw863/LogiQA-dataset/{revision}/{file}"


def read_split(source: Source, spec: dict, copies: Path | None) -> tuple[Any, str | None]:
    """Read a split of a data set from the hub: (a datasets.Dataset, its revision; None for a local copy).

    Args:
        source: the split.
        spec: the task's entry in tasks.yaml, or {}. "revision" is the revision to read; without it the newest one is
            read. Some data sets cannot be read by the library datasets. Their entry has "files" (a pattern of file
            names in the repository) and "format", or "github" (a file in the authors' repository on GitHub).
        copies: a folder with copies of the hub's repositories, named organisation__name, to read from; None: the hub is
            read.
    """
    from datasets import Dataset, load_dataset

    revision, split = spec.get("revision"), source.split
    if "github" in spec and not copies:
        import urllib.request

        url = LOGIQA.format(revision=revision, file=spec["github"])
        with urllib.request.urlopen(url, timeout=60) as answer:
            return Dataset.from_list(parse_logiqa(answer.read().decode("utf-8"))), revision
    if copies:
        path, revision = str(copies / source.path.replace("/", "__")), None
    else:
        from huggingface_hub import HfApi

        # a branch such as refs/convert/parquet moves: what it points to now is what is read and recorded
        revision = HfApi().dataset_info(source.path, revision=revision or spec.get("branch")).sha
        path = source.path
    if "files" in spec and not copies:
        files = {split: f"hf://datasets/{source.path}@{revision}/{spec['files']}"}
        return load_dataset(spec["format"], data_files=files, split=split), revision
    name = None if source.config == "default" else source.config
    return load_dataset(path, name, split=split, **({} if copies else {"revision": revision})), revision


def why_unreachable() -> str:
    """Why the hub cannot be reached from this machine, as a sentence; "" where it answers. This is asked once, before
    thousands of data sets are each tried several times."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=ANSWER_SECONDS)
    except Exception as error:  # the HTTP client's own, or the operating system's
        reason = " ".join(str(error).split())
        return f"{constants.ENDPOINT} cannot be reached from this machine ({type(error).__name__}: {reason})"
    return ""


def parse_logiqa(text: str) -> list[dict]:
    """The rows of the data set LogiQA, each {"label", "context", "question", "options"}. `text`: the authors' file,
    with eight lines for each row. (The hub's copy EleutherAI/logiqa needs a script, which the library datasets does not
    run from version 4 on.)"""
    lines = text.split("\n")
    rows = []
    for first in range(0, len(lines) - 7, 8):  # the first line is empty, the last four begin with "A." to "D."
        label, context, question, *options = lines[first + 1 : first + 8]
        texts = [text.replace(".", ". ").strip() for text in (context, question, *(option[2:] for option in options))]
        rows.append({"label": label.strip(), "context": texts[0], "question": texts[1], "options": texts[2:]})
    return rows


def write_mirror(splits: dict[str, tuple[Source, dict]], to: Path, copies: Path | None = None) -> dict[str, str]:
    """Write splits of data sets to a folder of task data, with a manifest. A split that is in the folder already,
    undamaged and with the right revision, is kept.

    Args:
        splits: {task: (split, the task's entry in tasks.yaml)}.
        to: the folder of task data.
        copies: a folder with copies of the hub's repositories to read from; None: the hub is read.

    Returns:
        {task: why its split could not be read}, for the tasks that failed.
    """
    to.mkdir(parents=True, exist_ok=True)
    path = to / "manifest.json"
    entries = Mirror(to).entries if path.exists() else {}
    failed = {}
    unreachable: str | None = None  # why the hub cannot be reached, or ""; None: it was not asked yet
    for task, (source, spec) in splits.items():
        entry = entries.get(source)
        pinned = None if copies else spec.get("revision")
        if entry and pinned in (None, entry.get("revision")) and not Mirror(to).why_unusable(source):
            continue
        if not copies and "github" not in spec:
            unreachable = why_unreachable() if unreachable is None else unreachable
            if unreachable:
                failed[task] = unreachable
                continue
        print(f"{task}: {source}", file=sys.stderr, flush=True)
        try:
            table, revision = read_split(source, spec, copies)
        except Exception as error:  # of any library on the way: say it, and go on with the others
            failed[task] = f"{source}: {type(error).__name__}: {' '.join(str(error).split())}"
            continue
        content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in table)
        packed = gzip.compress(content.encode(), mtime=0)
        file = Path(source.path.replace("/", "__")) / source.config / f"{source.split}.jsonl.gz"
        (to / file).parent.mkdir(parents=True, exist_ok=True)
        safe_files.write_bytes(to / file, packed)
        entries[source] = {
            "dataset_path": source.path,
            "config": source.config,
            "split": source.split,
            "task": task,
            "file": str(file),
            "rows": len(table),
            "bytes": len(packed),
            "sha256": hashlib.sha256(packed).hexdigest(),
            "revision": revision,
            "features": table.features.to_dict(),
        }
        safe_files.write_text(path, json.dumps([entries[key] for key in sorted(entries)], indent=1))
    return failed


def main(argv: list[str] | None = None) -> int:
    parser = answers.Parser(prog="python -m eval.tasks.fetch", description="Mirror the data of evaluation tasks.")
    add = parser.add_argument
    add("--to", type=Path, required=True, metavar="FOLDER")
    add("--tasks", default="suite", help="names with commas between them: suite, multilingual, or any of lm-eval's")
    add(
        "--shots", type=int, metavar="N", help="examples in each prompt, whose data is needed too (default: as defined)"
    )
    add(
        "--from",
        dest="local",
        type=Path,
        metavar="FOLDER",
        help="copies of the hub's repositories as organisation__name, in place of the hub",
    )
    answers.add_format_option(parser)
    args = parser.parse_args(argv)
    os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1" if args.local else "0"
    from eval.tasks.definitions import definitions  # imports `datasets`, which reads these variables

    try:
        requested = [name.strip() for name in args.tasks.split(",") if name.strip()]
        splits = {
            name if source == definition.source else f"{name}, examples": (source, suite().get(name, {}))
            for name, definition in definitions(names(requested), args.shots).items()
            for source in definition.sources
        }
        Mirror(args.to) if (args.to / "manifest.json").exists() else None  # one that is damaged is said before any work
    except ValueError as error:
        answers.print_error(str(error), args.format == "json")
        return 2
    try:
        failed = write_mirror(splits, args.to, args.local)
    except OSError as error:  # of the disk: what is complete there is kept
        answers.print_error(safe_files.storage_error_message(error) or str(error), args.format == "json")
        return 2
    tasks_of: dict[str, list[str]] = {}
    for task, reason in failed.items():
        tasks_of.setdefault(reason, []).append(task)
    for reason, tasks in tasks_of.items():
        others = f" and {len(tasks) - NAMED_TASKS} more" if len(tasks) > NAMED_TASKS else ""
        print(f"error: {', '.join(tasks[:NAMED_TASKS])}{others}: {reason}", file=sys.stderr)
    if failed:
        print(
            "The same command tries these again and keeps the others. Where the hub's repositories are copied here "
            "already: make eval-data ARGS='--from FOLDER'",
            file=sys.stderr,
        )
    if args.format == "json":
        written = [task for task in splits if task not in failed]
        print(answers.json_answer("eval-data", {"written": str(args.to), "tasks": written, "failed": failed}))
    else:
        print(f"{args.to}: {len(splits) - len(failed)} of {len(splits)} tasks")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
