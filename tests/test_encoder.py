"""The encoder against Hugging Face's BERT, weight for weight, and the parts of the model that only encoders have."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import BertConfig, BertForMaskedLM

from ablations.config import resolve
from model import count, proof
from model.config import ModelConfig
from model.gpt import GPT
from model.kernels.gelu import formula as gelu
from model.objective import SpecialTokens
from tests.small_models import SMALL, name, scrambled, tokens
from tests.test_model import State, both, filled

BERT = replace(
    SMALL, objective="mlm", mask_rate=0.25, block="post-ln", sumnorm=True, head_transform="bert", output_bias=True
)
AXES = [
    BERT,
    replace(SMALL, sumnorm=True),
    replace(SMALL, sumnorm=True, pos="scaled-sinusoidal", norm="rmsnorm"),
    replace(SMALL, final_norm=False),
    replace(SMALL, final_norm=False, block="parallel", pos="rotary"),
    replace(SMALL, head_transform="linear"),
    replace(SMALL, head_transform="bert", norm="rmsnorm", linear_bias=False),
    replace(SMALL, output_bias=True, tied=False),
    replace(SMALL, ffn_width=40),
    replace(SMALL, ffn_width=72, act="geglu", sumnorm=True, embnorm=True),
]


def bert(ours: GPT) -> tuple[Any, State]:
    """The empty reference of the same shape, and our weights under its names. It has two kinds of tokens, ours one: the
    vectors that tell them apart are zero."""
    cfg = ours.cfg
    theirs = BertForMaskedLM(
        BertConfig(
            vocab_size=cfg.padded_vocab,
            hidden_size=cfg.hidden,
            num_hidden_layers=cfg.layers,
            num_attention_heads=cfg.heads,
            intermediate_size=cfg.mlp_width,
            hidden_act="gelu_new",
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            max_position_embeddings=cfg.seq,
            pad_token_id=None,  # or the gradient of token 0 is left out
            layer_norm_eps=cfg.norm_eps,
        )
    )
    state = {
        "bert.embeddings.word_embeddings.weight": ours.embed.weight,
        "bert.embeddings.position_embeddings.weight": ours.position.table,
        "bert.embeddings.token_type_embeddings.weight": torch.zeros(2, cfg.hidden),
        "cls.predictions.bias": ours.output.bias,
        "cls.predictions.decoder.bias": ours.output.bias,
        "cls.predictions.decoder.weight": ours.embed.weight,
    }
    state |= both("bert.embeddings.LayerNorm", ours.sumnorm)
    state |= both("cls.predictions.transform.dense", ours.transform.dense)
    state |= both("cls.predictions.transform.LayerNorm", ours.transform.norm)
    for i, block in enumerate(ours.blocks):
        at, qkv = f"bert.encoder.layer.{i}", block.attn.qkv
        for part, weight, bias in zip(("query", "key", "value"), qkv.weight.chunk(3), qkv.bias.chunk(3), strict=True):
            state |= {f"{at}.attention.self.{part}.weight": weight, f"{at}.attention.self.{part}.bias": bias}
        pairs = {
            "attention.output.dense": block.attn.proj,
            "attention.output.LayerNorm": block.norm1,
            "intermediate.dense": block.mlp.up,
            "output.dense": block.mlp.down,
            "output.LayerNorm": block.norm2,
        }
        for their, our in pairs.items():
            state |= both(f"{at}.{their}", our)
    return theirs, state


@pytest.mark.parametrize("shape", [(2, 6, 8), (1, 1, 16), (3, 3, 10)], ids=str)  # layers, heads, head dimension
def test_logits_loss_and_gradients_equal_hugging_face_bert(shape: tuple[int, int, int]) -> None:
    layers, heads, head_dim = shape
    ours = scrambled(GPT(replace(BERT, layers=layers, heads=heads, hidden=heads * head_dim)))
    theirs = filled(*bert(ours))
    batch = ours.objective.batch(tokens(BERT, 30), 1, range(3), SpecialTokens(119))
    assert batch.predicted is not None
    labels = torch.full_like(batch.targets_BT, -100)
    labels.scatter_(1, batch.predicted, batch.targets_BT.gather(1, batch.predicted))
    reference = theirs(batch.inputs_BT, labels=labels)
    with torch.no_grad():
        assert (ours(batch.inputs_BT) - reference.logits).abs().max() < 2e-5 * max(1.0, reference.logits.abs().max())
    loss = ours.loss(batch)
    assert float(loss.detach()) == pytest.approx(float(reference.loss.detach()), rel=1e-6)
    loss.backward()
    reference.loss.backward()
    expected = {n: p.grad for n, p in theirs.named_parameters()}
    for p in ours.parameters():  # our gradients, as if they were weights, under the reference's names
        p.data = p.grad
    compared = 0
    for their, gradient in bert(ours)[1].items():
        if their in expected and "token_type" not in their:
            close = torch.allclose(gradient, expected[their], rtol=1e-3, atol=1e-5)
            assert close, f"{their}: {(gradient - expected[their]).abs().max()}"
            compared += 1
    assert compared >= 8 + 16 * layers


# ------------------------------------------------------------------------------------------------ parts


@pytest.mark.parametrize("cfg", AXES, ids=name)
def test_the_count_and_the_work_are_those_of_the_model(cfg: ModelConfig) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    model = GPT(cfg)
    assert sum(p.numel() for p in model.parameters()) == count.count_parameters(cfg)
    if cfg.output_bias:  # which is one column more in the output's products
        return
    batch = model.objective.batch(tokens(cfg, cfg.seq + 1, B=1), tokens=SpecialTokens(0))
    with FlopCounterMode(display=False) as counter:
        model.bfloat16().loss(batch).backward()
    assert counter.get_total_flops() == count.flops_per_token(cfg) * cfg.seq


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("cfg", AXES, ids=name)
def test_each_proves_itself(cfg: ModelConfig, dtype: torch.dtype) -> None:
    assert [(p.factor, p.detail) for p in proof.prove_factors(GPT(cfg).to(dtype)) if not p.passed] == []


@pytest.mark.parametrize(
    ("cfg", "other", "factor"),
    [
        (replace(SMALL, sumnorm=True), {"sumnorm": False}, "model.norm"),
        (SMALL, {"sumnorm": True}, "model.norm"),
        (SMALL, {"final_norm": False}, "model.norm"),
        (replace(SMALL, final_norm=False), {"final_norm": True}, "model.norm"),
        (SMALL, {"head_transform": "bert"}, "model.head_transform, model.output_bias"),
        (replace(SMALL, head_transform="bert"), {"head_transform": "none"}, "model.head_transform, model.output_bias"),
        (
            replace(SMALL, head_transform="bert"),
            {"head_transform": "linear"},
            "model.head_transform, model.output_bias",
        ),
        (SMALL, {"output_bias": True}, "model.head_transform, model.output_bias"),
        (replace(SMALL, output_bias=True), {"output_bias": False}, "model.head_transform, model.output_bias"),
        (SMALL, {"ffn_width": 64}, "model.act"),
        (replace(SMALL, ffn_width=64), {"ffn_width": 0}, "model.act"),
    ],
    ids=str,
)
def test_none_passes_for_another(cfg: ModelConfig, other: dict[str, Any], factor: str) -> None:
    model = GPT(cfg)
    model.cfg = replace(cfg, **other)
    assert factor in {p.factor for p in proof.prove_factors(model) if not p.passed}


def test_a_bias_of_the_logits_that_is_not_added_fires(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GPT, "_logit_factors", lambda self, x: (self.transform(x), self.output_weight))
    failed = {p.factor: p.detail for p in proof.prove_factors(GPT(replace(SMALL, output_bias=True))) if not p.passed}
    assert failed == {
        "model.head_transform, model.output_bias": "the bias of the logits does nothing, or something else"
    }


def test_the_head_written_out() -> None:
    """Logits = norm(gelu(x A' + a)) W' + b, and the norm of the sum is what the first layer reads."""
    model = scrambled(GPT(BERT))
    x = model.embed.weight[tokens(BERT, 20)] + model.position.table[:20]
    entering: list[torch.Tensor] = []
    model.blocks[0].register_forward_pre_hook(lambda m, args: entering.append(args[0]))
    hidden = model.hidden_states(tokens(BERT, 20))
    normed = F.layer_norm(x, (48,), model.sumnorm.weight, model.sumnorm.bias, BERT.norm_eps)
    assert (entering[0] - normed).abs().max() < 1e-5
    dense, norm = model.transform.dense, model.transform.norm
    y = F.layer_norm(gelu(hidden @ dense.weight.T + dense.bias), (48,), norm.weight, norm.bias, BERT.norm_eps)
    assert (model.project(hidden) - (y @ model.embed.weight.T + model.output.bias)).abs().max() < 1e-4


def test_crammed_v2_has_the_published_number_of_parameters() -> None:
    run = resolve([("size", "crammed-v2")])
    published = 119.6e6  # 25.2 million of the embedding, 94.4 of the blocks
    assert (
        count.count_parameters(run.model) == 119_589_889 and abs(count.count_parameters(run.model) - published) < 0.05e6
    )
    assert 32768 * 768 == 25_165_824 and count.count_parameters(run.model) - 25_165_824 - 94_371_840 == 52_224 + 1
