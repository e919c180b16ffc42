"""Submits a study to Slurm: python -m launch.slurm.submit --nodes 4 STUDY=position.

The study becomes three jobs. The first is an array that trains, with a task for each run. The second is an array that
evaluates each run once it is trained, and exports it with EXPORT=1. The third writes the report, whether the runs
succeeded or not. Data are prepared first, on the login node, since compute nodes may have no network.
"""

import argparse
import functools
import importlib.metadata
import os
import re
import shlex
import shutil
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, TypedDict

from ablations import answers, rundir, safe_files
from ablations.config import ConfigError, fit_micro_batch
from ablations.rundir import Exit, steps_to_evaluate
from ablations.safe_files import Damaged
from ablations.site import find_site_file, read_site
from ablations.strict_yaml import read_yaml
from ablations.study import ROOT, Cell, Study, from_args
from ablations.words import change_to_checkout
from launch.local import check_evaluation, prepare_missing_data
from launch.repair import is_trained
from launch.slurm.attempts import bad_nodes, record_attempt
from launch.watch import stop_reason

NO_SLURM = "there is no sbatch on this machine: is this a login node of a Slurm cluster?"
# In the script of a job: the Python that the site file names, as in launch/run.sh, or the one that submitted the job.
PYTHON = '"${PYTHON:-$python}"'


class Job(TypedDict):
    """A submitted Slurm job. A job for several runs is a job array, whose task indices are the indices of the runs."""

    job: str  # its id
    does: str  # "train", "evaluate" or "report"
    runs: list[int]  # indices into the study's runs


def submit(study: Study, options: list[str], variables: dict[str, str], ranks: int) -> list[Job]:
    """Submit the runs of a study that are not finished, and print the jobs' ids and where their logs are.

    Args:
        study: the study.
        options: options of sbatch for the training array.
        variables: environment variables for sbatch, from the site file.
        ranks: the number of ranks of each run.

    Returns:
        The jobs in the order in which they were submitted (training, evaluation, report); an empty list where nothing
        is left to do.

    Raises:
        ConfigError: the study cannot be run, and nothing was submitted; or sbatch refuses a job.
    """
    _check_submittable(study, ranks)
    todo = [i for i, c in enumerate(study.cells) if not is_fully_evaluated(study, c)]
    queued = runs_in_queue(study)
    for i in sorted(queued):
        print(f"run {i}, {study.cells[i].name}: already in the queue as job {queued[i]}")
    untrained = [i for i in todo if i not in queued and not is_trained(study.cells[i])]
    trained = [i for i in todo if is_trained(study.cells[i])]
    in_training = [i for i in sorted(queued) if i not in trained and steps_to_evaluate(study.cells[i].dir)]
    if not untrained and not trained and not in_training:
        print("nothing to submit: every run is finished or in the queue")
        return []
    prepare_missing_data(study, [study.cells[i] for i in todo])
    _log_folder(study).mkdir(parents=True, exist_ok=True)

    if bad := sorted(bad_nodes(study.out)):  # joined with the site's, since sbatch obeys only the last --exclude
        excluded = [o.removeprefix("--exclude=") for o in options if o.startswith("--exclude=")]
        options = [o for o in options if not o.startswith("--exclude=")] + [f"--exclude={','.join([*excluded, *bad])}"]
    jobs: list[Job] = []
    if untrained:
        jobs.append(submit_training(study, untrained, variables, options))
        after = [f"--dependency=aftercorr:{jobs[0]['job']}", "--kill-on-invalid-dep=yes"]
        jobs.append(submit_evaluation(study, untrained, variables, options, after, "each when it is trained"))
    if trained:
        jobs.append(submit_evaluation(study, trained, variables, options, [], "what is trained"))
    if in_training:
        what = "what runs that go on have kept on the way (layout.eval_at)"
        jobs.append(submit_evaluation(study, in_training, variables, options, [], what))
    jobs.append(submit_report(study, [job["job"] for job in jobs if job["does"] == "evaluate"], variables, options))
    print(f"how far it is:   make status {shlex.join(study.words)}    (WATCH=1 for a live view)")
    runs = study.out / study.stage
    print(f"logs:            {_log_folder(study)}/JOB.log, and train.log in each run's folder under {runs}")
    print(
        f"to stop it all:  touch {study.out / rundir.STOP}    (runs save and leave the queue; remove it, submit again)"
    )
    return jobs


def _check_submittable(study: Study, ranks: int) -> None:
    """Check a study before hours are spent on preparing its data. `ranks`: the number of ranks of each run. Raises
    ConfigError where the study cannot be run; for a damaged run directory, only a warning is printed."""
    if study.criteria.sequential:
        seeds, most = len(study.seeds), study.criteria.seeds
        print(f"MORE=auto: a queue adds no seeds. If the report says undecided: SEEDS={min(seeds + 1, most)}")
    if not shutil.which("sbatch"):
        raise ConfigError(NO_SLURM)
    for cell in study.cells:
        try:
            cell.check_same_configuration()
        except Damaged as error:  # the run's job repairs it, or fails alone
            print(f"warning: {cell.name}: {error}", file=sys.stderr)
        fit_micro_batch(cell.run, max(1, ranks // cell.run.layout.tp))
    if reason := stop_reason(study.out):
        raise ConfigError(f"nothing starts until this file is removed: {reason}")
    check_evaluation(study)


def submit_training(study: Study, cells: list[int], variables: dict[str, str], options: list[str]) -> Job:
    """Submit the job array that trains runs of a study.

    Args:
        study: the study.
        cells: indices of the runs in `study.cells`.
        variables: environment variables for sbatch, from the site file.
        options: options of sbatch, such as partition, account, nodes and time.
    """
    words = add_mtbf(study.words, variables)
    from_args(words)  # raises for an error of the site file here, and not hours later in the first job
    command = [f"--job-name={study.name}", *options, f"--array={_index_ranges(cells)}", "launch/run.sh", *words]
    job = sbatch(command, variables)
    for i in cells:
        study.cells[i].dir.mkdir(parents=True, exist_ok=True)
        record_attempt(study.cells[i].dir, event="submitted", job=f"{job}_{i}")
    print(f"job {job}: trains {len(cells)} run{'s' * (len(cells) > 1)}: array indices {_index_ranges(cells)}")
    return {"job": job, "does": "train", "runs": cells}


def submit_report(study: Study, after: list[str], variables: dict[str, str], options: list[str]) -> Job:
    """Submit the job that writes the report.

    Args:
        study: the study.
        after: ids of the jobs that the report waits for, whether they succeed or not.
        variables: environment variables for sbatch, from the site file.
        options: options of sbatch for the training array; partition, account and the like are taken from them.
    """
    logs = _log_folder(study)
    waiting = [f"--dependency=afterany:{':'.join(after)}", f"--output={logs}/%j.log"]
    script = f"exec {PYTHON} -m eval.report {shlex.join(study.words)}"
    job = sbatch([*_options_for_one_slurm_task("report", options), *waiting], variables, script)
    print(f"job {job}: the report; {logs}/{job}.log says where it is\n")
    return {"job": job, "does": "report", "runs": list(range(len(study.cells)))}


def is_fully_evaluated(study: Study, cell: Cell) -> bool:
    """Whether a run needs no further evaluation: its eval.json has the results of all tasks of the study, and the run
    is exported if the study asks for that. False where task data are newer than eval.json, since more tasks may then be
    possible."""
    path = cell.dir / rundir.EVAL
    try:
        scores = safe_files.read_json(path)
        if scores is None or not is_trained(cell):
            return False
    except Damaged:
        return False
    if steps_to_evaluate(cell.dir) or not _current_evaluation_versions().items() <= scores.items():
        return False
    if study.exports and not rundir.is_exported(cell.dir):
        return False
    if not study.eval_options:
        return True
    options = dict(zip(study.eval_options[::2], study.eval_options[1::2], strict=True))
    tasks = {name.strip() for name in options["--tasks"].split(",")} - {""}
    shots = int(options["--shots"]) if "--shots" in options else None
    earlier = scores.get("lm_eval_tasks", {"asked": []})
    newer = Path(options["--data"], "manifest.json").stat().st_ctime > path.stat().st_mtime
    return not newer and tasks <= set(earlier["asked"]) and earlier.get("shots") == shots


@functools.cache
def _current_evaluation_versions() -> dict[str, Any]:
    """The versions that an evaluation records in eval.json: {"version": version of eval/tasks/tasks.yaml, "lm_eval":
    version of the installed package}."""
    tasks = read_yaml(ROOT / "eval/tasks/tasks.yaml")
    return {"version": tasks["version"], "lm_eval": importlib.metadata.version("lm_eval")}


def submit_evaluation(
    study: Study, cells: list[int], variables: dict[str, str], options: list[str], after: list[str], what: str
) -> Job:
    """Submit a job array that evaluates runs of a study, and exports them if the study asks for that.

    Args:
        study: the study.
        cells: indices of the runs in `study.cells`.
        variables: environment variables for sbatch, from the site file.
        options: options of sbatch for the training array; partition, account and the like are taken from them.
        after: the option of sbatch (--dependency=...) that names the jobs to wait for, in a list; [] for none.
        what: the runs that are evaluated, in words for the terminal, such as "what is trained".
    """
    folders = " ".join(f"[{i}]={shlex.quote(str(study.cells[i].dir))}" for i in cells)
    store = ["--store", str(study.out / rundir.DATA)]
    script = f"runs=({folders})\nrun=${{runs[$SLURM_ARRAY_TASK_ID]}}\n"
    evaluate = f'{PYTHON} -m eval {shlex.join([*study.eval_options, *store])} "$run"'
    if study.exports:  # only of trained runs: others are exported when they are trained
        export = f'{PYTHON} -m eval.export {shlex.join(store)} "$run"'
        script += f'{evaluate} || exit\n[ ! -e "$run/{rundir.DONE}" ] || exec {export}'
    else:
        script += f"exec {evaluate}"
    array = [f"--array={_index_ranges(cells)}", f"--output={_log_folder(study)}/%A_%a.log"]
    gpus = "SBATCH_GPUS_PER_NODE" in variables or any(o.startswith("--gres=gpu") for o in options)
    gpu = ["--gpus-per-node=1"] if gpus else []
    job = sbatch(_options_for_one_slurm_task("evaluation", options) + gpu + array + after, variables, script)
    print(f"job {job}: evaluates {what}")
    return {"job": job, "does": "evaluate", "runs": cells}


def sbatch(arguments: list[str], variables: dict[str, str], script: str | None = None) -> str:
    """Submit a job to Slurm with sbatch.

    Args:
        arguments: options of sbatch and, unless `script` is given, the file to run with its arguments.
        variables: environment variables to add for sbatch.
        script: bash code that the job runs instead of a file.

    Returns:
        The job's id.

    Raises:
        ConfigError: there is no sbatch; or sbatch refuses the job, and the message is sbatch's.
    """
    # Where this process runs in a job, the variables of that job must not become options of the next one. PYTHON may be
    # that of `make PYTHON=python3.12`, which makes .venv; a job takes PYTHON from the site file.
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_") or k == "SLURM_CONF"}
    env = {k: v for k, v in inherited.items() if k != "PYTHON"} | variables
    command = ["sbatch", "--parsable", *arguments]
    try:
        # as launch/run.sh does: the site file may also load modules or set folders that jobs need
        begin = f'#!/bin/bash\npython={shlex.quote(sys.executable)}\n[ -z "${{SITE:-}}" ] || . "$SITE"\n'
        text = f"{begin}{script}\n" if script else None
        process = subprocess.run(command, env=env, cwd=ROOT, input=text, capture_output=True, text=True)
    except FileNotFoundError:
        raise ConfigError(NO_SLURM) from None
    if process.returncode:
        raise ConfigError(f"{shlex.join(command)}: {process.stderr.strip()}")
    return process.stdout.strip().partition(";")[0]


def _options_for_one_slurm_task(name: str, options: list[str]) -> list[str]:
    """Options of sbatch for a job named `name` with one task on one node. Partition, account, time and the like are
    taken from `options`, those of the training array."""
    place = ("--partition=", "--account=", "--qos=", "--constraint=", "--reservation=", "--time=", "--exclude=")
    same = [o for o in options if o.startswith(place)]
    return [f"--job-name={name}", "--nodes=1", "--requeue", "--open-mode=append", *same]


def runs_in_queue(study: Study) -> dict[int, str]:
    """The runs whose last job is still in Slurm's queue: {index of the run in the study: id of the job}. Empty without
    Slurm. Raises ConfigError where Slurm does not answer."""
    last = {i: lines[-1]["job"] for i, c in enumerate(study.cells) if (lines := rundir.read_attempts(c.dir)[0])}
    if not last:
        return {}
    try:
        process = subprocess.run(["squeue", "--noheader", "--array", "--format=%i"], capture_output=True, text=True)
    except FileNotFoundError:
        return {}
    if process.returncode:  # no answer is not an empty queue: a run would be submitted twice
        raise ConfigError(f"squeue: {process.stderr.strip()}")
    return {i: job for i, job in last.items() if job in process.stdout.split()}


def options_of_job(job: str) -> list[str]:
    """Options of sbatch that ask for the same resources as the existing job `job`: nodes, time, memory, GPUs,
    partition, account and the like."""
    text = subprocess.run(["scontrol", "-o", "show", "job", job], capture_output=True, text=True, check=True).stdout
    fields = dict(re.findall(r"(\S+?)=(\S*)", text))
    names = {
        "NumNodes": "nodes",
        "Partition": "partition",
        "TimeLimit": "time",
        "Account": "account",
        "QOS": "qos",
        "Features": "constraint",
        "Reservation": "reservation",
        "ExcNodeList": "exclude",
        "CPUs/Task": "cpus-per-task",
        "MinMemoryNode": "mem",
        "MinMemoryCPU": "mem-per-cpu",
    }
    options = [
        f"--{o}={fields[k].split('-')[0] if k == 'NumNodes' else fields[k]}"
        for k, o in names.items()
        if fields.get(k, "(null)") not in ("(null)", "N/A")
    ]
    per_node = fields.get("NtasksPerN:B:S:C", "0").split(":")[0]
    if per_node not in ("0", ""):
        options.append(f"--ntasks-per-node={per_node}")
    if fields.get("TresPerNode", "(null)") != "(null)":
        options.append(f"--gres={re.sub('gres[:/]', '', fields['TresPerNode'])}")  # the sign depends on the version
    if fields.get("OverSubscribe") == "NO":
        options.append("--exclusive")
    return options


def add_mtbf(words: list[str], variables: dict[str, str]) -> list[str]:
    """Add the site's mean time between failures of a node to the NAME=VALUE words of a study, as SET=layout.mtbf=HOURS.
    It is read from NODE_MTBF_HOURS in `variables`, those of the site file. Returns the words; unchanged where the
    variable is missing or the words set layout.mtbf already."""
    if "NODE_MTBF_HOURS" not in variables or any("layout.mtbf=" in w for w in words):
        return words
    settings = [w.removeprefix("SET=") for w in words if w.startswith("SET=")]
    settings.append(f"layout.mtbf={variables['NODE_MTBF_HOURS']}")
    return [*(w for w in words if not w.startswith("SET=")), "SET=" + " ".join(settings)]


def _index_ranges(numbers: list[int]) -> str:
    """Ascending numbers in sbatch's notation of array indices: [0, 1, 2, 5] -> "0-2,5"."""
    ranges: list[list[int]] = []  # [first] or [first, last]
    for n in numbers:
        if ranges and ranges[-1][-1] == n - 1:
            ranges[-1][1:] = [n]
        else:
            ranges.append([n])
    return ",".join("-".join(map(str, ends)) for ends in ranges)


def _log_folder(study: Study) -> Path:
    """The folder for the logs of all jobs of the study."""
    return study.out / rundir.SLURM


def main(argv: list[str]) -> int:
    """Submit a study to Slurm. With FORMAT=json, standard output has the jobs as JSON and nothing else. `argv`: the
    words of the command line. Returns the exit code, an `Exit`."""
    parser = answers.Parser(prog="python -m launch.slurm.submit", description=__doc__)
    parser.add_argument("--nodes", default="1", help="for each run")
    parser.add_argument("--site", default="", help="a file of launch/sites, or a path (default: launch/site.sh)")
    parser.add_argument("--like", metavar="JOB", help="ask for what this job has; used by launch/run.sh")
    parser.add_argument("words", nargs="+", metavar="NAME=VALUE", help="the study, as for `python -m ablations`")
    args = parser.parse_args(argv)
    as_json = answers.asks_for_json(args.words)
    with redirect_stdout(sys.stderr if as_json else sys.stdout):
        code, answer = submit_request(args)
    if as_json:
        print(answer)
    return code


def submit_request(args: argparse.Namespace) -> tuple[Exit, str]:
    """Submit the study that the command line asks for. `args`: the parsed options and words. Returns (the exit code,
    the answer as JSON text)."""
    try:
        _, args.words = answers.extract_format(args.words)
        variables, path = read_site(args.site), find_site_file(args.site)
        if "SBATCH_GPUS_PER_NODE" in variables:
            os.environ.setdefault("MEGAHOUR_GPU", "1")
        study = from_args(change_to_checkout(args.words))
        if study.glue_options:
            raise ConfigError(
                "GLUE is no part of a study on Slurm: leave it out, and give `make glue RUN=...` afterwards"
            )
        if path:
            variables["SITE"] = str(path)
        if args.like:
            options, nodes = options_of_job(args.like), int(os.environ["SLURM_NNODES"])
            per_node = int(os.environ.get("SLURM_NTASKS_PER_NODE") or os.environ.get("SLURM_GPUS_ON_NODE") or 1)
        elif re.fullmatch("[0-9]{1,6}", args.nodes) and int(args.nodes) > 0:
            options, nodes = [f"--nodes={args.nodes}"], int(args.nodes)
            per_node = int(variables.get("SBATCH_GPUS_PER_NODE", "1").rpartition(":")[2])
        else:
            raise ConfigError(f"NODES={args.nodes}: a number of nodes for each run is needed")
        jobs = submit(study, options, variables, nodes * per_node)
    except ConfigError as error:
        print(f"error: {safe_files.printable(str(error))}", file=sys.stderr)
        return Exit.INVALID, answers.json_error(str(error))
    except OSError as error:
        if not (reason := safe_files.storage_error_message(error)):
            raise
        print(f"error: {reason}", file=sys.stderr)
        return Exit.FAILED, answers.json_error(reason)
    except KeyboardInterrupt:
        print("\ninterrupted; the same command continues", file=sys.stderr)
        return Exit.INTERRUPTED, answers.json_error("interrupted")
    content = answers.study_entries(study) | {"jobs": jobs, "logs": str(_log_folder(study))}
    return Exit.FINISHED, answers.json_answer("submission", content)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
