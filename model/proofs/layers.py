"""Activity proofs of the factors within a layer and of the head: norms, block, precision, MLP, biases, tied matrix.

See model/proof.py. Each proof takes a freshly initialised GPT, and returns a `Proof` with what it measured. A failed
proof raises nothing.
"""

import math
from typing import Any

import torch
from torch import Tensor

from model.proofs import probe
from model.proofs.attention import ADDITIVE_SCHEMES, position_rows
from model.proofs.probe import Proof

PRECISIONS = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}


def _layernorm(x: Tensor, eps: float) -> Tensor:
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + eps).sqrt()


def _rmsnorm(x: Tensor, eps: float) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt()


def _gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def _silu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


FORMULAS = {"layernorm": _layernorm, "rmsnorm": _rmsnorm}
# Activations: of the only input of an MLP's down projection, or of the gate, by which the other input is multiplied
UNGATED = {"gelu": _gelu}
GATED = {"swiglu": _silu, "swiglu-unmatched": _silu, "geglu": _gelu}


def prove_embedding_norm(model: Any) -> Proof:
    """Prove `model.embnorm`: where it is on, token embeddings have mean 0 and variance 1 before positions are added;
    where it is off, they are unchanged."""
    cfg = model.cfg
    some = torch.arange(8, device=model.embed.weight.device) * (cfg.vocab - 1) // 7  # from the first row to the last
    tokens = some[:, None].expand(8, 2)
    x_BD = probe.embedding_sum(model, 2, tokens)[:, 0]
    x_BD = x_BD - position_rows(model, 1)[0]  # positions come after the norm
    raw_BD = probe.whole_parameter(model, "embed.weight")[some].double()
    expected = _layernorm(raw_BD, cfg.norm_eps) if cfg.embnorm else raw_BD
    # sinusoids are as large as 1, and in bf16 they round the small embeddings that they are added to
    ok = probe.is_close(x_BD, expected, 1.0 if cfg.embnorm or cfg.pos in ADDITIVE_SCHEMES else cfg.init_std)
    ok = ok and abs(float(x_BD.var() / expected.var()) - 1) < 0.1
    spread = f"token vectors enter layer 0 with mean {x_BD.mean():.1e} and variance {x_BD.var():.3g}"
    return Proof("model.embnorm", str(cfg.embnorm).lower(), ok, spread if ok else f"{spread}: not as declared")


def prove_norms(model: Any) -> Proof:
    """Prove `model.norm`, `model.sumnorm` and `model.final_norm`.

    * Each norm is applied once, and computes the configured formula.
    * The first layer reads the output of sumnorm or, without it, the sum of embeddings and positions.
    * The head reads the output of the final norm or, without it, that of the last layer.
    """
    cfg = model.cfg
    formula = FORMULAS[cfg.norm]
    inner = ("norm1",) if cfg.block == "parallel" else ("norm1", "norm2")
    sites = {"sumnorm": model.sumnorm} if cfg.sumnorm else {}
    sites |= {f"blocks.{i}.{n}": getattr(block, n, None) for i, block in enumerate(model.blocks) for n in inner}
    last = cfg.final_norm and cfg.block != "post-ln"
    if last:
        sites["norm"] = model.norm
    ends: dict[str, Tensor] = {}  # of the trunk: what the embeddings' sum becomes, layers in between, what leaves them
    calls: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in sites}
    with probe.hooks() as on:
        for name, norm in sites.items():
            if norm is not None:
                # an input that is neither centred nor of unit size, so that no formula looks like another or like none
                on(norm.register_forward_pre_hook(lambda m, args: (3 * args[0] / args[0].std() + 2,)))
                on(norm.register_forward_hook(lambda m, args, out, name=name: calls[name].append((args[0], out))))
        on(model.sumnorm.register_forward_pre_hook(lambda m, args: ends.update(sum=args[0])))
        on(model.sumnorm.register_forward_hook(lambda m, args, out: ends.update(normed=out)))
        on(model.blocks[0].register_forward_pre_hook(lambda m, args: ends.update(first=args[0])))
        on(model.blocks[-1].register_forward_hook(lambda m, args, out: ends.update(last=out)))
        final = probe.hidden_states(model, probe.increasing_tokens(model, 8))
    wrong = []
    # a norm that is left out has no output, and then the first layer cannot have read it
    entering = ends.get("normed" if cfg.sumnorm else "sum")
    if entering is None or not torch.equal(ends["first"], entering):
        wrong.append("the first layer does not read the embeddings as declared by model.sumnorm")
    for name, pairs in calls.items():
        if len(pairs) != 1:
            wrong.append(f"{name} is applied {len(pairs)} times")
        elif not probe.is_close(pairs[0][1], formula(pairs[0][0].double(), cfg.norm_eps), 1.0):
            wrong.append(f"{name} does not compute {cfg.norm}")
    if not wrong and not torch.equal(final, calls["norm"][0][1] if last else ends["last"]):
        wrong.append("what the last norm computes is not used")
    return Proof("model.norm", cfg.norm, not wrong, "; ".join(wrong) or f"{len(sites)} norms applied, formula measured")


def prove_block(model: Any) -> Proof:
    """Prove `model.block`: how a layer combines norms, attention, MLP and the residual stream.

    Hooks make attention and MLP return known values. Their inputs and the layer's output are compared with the formulas
    of the configured block.
    """
    cfg = model.cfg
    wrong = []
    for i, layer in enumerate(model.blocks):
        tensors: dict[str, Tensor] = {}
        generator = torch.Generator().manual_seed(i)
        out_BTD = {
            name: torch.randn(1, 8, cfg.hidden, generator=generator).to(model.embed.weight) for name in ("attn", "mlp")
        }
        with probe.hooks() as on:
            on(layer.register_forward_pre_hook(lambda m, a: (2 * a[0] / a[0].std() + 1, *a[1:])))
            on(layer.register_forward_hook(lambda m, a, o, tensors=tensors: tensors.update(into=a[0], out=o)))
            for name in ("attn", "mlp"):
                on(getattr(layer, name).register_forward_hook(lambda m, a, o, v=out_BTD[name]: v))
            on(layer.attn.qkv.register_forward_pre_hook(lambda m, a, tensors=tensors: tensors.update(attn=a[0])))
            on(layer.mlp.up.register_forward_pre_hook(lambda m, a, tensors=tensors: tensors.update(mlp=a[0])))
            probe.hidden_states(model, probe.increasing_tokens(model, 8))
        x, attn, mlp = tensors["into"].double(), out_BTD["attn"].double(), out_BTD["mlp"].double()

        def norm(y: Tensor) -> Tensor:
            return FORMULAS[cfg.norm](y, cfg.norm_eps)

        expected = {
            "pre-ln": {"attn": norm(x), "mlp": norm(x + attn), "out": x + attn + mlp},
            "post-ln": {"attn": x, "mlp": norm(x + attn), "out": norm(norm(x + attn) + mlp)},
            "parallel": {"attn": norm(x), "mlp": norm(x), "out": x + attn + mlp},
        }[cfg.block]
        what = {"attn": "what attention reads", "mlp": "what the MLP reads", "out": "what leaves the layer"}
        wrong += [
            f"layer {i}: {what[k]} is not that of {cfg.block}"
            for k, v in expected.items()
            if k not in tensors or not probe.is_close(tensors[k], v, float(v.abs().max()))
        ]
    return Proof("model.block", cfg.block, not wrong, "; ".join(wrong) or f"{cfg.layers} layers measured")


@torch.no_grad()
def prove_precision(model: Any) -> Proof:
    """Measure in which precision the linear layers multiply. The `value` of the returned proof is that precision:
    "bf16", "fp16", "fp32" or "fp8". The proof fails where layers differ, or no precision fits. Under tensor parallelism
    only the precision of the weights is read.

    FP8 rounds operands to 4 significant bits (e4m3) and gradients to 3 (e5m2), which changes a product of random
    numbers by 3.5 % or more. Rounding to bf16 or fp16 changes it far less.
    """
    dtypes = {p.dtype for p in model.parameters()}
    dtype = PRECISIONS[dtypes.pop()] if len(dtypes) == 1 else f"mixed {dtypes}"
    if model.tp.size > 1:  # what a layer returns is no product of this rank's alone
        return Proof("train.precision", dtype, True, f"weights are {dtype}; products of cut layers are not measured")
    sites_by_kind: dict[str, list[str]] = {}
    worst = 0.0
    for name, layer in model.blocks.named_modules():
        if not hasattr(layer, "out_features"):
            continue
        random = torch.Generator().manual_seed(0)
        x, g = (torch.randn(16, n, generator=random).to(layer.weight) for n in (layer.in_features, layer.out_features))
        with torch.enable_grad():
            y = layer(x.requires_grad_())
            # the same as grad(y, ..., g), for which torch would first load a library of symbols, half a second
            x_grad, w_grad = torch.autograd.grad((y * g).sum(), [x, layer.weight])
        y = y.double() - (0.0 if layer.bias is None else layer.bias.double())
        operands = x.detach().double(), layer.weight.double(), g.double()
        rounded = (
            probe.round_to_bits(operands[0], 4),
            probe.round_to_bits(operands[1], 4),
            probe.round_to_bits(operands[2], 3),
        )
        for what, product, of in (
            ("output", y, lambda x, w, g: x @ w.T),
            ("input gradient", x_grad, lambda x, w, g: g @ w),
            ("weight gradient", w_grad, lambda x, w, g: g.T @ x),
        ):
            error = {
                dtype: probe.relative_error(product, of(*operands)),
                "fp8": probe.relative_error(product, of(*rounded)),
            }
            nearest = min(error, key=error.__getitem__)
            worst = max(worst, error[nearest])
            kind = nearest if error[nearest] < probe.TOLERANCE else "neither"
            sites_by_kind.setdefault(kind, []).append(f"blocks.{name}: the {what}")
    value = max(sites_by_kind, key=lambda kind: (kind != "neither", len(sites_by_kind[kind])))
    wrong = [f"{at} is that of {kind}" for kind, sites in sites_by_kind.items() for at in sites if kind != value]
    measured = (
        f"{len(sites_by_kind[value])} products of linear layers, forward and backward, err by {worst:.1e} at most"
    )
    return Proof("train.precision", value, not wrong and value != "neither", "; ".join(wrong) or measured)


def prove_activation(model: Any) -> Proof:
    """Prove `model.act`: with known outputs of the up and gate projections, the down projection gets as input what the
    activation's formula gives. The inner width must be `ffn_width` or, where that is 0, the width that the activation
    implies."""
    cfg = model.cfg
    if cfg.act not in (*UNGATED, *GATED):
        return Proof(
            "model.act", cfg.act, False, "its formula is missing in UNGATED or GATED of model/proofs/layers.py"
        )
    gated = cfg.act in GATED
    expected_width = 8 * cfg.hidden // 3 // 8 * 8 if cfg.act in ("swiglu", "geglu") else 4 * cfg.hidden
    expected_width = cfg.ffn_width or expected_width
    wrong, worst = [], 0.0
    for i, block in enumerate(model.blocks):
        products: list[Tensor] = []
        F, like = block.mlp.up.out_features, block.mlp.up.weight
        h_1TF = torch.linspace(-4, 4, 8 * F, dtype=torch.float64).view(1, 8, F).to(like)
        g_1TF = h_1TF.flip(1).roll(1, 2)
        with probe.hooks() as on:
            on(block.mlp.up.register_forward_hook(lambda m, a, o, h=h_1TF: h))
            if gated and hasattr(block.mlp, "gate"):
                on(block.mlp.gate.register_forward_hook(lambda m, a, o, g=g_1TF: g))
            on(block.mlp.down.register_forward_pre_hook(lambda m, a, products=products: products.append(a[0])))
            probe.hidden_states(model, probe.increasing_tokens(model, 8))
        h, g = h_1TF.double(), g_1TF.double()
        expected = GATED[cfg.act](g) * h if gated else UNGATED[cfg.act](h)
        if len(products) != 1 or not probe.is_close(products[0], expected, 0.01):
            wrong.append(f"layer {i}: the activation is not {cfg.act}")
        else:
            worst = max(worst, float((products[0].double() - expected).abs().max()))
        if expected_width != F * model.tp.size:
            wrong.append(f"layer {i}: inner width {F * model.tp.size}, not {expected_width}")
    matched = (3 if gated else 2) * expected_width / (8 * cfg.hidden)
    measured = f"inner width {expected_width}, {matched:.3f} x GELU's weights; formula errs by {worst:.1e} at most"
    return Proof("model.act", cfg.act, not wrong, "; ".join(wrong) or measured)


def prove_biases(model: Any) -> Proof:
    """Prove `model.qkv_bias` and `model.linear_bias`: each linear layer has a bias where it is configured, and adds it
    to its output. The output matrix is left to `prove_head`."""
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
    detail = "; ".join(wrong) or "as declared, in every layer"
    return Proof("model.qkv_bias, model.linear_bias", value, not wrong, detail)


def prove_tied(model: Any) -> Proof:
    """Prove `model.tied`: logits are computed with the token embedding where the setting is true, and with a matrix of
    its own where it is false. No other parameter outside the layers has a row for each token of the vocabulary."""
    cfg = model.cfg
    tokens = probe.increasing_tokens(model, 8)
    x = model.transform(probe.hidden_states(model, tokens)).double()
    outside = (n for n, _ in model.named_parameters() if not n.startswith(("blocks.", "position.")))
    rows = {
        n: p for n in outside if (p := probe.whole_parameter(model, n)).shape[0] == cfg.padded_vocab and p.dim() == 2
    }
    output = rows.get("embed.weight" if cfg.tied else "head.weight")
    ok = rows.keys() == ({"embed.weight"} if cfg.tied else {"embed.weight", "head.weight"})
    logits = model(tokens, **probe.extent_arguments(model, tokens))
    ok = ok and output is not None and probe.is_close(logits, x @ output.double().T, 1.0)
    return Proof("model.tied", str(cfg.tied).lower(), ok, f"matrices over the vocabulary: {', '.join(rows)}")


def prove_head(model: Any) -> Proof:
    """Prove `model.head_transform` and `model.output_bias`: known vectors are transformed before the output matrix as
    configured, and a configured bias is added to the logits."""
    cfg, wrong = model.cfg, []
    x = torch.randn(8, cfg.hidden, generator=torch.Generator().manual_seed(0)).to(model.embed.weight)
    out, expected = model.transform(x), x.double()
    dense = getattr(model.transform, "dense", None)
    if cfg.head_transform != "none" and dense is not None:
        expected = expected @ dense.weight.double().T + (0.0 if dense.bias is None else dense.bias.double())
    if cfg.head_transform == "bert":
        # the product is rounded to the model's precision, and the norm enlarges what that leaves of it
        expected = FORMULAS[cfg.norm](_gelu(expected.to(x).double()).to(x).double(), cfg.norm_eps)
    if not probe.is_close(out, expected, float(expected.abs().max())):
        wrong.append(f"what the output matrix reads is not that of head_transform={cfg.head_transform}")
    names = {name for name, _ in model.named_parameters() if name.startswith(("output.", "transform."))}
    declared = {"none": set(), "linear": {"transform.dense.weight"}, "bert": {"transform.dense.weight"}}
    declared["bert"] |= {"transform.norm.weight"} | ({"transform.norm.bias"} if cfg.norm == "layernorm" else set())
    biases = {"transform.dense.bias"} if cfg.linear_bias and cfg.head_transform != "none" else set()
    if names != declared[cfg.head_transform] | biases | ({"output.bias"} if cfg.output_bias else set()):
        wrong.append(f"the head has other parameters: {', '.join(sorted(names)) or 'none'}")
    elif cfg.output_bias:
        before, logits = model.output.bias.clone(), model.project(x).double()
        model.output.bias.fill_(1.0)
        moved = model.project(x).double() - logits
        model.output.bias.copy_(before)
        if not probe.is_close(moved, torch.ones_like(moved), 1.0):
            wrong.append("the bias of the logits does nothing, or something else")
    value = f"{cfg.head_transform}, output bias {str(cfg.output_bias).lower()}"
    measured = f"{len(names)} parameters; formula errs by {float((out.double() - expected).abs().max()):.1e} at most"
    return Proof("model.head_transform, model.output_bias", value, not wrong, "; ".join(wrong) or measured)
