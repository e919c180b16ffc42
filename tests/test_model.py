"""The model against independent implementations and closed forms, over the table of variants."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

from model import attention, count
from model.config import ModelConfig
from model.gpt import BLOCKS, GPT, prepare_to_compile
from model.mlp import MLPS
from model.objective import OBJECTIVES, Objective, Prefix, SpecialTokens
from model.position import POSITIONS, alibi_slopes
from tests.small_models import SMALL, VARIANTS, name, scrambled, tokens

# ------------------------------------------------------------------------------------------------ references
#
# Each takes a model of ours and returns the empty reference of the same shape, and our weights under its names.

State = dict[str, torch.Tensor]


def interleaved(x: torch.Tensor, cfg: ModelConfig) -> torch.Tensor:
    """Rows of q, k, v as BLOOM and NeoX keep them: head by head."""
    return x.unflatten(0, (3, cfg.heads, cfg.head_dim)).transpose(0, 1).flatten(0, 2)


def both(their: str, our: Any) -> State:
    return {f"{their}.weight": our.weight, f"{their}.bias": our.bias}


def gpt2(ours: GPT) -> tuple[Any, State]:
    cfg = ours.cfg
    theirs = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=cfg.padded_vocab,
            n_positions=cfg.seq,
            n_embd=cfg.hidden,
            n_layer=cfg.layers,
            n_head=cfg.heads,
            activation_function="gelu_new",
            resid_pdrop=0,
            embd_pdrop=0,
            attn_pdrop=0,
            layer_norm_epsilon=cfg.norm_eps,
            bos_token_id=None,
            eos_token_id=None,
        )
    )
    state = {"transformer.wte.weight": ours.embed.weight, "transformer.wpe.weight": ours.position.table}
    for i, block in enumerate(ours.blocks):
        at = f"transformer.h.{i}"
        state |= both(f"{at}.ln_1", block.norm1) | both(f"{at}.ln_2", block.norm2)
        linears = {
            "attn.c_attn": block.attn.qkv,
            "attn.c_proj": block.attn.proj,
            "mlp.c_fc": block.mlp.up,
            "mlp.c_proj": block.mlp.down,
        }
        for their, linear in linears.items():  # GPT-2 keeps its matrices transposed
            state |= {f"{at}.{their}.weight": linear.weight.T, f"{at}.{their}.bias": linear.bias}
    return theirs, state | both("transformer.ln_f", ours.norm)


def bloom(ours: GPT) -> tuple[Any, State]:
    cfg = ours.cfg
    theirs = BloomForCausalLM(
        BloomConfig(
            vocab_size=cfg.padded_vocab,
            hidden_size=cfg.hidden,
            n_layer=cfg.layers,
            n_head=cfg.heads,
            layer_norm_epsilon=cfg.norm_eps,
            hidden_dropout=0.0,
            attention_dropout=0.0,
        )
    )
    state = {"transformer.word_embeddings.weight": ours.embed.weight} | both("transformer.ln_f", ours.norm)
    state |= both("transformer.word_embeddings_layernorm", ours.embnorm)
    for i, block in enumerate(ours.blocks):
        at, qkv = f"transformer.h.{i}", block.attn.qkv
        state |= {
            f"{at}.self_attention.query_key_value.weight": interleaved(qkv.weight, cfg),
            f"{at}.self_attention.query_key_value.bias": interleaved(qkv.bias, cfg),
        }
        pairs = {
            "input_layernorm": block.norm1,
            "post_attention_layernorm": block.norm2,
            "self_attention.dense": block.attn.proj,
            "mlp.dense_h_to_4h": block.mlp.up,
            "mlp.dense_4h_to_h": block.mlp.down,
        }
        for their, our in pairs.items():
            state |= both(f"{at}.{their}", our)
    return theirs, state


def neox(ours: GPT) -> tuple[Any, State]:
    cfg = ours.cfg
    theirs = GPTNeoXForCausalLM(
        GPTNeoXConfig(
            vocab_size=cfg.padded_vocab,
            hidden_size=cfg.hidden,
            num_hidden_layers=cfg.layers,
            num_attention_heads=cfg.heads,
            intermediate_size=cfg.mlp_width,
            hidden_act="gelu_new",
            rotary_pct=1.0,
            use_parallel_residual=False,
            layer_norm_eps=cfg.norm_eps,
            tie_word_embeddings=True,
            max_position_embeddings=cfg.seq,
            rope_parameters={"rope_type": "default", "rope_theta": cfg.rotary_base, "partial_rotary_factor": 1.0},
        )
    )
    state = {"gpt_neox.embed_in.weight": ours.embed.weight} | both("gpt_neox.final_layer_norm", ours.norm)
    for i, block in enumerate(ours.blocks):
        at, qkv = f"gpt_neox.layers.{i}", block.attn.qkv
        state |= {
            f"{at}.attention.query_key_value.weight": interleaved(qkv.weight, cfg),
            f"{at}.attention.query_key_value.bias": interleaved(qkv.bias, cfg),
        }
        pairs = {
            "input_layernorm": block.norm1,
            "post_attention_layernorm": block.norm2,
            "attention.dense": block.attn.proj,
            "mlp.dense_h_to_4h": block.mlp.up,
            "mlp.dense_4h_to_h": block.mlp.down,
        }
        for their, our in pairs.items():
            state |= both(f"{at}.{their}", our)
    return theirs, state


def llama(ours: GPT) -> tuple[Any, State]:
    cfg = ours.cfg
    theirs = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=cfg.padded_vocab,
            hidden_size=cfg.hidden,
            num_hidden_layers=cfg.layers,
            num_attention_heads=cfg.heads,
            intermediate_size=cfg.mlp_width,
            rms_norm_eps=cfg.norm_eps,
            tie_word_embeddings=cfg.tied,
            max_position_embeddings=cfg.seq,
            rope_parameters={"rope_type": "default", "rope_theta": cfg.rotary_base},
        )
    )
    state = {"model.embed_tokens.weight": ours.embed.weight, "model.norm.weight": ours.norm.weight}
    state |= {} if ours.head is None else {"lm_head.weight": ours.head.weight}
    for i, block in enumerate(ours.blocks):
        at = f"model.layers.{i}"
        q, k, v = block.attn.qkv.weight.chunk(3)
        state |= {
            f"{at}.self_attn.q_proj.weight": q,
            f"{at}.self_attn.k_proj.weight": k,
            f"{at}.self_attn.v_proj.weight": v,
            f"{at}.self_attn.o_proj.weight": block.attn.proj.weight,
            f"{at}.input_layernorm.weight": block.norm1.weight,
            f"{at}.post_attention_layernorm.weight": block.norm2.weight,
            f"{at}.mlp.gate_proj.weight": block.mlp.gate.weight,
            f"{at}.mlp.up_proj.weight": block.mlp.up.weight,
            f"{at}.mlp.down_proj.weight": block.mlp.down.weight,
        }
    return theirs, state


BARE = {"act": "swiglu", "norm": "rmsnorm", "qkv_bias": False, "linear_bias": False}
REFERENCES: dict[str, tuple[Callable[[GPT], tuple[Any, State]], ModelConfig]] = {
    "GPT-2": (gpt2, SMALL),
    "BLOOM": (bloom, replace(SMALL, pos="alibi", embnorm=True)),
    "GPT-NeoX": (neox, replace(SMALL, pos="rotary")),
    "Llama": (llama, replace(SMALL, pos="rotary", **BARE)),
    "Llama, untied": (llama, replace(SMALL, pos="rotary", tied=False, **BARE)),
}
SHAPES = [(2, 6, 8), (1, 1, 16), (3, 3, 10), (2, 5, 6), (1, 7, 4), (2, 12, 2)]  # layers, heads, head dimension


def filled(theirs: Any, state: State) -> Any:
    report = theirs.load_state_dict({k: v.detach().clone() for k, v in state.items()}, strict=False)
    assert not report.unexpected_keys and set(report.missing_keys) <= {"lm_head.weight"}, report
    theirs.tie_weights()
    return theirs.eval()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("reference", REFERENCES)
def test_logits_and_all_gradients_equal_hugging_face(reference: str, shape: tuple[int, int, int]) -> None:
    convert, cfg = REFERENCES[reference]
    layers, heads, head_dim = shape
    cfg = replace(cfg, layers=layers, heads=heads, hidden=heads * head_dim, rotary_base=500.0)
    ours = scrambled(GPT(cfg))
    theirs = filled(*convert(ours))
    x = tokens(cfg, 29)
    with torch.no_grad():
        logits = theirs(x).logits
        assert (ours(x) - logits).abs().max() < 2e-5 * max(1.0, logits.abs().max())
    ours.loss(ours.objective.batch(x)).backward()
    theirs(x, labels=x).loss.backward()
    for p in ours.parameters():  # our gradients, as if they were weights, under the reference's names
        p.data = p.grad
    expected = dict(theirs.named_parameters())
    for name_, gradient in convert(ours)[1].items():
        close = torch.allclose(gradient, expected[name_].grad, rtol=1e-3, atol=1e-5)
        assert close, f"{name_}: {(gradient - expected[name_].grad).abs().max()}"


@pytest.mark.parametrize("reference", REFERENCES)
def test_in_bf16_the_error_is_no_larger_than_hugging_face_s(reference: str) -> None:
    """Both against the same model in fp32: root mean square errors of logits and of the embedding's gradient."""
    convert, cfg = REFERENCES[reference]
    cfg = replace(cfg, layers=3, hidden=96)
    ours = scrambled(GPT(cfg))
    theirs = filled(*convert(ours))
    x = tokens(cfg, 32, B=8)

    def measure(model: Any, logits: Callable[[Any], torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        model.zero_grad()
        y = logits(model)
        torch.nn.functional.cross_entropy(y[:, :-1].flatten(0, 1).float(), x[:, 1:].flatten()).backward()
        weight = model.embed.weight if isinstance(model, GPT) else model.get_input_embeddings().weight
        return y.detach().float(), weight.grad.clone().float()

    exact = measure(ours, lambda m: m(x))
    our = measure(ours.bfloat16(), lambda m: m(x))
    their = measure(theirs.bfloat16(), lambda m: m(x).logits)
    for ideal, a, b in zip(exact, our, their, strict=True):
        assert (a - ideal).square().mean().sqrt() <= 1.3 * (b - ideal).square().mean().sqrt()


# ------------------------------------------------------------------------------------------------ every variant


@pytest.mark.parametrize("cfg", VARIANTS, ids=name)
def test_the_future_is_unseen_and_padding_rows_exist(cfg: ModelConfig) -> None:
    model = scrambled(GPT(cfg))
    x = tokens(cfg, 20)
    y = x.clone()
    y[:, 11:] = (y[:, 11:] + 1) % cfg.vocab
    with torch.no_grad():
        assert torch.allclose(model(x)[:, :11], model(y)[:, :11], atol=1e-5)
        assert (model(x)[:, 11:] - model(y)[:, 11:]).abs().max() > 1e-3
        assert model(x).shape == (3, 20, 128)


@pytest.mark.parametrize("cfg", [c for c in VARIANTS if c.norm == "layernorm" and not c.embnorm], ids=name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_evaluation_computes_what_training_does_and_only_what_is_asked(cfg: ModelConfig, dtype: torch.dtype) -> None:
    """In inference mode the up-projection has GELU in it, and the last block ends early for what nobody asks."""
    model, x = scrambled(GPT(cfg, seed=2)).eval(), tokens(cfg, 20)
    exact = model.double().hidden_states(x).detach().flatten(0, 1)
    model.to(dtype)
    trained = model.hidden_states(x).detach().flatten(0, 1)
    only = torch.tensor([3, 4, 19, 20, 41])
    with torch.inference_mode():
        found = model.hidden_states(x, rows_N=only)
        torch.testing.assert_close(found, model.hidden_states(x).flatten(0, 1)[only])
    assert found.shape == (5, cfg.hidden)
    assert relative(found, exact[only]) < 1.1 * relative(trained[only], exact[only]) + 1e-6


@pytest.mark.parametrize("pos", POSITIONS)
def test_scored_in_blocks_of_queries_text_has_the_same_logits(pos: str, monkeypatch: pytest.MonkeyPatch) -> None:
    gpt = GPT(replace(SMALL, pos=pos, init_std=0.2), seed=1)
    rows = tokens(gpt.cfg, 30)
    with torch.no_grad():
        at_once = gpt(rows)
    monkeypatch.setattr(attention, "QUERIES_AT_ONCE_IN_SCORING", 8)  # the last block has 6
    with torch.inference_mode():
        torch.testing.assert_close(gpt(rows), at_once, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("cfg", VARIANTS, ids=name)
def test_the_count_is_that_of_the_model(cfg: ModelConfig) -> None:
    with torch.device("meta"):
        model = GPT(cfg)
    assert sum(p.numel() for p in model.parameters()) == count.count_parameters(cfg)


@pytest.mark.parametrize(
    "cfg",
    [v for v in VARIANTS if not v.embnorm and v.norm == "layernorm"]
    + [replace(SMALL, objective="mlm", mask_rate=0.25)],
    ids=name,
)
def test_flops_are_those_that_torch_counts(cfg: ModelConfig) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    model = GPT(cfg).bfloat16()  # in fp32 attention is one kernel, which torch does not count on a CPU
    with FlopCounterMode(display=False) as counter:
        model.loss(model.objective.batch(tokens(cfg, cfg.seq + 1, B=1), tokens=SpecialTokens(0))).backward()
    assert counter.get_total_flops() == count.flops_per_token(cfg) * cfg.seq


def test_published_sizes() -> None:
    """BigScience's three 1.3B shapes with GPT-2's vocabulary padded to 50,304, and Megatron's FLOPs for them."""
    big = replace(SMALL, layers=24, hidden=2048, heads=16, seq=2048, vocab=50257)
    assert big.padded_vocab == 50304
    assert count.count_parameters(big) == 1_315_819_520
    assert {count.count_parameters(replace(big, pos=p)) for p in ("none", "rotary", "alibi")} == {1_311_625_216}
    assert replace(big, act="swiglu").mlp_width == 5456
    assert count.count_parameters(replace(big, act="swiglu")) == 1_315_098_368
    L, h, s, V = 24, 2048, 2048, 50304
    assert count.flops_per_token(big) == pytest.approx(72 * L * h**2 * (1 + s / (6 * h) + V / (12 * h * L)))


@pytest.mark.parametrize("rows", [128, 7])
@pytest.mark.parametrize("pos", POSITIONS)
def test_the_executors_compute_the_same(pos: str, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "QUERIES_AT_ONCE", rows)
    cfg = replace(SMALL, pos=pos)
    position = POSITIONS[pos](cfg)
    q, k, v = torch.randn(3, 2, cfg.heads, 32, cfg.head_dim, generator=torch.Generator().manual_seed(2)).unbind(0)
    x = torch.empty(2, 32, cfg.hidden)
    with torch.no_grad():
        plain = attention.plain_attention(position, cfg.heads, x, Objective(cfg))(q, k, v)
        for executor in (attention.masked_attention, attention.flexattention):
            assert (plain - executor(position, cfg.heads, x, Objective(cfg))(q, k, v)).abs().max() < 1e-5


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("lengths", [None, [1, 5]], ids=["causal", "prefix"])
@pytest.mark.parametrize("pos", ["none", "rotary", "alibi"])
def test_attention_s_gradients_are_its_numerical_derivatives(
    pos: str, lengths: list[int] | None, dropout: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "QUERIES_AT_ONCE", 3)  # three blocks of queries, the last one short
    generator = torch.Generator().manual_seed(4)
    qkv = torch.randn(3, 2, 3, 8, 4, generator=generator, dtype=torch.float64).requires_grad_()
    cfg = replace(SMALL, pos=pos, heads=3, hidden=12)
    objective, extents = (Objective(cfg), None) if lengths is None else (Prefix(cfg), torch.tensor(lengths))
    x = torch.empty(2, 8, 12, dtype=torch.float64)

    def attend(qkv: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(5)  # the same are dropped each time
        return attention.plain_attention(POSITIONS[pos](cfg), 3, x, objective, extents, dropout)(*qkv)

    assert torch.autograd.gradcheck(attend, (qkv,), fast_mode=True)


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.detach().double() - b.double()).norm() / b.detach().double().norm())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_dropout_keeps_the_mean_and_ends_with_training(dtype: torch.dtype) -> None:
    cfg = replace(SMALL, dropout=0.1, attn_dropout=0.2)
    model = scrambled(GPT(cfg)).to(dtype)
    x = tokens(cfg, 16)
    torch.manual_seed(0)
    with torch.no_grad():
        assert not torch.equal(model(x), model(x))
        draws = torch.stack([model(x).float() for _ in range(400)])
        still = model.eval()(x).float()
        assert torch.equal(still, model(x).float())
        plain = scrambled(GPT(SMALL)).to(dtype)(x).float()
    assert torch.equal(still, plain)
    assert (draws.mean(0) - plain).square().mean() < 0.2 * draws.var(0).mean()  # no bias beyond the nonlinearity's


# ------------------------------------------------------------------------------------------------ ALiBi, init


@pytest.mark.parametrize("heads", range(1, 41))
def test_alibi_slopes_are_those_of_bloom(heads: int) -> None:
    from transformers.models.bloom.modeling_bloom import build_alibi_tensor

    alibi = build_alibi_tensor(torch.ones(1, 2, dtype=torch.long), heads, torch.float32)  # slope x key position
    assert alibi[:, 0, 1].tolist() == pytest.approx(alibi_slopes(heads), rel=1e-6)
    assert len(alibi_slopes(heads)) == heads


def test_alibi_slopes_stay_exact_in_a_bf16_model() -> None:
    model = GPT(replace(SMALL, pos="alibi")).bfloat16()
    assert model.position.slopes.tolist() == pytest.approx(alibi_slopes(6), rel=1e-6)


@pytest.mark.parametrize(
    "cfg",
    [
        replace(SMALL, **{k: v})
        for k, v in [("pos", "alibi"), ("pos", "rotary"), ("act", "swiglu"), ("norm", "rmsnorm"), ("embnorm", True)]
    ],
    ids=name,
)
def test_two_arms_share_every_weight_they_have_in_common(cfg: ModelConfig) -> None:
    base, arm = GPT(SMALL, seed=5).state_dict(), GPT(cfg, seed=5).state_dict()
    common = [n for n in base if n in arm and base[n].shape == arm[n].shape]
    assert len(common) >= 18 and all(torch.equal(base[n], arm[n]) for n in common)
    other = GPT(cfg, seed=6).state_dict()
    assert not torch.equal(other["embed.weight"], arm["embed.weight"])


def test_initial_weights_have_the_declared_spread() -> None:
    cfg = replace(SMALL, hidden=256, heads=4, layers=3, act="swiglu")
    state = GPT(cfg).state_dict()
    for part in ("embed.weight", "position.table", "blocks.1.attn.qkv.weight", "blocks.2.mlp.gate.weight"):
        assert float(state[part].std()) == pytest.approx(0.02, rel=0.03), part
    for part in ("blocks.0.attn.proj.weight", "blocks.2.mlp.down.weight"):
        assert float(state[part].std()) == pytest.approx(0.02 / math.sqrt(6), rel=0.03), part
    assert not torch.equal(state["blocks.0.attn.proj.weight"], state["blocks.1.attn.proj.weight"])


def test_learned_positions_end_where_they_were_trained_and_others_do_not() -> None:
    assert {pos: GPT(replace(SMALL, pos=pos)).max_length for pos in POSITIONS} == {
        "none": None,
        "learned": 32,
        "rotary": None,
        "alibi": None,
        "sinusoidal": None,
        "scaled-sinusoidal": None,
    }
    with pytest.raises(ValueError, match="end at 32 tokens"):
        GPT(SMALL)(tokens(SMALL, 33))
    with torch.no_grad():
        assert GPT(replace(SMALL, pos="alibi"))(tokens(SMALL, 70)).isfinite().all()


@pytest.mark.parametrize(
    "changes",
    [{"pos": pos} for pos in POSITIONS]
    + [{"act": act} for act in MLPS]
    + [{"block": block} for block in BLOCKS]
    + [
        {"norm": "rmsnorm", "embnorm": True, "dropout": 0.1, "attn_dropout": 0.1},
        *({"objective": name} for name in OBJECTIVES),
    ],
    ids=lambda changes: "-".join(map(str, changes.values())),
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_all_blocks_are_one_graph_for_the_compiler(changes: dict[str, Any], dtype: torch.dtype) -> None:
    """It says nothing where a graph breaks, and runs slower: a question that only evaluation asks once cost 3%."""
    torch._dynamo.reset()  # it gives up on a function that is compiled anew too often
    prepare_to_compile()
    cfg = replace(SMALL, **changes)
    model = GPT(cfg).to(dtype).train()
    extents_B = model.objective.batch(tokens(cfg, cfg.seq + 1, B=2), tokens=SpecialTokens(0)).extents_B
    whole = torch.compile(model.hidden_states, fullgraph=True, backend="eager")  # raises at the first break
    assert whole(tokens(cfg, cfg.seq, B=2), extents_B=extents_B).shape == (2, cfg.seq, cfg.hidden)


# FlexAttention takes positions as a change of scores, or of queries and keys before it, and objectives as a mask: all
# positions with one mask, all masks with one position of each kind.
OF_A_GPU = [(pos, objective) for pos in POSITIONS for objective in OBJECTIVES]
OF_A_GPU = [(pos, objective) for pos, objective in OF_A_GPU if objective == "causal" or pos in ("alibi", "rotary")]


@pytest.mark.parametrize(("pos", "objective"), OF_A_GPU)
def test_so_they_are_with_the_executor_of_a_gpu(pos: str, objective: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """FlexAttention and its masks, without a gradient, which it has on GPUs only."""
    torch._dynamo.reset()
    prepare_to_compile()
    cfg = replace(SMALL, layers=1, pos=pos, objective=objective, seq=256)  # to trace Flex takes long for each layer
    model = GPT(cfg).requires_grad_(False)
    batch = model.objective.batch(tokens(cfg, 257, B=2), tokens=SpecialTokens(0))
    expected = model.hidden_states(batch.inputs_BT, extents_B=batch.extents_B)
    monkeypatch.setattr(attention, "make_attention", lambda *args: attention.flexattention(*args[:3], *args[5:7]))
    compiled = torch.compile(model.hidden_states, fullgraph=True, backend="eager")
    found = compiled(batch.inputs_BT, extents_B=batch.extents_B)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
