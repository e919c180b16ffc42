"""The results of a study in words and tables: an arm a line, differences and their noise, task by task."""

import numpy as np

from ablations.plan.power import POWER, detectable
from ablations.values import human
from eval.report import figure
from eval.report.compare import (
    METRICS,
    Found,
    bold,
    classes,
    noise_of,
    own_items,
    ranking,
    same_batches,
    strata,
    table_of,
    tasks,
    words_of,
)
from eval.report.settings import configurations
from eval.report.short_names import brief
from eval.report.table import Figure, Table, plus_minus
from eval.statistics import Part, bootstrap, interval, level_stderr, noise_floor, outstanding, quantile, ratio_stderr
from eval.tasks.suite import suite

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

SUITE = """\
Unweighted means over tasks and seeds ± standard error over items. Above chance: of (accuracy - chance) / (1 - chance).
The last column: of the tasks that these runs can do, those where all of them together beat the better of a guess among
the options and always the commonest answer by two standard errors. They are: {able}."""

TASKS = """\
Mean over seeds ± standard error over items; in % but for bits_per_byte. Where the context is longer than a model's
longest input, as with learned positions, it is cut from the left. What the tasks ask: eval/tasks/tasks.yaml."""


def overview(f: Found, head: str = "arm") -> Table:
    """One line per arm: its numbers, and in words what they say against the baseline, by bits per byte."""
    lines = []
    for arm in f.study.arms:
        line = [arm + (" (baseline)" if arm == f.baseline else "")]
        for name, metric in METRICS.items():
            if name not in f.results:
                continue
            row = f.results[name][arm]
            line.append("-")
            if row:
                alike = f.results[name] if f.controlled else {arm: row}
                error = level_stderr(alike, arm, own_items(f.cells, arm, sorted(row), name))
                line[-1] = plus_minus(float(np.mean(list(row.values()))), error, metric.digits)
        planned = [seed for seed in f.study.seeds if (arm, seed) in f.cells]
        missing = len(planned) - len(f.results["bits/byte"][arm])
        said = [bold(f, arm, "bits/byte")] if arm in f.compared["bits/byte"] else []
        said += [f"**the same as {f.same[arm]}, bit for bit**"] if arm in f.same else []
        if (
            arm != f.baseline
            and not said
            and f.results["bits/byte"][arm]
            and f.results["bits/byte"][f.baseline]
            and f.refused
        ):
            said = ["evaluated differently: not compared"]
        failed = sum(f.cells[arm, seed]["state"].startswith("failed") for seed in planned)
        said += [f"{missing} of {len(planned)} runs missing" + f", {failed} failed" * bool(failed)] if missing else []
        lines.append([*line, "; ".join(said)])
    return Table([head, *f.results, "verdict"], lines)


def nothing_done(f: Found) -> list[str]:
    """What was asked and changed nothing: no result, and nothing like "within noise"."""
    return [
        f"**{arm} did nothing.** Its runs logged the same losses and gradient norms as those of {other}, seed by seed, "
        "at every step and to the last digit. They are no second measurement, and not compared: what sets the two "
        "apart had no effect here, and what it would do where it has one is not known from these runs."
        for arm, other in f.same.items()
    ]


def footnotes(f: Found) -> list[str]:
    lines = ["bits/byte: held-out loss, lower is better; the verdict is on it."]
    evaluated = [cell["eval"] for cell in f.cells.values() if "eval" in cell]
    for name, metric in METRICS.items():
        if name == "bits/byte" or name not in f.results:
            continue
        scores = [e[metric.key] for e in evaluated if e.get(metric.key)]
        chance = f" (chance {scores[0]['chance']:.1f})" if scores else ""
        what = "mean accuracy in %"
        if name == "suite" and scores:
            what = f"mean accuracy in % over {scores[0]['tasks']} of BigScience's {scores[0]['of']} zero-shot tasks"
        said = "; ".join(f"{arm} {words_of(f, arm, name)}" for arm in f.compared[name])
        lines.append(f"{name}: {what}{chance}, higher is better" + (f"; the verdict on it: {said}." if said else "."))
    return [
        " ".join(lines),
        "±: standard error of that number alone. Arms share seeds and documents, so differences are surer.",
        *uneven(f),
    ]


def uneven(f: Found) -> list[str]:
    """Arms for which it does not hold that the seeds scatter all alike."""
    return [
        f"**{arm}: its seeds scatter more in {name} than those of the other arms** (F test, p = {p:.2g}, corrected for "
        "the number of arms). One variance is assumed for all. What is compared with this arm is judged by the "
        "variance of that difference alone where it asks for more; the noise of all other differences is overstated."
        for name in (f.results if f.controlled else ())
        for arm, p in outstanding({a: row for a, row in f.told(name).items() if row}).items()
    ]


def places(f: Found) -> list:
    """Ranks, where runs may be ranked; and who may not be."""
    blocks: list = []
    if f.refused:
        blocks += [
            "**Not ranked together: these runs were evaluated differently.**",
            "\n".join(f"* {line}" for line in f.refused),
        ]
    tables = []
    for name in f.results:
        for ranks in ranking(f.study, f.cells, f.results[name], name):
            if len(ranks) > 1:
                means = {arm: float(np.mean(list(f.results[name][arm].values()))) for arm in ranks}
                order = sorted(ranks, key=lambda arm: means[arm], reverse=METRICS[name].higher_is_better)  # noqa: B023
                lines = [[ranks[arm], arm, f"{means[arm]:.{METRICS[name].digits}f}"] for arm in order]
                tables.append(Table(["place", "runs", name], lines))
    if tables:
        blocks.append(
            "The place, or the places, that each may have: only a difference that is more than noise parts two runs. "
            "Every pair compared, corrected for the number of pairs."
        )
    return blocks + tables + corpora_by_tokens(f)


def corpora_by_tokens(f: Found) -> list[Table]:
    """Where both differ: the mean score of each corpus at each budget, of runs evaluated as the first of them."""
    name = list(f.results)[-1]
    grid: dict[str, dict[int, list[str]]] = {}
    alike = {arm for arm, _ in classes(f.cells)[0]["runs"]} if f.results[name] and classes(f.cells) else set()
    configs = configurations(f)
    names = brief(config["data.corpus"] for config in configs.values())
    for arm, config in configs.items():
        if (row := f.results[name][arm]) and arm in alike:
            corpus = f"{names[config['data.corpus']]}, {len(row)} seeds"
            shown = f"{np.mean(list(row.values())):.{METRICS[name].digits}f}"
            grid.setdefault(corpus, {}).setdefault(config["train.tokens"], []).append(shown)
    budgets = sorted({tokens for row in grid.values() for tokens in row})
    if len(grid) < 2 or len(budgets) < 2:
        return []
    lines = [[corpus, *(" / ".join(row.get(tokens, ["-"])) for tokens in budgets)] for corpus, row in grid.items()]
    return [Table(["trained on", *map(human, budgets)], lines, f"Corpora and tokens: {name}")]


def paired(f: Found) -> list:
    """Per seed; then the noise, what it takes for a difference to count, and what a study like this can see."""
    each, tests, boots = [], [], []
    for name in f.results:
        digits = METRICS[name].digits + 1
        for arm, c in f.compared[name].items():
            ours, theirs = f.results[name][arm], f.results[name][f.baseline]
            shared = [seed for seed in f.study.seeds if seed in ours and seed in theirs]
            signed = [f"{ours[seed] - theirs[seed]:+.{digits}f}" if seed in shared else "-" for seed in f.study.seeds]
            label, mean = f"{arm}, {name}", f"{c.difference:+.{digits}f}"
            each.append([label, *signed, mean])
            items, said = f"{c.items.variance**0.5:.{digits}f}", bold(f, arm, name)
            if c.seeds is None:
                tests.append([label, mean, "unknown", items, "unknown", "-", "-", said])
            else:
                seeds = f"{c.seeds.variance**0.5:.{digits}f} ({c.seeds.dof:.0f} d.o.f.)"
                noise, least = f"{c.noise:.{digits}f}", f"{c.threshold:.{digits}f}"
                tests.append([label, mean, seeds, items, noise, least, f"{c.adjusted:.2g}", said])
            seeds_ = (shared, shared) if shared else (sorted(ours), sorted(theirs))
            parts = strata(f.cells, arm, f.baseline, seeds_, name)
            if parts:
                low, high = interval(bootstrap(parts))
                line = [label, mean, f"{low:+.{digits}f} to {high:+.{digits}f}", "-"]
                if len(parts) > 2:
                    low, high = interval(bootstrap(parts, tasks=True), len(parts))
                    line[-1] = f"{low:+.{digits}f} to {high:+.{digits}f}"
                boots.append([*line, str(len(parts))])
    if not each:
        return ["No arm can be compared with the baseline" + (": see above." if f.same else " yet.")]
    blocks = [
        (PAIRED if f.controlled else UNPLANNED).format(
            baseline=f.baseline, batches="the same batches in the same order, and " * same_batches(f)
        ),
        Table(["", *(f"seed {seed}" for seed in f.study.seeds), "mean"], each),
        Table(["", "difference", "from the seeds", "from the items", "noise", "counts above", "p", "verdict"], tests),
        Table(["bootstrap, 95 %", "difference", "over items", "over tasks", "tasks"], boots),
        NOISE,
    ]
    if f.noise:
        blocks.append(
            f"Where an arm shares one seed with {f.baseline}, the seeds' part is what other runs tell, and "
            f"these arms if they have several seeds: {f.noise}."
        )
    return blocks + floor_words(f)


def floor_words(f: Found) -> list[str]:
    """The noise floor, and what more seeds would see."""
    lines = []
    for name, noise in noise_of(f).items():
        metric = METRICS[name]
        floor = noise_floor(f.told(name))  # with what the arms of a seed share: two seeds do not share it
        assert floor
        widest = quantile(0.05, Part(2 * floor.variance, floor.dof), Part(0.0, np.inf))
        seen = [
            f"{detectable(noise['seed_sd'], noise['items'], len(f.study.arms), n):.{metric.digits + 1}f} with {n}"
            for n in (2, 3, 5, 10)
        ]
        lines.append(
            f"**Noise floor, {name}.** Two runs that differ in the seed alone lie up to {widest:.{metric.digits + 1}f} "
            f"{metric.unit} apart, 19 times in 20. If the noise is as measured here, a study of {len(f.study.arms)} "
            f"arms sees with a chance of {POWER:.0%} differences from {', '.join(seen)} seeds."
        )
    return lines


def headline(f: Found) -> list:
    """The suite in the three ways of eval/tasks/tasks.yaml, of the runs that were evaluated as the first of them."""
    same: list[tuple[str, int]] = next((each["runs"] for each in classes(f.cells)), [])
    each = {key: f.cells[key]["eval"] for key in same if f.cells[key]["eval"].get("suite")}
    together = suite(list(each.values())) if each else None
    if not together:
        return []
    able, lines = together["able"], []
    for arm in f.study.arms:
        own = [evaluation for (a, _), evaluation in each.items() if a == arm]
        if found := suite(own) if own else None:
            can = [100 * evaluation["tasks"][name]["value"] for evaluation in own for name in able]
            lines.append(
                [
                    arm,
                    plus_minus(found["value"], found["stderr"], 2),
                    plus_minus(found["corrected"], found["corrected_stderr"], 2),
                    f"{np.mean(can):.2f}" if can else "-",
                ]
            )
    head = ["arm", "accuracy", "above chance", f"accuracy, {len(able)} tasks"]
    return [
        SUITE.format(able=", ".join(able) or "none"),
        Table(head, lines, f"{together['tasks']} of BigScience's {together['of']} tasks, in %"),
    ]


def per_task(f: Found) -> list:
    """Each task in a table, and its accuracy against chance as a map."""
    lines: list[list[str]] = []
    names: list[str] = []
    cells: list[list[tuple[str, float, str] | None]] = []
    arms = f.study.arms
    for task in tasks(f.cells):
        having = {
            key: cell["eval"]["tasks"][task]
            for key, cell in f.cells.items()
            if task in cell.get("eval", {}).get("tasks", {})
        }
        entry = next(iter(having.values()))
        loss = entry["metric"] == "bits_per_byte"
        counted = loss or entry.get("mean") or entry.get("suite")
        scale, digits = (1.0, 3) if loss else (100.0, 1)
        line = [
            task + ("" if counted else " (not in the mean)"),
            entry["metric"],
            str(entry["n"]),
            " to ".join(map(str, entry.get("context_tokens", "-"))),
            "-" if entry.get("chance") is None else f"{100 * entry['chance']:.1f}",
        ]
        row: list[tuple[str, float, str] | None] = []
        for arm in arms:
            seeds = [seed for a, seed in having if a == arm]
            items = table_of(f.cells, arm, seeds, task)
            values = np.array([(value.mean(), weight) for value, weight in items.values()]).reshape(-1, 2)
            mean = scale * float(np.mean([having[arm, seed]["value"] for seed in seeds])) if seeds else 0.0
            error = scale * ratio_stderr(values[:, 0], values[:, 1])
            line.append(plus_minus(mean, error, digits) if seeds else "-")
            chance = 100 * (entry.get("chance") or 0)
            above = (mean - chance) / (100 - chance) if abs(mean - chance) > 2 * error else 0.0
            tip = f"{task}, {arm}: {plus_minus(mean, error, digits)}, chance {chance:.1f}"
            row.append((f"{mean:.1f}", 2 * above, tip) if seeds else None)
        lines.append(line)
        if not loss and entry.get("chance") is not None:
            names, cells = [*names, task], [*cells, row]
    if not lines:
        return []
    corpora = {task.rpartition("/")[0] for task in names} - {""}
    names = [task.rpartition("/")[2] for task in names] if len(corpora) == 1 else names
    short = [arm.split("=", 1)[-1] if f.controlled else arm for arm in arms]
    note = "Blue above chance, orange below; grey: within two standard errors of it."
    art = figure.heat("Accuracy in %, coloured by its distance from chance", names, short, cells) if names else ""
    table = Table(["task", "metric", "items", "context, tokens", "chance", *arms], lines)
    return [Figure(art, note), *headline(f), TASKS, table]
