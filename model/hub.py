"""Converts models to Hugging Face's formats and back. Only this file uses Hugging Face's model classes.

| our settings                                        | format    |
|-----------------------------------------------------|-----------|
| learned, GELU, LayerNorm                            | GPT-2     |
| ALiBi, norm of the embeddings, GELU, LayerNorm      | BLOOM     |
| rotary, GELU, LayerNorm                             | GPT-NeoX  |
| rotary, SwiGLU or GEGLU, RMSNorm, no biases or all  | Llama     |
| an encoder: learned, GELU, LayerNorm, post-LN,      | BERT      |
| model.sumnorm, output_bias and head_transform=bert  |           |

Decoders have pre-LN blocks; the output matrix may be tied or not. Other combinations of settings are refused.
model/hub_decoders.py and hub_encoders.py define each format. The embedding keeps its padding rows: in config.json,
`vocab_size` is the padded size, and `unpadded_vocab_size` that of the tokenizer.
"""

import itertools
import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

from torch import Tensor

from model.config import ModelConfig
from model.hub_decoders import DECODERS
from model.hub_encoders import ENCODERS, TOKEN_TYPE_EMBEDDINGS
from model.hub_format import UNCHANGED, Format, Layout

# Of logits in fp32, relative to the largest. Measured on a trained nano run: 5e-7, but 9e-4 with GELU by erf in place
# of tanh, and 3e-4 with norm_eps off by a fifth. 24 layers of large random weights: 5e-5.
TOLERANCE = 1e-4
NEW_TOKENS = 16  # that a verified decoder generates at most; untuned
SYNONYMS = {"gelu_pytorch_tanh": "gelu_new", "gelu_fast": "gelu_new", "swish": "silu"}  # one function, many names
BUFFERS = (".attn.bias", ".attn.masked_bias", ".attention.bias", ".attention.masked_bias", ".rotary_emb.inv_freq")


FORMATS = (*DECODERS, *ENCODERS)
# Settings that may have any value in every format, besides its `sizes`.
UNRESTRICTED = (
    "vocab",
    "vocab_multiple",
    "ffn_width",
    "mask_rate",
    "qk_scaling",
    "rotary_base",
    "tied",
    "dropout",
    "attn_dropout",
)


def matching_format(cfg: ModelConfig) -> Format:
    """The Hugging Face format in which a model of this configuration can be written. Raises ValueError where none
    computes the same; the message names the settings that differ from the nearest format."""
    for field in fields(cfg):
        if not any(field.name in (*f.needs, *f.sizes, *UNRESTRICTED) for f in FORMATS):
            raise ValueError(f"model.{field.name} is not known to the export (model/hub.py)")
    different = {f.name: [k for k, values in f.needs.items() if getattr(cfg, k) not in values] for f in FORMATS}
    nearest = min(
        FORMATS, key=lambda f: ("objective" in different[f.name], "pos" in different[f.name], len(different[f.name]))
    )
    if wrong := different[nearest.name]:
        why = ", ".join(
            f"model.{k}={_setting_text(getattr(cfg, k))} (it has {' or '.join(map(_setting_text, nearest.needs[k]))})"
            for k in wrong
        )
        raise ValueError(f"no architecture of Hugging Face is this model: the nearest, {nearest.name}, has not {why}")
    return nearest


def _setting_text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _stored_names(f: Format, ours: str) -> tuple[list[str], Layout]:
    """How one of our tensors is stored in the format `f`. `ours`: the tensor's name in our model's state_dict. Raises
    ValueError where the format has no such tensor.

    Returns:
        (the names of Hugging Face's tensors that hold it, the `Layout` that converts our tensor to theirs and back).
    """
    if ours == "head.weight":
        return [f.head], UNCHANGED
    parts = re.fullmatch(r"(?:blocks\.(\d+)\.)?(.+)\.(weight|bias|table)", ours)
    if not parts or parts[2] not in f.weights:
        raise ValueError(f"{ours} has no counterpart in {f.name}")
    layer, module, kind = parts.groups()
    kind = "weight" if kind == "table" else kind
    return [f"{f.prefix}{x.format(layer)}.{kind}" for x in f.weights[module]], f.layouts.get(module, UNCHANGED)


# ------------------------------------------------------------------------------------------- writing


def save_checkpoint(
    cfg: ModelConfig,
    state: dict[str, Tensor],
    to: Path,
    eod: int,
    origin: dict[str, Any] | None = None,
    pad: int | None = None,
) -> None:
    """Write a model as a Hugging Face checkpoint: config.json and model.safetensors; of a decoder also
    generation_config.json.

    Args:
        cfg: the model's configuration.
        state: model.state_dict(), in the precision in which it is to be stored.
        to: a folder that exists.
        eod: the id of the token that begins and ends a document.
        origin: {name: value} about the run that trained the model, stored in config.json under "trained_by".
        pad: for an encoder, the id of the token that pads shorter texts; None where its tokenizer has none.

    Raises:
        ValueError: Hugging Face has no architecture that computes this model, or `state` does not fit `cfg`.
    """
    f = matching_format(cfg)
    _check_shapes(cfg, state)
    import transformers
    from safetensors.torch import save_file
    from torch import zeros

    theirs: dict[str, Tensor] = {}
    for ours, tensor in state.items():
        names, (split, _) = _stored_names(f, ours)
        parts = [part.contiguous().clone() for part in split(tensor.detach().cpu(), cfg.heads)]
        theirs |= dict(zip(names, parts, strict=True))
    dtype = state["embed.weight"].dtype
    theirs |= {name: zeros(shape, dtype=dtype) for name, shape in f.constants(cfg).items()}
    settings: dict[str, Any] = {
        **{their: getattr(cfg, our) for our, their in f.sizes.items()},
        **{their: getattr(cfg, our) for their, our in f.dropout.items()},
        **f.fixed(cfg),
        "tie_word_embeddings": cfg.tied,
        "vocab_size": cfg.padded_vocab,
        "unpadded_vocab_size": cfg.vocab,
        **({"bos_token_id": eod, "eos_token_id": eod} if f.causal else {"pad_token_id": pad}),
        "architectures": [f.architecture],
        "dtype": dtype,
    }
    if origin:
        settings["trained_by"] = {"name": "megahour", **origin}
    config = transformers.CONFIG_MAPPING[f.model_type](**settings)
    config.save_pretrained(to)
    if f.causal:
        transformers.GenerationConfig(bos_token_id=eod, eos_token_id=eod, pad_token_id=eod).save_pretrained(to)
    save_file(theirs, to / "model.safetensors", metadata={"format": "pt"})
    # safetensors lets nobody else read what it writes
    (to / "model.safetensors").chmod((to / "config.json").stat().st_mode)


def verify_checkpoint(folder: Path, cfg: ModelConfig, state: dict[str, Tensor], tokens_BT: Tensor) -> float:
    """Load a Hugging Face checkpoint with transformers, and compare it with our model in fp32.

    The logits of `tokens_BT` are compared, those of the vocabulary's padding rows included. A decoder also generates up
    to NEW_TOKENS tokens greedily, and our model must choose the same tokens.

    Args:
        folder: the checkpoint, as `save_checkpoint` wrote it.
        cfg: the configuration of our model.
        state: the weights of our model.
        tokens_BT: token ids of the texts to compare on.

    Returns:
        The largest difference of logits, relative to the largest logit (or to 1, where that is smaller).

    Raises:
        ValueError: the difference is above TOLERANCE, a generated token differs, or a tensor is missing or left over.
    """
    import torch
    import transformers

    from model.gpt import GPT

    causal = matching_format(cfg).causal
    loader: Any = transformers.AutoModelForCausalLM if causal else transformers.AutoModelForMaskedLM
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
        if not causal:
            return error
        prompt = tokens_BT[:1, : max(1, min(tokens_BT.shape[1], cfg.seq) - NEW_TOKENS)]
        new = min(NEW_TOKENS, cfg.seq - prompt.shape[1]) if ours.max_length else NEW_TOKENS
        if new > 0:
            text = theirs.generate(prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=new)
            logits_TV = ours(text)[0, prompt.shape[1] - 1 : -1]
            chosen = logits_TV.gather(1, text[0, prompt.shape[1] :, None])[:, 0]
            # within the tolerance two tokens are equally likely, and either is greedy
            if not (logits_TV.amax(1) - chosen <= TOLERANCE * scale).all():
                raise ValueError("transformers generates other text than our model does")
    return error


# ------------------------------------------------------------------------------------------- reading


def load_checkpoint(folder: Path) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Read a Hugging Face checkpoint of a format in the table of model/hub.py, written by `save_checkpoint` or by
    transformers.

    Settings of ours that the format lacks, such as the rotary base in GPT-2, get the usual value. Without
    `unpadded_vocab_size` in config.json the vocabulary counts as unpadded.

    Args:
        folder: holds config.json and model.safetensors.

    Returns:
        (the configuration, the state for GPT(cfg).load_state_dict in the precision in which it was saved).

    Raises:
        ValueError: the architecture or a setting has no counterpart here, or the weights are damaged or do not fit.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    f, cfg = _read_config(folder)
    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        raise ValueError(f"{folder} has no model.safetensors (other formats of weights are not read)")
    tensors: dict[str, Tensor] = {}
    try:
        for file in files:
            tensors |= load_file(file)
    except SafetensorError as error:
        raise ValueError(f"{file} is damaged: {error}") from error
    tensors = {_current_name(name, f): x for name, x in tensors.items() if not name.endswith(BUFFERS)}
    head = tensors.pop(f.head, None) if cfg.tied else None
    constants = {name: tensors.pop(name) for name in f.constants(cfg) if name in tensors}
    state = {}
    for ours in _shapes(cfg):
        names, (_, join) = _stored_names(f, ours)
        if missing := [name for name in names if name not in tensors]:
            raise ValueError(f"{folder}: the weights lack {missing[0]}")
        try:
            state[ours] = join([tensors.pop(name) for name in names], cfg.heads).contiguous()
        except RuntimeError as error:
            raise ValueError(f"{folder}: {names[0]} has another shape than config.json says: {error}") from error
    if tensors:
        raise ValueError(f"{folder}: the weights hold {min(tensors)}, which has no counterpart here")
    _check_shapes(cfg, state)
    if TOKEN_TYPE_EMBEDDINGS in constants:  # a text alone is of the first kind
        state["position.table"] = state["position.table"] + constants[TOKEN_TYPE_EMBEDDINGS][0]
    if head is not None and not head.equal(state["embed.weight"]):
        raise ValueError(f"{folder}: config.json says that the output matrix is the embedding, and it is another")
    return cfg, state


def _current_name(name: str, f: Format) -> str:
    """The present name, in the format `f`, of a tensor that a checkpoint names `name`. It differs where an older
    version of transformers wrote the checkpoint, or the model was saved without its head."""
    if name in (f.head, "lm_head.weight", "embed_out.weight"):
        return f.head
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
        settings: dict[str, Any] = {
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
            cfg = ModelConfig(**{**settings, **dict(zip(f.needs, values, strict=True))})
            expected = {**f.fixed(cfg), "vocab_size": cfg.padded_vocab}
            has = {name: _comparable_value(config, name, want, cfg) for name, want in expected.items()}
            wrong = [
                f"{k}={_setting_text(has[k])} (here {_setting_text(want)})"
                for k, want in expected.items()
                if has[k] != want
            ]
            if not wrong:
                return f, cfg
            if nearest is None or len(wrong) < len(nearest):
                nearest = wrong
    raise ValueError(f"{folder}: this {formats[0].name} has no counterpart here: {', '.join(nearest or [])}")


def _comparable_value(config: Any, name: str, want: Any, cfg: ModelConfig) -> Any:
    """The value of a setting in a Hugging Face configuration, converted so that it can be compared with that in
    `Format.fixed`.

    Args:
        config: the configuration, as transformers reads it.
        name: Hugging Face's name of the setting.
        want: the value from `Format.fixed`. For a dictionary, keys that `config` lacks are taken from `want`.
        cfg: our configuration.
    """
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
