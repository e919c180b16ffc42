"""The site file of a cluster: a shell script that sets environment variables, such as those of Slurm. Examples are in
launch/sites."""

import contextlib
import os
import subprocess
from pathlib import Path

from ablations.config import ConfigError
from ablations.study import ROOT

SITES = ROOT / "launch/sites"


def read_site(name: str = "") -> dict[str, str]:
    """The environment variables that the site file exports, {name: value}: those of Slurm's sbatch (SBATCH_PARTITION,
    ...) and NODE_MTBF_HOURS; {} where there is no site file. `name`: see `find_site_file`. Raises ConfigError where the
    named site file does not exist, or bash fails on it."""
    path = find_site_file(name)
    if not path:
        return {}
    command = ["bash", "-c", '. "$1" >&2 && env -0', "-", str(path)]
    shell = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace")
    if shell.returncode:
        raise ConfigError(f"{path}: {shell.stderr.strip()}")
    pairs = [line.split("=", 1) for line in shell.stdout.split("\0") if "=" in line]
    return {name: value for name, value in pairs if name.startswith("SBATCH_") or name == "NODE_MTBF_HOURS"}


def find_site_file(name: str = "") -> Path | None:
    """The path of the site file; None where none is named and there is no launch/site.sh.

    Args:
        name: a file of launch/sites without its extension, or a path; "": the file that the environment variable SITE
            names, or else launch/site.sh.

    Raises:
        ConfigError: the named site file does not exist.
    """
    name = name or os.environ.get("SITE", "")
    default = ROOT / "launch/site.sh"
    if not name:
        return default if default.exists() else None
    with contextlib.suppress(OSError, ValueError):  # a name that is too long, or is no text
        for path in (SITES / f"{name}.sh", Path(name)):
            if path.is_file():
                return path.resolve()
    names = ", ".join(path.stem for path in sorted(SITES.glob("*.sh")))
    raise ConfigError(f"SITE={name[:200]} is neither a file nor one of {names}")
