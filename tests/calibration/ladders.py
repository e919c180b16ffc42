"""Simulated ladders, whose true differences at the target are known. A ladder has arms at several sizes, extrapolated
to a larger target size. The simulations show how often its verdicts are right, wrong or undecided.

`make calibrate` (docs/statistics.md) and tests/test_plan_ladder.py use this module; planning itself does not.
"""

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from ablations.plan.extrapolation import Pair, Score, extrapolate, order_accuracy
from ablations.plan.published_laws import HoffmannLaw

SIZES = (1.3e6, 2.8e6, 6e6)  # parameters
TARGET = SIZES[-1] * math.sqrt(20)  # parameters; the largest of SIZES has 5% of the target's compute
TOKENS_PER_PARAMETER = 20
NOISE = 0.004  # the relative standard deviation of a run's loss
ARMS = 3
BASELINE_LAW = HoffmannLaw(1.8, 480.0, 2000.0, 0.35, 0.37)
GapFunction = Callable[[float], float]  # parameters -> log(loss of the arm / loss of the baseline)
ArmSampler = Callable[[np.random.Generator], list[GapFunction]]


def run_flops(n: float) -> float:
    """The FLOPs of a simulated run with `n` parameters, trained on TOKENS_PER_PARAMETER tokens per parameter."""
    return 6 * n * TOKENS_PER_PARAMETER * n


def loss_at(law: HoffmannLaw, n: float) -> float:
    """The loss by a law of a model with `n` parameters, trained on TOKENS_PER_PARAMETER tokens per parameter."""
    return law.loss(n, TOKENS_PER_PARAMETER * n)


def gaps_that_keep_their_sign(rng: np.random.Generator) -> list[GapFunction]:
    """Draw ARMS arms whose differences from the baseline have the same sign at nearly all sizes. Each arm changes two
    constants of the scaling law of the loss. Returns for each arm a function from the number of parameters to log(loss
    of the arm / loss of the baseline). `rng`: the random generator."""

    def gap(arm: HoffmannLaw, n: float) -> float:
        return math.log(loss_at(arm, n) / loss_at(BASELINE_LAW, n))

    arms = [
        HoffmannLaw(1.8, 480 * (1 + 0.1 * rng.normal()), 2000 * (1 + 0.1 * rng.normal()), 0.35, 0.37)
        for _ in range(ARMS)
    ]
    return [partial(gap, arm) for arm in arms]


def gaps_that_change_sign(rng: np.random.Generator) -> list[GapFunction]:
    """Draw ARMS arms whose differences from the baseline change sign at a random compute, between 1/20 and 20 times the
    target's. Returns for each arm a function from the number of parameters to log(loss of the arm / loss of the
    baseline). `rng`: the random generator."""

    def gap(slope: float, shift: float, n: float) -> float:
        return slope * (math.log(run_flops(n) / run_flops(TARGET)) / 5 + shift)

    return [partial(gap, rng.choice([-1, 1]) * 0.02, rng.uniform(-0.6, 0.6)) for _ in range(ARMS)]


def simulated_pairs(gaps: list[GapFunction], rng: np.random.Generator, seeds: int, noise: float) -> list[Pair]:
    """Simulate the runs of a ladder at all SIZES: the losses of each arm and of the baseline with the same seed.

    Args:
        gaps: for each arm a function from the number of parameters to log(loss of the arm / loss of the baseline).
        rng: the random generator of the noise.
        seeds: the number of seeds.
        noise: the standard deviation of a run's log loss. In addition, all runs of a seed at a size share noise of half
            this standard deviation.
    """
    pairs = []
    for n in SIZES:
        for seed in range(seeds):
            common = noise / 2 * rng.normal()
            base = loss_at(BASELINE_LAW, n) * math.exp(common + noise * rng.normal())
            for i, gap in enumerate(gaps):
                loss = loss_at(BASELINE_LAW, n) * math.exp(gap(n) + common + noise * rng.normal())
                pairs.append(Pair(f"arm{i}", f"{n:g}", seed, run_flops(n), loss, base))
    return pairs


@dataclass(frozen=True)
class SimulatedOutcomes:
    """The results of many simulated ladders: how often intervals contain the true difference, verdicts are right, and
    arms are in the right order."""

    covered: float  # the share of 90% intervals at the target that contain the true difference
    line: Score  # of the verdicts by the extrapolated line
    single: Score  # of the verdicts by the largest size alone
    line_order: float  # by the line, the mean share of pairs of arms in the right order
    single_order: float  # the same by the largest size alone


def simulate_outcomes(sample_arms: ArmSampler, seeds: int, ladders: int, seed: int = 1) -> SimulatedOutcomes:
    """Simulate many ladders, and count how often their verdicts are right.

    Args:
        sample_arms: a function that draws the arms of a ladder, such as `gaps_that_change_sign`.
        seeds: the number of seeds with which each ladder's arms are trained.
        ladders: the number of ladders.
        seed: the seed of the simulation's random numbers.
    """
    rng = np.random.default_rng(seed)
    covered, line, single = [], Score(), Score()
    line_orders, single_orders = [], []
    for _ in range(ladders):
        gaps = sample_arms(rng)
        truths = [gap(TARGET) for gap in gaps]
        results = extrapolate(simulated_pairs(gaps, rng, seeds, NOISE), run_flops(TARGET))
        for result, truth in zip(results, truths, strict=True):
            covered.append(result.low <= truth <= result.high)
            line.add_verdict(result.verdict, truth)
            single.add_verdict(result.single_verdict, truth)
        line_orders.append(order_accuracy([result.at_target for result in results], truths))
        single_orders.append(order_accuracy([result.single for result in results], truths))
    means = (statistics.fmean(values) for values in (line_orders, single_orders))
    return SimulatedOutcomes(statistics.fmean(covered), line, single, *means)
