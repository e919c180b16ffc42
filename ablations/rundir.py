"""A run directory: its files and what each of them means, the states of a run, exit codes, checkpoints, and the lock.

Training, evaluation, Slurm jobs and reports share this directory and nothing else, so its format is defined in one
place. This file imports no torch, since planning and status read run directories too. ablations/safe_files.py reads and
writes the files themselves.
"""

import datetime
import fcntl
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum, StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from ablations.safe_files import (
    Damaged,
    append_row,
    checksum,
    describe_damage,
    json_digest,
    last_undamaged_json_line,
    read_json,
    read_json_lines,
    write_json,
)

# ------------------------------------------------------------------------------------------------ the files of a run

RUN = "run.json"  # what the run is, where it came from, and the proofs of it; written before the first step
REGISTERED = "registered.jsonl"  # what studies asked and expected of the run, a line for each version
METRICS = "metrics.jsonl"  # loss, learning rate and speed, a line every layout.log_every steps
EVENTS = "events.jsonl"  # what happened beyond the steps: hangs, slowness, rollbacks
ATTEMPTS = "attempts.jsonl"  # what was submitted, begun and ended under Slurm
HEARTBEAT = "heartbeat.json"  # written every few seconds while the run trains; removed when training ends
LOCK = "lock"  # locked by the process that trains the run
STOP = "stop"  # created by a person or a job: the run saves and exits. In the output root: all runs exit
FAILED = "failed"  # why the run cannot go on; removed when it is started again
CHECKPOINTS = "checkpoints"  # step_N: where training continues; weights_N: weights kept for evaluation
CHECKPOINT = "checkpoint.json"  # written last into each of those folders; a folder without it is not whole
WEIGHTS = "weights.safetensors"  # the trained weights
DONE = "done"  # the last step is trained; holds the size and sha256 of WEIGHTS. Written after them
EVAL = "eval.json"  # the scores of the trained weights; written last by the evaluation
SAMPLES = "samples.jsonl.gz"  # the result of each evaluated item
STACKS = "stacks"  # a folder: the stacks of all threads of each rank that hung
TRAIN_LOG = "train.log"  # what training printed
EVAL_LOG = "eval.log"  # what the evaluation printed
GLUE = "glue"  # a folder: the results of fine-tuning on GLUE, a file for each task and seed, and GLUE_TABLE
GLUE_TABLE = "glue.json"  # medians and means over them
GLUE_INPUTS_VERSION = 2  # how GLUE's texts become a model's inputs; see eval/finetune/classifier.py
GLUE_SEEDS = 5  # fine-tunings of each task; the median of so many counts, as in "Cramming"
GLUE_LOG = "glue.log"  # what fine-tuning printed
HUB = "hub"  # a folder: the trained run as a Hugging Face checkpoint, where EXPORT=1 asks for it
EXPORT_LOG = "export.log"  # what the export printed

# files and folders of the output root, the directory that OUT names
DATA = "data"  # prepared corpora and tokenizers
EVAL_DATA = "eval-data"  # data of lm-eval's tasks, unless EVAL_DATA says where
SLURM = "slurm"  # the logs of Slurm jobs
BAD_NODES = "bad_nodes"  # a line "node reason" for each node that was found unfit


def eval_file_name(step: int | None = None) -> str:
    """The name of the file with the evaluation of the weights after a step. `step`: the number of the step; None: the
    trained weights."""
    return EVAL if step is None else f"eval-step_{step}.json"


class State(StrEnum):
    """The state of a run, as `make status` shows it. States in which the user has to act come first."""

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
    UNDECIDED = 3  # of a verdict (eval/report/outcome.py, undecided.py): an arm is undecided
    RESUBMIT = 75  # not finished, and nothing is wrong with the run: submit it again
    KILLED = 76  # there is a stop file in the output root: nothing is to be submitted again
    BAD_NODE = 77  # a node is unfit (launch/preflight.py)
    INTERRUPTED = 130  # by Ctrl-C


# ------------------------------------------------------------------------------------------------ the rows of its files


# For each file {key: type} of the values that are computed with.
NUMBER = (int, float)
METRIC_TYPES = MappingProxyType(
    {"step": int, "tokens": NUMBER, "loss": NUMBER, "lr": NUMBER, "tokens_per_second": NUMBER, "seconds": NUMBER}
)
ATTEMPT_TYPES = MappingProxyType({"event": str, "job": str, "time": NUMBER, "step": int, "nodes": str, "log": int})
HEARTBEAT_TYPES = MappingProxyType({"time": NUMBER, "step": int, "nodes": list, "job": str})
RUN_KEYS = ("fingerprint", "config")
RUN_TYPES = MappingProxyType({"fingerprint": str, "config": dict, "data": dict, "seed": int})


def read_run(run_dir: Path, cure: str = "") -> dict[str, Any] | None:
    """Read the file run.json (RUN), which holds the configuration, code, machine and data of a run. Returns its object;
    None where there is no such file, as before the first launch. `cure`: a sentence for the error message that tells
    the user how to repair a damaged file. Raises Damaged where the file cannot be read, or is not one that training
    wrote."""
    return read_json(run_dir / RUN, RUN_KEYS, RUN_TYPES, cure)


def last_metric(run_dir: Path) -> tuple[dict[str, Any], str]:
    """The last undamaged row of metrics.jsonl (METRICS), and a sentence about damaged lines after it: (row, sentence).
    The row is {} where there is none; the sentence is "" where no line is damaged."""
    return last_undamaged_json_line(run_dir / METRICS, ["step", "loss"], METRIC_TYPES)


def read_attempts(run_dir: Path) -> tuple[list[dict[str, Any]], str]:
    """The rows of attempts.jsonl (ATTEMPTS), which launch/slurm/attempts.py writes, and a sentence about damaged lines:
    (rows, sentence). The sentence is "" where no line is damaged."""
    return read_json_lines(run_dir / ATTEMPTS, ["event", "job"], ATTEMPT_TYPES)


def read_heartbeat(run_dir: Path) -> dict[str, Any]:
    """The object in heartbeat.json (HEARTBEAT); {} where the file is missing or damaged, which is no error, since a new
    heartbeat is written within seconds."""
    try:
        return read_json(run_dir / HEARTBEAT, ["time"], HEARTBEAT_TYPES) or {}
    except Damaged:
        return {}


# ------------------------------------------------------------------------------------------------ registration


REGISTRATION_KEYS = ("time", "step", "previous", "content", "sha256")
REGISTRATION_TYPES = MappingProxyType({"time": str, "step": int, "previous": str, "content": dict, "sha256": str})


def append_registration(run_dir: Path, content: dict[str, Any], step: int) -> None:
    """Append a study's registration to the file registered.jsonl (REGISTERED) of a run. Nothing is appended if it
    equals the study's last one in the file. `content`: the registration, from `ablations.registration.registration_of`;
    `step`: the last step that the run has trained."""
    lines, _ = read_registrations(run_dir)
    as_read = json.loads(json.dumps(content))  # as the file gives it back: tuples become lists
    of_study = [line["content"] for line in lines if line["content"].get("study") == content["study"]]
    if of_study and of_study[-1] == as_read:
        return
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    line = {"time": now, "step": step, "previous": lines[-1]["sha256"] if lines else "", "content": as_read}
    append_row(run_dir / REGISTERED, line | {"sha256": json_digest(line)})


def read_registrations(run_dir: Path) -> tuple[list[dict[str, Any]], str]:
    """Read registered.jsonl (REGISTERED), the registrations of studies in a run. Returns (the lines, a sentence about
    damage of the file). The sentence is "" where there is none. A line is left out where its own hash is wrong, or it
    does not contain the hash of the line before."""
    rows, problem = read_json_lines(run_dir / REGISTERED, REGISTRATION_KEYS, REGISTRATION_TYPES)
    whole: list[dict[str, Any]] = []
    for row in rows:
        body = {key: value for key, value in row.items() if key != "sha256"}
        previous = whole[-1]["sha256"] if whole else ""
        if row["sha256"] == json_digest(body) and row["previous"] == previous:
            whole.append(row)
        else:
            problem = f"{run_dir / REGISTERED} was changed after it was written: a hash differs"
    return whole, problem


# ------------------------------------------------------------------------------------------------ checkpoints


class FragmentKey(NamedTuple):
    """The name of a tensor in a checkpoint. The tensor holds consecutive elements of a flattened parameter or optimizer
    moment, the first of which has the index `start`. As text the name is "parameter|kind|start", followed by
    "|rank|size" where tensor parallelism cuts the parameter."""

    parameter: str
    kind: str  # "weight", "exp_avg" or "exp_avg_sq"
    start: int
    rank: int = 0  # index of the part of the parameter, where tensor parallelism cuts it
    size: int = 1  # number of parts of the parameter

    def __str__(self) -> str:
        part = f"|{self.rank}|{self.size}" if self.size > 1 else ""
        return f"{self.parameter}|{self.kind}|{self.start}{part}"

    @classmethod
    def parse(cls, key: str) -> "FragmentKey":
        parameter, kind, start, *part = key.split("|")
        rank, size = map(int, part or (0, 1))
        return cls(parameter, kind, int(start), rank, size)


def step_of(folder: Path) -> int | None:
    """The step in the name of a checkpoint's folder: 92 of step_92 or weights_92; None for other names."""
    match = re.fullmatch(r"(?:step|weights)_([0-9]+)", folder.name)
    return int(match[1]) if match else None


def checkpoints(folder: Path, kind: str = "step") -> list[Path]:
    """The folders of the complete checkpoints of a run, the newest first. A checkpoint is complete where its folder
    holds a checkpoint.json. `folder`: the folder `checkpoints` of a run directory; `kind`: "step" for checkpoints from
    which training continues, "weights" for weights that are kept for evaluation."""
    folders = {path.parent: step_of(path.parent) for path in folder.glob(f"{kind}_*/{CHECKPOINT}")}
    steps = {folder: step for folder, step in folders.items() if step is not None}
    return sorted(steps, key=steps.__getitem__, reverse=True)


def last_step(run_dir: Path) -> int:
    """The step of the newest checkpoint of a run; 0 where there is none."""
    return next((step_of(folder) or 0 for folder in checkpoints(run_dir / CHECKPOINTS)), 0)


def write_checkpoint(folder: Path, index: dict[str, Any]) -> None:
    """Write the file checkpoint.json (CHECKPOINT) into a checkpoint's folder, which makes the checkpoint complete. Its
    tensors must have reached the disk. `index`: {"step": number, "tokens": number or None, "state": the state that
    training continues from, "files": {name: `checksum`}}."""
    as_read = json.loads(json.dumps(index))  # keys that are numbers become strings, tuples become lists
    write_json(folder / CHECKPOINT, as_read | {"sha256": json_digest(as_read)})


def read_checkpoint(folder: Path) -> dict[str, Any]:
    """Read and check the file checkpoint.json (CHECKPOINT) of a checkpoint's folder. Returns its object, without the
    entry "sha256". Raises Damaged where the file is missing, or was changed after it was written."""
    path = folder / CHECKPOINT
    index = read_json(path, ["step", "files", "state", "sha256"], {"step": int, "files": dict, "state": dict})
    if index is None:
        raise Damaged(f"{path} is missing")
    if index.pop("sha256") != json_digest(index):
        raise Damaged(f"{path} is damaged: its sha256 differs")
    if any(Path(name).name != name for name in index["files"]):
        raise Damaged(f"{path} names files outside its folder")
    if index["step"] != step_of(folder):
        raise Damaged(f"{path} is that of step {index['step']}")
    return index


def steps_to_evaluate(run_dir: Path) -> list[int]:
    """The steps of the weights that a run has saved for evaluation (layout.eval_at) and that have no evaluation yet, in
    ascending order."""
    steps = [step_of(folder) or 0 for folder in checkpoints(run_dir / CHECKPOINTS, "weights")]
    return sorted(step for step in steps if not (run_dir / eval_file_name(step)).exists())


# ------------------------------------------------------------------------------------------------ trained, and locked


def write_done(run_dir: Path, summary: dict[str, Any]) -> None:
    """Write the file `done` (DONE), which marks the run as trained. It holds the entries of `summary` and the checksum
    of the trained weights, which must have reached the disk."""
    write_json(run_dir / DONE, summary | {"weights": checksum(run_dir / WEIGHTS)})


def read_done(run_dir: Path, verify: bool = False) -> dict[str, Any] | None:
    """Read the file `done` (DONE), which marks a run as trained. Returns its object, with the number of steps and the
    checksum of the weights; None while the run is not trained. `verify`: whether to compare the sha256 of the weights
    too, for which all of them are read.

    Raises Damaged if the file is damaged, or the weights are missing or were changed. `launch.local` then continues
    from the last checkpoint and writes the file and the weights again.
    """
    cure = "The same command repairs it from the run's last checkpoint."
    summary = read_json(run_dir / DONE, cure=cure)
    if summary is None:
        return None
    path = run_dir / WEIGHTS
    expected = summary.get("weights")
    if isinstance(expected, dict) and {"bytes", "sha256"} <= expected.keys() and verify:
        complaint = describe_damage(path, expected)
    else:
        complaint = "" if path.exists() else f"{path.name} is missing"
        if not complaint and isinstance(expected, dict) and path.stat().st_size != expected.get("bytes"):
            complaint = f"{path.name} has {path.stat().st_size:,} bytes instead of {expected.get('bytes')}"
    if complaint:
        raise Damaged(f"{path} is damaged: {complaint}. {cure}")
    return summary


def is_exported(run_dir: Path) -> bool:
    """Whether the folder `hub` (HUB) of a run directory holds an export of the run's present weights."""
    try:
        summary, config = read_done(run_dir), read_json(run_dir / HUB / "config.json")
        if summary is None or config is None:
            return False
        return bool(config["trained_by"]["weights"] == summary["weights"]["sha256"])
    except (Damaged, KeyError, TypeError):
        return False


@contextmanager
def lock(run_dir: Path) -> Iterator[None]:
    """A context in which this process holds the lock of a run directory, so that no other process trains the run.

    Raises:
        BlockingIOError: another process holds the lock.
        OSError: the file system has no locks, or the lock file is a symbolic link.
    """
    with os.fdopen(os.open(run_dir / LOCK, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o666), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.utime(lock.fileno())  # ablations/status.py reads from it when the lock was taken
        yield


def is_locked(run_dir: Path) -> bool:
    """Whether a process holds the `lock` of a run directory. A lock on another machine is seen only if the file system
    shares locks."""
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
