"""The format of Hugging Face's BERT with its head for masked tokens, for our encoders."""

from dataclasses import replace

from model.hub_format import DUPLICATED, SEPARATE_QKV, SIZE_NAMES, Format

# BERT tells the two texts of a pair apart by a vector that is added to each token. Ours has one kind of token: both
# vectors are written as zeros.
TOKEN_TYPE_EMBEDDINGS = "bert.embeddings.token_type_embeddings.weight"

BERT = Format(
    name="BERT",
    model_type="bert",
    architecture="BertForMaskedLM",
    prefix="",
    needs={
        "objective": ("mlm",),
        "pos": ("learned",),
        "act": ("gelu",),
        "norm": ("layernorm",),
        "block": ("post-ln",),  # and then model.final_norm does nothing
        "embnorm": (False,),
        "sumnorm": (True,),
        "head_transform": ("bert",),
        "output_bias": (True,),
        "qkv_bias": (True,),
        "linear_bias": (True,),
        "tied": (True,),
    },
    sizes=SIZE_NAMES,
    fixed=lambda cfg: {
        "intermediate_size": cfg.mlp_width,
        "hidden_act": "gelu_new",
        "is_decoder": False,
        "add_cross_attention": False,
        "type_vocab_size": 2,
        "tie_word_embeddings": cfg.tied,
    },
    dropout={"hidden_dropout_prob": "dropout", "attention_probs_dropout_prob": "attn_dropout"},
    weights={
        "embed": ("bert.embeddings.word_embeddings",),
        "position": ("bert.embeddings.position_embeddings",),
        "sumnorm": ("bert.embeddings.LayerNorm",),
        "attn.qkv": tuple(f"bert.encoder.layer.{{}}.attention.self.{x}" for x in ("query", "key", "value")),
        "attn.proj": ("bert.encoder.layer.{}.attention.output.dense",),
        "norm1": ("bert.encoder.layer.{}.attention.output.LayerNorm",),
        "mlp.up": ("bert.encoder.layer.{}.intermediate.dense",),
        "mlp.down": ("bert.encoder.layer.{}.output.dense",),
        "norm2": ("bert.encoder.layer.{}.output.LayerNorm",),
        "transform.dense": ("cls.predictions.transform.dense",),
        "transform.norm": ("cls.predictions.transform.LayerNorm",),
        "output": ("cls.predictions",),
    },
    layouts={"attn.qkv": SEPARATE_QKV},
    head="cls.predictions.decoder.weight",
    constants=lambda cfg: {TOKEN_TYPE_EMBEDDINGS: (2, cfg.hidden)},
)

BERT_UNTIED = replace(
    BERT,
    name="BERT with an output matrix of its own",
    needs={**BERT.needs, "tied": (False,)},
    weights={**BERT.weights, "output": ("cls.predictions", "cls.predictions.decoder")},
    layouts={**BERT.layouts, "output": DUPLICATED},
)

ENCODERS = (BERT, BERT_UNTIED)
