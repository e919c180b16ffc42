"""The parts of a document: sections of paragraphs, tables, figures and code.

A text may contain **bold** and `code` and no other markup. formats.py writes the parts as Markdown, LaTeX and for the
terminal, page.py as HTML.
"""

from math import isnan
from typing import NamedTuple


class Table(NamedTuple):
    head: list[str]  # names of the columns
    rows: list[list[str]]  # cells of each row, as text
    title: str = ""


class Figure(NamedTuple):
    svg: str  # an <svg>; empty: there is nothing to draw
    caption: str = ""


class Code(NamedTuple):
    text: str


class Image(NamedTuple):
    """An image file beside the document. Only Markdown shows it, since the HTML page contains its figures."""

    file: str
    alternative: str


Block = str | Table | Figure | Code | Image


class Section(NamedTuple):
    title: str
    blocks: list[Block]
    folded: bool = False  # on the page: closed until it is opened

    @property
    def is_empty(self) -> bool:
        """Whether the section has no text or table, and none of its figures has anything to draw."""
        return not any(block for block in self.blocks if not isinstance(block, Figure) or block.svg)


def plus_minus(value: float, error: float, digits: int) -> str:
    """A number with its standard error as text, such as "1.234 ± 0.012"; the number alone where the standard error is
    NaN (unknown)."""
    return f"{value:.{digits}f}" if isnan(error) else f"{value:.{digits}f} ± {error:.{digits}f}"
