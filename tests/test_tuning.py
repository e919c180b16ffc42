"""Tuned arms (ablations/tuning.py, eval/report/comparison/tuned.py): each at its own best rate, chosen without what
is judged."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ablations.study import from_args
from ablations.tuning import DEFAULT_MULTIPLES, Tuning
from ablations.values import ConfigError, difference
from eval.report.comparison import tuned
from eval.report.comparison.gather import gather_findings
from eval.report.comparison.tuned import Candidates, ClusteredTask
from eval.report.record import terminal_text, write_record_files
from eval.report.sections.tuning import agreement_text
from eval.statistics.comparison import Comparison
from eval.statistics.parts import LEVEL
from tests import made_study


def test_every_arm_has_the_same_rates_and_differs_by_its_factor_and_the_declared_rate() -> None:
    study = from_args(["POS=alibi", "LR=0.25,2,1", "SIZE=nano", "SEEDS=2"])
    assert study.tuning and study.tuning.rates == (0.0005, 0.002, 0.004) and study.tuning.common == 0.002
    assert study.tuning.factors == ["pos=learned", "pos=alibi"]
    base = study.cell("pos=learned", 1).run.flat()
    for label, (factor, rate) in study.tuning.arms.items():
        expected = {} if factor == "pos=learned" else {"model.pos": "alibi"}
        expected |= {} if rate == 0.002 else {"train.lr": rate}
        assert difference(base, study.cell(label, 1).run.flat()) == expected == study.cell(label, 1).delta
    plain = from_args(["POS=alibi", "SIZE=nano", "SEEDS=2"])
    assert {cell.dir for cell in plain.cells} < {cell.dir for cell in study.cells}
    assert study.name != plain.name and study.registration["design"].startswith("tuned: 2 arms at 3 learning rates")
    tune = from_args(["POS=alibi", "LR=tune", "SIZE=nano"]).tuning
    assert tune and tune.rates == tuple(0.002 * multiple for multiple in DEFAULT_MULTIPLES)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["LR=2"], "1 among them"),
        (["LR=0.5,2"], "1 among them"),
        (["LR=1,1,2"], "1 among them"),
        (["LR=1,-2"], "1 among them"),
        (["LR=1,nan"], "1 among them"),
        (["LR=best"], "tune, or 2 to 9 multiples"),
        (["LR=tune", "ARM=train.lr=3e-4"], "cannot be an arm"),
        (["LR=tune", "MORE=auto"], "fixed number of seeds"),
        (["LR=tune", "SEEDS=11"], "more than 10"),
    ],
)
def test_what_is_no_grid_is_refused_by_what_is(words: list[str], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        from_args(["POS=alibi", "SIZE=nano", *words])


# ------------------------------------------------------------------------------------------------ the choice


def drawn(
    rng: np.random.Generator, seeds: int, means: dict[str, list[float]], noise: dict[str, float], documents: int = 40
) -> Any:
    """Candidates, their task and results: the loss of a document is that of its arm and rate, its seed and itself, and
    what seeds and documents do to each arm and rate alone (`noise`, as standard deviations of a mean)."""
    weights, hard = np.exp(rng.normal(0, 0.5, documents)) * 100, rng.normal(0, 0.3, documents)
    shared = rng.normal(0, 2, seeds)
    values, results = {}, {}
    for arm, of_rates in means.items():
        for g, mean in enumerate(of_rates):
            own_seeds = rng.normal(0, noise["seeds"], seeds)
            own_items = rng.normal(0, noise["items"] * documents**0.5, documents)
            losses = mean + (shared + own_seeds)[:, None] + (hard + own_items)[None]
            values[f"{arm}{g}"] = losses * weights
            totals = (losses * weights).sum(1) / weights.sum()
            results[f"{arm}{g}"] = dict(enumerate(totals.tolist()))
    task = ClusteredTask(values, weights, tuned.assign_halves([f"documento número {i}" for i in range(documents)]))
    labels = {arm: [f"{arm}{g}" for g in range(len(of_rates))] for arm, of_rates in means.items()}
    return Candidates(labels, list(range(seeds)), [task]), results


def test_halves_are_of_equal_number_and_stay_when_documents_are_in_another_order() -> None:
    names = [f"doc ü{i}" for i in range(11)]
    half = tuned.assign_halves(names)
    assert sorted(half) == [0] * 6 + [1] * 5
    assert list(tuned.assign_halves(names[::-1]))[::-1] == list(half)


def test_a_choice_uses_neither_the_seed_nor_the_text_that_it_is_judged_by() -> None:
    rng = np.random.default_rng(0)
    c, _ = drawn(rng, 3, {"a": [0.0, 0.1, 0.2]}, {"seeds": 1.0, "items": 1.0})
    (task,) = c.tasks
    for seed in range(3):
        for half in (0, 1):
            before = tuned.chosen_label(c, "a", seed, half)
            values = {label: v.copy() for label, v in task.values.items()}
            for v in values.values():
                v[seed] += rng.normal(0, 1e4, v.shape[1])
                v[:, task.half == half] += rng.normal(0, 1e4, v[:, task.half == half].shape)
            assert tuned.chosen_label(c._replace(tasks=[task._replace(values=values)]), "a", seed, half) == before


def test_a_cross_fitted_difference_is_that_of_a_loop_written_out() -> None:
    rng = np.random.default_rng(1)
    c, results = drawn(rng, 3, {"a": [0.0, 0.2, 0.4], "b": [0.3, 0.1, 0.5]}, {"seeds": 0.3, "items": 0.2})
    (task,) = c.tasks
    by_seed = []
    for seed in range(3):
        total = {}
        for arm in "ab":
            total[arm] = 0.0
            for half in (0, 1):
                scores = {}
                for label in c.labels[arm]:
                    others = [s for s in range(3) if s != seed]
                    documents = [d for d in range(40) if task.half[d] != half]
                    size = sum(task.weights[d] for d in documents)
                    scores[label] = sum(task.values[label][s, d] for s in others for d in documents) / size
                best = min(scores, key=scores.__getitem__)
                total[arm] += sum(task.values[best][seed, d] for d in range(40) if task.half[d] == half)
        by_seed.append((total["a"] - total["b"]) / task.weights.sum())
    assert tuned.compare_at_best_rates(c, c.tasks, "a", "b", True, results).difference == pytest.approx(
        np.mean(by_seed)
    )


BASINS = {
    "flat": ([0.0, 0.0, 0.0], [0.0, 0.0, 0.0]),
    "nearly": ([0, 1.0, 1.0],) * 2,
    "apart": ([0, 0.5, 2], [2, 0.5, 0]),
}


@pytest.mark.parametrize(
    ("basin", "seeds", "noise", "documents"),
    [
        ("flat", 2, (1, 0.02), 40),
        ("nearly", 3, (1, 0.02), 40),
        ("apart", 3, (0.02, 1), 40),
        ("flat", 5, (1, 1), 40),
        ("nearly", 2, (1, 1), 4),
    ],
)
def test_arms_that_are_as_good_at_their_best_are_called_different_in_5_percent(
    basin: str, seeds: int, noise: tuple[float, float], documents: int
) -> None:
    """Simulated: two arms of equal least loss, three rates; noise of seeds, of documents, or of both."""
    rng, studies, called = np.random.default_rng([seeds, len(basin)]), 250, 0
    means = dict(zip("ab", map(list, BASINS[basin]), strict=True))
    for _ in range(studies):
        c, results = drawn(rng, seeds, means, dict(zip(("seeds", "items"), noise, strict=True)), documents)
        called += tuned.compare_at_best_rates(c, c.tasks, "a", "b", True, results).p <= LEVEL
    assert called / studies < LEVEL + 2 * (LEVEL * (1 - LEVEL) / studies) ** 0.5


def test_the_variance_that_choosing_adds_is_counted() -> None:
    """The noise that is told is no less than the scatter of simulated differences, where rates are nearly as good."""
    rng = np.random.default_rng(5)
    told: list[Comparison] = []
    for _ in range(400):
        c, results = drawn(rng, 2, {"a": [0, 1.0, 1.0], "b": [0, 1.0, 1.0]}, {"seeds": 1.0, "items": 0.0})
        told.append(tuned.compare_at_best_rates(c, c.tasks, "a", "b", True, results))
    scatter = float(np.std([x.difference for x in told]))
    counted = float(np.mean([x.noise**2 for x in told])) ** 0.5
    assert scatter > 1.15  # of two means over two seeds it would be 1
    assert counted > scatter * 0.97


def test_sensitivity_is_the_mean_height_above_the_least() -> None:
    assert tuned.learning_rate_sensitivity({0.001: 2.5, 0.002: 2.4, 0.004: 2.9}) == pytest.approx((0.1 + 0.0 + 0.5) / 3)


# ------------------------------------------------------------------------------------------------ the report


def tuned_study(root: Path, effects: dict[str, float], seeds: list[int]) -> Any:
    """Run directories of two arms at three rates, with these true losses; as tests/made_study.py makes them."""
    study = made_study.Study(root, seeds=seeds)
    arms = {
        "pos=learned": ("pos=learned", 0.002),
        "pos=alibi": ("pos=alibi", 0.002),
        "lr=0.001": ("pos=learned", 0.001),
        "lr=0.004": ("pos=learned", 0.004),
        "pos=alibi+lr=0.001": ("pos=alibi", 0.001),
        "pos=alibi+lr=0.004": ("pos=alibi", 0.004),
    }
    study.arms, study.tuning = list(arms), Tuning((0.001, 0.002, 0.004), 0.002, arms)

    def delta(arm: str) -> dict[str, Any]:
        factor, rate = arms[arm]
        changed = {} if factor == "pos=learned" else {"model.pos": "alibi"}
        return changed | ({} if rate == 0.002 else {"train.lr": rate})

    def cell(arm: str, seed: int) -> made_study.Cell:
        config = made_study.config(arms[arm][0], seed)
        config["train"] = {**config["train"], "lr": arms[arm][1]}
        return made_study.Cell(root / f"{arm},seed={seed}", config, delta(arm))

    study.cell = cell  # type: ignore[method-assign]
    saved = dict(made_study.ARMS), dict(made_study.EFFECT)
    try:
        for arm in arms:
            made_study.ARMS[arm], made_study.EFFECT[arm] = delta(arm), effects[arm]
        made_study.make(study)
    finally:
        for table, values in zip((made_study.ARMS, made_study.EFFECT), saved, strict=True):
            table.clear()
            table.update(values)  # type: ignore[arg-type]
    for arm in arms:
        for seed in seeds:
            made_study.change(cell(arm, seed).dir / "run.json", "config", to=cell(arm, seed).config)
    return study


# alibi is worse at the common rate and better at its best; both are surer than the noise
CONTRADICTING = {
    "pos=learned": 0.0,
    "pos=alibi": 0.06,
    "lr=0.001": 0.15,
    "lr=0.004": 0.1,
    "pos=alibi+lr=0.001": 0.2,
    "pos=alibi+lr=0.004": -0.08,
}


def test_a_report_says_where_the_verdict_was_one_on_the_learning_rate(tmp_path: Path) -> None:
    study = tuned_study(tmp_path / "runs", CONTRADICTING, [1, 2, 3])
    findings = gather_findings(study)
    assert list(findings.comparisons["bits/byte"]) == ["pos=alibi"]  # the other rates are no arms of the main table
    best = tuned.comparisons_at_best_rate(findings, "bits/byte")["pos=alibi"]
    assert findings.verdict("pos=alibi", "bits/byte").kind == "worse" and best.is_significant
    assert best.difference == pytest.approx(-0.08, abs=0.02)
    write_record_files(findings, tmp_path / "record")
    text = (tmp_path / "record/report.md").read_text()
    assert "they contradict each other" in text and "0.004, at an end of the grid" in text
    page = (tmp_path / "record/report.html").read_text()
    (drawn,) = re.findall(r'(?s)aria-label="Loss by learning rate">(.*?)</svg>', page)
    assert all(f">{rate}</text>" in drawn for rate in ("0.001", "0.002", "0.004"))
    assert re.search(r"\npos=alibi +-0\.0\d+ +better by .*no, they contradict each other", terminal_text(findings))
    learned, alibi = json.loads((tmp_path / "record/run.json").read_text())["learning_rates"]
    assert learned["best"] == 0.002 and alibi["best"] == 0.004
    assert alibi["at_best"]["bits_per_byte"]["agrees"] is False


def test_the_verdict_at_the_common_rate_is_that_of_the_plain_study(tmp_path: Path) -> None:
    study = tuned_study(tmp_path, CONTRADICTING, [1, 2])
    with_grid = gather_findings(study).comparisons["bits/byte"]["pos=alibi"]
    study.arms, study.tuning = ["pos=learned", "pos=alibi"], None
    assert gather_findings(study).comparisons["bits/byte"]["pos=alibi"] == with_grid


def test_a_rate_at_which_a_run_failed_is_none_to_choose(tmp_path: Path) -> None:
    study = tuned_study(tmp_path, CONTRADICTING, [1, 2])
    folder = study.cell("pos=alibi+lr=0.004", 2).dir
    for name in ("done", "eval.json"):
        (folder / name).unlink()
    (folder / "failed").write_text("diverged")
    findings = gather_findings(study)
    assert list(tuned.losses_by_rate(findings, "pos=alibi")) == [0.001, 0.002]
    assert tuned.comparisons_at_best_rate(findings, "bits/byte")["pos=alibi"].difference == pytest.approx(
        0.06, abs=0.02
    )


def test_verdicts_agree_differ_or_contradict() -> None:
    assert agreement_text("better", "better") == "yes" and "contradict" in agreement_text("better", "worse")
    assert agreement_text("undecided", "better") == "no: undecided at the common rate, better at each arm's best"


def test_a_corpus_of_four_sources_is_enough_to_choose_and_to_judge(tmp_path: Path) -> None:
    """As many as the embedded corpus has: each half of them has two."""
    study = tuned_study(tmp_path, CONTRADICTING, [1, 2])
    for arm in study.arms:
        for seed in study.seeds:
            made_study.rewrite(
                study.cell(arm, seed).dir, lambda row: row | {"cluster": f"Quelle {int(row['id'][1:]) % 4}"}
            )
    best = tuned.comparisons_at_best_rate(gather_findings(study), "bits/byte")["pos=alibi"]
    assert best.independent == 4 and best.difference == pytest.approx(-0.08, abs=0.02)
