"""Reads and writes files safely: files are never half-written, even after a power loss, and files from untrusted
sources do no harm.

Writing: after an interruption a file has its old content or the whole new one (`write_bytes`, `write_text`,
    `write_json`), or additional whole lines (`append_lines`, `append_row`). Symbolic links are not followed.

Reading: a missing file gives None or nothing. A damaged file raises `Damaged`, which names it. Symbolic links, pipes
    and devices are not opened. Control characters, which could act on a terminal, are escaped.
"""

import errno
import gzip
import hashlib
import io
import json
import math
import os
import re
import shutil
import stat
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any

from ablations.values import ConfigError
from data.disk import wait_until_on_disk as wait_until_on_disk
from data.disk import write_bytes as write_bytes

LARGEST_FILE = 1 << 30  # bytes; untuned: metrics.jsonl of a million logged steps has some 200 MB
ABANDONED_SECONDS = 86_400  # age from which a draft counts as abandoned; untuned: drafts are written within minutes
LARGEST_NUMBER = 1e40  # in a JSON file; the largest fp32 number, which a diverging loss may reach, is 3.4e38


class Damaged(ConfigError):
    """A file is damaged: its content differs from what was written, or has the wrong form. The message names the file,
    and may say how to repair it."""


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, whatever the locale, as safely as `write_bytes` does."""
    write_bytes(path, text.encode("utf-8", errors="backslashreplace"))


def write_json(path: Path, value: Any, indent: int | None = None, durable: bool = True) -> None:
    """Write `value` as a JSON file, as safely as `write_bytes` does. `indent`: spaces of indentation; None: all in one
    line. `durable`: whether to wait until the file is on the disk. Raises ValueError where `value` contains NaN or
    infinity."""
    write_bytes(path, json.dumps(value, indent=indent, allow_nan=False).encode(), durable)


def open_to_write(path: Path, append: bool = False) -> IO[bytes]:
    """Open a file in binary mode for writing, which creates it where it is missing: to replace its content or, with
    `append_lines`, to add to its end. Raises OSError where that is not possible, or the path is a symbolic link."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | (os.O_APPEND if append else os.O_TRUNC)
    return os.fdopen(os.open(path, flags, 0o666), "ab" if append else "wb")


def append_lines(path: Path, text: str) -> None:
    """Append whole lines to a file: all of `text`, or nothing where the disk is full. Where a killed process has left
    an incomplete last line, that line is ended first, so that it does not damage `text`."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_APPEND
    with os.fdopen(os.open(path, flags, 0o666), "r+b", buffering=0) as file:
        end = os.fstat(file.fileno()).st_size
        incomplete = end and os.pread(file.fileno(), 1, end - 1) != b"\n"
        content = b"\n" * bool(incomplete) + text.encode("utf-8", errors="backslashreplace")
        try:
            while content:
                content = content[file.write(content) :]
        except OSError:
            with suppress(OSError):
                file.truncate(end)
            raise


def append_row(path: Path, row: dict[str, Any]) -> None:
    """Append an object to a .jsonl file, as one line of JSON."""
    append_lines(path, json.dumps(row) + "\n")


def remove_leftovers(path: Path) -> None:
    """Remove the temporary files that killed processes left while they wrote the file `path`. No other process may be
    writing the file."""
    for leftover in path.parent.glob(f"{path.name}.*tmp"):
        with suppress(OSError):
            leftover.unlink()


def remove_abandoned_drafts(folder: Path, pattern: str) -> None:
    """Remove the drafts that killed processes left in a folder: files and folders that have not changed for
    ABANDONED_SECONDS. Newer ones may belong to a process that is at work. Errors are ignored. `pattern`: a glob pattern
    that matches all drafts."""
    for path in folder.glob(pattern):
        with suppress(OSError):
            if time.time() - path.lstat().st_mtime < ABANDONED_SECONDS:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


def write_together(folder: Path, texts: dict[str, str]) -> None:
    """Write several files so that a failure leaves the existing ones unchanged: all are written under temporary names
    before the first one is renamed. `texts`: {name of a file: its content}. Raises OSError where they cannot be
    written."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in texts:
        remove_abandoned_drafts(folder, f".{name}.*.tmp")
    temporaries = {name: folder / f".{name}.{os.getpid()}.tmp" for name in texts}
    try:
        for name, text in texts.items():
            write_text(temporaries[name], text)
        for name in texts:
            os.replace(temporaries[name], folder / name)
    except BaseException:
        for path in temporaries.values():
            with suppress(OSError):
                path.unlink(missing_ok=True)
        raise
    wait_until_on_disk(folder, deep=False)


def path_inside(folder: Path, name: str | Path) -> Path:
    """The path folder / name. Raises Damaged where the path leads out of the folder, by ".." or by a symbolic link."""
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise Damaged(f"{path} leads out of {folder}: remove it, or put a copy there")
    return path


def storage_error_message(error: OSError) -> str:
    """The message about an error of the disk (full, read-only, no permission and the like), which also says what the
    user can do; "" for errors of other kinds."""
    cures = {
        errno.ENOSPC: "Make room and give the same command again.",
        errno.EDQUOT: "Make room within your quota and give the same command again.",
        errno.EFBIG: "Raise the limit of a file's size (ulimit -f), or choose an OUT that takes larger files.",
        errno.EMFILE: "Raise the limit of open files (ulimit -n) and give the same command again.",
        errno.EROFS: "Choose an OUT that can be written.",
        errno.EACCES: "Choose an OUT that can be read and written, or change its permissions.",
        errno.EPERM: "Choose an OUT that can be read and written, or change its permissions.",
        errno.ENOTDIR: "Choose another OUT.",
        errno.ENAMETOOLONG: "Choose a shorter OUT.",
        errno.ELOOP: "Files here are not written through symbolic links: remove the link.",
        errno.EIO: "The disk has an error: look at it before the same command is given again.",
    }
    return f"{printable(str(error))}. {cures[error.errno]}" if error.errno in cures else ""


def read_bytes(path: Path, start: int = 0) -> bytes | None:
    """The content of a regular file from the byte with the index `start` on; None where there is no file.

    Raises:
        Damaged: the file cannot be read, is larger than LARGEST_FILE, or is a symbolic link, a pipe, a device or a
            folder.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise Damaged(f"{path} is not a file: remove it")
            if status.st_size > LARGEST_FILE:
                raise Damaged(f"{path} has {status.st_size:,} bytes, more than such a file ever has: remove it")
            file.seek(start)
            return file.read(LARGEST_FILE)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except IsADirectoryError:
        raise Damaged(f"{path} is not a file: remove it") from None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise Damaged(f"{path} is a symbolic link: put a copy of the file there") from None
        raise Damaged(f"{path} cannot be read: {error.strerror}") from None


def read_text(path: Path) -> str:
    """The text of a small file, without space around it and with control characters escaped: "" where there is no file,
    and the error message where the file cannot be read."""
    try:
        return printable((read_bytes(path) or b"").decode(errors="replace")).strip()
    except Damaged as error:
        return str(error)


# C0 and C1 control characters but tab and newline; marks that reverse the direction of text; halves of surrogate pairs
CONTROL_CHARACTERS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """`text` with control characters escaped, so that printing it has no effect on the terminal. Tabs and newlines
    stay."""
    return CONTROL_CHARACTERS.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def read_json(
    path: Path, keys: Iterable[str] = (), types: Mapping[str, Any] = MappingProxyType({}), cure: str = ""
) -> dict[str, Any] | None:
    """Read a JSON file that holds an object. Returns the object as a dictionary; None where there is no file.

    Args:
        path: the file.
        keys: the keys that the object must have.
        types: {key: type, as for `isinstance`} of values; a key may be missing.
        cure: a sentence for the error message that tells the user how to repair a damaged file.

    Raises:
        Damaged: the file holds no JSON object, an object has the same key twice or lacks one of `keys`, or a value is
            of another type.
    """
    content = read_bytes(path)
    if content is None:
        return None
    try:
        return _parse(content, keys, types)
    except ValueError as error:
        raise Damaged(f"{path} is damaged, or of another version: {error}.{cure and ' '}{cure}") from None


def _parse(content: bytes, keys: Iterable[str], types: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON object in `content`, as a dictionary. Unlike in Python's own parser, repeated keys, NaN, Infinity and
    numbers beyond LARGEST_NUMBER are refused. `keys` and `types` are those of `read_json`. Raises ValueError where the
    content is no such object; the message is a clause that says why."""
    try:
        value = json.loads(
            content.decode(), parse_constant=_number, parse_float=_number, parse_int=_number, object_pairs_hook=_object
        )
    except _RepeatedKey:
        raise
    except (ValueError, RecursionError):  # ValueError: no UTF-8, no JSON, or a number of thousands of digits
        value = None
    problem = form_problem(value, keys, types) if isinstance(value, dict) else "it is not a JSON object"
    if problem:
        raise ValueError(problem)
    return value


class _RepeatedKey(ValueError):
    """An object in a JSON file has the same key twice."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The JSON object with these (key, value). Raises _RepeatedKey where two of the keys are equal."""
    value = dict(pairs)
    if len(value) < len(pairs):
        keys = [key for key, _ in pairs]
        repeated = next(key for key in keys if keys.count(key) > 1)
        raise _RepeatedKey(f"the key {repeated[:60]!r} is there twice")
    return value


def _number(text: str) -> float:
    """The number in a JSON file that is written as `text`. Raises ValueError where it is NaN, infinite, or beyond
    LARGEST_NUMBER."""
    value = int(text) if text.lstrip("-").isdigit() else float(text)
    if not abs(value) <= LARGEST_NUMBER:
        raise ValueError(text)
    return value


def form_problem(value: Mapping[str, Any], keys: Iterable[str], types: Mapping[str, Any]) -> str:
    """A clause that names the first fault in the form of an object from a file: missing keys, or keys whose values are
    of another type; "" if there is none. A bool is never of the right type.

    Args:
        value: the object.
        keys: the keys that it must have.
        types: {key: type, as for `isinstance`} of values; a key may be missing.
    """
    if missing := [key for key in keys if key not in value]:
        return f"it lacks {', '.join(missing)}"
    wrong = [k for k, t in types.items() if k in value and (not isinstance(value[k], t) or isinstance(value[k], bool))]
    return f"the value of {', '.join(wrong)} is of another type" if wrong else ""


def first_misfit(value: Any, shape: Any, path: str = "") -> str:
    """The first key in a JSON value that does not fit a shape, as a path such as a.b.c; "" where everything fits.

    Args:
        value: the JSON value.
        shape: a type, a tuple of types, or {key: shape of its value}; a key that ends in "?" may be missing or null.
            `RUN` in eval/report/reading/runs.py is an example.
        path: the path of `value` within the whole, in recursive calls.
    """
    if not isinstance(shape, dict):
        wrong = not isinstance(value, shape) or (isinstance(value, bool) and shape is not bool)
        return path if wrong or (isinstance(value, float) and not math.isfinite(value)) else ""
    if not isinstance(value, dict):
        return path or "all of it"
    for key, inner in shape.items():
        optional, key = key.endswith("?"), key.removesuffix("?")
        if value.get(key) is None and optional:
            continue
        inner_path = f"{path}.{key}" if path else key
        if key not in value:
            return inner_path
        if inner_misfit := first_misfit(value[key], inner, inner_path):
            return inner_misfit
    return ""


def read_json_lines(
    path: Path, keys: Iterable[str] = (), types: Mapping[str, Any] = MappingProxyType({})
) -> tuple[list[dict[str, Any]], str]:
    """Read a .jsonl file, which holds a JSON object in each line. Returns (the objects, a sentence about damaged
    lines); the sentence is "" where no line is damaged.

    A damaged line is left out: one that is no JSON object, has a key twice, lacks a key, or has a value of another
    type. An incomplete last line is left out too, but is no damage, since a process may be writing it or was killed.

    Args:
        path: the file; where it does not exist there are no objects.
        keys: the keys that each object must have.
        types: {key: type, as for `isinstance`} of values; a key may be missing.
    """
    try:
        content = read_bytes(path)
    except Damaged as error:
        return [], str(error)
    lines = (content or b"").split(b"\n")
    rows, damaged = [], []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(_parse(line, keys, types))
        except ValueError:
            if line.strip() and number < len(lines):
                damaged.append(number)
    if not damaged:
        return rows, ""
    several = "s" if len(damaged) > 1 else ""
    numbers = ", ".join(map(str, damaged[:5])) + (", ..." if len(damaged) > 5 else "")
    return rows, f"{path} is damaged: line{several} {numbers} left out"


def last_undamaged_json_line(
    path: Path, keys: Iterable[str] = (), types: Mapping[str, Any] = MappingProxyType({})
) -> tuple[dict[str, Any], str]:
    """Read the last undamaged object of a .jsonl file, within the file's last 16 KiB. Returns (the object, a sentence
    about damaged lines after it). The object is {} where there is none; the sentence is "" where no line is damaged.
    `keys` and `types` are those of `read_json_lines`."""
    lines: list[bytes] = []
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:
            file.seek(max(0, os.fstat(descriptor).st_size - (1 << 14)))
            lines = file.read().split(b"\n")[:-1]
    damage = ""
    for line in reversed(lines):
        try:
            return _parse(line, keys, types), damage
        except ValueError:
            damage = f"{path} is damaged in its last lines" if line.strip() else damage
    return {}, damage


def read_gzip_json_lines(path: Path, keys: Iterable[str] = ()) -> Iterator[dict[str, Any]]:
    """Read a .jsonl.gz file, which holds a JSON object in each line. Yields the objects. `keys`: the keys that each
    object must have. Raises Damaged where the file is missing or incomplete, or a line is no such object."""
    content = read_bytes(path)
    if content is None:
        raise Damaged(f"{path} is missing.")
    try:
        if not content:
            raise EOFError("it is empty")
        unpacked = gzip.GzipFile(fileobj=io.BytesIO(content)).read(LARGEST_FILE + 1)
        if len(unpacked) > LARGEST_FILE:
            raise EOFError(f"unpacked it has more than {LARGEST_FILE:,} bytes")
        lines = unpacked.splitlines()
    except (OSError, EOFError, zlib.error) as error:
        raise Damaged(f"{path} is damaged: {error}.") from None
    for number, line in enumerate(lines, start=1):
        try:
            row = _parse(line, keys, {})
        except ValueError as error:
            raise Damaged(f"{path} is damaged in line {number}: {error}.") from None
        yield row


def sha256(path: Path) -> str:
    """The sha256 of a file's content, as hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checksum(path: Path) -> dict[str, Any]:
    """The size and the sha256 of a file, {"bytes": int, "sha256": text}, for a later comparison by
    `describe_damage`."""
    return {"bytes": path.stat().st_size, "sha256": sha256(path)}


def describe_damage(path: Path, expected: dict[str, Any]) -> str:
    """A clause that says how a file differs from its content when it was written; "" if it does not differ. `expected`:
    the `checksum` of the file when it was written."""
    try:
        size = path.stat().st_size
        if size != expected["bytes"]:
            return f"{path.name} has {size:,} bytes instead of {expected['bytes']:,}"
        return "" if sha256(path) == expected["sha256"] else f"the sha256 of {path.name} differs"
    except FileNotFoundError:
        return f"{path.name} is missing"
    except OSError as error:
        return f"{path.name} cannot be read: {error.strerror}"


def json_digest(value: Any) -> str:
    """The sha256 of a JSON value, as hexadecimal digits. It does not depend on the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
