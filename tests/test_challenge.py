"""The rules of "Cramming" in a report: what a run by the wall clock spent, and that a broken rule is named."""

import json
from pathlib import Path
from typing import Any

import pytest

from ablations.__main__ import main
from ablations.plan.hardware import gpu_of_device
from eval.report.reading.expense import cost_so_far
from tests.made_study import Study, change, make, report, section

GLUE_ENTRY = {
    kind: {"median": 50.0, "lowest": 49.0, "highest": 51.0, "seeds": 5, "metric": "matthews", "chance": 0.0}
    for kind in ("study", "leaderboard")
}


@pytest.fixture
def crammed(tmp_path: Path) -> Study:
    """A study whose runs kept every rule: 102.4 s of training, the budget and less than a step."""
    study = make(Study(tmp_path / "runs", seeds=[1, 2]))
    for arm in study.arms:
        for seed in study.seeds:
            folder = study.cell(arm, seed).dir
            change(folder / "run.json", "config", "train", "budget", to="102s")
            change(folder / "run.json", "config", "model", "objective", to="mlm")
            change(folder / "run.json", "config", "data", "tokenizer_kind", to="wordpiece")
            change(folder / "run.json", "hardware", "device", to="NVIDIA RTX A6000")
            done = {"steps": 512, "tokens": 1048576, "seconds": 102.4, "budget_seconds": 102.0, "compile_seconds": 7.5}
            (folder / "done").write_text(json.dumps(done))
            means = {"nine_numbers": 50.0, "eight_tasks": 50.0, "numbers": 1}
            glue = {"setting": {"epochs": 5}, "study": means, "leaderboard": means}
            glue["scores"] = {"cola": GLUE_ENTRY | {"collapsed": 0}}
            (folder / "glue").mkdir()
            (folder / "glue" / "glue.json").write_text(json.dumps(glue))
    return study


def written(study: Study, tmp_path: Path) -> str:
    report(study, tmp_path / "out")
    return (tmp_path / "out" / "report.md").read_text()


def test_a_day_of_an_a6000_is_13_4_exaflop(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """By the report, by the function, and by the plan of the challenge itself (Geiping & Goldstein, table 1)."""
    for device, peak in (
        ("NVIDIA RTX A6000", 13.37e18),
        ("NVIDIA GeForce RTX 2080 Ti", 4.65e18),
        ("NVIDIA RTX A4000", 7.64e18),
    ):
        assert gpu_of_device(device).peak * 86400 == pytest.approx(peak, rel=1e-3)
    study = make(Study(tmp_path / "runs"))
    folder = study.cell("pos=alibi", 1).dir
    run = json.loads((folder / "run.json").read_text())
    run["hardware"] = {"device": "NVIDIA RTX A6000", "ranks": 8, "threads": 4}
    expense = cost_so_far({"run": run, "metrics": [{"seconds": 48 * 3600.0, "tokens": 10**9}]})
    assert expense["peak"] == pytest.approx(214e18, rel=1e-3)  # eight for two days; printed as 208, from a rounded 13
    words = ["STUDY=cram", "SIZE=crammed-v2", "SEEDS=1", f"OUT={tmp_path}", "ON=1 a6000"]
    assert main(["plan", *words, "FORMAT=json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["runs"]
    assert row["peak_flops"] == pytest.approx(13.37e18, rel=1e-3) and 0 < row["flops"] < row["peak_flops"]
    assert main(["plan", *words]) == 0
    table = capsys.readouterr().out
    assert "at peak" in table and "1.3e+19" in table and "1.34e+19 at the GPUs' peak" in table


def test_runs_that_keep_the_rules_say_what_they_spent(crammed: Study, tmp_path: Path) -> None:
    text = written(crammed, tmp_path)
    rules = section(text, "Rules of Cramming")
    assert rules.count("| kept |") == 4 and "broken" not in text and "†" not in text and "breaks a rule" not in text
    peak = f"{154.8e12 * 102.4:.2e}"
    assert f"| 102s | 102.4 s | 7.5 s | - | {peak} | 5 epochs | kept |" in rules
    assert peak in section(text, "Cost")


def test_runs_of_a_budget_in_tokens_are_no_attempt_at_the_challenge(tmp_path: Path) -> None:
    study = make(Study(tmp_path / "runs"))
    change(study.cell("pos=alibi", 1).dir / "run.json", "hardware", "ranks", to=8)
    assert "Rules of Cramming" not in written(study, tmp_path)


@pytest.mark.parametrize(
    ("file", "keys", "to", "rule"),
    [
        ("run.json", ("config", "data", "tokenizer_kind"), "file", "a tokenizer that was trained before"),
        ("run.json", ("config", "model", "objective"), "causal", "no masked language model (model.objective=causal)"),
        ("run.json", ("hardware", "ranks"), 2, "2 devices"),
        ("run.json", ("continued",), [{"hardware": {"device": "x", "ranks": 4, "threads": 1}}], "4 devices"),
        ("run.json", ("continued",), [{"hardware": "many"}, {"hardware": {"ranks": 3}}], "3 devices"),
        ("run.json", ("config", "train", "budget"), 7, "no budget that is known"),
        ("run.json", ("config", "train", "budget"), "2d", "a budget of more than 24 hours"),
        ("done", ("seconds",), 104.1, "2.1 s longer than its budget, more than 1% and more than a step"),
        ("glue/glue.json", ("setting", "epochs"), 6, "fine-tuning over 6 epochs"),
        (
            "glue/glue.json",
            ("scores", "cola"),
            GLUE_ENTRY | {"collapsed": 0, "setting": {"epochs": 3}},
            "fine-tuning with other settings for some tasks",
        ),
    ],
)
def test_a_broken_rule_is_named_where_the_run_is_reported(
    crammed: Study, tmp_path: Path, file: str, keys: tuple[str, ...], to: Any, rule: str
) -> None:
    change(crammed.cell("pos=alibi", 2).dir / file, *keys, to=to)
    text = written(crammed, tmp_path)
    rules = section(text, "Rules of Cramming")
    assert rules.count("| kept |") == 3 and f"**broken: {rule}" in rules
    row = next(line for line in text.splitlines() if line.startswith("| pos=alibi |"))
    assert f"**breaks a rule of Cramming: {rule}" in row
    glue = section(text, "GLUE")
    assert "| pos=alibi † |" in glue and "| pos=learned |" in glue and "†: breaks a rule" in glue


def test_a_step_longer_than_a_hundredth_of_the_budget_may_end_late(crammed: Study, tmp_path: Path) -> None:
    """The last line of the log is 1.6 s after the one before, eight steps: a step has 0.2 s. Were it one step, 1.5 s
    more than the budget of 102 s would be less than that step."""
    folder = crammed.cell("pos=alibi", 2).dir
    change(folder / "done", "seconds", to=103.5)
    assert "broken: 1.5 s longer" in written(crammed, tmp_path)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rows[-2]["step"] = rows[-1]["step"] - 1
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert "broken" not in written(crammed, tmp_path)


def test_a_damaged_end_is_named_and_takes_nothing_with_it(crammed: Study, tmp_path: Path) -> None:
    (crammed.cell("pos=alibi", 2).dir / "done").write_text('{"seconds": "many"}')
    text = written(crammed, tmp_path)
    assert "done is damaged: seconds" in text and section(text, "Rules of Cramming").count("| kept |") == 4


def test_losses_at_other_mask_rates_are_not_compared(tmp_path: Path) -> None:
    """Each rate is a task of its own (eval/evaluation.py), so that no verdict is given on them."""
    study = make(Study(tmp_path / "runs"))
    for arm, rate in (("pos=learned", "15%"), ("pos=alibi", "40%")):
        for seed in study.seeds:
            folder = study.cell(arm, seed).dir
            result = json.loads((folder / "eval.json").read_text())
            result["tasks"] = {f"pydocs/masked_{rate}": result["tasks"]["pydocs/bits_per_byte"]}
            result["zero_shot"] = None
            (folder / "eval.json").write_text(json.dumps(result))
            rewrite_task(folder, f"pydocs/masked_{rate}")
    text = report(study, tmp_path / "out")
    assert "evaluated differently: not compared" in text
    assert "without pydocs/masked_15%; with pydocs/masked_40%" in text
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["comparisons"] == []


def rewrite_task(folder: Path, name: str) -> None:
    """Leaves the items of held-out loss alone, under another name."""
    import gzip

    rows = [json.loads(line) for line in gzip.decompress((folder / "samples.jsonl.gz").read_bytes()).splitlines()]
    rows = [row | {"task": name} for row in rows if row["task"] == "pydocs/bits_per_byte"]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "samples.jsonl.gz").write_bytes(gzip.compress(text.encode(), mtime=0))
