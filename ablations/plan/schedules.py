"""Drawings of the learning rate over the training budget, one for each different curve among the arms of a study."""

import sys

from ablations.budget import learning_rate
from ablations.drawing import SERIES, Line, line_plot
from ablations.run import Run
from ablations.study import Study

COLUMNS = 49  # of a curve as text: quarters of the budget are among them
BLOCKS = " ▁▂▃▄▅▆▇█"  # eighths of the peak
DIGITS = "0123456789"  # ninths of it, where a terminal has no blocks


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
    """Drawings of the learning rates of a study's arms for a terminal: a heading, then a line for each shape of curve,
    with the arms that have it. Heights are relative to the highest learning rate of the arm."""
    marks = DIGITS if _lacks_block_characters() else BLOCKS
    shapes: dict[str, list[str]] = {}
    for names, curve in learning_rate_curves(study, COLUMNS).items():
        peak = max(curve)
        picture = "".join(marks[round(round(rate / peak, 9) * (len(marks) - 1))] for rate in curve)
        shapes.setdefault(picture, []).append(f"{names}: {curve[0]:.2g} to {peak:.2g} to {curve[-1]:.2g}")
    lines = ["learning rate over the budget, each against its own peak:"]
    if len(shapes) == 1 and len(next(iter(shapes.values()))) == 1:  # all arms have the same
        shapes = {
            picture: [f"{study.base.train.schedule}:{of.rpartition(':')[2]}"] for picture, (of,) in shapes.items()
        }
    return [*lines, *(f"  {picture}  {'; '.join(arms)}" for picture, arms in shapes.items())]


def _lacks_block_characters() -> bool:
    """Whether the encoding of standard output cannot represent the block characters BLOCKS, with which curves are
    drawn."""
    try:
        BLOCKS.encode(sys.stdout.encoding or "ascii")
        return False
    except (UnicodeEncodeError, LookupError):
        return True


def figure(study: Study) -> str:
    """A figure of the learning rates of a study's arms, as SVG text."""
    shares = [i / 240 for i in range(241)]
    lines = [
        Line(names, number % SERIES, shares, curve, "dash" if number >= SERIES else "")
        for number, (names, curve) in enumerate(learning_rate_curves(study, 241).items())
    ]
    return line_plot("Learning rate over the budget", lines, "share of the budget", "learning rate", zero=True)
