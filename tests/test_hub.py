"""Hugging Face's formats: what is written and what is read computes the same in transformers, or is refused."""

import gzip
import inspect
import itertools
import json
import random
import re
import resource
import textwrap
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from sentencepiece import sentencepiece_model_pb2
from tokenizers import normalizers

from ablations import rundir
from data.sentencepiece_model import SPACE, SentencePiece
from data.tokenizer import load_tokenizer, train
from eval import export, export_tokenizer
from model import hub
from model.config import ModelConfig
from model.gpt import GPT
from model.objective import SpecialTokens

SMALL = ModelConfig(
    layers=2,
    hidden=48,
    heads=6,
    seq=24,
    vocab=120,
    pos="learned",
    act="gelu",
    norm="layernorm",
    block="pre-ln",
    embnorm=False,
    qkv_bias=True,
    linear_bias=True,
    tied=True,
    dropout=0.0,
    attn_dropout=0.0,
    rotary_base=500.0,
    init_std=0.03,
    norm_eps=1e-4,
    vocab_multiple=128,
    objective="causal",
    qk_scaling=False,
)
LLAMA = replace(SMALL, pos="rotary", act="swiglu", norm="rmsnorm", qkv_bias=False, linear_bias=False)
CHOICES = {
    name: get_args(kind) or ((False, True) if kind is bool else ())
    for name, kind in get_type_hints(ModelConfig).items()
    if name != "qk_scaling"  # does nothing to the formats
}
OF_ENCODERS = {
    "sumnorm": True,
    "final_norm": False,
    "head_transform": "bert",
    "output_bias": True,
}  # no decoder has them
ENCODER = replace(
    SMALL, objective="mlm", block="post-ln", sumnorm=True, head_transform="bert", output_bias=True, mask_rate=0.25
)
VARIANTS = [
    replace(SMALL, **dict(zip(names, values, strict=True)))
    for names in [[name for name, choices in CHOICES.items() if choices and name not in OF_ENCODERS]]
    for values in itertools.product(*(CHOICES[name] for name in names))
]


def accepted(cfg: ModelConfig) -> bool:
    try:
        return bool(hub.matching_format(cfg))
    except ValueError:
        return False


EXPORTED = [cfg for cfg in VARIANTS if accepted(cfg)]


ENCODERS = [ENCODER, replace(ENCODER, tied=False)]


def name(cfg: ModelConfig) -> str:
    return f"{cfg.objective}-{cfg.pos}-{cfg.act}-{cfg.qkv_bias}-{cfg.tied}"


def weights(cfg: ModelConfig) -> dict[str, torch.Tensor]:
    """Nothing at its initial value, so that a gain or bias that is lost would show."""
    generator = torch.Generator().manual_seed(1)
    state = GPT(cfg).state_dict()
    return {k: x + torch.randn(x.shape, generator=generator) * 0.1 for k, x in state.items()}


def tokens(cfg: ModelConfig, T: int = 24) -> torch.Tensor:
    return torch.randint(cfg.vocab, (2, T), generator=torch.Generator().manual_seed(0))


def saved(cfg: ModelConfig, to: Path) -> Path:
    to.mkdir(exist_ok=True)
    hub.save_checkpoint(cfg, weights(cfg), to, eod=1)
    return to


def edit(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


# ------------------------------------------------------------------------------------------------ models


def test_the_table_of_formats_is_what_is_accepted() -> None:
    kinds = {(c.pos, c.act, c.norm, c.block, c.embnorm, c.qkv_bias, c.linear_bias) for c in EXPORTED}
    gated = [
        ("rotary", act, "rmsnorm", "pre-ln", False, b, b)
        for act in ("swiglu", "swiglu-unmatched", "geglu")
        for b in (False, True)
    ]
    assert kinds == {
        ("learned", "gelu", "layernorm", "pre-ln", False, True, True),
        ("alibi", "gelu", "layernorm", "pre-ln", True, True, True),
        ("rotary", "gelu", "layernorm", "pre-ln", False, True, True),
        *gated,
    }
    assert len(EXPORTED) == 2 * len(kinds)  # tied or not


def test_of_encoders_only_bert_is_accepted() -> None:
    """Each choice that BERT has not, made alone, is refused and named."""
    assert hub.matching_format(ENCODER).architecture == "BertForMaskedLM"
    for key, choices in CHOICES.items():
        for value in choices:
            other = replace(ENCODER, **{key: value})
            if value == getattr(ENCODER, key) or key in ("tied", "final_norm"):  # final_norm does nothing here
                assert accepted(other), key
            else:
                # of a causal one the nearest is another, which differs in the rest
                with pytest.raises(ValueError, match=f"model.{key}=" if value != "causal" else "GPT-2, has not"):
                    hub.matching_format(other)


@pytest.mark.parametrize("cfg", [*EXPORTED, *ENCODERS], ids=name)
def test_what_is_written_computes_the_same_and_comes_back(cfg: ModelConfig, tmp_path: Path) -> None:
    cfg = replace(cfg, **({"hidden": 40, "heads": 5} if cfg.pos == "alibi" else {}))
    assert hub.verify_checkpoint(saved(cfg, tmp_path), cfg, weights(cfg), tokens(cfg)) < 5e-6
    again, state = hub.load_checkpoint(tmp_path)
    if cfg.pos != "rotary":
        again = replace(again, rotary_base=cfg.rotary_base)  # those formats do not have one
    assert replace(again, mask_rate=cfg.mask_rate) == cfg  # none has that
    expected = weights(cfg)
    assert list(state) == list(expected) and all(state[k].equal(expected[k]) for k in state)


@pytest.mark.parametrize("cfg", ENCODERS, ids=name)
def test_the_loss_of_an_encoder_is_that_of_transformers_after_reloading(cfg: ModelConfig, tmp_path: Path) -> None:
    """The same masks, 80/10/10: mean over the masked positions. With pairs too, whose second text is of another kind
    there; and dropout is in its configuration."""
    cfg = replace(cfg, dropout=0.1, attn_dropout=0.2)
    theirs = transformers.AutoModelForMaskedLM.from_pretrained(saved(cfg, tmp_path)).eval()
    assert type(theirs).__name__ == "BertForMaskedLM" and not (tmp_path / "generation_config.json").exists()
    assert (theirs.config.hidden_dropout_prob, theirs.config.attention_probs_dropout_prob) == (0.1, 0.2)
    ours = GPT(cfg).eval()
    ours.load_state_dict(weights(cfg))
    batch = ours.objective.batch(tokens(cfg, 25), 3, range(2), SpecialTokens(119))
    assert batch.predicted is not None
    labels = torch.full_like(batch.targets_BT, -100)
    labels.scatter_(1, batch.predicted, batch.targets_BT.gather(1, batch.predicted))
    kinds = torch.tensor([0] * 10 + [1] * 14).expand(2, -1)
    with torch.no_grad():
        expected = float(theirs(batch.inputs_BT, labels=labels, token_type_ids=kinds).loss)
        assert float(ours.loss(batch)) == pytest.approx(expected, rel=1e-6)


def test_kinds_of_tokens_that_transformers_trained_are_read_into_the_positions(tmp_path: Path) -> None:
    file = saved(ENCODER, tmp_path) / "model.safetensors"
    state = load_file(file)
    state["bert.embeddings.token_type_embeddings.weight"] = torch.randn(2, 48)
    save_file(state, file, metadata={"format": "pt"})
    cfg, read = hub.load_checkpoint(tmp_path)
    ours = GPT(cfg).eval()
    ours.load_state_dict(read)
    theirs = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert (ours(tokens(cfg)) - theirs(tokens(cfg)).logits).abs().max() < 2e-5


def test_generation_equals_greedy_decoding(tmp_path: Path) -> None:
    """Also beyond the training length, where positions allow it, with theirs caching and ours not."""
    cfg = replace(SMALL, pos="alibi", embnorm=True)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(saved(cfg, tmp_path))
    ours = GPT(cfg)
    ours.load_state_dict(weights(cfg))
    x = start = tokens(cfg, 5)[:1]
    with torch.no_grad():
        for _ in range(30):
            x = torch.cat((x, ours(x)[:, -1:].argmax(-1)), 1)
    settings = {"attention_mask": torch.ones_like(start), "do_sample": False, "max_new_tokens": 30}
    assert theirs.generate(start, **settings, eos_token_id=-1).equal(x)
    theirs.generation_config.eos_token_id = int(x[0, 12])
    assert theirs.generate(start, **settings).shape[1] < 14  # the end of document ends it


def test_precision_padding_and_dropout_are_written_as_they_are(tmp_path: Path) -> None:
    cfg = replace(SMALL, dropout=0.1, attn_dropout=0.2)
    state = {k: x.bfloat16() for k, x in weights(cfg).items()}
    hub.save_checkpoint(cfg, state, tmp_path, eod=7, origin={"cell": "a"})
    config = json.loads((tmp_path / "config.json").read_text())
    assert {k: config[k] for k in ("vocab_size", "unpadded_vocab_size", "dtype", "eos_token_id", "bos_token_id")} == {
        "vocab_size": 128,
        "unpadded_vocab_size": 120,
        "dtype": "bfloat16",
        "eos_token_id": 7,
        "bos_token_id": 7,
    }
    assert (config["resid_pdrop"], config["embd_pdrop"], config["attn_pdrop"]) == (0.1, 0.1, 0.2)
    assert config["trained_by"] == {"name": "megahour", "cell": "a"}
    assert hub.verify_checkpoint(tmp_path, cfg, state, tokens(cfg)) < 5e-6
    again, read = hub.load_checkpoint(tmp_path)
    assert again.dropout == 0.1 and again.vocab == 120 and all(read[k].equal(state[k]) for k in state)


@pytest.mark.parametrize(
    "change, why",
    [
        ({"pos": "alibi"}, r"BLOOM, has not model.embnorm=false \(it has true\)"),
        ({"pos": "none"}, "has not model.pos=none"),
        ({"block": "post-ln"}, r"GPT-2, has not model.block=post-ln \(it has pre-ln\)"),
        ({"pos": "rotary", "norm": "rmsnorm"}, r"GPT-NeoX, has not model.norm=rmsnorm \(it has layernorm\)"),
        ({"linear_bias": False}, r"GPT-2, has not model.linear_bias=false \(it has true\)"),
        ({"objective": "mlm"}, r"BERT, has not model.block=pre-ln \(it has post-ln\), model.sumnorm=false"),
    ],
)
def test_what_has_no_counterpart_is_refused_by_name(change: dict, why: str, tmp_path: Path) -> None:
    cfg = replace(SMALL, **change)
    with pytest.raises(ValueError, match=why):
        hub.save_checkpoint(cfg, GPT(cfg).state_dict(), tmp_path, eod=1)
    assert not list(tmp_path.iterdir())


def test_every_setting_is_known() -> None:
    known = {k for f in hub.FORMATS for k in (*f.needs, *f.sizes)} | set(hub.UNRESTRICTED)
    assert known == {field.name for field in fields(ModelConfig)}
    for f in hub.FORMATS:
        assert all(set(values) <= set(CHOICES[k]) for k, values in f.needs.items() if k != "ffn_width")
    for name, value in OF_ENCODERS.items():  # of decoders
        assert accepted(SMALL) and not accepted(replace(SMALL, **{name: value}))  # type: ignore[arg-type]
    assert accepted(replace(SMALL, ffn_width=40)) and not accepted(
        replace(SMALL, pos="alibi", embnorm=True, ffn_width=40)
    )


@pytest.mark.parametrize(
    "cfg, change",
    [
        (SMALL, {"activation_function": "gelu"}),
        (SMALL, {"layer_norm_epsilon": 1e-3}),
        (SMALL, {"n_head": 4}),
        (SMALL, {"n_layer": 1}),
        (SMALL, {"tie_word_embeddings": False}),
        (replace(SMALL, pos="rotary"), {"use_parallel_residual": True}),
        (LLAMA, {"rms_norm_eps": 1e-3}),
        (LLAMA, {"rope_parameters": {"rope_type": "default", "rope_theta": 400.0}}),
    ],
)
def test_verification_sees_a_wrong_setting(cfg: ModelConfig, change: dict, tmp_path: Path) -> None:
    edit(saved(cfg, tmp_path), **change)
    with pytest.raises(ValueError, match="other logits|does not load"):
        hub.verify_checkpoint(tmp_path, cfg, weights(cfg), tokens(cfg))


@pytest.mark.parametrize("key, value", [("transformer.ln_f.bias", None), ("transformer.h.2.ln_1.bias", torch.ones(48))])
def test_verification_sees_a_missing_and_a_left_over_tensor(key: str, value: Any, tmp_path: Path) -> None:
    file = saved(SMALL, tmp_path) / "model.safetensors"
    state = {k: x for k, x in (load_file(file) | {key: value}).items() if x is not None}
    save_file(state, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"does not load what was written: .*{key}"):
        hub.verify_checkpoint(tmp_path, SMALL, weights(SMALL), tokens(SMALL))


def test_verification_sees_a_wrong_weight_and_other_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = load_file(saved(SMALL, tmp_path) / "model.safetensors")
    state["transformer.h.1.mlp.c_fc.bias"][3] += 0.1
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="other logits"):
        hub.verify_checkpoint(tmp_path, SMALL, weights(SMALL), tokens(SMALL))
    monkeypatch.setattr(hub, "TOLERANCE", 10.0)  # logits pass, and a token that is not the likeliest would
    hub.verify_checkpoint(tmp_path, SMALL, weights(SMALL), tokens(SMALL))
    saved(SMALL, tmp_path)
    monkeypatch.undo()
    settings = tmp_path / "generation_config.json"
    settings.write_text(json.dumps({"eos_token_id": 1, "pad_token_id": 1, "repetition_penalty": 9.0}))
    with pytest.raises(ValueError, match="generates other text"):
        hub.verify_checkpoint(tmp_path, SMALL, weights(SMALL), tokens(SMALL))


# ------------------------------------------------------------------------------------------------ reading theirs

THEIRS: dict[str, Any] = {
    "GPT-2": transformers.GPT2Config(vocab_size=128, n_positions=30, n_embd=48, n_layer=2, n_head=3),
    "BLOOM": transformers.BloomConfig(vocab_size=128, hidden_size=48, n_layer=2, n_head=6),
    "GPT-NeoX": transformers.GPTNeoXConfig(
        vocab_size=128,
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=192,
        hidden_act="gelu_pytorch_tanh",
        use_parallel_residual=False,
        max_position_embeddings=30,
        rope_parameters={"rope_type": "default", "rope_theta": 300.0, "partial_rotary_factor": 1.0},
    ),
    "Llama": transformers.LlamaConfig(
        vocab_size=128,
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=128,
        max_position_embeddings=30,
        attention_bias=True,
        mlp_bias=True,
    ),
}


def written_by_transformers(config: Any, to: Path) -> Any:
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    model.save_pretrained(to)
    return model


@pytest.mark.parametrize("which", THEIRS)
def test_what_transformers_wrote_is_read(which: str, tmp_path: Path) -> None:
    theirs = written_by_transformers(THEIRS[which], tmp_path)
    cfg, state = hub.load_checkpoint(tmp_path)
    assert cfg.tied == (which in ("GPT-2", "BLOOM"))
    assert cfg.seq == (2048 if which == "BLOOM" else 30) and cfg.dropout == (0.1 if which == "GPT-2" else 0)
    ours = GPT(cfg).eval()
    ours.load_state_dict(state)
    x = tokens(cfg)
    with torch.no_grad():
        assert (ours(x) - theirs(x).logits).abs().max() < 2e-5


def test_a_vocabulary_that_is_no_multiple_is_read(tmp_path: Path) -> None:
    config = transformers.GPT2Config(**(THEIRS["GPT-2"].to_dict() | {"vocab_size": 131}))
    theirs = written_by_transformers(config, tmp_path)
    cfg, state = hub.load_checkpoint(tmp_path)
    assert (cfg.vocab, cfg.padded_vocab) == (131, 131)
    ours = GPT(cfg).eval()
    ours.load_state_dict(state)
    x = tokens(cfg)
    with torch.no_grad():
        assert (ours(x) - theirs(x).logits).abs().max() < 2e-5


def test_a_bare_model_in_shards_is_read(tmp_path: Path) -> None:
    theirs = written_by_transformers(THEIRS["GPT-2"], tmp_path / "whole")
    theirs.transformer.save_pretrained(tmp_path / "bare", max_shard_size="100KB")
    assert len(list((tmp_path / "bare").glob("*.safetensors"))) > 1
    whole, bare = hub.load_checkpoint(tmp_path / "whole"), hub.load_checkpoint(tmp_path / "bare")
    assert whole[0] == bare[0] and all(bare[1][k].equal(x) for k, x in whole[1].items())


@pytest.mark.parametrize(
    "which, change, why",
    [
        ("GPT-2", {"activation_function": "relu"}, r"this GPT-2 .* activation_function=relu \(here gelu_new\)"),
        ("GPT-2", {"activation_function": "gelu"}, "activation_function=gelu "),
        ("GPT-2", {"n_inner": 100}, r"n_inner=100 \(here 192\)"),
        ("GPT-2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=true"),
        ("GPT-2", {"n_head": 5}, "heads=5 does not divide"),
        ("BLOOM", {"apply_residual_connection_post_layernorm": True}, "apply_residual_connection_post_layernorm=true"),
        ("GPT-NeoX", {"use_parallel_residual": True}, "use_parallel_residual=true"),
        (
            "GPT-NeoX",
            {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.25, "rope_theta": 1e4}},
            "'partial_rotary_factor': 0.25",
        ),
        ("Llama", {"num_key_value_heads": 1}, r"num_key_value_heads=1 \(here 3\)"),
        ("Llama", {"mlp_bias": False}, "mlp_bias=false|attention_bias=true"),
        ("Llama", {"intermediate_size": 100}, r"intermediate_size=100 \(here 128\)"),
        (
            "Llama",
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
            "'rope_type': 'linear'",
        ),
        ("Llama", {"model_type": "mamba"}, "model_type=mamba is not one of gpt2, bloom, gpt_neox, llama, bert"),
    ],
)
def test_settings_without_a_counterpart_are_refused(which: str, change: dict, why: str, tmp_path: Path) -> None:
    THEIRS[which].save_pretrained(tmp_path)
    edit(tmp_path, **change)
    with pytest.raises(ValueError, match=why):
        hub.load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "key, value, why",
    [
        ("transformer.h.1.ln_2.bias", None, "lack transformer.h.1.ln_2.bias"),
        ("transformer.h.2.ln_2.bias", torch.zeros(48), "hold transformer.h.2.ln_2.bias"),
        ("transformer.h.0.mlp.c_fc.weight", torch.zeros(192, 48), r"blocks.0.mlp.up.weight has the shape \(48, 192\)"),
        ("transformer.wpe.weight", torch.zeros(9, 48), r"position.table has the shape \(9, 48\)"),
        ("lm_head.weight", torch.zeros(128, 48), "the output matrix is the embedding, and it is another"),
    ],
)
def test_weights_that_do_not_fit_are_refused(key: str, value: Any, why: str, tmp_path: Path) -> None:
    file = saved(SMALL, tmp_path) / "model.safetensors"
    state = load_file(file)
    save_file({k: x for k, x in (state | {key: value}).items() if x is not None}, file)
    with pytest.raises(ValueError, match=why):
        hub.load_checkpoint(tmp_path)


def test_a_damaged_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no config.json"):
        hub.load_checkpoint(tmp_path)
    file = saved(SMALL, tmp_path) / "model.safetensors"
    whole = file.read_bytes()
    for part in (whole[:-1], whole[: len(whole) // 2], b"", b"no tensors at all"):
        file.write_bytes(part)
        with pytest.raises(ValueError, match="model.safetensors is damaged"):
            hub.load_checkpoint(tmp_path)
    file.unlink()
    with pytest.raises(ValueError, match="no model.safetensors"):
        hub.load_checkpoint(tmp_path)


# ------------------------------------------------------------------------------------------------ the tokenizer

TEXTS = [inspect.getsource(module) for module in (textwrap, random)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    path.write_bytes(train(TEXTS, sum(map(len, TEXTS)), 700))
    return path


@pytest.fixture(scope="module")
def ours(model: Path) -> SentencePiece:
    return load_tokenizer(model)


@pytest.fixture(scope="module")
def theirs(ours: SentencePiece, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = saved(SMALL, tmp_path_factory.mktemp("converted"))
    export_tokenizer.convert_tokenizer(ours, 24).save_pretrained(folder)
    return transformers.AutoTokenizer.from_pretrained(folder)


@settings(deadline=None, max_examples=300)
@given(st.lists(st.text() | st.sampled_from([*export.PARITY_TEXTS, *TEXTS[0].split(" ")])).map("".join))
def test_the_same_ids_for_every_text(ours: SentencePiece, theirs: Any, text: str) -> None:
    ids = ours.encode(text)
    assert theirs(text).input_ids == theirs.encode(text) == ids
    assert theirs.decode(ids) == text
    assert theirs.decode([ours.eod, *ids, ours.eod], skip_special_tokens=True) == text


@pytest.mark.parametrize("seed", range(4))
def test_the_same_ids_where_pieces_overlap_in_many_ways(seed: int, tmp_path: Path) -> None:
    """Few letters and many pieces, with scores at random: most pieces can be cut in several ways."""
    rng = random.Random(seed)
    texts = ["".join(rng.choices("ab ", (5, 3, 1), k=rng.randint(20, 400))) for _ in range(100)]
    proto = sentencepiece_model_pb2.ModelProto.FromString(train(texts, 1, 600))
    pieces = [p for p in proto.pieces if p.type == p.NORMAL and len(p.piece) > 1]
    scores = [p.score for p in pieces]
    rng.shuffle(scores)
    for piece, score in zip(pieces, scores, strict=True):
        piece.score = score
    (tmp_path / "m").write_bytes(proto.SerializeToString())
    ours = load_tokenizer(tmp_path / "m")
    texts = ["".join(rng.choices("ab ", k=rng.randint(1, 60))) for _ in range(3000)]
    assert export_tokenizer.convert_tokenizer(ours)(texts).input_ids == ours.encode_batch(texts)


@pytest.mark.parametrize(
    "cfg", [replace(SMALL, pos="alibi", embnorm=True), replace(SMALL, pos="rotary"), LLAMA, ENCODER], ids=name
)
def test_every_format_gets_the_same_tokenizer(cfg: ModelConfig, ours: SentencePiece, tmp_path: Path) -> None:
    export_tokenizer.convert_tokenizer(ours, causal=cfg.objective == "causal").save_pretrained(saved(cfg, tmp_path))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    export_tokenizer.compare_tokenizers(
        ours, theirs, [*TEXTS, *export.PARITY_TEXTS], ours.encode_batch([*TEXTS, *export.PARITY_TEXTS])
    )
    assert theirs.eos_token_id == ours.eod and set(theirs("a b")) == {"input_ids", "attention_mask"}
    assert theirs.mask_token_id == (ours.mask if cfg.objective == "mlm" else None)


def test_bytes_that_are_no_text(ours: SentencePiece, theirs: Any) -> None:
    """The one difference: which bytes of a broken run are given up. Newlines never are."""
    cut = ours.encode("a\n\U0001f469")[:-1]
    assert theirs.decode(cut) == ours.decode(cut) == "a\n" + "\ufffd" * 3
    assert ours.decode([*ours.encode(SPACE), cut[-1]]) == SPACE + "\ufffd"
    assert theirs.decode([*ours.encode(SPACE), cut[-1]]) == "\ufffd" * 4


def test_a_tokenizer_that_differs_is_seen(ours: SentencePiece) -> None:
    theirs = export_tokenizer.convert_tokenizer(ours)
    export_tokenizer.compare_tokenizers(ours, theirs, ["of the  self"], [ours.encode("of the  self")])
    theirs.backend_tokenizer.normalizer = normalizers.Replace("  ", " ")
    with pytest.raises(ValueError, match="gives other ids, after 'of the"):
        export_tokenizer.compare_tokenizers(ours, theirs, ["of the  self"], [ours.encode("of the  self")])


# ------------------------------------------------------------------------------------------------ a whole run


def run_directory(out: Path, cfg: ModelConfig, tokenizer: Any, texts: list[str]) -> Path:
    """A run directory as training leaves it, of a model that was not trained, with prepared data beside it."""
    store = out / "data"
    for name in ("text-1", "tokenizer-1"):
        (store / name).mkdir(parents=True)
    with gzip.open(store / "text-1/valid.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in texts)
    (store / "tokenizer-1" / tokenizer.path.name).write_bytes(tokenizer.path.read_bytes())
    folder = out / "nano/run"
    folder.mkdir(parents=True)
    record = {
        "cell": "baseline,seed=1",
        "fingerprint": "0",
        "commit": None,
        "config": {
            "model": {field.name: getattr(cfg, field.name) for field in fields(cfg)},
            "train": {"precision": "bf16"},
            "eval": {"corpora": []},
        },
        "data": {  # as recorded on another machine
            "tokenizer": {"path": f"/elsewhere/data/tokenizer-1/{tokenizer.path.name}", "sha256": tokenizer.sha256},
            "valid": ["/elsewhere/data/text-1/valid.jsonl.gz"],
        },
    }
    (folder / "run.json").write_text(json.dumps(record))
    save_file({k: x.bfloat16() for k, x in weights(cfg).items()}, folder / "weights.safetensors")
    rundir.write_done(folder, {"steps": 1})
    return folder


@pytest.fixture()
def run(ours: SentencePiece, tmp_path: Path) -> Path:
    return run_directory(tmp_path / "out", replace(SMALL, vocab=ours.vocab_size), ours, TEXTS)


def test_a_run_is_exported(run: Path, ours: SentencePiece, capsys: pytest.CaptureFixture[str]) -> None:
    to = run.parent / "deep" / "exported"
    assert export.main([str(run), "--to", str(to)]) == 0
    assert "GPT-2; its logits differ by" in capsys.readouterr().out
    assert {path.name for path in to.parent.iterdir()} == {"exported"}
    assert {path.name for path in to.iterdir()} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    text = transformers.pipeline("text-generation", model=str(to), tokenizer=str(to))
    assert text("import", max_new_tokens=4, do_sample=False)[0]["generated_text"].startswith("import")
    _, state = hub.load_checkpoint(to)
    trained = load_file(run / "weights.safetensors")
    assert all(state[k].equal(x) for k, x in trained.items()) and state.keys() == trained.keys()
    assert export.main([str(run), "--to", str(to)]) == 2 and "exists" in capsys.readouterr().err


@pytest.mark.parametrize("largest", [500, 20_000, 60_000])  # bytes of a file: the settings, tokenizer or weights fail
def test_a_disk_that_takes_no_more_is_said_in_a_line(
    largest: int, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, limits[1]))
    try:
        assert export.main([str(run), "--to", str(run.parent / "out" / "exported")]) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "File too large" in capsys.readouterr().err
    assert not list((run.parent / "out").iterdir())


def broken(run: Path, what: str) -> None:
    record = json.loads((run / "run.json").read_text())
    if what == "unfinished":
        (run / "done").unlink()
    elif what == "no counterpart":
        record["config"]["model"]["pos"] = "none"
    elif what == "other tokenizer":
        record["data"]["tokenizer"]["sha256"] = "0"
    elif what == "damaged weights":
        content = bytearray((run / "weights.safetensors").read_bytes())
        content[-3] ^= 1
        (run / "weights.safetensors").write_bytes(content)
    elif what == "older":
        del record["config"]["model"]["norm"]
    elif what == "other weights":
        record["config"]["model"]["layers"] = 1
    (run / "run.json").write_text(json.dumps(record))


@pytest.mark.parametrize(
    "what, why",
    [
        ("unfinished", "has no done: only a finished run"),
        ("no counterpart", "model.pos=none"),
        ("other tokenizer", "is not the tokenizer"),
        ("older", "of another version: .*'norm'"),
        ("damaged weights", "weights.safetensors is damaged"),
        ("other weights", "these are not the weights of such a model: blocks.1"),
    ],
)
def test_a_run_that_cannot_be_exported_leaves_nothing(
    what: str, why: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken(run, what)
    to = run.parent / "out" / "exported"
    assert export.main([str(run), "--to", str(to)]) == 2
    assert re.search(why, capsys.readouterr().err)
    assert not to.parent.exists() or not list(to.parent.iterdir())


def test_what_fails_verification_is_not_there(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "TOLERANCE", 0.0)
    with pytest.raises(ValueError, match="other logits"):
        export.export_run(run, run.parent / "out" / "exported")
    assert not list((run.parent / "out").iterdir())
