"""Checkpoints that know no layout: every weight and optimizer moment in fp32, by its parameter's name, in pieces.

A checkpoint is a folder `step_N`: one safetensors file for each rank with the pieces that this rank holds, named
`parameter|kind|start`, and `checkpoint.json`, written last. Without that file a folder is not a checkpoint. Since
pieces are found by name and place, a checkpoint of any number of ranks and any ZeRO stage loads at any other; nothing
in it is ever unpickled, and every file's sha256 is compared before it is used. Where tensor parallelism cuts a
parameter the key ends with `|rank|size`, and at another size the parameter is put together and cut anew.

Of some steps the weights are kept besides, in `weights_N`: the same files without the moments, whole before `step_N`
is, so that a run continued from there has them. They are never thinned; eval/weights.py reads them.

Saving is asynchronous: `save` copies the pieces to host memory and returns; a thread writes them.
"""

import hashlib
import json
import math
import os
import shutil
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from launch.manifest import Failed, replace_text, sync
from model.shard import dimension, full_shape, shard, unshard

MANIFEST = "checkpoint.json"
KINDS = ("weight", "exp_avg", "exp_avg_sq")  # the fp32 master weight, and AdamW's two moments


class CheckpointError(Failed):
    """A checkpoint could not be written or read; the message says what is left and what to do."""

    again = True  # storage that hiccups, a GPU that computes wrong


@dataclass(frozen=True)
class Piece:
    """Elements `start` to `start + len(data)` of a flattened parameter, or of one of its moments."""

    name: str
    kind: str
    start: int
    data: Tensor  # [n] fp32, a view of the live state
    shape: tuple[int, ...] = ()  # of the parameter, or of what this rank has of it under tensor parallelism
    rank: int = 0  # which part of the parameter that is, ...
    size: int = 1  # ... of how many (model/shard.py); 1: all of it

    @property
    def key(self) -> str:
        part = f"|{self.rank}|{self.size}" if self.size > 1 else ""
        return f"{self.name}|{self.kind}|{self.start}{part}"


class Checkpoints:
    """The checkpoints of one run.

    Args:
        keep: how many of the newest are kept.
        milestones: steps of which the weights are kept besides, and the tokens trained at each.
    """

    def __init__(self, folder: Path, keep: int, milestones: Mapping[int, int] = MappingProxyType({})):
        self.folder, self.keep, self.milestones = folder, keep, milestones
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
        kinds: dict[str, tuple[str, ...]] = {f"weights_{step}": KINDS[:1]} if step in self.milestones else {}
        kinds[f"step_{step}"] = KINDS
        for name in kinds if dist.get_rank() == 0 else ():
            shutil.rmtree(self.folder / name, ignore_errors=True)  # begun by a process that was killed
            (self.folder / name).mkdir(parents=True)
        dist.barrier()
        tensors = {piece.key: self._copy(piece) for piece in pieces}
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        what = {"step": step, "ranks": dist.get_world_size(), "tokens": self.milestones.get(step), "state": state}
        self.thread = threading.Thread(
            target=self._write, args=(kinds, tensors, what, dist.get_rank(), began), daemon=True
        )
        self.thread.start()
        self.stall = time.perf_counter() - began

    def _copy(self, piece: Piece) -> Tensor:
        if piece.key not in self.host or self.host[piece.key].shape != piece.data.shape:
            self.host[piece.key] = torch.empty_like(piece.data, device="cpu", pin_memory=piece.data.is_cuda)
        return self.host[piece.key].copy_(piece.data, non_blocking=True)

    def _write(
        self,
        kinds: dict[str, tuple[str, ...]],
        tensors: dict[str, Tensor],
        what: dict[str, Any],
        rank: int,
        began: float,
    ) -> None:
        """kinds: what goes into which folder."""
        file = self.folder
        try:
            for name, some in kinds.items():
                file = self.folder / name / f"rank_{rank}.safetensors"
                save_file({key: x for key, x in tensors.items() if key.split("|")[1] in some}, file)
                with open(file, "rb") as f:
                    os.fsync(f.fileno())
                    digest = hashlib.file_digest(f, "sha256").hexdigest()
                sums = {"sha256": digest, "bytes": file.stat().st_size}
                replace_text(file.with_suffix(".json"), json.dumps(sums))
                if rank == 0:
                    self._complete(file.parent, what, began)
            self.seconds = time.perf_counter() - began
            if rank == 0:
                self._thin()
        except Exception as error:  # the training thread must hear of it
            if file.suffix:
                file.unlink(missing_ok=True)
            self.error = error

    def _complete(self, target: Path, what: dict[str, Any], began: float) -> None:
        """Rank 0 waits for the files of all ranks (no collective: those belong to training), then says it is whole."""
        sums = [target / f"rank_{r}.json" for r in range(what["ranks"])]
        while not all(s.exists() for s in sums):
            time.sleep(0.02)
        files = {s.with_suffix(".safetensors").name: json.loads(s.read_text()) for s in sums}
        seconds = time.perf_counter() - began
        manifest = {**what, "files": files, "seconds": seconds, "stall": self.stall}
        sync(target.parent)
        replace_text(target / MANIFEST, json.dumps(manifest))
        for s in sums:
            s.unlink()

    def _thin(self) -> None:
        """Remove what is older than the newest `keep`. What cannot be removed, such as a file that somebody reads on a
        network file system, is no reason to stop: it is tried again after the next save."""
        oldest = number(whole(self.folder)[: self.keep][-1])
        for old in self.folder.glob("step_*"):
            if number(old) < oldest:
                with suppress(OSError):
                    # first the manifest: a folder that is half removed must not look whole
                    (old / MANIFEST).unlink(missing_ok=True)
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
        damaged: list[Path] = []
        # the first rank says which there are: on a network file system another node may not see the newest yet, nor may
        # a rank whose own part of it was written before the others'
        found: list[Any] = [[c.name for c in whole(self.folder) if before is None or number(c) < before]]
        dist.broadcast_object_list(found, src=0)
        for path in (self.folder / name for name in found[0]):
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
        """Later folders belong to a past that did not happen; damaged ones are kept aside for whoever wants to look."""
        for later in self.folder.glob("step_*"):
            if later in damaged:
                shutil.rmtree(self.folder / f"damaged_{later.name}", ignore_errors=True)
                later.rename(self.folder / f"damaged_{later.name}")
            elif number(later) > number(path):
                shutil.rmtree(later)
        for later in self.folder.glob("weights_*"):
            if number(later) > number(path):
                (later / MANIFEST).unlink(missing_ok=True)
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
    """Copy into `pieces` from whichever saved pieces overlap them, cut anew where tensor parallelism was another."""
    readers = [safe_open(path / name, framework="pt") for name in files]
    saved: dict[tuple[str, str], list[dict[int, Any]]] = {}  # (name, kind) -> for each part {start: slice}
    for reader in readers:
        for key in reader.keys():  # noqa: SIM118  # not a dictionary
            name, kind, start, *part = key.split("|")
            rank, size = map(int, part or (0, 1))
            parts = saved.setdefault((name, kind), [{} for _ in range(size)])
            parts[rank][int(start)] = reader.get_slice(key)
    for piece in pieces:
        filled, end = 0, piece.start + len(piece.data)
        parts = saved.get((piece.name, piece.kind), [{}] * piece.size)
        mine = parts[piece.rank] if len(parts) == piece.size else {0: _recut(piece, parts)}
        for a, data in mine.items():
            b = a + (len(data) if isinstance(data, Tensor) else data.get_shape()[0])
            low, high = max(a, piece.start), min(b, end)
            if low < high:
                piece.data[low - piece.start : high - piece.start] = data[low - a : high - a].to(piece.data.device)
                filled += high - low
        if filled != len(piece.data):
            raise CheckpointError(f"{path} lacks {piece.kind} of {piece.name}, or holds it in another shape")


def _recut(piece: Piece, parts: list[dict[int, Any]]) -> Tensor:
    """This rank's part of a parameter that was saved in other parts, flattened; empty where some of it is missing."""
    full = full_shape(piece.name, piece.shape, piece.size)
    shape = [n // len(parts) if i == dimension(piece.name) else n for i, n in enumerate(full)]
    flat = [torch.cat([part[start][:] for start in sorted(part)] or [torch.empty(0)]) for part in parts]
    if any(len(f) != math.prod(shape) for f in flat):
        return torch.empty(0)
    whole = unshard(piece.name, [f.view(shape) for f in flat])
    return shard(piece.name, whole, piece.rank, piece.size).flatten()
