"""Writes run.json before the first step: configuration, code, machine and data of a run, and the proofs that its model
is the configured one."""

import importlib.metadata
import math
import os
import platform
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ablations import rundir, safe_files
from ablations.config import Run
from ablations.study import ROOT, Cell

OUR_PACKAGES = ("ablations", "data", "eval", "launch", "model")
RECORDED_PACKAGES = ["torch", "deepspeed", "megatron-core", "datatrove", "sentencepiece", "numpy"]


class RunFailed(RuntimeError):
    """A run cannot go on; the message says why, and what to do."""

    retry = False  # whether a second attempt, perhaps on other nodes, may succeed


class Diverged(RunFailed):
    """Training diverged: the loss or the gradient norm is not finite, or the loss rose above what the run allows."""


class Mismatch(RunFailed):
    """The live model or the data differ from the run's configuration or from its run.json."""


def prepare_data(run: Run, store: Path) -> dict[str, Any]:
    """Find the corpus, tokenizer and token files of a run in the store, and build missing ones. All ranks call this
    function together.

    The first rank builds while the others wait, for at most half an hour (the timeout of torch's collectives). Data
    that take longer must be prepared before the ranks start.

    Args:
        run: the run's configuration.
        store: the folder of prepared data.

    Returns:
        The manifest that `data.prepare.prepare` returns, with two more entries: "epochs", how often training reads each
        source, and "corpora", {corpus: its composition} for training, tokenizer and evaluation.

    Raises:
        RunFailed: the data cannot be prepared, or the token files in the store were made with another tokenizer.
    """
    import torch.distributed as dist

    from data.prepare import corpus_composition, epochs_by_component, os_error_message, prepare

    def prepare_here() -> dict[str, Any]:
        try:
            return prepare(**run.data_request, store=store)
        except (ValueError, RuntimeError, PermissionError) as error:
            raise RunFailed(os_error_message(error) if isinstance(error, PermissionError) else str(error)) from error

    if dist.get_rank() == 0:
        prepare_here()
    dist.barrier()
    data = prepare_here()
    return data | {
        "epochs": epochs_by_component(data, None if run.ends_by_clock else run.tokens, run.model.seq),
        "corpora": {corpus: corpus_composition(corpus, store) for corpus in run.corpora},
    }


def write_run_json(cell: Cell, engine: Any, data: dict[str, Any], store: Path, hosts: list[str]) -> None:
    """Check that the model about to train is the configured one, and write run.json.

    Three checks are made:

    * The activity proofs of all factors pass (model/proof.py).
    * The settings in effect, read from the live engine, equal the configured ones.
    * A continued run reads the same text and tokenizer as before.

    Args:
        cell: the run, with its configuration and directory.
        engine: a launch.engine.Engine before its first step.
        data: the manifest that `prepare_data` returned.
        store: the folder of prepared data that `data` describes.
        hosts: for each rank the name of its node.

    Raises:
        Mismatch: a check fails; the message names the setting, the factor or the data.
    """
    import torch.distributed as dist

    rows, proofs, effective = _prove_configuration(cell, engine, data)
    before = cell.run_json()
    _check_same_data(before, data)
    this_launch = describe_launch(hosts) | {"execution": engine.execution}
    record = {
        "cell": cell.dir.name,
        "arm": cell.arm,
        "seed": cell.seed,
        "config": asdict(cell.run),
        "delta": cell.delta,
        "fingerprint": cell.run.fingerprint,
        "registered": registration_sha(cell),
        **({k: before[k] for k in this_launch if k in before} if before else this_launch),
        "continued": (before.get("continued", []) + [this_launch] if before else []),  # later launches of the same run
        "data": data,
        "data_store": str(store),
        "parameters": {"count": sum(math.prod(row["shape"]) for row in rows), "groups": rows},
        "proofs": proofs,
        "effective": effective,
        "rollbacks": before.get("rollbacks", []) if before else [],
    }
    if dist.get_rank() == 0:
        safe_files.write_json(cell.dir / rundir.RUN, record, indent=1)


def _prove_configuration(
    cell: Cell, engine: Any, data: dict[str, Any]
) -> tuple[list[dict[str, Any]], list[Any], dict[str, Any]]:
    """Prove that all factors act, and that the settings in effect are the configured ones. `data`: the manifest that
    `prepare_data` returned. Raises Mismatch where a proof fails or a setting differs.

    Returns:
        Three parts of run.json: [{"name", "shape", "decayed" (whether weight decay applies)} for each parameter],
            [proof, ...], {setting: value in effect}.
    """
    from launch.effective import settings_in_effect
    from model import proof

    rows, groups = proof.prove_weight_decay(engine.model, engine.parameter_groups, cell.run.train.decay_embnorm)
    proofs = [*proof.prove_factors(engine.model), groups, *engine.proofs]
    effective = settings_in_effect(engine) | {
        "data.corpus": data["corpus"],
        "data.tokenizer": data["tokenizer"]["corpus"],
        **{f"data.{name}": value for name, value in data["recipe"].items()},
        "data.tokenizer_kind": data["tokenizer"]["kind"],
        "model.vocab": data["tokenizer"]["vocab"],
    }
    try:
        proof.raise_if_failed(proofs)
    except proof.InactiveFactor as error:
        raise Mismatch(str(error)) from None
    declared = cell.run.flat()
    differing = {k: (v, declared[k]) for k, v in effective.items() if v != declared[k]}
    if differing:
        raise Mismatch("; ".join(f"{k} is {v[0]} in effect and {v[1]} by configuration" for k, v in differing.items()))
    return rows, [p.json() for p in proofs], effective


def _check_same_data(before: dict[str, Any] | None, data: dict[str, Any]) -> None:
    """Raise Mismatch where the text or the tokenizer differs from that with which a continued run began. `before`: the
    content of its run.json, None for a new run; `data`: the manifest that `prepare_data` returned."""
    if before and before["data"]["sha256"] != data["sha256"]:
        was = before["data"]["sha256"]
        raise Mismatch(f"the corpus {data['corpus']} is not the one that the run began with (sha256 {was})")
    if before and before["data"]["tokenizer"]["sha256"] != data["tokenizer"]["sha256"]:
        raise Mismatch("the tokenizer is not the one that the run began with")


def registration_sha(cell: Cell) -> str:
    """The sha256 of the registration under which a run began. It is read from run.json or, before that is written, from
    the first registration in the run directory. "" where there is none: runs of old versions have no registration."""
    before = cell.run_json()
    lines, _ = rundir.read_registrations(cell.dir)
    if before:
        return str(before.get("registered", ""))
    return str(lines[0]["sha256"]) if lines else ""


def record_rollbacks(cell: Cell, rollbacks: list[dict[str, Any]]) -> None:
    """Write into run.json the run's rollbacks: its returns to an earlier checkpoint after a divergence. `rollbacks`:
    for each one {"why": a sentence, "back_to": the checkpoint's step, "samples_left_out": [first, end]}."""
    import torch.distributed as dist

    if dist.get_rank() == 0:
        safe_files.write_json(cell.dir / rundir.RUN, {**(cell.run_json() or {}), "rollbacks": rollbacks}, indent=1)


def describe_launch(hosts: list[str]) -> dict[str, Any]:
    """A description of this launch for run.json: commit, versions, hardware, nodes and command line. `hosts`: for each
    rank the name of its node."""
    import torch

    cpu = "unknown"
    if os.path.exists("/proc/cpuinfo"):
        names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].partition(":")[2].strip() if names else platform.machine()
    cuda = torch.cuda.is_available()
    return {
        "commit": current_commit(),
        "versions": {"python": platform.python_version()} | {p: package_version(p) for p in RECORDED_PACKAGES},
        "hardware": {
            "device": torch.cuda.get_device_name() if cuda else cpu,
            "ranks": len(hosts),
            "threads": torch.get_num_threads(),
        },
        "nodes": sorted(set(hosts)),
        "command": [*sys.argv[1:]],
    }


def package_version(package: str) -> str:
    """The installed version of a package; "not installed" where it is missing."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


SOURCES = ("*.py", "*.yaml", "*.sh")  # an untracked file of these kinds in one of OUR_PACKAGES is uncommitted code


def current_commit() -> dict[str, Any]:
    """The commit of this code, and whether the code differs from it: {"sha": str, "dirty": bool}.

    The code differs where a tracked file is changed or a source file (SOURCES) of this project is untracked. Other
    untracked files and changes in ablations/records do not count. Without git, or where git does not track this code,
    "sha" is "unknown" and "dirty" None.
    """
    # git refuses a folder of another user, which does not matter here: its code is running already. The variables GIT_*
    # may name another repository.
    command = ["git", "-c", f"safe.directory={ROOT}"]
    env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}

    def git(*args: str) -> str:
        process = subprocess.run([*command, *args], cwd=ROOT, env=env, capture_output=True, text=True, check=True)
        return process.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "launch/manifest.py")  # else the commit is that of a folder around this one
        sha = git("rev-parse", "HEAD")
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!ablations/records")
        patterns = [f"{package}/**/{kind}" for package in OUR_PACKAGES for kind in SOURCES]
        unknown = git("ls-files", "--others", "--exclude-standard", "--", *(f":(glob){p}" for p in patterns))
        return {"sha": sha, "dirty": bool(changed or unknown)}
    except (OSError, subprocess.CalledProcessError):
        return {"sha": "unknown", "dirty": None}


def special_tokens(run: Run, data: dict[str, Any]) -> Any:
    """The special tokens that the run's objective needs, as a model.objective.SpecialTokens; NO_SPECIALS where the
    objective masks no tokens. `data`: the manifest that `prepare_data` returned. Raises RunFailed where the objective
    masks tokens and the tokenizer has no mask token."""
    from model.objective import NO_SPECIALS, OBJECTIVES, SpecialTokens

    if not OBJECTIVES[run.model.objective].needs_mask_token:
        return NO_SPECIALS
    from data.tokenizer import load_tokenizer, mask_id

    tokenizer = load_tokenizer(data["tokenizer"]["path"])
    try:
        return SpecialTokens(mask_id(tokenizer, run.model.vocab), tuple(tokenizer.specials))
    except ValueError as error:
        raise RunFailed(str(error)) from None
