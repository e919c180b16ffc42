"""Reads the documents in one file of a corpus: the docstrings or the source code of a module of a Python package, or
the records of a file in one of `readers.LAYOUTS`."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data import readers
from data.readers import Ledger, SourceFile


def read_documents(
    spec: dict[str, Any], file: SourceFile, ledger: Ledger | None = None
) -> Iterator[tuple[str, str, dict]]:
    """Yield (id, text, labels) for each document in one file of a corpus, in the order of the file. The labels are
    {"package": name} in a corpus of packages. In a corpus of files they are {"domain": name} where a record names its
    domain, else {}.

    Args:
        spec: the specification of the corpus, from `corpus.load_specification`.
        file: the file to read.
        ledger: where problems with the file are reported; None: the first problem raises ValueError.
    """
    ledger = ledger or Ledger()
    if "files" in spec:
        yield from readers.read_documents(file, spec["layout"], ledger, spec.get("text", ""), spec.get("where"))
        return
    assert isinstance(file.path, Path)
    labels = {"package": file.package}
    if file.path.suffix != ".py":
        # the file METADATA: its headers vary with the build tool, the text below them is the package's README
        text = file.path.read_text(encoding="utf-8").partition("\n\n")[2]
        if len(text) >= spec["minimum"]:
            yield f"{file.package} README", text, labels
    else:
        source = file.path.read_bytes().decode("utf-8", "replace").replace("\r\n", "\n")
        texts = docstrings(source, file.name) if spec["text"] == "docstrings" else [(file.name, source)]
        yield from ((name, text, labels) for name, text in texts if len(text) >= spec["minimum"])


def docstrings(source: str, file: str) -> Iterator[tuple[str, str]]:
    """Yield (qualified name, text) for a Python module and each of its functions and classes, if it has a docstring.
    The text is the qualified name and below it the docstring; the text of a class includes its members' docstrings.
    Code that does not parse yields nothing.

    `source`: the code of the module; `file`: its path from the folder of installed packages, such as
    "numpy/linalg/__init__.py", for the qualified names.
    """
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
    """Yield the text "<qualified name>\\n\\n<docstring>" for a function or class, and for each member of a class, where
    it has a docstring. `node`: the syntax tree of the definition; `path`: the qualified name of the module or class
    that contains the definition."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        path = f"{path}.{node.name}"
        if text := ast.get_docstring(node):
            yield f"{path}\n\n{text}"
        for child in node.body if isinstance(node, ast.ClassDef) else ():
            yield from _documentation_of_members(child, path)
