"""eval/statistics.py against scipy, closed forms and simulated studies."""

from math import nan, sqrt

import numpy as np
import pytest
from scipy import stats

from eval.statistics import (
    Comparison,
    Part,
    add,
    compare,
    family,
    holm,
    item_part,
    level_stderr,
    mean_stderr,
    quantile,
    ratio_stderr,
    seed_part,
    verdict,
)

NO_ITEMS = Part(0.0, np.inf)


def table(x: np.ndarray) -> dict[str, dict[int, float]]:
    """[arm, seed] -> {"0": {1: ..., 2: ...}, "1": ...}."""
    return {str(a): {s + 1: float(value) for s, value in enumerate(row)} for a, row in enumerate(x)}


@pytest.mark.parametrize("n", [3, 4, 7])
def test_two_arms_are_the_paired_t_test(n):
    x = np.random.default_rng(n).normal(size=(2, n)) + 5 * np.arange(n)
    expected = stats.ttest_rel(x[1], x[0])
    got = compare(float((x[1] - x[0]).mean()), seed_part(table(x), "1", "0"), NO_ITEMS)
    assert got.p == pytest.approx(expected.pvalue, rel=1e-6)
    assert got.noise == pytest.approx(stats.sem(x[1] - x[0]), rel=1e-9)
    low, high = expected.confidence_interval(0.95)
    assert got.threshold == pytest.approx((high - low) / 2, rel=1e-9)


def test_two_arms_with_two_seeds_are_the_ordinary_t_test():
    x = np.random.default_rng(9).normal(size=(2, 2))
    expected = stats.ttest_ind(x[1], x[0])
    got = compare(float((x[1] - x[0]).mean()), seed_part(table(x), "1", "0"), NO_ITEMS)
    assert (got.p, got.seeds.dof) == (pytest.approx(expected.pvalue, rel=1e-6), 2)


def test_the_residual_is_pooled_over_arms():
    x = np.random.default_rng(0).normal(size=(4, 3)) + np.arange(3) + 10 * np.arange(4)[:, None]
    centred = x - x.mean(0) - x.mean(1, keepdims=True) + x.mean()
    part = seed_part(table(x), "2", "0")
    assert part.dof == (4 - 1) * (3 - 1)
    assert part.variance == pytest.approx((centred**2).sum() / 6 * 2 / 3)


def test_missing_cells():
    x = np.random.default_rng(1).normal(size=(3, 3))
    full = table(x)
    # an arm with a single seed brings one number and one mean: nothing for the residual
    lonely = {**table(x[:2]), "2": {1: 4.0}}
    assert seed_part(lonely, "1", "0") == pytest.approx(seed_part(table(x[:2]), "1", "0"))
    assert seed_part(lonely, "2", "0") is None
    assert seed_part({"0": {1: 1.0}, "1": {1: 2.0}}, "1", "0") is None
    assert seed_part({"0": {1: 1.0, 2: 1.0}, "1": {}}, "1", "0") is None
    # one cell missing costs one degree of freedom, and the difference is over the seeds that are shared
    del full["2"][3]
    part = seed_part(full, "2", "0")
    assert part.dof == 3
    rest = seed_part(full, "1", "0")
    assert part.variance / rest.variance == pytest.approx((2 / 2) / (2 / 3))


def test_stderr_of_a_mean_and_of_a_ratio():
    rng = np.random.default_rng(2)
    hits = (rng.random(300) < 0.3).astype(float)
    assert mean_stderr(hits) == pytest.approx(stats.sem(hits))
    assert ratio_stderr(hits, np.ones(300)) == pytest.approx(stats.sem(hits))
    assert np.isnan(mean_stderr(hits[:1])) and np.isnan(ratio_stderr(hits[:1], np.ones(1)))
    sizes = rng.lognormal(6, 1, 400)
    bits = sizes * rng.normal(2.5, 0.4, 400)
    drawn = rng.integers(0, 400, (4000, 400))
    bootstrap = np.std(bits[drawn].sum(1) / sizes[drawn].sum(1))
    assert ratio_stderr(bits, sizes) == pytest.approx(bootstrap, rel=0.06)


def test_items_are_stratified_by_task():
    rng = np.random.default_rng(3)
    a, b = rng.normal(size=50), 3 * rng.normal(size=20)
    part = item_part([(a, np.ones(50)), (b, np.ones(20))])
    assert sqrt(part.variance) == pytest.approx(sqrt(stats.sem(a) ** 2 + stats.sem(b) ** 2) / 2)
    # the difference of two independent means has the same variance and degrees of freedom as their sum
    assert part.dof == pytest.approx(stats.ttest_ind(a, b, equal_var=False).df)
    assert add([NO_ITEMS, NO_ITEMS]) == NO_ITEMS


def test_level_counts_seeds_and_items():
    x = np.array([[1.0, 3.0], [2.0, 8.0]])
    pooled = (np.var(x[0], ddof=1) + np.var(x[1], ddof=1)) / 2
    assert level_stderr(table(x), "0", Part(0.25, 9)) == pytest.approx(sqrt(pooled / 2 + 0.25))
    assert level_stderr({"0": {1: 5.0}}, "0", Part(0.25, 9)) == pytest.approx(0.5)


def test_p_is_the_level_at_which_the_interval_touches_zero():
    seeds, items = Part(0.02, 1), Part(0.01, 80)
    for difference in (1e-6, 0.1, -0.7, 5.0):
        c = compare(difference, seeds, items)
        assert quantile(c.p, seeds, items) == pytest.approx(abs(difference), rel=1e-6)
        assert (c.p <= 0.05) == (abs(difference) >= c.threshold)
    assert compare(0.0, seeds, items).p == 1.0
    assert compare(1.0, Part(0.0, 1), NO_ITEMS).p < 1e-12


def test_holm():
    """Worked by hand: .005 x 4, .01 x 3, .03 x 2, .04 x 1, then none below the one before."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, nan, 0.6]) == pytest.approx([1.0, nan, 1.0], nan_ok=True)
    both = family({"a": compare(1.0, Part(0.01, 4), NO_ITEMS), "b": compare(0.0, Part(0.01, 4), NO_ITEMS)})
    assert both["a"].adjusted == pytest.approx(2 * both["a"].p)


def studies(rng, arms, seeds, items, seed_sd, item_sd, n, shared=0.0):
    """Studies without any true difference: (comparison of arm 1 with arm 0) x n."""
    for _ in range(n):
        y = rng.normal(0, shared, (1, seeds, 1))
        y = y + rng.normal(0, seed_sd, (arms, seeds, 1)) + rng.normal(0, item_sd, (arms, 1, items))
        x = y.mean(2)
        yield compare(float(x[1].mean() - x[0].mean()), seed_part(table(x), "1", "0"),
                      item_part([((y[1] - y[0]).mean(0), np.ones(items))]))  # fmt: skip


@pytest.mark.parametrize(
    "arms, seeds, item_sd, shared, least",
    [
        (2, 2, 0.0, 0.0, 0.04),
        (3, 2, 0.0, 0.0, 0.04),
        (3, 2, 0.0, 5.0, 0.04),  # what the arms of a seed share is taken out,
        (2, 2, 0.0, 1.0, 0.01),  # but with one d.o.f.
        (2, 3, 2.0, 0.0, 0.01),
        (2, 2, 2.0, 0.0, 0.01),
        (2, 2, 8.0, 0.0, 0.0),
    ],
)
def test_rate_of_false_verdicts_is_at_most_five_percent(arms, seeds, item_sd, shared, least):
    """3,000 null studies: 5 % is 150, standard deviation 12. Without item noise it is 5 % exactly."""
    found = studies(np.random.default_rng(11), arms, seeds, 40, 1.0, item_sd, 3000, shared)
    wrong = np.mean([verdict(c, False) != "within noise" for c in found])
    assert least <= wrong <= 0.061


def test_welch_satterthwaite_would_be_wrong_too_often():
    """Why `compare` uses Banerjee's interval: see the docstring of the module."""
    wrong = []
    for c in studies(np.random.default_rng(11), 2, 3, 40, 1.0, 1.0, 3000):
        both = add([c.seeds, c.items])
        wrong.append(abs(c.difference) > stats.t.ppf(0.975, both.dof) * sqrt(both.variance))
    assert np.mean(wrong) > 0.065


def test_verdicts_in_words():
    c = compare(-0.0621, Part(0.004**2, 2), Part(0.003**2, 60))
    assert verdict(c, higher_is_better=False) == "better by 0.062 (12 × noise)"
    assert verdict(c, higher_is_better=True) == "worse by 0.062 (12 × noise)"
    assert verdict(compare(3.0, Part(0.1, 4), Part(0.1, 60)), True, 1) == "better by 3.0 (7 × noise)"
    assert verdict(compare(0.01, Part(0.004**2, 1), NO_ITEMS), False) == "within noise"
    assert verdict(compare(0.01, Part(0.0, 1), NO_ITEMS), False) == "worse by 0.010 (∞ × noise)"
    assert verdict(compare(9.0, None, NO_ITEMS), False) == "one seed: not replicated"
    alone = compare(0.1, Part(0.001, 4), NO_ITEMS)
    assert alone.p < 0.05 < 3 * alone.p  # real alone, not among three
    three = family(
        {"a": alone, "b": compare(0, alone.seeds, NO_ITEMS), "c": compare(0, alone.seeds, NO_ITEMS)}
    )
    assert isinstance(three["a"], Comparison) and verdict(three["a"], True) == "within noise"
