"""Compiles the model that is trained, and proves that the compiled graph has the gradients of the model."""

import time
import traceback
from typing import Any

import torch
from torch import Tensor

from launch.manifest import RunFailed
from model import attention, proof
from model.fp8 import fp8_weight_copies
from model.gpt import prepare_to_compile
from model.objective import Batch, SpecialTokens


def compile_model(engine: Any) -> None:
    """Compile the model and its loss, forward and backward, for micro-batches of the run's size. Then prove that the
    compiled graph has the gradients of the eager model.

    `engine`: a launch.engine.Engine before its first step. The proof is added to `engine.proofs`;
    `engine.compile_seconds` becomes the seconds that compiling and proving took. Raises RunFailed where torch cannot
    compile the model.
    """
    began, run, loss = time.perf_counter(), engine.run, engine.ds.module
    from torch._dynamo.exc import TorchDynamoException

    on_cpu = engine.device.type == "cpu"
    if on_cpu:
        from torch._functorch import config

        # the backward pass recomputes cheap activations: at nano in bf16, 13% less memory in no more time
        config.activation_memory_budget = 0.8
        if run.model.block == "parallel":  # without this setting torch 2.13 writes C++ in which two sums have one name
            from torch._inductor import config as inductor

            inductor.cpp.max_horizontal_fusion_size = 1
    torch.use_deterministic_algorithms(on_cpu)
    prepare_to_compile()
    if not on_cpu:  # made inside the graph, the masks would be made anew in every forward pass
        attention.prepare_block_mask(engine.model.objective, run.model.seq, engine.device)
    # with extents batches differ in how many tokens they predict: with static shapes each number would be compiled
    dynamic = None if engine.model.objective.has_extents else False
    loss.compile(dynamic=dynamic, mode="reduce-overhead" if engine.cuda_graphs else None)
    random = torch.Generator().manual_seed(0)
    rows = torch.randint(run.model.vocab, (run.layout.micro_batch, run.model.seq + 1), generator=random)
    batch = engine.model.objective.batch(rows, tokens=SpecialTokens(mask=0)).to(engine.device)

    def graph(batch: Batch) -> Tensor:
        with fp8_weight_copies(engine.model):
            return loss(batch)

    try:
        if run.model.dropout or run.model.attn_dropout:
            # compile the graph of training, then one without dropout, whose gradients can be compared
            torch.autograd.grad(graph(batch), list(loss.parameters()))  # .backward() would fire DeepSpeed's hooks
            loss.eval()
        engine.proofs = [proof.prove_compiled_graph(engine.model, graph, loss.forward, batch)]
    except TorchDynamoException as error:
        traceback.print_exc()  # into the run's log
        cause = getattr(error, "inner_exception", error)
        reason = f"{type(cause).__name__}: {next(iter(str(cause).splitlines()), '')}"
        raise RunFailed(
            f"torch.compile: {reason}. layout.compile=never trains without it, in all runs of the study"
        ) from None
    loss.train()
    if not on_cpu:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    engine.compile_seconds = time.perf_counter() - began
