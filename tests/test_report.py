"""The report of a study (eval/report) as a whole: its table, its sections, its command line."""

import csv
import dataclasses
import gzip
import json
import re
import shutil

import numpy as np

from ablations.config import resolve
from eval.report.__main__ import main
from eval.tasks.position import CUT_TO_TRAINING_LENGTH
from model.position import POSITIONS
from tests.made_study import (  # noqa: F401  # a fixture
    ARMS,
    EFFECT,
    FILES,
    TASK,
    Cell,
    Study,
    change,
    full,
    make,
    report,
    rescore,
    section,
    study,
    values,
)


def test_the_table_has_the_shape_of_the_example(study, tmp_path):
    lines = report(study, tmp_path / "out").splitlines()
    head, baseline, alibi = lines[:3]
    assert head.split("    ")[0] == study.title and head.split()[-3:] == ["bits/byte", "zero-shot", "verdict"]
    bits, scores = values(study, "bits_per_byte").mean(1), values(study, "zero_shot").mean(1)
    assert baseline.startswith("pos=learned (baseline) ") and baseline.rstrip().count("±") == 2
    assert f"{bits[0]:.3f} ± 0.0" in baseline and f"{scores[0]:.1f} ± " in baseline
    assert f"{bits[1]:.3f} ± 0.0" in alibi
    assert (
        re.search(r"\(\d+ × noise, p (= 0\.\d+|< 0\.0001)\)$", alibi)
        and f"better by {bits[0] - bits[1]:.3f} (" in alibi
    )
    columns = [head.index("bits/byte"), head.index("zero-shot"), head.index("verdict")]
    assert all(alibi[c - 1] == " " and alibi[c] != " " for c in columns)  # aligned


def test_a_report_begins_with_question_answer_table_and_figure(study, tmp_path):
    """What the numbers mean comes after them, in one list."""
    report(study, tmp_path / "out")
    text = (tmp_path / "out" / "report.md").read_text().partition("\n## ")[0]
    page = (tmp_path / "out" / "report.html").read_text().partition("<h2")[0]
    assert "**How to read the table**" in text and not re.search(r"^(?!\*|\||!|#).{300}", text, re.M)
    for words, table, figure in ((text, "| arm |", "![Loss curves"), (page, "<table", "<svg")):
        order = ["Question.", "ALiBi.", "Answer.", table, figure, "How to read the table", "±: one", "p: two-sided"]
        places = [words.index(part) for part in order]
        assert places == sorted(places)


def test_twice_the_same_bytes_wherever_the_runs_lie(study, tmp_path):
    report(study, tmp_path / "one")
    moved = Study(tmp_path / "elsewhere" / "runs")
    shutil.copytree(study.root, moved.root)
    report(moved, tmp_path / "two")
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == FILES
    for name in FILES:
        content = (tmp_path / "one" / name).read_bytes()
        assert content == (tmp_path / "two" / name).read_bytes(), name
        assert str(tmp_path).encode() not in content, name


def test_a_clean_study_says_so(study, tmp_path):
    text = report(study, tmp_path / "out")
    assert "not match" not in text and "missing" not in text
    page = (tmp_path / "out" / "report.md").read_text()
    assert section(page, "What does not match").startswith("Nothing.")
    for head in (study.question, study.expect, study.command, "![", "## Cost", "1,350,400", "102 s", "0123abc"):
        assert head in page, head
    assert (
        "| model.pos | alibi | as declared | acts \\| so | pos=alibi, seed 1; pos=alibi, seed 2; pos=alibi, seed 3 |"
        in page
    )
    assert "| model.act | gelu | as declared | measured | all |" in page
    assert "| pydocs/copy_absent (not in the mean) | acc | 50 | 20 to 90 | 25.0 |" in page


class Of(Study):
    """As if another factor made the arms."""

    factor = ""

    def cell(self, arm: str, seed: int) -> Cell:
        return dataclasses.replace(super().cell(arm, seed), delta={} if arm == self.arms[0] else {self.factor: 1})


def test_nothing_is_said_that_does_not_hold_of_the_factor(tmp_path):
    """Arms of another batch or another text do not see the same batches."""
    study = make(Of(tmp_path / "runs"))
    same = "at the same seed: the same batches in the same order, and the same initial weights"
    for key, shared in (("model.pos", True), ("train.batch", False), ("train.tokens", False), ("data.corpus", False)):
        study.factor = key
        report(study, tmp_path / "out")
        text, page = ((tmp_path / "out" / name).read_text() for name in ("report.md", "report.html"))
        assert (same in text) == shared == ("Same seed, same batches" in page) and "the same initial weights" in text
        assert ("Same seed: minus" in page) == (not shared and not key.startswith("data."))
        assert ("## Training" in text) == key.startswith("data.")  # the figures are on the page: here it would be empty


def test_the_command_line_refuses_what_the_study_refuses(capsys):
    assert main(["POS=alibbi"]) == 2
    assert "alibi" in capsys.readouterr().err


def test_the_suite_has_its_three_means_and_all_runs_choose_the_tasks_of_the_last(study, tmp_path):
    report(full(study), tmp_path / "out")
    x = {
        arm: np.array(
            [
                [task["value"] for task in json.loads(path.read_text())["tasks"].values() if task.get("suite")]
                for path in sorted(study.root.glob(f"{arm},*/eval.json"))
            ]
        )
        for arm in study.arms
    }
    able = np.concatenate(list(x.values())).mean(0) > 0.25 + 2 * 0.05
    assert 0 < able.sum() < 27
    page = section((tmp_path / "out" / "report.md").read_text(), "Task by task")
    assert f"| arm | accuracy | above chance | accuracy, {able.sum()} tasks |" in page
    for arm, value in x.items():
        corrected = 100 * ((value - 0.25) / 0.75).mean()
        assert f"| {arm} | {100 * value.mean():.2f} ± {5 / 27**0.5:.2f} | {corrected:.2f} ± " in page
        assert f" | {100 * value[:, able].mean():.2f} |" in page


def test_the_number_of_examples_in_the_prompts_is_in_every_table(study, tmp_path):
    shots = {"piqa": 0, "copa": 5}
    for arm in study.arms:
        for seed in study.seeds:
            folder = study.cell(arm, seed).dir
            entry = json.loads((folder / "eval.json").read_text())["tasks"][TASK]
            samples = gzip.decompress((folder / "samples.jsonl.gz").read_bytes()).decode()
            lines = [json.loads(line) for line in samples.splitlines()]
            for name, number in shots.items():
                data = {"path": "a/b", "config": "default", "split": "test", "sha256": "beef", "rows": 200}
                other = {**entry, "shots": number, "data": data, "guess": entry["chance"], "mean": False, "suite": True}
                change(folder / "eval.json", "tasks", name, to=other)
                samples += "".join(json.dumps({**x, "task": name}) + "\n" for x in lines if x["task"] == TASK)
            score = {"value": 100 * entry["value"], "stderr": 1.0, "chance": 5.0, "tasks": 2, "of": 27}
            change(folder / "eval.json", "suite", to=score)
            (folder / "samples.jsonl.gz").write_bytes(gzip.compress(samples.encode(), mtime=0))
    text = report(study, tmp_path / "out")
    page = (tmp_path / "out" / "report.md").read_text()
    assert "| piqa, 0 shots |" in page and "| copa, 5 shots |" in page and f"| {TASK} |" in page
    rows = list(csv.DictReader((tmp_path / "out/results.csv").open()))
    assert {row["task"]: row["shots"] for row in rows if row["task"] in shots} == {"piqa": "0", "copa": "5"}
    assert "tasks with 0 or 5 examples in each prompt" in text and "zero-shot tasks" not in text


def test_domains_have_a_table(tmp_path):
    study = make(Study(tmp_path / "runs", seeds=[1, 2]))
    for arm in study.arms:
        for seed in study.seeds:
            entry = {"value": 2.0 + seed / 10 + EFFECT[arm], "stderr": 0.05, "bytes": 9, "n": 3}
            to = {"pile": {"Github": entry, "ArXiv": {**entry, "value": 3.0}}}
            change(study.cell(arm, seed).dir / "eval.json", "by_domain", to=to)
    report(study, tmp_path / "out")
    table = section((tmp_path / "out/report.md").read_text(), "Loss by domain")
    assert "| Github | 2.150 ± 0.050 | 2.090 ± 0.050 | 3 |" in table and "| ArXiv | 3.000 ± 0.050 |" in table
    change(study.cell("pos=alibi", 1).dir / "eval.json", "by_domain", to={"own": {"ArXiv": entry}})
    report(study, tmp_path / "out")
    table = section((tmp_path / "out/report.md").read_text(), "Loss by domain")
    assert "| ArXiv, of own | - | 2.140 ± 0.050 | 3 |" in table


def test_what_stands_beyond_the_training_length_is_said(tmp_path):
    study = make(Study(tmp_path / "runs", seeds=[1, 2], arms=list(ARMS)))
    for arm in study.arms:
        for seed in study.seeds:
            n = 2 if arm == "pos=learned" else 8
            values = [2.5 + i * {"pos=none": 0.01}.get(arm, 0.0) + seed / 10 for i in range(n)]
            curve = {"positions": [64.0 + 128 * i for i in range(n)], "bits_per_byte": values, "tokens": 4096}
            change(study.cell(arm, seed).dir / "eval.json", "by_position", to=curve)
    report(study, tmp_path / "out")
    text = section((tmp_path / "out/report.md").read_text(), "Beyond the training length")
    assert "| pos=learned | 2.650 | - | - | - |" in text and "* pos=learned: there is no vector" in text
    assert "| pos=none | 2.660 | 2.680 | 2.720 | +0.060 |" in text
    assert "| pos=alibi | 2.650 | 2.650 | 2.650 | +0.000 |" in text
    assert "* pos=none: nothing has to be extended" in text and "the same 4,096 tokens" in text


def with_copying(study, scores: dict[str, float]) -> None:
    """Adds the two tasks of copying, 50 questions each; `scores`: {arm: its share of right answers}. Without the
    snippet every arm has a share of 0.4."""
    for arm in study.arms:
        for seed in study.seeds:
            folder = study.cell(arm, seed).dir
            result = json.loads((folder / "eval.json").read_text())
            rows = [json.loads(x) for x in gzip.decompress((folder / "samples.jsonl.gz").read_bytes()).splitlines()]
            rows = [row for row in rows if "copy_" not in row["task"]]
            for name, share in (("copy_absent", 0.4), ("copy_inside", scores[arm]), ("copy_beyond", scores[arm])):
                task = f"pydocs/{name}"
                rows += [{"task": task, "id": f"{name}{i}", "value": int(i < 50 * share)} for i in range(50)]
                entry = dict(result["tasks"]["pydocs/copy_absent"])
                result["tasks"][task] = entry | {"value": share, "mean": name != "copy_absent"}
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (folder / "samples.jsonl.gz").write_bytes(gzip.compress(text.encode(), mtime=0))
            (folder / "eval.json").write_text(json.dumps(result))
            rescore(folder)


def test_tasks_of_copying_say_what_they_do_not_show(study, tmp_path):
    with_copying(study, {"pos=learned": 0.42, "pos=alibi": 0.9})
    before = values(study, "zero_shot")
    report(study, tmp_path / "out")
    text = section((tmp_path / "out/report.md").read_text(), "Task by task")
    assert "pydocs/copy_inside: not shown to copy: pos=learned." in text
    assert "pydocs/copy_beyond: not shown to copy: pos=learned." in text
    assert "pydocs/copy_beyond: the input of pos=learned is cut to the training length" in text
    assert (values(study, "zero_shot") == before).all()  # the mean stays
    with_copying(study, {"pos=learned": 0.9, "pos=alibi": 0.9})
    report(study, tmp_path / "both")
    text = section((tmp_path / "both/report.md").read_text(), "Task by task")
    assert "not shown to copy:" not in text and "is cut to the training length" in text


def test_the_schemes_whose_input_is_cut_are_those_with_a_longest_input():
    for name, scheme in POSITIONS.items():
        longest = scheme(resolve([("size", "nano"), ("model.pos", name)]).model).max_length
        assert (longest is not None) == (name in CUT_TO_TRAINING_LENGTH)


def test_what_preparation_noted_about_the_text_is_in_the_report(study, tmp_path):
    dropped = "größer: the tokenizer changes or drops at least 4.9% of the bytes of held-out text"
    for arm in study.arms:
        for seed in study.seeds:
            run = study.cell(arm, seed).dir / "run.json"
            change(run, "data", "notes", to=["größer: dedup=near removed nothing", dropped])
    text = report(study, tmp_path / "out")
    assert text.count(dropped) == 1 and "removed nothing" not in text
