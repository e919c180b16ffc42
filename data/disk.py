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
    """A context that holds an exclusive lock on the file `path`; other processes, on this machine or another, wait for
    the lock. Raises ValueError where the file system has no locks."""
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


def write_bytes(path: Path, content: bytes, durable: bool = True) -> None:
    """Write a file so that, even after a power loss, it has either its old content or the whole new one.

    A symbolic link at `path` is replaced, not followed. Several processes, on this machine or others, may write the
    same file at once. `content`: the new content; `durable`: whether to wait until the content is on the disk. If
    False, a power loss may damage the file.
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


def write_whole(path: Path, text: str) -> None:
    """Write a text file, and its folder where that is missing, as `write_bytes` does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, text.encode())


def wait_until_on_disk(folder: Path, deep: bool = True) -> None:
    """Wait until the content of a folder is on the disk. After a power loss the folder could otherwise be there without
    its files. `deep`: also wait for the content of all files below the folder; False: for its list of entries only."""
    for path in [*(folder.rglob("*") if deep else ()), folder]:
        file = os.open(path, os.O_RDONLY)
        try:
            os.fsync(file)
        finally:
            os.close(file)


class Unwritable(RuntimeError):
    """A folder that a command has to write cannot be written; the message says why, and what helps."""


@contextlib.contextmanager
def explained_write_errors(folder: Path) -> Iterator[None]:
    """A context that turns the operating system's errors for a full disk, a read-only file system or missing
    permissions into Unwritable, whose message says what helps. `folder`: the folder that is written, for the
    message."""
    try:
        yield
    except OSError as error:
        if sentence := cannot_write(error, folder):
            raise Unwritable(sentence) from error
        raise


def cannot_write(error: OSError, folder: Path) -> str | None:
    """A sentence that says why `folder` cannot be written and what helps, where `error` is about a full disk, a
    read-only file system or missing permissions; None for errors of other kinds."""
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
