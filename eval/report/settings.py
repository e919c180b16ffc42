"""What the runs of a study were: the settings that differ, those that do not, the proofs, the commits."""

from typing import Any

from ablations.values import flatten
from eval.report.compare import Found
from eval.report.runs import Cells, is_setting, plain
from eval.report.table import Code, Table


def differs(f: Found) -> list:
    """The line that makes each arm."""
    configs = configurations(f)
    if not configs:
        return ["No run has begun."]
    keys = list(dict.fromkeys(key for config in configs.values() for key in config))
    apart = [key for key in keys if key not in same(configs)]
    words = "One setting makes an arm; everything else is held fixed, and listed below."
    if not f.controlled:
        words = "These runs were not planned as a controlled comparison." if len(apart) > 1 else "One setting differs."
    lines = [[arm, *(plain(config.get(key, "-")) for key in apart)] for arm, config in configs.items()]
    return [words, Table(["arm", *(f"`{key}`" for key in apart)], lines)]


def held_fixed(f: Found) -> list:
    values = same(configurations(f))
    return [Table(["setting", "in all runs"], [[f"`{key}`", value] for key, value in values.items()])] if values else []


def configurations(f: Found) -> dict[str, dict[str, Any]]:
    """{arm: what makes its runs, flat}, of the runs that have begun."""
    found = {arm: flatten(next(c["run"]["config"] for c in seeds.values())) for arm, seeds in f.having("run").items()}
    return {arm: {key: value for key, value in config.items() if is_setting(key)} for arm, config in found.items()}


def same(configs: dict[str, dict[str, Any]]) -> dict[str, str]:
    """The settings that all have, and their values."""
    every = list(configs.values())
    return {
        key: plain(value)
        for key, value in (every[0] if every else {}).items()
        if all(key in config and config[key] == value for config in every)
    }


def proofs(cells: Cells) -> Table | str:
    """One line for each factor and value, with what was measured in the first run that has it."""
    found: dict[tuple[str, str, bool], list[str]] = {}
    seen: dict[tuple[str, str, bool], str] = {}
    for (arm, seed), cell in cells.items():
        for proof in cell.get("run", {}).get("proofs", []):
            key = (proof["factor"], plain(proof["value"]), proof["passed"])
            found.setdefault(key, []).append(f"{arm}, seed {seed}")
            seen.setdefault(key, plain(proof["detail"]))
    lines = []
    for key, runs in found.items():
        factor, value, passed = key
        which = "all" if len(runs) == len(cells) else "; ".join(runs)
        lines.append([factor, value, "active" if passed else "**failed**", seen[key], which])
    head = ["factor", "value", "result", "measured, in the first of the runs", "runs"]
    return Table(head, lines) if lines else "No run has any."


def redo(f: Found) -> list:
    shas = ", ".join(sorted({cell["run"]["commit"]["sha"] for cell in f.cells.values() if "run" in cell})) or "unknown"
    versions = {plain(cell["run"]["versions"]): None for cell in f.cells.values() if "run" in cell}
    return [Code(f.study.command), f"Commit: {shas}. Versions: {' | '.join(versions) or 'unknown'}."]
