"""Reads the documents of a file. The file's layout says how documents lie in it: as JSON lines (C4, The Pile), as
OSCAR's text, in parquet, or as plain text. A `Ledger` collects what could not be read, and counts the records that were
left out."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

FORMATS = (".jsonl", ".json", ".txt")  # each plain, .gz or .zst
EXTENSIONS = [form + packed for form in FORMATS for packed in ("", ".gz", ".zst")] + [".parquet"]
LAYOUTS = (
    "auto",  # by the extension; .txt is OSCAR v1's
    "jsonl",  # a JSON object in each line, the document under "text": C4, The Pile, OSCAR 21.09
    "oscar-v1",  # documents of one or more lines, separated by blank lines
    "one-per-file",  # the file is the document: OpenWebText, PG-19
    "parquet",  # the document in the column "text"
)
DOMAIN = ("meta", "pile_set_name")  # The Pile's own name for the source of a document
PROBLEMS_SHOWN = 20  # problems named in one error message
BOM = b"\xef\xbb\xbf"  # UTF-8's byte order mark, as some editors write it
NO_TEXT = "zero bytes: damaged, or another encoding than UTF-8, such as UTF-16"  # of files of plain text
HUB_BLOCK_BYTES = 1 << 23  # bytes asked of the hub at a time; untuned


class SourceFile(NamedTuple):
    """A file of a corpus, from which documents are read."""

    path: Path | str  # on this machine; a str is an address on the Hugging Face hub
    name: str  # its path within the corpus or package, the same on every machine
    package: str  # the installed package that it belongs to; "" in a corpus of files
    size: int  # bytes
    sha256: str = ""  # of the content, as the hub lists it, or Git's hash (40 digits) in its place; "" where unknown


class Unreachable(RuntimeError):
    """A file of the Hugging Face hub could not be read, or differs from what the hub lists.

    It is not a ValueError because data/store.py removes an unfinished preparation after a ValueError, and after a
    failed transfer the preparation should continue."""


class Ledger:
    """The problems that readers met in the files, and the number of records that they left out.

    Attributes:
        allowed: the number of problems that are tolerated.
        problems: a sentence for each problem, which names the file and the line.
        counts: {kind: number of records} of the records that are left out without being problems. The kinds are "empty"
            (no text) and "not selected" (excluded by the value of a field).
    """

    def __init__(self, allowed: int = 0):
        self.allowed = allowed
        self.problems: list[str] = []
        self.counts: Counter[str] = Counter()

    def add_problem(self, location: Any, description: str) -> None:
        """Add a problem. `location`: the path of the file, or "path:line"; `description`: what is wrong. Raises
        ValueError, which lists all problems, where there are now more than `allowed`."""
        self.problems.append(f"{location}: {description}")
        check_problem_count(self.problems, self.allowed)


def check_problem_count(problems: list[str], allowed: int) -> None:
    """Raise ValueError where there are more than `allowed` problems. `problems`: a sentence for each; the message lists
    the first PROBLEMS_SHOWN."""
    if len(problems) <= allowed:
        return
    shown = problems[:PROBLEMS_SHOWN]
    if len(problems) > PROBLEMS_SHOWN:
        shown.append(f"and {len(problems) - PROBLEMS_SHOWN} more")
    if allowed or len(problems) > 1:
        shown.insert(0, f"{len(problems)} problems, data.allow_errors={allowed}:")
    raise ValueError("\n  ".join(shown))


def format_and_compression(name: str) -> tuple[str, str] | None:
    """The format and the compression of a file, told from its name: (".jsonl", ".gz") for a.jsonl.gz, (".txt", "") for
    a.txt. None where the name has none of EXTENSIONS."""
    match = re.fullmatch(r".+?(?:(\.jsonl|\.json|\.txt)(\.gz|\.zst|)|(\.parquet))", name, re.DOTALL)
    return (match[1] or match[3], match[2] or "") if match else None


def missing_numbered_files(names: Iterable[str]) -> list[str]:
    """A sentence for each incomplete series of numbered files. An example is data-3-of-8.jsonl, where only some of the
    numbers 1 to 8 exist. `names`: the names of all files that exist, numbered or not."""
    numbers_of_series: dict[tuple[str, int], set[int]] = {}
    for name in names:
        form, compression = format_and_compression(name) or ("", "")
        if match := re.search(r"(\d+)([-_.]?of[-_.]?)(\d+)", plain := name.removesuffix(form + compression)):
            series = f"{plain[: match.start()]}*{match[2]}{match[3]}{plain[match.end() :]}"
            numbers_of_series.setdefault((series, int(match[3])), set()).add(int(match[1]))
    return [
        f"{len(numbers):,} of the {total:,} files {series} {'is' if len(numbers) == 1 else 'are'} there"
        for (series, total), numbers in sorted(numbers_of_series.items())
        if len(numbers) < total
    ]


def read_documents(
    file: SourceFile, layout: str, ledger: Ledger, field: str = "", where: dict[str, list[str]] | None = None
) -> Iterator[tuple[str, str, dict]]:
    """Yield (id, text, labels) for each document of a file, in order. The id is "<name of the file>:<number of the line
    or row>", or the name alone where the whole file is one document. The labels are {"domain": name} where a record
    names its domain as The Pile does, else {}. Of a damaged file, the documents before the damage are yielded and the
    damage is reported.

    Args:
        file: the file. The content of a file on the hub is compared with `file.sha256`, if that is a sha256.
        layout: how documents lie in the file, one of LAYOUTS.
        ledger: where problems are reported, and records that are left out are counted.
        field: the key, or column, that has the text; "": "text", or "content" in newer files of OSCAR.
        where: {keys joined by dots: [allowed value, ...]}, such as {"meta.pile_set_name": ["Github"]}; a document with
            another value is left out. None: no document is left out.

    Raises:
        Unreachable: a file of the hub cannot be read, or its content is not what the hub lists.
        ValueError: there are more problems than the ledger allows, or the file's format is unknown.
    """
    path, name = file.path, file.name
    format_compression = format_and_compression(name)
    if format_compression is None and layout != "one-per-file":
        raise ValueError(f"{path}: unknown kind of file; allowed are {', '.join(EXTENSIONS)}")
    form, compression = format_compression or ("", "")
    if layout == "auto":
        layout = {".txt": "oscar-v1", ".parquet": "parquet"}.get(form, "jsonl")
    problems_before, count = len(ledger.problems), 0
    columns = [key.split(".")[0] for key in where or ()]
    source: Any = None
    try:
        source = HubFile(path, file.size, file.sha256) if isinstance(path, str) else open(path, "rb")
        with _uncompressed(source, compression) as content:
            for line, record in _LAYOUTS[layout](content, path, field, columns, ledger):
                text = record if isinstance(record, str) else _text_of(record, field, f"{path}:{line}", ledger)
                if text is None:
                    continue
                if not text.strip():
                    ledger.counts["empty"] += 1
                    continue
                count += 1
                if not _is_selected(record, where or {}):
                    ledger.counts["not selected"] += 1
                    continue
                domain = _value_at(record, DOMAIN)
                labels = {"domain": domain} if isinstance(domain, str) else {}
                yield f"{name}:{line}" if line else name, text, labels
            if isinstance(source, HubFile):
                source.verify()
    except _damage_errors(compression, layout) as error:
        if isinstance(source, HubFile):
            source.verify()  # where the damage is the transfer's, the corpus is not blamed
        ledger.add_problem(path, f"damaged or cut short: {error}")
    finally:
        if source:
            source.close()
    if not count and len(ledger.problems) == problems_before:
        ledger.add_problem(path, "holds no document")


def _damage_errors(compression: str, layout: str) -> tuple[type[Exception], ...]:
    """The exceptions that libraries raise when they read a damaged file of this compression (".gz", ".zst" or "") and
    layout (one of LAYOUTS)."""
    if compression == ".zst":
        import zstandard

        return EOFError, OSError, zstandard.ZstdError
    if layout == "parquet":
        import pyarrow

        # UnicodeDecodeError: a damaged name of a column
        return EOFError, OSError, pyarrow.ArrowException, UnicodeDecodeError
    return EOFError, OSError, zlib.error


class HubFile(io.RawIOBase):
    """A file on the Hugging Face hub, open for reading: its content is requested in ranges over HTTP, and hashed as it
    is read.

    Of huggingface_hub only the HTTP client is used, which tries five times before it fails. The file system class of
    huggingface_hub would list the whole repository in every process.

    Args:
        address: hf://datasets/organisation/name@commit/path.
        size: the number of bytes, as the hub lists it.
        sha256: the hash that the hub lists, for `verify`; a hash that is not a sha256 is ignored.
    """

    def __init__(self, address: str, size: int, sha256: str = ""):
        from huggingface_hub import hf_hub_url

        repo, _, revision_and_path = address.removeprefix("hf://datasets/").partition("@")
        revision, _, path = revision_and_path.partition("/")
        self.url = hf_hub_url(repo, path, repo_type="dataset", revision=revision)
        self.address, self.size, self.position = address, size, 0
        self.expected, self.hash = sha256 if len(sha256) == 64 else "", hashlib.sha256()

    def _unreachable(self, reason: str) -> Unreachable:
        """The error for a file that cannot be read; its message has the given reason and what the user can do."""
        return Unreachable(
            f"{self.address}: {reason}. The same command goes on with what is still to be read; where the "
            "files are here already, give their folder: FROM=folder"
        )

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        self.expected = ""  # parquet is not read from start to end
        self.position = max(0, offset + (0, self.position, self.size)[whence])
        return self.position

    def tell(self) -> int:
        return self.position

    def readinto(self, buffer: Any) -> int:
        from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_backoff

        size = max(0, min(len(buffer), self.size - self.position))
        if not size:
            return 0
        byte_range = {"Range": f"bytes={self.position}-{self.position + size - 1}"}
        try:
            response = http_backoff("GET", self.url, headers=build_hf_headers() | byte_range, timeout=60)
            hf_raise_for_status(response)
        except Exception as error:  # the library raises its own, those of its HTTP client and the operating system's
            reason = " ".join(str(error).split())
            raise self._unreachable(f"the hub did not send it ({type(error).__name__}: {reason})") from None
        if len(response.content) != size:
            raise self._unreachable(f"the hub sent {len(response.content)} bytes in place of {size}")
        if self.expected:
            self.hash.update(response.content)
        buffer[:size] = response.content
        self.position += size
        return size

    def verify(self) -> None:
        """Read the rest of the file, and raise Unreachable where the content does not have the sha256 that the hub
        lists. Nothing is read or compared after `seek`, with which parquet files are read."""
        while self.expected and self.read(HUB_BLOCK_BYTES):
            pass
        if self.expected and self.hash.hexdigest() != self.expected:
            raise self._unreachable(
                f"it came with the sha256 {self.hash.hexdigest()}, but the hub lists {self.expected}"
            )


def _uncompressed(raw: Any, compression: str) -> Any:
    if isinstance(raw, HubFile):
        raw = io.BufferedReader(raw, HUB_BLOCK_BYTES)
    if compression == ".gz":
        return gzip.GzipFile(fileobj=raw)
    if compression == ".zst":
        return io.BufferedReader(ZstdFrames(raw), 1 << 20)
    return raw


class ZstdFrames(io.RawIOBase):
    """The decompressed content of a .zst file, which may consist of several frames, as a file to read. Reading raises
    EOFError where the compressed file ends within a frame; zstandard's own reader does not notice that. `raw`: the
    compressed file, open for reading."""

    def __init__(self, raw: Any):
        import zstandard

        # a window of 2 GiB, the largest of `zstd --long`; zstandard alone stops at 128 MiB
        self.raw, self.new_frame = raw, zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj
        self.frame: Any = None  # the decompressor of the current frame
        self.packed = b""  # compressed bytes that were read and belong to the next frame
        self.plain = memoryview(b"")  # decompressed bytes that were not handed out yet

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self.plain:
            packed = self.packed or self.raw.read(1 << 17)
            if not packed:
                if self.frame:
                    raise EOFError("the end of the last frame is missing")
                return 0
            self.frame = self.frame or self.new_frame()
            self.plain, self.packed = memoryview(self.frame.decompress(packed)), b""
            if self.frame.eof:
                self.packed, self.frame = self.frame.unused_data, None
        size = min(len(buffer), len(self.plain))
        buffer[:size], self.plain = self.plain[:size], self.plain[size:]
        return size


def _is_selected(record: Any, where: dict[str, list[str]]) -> bool:
    """Whether a record has, under each key of `where`, one of the allowed values. A record that is plain text, without
    keys, counts as selected. `where`: {keys joined by dots: allowed values}."""
    if not isinstance(record, dict):
        return True
    return all(_value_at(record, key.split(".")) in allowed for key, allowed in where.items())


def _value_at(record: Any, keys: Iterable[str]) -> Any:
    """The value record[key1][key2]... of nested dictionaries; None where a key is missing."""
    for key in keys:
        record = record.get(key) if isinstance(record, dict) else None
    return record


def _text_of(record: Any, field: str, location: str, ledger: Ledger) -> str | None:
    if not isinstance(record, dict):
        ledger.add_problem(location, f'no string under "{field or "text"}"; the line has {type(record).__name__}')
        return None
    # OSCAR 22.01 and later write "content", beside the headers of the crawl
    field = field or ("content" if "warc_headers" in record else "text")
    if isinstance(record.get(field), str):
        return record[field]
    if field not in record:
        ledger.add_problem(location, f'no string under "{field}"; the line has {sorted(record)}')
    else:
        kind = "null" if record[field] is None else f"a {type(record[field]).__name__}"
        ledger.add_problem(location, f'"{field}" is {kind}, not a string')
    return None


# The readers of the layouts. A reader yields (number of the line or row, record or text) for each document of an open
# file. Its other arguments are: the path, for messages; the key or column of the text ("": "text"); the columns that
# `where` needs; and the ledger.


def _json_lines(
    file: IO[bytes], path: Any, field: str, columns: list[str], ledger: Ledger
) -> Iterator[tuple[int, Any]]:
    import orjson

    for number, line in enumerate(file, 1):
        line = line.removeprefix(BOM)
        try:
            yield number, orjson.loads(line)
        except orjson.JSONDecodeError:
            if not line.strip():
                continue
            try:  # JSON may escape half of a surrogate pair, which is no text: U+FFFD takes its place
                plain = json.dumps(json.loads(line.decode()), ensure_ascii=False)
                record = json.loads(plain.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))
            except UnicodeDecodeError as error:
                ledger.add_problem(f"{path}:{number}", f"not UTF-8: {error}")
                continue
            except (ValueError, RecursionError) as error:
                ledger.add_problem(f"{path}:{number}", f"not JSON: {error}")
                continue
            yield number, record


def _blank_line_separated_texts(
    file: IO[bytes], path: Any, field: str, columns: list[str], ledger: Ledger
) -> Iterator[tuple[int, str]]:
    start, damaged = 1, False
    lines: list[str] = []
    for number, raw in enumerate(_text_lines(file), 1):
        try:
            line = raw.decode()
        except UnicodeDecodeError as error:
            ledger.add_problem(f"{path}:{number}", f"not UTF-8: {error}; its document is left out")
            damaged, line = True, "damaged"
        if "\0" in line:
            ledger.add_problem(f"{path}:{number}", f"{NO_TEXT}; its document is left out")
            damaged = True
        if line.strip():
            start = start if lines else number
            lines.append(line)
        elif lines:
            if not damaged:
                yield start, "\n".join(lines)
            lines, damaged = [], False
    if lines and not damaged:
        yield start, "\n".join(lines)


def _text_lines(file: IO[bytes]) -> Iterator[bytes]:
    """Yield the lines of a text file, without the line ends \\n, \\r\\n or, in old files, \\r."""
    for number, raw in enumerate(file):
        raw = raw if number else raw.removeprefix(BOM)
        yield from (
            raw.removesuffix(b"\n").removesuffix(b"\r").replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        )


def _whole_file_text(
    file: IO[bytes], path: Any, field: str, columns: list[str], ledger: Ledger
) -> Iterator[tuple[int, str]]:
    try:
        text = file.read().removeprefix(BOM).decode().replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        ledger.add_problem(path, f"not UTF-8: {error}")
        return
    if "\0" in text:
        ledger.add_problem(path, NO_TEXT)
        return
    yield 0, text


def _parquet_rows(
    file: IO[bytes], path: Any, field: str, columns: list[str], ledger: Ledger
) -> Iterator[tuple[int, Any]]:
    """Yield (number of the row, from 1; record) for each row of a parquet file. A record is {column: value} of the
    column with the text, the columns in `columns`, and the column "meta" where "meta" contains the document's domain.
    `path`: for messages; `field`: the column with the text; "": "text"; `ledger`: where problems are reported."""
    import pyarrow
    from pyarrow import parquet

    parquet_file = parquet.ParquetFile(file)
    schema = parquet_file.schema_arrow
    text = field or "text"
    if absent := [column for column in (text, *columns) if column not in schema.names]:
        ledger.add_problem(path, f'no column "{absent[0]}"; the columns are {schema.names}')
        return
    if repeated := [column for column in (text, *columns, DOMAIN[0]) if schema.names.count(column) > 1]:
        ledger.add_problem(path, f'several columns are called "{repeated[0]}"')
        return
    has_domain = DOMAIN[0] in schema.names and pyarrow.types.is_struct(kind := schema.field(DOMAIN[0]).type)
    labels = [DOMAIN[0]] if has_domain and any(part.name == DOMAIN[1] for part in kind) else []
    needed = list(dict.fromkeys([text, *columns, *labels]))
    number = 0
    for batch in parquet_file.iter_batches(batch_size=1000, columns=needed):
        for row in zip(*(batch.column(column) for column in needed), strict=True):
            number += 1
            try:
                yield number, {column: value.as_py() for column, value in zip(needed, row, strict=True)}
            except UnicodeDecodeError as error:  # parquet says UTF-8 and checks nothing
                ledger.add_problem(f"{path}:{number}", f"not UTF-8: {error}")
            except (OverflowError, ValueError) as error:  # such as a date after the year 9999
                ledger.add_problem(f"{path}:{number}", f"a value cannot be read: {error}")


_LAYOUTS = {
    "jsonl": _json_lines,
    "oscar-v1": _blank_line_separated_texts,
    "one-per-file": _whole_file_text,
    "parquet": _parquet_rows,
}
