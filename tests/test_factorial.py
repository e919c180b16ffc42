"""Factorials (ablations/factorial.py): which combinations, what is aliased, and effects with their noise."""

import itertools
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ablations import rundir
from ablations.factorial import Factorial, effect_order, parse_factorial
from ablations.prediction import parse_prediction
from ablations.study import from_args
from ablations.values import ConfigError, difference
from eval.report.comparison import predictions
from eval.report.comparison.contrasts import contrast_variance
from eval.report.comparison.gather import gather_findings
from eval.report.record import terminal_text, write_record_files
from eval.statistics.comparison import apply_holm_correction, compare
from eval.statistics.parts import LEVEL, Variance, interval_half_width
from tests import made_study

FACTORS = ("pos=alibi", "act=swiglu", "norm=rmsnorm", "embnorm=true")
CROSSED = ["POS=alibi", "ACT=swiglu", "NORM=rmsnorm", "EMBNORM=true", "SIZE=nano"]


def expected(design: Factorial, truth: dict[int, float]) -> dict[int, float]:
    """The result of each combination where effects are `truth`, by the definition of a main effect as a mean of
    differences and of an interaction as a difference of these: y = sum of effect/2**order x product of ±1."""
    return {
        c: sum(
            size / 2 ** effect_order(effect) * np.prod([1 if c >> i & 1 else -1 for i in range(8) if effect >> i & 1])
            for effect, size in truth.items()
        )
        for c in design.combinations
    }


def estimated(design: Factorial, y: dict[int, float], effect: int) -> float:
    return sum(w * y[c] for c, w in design.coefficients(effect).items())


def test_effects_of_two_factors_are_the_four_cell_formulas() -> None:
    design = parse_factorial(FACTORS[:2], "1")
    y = {0b00: 2.5, 0b01: 2.3, 0b10: 2.4, 0b11: 2.35}
    assert design.combinations == [0, 1, 2, 3] and design.effects == [1, 2, 3]
    assert estimated(design, y, 0b01) == pytest.approx(((2.3 - 2.5) + (2.35 - 2.4)) / 2)
    assert estimated(design, y, 0b10) == pytest.approx(((2.4 - 2.5) + (2.35 - 2.3)) / 2)
    assert estimated(design, y, 0b11) == pytest.approx(2.35 - 2.4 - 2.3 + 2.5)


def test_a_whole_factorial_gives_back_every_effect_and_least_squares_agrees() -> None:
    rng = np.random.default_rng(0)
    design = parse_factorial(FACTORS[:3], "1")
    truth = {effect: float(rng.normal()) for effect in range(1, 8)}
    y = expected(design, truth)
    assert design.effects == sorted(truth, key=lambda e: (effect_order(e), e)) and not design.aliasing
    codes = np.array([[1 if c >> i & 1 else -1 for i in range(3)] for c in design.combinations])
    columns = [codes[:, [i for i in range(3) if e >> i & 1]].prod(1) / 2 ** effect_order(e) for e in design.effects]
    fitted = np.linalg.lstsq(np.stack([*columns, np.ones(8)], 1), np.array([y[c] for c in design.combinations]))[0]
    for effect, value in zip(design.effects, fitted, strict=False):
        assert estimated(design, y, effect) == pytest.approx(truth[effect]) == pytest.approx(value)


@pytest.mark.parametrize(
    ("factors", "fraction", "resolution"),
    [(3, "1/2", 3), (4, "1/2", 4), (5, "1/2", 5), (5, "1/4", 3), (6, "1/4", 4), (7, "1/8", 4), (8, "1/8", 4)],
)
def test_fractions_have_the_resolution_of_the_published_tables(factors: int, fraction: str, resolution: int) -> None:
    """Montgomery, Design and Analysis of Experiments, table 8.14. 2**(7-3) has seven words of four letters, and
    2**(8-3) three of four and four of five."""
    design = parse_factorial([f"f{i}=x" for i in range(factors)], fraction)
    assert design.resolution == resolution
    lengths = sorted(map(effect_order, design.defining_sets))
    if (factors, fraction) == (7, "1/8"):
        assert lengths == [4] * 7
    if (factors, fraction) == (8, "1/8"):
        assert lengths == [4, 4, 4, 5, 5, 5, 5][: len(lengths)]
    assert design.combinations[0] == 0 and len(design.combinations) * 2 ** len(design.generators) == 2**factors


@pytest.mark.parametrize(("factors", "fraction"), [(3, "1/2"), (4, "1/2"), (5, "1/4"), (6, "1/8")])
def test_the_aliasing_that_is_told_is_what_an_estimate_holds(factors: int, fraction: str) -> None:
    rng = np.random.default_rng(factors)
    design = parse_factorial([f"f{i}=x" for i in range(factors)], fraction)
    truth = {effect: float(rng.normal()) for effect in range(1, 2**factors)}
    y = expected(design, truth)
    for effect in design.effects:
        told = truth[effect] + sum(share * truth[other] for other, share in design.aliases(effect).items())
        assert estimated(design, y, effect) == pytest.approx(told)
    classes = [{effect, *design.aliases(effect)} for effect in design.effects]
    assert all(not one & other for one, other in itertools.combinations(classes, 2))


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["POS=alibi", "CROSS=1"], "2 to 8 factors"),
        (["POS=alibi,none", "ACT=swiglu", "CROSS=1"], "model.pos has 2"),
        (["POS=alibi", "ACT=swiglu", "CROSS=1/2"], "not one of 1, which 2 factors allow"),
        (["POS=alibi", "ACT=swiglu", "NORM=rmsnorm", "CROSS=yes"], "not one of 1, 1/2"),
        (["POS=alibi", "ACT=swiglu", "CROSS=1", "LR=tune"], "two designs"),
        (["POS=alibi", "ACT=swiglu", "CROSS=1", "MORE=auto"], "fixed number of seeds"),
        (["STUDY=position", "CROSS=1"], "model.pos has 3"),
    ],
)
def test_what_cannot_be_crossed_is_refused_by_what_can(words: list[str], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        from_args([*words, "SIZE=nano"])


def test_every_edge_of_the_design_is_one_difference_and_single_factors_are_the_plain_arms() -> None:
    study = from_args([*CROSSED, "CROSS=1", "SEEDS=1"])
    design = study.factorial
    assert design and len(study.cells) == 16 and len(design.single_changes) == 32
    runs = {c: study.cell(design.arm_label(c) or study.arms[0], 1).run.flat() for c in design.combinations}
    keys = ("model.pos", "model.act", "model.norm", "model.embnorm")
    for one, other, number in design.single_changes:
        assert set(difference(runs[one], runs[other])) == {keys[number]}
    plain = from_args([*CROSSED, "SEEDS=1"])
    assert {cell.dir for cell in plain.cells} < {cell.dir for cell in study.cells}
    assert study.registration["design"].startswith("crossed: all 16")
    half = from_args([*CROSSED, "CROSS=1/2", "SEEDS=1"])
    assert len(half.cells) == 8 and half.factorial and not half.factorial.single_changes
    assert len({study.name, half.name, plain.name}) == 3


# ------------------------------------------------------------------------------------------------ with noise


def simulated(
    rng: np.random.Generator, combinations: int, seeds: int, truth: np.ndarray
) -> dict[str, dict[int, float]]:
    """Results of arms: their true value, what the arms of a seed share, and noise."""
    shared, noise = rng.normal(0, 2, seeds), rng.normal(0, 1, (combinations, seeds))
    return {str(c): {s: truth[c] + shared[s] + noise[c, s] for s in range(seeds)} for c in range(combinations)}


@pytest.mark.parametrize(("factors", "fraction", "seeds"), [(2, "1", 2), (2, "1", 3), (2, "1", 5), (4, "1/2", 2)])
def test_intervals_cover_and_null_interactions_are_called_in_5_percent_of_studies(
    factors: int, fraction: str, seeds: int
) -> None:
    """Simulated: main effects of up to 3 standard deviations, no interaction. Uncorrected intervals cover the truth in
    95 % of studies, and after Holm's correction any interaction is called real in at most 5 %."""
    rng, studies = np.random.default_rng([seeds, factors]), 600
    design = parse_factorial([f"f{i}=x" for i in range(factors)], fraction)
    size = len(design.combinations)
    truth = {1 << i: float(i) for i in range(factors)}
    means = expected(design, truth)
    values = np.array([means[c] for c in design.combinations])
    covered, called = [], 0
    for _ in range(studies):
        results = simulated(rng, size, seeds, values)
        interactions = {}
        for effect in design.effects:
            weights = {str(i): w for i, w in enumerate(design.coefficients(effect).values())}
            by_seed = np.array([sum(w * results[arm][s] for arm, w in weights.items()) for s in range(seeds)])
            part = contrast_variance(results, weights, by_seed)
            assert part
            error = float(by_seed.mean()) - truth.get(effect, 0.0)
            covered.append(abs(error) <= interval_half_width(LEVEL, part, Variance(0.0, np.inf)))
            if effect_order(effect) > 1:
                interactions[str(effect)] = compare(float(by_seed.mean()), part, Variance(0.0, np.inf))
        called += any(c.is_significant for c in apply_holm_correction(interactions).values())
    assert np.mean(covered) > 0.94
    assert called / studies < LEVEL + 2 * np.sqrt(LEVEL * (1 - LEVEL) / studies)


def crossed(root: Path, interaction: float, seeds: list[int]) -> Any:
    """Run directories of a 2 x 2 factorial, as tests/made_study.py makes those of arms; losses by document."""
    study = made_study.Study(root, seeds=seeds)
    study.arms = ["pos=learned,act=gelu", "pos=alibi", "act=swiglu", "pos=alibi+act=swiglu"]
    study.factorial = Factorial(("pos=alibi", "act=swiglu"))
    delta = {"pos=alibi": {"model.pos": "alibi"}, "act=swiglu": {"model.act": "swiglu"}}
    delta |= {study.arms[0]: {}, study.arms[3]: delta["pos=alibi"] | delta["act=swiglu"]}
    effect = {study.arms[0]: 0.0, "pos=alibi": -0.06, "act=swiglu": -0.03, study.arms[3]: -0.09 + interaction}

    def cell(arm: str, seed: int) -> made_study.Cell:
        config = made_study.config("pos=learned", seed)
        config["model"] = {**config["model"], "pos": "learned", "act": "gelu"}
        for key, value in delta[arm].items():
            config["model"][key.partition(".")[2]] = value
        return made_study.Cell(root / f"{arm},seed={seed}", config, delta[arm])

    study.cell = cell  # type: ignore[method-assign]
    names = made_study.ARMS, made_study.EFFECT
    saved = [dict(each) for each in names]
    try:
        for each, values in zip(names, (delta, effect), strict=True):
            each.update(values)
        made_study.make(study)
    finally:
        for each, values in zip(names, saved, strict=True):
            each.clear()
            each.update(values)
    for arm in study.arms:
        for seed in seeds:
            made_study.change(cell(arm, seed).dir / "run.json", "config", to=cell(arm, seed).config)
    return study


def test_a_report_of_a_factorial_finds_the_interaction_that_is_there(tmp_path: Path) -> None:
    study = crossed(tmp_path / "runs", 0.05, [1, 2, 3])
    findings = gather_findings(study)
    found = findings.effects["bits/byte"]
    assert found[0b11].difference == pytest.approx(0.05, abs=0.012) and found[0b11].is_significant
    assert found[0b01].difference == pytest.approx(-0.06 + 0.025, abs=0.012) and found[0b01].is_significant
    by_hand = np.mean(
        [
            findings.results["bits/byte"]["pos=alibi+act=swiglu"][s]
            - findings.results["bits/byte"]["pos=alibi"][s]
            - findings.results["bits/byte"]["act=swiglu"][s]
            + findings.results["bits/byte"]["pos=learned,act=gelu"][s]
            for s in (1, 2, 3)
        ]
    )
    assert found[0b11].difference == pytest.approx(by_hand)
    judged = [*findings.comparisons["bits/byte"].values(), *found.values()]
    assert len(judged) == 6 and all(c.family == 6 for c in judged)  # one family: combinations and effects
    shown = {line[:33].strip(): line for line in terminal_text(findings).splitlines()}
    for name in ("pos=alibi", "act=swiglu", "pos=alibi × act=swiglu"):
        assert any(
            re.match(rf"{name}, bits/byte +[+-]0\.0\d+ +[+-]0\.\d+ to [+-]0\.\d+ +(better|worse|undecided)", line)
            for line in shown.values()
        ), (name, shown)
    write_record_files(findings, tmp_path / "record")
    text = (tmp_path / "record/report.md").read_text()
    assert "## Main effects and interactions" in text and "worse together by" in text
    assert "pos=alibi × act=swiglu, bits/byte" in text
    record = json.loads((tmp_path / "record/run.json").read_text())
    assert {line["effect"] for line in record["effects"]} == {"pos=alibi", "act=swiglu", "pos=alibi × act=swiglu"}


def test_a_predicted_interaction_holds_or_fails_and_may_have_arms_of_earlier_studies(tmp_path: Path) -> None:
    """The true interaction is +0.05, and alibi alone is at -0.06: the difference of two arms is not taken for it."""
    study = crossed(tmp_path, 0.05, [1, 2, 3])
    expected = {
        "alibi x swiglu in [0.02, 0.08]": ("held", True),
        "swiglu x alibi in [-inf, 0.01]": ("failed", True),
        "alibi x swiglu in [0.05, inf]": ("undecided", True),
        "suite: alibi x swiglu in [0, 1]": ("undecided", True),
        "alibi < baseline": ("held", False),
    }
    study.predictions = [parse_prediction(text, study.arms) for text in expected]
    study.registration = {"study": "position", "metric": "bits/byte", "predictions": list(expected)}
    earlier = {"study": "position", "metric": "bits/byte", "predictions": []}
    for arm in study.arms:
        for seed in study.seeds:
            is_new = arm == "pos=alibi+act=swiglu"
            rundir.append_registration(study.cell(arm, seed).dir, study.registration if is_new else earlier, 0)
    rows = predictions.checked_predictions(gather_findings(study))
    assert {row.text: (row.outcome, row.registered) for row in rows} == expected
    assert rows[0].measured.startswith("pos=alibi × act=swiglu: +0.0")


def test_a_prediction_that_came_after_all_four_arms_is_no_registered_one(tmp_path: Path) -> None:
    study = crossed(tmp_path, 0.05, [1, 2])
    text = "alibi x swiglu in [0, 1]"
    study.predictions = [parse_prediction(text, study.arms)]
    study.registration = {"study": "position", "metric": "bits/byte", "predictions": [text]}
    earlier = study.registration | {"predictions": []}
    for arm in study.arms:
        for seed in study.seeds:
            is_new = (arm, seed) == ("pos=alibi+act=swiglu", 1)  # its seed 2 came earlier
            rundir.append_registration(study.cell(arm, seed).dir, study.registration if is_new else earlier, 0)
    assert [row.registered for row in predictions.checked_predictions(gather_findings(study))] == [False]


def test_an_edge_along_which_more_than_one_setting_differs_is_named(tmp_path: Path) -> None:
    study = crossed(tmp_path, 0.0, [1, 2])
    assert not [line for line in gather_findings(study).mismatches if "differs from" in line]
    folder = study.cell("pos=alibi+act=swiglu", 2).dir
    made_study.change(folder / "run.json", "effective", "train.batch", to=16)
    lines = gather_findings(study).mismatches
    assert any("differs from act=swiglu in more than one line: train.batch" in line for line in lines), lines
