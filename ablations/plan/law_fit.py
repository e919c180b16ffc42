"""Scaling laws fitted to training runs, with bootstrap intervals. A fit is refused where the runs cannot determine the
law.

There are three forms of law for the loss. Two have parameters N and tokens D: "hoffmann" is E + A / N^alpha + B /
D^beta (Hoffmann et al. 2022, eq. 2), and "kaplan" is ((Nc / N)^(aN / aD) + Dc / D)^aD (Kaplan et al. 2020, eq. 1.5).
The third, "compute", has the compute C alone: (Cc / C)^alpha.

The fit minimises the sum of Huber losses of log residuals, by L-BFGS from many starting points. It uses the sum because
L-BFGS stops early at the small values of a mean. Losses are divided by their geometric mean before the fit, so that
their unit does not matter.
"""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

from ablations.plan.published_laws import HoffmannLaw
from ablations.values import ConfigError

HUBER = 1e-3  # the log residual at which the Huber loss turns from quadratic to linear: Hoffmann et al. 2022
FIRST_ITERATIONS, BEST_STARTS = 40, 3  # iterations from every start; the number of best ones that are iterated further
RESAMPLES = 200
COVERAGE = 0.9  # of the bootstrap's intervals
LEAST_SPREAD = 2.0  # the least ratio of largest to smallest N, and D, for which an exponent is fitted; untuned
COLLINEAR = 0.97  # the highest correlation of log N and log D with which both exponents are fitted; untuned


@dataclass(frozen=True)
class Point:
    """The loss of a model with `n` parameters after `d` training tokens, to which a law is fitted. All points of a fit
    have their losses in the same unit.

    `run` is the name of the training run. The bootstrap resamples all points of a run together. "": the point is the
    only one of its run.
    """

    n: float
    d: float
    loss: float
    run: str = ""

    @property
    def compute(self) -> float:
        """The FLOPs of the training, 6 x parameters x tokens."""
        return 6 * self.n * self.d


class UndeterminedLaw(ConfigError):
    """The error where runs do not determine a law; the message says what is missing."""


@dataclass(frozen=True)
class FittedLaw:
    """A scaling law fitted to runs. `values`: the fitted constants, {name: value}; `samples`: the constants fitted to
    each bootstrap resample of the runs."""

    form: str  # "hoffmann", "kaplan" or "compute"
    values: dict[str, float]
    samples: list[dict[str, float]]  # as `values`, for each bootstrap resample of the runs
    points: list[Point]

    def loss(self, n: float, d: float, values: dict[str, float] | None = None) -> float:
        """The loss that the law predicts for n parameters and d tokens. `values`: other constants, {name: value}; None:
        the fitted ones."""
        v = values or self.values
        if self.form == "hoffmann":
            return as_hoffmann(v).loss(n, d)
        if self.form == "kaplan":
            return float(((v["Nc"] / n) ** (v["aN"] / v["aD"]) + v["Dc"] / d) ** v["aD"])
        return float((v["Cc"] / (6 * n * d)) ** v["alpha"])

    def interval(self, quantity: Callable[[dict[str, float]], float]) -> tuple[float, float]:
        """The bootstrap interval of a quantity with coverage COVERAGE: (low, high). `quantity`: a function that
        computes it from the law's constants, {name: value}."""
        import numpy as np

        tail = (1 - COVERAGE) / 2
        low, high = np.quantile([quantity(sample) for sample in self.samples], [tail, 1 - tail])
        return float(low), float(high)


def as_hoffmann(values: dict[str, float]) -> HoffmannLaw:
    """The `HoffmannLaw` with the constants {"E", "A", "B", "alpha", "beta": value}."""
    return HoffmannLaw(*(values[name] for name in ("E", "A", "B", "alpha", "beta")))


def check_determined(points: Sequence[Point], form: str) -> None:
    """Raise UndeterminedLaw where runs cannot determine a law; the message says what is missing. There are too few
    runs, their range is too narrow, or their parameters and tokens are too strongly correlated. `form`: "hoffmann",
    "kaplan" or "compute"."""
    for point in points:
        if not all(math.isfinite(value) and value > 0 for value in (point.n, point.d, point.loss)):
            raise UndeterminedLaw(f"parameters, tokens and losses must be above 0 and finite, not {point}")
    variables = {"parameters": [point.n for point in points], "tokens": [point.d for point in points]}
    if form == "compute":
        variables = {"compute": [point.compute for point in points]}
    least = {"compute": 3, "kaplan": 5, "hoffmann": 6}[form]
    if len(points) < least:
        raise UndeterminedLaw(
            f"{len(points)} runs cannot determine a law of {least - 1} numbers: {least} at least are needed"
        )
    for name, values in variables.items():
        distinct = sorted(set(values))
        if len(distinct) < 3:
            problem = f"all runs have the same {name}" if len(distinct) == 1 else f"there are two {name} only"
            raise UndeterminedLaw(f"{problem}: at least three are needed to fit how the loss falls with {name}")
        if distinct[-1] / distinct[0] < LEAST_SPREAD:
            raise UndeterminedLaw(
                f"{name} differ by a factor of {distinct[-1] / distinct[0]:.2g}: {LEAST_SPREAD:g} is needed"
            )
    if form != "compute" and abs(_log_correlation(points)) > COLLINEAR:
        raise UndeterminedLaw(
            "tokens follow parameters in all runs (as with a fixed number for each): their parts cannot be told apart"
        )


def _log_correlation(points: Sequence[Point]) -> float:
    """The correlation of log N and log D over the points, for N parameters and D tokens."""
    return statistics.correlation([math.log(point.n) for point in points], [math.log(point.d) for point in points])


def fit_law(points: Sequence[Point], form: str = "hoffmann", resamples: int = RESAMPLES, seed: int = 1) -> FittedLaw:
    """Fit a scaling law to runs by minimising the sum of Huber losses. Fit it again to bootstrap resamples of the runs,
    which keep all points of a run together.

    Args:
        points: the points of the runs; a run may have several.
        form: the form of the law: "hoffmann", "kaplan" or "compute".
        resamples: the number of bootstrap resamples.
        seed: the seed of the resampling.

    Raises:
        UndeterminedLaw: the runs do not determine the law.
    """
    import numpy as np

    check_determined(points, form)
    scale = math.exp(sum(math.log(point.loss) for point in points) / len(points))
    data = np.array([[math.log(point.n), math.log(point.d), math.log(point.loss / scale)] for point in points])
    rough = [_minimise(data, start, form, FIRST_ITERATIONS) for start in _starting_points(data, form)]
    rough.sort(key=itemgetter(1))
    best, _ = min((_minimise(data, theta, form) for theta, _ in rough[:BEST_STARTS]), key=itemgetter(1))
    by_run: dict[str, list[int]] = {}
    for i, point in enumerate(points):
        by_run.setdefault(point.run or f"point {i}", []).append(i)
    runs = list(by_run.values())
    rng = np.random.default_rng(seed)
    samples: list[dict[str, float]] = []
    while len(samples) < resamples:
        drawn = np.concatenate([runs[i] for i in rng.integers(len(runs), size=len(runs))])
        try:
            check_determined([points[i] for i in drawn], form)
        except UndeterminedLaw:
            continue  # the resample determines no law, for example because it lacks one of three sizes
        samples.append(_named_constants(_refine(data[drawn], best, form), scale, form))
    return FittedLaw(form, _named_constants(best, scale, form), samples, list(points))


def _log_loss(theta: Any, data: Any, form: str) -> tuple[Any, Any]:
    """The logarithms of the losses that a law predicts, [points], and their gradient, [points, constants].

    Args:
        theta: the constants of the law. "hoffmann": log A, log B, log E, alpha, beta; "kaplan": log Nc, log Dc, log aN,
            log aD; "compute": log Cc, alpha.
        data: [points, 3]: log N, log D and log loss of each point.
        form: the form of the law: "hoffmann", "kaplan" or "compute".
    """
    import numpy as np

    n, d = data[:, 0], data[:, 1]
    if form == "compute":
        gap = theta[0] - (math.log(6) + n + d)
        return theta[1] * gap, np.stack([np.full_like(n, theta[1]), gap], 1)
    if form == "hoffmann":
        terms = np.stack([theta[0] - theta[3] * n, theta[1] - theta[4] * d, np.full_like(n, theta[2])])
        top = terms.max(0)
        parts = np.exp(terms - top)
        total = parts.sum(0)
        share = parts / total
        return top + np.log(total), np.stack([share[0], share[1], share[2], -share[0] * n, -share[1] * d], 1)
    an, ad = math.exp(theta[2]), math.exp(theta[3])
    first, second = an / ad * (theta[0] - n), theta[1] - d
    log_sum = np.logaddexp(first, second)
    share = np.exp(first - log_sum)
    gradient = [an * share, ad * (1 - share), ad * share * first, ad * (log_sum - share * first)]
    return ad * log_sum, np.stack(gradient, 1)


def _minimise(data: Any, start: Any, form: str, iterations: int = 2000) -> tuple[Any, float]:
    """Minimise the sum of Huber losses by L-BFGS. Returns (the constants at the minimum, the sum there).

    Args:
        data: [points, 3]: log N, log D and log loss of each point.
        start: the constants to start from; their order, also in the result, is that of `theta` in `_log_loss`.
        form: the form of the law: "hoffmann", "kaplan" or "compute".
        iterations: the largest number of iterations.
    """
    import numpy as np
    from scipy.optimize import minimize

    def objective(theta: Any) -> tuple[float, Any]:
        logs, gradient = _log_loss(theta, data, form)
        residual = logs - data[:, 2]
        size = np.abs(residual)
        value = np.where(size <= HUBER, residual**2 / 2, HUBER * (size - HUBER / 2)).sum()
        slope = np.clip(residual, -HUBER, HUBER)
        return float(value) / HUBER, gradient.T @ slope / HUBER

    with np.errstate(over="ignore", invalid="ignore"):
        options = {"maxiter": iterations, "ftol": 1e-12, "gtol": 1e-9}
        result = minimize(objective, start, jac=True, method="L-BFGS-B", options=options)
    return result.x, float(result.fun)


def _refine(data: Any, start: Any, form: str) -> Any:
    """Minimise the sum of Huber losses by a trust-region method, starting near the minimum. For a bootstrap resample
    this takes a tenth of the time of `_minimise`. Returns the constants at the minimum.

    Args:
        data: [points, 3]: log N, log D and log loss of each point.
        start: the constants to start from; their order, also in the result, is that of `theta` in `_log_loss`.
        form: the form of the law: "hoffmann", "kaplan" or "compute".
    """
    from scipy.optimize import least_squares

    result = least_squares(
        lambda theta: _log_loss(theta, data, form)[0] - data[:, 2],
        start,
        jac=lambda theta: _log_loss(theta, data, form)[1],
        loss="huber",
        f_scale=HUBER,
        x_scale="jac",
        max_nfev=200,
    )
    return result.x


def _starting_points(data: Any, form: str) -> list[Any]:
    """The starting points of the fit: exponents on a grid, each with rough values of the other constants. Their order
    is that of `theta` in `_log_loss`.

    Args:
        data: [points, 3]: log N, log D and log loss of each point.
        form: "hoffmann", "kaplan" or "compute".
    """
    import numpy as np
    from scipy.optimize import nnls

    n, d, logs = data.T
    loss = np.exp(logs)
    starts = []
    if form == "compute":
        slope, level = np.polyfit(math.log(6) + n + d, logs, 1)
        return [np.array([level / max(-slope, 1e-3), max(-slope, 1e-3)])]
    if form == "kaplan":
        for an in (0.05, 0.1, 0.3):
            for ad in (0.05, 0.1, 0.3):
                for share in (0.3, 0.7):
                    # at the median run the terms are the shares `share` and 1 - `share` of the sum
                    total = np.median(logs) / ad
                    log_nc = np.median(n) + (total + math.log(share)) * ad / an
                    starts.append(
                        np.array([log_nc, np.median(d) + total + math.log(1 - share), math.log(an), math.log(ad)])
                    )
        return starts
    for alpha in (0.1, 0.2, 0.35, 0.5, 0.8):
        for beta in (0.1, 0.2, 0.35, 0.5, 0.8):
            # each term is divided by its value at the mean run, so that both have a similar scale
            x, y = np.exp(-alpha * (n - n.mean())), np.exp(-beta * (d - d.mean()))
            a, b, e = np.maximum(nnls(np.stack([x, y, np.ones_like(x)], 1) / loss[:, None], np.ones_like(x))[0], 1e-3)
            starts.append(
                np.array([math.log(a) + alpha * n.mean(), math.log(b) + beta * d.mean(), math.log(e), alpha, beta])
            )
    return starts


def _named_constants(theta: Any, scale: float, form: str) -> dict[str, float]:
    """The constants of a law as {name: value}, in the original unit of the loss.

    Args:
        theta: the constants in the order of `_log_loss`.
        scale: the number by which the losses were divided before the fit.
        form: "hoffmann", "kaplan" or "compute".
    """
    t = [float(value) for value in theta]
    if form == "compute":
        return {"Cc": math.exp(t[0] + math.log(scale) / t[1]), "alpha": t[1]}
    if form == "hoffmann":
        a, b, e = (math.exp(value) * scale for value in t[:3])
        return {"E": e, "A": a, "B": b, "alpha": t[3], "beta": t[4]}
    an, ad = math.exp(t[2]), math.exp(t[3])
    unit = math.log(scale)  # a loss times k means both terms of the sum times k^(1 / aD)
    return {"Nc": math.exp(t[0] + unit / an), "Dc": math.exp(t[1] + unit / ad), "aN": an, "aD": ad}


def error_on_largest_size(points: Sequence[Point], form: str = "hoffmann") -> tuple[list[Point], list[float]]:
    """Validate a law on the largest size: fit it to all smaller sizes, and predict the losses at the largest. Returns
    (the points of the largest size, the relative error of each prediction). `form`: "hoffmann", "kaplan" or "compute".
    Raises UndeterminedLaw where the smaller sizes do not determine the law."""
    top = max(point.n for point in points)
    law = fit_law([point for point in points if point.n < top], form, resamples=1)
    left_out = [point for point in points if point.n == top]
    return left_out, [law.loss(point.n, point.d) / point.loss - 1 for point in left_out]
