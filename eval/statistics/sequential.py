"""Significance levels of the interim analyses of a study that adds seeds until it is decided. Tests at the full level
after every seed would give too many wrong verdicts.

Alpha spending (Lan & DeMets 1983, Biometrika 70): a wrong verdict at any analysis up to n of N seeds has at most the
probability LEVEL (n / N)**SPENDING_EXPONENT (Kim & DeMets 1987, Biometrika 74; 2 is the compromise of Jennison &
Turnbull 1999, section 7.2.3). The levels assume an analysis after every seed from the second on, even where several
seeds were added at once. So the level of an analysis depends on n and N alone.

The levels are computed for a normal mean of known variance, by recursive integration (Armitage, McPherson & Rowe 1969,
J. R. Stat. Soc. A 132). They are applied to p-values of Student's t (Pocock 1977, Biometrika 64). With few seeds,
successive p-values of Student's t are less correlated than normal ones. Of null studies of two arms, 5.8 % would have a
wrong verdict (20,000 simulated ones, of at most 10 seeds; tests/test_sequential.py). So only SHARE_FOR_STUDENT of LEVEL
is spent; docs/statistics.md has the resulting rates.

With several arms, each p-value is divided by the share of LEVEL of its analysis, and Holm's correction follows.
Confidence intervals at these levels hold at all analyses together (repeated confidence intervals: Jennison & Turnbull
1989, J. R. Stat. Soc. B 51). So equivalence within a margin is judged at the same levels.
"""

import functools
from math import pi, sqrt

import numpy as np

from eval.statistics.parts import LEVEL

SPENDING_EXPONENT = 2
SHARE_FOR_STUDENT = 0.8  # measured by simulation: see above
FIRST_LOOK = 2  # seeds; of one nothing is concluded
POINTS = 401  # of the grid of the integration: levels to three digits (tests/test_sequential.py)


def alpha_share(seeds: int, max_seeds: int, tests: int = 1) -> float:
    """The share of LEVEL that the interim analysis after `seeds` of at most `max_seeds` seeds may use. 0 where there is
    no analysis: before the second seed and beyond `max_seeds`. `tests`: the number of comparisons, among which LEVEL is
    divided."""
    if not FIRST_LOOK <= seeds <= max_seeds:
        return 0.0
    level = LEVEL / max(1, tests)
    return interim_levels(SHARE_FOR_STUDENT * level, max_seeds)[seeds - FIRST_LOOK] / level


@functools.cache
def interim_levels(total: float, max_seeds: int) -> list[float]:
    """The two-sided significance level of each interim analysis, after FIRST_LOOK to `max_seeds` seeds. Under the null
    hypothesis, the probability that any analysis is significant is `total` (for a normal mean of known variance)."""
    from scipy.optimize import brentq
    from scipy.special import ndtr, ndtri

    levels_of_looks: list[float] = []
    spent, before = 0.0, 0.0
    for seeds in range(FIRST_LOOK, max_seeds + 1):
        time = seeds / max_seeds
        step, spend = time - before, total * time**SPENDING_EXPONENT - spent
        if not levels_of_looks:  # the sum of all results so far, Brownian motion at `time`, has passed no bound yet
            bound = -float(ndtri(spend / 2)) * sqrt(time)
            grid = np.linspace(-bound, bound, POINTS)
            density = np.exp(-(grid**2) / (2 * time)) / sqrt(2 * pi * time)
        else:
            mass = density * (grid[1] - grid[0])  # trapezoids: half at both ends
            mass[[0, -1]] /= 2

            def excess(bound: float, mass: np.ndarray = mass, grid: np.ndarray = grid, step: float = step) -> float:
                """The probability that the cumulative sum leaves ±`bound` at this analysis and kept all earlier bounds.
                `grid`: values of the sum at the previous analysis; `mass`: the probability of each; `step`: the
                variance that is added since then."""
                return float(mass @ (ndtr((grid - bound) / sqrt(step)) + ndtr((-bound - grid) / sqrt(step))))

            bound = float(brentq(lambda b, spend=spend: excess(b) - spend, 0.0, 20 * sqrt(time)))
            earlier, grid = grid, np.linspace(-bound, bound, POINTS)
            density = np.exp(-((grid[:, None] - earlier) ** 2) / (2 * step)) @ mass / sqrt(2 * pi * step)
        levels_of_looks.append(2 * float(ndtr(-bound / sqrt(time))))
        spent, before = spent + spend, time
    return levels_of_looks
