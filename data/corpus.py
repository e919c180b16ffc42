"""What a corpus is: its specification, checked; and which of its documents are held out."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from glob import has_magic
from pathlib import Path
from typing import Any

from data import readers
from data.disk import locked, write_whole
from data.documents import documents
from data.readers import EXTENSIONS, SourceFile
from data.sources import MissingData as MissingData
from data.sources import check_name, common_folder, data_files, distribution, matching_files, source_files
from data.strict_yaml import read_yaml

CORPORA = Path(__file__).parent / "corpora"
VALID_SHARE = 0.02  # share of the documents of a corpus of files that is held out for validation; untuned
VALID_BYTES = 1e9  # a corpus whose compressed files exceed VALID_BYTES / VALID_SHARE holds out a smaller share; untuned
MIN_SHARE = 1e-9  # of a blend, below which not one sample would be drawn from a component; untuned
DESCRIPTIVE_FIELDS = {"licence", "published"}  # fields that do not change what is read
FIELDS_BY_KIND = {
    "blend": {"blend", "alpha"} | DESCRIPTIVE_FIELDS,
    "packages": {"text", "minimum", "packages", "held_out", "sha256"},
    "files": {"files", "hub", "revision", "path", "layout", "text", "where", "variant", "share"} | DESCRIPTIVE_FIELDS,
}
TEXT_KINDS = ("docstrings", "source")


def corpus_names() -> list[str]:
    """The names of all corpora that data/corpora defines."""
    return sorted(path.stem for path in CORPORA.glob("*.yaml"))


def load(corpus: str, store: Path | None = None, blend: str = "") -> dict[str, Any]:
    """The specification of a corpus. No document is read.

    Args:
        corpus: a name in data/corpora, possibly with a variant, as in oscar:fr; a .yaml file; or a file, folder or glob
            of text.
        store: the folder of prepared data, which has the folders of named corpora that `record_folder` wrote there;
            None: these are not used.
        blend: the specification file of the blend that has the corpus as a component, "" where there is none. A
            component must not be a blend itself.

    Returns {"name": ...} together with the keys of one kind of corpus:
        a blend: "blend", {name: weight}, with weights that add up to 1; and "alpha", None or a number. With a number
            the weights are still preliminary: they follow from the sizes of the corpora, which preparation finds.
        files: "files", a list of paths or globs; "layout", one of `readers.LAYOUTS`; "root", the folder of the files,
            where they are on this machine; "left_out", a sentence for each kind of file in a folder that is not read;
            and other entries of the .yaml file.
        packages: "packages", {name: version}; "held_out", names of packages; "text", one of TEXT_KINDS; "minimum", the
            fewest characters of a document.

    Raises:
        ValueError: the corpus is unknown or its specification is wrong; the message names what is allowed.
    """
    check_name(corpus)
    name, _, variant = corpus.partition(":")
    path = None if "/" in name else CORPORA / f"{name}.yaml"
    if corpus.endswith(".yaml") and Path(corpus).is_file():
        path, name, variant = Path(corpus), corpus, ""
    if path and path.is_file():
        content = read_yaml(path)
        if blend and "blend" in content:  # said before its components are read, of which it may be one itself
            raise ValueError(f"{blend}: {corpus} is itself a blend; name its components")
        spec = _checked_specification(path, content, variant)
        if "files" in spec and (root := _folder_of_corpus(name, spec, store)):
            spec = {**spec, "files": matching_files(root, spec["files"]), "root": root}
    elif corpus and (has_magic(corpus) or "/" in corpus or Path(corpus).exists()):
        files, left_out = data_files(corpus)
        spec = {"files": files, "layout": "auto", "root": common_folder(files), "left_out": left_out}
    else:
        raise ValueError(
            f"unknown corpus {corpus[:200]!r}: known are {', '.join(corpus_names())}; "
            f"or give a file, folder or glob of {', '.join(EXTENSIONS)}"
        )
    return {"name": corpus, **spec}


def components(corpus: str, store: Path | None = None) -> dict[str, float]:
    """The corpora that a corpus consists of, {component: weight}; {corpus: 1} where it is no blend. `store`: as for
    `load`."""
    return load(corpus, store).get("blend", {corpus: 1.0})


def check(corpus: str, store: Path | None = None) -> None:
    """Check, within milliseconds, that a corpus can be prepared. `corpus`, `store`: as for `load`. Raises ValueError
    where the corpus cannot be prepared; the message names what is allowed."""
    spec = load(corpus, store)
    for component in spec.get("blend", ()):
        check(component, store)
    for package, version in spec.get("packages", {}).items():
        distribution(package, version)
    if "root" in spec:  # a fault in another file is reported when it is read
        first = source_files(spec)[0]
        if next(documents({**spec, "where": {}}, first), None) is None:  # the selected ones may be in other files
            raise ValueError(f"{first.path} holds no document")


def record_folder(corpus: str, folder: str, store: Path) -> None:
    """Record in the store of prepared data that the files of the named corpus are below `folder`. Raises ValueError
    where the files are not there, or the corpus is not read from files."""
    name = corpus.partition(":")[0]
    spec = load(name)
    if "layout" not in spec or has_magic(name) or "/" in name:
        raise ValueError(f"{corpus} is not read from files of its own: FROM is for {', '.join(_corpora_of_files())}")
    if not Path(folder).is_dir():
        raise ValueError(f"FROM={folder} is no folder")
    matching_files(Path(folder), load(corpus)["files"])
    path = store / "sources.json"
    with locked(store / "sources.json.lock"):
        write_whole(path, json.dumps(_recorded_folders(store) | {name: str(Path(folder).resolve())}, indent=1))


def missing_files(corpora: Iterable[str], store: Path | None = None) -> list[str]:
    """A sentence for each series of numbered files of the corpora, such as "...3-of-8...", of which some are missing on
    this machine. The files that exist are read all the same. `store`: as for `load`."""
    specs = {name: load(name, store) for corpus in corpora for name in components(corpus, store)}
    return [
        f"{name}: {sentence}; what is missing is not read"
        for name, spec in specs.items()
        if "root" in spec
        for sentence in readers.missing_numbered_files(file.name for file in source_files(spec))
    ]


def valid_share(spec: dict[str, Any], files: list[SourceFile]) -> float:
    """The share of the documents of a corpus of files that is held out for validation: the "share" of its
    specification, if it has one; else VALID_SHARE, or less where the files are large. `spec`: from `load`; `files`: the
    files of the corpus."""
    return spec.get("share", min(VALID_SHARE, VALID_BYTES / max(1, sum(file.size for file in files))))


def is_held_out(spec: dict[str, Any], package: str, text: str, share: float = VALID_SHARE) -> bool:
    """Whether a document is held out for validation. In a corpus of packages this depends on the document's `package`;
    in a corpus of files on the hash of its `text`, such that about a share `share` of the documents is held out.
    `spec`: the specification of the corpus, from `load`."""
    if "packages" in spec:
        return package in spec["held_out"]
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2**64


# Specifications


def _checked_specification(path: Path, spec: dict[str, Any], variant: str) -> dict[str, Any]:
    """Check the specification of a corpus, as read from a YAML file, and fill in defaults. Returns it in the form that
    `load` returns, without "name". `variant`: the requested variant, such as "fr" in oscar:fr; "" for the default.
    Raises ValueError where the specification is wrong, or the corpus has no variants and `variant` is not ""."""
    where = f"{path.parent.name}/{path.name}"
    kind = next((kind for kind in FIELDS_BY_KIND if kind in spec), None)
    if kind is None or not isinstance(spec[kind], dict | (list if kind != "packages" else dict)) or not spec[kind]:
        raise ValueError(f"{where}: needs a mapping `blend` or `packages`, or a list `files`")
    if unknown := set(spec) - FIELDS_BY_KIND[kind]:
        raise ValueError(f"{where}: unknown {sorted(unknown)}; allowed are {sorted(FIELDS_BY_KIND[kind])}")
    if variant and "variant" not in spec:
        raise ValueError(f"{where} has no variants, so no {variant!r}")
    spec = {key: value for key, value in spec.items() if key not in DESCRIPTIVE_FIELDS}
    if kind == "blend":
        return {
            "blend": _checked_blend(where, spec["blend"], spec.get("alpha"), path.parent),
            "alpha": spec.get("alpha"),
        }
    if kind == "files":
        return _checked_file_corpus(where, spec, variant)
    if spec.get("text") not in TEXT_KINDS:
        raise ValueError(f"{where}: text is {spec.get('text')!r}; allowed are {', '.join(TEXT_KINDS)}")
    if wrong := [package for package, version in spec["packages"].items() if not isinstance(version, str)]:
        raise ValueError(f"{where}: the versions of {wrong} must be quoted")
    if not _is_texts(spec.setdefault("held_out", [])):
        raise ValueError(f"{where}: held_out is a list of names of packages")
    if missing := set(spec["held_out"]) - set(spec["packages"]):
        raise ValueError(f"{where}: held out, but not among the packages: {sorted(missing)}")
    if not spec["held_out"] or len(spec["held_out"]) == len(spec["packages"]):
        raise ValueError(f"{where}: held_out must name some of the packages, not none or all")
    if not isinstance(spec.get("sha256", ""), str):
        raise ValueError(f"{where}: sha256 must be quoted")
    if type(spec.setdefault("minimum", 0)) is not int:
        raise ValueError(f"{where}: minimum is a number of characters, not {spec['minimum']!r}")
    return spec


def _checked_file_corpus(where: str, spec: dict[str, Any], variant: str) -> dict[str, Any]:
    """Check the specification of a corpus of files, fill in defaults, and return it, as `_checked_specification` does.
    `where`: the name of the specification file, for messages; `variant`: the text put for {} in the
    globs; "": the variant that the specification names as its default."""
    layout = spec.setdefault("layout", "auto")
    if layout not in readers.LAYOUTS:
        raise ValueError(f"{where}: layout is {layout!r}; allowed are {', '.join(readers.LAYOUTS)}")
    if "hub" in spec and not re.fullmatch(r"[0-9a-f]{40}", str(spec.get("revision"))):
        raise ValueError(f"{where}: a corpus on the hub needs a revision: the 40 digits of a commit")
    if not _is_texts(spec["files"]) or any(Path(glob).is_absolute() or not glob.strip() for glob in spec["files"]):
        raise ValueError(f"{where}: files is a list of globs below the repository or folder")
    for key in ("hub", "path", "text", "variant"):
        if not isinstance(spec.get(key, ""), str):
            raise ValueError(f"{where}: {key} is {str(spec[key])[:60]!r}, and must be text, in quotes where in doubt")
    if not isinstance(spec.get("where", {}), dict) or not all(
        isinstance(values, list) for values in spec.get("where", {}).values()
    ):
        raise ValueError(f"{where}: where is a mapping such as meta.pile_set_name: [Github]")
    share = spec.get("share", VALID_SHARE)
    if not isinstance(share, int | float) or isinstance(share, bool) or not 0 < share < 1:
        raise ValueError(f"{where}: share is {share!r}; it is the part of the documents that is held out, such as 0.02")
    chosen = variant or spec.pop("variant", "")
    spec.pop("variant", None)
    return spec | {"files": [pattern.replace("{}", chosen) for pattern in spec["files"]]}


def _is_texts(value: Any) -> bool:
    """Whether a value of a specification is a list of texts."""
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _corpora_of_files() -> list[str]:
    """The names of the corpora in data/corpora that are read from files."""
    return [name for name in corpus_names() if "layout" in load(name)]


def _folder_of_corpus(name: str, spec: dict[str, Any], store: Path | None) -> Path | None:
    """The folder with the files of a named corpus on this machine: the one that `record_folder` wrote into the store,
    else "path" in the specification; None where neither names a folder, and the files are read from the hub."""
    folders = _recorded_folders(store) if store else {}
    return Path(folders[name]) if name in folders else Path(spec["path"]) if "path" in spec else None


def _recorded_folders(store: Path) -> dict[str, str]:
    """The folder of each corpus as `record_folder` noted it in the store, {name of a corpus: path of its folder}.
    Raises ValueError where the file with them is damaged."""
    path = store / "sources.json"
    try:
        folders = json.loads(path.read_text("utf-8")) if path.exists() else {}
    except (ValueError, RecursionError):
        folders = None
    if not isinstance(folders, dict) or not all(isinstance(folder, str) for folder in folders.values()):
        raise ValueError(
            f"{path} is damaged: remove it, and say again where the files of corpora lie: "
            "make data CORPUS=name FROM=folder"
        )
    return folders


def _checked_blend(where: str, components: Any, alpha: Any, folder: Path) -> dict[str, float]:
    """Check the components of a blend, and return {component: weight} with weights that add up to 1. Where `alpha`, the
    exponent of the components' sizes, is a number, the weights are equal: the sizes are known only after preparation.

    Args:
        where: the name of the specification file, for messages.
        components: {name: weight}; or, with `alpha`, a list of names.
        folder: the folder of the specification file, in which components may lie too.

    Raises:
        ValueError: a component, a weight or `alpha` is wrong.
    """
    if isinstance(components, list) != (alpha is not None):
        raise ValueError(
            f"{where}: a blend maps components to weights; or it lists them and alpha gives the weights: "
            "size ** alpha, 1 for shares by tokens, 0 for equal ones"
        )
    if alpha is not None and not (type(alpha) in (int, float) and 0 <= alpha <= 1):
        raise ValueError(f"{where}: alpha is {alpha!r}; it lies between 0 and 1")
    split: dict[str, bool] = {}
    weights: dict[str, float] = {}
    for name, weight in components.items() if isinstance(components, dict) else [(name, 1) for name in components]:
        if not isinstance(name, str):
            raise ValueError(f"{where}: a component is the name or path of a corpus, and not {str(name)[:60]!r}")
        if not isinstance(weight, int | float) or isinstance(weight, bool) or not weight > 0:
            raise ValueError(f"{where}: the weight of {name} is {str(weight)[:60]!r}; weights are positive numbers")
        if folder != CORPORA and (folder / name).exists():
            name = str(folder / name)  # beside a .yaml file of one's own
        part = load(name, blend=where)
        if name in weights:
            raise ValueError(f"{where}: {name} is there twice")
        for package in part.get("packages", ()):
            if split.setdefault(package, package in part["held_out"]) != (package in part["held_out"]):
                raise ValueError(f"{where}: {package} is held out in one component and trained on in another")
        weights[name] = weight
    total = sum(weights.values())
    shares = {name: weight / total for name, weight in weights.items()}
    if nothing := [name for name, share in shares.items() if share < MIN_SHARE]:
        raise ValueError(f"{where}: the weight of {nothing[0]} is less than {MIN_SHARE:g} of all: leave it out")
    return shares
