"""Error rates and power of the verdicts, over simulated studies, and over published results of runs that do not differ.

The random numbers come from fixed seeds, so the rates are always the same. calibration.py makes a page of them.
"""

import numpy as np

from ablations.factorial import order, parse_factorial
from ablations.plan.extrapolation import Score
from ablations.plan.simulated_ladders import gaps_that_change_sign, gaps_that_keep_their_sign, simulate_outcomes
from eval.report.sections import published
from eval.statistics.parts import LEVEL
from eval.statistics.simulation import (
    BETTER,
    EQUIVALENT,
    WORSE,
    Noise,
    contrast_noise,
    decide_all,
    decisions,
    factorial_decisions,
    interval_half_widths,
    item_noise,
    noise_parts,
    seed_noise,
    simulate_sequential,
)

EFFECTS = (1.0, 2.0, 4.0)  # in standard deviations of a run
MARGINS = (1.0, 2.0)
ITEMS_PER_CLUSTER = 5
LADDER_KINDS = {
    "differences keep their sign": gaps_that_keep_their_sign,
    "differences change their sign": gaps_that_change_sign,
}


def simulated_results(key: tuple[int, ...], studies: int, arms: int, seeds: int) -> np.ndarray:
    """Results of arms that do not differ, [studies, arms, seeds]: what the arms of a seed have in common, and the noise
    of each run, both with a standard deviation of 1. `key`: the seed of the random numbers."""
    rng = np.random.default_rng(key)
    return rng.normal(size=(studies, arms, seeds)) + rng.normal(size=(studies, 1, seeds))


def share_with_wrong_verdict(verdicts: np.ndarray) -> float:
    """The share of studies of equal arms with at least one verdict of better or worse. `verdicts`: decisions [studies,
    comparisons]."""
    return float(((verdicts == BETTER) | (verdicts == WORSE)).any(1).mean())


def fixed_seed_rates(arms: int, seeds: int, studies: int, key: int = 1) -> list[float]:
    """Error rates over simulated studies with a fixed number of seeds, as shares of the studies: with any wrong
    verdict; wrongly called equivalent at each of MARGINS; and with a confidence interval that contains the true
    difference.

    Args:
        arms, seeds: of each study.
        key: part of the seed of the random numbers.
    """
    x = simulated_results((key, arms, seeds), studies, arms, seeds)
    rates = [share_with_wrong_verdict(decide_all(x))]
    for margin in MARGINS:
        y = x.copy()
        y[:, 1:] += margin
        rates.append(float((decide_all(y, margin) == EQUIVALENT).any(1).mean()))
    half = interval_half_widths(LEVEL, [seed_noise(x)])[:, 0]
    return [*rates, float((abs(x[:, 1].mean(1) - x[:, 0].mean(1)) <= half).mean())]


def power_rates(arms: int, seeds: int, studies: int, key: int = 2) -> list[float]:
    """How often an arm that differs by each of EFFECTS is called better; and how often arms that do not differ are all
    called equivalent within 2."""
    x, rates = simulated_results((key, arms, seeds), studies, arms, seeds), []
    for effect in EFFECTS:
        y = x.copy()
        y[:, 1] += effect
        rates.append(float((decide_all(y)[:, 0] == BETTER).mean()))
    return [*rates, float((decide_all(x, 2.0) == EQUIVALENT).all(1).mean())]


def sequential_rates(arms: int, most: int, studies: int, key: int = 3) -> list[float]:
    """Error rates over simulated studies that add seeds until they are decided, as shares of the studies: with a wrong
    verdict at any interim analysis, without a margin; the same with a margin of 2; the same without alpha spending; and
    wrongly called equivalent at any interim analysis. `arms`: of each study; `most`: the largest number of seeds;
    `key`: part of the seed of the random numbers."""
    x = simulated_results((key, arms, most), studies, arms, most)
    wrong = [
        float(simulate_sequential(x, *options).ever[..., :2].any((1, 2)).mean())
        for options in ((), (2.0,), (None, lambda seeds, most, tests: 1.0))
    ]
    y = x.copy()
    y[:, 1:] += 2.0
    return [*wrong, float(simulate_sequential(y, 2.0).ever[..., 2].any(1).mean())]


def factorial_rates(factors: int, fraction: str, seeds: int, studies: int, key: int = 7) -> list[float]:
    """Rates over simulated factorials, six numbers: of any wrong verdict where all decisions are corrected as one
    family; the same as three families; of a wrong interaction where there are only main effects; of confidence
    intervals of an interaction that contain its true value; and how often a main effect of 2 is found, and an
    interaction of 4.

    Args:
        factors: the number of factors with two values each.
        fraction: the fraction of the combinations that is run, such as "1/2".
        seeds: of each study.
        key: part of the seed of the random numbers.
    """
    design = parse_factorial([f"f{i}=x" for i in range(factors)], fraction)
    weights = np.array([list(design.coefficients(effect).values()) for effect in design.effects])
    arms = len(design.combinations)
    x = simulated_results((key, factors, arms, seeds), studies, arms, seeds)
    columns = {effect: arms - 1 + i for i, effect in enumerate(design.effects)}  # of the decisions
    main = [column for effect, column in columns.items() if order(effect) == 1]
    interactions = [column for effect, column in columns.items() if order(effect) > 1]
    every = [list(range(arms - 1 + len(weights)))]
    wrong = [
        share_with_wrong_verdict(factorial_decisions(x, weights, families))
        for families in (every, [list(range(arms - 1)), main, interactions])
    ]

    def decisions_with(effects: dict[int, float]) -> np.ndarray:
        """The decisions in studies with true effects. `effects`: {bit mask of the effect's factors: its size}."""
        shift = [
            sum(s / 2 ** order(e) * (-1) ** order(e & ~combination) for e, s in effects.items())
            for combination in design.combinations
        ]
        return factorial_decisions(x + np.array(shift)[:, None], weights, every)

    beside = share_with_wrong_verdict(decisions_with({1 << i: 4.0 - i for i in range(factors)})[:, interactions])
    first = next(i for i, effect in enumerate(design.effects) if order(effect) == 2)
    half = interval_half_widths(LEVEL, [contrast_noise(x, weights)])[:, first]
    covered = float((abs(x.mean(2) @ weights[first]) <= half).mean())
    pair = design.effects[first]
    detected = [float((decisions_with({e: s})[:, columns[e]] == BETTER).mean()) for e, s in ((1, 2.0), (pair, 4.0))]
    return [*wrong, beside, covered, *detected]


def decisions_on_published_checkpoints(seeds: int) -> np.ndarray:
    """The decisions on published results when both arms of a study are checkpoints of the same run, so that every
    verdict is wrong: [studies, 1]. SAVES in calibration.py explains how the checkpoints are paired. `seeds`: of each
    arm."""
    verdicts = []
    for accuracies_NT in published.published_checkpoints().values():
        number = len(accuracies_NT) // (2 * seeds)  # the latest saves, which change the least
        pairs = accuracies_NT[len(accuracies_NT) - number * 2 * seeds :].reshape(number, seeds, 2, -1).copy()
        swapped = [bool(i.bit_count() % 2) for i in range(seeds)]
        pairs[:, swapped] = pairs[:, swapped, ::-1]
        verdicts.append(decide_all(pairs.transpose(0, 3, 2, 1).reshape(-1, 2, seeds)))
    return np.concatenate(verdicts)


def wrong_verdicts_with_clusters(passages: int, unequal: bool, seeds: int, studies: int) -> list[float]:
    """Rates of wrong verdicts in studies of questions that share passages, two numbers: where passages count as the
    independent items, and where single questions do. `passages`: the number of passages; `unequal`: whether passages
    have weights of different (log-normal) sizes; `seeds`: of each arm."""
    rng = np.random.default_rng((5, passages, unequal, seeds))
    shape = (studies, 2, seeds, passages, ITEMS_PER_CLUSTER)
    y = rng.normal(size=shape) + rng.normal(size=(studies, 2, 1, passages, 1))
    y += rng.normal(size=(studies, 2, 1, passages, ITEMS_PER_CLUSTER)) + rng.normal(size=(studies, 2, seeds, 1, 1))
    sizes = rng.lognormal(sigma=1.0 if unequal else 0.0, size=(studies, passages, 1))
    weights = np.broadcast_to(sizes, (studies, passages, ITEMS_PER_CLUSTER))
    y = y * weights[:, None, None]
    x = y.sum((3, 4)) / weights.sum((1, 2))[:, None, None]
    difference, noise = x[:, 1:].mean(2) - x[:, :1].mean(2), seed_noise(x)
    d = y[:, 1] - y[:, 0]
    by_passage = item_noise(d.sum(3), weights.sum(2))
    by_question = item_noise(d.reshape(studies, seeds, -1), weights.reshape(studies, -1))
    return [
        share_with_wrong_verdict(decisions(difference, noise_parts(noise, *part))) for part in (by_passage, by_question)
    ]


def wrong_verdicts_with_few_groups(groups: int, arms: int, seeds: int, studies: int) -> list[float]:
    """Rates of any wrong verdict in studies of equal arms on few groups of items, two numbers: by the rule that
    verdicts use, and by a rule that always subtracts the interaction of seeds and groups from the variance between
    groups. Groups and single results of a group at a seed have standard deviations of 1; runs have no noise beside
    that. `groups`: independent groups of items; `seeds`: of each arm."""
    rng = np.random.default_rng((8, groups, arms, seeds))
    y = rng.normal(size=(studies, arms, seeds, groups)) + rng.normal(size=(studies, arms, 1, groups))
    x = y.mean(3)
    weights = np.ones((studies, groups))
    of_arms = [item_noise(y[:, a] - y[:, 0], weights) for a in range(1, arms)]
    whole = Noise(*(np.concatenate([getattr(part, f) for part, _ in of_arms], 1) for f in ("variance", "dof")))
    rest, of_seeds = np.concatenate([rest for _, rest in of_arms], 1), seed_noise(x)
    means = x.mean(2)
    difference, off_groups = means[:, 1:] - means[:, :1], Noise(np.maximum(0.0, whole.variance - rest), whole.dof)
    rules = (noise_parts(of_seeds, whole, rest), [of_seeds, off_groups])
    return [share_with_wrong_verdict(decisions(difference, parts)) for parts in rules]


def noise_floor_rates(seeds: int, aa: int, studies: int) -> list[float]:
    """Rates over simulated studies of two arms with a stored noise floor, six numbers: of any wrong verdict where all
    runs have the same noise, where the runs of a seed share a part of their noise, and where one arm has twice the
    noise; the third rate again without the floor; and how often a difference of 3 is found, with the floor and without.
    `seeds`: of each arm; `aa`: the number of runs of the noise floor."""
    rng = np.random.default_rng((6, seeds, aa))
    floors = rng.normal(size=(studies, aa)) + np.array([[[0.0]], [[1.0]]]) * rng.normal(size=(studies, aa))
    alone, shared = (Noise(row.var(1, ddof=1)[:, None], np.full((studies, 1), aa - 1.0)) for row in floors)
    x = rng.normal(size=(studies, 2, seeds))
    together = x + rng.normal(size=(studies, 1, seeds))
    noisy = x * np.array([[[1.0], [2.0]]])
    moved = x + np.array([[[0.0], [3.0]]])
    wrong = [
        share_with_wrong_verdict(decide_all(y, None, floor))
        for y, floor in ((x, alone), (together, shared), (noisy, alone))
    ]
    detected = [float((decide_all(moved, None, floor) == BETTER).mean()) for floor in (alone, None)]
    return [*wrong, share_with_wrong_verdict(decide_all(noisy)), *detected]


def ladder_rates(differences: str, seeds: int, ladders: int, key: int = 1) -> list[float]:
    """Rates over simulated ladders of sizes, seven numbers: of right, wrong and undecided verdicts by the fitted line;
    the same by the largest size alone; and of confidence intervals that contain the true difference. `differences`:
    which kind of arms is simulated, a key of LADDER_KINDS; `seeds`: of each size and arm; `key`: the seed of the random
    numbers."""
    result = simulate_outcomes(LADDER_KINDS[differences], seeds, ladders, key)

    def shares(score: Score) -> list[float]:
        counts = (score.hits, score.misses, score.open)
        return [count / sum(counts) for count in counts]

    return [*shares(result.line), *shares(result.single), result.covered]
