"""The difference in loss between arms and the baseline, measured at several sizes and extrapolated to a larger run.

A run of an arm and the baseline's run with the same seed and size see the same batches, and make a pair. Its
difference, log(loss of the arm / loss of the baseline), is fitted as a straight line in the logarithm of compute. The
line is exact where both losses are power laws of compute, and nearly so where both have the same irreducible loss. The
noise is pooled over the arms; intervals use Student's t. A simpler rule, which is hard to beat, is given beside it: the
order of the arms at the largest size that was run.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from ablations.plan import power
from ablations.values import ConfigError

LEVEL = 0.1  # one minus the coverage of intervals
LEAST_SIZES = 3  # a line through two points leaves no residuals
LEAST_SEEDS = 2
ONE_SEED = "a ladder needs two seeds or more: with one the noise is not known"
MOST_SEEDS = 1000  # where more seeds are needed, their number is not given


@dataclass(frozen=True)
class Pair:
    """The held-out losses of an arm (`loss`) and of the baseline (`baseline`) at the same size and with the same
    seed."""

    arm: str
    size: str
    seed: int
    compute: float  # FLOPs of one of the runs
    loss: float
    baseline: float

    @property
    def gap(self) -> float:
        """The relative difference in loss, log(loss of the arm / loss of the baseline); below 0 the arm is better."""
        return math.log(self.loss / self.baseline)


@dataclass(frozen=True)
class Extrapolation:
    """The difference in loss between an arm and the baseline, extrapolated to the target run (`at_target`). `low` and
    `high` are the ends of its 90% interval. `single` is the measured difference at the largest size that was run.
    Differences are log ratios: -0.02 is a loss 2% below the baseline's."""

    arm: str
    at_target: float
    low: float
    high: float
    slope: float  # of the line: the change of the difference when compute grows by the factor e
    single: float  # the mean difference at the largest size that was run
    single_low: float  # its 90% interval
    single_high: float
    seeds_needed: int | None  # of the same ladder, for an interval that leaves out 0; None: more than MOST_SEEDS
    sign_unseen: bool = False  # whether `at_target` and the mean difference at each size have opposite signs

    @property
    def verdict(self) -> str:
        """The verdict on the arm at the target: "better", "worse" or "undecided". It is "undecided" where the interval
        contains 0.

        It is also "undecided" where the prediction has a sign that no measured size shows. Differences that shrink
        towards 0 without changing their sign would be extrapolated beyond 0 by a straight line.
        """
        return "undecided" if self.sign_unseen else _verdict(self.low, self.high)

    @property
    def single_verdict(self) -> str:
        """The verdict by the 90% interval at the largest size that was run: "better", "worse" or "undecided"."""
        return _verdict(self.single_low, self.single_high)


def _verdict(low: float, high: float) -> str:
    """The verdict on a difference with the interval from `low` to `high`; below 0 the arm is better."""
    return "better" if high < 0 else "worse" if low > 0 else "undecided"


def extrapolate(pairs: Sequence[Pair], target: float) -> list[Extrapolation]:
    """Extrapolate the difference between every arm and the baseline to a larger run, by a straight line in the
    logarithm of compute.

    Args:
        pairs: the losses of all arms and the baseline, at several sizes and with several seeds.
        target: the FLOPs of the larger run.

    Returns:
        A result for each arm.

    Raises:
        ConfigError: there are fewer than three sizes or two seeds, or an arm lacks a size or seed that another arm has.
    """
    arms = list(dict.fromkeys(pair.arm for pair in pairs))
    by_arm = {
        arm: sorted((p for p in pairs if p.arm == arm), key=lambda pair: (pair.compute, pair.seed)) for arm in arms
    }
    computes = sorted({pair.compute for pair in pairs})
    seeds = sorted({pair.seed for pair in pairs})
    _check_complete(by_arm, computes, seeds)
    lines, error = _fit_lines(by_arm, target)
    t = power.two_sided_t_quantile(len(by_arm[arms[0]]) - 2, LEVEL)
    gaps = {arm: [pair.gap for pair in by_arm[arm] if pair.compute == computes[-1]] for arm in arms}
    pooled = statistics.fmean(statistics.variance(values) for values in gaps.values())
    half_width = power.two_sided_t_quantile(len(seeds) - 1, LEVEL) * math.sqrt(pooled / len(seeds))
    extrapolations = []
    for arm, (level, slope) in lines.items():
        single = statistics.fmean(gaps[arm])
        means = [statistics.fmean(p.gap for p in by_arm[arm] if p.compute == compute) for compute in computes]
        extrapolations.append(
            Extrapolation(
                arm,
                level,
                level - t * error,
                level + t * error,
                slope,
                single,
                single - half_width,
                single + half_width,
                _seeds_needed(level, error, len(seeds)),
                all(mean * level < 0 for mean in means),
            )
        )
    return extrapolations


def _check_complete(by_arm: dict[str, list[Pair]], computes: Sequence[float], seeds: Sequence[int]) -> None:
    """Raise ConfigError where there are fewer than three sizes or two seeds, or an arm lacks the pair of a size and
    seed.

    Args:
        by_arm: {arm: its pairs, sorted by compute and seed}.
        computes: the FLOPs of a run at each size, in ascending order.
        seeds: all seeds, in ascending order.
    """
    if len(computes) < LEAST_SIZES:
        raise ConfigError(f"a ladder needs {LEAST_SIZES} sizes or more, and {len(computes)} are there")
    if len(seeds) < LEAST_SEEDS:
        raise ConfigError(ONE_SEED)
    expected = [(compute, seed) for compute in computes for seed in seeds]
    for arm, pairs in by_arm.items():
        if [(pair.compute, pair.seed) for pair in pairs] != expected:
            raise ConfigError(f"{arm} has not been run at every size and seed that others were")


def _fit_lines(by_arm: dict[str, list[Pair]], target: float) -> tuple[dict[str, tuple[float, float]], float]:
    """Fit a line to the differences of each arm against the logarithm of compute, by least squares.

    Args:
        by_arm: {arm: its pairs}, with the same sizes and seeds for every arm.
        target: the FLOPs of the target.

    Returns:
        ({arm: (value of the line at the target, slope per factor e of compute)}, standard error of the value, pooled
        over the arms).
    """
    pairs = next(iter(by_arm.values()))  # the same sizes and seeds in every arm
    x = [math.log(pair.compute / target) for pair in pairs]
    middle = statistics.fmean(x)
    spread = sum((value - middle) ** 2 for value in x)
    lines, residuals = {}, 0.0
    for arm, arm_pairs in by_arm.items():
        y = [pair.gap for pair in arm_pairs]
        slope = sum((a - middle) * b for a, b in zip(x, y, strict=True)) / spread
        level = statistics.fmean(y) - slope * middle  # at the target, where x is 0
        residuals += sum((b - level - slope * a) ** 2 for a, b in zip(x, y, strict=True))
        lines[arm] = level, slope
    # the arms share a baseline, so their residuals are correlated: the degrees of freedom are those of one arm
    variance = residuals / (len(by_arm) * (len(x) - 2))
    return lines, math.sqrt(variance * (1 / len(x) + middle**2 / spread))


def _seeds_needed(difference: float, error: float, seeds: int) -> int | None:
    """The number of seeds with which the same ladder would detect the arm's difference at the target with probability
    power.POWER. None where more than MOST_SEEDS are needed.

    Args:
        difference: the extrapolated difference at the target.
        error: its standard error in the present ladder.
        seeds: the number of seeds of the present ladder.
    """
    z = power.two_sided_t_quantile(math.inf, LEVEL) + power.two_sided_t_quantile(math.inf, 2 * (1 - power.POWER))
    needed = seeds * (z * error / abs(difference)) ** 2 if difference else math.inf
    return max(2, math.ceil(needed)) if needed <= MOST_SEEDS else None


@dataclass
class Score:
    """Counts of verdicts against the true differences: right (`hits`), wrong (`misses`), and "undecided" (`open`)."""

    hits: int = 0
    misses: int = 0
    open: int = 0

    def add_verdict(self, verdict: str, truth: float) -> None:
        """Add one verdict to the score. `verdict`: "better", "worse" or "undecided"; `truth`: the true difference
        between the arm and the baseline at the target, below 0 where the arm is better."""
        if verdict == "undecided":
            self.open += 1
        elif (verdict == "better") == (truth < 0):
            self.hits += 1
        else:
            self.misses += 1


def order_accuracy(predicted: Sequence[float], true: Sequence[float]) -> float:
    """The share of pairs of arms that are predicted in the right order (DataDecide's decision accuracy). The baseline
    counts as an arm with difference 0. Pairs with equal true differences are left out; NaN where no pair is left.

    Args:
        predicted: the predicted difference of each arm from the baseline.
        true: the true differences, in the same order of arms.
    """
    p, t = [0.0, *predicted], [0.0, *true]
    pairs = [(i, j) for i in range(len(p)) for j in range(i) if t[i] != t[j]]
    return statistics.fmean((p[i] < p[j]) == (t[i] < t[j]) for i, j in pairs) if pairs else math.nan
