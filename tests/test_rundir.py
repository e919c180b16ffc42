"""ablations/rundir.py: nothing half-written or damaged passes for whole; a stranger's directory is data."""

import contextlib
import gzip
import json
import os
import random
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ablations import rundir, safe_files
from ablations.safe_files import Damaged


def test_it_needs_no_torch_and_no_numpy() -> None:
    code = "import sys, ablations.rundir; print(*({'torch', 'numpy', 'yaml', 'rich'} & sys.modules.keys()))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert set(said) <= {"yaml"}


def test_a_file_is_the_old_or_the_new_one_also_when_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "straße.json"
    safe_files.write_text(path, "alt: straße")
    assert path.read_bytes() == "alt: straße".encode()

    def full(file: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError):
        safe_files.write_text(path, "new")
    assert path.read_bytes() == "alt: straße".encode() and list(tmp_path.iterdir()) == [path]


def test_the_content_is_on_the_disk_before_the_name_and_the_name_before_the_return(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    happened = []
    fsync, replace = os.fsync, os.replace

    def spy_fsync(file: int) -> None:
        happened.append(os.readlink(f"/proc/self/fd/{file}"))
        fsync(file)

    def spy_replace(old: Any, new: Any) -> None:
        happened.append("replace")
        replace(old, new)

    monkeypatch.setattr(os, "fsync", spy_fsync)
    monkeypatch.setattr(os, "replace", spy_replace)
    safe_files.write_json(tmp_path / "a.json", {"x": 1})
    written, *after = happened
    assert written.startswith(str(tmp_path / "a.json.")) and written.endswith(".tmp")
    assert after == ["replace", str(tmp_path)]


def test_a_line_that_was_cut_does_not_spoil_the_next_one(tmp_path: Path) -> None:
    path = tmp_path / "событие.jsonl"
    safe_files.append_row(path, {"дело": 1})
    path.write_bytes(path.read_bytes() + b'{"by a kill": ')
    safe_files.append_row(path, {"дело": 2})
    assert safe_files.read_json_lines(path)[0] == [{"дело": 1}, {"дело": 2}]
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)  # a write that is cut in its middle, as on a full disk
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 9, limits[1]))
    try:
        with pytest.raises(OSError) as raised:
            safe_files.append_row(path, {"дело": "не влезает"})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert "ulimit -f" in safe_files.storage_error_message(raised.value)
    safe_files.append_row(path, {"дело": 3})
    assert safe_files.read_json_lines(path)[0] == [{"дело": 1}, {"дело": 2}, {"дело": 3}]


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    folder, secret = tmp_path / "run", tmp_path / "secret"
    folder.mkdir()
    secret.write_text("mine")
    for name in (rundir.METRICS, rundir.LOCK, rundir.RUN):
        (folder / name).symlink_to(secret)
    with pytest.raises(OSError):
        safe_files.append_row(folder / rundir.METRICS, {"step": 1})
    with pytest.raises(OSError), rundir.lock(folder):
        pass
    safe_files.write_json(folder / rundir.RUN, {"a": 1})
    assert secret.read_text() == "mine" and json.loads((folder / rundir.RUN).read_text()) == {"a": 1}


def test_a_link_a_pipe_and_a_folder_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text('{"key": "mine"}')
    (tmp_path / "link").symlink_to(tmp_path / "secret")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("link", "pipe", "folder"):
        with pytest.raises(Damaged, match=name):
            safe_files.read_json(tmp_path / name)
        assert "mine" not in safe_files.read_text(tmp_path / name)
        assert safe_files.read_json_lines(tmp_path / name)[0] == []
        assert safe_files.last_undamaged_json_line(tmp_path / name) == ({}, "")
    os.mkfifo(tmp_path / "lock")
    assert not rundir.is_locked(tmp_path)


def test_what_leads_out_of_a_folder_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "checkpoints").symlink_to(tmp_path)
    for name in ("checkpoints", "../x", "/etc/passwd"):
        with pytest.raises(Damaged, match="leads out of"):
            safe_files.path_inside(folder, name)
    assert safe_files.path_inside(folder, "a/b") == folder / "a/b"
    with contextlib.chdir(tmp_path):
        assert safe_files.path_inside(Path("run"), "a") == Path("run/a")


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"null", b'{"a": 1', b'{"a": NaN}', b'{"a": -Infinity}', b'{"a": 1e999}', b'\xff{"a": 1}']
    + [b'{"a": 1' + b"0" * 400 + b"}", b'{"a": 1e300}', b'{"a": -1e300}']
    + [b"[" * 100_000, b'{"a": ' + b"9" * 5000 + b"}", b'{"b": 1}', b'{"a": "one"}', b'{"a": true}'],
)
def test_a_damaged_json_file_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "größe.json"
    path.write_bytes(content)
    with pytest.raises(Damaged, match="größe.json") as error:
        safe_files.read_json(path, ["a"], {"a": rundir.NUMBER}, cure="Remove it.")
    assert str(error.value).endswith("Remove it.")
    assert isinstance(error.value, ValueError) and safe_files.read_json(tmp_path / "none") is None


def test_a_key_that_is_there_twice_is_damage_and_named(tmp_path: Path) -> None:
    """Of two values for one key Python's parser keeps the last without a word."""
    path = tmp_path / "eval.json"
    path.write_bytes(b'{"a": 1, "tasks": {"b": {"n": 1, "acc": 2, "n": 3}}}')
    with pytest.raises(Damaged, match="eval.json is damaged, or of another version: the key 'n' is there twice"):
        safe_files.read_json(path)
    (tmp_path / "samples.jsonl.gz").write_bytes(gzip.compress(b'{"id": 1}\n{"id": 2, "id": 3}\n'))
    with pytest.raises(Damaged, match="in line 2: the key 'id' is there twice"):
        list(safe_files.read_gzip_json_lines(tmp_path / "samples.jsonl.gz"))


def test_a_file_larger_than_any_of_a_run_is_named_and_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open(tmp_path / "größe.json", "wb") as file:
        file.truncate(safe_files.LARGEST_FILE + 1)  # takes no place on the disk
    with pytest.raises(Damaged, match="größe.json has 1,073,741,825 bytes, more than"):
        safe_files.read_json(tmp_path / "größe.json")
    rows = b'{"task": "a", "id": "1"}\n' * 1000
    (tmp_path / "samples.jsonl.gz").write_bytes(gzip.compress(rows))
    assert len(list(safe_files.read_gzip_json_lines(tmp_path / "samples.jsonl.gz"))) == 1000
    monkeypatch.setattr(safe_files, "LARGEST_FILE", len(rows) - 1)
    with pytest.raises(Damaged, match="samples.jsonl.gz is damaged: unpacked it has more than"):
        list(safe_files.read_gzip_json_lines(tmp_path / "samples.jsonl.gz"))


def test_damaged_lines_are_left_out_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    rows = [{"step": step, "loss": 1.5} for step in range(1, 5)]
    lines = [json.dumps(row).encode() + b"\n" for row in rows]
    path.write_bytes(b"".join(lines) + b'{"step": 5, "lo')

    def read() -> Any:
        return safe_files.read_json_lines(path, ["step", "loss"], rundir.METRIC_TYPES)

    assert read() == (rows, "")  # a kill
    path.write_bytes(lines[0] + b"\xff" + lines[1] + b'[]\n\n{"step": 3}\n{"step": "3", "loss": 1}\n' + lines[3])
    assert read() == ([rows[0], rows[3]], f"{path} is damaged: lines 2, 3, 5, 6 left out")
    assert rundir.last_metric(tmp_path) == (rows[3], "")
    path.write_bytes(lines[0] + lines[1].replace(b"}", b', "step": 3}') + lines[3])
    assert read() == ([rows[0], rows[3]], f"{path} is damaged: line 2 left out")
    path.write_bytes(lines[0] + b'{"step": 2, "loss": 1.\xff}\n')
    assert rundir.last_metric(tmp_path) == (rows[0], f"{path} is damaged in its last lines")


def test_items_that_were_cut_are_an_error(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl.gz"
    whole = gzip.compress("".join(json.dumps({"id": i, "text": "über"}) + "\n" for i in range(99)).encode())
    path.write_bytes(whole)
    assert [row["id"] for row in safe_files.read_gzip_json_lines(path, ["id"])] == list(range(99))
    rng = random.Random(0)
    damaged = [whole[: rng.randrange(len(whole))] for _ in range(50)] + [gzip.compress(b'{"id": 1}\n[]\n'), b"text"]
    for _ in range(200):
        at = rng.randrange(10, len(whole))  # the first ten bytes are the header: flags, time and system
        damaged.append(whole[:at] + bytes([whole[at] ^ 1 << rng.randrange(8)]) + whole[at + 1 :])
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(Damaged, match="samples.jsonl.gz"):
            list(safe_files.read_gzip_json_lines(path, ["id"]))


def test_text_for_a_terminal_has_no_control_characters(tmp_path: Path) -> None:
    (tmp_path / "failed").write_bytes(
        "out\x1b]0;x\x07 of\r\tmemory \u202ebad\x9b1m\n日本 é\udcff".encode(errors="surrogateescape")
    )
    assert (
        safe_files.read_text(tmp_path / "failed")
        == r"out\x1b]0;x\x07 of\r" + "\tmemory " + r"\u202ebad\x9b1m" + "\n日本 é\ufffd"
    )
    assert safe_files.read_text(tmp_path / "none") == ""


def test_only_folders_with_the_number_of_a_step_are_checkpoints(tmp_path: Path) -> None:
    for name in ("step_8", "step_92", "step_100", "step_92.bak", "step_", "step_-1", "step_²", "step_8 (copy)"):
        rundir_checkpoint(tmp_path, name)
    (tmp_path / "checkpoints/step_200").mkdir()
    assert [folder.name for folder in rundir.checkpoints(tmp_path / "checkpoints")] == ["step_100", "step_92", "step_8"]
    assert rundir.last_step(tmp_path) == 100 and rundir.last_step(tmp_path / "none") == 0


def rundir_checkpoint(run: Path, name: str) -> None:
    folder = run / "checkpoints" / name
    folder.mkdir(parents=True)
    (folder / "checkpoint.json").write_text("{}")


def test_whatever_happens_to_the_index_of_a_checkpoint_it_is_whole_or_refused(tmp_path: Path) -> None:
    """2,941 damaged indexes: each either says what was written, or is refused as damaged."""
    folder = tmp_path / "step_92"
    folder.mkdir()
    state = {"progress": {"step": 92, "seconds": 12.5, "losses": [1.25, 2e-7], "skipped": 0, "rollbacks": []}}
    files = {f"rank_{r}.safetensors": {"bytes": 1234 + r, "sha256": f"{r:064x}"} for r in range(2)}
    index = {"step": 92, "ranks": 2, "tokens": None, "state": state, "files": files, "seconds": 0.5, "stall": 0.01}
    rundir.write_checkpoint(folder, index)
    assert rundir.read_checkpoint(folder) == index
    path = folder / "checkpoint.json"
    whole = path.read_bytes()
    rng = random.Random(0)
    cases = [whole[:at] for at in range(len(whole))]
    cases += [
        whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :] for at in range(len(whole)) for bit in range(8)
    ]
    cases = rng.sample(cases, 2341)
    for _ in range(300):
        a, b = sorted(rng.randrange(len(whole)) for _ in range(2))
        cases += [whole[:a] + whole[b:], whole[:a] + rng.randbytes(b - a) + whole[b:]]
    assert len(cases) == 2941
    refused = 0
    for content in cases:
        path.write_bytes(content)
        try:
            assert rundir.read_checkpoint(folder) == index, content
        except Damaged as error:
            assert "checkpoint.json" in str(error)
            refused += 1
    assert refused > 2800
    other = tmp_path / "step_93"  # a copy under another name
    other.mkdir()
    rundir.write_checkpoint(other, index)
    with pytest.raises(Damaged, match="step 92"):
        rundir.read_checkpoint(other)


def test_weights_that_are_missing_cut_or_changed_are_not_trained_ones(tmp_path: Path) -> None:
    assert rundir.read_done(tmp_path) is None
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(bytes(range(256)) * 40)
    rundir.write_done(tmp_path, {"steps": 3})
    summary = rundir.read_done(tmp_path, verify=True)
    assert summary and summary["steps"] == 3 and summary["weights"] == safe_files.checksum(weights)
    whole = weights.read_bytes()
    weights.write_bytes(whole[:99] + bytes([whole[99] ^ 1]) + whole[100:])
    with pytest.raises(Damaged, match="sha256 of weights.safetensors differs"):
        rundir.read_done(tmp_path, verify=True)
    weights.write_bytes(whole[:-1])
    for verify in (False, True):
        with pytest.raises(Damaged, match="bytes instead of"):
            rundir.read_done(tmp_path, verify)
    weights.unlink()
    for verify in (False, True):
        with pytest.raises(Damaged, match="weights.safetensors is missing"):
            rundir.read_done(tmp_path, verify)
    (tmp_path / "done").write_text("")
    with pytest.raises(Damaged, match="done"):
        rundir.read_done(tmp_path)


def test_a_lock_is_one_process_at_a_time(tmp_path: Path) -> None:
    assert not rundir.is_locked(tmp_path)
    with rundir.lock(tmp_path):
        assert rundir.is_locked(tmp_path)
        with pytest.raises(BlockingIOError), rundir.lock(tmp_path):
            pass
    assert not rundir.is_locked(tmp_path)


def test_a_piece_is_found_by_its_name() -> None:
    for piece in (rundir.FragmentKey("blocks.0.w", "exp_avg", 7), rundir.FragmentKey("w", "weight", 0, 1, 2)):
        assert rundir.FragmentKey.parse(str(piece)) == piece
    assert str(rundir.FragmentKey("w", "weight", 0, 1, 2)) == "w|weight|0|1|2"


def test_launch_run_sh_has_the_exit_codes() -> None:
    script = (Path(__file__).parents[1] / "launch/run.sh").read_text()
    assert f"exit {rundir.Exit.BAD_NODE.value};" in script and f"code:-{rundir.Exit.RESUBMIT.value}" in script
