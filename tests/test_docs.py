"""Every command that README and the manual show is accepted as it stands, and is run for real by a test or by CI; every
file that they link to is there."""

import ast
import importlib
import importlib.util
import itertools
import re
import shlex
import shutil
import subprocess
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch

from ablations.study import from_args

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *(ROOT / "docs").glob("*.md")])
PROGRAMS = "make bash sbatch cp git docker source touch scontrol wandb kill".split()
COMMAND = rf"(?:{'|'.join(PROGRAMS)}|(?:\.venv/bin/)?python -m) "
STUDIES = ("ablation", "plan", "show", "status", "report", "cram")  # commands whose words are those of a study
# Words that are not a study's, or whose value stands for a file or a machine of the reader's.
NOT_OF_A_STUDY = (
    "BESIDE BUDGET DATA EVAL_DATA EXTERNAL FORMAT GLUE NEED NODES NOISE NOISE_FLOOR ON PRICE RUNS SITE TO VERDICT WATCH"
).split()
# Of examples that add what is named.
MADE_UP = {
    "make ablation POS=uniform-alibi",
    "make ablation ARM=model.objective=second-half",
    "make ablation DATA=letters",
    "make ablation POS=alibi DATA=letters",
    "make data CORPUS=letters FROM=/path/to/files",
    "make plan STUDY=name",
}

# Where each command is run for real, at a size that takes seconds: a test, or a file of CI that has a line which the
# pattern fits too. The first pattern that fits a command counts.
RUN_BY = {
    r"make ablation .*ON=slurm": "tests/slurm/test_study.py::test_a_study_from_submission_to_report",
    r"make ablation .*EXPORT=1": "tests/test_during_training.py::test_a_study_is_judged_on_the_way_exported_and_drawn",
    r"make ablation .*eval_at=": "tests/test_during_training.py::test_a_study_is_judged_on_the_way_exported_and_drawn",
    r"make ablation .*TASKS=": "tests/test_hub_data.py::test_task_data_from_the_hub_and_a_run_judged_on_it",
    r"make ablation .*NOISE_FLOOR=": "tests/test_noise_floor.py::test_a_floor_that_was_registered_decides",
    r"make ablation .*tokenizer_kind=file": ".ci/commands",
    r"make ablation .*budget=10m": "tests/test_clock.py",
    r"make ablation .*MORE=auto": ".ci/commands",
    r"make ablation .*CROSS=1": ".ci/commands",
    r"make ablation .*LR=": ".ci/commands",
    r"make ablation .*DATA='": "tests/test_during_training.py::test_a_study_is_judged_on_the_way_exported_and_drawn",
    r"make ablation": ".ci/commands",
    r"make cram .*GLUE=": "tests/test_finetune.py::test_a_run_is_fine_tuned_and_what_is_there_is_kept",
    r"make cram": "tests/test_clock.py::test_a_run_ends_with_the_first_step_past_its_time_and_follows_the_clock",
    r"make plan .*ON=": "tests/test_plan_study.py::test_gpu_hours_add_up_and_shares_follow_the_budget",
    r"make plan BUDGET=": "tests/test_plan_decision.py::test_the_document_is_written_with_its_figures_and_sources",
    r"make plan": ".ci/commands",
    r"make ladder": "tests/test_plan_ladder.py::test_the_command_reads_runs_fits_and_counts_itself",
    r"make laws": "tests/test_plan_laws.py::test_the_command_fits_draws_and_refuses",
    r"make noise": "tests/test_noise_floor.py::test_a_floor_is_the_variance_of_its_runs_and_says_what_it_is_of",
    r"make report .*EXTERNAL=": "tests/test_external.py::test_rows_stand_beside_the_runs_and_nothing_is_tested",
    r"make report RUNS=": ".ci/commands",
    r"make (report|status|show|diff|card|export|help|loc|calibrate|clean)": ".ci/commands",
    r"make data CORPUS=\S+ FROM=": "tests/test_hub_data.py::test_the_pile_from_the_hub_is_the_same_as_from_disk",
    r"make data": "tests/test_hub_data.py::test_make_data_streams_from_the_hub",
    r"make eval-data": "tests/test_hub_data.py::test_task_data_from_the_hub_and_a_run_judged_on_it",
    r"make (check|docs|mutations|test-slurm|test)": ".ci/run",
    r"make bench( |$)": ".ci/commands",
    r"python -m ablations reference": ".ci/commands",
    r"python -m ablations\.plan\.(calibrate|reliability)": ".ci/commands",
    r"(\.venv/bin/)?python -m eval\.report": ".ci/commands",
    r"python -m eval\.finetune": "tests/test_finetune.py::test_an_external_checkpoint_is_fine_tuned_like_a_run",
    r"python -m tests\.test_golden": ".ci/commands",
    r"python -m data\.tokens": "tests/test_data_prepare.py::test_tokens_are_the_text",
    r"bash tests/gpu\.sh": "tests/test_gpu_slices.py::test_what_a_slice_runs_is_accepted",
    r"sbatch .*launch/run\.sh": "tests/slurm/test_run_sh.py::test_a_study_becomes_an_array_with_the_same_options",
    r"(cp|source) launch/": "tests/slurm/test_study.py::test_the_example_sites_say_what_sbatch_reads",
    r"scontrol requeue": "tests/slurm/test_run_sh.py::test_a_warned_task_saves_goes_back_alone_and_continues",
    r"touch runs/stop": "tests/slurm/test_run_sh.py::test_the_kill_switch_ends_what_runs_and_what_waits",
    r"kill -9": "tests/test_resume.py",
    r"git clone": ".ci/commands",
}
# What neither runs, and why.
NOT_RUN = {
    r"make ablation .*wandb=online": "an account and a network",
    r"make ablation .*processes=0": "more than one GPU",
    r"make (ablation|cram|plan) .*crammed-v2": "a day on a GPU; the studies of Cramming are planned by tests",
    r"make chaos": "many minutes; docs/reliability.md is its record, and tests/slurm has its faults one by one",
    r"make bench-gpu": "a GPU; tests/test_bench.py and tests/test_gpu_slices.py rehearse it",
    r"make bench-(data|eval)": "texts and task data that are not in this repository",
    r"make bench .*(nanogpt|mlm)": "minutes, or another project's checkout",
    r"python -m tests\.(bench_glue|test_glue_trainer)": "GLUE's data, which is not in this repository",
    r"wandb sync": "an account and a network",
}


def commands() -> list[tuple[str, str]]:
    """(page, command) of each command: lines of blocks, and code within text."""
    listed = []
    for page in PAGES:
        text = page.read_text("utf-8")
        lines = re.findall(rf"^(?:    )?({COMMAND}.+)$", text, re.M)
        inline = re.findall(rf"`({COMMAND}[^`\n]+)`", text)
        for command in [*lines, *inline]:
            command = re.split(r"\s+#|\s+&&|; |  +", command)[0].strip()
            if "..." not in command and "…" not in command and command not in MADE_UP:
                listed.append((page.name, command))
    return sorted(set(listed))


@pytest.mark.parametrize(
    ("command", "page"),
    sorted({command: page for page, command in commands()}.items()),  # each once, whatever the number of pages
    ids=lambda value: value.replace("/", "_"),
)
def test_a_command_that_is_shown_is_accepted(command: str, page: str) -> None:
    words = shlex.split(command)
    if "-m" in words[:2]:
        module = words[words.index("-m") + 1]
        assert importlib.util.find_spec(module), f"{page}: there is no module {module}"
    if words[0] != "make":
        return
    if shutil.which("make") and (ROOT / ".venv/ready").exists():  # what it would run; nothing is run
        dry = subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, capture_output=True, text=True)
        bare = len(words) == 2 and " needs " in dry.stderr  # the command alone is named, within a sentence
        assert dry.returncode == 0 or bare, f"{page}: {dry.stderr}"
    goal, *pairs = words[1:]
    study = [pair for pair in pairs if pair.partition("=")[0] not in NOT_OF_A_STUDY]
    if goal in STUDIES and any(pair.partition("=")[0] in ("STUDY", "POS", "ACT", "NORM", "ARM") for pair in study):
        from_args(study)  # raises where a word or a value is none


def place(command: str) -> str | None:
    """Where a command is run, by RUN_BY, or why it is not, by NOT_RUN; None where neither says."""
    return next((where for pattern, where in (NOT_RUN | RUN_BY).items() if re.match(pattern, command)), None)


def test_a_command_that_is_shown_is_run_by_a_test_or_by_ci() -> None:
    assert [f"{page}: {command}" for page, command in commands() if place(command) is None] == []


def shown_in_the_manual(name: str, module: str) -> Any:
    """The function or class `name` of an example in docs/extending.md, as if it stood in the file of `module`."""
    text = (ROOT / "docs/extending.md").read_text("utf-8")
    example = re.search(rf"```python\n( *(?:def|class) {name}\b.*?)```", text, re.S)
    assert example
    names = dict(vars(importlib.import_module(module)))
    exec(textwrap.dedent(example[1]), names)
    return names[name]


def test_the_task_that_the_manual_adds_makes_items() -> None:
    text = " ".join(f"{word} {word[::-1]}" for word in ("größer", "kleiner", "runder", "länger", "weiter") * 6) + "."
    pairs = itertools.islice(shown_in_the_manual("word_order", "eval.tasks.probes")([text]), 3)
    assert [len(item["choices"]) for _, item in pairs] == [2, 2, 2]


def test_the_variants_that_the_manual_adds_work_in_their_files() -> None:
    rows = torch.arange(18).view(2, 9)
    assert shown_in_the_manual("SecondHalf", "model.objective").batch(None, rows)[2].tolist() == [[4, 5, 6, 7]] * 2
    bias = shown_in_the_manual("UniformALiBi", "model.position").bias(None, *torch.tensor([0, 5, 2]))
    assert float(bias) == -1.5


def test_what_is_said_to_run_a_command_is_there() -> None:
    shown = [command for _, command in commands()]
    for pattern in NOT_RUN | RUN_BY:
        assert any(re.match(pattern, command) for command in shown), f"no page shows a command like {pattern}"
    for pattern, where in RUN_BY.items():
        file, _, test = where.partition("::")
        text = (ROOT / file).read_text("utf-8")
        if test:
            functions = {node.name for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)}
            assert test in functions, where
        elif file.startswith(".ci/"):
            lines = [re.sub(r"^\s*(\w+=\S+ )*(\.venv/bin/(?=python))?", "", line) for line in text.splitlines()]
            for command in (command for command in shown if place(command) == where and re.match(pattern, command)):
                program = command.removeprefix(".venv/bin/").split()[: 2 if command.startswith("make") else 3]
                like = [line for line in lines if line.split()[: len(program)] == program and re.match(pattern, line)]
                assert like or program[0] == "git", f"{file} has no line like {command}"


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
