"""A ladder: the same arms at three or more sizes, and their difference from the baseline extrapolated to a target size.

Arms with the same seed at the same size see the same batches, so that what is fitted is the difference of each pair:
log(loss of the arm / loss of the baseline), a line in the logarithm of compute. That is exact where both losses are
powers of compute, and near it where they share what cannot be learned. The noise is pooled over the arms; intervals are
Student's. Beside it stands the rule that is hard to beat: the order at the largest size that was run.

make ladder POS=alibi,rotary SIZES=nano,mini,small TARGET=14m        # trains what is missing, then fits
"""

import argparse
import functools
import math
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ablations import answers, rundir, safe_files
from ablations.drawing import Line, combined_figures
from ablations.drawing import lines as draw
from ablations.plan import power
from ablations.study import Study, from_args
from ablations.values import ConfigError, human
from model.count import flops_per_token

LEVEL = 0.1  # of intervals: 90%
LEAST_SIZES = 3  # a line through two has nothing that could contradict it
LEAST_SEEDS = 2
ONE_SEED = "a ladder needs two seeds or more: with one the noise is not known"
MOST_SEEDS = 1000  # more would not be run: "never"
FLOP_UNITS = [
    (1e21, "ZFLOP"),
    (1e18, "EFLOP"),
    (1e15, "PFLOP"),
    (1e12, "TFLOP"),
    (1e9, "GFLOP"),
]  # of the figure's axis
INTERVAL_DISTANCE = 0.02  # between two intervals at the target, as a share of the figure's logarithmic width


@dataclass(frozen=True)
class Pair:
    """The losses of an arm and of the baseline at the same size and seed."""

    arm: str
    size: str
    seed: int
    compute: float  # FLOPs of one of the runs
    loss: float
    baseline: float

    @property
    def gap(self) -> float:
        """The relative difference from the baseline, log(loss / loss of the baseline); below 0 the arm is better."""
        return math.log(self.loss / self.baseline)


@dataclass(frozen=True)
class Extrapolation:
    """The extrapolated difference of one arm at the target. Differences are relative: -0.02 is a loss 2% below the
    baseline's."""

    arm: str
    at_target: float
    low: float
    high: float
    slope: float  # for each factor e of compute
    single: float  # at the largest size that was run
    single_low: float
    single_high: float
    seeds_needed: int | None  # of the same ladder, for an interval that leaves out 0; None: not with MOST_SEEDS
    sign_unseen: bool = False  # at_target has the opposite sign of the mean difference at every size that was run

    @property
    def verdict(self) -> str:
        """The verdict on the arm at the target. It is undecided where the predicted sign was not seen at any size,
        since on a line a difference that shrinks towards 0 looks as if it went through 0."""
        return "undecided" if self.sign_unseen else _verdict(self.low, self.high)

    @property
    def single_verdict(self) -> str:
        """The verdict from the runs of the largest size alone."""
        return _verdict(self.single_low, self.single_high)


def _verdict(low: float, high: float) -> str:
    return "better" if high < 0 else "worse" if low > 0 else "undecided"


@functools.cache
def _quantile(freedom: float, level: float) -> float:
    return power.quantile(freedom, level)


def extrapolate(pairs: Sequence[Pair], target: float) -> list[Extrapolation]:
    """Extrapolate the difference of every arm from the baseline to a larger run.

    Args:
        pairs: the losses of arms and baseline at several sizes and seeds.
        target: the FLOPs of the larger run.

    Returns:
        The result for each arm.

    Raises:
        ConfigError: there are fewer than three sizes or two seeds, or an arm lacks a pair that other arms have.
    """
    arms = list(dict.fromkeys(pair.arm for pair in pairs))
    cells = {arm: sorted({(p.compute, p.seed) for p in pairs if p.arm == arm}) for arm in arms}
    computes = sorted({pair.compute for pair in pairs})
    seeds = sorted({pair.seed for pair in pairs})
    if len(computes) < LEAST_SIZES:
        raise ConfigError(f"a ladder needs {LEAST_SIZES} sizes or more, and {len(computes)} are there")
    if len(seeds) < LEAST_SEEDS:
        raise ConfigError(ONE_SEED)
    for arm in arms:
        if cells[arm] != cells[arms[0]] or len(cells[arm]) != len(computes) * len(seeds):
            raise ConfigError(f"{arm} has not been run at every size and seed that others were")
    count = len(cells[arms[0]])
    x = [math.log(compute / target) for compute, _ in cells[arms[0]]]
    middle = statistics.fmean(x)
    spread = sum((value - middle) ** 2 for value in x)
    lines, residuals = {}, 0.0
    for arm in arms:
        y = [p.gap for p in sorted((p for p in pairs if p.arm == arm), key=lambda p: (p.compute, p.seed))]
        slope = sum((a - middle) * b for a, b in zip(x, y, strict=True)) / spread
        level = statistics.fmean(y) - slope * middle  # at the target, where x is 0
        residuals += sum((b - level - slope * a) ** 2 for a, b in zip(x, y, strict=True))
        lines[arm] = (level, slope)
    # the arms share a baseline, so that their residuals are not independent: the degrees of freedom are those of one
    freedom = count - 2
    variance = residuals / (len(arms) * freedom)
    error = math.sqrt(variance * (1 / count + middle**2 / spread))
    t = _quantile(freedom, LEVEL)
    largest = [pair for pair in pairs if pair.compute == computes[-1]]
    gaps = {arm: [pair.gap for pair in largest if pair.arm == arm] for arm in arms}
    pooled = statistics.fmean(statistics.variance(values) for values in gaps.values())
    half = _quantile(len(seeds) - 1, LEVEL) * math.sqrt(pooled / len(seeds))
    result = []
    for arm, (level, slope) in lines.items():
        single = statistics.fmean(gaps[arm])
        means = [statistics.fmean(p.gap for p in pairs if (p.arm, p.compute) == (arm, size)) for size in computes]
        result.append(
            Extrapolation(
                arm,
                level,
                level - t * error,
                level + t * error,
                slope,
                single,
                single - half,
                single + half,
                _seeds_needed(level, error, len(seeds)),
                all(mean * level < 0 for mean in means),
            )
        )
    return result


def _seeds_needed(level: float, error: float, seeds: int) -> int | None:
    """The number of seeds with which the same ladder would detect a difference with probability power.POWER; None
    where MOST_SEEDS are not enough.

    Args:
        level: the difference at the target.
        error: its standard error in this ladder.
        seeds: the seeds of this ladder.
    """
    z = _quantile(math.inf, LEVEL) + _quantile(math.inf, 2 * (1 - power.POWER))
    needed = seeds * (z * error / abs(level)) ** 2 if level else math.inf
    return max(2, math.ceil(needed)) if needed <= MOST_SEEDS else None


@dataclass
class Score:
    """How often verdicts agree with the true differences: the numbers of right (hits), wrong (misses) and undecided
    (open) verdicts."""

    hits: int = 0
    misses: int = 0
    open: int = 0

    def count(self, verdict: str, truth: float) -> None:
        """Add a verdict to the score, given the true difference `truth` at the target."""
        if verdict == "undecided":
            self.open += 1
        elif (verdict == "better") == (truth < 0):
            self.hits += 1
        else:
            self.misses += 1

    @property
    def accuracy(self) -> float:
        """The share of right verdicts, where an undecided verdict counts one half."""
        return (self.hits + self.open / 2) / max(1, self.hits + self.misses + self.open)


def order_accuracy(predicted: Sequence[float], true: Sequence[float]) -> float:
    """DataDecide's decision accuracy: the share of pairs of arms, the baseline (0) among them, that `predicted` has in
    the same order as `true`.

    Args:
        predicted: the predicted difference of each arm from the baseline.
        true: the true difference of each arm, in the same order of arms.
    """
    p, t = [0.0, *predicted], [0.0, *true]
    pairs = [(i, j) for i in range(len(p)) for j in range(i) if t[i] != t[j]]
    return statistics.fmean((p[i] < p[j]) == (t[i] < t[j]) for i, j in pairs) if pairs else math.nan


# ------------------------------------------------------------------------------------------------ of studies


def studies(words: Sequence[str], sizes: Sequence[str]) -> list[Study]:
    """The same study at each size of a ladder, smallest compute first.

    Args:
        words: the NAME=VALUE words of the study, without SIZE.
        sizes: the names of the sizes.

    Raises:
        ConfigError: there are fewer than three sizes, or a size is given twice.
    """
    if len(set(sizes)) != len(sizes):
        raise ConfigError(f"SIZES={','.join(sizes)}: one is there twice")
    if len(sizes) < LEAST_SIZES:
        raise ConfigError(f"SIZES={','.join(sizes)}: a ladder needs {LEAST_SIZES} sizes or more")
    if any(word.startswith("SIZE=") for word in words):
        raise ConfigError("a ladder has SIZES=, not SIZE=")
    results = [from_args([*words, f"SIZE={size}"]) for size in sizes]
    if any(study.base.by_clock for study in results):
        raise ConfigError("a ladder compares by compute, which a wall clock does not set: train.budget=tokens")
    return sorted(results, key=compute_of)


def compute_of(study: Study) -> float:
    """The FLOPs of the baseline's run in a study."""
    return study.base.tokens * flops_per_token(study.base.model)


def pairs_of(ladder: Sequence[Study]) -> tuple[list[Pair], list[str]]:
    """The losses of the runs of a ladder: (the pairs of all finished and evaluated runs, the directories of the other
    runs).

    Args:
        ladder: the same study at each size.
    """
    pairs, missing = [], []
    for study in ladder:
        losses: dict[tuple[str, int], float] = {}
        for cell in study.cells:
            scores = safe_files.read_json(cell.dir / rundir.EVAL)
            if scores is None:
                missing.append(str(cell.dir))
                continue
            try:
                losses[cell.arm, cell.seed] = float(scores["bits_per_byte"]["value"])
            except (KeyError, TypeError, ValueError):
                raise ConfigError(f"{cell.dir / rundir.EVAL} has no bits per byte") from None
        base = study.arms[0]
        pairs += [
            Pair(arm, study.base.size, seed, compute_of(study), loss, losses[base, seed])
            for (arm, seed), loss in losses.items()
            if arm != base and (base, seed) in losses
        ]
    return pairs, missing


def describe(results: Sequence[Extrapolation], ladder: Sequence[Study], target: Study) -> list[str]:
    """The results of a ladder as lines of text.

    Args:
        results: what `extrapolate` returns.
        ladder: the study at each size.
        target: the study at the target size.
    """
    aim = compute_of(target)
    cost = sum(compute_of(study) * len(study.cells) for study in ladder)
    out = [
        f"{target.factor}: {', '.join(study.base.size for study in ladder)}, extrapolated to {target.base.size} "
        f"({human(aim)} FLOPs a run; the largest of the ladder has {compute_of(ladder[-1]) / aim:.1%} of them)",
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
                needs = f"{result.seeds_needed} seeds of this ladder, {human(per_seed * result.seeds_needed)} FLOPs"
            else:
                needs = f"more than {MOST_SEEDS} seeds of this ladder"
            direct = aim * len(target.arms) * len(target.seeds)
            itself = f"the target itself with {len(target.seeds)} seeds, {human(direct)}"
            out.append(f"to be sure of {result.arm}: {needs}; {itself}")
    return out


def figure(pairs: Sequence[Pair], results: Sequence[Extrapolation], target: float) -> str:
    """Draw all pairs, the fitted line of each arm, and the intervals at the target, side by side. Returns SVG text.

    Args:
        pairs: the losses of arms and baseline at several sizes and seeds.
        results: what `extrapolate` returns.
        target: the FLOPs of the target.
    """
    unit, name = next((unit, name) for unit, name in FLOP_UNITS if target >= unit or unit == FLOP_UNITS[-1][0])
    computes = [pair.compute / unit for pair in pairs]
    width = (target / unit / min(computes)) ** INTERVAL_DISTANCE
    curves = []
    for i, result in enumerate(results, 1):
        arm_pairs = [pair for pair in pairs if pair.arm == result.arm]
        first = min(pair.compute for pair in arm_pairs)
        start = 100 * (result.at_target + result.slope * math.log(first / target))
        place = target / unit * width ** (i - 1)
        gaps = [100 * pair.gap for pair in arm_pairs]
        curves += [
            Line("", i, [pair.compute / unit for pair in arm_pairs], gaps, "point"),
            Line(result.arm, i, [first / unit, target / unit], [start, 100 * result.at_target]),
            Line("", i, [place, place], [100 * result.low, 100 * result.high]),
        ]
    title = "Difference from the baseline, with 90% intervals"
    return draw(title, curves, f"{name} of a run", "loss, %", logx=True, zero=True, marks={"target": target / unit})


def main(argv: list[str] | None = None) -> int:
    parser = answers.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", required=True, help="nano,mini,small")
    parser.add_argument("--target", default="14m", help="a size")
    parser.add_argument("--list", action="store_true", help="print the sizes, one a line, once all is checked")
    parser.add_argument("words", nargs="*", metavar="NAME=VALUE", help="the study, as for make ablation")
    args = parser.parse_args(argv)
    as_json = answers.asks_for_json(args.words)
    try:
        _, args.words = answers.take_format(args.words)
        ladder = studies(args.words, [size.strip() for size in args.sizes.split(",") if size.strip()])
        target = from_args([*args.words, f"SIZE={args.target}"])
        if compute_of(target) <= compute_of(ladder[-1]):
            raise ConfigError(f"TARGET={args.target} takes no more compute than {ladder[-1].base.size} of the ladder")
        if len(target.seeds) < LEAST_SEEDS:
            raise ConfigError(f"SEEDS={len(target.seeds)}: {ONE_SEED}")
        if args.list:
            print(*(study.base.size for study in ladder), sep="\n")
            return 0
        pairs, missing = pairs_of(ladder)
        if missing:
            raise ConfigError(
                f"{len(missing)} runs are not finished and judged, among them {missing[0]}: make ladder runs them"
            )
        results = extrapolate(pairs, compute_of(target))
        target_pairs, unfinished = pairs_of([target])
    except ConfigError as error:
        if as_json:
            print(answers.error(str(error)))
        print(f"error: {safe_files.printable(str(error))}", file=sys.stderr)
        return 2
    folder = Path(target.out) / f"ladder-{target.name}"
    folder.mkdir(parents=True, exist_ok=True)
    safe_files.write_text(folder / "ladder.svg", combined_figures([figure(pairs, results, compute_of(target))]))
    content = record(results, pairs, target)
    safe_files.write_json(folder / "ladder.json", content, indent=1)
    checked = None if unfinished else against(results, target_pairs)
    if as_json:
        print(answers.answer("ladder", content | {"against_target": checked, "written": str(folder)}))
        return 0
    print(*describe(results, ladder, target), sep="\n")
    if checked:
        print(*described_against(checked), sep="\n")
    print(f"written: {folder}/ladder.json, ladder.svg")
    return 0


def against(results: Sequence[Extrapolation], target: Sequence[Pair]) -> dict[str, dict[str, Any]]:
    """Compare the verdicts of the ladder, and those of its largest size alone, with runs at the target size.

    Args:
        results: what `extrapolate` returns.
        target: the losses of arms and baseline at the target size.

    Returns:
        {"ladder" and "largest_size": {"hits", "misses", "open", "order_accuracy"}}.
    """
    truth = {result.arm: statistics.fmean(p.gap for p in target if p.arm == result.arm) for result in results}
    ladder, single = Score(), Score()
    for result in results:
        ladder.count(result.verdict, truth[result.arm])
        single.count(result.single_verdict, truth[result.arm])
    true = [truth[result.arm] for result in results]
    orders = [
        order_accuracy([of(result) for result in results], true) for of in (lambda e: e.at_target, lambda e: e.single)
    ]
    scores = zip(("ladder", "largest_size"), (ladder, single), orders, strict=True)
    return {
        name: vars(score) | {"order_accuracy": None if math.isnan(order) else order} for name, score, order in scores
    }


def described_against(checked: dict[str, dict[str, Any]]) -> list[str]:
    """The comparison of a ladder with runs at the target size, as lines of text.

    Args:
        checked: what `against` returns.
    """
    ladder, single = checked["ladder"], checked["largest_size"]
    if ladder["order_accuracy"] is None:
        return ["against the target's own runs: all arms are equal there"]
    return [
        f"against the target's own runs: ladder {ladder['hits']} hits, {ladder['misses']} misses, "
        f"{ladder['open']} open; largest size alone {single['hits']}, {single['misses']}, {single['open']}",
        f"decision accuracy (pairs in the right order): ladder {ladder['order_accuracy']:.0%}, largest size alone "
        f"{single['order_accuracy']:.0%}",
    ]


def record(results: Sequence[Extrapolation], pairs: Sequence[Pair], target: Study) -> dict[str, Any]:
    """The content of ladder.json.

    Args:
        results: what `extrapolate` returns.
        pairs: the losses of arms and baseline at several sizes and seeds.
        target: the study at the target size.
    """
    return {
        "question": target.question,
        "target": target.base.size,
        "target_flops": compute_of(target),
        "arms": [
            vars(result) | {"verdict": result.verdict, "single_verdict": result.single_verdict} for result in results
        ],
        "pairs": [vars(pair) | {"gap": pair.gap} for pair in pairs],
    }


if __name__ == "__main__":
    sys.exit(main())
