"""Drawings of the learning rate over the training budget, one for each distinct curve among the arms of a study."""

import sys

from ablations.budget import learning_rate
from ablations.drawing import SERIES, Line, line_plot
from ablations.run import Run
from ablations.study import Study

COLUMNS = 49  # of a curve as text: quarters of the budget are among them
BLOCKS = " ▁▂▃▄▅▆▇█"  # eighths of the peak
DIGITS = "0123456789"  # ninths of the peak, for a terminal that cannot show blocks


def learning_rates(run: Run, count: int) -> list[float]:
    """The learning rates of a run at `count` evenly spaced moments from the first to the last step of its budget."""
    end = 1.0 if run.ends_by_clock else run.tokens / run.horizon
    return [learning_rate(run.train, end * i / (count - 1)) for i in range(count)]


def learning_rate_curves(study: Study, count: int) -> dict[str, list[float]]:
    """The learning rates of a study's arms at `count` evenly spaced moments of the budget: {names of the arms, with
    commas between them: learning rates}. Arms with equal curves share an entry."""
    arms: dict[tuple[float, ...], list[str]] = {}
    for arm in study.arms:
        arms.setdefault(tuple(learning_rates(study.cell(arm, study.seeds[0]).run, count)), []).append(arm)
    return {", ".join(names): list(curve) for curve, names in arms.items()}


def schedule_drawings(study: Study) -> list[str]:
    """Drawings of the learning rates of a study's arms for a terminal: a heading, then a line for each distinct curve
    with the names of its arms. Heights are relative to the arm's highest learning rate."""
    marks = DIGITS if _lacks_block_characters() else BLOCKS
    arms_by_drawing: dict[str, list[str]] = {}
    curves = learning_rate_curves(study, COLUMNS)
    for names, curve in curves.items():
        peak = max(curve)
        drawing = "".join(marks[round(round(rate / peak, 9) * (len(marks) - 1))] for rate in curve)
        arms_by_drawing.setdefault(drawing, []).append(f"{names}: {curve[0]:.2g} to {peak:.2g} to {curve[-1]:.2g}")
    lines = ["learning rate over the budget, each against its own peak:"]
    if len(curves) == 1:  # no need to name the arms
        arms_by_drawing = {
            drawing: [f"{study.base.train.schedule}:{arms.rpartition(':')[2]}"]
            for drawing, (arms,) in arms_by_drawing.items()
        }
    return [*lines, *(f"  {drawing}  {'; '.join(arms)}" for drawing, arms in arms_by_drawing.items())]


def _lacks_block_characters() -> bool:
    """Whether the encoding of standard output cannot represent the characters in BLOCKS, with which curves are
    drawn."""
    try:
        BLOCKS.encode(sys.stdout.encoding or "ascii")
        return False
    except (UnicodeEncodeError, LookupError):
        return True


def learning_rate_figure(study: Study) -> str:
    """A figure of the learning rates of a study's arms, as SVG text."""
    shares = [i / 240 for i in range(241)]
    lines = [
        Line(names, number % SERIES, shares, curve, "dash" if number >= SERIES else "")
        for number, (names, curve) in enumerate(learning_rate_curves(study, 241).items())
    ]
    return line_plot("Learning rate over the budget", lines, "share of the budget", "learning rate", zero=True)
