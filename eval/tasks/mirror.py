"""Task data on disk: a folder of gzipped JSON lines with a manifest of hashes.

Evaluation reads nothing else, so that compute nodes need no network; fetch.py (`make eval-data`) fills such a
folder. manifest.json is a list of {"dataset_path", "config", "split", "file", "rows", "sha256", "revision", "features",
...}. Where a manifest has no "features", the types of the columns are those that the card beside the files declares.
"""

import functools
import gzip
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import yaml


class Source(NamedTuple):
    """A split of a data set on the hub: what one task is evaluated on."""

    path: str  # organisation/name
    config: str  # "default" where the data set has only one
    split: str

    def __str__(self) -> str:
        return f"{self.path} ({self.config}, {self.split})"


class Mirror:
    """A folder of task data.

    Raises:
        ValueError: when there is no such folder or it has no manifest.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        try:
            entries = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ValueError(
                f"{folder} holds no task data (no manifest.json). Make it with `make eval-data` on a machine that has "
                "a network, or name another folder: EVAL_DATA=folder"
            ) from None
        self.entries = {Source(e["dataset_path"], e["config"], e["split"]): e for e in entries}

    def changed(self, read: dict[str, Any]) -> bool:
        """Whether the split has another file by now than items were read from ("data" of a task in eval.json). What is
        no longer here has not changed."""
        entry = self.entries.get(Source(read["path"], read["config"], read["split"]))
        return entry is not None and entry["sha256"] != read["sha256"]

    def lacks(self, source: Source) -> str:
        """Why the split cannot be used: it is not there, or not as the manifest says. Empty: it can."""
        entry = self.entries.get(source)
        if not entry:
            return f"{source} is not in {self.folder}"
        try:
            found = hashlib.sha256((self.folder / entry["file"]).read_bytes()).hexdigest()
        except FileNotFoundError:
            return f"{self.folder / entry['file']} is gone"
        return "" if found == entry["sha256"] else f"{self.folder / entry['file']} is not the file of the manifest"

    def table(self, source: Source) -> Any:
        """The rows as a datasets.Dataset, typed. Checks the hash of what it reads."""
        if why := self.lacks(source):
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
    """The tasks of the group `suite`: {name: entry} of tasks.yaml."""
    return groups()["suite"]


@functools.cache
def groups() -> dict[str, Any]:
    """What names several tasks: {group: the `tasks` of tasks.yaml}."""
    content = yaml.safe_load(Path(__file__).with_name("tasks.yaml").read_text(encoding="utf-8"))
    return {name: content[name]["tasks"] for name in ("suite", "multilingual")}


def names(asked: Iterable[str]) -> list[str]:
    """Task names, with `suite` and `multilingual` in their members."""
    return list(dict.fromkeys(task for name in asked for task in groups().get(name, [name])))
