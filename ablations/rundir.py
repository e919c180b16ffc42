"""A run directory: its files, what each of them means, and how they are read and written.

Training, evaluation, Slurm jobs and reports meet in this directory and nowhere else, so its format has one home. It
imports no torch: planning and status read run directories too.

Writing: a file is the old one or the whole new one, also after a power loss (`write_bytes`, `write_text`,
`write_json`), or grows by whole lines (`append`, `append_row`).

Reading: a run directory may be damaged, and may be a stranger's. A missing file is None or empty, a damaged one raises
`Damaged`, which names it; symbolic links, pipes and devices are not opened. Text is cleaned of control characters,
which could steer a terminal.
"""

import datetime
import errno
import fcntl
import gzip
import hashlib
import json
import math
import os
import re
import stat
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from enum import IntEnum, StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any, NamedTuple

from ablations.values import ConfigError

# ------------------------------------------------------------------------------------------------ the files of a run

RUN = "run.json"  # what the run is, where it came from, and the proofs of it; written before the first step
REGISTERED = (
    "registered.jsonl"  # what studies asked and expected of the run, a line for each version, from before step 1
)
METRICS = "metrics.jsonl"  # loss, learning rate and speed, a line every layout.log_every steps
EVENTS = "events.jsonl"  # what happened beyond the steps: hangs, slowness, rollbacks
ATTEMPTS = "attempts.jsonl"  # what was submitted, begun and ended under Slurm
HEARTBEAT = "heartbeat.json"  # written every few seconds while the run trains; removed when it leaves
LOCK = "lock"  # locked by the process that trains the run
STOP = (
    "stop"  # put there by a person or a job: the run saves and leaves. Also a file of the output root: all runs leave
)
FAILED = "failed"  # why the run cannot go on; removed when it is started again
CHECKPOINTS = "checkpoints"  # step_N: where training continues; weights_N: weights kept for evaluation
CHECKPOINT = "checkpoint.json"  # written last into each of those folders; a folder without it is not whole
WEIGHTS = "weights.safetensors"  # the trained weights
DONE = "done"  # the last step is trained; holds the size and sha256 of WEIGHTS. Written after them
EVAL = "eval.json"  # the scores of the trained weights; written last by the evaluation
SAMPLES = "samples.jsonl.gz"  # the result of each evaluated item
STACKS = "stacks"  # where every thread of a rank stood when it hung
TRAIN_LOG = "train.log"  # what training printed
EVAL_LOG = "eval.log"  # what the evaluation printed
GLUE = "glue"  # a folder: the results of fine-tuning on GLUE, a file for each task and seed, and GLUE_TABLE
GLUE_TABLE = "glue.json"  # medians and means over them
GLUE_LOG = "glue.log"  # what fine-tuning printed

# of the output root, the directory that OUT names
DATA = "data"  # prepared corpora and tokenizers
EVAL_DATA = "eval-data"  # data of lm-eval's tasks, unless EVAL_DATA says where
SLURM = "slurm"  # the logs of Slurm jobs
BAD_NODES = "bad_nodes"  # a line "node reason" for each node that was found unfit


def eval_name(step: int | None = None) -> str:
    """The file with the scores of the weights of `step`; without a step, of the trained weights."""
    return EVAL if step is None else f"eval-step_{step}.json"


class State(StrEnum):
    """Where a run stands, those first that need somebody's attention."""

    FAILED = "failed"
    DAMAGED = "damaged"
    STALLED = "stalled"
    STOPPED = "stopped"
    RUNNING = "running"
    STARTING = "starting"
    QUEUED = "queued"
    TRAINED = "trained, not evaluated"
    NOT_STARTED = "not started"
    FINISHED = "finished"


class Exit(IntEnum):
    """Exit codes of the commands that train, and of the report. launch/run.sh knows RESUBMIT and BAD_NODE too."""

    FINISHED = 0
    FAILED = 1
    INVALID = 2  # the command or the configuration is not valid
    REFUSED = 3  # the report is written, and some runs in it could not be compared, as they were evaluated differently
    RESUBMIT = 75  # not finished, and nothing is wrong with the run: submit it again
    KILLED = 76  # there is a stop file in the output root: nothing is to be submitted again
    BAD_NODE = 77  # a node is unfit (launch/preflight.py)
    INTERRUPTED = 130  # by Ctrl-C


class Damaged(ConfigError):
    """A file of a run directory is not what was written there. The message names it and says what to do."""


# ------------------------------------------------------------------------------------------------ writing


def write_bytes(path: Path, content: bytes, durable: bool = True) -> None:
    """Write a file so that it is either the old one or the whole new one, also after a power loss.

    A symbolic link at `path` is replaced, not followed. Two processes may write the same file at once.

    Args:
        durable: False does not wait for the disk: after a power loss the file may be damaged.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    if durable:
        sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """As `write_bytes`, in UTF-8 whatever the locale."""
    write_bytes(path, text.encode("utf-8", errors="backslashreplace"))


def write_json(path: Path, value: Any, indent: int | None = None, durable: bool = True) -> None:
    """As `write_bytes`. Raises ValueError for NaN and infinity, which JSON does not have."""
    write_bytes(path, json.dumps(value, indent=indent, allow_nan=False).encode(), durable)


def open_to_write(path: Path, append: bool = False) -> IO[bytes]:
    """Open a file to write into it, or to add to it. Raises OSError where the path is a symbolic link."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | (os.O_APPEND if append else os.O_TRUNC)
    return os.fdopen(os.open(path, flags, 0o666), "ab" if append else "wb")


def append(path: Path, text: str) -> None:
    """Add text, whole lines, to the end of a file."""
    with open_to_write(path, append=True) as file:
        file.write(text.encode("utf-8", errors="backslashreplace"))


def append_row(path: Path, row: dict[str, Any]) -> None:
    """Add a line to a .jsonl file."""
    append(path, json.dumps(row) + "\n")


def sync_folder(folder: Path) -> None:
    """Until the names in a folder are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_leftovers(path: Path) -> None:
    """Remove what killed processes left of writing `path`. Only for the process that alone writes it."""
    for leftover in path.parent.glob(f"{path.name}.*tmp"):
        with suppress(OSError):
            leftover.unlink()


def inside(folder: Path, name: str | Path) -> Path:
    """The path of what is called `name` in a folder, when it lies there also after symbolic links are followed.

    Raises:
        Damaged: where it leads out of the folder.
    """
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise Damaged(f"{path} leads out of {folder}: remove it, or put a copy there")
    return path


def storage_error(error: OSError) -> str:
    """What to say and to do about a full, read-only or otherwise unusable disk; "" for any other error."""
    cures = {
        errno.ENOSPC: "Make room and give the same command again.",
        errno.EDQUOT: "Make room within your quota and give the same command again.",
        errno.EROFS: "Choose an OUT that can be written.",
        errno.EACCES: "Choose an OUT that can be read and written, or change its permissions.",
        errno.EPERM: "Choose an OUT that can be read and written, or change its permissions.",
        errno.ENOTDIR: "Choose another OUT.",
        errno.ENAMETOOLONG: "Choose a shorter OUT.",
        errno.ELOOP: "Files here are not written through symbolic links: remove the link.",
        errno.EIO: "The disk has an error: look at it before the same command is given again.",
    }
    return f"{printable(str(error))}. {cures[error.errno]}" if error.errno in cures else ""


# ------------------------------------------------------------------------------------------------ reading


def read_bytes(path: Path) -> bytes | None:
    """The content of a regular file; None where there is none.

    Raises:
        Damaged: when it cannot be read, or is a symbolic link, a pipe, a device or a folder.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise Damaged(f"{path} is not a file: remove it")
            return file.read()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except IsADirectoryError:
        raise Damaged(f"{path} is not a file: remove it") from None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise Damaged(f"{path} is a symbolic link: put a copy of the file there") from None
        raise Damaged(f"{path} cannot be read: {error.strerror}") from None


def read_text(path: Path) -> str:
    """The text of a small file, printable and without space around it; "" where there is none or it cannot be read."""
    try:
        return printable((read_bytes(path) or b"").decode(errors="replace")).strip()
    except Damaged as error:
        return str(error)


# C0 and C1 control characters but tab and newline; marks that reverse the direction of text; halves of surrogate pairs
STEERING = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """`text` with control characters as escapes, so that it cannot steer a terminal. Tabs and newlines stay."""
    return STEERING.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def read_json(
    path: Path, keys: Iterable[str] = (), types: Mapping[str, Any] = MappingProxyType({}), cure: str = ""
) -> dict[str, Any] | None:
    """The object in a JSON file; None where there is no file.

    Args:
        keys: what it must hold.
        types: the type of the value of a key, where it is there; as for `isinstance`.
        cure: what to do when it is damaged, a sentence for the message.

    Raises:
        Damaged: when it is no JSON object, lacks a key, or a value is of another type.
    """
    content = read_bytes(path)
    if content is None:
        return None
    value = _parse(content)
    complaint = "it is not a JSON object" if value is None else _misfit(value, keys, types)
    if complaint or value is None:
        raise Damaged(f"{path} is damaged, or of another version: {complaint}.{cure and ' '}{cure}")
    return value


def _parse(content: bytes) -> dict[str, Any] | None:
    """The JSON object that `content` is, or None. NaN and Infinity, which Python would accept, are no JSON."""
    try:
        value = json.loads(content.decode(), parse_constant=_finite, parse_float=_finite)
    except (ValueError, RecursionError):  # ValueError: no UTF-8, no JSON, or a number of thousands of digits
        return None
    return value if isinstance(value, dict) else None


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


def _misfit(value: Mapping[str, Any], keys: Iterable[str], types: Mapping[str, Any]) -> str:
    """What an object lacks, or which value is of another type; "" when it fits."""
    if lacking := [key for key in keys if key not in value]:
        return f"it lacks {', '.join(lacking)}"
    wrong = [k for k, t in types.items() if k in value and (not isinstance(value[k], t) or isinstance(value[k], bool))]
    return f"the value of {', '.join(wrong)} is of another type" if wrong else ""


def read_lines(
    path: Path, keys: Iterable[str] = (), types: Mapping[str, Any] = MappingProxyType({})
) -> tuple[list[dict[str, Any]], str]:
    """The objects in a .jsonl file, and what is wrong with it: "" or a sentence that names it.

    Lines that are damaged, or do not fit `keys` and `types` (see `read_json`), are left out. So is, without a word, a
    last line without its end: a kill or a power loss leaves such.
    """
    try:
        content = read_bytes(path)
    except Damaged as error:
        return [], str(error)
    lines = (content or b"").split(b"\n")
    rows, damaged = [], []
    for number, line in enumerate(lines, start=1):
        row = _parse(line)
        if row is not None and not _misfit(row, keys, types):
            rows.append(row)
        elif line.strip() and number < len(lines):
            damaged.append(number)
    if not damaged:
        return rows, ""
    several = "s" if len(damaged) > 1 else ""
    numbers = ", ".join(map(str, damaged[:5])) + (", ..." if len(damaged) > 5 else "")
    return rows, f"{path} is damaged: line{several} {numbers} left out"


def last_line(
    path: Path, keys: Iterable[str] = (), types: Mapping[str, Any] = MappingProxyType({})
) -> tuple[dict[str, Any], str]:
    """The last whole line of a .jsonl file that fits, of its last 16 KiB, and what is wrong with those after it; see
    `read_lines`. ({}, "") without one."""
    lines: list[bytes] = []
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:
            file.seek(max(0, os.fstat(descriptor).st_size - (1 << 14)))
            lines = file.read().split(b"\n")[:-1]
    damage = ""
    for line in reversed(lines):
        row = _parse(line)
        if row is not None and not _misfit(row, keys, types):
            return row, damage
        damage = f"{path} is damaged in its last lines" if line.strip() else damage
    return {}, damage


def read_gzip_lines(path: Path, keys: Iterable[str] = (), cure: str = "") -> Iterator[dict[str, Any]]:
    """The objects in a .jsonl.gz file.

    Raises:
        Damaged: when there is no such file, it is cut, or a line is not an object with `keys`.
    """
    content = read_bytes(path)
    if content is None:
        raise Damaged(f"{path} is missing.{cure and ' '}{cure}")
    try:
        if not content:
            raise EOFError("it is empty")
        lines = gzip.decompress(content).splitlines()
    except (OSError, EOFError, zlib.error) as error:
        raise Damaged(f"{path} is damaged: {error}.{cure and ' '}{cure}") from None
    for number, line in enumerate(lines, start=1):
        row = _parse(line)
        if row is None or _misfit(row, keys, {}):
            raise Damaged(f"{path} is damaged in line {number}.{cure and ' '}{cure}")
        yield row


# The types of what is computed with, by file.
NUMBER = (int, float)
METRIC_TYPES = MappingProxyType(
    {"step": int, "tokens": NUMBER, "loss": NUMBER, "lr": NUMBER, "tokens_per_second": NUMBER, "seconds": NUMBER}
)
ATTEMPT_TYPES = MappingProxyType({"event": str, "job": str, "time": NUMBER, "step": int, "nodes": str, "log": int})
HEARTBEAT_TYPES = MappingProxyType({"time": NUMBER, "step": int, "nodes": list, "job": str})
RUN_KEYS = ("fingerprint", "config")
RUN_TYPES = MappingProxyType({"fingerprint": str, "config": dict, "data": dict, "seed": int})


def read_run(run_dir: Path, cure: str = "") -> dict[str, Any] | None:
    """RUN, or None before the first launch. Raises Damaged."""
    return read_json(run_dir / RUN, RUN_KEYS, RUN_TYPES, cure)


def read_metrics(run_dir: Path) -> tuple[list[dict[str, Any]], str]:
    """METRICS, as `read_lines`."""
    return read_lines(run_dir / METRICS, ["step", "loss"], METRIC_TYPES)


def last_metric(run_dir: Path) -> tuple[dict[str, Any], str]:
    """The last line of METRICS, as `last_line`."""
    return last_line(run_dir / METRICS, ["step", "loss"], METRIC_TYPES)


def read_attempts(run_dir: Path) -> tuple[list[dict[str, Any]], str]:
    """ATTEMPTS, as `read_lines`; see launch/slurm/attempts.py."""
    return read_lines(run_dir / ATTEMPTS, ["event", "job"], ATTEMPT_TYPES)


def read_heartbeat(run_dir: Path) -> dict[str, Any]:
    """HEARTBEAT; {} where there is none, or it is damaged: the next one is written within seconds."""
    try:
        return read_json(run_dir / HEARTBEAT, ["time"], HEARTBEAT_TYPES) or {}
    except Damaged:
        return {}


# ------------------------------------------------------------------------------------------------ hashes


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checksum(path: Path) -> dict[str, Any]:
    """{"bytes", "sha256"} of a file, which `damage` compares."""
    return {"bytes": path.stat().st_size, "sha256": sha256(path)}


def damage(path: Path, expected: dict[str, Any]) -> str:
    """What is wrong with a file, as measured by its `checksum` when it was written; "" when nothing is."""
    try:
        size = path.stat().st_size
        if size != expected["bytes"]:
            return f"{path.name} has {size:,} bytes instead of {expected['bytes']:,}"
        return "" if sha256(path) == expected["sha256"] else f"the sha256 of {path.name} differs"
    except FileNotFoundError:
        return f"{path.name} is missing"
    except OSError as error:
        return f"{path.name} cannot be read: {error.strerror}"


def _digest(value: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


# ------------------------------------------------------------------------------------------------ registration


REGISTRATION_KEYS = ("time", "step", "previous", "content", "sha256")
REGISTRATION_TYPES = MappingProxyType({"time": str, "step": int, "previous": str, "content": dict, "sha256": str})


def register(run_dir: Path, content: dict[str, Any], step: int) -> None:
    """Add what a study says to REGISTERED, unless that is what the study's last line there says already.

    Args:
        content: JSON; "study" names the study. See ablations/registration.py.
        step: how far the run is trained by now.
    """
    lines, _ = read_registered(run_dir)
    as_read = json.loads(json.dumps(content))
    of_study = [line["content"] for line in lines if line["content"].get("study") == content["study"]]
    if of_study and of_study[-1] == as_read:
        return
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    line = {"time": now, "step": step, "previous": lines[-1]["sha256"] if lines else "", "content": as_read}
    append_row(run_dir / REGISTERED, line | {"sha256": _digest(line)})


def read_registered(run_dir: Path) -> tuple[list[dict[str, Any]], str]:
    """The lines of REGISTERED, and what is wrong with it: "" or a sentence that names it. A line whose hash differs is
    left out, and so are those that do not follow the line before them."""
    rows, problem = read_lines(run_dir / REGISTERED, REGISTRATION_KEYS, REGISTRATION_TYPES)
    whole: list[dict[str, Any]] = []
    for row in rows:
        body = {key: value for key, value in row.items() if key != "sha256"}
        previous = whole[-1]["sha256"] if whole else ""
        if row["sha256"] == _digest(body) and row["previous"] == previous:
            whole.append(row)
        else:
            problem = f"{run_dir / REGISTERED} was changed after it was written: a hash differs"
    return whole, problem


# ------------------------------------------------------------------------------------------------ checkpoints


class PieceName(NamedTuple):
    """The name of a tensor in a checkpoint: elements `start` and after of a flattened parameter or optimizer moment."""

    parameter: str
    kind: str  # "weight", "exp_avg" or "exp_avg_sq"
    start: int
    rank: int = 0  # which part of the parameter, where tensor parallelism cuts it ...
    size: int = 1  # ... into so many

    def __str__(self) -> str:
        part = f"|{self.rank}|{self.size}" if self.size > 1 else ""
        return f"{self.parameter}|{self.kind}|{self.start}{part}"

    @classmethod
    def parse(cls, key: str) -> "PieceName":
        parameter, kind, start, *part = key.split("|")
        rank, size = map(int, part or (0, 1))
        return cls(parameter, kind, int(start), rank, size)


def step_of(folder: Path) -> int | None:
    """92 of step_92 or weights_92; None of step_92.bak, step_ and the like."""
    match = re.fullmatch(r"(?:step|weights)_([0-9]+)", folder.name)
    return int(match[1]) if match else None


def checkpoints(folder: Path, kind: str = "step") -> list[Path]:
    """The folders step_N (or weights_N) in a run's CHECKPOINTS that hold a CHECKPOINT, the newest first."""
    folders = {path.parent: step_of(path.parent) for path in folder.glob(f"{kind}_*/{CHECKPOINT}")}
    steps = {folder: step for folder, step in folders.items() if step is not None}
    return sorted(steps, key=steps.__getitem__, reverse=True)


def last_step(run_dir: Path) -> int:
    """The step of the newest checkpoint of a run, 0 without one."""
    return next((step_of(folder) or 0 for folder in checkpoints(run_dir / CHECKPOINTS)), 0)


def write_checkpoint(folder: Path, index: dict[str, Any]) -> None:
    """Write CHECKPOINT: from here on the folder is whole. `index`: "step", "tokens", "state", "files" with the
    `checksum` of each."""
    as_read = json.loads(json.dumps(index))  # keys that are numbers are strings there, tuples are lists
    write_json(folder / CHECKPOINT, as_read | {"sha256": _digest(as_read)})


def read_checkpoint(folder: Path) -> dict[str, Any]:
    """CHECKPOINT as it was written.

    Raises:
        Damaged: when it is missing, or differs in anything from what was written. Its sha256 says so.
    """
    path = folder / CHECKPOINT
    index = read_json(path, ["step", "files", "state", "sha256"], {"step": int, "files": dict, "state": dict})
    if index is None:
        raise Damaged(f"{path} is missing")
    if index.pop("sha256") != _digest(index):
        raise Damaged(f"{path} is damaged: its sha256 differs")
    if any(Path(name).name != name for name in index["files"]):
        raise Damaged(f"{path} names files outside its folder")
    if index["step"] != step_of(folder):
        raise Damaged(f"{path} is that of step {index['step']}")
    return index


def unjudged(run_dir: Path) -> list[int]:
    """The steps at which a run has kept its weights (layout.eval_at), as far as they are not evaluated."""
    steps = [step_of(folder) or 0 for folder in checkpoints(run_dir / CHECKPOINTS, "weights")]
    return sorted(step for step in steps if not (run_dir / eval_name(step)).exists())


# ------------------------------------------------------------------------------------------------ trained, and locked


def write_done(run_dir: Path, summary: dict[str, Any]) -> None:
    """Say that a run is trained; its WEIGHTS are on the disk by now."""
    write_json(run_dir / DONE, summary | {"weights": checksum(run_dir / WEIGHTS)})


def read_done(run_dir: Path, verify: bool = False) -> dict[str, Any] | None:
    """DONE; None while the run is not trained.

    Args:
        verify: compare the sha256 of the weights too, which reads all of them.

    Raises:
        Damaged: when it is damaged, or the weights are missing or not those that were written. `launch.local` then
            goes back to the last checkpoint and writes both anew.
    """
    cure = "The same command repairs it from the run's last checkpoint."
    summary = read_json(run_dir / DONE, cure=cure)
    if summary is None:
        return None
    path = run_dir / WEIGHTS
    expected = summary.get("weights")
    if isinstance(expected, dict) and {"bytes", "sha256"} <= expected.keys() and verify:
        complaint = damage(path, expected)
    else:
        complaint = "" if path.exists() else f"{path.name} is missing"
        if not complaint and isinstance(expected, dict) and path.stat().st_size != expected.get("bytes"):
            complaint = f"{path.name} has {path.stat().st_size:,} bytes instead of {expected.get('bytes')}"
    if complaint:
        raise Damaged(f"{path} is damaged: {complaint}. {cure}")
    return summary


@contextmanager
def hold(run_dir: Path) -> Iterator[None]:
    """Hold the run directory: only one process may write it.

    Raises:
        BlockingIOError: another process holds it.
        OSError: where it cannot be locked, or the lock is a symbolic link.
    """
    with os.fdopen(os.open(run_dir / LOCK, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o666), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.utime(lock.fileno())  # since when: see ablations/status.py
        yield


def locked(run_dir: Path) -> bool:
    """Whether a process on this machine holds the run directory."""
    try:
        descriptor = os.open(run_dir / LOCK, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    with open(descriptor) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
    return False
