"""Parses the NAME=VALUE words of a report's command line, which say what it is about: a study, or a collection of
runs."""

import os
import shlex
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from ablations import rundir
from ablations.criteria import PRIMARY, Criteria, check_metric, margins_from_word
from ablations.values import join_names
from ablations.words import HELP as WORDS
from ablations.words import PATHS, check_not_empty, parse_folders
from eval.report.reading.collection import collect_runs, run_directories
from eval.report.reading.external import External, read_all_external

FOLDER_WORDS = ("RUNS", "NOISE", "EXTERNAL")  # words that name folders, with spaces between them
CRITERIA = ("METRIC", "MARGIN")  # words of a study that any runs may be judged by
BESIDE = ("checked", "all", "none")
HELP = {
    "STUDY": "several studies in one report: STUDY=position,activation",
    "RUNS": "runs as they are, of others or of any study: directories, or folders of run directories",
    "NOISE": "runs that tell the noise between seeds where a study has one seed",
    "EXTERNAL": "other checkpoints on GLUE, shown beside the runs: folders of results that python -m eval.finetune "
    "--external CHECKPOINT --to FOLDER wrote",
    "FORMAT": "json: the answer for programs (docs/schema/report.json), with the exit codes of VERDICT",
    "VERDICT": "1: the exit code says what the primary metric comes to: 0 decided, 3 undecided, 2 refused (python -m "
    "eval.report; make itself ends every failure with 2)",
    "BESIDE": "numbers of the BigScience paper beside the results: checked (default: those read in their source or "
    "computed from it), all (also those marked unverified), none",
}


def help_text() -> str:
    lines = [textwrap.wrap(f"{name:9} {words}", 116, subsequent_indent=" " * 10) for name, words in HELP.items()]
    return "\n".join(f"  {line}" for wrapped in lines for line in wrapped)


class Request(NamedTuple):
    """What a report is asked for: a study or collection, and what is shown beside it."""

    study: Any  # ablations.study.Study, or a Collection
    noise: list[Path] = []  # directories of runs that tell the noise between seeds  # noqa: RUF012
    beside: str = "checked"  # one of BESIDE
    external: list[External] = []  # noqa: RUF012


def extract_verdict_word(words: list[str]) -> tuple[bool, list[str]]:
    """Take VERDICT= out of the words of a command line. Returns (True for VERDICT=1, the other words). True means that
    the exit code is to be the verdict. Raises ValueError where VERDICT is neither 0 nor 1, or is given twice."""
    values = [word.partition("=")[2] for word in words if word.startswith("VERDICT=")]
    if len(values) > 1 or (values and values[0] not in ("0", "1")):
        raise ValueError(f"VERDICT={values[0][:60]}: 1, once; the exit code is then 0 decided, 3 undecided, 2 refused")
    return values == ["1"], [word for word in words if not word.startswith("VERDICT=")]


def parse_request(words: list[str]) -> Request:
    """Parse the words of a report's command line. Raises ValueError where a word is not valid, a directory is not that
    of a run, or no run has begun."""
    from ablations.study import from_args

    known = {**WORDS, **HELP}
    for word in words:
        if "=" not in word or word.partition("=")[0] not in known:
            raise ValueError(f"{word[:200]!r} is no NAME=VALUE of {', '.join(known)}")
    names = [word.partition("=")[0] for word in words]
    if twice := [name for name in (*FOLDER_WORDS, "BESIDE") if names.count(name) > 1]:
        raise ValueError(f"{twice[0]} is given twice: say it once, with spaces between several directories")
    values = dict(word.partition("=")[::2] for word in words)
    check_not_empty(values, known)
    beside = values.get("BESIDE", "checked").strip()
    if beside not in BESIDE:
        raise ValueError(f"BESIDE={beside} is not one of {', '.join(BESIDE)}")
    noise = [path for name in parse_folders(values.get("NOISE", "")) for path in run_directories(name)]
    external = read_all_external(parse_folders(values.get("EXTERNAL", "")))
    others = [("", path) for name in parse_folders(values.get("RUNS", "")) for path in run_directories(name)]
    studies = [name for name in values.get("STUDY", "").split(",") if name]
    study_words = [word for word in words if not word.startswith(("NOISE=", "RUNS=", "BESIDE=", "EXTERNAL="))]
    if not others and len(studies) < 2:
        study = from_args(study_words)
        if not any(cell.dir.exists() for cell in study.cells):
            raise ValueError(f"no run of this study has begun under {study.out / study.stage}")  # the record stays
        return Request(study, noise, beside, external)
    asks_for_study = any(word.partition("=")[0] not in ("OUT", "JOBS", *CRITERIA) for word in study_words)
    runs = []
    for name in studies or ([""] if asks_for_study else []):
        one = from_args([f"STUDY={name}" if name and word.startswith("STUDY=") else word for word in study_words])
        runs += [(one.factor, cell.dir) for cell in one.cells if (cell.dir / rundir.RUN).exists()]
    runs += others
    if not runs:
        raise ValueError("no run of these studies has begun")
    collection = collect_runs(runs, " ".join(["make report", *map(word_without_folders, sorted(words))]))
    metric = check_metric(values.get("METRIC", PRIMARY).strip(), "METRIC")
    criteria = Criteria(metric, margins_from_word(values.get("MARGIN", "")))
    absolute = [word.partition("=")[0] for word in sorted(words) if any(map(os.path.isabs, folders_of_word(word)))]
    sentence = ""
    if absolute:
        named = join_names([f"{name}=" for name in absolute])
        sentence = f"{named}: of an absolute path only the end is named here. Put the folder that it lies in before it."
    collection = replace(collection, criteria=criteria, left_out_of_command=sentence)
    return Request(collection, noise, beside, external)


def out_folder(words: list[str]) -> Path:
    """The folder that OUT= names among the words of a command; "runs" without OUT=. Raises ValueError where OUT= is
    empty."""
    out = dict(word.partition("=")[::2] for word in words).get("OUT", "runs").strip()
    check_not_empty({"OUT": out}, WORDS)
    return Path(out)


def folders_of_word(word: str) -> list[str]:
    """The paths in a word of the command line that begins with RUNS=, NOISE=, EXTERNAL= or OUT=; [] for other words."""
    name, _, value = word.partition("=")
    paths = parse_folders(value) if name in FOLDER_WORDS else value.split(",") if name in PATHS else []
    here = Path.cwd()
    return [str(Path(path).relative_to(here)) if Path(path).is_relative_to(here) else path for path in paths]


def word_without_folders(word: str) -> str:
    """A word of the command line as a report shows it: absolute paths are cut to their last part, so that no folders of
    this machine are shown."""
    name, _, value = word.partition("=")
    if folders := [Path(path).name or path if os.path.isabs(path) else path for path in folders_of_word(word)]:
        value = shlex.join(folders) if name in FOLDER_WORDS else ",".join(folders)
    return f"{name}={shlex.quote(value)}" if " " in value else f"{name}={value}"
