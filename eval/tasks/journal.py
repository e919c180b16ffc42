"""Stores the outcomes of scored requests (likelihoods or continuations) while an evaluation runs. With them an
evaluation can continue after a kill, and several processes can share the work."""

import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ablations import safe_files


def _line(content: Any) -> bytes:
    """A value as a line of the journal file: the hash of its JSON, then the JSON. `Journal.refresh` checks the hash."""
    text = json.dumps(content).encode() + b"\n"
    return _digest(text) + b" " + text


def _digest(text: bytes) -> bytes:
    return hashlib.sha256(text).hexdigest()[:16].encode()


def request_key(context: Sequence[int], continuation: Sequence[int]) -> str:
    """The key of a request in the journal: a hash of the token ids of its context and of its continuation."""
    return hashlib.sha256(np.array([len(context), *context, *continuation], np.int64).tobytes()).hexdigest()[:24]


class Journal:
    """The outcomes of requests to a model (scores or continuations), by the keys of the requests. They are kept in
    memory and, with a folder, also appended to a file after each batch.

    After a kill, the next process reads the outcomes in the folder. Several processes with the same requests divide the
    batches among them; rank 0 waits for the others and reads their files.

    Args:
        folder: where each process writes its own file; None: outcomes are kept in memory only.
        identity: the conditions of the outcomes, such as the hash of the weights. Files with other conditions are
            ignored.
        rank: the number of this process, from 0.
        ranks: the number of processes.
        working: a function that returns whether all other processes are still running.
    """

    def __init__(
        self,
        folder: Path | None = None,
        identity: dict | None = None,
        rank: int = 0,
        ranks: int = 1,
        working: Callable[[], bool] = lambda: False,
    ):
        self.folder, self.identity, self.rank, self.ranks, self.working = folder, identity, rank, ranks, working
        self.known: dict[str, Any] = {}
        self.read: dict[Path, int] = {}
        if folder is None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        self.refresh()
        # the process' id is in the name, so that two evaluations started by mistake do not write into one file
        self.file = safe_files.open_to_write(folder / f"{rank}-{os.getpid()}.jsonl", append=True)
        self._write_line({"identity": identity})

    def __contains__(self, key: str) -> bool:
        return key in self.known

    def get(self, key: str, default: Any) -> Any:
        """The outcome of a request. If it is unknown, rank 0 raises KeyError; other ranks return `default`, since their
        results are not used."""
        return self.known.get(key, default) if self.rank else self.known[key]

    def batches_of_rank(self, batches: list[Any]) -> list[Any]:
        """The batches that this process has to score: every `ranks`-th one. As `batches` are sorted by length, each
        process gets long and short ones."""
        return batches[self.rank :: self.ranks]

    def add(self, outcomes: dict[str, Any]) -> None:
        """Store the outcomes of a batch, {key of the request: outcome}."""
        self.known |= outcomes
        if self.folder:
            self._write_line(outcomes)

    def _write_line(self, content: Any) -> None:
        self.file.write(_line(content))
        self.file.flush()

    def refresh(self) -> None:
        """Read the outcomes that all processes have written since the last call. Damaged files and lines are skipped,
        also incomplete lines after a kill; their requests are scored again."""
        assert self.folder is not None
        head = _line({"identity": self.identity})
        for path in sorted(self.folder.glob("*.jsonl")):
            try:
                content = safe_files.read_bytes(path, self.read.get(path, 0)) or b""
            except safe_files.Damaged:
                continue
            if path in self.read or content.startswith(head):
                whole = content[: content.rfind(b"\n") + 1]
                self.read[path] = self.read.get(path, 0) + len(whole)
                for line in whole.splitlines(keepends=True):
                    digest, _, text = line.partition(b" ")
                    if digest == _digest(text):
                        self.known |= json.loads(text)

    def wait_until_complete(self, keys: list[str]) -> bool:
        """Wait on rank 0 until the outcomes of all keys are known. Returns False if another process has ended without
        its share, which this process then has to score itself; else True. Other ranks return True at once, since their
        results are not used."""
        if self.rank:
            return True
        while self.ranks > 1 and not all(key in self.known for key in keys):
            working = self.working()
            self.refresh()
            if not working and not all(key in self.known for key in keys):
                self.ranks = 1
                return False
            time.sleep(0.05)
        return True

    def close(self) -> None:
        if self.folder:
            self.file.close()
