"""Writes files completely or not at all, and locks files for all machines that share a file system."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """A context that holds an exclusive lock on the file `path`, for which other processes on this machine and others
    wait. The file is created where it is missing. Raises ValueError where the file system has no locks."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as lock:
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX)  # unlike flock's, not inherited by children
        except OSError as error:  # as Lustre raises it where it is mounted without `flock`
            raise ValueError(
                f"{path.parent} cannot be locked ({error.strerror}): choose an OUT elsewhere, "
                "or have this file system mounted with locks"
            ) from None
        yield


def write_bytes(path: Path, content: bytes, durable: bool = True) -> None:
    """Write a file so that at any time, even after a power loss, it has either its old or its new content.

    A symbolic link at `path` is replaced, not followed. Several processes, on this machine or others, may write the
    same file at once. `content`: the new content; `durable`: whether to wait until the content is on the disk; without
    waiting, a power loss may damage the file.
    """
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    if durable:
        wait_until_on_disk(path.parent, deep=False)


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8 as `write_bytes` does: the file has its old or its new content at any time. Missing
    folders are created."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, text.encode())


def wait_until_on_disk(folder: Path, deep: bool = True) -> None:
    """Wait until a folder is on the disk; otherwise it could exist without its files after a power loss. `deep`:
    whether to wait for all files and folders below it too; False: for the folder's own list of entries alone."""
    for path in [*(folder.rglob("*") if deep else ()), folder]:
        file = os.open(path, os.O_RDONLY)
        try:
            os.fsync(file)
        finally:
            os.close(file)


class Unwritable(RuntimeError):
    """A folder that a command has to write cannot be written. The message says why, and what the user can do."""


@contextlib.contextmanager
def explained_write_errors(folder: Path) -> Iterator[None]:
    """A context that raises Unwritable in place of an OSError for which `unwritable_message` has a message. `folder`:
    the folder that is written, for the message."""
    try:
        yield
    except OSError as error:
        if message := unwritable_message(error, folder):
            raise Unwritable(message) from error
        raise


def unwritable_message(error: OSError, folder: Path) -> str | None:
    """The error message for a folder that cannot be written: why, and what the user can do. None where `error` is not
    about a full disk, a read-only file system, missing permissions or the largest size of a file."""
    where = error.filename or folder
    if error.errno in DISK_FULL:
        return f"the disk that holds {folder} is full: {where}. Free some space, and the same command goes on"
    if error.errno == errno.EFBIG:
        return (
            f"a file of {where} would be larger than files may be here: raise the limit (ulimit -f), or choose "
            "another OUT"
        )
    if error.errno == errno.EROFS:
        return (
            f"{where} is on a file system that is mounted read-only, and not all is prepared there: choose another OUT"
        )
    if error.errno in READ_ONLY:
        return (
            f"{where} is not yours to write. Several users can share a store where its folders belong to a "
            "group of theirs (chgrp -R, chmod -R g+rwXs) and each has said `umask 002`; else choose another OUT"
        )
    return None
