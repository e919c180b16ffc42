"""Section: the cost of the runs: FLOPs, processor-hours, estimated energy."""

import numpy as np

from ablations.document.blocks import Section, Table
from eval.report.comparison.findings import Findings
from eval.report.reading.expense import cost_so_far
from eval.report.reading.runs import in_one_line

HEAD = [
    "run",
    "parameters",
    "tokens",
    "FLOPs",
    "FLOPs at peak",
    "training",
    "tokens/s, median",
    "processors",
    "energy, estimate",
    "evaluation",
    "hardware",
]


def cost_section(findings: Findings) -> Section:
    lines, energy = [], 0.0
    devices: dict[str, tuple[float | None, str, str]] = {}  # {device: (watts, where they are from, unit)}
    hours: dict[str, float] = {}
    for (arm, seed), cell in findings.cells.items():
        if not cell.get("metrics"):
            continue
        run, expense = cell["run"], cost_so_far(cell)
        unit = expense["unit"]
        speed = float(np.median([row["tokens_per_second"] for row in cell["metrics"]]))
        hours[unit] = hours.get(unit, 0.0) + expense["hours"]
        energy += expense["kwh"] or 0.0
        devices[run["hardware"]["device"]] = (expense["watts"], expense["power"], unit)
        lines.append(
            [
                f"{arm}, seed {seed}",
                f"{run['parameters']['count']:,}",
                f"{expense['tokens']:,}",
                f"{expense['flops']:.2e}" if expense["flops"] else "-",
                f"{expense['peak']:.2e}" if expense["peak"] else "-",
                f"{expense['seconds']:,.0f} s",
                f"{speed:,.0f}",
                f"{expense['hours']:.3g} {unit}-hours",
                f"{expense['kwh']:.2g} kWh" if expense["kwh"] else "-",
                f"{cell['eval']['seconds']:.0f} s" if "eval" in cell else "-",
                in_one_line(run["hardware"]),
            ]
        )
    if not lines:
        return Section("Cost", ["No run has begun."])
    power = "; ".join(
        f"{in_one_line(device)}: {f'{watts:g} W per {unit}' if watts else 'unknown'} ({source})"
        for device, (watts, source, unit) in devices.items()
    )
    total = " and ".join(f"{value:.3g} {unit}-hours" for unit, value in sorted(hours.items()))
    words = (
        f"**{total} of training in all, about {energy:.2g} kWh.** The energy is an estimate, not measured: hours at "
        f"full power. {power}. FLOPs: 6 per weight and token of every matrix product, and attention (model/count.py); "
        "at peak: what the devices could have done in that time by their data sheets, as Cramming counts its budgets "
        "(ablations/plan/hardware.py)."
    )
    return Section("Cost", [words, Table(HEAD, lines)])
