"""Compares the leading arm of a study, the one with the best result, with every other arm.

The leader was chosen by its result, so its comparisons would be significant by chance in more than 5 % of studies. Each
is therefore corrected (Bonferroni) for the number of all pairs of arms. Of studies whose arms are all equal, at most
5 % then call the leader better than any other arm (tests/test_leading.py).

This rate is in addition to the 5 % of the verdicts. Of studies of equal arms, 0.8 to 3.1 % made a wrong claim about the
leader, and 4.1 to 6.2 % made such a claim or a wrong verdict (2,000 simulated studies each of 3 arms with 3 seeds, 4
with 3 and 5, and 6 with 5; noise of seeds alone).
"""

from dataclasses import replace
from math import comb
from typing import Any

from eval.report.comparison.compare import METRICS, alpha_share_function, compare_arms
from eval.report.reading.runs import Cells
from eval.statistics.comparison import Comparison
from eval.statistics.parts import LEVEL, Variance, interval_half_width
from eval.statistics.seeds import Results


def leading_arm(compared: dict[str, Comparison], baseline: str, metric: str) -> str:
    """The name of the arm with the best result, which may be the baseline. `compared`: {arm: comparison with the
    baseline}."""
    sign = 1 if METRICS[metric].higher_is_better else -1
    differences = {baseline: 0.0} | {arm: c.difference for arm, c in compared.items()}
    return max(differences, key=lambda arm: sign * differences[arm])


def compare_leader(
    study: Any,
    cells: Cells,
    results: Results,
    compared: dict[str, Comparison],
    metric: str,
    stored_variance: Variance | None = None,
) -> dict[str, Comparison]:
    """Compare the leading arm with every other arm except the baseline: {other arm: leader minus other arm}. The
    comparisons are corrected for the number of all pairs of arms. {} where the baseline leads, since `compared` then
    has them all.

    Args:
        study: a Study or a Collection.
        cells: {(arm, seed): content of the run directory}.
        results: {arm: {seed: result on the metric}}.
        compared: {arm: comparison with the baseline}.
        stored_variance: the variance of a single run from a stored noise floor; None without one.
    """
    leader = leading_arm(compared, study.arms[0], metric)
    if leader == study.arms[0]:
        return {}
    arms = {study.arms[0], *compared}
    pool = {arm: row for arm, row in results.items() if arm in arms}
    pairs = comb(len(arms), 2)
    spending = alpha_share_function(study.criteria, pairs)
    comparisons = {
        arm: compare_arms(cells, pool, leader, arm, metric, True, None, spending, stored_variance)
        for arm in compared
        if arm != leader
    }
    return {arm: corrected_for_pairs(c, pairs) for arm, c in comparisons.items() if c}


def corrected_for_pairs(c: Comparison, pairs: int) -> Comparison:
    """A comparison after Bonferroni correction of its p-value, threshold and equivalence. `pairs`: the number of all
    pairs of arms."""
    p = min(1.0, c.p * pairs / c.share) if c.share else 1.0
    level = c.share * LEVEL / pairs
    threshold = interval_half_width(level, c.seeds, c.items) if c.seeds and level else c.threshold
    return replace(c, adjusted=p, threshold=threshold, family=pairs)
