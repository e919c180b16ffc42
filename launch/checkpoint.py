"""Checkpoints that know no layout: every weight and optimizer moment in fp32, by its parameter's name, in pieces.

A checkpoint is a folder `step_N`: one safetensors file for each rank with the pieces that this rank holds, named
`parameter|kind|start`, and `checkpoint.json`, written last. Without that file a folder is not a checkpoint. Since pieces
are found by name and place, a checkpoint of any number of ranks and any ZeRO stage loads at any other; nothing in it is
ever unpickled, and every file's sha256 is compared before it is used.

Saving is asynchronous: `save` copies the pieces to host memory and returns; a thread writes them.
"""

import hashlib
import json
import os
import shutil
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

MANIFEST = "checkpoint.json"
KINDS = ("weight", "exp_avg", "exp_avg_sq")  # the fp32 master weight, and AdamW's two moments


class CheckpointError(RuntimeError):
    """A checkpoint could not be written or read; the message says what is left and what to do."""


@dataclass(frozen=True)
class Piece:
    """Elements `start` to `start + len(data)` of a flattened parameter, or of one of its moments."""

    name: str
    kind: str
    start: int
    data: Tensor  # [n] fp32, a view of the live state

    @property
    def key(self) -> str:
        return f"{self.name}|{self.kind}|{self.start}"


class Checkpoints:
    """The checkpoints of one run.

    Args:
        keep: how many of the newest are kept.
    """

    def __init__(self, folder: Path, keep: int):
        self.folder, self.keep = folder, keep
        self.host: dict[str, Tensor] = {}  # copies of the pieces; pinned where there is a GPU, and used again
        self.thread: threading.Thread | None = None
        self.error: Exception | None = None
        self.stall = 0.0  # seconds for which the last save held up training
        self.seconds = 0.0  # seconds until the last checkpoint was whole

    def save(self, step: int, pieces: Iterable[Piece], state: dict[str, Any]) -> None:
        """Begin to write checkpoint `step`. All ranks call it together.

        Args:
            state: plain values, the same on all ranks; `load` gives them back.

        Raises:
            CheckpointError: when the save before this one has failed.
        """
        began = time.perf_counter()
        self.wait()
        target = self.folder / f"step_{step}"
        if dist.get_rank() == 0:
            shutil.rmtree(target, ignore_errors=True)  # begun by a process that was killed
            target.mkdir(parents=True)
        dist.barrier()
        tensors = {piece.key: self._copy(piece) for piece in pieces}
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        what = {"step": step, "ranks": dist.get_world_size(), "state": state}
        self.thread = threading.Thread(
            target=self._write, args=(target, tensors, what, dist.get_rank(), began), daemon=True
        )
        self.thread.start()
        self.stall = time.perf_counter() - began

    def _copy(self, piece: Piece) -> Tensor:
        if piece.key not in self.host or self.host[piece.key].shape != piece.data.shape:
            self.host[piece.key] = torch.empty_like(piece.data, device="cpu", pin_memory=piece.data.is_cuda)
        return self.host[piece.key].copy_(piece.data, non_blocking=True)

    def _write(self, target: Path, tensors: dict[str, Tensor], what: dict[str, Any], rank: int, began: float) -> None:
        file = target / f"rank_{rank}.safetensors"
        try:
            save_file(tensors, file)
            with open(file, "rb") as f:
                os.fsync(f.fileno())
                digest = hashlib.file_digest(f, "sha256").hexdigest()
            write_json(target / f"rank_{rank}.json", {"sha256": digest, "bytes": file.stat().st_size})
            if rank == 0:
                self._complete(target, what, began)
            self.seconds = time.perf_counter() - began
        except Exception as error:  # the training thread must hear of it
            file.unlink(missing_ok=True)
            self.error = error

    def _complete(self, target: Path, what: dict[str, Any], began: float) -> None:
        """Rank 0 waits for the files of all ranks (no collective: those belong to training), then says it is whole."""
        sums = [target / f"rank_{r}.json" for r in range(what["ranks"])]
        while not all(s.exists() for s in sums):
            time.sleep(0.02)
        files = {s.with_suffix(".safetensors").name: json.loads(s.read_text()) for s in sums}
        seconds = time.perf_counter() - began
        write_json(target / MANIFEST, {**what, "files": files, "seconds": seconds, "stall": self.stall})
        for s in sums:
            s.unlink()
        for old in whole(self.folder)[self.keep :]:
            # first the manifest: a folder that is half removed must not look whole
            (old / MANIFEST).unlink()
            shutil.rmtree(old)

    def wait(self) -> None:
        """Until the save that is under way is on the disk.

        Raises:
            CheckpointError: when it could not be written.
        """
        if self.thread:
            self.thread.join()
            self.thread = None
        self.check()

    def check(self) -> None:
        """Raises:
        CheckpointError: when the save in the background has failed.
        """
        if self.error:
            left = whole(self.folder)
            rest = f"the newest whole one is {left[0].name}" if left else "there is no other yet"
            raise CheckpointError(
                f"a checkpoint could not be written: {self.error}. Nothing else is lost: {rest}. "
                f"Make room in {self.folder} and give the same command again."
            ) from self.error

    def load(self, pieces: Iterable[Piece], before: int | None = None) -> dict[str, Any] | None:
        """Fill `pieces` from the newest checkpoint that is whole and undamaged. All ranks call it together.

        Args:
            before: take none of this step or later (to go back to before a loss spike).

        Returns:
            The state given to `save`, with "step"; None when there is no checkpoint.

        Raises:
            CheckpointError: when a checkpoint does not hold what the model needs, or all of them are damaged.
        """
        rank, ranks = dist.get_rank(), dist.get_world_size()
        damaged = []
        found = [c for c in whole(self.folder) if before is None or number(c) < before]
        for path in found:
            manifest = json.loads((path / MANIFEST).read_text())
            complaint = _first([_damage(path / f, sums) for f, sums in list(manifest["files"].items())[rank::ranks]])
            if not complaint:
                _fill(path, list(manifest["files"]), pieces)
            if rank == 0 and not complaint:
                self._forget_later(path, damaged)
            dist.barrier()
            if not complaint:
                return manifest["state"] | {"step": manifest["step"]}
            damaged.append(path)
            if rank == 0:
                print(f"{path} is damaged ({complaint}); the one before it is used", flush=True)
        if damaged:
            raise CheckpointError(f"every checkpoint in {self.folder} is damaged. To begin anew, remove that folder.")
        return None

    def _forget_later(self, path: Path, damaged: list[Path]) -> None:
        """Later folders belong to a past that did not happen; damaged ones are kept aside, for whoever wants to look."""
        for later in self.folder.glob("step_*"):
            if later in damaged:
                shutil.rmtree(self.folder / f"damaged_{later.name}", ignore_errors=True)
                later.rename(self.folder / f"damaged_{later.name}")
            elif number(later) > number(path):
                shutil.rmtree(later)


def whole(folder: Path) -> list[Path]:
    """The complete checkpoints in `folder`, the newest first."""
    return sorted((p.parent for p in folder.glob(f"step_*/{MANIFEST}")), key=number, reverse=True)


def number(path: Path) -> int:
    return int(path.name.rpartition("_")[2])


def _damage(path: Path, sums: dict[str, Any]) -> str:
    """What is wrong with a file, or nothing."""
    if not path.exists():
        return f"{path.name} is missing"
    if path.stat().st_size != sums["bytes"]:
        return f"{path.name} has {path.stat().st_size:,} bytes instead of {sums['bytes']:,}"
    with open(path, "rb") as f:
        same = hashlib.file_digest(f, "sha256").hexdigest() == sums["sha256"]
    return "" if same else f"the sha256 of {path.name} differs"


def _first(complaints: list[str]) -> str:
    """The first complaint of any rank: all must agree on what they load."""
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, complaints)
    return next((c for rank in everyone for c in rank if c), "")


def _fill(path: Path, files: list[str], pieces: Iterable[Piece]) -> None:
    """Copy into `pieces` from whichever saved pieces overlap them."""
    readers = [safe_open(path / name, framework="pt") for name in files]
    saved: dict[tuple[str, str], list[tuple[int, int, Any]]] = {}  # (name, kind) -> (start, end, slice)
    for reader in readers:
        for key in reader.keys():  # noqa: SIM118  # not a dictionary
            name, kind, start = key.split("|")
            data = reader.get_slice(key)
            saved.setdefault((name, kind), []).append((int(start), int(start) + data.get_shape()[0], data))
    for piece in pieces:
        filled, end = 0, piece.start + len(piece.data)
        for a, b, data in saved.get((piece.name, piece.kind), []):
            low, high = max(a, piece.start), min(b, end)
            if low < high:
                piece.data[low - piece.start : high - piece.start] = data[low - a : high - a].to(piece.data.device)
                filled += high - low
        if filled != len(piece.data):
            raise CheckpointError(f"{path} lacks {piece.kind} of {piece.name}, or holds it in another shape")


def write_json(path: Path, content: dict[str, Any]) -> None:
    replace_text(path, json.dumps(content))


def replace_text(path: Path, text: str) -> None:
    """Write a small file so that it is either the old one or the whole new one, also after a power loss."""
    tmp = path.with_name(path.name + ".tmp")
    with open(tmp, "w") as f:
        f.write(text)
        f.flush()
        os.fsync(f.fileno())
    os.replace(tmp, path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
