"""What tests/mutations showed to be guarded by nothing else."""

import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ablations.config import resolve
from model.config import ModelConfig
from model.gpt import BLOCKS, GPT
from model.mlp import MLPS
from model.norm import NORMS
from model.position import POSITIONS, Position
from tests.small_models import SMALL as SHAPE
from tests.small_models import next_tokens, scrambled, tokens
from tests.test_fp8 import NEEDS_FP8
from tests.test_model import BARE, filled, llama, neox

X = tokens(SHAPE, 29)
SMALL = {
    "model.layers": 2,
    "model.hidden": 48,
    "model.heads": 6,
    "model.seq": 32,
    "model.vocab": 120,
    "train.precision": "fp32",
    "train.batch": 4,
    "layout.micro_batch": 4,
}


def built(**change: object) -> Any:
    from launch import deepspeed_setup, engine, run_model

    run = resolve((SMALL | change).items())
    deepspeed_setup.initialise_process(run)
    return engine.build_engine(run_model.build_model(run), run, 1)


@pytest.mark.parametrize("norm", ["layernorm", "rmsnorm"])
def test_no_gain_and_no_bias_is_decayed_wherever_it_is(norm: str) -> None:
    live = built(**{"model.norm": norm, "model.embnorm": True, "model.act": "swiglu"})
    decay = {id(p): g["weight_decay"] for g in live.parameter_groups for p in g["params"]}
    named = dict(live.model.named_parameters())
    assert decay.keys() == {id(p) for p in named.values()}
    assert {n for n in named if decay[id(named[n])] == 0} == {n for n in named if n.endswith(".bias") or "norm" in n}
    assert {decay[id(p)] for p in named.values()} == {0.0, 0.1}


@pytest.mark.parametrize("norm", ["layernorm", "rmsnorm"])
def test_the_eps_of_every_norm_is_read(norm: str) -> None:
    from launch.effective import settings_in_effect

    live = built(**{"model.norm": norm, "model.embnorm": True})
    assert settings_in_effect(live)["model.norm_eps"] == live.model.cfg.norm_eps
    for name, module in live.model.named_modules():
        if hasattr(module, "eps"):  # not of a norm that is the identity
            module.eps, right = 1e-3, module.eps
            assert "not the same in all norms" in settings_in_effect(live)["model.norm_eps"], name
            module.eps = right


VARIANTS = {"pos": POSITIONS, "act": MLPS, "norm": NORMS, "block": BLOCKS}


@pytest.mark.parametrize("key, value", [(key, value) for key, table in VARIANTS.items() for value in table])
def test_every_variant_takes_a_step(key: str, value: str) -> None:
    """Through DeepSpeed, which has demands of its own, as on the number of parameters."""
    loss, norm = built(**{f"model.{key}": value}).step(next_tokens(X.repeat(2, 1)[:4]), 1e-3)[:2]
    assert math.isfinite(loss) and norm > 0


class TrainedBias(Position):
    """A trained number for each head and distance: a scheme that somebody adds."""

    def __init__(self, cfg: ModelConfig):
        super().__init__(cfg)
        self.table = nn.Parameter(torch.empty(cfg.heads, cfg.seq))

    def bias(self, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return self.table.float()[self.first_head + h, (q - k).abs().clamp(max=self.table.shape[1] - 1)]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_bias_of_attention_is_trained(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(POSITIONS, "alibi", TrainedBias)
    live = built(**{"model.pos": "alibi", "train.precision": precision})
    before = live.model.position.table.detach().clone()
    live.step(next_tokens(X.repeat(2, 1)[:4]), 1e-2)
    assert (live.model.position.table != before)[:, : X.shape[1] - 1].all()


def test_a_parameter_that_acts_on_nothing_is_an_error_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(POSITIONS, "alibi", TrainedBias)
    monkeypatch.setattr(TrainedBias, "bias", Position.bias)
    live = built(**{"model.pos": "alibi", "train.precision": "bf16"})
    with pytest.raises(ValueError, match=r"no gradient reached parameters of shapes \[\(6, 32\)\]"):
        live.step(next_tokens(X.repeat(2, 1)[:4]), 1e-2)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16", pytest.param("fp8", marks=NEEDS_FP8)])
def test_a_resumed_engine_goes_on_as_if_it_had_not_stopped(tmp_path: Path, precision: str) -> None:
    """Bit for bit, Adam's step counter and moments included, and the loss scale, which is still being found here."""
    from launch.checkpoint import Checkpoints

    rows = torch.randint(120, (6, 4, 33), generator=torch.Generator().manual_seed(0))
    change = {"train.precision": precision, "train.loss_scale_power": 20, "train.loss_scale_window": 2}
    calm, checkpoints = built(**change), Checkpoints(tmp_path, keep=2)
    for step in range(3):
        calm.step(next_tokens(rows[step]), 1e-3)
    calm.save(checkpoints, 3, {"step": 3})
    checkpoints.wait()
    expected = [(*calm.step(next_tokens(rows[step]), 1e-3), calm.loss_scale_metrics) for step in range(3, 6)]
    resumed = built(**change)
    assert (resumed.load(checkpoints) or {})["step"] == 3
    assert [
        (*resumed.step(next_tokens(rows[step]), 1e-3), resumed.loss_scale_metrics) for step in range(3, 6)
    ] == expected
    for (name, p), q in zip(calm.model.named_parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(p, q), name


# ------------------------------------------------------------------------------------------------ other references


def test_geglu_equals_hugging_face_llama_with_that_activation() -> None:
    ours = scrambled(GPT(replace(SHAPE, pos="rotary", **(BARE | {"act": "geglu"}))))
    theirs, state = llama(ours)
    theirs = filled(theirs, state)
    for layer in theirs.model.layers:
        layer.mlp.act_fn = torch.nn.GELU("tanh")
    assert (ours(X) - theirs(X).logits).abs().max() < 2e-5


def test_parallel_blocks_equal_hugging_face_gpt_neox_with_one_norm_for_both() -> None:
    ours = scrambled(GPT(replace(SHAPE, pos="rotary", block="parallel")))
    for block in ours.blocks:
        block.norm2 = block.norm1  # NeoX has two
    theirs, state = neox(ours)
    for layer in theirs.gpt_neox.layers:
        layer.use_parallel_residual = True
    assert (ours(X) - filled(theirs, state)(X).logits).abs().max() < 2e-5


def test_post_ln_equals_torch() -> None:
    ours = scrambled(GPT(replace(SHAPE, pos="none", block="post-ln")))
    x = ours.embed(X)
    mask = torch.nn.Transformer.generate_square_subsequent_mask(X.shape[1])
    for block in ours.blocks:
        layer = torch.nn.TransformerEncoderLayer(
            SHAPE.hidden, SHAPE.heads, SHAPE.mlp_width, 0.0, torch.nn.GELU("tanh"), SHAPE.norm_eps, batch_first=True
        )
        state = {"self_attn.in_proj_weight": block.attn.qkv.weight, "self_attn.in_proj_bias": block.attn.qkv.bias}
        names = {
            "self_attn.out_proj": block.attn.proj,
            "linear1": block.mlp.up,
            "linear2": block.mlp.down,
            "norm1": block.norm1,
            "norm2": block.norm2,
        }
        for their, our in names.items():
            state |= {f"{their}.weight": our.weight, f"{their}.bias": our.bias}
        layer.load_state_dict(state)
        x = layer(x, mask)
    assert (ours(X) - x @ ours.embed.weight.T).abs().max() < 2e-5


def test_what_enters_the_first_layer_written_out() -> None:
    """Token by token: the embedding, its norm, and then the row of its position."""
    D = SHAPE.hidden
    wave = [
        [math.sin(t / 10000 ** (d / D)) if d % 2 == 0 else math.cos(t / 10000 ** ((d - 1) / D)) for d in range(D)]
        for t in range(X.shape[1])
    ]
    for pos, embnorm in itertools.product(("learned", "sinusoidal", "scaled-sinusoidal", "none"), (True, False)):
        ours = scrambled(GPT(replace(SHAPE, pos=pos, embnorm=embnorm)))
        x = ours.embed.weight[X]
        if embnorm:
            mean, var = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, unbiased=False)
            x = (x - mean) / (var + SHAPE.norm_eps).sqrt() * ours.embnorm.weight + ours.embnorm.bias
        if pos == "learned":
            x = x + ours.position.table[: X.shape[1]]
        elif pos != "none":
            x = x + torch.tensor(wave) * (ours.position.scale if pos == "scaled-sinusoidal" else 1.0)
        seen: list[torch.Tensor] = []
        ours.blocks[0].register_forward_pre_hook(lambda m, args, seen=seen: seen.append(args[0]))
        ours(X)
        assert (seen[0] - x).abs().max() < 1e-5, (pos, embnorm)
