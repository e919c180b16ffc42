"""Writes a document as one HTML file that needs no network, has a light and a dark mode, is readable on a phone, and
has tables that can be sorted."""

import html
import re

from ablations.document.blocks import Code, Figure, Section, Table
from ablations.drawing import STYLE
from ablations.safe_files import printable

CSS = """\
:root{color-scheme:light dark;--ink:#1c1e21;--paper:#fff;--faint:#5f6670;--grid:#e4e6ea;--tint:#f5f6f8;--link:#0b62a8}
@media(prefers-color-scheme:dark){:root{--ink:#e6e8eb;--paper:#16181c;--faint:#9aa1ab;--grid:#2d3138;--tint:#1e2126;
--link:#7cc4f5}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:1040px;margin:0 auto;padding:24px 20px 64px}
h1{font-size:1.6rem;line-height:1.25;margin:.2em 0 .6em}
h2{font-size:1.15rem;margin:2.4em 0 .6em;padding-top:.4em;border-top:1px solid var(--grid)}
p,ul{max-width:46em;margin:.7em 0;overflow-wrap:anywhere}a{color:var(--link)}
nav{font-size:.9rem;margin:0 0 1em;line-height:2}nav a{white-space:nowrap;margin-right:1em;text-decoration:none}
pre,code{font:.86em ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
pre{background:var(--tint);padding:10px 12px;border-radius:6px;overflow-x:auto}
.wide{overflow-x:auto;margin:1em 0}
table{border-collapse:collapse;font-size:.88rem;font-variant-numeric:tabular-nums}
caption{text-align:left;font-weight:600;padding:0 0 .4em}
th,td{text-align:left;vertical-align:top;padding:5px 14px 5px 0;border-bottom:1px solid var(--grid)}
td.n{white-space:nowrap}td.w{min-width:16em}
thead th{border-bottom:1px solid var(--faint);font-weight:600;vertical-align:bottom}
th button{all:unset;cursor:pointer;font:inherit}
th button:focus-visible{outline:2px solid var(--link);outline-offset:2px}
th button::after{content:"";display:inline-block;width:1em;color:var(--faint)}
th[aria-sort=ascending] button::after{content:"↑"}th[aria-sort=descending] button::after{content:"↓"}
.figs{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(340px,100%),1fr));gap:20px 32px;margin:1.2em 0;
align-items:start}
figure{margin:0;min-width:0;overflow-x:auto}figure svg{display:block;width:100%;height:auto;max-width:520px}
figcaption{font-size:.85rem;color:var(--faint);max-width:520px}
summary{cursor:pointer}summary h2{display:inline-block;border:0;margin:0;padding:0}
details{border-top:1px solid var(--grid);margin:2.4em 0 0;padding-top:.8em}
footer{margin-top:3em;font-size:.85rem;color:var(--faint)}
@media(max-width:480px){main{padding:14px 14px 48px}h1{font-size:1.3rem}
table{font-size:.8rem}th,td{padding-right:9px}td.w{min-width:9em}}
@media print{details>*{display:block}nav{display:none}}
"""

SORT = """\
document.querySelectorAll("table").forEach(table => {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  heads.forEach((head, i) => head.firstChild.addEventListener("click", () => {
    const up = head.getAttribute("aria-sort") !== "ascending";
    const value = row => row.cells[i].textContent.trim();
    const number = text => parseFloat(text.replace("\\u2212", "-").replaceAll(",", ""));
    const rows = [...body.rows].sort((a, b) => {
      const x = number(value(a)), y = number(value(b));
      if (isNaN(x) !== isNaN(y)) return isNaN(x) ? 1 : -1;
      return (up ? 1 : -1) * (isNaN(x) ? value(a).localeCompare(value(b)) : x - y);
    });
    heads.forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    body.append(...rows);
  }));
});
"""


def page(title: str, sections: list[Section]) -> str:
    """A document as the content of an HTML file, with links to its sections at the top."""
    titles = [section.title for section in sections if section.title]
    links = " ".join(f'<a href="#{anchor(words)}">{escape(words)}</a>' for words in titles)
    body = "\n".join(map(section, sections))
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width,initial-scale=1">
<title>{escape(title)}</title>
<link rel="icon" href="data:,">
<style>
{CSS}{STYLE}</style>
</head>
<body>
<main>
<h1>{escape(title)}</h1>
<nav>{links}</nav>
{body}
</main>
<script>
{SORT}</script>
</body>
</html>
"""


def section(part: Section) -> str:
    elements: list[str] = []
    figures: list[str] = []  # those that follow one another stand side by side where there is room
    for block in [*part.blocks, ""]:
        if isinstance(block, Figure):
            if block.svg:
                caption = f"<figcaption>{marked_up(block.caption)}</figcaption>" if block.caption else ""
                figures.append(f"<figure>{scrollable_figure(block.svg)}{caption}</figure>")
            continue
        if figures:
            row = "\n".join(figures)
            elements.append(f'<div class="figs">\n{row}\n</div>')
            figures = []
        if isinstance(block, Table):
            elements.append(table(block))
        elif isinstance(block, Code):
            elements.append(f"<pre>{escape(block.text)}</pre>")
        elif isinstance(block, str) and block:
            elements.append(paragraph(block))
    body = "\n".join(elements)
    head = f'<h2 id="{anchor(part.title)}">{escape(part.title)}</h2>' if part.title else ""
    if part.folded:
        return f"<details><summary>{head}</summary>\n{body}\n</details>"
    return f"<section>{head}\n{body}\n</section>"


def scrollable_figure(svg: str) -> str:
    """A figure as HTML. A figure that is wider than 420 pixels gets a scroll bar on a narrow screen and is not shrunk.
    `svg`: the figure as text."""
    width = float(re.findall(r'viewBox="0 0 ([\d.]+)', svg)[0])
    return svg if width <= 420 else svg.replace("<svg ", f'<svg style="min-width:{0.85 * width:.0f}px" ', 1)


def table(part: Table) -> str:
    head = "".join(f'<th scope="col"><button>{marked_up(cell)}</button></th>' for cell in part.head)
    rows = "\n".join("<tr>" + "".join(cell_html(cell) for cell in row) + "</tr>" for row in part.rows)
    caption = f"<caption>{marked_up(part.title)}</caption>" if part.title else ""
    return f'<div class="wide"><table>{caption}<thead><tr>{head}</tr></thead><tbody>\n{rows}\n</tbody></table></div>'


def cell_html(cell: str) -> str:
    kind = ' class="n"' if len(cell.replace("*", "")) < 34 else ' class="w"'
    return f"<td{kind}>{marked_up(cell)}</td>"


def paragraph(text: str) -> str:
    if text.startswith("* "):
        return "<ul>" + "".join(f"<li>{marked_up(line[2:])}</li>" for line in text.split("\n")) + "</ul>"
    return f"<p>{marked_up(text)}</p>"


def marked_up(text: str) -> str:
    """A text of a document as HTML, in which **bold** and `code` are marked up."""
    bold = re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", escape(text, quote=False))
    return re.sub(r"`(.+?)`", r"<code>\1</code>", bold)


def escape(text: str, quote: bool = True) -> str:
    """A text escaped for HTML, without the control characters that foreign run directories may contain. `quote`:
    whether quotation marks are escaped too."""
    return html.escape(printable(text), quote)


def anchor(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
