"""DeepSpeed's bf16 optimizer on a GPU: the same update in few kernels, and without the host waiting for the device.

DeepSpeed's own way costs, per micro-batch, three kernels for each parameter (a cast, a sum, a zero) from a Python loop,
and per step: two fillings of all sums with zeros, a norm for each parameter, and two questions to the device ("is the
norm finite?", "is it above the limit?") before which the host can prepare nothing. Between ranks it sums whole
gradients, rounded to bf16, though each rank updates a part only.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

CLIP_EPSILON = 1e-6  # DeepSpeed's: clip_tensors_by_global_norm


def use_device_updates(ds: Any) -> None:
    """Replace what the optimizer of `ds`, a DeepSpeed engine with a BF16_Optimizer and no tensor parallelism, does with
    gradients.

    * Sums over micro-batches: the first is written, the others are added, all by one call; no zeros are filled in.
    * Sums over ranks: each rank gets the sums, in fp32, of the part that it updates (reduce-scatter). It moves as many
      bytes as the bf16 all-reduce in its place, and needs no copy of the gradients.
    * The norm is of these parts. Clipping is done by AdamW's kernel, and so is leaving out an update whose gradients
      are not finite (as torch.amp.GradScaler does it): weights, moments and step count stay as they were, and the norm
      is infinite.
    """
    optimizer = ds.optimizer
    group, clip = optimizer.dp_process_group, float(optimizer.clip_grad)
    world = dist.get_world_size(group)
    params = [p for members in optimizer.bf16_groups for p in members]
    sums = [s for members in optimizer.fp32_groups_gradients for s in members]
    parts: list[Tensor] = optimizer.fp32_groups_gradient_flat_partition
    adamw = optimizer.optimizer
    ds.enable_backward_allreduce = False  # `device_step` does it

    def clear_hp_grads() -> None:
        optimizer.fp32_groups_has_gradients = [[False] * len(members) for members in optimizer.bf16_groups]

    @torch.no_grad()
    def update_hp_grads(clear_lp_grads: bool = False) -> None:
        grads = [torch.zeros_like(p).view(-1) if p.grad is None else p.grad.view(-1) for p in params]
        if optimizer.fp32_groups_has_gradients[0][0]:
            torch._foreach_add_(sums, grads)
        else:
            torch._foreach_copy_(sums, grads)
            for flat, members in zip(optimizer.fp32_groups_gradients_flat, optimizer.bf16_groups, strict=True):
                flat[sum(p.numel() for p in members) :].zero_()  # what fills it up
            optimizer.fp32_groups_has_gradients = [[True] * len(members) for members in optimizer.bf16_groups]
        for p in params:
            p.grad = None  # or the next backward pass would add to it

    @torch.no_grad()
    def device_step(closure: None = None) -> None:
        if world > 1:
            for part, flat in zip(parts, optimizer.fp32_groups_gradients_flat, strict=True):
                dist.reduce_scatter_tensor(part, flat, group=group)  # in place: `part` is this rank's part of `flat`
                part.mul_(1 / world)
        square = torch.stack(torch._foreach_norm(parts)).square().sum()
        if world > 1:
            dist.all_reduce(square, group=group)
        norm = square.sqrt()
        adamw.found_inf = (~norm.isfinite()).float()
        # a gradient is divided by it: at most `clip` is left of the norm; 1 where it is smaller
        adamw.grad_scale = ((norm + CLIP_EPSILON) / clip).clamp_min(1.0)
        optimizer._global_grad_norm = torch.where(norm.isfinite(), norm, torch.inf)
        for master, part in zip(optimizer.fp32_groups_flat_partition, parts, strict=True):
            master.grad = part
        adamw.step()
        optimizer._lazy_init_hp_params_optimizer_state()
        optimizer.update_lp_params()
        optimizer.clear_hp_grads()

    optimizer.clear_hp_grads, optimizer.update_hp_grads, optimizer.step = clear_hp_grads, update_hp_grads, device_step
    clear_hp_grads()
