"""A stored noise floor: how far runs lie apart that differ in nothing but the seed, and what that was measured on.

`make noise` writes one (eval/report/floor.py); a study that names it, NOISE_FLOOR=file, is judged with its degrees of
freedom beside those of the study's own seeds.
"""

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ablations import rundir
from ablations.values import ConfigError

KEYS = {  # of the file
    "size": str,
    "tokens": int,
    "settings": dict,  # of all its runs, flat; without seed and layout
    "text": dict,  # {what is read: sha256}
    "evaluation": dict,
    "metrics": dict,  # {metric: {"unit", "sd", "dof", "tasks", "results": {run: result}}}
    "runs": dict,  # {fingerprint: seed}
    "commit": dict,
    "versions": dict,
    "hardware": dict,
}
METRIC_KEYS = {"unit": str, "tasks": str, "results": dict}


@dataclass(frozen=True)
class NoiseFloor:
    name: str  # of the file
    sha256: str
    content: dict[str, Any]

    @property
    def identity(self) -> str:
        """What a study registers."""
        return f"{self.name}, sha256 {self.sha256[:12]}"


def read_noise_floor(path: str) -> NoiseFloor:
    """Raises ConfigError when the file is none; the message says what is wrong."""
    file = Path(path)
    try:
        data = rundir.read_bytes(file)
        content = rundir.read_json(file, KEYS, KEYS)
    except (rundir.Damaged, OSError) as error:
        raise ConfigError(f"NOISE_FLOOR={path}: {error}") from None
    if data is None or content is None:
        raise ConfigError(f"NOISE_FLOOR={path}: there is no such file; `make noise` writes one")
    for name, metric in content["metrics"].items():
        whole = isinstance(metric, dict) and all(isinstance(metric.get(key), kind) for key, kind in METRIC_KEYS.items())
        if not whole or not all(map(_is_finite, metric["results"].values())):
            raise ConfigError(f"NOISE_FLOOR={path}: {name} is not what a noise floor has there")
    return NoiseFloor(file.name, hashlib.sha256(data).hexdigest(), content)


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
