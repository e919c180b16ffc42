"""The learning rate over the budget, drawn: of every arm of a study whose curve is its own."""

import sys

from ablations.budget import learning_rate
from ablations.drawing import SERIES, Line
from ablations.drawing import lines as draw
from ablations.run import Run
from ablations.study import Study

COLUMNS = 49  # of a curve as text: quarters of the budget are among them
BLOCKS = " ▁▂▃▄▅▆▇█"  # eighths of the highest rate
DIGITS = "0123456789"  # tenths of it, where a terminal has no blocks


def rates(run: Run, count: int) -> list[float]:
    """The learning rate at `count` moments of the budget, from the first to the last."""
    end = 1.0 if run.by_clock else run.tokens / run.horizon
    return [learning_rate(run.train, end * i / (count - 1)) for i in range(count)]


def curves(study: Study, count: int) -> dict[str, list[float]]:
    """{arms with commas between: their rates}, a curve once."""
    arms: dict[tuple[float, ...], list[str]] = {}
    for arm in study.arms:
        arms.setdefault(tuple(rates(study.cell(arm, study.seeds[0]).run, count)), []).append(arm)
    return {", ".join(names): list(curve) for curve, names in arms.items()}


def drawn_schedules(study: Study) -> list[str]:
    """A line for each curve, for a terminal: as high as its share of the highest rate of all."""
    drawn = curves(study, COLUMNS)
    highest = max(max(curve) for curve in drawn.values())
    marks = DIGITS if _is_plain() else BLOCKS
    lines = [f"learning rate over the budget, of at most {highest:g}:"]
    for names, curve in drawn.items():
        picture = "".join(marks[round(rate / highest * (len(marks) - 1))] for rate in curve)
        what = names if len(drawn) > 1 else study.base.train.schedule
        lines.append(f"  {picture}  {what}, {curve[0]:.2g} to {max(curve):.2g} to {curve[-1]:.2g}")
    return lines


def _is_plain() -> bool:
    """Whether standard output cannot show BLOCKS."""
    try:
        BLOCKS.encode(sys.stdout.encoding or "ascii")
        return False
    except (UnicodeEncodeError, LookupError):
        return True


def figure(study: Study) -> str:
    """The same as SVG."""
    shares = [i / 240 for i in range(241)]
    lines = [
        Line(names, number % SERIES, shares, curve, "dash" if number >= SERIES else "")
        for number, (names, curve) in enumerate(curves(study, 241).items())
    ]
    return draw("Learning rate over the budget", lines, "share of the budget", "learning rate", zero=True)
