"""The document of a `Decision`: report.md and report.html, with figures, each number with its source."""

import math

from ablations.config import resolve
from ablations.drawing import Line
from ablations.drawing import lines as draw
from ablations.plan import power, published_laws, shapes
from ablations.plan.decision import (
    MOST_SEEDS,
    PLANNED_SHARE,
    SEED_SD,
    STUDY_SEEDS,
    STUDY_SHARE,
    STUDY_SIZE,
    TASK_ERROR,
    Decision,
)
from ablations.plan.document import Document
from ablations.plan.resources import PF_DAY, PUBLISHED_HOURS, TIMES, amount
from ablations.values import human

SPENT = ("trained", "saving", "redone", "detecting", "restarting", "waiting")


# How it went: 366B tokens in 117 days from 11 March 2022 (BigScience's blog, as quoted: secondary).
BLOOM, BLOOM_TOKENS, BLOOM_DAYS = "70 x 14336 x 112", 366e9, 117


def billions(number: float) -> str:
    """A number in billions, such as 392B or 1,160B; below a billion in millions, such as 12.5M."""
    return f"{number / 1e9:,.3g}B" if number >= 1e9 else human(number)


def document(decision: Decision) -> Document:
    out = Document(f"What to train with {decision.machines}")
    _summary(out, decision)
    _budget(out, decision)
    _optimum(out, decision)
    _shapes(out, decision)
    _time(out, decision)
    _studies(out, decision)
    out.heading("Where the numbers come from")
    out.bullets(
        [
            f"{decision.machines.gpu.name}: {decision.machines.gpu.source}",
            "step times and memory: ablations/plan/published.csv (published), fitted by ablations/plan/calibrate.py",
            "laws: ablations/plan/published_laws.py; constants as quoted (secondary)",
            "failures: BLOOM's paper, section 3.4 (published); everything else about failures is assumed",
            "100 TFLOP/s, 4,500 of 4,838 PF-days, and effects of ablations: the paper's, not read (unverified)",
        ]
    )
    return out


def _summary(out: Document, decision: Decision) -> None:
    least, most = (of(optimum.parameters for optimum in decision.optima) for of in (min, max))
    out.heading("In short")
    if chosen := decision.chosen:
        mean, low, high = decision.tokens_in_time(chosen)
        weeks = decision.machines.seconds / TIMES["week"]
        out.text(
            f"{chosen.words} (layers x width x heads), {billions(chosen.shape.parameters)} parameters, at "
            f"{chosen.step.seconds:.0f} s for a step of {human(chosen.layout.batch * shapes.SEQ)} tokens: "
            f"{human(mean)} tokens in {weeks:.3g} weeks ({human(low)} to {human(high)})."
        )
    else:
        out.text(f"No shape is named: {decision.reason}.")
    out.text(
        f"Sizes from {billions(decision.sizes[0])} to {billions(decision.sizes[1])} parameters follow from "
        f"{human(decision.tokens[1])} to {human(decision.tokens[0])} tokens ({decision.tokens_why}). The laws disagree "
        f"about the best size by a factor of {most / least:.0f}: nothing else here is as uncertain."
    )


def _budget(out: Document, decision: Decision) -> None:
    machines = decision.machines
    gpu, hours = machines.gpu, machines.gpu_hours
    planned = PLANNED_SHARE * gpu.peak
    rows = [
        ["GPU-hours at work", amount(hours), "computed"],
        ["GPU-hours with the spares", amount(machines.reserved_gpu_hours), "computed"],
        [
            "model FLOP/s of a GPU",
            f"{planned / 1e12:.0f}e12",
            f"assumed: {PLANNED_SHARE:.0%} of the peak, BigScience's planning (unverified)",
        ],
        ["PF-days", amount(machines.flops(planned) / PF_DAY), "computed"],
        [
            "PF-days planned with",
            amount(decision.compute / PF_DAY),
            "assumed: 93% of these, as BigScience (unverified)",
        ],
    ]
    if round(hours) == 18 * 7 * 24 * 384:
        rows.insert(1, ["the same, as published", f"{PUBLISHED_HOURS:,}", "published: two digits are swapped"])
    if chosen := decision.chosen:
        tokens = chosen.layout.batch * shapes.SEQ
        speed = chosen.shape.flops_per_token() * tokens / chosen.step.seconds / machines.working
        rows.append(["model FLOP/s of the chosen shape", f"{speed / 1e12:.0f}e12", f"predicted: {chosen.step.basis}"])
    out.heading("The budget")
    out.table(["what", "amount", "source"], rows)


def _optimum(out: Document, decision: Decision) -> None:
    compute, days = decision.compute, decision.compute / PF_DAY
    out.heading("The optimum, by each law")
    out.table(
        ["law", "parameters", "by rounding", "tokens", "tokens a parameter", "source"],
        [
            [
                optimum.law.name,
                billions(optimum.parameters),
                f"{billions(optimum.low)} to {billions(optimum.high)}",
                human(optimum.tokens),
                f"{optimum.tokens / optimum.parameters:.2g}",
                f"{optimum.law.status}: {optimum.law.source}",
            ]
            for optimum in decision.optima
        ],
    )
    out.text(
        "By rounding: what constants allow that would be printed so (computed). The errors of the fits, which are not "
        "known here, come on top, and the spread of the laws says more. A fit to runs of one's own has intervals: "
        "make laws RUNS=..."
    )
    grid = [compute * 10 ** (i / 4) for i in range(-12, 5)]
    curves = [
        Line(law.name, i, [c / PF_DAY for c in grid], [law.optimum(c)[0] / 1e9 for c in grid])
        for i, law in enumerate(published_laws.LAWS)
    ]
    title = "Parameters of least loss"
    out.figure("optimum", draw(title, curves, "PF-days", "billion parameters", True, True, marks={"this budget": days}))
    sizes = [decision.sizes[0] / 16 * 1.25**i for i in range(24)]
    losses = [
        Line(name, i, [n / 1e9 for n in sizes], [law.loss(n, compute / (6 * n)) for n in sizes])
        for i, (name, law) in enumerate(
            {"Hoffmann, way 3": published_laws.HOFFMANN_3, "Besiroglu": published_laws.BESIROGLU}.items(), 1
        )
    ]
    chosen = decision.chosen
    marks = {"chosen": chosen.shape.parameters / 1e9} if chosen else {}
    title = "Loss at this compute, by size"
    out.figure("loss", draw(title, losses, "billion parameters", "nats a token", True, marks=marks))
    if chosen:
        n = chosen.shape.parameters
        d = compute / (6 * n)
        besiroglu, hoffmann = published_laws.BESIROGLU, published_laws.HOFFMANN_3
        out.text(
            f"Expected loss of {billions(n)} parameters on {human(d)} tokens: {besiroglu.loss(n, d):.3f} (Besiroglu) "
            f"or {hoffmann.loss(n, d):.3f} (Hoffmann, way 3) nats a token, on their text with their tokenizer "
            f"(secondary); at their optima {besiroglu.after(compute):.3f} and {hoffmann.after(compute):.3f}. On other "
            "text losses differ by more than that."
        )


def _shapes(out: Document, decision: Decision) -> None:
    out.heading("Shapes")
    chosen = decision.chosen
    if decision.candidates:
        out.text(
            f"The fastest of {len(decision.candidates)} shapes of these sizes that keep to the rules "
            "(ablations/plan/shapes.py), each in its fastest layout. Speed: "
            f"{decision.candidates[0].step.basis}. "
            "Held out, these were off by 0.6% in the median; rows of other layouts and days, which make the interval, "
            "by 6.8%, in an order of rank correlation 0.7. What is 5% apart is not told apart."
        )
        head = ["layers x width x heads", "size", "dp / tp / pp", "micro-batch", "GiB", "s a step", "80% interval"]
        out.table(
            [*head, "against it"],
            [
                [
                    candidate.words,
                    billions(candidate.shape.parameters),
                    f"{candidate.layout.dp} / {candidate.layout.tp} / {candidate.layout.pp}",
                    str(candidate.layout.micro_batch),
                    f"{candidate.gib:.0f}",
                    f"{candidate.step.seconds:.1f}",
                    f"{candidate.step.low:.1f} to {candidate.step.high:.1f}",
                    candidate.rejected and f"{candidate.rejected}, above {shapes.HEAD_LIMIT}",
                ]
                for candidate in decision.candidates[:12]
            ],
        )
    if not chosen:
        out.text(
            f"{decision.reason or 'Something speaks against each of them'}. For smaller models: make plan "
            "SIZE=... ON=..."
        )
        return
    out.text(f"Chosen: {chosen.words}, the fastest that nothing speaks against:")
    out.bullets(shapes.why(chosen))
    out.text("Our own engine has no pipeline parallelism and does not train this size; its ablations are smaller.")


def _time(out: Document, decision: Decision) -> None:
    machines = decision.machines
    weeks = machines.seconds / TIMES["week"]
    out.heading("Time line")
    out.text(
        f"{decision.goodput.histories} simulated histories of {weeks:.3g} weeks, failures at BLOOM's rate (published: "
        "one or two GPUs a week of 384); repair, detection, restart and saving assumed (ablations/plan/reliability.py)."
    )
    lines = [(f"{machines.nodes - machines.spare} nodes and {machines.spare} spare", decision.goodput)]
    if machines.spare:
        lines.append((f"{machines.nodes} nodes, none spare", decision.without_spares))
    out.table(
        ["", "saves every", "failures", *SPENT],
        [
            [label, f"{line.interval / 60:.0f} min", f"{line.shares['failures']:.0f}"]
            + [f"{line.shares[name]:.2%}" for name in SPENT]
            for label, line in lines
        ],
    )
    chosen = decision.chosen
    if not chosen:
        return
    mean, low, high = decision.tokens_in_time(chosen)
    plan = decision.compute / (6 * chosen.shape.parameters)
    curves = [
        Line("expected", 1, [0, weeks], [0, mean / 1e9]),
        Line("80% interval", 1, [0, weeks], [0, low / 1e9], "dash"),
        Line("80% interval", 1, [0, weeks], [0, high / 1e9], "dash"),
        Line("planned", 2, [0, weeks], [plan / 1e9, plan / 1e9]),
    ]
    out.figure("timeline", draw("Tokens by week", curves, "weeks", "billion tokens"))
    reached = plan / mean * weeks
    late = "" if reached <= weeks else ", which is later than there is time"
    out.text(f"{human(plan)} tokens, what the planned PF-days come to, are trained after {reached:.1f} weeks{late}.")
    if chosen.words == BLOOM and machines.working == 384:
        expected = mean * BLOOM_DAYS * TIMES["day"] / machines.seconds
        out.text(
            f"BLOOM, this shape on these GPUs, saw {human(BLOOM_TOKENS)} tokens in {BLOOM_DAYS} days (secondary): "
            f"{BLOOM_TOKENS / expected:.0%} of what is expected here for that time. The batch ramp, slow nodes and "
            "pauses are not in the simulation, and the interval is that of the step time alone."
        )


def _studies(out: Document, decision: Decision) -> None:
    machines = decision.machines
    tokens = human(resolve([("size", STUDY_SIZE)]).tokens)
    out.heading("Ablations first")
    out.text(
        f"Every study of ablations/studies at {STUDY_SIZE}, {tokens} tokens, a node of {machines.per_node} for each "
        f"run. What it sees with a chance of {power.POWER:.0%}: from the error of the mean of 27 tasks, {TASK_ERROR} "
        f"points (computed from published results), and {SEED_SD} points between seeds (assumed; published between "
        f"checkpoints). Effects: BigScience's (unverified). As many seeds as see the effect, {STUDY_SEEDS} where it is "
        "unknown; first the studies that can see theirs."
    )
    total, rows = 0.0, []
    for entry in decision.studies:
        total += entry["gpu_hours"]
        effect = "unknown"
        if entry["effect"] is not None:
            effect = f"{entry['effect']:g} points" + ("" if entry["sees"] else f", not seen with {MOST_SEEDS} seeds")
        beyond = "" if entry["within"] else f"beyond {STUDY_SHARE:.0%} of the budget"
        cost, ratio = f"{entry['gpu_hours']:,.0f}", total / machines.gpu_hours
        share = f"{ratio:.1%}" if ratio < 10 else f"{human(round(ratio))} times"
        runs = f"{entry['arms']} x {entry['seeds']}"
        rows.append([entry["study"], runs, cost, share, f"{entry['least']:.2g} points", effect, beyond])
    out.table(["study", "arms x seeds", "GPU-hours", "sum / budget", "sees", "effect", ""], rows)
    if rows and math.isfinite(total):
        out.text(
            f"GPU-hours: {decision.study_basis}. BigScience's own runs of this size, on V100, took 1.6 times what its "
            "benchmark says (12,700 GPU-hours for 112B tokens: published)."
        )
