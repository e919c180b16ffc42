"""launch/checkpoint.py by itself: any width reads any width, and nothing damaged or half-written is taken for whole."""

import errno
import json
import os
import shutil
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import multiprocessing

from ablations import rundir
from launch import checkpoint
from launch.checkpoint import KINDS, CheckpointError, Checkpoints, Fragment
from launch.manifest import RunFailed

SIZES = {"embed": 70, "a.weight": 33, "a.bias": 1, "b": 128}  # elements


def state(step: int) -> dict[str, torch.Tensor]:
    """What a model of these sizes holds after `step`: one number for each element of each kind, no two alike."""
    total = sum(SIZES.values())
    return {kind: torch.arange(total) + total * i + 0.25 * step for i, kind in enumerate(KINDS)}


def pieces(flat: dict[str, torch.Tensor], rank: int, ranks: int) -> list[Fragment]:
    """A rank's even share of the flattened parameters, cut where parameters end: what ZeRO does."""
    total = sum(SIZES.values())
    low, high = rank * total // ranks, (rank + 1) * total // ranks
    found, at = [], 0
    for name, size in SIZES.items():
        a, b = max(at, low), min(at + size, high)
        if a < b:
            found += [Fragment(name, kind, a - at, flat[kind][a:b]) for kind in KINDS]
        at += size
    return found


def _rank(rank: int, ranks: int, work: Callable[..., None], folder: Path, args: tuple[Any, ...]) -> None:
    store = dist.FileStore(str(folder / f"store-{ranks}-{work.__name__}"), ranks)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks)
    work(rank, ranks, folder, *args)
    dist.barrier()
    dist.destroy_process_group()


def on(ranks: int, work: Callable[..., None], folder: Path, *args: Any) -> None:
    method = "forkserver" if dist.is_initialized() else "fork"  # what is forked would have the group of another test
    multiprocessing.start_processes(_rank, (ranks, work, folder, args), nprocs=ranks, start_method=method)
    (folder / f"store-{ranks}-{work.__name__}").unlink(missing_ok=True)


def save(rank: int, ranks: int, folder: Path, steps: list[int]) -> None:
    checkpoints = Checkpoints(folder / "checkpoints", keep=2)
    for step in steps:
        live = state(step)
        checkpoints.save(step, pieces(live, rank, ranks), {"losses": [0.1, 1 / 3], "step": step})
        for tensor in live.values():  # training goes on: what is written is what was, not what is
            tensor.zero_()
    checkpoints.wait()


def load(rank: int, ranks: int, folder: Path, step: int, before: int | None = None) -> None:
    live = {kind: torch.full((sum(SIZES.values()),), -1.0) for kind in KINDS}
    with open(folder / "said", "a") as said, redirect_stdout(said):
        found = Checkpoints(folder / "checkpoints", keep=2).load(pieces(live, rank, ranks), before)
    assert found == {"losses": [0.1, 1 / 3], "step": step}
    for mine, right in zip(pieces(live, rank, ranks), pieces(state(step), rank, ranks), strict=True):
        assert torch.equal(mine.data, right.data), mine.key


@pytest.mark.parametrize(("saved", "loaded"), [(1, 3), (2, 1), (3, 2), (2, 2), (4, 3)])
def test_any_width_reads_any_width(tmp_path: Path, saved: int, loaded: int) -> None:
    on(saved, save, tmp_path, [8])
    on(loaded, load, tmp_path, 8)


def load_behind(rank: int, ranks: int, folder: Path, step: int) -> None:
    """As `load`, where a network file system shows all ranks but the first what was there before the last save."""
    if rank:
        seen = rundir.checkpoints
        rundir.checkpoints = lambda folder, kind="step": seen(folder, kind)[1:]
    load(rank, ranks, folder, step)


def test_all_ranks_load_what_the_first_one_sees(two: Path) -> None:
    on(2, load_behind, two, 2)


def test_an_old_checkpoint_that_cannot_be_removed_stops_nothing(tmp_path: Path, alone: None) -> None:
    """What somebody has open on a network file system stays; here a file system is mounted in it."""
    checkpoints, held = Checkpoints(tmp_path, keep=1), tmp_path / "step_1/held"

    def save(step: int) -> None:
        checkpoints.save(step, pieces(state(step), 0, 1), {})
        checkpoints.wait()

    save(1)
    held.mkdir()
    if os.geteuid() or os.system(f"mount -t tmpfs tmpfs {held}"):
        pytest.skip("needs root to mount a file system")
    try:
        save(2)
        assert held.exists() and [p.name for p in rundir.checkpoints(tmp_path)] == ["step_2"]
    finally:
        os.system(f"umount {held}")
    save(3)
    assert [p.name for p in tmp_path.iterdir()] == ["step_3"]


def test_the_manifest_comes_when_what_it_names_is_on_the_disk(
    tmp_path: Path, alone: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    settled, seen, fsync, replace = set(), [], os.fsync, os.replace

    def spy(file: int) -> None:
        settled.add(os.readlink(f"/proc/self/fd/{file}"))
        fsync(file)

    def check(old: Any, new: Any) -> None:
        if Path(new).name == "checkpoint.json":
            parts = [tmp_path, Path(new).parent, Path(new).with_name("rank_0.safetensors"), Path(old)]
            seen.append([str(part) for part in parts if str(part) not in settled])
        replace(old, new)

    monkeypatch.setattr(os, "fsync", spy)
    monkeypatch.setattr(os, "replace", check)
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(1, pieces(state(1), 0, 1), {})
    checkpoints.wait()
    assert seen == [[]]


def test_the_newest_are_kept_and_one_can_go_back(tmp_path: Path) -> None:
    on(2, save, tmp_path, [2, 9, 10])
    assert [p.name for p in rundir.checkpoints(tmp_path / "checkpoints")] == ["step_10", "step_9"]
    on(2, load, tmp_path, 9, 10)
    assert [p.name for p in rundir.checkpoints(tmp_path / "checkpoints")] == [
        "step_9"
    ]  # what came later did not happen


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """Two whole checkpoints, written by two ranks."""
    on(2, save, tmp_path, [1, 2])
    return tmp_path


def truncate(newest: Path) -> None:
    os.truncate(newest / "rank_1.safetensors", 500)


def flip(newest: Path) -> None:
    content = bytearray((newest / "rank_0.safetensors").read_bytes())
    content[-5] ^= 1
    (newest / "rank_0.safetensors").write_bytes(content)


def lose(newest: Path) -> None:
    (newest / "rank_1.safetensors").unlink()


def flip_index(newest: Path) -> None:
    """A high bit: the file is no UTF-8 any more."""
    content = bytearray((newest / "checkpoint.json").read_bytes())
    content[40] ^= 0x80
    (newest / "checkpoint.json").write_bytes(content)


def another_state(newest: Path) -> None:
    """Still JSON, and another loss in the state."""
    path = newest / "checkpoint.json"
    changed = path.read_text().replace('"losses": [0.1', '"losses": [0.7')
    assert changed != path.read_text()
    path.write_text(changed)


@pytest.mark.parametrize("damage", [truncate, flip, lose, flip_index, another_state])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(two: Path, damage: Callable[[Path], None]) -> None:
    damage(two / "checkpoints/step_2")
    on(1, load, two, 1)
    said = (two / "said").read_text()
    assert "step_2 is damaged (" in said and "the one before it is used" in said
    assert ".safetensors" in said or "checkpoint.json" in said
    assert (two / "checkpoints/damaged_step_2").exists()  # for whoever wants to look
    on(1, save, two, [2])
    on(1, load, two, 2)


def test_a_folder_whose_name_has_no_step_is_left_alone(two: Path) -> None:
    """Such as a copy that somebody made."""
    folder = two / "checkpoints"
    for name in ("step_2.bak", "step_", "step_9 (copy)", "weights_7.old"):
        shutil.copytree(folder / "step_2", folder / name)
    on(1, load, two, 2)
    on(1, save, two, [3, 4, 5])
    on(1, load, two, 5)
    on(1, load, two, 4, 5)
    kept = {"step_2.bak", "step_", "step_9 (copy)", "weights_7.old"}
    assert {path.name for path in folder.iterdir()} == kept | {"step_4"}


def test_checkpoints_of_another_run_are_refused(tmp_path: Path, alone: None) -> None:
    mine = Checkpoints(tmp_path, 2, identity={"fingerprint": "a", "corpus sha256": "1"})
    mine.save(1, pieces(state(1), 0, 1), {})
    mine.wait()
    for identity in ({"fingerprint": "b"}, {"fingerprint": "a", "corpus sha256": "2"}):
        with pytest.raises(RunFailed, match="step_1 is of another run"):
            Checkpoints(tmp_path, 2, identity=identity).load(pieces(state(0), 0, 1))
    found = mine.load(pieces(state(0), 0, 1))
    assert found == {"step": 1}


def test_a_checkpoint_without_its_last_file_is_none(two: Path) -> None:
    (two / "checkpoints/step_2/checkpoint.json").unlink()  # killed before it was whole
    on(1, load, two, 1)
    assert not (two / "checkpoints/step_2").exists()


def test_when_all_are_damaged_nothing_begins_anew_by_itself(two: Path) -> None:
    for step in (1, 2):
        lose(two / f"checkpoints/step_{step}")
    with pytest.raises(Exception, match="every checkpoint in .* is damaged"):
        on(1, load, two, 1)


@pytest.fixture
def alone() -> Any:
    if dist.is_initialized():  # by another test
        yield
        return
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_a_parameter_that_is_missing_or_larger_is_no_checkpoint_of_this_model(two: Path, alone: None) -> None:
    for stranger in (Fragment("c", "weight", 0, torch.zeros(3)), Fragment("b", "weight", 100, torch.zeros(29))):
        with pytest.raises(CheckpointError, match=f"lacks weight of {stranger.name}"):
            Checkpoints(two / "checkpoints", 2).load([stranger])


def test_no_checkpoint_is_no_error(tmp_path: Path, alone: None) -> None:
    assert Checkpoints(tmp_path / "checkpoints", 2).load(pieces(state(0), 0, 1)) is None


def test_a_full_disk_is_said_and_loses_nothing(tmp_path: Path, alone: None) -> None:
    """On a real file system that is full."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() or os.system(f"mount -t tmpfs -o size=64k tmpfs {disk}"):
        pytest.skip("needs root to mount a small file system")
    try:
        checkpoints = Checkpoints(disk, keep=2)
        checkpoints.save(1, pieces(state(1), 0, 1), {"losses": [0.1, 1 / 3]})
        checkpoints.wait()
        (disk / "filler").write_bytes(b"x" * (shutil.disk_usage(disk).free - 4096))
        checkpoints.save(2, pieces(state(2), 0, 1), {})
        with pytest.raises(CheckpointError, match=f"{os.strerror(errno.ENOSPC)}.*the newest whole one is step_1"):
            checkpoints.wait()
        live = {kind: torch.zeros(sum(SIZES.values())) for kind in KINDS}
        found = Checkpoints(disk, 2).load(pieces(live, 0, 1))
        assert found and found["step"] == 1 and torch.equal(live["exp_avg"], state(1)["exp_avg"])
    finally:
        os.system(f"umount {disk}")


def test_nothing_is_unpickled(two: Path) -> None:
    """The files are safetensors and JSON, whatever their names say."""
    for path in (two / "checkpoints/step_2").iterdir():
        if path.suffix == ".json":
            json.loads(path.read_text())
        else:
            checkpoint.safe_open(path, framework="pt").keys()
    assert "torch.load" not in Path(checkpoint.__file__).read_text()
