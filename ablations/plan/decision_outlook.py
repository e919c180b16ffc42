"""Sections of the document on what to train with a budget (a `Decision`): the timeline, the risks, and the ablations to
run first."""

import math
from typing import Any

from ablations.config import resolve
from ablations.drawing import Line, line_plot
from ablations.plan import affordable, power
from ablations.plan.decision import Decision
from ablations.plan.document import Document
from ablations.plan.first_studies import MOST_SEEDS, STUDY_SEEDS, STUDY_SHARE, STUDY_SIZE
from ablations.plan.resources import TIMES, weeks_text
from ablations.values import short_number

TIME_USES = ("trained", "saving", "redone", "detecting", "restarting", "waiting")
# BLOOM's shape, and its training: 366B tokens in 117 days from 11 March 2022 (BigScience's blog, as quoted: secondary).
BLOOM, BLOOM_TOKENS, BLOOM_DAYS = "70 x 14336 x 112", 366e9, 117


def add_timeline_section(out: Document, decision: Decision) -> None:
    """Add to the document `out` the simulated use of the time, and the tokens trained by week."""
    machines = decision.machines
    duration = machines.seconds / TIMES["week"]
    out.add_heading("Time line")
    out.add_text(
        f"{decision.timeline.histories} simulated histories of {duration:.3g} weeks, failures at BLOOM's rate "
        "(published: one or two GPUs a week of 384); repair, detection, restart and saving assumed "
        "(ablations/plan/reliability.py)."
    )
    timelines = [(f"{machines.nodes - machines.spare} nodes and {machines.spare} spare", decision.timeline)]
    if machines.spare:
        timelines.append((f"{machines.nodes} nodes, none spare", decision.timeline_without_spares))
    out.add_table(
        ["", "saves every", "failures", *TIME_USES],
        [
            [label, f"{timeline.interval / 60:.0f} min", f"{timeline.shares['failures']:.0f}"]
            + [f"{timeline.shares[use]:.2%}" for use in TIME_USES]
            for label, timeline in timelines
        ],
    )
    chosen = decision.chosen
    if not chosen:
        return
    mean, low, high = decision.trainable_tokens(chosen)
    plan = decision.planned_tokens(chosen)
    curves = [
        Line("expected", 1, [0, duration], [0, mean / 1e9]),
        Line("low and high", 1, [0, duration], [0, low / 1e9], "dash"),
        Line("low and high", 1, [0, duration], [0, high / 1e9], "dash"),
        Line("planned", 2, [0, duration], [plan / 1e9, plan / 1e9]),
    ]
    out.add_figure("timeline", line_plot("Tokens by week", curves, "weeks", "billion tokens"))
    training = decision.planned_training(chosen)
    out.add_text(
        f"The planned {short_number(plan)} tokens are trained after {weeks_text(training.seconds)} weeks. In all the "
        f"time {short_number(mean)} tokens could be ({short_number(low)} to {short_number(high)}). Low and high: "
        "the ends of the step time's interval, each with the 10th or 90th percentile of the histories."
    )
    if bloom := _bloom_tokens_over_predicted(decision):
        out.add_text(
            f"BLOOM, this shape on these GPUs, saw {short_number(BLOOM_TOKENS)} tokens in {BLOOM_DAYS} days "
            f"(secondary): {bloom[0]:.0%} of what is expected here for that time, and {bloom[1]:.0%} of the low end. "
            "The batch ramp, slow nodes and pauses, which it had, are not in the simulation."
        )


def _bloom_tokens_over_predicted(decision: Decision) -> tuple[float, float] | None:
    """BLOOM's published training tokens, divided by the tokens that the plan predicts for the same number of days:
    (ratio to the mean prediction, ratio to its low end). None where the decision is for another shape or other GPUs
    than BLOOM's."""
    chosen, machines = decision.chosen, decision.machines
    if not chosen or chosen.label != BLOOM or (machines.working, machines.gpu.name) != (384, "a100-80"):
        return None
    share = BLOOM_DAYS * TIMES["day"] / machines.seconds
    mean, low, _ = decision.trainable_tokens(chosen)
    return BLOOM_TOKENS / (mean * share), BLOOM_TOKENS / (low * share)


def add_risk_section(out: Document, decision: Decision) -> None:
    """Add to the document `out` a table of the risks: what can go wrong, how much it costs, and what helps."""
    machines, chosen, timeline = decision.machines, decision.chosen, decision.timeline
    rows = []
    if chosen:
        training = decision.planned_training(chosen)
        tokens = f"{short_number(training.tokens)} tokens"
        slower = f"at the slow end {weeks_text(training.slow)} weeks for {tokens} (predicted)"
        if bloom := _bloom_tokens_over_predicted(decision):
            slower += f"; at BLOOM's pace {weeks_text(training.seconds / bloom[0])} (computed)"
        rows.append(["Slower than predicted", slower, "an hour on all nodes before the plan is fixed"])
        rows.append(
            [
                "Out of memory",
                f"{chosen.gib:.0f} of {machines.gpu.memory:.0f} GiB (predicted); of seven published layouts that ran "
                "out one was not foreseen (computed)",
                "the same hour: a layout that runs out does so in its first step",
            ]
        )
    waiting = f"{timeline.shares['waiting']:.1%} of the time waiting for a node"
    if machines.spare:
        waiting += f", {decision.timeline_without_spares.shares['waiting']:.1%} if none were spare"
    rows += [
        [
            "Broken nodes",
            f"{timeline.shares['failures']:.0f} failures (published rate); {waiting} (simulated)",
            "spare nodes; a checkpoint every " + f"{timeline.interval / 60:.0f} minutes",
        ],
        [
            "Divergence",
            "no number here; BigScience's 104B in fp16 diverged again and again, its 176B in bf16 had one spike that "
            "passed (published: its chronicles)",
            "bf16, gradients summed in fp32, a small initialisation, clean text",
        ],
        [
            "An ablation that misleads",
            "no number for this distance in size; a line through three small sizes was once sure of the wrong sign "
            "(measured: docs/planning.md)",
            "a second, larger size before a costly change; verdicts, not averages",
        ],
        [
            "The wrong size",
            "see the laws above: nothing else is as uncertain",
            "a law fitted to runs on the text itself: make laws",
        ],
    ]
    out.add_heading("What can go wrong")
    out.add_table(["what", "how much", "what helps"], rows)


def add_study_section(out: Document, decision: Decision) -> None:
    """Add to the document `out` the ablations to run first, and those that the budget pays for at smaller sizes
    only."""
    machines = decision.machines
    tokens = short_number(resolve([("size", STUDY_SIZE)]).tokens)
    out.add_heading("Ablations first")
    out.add_text(
        f"Every study of decoders in ablations/studies at {STUDY_SIZE}, {tokens} tokens, a node of {machines.per_node} "
        f"for each run. What it sees, with a chance of {power.POWER:.0%}, in points of the mean of 27 tasks: from an "
        f"error of {power.SUITE_ERROR} points that the tasks' items give (computed from published results of each "
        f"task; taken for that of a difference: assumed) and {power.SUITE_SEED_SD} between seeds (assumed; published "
        f"between checkpoints). Effects: BigScience's (unverified). As many seeds as see the effect, {STUDY_SEEDS} "
        f"where it is unknown or out of reach; a sum of at most {STUDY_SHARE:.0%} of the budget."
    )
    total, rows = 0.0, []
    for entry in decision.studies:
        total += entry["gpu_hours"]
        effect = "unknown" if entry["effect"] is None else f"{entry['effect']:g} points"
        cost, share = f"{entry['gpu_hours']:,.0f}", _share_text(total / machines.gpu_hours)
        if not math.isfinite(total):
            cost = share = "unknown"
        runs = f"{entry['arms']} x {entry['seeds']}"
        rows.append([entry["study"], runs, cost, share, f"{entry['least']:.2g} points", effect, _study_advice(entry)])
    out.add_table(["study", "arms x seeds", "GPU-hours", "sum / budget", "sees", "effect", "advice"], rows)
    if rows and math.isfinite(total):
        out.add_text(
            f"GPU-hours: {decision.study_basis}. BigScience's own runs of this size, on V100, took 1.6 times what its "
            "benchmark says (12,700 GPU-hours for 112B tokens: published)."
        )
    elif rows:
        out.add_text(f"GPU-hours: unknown, {decision.study_basis}.")
    if any(not entry["gpu_hours"] <= decision.study_gpu_hours_limit for entry in decision.studies):
        out.add_heading("Ablations at a size that fits")
        out.add_text(
            f"At {STUDY_SIZE} some studies cost more than {STUDY_SHARE:.0%} of the budget. Each of them at the largest "
            "size, or with fewer tokens, at which it fits:"
        )
        target = f"a model of {STUDY_SIZE} and more"
        affordable.add_studies(out, decision.device, decision.smaller_studies, decision.study_gpu_hours_limit, target)


def _share_text(ratio: float) -> str:
    """A ratio of a cost to the budget as text, such as "12.5%"; from 10 on such as "12 times"."""
    return f"{ratio:.1%}" if ratio < 10 or not math.isfinite(ratio) else f"{short_number(round(ratio))} times"


def _study_advice(entry: dict[str, Any]) -> str:
    """The advice on whether to run a study, as text for a table. `entry`: the study's row of `ranked_studies`."""
    if entry["effect"] is not None and not entry["sees"]:
        return f"not at this size: {MOST_SEEDS} seeds do not see the effect"
    if not math.isfinite(entry["gpu_hours"]):
        return f"{STUDY_SIZE} does not fit on a node"
    if not entry["within"]:
        return f"beyond {STUDY_SHARE:.0%} of the budget"
    return "first" if entry["sees"] else "if a difference that it sees would change the decision"
