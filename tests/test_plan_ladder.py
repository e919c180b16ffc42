"""Ladders against simulated truth: how often the interval holds it, and whose decisions are right."""

import gzip
import hashlib
import json
import math
import re
import statistics
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from ablations import safe_files
from ablations.plan import extrapolation, ladder
from ablations.plan.extrapolation import Extrapolation, Pair, Score, extrapolate, order_accuracy
from ablations.study import from_args
from ablations.values import ConfigError
from tests.calibration.ladders import (
    SIZES,
    TARGET,
    ArmSampler,
    gaps_that_change_sign,
    gaps_that_keep_their_sign,
    run_flops,
    simulate_outcomes,
    simulated_pairs,
)

LADDERS = 150  # of each kind


@pytest.mark.parametrize("world", [gaps_that_keep_their_sign, gaps_that_change_sign])
def test_the_interval_holds_the_truth_and_verdicts_are_rarely_wrong(world: ArmSampler) -> None:
    found = simulate_outcomes(world, 3, LADDERS)
    assert found.covered > 0.87  # of 90%; the curve of an irreducible loss costs a little
    assert found.line.misses <= 0.05 * (found.line.hits + found.line.misses + found.line.open)


def test_the_largest_size_is_the_better_guide_unless_the_arms_cross() -> None:
    kept, crossed = (
        simulate_outcomes(world, 3, LADDERS) for world in (gaps_that_keep_their_sign, gaps_that_change_sign)
    )
    assert kept.line_order < kept.single_order and kept.single.misses == 0
    assert crossed.line_order > crossed.single_order + 0.1 and crossed.single.misses > 5 * crossed.line.misses


def test_a_line_is_the_textbooks() -> None:
    """One arm against scipy's regression, its prediction and Student's t."""
    rng = np.random.default_rng(3)
    pairs = simulated_pairs([lambda n: -0.02], rng, 4, 0.01)
    (found,) = extrapolate(pairs, run_flops(TARGET))
    x = [math.log(pair.compute / run_flops(TARGET)) for pair in pairs]
    line = stats.linregress(x, [pair.gap for pair in pairs])
    assert (found.slope, found.at_target) == pytest.approx((line.slope, line.intercept))
    half = stats.t.isf(0.05, len(pairs) - 2) * line.intercept_stderr
    assert found.high - found.at_target == pytest.approx(half, rel=1e-3)
    alone = [pair.gap for pair in pairs if pair.compute == run_flops(SIZES[-1])]
    interval = stats.t.interval(0.9, 3, statistics.fmean(alone), stats.sem(alone))
    assert (found.single_low, found.single_high) == pytest.approx(interval, rel=1e-3)


def test_a_sign_that_no_size_has_shown_decides_nothing() -> None:
    """A difference that halves from size to size goes to 0; a line through it goes far beyond."""
    gap = {n: 0.2 / 2**i for i, n in enumerate(SIZES)}
    rng = np.random.default_rng(2)
    (shrinking,) = extrapolate(simulated_pairs([gap.__getitem__], rng, 3, 0.002), run_flops(TARGET))
    assert shrinking.at_target < shrinking.high < 0 and shrinking.sign_unseen and shrinking.verdict == "undecided"
    # one that has changed its sign between two sizes may go on
    gap = dict(zip(SIZES, (0.03, 0.0, -0.03), strict=True))
    (crossed,) = extrapolate(simulated_pairs([gap.__getitem__], rng, 3, 0.002), run_flops(TARGET))
    assert not crossed.sign_unseen and crossed.verdict == "better"


def test_what_it_takes_to_be_sure_is_enough() -> None:
    rng = np.random.default_rng(5)
    (first,) = extrapolate(simulated_pairs([lambda n: -0.004], rng, 2, 0.004), run_flops(TARGET))
    assert first.verdict == "undecided"
    # by the true noise and difference, 4 in 5 such ladders are sure
    x = np.array([math.log(run_flops(n) / run_flops(TARGET)) for n in SIZES])
    error = 0.004 * math.sqrt(2) * math.sqrt((1 / 3 + x.mean() ** 2 / ((x - x.mean()) ** 2).sum()) / 2)
    needed = extrapolation._seeds_needed(-0.004, error, 2)
    assert needed and 20 < needed < 200
    sure = [
        extrapolate(simulated_pairs([lambda n: -0.004], rng, needed, 0.004), run_flops(TARGET))[0] for _ in range(60)
    ]
    assert statistics.fmean(each.verdict == "better" for each in sure) == pytest.approx(0.8, abs=0.15)


def test_scores_and_orders() -> None:
    score = Score()
    for verdict, truth in (("better", -1.0), ("worse", 1.0), ("better", 1.0), ("undecided", 1.0)):
        score.add_verdict(verdict, truth)
    assert (score.hits, score.misses, score.open) == (2, 1, 1)
    assert order_accuracy([-1, 2], [-3, 1]) == 1 and order_accuracy([2, -1], [-3, 1]) == 0
    assert order_accuracy([1, 2], [1, -3]) == pytest.approx(1 / 3)


def pair(arm: str, n: float, seed: int) -> Pair:
    return Pair(arm, f"{n:g}", seed, run_flops(n), 2.0, 2.1)


@pytest.mark.parametrize(
    "pairs, said",
    [
        ([pair("a", n, k) for n in SIZES[:2] for k in (1, 2)], "3 sizes or more"),
        ([pair("a", n, 1) for n in SIZES], "two seeds"),
        ([pair("a", n, k) for n in SIZES for k in (1, 2)] + [pair("b", SIZES[0], 1)], "b has not been run"),
    ],
)
def test_a_ladder_that_shows_nothing_is_refused(pairs: list[Pair], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        extrapolate(pairs, run_flops(TARGET))


def judged(folder: Path, losses: dict[tuple[str, str], float]) -> None:
    """Run directories as evaluation leaves them: {(size, arm): bits per byte}, the same for two seeds but for noise."""
    for size in {size for size, _ in losses}:
        study = from_args(["POS=alibi", f"SIZE={size}", f"OUT={folder}"])
        for cell in study.cells:
            cell.dir.mkdir(parents=True)
            run = {"config": asdict(cell.run), "fingerprint": cell.run.fingerprint}
            (cell.dir / "run.json").write_text(json.dumps(run))
            arm = "alibi" if "alibi" in cell.arm else "learned"
            noise = 0.001 * (len(cell.arm) - 8) * (-1) ** cell.seed
            scores = {"bits_per_byte": {"value": losses[size, arm] + noise, "stderr": 0.01}}
            (cell.dir / "eval.json").write_text(json.dumps(scores))


def test_the_command_reads_runs_fits_and_counts_itself(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    losses = {("nano", "learned"): 2.7, ("nano", "alibi"): 2.6, ("mini", "learned"): 2.5, ("mini", "alibi"): 2.42}
    losses |= {("small", "learned"): 2.3, ("small", "alibi"): 2.24, ("14m", "learned"): 2.0, ("14m", "alibi"): 1.97}
    judged(tmp_path, losses)
    words = [
        "--sizes",
        "small,nano,mini",
        "POS=alibi",
        f"OUT={tmp_path}",
        "PREDICT=learned < alibi; alibi - learned in [-1, 0]; alibi < learned",  # the last: as its study file
    ]
    assert ladder.main(words) == 0
    said = capsys.readouterr().out
    assert "nano, mini, small, extrapolated to 14m" in said and "the verdicts of the line: 1 right, 0 wrong" in said
    (written,) = tmp_path.glob("ladder-*/ladder.json")
    told = json.loads(written.read_text())
    assert told["arms"][0]["verdict"] == "better" and len(told["pairs"]) == 6
    assert "target" in (written.parent / "figure.svg").read_text()
    report, page = ((written.parent / f"report.{kind}").read_text() for kind in ("md", "html"))
    assert "<strong>Answer.</strong> At 14m" in page and page.count("<figure>") == 1
    assert (
        "**Answer.** At 14m, by the line through nano, mini and small, pos=alibi is better than the baseline" in report
    )
    places = [report.index(words) for words in ("**Question.**", "**Expected", "**Answer.**", "| arm |", "figure.svg")]
    assert places == sorted(places) and "## Predictions" in report[places[-1] :]
    assert report.count("`alibi < learned`") == 1 and report.count("learned < alibi") == 2  # also in the command
    assert "* `alibi < learned`: held" in report and "* `learned < alibi`: failed" in report
    assert "* `alibi - learned in [-1, 0]`: not decided by a ladder" in report
    assert "* Tokens of a run: nano 1.05M, mini 2.1M, small 4.19M, 14m 16.8M. 14m takes " in report
    assert "No run here tests" not in report  # the target was trained, too
    gap = told["arms"][0]
    assert f"| pos=alibi | {gap['at_target']:+.2%} | " in report and report.count("| better | better |") == 1
    assert ladder.main([*words, "--list"]) == 0
    assert capsys.readouterr().out.split() == ["nano", "mini", "small"]


def with_items(path: Path, value: float, bits: float) -> None:
    """An eval.json that says `value` bits per byte, beside items of which each has `bits`."""
    rows = [{"task": "é/bits_per_byte", "id": str(i), "nats": bits * 100 * math.log(2), "bytes": 100} for i in range(3)]
    samples = gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode())
    path.with_name("samples.jsonl.gz").write_bytes(samples)
    scores = {
        "bits_per_byte": {"value": value},
        "tasks": {"é/bits_per_byte": {"metric": "bits_per_byte", "value": value}},
        "samples_sha256": hashlib.sha256(samples).hexdigest(),
    }
    path.write_text(json.dumps(scores))


def test_only_runs_that_were_evaluated_alike_are_compared_and_by_their_items(tmp_path: Path) -> None:
    judged(tmp_path, {("nano", "learned"): 2.7, ("nano", "alibi"): 2.6})
    (study,) = ladders = [from_args(["POS=alibi", "SIZE=nano", f"OUT={tmp_path}"])]
    path = study.cells[-1].dir / "eval.json"
    whole = json.loads(path.read_text())
    task = {"metric": "bits_per_byte", "value": 2.6}
    for change, said in (
        ({"version": 3}, "evaluated differently from .*: version 3, not None"),
        ({"precision": "bf16"}, "precision bf16, not None"),
        ({"tasks": {"pydocs/bits_per_byte": task | {"bytes": 1000}}}, "pydocs/bits_per_byte: bytes 1000, not None"),
        ({"bits_per_byte": {"value": "2.6"}}, "bits_per_byte.value is not what"),
        ({"bits_per_byte": {"value": True}}, "bits_per_byte.value is not what"),
        ({"bits_per_byte": {"value": 0}}, "damaged: 0 bits per byte"),
        ({"bits_per_byte": {"value": -2.6}}, "damaged: -2.6 bits per byte"),
        ({"samples_sha256": "beef"}, "samples.jsonl.gz is not the file"),
    ):
        path.write_text(json.dumps(whole | change))
        with pytest.raises(ConfigError, match=said):
            ladder.read_pairs(ladders)
    with_items(path, 1.0, bits=2.6)
    with pytest.raises(ConfigError, match="has 1 bits per byte, and the items in samples.jsonl.gz give 2.6"):
        ladder.read_pairs(ladders)
    for cell in study.cells:
        with_items(cell.dir / "eval.json", 2.5, bits=2.5)
    assert {pair.loss for pair in ladder.read_pairs(ladders)[0]} == {2.5}
    run = json.loads((study.cells[-1].dir / "run.json").read_text())
    (study.cells[-1].dir / "run.json").write_text(json.dumps(run | {"fingerprint": "another"}))
    with pytest.raises(ConfigError, match="holds a run that means something else"):
        ladder.read_pairs(ladders)


def test_an_out_that_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    judged(tmp_path, {(size, arm): 2.7 for size in ("nano", "mini", "small") for arm in ("learned", "alibi")})

    def full(path: Path, text: str) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(safe_files, "write_text", full)
    assert ladder.main(["--sizes", "small,nano,mini", "POS=alibi", f"OUT={tmp_path}"]) == 1
    assert "No space left on device" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words, said",
    [
        (["--sizes", "nano,mini", "POS=alibi"], "3 sizes or more"),
        (["--sizes", "nano,nano,mini", "POS=alibi"], "there twice"),
        (["--sizes", "nano,mini,huge", "POS=alibi"], "huge"),
        (["--sizes", "nano,mini,small", "POS=alibi", "SIZE=nano"], "SIZES="),
        (["--sizes", "nano,mini,small", "--target", "nano", "POS=alibi"], "no more compute"),
        (["--sizes", "nano,mini,small", "POS=alibi", "OUT=/nowhere/é"], "not finished and judged"),
        (["--sizes", "nano,mini,small", "POS=alibbi"], "alibi"),
        (["--sizes", "nano,mini,small", "POS=alibi", "SEEDS=1", "--list"], "two seeds"),
        (["--sizes", "nano,mini,small"], "no question asked"),
        (["--sizes", "", "POS=alibi"], "3 sizes or more"),
    ],
)
def test_bad_words_end_with_2(words: list[str], said: str, capsys: pytest.CaptureFixture) -> None:
    assert ladder.main(words) == 2
    assert said in capsys.readouterr().err


def test_the_intervals_of_several_arms_stand_side_by_side() -> None:
    gaps: list[Callable[[float], float]] = [lambda n: -0.02, lambda n: 0.01, lambda n: 0.0]
    pairs = simulated_pairs(gaps, np.random.default_rng(1), 2, 0.004)
    drawn = ladder.draw_differences(pairs, extrapolate(pairs, run_flops(TARGET)), run_flops(TARGET))
    upright = [re.match(r"M([\d.]+) [\d.]+L([\d.]+) ", path) for path in re.findall(r'd="([^"]+)" class="line', drawn)]
    places = {match[1] for match in upright if match and match[1] == match[2]}
    assert len(places) == 3 and "PFLOP of a run" in drawn


def test_the_verdict_is_of_the_interval() -> None:
    def found(low: float, high: float) -> str:
        return Extrapolation("a", 0.0, low, high, 0.0, 0.0, 0.0, 0.0, None).verdict

    assert [found(-2, -1), found(1, 2), found(-1, 1)] == ["better", "worse", "undecided"]
