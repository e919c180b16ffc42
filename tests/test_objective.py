"""The prefix objective and QK layer scaling against sums written out, in every executor of attention."""

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pytest import MonkeyPatch

from ablations.config import ConfigError, resolve
from model import attention, proof
from model.gpt import GPT
from model.objective import Batch, Objective, Prefix
from model.position import POSITIONS
from model.proofs.attention import expected_predictions, visible_keys
from tests.small_models import SMALL, next_tokens, scrambled, tokens

PREFIX = replace(SMALL, objective="prefix")
LENGTHS = torch.tensor([1, 7, 20])
X = tokens(SMALL, 20)
CAUSAL = Objective(SMALL)


def prefixed(rows: torch.Tensor, lengths: torch.Tensor) -> Batch:
    """A batch whose prefixes have these lengths."""
    T = rows.shape[1] - 1
    return Batch(rows[:, :-1], rows[:, 1:], torch.arange(T) >= lengths[:, None] - 1, lengths)


def qkv(T: int = 20) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(3, 6, T, 8, generator=generator) for _ in range(3))


def written_out(pos: str, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, lengths: list[int]) -> torch.Tensor:
    """Attention in float64, score by score."""
    cfg = replace(SMALL, pos=pos)
    q, k = POSITIONS[pos](cfg).rotate(q, k)
    out = torch.zeros_like(v, dtype=torch.float64)
    B, H, T, K = q.shape
    slopes = [2.0 ** (-2 * (i + 1)) for i in range(4)] + [2.0**-1, 2.0**-3]  # of six heads, by the paper
    for b in range(B):
        for h in range(H):
            for i in range(T):
                seen = [j for j in range(T) if j <= i or j < lengths[b]]
                bias = [-slopes[h] * abs(i - j) if pos == "alibi" else 0.0 for j in seen]
                score = (k[b, h, seen].double() @ q[b, h, i].double()) / math.sqrt(K) + torch.tensor(bias).double()
                out[b, h, i] = score.softmax(0) @ v[b, h, seen].double()
    return out


@pytest.mark.parametrize(
    "executor",
    [attention.plain_attention, attention.masked_attention, attention.flexattention],
    ids=lambda e: e.__name__,
)
@pytest.mark.parametrize("pos", ["none", "rotary", "alibi"])
def test_a_prefix_is_seen_both_ways(pos: str, executor: Any) -> None:
    q, k, v = qkv()
    position, x = POSITIONS[pos](replace(SMALL, pos=pos)), torch.empty(3, 20, 48)
    ours = executor(position, 6, x, Prefix(PREFIX), LENGTHS)(q, k, v)
    assert (ours - written_out(pos, q, k, v, LENGTHS.tolist())).abs().max() < 1e-5


@pytest.mark.parametrize("pos", POSITIONS)
def test_a_prefix_of_one_token_is_the_causal_model(pos: str) -> None:
    causal = scrambled(GPT(replace(SMALL, pos=pos)))
    both_ways = scrambled(GPT(replace(PREFIX, pos=pos)))
    ones = torch.ones(3, dtype=torch.long)
    assert (both_ways(X, ones) - causal(X)).abs().max() < 1e-5
    assert float(both_ways.loss(prefixed(X, ones))) == pytest.approx(float(causal.loss(next_tokens(X))), rel=1e-6)


def test_the_loss_is_of_the_rest_alone() -> None:
    model = scrambled(GPT(PREFIX))
    rows, T = tokens(SMALL, 21), 20
    logits = model(rows[:, :-1], LENGTHS)
    costs = [F.cross_entropy(logits[b, t], rows[b, t + 1]) for b, p in enumerate(LENGTHS) for t in range(p - 1, T)]
    assert len(costs) == 20 + 14 + 1
    assert float(model.loss(prefixed(rows, LENGTHS))) == pytest.approx(float(torch.stack(costs).mean()), rel=1e-5)


def test_lengths_depend_on_seed_and_sample_alone_and_are_uniform() -> None:

    def draw(seed: int, numbers: range) -> torch.Tensor:
        extents_B = Prefix(PREFIX).batch(torch.zeros(len(numbers), 9, dtype=torch.long), seed, numbers).extents_B
        assert extents_B is not None
        return extents_B

    whole = draw(1, range(4000))
    parts = [draw(1, range(at, at + 100)) for at in range(3900, -1, -100)]  # in another order
    assert torch.equal(torch.cat(parts[::-1]), whole)
    assert not torch.equal(whole, draw(2, range(4000)))
    counts = whole.bincount(minlength=9)
    assert counts[0] == 0 and (counts[1:] - 500).abs().max() < 4 * math.sqrt(500)  # four standard deviations


def test_neither_objective_passes_for_the_other() -> None:
    """An evaluation that does not know of prefixes must not quietly judge another model than was trained."""
    with pytest.raises(ValueError, match="give the length of each sequence's prefix"):
        GPT(PREFIX)(X)
    with pytest.raises(ValueError, match="objective=causal has no extents"):
        GPT(SMALL)(X, LENGTHS)


def built(**change: object) -> Any:
    from launch import deepspeed_setup, engine

    small = {
        "model.layers": 2,
        "model.hidden": 48,
        "model.heads": 6,
        "model.seq": 32,
        "model.vocab": 120,
        "train.precision": "fp32",
        "train.batch": 4,
        "layout.micro_batch": 4,
    }
    run = resolve((small | change).items())
    deepspeed_setup.initialise_process(run)
    return engine.build_engine(GPT(run.model, run.seed), run, 1)


def test_how_a_batch_is_cut_does_not_change_the_prefix_loss() -> None:
    rows, lengths = tokens(SMALL, 33, 4), torch.tensor([32, 3, 17, 1])
    results = [
        built(**{"model.objective": "prefix", "layout.micro_batch": micro}).step(prefixed(rows, lengths), 1e-3)[:2]
        for micro in (4, 2, 1)
    ]
    assert results[1] == pytest.approx(results[0], rel=1e-5) and results[2] == pytest.approx(results[0], rel=1e-5)
    model = GPT(replace(PREFIX, seq=32), 1)
    assert results[0][0] == pytest.approx(float(model.loss(prefixed(rows, lengths))), rel=1e-6)


# ------------------------------------------------------------------------------------------------ QK layer scaling


@pytest.mark.parametrize("pos", ["none", "alibi"])
@pytest.mark.parametrize("layer", [1, 2, 24])
def test_scores_divided_and_multiplied_back_are_the_same(pos: str, layer: int) -> None:
    """Up to the rounding of fp16, against float64."""
    q, k, v = (x.half() for x in qkv())
    attend = attention.plain_attention(
        POSITIONS[pos](replace(SMALL, pos=pos)), 6, torch.empty(3, 20, 48, dtype=torch.float16), CAUSAL
    )
    expected = written_out(pos, q, k, v, [1, 1, 1])
    assert (attend(q, k, v, layer=layer) - expected).abs().max() < 5e-3
    assert (attend(q, k, v) - expected).abs().max() < 5e-3


def test_their_gradients_are_the_same() -> None:
    x = torch.empty(3, 20, 48, dtype=torch.float16)
    attend = attention.plain_attention(POSITIONS["alibi"](replace(SMALL, pos="alibi")), 6, x, CAUSAL)

    def gradients(layer: int) -> list[torch.Tensor]:
        inputs = [t.half().requires_grad_() for t in qkv()]
        attend(*inputs, layer=layer).square().sum().backward()
        return [t.grad.float() for t in inputs if t.grad is not None]

    for undivided, divided in zip(gradients(1), gradients(24), strict=True):
        assert (divided - undivided).norm() < 5e-3 * undivided.norm()


def test_they_survive_where_fp16_overflows() -> None:
    x, (q, k, v) = torch.empty(3, 20, 48, dtype=torch.float16), qkv()
    q, k, v = (300 * q).half(), (300 * k).half(), v.half()
    attend = attention.plain_attention(POSITIONS["none"](SMALL), 6, x, CAUSAL)
    assert not attend(q, k, v).isfinite().all()
    assert (attend(q, k, v, layer=8) - written_out("none", q, k, v, [1, 1, 1])).abs().max() < 5e-3


def test_every_layer_gets_its_own_number() -> None:
    cfg = replace(SMALL, layers=4, qk_scaling=True)
    model, numbers = GPT(cfg), []
    for block in model.blocks:
        block.attn.forward = lambda x, attend, *_: numbers.append(attend.keywords["layer"]) or x
    model(X)
    assert numbers == [1, 2, 3, 4]


@pytest.mark.parametrize("declared", [False, True])
@pytest.mark.parametrize("done", [False, True])
def test_the_proof_tells_whether_scores_are_divided(declared: bool, done: bool) -> None:
    model = GPT(replace(SMALL, layers=3, qk_scaling=declared)).half()
    prepare = attention.make_attention

    def undivided(*args: Any) -> Any:
        attend = prepare(*args)
        return lambda q, k, v, layer=1: attend(q, k, v)

    def always(*args: Any) -> Any:
        attend, layers = prepare(*args), iter((1, 2, 3))
        return lambda q, k, v, layer=1: attend(q, k, v, layer=next(layers))

    with MonkeyPatch.context() as patch:
        patch.setattr(attention, "make_attention", always if done else undivided)
        with torch.no_grad():
            assert proof.prove_qk_scaling(model).passed == (declared == done)


def test_a_score_that_is_not_multiplied_back_fires(monkeypatch: MonkeyPatch) -> None:
    model = GPT(replace(SMALL, qk_scaling=True)).half()
    monkeypatch.setattr(torch.Tensor, "float", lambda x: x.to(torch.float32) / 2)  # undoes the second layer's
    assert "layer 1" in {p.factor: p.detail for p in proof.prove_factors(model) if not p.passed}["model.pos"]


def test_qk_scaling_without_fp16_is_refused() -> None:
    with pytest.raises(ConfigError, match="needs train.precision=fp16"):
        resolve([("model.qk_scaling", True), ("train.precision", "bf16")])
    with pytest.raises(ConfigError, match="there is no other"):
        resolve([("model.qk_scaling", True), ("train.precision", "fp16"), ("model.layers", 1)])
    assert not proof.prove_qk_scaling(GPT(replace(SMALL, qk_scaling=True))).passed


# ------------------------------------------------------------------------------------------------ proofs of prefixes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("pos", POSITIONS)
@pytest.mark.parametrize("block", ["pre-ln", "post-ln"])
def test_a_prefix_model_proves_itself(pos: str, block: str, dtype: torch.dtype) -> None:
    scaled = dtype == torch.float16
    model = GPT(replace(PREFIX, pos=pos, block=block, qk_scaling=scaled)).to(dtype)
    assert [(p.factor, p.detail) for p in proof.prove_factors(model) if not p.passed] == []


def broken(monkeypatch: MonkeyPatch, where: Any, name: str, value: Any) -> dict[str, str]:
    monkeypatch.setattr(where, name, value)
    return {p.factor: p.detail for p in proof.prove_factors(GPT(replace(PREFIX, pos="alibi"))) if not p.passed}


def test_a_prefix_that_attention_does_not_see_fires(monkeypatch: MonkeyPatch) -> None:
    found = broken(monkeypatch, Prefix, "sees", staticmethod(lambda extents, b, q, k: (k <= q) & (extents[b] > 0)))
    assert "does not see what prefix says" in found["model.objective"]


@pytest.mark.parametrize("late", [-99, -1, 1])
def test_a_loss_on_the_prefix_or_not_on_all_of_the_rest_fires(late: int, monkeypatch: MonkeyPatch) -> None:
    draw = Prefix.batch

    def batch(self: Any, *args: Any) -> Batch:
        made = draw(self, *args)
        assert made.extents_B is not None
        T = made.inputs_BT.shape[1]
        return made._replace(predicted=torch.arange(T) >= made.extents_B[:, None] - 1 + late)

    assert "of 8: the loss is" in broken(monkeypatch, Prefix, "batch", batch)["model.objective"]


def test_targets_that_are_not_the_next_tokens_fire(monkeypatch: MonkeyPatch) -> None:
    for cls, cfg in ((Objective, SMALL), (Prefix, PREFIX)):
        draw = cls.batch

        def batch(self: Any, rows: torch.Tensor, *args: Any, draw: Any = draw) -> Batch:
            return draw(self, rows, *args)._replace(targets_BT=rows[:, :-1])

        monkeypatch.setattr(cls, "batch", batch)
        assert not proof.prove_objective(GPT(cfg)).passed


def test_an_objective_without_a_definition_of_its_own_in_the_proof_is_named() -> None:
    """As after the first steps of docs/extending.md: the class is there, its definition for the proof is not."""
    with pytest.raises(ValueError, match="second-half: its definition is missing in `visible_keys`"):
        visible_keys("second-half", 4, 1)
    model = SimpleNamespace(cfg=SimpleNamespace(objective="second-half"))
    rows = torch.arange(5)[None]
    with pytest.raises(ValueError, match="second-half: its definition is missing in .* or `expected_predictions`"):
        expected_predictions(model, rows.numpy(), next_tokens(rows))
