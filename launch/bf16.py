"""Changes DeepSpeed's bf16 optimizer. On a CPU it takes less memory. On a GPU the same update needs fewer kernels, and
the host does not wait for the device.

What DeepSpeed does on a GPU without this change:

* For each parameter and micro-batch it launches three kernels from a Python loop: they cast the gradient, add it to the
  sum, and zero it.
* In each step it zeroes all sums twice, and computes a norm for each parameter.
* In each step the host waits for the device twice: to read whether the norm is finite, and whether it is above the
  limit.
* Each rank receives the sum of all gradients over ranks, rounded to bf16, although it updates only a part of the
  parameters.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

CLIP_EPSILON = 1e-6  # DeepSpeed's: clip_tensors_by_global_norm


def install_gpu_update(ds: Any) -> None:
    """On a GPU, replace the methods by which DeepSpeed's bf16 optimizer sums, clips and applies gradients. The new ones
    launch fewer kernels and never have the host wait for the device.

    * Micro-batches: the first one's gradients are copied into the fp32 sums, later ones are added. One call serves all
      parameters.
    * Ranks: a reduce-scatter gives each rank the fp32 sums of the part that it updates. It moves as many bytes as
      DeepSpeed's all-reduce in bf16.
    * Norm: it is computed from the ranks' parts. AdamW's kernel clips the gradients.
    * Gradients that are not finite: AdamW's kernel skips the update (as with torch.amp.GradScaler), and the norm is
      infinite.

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
    """On a CPU, free the fp32 sums of the gradients after each update, and allocate them again in the next step.

    DeepSpeed keeps the sums allocated during the forward pass, when activations need the memory. On a GPU this function
    is not used: the allocator may not find so large a block again. `optimizer`: a BF16_Optimizer; its methods
    `clear_hp_grads` and `update_hp_grads` are replaced.
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
