"""python -m eval.report POS=alibi ...: run directories in, report out. A pure function: twice the same bytes.

Nothing is read but the study, its run directories and the record there is, no clock and no machine; nothing is
written but the files of a record: report.md, report.html, results.csv, table.tex, figure.svg, run.json. They go to
ablations/records/NAME, or to OUT/records/NAME where that would lose finished runs which the record has. Reading:
runs.py; comparing: compare.py; what is said: results.py, settings.py, curves.py, cost.py, published.py, mismatches.py;
how it looks: table.py, page.py, figure.py.

    STUDY=position,activation      several studies in one report
    RUNS="dir1 dir2"               runs as they are: of others, or of any study; a folder of run directories will do
    NOISE="dir3 dir4"              runs that tell the noise between seeds where a study has one seed
"""

import csv
import io
import json
import os
import shlex
import sys
from pathlib import Path
from typing import Any

from eval.report import figure
from eval.report.compare import METRICS, Found, caution, collect, comparisons, noise_of, refusals, same_runs, words_of
from eval.report.cost import costs
from eval.report.curves import beyond, domains, forest, loss_curves, matrix, on_the_way, paired_curves, scaling
from eval.report.mismatches import mismatches
from eval.report.page import page
from eval.report.published import beside
from eval.report.results import footnotes, nothing_done, overview, paired, per_task, places
from eval.report.runs import Cells, collect_runs, manifest, named, read_all, run_directories
from eval.report.settings import differs, held_fixed, proofs, redo
from eval.report.short_names import shortened
from eval.report.table import Figure, Image, Section, latex, markdown, plain_text
from eval.statistics import Results

RECORDS = Path("ablations/records")

NOTHING = """\
Nothing. Every run is finished; but for the line that makes an arm, all have the same configuration, text,
tokenizer, commit, versions, hardware and layout."""


def main(argv: list[str] | None = None) -> int:
    """Writes the record of a study and prints its table."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        study, noise = asked(words)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    f, out = find(study, noise), RECORDS / study.name
    lost = lacking(f, out)
    if lost:
        kept, given = out, dict(word.partition("=")[::2] for word in words).get("OUT", "").strip()
        out = Path(given or "runs") / "records" / study.name
    print(f"{write(f, out)}\n\n{out / 'report.md'}\n{out / 'report.html'}")
    if lost:
        print(f"{kept} stays as it is: it has runs that this report lacks: {lost}. Remove it to have this one there.")
    return 0


def lacking(f: Found, out: Path) -> str:
    """The finished runs of the record in `out` that a report would lose, by name; the same run is one of the same
    configuration, wherever it was run. Empty: there are none, or there is no record."""
    path = out / "run.json"
    if not path.exists():
        return ""
    ours = {run.get("fingerprint") for run in record(f)["runs"] if run["state"] == "finished"}
    runs = json.loads(path.read_text(encoding="utf-8"))["runs"]
    return named(
        [(run["arm"], run["seed"]) for run in runs if run["state"] == "finished" and run["fingerprint"] not in ours]
    )


def asked(words: list[str]) -> tuple[Any, list[Path]]:
    """The study, or a collection of runs, that the words ask for, and the runs that tell the noise.

    Raises:
        ValueError: as ablations.study.from_args, and for directories that hold no run.
    """
    from ablations.study import folders, from_args

    names = [word.partition("=")[0] for word in words]
    if twice := [name for name in ("RUNS", "NOISE") if names.count(name) > 1]:
        raise ValueError(f"{twice[0]} is given twice: name all directories in one, with spaces between them")
    given = dict(word.partition("=")[::2] for word in words)
    noise = [path for name in folders(given.pop("NOISE", "")) for path in run_directories(name)]
    others = [("", path) for name in folders(given.pop("RUNS", "")) for path in run_directories(name)]
    studies = [name for name in given.get("STUDY", "").split(",") if name]
    rest = [word for word in words if not word.startswith(("NOISE=", "RUNS="))]
    if not others and len(studies) < 2:
        study = from_args(rest)
        if not any(cell.dir.exists() for cell in study.cells):
            raise ValueError(f"no run of this study has begun under {study.out / study.stage}")  # the record stays
        for cell in study.cells:
            if (cell.dir / "run.json").exists():
                manifest(cell.dir)  # what cannot be read is said before anything is written
        return study, noise
    several = []
    for name in studies or [""] * any(word.partition("=")[0] not in ("OUT", "JOBS") for word in rest):
        one = from_args([f"STUDY={name}" if name and w.startswith("STUDY=") else w for w in rest])
        several += [(one.factor, cell.dir) for cell in one.cells if (cell.dir / "run.json").exists()]
    if not several and not others:
        raise ValueError("no run of these studies has begun")
    return collect_runs([*several, *others], " ".join(["make report", *map(quoted, sorted(words))])), noise


def quoted(word: str) -> str:
    """A word as typed, without the folders of this machine."""
    from ablations.study import folders

    name, _, value = word.partition("=")
    if name in ("RUNS", "NOISE"):
        value = " ".join(shlex.quote(Path(folder).name or folder) for folder in folders(value))
    elif name == "OUT":
        value = Path(value).name or value
    return f"{name}={shlex.quote(value)}" if " " in value else f"{name}={value}"


def find(study: Any, noise: list[Path] = []) -> Found:  # noqa: B006
    """Reads and compares."""
    study, cells = shortened(study, read_all(study))
    results = {name: collect(study, cells, metric.key) for name, metric in METRICS.items()}
    results = {name: each for name, each in results.items() if any(each.values()) or name in ("bits/byte", "zero-shot")}
    extra: dict[str, Results] = {}
    told = ""
    if noise:
        group = collect_runs([("", path) for path in noise], "")
        sizes = {
            f"{place.config.get('size')}, {place.config['train']['tokens']:,} tokens": 0
            for place in group.places.values()
        }
        told = f"{named(list(group.places))}; {' and '.join(sizes)}"
        extra = {name: collect(group, read_all(group), METRICS[name].key) for name in results}
    f = Found(study, cells, results, {}, mismatches(study, cells), refusals(cells), told, same_runs(cells))
    return f._replace(
        compared={name: comparisons(study, cells, f.told(name), name, extra.get(name)) for name in results}
    )


def report(study: Any, out: Path, noise: list[Path] = []) -> str:  # noqa: B006
    """Writes the record of a study (ablations.study.Study, or runs.Collection) to the directory `out`; returns what the
    screen shows.

    Cells that are missing, unfinished or not evaluated are named, and the others reported.
    """
    return write(find(study, noise), out)


def write(f: Found, out: Path) -> str:
    """As `report`, of what was found."""
    notes = [*nothing_done(f), *footnotes(f)]
    sections = contents(f)
    main_table = overview(f)
    out.mkdir(parents=True, exist_ok=True)
    written = {
        "report.md": markdown(f.study.title, sections),
        "report.html": page(f.study.title, sections),
        "results.csv": rows(f.cells),
        "table.tex": latex(main_table, f"{f.study.title}. {f.study.question}"),
        "figure.svg": figure.sheet(
            [*loss_curves(f)[:1], forest(f, "bits/byte"), *paired_curves(f), forest(f, "zero-shot")]
        ),
        "run.json": json.dumps(record(f), indent=1) + "\n",
    }
    for name, content in written.items():
        (out / f".{name}").write_text(content, encoding="utf-8")
        os.replace(out / f".{name}", out / name)
    if f.refused:
        notes.append(
            "Evaluated differently, so not compared: " + "; ".join(f.refused[:3]) + ("; ..." * (len(f.refused) > 3))
        )
    if f.wrong:
        notes.append(f"{len(f.wrong)} thing{'s do' if len(f.wrong) > 1 else ' does'} not match: see the report.")
    return "\n".join([plain_text(overview(f, f.study.title)), "", *(note.replace("**", "") for note in notes)])


def contents(f: Found) -> list[Section]:
    """The report, in the order in which it is read."""
    arms = " Corrected for the number of arms." if len(f.study.arms) > 2 else ""
    forests = [Figure(forest(f, name), f"Bars: 95 % intervals over seeds and items.{arms}") for name in f.results]
    head = [f"**Question.** {f.study.question}", f"**Expected, written before the runs.** {f.study.expect}"]
    head += nothing_done(f)
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
        "bit_for_bit_the_same": f.same,
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
            for name in f.results
            for arm, c in f.compared[name].items()
        ],
    }


if __name__ == "__main__":
    from ablations.study import from_anywhere

    sys.exit(main(from_anywhere(sys.argv[1:])))
