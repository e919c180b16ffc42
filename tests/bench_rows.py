"""Builds and runs the rows of tests/bench.py, each in a process of its own, which executes `serve`.

There are four kinds of rows:

* "ours, POS": the whole optimizer step of launch/engine.py, DeepSpeed included;
* "bare, POS": our model in the loop of the peers, which shows the cost of DeepSpeed;
* "floor, LIBRARY": the matrix products of the linear layers alone;
* a peer: a model of the same shape, in a plain torch loop with the same optimizer and work.

With `--mlm`, "ours, learned" has BERT's shape, and "ours, scaled-sinusoidal" Cramming's with as many parameters. "BERT,
learned" is BertForMaskedLM, which computes the logits of all positions; in "BERT, masked only" the same model applies
its head to the masked positions alone.
"""

import contextlib
import importlib
import importlib.util
import itertools
import os
import re
import resource
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

os.environ["DS_ACCELERATOR"] = "cpu"

import torch
from bench_minimal import MinimalGPT
from torch.nn.functional import cross_entropy
from torch.profiler import ProfilerActivity, profile

from ablations.config import Run, resolve
from launch import deepspeed_setup, engine
from model import allocator
from model.gpt import GPT, prepare_to_compile
from model.objective import OBJECTIVES, Batch, SpecialTokens

Step = Callable[[], object]


def serve(pipe: Connection, row: str, setting: str, words: list[tuple[str, Any]], options: dict[str, Any]) -> None:
    """Build the row named `row` and answer through `pipe`: first {"mb": peak memory of tensors, "start": seconds of
    building}, or {"error": a sentence}; then, for each number received, take so many steps and send (seconds of a step,
    page faults of a step). The number 0 ends it. `setting`, `words`, `options`: as for `start` in tests/bench.py."""
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    warnings.simplefilter("ignore")
    try:
        run = resolve(words)
        torch.set_num_threads(run.layout.threads)
        if "memory kept" in setting:
            allocator.keep_freed_memory()
        torch.manual_seed(0)
        rows = torch.randint(run.model.vocab, (run.train.batch, run.model.seq + 1))
        began = time.perf_counter()
        step, most = weighed(partial(build, row, setting, run, rows, options["nanogpt"]))
        pipe.send({"mb": most / 1e6, "start": time.perf_counter() - began})
    except Exception as error:  # the parent prints it and goes on without this row
        pipe.send({"error": f"{type(error).__name__}: {error}"})
        return
    clock = time.process_time if run.layout.threads == 1 else time.perf_counter
    while steps := pipe.recv():
        began, faults = clock(), resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(steps):
            step()
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
        pipe.send(((clock() - began) / steps, faults / steps))


def build(row: str, setting: str, run: Run, rows: torch.Tensor, nanogpt: Path | None) -> Step:
    kind, _, which = row.partition(", ")
    if kind == "floor":
        return floor(run, which)
    if kind == "ours":
        return ours(run, rows)
    if kind == "bare":
        allocator.keep_freed_memory()
        return peer(GPT(run.model, run.seed), run, rows, setting)
    made = peers(run, nanogpt, "plain" in setting)[row.replace("masked only", "learned")]()
    return peer(made, run, rows, setting, "masked only" in row)


def ours(run: Run, rows: torch.Tensor) -> Step:
    deepspeed_setup.initialise_process(run)
    built = engine.build_engine(GPT(run.model, run.seed), run, 1)
    batch = masked(run, rows)  # drawn once, for ours as for peers
    return lambda: built.step(batch or built.model.objective.batch(rows), run.train.lr)


def masked(run: Run, rows: torch.Tensor) -> Batch | None:
    """The batch of `rows` [B, T + 1] with some tokens masked, the same in every process; None for a causal model."""
    if run.model.objective != "mlm":
        return None
    return OBJECTIVES["mlm"](run.model).batch(rows, tokens=SpecialTokens(mask=4))


def peer(model: Any, run: Run, rows: torch.Tensor, setting: str, masked_only: bool = False) -> Step:
    """A training step of a plain torch loop, with AdamW and clipping.

    Args:
        model: the model to train.
        run: batch, learning rate and objective.
        rows: the token ids to train on, [B, T + 1].
        setting: holds "compiled", "autocast" (in bf16) or "masters" (bf16 weights with fp32 masters).
        masked_only: whether BERT's head is applied to the masked positions only.
    """
    x, y = rows[:, :-1].contiguous(), rows[:, 1:].contiguous()
    if "masters" in setting:
        model.bfloat16()
    weights: list[torch.Tensor] = list(model.parameters())
    masters = [p.detach().float().requires_grad_() for p in weights] if "masters" in setting else weights
    optimizer = torch.optim.AdamW(masters, lr=run.train.lr, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    autocast = torch.autocast("cpu", torch.bfloat16) if "autocast" in setting else contextlib.nullcontext()

    batch, labels = masked(run, rows), torch.full_like(x, -100)  # -100: not predicted, in transformers
    if batch is not None and batch.predicted is not None:
        labels.scatter_(1, batch.predicted, batch.targets_BT.gather(1, batch.predicted))

    def loss() -> Any:
        if batch is not None and masked_only:
            logits = model.cls(batch.select(model.bert(batch.inputs_BT).last_hidden_state))
            return cross_entropy(logits.float(), batch.select(batch.targets_BT))
        if batch is not None:
            return model.loss(batch) if isinstance(model, GPT) else model(batch.inputs_BT, labels=labels).loss
        if isinstance(model, GPT):
            return model.loss(model.objective.batch(rows))
        if "nanogpt" in type(model).__module__:  # without targets it computes the logits of the last position only
            return model(x, y)[1]
        out = model(x)
        return cross_entropy(getattr(out, "logits", out).flatten(0, 1).float(), y.flatten())

    if "compiled" in setting:
        prepare_to_compile()
    run_loss = torch.compile(loss) if "compiled" in setting else loss

    def step() -> None:
        with autocast:
            value = run_loss()
        value.backward()
        if "masters" in setting:
            for master, weight in zip(masters, weights, strict=True):
                master.grad = weight.grad.float()  # type: ignore[union-attr]
                weight.grad = None
        torch.nn.utils.clip_grad_norm_(masters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if "masters" in setting:
            with torch.no_grad():
                torch._foreach_copy_(weights, masters)

    return step


def peers(run: Run, nanogpt: Path | None, plain: bool) -> dict[str, Callable[[], Any]]:
    """The peers, in the shape of `run`, with tied embeddings and without dropout: {name: a function that builds the
    model}. `nanogpt`: a checkout of nanoGPT; `plain`: whether models that have a fused and a plain attention take the
    plain one."""
    m = run.model
    V, T, L, H, D, F = m.padded_vocab, m.seq, m.layers, m.heads, m.hidden, m.mlp_width
    tied: dict[str, Any] = {"vocab_size": V, "tie_word_embeddings": True}

    def hf(name: str, **shape: Any) -> Any:
        transformers: Any = importlib.import_module("transformers")
        config = getattr(transformers, re.sub("LMHeadModel|ForCausalLM|ForMaskedLM", "", name) + "Config")
        attention = "eager" if plain or name.startswith("Bloom") else "sdpa"
        return getattr(transformers, name)(config(**shape, **tied, attn_implementation=attention))

    def nano() -> Any:
        if not nanogpt:
            raise FileNotFoundError("give --nanogpt with a checkout of karpathy/nanoGPT")
        spec = importlib.util.spec_from_file_location("nanogpt", nanogpt / "model.py")
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        sys.modules["nanogpt"] = module
        spec.loader.exec_module(module)
        return module.GPT(
            module.GPTConfig(block_size=T, vocab_size=V, n_layer=L, n_head=H, n_embd=D, dropout=0.0, bias=True)
        )

    def litgpt() -> Any:
        lit: Any = importlib.import_module("litgpt")
        model = lit.GPT(
            lit.Config(
                block_size=T,
                vocab_size=V,
                padded_vocab_size=V,
                n_layer=L,
                n_head=H,
                n_embd=D,
                rotary_percentage=1.0,
                parallel_residual=False,
                norm_class_name="LayerNorm",
                mlp_class_name="GptNeoxMLP",
                intermediate_size=F,
                gelu_approximate="tanh",
            )
        )
        model.lm_head.weight = model.transformer.wte.weight
        return model

    def x_transformers(learned: bool, **kind: bool) -> Any:
        xt: Any = importlib.import_module("x_transformers")
        layers = xt.Decoder(dim=D, depth=L, heads=H, attn_dim_head=D // H, attn_flash=not plain, **kind)
        return xt.TransformerWrapper(
            num_tokens=V, max_seq_len=T, tie_embedding=True, use_abs_pos_emb=learned, attn_layers=layers
        )

    undropped = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return {
        "minimal, learned": partial(MinimalGPT, V, T, L, H, D, F),
        "nanoGPT, learned": nano,
        "litgpt, rotary": litgpt,
        "GPT-2, learned": partial(hf, "GPT2LMHeadModel", n_positions=T, n_embd=D, n_layer=L, n_head=H, **undropped),
        "GPT-NeoX, rotary": partial(
            hf,
            "GPTNeoXForCausalLM",
            max_position_embeddings=T,
            hidden_size=D,
            num_hidden_layers=L,
            num_attention_heads=H,
            intermediate_size=F,
            rotary_pct=1.0,
            hidden_act="gelu_new",
            use_parallel_residual=False,
        ),
        "BERT, learned": partial(
            hf,
            "BertForMaskedLM",
            hidden_size=D,
            num_hidden_layers=L,
            num_attention_heads=H,
            intermediate_size=F,
            hidden_act="gelu_new",
            max_position_embeddings=T,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        ),
        "BLOOM, ALiBi": partial(hf, "BloomForCausalLM", hidden_size=D, n_layer=L, n_head=H),
        "Llama, rotary, SwiGLU": partial(
            hf,
            "LlamaForCausalLM",
            max_position_embeddings=T,
            hidden_size=D,
            num_hidden_layers=L,
            num_attention_heads=H,
            intermediate_size=8 * D // 3 // 8 * 8,
        ),
        "x-transformers, learned": partial(x_transformers, True),
        "x-transformers, rotary": partial(x_transformers, False, rotary_pos_emb=True),
        "x-transformers, ALiBi": partial(x_transformers, False, alibi_pos_bias=True),
    }


def floor(run: Run, library: str) -> Step:
    """A step that computes the output and both gradients of every linear layer, by `library`: "torch.mm" or
    "oneDNN"."""
    m, N = run.model, run.train.batch * run.model.seq
    dtype = torch.bfloat16 if run.train.precision == "bf16" else torch.float32
    D, F = m.hidden, m.mlp_width
    shapes = [(D, 3 * D), (D, D), (D, F), (F, D)] * m.layers
    made = [
        tuple(torch.randn(*s).to(dtype) for s in ((N, i), (i, o), (N, o)))
        for i, o in [*shapes, (m.hidden, m.padded_vocab)]
    ]

    def onednn(a: torch.Tensor, b: torch.Tensor) -> Any:
        return torch.ops.mkldnn._linear_pointwise(a, b.t(), None, "none", [], "")

    product: Any = onednn if library == "oneDNN" else torch.mm
    return lambda: [(product(x, w), product(g, w.t()), product(x.t(), g)) for x, w, g in made]


def weighed(make: Callable[[], Step]) -> tuple[Step, int]:
    """Build a step with `make` and run it three times. Returns (the step, the peak of bytes allocated for tensors,
    building included)."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        step = make()
        for _ in range(2):
            step()
    step()
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]  # type: ignore[union-attr]
    return step, max(itertools.accumulate(e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())))
