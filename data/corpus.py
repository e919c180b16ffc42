"""The specifications of corpora: reads and checks them, and decides which documents of a corpus are held out for
validation."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from glob import has_magic
from pathlib import Path
from typing import Any

from data import readers
from data.disk import locked, write_text
from data.documents import read_documents
from data.readers import EXTENSIONS, SourceFile
from data.sources import MissingData as MissingData
from data.sources import (
    check_file_name,
    common_folder,
    data_files,
    installed_distribution,
    matching_files,
    source_files,
)
from data.strict_yaml import read_yaml

CORPORA = Path(__file__).parent / "corpora"
VALID_SHARE = 0.02  # share of the documents of a corpus of files that is held out for validation; untuned
VALID_BYTES = 1e9  # bytes of compressed files that are held out at most; larger corpora hold out less; untuned
MIN_SHARE = 1e-9  # the smallest weight of a component in a blend: below, no sample would be drawn from it; untuned
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


def load_specification(corpus: str, store: Path | None = None, blend: str = "") -> dict[str, Any]:
    """The specification of a corpus, as a dictionary. No document is read.

    Args:
        corpus: a name in data/corpora, possibly with a variant, as in oscar:fr; a .yaml file; or a file, folder or glob
            of text.
        store: the folder of prepared data, in which `record_folder` has noted where the files of named corpora are.
            None: these notes are not used.
        blend: the name of the blend that has this corpus as a component, for messages. A component must not be a blend
            itself. "": the corpus is loaded on its own.

    Returns {"name": `corpus`} and further keys, which depend on the kind of corpus:
        a blend: "blend", {component: weight}, with weights that add up to 1; and "alpha", None or a number. With a
            number the weights are preliminary: the final ones depend on the sizes of the components, which are known
            after preparation.
        files: "files", a list of paths if the files are on this machine, else of globs; "layout", one of
            `readers.LAYOUTS`; "root", the folder of the files, only if they are on this machine; "left_out", a sentence
            for each kind of file in the folder that is not read; and other entries of the .yaml file.
        packages: "packages", {name: version}; "held_out", names of packages; "text", one of TEXT_KINDS; "minimum", the
            fewest characters of a document.

    Raises:
        ValueError: the corpus is unknown or its specification is wrong; the message names what is allowed.
    """
    check_file_name(corpus)
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
    """The components of a blend, {component: weight}; of any other corpus {corpus: 1}. `store`: as for
    `load_specification`."""
    return load_specification(corpus, store).get("blend", {corpus: 1.0})


def check(corpus: str, store: Path | None = None) -> None:
    """Check within milliseconds that a corpus can be prepared: its specification, its packages, and whether its first
    file has a document. Raises ValueError if it cannot; the message names what is allowed. `corpus`, `store`: as for
    `load_specification`."""
    spec = load_specification(corpus, store)
    for component in spec.get("blend", ()):
        check(component, store)
    for package, version in spec.get("packages", {}).items():
        installed_distribution(package, version)
    if "root" in spec:  # a fault in another file is reported when that file is read
        first = source_files(spec)[0]
        if (
            next(read_documents({**spec, "where": {}}, first), None) is None
        ):  # documents that `where` selects may come later
            raise ValueError(f"{first.path} holds no document")


def record_folder(corpus: str, folder: str, store: Path) -> None:
    """Record, in the store of prepared data, the folder on this machine that has the files of a corpus. `corpus`: a
    name in data/corpora; `folder`: the folder; `store`: the folder of prepared data. Raises ValueError where the files
    are not in the folder, or the corpus is not read from files."""
    name = corpus.partition(":")[0]
    spec = load_specification(name)
    if "layout" not in spec or has_magic(name) or "/" in name:
        corpora_of_files = [known for known in corpus_names() if "layout" in load_specification(known)]
        raise ValueError(f"{corpus} is not read from files of its own: FROM is for {', '.join(corpora_of_files)}")
    if not Path(folder).is_dir():
        raise ValueError(f"FROM={folder} is no folder")
    matching_files(Path(folder), load_specification(corpus)["files"])
    path = store / "sources.json"
    with locked(store / "sources.json.lock"):
        write_text(path, json.dumps(_recorded_folders(store) | {name: str(Path(folder).resolve())}, indent=1))


def missing_files(corpora: Iterable[str], store: Path | None = None) -> list[str]:
    """A sentence for each incomplete series of numbered files on this machine, such as the series of data-3-of-8.jsonl.
    The files that exist are read nevertheless. `corpora`, `store`: the corpora with the files, and the store, as for
    `load_specification`."""
    specs = {name: load_specification(name, store) for corpus in corpora for name in components(corpus, store)}
    return [
        f"{name}: {sentence}; what is missing is not read"
        for name, spec in specs.items()
        if "root" in spec
        for sentence in readers.missing_numbered_files(file.name for file in source_files(spec))
    ]


def held_out_share(spec: dict[str, Any], files: list[SourceFile]) -> float:
    """The share of a corpus' documents that is held out for validation: the "share" of the specification, else
    VALID_SHARE. Of large files less is held out, so that at most about VALID_BYTES are. `spec`: the specification of
    the corpus, from `load_specification`; `files`: its files."""
    return spec.get("share", min(VALID_SHARE, VALID_BYTES / max(1, sum(file.size for file in files))))


def is_held_out(spec: dict[str, Any], package: str, text: str, share: float = VALID_SHARE) -> bool:
    """Whether a document is held out for validation. In a corpus of packages this depends on the document's package. In
    a corpus of files it depends on the hash of the text, so that about the given share of the documents is held out.

    Args:
        spec: the specification of the corpus, from `load_specification`.
        package: the package of the document; "" in a corpus of files.
        text: the text of the document.
        share: the share of documents to hold out; not used in a corpus of packages.
    """
    if "packages" in spec:
        return package in spec["held_out"]
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2**64


# Specifications


def _checked_specification(path: Path, spec: dict[str, Any], variant: str) -> dict[str, Any]:
    """Check the specification of a corpus and fill in defaults. Returns the dictionary that `load_specification`
    returns, without "name". Raises ValueError if the specification is wrong, or has no variants though one is
    requested.

    Args:
        path, spec: the YAML file of the specification, and its content.
        variant: the requested variant, such as "fr" in oscar:fr; "": the default.
    """
    spec_name = f"{path.parent.name}/{path.name}"
    kind = next((kind for kind in FIELDS_BY_KIND if kind in spec), None)
    if kind is None or not isinstance(spec[kind], dict | (list if kind != "packages" else dict)) or not spec[kind]:
        raise ValueError(f"{spec_name}: needs a mapping `blend` or `packages`, or a list `files`")
    if unknown := set(spec) - FIELDS_BY_KIND[kind]:
        raise ValueError(f"{spec_name}: unknown {sorted(unknown)}; allowed are {sorted(FIELDS_BY_KIND[kind])}")
    if variant and "variant" not in spec:
        raise ValueError(f"{spec_name} has no variants, so no {variant!r}")
    spec = {key: value for key, value in spec.items() if key not in DESCRIPTIVE_FIELDS}
    if kind == "blend":
        return {
            "blend": _checked_blend(spec_name, spec["blend"], spec.get("alpha"), path.parent),
            "alpha": spec.get("alpha"),
        }
    if kind == "files":
        return _checked_file_corpus(spec_name, spec, variant)
    if spec.get("text") not in TEXT_KINDS:
        raise ValueError(f"{spec_name}: text is {spec.get('text')!r}; allowed are {', '.join(TEXT_KINDS)}")
    if wrong := [package for package, version in spec["packages"].items() if not isinstance(version, str)]:
        raise ValueError(f"{spec_name}: the versions of {wrong} must be quoted")
    if not _is_list_of_strings(spec.setdefault("held_out", [])):
        raise ValueError(f"{spec_name}: held_out is a list of names of packages")
    if missing := set(spec["held_out"]) - set(spec["packages"]):
        raise ValueError(f"{spec_name}: held out, but not among the packages: {sorted(missing)}")
    if not spec["held_out"] or len(spec["held_out"]) == len(spec["packages"]):
        raise ValueError(f"{spec_name}: held_out must name some of the packages, not none or all")
    if not isinstance(spec.get("sha256", ""), str):
        raise ValueError(f"{spec_name}: sha256 must be quoted")
    if type(spec.setdefault("minimum", 0)) is not int:
        raise ValueError(f"{spec_name}: minimum is a number of characters, not {spec['minimum']!r}")
    return spec


def _checked_file_corpus(spec_name: str, spec: dict[str, Any], variant: str) -> dict[str, Any]:
    """Check the specification of a corpus of files and fill in defaults, as `_checked_specification` does for all
    kinds. `spec_name`: the name of the specification file, for messages; `variant`: the text that replaces {} in the
    globs; "": the default variant of the specification."""
    layout = spec.setdefault("layout", "auto")
    if layout not in readers.LAYOUTS:
        raise ValueError(f"{spec_name}: layout is {layout!r}; allowed are {', '.join(readers.LAYOUTS)}")
    if "hub" in spec and not re.fullmatch(r"[0-9a-f]{40}", str(spec.get("revision"))):
        raise ValueError(f"{spec_name}: a corpus on the hub needs a revision: the 40 digits of a commit")
    if not _is_list_of_strings(spec["files"]) or any(
        Path(glob).is_absolute() or not glob.strip() for glob in spec["files"]
    ):
        raise ValueError(f"{spec_name}: files is a list of globs below the repository or folder")
    for key in ("hub", "path", "text", "variant"):
        if not isinstance(spec.get(key, ""), str):
            raise ValueError(
                f"{spec_name}: {key} is {str(spec[key])[:60]!r}, and must be text, in quotes where in doubt"
            )
    if not isinstance(spec.get("where", {}), dict) or not all(
        isinstance(values, list) for values in spec.get("where", {}).values()
    ):
        raise ValueError(f"{spec_name}: where is a mapping such as meta.pile_set_name: [Github]")
    share = spec.get("share", VALID_SHARE)
    if not isinstance(share, int | float) or isinstance(share, bool) or not 0 < share < 1:
        raise ValueError(
            f"{spec_name}: share is {share!r}; it is the part of the documents that is held out, such as 0.02"
        )
    chosen = variant or spec.pop("variant", "")
    spec.pop("variant", None)
    return spec | {"files": [pattern.replace("{}", chosen) for pattern in spec["files"]]}


def _is_list_of_strings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _folder_of_corpus(name: str, spec: dict[str, Any], store: Path | None) -> Path | None:
    """The folder on this machine with the files of a named corpus: the folder that `record_folder` noted in the store,
    else the "path" of the specification. None if there is neither, as for a corpus on the hub.

    `name`, `spec`: the corpus and its specification; `store`: the folder of prepared data, None for none.
    """
    folders = _recorded_folders(store) if store else {}
    return Path(folders[name]) if name in folders else Path(spec["path"]) if "path" in spec else None


def _recorded_folders(store: Path) -> dict[str, str]:
    """The folders that `record_folder` has noted in the store: {name of a corpus: path of the folder with its files}.
    Raises ValueError where the file with these notes is damaged."""
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


def _checked_blend(spec_name: str, components: Any, alpha: Any, folder: Path) -> dict[str, float]:
    """Check the components of a blend. Returns {component: weight}, with weights that add up to 1.

    Args:
        spec_name: the name of the specification file, for messages.
        components: {name: weight}; or, with `alpha`, a list of names.
        alpha: None; or an exponent: the weights shall be proportional to the components' sizes ** alpha. The sizes are
            known after preparation only, so that equal weights are returned.
        folder: the folder of the specification file; a component may be a file in that folder.

    Raises:
        ValueError: a component, a weight or `alpha` is wrong.
    """
    if isinstance(components, list) != (alpha is not None):
        raise ValueError(
            f"{spec_name}: a blend maps components to weights; or it lists them and alpha gives the weights: "
            "size ** alpha, 1 for shares by tokens, 0 for equal ones"
        )
    if alpha is not None and not (type(alpha) in (int, float) and 0 <= alpha <= 1):
        raise ValueError(f"{spec_name}: alpha is {alpha!r}; it lies between 0 and 1")
    held_out_of_package: dict[str, bool] = {}
    weights: dict[str, float] = {}
    for name, weight in components.items() if isinstance(components, dict) else [(name, 1) for name in components]:
        if not isinstance(name, str):
            raise ValueError(f"{spec_name}: a component is the name or path of a corpus, and not {str(name)[:60]!r}")
        if not isinstance(weight, int | float) or isinstance(weight, bool) or not weight > 0:
            raise ValueError(f"{spec_name}: the weight of {name} is {str(weight)[:60]!r}; weights are positive numbers")
        if folder != CORPORA and (folder / name).exists():
            name = str(folder / name)  # beside a .yaml file of one's own
        component = load_specification(name, blend=spec_name)
        if name in weights:
            raise ValueError(f"{spec_name}: {name} is there twice")
        for package in component.get("packages", ()):
            held_out = package in component["held_out"]
            if held_out_of_package.setdefault(package, held_out) != held_out:
                raise ValueError(f"{spec_name}: {package} is held out in one component and trained on in another")
        weights[name] = weight
    total = sum(weights.values())
    shares = {name: weight / total for name, weight in weights.items()}
    if negligible := [name for name, share in shares.items() if share < MIN_SHARE]:
        raise ValueError(f"{spec_name}: the weight of {negligible[0]} is less than {MIN_SHARE:g} of all: leave it out")
    return shares
