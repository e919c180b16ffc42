"""Checks that a GPU computes what the reference does: `make bench-gpu ARGS="--check"`.

The loss and the gradients of every position variant are compared with the plain reference in fp32 on the CPU, at small
shapes. The error of the compiled model in bf16 may be 1.3 times that of the same model with attention written out in
bf16. The engine's first loss must be the model's, and the proofs that every run begins with must pass. The same is done
for the objectives mlm and prefix, and in fp16 and fp32.

In fp8 every product of every linear layer is compared with the product of rounded operands (model/proof.py), and the
relative error of a gradient may be 0.25; on a CPU, at this shape, it is at most 0.16, and in bf16 at most 0.06.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any
from unittest import mock

import torch

from ablations.config import Run, resolve
from launch import attention_kernel, deepspeed_setup, engine
from model import attention, proof
from model.fp8 import FP8_LAYERS, fp8_weight_copies
from model.gpt import GPT, prepare_to_compile
from model.kernels import fp8
from model.linear import Layers
from model.objective import Batch, SpecialTokens
from model.position import Position

POSITIONS = ("none", "learned", "rotary", "alibi")
MORE_POSITIONS = ("sinusoidal", "scaled-sinusoidal")  # checked, and not timed: their attention is that of none
IN_FP8 = "rotary"  # the position of the rows in fp8
SMALL = [
    ("size", "nano"),
    ("model.layers", 2),
    ("model.hidden", 256),
    ("model.heads", 4),
    ("model.seq", 256),
    ("train.batch", 4),
    ("layout.micro_batch", 4),
    ("train.precision", "bf16"),
]
# the head dimension of the 1.3B shape, and more tokens than a block of attention has
LONG = [*SMALL, ("model.heads", 2), ("model.seq", 1024), ("train.batch", 2), ("layout.micro_batch", 2)]
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
# Returns the faults found, as sentences; None where torch lacks the kernel that would be compared.
Compare = Callable[[], list[str] | None]


def cases(device: str, positions: Iterable[str], fp8: bool, everything: bool) -> dict[str, Compare]:
    """The comparisons to make on a device: {name: function that compares}, the most valuable first.

    Args:
        device: "cuda" or "cpu".
        positions: position schemes that are compared in bf16.
        fp8: whether FP8 is compared.
        everything: whether the objectives, precisions and positions that are not timed are compared, too.
    """
    by_name: dict[str, Compare] = {
        f"{pos}, head 64, 256 tokens": functools.partial(wrong, pos, device) for pos in positions
    }
    if device == "cuda":
        by_name["alibi, head 128, 1024 tokens"] = functools.partial(wrong, "alibi", device, LONG)
        for kernel in (*attention.TORCH_KERNELS, attention.FLEX):  # whichever a run may choose when it starts
            name = f"rotary by {kernel}, head 128, 1024 tokens"
            by_name[name] = functools.partial(wrong_by_kernel, kernel, device)
    if fp8:
        by_name["fp8"] = functools.partial(wrong_in_fp8, device)
    if everything:
        for objective in ("mlm", "prefix"):
            for pos in ("rotary", "alibi"):
                change = [*SMALL, ("model.objective", objective)]
                by_name[f"{objective}, {pos}"] = functools.partial(wrong, pos, device, change)
        for precision in ("fp16", "fp32"):
            by_name[f"{precision}, rotary"] = functools.partial(
                wrong, "rotary", device, [*SMALL, ("train.precision", precision)]
            )
        for pos in MORE_POSITIONS:
            by_name[f"{pos}, head 64, 256 tokens"] = functools.partial(wrong, pos, device)
    return by_name


def reading(model: GPT, batch: Batch, loss: Callable[[Batch], torch.Tensor]) -> list[torch.Tensor]:
    """Compute the loss of a batch and all gradients. Returns [loss, gradient of each parameter], in fp32 on the CPU. In
    fp16 the loss is scaled while gradients are computed, as in training, since most gradients are too small for fp16.
    `loss`: computes the loss of `model`, perhaps compiled."""
    model.zero_grad()
    value = loss(batch)
    scale = 2.0**12 if model.embed.weight.dtype == torch.float16 else 1.0
    (value * scale).backward()
    grads = [p.grad.float() / scale for p in model.parameters() if p.grad is not None]
    return [t.detach().float().cpu() for t in (value, *grads)]


def larger(run: Run, layers: Layers | None = None) -> GPT:
    """A model with larger weights than initial ones, so that faults in attention change its outputs visibly."""
    model = GPT(run.model, run.seed, layers=layers)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(3) if p.dim() > 1 else p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(2)))
    return model


@functools.cache
def kernels(device: str) -> list[str]:
    """The kernels that compute attention without a bias on `device`, the fastest first. Others must not be compared:
    `attention.maskless_attention` would silently replace them by torch's plain attention."""
    run = resolve([*LONG, ("model.pos", "rotary")])
    model = GPT(run.model, run.seed).to(device, torch.bfloat16)
    return list(attention_kernel.time_kernels(model, run.layout.micro_batch))


def lacks_fp8(device: str) -> str:
    """Why FP8 products cannot be computed on `device`; "" where they can. torch 2.11 has none for a CPU."""
    x = torch.ones(16, 16, device=device, dtype=torch.bfloat16)
    try:
        fp8.linear(x, x)
    except (NotImplementedError, RuntimeError) as error:
        return f"torch {torch.__version__} on {device}: {str(error).partition(' with arguments')[0]}"
    return ""


def wrong_in_fp8(device: str) -> list[str]:
    """Compare FP8 on `device`, compiled if that is a GPU, with the reference. Returns a sentence for each fault."""
    run = resolve([*SMALL, ("model.pos", IN_FP8), ("train.precision", "fp8")])
    rows = torch.randint(run.model.vocab, (4, run.model.seq + 1), generator=torch.Generator().manual_seed(1))
    exact_model, model = larger(run), larger(run, FP8_LAYERS).to(device, torch.bfloat16)
    found = proof.prove_precision(model)
    faults = [] if found.passed and found.value == "fp8" else [f"fp8: {found.value}, {found.detail}"]
    batch = model.objective.batch(rows)
    exact = reading(exact_model, batch, exact_model.loss)
    prepare_to_compile()
    loss = torch.compile(model.loss) if device == "cuda" else model.loss
    with fp8_weight_copies(model):  # as it trains
        ours = reading(model, batch.to(torch.device(device)), loss)
    for name, ideal, mine in zip(["loss", *(n for n, _ in model.named_parameters())], exact, ours, strict=True):
        error, allowed = float((mine - ideal).norm() / ideal.norm()), 0.001 if name == "loss" else 0.25
        if not error <= allowed:
            faults.append(f"fp8: {name} is off by {error:.3g} of its norm; {allowed} is allowed")
    return faults


def written(position: Position, heads: int, x_BTD: torch.Tensor, *args: Any) -> attention.Attend:
    """A replacement for `attention.make_attention` that always writes attention's scores out."""
    return attention.plain_attention(position, heads, x_BTD, args[2], args[3])


def wrong_by_kernel(kernel: str, device: str) -> list[str] | None:
    """Compare rotary, with attention by `kernel`, with the reference. Returns a sentence for each fault; None where
    torch has no such kernel for this device and shape."""
    return wrong("rotary", device, LONG, kernel) if kernel in kernels(device) else None


def wrong(pos: str, device: str, shape: list[tuple[str, Any]] = SMALL, kernel: str | None = None) -> list[str]:
    """Compare the model as `device` executes it, compiled on a GPU, and the engine's first step, with the reference. On
    a CPU FlexAttention has no backward pass, and another kernel is compared.

    Args:
        pos: the position scheme.
        device: "cuda" or "cpu".
        shape: the other settings of the run.
        kernel: the kernel of attention, on a GPU; None: the one that torch chooses.

    Returns:
        A sentence for each fault.
    """
    run = resolve([*shape, ("model.pos", pos), ("layout.compile", "never")])
    rows = torch.randint(
        run.model.vocab, (run.train.batch, run.model.seq + 1), generator=torch.Generator().manual_seed(1)
    )
    model = larger(run)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    batch = model.objective.batch(rows, tokens=SpecialTokens(mask=0))
    exact = reading(model, batch, model.loss)
    model, there = model.to(device, DTYPES[run.train.precision]), batch.to(torch.device(device))
    model.attention_kernel = kernel
    attention.prepare_block_mask(model.objective, run.model.seq, model.embed.weight.device)
    with mock.patch.object(attention, "make_attention", written):
        written_out = reading(model, there, model.loss)
    prepare_to_compile()
    ours = reading(model, there, torch.compile(model.loss) if device == "cuda" else model.loss)
    faults = []
    for name, ideal, theirs, mine in zip(
        ["loss", *(n for n, _ in model.named_parameters())], exact, written_out, ours, strict=True
    ):
        # the second limit finds faults that both models share: rounding alone is 1 to 8% of a gradient
        allowed = min(1.3 * (theirs - ideal).norm() + 1e-3 * ideal.norm(), 0.15 * ideal.norm())
        if not (mine - ideal).norm() <= allowed:  # true for NaN, too
            faults.append(f"{pos}: {name} is off by {(mine - ideal).norm():.3g}; {allowed:.3g} is allowed")
    proved = GPT(run.model, run.seed).to(device, DTYPES[run.train.precision])
    proved.attention_kernel = kernel
    faults += [f"{pos}: the proof of {p.factor} fails: {p.detail}" for p in proof.prove_factors(proved) if not p.passed]
    deepspeed_setup.initialise_process(run)
    fresh = GPT(run.model, run.seed)
    fresh.load_state_dict(state)
    first = engine.build_engine(fresh, resolve([*shape, ("model.pos", pos)]), 1).step(batch, 1e-4).loss
    if not abs(first - float(exact[0])) < 0.01 * float(exact[0]):
        faults.append(f"{pos}: the engine's first loss is {first:.4f}, the model's {float(exact[0]):.4f}")
    return faults
