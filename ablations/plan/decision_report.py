"""The document on what to train with a budget (a `Decision`): report.md and report.html, with figures. Each number has
its source."""

from typing import Any

from ablations.drawing import Line, line_plot
from ablations.plan import published_laws, shapes
from ablations.plan.decision import MIN_SIZE, PLANNED_SHARE, Decision
from ablations.plan.decision_outlook import add_risk_section, add_study_section, add_timeline_section
from ablations.plan.document import Document
from ablations.plan.first_studies import STUDY_SHARE, STUDY_SIZE
from ablations.plan.hardware import GPU
from ablations.plan.resources import PF_DAY, PUBLISHED_HOURS, amount_text, weeks_text
from ablations.plan.throughput import calibration
from ablations.values import join_names, short_number

SHAPES_SHOWN = 12
LOSS_LAWS = {"Hoffmann, way 3": published_laws.HOFFMANN_3, "Besiroglu": published_laws.BESIROGLU}


def _two_digit_ratio(number: float) -> str:
    """A ratio as text with two significant digits: 0.42, 20, 130."""
    return f"{float(f'{number:.2g}'):,g}"


def document(decision: Decision) -> Document:
    """The document on what to train with a budget."""
    out = Document(f"What to train with {decision.machines}")
    _add_summary(out, decision)
    _add_budget(out, decision)
    _add_optima(out, decision)
    _add_shapes(out, decision)
    add_timeline_section(out, decision)
    add_risk_section(out, decision)
    add_study_section(out, decision)
    out.add_heading("Where the numbers come from")
    bases = [*(candidate.step.basis for candidate in decision.candidates[:1]), decision.study_basis]
    measured = any("measured here" in basis for basis in bases)
    out.add_text(
        "Published: in a source that was read. Secondary: as others quote it. Unverified: recalled, not read. Assumed: "
        "by us. Predicted: by a model fitted to published measurements. Computed: from the others. "
        + ("Measured here: by make bench-gpu." if measured else "No speed was measured on these machines.")
    )
    out.add_bullets(
        [
            f"{decision.machines.gpu.name}: {decision.machines.gpu.source}",
            "step times and memory: ablations/plan/published.csv (published), fitted by ablations/plan/calibrate.py; "
            "how good they are: docs/planning.md",
            "laws: ablations/plan/published_laws.py; constants as quoted (secondary)",
            "failures: BLOOM's paper, section 3.4 (published); everything else about failures is assumed",
            "100 TFLOP/s, 4,500 of 4,838 PF-days, and effects of ablations: the paper's, not read (unverified)",
        ]
    )
    return out


def _sizes_text(decision: Decision) -> str:
    """The range of model sizes as text, and the range of tokens from which it follows."""
    return (
        f"{short_number(decision.sizes[0])} to {short_number(decision.sizes[1])} parameters, which follow from "
        f"{short_number(decision.tokens[1])} to {short_number(decision.tokens[0])} tokens ({decision.tokens_source})"
    )


def _add_summary(out: Document, decision: Decision) -> None:
    """Add to the document `out` a table of questions about the decision, with answers and sources."""
    machines, chosen = decision.machines, decision.chosen
    out.add_heading("In short")
    if chosen:
        rows = _shape_rows(decision, chosen)
    else:
        words = f"{_sizes_text(decision)}; no shape is named: {decision.reason or NO_SHAPE}"
        rows = [["What to train", words, "computed"]]
    first = "; ".join(map(_study_text, decision.studies_to_run_first)) or (
        f"none: those with a published effect do not see it, or cost more than {STUDY_SHARE:.0%} of the budget"
    )
    if not decision.studies_to_run_first and (smaller := decision.smaller_studies):
        sizes = join_names(list(dict.fromkeys(study.size for study in smaller)), "or")
        first += f" at {STUDY_SIZE}; at {sizes} {join_names([study.study for study in smaller])} fit: see below"
    rows.append(["Which ablations first", first, "predicted; effects unverified"])
    if decision.studies_of_unknown_effect:
        names = ", ".join(entry["study"] for entry in decision.studies_of_unknown_effect)
        hours = decision.gpu_hours_by_use["ablations of unknown effect"]
        cost = f"{amount_text(hours)} GPU-hours, {hours / machines.gpu_hours:.1%}"
        rows.append(["Ablations of unknown effect", f"{names}: {cost} together", "predicted"])
    if chosen:
        left = decision.gpu_hours_by_use["left"]
        words = f"{amount_text(left)} GPU-hours, {left / machines.gpu_hours:.0%} of the budget"
        rows.append(["What is left", words, "computed"])
    least, most = (extreme(optimum.parameters for optimum in decision.optima) for extreme in (min, max))
    rows.append(
        [
            "What is least certain",
            f"the size: the laws' optima differ by a factor of {most / least:.0f}. It follows from the tokens, which "
            f"are {decision.tokens_source.rpartition(':')[0]}; NEED= plans for others",
            "computed from published laws",
        ]
    )
    out.add_table(["question", "answer", "source"], rows)


def _shape_rows(decision: Decision, chosen: shapes.ShapeCandidate) -> list[list[str]]:
    """The rows of the summary about the chosen shape, each [question, answer, source]: shape, tokens, layout, time and
    expected loss."""
    machines, shape, layout, training = (
        decision.machines,
        chosen.shape,
        chosen.layout,
        decision.planned_training(chosen),
    )
    return [
        [
            "What to train",
            f"{chosen.label} (layers x width x heads): {short_number(shape.parameters)} parameters",
            "predicted: the fastest shape that nothing speaks against",
        ],
        [
            "On how many tokens",
            f"{short_number(training.tokens)}, "
            f"{_two_digit_ratio(training.tokens / shape.parameters)} for each parameter",
            _token_limit_text(decision, chosen),
        ],
        [
            "In which layout",
            f"{layout.gpus} GPUs: data {layout.dp} x tensor {layout.tp} x pipeline {layout.pp}, micro-batch "
            f"{layout.micro_batch}; {layout.batch} sequences of {shapes.SEQ} a step",
            f"predicted: {chosen.gib:.0f} of {machines.gpu.memory:.0f} GiB, {chosen.step.seconds:.0f} s a step",
        ],
        [
            "How long it takes",
            f"{weeks_text(training.seconds)} weeks ({weeks_text(training.fast)} to {weeks_text(training.slow)}) of "
            f"{weeks_text(machines.seconds)}",
            "predicted: step time and failures",
        ],
        ["What loss to expect", _expected_loss_text(decision), "computed from two laws (secondary, unverified)"],
    ]


def _token_limit_text(decision: Decision, chosen: shapes.ShapeCandidate) -> str:
    """Text on what limits the planned number of tokens: the planned FLOPs, or the time after the ablations."""
    days = amount_text(decision.compute / PF_DAY)
    if decision.compute / (6 * chosen.shape.parameters) <= decision.planned_tokens(chosen):
        return f"computed: {days} PF-days / 6 N"
    return f"predicted: what fits beside the ablations; {days} PF-days would be more, at a speed that is not expected"


def _predicted_losses(decision: Decision) -> dict[str, tuple[float, float]]:
    """The losses in nats per token that published laws predict: {name of the law: (loss of the chosen shape on the
    planned tokens, loss of the best size at the planned compute)}."""
    assert decision.chosen
    n, d = decision.chosen.shape.parameters, decision.planned_tokens(decision.chosen)
    return {name: (law.loss(n, d), law.least_loss(decision.compute)) for name, law in LOSS_LAWS.items()}


def _expected_loss_text(decision: Decision) -> str:
    """The predicted losses of the chosen shape as text. It has their range over the published laws, and their excess
    over the loss of the best size at the same compute."""
    losses = _predicted_losses(decision).values()
    low, high = min(loss for loss, _ in losses), max(loss for loss, _ in losses)
    above = [loss - least for loss, least in losses]
    return f"{low:.2f} to {high:.2f} nats a token, {min(above):.2f} to {max(above):.2f} above the laws' optima"


NO_SHAPE = "something speaks against each"


def _study_text(entry: dict[str, Any]) -> str:
    """A study to run first as text, with its cost and the difference that it detects. `entry`: the study's row of
    `ranked_studies`."""
    return (
        f"{entry['study']}, {entry['runs']} runs at {STUDY_SIZE}: {entry['gpu_hours']:,.0f} GPU-hours; sees "
        f"{entry['least']:.2g} points where {entry['effect']:g} are expected"
    )


def _add_budget(out: Document, decision: Decision) -> None:
    """Add to the document `out` the budget in GPU-hours, PF-days and energy, and the uses of its GPU-hours."""
    machines = decision.machines
    gpu, hours = machines.gpu, machines.gpu_hours
    planned = PLANNED_SHARE * gpu.peak
    rows = [
        ["GPU-hours at work", amount_text(hours), "computed"],
        ["GPU-hours with the spares", amount_text(machines.reserved_gpu_hours), "computed"],
        [
            "model FLOP/s of a GPU",
            f"{planned / 1e12:.0f}e12",
            f"assumed: {PLANNED_SHARE:.0%} of the peak, BigScience's planning (unverified)",
        ],
        ["PF-days", amount_text(machines.flops(planned) / PF_DAY), "computed"],
        [
            "PF-days planned with",
            amount_text(decision.compute / PF_DAY),
            "assumed: 93% of these, as BigScience (unverified)",
        ],
    ]
    if round(hours) == 18 * 7 * 24 * 384:
        rows.insert(1, ["the same, as published", f"{PUBLISHED_HOURS:,}", "published: two digits are swapped"])
    if chosen := decision.chosen:
        tokens = chosen.layout.batch * shapes.SEQ
        speed = chosen.shape.flops_per_token() * tokens / chosen.step.seconds / machines.working
        rows.append(["model FLOP/s of the chosen shape", f"{speed / 1e12:.0f}e12", f"predicted: {chosen.step.basis}"])
    energy = amount_text(machines.gpu_hours * gpu.watts / 1e6)
    rows.append(
        ["energy of the GPUs at work", f"{energy} MWh at most", f"computed: {gpu.watts:.0f} W each (secondary)"]
    )
    out.add_heading("The budget")
    out.add_table(["what", "amount", "source"], rows)
    if decision.chosen:
        total = machines.gpu_hours
        uses = [[use, amount_text(hours), f"{hours / total:.1%}"] for use, hours in decision.gpu_hours_by_use.items()]
        out.add_text("What the GPU-hours at work go to, if ablations run on the same machines:")
        out.add_table(["use", "GPU-hours", "share"], [*uses, ["in all", amount_text(total), "100.0%"]])
        out.add_text(
            "Left are the evaluations of the model, slower days, work by hand, and what these pages do not know."
        )


def _add_optima(out: Document, decision: Decision) -> None:
    """Add to the document `out` the compute-optimal sizes by published laws."""
    compute, days = decision.compute, decision.compute / PF_DAY
    out.add_heading("The optimum, by each law")
    out.add_table(
        ["law", "parameters", "by rounding", "tokens", "tokens a parameter", "source"],
        [
            [
                optimum.law.name,
                short_number(optimum.parameters),
                f"{short_number(optimum.low)} to {short_number(optimum.high)}",
                short_number(optimum.tokens),
                _two_digit_ratio(optimum.tokens / optimum.parameters),
                f"{optimum.law.status}: {optimum.law.source}",
            ]
            for optimum in decision.optima
        ],
    )
    out.add_text(
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
    out.add_figure(
        "optimum", line_plot(title, curves, "PF-days", "billion parameters", True, True, marks={"this budget": days})
    )
    sizes = [decision.sizes[0] / 16 * 1.25**i for i in range(24)]
    loss_curves = [
        Line(name, i, [n / 1e9 for n in sizes], [law.loss(n, compute / (6 * n)) for n in sizes])
        for i, (name, law) in enumerate(LOSS_LAWS.items(), 1)
    ]
    chosen = decision.chosen
    marks = {"chosen": chosen.shape.parameters / 1e9} if chosen else {}
    title = "Loss at this compute, by size"
    out.add_figure("loss", line_plot(title, loss_curves, "billion parameters", "nats a token", True, marks=marks))
    if chosen:
        _add_expected_loss(out, decision, chosen)


def _add_expected_loss(out: Document, decision: Decision, chosen: shapes.ShapeCandidate) -> None:
    """Add to the document `out` the predicted loss of the chosen shape, and a table of the losses of other sizes at the
    planned compute."""
    compute = decision.compute
    n = chosen.shape.parameters
    d = decision.planned_tokens(chosen)
    besiroglu, losses = published_laws.BESIROGLU, _predicted_losses(decision)
    saved = besiroglu.compute_for(losses["Besiroglu"][0]) / (6 * n * d)
    by_law = "; ".join(f"{loss:.3f}, at its optimum {least:.3f} ({name})" for name, (loss, least) in losses.items())
    smaller, longer = besiroglu.optimum(saved * 6 * n * d)
    out.add_text(
        f"Expected loss of {short_number(n)} parameters on {short_number(d)} tokens: {by_law}, in nats a token on "
        "their text with their tokenizer (computed). On other text losses differ by more than that."
    )
    out.add_text(
        f"What the number of tokens costs: by Besiroglu's law the same loss takes {saved:.0%} of the compute, with "
        f"{short_number(smaller)} parameters on {short_number(longer)} tokens, if there is so much text (computed). "
        "What other numbers of tokens give at the planned compute, by both laws of the loss:"
    )
    choices = [("the chosen size", float(n), compute / (6 * n))]
    choices += [(optimum.law.name, optimum.parameters, optimum.tokens) for optimum in decision.optima]
    choices.sort(key=lambda choice: choice[2])
    out.add_table(
        ["", "tokens", "parameters", *(f"loss, {name}" for name in LOSS_LAWS)],
        [
            [
                name,
                short_number(tokens),
                short_number(size),
                *(f"{law.loss(size, tokens):.3f}" for law in LOSS_LAWS.values()),
            ]
            for name, size, tokens in choices
        ],
        strong=[name for name, *_ in choices].index("the chosen size"),
    )


def _accuracy_text(gpu: GPU) -> str:
    """Text on the errors of the predicted speed and memory of pipeline-parallel training on a GPU, from
    calibration.json."""
    fits = calibration()
    speed = fits[f"Megatron-DeepSpeed, {'v100' if gpu.name.startswith('v100') else 'a100-80'}"]
    memory = fits["memory"]
    words = f"Held out, these were off by {speed['median error']:.1%} in the median"
    if "checks" in speed:
        words += (
            f"; {speed['checks']} rows of other layouts and days, which make the interval, by "
            f"{speed['median error of checks']:.1%}, in an order of rank correlation "
            f"{speed['rank correlation of checks']:.1f}"
        )
    return (
        f"{words}. The interval holds 80% of the rows that it was made of; made without a shape's rows, it holds "
        f"{speed['coverage held out']:.0%} of those. What is 5% apart is not told apart. Memory: off by "
        f"{memory['median error']:.1%} in the median of {memory['rows']} rows, {memory['largest error']:.0%} at most."
    )


def _add_shapes(out: Document, decision: Decision) -> None:
    """Add to the document `out` the candidate shapes with their predicted speed and memory."""
    out.add_heading("Shapes")
    chosen, gpu = decision.chosen, decision.machines.gpu
    if decision.candidates:
        shown = decision.candidates[:SHAPES_SHOWN]
        if chosen and chosen not in shown:
            shown[-1] = chosen
        out.add_text(
            f"The fastest of {len(decision.candidates)} shapes of these sizes that keep to the rules "
            "(ablations/plan/shapes.py), each in its fastest layout. Speed: "
            f"{decision.candidates[0].step.basis}. {_accuracy_text(gpu)}"
        )
        head = ["layers x width x heads", "size", "dp / tp / pp", "micro-batch", "GiB", "s a step", "80% interval"]
        out.add_table(
            [*head, "against it"],
            [
                [
                    candidate.label,
                    short_number(candidate.shape.parameters),
                    f"{candidate.layout.dp} / {candidate.layout.tp} / {candidate.layout.pp}",
                    str(candidate.layout.micro_batch),
                    f"{candidate.gib:.0f}",
                    f"{candidate.step.seconds:.1f}",
                    f"{candidate.step.low:.1f} to {candidate.step.high:.1f}",
                    candidate.rejected and f"{candidate.rejected}, above {shapes.HEAD_LIMIT}",
                ]
                for candidate in shown
            ],
            strong=shown.index(chosen) if chosen else None,
        )
    if not chosen:
        hint = ""
        if decision.sizes[1] < MIN_SIZE:
            hint = (
                f". A size of our own engine, in its layouts: make plan STUDY=baseline SIZE={STUDY_SIZE} ON={gpu.name}"
            )
        out.add_text(f"No shape is named: {decision.reason or NO_SHAPE}{hint}")
        return
    out.add_text(f"Chosen: {chosen.label}, the fastest that nothing speaks against:")
    out.add_bullets(shapes.reasons_for_shape(chosen))
    out.add_text("Our own engine has no pipeline parallelism and does not train this size; its ablations are smaller.")
