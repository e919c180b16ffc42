"""Comparisons, their p-values and Holm's correction, verdicts (eval/statistics/comparison.py, verdicts.py)."""

from math import nan, sqrt

import numpy as np
import pytest
from scipy import stats

from eval.statistics.comparison import Comparison, apply_holm_correction, compare, holm
from eval.statistics.items import FEWEST_ITEMS, Stratum, independent_items, item_variance, stratum_of_clusters
from eval.statistics.parts import LEVEL, Variance, interval_half_width
from eval.statistics.seeds import arms_that_scatter_more, seed_variance
from eval.statistics.verdicts import possible_ranks, verdict
from tests.test_noise import NO_ITEMS, table


def test_equivalence_is_two_one_sided_tests():
    x = np.random.default_rng(32).normal(size=(2, 6))
    d = x[1] - x[0]
    c = compare(float(d.mean()), seed_variance(table(x), "1", "0"), NO_ITEMS)
    least = abs(d.mean()) + stats.t.isf(0.05, 5) * stats.sem(d)
    for margin in (0.3, 0.99 * least, 1.01 * least, 3.0):
        lower = stats.ttest_1samp(d, -margin, alternative="greater").pvalue
        upper = stats.ttest_1samp(d, margin, alternative="less").pvalue
        assert c.is_equivalent(margin) == (max(lower, upper) <= 0.05)
    assert verdict(c, True, 3, 3.0, "points") == ("equivalent", "equivalent within 3 points")
    assert verdict(c, True) == ("undecided", "undecided: within noise")
    assert not c.is_equivalent(None) and not compare(0.0, None, NO_ITEMS).is_equivalent(9.0)
    real = compare(0.1, Variance(0.01**2, 8), NO_ITEMS)
    assert verdict(real, False, 3, 0.5).words == "worse by 0.100 (10 × noise, p < 0.0001), less than the margin"


def test_few_independent_items_give_no_verdict():
    seeds = Variance(0.001**2, 4)
    for n in (1, FEWEST_ITEMS - 1):
        part = item_variance([Stratum(np.full((3, n), 0.5), np.ones(n))])
        c = compare(0.5, seeds, part, independent=n)
        assert (
            not c.is_significant
            and verdict(c, False).words == f"undecided: {n} independent item{'s' * (n > 1)}, 3 are needed"
        )
        both = apply_holm_correction({"few": c, "enough": compare(0.5, seeds, Variance(0.0, 9.0))})
        assert not both["few"].is_significant and both["enough"].adjusted == pytest.approx(
            compare(0.5, seeds, Variance(0.0, 9)).p
        )
    assert compare(0.5, seeds, Variance(0.0, 2.0), independent=FEWEST_ITEMS).is_significant
    one_passage = stratum_of_clusters(np.full((3, 50), 0.5), np.ones(50), ["the same"] * 50)
    assert (
        independent_items([Stratum(np.ones((1, 900)), np.ones(900)), one_passage]) == 1
        and independent_items([]) is None
    )


def test_p_is_the_level_at_which_the_interval_touches_zero():
    seeds, items = Variance(0.02, 1), Variance(0.01, 80)
    for difference in (1e-6, 0.1, -0.7, 5.0):
        c = compare(difference, seeds, items)
        assert interval_half_width(c.p, seeds, items) == pytest.approx(abs(difference), rel=1e-6)
        assert (c.p <= 0.05) == (abs(difference) >= c.threshold)
    assert compare(0.0, seeds, items).p == 1.0
    assert compare(1.0, Variance(0.0, 1), NO_ITEMS).p < 1e-12


def test_holm():
    """Worked by hand: .005 x 4, .01 x 3, .03 x 2, .04 x 1, then none below the one before."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, nan, 0.6]) == pytest.approx([1.0, nan, 1.0], nan_ok=True)
    both = apply_holm_correction(
        {"a": compare(1.0, Variance(0.01, 4), NO_ITEMS), "b": compare(0.0, Variance(0.01, 4), NO_ITEMS)}
    )
    assert both["a"].adjusted == pytest.approx(2 * both["a"].p)


def test_a_p_value_close_to_one_is_found():
    """One of 8,000 random differences, for which scipy's root finder takes 102 steps, more than its default allows."""
    size, part = 0.006969131050237609, Variance(1.7040748062433322, 4)
    assert compare(size, part, NO_ITEMS).p == pytest.approx(2 * stats.t.sf(size / sqrt(part.variance), 4), rel=1e-9)


def test_verdicts_in_words():
    c = compare(-0.0621, Variance(0.004**2, 2), Variance(0.003**2, 60))
    assert verdict(c, higher_is_better=False).words == f"better by 0.062 (12 × noise, p = {c.p:.2g})"
    assert verdict(c, higher_is_better=True).words == f"worse by 0.062 (12 × noise, p = {c.p:.2g})"
    by_t = 2 * stats.t.sf(6.0, 4)  # 6 standard errors with 4 degrees of freedom are not what 6 sigma are
    assert (
        verdict(compare(3.0, Variance(0.25, 4), NO_ITEMS), True, 1).words
        == f"better by 3.0 (6 × noise, p = {by_t:.2g})"
    )
    corrected = apply_holm_correction(
        {"a": compare(3.0, Variance(0.25, 4), NO_ITEMS), "b": compare(0.1, Variance(0.25, 4), NO_ITEMS)}
    )
    assert verdict(corrected["a"], True, 1).words == f"better by 3.0 (6 × noise, p = {2 * by_t:.2g})"
    assert verdict(compare(0.01, Variance(0.004**2, 1), NO_ITEMS), False).words == "undecided: within noise"
    assert verdict(compare(0.01, Variance(0.0, 1), NO_ITEMS), False).words == "worse by 0.010 (∞ × noise, p < 0.0001)"
    assert verdict(compare(9.0, None, NO_ITEMS), False).words == "undecided: one seed, not replicated"
    by_items = verdict(compare(9.0, None, Variance(100.0, 50)), False)
    assert (
        by_items.words == "undecided: one seed, within noise" and not by_items.decided and by_items.label == "undecided"
    )
    floor = Variance(2 * 5.0**2, 8)
    assert verdict(compare(9.0, floor, NO_ITEMS, replicated=False), False).words == "undecided: one seed, within noise"
    assert (
        verdict(compare(99.0, floor, NO_ITEMS, replicated=False), False).words == "undecided: one seed, not replicated"
    )
    assert (
        not compare(99.0, floor, NO_ITEMS, replicated=False).is_significant
        and compare(99.0, floor, NO_ITEMS).is_significant
    )
    alone = compare(0.1, Variance(0.001, 4), NO_ITEMS)
    assert alone.p < 0.05 < 3 * alone.p  # real alone, not among three
    three = apply_holm_correction(
        {"a": alone, "b": compare(0, alone.seeds, NO_ITEMS), "c": compare(0, alone.seeds, NO_ITEMS)}
    )
    assert isinstance(three["a"], Comparison) and verdict(three["a"], True).words == "undecided: within noise"
    assert abs(three["a"].difference) < three["a"].threshold  # what it counts above says the same


def test_a_difference_of_several_counts_exactly_above_its_threshold():
    """As Holm's p says; and the largest has Bonferroni's threshold."""
    rng = np.random.default_rng(3)
    for _ in range(200):
        seeds = Variance(1.0, int(rng.integers(2, 12)))
        several = {str(i): compare(float(d), seeds, Variance(0.1, 50)) for i, d in enumerate(rng.normal(0, 5, 4))}
        found = apply_holm_correction(several)
        assert all(c.is_significant == (abs(c.difference) > c.threshold) for c in found.values())
        first = max(found.values(), key=lambda c: abs(c.difference))
        assert first.threshold == pytest.approx(interval_half_width(LEVEL / 4, seeds, Variance(0.1, 50)))
    alone = compare(1.0, seeds, NO_ITEMS)
    assert apply_holm_correction({"a": alone})["a"].threshold == alone.threshold


def test_places_share_what_noise_does_not_tell_apart():
    pairs = [("a", "b"), ("a", "c"), ("b", "c"), ("a", "d"), ("b", "d"), ("c", "d")]
    counts = dict(zip(pairs, [False, True, True, True, False, True], strict=True))
    assert possible_ranks({"a": 1.0, "b": 2.0, "c": 9.0, "d": 3.0}, counts, higher_is_better=False) == {
        "a": "1–2",
        "b": "1–3",
        "c": "4",
        "d": "2–3",
    }
    assert possible_ranks({"a": 1.0, "b": 2.0}, {("a", "b"): True}, higher_is_better=True) == {"a": "2", "b": "1"}


@pytest.mark.parametrize("higher_is_better", [True, False])
def test_a_tie_is_no_verdict_even_where_nothing_scatters(higher_is_better):
    """As of tasks that two arms answer alike at every seed: an interval of no width touches zero."""
    for seeds, items in (
        (Variance(0.0, 2), NO_ITEMS),
        (Variance(0.0, 2), Variance(0.0, 9)),
        (Variance(0.01, 2), Variance(0.1, 9)),
    ):
        c = apply_holm_correction({"a": compare(0.0, seeds, items), "b": compare(-0.0, seeds, items)})["b"]
        assert c.p == 1.0 and not c.is_significant
        assert verdict(c, higher_is_better).words == "undecided: within noise"
    assert (
        verdict(apply_holm_correction({"a": compare(0.0, Variance(0.0, 2), NO_ITEMS)})["a"], True, margin=0.01).kind
        == "equivalent"
    )


def test_results_that_are_equal_in_all_arms_and_seeds_have_no_verdict_and_no_arm_stands_out():
    results = {f"arm {i}": dict.fromkeys((1, 2, 3), 2.5) for i in range(4)}
    assert arms_that_scatter_more(results) == {} and seed_variance(results, "arm 1", "arm 0") == Variance(0.0, 6)
    c = apply_holm_correction({"a": compare(0.0, seed_variance(results, "arm 1", "arm 0"), NO_ITEMS)})["a"]
    assert verdict(c, False).kind == "undecided"


def test_a_thousand_arms_are_judged():
    """Least squares of a thousand arms, once for each, would take hours; equal arms have no verdict, another has."""
    x = np.random.default_rng(7).normal(size=(1000, 3))
    x[-1] += 50
    results = {str(a): dict(enumerate(map(float, row))) for a, row in enumerate(x)}
    compared = {
        arm: compare(
            float(np.mean(list(results[arm].values())) - x[0].mean()), seed_variance(results, arm, "0"), NO_ITEMS
        )
        for arm in [*list(results)[1:40], "999"]
    }
    assert [arm for arm, c in apply_holm_correction(compared).items() if c.is_significant] == ["999"]
