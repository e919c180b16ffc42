"""Section: the rules of "Cramming" (Geiping & Goldstein 2022, section 2), for runs with a wall-clock budget. It lists
the rules that a run breaks, and what the run cost."""

from typing import Any

from ablations.budget import clock_seconds
from ablations.document.blocks import Section, Table
from eval.report.comparison.findings import Findings
from eval.report.reading.expense import cost_so_far
from eval.report.reading.runs import has_clock_budget, in_one_line

LONGEST = 24 * 3600.0  # seconds
MOST_EPOCHS = 5  # of fine-tuning
TOLERANCE = 0.01  # share of the budget by which a run may end late; or one step, where that is more
MARK = "†"
WORDS = """\
The challenge: a masked language model, from nothing, in at most a day of wall clock on one device; fine-tuned on each
task's own training set, with one setting for all tasks, in at most five epochs. Compiling counts, preparing data does
not."""
HEAD = ["run", "budget", "trained", "compiling", "FLOPs", "FLOPs at peak", "fine-tuning", "rules"]


def challenge_section(findings: Findings) -> Section:
    lines = []
    for (arm, seed), cell in findings.cells.items():
        if has_clock_budget(cell) and cell.get("metrics"):
            expense, done = cost_so_far(cell), cell.get("done", {})
            compiling = done.get("compile_seconds")
            epochs = (cell.get("glue") or {}).get("setting", {}).get("epochs")
            lines.append(
                [
                    f"{arm}, seed {seed}",
                    in_one_line(cell["run"]["config"]["train"]["budget"]),
                    f"{expense['seconds']:,.1f} s",
                    "-" if compiling is None else f"{compiling:,.1f} s",
                    f"{expense['flops']:.2e}" if expense["flops"] else "-",
                    f"{expense['peak']:.2e}" if expense["peak"] else "-",
                    "-" if epochs is None else f"{in_one_line(epochs)} epochs",
                    "; ".join(f"**broken: {rule}**" for rule in broken_rules(cell)) or "kept",
                ]
            )
    return Section("Rules of Cramming", [WORDS, Table(HEAD, lines)] if lines else [])


def broken_rules(cell: dict[str, Any]) -> list[str]:
    """The rules of "Cramming" that a run breaks, as phrases such as "2 devices". [] for a budget in tokens, to which
    the rules do not apply. `cell`: the content of the run directory."""
    if not has_clock_budget(cell):
        return []
    run = cell["run"]
    config, rules = run["config"], []
    if config["data"].get("tokenizer_kind") == "file":
        rules.append("a tokenizer that was trained before (data.tokenizer_kind=file)")
    if (objective := config["model"].get("objective", "causal")) != "mlm":
        rules.append(f"no masked language model (model.objective={in_one_line(objective)})")
    devices = max(number_of_devices(launch) for launch in (run, *(run.get("continued") or [])))
    if devices > 1:
        rules.append(f"{devices} devices")
    rules += broken_time_rules(cell)
    table = cell.get("glue") or {}
    epochs = (table.get("setting") or {}).get("epochs", 0)
    if not isinstance(epochs, int) or epochs > MOST_EPOCHS:
        rules.append(f"fine-tuning over {in_one_line(epochs)} epochs")
    settings = [entry["setting"] for entry in table.get("scores", {}).values() if "setting" in entry]
    if any(setting != table.get("setting") for setting in settings):
        rules.append("fine-tuning with other settings for some tasks")
    return rules


def number_of_devices(launch: dict[str, Any]) -> int:
    """The number of devices with which a run was trained; 1 where it is unknown. `launch`: the content of run.json,
    which describes the first start of the training, or an entry of its list "continued", which describes a later
    one."""
    hardware = launch.get("hardware")
    count = hardware.get("ranks") if isinstance(hardware, dict) else None
    return count if isinstance(count, int) else 1


def broken_time_rules(cell: dict[str, Any]) -> list[str]:
    """The rules on time that a run breaks, as phrases. A budget must be known and no longer than the challenge allows,
    and training must not exceed it. `cell`: the content of the run directory."""
    rules = []
    try:
        budget = clock_seconds(cell["run"]["config"]["train"]["budget"])
    except (TypeError, ValueError):
        budget = None
    if not budget:
        return ["no budget that is known"]
    if budget > LONGEST:
        rules.append(f"a budget of more than {LONGEST / 3600:.0f} hours")
    seconds = cell.get("done", {}).get("seconds")
    if seconds is None:  # `done` of an earlier version, or none yet
        seconds = cell["metrics"][-1]["seconds"] if cell.get("metrics") else 0.0
    late = seconds - budget
    if late > TOLERANCE * budget and late > seconds_of_last_step(cell):
        rules.append(f"{late:,.1f} s longer than its budget, more than {TOLERANCE:.0%} and more than a step")
    return rules


def seconds_of_last_step(cell: dict[str, Any]) -> float:
    """The seconds per step between the last two lines of a run's log; 0 where there are fewer lines. `cell`: the
    content of the run directory."""
    if len(cell.get("metrics", [])) < 2:
        return 0.0
    before, last = cell["metrics"][-2:]
    return (last["seconds"] - before["seconds"]) / max(1, last["step"] - before["step"])
