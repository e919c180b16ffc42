"""run.json: what the run is, where it came from, and the proof that it is what it says; written before step one."""

import importlib.metadata
import math
import os
import platform
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ablations import rundir
from ablations.config import Run
from ablations.study import ROOT, Cell

PACKAGES_OF_OURS = ("ablations", "data", "eval", "launch", "model")
PACKAGES = ["torch", "deepspeed", "megatron-core", "datatrove", "sentencepiece", "numpy"]


class Failed(RuntimeError):
    """A run cannot go on; the message says why, and what to do."""

    again = False  # whether another attempt, maybe on other nodes, may end better


class Diverged(Failed):
    """The loss or the gradients are no longer those of a model that learns."""


class Mismatch(Failed):
    """The run is not what its configuration says, or not what it was before."""


def prepare_data(run: Run, store: Path) -> dict[str, Any]:
    """Corpus, tokenizer and tokens, built by the first rank where they are missing (see data/prepare.py). Others wait
    for it no longer than torch's collectives do, half an hour: what takes longer is prepared before the ranks start.

    Raises:
        Failed: they cannot be had, or those in the store are of another tokenizer.
    """
    import torch.distributed as dist

    from data.prepare import denied, epochs, prepare

    def made() -> dict[str, Any]:
        what = (run.data.corpus, run.data.tokenizer, run.model.vocab, store, run.data.tokenizer_kind)
        try:
            return prepare(*what, recipe=run.data.recipe, mask=run.model.masks)
        except (ValueError, RuntimeError, PermissionError) as error:
            raise Failed(denied(error) if isinstance(error, PermissionError) else str(error)) from error

    if dist.get_rank() == 0:
        made()
    dist.barrier()
    data = made()
    return data | {"epochs": epochs(data, None if run.by_clock else run.tokens, run.model.seq)}


def write(cell: Cell, engine: Any, data: dict[str, Any], store: Path, hosts: list[str]) -> None:
    """Prove, compare, record. `engine`: a launch.engine.Engine, about to train; `hosts`: the node of each rank.

    Raises:
        Mismatch: a factor is inactive; the live engine differs from the configuration; or the data are not those
            that the run began with. The message names it.
    """
    from launch import effective as live
    from model import proof

    rows, groups = proof.parameter_groups(engine.model, engine.parameter_groups)
    proofs = [*proof.prove(engine.model), groups, *engine.proofs]
    effective = live.effective(engine) | {
        "data.corpus": data["corpus"],
        "data.tokenizer": data["tokenizer"]["corpus"],
        **{f"data.{name}": value for name, value in data["recipe"].items()},
        "data.tokenizer_kind": data["tokenizer"]["kind"],
        "model.vocab": data["tokenizer"]["vocab"],
    }
    try:
        proof.require(proofs)
    except proof.InactiveFactor as error:
        raise Mismatch(str(error)) from None
    declared = cell.run.flat()
    wrong = {k: (v, declared[k]) for k, v in effective.items() if v != declared[k]}
    if wrong:
        raise Mismatch("; ".join(f"{k} is {v[0]} in effect and {v[1]} by configuration" for k, v in wrong.items()))
    this = launch(hosts)
    before = cell.recorded()
    if before and before["data"]["sha256"] != data["sha256"]:
        was = before["data"]["sha256"]
        raise Mismatch(f"the corpus {data['corpus']} is not the one that the run began with (sha256 {was})")
    if before and before["data"]["tokenizer"]["sha256"] != data["tokenizer"]["sha256"]:
        raise Mismatch("the tokenizer is not the one that the run began with")
    record = {
        "cell": cell.dir.name,
        "arm": cell.arm,
        "seed": cell.seed,
        "config": asdict(cell.run),
        "delta": cell.delta,
        "fingerprint": cell.run.fingerprint,
        **({k: before[k] for k in this} if before else this),
        "continued": (before["continued"] + [this] if before else []),  # later launches of the same run
        "data": data,
        "data_store": str(store),
        "parameters": {"count": sum(math.prod(row["shape"]) for row in rows), "groups": rows},
        "proofs": [p.json() for p in proofs],
        "effective": effective,
        "rollbacks": before.get("rollbacks", []) if before else [],
    }
    import torch.distributed as dist

    if dist.get_rank() == 0:
        rundir.write_json(cell.dir / rundir.RUN, record, indent=1)


def record_rollbacks(cell: Cell, rollbacks: list[dict[str, Any]]) -> None:
    """A run that went back and left data out says so in its run.json."""
    import torch.distributed as dist

    if dist.get_rank() == 0:
        rundir.write_json(cell.dir / rundir.RUN, {**(cell.recorded() or {}), "rollbacks": rollbacks}, indent=1)


def launch(hosts: list[str]) -> dict[str, Any]:
    """Commit, versions and hardware of this launch."""
    import torch

    cpu = "unknown"
    if os.path.exists("/proc/cpuinfo"):
        names = [x for x in Path("/proc/cpuinfo").read_text().splitlines() if x.startswith("model name")]
        cpu = names[0].partition(":")[2].strip() if names else platform.machine()
    cuda = torch.cuda.is_available()
    return {
        "commit": commit(),
        "versions": {"python": platform.python_version()} | {p: importlib.metadata.version(p) for p in PACKAGES},
        "hardware": {
            "device": torch.cuda.get_device_name() if cuda else cpu,
            "ranks": len(hosts),
            "threads": torch.get_num_threads(),
        },
        "nodes": sorted(set(hosts)),
        "command": [*sys.argv[1:]],
    }


SOURCES = ("*.py", "*.yaml", "*.sh")  # what of ours, when git does not know it, is code that no commit holds


def commit() -> dict[str, Any]:
    """{"sha", "dirty"}: the commit of the code, and whether tracked files differ from it or sources are in no commit.

    "unknown" and None where there is no git, it refuses the folder, or the code is in no commit of it.
    Records do not count, every study writes one; nor do other files in the folder, such as a user's data.
    """
    # whose folder it is does not matter, its code runs already; and these variables may name another repository
    command = ["git", "-c", f"safe.directory={ROOT}"]
    env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}

    def git(*args: str) -> str:
        done = subprocess.run([*command, *args], cwd=ROOT, env=env, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "launch/manifest.py")  # else the commit is that of a folder around this one
        sha = git("rev-parse", "HEAD")
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!ablations/records")
        patterns = [f"{package}/**/{kind}" for package in PACKAGES_OF_OURS for kind in SOURCES]
        unknown = git("ls-files", "--others", "--exclude-standard", "--", *(f":(glob){p}" for p in patterns))
        return {"sha": sha, "dirty": bool(changed or unknown)}
    except (OSError, subprocess.CalledProcessError):
        return {"sha": "unknown", "dirty": None}


def special_tokens(run: Run, data: dict[str, Any]) -> Any:
    """The model.objective.SpecialTokens of the run's tokenizer, where its objective needs them.

    Raises:
        Failed: when the tokenizer has no id for a masked token.
    """
    from model.objective import NO_SPECIAL_TOKENS, OBJECTIVES, SpecialTokens

    if not OBJECTIVES[run.model.objective].masks:
        return NO_SPECIAL_TOKENS
    from data.tokenizer import load_tokenizer, mask_id

    tokenizer = load_tokenizer(data["tokenizer"]["path"])
    try:
        return SpecialTokens(mask_id(tokenizer, run.model.vocab), tuple(tokenizer.specials))
    except ValueError as error:
        raise Failed(str(error)) from None
