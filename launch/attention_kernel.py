"""Which kernel computes attention on a GPU: timed when a run starts. It depends on the card, the shape and torch."""

from typing import Any

import torch
import torch.distributed as dist

from launch.timing import least_seconds
from model import attention

WARM_UP, REPETITIONS = 3, 5  # untuned; the least of the repetitions counts


def choose_kernel(model: Any, micro_batch: int) -> dict[str, float]:
    """Time the kernels that can compute the attention of a model, and set `model.attention_kernel` to the fastest. All
    ranks use the kernel that is fastest on the first rank.

    Args:
        model: a model.gpt.GPT on its device.
        micro_batch: sequences in a micro-batch, the batch size of the timed attention.

    Returns:
        {kernel: seconds of one layer's attention, forward and backward}, the fastest first. Empty where there is no
        choice and the model is left as it is: on a CPU, with attn_dropout, QK scaling or a prefix objective, and with
        position schemes that add a bias to the scores.
    """
    cfg, weight = model.cfg, model.embed.weight
    no_choice = cfg.attn_dropout or cfg.qk_scaling or model.objective.has_extents or model.position.has_bias
    if not weight.is_cuda or no_choice:
        return {}
    seconds = [time_kernels(model, micro_batch)]
    if dist.get_world_size() > 1:
        dist.broadcast_object_list(seconds)
    model.attention_kernel = next(iter(seconds[0]), None)
    return seconds[0]


def time_kernels(model: Any, micro_batch: int) -> dict[str, float]:
    """Time every kernel that can compute attention at the model's shape and precision. Returns {kernel: seconds of one
    layer's attention, forward and backward}, the fastest first; kernels that do not work with this device, shape or
    precision are left out. `model`: a model.gpt.GPT on its device; `micro_batch`: sequences in a batch."""
    cfg, weight = model.cfg, model.embed.weight
    heads = cfg.heads // model.tp.size
    # as the model has them: parts of one tensor, heads beside each other
    qkv = torch.randn(micro_batch, cfg.seq, 3, heads, cfg.head_dim, device=weight.device, dtype=weight.dtype)
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    inputs = [x.detach().requires_grad_() for x in (q, k, v)]
    seconds = {}
    for kernel in (*attention.TORCH_KERNELS, attention.FLEX):
        if kernel == attention.FLEX:
            x_BTD = weight.new_empty(micro_batch, cfg.seq, 0)
            attend = attention.flexattention(model.position, heads, x_BTD, model.objective)
        else:
            attend = attention.maskless_attention(model.position, model.objective, kernel, or_plain=False)
        try:
            seconds[kernel] = _step_seconds(attend, inputs)
        except (RuntimeError, NotImplementedError):  # torch's, where a kernel is not for this device or shape
            continue
    return dict(sorted(seconds.items(), key=lambda item: item[1]))


def _step_seconds(attend: attention.Attend, inputs: list[Any]) -> float:
    def forward_and_backward() -> None:
        torch.autograd.grad(attend(*inputs).sum(), inputs)

    return least_seconds(forward_and_backward, inputs[0].device, REPETITIONS, WARM_UP)
