"""FP8: the three products against operands rounded here, number by number, and multiplied in float64; the refusals."""

import contextlib
import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pytest import MonkeyPatch
from torch import Tensor

from ablations.config import ConfigError, resolve
from eval import weights
from launch import deepspeed_setup, engine, preflight, run_model
from launch.checkpoint import Checkpoints
from model import proof
from model.config import ModelConfig
from model.fp8 import FP8_LAYERS, FP8Linear, fp8_weight_copies
from model.gpt import BLOCKS, GPT
from model.kernels import fp8
from model.linear import LAYERS
from model.mlp import MLPS
from tests.bench_gpu_check import lacks_fp8
from tests.small_models import SMALL, next_tokens, scrambled, tokens
from tests.tiny_run import in_process, study

NEEDS_FP8 = pytest.mark.skipif(bool(lacks_fp8("cpu")), reason=lacks_fp8("cpu"))
pytestmark = NEEDS_FP8
SHAPE = dataclasses.replace(SMALL, hidden=48, heads=4, seq=32, pos="rotary")
X = tokens(SHAPE, 33)


def numbers(exponent: int, mantissa: int, last: int) -> Tensor:
    """All numbers of a format that are not negative, in order of their codes up to `last`."""
    bias = 2 ** (exponent - 1) - 1
    found = []
    for code in range(last + 1):
        e, m = divmod(code, 2**mantissa)
        found.append(math.ldexp(m, 1 - bias - mantissa) if e == 0 else math.ldexp(2**mantissa + m, e - bias - mantissa))
    return torch.tensor(found, dtype=torch.float64)


E4M3, E5M2 = numbers(4, 3, 0x7E), numbers(5, 2, 0x7B)  # without what is no number
assert (E4M3[-1], E5M2[-1]) == (448, 57344)


def rounded(x: Tensor, grid: Tensor) -> Tensor:
    """To the nearest number of the format, ties to an even code, where x is scaled by the best power of two."""
    by = 2.0 ** math.floor(math.log2(grid[-1] / x.abs().max())) if x.any() else 1.0
    size = x.double().abs() * by
    above = torch.searchsorted(grid, size).clamp(1, len(grid) - 1)
    low, high = size - grid[above - 1], grid[above] - size
    code = torch.where((low < high) | ((low == high) & (above % 2 == 1)), above - 1, above)
    return grid[code] * x.double().sign() / by


def wild(*shape: int) -> Tensor:
    """bf16 numbers of sizes that differ by 2^24."""
    random = torch.Generator().manual_seed(sum(shape))
    return (torch.randn(shape, generator=random) * 2.0 ** torch.randint(-24, 1, shape, generator=random)).bfloat16()


def computed(layer: Any, x: Tensor, g: Tensor) -> list[Tensor]:
    """The output, and the gradients of input, weight and bias."""
    x = x.clone().requires_grad_()
    y = layer(x)
    return [t.detach() for t in (y, *torch.autograd.grad(y, [x, *layer.parameters()], g))]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("spread", [torch.randn, wild])
def test_the_three_products_are_those_of_rounded_operands(spread: Any, bias: bool) -> None:
    torch.manual_seed(0)
    layer = FP8Linear(48, 80, bias).bfloat16()
    with torch.no_grad():
        layer.weight.copy_(0.02 * spread(80, 48))
    x, g = spread(2, 16, 48).bfloat16(), 1e-6 * spread(2, 16, 80).bfloat16()
    weight, into, out = layer.weight.detach(), x.flatten(0, 1), g.flatten(0, 1)
    w8, x8, g8 = rounded(weight, E4M3), rounded(into, E4M3), rounded(out, E5M2)
    assert not torch.equal(x8, into.double()) and not torch.equal(g8, out.double())
    expected = [x8 @ w8.T + (layer.bias.double() if bias else 0), g8 @ w8, g8.T @ x8, out.double().sum(0)]
    sizes = [x8.abs() @ w8.abs().T, g8.abs() @ w8.abs(), g8.abs().T @ x8.abs(), out.double().abs().sum(0)]
    for got, exact, size in zip(computed(layer, x, g), expected, sizes, strict=False):
        error = (got.double().flatten(0, -2) if got.dim() == 3 else got.double()) - exact
        assert (error.abs() <= 2**-8 * exact.abs() + 1e-6 * size).all()  # bf16, after sums in fp32


def test_scaling_rounds_nothing_and_nothing_overflows() -> None:
    """With every bf16 number as the largest of a tensor."""
    every = torch.arange(1, 0x7F80, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    for kind, grid in ((fp8.FORWARD, E4M3), (fp8.BACKWARD, E5M2)):
        by = torch.stack([fp8.fp8_scale(x[None], kind) for x in every])
        assert (torch.frexp(by).mantissa == 0.5).all() and by.isfinite().all() and (1 / by).isfinite().all()
        assert torch.equal((every * by.bfloat16()).double(), every.double() * by.double())
        top = every.double() * by.double()
        usual = (every > 2.0**-100) & (every < 2.0**100)
        assert (top <= grid[-1]).all() and (top[usual] > grid[-1] / 2).all()
        assert fp8.cast_to_fp8(every[usual], by[usual], kind).double().isfinite().all()


def test_what_else_is_in_a_tensor_changes_no_rounding() -> None:
    """So that the size of a micro-batch leaves next to no trace: only what is close to zero is rounded otherwise."""
    x = wild(64, 48)
    few, many = x[:16], torch.cat((x, 5 * x))
    one, both = (
        fp8.cast_to_fp8(t, s := fp8.fp8_scale(t, fp8.FORWARD), fp8.FORWARD).double() / s.double() for t in (few, many)
    )
    clear = few.double().abs() > 2.0**-14 * many.double().abs().max()
    assert 0.3 < clear.double().mean() < 0.9
    assert torch.equal(one[clear], both[:16][clear]) and not torch.equal(one, both[:16])


def test_zeros_and_tiny_numbers_give_what_they_should() -> None:
    layer = FP8Linear(32, 48).bfloat16()
    zero, one = torch.zeros(16, 32).bfloat16(), torch.ones(16, 48).bfloat16()
    y, x_grad, w_grad, b_grad = computed(layer, zero, one)
    assert layer.bias is not None and torch.equal(y, layer.bias.expand(16, 48))
    assert x_grad.any() and not w_grad.any() and (b_grad == 16).all()
    y, x_grad, w_grad, b_grad = computed(layer, zero + 1, 0 * one)
    assert not x_grad.any() and not w_grad.any() and not b_grad.any() and y.isfinite().all()
    assert all(t.isfinite().all() for t in computed(layer, zero + 1e-38, 1e-38 * one))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_no_number_is_not_hidden(bad: float) -> None:
    """Saturating would make an overflow of the gradients look like a step (launch/train.py stops at NaN)."""
    layer = FP8Linear(32, 48).bfloat16()
    x, g = torch.ones(16, 32).bfloat16(), torch.ones(16, 48).bfloat16()
    x[3, 4], g[5, 6] = bad, bad
    y, x_grad, w_grad, _ = computed(layer, x, g)
    assert y.isnan().all() and x_grad.isnan().all() and w_grad.isnan().all()


def test_a_compiled_layer_is_the_eager_one() -> None:
    layer, x, g = FP8Linear(48, 80).bfloat16(), wild(2, 16, 48), wild(2, 16, 80)
    for ours, theirs in zip(computed(torch.compile(layer, fullgraph=True), x, g), computed(layer, x, g), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("bias", [True, False])
def test_a_weight_that_was_cast_before_gives_the_same_numbers(bias: bool) -> None:
    """Bit for bit, eager and compiled; and a GPU finds both operands as it wants them, without a copy."""
    torch.manual_seed(0)
    layer, x, g = FP8Linear(48, 80, bias).bfloat16(), wild(2, 16, 48), wild(2, 16, 80)
    expected = computed(layer, x, g)
    layer.cast_weight()
    assert layer.w8_FD.is_contiguous() and layer.w8_DF.is_contiguous()
    assert layer.w8_FD.dtype == layer.w8_DF.dtype == fp8.FORWARD and "w8_FD" not in layer.state_dict()
    for cached in (layer, torch.compile(layer, fullgraph=True)):
        assert all(torch.equal(a, b) for a, b in zip(computed(cached, x, g), expected, strict=True))


def test_only_a_bf16_model_has_layers_in_fp8() -> None:
    with pytest.raises(TypeError, match="belong to a bf16 model"):
        GPT(SHAPE, layers=FP8_LAYERS).loss(next_tokens(X))


# ------------------------------------------------------------------------------------------------ whole models


def eight(cfg: ModelConfig = SHAPE) -> GPT:
    return scrambled(GPT(cfg, layers=FP8_LAYERS)).bfloat16()


def gradients(model: GPT) -> list[Tensor]:
    loss = model.loss(next_tokens(X))
    return [t.detach().float() for t in (loss, *torch.autograd.grad(loss, list(model.parameters())))]


@pytest.mark.parametrize("act", MLPS)
@pytest.mark.parametrize("block", BLOCKS)
def test_gpus_are_given_what_they_multiply(act: str, block: str, monkeypatch: MonkeyPatch) -> None:
    """Rows on the left and columns on the right (Hopper), multiples of 16, one operand at least in e4m3, a bf16 bias
    (torch's checks before cuBLASLt); three products for each linear layer, the forward ones summed fast."""
    fast, real = [], fp8.scaled_mm

    def checked(a: Tensor, b: Tensor, x: Tensor, _: Any, y: Tensor, __: Any, **named: Any) -> Tensor:
        assert a.is_contiguous() and b.t().is_contiguous() and not a.shape[1] % 16 and not b.shape[1] % 16
        assert {a.dtype, b.dtype} <= {fp8.FORWARD, fp8.BACKWARD} and b.dtype == fp8.FORWARD
        assert x.dtype == y.dtype == torch.float32 and x.numel() == y.numel() == 1
        assert named["bias"] is None or named["bias"].dtype == named["output_dtype"] == torch.bfloat16
        assert named["use_fast_accum"] == (a.dtype == fp8.FORWARD)
        fast.append(named["use_fast_accum"])
        return real(a, b, x, _, y, __, **named)

    monkeypatch.setattr(fp8, "scaled_mm", checked)
    gradients(eight(dataclasses.replace(SHAPE, act=act, block=block, tied=False)))
    layers = SHAPE.layers * (4 if act == "gelu" else 5)
    assert (len(fast), sum(fast)) == (3 * layers, layers)


def test_a_model_is_close_to_the_bf16_one_and_not_the_same() -> None:
    model, other = eight(), GPT(SHAPE, 1).bfloat16()
    other.load_state_dict(model.state_dict())  # the names are the same, and the weights are bf16
    exact = GPT(SHAPE, 1)
    exact.load_state_dict(model.state_dict())
    for ours, theirs, ideal in zip(gradients(model), gradients(other), gradients(exact), strict=True):
        error, usual = float((ours - ideal).norm() / ideal.norm()), float((theirs - ideal).norm() / ideal.norm())
        assert error < (0.002 if ideal.dim() == 0 else 0.25) and not torch.equal(ours, theirs)
        assert ideal.dim() == 0 or error > usual


def casts(monkeypatch: MonkeyPatch) -> list[Tensor]:
    """The weights of layers that are cast from now on, in order."""
    weights: list[Tensor] = []
    honest = fp8.cast_weight

    def watched(weight: Tensor) -> fp8.Weight:
        weights.append(weight)
        return honest(weight)

    monkeypatch.setattr(fp8, "cast_weight", watched)
    return weights


def test_weights_are_cast_once_for_all_micro_batches_and_not_the_output_matrix(monkeypatch: MonkeyPatch) -> None:
    model = eight(dataclasses.replace(SHAPE, tied=False))
    before, weights = gradients(model), casts(monkeypatch)
    monkeypatch.setattr(fp8, "fp8_scale", only_activations := ActivationsOnly(model))
    with fp8_weight_copies(model):
        only_activations.strict = True
        first, second = gradients(model), gradients(model)
    only_activations.strict = False
    layers = [layer for layer in model.blocks.modules() if isinstance(layer, FP8Linear)]
    assert [id(weight) for weight in weights] == [id(layer.weight) for layer in layers] and len(layers) == 4 * 2
    for a, b, c in zip(before, first, second, strict=True):
        assert torch.equal(a, b) and torch.equal(a, c)


class ActivationsOnly:
    """`fp8.fp8_scale`, which refuses the weights of a model while `strict`."""

    def __init__(self, model: GPT) -> None:
        self.honest, self.weights = fp8.fp8_scale, {p.data_ptr() for p in model.parameters()}
        self.strict = False

    def __call__(self, x: Tensor, kind: torch.dtype) -> Tensor:
        assert not (self.strict and x.data_ptr() in self.weights), "a weight is cast again"
        return self.honest(x, kind)


def test_a_weight_that_was_cast_is_never_used_after_it_has_changed() -> None:
    """By hand, by a loaded state, or by whatever writes past autograd's counters, as DeepSpeed does; also where what
    was inside ended with an error."""
    model, other = eight(), eight(dataclasses.replace(SHAPE, act="gelu"))
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(1.5)
    with pytest.raises(KeyError), fp8_weight_copies(model):
        raise KeyError
    with fp8_weight_copies(model):
        stale = gradients(model)
    model.load_state_dict(other.state_dict())
    expected = gradients(other)
    assert not torch.equal(stale[0], expected[0])
    for p in model.parameters():
        p.data.copy_(p.data.clone())  # changes no counter
    assert all(torch.equal(a, b) for a, b in zip(gradients(model), expected, strict=True))
    with fp8_weight_copies(model):
        assert all(torch.equal(a, b) for a, b in zip(gradients(model), expected, strict=True))
    with fp8_weight_copies(model):
        loss = model.loss(next_tokens(X))
    with fp8_weight_copies(model), pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()  # what its backward pass would read is of another moment: torch sees it


# ------------------------------------------------------------------------------------------------ proofs


def test_the_proof_tells_fp8_from_bf16(monkeypatch: MonkeyPatch) -> None:
    model = GPT(SHAPE, layers=FP8_LAYERS).bfloat16()
    assert [p for p in proof.prove_factors(model) if not p.passed] == [] and proof.prove_precision(model).value == "fp8"
    assert proof.prove_precision(GPT(SHAPE).bfloat16()).value == "bf16"
    model.blocks[1].mlp.up = GPT(SHAPE).bfloat16().blocks[1].mlp.up
    found = proof.prove_precision(model)
    assert not found.passed and "blocks.1.mlp.up: the input gradient is that of bf16" in found.detail
    with monkeypatch.context() as patch:
        patch.setattr(FP8Linear, "forward", torch.nn.Linear.forward)
        assert proof.prove_precision(GPT(SHAPE, layers=FP8_LAYERS).bfloat16()).value == "bf16"
    monkeypatch.setattr(fp8, "BACKWARD", fp8.FORWARD)
    found = proof.prove_precision(GPT(SHAPE, layers=FP8_LAYERS).bfloat16())
    assert not found.passed and "blocks.0.attn.qkv: the weight gradient is that of neither" in found.detail


# ------------------------------------------------------------------------------------------------ runs


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model.hidden": 40, "model.heads": 4}, "40 is model.hidden"),
        ({"model.seq": 40}, "40 is model.seq"),
        ({"model.hidden": 64, "model.act": "swiglu"}, "168 is the inner width of model.act=swiglu"),
        ({"layout.tp": 2, "layout.processes": 2}, "needs layout.tp=1"),
        ({"model.qk_scaling": True}, "does nothing in fp8"),
        ({"train.precision": "fp9"}, "is not one of auto, bf16, fp16, fp32, fp8"),
    ],
)
def test_what_cannot_be_in_fp8_is_refused_while_planning(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        resolve(({"train.precision": "fp8"} | change).items())


def test_a_gpu_without_fp8_is_refused_before_any_work(monkeypatch: MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA A100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    preflight.check_fp8_support(resolve([("train.precision", "bf16")]))
    with pytest.raises(ConfigError, match=r"NVIDIA A100 has 8\.0: bf16 runs there"):
        preflight.check_fp8_support(resolve([("train.precision", "fp8")]))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    preflight.check_fp8_support(resolve([("train.precision", "fp8")]))


def test_a_run_learns_is_recorded_as_fp8_and_judged_in_bf16(corpus: str, store: Path, tmp_path: Path) -> None:
    def run(precision: str) -> tuple[Any, list[float]]:
        change = {"train.precision": precision, "layout.eval_at": [0.5]}
        cell = dataclasses.replace(study(corpus, tmp_path, change).cells[0], dir=tmp_path / precision)
        cell.dir.mkdir()
        return cell, [row[2] for row in in_process(cell, store)[1]]

    cell, losses = run("fp8")
    other = run("bf16")[1]
    assert losses != other and losses == pytest.approx(other, rel=0.01)
    assert sum(losses[-4:]) / 4 < losses[0] - 0.3
    record = json.loads((cell.dir / "run.json").read_text())
    assert record["effective"]["train.precision"] == "fp8"
    assert {p["factor"]: p["value"] for p in record["proofs"]}["train.precision"] == "fp8"
    model = GPT(cell.run.model)  # as eval/evaluation.py makes it
    for kept in weights.weights_to_evaluate(cell.dir):
        model.load_state_dict(state := kept.state_dict(record, model))
        assert {w.dtype for w in state.values()} == {torch.bfloat16}
    assert len(weights.weights_to_evaluate(cell.dir)) == 2


@pytest.mark.parametrize("accumulate", [1, 4])
def test_steps_that_cast_weights_once_are_those_that_cast_them_always(
    accumulate: int, tmp_path: Path, monkeypatch: MonkeyPatch
) -> None:
    """Losses, norms and all that the optimizer keeps, bit for bit: over updates, and after going back to a
    checkpoint."""
    shape = {"model.layers": 2, "model.hidden": 48, "model.heads": 4, "model.seq": 32, "model.vocab": 512}
    run = resolve(
        [
            ("size", "nano"),
            *shape.items(),
            ("train.precision", "fp8"),
            ("train.batch", 4),
            ("train.lr", 1e-2),
            ("layout.micro_batch", 4 // accumulate),
        ]
    )

    def trained(folder: Path) -> tuple[list[Any], list[Tensor]]:
        deepspeed_setup.initialise_process(run)
        built = engine.build_engine(run_model.build_model(run), run, 1)
        checkpoints = Checkpoints(folder, keep=3)
        readings = []
        for step in (0, 1, 2, 3, 2, 3):
            if len(readings) == 4:
                assert built.load(checkpoints) == {"step": 2}
            rows = torch.randint(512, (4, 33), generator=torch.Generator().manual_seed(step))
            readings.append(built.step(built.model.objective.batch(rows), run.train.lr)[:2])
            if len(readings) == 2:
                built.save(checkpoints, 2, {"step": 2})
                checkpoints.wait()
        return readings, [piece.data.clone() for piece in built.fragments()]

    weights = casts(monkeypatch)
    readings, pieces = trained(tmp_path / "once")
    assert len(weights) == 6 * 4 * 2  # steps, layers of a block, blocks
    monkeypatch.setattr(engine, "fp8_weight_copies", lambda model: contextlib.nullcontext())
    expected, those = trained(tmp_path / "always")
    assert readings == expected and all(torch.equal(a, b) for a, b in zip(pieces, those, strict=True))
    assert readings[2:4] == readings[4:6] and len({loss for loss, _ in readings}) == 4


def test_a_run_whose_layers_are_not_in_fp8_stops(
    corpus: str, store: Path, tmp_path: Path, monkeypatch: MonkeyPatch
) -> None:
    from launch.manifest import Mismatch

    cell = dataclasses.replace(study(corpus, tmp_path, {"train.precision": "fp8"}).cells[0], dir=tmp_path / "run")
    cell.dir.mkdir()
    monkeypatch.setattr(run_model, "FP8_LAYERS", LAYERS)
    with pytest.raises(Mismatch, match="train.precision is bf16 in effect and fp8 by configuration"):
        in_process(cell, store)
    assert not (cell.dir / "run.json").exists()
