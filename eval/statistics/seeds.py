"""The noise of seeds.

An arm's result x[arm, seed] is modelled as arm + seed + residual. The residual variance s**2 is pooled over all arms of
the study, with (A - 1)(n - 1) degrees of freedom for A arms and n seeds. The difference of two arm means has the
variance s**2 * 2 / n (randomised blocks: Fisher 1935; Montgomery, Design and Analysis of Experiments, ch. 4). With two
arms this is the paired t-test. Where runs are missing, the same model is fitted by least squares. Arms that share no
seeds are not paired: Welch's variance and degrees of freedom are used (Welch 1947, Biometrika 34).

Two arms with two seeds are an exception. The paired test would have one degree of freedom, and only a difference of
12.7 standard errors would be significant. So the ordinary t-test is used. Its s**2 is the variance within arms, with A
(n - 1) = 2 degrees of freedom, and 4.3 standard errors are enough. It is too cautious when runs of the same seed have
noise in common. It loses power only when they correlate by more than 0.88.

A single s**2 assumes that all arms scatter alike between seeds. With three or more arms, an F test finds an arm that
scatters more than the others. The differences of that arm (all differences, if it is the baseline) are then judged by
their own variance with n - 1 degrees of freedom, if this gives a wider interval than s**2. The report says so. The test
detects little with two seeds, and does not exist for two arms.

Rates of wrong verdicts in null studies, in which no arms differ (20,000 simulated studies of each kind, without noise
of items; tests/test_false_verdicts.py holds the rates):

    two arms, two seeds; one arm with five times the noise of the other: 8 %
    four arms, one with five times the noise of the others; 2, 3 and 5 seeds: 9, 9, 4 % (by s**2 alone 9, 10, 9 %)
    the same, where the noisy arm is the baseline: 11, 11, 5 % (by s**2 alone 11 to 13 %)
    four arms, one with twice the noise of the others: 4 to 5 %
    four arms of equal noise: 4 %

The F test costs some power: a difference that s**2 alone detects in 80 % of studies is detected in 78 %. Two other
rules were tried. Judging every difference by its own variance is exact, but detects that difference in only 13, 28 and
50 % (2, 3 and 5 seeds). Leaving the arm that scatters more out of s**2 as well gives more wrong verdicts with 2 and 3
seeds than s**2 alone.
"""

from collections.abc import Iterable
from math import inf, sqrt

import numpy as np

from eval.statistics.parts import LEVEL, Variance, interval_half_width, sum_of_variances

Results = dict[str, dict[int, float]]  # {arm: {seed: result}}
ROUNDING_SHARE = 1e-10  # of a sum: below it a difference is one of rounding


def seed_variance(results: Results, arm: str, baseline: str, floor: Variance | None = None) -> Variance | None:
    """The variance from the seeds of the difference between two arms, over the seeds that both have. None with fewer
    than two such seeds: a difference that was seen once is not replicated.

    Args:
        results: {arm: {seed: result}} of all arms of the study, over which the variance is pooled.
        arm: one arm.
        baseline: the other arm.
        floor: the variance of single runs from a stored noise floor; None without a noise floor.
    """
    shared = len(results[arm].keys() & results[baseline].keys())
    if shared < 2:
        return None
    squares, dof = residual_squares(results)
    if dof < 2:
        squares, dof = residual_squares(results, seeds=False)
    pooled = Variance(squares / dof * 2 / shared, dof)
    if not {arm, baseline} & arms_that_scatter_more(results).keys():
        return combine_with_noise_floor(pooled, 2 / shared, floor) if floor else pooled
    common = results[arm].keys() & results[baseline].keys()
    return wider_variance(pooled, np.array([results[arm][seed] - results[baseline][seed] for seed in common]))


def wider_variance(pooled: Variance, by_seed: np.ndarray, factor: float = 1.0) -> Variance:
    """The pooled variance of a mean over seeds, or its own variance, whichever gives the wider 95 % interval.

    Args:
        pooled: the variance of the mean, pooled over arms.
        by_seed: the values whose mean is taken, [seeds]. They give the mean's own variance.
        factor: a factor on the mean's own variance.
    """
    own = Variance(factor * float(by_seed.var(ddof=1)) / len(by_seed), len(by_seed) - 1)
    return max(pooled, own, key=lambda part: interval_half_width(LEVEL, part, Variance(0.0, inf)))


def combine_with_noise_floor(part: Variance, share: float, floor: Variance) -> Variance:
    """Pool the variance from a study's own seeds with that of a stored noise floor. Returns the variance from the seeds
    of a difference between two arms.

    Where the study's seeds scatter significantly more than the floor (F test), the floor is not used. The floor is
    measured on unpaired runs, while runs of a study with the same seed have noise in common. So the floor may be too
    large, which makes verdicts too cautious but not wrong.

    Args:
        part: the variance of the difference from the study's own seeds.
        share: the ratio of `part` to the variance of a single run, such as 2 / n for means over n seeds.
        floor: the variance of a single run, from the noise floor.
    """
    from scipy.special import fdtrc

    single = part.variance / share
    ratio = single / floor.variance if floor.variance else inf
    if single and fdtrc(part.dof, floor.dof, ratio) <= LEVEL:
        return part
    dof = part.dof + floor.dof
    return Variance(share * (part.dof * single + floor.dof * floor.variance) / dof, dof)


def full_table(results: Results) -> np.ndarray | None:
    """The results as an array [arms, seeds]; None where an arm lacks a seed that another arm has, or there are no
    results. `results`: {arm: {seed: result}}."""
    rows = list(results.values())
    if not rows or not rows[0] or any(row.keys() != rows[0].keys() for row in rows):
        return None
    return np.array([[row[seed] for seed in rows[0]] for row in rows], float)


def two_way_residuals(table: np.ndarray) -> np.ndarray:
    """The residuals of a table of results [arms, seeds] after fitting the means of arms and of seeds."""
    return table - table.mean(1, keepdims=True) - table.mean(0) + table.mean()


def residual_squares(results: Results, seeds: bool = True) -> tuple[float, int]:
    """The residual sum of squares of results and its degrees of freedom, after a least-squares fit of the means of
    arms. `results`: {arm: {seed: result}}; `seeds`: whether the means of seeds are fitted too."""
    cells = [(arm, seed) for arm in results for seed in results[arm]]
    if not cells:
        return 0.0, 0
    if (table := full_table(results)) is not None:  # closed form: least squares of 256 arms take a second
        residual = two_way_residuals(table) if seeds else table - table.mean(1, keepdims=True)
        arms, number = table.shape
        return float((residual**2).sum()), (arms - 1 if seeds else arms) * (number - 1)
    y = np.array([results[arm][seed] for arm, seed in cells])
    means = [*results, *({seed for _, seed in cells} if seeds else ())]
    design = np.array([[mean in cell for mean in means] for cell in cells], float)
    residual = y - design @ np.linalg.lstsq(design, y)[0]
    return float(residual @ residual), len(cells) - int(np.linalg.matrix_rank(design))


def arms_that_scatter_more(results: Results) -> dict[str, float]:
    """The arms whose results scatter significantly more between seeds than those of the other arms: {arm: p-value after
    Bonferroni's correction}. Empty with fewer than three arms.

    The F test compares the other arms' residual sum of squares with the increase when this arm is added. It is exact
    where all arms have the same variance (Chow 1960, Econometrica 28). `results`: {arm: {seed: result}}.
    """
    from scipy.special import fdtrc

    p_values = {}
    whole, dof = residual_squares(results)
    if whole <= ROUNDING_SHARE**2 * sum(value**2 for row in results.values() for value in row.values()):
        return {}
    for arm, (others_squares, others_dof) in residual_squares_without_each_arm(results).items():
        if others_dof > 0 and dof > others_dof:
            ratio = (
                (whole - others_squares) / (dof - others_dof) / (others_squares / others_dof) if others_squares else inf
            )
            p_values[arm] = min(1.0, len(results) * float(fdtrc(dof - others_dof, others_dof, ratio)))
    return {arm: p for arm, p in p_values.items() if p <= LEVEL}


def residual_squares_without_each_arm(results: Results) -> dict[str, tuple[float, int]]:
    """The `residual_squares` of the other arms' results when one arm is left out, for each arm: {arm left out:
    (residual sum of squares, degrees of freedom)}."""
    table = full_table(results)
    if table is None or len(table) < 3:
        return {arm: residual_squares({a: row for a, row in results.items() if a != arm}) for arm in results}
    arms, seeds = table.shape
    of_arm = (two_way_residuals(table) ** 2).sum(1)
    # the means of seeds change with the arm that is left out, by its residuals / (arms - 1)
    others_squares = of_arm.sum() - of_arm * arms / (arms - 1)
    others_squares[others_squares < ROUNDING_SHARE * of_arm.sum()] = 0.0
    return {
        arm: (float(squares), (arms - 2) * (seeds - 1)) for arm, squares in zip(results, others_squares, strict=True)
    }


def welch_variance(ours: Iterable[float], theirs: Iterable[float]) -> Variance | None:
    """Welch's variance of the difference between the means of two arms whose runs share no seeds. None where an arm has
    a single run. Where both arms have a variance of 0, the smaller degrees of freedom of the two count. `ours`,
    `theirs`: the results of the runs of each arm."""
    rows = [np.array(list(row), float) for row in (ours, theirs)]
    if min(map(len, rows)) < 2:
        return None
    parts = [Variance(float(row.var(ddof=1)) / len(row), len(row) - 1) for row in rows]
    return (
        sum_of_variances(parts)
        if any(part.variance for part in parts)
        else Variance(0.0, min(part.dof for part in parts))
    )


def within_arm_variance(results: Results) -> Variance | None:
    """The variance between runs that differ only in the seed, pooled over arms. None where no arm has several seeds.
    `results`: {arm: {seed: result}}."""
    rows = [np.array(list(row.values()), float) for row in results.values() if len(row) > 1]
    dof = sum(len(row) - 1 for row in rows)
    return Variance(sum(float(((row - row.mean()) ** 2).sum()) for row in rows) / dof, dof) if dof else None


def arm_mean_stderr(results: Results, arm: str, items: Variance) -> float:
    """The standard error of an arm's mean over its n seeds, from seeds and items: sqrt(v / n + items). v is the
    `within_arm_variance`, or 0 where no arm has several seeds.

    Args:
        results: {arm: {seed: result}}.
        arm: the arm.
        items: the variance of this mean from the items.
    """
    floor = within_arm_variance(results)
    return sqrt((floor.variance / len(results[arm]) if floor else 0.0) + items.variance)
