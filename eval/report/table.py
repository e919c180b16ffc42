"""The parts of a report, and each of them as Markdown, LaTeX and plain text. HTML: eval/report/page.py.

Words may hold **bold** and `code`; nothing else is marked up.
"""

import re
from typing import NamedTuple


class Table(NamedTuple):
    head: list[str]
    rows: list[list[str]]
    title: str = ""


class Figure(NamedTuple):
    svg: str  # an <svg>; empty: there is nothing to draw
    caption: str = ""


class Code(NamedTuple):
    text: str


class Image(NamedTuple):
    """A file beside the report; the page has its figures inside, so it shows none."""

    file: str
    alt: str


class Section(NamedTuple):
    title: str
    blocks: list["str | Table | Figure | Code | Image"]
    folded: bool = False  # on the page: closed until it is opened


def markdown(title: str, sections: list[Section]) -> str:
    """Figures are on the page alone."""
    parts = [f"# {title}"]
    for section in sections:
        if all(isinstance(block, Figure) for block in section.blocks):
            continue
        parts += [f"## {section.title}"] if section.title else []
        for block in section.blocks:
            if isinstance(block, Table):
                parts += [f"**{block.title}**"] * bool(block.title) + [grid([block.head, *block.rows])]
            elif isinstance(block, Code):
                parts.append(f"```\n{block.text}\n```")
            elif isinstance(block, Image):
                parts.append(f"![{block.alt}]({block.file})")
            elif isinstance(block, str):
                parts.append(block)
    return "\n\n".join(parts) + "\n"


def grid(lines: list[list[str]]) -> str:
    """A Markdown table; the first line is its head."""
    safe = [[cell.replace("|", "\\|").replace("\n", " ") for cell in line] for line in lines]
    text = [f"| {' | '.join(line)} |" for line in safe]
    return "\n".join([text[0], "|" + "---|" * len(lines[0]), *text[1:]])


def plain_text(table: Table) -> str:
    """Columns of equal width, for a terminal."""
    lines = [[re.sub(r"\*\*|`", "", cell) for cell in line] for line in (table.head, *table.rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines]
    return "\n".join("    ".join(line).rstrip() for line in padded)


LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "×": r"$\times$",
    "∞": r"$\infty$",
    "−": "$-$",
    "–": "--",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
}


def latex(table: Table, caption: str) -> str:
    """A table for a paper (packages: booktabs)."""

    def words(cell: str) -> str:
        escaped = "".join(LATEX.get(c, c) for c in cell)
        return re.sub(r"\*\*(.+?)\*\*", r"\\textbf{\1}", re.sub(r"`(.+?)`", r"\\texttt{\1}", escaped))

    lines = [" & ".join(map(words, line)) + r" \\" for line in (table.head, *table.rows)]
    return "\n".join(
        [
            "% needs \\usepackage{booktabs}",
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{words(caption)}}}",
            rf"\begin{{tabular}}{{l{'r' * (len(table.head) - 2)}l}}",
            r"\toprule",
            lines[0],
            r"\midrule",
            *lines[1:],
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def plus_minus(value: float, error: float, digits: int) -> str:
    return f"{value:.{digits}f} ± {error:.{digits}f}"
