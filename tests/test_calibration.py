"""The rates that docs/statistics.md states: simulated studies are judged as real ones are, and the page is what
`make calibrate` writes."""

import re
from pathlib import Path

import numpy as np
import pytest

from ablations.document.blocks import Table
from ablations.document.formats import markdown_table
from ablations.factorial import parse_factorial
from eval.report.comparison.contrasts import contrast_variance
from eval.report.comparison.gather import correct_comparisons
from eval.report.sections import published
from eval.statistics.comparison import FEWEST_ITEMS, apply_holm_correction, compare
from eval.statistics.items import Stratum, noise_parts
from eval.statistics.parts import LEVEL, Variance
from eval.statistics.seeds import seed_variance
from eval.statistics.verdicts import verdict
from tests.calibration import error_rates, simulation
from tests.calibration import tables as calibration
from tests.calibration.simulation import Noise, decide_all, decisions, item_noise

NO_ITEMS = Variance(0.0, np.inf)
CODES = {
    "worse": simulation.WORSE,
    "undecided": simulation.UNDECIDED,
    "better": simulation.BETTER,
    "equivalent": simulation.EQUIVALENT,
}


def table(x: np.ndarray) -> dict[str, dict[int, float]]:
    return {str(a): dict(enumerate(map(float, row))) for a, row in enumerate(x)}


def one_by_one(x: np.ndarray, margin: float | None, floor: Variance | None, share: float) -> list[int]:
    """The decisions of a study as the report makes them."""
    compared = apply_holm_correction(
        {
            str(a): compare(
                float(x[a].mean() - x[0].mean()), seed_variance(table(x), str(a), "0", floor), NO_ITEMS, share=share
            )
            for a in range(1, len(x))
        }
    )
    return [CODES[verdict(c, True, margin=margin).kind] for c in compared.values()]


@pytest.mark.parametrize("arms, seeds", [(2, 2), (2, 3), (3, 2), (5, 2), (5, 3), (4, 5)])
@pytest.mark.parametrize("with_floor", [False, True])
def test_many_studies_at_once_are_judged_as_one_by_one(arms, seeds, with_floor):
    rng = np.random.default_rng([arms, seeds])
    x = rng.normal(size=(60, arms, seeds)) + 2 * rng.normal(size=(60, 1, seeds))
    x[:, 1] *= rng.choice([1, 6], size=(60, 1))  # in some an arm stands out
    x[:, -1] += rng.choice([0, 4], size=(60, 1))
    sd2 = rng.chisquare(4, (60, 1)) / 4 if with_floor else None
    floor = Noise(sd2, np.full((60, 1), 4.0)) if with_floor else None
    seen = set()
    for margin, share in ((None, 1.0), (4.0, 1.0), (4.0, 0.2)):
        got = decide_all(x, margin, floor, share)
        for i, study in enumerate(x):
            alone = Variance(float(sd2[i, 0]), 4) if with_floor else None
            assert list(got[i]) == one_by_one(study, margin, alone, share)
        seen |= set(got.ravel())
    assert len(seen) >= 3


@pytest.mark.parametrize(("factors", "fraction", "seeds"), [(2, "1", 2), (2, "1", 3), (3, "1", 2), (4, "1/2", 3)])
def test_many_factorials_at_once_are_judged_as_one_by_one(factors, fraction, seeds):
    rng = np.random.default_rng([factors, seeds])
    design = parse_factorial([f"f{i}=x" for i in range(factors)], fraction)
    weights = np.array([list(design.coefficients(effect).values()) for effect in design.effects])
    arms = len(design.combinations)
    x = rng.normal(size=(40, arms, seeds)) + 2 * rng.normal(size=(40, 1, seeds))
    x[:, 1] *= rng.choice([1, 8], size=(40, 1))  # in some an arm stands out
    x[:, -1] += rng.choice([0, 9], size=(40, 1))
    got = simulation.factorial_decisions(x, weights, [list(range(arms - 1 + len(weights)))])
    for i, study in enumerate(x):
        results = table(study)
        of_arms = {
            str(a): compare(float(study[a].mean() - study[0].mean()), seed_variance(results, str(a), "0"), NO_ITEMS)
            for a in range(1, arms)
        }
        of_effects = {}
        for effect, w in zip(design.effects, weights, strict=True):
            part = contrast_variance(results, dict(zip(results, w, strict=True)), w @ study)
            of_effects[effect] = compare(float((w @ study).mean()), part, NO_ITEMS)
        both = [c for group in correct_comparisons(of_arms, of_effects) for c in group.values()]
        assert list(got[i]) == [CODES[verdict(c, True).kind] for c in both]
    assert len(set(got.ravel())) >= 2


def test_items_of_many_studies_are_as_of_one():
    rng = np.random.default_rng(5)
    d, w = rng.normal(size=(20, 3, 9)), rng.lognormal(size=(20, 9))
    d *= w[:, None]
    whole, rest = item_noise(d, w)
    seeds = Noise(np.full((20, 1), 0.05), np.full((20, 1), 2.0))
    many = simulation.noise_parts(seeds, whole, rest)
    found = decisions(np.full((20, 1), 1.1), many)
    for i in range(20):
        one = noise_parts(Variance(0.05, 2), [Stratum(d[i], w[i])])
        assert [(part.variance[i, 0], part.dof[i, 0]) for part in many] == [
            (pytest.approx(part.variance), pytest.approx(part.dof)) for part in (one.seeds, one.items)
        ]
        assert found[i, 0] == CODES[verdict(compare(1.1, one.seeds, one.items), True).kind]
    assert len({part.variance[i, 0] < 0.05 for part in many[:1] for i in range(20)}) == len(set(found[:, 0])) == 2


# ------------------------------------------------------------------------------------------------ what the page states


PAGE = (Path(__file__).parents[1] / "docs/statistics.md").read_text()
ERROR = 100 * (0.05 * 0.95 / calibration.STUDIES) ** 0.5  # standard error of a rate of 5 %, in %


def stated(title: str, number: int = 0) -> dict[tuple[str, ...], list[str]]:
    """A table of the page: {the first cells, as far as they name the row: the others}."""
    tables = [
        block for block in PAGE.split(f"## {title}\n")[1].split("\n## ")[0].split("\n\n") if block.startswith("|")
    ]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in tables[number].splitlines()[2:]]
    names = next(i for i, cell in enumerate(rows[0]) if "%" in cell)
    return {tuple(row[:names]): row[names:] for row in rows}


def rates(cells: list[str]) -> list[float]:
    return [float(cell.split(" %")[0]) for cell in cells]


def test_the_page_says_how_many_studies_were_simulated_and_by_what_rules():
    for words in (
        f"{calibration.STUDIES:,} studies of each kind",
        f"{calibration.STUDIES_OF_ITEMS:,}\nstudies of each kind",
        f"{calibration.LADDERS:,} simulated ladders of each kind",
        f"at most {LEVEL:.0%} by design",
        f"{error_rates.ITEMS_PER_CLUSTER} questions to a passage",
        f"fewer than {FEWEST_ITEMS}\nindependent items decide nothing",
    ):
        assert words in PAGE


def test_the_tables_of_a_page_are_replaced_and_its_words_stay():
    new = Table(["n"], [["2"]])
    page = "# T\n\n## A\n\n| n |\n|---|\n| 1 |\n\nwords | of it\n\n## B\n\nnone\n"
    assert calibration.with_tables(page, {"A": [new]}) == page.replace("| 1 |", "| 2 |")
    for tables in ({}, {"B": [new]}, {"A": [new, new]}, {"A": [new], "C": [new]}):
        with pytest.raises(ValueError, match="tables"):
            calibration.with_tables(page, tables)


def test_the_command_makes_every_table_of_the_page(monkeypatch):
    """With few studies: all but the rates is as on the page."""
    for name in ("STUDIES", "STUDIES_OF_ITEMS", "LADDERS"):
        monkeypatch.setattr(calibration, name, 20)
    made, page = (
        re.sub(r"[\d.]+(?= %| seeds)", "", text)
        for text in (calibration.with_tables(PAGE, calibration.make_tables()), PAGE)
    )
    assert made == page


def test_the_tables_that_are_quickly_made_are_those_of_the_page():
    computed = (
        calibration.ratio_table,
        calibration.published_table,
        calibration.spending_table,
        calibration.saves_table,
    )
    for table in (make() for make in computed):
        assert markdown_table(table) in PAGE


def test_no_stated_rate_of_wrong_verdicts_is_above_five_percent():
    """But by two and a half standard errors of the simulation; for every number of seeds and arms."""
    fixed, added = stated("How often a verdict is wrong"), stated("Seeds added until it is decided")
    assert fixed.keys() == {(str(arms), str(seeds)) for arms in (2, 5) for seeds in (2, 3, 5, 10)}
    wrong = [rate for row in fixed.values() for rate in rates(row)[:3]]
    wrong += [rate for row in added.values() for i, rate in enumerate(rates(row)) if i != 2]
    wrong += [rates(row)[i] for row in stated("A stored noise floor").values() for i in (0, 1)]
    assert added.keys() == {(str(arms), str(most)) for arms in (2, 5) for most in (2, 3, 5, 10, 20)}
    crossed = stated("Factorials")
    assert len(crossed) == len(calibration.DESIGNS) * len(calibration.SEEDS_OF_DESIGNS)
    wrong += [rates(row)[i] for row in crossed.values() for i in (0, 2)]
    assert len(wrong) > 90 and max(wrong) <= 5 + 2.5 * ERROR
    assert min(rates(row)[1] for row in crossed.values()) > 7  # why it is one family
    clusters = [rates(row) for row in stated("Items that share a passage").values()]
    assert max(by_passage for by_passage, _ in clusters) <= 5 + 2.5 * ERROR * 5**0.5
    assert all(by_question > by_passage for by_passage, by_question in clusters)
    groups = [rates(row) for row in stated("Few groups of items").values()]
    assert max(wrong for wrong, _ in groups) <= 5 and max(before for _, before in groups) > 15
    covered = [rates(row)[3] for row in (*fixed.values(), *crossed.values())]
    assert min(covered) >= 95 - 2.5 * ERROR


@pytest.mark.parametrize("arms", [2, 5])
@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
def test_rates_of_a_fixed_number_of_seeds_are_as_stated(arms, seeds):
    """The same studies again: to the digit, but for one of another version of scipy."""
    expected = stated("How often a verdict is wrong")[str(arms), str(seeds)]
    got = error_rates.fixed_seed_rates(arms, seeds, calibration.STUDIES)
    assert [100 * rate for rate in got] == pytest.approx(rates(expected), abs=0.1)


@pytest.mark.parametrize("most", [2, 3, 5, 10])
def test_rates_of_added_seeds_are_as_stated(most):
    """Of two arms the same studies again; of five fewer, with other random numbers."""
    table = stated("Seeds added until it is decided")
    got = error_rates.sequential_rates(2, most, calibration.STUDIES)
    assert [100 * rate for rate in got] == pytest.approx(rates(table["2", str(most)]), abs=0.1)
    got, expected = error_rates.sequential_rates(5, most, 3000, key=14), rates(table["5", str(most)])
    assert all(close(rate, value, 3000) for rate, value in zip(got, expected, strict=True)), (got, expected)


@pytest.mark.parametrize("seeds", calibration.SEEDS_OF_DESIGNS)
def test_rates_of_factorials_are_as_stated(seeds):
    """Of two factors the same studies again; of more fewer, with other random numbers."""
    table = {combinations: row for (combinations, n), row in stated("Factorials").items() if n == str(seeds)}
    assert len(table) == len(calibration.DESIGNS)
    for design, row in zip(calibration.DESIGNS, table.values(), strict=True):
        few = design[0] == 2
        studies = calibration.STUDIES if few else 1500
        got, expected = error_rates.factorial_rates(*design, seeds, studies, key=7 if few else 15), rates(row)
        if few:
            assert [100 * rate for rate in got] == pytest.approx(expected, abs=0.1)
        assert all(close(rate, value, 1500) for rate, value in zip(got, expected, strict=True)), (design, got, expected)


def test_saves_of_one_published_run_are_called_different_in_5_percent():
    """Numbers of others: 27 tasks, three runs. As many as the simulation of normal ones lets one expect."""
    for seeds in calibration.SEEDS:
        verdicts = error_rates.decisions_on_published_checkpoints(seeds)
        assert (
            error_rates.decisions_on_published_checkpoints(seeds) == verdicts
        ).all()  # what is published stays as it is
        assert len(verdicts) == 27 * sum(n // (2 * seeds) for n in (63, 34, 63))
        assert error_rates.share_with_wrong_verdict(verdicts) <= 0.05 + 2.5 * (0.05 * 0.95 / len(verdicts)) ** 0.5
    known = published.load_published()["per_task"]
    for i, name in enumerate(known["columns"][1:], start=1):  # the last save is the one that the table has
        assert list(published.published_checkpoints()[name][-1]) == [row[i] for row in known["rows"].values()]


def close(rate: float, expected: float, studies: int) -> bool:
    """Within four standard errors, of both simulations."""
    p = min(max(expected / 100, 0.002), 0.998)
    return abs(100 * rate - expected) <= 400 * (p * (1 - p) / studies) ** 0.5 * 1.2


def test_other_studies_have_the_rates_that_are_stated():
    """Of each table a row, with other random numbers and fewer studies."""
    studies = 2000
    cases = [
        (error_rates.fixed_seed_rates(5, 3, studies, key=11), stated("How often a verdict is wrong")["5", "3"]),
        (error_rates.power_rates(5, 5, studies, key=12), stated("What a study sees")["5", "5"]),
        (error_rates.sequential_rates(5, 5, studies, key=13), stated("Seeds added until it is decided")["5", "5"]),
        (
            error_rates.wrong_verdicts_with_clusters(10, True, 5, 1000),
            stated("Items that share a passage")["10", "log-normal", "5"],
        ),
        (error_rates.wrong_verdicts_with_few_groups(3, 6, 5, 1000), stated("Few groups of items")["3", "6", "5"]),
        (error_rates.noise_floor_rates(2, 5, studies), stated("A stored noise floor")["2", "5"]),
    ]
    for got, expected in cases:
        assert len(got) == len(expected)
        assert all(close(rate, value, 1000) for rate, value in zip(got, rates(expected), strict=True)), (got, expected)


def test_ladders_have_the_rates_that_are_stated():
    """A row of each kind, with other random numbers and fewer ladders; the arms of a ladder count as one verdict, since
    they share a baseline."""
    ladders, table = 300, stated("A ladder of sizes")
    assert len(table) == len(error_rates.LADDER_KINDS) * len(calibration.LADDER_SEEDS)
    for name in error_rates.LADDER_KINDS:
        got, expected = error_rates.ladder_rates(name, 3, ladders, key=17), rates(table[name, "3"])
        assert len(got) == len(expected) == 7
        assert all(close(rate, value, ladders) for rate, value in zip(got, expected, strict=True)), (got, expected)
    wrong = {row: rates(cells)[1] for row, cells in table.items()}
    assert max(wrong.values()) <= 5  # of the line, at its level of 90 %


def test_one_seed_decides_nothing():
    """Whatever the difference, the margin, the items and a known noise floor are."""
    rng = np.random.default_rng(6)
    for _ in range(300):
        difference, items = float(rng.normal(0, 5)), Variance(float(rng.choice([0.0, 0.1])), 30)
        seeds = None if rng.random() < 0.5 else Variance(float(rng.choice([0.0, 0.01])), 8)
        c = apply_holm_correction({"a": compare(difference, seeds, items, replicated=False)})["a"]
        assert not verdict(c, bool(rng.integers(2)), margin=float(rng.choice([0.01, 100.0]))).decided
