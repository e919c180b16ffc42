"""The report (eval/report) on run directories made by a fixed recipe, and in a browser."""

import csv
import dataclasses
import errno
import gzip
import html
import json
import os
import re
import shlex
import shutil
import subprocess
import xml.dom.minidom
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from ablations import drawing, rundir, safe_files
from ablations.config import resolve
from ablations.criteria import METRICS, Criteria
from ablations.registration import FIXED, UNTIL_DECIDED
from ablations.study import from_args
from ablations.values import human
from eval.report import expense
from eval.report.__main__ import main
from eval.report.blocks import Figure, Section, Table
from eval.report.collection import collect_runs, run_directories
from eval.report.contents import contents
from eval.report.curves import BINS, binned, curve, subtract
from eval.report.findings import gather, recorded_noise
from eval.report.formats import comma_separated, latex, markdown, plain_text
from eval.report.page import page
from eval.report.record import report, write
from eval.report.request import Request, parse
from eval.report.runs import budget_seconds, read
from eval.report.sections import published
from eval.report.sections.mismatches import mismatches
from eval.report.sections.scaling import power_law
from eval.report.short_names import shortest_ends
from eval.statistics.bootstrap import bootstrap, interval
from eval.statistics.sequential import share
from eval.statistics.verdicts import verdict

ARMS = {"pos=learned": {}, "pos=alibi": {"model.pos": "alibi"}, "pos=none": {"model.pos": "none"}}
EFFECT = {"pos=learned": 0.0, "pos=alibi": -0.06, "pos=none": 0.001}  # bits per byte
ROOT = Path(__file__).parents[1]
FILES = ["figure.svg", "report.html", "report.md", "results.csv", "run.json", "table.tex"]


@dataclass
class Cell:
    dir: Path
    config: dict
    delta: dict


@dataclass
class Study:
    """As ablations.study.Study: what a report needs of it."""

    root: Path
    arms: list[str] = field(default_factory=lambda: ["pos=learned", "pos=alibi"])
    seeds: list[int] = field(default_factory=lambda: [1, 2, 3])
    name: str = "position-alibi-nano"
    title: str = "position, nano, 1M tokens each, 3 seeds"
    question: str = "Which position scheme is best?"
    expect: str = "ALiBi."
    command: str = "make ablation POS=alibi SEEDS=3"
    criteria: Criteria = field(default_factory=lambda: Criteria(seeds=3))

    def cell(self, arm: str, seed: int) -> Cell:
        return Cell(self.root / f"{arm},seed={seed}", config(arm, seed), ARMS[arm])


def config(arm: str, seed: int) -> dict:
    return {
        "size": "nano",
        "seed": seed,
        "model": {"pos": arm.split("=")[1], "seq": 256, "vocab": 4096},
        "data": {"corpus": "pydocs", "tokenizer": "pydocs"},
        "train": {"tokens": 1048576, "lr": 2e-3},
        "eval": {"corpora": ["pydocs"]},
        "layout": {"processes": 1},
    }


def make(study: Study) -> Study:
    """Writes the run directories of a study whose true effects are EFFECT, with noise from seeds and
    items."""
    for arm in study.arms:
        for seed in study.seeds:
            rng = np.random.default_rng([list(ARMS).index(arm), seed])
            shared = np.random.default_rng([99, seed])  # the batches are the same in every arm
            folder = study.cell(arm, seed).dir
            folder.mkdir(parents=True)
            run = {
                "cell": folder.name,
                "arm": arm,
                "seed": seed,
                "config": config(arm, seed),
                "delta": ARMS[arm],
                "fingerprint": f"{arm}{seed}",
                "commit": {"sha": "0123abc", "dirty": False},
                "versions": {"python": "3.11.7", "torch": "2.13.0"},
                "hardware": {"device": "a processor", "ranks": 1, "threads": 1},
                "continued": [],
                "data": {
                    "corpus": "pydocs",
                    "sha256": "text",
                    "mismatch": [],
                    "tokenizer": {"corpus": "pydocs", "vocab": 4096, "sha256": "pieces"},
                },
                "parameters": {"count": 1350400, "groups": []},
                "proofs": [
                    {"factor": "model.pos", "value": arm.split("=")[1], "passed": True, "detail": "acts | so"},
                    {"factor": "model.act", "value": "gelu", "passed": True, "detail": "measured"},
                ],
                "effective": {"train.batch": 8, "model.layers": 4},
            }
            (folder / "run.json").write_text(json.dumps(run))
            steps = np.arange(8, 513, 8)
            drift = EFFECT[arm] * 2.3 * steps / 512
            loss = 3 + 6 * (steps / 8) ** -0.4 + drift + shared.normal(0, 0.08, 64) + rng.normal(0, 0.01, 64)
            lines = [
                {
                    "step": int(s),
                    "tokens": int(s) * 2048,
                    "loss": float(x),
                    "lr": 1e-3,
                    "grad_norm": 1.0,
                    "tokens_per_second": 11000.0,
                    "seconds": float(s) / 5,
                }
                for s, x in zip(steps, loss, strict=True)
            ]
            (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
            (folder / "done").write_text("{}")
            evaluated(folder, arm, seed)
    return study


def evaluated(folder: Path, arm: str, seed: int) -> None:
    fixed, rng = np.random.default_rng(5), np.random.default_rng([list(ARMS).index(arm), seed, 1])
    sizes = fixed.integers(200, 4096, 60)
    bits = sizes * (2.5 + fixed.normal(0, 0.3, 60) + EFFECT[arm] + rng.normal(0, 0.02, 60) + rng.normal(0, 0.003))
    rows = [
        {"task": "pydocs/bits_per_byte", "id": f"d{i}", "nats": b * np.log(2), "bytes": int(n)}
        for i, (b, n) in enumerate(zip(bits, sizes, strict=True))
    ]
    tasks = {
        "pydocs/bits_per_byte": {
            "metric": "bits_per_byte",
            "value": bits.sum() / sizes.sum(),
            "stderr": 0.04,
            "n": 60,
            "chance": None,
            "higher_is_better": False,
            "mean": False,
        }
    }
    for task, n, chance, mean in [
        ("last_word", 200, 0.05, True),
        ("continuation", 100, 0.25, True),
        ("copy_absent", 50, 0.25, False),
    ]:
        hard = np.random.default_rng([len(task)]).random(n)  # a question is as hard in every run
        hits = (hard + rng.normal(0, 0.1, n) < 0.4 - EFFECT[arm]).astype(int)
        rows += [{"task": f"pydocs/{task}", "id": f"{task}{i}", "value": int(hit)} for i, hit in enumerate(hits)]
        tasks[f"pydocs/{task}"] = {
            "metric": "acc",
            "value": hits.mean(),
            "stderr": float(stats.sem(hits)),
            "n": n,
            "chance": chance,
            "context_tokens": [20, 90],
            "higher_is_better": True,
            "mean": mean,
        }
    scores = [task for task in tasks.values() if task["mean"]]
    result = {
        "version": 1,
        "lm_eval": "0.4.13",
        "weights_sha256": f"{arm}{seed}",
        "corpora": ["pydocs"],
        "tasks": tasks,
        "omitted": [],
        "bits_per_byte": {"value": tasks["pydocs/bits_per_byte"]["value"], "stderr": 0.04},
        "zero_shot": {"value": 50 * sum(s["value"] for s in scores), "stderr": 2.0, "chance": 15.0},
        "seconds": 9.4,
    }
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "samples.jsonl.gz").write_bytes(gzip.compress(text.encode(), mtime=0))
    (folder / "eval.json").write_text(json.dumps(result))


def change(path: Path, *keys, to) -> None:
    """Sets one value inside a JSON file."""
    content = json.loads(path.read_text())
    inner = content
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = to
    path.write_text(json.dumps(content))


def rewrite(folder: Path, edit, task: str = "pydocs/bits_per_byte") -> None:
    """Edits the items of a task, and makes its score, and those that are means of scores, what the items give."""
    rows = [json.loads(line) for line in gzip.decompress((folder / "samples.jsonl.gz").read_bytes()).splitlines()]
    rows = [edit(dict(row)) if row["task"] == task else row for row in rows]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "samples.jsonl.gz").write_bytes(gzip.compress(text.encode(), mtime=0))
    own = [row for row in rows if row["task"] == task]
    if "nats" in own[0]:
        value = sum(row["nats"] for row in own) / np.log(2) / sum(row["bytes"] for row in own)
    else:
        value = np.mean([row["value"] for row in own])
    change(folder / "eval.json", "tasks", task, "value", to=float(value))
    rescore(folder)


def rescore(folder: Path) -> None:
    """Makes the headlines of eval.json the means of its tasks."""
    result = json.loads((folder / "eval.json").read_text())
    tasks = result["tasks"].values()
    losses = [task["value"] for task in tasks if task["metric"] == "bits_per_byte"]
    scores = [task["value"] for task in tasks if task["mean"]]
    change(folder / "eval.json", "bits_per_byte", "value", to=float(np.mean(losses)))
    change(folder / "eval.json", "zero_shot", "value", to=100 * float(np.mean(scores)))


def shift(folder: Path, bits_per_byte: float) -> None:
    """Makes every held-out document of a run worse by so much."""
    rewrite(folder, lambda row: row | {"nats": row["nats"] + bits_per_byte * row["bytes"] * float(np.log(2))})


def section(text: str, head: str) -> str:
    return text.split(f"## {head}\n\n")[1].split("\n\n## ")[0]


def values(study: Study, key: str) -> np.ndarray:
    """[arm, seed] of eval.json."""
    return np.array(
        [
            [json.loads((study.cell(arm, seed).dir / "eval.json").read_text())[key]["value"] for seed in study.seeds]
            for arm in study.arms
        ]
    )


@pytest.fixture
def study(tmp_path) -> Study:
    return make(Study(tmp_path / "runs"))


def test_the_table_has_the_shape_of_the_example(study, tmp_path):
    lines = report(study, tmp_path / "out").splitlines()
    head, baseline, alibi = lines[:3]
    assert head.split("    ")[0] == study.title and head.split()[-3:] == ["bits/byte", "zero-shot", "verdict"]
    bits, scores = values(study, "bits_per_byte").mean(1), values(study, "zero_shot").mean(1)
    assert baseline.startswith("pos=learned (baseline) ") and baseline.rstrip().count("±") == 2
    assert f"{bits[0]:.3f} ± 0.0" in baseline and f"{scores[0]:.1f} ± " in baseline
    assert f"{bits[1]:.3f} ± 0.0" in alibi
    assert alibi.endswith(" × noise)") and f"better by {bits[0] - bits[1]:.3f} (" in alibi
    columns = [head.index("bits/byte"), head.index("zero-shot"), head.index("verdict")]
    assert all(alibi[c - 1] == " " and alibi[c] != " " for c in columns)  # aligned


def test_numbers_equal_scipy_on_the_same_directories(study, tmp_path):
    """With item noise taken out of the samples, the p-value is that of the paired t-test over seeds."""
    for arm in study.arms:
        for seed in study.seeds:
            folder = study.cell(arm, seed).dir
            value = json.loads((folder / "eval.json").read_text())["bits_per_byte"]["value"]
            rewrite(folder, lambda row, value=value: row | {"nats": row["bytes"] * value * float(np.log(2))})
    report(study, tmp_path / "out")
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    got = next(c for c in record["comparisons"] if c["metric"] == "bits_per_byte")
    x = values(study, "bits_per_byte")
    assert got["p"] == pytest.approx(stats.ttest_rel(x[1], x[0]).pvalue, rel=1e-3)
    assert got["noise"] == pytest.approx(stats.sem(x[1] - x[0]), rel=1e-3)
    assert got["difference"] == pytest.approx((x[1] - x[0]).mean())


def test_the_items_are_paired(study, tmp_path):
    """The part of the noise that comes from the documents: over per-document differences, averaged over
    seeds."""
    report(study, tmp_path / "out")
    text = (tmp_path / "out" / "report.md").read_text()
    row = next(line for line in text.splitlines() if line.startswith("| pos=alibi, bits/byte | ") and "d.o.f." in line)
    bits, bits_of = {}, {}
    for arm in study.arms:
        per_seed = []
        for seed in study.seeds:
            lines = map(json.loads, gzip.open(study.cell(arm, seed).dir / "samples.jsonl.gz", "rt"))
            per_seed.append([(line["nats"] / np.log(2), line["bytes"]) for line in lines if "nats" in line])
        bits[arm], bits_of[arm] = np.array(per_seed).mean(0), per_seed
    apart, sizes = bits["pos=alibi"][:, 0] - bits["pos=learned"][:, 0], bits["pos=alibi"][:, 1]
    drawn = np.random.default_rng(0).integers(0, 60, (4000, 60))
    known = np.std(apart[drawn].sum(1) / sizes[drawn].sum(1))
    # what is left of single documents at single seeds is in the seeds' part, not here
    each = np.array([[b for b, _ in seed] for seed in bits_of["pos=alibi"]]) - [
        [b for b, _ in s] for s in bits_of["pos=learned"]
    ]
    rest = each / sizes - (each / sizes).mean(0)
    alone = np.sqrt((rest**2 * sizes**2).sum() / (2 * 3)) / sizes.sum()
    assert float(row.split(" | ")[3]) == pytest.approx(np.sqrt(max(0, known**2 - alone**2)), abs=0.0008)
    assert known < 0.01 < 0.03 < np.std(bits["pos=alibi"][:, 0] / sizes) / 60**0.5


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
        "| model.pos | alibi | active | acts \\| so | pos=alibi, seed 1; pos=alibi, seed 2; pos=alibi, seed 3 |" in page
    )
    assert "| model.act | gelu | active | measured | all |" in page
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


def test_several_arms_are_corrected_for_being_several(tmp_path):
    study = make(Study(tmp_path / "runs", arms=list(ARMS)))
    text = report(study, tmp_path / "out")
    alibi, none = text.splitlines()[2:4]
    assert "it says: pos=alibi exploratory: better by 5.6 (5 × noise); pos=none undecided: " in text
    assert "better by 0.0" in alibi and none.split("    ")[-1].strip().startswith("undecided: ")
    three = {
        c["arm"]: c["p"]
        for c in json.loads((tmp_path / "out" / "run.json").read_text())["comparisons"]
        if c["metric"] == "bits_per_byte"
    }
    x = values(study, "bits_per_byte")
    assert three["pos=none"] == 1.0 or three["pos=none"] > stats.ttest_rel(x[2], x[0]).pvalue / 2
    assert three["pos=alibi"] < 0.05


def test_one_seed_is_no_result(tmp_path):
    study = make(Study(tmp_path / "runs", seeds=[1]))
    text = report(study, tmp_path / "out")
    assert text.splitlines()[2].endswith("undecided: one seed, not replicated")
    assert "better" not in text.replace("higher is better", "").replace("lower is better", "")


def test_the_noise_floor_has_what_the_arms_of_a_seed_share(tmp_path):
    """Two runs of one arm do not share it; a comparison of arms, and so what more seeds would see, is without it."""
    study, quiet = make(Study(tmp_path / "runs")), {}
    for size in (0.0, 0.1):
        for arm in study.arms:
            for seed in study.seeds:
                shift(study.cell(arm, seed).dir, size * seed)
        report(study, tmp_path / "out")
        words = (tmp_path / "out/report.md").read_text().split("**Noise floor, bits/byte.** ")[1]
        within = np.mean(np.var(values(study, "bits_per_byte"), axis=1, ddof=1))
        assert float(words.split(" bits/byte apart")[0].split()[-1]) == pytest.approx(
            stats.t.isf(0.025, 4) * np.sqrt(2 * within), abs=6e-5
        )
        quiet[size] = words.split(" a study of")[1].split("\n")[0]
    assert quiet[0.0] == quiet[0.1]


def test_recorded_noise_counts_the_seeds_that_two_arms_share(tmp_path):
    study = make(Study(tmp_path / "runs", seeds=[1, 2, 3, 4, 5]))
    for seed in (3, 4, 5):
        shutil.rmtree(study.cell("pos=alibi", seed).dir)
    report(study, tmp_path / "out")
    got = json.loads((tmp_path / "out/run.json").read_text())["noise"]["bits/byte"]
    # without seeds one degree of freedom would be left, so it is the variance within arms (eval/statistics/seeds.py)
    rows = [
        [json.loads((study.cell(arm, seed).dir / "eval.json").read_text())["bits_per_byte"]["value"] for seed in seeds]
        for arm, seeds in zip(study.arms, (study.seeds, (1, 2)), strict=True)
    ]
    pooled = (4 * np.var(rows[0], ddof=1) + np.var(rows[1], ddof=1)) / 5
    assert got["dof"] == 5 and got["seed_sd"] == pytest.approx(np.sqrt(pooled))


def test_a_run_that_failed_is_said_to_have_failed(study, tmp_path):
    folder = study.cell("pos=alibi", 2).dir
    for name in ("done", "eval.json"):
        (folder / name).unlink()
    (folder / "failed").write_text("step 12: loss 11.4, above log(vocab) + train.divergence = 10.3\n")
    assert report(study, tmp_path / "out").splitlines()[2].endswith("; 1 of 3 runs missing, 1 failed")
    page = section((tmp_path / "out" / "report.md").read_text(), "What does not match")
    assert "pos=alibi, seed 2: failed (step 12: loss 11.4, above log(vocab)" in page
    (folder / "run.json").unlink()  # a factor that does nothing stops a run before it has one
    assert report(study, tmp_path / "out").splitlines()[2].endswith("; 1 of 3 runs missing, 1 failed")


def test_one_proof_may_be_of_several_factors(study, monkeypatch):
    key, folder = "model.qkv_bias", study.cell("pos=alibi", 2).dir
    monkeypatch.setitem(ARMS, "pos=alibi", {key: False})
    cells = {(arm, seed): read(study.cell(arm, seed).dir) for arm in study.arms for seed in study.seeds}
    lacking = f"there is no activity proof of {key}"
    assert any(lacking in line for line in mismatches(study, cells))
    for seed in study.seeds:
        change(folder.parent / f"pos=alibi,seed={seed}/run.json", "proofs", 1, "factor", to=f"{key}, model.linear_bias")
    cells = {(arm, seed): read(study.cell(arm, seed).dir) for arm in study.arms for seed in study.seeds}
    assert not any(lacking in line for line in mismatches(study, cells))


def test_nothing_is_written_over_a_record_when_no_run_has_begun(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["POS=alibi", f"OUT={tmp_path / 'none'}"]) == 2
    assert "no run of this study has begun under" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_record_gives_way_only_to_a_report_that_has_its_runs(tmp_path, capsys, monkeypatch):
    made = make(Study(tmp_path / "runs", arms=list(ARMS)))
    monkeypatch.chdir(tmp_path)
    record, elsewhere = (tmp_path / folder / made.name for folder in ("ablations/records", "out/records"))

    def reported(arms: list[str], seeds: list[int], root: Path = made.root, *words: str) -> tuple[bool, bool]:
        """Whether each of the two was written."""
        for folder in (record, elsewhere):
            if folder.exists():
                (folder / "report.md").write_text("before")
        monkeypatch.setattr("eval.report.request.parse", lambda _: Request(Study(root, arms=arms, seeds=seeds)))
        assert main(["POS=alibi", "OUT=out", *words]) == 0
        return tuple(
            (folder / "report.md").exists() and (folder / "report.md").read_text() != "before"
            for folder in (record, elsewhere)
        )

    two = ["pos=learned", "pos=alibi"]
    assert reported(two, [1, 2]) == (True, False)  # there was none
    assert reported(two, [1, 2]) == (True, False) and "stays" not in capsys.readouterr().out
    assert reported(two, [1, 2, 3]) == (True, False)  # more
    assert reported(two, [1, 2]) == (False, True)  # fewer
    said = capsys.readouterr().out
    assert f"{Path('out/records', made.name, 'report.md')}\n" in said
    assert "it has runs that this report lacks: pos=learned (seed 3); pos=alibi (seed 3)." in said
    again = make(Study(tmp_path / "again"))
    assert reported(two, [1, 2, 3], again.root) == (True, False)  # the same runs, made again
    (again.cell("pos=alibi", 2).dir / "done").unlink()
    assert reported(two, [1, 2, 3], again.root) == (False, True)  # not all of them are finished
    change(again.cell("pos=alibi", 2).dir / "run.json", "fingerprint", to="other")
    (again.cell("pos=alibi", 2).dir / "done").write_text("{}")
    assert reported(two, [1, 2, 3], again.root) == (False, True)  # a run of the same name that is another
    shutil.rmtree(record)
    assert reported(two, [1, 2, 3], again.root) == (True, False)
    shutil.copytree(again.root, "out/nano")
    assert len(run_directories("out")) == 6  # the reports that lie there are no runs


@pytest.mark.parametrize("path", sorted((ROOT / "ablations/records").glob("*/run.json")), ids=lambda p: p.parent.name)
def test_the_command_of_a_record_makes_its_runs(path, monkeypatch):
    """Else the command writes its report elsewhere: the record is of another baseline, and to be made again."""
    record = json.loads(path.read_text())
    monkeypatch.setattr("ablations.config.has_gpu", lambda: False)
    monkeypatch.setattr("ablations.config.has_bf16", lambda: True)
    words = shlex.split(record["command"])[2:]
    planned = from_args(words + [f"SIZE={record['size']}"] * (not any(w.startswith("SIZE=") for w in words)))
    assert {cell.run.fingerprint for cell in planned.cells} == {run["fingerprint"] for run in record["runs"]}
    assert planned.name == path.parent.name


def idle(study: Study, arm: str, other: str) -> None:
    """As when an arm computes what another does: the same training, and the same model judged."""
    for seed in study.seeds:
        for name in ("metrics.jsonl", "eval.json", "samples.jsonl.gz"):
            shutil.copy(study.cell(other, seed).dir / name, study.cell(arm, seed).dir / name)


def test_a_switch_that_did_nothing_is_said_at_the_top_and_is_no_result(tmp_path):
    study = make(Study(tmp_path / "runs", arms=list(ARMS)))
    report(study, tmp_path / "without")
    text = (tmp_path / "without/report.md").read_text()
    assert "did nothing" not in text and "bit for bit" not in text
    idle(study, "pos=none", "pos=learned")
    screen = report(study, tmp_path / "out")
    text = (tmp_path / "out/report.md").read_text()
    assert text.index("**pos=none did nothing.**") < text.index("| arm | ") and "pos=none did nothing. Its" in screen
    assert "same losses and gradient norms as those of pos=learned" in text
    line = next(line for line in text.splitlines() if line.startswith("| pos=none | "))
    assert line.endswith("| **the same as pos=learned, bit for bit** |") and "within noise" not in text.split("##")[0]
    record = json.loads((tmp_path / "out/run.json").read_text())
    assert record["bit_for_bit_the_same"] == {"pos=none": "pos=learned"}
    # the others are judged as if it were not there: a run that is there twice is no second measurement
    report(make(Study(tmp_path / "two")), tmp_path / "alone")
    alone = json.loads((tmp_path / "alone/run.json").read_text())
    assert record["comparisons"] == alone["comparisons"] and record["noise"] == alone["noise"]

    path = study.cell("pos=none", 3).dir / "metrics.jsonl"  # one digit at one step of one seed is something
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[-1]["loss"] = float(np.nextafter(rows[-1]["loss"], 9))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert "did nothing" not in report(study, tmp_path / "out")
    (path.parent / "done").unlink()  # what goes on may still differ; seeds 1 and 2 are enough to know
    assert "did nothing" in report(study, tmp_path / "out")
    for seed in (1, 2):
        (study.cell("pos=none", seed).dir / "done").unlink()
    assert "did nothing" not in report(study, tmp_path / "out")


def test_two_arms_that_did_the_same_are_no_two_results(tmp_path):
    study = make(Study(tmp_path / "runs", arms=list(ARMS)))
    idle(study, "pos=none", "pos=alibi")
    report(study, tmp_path / "out")
    assert "as those of pos=alibi" in (tmp_path / "out/report.md").read_text()
    idle(study, "pos=alibi", "pos=learned")
    idle(study, "pos=none", "pos=learned")
    assert (
        report(study, tmp_path / "out").count(
            "did nothing. Its runs logged the same losses and gradient norms as those of pos=learned"
        )
        == 2
    )
    only = make(Study(tmp_path / "only"))
    idle(only, "pos=alibi", "pos=learned")
    assert "pos=alibi did nothing." in report(only, tmp_path / "out")
    text = (tmp_path / "out/report.md").read_text()
    assert "No arm can be compared with the baseline: see above." in text and "yet" not in text


def test_an_arm_whose_seeds_scatter_more_is_named(tmp_path):
    study = make(Study(tmp_path / "runs", arms=list(ARMS), seeds=[1, 2, 3, 4, 5]))
    assert "scatter more" not in report(study, tmp_path / "out")
    for seed in study.seeds:
        shift(study.cell("pos=none", seed).dir, 0.2 * (-1) ** seed)
    assert "pos=none: its seeds scatter more in bits/byte than those of" in report(study, tmp_path / "out")
    text = (tmp_path / "out/report.md").read_text()
    rows = {line.split(" | ")[0]: line for line in text.splitlines() if "d.o.f." in line}
    assert "(4 d.o.f.)" in rows["| pos=none, bits/byte"] and "(8 d.o.f.)" in rows["| pos=alibi, bits/byte"]


def test_what_is_no_run_is_refused_by_name(study, tmp_path, capsys):
    path = study.cell("pos=alibi", 2).dir / "run.json"
    run = path.read_text()
    whole = json.loads(run)
    for content, words in (
        (json.dumps({k: v for k, v in whole.items() if k != "config"}), "it lacks config"),
        (json.dumps(whole | {"config": {"model": {}}}), "config.model.pos is not what a run has there"),
        (json.dumps(whole | {"hardware": {"device": 5}}), "hardware.device is not what"),
        (json.dumps(whole | {"proofs": [{"factor": 5}]}), "proofs.factor is not what"),
        (json.dumps(whole | {"proofs": [0]}), "proofs is not what"),
        (json.dumps(whole | {"rollbacks": [{"back_to": 8, "samples_left_out": [1], "why": ""}]}), "rollbacks is not"),
        (run[:99], "is not a JSON object"),
        ("[]", "is not a JSON object"),
        (run.replace("1350400", "NaN"), "is not a JSON object"),
    ):
        path.write_text(content)
        for request in ([f"RUNS={path.parent}"], ["POS=alibi", f"NOISE={path.parent}"]):
            if "NOISE" in request[-1]:
                request = [f"RUNS={study.root}", request[-1]]
            assert main(request) == 2
            message = capsys.readouterr().err
            assert str(path) in message and words in message


def test_missing_and_unfinished_cells_are_named(study, tmp_path):
    shutil.rmtree(study.cell("pos=alibi", 1).dir)
    (study.cell("pos=alibi", 2).dir / "eval.json").unlink()
    log = study.cell("pos=learned", 3).dir / "metrics.jsonl"
    log.write_text(log.read_text()[:-30])  # killed in the middle of a line
    (study.cell("pos=learned", 3).dir / "done").unlink()
    text = report(study, tmp_path / "out")
    assert text.splitlines()[1].endswith("1 of 3 runs missing")
    assert text.splitlines()[2].endswith("2 of 3 runs missing")  # and no seed in common: no verdict
    assert "3 things do not match" in text
    page = section((tmp_path / "out" / "report.md").read_text(), "What does not match")
    assert page.splitlines() == [
        "* pos=learned, seed 3: not finished, so not among the results",
        "* pos=alibi, seed 1: not started, so not among the results",
        "* pos=alibi, seed 2: not evaluated, so not among the results",
    ]
    (study.cell("pos=alibi", 3).dir / "samples.jsonl.gz").unlink()  # sent without
    assert report(study, tmp_path / "out").splitlines()[2].endswith("3 of 3 runs missing")
    shutil.rmtree(study.root)
    assert "-    " in report(study, tmp_path / "nothing")


@pytest.mark.parametrize(
    "file, keys, to, line",
    [
        ("run.json", ["commit", "sha"], "fff", "commit.sha differs: 0123abc ("),
        ("run.json", ["commit", "dirty"], True, "pos=alibi, seed 2: ran from a working tree with changes"),
        ("run.json", ["versions", "torch"], "2.12.0", "versions.torch differs: 2.13.0 ("),
        ("run.json", ["hardware", "threads"], 2, "hardware.threads differs: 1 ("),
        ("run.json", ["config", "layout", "processes"], 2, "layout.processes differs: 1 ("),
        ("run.json", ["execution"], {"compiled": "always"}, "layout.compile differs: auto ("),
        (
            "run.json",
            ["continued"],
            [{"commit": {"sha": "fff", "dirty": False}, "versions": {}, "hardware": {}}],
            "pos=alibi, seed 2, when it was continued: commit.sha differs: 0123abc (begun); fff (continued)",
        ),
        ("run.json", ["data", "sha256"], "other", "text of pydocs differs: text ("),
        ("run.json", ["data", "mismatch"], ["numpy 1.0"], "pos=alibi, seed 2, text: numpy 1.0"),
        ("run.json", ["data", "tokenizer", "sha256"], "x", "tokenizer of pydocs with 4096 pieces differs: pieces ("),
        (
            "run.json",
            ["config", "train", "lr"],
            1e-3,
            "pos=alibi, seed 2: differs from the baseline in more than its line: train.lr=0.001",
        ),
        (
            "run.json",
            ["config", "train", "lr"],
            1e-3,
            "pos=alibi, seed 2: ran with another configuration than the study has now: train.lr=0.001",
        ),
        (
            "run.json",
            ["effective", "train.batch"],
            16,
            "pos=alibi, seed 2: differs in effect from the baseline in more than its line: train.batch=16",
        ),
        ("run.json", ["proofs", 0, "passed"], False, "pos=alibi, seed 2: the activity proof of model.pos failed"),
        ("run.json", ["proofs"], [], "pos=alibi, seed 2: there is no activity proof of model.pos"),
        (
            "run.json",
            ["rollbacks"],
            [{"why": "step 70: loss 9.1", "back_to": 64, "samples_left_out": [512, 600]}],
            "pos=alibi, seed 2: went back to step 64, and left out samples 512 to 600: step 70: loss 9.1",
        ),
        ("eval.json", ["version"], 2, "evaluation.version differs: 1 ("),
        ("eval.json", ["lm_eval"], "0.5", "evaluation.lm_eval differs: 0.4.13 ("),
        ("eval.json", ["omitted"], ["pydocs/copy_inside"], "pydocs/copy_inside: left out, the held-out text"),
    ],
)
def test_everything_that_does_not_match_is_said(study, file, keys, to, line):
    change(study.cell("pos=alibi", 2).dir / file, *keys, to=to)
    found = mismatches(
        study, {(arm, seed): read(study.cell(arm, seed).dir) for arm in study.arms for seed in study.seeds}
    )
    assert [each for each in found if each.startswith(line)], found


def test_a_run_that_was_compiled_only_when_it_was_continued_is_named(study):
    run = study.cell("pos=alibi", 2).dir / "run.json"
    launch = {key: json.loads(run.read_text())[key] for key in ("commit", "versions", "hardware")}
    modes = [{"execution": {"compiled": mode}} for mode in ("never", "always", "never")]
    change(run, "execution", to=modes[0]["execution"])
    change(run, "continued", to=[launch | mode for mode in modes[1:]])
    cells = {(arm, seed): read(study.cell(arm, seed).dir) for arm in study.arms for seed in study.seeds}
    said = "pos=alibi, seed 2, when it was continued: layout.compile differs: never (begun); always (continued)"
    assert [line for line in mismatches(study, cells) if "continued" in line] == [said]


def test_what_all_runs_share_is_said_once(study):
    for arm in study.arms:
        for seed in study.seeds:
            change(study.cell(arm, seed).dir / "run.json", "commit", "dirty", to=True)
    cells = {(arm, seed): read(study.cell(arm, seed).dir) for arm in study.arms for seed in study.seeds}
    assert mismatches(study, cells) == ["all runs: ran from a working tree with changes that are in no commit"]


@pytest.mark.filterwarnings("error::RuntimeWarning")  # a rank of runs without a task in common was NaN
def test_a_comparison_that_is_refused_is_said_last_and_in_the_exit_code(study, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([f"RUNS={study.root}", f"OUT={tmp_path}"]) == 0 and not capsys.readouterr().err
    change(study.cell("pos=alibi", 2).dir / "eval.json", "precision", to="bf16")
    assert main([f"RUNS={study.root}", f"OUT={tmp_path}"]) == 3
    said = capsys.readouterr().err
    assert said.startswith("refused: ") and said.endswith("the report is written, and says which\n")
    assert list(tmp_path.rglob("report.md"))


def test_an_arm_that_was_asked_other_questions_is_not_compared(study, tmp_path):
    path = study.cell("pos=alibi", 2).dir / "samples.jsonl.gz"
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()).replace(b'"d7"', b'"other"'), mtime=0))
    text = report(study, tmp_path / "out")
    assert text.splitlines()[2].endswith("evaluated differently: not compared")
    assert "Evaluated differently, so not compared: pos=alibi (seed 2): pydocs/bits_per_byte: items" in text
    comparisons = json.loads((tmp_path / "out" / "run.json").read_text())["comparisons"]
    assert [c["metric"] for c in comparisons] == ["zero_shot"]  # on which both were asked the same


def test_curves_are_averaged_over_the_tokens_that_all_seeds_have():
    tokens = np.arange(1, 101) * 2048
    line = {1: (tokens, np.full(100, 2.0)), 2: (tokens[:60], np.full(60, 3.0))}
    x, means = binned(line)
    assert x[-1] <= tokens[59] and (np.diff(x) > 0).all() and len(x) <= BINS
    assert (means[1] == 2).all() and (means[2] == 3).all()
    straight = binned({1: (tokens, tokens.astype(float))})
    assert np.allclose(straight[1][1], straight[0])  # a mean of losses stands at the mean of its tokens
    t, d = subtract((tokens[5:], np.full(95, 2.5)), (tokens[:50], np.full(50, 2.0)))
    assert list(t) == list(tokens[5:50]) and (d == 0.5).all()


def test_runs_by_the_clock_are_compared_at_the_same_time():
    """Two runs of different speeds, logged at times of their own, whose loss is 5 - seconds / 10."""
    cells = {}
    for seed, step in ((1, 0.7), (2, 1.1)):
        seconds = np.arange(1, int(20 / step) + 1) * step
        rows = [{"tokens": int(s * 999 * seed), "seconds": float(s), "loss": 5 - float(s) / 10} for s in seconds]
        cells[seed] = {"metrics": rows, "run": {"config": {"train": {"budget": "20s"}}}}
    assert (
        budget_seconds(cells[1]) == 20 and budget_seconds({"run": {"config": {"train": {"budget": "twenty"}}}}) is None
    )
    x, means = binned({seed: curve(cell, clock=True) for seed, cell in cells.items()})
    assert 1.1 <= x[0] < 1.5 and 18 < x[-1] <= 20  # where both have lines in their logs
    assert means[1] == pytest.approx(5 - x / 10) and means[2] == pytest.approx(means[1])
    t, d = subtract(curve(cells[1], clock=True), curve(cells[2], clock=True))
    assert len(t) > 100 and d == pytest.approx(0.0, abs=1e-9)


def test_the_command_line_refuses_what_the_study_refuses(capsys):
    assert main(["POS=alibbi"]) == 2
    assert "alibi" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------ what it looks like


def full(study: Study) -> Study:
    """Adds to every run what a large study has: the suite of 27 tasks, checkpoints on the way, loss by position, two
    corpora."""
    names = list(published.load()["per_task"]["rows"])
    for arm in study.arms:
        for seed in study.seeds:
            folder = study.cell(arm, seed).dir
            rng = np.random.default_rng([list(ARMS).index(arm), seed, 7])
            shape = asdict(resolve([("size", "nano"), ("model.pos", arm.split("=")[1])]).model)
            change(folder / "run.json", "config", "model", to=shape)  # one that has FLOPs
            result = json.loads((folder / "eval.json").read_text())
            samples = gzip.decompress((folder / "samples.jsonl.gz").read_bytes()).decode()
            for i, task in enumerate(names):
                hits = (
                    np.random.default_rng(i).random(80) + rng.normal(0, 0.05, 80) < 0.3 + i / 60 - EFFECT[arm]
                ).astype(int)
                samples += "".join(
                    json.dumps({"task": task, "id": j, "value": int(h)}) + "\n" for j, h in enumerate(hits)
                )
                result["tasks"][task] = {
                    "metric": "acc",
                    "value": hits.mean(),
                    "stderr": 0.05,
                    "n": 80,
                    "chance": 0.25,
                    "guess": 0.25,
                    "version": 1.0,
                    "higher_is_better": True,
                    "mean": False,
                    "suite": True,
                }
            other = dict(result["tasks"]["pydocs/bits_per_byte"])
            lines = [{**json.loads(x), "task": "pycode/bits_per_byte"} for x in samples.splitlines() if '"nats"' in x]
            result["tasks"]["pycode/bits_per_byte"] = other
            samples += "".join(json.dumps(line) + "\n" for line in lines)
            mean = 100 * np.mean([result["tasks"][task]["value"] for task in names])
            result["suite"] = {"value": mean, "stderr": 1.0, "chance": 25.0, "tasks": 27, "of": 27}
            positions = [64, 128, 256, 512, 1024]
            result["by_position"] = {
                "positions": positions,
                "bits_per_byte": [3.0, 2.7, 2.6, 2.6 - 10 * EFFECT[arm], 3.9],
            }
            (folder / "samples.jsonl.gz").write_bytes(gzip.compress(samples.encode(), mtime=0))
            (folder / "eval.json").write_text(json.dumps(result))
            for step in (128, 256):
                early = {**result, "tokens": step * 2048, "suite": {**result["suite"], "value": mean - 500 / step}}
                (folder / f"eval-step_{step}.json").write_text(json.dumps(early))
    return study


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


BROWSER = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)

INSPECT = """\
<body style="margin:0"><iframe width="%d" height="800" style="border:0" srcdoc="%s"></iframe><script>
onload = () => {
  const d = document.querySelector("iframe").contentDocument, found = [];
  d.querySelectorAll("figure > svg").forEach(f => {
    f.closest("details")?.setAttribute("open", "");
    const box = f.getBoundingClientRect(), out = [...f.querySelectorAll("text")].filter(t => {
      const b = t.getBoundingClientRect();
      return b.left < box.left - 2 || b.right > box.right + 2 || b.top < box.top - 2 || b.bottom > box.bottom + 2;
    });
    const title = f.getAttribute("aria-label"), cut = out.map(t => t.textContent);
    found.push({title, width: box.width, height: box.height, out: cut});
  });
  const heads = d.querySelectorAll("th button"); heads.forEach(h => h.click());
  const first = d.querySelector("table"), names = () => [...first.tBodies[0].rows].map(r => r.cells[1].textContent);
  first.querySelectorAll("button")[1].click();
  const up = names(); first.querySelectorAll("button")[1].click();
  document.title = JSON.stringify({found, sorted: d.querySelectorAll("th[aria-sort]").length, up, down: names(),
    width: d.documentElement.scrollWidth, tables: d.querySelectorAll("table").length,
    asked: performance.getEntriesByType("resource").length, ink: getComputedStyle(d.querySelector(".fig text")).fill});
};
</script></body>"""


def inspect(tmp_path: Path, text: str, width: int, dark: bool = False) -> tuple[dict, list[str]]:
    """What Chromium makes of a page at a width in CSS pixels, and what its console says."""
    outer = tmp_path / f"outer-{width}-{dark}.html"
    outer.write_text(INSPECT % (width, html.escape(text)))
    command = [
        BROWSER,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--window-size={max(width, 500)},900",
        f"--user-data-dir={tmp_path / 'profile'}",
        "--enable-logging=stderr",
        "--dump-dom",
        outer.as_uri(),
    ]
    if dark:
        command.insert(1, "--blink-settings=preferredColorScheme=0")
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    said = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return json.loads(html.unescape(re.findall(r"<title>(\{.*?\})</title>", done.stdout)[0])), said


@pytest.mark.skipif(not BROWSER, reason="needs chromium (apt-get install chromium)")
def test_a_browser_shows_every_figure_and_reports_no_error(tmp_path):
    study = full(make(Study(tmp_path / "runs", arms=list(ARMS))))
    report(study, tmp_path / "out")
    text = (tmp_path / "out" / "report.html").read_text()
    assert not re.findall(r"""(?:src|href)=["'](?!#|data:)|@import|url\(""", text)  # nothing is fetched
    colours = set()
    for width, dark in ((1100, False), (390, False), (390, True)):
        seen, said = inspect(tmp_path, text, width, dark)
        assert said == [] and seen["asked"] == 0
        titles = [f["title"] for f in seen["found"]]
        for words in (
            "bits/byte: difference",
            "zero-shot: difference",
            "suite: difference",
            "Training loss against tokens",
            "against FLOPs",
            "against hours",
            "Same seed, same batches",
            "suite against tokens",
            "bits/byte against tokens",
            "Loss by position",
            "Bits per byte: trained",
            "Accuracy in %",
        ):
            assert any(words in title for title in titles), words
        assert all(f["width"] > 300 and f["height"] > 60 for f in seen["found"]), seen["found"]
        assert [f["out"] for f in seen["found"] if f["out"]] == []  # no word is cut off
        assert seen["width"] <= width  # nothing makes the page itself scroll sideways
        assert seen["sorted"] == seen["tables"] > 8
        assert seen["up"] == sorted(seen["up"]) and seen["down"] == seen["up"][::-1]
        colours.add(seen["ink"])
    assert len(colours) == 2  # light and dark


def test_every_figure_is_well_formed_and_drawn_the_same_every_time(tmp_path):
    study = full(make(Study(tmp_path / "runs")))
    report(study, tmp_path / "one")
    report(study, tmp_path / "two")
    text = (tmp_path / "one" / "report.html").read_text()
    figures = re.findall(r"<figure>(<svg.*?</svg>)(?:<figcaption>|</figure>)", text, re.S)
    assert len(figures) >= 11
    for each in [*figures, (tmp_path / "one" / "figure.svg").read_text()]:
        xml.dom.minidom.parseString(
            each.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1) if "xmlns" not in each else each
        )
        assert "nan" not in each.lower().replace("nano", "") and "inf " not in each
    for name in FILES:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_nothing_within_noise_is_bold(tmp_path):
    study = make(Study(tmp_path / "runs", arms=list(ARMS)))
    report(study, tmp_path / "out")
    for name, bold in (
        ("report.md", r"\*\*(.+?)\*\*"),
        ("report.html", "<strong>(.+?)</strong>"),
        ("table.tex", r"\\textbf\{(.+?)\}"),
    ):
        text = (tmp_path / "out" / name).read_text()
        assert "undecided: " in text and not any(words.startswith("undecided: ") for words in re.findall(bold, text))
        assert any(words.startswith("better by") for words in re.findall(bold, text)), name


def test_ticks_and_numbers():
    assert drawing.ticks(0, 10) == [0, 2, 4, 6, 8, 10] and drawing.ticks(-0.31, 0.02) == [-0.3, -0.2, -0.1, 0]
    assert drawing.ticks(900, 2.1e6, log=True) == [1e3, 1e4, 1e5, 1e6]
    assert drawing.ticks(2e4, 3e5, log=True) == [2e4, 5e4, 1e5, 2e5]
    assert [human(x) for x in (0, 200000, 999_999, 1.05e6, 4.1e21, -0.25, 0.0002)] == [
        "0",
        "200K",
        "1M",
        "1.05M",
        "4.1e21",
        "−0.25",
        "0.0002",
    ]
    x = drawing.scale(10, 1000, 0, 1, log=True)
    assert (x(10), x(1000)) == (0, 1) and x(100) == pytest.approx(0.5)


def test_the_same_words_in_three_formats():
    table = Table(["arm", "x_1", "verdict"], [["a&b", "1 ± 2", "**better** by 5 %"], ["p|q", "-", "`key`"]], "T")
    sections = [Section("Head", ["a <b> **c**", table, Figure("", "nothing drawn")])]
    text = markdown("Title", sections)
    assert "| p\\|q | - | `key` |" in text and "## Head" in text and "nothing drawn" not in text
    shown = page("Title", sections)
    assert "a &lt;b&gt; <strong>c</strong>" in shown and "<code>key</code>" in shown and "nothing drawn" not in shown
    tex = latex(table, "100 % of x_1")
    assert r"a\&b & 1 $\pm$ 2 & \textbf{better} by 5 \% \\" in tex and r"\caption{100 \% of x\_1}" in tex
    assert tex.count(r"\begin") == tex.count(r"\end") == 2 and r"\toprule" in tex and "{lrl}" in tex


# ------------------------------------------------------------------------------------------------ beyond one study


def test_runs_that_others_send_are_compared_without_a_study(tmp_path, capsys, monkeypatch):
    study = make(Study(tmp_path / "runs", arms=list(ARMS)))
    one, noise = parse([f"RUNS={study.root}"])[:2]
    assert one.arms == ["alibi", "learned", "none"] and one.seeds == [1, 2, 3] and noise == []
    text = report(one, tmp_path / "out")
    assert "learned" in text.splitlines()[2] and "worse by 0.0" in text.splitlines()[2]
    assert str(tmp_path) not in (tmp_path / "out" / "report.md").read_text()
    places = section((tmp_path / "out" / "report.md").read_text(), "Places")
    assert "| 1 | alibi |" in places and "| 2–3 | learned |" in places and "| 2–3 | none |" in places
    both = f"RUNS={study.cell('pos=none', 1).dir} {study.cell('pos=learned', 1).dir}"
    assert parse([both]).study.arms == ["none", "learned"]  # in the order in which they are named
    for words, why in (([f"RUNS={tmp_path / 'nowhere'}"], "is no run directory"), ([both, both], "is given twice")):
        assert main(words) == 2
        assert why in capsys.readouterr().err
    shutil.copytree(study.cell("pos=none", 1).dir, tmp_path / "copy")
    with pytest.raises(ValueError, match="are the same run"):
        collect_runs([("", study.cell("pos=none", 1).dir), ("", tmp_path / "copy")], "")


@pytest.mark.parametrize(
    "keys, to, why",
    [
        (["version"], 2, "version 2, not 1"),
        (["lm_eval"], "0.5", "lm_eval 0.5, not 0.4.13"),
        (["precision"], "bf16", "precision bf16, not unknown"),
    ],
)
def test_runs_that_were_evaluated_differently_are_not_ranked(tmp_path, keys, to, why):
    study = make(Study(tmp_path / "runs"))
    for seed in study.seeds:
        change(study.cell("pos=alibi", seed).dir / "eval.json", *keys, to=to)
    one = parse([f"RUNS={study.root}"]).study
    text = report(one, tmp_path / "out")
    assert text.splitlines()[2].endswith("evaluated differently: not compared")
    assert "better" not in text.split("±:")[0].replace("is better", "")
    places = section((tmp_path / "out" / "report.md").read_text(), "Places")
    assert "Not ranked together" in places and "| 1 |" not in places and "| 2 |" not in places
    assert "learned (seeds 1, 2, 3): " in places
    assert why in places or why.replace(f"{to}, not", "").split()[0] in places


TASK = "pydocs/last_word"


@pytest.mark.parametrize(
    "key, to, why",
    [
        ("data", {"sha256": "beef"}, "data beef, not unknown"),
        ("version", 3, "version 3, not unknown"),
        ("chance", 0.3, "chance 0.3, not 0.05"),
        ("mean", False, "mean false, not true"),
        ("higher_is_better", False, "higher_is_better false, not true"),
        ("metric", "acc_norm", "metric acc_norm, not acc"),
        ("shots", 5, "shots 5, not unknown"),
        ("prompts_sha256", "beef", "prompts beef, not cafe"),
        ("items_sha256", "beef", "items' text beef, not cafe"),
    ],
)
def test_a_task_that_differs_is_left_out_of_the_comparison(study, tmp_path, key, to, why):
    """Its mean is compared over the tasks that both were asked in the same way, and what is left out is said."""
    for arm in study.arms:
        for seed in study.seeds:
            folder = study.cell(arm, seed).dir
            if key.endswith("sha256"):
                change(folder / "eval.json", "tasks", TASK, key, to="cafe")
            if arm == "pos=alibi" and seed == 2:
                change(folder / "eval.json", "tasks", TASK, key, to=to)
                rescore(folder)
    text = report(study, tmp_path / "out")
    assert f"{TASK}: {why}" in text
    record = {c["metric"]: c for c in json.loads((tmp_path / "out/run.json").read_text())["comparisons"]}
    assert "without" not in record["bits_per_byte"] and record["zero_shot"]["without"] == [TASK]
    assert "without 1 task that differ" in record["zero_shot"]["verdict"]
    value = {
        arm: np.mean(
            [
                json.loads((study.cell(arm, seed).dir / "eval.json").read_text())["tasks"]["pydocs/continuation"][
                    "value"
                ]
                for seed in study.seeds
            ]
        )
        for arm in study.arms
    }
    assert record["zero_shot"]["difference"] == pytest.approx(100 * (value["pos=alibi"] - value["pos=learned"]))
    assert (
        f"zero-shot: compared with pos=learned on what both were asked in the same way**, without {TASK}"
        in (tmp_path / "out/report.md").read_text()
    )


def test_a_run_that_was_asked_more_is_compared_on_what_both_were_asked(study, tmp_path):
    report(study, tmp_path / "before")
    before = json.loads((tmp_path / "before/run.json").read_text())["comparisons"]
    for seed in study.seeds:  # one more corpus: another held-out loss, and a task in the mean
        folder = study.cell("pos=alibi", seed).dir
        rows = gzip.decompress((folder / "samples.jsonl.gz").read_bytes()).decode().splitlines()
        more = [json.loads(row) for row in rows if '"nats"' in row or '"pydocs/last_word"' in row]
        more = [row | {"task": row["task"].replace("pydocs", "ünïcode")} for row in more]
        text = "".join(row + "\n" for row in [*rows, *map(json.dumps, more)])
        (folder / "samples.jsonl.gz").write_bytes(gzip.compress(text.encode(), mtime=0))
        tasks = json.loads((folder / "eval.json").read_text())["tasks"]
        for name in ("bits_per_byte", "last_word"):
            change(folder / "eval.json", "tasks", f"ünïcode/{name}", to=tasks[f"pydocs/{name}"])
        rewrite(folder, lambda row: row | {"nats": 9 * row["nats"]}, "ünïcode/bits_per_byte")
        change(folder / "eval.json", "corpora", to=["pydocs", "ünïcode"])
    report(study, tmp_path / "out")
    after = json.loads((tmp_path / "out/run.json").read_text())["comparisons"]
    assert [c["without"] for c in after] == [["ünïcode/bits_per_byte"], ["ünïcode/last_word"]]
    for one, other in zip(before, after, strict=True):
        assert {k: other[k] for k in ("difference", "noise", "p")} == pytest.approx(
            {k: one[k] for k in ("difference", "noise", "p")}
        )


@pytest.mark.parametrize(
    "keys, to, why",
    [
        (
            ["bits_per_byte", "value"],
            1.0,
            "eval.json has 1 for bits_per_byte, and the items in samples.jsonl.gz give 2.39",
        ),
        (["zero_shot", "value"], 99.0, "eval.json has 99 for zero_shot, and the items"),
        (["tasks", "pydocs/last_word", "value"], 0.99, "eval.json has 0.99 for pydocs/last_word, and the items"),
        (
            ["tasks", "pydocs/other"],
            {"metric": "acc", "value": 0.99, "stderr": 0.1, "n": 9},
            "has no items of pydocs/other",
        ),
        (["tasks", "pydocs/last_word", "value"], float("nan"), "eval.json is damaged"),
        (["bits_per_byte", "value"], float("inf"), "eval.json is damaged"),
        (["tasks", "pydocs/last_word", "stderr"], "1e400", "tasks.pydocs/last_word.stderr is not what"),
        (["tasks"], [], "tasks is not what an evaluation has there"),
        (["samples_sha256"], "beef", "samples.jsonl.gz is not the file that eval.json was written with"),
        (["tasks", "pydocs/last_word", "suite"], True, "tasks.pydocs/last_word.guess is not what"),
        (["by_domain"], {"pydocs": {"Github": 5}}, "by_domain.pydocs.Github is not what"),
    ],
)
def test_scores_that_are_not_those_of_the_items_are_refused(study, tmp_path, keys, to, why):
    change(study.cell("pos=alibi", 2).dir / "eval.json", *keys, to=to)
    assert report(study, tmp_path / "out").splitlines()[2].endswith("; 1 of 3 runs missing, 1 damaged")
    told = section((tmp_path / "out/report.md").read_text(), "What does not match")
    assert told.startswith("* pos=alibi, seed 2: damaged (") and why in told


@pytest.mark.parametrize(
    "file", ["eval.json", "samples.jsonl.gz", "run.json", "metrics.jsonl", "failed", "eval-step_8.json"]
)
@pytest.mark.parametrize("damage", ["cut", "empty", "bytes", "list"])
def test_a_damaged_file_takes_no_other_run_with_it(study, tmp_path, monkeypatch, file, damage):
    """The run and its file are named, whatever it is, and the other five are reported."""
    folder = study.cell("pos=alibi", 2).dir
    path = folder / file
    if file == "failed":
        path.write_text("step 12: überlauf")
    if file == "eval-step_8.json":
        path.write_text((folder / "eval.json").read_text())
    content = path.read_bytes()
    middle = len(content) // 2
    damaged = {
        "cut": content[:middle],
        "empty": b"",
        "bytes": content[:middle] + b"\xff\xfe\x00\x1b[2J" + content[middle:],
        "list": b"[]\n",
    }
    path.write_bytes(damaged[damage])
    screen = report(study, tmp_path / "out")
    text = (tmp_path / "out/report.md").read_text()
    assert "pos=learned (baseline)" in screen and "pos=alibi" in screen and "better by 0.0" in screen
    told = section(text, "What does not match")
    if not (file == "metrics.jsonl" and damage in ("cut", "empty")) and file != "failed":  # as a kill leaves them
        line = next(line for line in told.splitlines() if line.startswith("* pos=alibi, seed 2: "))
        assert file in line and "damaged" in line
    assert str(tmp_path) not in text
    for name in FILES:
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f]", (tmp_path / "out" / name).read_text()), name
    monkeypatch.chdir(tmp_path)
    assert main([f"RUNS={study.root}", f"OUT={tmp_path}"]) == 0


@pytest.mark.parametrize("key, what", [(["data", "sha256"], "text"), (["data", "tokenizer", "sha256"], "tokenizer")])
def test_arms_that_read_another_text_under_the_same_name_are_not_compared(study, tmp_path, key, what):
    """A corpus that lost documents between two commands: no verdict, also where one seed alone read the other text."""
    change(study.cell("pos=alibi", 3).dir / "run.json", *key, to="another")
    screen = report(study, tmp_path / "out")
    assert screen.splitlines()[2].endswith("read another text under the same name: not compared")
    assert json.loads((tmp_path / "out/run.json").read_text())["comparisons"] == []
    assert f"{what} of pydocs" in section((tmp_path / "out/report.md").read_text(), "What does not match")
    places = parse([f"RUNS={study.root}"]).study
    assert "better" not in report(places, tmp_path / "places").split("±:")[0].replace("is better", "")
    # another recipe is another text by intention
    for seed in study.seeds:
        change(study.cell("pos=alibi", seed).dir / "run.json", "config", "data", "dedup", to="exact")
        change(study.cell("pos=alibi", seed).dir / "run.json", *key, to="another")
    if what == "text":
        report(study, tmp_path / "out")
        assert len(json.loads((tmp_path / "out/run.json").read_text())["comparisons"]) == 2


def test_items_that_share_a_passage_are_no_independent_items(study, tmp_path):
    """Standard errors everywhere are those of passages; the rows say which items share one."""
    report(study, tmp_path / "before")
    for arm in study.arms:
        for seed in study.seeds:
            for task in ("bits_per_byte", "last_word"):
                rewrite(
                    study.cell(arm, seed).dir,
                    lambda row: row | {"cluster": f"пакет {int(re.sub(r'[^0-9]', '', row['id'])) % 8}"},
                    f"pydocs/{task}",
                )
    report(study, tmp_path / "out")
    rows = [json.loads(line) for line in gzip.open(study.cell("pos=alibi", 1).dir / "samples.jsonl.gz", "rt")]
    hits = {}
    for row in rows:
        if row["task"] == "pydocs/last_word":
            hits.setdefault(row["cluster"], []).append(row["value"])
    # 25 questions in each: the standard error of the mean of the passages' means
    error = stats.sem([np.mean(values) for values in hits.values()])
    lines = (tmp_path / "out/results.csv").read_text().splitlines()
    line = next(line for line in lines if line.startswith("pos=alibi,1,pydocs/last_word,"))
    assert float(line.split(",")[5]) == pytest.approx(error)
    assert "| pydocs/last_word | acc | 200 in 8 groups |" in (tmp_path / "out/report.md").read_text()
    noise = {
        name: json.loads((tmp_path / name / "run.json").read_text())["noise"]["bits/byte"] for name in ("before", "out")
    }
    assert noise["out"]["seed_sd"] == pytest.approx(noise["before"]["seed_sd"])
    one = next(c for c in json.loads((tmp_path / "out/run.json").read_text())["comparisons"])
    assert one["noise"] != json.loads((tmp_path / "before/run.json").read_text())["comparisons"][0]["noise"]


def test_a_margin_makes_equivalent_arms_and_what_is_undecided_says_what_is_missing(tmp_path):
    study = make(Study(tmp_path / "runs", arms=list(ARMS)))
    report(study, tmp_path / "out")
    text = section((tmp_path / "out/report.md").read_text(), "Differences from the baseline")
    assert "**Undecided**: not more than noise. What is missing" in text and "* pos=none, bits/byte: " in text
    assert "pos=alibi, bits/byte: " not in text.split("**Undecided**")[1] and "equivalent" not in text
    found = gather(replace(study, criteria=Criteria(margins={"bits/byte": 0.05}, seeds=3)))
    assert found.verdict("pos=none", "bits/byte") == "exploratory: equivalent within 0.05 bits/byte"
    assert found.verdict("pos=alibi", "bits/byte").startswith("better by 0.0")
    assert found.verdict("pos=none", "zero-shot").startswith("undecided: about ")
    write(found, tmp_path / "out")
    text = section((tmp_path / "out/report.md").read_text(), "Differences from the baseline")
    assert "* pos=none, bits/byte" not in text and "Margin of bits/byte: 0.05 bits/byte, chosen after the runs" in text
    # a run takes 102.4 s of one core; with less noise than this two more seeds of three arms would be enough
    for arm in study.arms:
        for seed in study.seeds:
            rewrite(study.cell(arm, seed).dir, lambda row: row | {"nats": 2.0 * row["bytes"]})
            shift(study.cell(arm, seed).dir, {"pos=none": 0.1}.get(arm, 0.0) + 0.03 * (seed - 2) * (arm != "pos=none"))
    report(study, tmp_path / "out")
    text = section((tmp_path / "out/report.md").read_text(), "Differences from the baseline")
    more, hours = re.search(
        r"pos=none, bits/byte: about (\d+) more seeds? of each arm would tell, (.*) core-hours", text
    ).groups()
    assert float(hours) == pytest.approx(int(more) * 3 * 102.4 / 3600, rel=0.05)


@pytest.mark.parametrize("margin", ["0", "-1", "x", "0.1,1,2", "inf", "nan"])
def test_a_margin_is_a_number_above_zero(margin, capsys):
    assert main(["POS=alibi", f"MARGIN={margin}"]) == 2
    assert f"MARGIN={margin}: a number above 0, in bits per byte" in capsys.readouterr().err


def test_one_held_out_document_gives_no_verdict(study, tmp_path):
    for arm in study.arms:
        for seed in study.seeds:
            rewrite(study.cell(arm, seed).dir, lambda row: row | {"cluster": "one long book"})
    screen = report(study, tmp_path / "out")
    assert screen.splitlines()[2].endswith("undecided: 1 independent item, 3 are needed")
    record = json.loads((tmp_path / "out/run.json").read_text())
    assert [c["verdict"].split(":")[0] for c in record["comparisons"]] == ["undecided", "exploratory"]
    assert "p" not in record["comparisons"][0]
    text = (tmp_path / "out/report.md").read_text()
    assert "| undecided: 1 independent item, 3 are needed |" in section(
        text, "Differences from the baseline"
    ) and not re.search(r"\bnan\b", text)


def test_documents_of_no_bytes_are_no_items(study, tmp_path):
    """Two documents, and 58 that are empty; a number of bytes below 0 is damage."""
    empty = {"bytes": 0, "nats": 0.0}
    for arm in study.arms:
        for seed in study.seeds:
            rewrite(study.cell(arm, seed).dir, lambda row: row if row["id"] in ("d1", "d2") else row | empty)
    screen = report(study, tmp_path / "out")
    assert screen.splitlines()[2].endswith("undecided: 2 independent items, 3 are needed")
    rewrite(study.cell("pos=alibi", 1).dir, lambda row: row | {"bytes": -5 if row["id"] == "d9" else row["bytes"]})
    report(study, tmp_path / "out")
    assert "samples.jsonl.gz is damaged in line 10: bytes is below 0" in (tmp_path / "out/report.md").read_text()


HOSTILE = "\x1b[2J\x1b]0;owned\x07\u202ereversed\x00<script>\r\n## Heading"


def test_a_strangers_names_cannot_steer_a_terminal_or_a_page(study, tmp_path, capsys, monkeypatch):
    """Control codes in every text of a run directory: none reaches a file or the screen raw."""
    for arm in study.arms:
        for seed in study.seeds:
            folder = study.cell(arm, seed).dir
            for keys in (["commit", "sha"], ["versions", "torch"], ["hardware", "device"], ["proofs", 0, "detail"]):
                change(folder / "run.json", *keys, to=HOSTILE)
            change(folder / "run.json", "data", "mismatch", to=[HOSTILE])
            change(folder / "run.json", "config", "data", "corpus", to=f"{arm}{HOSTILE}")
            change(folder / "eval.json", "omitted", to=[HOSTILE])
            text = (folder / "eval.json").read_text().replace("last_word", json.dumps(f"last{HOSTILE}")[1:-1])
            (folder / "eval.json").write_text(text)
            rows = gzip.decompress((folder / "samples.jsonl.gz").read_bytes()).decode()
            rows = rows.replace("/last_word", f"/{json.dumps(f'last{HOSTILE}')[1:-1]}")
            (folder / "samples.jsonl.gz").write_bytes(gzip.compress(rows.encode(), mtime=0))
    (study.cell("pos=alibi", 3).dir / "done").unlink()
    (study.cell("pos=alibi", 3).dir / "failed").write_text(HOSTILE)
    monkeypatch.chdir(tmp_path)
    assert main([f"RUNS={study.root}"]) == 0
    shown = capsys.readouterr()
    (folder,) = (tmp_path / "ablations/records").iterdir()
    assert "last\\x1b[2J" in (folder / "report.md").read_text()
    texts = {"screen": shown.out + shown.err, **{path.name: path.read_text() for path in folder.iterdir()}}
    for name, text in texts.items():
        assert not re.findall("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", text), name
        assert not re.search("^## Heading", text, re.M), name
    xml.dom.minidom.parse(str(folder / "figure.svg"))
    assert "<script>##" not in (folder / "report.html").read_text()


def test_every_format_is_printable_whatever_it_is_given():
    table = Table(["arm", HOSTILE, "verdict"], [[HOSTILE, "1", f"**{HOSTILE}**"]], HOSTILE)
    sections = [Section("Head", [HOSTILE, table])]
    effect = (HOSTILE, 0.1, 0.2, "same", HOSTILE)
    line = drawing.Line(HOSTILE, 1, [1, 2], [1, 2])
    figures = [
        drawing.forest(HOSTILE, [effect], HOSTILE),
        drawing.lines(HOSTILE, [line, line._replace(label="other")], HOSTILE, HOSTILE, marks={HOSTILE: 1.5}),
        drawing.heat_map(HOSTILE, [HOSTILE], [HOSTILE], [[(HOSTILE, 0.5, HOSTILE)]]),
    ]
    shown = [page(HOSTILE, sections), markdown(HOSTILE, sections), latex(table, HOSTILE), plain_text(table)]
    for text in [*shown, comma_separated([[HOSTILE, 1]]), *figures]:
        assert "\\x1b[2J" in text or "textbackslash{}x1b[2J" in text
        assert not re.findall("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", text)
    for figure in figures:
        xml.dom.minidom.parseString(figure)


@pytest.mark.parametrize("when", ["written", "renamed"])
def test_a_full_disk_leaves_the_record_as_it_was(study, tmp_path, monkeypatch, capsys, when):
    monkeypatch.chdir(tmp_path)
    assert main([f"RUNS={study.root}"]) == 0
    (folder,) = (tmp_path / "ablations/records").iterdir()
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    shift(study.cell("pos=alibi", 1).dir, 0.5)
    calls = []

    def full(*args, **kwargs):
        calls.append(args)
        if len(calls) >= 3:
            raise OSError(errno.ENOSPC, "No space left on device", str(args[0]))
        return real(*args, **kwargs)

    name = "os.fsync" if when == "written" else "ablations.safe_files.write_bytes"
    real = os.fsync if when == "written" else safe_files.write_bytes
    monkeypatch.setattr(name, full)
    capsys.readouterr()
    assert main([f"RUNS={study.root}"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: the report cannot be written: ") and "Make room" in said
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_read_only_checkout_has_its_report_in_out(study, tmp_path, monkeypatch, capsys):
    """As a checkout that another user owns, or that a container mounts read-only."""
    monkeypatch.chdir(tmp_path)
    real = Path.mkdir

    def mkdir(self, *args, **kwargs):
        if str(self).startswith("ablations"):
            raise OSError(errno.EROFS, "Read-only file system", str(self))
        real(self, *args, **kwargs)

    monkeypatch.setattr(Path, "mkdir", mkdir)
    assert main([f"RUNS={study.root}", "OUT=elsewhere"]) == 0
    said = capsys.readouterr().out
    (folder,) = Path("elsewhere/records").iterdir()
    assert "the report is in elsewhere/records instead" in said and (folder / "report.md").exists()


def test_runs_may_lie_in_a_folder_with_a_space(study, tmp_path):
    shutil.copytree(study.root, tmp_path / "their runs")
    assert len(parse([f"RUNS={tmp_path / 'their runs'}"]).study.places) == 6
    one = parse(
        [f"RUNS='{tmp_path}/their runs/pos=none,seed=1' '{study.root}/pos=alibi,seed=2'".replace("none", "learned")]
    )
    assert len(one.study.places) == 2 and str(tmp_path) not in one.study.command


def test_runs_without_common_seeds_are_not_paired(tmp_path):
    study = make(Study(tmp_path / "runs", seeds=[1, 2, 3, 4]))
    for arm, seeds in (("pos=alibi", (3, 4)), ("pos=learned", (1, 2))):
        for seed in seeds:
            shutil.rmtree(study.cell(arm, seed).dir)
    one = parse([f"RUNS={study.root}"]).study
    report(one, tmp_path / "out")
    got = json.loads((tmp_path / "out" / "run.json").read_text())["comparisons"][0]
    x = {
        arm: [
            json.loads(path.read_text())["bits_per_byte"]["value"]
            for path in sorted(study.root.glob(f"{arm},*/eval.json"))
        ]
        for arm in ARMS
    }
    assert got["difference"] == pytest.approx(np.mean(x["pos=learned"]) - np.mean(x["pos=alibi"]))
    seeds = np.sqrt((np.var(x["pos=learned"], ddof=1) + np.var(x["pos=alibi"], ddof=1)) / 2)
    assert got["noise"] >= seeds * 0.999


def test_noise_runs_tell_the_noise_of_a_study_with_one_seed(tmp_path):
    study = make(Study(tmp_path / "runs", arms=list(ARMS), seeds=[1]))
    more = make(Study(tmp_path / "noise", arms=["pos=learned"], seeds=[5, 6, 7, 8]))
    alone = report(study, tmp_path / "one")
    known = report(study, tmp_path / "two", [more.cell("pos=learned", seed).dir for seed in more.seeds])
    assert [line.split("    ")[-1].strip() for line in alone.splitlines()[2:4]] == [
        "undecided: one seed, not replicated",
        "undecided: one seed, within noise",
    ]
    assert known.splitlines()[2].endswith("one seed, not replicated") and known.splitlines()[3].endswith("within noise")
    said = "these arms if they have several seeds: runs (seeds 5, 6, 7, 8); nano, 1,048,576 tokens."
    assert said in (tmp_path / "two/report.md").read_text() and said not in (tmp_path / "one/report.md").read_text()
    got = json.loads((tmp_path / "two" / "run.json").read_text())["comparisons"][0]
    sd = np.std(values(more, "bits_per_byte")[0], ddof=1)
    assert got["noise"] >= np.sqrt(2) * sd and got["counts_above"] >= stats.t.isf(0.025, 3) * np.sqrt(2) * sd


def test_several_studies_share_their_baseline(tmp_path, monkeypatch):
    from ablations import study as studies

    study = make(Study(tmp_path / "runs", arms=list(ARMS)))

    class Planned:
        def __init__(self, name, arms):
            self.factor = name
            self.cells = [study.cell(arm, seed) for arm in arms for seed in study.seeds]

    plans = {"a": Planned("a", ["pos=learned", "pos=alibi"]), "b": Planned("b", ["pos=learned", "pos=none"])}
    monkeypatch.setattr(studies, "from_args", lambda words: plans[words[0].removeprefix("STUDY=")])
    one = parse(["STUDY=a,b"]).study
    assert one.arms == ["learned", "alibi", "none"] and len(one.places) == 9


# ------------------------------------------------------------------------------------------------ published numbers


def test_published_c4_and_pile_differ_by_less_than_the_noise():
    """The accuracies that the BigScience repository stores for its 1.3B models at 112B tokens, of 27 tasks:
    bigscience-workshop/bigscience @ 9e64ede, evaluation/results/{tr3,tr12}/*_agg.json."""
    known = published.load()["per_task"]
    numbers = np.array(list(known["rows"].values()), float)
    assert numbers.shape == (27, 4)
    assert numbers[:, 1:].mean(0) == pytest.approx([41.24, 42.53, 42.32], abs=0.006)
    p = numbers[:, 1:] / 100
    assert 100 * np.sqrt((p * (1 - p) / (numbers[:, :1] - 1)).sum(0)) / 27 == pytest.approx(0.41, abs=0.005)

    c, strata = published.task_difference("C4", "The Pile")
    assert c.difference == pytest.approx(0.21, abs=0.005) and c.noise == pytest.approx(0.41 * 2**0.5, abs=0.01)
    assert verdict(c, higher_is_better=True, digits=2).words == "undecided: one seed, within noise"
    low, high = interval(bootstrap(strata, tasks=True), 27)
    assert low < 0 < high
    # one run of each: a difference that the items do not explain is still no result
    assert verdict(published.task_difference("C4", "OSCAR v1")[0], True).words == "undecided: one seed, not replicated"


def test_every_published_number_has_a_mark_and_a_source():
    known = published.load()
    for each in [*known["tables"], *known["external"], known["trajectories"], known["per_task"], known["scaling"]]:
        assert each["mark"] in ("published", "computed", "unverified") and each["source"], each
    for table in known["tables"]:
        assert all(len(numbers) == len(published.columns(table)) for _, numbers in published.rows(table))
    paths = known["trajectories"]
    assert all(len(row) == len(paths["tokens"]) for row in paths["rows"].values())


def test_published_figures_stand_beside_a_study_of_the_same_factor(study, tmp_path):
    """Those that are marked unverified only where they are asked for."""
    for beside in ("checked", "none"):
        write(gather(study, beside=beside), tmp_path / "out")
        for name in FILES:
            content = (tmp_path / "out" / name).read_text()
            assert "43.70" not in content and "nverified" not in content and "BigScience study" not in content
    write(gather(study, beside="all"), tmp_path / "out")
    text = section((tmp_path / "out" / "report.md").read_text(), "Beside the BigScience study")
    assert "unverified, Table 2" in text and "Unverified" in text
    own = values(study, "zero_shot").mean(1)
    line = next(line for line in text.splitlines() if line.startswith("| alibi | 43.70 | +1.99 |"))
    assert f"| {own[1]:.1f} | {own[1] - own[0]:+.1f} |" in line
    assert "| rotary | 41.46 | -0.25 | - | - | - |" in text
    assert "| difference from learned | here" in text  # as ours are
    assert "Embedding norm" not in text


def test_power_law_of_the_lower_envelope():
    x = np.array([1e15, 1e16, 1e17, 1e18])
    points = [*zip(x, 3 * (x / 1e15) ** -0.05, strict=True), (5e16, 9.0), (2e18, 9.0)]  # two that are not on it
    fit = power_law(points)
    assert (fit["exponent"], fit["points"]) == (pytest.approx(0.05), 4)
    assert fit["scale"] * 1e15**-0.05 == pytest.approx(3)
    assert power_law(points[:2]) is None


# ------------------------------------------------------------------------------------------------ cost


@pytest.mark.parametrize(
    "device, ranks, threads, unit, hours, kwh",
    [
        ("AMD EPYC", 1, 2, "core", 2.0, 2 * 4.4 / 1000),
        ("NVIDIA H100 80GB HBM3", 8, 4, "GPU", 8.0, 8 * 0.7),
        ("NVIDIA Nonesuch", 2, 1, "GPU", 2.0, None),
    ],
)
def test_hours_and_energy(device, ranks, threads, unit, hours, kwh):
    hardware = {"device": device, "ranks": ranks, "threads": threads}
    cell = {
        "run": {"hardware": hardware, "config": {"model": {"pos": "x"}}},
        "metrics": [{"tokens": 5, "seconds": 3600.0}],
    }
    spent = expense.spent(cell)
    assert (spent["unit"], spent["hours"]) == (unit, hours)
    assert spent["kwh"] == (pytest.approx(kwh) if kwh else None)
    assert spent["flops"] is None  # a configuration of another version


def test_domains_have_a_table(tmp_path):
    study = make(Study(tmp_path / "runs", seeds=[1, 2]))
    for arm in study.arms:
        for seed in study.seeds:
            each = {"value": 2.0 + seed / 10 + EFFECT[arm], "stderr": 0.05, "bytes": 9, "n": 3}
            to = {"pile": {"Github": each, "ArXiv": {**each, "value": 3.0}}}
            change(study.cell(arm, seed).dir / "eval.json", "by_domain", to=to)
    report(study, tmp_path / "out")
    found = section((tmp_path / "out/report.md").read_text(), "Loss by domain")
    assert "| Github | 2.150 ± 0.050 | 2.090 ± 0.050 | 3 |" in found and "| ArXiv | 3.000 ± 0.050 |" in found
    change(study.cell("pos=alibi", 1).dir / "eval.json", "by_domain", to={"own": {"ArXiv": each}})
    report(study, tmp_path / "out")
    found = section((tmp_path / "out/report.md").read_text(), "Loss by domain")
    assert "| ArXiv, of own | - | 2.140 ± 0.050 | 3 |" in found


def test_what_stands_beyond_the_training_length_is_said(tmp_path):
    study = make(Study(tmp_path / "runs", seeds=[1, 2], arms=list(ARMS)))
    for arm in study.arms:
        for seed in study.seeds:
            n = 2 if arm == "pos=learned" else 8
            values = [2.5 + i * {"pos=none": 0.01}.get(arm, 0.0) + seed / 10 for i in range(n)]
            found = {"positions": [64.0 + 128 * i for i in range(n)], "bits_per_byte": values, "tokens": 4096}
            change(study.cell(arm, seed).dir / "eval.json", "by_position", to=found)
    report(study, tmp_path / "out")
    said = section((tmp_path / "out/report.md").read_text(), "Beyond the training length")
    assert "| pos=learned | 2.650 | - | - | - |" in said and "* pos=learned: there is no vector" in said
    assert "| pos=none | 2.660 | 2.680 | 2.720 | +0.060 |" in said
    assert "| pos=alibi | 2.650 | 2.650 | 2.650 | +0.000 |" in said
    assert "* pos=none: nothing has to be extended" in said and "the same 4,096 tokens" in said


# ------------------------------------------------------------------------------------------------ corpora by path


class ByPath(Study):
    """Arms that are corpora given by path, each judged on the held-out text of all of them."""

    def cell(self, arm: str, seed: int) -> Cell:
        own = list(ARMS)[self.arms.index(arm)]
        corpora = [arm.removeprefix("corpus=") for arm in self.arms]
        what = config(own, seed) | {"eval": {"corpora": corpora}}
        what["model"]["pos"] = "learned"
        what["data"]["corpus"] = arm.removeprefix("corpus=")
        delta = {} if arm == self.arms[0] else {"data.corpus": arm.removeprefix("corpus=")}
        return Cell(self.root / f"{own},seed={seed}", what, delta)


def by_path(root: Path, *corpora: str) -> ByPath:
    study = ByPath(root, [f"corpus={each}" for each in corpora], [1, 2])
    make(Study(root, list(ARMS)[: len(corpora)], study.seeds))
    for arm in study.arms:
        for seed in study.seeds:
            cell = study.cell(arm, seed)
            change(cell.dir / "run.json", "config", to=cell.config)
            change(cell.dir / "run.json", "delta", to=cell.delta)
            result = json.loads((cell.dir / "eval.json").read_text())
            result["tasks"] = {
                f"{corpus}/{task.removeprefix('pydocs/')}": entry
                for corpus in corpora
                for task, entry in result["tasks"].items()
            }
            each = {"value": 2.0, "stderr": 0.05, "bytes": 9, "n": 3}
            result |= {
                "corpora": list(corpora),
                "by_domain": {corpus: {"Github": each} for corpus in corpora},
                "omitted": [f"{corpora[0]}/copy_inside"],
            }
            (cell.dir / "eval.json").write_text(json.dumps(result))
            rows = gzip.decompress((cell.dir / "samples.jsonl.gz").read_bytes()).decode()
            rows = "".join(rows.replace('"pydocs/', f'"{corpus}/') for corpus in corpora)
            (cell.dir / "samples.jsonl.gz").write_bytes(gzip.compress(rows.encode(), mtime=0))
    return study


@pytest.mark.parametrize(
    "names, short",
    [
        (["pydocs", "/data/web.jsonl"], ["pydocs", "web.jsonl"]),
        (["/data/a/web.jsonl", "/data/b/web.jsonl"], ["a/web.jsonl", "b/web.jsonl"]),
        (["/x/a/en/1.txt", "/x/b/en/1.txt", "/x/b/fr/1.txt"], ["a/en/1.txt", "b/en/1.txt", "fr/1.txt"]),
        (["/data/c4/*.json.gz", "/data/pile"], ["c4/*.json.gz", "pile"]),  # a wildcard alone tells nothing
        (["/data/c4/*/*.gz", "/data/pile/*/*.gz"], ["c4/*/*.gz", "pile/*/*.gz"]),
        (["web.jsonl", "a/web.jsonl", "b/a/web.jsonl"], ["web.jsonl", "a/web.jsonl", "b/a/web.jsonl"]),
        (["/a.jsonl", "oscar:fr", "*.gz"], ["a.jsonl", "oscar:fr", "*.gz"]),
        ([], []),
    ],
)
def test_paths_are_told_apart_by_their_ends(names, short):
    assert list(shortest_ends(names).values()) == short and list(shortest_ends(names)) == names


ONE, OTHER = "/home/someone/corpora of mine/a/web.jsonl", "/home/someone/corpora of mine/b/web.jsonl"


@pytest.mark.parametrize(
    "corpora, short",
    [
        ((ONE, OTHER), ("a/web.jsonl", "b/web.jsonl")),
        (("pydocs", ONE), ("pydocs", "web.jsonl")),
        ((ONE, f"{ONE}/en"), ("web.jsonl", "en")),
        (("a/web", "za/web/en", "/q/za/web/en"), ("web", "za/web/en", "q/za/web/en")),
    ],
)
def test_corpora_by_path_have_their_short_names_in_every_table_and_legend(tmp_path, corpora, short):
    study = by_path(tmp_path / "runs", *corpora)
    shown = report(study, tmp_path / "out")
    text = (tmp_path / "out" / "report.md").read_text()
    assert f"\ncorpus={short[0]} (baseline) " in shown and f"\ncorpus={short[1]} " in shown
    assert f"| trained | on {short[0]} | on {short[1]} |" in section(text, "Trained on, evaluated on")
    assert f"| corpus={short[1]}, bits/byte | " in section(text, "Differences from the baseline")
    assert f"| {short[1]}/last_word | acc | 200 | " in section(text, "Task by task")
    assert f"| Github, of {short[0]} | " in section(text, "Loss by domain")
    assert f"{short[0]}/copy_inside: left out" in section(text, "What does not match")
    differs = section(text, "What differs")  # the one table that says which corpus that is
    assert f"| corpus={short[0]} | {corpora[0]} |" in differs and f"| corpus={short[1]} | {corpora[1]} |" in differs
    fixed = section(text, "Held fixed")
    for file in FILES:
        content = (tmp_path / "out" / file).read_text()
        parts = [differs, fixed] if file == "report.md" else []
        for each in re.findall(r"<table>.*?</table>", content, re.S) if file == "report.html" else []:
            parts += [each] * ("in all runs" in each or "data.corpus" in each)
        for part in parts:
            content = content.replace(part, "")
        assert str(Path(ONE).parent) not in content, file
    page = (tmp_path / "out" / "report.html").read_text()
    figures = dict(re.findall(r'(?s)<figure><svg [^>]*aria-label="([^"]*)">(.*?)</svg>(?:<figcap|</figure)', page))
    drawn = figures["Training loss against tokens"]
    assert all(f">corpus={name}</text>" in drawn for name in short)  # the legend
    heat = figures["Bits per byte: trained (rows), held-out text (columns)"]
    assert all(f">on {name}</text>" in heat and f">corpus={name}</text>" in heat for name in short)


def test_runs_on_corpora_by_path_have_their_short_names_without_a_study_too(tmp_path):
    study = by_path(tmp_path / "runs", ONE, OTHER)
    for seed in study.seeds:
        change(study.cell(study.arms[1], seed).dir / "run.json", "config", "train", "tokens", to=2**21)
    one = parse([f"RUNS={study.root}"]).study
    assert report(one, tmp_path / "out").splitlines()[1].startswith("b/web.jsonl (baseline) ")
    places = section((tmp_path / "out" / "report.md").read_text(), "Places")
    assert "| trained on | 1.05M | 2.1M |" in places and "| b/web.jsonl, 2 seeds | - | " in places


def test_names_that_are_cut_keep_their_ends():
    long = [f"{'settings-that-all-have-' * 4}{i}=value" for i in (1, 2)]
    seen = {
        "map": drawing.heat_map("t", long, [f"on {name}" for name in long], [[("1", 0.0, "tip")] * 2] * 2),
        "legend": drawing.lines("t", [drawing.Line(name, i, [1, 2], [1, 2]) for i, name in enumerate(long)], "x", "y"),
        "forest": drawing.forest("t", [(name, 0.1, 0.2, "same", "undecided") for name in long], "x"),
    }
    for kind, svg in seen.items():
        cut = re.findall(r">…([^<]*)</text>", svg)
        assert len(cut) == (4 if kind == "map" else 2), kind
        for name in long:
            assert sum(len(end) > 10 and name.endswith(end) for end in cut) == len(cut) // 2, (kind, cut)
    assert (
        drawing.fitting_end("short", 100) == "short"
        and drawing.fitting_end("0123456789", drawing.text_width("xxxx")) == "…789"
    )


# ------------------------------------------------------------------------------------------------ what was named before


def register(study: Study, criteria: Criteria) -> None:
    """As launch.train writes it before the first step of each run."""
    content = {
        "study": "position",
        "metric": criteria.metric,
        "margin": {name: f"{margin:g} {METRICS[name]}" for name, margin in criteria.margins.items()},
        "seeds": [1, criteria.seeds],
        "stopping": UNTIL_DECIDED if criteria.sequential else FIXED,
        "noise_floor": criteria.noise_floor.identity if criteria.noise_floor else "",
    }
    for arm in study.arms:
        for seed in study.seeds:
            rundir.register(study.cell(arm, seed).dir, content, step=0)


def registered(study: Study, criteria: Criteria | None = None, words: tuple[str, ...] = ()) -> Any:
    """The study as the command line makes it: with a registration of its own."""
    made = replace(study, criteria=criteria or study.criteria)
    made.registration, made.words = {"study": "position"}, list(words)
    return made


def test_the_margin_that_was_registered_counts_and_one_that_is_typed_later_is_exploratory(tmp_path):
    study = make(Study(tmp_path / "runs", arms=list(ARMS)))
    before = Criteria(margins={"bits/byte": 0.05}, seeds=3)
    register(study, before)
    assert gather(registered(study, before)).verdict("pos=none", "bits/byte") == "equivalent within 0.05 bits/byte"
    # the study file says something else by now
    wide = Criteria(margins={"bits/byte": 0.09}, seeds=3)
    assert gather(registered(study, wide)).verdict("pos=none", "bits/byte") == "equivalent within 0.05 bits/byte"
    typed = gather(registered(study, wide, words=("MARGIN=0.09",)))
    assert typed.verdict("pos=none", "bits/byte") == "exploratory: equivalent within 0.09 bits/byte"
    same = gather(registered(study, before, words=("MARGIN=0.05",)))
    assert same.verdict("pos=none", "bits/byte") == "equivalent within 0.05 bits/byte"
    # one arm may be older than the question, as the baseline that studies share; not two
    (study.cell("pos=learned", 1).dir / rundir.REGISTERED).unlink()
    assert gather(registered(study, before)).verdict("pos=none", "bits/byte") == "equivalent within 0.05 bits/byte"
    (study.cell("pos=alibi", 2).dir / rundir.REGISTERED).unlink()
    some = gather(registered(study, before))
    assert some.verdict("pos=none", "bits/byte") == "exploratory: equivalent within 0.05 bits/byte"
    write(some, tmp_path / "out")
    entries = json.loads((tmp_path / "out/run.json").read_text())["comparisons"]
    said = {(e["arm"], e["metric"]): (e["decision"], e["exploratory"]) for e in entries}
    assert said["pos=none", "bits_per_byte"] == ("equivalent", True)
    assert said["pos=alibi", "bits_per_byte"] == ("better", False) and said["pos=alibi", "zero_shot"] == (
        "better",
        True,
    )


def test_the_metric_that_was_registered_decides(tmp_path):
    study = make(Study(tmp_path / "runs", arms=list(ARMS)))
    by_score = Criteria(metric="zero-shot", seeds=3)
    register(study, by_score)
    named = gather(registered(study, by_score))
    assert named.verdict("pos=alibi", "zero-shot").startswith("better by 5.6")
    assert named.verdict("pos=alibi", "bits/byte").startswith("exploratory: better by")
    assert "better by 5.6" in report(registered(study, by_score), tmp_path / "out").splitlines()[2]
    late = gather(registered(study))  # by bits per byte, which no run had named
    assert late.verdict("pos=alibi", "bits/byte").startswith("exploratory: ")
    assert "chosen after the runs, which named zero-shot" in section(
        markdown("t", contents(late)), "Differences from the baseline"
    )


def test_seeds_that_were_added_until_it_was_decided_are_judged_so_without_being_told(tmp_path):
    """Looked at after 3 of at most 10 seeds, what one look would call better is not yet."""
    study = make(Study(tmp_path / "runs", arms=list(ARMS)))
    plain = gather(registered(study)).compared["bits/byte"]["pos=none"]
    register(study, Criteria(seeds=10, sequential=True))
    looked = gather(registered(study))
    assert looked.study.criteria == Criteria(seeds=10, sequential=True)
    c = looked.compared["bits/byte"]["pos=none"]
    assert c.share == share(3, 10, 2) < 0.1 and c.threshold > 2 * plain.threshold
    alibi = looked.compared["bits/byte"]["pos=alibi"]
    assert alibi.adjusted == pytest.approx(2 * alibi.p / c.share) and alibi.p < 0.05
    assert "Seeds are added until every arm is decided, up to 10" in section(
        markdown("t", contents(looked)), "Differences from the baseline"
    )


def test_items_that_add_nothing_to_the_seeds_are_no_noise_of_zero(tmp_path):
    """Each seed and document scatters on its own, documents not at all: half of such parts are estimated below zero."""
    study = make(Study(tmp_path / "runs"))
    rng = np.random.default_rng(3)
    for seed in study.seeds:
        for arm in study.arms:
            rewrite(
                study.cell(arm, seed).dir,
                lambda row: row | ({"nats": float(row["bytes"] * rng.normal(2.0, 0.2))} if "nats" in row else {}),
            )
    f = gather(study)
    assert f.compared["bits/byte"]["pos=alibi"].items.variance == 0.0
    # a plan has the most that they may give: by leaving out each document once
    rows = {arm: [read(study.cell(arm, seed).dir)["samples"] for seed in study.seeds] for arm in study.arms}
    documents = [run["pydocs/bits_per_byte"] for run in rows["pos=learned"]]
    sizes = np.array([outcome.weight for outcome in documents[0].values()])
    bits = {
        arm: np.mean([[o.value for o in run["pydocs/bits_per_byte"].values()] for run in runs], axis=0)
        for arm, runs in rows.items()
    }
    d, n = bits["pos=alibi"] - bits["pos=learned"], len(sizes)
    without = [(d.sum() - d[i]) / (sizes.sum() - sizes[i]) for i in range(n)]
    jackknife = np.sqrt((n - 1) / n * ((np.array(without) - d.sum() / sizes.sum()) ** 2).sum())
    assert recorded_noise(f)["bits/byte"]["items"] == pytest.approx(jackknife)
    text = section(markdown("t", contents(f)), "Differences from the baseline")
    assert "| below what can be told |" in text and "| 0.0000 |" not in text
    assert "is below what can be told where the documents and questions scatter no more" in " ".join(text.split())
