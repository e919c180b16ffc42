"""Stores the outcomes of scored requests (likelihoods, continuations) while an evaluation runs, so that the evaluation
can continue after a kill, and several processes can share the work."""

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
    """A value as a line of the journal file: a hash, then the value as JSON. By the hash `Journal.refresh` notices
    damage."""
    text = json.dumps(content).encode() + b"\n"
    return _digest(text) + b" " + text


def _digest(text: bytes) -> bytes:
    return hashlib.sha256(text).hexdigest()[:16].encode()


def request_key(context: Sequence[int], continuation: Sequence[int]) -> str:
    """The key of a request in the journal: a hash of the token ids of its context and of its continuation."""
    return hashlib.sha256(np.array([len(context), *context, *continuation], np.int64).tobytes()).hexdigest()[:24]


class Journal:
    """The outcomes of requests to a model (scores or continuations), by the keys of the requests. They are kept in
    memory and, with a folder, also in a file to which the outcomes of every batch are appended.

    After a kill, the next process starts with the outcomes in the folder. Several processes with the same requests
    divide the batches among them; rank 0 waits for the other ranks and reads what they wrote.

    Args:
        folder: where each process writes a file of its own; None: outcomes are kept in memory only.
        identity: what the outcomes depend on, such as the hash of the weights; files with another identity are ignored.
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
        """The outcome of the request with key `key`. For an unknown outcome rank 0 raises KeyError, and other ranks,
        whose results are not used, return `default`."""
        return self.known.get(key, default) if self.rank else self.known[key]

    def batches_of_rank(self, batches: list[Any]) -> list[Any]:
        """The batches that this process has to score: every `ranks`-th of `batches`, so that each process gets long and
        short ones."""
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
        """Read the outcomes that all processes have written since the last call. Damaged files, damaged lines and
        incomplete lines, which a kill may leave, are skipped, and the requests in them are scored again."""
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
        """Wait on rank 0 until the outcomes of all keys are known, and return True. Return False where another process
        has ended without finishing its share, which this process then has to score itself. Other ranks, whose results
        are not used, return True at once."""
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
