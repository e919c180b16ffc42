"""A stored noise floor: how much the results of runs vary that differ only in the seed, and on which runs that was
measured.

`make noise` writes a noise floor to a file (eval/report/noise.py). In a study with NOISE_FLOOR=file, its degrees of
freedom are added to those of the study's own seeds.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ablations import safe_files
from ablations.run import ABSENT, Run
from ablations.rundir import NUMBER
from ablations.safe_files import first_misfit
from ablations.values import ConfigError

KEYS = {  # {entry of the file: its type}
    "size": str,
    "tokens": int,
    "settings": dict,  # {setting: value} of all its runs, without seed and layout
    "text": dict,  # {text or tokenizer that was read: sha256}
    "evaluation": dict,
    "metrics": dict,  # {metric: {"unit", "sd", "dof", "tasks", "results": {run: result}}}
    "runs": dict,  # {fingerprint: seed}
    "commit": dict,  # of the code of the first run; the entry "commits", where there is one, lists those of all runs
    "versions": dict,
    "hardware": dict,
}
REASONS_SHOWN = 6  # differences that an error message names
METRIC_KEYS = {"unit": str, "tasks": str, "results": dict}


@dataclass(frozen=True)
class NoiseFloor:
    """A stored noise floor.

    Args:
        name: the name of its file.
        sha256: the hash of its file.
        content: the entries of its file, {one of KEYS: value}.
    """

    name: str
    sha256: str
    content: dict[str, Any]

    @property
    def identity(self) -> str:
        """The text by which a study registers the noise floor: the name and the hash of its file."""
        return f"{self.name}, sha256 {self.sha256[:12]}"

    @property
    def code(self) -> str:
        """The commits of the code that trained the runs of the noise floor, as text such as "0123abc and 4567def"."""
        names = []
        for commit in self.content.get("commits") or [self.content["commit"]]:
            changed = " with changes that are in no commit" if commit.get("dirty") else ""
            names.append(f"{str(commit.get('sha'))[:7]}{changed}")
        return " and ".join(dict.fromkeys(names))


def read_noise_floor(path: str) -> NoiseFloor:
    """Read a noise floor from the file at `path`, and check its form. Raises ConfigError where there is no such file,
    or it is not a noise floor; the message says what is wrong."""
    file = Path(path)
    try:
        data = safe_files.read_bytes(file)
        content = safe_files.read_json(file, KEYS, KEYS)
    except (safe_files.Damaged, OSError) as error:
        raise ConfigError(f"NOISE_FLOOR={path}: {error}") from None
    if data is None or content is None:
        raise ConfigError(f"NOISE_FLOOR={path}: there is no such file; `make noise` writes one")
    commits = content.get("commits", [])
    if not isinstance(commits, list) or not all(isinstance(commit, dict) for commit in commits):
        raise ConfigError(f"NOISE_FLOOR={path}: commits is not what a noise floor has there")
    for name, metric in content["metrics"].items():
        wrong = first_misfit(metric, METRIC_KEYS)
        if wrong or first_misfit(metric["results"], dict.fromkeys(metric["results"], NUMBER)):
            raise ConfigError(f"NOISE_FLOOR={path}: {name} is not what a noise floor has there")
    return NoiseFloor(file.name, hashlib.sha256(data).hexdigest(), content)


def different_settings(floor: NoiseFloor, config: Mapping[str, Any]) -> list[str]:
    """The settings, and the size, in which a run of a study's baseline differs from the runs of a noise floor, as texts
    such as "data.corpus: pydocs there, c4 here". Settings that an earlier version did not have get the value that was
    then in effect. `config`: {setting: value} of the run."""
    there, here = (
        {**ABSENT, **values} for values in ({"size": floor.content["size"]} | floor.content["settings"], config)
    )
    return [
        f"{key}: {str(there.get(key))[:60]} there, {str(here.get(key))[:60]} here"
        for key in dict.fromkeys([*there, *here])
        if there.get(key) != here.get(key) and not key.startswith("layout.") and key != "seed"
    ]


def check_same_baseline(floor: NoiseFloor | None, run: Run) -> None:
    """Check, before any run, that a noise floor was measured at the size and settings of a study's baseline; the report
    compares the text and the evaluation too. `floor`: None: the study has none; `run`: a run of the baseline. Raises
    ConfigError where a setting differs."""
    config = json.loads(json.dumps(run.flat()))  # as run.json has it: tuples become lists
    if floor and (reasons := different_settings(floor, config)):
        more = "; ..." if len(reasons) > REASONS_SHOWN else ""
        raise ConfigError(
            f"NOISE_FLOOR={floor.name} is of another baseline: {'; '.join(reasons[:REASONS_SHOWN])}{more}. "
            "`make noise` with the same settings measures that of this one"
        )
