"""eval/report.py on run directories made by a fixed recipe."""

import gzip
import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from eval import figure
from eval.report import main, mismatches, read, report

ARMS = {"pos=learned": {}, "pos=alibi": {"model.pos": "alibi"}, "pos=none": {"model.pos": "none"}}
EFFECT = {"pos=learned": 0.0, "pos=alibi": -0.06, "pos=none": 0.001}  # bits per byte
FILES = ["figure.png", "figure.svg", "report.md", "results.csv", "run.json"]


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

    def cell(self, arm: str, seed: int) -> Cell:
        return Cell(self.root / f"{arm},seed={seed}", config(arm, seed), ARMS[arm])


def config(arm: str, seed: int) -> dict:
    return {
        "size": "nano", "seed": seed,
        "model": {"pos": arm.split("=")[1], "seq": 256, "vocab": 4096},
        "data": {"corpus": "pydocs", "tokenizer": "pydocs"},
        "train": {"tokens": 1048576, "lr": 2e-3},
        "eval": {"corpora": ["pydocs"]},
        "layout": {"processes": 1},
    }  # fmt: skip


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
                "cell": folder.name, "arm": arm, "seed": seed, "config": config(arm, seed),
                "delta": ARMS[arm],
                "fingerprint": f"{arm}{seed}", "commit": {"sha": "0123abc", "dirty": False},
                "versions": {"python": "3.11.7", "torch": "2.13.0"},
                "hardware": {"device": "a processor", "ranks": 1, "threads": 1}, "continued": [],
                "data": {"corpus": "pydocs", "sha256": "text", "mismatch": [],
                         "tokenizer": {"corpus": "pydocs", "vocab": 4096, "sha256": "pieces"}},
                "parameters": {"count": 1350400, "groups": []},
                "proofs": [{"factor": "model.pos", "value": arm.split("=")[1], "passed": True,
                            "detail": "acts | so"},
                           {"factor": "model.act", "value": "gelu", "passed": True, "detail": "measured"}],
                "effective": {"train.batch": 8, "model.layers": 4},
            }  # fmt: skip
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
    bits = sizes * (
        2.5 + fixed.normal(0, 0.3, 60) + EFFECT[arm] + rng.normal(0, 0.02, 60) + rng.normal(0, 0.003)
    )
    rows = [{"task": "pydocs/bits_per_byte", "id": f"d{i}", "nats": b * np.log(2), "bytes": int(n)}
            for i, (b, n) in enumerate(zip(bits, sizes, strict=True))]  # fmt: skip
    tasks = {"pydocs/bits_per_byte": {
        "metric": "bits_per_byte", "value": bits.sum() / sizes.sum(), "stderr": 0.04, "n": 60, "chance": None,
        "higher_is_better": False, "mean": False}}  # fmt: skip
    for task, n, chance, mean in [("last_word", 200, 0.05, True), ("continuation", 100, 0.25, True),
                                  ("copy_absent", 50, 0.25, False)]:  # fmt: skip
        hard = np.random.default_rng([len(task)]).random(n)  # a question is as hard in every run
        hits = (hard + rng.normal(0, 0.1, n) < 0.4 - EFFECT[arm]).astype(int)
        rows += [
            {"task": f"pydocs/{task}", "id": f"{task}{i}", "value": int(hit)} for i, hit in enumerate(hits)
        ]
        tasks[f"pydocs/{task}"] = {
            "metric": "acc", "value": hits.mean(), "stderr": float(stats.sem(hits)), "n": n, "chance": chance,
            "context_tokens": [20, 90], "higher_is_better": True, "mean": mean}  # fmt: skip
    scores = [task for task in tasks.values() if task["mean"]]
    result = {
        "version": 1, "lm_eval": "0.4.13", "weights_sha256": f"{arm}{seed}", "corpora": ["pydocs"],
        "tasks": tasks,
        "omitted": [], "bits_per_byte": {"value": tasks["pydocs/bits_per_byte"]["value"], "stderr": 0.04},
        "zero_shot": {"value": 50 * sum(s["value"] for s in scores), "stderr": 2.0, "chance": 15.0},
        "seconds": 9.4,
    }  # fmt: skip
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


def section(text: str, head: str) -> str:
    return text.split(f"## {head}\n\n")[1].split("\n\n## ")[0]


def values(study: Study, key: str) -> np.ndarray:
    """[arm, seed] of eval.json."""
    return np.array([[json.loads((study.cell(arm, seed).dir / "eval.json").read_text())[key]["value"]
                      for seed in study.seeds] for arm in study.arms])  # fmt: skip


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
            rows = [json.loads(line) for line in gzip.open(folder / "samples.jsonl.gz", "rt")]
            for row in rows:
                if "nats" in row:
                    row.update(nats=float(row["bytes"]) * (2 + EFFECT[arm]), bytes=row["bytes"])
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (folder / "samples.jsonl.gz").write_bytes(gzip.compress(text.encode(), mtime=0))
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
    row = next(
        line
        for line in text.splitlines()
        if line.startswith("| pos=alibi, bits/byte | ") and "d.o.f." in line
    )
    bits = {}
    for arm in study.arms:
        per_seed = []
        for seed in study.seeds:
            lines = map(json.loads, gzip.open(study.cell(arm, seed).dir / "samples.jsonl.gz", "rt"))
            per_seed.append([(line["nats"] / np.log(2), line["bytes"]) for line in lines if "nats" in line])
        bits[arm] = np.array(per_seed).mean(0)
    apart, sizes = bits["pos=alibi"][:, 0] - bits["pos=learned"][:, 0], bits["pos=alibi"][:, 1]
    drawn = np.random.default_rng(0).integers(0, 60, (4000, 60))
    bootstrap = np.std(apart[drawn].sum(1) / sizes[drawn].sum(1))
    assert float(row.split(" | ")[3]) == pytest.approx(bootstrap, rel=0.15)
    assert float(row.split(" | ")[3]) < 0.01 < 0.03 < np.std(bits["pos=alibi"][:, 0] / sizes) / 60**0.5


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
    for head in (
        study.question,
        study.expect,
        study.command,
        "![",
        "## Cost",
        "1,350,400",
        "102 s",
        "0123abc",
    ):
        assert head in page, head
    assert (
        "| model.pos | alibi | active | acts \\| so | "
        "pos=alibi, seed 1; pos=alibi, seed 2; pos=alibi, seed 3 |"
        in page
    )
    assert "| model.act | gelu | active | measured | all |" in page
    assert "| pydocs/copy_absent (not in the mean) | 50 | 20 to 90 | 25.0 |" in page


def test_several_arms_are_corrected_for_being_several(tmp_path):
    study = make(Study(tmp_path / "runs", arms=list(ARMS)))
    text = report(study, tmp_path / "out")
    alibi, none = text.splitlines()[2:4]
    assert "the verdict on it: pos=alibi better by 5.6 (3 × noise); pos=none within noise." in text
    assert "better by 0.0" in alibi and none.endswith("within noise")
    three = {c["arm"]: c["p"] for c in json.loads((tmp_path / "out" / "run.json").read_text())["comparisons"]
             if c["metric"] == "bits_per_byte"}  # fmt: skip
    x = values(study, "bits_per_byte")
    assert three["pos=none"] == 1.0 or three["pos=none"] > stats.ttest_rel(x[2], x[0]).pvalue / 2
    assert three["pos=alibi"] < 0.05


def test_one_seed_is_no_result(tmp_path):
    study = make(Study(tmp_path / "runs", seeds=[1]))
    text = report(study, tmp_path / "out")
    assert text.splitlines()[2].endswith("one seed: not replicated")
    assert "better" not in text.replace("higher is better", "").replace("lower is better", "")


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
        (
            "run.json",
            ["continued"],
            [{"commit": {"sha": "fff", "dirty": False}, "versions": {}, "hardware": {}}],
            "pos=alibi, seed 2, when it was continued: commit.sha differs: 0123abc (begun); fff (continued)",
        ),
        ("run.json", ["data", "sha256"], "other", "text of pydocs differs: text ("),
        ("run.json", ["data", "mismatch"], ["numpy 1.0"], "pos=alibi, seed 2, text: numpy 1.0"),
        (
            "run.json",
            ["data", "tokenizer", "sha256"],
            "x",
            "tokenizer of pydocs with 4096 pieces differs: pieces (",
        ),
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
        (
            "run.json",
            ["proofs", 0, "passed"],
            False,
            "pos=alibi, seed 2: the activity proof of model.pos failed",
        ),
        ("run.json", ["proofs"], [], "pos=alibi, seed 2: there is no activity proof of model.pos"),
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


def test_other_items_are_noticed_and_the_common_ones_compared(study, tmp_path):
    path = study.cell("pos=alibi", 2).dir / "samples.jsonl.gz"
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()).replace(b'"d7"', b'"other"'), mtime=0))
    report(study, tmp_path / "out")
    page = section((tmp_path / "out" / "report.md").read_text(), "What does not match")
    assert (
        page == "* pydocs/bits_per_byte: not the same items in every run; only those in common are compared"
    )


def test_curves_are_averaged_over_the_tokens_that_all_seeds_have():
    tokens = np.arange(1, 101) * 2048
    line = {1: (tokens, np.full(100, 2.0)), 2: (tokens[:60], np.full(60, 3.0))}
    x, means = figure.binned(line)
    assert x[-1] <= tokens[59] and (np.diff(x) > 0).all() and len(x) <= figure.BINS
    assert (means[1] == 2).all() and (means[2] == 3).all()
    straight = figure.binned({1: (tokens, tokens.astype(float))})
    assert np.allclose(straight[1][1], straight[0])  # a mean of losses stands at the mean of its tokens
    t, d = figure.subtract((tokens[5:], np.full(95, 2.5)), (tokens[:50], np.full(50, 2.0)))
    assert list(t) == list(tokens[5:50]) and (d == 0.5).all()


def test_the_command_line_refuses_what_the_study_refuses(capsys):
    assert main(["POS=alibbi"]) == 2
    assert "alibi" in capsys.readouterr().err
