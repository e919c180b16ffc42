"""The formats of Hugging Face's GPT-2, BLOOM, GPT-NeoX and Llama, for our decoders."""

from dataclasses import replace

from model.hub_format import QKV_BY_HEAD, SEPARATE_QKV, SIZE_NAMES, TRANSPOSED, Format

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
        "n_inner": cfg.mlp_width,
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
    layouts={"attn.qkv": QKV_BY_HEAD},
)

NEOX = Format(
    name="GPT-NeoX",
    model_type="gpt_neox",
    architecture="GPTNeoXForCausalLM",
    prefix="gpt_neox.",
    needs={"pos": ("rotary",), "act": ("gelu",), "norm": ("layernorm",), "embnorm": (False,), **BIASED},
    sizes=SIZE_NAMES,
    fixed=lambda cfg: {
        "intermediate_size": cfg.mlp_width,
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
    layouts={"attn.qkv": QKV_BY_HEAD},
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
    sizes=SIZE_NAMES | {"norm_eps": "rms_norm_eps"},
    fixed=lambda cfg: {
        "intermediate_size": cfg.mlp_width,
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
    layouts={"attn.qkv": SEPARATE_QKV},
)

LLAMA_BIASED = replace(LLAMA, name="Llama with biases", needs={**LLAMA.needs, **BIASED})

DECODERS = (GPT2, BLOOM, NEOX, LLAMA, LLAMA_BIASED)
