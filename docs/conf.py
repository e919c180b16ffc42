"""The manual: `make docs`. Sphinx reads the Markdown of this folder; the reference and the records are made here.

Sphinx with MyST and Furo rather than MkDocs Material: a dead link or a page outside the contents is an error (-W -n),
pages are made from the code by plain Python before the build, and all of it is maintained (MkDocs Material has had no
new features since November 2025).
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path
from xml.etree import ElementTree

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
html_static_path, html_css_files = ["_static"], ["figures.css"]

SVG = "{http://www.w3.org/2000/svg}"  # the namespace of its elements
ElementTree.register_namespace("", SVG.strip("{}"))
CHART_SCALE = 0.88  # two charts of 400 units then stand side by side in Furo's column of 46 em

GENERATED = {"reference", "records"}  # folders of this one that are made anew by each build


def settings() -> str:
    """Every setting, schedule and size, as `python -m ablations reference` prints them."""
    from ablations.reference import reference_page

    return reference_page()


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


STUDY_PLAN = "STUDY=position SEEDS=5"
HARDWARE_PLAN = "STUDY=position SIZE=125m DATA=c4 ON=a100 SEEDS=3"
BUDGET_PLAN = "18 weeks, 52x8 A100-80, 4 spare"
NOWHERE = "example"  # an output root without runs: a plan of a study writes nothing


def planned(words: list[str]) -> str:
    """What `make plan` prints for these words; of paths, as if the output root were `runs`.

    Raises:
        RuntimeError: the command refuses them, for another reason than this machine's disk.
    """
    env = {**os.environ, "COLUMNS": "100", "PYTHONUTF8": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "ablations", "plan", *words], cwd=ROOT, env=env, capture_output=True, text=True
    )
    if done.returncode and "refused: the disk" not in done.stdout:
        raise RuntimeError(f"make plan {' '.join(words)}: {done.stderr}")
    return re.sub(rf"\b{NOWHERE}\b", "runs", done.stdout).strip()


def plans() -> str:
    """What `make plan` prints for a study, on this machine and on hardware that is named."""
    parts = [
        "# What a plan prints",
        "Printed by the commands themselves when this page was made, on the machine that made it. That of a whole "
        "budget is [a document](plan/report.md).",
    ]
    for words, says in (
        (STUDY_PLAN, "A study on this machine. The last lines say what the study could see."),
        (HARDWARE_PLAN, "A study on hardware that is not here: layouts, hours with their interval, energy, disk."),
    ):
        printed = planned([*words.split(), f"OUT={NOWHERE}"])
        parts += [f"## make plan {words}", says, f"```text\n{printed}\n```"]
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
        "names. None of them is part of this repository or of its wheel: pip installs them. A CUDA build of torch",
        "brings NVIDIA's libraries besides (cuda-toolkit, nvidia-*), under NVIDIA's own licence. What builds this",
        "manual is in docs/requirements.txt.",
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
        "plans": plans(),
        "licences": licences(),
    }
    for name, text in pages.items():
        (DOCS / "reference" / f"{name}.md").write_text(text, "utf-8")
    planned([f"BUDGET={BUDGET_PLAN}", f"TO={DOCS / 'reference' / 'plan'}"])  # writes a document, and its figures
    toc = "\n".join([*pages, "plan/report"])
    (DOCS / "reference" / "index.md").write_text(
        f"# Reference\n\nMade from the code by each build.\n\n```{{toctree}}\n:maxdepth: 1\n{toc}\n```\n", "utf-8"
    )
    records = sorted(path.parent for path in (ROOT / "ablations/records").glob("*/report.md"))
    for record in records:
        shutil.copytree(record, DOCS / "records" / record.name)
        charts_apart(DOCS / "records" / record.name)
    toc = "\n".join(f"{record.name}/report" for record in records)
    summaries = "\n".join(
        f"| [{record.name}]({record.name}/report.md) | {answer(record)} | {predictions(record)} |" for record in records
    )
    (DOCS / "records" / "index.md").write_text(
        "# Records\n\nStudies that were run, each with its report as it was written. Each report says whether the "
        "expectation was written down before the runs; what did not come true, and what nothing came of, stays here "
        "too.\n\n"
        f"| record | answer | predictions |\n|---|---|---|\n{summaries}\n\n```{{toctree}}\n:hidden:\n{toc}\n```\n",
        "utf-8",
    )


def charts_apart(page: Path) -> None:
    """Cut the figure of a record, which is one sheet of charts side by side, into a file for each chart, and show these
    in its report: on a phone they then stand below each other, at a size that can be read.

    Args:
        page: the folder of the record's page, with report.md and figure.svg.
    """
    sheet = ElementTree.parse(page / "figure.svg").getroot()
    style = sheet.find(f"{SVG}style")
    images = []
    for number, chart in enumerate(sheet.findall(f"{SVG}svg"), 1):
        del chart.attrib["x"], chart.attrib["y"]
        for side in ("width", "height"):
            chart.set(side, f"{CHART_SCALE * float(chart.attrib[side]):.0f}")
        paper = ElementTree.Element(f"{SVG}rect", width="100%", height="100%", style="fill:var(--paper)")
        chart[:0] = [paper] if style is None else [style, paper]
        name = f"chart-{number}.svg"
        (page / name).write_bytes(ElementTree.tostring(chart))
        images.append(f"![{chart.get('aria-label')}]({name})")
    report = page / "report.md"
    report.write_text(re.sub(r"!\[[^]]*\]\(figure\.svg\)", "\n".join(images), report.read_text("utf-8")), "utf-8")


def answer(record: Path) -> str:
    """The answer of a record in a sentence; of one made before reports had it, its verdicts; of a ladder, which has no
    run.json, where to look."""
    file = record / "run.json"
    return (json.loads(file.read_text("utf-8")).get("answer") if file.exists() else "") or verdicts(record)


def verdicts(record: Path) -> str:
    """The arms of a record with their verdicts, from the first table of its report."""
    table = re.search(
        r"^\|[^\n]*verdict[^\n]*\|\n\|[-|: ]+\|\n((?:\|[^\n]*\|\n)+)", (record / "report.md").read_text("utf-8"), re.M
    )
    rows = [[cell.strip() for cell in line.strip("|\n").split("|")] for line in table[1].splitlines()] if table else []
    return "; ".join(f"{row[0]}: {row[-1].strip('*')}" for row in rows if row[-1]) or "see the report"


def predictions(record: Path) -> str:
    """How many predictions of a record came true, such as "2 held, 1 failed, 1 undecided"."""
    if not (record / "run.json").exists():  # a ladder
        return "in the report"
    outcomes = Counter(row["outcome"] for row in json.loads((record / "run.json").read_text("utf-8"))["predictions"])
    return ", ".join(f"{number} {outcome}" for outcome, number in sorted(outcomes.items())) or "none"


write_generated()
