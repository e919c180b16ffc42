"""Section: held-out loss against compute over several sizes or budgets, with a power law through the best runs."""

import numpy as np

from ablations import drawing
from ablations.document.blocks import Figure, Section
from ablations.drawing import Line
from eval.report.comparison.findings import Findings
from eval.report.reading.expense import cost_so_far
from eval.report.sections import published

MIN_COMPUTES = 3  # compute, rounded to a tenth of a decade, has to have so many values
EXTRAPOLATION = 10  # the fitted line goes so many times beyond the largest compute


def scaling_section(findings: Findings) -> Section:
    title = "Loss against compute"
    points = {}
    for arm, seeds in findings.cells_with_entry("eval").items():
        flops = [cost_so_far(cell)["flops"] if cell.get("metrics") else None for cell in seeds.values()]
        losses = [cell["eval"]["bits_per_byte"]["value"] for cell in seeds.values()]
        known = [value for value in flops if value]
        if len(known) == len(flops):
            points[arm] = (float(np.mean(known)), float(np.mean(losses)))
    if len({round(np.log10(x), 1) for x, _ in points.values()}) < MIN_COMPUTES:
        return Section(title, [])
    lines = [Line(arm, findings.colour(arm), [x], [y], "point") for arm, (x, y) in points.items()]
    fit = power_law(list(points.values()))
    words = "A power law needs three runs on the lower envelope."
    if fit:
        compute = [x for x, _ in points.values()]
        x = np.geomspace(min(compute), EXTRAPOLATION * max(compute), 20)
        lines.append(Line("fit", 0, x, fit["scale"] * x ** -fit["exponent"], "dash"))
        words = (
            f"Lower envelope: loss falls as compute to the power of −{fit['exponent']:.3f} ({fit['points']} runs; "
            f"the dashed line goes ten times beyond them)."
        )
        known_law = published.load_published()["scaling"]
        if published.is_shown(known_law, findings.published_shown):
            words += (
                f" BigScience: −{known_law['exponent']} ({known_law['mark']}, {known_law['source']}), of another "
                "loss on another text."
            )
    figure = drawing.line_plot("Held-out loss against compute", lines, "training FLOPs", "bits/byte", True, True)
    return Section(title, [Figure(figure), words])


def power_law(points: list[tuple[float, float]]) -> dict[str, float] | None:
    """Fit a power law, loss = scale x compute ** -exponent, by least squares in logarithms. It is fitted to the lower
    envelope: a point is on it if no other point with as little compute has as low a loss. `points`: [(compute in FLOPs,
    loss)].

    Returns {"scale", "exponent", "points": number of points on the envelope}; None if fewer than three are on it.
    """
    best: list[tuple[float, float]] = []
    for x, y in sorted(points):
        if not best or y < best[-1][1]:
            best.append((x, y))
    if len(best) < 3:
        return None
    x, y = np.log(np.array(best)).T
    slope, intercept = np.polyfit(x, y, 1)
    return {"scale": float(np.exp(intercept)), "exponent": -float(slope), "points": len(best)}
