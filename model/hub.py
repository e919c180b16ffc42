"""Hugging Face's formats: our weights and configuration to theirs, and back. Only this file knows their models.

| ours                                                | theirs    |
|-----------------------------------------------------|-----------|
| learned, GELU, LayerNorm                            | GPT-2     |
| ALiBi, norm of the embeddings, GELU, LayerNorm      | BLOOM     |
| rotary, GELU, LayerNorm                             | GPT-NeoX  |
| rotary, SwiGLU or GEGLU, RMSNorm, no biases or all  | Llama     |

All with pre-LN blocks, and with tied or untied output. A model in between has no counterpart and is refused. The
embedding keeps its padding rows: `vocab_size` is the padded size, as the model was trained, and `unpadded_vocab_size`
in config.json is that of the tokenizer.
"""

import itertools
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from model.config import ModelConfig

# Of logits in fp32, relative to the largest. Measured on a trained nano run: 5e-7, but 9e-4 with GELU by erf in place
# of tanh, and 3e-4 with norm_eps off by a fifth. 24 layers of large random weights: 5e-5.
TOLERANCE = 1e-4
SYNONYMS = {"gelu_pytorch_tanh": "gelu_new", "gelu_fast": "gelu_new", "swish": "silu"}  # one function, many names
BUFFERS = (".attn.bias", ".attn.masked_bias", ".attention.bias", ".attention.masked_bias", ".rotary_emb.inv_freq")


# ------------------------------------------------------------------------------------------- how tensors are kept
# Each layout is a pair: ours -> theirs (one or several), and theirs -> ours. Biases [F] go the way of weights [F, D].

Layout = tuple[Callable[[Tensor, int], list[Tensor]], Callable[[list[Tensor], int], Tensor]]

SAME: Layout = (lambda x, heads: [x], lambda xs, heads: xs[0])
TRANSPOSED: Layout = (lambda x, heads: [x.t()], lambda xs, heads: xs[0].t())  # GPT-2
SPLIT: Layout = (lambda x, heads: list(x.chunk(3)), lambda xs, heads: _join(xs))  # q, k and v apart
BY_HEAD: Layout = (  # q, k, v of the first head, then of the second
    lambda x, heads: [x.unflatten(0, (3, heads, -1)).transpose(0, 1).flatten(0, 2)],
    lambda xs, heads: xs[0].unflatten(0, (heads, 3, -1)).transpose(0, 1).flatten(0, 2),
)


def _join(xs: list[Tensor]) -> Tensor:
    from torch import cat

    return cat(xs)


# ------------------------------------------------------------------------------------------- the formats


@dataclass(frozen=True)
class Format:
    """One architecture of Hugging Face.

    needs: for each of our settings that it fixes, the values it can compute.
    sizes: our settings that are free, under their names.
    fixed: all other settings that decide what it computes, for a model of ours.
    dropout: their shares of dropout -> ours. They do not act in inference.
    weights: our module -> theirs below `prefix`, {} for the layer; several where ours is one.
    layouts: modules that are not kept as ours are.
    """

    name: str
    model_type: str
    architecture: str
    prefix: str
    needs: Mapping[str, tuple]
    sizes: Mapping[str, str]
    fixed: Callable[[ModelConfig], dict[str, Any]]
    dropout: Mapping[str, str]
    weights: Mapping[str, tuple[str, ...]]
    layouts: Mapping[str, Layout]


DECODER = {
    "objective": ("causal",),
    "block": ("pre-ln",),
    "sumnorm": (False,),
    "final_norm": (True,),
    "head_transform": ("none",),
    "output_bias": (False,),
}
BIASED = DECODER | {"qkv_bias": (True,), "linear_bias": (True,)}
UNBIASED = BIASED | {"qkv_bias": (False,), "linear_bias": (False,)}

GPT2 = Format(
    name="GPT-2",
    model_type="gpt2",
    architecture="GPT2LMHeadModel",
    prefix="transformer.",
    needs={"pos": ("learned",), "act": ("gelu",), "norm": ("layernorm",), "embnorm": (False,), **BIASED},
    sizes={
        "layers": "n_layer",
        "hidden": "n_embd",
        "heads": "n_head",
        "seq": "n_positions",
        "norm_eps": "layer_norm_epsilon",
        "init_std": "initializer_range",
    },
    fixed=lambda cfg: {
        "n_inner": cfg.ffn,
        "activation_function": "gelu_new",
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "add_cross_attention": False,
    },
    dropout={"embd_pdrop": "dropout", "resid_pdrop": "dropout", "attn_pdrop": "attn_dropout"},
    weights={
        "embed": ("wte",),
        "position": ("wpe",),
        "norm": ("ln_f",),
        "norm1": ("h.{}.ln_1",),
        "attn.qkv": ("h.{}.attn.c_attn",),
        "attn.proj": ("h.{}.attn.c_proj",),
        "norm2": ("h.{}.ln_2",),
        "mlp.up": ("h.{}.mlp.c_fc",),
        "mlp.down": ("h.{}.mlp.c_proj",),
    },
    layouts=dict.fromkeys(("attn.qkv", "attn.proj", "mlp.up", "mlp.down"), TRANSPOSED),
)

BLOOM = Format(
    name="BLOOM",
    model_type="bloom",
    architecture="BloomForCausalLM",
    prefix="transformer.",
    needs={
        "pos": ("alibi",),
        "act": ("gelu",),
        "norm": ("layernorm",),
        "embnorm": (True,),
        "ffn_width": (0,),
        **BIASED,
    },
    sizes={
        "layers": "n_layer",
        "hidden": "hidden_size",
        "heads": "n_head",
        "seq": "seq_length",
        "norm_eps": "layer_norm_epsilon",
        "init_std": "initializer_range",
    },
    fixed=lambda cfg: {"apply_residual_connection_post_layernorm": False},
    dropout={"hidden_dropout": "dropout", "attention_dropout": "attn_dropout"},
    weights={
        "embed": ("word_embeddings",),
        "embnorm": ("word_embeddings_layernorm",),
        "norm": ("ln_f",),
        "norm1": ("h.{}.input_layernorm",),
        "attn.qkv": ("h.{}.self_attention.query_key_value",),
        "attn.proj": ("h.{}.self_attention.dense",),
        "norm2": ("h.{}.post_attention_layernorm",),
        "mlp.up": ("h.{}.mlp.dense_h_to_4h",),
        "mlp.down": ("h.{}.mlp.dense_4h_to_h",),
    },
    layouts={"attn.qkv": BY_HEAD},
)

NEOX = Format(
    name="GPT-NeoX",
    model_type="gpt_neox",
    architecture="GPTNeoXForCausalLM",
    prefix="gpt_neox.",
    needs={"pos": ("rotary",), "act": ("gelu",), "norm": ("layernorm",), "embnorm": (False,), **BIASED},
    sizes={
        "layers": "num_hidden_layers",
        "hidden": "hidden_size",
        "heads": "num_attention_heads",
        "seq": "max_position_embeddings",
        "norm_eps": "layer_norm_eps",
        "init_std": "initializer_range",
    },
    fixed=lambda cfg: {
        "intermediate_size": cfg.ffn,
        "hidden_act": "gelu_new",
        "use_parallel_residual": False,
        "attention_bias": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": cfg.rotary_base, "partial_rotary_factor": 1.0},
    },
    dropout={"hidden_dropout": "dropout", "attention_dropout": "attn_dropout"},
    weights={
        "embed": ("embed_in",),
        "norm": ("final_layer_norm",),
        "norm1": ("layers.{}.input_layernorm",),
        "attn.qkv": ("layers.{}.attention.query_key_value",),
        "attn.proj": ("layers.{}.attention.dense",),
        "norm2": ("layers.{}.post_attention_layernorm",),
        "mlp.up": ("layers.{}.mlp.dense_h_to_4h",),
        "mlp.down": ("layers.{}.mlp.dense_4h_to_h",),
    },
    layouts={"attn.qkv": BY_HEAD},
)

LLAMA = Format(
    name="Llama",
    model_type="llama",
    architecture="LlamaForCausalLM",
    prefix="model.",
    needs={
        "pos": ("rotary",),
        "act": ("swiglu", "swiglu-unmatched", "geglu"),
        "norm": ("rmsnorm",),
        "embnorm": (False,),
        **UNBIASED,
    },
    sizes={
        "layers": "num_hidden_layers",
        "hidden": "hidden_size",
        "heads": "num_attention_heads",
        "seq": "max_position_embeddings",
        "norm_eps": "rms_norm_eps",
        "init_std": "initializer_range",
    },
    fixed=lambda cfg: {
        "intermediate_size": cfg.ffn,
        "hidden_act": "gelu_new" if cfg.act == "geglu" else "silu",
        "num_key_value_heads": cfg.heads,
        "head_dim": cfg.head_dim,
        "attention_bias": cfg.qkv_bias,
        "mlp_bias": cfg.linear_bias,
        "rope_parameters": {"rope_type": "default", "rope_theta": cfg.rotary_base},
    },
    dropout={"attention_dropout": "attn_dropout"},
    weights={
        "embed": ("embed_tokens",),
        "norm": ("norm",),
        "norm1": ("layers.{}.input_layernorm",),
        "attn.qkv": tuple(f"layers.{{}}.self_attn.{x}_proj" for x in "qkv"),
        "attn.proj": ("layers.{}.self_attn.o_proj",),
        "norm2": ("layers.{}.post_attention_layernorm",),
        "mlp.gate": ("layers.{}.mlp.gate_proj",),
        "mlp.up": ("layers.{}.mlp.up_proj",),
        "mlp.down": ("layers.{}.mlp.down_proj",),
    },
    layouts={"attn.qkv": SPLIT},
)

LLAMA_BIASED = replace(LLAMA, name="Llama with biases", needs={**LLAMA.needs, **BIASED})

FORMATS = (GPT2, BLOOM, NEOX, LLAMA, LLAMA_BIASED)
FREE = (
    "vocab",
    "vocab_multiple",
    "ffn_width",
    "mask_rate",
    "qk_scaling",
    "rotary_base",
    "tied",
    "dropout",
    "attn_dropout",
)  # and `sizes`


def counterpart(cfg: ModelConfig) -> Format:
    """The format of Hugging Face that computes this model.

    Raises:
        ValueError: when there is none; the message names the settings that the nearest format has otherwise.
    """
    for field in fields(cfg):
        if not any(field.name in (*f.needs, *f.sizes, *FREE) for f in FORMATS):
            raise ValueError(f"model.{field.name} is not known to the export (model/hub.py)")
    different = {f.name: [k for k, values in f.needs.items() if getattr(cfg, k) not in values] for f in FORMATS}
    nearest = min(FORMATS, key=lambda f: ("pos" in different[f.name], len(different[f.name])))
    if wrong := different[nearest.name]:
        why = ", ".join(
            f"model.{k}={_show(getattr(cfg, k))} (it has {' or '.join(map(_show, nearest.needs[k]))})" for k in wrong
        )
        raise ValueError(f"no architecture of Hugging Face is this model: the nearest, {nearest.name}, has not {why}")
    return nearest


def _show(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _names(f: Format, ours: str) -> tuple[list[str], Layout]:
    """The names of one of our tensors in their files, and its layout."""
    if ours == "head.weight":
        return ["lm_head.weight"], SAME
    found = re.fullmatch(r"(?:blocks\.(\d+)\.)?(.+)\.(weight|bias|table)", ours)
    if not found or found[2] not in f.weights:
        raise ValueError(f"{ours} has no counterpart in {f.name}")
    layer, module, kind = found.groups()
    kind = "weight" if kind == "table" else kind
    return [f"{f.prefix}{x.format(layer)}.{kind}" for x in f.weights[module]], f.layouts.get(module, SAME)


# ------------------------------------------------------------------------------------------- writing


def save(cfg: ModelConfig, state: dict[str, Tensor], to: Path, eod: int, origin: dict[str, Any] | None = None) -> None:
    """Write config.json, generation_config.json and model.safetensors into the folder `to`.

    state: model.state_dict(), in the precision it is to have. eod: the id that begins and ends a document.
    origin: what config.json is to say about where the model comes from.

    Raises:
        ValueError: when there is no such architecture, or `state` is not that of such a model.
    """
    f = counterpart(cfg)
    _check_shapes(cfg, state)
    import transformers
    from safetensors.torch import save_file

    theirs: dict[str, Tensor] = {}
    for ours, tensor in state.items():
        names, (split, _) = _names(f, ours)
        parts = [part.contiguous().clone() for part in split(tensor.detach().cpu(), cfg.heads)]
        theirs |= dict(zip(names, parts, strict=True))
    settings: dict[str, Any] = {
        **{their: getattr(cfg, our) for our, their in f.sizes.items()},
        **{their: getattr(cfg, our) for their, our in f.dropout.items()},
        **f.fixed(cfg),
        "tie_word_embeddings": cfg.tied,
        "vocab_size": cfg.padded_vocab,
        "unpadded_vocab_size": cfg.vocab,
        "bos_token_id": eod,
        "eos_token_id": eod,
        "architectures": [f.architecture],
        "dtype": state["embed.weight"].dtype,
    }
    if origin:
        settings["trained_by"] = {"name": "megahour", **origin}
    config = transformers.CONFIG_MAPPING[f.model_type](**settings)
    config.save_pretrained(to)
    transformers.GenerationConfig(bos_token_id=eod, eos_token_id=eod, pad_token_id=eod).save_pretrained(to)
    save_file(theirs, to / "model.safetensors", metadata={"format": "pt"})
    # safetensors lets nobody else read what it writes
    (to / "model.safetensors").chmod((to / "config.json").stat().st_mode)


def verify(folder: Path, cfg: ModelConfig, state: dict[str, Tensor], tokens_BT: Tensor, new: int = 16) -> float:
    """Load `folder` with transformers, and compare it with our model in fp32.

    The logits of `tokens_BT`, padding rows included, and greedy generation of up to `new` tokens: each generated
    token has to be the one that our model finds likeliest after those before it.

    Returns: the largest difference of logits, relative to the largest logit (or to 1, where that is smaller).

    Raises:
        ValueError: above TOLERANCE, or when a tensor is missing or left over.
    """
    import torch
    import transformers

    from model.gpt import GPT

    loader: Any = transformers.AutoModelForCausalLM
    theirs, info = loader.from_pretrained(folder, dtype=torch.float32, local_files_only=True, output_loading_info=True)
    if left := {kind: sorted(map(str, names)) for kind, names in info.items() if names}:
        raise ValueError(f"transformers does not load what was written: {left}")
    ours = GPT(cfg)
    ours.load_state_dict(state)
    ours.eval(), theirs.eval()
    with torch.inference_mode():
        expected = ours(tokens_BT)
        scale = max(1.0, float(expected.abs().max()))
        error = float((theirs(tokens_BT).logits - expected).abs().max()) / scale
        if not error <= TOLERANCE:  # also when it is no number
            raise ValueError(f"transformers computes other logits: they differ by {error:.1e} of the largest")
        given = tokens_BT[:1, : max(1, min(tokens_BT.shape[1], cfg.seq) - new)]
        new = min(new, cfg.seq - given.shape[1]) if ours.max_length else new
        if new > 0:
            text = theirs.generate(given, attention_mask=torch.ones_like(given), do_sample=False, max_new_tokens=new)
            logits_TV = ours(text)[0, given.shape[1] - 1 : -1]
            chosen = logits_TV.gather(1, text[0, given.shape[1] :, None])[:, 0]
            # within the tolerance two tokens are equally likely, and either is greedy
            if not (logits_TV.amax(1) - chosen <= TOLERANCE * scale).all():
                raise ValueError("transformers generates other text than our model does")
    return error


# ------------------------------------------------------------------------------------------- reading


def load(folder: Path) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Read a checkpoint in one of the four formats, written by `save` or by transformers.

    Returns: the configuration, and the state for GPT(cfg).load_state_dict, in the precision it was saved in. What
    means nothing to such a model, dropout for one, is left out; settings the format has not (the rotary base of
    GPT-2) get the value of the paper. Without `unpadded_vocab_size` the vocabulary is taken for unpadded, and stays so:
    rows of padding that were not trained would take probability from the others.

    Raises:
        ValueError: for another architecture, a setting that has no counterpart here, or weights that are not whole.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    f, cfg = _read_config(folder)
    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        raise ValueError(f"{folder} has no model.safetensors (other formats of weights are not read)")
    found: dict[str, Tensor] = {}
    try:
        for file in files:
            found |= load_file(file)
    except SafetensorError as error:
        raise ValueError(f"{file} is damaged: {error}") from error
    found = {_current(name, f): x for name, x in found.items() if not name.endswith(BUFFERS)}
    head = found.pop("lm_head.weight", None) if cfg.tied else None
    state = {}
    for ours in _shapes(cfg):
        names, (_, join) = _names(f, ours)
        if missing := [name for name in names if name not in found]:
            raise ValueError(f"{folder}: the weights lack {missing[0]}")
        try:
            state[ours] = join([found.pop(name) for name in names], cfg.heads).contiguous()
        except RuntimeError as error:
            raise ValueError(f"{folder}: {names[0]} has another shape than config.json says: {error}") from error
    if found:
        raise ValueError(f"{folder}: the weights hold {min(found)}, which has no counterpart here")
    _check_shapes(cfg, state)
    if head is not None and not head.equal(state["embed.weight"]):
        raise ValueError(f"{folder}: config.json says that the output matrix is the embedding, and it is another")
    return cfg, state


def _current(name: str, f: Format) -> str:
    """The name that today's transformers gives a tensor."""
    if name in ("lm_head.weight", "embed_out.weight"):
        return "lm_head.weight"
    return f.prefix + name.removeprefix(f.prefix)  # a bare model, saved without its head, has no prefix


def _read_config(folder: Path) -> tuple[Format, ModelConfig]:
    try:
        kind = json.loads((folder / "config.json").read_text())["model_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder} has no config.json of a model: {error}") from error
    formats = [f for f in FORMATS if f.model_type == kind]
    if not formats:
        known = dict.fromkeys(f.model_type for f in FORMATS)
        raise ValueError(f"{folder}: model_type={kind} is not one of {', '.join(known)}")
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    rope = getattr(config, "rope_parameters", None) or {}
    nearest: list[str] | None = None
    rows, vocab = config.vocab_size, getattr(config, "unpadded_vocab_size", config.vocab_size)
    multiple = next(m for m in (128, 1, rows) if -(-vocab // m) * m == rows)
    for f in formats:
        given: dict[str, Any] = {
            "vocab": vocab,
            "vocab_multiple": multiple,
            "qk_scaling": False,
            "tied": config.tie_word_embeddings,
            "rotary_base": rope.get("rope_theta", 10000.0),
            "dropout": 0.0,
            "attn_dropout": 0.0,
            **{our: getattr(config, their) for their, our in f.dropout.items()},
            # BLOOM's configuration may leave out its training length, which was 2048 (Le Scao et al. 2022)
            **{our: getattr(config, their, 2048 if our == "seq" else None) for our, their in f.sizes.items()},
        }
        for values in itertools.product(*f.needs.values()):
            cfg = ModelConfig(**given, **dict(zip(f.needs, values, strict=True)))
            expected = {**f.fixed(cfg), "vocab_size": cfg.padded_vocab}
            has = {name: _value(config, name, want, cfg) for name, want in expected.items()}
            wrong = [f"{k}={_show(has[k])} (here {_show(want)})" for k, want in expected.items() if has[k] != want]
            if not wrong:
                return f, cfg
            if nearest is None or len(wrong) < len(nearest):
                nearest = wrong
    raise ValueError(f"{folder}: this {formats[0].name} has no counterpart here: {', '.join(nearest or [])}")


def _value(config: Any, name: str, want: Any, cfg: ModelConfig) -> Any:
    """A setting of theirs, in the words of `Format.fixed`."""
    value = getattr(config, name, None)
    if isinstance(want, dict):  # what is not said has its default
        return {key: (value or {}).get(key, want[key]) for key in want}
    if value is None and name == "n_inner":
        return 4 * cfg.hidden
    return SYNONYMS.get(value, value) if isinstance(value, str) else value


def _shapes(cfg: ModelConfig) -> dict[str, tuple[int, ...]]:
    import torch

    from model.gpt import GPT

    with torch.device("meta"):
        return {name: tuple(x.shape) for name, x in GPT(cfg).state_dict().items()}


def _check_shapes(cfg: ModelConfig, state: dict[str, Tensor]) -> None:
    shapes = _shapes(cfg)
    if wrong := sorted(shapes.keys() ^ state.keys()):
        raise ValueError(f"these are not the weights of such a model: {wrong[0]} is missing or left over")
    for name, shape in shapes.items():
        if tuple(state[name].shape) != shape:
            raise ValueError(f"{name} has the shape {tuple(state[name].shape)}, and the configuration asks for {shape}")
