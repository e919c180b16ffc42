"""python -m eval.report POS=alibi ...: run directories in, report out. A pure function: twice the same bytes.
Without words: what was predicted in all records, and how often it came out so.

Nothing is read but the study, its run directories and the record there is, no clock and no machine; nothing is written
but the files of a record: report.md, report.html, results.csv, table.tex, figure.svg, run.json. They go to
ablations/records/NAME, or to OUT/records/NAME where that would lose finished runs which the record has, or cannot be
written.

What is asked for: request.py. Reading: runs.py, collection.py. Comparing: comparable.py, compare.py. What is said:
contents.py and sections/. How it looks: blocks.py, formats.py, page.py.
"""

import errno
import sys
from pathlib import Path

from ablations import answers
from ablations.rundir import Exit
from ablations.safe_files import printable, storage_error
from eval.report import record, request, track_record
from eval.report.findings import gather
from eval.report.outcome import EXIT_CODES, outcome

RECORDS = Path("ablations/records")


def main(argv: list[str] | None = None) -> int:
    """Writes the record of a study and prints its table.

    Exit codes: 0; 1 (it cannot be written); 2 (bad request); 3 (it is written, and some comparisons are refused, since
    the runs were evaluated differently). With FORMAT=json or VERDICT=1 they say what the study comes to by its primary
    metric: 0 decided, 3 undecided, 2 refused.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if {"-h", "--help"} & set(words):
        print(f"make report, besides the words of a study (python -m ablations --help):\n{request.help_text()}")
        return 0
    as_json = answers.asks_for_json(words)
    try:
        as_json, words = answers.take_format(words)
        by_verdict, words = request.take_verdict(words)
    except ValueError as error:
        return refuse(error, as_json)
    if not words or all(word.startswith("OUT=") for word in words):
        if by_verdict:
            return refuse(ValueError("VERDICT=1 needs a study, or runs: make report POS=alibi VERDICT=1"), as_json)
        return predicted(words, as_json)
    try:
        requested = request.parse(words)
        findings = gather(requested.study, requested.noise, requested.beside, requested.external)
    except ValueError as error:
        return refuse(error, as_json)
    record_folder, note = RECORDS / requested.study.name, ""
    elsewhere = Path(dict(word.partition("=")[::2] for word in words).get("OUT", "").strip() or "runs") / "records"
    if lost := record.lost_runs(findings, record_folder):
        note = (
            f"{record_folder} stays as it is: it has runs that this report lacks: {lost}. "
            "Remove it to have this one there."
        )
    try:
        out = elsewhere / requested.study.name if lost else record_folder
        try:
            record.write(findings, out)
        except OSError as error:
            if lost or error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
                raise
            note = f"{printable(str(error))}: the report is in {elsewhere} instead."
            out = elsewhere / requested.study.name
            record.write(findings, out)
    except OSError as error:
        why = f"the report cannot be written: {storage_error(error) or printable(str(error))}"
        if as_json:
            print(answers.error(why))
        print(f"error: {why}", file=sys.stderr)
        return 1
    verdict = outcome(findings)
    if as_json:
        content = {"verdict": verdict, "written": str(out), "note": printable(note), "record": record.record(findings)}
        print(answers.answer("report", content))
        return EXIT_CODES[verdict["outcome"]]
    print(f"{record.screen(findings)}\n\n{printable(str(out / 'report.md'))}\n{printable(str(out / 'report.html'))}")
    if note:
        print(printable(note))
    if by_verdict:
        print(f"{verdict['outcome']}, by {verdict['metric']}")
        return EXIT_CODES[verdict["outcome"]]
    if findings.refusals:
        number = f"{len(findings.refusals)} comparison{'s' * (len(findings.refusals) > 1)}"
        print(
            f"refused: {number} of runs that were evaluated differently; the report is written, and says which",
            file=sys.stderr,
        )
        return Exit.REFUSED
    return 0


def refuse(error: ValueError, as_json: bool) -> int:
    """Say why a request is refused."""
    if as_json:
        print(answers.error(str(error)))
    print(f"error: {printable(str(error))}", file=sys.stderr)
    return Exit.INVALID


def predicted(words: list[str], as_json: bool = False) -> int:
    """Print the predictions in all records, and how often predictions came true: `python -m eval.report` without
    words."""
    out = Path(dict(word.partition("=")[::2] for word in words).get("OUT", "").strip() or "runs")
    lines, damaged = track_record.predictions([RECORDS, out / "records"])
    for sentence in damaged:
        print(f"left out: {printable(sentence)}", file=sys.stderr)
    if as_json:
        print(answers.answer("predictions", {"predictions": lines, "counts": track_record.counts(lines)}))
        return 0
    if not lines:
        print("No record has a prediction. A report of runs needs a study: make report POS=alibi")
        return 0
    print(f"{track_record.table(lines)}\n\n{track_record.summary(lines)}")
    return 0


if __name__ == "__main__":
    from ablations.study import from_anywhere

    sys.exit(main(from_anywhere(sys.argv[1:])))
