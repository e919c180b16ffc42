"""Checkpoints that load at any parallel layout: fp32 weights and optimizer moments, in fragments named by parameter.

A checkpoint is a folder `step_N`: one safetensors file for each rank with the fragments that this rank holds, under
the names of `rundir.FragmentKey`, and `checkpoint.json`, written last. Without that file a folder is not a checkpoint.
Since fragments are found by name and position, a checkpoint of any number of ranks and any ZeRO stage loads at any
other. Nothing in it is ever unpickled, and the sha256 of every file is compared before it is used, that of
`checkpoint.json` too. Where tensor parallelism cuts a parameter, the name says which part it is; at another tensor
parallel size the parameter is put together and cut anew.

At milestones (the steps of layout.eval_at) the weights are saved besides, in a folder `weights_N`: files like those of
`step_N`, without the optimizer moments. It is complete before `step_N` is, so that a run continued from there has it,
and is never removed; eval/weights.py reads it.

Saving is asynchronous: `save` copies the fragments to host memory and returns; a thread writes them.
"""

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

from ablations import rundir, safe_files
from ablations.rundir import FragmentKey, step_of
from ablations.safe_files import Damaged
from launch.manifest import RunFailed
from model.shard import full_shape, shard, shard_dimension, unshard

KINDS = ("weight", "exp_avg", "exp_avg_sq")  # the fp32 master weight, and AdamW's two moments


class CheckpointError(RunFailed):
    """A checkpoint could not be written or read; the message says which checkpoints are left and what to do."""

    retry = True  # a storage that failed for a moment, or a GPU that computed a wrong number, may work next time


@dataclass(frozen=True)
class Fragment:
    """A slice of one parameter, or of one of its optimizer moments, that this rank holds: elements `start` to `start +
    len(data)` of the flattened tensor. `kind`: "weight" (the fp32 master weight), "exp_avg" or "exp_avg_sq" (AdamW's
    moments)."""

    name: str
    kind: str
    start: int
    data: Tensor  # [n] fp32, a view of the live state
    shape: tuple[int, ...] = ()  # of the parameter, or of this rank's part of it under tensor parallelism
    rank: int = 0  # which part of the parameter that is, ...
    size: int = 1  # ... of how many (model/shard.py); 1: all of it

    @property
    def key(self) -> str:
        return str(FragmentKey(self.name, self.kind, self.start, self.rank, self.size))


class Checkpoints:
    """The checkpoints of one run: saves them in the background, loads them, and removes old ones.

    Args:
        folder: the run's folder of checkpoints.
        keep: how many of the newest checkpoints are kept.
        milestones: {step: tokens trained on by then} of the steps at which the weights are saved for evaluation too.
        identity: {name: hash} of the run and its data, such as {"fingerprint": ...}. It is written into each
            checkpoint; loading a checkpoint in which one of these hashes differs raises RunFailed.
    """

    def __init__(
        self,
        folder: Path,
        keep: int,
        milestones: Mapping[int, int] = MappingProxyType({}),
        identity: Mapping[str, str] = MappingProxyType({}),
    ):
        self.folder, self.keep, self.milestones, self.identity = folder, keep, milestones, dict(identity)
        self.host: dict[str, Tensor] = {}  # copies of the fragments; pinned where there is a GPU, and used again
        self.thread: threading.Thread | None = None
        self.error: Exception | None = None
        self.stall = 0.0  # seconds for which the last save held up training
        self.seconds = 0.0  # seconds until the last checkpoint was whole

    def save(self, step: int, fragments: Iterable[Fragment], state: dict[str, Any]) -> None:
        """Copy the state to host memory and begin to write checkpoint `step` from a thread. All ranks call this method
        together. `fragments`: this rank's share of weights and optimizer moments; `state`: everything else that a
        continued run needs, as values that JSON can hold, equal on all ranks; `load` returns it. Raises CheckpointError
        where the previous save has failed."""
        began = time.perf_counter()
        self.wait()
        folders: dict[str, tuple[str, ...]] = {f"weights_{step}": KINDS[:1]} if step in self.milestones else {}
        folders[f"step_{step}"] = KINDS
        for name in folders if dist.get_rank() == 0 else ():
            shutil.rmtree(self.folder / name, ignore_errors=True)  # begun by a process that was killed
            (self.folder / name).mkdir(parents=True)
        dist.barrier()
        tensors = {fragment.key: self._copy(fragment) for fragment in fragments}
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        index = {
            "step": step,
            "ranks": dist.get_world_size(),
            "tokens": self.milestones.get(step),
            "run": self.identity,
            "state": state,
        }
        self.thread = threading.Thread(
            target=self._write, args=(folders, tensors, index, dist.get_rank(), began), daemon=True
        )
        self.thread.start()
        self.stall = time.perf_counter() - began

    def _copy(self, fragment: Fragment) -> Tensor:
        if fragment.key not in self.host or self.host[fragment.key].shape != fragment.data.shape:
            self.host[fragment.key] = torch.empty_like(fragment.data, device="cpu", pin_memory=fragment.data.is_cuda)
        return self.host[fragment.key].copy_(fragment.data, non_blocking=True)

    def _write(
        self,
        folders: dict[str, tuple[str, ...]],
        tensors: dict[str, Tensor],
        index: dict[str, Any],
        rank: int,
        began: float,
    ) -> None:
        """Write this rank's tensors; on rank 0 also complete the checkpoint and remove old ones. Runs on a thread; an
        error is kept in `self.error`, which `check` raises on the training thread.

        Args:
            folders: {name of a folder: the kinds of tensors (KINDS) that go into it}.
            tensors: {`Fragment.key`: the fragment's copy on the host}.
            index: the content of checkpoint.json but for the files and times.
            rank: the number of this rank.
            began: when `save` was called, by time.perf_counter.
        """
        file = self.folder
        try:
            for name, kinds in folders.items():
                file = self.folder / name / f"rank_{rank}.safetensors"
                save_file({key: x for key, x in tensors.items() if FragmentKey.parse(key).kind in kinds}, file)
                with open(file, "rb") as written:
                    os.fsync(written.fileno())
                safe_files.write_json(file.with_suffix(".json"), safe_files.checksum(file))
                if rank == 0:
                    self._write_index_when_complete(file.parent, index, began)
            self.seconds = time.perf_counter() - began
            if rank == 0:
                self._remove_old()
        except Exception as error:  # the training thread must hear of it
            if file.suffix:
                file.unlink(missing_ok=True)
            self.error = error

    def _write_index_when_complete(self, target: Path, index: dict[str, Any], began: float) -> None:
        """On rank 0: wait until the files of all ranks are written to the folder `target`, then write checkpoint.json,
        which makes the folder a checkpoint. The file system is polled, since collectives from this thread would mix
        with training's. `index`: the content of checkpoint.json but for the files and times; `began`: when `save` was
        called, by time.perf_counter."""
        sums = [target / f"rank_{r}.json" for r in range(index["ranks"])]
        while not all(path.exists() for path in sums):
            time.sleep(0.02)
        files = {path.with_suffix(".safetensors").name: safe_files.read_json(path) for path in sums}
        safe_files.wait_until_on_disk(target.parent, deep=False)
        seconds = time.perf_counter() - began
        rundir.write_checkpoint(target, {**index, "files": files, "seconds": seconds, "stall": self.stall})
        for path in sums:
            path.unlink()

    def _remove_old(self) -> None:
        """Remove all checkpoints but the newest `keep`. A checkpoint that cannot be removed (on a network file system,
        because a process still reads it) does not stop training: its removal is tried again after the next save."""
        oldest = step_of(rundir.checkpoints(self.folder)[: self.keep][-1]) or 0
        for old in self.folder.glob("step_*"):
            step = step_of(old)
            if step is not None and step < oldest:
                with suppress(OSError):
                    # first the index: a folder that is half removed must not look whole
                    (old / rundir.CHECKPOINT).unlink(missing_ok=True)
                    shutil.rmtree(old)

    def wait(self) -> None:
        """Wait until the save in the background, if any, is on the disk. Raises CheckpointError where it failed."""
        if self.thread:
            self.thread.join()
            self.thread = None
        self.check()

    def check(self) -> None:
        """Raise CheckpointError when the save in the background has failed; return at once while it is under way."""
        if self.error:
            left = rundir.checkpoints(self.folder)
            rest = f"the newest whole one is {left[0].name}" if left else "there is no other yet"
            raise CheckpointError(
                f"a checkpoint could not be written: {self.error}. Nothing else is lost: {rest}. "
                f"Make room in {self.folder} and give the same command again."
            ) from self.error

    def load(self, fragments: Iterable[Fragment], before: int | None = None) -> dict[str, Any] | None:
        """Fill `fragments` from the newest checkpoint that is whole and undamaged. Checkpoints that were found damaged
        are renamed, and all others of later steps removed. All ranks call this function together.

        Args:
            fragments: this rank's share of weights and optimizer moments; their tensors are overwritten.
            before: consider only checkpoints of steps before this one, to return to a state before a loss spike; None:
                all.

        Returns:
            The `state` that was given to `save`, with "step" added; None when there is no checkpoint.

        Raises:
            CheckpointError: a checkpoint lacks elements that the model needs, or all checkpoints are damaged.
            RunFailed: the checkpoint is of another run (see `identity` of the class).
        """
        damaged: list[Path] = []
        # the first rank says which there are: on a network file system another node may not see the newest yet, nor may
        # a rank whose own part of it was written before the others'
        candidates = [
            path for path in rundir.checkpoints(self.folder) if before is None or (step_of(path) or 0) < before
        ]
        names: list[Any] = [[path.name for path in candidates]]
        dist.broadcast_object_list(names, src=0)
        for path in (self.folder / name for name in names[0]):
            index, complaint = _read_and_verify(path)
            if not complaint:
                self._check_identity(path, index)
                _fill_fragments(path, list(index["files"]), fragments)
            if dist.get_rank() == 0 and not complaint:
                self._remove_later_checkpoints(path, damaged)
            dist.barrier()
            if not complaint:
                return index["state"] | {"step": index["step"]}
            damaged.append(path)
            if dist.get_rank() == 0:
                print(f"{path} is damaged ({complaint}); the one before it is used", flush=True)
        if damaged:
            raise CheckpointError(f"every checkpoint in {self.folder} is damaged. To begin anew, remove that folder.")
        return None

    def _check_identity(self, path: Path, index: dict[str, Any]) -> None:
        saved = index.get("run") or {}
        if differing := [key for key in self.identity.keys() & saved.keys() if saved[key] != self.identity[key]]:
            raise RunFailed(
                f"{path} is of another run: its {', '.join(sorted(differing))} differs. Remove that folder."
            )

    def _remove_later_checkpoints(self, path: Path, damaged: list[Path]) -> None:
        """Before training continues from the checkpoint in `path`: remove the checkpoints of later steps, which are
        trained again, and rename each folder in `damaged` from step_N to damaged_step_N, so that it can be inspected.
        """
        newest = step_of(path) or 0
        for folder in [*self.folder.glob("step_*"), *self.folder.glob("weights_*")]:
            step = step_of(folder)
            if folder in damaged:
                shutil.rmtree(self.folder / f"damaged_{folder.name}", ignore_errors=True)
                folder.rename(self.folder / f"damaged_{folder.name}")
            elif step is not None and step > newest:
                (folder / rundir.CHECKPOINT).unlink(missing_ok=True)
                shutil.rmtree(folder)


def _read_and_verify(path: Path) -> tuple[dict[str, Any], str]:
    """Read the index of the checkpoint in folder `path` and compare the hashes of its files, of which each rank hashes
    a share. All ranks call this function together. Returns (the content of checkpoint.json, a sentence about what is
    damaged, or "" when nothing is); the sentence is equal on all ranks."""
    index: dict[str, Any] = {}
    complaints = []
    try:
        index = rundir.read_checkpoint(path)
    except Damaged as error:
        complaints = [str(error)]
    if complaint := _first_complaint_of_all_ranks(complaints):
        return {}, complaint
    share = list(index["files"].items())[dist.get_rank() :: dist.get_world_size()]
    return index, _first_complaint_of_all_ranks([safe_files.damage(path / name, sums) for name, sums in share])


def _first_complaint_of_all_ranks(complaints: list[str]) -> str:
    """Exchange complaints between ranks, and return the first complaint of the lowest rank that has one; "" where no
    rank has any. `complaints`: sentences of this rank, of which empty ones do not count. All ranks call this function
    together and get one result, since they have to agree on whether to load a checkpoint."""
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, complaints)
    return next((complaint for rank_complaints in gathered for complaint in rank_complaints if complaint), "")


def _fill_fragments(path: Path, files: list[str], fragments: Iterable[Fragment]) -> None:
    """Fill this rank's fragments from the saved fragments that overlap them. `path`: the checkpoint's folder; `files`:
    the names of its safetensors files; `fragments`: their tensors are overwritten. Where the checkpoint was saved at
    another tensor parallel size, parameters are joined and divided anew. Raises CheckpointError where elements of a
    parameter are missing, or the parameter was saved in another shape."""
    readers = [safe_open(path / name, framework="pt") for name in files]
    saved: dict[tuple[str, str], list[dict[int, Any]]] = {}  # (name, kind) -> for each part {start: slice}
    for reader in readers:
        for key in reader.keys():  # noqa: SIM118  # not a dictionary
            name, kind, start, rank, size = FragmentKey.parse(key)
            parts = saved.setdefault((name, kind), [{} for _ in range(size)])
            parts[rank][start] = reader.get_slice(key)
    for fragment in fragments:
        filled, end = 0, fragment.start + len(fragment.data)
        parts = saved.get((fragment.name, fragment.kind), [{}] * fragment.size)
        part = parts[fragment.rank] if len(parts) == fragment.size else {0: _part_from_other_layout(fragment, parts)}
        for a, data in part.items():
            b = a + (len(data) if isinstance(data, Tensor) else data.get_shape()[0])
            low, high = max(a, fragment.start), min(b, end)
            if low < high:
                target = fragment.data[low - fragment.start : high - fragment.start]
                target.copy_(data[low - a : high - a])
                filled += high - low
        if filled != len(fragment.data):
            raise CheckpointError(f"{path} lacks {fragment.kind} of {fragment.name}, or holds it in another shape")


def _part_from_other_layout(fragment: Fragment, parts: list[dict[int, Any]]) -> Tensor:
    """This rank's part of a parameter, or of a moment, that was saved at another tensor parallel size: [n], flattened;
    empty where some of it is missing. `fragment`: names the tensor and the part; `parts`: for each part that was saved
    {start: slice of the safetensors file}."""
    full = full_shape(fragment.name, fragment.shape, fragment.size)
    shape = [n // len(parts) if i == shard_dimension(fragment.name) else n for i, n in enumerate(full)]
    flat = [torch.cat([part[start][:] for start in sorted(part)] or [torch.empty(0)]) for part in parts]
    if any(len(f) != math.prod(shape) for f in flat):
        return torch.empty(0)
    whole = unshard(fragment.name, [f.view(shape) for f in flat])
    return shard(fragment.name, whole, fragment.rank, fragment.size).flatten()
