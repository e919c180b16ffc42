"""The files that a corpus is read from: installed packages, files on this machine, or files on the Hugging Face hub."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import os
import re
from collections.abc import Iterable, Iterator
from glob import escape, glob, has_magic
from pathlib import Path, PurePosixPath
from typing import Any

from data import readers
from data.disk import write_text
from data.readers import EXTENSIONS, SourceFile

TEST_FOLDERS = {"test", "tests", "testing", "conftest.py"}  # not read: fixtures and generated cases are hardly prose
BUILD_FILES = {"__config__.py", "_version.py", "version.py", "_distributor_init.py"}  # not read: builds differ in them
NOTE_NAMES = re.compile(  # names, before the extension, of files that are notes about the data beside them
    r"(readme|licen[cs]e|copying|notice|authors?|citation|contributing|change(log|s)|history|requirements|manifest"
    r"|dataset_infos?|.*sha256.*|.*md5.*|.*checksums?)([._-].*)?",
    re.IGNORECASE,
)
# names of files that look like data in a form that is not read: other extensions, compressions, unfinished downloads
UNREAD_DATA = re.compile(
    r".+\.(ndjson|jsonlines|jsonl|json|txt|parquet)(\.(gz|gzip|zst|zstd|bz2|xz|lz4|br|zip|7z))?"
    r"(\.(part|partial|incomplete|crdownload|aria2))?",
    re.IGNORECASE,
)
HIDDEN_PREFIXES = (".", "_")  # files and folders whose names begin so are no data; _: as for Spark and pyarrow
NOTE_SHARE = 0.1  # the largest share of a folder's bytes in files of another format that are taken for notes; untuned
NAMED_FILES = 5  # files that a message names


class MissingData(LookupError):
    """Prepared data is missing, and the caller did not allow preparing it."""


def source_files(spec: dict[str, Any], store: Path | None = None, ask_hub: bool = True) -> list[SourceFile]:
    """The files of a corpus that is not a blend, in the order in which they are read, which is by name. In a corpus of
    packages, the files of held-out packages come first.

    Args:
        spec: the specification of the corpus, from `corpus.load_specification`.
        store: the folder of prepared data, in which lists of files on the Hugging Face hub are kept. None: they are not
            kept.
        ask_hub: whether the hub may be asked for a list that is not in the store.

    Raises:
        MissingData: the list is not in the store, and `ask_hub` is false.
        ValueError: the hub does not answer or has no such files; a package is not installed in the version of the
            specification; or the name of a file is not allowed (see `check_file_name`).
    """
    if "root" in spec:
        for path in spec["files"]:
            check_file_name(str(path))
        return [
            SourceFile(path, path.relative_to(spec["root"]).as_posix(), "", path.stat().st_size)
            for path in spec["files"]
        ]
    if "files" in spec:
        return _hub_files(spec, store, ask_hub)
    files = []
    for package, version in spec["packages"].items():
        for file in installed_distribution(package, version).files or ():
            is_readme = file.name == "METADATA" and spec["text"] == "docstrings"
            is_source = file.suffix == ".py" and not TEST_FOLDERS & set(file.parts) and file.name not in BUILD_FILES
            if (is_source or is_readme) and file.parts[0] != "..":
                path = Path(str(file.locate()))
                files.append(SourceFile(path, file.as_posix(), package, path.stat().st_size))
    return sorted(files, key=lambda file: (file.package not in spec["held_out"], file.package, file.name))


def check_file_name(name: str) -> None:
    """Raise ValueError where the name of a file has control characters, such as a line end, or is not UTF-8. A name
    that is not UTF-8 can neither be printed nor written as JSON."""
    try:
        name.encode()
    except UnicodeEncodeError:
        raise ValueError(f"the name {os.fsencode(name)!r} is not UTF-8: rename the file or folder") from None
    if re.search(r"[\x00-\x1f\x7f-\x9f]", name):
        raise ValueError(f"the name {name!r} has control characters: rename the file or folder")


@functools.cache
def installed_distribution(package: str, version: str) -> importlib.metadata.Distribution:
    """The metadata of an installed package. They are read once in a process, since reading those of all packages of a
    corpus takes a tenth of a second. Raises ValueError where the package is not installed, or in another version than
    `version`."""
    advice = "install the pinned packages again: pip install -r requirements.txt"
    try:
        installed = importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        raise ValueError(f"the corpus reads {package} {version}, not installed here; {advice}") from None
    if installed.version != version:
        raise ValueError(f"the corpus reads {package} {version}, but {installed.version} is installed; {advice}")
    return installed


# Files on this machine


def data_files(pattern: str) -> tuple[list[Path], list[str]]:
    """The data files of a corpus on this machine, sorted by path; and a sentence for each kind of file that is left
    out. `pattern`: a file, a folder or a glob.

    Of a folder, only the files of one format are taken, the format with the most bytes. Hidden files (HIDDEN_PREFIXES),
    notes (README, LICENSE, checksums) and small files of other formats are left out.

    Raises:
        ValueError: no file remains; files of another format have more than NOTE_SHARE of the folder's bytes; a file
            exists both compressed and uncompressed; or the folder has data that cannot be read.
    """
    if "," in pattern:
        raise ValueError(f"a corpus on disk is one file, folder or glob, without a comma: {pattern[:200]!r}")
    root = Path(pattern)
    left_out: list[str] = []
    if root.is_dir():
        paths, left_out = _data_files_of_folder(root)
    else:
        paths = _existing_files([root] if root.is_file() else _paths_matching(pattern))
        if unknown := [path for path in paths if readers.format_and_compression(path.name) is None]:
            raise ValueError(f"{unknown[0]}: unknown kind of file; allowed are {', '.join(EXTENSIONS)}")
    if not paths:
        raise ValueError(f"no file matches {pattern[:200]!r}; looked for {', '.join(EXTENSIONS)}")
    return sorted(paths, key=lambda path: path.as_posix()), left_out


def _data_files_of_folder(folder: Path) -> tuple[list[Path], list[str]]:
    """The result of `data_files` for a folder, with the files in no particular order. Raises ValueError as `data_files`
    does, and for the folder /."""
    if folder.resolve() == Path("/"):
        raise ValueError("a corpus is a folder of text, and / is the whole machine")
    everything = sorted(path for _, paths in _walk(folder) for path in paths)
    below = [path for path in everything if readers.format_and_compression(path.name)]
    hidden = [path for path in below if _is_hidden(path.relative_to(folder))]
    _check_no_unread_data(folder, [path for path in everything if path not in set(below)])
    visible = _existing_files(path for path in below if path not in set(hidden))
    notes = [path for path in visible if NOTE_NAMES.fullmatch(path.name)]
    paths_of: dict[str, list[Path]] = {}  # {format: paths}
    for path in visible:
        if path not in set(notes):
            file_format, _ = readers.format_and_compression(path.name) or ("", "")
            paths_of.setdefault(file_format, []).append(path)
    sizes = {file_format: sum(path.stat().st_size for path in paths) for file_format, paths in paths_of.items()}
    largest = max(sizes, key=lambda file_format: sizes[file_format], default="")
    for file_format, paths in paths_of.items():
        if file_format != largest and sizes[file_format] > NOTE_SHARE * sum(sizes.values()):
            formats = " and ".join(f"{len(paths_of[name])} {name} files ({sizes[name]:,} bytes)" for name in sizes)
            raise ValueError(
                f"{folder} holds {formats}: give one kind of them by a glob, such as '{folder}/**/*{file_format}'"
            )
        notes += paths if file_format != largest else []
    _check_no_copies(folder, paths_of.get(largest, []))
    reasons = (("in a hidden folder or hidden", hidden), (f"beside {largest or 'the data'}, as notes", sorted(notes)))
    return paths_of.get(largest, []), [
        f"{_first_names([path.relative_to(folder) for path in paths])} not read: {reason}"
        for reason, paths in reasons
        if paths
    ]


def _is_hidden(path: Path) -> bool:
    """Whether a file or one of its folders is hidden (HIDDEN_PREFIXES). `path`: relative to the corpus' folder."""
    return any(part.startswith(HIDDEN_PREFIXES) for part in path.parts)


def _first_names(names: list[Path]) -> str:
    """The first NAMED_FILES names and the number of the others, for a message."""
    more = f" and {len(names) - NAMED_FILES} more" if len(names) > NAMED_FILES else ""
    return ", ".join(name.as_posix() for name in names[:NAMED_FILES]) + more


def _paths_matching(pattern: str) -> list[Path]:
    """The paths that match a glob, sorted, each file once. For `**` each folder is searched once, however many symbolic
    links lead to it. `glob.glob` instead follows a link to a folder above the link again and again, and with two such
    links does not end in any useful time."""
    head, stars, tail = pattern.partition("**")
    recursive = (not head or head.endswith("/")) and (not tail or tail.startswith("/"))  # else ** means the same as *
    if not stars or not recursive:
        paths = [Path(path) for path in glob(pattern)]
    else:
        tail = tail.strip("/") or "*"
        bases = [Path(path) for path in glob(head)] if head else [Path()]
        folders = [folder for base in bases if base.is_dir() for folder in _folders_below(base)]
        paths = [path for folder in folders for path in _paths_matching(f"{escape(str(folder))}/{tail}")]
    # of several paths to the same file, the first is kept
    path_of_file = {os.path.realpath(path): path for path in reversed(sorted(paths))}
    return sorted(path_of_file.values())


def _folders_below(folder: Path) -> list[Path]:
    """A folder and all folders below it, each once, except hidden ones: those with a name that begins with a dot on the
    path from `folder`. Symbolic links to folders are followed as by `_walk`."""
    below = (path for path, _ in _walk(folder))
    return [path for path in below if not any(part.startswith(".") for part in path.relative_to(folder).parts)]


def _walk(folder: Path) -> Iterator[tuple[Path, list[Path]]]:
    """Yield (folder, paths of the files in it) for a folder and all folders below it, each folder once. Symbolic links
    to folders are followed, unless the name of the link is hidden (HIDDEN_PREFIXES). Raises ValueError where a folder
    cannot be read."""

    def refuse(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):  # else the folder was removed meanwhile
            raise ValueError(f"{error.filename} cannot be read: {error.strerror}")

    seen = {_device_and_inode(folder)}
    for parent, names, files in os.walk(folder, onerror=refuse, followlinks=True):
        yield Path(parent), [Path(parent, name) for name in files]
        unseen = []
        for name in sorted(names):
            path = Path(parent, name)
            if (
                not (name.startswith(HIDDEN_PREFIXES) and path.is_symlink())
                and (identity := _device_and_inode(path)) not in seen
            ):
                unseen.append(name)
                seen.add(identity)
        names[:] = unseen  # os.walk goes into these folders


def _device_and_inode(folder: Path) -> tuple[int, int]:
    """The device and inode of a folder, by which two paths to the same folder are recognised; (0, 0) where the folder
    does not exist."""
    try:
        status = folder.stat()
    except FileNotFoundError:
        return 0, 0
    return status.st_dev, status.st_ino


def _existing_files(paths: Iterable[Path]) -> list[Path]:
    """The given paths that are files. Raises ValueError if a path is a symbolic link to a missing file, since a part of
    the text is then missing."""
    files = []
    for path in paths:
        if path.is_symlink() and not os.path.exists(path):
            raise ValueError(f"{path} is a symbolic link to a file that is not there: put it there, or remove the link")
        files += [path] if path.is_file() else []
    return files


def _check_no_unread_data(folder: Path, others: list[Path]) -> None:
    """Raise ValueError where the name of a file that is not read looks like data (UNREAD_DATA), since a part of the
    text would be missing. Notes and hidden files are ignored. `folder`: the folder that was searched; `others`: the
    files below it that no reader reads."""
    names = [path.relative_to(folder) for path in others if UNREAD_DATA.fullmatch(path.name)]
    names = [name for name in names if not NOTE_NAMES.fullmatch(name.name) and not _is_hidden(name)]
    if names:
        raise ValueError(
            f"{folder} holds {_first_names(names)}: data of a kind that is not read, or not all there. Make it one of "
            f"{', '.join(EXTENSIONS)}, or name the files to read by a glob, such as '{folder}/**/*.jsonl'"
        )


def _check_no_copies(folder: Path, paths: list[Path]) -> None:
    """Raise ValueError where a file exists with several compressions, such as a.jsonl beside a.jsonl.gz, since its text
    would be read more than once. `folder`: the folder that was searched, for the message; `paths`: the data files below
    it."""
    compressions_of: dict[str, list[str]] = {}  # {path without compression: [".gz", ".zst" or "", ...]}
    for path in paths:
        _, compression = readers.format_and_compression(path.name) or ("", "")
        compressions_of.setdefault(path.as_posix().removesuffix(compression), []).append(compression)
    for plain, compressions in compressions_of.items():
        if len(compressions) > 1:
            file_format, _ = readers.format_and_compression(plain) or ("", "")
            names = " and ".join(Path(plain + ending).relative_to(folder).as_posix() for ending in compressions)
            raise ValueError(
                f"{folder} holds {names}, the same text twice as it seems: give one of them by a glob, such as "
                f"'{folder}/**/*{file_format}{compressions[-1]}'"
            )


def matching_files(root: Path, patterns: list[str]) -> list[Path]:
    """The files below the folder `root` that match one of the globs, sorted by path. Hidden files and files in hidden
    folders are left out. Raises ValueError where no file matches."""
    matching = {path for pattern in patterns for path in root.glob(pattern)}
    visible = [path for path in matching if not _is_hidden(path.relative_to(root))]
    paths = _existing_files(sorted(visible, key=lambda path: path.as_posix()))
    if not paths:
        raise ValueError(f"no file below {root} matches {' or '.join(patterns)}")
    return paths


def common_folder(files: list[Path]) -> Path:
    """The deepest folder that contains all files. The paths of the files from this folder are the same on every
    machine, and serve as their names."""
    root = files[0].parent
    while not all(path.is_relative_to(root) for path in files):
        root = root.parent
    return root


def recorded_checksums(spec: dict[str, Any]) -> dict[str, str] | None:
    """The sha256 of a corpus' files according to the lists of checksums in their folders, as OSCAR v1 has them: {path
    of the file from the corpus' folder: sha256}. None if there is no list, or the files are not on this machine.
    `spec`: the specification of the corpus, from `corpus.load_specification`. Raises ValueError if a list names a file
    that does not exist."""
    if "root" not in spec:
        return None
    sums: dict[str, str] = {}
    lists = {path.parent: sorted(path.parent.glob("*sha256*.txt")) for path in spec["files"]}
    for folder, paths in sorted(lists.items()):
        for line in (line for path in paths for line in path.read_text("utf-8").splitlines() if line.strip()):
            # OSCAR writes name, then hash; sha256sum the hash first
            words = line.replace("*", " ").split()
            name, sha = (words[1], words[0]) if re.fullmatch(r"[0-9a-f]{64}", words[0]) else (words[0], words[-1])
            if not (folder / name).is_file():
                raise ValueError(f"{paths[0]} lists {name}, which is not there: the download is not complete")
            sums[(folder / name).relative_to(spec["root"]).as_posix()] = sha
    return sums if any(lists.values()) else None


# Files on the hub


def _hub_files(spec: dict[str, Any], store: Path | None, ask_hub: bool) -> list[SourceFile]:
    """The files of a corpus on the Hugging Face hub; arguments and result are those of `source_files`. Raises
    ValueError if the hub does not have them, and MissingData if the files were not listed yet and `ask_hub` is
    false."""
    if "hub" not in spec:
        raise ValueError(
            f"{spec['name']} is on no hub: get its files ({', '.join(spec['files'])}), and say once where "
            f"they lie: make data CORPUS={spec['name']} FROM=folder"
        )
    repo, revision = spec["hub"], spec["revision"]
    key = hashlib.sha256(json.dumps([repo, revision, spec["files"]]).encode()).hexdigest()[:8]
    listing = store / "hub" / f"{repo.replace('/', '__')}-{key}.json" if store else None
    entries = _read_listing(listing) if listing else None
    if entries is None and not ask_hub:
        raise MissingData(f"the files of {repo} were not listed yet")
    if entries is None:
        entries = _list_hub_files(spec["name"], repo, revision, spec["files"])
        if listing:
            write_text(listing, json.dumps(entries))
    return [SourceFile(f"hf://datasets/{repo}@{revision}/{name}", name, "", size, sha) for name, size, sha in entries]


def _read_listing(path: Path) -> list[tuple[str, int, str]] | None:
    """The result of an earlier `_list_hub_files`, from the JSON file `path`; None where that file is missing, empty or
    damaged."""
    try:
        entries = [tuple(entry) for entry in json.loads(path.read_text("utf-8"))]
        is_whole = all(list(map(type, entry)) == [str, int, str] for entry in entries)
    except (OSError, ValueError, TypeError, RecursionError):
        return None
    return entries if entries and is_whole else None


def _list_hub_files(corpus: str, repo: str, revision: str, patterns: list[str]) -> list[tuple[str, int, str]]:
    """The files of a repository on the Hugging Face hub that match one of the globs: [(path, bytes, hash), ...], sorted
    by path. The hash is the sha256 for a file in Git LFS, and Git's own hash for any other file. Only the folders that
    the globs name are listed: C4's repository, for example, has a hundred languages beside English.

    Args:
        corpus: the name of the corpus, for messages.
        repo: the name of the repository, "organisation/name".
        revision: the commit.
        patterns: the globs.

    Raises:
        ValueError: the hub cannot be read, or no file matches.
    """
    from fnmatch import fnmatch

    from huggingface_hub import HfApi
    from huggingface_hub.errors import EntryNotFoundError
    from huggingface_hub.hf_api import RepoFile

    api, entries = HfApi(), {}
    try:
        api.dataset_info(repo, revision=revision, expand=["sha"])  # fails at once, where listing would try for long
        for folder, deep in sorted({_fixed_folder(pattern) for pattern in patterns}):
            try:
                for entry in api.list_repo_tree(repo, folder, recursive=deep, revision=revision, repo_type="dataset"):
                    if isinstance(entry, RepoFile) and any(fnmatch(entry.path, pattern) for pattern in patterns):
                        sha = entry.lfs.sha256 if entry.lfs else entry.blob_id
                        entries[entry.path] = (entry.path, entry.size, sha)
            except EntryNotFoundError:
                continue  # the folder of another glob may exist
    except Exception as error:  # the library raises its own, httpx's and the operating system's
        raise ValueError(
            f"{corpus}: the hub cannot be read ({type(error).__name__}: {' '.join(str(error).split())}). "
            f"Where its files are here already: make data CORPUS={corpus} FROM=folder"
        ) from None
    if not entries:
        raise ValueError(
            f"no file of {repo} at {revision} matches {' or '.join(patterns)}. Where its files are here "
            f"already: make data CORPUS={corpus} FROM=folder"
        )
    return sorted(entries.values())


def _fixed_folder(pattern: str) -> tuple[str, bool]:
    """Split a glob at its first folder with a wildcard. Returns the path before that folder, and whether there is such
    a folder, so that files in subfolders of the path may match: `data/en/*.gz` gives ("data/en", False), `data/*/a.gz`
    gives ("data", True)."""
    folders = PurePosixPath(pattern).parts[:-1]
    plain = next((number for number, part in enumerate(folders) if has_magic(part)), len(folders))
    return "/".join(folders[:plain]), plain < len(folders)
