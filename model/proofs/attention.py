"""Activity proofs of the factors that act in attention: the position scheme, the objective with its mask, QK layer
scaling."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from model.objective import SpecialTokens
from model.position import POSITIONS
from model.proofs import probe
from model.proofs.probe import Proof

MIN_POSITIONS = 64  # positions at which scores are measured, at least, where sequences are that long; untuned
MAX_CHANGE = 1e-4  # the largest relative change of outputs by tokens that they do not see; measured on CPUs, FP8 too: 0


def expected_scores(model: Any, pos: str, T: int) -> np.ndarray:
    """The attention scores of known queries and keys, by the formula of position scheme `pos`: [H, T, T] in float64,
    for all H heads, T queries and T keys.

    Every component of the queries and keys is K^-1/4, for head dimension K, and keys at odd positions are halved
    (`_key_factors`). Without positions the score q . k / sqrt(K) is then 1 for keys at even positions, and 1/2 at odd
    ones.

    * none, learned, sinusoidal, scaled-sinusoidal: these scores are unchanged.
    * ALiBi (Press et al. 2021) adds -slope_h |i - j|, for the query at position i and the key at j.
    * Rotary (Su et al. 2021) multiplies by the mean of cos(theta_p (i - j)) over the K/2 rotated pairs p of components.

    A new formula may leave out a constant per query, which softmax removes. It gives minus infinity where its scheme
    hides a key. `model`: its configuration is read, and the trained numbers of `model.position`.
    """
    heads, head_dim = model.cfg.heads, model.cfg.head_dim
    distance = np.arange(T)[:, None] - np.arange(T)[None, :]
    if pos == "alibi":
        # the paper's rule for any number of heads: the geometric sequence of the lower power of two, then the
        # odd members of the sequence twice as fine
        n = 1 << (heads.bit_length() - 1)
        exponents = [8 * (i + 1) / n for i in range(n)] + [4 * (2 * i + 1) / n for i in range(heads - n)]
        return np.stack([-(2.0**-e) * np.abs(distance) for e in exponents]) + _key_factors(T)
    if pos == "rotary":
        theta = model.cfg.rotary_base ** (-2 * np.arange(head_dim // 2) / head_dim)
        one = np.cos(theta[:, None, None] * distance).mean(0)
        return np.repeat(one[None], heads, axis=0) * _key_factors(T)
    return np.zeros((heads, T, T)) + _key_factors(T)


ADDITIVE_SCHEMES = ("learned", "sinusoidal", "scaled-sinusoidal")  # schemes that add a row to each token's embedding


def position_rows(model: Any, T: int) -> Tensor:
    """The rows that the configured position scheme adds to the embeddings of T tokens, [T, D] in float64; zeros for a
    scheme that adds none.

    * Learned: the first T rows of the model's table.
    * Sinusoidal (Vaswani et al. 2017, section 3.5): coordinate d at position t is the sine, for even d, or the cosine,
      for odd d, of t / 10000^(2 floor(d / 2) / D).
    * Scaled-sinusoidal: the sinusoidal rows divided by sqrt(D), the initial value of the trained factor.
    """
    D, pos, weight = model.cfg.hidden, model.cfg.pos, model.embed.weight
    if pos == "learned":
        table = getattr(model.position, "table", None)
        return weight.new_zeros(T, D).double() if table is None else table[:T].double()
    if pos not in ADDITIVE_SCHEMES:
        return weight.new_zeros(T, D).double()
    d = np.arange(D)
    angle = np.arange(T)[:, None] / 10000.0 ** (2 * (d // 2) / D)
    rows = torch.tensor(np.where(d % 2 == 0, np.sin(angle), np.cos(angle)), device=weight.device)
    return rows if pos == "sinusoidal" else rows / math.sqrt(D)


def _key_factors(T: int) -> np.ndarray:
    """The factors by which the known keys at T positions are multiplied: 1 at even positions, 0.5 at odd ones. With
    equal keys, a missing division by sqrt(K) would change all scores by the same amount, which softmax removes."""
    return np.where(np.arange(T) % 2, 0.5, 1.0)


def measured_scores(model: Any, T: int, extent: int = 1) -> list[np.ndarray]:
    """Measure the attention scores that each layer computes for the known queries and keys of `expected_scores`.

    Hooks replace the output of every layer's qkv projection by these queries and keys. Each value becomes the one-hot
    vector of its position, so that the input of the output projection is the attention matrix. The scores are about 1,
    so that bf16 resolves even ALiBi's smallest slope.

    Args:
        model: the model to measure.
        T: the number of tokens.
        extent: the length of the prefix, under the prefix objective.

    Returns:
        For each layer [H, T, T] for this rank's heads, T queries and T keys. The score of a query with the key at its
        own position is subtracted. Minus infinity where a query does not see a key.
    """
    H, K = len(probe.heads_of_rank(model)), model.cfg.head_dim
    weights = [np.zeros((H, T, T)) for _ in model.blocks]
    for start in range(0, T, K):
        width = min(K, T - start)

        def inject(module: nn.Module, args: Any, out: Tensor, start: int = start, width: int = width) -> Tensor:
            qkv = torch.full((1, T, 3, H, K), K**-0.25, dtype=out.dtype, device=out.device)
            qkv[:, :, 1] *= torch.tensor(_key_factors(T)).to(qkv)[:, None, None]
            qkv[:, :, 2] = 0
            for j in range(width):
                qkv[:, start + j, 2, :, j] = 1
            return qkv.view(1, T, 3 * H * K)

        with probe.temporary_hooks() as on:
            for layer, block in zip(weights, model.blocks, strict=True):

                def read(m: Any, args: Any, columns: np.ndarray = layer[:, :, start : start + width]) -> None:
                    out = args[0].view(T, H, K).double().cpu().numpy()
                    columns[:] = out.transpose(1, 0, 2)[:, :, : columns.shape[2]]

                on(block.attn.qkv.register_forward_hook(inject))
                on(block.attn.proj.register_forward_pre_hook(read))
            probe.hidden_states(model, probe.increasing_tokens(model, T), extent)
    with np.errstate(divide="ignore"):
        logs = [np.log(w) for w in weights]
    return [s - np.diagonal(s, axis1=1, axis2=2)[:, :, None] for s in logs]


def proof_sequence_length(model: Any) -> tuple[int, str]:
    """Choose the sequence length at which `prove_position` measures scores, so that no other scheme gives equal scores.

    The length starts at MIN_POSITIONS and is doubled until the scores differ, or the training length is reached. For
    example, a scheme that limits attention to 100 tokens needs 128. Schemes that add rows to the embeddings or train
    numbers are not compared: they are told apart by these.

    Returns:
        (the length in tokens, the name of another scheme that gives equal scores even at this length, or "").
    """
    cfg = model.cfg
    fixed = [name for name, scheme in POSITIONS.items() if not list(scheme(cfg).parameters())]
    others = [name for name in fixed if name not in (cfg.pos, *ADDITIVE_SCHEMES)]
    T = min(cfg.seq, MIN_POSITIONS)
    while True:
        scores = expected_scores(model, cfg.pos, T)
        same = [name for name in others if np.array_equal(expected_scores(model, name, T), scores)]
        if cfg.pos in ADDITIVE_SCHEMES or not same:
            return T, ""
        if T == cfg.seq:
            return T, same[0]
        T = min(cfg.seq, 2 * T)


def prove_position(model: Any) -> Proof:
    """Prove `model.pos`: every layer's attention scores, and the rows added to the embeddings, are those of the
    configured position scheme."""
    cfg = model.cfg
    wrong, worst = [], 0.0
    T, same = proof_sequence_length(model)
    if same and cfg.pos != "none":
        wrong.append(f"within the {T} tokens of a sequence its formula in expected_scores is that of {same}")
    expected = expected_scores(model, cfg.pos, T)[probe.heads_of_rank(model)]
    expected = expected - np.diagonal(expected, axis1=1, axis2=2)[:, :, None]
    extent = T // 2 if cfg.objective == "prefix" else 1
    sees = visible_keys(cfg.objective, T, extent)
    acts = sees & np.isfinite(expected)  # where both the objective and the scheme let a query see a key
    expected = np.where(acts, expected, 0)
    for i, score in enumerate(measured_scores(model, T, extent)):
        if np.isfinite(score[:, ~sees]).any():
            wrong.append(f"layer {i}: attention sees what comes later")
        error = np.where(acts, np.abs(score - expected), 0)
        error[np.isfinite(score) & sees & ~acts] = np.inf
        excess = error - probe.TOLERANCE * np.abs(expected)
        worst = max(worst, float(error.max()))
        if not (excess < probe.TOLERANCE).all():
            heads = probe.heads_of_rank(model).start + np.flatnonzero(~(excess < probe.TOLERANCE).all((1, 2)))
            wrong.append(f"layer {i}, heads {heads.tolist()}: scores are not those of {cfg.pos}")
    x_BTD = probe.embedding_sum(model, T)
    moved = x_BTD - x_BTD[:, :1]
    rows_TD = position_rows(model, T)
    expected_move = (rows_TD - rows_TD[:1]).expand_as(moved)
    if not expected_move.any():
        if moved.any():
            wrong.append("the embeddings depend on the position")
        elif cfg.pos in ADDITIVE_SCHEMES:
            wrong.append(f"the rows that {cfg.pos} adds are the same at all positions")
    else:
        share = float((moved * expected_move).sum() / expected_move.square().sum())
        # in bf16 a position is rounded to the precision of the larger embedding it is added to
        if abs(share - 1) > probe.TOLERANCE or not probe.is_close(moved, expected_move, float(x_BTD.abs().max())):
            wrong.append(f"the embeddings do not carry the rows that {cfg.pos} adds")
    where = "nowhere" if cfg.pos == "none" else "on the embeddings" if cfg.pos in ADDITIVE_SCHEMES else "in the scores"
    size = f"{cfg.layers} layers x {cfg.heads} heads x {T} positions"
    measured = f"acts {where}; the scores of {size} err by {worst:.1e} at most"
    return Proof("model.pos", cfg.pos, not wrong, "; ".join(wrong) or measured)


UNDEFINED = "its definition is missing in `visible_keys` or `expected_predictions` of model/proofs/attention.py"


def visible_keys(objective: str, T: int, extent: int) -> np.ndarray:
    """Which keys each query sees, by the definition of the objective: bool [T, T], for T queries and T keys.
    `objective`: causal, prefix or mlm; any other raises ValueError. `extent`: the length of the prefix, under the
    prefix objective."""
    sees = np.zeros((T, T), bool)
    for q in range(T):
        for k in range(T):
            rules = {"causal": k <= q, "prefix": k <= q or k < extent, "mlm": True}
            if objective not in rules:
                raise ValueError(f"model.objective={objective}: {UNDEFINED}")
            sees[q, k] = rules[objective]
    return sees


def expected_predictions(model: Any, rows: np.ndarray, batch: Any) -> list[list[tuple[int, int]]]:
    """The predictions that enter the loss, by the definition of the objective. Returns for each row [(position of the
    output, token to predict), ...].

    Args:
        model: its configuration is read.
        rows: token ids, [B, T + 1].
        batch: the batch that the model's objective made of these rows. Only its random choices are read: prefix lengths
            and masked positions.

    Raises:
        ValueError: the objective is none of causal, prefix and mlm.
    """
    R, T = len(rows), rows.shape[1] - 1
    if model.cfg.objective == "causal":
        return [[(t, rows[r, t + 1]) for t in range(T)] for r in range(R)]
    if model.cfg.objective == "mlm":
        predicted = [range(T)] * R if batch.predicted is None else batch.predicted.tolist()
        return [[(t, rows[r, t]) for t in positions] for r, positions in enumerate(predicted)]
    if model.cfg.objective != "prefix":
        raise ValueError(f"model.objective={model.cfg.objective}: {UNDEFINED}")
    extents = batch.extents_B.tolist()
    return [[(t - 1, rows[r, t]) for t in range(extents[r], T + 1)] for r in range(R)]


def masking_faults(model: Any, rows: np.ndarray, batch: Any, mask: int) -> list[str]:
    """Check the inputs that the MLM objective makes. In each row round(mask_rate x T) positions must be predicted. Of
    these, 80 % must hold the mask token and at most 10 % another token. All other positions must be unchanged.

    Args:
        model: its configuration is read.
        rows: token ids, [B, T + 1].
        batch: the batch that the model's objective made of these rows.
        mask: the id of the mask token.

    Returns:
        A sentence for each fault; [] where there is none.
    """
    T = rows.shape[1] - 1
    count = round(model.cfg.mask_rate * T)
    hidden, random = round(0.8 * count), round(0.1 * count)
    wrong = []
    if batch.predicted is None:
        return [f"all {T} outputs of a row predict, not {count}"]
    for r, positions in enumerate(batch.predicted.tolist()):
        inputs, text = batch.inputs_BT[r].tolist(), rows[r, :T].tolist()
        if len(set(positions)) != count or not set(positions) <= set(range(T)):
            wrong.append(f"row {r}: {len(set(positions))} positions of {T} are predicted, not {count}")
        changed = [t for t in range(T) if inputs[t] != text[t]]
        if not set(changed) <= set(positions):
            wrong.append(f"row {r}: a token that is not predicted was replaced")
        masked = [t for t in positions if inputs[t] == mask]
        if len(masked) != hidden or not hidden <= len(changed) <= hidden + random:
            wrong.append(f"row {r}: {len(masked)} tokens are masked and {len(changed)} replaced, not {hidden} and more")
    return wrong


def information_leaks(model: Any) -> list[str]:
    """Check that no output depends on tokens that it must not see, by any way through the model. The second half of the
    tokens is replaced; outputs that must not see them must not change.

    Queries, keys and values are enlarged to a standard deviation of 1: in an untrained model they are so small that
    attention hardly depends on them.

    Returns:
        [a sentence] where some of these outputs change; else [], also where every output may see the replaced tokens.
    """
    cfg = model.cfg
    T = min(cfg.seq, MIN_POSITIONS)
    half, extent = T - T // 2, max(1, T // 4)
    sees = visible_keys(cfg.objective, T, extent)
    reached = sees  # which tokens an output knows of, through all layers
    for _ in model.blocks[1:]:
        reached = reached @ sees
    blind = ~reached[:, half:].any(1)
    if half == T or not blind.any():
        return []
    text = probe.increasing_tokens(model, T)
    changed = text.clone()
    changed[:, half:] = cfg.vocab - 1 - text[:, half:]
    sizes: dict[nn.Module, Tensor] = {}

    def enlarge(module: nn.Module, args: Any, out: Tensor) -> Tensor:
        return out / sizes.setdefault(module, out.float().std()).to(out.dtype)  # the same for both texts

    with probe.temporary_hooks() as on:
        for layer in model.blocks:
            on(layer.attn.qkv.register_forward_hook(enlarge))
        before, after = (
            probe.hidden_states(model, x, extent)[0, torch.from_numpy(blind)].double() for x in (text, changed)
        )
    error = probe.relative_error(after, before)
    if error <= MAX_CHANGE:
        return []
    return [f"{blind.sum()} outputs of {T} change by {error:.1e} with tokens that they must not see"]


def prove_objective(model: Any) -> Proof:
    """Prove `model.objective`: which tokens see each other, which outputs enter the loss, and which token each of these
    predicts.

    A hook makes the last norm return zeros, so that each prediction has the loss log V. Then, at one position at a
    time, it returns a vector for which the model predicts a token that is never the target. The mean loss must change
    by exactly the contribution of the predictions at that position.
    """
    cfg, R = model.cfg, 3
    T = min(cfg.seq, 8 if cfg.objective != "mlm" else max(16, math.ceil(1 / cfg.mask_rate)))  # one masked at least
    wrong: list[str] = []
    for extent in sorted({1, T // 2 if cfg.objective == "prefix" else 1}):
        for i, score in enumerate(measured_scores(model, T, extent)):
            if not (np.isfinite(score) == visible_keys(cfg.objective, T, extent)).all():
                wrong.append(f"layer {i}: attention does not see what {cfg.objective} says (extent {extent} of {T})")
    wrong += information_leaks(model)
    device = model.embed.weight.device
    rows = torch.arange(R * (T + 1), device=device).view(R, T + 1) % (cfg.vocab - 1)
    mask = cfg.vocab - 1
    batch = model.objective.batch(rows.cpu(), 1, range(R), SpecialTokens(mask)).to(device)
    if cfg.objective == "mlm":
        wrong += masking_faults(model, rows.cpu().numpy(), batch, mask)
    expected = expected_predictions(model, rows.cpu().numpy(), batch)
    total = sum(map(len, expected))
    matrix = probe.gather_parameter(model, "embed.weight" if model.head is None else "head.weight")
    favoured = matrix[cfg.vocab - 1]
    y_D = 30 * favoured / favoured.square().sum()
    logits = matrix.double() @ y_D.double()
    costs = (logits.logsumexp(0) - logits).tolist()  # of predicting each token from y_D
    base = math.log(cfg.padded_vocab)
    for t in range(T):
        with probe.temporary_hooks() as on:

            def favour(m: Any, args: Any, out: Tensor, t: int = t) -> Tensor:
                out = torch.zeros_like(out)
                out[:, t] = y_D
                return out

            on(model.norm.register_forward_hook(favour))
            on(model.transform.register_forward_hook(lambda m, args, out: args[0]))  # its own proof has it
            loss = float(model.loss(batch))
        more = sum(costs[token] - base for pairs in expected for at, token in pairs if at == t)
        if abs(loss - base - more / total) > probe.TOLERANCE * base:
            wrong.append(f"position {t} of {T}: the loss is {loss:.3f} and not {base + more / total:.3f}")
    measured = f"{total} of {R} x {T} outputs predict, each the token that it should"
    return Proof("model.objective", cfg.objective, not wrong, "; ".join(wrong) or measured)


def prove_qk_scaling(model: Any) -> Proof:
    """Prove `model.qk_scaling`: scores in layer l are divided by l or more. Hooks make scores of l - 1/2 times the
    largest fp16 number, which must not overflow. `prove_position` shows that scores are multiplied by l again.

    With the setting off, on a CPU, such scores must overflow in every layer but the first. In other precisions than
    fp16 nothing is measured, and the proof passes where the setting is off.
    """
    cfg, dtype = model.cfg, model.embed.weight.dtype
    value = str(cfg.qk_scaling).lower()
    if dtype != torch.float16:
        detail = f"{str(dtype).removeprefix('torch.')} does not need it"
        idle = ": it is idle" if cfg.qk_scaling else ""
        return Proof("model.qk_scaling", value, not cfg.qk_scaling, detail + idle)
    H, K = len(probe.heads_of_rank(model)), cfg.head_dim
    exact = []
    with probe.temporary_hooks() as on:
        for number, layer in enumerate(model.blocks, start=1):
            size = math.sqrt((number - 0.5) * torch.finfo(dtype).max / math.sqrt(K))

            def inject(m: Any, args: Any, out: Tensor, size: float = size) -> Tensor:
                qkv = torch.full((*out.shape[:2], 3, H, K), size, dtype=dtype, device=out.device)
                qkv[:, :, 2] = 1
                return qkv.view_as(out)

            on(layer.attn.qkv.register_forward_hook(inject))
            on(layer.attn.proj.register_forward_pre_hook(lambda m, args: exact.append(bool((args[0] == 1).all()))))
            on(layer.attn.register_forward_hook(lambda m, args, out: torch.ones_like(out)))
        probe.hidden_states(model, probe.increasing_tokens(model, 1))
    overflowing = [i + 1 for i, is_exact in enumerate(exact) if not is_exact]
    if cfg.qk_scaling:
        detail = f"scores up to {cfg.layers - 0.5:g} x 65504 are used in {cfg.layers} layers"
        return Proof(
            "model.qk_scaling",
            value,
            not overflowing,
            detail if not overflowing else f"scores overflow in layers {overflowing}",
        )
    # the kernels of a GPU keep scores in fp32, where nothing overflows whether the setting is on or off
    off = overflowing == list(range(2, cfg.layers + 1)) or model.embed.weight.is_cuda
    detail = "scores overflow as those of fp16 do" if off else f"only the scores of layers {overflowing} overflow"
    return Proof("model.qk_scaling", value, off, detail)
