"""A ladder: the same arms at three or more sizes, and their difference from the baseline extrapolated to a target size.

make ladder POS=alibi,rotary SIZES=nano,mini,small TARGET=14m        # trains what is missing, then fits

It writes a folder, OUT/ladder-NAME, which can be copied to ablations/records like the report of a study.
"""

import argparse
import json
import math
import shlex
import statistics
import sys
from collections.abc import Sequence
from typing import Any

from ablations import answers, rundir, safe_files
from ablations.criteria import PRIMARY
from ablations.drawing import Line, line_plot
from ablations.plan.document import Document
from ablations.plan.extrapolation import (
    LEAST_SEEDS,
    LEAST_SIZES,
    MOST_SEEDS,
    ONE_SEED,
    Extrapolation,
    Pair,
    Score,
    extrapolate,
    order_accuracy,
)
from ablations.plan.held_out_loss import HeldOutLoss, evaluation_differences, read_held_out_loss
from ablations.prediction import ORDER, Prediction, distinct_predictions
from ablations.registration import NOTHING_EXPECTED
from ablations.study import Study, from_args
from ablations.values import ConfigError, join_names, short_number
from model.count import flops_per_token

# of the figure's axis: (FLOPs of the unit, name)
FLOP_UNITS = [(1e21, "ZFLOP"), (1e18, "EFLOP"), (1e15, "PFLOP"), (1e12, "TFLOP"), (1e9, "GFLOP")]
INTERVAL_DISTANCE = 0.02  # between two intervals at the target, as a share of the figure's logarithmic width


def studies_by_size(words: Sequence[str], sizes: Sequence[str]) -> list[Study]:
    """The same study at each size of a ladder, the least compute first. `words`: the NAME=VALUE words that describe the
    study, without SIZE; `sizes`: the names of the sizes. Raises ConfigError where there are fewer than three sizes, a
    size is given twice, `words` have a SIZE, or the budget of the runs is a time."""
    if len(set(sizes)) != len(sizes):
        raise ConfigError(f"SIZES={','.join(sizes)}: one is there twice")
    if len(sizes) < LEAST_SIZES:
        raise ConfigError(f"SIZES={','.join(sizes)}: a ladder needs {LEAST_SIZES} sizes or more")
    if any(word.startswith("SIZE=") for word in words):
        raise ConfigError("a ladder has SIZES=, not SIZE=")
    ladder = [from_args([*words, f"SIZE={size}"]) for size in sizes]
    if any(study.base.ends_by_clock for study in ladder):
        raise ConfigError("a ladder compares by compute, which a wall clock does not set: train.budget=tokens")
    return sorted(ladder, key=baseline_run_flops)


def baseline_run_flops(study: Study) -> float:
    """The FLOPs of one run of a study's baseline."""
    return study.base.tokens * flops_per_token(study.base.model)


def read_pairs(ladder: Sequence[Study]) -> tuple[list[Pair], list[str]]:
    """Read the held-out losses of all runs of a ladder, and pair each run of an arm with the baseline's run of the same
    size and seed.

    Args:
        ladder: the study at each size.

    Returns:
        (the pairs whose two runs are finished and evaluated, the directories of the runs that are not finished and
        evaluated).

    Raises:
        ConfigError: a run is damaged, has another configuration than its study, or was evaluated differently from
            another run of the same size.
    """
    pairs, missing = [], []
    for study in ladder:
        losses: dict[tuple[str, int], float] = {}
        first: HeldOutLoss | None = None
        for cell in study.cells:
            loss = read_held_out_loss(cell.dir / rundir.EVAL)
            if loss is None:
                missing.append(str(cell.dir))
                continue
            cell.check_same_configuration()
            first = first or loss
            if differs := evaluation_differences(first, loss):
                raise ConfigError(f"{cell.dir} was evaluated differently from {study.cells[0].dir.name}: {differs}")
            losses[cell.arm, cell.seed] = loss.value
        baseline = study.arms[0]
        pairs += [
            Pair(arm, study.base.size, seed, baseline_run_flops(study), value, losses[baseline, seed])
            for (arm, seed), value in losses.items()
            if arm != baseline and (baseline, seed) in losses
        ]
    return pairs, missing


def describe_extrapolations(results: Sequence[Extrapolation], ladder: Sequence[Study], target: Study) -> list[str]:
    """The extrapolated differences of a ladder as lines of text: a table of the arms, then for each undecided arm what
    would decide it.

    Args:
        results: the extrapolated difference of each arm.
        ladder: the study at each size.
        target: the study at the target size.
    """
    target_flops = baseline_run_flops(target)
    cost = sum(baseline_run_flops(study) * len(study.cells) for study in ladder)
    out = [
        f"{target.factor}: {', '.join(study.base.size for study in ladder)}, extrapolated to {target.base.size} "
        f"({short_number(target_flops)} FLOPs a run; "
        f"the largest of the ladder has {baseline_run_flops(ladder[-1]) / target_flops:.1%} of them)",
        f"{'arm':24} {'at the target':>14} {'90% interval':>20} {'verdict':>10}   "
        f"{'largest size alone':>20} {'verdict':>10}",
    ]
    for result in results:
        interval = f"{result.low:+.2%} to {result.high:+.2%}"
        out.append(
            f"{result.arm[:24]:24} {result.at_target:+14.2%} {interval:>20} {result.verdict:>10}   "
            f"{result.single:+20.2%} {result.single_verdict:>10}"
        )
    for result in results:
        if result.sign_unseen:
            out.append(
                f"{result.arm}: the line changes its sign beyond {ladder[-1].base.size}, which no size has shown; more "
                "seeds do not help, a larger size does"
            )
        elif result.verdict == "undecided":
            per_seed = cost / len(target.seeds)
            if result.seeds_needed:
                needs = (
                    f"{result.seeds_needed} seeds of this ladder, {short_number(per_seed * result.seeds_needed)} FLOPs"
                )
            else:
                needs = f"more than {MOST_SEEDS} seeds of this ladder"
            direct = target_flops * len(target.arms) * len(target.seeds)
            out.append(
                f"to be sure of {result.arm}: {needs}; the target itself with {len(target.seeds)} seeds, "
                f"{short_number(direct)}"
            )
    return out


def draw_differences(pairs: Sequence[Pair], results: Sequence[Extrapolation], target: float) -> str:
    """Draw the measured differences from the baseline against FLOPs, the fitted line of each arm, and the intervals at
    the target side by side. Returns SVG text.

    Args:
        pairs: the measured losses.
        results: the extrapolated difference of each arm.
        target: the FLOPs of a run at the target size.
    """
    unit, name = next((unit, name) for unit, name in FLOP_UNITS if target >= unit or unit == FLOP_UNITS[-1][0])
    computes = [pair.compute / unit for pair in pairs]
    width = (target / unit / min(computes)) ** INTERVAL_DISTANCE
    curves = []
    for i, result in enumerate(results, 1):
        arm_pairs = [pair for pair in pairs if pair.arm == result.arm]
        first = min(pair.compute for pair in arm_pairs)
        first_gap = 100 * (result.at_target + result.slope * math.log(first / target))
        x = target / unit * width ** (i - 1)
        gaps = [100 * pair.gap for pair in arm_pairs]
        curves += [
            Line("", i, [pair.compute / unit for pair in arm_pairs], gaps, "point"),
            Line(result.arm, i, [first / unit, target / unit], [first_gap, 100 * result.at_target]),
            Line("", i, [x, x], [100 * result.low, 100 * result.high]),
        ]
    title = "Difference from the baseline, with 90% intervals"
    return line_plot(
        title, curves, f"{name} of a run", "loss, %", logx=True, zero=True, marks={"target": target / unit}
    )


def compare_with_target(results: Sequence[Extrapolation], target: Sequence[Pair]) -> dict[str, dict[str, Any]]:
    """Compare the verdicts of a ladder with the measured differences at the target size.

    Args:
        results: the extrapolated difference of each arm.
        target: the measured losses at the target size.

    Returns:
        {"ladder": scores of the extrapolated verdicts, "largest_size": scores of the verdicts from the largest size
        alone}. Scores are {"hits": right verdicts, "misses": wrong ones, "open": undecided ones, "order_accuracy": the
        share of pairs of arms in the right order, None where all arms are equal}.
    """
    truth = {result.arm: statistics.fmean(p.gap for p in target if p.arm == result.arm) for result in results}
    ladder, single = Score(), Score()
    for result in results:
        ladder.add_verdict(result.verdict, truth[result.arm])
        single.add_verdict(result.single_verdict, truth[result.arm])
    true = [truth[result.arm] for result in results]
    orders = [
        order_accuracy([result.at_target for result in results], true),
        order_accuracy([result.single for result in results], true),
    ]
    scores = zip(("ladder", "largest_size"), (ladder, single), orders, strict=True)
    return {
        name: vars(score) | {"order_accuracy": None if math.isnan(order) else order} for name, score, order in scores
    }


def describe_comparison(comparison: dict[str, dict[str, Any]]) -> list[str]:
    """The comparison of a ladder with its target as lines of text. `comparison`: the result of
    `compare_with_target`."""
    ladder, single = comparison["ladder"], comparison["largest_size"]
    if ladder["order_accuracy"] is None:
        return ["against the target's own runs: all arms are equal there"]
    return [
        f"compared with the target's own runs, the verdicts of the line: {ladder['hits']} right, {ladder['misses']} "
        f"wrong, {ladder['open']} undecided; those of the largest size alone: {single['hits']} right, "
        f"{single['misses']} wrong, {single['open']} undecided",
        f"pairs of arms in the right order: {ladder['order_accuracy']:.0%} by the line, {single['order_accuracy']:.0%} "
        "by the largest size alone",
    ]


def ladder_content(results: Sequence[Extrapolation], pairs: Sequence[Pair], target: Study) -> dict[str, Any]:
    """The content of ladder.json: the question, the target, the result of each arm, and all pairs. `target`: the study
    at the target size."""
    return {
        "question": target.question,
        "target": target.base.size,
        "target_flops": baseline_run_flops(target),
        "arms": [
            vars(result) | {"verdict": result.verdict, "single_verdict": result.single_verdict} for result in results
        ],
        "pairs": [vars(pair) | {"gap": pair.gap} for pair in pairs],
    }


def make_report(
    results: Sequence[Extrapolation],
    pairs: Sequence[Pair],
    ladder: Sequence[Study],
    target: Study,
    comparison: dict[str, dict[str, Any]] | None,
    words: Sequence[str],
) -> Document:
    """Make the report of a ladder: question, expectation, answer, table and figure of the arms, outcomes of
    predictions, what would decide undecided arms, and how to read the table.

    Args:
        results: the extrapolated difference of each arm.
        pairs: the losses of each arm and the baseline, for the figure.
        ladder: the study at each size.
        target: the study at the target size.
        comparison: the result of `compare_with_target`; None where runs at the target size are missing.
        words: the words of the command, without SIZES and TARGET.
    """
    sizes, largest = [study.base.size for study in ladder], ladder[-1].base.size
    out = Document(f"{target.factor}, a ladder of {join_names(sizes)} to {target.base.size}, {len(target.seeds)} seeds")
    out.add_text(f"**Question.** {target.question}")
    is_expected = not target.expect.startswith(NOTHING_EXPECTED)
    out.add_text(f"**Expected before the runs.** {target.expect}" if is_expected else target.expect)
    out.add_text(answer_text(results, ladder, target))
    out.add_table(
        ["arm", f"line at {target.base.size}", "90% interval", f"{largest} alone", "its verdict", "the line's verdict"],
        [
            [
                result.arm,
                f"{result.at_target:+.2%}",
                f"{result.low:+.2%} to {result.high:+.2%}",
                f"{result.single:+.2%}",
                result.single_verdict,
                result.verdict,
            ]
            for result in results
        ],
    )
    out.add_figure("figure", draw_differences(pairs, results, baseline_run_flops(target)))
    if predictions := distinct_predictions(target.predictions):
        out.add_heading("Predictions")
        out.add_bullets(
            [f"`{claim.text}`: {prediction_outcome(claim, results, target.arms[0])}" for claim in predictions]
        )
    notes = describe_extrapolations(results, ladder, target)[2 + len(results) :]
    notes += describe_comparison(comparison) if comparison else []
    if notes:
        out.add_heading("How sure it is")
        out.add_bullets(notes)
    tokens = ", ".join(f"{study.base.size} {short_number(study.base.tokens)}" for study in [*ladder, target])
    times = baseline_run_flops(target) / baseline_run_flops(ladder[-1])
    untested = "" if comparison else " No run here tests the line beyond that size."
    out.add_heading("How to read the table")
    out.add_bullets(
        [
            "A difference is the logarithm of the arm's held-out loss over the baseline's, in percent: below 0 the arm "
            "is better.",
            f"The line is fitted to the differences at {join_names(sizes)}, against the logarithm of compute.",
            f"Tokens of a run: {tokens}. {target.base.size} takes {times:.3g} times the compute of {largest}, the "
            f"largest size on the line.{untested}",
            "Intervals are of 90%. Better or worse: the interval leaves out 0.",
        ]
    )
    out.add_heading("How to redo it")
    out.add_code(f"make ladder {' '.join(map(shlex.quote, words))} SIZES={','.join(sizes)} TARGET={target.base.size}")
    return out


def answer_text(results: Sequence[Extrapolation], ladder: Sequence[Study], target: Study) -> str:
    """The answer of a ladder in a sentence: which arms are better or worse than the baseline at the target size, and
    which are undecided. `ladder`: the study at each size; `target`: the study at the target size."""
    baseline = "the baseline" if target.arms[0] == "baseline" else f"the baseline ({target.arms[0]})"
    clauses = []
    for verdict, words in (
        ("better", f"better than {baseline}"),
        ("worse", f"worse than {baseline}"),
        ("undecided", "undecided"),
    ):
        arms = [result.arm for result in results if result.verdict == verdict]
        if arms:
            clauses.append(f"{join_names(arms)} {'is' if len(arms) == 1 else 'are'} {words}")
    sizes = join_names([study.base.size for study in ladder])
    return f"**Answer.** At {target.base.size}, by the line through {sizes}, {'; '.join(clauses)}."


def prediction_outcome(prediction: Prediction, results: Sequence[Extrapolation], baseline: str) -> str:
    """The outcome of a registered prediction by the verdicts at the target: "held", "failed", "undecided", or "not
    decided by a ladder". A ladder decides only predictions that an arm has a lower or higher loss than the baseline.

    Args:
        prediction: the prediction.
        results: the extrapolated difference of each arm.
        baseline: the name of the baseline arm.
    """
    verdicts = {result.arm: result.verdict for result in results}
    is_of_baseline = prediction.kind == ORDER and len(prediction.arms) == 2 and baseline in prediction.arms
    if not is_of_baseline or prediction.metric != PRIMARY:
        return "not decided by a ladder"
    arm = next(label for label in prediction.arms if label != baseline)
    if verdicts.get(arm, "undecided") == "undecided":
        return "undecided"
    return "held" if verdicts[arm] == ("better" if prediction.arms[0] == arm else "worse") else "failed"


def main(argv: list[str] | None = None) -> int:
    parser = answers.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", required=True, help="nano,mini,small")
    parser.add_argument("--target", default="14m", help="a size")
    parser.add_argument("--list", action="store_true", help="print the sizes, one a line, once all is checked")
    parser.add_argument("words", nargs="*", metavar="NAME=VALUE", help="the study, as for make ablation")
    args = parser.parse_args(argv)
    as_json = answers.asks_for_json(args.words)
    try:
        _, args.words = answers.extract_format(args.words)
        ladder = studies_by_size(args.words, [size.strip() for size in args.sizes.split(",") if size.strip()])
        target = from_args([*args.words, f"SIZE={args.target}"])
        if baseline_run_flops(target) <= baseline_run_flops(ladder[-1]):
            raise ConfigError(f"TARGET={args.target} takes no more compute than {ladder[-1].base.size} of the ladder")
        if len(target.seeds) < LEAST_SEEDS:
            raise ConfigError(f"SEEDS={len(target.seeds)}: {ONE_SEED}")
        if args.list:
            print(*(study.base.size for study in ladder), sep="\n")
            return 0
        pairs, missing = read_pairs(ladder)
        if missing:
            raise ConfigError(
                f"{len(missing)} runs are not finished and judged, among them {missing[0]}: make ladder runs them"
            )
        results = extrapolate(pairs, baseline_run_flops(target))
        target_pairs, unfinished = read_pairs([target])
    except ConfigError as error:
        answers.print_error(str(error), as_json)
        return 2
    folder, content = target.out / f"ladder-{target.name}", ladder_content(results, pairs, target)
    comparison = None if unfinished else compare_with_target(results, target_pairs)
    try:
        files = make_report(results, pairs, ladder, target, comparison, args.words).files()
        safe_files.write_together(folder, files | {"ladder.json": json.dumps(content, indent=1) + "\n"})
    except OSError as error:
        if not (reason := safe_files.storage_error_message(error)):
            raise
        answers.print_error(reason, as_json)
        return 1
    if as_json:
        print(answers.json_answer("ladder", content | {"against_target": comparison, "written": str(folder)}))
        return 0
    print(*describe_extrapolations(results, ladder, target), sep="\n")
    if comparison:
        print(*describe_comparison(comparison), sep="\n")
    print(f"written: {folder}/report.md, report.html, figure.svg, ladder.json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
