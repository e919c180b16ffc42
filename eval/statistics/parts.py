"""Variances with their degrees of freedom, and the confidence interval of a difference with noise from seeds and items.

A difference is significant when it exceeds sqrt(t1**2 v1 + t2**2 v2). v1 and v2 are the variances from the seeds and
the items. t1 and t2 are the 0.975 quantiles of Student's t with the degrees of freedom of each. Banerjee (1960, Sankhya
22) proved that this interval has at least its nominal coverage. A single t for both variances (Welch and Satterthwaite)
is not used. With so few degrees of freedom for the seeds, it calls up to 8 % of null differences significant
(tests/test_false_verdicts.py).
"""

from dataclasses import dataclass
from math import inf, sqrt

LEVEL = 0.05  # chance of any wrong verdict on a metric when there is no difference


@dataclass(frozen=True)
class Variance:
    """A variance and its degrees of freedom."""

    variance: float
    dof: float


def sum_of_variances(parts: list[Variance]) -> Variance:
    """The sum of the variances of independent estimates, with Satterthwaite's degrees of freedom. These are infinite
    where the sum is 0. Not for adding the variances of seeds and items (see the head of this file)."""
    variance = sum(part.variance for part in parts)
    if not variance:
        return Variance(0.0, inf)
    return Variance(variance, variance**2 / sum(part.variance**2 / part.dof for part in parts))


def interval_half_width(alpha: float, seeds: Variance, items: Variance) -> float:
    """The half-width of the 1 - `alpha` confidence interval of a difference (Banerjee 1960). `seeds`, `items`: the
    parts of its variance."""
    from scipy.special import stdtrit  # the quantile of Student's t

    return sqrt(
        sum(float(stdtrit(part.dof, alpha / 2)) ** 2 * part.variance for part in (seeds, items) if part.variance)
    )
