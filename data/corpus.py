"""What a corpus is: its specification, the files it is made of, and the documents in them."""

from __future__ import annotations

import ast
import contextlib
import fcntl
import hashlib
import importlib.metadata
import json
import os
import re
import uuid
from collections.abc import Iterable, Iterator
from glob import glob, has_magic
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from data import readers
from data.readers import EXTENSIONS, Ledger

CORPORA = Path(__file__).parent / "corpora"
VALID_SHARE = 0.02  # of the documents of a corpus on disk; untuned
VALID_BYTES = 1e9  # of files, packed: larger corpora hold out a smaller share; untuned
ABOUT = {"licence", "published"}  # for people: not part of what is read
FIELDS = {
    "blend": {"blend", "alpha"} | ABOUT,
    "packages": {"text", "minimum", "packages", "held_out", "sha256"},
    "files": {"files", "hub", "revision", "path", "layout", "text", "where", "variant", "checksums"} | ABOUT,
}
TEXTS = ("docstrings", "source")
TESTS = {"test", "tests", "testing", "conftest.py"}  # fixtures and generated cases: hardly prose
MACHINE = {"__config__.py", "_version.py", "version.py", "_distributor_init.py"}  # differ from build to build


class Missing(LookupError):
    """What was asked for is not prepared."""


class Unit(NamedTuple):
    """One file to read documents from."""

    path: Path | str  # a str is an address on the hub
    name: str  # the same on every machine
    package: str  # its distribution, "" for a corpus of files
    size: int  # bytes
    sha256: str = ""  # of the content, where the hub says it; or git's hash, of 40 digits


def known() -> list[str]:
    return sorted(path.stem for path in CORPORA.glob("*.yaml"))


def load(corpus: str, store: Path | None = None) -> dict[str, Any]:
    """The specification of a corpus: a name in data/corpora, a .yaml file, or a file, folder or glob of text.

    A name may carry a variant, as in oscar:fr. `store` knows where the files of named corpora lie (see `locate`).

    Returns {"name"} with {"blend": {name: weight}, "alpha"}: the weights add up to 1, or, where alpha is a number, are
    still to be found from the sizes; or {"files": [path, ...] or globs, "layout", ...}; or
    {"packages": {name: version}, "held_out": [name, ...], "text": of TEXTS, "minimum": characters}.
    Raises ValueError, naming what is allowed. Reads no document.
    """
    name, _, variant = corpus.partition(":")
    path = None if "/" in name else CORPORA / f"{name}.yaml"
    if corpus.endswith(".yaml") and Path(corpus).is_file():
        path, name, variant = Path(corpus), corpus, ""
    if path and path.is_file():
        try:
            spec = _named(path, yaml.safe_load(path.read_text(encoding="utf-8")), variant)
        except yaml.YAMLError as error:
            raise ValueError(f"{path}: {error}") from None
        if "files" in spec and (root := _location(name, spec, store)):
            spec = {**spec, "files": _below(root, spec), "root": root}
    elif corpus and (has_magic(corpus) or "/" in corpus or Path(corpus).exists()):
        spec = {"files": _files(corpus), "layout": "auto"}
        spec["root"] = _root(spec["files"])
    else:
        raise ValueError(
            f"unknown corpus {corpus!r}: known are {', '.join(known())}; "
            f"or give a file, folder or glob of {', '.join(EXTENSIONS)}"
        )
    return {"name": corpus, **spec}


def components(corpus: str, store: Path | None = None) -> dict[str, float]:
    """{component: weight} of a blend; another corpus is its own only one."""
    return load(corpus, store).get("blend", {corpus: 1.0})


def check(corpus: str, store: Path | None = None) -> None:
    """Raise ValueError, naming what is allowed, when the corpus cannot be prepared. Takes milliseconds."""
    spec = load(corpus, store)
    for component in spec.get("blend", ()):
        check(component, store)
    for package, version in spec.get("packages", {}).items():
        _distribution(package, version)
    if "root" in spec:  # a fault in another file is reported when it is read
        unit = units(spec)[0]
        if next(documents(spec, unit), None) is None:
            raise ValueError(f"{unit.path} holds no document")


def locate(corpus: str, folder: str, store: Path) -> None:
    """Remember in the store that the files of a named corpus lie below `folder`."""
    name = corpus.partition(":")[0]
    spec = load(name)
    if "layout" not in spec or has_magic(name) or "/" in name:
        raise ValueError(f"{corpus} is not read from files of its own: FROM is for {', '.join(_of_files())}")
    if not Path(folder).is_dir():
        raise ValueError(f"FROM={folder} is no folder")
    _below(Path(folder), load(corpus))
    path = store / "sources.json"
    with alone(store / "sources.json.lock"):
        known = json.loads(path.read_text()) if path.exists() else {}
        write_whole(path, json.dumps(known | {name: str(Path(folder).resolve())}, indent=1))


def incomplete(corpora: Iterable[str], store: Path | None = None) -> list[str]:
    """A sentence for each family of numbered files on this machine that lacks some: what is there is read as it is."""
    specs = {name: load(name, store) for corpus in corpora for name in components(corpus, store)}
    return [
        f"{name}: {sentence}; what is missing is not read"
        for name, spec in specs.items()
        if "root" in spec
        for sentence in readers.incomplete(unit.name for unit in units(spec))
    ]


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """Other processes, of this machine or another, wait here until this one is through."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as lock:
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX)  # unlike flock's, not inherited by children
        except OSError as error:  # as Lustre says that was mounted without `flock`
            raise ValueError(
                f"{path.parent} cannot be locked ({error.strerror}): choose an OUT elsewhere, "
                "or have this file system mounted with locks"
            ) from None
        yield


def write_whole(path: Path, text: str) -> None:
    """The whole file or none of it, also where several processes of several machines write it, or power is lost."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{uuid.uuid4().hex}")
    with open(partial, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def units(spec: dict[str, Any], store: Path | None = None, ask: bool = True) -> list[Unit]:
    """The files of a corpus in the order in which they are read: held-out packages first, then by name.

    The hub is asked once what a commit holds, which never changes: the store remembers it. Raises Missing where it does
    not and `ask` is false; ValueError when the hub cannot be asked or has no such files.
    """
    if "root" in spec:
        return [
            Unit(path, path.relative_to(spec["root"]).as_posix(), "", path.stat().st_size) for path in spec["files"]
        ]
    if "files" in spec:
        return _on_hub(spec, store, ask)
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


def documents(spec: dict[str, Any], unit: Unit, ledger: Ledger | None = None) -> Iterator[tuple[str, str, dict]]:
    """(id, text, labels) of each document in one file, in file order.

    What is wrong with the file goes to the ledger; without one it raises ValueError naming file and line.
    """
    ledger = ledger or Ledger()
    if "files" in spec:
        yield from readers.documents(
            unit.path,
            unit.name,
            spec["layout"],
            ledger,
            spec.get("text", ""),
            spec.get("where") or {},
            unit.size,
            unit.sha256,
        )
        return
    assert isinstance(unit.path, Path)
    labels = {"package": unit.package}
    if unit.path.suffix != ".py":
        # Headers of the description vary with the build tool; the text below them is the package's README.
        text = unit.path.read_text(encoding="utf-8").partition("\n\n")[2]
        if len(text) >= spec["minimum"]:
            yield f"{unit.package} README", text, labels
    else:
        source = unit.path.read_bytes().decode("utf-8", "replace").replace("\r\n", "\n")
        found = _docstrings(source, unit.name) if spec["text"] == "docstrings" else [(unit.name, source)]
        yield from ((name, text, labels) for name, text in found if len(text) >= spec["minimum"])


def valid_share(units: list[Unit]) -> float:
    """The share of the documents of a corpus of files that is held out."""
    return min(VALID_SHARE, VALID_BYTES / max(1, sum(unit.size for unit in units)))


def held_out(spec: dict[str, Any], package: str, text: str, share: float = VALID_SHARE) -> bool:
    """Whether a document is for validation: by its package, or of files by the hash of its text."""
    if "packages" in spec:
        return package in spec["held_out"]
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2**64


def checksums(spec: dict[str, Any]) -> dict[str, str] | None:
    """{name of a unit: sha256} from the lists beside the files, as OSCAR v1 has them; None where there is none.

    Raises ValueError for a file that a list names and that is not there.
    """
    if "root" not in spec:
        return None
    found: dict[str, str] = {}
    lists = {path.parent: sorted(path.parent.glob("*sha256*.txt")) for path in spec["files"]}
    for folder, paths in sorted(lists.items()):
        for line in (line for path in paths for line in path.read_text().splitlines() if line.strip()):
            # OSCAR writes name, then hash; sha256sum the hash first
            words = line.replace("*", " ").split()
            name, sha = (words[1], words[0]) if re.fullmatch(r"[0-9a-f]{64}", words[0]) else (words[0], words[-1])
            if not (folder / name).is_file():
                raise ValueError(f"{paths[0]} lists {name}, which is not there: the download is not complete")
            found[(folder / name).relative_to(spec["root"]).as_posix()] = sha
    return found if any(lists.values()) else None


# Specifications


def _named(path: Path, spec: Any, variant: str) -> dict[str, Any]:
    where = f"{path.parent.name}/{path.name}"
    kind = next((kind for kind in FIELDS if isinstance(spec, dict) and kind in spec), None)
    if kind is None or not isinstance(spec[kind], dict | (list if kind != "packages" else dict)) or not spec[kind]:
        raise ValueError(f"{where}: needs a mapping `blend` or `packages`, or a list `files`")
    if unknown := set(spec) - FIELDS[kind]:
        raise ValueError(f"{where}: unknown {sorted(unknown)}; allowed are {sorted(FIELDS[kind])}")
    if variant and "variant" not in spec:
        raise ValueError(f"{where} has no variants, so no {variant!r}")
    spec = {key: value for key, value in spec.items() if key not in ABOUT}
    if kind == "blend":
        return {"blend": _blend(where, spec["blend"], spec.get("alpha"), path.parent), "alpha": spec.get("alpha")}
    if kind == "files":
        return _of_files_checked(where, spec, variant)
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


def _of_files_checked(where: str, spec: dict[str, Any], variant: str) -> dict[str, Any]:
    layout = spec.setdefault("layout", "auto")
    if layout not in readers.LAYOUTS:
        raise ValueError(f"{where}: layout is {layout!r}; allowed are {', '.join(readers.LAYOUTS)}")
    if "hub" in spec and not re.fullmatch(r"[0-9a-f]{40}", str(spec.get("revision"))):
        raise ValueError(f"{where}: a corpus on the hub needs a revision: the 40 digits of a commit")
    if not isinstance(spec["files"], list) or not all(isinstance(pattern, str) for pattern in spec["files"]):
        raise ValueError(f"{where}: files is a list of globs below the repository or folder")
    if not isinstance(spec.get("where", {}), dict):
        raise ValueError(f"{where}: where is a mapping such as meta.pile_set_name: [Github]")
    chosen = variant or spec.pop("variant", "")
    spec.pop("variant", None)
    return spec | {"files": [pattern.replace("{}", chosen) for pattern in spec["files"]]}


def _of_files() -> list[str]:
    return [name for name in known() if "layout" in load(name)]


def _location(name: str, spec: dict[str, Any], store: Path | None) -> Path | None:
    """The folder where the files of a named corpus lie on this machine; None: they are read from the hub."""
    sources = store / "sources.json" if store else None
    noted = json.loads(sources.read_text()) if sources and sources.exists() else {}
    return Path(noted[name]) if name in noted else Path(spec["path"]) if "path" in spec else None


def _below(root: Path, spec: dict[str, Any]) -> list[Path]:
    found = {path for pattern in spec["files"] for path in root.glob(pattern) if path.is_file()}
    if not found:
        raise ValueError(f"no file below {root} matches {' or '.join(spec['files'])}")
    return sorted(found, key=lambda path: path.as_posix())


def _on_hub(spec: dict[str, Any], store: Path | None, ask: bool) -> list[Unit]:
    if "hub" not in spec:
        raise ValueError(
            f"{spec['name']} is on no hub: get its files ({', '.join(spec['files'])}), and say once where "
            f"they lie: make data CORPUS={spec['name']} FROM=folder"
        )
    repo, revision = spec["hub"], spec["revision"]
    key = hashlib.sha256(json.dumps([repo, revision, spec["files"]]).encode()).hexdigest()[:8]
    noted = store / "hub" / f"{repo.replace('/', '__')}-{key}.json" if store else None
    if noted and noted.exists():
        found = json.loads(noted.read_text())
    elif not ask:
        raise Missing(f"the files of {repo} were not listed yet")
    else:
        found = _listed(spec["name"], repo, revision, spec["files"])
        if noted:
            write_whole(noted, json.dumps(found))
    return [Unit(f"hf://datasets/{repo}@{revision}/{name}", name, "", size, sha) for name, size, sha in found]


def _listed(corpus: str, repo: str, revision: str, patterns: list[str]) -> list[tuple[str, int, str]]:
    """(path, bytes, hash) of each file on the hub that matches, by path. Only the folders of the patterns are listed:
    C4's repository has a hundred languages more than its English."""
    from fnmatch import fnmatch

    from huggingface_hub import HfApi
    from huggingface_hub.errors import EntryNotFoundError
    from huggingface_hub.hf_api import RepoFile

    api, found = HfApi(), {}
    try:
        api.dataset_info(repo, revision=revision, expand=["sha"])  # fails at once, where listing would try for long
        for folder, deep in sorted({_folder_of(pattern) for pattern in patterns}):
            try:
                for entry in api.list_repo_tree(repo, folder, recursive=deep, revision=revision, repo_type="dataset"):
                    if isinstance(entry, RepoFile) and any(fnmatch(entry.path, pattern) for pattern in patterns):
                        sha = entry.lfs.sha256 if entry.lfs else entry.blob_id
                        found[entry.path] = (entry.path, entry.size, sha)
            except EntryNotFoundError:
                continue  # another pattern may have its folder
    except Exception as error:  # the library raises its own, httpx's and the operating system's
        raise ValueError(
            f"{corpus}: the hub cannot be read ({type(error).__name__}: {' '.join(str(error).split())}). "
            f"Where its files are here already: make data CORPUS={corpus} FROM=folder"
        ) from None
    if not found:
        raise ValueError(
            f"no file of {repo} at {revision} matches {' or '.join(patterns)}. Where its files are here "
            f"already: make data CORPUS={corpus} FROM=folder"
        )
    return sorted(found.values())


def _folder_of(pattern: str) -> tuple[str, bool]:
    """The folder that a glob begins with, and whether it goes deeper than that."""
    *folders, _ = pattern.split("/")
    plain = next((number for number, part in enumerate(folders) if has_magic(part)), len(folders))
    return "/".join(folders[:plain]), plain < len(folders)


def _blend(where: str, asked: Any, alpha: Any, folder: Path) -> dict[str, float]:
    """{component: weight}; equal weights where alpha will draw them from the sizes."""
    if isinstance(asked, list) != (alpha is not None):
        raise ValueError(
            f"{where}: a blend maps components to weights; or it lists them and alpha gives the weights: "
            "size ** alpha, 1 for shares by tokens, 0 for equal ones"
        )
    if alpha is not None and not (type(alpha) in (int, float) and 0 <= alpha <= 1):
        raise ValueError(f"{where}: alpha is {alpha!r}; it lies between 0 and 1")
    split: dict[str, bool] = {}
    weights: dict[str, float] = {}
    for name, weight in asked.items() if isinstance(asked, dict) else [(name, 1) for name in asked]:
        if not isinstance(weight, int | float) or isinstance(weight, bool) or not weight > 0:
            raise ValueError(f"{where}: the weight of {name} is {weight!r}; weights are positive numbers")
        if folder != CORPORA and (folder / name).exists():
            name = str(folder / name)  # beside a .yaml file of one's own
        part = load(name)
        if "blend" in part:
            raise ValueError(f"{where}: {name} is itself a blend; name its components")
        if name in weights:
            raise ValueError(f"{where}: {name} is there twice")
        for package in part.get("packages", ()):
            if split.setdefault(package, package in part["held_out"]) != (package in part["held_out"]):
                raise ValueError(f"{where}: {package} is held out in one component and trained on in another")
        weights[name] = weight
    total = sum(weights.values())
    return {name: weight / total for name, weight in weights.items()}


def _distribution(package: str, version: str) -> importlib.metadata.Distribution:
    advice = "install the pinned packages again: pip install -r requirements.txt"
    try:
        distribution = importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        raise ValueError(f"the corpus reads {package} {version}, not installed here; {advice}") from None
    if distribution.version != version:
        raise ValueError(f"the corpus reads {package} {version}, but {distribution.version} is installed; {advice}")
    return distribution


def _files(pattern: str) -> list[Path]:
    if "," in pattern:
        raise ValueError(f"a corpus on disk is one file, folder or glob, without a comma: {pattern!r}")
    root = Path(pattern)
    if root.is_dir():
        # A folder of OSCAR also holds checksums, which are no text.
        found = [
            path
            for path in root.rglob("*")
            if path.is_file() and readers.packing(path.name) is not None and not path.name.endswith("sha256.txt")
        ]
    else:
        found = [root] if root.is_file() else [Path(path) for path in glob(pattern, recursive=True)]
        found = [path for path in found if path.is_file()]
        if wrong := [path for path in found if readers.packing(path.name) is None]:
            raise ValueError(f"{wrong[0]}: unknown kind of file; allowed are {', '.join(EXTENSIONS)}")
    if not found:
        raise ValueError(f"no file matches {pattern!r}; looked for {', '.join(EXTENSIONS)}")
    return sorted(found, key=lambda path: path.as_posix())


def _root(files: list[Path]) -> Path:
    """The folder that all files lie in: names below it are the same on every machine."""
    root = files[0].parent
    while not all(path.is_relative_to(root) for path in files):
        root = root.parent
    return root


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
