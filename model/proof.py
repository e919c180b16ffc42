"""Activity proofs: what a factor is declared to be is measured on the live model, before its first step.

A proof knows nothing of the classes it judges. It feeds the model's own forward pass, reads what comes out at the
places where a factor must show, and compares that with a closed form evaluated here in float64. BigScience's first
1.3B ALiBi run never handed the bias to its layers, and its first embedding-norm run decayed the norm's gain;
either would stop here, naming the layer.

The proofs hold for a model as `initialise` leaves it (norm gains 1, biases 0): run them before loading a checkpoint.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from model.shard import full_shape

# Models are typed Any here: a proof must not lean on what a class promises.
TOLERANCE = 0.02  # absolute and relative; bf16 keeps 8 bits, so a chain of a few operations errs by 1 % at most
# relative, of a gradient: of vectors, which are sums that cancel, of matrices, of those in FP8. Measured with up to 24
# layers: 0.12, 0.02 and 0.17 (16 layers); without rotary 0.3 in a matrix, with another activation 0.25 in all, in bf16
VECTOR, MATRIX, MATRIX_FP8 = 0.5, 0.1, 0.3
PRECISIONS = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}


Loss = Callable[[Tensor, Tensor | None], Tensor]


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
    """All proofs of a freshly initialised model, in its own precision, on its own device. Seconds at most.

    Where several ranks hold the model together each measures its own heads and rows; a proof passes when all of them
    do, and says what the first of them found that does not.
    """
    training = model.training
    model.eval()
    try:
        found = model.tp.everyone([f(model) for f in PROOFS])
    finally:
        model.train(training)
    return [next((p for p in proofs if not p.passed), proofs[0]) for proofs in zip(*found, strict=True)]


# ---------------------------------------------------------------------------------------------- positions


def expected_scores(pos: str, heads: int, head_dim: int, T: int, base: float) -> np.ndarray:
    """Scores [H, T, T] between equal queries and keys of all K^-1/4, up to a constant per row, in float64.

    none, learned: attention sees no position: 0. ALiBi (Press et al. 2021): -slope_h x distance, alike in both
    directions. Rotary (Su et al.
    2021): two equal vectors of squared length sqrt(K), rotated by i and j and divided by sqrt(K), have the mean of
    cos(theta_p (i - j)) over the pairs p as their product.
    """
    distance = np.arange(T)[:, None] - np.arange(T)[None, :]
    if pos == "alibi":
        # the paper's rule for any number of heads: the geometric sequence of the lower power of two, then the
        # odd members of the sequence twice as fine
        n = 1 << (heads.bit_length() - 1)
        exponents = [8 * (i + 1) / n for i in range(n)] + [4 * (2 * i + 1) / n for i in range(heads - n)]
        return np.stack([-(2.0**-e) * np.abs(distance) for e in exponents]) + _key_sizes(T)
    if pos == "rotary":
        theta = base ** (-2 * np.arange(head_dim // 2) / head_dim)
        one = np.cos(theta[:, None, None] * distance).mean(0)
        return np.repeat(one[None], heads, axis=0) * _key_sizes(T)
    return np.zeros((heads, T, T)) + _key_sizes(T)


ADDED = ("learned", "sinusoidal", "scaled-sinusoidal")  # schemes that add a row to each token's embedding


def added_rows(model: Any, T: int) -> Tensor:
    """What the declared scheme adds to the embeddings of T tokens, [T, D] in float64; zeros where nothing.

    Sinusoidal (Vaswani et al. 2017, section 3.5): coordinate d has the angle t / 10000^(2 floor(d / 2) / D), and is its
    sine for even d, its cosine for odd d.
    """
    D, pos, weight = model.cfg.hidden, model.cfg.pos, model.embed.weight
    if pos == "learned":
        table = getattr(model.position, "table", None)
        return weight.new_zeros(T, D).double() if table is None else table[:T].double()
    if pos not in ADDED:
        return weight.new_zeros(T, D).double()
    d = np.arange(D)
    angle = np.arange(T)[:, None] / 10000.0 ** (2 * (d // 2) / D)
    rows = torch.tensor(np.where(d % 2 == 0, np.sin(angle), np.cos(angle)), device=weight.device)
    return rows if pos == "sinusoidal" else rows / math.sqrt(D)


def _key_sizes(T: int) -> np.ndarray:
    """Every other key is half as long, so that a score that is not divided by sqrt(K) shows."""
    return np.where(np.arange(T) % 2, 0.5, 1.0)


def measured_scores(model: Any, T: int, prefix: int = 1) -> list[np.ndarray]:
    """The scores that each layer really used, [H, T, T] of this rank's heads per layer, relative to each query's own
    position; minus infinity for what is not seen. `prefix`: the length of the prefix, where the objective has one.

    The output of every layer's qkv projection is replaced by q = k = K^-1/4 (a score of 1, where bf16 is
    fine enough to see the smallest slope) and by values that are indicators of the key's position, so that what
    reaches the output projection is the attention matrix itself.
    """
    H, K = len(_heads(model)), model.cfg.head_dim
    weights = [np.zeros((H, T, T)) for _ in model.blocks]
    for start in range(0, T, K):
        width = min(K, T - start)

        def inject(module: nn.Module, args: Any, out: Tensor, start: int = start, width: int = width) -> Tensor:
            qkv = torch.full((1, T, 3, H, K), K**-0.25, dtype=out.dtype, device=out.device)
            qkv[:, :, 1] *= torch.tensor(_key_sizes(T)).to(qkv)[:, None, None]
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
            _hidden(model, _tokens(model, T), prefix)
    with np.errstate(divide="ignore"):
        logs = [np.log(w) for w in weights]
    return [s - np.diagonal(s, axis1=1, axis2=2)[:, :, None] for s in logs]


def position(model: Any) -> Proof:
    """The declared scheme, and no other, acts in every layer's attention and on the embeddings."""
    cfg = model.cfg
    T = min(cfg.seq, 64)
    expected = expected_scores(cfg.pos, cfg.heads, cfg.head_dim, T, cfg.rotary_base)[_heads(model)]
    expected = expected - np.diagonal(expected, axis1=1, axis2=2)[:, :, None]
    prefix = T // 2 if cfg.objective == "prefix" else 1
    seen = visible(T, prefix)
    wrong, worst = [], 0.0
    for i, score in enumerate(measured_scores(model, T, prefix)):
        if np.isfinite(score[:, ~seen]).any():
            wrong.append(f"layer {i}: attention sees the future")
        error = np.abs(score - expected)[:, seen]
        excess = error - TOLERANCE * np.abs(expected[:, seen])
        worst = max(worst, float(error.max()))
        if not (excess < TOLERANCE).all():
            heads = _heads(model).start + np.flatnonzero(~(excess < TOLERANCE).all(1))
            wrong.append(f"layer {i}, heads {heads.tolist()}: scores are not those of {cfg.pos}")
    x_BTD = _embedded(model, T)
    moved = x_BTD - x_BTD[:, :1]
    rows_TD = added_rows(model, T)
    expected_move = (rows_TD - rows_TD[:1]).expand_as(moved)
    if not expected_move.any():
        if moved.any():
            wrong.append("the embeddings depend on the position")
        elif cfg.pos in ADDED:
            wrong.append(f"the rows that {cfg.pos} adds are the same at all positions")
    else:
        share = float((moved * expected_move).sum() / expected_move.square().sum())
        # in bf16 a position is rounded to the precision of the larger embedding it is added to
        if abs(share - 1) > TOLERANCE or not _close(moved, expected_move, float(x_BTD.abs().max())):
            wrong.append(f"the embeddings do not carry the rows that {cfg.pos} adds")
    where = "nowhere" if cfg.pos == "none" else "on the embeddings" if cfg.pos in ADDED else "in the scores"
    size = f"{cfg.layers} layers x {cfg.heads} heads x {T} positions"
    good = f"acts {where}; the scores of {size} err by {worst:.1e} at most"
    return Proof("model.pos", cfg.pos, not wrong, "; ".join(wrong) or good)


# ---------------------------------------------------------------------------------------------- objective and scores


def visible(T: int, prefix: int) -> np.ndarray:
    """Which keys each query sees, [T, T]: the past, and the prefix; one of a single token is causal."""
    at = np.arange(T)
    return (at <= at[:, None]) | (at < prefix)


def objective(model: Any) -> Proof:
    """What the tokens of a sequence see, and which of them are predicted.

    Where the last norm is made to return zeros, each prediction costs log V. Then one position at a time is made to
    cost more, and the loss must rise by its share, or not at all where nothing is to be predicted.
    """
    cfg, T = model.cfg, min(model.cfg.seq, 8)
    declared = T // 2 if cfg.objective == "prefix" else 1
    wrong, counts = [], []
    for prefix in sorted({1, declared}):
        for i, score in enumerate(measured_scores(model, T, prefix)):
            if not (np.isfinite(score) == visible(T, prefix)).all():
                wrong.append(f"layer {i}: a prefix of {prefix} of {T} tokens is not what is seen both ways")
        tokens = _tokens(model, T + 1)
        matrix = _whole(model, "embed.weight" if model.head is None else "head.weight")
        other = matrix[min(T + 2, cfg.vocab - 1)]
        y_D = 30 * other / other.square().sum()
        logits = matrix.double() @ y_D.double()
        rest = range(prefix - 1, T)
        for t in range(T):
            with hooks() as on:

                def one(m: Any, args: Any, out: Tensor, t: int = t, y_D: Tensor = y_D) -> Tensor:
                    out = torch.zeros_like(out)
                    out[:, t] = y_D
                    return out

                on(model.norm.register_forward_hook(one))
                loss = float(model.loss(tokens, **_prefixes(model, tokens, prefix)))
            base = math.log(cfg.padded_vocab)
            more = float(logits.logsumexp(0) - logits[tokens[0, t + 1]]) - base
            expected = base + (more / len(rest) if t in rest else 0)
            if abs(loss - expected) > TOLERANCE * base:
                wrong.append(f"position {t} of {T}, prefix {prefix}: the loss is {loss:.3f} and not {expected:.3f}")
        counts.append(f"{len(rest)} of {T} predicted after a prefix of {prefix}")
    return Proof("model.objective", cfg.objective, not wrong, "; ".join(wrong) or "; ".join(counts))


def qk_scaling(model: Any) -> Proof:
    """In layer l, a score of l - 1/2 times the largest fp16 number is used as it is: so it was divided by l at least.

    What is multiplied back shows in the proof of positions: scores of other layers would be too small there.
    """
    cfg, dtype = model.cfg, model.embed.weight.dtype
    value = str(cfg.qk_scaling).lower()
    if dtype != torch.float16:
        said = f"{str(dtype).removeprefix('torch.')} does not need it"
        return Proof("model.qk_scaling", value, not cfg.qk_scaling, said + ": it is idle" * cfg.qk_scaling)
    H, K = len(_heads(model)), cfg.head_dim
    whole = []
    with hooks() as on:
        for number, layer in enumerate(model.blocks, start=1):
            size = math.sqrt((number - 0.5) * torch.finfo(dtype).max / math.sqrt(K))

            def inject(m: Any, args: Any, out: Tensor, size: float = size) -> Tensor:
                qkv = torch.full((*out.shape[:2], 3, H, K), size, dtype=dtype, device=out.device)
                qkv[:, :, 2] = 1
                return qkv.view_as(out)

            on(layer.attn.qkv.register_forward_hook(inject))
            on(layer.attn.proj.register_forward_pre_hook(lambda m, args: whole.append(bool((args[0] == 1).all()))))
            on(layer.attn.register_forward_hook(lambda m, args, out: torch.ones_like(out)))
        _hidden(model, _tokens(model, 1))
    lost = [i + 1 for i, kept in enumerate(whole) if not kept]
    if cfg.qk_scaling:
        said = f"scores up to {cfg.layers - 0.5:g} x 65504 are used in {cfg.layers} layers"
        return Proof("model.qk_scaling", value, not lost, said if not lost else f"scores overflow in layers {lost}")
    # the kernels of a GPU keep scores in fp32, where nothing overflows and nothing can be told
    off = lost == list(range(2, cfg.layers + 1)) or model.embed.weight.is_cuda
    said = "scores overflow as those of fp16 do" if off else f"only the scores of layers {lost} overflow"
    return Proof("model.qk_scaling", value, off, said)


# ---------------------------------------------------------------------------------------------- norms


def embedding_norm(model: Any) -> Proof:
    """With it, token embeddings enter the first layer with mean 0 and variance 1; without it, as they are."""
    cfg = model.cfg
    some = torch.arange(8, device=model.embed.weight.device) * (cfg.vocab - 1) // 7  # from the first row to the last
    tokens = some[:, None].expand(8, 2)
    x_BD = _embedded(model, 2, tokens)[:, 0]
    x_BD = x_BD - added_rows(model, 1)[0]  # positions come after the norm
    raw_BD = _whole(model, "embed.weight")[some].double()
    expected = _layernorm(raw_BD, cfg.norm_eps) if cfg.embnorm else raw_BD
    # sinusoids are as large as 1, and in bf16 they round the small embeddings that they are added to
    ok = _close(x_BD, expected, 1.0 if cfg.embnorm or cfg.pos in ADDED else cfg.init_std)
    ok = ok and abs(float(x_BD.var() / expected.var()) - 1) < 0.1
    spread = f"token vectors enter layer 0 with mean {x_BD.mean():.1e} and variance {x_BD.var():.3g}"
    return Proof("model.embnorm", str(cfg.embnorm).lower(), ok, spread if ok else f"{spread}: not as declared")


def norms(model: Any) -> Proof:
    """Each norm is applied once and computes the declared formula, and the last one is what the head reads."""
    cfg = model.cfg
    formula = FORMULAS[cfg.norm]
    inner = ("norm1",) if cfg.block == "parallel" else ("norm1", "norm2")
    sites = {f"blocks.{i}.{n}": getattr(block, n, None) for i, block in enumerate(model.blocks) for n in inner}
    if cfg.block != "post-ln":
        sites["norm"] = model.norm
    made: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in sites}
    with hooks() as on:
        for name, norm in sites.items():
            if norm is not None:
                # an input that is neither centred nor of unit size, so that no formula looks like another or like none
                on(norm.register_forward_pre_hook(lambda m, args: (3 * args[0] / args[0].std() + 2,)))
                on(norm.register_forward_hook(lambda m, args, out, name=name: made[name].append((args[0], out))))
        final = _hidden(model, _tokens(model, 8))
    wrong = []
    for name, seen in made.items():
        if len(seen) != 1:
            wrong.append(f"{name} is applied {len(seen)} times")
        elif not _close(seen[0][1], formula(seen[0][0].double(), cfg.norm_eps), 1.0):
            wrong.append(f"{name} does not compute {cfg.norm}")
    if not wrong and not torch.equal(final, list(made.values())[-1][0][1]):
        wrong.append("what the last norm computes is not used")
    return Proof("model.norm", cfg.norm, not wrong, "; ".join(wrong) or f"{len(sites)} norms applied, formula measured")


def block(model: Any) -> Proof:
    """How a layer puts norms, attention, MLP and residual stream together.

    Attention and MLP are made to return known values; what each of them reads and what leaves the layer is compared
    with the scheme written out.
    """
    cfg = model.cfg
    wrong = []
    for i, layer in enumerate(model.blocks):
        seen: dict[str, Tensor] = {}
        generator = torch.Generator().manual_seed(i)
        out_BTD = {
            name: torch.randn(1, 8, cfg.hidden, generator=generator).to(model.embed.weight) for name in ("attn", "mlp")
        }
        with hooks() as on:
            on(layer.register_forward_pre_hook(lambda m, a: (2 * a[0] / a[0].std() + 1, *a[1:])))
            on(layer.register_forward_hook(lambda m, a, o, seen=seen: seen.update(into=a[0], out=o)))
            for name in ("attn", "mlp"):
                on(getattr(layer, name).register_forward_hook(lambda m, a, o, v=out_BTD[name]: v))
            on(layer.attn.qkv.register_forward_pre_hook(lambda m, a, seen=seen: seen.update(attn=a[0])))
            on(layer.mlp.up.register_forward_pre_hook(lambda m, a, seen=seen: seen.update(mlp=a[0])))
            _hidden(model, _tokens(model, 8))
        x, attn, mlp = seen["into"].double(), out_BTD["attn"].double(), out_BTD["mlp"].double()

        def norm(y: Tensor) -> Tensor:
            return FORMULAS[cfg.norm](y, cfg.norm_eps)

        expected = {
            "pre-ln": {"attn": norm(x), "mlp": norm(x + attn), "out": x + attn + mlp},
            "post-ln": {"attn": x, "mlp": norm(x + attn), "out": norm(norm(x + attn) + mlp)},
            "parallel": {"attn": norm(x), "mlp": norm(x), "out": x + attn + mlp},
        }[cfg.block]
        what = {"attn": "what attention reads", "mlp": "what the MLP reads", "out": "what leaves the layer"}
        wrong += [f"layer {i}: {what[k]} is not that of {cfg.block}" for k, v in expected.items()
                  if k not in seen or not _close(seen[k], v, float(v.abs().max()))]  # fmt: skip
    return Proof("model.block", cfg.block, not wrong, "; ".join(wrong) or f"{cfg.layers} layers measured")


# ---------------------------------------------------------------------------------------------- precision


@torch.no_grad()
def precision(model: Any) -> Proof:
    """What the blocks' linear layers compute with: the precision of their weights, or FP8. The value is as measured.

    FP8 rounds the operands to 4 significant bits (e4m3), gradients to 3 (e5m2); scaled by powers of two, all but the
    smallest keep those. That moves a product of random numbers by 3.5 % and more, as the others' rounding never does.
    """
    dtypes = {p.dtype for p in model.parameters()}
    own = PRECISIONS[dtypes.pop()] if len(dtypes) == 1 else f"mixed {dtypes}"
    if model.tp.size > 1:  # what a layer returns is no product of this rank's alone
        return Proof("train.precision", own, True, f"weights are {own}; products of cut layers are not measured")
    found: dict[str, list[str]] = {}
    worst = 0.0
    for name, layer in model.blocks.named_modules():
        if not hasattr(layer, "out_features"):
            continue
        random = torch.Generator().manual_seed(0)
        x, g = (torch.randn(16, n, generator=random).to(layer.weight) for n in (layer.in_features, layer.out_features))
        with torch.enable_grad():
            y = layer(x.requires_grad_())
            x_grad, w_grad = torch.autograd.grad(y, [x, layer.weight], g)
        y = y.double() - (0.0 if layer.bias is None else layer.bias.double())
        whole = x.detach().double(), layer.weight.double(), g.double()
        short = _rounded(whole[0], 4), _rounded(whole[1], 4), _rounded(whole[2], 3)
        for what, product, of in (
            ("output", y, lambda x, w, g: x @ w.T),
            ("input gradient", x_grad, lambda x, w, g: g @ w),
            ("weight gradient", w_grad, lambda x, w, g: g.T @ x),
        ):
            error = {own: _relative(product, of(*whole)), "fp8": _relative(product, of(*short))}
            nearest = min(error, key=error.__getitem__)
            worst = max(worst, error[nearest])
            kind = nearest if error[nearest] < TOLERANCE else "neither"
            found.setdefault(kind, []).append(f"blocks.{name}: the {what}")
    value = max(found, key=lambda kind: (kind != "neither", len(found[kind])))
    wrong = [f"{at} is that of {kind}" for kind, sites in found.items() for at in sites if kind != value]
    good = f"{len(found[value])} products of linear layers, forward and backward, err by {worst:.1e} at most"
    return Proof("train.precision", value, not wrong and value != "neither", "; ".join(wrong) or good)


# ---------------------------------------------------------------------------------------------- MLP and head


def activation(model: Any) -> Proof:
    """Known pre-activations go in; what reaches the down projection is compared with the formula. The width counts."""
    cfg = model.cfg
    gated = cfg.act != "gelu"
    expected_width = 8 * cfg.hidden // 3 // 8 * 8 if cfg.act in ("swiglu", "geglu") else 4 * cfg.hidden
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
            _hidden(model, _tokens(model, 8))
        h, g = h_1TF.double(), g_1TF.double()
        expected = {"gelu": _gelu(h), "geglu": _gelu(g) * h}.get(cfg.act, g * torch.sigmoid(g) * h)
        if len(seen) != 1 or not _close(seen[0], expected, 0.01):
            wrong.append(f"layer {i}: the activation is not {cfg.act}")
        else:
            worst = max(worst, float((seen[0].double() - expected).abs().max()))
        if expected_width != F * model.tp.size:
            wrong.append(f"layer {i}: inner width {F * model.tp.size}, not {expected_width}")
    matched = (3 if gated else 2) * expected_width / (8 * cfg.hidden)
    good = f"inner width {expected_width}, {matched:.3f} x GELU's weights; formula errs by {worst:.1e} at most"
    return Proof("model.act", cfg.act, not wrong, "; ".join(wrong) or good)


def biases(model: Any) -> Proof:
    """A bias that is declared moves what its layer computes; where none is declared there is none."""
    cfg = model.cfg
    wrong = []
    for name, module in model.named_modules():
        if hasattr(module, "out_features") and name != "head":
            declared = cfg.qkv_bias if name.endswith(".qkv") else cfg.linear_bias
            bias = getattr(module, "bias", None)
            if (bias is not None) != declared:
                wrong.append(f"{name} has {'a' if bias is not None else 'no'} bias")
            elif bias is not None:
                x = torch.zeros(1, module.in_features).to(bias)
                before = bias.clone()
                bias.fill_(1.0)
                if not bool((module(x) == 1).all()):
                    wrong.append(f"the bias of {name} does nothing")
                bias.copy_(before)
    value = f"qkv {str(cfg.qkv_bias).lower()}, linear {str(cfg.linear_bias).lower()}"
    said = "; ".join(wrong) or "as declared, in every layer"
    return Proof("model.qkv_bias, model.linear_bias", value, not wrong, said)


def tied(model: Any) -> Proof:
    """Logits are the product with the declared matrix: the input embedding, or one of their own."""
    cfg = model.cfg
    tokens = _tokens(model, 8)
    x = _hidden(model, tokens).double()
    outside = (n for n, _ in model.named_parameters() if not n.startswith(("blocks.", "position.")))
    rows = {n: p for n in outside if (p := _whole(model, n)).shape[0] == cfg.padded_vocab}
    output = rows.get("embed.weight" if cfg.tied else "head.weight")
    ok = rows.keys() == ({"embed.weight"} if cfg.tied else {"embed.weight", "head.weight"})
    ok = ok and output is not None and _close(model(tokens, **_prefixes(model, tokens)), x @ output.double().T, 1.0)
    return Proof("model.tied", str(cfg.tied).lower(), ok, f"matrices over the vocabulary: {', '.join(rows)}")


def dropout(model: Any) -> Proof:
    """Known values go in at every place that may drop; in training the declared share of them comes out as zero and
    the rest enlarged by 1 / (1 - p), in evaluation all come out as they were."""
    cfg, T = model.cfg, min(model.cfg.seq, 64)
    H, K = len(_heads(model)), cfg.head_dim
    tokens = _tokens(model, T).expand(8, T)
    into: list[Tensor] = []  # what enters each layer
    added: list[Tensor] = []  # what each layer adds when attention and MLP return ones
    heads: list[Tensor] = []  # what each head returns when all values are 1: 1, unless probabilities are dropped

    def ones(module: nn.Module, args: Any, out: Tensor) -> Tensor:
        return torch.ones_like(out)

    def values(module: nn.Module, args: Any, out: Tensor) -> Tensor:
        qkv = out.view(*out.shape[:2], 3, H, K).clone()
        qkv[:, :, 2] = 1
        return qkv.view_as(out)

    def measure() -> dict[str, float]:
        for seen in (into, added, heads):
            seen.clear()
        with hooks() as on:
            for layer in model.blocks:
                on(layer.register_forward_pre_hook(lambda m, a: into.append(a[0])))
                on(layer.attn.qkv.register_forward_hook(values))
                on(layer.attn.proj.register_forward_pre_hook(lambda m, a: heads.append(a[0].double())))
                on(layer.attn.register_forward_hook(ones))
                on(layer.mlp.register_forward_hook(ones))
                on(layer.drop.register_forward_hook(lambda m, a, out: added.append(out.double())))
            _hidden(model, tokens)
        survivors = [float((a > 0).double().mean()) for a in added] or [1.0]
        sizes = [float(a[a > 0].mean()) for a in added] or [1.0]
        # With the first token's single probability dropped, its head returns nothing.
        first = [float((h[:, 0].view(8, H, K)[:, :, 0] == 0).double().mean()) for h in heads]
        return {
            "fewest": min(survivors), "most": max(survivors), "size": sum(sizes) / len(sizes),
            "sites": len(added), "first": sum(first) / len(first),
            "spread": max(float((h - 1).abs().mean()) for h in heads),
        }  # fmt: skip

    off, plain = measure(), into[0]
    model.train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # the share that is dropped is then the same at every launch
        on, dropped = measure(), into[0]
    model.eval()
    on["embedding"] = float(((dropped == 0) & (plain != 0)).double().mean())
    p, q = cfg.dropout, cfg.attn_dropout
    wrong = []
    if on["sites"] != 2 * cfg.layers:
        wrong.append(f"{on['sites']} places drop what is added, not {2 * cfg.layers}")
    if abs(on["embedding"] - p) > 0.05 or not (abs(on["fewest"] - 1 + p) < 0.05 and abs(on["most"] - 1 + p) < 0.05):
        wrong.append(f"{on['embedding']:.2f} of the embeddings and {1 - on['fewest']:.2f} of what is added are dropped")
    if abs(on["size"] - 1 / (1 - p)) > TOLERANCE:
        wrong.append(f"what is left is enlarged {on['size']:.2f} times")
    if abs(on["first"] - q) > 4 * math.sqrt(max(q * (1 - q), 1e-9) / (8 * H * cfg.layers)) + 1e-6:
        wrong.append(f"{on['first']:.2f} of the attention probabilities are dropped")
    if (on["spread"] > TOLERANCE) != (q > 0):
        wrong.append("attention drops" if q == 0 else "attention drops nothing")
    if off["fewest"] < 1 or off["spread"] > TOLERANCE:
        wrong.append("something is dropped in evaluation")
    value = f"{p:g}, attention {q:g}"
    good = (
        f"measured {on['embedding']:.3f} of embeddings, {1 - on['fewest']:.3f} of additions, "
        f"{on['first']:.3f} of attention"
    )
    return Proof("model.dropout, model.attn_dropout", value, not wrong, "; ".join(wrong) or good)


def compiled(model: Any, graph: Loss, written: Loss, rows_bS: Tensor, prefix_b: Tensor | None) -> Proof:
    """What trains is the compiled graph; the other proofs judge the layers as they are written.

    Gradients are compared, of weights that are as large as after training: at the first step neither they nor losses
    depend much on positions. The batch is written out row by row, which takes no more memory than the graph.

    Args:
        graph, written: the mean loss of a batch from both, of tokens [b, T + 1] and the lengths of their prefixes.
    """
    names, params = zip(*model.named_parameters(), strict=True)
    before = [p.detach().clone() for p in params]
    counts = [rows_bS.shape[1] - 1] * len(rows_bS) if prefix_b is None else (rows_bS.shape[1] - prefix_b).tolist()

    def gradients(loss: Tensor) -> list[Tensor]:  # enlarged, or fp16 would lose the smallest
        return [g.float() for g in torch.autograd.grad(1024 * loss, params, materialize_grads=True)]

    try:
        with torch.no_grad():
            for i, p in enumerate(params):
                random = torch.randn(p.shape, generator=torch.Generator().manual_seed(i)).to(p)
                p.copy_(random * p.shape[-1] ** -0.5 if p.dim() > 1 else 0.2 * random + (names[i].endswith("weight")))
        ours = gradients(graph(rows_bS, prefix_b))
        theirs = [torch.zeros_like(g) for g in ours]
        for i, count in enumerate(counts):
            prefix = None if prefix_b is None else prefix_b[i : i + 1]
            for total, g in zip(theirs, gradients(written(rows_bS[i : i + 1], prefix)), strict=True):
                total += g * (count / sum(counts))
    finally:
        with torch.no_grad():
            for p, old in zip(params, before, strict=True):
                p.copy_(old)
    most = {1: VECTOR, 2: MATRIX_FP8 if precision(model).value == "fp8" else MATRIX}
    errors = {name: _relative(a, b.double()) for name, a, b in zip(names, ours, theirs, strict=True)}
    dims = {name: min(p.dim(), 2) for name, p in zip(names, params, strict=True)}
    wrong = [f"{name} by {error:.2g}" for name, error in errors.items() if not error < most[dims[name]]]
    matrices = [error for name, error in errors.items() if dims[name] == 2]
    said = f"gradients of {len(matrices)} matrices differ from those of what is written by {max(matrices):.1e} at most"
    return Proof("layout.compile", "compiled", not wrong, "; ".join(("gradients differ", *wrong)) if wrong else said)


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
        rows.append({"name": name, "shape": full_shape(name, p.shape, model.tp.size), "decayed": decayed})
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


def _heads(model: Any) -> range:
    """The heads that this rank computes."""
    H = model.cfg.heads // model.tp.size
    return range(model.tp.rank * H, (model.tp.rank + 1) * H)


def _whole(model: Any, name: str) -> Tensor:
    """A parameter, whatever the rank holds of it. All ranks call it together."""
    return model.tp.gather(name, model.get_parameter(name))


def _tokens(model: Any, T: int) -> Tensor:
    return (torch.arange(T, device=model.embed.weight.device) % model.cfg.vocab)[None]


def _prefixes(model: Any, tokens: Tensor, prefix: int = 1) -> dict[str, Tensor]:
    """What the model must be told beside the tokens; a prefix of one token is the same as none."""
    if model.cfg.objective != "prefix":
        return {}
    return {"prefix_B": torch.full((len(tokens),), prefix, device=tokens.device)}


def _hidden(model: Any, tokens: Tensor, prefix: int = 1) -> Tensor:
    return model.hidden(tokens, **_prefixes(model, tokens, prefix))


def _embedded(model: Any, T: int, tokens: Tensor | None = None) -> Tensor:
    """What enters the first layer, [B, T, D] in float64; by default for one token repeated at T positions."""
    seen: list[Tensor] = []
    with hooks() as on:
        on(model.blocks[0].register_forward_pre_hook(lambda m, args: seen.append(args[0])))
        zeros = torch.zeros(1, T, dtype=torch.long, device=model.embed.weight.device)
        _hidden(model, zeros if tokens is None else tokens)
    return seen[0].double()


def _close(x: Tensor, expected: Tensor, scale: float) -> bool:
    """Equal to TOLERANCE, relative to the larger of `scale` and the expected value."""
    if x.shape != expected.shape:
        return False
    return bool(((x.double() - expected.double()).abs() <= TOLERANCE * (scale + expected.double().abs())).all())


def _rounded(x: Tensor, bits: int) -> Tensor:
    """To so many significant bits, ties to even."""
    mantissa, exponent = torch.frexp(x)
    return torch.ldexp((mantissa * 2**bits).round() / 2**bits, exponent)


def _relative(x: Tensor, exact: Tensor) -> float:
    return float((x.double() - exact).norm() / exact.norm())


def _layernorm(x: Tensor, eps: float) -> Tensor:
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + eps).sqrt()


def _rmsnorm(x: Tensor, eps: float) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt()


def _gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


PROOFS = (position, objective, qk_scaling, embedding_norm, norms, block, precision, activation, biases, tied, dropout)
FORMULAS = {"layernorm": _layernorm, "rmsnorm": _rmsnorm}
