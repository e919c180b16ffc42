"""Finds everything that violates a controlled comparison, such as runs on different hardware or with different
versions."""

from typing import Any

from ablations.values import difference, flatten
from eval.report.comparison.comparable import evaluation_conditions
from eval.report.reading.runs import Cells, in_one_line, runs_in_words


def find_mismatches(study: Any, cells: Cells) -> list[str]:
    """Sentences about everything that violates a controlled comparison. `study`: a Study or a Collection; `cells`:
    {(arm, seed): content of the run directory}."""
    return join_by_text(single_mismatches(study, cells), len(cells))


def join_by_text(lines: list[str], runs: int) -> list[str]:
    """Join sentences "RUN: TEXT" of equal TEXT into one, "RUN + RUN: TEXT", or "all runs: TEXT". Sentences of another
    form stay as they are. `runs`: the number of runs of the study."""
    runs_of: dict[str, list[str]] = {}
    for line in lines:
        name, colon, what = line.partition(": ")
        if colon and ", seed " in name:
            runs_of.setdefault(what, []).append(name)
        else:
            runs_of.setdefault(line, []).append("")
    merged = []
    for what, names in runs_of.items():
        everywhere = len(names) == runs > 1
        merged.append(f"{'all runs' if everywhere else ' + '.join(names)}: {what}" if names[0] else what)
    return merged


def single_mismatches(study: Any, cells: Cells) -> list[str]:
    """The sentences of `find_mismatches`, before those about several runs are joined."""
    by_name = {f"{arm}, seed {seed}": cell for (arm, seed), cell in cells.items()}
    lines = [f"{name}: {cell['state']}, so not among the results" for name, cell in by_name.items() if cell["state"]]
    lines += [f"{name}: {damage}" for name, cell in by_name.items() for damage in cell.get("damage", [])]
    lines += getattr(study, "damaged", [])
    runs = {name: cell["run"] for name, cell in by_name.items() if "run" in cell}
    evaluated = {name: cell for name, cell in by_name.items() if "eval" in cell}

    compared = ("commit", "versions", "hardware")
    lines += differing_values(
        {name: {key: run[key] for key in compared} | {"layout": executed_layout(run)} for name, run in runs.items()}
    )
    for name, run in runs.items():
        lines += training_events(name, run, compared)
        lines += [f"{name}, text: {in_one_line(line)}" for line in run["data"].get("mismatch") or []]

    text = {name: {f"text of {run['config']['data']['corpus']}": run["data"]["sha256"]} for name, run in runs.items()}
    lines += differing_values(text, only_shared=True)
    tokenizers = {}
    for name, run in runs.items():
        tokenizer = run["data"]["tokenizer"]
        tokenizers[name] = {f"tokenizer of {tokenizer['corpus']} with {tokenizer['vocab']} pieces": tokenizer["sha256"]}
    lines += differing_values(tokenizers, only_shared=True)

    lines += differing_values({name: {"evaluation": evaluation_conditions(cell)} for name, cell in evaluated.items()})
    for task in sorted({in_one_line(task) for cell in evaluated.values() for task in cell["eval"]["omitted"]}):
        lines.append(f"{task}: left out, the held-out text does not give enough items")
    named_tasks = [cell["eval"].get("lm_eval_tasks") or {} for cell in evaluated.values()]
    for task in sorted({in_one_line(task) for tasks in named_tasks for task in tasks.get("missing") or []}):
        lines.append(f"{task}: left out, its data is not there")
    if getattr(study, "controlled", True):
        lines += unplanned_configurations(study, cells)
        lines += edges_with_other_changes(study, cells)
    else:
        lines += unequal_seeds([run for run, cell in cells.items() if "eval" in cell])
    return lines


def unequal_seeds(runs: list[tuple[str, int]]) -> list[str]:
    """A list with one sentence if arms have different seeds, so that their means are over different seeds; else [].
    `runs`: the evaluated runs, [(arm, seed)]."""
    seeds: dict[str, set[int]] = {}
    for arm, seed in runs:
        seeds.setdefault(arm, set()).add(seed)
    if len({frozenset(numbers) for numbers in seeds.values()}) < 2:
        return []
    return [
        f"arms have different seeds, {runs_in_words(runs)}: the means in the table are over different seeds, and may "
        "order the arms otherwise than their differences at the same seeds do"
    ]


def training_events(name: str, run: dict[str, Any], compared: tuple[str, ...]) -> list[str]:
    """Sentences about events in a run's training that a controlled comparison should not have: changed code or
    hardware, and rollbacks. `name`: the run's name in the sentences; `run`: the content of run.json; `compared`: the
    keys of run.json that must be equal whenever the run is continued."""
    lines = []
    if run["commit"].get("dirty"):
        lines.append(f"{name}: ran from a working tree with changes that are in no commit")
    for later in run.get("continued") or []:
        sessions = {
            "begun": {key: run[key] for key in compared},
            "continued": {key: later.get(key, {}) for key in compared},
        }
        modes = {"begun": compile_mode(run), "continued": compile_mode(later)}
        if all(modes.values()):
            for launch, mode in modes.items():
                sessions[launch]["layout.compile"] = mode
        lines += [f"{name}, when it was continued: {line}" for line in differing_values(sessions)]
    for rollback in run.get("rollbacks") or []:
        first, last = rollback["samples_left_out"]
        back = f"went back to step {rollback['back_to']}, and left out samples {first} to {last}"
        lines.append(f"{name}: {back}: {in_one_line(rollback['why'])}")
    return lines


def compile_mode(launch: dict[str, Any]) -> str:
    """How a model was really compiled in one launch of a run, as a value of layout.compile: "never" where it was not,
    "" where run.json does not say. `launch`: the content of run.json, or an entry of its "continued"."""
    execution = launch.get("execution")
    return str(execution.get("compiled", "")) if isinstance(execution, dict) else ""


def executed_layout(run: dict[str, Any]) -> dict[str, Any]:
    """The layout settings with which a run was executed, {name: value}. If "compile" was "auto", its value is the mode
    that was chosen, since this depends on the machine and on the length of the runs. `run`: the content of run.json."""
    layout = run["config"]["layout"]
    mode = compile_mode(run)
    return layout | {"compile": mode} if mode else layout


def unplanned_configurations(study: Any, cells: Cells) -> list[str]:
    """Sentences about runs that do not fit the plan of the study. There are three cases: the configuration is not the
    planned one; it differs from the baseline in more than the arm's settings; or an activity proof failed or is
    missing. `study`: a Study; `cells`: {(arm, seed): content of the run directory}."""
    lines = []
    for (arm, seed), cell in cells.items():
        if "run" not in cell:
            continue
        name, planned = f"{arm}, seed {seed}", study.cell(arm, seed)
        run: dict[str, Any] = cell["run"]
        base: dict[str, Any] = cells.get((study.arms[0], seed), {}).get("run", run)
        tests = {
            "ran with another configuration than the study has now": (planned.config, run["config"], {}),
            "differs from the baseline in more than its line": (base["config"], run["config"], planned.delta),
            "differs in effect from the baseline in more than its line": (
                base["effective"],
                run["effective"],
                planned.delta,
            ),
        }
        for what, (one, other, allowed) in tests.items():
            if more := unexpected_changes(allowed, one, other):
                changes = ", ".join(f"{key}={in_one_line(value)}" for key, value in more.items())
                lines.append(f"{name}: {what}: {changes}")
        # one proof may be of several factors: "model.qkv_bias, model.linear_bias"
        proved = {factor: proof["passed"] for proof in run["proofs"] for factor in proof["factor"].split(", ")}
        lines += [f"{name}: the activity proof of {factor} failed" for factor, passed in proved.items() if not passed]
        lines += [
            f"{name}: there is no activity proof of {key}"
            for key in planned.delta
            if key.startswith("model.") and key not in proved
        ]
    return lines


def edges_with_other_changes(study: Any, cells: Cells) -> list[str]:
    """Sentences about pairs of runs of a factorial that should differ in one factor only, and differ in more, as
    configured or in effect. [] where there is no such pair, or the study is no factorial. `study`: a Study or a
    Collection; `cells`: {(arm, seed): content of the run directory}."""
    lines: list[str] = []
    design = getattr(study, "factorial", None)
    if not design:
        return lines
    for one, other, number in design.single_changes:
        first, second = (design.arm_label(c) or study.arms[0] for c in (one, other))
        for seed in study.seeds:
            runs = [cells.get((arm, seed), {}).get("run") for arm in (first, second)]
            if not all(runs):
                continue
            allowed = study.cell(design.factors[number], seed).delta
            for what in ("config", "effective"):
                if more := unexpected_changes(allowed, *(run[what] for run in runs if run)):
                    lines.append(
                        f"{second}, seed {seed}: {what}: differs from {first} in more than one line: {', '.join(more)}"
                    )
    return lines


def unexpected_changes(allowed: dict[str, Any], one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """The settings in which two configurations differ although they should not: {setting: its value in `other`}.
    `allowed`: {setting in which they may differ: any value}. Layout and the name of the size may always differ."""
    changes = difference(flatten(one), flatten(other))
    return {
        key: value
        for key, value in changes.items()
        if key not in allowed and not key.startswith("layout.") and key != "size"
    }


def differing_values(values: dict[str, dict], only_shared: bool = False) -> list[str]:
    """A sentence for each key whose value differs between runs. `values`: {run: nested dictionary}; `only_shared`:
    ignore runs that lack the key; otherwise their value counts as "none"."""
    flat_values = {name: flatten(value) for name, value in values.items()}
    lines = []
    for key in dict.fromkeys(key for value in flat_values.values() for key in value):
        groups: dict[str, list[str]] = {}
        for name, value in flat_values.items():
            if key in value or not only_shared:
                groups.setdefault(in_one_line(value.get(key, "none")), []).append(name)
        if len(groups) > 1:
            shown = [f"{value} ({' + '.join(runs)})" for value, runs in groups.items()]
            lines.append(f"{key} differs: {'; '.join(shown)}")
    return lines
