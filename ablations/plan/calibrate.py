"""Fits the predictions of step time (ablations/plan/throughput.py) and of memory (ablations/plan/pipeline_memory.py) to
published measurements, and computes their errors on held-out rows.

python -m ablations.plan.calibrate            # prints the table; with --write also writes calibration.json

The rows (published.csv) are from three sources: BigScience's 20 final-round shapes on 384 A100, BigScience's 1.3B
layouts on 8 V100, and llm-foundry's tables for 125M to 70B on A100 and H100 (sequences up to 8192). BigScience's rows
from the days before the final round have other layouts, fp16 or uneven pipeline stages. They are never fitted, and
serve as checks.
"""

import argparse
import csv
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ablations.plan.hardware import GPUS
from ablations.plan.pipeline_memory import FITTED, memory_parts, memory_verdict, peak_memory, total_memory
from ablations.plan.throughput import CALIBRATION, TERMS, Layout, Shape, step_time_terms

PUBLISHED = Path(__file__).parent / "published.csv"
# The weights that the regularisation favours, which decide where the rows do not: matrix products at three quarters of
# the peak, network traffic mostly hidden behind computation, the other terms near the data sheet's rate. Untuned.
PRIOR = dict(zip(TERMS, (1 / 0.75, 0.1, 1.0, 1.0, 1.3, 0.3, 1.0, 1.0), strict=True))
PRIOR_WEIGHT = 1e-4  # of the prior relative to one row; the best of 1e-3, 1e-4 and 1e-5 on held-out rows


@dataclass(frozen=True)
class PublishedRow:
    """One published measurement of training speed and memory, a row of published.csv."""

    stack: str
    gpu: str
    shape: Shape
    layout: Layout
    flash: bool  # whether attention was one kernel that does not write the scores to memory
    seconds: float | None  # of a step; None: not published
    gib: float | None  # the peak memory of a GPU in GiB; None: not published
    fits: bool  # False: the run was out of memory
    source: str
    is_check: bool  # never fitted: a row of other layouts and days, which shows how well the fit generalises

    @property
    def stack_and_gpu(self) -> str:
        """The group of rows that are fitted together, such as "llm-foundry, h100". All V100s count as one GPU."""
        return f"{self.stack}, {'v100' if self.gpu.startswith('v100') else self.gpu}"

    @property
    def fp32_sums(self) -> bool:
        """Whether gradients were summed in fp32: False on V100s, where BigScience trained in fp16, else True.
        (BigScience's bf16 runs summed in fp32 from 28 Feb 2022 on.)"""
        return not self.gpu.startswith("v100")

    @property
    def terms(self) -> list[float]:
        """The terms of a step's time, in the order of TERMS, before they are weighted."""
        return step_time_terms(self.shape, self.layout, GPUS[self.gpu], self.flash)


def published_rows() -> list[PublishedRow]:
    """Read the rows of published.csv."""
    rows = []
    with open(PUBLISHED, encoding="utf-8", newline="") as file:
        for line in csv.DictReader(file):
            n = {column: int(value) for column, value in line.items() if value.isdigit()}
            shape = Shape(n["layers"], n["hidden"], n["heads"], n["seq"], n["vocab"], 4 * n["hidden"])
            recompute, slots = line["recompute"] == "1", line["embedding_slots"] == "1"
            layout = Layout(n["gpus"], n["tp"], n["pp"], n["micro_batch"], n["batch"], n["zero"], recompute, slots)
            flash, fits, is_check = line["attention"] == "flash", line["gb"] != "out of memory", line["use"] == "check"
            gib = float(line["gb"]) if fits and line["gb"] else None
            seconds = float(line["seconds"]) if line["seconds"] else None
            stack, gpu, source = line["stack"], line["gpu"], line["source"]
            rows.append(PublishedRow(stack, gpu, shape, layout, flash, seconds, gib, fits, source, is_check))
    return rows


def fit_weights(rows: list[PublishedRow]) -> dict[str, float]:
    """Fit the weights of the terms of a step's time to measured steps. Non-negative least squares minimise the relative
    errors, with a slight penalty on deviations from PRIOR. Returns {name in TERMS: weight}. `rows`: measurements with
    known `seconds`."""
    import numpy as np
    from scipy.optimize import nnls

    seconds = np.array([row.seconds for row in rows])
    design = np.array([row.terms for row in rows]) / seconds[:, None]
    prior = np.array([PRIOR[name] for name in TERMS])
    penalty = np.diag(math.sqrt(PRIOR_WEIGHT * len(rows)) / prior)
    weights, _ = nnls(np.vstack([design, penalty]), np.concatenate([np.ones(len(rows)), penalty @ prior]))
    return {name: float(weight) for name, weight in zip(TERMS, weights, strict=True)}


def predicted_seconds(row: PublishedRow, weights: dict[str, float]) -> float:
    """The predicted seconds of a step for the model, layout and GPU of a row. `weights`: {name in TERMS: weight}."""
    return sum(weights[name] * value for name, value in zip(TERMS, row.terms, strict=True))


def held_out_predictions(rows: list[PublishedRow], key: Callable[[PublishedRow], object]) -> list[float]:
    """The predicted seconds of a step for each row, cross-validated: by weights fitted to the rows of all other groups.
    `key`: a function that gives the group of a row."""
    weights = {group: fit_weights([row for row in rows if key(row) != group]) for group in set(map(key, rows))}
    return [predicted_seconds(row, weights[key(row)]) for row in rows]


INTERVAL_QUANTILES = (0.1, 0.9)  # of actual / predicted seconds


def _layers_and_width(row: PublishedRow) -> tuple[int, int]:
    """The group of a row: all rows of one model size."""
    return row.shape.layers, row.shape.hidden


# {stack and GPU: a function that gives the group of a row}. All rows of a group are held out together: those of one
# model shape in all its layouts; on V100s, where all rows have the same model, each row alone.
HOLD_OUT: dict[str, Callable[[PublishedRow], object]] = {
    "Megatron-DeepSpeed, a100-80": _layers_and_width,
    "Megatron-DeepSpeed, v100": id,
    "llm-foundry, a100-40": lambda row: row.shape.hidden,
    "llm-foundry, a100-80": lambda row: row.shape.hidden,
    "llm-foundry, h100": lambda row: row.shape.hidden,
}


def _held_out_coverage(keys: Sequence[object], ratio: Any) -> float:
    """The cross-validated coverage of the interval of measured / predicted seconds. It is the share of rows whose ratio
    lies in the interval that the rows of all other groups give.

    Args:
        keys: the group of each row.
        ratio: measured / predicted seconds, [rows].
    """
    import numpy as np

    inside = []
    for key, value in zip(keys, ratio, strict=True):
        low, high = np.quantile([r for k, r in zip(keys, ratio, strict=True) if k != key], INTERVAL_QUANTILES)
        inside.append(low <= value <= high)
    return float(np.mean(inside))


def calibrate() -> dict[str, Any]:
    """Fit the models of step time and memory to the published measurements.

    Returns:
        The content of calibration.json. "memory" has the result of `calibrate_memory`. Each group of rows, such as
        "llm-foundry, h100", has {"weights": the fitted weights, "interval": [low, high] of measured / predicted
        seconds, which contains 80% of the rows, "coverage held out": the result of `_held_out_coverage`, "rows": their
        number, "sources"}. It also has the median error, largest error and rank correlation of held-out predictions,
        and those of the rows that are never fitted ("checks").
    """
    import numpy as np
    from scipy.stats import spearmanr

    result: dict[str, Any] = {"memory": calibrate_memory()}
    timed = [row for row in published_rows() if row.seconds and not row.is_check]
    checks = [row for row in published_rows() if row.is_check]
    for group, key in HOLD_OUT.items():
        rows = [row for row in timed if row.stack_and_gpu == group]
        actual = np.array([row.seconds for row in rows])
        ratio = actual / np.array(held_out_predictions(rows, key))
        weights = fit_weights(rows)
        check_rows = [row for row in checks if row.stack_and_gpu == group]
        check_actual = np.array([row.seconds for row in check_rows])
        check_ratio = check_actual / np.array([predicted_seconds(row, weights) for row in check_rows])
        interval_keys, interval_ratio = (
            (list(map(_layers_and_width, check_rows)), check_ratio) if check_rows else (list(map(key, rows)), ratio)
        )
        low, high = np.quantile(interval_ratio, INTERVAL_QUANTILES)
        result[group] = {
            "weights": {name: round(weight, 4) for name, weight in weights.items()},
            "interval": [round(float(low), 3), round(float(high), 3)],
            "coverage held out": round(_held_out_coverage(interval_keys, interval_ratio), 3),
            "rows": len(rows),
            "median error": round(float(np.median(np.abs(1 / ratio - 1))), 4),
            "largest error": round(float(np.max(np.abs(1 / ratio - 1))), 3),
            "rank correlation": round(float(spearmanr(actual / ratio, actual)[0]), 3),
            "sources": sorted({row.source for row in rows}),
        }
        if check_rows:
            result[group] |= {
                "checks": len(check_rows),
                "median error of checks": round(float(np.median(np.abs(1 / check_ratio - 1))), 4),
                "rank correlation of checks": round(float(spearmanr(check_actual / check_ratio, check_actual)[0]), 3),
            }
    return result


def fit_memory(rows: list[PublishedRow]) -> dict[str, float]:
    """Fit the constants of the memory estimate to published measurements, by non-negative least squares of the relative
    errors. Returns {name in FITTED: value}. The measurements are of the first pipeline stage, since they were read on
    the first node (Megatron's order of ranks). `rows`: measurements with known `gib`."""
    import numpy as np
    from scipy.optimize import nnls

    actual = np.array([row.gib for row in rows])
    design = np.array([memory_parts(row.shape, row.layout, row.flash, row.fp32_sums, last=False) for row in rows])
    values, _ = nnls(design[:, 1:] / actual[:, None], 1 - design[:, 0] / actual)
    return {name: float(value) for name, value in zip(FITTED, values, strict=True)}


def calibrate_memory() -> dict[str, Any]:
    """Fit the constants of the memory estimate, and compute its errors by leave-one-out cross-validation. Returns
    {"fitted": {name in FITTED: value}, "rows": their number, "median error", "largest error": relative errors}."""
    rows = [row for row in published_rows() if row.gib]
    errors = []
    for row in rows:
        fitted = fit_memory([another for another in rows if another is not row])
        parts = memory_parts(row.shape, row.layout, row.flash, row.fp32_sums, last=False)
        total = total_memory(parts, fitted)
        errors.append(abs(total / (row.gib or 1) - 1))
    errors.sort()
    return {
        "fitted": {name: round(value, 3) for name, value in fit_memory(rows).items()},
        "rows": len(rows),
        "median error": round(errors[len(errors) // 2], 4),
        "largest error": round(errors[-1], 3),
    }


def transfer_error(source: str, target: str) -> tuple[float, float]:
    """The error of step times on one GPU that are predicted by weights fitted to another GPU (rows of llm-foundry).
    Returns (median relative error, median of predicted / measured). `source`: the GPU whose rows are fitted; `target`:
    the GPU whose step times are predicted."""
    import numpy as np

    timed = [row for row in published_rows() if row.seconds and row.stack == "llm-foundry"]
    weights = fit_weights([row for row in timed if row.gpu == source])
    ratio = np.array(
        [predicted_seconds(row, weights) / row.seconds for row in timed if row.gpu == target and row.seconds]
    )
    return float(np.median(np.abs(ratio - 1))), float(np.median(ratio))


def markdown_table(result: dict[str, Any]) -> list[str]:
    """The table of a calibration for docs/planning.md as lines of Markdown, with a row for each software stack and GPU.
    `result`: the result of `calibrate`."""
    head = "stack, GPU | rows | median error, held out | largest | rank correlation | 80% of actual / predicted"
    lines = [f"| {head} | inside, held out |", "|---|---:|---:|---:|---:|---|---:|"]
    for group in HOLD_OUT:
        summary = result[group]
        low, high = summary["interval"]
        lines.append(
            f"| {group} | {summary['rows']} | {summary['median error']:.1%} | {summary['largest error']:.0%} "
            f"| {summary['rank correlation']:.3f} | {low} to {high} | {summary['coverage held out']:.0%} |"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="ablations/plan/calibration.json anew")
    args = parser.parse_args()
    result = calibrate()
    if args.write:
        CALIBRATION.write_text(json.dumps(result, indent=1) + "\n")
    print(*markdown_table(result), sep="\n")
    for group in HOLD_OUT:
        if "checks" in (summary := result[group]):
            error, rank = summary["median error of checks"], summary["rank correlation of checks"]
            print(
                f"\n{group}: {summary['checks']} rows never fitted: median error {error:.1%}, rank correlation {rank}"
            )
    error, bias = transfer_error("a100-80", "h100")
    print(f"\nh100 by the weights of a100-80: median error {error:.0%}, predicted / actual {bias:.2f}")
    memory = result["memory"]
    print(
        f"memory: median error {memory['median error']:.1%} of {memory['rows']} rows, held out one at a time; "
        f"largest {memory['largest error']:.0%}"
    )
    for row in published_rows():
        if row.gib or not row.fits:
            predicted = peak_memory(row.shape, row.layout, row.flash, row.fp32_sums)
            if (memory_verdict(predicted, GPUS[row.gpu]) == "does not fit") == row.fits:
                print(
                    f"  {'ran' if row.fits else 'out of memory'}, predicted {predicted:.1f} GiB: {row.gpu} {row.layout}"
                )


if __name__ == "__main__":
    main()
