"""Documents of headings, paragraphs, tables and figures, written as Markdown and as one HTML page."""

import html
import itertools
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ablations.drawing import STYLE, combined_figures
from ablations.safe_files import read_text, write_text
from ablations.values import ConfigError

PAGE = """\
<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title><style>
body{{font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;max-width:60rem;margin:2rem auto;
padding:0 1rem;color:#1c1e21;background:#fff}}
h1{{font-size:clamp(1.4rem,5vw,2rem);line-height:1.25}}h2{{font-size:clamp(1.15rem,4vw,1.5rem)}}
table{{border-collapse:collapse;font-size:14px;display:block;overflow-x:auto;font-variant-numeric:tabular-nums}}
td,th{{padding:.2rem .9rem .2rem 0;border-bottom:1px solid #e4e6ea;text-align:left;vertical-align:top}}
td.long{{min-width:16rem}}.short{{white-space:nowrap}}.number{{text-align:right;white-space:nowrap}}
tr.strong td{{font-weight:600}}
.figures{{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,24rem),1fr));gap:1.5rem;margin:1.5rem 0}}
figure{{margin:0}}svg{{max-width:34rem;width:100%}}tr,figure{{break-inside:avoid}}
@media(max-width:40rem){{.words tr:first-child{{display:none}}.words tr{{display:block;padding:.3rem 0}}
.words td{{display:block;border:0;min-width:0}}.words td:first-child{{font-weight:600}}
.words tr{{border-bottom:1px solid #e4e6ea}}.words td:empty{{display:none}}}}
@media(prefers-color-scheme:dark){{body{{color:#e6e8eb;background:#16181c}}td,th,.words tr{{border-color:#2d3138}}}}
{style}</style></head><body>
{body}
</body></html>
"""
# A number with an optional unit. Columns of such numbers, or of ranges of them, are aligned to the right.
NUMBER = re.compile(r"[-+]?[\d,]*\.?\d+(e\d+)?\s?(%|[KMBT]|min|points|times)?")
SHORT_CELL = 24  # characters; shorter cells stay on one line
LONG_CELL = 40  # characters; longer cells keep a least width on a phone, where the table scrolls sideways


@dataclass(frozen=True)
class Table:
    """A table of a document. All cells are text; `strong` is the index of the row in bold; None: no row is."""

    head: list[str]
    rows: list[list[str]]
    strong: int | None

    def to_markdown(self) -> list[str]:
        rows = [
            [f"**{cell}**" if i == self.strong and cell else cell for cell in row] for i, row in enumerate(self.rows)
        ]
        return [markdown_row(self.head), markdown_row(["---"] * len(self.head)), *map(markdown_row, rows)]

    def to_html(self) -> str:
        columns = zip(*self.rows, strict=True) if self.rows else [()] * len(self.head)
        kinds = ["number" if any(column) and all(map(_is_number, column)) else "" for column in columns]
        out = [f"<tr>{cells_html(self.head, kinds, 'th')}</tr>"]
        for i, row in enumerate(self.rows):
            start = '<tr class="strong">' if i == self.strong else "<tr>"
            out.append(f"{start}{cells_html(row, kinds, 'td')}</tr>")
        # on a phone a table of words shows its cells below each other, and a table with numbers scrolls sideways
        style = "" if any(kinds) else ' class="words"'
        return f"<table{style}>{''.join(out)}</table>"


@dataclass
class Document:
    """A document that is built by adding parts from top to bottom. Figures are SVG text, see ablations/drawing.py."""

    title: str
    # (kind, content): "heading" and "text" with text, "bullets" with a list of texts, "table" with a Table, "figure"
    # with the figure's name
    blocks: list[tuple[str, Any]] = field(default_factory=list)
    figures: list[tuple[str, str]] = field(default_factory=list)  # (name, SVG text)

    def add_heading(self, words: str) -> None:
        self.blocks.append(("heading", words))

    def add_text(self, words: str) -> None:
        self.blocks.append(("text", words))

    def add_bullets(self, items: Sequence[str]) -> None:
        self.blocks.append(("bullets", list(items)))

    def add_table(self, head: Sequence[str], rows: Sequence[Sequence[str]], strong: int | None = None) -> None:
        """Add a table. `head`: the names of the columns; `rows`: the cells of each row; `strong`: the index of the row
        in bold; None: no row is."""
        self.blocks.append(("table", Table(list(head), [list(row) for row in rows], strong)))

    def add_figure(self, name: str, svg: str) -> None:
        if svg:
            self.figures.append((name, svg))
            self.blocks.append(("figure", name))

    def to_markdown(self) -> str:
        out = [f"# {self.title}", ""]
        content: Any
        for kind, content in self.blocks:
            if kind == "heading":
                out += [f"## {content}", ""]
            elif kind == "text":
                out += [str(content), ""]
            elif kind == "bullets":
                out += [*(f"* {item}" for item in content), ""]
            elif kind == "figure":
                out += [f"![{content}]({content}.svg)", ""]
            else:
                out += [*content.to_markdown(), ""]
        return "\n".join(out)

    def to_html(self) -> str:
        drawings = dict(self.figures)
        out = [f"<h1>{html.escape(self.title)}</h1>"]
        content: Any
        for kind, blocks in itertools.groupby(self.blocks, key=lambda block: block[0]):
            contents = [content for _, content in blocks]
            if kind == "figure":  # neighbouring figures stand side by side where there is room
                figures = (f"<figure>{drawings[content]}</figure>" for content in contents)
                out.append(f'<div class="figures">{"".join(figures)}</div>')
                continue
            for content in contents:
                if kind == "heading":
                    out.append(f"<h2>{html.escape(content)}</h2>")
                elif kind == "text":
                    out.append(f"<p>{html.escape(content)}</p>")
                elif kind == "bullets":
                    items = (f"<li>{html.escape(item)}</li>" for item in content)
                    out.append(f"<ul>{''.join(items)}</ul>")
                else:
                    out.append(content.to_html())
        return PAGE.format(title=html.escape(self.title), style=STYLE, body="\n".join(out))

    def write(self, folder: Path) -> list[Path]:
        """Write report.md, report.html and an SVG file for each figure into a folder, and remove the figures of the
        report.md that was there before. Returns the paths of the files. `folder`: created where it does not exist."""
        make_folder(folder)
        earlier = re.findall(r"^!\[(\w+)\]\(\1\.svg\)$", read_text(folder / "report.md"), re.M)
        files = {"report.md": self.to_markdown(), "report.html": self.to_html()}
        files |= {f"{name}.svg": combined_figures([svg]) for name, svg in self.figures}
        for name, content in files.items():
            write_text(folder / name, content)
        for name in {f"{name}.svg" for name in earlier} - files.keys():
            (folder / name).unlink(missing_ok=True)
        return [folder / name for name in files]


def make_folder(folder: Path) -> None:
    """Create a folder for a document, unless it exists. Raises ConfigError where it cannot be created or written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"TO={folder} is no folder that can be written: {error.strerror}") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError(f"TO={folder} is no folder that can be written: permission denied")


def markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def _is_number(cell: str) -> bool:
    """Whether a cell contains a number, a range of numbers ("3 to 5"), or nothing."""
    return all(NUMBER.fullmatch(part) for part in cell.split(" to ")) if cell else True


def cells_html(cells: Sequence[str], kinds: Sequence[str], tag: str) -> str:
    out = []
    for cell, kind in zip(cells, kinds, strict=True):
        kind = kind or ("long" if len(cell) > LONG_CELL else "short" if len(cell) <= SHORT_CELL else "")
        start = f'{tag} class="{kind}"' if kind else tag
        out.append(f"<{start}>{html.escape(cell)}</{tag}>")
    return "".join(out)
