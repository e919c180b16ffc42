"""What a corpus is: its specification, the files it is made of, and the documents in them."""
from __future__ import annotations

import ast
import gzip
import hashlib
import importlib.metadata
import io
import json
import re
from collections.abc import Iterator
from glob import glob, has_magic
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import yaml

CORPORA = Path(__file__).parent / "corpora"
FORMATS = (".jsonl", ".json", ".txt")  # each plain, .gz or .zst
EXTENSIONS = [form + packed for form in FORMATS for packed in ("", ".gz", ".zst")]
VALID_SHARE = 0.02  # of the documents of a corpus on disk; untuned
FIELDS = {"blend": {"blend"}, "packages": {"text", "minimum", "packages", "held_out", "sha256"}}
TEXTS = ("docstrings", "source")
TESTS = {"test", "tests", "testing", "conftest.py"}  # fixtures and generated cases: hardly prose
MACHINE = {"__config__.py", "_version.py", "version.py", "_distributor_init.py"}  # differ from build to build


class Unit(NamedTuple):
    """One file to read documents from."""
    path: Path
    name: str      # the same on every machine
    package: str   # its distribution, "" for a corpus on disk
    size: int      # bytes


def known() -> list[str]:
    return sorted(path.stem for path in CORPORA.glob("*.yaml"))


def load(corpus: str) -> dict[str, Any]:
    """The specification of a corpus: a name in data/corpora, or a file, folder or glob on disk.

    Returns {"name"} with {"blend": {name: weight}}, the weights adding up to 1; or {"files": [path, ...]}; or
    {"packages": {name: version}, "held_out": [name, ...], "text": of TEXTS, "minimum": characters}.
    Raises ValueError, naming what is allowed. Reads no document.
    """
    path = CORPORA / f"{corpus}.yaml"
    if "/" not in corpus and path.is_file():
        try:
            spec = _named(corpus, yaml.safe_load(path.read_text(encoding="utf-8")))
        except yaml.YAMLError as error:
            raise ValueError(f"{path}: {error}") from None
    elif corpus and (has_magic(corpus) or "/" in corpus or Path(corpus).exists()):
        spec = {"files": _files(corpus)}
    else:
        raise ValueError(f"unknown corpus {corpus!r}: known are {', '.join(known())}; "
                         f"or give a file, folder or glob of {', '.join(EXTENSIONS)}")
    return {"name": corpus, **spec}


def check(corpus: str) -> None:
    """Raise ValueError, naming what is allowed, when the corpus cannot be prepared. Takes milliseconds."""
    spec = load(corpus)
    for component in spec.get("blend", ()):
        check(component)
    for package, version in spec.get("packages", {}).items():
        _distribution(package, version)
    for path in spec.get("files", ())[:1]:  # a fault in another one is reported when it is read
        if next(_records(path, path.name), None) is None:
            raise ValueError(f"{path} holds no document")


def units(spec: dict[str, Any]) -> list[Unit]:
    """The files of a corpus in the order in which they are read: held-out packages first, then by name."""
    if "files" in spec:
        root = _root(spec["files"])
        return [Unit(path, path.relative_to(root).as_posix(), "", path.stat().st_size)
                for path in spec["files"]]
    found = []
    for package, version in spec["packages"].items():
        distribution = _distribution(package, version)
        for file in distribution.files or ():
            described = file.name == "METADATA" and spec["text"] == "docstrings"
            source = file.suffix == ".py" and not TESTS & set(file.parts) and file.name not in MACHINE
            if (source or described) and file.parts[0] != "..":
                path = Path(str(file.locate()))
                found.append(Unit(path, file.as_posix(), package, path.stat().st_size))
    return sorted(found, key=lambda unit: (unit.package not in spec["held_out"], unit.package, unit.name))


def documents(spec: dict[str, Any], unit: Unit) -> Iterator[tuple[str, str]]:
    """(id, text) of each document in one file, in file order. Raises ValueError naming file and line."""
    if "files" in spec:
        yield from _records(unit.path, unit.name)
    elif unit.path.suffix != ".py":
        # Headers of the description vary with the build tool; the text below them is the package's README.
        text = unit.path.read_text(encoding="utf-8").partition("\n\n")[2]
        if len(text) >= spec["minimum"]:
            yield f"{unit.package} README", text
    else:
        source = unit.path.read_bytes().decode("utf-8", "replace").replace("\r\n", "\n")
        found = _docstrings(source, unit.name) if spec["text"] == "docstrings" else [(unit.name, source)]
        yield from ((name, text) for name, text in found if len(text) >= spec["minimum"])


def held_out(spec: dict[str, Any], package: str, text: str) -> bool:
    """Whether a document is for validation: by its package, or on disk by the hash of its text."""
    if "packages" in spec:
        return package in spec["held_out"]
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < VALID_SHARE * 2**64


# Specifications

def _named(name: str, spec: Any) -> dict[str, Any]:
    where = f"{CORPORA.name}/{name}.yaml"
    kind = "blend" if isinstance(spec, dict) and "blend" in spec else "packages"
    if not isinstance(spec, dict) or kind not in spec or not isinstance(spec[kind], dict) or not spec[kind]:
        raise ValueError(f"{where}: needs a mapping `blend` or `packages`")
    if unknown := set(spec) - FIELDS[kind]:
        raise ValueError(f"{where}: unknown {sorted(unknown)}; allowed are {sorted(FIELDS[kind])}")
    if kind == "blend":
        return {"blend": _blend(where, spec["blend"])}
    if spec.get("text") not in TEXTS:
        raise ValueError(f"{where}: text is {spec.get('text')!r}; allowed are {', '.join(TEXTS)}")
    if wrong := [package for package, version in spec["packages"].items() if not isinstance(version, str)]:
        raise ValueError(f"{where}: the versions of {wrong} must be quoted")
    if missing := set(spec.setdefault("held_out", [])) - set(spec["packages"]):
        raise ValueError(f"{where}: held out, but not among the packages: {sorted(missing)}")
    if not spec["held_out"] or len(spec["held_out"]) == len(spec["packages"]):
        raise ValueError(f"{where}: held_out must name some of the packages, not none or all")
    if not isinstance(spec.get("sha256", ""), str):
        raise ValueError(f"{where}: sha256 must be quoted")
    if type(spec.setdefault("minimum", 0)) is not int:
        raise ValueError(f"{where}: minimum is a number of characters, not {spec['minimum']!r}")
    return spec


def _blend(where: str, weights: dict[str, Any]) -> dict[str, float]:
    split: dict[str, bool] = {}
    for name, weight in weights.items():
        if not isinstance(weight, int | float) or isinstance(weight, bool) or not weight > 0:
            raise ValueError(f"{where}: the weight of {name} is {weight!r}; weights are positive numbers")
        part = load(name)
        if "blend" in part:
            raise ValueError(f"{where}: {name} is itself a blend; name its components")
        for package in part.get("packages", ()):
            if split.setdefault(package, package in part["held_out"]) != (package in part["held_out"]):
                raise ValueError(f"{where}: {package} is held out in one component and trained on in another")
    total = sum(weights.values())
    return {name: weight / total for name, weight in weights.items()}


def _distribution(package: str, version: str) -> importlib.metadata.Distribution:
    advice = "install the pinned packages again: pip install -r requirements.txt"
    try:
        distribution = importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        raise ValueError(f"the corpus reads {package} {version}, not installed here; {advice}") from None
    if distribution.version != version:
        raise ValueError(f"the corpus reads {package} {version}, but {distribution.version} is installed; "
                         f"{advice}")
    return distribution


def _files(pattern: str) -> list[Path]:
    if "," in pattern:
        raise ValueError(f"a corpus on disk is one file, folder or glob, without a comma: {pattern!r}")
    root = Path(pattern)
    if root.is_dir():
        # A folder of OSCAR also holds checksums, which are no text.
        found = [path for path in root.rglob("*") if path.is_file() and _packing(path) is not None
                 and not path.name.endswith("sha256.txt")]
    else:
        found = [root] if root.is_file() else [Path(path) for path in glob(pattern, recursive=True)]
        found = [path for path in found if path.is_file()]
        if wrong := [path for path in found if _packing(path) is None]:
            raise ValueError(f"{wrong[0]}: unknown kind of file; allowed are {', '.join(EXTENSIONS)}")
    if not found:
        raise ValueError(f"no file matches {pattern!r}; looked for {', '.join(EXTENSIONS)}")
    return sorted(found, key=lambda path: path.as_posix())


# Files on disk

def _packing(path: Path) -> tuple[str, str] | None:
    """(".jsonl", ".gz") and the like; None for another kind of file."""
    match = re.fullmatch(r".+?(\.jsonl|\.json|\.txt)(\.gz|\.zst|)", path.name)
    return (match[1], match[2]) if match else None


def _root(files: list[Path]) -> Path:
    """The folder that all files lie in: names below it are the same on every machine."""
    root = files[0].parent
    while not all(path.is_relative_to(root) for path in files):
        root = root.parent
    return root


def _open(path: Path) -> TextIO:
    packed = _packing(path)
    if packed is None:
        raise ValueError(f"{path}: unknown kind of file; allowed are {', '.join(EXTENSIONS)}")
    raw: Any = open(path, "rb")
    if packed[1] == ".gz":
        raw = gzip.GzipFile(fileobj=raw)
    elif packed[1] == ".zst":
        import zstandard
        raw = zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True, closefd=True)
    return io.TextIOWrapper(raw, encoding="utf-8")


def _records(path: Path, name: str) -> Iterator[tuple[str, str]]:
    with _open(path) as file:
        numbered = _paragraphs(file) if _packing(path)[0] == ".txt" else _texts(file, path)  # type: ignore[index]
        try:
            for line, text in numbered:
                # JSON may escape half of a surrogate pair, which is no text: U+FFFD takes its place.
                text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
                if text.strip():
                    yield f"{name}:{line}", text
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: not UTF-8: {error}") from None
        except (EOFError, OSError, _zstd_error()) as error:
            raise ValueError(f"{path}: damaged or cut short: {error}") from None


def _zstd_error() -> type[Exception]:
    import zstandard
    return zstandard.ZstdError


def _texts(file: TextIO, path: Path) -> Iterator[tuple[int, str]]:
    """C4 and The Pile: a JSON object in each line, the document under "text"."""
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}:{number}: not JSON: {error}") from None
        if not isinstance(record, dict) or not isinstance(record.get("text"), str):
            fields = sorted(record) if isinstance(record, dict) else type(record).__name__
            raise ValueError(f'{path}:{number}: no string under "text"; the line has {fields}')
        yield number, record["text"]


def _paragraphs(file: TextIO) -> Iterator[tuple[int, str]]:
    """OSCAR v1: documents of one or more lines, separated by blank lines."""
    start = 1
    lines: list[str] = []
    for number, line in enumerate(file, 1):
        if line.strip():
            start = start if lines else number
            lines.append(line)
        elif lines:
            yield start, "".join(lines).rstrip("\n")
            lines = []
    if lines:
        yield start, "".join(lines).rstrip("\n")


# Docstrings

def _docstrings(source: str, name: str) -> Iterator[tuple[str, str]]:
    """(qualified name, text) of a module and of each of its functions and classes, with their members."""
    try:
        module = ast.parse(source)
    except (SyntaxError, ValueError):
        return  # templates and examples of broken code
    path = name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    if text := ast.get_docstring(module):
        yield path, f"{path}\n\n{text}\n"
    for node in module.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            parts = list(_described(node, path))
            if parts:
                yield f"{path}.{node.name}", "\n\n".join(parts) + "\n"


def _described(node: ast.AST, path: str) -> Iterator[str]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        path = f"{path}.{node.name}"
        if text := ast.get_docstring(node):
            yield f"{path}\n\n{text}"
        for child in node.body if isinstance(node, ast.ClassDef) else ():
            yield from _described(child, path)
