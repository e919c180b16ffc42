"""The site file: what a cluster wants to be told, in Slurm's own words. See launch/sites."""

import os
import subprocess
from pathlib import Path

from ablations.config import ConfigError
from ablations.study import ROOT

SITES = ROOT / "launch/sites"


def site(name: str = "") -> dict[str, str]:
    """The variables that a site file exports: SBATCH_PARTITION, SBATCH_TIMELIMIT, NODE_MTBF_HOURS, ...

    Args:
        name: a file of launch/sites without its ending, or a path; by default launch/site.sh, where there is one.
    """
    path = find(name)
    if not path:
        return {}
    done = subprocess.run(["bash", "-c", '. "$1" >&2 && env -0', "-", str(path)], capture_output=True, text=True)
    if done.returncode:
        raise ConfigError(f"{path}: {done.stderr.strip()}")
    pairs = [line.split("=", 1) for line in done.stdout.split("\0") if "=" in line]
    return {k: v for k, v in pairs if k.startswith("SBATCH_") or k == "NODE_MTBF_HOURS"}


def find(name: str = "") -> Path | None:
    """The site file, or None where there is none."""
    name = name or os.environ.get("SITE", "")
    default = ROOT / "launch/site.sh"
    if not name:
        return default if default.exists() else None
    for path in (SITES / f"{name}.sh", Path(name)):
        if path.is_file():
            return path.resolve()
    names = ", ".join(p.stem for p in sorted(SITES.glob("*.sh")))
    raise ConfigError(f"SITE={name} is neither a file nor one of {names}")
