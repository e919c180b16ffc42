"""The order of the house (CONTRIBUTING.md): who imports whom, which file knows which library, and names of files."""

import ast
import graphlib
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
MAY = {"model": set(), "data": set(), "ablations": {"model", "data"}, "launch": {"ablations", "model", "data"},
       "eval": {"ablations", "model", "data"}}  # fmt: skip
MODULES = {f"{folder}.{path.stem}": path for folder in MAY for path in sorted((ROOT / folder).glob("*.py"))}


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
    against = [(one, other) for one, others in OURS.items() for other in others
               if folder[one] != folder[other] and folder[other] not in MAY[folder[one]]]  # fmt: skip
    assert not against


def test_no_file_imports_itself_by_way_of_others() -> None:
    tuple(graphlib.TopologicalSorter(OURS).static_order())  # raises CycleError, which names the circle


def test_a_foreign_library_is_known_where_contributing_says() -> None:
    known = {
        "deepspeed": {"launch.engine"}, "wandb": {"launch.log"}, "lm_eval": {"eval.harness"},
        "megatron": {"data.batches", "model.parallel"}, "sentencepiece": {"data.tokenizer"},
        "gigatoken": {"data.tokenizer"}, "datatrove": {"data.text", "data.dedup", "data.filters", "data.execute"},
        "transformers": {"model.hub", "eval.export"}, "ray": {"data.execute"},
    }  # fmt: skip
    used = {name: {each.split(".")[0] for each in imports(path)} for name, path in MODULES.items()}
    found = {library: {name for name, libraries in used.items() if library in libraries} for library in known}
    assert found == known
    said = (ROOT / "CONTRIBUTING.md").read_text()
    assert [name for names in known.values() for name in names if f"{name.replace('.', '/')}.py" not in said] == []


def test_every_file_that_is_named_is_there() -> None:
    texts = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("*/*.yaml"), *ROOT.glob("tests/**/*.py"),
             ROOT / "Makefile", *MODULES.values()]  # fmt: skip
    ours = "|".join(MAY)
    path = re.compile(rf"(?<![\w./-])(?:{ours}|tests|docs)/[\w/]+\.(?:py|md|yaml)")
    command = re.compile(rf"(?<=-m )(?:{ours})\.\w+")
    missing = set()
    for each in texts:
        text = each.read_text()
        named = {*path.findall(text), *(f"{name.replace('.', '/')}.py" for name in command.findall(text))}
        missing |= {(each.relative_to(ROOT).as_posix(), name) for name in named if not (ROOT / name).exists()}
    assert missing == set()
