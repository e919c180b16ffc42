"""Checkpoints of a run, which load at any number of ranks, ZeRO stage and tensor parallel size.

A checkpoint is a folder `step_N`. It has a safetensors file for each rank, with the fp32 weights and the optimizer
moments that the rank holds. `checkpoint.json` is written last; a folder without it is no checkpoint.

Each rank holds fragments of parameters: runs of elements. A file names each by its parameter and its first element
(`rundir.FragmentKey`), so that another number of ranks finds what it needs. Where tensor parallelism divides a
parameter, the name also has the number of the part; at another size the parameter is joined and divided again. Nothing
is ever unpickled, and a file is read only after its sha256 was compared.

At milestones (the steps of layout.eval_at) the weights are also saved in a folder `weights_N`, for eval/weights.py. It
has the files of `step_N` without the optimizer moments. It is complete before `step_N` is, so that a run which
continues from `step_N` has it.

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
    """Consecutive elements of a parameter, or of one of its optimizer moments, that this rank holds: elements `start`
    to `start + len(data)` of the flattened tensor, or of its flattened part where tensor parallelism cuts it."""

    name: str  # of the parameter
    kind: str  # one of KINDS
    start: int
    data: Tensor  # [n] fp32, a view of the live state
    shape: tuple[int, ...] = ()  # shape of the parameter, or of this rank's part where tensor parallelism cuts it
    rank: int = 0  # the number of this part (model/shard.py)
    size: int = 1  # the number of parts into which tensor parallelism cuts the parameter; 1: it is not cut

    @property
    def key(self) -> str:
        """The fragment's name in a safetensors file."""
        return str(FragmentKey(self.name, self.kind, self.start, self.rank, self.size))


class Checkpoints:
    """The checkpoints of one run: saves them in the background, loads them, and removes old ones.

    Args:
        folder: the run's folder of checkpoints.
        keep: how many of the newest checkpoints are kept.
        milestones: {step: tokens trained on by then}, for the steps at which the weights are also saved for evaluation.
        identity: {name: hash} of the run and its data, such as {"fingerprint": ...}. Each checkpoint stores these
            hashes; loading one with another hash raises RunFailed.
    """

    def __init__(
        self,
        folder: Path,
        keep: int,
        milestones: Mapping[int, int] = MappingProxyType({}),
        identity: Mapping[str, str] = MappingProxyType({}),
    ):
        self.folder, self.keep, self.milestones, self.identity = folder, keep, milestones, dict(identity)
        self.host_copies: dict[str, Tensor] = {}  # {Fragment.key: copy}, pinned with a GPU; every save uses them again
        self.thread: threading.Thread | None = None
        self.error: Exception | None = None
        self.stall = 0.0  # seconds for which training waited in the last call of `save`
        self.seconds = 0.0  # seconds from the last call of `save` until the checkpoint was complete; 0 before the first

    def save(self, step: int, fragments: Iterable[Fragment], state: dict[str, Any]) -> None:
        """Copy the tensors to host memory, and begin to write checkpoint `step` from a thread. All ranks call this
        method together.

        Args:
            step: the number of the last step that was trained.
            fragments: this rank's share of weights and optimizer moments.
            state: everything else that a continued run needs, as values that JSON can hold, equal on all ranks; `load`
                returns it.

        Raises:
            CheckpointError: the previous save has failed.
        """
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
        copies, key, data = self.host_copies, fragment.key, fragment.data
        if key not in copies or copies[key].shape != data.shape:
            copies[key] = torch.empty_like(data, device="cpu", pin_memory=data.is_cuda)
        return copies[key].copy_(data, non_blocking=True)

    def _write(
        self,
        folders: dict[str, tuple[str, ...]],
        tensors: dict[str, Tensor],
        index: dict[str, Any],
        rank: int,
        began: float,
    ) -> None:
        """Write this rank's tensors to its files. The first rank also completes the checkpoint and removes old ones.
        Runs on a thread; an error is kept in `self.error`, for `raise_save_error` on the training thread.

        Args:
            folders: {folder name: which of KINDS ("weight", "exp_avg", "exp_avg_sq") are written into the folder}.
            tensors: {`Fragment.key`: the fragment's copy on the host}.
            index: the content of checkpoint.json, without the entries "files", "seconds" and "stall".
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
                self._remove_old_checkpoints()
        except Exception as error:  # the training thread must hear of it
            if file.suffix:
                file.unlink(missing_ok=True)
            self.error = error

    def _write_index_when_complete(self, target: Path, index: dict[str, Any], began: float) -> None:
        """On the first rank: wait until all ranks have written their files to the folder `target`, then write
        checkpoint.json.

        This thread polls the file system. It cannot call a collective, which would mix with the collectives of
        training.

        Args:
            target: the checkpoint's folder.
            index: as for `_write`.
            began: when `save` was called, by time.perf_counter.
        """
        checksum_files = [target / f"rank_{r}.json" for r in range(index["ranks"])]
        while not all(path.exists() for path in checksum_files):
            time.sleep(0.02)
        files = {path.with_suffix(".safetensors").name: safe_files.read_json(path) for path in checksum_files}
        safe_files.wait_until_on_disk(target.parent, deep=False)
        seconds = time.perf_counter() - began
        rundir.write_checkpoint(target, {**index, "files": files, "seconds": seconds, "stall": self.stall})
        for path in checksum_files:
            path.unlink()

    def _remove_old_checkpoints(self) -> None:
        """Remove all checkpoints but the newest `keep`. If one cannot be removed, as on a network file system while a
        process reads it, training goes on, and the next save tries again."""
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
        self.raise_save_error()

    def raise_save_error(self) -> None:
        """Raise CheckpointError if the save in the background has failed. Does not wait for a save that is under
        way."""
        if self.error:
            complete = rundir.checkpoints(self.folder)
            newest = f"the newest whole one is {complete[0].name}" if complete else "there is no other yet"
            raise CheckpointError(
                f"a checkpoint could not be written: {self.error}. Nothing else is lost: {newest}. "
                f"Make room in {self.folder} and give the same command again."
            ) from self.error

    def load(self, fragments: Iterable[Fragment], before: int | None = None) -> dict[str, Any] | None:
        """Fill `fragments` from the newest checkpoint that is complete and undamaged. All ranks call this method
        together.

        Newer checkpoints are renamed where they are damaged, else removed, since training will reach their steps again.

        Args:
            fragments: this rank's share of weights and optimizer moments; their tensors are overwritten.
            before: consider only checkpoints of steps before this one, to return to a state before a loss spike; None:
                all.

        Returns:
            The `state` that was given to `save`, with "step" added; None when there is no checkpoint.

        Raises:
            CheckpointError: the checkpoint lacks elements that the model needs, or all checkpoints are damaged.
            RunFailed: the checkpoint is of another run (see `identity` of the class).
        """
        damaged: list[Path] = []
        # all ranks take the first rank's list: on a network file system the newest checkpoint may not be visible yet on
        # another node, or to a rank whose own part of it was written before the others'
        candidates = [
            path for path in rundir.checkpoints(self.folder) if before is None or (step_of(path) or 0) < before
        ]
        names: list[Any] = [[path.name for path in candidates]]
        dist.broadcast_object_list(names, src=0)
        for path in (self.folder / name for name in names[0]):
            index, damage = _read_and_verify(path)
            if not damage:
                self._check_identity(path, index)
                _fill_fragments(path, list(index["files"]), fragments)
            if dist.get_rank() == 0 and not damage:
                self._remove_later_checkpoints(path, damaged)
            dist.barrier()
            if not damage:
                return index["state"] | {"step": index["step"]}
            damaged.append(path)
            if dist.get_rank() == 0:
                print(f"{path} is damaged ({damage}); the one before it is used", flush=True)
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
        """Remove the checkpoints of later steps than that of the folder `path`, from which training continues. The
        folders in `damaged` are kept for inspection, renamed from step_N to damaged_step_N."""
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
    """Read checkpoint.json in the folder `path`, and compare the sha256 of the checkpoint's files. Each rank hashes a
    share of the files; all ranks call this function together and get the same result.

    Returns:
        (the content of checkpoint.json, a sentence about the first damage that was found, or "" where there is none).
    """
    index: dict[str, Any] = {}
    damages = []
    try:
        index = rundir.read_checkpoint(path)
    except Damaged as error:
        damages = [str(error)]
    if damage := _first_nonempty_over_ranks(damages):
        return {}, damage
    share = list(index["files"].items())[dist.get_rank() :: dist.get_world_size()]
    damages = [safe_files.describe_damage(path / name, recorded) for name, recorded in share]
    return index, _first_nonempty_over_ranks(damages)


def _first_nonempty_over_ranks(sentences: list[str]) -> str:
    """Gather the `sentences` of all ranks, and return the first that is not empty; "" where all are. All ranks call
    this function together and get the same result."""
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, sentences)
    return next((sentence for of_rank in gathered for sentence in of_rank if sentence), "")


def _fill_fragments(path: Path, files: list[str], fragments: Iterable[Fragment]) -> None:
    """Overwrite the tensors of this rank's `fragments` with the elements saved in a checkpoint, whatever its tensor
    parallel size. `path`: the checkpoint's folder; `files`: the names of its safetensors files. Raises CheckpointError
    where elements of a parameter are missing, or the parameter was saved in another shape."""
    readers = [safe_open(path / name, framework="pt") for name in files]
    saved: dict[tuple[str, str], list[dict[int, Any]]] = {}  # (name, kind): for each part {start: slice}
    for reader in readers:
        for key in reader.keys():  # noqa: SIM118  # not a dictionary
            name, kind, start, rank, size = FragmentKey.parse(key)
            parts = saved.setdefault((name, kind), [{} for _ in range(size)])
            parts[rank][start] = reader.get_slice(key)
    for fragment in fragments:
        filled, end = 0, fragment.start + len(fragment.data)
        parts = saved.get((fragment.name, fragment.kind), [{}] * fragment.size)
        part = parts[fragment.rank] if len(parts) == fragment.size else {0: _shard_from_other_layout(fragment, parts)}
        for data_start, data in part.items():
            data_end = data_start + (len(data) if isinstance(data, Tensor) else data.get_shape()[0])
            low, high = max(data_start, fragment.start), min(data_end, end)  # the elements that both have
            if low < high:
                target = fragment.data[low - fragment.start : high - fragment.start]
                target.copy_(data[low - data_start : high - data_start])
                filled += high - low
        if filled != len(fragment.data):
            raise CheckpointError(f"{path} lacks {fragment.kind} of {fragment.name}, or holds it in another shape")


def _shard_from_other_layout(fragment: Fragment, parts: list[dict[int, Any]]) -> Tensor:
    """This rank's shard of the tensor to which `fragment` belongs, from a checkpoint of another tensor parallel size.
    The saved shards are joined, and the whole is divided again.

    `parts`: for each saved shard {start: slice of the safetensors file}. Returns the shard flattened, [n]; empty where
    elements are missing.
    """
    full = full_shape(fragment.name, fragment.shape, fragment.size)
    shape = [n // len(parts) if i == shard_dimension(fragment.name) else n for i, n in enumerate(full)]
    flat = [torch.cat([part[start][:] for start in sorted(part)] or [torch.empty(0)]) for part in parts]
    if any(len(f) != math.prod(shape) for f in flat):
        return torch.empty(0)
    whole = unshard(fragment.name, [f.view(shape) for f in flat])
    return shard(fragment.name, whole, fragment.rank, fragment.size).flatten()
