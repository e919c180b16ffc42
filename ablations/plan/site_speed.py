"""A site's own measurements of training speed, which replace what published rows say: launch/site_speed.json.

`make bench-gpu` writes it: {"hardware": "h100", "device": "NVIDIA H100 80GB HBM3", "rows": [{"layers": 24, "hidden":
2048, "heads": 16, "seq": 2048, "vocab": 50304, "ffn": 8192, "matrices": 2, "gpus": 1, "tp": 1, "micro_batch": 16,
"batch": 512, "tokens_per_second": 48000.0, "gb": 61.2, "label": "alibi, bf16"}]}.
"""

import json
import math
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ablations.plan.hardware import GPU, GPUS
from ablations.plan.throughput import Layout, Prediction, Shape, predict
from ablations.values import ConfigError

SITE_SPEED = Path(__file__).parents[2] / "launch/site_speed.json"
LEAST_SPREAD = 1.05  # one machine on one day: 4% between two tables of one repository (BigScience's 25 Feb 2022)
NUMBERS = ("layers", "hidden", "heads", "seq", "vocab", "ffn", "matrices", "gpus", "tp", "micro_batch", "batch")


@dataclass(frozen=True)
class SiteSpeed:
    """How much slower (above 1) than predicted the site's steps were, and by how much that differs between its rows."""

    factor: float
    spread: float
    rows: int
    device: str


def read(gpu: GPU, path: Path = SITE_SPEED) -> SiteSpeed | None:
    """The measurements on this accelerator; None where there are none.

    Raises:
        ConfigError: when the file is damaged, naming it.
    """
    try:
        measured: Any = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read ({error}): make bench-gpu writes it anew") from None
    try:
        if measured["hardware"] not in GPUS:
            raise ValueError(f"hardware {measured['hardware']!r} is not one of {', '.join(GPUS)}")
        if measured["hardware"] != gpu.name or not measured["rows"]:
            return None
        ratios = [_ratio(row, gpu) for row in measured["rows"]]
        device = str(measured.get("device", gpu.name))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"{path} is not what make bench-gpu writes: {error}") from None
    factor = statistics.median(ratios)
    spread = max([LEAST_SPREAD, *(max(ratio / factor, factor / ratio) for ratio in ratios)])
    return SiteSpeed(factor, spread, len(ratios), device)


def _ratio(row: dict[str, Any], gpu: GPU) -> float:
    """Seconds measured / predicted of one row."""
    number = {}
    for name in NUMBERS:
        number[name] = row[name]
        if not isinstance(row[name], int) or row[name] < 1:
            raise ValueError(f"{name}={row[name]!r} is no whole number above 0")
    speed = float(row["tokens_per_second"])
    if not (math.isfinite(speed) and speed > 0):
        raise ValueError(f"tokens_per_second={speed}")
    shape = Shape(*(number[name] for name in NUMBERS[:7]))
    layout = Layout(number["gpus"], number["tp"], 1, number["micro_batch"], number["batch"], 1, False)
    return number["batch"] * number["seq"] / speed / predict(shape, layout, gpu).seconds


def expected(shape: Shape, layout: Layout, gpu: GPU, site: SiteSpeed | None) -> Prediction:
    """`predict`, put right by the site's own measurements where there are some."""
    prediction = predict(shape, layout, gpu)
    if site is None:
        return prediction
    return prediction.scaled(site.factor, site.spread, f"measured here: {site.rows} rows on {site.device}")
