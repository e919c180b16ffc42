"""A document of headings, paragraphs, tables and figures, as Markdown and as one HTML page."""

import html
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ablations.drawing import STYLE, combined_figures
from ablations.safe_files import write_text
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
td.long{{min-width:16rem}}figure{{margin:1.5rem 0}}svg{{max-width:34rem;width:100%}}
@media(prefers-color-scheme:dark){{body{{color:#e6e8eb;background:#16181c}}td,th{{border-color:#2d3138}}}}
{style}</style></head><body>
{body}
</body></html>
"""
LONG = 40  # characters of a cell above which it is not squeezed on a phone, where the table scrolls instead


@dataclass
class Document:
    """A document, to which parts are added from top to bottom. Figures are SVG text (ablations/drawing.py)."""

    title: str
    blocks: list[tuple[str, object]] = field(default_factory=list)
    figures: list[tuple[str, str]] = field(default_factory=list)

    def heading(self, words: str) -> None:
        self.blocks.append(("heading", words))

    def text(self, words: str) -> None:
        self.blocks.append(("text", words))

    def bullets(self, items: Sequence[str]) -> None:
        self.blocks.append(("bullets", list(items)))

    def table(self, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        self.blocks.append(("table", [list(head), *map(list, rows)]))

    def figure(self, name: str, svg: str) -> None:
        if svg:
            self.figures.append((name, svg))
            self.blocks.append(("figure", name))

    def markdown(self) -> str:
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
                head, *rows = content
                out += [_row(head), _row(["---"] * len(head)), *map(_row, rows), ""]
        return "\n".join(out)

    def page(self) -> str:
        drawings = dict(self.figures)
        out = [f"<h1>{html.escape(self.title)}</h1>"]
        content: Any
        for kind, content in self.blocks:
            if kind == "heading":
                out.append(f"<h2>{html.escape(str(content))}</h2>")
            elif kind == "text":
                out.append(f"<p>{html.escape(str(content))}</p>")
            elif kind == "bullets":
                items = (f"<li>{html.escape(item)}</li>" for item in content)
                out.append(f"<ul>{''.join(items)}</ul>")
            elif kind == "figure":
                out.append(f"<figure>{drawings[str(content)]}</figure>")
            else:
                head, *rows = content
                out.append(f"<table>{_cells(head, 'th')}{''.join(_cells(row, 'td') for row in rows)}</table>")
        return PAGE.format(title=html.escape(self.title), style=STYLE, body="\n".join(out))

    def write(self, folder: Path) -> list[Path]:
        """Write report.md, report.html and a file for each figure. Returns their paths."""
        make_folder(folder)
        files = {"report.md": self.markdown(), "report.html": self.page()}
        files |= {f"{name}.svg": combined_figures([svg]) for name, svg in self.figures}
        for name, content in files.items():
            write_text(folder / name, content)
        return [folder / name for name in files]


def make_folder(folder: Path) -> None:
    """Create the folder of a document. Raises ConfigError where it cannot be created or written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"TO={folder} is no folder that can be written: {error.strerror}") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError(f"TO={folder} is no folder that can be written: permission denied")


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def _cells(cells: Sequence[str], tag: str) -> str:
    columns = ((f'{tag} class="long"' if len(cell) > LONG else tag, cell) for cell in cells)
    return f"<tr>{''.join(f'<{start}>{html.escape(cell)}</{tag}>' for start, cell in columns)}</tr>"
