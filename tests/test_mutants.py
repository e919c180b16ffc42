"""What tests/mutations.py showed to be guarded by nothing else."""

from pathlib import Path

import pytest
import torch

from ablations.config import resolve
from model.gpt import GPT

SMALL = {
    "model.layers": 2, "model.hidden": 48, "model.heads": 6, "model.seq": 32, "model.vocab": 120,
    "train.precision": "fp32", "train.batch": 4, "layout.micro_batch": 4,
}  # fmt: skip


def built(**change: object):
    from launch import engine

    run = resolve((SMALL | change).items())
    engine.start(run)
    return engine.build(GPT(run.model, run.seed), run, 1)


@pytest.mark.parametrize("norm", ["layernorm", "rmsnorm"])
def test_no_gain_and_no_bias_is_decayed_wherever_it_is(norm: str) -> None:
    live = built(**{"model.norm": norm, "model.embnorm": True, "model.act": "swiglu"})
    decay = {id(p): g["weight_decay"] for g in live.groups() for p in g["params"]}
    named = dict(live.model.named_parameters())
    assert decay.keys() == {id(p) for p in named.values()}
    assert {n for n, p in named.items() if decay[id(p)] == 0} == {n for n, p in named.items() if p.dim() == 1}
    assert {decay[id(p)] for p in named.values()} == {0.0, 0.1}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_resumed_engine_goes_on_as_if_it_had_not_stopped(tmp_path: Path, precision: str) -> None:
    """Bit for bit, Adam's step counter and moments included."""
    rows = torch.randint(120, (6, 4, 33), generator=torch.Generator().manual_seed(0))
    change = {"train.precision": precision}
    calm = built(**change)
    for step in range(3):
        calm.step(rows[step], 1e-3)
    calm.save(tmp_path, 3, {"step": 3})
    expected = [calm.step(rows[step], 1e-3) for step in range(3, 6)]
    resumed = built(**change)
    assert (resumed.load(tmp_path) or {})["step"] == 3
    assert [resumed.step(rows[step], 1e-3) for step in range(3, 6)] == expected
    for (name, p), q in zip(calm.model.named_parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(p, q), name
