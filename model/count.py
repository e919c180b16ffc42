"""The number of a model's parameters and FLOPs, by formula and without torch. A test compares them with real models."""

from model.config import ModelConfig


def count_parameters(cfg: ModelConfig, tp: int = 1) -> int:
    """The number of trainable parameters of a model. With `tp` > 1, the number on each rank of a tensor parallel group
    of `tp` ranks (model/shard.py). A tied output matrix counts once."""
    D, F = cfg.hidden, cfg.mlp_width
    norm = 2 * D if cfg.norm == "layernorm" else D
    attention = (4 * D * D + 3 * D * cfg.qkv_bias) // tp + D * cfg.linear_bias
    matrices = cfg.mlp_matrix_count
    mlp = (matrices * D * F + (matrices - 1) * F * cfg.linear_bias) // tp + D * cfg.linear_bias
    position = {"learned": cfg.seq * D, "scaled-sinusoidal": 1}.get(cfg.pos, 0)
    embeddings = cfg.padded_vocab * D * (1 if cfg.tied else 2) // tp + 2 * D * cfg.embnorm
    norms = {"pre-ln": 2 * cfg.layers, "post-ln": 2 * cfg.layers, "parallel": cfg.layers}[cfg.block] + cfg.sumnorm
    norms += cfg.final_norm and cfg.block != "post-ln"
    transform = {"none": 0, "linear": D * D + D * cfg.linear_bias, "bert": D * D + D * cfg.linear_bias + norm}
    head = transform[cfg.head_transform] + cfg.output_bias * cfg.padded_vocab // tp
    return embeddings + position + cfg.layers * (attention + mlp) + norms * norm + head


def flops_per_token(cfg: ModelConfig) -> int:
    """Floating-point operations to train on one token, forward and backward, without recomputation.

    Megatron's formula: 6 x (weights of all matrix products + attention). Attention counts in full, not halved for the
    causal mask. With GELU that is 72 L h^2 (1 + s/6h + V/12hL) for L layers, width h, sequences of s tokens and V
    vocabulary rows.
    """
    D = cfg.hidden
    matrices = cfg.mlp_matrix_count
    layer = 4 * D * D + matrices * D * cfg.mlp_width + 2 * cfg.seq * D
    projected = cfg.predicted_per_sequence / cfg.seq  # share of the outputs that meet the output matrix
    transform = 0 if cfg.head_transform == "none" else D * D
    return round(6 * (cfg.layers * layer + projected * (cfg.padded_vocab * D + transform)))
