"""What is not as a controlled comparison wants it, a line each."""

from typing import Any

from ablations.values import difference, flatten
from eval.report.compare import evaluation
from eval.report.runs import Cells, plain


def mismatches(study: Any, cells: Cells) -> list[str]:
    """Everything that is not as a controlled comparison wants it, a line each."""
    return together(each_mismatch(study, cells), len(cells))


def together(lines: list[str], runs: int) -> list[str]:
    """Lines "run: what" that say the same of several runs, as one."""
    found: dict[str, list[str]] = {}
    for line in lines:
        name, colon, what = line.partition(": ")
        name, what = (name, what) if colon and ", seed " in name else ("", line)
        found.setdefault(what, []).append(name)
    return [
        what if not names[0] else f"{'all runs' if len(names) == runs > 1 else ' + '.join(names)}: {what}"
        for what, names in found.items()
    ]


def each_mismatch(study: Any, cells: Cells) -> list[str]:
    cells_ = {f"{arm}, seed {seed}": cell for (arm, seed), cell in cells.items()}
    found = [f"{name}: {cell['state']}, so not among the results" for name, cell in cells_.items() if cell["state"]]
    runs = {name: cell["run"] for name, cell in cells_.items() if "run" in cell}
    evaluated = {name: cell for name, cell in cells_.items() if "eval" in cell}

    kept = ("commit", "versions", "hardware")
    found += apart(
        {name: {key: run[key] for key in kept} | {"layout": run["config"]["layout"]} for name, run in runs.items()}
    )
    for name, run in runs.items():
        if run["commit"].get("dirty"):
            found.append(f"{name}: ran from a working tree with changes that are in no commit")
        for later in run.get("continued", []):
            found += [
                f"{name}, when it was continued: {line}"
                for line in apart({"begun": {k: run[k] for k in kept}, "continued": {k: later[k] for k in kept}})
            ]
        for each in run.get("rollbacks", []):
            first, last = each["samples_left_out"]
            back = f"went back to step {each['back_to']}, and left out samples {first} to {last}"
            found.append(f"{name}: {back}: {plain(each['why'])}")
        found += [f"{name}, text: {plain(line)}" for line in run["data"].get("mismatch", [])]

    text = {name: {f"text of {run['config']['data']['corpus']}": run["data"]["sha256"]} for name, run in runs.items()}
    tokenizers = {name: run["data"]["tokenizer"] for name, run in runs.items()}
    found += apart(text, only_shared=True)
    found += apart(
        {
            name: {f"tokenizer of {each['corpus']} with {each['vocab']} pieces": each["sha256"]}
            for name, each in tokenizers.items()
        },
        only_shared=True,
    )

    found += apart({name: {"evaluation": evaluation(cell)} for name, cell in evaluated.items()})
    for task in sorted({task for cell in evaluated.values() for task in cell["eval"]["omitted"]}):
        found.append(f"{task}: left out, the held-out text does not give enough items")
    for task in sorted(
        {t for c in evaluated.values() for t in (c["eval"].get("lm_eval_tasks") or {}).get("missing", [])}
    ):
        found.append(f"{task}: left out, its data is not there")
    if getattr(study, "controlled", True):
        found += more_than_a_line(study, cells)
    return found


def more_than_a_line(study: Any, cells: Cells) -> list[str]:
    """Runs that differ from what the study plans, or from the baseline in more than the line that makes the arm."""
    found = []
    for (arm, seed), cell in cells.items():
        if "run" not in cell:
            continue
        name, planned = f"{arm}, seed {seed}", study.cell(arm, seed)
        run: dict[str, Any] = cell["run"]
        base: dict[str, Any] = cells[study.arms[0], seed].get("run", run)
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
            changed = difference(flatten(one), flatten(other))
            more = [
                f"{key}={plain(value)}"
                for key, value in changed.items()
                if key not in allowed and not key.startswith("layout.") and key != "size"
            ]
            found += [f"{name}: {what}: {', '.join(more)}"] if more else []
        # one proof may be of several factors: "model.qkv_bias, model.linear_bias"
        proved = {factor: proof["passed"] for proof in run["proofs"] for factor in proof["factor"].split(", ")}
        found += [f"{name}: the activity proof of {factor} failed" for factor, ok in proved.items() if not ok]
        found += [
            f"{name}: there is no activity proof of {key}"
            for key in planned.delta
            if key.startswith("model.") and key not in proved
        ]
    return found


def apart(values: dict[str, dict], only_shared: bool = False) -> list[str]:
    """{run: nested values} -> a line for every key whose value is not the same in all runs (that have it)."""
    flat = {name: flatten(value) for name, value in values.items()}
    lines = []
    for key in dict.fromkeys(key for value in flat.values() for key in value):
        groups: dict[str, list[str]] = {}
        for name, value in flat.items():
            if key in value or not only_shared:
                groups.setdefault(plain(value.get(key, "none")), []).append(name)
        if len(groups) > 1:
            each = [f"{value} ({' + '.join(runs)})" for value, runs in groups.items()]
            lines.append(f"{key} differs: {'; '.join(each)}")
    return lines
