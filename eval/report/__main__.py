"""python -m eval.report POS=alibi ...: writes the report of a study from its run directories. The same run directories
give the same bytes. Without words: prints the predictions of all records, and how often they came true.

Only the study, its run directories and an earlier record are read, not the time or properties of the machine. The
record consists of report.md, report.html, results.csv, table.tex, figure.svg and run.json. It is written to
ablations/records/NAME; or to OUT/records/NAME where ablations/records cannot be written, or has a record with finished
runs that would be lost.

request.py parses the words; reading/ reads the runs; comparison/ compares them; contents.py and sections/ make the
text; document/ its appearance.
"""

import errno
import sys
from pathlib import Path

from ablations import answers
from ablations.rundir import Exit
from ablations.safe_files import printable, storage_error_message
from ablations.words import change_to_checkout, check_folder
from eval.report import record, request, track_record
from eval.report.comparison.findings import Findings
from eval.report.comparison.gather import gather_findings
from eval.report.outcome import EXIT_CODES, study_outcome

RECORDS = Path("ablations/records")


def main(argv: list[str] | None = None) -> int:
    """Write the record of a study and print its table.

    Exit codes: 0; 1, the record cannot be written; 2, the words are not valid or a run cannot be read; 3, the record is
    written, but some runs are not compared since they were evaluated differently. With FORMAT=json or VERDICT=1 the
    exit code is the outcome of the study by its primary metric: 0 decided, 3 undecided, 2 refused.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if {"-h", "--help"} & set(words):
        print(f"make report, besides the words of a study (python -m ablations --help):\n{request.help_text()}")
        return 0
    as_json = answers.asks_for_json(words)
    try:
        as_json, words = answers.extract_format(words)
        by_verdict, words = request.extract_verdict_word(words)
        if not words or all(word.startswith("OUT=") for word in words):
            if by_verdict:
                raise ValueError("VERDICT=1 needs a study, or runs: make report POS=alibi VERDICT=1")
            if words:
                check_folder(request.out_folder(words))
            return print_predictions(words, as_json)
        requested = request.parse_request(words)
        findings = gather_findings(requested.study, requested.noise, requested.beside, requested.external)
    except (ValueError, OSError) as error:
        answers.print_error(str(error), as_json)
        return Exit.INVALID
    try:
        out, note = write_record(findings, words)
    except OSError as error:
        answers.print_error(f"the report cannot be written: {storage_error_message(error) or error}", as_json)
        return 1
    verdict = study_outcome(findings)
    if as_json:
        content = {
            "verdict": verdict,
            "written": str(out),
            "note": printable(note),
            "record": record.record_content(findings),
        }
        print(answers.json_answer("report", content))
        return EXIT_CODES[verdict["outcome"]]
    files = "\n".join(printable(str(out / name)) for name in ("report.md", "report.html"))
    print(f"{record.terminal_text(findings)}\n\n{files}")
    if note:
        print(printable(note))
    if by_verdict:
        print(f"{verdict['outcome']}, by {verdict['metric']}")
        return EXIT_CODES[verdict["outcome"]]
    if findings.refusals:
        number = len(findings.refusals)
        comparisons = "1 comparison" if number == 1 else f"{number} comparisons"
        print(
            f"refused: {comparisons} of runs that were evaluated differently; the report is written, and says which",
            file=sys.stderr,
        )
        return Exit.REFUSED
    return 0


def write_record(findings: Findings, words: list[str]) -> tuple[Path, str]:
    """Write the record of a study: to ablations/records, or else to OUT/records. Returns (the folder of the record, a
    sentence on why it is not in ablations/records). The sentence is "" where the record is there. `words`: of the
    command, among them OUT=. Raises OSError where the record cannot be written."""
    name = findings.study.name
    folder, elsewhere = RECORDS / name, request.out_folder(words) / "records"
    if lost := record.finished_runs_that_would_be_lost(findings, folder):
        record.write_record_files(findings, elsewhere / name)
        return elsewhere / name, (
            f"{folder} stays as it is: it has runs that this report lacks: {lost}. Remove it to have this one there."
        )
    try:
        record.write_record_files(findings, folder)
        return folder, ""
    except OSError as error:
        if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise
        record.write_record_files(findings, elsewhere / name)
        return elsewhere / name, f"{printable(str(error))}: the report is in {elsewhere} instead."


def print_predictions(words: list[str], as_json: bool = False) -> int:
    """Print the predictions in all records, and how often they came true. Returns the exit code, 0. `words`: of the
    command; OUT= says where further records are; `as_json`: whether to print JSON."""
    lines, damaged = track_record.read_predictions([RECORDS, request.out_folder(words) / "records"])
    for sentence in damaged:
        print(f"left out: {printable(sentence)}", file=sys.stderr)
    if as_json:
        print(answers.json_answer("predictions", {"predictions": lines, "counts": track_record.outcome_counts(lines)}))
        return 0
    if not lines:
        print("No record has a prediction. A report of runs needs a study: make report POS=alibi")
        return 0
    print(f"{track_record.predictions_table(lines)}\n\n{track_record.summary_text(lines)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(change_to_checkout(sys.argv[1:])))
