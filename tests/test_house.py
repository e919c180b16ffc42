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

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
MAY = {  # a package -> the packages that its files may import
    "model": {"model.kernels"},
    "model.kernels": set(),
    "data": set(),
    "ablations": {"ablations.plan", "data", "model"},
    "ablations.plan": {"ablations", "data", "model"},
    "launch": {"ablations", "ablations.plan", "data", "model"},
    "launch.slurm": {"ablations", "launch"},
    "eval": {"ablations", "data", "eval.statistics", "eval.tasks", "model"},
    "eval.statistics": set(),
    "eval.finetune": {"ablations", "eval", "model"},
    "eval.tasks": {"ablations", "data", "eval", "eval.statistics", "model"},
    "eval.report": {
        "ablations",
        "ablations.plan",
        "eval",
        "eval.report.sections",
        "eval.statistics",
        "eval.tasks",
        "model",
    },
    "eval.report.sections": {
        "ablations",
        "ablations.plan",
        "eval",
        "eval.report",
        "eval.statistics",
        "eval.tasks",
        "model",
    },
}
STARTED = {  # a file -> the commands that it starts in processes of their own: arrows that no import shows
    "launch/run.sh": {"launch.local", "launch.slurm.attempts", "launch.slurm.submit", "launch.train"},
    "launch/local.py": {"data.prepare", "eval", "eval.finetune", "eval.report", "launch.train"},
    "launch/slurm/submit.py": {"eval", "eval.report"},
    "eval/judge.py": {"eval"},  # itself, on each GPU
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


def test_a_foreign_library_is_known_where_contributing_says() -> None:
    known = {
        "deepspeed": {"launch.engine"},
        "wandb": {"launch.log"},
        "lm_eval": {"eval.tasks.harness", "eval.tasks.definitions", "eval.tasks.scorer"},
        "megatron": {"data.batches", "model.parallel"},
        "sentencepiece": {"data.tokenizer"},
        "gigatoken": {"data.tokenizer"},
        "datatrove": {"data.text", "data.dedup", "data.filters", "data.execute"},
        "transformers": {"model.hub", "eval.export", "eval.finetune.classifier"},
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


def test_make_takes_what_its_command_line_says_and_nothing_from_the_environment() -> None:
    def make(**given: str) -> list[list[str]]:
        words = [f"{name}={value}" for name, value in given.items()]
        env = os.environ | {name: "elsewhere" for name in ("OUT", "SET", "WORKERS", "FROM", "KIND", "OPTIONS", "POS")}
        env = {name: value for name, value in env.items() if not name.startswith(("MAKE", "MFLAGS"))}  # of `make test`
        command = ["make", "-n", "-o", ".venv/ready", *words]
        said = [
            subprocess.run([*command, target], env=env, cwd=ROOT, capture_output=True, text=True).stdout
            for target in ("data", "ablation")
        ]
        return [shlex.split(each.replace("\\\n", " ")) for each in said]

    data, ablation = make(CORPUS="c4", ACT="geglu")
    assert data[3:] == ["c4", "--store", "runs/data"] and ablation[3:] == ["ACT=geglu"]
    data, ablation = make(CORPUS="c4", FROM="/a folder", OUT="o", SET="data.dedup=exact data.quality=c4", POS="alibi")
    assert data[3:8] == ["c4", "--from", "/a folder", "--store", "o/data"]
    assert data[8:] == ["--set", "data.dedup=exact", "data.quality=c4"]
    assert sorted(ablation[3:]) == sorted(["POS=alibi", "OUT=o", "SET=data.dedup=exact data.quality=c4"])
