"""Published scaling laws, and the compute-optimal numbers of parameters and tokens by each of them.

By Hoffmann et al. 2022 (eq. 2), the loss with N parameters and D tokens is E + A / N^alpha + B / D^beta. Kaplan et al.
2020 give the compute-optimal N and D as powers of the compute.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

from ablations.plan.resources import PF_DAY

TOKENS_PER_PARAMETER = 20.0  # about the compute-optimal ratio by Hoffmann's approaches 1 and 2 (secondary)


@dataclass(frozen=True)
class HoffmannLaw:
    """A scaling law of the form e + a / N^alpha + b / D^beta: the loss in nats per token with N parameters and D
    tokens."""

    e: float
    a: float
    b: float
    alpha: float
    beta: float

    def loss(self, n: float, d: float) -> float:
        return float(self.e + self.a / n**self.alpha + self.b / d**self.beta)

    def optimum(self, compute: float) -> tuple[float, float]:
        """The numbers of parameters and tokens with the least loss for `compute` FLOPs: (N, D), with compute = 6 N D
        (Hoffmann et al. 2022, eq. 4)."""
        scale = (self.alpha * self.a / (self.beta * self.b)) ** (1 / (self.alpha + self.beta))
        n = scale * (compute / 6) ** (self.beta / (self.alpha + self.beta))
        return n, compute / (6 * n)

    def least_loss(self, compute: float) -> float:
        """The least loss in nats per token that `compute` FLOPs can reach."""
        return self.loss(*self.optimum(compute))

    def compute_for(self, loss: float) -> float:
        """The least FLOPs with which a model of any size reaches a loss. `loss`: above the irreducible loss `e`."""
        # along the best sizes both reducible terms are the same power of compute
        reducible = self.least_loss(1.0) - self.e
        return float((reducible / (loss - self.e)) ** (1 / self.alpha + 1 / self.beta))


HOFFMANN_3 = HoffmannLaw(1.69, 406.4, 410.7, 0.34, 0.28)  # as printed, rounded
BESIROGLU = HoffmannLaw(1.8172, 482.01, 2085.43, 0.3478, 0.3658)  # Hoffmann's data fitted again; recalled


def kaplan_optimum(
    compute: float, n_at_1: float = 1.3e9, n_power: float = 0.73, d_at_1: float = 2e10, d_power: float = 0.27
) -> tuple[float, float]:
    """The compute-optimal numbers of parameters and tokens by Kaplan's power laws: (N, D), with `compute` = 6 N D
    FLOPs.

    Kaplan's laws are powers of the "least compute": the compute of training with batches far below the critical size.
    Training with batches of the critical size takes twice as much (Kaplan's section 5.1, recalled). Here the least
    compute is derived from `compute`, so that 6 N D equals `compute`. The default constants nearly agree with the
    factor of two: 6 x 1.3e9 x 2e10 FLOPs are 1.8 PF-days, at a least compute of 1 PF-day. At 4,500 PF-days the result
    is BigScience's published optimum, 392B and 165B.

    Args:
        compute: the FLOPs of the training.
        n_at_1: the parameters at a least compute of 1 PF-day.
        n_power: the exponent of the least compute in N.
        d_at_1: the tokens at a least compute of 1 PF-day.
        d_power: the exponent of the least compute in D.
    """
    least = (compute / (6 * n_at_1 * d_at_1)) ** (1 / (n_power + d_power))
    return n_at_1 * least**n_power, d_at_1 * least**d_power


def kaplan_size_and_tokens(compute: float, n_at_1: float = 1.3e9, n_power: float = 0.73) -> tuple[float, float]:
    """The compute-optimal number of parameters by Kaplan's power law of N alone, and the tokens that the compute allows
    at that size: (N, compute / (6 N)). The law is applied to `compute` itself and not to the smaller least compute of
    `kaplan_optimum`, as is often done.

    Args:
        compute: the FLOPs of the training.
        n_at_1: the parameters at 1 PF-day.
        n_power: the exponent of the compute in N.
    """
    n = n_at_1 * (compute / PF_DAY) ** n_power
    return n, compute / (6 * n)


def fixed_ratio_optimum(compute: float, tokens_per_parameter: float = TOKENS_PER_PARAMETER) -> tuple[float, float]:
    """The numbers of parameters and tokens at a fixed ratio: (N, D), with D = `tokens_per_parameter` x N and `compute`
    = 6 N D FLOPs."""
    n = math.sqrt(compute / (6 * tokens_per_parameter))
    return n, tokens_per_parameter * n


def hoffmann_optimum(compute: float, a: float, b: float, alpha: float, beta: float) -> tuple[float, float]:
    """The compute-optimal numbers of parameters and tokens by the law of Hoffmann's approach 3, E + a / N^alpha + b /
    D^beta: (N, D), with `compute` = 6 N D FLOPs. They do not depend on E."""
    return HoffmannLaw(0.0, a, b, alpha, beta).optimum(compute)


@dataclass(frozen=True)
class PublishedLaw:
    """A published law of the compute-optimal numbers of parameters N and tokens D, with its constants as printed."""

    name: str
    best: Callable[..., tuple[float, float]]  # (compute, *constants) -> (N, D)
    constants: tuple[tuple[float, float], ...]  # (constant as printed, half a unit of its last digit) for each
    status: str  # secondary: as others quote the law; unverified: recalled, not read
    source: str

    def optimum(self, compute: float) -> tuple[float, float]:
        """The numbers of parameters and tokens with the least loss for `compute` FLOPs: (N, D)."""
        return self.best(compute, *(value for value, _ in self.constants))

    def size_range(self, compute: float) -> tuple[float, float]:
        """The range of the compute-optimal number of parameters when each constant varies within the rounding of its
        printed digits: (least, largest)."""
        corners = itertools.product(*((value - half, value + half) for value, half in self.constants))
        sizes = [self.best(compute, *corner)[0] for corner in corners]
        return min(sizes), max(sizes)


LAWS = [
    PublishedLaw(
        "Kaplan 2020",
        kaplan_optimum,
        ((1.3e9, 0.05e9), (0.73, 0.005), (2e10, 0.5e10), (0.27, 0.005)),
        "secondary",
        "Kaplan et al. 2020: N = 1.3e9 C^0.73, D = 2e10 C^0.27; BigScience's published optimum",
    ),
    PublishedLaw(
        "Kaplan 2020, N alone",
        kaplan_size_and_tokens,
        ((1.3e9, 0.05e9), (0.73, 0.005)),
        "secondary",
        "the same N, all compute taken for the least: what is often quoted",
    ),
    PublishedLaw(
        "Hoffmann 2022, ways 1 and 2",
        fixed_ratio_optimum,
        ((20.0, 5.0),),
        "secondary",
        "Hoffmann et al. 2022: about 20 tokens a parameter, taken for 15 to 25",
    ),
    PublishedLaw(
        "Hoffmann 2022, way 3",
        hoffmann_optimum,
        ((406.4, 0.05), (410.7, 0.05), (0.34, 0.005), (0.28, 0.005)),
        "secondary",
        "Hoffmann et al. 2022: constants as printed",
    ),
    PublishedLaw(
        "Besiroglu 2024",
        hoffmann_optimum,
        ((482.01, 0.005), (2085.43, 0.005), (0.3478, 0.00005), (0.3658, 0.00005)),
        "unverified",
        "Besiroglu et al. 2024: Hoffmann's data, way 3 fitted again",
    ),
]
