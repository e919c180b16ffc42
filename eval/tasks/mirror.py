"""Task data on disk: a folder of gzipped JSON lines with a manifest of hashes.

Evaluation reads only this folder, so that compute nodes need no network; fetch.py (`make eval-data`) fills it.
manifest.json is a list of {"dataset_path", "config", "split", "file", "rows", "sha256", "revision", "features", ...}.
Where an entry has no "features", the types of the columns are read from the data set's card beside its files.
"""

import functools
import gzip
import hashlib
import json
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import yaml

MANIFEST = "manifest.json"
REQUIRED_KEYS = ("dataset_path", "config", "split", "file", "sha256")  # of an entry of manifest.json


class Source(NamedTuple):
    """A split of a data set on the hub, such as the split with a task's items."""

    path: str  # organisation/name
    config: str  # "default" where the data set has only one
    split: str

    def __str__(self) -> str:
        return f"{self.path} ({self.config}, {self.split})"


class Mirror:
    """A folder of task data, a local mirror of splits on the hub. `entries`: {split: its entry in manifest.json}.
    Raises ValueError where there is no such folder, or its manifest is missing or damaged."""

    def __init__(self, folder: Path):
        self.folder = folder
        path = folder / MANIFEST
        try:
            entries = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            raise ValueError(
                f"{folder} holds no task data (no manifest.json). Make it with `make eval-data` on a machine that has "
                "a network, or name another folder: EVAL_DATA=folder"
            ) from None
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} is damaged: {error}. Remove it, and `make eval-data` makes it anew") from None
        self.entries: dict[Source, dict[str, Any]] = {}
        for number, entry in enumerate(entries if isinstance(entries, list) else [None], start=1):
            lacking = (
                REQUIRED_KEYS
                if not isinstance(entry, dict)
                else [k for k in REQUIRED_KEYS if not isinstance(entry.get(k), str)]
            )
            if lacking:
                raise ValueError(
                    f"{path} is not a manifest of task data: its entry {number} lacks {', '.join(lacking)}. "
                    "`make eval-data` writes one"
                )
            self.entries[Source(entry["dataset_path"], entry["config"], entry["split"])] = entry

    def changed(self, recorded: dict[str, Any]) -> bool:
        """Whether the data of a split has changed since an earlier evaluation. A split that is no longer in the folder
        counts as unchanged. `recorded`: the entry "data" or "examples" of a task in eval.json."""
        entry = self.entries.get(Source(recorded["path"], recorded["config"], recorded["split"]))
        return entry is not None and entry["sha256"] != recorded["sha256"]

    def why_unusable(self, source: Source) -> str:
        """Why a split cannot be used, as text; "" where it can. Its file may be missing, damaged or empty, or differ
        from the manifest."""
        entry = self.entries.get(source)
        if not entry:
            return f"{source} is not in {self.folder}"
        path = self.folder / entry["file"]
        if ".." in path.relative_to(self.folder).parts if path.is_relative_to(self.folder) else True:
            return f"{path} is not in {self.folder}"
        try:
            content = path.read_bytes()
        except OSError as error:
            return f"{path} is gone" if isinstance(error, FileNotFoundError) else f"{path} cannot be read: {error}"
        if hashlib.sha256(content).hexdigest() != entry["sha256"]:
            return f"{path} is not the file of the manifest"
        try:
            with gzip.open(path, "rb") as lines:
                return "" if lines.readline().strip() else f"{path} has no rows"
        except (OSError, EOFError, zlib.error) as error:
            return f"{path} is damaged: {error}"

    def why_any_unusable(self, sources: Iterable[Source]) -> str:
        """Why the first unusable split of several cannot be used, as text; "" where all can."""
        return next((why for source in sources if (why := self.why_unusable(source))), "")

    def table(self, source: Source) -> Any:
        """The rows of a split as a typed datasets.Dataset. Raises ValueError where the file is missing, or has another
        hash than in the manifest."""
        if why := self.why_unusable(source):
            raise ValueError(why)
        from datasets import Dataset, Features
        from datasets.info import DatasetInfosDict

        entry = self.entries[source]
        path = self.folder / entry["file"]
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            rows = [json.loads(line) for line in lines]
        if "features" in entry:
            features = Features.from_dict(entry["features"])
        else:
            infos = DatasetInfosDict.from_directory(str(self.folder / path.relative_to(self.folder).parts[0]))
            features = infos[source.config].features if source.config in infos else None
        return Dataset.from_list(rows, features=features)


def suite() -> dict[str, dict]:
    """The 27 tasks of BigScience's suite, the group `suite` of tasks.yaml: {task: its entry there}."""
    return groups()["suite"]


@functools.cache
def groups() -> dict[str, Any]:
    """The groups of tasks that tasks.yaml defines, `suite` and `multilingual`: {group: {task: its entry there}}."""
    content = yaml.safe_load(Path(__file__).with_name("tasks.yaml").read_text(encoding="utf-8"))
    return {name: content[name]["tasks"] for name in ("suite", "multilingual")}


def names_in_groups() -> set[str]:
    """The names of the tasks in all groups of tasks.yaml."""
    return {task for tasks in groups().values() for task in tasks}


def names(requested: Iterable[str]) -> list[str]:
    """The requested names without repetitions, with the groups `suite` and `multilingual` replaced by their tasks."""
    return list(dict.fromkeys(task for name in requested for task in groups().get(name, [name])))
