"""Activity proofs: what a factor is declared to be is measured on the live model, before its first step.

A proof knows nothing of the classes it judges. It feeds the model's own forward pass, reads what comes out at the
places where a factor must show, and compares that with a closed form evaluated here in float64. BigScience's first
1.3B ALiBi run never handed the bias to its layers, and its first embedding-norm run decayed the norm's gain;
either would stop here, naming the layer.

The proofs hold for a model as `initialise` leaves it (norm gains 1, biases 0): run them before loading a checkpoint.
"""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

# Models are typed Any here: a proof must not lean on what a class promises.
TOLERANCE = 0.02  # absolute and relative; bf16 keeps 8 bits, so a chain of a few operations errs by 1 % at most


class InactiveFactor(RuntimeError):
    """A factor does not act as declared."""


@dataclass(frozen=True)
class Proof:
    factor: str  # the configuration key
    value: str  # as declared
    passed: bool
    detail: str  # what was measured

    def json(self) -> dict[str, Any]:
        return asdict(self)


def require(proofs: Iterable[Proof]) -> None:
    """Raises:
    InactiveFactor: naming every proof that failed.
    """
    failed = [f"{p.factor}={p.value}: {p.detail}" for p in proofs if not p.passed]
    if failed:
        listed = "\n  ".join(failed)
        raise InactiveFactor(f"declared but not active, so the run would answer another question:\n  {listed}")


@torch.no_grad()
def prove(model: Any) -> list[Proof]:
    """All proofs of a freshly initialised model, in its own precision, on its own device. Seconds at most."""
    return [position(model), embedding_norm(model), norms(model), activation(model), tied(model)]


# ---------------------------------------------------------------------------------------------- positions


def expected_scores(pos: str, heads: int, head_dim: int, T: int, base: float) -> np.ndarray:
    """Scores [H, T, T] between equal queries and keys of all K^-1/4, up to a constant per row, in float64.

    none, learned: attention sees no position: 0. ALiBi (Press et al. 2021): -slope_h x distance. Rotary (Su et al.
    2021): two equal vectors of squared length sqrt(K), rotated by i and j and divided by sqrt(K), have the mean of
    cos(theta_p (i - j)) over the pairs p as their product.
    """
    distance = np.arange(T)[:, None] - np.arange(T)[None, :]
    if pos == "alibi":
        # the paper's rule for any number of heads: the geometric sequence of the lower power of two, then the
        # odd members of the sequence twice as fine
        n = 1 << (heads.bit_length() - 1)
        exponents = [8 * (i + 1) / n for i in range(n)] + [4 * (2 * i + 1) / n for i in range(heads - n)]
        return np.stack([-(2.0**-e) * distance for e in exponents])
    if pos == "rotary":
        theta = base ** (-2 * np.arange(head_dim // 2) / head_dim)
        one = np.cos(theta[:, None, None] * distance).mean(0)
        return np.repeat(one[None], heads, axis=0)
    return np.zeros((heads, T, T))


def measured_scores(model: Any, T: int) -> list[np.ndarray]:
    """The scores that each layer really used, [H, T, T] per layer, relative to each query's own position.

    The output of every layer's qkv projection is replaced by q = k = K^-1/4 (a score of 1, where bf16 is
    fine enough to see the smallest slope) and by values that are indicators of the key's position, so that what
    reaches the output projection is the attention matrix itself.
    """
    cfg = model.cfg
    H, K = cfg.heads, cfg.head_dim
    weights = [np.zeros((H, T, T)) for _ in model.blocks]
    for start in range(0, T, K):
        width = min(K, T - start)

        def inject(module: nn.Module, args: Any, out: Tensor, start: int = start, width: int = width) -> Tensor:
            qkv = torch.full((1, T, 3, H, K), K**-0.25, dtype=out.dtype, device=out.device)
            qkv[:, :, 2] = 0
            for j in range(width):
                qkv[:, start + j, 2, :, j] = 1
            return qkv.view(1, T, 3 * H * K)

        with hooks() as on:
            for layer, block in zip(weights, model.blocks, strict=True):

                def read(m: Any, args: Any, seen: np.ndarray = layer[:, :, start : start + width]) -> None:
                    out = args[0].view(T, H, K).double().cpu().numpy()
                    seen[:] = out.transpose(1, 0, 2)[:, :, : seen.shape[2]]

                on(block.attn.qkv.register_forward_hook(inject))
                on(block.attn.proj.register_forward_pre_hook(read))
            model.hidden(_tokens(model, T))
    with np.errstate(divide="ignore"):
        logs = [np.log(w) for w in weights]
    return [s - np.diagonal(s, axis1=1, axis2=2)[:, :, None] for s in logs]


def position(model: Any) -> Proof:
    """The declared scheme, and no other, acts in every layer's attention and on the embeddings."""
    cfg = model.cfg
    T = min(cfg.seq, 64)
    expected = expected_scores(cfg.pos, cfg.heads, cfg.head_dim, T, cfg.rotary_base)
    expected = expected - np.diagonal(expected, axis1=1, axis2=2)[:, :, None]
    seen = np.tril(np.ones((T, T), bool))
    wrong, worst = [], 0.0
    for i, score in enumerate(measured_scores(model, T)):
        if np.isfinite(score[:, ~seen]).any():
            wrong.append(f"layer {i}: attention sees the future")
        error = np.abs(score - expected)[:, seen]
        excess = error - TOLERANCE * np.abs(expected[:, seen])
        worst = max(worst, float(error.max()))
        if not (excess < TOLERANCE).all():
            heads = np.flatnonzero(~(excess < TOLERANCE).all(1))
            wrong.append(f"layer {i}, heads {heads.tolist()}: scores are not those of {cfg.pos}")
    x_BTD = _embedded(model, T)
    moved = x_BTD - x_BTD[:, :1]
    if cfg.pos == "learned":
        table = model.position.table.double()
        expected_move = (table[:T] - table[:1]).expand_as(moved)
        share = float((moved * expected_move).sum() / expected_move.square().sum())
        # in bf16 a position is rounded to the precision of the larger embedding it is added to
        if abs(share - 1) > TOLERANCE or not _close(moved, expected_move, float(x_BTD.abs().max())):
            wrong.append("the embeddings do not carry the learned table")
        elif not moved[:, 1:].abs().amax(-1).min() > cfg.init_std:
            wrong.append("the learned table is the same at different positions")
    elif moved.abs().max() > 0:
        wrong.append("the embeddings depend on the position")
    where = {"none": "nowhere", "learned": "on the embeddings"}.get(cfg.pos, "in the scores")
    size = f"{cfg.layers} layers x {cfg.heads} heads x {T} positions"
    good = f"acts {where}; the scores of {size} err by {worst:.1e} at most"
    return Proof("model.pos", cfg.pos, not wrong, "; ".join(wrong) or good)


# ---------------------------------------------------------------------------------------------- norms


def embedding_norm(model: Any) -> Proof:
    """With it, token embeddings enter the first layer with mean 0 and variance 1; without it, as they are."""
    cfg = model.cfg
    tokens = torch.arange(8, device=model.embed.weight.device)[:, None].expand(8, 2)
    x_BD = _embedded(model, 2, tokens)[:, 0]
    if cfg.pos == "learned":  # positions come after the norm
        x_BD = x_BD - model.position.table[0].double()
    raw_BD = model.embed.weight[:8].double()
    expected = _layernorm(raw_BD, cfg.norm_eps) if cfg.embnorm else raw_BD
    ok = _close(x_BD, expected, 1.0 if cfg.embnorm else cfg.init_std)
    spread = f"token vectors enter layer 0 with mean {x_BD.mean():.1e} and variance {x_BD.var():.3g}"
    return Proof("model.embnorm", str(cfg.embnorm).lower(), ok, spread if ok else f"{spread}: not as declared")


def norms(model: Any) -> Proof:
    """Each norm is applied once, computes the declared formula, and its output is what the next matrix reads."""
    cfg = model.cfg
    formula = {"layernorm": _layernorm, "rmsnorm": _rmsnorm}[cfg.norm]
    sites: list[tuple[str, nn.Module, list[nn.Module]]] = [("norm", model.norm, [])]
    for i, block in enumerate(model.blocks):
        first = [block.mlp.up] + ([block.mlp.gate] if hasattr(block.mlp, "gate") else [])
        sites += [(f"blocks.{i}.norm1", block.norm1, [block.attn.qkv]), (f"blocks.{i}.norm2", block.norm2, first)]
    wrong = []
    made: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name, _, _ in sites}
    reads: dict[nn.Module, Tensor] = {}
    with hooks() as on:
        for name, norm, readers in sites:
            # an input that is neither centred nor of unit size, so that no formula looks like another or like none
            on(norm.register_forward_pre_hook(lambda m, args: (3 * args[0] / args[0].std() + 2,)))
            on(norm.register_forward_hook(lambda m, args, out, name=name: made[name].append((args[0], out))))
            for reader in readers:
                on(reader.register_forward_pre_hook(lambda m, args: reads.__setitem__(m, args[0])))
        final = model.hidden(_tokens(model, 8))
    for name, _, readers in sites:
        if len(made[name]) != 1:
            wrong.append(f"{name} is applied {len(made[name])} times")
            continue
        x, y = made[name][0]
        if not _close(y, formula(x.double(), cfg.norm_eps), 1.0):
            wrong.append(f"{name} does not compute {cfg.norm}")
        read = [reads.get(r) for r in readers] or [final]
        if not all(r is not None and torch.equal(r, y) for r in read):
            wrong.append(f"what {name} computes is not used")
    return Proof("model.norm", cfg.norm, not wrong, "; ".join(wrong) or f"{len(sites)} norms applied, formula measured")


# ---------------------------------------------------------------------------------------------- MLP and head


def activation(model: Any) -> Proof:
    """Known pre-activations go in; what reaches the down projection is compared with the formula. The width counts."""
    cfg = model.cfg
    gated = cfg.act != "gelu"
    expected_width = 8 * cfg.hidden // 3 // 8 * 8 if cfg.act == "swiglu" else 4 * cfg.hidden
    wrong, worst = [], 0.0
    for i, block in enumerate(model.blocks):
        seen: list[Tensor] = []
        F, like = block.mlp.up.out_features, block.mlp.up.weight
        h_1TF = torch.linspace(-4, 4, 8 * F, dtype=torch.float64).view(1, 8, F).to(like)
        g_1TF = h_1TF.flip(1).roll(1, 2)
        with hooks() as on:
            on(block.mlp.up.register_forward_hook(lambda m, a, o, h=h_1TF: h))
            if gated and hasattr(block.mlp, "gate"):
                on(block.mlp.gate.register_forward_hook(lambda m, a, o, g=g_1TF: g))
            on(block.mlp.down.register_forward_pre_hook(lambda m, a, seen=seen: seen.append(a[0])))
            model.hidden(_tokens(model, 8))
        h, g = h_1TF.double(), g_1TF.double()
        if gated:
            expected = g * torch.sigmoid(g) * h
        else:
            expected = 0.5 * h * (1 + torch.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))
        if len(seen) != 1 or not _close(seen[0], expected, 1.0):
            wrong.append(f"layer {i}: the activation is not {cfg.act}")
        else:
            worst = max(worst, float((seen[0].double() - expected).abs().max()))
        if expected_width != F:
            wrong.append(f"layer {i}: inner width {F}, not {expected_width}")
    matched = (3 if gated else 2) * expected_width / (8 * cfg.hidden)
    good = f"inner width {expected_width}, {matched:.3f} x GELU's weights; formula errs by {worst:.1e} at most"
    return Proof("model.act", cfg.act, not wrong, "; ".join(wrong) or good)


def tied(model: Any) -> Proof:
    """Logits are the product with the input embedding, and there is no second matrix."""
    tokens = _tokens(model, 8)
    x = model.hidden(tokens).double()
    ok = _close(model(tokens), x @ model.embed.weight.double().T, 1.0)
    outside = ((n, p) for n, p in model.named_parameters() if not n.startswith("blocks."))
    rows = [n for n, p in outside if p.shape[0] == model.cfg.padded_vocab]
    ok = ok and rows == ["embed.weight"]
    return Proof("model.tied", "true", ok, f"output matrix: {', '.join(rows)}")


def parameter_groups(model: Any, groups: Iterable[dict[str, Any]]) -> tuple[list[dict[str, Any]], Proof]:
    """The audit: which weight decay every parameter really gets.

    Args:
        groups: as the optimizer holds them: {"params": the model's own parameters, "weight_decay": float}.

    Returns:
        A row {"name", "shape", "decayed"} for each parameter, and the proof that matrices decay, that biases and
        norm gains do not (whatever their class), and that each parameter is optimized exactly once.
    """
    decay: dict[int, list[float]] = {}
    for group in groups:
        for p in group["params"]:
            decay.setdefault(id(p), []).append(group["weight_decay"])
    rows, wrong = [], []
    for name, p in model.named_parameters():
        held = decay.pop(id(p), [])
        if len(held) != 1:
            wrong.append(f"{name} is optimized {len(held)} times")
        decayed = any(w > 0 for w in held)
        module = name.rpartition(".")[0]
        vector = name.endswith(".bias") or "norm" in module.rpartition(".")[2] or p.dim() < 2
        if decayed and vector:
            wrong.append(f"{name} is decayed")
        if not decayed and not vector:
            wrong.append(f"{name} is not decayed")
        rows.append({"name": name, "shape": list(p.shape), "decayed": decayed})
    if decay:
        wrong.append(f"{len(decay)} optimized tensors are not the model's")
    n = sum(r["decayed"] for r in rows)
    good = f"{n} matrices decayed, {len(rows) - n} biases and norm gains not"
    return rows, Proof("train.weight_decay", "matrices only", not wrong, "; ".join(wrong) or good)


# ---------------------------------------------------------------------------------------------- measuring


@contextmanager
def hooks() -> Iterator[Any]:
    """Collects hook handles and removes them all, whatever happens."""
    handles: list[Any] = []
    try:
        yield handles.append
    finally:
        for handle in handles:
            handle.remove()


def _tokens(model: Any, T: int) -> Tensor:
    return (torch.arange(T, device=model.embed.weight.device) % model.cfg.vocab)[None]


def _embedded(model: Any, T: int, tokens: Tensor | None = None) -> Tensor:
    """What enters the first layer, [B, T, D] in float64; by default for one token repeated at T positions."""
    seen: list[Tensor] = []
    with hooks() as on:
        on(model.blocks[0].register_forward_pre_hook(lambda m, args: seen.append(args[0])))
        zeros = torch.zeros(1, T, dtype=torch.long, device=model.embed.weight.device)
        model.hidden(zeros if tokens is None else tokens)
    return seen[0].double()


def _close(x: Tensor, expected: Tensor, scale: float) -> bool:
    """Equal to TOLERANCE, relative to the larger of `scale` and the expected value."""
    if x.shape != expected.shape:
        return False
    return bool(((x.double() - expected.double()).abs() <= TOLERANCE * (scale + expected.double().abs())).all())


def _layernorm(x: Tensor, eps: float) -> Tensor:
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + eps).sqrt()


def _rmsnorm(x: Tensor, eps: float) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt()
