"""Changes DeepSpeed's bf16 optimizer: on a CPU it takes less memory; on a GPU it makes the same update with fewer
kernels, and without the host waiting for the device.

On a GPU, DeepSpeed itself launches three kernels per parameter and micro-batch (a cast, a sum, a zero), from a Python
loop. In each step, it fills all sums with zeros twice, computes a norm for each parameter, and reads from the device
twice ("is the norm finite?", "is it above the limit?"), for which the host has to wait. Between ranks it sums whole
gradients, rounded to bf16, although each rank updates only a part.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

CLIP_EPSILON = 1e-6  # DeepSpeed's: clip_tensors_by_global_norm


def use_device_updates(ds: Any) -> None:
    """On a GPU, replace the methods by which DeepSpeed's bf16 optimizer sums, clips and applies gradients.

    * Sums over micro-batches: the gradients of the first micro-batch are written into the fp32 sums, and those of later
      micro-batches are added to them, in one call for all parameters.
    * Sums over ranks: each rank receives the fp32 sums of the part that it updates (reduce-scatter). That moves as many
      bytes as DeepSpeed's all-reduce in bf16, and needs no copy of the gradients.
    * The norm is computed from these parts. AdamW's kernel clips, and skips an update whose gradients are not finite
      (as with torch.amp.GradScaler): weights, moments and step count stay as they were, and the norm is infinite.

    `ds`: a DeepSpeed engine with a BF16_Optimizer, without tensor parallelism.
    """
    optimizer = ds.optimizer
    group, clip = optimizer.dp_process_group, float(optimizer.clip_grad)
    world = dist.get_world_size(group)
    params = [p for members in optimizer.bf16_groups for p in members]
    sums = [s for members in optimizer.fp32_groups_gradients for s in members]
    parts: list[Tensor] = optimizer.fp32_groups_gradient_flat_partition
    adamw = optimizer.optimizer
    ds.enable_backward_allreduce = False  # `device_step` sums over ranks instead

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
                flat[sum(p.numel() for p in members) :].zero_()  # the padding at its end
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
        # AdamW divides gradients by this scale: larger norms become `clip`, smaller ones stay as they are
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


def free_fp32_gradients_between_steps(optimizer: Any) -> None:
    """On a CPU, have DeepSpeed's bf16 optimizer free the fp32 sums of the gradients after each update. In the next step
    the first micro-batch's gradients are written into the sums, not added to zeros.

    Otherwise DeepSpeed keeps the sums allocated during the forward pass, when activations need the memory. On a GPU the
    sums are not freed: that would save nothing where micro-batches are accumulated, as is usual there, and the
    allocator may not find so large a block again. `optimizer`: a BF16_Optimizer, whose methods `clear_hp_grads` and
    `update_hp_grads` are replaced.
    """
    flat, add = optimizer.fp32_groups_gradients_flat, optimizer.update_hp_grads
    sizes = [sums.untyped_storage().nbytes() for sums in flat]

    def clear_hp_grads() -> None:
        for sums in flat:
            sums.untyped_storage().resize_(0)
        optimizer.fp32_groups_has_gradients = [[False] * len(group) for group in optimizer.bf16_groups]

    @torch.no_grad()
    def update_hp_grads(clear_lp_grads: bool = False) -> None:
        if flat[0].untyped_storage().nbytes():
            add(clear_lp_grads)
            return
        groups = zip(flat, sizes, optimizer.fp32_groups_gradients, optimizer.bf16_groups, strict=True)
        for i, (whole, size, sums, params) in enumerate(groups):
            whole.untyped_storage().resize_(size)
            whole[sum(p.numel() for p in params) :].zero_()  # the padding at its end
            unused = [tuple(p.shape) for p in params if p.grad is None]
            if unused:
                raise ValueError(f"no gradient reached parameters of shapes {unused}: the loss does not depend on them")
            torch._foreach_copy_(sums, [p.grad.view(-1) for p in params])
            optimizer.fp32_groups_has_gradients[i] = [True] * len(params)

    optimizer.clear_hp_grads, optimizer.update_hp_grads = clear_hp_grads, update_hp_grads
    clear_hp_grads()
