"""Writes the record of a study: the files of a report. A record with finished runs that the report lacks is not
overwritten."""

import json
from pathlib import Path
from typing import Any

from ablations import drawing, safe_files
from ablations.document.blocks import Table
from ablations.document.formats import latex, markdown, plain_text, to_csv
from ablations.document.page import page
from ablations.safe_files import Damaged, printable
from eval.report.comparison.compare import METRICS
from eval.report.comparison.findings import Findings, noise_for_planning
from eval.report.comparison.predictions import checked_predictions
from eval.report.contents import make_sections
from eval.report.reading.runs import Cells, runs_in_words
from eval.report.sections import answer, composition, factorial, overview, registered, tuning
from eval.report.sections.differences import forest_plot
from eval.report.sections.training import loss_curves, paired_curves

REASONS_SHOWN = 3  # on the screen, of what is not compared; the report has all


def write_record_files(findings: Findings, out: Path) -> None:
    """Write the files of a record into the folder `out`, all of them or none. Raises OSError where they cannot be
    written."""
    sections = make_sections(findings)
    figures = [
        *loss_curves(findings)[:1],
        forest_plot(findings, "bits/byte"),
        *paired_curves(findings),
        forest_plot(findings, "zero-shot"),
    ]
    safe_files.write_together(
        out,
        {
            "report.md": markdown(findings.study.title, sections),
            "report.html": page(findings.study.title, sections),
            "results.csv": to_csv(csv_lines(findings.cells)),
            "table.tex": latex(overview.overview_table(findings), f"{findings.study.title}. {findings.study.question}"),
            "figure.svg": drawing.combined_figures(figures),
            "run.json": json.dumps(record_content(findings), indent=1) + "\n",
        },
    )


def terminal_text(findings: Findings) -> str:
    """A report for the terminal: the table of the arms, and the sentences that explain it."""
    table: Table = overview.overview_table(findings, findings.study.title)
    sentences = [
        answer.answer(findings),
        *overview.arms_without_effect(findings),
        *overview.caution_paragraphs(findings),
    ]
    notes = [sentence for sentence in [*sentences, *overview.notes_on_numbers(findings)] if sentence]
    if findings.refusals:
        more = "; ..." if len(findings.refusals) > REASONS_SHOWN else ""
        notes.append(f"Evaluated differently, so not compared: {'; '.join(findings.refusals[:REASONS_SHOWN])}{more}")
    if findings.mismatches:
        count = len(findings.mismatches)
        notes.append(f"{count} {'things do' if count > 1 else 'thing does'} not match: see the report.")
    effects: list[str] = []
    for block in [*factorial.blocks_for_terminal(findings), *tuning.blocks_for_terminal(findings)]:
        effects += ["", plain_text(block) if isinstance(block, Table) else block]
    return printable("\n".join([plain_text(table), *effects, "", *(note.replace("**", "") for note in notes)]))


def finished_runs_that_would_be_lost(findings: Findings, out: Path) -> str:
    """The finished runs of the record in the folder `out` that this report lacks, as text; "" where there are none, or
    no record. If the record is damaged, the text begins with "unknown". Runs with the same configuration count as the
    same run."""
    try:
        earlier = safe_files.read_json(out / "run.json", ["runs"], {"runs": list})
    except Damaged as error:
        return f"unknown, as {error}"
    if earlier is None:
        return ""
    run_form = {"arm": str, "seed": int, "state": str, "fingerprint?": str}
    corpus_form = {"sha256": str, "arms": list, "sources": list}
    entries: list[tuple[Any, dict[str, Any]]] = [(run, run_form) for run in earlier["runs"]]
    entries += [(corpus, corpus_form) for corpus in earlier.get("corpora", [])]
    if wrong := next((wrong for entry, form in entries if (wrong := safe_files.first_misfit(entry, form))), ""):
        return f"unknown, as {out / 'run.json'} is damaged: {wrong} is not what a record has there"
    present = record_content(findings)
    fingerprints = {run.get("fingerprint") for run in present["runs"] if run["state"] == "finished"}
    earlier_texts, texts = training_text_hashes(earlier), training_text_hashes(present)
    return runs_in_words(
        [
            (run["arm"], run["seed"])
            for run in earlier["runs"]
            if run["state"] == "finished"
            and not (
                run.get("fingerprint") in fingerprints
                and earlier_texts.get(run["arm"]) in (texts.get(run["arm"]), None)
            )
        ]
    )


def training_text_hashes(record: dict[str, Any]) -> dict[str, str]:
    """The hash of the text that each arm was trained on: {arm: sha256}. Arms trained on the text of installed packages
    are left out, since that text changes with the versions of the packages. `record`: the content of a record's
    run.json."""
    return {
        str(arm): corpus["sha256"]
        for corpus in record.get("corpora", [])
        if not any(isinstance(source, dict) and source.get("packages") for source in corpus["sources"])
        for arm in corpus["arms"]
    }


def csv_lines(cells: Cells) -> list[list]:
    """The lines of results.csv: a header, then for each run one line per task and one line per overall score, such as
    the mean over tasks. `cells`: {(arm, seed): content of the run directory}."""
    lines: list[list] = [["arm", "seed", "task", "metric", "value", "stderr", "items", "chance", "shots"]]
    for (arm, seed), cell in cells.items():
        for task, entry in cell.get("eval", {}).get("tasks", {}).items():
            columns = ("metric", "value", "stderr", "n", "chance", "shots")
            lines.append([arm, seed, task, *(entry.get(key) for key in columns)])
        for metric in METRICS.values():
            if overall := cell.get("eval", {}).get(metric.key):
                score = [overall["value"], overall.get("stderr"), "", overall.get("chance"), ""]
                lines.append([arm, seed, "", metric.key, *score])
    return lines


def run_length(findings: Findings) -> dict[str, Any]:
    """The length of the runs, taken from the first one.

    Returns:
        tokens: the number of training tokens; None where it is not known yet: no run has begun, or a run with a
            wall-clock budget is not evaluated.
        budget: the wall-clock budget; missing for a budget in tokens.
    """
    cell = next((cell for cell in findings.cells.values() if "run" in cell), None)
    if cell is None:
        return {"tokens": None}
    train = cell["run"]["config"]["train"]
    if train.get("budget", "tokens") == "tokens":
        return {"tokens": train["tokens"]}
    last = (cell.get("metrics") or [{}])[-1]
    return {"budget": train["budget"], "tokens": last.get("tokens") if cell.get("eval") else None}


def record_content(findings: Findings) -> dict[str, Any]:
    """The content of the record's run.json: the study, its runs, and their results and comparisons."""
    from_run = ("fingerprint", "commit", "versions", "hardware")
    runs = []
    for (arm, seed), cell in findings.cells.items():
        run = {"arm": arm, "seed": seed, "state": cell["state"] or "finished"}
        run |= {key: cell["run"].get(key) for key in from_run if "run" in cell}
        run |= {METRICS[name].key: findings.results[name][arm].get(seed) for name in findings.results}
        runs.append(run)
    comparisons = []
    for name in findings.results:
        for arm, c in findings.comparisons[name].items():
            line = {"arm": arm, "metric": METRICS[name].key, "difference": c.difference}
            line |= {"decision": findings.verdict(arm, name).kind, "verdict": findings.verdict_in_words(arm, name)}
            line["exploratory"] = findings.is_exploratory(arm, name)
            if left_out := findings.tasks_left_out(arm, name):
                line["without"] = left_out
            if name in findings.margins:
                line["margin"] = findings.margins[name]
            comparisons.append(line | factorial.noise_for_record(c))
    return {
        **{key: getattr(findings.study, key) for key in ("name", "title", "question", "expect", "command")},
        "answer": answer.answer(findings).removeprefix("**Answer.** "),
        "size": findings.runs[0]["config"].get("size") if findings.runs else None,
        **run_length(findings),
        "noise": noise_for_planning(findings),
        "registration": registered.registration_summary(findings),
        "design": findings.study.registration.get("design", ""),
        "corpora": composition.texts_for_record(findings),
        "learning_rates": tuning.tuning_for_record(findings),
        "effects": factorial.effects_for_record(findings),
        "predictions": [checked._asdict() for checked in checked_predictions(findings)],
        "bit_for_bit_the_same": findings.copies,
        "runs": runs,
        "comparisons": comparisons,
    }
