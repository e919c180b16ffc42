"""Training speed against peers on the same work, in one run: `make bench ARGS="--nanogpt path/to/nanoGPT"`.

Everything is interleaved, round by round, and timed in process CPU time on one thread, because machines are noisy:
read the ratios. Ours is the whole optimizer step of launch/engine.py, DeepSpeed included; the peers run a bare torch
loop (AdamW, clipping), in fp32 and under bf16 autocast, and each is judged by its better setting.
"""

import argparse
import contextlib
import importlib.util
import io
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["DS_ACCELERATOR"] = "cpu"

import torch
from torch.nn.functional import cross_entropy

from ablations.config import Run, resolve
from launch import engine
from model import count
from model.gpt import GPT


def ours(run: Run, rows: torch.Tensor) -> Callable[[], object]:
    built = engine.build(GPT(run.model, run.seed), run, 1)
    return lambda: built.step(rows, run.train.lr)


def peer(model: torch.nn.Module, loss: Callable[[Any], torch.Tensor], run: Run, bf16: bool) -> Callable[[], object]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=run.train.lr, betas=(0.9, 0.95), weight_decay=0.1, fused=True)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16) if bf16 else contextlib.nullcontext():
            value = loss(model)
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def nanogpt(path: Path, run: Run) -> torch.nn.Module:
    spec = importlib.util.spec_from_file_location("nanogpt_model", path / "model.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["nanogpt_model"] = module
    spec.loader.exec_module(module)
    m = run.model
    with contextlib.redirect_stdout(io.StringIO()):
        return module.GPT(module.GPTConfig(block_size=m.seq, vocab_size=m.padded_vocab, n_layer=m.layers,
                                           n_head=m.heads, n_embd=m.hidden, dropout=0.0, bias=True))  # fmt: skip


def gpt2(run: Run) -> torch.nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    m = run.model
    return GPT2LMHeadModel(GPT2Config(
        vocab_size=m.padded_vocab, n_positions=m.seq, n_embd=m.hidden, n_layer=m.layers, n_head=m.heads,
        activation_function="gelu_new", resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    ))  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nanogpt", type=Path, help="a checkout of karpathy/nanoGPT")
    parser.add_argument("--size", default="nano")
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    base = [("size", args.size), ("train.batch", 8), ("layout.micro_batch", 8)]
    run = resolve(base)
    engine.start(run)
    rows = torch.randint(run.model.vocab, (run.train.batch, run.model.seq + 1))
    x, y = rows[:, :-1].contiguous(), rows[:, 1:].contiguous()

    steps: dict[str, Callable[[], object]] = {}
    for pos in ("learned", "none", "rotary", "alibi"):
        chosen = resolve([*base, ("model.pos", pos)])
        steps[f"ours, {pos}, {run.train.precision}"] = ours(chosen, rows)
    steps["ours, learned, fp32"] = ours(resolve([*base, ("train.precision", "fp32")]), rows)
    for bf16 in (False, True):
        name = "bf16 autocast" if bf16 else "fp32"
        steps[f"transformers GPT-2, {name}"] = peer(
            gpt2(run), lambda m: cross_entropy(m(x).logits.flatten(0, 1), y.flatten()), run, bf16
        )
        if args.nanogpt:
            steps[f"nanoGPT, {name}"] = peer(nanogpt(args.nanogpt, run), lambda m: m(x, y)[1], run, bf16)
    for step in steps.values():
        step()
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(args.rounds):
        for name, step in steps.items():
            began = time.process_time()
            step()
            seconds[name].append(time.process_time() - began)
    tokens = x.numel()
    speed = {name: tokens / statistics.median(s) for name, s in seconds.items()}
    best = max((s, n) for n, s in speed.items() if not n.startswith("ours"))
    print(f"{args.size}: {run.train.batch} x {run.model.seq} tokens a step, one thread, {args.rounds} rounds")
    for name, s in sorted(speed.items(), key=lambda item: -item[1]):
        flops = s * count.flops_per_token(run.model) / 1e9
        print(f"  {name:32} {s:9,.0f} tokens per CPU second  {flops:6.1f} GFLOP/s  {s / best[0]:5.2f} x {best[1]}")
    if not args.nanogpt:
        print("  nanoGPT was not measured: give --nanogpt with a checkout of it")


if __name__ == "__main__":
    main()
