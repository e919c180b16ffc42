"""Training speed on one GPU: `make bench-gpu`, ARGS="--micro-batch 8 16 32" for the best of these.

First every position variant's loss and gradients are compared with the plain reference, in fp32 on the CPU, at a small
shape: compiled in bf16 they may be off by 1.3 times what the same model written out in bf16 is off, and the engine's
first loss must be the model's. In fp8 every product of every linear layer is compared with that of rounded operands
(model/proof.py), and the gradients may be off by 0.25 of their norm; on a CPU, at this shape, they are off by 0.16 at
most, and those of bf16 by 0.06. A wrong result ends the program before anything is timed, with exit code 1.

Then each variant trains at the size that is asked for, through the engine (launch/engine.py, DeepSpeed) and beside it
in a bare torch loop with fp32 masters: tokens per second, model FLOPs utilisation by the count of model/count.py
against the dense bf16 peak of the GPU (in fp8 too), memory, and seconds of compilation, which is no part of the speed.
Each row runs in a process of its own. A GPU that has no FP8 has no row for it. Exit code 2: there is no GPU.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch

from ablations.config import ConfigError, Run, resolve
from launch import engine, preflight
from model import attention, count, proof
from model.gpt import GPT
from model.objective import Batch
from model.shard import WHOLE, Whole

POSITIONS = ("none", "learned", "rotary", "alibi")
IN_FP8 = "rotary"  # the position of the rows in fp8
PEAKS = {"H100": 989.5e12, "H200": 989.5e12, "A100": 312e12}  # dense bf16 FLOP/s, NVIDIA's data sheets
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


def reading(model: GPT, batch: Batch, loss: Callable[[Batch], torch.Tensor]) -> list[torch.Tensor]:
    """The loss and all gradients, in fp32 on the CPU."""
    model.zero_grad()
    value = loss(batch)
    value.backward()
    found = [value, *(p.grad for p in model.parameters() if p.grad is not None)]
    return [t.detach().float().cpu() for t in found]


def larger(run: Run, tp: Whole = WHOLE) -> GPT:
    """A model whose weights are larger than they begin, so that what attention sees matters."""
    model = GPT(run.model, run.seed, tp)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(3) if p.dim() > 1 else p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(2)))
    return model


def wrong_in_fp8(device: str) -> list[str]:
    """What is wrong with FP8 on `device`, compiled where that is a GPU; empty: nothing."""
    run = resolve([*SMALL, ("model.pos", IN_FP8), ("train.precision", "fp8")])
    rows = torch.randint(run.model.vocab, (4, run.model.seq + 1), generator=torch.Generator().manual_seed(1))
    exact_model, model = larger(run), larger(run, engine.ranks(run)).to(device, torch.bfloat16)
    found = proof.precision(model)
    faults = [] if found.passed and found.value == "fp8" else [f"fp8: {found.value}, {found.detail}"]
    batch = model.objective.batch(rows)
    exact = reading(exact_model, batch, exact_model.loss)
    ours = reading(model, batch.to(torch.device(device)), torch.compile(model.loss) if device == "cuda" else model.loss)
    for name, ideal, mine in zip(["loss", *(n for n, _ in model.named_parameters())], exact, ours, strict=True):
        error, allowed = float((mine - ideal).norm() / ideal.norm()), 0.001 if name == "loss" else 0.25
        if not error <= allowed:
            faults.append(f"fp8: {name} is off by {error:.3g} of its norm; {allowed} is allowed")
    return faults


def wrong(pos: str, device: str) -> list[str]:
    """What is wrong with the executor that `device` runs, compiled, and with the engine around it; empty: nothing.

    On a CPU, where FlexAttention has no backward, this compares what runs there.
    """
    run = resolve([*SMALL, ("model.pos", pos), ("layout.compile", "never")])
    rows = torch.randint(run.model.vocab, (4, run.model.seq + 1), generator=torch.Generator().manual_seed(1))
    model = larger(run)
    batch = model.objective.batch(rows)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    exact = reading(model, batch, model.loss)
    model, there = model.to(device, torch.bfloat16), batch.to(torch.device(device))
    with mock.patch.object(attention, "fused", attention.plain):
        written_out = reading(model, there, model.loss)
    ours = reading(model, there, torch.compile(model.loss) if device == "cuda" else model.loss)
    faults = []
    for name, ideal, theirs, mine in zip(
        ["loss", *(n for n, _ in model.named_parameters())], exact, written_out, ours, strict=True
    ):
        # what is wrong in both counts too: honest rounding is 1 to 8% of a gradient
        allowed = min(1.3 * (theirs - ideal).norm() + 1e-3 * ideal.norm(), 0.15 * ideal.norm())
        if not (mine - ideal).norm() <= allowed:  # a NaN is wrong too
            faults.append(f"{pos}: {name} is off by {(mine - ideal).norm():.3g}; {allowed:.3g} is allowed")
    engine.start(run)
    fresh = GPT(run.model, run.seed)
    fresh.load_state_dict(state)
    first = engine.build(fresh, resolve([*SMALL, ("model.pos", pos)]), 1).step(batch, 1e-4).loss
    if not abs(first - float(exact[0])) < 0.01 * float(exact[0]):
        faults.append(f"{pos}: the engine's first loss is {first:.4f}, the model's {float(exact[0]):.4f}")
    return faults


def bare(model: GPT, run: Run, rows: torch.Tensor) -> tuple[Callable[[], object], float]:
    """A step of a plain torch loop on the same work (bf16 weights, fp32 masters, AdamW, clipping), and the seconds that
    compiling took."""
    model = model.to("cuda", torch.bfloat16)
    weights: list[torch.Tensor] = list(model.parameters())
    micros = model.objective.batch(rows).to(torch.device("cuda")).split(run.layout.micro_batch)
    masters = [p.detach().float().requires_grad_() for p in weights]
    optimizer = torch.optim.AdamW(masters, lr=run.train.lr, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    loss = torch.compile(model.loss, dynamic=False)
    began = time.perf_counter()
    torch.autograd.grad(loss(micros[0]), weights)
    torch.cuda.synchronize()
    seconds = time.perf_counter() - began

    def step() -> None:
        for micro in micros:
            (loss(micro) / len(micros)).backward()
            for master, weight in zip(masters, weights, strict=True):
                assert weight.grad is not None
                grad = weight.grad.float()
                master.grad = grad if master.grad is None else master.grad.add_(grad)
                weight.grad = None
        torch.nn.utils.clip_grad_norm_(masters, run.train.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            torch._foreach_copy_(weights, masters)

    return step, seconds


def measure(how: str, words: list[tuple[str, Any]], steps: int) -> dict[str, float]:
    """One row: tokens per second (the median step), gigabytes at the peak, seconds of compilation."""
    run = resolve(words)
    rows = torch.randint(run.model.vocab, (run.train.batch, run.model.seq + 1))
    engine.start(run)
    step: Callable[[], object]
    if how == "engine":
        built = engine.build(GPT(run.model, run.seed, engine.ranks(run)), run, 1)
        step, compiling = lambda: built.step(built.model.objective.batch(rows), run.train.lr), built.compile_seconds
    else:
        step, compiling = bare(GPT(run.model, run.seed, engine.ranks(run)), run, rows)
    seconds = []
    torch.cuda.reset_peak_memory_stats()  # compiling ends with a proof that holds gradients twice
    for i in range(2 + steps):
        torch.cuda.synchronize()
        began = time.perf_counter()
        step()
        torch.cuda.synchronize()
        seconds += [time.perf_counter() - began] if i >= 2 else []
    tokens = run.train.batch * run.model.seq
    memory = torch.cuda.max_memory_allocated() / 1e9
    return {"speed": tokens / statistics.median(seconds), "gb": memory, "compile": compiling}


def row(how: str, words: list[tuple[str, Any]], steps: int) -> dict[str, float] | str:
    """`measure` in a process of its own; its last words where it fails."""
    told = json.dumps([how, words, steps])
    done = subprocess.run([sys.executable, __file__, "--row", told], capture_output=True, text=True, check=False)
    if done.returncode:
        return ([line for line in done.stderr.splitlines() if line.strip()] or ["it ended"])[-1][:200]
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="1b3")
    parser.add_argument("--micro-batch", type=int, nargs="+", default=[8, 16])
    parser.add_argument("--accumulate", type=int, default=2, help="micro-batches per optimizer step")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--row", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("error: make bench-gpu needs an NVIDIA GPU, and torch sees none", file=sys.stderr)
        return 2
    if args.row:
        print(json.dumps(measure(*json.loads(args.row))))
        return 0

    variants, lacking = [*((pos, "bf16") for pos in POSITIONS), (IN_FP8, "fp8")], ""
    try:
        preflight.check_fp8(resolve([("train.precision", "fp8")]))
    except ConfigError as error:
        variants, lacking = variants[:-1], str(error)
    faults = [fault for pos in POSITIONS for fault in wrong(pos, "cuda")] + ([] if lacking else wrong_in_fp8("cuda"))
    if faults:
        print("wrong results, so nothing was timed:", *faults, sep="\n", file=sys.stderr)
        return 1
    device = torch.cuda.get_device_name()
    peak = next((flops for name, flops in PEAKS.items() if name in device), None)
    equal = f"loss and gradients of {', '.join(POSITIONS)}{'' if lacking else ' and of fp8'} equal the reference"
    print(
        f"{args.size} on one {device}, torch {torch.__version__}; {equal}\n{lacking}\n"
        "| position | loop | micro-batch | tokens/s | MFU | GB | compilation, s |\n|---|---|---|---|---|---|---|"
    )
    best: dict[str, float] = {}
    for pos, precision in variants:
        label = pos if precision == "bf16" else f"{pos}, {precision}"
        for how in ("engine", "bare torch"):
            for micro in args.micro_batch:
                batch = micro * args.accumulate
                words = [
                    ("size", args.size),
                    ("model.pos", pos),
                    ("train.precision", precision),
                    ("train.batch", batch),
                    ("train.tokens", 10**12),
                    ("layout.micro_batch", micro),
                ]
                got = row(how, words, args.steps)
                if isinstance(got, str):
                    print(f"| {label} | {how} | {micro} | {got} | | | |", flush=True)
                    continue
                used = got["speed"] * count.flops_per_token(resolve(words).model)
                mfu = f"{used / peak:.1%}" if peak else f"{used / 1e12:.0f} TFLOP/s"
                print(
                    f"| {label} | {how} | {micro} | {got['speed']:,.0f} | {mfu} | {got['gb']:.1f} "
                    f"| {got['compile']:.0f} |",
                    flush=True,
                )
                if how == "engine":
                    best[label] = max(best.get(label, 0.0), got["speed"])
    for a, b in (("alibi", "rotary"), ("alibi", "none"), ("rotary", "none")):
        if a in best and b in best:
            print(f"{a} has {best[a] / best[b]:.3f} of the speed of {b} (at least 0.97 is wanted)")
    if (eight := f"{IN_FP8}, fp8") in best and IN_FP8 in best:
        print(f"fp8 has {best[eight] / best[IN_FP8]:.3f} of the speed of bf16 ({IN_FP8})")
    return 0 if len(best) == len(variants) else 1


if __name__ == "__main__":
    sys.exit(main())
