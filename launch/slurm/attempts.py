"""Records a run's attempts under Slurm, and decides after each attempt whether its job is requeued or given up.
`launch/run.sh` calls it at the start and the end of an attempt.

attempts.jsonl in the run directory has a line for each submission, start and end. Where the end is missing, the node
was lost. The decision is made from the files that the run left, not from the exit code: when several ranks end
together, Slurm kills the slower ones, and the exit code may be theirs.
"""

import argparse
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from ablations import rundir, safe_files
from ablations.config import ConfigError
from ablations.rundir import Exit, is_locked, last_step
from ablations.status import MOST_CLOCK_SKEW, SILENT_SECONDS
from ablations.study import Cell, Study, from_args
from launch.local import prepare_missing_data
from launch.repair import is_trained, repair_run_directory
from launch.watch import stop_reason

MAX_ATTEMPTS = 3  # attempts of one job without a newer checkpoint, after which the run is given up; untuned
LEAVING_SECONDS = SILENT_SECONDS + 15  # seconds to wait until another job's attempt has ended or its heartbeat stopped
MAX_TRIES = 30  # calls of scontrol while Slurm's controller does not answer; untuned
PAUSE_SECONDS = 20.0  # seconds between these tries; untuned
PREEMPTED, REQUEUED = "told to leave", "requeued by Slurm"  # ends that do not count against the run


def start_attempt(job: str, cell: Cell, out: Path) -> int:
    """Begin an attempt of a job to train a run: record it, and print the run directory for launch/run.sh, which then
    trains the run. Nothing is printed where the run is finished or must not start.

    Args:
        job: the job's id, in an array with the task's index ("12_3").
        cell: the run.
        out: the output root.

    Returns:
        The exit code: 0 where the run is finished or to be trained; Exit.KILLED where the output root has a stop file;
            1 where another job trains the run, or too many attempts have failed.
    """
    if repaired := repair_run_directory(cell):
        print_with_time(repaired)
    if rundir.read_done(cell.dir) is not None:
        print_with_time(f"{cell.name} is finished: {cell.dir}")
        return Exit.FINISHED
    if reason := stop_reason(out):
        print_with_time(f"nothing starts until this file is removed: {reason}")
        if rundir.read_attempts(cell.dir)[0]:  # without this end, the submitted run would count as queued
            why = f"by the file {out / rundir.STOP}"
            record_attempt(cell.dir, event="end", job=job, step=last_step(cell.dir), how="killed", why=why, again=False)
        return Exit.KILLED
    began = time.monotonic()
    while is_trained_by_another_job(cell.dir):
        if time.monotonic() - began > LEAVING_SECONDS:
            print_with_time(
                f"{cell.name} is being trained by another job ({cell.dir / rundir.ATTEMPTS}): nothing is done here"
            )
            return 1
        time.sleep(1)
    cell.dir.mkdir(parents=True, exist_ok=True)
    step = last_step(cell.dir)
    if (attempts := attempts_without_progress(cell.dir, job, step)) >= MAX_ATTEMPTS:
        print_with_time(mark_as_failed(cell.dir, job, attempts, "without a word, as when a node loses its power"))
        return 1
    for old in (rundir.STOP, rundir.FAILED):
        (cell.dir / old).unlink(missing_ok=True)
    nodes = os.environ.get("SLURM_JOB_NODELIST", "")
    log = cell.dir / rundir.TRAIN_LOG
    safe_files.open_to_write(log, append=True).close()  # refuses a link, which the shell in run.sh would follow
    size = log.stat().st_size  # where the output of this attempt begins
    record_attempt(cell.dir, event="start", job=job, restart=restart_count(), nodes=nodes, step=step, log=size)
    print_with_time(f"{cell.name} from step {step} on {nodes}: {cell.dir}/train.log")
    print(cell.dir)
    return 0


def prepare_data(job: str, cell: Cell, study: Study) -> bool:
    """Prepare missing data before a run's ranks start. Returns whether the run can start; if not, the reason is printed
    and recorded as the end of the attempt.

    Data are usually prepared by `make ablation ON=slurm` on the login node. Missing ones are prepared here and not by
    the ranks, since a rank waits for another only until a collective times out. `job`: the job's id, after which its
    log is named.
    """
    if is_trained(cell) or (study.out / rundir.STOP).exists():
        return True
    try:
        prepare_missing_data(study, [cell])
    except ConfigError as error:
        print_with_time(f"error: {error}")
        cell.dir.mkdir(parents=True, exist_ok=True)
        why = f"the data cannot be prepared, see {study.out}/slurm/{job}.log"
        record_attempt(cell.dir, event="end", job=job, step=last_step(cell.dir), how="failed", why=why, again=False)
        return False
    return True


def end_attempt(job: str, folder: Path, code: int, signal: str) -> int:
    """Record how an attempt ended, and requeue the job when the run needs another attempt.

    Args:
        job: the job's id, in an array with the task's index ("12_3").
        folder: the run directory.
        code: srun's exit code.
        signal: the signal that Slurm sent to end the job, such as TERM. LIMIT: the job's time is over, and
            launch/run.sh has requeued it already. "": no signal.

    Returns:
        The exit code of the job: 0 where the run is finished; else `code`, or 1 where `code` is 0.
    """
    out = folder.parent.parent
    step, why, again = last_step(folder), "", False
    state = job_state(job)
    if unfit := dict.fromkeys(search_rank_output(folder, job, "unfit: (.*)")):  # nodes that cannot write this file
        safe_files.append_lines(out / rundir.BAD_NODES, "".join(f"{line}\n" for line in unfit))
    bad = bad_nodes(out) & node_names(os.environ.get("SLURM_JOB_NODELIST", ""))
    if (folder / rundir.DONE).exists():
        ending = "finished"
    elif (out / rundir.STOP).exists():
        ending, why = "killed", f"by the file {out / rundir.STOP}"
    elif signal != "LIMIT" and state["state"] not in ("RUNNING", "unknown") and state["reason"] != "TimeLimit":
        # Slurm has ended the job: it starts the job again by itself, or the job was cancelled and must not be requeued
        ending = REQUEUED if state["restarts"] > restart_count() else "cancelled"
    elif (folder / rundir.FAILED).exists():
        ending, why = "failed", safe_files.read_text(folder / rundir.FAILED)
    elif is_trained_by_another_job(folder):  # no file `failed` is written: it would count as a failure of that job
        ending = "another job trains this run"
    # a wrong configuration: the same again would end the same way
    elif code == 2 or last_configuration_error(folder, job):
        ending, why = "failed", last_configuration_error(folder, job) or "see train.log"
        safe_files.write_text(folder / rundir.FAILED, f"{why}\n")
    else:
        ending, again = f"srun's exit code {code}", True
        if bad:
            ending = f"bad nodes: {','.join(sorted(bad))}"
        elif signal == "LIMIT" or state["reason"] == "TimeLimit":
            ending = "time limit"
        elif signal == "TERM" or state["preempted"]:
            ending = PREEMPTED
        elif signal:
            ending = "warned of the time limit"
        if ending != PREEMPTED and (attempts := attempts_without_progress(folder, job, step)) >= MAX_ATTEMPTS:
            ending, why, again = "failed", mark_as_failed(folder, job, attempts, ending), False
    record_attempt(
        folder, event="end", job=job, step=step, code=code, how=ending, **({"why": why} if why else {}), again=again
    )
    print_with_time(
        f"step {step}: {ending}{why and ', '}{why}; {'back into the queue' if again else 'the end of this job'}"
    )
    if again and (state["restarts"] == restart_count() or state["state"] == "unknown" and signal != "LIMIT"):
        requeue(job, state["excluded"] | bad)
    return 0 if ending == "finished" else code or 1


def is_trained_by_another_job(folder: Path) -> bool:
    """Whether another job is training the run in directory `folder`. Two signs are needed: the directory is locked, and
    another job has written a recent heartbeat. A lost node may leave the lock behind, and a killed attempt the
    heartbeat."""
    heartbeat = rundir.read_heartbeat(folder)
    recent = -MOST_CLOCK_SKEW <= time.time() - heartbeat.get("time", 0.0) < SILENT_SECONDS
    return recent and heartbeat.get("job") != os.environ.get("SLURM_JOB_ID", "") and is_locked(folder)


def last_configuration_error(folder: Path, job: str) -> str:
    """The last configuration error that a rank printed in the job's last attempt; "" where there is none. It is read
    from train.log in the run directory `folder`: srun's exit code may be that of another rank, which was killed."""
    return next(reversed(search_rank_output(folder, job, "error: (.*)")), "")


def search_rank_output(folder: Path, job: str, pattern: str) -> list[str]:
    """Search train.log for lines that ranks printed in the job's last attempt.

    Args:
        folder: the run directory.
        job: the job's id.
        pattern: a regular expression, for the beginning of a line without the rank's number that srun puts there.

    Returns:
        For each line that matches: the matched text, or that of the group in `pattern` where it has one.
    """
    starts = [row for row in rundir.read_attempts(folder)[0] if row["event"] == "start" and row["job"] == job]
    try:
        with open(folder / rundir.TRAIN_LOG, "rb") as log:
            log.seek(starts[-1].get("log", 0) if starts else 0)
            return re.findall(rf"^ *\d+: {pattern}", log.read().decode(errors="replace"), re.MULTILINE)
    except OSError:
        return []


def mark_as_failed(folder: Path, job: str, attempts: int, ending: str) -> str:
    """Give a run up after `attempts` attempts of a job without progress. Returns the reason, and writes it into the
    file `failed` of the run directory `folder`, unless another job trains the run. `ending`: how the last attempt
    ended, in words."""
    why = f"{attempts} attempts of job {job} without a newer checkpoint; the last ended: {ending}. See train.log"
    if not is_locked(folder):  # else another job trains it, and it is not failed
        safe_files.write_text(folder / rundir.FAILED, f"{why}\n")
    return why


def attempts_without_progress(folder: Path, job: str, step: int) -> int:
    """The number of a job's attempts that began at `step`, the step of the newest checkpoint, and so have made no
    progress. Attempts that Slurm preempted or requeued do not count. `folder`: the run directory."""
    starts: list[dict[str, Any]] = []
    for line in rundir.read_attempts(folder)[0]:
        if line["event"] == "start" and line["job"] == job and line.get("step") == step:
            starts.append(line)
        elif line["event"] == "end" and starts and line.get("how") in (PREEMPTED, REQUEUED):
            starts.pop()
    return len(starts)


def requeue(job: str, excluded: set[str]) -> None:
    """Requeue the job `job`, in which this process runs, and have it avoid the nodes `excluded`. Slurm then sends the
    job SIGTERM, which launch/run.sh ignores. Where Slurm refuses, its message is printed."""
    process = scontrol("requeue", job)
    if process.returncode and job_state(job)["state"] in ("RUNNING", "unknown"):
        print_with_time(f"the job could not be requeued ({process.stderr.strip()}): submit it again")
    if excluded:  # takes effect on a job that is pending, which the requeued job now is
        nodes = ",".join(sorted(excluded))
        process = scontrol("update", f"JobId={job}", f"ExcNodeList={nodes}")
        print_with_time(f"from now on without {nodes}{process.stderr and ': Slurm refused: '}{process.stderr.strip()}")


def job_state(job: str) -> dict[str, Any]:
    """The state of a job as Slurm reports it: {"state": such as "RUNNING", "reason": such as "TimeLimit", "restarts":
    int, "preempted": bool, "excluded": set of nodes}. Where Slurm does not answer, "state" is "unknown"."""
    text = scontrol("-o", "show", "job", job).stdout
    fields = dict(re.findall(r"(JobState|Reason|Restarts|PreemptTime|ExcNodeList)=(\S+)", text))
    excluded = fields.get("ExcNodeList", "(null)")
    return {
        "state": fields.get("JobState", "unknown"),
        "reason": fields.get("Reason", ""),
        "restarts": int(fields.get("Restarts", "0")),
        "preempted": fields.get("PreemptTime", "None") not in ("None", "N/A"),
        "excluded": set() if excluded == "(null)" else node_names(excluded),
    }


def scontrol(*words: str) -> subprocess.CompletedProcess[str]:
    """Run scontrol with the arguments `words`. Returns the ended process, even if scontrol failed. While Slurm's
    controller does not answer, it is run again, up to MAX_TRIES times in all."""
    for tries_left in reversed(range(MAX_TRIES)):
        process = subprocess.run(["scontrol", *words], capture_output=True, text=True)
        if not process.returncode or not re.search("contact slurm controller|timed out|Zero Bytes", process.stderr):
            break
        if tries_left:
            time.sleep(PAUSE_SECONDS)
    return process


def bad_nodes(out: Path) -> set[str]:
    """The nodes named in the file bad_nodes of the output root, which has lines "node reason". The user removes the
    line of a node that is repaired."""
    return {line.split()[0] for line in safe_files.read_text(out / rundir.BAD_NODES).splitlines() if line.strip()}


def node_names(nodes: str) -> set[str]:
    """The names in a list of nodes in Slurm's notation: "node[1-2]" -> {"node1", "node2"}."""
    if not nodes:
        return set()
    shown = subprocess.run(["scontrol", "show", "hostnames", nodes], capture_output=True, text=True)
    return set(shown.stdout.split())


def restart_count() -> int:
    """The number of times that Slurm has restarted this job."""
    return int(os.environ.get("SLURM_RESTART_COUNT", "0"))


def record_attempt(folder: Path, **row: Any) -> None:
    """Append a row to attempts.jsonl of a run directory, with the time added. `row`: "event" ("submitted", "start" or
    "end"), "job" (the job's id), and further facts about the event."""
    safe_files.append_row(folder / rundir.ATTEMPTS, {"time": round(time.time(), 1)} | row)


def print_with_time(text: str) -> None:
    """Print a line with the time to standard error, which is the job's log."""
    print(f"{time.strftime('%F %T')} {text}", file=sys.stderr, flush=True)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m launch.slurm.attempts", description=__doc__)
    sub = parser.add_subparsers(dest="command", required=True)
    begin = sub.add_parser("start")
    begin.add_argument("job")
    begin.add_argument("cell", type=int)
    begin.add_argument("words", nargs="+")
    finish = sub.add_parser("end")
    finish.add_argument("job")
    finish.add_argument("run", type=Path)
    finish.add_argument("--code", type=int, required=True)
    finish.add_argument("--signal", default="")
    args = parser.parse_args(argv)
    if args.command == "end":
        return end_attempt(args.job, args.run, args.code, args.signal)
    try:
        study = from_args(args.words)
        if args.cell not in range(len(study.cells)):
            raise ConfigError(f"the array's index {args.cell}: the plan has the runs 0 to {len(study.cells) - 1}")
        cell = study.cells[args.cell]
        return start_attempt(args.job, cell, study.out) if prepare_data(args.job, cell, study) else Exit.INVALID
    except ConfigError as error:
        print_with_time(f"error: {safe_files.printable(str(error))}")
        return Exit.INVALID
    except OSError as error:
        if not (reason := safe_files.storage_error_message(error)):
            raise
        print_with_time(f"error: {reason}")
        return Exit.FAILED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
