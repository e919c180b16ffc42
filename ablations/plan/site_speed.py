"""Training speeds that were measured at a site (runs/bench-gpu.jsonl), and the correction of predictions by them.

`make bench-gpu` (tests/bench_gpu.py) appends a line to the file for each measurement: size, position, precision, loop,
micro_batch, accumulate, device, tokens_per_second. Only measurements of our engine in bf16 are used here.
"""

import json
import math
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ablations.config import resolve
from ablations.plan.hardware import GPU, gpu_of_device
from ablations.plan.throughput import Layout, PredictedStep, Shape, predict_step
from ablations.values import ConfigError

MEASUREMENTS = Path(__file__).parents[2] / "runs/bench-gpu.jsonl"
LEAST_SPREAD = 1.05  # two tables of one machine and day differ by 4% (BigScience's of 25 Feb 2022)


@dataclass(frozen=True)
class SiteSpeed:
    """The measured speed of one kind of GPU at a site, relative to predictions. `factor`: the median of measured /
    predicted seconds of a step. `spread`: the largest ratio between a measurement and this median, up or down. `rows`:
    the number of measurements. `device`: the GPU's name in torch."""

    factor: float
    spread: float
    rows: int
    device: str


def read_site_speed(gpu: GPU, path: Path = MEASUREMENTS) -> SiteSpeed | None:
    """Read the measured speed of a kind of GPU at this site, relative to the predicted speed; None where there is no
    file, or no measurement of this kind. `path`: the file of measurements. Raises ConfigError where the file is
    damaged; the message names the file and the line."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read ({error}): make bench-gpu writes it anew") from None
    ratios, device = [], ""
    for number, line in enumerate(lines[:-1], 1):  # the text after the last newline is empty, or an incomplete line
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise TypeError("no mapping")
            if "tokens_per_second" not in row or (row["loop"], row["precision"]) != ("engine", "bf16"):
                continue
            if (measured := gpu_of_device(row["device"])) is None or measured.name != gpu.name:
                continue
            ratios.append(_measured_to_predicted_ratio(row, gpu))
            device = row["device"]
        except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise ConfigError(f"{path}, line {number}: not what make bench-gpu writes ({reason})") from None
    if not ratios:
        return None
    factor = statistics.median(ratios)
    spread = max([LEAST_SPREAD, *(max(ratio / factor, factor / ratio) for ratio in ratios)])
    return SiteSpeed(factor, spread, len(ratios), str(device))


def _measured_to_predicted_ratio(row: dict[str, Any], gpu: GPU) -> float:
    """The measured seconds of a step divided by the predicted seconds. `row`: a line of the file of measurements;
    `gpu`: the GPU on which it was measured."""
    micro, accumulate, speed = int(row["micro_batch"]), int(row["accumulate"]), float(row["tokens_per_second"])
    if not (math.isfinite(speed) and min(speed, micro, accumulate) > 0):
        raise ValueError("a number is not above 0")
    model = resolve([("size", row["size"]), ("model.pos", row["position"])]).model
    layout = Layout(1, 1, 1, micro, micro * accumulate, 1, False)
    return layout.batch * model.seq / speed / predict_step(Shape.of(model), layout, gpu).seconds


def predict_step_at_site(shape: Shape, layout: Layout, gpu: GPU, site: SiteSpeed | None) -> PredictedStep:
    """Predict the seconds of an optimizer step, corrected by measurements. `site`: the measurements at this site; None:
    there are none, and the prediction is not corrected."""
    prediction = predict_step(shape, layout, gpu)
    if site is None:
        return prediction
    return prediction.scaled(site.factor, site.spread, f"measured here: {site.rows} rows on one {site.device}")
