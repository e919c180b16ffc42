"""The order of the house (CONTRIBUTING.md): who imports whom, which file knows which library, and names of files."""

import ast
import graphlib
import os
import re
import shlex
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from ablations.words import HELP

ROOT = Path(__file__).parents[1]
MAY = {  # a package -> the packages that its files may import
    "model": {"model.kernels", "model.proofs"},
    "model.kernels": set(),
    "model.proofs": {"model"},
    "data": set(),
    "ablations": {"ablations.document", "ablations.plan", "data", "model"},
    "ablations.document": {"ablations"},
    "ablations.plan": {"ablations", "ablations.document", "data", "model"},
    "launch": {"ablations", "ablations.plan", "data", "model"},
    "launch.slurm": {"ablations", "launch"},
    "eval": {"ablations", "data", "eval.statistics", "eval.tasks", "model"},
    "eval.statistics": set(),
    "eval.finetune": {"ablations", "eval", "model"},
    "eval.tasks": {"ablations", "data", "eval.statistics", "model"},
    "eval.report.reading": {"ablations", "ablations.plan", "eval.finetune", "eval.statistics", "eval.tasks", "model"},
    "eval.report.comparison": {"ablations", "eval.report.reading", "eval.statistics"},
    "eval.report.sections": {
        "ablations",
        "ablations.document",
        "ablations.plan",
        "eval.report.comparison",
        "eval.report.reading",
        "eval.statistics",
        "eval.tasks",
    },
    "eval.report": {
        "ablations",
        "ablations.document",
        "eval.report.comparison",
        "eval.report.reading",
        "eval.report.sections",
        "eval.statistics",
    },
}
STARTED = {  # a file -> the commands that it starts in processes of their own: arrows that no import shows
    "launch/run.sh": {"launch.local", "launch.slurm.attempts", "launch.slurm.submit", "launch.train"},
    "launch/local.py": {
        "data.prepare",
        "eval",
        "eval.export",
        "eval.exportable",
        "eval.finetune",
        "eval.report",
        "eval.report.undecided",
        "eval.tasks.probes",
        "launch.train",
    },
    "launch/slurm/submit.py": {"eval", "eval.export", "eval.report"},
    "ablations/plan/checks.py": {"eval", "eval.exportable", "eval.finetune"},
    "eval/evaluation.py": {"eval"},  # itself, on each GPU
}
FOLDERS = sorted({package.split(".")[0] for package in MAY})
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path
    for folder in FOLDERS
    for path in sorted((ROOT / folder).glob("**/*.py"))
}


def imports(path: Path) -> set[str]:
    """Everything that a file names in an import, wherever it stands in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


OURS = {name: imports(path) & MODULES.keys() for name, path in MODULES.items()}


def package(module: str) -> str:
    return ".".join(MODULES[module].parent.relative_to(ROOT).parts)


def test_imports_follow_the_arrows() -> None:
    assert {package(name) for name in MODULES} <= MAY.keys()
    arrows = {(one, other) for one, others in OURS.items() for other in others if package(one) != package(other)}
    assert sorted(arrow for arrow in arrows if package(arrow[1]) not in MAY[package(arrow[0])]) == []


def started(path: Path) -> set[str]:
    """The modules that a file starts with `-m`: in lists of words or the arguments of a call, and, in a text for a
    shell, after the place of the Python."""
    if path.suffix == ".sh":
        code = "\n".join(line for line in path.read_text().splitlines() if not line.lstrip().startswith("#"))
        return set(re.findall(r"\"\$python\" -m ([\w.]+)", code))
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        words = node.elts if isinstance(node, ast.List) else node.args if isinstance(node, ast.Call) else []
        values = [word.value if isinstance(word, ast.Constant) else None for word in words]
        found |= {module for option, module in zip(values, values[1:], strict=False) if option == "-m" and module}
        if isinstance(node, ast.JoinedStr):
            text = "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
            found |= set(re.findall(r"\{\} -m ([\w.]+)", text))
    return found


def test_commands_that_are_started_are_declared() -> None:
    files = [path for folder in FOLDERS for kind in ("*.py", "*.sh") for path in (ROOT / folder).rglob(kind)]
    starts = {path.relative_to(ROOT).as_posix(): started(path) for path in files}
    assert {name: modules for name, modules in starts.items() if modules} == STARTED
    assert [module for modules in STARTED.values() for module in modules if not (ROOT / as_file(module)).exists()] == []


def test_no_file_imports_itself_by_way_of_others() -> None:
    tuple(graphlib.TopologicalSorter(OURS).static_order())  # raises CycleError, which names the circle


def test_what_others_import_from_eval_is_there_and_costs_nothing_until_then() -> None:
    code = (
        "import sys, eval; assert not {name for name in sys.modules if name.startswith(('lm_eval', 'torch', 'eval.'))}"
    )
    code += "; from eval import mirror; assert mirror.names(['piqa']) == ['piqa'] and 'lm_eval' not in sys.modules"
    code += "; from eval import harness, location; assert harness.definitions(['piqa'])['piqa'].source.split"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    with pytest.raises(ImportError):
        from eval import nonesuch  # noqa: F401


def test_a_foreign_library_is_known_where_contributing_says() -> None:
    known = {
        "deepspeed": {"launch.deepspeed_setup"},
        "wandb": {"launch.log"},
        "lm_eval": {"eval.tasks.harness", "eval.tasks.definitions", "eval.tasks.scorer"},
        "megatron": {"model.parallel"},  # data.batches loads a file of it
        "sentencepiece": {"data.sentencepiece_model"},
        "gigatoken": {"data.byte_bpe"},
        "datatrove": {"data.text", "data.dedup", "data.filters", "data.execute"},
        "transformers": {"model.hub", "eval.export", "eval.export_tokenizer", "eval.finetune.classifier"},
        "ray": {"data.execute"},
    }
    used = {name: {each.split(".")[0] for each in imports(path)} for name, path in MODULES.items()}
    found = {library: {name for name, libraries in used.items() if library in libraries} for library in known}
    assert found == known
    said = (ROOT / "CONTRIBUTING.md").read_text()
    assert [name for names in known.values() for name in names if f"{name.replace('.', '/')}.py" not in said] == []


def test_every_library_that_is_imported_is_declared_and_in_bounds() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    said = map(Requirement, [*project["dependencies"], *project["optional-dependencies"]["ray"]])
    declared = {canonicalize_name(each.name): each.specifier for each in said}
    owners = metadata.packages_distributions()  # {"yaml": ["PyYAML"], ...} of what is installed
    used = {each.split(".")[0] for path in MODULES.values() for each in imports(path)}
    found = {
        name: {canonicalize_name(owner) for owner in owners.get(name, [name])} & declared.keys()
        for name in used - sys.stdlib_module_names - {*FOLDERS}
    }
    assert [name for name, owner in found.items() if not owner] == []
    installed = {canonicalize_name(each.name): each.version for each in metadata.distributions()}
    assert [name for name, bounds in declared.items() if name in installed and installed[name] not in bounds] == []


def as_file(module: str) -> str:
    """What `python -m` runs: eval.export is eval/export.py, the package eval.report is eval/report/__main__.py."""
    name = module.replace(".", "/")
    return f"{name}/__main__.py" if (ROOT / name).is_dir() else f"{name}.py"


def test_every_file_that_is_named_is_there() -> None:
    texts = [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/*.md"),
        *ROOT.glob("*/*.yaml"),
        *ROOT.glob("tests/**/*.py"),
        ROOT / "Makefile",
        *MODULES.values(),
    ]
    ours = "|".join(FOLDERS)
    path = re.compile(rf"(?<![\w./-])(?:{ours}|tests|docs)/[\w/]+\.(?:py|md|yaml)")
    command = re.compile(rf"(?<=-m )(?:{ours})(?:\.\w+)+")
    missing = set()
    for each in texts:
        text = each.read_text()
        named = {*path.findall(text), *(as_file(name) for name in command.findall(text))}
        missing |= {(each.relative_to(ROOT).as_posix(), name) for name in named if not (ROOT / name).exists()}
    assert missing == set()


def made(*words: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """What `make` with these words would run."""
    env = os.environ | (environment or {})
    env = {name: value for name, value in env.items() if not name.startswith(("MAKE", "MFLAGS"))}  # of `make test`
    command = ["make", "-n", "-o", ".venv/ready", *words]
    return subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True)


def test_no_conflict_of_a_merge_was_committed() -> None:
    markers = re.compile("^(<{7} |>{7} )", re.M)
    for pattern in ("*.md", "*.yaml", "*.sh", "Makefile", "*/*.md", "*/*.yaml", "*/*/*.yaml"):
        for path in ROOT.glob(pattern):
            assert not markers.search(path.read_text()), path


def test_make_takes_what_its_command_line_says_and_nothing_from_the_environment() -> None:
    names = "OUT SET WORKERS FROM KIND OPTIONS POS ARGS ON NODES SITE EVAL_DATA FORMAT".split()
    elsewhere = {name: "elsewhere" for name in names}

    def typed(*words: str) -> list[str]:
        return shlex.split(made(*words, environment=elsewhere).stdout.replace("\\\n", " "))[3:]

    assert typed("data", "CORPUS=c4") == ["c4", "--store", "runs/data"] and typed("ablation", "ACT=geglu") == [
        "ACT=geglu"
    ]
    settings = "SET=data.dedup=exact data.quality=c4"
    data = typed("data", "CORPUS=c4", "FROM=/a folder", "OUT=o", settings)
    assert data == ["c4", "--from", "/a folder", "--store", "o/data", "--set", "data.dedup=exact", "data.quality=c4"]
    assert sorted(typed("ablation", "POS=alibi", "OUT=o", settings)) == sorted(["POS=alibi", "OUT=o", settings])
    assert typed("report", "RUNS=a b", "BESIDE=all", "EXTERNAL=c") == ["RUNS=a b", "BESIDE=all", "EXTERNAL=c"]
    fetched = ["--to", "runs/eval-data", "--tasks", "gsm8k", "--shots", "5"]
    assert typed("eval-data", "TASKS=gsm8k", "SHOTS=5") == fetched
    assert typed("ablation", "POS=alibi", "ON=slurm") == ["--nodes", "1", "--site", "", "POS=alibi"]
    assert typed("mutations") == []


@pytest.mark.parametrize(
    "words, why",
    [
        (["cram", "ON=slurm"], "make cram does not use ON. It takes ACT "),
        (["ablation", "POS=alibi", "BUDGET=10m"], "make ablation does not use BUDGET"),
        (["POS=alibi", "RUNS=a"], "make ablation does not use RUNS"),
        (["status", "POS=alibi", "NODES=4"], "make status does not use NODES"),
        (["data", "CORPUS=c4", "POS=alibi"], "make data does not use POS. It takes CORPUS "),
        (["help", "POS=alibi"], "make help does not use POS. It takes no words"),
        (["ablation", "POSS=alibi"], "make ablation does not use POSS"),
        (["cram", "BUDGET="], "BUDGET= is empty"),
        (["POS=alibi", "OUT="], "OUT= is empty: give a value, of those that make help names, or leave it out"),
        (["noise", "SEEDS= "], "SEEDS= is empty"),
        (["POS=alibi", "ON="], "ON= is empty"),
        (
            ["status", "SIZE=nano", "BUDGET=9m"],
            "SET=train.budget=9m, and STUDY=cram SEEDS=1 unless other values were given",
        ),
        (["report", "SIZE=nano", "BUDGET=18 weeks, 52x8 A100-80"], "In place of the BUDGET of make cram: SET=train."),
        (["plan", "POS=alibi", "SIZES=nano,mini"], "In place of the SIZES of make ladder: SIZE= one of them"),
        (["cram", "BUDGET=18 weeks, 52x8 A100-80"], "is no time by the wall clock such as 10m or 24h; machines for"),
        (["glue"], "make glue needs RUN="),
        (["export", "TO=x"], "make export needs RUN="),
        (["export", "RUN=x"], "make export needs TO="),
        (["data"], "make data needs CORPUS="),
        (["laws"], "make laws needs RUNS="),
    ],
)
def test_make_says_which_words_a_command_takes_and_which_it_lacks(words: list[str], why: str) -> None:
    done = made(*words, environment={"RUN": "elsewhere", "TO": "elsewhere", "CORPUS": "elsewhere"})
    assert done.returncode == 2 and why in done.stderr and "python" not in done.stdout


def test_every_command_of_make_says_its_words_and_help_names_it() -> None:
    text = (ROOT / "Makefile").read_text()
    commands = {name for line in re.findall(r"^\.PHONY: (.*)$", text, re.M) for name in line.split()}
    wordless = {"calibrate", "check", "docs", "loc", "help", "clean"}
    known = {*re.findall(r"^TAKES_([\w-]+) :=", text, re.M), *re.findall(r"foreach goal,([\w -]+),", text)[0].split()}
    assert commands == known | wordless
    names = re.search(r"^NAMES := (.*)$", text, re.M)
    assert names and set(names[1].split()) == HELP.keys()
    header = text.partition("\n\n")[0]
    assert {"cram", "glue", "plan", "report", "ladder", "laws", "diff"} <= set(re.findall(r"make ([\w-]+)", header))
    assert "BUDGET=" in header
