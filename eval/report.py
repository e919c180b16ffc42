"""python -m eval.report POS=alibi ...: run directories in, report out. A pure function: twice the same bytes.

Nothing is read but the study and its run directories, no clock and no machine; nothing is written but the files of a
record: report.md, report.html, results.csv, table.tex, figure.svg, run.json. Reading: eval/runs.py; comparing:
eval/compare.py; how it looks: eval/table.py, eval/page.py, eval/figure.py.

    STUDY=position,activation      several studies in one report
    RUNS="dir1 dir2"               runs as they are: of others, or of any study; a folder of run directories will do
    NOISE="dir3 dir4"              runs that tell the noise between seeds where a study has one seed
"""

import csv
import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from ablations.config import flatten
from ablations.power import POWER, detectable
from eval import figure
from eval.compare import (
    METRICS,
    Found,
    bold,
    caution,
    classes,
    collect,
    comparisons,
    noise_of,
    own_items,
    ranking,
    refusals,
    strata,
    table_of,
    tasks,
    words_of,
)
from eval.cost import costs
from eval.curves import beyond, domains, forest, loss_curves, matrix, on_the_way, paired_curves, scaling
from eval.match import mismatches
from eval.page import page
from eval.published import beside
from eval.runs import Cells, collect_runs, is_setting, plain, read_all, run_directories
from eval.statistics import Part, Results, bootstrap, interval, level_stderr, quantile, ratio_stderr
from eval.table import Code, Figure, Image, Section, Table, latex, markdown, plain_text, plus_minus

RECORDS = Path("ablations/records")

PAIRED = """\
Arm minus {baseline} at the same seed: the same batches in the same order, and the same initial weights where the
arms have them in common. bits/byte: negative is better. Scores, in points: positive is."""

UNPLANNED = """\
Minus {baseline}, by seed where both have the seed. Runs that were not planned together may differ in more than one
thing: see above. bits/byte: negative is better. Scores, in points: positive is."""

NOISE = """\
Noise is the standard error of the difference, from two sources. Seeds: what is left of the results after the mean
of each arm and of each seed is taken out (of each arm alone where there are two arms and two seeds), pooled over
the arms. Items: the arms are compared document by document and question by question, and others could have been
drawn. A difference counts when it is larger than "counts above": many times the noise where there are few seeds,
because the noise itself is then badly known. p is two-sided, after Holm's correction for the number of arms.
Bootstrap: 95 % intervals of the difference, paired, over other items of the same tasks, and over other tasks like
these; seeds are in neither. Formulas and sources: eval/statistics.py."""

TASKS = """\
Mean over seeds ± standard error over items; in % but for bits_per_byte. Where the context is longer than a model's
longest input, as with learned positions, it is cut from the left. What the tasks ask: eval/tasks.yaml."""

NOTHING = """\
Nothing. Every run is finished; but for the line that makes an arm, all have the same configuration, text,
tokenizer, commit, versions, hardware and layout."""


def main(argv: list[str] | None = None) -> int:
    """Writes ablations/records/<study> and prints its table."""
    try:
        study, noise = asked(list(sys.argv[1:] if argv is None else argv))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    out = RECORDS / study.name
    print(f"{report(study, out, noise)}\n\n{out / 'report.md'}\n{out / 'report.html'}")
    return 0


def asked(words: list[str]) -> tuple[Any, list[Path]]:
    """The study, or a collection of runs, that the words ask for, and the runs that tell the noise.

    Raises:
        ValueError: as ablations.study.from_args, and for directories that hold no run.
    """
    from ablations.study import from_args

    given = dict(word.partition("=")[::2] for word in words)
    noise = [path for name in given.pop("NOISE", "").split() for path in run_directories(name)]
    others = [("", path) for name in given.pop("RUNS", "").split() for path in run_directories(name)]
    studies = [name for name in given.get("STUDY", "").split(",") if name]
    rest = [word for word in words if not word.startswith(("NOISE=", "RUNS="))]
    if not others and len(studies) < 2:
        return from_args(rest), noise
    several = []
    for name in studies or [""] * any(word.partition("=")[0] not in ("OUT", "JOBS") for word in rest):
        one = from_args([f"STUDY={name}" if name and w.startswith("STUDY=") else w for w in rest])
        several += [(one.factor, cell.dir) for cell in one.cells if (cell.dir / "run.json").exists()]
    if not several and not others:
        raise ValueError("no run of these studies has begun")
    return collect_runs([*several, *others], " ".join(["make report", *map(quoted, sorted(words))])), noise


def quoted(word: str) -> str:
    """A word as typed, without the folders of this machine."""
    name, _, value = word.partition("=")
    value = " ".join(Path(v).name or v for v in value.split()) if name in ("RUNS", "NOISE", "OUT") else value
    return f"{name}='{value}'" if " " in value else f"{name}={value}"


def find(study: Any, noise: list[Path] = []) -> Found:  # noqa: B006
    """Reads and compares."""
    cells = read_all(study)
    results = {name: collect(study, cells, metric.key) for name, metric in METRICS.items()}
    results = {name: each for name, each in results.items() if any(each.values()) or name in ("bits/byte", "zero-shot")}
    extra: dict[str, Results] = {}
    if noise:
        group = collect_runs([("", path) for path in noise], "")
        extra = {name: collect(group, read_all(group), METRICS[name].key) for name in results}
    compared = {name: comparisons(study, cells, each, name, extra.get(name)) for name, each in results.items()}
    return Found(study, cells, results, compared, mismatches(study, cells), refusals(cells))


def report(study: Any, out: Path, noise: list[Path] = []) -> str:  # noqa: B006
    """Writes the record of a study (ablations.study.Study, or eval.runs.Collection) to the directory `out`; returns
    what the screen shows.

    Cells that are missing, unfinished or not evaluated are named, and the others reported.
    """
    f = find(study, noise)
    notes = footnotes(f)
    sections = contents(f)
    main_table = overview(f)
    out.mkdir(parents=True, exist_ok=True)
    written = {
        "report.md": markdown(study.title, sections),
        "report.html": page(study.title, sections),
        "results.csv": rows(f.cells),
        "table.tex": latex(main_table, f"{study.title}. {study.question}"),
        "figure.svg": figure.sheet(
            [*loss_curves(f)[:1], forest(f, "bits/byte"), *paired_curves(f), forest(f, "zero-shot")]
        ),
        "run.json": json.dumps(record(f), indent=1) + "\n",
    }
    for name, content in written.items():
        (out / name).write_text(content, encoding="utf-8")
    if f.refused:
        notes.append(
            "Evaluated differently, so not compared: " + "; ".join(f.refused[:3]) + ("; ..." * (len(f.refused) > 3))
        )
    if f.wrong:
        notes.append(f"{len(f.wrong)} thing{'s do' if len(f.wrong) > 1 else ' does'} not match: see the report.")
    return "\n".join([plain_text(overview(f, study.title)), "", *notes])


def contents(f: Found) -> list[Section]:
    """The report, in the order in which it is read."""
    forests = [Figure(forest(f, name), "Bars: 95 % intervals over seeds and items.") for name in f.results]
    head = [f"**Question.** {f.study.question}", f"**Expected, written before the runs.** {f.study.expect}"]
    found = [
        Section("", [*head, overview(f), *footnotes(f), *forests, Image("figure.svg", "Loss curves and differences")]),
        *([Section("Places", places(f))] if not f.controlled else []),
        Section("What differs", differs(f)),
        Section("Held fixed", held_fixed(f), folded=True),
        Section("Differences from the baseline", paired(f)),
        Section("Training", [*caution(f), *map(Figure, loss_curves(f)), *map(Figure, paired_curves(f))]),
        Section("Score against tokens", on_the_way(f)),
        Section("Beyond the training length", beyond(f)),
        Section("Loss by domain", domains(f)),
        Section("Trained on, evaluated on", matrix(f)),
        Section("Loss against compute", scaling(f)),
        Section("Task by task", per_task(f)),
        Section("Beside the BigScience study", beside(f)),
        Section("Cost", costs(f)),
        Section("Activity proofs", [proofs(f.cells)], folded=True),
        Section("What does not match", ["\n".join(f"* {line}" for line in f.wrong) or NOTHING]),
        Section("How to redo it", redo(f)),
    ]
    return [section for section in found if any(b for b in section.blocks if not isinstance(b, Figure) or b.svg)]


# ------------------------------------------------------------------------------------------------ sections


def overview(f: Found, head: str = "arm") -> Table:
    """One line per arm: its numbers, and in words what they say against the baseline, by bits per byte."""
    lines = []
    for arm in f.study.arms:
        line = [arm + (" (baseline)" if arm == f.baseline else "")]
        for name, metric in METRICS.items():
            if name not in f.results:
                continue
            row = f.results[name][arm]
            line.append("-")
            if row:
                alike = f.results[name] if f.controlled else {arm: row}
                error = level_stderr(alike, arm, own_items(f.cells, arm, sorted(row), name))
                line[-1] = plus_minus(float(np.mean(list(row.values()))), error, metric.digits)
        planned = [seed for seed in f.study.seeds if (arm, seed) in f.cells]
        missing = len(planned) - len(f.results["bits/byte"][arm])
        said = [bold(f, arm, "bits/byte")] if arm in f.compared["bits/byte"] else []
        if (
            arm != f.baseline
            and not said
            and f.results["bits/byte"][arm]
            and f.results["bits/byte"][f.baseline]
            and f.refused
        ):
            said = ["evaluated differently: not compared"]
        said += [f"{missing} of {len(planned)} runs missing"] if missing else []
        lines.append([*line, "; ".join(said)])
    return Table([head, *f.results, "verdict"], lines)


def footnotes(f: Found) -> list[str]:
    lines = ["bits/byte: held-out loss, lower is better; the verdict is on it."]
    evaluated = [cell["eval"] for cell in f.cells.values() if "eval" in cell]
    for name, metric in METRICS.items():
        if name == "bits/byte" or name not in f.results:
            continue
        scores = [e[metric.key] for e in evaluated if e.get(metric.key)]
        chance = f" (chance {scores[0]['chance']:.1f})" if scores else ""
        what = "mean accuracy in %"
        if name == "suite" and scores:
            what = f"mean accuracy in % over {scores[0]['tasks']} of BigScience's {scores[0]['of']} zero-shot tasks"
        said = "; ".join(f"{arm} {words_of(f, arm, name)}" for arm in f.compared[name])
        lines.append(f"{name}: {what}{chance}, higher is better" + (f"; the verdict on it: {said}." if said else "."))
    return [
        " ".join(lines),
        "±: standard error of that number alone. Arms share seeds and documents, so differences are surer.",
    ]


def places(f: Found) -> list:
    """Ranks, where runs may be ranked; and who may not be."""
    blocks: list = []
    if f.refused:
        blocks += [
            "**Not ranked together: these runs were evaluated differently.**",
            "\n".join(f"* {line}" for line in f.refused),
        ]
    tables = []
    for name in f.results:
        for ranks in ranking(f.study, f.cells, f.results[name], name):
            if len(ranks) > 1:
                means = {arm: float(np.mean(list(f.results[name][arm].values()))) for arm in ranks}
                order = sorted(ranks, key=lambda arm: means[arm], reverse=METRICS[name].higher_is_better)  # noqa: B023
                lines = [[ranks[arm], arm, f"{means[arm]:.{METRICS[name].digits}f}"] for arm in order]
                tables.append(Table(["place", "runs", name], lines))
    if tables:
        blocks.append(
            "The place, or the places, that each may have: only a difference that is more than noise parts two runs. "
            "Every pair compared, corrected for the number of pairs."
        )
    return blocks + tables + corpora_by_tokens(f)


def corpora_by_tokens(f: Found) -> list[Table]:
    """Where both differ: the mean score of each corpus at each budget, of runs evaluated as the first of them."""
    name = list(f.results)[-1]
    grid: dict[str, dict[int, list[str]]] = {}
    alike = {arm for arm, _ in classes(f.cells)[0]["runs"]} if f.results[name] and classes(f.cells) else set()
    for arm, config in configurations(f).items():
        if (row := f.results[name][arm]) and arm in alike:
            corpus = f"{config['data.corpus']}, {sum(1 for _ in row)} seeds"
            shown = f"{np.mean(list(row.values())):.{METRICS[name].digits}f}"
            grid.setdefault(corpus, {}).setdefault(config["train.tokens"], []).append(shown)
    budgets = sorted({tokens for row in grid.values() for tokens in row})
    if len(grid) < 2 or len(budgets) < 2:
        return []
    lines = [[corpus, *(" / ".join(row.get(tokens, ["-"])) for tokens in budgets)] for corpus, row in grid.items()]
    return [Table(["trained on", *map(figure.human, budgets)], lines, f"Corpora and tokens: {name}")]


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
    return {key: plain(value) for key, value in (every[0] if every else {}).items()
            if all(key in config and config[key] == value for config in every)}  # fmt: skip


def paired(f: Found) -> list:
    """Per seed; then the noise, what it takes for a difference to count, and what a study like this can see."""
    each, tests, boots = [], [], []
    for name in f.results:
        digits = METRICS[name].digits + 1
        for arm, c in f.compared[name].items():
            ours, theirs = f.results[name][arm], f.results[name][f.baseline]
            shared = [seed for seed in f.study.seeds if seed in ours and seed in theirs]
            signed = [f"{ours[seed] - theirs[seed]:+.{digits}f}" if seed in shared else "-" for seed in f.study.seeds]
            label, mean = f"{arm}, {name}", f"{c.difference:+.{digits}f}"
            each.append([label, *signed, mean])
            items, said = f"{c.items.variance**0.5:.{digits}f}", bold(f, arm, name)
            if c.seeds is None:
                tests.append([label, mean, "unknown", items, "unknown", "-", "-", said])
            else:
                seeds = f"{c.seeds.variance**0.5:.{digits}f} ({c.seeds.dof:.0f} d.o.f.)"
                noise, least = f"{c.noise:.{digits}f}", f"{c.threshold:.{digits}f}"
                tests.append([label, mean, seeds, items, noise, least, f"{c.adjusted:.2g}", said])
            seeds_ = (shared, shared) if shared else (sorted(ours), sorted(theirs))
            parts = strata(f.cells, arm, f.baseline, seeds_, name)
            if parts:
                low, high = interval(bootstrap(parts))
                line = [label, mean, f"{low:+.{digits}f} to {high:+.{digits}f}", "-"]
                if len(parts) > 2:
                    low, high = interval(bootstrap(parts, tasks=True), len(parts))
                    line[-1] = f"{low:+.{digits}f} to {high:+.{digits}f}"
                boots.append([*line, str(len(parts))])
    if not each:
        return ["No arm can be compared with the baseline yet."]
    blocks = [
        (PAIRED if f.controlled else UNPLANNED).format(baseline=f.baseline),
        Table(["", *(f"seed {seed}" for seed in f.study.seeds), "mean"], each),
        Table(["", "difference", "from the seeds", "from the items", "noise", "counts above", "p", "verdict"], tests),
        Table(["bootstrap, 95 %", "difference", "over items", "over tasks", "tasks"], boots),
        NOISE,
    ]
    return blocks + floor_words(f)


def floor_words(f: Found) -> list[str]:
    """The noise floor, and what more seeds would see."""
    lines = []
    for name, noise in noise_of(f).items():
        metric = METRICS[name]
        floor = Part(2 * noise["seed_sd"] ** 2, noise["dof"])
        widest = quantile(0.05, floor, Part(0.0, np.inf))
        seen = [f"{detectable(noise['seed_sd'], noise['items'], len(f.study.arms), n):.{metric.digits + 1}f} with {n}"
                for n in (2, 3, 5, 10)]  # fmt: skip
        lines.append(
            f"**Noise floor, {name}.** Two runs that differ in the seed alone lie up to {widest:.{metric.digits + 1}f} "
            f"{metric.unit} apart, 19 times in 20. A study of {len(f.study.arms)} arms sees, with a chance of "
            f"{POWER:.0%}, differences from {', '.join(seen)} seeds."
        )
    return lines


def per_task(f: Found) -> list:
    """Each task in a table, and its accuracy against chance as a map."""
    lines: list[list[str]] = []
    names: list[str] = []
    cells: list[list[tuple[str, float, str] | None]] = []
    arms = f.study.arms
    for task in tasks(f.cells):
        having = {key: cell["eval"]["tasks"][task] for key, cell in f.cells.items()
                  if task in cell.get("eval", {}).get("tasks", {})}  # fmt: skip
        entry = next(iter(having.values()))
        loss = entry["metric"] == "bits_per_byte"
        counted = loss or entry.get("mean") or entry.get("suite")
        scale, digits = (1.0, 3) if loss else (100.0, 1)
        line = [
            task + ("" if counted else " (not in the mean)"),
            entry["metric"],
            str(entry["n"]),
            " to ".join(map(str, entry.get("context_tokens", "-"))),
            "-" if entry.get("chance") is None else f"{100 * entry['chance']:.1f}",
        ]
        row: list[tuple[str, float, str] | None] = []
        for arm in arms:
            seeds = [seed for a, seed in having if a == arm]
            items = table_of(f.cells, arm, seeds, task)
            values = np.array([(value.mean(), weight) for value, weight in items.values()]).reshape(-1, 2)
            mean = scale * float(np.mean([having[arm, seed]["value"] for seed in seeds])) if seeds else 0.0
            error = scale * ratio_stderr(values[:, 0], values[:, 1])
            line.append(plus_minus(mean, error, digits) if seeds else "-")
            chance = 100 * (entry.get("chance") or 0)
            above = (mean - chance) / (100 - chance) if abs(mean - chance) > 2 * error else 0.0
            tip = f"{task}, {arm}: {plus_minus(mean, error, digits)}, chance {chance:.1f}"
            row.append((f"{mean:.1f}", 2 * above, tip) if seeds else None)
        lines.append(line)
        if not loss and entry.get("chance") is not None:
            names, cells = [*names, task.removeprefix("pydocs/")], [*cells, row]
    if not lines:
        return []
    short = [arm.split("=", 1)[-1] if f.controlled else arm for arm in arms]
    note = "Blue above chance, orange below; grey: within two standard errors of it."
    art = figure.heat("Accuracy in %, coloured by its distance from chance", names, short, cells) if names else ""
    return [Figure(art, note), TASKS, Table(["task", "metric", "items", "context, tokens", "chance", *arms], lines)]


def proofs(cells: Cells) -> "Table | str":
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
    shas = ", ".join(sorted({sha(cell) for cell in f.cells.values() if "run" in cell})) or "unknown"
    versions = {plain(cell["run"]["versions"]): None for cell in f.cells.values() if "run" in cell}
    return [Code(f.study.command), f"Commit: {shas}. Versions: {' | '.join(versions) or 'unknown'}."]


def sha(cell: dict[str, Any]) -> str:
    return cell["run"]["commit"]["sha"]


# ------------------------------------------------------------------------------------------------ for machines


def rows(cells: Cells) -> str:
    """results.csv: one line per run and task, and one for each of its overall results."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["arm", "seed", "task", "metric", "value", "stderr", "items", "chance"])
    for (arm, seed), cell in cells.items():
        for task, entry in cell.get("eval", {}).get("tasks", {}).items():
            numbers = [entry.get(key) for key in ("metric", "value", "stderr", "n", "chance")]
            writer.writerow([arm, seed, task, *numbers])
        for metric in METRICS.values():
            if overall := cell.get("eval", {}).get(metric.key):
                numbers = [metric.key, overall["value"], overall["stderr"], "", overall.get("chance")]
                writer.writerow([arm, seed, "", *numbers])
    return out.getvalue()


def record(f: Found) -> dict[str, Any]:
    """run.json: which runs these were and what came out."""
    from_run = ("fingerprint", "commit", "versions", "hardware")
    began = [cell["run"]["config"] for cell in f.cells.values() if "run" in cell]
    return {
        **{key: getattr(f.study, key) for key in ("name", "title", "question", "expect", "command")},
        "size": began[0].get("size") if began else None,
        "tokens": began[0]["train"]["tokens"] if began else None,
        "noise": noise_of(f),
        "runs": [
            {"arm": arm, "seed": seed, "state": cell["state"] or "finished"}
            | {key: cell["run"][key] for key in from_run if "run" in cell}
            | {METRICS[name].key: f.results[name][arm].get(seed) for name in f.results}
            for (arm, seed), cell in f.cells.items()
        ],
        "comparisons": [
            {"arm": arm, "metric": METRICS[name].key, "difference": c.difference}
            | {"verdict": words_of(f, arm, name)}
            | ({"noise": c.noise, "counts_above": c.threshold, "p": c.adjusted} if c.seeds else {})
            for name in f.results for arm, c in f.compared[name].items()
        ],
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
