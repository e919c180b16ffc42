"""Error rates and power of the verdicts, over simulated studies, and over published results of runs that do not differ.

The random numbers come from fixed seeds, so the rates are always the same. tables.py makes the page.
"""

import numpy as np

from ablations.factorial import effect_order, parse_factorial
from ablations.plan.extrapolation import Score
from eval.report.sections import published
from eval.statistics.parts import LEVEL
from tests.calibration.ladders import gaps_that_change_sign, gaps_that_keep_their_sign, simulate_outcomes
from tests.calibration.simulation import (
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
    """Simulated results of arms that do not differ, [studies, arms, seeds]: a part that all arms of a seed share, and
    the noise of each run. Both are normal with a standard deviation of 1. `key`: the seed of the random numbers;
    `studies`, `arms`, `seeds`: how many of each."""
    rng = np.random.default_rng(key)
    return rng.normal(size=(studies, arms, seeds)) + rng.normal(size=(studies, 1, seeds))


def share_with_wrong_verdict(verdicts: np.ndarray) -> float:
    """The share of studies, from 0 to 1, that call at least one arm better or worse although no arms differ.
    `verdicts`: the decisions (BETTER, WORSE ... of simulation.py), [studies, comparisons]."""
    return float(((verdicts == BETTER) | (verdicts == WORSE)).any(1).mean())


def fixed_seed_rates(arms: int, seeds: int, studies: int, key: int = 1) -> list[float]:
    """Error rates over simulated studies with a fixed number of seeds: a list of four shares of the studies.

    Args:
        arms, seeds: how many arms (with the baseline) and seeds each study has.
        studies: the number of simulated studies.
        key: selects the random numbers: the same key gives the same studies.

    Returns:
        1. The share in which any arm is called better or worse, where all arms are equal.
        2, 3. The share in which any arm is called equivalent, where all arms differ from the baseline by exactly the
            margin: 1, then 2 standard deviations between runs.
        4. The share in which the 95 % confidence interval of the first arm's difference from the baseline contains the
            true difference.
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
    """The power of verdicts over simulated studies: a list of four shares of the studies. The first three: how often an
    arm is called better that lies above the baseline by 1, 2 and 4 standard deviations between runs (EFFECTS), while
    all other arms are equal to the baseline. The last: how often all arms of a study of equal arms are called
    equivalent within 2 standard deviations. `arms`, `seeds`: of each study; `studies`: how many are simulated; `key`:
    part of the seed of the random numbers."""
    x, rates = simulated_results((key, arms, seeds), studies, arms, seeds), []
    for effect in EFFECTS:
        y = x.copy()
        y[:, 1] += effect
        rates.append(float((decide_all(y)[:, 0] == BETTER).mean()))
    return [*rates, float((decide_all(x, 2.0) == EQUIVALENT).all(1).mean())]


def sequential_rates(arms: int, most: int, studies: int, key: int = 3) -> list[float]:
    """Error rates over simulated studies that add seeds until every arm is decided: a list of four shares of the
    studies. A wrong verdict at any interim analysis counts as an error.

    Args:
        arms: the number of arms of each study, with the baseline.
        most: the largest number of seeds.
        studies: the number of simulated studies.
        key: selects the random numbers: the same key gives the same studies.

    Returns:
        1. The share in which any arm is called better or worse, where all arms are equal and there is no margin.
        2. As 1, but with a margin of equivalence of 2 standard deviations between runs.
        3. As 1, but without alpha spending: every interim analysis uses the whole significance level.
        4. The share in which any arm is called equivalent, where all arms differ from the baseline by exactly the
            margin of 2 standard deviations between runs.
    """
    x = simulated_results((key, arms, most), studies, arms, most)
    wrong = [
        float(simulate_sequential(x, *options).ever[..., :2].any((1, 2)).mean())
        for options in ((), (2.0,), (None, lambda seeds, most, tests: 1.0))
    ]
    y = x.copy()
    y[:, 1:] += 2.0
    return [*wrong, float(simulate_sequential(y, 2.0).ever[..., 2].any(1).mean())]


def factorial_rates(factors: int, fraction: str, seeds: int, studies: int, key: int = 7) -> list[float]:
    """Rates over simulated factorials: a list of six shares of the studies. Effects are in standard deviations between
    runs.

    Args:
        factors: the number of factors with two values each.
        fraction: the fraction of the combinations that is run, such as "1/2".
        seeds: the number of seeds of each study.
        studies: the number of simulated studies.
        key: selects the random numbers: the same key gives the same studies.

    Returns:
        1. The share with any wrong verdict, where nothing has an effect, and all decisions are corrected as one family.
        2. As 1, but arms, main effects and interactions are corrected as three families.
        3. The share in which any interaction is called better or worse, where there are only main effects.
        4. The share in which the 95 % confidence interval of the first interaction contains its true value.
        5. The share in which a main effect of 2 is called better.
        6. The share in which an interaction of two factors, with a true value of 4, is called better.
    """
    design = parse_factorial([f"f{i}=x" for i in range(factors)], fraction)
    weights = np.array([list(design.coefficients(effect).values()) for effect in design.effects])
    arms = len(design.combinations)
    x = simulated_results((key, factors, arms, seeds), studies, arms, seeds)
    columns = {effect: arms - 1 + i for i, effect in enumerate(design.effects)}  # of the decisions
    main = [column for effect, column in columns.items() if effect_order(effect) == 1]
    interactions = [column for effect, column in columns.items() if effect_order(effect) > 1]
    every = [list(range(arms - 1 + len(weights)))]
    wrong = [
        share_with_wrong_verdict(factorial_decisions(x, weights, families))
        for families in (every, [list(range(arms - 1)), main, interactions])
    ]

    def decisions_with(effects: dict[int, float]) -> np.ndarray:
        """The decisions of all studies, as `factorial_decisions` returns them, where some effects are not 0. `effects`:
        {bit mask of the effect's factors: its true size}."""
        shift = [
            sum(s / 2 ** effect_order(e) * (-1) ** effect_order(e & ~combination) for e, s in effects.items())
            for combination in design.combinations
        ]
        return factorial_decisions(x + np.array(shift)[:, None], weights, every)

    beside = share_with_wrong_verdict(decisions_with({1 << i: 4.0 - i for i in range(factors)})[:, interactions])
    first = next(i for i, effect in enumerate(design.effects) if effect_order(effect) == 2)
    half = interval_half_widths(LEVEL, [contrast_noise(x, weights)])[:, first]
    covered = float((abs(x.mean(2) @ weights[first]) <= half).mean())
    pair = design.effects[first]
    detected = [float((decisions_with({e: s})[:, columns[e]] == BETTER).mean()) for e, s in ((1, 2.0), (pair, 4.0))]
    return [*wrong, beside, covered, *detected]


def decisions_on_published_checkpoints(seeds: int) -> np.ndarray:
    """The decisions (BETTER, WORSE ... of simulation.py) on published accuracies, [studies, 1]. A study is one task
    with two arms. Both arms are checkpoints of the same run, so that every verdict of better or worse is wrong.
    `seeds`: how many checkpoints stand for the seeds of an arm.

    Two neighbouring checkpoints are one seed of the two arms. Which of them is the baseline's alternates by the
    Thue-Morse sequence, so that the run's progress does not favour one arm.
    """
    verdicts = []
    for accuracies_NT in published.published_checkpoints().values():
        number = len(accuracies_NT) // (2 * seeds)  # the latest saves, which change the least
        pairs = accuracies_NT[len(accuracies_NT) - number * 2 * seeds :].reshape(number, seeds, 2, -1).copy()
        swapped = [bool(i.bit_count() % 2) for i in range(seeds)]
        pairs[:, swapped] = pairs[:, swapped, ::-1]
        verdicts.append(decide_all(pairs.transpose(0, 3, 2, 1).reshape(-1, 2, seeds)))
    return np.concatenate(verdicts)


def wrong_verdicts_with_clusters(passages: int, unequal: bool, seeds: int, studies: int) -> list[float]:
    """Shares of wrong verdicts in simulated studies of two equal arms, asked questions that share passages: a list of
    two. In the first, passages count as the independent items; in the second, single questions do. `passages`: the
    number of passages; `unequal`: whether passages have weights of different (log-normal) sizes; `seeds`: of each arm;
    `studies`: how many are simulated."""
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
    """Shares of simulated studies with any wrong verdict, where equal arms are judged on few groups of items: a list of
    two.

    The first share is by the rule that verdicts use. The second is by a rule that always subtracts the interaction of
    seeds and groups from the variance between groups. An arm's result on a group at a seed is the sum of a random part
    that all seeds of the arm share and a random part of its own; both have a standard deviation of 1. `groups`: the
    number of independent groups of items; `arms`: with the baseline; `seeds`: of each arm; `studies`: how many are
    simulated.
    """
    rng = np.random.default_rng((8, groups, arms, seeds))
    y = rng.normal(size=(studies, arms, seeds, groups)) + rng.normal(size=(studies, arms, 1, groups))
    x = y.mean(3)
    weights = np.ones((studies, groups))
    of_arms = [item_noise(y[:, a] - y[:, 0], weights) for a in range(1, arms)]
    whole = Noise(*(np.concatenate([getattr(part, f) for part, _ in of_arms], 1) for f in ("variance", "dof")))
    interaction, of_seeds = np.concatenate([interaction for _, interaction in of_arms], 1), seed_noise(x)
    means = x.mean(2)
    difference = means[:, 1:] - means[:, :1]
    off_groups = Noise(np.maximum(0.0, whole.variance - interaction), whole.dof)
    rules = (noise_parts(of_seeds, whole, interaction), [of_seeds, off_groups])
    return [share_with_wrong_verdict(decisions(difference, parts)) for parts in rules]


def noise_floor_rates(seeds: int, floor_runs: int, studies: int) -> list[float]:
    """Rates over simulated studies of two arms with a stored noise floor: a list of six shares of the studies. In the
    first four the arms are equal.

    Args:
        seeds: the number of seeds of each arm.
        floor_runs: the number of runs of the noise floor.
        studies: the number of simulated studies.

    Returns:
        1. The share with a verdict of better or worse, where all runs have the same noise.
        2. As 1, but the runs of a seed share a part of their noise, which the runs of the floor have too.
        3. As 1, but one arm has twice the noise of the other arm and of the floor.
        4. As 3, but judged without the noise floor.
        5. The share that calls an arm better which lies above the baseline by 3 standard deviations between runs.
        6. As 5, but judged without the noise floor.
    """
    rng = np.random.default_rng((6, seeds, floor_runs))
    floors = rng.normal(size=(studies, floor_runs)) + np.array([[[0.0]], [[1.0]]]) * rng.normal(
        size=(studies, floor_runs)
    )
    alone, shared = (Noise(row.var(1, ddof=1)[:, None], np.full((studies, 1), floor_runs - 1.0)) for row in floors)
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
    """Rates over simulated ladders, in which arms are trained at several sizes to predict their differences from the
    baseline at a larger target: a list of seven shares of the verdicts.

    Args:
        differences: which kind of arms is simulated, a key of LADDER_KINDS.
        seeds: the number of seeds of each arm at each size.
        ladders: the number of simulated ladders.
        key: the seed of the random numbers.

    Returns:
        1 to 3. Right, wrong and undecided verdicts by the line fitted through all sizes.
        4 to 6. Right, wrong and undecided verdicts by the largest size alone.
        7. 90 % confidence intervals of the line that contain the true difference at the target.
    """
    result = simulate_outcomes(LADDER_KINDS[differences], seeds, ladders, key)

    def shares(score: Score) -> list[float]:
        counts = (score.hits, score.misses, score.open)
        return [count / sum(counts) for count in counts]

    return [*shares(result.line), *shares(result.single), result.covered]
