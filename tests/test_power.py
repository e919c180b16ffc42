"""What a study can see (ablations/plan/power.py) against closed forms and simulated studies."""

import json
from math import inf, sqrt

import numpy as np
import pytest
from scipy import special, stats

from ablations.config import resolve
from ablations.factorial import parse_factorial
from ablations.plan import power
from tests.calibration import simulation
from tests.test_false_verdicts import studies


@pytest.mark.parametrize("dof", [1, 2, 3, 8, 60])
@pytest.mark.parametrize("level", [0.05, 0.05 / 6])
def test_quantiles_of_power_are_students(dof, level):
    assert power.two_sided_t_quantile(dof, level) == pytest.approx(stats.t.isf(level / 2, dof), rel=1e-4)
    assert power.two_sided_t_quantile(inf, level) == pytest.approx(stats.norm.isf(level / 2), rel=1e-5)


@pytest.mark.parametrize("dof, difference", [(2, 4.0), (4, 2.0), (12, 3.0)])
def test_power_without_items_is_the_noncentral_t(dof, difference):
    t = stats.t.isf(0.025, dof)
    expected = stats.nct.sf(t, dof, difference) + stats.nct.cdf(-t, dof, difference)
    assert power.power(difference, 1.0, 0.0, dof) == pytest.approx(expected, abs=1e-8)
    z = stats.norm.isf(0.025)
    known = stats.norm.sf(z - difference) + stats.norm.cdf(-z - difference)
    assert power.power(difference, 0.25, 0.75, inf) == pytest.approx(known, abs=1e-8)


@pytest.mark.parametrize("items_dof", [1.0, 5.5, 90.0, 9000.0])
@pytest.mark.parametrize("dof", [1, 4])
def test_power_is_the_mean_over_what_seeds_and_items_may_show(dof, items_dof):
    """Against a mean over equally likely quantiles of both chi-square distributions."""
    quantiles, difference = (np.arange(1000) + 0.5) / 1000, 3.0
    v1, v2 = (
        v * stats.t.isf(0.025, n) ** 2 * stats.chi2.ppf(quantiles, n) / n for v, n in ((0.5, dof), (0.6, items_dof))
    )
    thresholds, sigma = np.sqrt(v1[:, None] + v2), sqrt(0.5 + 0.6)
    expected = special.ndtr((difference - thresholds) / sigma) + special.ndtr((-difference - thresholds) / sigma)
    got = power.power(difference, 0.5, 0.6, dof, items_dof=items_dof)
    assert got == pytest.approx(expected.mean(), abs=2e-5)


@pytest.mark.parametrize(
    ("noise", "items_dof", "expected"),
    [((1, 1, 2, 2), 0.6, 84.1436), ((1, 1, 5, 3), 1.0, 65.3345), ((1, 1, 2, 5), 60.0, 3.68184)],
)
def test_a_detectable_difference_does_not_depend_on_the_points_of_the_integral(noise, items_dof, expected):
    """Expected: with 1,000 points for the items. With few groups the difference is many times the noise."""
    assert power.detectable_difference(*noise, items_dof=items_dof) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("arms, seeds, item_sd", [(2, 2, 0.0), (2, 3, 2.0), (4, 3, 2.0), (2, 5, 4.0)])
def test_a_detectable_difference_is_detected_as_often_as_stated(arms, seeds, item_sd):
    """What `make plan` prints, against 1,500 studies with exactly that difference: 80 %, standard deviation 1 %."""
    items = sqrt(2 * item_sd**2 / 40)
    least = power.detectable_difference(1.0, items, arms, seeds)
    found = studies(np.random.default_rng(13), arms, seeds, 40, 1.0, item_sd, 1500, effect=least)
    level = 0.05 / (arms - 1)
    assert np.mean([c.p <= level for c in found]) == pytest.approx(0.8, abs=0.035)


@pytest.mark.parametrize(("arms", "seeds", "items_dof"), [(2, 3, 3.0), (6, 5, 3.0), (2, 5, 1.2)])
def test_few_groups_of_items_make_a_larger_difference_necessary(arms, seeds, items_dof):
    """400,000 studies whose items' variance is estimated from few groups too, by the rule of the verdict."""
    rng, n = np.random.default_rng(5), 400_000
    dof, level, items = (arms - 1) * (seeds - 1), 0.05 / (arms - 1), 1.3
    least = power.detectable_difference(1.0, items, arms, seeds, items_dof=items_dof)
    v1, v2 = 2 / seeds, items**2
    shown = rng.normal(least, sqrt(v1 + v2), n)
    seen1, seen2 = v1 * rng.chisquare(dof, n) / dof, v2 * rng.chisquare(items_dof, n) / items_dof
    t1, t2 = stats.t.isf(level / 2, dof), stats.t.isf(level / 2, items_dof)
    assert np.mean(abs(shown) > np.sqrt(t1**2 * seen1 + t2**2 * seen2)) == pytest.approx(0.8, abs=0.004)
    assert least > 1.2 * power.detectable_difference(1.0, items, arms, seeds)


@pytest.mark.parametrize(("factors", "seeds"), [(2, 3), (3, 2)])
def test_an_effect_of_a_factorial_is_detected_as_often_as_stated(factors, seeds):
    """4,000 factorials with exactly this main effect, or this interaction, each corrected for all that is judged. Some
    are seen less often, those in which an arm stands out by chance."""
    design = parse_factorial([f"f{i}=x" for i in range(factors)], "1")
    arms, tests = len(design.combinations), len(design.combinations) - 1 + len(design.effects)
    x = np.random.default_rng(factors).normal(size=(4000, arms, seeds))
    for effect in (0b01, 0b11):
        weights = np.array([list(design.coefficients(effect).values())])
        least = power.detectable_difference(1.0, 0.0, arms, seeds, tests, float((weights**2).sum()))
        estimates = x.mean(2) @ weights.T + least
        p = simulation.p_values(estimates, simulation.contrast_noise(x, weights))
        assert 0.74 < np.mean(p <= 0.05 / tests) < 0.82
        dof = (arms - 1) * (seeds - 1)
        variance = simulation.residual_squares(x).sum(1, keepdims=True) / dof / seeds * (weights**2).sum()
        pooled = simulation.Noise(variance, np.full((4000, 1), float(dof)))
        assert np.mean(simulation.p_values(estimates, pooled) <= 0.05 / tests) == pytest.approx(0.8, abs=0.02)


def test_more_seeds_and_fewer_arms_see_more():
    assert (
        power.detectable_difference(1, 0.1, 2, 5)
        < power.detectable_difference(1, 0.1, 2, 3)
        < power.detectable_difference(1, 0.1, 2, 2)
    )
    assert power.detectable_difference(1, 0.1, 2, 5) < power.detectable_difference(1, 0.1, 3, 5) * 1.5
    assert power.detectable_difference(1, 0.1, 2, 1) == inf and power.detectable_difference(0, 0, 2, 3) == 0


def planned(size, tokens):
    return resolve([("size", size), ("train.tokens", tokens)])


def test_plan_says_that_the_noise_is_of_other_text(tmp_path):
    noise = {"bits/byte": {"seed_sd": 0.01, "dof": 2, "items": 0.1, "unit": "bits/byte"}}
    for name, tokens, corpora in [("near", 10**6, ["pydocs"]), ("far", 10**7, ["books"]), ("blend", 10**6, [*"abcd"])]:
        entries = [{"corpus": corpus, "sha256": f"of {corpus}"} for corpus in corpora]
        (tmp_path / name).mkdir()
        record = {"size": "nano", "tokens": tokens, "noise": noise, "corpora": entries}
        (tmp_path / name / "run.json").write_text(json.dumps(record))
    run = planned("nano", 10**6)

    def said(texts):
        return power.describe_detectable(run, 2, 3, tmp_path, texts=texts).partition("from the noise of ")[2]

    assert said({}) == said({"pydocs": "of pydocs"}) == "near, 1,000,000 tokens"
    assert said({"books": ""}) == said({"/a/books": "of books"}) == "far, 10,000,000 tokens"  # and not the nearest
    assert said({"c4": ""}).startswith("blend, 1,000,000 tokens of other text (a, b and c, ...), so it may")
    (tmp_path / "blend/run.json").unlink()
    other = "near, 1,000,000 tokens of other text (pydocs), so it may see more or less"
    assert said({"pydocs": "of newer packages"}) == said({"pydocs": "of pydocs", "books": "of books"}) == other


def test_plan_takes_the_noise_of_the_record_that_is_nearest(tmp_path):
    for name, size, tokens, sd in [("a", "nano", 10**6, 0.01), ("b", "nano", 10**7, 0.001), ("c", "1b3", 10**6, 9.0)]:
        (tmp_path / name).mkdir()
        noise = {"bits/byte": {"seed_sd": sd, "dof": 2, "items": 0.0, "unit": "bits/byte"}}
        corpora = [{"corpus": "pydocs", "sha256": name}]
        record = {"size": size, "tokens": tokens, "noise": noise, "corpora": corpora}
        (tmp_path / name / "run.json").write_text(json.dumps(record))
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "run.json").write_text("{}")
    odd = [{"bits/byte": 3}, {"bits/byte": {"seed_sd": -1, "items": 0, "unit": "x"}}, {"bits/byte": {"seed_sd": 1}}]
    broken = [("cut", '{"size": "nano", "noi'), ("empty", ""), ("list", "[]"), ("nan", '{"size": NaN}')]
    broken += [(f"{i}", json.dumps({"size": "nano", "tokens": 10**6, "noise": x})) for i, x in enumerate(odd)]
    for name, content in broken:
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(content)
    assert power.recorded_noise(planned("nano", 2 * 10**6), tmp_path)["record"] == "a"
    assert power.recorded_noise(planned("nano", 8 * 10**6), tmp_path)["record"] == "b"
    said = power.describe_detectable(planned("nano", 10**6), 2, 3, tmp_path)
    assert f"{power.detectable_difference(0.01, 0, 2, 3):.2g} bits/byte;" in said and "of a, 1,000,000 tokens" in said
    assert said.endswith("the items of bits/byte count as no noise there, so it takes more")
    crossed = power.describe_detectable(planned("nano", 10**6), 4, 3, tmp_path, tests=6, effects={"main effects": 1.0})
    assert f"differences of {power.detectable_difference(0.01, 0, 4, 3, 6):.2g} bits/byte, main effects of" in crossed
    noise = {"zero-shot": {"seed_sd": 0.5, "items": 2.0, "items_dof": 0.6, "unit": "points"}}  # of few groups of items
    (tmp_path / "b" / "run.json").write_text(json.dumps({"size": "mini", "tokens": 10**6, "noise": noise}))
    assert power.detectable_difference(0.5, 2.0, 2, 3, items_dof=0.6) > 100  # points, of which a metric has no more
    assert "differences of none in points (zero-shot);" in power.describe_detectable(
        planned("mini", 10**6), 2, 3, tmp_path
    )
    assert "unknown" in power.describe_detectable(planned("14m", 10**6), 2, 3, tmp_path)
    assert "nothing" in power.describe_detectable(planned("nano", 10**6), 2, 1, tmp_path)
    assert "nothing is compared" in power.describe_detectable(planned("nano", 10**6), 1, 3, tmp_path)
