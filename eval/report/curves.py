"""The figures of a study's runs: losses, scores on the way, loss by position, corpora, scaling."""

import numpy as np

from ablations.values import human
from eval.report import cost, figure, published
from eval.report.compare import METRICS, Found, caution, same_batches, table_of, tasks, words_of
from eval.report.figure import Line
from eval.report.runs import curve
from eval.report.table import Figure, Table, plus_minus
from eval.statistics import Part, Results, level_stderr, power_law, ratio_stderr
from eval.tasks.position import BEYOND


def forest(f: Found, name: str) -> str:
    """Effects with the intervals that the verdict uses."""
    effects = []
    for arm, c in f.compared.get(name, {}).items():
        kind = "same" if not c.counts else "good" if (c.difference > 0) == METRICS[name].higher_is_better else "bad"
        half = c.threshold if c.seeds else np.inf
        effects.append((arm, c.difference, half, kind, words_of(f, arm, name).split(" (")[0]))
    better = "right" if METRICS[name].higher_is_better else "left"
    title = f"{name}: difference from the baseline"
    return figure.forest(title, effects, f"{METRICS[name].unit}; {better} of the line is better")


def loss_curves(f: Found) -> list[str]:
    """Training loss against tokens, FLOPs and hours: seeds thin, their mean thick."""
    having = f.having("metrics")
    figures = []
    axes = [("training tokens", 1.0), ("training FLOPs", None), ("processor-hours", None)]
    for i, (xlabel, _) in enumerate(axes):
        curves = []
        for arm, seeds in having.items():
            factors = {seed: per_token(cell, i) for seed, cell in seeds.items()}
            if any(factor is None for factor in factors.values()):
                continue
            x, means = figure.binned({seed: curve(cell) for seed, cell in seeds.items()})
            for seed, mean in means.items():
                curves.append(Line(f"{arm}, seed {seed}", f.colour(arm), x * factors[seed], mean, "thin"))
            if len(x):
                factor = float(np.mean([v for v in factors.values() if v]))
                curves.append(Line(arm, f.colour(arm), x * factor, np.mean(list(means.values()), axis=0), f.kind(arm)))
        unit = {cost.spent(c)["unit"] for seeds in having.values() for c in seeds.values()}
        xlabel = f"{'-'.join(sorted(unit))}-hours" if i == 2 else xlabel
        title = f"Training loss against {['tokens', 'FLOPs', 'hours'][i]}"
        figures.append(figure.lines(title, curves, xlabel, "nats per token", logx=True))
    return [each for each in figures if each]


def per_token(cell: dict, axis: int) -> float | None:
    """What a token costs: 1, FLOPs, or processor-hours (the run's mean: pauses and resumes are not in it)."""
    spent = cost.spent(cell)
    total = (spent["tokens"], spent["flops"], spent["hours"])[axis]
    return total / spent["tokens"] if total else None


def paired_curves(f: Found) -> list[str]:
    """Difference of the training loss from the baseline at the same seed."""
    having = f.having("metrics")
    if caution(f) or f.baseline not in having:
        return []
    curves = []
    for arm, seeds in having.items():
        apart = {
            seed: figure.subtract(curve(cell), curve(having[f.baseline][seed]))
            for seed, cell in seeds.items()
            if arm != f.baseline and seed in having[f.baseline]
        }
        apart = {seed: c for seed, c in apart.items() if len(c[0])}
        if not apart:
            continue
        x, means = figure.binned(apart)
        curves += [Line(f"{arm}, seed {seed}", f.colour(arm), x, mean, "thin") for seed, mean in means.items()]
        if len(x):
            curves.append(Line(arm, f.colour(arm), x, np.mean(list(means.values()), axis=0), f.kind(arm)))
    title = f"Same seed{', same batches' * same_batches(f)}: minus {f.baseline}"
    return [
        figure.lines(
            title, curves, "training tokens; below zero is better", "nats per token", True, zero=True, zoom=True
        )
    ]


def alike(result: dict, end: dict, metric: str = "") -> bool:
    """Whether two evaluations of one run asked the same: only then are they points of one curve."""

    def how(e: dict) -> list:
        same = [e.get(key) for key in ("version", "lm_eval", "corpora", "precision")]
        if metric == "suite":
            same += sorted(
                (name, task.get("data", {}).get("sha256", "")) for name, task in e["tasks"].items() if task.get("suite")
            )
        return same

    return how(result) == how(end)


def on_the_way(f: Found) -> list:
    """Scores of the weights that were kept on the way and evaluated, and of the end."""
    having = f.having("checkpoints")
    blocks: list = []
    for name, metric in METRICS.items() if having else ():
        curves = []
        shown: dict[int, dict[str, str]] = {}
        for arm, seeds in having.items():
            at: dict[int, list[float]] = {}
            for cell in seeds.values():
                end = [{"tokens": cell["metrics"][-1]["tokens"], **cell["eval"]}] if "eval" in cell else []
                points = {e["tokens"]: e for e in [*cell["checkpoints"], *end]}
                for each in points.values():
                    if each.get(metric.key) and alike(each, points[max(points)], metric.key):
                        at.setdefault(each["tokens"], []).append(each[metric.key]["value"])
            means = {tokens: float(np.mean(at[tokens])) for tokens in sorted(at) if len(at[tokens]) == len(seeds)}
            curves.append(Line(arm, f.colour(arm), list(means), list(means.values()), f.kind(arm)))
            for tokens, value in means.items():
                shown.setdefault(tokens, {})[arm] = f"{value:.{metric.digits}f}"
        if drawn := figure.lines(f"{name} against tokens", curves, "training tokens", metric.unit, logx=True):
            rows = [[human(tokens), *(shown[tokens].get(arm, "-") for arm in having)] for tokens in sorted(shown)]
            blocks += [Figure(drawn), Table(["training tokens", *having], rows, name)]
    return blocks


def beyond(f: Found) -> list:
    """Loss by position, up to several times the training length, and what stands beyond it in each scheme."""
    curves, marks, lines = [], {}, []
    schemes: dict[str, list[str]] = {}
    having = f.having("eval")
    longest = max(
        (
            each["positions"][-1]
            for seeds in having.values()
            for cell in seeds.values()
            if (each := cell["eval"].get("by_position"))
        ),
        default=0.0,
    )
    for arm, seeds in having.items():
        found = [cell["eval"].get("by_position") for cell in seeds.values()]
        if not all(found):
            continue
        x, y = found[0]["positions"], np.mean([each["bits_per_byte"] for each in found], axis=0)
        curves.append(Line(arm, f.colour(arm), x, y, f.kind(arm)))
        model = next(iter(seeds.values()))["run"]["config"]["model"]
        marks["training length"] = float(model["seq"])
        at = [max((i for i, p in enumerate(x) if p < n * model["seq"]), default=0) for n in (1, 2, 4)]
        ends = [f"{y[i]:.3f}" if x[i] > n / 2 * model["seq"] else "-" for i, n in zip(at, (1, 2, 4), strict=True)]
        change = f"{y[at[2]] - y[at[0]]:+.3f}" if x[at[2]] == longest > x[at[0]] else "-"
        lines.append([arm, *ends, change])
        schemes.setdefault(BEYOND.get(model["pos"], ""), []).append(arm)
    if not curves:
        return []
    tokens = min(
        each["eval"]["by_position"].get("tokens", 0)
        for seeds in having.values()
        for each in seeds.values()
        if each["eval"].get("by_position")
    )
    return [
        f"Each point is the loss of the same {tokens:,} tokens of held-out text with so many tokens before them, so a "
        "curve shows what a longer context gives or costs and not what is easier to predict (eval/tasks/position.py).",
        Figure(figure.lines("Loss by position", curves, "tokens before", "bits/byte", marks=marks)),
        Table(["arm", "training length", "2 ×", "4 ×", "change"], lines, "bits/byte with up to so many tokens before"),
        "Beyond the training length:",
        "\n".join(f"* {', '.join(arms)}: {words}" for words, arms in schemes.items() if words),
    ]


def domains(f: Found) -> list:
    """Held-out loss of each domain, where the text names several."""
    results = {
        arm: [
            {
                (corpus, name): entry
                for corpus, found in cell["eval"].get("by_domain", {}).items()
                for name, entry in found.items()
            }
            for cell in seeds.values()
        ]
        for arm, seeds in f.having("eval").items()
    }
    names = list(dict.fromkeys(name for cells in results.values() for each in cells for name in each))
    arms = [arm for arm, cells in results.items() if any(cells)]
    if not names:
        return []
    lines = []
    for name in names:
        line = [name[1] if len({corpus for corpus, _ in names}) == 1 else f"{name[1]}, of {name[0]}"]
        for arm in arms:
            have = [each[name] for each in results[arm] if name in each]
            value, error = (float(np.mean([each[key] for each in have] or [np.nan])) for key in ("value", "stderr"))
            known = f"{value:.3f}" if np.isnan(error) else plus_minus(value, error, 3)  # one document has no error
            line.append(known if have else "-")
        most = max((each[name]["n"] for cells in results.values() for each in cells if name in each), default=0)
        lines.append([*line, str(most)])
    return [
        "Bits per byte of held-out text by domain, mean over seeds ± standard error over documents.",
        Table(["domain", *arms, "documents"], lines),
    ]


def matrix(f: Found) -> list:
    """Bits per byte on each corpus of models trained on each, with the noise."""
    columns = tasks(f.cells, "bits/byte")
    arms = [
        arm
        for arm, seeds in f.having("eval").items()
        if all(task in cell["eval"]["tasks"] for cell in seeds.values() for task in columns)
    ]
    if len(columns) < 2 or len(arms) < 2:
        return []
    lines, cells, values = [], [], {}
    for task in columns:
        results: Results = {
            arm: {
                seed: c["eval"]["tasks"][task]["value"]
                for seed, c in f.having("eval")[arm].items()
                if task in c["eval"]["tasks"]
            }
            for arm in arms
        }
        for arm in arms:
            if results[arm]:
                items = table_of(f.cells, arm, sorted(results[arm]), task)
                averaged = np.array([(value.mean(), weight) for value, weight in items.values()])
                error = level_stderr(results, arm, Part(ratio_stderr(averaged[:, 0], averaged[:, 1]) ** 2, len(items)))
                values[arm, task] = (float(np.mean(list(results[arm].values()))), error)
    for arm in arms:
        lines.append([arm, *(plus_minus(*values[arm, t], 3) if (arm, t) in values else "-" for t in columns)])
        row: list[tuple[str, float, str] | None] = []
        for task in columns:
            column = [values[a, task][0] for a in arms if (a, task) in values]
            if (arm, task) not in values:
                row.append(None)
                continue
            value, error = values[arm, task]
            middle, half = (max(column) + min(column)) / 2, (max(column) - min(column)) / 2 or 1.0
            row.append((f"{value:.3f}", (middle - value) / half, f"{arm} on {task}: {plus_minus(value, error, 3)}"))
        cells.append(row)
    head = [f"on {task.rpartition('/')[0]}" for task in columns]
    return [
        "Held-out bits per byte, lower is better, ± standard error over seeds and documents. Compare within a column.",
        Table(["trained", *head], lines),
        Figure(
            figure.heat("Bits per byte: trained (rows), held-out text (columns)", arms, head, cells),
            "Coloured within each column, from its worst to its best.",
        ),
    ]


def scaling(f: Found) -> list:
    """Held-out loss against compute over several sizes or budgets, with a power law through the best."""
    points = {}
    for arm, seeds in f.having("eval").items():
        flops = [cost.spent(c)["flops"] for c in seeds.values()]
        loss = [c["eval"]["bits_per_byte"]["value"] for c in seeds.values()]
        if all(flops):
            points[arm] = (float(np.mean(flops)), float(np.mean(loss)))
    if len({round(np.log10(x), 1) for x, _ in points.values()}) < 3:
        return []
    curves = [Line(arm, f.colour(arm), [x], [y], "point") for arm, (x, y) in points.items()]
    fit = power_law(list(points.values()))
    words = ["A power law needs three runs on the lower envelope."]
    if fit:
        at = np.geomspace(min(x for x, _ in points.values()), 10 * max(x for x, _ in points.values()), 20)
        curves.append(Line("fit", 0, at, fit["scale"] * at ** -fit["exponent"], "dash"))
        known = published.load()["scaling"]
        words = [
            f"Lower envelope: loss falls as compute to the power of −{fit['exponent']:.3f} ({fit['points']} runs; "
            f"the dashed line goes ten times beyond them). BigScience: −{known['exponent']} ({known['mark']}, "
            f"{known['source']}), of another loss on another text."
        ]
    return [
        Figure(figure.lines("Held-out loss against compute", curves, "training FLOPs", "bits/byte", True, True)),
        *words,
    ]
