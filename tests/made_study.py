"""Makes run directories of a study without training, with known effects and noise, for the tests of the report."""

import gzip
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from ablations import rundir
from ablations.config import resolve
from ablations.criteria import METRICS, Criteria
from ablations.registration import FIXED_SEEDS, UNTIL_DECIDED
from eval.report.comparison.gather import gather_findings
from eval.report.record import terminal_text, write_record_files
from eval.report.sections import published

ARMS = {"pos=learned": {}, "pos=alibi": {"model.pos": "alibi"}, "pos=none": {"model.pos": "none"}}
EFFECT = {"pos=learned": 0.0, "pos=alibi": -0.06, "pos=none": 0.001}  # {arm: true effect in bits per byte}
FILES = ["figure.svg", "report.html", "report.md", "results.csv", "run.json", "table.tex"]


@dataclass
class Cell:
    dir: Path
    config: dict
    delta: dict


@dataclass
class Study:
    """A stand-in for ablations.study.Study, with the attributes that a report reads."""

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
    """Write the run directories of a study: configuration, training curve and scores of each run, drawn with the true
    effects EFFECT and with noise from seeds and items. Returns the study."""
    for arm in study.arms:
        for seed in study.seeds:
            rng = np.random.default_rng([list(ARMS).index(arm), seed])
            shared = np.random.default_rng([99, seed])  # noise of the batches, which are the same in every arm
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
            write_evaluation(folder, arm, seed)
    return study


def write_evaluation(folder: Path, arm: str, seed: int) -> None:
    """Write eval.json and the items behind it: bits per byte of 60 documents, and three tasks with accuracies."""
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
        difficulty = np.random.default_rng([len(task)]).random(n)  # of each question, the same in every run
        hits = (difficulty + rng.normal(0, 0.1, n) < 0.4 - EFFECT[arm]).astype(int)
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
    """Set one value inside a JSON file. `keys`: the keys that lead to it, from the outermost; `to`: the new value."""
    content = json.loads(path.read_text())
    inner = content
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = to
    path.write_text(json.dumps(content))


def rewrite(folder: Path, edit, task: str = "pydocs/bits_per_byte") -> None:
    """Edit the items of a task, and recompute from them its score and the means over tasks. `edit`: takes the row of an
    item and returns the new row."""
    rows = [json.loads(line) for line in gzip.decompress((folder / "samples.jsonl.gz").read_bytes()).splitlines()]
    rows = [edit(dict(row)) if row["task"] == task else row for row in rows]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "samples.jsonl.gz").write_bytes(gzip.compress(text.encode(), mtime=0))
    edited = [row for row in rows if row["task"] == task]
    if "nats" in edited[0]:
        value = sum(row["nats"] for row in edited) / np.log(2) / sum(row["bytes"] for row in edited)
    else:
        value = np.mean([row["value"] for row in edited])
    change(folder / "eval.json", "tasks", task, "value", to=float(value))
    rescore(folder)


def rescore(folder: Path) -> None:
    """Recompute from the scores in eval.json the means over tasks, and the chance level of the zero-shot mean."""
    result = json.loads((folder / "eval.json").read_text())
    tasks = result["tasks"].values()
    losses = [task["value"] for task in tasks if task["metric"] == "bits_per_byte"]
    counted = [task for task in tasks if task["mean"]]
    change(folder / "eval.json", "bits_per_byte", "value", to=float(np.mean(losses)))
    change(folder / "eval.json", "zero_shot", "value", to=100 * float(np.mean([task["value"] for task in counted])))
    change(folder / "eval.json", "zero_shot", "chance", to=100 * float(np.mean([task["chance"] for task in counted])))


def shift(folder: Path, bits_per_byte: float) -> None:
    """Make the score of every held-out document of a run worse by `bits_per_byte`."""
    rewrite(folder, lambda row: row | {"nats": row["nats"] + bits_per_byte * row["bytes"] * float(np.log(2))})


def report(study: Any, out: Path, noise: Sequence[Path] = ()) -> str:
    """Write the record of a study to the folder `out`, and return the report's text for the terminal. `noise`:
    directories of other runs of the baseline, from which the noise of seeds is measured, too."""
    findings = gather_findings(study, list(noise))
    write_record_files(findings, out)
    return terminal_text(findings)


def section(text: str, head: str) -> str:
    """The section of a report in Markdown that follows the heading `head`."""
    return text.split(f"## {head}\n\n")[1].split("\n\n## ")[0]


def values(study: Study, key: str) -> np.ndarray:
    """The scores of all runs under `key` in eval.json: an array [arm, seed]."""
    return np.array(
        [
            [json.loads((study.cell(arm, seed).dir / "eval.json").read_text())[key]["value"] for seed in study.seeds]
            for arm in study.arms
        ]
    )


@pytest.fixture
def study(tmp_path) -> Study:
    return make(Study(tmp_path / "runs"))


def full(study: Study) -> Study:
    """Add to every run the results that only large studies have: the suite of 27 tasks, scores during training, loss by
    position, and a second corpus. Returns the study."""
    names = list(published.load_published()["per_task"]["rows"])
    for arm in study.arms:
        for seed in study.seeds:
            folder = study.cell(arm, seed).dir
            rng = np.random.default_rng([list(ARMS).index(arm), seed, 7])
            shape = asdict(resolve([("size", "nano"), ("model.pos", arm.split("=")[1])]).model)
            change(folder / "run.json", "config", "model", to=shape)  # a whole model, whose FLOPs can be counted
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


TASK = "pydocs/last_word"


def register(study: Study, criteria: Criteria) -> None:
    """Register a study with `criteria` in each run directory, as launch.train does before a run's first step."""
    content = {
        "study": "position",
        "metric": criteria.metric,
        "margin": {name: f"{margin:g} {METRICS[name]}" for name, margin in criteria.margins.items()},
        "seeds": [1, criteria.seeds],
        "stopping": UNTIL_DECIDED if criteria.sequential else FIXED_SEEDS,
        "noise_floor": criteria.noise_floor.identity if criteria.noise_floor else "",
    }
    for arm in study.arms:
        for seed in study.seeds:
            rundir.append_registration(study.cell(arm, seed).dir, content, step=0)


def registered(study: Study, criteria: Criteria | None = None, words: tuple[str, ...] = ()) -> Any:
    """A copy of a study with the attributes of one that the command line makes: `registration`, `words`, `criteria`."""
    made = replace(study, criteria=criteria or study.criteria)
    made.registration, made.words = {"study": "position"}, list(words)
    return made
