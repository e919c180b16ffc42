"""The store: folders `<name>-<key>`, whose key is a hash of all that determines their bytes; there when they are whole.

A folder is built under another name, partial-..., and renamed when it is complete, manifest.json included. After a kill
the same call goes on where it was: tasks that were finished are not done again.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from glob import has_magic
from pathlib import Path
from typing import Any, NamedTuple

from data import execute
from data.corpus import Missing, Unit, alone, write_whole
from data.execute import HERE, Executor

LAYOUT = 2  # of the folders; a change of the code that writes them that alters their bytes raises it

Run = Callable[..., None]  # (stage, pipeline, tasks): names a stage on the terminal and runs datatrove steps


class Place(NamedTuple):
    """Where things are built, and how; build=False: only what is there already."""

    store: Path
    executor: Executor = HERE
    build: bool = True


def folder(
    place: Place, name: str, inputs: dict[str, Any], make: Callable[[Path, Run], dict[str, Any]]
) -> tuple[Path, dict[str, Any]]:
    """A folder and what `make(folder, run)` returned: now, or earlier from the same inputs.

    A killed `make` finds its unfinished folder again; one that raised ValueError leaves none. Raises RuntimeError for
    one that another version of the code has left: its stages may not fit together.
    """
    store = place.store
    inputs = json.loads(json.dumps({"layout": LAYOUT, **inputs}))
    whole = store / f"{name}-{digest(inputs)[:8]}"
    if not whole.exists():
        if not place.build:
            raise Missing(f"{whole} is not prepared")
        with alone(store / ".lock"):
            if not whole.exists():
                work = store / f"partial-{whole.name}"
                try:
                    if not (work / "manifest.json").exists():
                        _begin(work)
                        with _progress(place, name, work / "logs") as run:
                            made = make(work, run)
                        (work / "manifest.tmp").write_text(json.dumps({"inputs": inputs, "made": made}, indent=1))
                        os.replace(work / "manifest.tmp", work / "manifest.json")
                    # from here on nothing of these is needed, whenever a kill comes
                    for rest in ("scratch", "logs"):
                        shutil.rmtree(work / rest, ignore_errors=True)
                    (work / "code").unlink(missing_ok=True)
                    _settle(work)
                    os.replace(work, whole)
                    _settle(store, deep=False)
                except ValueError:
                    shutil.rmtree(work, ignore_errors=True)
                    raise
    manifest = json.loads((whole / "manifest.json").read_text())
    if manifest["inputs"] != inputs:
        raise ValueError(f"{whole} was made from something else: remove it")
    return whole, manifest["made"]


def _begin(work: Path) -> None:
    """An unfinished folder, new or of the same code."""
    same = (work / "code").exists() and (work / "code").read_text() == _code()
    if not same and [path for path in work.glob("*") if not path.name.startswith("code")]:
        raise RuntimeError(
            f"{work} was begun by another version of the code. Remove it, and it is begun anew; or let "
            "that version finish it"
        )
    work.mkdir(exist_ok=True)
    write_whole(work / "code", _code())


@functools.cache
def _code() -> str:
    """Hash of what builds folders."""
    return digest([path.read_text() for path in sorted(Path(__file__).parent.glob("*.py"))])


def _settle(folder: Path, deep: bool = True) -> None:
    """Wait until the disk has what a folder holds: else after a power loss its name may be there, and not its files."""
    for path in [*(folder.rglob("*") if deep else ()), folder]:
        file = os.open(path, os.O_RDONLY)
        try:
            os.fsync(file)
        finally:
            os.close(file)


@contextlib.contextmanager
def _progress(place: Place, name: str, logs: Path) -> Iterator[Run]:
    """A line on the terminal; what datatrove and its processes say goes to prepare.log in the store."""
    from rich.console import Console
    from rich.progress import Progress, ProgressColumn, SpinnerColumn, Task, TextColumn, TimeElapsedColumn
    from rich.progress_bar import ProgressBar

    class Done(ProgressColumn):
        max_refresh = 0.5  # seconds

        def render(self, task: Task) -> ProgressBar:
            folder = task.fields["logs"]  # where datatrove leaves a file for each finished task
            done = len(list(Path(folder, "completions").glob("*"))) if folder else task.completed
            return ProgressBar(total=task.total or 1, completed=done, width=24)

    with (
        execute.stderr_in(place.store / "prepare.log") as terminal,
        open(os.dup(terminal), "w", encoding="utf-8") as screen,
    ):
        columns = (SpinnerColumn(), TextColumn("{task.description}"), Done(), TimeElapsedColumn())
        with Progress(*columns, console=Console(file=screen), redirect_stdout=False, redirect_stderr=False) as progress:
            line = progress.add_task(f"data: {name}", total=None, logs="")

            def run(stage: str, pipeline: list[Any] | None = None, tasks: int = 1) -> None:
                folder = str(logs / stage.replace(" ", "-"))
                progress.update(line, description=f"data: {name}, {stage}", total=tasks, logs=folder)
                if pipeline:
                    execute.run(place.executor, pipeline, tasks, folder)
                progress.update(line, logs="")

            yield run
            progress.update(line, description=f"data: {name}", total=1, completed=1)


def contents(units: list[Unit], place: Place) -> list[str]:
    """Hash of each file's content: what the hub says it is, or as read here, some at a time."""
    with ThreadPoolExecutor(execute.cores()) as pool:
        return list(pool.map(lambda unit: unit.sha256 or content(Path(unit.path), place), units))


def content(path: Path, place: Place) -> str:
    """Hash of a file's content, remembered while the file's size and time of change stay the same."""
    state = path.stat()
    seen = [str(path.resolve()), state.st_size, state.st_mtime_ns]
    note = place.store / "hashes" / digest(seen)[:32]
    if not note.exists():
        if not place.build:
            raise Missing(f"{path} has not been read")
        with open(path, "rb") as file:
            write_whole(note, hashlib.file_digest(file, "sha256").hexdigest())
    return note.read_text()


def digest(value: Any) -> str:
    """Hash of what JSON can say."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def label(name: str) -> str:
    """A corpus' name as part of a folder's; of a path the last two parts, without wildcard and extension."""
    plain = [part for part in Path(name).parts if not has_magic(part)] or ["files"]
    said = re.sub(r"\W+", "-", "-".join(plain[-2:]).partition(".")[0]).strip("-") or "files"
    return said if len(said.encode()) <= 180 else said[-60:]  # file systems end at 255 bytes, and more is to follow
