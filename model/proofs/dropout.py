"""The activity proof of dropout. See model/proof.py."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from model.proofs import probe
from model.proofs.probe import Proof

SEQUENCES = 8  # sequences, so that enough is dropped to tell a share


class DropoutMeasurement(NamedTuple):
    """The measured effect of dropout on known values: ones, which hooks put in place of the outputs of attention and
    MLP, and of the value vectors in attention."""

    first_input: Tensor  # the input of the first layer
    places: int  # how many dropout layers act on what is added to the residual stream
    least_kept: float  # the smallest share of ones that one of these dropout layers keeps
    most_kept: float  # the largest such share
    size: float  # the mean size of the values that are kept, which were 1 before
    attention: float  # the share of the attention probabilities that is dropped
    deviation: float  # the mean distance from 1 of the heads' outputs, which are 1 without dropout


def measure_dropout(model: Any) -> DropoutMeasurement:
    """Measure the effect of dropout in a forward pass of the model, in its present mode (training or evaluation)."""
    cfg, T = model.cfg, min(model.cfg.seq, 64)
    H, K = len(probe.heads_of_rank(model)), cfg.head_dim
    inputs: list[Tensor] = []  # of each layer
    added: list[Tensor] = []  # what each layer adds to the residual stream
    heads: list[Tensor] = []  # what each head returns

    def return_ones(module: nn.Module, args: Any, out: Tensor) -> Tensor:
        return torch.ones_like(out)

    def values(module: nn.Module, args: Any, out: Tensor) -> Tensor:
        qkv = out.view(*out.shape[:2], 3, H, K).clone()
        qkv[:, :, 2] = 1
        return qkv.view_as(out)

    with probe.hooks() as on:
        for layer in model.blocks:
            on(layer.register_forward_pre_hook(lambda m, a: inputs.append(a[0])))
            on(layer.attn.qkv.register_forward_hook(values))
            on(layer.attn.proj.register_forward_pre_hook(lambda m, a: heads.append(a[0].double())))
            on(layer.attn.register_forward_hook(return_ones))
            on(layer.mlp.register_forward_hook(return_ones))
            on(layer.drop.register_forward_hook(lambda m, a, out: added.append(out.double())))
        probe.hidden_states(model, probe.increasing_tokens(model, T).expand(SEQUENCES, T))
    kept = [float((a > 0).double().mean()) for a in added] or [1.0]
    sizes = [float(a[a > 0].mean()) for a in added] or [1.0]
    # the first token has a single probability: where it is dropped, its head returns nothing
    first = [float((h[:, 0].view(SEQUENCES, H, K)[:, :, 0] == 0).double().mean()) for h in heads]
    return DropoutMeasurement(
        inputs[0],
        len(added),
        min(kept),
        max(kept),
        sum(sizes) / len(sizes),
        sum(first) / len(first),
        max(float((h - 1).abs().mean()) for h in heads),
    )


def prove_dropout(model: Any) -> Proof:
    """Prove `model.dropout` and `model.attn_dropout`. In training, each dropout sets its configured share p of known
    values to zero and multiplies the rest by 1 / (1 - p). In evaluation no value changes."""
    cfg = model.cfg
    off = measure_dropout(model)
    model.train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # the share that is dropped is then the same at every launch
        on = measure_dropout(model)
    model.eval()
    of_embeddings = float(((on.first_input == 0) & (off.first_input != 0)).double().mean())
    p, q = cfg.dropout, cfg.attn_dropout
    wrong = []
    if on.places != 2 * cfg.layers:
        wrong.append(f"{on.places} places drop what is added, not {2 * cfg.layers}")
    if abs(of_embeddings - p) > 0.05 or not (abs(on.least_kept - 1 + p) < 0.05 and abs(on.most_kept - 1 + p) < 0.05):
        wrong.append(f"{of_embeddings:.2f} of the embeddings and {1 - on.least_kept:.2f} of what is added are dropped")
    if abs(on.size - 1 / (1 - p)) > probe.TOLERANCE:
        wrong.append(f"what is left is enlarged {on.size:.2f} times")
    # probabilities of first tokens: 4 standard errors are allowed
    single = SEQUENCES * len(probe.heads_of_rank(model)) * cfg.layers
    if abs(on.attention - q) > 4 * math.sqrt(max(q * (1 - q), 1e-9) / single) + 1e-6:
        wrong.append(f"{on.attention:.2f} of the attention probabilities are dropped")
    if (on.deviation > probe.TOLERANCE) != (q > 0):
        wrong.append("attention drops" if q == 0 else "attention drops nothing")
    if off.least_kept < 1 or off.deviation > probe.TOLERANCE:
        wrong.append("something is dropped in evaluation")
    value = f"{p:g}, attention {q:g}"
    measured = (
        f"measured {of_embeddings:.3f} of embeddings, {1 - on.least_kept:.3f} of additions, "
        f"{on.attention:.3f} of attention"
    )
    return Proof("model.dropout, model.attn_dropout", value, not wrong, "; ".join(wrong) or measured)
