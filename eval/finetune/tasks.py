"""The tasks of GLUE (Wang et al. 2019, arXiv:1804.07461), and readers of their data in three formats.

A folder of data has each task in one of these formats, each also with .gz; the first one that exists is read:

    CoLA/train.tsv, CoLA/dev.tsv ...       GLUE's own tab-separated files
    CoLA/train.jsonl, CoLA/dev.jsonl ...   {"text_a", "text_b", "label"}; train_*.jsonl is a part of a training set
    nyu-mll__glue/cola/train.jsonl.gz, .../validation.jsonl.gz    rows of the hub's schema, as `make eval-data` mirrors

MNLI has two evaluation sets, dev_matched and dev_mismatched.
"""

import csv
import gzip
import hashlib
import json
import math
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ablations.values import did_you_mean


class Example(NamedTuple):
    """An item of a task. `text_b` is "" in tasks with single sentences; `label` is a class index, or for STS-B a
    score."""

    id: str
    text_a: str
    text_b: str
    label: float


class Task(NamedTuple):
    """A task of GLUE.

    Args:
        folder: the name of its folder in GLUE's own files.
        labels: the names of the classes, in the order of the hub's ClassLabel; () for a regression.
        columns: the columns of text_a, text_b and the label in GLUE's TSV files; "" where there is no text_b. They are
            numbers for CoLA, whose files have no header.
        hub_columns: the columns of text_a and text_b in the hub's rows; "" where there is no text_b.
        cramming_metric: the metric that "Cramming" reports (Geiping and Goldstein 2022, table 3).
        leaderboard_metrics: the metrics that gluebenchmark.com averages.
        splits: the names of the evaluation sets.
    """

    folder: str
    labels: tuple[str, ...]
    columns: tuple[str | int, str | int, str | int]
    hub_columns: tuple[str, str]
    cramming_metric: str
    leaderboard_metrics: tuple[str, ...]
    splits: tuple[str, ...] = ("dev",)


BINARY, ENTAILMENT = ("0", "1"), ("entailment", "not_entailment")
NLI = ("entailment", "neutral", "contradiction")
PAIR, QUESTIONS = ("sentence1", "sentence2"), ("question1", "question2")
ACCURACY, F1 = ("accuracy", ("accuracy",)), ("f1", ("accuracy", "f1"))
TASKS = {
    "cola": Task("CoLA", BINARY, (3, "", 1), ("sentence", ""), "mcc", ("mcc",)),
    "sst2": Task("SST-2", BINARY, ("sentence", "", "label"), ("sentence", ""), *ACCURACY),
    "mrpc": Task("MRPC", BINARY, ("#1 String", "#2 String", "Quality"), PAIR, *F1),
    "stsb": Task("STS-B", (), (*PAIR, "score"), PAIR, "pearson", ("pearson", "spearman")),
    "qqp": Task("QQP", BINARY, (*QUESTIONS, "is_duplicate"), QUESTIONS, *F1),
    "mnli": Task(
        "MNLI", NLI, (*PAIR, "gold_label"), ("premise", "hypothesis"), *ACCURACY, ("dev_matched", "dev_mismatched")
    ),
    "qnli": Task("QNLI", ENTAILMENT, ("question", "sentence", "label"), ("question", "sentence"), *ACCURACY),
    "rte": Task("RTE", ENTAILMENT, (*PAIR, "label"), PAIR, *ACCURACY),
}
HUB = "nyu-mll__glue"
HUB_SPLITS = {"dev": "validation", "dev_matched": "validation_matched", "dev_mismatched": "validation_mismatched"}


def parse_task_names(text: str) -> list[str]:
    """The names of tasks of GLUE in a text with commas or blanks between them, each once; all tasks where the text is
    empty. Raises ValueError where a name is not a task of GLUE."""
    names = list(dict.fromkeys(text.replace(",", " ").split())) or list(TASKS)
    for name in names:
        if name not in TASKS:
            near = did_you_mean(name, TASKS)
            raise ValueError(f"there is no task {name!r} in GLUE{near}; there are {', '.join(TASKS)}")
    return names


def find_split(name: str, split: str, folders: Sequence[Path]) -> Path | None:
    """The file with a split of a task, from the first of the folders that has the split; None where no folder has it.
    `name`: the task; `split`: "train", "dev", "dev_matched" or "dev_mismatched"; `folders`: folders with data of
    GLUE."""
    patterns = [f"{split}.tsv", f"{split}.jsonl"] + (["train_*.jsonl"] if split == "train" else [])
    for folder in folders:
        for pattern in patterns:
            for path in [
                *sorted(folder.glob(f"{TASKS[name].folder}/{pattern}")),
                *sorted(folder.glob(f"{TASKS[name].folder}/{pattern}.gz")),
            ]:
                return path
        for rows in (folder / HUB / name, folder / name):  # the mirror of all tasks, or that of GLUE itself
            path = rows / f"{HUB_SPLITS.get(split, split)}.jsonl.gz"
            if path.exists():
                return path
    return None


def load_split(name: str, split: str, folders: Sequence[Path]) -> list[Example]:
    """The items of a split of a task, from the first of the folders that has the split.

    Args:
        name: the task.
        split: "train", "dev", "dev_matched" or "dev_mismatched".
        folders: folders with data of GLUE.

    Raises:
        ValueError: no folder has the split, or its file is damaged, has no rows, or has a row in another format; the
            message names file and row.
    """
    path = find_split(name, split, folders)
    if path is None:
        places = ", ".join(map(str, folders)) or "no folder"
        raise ValueError(f"{name}: {TASKS[name].folder}/{split}.tsv or .jsonl is not in {places}")
    task, examples = TASKS[name], []
    try:
        for number, (text_a, text_b, label) in enumerate(_rows(task, path), start=1):
            value = _label(task, label, f"{path}, row {number}")
            key = hashlib.sha256(json.dumps([text_a, text_b, value]).encode()).hexdigest()[:16]
            examples.append(Example(f"{key}-{number}", str(text_a), str(text_b), value))
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    if not examples:
        raise ValueError(f"{path} has no rows")
    return examples


def _rows(task: Task, path: Path) -> Iterable[tuple[Any, Any, Any]]:
    """The rows of a file of a task, each (text_a, text_b, label), with the label as the file has it: a class name, a
    class number or a score. Raises ValueError where a row or the header lacks a column."""
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8-sig") as lines:  # some editors write a byte order mark
        if ".jsonl" in path.name:
            first, second = task.hub_columns if path.parent.parent.name == HUB else ("text_a", "text_b")
            needed = (first, second, "label") if task.hub_columns[1] else (first, "label")
            for number, line in enumerate(lines, start=1):
                try:
                    row = json.loads(line)
                    texts = [row[name] for name in needed[:-1]]
                    label = row["label"]
                except (ValueError, KeyError, TypeError, RecursionError) as error:
                    raise ValueError(f"{path}, row {number}: {error!r}; needed are {', '.join(needed)}") from None
                if not all(isinstance(text, str) for text in texts):
                    raise ValueError(f"{path}, row {number}: {' and '.join(needed[:-1])} must be text")
                yield texts[0], texts[1] if len(texts) > 1 else "", label
            return
        # the files have no quoting: a quotation mark is text
        rows = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
        if isinstance(task.columns[0], int):
            columns: list[Any] = list(task.columns)
        else:
            header = next(rows, [])
            lacking = [column for column in task.columns if column and column not in header]
            if lacking:
                raise ValueError(f"{path} has no column {', '.join(map(str, lacking))}")
            columns = [header.index(str(column)) if column else "" for column in task.columns]
        for number, row in enumerate(rows, start=1):
            try:
                yield row[columns[0]], "" if columns[1] == "" else row[columns[1]], row[columns[2]]
            except IndexError:
                raise ValueError(f"{path}, row {number}: too few columns") from None


def _label(task: Task, label: Any, where: str) -> float:
    """The label of an item as a number: the index of its class, or in a regression its score.

    Args:
        task: the task.
        label: the label as the file has it: a class name, a class number or a score.
        where: file and row, for the error message.

    Raises:
        ValueError: the label is not one of this task.
    """
    if not task.labels:
        try:
            score = math.nan if isinstance(label, bool) else float(label)
        except (TypeError, ValueError, OverflowError):
            score = math.nan
        if not math.isfinite(score):
            raise ValueError(f"{where}: the score {str(label)[:60]!r} is no number")
        return score
    text = str(label)
    if text in task.labels:
        return float(task.labels.index(text))
    if type(label) is int and 0 <= label < len(task.labels):
        return float(label)
    raise ValueError(f"{where}: the label {text[:60]!r} is not one of {', '.join(task.labels)}")
