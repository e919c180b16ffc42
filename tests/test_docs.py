"""Every command that README and the manual show is one that is accepted, and every file that they link to is there."""

import importlib.util
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from ablations.study import from_args

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *(ROOT / "docs").glob("*.md")])
STUDIES = ("ablation", "plan", "show", "status", "report", "cram")  # commands whose words are those of a study
# Words that are not a study's, or whose value stands for a file or a machine of the reader's.
NOT_OF_A_STUDY = (
    "BESIDE BUDGET DATA EVAL_DATA EXTERNAL FORMAT GLUE NEED NODES NOISE NOISE_FLOOR ON PRICE RUNS SITE TO VERDICT WATCH"
).split()


MADE_UP = {"make ablation POS=linear"}  # of an example that adds this scheme


def commands() -> list[tuple[str, str]]:
    """(page, command) of each `make ...` and `python -m ...`: lines of blocks, and code within text."""
    listed = []
    for page in PAGES:
        text = page.read_text("utf-8")
        lines = re.findall(r"^(?:    )?((?:make|(?:\.venv/bin/)?python -m) [^`\n]+)$", text, re.M)
        inline = re.findall(r"`((?:make|(?:\.venv/bin/)?python -m) [^`\n]+)`", text)
        for command in [*lines, *inline]:
            command = re.split(r"\s+#|\s+&&|; |  +", command)[0].strip()
            if "..." not in command and "…" not in command and command not in MADE_UP:
                listed.append((page.name, command))
    return sorted(set(listed))


@pytest.mark.parametrize(("page", "command"), commands(), ids=lambda value: value.replace("/", "_"))
def test_a_command_that_is_shown_is_accepted(page: str, command: str) -> None:
    words = shlex.split(command)
    if words[0] != "make":
        module = words[words.index("-m") + 1]
        assert importlib.util.find_spec(module), f"{page}: there is no module {module}"
        return
    if shutil.which("make") and (ROOT / ".venv/ready").exists():  # what it would run; nothing is run
        dry = subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, capture_output=True, text=True)
        bare = len(words) == 2 and " needs " in dry.stderr  # the command alone is named, within a sentence
        assert dry.returncode == 0 or bare, f"{page}: {dry.stderr}"
    goal, *pairs = words[1:]
    study = [pair for pair in pairs if pair.partition("=")[0] not in NOT_OF_A_STUDY]
    if goal in STUDIES and any(pair.partition("=")[0] in ("STUDY", "POS", "ACT", "NORM", "ARM") for pair in study):
        from_args(study)  # raises where a word or a value is none


def test_links_lead_to_files() -> None:
    made = ("reference/", "records/")  # by docs/conf.py
    missing = [
        f"{page.name}: {target}"
        for page in PAGES
        for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text("utf-8"))
        if not (page.parent / target).exists() and not (page.parent.name == "docs" and target.startswith(made))
    ]
    assert not missing


def test_something_is_read() -> None:
    assert len(commands()) > 40 and {page for page, _ in commands()} >= {"README.md", "tutorial.md", "planning.md"}
