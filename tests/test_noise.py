"""The noise of seeds and of items (eval/statistics/seeds.py, items.py, bootstrap.py) against scipy, closed forms and a
likelihood."""

from math import inf, sqrt

import numpy as np
import pytest
from scipy import optimize, stats

from eval.statistics.bootstrap import bootstrap_differences, bootstrap_interval
from eval.statistics.comparison import compare
from eval.statistics.items import (
    Stratum,
    effective_number_of_items,
    independent_items,
    item_variance,
    item_variance_with_interaction,
    noise_parts,
    ratio_stderr,
    stderr_over_tasks,
    stratum_of_clusters,
)
from eval.statistics.parts import LEVEL, Variance, sum_of_variances
from eval.statistics.seeds import (
    arm_mean_stderr,
    arms_that_scatter_more,
    residual_squares,
    residual_squares_without_each_arm,
    seed_variance,
    welch_variance,
    within_arm_variance,
)

NO_ITEMS = Variance(0.0, np.inf)


def table(x: np.ndarray) -> dict[str, dict[int, float]]:
    """[arm, seed] -> {"0": {1: ..., 2: ...}, "1": ...}."""
    return {str(a): {s + 1: float(value) for s, value in enumerate(row)} for a, row in enumerate(x)}


@pytest.mark.parametrize("n", [3, 4, 7])
def test_two_arms_are_the_paired_t_test(n):
    x = np.random.default_rng(n).normal(size=(2, n)) + 5 * np.arange(n)
    expected = stats.ttest_rel(x[1], x[0])
    got = compare(float((x[1] - x[0]).mean()), seed_variance(table(x), "1", "0"), NO_ITEMS)
    assert got.p == pytest.approx(expected.pvalue, rel=1e-6)
    assert got.noise == pytest.approx(stats.sem(x[1] - x[0]), rel=1e-9)
    low, high = expected.confidence_interval(0.95)
    assert got.threshold == pytest.approx((high - low) / 2, rel=1e-9)


def test_two_arms_with_two_seeds_are_the_ordinary_t_test():
    x = np.random.default_rng(9).normal(size=(2, 2))
    expected = stats.ttest_ind(x[1], x[0])
    got = compare(float((x[1] - x[0]).mean()), seed_variance(table(x), "1", "0"), NO_ITEMS)
    assert (got.p, got.seeds.dof) == (pytest.approx(expected.pvalue, rel=1e-6), 2)


def test_the_residual_is_pooled_over_arms():
    x = np.random.default_rng(0).normal(size=(4, 3)) + np.arange(3) + 10 * np.arange(4)[:, None]
    centred = x - x.mean(0) - x.mean(1, keepdims=True) + x.mean()
    part = seed_variance(table(x), "2", "0")
    assert part.dof == (4 - 1) * (3 - 1)
    assert part.variance == pytest.approx((centred**2).sum() / 6 * 2 / 3)


def test_missing_cells():
    x = np.random.default_rng(1).normal(size=(3, 3))
    full = table(x)
    # an arm with a single seed brings one number and one mean: nothing for the residual
    lonely = {**table(x[:2]), "2": {1: 4.0}}
    with_lonely, without = seed_variance(lonely, "1", "0"), seed_variance(table(x[:2]), "1", "0")
    assert (with_lonely.variance, with_lonely.dof) == (pytest.approx(without.variance), without.dof)
    assert seed_variance(lonely, "2", "0") is None
    assert seed_variance({"0": {1: 1.0}, "1": {1: 2.0}}, "1", "0") is None
    assert seed_variance({"0": {1: 1.0, 2: 1.0}, "1": {}}, "1", "0") is None
    # one cell missing costs one degree of freedom, and the difference is over the seeds that are shared
    del full["2"][3]
    part = seed_variance(full, "2", "0")
    assert part.dof == 3
    rest = seed_variance(full, "1", "0")
    assert part.variance / rest.variance == pytest.approx((2 / 2) / (2 / 3))


def test_stderr_of_a_mean_and_of_a_ratio():
    rng = np.random.default_rng(2)
    hits = (rng.random(300) < 0.3).astype(float)
    assert ratio_stderr(hits, np.ones(300)) == pytest.approx(stats.sem(hits))
    assert np.isnan(ratio_stderr(hits[:1], np.ones(1)))
    sizes = rng.lognormal(6, 1, 400)
    bits = sizes * rng.normal(2.5, 0.4, 400)
    drawn = rng.integers(0, 400, (4000, 400))
    bootstrap = np.std(bits[drawn].sum(1) / sizes[drawn].sum(1))
    assert ratio_stderr(bits, sizes) == pytest.approx(bootstrap, rel=0.06)


def test_a_ratio_of_sums_is_no_mean_of_ratios():
    """Long documents count for as much as they are long, in the value, its error and its interval; against a bootstrap
    and a jackknife written out."""
    rng = np.random.default_rng(21)
    sizes = rng.lognormal(6, 1, 300)
    bits = sizes * (1 + 0.3 * np.log(sizes / sizes.mean()) + rng.normal(0, 0.2, 300))
    value, naive = bits.sum() / sizes.sum(), (bits / sizes).mean()
    left_out = [(bits.sum() - a) / (sizes.sum() - b) for a, b in zip(bits, sizes, strict=True)]
    error = np.sqrt(299 / 300 * ((np.array(left_out) - value) ** 2).sum())
    assert abs(naive - value) > 5 * error
    assert ratio_stderr(bits, sizes) == pytest.approx(error)
    assert sqrt(item_variance([Stratum(bits[None], sizes)]).variance) == pytest.approx(error)
    draws = bootstrap_differences([Stratum(bits[None], sizes)])
    assert draws.mean() == pytest.approx(value, abs=0.2 * error) and draws.std() == pytest.approx(error, rel=0.1)


def test_items_are_stratified_by_task():
    rng = np.random.default_rng(3)
    a, b = rng.normal(size=50), 3 * rng.normal(size=20)
    part = item_variance([Stratum(a[None], np.ones(50)), Stratum(b[None], np.ones(20))])
    assert sqrt(part.variance) == pytest.approx(sqrt(stats.sem(a) ** 2 + stats.sem(b) ** 2) / 2)
    # the difference of two independent means has the same variance and degrees of freedom as their sum
    assert part.dof == pytest.approx(stats.ttest_ind(a, b, equal_var=False).df)
    assert sum_of_variances([NO_ITEMS, NO_ITEMS]) == NO_ITEMS


def cluster_bootstrap(values: np.ndarray, sizes: np.ndarray, clusters: list, rng, draws: int = 4000) -> np.ndarray:
    """Whole clusters drawn with replacement, a loop written out."""
    groups = [np.flatnonzero(np.array(clusters) == name) for name in dict.fromkeys(clusters)]
    ratios = []
    for _ in range(draws):
        rows = np.concatenate([groups[i] for i in rng.integers(0, len(groups), len(groups))])
        ratios.append(values[rows].sum() / sizes[rows].sum())
    return np.array(ratios)


def test_items_that_share_a_passage_are_one():
    """The standard error and the bootstrap are those of whole passages drawn anew; and with an item in each cluster
    nothing changes."""
    rng = np.random.default_rng(22)
    clusters = [f"абзац {i}" for i in range(60) for _ in range(1 + int(rng.integers(1, 30)))]
    order = rng.permutation(len(clusters))
    clusters = [clusters[i] for i in order]
    shared = dict(zip(dict.fromkeys(clusters), rng.normal(0, 0.3, 60), strict=True))
    values = np.array([shared[name] for name in clusters]) + rng.normal(0, 0.5, len(clusters))
    ones = np.ones(len(clusters))
    known = cluster_bootstrap(values, ones, clusters, rng)
    stratum = stratum_of_clusters(values[None], ones, clusters)
    assert len(stratum.weights) == 60 == independent_items([stratum]) and stratum.weights.sum() == len(clusters)
    assert stratum.differences.sum() / stratum.weights.sum() == pytest.approx(values.mean())
    part = item_variance([stratum])
    assert sqrt(part.variance) == pytest.approx(known.std(), rel=0.08) and known.std() > 2 * stats.sem(values)
    assert bootstrap_differences([stratum]).std() == pytest.approx(known.std(), rel=0.05)
    assert part.dof == pytest.approx(effective_number_of_items(stratum.weights) - 1) and 30 < part.dof < 59
    alone = stratum_of_clusters(values[None], ones, [f"item {i}" for i in range(len(clusters))])
    assert alone.differences is not None and (alone.differences[0] == values).all() and (alone.weights == ones).all()
    # several seeds: the sums of each
    two = stratum_of_clusters(np.stack([values, 2 * values]), ones, clusters)
    assert two.differences[1] == pytest.approx(2 * two.differences[0])


def test_level_counts_seeds_and_items():
    x = np.array([[1.0, 3.0], [2.0, 8.0]])
    pooled = (np.var(x[0], ddof=1) + np.var(x[1], ddof=1)) / 2
    assert arm_mean_stderr(table(x), "0", Variance(0.25, 9)) == pytest.approx(sqrt(pooled / 2 + 0.25))
    assert arm_mean_stderr({"0": {1: 5.0}}, "0", Variance(0.25, 9)) == pytest.approx(0.5)


def mixed_by_likelihood(d_SN: np.ndarray) -> float:
    """Variance of the grand mean under d = mean + seed + item + rest: restricted maximum likelihood, numerically."""
    S, n = d_SN.shape
    seed, item = np.kron(np.eye(S), np.ones((n, 1))), np.kron(np.ones((S, 1)), np.eye(n))
    y, one = d_SN.ravel(), np.ones(S * n)

    def covariance(logs):
        a, b, c = np.exp(logs)
        return a * seed @ seed.T + b * item @ item.T + c * np.eye(S * n)

    def objective(logs):
        sign, logdet = np.linalg.slogdet(v := covariance(logs))
        inverse = np.linalg.inv(v)
        information = one @ inverse @ one
        rest = y - (one @ inverse @ y) / information
        return logdet + np.log(information) + rest @ inverse @ rest

    best = optimize.minimize(objective, np.zeros(3), method="Nelder-Mead", options={"xatol": 1e-7, "fatol": 1e-9})
    return 1 / (one @ np.linalg.inv(covariance(best.x)) @ one)


def test_seeds_and_items_together_are_the_mixed_model():
    rng = np.random.default_rng(4)
    d_SN = rng.normal(0, 1, (4, 1)) + rng.normal(0, 1.5, (1, 12)) + rng.normal(0, 1, (4, 12))
    table_ = {"0": dict.fromkeys(range(4), 0.0), "1": dict(enumerate(d_SN.mean(1)))}
    seeds, items = seed_variance(table_, "1", "0"), item_variance([Stratum(d_SN, np.ones(12))])
    assert seeds.variance + items.variance == pytest.approx(mixed_by_likelihood(d_SN), rel=1e-4)
    averaged = item_variance([Stratum(d_SN.mean(0, keepdims=True), np.ones(12))])
    assert averaged.variance > items.variance  # without the seeds apart, the rest is counted twice
    # nothing but noise of single answers: it is all in the seeds' part
    alone = item_variance([Stratum(rng.normal(0, 1, (3, 20000)), np.ones(20000))])
    assert alone.variance < 0.1 * item_variance([Stratum(rng.normal(0, 1, (1, 20000)), np.ones(20000))]).variance


def test_welch():
    rng = np.random.default_rng(6)
    a, b = rng.normal(0, 1, 4), rng.normal(1, 3, 6)
    expected = stats.ttest_ind(a, b, equal_var=False)
    got = compare(float(a.mean() - b.mean()), welch_variance(a, b), NO_ITEMS)
    assert (got.p, got.seeds.dof) == (pytest.approx(expected.pvalue, rel=1e-6), pytest.approx(expected.df))
    assert welch_variance(a, b[:1]) is None
    assert welch_variance([1.0, 1.0], [2.0, 2.0, 2.0]) == Variance(0.0, 1)


def test_noise_floor_is_pooled_over_the_arms_that_have_seeds():
    x = np.random.default_rng(7).normal(size=(3, 4)) + np.arange(3)[:, None]
    floor = within_arm_variance(table(x) | {"lonely": {1: 9.0}})
    assert floor.dof == 9 and floor.variance == pytest.approx(x.var(axis=1, ddof=1).mean())
    assert within_arm_variance({"a": {1: 1.0}, "b": {1: 2.0}}) is None


def test_bootstrap_over_items_is_paired_and_stratified():
    rng = np.random.default_rng(8)
    hits = rng.integers(-1, 2, (2, 400)).astype(float)
    sizes = rng.lognormal(6, 1, 150)
    bits = sizes * rng.normal(0.1, 0.4, (2, 150))
    draws = bootstrap_differences([(hits, np.ones(400)), (bits, sizes)])
    mean = (hits.mean() + bits.mean(0).sum() / sizes.sum()) / 2
    error = sqrt(stats.sem(hits.mean(0)) ** 2 + ratio_stderr(bits.mean(0), sizes) ** 2) / 2
    assert draws.mean() == pytest.approx(mean, abs=0.1 * error)
    assert draws.std() == pytest.approx(error, rel=0.06)
    assert (draws == bootstrap_differences([(hits, np.ones(400)), (bits, sizes)])).all()
    low, high = bootstrap_interval(draws)
    assert (high - low) / 2 == pytest.approx(1.96 * error, rel=0.08)
    shifted = bootstrap_differences([(hits + 5, np.ones(400))])  # what all items share does not spread
    assert shifted.std() == pytest.approx(bootstrap_differences([(hits, np.ones(400))]).std(), rel=1e-6)


def test_bootstrap_over_tasks_is_the_standard_error_of_the_tasks_mean():
    rng = np.random.default_rng(9)
    strata = [(rng.normal(mean, 1, (1, 50)), np.ones(50)) for mean in rng.normal(0, 2, 27)]
    each = [d.mean() for d, _ in strata]
    draws = bootstrap_differences(strata, tasks=True)
    assert draws.std() == pytest.approx(np.std(each) / 27**0.5, rel=0.05)
    width = 2 * stats.t.isf(0.025, 26) * stats.sem(each)
    assert np.subtract(*bootstrap_interval(draws, 27)[::-1]) == pytest.approx(width, rel=0.1)
    assert draws.mean() == pytest.approx(np.mean(each), abs=0.1 * stats.sem(each))
    assert np.isnan(bootstrap_differences(strata[:1], tasks=True)).all()


@pytest.mark.parametrize("tasks", [False, True])
def test_bootstrap_intervals_miss_as_often_as_they_say(tasks):
    """400 null studies: 5 % is 20, standard deviation 4.4."""
    rng, wrong = np.random.default_rng(10), 0
    for _ in range(400):
        strata = [(rng.normal(rng.normal() if tasks else 0, 1, (1, 60)), np.ones(60)) for _ in range(6)]
        draws = bootstrap_differences(strata, tasks, draws=1000 if tasks else 300, seed=int(rng.integers(1 << 30)))
        low, high = bootstrap_interval(draws, 6 if tasks else inf)
        wrong += low > 0 or high < 0
    assert 0.01 <= wrong / 400 <= 0.08


def test_the_error_over_tasks_is_that_of_clusters_drawn_for_all_of_them():
    """Against a bootstrap that draws the clusters of both tasks together; as if independent it would be too small."""
    rng = np.random.default_rng(15)
    shared = rng.normal(size=60)
    tasks = [np.repeat(shared, 3) + rng.normal(size=180), np.repeat(shared, 5) + rng.normal(size=300)]
    names = [[f"глава {i}" for i in range(60) for _ in range(times)] for times in (3, 5)]
    strata = [stratum_of_clusters(v[None], np.ones(len(v)), n) for v, n in zip(tasks, names, strict=True)]
    drawn = rng.integers(0, 60, (4000, 60))
    means = [task.reshape(60, -1).mean(1)[drawn].mean(1) for task in tasks]
    assert stderr_over_tasks(strata) == pytest.approx(np.std(sum(means) / 2), rel=0.05)
    one_by_one = [stderr_over_tasks([stratum]) for stratum in strata]
    assert one_by_one == pytest.approx([np.std(mean) for mean in means], rel=0.05)
    assert stderr_over_tasks(strata) > 1.2 * sqrt(one_by_one[0] ** 2 + one_by_one[1] ** 2) / 2
    single = stratum_of_clusters(np.ones((1, 3)), np.ones(3), ["глава"] * 3)
    assert np.isnan(stderr_over_tasks([])) and np.isnan(stderr_over_tasks([*strata, single]))


def test_the_variance_over_tasks_with_common_clusters_is_the_jackknife_that_leaves_a_cluster_out_of_all():
    rng = np.random.default_rng(14)
    names = ["пакет a", "пакет b", "пакет c", "пакет d"]
    first = Stratum(rng.normal(size=(2, 4)), rng.uniform(1, 3, 4), tuple(names))
    second = Stratum(rng.normal(size=(2, 3)), rng.uniform(1, 3, 3), ("пакет c", "пакет a", "пакет b"))
    alone = Stratum(rng.normal(size=(2, 5)), rng.uniform(1, 3, 5), tuple(f"item {i}" for i in range(5)))
    same_ids = Stratum(rng.normal(size=(2, 5)), rng.uniform(1, 3, 5), tuple(f"item {i}" for i in range(5)))

    def mean(left_out: str = "") -> float:
        ratios = []
        for d_SN, w_N, clusters in (first, second):
            kept = [name != left_out for name in clusters]
            ratios.append(d_SN.mean(0)[kept].sum() / w_N[kept].sum())
        return sum(ratios) / 4

    squares = sum((mean(name) - mean()) ** 2 for name in names)
    by_itself = sum(ratio_stderr(s.differences.mean(0), s.weights) ** 2 / 16 for s in (alone, same_ids))
    whole, _ = item_variance_with_interaction([first, alone, second, same_ids])
    assert whole.variance == pytest.approx(3 / 4 * squares + by_itself)
    assert stratum_of_clusters(np.ones((1, 3)), np.ones(3), ["пакет b", "пакет a", "пакет b"]).clusters == (
        "пакет a",
        "пакет b",
    )
    assert stratum_of_clusters(np.ones((1, 2)), np.ones(2), ["пакет b", "item 1"]).clusters == ("пакет b", "item 1")


def test_the_interaction_is_counted_once_in_the_part_that_asks_for_more():
    rng = np.random.default_rng(3)
    for spread in (0.0, 0.5, 3.0):
        d_SN = spread * rng.normal(size=(1, 4)) + rng.normal(size=(5, 4))
        strata, seeds = [Stratum(d_SN, np.ones(4))], Variance(float(d_SN.mean(1).var(ddof=1) / 5), 4)
        rest = (d_SN - d_SN.mean(0) - d_SN.mean(1, keepdims=True) + d_SN.mean()).var() * 20 / 12 / 20
        whole = d_SN.mean(0).var(ddof=1) / 4
        parts = [(seeds.variance, max(0, whole - rest)), (max(0, seeds.variance - rest), whole)]
        widths = [stats.t.isf(0.025, 4) ** 2 * a + stats.t.isf(0.025, 3) ** 2 * b for a, b in parts]
        noise = noise_parts(seeds, strata)
        expected = parts[int(np.argmax(widths))]
        assert (noise.seeds.variance, noise.items.variance) == pytest.approx(expected)
        assert noise.planned[0] == seeds and noise.planned[1].variance > 0
    assert noise_parts(None, strata)[0] is None


def test_an_arm_stands_out_by_the_f_test_of_its_contrast_with_the_others():
    """In a full design what an arm adds is the variance of its difference from the mean of the others."""
    rng, chance = np.random.default_rng(14), 0
    for _ in range(400):
        x = rng.normal(size=(4, 5)) + rng.normal(size=(1, 5))
        others = x[:3] - x[:3].mean(0) - x[:3].mean(1, keepdims=True) + x[:3].mean()
        contrast = (x[3] - x[:3].mean(0)).var(ddof=1) * 3 / 4
        p = 4 * stats.f.sf(contrast / ((others**2).sum() / 8), 4, 8)
        assert arms_that_scatter_more(table(x)).get("3") == (pytest.approx(p) if p <= LEVEL else None)
        chance += bool(arms_that_scatter_more(table(x)))
    assert 0.02 < chance / 400 < 0.08
    noisy = np.vstack([x, 9 * rng.normal(size=5)])
    assert arms_that_scatter_more(table(noisy)).keys() == {"4"}
    assert arms_that_scatter_more({**table(noisy), "4": {0: 0.1, 1: 90.0, 2: -70.0}}).keys() == {
        "4"
    }  # with cells missing too
    assert seed_variance(table(noisy), "4", "0") == Variance(pytest.approx((noisy[4] - noisy[0]).var(ddof=1) / 5), 4)
    assert seed_variance(table(noisy), "1", "0").dof == 16  # of all arms: it is overstated
    assert not arms_that_scatter_more(table(noisy[3:])) and not arms_that_scatter_more(table(0 * x))
    assert not arms_that_scatter_more(
        table(np.tile([[2.7], [2.5], [2.6]], (1, 3)) + [[0.1, 0.2, 0.3]])
    )  # rounding is no noise


def least_squares(results):
    """The residual sum of squares of arms and seeds, by numpy's least squares on columns of 0 and 1."""
    cells = [(arm, seed) for arm in results for seed in results[arm]]
    columns = [*results, *sorted({seed for _, seed in cells})]
    design = np.array([[column in cell for column in columns] for cell in cells], float)
    y = np.array([results[arm][seed] for arm, seed in cells])
    rest = y - design @ np.linalg.lstsq(design, y)[0]
    return float(rest @ rest), len(y) - int(np.linalg.matrix_rank(design))


@pytest.mark.parametrize(("arms", "seeds"), [(2, 2), (3, 4), (7, 2), (5, 1)])
def test_full_designs_in_closed_form_are_those_of_least_squares(arms, seeds):
    x = np.random.default_rng([arms, seeds]).normal(2.5, 0.1, (arms, seeds))
    x[-1] *= 3
    results = {f"größe={a}": dict(enumerate(map(float, row))) for a, row in enumerate(x)}
    assert residual_squares(results) == (pytest.approx(least_squares(results)[0]), least_squares(results)[1])
    left, dof = residual_squares(results, seeds=False)
    assert (left, dof) == (pytest.approx(float(((x - x.mean(1, keepdims=True)) ** 2).sum())), arms * (seeds - 1))
    for arm, (rest, others) in residual_squares_without_each_arm(results).items():
        expected = least_squares({name: row for name, row in results.items() if name != arm})
        assert (rest, others) == (pytest.approx(expected[0], abs=1e-12), expected[1])
    del results["größe=0"][0]  # a cell is missing
    if results["größe=0"]:
        assert residual_squares(results) == (pytest.approx(least_squares(results)[0]), least_squares(results)[1])


def test_one_arm_that_scatters_among_equal_ones_stands_out():
    results = {f"arm {i}": {1: 2.0, 2: 2.1, 3: 2.2} for i in range(4)} | {"wild": {1: 2.0, 2: 3.0, 3: 1.0}}
    assert list(arms_that_scatter_more(results)) == ["wild"] and arms_that_scatter_more(results)["wild"] < 1e-10
