"""Section: what was registered before the runs, what was changed since, and which predictions came true."""

from typing import Any, NamedTuple

from ablations import rundir
from ablations.prediction import Prediction
from ablations.registration import NOTHING_EXPECTED, changes
from eval.report.blocks import Block, Section, Table
from eval.report.compare import METRICS, pair, share_of_alpha
from eval.report.findings import Findings
from eval.report.runs import named
from eval.statistics.comparison import Comparison
from eval.statistics.parts import LEVEL, quantile

HELD, FAILED, UNDECIDED = "held", "failed", "undecided"

HEAD = """\
What a study asks and expects is written into the directory of each run before its first step, with a hash."""

CHECKED = """\
Predictions compare values of the metric as they are: in bits/byte, less is better. An order **held** when every
difference between neighbours has its sign and is more than noise (p ≤ 0.05), and **failed** when one of them has the
other sign beyond noise, corrected for their number. An interval held when two one-sided tests say that the difference
lies in it, and failed when the 95 % interval of the difference lies outside. All else is undecided. Each prediction is
a claim of its own: there is no correction for how many there are. **Before the runs**: it stood in the directories of
the arms that it is about before their first step; one of them may be older, since studies share their baseline."""


class Checked(NamedTuple):
    """A prediction, what was measured, and whether the prediction came true."""

    text: str
    metric: str
    outcome: str  # HELD, FAILED or UNDECIDED
    measured: str
    registered: bool  # before the runs: of the arms that it is about, at most one had begun


def section(f: Findings) -> Section:
    blocks: list[Block] = []
    if f.study.registration:
        blocks += [
            HEAD,
            "\n".join(f"* {line}." for line in [*when_registered(f), *(changes_since(f) or [unchanged(f)])]),
        ]
    if checked := checked_predictions(f):
        rows = [
            [f"`{row.text}`", row.metric, "yes" if row.registered else "no", f"**{row.outcome}**", row.measured]
            for row in checked
        ]
        blocks += [Table(["predicted", "of", "before the runs", "outcome", "measured"], rows), CHECKED]
    return Section("Registered before the runs", blocks)


UNCHANGED = "nothing was changed since"
UNKNOWN = "whether anything was changed since cannot be told of every run"


def first_lines(f: Findings) -> dict[tuple[str, int], dict[str, Any]]:
    """The first registration of this study in each run that has one: {(arm, seed): line of registered.jsonl}, the
    earliest first."""
    study = f.study.registration.get("study")
    lines = {
        run: next((line for line in cell["registered"] if line["content"].get("study") == study), None)
        for run, cell in f.cells.items()
        if cell.get("registered")
    }
    return dict(sorted(((run, line) for run, line in lines.items() if line), key=lambda item: item[1]["time"]))


def when_registered(f: Findings) -> list[str]:
    """Sentences on when this study was registered: how many runs did so before their first step, which did so later,
    and which did not."""
    first = first_lines(f)
    before = [run for run, line in first.items() if line["step"] == 0]
    later = [run for run, line in first.items() if line["step"] > 0]
    without = [run for run, cell in f.cells.items() if "run" in cell and run not in first]
    lines = [f"registered before the first step in {len(before)} of {len(f.cells)} runs"]
    if later:
        lines.append(f"registered only after training had begun, for a question that came later: {named(later)}")
    if without:
        lines.append(f"not registered: {named(without)}")
    return lines


def changes_since(f: Findings) -> list[str]:
    """A sentence for each registered value that has changed since the runs began."""
    then = {f"{arm}, seed {seed}": line["content"] for (arm, seed), line in first_lines(f).items()}
    return changes(f.study.registration, then, len(f.cells))


def unchanged(f: Findings) -> str:
    """The sentence for a study without known changes since its registration. Where the registration of a run is missing
    or damaged, it says that changes cannot be excluded."""
    known = first_lines(f)
    damaged = any(rundir.REGISTERED in line for cell in f.cells.values() for line in cell.get("damage", []))
    return UNKNOWN if damaged or any("run" in f.cells[run] and run not in known for run in f.cells) else UNCHANGED


def expectation(f: Findings) -> str:
    """The expectation of the study as text, and whether it was registered in the runs before their first step. The runs
    of one arm may be without it: they may have been made for an earlier study, since studies share their baseline."""
    expect = f.study.expect
    if expect.startswith(NOTHING_EXPECTED):
        return f"Nothing was expected in writing before the runs.{expect.removeprefix(NOTHING_EXPECTED)}"
    first = first_lines(f)
    before = {run for run, line in first.items() if line["step"] == 0 and line["content"].get("expected") == expect}
    late = {run[0] for run, cell in f.cells.items() if "run" in cell and run not in before}
    if before and len(late) <= 1:
        when = "written before the runs"
    else:
        when = "written after the runs had begun" if first else "not registered before the runs"
    return f"**Expected, {when}.** {expect}"


def was_registered_in(line: dict[str, Any], prediction: Prediction) -> bool:
    texts = line["content"].get("predictions")
    return isinstance(texts, list) and prediction.text in texts


def summary(f: Findings) -> dict[str, Any]:
    """The registration of the study for run.json of the record: {"before_the_first_step": number of runs that
    registered it before their first step, "runs": number of all runs, "changed": sentences}; empty for a collection."""
    if not f.study.registration:
        return {}
    before = sum(line["step"] == 0 for line in first_lines(f).values())
    return {"before_the_first_step": before, "runs": len(f.cells), "changed": changes_since(f)}


def checked_predictions(f: Findings) -> list[Checked]:
    return [Checked(p.text, p.metric, *outcome(f, p), was_registered(f, p)) for p in f.study.predictions]


def was_registered(f: Findings, prediction: Prediction) -> bool:
    """Whether a prediction was registered before the first step of all runs of its arms. The runs of one arm may be
    without it: they may have been made for an earlier study, since studies share their baseline."""
    first = first_lines(f)
    before = {run for run, x in first.items() if x["step"] == 0 and was_registered_in(x, prediction)}
    begun = {run for run, cell in f.cells.items() if "run" in cell}
    late = {arm for arm, _ in begun - before} & set(prediction.arms)
    return bool(before) and len(late) <= 1


def outcome(f: Findings, prediction: Prediction) -> tuple[str, str]:
    """The outcome of a prediction, HELD, FAILED or UNDECIDED; and what was measured, in words."""
    name = prediction.metric
    neighbours = list(zip(prediction.arms, prediction.arms[1:], strict=False))
    if name not in f.results:
        return UNDECIDED, f"{name} was not measured"
    results = {arm: row for arm, row in f.distinct_results(name).items() if row}
    compared: list[Comparison] = []
    for first, second in neighbours:
        there = {first, second} <= set(results)
        spending = share_of_alpha(f.study.criteria, 1)
        c = pair(f.cells, results, first, second, name, f.controlled, None, spending) if there else None
        if c is None:
            return UNDECIDED, f"{first} and {second} cannot be compared"
        compared.append(c)
    digits = METRICS[name].digits + 1
    measured = "; ".join(
        f"{first} − {second}: {c.difference:+.{digits}f}{half_width(c, digits)}"
        for (first, second), c in zip(neighbours, compared, strict=True)
    )
    if not all(c.seeds and c.replicated and c.enough_items for c in compared):
        return UNDECIDED, f"{measured}; not replicated, or of too few items"
    if prediction.interval:
        return judged_interval(compared[0], prediction.interval), measured
    return judged_order(compared), measured


def half_width(c: Comparison, digits: int) -> str:
    """The half-width of the 95 % confidence interval of a difference as text, such as " ± 0.012"; "" where the noise is
    unknown."""
    return f" ± {quantile(c.share * LEVEL, c.seeds, c.items):.{digits}f}" if c.seeds and c.enough_items else ""


def judged_order(differences: list[Comparison]) -> str:
    """The outcome of a predicted order of arms: HELD, FAILED or UNDECIDED. `differences`: the comparison of each arm
    with the next one in the predicted order, which has the smaller value first."""
    if any(c.difference > 0 and c.p <= c.share * LEVEL / len(differences) for c in differences):
        return FAILED
    return HELD if all(c.difference < 0 and c.p <= c.share * LEVEL for c in differences) else UNDECIDED


def judged_interval(c: Comparison, interval: tuple[float, float]) -> str:
    low, high = interval
    assert c.seeds
    level = c.share * LEVEL
    within, around = quantile(2 * level, c.seeds, c.items), quantile(level, c.seeds, c.items)
    if low <= c.difference - within and c.difference + within <= high:
        return HELD
    return FAILED if c.difference + around < low or c.difference - around > high else UNDECIDED
