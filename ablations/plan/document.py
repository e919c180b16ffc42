"""Documents of plans and ladders: built part by part, written as Markdown and as one HTML page."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from ablations.document.blocks import Code, Figure, Image, Section, Table
from ablations.document.formats import markdown
from ablations.document.page import page
from ablations.drawing import combined_figures
from ablations.safe_files import read_text, write_together
from ablations.values import ConfigError


class Document:
    """A document that is built by adding parts from top to bottom. Figures are SVG text, see ablations/drawing.py."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.sections = [Section("", [])]
        self.figures: dict[str, str] = {}  # {name: SVG text}

    def add_heading(self, words: str) -> None:
        self.sections.append(Section(words, []))

    def add_text(self, words: str) -> None:
        self.sections[-1].blocks.append(words)

    def add_code(self, lines: str) -> None:
        self.sections[-1].blocks.append(Code(lines))

    def add_bullets(self, items: Sequence[str]) -> None:
        self.add_text("\n".join(f"* {item}" for item in items))

    def add_table(self, head: Sequence[str], rows: Sequence[Sequence[str]], strong: int | None = None) -> None:
        """Add a table. `head`: the names of the columns; `rows`: the cells of each row; `strong`: the index of the row
        in bold, or None."""
        lines = [[f"**{cell}**" if i == strong and cell else cell for cell in row] for i, row in enumerate(rows)]
        self.sections[-1].blocks.append(Table(list(head), lines))

    def add_figure(self, name: str, svg: str) -> None:
        """Add a figure, which the Markdown shows as the file `<name>.svg`. Nothing is added where `svg` is empty."""
        if svg:
            self.figures[name] = svg
            self.sections[-1].blocks.extend([Image(f"{name}.svg", name), Figure(svg)])

    def to_markdown(self) -> str:
        return markdown(self.title, self.sections)

    def files(self) -> dict[str, str]:
        """The files of the document: {name: content}, with report.md, report.html and an SVG file for each figure."""
        texts = {"report.md": self.to_markdown(), "report.html": page(self.title, self.sections)}
        return texts | {f"{name}.svg": combined_figures([svg]) for name, svg in self.figures.items()}

    def write(self, folder: Path) -> list[Path]:
        """Write the files of the document into a folder, all of them or none. Then remove figures that only the earlier
        report.md in the folder named. Returns the paths of the files. `folder`: created where it does not exist."""
        make_folder(folder)
        earlier = re.findall(r"^!\[(\w+)\]\(\1\.svg\)$", read_text(folder / "report.md"), re.M)
        files = self.files()
        write_together(folder, files)
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
