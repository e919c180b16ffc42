"""The least difference between arms that a study can detect, computed from the noise that earlier studies recorded.

The rule is that of the report's verdicts (eval/statistics, which must not be imported here): a difference is
significant above sqrt(t1**2 v1 + t2**2 v2). v1 is the variance from the seeds, v2 that from the sample of evaluated
items. t1 and t2 are the quantiles of Student's t for their degrees of freedom. A study estimates both variances from
its own results. So each estimate is random: the true variance times a chi-square variable divided by its degrees of
freedom.

numpy and scipy.special are imported inside functions. Importing them takes a quarter of a second, and `make status`
does not need them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from math import inf, isinf, lgamma, log, sqrt
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ablations import safe_files
from ablations.rundir import NUMBER
from ablations.safe_files import Damaged
from ablations.values import join_names

if TYPE_CHECKING:
    import numpy as np

    from ablations.run import Run

RECORDS = Path(__file__).parents[1] / "records"
LEVEL = 0.05  # significance level: the chance of any false verdict of a study on a metric, if no arms differ
POWER = 0.8  # the chance to detect a true difference; Cohen's convention
# Noise of the mean of 27 tasks, in points, of decoders of 1.3B parameters, computed from BigScience's published results
# of each task: the standard error of one model's mean, taken for that of a difference between two models too (assumed:
# so it is where half of the variance is common to both, as they answer the same items); and the standard deviation from
# checkpoint to checkpoint, taken for that between seeds (assumed: each of its arms had one seed).
SUITE_SIZES = ("1b3", "bigscience-1b3")
SUITE_ERROR, SUITE_SEED_SD = 0.41, 0.27
TWO_ARMS = 2.0  # the sum of the squared weights, 1 and -1, of a difference between two arms
# Numbers of points of the Gauss-Legendre quadratures over the estimated standard deviations, from seeds and from items.
# With few groups of items the tails reach far, and take more points. Measured: from 0.6 degrees of freedom of the items
# on, five digits agree with those of 1,000 points.
NODES, ITEM_NODES = 64, 400
LARGEST_DIFFERENCE = {"points": 100.0}  # {unit: the largest difference that there can be}
CORPORA_NAMED = 3  # corpora that a plan names where a record is of other text than the study
NOISE_FORM = {"unit": str, "seed_sd": NUMBER, "items": NUMBER, "items_dof?": NUMBER}  # of a metric, in a record


@cache
def gauss_legendre(nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Gauss-Legendre quadrature from -1 to 1: (points, weights), each [nodes]. `nodes`: the number of points."""
    import numpy as np

    return np.polynomial.legendre.leggauss(nodes)


def relative_sd_distribution(dof: float, nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """The distribution of an estimated standard deviation s relative to the true one, sigma: (values of s / sigma,
    their probabilities), each [nodes]. With infinite `dof` it is the single value 1.

    The integration is over u = sqrt(s). This puts more points at small s, which matter most for the tails with few
    degrees of freedom. Values further than 9 / sqrt(dof) from 1, more than 12 standard deviations of s, are left out.

    Args:
        dof: the degrees of freedom of the estimate.
        nodes: the number of values.
    """
    import numpy as np

    if isinf(dof):
        return np.ones(1), np.ones(1)
    points, weights = gauss_legendre(nodes)
    low, high = sqrt(max(0.0, 1 - 9 / sqrt(dof))), sqrt(1 + 9 / sqrt(dof))
    u = low + (points + 1) / 2 * (high - low)
    s = u * u
    log_scale = log(2) + dof / 2 * log(dof / 2) - lgamma(dof / 2)
    return s, np.exp(log_scale + (dof - 1) * np.log(s) - dof * s * s / 2) * u * weights * (high - low)


@cache
def two_sided_t_quantile(dof: float, level: float) -> float:
    """The value that |t| exceeds with probability `level`, for Student's t. `dof`: the degrees of freedom; inf: the
    standard normal distribution."""
    from scipy.special import ndtri, stdtrit

    return -float(ndtri(level / 2) if isinf(dof) else stdtrit(dof, level / 2))


def power(
    difference: float,
    seed_variance: float,
    item_variance: float,
    dof: float,
    level: float = LEVEL,
    items_dof: float = inf,
) -> float:
    """The probability that a difference between two arms is found significant, in either direction.

    Args:
        difference: the true difference.
        seed_variance: the variance of the measured difference from the seeds.
        item_variance: the variance of the measured difference from the sample of evaluated items.
        dof: the degrees of freedom of the estimate of `seed_variance`.
        level: the significance level, two-sided.
        items_dof: the degrees of freedom of the estimate of `item_variance`: the effective number of groups of items,
            minus one.
    """
    from scipy.special import ndtr

    s, probability = relative_sd_distribution(dof, NODES)
    s_items, probability_items = relative_sd_distribution(items_dof if item_variance else inf, ITEM_NODES)
    t, t_items = two_sided_t_quantile(dof, level), two_sided_t_quantile(items_dof, level)
    sigma = sqrt(seed_variance + item_variance)
    thresholds = ((t * s) ** 2 * seed_variance + (t_items * s_items[:, None]) ** 2 * item_variance) ** 0.5
    detected = ndtr((difference - thresholds) / sigma) + ndtr((-difference - thresholds) / sigma)
    return float(probability_items @ detected @ probability)


def detectable_difference(
    seed_sd: float,
    item_error: float,
    arms: int,
    seeds: int,
    tests: int = 0,
    squares: float = TWO_ARMS,
    items_dof: float = inf,
) -> float:
    """The least difference from the baseline that a study detects with probability POWER, in the unit of the metric.
    inf with one seed or one arm. The significance level LEVEL is divided by the number of comparisons (Bonferroni, the
    first step of Holm's correction).

    Args:
        seed_sd: the standard deviation between runs that differ only in the seed.
        item_error: the standard error of a difference between two arms from the sample of evaluated items.
        arms: the number of arms of the study, including the baseline.
        seeds: the number of seeds of each arm.
        tests: the number of comparisons; 0: one for each arm besides the baseline.
        squares: the sum of the squared weights of the arms: TWO_ARMS for a difference between two arms, another number
            for an effect of a factorial.
        items_dof: the degrees of freedom of the estimate of `item_error`; inf: it is known exactly, as with very many
            groups of items.
    """
    if seeds < 2 or arms < 2:
        return inf
    # eval/statistics/seeds.py: two arms with two seeds are the ordinary t-test, else the seeds are taken out. Of three
    # arms and more one may stand out by chance, which takes some 2 % of POWER (simulated there)
    dof = 2 if arms == seeds == 2 else (arms - 1) * (seeds - 1)
    level = LEVEL / (tests or arms - 1)
    v1, v2 = squares * seed_sd * seed_sd / seeds, squares / TWO_ARMS * item_error * item_error
    if not v1 + v2:
        return 0.0
    return invert_increasing_function(
        lambda difference: power(difference, v1, v2, dof, level, items_dof), POWER, start=sqrt(v1 + v2)
    )


def invert_increasing_function(function: Callable[[float], float], value: float, start: float = 1.0) -> float:
    """The x >= 0 at which an increasing function reaches a value, to five digits. inf where it stays below the value up
    to 1e6 times `start`.

    Args:
        function: the function.
        value: the value to reach.
        start: the upper end of the first interval that is searched; it is doubled until the function reaches the value.
    """
    low, high = 0.0, start
    while function(high) < value:
        low, high = high, 2 * high
        if high > 1e6 * start:  # quantiles of t with less than one degree of freedom can exceed any difference
            return inf
    while high - low > 1e-5 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if function(middle) < value else (low, middle)
    return high


def recorded_noise(
    run: Run, records: Path = RECORDS, texts: Mapping[str, str] = MappingProxyType({})
) -> dict[str, Any] | None:
    """The noise from seeds and from evaluated items, in the record of an earlier study of the same size and kind of
    budget (train.budget). None where no record has it. A record of the same training text is preferred, then the one
    with the nearest number of training tokens, by ratio.

    Args:
        run: a planned run.
        records: the folder of the records of earlier studies.
        texts: {corpus: sha256 of its training text, or "" where that is not known} of the planned study; empty: the
            corpus of `run`.

    Returns:
        {"record": its name, "tokens": its training tokens, "corpora": the names of its corpora, "other_text": whether
        its training text differs from `texts`, "noise": {metric: noise}}. Noise is {"seed_sd": the standard deviation
        between seeds, "dof": its degrees of freedom, "items": the standard error of a difference between two arms from
        the sample of items, "items_dof": its degrees of freedom, "unit": of the metric}.
    """
    candidates = []
    for path in sorted(records.glob("*/run.json")):
        record: dict[str, Any] | None = None
        with suppress(Damaged):  # a damaged record is ignored
            record = safe_files.read_json(path, types={"tokens": int, "noise": dict, "corpora": list})
        if (
            record
            and record.get("size") == run.size
            and record.get("budget", "tokens") == run.train.budget
            and is_recorded_noise(record.get("noise"))
        ):
            recorded = {
                entry["corpus"]: entry["sha256"]
                for entry in record.get("corpora", [])
                if not safe_files.first_misfit(entry, {"corpus": str, "sha256": str})
            }
            candidates.append(
                {
                    "record": path.parent.name,
                    "corpora": list(recorded),
                    "other_text": not _is_same_text(texts or {run.data.corpus: ""}, recorded),
                    **{key: record[key] for key in ("tokens", "noise")},
                }
            )
    tokens = run.known_tokens

    def distance(candidate: dict[str, Any]) -> tuple[bool, float]:
        return candidate["other_text"], abs(log(candidate["tokens"] / tokens)) if tokens else 0.0

    return min(candidates, key=distance, default=None)


def _is_same_text(planned: Mapping[str, str], recorded: Mapping[str, str]) -> bool:
    """Whether two studies read the same training texts. The sha256 of the texts are compared where those of `planned`
    are all known, else the names of the corpora. `planned`, `recorded`: {corpus: sha256, or "" where it is not
    known}."""
    if all(planned.values()):
        return set(planned.values()) == set(recorded.values())
    return planned.keys() == recorded.keys()


def is_recorded_noise(noise: Any) -> bool:
    """Whether a JSON value has the form of the entry "noise" in a record, {metric: {"seed_sd", "items", "unit", ...}},
    with at least one metric."""
    return bool(noise) and all(
        not safe_files.first_misfit(entry, NOISE_FORM)
        and min(entry["seed_sd"], entry["items"]) >= 0
        and (entry.get("items_dof") is None or entry["items_dof"] > 0)
        for entry in noise.values()
    )


def describe_detectable(
    run: Run,
    arms: int,
    seeds: int,
    records: Path = RECORDS,
    tests: int = 0,
    effects: Mapping[str, float] = MappingProxyType({}),
    texts: Mapping[str, str] = MappingProxyType({}),
) -> str:
    """The line of `make plan` on the differences that a study can detect by the noise in a record, or the reason why
    they are unknown.

    Args:
        run: a run of the baseline.
        arms: the number of arms, including the baseline.
        seeds: the number of seeds of each arm.
        records: the folder of the records of earlier studies.
        tests: the number of comparisons; 0: one for each arm besides the baseline.
        effects: the effects of a factorial, {name: sum of the squared weights of the arms}.
        texts: the training texts of the study, see `recorded_noise`.
    """
    record = recorded_noise(run, records, texts)
    if not record:
        budget = "" if run.train.budget == "tokens" else f" under a budget of {run.train.budget}"
        folder = f"{records.parent.name}/{records.name}"
        return f"what it can see: unknown, no record in {folder} has the noise at size {run.size}{budget}"
    if arms < 2:
        return "what it can see: nothing is compared"
    if seeds < 2:
        return "what it can see: nothing, with one seed no difference is replicated"

    def least_differences(squares: float) -> str:
        parts = []
        for name, noise in record["noise"].items():
            dof = noise.get("items_dof") or inf  # where a record has no degrees of freedom, many are assumed
            least = detectable_difference(noise["seed_sd"], noise["items"], arms, seeds, tests, squares, dof)
            amount = f"{least:.2g}" if least <= LARGEST_DIFFERENCE.get(noise["unit"], inf) else "none in"
            parts.append(f"{amount} {noise['unit']}" + (f" ({name})" if name not in noise["unit"] else ""))
        return " and ".join(parts)

    detected = [f"differences of {least_differences(TWO_ARMS)}"]
    detected += [f"{name} of {least_differences(squares)}" for name, squares in effects.items()]
    unknown = [name for name, noise in record["noise"].items() if not noise["items"]]
    caveat = f"; the items of {' and '.join(unknown)} count as no noise there, so it takes more" if unknown else ""
    names = join_names(record["corpora"][:CORPORA_NAMED]) + (", ..." if len(record["corpora"]) > CORPORA_NAMED else "")
    text = f" of other text ({names or 'not named'}), so it may see more or less" if record["other_text"] else ""
    return (
        f"what it can see with a chance of {POWER:.0%}: {', '.join(detected)}; "
        f"from the noise of {record['record']}, {record['tokens']:,} tokens{text}{caveat}"
    )


def describe_detectable_on_suite(run: Run, arms: int, seeds: int) -> str:
    """The line of `make plan` on the least difference that a study can detect in the mean score on BigScience's 27
    evaluation tasks. It follows from the noise of BigScience's published runs at 1.3B. "" for other sizes, encoders,
    runs whose budget is a time, and fewer than two arms or seeds.

    Args:
        run: a run of the baseline.
        arms: the number of arms, including the baseline.
        seeds: the number of seeds of each arm.
    """
    if run.size not in SUITE_SIZES or run.ends_by_clock or run.model.needs_mask_token or min(arms, seeds) < 2:
        return ""
    least = detectable_difference(SUITE_SEED_SD, SUITE_ERROR, arms, seeds)
    return (
        f"on the 27 tasks (TASKS=suite) it would see {least:.2g} points of their mean: by an error of {SUITE_ERROR} "
        f"points from items and {SUITE_SEED_SD} between seeds (assumed after BigScience's published results at 1.3B)"
    )
