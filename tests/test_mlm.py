"""The MLM objective: what is masked, what is seen, what the loss is of; and held-out loss on masked tokens."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pytest import MonkeyPatch

from ablations.config import ConfigError, resolve
from eval.tasks import masked, score
from launch import local
from model import attention, proof
from model.gpt import GPT
from model.objective import OBJECTIVES, Batch, MaskedLM, SpecialTokens
from model.position import POSITIONS
from tests.small_models import SMALL, scrambled, tokens
from tests.test_objective import built

MLM = replace(SMALL, objective="mlm", mask_rate=0.25)
MASK, EOD = 119, 3
SPECIAL = SpecialTokens(MASK, (EOD, MASK))
ROWS = tokens(replace(SMALL, vocab=100), 33, B=6)  # no row holds the mask token


def drawn(cfg: Any = MLM, rows: torch.Tensor = ROWS, seed: int = 1, numbers: Any = None) -> Batch:
    return MaskedLM(cfg).batch(rows, seed, numbers, SPECIAL)


@pytest.mark.parametrize(
    ("rate", "T", "counts"), [(0.25, 128, (26, 3, 3)), (0.15, 128, (15, 2, 2)), (0.6, 32, (15, 2, 2))]
)
def test_the_counts_are_exact(rate: float, T: int, counts: tuple[int, int, int]) -> None:
    """Of 32 masked tokens 26 become the mask token, 3 a random one, 3 stay: Cramming's numbers."""
    cfg = replace(MLM, mask_rate=rate, seq=T, vocab=5000)
    rows = torch.arange(8 * (T + 1)).view(8, T + 1) + 200
    batch = MaskedLM(cfg).batch(rows, 1, None, SpecialTokens(4999, (0,)))
    assert batch.predicted is not None and batch.predicted.shape == (8, sum(counts))
    assert cfg.masked_per_sequence == sum(counts)
    assert torch.equal(batch.targets_BT, rows[:, :-1])
    for row, positions in enumerate(batch.predicted.tolist()):
        inputs, text = batch.inputs_BT[row], rows[row, :-1]
        masks = int((inputs == 4999).sum())
        others = int(((inputs != text) & (inputs != 4999)).sum())
        kept = int((inputs[positions] == text[positions]).sum())
        assert (masks, others, kept) == counts and positions == sorted(set(positions))
        untouched = [t for t in range(T) if t not in positions]
        assert torch.equal(inputs[untouched], text[untouched])


def test_the_draw_depends_on_seed_and_sample_alone_and_is_uniform() -> None:
    rows = torch.arange(33).repeat(4000, 1) + 40
    whole = drawn(rows=rows, numbers=range(4000))
    parts = [drawn(rows=rows[:100], numbers=range(at, at + 100)) for at in range(3900, -1, -100)]  # in another order
    for field in ("inputs_BT", "predicted"):
        assert torch.equal(torch.cat([getattr(part, field) for part in reversed(parts)]), getattr(whole, field))
    assert not torch.equal(drawn(rows=rows, seed=2).inputs_BT, whole.inputs_BT)
    assert whole.predicted is not None
    chosen = whole.predicted.flatten().bincount(minlength=32)
    assert (chosen - 1000).abs().max() < 5 * (4000 * 0.25 * 0.75) ** 0.5  # standard deviations
    shown = [int((whole.inputs_BT[:, t] == MASK).sum()) for t in range(32)]
    assert (
        max(abs(n - 750) for n in shown) < 5 * (750 * 0.8) ** 0.5
    )  # 6 of 8 masked ones: at no place more than elsewhere
    random = whole.inputs_BT[(whole.inputs_BT != rows[:, :-1]) & (whole.inputs_BT != MASK)]
    counts = random.bincount(minlength=120)
    assert counts[EOD] == counts[MASK] == 0 and counts[[0, 1, 50, 118]].min() > 10  # of 4000 in 118


def test_special_tokens_are_masked_only_where_nothing_else_is() -> None:
    rows = torch.full((2, 33), EOD)
    rows[0, ::2] = 50
    rows[1, 5] = 50
    batch = drawn(rows=rows)
    assert batch.predicted is not None
    assert (rows[0][batch.predicted[0]] == 50).all() and 5 in batch.predicted[1].tolist()


def test_without_a_mask_token_it_is_refused() -> None:
    with pytest.raises(ValueError, match="needs a tokenizer with a mask token"):
        MaskedLM(MLM).batch(ROWS)


def test_the_settings_know_which_objectives_mask() -> None:
    for name, objective in OBJECTIVES.items():
        assert replace(SMALL, objective=name).needs_mask_token == objective.needs_mask_token


@pytest.mark.parametrize("rate", [0.0, 1.0, 0.01, 0.99, 15])
def test_a_rate_that_masks_nothing_or_everything_is_refused(rate: float) -> None:
    with pytest.raises((ConfigError, ValueError), match="mask_rate"):
        resolve([("model.objective", "mlm"), ("model.mask_rate", rate), ("model.seq", 32)])


# ------------------------------------------------------------------------------------------------ what is seen


@pytest.mark.parametrize(
    "executor",
    [attention.plain_attention, attention.masked_attention, attention.flexattention],
    ids=lambda e: e.__name__,
)
@pytest.mark.parametrize("pos", ["none", "rotary", "alibi"])
def test_all_is_seen_from_everywhere(pos: str, executor: Any) -> None:
    """Against softmax(q k' / sqrt(K) + bias) v in float64, with no mask at all."""
    position = POSITIONS[pos](replace(MLM, pos=pos))
    q, k, v = torch.randn(3, 2, 6, 20, 8, generator=torch.Generator().manual_seed(0)).unbind(0)
    turned, back = (x.double() for x in position.rotate(q, k))
    distance = (torch.arange(20)[:, None] - torch.arange(20)).abs()
    slopes = torch.tensor([2.0 ** (-2 * (i + 1)) for i in range(4)] + [2.0**-1, 2.0**-3]).double()
    bias = -slopes[:, None, None] * distance if pos == "alibi" else torch.zeros(6, 20, 20).double()
    expected = (turned @ back.mT / 8**0.5 + bias).softmax(-1) @ v.double()
    got = executor(position, 6, torch.empty(2, 20, 48), MaskedLM(MLM))(q, k, v)
    assert (got - expected).abs().max() < 1e-5


@pytest.mark.parametrize("pos", POSITIONS)
def test_what_comes_later_is_seen_and_the_masked_token_is_not(pos: str) -> None:
    model, batch = scrambled(GPT(replace(MLM, pos=pos))), drawn()
    assert batch.predicted is not None
    at = next(t for t in batch.predicted[0].tolist() if batch.inputs_BT[0, t] == MASK)
    other = ROWS.clone()
    other[0, at] = 7
    hidden = drawn(rows=other)
    assert torch.equal(hidden.inputs_BT, batch.inputs_BT) and not torch.equal(hidden.targets_BT, batch.targets_BT)
    later = batch.inputs_BT.clone()
    later[:, -1] = (later[:, -1] + 1) % 100
    with torch.no_grad():
        before, after = model(batch.inputs_BT), model(later)
    assert (before - after)[:, 0].abs().max() > 1e-4


def test_the_loss_is_the_mean_over_masked_positions() -> None:
    model, batch = scrambled(GPT(MLM)), drawn()
    assert batch.predicted is not None
    logits = model(batch.inputs_BT)
    costs = [F.cross_entropy(logits[b, t], ROWS[b, t]) for b in range(6) for t in batch.predicted[b].tolist()]
    assert len(costs) == 6 * 8 == batch.prediction_count
    assert float(model.loss(batch).detach()) == pytest.approx(float(torch.stack(costs).mean()), rel=1e-5)


def test_how_a_batch_is_cut_does_not_change_the_loss() -> None:
    batch = drawn(rows=ROWS[:4])
    results = [
        built(**{"model.objective": "mlm", "model.mask_rate": 0.25, "layout.micro_batch": micro}).step(batch, 1e-3)[:2]
        for micro in (4, 2, 1)
    ]
    assert results[1] == pytest.approx(results[0], rel=1e-5) and results[2] == pytest.approx(results[0], rel=1e-5)
    assert results[0][0] == pytest.approx(float(GPT(replace(MLM, seq=32), 1).loss(batch).detach()), rel=1e-6)


def test_it_learns() -> None:
    """A text in which every token says what the others are."""
    rows = 10 + torch.arange(8)[:, None].repeat(1, 33)
    live = built(**{"model.objective": "mlm", "model.mask_rate": 0.25})
    losses = [
        live.step(drawn(rows=rows[torch.arange(4 * i, 4 * i + 4) % 8], numbers=range(4 * i, 4 * i + 4)), 3e-3).loss
        for i in range(60)
    ]
    assert losses[0] > 4.5 and sum(losses[-5:]) / 5 < 1.0  # a guess among the eight tokens that occur: 2.1


# ------------------------------------------------------------------------------------------------ proofs


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("pos", POSITIONS)
def test_an_mlm_model_proves_itself(pos: str, dtype: torch.dtype) -> None:
    for change in ({}, {"block": "post-ln", "mask_rate": 0.6}, {"tied": False, "act": "geglu", "mask_rate": 0.15}):
        model = GPT(replace(MLM, pos=pos, **change)).to(dtype)  # type: ignore[arg-type]
        assert [(p.factor, p.detail) for p in proof.prove_factors(model) if not p.passed] == []


def fault(monkeypatch: MonkeyPatch, name: str, value: Any) -> str:
    monkeypatch.setattr(MaskedLM, name, value)
    found = proof.prove_objective(GPT(MLM))
    return "" if found.passed else found.detail


def test_attention_that_is_causal_fires(monkeypatch: MonkeyPatch) -> None:
    assert "does not see what mlm says" in fault(monkeypatch, "sees", staticmethod(lambda extents, b, q, k: k <= q))


def test_faults_of_the_batch_fire(monkeypatch: MonkeyPatch) -> None:
    draw = MaskedLM.batch

    def changed(**how: Any) -> Any:
        def batch(self: MaskedLM, rows: torch.Tensor, *rest: Any) -> Batch:
            made = draw(self, rows, *rest)
            return made._replace(**{field: f(made, rows) for field, f in how.items()})

        return batch

    def every(made: Batch, rows: torch.Tensor) -> torch.Tensor:
        return torch.arange(made.inputs_BT.shape[1]).expand(made.inputs_BT.shape)

    with monkeypatch.context() as patch:
        assert "tokens are masked" in fault(patch, "batch", changed(inputs_BT=lambda made, rows: rows[:, :-1]))
    with monkeypatch.context() as patch:
        assert "positions of 16 are predicted" in fault(patch, "batch", changed(predicted=every))
    with monkeypatch.context() as patch:
        assert "the loss is" in fault(patch, "batch", changed(targets_BT=lambda made, rows: rows[:, 1:]))
    with monkeypatch.context() as patch:
        assert "a token that is not predicted" in fault(
            patch, "batch", changed(inputs_BT=lambda made, rows: made.inputs_BT.roll(1, 1))
        )
    monkeypatch.setattr(MaskedLM, "MASKED", 0.5)
    assert "tokens are masked" in fault(monkeypatch, "RANDOM", 0.1)


# ------------------------------------------------------------------------------------------------ evaluation


def test_likelihoods_from_left_to_right_are_refused_with_what_is_possible() -> None:
    model = GPT(MLM).eval()
    with pytest.raises(ValueError, match="no likelihood of a text from left to right.*masked tokens"):
        score.score_pairs(model, [([1, 2], [3])])
    with pytest.raises(ValueError, match="no likelihood"):
        score.greedy_continuations(model, [[1, 2]], 2, lambda ids: False)


def test_likelihood_tasks_are_refused_before_anything_is_trained(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    words = ["STUDY=cram", "SIZE=nano", "TASKS=hellaswag", f"OUT={tmp_path}"]
    assert local.main(words) == 2
    error = capsys.readouterr().err
    assert "no likelihood of a text from left to right" in error and "fine-tuning on GLUE is possible" in error
    assert not list(tmp_path.iterdir())


class Bytes:
    """Every byte modulo 100 is a token; some characters have several."""

    eod = EOD

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        return [[byte % 100 for byte in text.encode()] for text in texts]


TEXTS = ["Größe und Maß über alles, " * 5, "短い文書です。" * 9, "short"] * 3


def test_held_out_loss_against_a_loop_in_float64() -> None:
    model = scrambled(GPT(MLM)).eval()
    got = masked.masked_loss(model, TEXTS, Bytes(), MASK, [EOD])
    tokens = [(i, n) for n, text in enumerate(TEXTS) for i in (EOD, *Bytes().encode_batch([text])[0])]
    tokens += [(EOD, 0)] * (-len(tokens) % 32)
    double, count = scrambled(GPT(MLM)).double().eval(), 0
    nats = [0.0] * len(TEXTS)
    for n in range(len(tokens) // 32):
        row = np.array([i for i, _ in tokens[32 * n : 32 * n + 32]])
        keys = np.random.default_rng([20, n]).random(32)
        order = sorted(range(32), key=lambda t: keys[t] + (row[t] == EOD))  # noqa: B023
        places = sorted(order[: round(0.25 * sum(row != EOD))])
        inputs = torch.tensor(row)
        inputs[places] = MASK
        with torch.no_grad():
            logp = double(inputs[None])[0].log_softmax(-1)
        for t in places:
            nats[tokens[32 * n + t][1]] -= float(logp[t, row[t]])
        count += len(places)
    assert got["masked"] == count and got["nats"] == pytest.approx(sum(nats) / count, rel=1e-5)
    sizes = [len(text.encode()) for text in TEXTS]  # each token of this tokenizer is a byte
    share = count / sum(sizes)
    assert [sample["bytes"] for sample in got["samples"]] == [size / 4 for size in sizes]
    assert [sample["nats"] for sample in got["samples"]] == pytest.approx([n / share / 4 for n in nats], rel=1e-5)
    assert got["bits_per_byte"] == pytest.approx(sum(nats) / share / np.log(2) / sum(sizes), rel=1e-5)
    assert got["mask_rate"] == 0.25 and masked.masked_loss(model, TEXTS, Bytes(), MASK, [EOD]) == got


class Letters(Bytes):
    """The same, but for bytes above 127: they are unknown, one token for each."""

    UNKNOWN = 98

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        return [[byte % 90 if byte < 128 else self.UNKNOWN for byte in text.encode()] for text in texts]

    def count_unknown(self, text: str) -> tuple[int, int]:
        lost = sum(byte > 127 for byte in text.encode())
        return lost, lost


def test_bytes_without_a_token_are_charged() -> None:
    model = scrambled(GPT(MLM)).eval()
    lost = masked.masked_loss(model, ["文書" * 50], Letters(), MASK, [EOD, 98])["bits_per_byte"]  # nothing to mask
    assert lost == 8.0
    plain, half = ("a b c d e " * 20, "a b c d e " * 20 + "é" * 100)
    got = [masked.masked_loss(model, [text], Letters(), MASK, [EOD, 98])["samples"][0] for text in (plain, half)]
    assert "unknown_bytes" not in got[0] and got[1]["unknown_bytes"] == 200 / 4 and got[1]["bytes"] == 400 / 4
    assert got[1]["nats"] > 8 * np.log(2) * 200 / 4


def test_held_out_loss_says_what_it_needs() -> None:
    with pytest.raises(ValueError, match="this model has causal"):
        masked.masked_loss(GPT(SMALL), TEXTS, Bytes(), MASK, [EOD])
    with pytest.raises(ValueError, match="there is no held-out text"):
        masked.masked_loss(GPT(MLM), [], Bytes(), MASK, [EOD])
