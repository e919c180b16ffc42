"""A run that trains in a second, for the tests that train."""

import json
from pathlib import Path
from typing import Any

import pytest

from ablations.build_study import build_study
from ablations.study import Study

TINY = {
    "model.layers": 2,
    "model.hidden": 32,
    "model.heads": 2,
    "model.seq": 32,
    "model.vocab": 512,
    "train.tokens": 24 * 4 * 32,
    "train.batch": 4,
    "train.precision": "fp32",
    "train.lr": 1e-3,
    "layout.micro_batch": 4,
    "layout.log_every": 1,
    "layout.save_every": 8,
    "layout.wandb": "disabled",
}


def words(corpus: str, out: Path, **change: Any) -> list[str]:
    """The NAME=VALUE words of a study of the baseline and ALiBi. `change`: settings other than TINY's."""
    setting = " ".join(f"{k}={v}" for k, v in (TINY | change).items())
    return ["POS=alibi", f"DATA={corpus}", "SEEDS=1", f"OUT={out}", f"SET={setting}"]


def study(corpus: str, out: Path, change: dict[str, Any] | None = None) -> Study:
    """A study of the baseline and ALiBi with one seed. `out`: the output root, which has the store of prepared data;
    `change`: settings other than TINY's."""
    setting = list((TINY | {"data.corpus": corpus, "data.tokenizer": corpus, "eval.corpora": [corpus]}).items())
    return build_study("t", "?", "?", setting + list((change or {}).items()), [("model.pos", "alibi")], [1], out)


def result(folder: Path) -> tuple[bytes, list[tuple]]:
    """The result of a run: (the bytes of its weights file; for each logged step its number, tokens, loss, learning rate
    and gradient norm), all of which do not depend on the clock."""
    rows = [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]
    return (folder / "weights.safetensors").read_bytes(), [
        (r["step"], r["tokens"], r["loss"], r["lr"], r["grad_norm"]) for r in rows
    ]


def in_process(cell: Any, store: Path) -> tuple[bytes, list[tuple]]:
    """Train a run in this process, and return its `result`. `store`: the output root."""
    from launch.train import train

    train(cell, store)
    return result(cell.dir)


def same_initial_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the initial weights of every run drawn from seed 1, whatever the run's seed."""
    from model import gpt

    draw = gpt.initialise
    monkeypatch.setattr(gpt, "initialise", lambda model, cfg, seed, *rest: draw(model, cfg, 1, *rest))
