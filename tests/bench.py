"""Training speed against peers on the same work, in one run: `make bench ARGS="--nanogpt path/to/nanoGPT"`.

Everything is interleaved, round by round, because machines are noisy: read the ratios. Ours is the whole optimizer
step of launch/engine.py, DeepSpeed included; the peers run a bare torch loop (AdamW, clipping). Each runs in fp32 and
in bf16 (the peers under autocast). `floor` is the linear layers' matrix products alone, through torch.mm. One thread
is timed in CPU time, more in wall time. Memory is the most that was allocated for tensors, from the building on.
transformers is installed; litgpt and x-transformers join where Python finds them (PYTHONPATH).
"""

import argparse
import contextlib
import importlib
import importlib.util
import io
import itertools
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ["DS_ACCELERATOR"] = "cpu"

import torch
from torch.nn.functional import cross_entropy
from torch.profiler import ProfilerActivity, profile

from ablations.config import Run, resolve
from launch import engine
from model import count
from model.gpt import GPT
from model.position import POSITIONS

Step = Callable[[], object]


def ours(run: Run, rows: torch.Tensor) -> Step:
    built = engine.build(GPT(run.model, run.seed), run, 1)
    return lambda: built.step(rows, run.train.lr)


def peer(
    make: Callable[[], torch.nn.Module], run: Run, rows: torch.Tensor, precision: str, compiled: bool
) -> Step:
    model = make()
    x, y = rows[:, :-1].contiguous(), rows[:, 1:].contiguous()
    optimizer = torch.optim.AdamW(model.parameters(), lr=run.train.lr, betas=(0.9, 0.95), weight_decay=0.1, fused=True)

    def loss() -> Any:
        if "nanogpt" in type(model).__module__:  # asked for the logits of all positions it wants the targets
            return model(x, y)[1]
        out = model(x)
        return cross_entropy(getattr(out, "logits", out).flatten(0, 1), y.flatten())

    run_loss = torch.compile(loss) if compiled else loss

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16) if precision == "bf16" else contextlib.nullcontext():
            value = run_loss()
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def peers(run: Run, nanogpt: Path | None) -> dict[str, Callable[[], torch.nn.Module]]:
    """Name -> a function that builds it, in the shape of `run`: tied embeddings, no dropout."""
    hf: Any = importlib.import_module("transformers")
    m = run.model
    V, T, L, H, D, F = m.padded_vocab, m.seq, m.layers, m.heads, m.hidden, m.ffn
    tied: dict[str, Any] = {"vocab_size": V, "tie_word_embeddings": True}
    found: dict[str, Callable[[], torch.nn.Module]] = {
        "GPT-2, learned": lambda: hf.GPT2LMHeadModel(hf.GPT2Config(
            n_positions=T, n_embd=D, n_layer=L, n_head=H, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, **tied)),
        "GPT-NeoX, rotary": lambda: hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(
            max_position_embeddings=T, hidden_size=D, num_hidden_layers=L, num_attention_heads=H, intermediate_size=F,
            rotary_pct=1.0, hidden_act="gelu_new", use_parallel_residual=False, **tied)),
        "BLOOM, ALiBi": lambda: hf.BloomForCausalLM(hf.BloomConfig(hidden_size=D, n_layer=L, n_head=H, **tied)),
        "Llama, rotary, SwiGLU": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(
            max_position_embeddings=T, hidden_size=D, num_hidden_layers=L, num_attention_heads=H,
            intermediate_size=8 * D // 3 // 8 * 8, **tied)),
    }  # fmt: skip
    if nanogpt:
        spec = importlib.util.spec_from_file_location("nanogpt", nanogpt / "model.py")
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        sys.modules["nanogpt"] = module
        spec.loader.exec_module(module)
        found["nanoGPT, learned"] = lambda: module.GPT(module.GPTConfig(
            block_size=T, vocab_size=V, n_layer=L, n_head=H, n_embd=D, dropout=0.0, bias=True))  # fmt: skip
    if importlib.util.find_spec("litgpt"):

        def litgpt() -> torch.nn.Module:
            from litgpt import GPT as Lit
            from litgpt import Config

            model = Lit(Config(
                block_size=T, vocab_size=V, padded_vocab_size=V, n_layer=L, n_head=H, n_embd=D, rotary_percentage=1.0,
                parallel_residual=False, norm_class_name="LayerNorm", mlp_class_name="GptNeoxMLP", intermediate_size=F,
                gelu_approximate="tanh"))  # fmt: skip
            model.lm_head.weight = model.transformer.wte.weight
            return model

        found["litgpt, rotary"] = litgpt
    if importlib.util.find_spec("x_transformers"):
        from x_transformers import Decoder, TransformerWrapper

        def x_transformers(learned: bool, **kind: bool) -> torch.nn.Module:
            layers = Decoder(dim=D, depth=L, heads=H, attn_dim_head=D // H, attn_flash=True, **kind)
            return TransformerWrapper(
                num_tokens=V, max_seq_len=T, tie_embedding=True, use_abs_pos_emb=learned, attn_layers=layers
            )

        found["x-transformers, learned"] = partial(x_transformers, True)
        found["x-transformers, rotary"] = partial(x_transformers, False, rotary_pos_emb=True)
        found["x-transformers, ALiBi"] = partial(x_transformers, False, alibi_pos_bias=True)
    return found


def floor(run: Run, precision: str) -> Step:
    """Forward, and both gradients, of every linear layer."""
    m, N = run.model, run.train.batch * run.model.seq
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    shapes = [(m.hidden, 3 * m.hidden), (m.hidden, m.hidden), (m.hidden, m.ffn), (m.ffn, m.hidden)] * m.layers
    made = [tuple(torch.randn(*s).to(dtype) for s in ((N, i), (i, o), (N, o)))
            for i, o in [*shapes, (m.hidden, m.padded_vocab)]]  # fmt: skip
    return lambda: [(torch.mm(x, w), torch.mm(g, w.t()), torch.mm(x.t(), g)) for x, w, g in made]


def weighed(build: Callable[[], Step]) -> tuple[Step, int]:
    """A step that has run twice, and the most bytes of tensors that were alive meanwhile."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        with contextlib.redirect_stdout(io.StringIO()):
            step = build()
        for _ in range(2):
            step()
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]  # type: ignore[union-attr]
    return step, max(itertools.accumulate(e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nanogpt", type=Path, help="a checkout of karpathy/nanoGPT")
    parser.add_argument("--size", default="nano")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", default="", help="rows whose name holds this text")
    parser.add_argument("--compile", action="store_true", help="the peers under torch.compile")
    args = parser.parse_args()
    base = [("size", args.size), ("train.batch", 8), ("layout.micro_batch", 8), ("layout.threads", args.threads)]
    run = resolve(base)
    engine.start(run)
    warnings.simplefilter("ignore")
    rows = torch.randint(run.model.vocab, (run.train.batch, run.model.seq + 1))

    steps: dict[tuple[str, str], tuple[Step, int]] = {}
    for p in ("fp32", "bf16"):
        makers: dict[str, Callable[[], Step]] = {"floor": partial(floor, run, p)}
        for pos in POSITIONS:
            chosen = resolve([*base, ("model.pos", pos), ("train.precision", p)])
            makers[f"ours, {pos}"] = partial(ours, chosen, rows)
        for name, make in peers(run, args.nanogpt).items():
            makers[name] = partial(peer, make, run, rows, p, args.compile)
        steps |= {(n, p): weighed(make) for n, make in makers.items() if args.only in n or n == "floor"}
    clock = time.process_time if args.threads == 1 else time.perf_counter
    seconds: dict[tuple[str, str], list[float]] = {row: [] for row in steps}
    for _ in range(args.rounds):
        for row, (step, _) in steps.items():
            began = clock()
            step()
            seconds[row].append(clock() - began)

    tokens = run.train.batch * run.model.seq
    speed = {row: tokens / statistics.median(s) for row, s in seconds.items()}
    rivals = {row: s for row, s in speed.items() if not row[0].startswith(("ours", "floor"))} or speed
    best = {p: max(s for (_, q), s in rivals.items() if q == p) for p in ("fp32", "bf16")}
    unit = "CPU second" if args.threads == 1 else "second"
    work = f"{run.train.batch} x {run.model.seq} tokens a step"
    print(f"{args.size}: {work}, {args.threads} threads, {args.rounds} rounds; floor does the linear layers only")
    print(f"{'':32}{'tokens per ' + unit:>21} GFLOP/s   MB  of floor  x best peer, same precision  x best peer")
    for (name, p), s in sorted(speed.items(), key=lambda row: (row[0][1], -row[1])):
        flops, of_floor = s * count.flops_per_token(run.model) / 1e9, s / speed["floor", p]
        print(f"{name + ', ' + p:32} {s:20,.0f} {flops:7.1f} {steps[name, p][1] / 1e6:4.0f} {of_floor:9.2f}"
              f" {s / best[p]:28.2f} {s / max(best.values()):12.2f}")  # fmt: skip
    if not args.nanogpt:
        print("nanoGPT was not measured: give --nanogpt with a checkout of it")


if __name__ == "__main__":
    main()
