"""python -m eval.report POS=alibi ...: run directories in, report out. A pure function: twice the same bytes.

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
from typing import Any, NamedTuple

import numpy as np

from ablations.config import difference, flatten
from eval.figure import draw
from eval.statistics import (
    LN2,
    Comparison,
    Part,
    Results,
    compare,
    family,
    item_part,
    level_stderr,
    ratio_stderr,
    seed_part,
    verdict,
)

Cells = dict[tuple[str, int], dict[str, Any]]  # {(arm, seed): what `read` gives}
Compared = dict[str, dict[str, Comparison]]  # {metric: {arm: against the baseline}}


class Metric(NamedTuple):
    key: str  # in eval.json
    higher_is_better: bool
    digits: int
    scale: float  # from the outcome of an item to the unit of the metric


METRICS = {
    "bits/byte": Metric("bits_per_byte", False, 3, 1.0),
    "zero-shot": Metric("zero_shot", True, 1, 100.0),
}

PAIRED = """\
Arm minus {baseline} at the same seed: the same batches in the same order, and the same initial weights
where the arms have them in common. bits/byte: negative is better. zero-shot, in points: positive is."""

NOISE = """\
Noise is the standard error of the difference, from two sources. Seeds: what is left of the results after
the mean of each arm and of each seed is taken out (of each arm alone where there are two arms and two
seeds), pooled over the arms. Items: the arms are compared document by document and question by question,
and others could have been drawn. A difference counts when it is larger than "counts above": many times the
noise where there are few seeds, because the noise itself is then badly known. p is two-sided, after Holm's
correction for the number of arms. Formulas and sources: eval/statistics.py."""

TASKS = """\
Mean over seeds ± standard error over items; in % but for bits_per_byte. Where the context is longer than a
model's longest input, as with learned positions, it is cut from the left. What the tasks ask:
eval/tasks.yaml."""

TEXT_DIFFERS = """\
The arms read different text or tokens: their training losses cannot be compared, the held-out bits per byte
can."""

NOTHING = """\
Nothing. Every run is finished; but for the line that makes an arm, all have the same configuration, text,
tokenizer, commit, versions, hardware and layout."""


def main(argv: list[str] | None = None) -> int:
    """Writes ablations/records/<study> and prints its table."""
    from ablations.study import from_args

    try:
        study = from_args(sys.argv[1:] if argv is None else argv)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    out = Path("ablations/records") / study.name
    print(f"{report(study, out)}\n\n{out / 'report.md'}")
    return 0


def report(study: Any, out: Path) -> str:
    """Writes the record of a study (ablations.study.Study) to the directory `out`; returns what the screen
    shows.

    Cells that are missing, unfinished or not evaluated are named, and the others reported.
    """
    cells = {(arm, seed): read(study.cell(arm, seed).dir) for arm in study.arms for seed in study.seeds}
    results = {name: collect(study, cells, metric.key) for name, metric in METRICS.items()}
    compared = {name: comparisons(study, cells, results[name], name) for name in METRICS}
    text = table(study, cells, results, compared)
    notes = footnotes(cells, compared)
    wrong = mismatches(study, cells)

    out.mkdir(parents=True, exist_ok=True)
    curves = {arm: {seed: curve(cells[arm, seed]) for seed in study.seeds if cells[arm, seed].get("metrics")}
              for arm in study.arms}  # fmt: skip
    noise = {arm: c.noise for arm, c in compared["bits/byte"].items() if c.seeds}
    draw(study.title, curves, results["bits/byte"], noise, [out / "figure.png", out / "figure.svg"])
    written = {
        "report.md": markdown(study, cells, results, compared, [f"```\n{text}\n```", *notes], wrong),
        "results.csv": rows(cells),
        "run.json": json.dumps(record(study, cells, results, compared), indent=1) + "\n",
    }
    for name, content in written.items():
        (out / name).write_text(content, encoding="utf-8")
    if wrong:
        notes.append(f"{len(wrong)} thing{'s do' if len(wrong) > 1 else ' does'} not match: see the report.")
    return "\n".join([text, "", *notes])


# ------------------------------------------------------------------------------------------------ reading


def read(directory: Path) -> dict[str, Any]:
    """What a run directory holds, as far as the run has come: {"state", "run", "metrics", "eval",
    "samples"}."""
    if not (directory / "run.json").exists():
        return {"state": "not started"}
    cell: dict[str, Any] = {"state": "not finished", "run": json.loads((directory / "run.json").read_text())}
    if (directory / "metrics.jsonl").exists():
        lines = (directory / "metrics.jsonl").read_text().splitlines()
        whole = [json.loads(line) for line in lines if line.endswith("}")]  # a kill may leave half a line
        cell["metrics"] = list({row["step"]: row for row in whole}.values())
    if not (directory / "done").exists():
        return cell
    if not (directory / "eval.json").exists():
        return cell | {"state": "not evaluated"}
    samples: dict[str, dict[str, tuple[float, float]]] = {}
    with gzip.open(directory / "samples.jsonl.gz", "rt") as stream:
        for row in map(json.loads, stream):
            value = (row["nats"] / LN2, row["bytes"]) if "nats" in row else (row["value"], 1)
            samples.setdefault(row["task"], {})[row["id"]] = value
    return cell | {"state": "", "eval": json.loads((directory / "eval.json").read_text()), "samples": samples}


def curve(cell: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and training loss, [lines of the log]."""
    rows = cell["metrics"]
    return np.array([row["tokens"] for row in rows]), np.array([row["loss"] for row in rows])


def collect(study: Any, cells: Cells, key: str) -> Results:
    """A number of eval.json, of the cells that have it."""
    return {arm: {seed: cells[arm, seed]["eval"][key]["value"] for seed in study.seeds
                  if cells[arm, seed].get("eval", {}).get(key)} for arm in study.arms}  # fmt: skip


def tasks(cells: Cells, name: str | None = None) -> list[str]:
    """The tasks that a metric is the mean of, or all of them, in the order of evaluation."""
    found: dict[str, None] = {}
    for cell in cells.values():
        for task, entry in cell.get("eval", {}).get("tasks", {}).items():
            loss = entry["metric"] == "bits_per_byte"
            if name is None or (entry["mean"] if name == "zero-shot" else loss):
                found[task] = None
    return list(found)


def outcomes(cells: Cells, arm: str, seeds: Iterable[int], task: str) -> dict[str, tuple[float, float]]:
    """{item: (outcome averaged over seeds, weight)}, of the items that all these cells have."""
    each = [cells[arm, seed]["samples"].get(task, {}) for seed in seeds]
    common = sorted(set.intersection(*map(set, each))) if each else []
    return {item: (float(np.mean([row[item][0] for row in each])), each[0][item][1]) for item in common}


# ------------------------------------------------------------------------------------------------ comparing


def comparisons(study: Any, cells: Cells, results: Results, name: str) -> dict[str, Comparison]:
    """Every arm that shares a seed with the baseline against it, paired by seed and by item."""
    baseline, found = study.arms[0], {}
    for arm in study.arms[1:]:
        seeds = sorted(results[arm].keys() & results[baseline].keys())
        if not seeds:
            continue
        strata = []
        for task in tasks(cells, name):
            ours, theirs = outcomes(cells, arm, seeds, task), outcomes(cells, baseline, seeds, task)
            common = sorted(ours.keys() & theirs.keys())
            apart = METRICS[name].scale * np.array([ours[item][0] - theirs[item][0] for item in common])
            strata.append((apart, np.array([ours[item][1] for item in common], float)))
        mean = float(np.mean([results[arm][seed] - results[baseline][seed] for seed in seeds]))
        found[arm] = compare(mean, seed_part(results, arm, baseline), item_part(strata))
    return family(found)


def own_items(cells: Cells, arm: str, seeds: Iterable[int], name: str) -> Part:
    """The variance that the items give to an arm's own number."""
    strata = []
    for task in tasks(cells, name):
        values = np.array(list(outcomes(cells, arm, seeds, task).values()), float).reshape(-1, 2)
        strata.append((METRICS[name].scale * values[:, 0], values[:, 1]))
    return item_part(strata)


def words_of(comparison: Comparison, name: str) -> str:
    return verdict(comparison, METRICS[name].higher_is_better, METRICS[name].digits)


# ------------------------------------------------------------------------------------------------ writing


def table(study: Any, cells: Cells, results: dict[str, Results], compared: Compared) -> str:
    """One line per arm: its numbers, and in words what they say against the baseline, by bits per byte."""
    lines = [[study.title, *METRICS, "verdict"]]
    for arm in study.arms:
        line = [arm + (" (baseline)" if arm == study.arms[0] else "")]
        for name, metric in METRICS.items():
            row = results[name][arm]
            line.append("-")
            if row:
                error = level_stderr(results[name], arm, own_items(cells, arm, row, name))
                line[-1] = plus_minus(float(np.mean(list(row.values()))), error, metric.digits)
        missing = len(study.seeds) - len(results["bits/byte"][arm])
        said = [words_of(compared["bits/byte"][arm], "bits/byte")] if arm in compared["bits/byte"] else []
        said += [f"{missing} of {len(study.seeds)} runs missing"] if missing else []
        lines.append([*line, "; ".join(said)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines]
    return "\n".join("    ".join(line).rstrip() for line in padded)


def plus_minus(value: float, error: float, digits: int) -> str:
    return f"{value:.{digits}f} ± {error:.{digits}f}"


def footnotes(cells: Cells, compared: Compared) -> list[str]:
    scores = [cell["eval"]["zero_shot"] for cell in cells.values() if cell.get("eval", {}).get("zero_shot")]
    chance = f" (chance {scores[0]['chance']:.1f})" if scores else ""
    zero_shot = "; ".join(f"{arm} {words_of(c, 'zero-shot')}" for arm, c in compared["zero-shot"].items())
    return [
        "bits/byte: held-out loss, lower is better; the verdict is on it. "
        f"zero-shot: mean accuracy in %{chance}, higher is better"
        + (f"; the verdict on it: {zero_shot}." if zero_shot else "."),
        "±: standard error of that number alone. Arms share seeds and documents, so differences are surer.",
    ]


def markdown(study: Any, cells: Cells, results: dict[str, Results], compared: Compared, head: list[str],
             wrong: list[str]) -> str:  # fmt: skip
    parts = [
        f"# {study.title}",
        f"**Question.** {study.question}",
        f"**Expected, written before the runs.** {study.expect}",
        *head,
        "![Loss curves, paired differences, held-out results](figure.png)",
        *caution(study),
        "## Differences from the baseline",
        *paired(study, results, compared),
        "## Zero-shot, task by task",
        *per_task(study, cells),
        "## Cost",
        cost(cells),
        "## Activity proofs",
        proofs(cells),
        "## What does not match",
        "\n".join(f"* {line}" for line in wrong) or NOTHING,
        "## How to reproduce",
        f"```\n{study.command}\n```",
        f"Commit: {', '.join(sorted({sha(cell) for cell in cells.values() if 'run' in cell})) or 'unknown'}.",
    ]
    return "\n\n".join(parts) + "\n"


def sha(cell: dict[str, Any]) -> str:
    return cell["run"]["commit"]["sha"]


def caution(study: Any) -> list[str]:
    changed = {key for arm in study.arms for key in study.cell(arm, study.seeds[0]).delta}
    return [TEXT_DIFFERS] if any(key.startswith("data.") or key == "model.vocab" for key in changed) else []


def paired(study: Any, results: dict[str, Results], compared: Compared) -> list[str]:
    """Per seed; then the noise, and what it takes for a difference to count."""
    baseline = study.arms[0]
    each = [["", *(f"seed {seed}" for seed in study.seeds), "mean"]]
    tests = [["", "difference", "from the seeds", "from the items", "noise", "counts above", "p", "verdict"]]
    for name, metric in METRICS.items():
        digits = metric.digits + 1
        for arm, c in compared[name].items():
            ours, theirs = results[name][arm], results[name][baseline]
            signed = [f"{ours[seed] - theirs[seed]:+.{digits}f}" if seed in ours and seed in theirs else "-"
                      for seed in study.seeds]  # fmt: skip
            label, mean = f"{arm}, {name}", f"{c.difference:+.{digits}f}"
            each.append([label, *signed, mean])
            items, verdict_ = f"{c.items.variance**0.5:.{digits}f}", words_of(c, name)
            if c.seeds is None:
                tests.append([label, mean, "unknown", items, "unknown", "-", "-", verdict_])
            else:
                seeds = f"{c.seeds.variance**0.5:.{digits}f} ({c.seeds.dof:.0f} d.o.f.)"
                noise, least = f"{c.noise:.{digits}f}", f"{c.threshold:.{digits}f}"
                tests.append([label, mean, seeds, items, noise, least, f"{c.adjusted:.2g}", verdict_])
    if len(each) == 1:
        return ["No arm can be compared with the baseline yet."]
    return [
        PAIRED.format(baseline=baseline),
        grid(each),
        grid(tests),
        NOISE,
    ]


def per_task(study: Any, cells: Cells) -> list[str]:
    lines = [["task", "items", "context, tokens", "chance", *study.arms]]
    for task in tasks(cells):
        having = {key: cell["eval"]["tasks"][task] for key, cell in cells.items()
                  if task in cell.get("eval", {}).get("tasks", {})}  # fmt: skip
        entry = next(iter(having.values()))
        loss = entry["metric"] == "bits_per_byte"
        scale, digits = (1.0, 3) if loss else (100.0, 1)
        line = [
            task + ("" if loss or entry["mean"] else " (not in the mean)"),
            str(entry["n"]),
            " to ".join(map(str, entry.get("context_tokens", "-"))),
            "-" if loss else f"{100 * entry['chance']:.1f}",
        ]
        for arm in study.arms:
            seeds = [seed for a, seed in having if a == arm]
            values = np.array(list(outcomes(cells, arm, seeds, task).values()), float).reshape(-1, 2)
            mean = np.mean([having[arm, seed]["value"] for seed in seeds]) if seeds else 0.0
            error = scale * ratio_stderr(values[:, 0], values[:, 1])
            line.append(plus_minus(scale * float(mean), error, digits) if seeds else "-")
        lines.append(line)
    return [TASKS, grid(lines)]


def cost(cells: Cells) -> str:
    lines = [["run", "parameters", "tokens", "training", "tokens/s", "evaluation", "hardware"]]
    for (arm, seed), cell in cells.items():
        if not cell.get("metrics"):
            continue
        last = cell["metrics"][-1]
        speed = float(np.median([row["tokens_per_second"] for row in cell["metrics"]]))
        lines.append([
            f"{arm}, seed {seed}", f"{cell['run']['parameters']['count']:,}", f"{last['tokens']:,}",
            f"{last['seconds']:,.0f} s", f"{speed:,.0f}",
            f"{cell['eval']['seconds']:.0f} s" if "eval" in cell else "-", plain(cell["run"]["hardware"]),
        ])  # fmt: skip
    return grid(lines) if len(lines) > 1 else "No run has begun."


def proofs(cells: Cells) -> str:
    """One line for each factor and value, with what was measured in the first run that has it."""
    found: dict[tuple[str, str, bool], list[str]] = {}
    seen: dict[tuple[str, str, bool], str] = {}
    for (arm, seed), cell in cells.items():
        for proof in cell.get("run", {}).get("proofs", []):
            key = (proof["factor"], plain(proof["value"]), proof["passed"])
            found.setdefault(key, []).append(f"{arm}, seed {seed}")
            seen.setdefault(key, plain(proof["detail"]))
    lines = [["factor", "value", "result", "measured, in the first of the runs", "runs"]]
    for key, runs in found.items():
        factor, value, passed = key
        which = "all" if len(runs) == len(cells) else "; ".join(runs)
        lines.append([factor, value, "active" if passed else "**failed**", seen[key], which])
    return grid(lines) if found else "No run has any."


# ------------------------------------------------------------------------------------------------ checking


def mismatches(study: Any, cells: Cells) -> list[str]:
    """Everything that is not as a controlled comparison wants it, a line each."""
    named = {f"{arm}, seed {seed}": (study.cell(arm, seed), cell) for (arm, seed), cell in cells.items()}
    found = [f"{name}: {cell['state']}, so not among the results"
             for name, (_, cell) in named.items() if cell["state"]]  # fmt: skip
    runs = {name: cell["run"] for name, (_, cell) in named.items() if "run" in cell}
    evaluated = {name: cell for name, (_, cell) in named.items() if "eval" in cell}

    found += apart({name: {key: run[key] for key in ("commit", "versions", "hardware")}
                    | {"layout": run["config"]["layout"]} for name, run in runs.items()})  # fmt: skip
    for name, run in runs.items():
        if run["commit"].get("dirty"):
            found.append(f"{name}: ran from a working tree with changes that are in no commit")
        for later in run.get("continued", []):
            found += [f"{name}, when it was continued: {line}" for line in apart({
                "begun": {key: run[key] for key in ("commit", "versions", "hardware")},
                "continued": {key: later[key] for key in ("commit", "versions", "hardware")},
            })]  # fmt: skip
        found += [f"{name}, text: {plain(line)}" for line in run["data"].get("mismatch", [])]

    text = {name: {f"text of {run['config']['data']['corpus']}": run["data"]["sha256"]}
            for name, run in runs.items()}  # fmt: skip
    tokenizers = {name: run["data"]["tokenizer"] for name, run in runs.items()}
    found += apart(text, only_shared=True)
    found += apart({name: {f"tokenizer of {each['corpus']} with {each['vocab']} pieces": each["sha256"]}
                    for name, each in tokenizers.items()}, only_shared=True)  # fmt: skip

    found += apart({name: {"evaluation": {key: cell["eval"][key] for key in ("version", "lm_eval")}}
                    for name, cell in evaluated.items()})  # fmt: skip
    for task in tasks(cells):
        if len({frozenset(cell["samples"].get(task, {})) for cell in evaluated.values()}) > 1:
            found.append(f"{task}: not the same items in every run; only those in common are compared")
    for task in sorted({task for cell in evaluated.values() for task in cell["eval"]["omitted"]}):
        found.append(f"{task}: left out, the held-out text does not give enough items")

    for (arm, seed), cell in cells.items():
        if "run" not in cell:
            continue
        name, run, planned = f"{arm}, seed {seed}", cell["run"], study.cell(arm, seed)
        base = cells[study.arms[0], seed].get("run", run)
        tests = {
            "ran with another configuration than the study has now": (planned.config, run["config"], {}),
            "differs from the baseline in more than its line": (base["config"], run["config"], planned.delta),
            "differs in effect from the baseline in more than its line":
                (base["effective"], run["effective"], planned.delta),
        }  # fmt: skip
        for what, (one, other, allowed) in tests.items():
            changed = difference(flatten(one), flatten(other))
            more = [f"{key}={plain(value)}" for key, value in changed.items()
                    if key not in allowed and not key.startswith("layout.") and key != "size"]  # fmt: skip
            found += [f"{name}: {what}: {', '.join(more)}"] if more else []
        proved = {proof["factor"]: proof["passed"] for proof in run["proofs"]}
        found += [f"{name}: the activity proof of {factor} failed" for factor, ok in proved.items() if not ok]
        found += [f"{name}: there is no activity proof of {key}" for key in planned.delta
                  if key.startswith("model.") and key not in proved]  # fmt: skip
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


def plain(value: Any) -> str:
    """A value of run.json as a few words."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {plain(entry)}" for key, entry in value.items())
    return ", ".join(map(plain, value)) if isinstance(value, list) else str(value)


def grid(lines: list[list[str]]) -> str:
    """A Markdown table; the first line is its head."""
    safe = [[cell.replace("|", "\\|").replace("\n", " ") for cell in line] for line in lines]
    text = [f"| {' | '.join(line)} |" for line in safe]
    return "\n".join([text[0], "|" + "---|" * len(lines[0]), *text[1:]])


# ------------------------------------------------------------------------------------------------ for
# machines


def rows(cells: Cells) -> str:
    """results.csv: one line per run and task, and one for each of its overall results."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["arm", "seed", "task", "metric", "value", "stderr", "items", "chance"])
    for (arm, seed), cell in cells.items():
        for task, entry in cell.get("eval", {}).get("tasks", {}).items():
            numbers = [entry[key] for key in ("metric", "value", "stderr", "n", "chance")]
            writer.writerow([arm, seed, task, *numbers])
        for metric in METRICS.values():
            if overall := cell.get("eval", {}).get(metric.key):
                numbers = [metric.key, overall["value"], overall["stderr"], "", overall.get("chance")]
                writer.writerow([arm, seed, "", *numbers])
    return out.getvalue()


def record(study: Any, cells: Cells, results: dict[str, Results], compared: Compared) -> dict[str, Any]:
    """run.json: which runs these were and what came out."""
    from_run = ("fingerprint", "commit", "versions", "hardware")
    return {
        **{key: getattr(study, key) for key in ("name", "title", "question", "expect", "command")},
        "runs": [
            {"arm": arm, "seed": seed, "state": cell["state"] or "finished"}
            | {key: cell["run"][key] for key in from_run if "run" in cell}
            | {metric.key: results[name][arm].get(seed) for name, metric in METRICS.items()}
            for (arm, seed), cell in cells.items()
        ],
        "comparisons": [
            {"arm": arm, "metric": METRICS[name].key, "difference": c.difference}
            | {"verdict": words_of(c, name)}
            | ({"noise": c.noise, "counts_above": c.threshold, "p": c.adjusted} if c.seeds else {})
            for name in METRICS for arm, c in compared[name].items()
        ],
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
