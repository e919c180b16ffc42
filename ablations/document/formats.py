"""Writes a document as Markdown, its tables as LaTeX and for the terminal, its numbers as CSV; page.py writes HTML.

Names, tasks and messages may come from a foreign run directory. All control characters are escaped here, so that none
reaches a file or the terminal.
"""

import csv
import io
import re

from ablations.document.blocks import Code, Figure, Image, Section, Table
from ablations.safe_files import printable


def markdown(title: str, sections: list[Section]) -> str:
    """A document as Markdown, without its figures, which only the HTML page shows."""
    parts = [f"# {printable(title)}"]
    for section in sections:
        if all(isinstance(block, Figure) for block in section.blocks):
            continue
        if section.title:
            parts.append(f"## {section.title}")
        for block in section.blocks:
            if isinstance(block, Table):
                if block.title:
                    parts.append(f"**{block.title}**")
                parts.append(markdown_table(block))
            elif isinstance(block, Code):
                parts.append(f"```\n{block.text}\n```")
            elif isinstance(block, Image):
                parts.append(f"![{block.alternative}]({block.file})")
            elif isinstance(block, str):
                parts.append(block)
    return printable("\n\n".join(parts)) + "\n"


def markdown_table(table: Table) -> str:
    lines = [[cell.replace("|", "\\|").replace("\n", " ") for cell in line] for line in (table.head, *table.rows)]
    text = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([text[0], "|" + "---|" * len(table.head), *text[1:]])


def plain_text(table: Table) -> str:
    """A table as text for the terminal, with aligned columns."""
    lines = [
        [printable(re.sub(r"\*\*|`", "", cell)).replace("\n", " ") for cell in line]
        for line in (table.head, *table.rows)
    ]
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
    """A table as LaTeX for a paper; it needs the package booktabs."""

    def words(cell: str) -> str:
        escaped = "".join(LATEX.get(character, character) for character in printable(cell))
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


def to_csv(lines: list[list]) -> str:
    """Lines of values as CSV text, without control characters in the values."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    for line in lines:
        writer.writerow([printable(value).replace("\n", " ") if isinstance(value, str) else value for value in line])
    return stream.getvalue()
