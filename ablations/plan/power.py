"""The least difference that a study can see, before it is run: from the noise that earlier ones recorded.

The same rule as the report's verdict (eval/statistics), which this may not import: a difference counts above
sqrt(t**2 v1 + z**2 v2), t of Student with the seeds' degrees of freedom, v1 and v2 the variances that seeds and items
give to it. What the seeds will give is not known but drawn: s**2 / sigma**2 is chi-square over its degrees of freedom.

numpy and scipy.special are imported where they are needed: they take a quarter of a second, which `make status` and the
rest of a plan do not have to wait for.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from math import inf, isinf, lgamma, log, sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablations import safe_files
from ablations.safe_files import Damaged

if TYPE_CHECKING:
    import numpy as np

RECORDS = Path(__file__).parents[1] / "records"
LEVEL = 0.05  # chance of any wrong verdict on a metric where there is no difference
POWER = 0.8  # chance to see a difference that is there; Cohen's convention
NODES = 1200  # of the integral over s; the chance to see a difference is then exact to 1e-5 (tests/test_statistics.py)


def standard_deviations(dof: float) -> tuple[np.ndarray, np.ndarray]:
    """Values of s / sigma and their probabilities, [NODES]: the distribution of an estimated standard deviation.

    Midpoints in u, s = u**2: small s, which decide the tails for few degrees of freedom, are the densest.
    """
    import numpy as np

    if isinf(dof):
        return np.ones(1), np.ones(1)
    top = sqrt(1 + 9 / sqrt(dof))
    step = top / NODES
    u = (np.arange(NODES) + 0.5) * step
    s = u * u
    log_scale = log(2) + dof / 2 * log(dof / 2) - lgamma(dof / 2)
    return s, np.exp(log_scale + (dof - 1) * np.log(s) - dof * s * s / 2) * 2 * u * step


def quantile(dof: float, level: float) -> float:
    """The value that the absolute value of Student's t exceeds with probability `level`; with infinite degrees of
    freedom, of a standard normal."""
    from scipy.special import ndtri, stdtrit

    return -float(ndtri(level / 2) if isinf(dof) else stdtrit(dof, level / 2))


def power(difference: float, seeds: float, items: float, dof: float, level: float = LEVEL) -> float:
    """The probability that a true difference is called significant, in either direction.

    seeds, items: variances of the difference that come from each. dof: of the estimate of the first.
    """
    from scipy.special import ndtr

    s, probability = standard_deviations(dof)
    t, z = quantile(dof, level), quantile(inf, level)
    sigma = sqrt(seeds + items)
    thresholds = (t * t * s * s * seeds + z * z * items) ** 0.5
    detected = ndtr((difference - thresholds) / sigma) + ndtr((-difference - thresholds) / sigma)
    return float(probability @ detected)


def detectable(sd: float, items: float, arms: int, seeds: int) -> float:
    """The least difference from the baseline that such a study sees with chance POWER, each arm corrected for all
    (Bonferroni: what Holm's correction asks of the first). inf: with one seed nothing is seen.

    Args:
        sd: standard deviation of a run from the seed alone, in the units of the metric.
        items: standard error that the items give to a difference.
        arms: of the study, the baseline too.
        seeds: of each arm.
    """
    if seeds < 2 or arms < 2:
        return inf
    # eval/statistics/seeds.py: two arms with two seeds are the ordinary t-test, else the seeds are taken out. Of three
    # arms and more one may stand out by chance, which takes some 2 % of POWER (simulated there)
    dof = 2 if arms == seeds == 2 else (arms - 1) * (seeds - 1)
    level = LEVEL / (arms - 1)
    v1, v2 = 2 * sd * sd / seeds, items * items
    if not v1 + v2:
        return 0.0
    return solve(lambda difference: power(difference, v1, v2, dof, level), POWER, start=sqrt(v1 + v2))


def solve(rising: Callable[[float], float], value: float, start: float = 1.0) -> float:
    """The x >= 0 at which an increasing function has the given value, to five digits."""
    low, high = 0.0, start
    while rising(high) < value:
        low, high = high, 2 * high
    while high - low > 1e-5 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < value else (low, middle)
    return high


def recorded(size: str, tokens: int | None, records: Path = RECORDS, budget: str = "tokens") -> dict[str, Any] | None:
    """The noise in the record of the study of this size whose budget is the nearest; None where there is none.

    Args:
        tokens: the budget; None where it is a wall clock, and then `budget` says which: a record has to have the same.

    Returns:
        {"record": its name, "tokens": its budget, "noise": {metric: {"seed_sd", "dof", "items", "unit"}}}.
    """
    candidates = []
    for path in sorted(records.glob("*/run.json")):
        record: dict[str, Any] | None = None
        with suppress(Damaged):  # a damaged record tells nothing, and stops no plan
            record = safe_files.read_json(path, types={"tokens": int, "noise": dict})
        if record and record.get("size") == size and record.get("noise") and record.get("budget", "tokens") == budget:
            candidates.append({key: record[key] for key in ("tokens", "noise")} | {"record": path.parent.name})
    return min(
        candidates, key=lambda candidate: abs(log(candidate["tokens"] / tokens)) if tokens else 0.0, default=None
    )


def foresee(
    size: str, tokens: int | None, arms: int, seeds: int, records: Path = RECORDS, budget: str = "tokens"
) -> str:
    """The lines of `make plan` on the differences that the study can detect. `tokens`, `budget`: as in `recorded`."""
    known = recorded(size, tokens, records, budget)
    if not known:
        return (
            f"what it can see: unknown, no record in {records.parent.name}/{records.name} has the noise at size {size}"
            + ("" if budget == "tokens" else f" under a budget of {budget}")
        )
    if arms < 2:
        return "what it can see: nothing is compared"
    if seeds < 2:
        return "what it can see: nothing, with one seed no difference is replicated"
    parts = []
    for name, noise in known["noise"].items():
        least = detectable(noise["seed_sd"], noise["items"], arms, seeds)
        parts.append(f"{least:.2g} {noise['unit']}" + (f" ({name})" if name not in noise["unit"] else ""))
    return (
        f"what it can see with a chance of {POWER:.0%}: differences of {' and '.join(parts)}; "
        f"from the noise of {known['record']}, {known['tokens']:,} tokens"
    )
