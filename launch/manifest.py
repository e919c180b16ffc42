"""run.json: what the run is, where it came from, and the proof that it is what it says; written before step one."""

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablations.config import Run
from ablations.study import ROOT, Cell

if TYPE_CHECKING:
    from launch.engine import Engine

PACKAGES = ["torch", "deepspeed", "megatron-core", "datatrove", "sentencepiece", "numpy"]


class Mismatch(RuntimeError):
    """The run is not what its configuration says, or not what it was before."""


def prepare_data(run: Run, store: Path) -> dict[str, Any]:
    """Corpus, tokenizer and tokens, built by the first rank where they are missing (see data/prepare.py)."""
    import torch.distributed as dist

    from data.prepare import prepare

    if dist.get_rank() == 0:
        prepare(run.data.corpus, run.data.tokenizer, run.model.vocab, store)
    dist.barrier()
    return prepare(run.data.corpus, run.data.tokenizer, run.model.vocab, store)


def write(cell: Cell, engine: "Engine", data: dict[str, Any], store: Path, world: int) -> None:
    """Prove, compare, record.

    Raises:
        Mismatch: a factor is inactive; the live engine differs from the configuration; or the data are not those
            that the run began with. The message names it.
    """
    from model import proof

    rows, groups = proof.parameter_groups(engine.model, engine.groups())
    proofs = [*proof.prove(engine.model), groups]
    effective = engine.effective() | {
        "data.corpus": data["corpus"],
        "data.tokenizer": data["tokenizer"]["corpus"],
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
    this = launch(world)
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
        "parameters": {"count": sum(p.numel() for p in engine.model.parameters()), "groups": rows},
        "proofs": [p.json() for p in proofs],
        "effective": effective,
    }
    import torch.distributed as dist

    if dist.get_rank() == 0:
        from launch.engine import replace_text

        replace_text(cell.dir / "run.json", json.dumps(record, indent=1))


def launch(world: int) -> dict[str, Any]:
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
            "ranks": world,
            "threads": torch.get_num_threads(),
        },
        "command": [*sys.argv[1:]],
    }


def commit() -> dict[str, Any]:
    """The commit, and whether tracked code differs from it. Records do not count: every study writes one."""

    def git(*args: str) -> str:
        return subprocess.run(["git", *args], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return {
            "sha": git("rev-parse", "HEAD"),
            "dirty": bool(git("status", "--porcelain", "--", ".", ":!ablations/records")),
        }
    except (OSError, subprocess.CalledProcessError):
        return {"sha": "unknown", "dirty": True}
