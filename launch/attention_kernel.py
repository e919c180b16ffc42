"""Chooses the kernel that computes attention on a GPU: the fastest whose results are right. Kernels are timed when a
run starts, since which one is fastest depends on the GPU, the model's shape and the version of torch."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from launch.manifest import RunFailed
from launch.timing import least_seconds
from model import attention

WARM_UP, REPETITIONS = 3, 5  # untuned; the least of the repetitions counts
# Largest relative error of a kernel's output and gradients. In bf16 on an H200 the errors of correct kernels were at
# most 0.007, and that of cuDNN's kernel was 1.4 where torch 2.11 ran a kernel compiled for another memory layout
# (docs/performance.md).
TOLERANCE = 0.05


def choose_kernel(model: Any, micro_batch: int) -> dict[str, float]:
    """Time the kernels that can compute the attention of a model, and set `model.attention_kernel` to the fastest whose
    output and gradients are right. All ranks use the kernel that is fastest on the first rank.

    Args:
        model: a model.gpt.GPT on its device.
        micro_batch: sequences in a micro-batch, the batch size of the timed attention.

    Returns:
        {kernel: seconds of one layer's attention, forward and backward}, the fastest first. Where the position scheme
        adds a bias to the scores, FlexAttention is the only kernel. Empty where nothing is timed and the model keeps
        its kernel: on a CPU, and with attention dropout, QK scaling or a prefix objective.

    Raises:
        RunFailed: no kernel's results are right.
    """
    cfg, weight = model.cfg, model.embed.weight
    if not weight.is_cuda or cfg.attn_dropout or cfg.qk_scaling or model.objective.has_extents:
        return {}
    seconds = [time_kernels(model, micro_batch)]
    if dist.get_world_size() > 1:
        dist.broadcast_object_list(seconds)
    if not seconds[0]:
        raise RunFailed("no kernel of this torch and GPU computes attention and its gradients right at the run's shape")
    model.attention_kernel = next(iter(seconds[0]))
    return seconds[0]


def time_kernels(model: Any, micro_batch: int) -> dict[str, float]:
    """Time every kernel that can compute attention at the model's shape and precision. Returns {kernel: seconds of one
    layer's attention, forward and backward}, the fastest first. A kernel is left out where it does not work with this
    device, shape or precision. It is also left out, with a printed sentence, where the relative error of its output or
    of a gradient is above TOLERANCE. `model`: a model.gpt.GPT on its device; `micro_batch`: sequences in a batch."""
    cfg, weight = model.cfg, model.embed.weight
    heads = cfg.heads // model.tp.size
    # as in the model: queries, keys and values are parts of one tensor, and tokens lie before heads in memory, also in
    # the gradient of the output
    qkv = torch.randn(micro_batch, cfg.seq, 3, heads, cfg.head_dim, device=weight.device, dtype=weight.dtype)
    inputs = [x.detach().requires_grad_() for x in qkv.permute(2, 0, 3, 1, 4).unbind(0)]
    grad_BHTK = torch.randn_like(qkv[:, :, 0]).transpose(1, 2)
    expected = _reference_results(model, heads, inputs, grad_BHTK)
    torch_kernels = () if model.position.has_bias else tuple(attention.TORCH_KERNELS)
    seconds = {}
    for kernel in (*torch_kernels, attention.FLEX):
        if kernel == attention.FLEX:
            x_BTD = weight.new_empty(micro_batch, cfg.seq, 0)
            attend = attention.flexattention(model.position, heads, x_BTD, model.objective)
        else:
            attend = attention.maskless_attention(model.position, model.objective, kernel, allow_plain=False)
        try:
            results = _output_and_gradients(attend, inputs, grad_BHTK)
            fastest = _forward_backward_seconds(attend, inputs, grad_BHTK)
        except (RuntimeError, NotImplementedError):  # torch raises them where a kernel lacks this device or shape
            continue
        error = max(_relative_error(ours[:1], right) for ours, right in zip(results, expected, strict=True))
        if error <= TOLERANCE:  # false for NaN
            seconds[kernel] = fastest
        else:
            print(f"attention by {kernel} is left out: its results are off by {error:.2g} of their norm", flush=True)
    return dict(sorted(seconds.items(), key=lambda item: item[1]))


def _reference_results(model: Any, heads: int, inputs: list[Tensor], grad_BHTK: Tensor) -> list[Tensor]:
    """The correct output and gradients for the first sequence alone: in fp32, by `plain_attention`. In the form of
    `_output_and_gradients`."""
    first = [x[:1].detach().float().requires_grad_() for x in inputs]
    x_BTD = first[0].new_empty(1, model.cfg.seq, 0)
    attend = attention.plain_attention(model.position, heads, x_BTD, model.objective)
    return _output_and_gradients(attend, first, grad_BHTK[:1].float())


def _output_and_gradients(attend: attention.Attend, inputs: list[Tensor], grad_BHTK: Tensor) -> list[Tensor]:
    """Run attention forward and backward. Returns [output, gradient of the queries, of the keys, of the values], each
    [B, H, T, K] (batch, heads, tokens, head dimension). `inputs`: queries, keys and values; `grad_BHTK`: the gradient
    of the output."""
    out = attend(*inputs)
    return [out.detach(), *torch.autograd.grad(out, inputs, grad_BHTK)]


def _relative_error(ours: Tensor, right: Tensor) -> float:
    return float((ours.float() - right).norm() / right.norm())


def _forward_backward_seconds(attend: attention.Attend, inputs: list[Tensor], grad_BHTK: Tensor) -> float:
    return least_seconds(
        lambda: _output_and_gradients(attend, inputs, grad_BHTK), inputs[0].device, REPETITIONS, WARM_UP
    )
