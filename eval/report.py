"""python -m eval.report POS=alibi ...: run directories in, report out. A pure function: run twice, same
bytes.

Nothing is read but the study and its run directories, no clock and no machine; nothing is written but the
five files of a record: report.md, results.csv, figure.png, figure.svg, run.json.
"""

import csv
import gzip
import io
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ablations.config import difference, flatten
from eval.figure import draw
from eval.statistics import (
    LN2,
    Comparison,
    compare,
    family,
    item_part,
    level_stderr,
    ratio_stderr,
    seed_part,
    verdict,
)

Cells = dict[tuple[str, int], dict[str, Any]]
METRICS = {  # what is compared: unit, digits, direction, and where a cell's number stands in eval.json
    "bits/byte": {"digits": 3, "higher_is_better": False, "key": "bits_per_byte"},
    "zero-shot": {"digits": 1, "higher_is_better": True, "key": "zero_shot"},
}


def main(argv: list[str] | None = None) -> int:
    """Writes ablations/records/<study> and prints its table."""
    from ablations.study import from_args

    try:
        study = from_args(sys.argv[1:] if argv is None else argv)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    out = Path("ablations/records") / study.name
    print(f"{report(study, out)}\n{out / 'report.md'}")
    return 0


def report(study: Any, out: Path) -> str:
    """Writes the record of a study (ablations.study.Study) to the directory `out`; returns the table for the
    screen.

    Cells that are missing, unfinished or not evaluated are named, and the others reported.
    """
    cells = {(arm, seed): read(study.cell(arm, seed).dir) for arm in study.arms for seed in study.seeds}
    results = {metric: collect(study, cells, entry["key"]) for metric, entry in METRICS.items()}
    compared = {metric: comparisons(study, cells, results[metric], metric) for metric in METRICS}
    text = table(study, cells, results, compared["bits/byte"])
    out.mkdir(parents=True, exist_ok=True)
    curves = {arm: {seed: curve(cells[arm, seed]) for seed in study.seeds if cells[arm, seed].get("metrics")}
              for arm in study.arms}
    noise = {arm: c.noise for arm, c in compared["bits/byte"].items() if c.seeds}
    draw(study.title, curves, results["bits/byte"], noise, [out / "figure.png", out / "figure.svg"])
    (out / "report.md").write_text(markdown(study, cells, results, compared, text), encoding="utf-8")
    (out / "results.csv").write_text(rows(study, cells), encoding="utf-8")
    (out / "run.json").write_text(json.dumps(record(study, cells, results, compared), indent=1) + "\n", encoding="utf-8")
    missing = mismatches(study, cells)
    notes = footnotes(cells, study, results, compared)
    notes += [f"{len(missing)} thing{'s' * (len(missing) > 1)} not as planned: see the report."] * bool(missing)
    return "\n".join([text, "", *notes])


# ------------------------------------------------------------------------------------------------ reading


def read(directory: Path) -> dict[str, Any]:
    """What a run directory holds: {"state", "run", "metrics", "eval", "samples"}, as far as it has come."""
    if not (directory / "run.json").exists():
        return {"state": "not started"}
    cell: dict[str, Any] = {"state": "not finished", "run": json.loads((directory / "run.json").read_text())}
    if (directory / "metrics.jsonl").exists():
        lines = (directory / "metrics.jsonl").read_text().splitlines()
        cell["metrics"] = list({row["step"]: row for row in map(json.loads, filter(whole, lines))}.values())
    if not (directory / "done").exists():
        return cell
    if not (directory / "eval.json").exists():
        return cell | {"state": "not evaluated"}
    samples: dict[str, dict[str, tuple[float, float]]] = {}
    with gzip.open(directory / "samples.jsonl.gz", "rt") as lines:
        for row in map(json.loads, lines):
            value = (row["nats"] / LN2, row["bytes"]) if "nats" in row else (row["value"], 1)
            samples.setdefault(row["task"], {})[row["id"]] = value
    return cell | {"state": "", "eval": json.loads((directory / "eval.json").read_text()), "samples": samples}


def whole(line: str) -> bool:
    """A run that was killed while it wrote may end in half a line."""
    return line.startswith("{") and line.endswith("}")


def curve(cell: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    rows = cell["metrics"]
    return np.array([row["tokens"] for row in rows]), np.array([row["loss"] for row in rows])


def collect(study: Any, cells: Cells, key: str) -> dict[str, dict[int, float]]:
    """{arm: {seed: a number of eval.json}}, of the cells that have it."""
    return {arm: {seed: cells[arm, seed]["eval"][key]["value"] for seed in study.seeds
                  if (cells[arm, seed].get("eval") or {}).get(key)} for arm in study.arms}


def tasks(cells: Cells, metric: str) -> list[str]:
    """The tasks behind a metric, in the order of evaluation."""
    found: dict[str, None] = {}
    for cell in cells.values():
        for name, task in cell.get("eval", {}).get("tasks", {}).items():
            if task["mean"] if metric == "zero-shot" else task["metric"] == "bits_per_byte":
                found[name] = None
    return list(found)


def outcomes(cells: Cells, arm: str, seeds: Iterable[int], names: list[str]) -> list[dict[str, tuple[float, float]]]:
    """Per task, {item: (outcome averaged over seeds, weight)}, of the items that all these cells have."""
    strata = []
    for name in names:
        each = [cells[arm, seed]["samples"].get(name, {}) for seed in seeds]
        common = sorted(set.intersection(*map(set, each))) if each else []
        strata.append({i: (float(np.mean([row[i][0] for row in each])), each[0][i][1]) for i in common})
    return strata


# ------------------------------------------------------------------------------------------------ comparing


def comparisons(study: Any, cells: Cells, results: dict[str, dict[int, float]], metric: str) -> dict[str, Comparison]:
    """{arm: its comparison with the baseline}, paired by seed and by item, p-values after Holm's
    correction."""
    baseline, scale = study.arms[0], 100.0 if metric == "zero-shot" else 1.0
    found = {}
    for arm in study.arms[1:]:
        seeds = sorted(results[arm].keys() & results[baseline].keys())
        if not seeds:
            continue
        names = tasks(cells, metric)
        pairs = zip(outcomes(cells, arm, seeds, names), outcomes(cells, baseline, seeds, names), strict=True)
        strata = []
        for ours, theirs in pairs:
            ids = sorted(ours.keys() & theirs.keys())
            strata.append((scale * np.array([ours[i][0] - theirs[i][0] for i in ids]),
                           np.array([ours[i][1] for i in ids], float)))
        mean = float(np.mean([results[arm][seed] - results[baseline][seed] for seed in seeds]))
        found[arm] = compare(mean, seed_part(results, arm, baseline), item_part(strata))
    return family(found)


def uncertainty(study: Any, cells: Cells, results: dict[str, dict[int, float]], arm: str, metric: str) -> float:
    """Standard error of an arm's own number: over seeds and over items."""
    scale = 100.0 if metric == "zero-shot" else 1.0
    strata = [(scale * np.array([v for v, _ in items.values()]), np.array([w for _, w in items.values()], float))
              for items in outcomes(cells, arm, results[arm], tasks(cells, metric))]
    return level_stderr(results, arm, item_part(strata))


# ------------------------------------------------------------------------------------------------ writing


def table(study: Any, cells: Cells, results: dict[str, dict], compared: dict[str, Comparison]) -> str:
    """One line per arm: its numbers, and in words what they say against the baseline, by bits per byte."""
    lines = [[study.title, *METRICS, "verdict"]]
    for arm in study.arms:
        line = [arm + " (baseline)" * (arm == study.arms[0])]
        for metric, entry in METRICS.items():
            seeds = results[metric][arm]
            error = uncertainty(study, cells, results[metric], arm, metric) if seeds else 0
            line.append(number(float(np.mean(list(seeds.values()))), error, entry["digits"]) if seeds else "-")
        missing = len(study.seeds) - len(results["bits/byte"][arm])
        words = [verdict(compared[arm], **direction("bits/byte"))] if arm in compared else []
        words += [f"{missing} of {len(study.seeds)} runs missing"] * bool(missing)
        lines.append([*line, "; ".join(words)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = ["    ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
    return "\n".join(line.rstrip() for line in padded)


def footnotes(cells: Cells, study: Any, results: dict[str, dict], compared: dict[str, dict]) -> list[str]:
    chance = next((c["eval"]["zero_shot"]["chance"] for c in cells.values()
                   if (c.get("eval") or {}).get("zero_shot")), None)
    guess = f", chance {chance:.1f}" if chance is not None else ""
    zero = "; ".join(f"{arm} {verdict(c, **direction('zero-shot'))}" for arm, c in compared["zero-shot"].items())
    return [
        f"bits/byte: held-out loss, lower is better; the verdict is on it. zero-shot: mean accuracy in %{guess}"
        + (f"; its own verdict: {zero}." if zero else "."),
        "±: standard error of that number alone. Arms share seeds and documents, so their differences are surer.",
    ]


def direction(metric: str) -> dict[str, Any]:
    return {key: METRICS[metric][key] for key in ("higher_is_better", "digits")}


def number(value: float, error: float, digits: int) -> str:
    return f"{value:.{digits}f} ± {error:.{digits}f}"


def markdown(study: Any, cells: Cells, results: dict[str, dict], compared: dict[str, dict], text: str) -> str:
    wrong = mismatches(study, cells)
    parts = [
        f"# {study.title}",
        f"**Question.** {study.question}",
        f"**Expected, written before the runs.** {study.expect}",
        f"```\n{text}\n```",
        *footnotes(cells, study, results, compared),
        "![Loss curves, paired differences and held-out results](figure.png)",
        *caution(study),
        "## Differences from the baseline", *paired(study, results, compared),
        "## Zero-shot, task by task", *per_task(study, cells),
        "## Cost", cost(study, cells),
        "## Activity proofs", proofs(study, cells),
        "## What does not match",
        "\n".join(f"* {line}" for line in wrong) or
        "Nothing: every run is finished, and but for the arms' one line all have the same configuration, data, "
        "tokenizer, code, versions, hardware and layout.",
        "## How to reproduce", f"```\n{study.command}\n```",
        "At commit " + (", ".join(sorted({str(c["run"]["commit"]) for c in cells.values() if "run" in c})) or "-") + ".",
    ]
    return "\n\n".join(parts) + "\n"


def caution(study: Any) -> list[str]:
    keys = {key for arm in study.arms for key in study.cell(arm, study.seeds[0]).delta}
    if any(key.startswith("data.") or key == "model.vocab" for key in keys):
        return ["The arms read different text or tokens, so their training losses are not comparable; the held-out "
                "result in bits per byte is."]
    return []


def paired(study: Any, results: dict[str, dict], compared: dict[str, dict]) -> list[str]:
    """Per seed, then what is needed for a difference to count."""
    baseline = study.arms[0]
    each = [["", *(f"seed {seed}" for seed in study.seeds), "mean"]]
    tests = [["", "difference", "from the seeds", "from the items", "noise", "counts above", "p", "verdict"]]
    for metric, entry in METRICS.items():
        digits = entry["digits"] + 1
        for arm, c in compared[metric].items():
            row, base = results[metric][arm], results[metric][baseline]
            each.append([f"{arm}, {metric}", *(f"{row[s] - base[s]:+.{digits}f}" if s in row and s in base else "-"
                                               for s in study.seeds), f"{c.difference:+.{digits}f}"])
            known = c.seeds is not None
            tests.append([
                f"{arm}, {metric}", f"{c.difference:+.{digits}f}",
                f"{c.seeds.variance**0.5:.{digits}f} ({c.seeds.dof:.0f} d.o.f.)" if c.seeds else "unknown",
                f"{c.items.variance**0.5:.{digits}f}", f"{c.noise:.{digits}f}" if known else "unknown",
                f"{c.threshold:.{digits}f}" if known else "never", f"{c.adjusted:.2g}" if known else "-",
                verdict(c, **direction(metric)),
            ])
    if len(each) == 1:
        return ["No arm can be compared with the baseline yet."]
    return [
        f"Arm minus {baseline} at the same seed: the same batches in the same order, the same initial weights "
        "where the arms have them in common. Bits per byte: negative is better; zero-shot, in points: positive is.",
        grid(each),
        grid(tests),
        "The noise is the standard error of the difference. One part comes from the seeds: what remains of the "
        "results after removing the mean of each arm and of each seed, pooled over all arms. The other comes from "
        "the items, held-out documents or questions, on which the two arms are compared one by one. A difference "
        "counts when it exceeds the value under \"counts above\", which at these few seeds is many times the noise "
        "because the noise itself is badly known; p is two-sided, after Holm's correction for the number of arms. "
        "The formulas and their sources: eval/statistics.py.",
    ]


def per_task(study: Any, cells: Cells) -> list[str]:
    names = list(dict.fromkeys(name for cell in cells.values() for name in cell.get("eval", {}).get("tasks", {})))
    lines = [["task", "items", "chance", *study.arms]]
    for name in names:
        any_cell = next(c["eval"]["tasks"][name] for c in cells.values() if name in c.get("eval", {}).get("tasks", {}))
        loss = any_cell["metric"] == "bits_per_byte"
        line = [name + ("" if loss or any_cell["mean"] else " (not in the mean)"), str(any_cell["n"]),
                "-" if loss else f"{100 * any_cell['chance']:.1f}"]
        for arm in study.arms:
            seeds = [s for s in study.seeds if name in cells[arm, s].get("eval", {}).get("tasks", {})]
            if not seeds:
                line.append("-")
                continue
            items = outcomes(cells, arm, seeds, [name])[0].values()
            scale = 1.0 if loss else 100.0
            value = np.mean([cells[arm, s]["eval"]["tasks"][name]["value"] for s in seeds])
            error = ratio_stderr(np.array([v for v, _ in items]), np.array([w for _, w in items]))
            line.append(number(scale * float(value), scale * error, 3 if loss else 1))
        lines.append(line)
    return ["Mean over seeds ± standard error over items. Accuracy in %, raw; bits_per_byte in bits. What the tasks "
            "are: eval/tasks.yaml.", grid(lines)]


def cost(study: Any, cells: Cells) -> str:
    lines = [["run", "parameters", "tokens", "training", "tokens/s", "evaluation", "hardware"]]
    for (arm, seed), cell in cells.items():
        if cell.get("metrics"):
            last = cell["metrics"][-1]
            speed = float(np.median([row["tokens_per_second"] for row in cell["metrics"]]))
            lines.append([f"{arm}, seed {seed}", f"{cell['run']['parameters']['count']:,}", f"{last['tokens']:,}",
                          f"{last['seconds']:,.0f} s", f"{speed:,.0f}",
                          f"{cell['eval']['seconds']:.0f} s" if "eval" in cell else "-",
                          words(cell["run"]["hardware"])])
    return grid(lines)


def proofs(study: Any, cells: Cells) -> str:
    """Equal proofs of several runs in one line."""
    found: dict[tuple, list[str]] = {}
    for (arm, seed), cell in cells.items():
        for proof in cell.get("run", {}).get("proofs", []):
            key = (proof["factor"], words(proof["value"]), proof["passed"], words(proof["detail"]))
            found.setdefault(key, []).append(f"{arm}, seed {seed}")
    lines = [["factor", "value", "result", "what was seen", "runs"]]
    for (factor, value, passed, detail), names in found.items():
        which = "all" if len(names) == len(cells) else "; ".join(names)
        lines.append([factor, value, "active" if passed else "**failed**", detail, which])
    return grid(lines) if found else "No run has any."


def mismatches(study: Any, cells: Cells) -> list[str]:
    """Everything between the runs that is not as a controlled comparison wants it, one line each."""
    found = [f"{arm}, seed {seed}: {cell['state']}, so not among the results"
             for (arm, seed), cell in cells.items() if cell["state"]]
    begun = {f"{arm}, seed {seed}": cell for (arm, seed), cell in cells.items() if "run" in cell}
    runs = {name: cell["run"] for name, cell in begun.items()}
    for what in ("commit", "versions", "hardware"):
        found += apart({name: {what: run.get(what)} for name, run in runs.items()})
    found += apart({name: {"layout": run["config"]["layout"]} for name, run in runs.items()})
    corpora = {(name, run["config"]["data"]["corpus"]): run["data"]["sha256"] for name, run in runs.items()}
    for corpus in sorted({corpus for _, corpus in corpora}):
        found += apart({name: {f"text of {corpus}": hash} for (name, c), hash in corpora.items() if c == corpus})
    tokenizers = {(name, run["config"]["data"]["tokenizer"], run["config"]["model"]["vocab"]):
                  run["data"]["tokenizer"]["sha256"] for name, run in runs.items()}
    for kind in sorted({kind for _, *kind in tokenizers}):
        found += apart({name: {f"tokenizer of {kind[0]}, {kind[1]} pieces": hash}
                        for (name, *k), hash in tokenizers.items() if k == kind})
    evaluated = {name: cell for name, cell in begun.items() if "eval" in cell}
    found += apart({name: {"evaluation": {key: cell["eval"][key] for key in ("version", "lm_eval")}}
                    for name, cell in evaluated.items()})
    found += apart({name: {"items": {task: len(ids) for task, ids in cell["samples"].items()}}
                    for name, cell in evaluated.items()})
    for task in sorted({task for cell in evaluated.values() for task in cell["samples"]}):
        if len({frozenset(cell["samples"].get(task, {})) for cell in evaluated.values()}) > 1:
            found.append(f"{task}: not the same items in every run; only those in common are compared")
    for name in sorted({name for cell in evaluated.values() for name in cell["eval"].get("omitted", [])}):
        found.append(f"{name}: left out, the held-out text does not give enough items")

    for (arm, seed), cell in cells.items():
        name, base = f"{arm}, seed {seed}", cells[study.arms[0], seed]
        if "run" not in cell:
            continue
        run, planned, delta = cell["run"], study.cell(arm, seed), study.cell(arm, seed).delta
        if run.get("dirty"):
            found.append(f"{name}: run from a working tree with changes that are not committed")
        if apart_from(run["config"], planned.config):
            found.append(f"{name}: ran with another configuration than the study has now: "
                         + listed(apart_from(run["config"], planned.config)))
        if "run" in base:
            more = {k: v for k, v in apart_from(base["run"]["config"], run["config"]).items() if k not in delta}
            if more:
                found.append(f"{name}: differs from the baseline in more than its line: {listed(more)}")
            more = {k: v for k, v in difference(flatten(base["run"]["effective"]), flatten(run["effective"])).items()
                    if k not in delta}
            if more:
                found.append(f"{name}: differs in effect from the baseline in more than its line: {listed(more)}")
        failed = [proof["factor"] for proof in run["proofs"] if not proof["passed"]]
        unproved = [key for key in delta if key.startswith("model.")
                    and key.split(".")[-1] not in {proof["factor"] for proof in run["proofs"]}]
        found += [f"{name}: the activity proof of {factor} failed" for factor in failed]
        found += [f"{name}: there is no activity proof of {key}" for key in unproved]
    return found


def apart(values: dict[str, dict]) -> list[str]:
    """{run: {key: value}} -> a line for every key whose value is not the same in all runs."""
    flat = {name: flatten(value) for name, value in values.items()}
    lines = []
    for key in dict.fromkeys(key for value in flat.values() for key in value):
        groups: dict[str, list[str]] = {}
        for name, value in flat.items():
            groups.setdefault(words(value.get(key, "none")), []).append(name)
        if len(groups) > 1:
            lines.append(f"{key} differs: " + "; ".join(f"{v} ({', '.join(names)})" for v, names in groups.items()))
    return lines


def apart_from(a: dict, b: dict) -> dict[str, Any]:
    """What of a configuration is another in b, the layout and the size's name left out."""
    found = difference(flatten(a), flatten(b))
    return {key: value for key, value in found.items() if not key.startswith("layout.") and key != "size"}


def listed(values: dict[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in values.items())


def words(value: Any) -> str:
    """A value of run.json on one line of a table."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {words(entry)}" for key, entry in value.items())
    if isinstance(value, list):
        return ", ".join(map(words, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def grid(lines: list[list[str]]) -> str:
    """A Markdown table; the first line is its head."""
    escaped = [[cell.replace("|", "\\|").replace("\n", " ") for cell in line] for line in lines]
    text = [f"| {' | '.join(line)} |" for line in escaped]
    return "\n".join([text[0], "|" + "---|" * len(lines[0]), *text[1:]])


def rows(study: Any, cells: Cells) -> str:
    """results.csv: one line per run and task, and two for its overall results."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["arm", "seed", "task", "metric", "value", "stderr", "items", "chance"])
    for (arm, seed), cell in cells.items():
        if "eval" in cell:
            for name, task in cell["eval"]["tasks"].items():
                writer.writerow([arm, seed, name, task["metric"], task["value"], task["stderr"], task["n"],
                                 task["chance"]])
            for key in ("bits_per_byte", "zero_shot"):
                if overall := cell["eval"][key]:
                    writer.writerow([arm, seed, "", key, overall["value"], overall["stderr"], "",
                                     overall.get("chance")])
    return out.getvalue()


def record(study: Any, cells: Cells, results: dict[str, dict], compared: dict[str, dict]) -> dict[str, Any]:
    """run.json: which runs these were and what came out, for machines."""
    return {
        "study": study.name, "title": study.title, "question": study.question, "expect": study.expect,
        "command": study.command,
        "runs": [{"arm": arm, "seed": seed, "state": cell["state"] or "finished",
                  **{key: cell.get("run", {}).get(key) for key in ("fingerprint", "commit", "versions", "hardware")},
                  **{metric: results[metric][arm].get(seed) for metric in METRICS}}
                 for (arm, seed), cell in cells.items()],
        "comparisons": [{"arm": arm, "metric": metric, "difference": c.difference,
                         "noise": c.noise if c.seeds else None, "p": c.adjusted if c.seeds else None,
                         "verdict": verdict(c, **direction(metric))}
                        for metric in METRICS for arm, c in compared[metric].items()],
    }


if __name__ == "__main__":
    sys.exit(main())
