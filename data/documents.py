"""The documents in one file of a corpus: docstrings or source of a Python package, or records by the file's layout."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data import readers
from data.readers import Ledger
from data.sources import SourceFile


def documents(spec: dict[str, Any], file: SourceFile, ledger: Ledger | None = None) -> Iterator[tuple[str, str, dict]]:
    """Yield (id, text, labels) for each document in one file of a corpus, in file order. The labels are {"package":
    name} in a corpus of packages; in a corpus of files {"domain": name} where a record names its domain, else {}.
    `spec`: the specification of the corpus, from `corpus.load`; `file`: the file to read; `ledger`: where problems with
    the file are reported; None: the first problem raises ValueError."""
    ledger = ledger or Ledger()
    if "files" in spec:
        yield from readers.documents(
            file.path,
            file.name,
            spec["layout"],
            ledger,
            spec.get("text", ""),
            spec.get("where") or {},
            file.size,
            file.sha256,
        )
        return
    assert isinstance(file.path, Path)
    labels = {"package": file.package}
    if file.path.suffix != ".py":
        # Headers of the description vary with the build tool; the text below them is the package's README.
        text = file.path.read_text(encoding="utf-8").partition("\n\n")[2]
        if len(text) >= spec["minimum"]:
            yield f"{file.package} README", text, labels
    else:
        source = file.path.read_bytes().decode("utf-8", "replace").replace("\r\n", "\n")
        texts = docstrings(source, file.name) if spec["text"] == "docstrings" else [(file.name, source)]
        yield from ((name, text, labels) for name, text in texts if len(text) >= spec["minimum"])


def docstrings(source: str, file: str) -> Iterator[tuple[str, str]]:
    """Yield (qualified name, text) for the docstring of a Python module, and for each of its functions and classes that
    has documentation. The text of a class includes the docstrings of its members. Source code that does not parse
    yields nothing. `source`: the source code of the module; `file`: its path within the package, from which the
    qualified names are made."""
    try:
        module = ast.parse(source)
    except (SyntaxError, ValueError):
        return  # templates and examples of broken code
    path = file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    if text := ast.get_docstring(module):
        yield path, f"{path}\n\n{text}\n"
    for node in module.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            parts = list(_documentation_of_members(node, path))
            if parts:
                yield f"{path}.{node.name}", "\n\n".join(parts) + "\n"


def _documentation_of_members(node: ast.AST, path: str) -> Iterator[str]:
    """Yield a text, "name<blank line>docstring", for a function or class that has a docstring, and for each member of a
    class that has one. Names are qualified. `node`: the syntax tree of the definition; `path`: the qualified name of
    what contains the definition."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        path = f"{path}.{node.name}"
        if text := ast.get_docstring(node):
            yield f"{path}\n\n{text}"
        for child in node.body if isinstance(node, ast.ClassDef) else ():
            yield from _documentation_of_members(child, path)
