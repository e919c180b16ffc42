"""Activity proofs: measure on the live model, before its first step, that each factor acts as it is configured.

A proof does not use the code that it checks. It feeds known tensors into the model's forward pass, and reads the
tensors that the factor should change. It compares them with the factor's formula, computed here in float64. In
BigScience's first 1.3B ALiBi run the bias never reached the layers, and its first embedding-norm run decayed the norm's
gain. Both would fail here, with the layer's name.

The proofs hold for a freshly initialised model (norm gains 1, biases 0): run them before loading a checkpoint.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from model.fp8 import fp8_weight_copies
from model.objective import Batch
from model.proofs import probe
from model.proofs.attention import prove_objective, prove_position, prove_qk_scaling
from model.proofs.dropout import prove_dropout
from model.proofs.layers import (
    prove_activation,
    prove_biases,
    prove_block,
    prove_embedding_norm,
    prove_head,
    prove_norms,
    prove_precision,
    prove_tied,
)
from model.proofs.probe import Proof
from model.shard import full_shape

PROOFS = (
    prove_position,
    prove_objective,
    prove_qk_scaling,
    prove_embedding_norm,
    prove_norms,
    prove_block,
    prove_precision,
    prove_activation,
    prove_biases,
    prove_tied,
    prove_head,
    prove_dropout,
)
# Largest relative error of a gradient from the compiled graph: of vectors, which are sums that cancel, of matrices, and
# of matrices in FP8. Measured with up to 24 layers: 0.12, 0.02 and 0.17 (16 layers). A graph with a fault has more: in
# bf16, one without rotary 0.3 in a matrix, one with another activation 0.25 in all.
VECTOR_TOLERANCE, MATRIX_TOLERANCE, MATRIX_TOLERANCE_FP8 = 0.5, 0.1, 0.3
Loss = Callable[[Batch], Tensor]


class InactiveFactor(RuntimeError):
    """A factor, such as model.pos, does not act in the model as it is configured."""


def raise_if_failed(proofs: Iterable[Proof]) -> None:
    """Raise InactiveFactor if any of the proofs failed; the message names the failed ones."""
    failed = [f"{p.factor}={p.value}: {p.detail}" for p in proofs if not p.passed]
    if failed:
        listed = "\n  ".join(failed)
        raise InactiveFactor(f"declared but not active, so the run would answer another question:\n  {listed}")


@torch.no_grad()
def prove_factors(model: Any) -> list[Proof]:
    """Run all proofs on a freshly initialised model (model.gpt.GPT), in its own precision and on its own device. Takes
    seconds at most.

    Returns one `Proof` for each factor. Under tensor parallelism all ranks call this function together, and each
    measures its own heads and rows; the result is then that of the first rank whose proof failed, else that of the
    group's first rank.
    """
    training = model.training
    model.eval()
    try:
        with fp8_weight_copies(model):  # as it trains
            proofs_here = [f(model) for f in PROOFS]
        by_rank = model.tp.gather_objects(proofs_here)
    finally:
        model.train(training)
    return [next((p for p in proofs if not p.passed), proofs[0]) for proofs in zip(*by_rank, strict=True)]


def prove_compiled_graph(model: Any, graph: Loss, eager: Loss, batch: Batch) -> Proof:
    """Prove that the compiled graph, which is trained, has the gradients of the eager model, on which the other proofs
    are made. Under tensor parallelism all ranks call this function together.

    During the comparison the weights are random, of about the size of trained ones: with initial weights, gradients
    hardly depend on positions. The eager loss is computed sequence by sequence, so that it needs no more memory than
    the graph.

    Args:
        model: the eager model.
        graph: computes the mean loss of a batch with the compiled graph.
        eager: computes the mean loss of a batch with the eager model.
        batch: sequences of random tokens.
    """
    names, params = zip(*model.named_parameters(), strict=True)
    saved = [p.detach().clone() for p in params]

    def gradients(loss: Tensor) -> tuple[Tensor, ...]:  # enlarged, or fp16 would lose the smallest
        return torch.autograd.grad(1024 * loss, params, materialize_grads=True)

    try:
        with torch.no_grad():
            for i, p in enumerate(params):
                generator = torch.Generator(p.device).manual_seed(i)
                random = torch.randn(p.shape, generator=generator, device=p.device)
                p.copy_(random * p.shape[-1] ** -0.5 if p.dim() > 1 else 0.2 * random + (names[i].endswith("weight")))
        ours = gradients(graph(batch))
        theirs = [torch.zeros_like(g, dtype=torch.float32) for g in ours]
        for row in batch.split(1):
            for total, g in zip(theirs, gradients(eager(row)), strict=True):
                total += g.float() * (row.prediction_count / batch.prediction_count)
    finally:
        with torch.no_grad():
            for p, value in zip(params, saved, strict=True):
                p.copy_(value)
    most = {1: VECTOR_TOLERANCE, 2: MATRIX_TOLERANCE_FP8 if prove_precision(model).value == "fp8" else MATRIX_TOLERANCE}
    # a single number is left out: its gradient may cancel to nothing
    pairs = zip(names, ours, theirs, strict=True)
    errors = {name: probe.relative_error(a, b.double()) for name, a, b in pairs if a.numel() > 1}
    dims = {name: min(p.dim(), 2) for name, p in zip(names, params, strict=True)}
    differing = [f"{name} by {error:.2g}" for name, error in errors.items() if not error < most[dims[name]]]
    matrices = [error for name, error in errors.items() if dims[name] == 2]
    measured = (
        f"gradients of {len(matrices)} matrices differ from those of what is written by {max(matrices):.1e} at most"
    )
    proof = Proof(
        "layout.compile",
        "compiled",
        not differing,
        "; ".join(("gradients differ", *differing)) if differing else measured,
    )
    return next((p for (p,) in model.tp.gather_objects([proof]) if not p.passed), proof)


def prove_weight_decay(
    model: Any, groups: Iterable[dict[str, Any]], decay_embnorm: bool = False
) -> tuple[list[dict[str, Any]], Proof]:
    """Prove that the optimizer applies weight decay to matrices, and not to biases and norm gains, and that it updates
    each parameter exactly once.

    Args:
        model: the model that is trained.
        groups: the optimizer's parameter groups, each {"params": parameters of the model, "weight_decay": float}.
        decay_embnorm: whether the gain of the embedding norm is to be decayed, as train.decay_embnorm asks.

    Returns:
        ([{"name", "shape" (undivided by tensor parallelism), "decayed" (bool)} for each parameter], the proof).
    """
    decay: dict[int, list[float]] = {}
    for group in groups:
        for p in group["params"]:
            decay.setdefault(id(p), []).append(group["weight_decay"])
    rows, wrong = [], []
    for name, p in model.named_parameters():
        decays = decay.pop(id(p), [])
        if len(decays) != 1:
            wrong.append(f"{name} is optimized {len(decays)} times")
        decayed = any(w > 0 for w in decays)
        module = name.rpartition(".")[0]
        vector = name.endswith(".bias") or "norm" in module.rpartition(".")[2] or p.dim() < 2
        intended = not vector or (decay_embnorm and name == "embnorm.weight")
        if decayed != intended:
            wrong.append(f"{name} is decayed" if decayed else f"{name} is not decayed")
        rows.append({"name": name, "shape": full_shape(name, p.shape, model.tp.size), "decayed": decayed})
    if decay:
        wrong.append(f"{len(decay)} optimized tensors are not the model's")
    n = sum(r["decayed"] for r in rows)
    if decay_embnorm:
        value = "matrices and the embedding norm's gain"
        measured = f"{n - 1} matrices and the embedding norm's gain decayed, {len(rows) - n} other vectors not"
    else:
        value = "matrices only"
        measured = f"{n} matrices decayed, {len(rows) - n} biases and norm gains not"
    return rows, Proof("train.weight_decay", value, not wrong, "; ".join(wrong) or measured)
