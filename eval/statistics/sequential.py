"""Significance levels of the interim analyses of a study that adds seeds until it is decided. Without them, repeated
tests would give too many wrong verdicts.

Alpha spending (Lan & DeMets 1983, Biometrika 70): the probability of a wrong verdict at any of the analyses up to n of
N seeds is at most LEVEL (n / N)**SPENDING_EXPONENT (Kim & DeMets 1987, Biometrika 74; 2 is the compromise of Jennison &
Turnbull 1999, section 7.2.3). The levels assume an analysis after every seed from the second on, however the seeds
were added. So the level of an analysis follows from n and N alone, and a report needs no history.

The levels are those of a normal mean of known variance, by recursive integration (Armitage, McPherson & Rowe 1969,
J. R. Stat. Soc. A 132), and are applied to p-values of Student's t (Pocock 1977, Biometrika 64). With few seeds these
p-values are less alike from one analysis to the next than normal ones. Two arms would have a wrong verdict in 5.8 % of
null studies (20,000 simulated ones, of at most 10 seeds; tests/test_sequential.py). So only SHARE_FOR_STUDENT of LEVEL
is spent; docs/statistics.md has the resulting rates.

With several arms, Holm's correction is made on p-values divided by the share of their analysis. Confidence intervals at
the share of an analysis hold at all analyses together (repeated confidence intervals: Jennison & Turnbull 1989, J. R.
Stat. Soc. B 51), so equivalence within a margin is judged at the same levels.
"""

import functools
from math import pi, sqrt

import numpy as np

from eval.statistics.parts import LEVEL

SPENDING_EXPONENT = 2
SHARE_FOR_STUDENT = 0.8  # measured by simulation: see above
FIRST_LOOK = 2  # seeds; of one nothing is concluded
POINTS = 401  # of the grid of the integration: levels to three digits (tests/test_sequential.py)


def alpha_share(seeds: int, most: int, tests: int = 1) -> float:
    """The share of alpha (LEVEL) that the interim analysis after `seeds` of at most `most` seeds may use. 0 before the
    second seed and beyond `most` seeds, where there is no analysis. `tests`: the number of comparisons, each at LEVEL /
    tests."""
    if not FIRST_LOOK <= seeds <= most:
        return 0.0
    level = LEVEL / max(1, tests)
    return alpha_levels(SHARE_FOR_STUDENT * level, most)[seeds - FIRST_LOOK] / level


@functools.cache
def alpha_levels(total: float, most: int) -> list[float]:
    """The two-sided significance level of each interim analysis, after FIRST_LOOK to `most` seeds. With these levels, a
    normal mean whose true value is 0 is significant at any of the analyses with probability `total`."""
    from scipy.optimize import brentq
    from scipy.special import ndtr, ndtri

    levels_of_looks: list[float] = []
    spent, before = 0.0, 0.0
    for seeds in range(FIRST_LOOK, most + 1):
        time = seeds / most
        step, spend = time - before, total * time**SPENDING_EXPONENT - spent
        if not levels_of_looks:  # the sum of all results so far, Brownian motion at `time`, has passed no bound yet
            bound = -float(ndtri(spend / 2)) * sqrt(time)
            grid = np.linspace(-bound, bound, POINTS)
            density = np.exp(-(grid**2) / (2 * time)) / sqrt(2 * pi * time)
        else:
            mass = density * (grid[1] - grid[0])  # trapezoids: half at both ends
            mass[[0, -1]] /= 2

            def excess(bound: float, mass: np.ndarray = mass, grid: np.ndarray = grid, step: float = step) -> float:
                """The probability that the cumulative sum, within its bounds at all earlier looks, lies beyond `bound`
                in either direction at this look. `grid`: values of the sum at the look before; `mass`: the probability
                of each; `step`: the variance of what is added between the two looks."""
                return float(mass @ (ndtr((grid - bound) / sqrt(step)) + ndtr((-bound - grid) / sqrt(step))))

            bound = float(brentq(lambda b, spend=spend: excess(b) - spend, 0.0, 20 * sqrt(time)))
            earlier, grid = grid, np.linspace(-bound, bound, POINTS)
            density = np.exp(-((grid[:, None] - earlier) ** 2) / (2 * step)) @ mass / sqrt(2 * pi * step)
        levels_of_looks.append(2 * float(ndtr(-bound / sqrt(time))))
        spent, before = spent + spend, time
    return levels_of_looks
