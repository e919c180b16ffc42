"""The manual: `make docs`. Sphinx reads the Markdown of this folder; the reference and the records are made here."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
sys.path.insert(0, str(ROOT))

project, author = "megahour", "megahour contributors"
copyright = author  # noqa: A001 (the name that Sphinx reads)
extensions = ["myst_parser", "sphinx_copybutton"]
html_theme, html_title = "furo", "megahour"
exclude_patterns = ["schema", "_build"]
myst_heading_anchors = 3
# Command names in indented blocks are no language to colour.
highlight_language = "text"
html_copy_source = False

GENERATED = {"reference", "records"}  # folders of this one that are made anew by each build


def settings() -> str:
    """Every setting, schedule and size, as `python -m ablations reference` prints them."""
    from ablations.reference import page

    return page()


def run_directory() -> str:
    """The files of a run directory, from the comments beside their names in ablations/rundir.py."""
    rows = re.findall(r'^([A-Z_]+) = "([^"]+)"  # (.+)$', (ROOT / "ablations/rundir.py").read_text("utf-8"), re.M)
    names = {constant: f"`{name}`" for constant, name, _ in rows}
    lines = ["# Files of a run directory", "", "| name | what it is |", "|---|---|"]
    for _, name, meaning in rows:
        words = re.sub(r"\b[A-Z_]{4,}\b", lambda match: names.get(match[0], match[0]), meaning)
        lines.append(f"| `{name}` | {words.replace('|', chr(92) + '|')} |")
    return "\n".join([*lines, ""])


def commands() -> str:
    """What `make help` says: every target, and the words that each command takes."""
    env = {**os.environ, "COLUMNS": "100", "PYTHONUTF8": "1"}
    head = (ROOT / "Makefile").read_text("utf-8").split("\n\n", 1)[0]
    parts = ["# Commands", "## make", "```text", re.sub("^# ", "", head, flags=re.M), "```"]
    makefile = (ROOT / "Makefile").read_text("utf-8")
    every = re.search(r"^NAMES := (.+)$", makefile, re.M)
    takes = {
        goal: words.replace("$(NAMES)", every[1] if every else "")
        for goal, words in re.findall(r"^TAKES_([\w-]+) := (.+)$", makefile, re.M)
    }
    parts += [
        "## Words that each command takes",
        "| command | words |\n|---|---|\n"
        + "\n".join(
            f"| `make {goal}` | {' '.join(f'`{word}`' for word in words.split())} |" for goal, words in takes.items()
        ),
    ]
    for module in ("ablations", "eval", "eval.report", "eval.finetune", "eval.export", "data.prepare"):
        printed = subprocess.run(
            [sys.executable, "-m", module, "--help"], cwd=ROOT, env=env, capture_output=True, text=True, check=True
        ).stdout
        parts += [f"## python -m {module}", "```text", printed.strip(), "```"]
    return "\n\n".join([*parts, ""])


def variants() -> str:
    """Each class of each factor, with what it says of itself."""
    from model.mlp import MLPS
    from model.norm import NORMS
    from model.objective import OBJECTIVES
    from model.position import POSITIONS

    parts = ["# Variants"]
    for setting, table in {
        "model.pos": POSITIONS,
        "model.act": MLPS,
        "model.norm": NORMS,
        "model.objective": OBJECTIVES,
    }.items():
        parts.append(f"## {setting}")
        for name, cls in table.items():
            docstring = cls.__doc__ if isinstance(cls, type) and cls.__doc__ else ""
            parts += [f"### {name}", " ".join(docstring.split()) or f"`{getattr(cls, '__qualname__', cls)}`"]
    return "\n\n".join([*parts, ""])


def licences() -> str:
    """The licence of each pinned package, as its own metadata names it."""
    lines = [
        "# Licences of the dependencies",
        "",
        "The packages of requirements.txt, tests and development included, with the licence that each one's metadata",
        "names. None of them is part of this repository or of its wheel: pip installs them.",
        "",
        "| package | licence |",
        "|---|---|",
    ]
    for name in re.findall(r"^([\w.-]+)==", (ROOT / "requirements.txt").read_text("utf-8"), re.M):
        try:
            package = metadata(name)
        except PackageNotFoundError:
            lines.append(f"| {name} | not installed where this was made |")
            continue
        classes = [text.split(" :: ")[-1] for text in package.get_all("Classifier") or [] if text.startswith("License")]
        text = package.get("License-Expression") or ", ".join(classes) or (package.get("License") or "").split("\n")[0]
        lines.append(f"| {name} | {text.replace('|', '/') or 'not named'} |")
    return "\n".join([*lines, ""])


def write_generated() -> None:
    """Make the folders GENERATED anew: what is no longer there must not stay as a page."""
    for name in GENERATED:
        shutil.rmtree(DOCS / name, ignore_errors=True)
        (DOCS / name).mkdir()
    pages = {
        "settings": settings(),
        "run-directory": run_directory(),
        "commands": commands(),
        "variants": variants(),
        "licences": licences(),
    }
    for name, text in pages.items():
        (DOCS / "reference" / f"{name}.md").write_text(text, "utf-8")
    toc = "\n".join(pages)
    (DOCS / "reference" / "index.md").write_text(
        f"# Reference\n\nMade from the code by each build.\n\n```{{toctree}}\n:maxdepth: 1\n{toc}\n```\n", "utf-8"
    )
    records = sorted(path.parent for path in (ROOT / "ablations/records").glob("*/report.md"))
    for record in records:
        shutil.copytree(record, DOCS / "records" / record.name)
    toc = "\n".join(f"{record.name}/report" for record in records)
    summaries = "\n".join(
        f"| [{record.name}]({record.name}/report.md) | {verdicts(record)} | {predictions(record)} |"
        for record in records
    )
    (DOCS / "records" / "index.md").write_text(
        "# Records\n\nStudies that were run, each with its report as it was written. The expectation of each was "
        "written down before its runs; what did not come true, and what nothing came of, stays here too.\n\n"
        f"| record | verdicts | predictions |\n|---|---|---|\n{summaries}\n\n```{{toctree}}\n:hidden:\n{toc}\n```\n",
        "utf-8",
    )


def verdicts(record: Path) -> str:
    """The arms of a record with their verdicts, from the first table of its report."""
    table = re.search(
        r"^\|[^\n]*verdict[^\n]*\|\n\|[-|: ]+\|\n((?:\|[^\n]*\|\n)+)", (record / "report.md").read_text("utf-8"), re.M
    )
    rows = [[cell.strip() for cell in line.strip("|\n").split("|")] for line in table[1].splitlines()] if table else []
    return "; ".join(f"{row[0]}: {row[-1].strip('*')}" for row in rows if row[-1]) or "see the report"


def predictions(record: Path) -> str:
    """How many predictions of a record came true, such as "2 held, 1 failed, 1 undecided"."""
    outcomes = Counter(row["outcome"] for row in json.loads((record / "run.json").read_text("utf-8"))["predictions"])
    return ", ".join(f"{number} {outcome}" for outcome, number in sorted(outcomes.items())) or "none"


write_generated()
