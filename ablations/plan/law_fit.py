"""Scaling laws fitted to runs, with bootstrap intervals; refused where the runs cannot determine the law.

Two forms of law give the loss in parameters N and tokens D: Hoffmann et al. 2022 (eq. 2), E + A / N^alpha + B / D^beta,
and Kaplan et al. 2020 (eq. 1.5), ((Nc / N)^(aN / aD) + Dc / D)^aD. A third gives it in compute C alone, (Cc / C)^alpha.
The fit minimises the sum of Huber losses of log residuals by L-BFGS from many starts: the sum, since the mean of small
losses stops L-BFGS early. Losses are divided by their geometric mean before the fit, so that their unit changes
nothing.
"""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ablations.plan.published_laws import Hoffmann
from ablations.values import ConfigError

HUBER = 1e-3  # of a log residual, where squares turn into absolute values: Hoffmann et al. 2022
FIRST_ITERATIONS, BEST_STARTS = 40, 3  # iterations from every start, and how many of the best are carried to the end
RESAMPLES = 200
COVERAGE = 0.9  # of the bootstrap's intervals
LEAST_SPREAD = 2.0  # largest / smallest of N, and of D, below which an exponent is not fitted; untuned
COLLINEAR = 0.97  # correlation of log N and log D above which their exponents cannot be told apart; untuned


@dataclass(frozen=True)
class Point:
    """A trained model, to which a law is fitted: n parameters, d tokens, and the loss, in any unit that all points
    share.

    `run`: the name of the run that gave the point; points with the same name are resampled together. "": a run of its
    own.
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
    """The data do not determine the law; the message says what is missing."""


@dataclass(frozen=True)
class Fit:
    """A law fitted to runs, `values` {constant: value}, with the laws fitted to bootstrap resamples of the runs,
    `samples`."""

    form: str  # "hoffmann", "kaplan" or "compute"
    values: dict[str, float]
    samples: list[dict[str, float]]  # the same values of each resample of the runs
    points: list[Point]

    def loss(self, n: float, d: float, values: dict[str, float] | None = None) -> float:
        """The loss that the law predicts for n parameters and d tokens. `values`: other constants to use, {constant:
        value}; None: the fitted ones."""
        v = values or self.values
        if self.form == "hoffmann":
            return as_hoffmann(v).loss(n, d)
        if self.form == "kaplan":
            return float(((v["Nc"] / n) ** (v["aN"] / v["aD"]) + v["Dc"] / d) ** v["aD"])
        return float((v["Cc"] / (6 * n * d)) ** v["alpha"])

    def interval(self, quantity: Callable[[dict[str, float]], float]) -> tuple[float, float]:
        """The bootstrap interval (low, high) of a quantity that follows from the law: it contains the share COVERAGE of
        the values from the resamples. `quantity`: a function that computes the quantity from the law's constants,
        {constant: value}."""
        import numpy as np

        tail = (1 - COVERAGE) / 2
        low, high = np.quantile([quantity(sample) for sample in self.samples], [tail, 1 - tail])
        return float(low), float(high)


def as_hoffmann(values: dict[str, float]) -> Hoffmann:
    """The Hoffmann law with the constants `values`, {"E", "A", "B", "alpha", "beta"}."""
    return Hoffmann(*(values[name] for name in ("E", "A", "B", "alpha", "beta")))


def check(points: Sequence[Point], form: str) -> None:
    """Check that runs can determine a law of a form. Raises UndeterminedLaw where there are too few of them, their
    range is too narrow, or their tokens follow from their parameters; the message says what is missing. `form`:
    "hoffmann", "kaplan" or "compute"."""
    for point in points:
        if not all(math.isfinite(value) and value > 0 for value in (point.n, point.d, point.loss)):
            raise UndeterminedLaw(f"parameters, tokens and losses must be above 0 and finite, not {point}")
    kinds = {"parameters": [point.n for point in points], "tokens": [point.d for point in points]}
    if form == "compute":
        kinds = {"compute": [point.compute for point in points]}
    need = {"compute": 3, "kaplan": 5, "hoffmann": 6}[form]
    if len(points) < need:
        raise UndeterminedLaw(
            f"{len(points)} runs cannot determine a law of {need - 1} numbers: {need} at least are needed"
        )
    for name, values in kinds.items():
        distinct = sorted(set(values))
        if len(distinct) < 3:
            what = f"all runs have the same {name}" if len(distinct) == 1 else f"there are two {name} only"
            raise UndeterminedLaw(f"{what}: at least three are needed to fit how the loss falls with {name}")
        if distinct[-1] / distinct[0] < LEAST_SPREAD:
            raise UndeterminedLaw(
                f"{name} differ by a factor of {distinct[-1] / distinct[0]:.2g}: {LEAST_SPREAD:g} is needed"
            )
    if form != "compute" and abs(_correlation(points)) > COLLINEAR:
        raise UndeterminedLaw(
            "tokens follow parameters in all runs (as with a fixed number for each): their parts cannot be told apart"
        )


def _correlation(points: Sequence[Point]) -> float:
    """The correlation over the runs of log N and log D, where N is the number of parameters and D that of tokens."""
    return statistics.correlation([math.log(point.n) for point in points], [math.log(point.d) for point in points])


def fit(points: Sequence[Point], form: str = "hoffmann", resamples: int = RESAMPLES, seed: int = 1) -> Fit:
    """Fit a law to runs: the law with the least sum of Huber losses, and further laws fitted to bootstrap resamples of
    the runs. All points of a run are drawn together, since their noise is not independent.

    Args:
        points: the runs; a run may have several points.
        form: the form of the law: "hoffmann", "kaplan" or "compute".
        resamples: the number of bootstrap resamples.
        seed: the seed of the resampling.

    Raises:
        UndeterminedLaw: the runs do not determine the law.
    """
    import numpy as np

    check(points, form)
    scale = math.exp(sum(math.log(point.loss) for point in points) / len(points))
    data = np.array([[math.log(point.n), math.log(point.d), math.log(point.loss / scale)] for point in points])
    begun = sorted(
        (_minimise(data, start, form, FIRST_ITERATIONS) for start in _starts(data, form)), key=lambda end: end[1]
    )
    best = min((_minimise(data, theta, form) for theta, _ in begun[:BEST_STARTS]), key=lambda end: end[1])
    by_run: dict[str, list[int]] = {}
    for i, point in enumerate(points):
        by_run.setdefault(point.run or f"point {i}", []).append(i)
    runs = list(by_run.values())
    rng = np.random.default_rng(seed)
    samples: list[dict[str, float]] = []
    while len(samples) < resamples:
        drawn = np.concatenate([runs[i] for i in rng.integers(len(runs), size=len(runs))])
        try:
            check([points[i] for i in drawn], form)
        except UndeterminedLaw:
            continue  # of three sizes one may be missing: such a draw has no law either
        samples.append(_named_constants(_refine(data[drawn], best[0], form), scale, form))
    return Fit(form, _named_constants(best[0], scale, form), samples, list(points))


def _log_loss(theta: Any, data: Any, form: str) -> tuple[Any, Any]:
    """The logarithms of the losses that a law predicts for the runs, [runs], and their gradient, [runs, constants].

    Args:
        theta: the constants of the law. "hoffmann": log A, log B, log E, alpha, beta; "kaplan": log Nc, log Dc, log aN,
            log aD; "compute": log Cc, alpha.
        data: [runs, 3]: log N, log D and log loss of each run.
        form: the form of the law: "hoffmann", "kaplan" or "compute".
    """
    import numpy as np

    n, d = data[:, 0], data[:, 1]
    if form == "compute":  # theta: log Cc, alpha
        gap = theta[0] - (math.log(6) + n + d)
        return theta[1] * gap, np.stack([np.full_like(n, theta[1]), gap], 1)
    if form == "hoffmann":  # theta: log A, log B, log E, alpha, beta
        terms = np.stack([theta[0] - theta[3] * n, theta[1] - theta[4] * d, np.full_like(n, theta[2])])
        top = terms.max(0)
        parts = np.exp(terms - top)
        total = parts.sum(0)
        share = parts / total
        return top + np.log(total), np.stack([share[0], share[1], share[2], -share[0] * n, -share[1] * d], 1)
    # theta: log Nc, log Dc, log aN, log aD
    an, ad = math.exp(theta[2]), math.exp(theta[3])
    first, second = an / ad * (theta[0] - n), theta[1] - d
    log_sum = np.logaddexp(first, second)
    share = np.exp(first - log_sum)
    gradient = [an * share, ad * (1 - share), ad * share * first, ad * (log_sum - share * first)]
    return ad * log_sum, np.stack(gradient, 1)


def _minimise(data: Any, start: Any, form: str, iterations: int = 2000) -> tuple[Any, float]:
    """Minimise the sum of Huber losses with L-BFGS: (the constants that were found, the sum).

    Args:
        data: [runs, 3]: log N, log D and log loss of each run.
        start: the constants to start from, in the order of `_log_loss`, as are those returned.
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
    """Minimise the sum of Huber losses by a trust-region method, from constants near the minimum. For a bootstrap
    resample that takes a tenth of the time of `_minimise`. Returns the constants.

    Args:
        data: [runs, 3]: log N, log D and log loss of each run.
        start: the constants to start from, in the order of `_log_loss`, as are those returned.
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


def _starts(data: Any, form: str) -> list[Any]:
    """The sets of constants from which to start the fit: exponents on a grid, and for each of them rough values of the
    other constants. Each set is in the order of `_log_loss`. `data`: [runs, 3], log N, log D and log loss of each run;
    `form`: "hoffmann", "kaplan" or "compute"."""
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
                    # each term is that share of the sum at the middle run
                    total = np.median(logs) / ad
                    log_nc = np.median(n) + (total + math.log(share)) * ad / an
                    starts.append(
                        np.array([log_nc, np.median(d) + total + math.log(1 - share), math.log(an), math.log(ad)])
                    )
        return starts
    for alpha in (0.1, 0.2, 0.35, 0.5, 0.8):
        for beta in (0.1, 0.2, 0.35, 0.5, 0.8):
            # terms are divided by their value at the middle run, to be of one size
            x, y = np.exp(-alpha * (n - n.mean())), np.exp(-beta * (d - d.mean()))
            a, b, e = np.maximum(nnls(np.stack([x, y, np.ones_like(x)], 1) / loss[:, None], np.ones_like(x))[0], 1e-3)
            starts.append(
                np.array([math.log(a) + alpha * n.mean(), math.log(b) + beta * d.mean(), math.log(e), alpha, beta])
            )
    return starts


def _named_constants(theta: Any, scale: float, form: str) -> dict[str, float]:
    """The constants of a law, {name: value}, in the original unit of the loss. `theta`: the constants in the order of
    `_log_loss`; `scale`: the number by which the losses were divided before the fit; `form`: "hoffmann", "kaplan" or
    "compute"."""
    t = [float(value) for value in theta]
    if form == "compute":
        return {"Cc": math.exp(t[0] + math.log(scale) / t[1]), "alpha": t[1]}
    if form == "hoffmann":
        a, b, e = (math.exp(value) * scale for value in t[:3])
        return {"E": e, "A": a, "B": b, "alpha": t[3], "beta": t[4]}
    an, ad = math.exp(t[2]), math.exp(t[3])
    unit = math.log(scale)  # loss x k: both terms of the sum x k^(1 / aD)
    return {"Nc": math.exp(t[0] + unit / an), "Dc": math.exp(t[1] + unit / ad), "aN": an, "aD": ad}


def error_on_the_largest(points: Sequence[Point], form: str = "hoffmann") -> tuple[list[Point], list[float]]:
    """Check a law on the runs of the largest size: fit it to all other runs, and predict the losses of the largest
    size. Returns (the points of the largest size, the relative error of the prediction for each). `form`: "hoffmann",
    "kaplan" or "compute". Raises UndeterminedLaw where the other runs do not determine the law."""
    top = max(point.n for point in points)
    rest = [point for point in points if point.n < top]
    law = fit(rest, form, resamples=1)
    left_out = [point for point in points if point.n == top]
    return left_out, [law.loss(point.n, point.d) / point.loss - 1 for point in left_out]
