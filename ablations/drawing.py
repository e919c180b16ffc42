"""Figures as SVG text: lines, intervals, bars, coloured tables. The same input always gives the same bytes.

matplotlib is not used, because a report is read in light and dark mode, on a phone and in print. Here colours are CSS
classes that follow the page, text remains text, a figure is 400 units wide with text of 12 units, and a page of ten
figures takes some 50 kB.
"""

from __future__ import annotations

import html
import math
import re
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from ablations.safe_files import printable
from ablations.values import short_number

if TYPE_CHECKING:  # importing numpy takes time, which commands that plan have no need for
    import numpy as np

WIDTH, HEIGHT = 400, 270
RIGHT = WIDTH - 14  # horizontal coordinate of the right end of a plot
COLUMNS = 2  # figures beside each other in a file
WIDEST_INTERVAL = 2.5  # intervals are cut at this many times the median half-width or largest difference; a choice
MARKED_POINTS = 12  # a line of more points has no marks at its points
SERIES = 7  # colours of curves: Okabe and Ito's, distinct for the colour-blind; 0, the baseline's, is that of text

STYLE = """\
.fig{color:var(--ink);--ink:#1c1e21;--paper:#fff;--faint:#8a9099;--grid:#e4e6ea;--good:#0072b2;--bad:#d55e00;
--s0:#1c1e21;--s1:#0072b2;--s2:#d55e00;--s3:#00865f;--s4:#b5528f;--s5:#a97800;--s6:#3b8fc4}
@media(prefers-color-scheme:dark){.fig{--ink:#e6e8eb;--paper:#16181c;--faint:#868d97;--grid:#2d3138;--good:#5cb8f0;--bad:#ff9350;
--s0:#e6e8eb;--s1:#5cb8f0;--s2:#ff9350;--s3:#35cfa0;--s4:#e99cc9;--s5:#f0c341;--s6:#a4b0ff}}
.fig text{font:12px system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;fill:var(--ink)}
.fig .faint{fill:var(--faint)}.fig .head{font-weight:600;font-size:13px}
.fig .grid{stroke:var(--grid)}.fig .axis{stroke:var(--faint)}
.fig .line{fill:none;stroke-width:2;stroke-linejoin:round}.fig .thin{stroke-width:.8;stroke-opacity:.45}
.fig .dash{stroke-dasharray:5 4}
.fig .good{fill:var(--good);stroke:var(--good)}.fig .bad{fill:var(--bad);stroke:var(--bad)}
.fig .same{fill:var(--faint);stroke:var(--faint)}
.fig .halo{paint-order:stroke;stroke:var(--paper);stroke-width:4px;stroke-linejoin:round}
"""
STYLE += "".join(f".fig .s{i}{{stroke:var(--s{i})}}.fig .f{i}{{fill:var(--s{i})}}" for i in range(SERIES)) + "\n"


class Line(NamedTuple):
    """One curve of a figure, through the points (x[i], y[i]).

    Args:
        label: its name in the legend.
        colour: a number below SERIES.
        kind: how the curve is drawn: "" as a line, "thin", "dash" (a dashed line) or "point" (points alone). A thin
            curve is not in the legend.
    """

    label: str
    colour: int
    x: Sequence[float] | np.ndarray
    y: Sequence[float] | np.ndarray
    kind: str = ""


def ticks(low: float, high: float, log: bool = False, count: int = 6) -> list[float]:
    """Round numbers between `low` and `high` for the ticks of an axis, about `count` of them. `log`: whether the axis
    is logarithmic."""
    if log:
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        for steps in ((1, 2, 5), (1, 3), (1,)):
            positions = [s * 10.0**d for d in decades for s in steps if low <= s * 10.0**d <= high]
            if len(positions) <= count:
                break
        if len(positions) > count:
            positions = positions[:: math.ceil(len(positions) / count)]
        return positions if len(positions) > 1 else ticks(low, high, count=count)
    step = 10.0 ** math.floor(math.log10((high - low) / count))
    step *= next(s for s in (1, 2, 5, 10) if (high - low) / (s * step) <= count)
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 12) for k in range(first, math.floor(high / step + 1e-9) + 1)]


def axis_scale(low: float, high: float, start: float, end: float, log: bool = False) -> Callable[[float], float]:
    """A function that maps a value on an axis to its coordinate in the figure: `low` to `start` and `high` to `end`.
    `log`: whether the axis is logarithmic."""
    f = math.log if log else float
    width = (f(high) - f(low)) or 1.0
    return lambda value: start + (f(value) - f(low)) / width * (end - start)


def text_width(text: str, size: float = 12) -> float:
    """The estimated width of a text, in units of the figure, in a font of `size` units. The estimate is rather too
    large."""
    return 0.58 * size * len(text)


def cut_to_width(words: str, room: float, size: float = 12) -> str:
    """The text `words` or, if it is wider than `room`, "…" and as much of its end as fits. The end is kept since long
    texts are paths and settings, which differ at their ends. `size`: the size of the font; `room` and `size` are in
    units of the figure."""
    most = max(2, int(room / text_width("x", size)))
    return words if len(words) <= most else "…" + words[1 - most :]


def line_plot(
    title: str,
    curves: Iterable[Line],
    xlabel: str,
    ylabel: str,
    logx: bool = False,
    logy: bool = False,
    zero: bool = False,
    zoom: bool = False,
    marks: dict[str, float] | None = None,
    xticks: Sequence[float] = (),
) -> str:
    """Draw curves over a common axis (a line plot). Returns the figure as SVG text; "" where no curve has points.

    Args:
        title: the heading of the figure.
        curves: the curves; those without points are left out.
        xlabel, ylabel: the texts at the axes.
        logx, logy: whether the horizontal and the vertical axis are logarithmic.
        zero: whether to draw a horizontal line at 0.
        zoom: whether to take the limits of the vertical axis from the later half of each curve.
        marks: {name: position on the horizontal axis} of vertical lines; None: no lines.
        xticks: the values to name on the horizontal axis; empty: round numbers.
    """
    curves = [c for c in curves if len(c.x)]
    if not curves:
        return ""
    legend, rows = _legend(curves)
    height = HEIGHT + 17 * max(0, rows - 1)
    top, bottom = 40 + 17 * rows, height - 40
    marks = marks or {}
    x0, x1 = _x_limits(curves, logx, marks)
    y0, y1 = _y_limits(curves, logy, zero, zoom)
    yticks = ticks(y0, y1, logy)
    left = 24 + max(text_width(short_number(t)) for t in yticks)
    X, Y = axis_scale(x0, x1, left, RIGHT, logx), axis_scale(y0, y1, bottom, top, logy)

    out = [svg_text(0, 14, title, "head"), *legend]
    for t in yticks:
        out += [
            f'<path d="M{left:.1f} {Y(t):.1f}H{RIGHT}" class="grid"/>',
            svg_text(left - 6, Y(t) + 4, short_number(t), "faint", "end"),
        ]
    out += _x_ticks(xticks or ticks(x0, x1, logx), X, bottom)
    out.append(f'<path d="M{left:.1f} {bottom}H{RIGHT}" class="axis"/>')
    out.append(svg_text((left + RIGHT) / 2, bottom + 33, xlabel, "faint", "middle"))
    turned = f"translate(11 {(top + bottom) / 2:.0f}) rotate(-90)"
    out.append(f'<text transform="{turned}" text-anchor="middle" class="faint">{escape(ylabel)}</text>')
    if zero:
        out.append(f'<path d="M{left:.1f} {Y(0):.1f}H{RIGHT}" class="line s0"/>')
    for name, x in marks.items():
        out += [
            f'<path d="M{X(x):.1f} {top}V{bottom}" class="axis dash"/>',
            svg_text(X(x) - 4, top + 11, name, "faint", "end"),
        ]
    drawn = [part for c in sorted(curves, key=lambda c: c.kind != "thin") for part in _curve(c, X, Y)]
    # an inner svg cuts off what the zoom leaves outside, without an id
    cut = f'<svg x="{left - 4:.1f}" y="{top - 4}" width="{WIDTH - 6 - left:.1f}" height="{bottom - top + 8}"'
    view = f'viewBox="{left - 4:.1f} {top - 4} {WIDTH - 6 - left:.1f} {bottom - top + 8}"'
    out.append(f"{cut} {view}>{''.join(drawn)}</svg>")
    return svg_figure(title, out, WIDTH, height)


def _legend_positions(labels: Iterable[str]) -> list[tuple[float, int]]:
    """The position of each label of a legend: (horizontal coordinate, index of its row)."""
    positions, row, at = [], 0, 12.0
    for label in labels:
        if at + 20 + text_width(label) > WIDTH and at > 12:
            row, at = row + 1, 12.0
        positions.append((at, row))
        at += 30 + text_width(label)
    return positions


def _legend(curves: Sequence[Line]) -> tuple[list[str], int]:
    """The legend of the curves: (its SVG elements, the number of its rows). Where there is only one label the legend is
    left out: ([], 0)."""
    named = [c for c in curves if c.kind != "thin" and c.label]
    entries = list(dict.fromkeys((cut_to_width(c.label, WIDTH - 32), c.colour, c.kind) for c in named))
    if len(entries) < 2:
        return [], 0
    out = []
    positions = _legend_positions(label for label, _, _ in entries)
    for (x, row), (label, colour, kind) in zip(positions, entries, strict=True):
        y = 34 + 17 * row
        out.append(
            f'<circle cx="{x - 1:.0f}" cy="{y - 4}" r="4" class="f{colour}"/>'
            if kind == "point"
            else f'<path d="M{x - 9:.0f} {y - 4}h16" class="line {kind} s{colour}"/>'
        )
        out.append(svg_text(x + 12, y, label))
    return out, positions[-1][1] + 1


def _x_limits(curves: Sequence[Line], log: bool, marks: dict[str, float]) -> tuple[float, float]:
    xs = [float(v) for c in curves for v in c.x] + list(marks.values())
    low, high = min(xs), max(xs)
    if low < high:
        return low, high
    return (low / 2, high * 2) if log else (low - 1, high + 1)


def _y_limits(curves: Sequence[Line], log: bool, zero: bool, zoom: bool) -> tuple[float, float]:
    """The lower and the upper end of the vertical axis: the range of the curves' values with a margin. `log`: whether
    the axis is logarithmic; `zero`: whether the axis must contain 0; `zoom`: whether only the later half of each curve
    counts."""
    ys = [float(v) for c in curves for v in (c.y[len(c.y) // 2 :] if zoom else c.y)] + ([0.0] if zero else [])
    low, high = min(ys), max(ys)
    if log:
        return low / (high / low or 2) ** 0.06 * (1 - 1e-3), high * (high / low) ** 0.06 * (1 + 1e-3)
    room = 0.07 * (high - low) or 0.05 * abs(high) or 1.0
    return low - room, high + room


def _x_ticks(values: Iterable[float], X: Callable[[float], float], bottom: float) -> list[str]:
    """SVG elements for the ticks and numbers of the horizontal axis. A number that would overlap the one before is left
    out. `values`: where the ticks are; `X`: maps a value to its horizontal coordinate; `bottom`: the vertical
    coordinate of the axis."""
    out, last = [], -99.0
    for value in values:
        label, width = short_number(value), text_width(short_number(value))
        at = min(X(value), WIDTH - 4 - width / 2)
        out.append(f'<path d="M{X(value):.1f} {bottom}v4" class="axis"/>')
        if at - width / 2 > last + 4:
            out.append(svg_text(at, bottom + 17, label, "faint", "middle"))
            last = at + width / 2
    return out


def _curve(curve: Line, X: Callable[[float], float], Y: Callable[[float], float]) -> list[str]:
    points = [(X(float(x)), Y(float(y))) for x, y in zip(curve.x, curve.y, strict=True)]
    name, fill = f"<title>{escape(curve.label)}</title>", f'class="f{curve.colour}"'
    if curve.kind == "point":
        return [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" {fill}>{name}</circle>' for x, y in points]
    path = "".join(f"{'M' if i == 0 else 'L'}{x:.1f} {y:.1f}" for i, (x, y) in enumerate(points))
    out = [f'<path d="{path}" class="line {curve.kind} s{curve.colour}">{name}</path>']
    if len(points) <= MARKED_POINTS and curve.kind != "thin":
        out += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" {fill}/>' for x, y in points]
    return out


def _clip(x: float, most: float) -> float:
    return max(-most, min(most, x))


def forest_plot(
    title: str, effects: list[tuple[str, float, float, str, str]], xlabel: str, largest: float = math.inf
) -> str:
    """Draw differences from the baseline with their intervals (a forest plot). Returns the figure as SVG text; ""
    without effects. An interval that is far wider than most is cut, and ends in arrows, so that the other intervals can
    be read.

    Args:
        title: the heading of the figure.
        effects: for each arm (its label, its difference, half the width of its interval or inf, its colour, the text
            beside it); the colour is "good", "bad" or "same".
        xlabel: the text under the axis.
        largest: the largest possible absolute difference. In tooltips, intervals end there.
    """
    if not effects:
        return ""
    halves = [half for _, _, half, *_ in effects if math.isfinite(half)] or [0.0]
    most = WIDEST_INTERVAL * max(statistics.median(halves), *(abs(d) for _, d, *_ in effects))
    ends = [end for _, d, half, *_ in effects for end in (_clip(d - half, most), _clip(d + half, most), d)]
    low, high = min([0.0, *ends]), max([0.0, *ends])
    room = 0.05 * (high - low) or 1.0
    low, high = low - room, high + room
    X, top, step = axis_scale(low, high, 14, WIDTH - 14), 34, 40
    bottom = top + step * len(effects)
    out = [svg_text(0, 14, title, "head")]
    for t in ticks(low, high):
        out += [
            f'<path d="M{X(t):.1f} {top}V{bottom}" class="grid"/>',
            svg_text(X(t), bottom + 16, signed_text(t), "faint", "middle"),
        ]
    out.append(f'<path d="M{X(0):.1f} {top - 4}V{bottom}" class="line s0"/>')
    for i, (arm, d, half, kind, words) in enumerate(effects):
        y = top + step * i + 28
        name = cut_to_width(arm, WIDTH - 36 - text_width(words))
        out += [svg_text(14, y - 12, name, "halo"), svg_text(WIDTH - 14, y - 12, words, "faint halo", "end")]
        bar, width = "", ""
        if math.isfinite(half):
            start, end = X(_clip(d - half, most)), X(_clip(d + half, most))
            heads = "".join(
                f"M{x - 6 * s:.1f} {y - 4}L{x:.1f} {y}L{x - 6 * s:.1f} {y + 4}"
                for s, x in ((-1, start), (1, end))
                if abs(d + s * half) > most
            )
            bar = f'<path d="M{start:.1f} {y}H{end:.1f}{heads}" class="{kind}" stroke-width="2.5" fill="none"/>'
            low_end, high_end = max(-largest, d - half), min(largest, d + half)
            width = f", 95 % interval {low_end:+.4g} to {high_end:+.4g}"
        out.append(
            f"<g><title>{escape(f'{arm}: {d:+.4g}{width}, {words}')}</title>{bar}"
            f'<circle cx="{X(d):.1f}" cy="{y}" r="4.5" class="{kind}"/></g>'
        )
    out.append(svg_text(WIDTH / 2, bottom + 33, xlabel, "faint", "middle"))
    return svg_figure(title, out, WIDTH, bottom + 40)


def bar_chart(title: str, rows: list[tuple[str, list[float], str]], parts: list[str], xlabel: str) -> str:
    """Draw stacked bars, one for each row. Returns the figure as SVG text; "" where all amounts are 0.

    Args:
        title: the heading of the figure.
        rows: for each bar (its label, the amounts of its parts, the text at its end).
        parts: the names of the parts, the same for all bars.
        xlabel: the text under the figure.
    """
    if not rows or not any(sum(amounts) for _, amounts, _ in rows):
        return ""
    X, step = axis_scale(0.0, max(sum(amounts) for _, amounts, _ in rows), 14, WIDTH - 14), 36
    out, top = [svg_text(0, 14, title, "head")], 32
    if len(parts) > 1:
        for i, (part, (x, row)) in enumerate(zip(parts, _legend_positions(parts), strict=True)):
            y, top = 34 + 17 * row, 40 + 17 * (row + 1)
            out.append(f'<rect x="{x - 9:.0f}" y="{y - 9}" width="14" height="9" class="f{1 + i}"/>')
            out.append(svg_text(x + 10, y, part))
    for i, (label, amounts, words) in enumerate(rows):
        y, x = top + step * i, 14.0
        room = WIDTH - 40 - text_width(words)
        out += [svg_text(14, y, cut_to_width(label, room)), svg_text(WIDTH - 14, y, words, "faint", "end")]
        for j, (part, amount) in enumerate(zip(parts, amounts, strict=True)):
            width = X(amount) - 14
            tip = f"<title>{escape(f'{label}, {part}: {short_number(amount)}')}</title>"
            out.append(f'<rect x="{x:.1f}" y="{y + 5}" width="{width:.1f}" height="12" class="f{1 + j}">{tip}</rect>')
            x += width
    bottom = top + step * len(rows)
    out.append(svg_text(WIDTH / 2, bottom + 6, xlabel, "faint", "middle"))
    return svg_figure(title, out, WIDTH, bottom + 14)


def heat_map(title: str, rows: list[str], columns: list[str], cells: list[list[tuple[str, float, str] | None]]) -> str:
    """Draw a table of coloured cells (a heat map). Returns the figure as SVG text.

    Args:
        title: the heading of the figure.
        rows, columns: the names of the rows and of the columns.
        cells: for each row a cell of each column: (text, strength from -1 to 1, tooltip), or None for an empty cell. A
            positive strength is drawn in the colour for good, a negative one in the colour for bad, and 0 without a
            colour.
    """
    side = min(170.0, 8 + max(text_width(r, 11) for r in rows))
    step = max(46.0, (WIDTH - side - 4) / len(columns))
    columns = [cut_to_width(c, 170) for c in columns]
    tilt = max(text_width(c) for c in columns) > step - 4  # whether the columns' names are written at an angle
    head = 24 + (min(90.0, 0.6 * max(text_width(c) for c in columns)) + 12 if tilt else 20)
    beyond = 0.75 * max(text_width(c) for c in columns) if tilt else 0  # of a tilted name to the right of its column
    width = max(WIDTH, side + step * (len(columns) - 0.5) + beyond + 4)
    out = [svg_text(0, 14, title, "head")]
    for j, name in enumerate(columns):
        x = side + step * (j + 0.5)
        out.append(
            f'<text transform="translate({x:.1f} {head - 6:.1f}) rotate(-35)">{escape(name)}</text>'
            if tilt
            else svg_text(x, head - 6, name, "", "middle")
        )
    for i, (name, line) in enumerate(zip(rows, cells, strict=True)):
        y = head + 21 * i
        short = cut_to_width(name, side - 6, 11)
        out.append(
            f'<text x="{side - 6:.1f}" y="{y + 15:.1f}" text-anchor="end" style="font-size:11px">{escape(short)}</text>'
        )
        for j, cell in enumerate(line):
            if cell is None:
                continue
            words, strength, tip = cell
            x, kind = side + step * j, "good" if strength > 0 else "bad"
            paint = f'class="{kind}" style="stroke:none" fill-opacity="{0.62 * min(1, abs(strength)):.2f}"'
            fill = f'<rect x="{x + 1:.1f}" y="{y + 1:.1f}" width="{step - 2:.1f}" height="19" rx="2" {paint}/>'
            label = svg_text(x + step / 2, y + 15, words, "" if strength else "faint", "middle")
            out.append(f"<g><title>{escape(tip)}</title>{fill}{label}</g>")
    bottom = head + 21 * len(rows)
    return svg_figure(title, out, width, bottom + 6)


def combined_figures(figures: list[str]) -> str:
    """Combine figures into the text of one SVG file, with COLUMNS figures in a row and a style sheet. `figures`: SVG
    texts from the functions of this file; empty ones are left out."""
    figures = [f for f in figures if f]
    sizes = [tuple(map(float, re.findall(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', f)[0])) for f in figures]
    out, y, widest = [], 14.0, 0.0
    for i in range(0, len(figures), COLUMNS):
        x = 14.0
        for figure, (width, height) in zip(figures[i : i + COLUMNS], sizes[i : i + COLUMNS], strict=True):
            out.append(
                figure.replace("<svg ", f'<svg x="{x:.0f}" y="{y:.0f}" width="{width:.0f}" height="{height:.0f}" ', 1)
            )
            x += width + 24
        y += max(height for _, height in sizes[i : i + COLUMNS]) + 18
        widest = max(widest, x - 10)
    paper = f'<rect width="{widest:.0f}" height="{y:.0f}" style="fill:var(--paper)"/>'
    size = f'viewBox="0 0 {widest:.0f} {y:.0f}" width="{widest:.0f}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" class="fig" {size}>\n<style>\n{STYLE}</style>'
    return "\n".join([head, paper, *out, "</svg>", ""])


def svg_figure(title: str, parts: list[str], width: float, height: float) -> str:
    head = f'<svg class="fig" viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="{escape(title)}">'
    return "\n".join([head, *parts, "</svg>"])


def svg_text(x: float, y: float, words: str, kind: str = "", anchor: str = "") -> str:
    kind = f' class="{kind}"' if kind else ""
    anchor = f' text-anchor="{anchor}"' if anchor else ""
    return f'<text x="{x:.1f}" y="{y:.1f}"{kind}{anchor}>{escape(words)}</text>'


def signed_text(number: float) -> str:
    return f"{number:+.3g}".replace("-", "−") if number else "0"


def escape(words: str) -> str:
    """A text escaped for XML, with control characters made visible: names in other people's run directories may contain
    some."""
    return html.escape(printable(words))
