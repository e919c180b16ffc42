"""Each proof holds for the model as it is, and fires when the thing that it guards is broken."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from pytest import MonkeyPatch, WarningsRecorder, fixture, mark, raises
from torch import Tensor, nn

from model import attention, gpt, mlp, position, proof
from model.config import ModelConfig
from model.gpt import GPT
from model.kernels import gelu, rotation
from model.proofs import attention as proofs
from model.proofs import layers
from tests.small_models import SMALL, VARIANTS, name


def cfg(**change: object) -> ModelConfig:
    from dataclasses import replace

    return replace(SMALL, **change)  # type: ignore[arg-type]


def failing(model: GPT, only: Callable[..., proof.Proof] | None = None) -> dict[str, str]:
    """{factor: detail} of the proofs that fail: of all, or of one where a test asks many models for only that."""
    with MonkeyPatch.context() as patch:
        if only:
            assert only in proof.PROOFS
            patch.setattr(proof, "PROOFS", (only,))
        return {p.factor: p.detail for p in proof.prove_factors(model) if not p.passed}


@mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@mark.parametrize("variant", VARIANTS, ids=name)
def test_every_variant_proves_itself(variant: ModelConfig, dtype: torch.dtype) -> None:
    model = GPT(variant).to(dtype)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    assert failing(model) == {}
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@mark.parametrize("pos", position.POSITIONS)
def test_rounding_fails_no_honest_model(pos: str) -> None:
    """At the nano size, in bf16, over seeds: a proof that cries wolf would be switched off."""
    for seed in range(1, 9):
        nano = cfg(layers=4, hidden=128, heads=4, seq=256, vocab=4096, pos=pos, embnorm=seed % 2 == 0)
        assert failing(GPT(nano, seed).bfloat16()) == {}


@mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@mark.parametrize("declared", position.POSITIONS)
@mark.parametrize("built", position.POSITIONS)
def test_no_position_scheme_passes_for_another(declared: str, built: str, dtype: torch.dtype) -> None:
    model = GPT(cfg(pos=built)).to(dtype)
    model.cfg = cfg(pos=declared)
    assert ("model.pos" in failing(model, proof.prove_position)) == (declared != built)


def test_a_bias_that_is_not_passed_on_fires(monkeypatch: MonkeyPatch) -> None:
    """BigScience's first ALiBi run: the bias existed and the layers never saw it."""
    model = GPT(cfg(pos="alibi"))
    prepare = attention.make_attention
    monkeypatch.setattr(attention, "make_attention", lambda p, *args: prepare(position.Position(model.cfg), *args))
    assert "layer 0" in failing(model)["model.pos"] and "layer 1" in failing(model)["model.pos"]


def test_a_bias_that_misses_one_layer_fires() -> None:
    model = GPT(cfg(pos="alibi"))
    block = model.blocks[1].attn
    forward = block.forward
    block.forward = lambda x, attend, *rest: forward(
        x, attention.plain_attention(position.Position(model.cfg), 6, x, model.objective), *rest
    )
    assert failing(model)["model.pos"].startswith("layer 1")


@mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_slopes_of_the_wrong_heads_fire(dtype: torch.dtype) -> None:
    """BigScience's second fault: every tensor-parallel rank used the first heads' slopes."""
    model = GPT(cfg(pos="alibi")).to(dtype)
    model.position.slopes = model.position.slopes[torch.tensor([0, 1, 2, 0, 1, 2])]
    assert "heads [3, 4, 5]" in failing(model)["model.pos"]


def test_a_rotation_that_returns_its_input_fires(monkeypatch: MonkeyPatch) -> None:
    """Cramming's rotary option."""
    monkeypatch.setattr(rotation, "rotate", lambda x, cos, sin: x)
    assert "model.pos" in failing(GPT(cfg(pos="rotary")))


def test_a_rotation_of_the_wrong_base_fires() -> None:
    model = GPT(cfg(pos="rotary"))
    model.position.base = 500.0
    assert "model.pos" in failing(model)


def test_a_learned_table_that_is_not_added_fires() -> None:
    model = GPT(cfg(pos="learned"))
    model.position.embed = lambda x, at=None: x
    assert "model.pos" in failing(model)


def test_attention_that_sees_the_future_fires(monkeypatch: MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "where", lambda mask, a, b: a.expand(mask.shape))
    assert "sees what comes later" in failing(GPT(cfg(pos="none")))["model.pos"]


class Window(position.ALiBi):
    """ALiBi in which a query sees no key that is `size` tokens away or further: a scheme that somebody adds."""

    size = 16

    def bias(self, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return super().bias(h, q, k).masked_fill((q - k).abs() >= self.size, -torch.inf)


class Buckets(position.Position):
    """A trained bias for each head and distance, the same from 7 tokens on."""

    def __init__(self, cfg: ModelConfig):
        super().__init__(cfg)
        self.table = nn.Parameter(torch.empty(cfg.heads, 8))

    def bias(self, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return self.table[self.first_head + h, (q - k).abs().clamp(max=7)].float()


def replaced_rotary(monkeypatch: MonkeyPatch, scheme: type[position.Position], formula: Any) -> None:
    """Put a scheme in the place of rotary, whose name a configuration accepts. Its scores at the distances [T, T] are
    those of `formula(model, distances)`."""
    known = proofs.expected_scores

    def scores(model: GPT, pos: str, T: int) -> np.ndarray:
        distance = np.abs(np.arange(T)[:, None] - np.arange(T)[None, :])
        return formula(model, distance) if pos == "rotary" else known(model, pos, T)

    monkeypatch.setitem(position.POSITIONS, "rotary", scheme)
    monkeypatch.setattr(proofs, "expected_scores", scores)


@mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@mark.parametrize("size", [16, 64])
def test_a_window_is_measured_as_far_as_it_takes(
    monkeypatch: MonkeyPatch, size: int, dtype: torch.dtype, recwarn: WarningsRecorder
) -> None:
    """In the first 64 positions a window of 64 tokens is plain ALiBi."""

    def formula(model: GPT, distance: np.ndarray) -> np.ndarray:
        return np.where(distance < size, proofs.expected_scores(model, "alibi", len(distance)), -np.inf)

    replaced_rotary(monkeypatch, Window, formula)
    monkeypatch.setattr(Window, "size", size)
    model = GPT(cfg(pos="rotary", seq=256)).to(dtype)
    assert failing(model) == {}
    monkeypatch.setattr(Window, "size", size + 1)
    assert "scores are not those of rotary" in failing(model)["model.pos"]
    monkeypatch.setattr(Window, "bias", position.ALiBi.bias)
    assert "scores are not those of rotary" in failing(model)["model.pos"]
    assert not recwarn
    if size >= 64:
        assert "is that of alibi" in failing(GPT(cfg(pos="rotary", seq=64)))["model.pos"]


def test_a_bias_that_is_trained_has_a_proof(monkeypatch: MonkeyPatch) -> None:
    def formula(model: GPT, distance: np.ndarray) -> np.ndarray:
        sizes = np.where(np.arange(len(distance)) % 2, 0.5, 1.0)
        return model.position.table.double().numpy()[:, np.minimum(distance, 7)] + sizes

    replaced_rotary(monkeypatch, Buckets, formula)
    assert failing(GPT(cfg(pos="rotary"))) == {} == failing(GPT(cfg(pos="alibi")))
    monkeypatch.setattr(Buckets, "bias", position.Position.bias)
    assert "model.pos" in failing(GPT(cfg(pos="rotary")))


@mark.parametrize("objective", ["causal", "prefix"])
@mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_a_trace_of_the_next_token_in_the_embeddings_fires(
    monkeypatch: MonkeyPatch, objective: str, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(position.ALiBi, "embed", lambda self, x, at=None: x + 0.01 * x.roll(-1, 1))
    model = GPT(cfg(pos="alibi", objective=objective)).to(dtype)
    assert "with tokens that they must not see" in failing(model)["model.objective"]


@mark.parametrize("on", [True, False])
def test_an_embedding_norm_that_is_not_what_was_declared_fires(on: bool) -> None:
    model = GPT(cfg(embnorm=not on))
    model.cfg = cfg(embnorm=on)
    assert "model.embnorm" in failing(model)


def test_an_embedding_norm_after_positions_fires() -> None:
    model = GPT(cfg(embnorm=True))
    norm, model.embnorm = model.embnorm, torch.nn.Identity()
    embed = model.position.embed
    model.position.embed = lambda x, at=None: norm(embed(x))
    assert failing(model)


def test_a_norm_that_is_not_applied_fires(monkeypatch: MonkeyPatch) -> None:
    def forward(self: gpt.Block, x: torch.Tensor, attend: attention.Attend, only: None) -> torch.Tensor:
        x = x + self.drop(self.attn(self.norm1(x), attend, only))
        return x + self.drop(self.mlp(x))

    model = GPT(cfg())
    monkeypatch.setattr(gpt.Block, "forward", forward)
    assert "norm2 is applied 0 times" in failing(model)["model.norm"]


def test_a_norm_whose_output_is_thrown_away_fires(monkeypatch: MonkeyPatch) -> None:
    def forward(self: gpt.Block, x: torch.Tensor, attend: attention.Attend, only: None) -> torch.Tensor:
        self.norm1(x)
        x = x + self.attn(x, attend, only)
        return x + self.mlp(self.norm2(x))

    model = GPT(cfg())
    monkeypatch.setattr(gpt.Block, "forward", forward)
    assert "what attention reads" in failing(model)["model.block"]


@mark.parametrize("declared", gpt.BLOCKS)
@mark.parametrize("built", gpt.BLOCKS)
@mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_no_block_passes_for_another(declared: str, built: str, dtype: torch.dtype) -> None:
    model = GPT(cfg(block=built)).to(dtype)
    model.cfg = cfg(block=declared)
    assert ("model.block" in failing(model, proof.prove_block)) == (declared != built)


@mark.parametrize("switch", ["qkv_bias", "linear_bias"])
@mark.parametrize("on", [True, False])
def test_a_bias_that_is_not_what_was_declared_fires(switch: str, on: bool) -> None:
    model = GPT(cfg(**{switch: not on}))
    model.cfg = cfg(**{switch: on})
    assert "model.qkv_bias, model.linear_bias" in failing(model)


def test_a_bias_that_is_not_added_fires() -> None:
    model = GPT(cfg())
    linear = model.blocks[0].attn.qkv
    linear.forward = lambda x: F.linear(x, linear.weight)
    assert failing(model)["model.qkv_bias, model.linear_bias"] == "the bias of blocks.0.attn.qkv does nothing"


def test_sinusoids_that_are_not_scaled_fire(monkeypatch: MonkeyPatch) -> None:
    monkeypatch.setattr(position.ScaledSinusoidal, "embed", position.Sinusoidal.embed)
    assert "model.pos" in failing(GPT(cfg(pos="scaled-sinusoidal")))


@mark.parametrize("declared, built", [("layernorm", "rmsnorm"), ("rmsnorm", "layernorm")])
def test_another_norm_fires(declared: str, built: str) -> None:
    model = GPT(cfg(norm=built))
    model.cfg = cfg(norm=declared)
    assert "model.norm" in failing(model)


def test_the_wrong_activation_fires(monkeypatch: MonkeyPatch) -> None:
    """A GLU path that a fused GELU bypassed."""
    monkeypatch.setattr(mlp.GELU, "forward", lambda self, x: self.down(F.silu(self.up(x))))
    assert "model.act" in failing(GPT(cfg()))


def test_an_activation_without_a_formula_fires(monkeypatch: MonkeyPatch) -> None:
    monkeypatch.delitem(layers.UNGATED, "gelu")
    assert "UNGATED or GATED of model/proofs/layers.py" in failing(GPT(cfg()))["model.act"]


@mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_gelu_by_erf_fires(dtype: torch.dtype, monkeypatch: MonkeyPatch) -> None:
    monkeypatch.setattr(mlp.GELU, "forward", lambda self, x: self.down(F.gelu(self.up(x))))
    assert "model.act" in failing(GPT(cfg()).to(dtype))


@mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@mark.parametrize("pos", position.POSITIONS)
def test_scores_that_are_not_scaled_fire(pos: str, dtype: torch.dtype, monkeypatch: MonkeyPatch) -> None:
    sdpa, baddbmm = F.scaled_dot_product_attention, torch.baddbmm
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *a, **kw: sdpa(*a, **kw, scale=1.0))
    monkeypatch.setattr(torch, "baddbmm", lambda *a, alpha, **kw: baddbmm(*a, alpha=1.0, **kw))
    assert "model.pos" in failing(GPT(cfg(pos=pos)).to(dtype), proof.prove_position)


@mark.parametrize(
    "declared, built",
    [("gelu", "swiglu"), ("swiglu", "gelu"), ("swiglu", "swiglu-unmatched"), ("swiglu", "geglu"), ("geglu", "swiglu")],
)
def test_another_mlp_fires(declared: str, built: str) -> None:
    model = GPT(cfg(act=built))
    model.cfg = cfg(act=declared)
    assert "model.act" in failing(model)


@mark.parametrize("declared", [True, False])
def test_an_output_matrix_that_is_not_what_was_declared_fires(declared: bool) -> None:
    model = GPT(cfg(tied=not declared))
    model.cfg = cfg(tied=declared)
    assert "model.tied" in failing(model)


def test_an_untied_head_fires() -> None:
    model = GPT(cfg())
    head = torch.nn.Linear(SMALL.hidden, SMALL.padded_vocab, bias=False)
    model.project = lambda x: head(x)
    assert "model.tied" in failing(model)


@mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@mark.parametrize("block", gpt.BLOCKS)
@mark.parametrize("declared", [(0.0, 0.0), (0.1, 0.0), (0.0, 0.1), (0.1, 0.1)])
@mark.parametrize("built", [(0.0, 0.0), (0.1, 0.0), (0.0, 0.1), (0.1, 0.1), (0.3, 0.5)])
def test_no_dropout_passes_for_another(
    declared: tuple[float, float], built: tuple[float, float], block: str, dtype: torch.dtype
) -> None:
    model = GPT(cfg(hidden=96, layers=3, block=block, dropout=built[0], attn_dropout=built[1])).to(dtype)
    forward = model.hidden_states
    real = model.cfg
    told = cfg(hidden=96, layers=3, block=block, dropout=declared[0], attn_dropout=declared[1])

    def hidden(tokens: torch.Tensor, **more: object) -> torch.Tensor:
        model.cfg = real  # the model does what it was built to do, whatever the proof believes
        try:
            return forward(tokens, **more)
        finally:
            model.cfg = told

    model.hidden_states, model.cfg = hidden, told
    assert ("model.dropout, model.attn_dropout" in failing(model, proof.prove_dropout)) == (declared != built)


def test_the_audit_of_parameter_groups() -> None:
    model = GPT(cfg(embnorm=True))
    matrices = [p for p in model.parameters() if p.dim() == 2]
    vectors = [p for p in model.parameters() if p.dim() == 1]

    def audit(decayed: list, plain: list, decay_embnorm: bool = False) -> str:
        groups = [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
        rows, verdict = proof.prove_weight_decay(model, groups, decay_embnorm)
        assert [r["name"] for r in rows] == [n for n, _ in model.named_parameters()]
        return "" if verdict.passed else verdict.detail

    assert audit(matrices, vectors) == ""
    gain = model.embnorm.weight  # BigScience's embedding-norm run decayed exactly this one
    rest = [p for p in vectors if p is not gain]
    assert audit([*matrices, gain], rest) == "embnorm.weight is decayed"
    assert audit([*matrices, gain], rest, decay_embnorm=True) == ""
    assert audit(matrices, vectors, decay_embnorm=True) == "embnorm.weight is not decayed"
    assert audit(matrices, rest) == "embnorm.weight is optimized 0 times"
    assert "embed.weight is not decayed" in audit(matrices[1:], [*vectors, matrices[0]])
    assert "optimized 2 times" in audit([*matrices, matrices[0]], vectors)
    assert "not the model's" in audit([*matrices, torch.nn.Parameter(torch.zeros(2, 2))], vectors)


def test_require_names_what_failed() -> None:
    with raises(proof.InactiveFactor, match="model.pos=alibi: layer 3"):
        proof.raise_if_failed([proof.Proof("model.pos", "alibi", False, "layer 3: nothing")])


# ------------------------------------------------------------------------------------------------ the compiled graph


def compiled(**change: object) -> proof.Proof:
    from ablations.config import resolve
    from launch import deepspeed_setup, engine, run_model

    torch._dynamo.reset()  # it gives up on a function that is compiled anew too often
    small = {
        "model.layers": 1,
        "model.hidden": 64,
        "model.heads": 2,
        "model.seq": 32,
        "model.vocab": 120,
        "train.batch": 4,
        "layout.micro_batch": 4,
        "layout.compile": "always",
        "train.precision": "bf16",
    }
    run = resolve((small | change).items())
    deepspeed_setup.initialise_process(run)
    model = run_model.build_model(run)
    before = [p.clone() for p in model.bfloat16().parameters()]
    live = engine.build_engine(model, run, 1)
    assert all(torch.equal(p, q) for p, q in zip(live.model.parameters(), before, strict=True))
    assert all(p.grad is None for p in live.model.parameters()) and live.model.training
    (found,) = live.proofs
    assert found.factor == "layout.compile"
    return found


def test_the_compiled_graph_is_the_model() -> None:
    """With a prefix, a bias and dropout. Those of tests/test_bench.py, which compares their steps, are proved there."""
    dropped = {"model.dropout": 0.1, "model.attn_dropout": 0.1}
    found = compiled(**{"model.objective": "prefix", "model.pos": "alibi"}, **dropped)
    assert found.passed, found.detail


@fixture
def no_code_generated(monkeypatch: MonkeyPatch) -> None:
    """Graphs are traced and differentiated as ever, and run operation by operation: C++ takes half a minute to compile,
    and what is lost in these tests is lost while a graph is traced."""
    compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda *args, **options: compile(*args, **options, backend="aot_eager"))


@mark.parametrize("scheme", [position.ALiBi, position.Rotary, position.Learned])
def test_positions_that_the_graph_loses_fire(
    monkeypatch: MonkeyPatch, no_code_generated: None, scheme: type[position.Position]
) -> None:
    """All that is measured layer by layer is there, and nothing of it is trained."""
    for part in ("embed", "rotate", "bias"):
        own, other = getattr(scheme, part), getattr(position.Position, part)
        monkeypatch.setattr(
            scheme, part, lambda *a, own=own, other=other: other(*a) if torch.compiler.is_compiling() else own(*a)
        )
    name = next(key for key, each in position.POSITIONS.items() if each is scheme)
    found = compiled(**{"model.pos": name})
    assert not found.passed and ".weight by " in found.detail


def test_another_activation_in_the_graph_fires(monkeypatch: MonkeyPatch, no_code_generated: None) -> None:
    monkeypatch.setattr(gelu, "_sigmoid_gelu", F.relu)
    assert not compiled().passed


@mark.parametrize(
    "pos, attn_dropout, executor",
    [
        ("learned", 0.0, "maskless_attention"),
        ("alibi", 0.0, "flexattention"),
        ("learned", 0.1, "plain_attention"),
        ("alibi", 0.1, "plain_attention"),
    ],
)
def test_what_is_proved_on_a_gpu_is_the_executor_that_trains(
    monkeypatch: MonkeyPatch, pos: str, attn_dropout: float, executor: str
) -> None:
    """The fast kernels cannot drop probabilities: a model that does must not be proved, or judged, with them."""
    prepare, given = attention.make_attention, []
    monkeypatch.setattr(attention, "make_attention", lambda *args: (given.append(args), prepare(*args))[1])
    model = GPT(cfg(pos=pos, attn_dropout=attn_dropout)).bfloat16()
    for mode in (model.train(), model.eval()):
        mode(torch.zeros(1, 8, dtype=torch.long))
    for kind in ("maskless_attention", "flexattention", "masked_attention", "plain_attention"):
        monkeypatch.setattr(attention, kind, lambda *args, kind=kind: kind)
    on_gpu = SimpleNamespace(is_cuda=True, dtype=torch.bfloat16)  # as far as the choice goes
    assert [prepare(p, heads, on_gpu, *rest) for p, heads, _, *rest in given] == [executor] * 2
