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
MAY = {
    "model": set(),
    "data": set(),
    "ablations": {"model", "data"},
    "launch": {"ablations", "model", "data"},
    "eval": {"ablations", "model", "data"},
}
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path
    for folder in MAY
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


def test_imports_follow_the_arrows() -> None:
    folder = {name: name.split(".")[0] for name in MODULES}
    against = [
        (one, other)
        for one, others in OURS.items()
        for other in others
        if folder[one] != folder[other] and folder[other] not in MAY[folder[one]]
    ]
    assert not against


def test_no_file_imports_itself_by_way_of_others() -> None:
    tuple(graphlib.TopologicalSorter(OURS).static_order())  # raises CycleError, which names the circle


def test_a_foreign_library_is_known_where_contributing_says() -> None:
    known = {
        "deepspeed": {"launch.engine"},
        "wandb": {"launch.log"},
        "lm_eval": {"eval.tasks.harness"},
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
        for name in used - sys.stdlib_module_names - MAY.keys()
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
    ours = "|".join(MAY)
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
