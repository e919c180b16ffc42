"""Scaling laws as they were published, and the size and tokens of least loss that each gives for an amount of compute.

Hoffmann et al. 2022 (eq. 2): the loss in parameters N and tokens D is E + A / N^alpha + B / D^beta. Kaplan et al. 2020
give N and D of least loss as powers of compute.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from ablations.plan.resources import PF_DAY


@dataclass(frozen=True)
class Hoffmann:
    """E + A / N^alpha + B / D^beta."""

    e: float
    a: float
    b: float
    alpha: float
    beta: float

    def loss(self, n: float, d: float) -> float:
        return float(self.e + self.a / n**self.alpha + self.b / d**self.beta)

    def optimum(self, compute: float) -> tuple[float, float]:
        """N and D of least loss for so many FLOPs, 6 N D (their eq. 4)."""
        scale = (self.alpha * self.a / (self.beta * self.b)) ** (1 / (self.alpha + self.beta))
        n = scale * (compute / 6) ** (self.beta / (self.alpha + self.beta))
        return n, compute / (6 * n)

    def after(self, compute: float) -> float:
        return self.loss(*self.optimum(compute))


# Published constants. Kaplan's C is the least compute that reaches a loss, in PF-days: what would be spent with batches
# far below the critical size. With batches of the critical size 6 N D is twice that (their section 5.1, recalled), and
# nearly so by these powers: 6 x 1.3e9 x 2e10 FLOPs are 1.8 PF-days.
KAPLAN_N, KAPLAN_D = (1.3e9, 0.73), (2e10, 0.27)
HOFFMANN_3 = Hoffmann(1.69, 406.4, 410.7, 0.34, 0.28)  # as printed, rounded
BESIROGLU = Hoffmann(1.8172, 482.01, 2085.43, 0.3478, 0.3658)  # Hoffmann's data fitted again; recalled
TOKENS_PER_PARAMETER = 20.0  # what Hoffmann's first two ways come to


def kaplan(compute: float) -> tuple[float, float]:
    """N and D by Kaplan's powers where 6 N D is `compute`. Their exponents add up to 1, so that the least compute is
    always the same part of it. At 4,500 PF-days this is the optimum that BigScience published, 392B and 165B.
    """
    (n_at_1, n_power), (d_at_1, d_power) = KAPLAN_N, KAPLAN_D
    least = compute / (6 * n_at_1 * d_at_1)  # PF-days
    return n_at_1 * least**n_power, d_at_1 * least**d_power


def kaplan_size_alone(compute: float) -> tuple[float, float]:
    """N by Kaplan's power as if `compute` were the least compute, D what is left of 6 N D."""
    coefficient, exponent = KAPLAN_N
    n = coefficient * (compute / PF_DAY) ** exponent
    return n, compute / (6 * n)


def twenty(compute: float) -> tuple[float, float]:
    """N and D at 20 tokens a parameter."""
    n = math.sqrt(compute / (6 * TOKENS_PER_PARAMETER))
    return n, TOKENS_PER_PARAMETER * n


LAWS: list[tuple[str, Callable[[float], tuple[float, float]], str, str]] = [
    (
        "Kaplan 2020",
        kaplan,
        "secondary",
        "Kaplan et al. 2020: N = 1.3e9 C^0.73, D = 2e10 C^0.27; BigScience's optimum (published) to the last digit",
    ),
    (
        "Kaplan 2020, N alone",
        kaplan_size_alone,
        "secondary",
        "the same N, all compute taken for the least: what is often quoted",
    ),
    ("Hoffmann 2022, ways 1 and 2", twenty, "secondary", "Hoffmann et al. 2022: about 20 tokens a parameter"),
    ("Hoffmann 2022, way 3", HOFFMANN_3.optimum, "secondary", "Hoffmann et al. 2022: constants as printed, rounded"),
    ("Besiroglu 2024", BESIROGLU.optimum, "unverified", "Besiroglu et al. 2024: Hoffmann's data, way 3 fitted again"),
]
