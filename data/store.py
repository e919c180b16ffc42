"""The store of prepared data: folders `<label>-<key>`, where the key is a hash of everything that determines the
content of the folder.

A folder is built under the name partial-..., and renamed when it is complete, manifest.json included. After a kill the
same call continues: tasks that were finished are not done again.

The manifest has the size and sha256 of every file of the folder. Both are compared with the files whenever a folder is
used: sizes always, hashes where a file's size, inode or times differ from those at the last comparison.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from glob import has_magic
from pathlib import Path
from typing import Any, NamedTuple

from data import execute
from data.disk import explained_write_errors, locked, unwritable_message, wait_until_on_disk, write_text
from data.execute import THIS_MACHINE, Executor
from data.readers import SourceFile
from data.sources import MissingData

# Version of the folders' content: raise it when a change of this code changes the bytes that it writes.
LAYOUT_VERSION = 3
# A file that changes twice within a tick of its file system's clock (a second on some) keeps its times, so a file that
# was this young when it was read is read again. Compare Git's "racily clean" entries.
RACY_SECONDS = 2.0

# A function that runs one stage of the work on a folder: (stage, pipeline, tasks). It shows the name `stage` on the
# terminal, and runs `pipeline`, a list of datatrove's steps (none by default), as `tasks` tasks (1 by default).
RunStage = Callable[..., None]


class Store(NamedTuple):
    """A store of prepared data.

    Args:
        path: its folder.
        executor: where the tasks that build data run.
        build: whether missing data may be built.
    """

    path: Path
    executor: Executor = THIS_MACHINE
    build: bool = True


def prepared_folder(
    store: Store, label: str, inputs: dict[str, Any], make: Callable[[Path, RunStage], dict[str, Any]]
) -> tuple[Path, dict[str, Any]]:
    """The folder of the store for the given inputs, and the entries that `make` returned when the folder was built. A
    missing folder is built. After a kill the same call continues with the tasks that are not finished; after a
    ValueError of `make` it starts from the beginning.

    Args:
        store: the store of prepared data.
        label: the beginning of the folder's name.
        inputs: everything that the folder's content depends on, as a JSON object.
        make: a function that writes the content of a new folder, and returns entries for its manifest. Its arguments
            are the folder, and a function that runs a stage of the work (see `RunStage`).

    Raises:
        ValueError: the folder's content is not what was written there.
        RuntimeError: another version of the code has begun to build the folder; the parts might not fit together.
        Unwritable: the disk is full or read-only.
        MissingData: the folder does not exist, and `store.build` is false.
    """
    inputs = json.loads(json.dumps({"layout": LAYOUT_VERSION, **inputs}))
    folder = store.path / f"{label}-{digest(inputs)[:8]}"
    if not folder.exists():
        if not store.build:
            raise MissingData(f"{folder} is not prepared")
        with explained_write_errors(store.path), locked(store.path / ".lock"):
            if not folder.exists():
                _build(store, label, inputs, make, folder)
    manifest = _manifest(folder)
    if manifest["inputs"] != inputs:
        raise ValueError(f"{folder} was made from something else: remove it")
    check_files(folder, manifest["files"], store)
    return folder, manifest["made"]


def _build(
    store: Store, label: str, inputs: dict[str, Any], make: Callable[[Path, RunStage], dict[str, Any]], folder: Path
) -> None:
    work = store.path / f"partial-{folder.name}"
    try:
        if not (work / "manifest.json").exists():
            _begin_folder(work)
            with _progress(store, label, work / "logs") as run:
                result = make(work, run)
            shutil.rmtree(work / "scratch", ignore_errors=True)
            below = sorted(path.relative_to(work) for path in work.rglob("*") if path.is_file())
            files = [path for path in below if path.parts[0] != "logs" and path.name != "code"]
            content = {"inputs": inputs, "made": result, "files": _checksums(work, files)}
            content = json.loads(json.dumps(content))  # as it will be read: keys that are numbers sort as text
            write_text(work / "manifest.json", json.dumps(content | {"sha256": digest(content)}, indent=1))
        # the folder is complete: a kill after this line loses nothing
        for temporary in ("scratch", "logs"):
            shutil.rmtree(work / temporary, ignore_errors=True)
        (work / "code").unlink(missing_ok=True)
        wait_until_on_disk(work)
        os.replace(work, folder)
        wait_until_on_disk(store.path, deep=False)
    except ValueError:
        shutil.rmtree(work, ignore_errors=True)
        raise


def _begin_folder(work: Path) -> None:
    """Create the folder for unfinished data, or leave the folder as it is where it exists. Raises RuntimeError where
    another version of the code has written files into it."""
    is_same_code = (work / "code").exists() and (work / "code").read_text("utf-8") == _code_hash()
    if not is_same_code and [path for path in work.glob("*") if not path.name.startswith("code")]:
        raise RuntimeError(
            f"{work} was begun by another version of the code. Remove it, and it is begun anew; or let "
            "that version finish it"
        )
    work.mkdir(exist_ok=True)
    write_text(work / "code", _code_hash())


@functools.cache
def _code_hash() -> str:
    """A hash of the Python files in data/, whose code builds the folders of the store."""
    return digest([path.read_text("utf-8") for path in sorted(Path(__file__).parent.glob("*.py"))])


@contextlib.contextmanager
def _progress(store: Store, label: str, logs: Path) -> Iterator[RunStage]:
    """A context that shows a progress line on the terminal, while the output of datatrove and its processes goes to
    prepare.log in the store. Yields the function that runs a stage (see `RunStage`). `label`: the name of the data that
    is prepared, for the line; `logs`: the folder for datatrove's logs."""
    from rich.console import Console
    from rich.progress import Progress, ProgressColumn, SpinnerColumn, Task, TextColumn, TimeElapsedColumn
    from rich.progress_bar import ProgressBar

    class CompletedTasks(ProgressColumn):
        max_refresh = 0.5  # seconds

        def render(self, task: Task) -> ProgressBar:
            folder = task.fields["logs"]  # where datatrove leaves a file for each finished task
            done = len(list(Path(folder, "completions").glob("*"))) if folder else task.completed
            return ProgressBar(total=task.total or 1, completed=done, width=24)

    with (
        execute.stderr_appended_to(store.path / "prepare.log") as terminal,
        open(os.dup(terminal), "w", encoding="utf-8", errors="replace") as screen,
    ):
        columns = (SpinnerColumn(), TextColumn("{task.description}"), CompletedTasks(), TimeElapsedColumn())
        with Progress(*columns, console=Console(file=screen), redirect_stdout=False, redirect_stderr=False) as progress:
            line = progress.add_task(f"data: {label}", total=None, logs="")

            def run(stage: str, pipeline: list[Any] | None = None, tasks: int = 1) -> None:
                folder = str(logs / stage.replace(" ", "-"))
                progress.update(line, description=f"data: {label}, {stage}", total=tasks, logs=folder)
                if pipeline:
                    execute.run_pipeline(store.executor, pipeline, tasks, folder)
                progress.update(line, logs="")

            if not screen.isatty():  # in a file the progress line is written at the end only
                print(f"  data: {label}, in preparation", file=screen, flush=True)
            yield run
            progress.update(line, description=f"data: {label}", total=1, completed=1)


# Comparing files with the hashes that were written


def _manifest(folder: Path) -> dict[str, Any]:
    """The content of the manifest.json of a folder. Raises ValueError where that file is missing or was changed."""
    path = folder / "manifest.json"
    try:
        manifest = json.loads(path.read_text("utf-8"))
        if isinstance(manifest, dict) and manifest.pop("sha256", None) == digest(manifest):
            return manifest
    except FileNotFoundError:
        raise damage_error(path, "it is not there") from None
    except (ValueError, RecursionError):
        pass
    raise damage_error(path, "its content is not what its hash says")


def check_files(folder: Path, files: dict[str, Any], store: Store) -> None:
    """Check that the files of a folder have the content that was written. Sizes are always compared. Hashes are
    compared where a file changed since the last comparison, and never where `store.build` is false.

    Args:
        folder: the folder.
        files: {name: {"bytes", "sha256"}} of the files as they were written.
        store: the store of prepared data, in which successful comparisons are noted.

    Raises:
        ValueError: a file is missing or has another content; the message names it.
    """
    states = []
    for name, written in files.items():
        path = folder / name
        try:
            states.append(_file_state(path))
        except FileNotFoundError:
            raise damage_error(path, "it is not there") from None
        if path.stat().st_size != written["bytes"]:
            raise damage_error(path, f"it has {path.stat().st_size:,} bytes, and {written['bytes']:,} were written")
    if not store.build:
        return
    note = store.path / "hashes" / digest(["folder", states])[:32]
    if _is_note_valid(note, [folder / name for name in files], store):
        return
    for name, current in _checksums(folder, [Path(name) for name in files]).items():
        written_sha = files[name]["sha256"]
        if current["sha256"] != written_sha:
            raise damage_error(folder / name, f"its sha256 is {current['sha256']}, and {written_sha} was written")
    _write_note(note, "as written")


def damage_error(path: Path, difference: str) -> ValueError:
    """The error to raise for a file of the store that was changed after it was written. `difference`: a description of
    the change."""
    folder = next((parent for parent in path.parents if (parent / "manifest.json").exists()), path.parent)
    return ValueError(f"{path} is damaged: {difference}. Remove {folder}, and it is made again")


def _checksums(folder: Path, files: list[Path]) -> dict[str, dict[str, Any]]:
    """The size and hash of files in a folder: {name: {"bytes", "sha256"}}. Several files are read at a time. `files`:
    their paths from the folder."""
    with ThreadPoolExecutor(execute.usable_cores()) as pool:
        hashes = pool.map(lambda file: _sha256(folder / file), files)
        return {
            file.as_posix(): {"bytes": (folder / file).stat().st_size, "sha256": sha}
            for file, sha in zip(files, hashes, strict=True)
        }


def content_hashes(files: list[SourceFile], store: Store) -> list[str]:
    """The sha256 of the content of each file. For files on the hub it is the hash that the hub lists: the sha256 for a
    file in Git LFS, Git's own hash for any other. Files on this machine are read, several at a time, unless the store
    has their hash."""
    with ThreadPoolExecutor(execute.usable_cores()) as pool:
        return list(pool.map(lambda file: file.sha256 or content_hash(Path(file.path), store), files))


def content_hash(path: Path, store: Store) -> str:
    """The sha256 of the content of a file. The hash is kept in the store, and used until the file's size, inode, mtime
    or ctime changes (only the operating system can set the ctime). Raises MissingData where the hash is not in the
    store, and `store.build` is false."""
    note = store.path / "hashes" / digest(_file_state(path))[:32]
    if _is_note_valid(note, [path], store) and re.fullmatch(rb"[0-9a-f]{64}", stored := note.read_bytes()):
        return stored.decode()
    if not store.build:
        raise MissingData(f"{path} has not been read")
    sha = _sha256(path)
    _write_note(note, sha)
    return sha


def _file_state(path: Path) -> list[Any]:
    """[path, size, inode, mtime, ctime] of a file. When the content of the file changes, one of these changes too."""
    state = path.stat()
    return [str(path.resolve()), state.st_size, state.st_ino, state.st_mtime_ns, state.st_ctime_ns]


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_note_valid(note: Path, paths: Iterable[Path], store: Store) -> bool:
    """Whether there is a note with a result on some files, such as a hash, and the result can be trusted.

    A note is not trusted if one of the files had changed less than RACY_SECONDS before the note was written: the file
    may have changed again without a new timestamp. If `store.build` is false, every note is trusted.

    Args:
        note: the file with the result, named by the state of the files.
        paths: the files.
        store: the store of prepared data.
    """
    if not note.exists():
        return False
    return not store.build or all(note.stat().st_mtime - path.stat().st_ctime >= RACY_SECONDS for path in paths)


def _write_note(note: Path, text: str) -> None:
    """Write a result on some files, such as a hash, to the file `note`, for `_is_note_valid`. Do nothing where the disk
    cannot be written."""
    try:
        write_text(note, text)
    except OSError as error:
        if not unwritable_message(error, note.parent):
            raise


def digest(value: Any) -> str:
    """The sha256 of a JSON value, as hexadecimal digits."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def folder_label(name: str) -> str:
    """The name of a corpus as the beginning of a folder's name: words joined by hyphens. Of a path, the last two parts
    without wildcards are used, up to the first dot."""
    plain = [part for part in Path(name).parts if not has_magic(part)] or ["files"]
    words = re.sub(r"\W+", "-", "-".join(plain[-2:]).partition(".")[0]).strip("-") or "files"
    return words if len(words.encode()) <= 180 else words[-60:]  # file systems end at 255 bytes, and more is to follow
