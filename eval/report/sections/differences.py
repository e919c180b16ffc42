"""Differences from the baseline: by seed, with their noise, and what a study like this can see."""

import numpy as np

from ablations import drawing
from ablations.plan.power import POWER, detectable
from eval.report.blocks import Block, Section, Table
from eval.report.compare import METRICS, pairing, strata
from eval.report.findings import Findings, recorded_noise
from eval.report.sections.cost import spent
from eval.statistics import MOST_SEEDS, Part, bootstrap, interval, noise_floor, quantile, seeds_to_decide

PAIRED = """\
Arm minus {baseline} at the same seed: {batches}the same initial weights where the arms have them in common.
bits/byte: negative is better. Scores, in points: positive is."""

UNPLANNED = """\
Minus {baseline}, by seed where both have the seed. Runs that were not planned together may differ in more than one
thing: see above. bits/byte: negative is better. Scores, in points: positive is."""

NOISE = """\
Noise is the standard error of the difference, from two sources. Seeds: what is left of the results after the mean
of each arm and of each seed is taken out (of each arm alone where there are two arms and two seeds), pooled over
the arms, as if the seeds scattered all arms alike. Items: the arms are compared document by document and question
by question, and others could have been drawn. A difference counts when it is larger than "counts above": many times
the noise where there are few seeds, because the noise itself is then badly known. p is two-sided, after Holm's
correction for the number of arms. Bootstrap: 95 % intervals of the difference, paired, over other items of the same
tasks, and over other tasks like these; seeds are in neither. Formulas and sources: eval/statistics.py."""

STUDIES_SHOWN = (2, 3, 5, 10)  # numbers of seeds for which it is said what a study would see


def section(f: Findings) -> Section:
    return Section("Differences from the baseline", blocks(f))


def blocks(f: Findings) -> list[Block]:
    by_seed, tests, intervals = [], [], []
    for name in f.results:
        digits = METRICS[name].digits + 1
        for arm, c in f.compared[name].items():
            ours, theirs = f.results[name][arm], f.results[name][f.baseline]
            signed = [
                f"{ours[seed] - theirs[seed]:+.{digits}f}" if seed in ours and seed in theirs else "-"
                for seed in f.study.seeds
            ]
            label, mean = f"{arm}, {name}", f"{c.difference:+.{digits}f}"
            by_seed.append([label, *signed, mean])
            items = f"{c.items.variance**0.5:.{digits}f}" if c.enough_items else "unknown"
            if c.seeds is None or not c.enough_items:
                tests.append([label, mean, "unknown", items, "unknown", "-", "-", f.marked_verdict(arm, name)])
            else:
                seeds = f"{c.seeds.variance**0.5:.{digits}f} ({c.seeds.dof:.0f} d.o.f.)"
                noise, least = f"{c.noise:.{digits}f}", f"{c.threshold:.{digits}f}"
                p = f"{c.adjusted:.2g}"
                tests.append([label, mean, seeds, items, noise, least, p, f.marked_verdict(arm, name)])
            intervals += [[label, mean, *line] for line in bootstrap_intervals(f, arm, name)]
    if not by_seed:
        return [f"No arm can be compared with the baseline{': see above' if f.same else ' yet'}."]
    batches = "the same batches in the same order, and " if f.same_batches() else ""
    words = PAIRED if f.controlled else UNPLANNED
    blocks: list[Block] = [
        words.format(baseline=f.baseline, batches=batches),
        Table(["", *(f"seed {seed}" for seed in f.study.seeds), "mean"], by_seed),
        Table(["", "difference", "from the seeds", "from the items", "noise", "counts above", "p", "verdict"], tests),
        Table(["bootstrap, 95 %", "difference", "over items", "over tasks", "tasks"], intervals),
        NOISE,
    ]
    if f.noise:
        blocks.append(
            f"Where an arm shares one seed with {f.baseline}, the seeds' part is what other runs tell, and "
            f"these arms if they have several seeds: {f.noise}."
        )
    return blocks + missing(f) + noise_floors(f)


def bootstrap_intervals(f: Findings, arm: str, name: str) -> list[list[str]]:
    """One line: the intervals over items and over tasks, and the number of tasks; none without items."""
    pairs = pairing(f.cells, f.results[name], arm, f.baseline, name)
    parts = strata(f.cells, arm, f.baseline, pairs, name) if pairs else []
    if not parts:
        return []
    digits = METRICS[name].digits + 1
    low, high = interval(bootstrap(parts))
    line = [f"{low:+.{digits}f} to {high:+.{digits}f}", "-", str(len(parts))]
    if len(parts) > 2:
        low, high = interval(bootstrap(parts, tasks=True), len(parts))
        line[1] = f"{low:+.{digits}f} to {high:+.{digits}f}"
    return [line]


def missing(f: Findings) -> list[Block]:
    """Of each comparison that is undecided: what more seeds would say, and what they cost."""
    lines = []
    for name in METRICS:
        margin = f.margins.get(name)
        for arm, c in f.compared.get(name, {}).items() if f.controlled else ():
            if c.counts or c.equivalent(margin) or not c.enough_items:
                continue
            seeds = len(f.results[name][arm].keys() & f.results[name][f.baseline].keys())
            if c.seeds is None or not c.replicated or seeds < 2:
                words = "two seeds of each arm at least are needed"
            elif total := seeds_to_decide(c, len(f.study.arms), seeds, margin):
                more = total - seeds
                words = f"about {more} more {'seed' if more == 1 else 'seeds'} of each arm would tell{price(f, more)}"
            else:
                words = f"no number of seeds up to {MOST_SEEDS} would tell"
            lines.append(f"* {arm}, {name}: {words}.")
    if not lines:
        return []
    margins = " and ".join(f"{margin:g} {METRICS[name].unit} in {name}" for name, margin in f.margins.items())
    question = (
        f"whether more than noise, or less than the margin of {margins}" if margins else "whether more than noise"
    )
    given = (
        " The margin was given with this report, and nothing says that it was chosen before the runs."
        if margins
        else ""
    )
    head = f"**Undecided**, {question}; if the difference and the noise of one seed stay as they are here.{given}"
    return [head, "\n".join(lines)]


def price(f: Findings, seeds: int) -> str:
    """What so many more seeds of every arm cost, at the hours that runs here took; "" where no run has begun."""
    costs = [spent(cell) for cell in f.cells.values() if cell.get("metrics")]
    if not costs or len({cost["unit"] for cost in costs}) > 1:
        return ""
    hours = float(np.mean([cost["hours"] for cost in costs])) * seeds * len(f.study.arms)
    return f", {hours:.2g} {costs[0]['unit']}-hours"


def noise_floors(f: Findings) -> list[str]:
    """The noise floor of each metric, and what studies with more seeds would see."""
    lines = []
    for name, noise in recorded_noise(f).items():
        metric = METRICS[name]
        floor = noise_floor(f.distinct_results(name))  # with what the arms of a seed share: two seeds do not share it
        assert floor
        widest = quantile(0.05, Part(2 * floor.variance, floor.dof), Part(0.0, np.inf))
        seen = [
            f"{detectable(noise['seed_sd'], noise['items'], len(f.study.arms), n):.{metric.digits + 1}f} with {n}"
            for n in STUDIES_SHOWN
        ]
        lines.append(
            f"**Noise floor, {name}.** Two runs that differ in the seed alone lie up to {widest:.{metric.digits + 1}f} "
            f"{metric.unit} apart, 19 times in 20. If the noise is as measured here, a study of {len(f.study.arms)} "
            f"arms sees with a chance of {POWER:.0%} differences from {', '.join(seen)} seeds."
        )
    return lines


def forest(f: Findings, name: str) -> str:
    """A figure: effects with the intervals that the verdict uses."""
    metric, effects = METRICS[name], []
    for arm, c in f.compared.get(name, {}).items():
        kind = "same"
        if c.counts:
            kind = "good" if (c.difference > 0) == metric.higher_is_better else "bad"
        half_width = c.threshold if c.seeds and c.enough_items else np.inf
        effects.append((arm, c.difference, half_width, kind, f.verdict(arm, name).split(" (")[0]))
    better = "right" if metric.higher_is_better else "left"
    title = f"{name}: difference from the baseline"
    return drawing.forest(title, effects, f"{metric.unit}; {better} of the line is better")
