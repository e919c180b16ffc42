"""Section: the activity proofs, which were measured before the first step to show that each factor acts."""

from ablations.document.blocks import Section, Table
from eval.report.comparison.findings import Findings
from eval.report.reading.runs import in_one_line


def proofs_section(findings: Findings) -> Section:
    """A table of activity proofs, with a line for each factor, value and result. The measurement shown is that of the
    first run that has the proof."""
    runs_with: dict[tuple[str, str, bool], list[str]] = {}
    measured: dict[tuple[str, str, bool], str] = {}
    for (arm, seed), cell in findings.cells.items():
        for proof in cell.get("run", {}).get("proofs", []):
            key = (proof["factor"], in_one_line(proof["value"]), proof["passed"])
            runs_with.setdefault(key, []).append(f"{arm}, seed {seed}")
            measured.setdefault(key, in_one_line(proof["detail"]))
    lines = []
    for key, runs in runs_with.items():
        factor, value, passed = key
        which = "all" if len(runs) == len(findings.cells) else "; ".join(runs)
        lines.append([factor, value, "as declared" if passed else "**failed**", measured[key], which])
    head = ["factor", "value", "result", "measured, in the first of the runs", "runs"]
    return Section(
        "Checks of the model before its first step", [Table(head, lines) if lines else "No run has any."], folded=True
    )
