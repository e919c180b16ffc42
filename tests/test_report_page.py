"""How a report looks: figures, formats, and the page in a browser."""

import html
import json
import re
import shutil
import subprocess
import xml.dom.minidom
from pathlib import Path

import numpy as np
import pytest

from ablations import drawing
from ablations.document.blocks import Figure, Section, Table
from ablations.document.formats import latex, markdown
from ablations.document.page import page
from ablations.values import short_number
from eval.report.reading.curves import BINS, average_in_bins, loss_curve, subtract_curves
from eval.report.reading.runs import budget_seconds
from tests.made_study import ARMS, FILES, Study, full, make, report


def test_curves_are_averaged_over_the_tokens_that_all_seeds_have():
    tokens = np.arange(1, 101) * 2048
    line = {1: (tokens, np.full(100, 2.0)), 2: (tokens[:60], np.full(60, 3.0))}
    x, means = average_in_bins(line)
    assert x[-1] <= tokens[59] and (np.diff(x) > 0).all() and len(x) <= BINS
    assert (means[1] == 2).all() and (means[2] == 3).all()
    straight = average_in_bins({1: (tokens, tokens.astype(float))})
    assert np.allclose(straight[1][1], straight[0])  # a mean of losses stands at the mean of its tokens
    t, d = subtract_curves((tokens[5:], np.full(95, 2.5)), (tokens[:50], np.full(50, 2.0)))
    assert list(t) == list(tokens[5:50]) and (d == 0.5).all()


def test_runs_by_the_clock_are_compared_at_the_same_time():
    """Two runs of different speeds, logged at times of their own, whose loss is 5 - seconds / 10."""
    cells = {}
    for seed, step in ((1, 0.7), (2, 1.1)):
        seconds = np.arange(1, int(20 / step) + 1) * step
        rows = [{"tokens": int(s * 999 * seed), "seconds": float(s), "loss": 5 - float(s) / 10} for s in seconds]
        cells[seed] = {"metrics": rows, "run": {"config": {"train": {"budget": "20s"}}}}
    assert (
        budget_seconds(cells[1]) == 20 and budget_seconds({"run": {"config": {"train": {"budget": "twenty"}}}}) is None
    )
    x, means = average_in_bins({seed: loss_curve(cell, clock=True) for seed, cell in cells.items()})
    assert 1.1 <= x[0] < 1.5 and 18 < x[-1] <= 20  # where both have lines in their logs
    assert means[1] == pytest.approx(5 - x / 10) and means[2] == pytest.approx(means[1])
    t, d = subtract_curves(loss_curve(cells[1], clock=True), loss_curve(cells[2], clock=True))
    assert len(t) > 100 and d == pytest.approx(0.0, abs=1e-9)


BROWSER = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
INSPECT = """\
<body style="margin:0"><iframe width="%d" height="800" style="border:0" srcdoc="%s"></iframe><script>
onload = () => {
  const d = document.querySelector("iframe").contentDocument, found = [];
  d.querySelectorAll("figure > svg").forEach(f => {
    f.closest("details")?.setAttribute("open", "");
    const box = f.getBoundingClientRect(), out = [...f.querySelectorAll("text")].filter(t => {
      const b = t.getBoundingClientRect();
      return b.left < box.left - 2 || b.right > box.right + 2 || b.top < box.top - 2 || b.bottom > box.bottom + 2;
    });
    const title = f.getAttribute("aria-label"), cut = out.map(t => t.textContent);
    found.push({title, width: box.width, height: box.height, out: cut});
  });
  const heads = d.querySelectorAll("th button"); heads.forEach(h => h.click());
  const first = d.querySelector("table"), names = () => [...first.tBodies[0].rows].map(r => r.cells[1].textContent);
  first.querySelectorAll("button")[1].click();
  const up = names(); first.querySelectorAll("button")[1].click();
  document.title = JSON.stringify({found, sorted: d.querySelectorAll("th[aria-sort]").length, up, down: names(),
    width: d.documentElement.scrollWidth, tables: d.querySelectorAll("table").length,
    asked: performance.getEntriesByType("resource").length, ink: getComputedStyle(d.querySelector(".fig text")).fill});
};
</script></body>"""


def inspect(tmp_path: Path, text: str, width: int, dark: bool = False) -> tuple[dict, list[str]]:
    """What Chromium makes of a page at a width in CSS pixels, and what its console says."""
    outer = tmp_path / f"outer-{width}-{dark}.html"
    outer.write_text(INSPECT % (width, html.escape(text)))
    command = [
        BROWSER,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--window-size={max(width, 500)},900",
        f"--user-data-dir={tmp_path / 'profile'}",
        "--enable-logging=stderr",
        "--dump-dom",
        outer.as_uri(),
    ]
    if dark:
        command.insert(1, "--blink-settings=preferredColorScheme=0")
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    messages = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return json.loads(html.unescape(re.findall(r"<title>(\{.*?\})</title>", done.stdout)[0])), messages


@pytest.mark.skipif(not BROWSER, reason="needs chromium (apt-get install chromium)")
def test_a_browser_shows_every_figure_and_reports_no_error(tmp_path):
    study = full(make(Study(tmp_path / "runs", arms=list(ARMS))))
    report(study, tmp_path / "out")
    text = (tmp_path / "out" / "report.html").read_text()
    assert not re.findall(r"""(?:src|href)=["'](?!#|data:)|@import|url\(""", text)  # nothing is fetched
    colours = set()
    for width, dark in ((1100, False), (390, False), (390, True)):
        rendered, messages = inspect(tmp_path, text, width, dark)
        assert messages == [] and rendered["asked"] == 0
        titles = [f["title"] for f in rendered["found"]]
        for words in (
            "bits/byte: difference",
            "zero-shot: difference",
            "suite: difference",
            "Training loss against tokens",
            "against FLOPs",
            "against hours",
            "Same seed, same batches",
            "suite against tokens",
            "bits/byte against tokens",
            "Loss by position",
            "Bits per byte: trained",
            "Accuracy in %",
        ):
            assert any(words in title for title in titles), words
        assert all(f["width"] > 300 and f["height"] > 60 for f in rendered["found"]), rendered["found"]
        assert [f["out"] for f in rendered["found"] if f["out"]] == []  # no word is cut off
        assert rendered["width"] <= width  # nothing makes the page itself scroll sideways
        assert rendered["sorted"] == rendered["tables"] > 8
        assert rendered["up"] == sorted(rendered["up"]) and rendered["down"] == rendered["up"][::-1]
        colours.add(rendered["ink"])
    assert len(colours) == 2  # light and dark


def test_every_figure_is_well_formed_and_drawn_the_same_every_time(tmp_path):
    study = full(make(Study(tmp_path / "runs")))
    report(study, tmp_path / "one")
    report(study, tmp_path / "two")
    text = (tmp_path / "one" / "report.html").read_text()
    figures = re.findall(r"<figure>(<svg.*?</svg>)(?:<figcaption>|</figure>)", text, re.S)
    assert len(figures) >= 11
    for figure in [*figures, (tmp_path / "one" / "figure.svg").read_text()]:
        xml.dom.minidom.parseString(
            figure.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1) if "xmlns" not in figure else figure
        )
        assert "nan" not in figure.lower().replace("nano", "") and "inf " not in figure
    for name in FILES:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_nothing_within_noise_is_bold(tmp_path):
    study = make(Study(tmp_path / "runs", arms=list(ARMS)))
    report(study, tmp_path / "out")
    for name, bold in (
        ("report.md", r"\*\*(.+?)\*\*"),
        ("report.html", "<strong>(.+?)</strong>"),
        ("table.tex", r"\\textbf\{(.+?)\}"),
    ):
        text = (tmp_path / "out" / name).read_text()
        assert "undecided: " in text and not any(words.startswith("undecided: ") for words in re.findall(bold, text))
        assert any(words.startswith("better by") for words in re.findall(bold, text)), name


def test_ticks_and_numbers():
    assert drawing.ticks(0, 10) == [0, 2, 4, 6, 8, 10] and drawing.ticks(-0.31, 0.02) == [-0.3, -0.2, -0.1, 0]
    assert drawing.ticks(900, 2.1e6, log=True) == [1e3, 1e4, 1e5, 1e6]
    assert drawing.ticks(2e4, 3e5, log=True) == [2e4, 5e4, 1e5, 2e5]
    assert [short_number(x) for x in (0, 200000, 999_999, 1.05e6, 4.1e21, -0.25, 0.0002)] == [
        "0",
        "200K",
        "1M",
        "1.05M",
        "4.1e21",
        "−0.25",
        "0.0002",
    ]
    x = drawing.axis_scale(10, 1000, 0, 1, log=True)
    assert (x(10), x(1000)) == (0, 1) and x(100) == pytest.approx(0.5)


def test_the_same_words_in_three_formats():
    table = Table(["arm", "x_1", "verdict"], [["a&b", "1 ± 2", "**better** by 5 %"], ["p|q", "-", "`key`"]], "T")
    sections = [Section("Head", ["a <b> **c**", table, Figure("", "nothing drawn")])]
    text = markdown("Title", sections)
    assert "| p\\|q | - | `key` |" in text and "## Head" in text and "nothing drawn" not in text
    html_page = page("Title", sections)
    assert (
        "a &lt;b&gt; <strong>c</strong>" in html_page
        and "<code>key</code>" in html_page
        and "nothing drawn" not in html_page
    )
    tex = latex(table, "100 % of x_1")
    assert r"a\&b & 1 $\pm$ 2 & \textbf{better} by 5 \% \\" in tex and r"\caption{100 \% of x\_1}" in tex
    assert tex.count(r"\begin") == tex.count(r"\end") == 2 and r"\toprule" in tex and "{lrl}" in tex


def test_names_that_are_cut_keep_their_ends():
    long = [f"{'settings-that-all-have-' * 4}{i}=value" for i in (1, 2)]
    figures = {
        "map": drawing.heat_map("t", long, [f"on {name}" for name in long], [[("1", 0.0, "tip")] * 2] * 2),
        "legend": drawing.line_plot(
            "t", [drawing.Line(name, i, [1, 2], [1, 2]) for i, name in enumerate(long)], "x", "y"
        ),
        "forest": drawing.forest_plot("t", [(name, 0.1, 0.2, "same", "undecided") for name in long], "x"),
    }
    for kind, svg in figures.items():
        cut = re.findall(r">…([^<]*)</text>", svg)
        assert len(cut) == (4 if kind == "map" else 2), kind
        for name in long:
            assert sum(len(end) > 10 and name.endswith(end) for end in cut) == len(cut) // 2, (kind, cut)
    assert (
        drawing.cut_to_width("short", 100) == "short"
        and drawing.cut_to_width("0123456789", drawing.text_width("xxxx")) == "…789"
    )


def test_one_wide_interval_leaves_the_others_readable() -> None:
    """It ends in arrows; its width stands in the tooltip."""
    effects = [("a", 2.4, 4.2, "same", ""), ("b", 5.5, 19.9, "same", ""), ("c", -5.5, 250.0, "same", "")]
    figure = drawing.forest_plot("points", effects, "points")
    assert "+200" not in figure and "c: -5.5, 95 % interval -255.5 to +244.5" in figure
    of_shares = drawing.forest_plot("points", effects, "points", largest=100.0)  # no difference of two shares is larger
    assert "c: -5.5, 95 % interval -100 to +100" in of_shares and "b: +5.5, 95 % interval -14.4 to +25.4" in of_shares
    assert of_shares.split("<path")[1:] == figure.replace("-255.5 to +244.5", "-100 to +100").split("<path")[1:]
    bars = re.findall(r'd="M([\d.]+) \d+H([\d.]+)(M)?', figure)
    widths = [float(end) - float(start) for start, end, _ in bars]
    assert [bool(arrow) for *_, arrow in bars] == [False, False, True]
    assert widths[1] == pytest.approx(widths[0] * 19.9 / 4.2, rel=0.02) and widths[1] > 100
    assert "L" not in drawing.forest_plot("points", effects[:2], "points").split("<title>")[1]
