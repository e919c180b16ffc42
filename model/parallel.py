"""Tensor parallelism: megatron-core's layers, and its process groups for DeepSpeed. Imported only with layout.tp > 1.

A tensor parallel group holds one copy of the model, on consecutive ranks (0 and 1, 2 and 3, ...). Ranks with the same
place in their groups form a data-parallel group, among which ZeRO divides the optimizer.

Parameters that are not divided get equal gradients on all ranks of a group, because their inputs are reduced already.
DeepSpeed's gradient norm counts them on the first rank only. It counts divided parameters on every rank, and knows them
by their attribute `tensor_model_parallel`.
"""

import warnings
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from model.kernels.linear import linear
from model.linear import Layers
from model.shard import RankGroup, shard_dimension, unshard

with warnings.catch_warnings():  # of what a machine without TransformerEngine and Apex lacks
    warnings.simplefilter("ignore")
    from megatron.core import ModelParallelConfig, parallel_state
    from megatron.core.tensor_parallel import (
        ColumnParallelLinear,
        RowParallelLinear,
        VocabParallelEmbedding,
        linear_with_grad_accumulation_and_async_allreduce,
        vocab_parallel_cross_entropy,
    )

# model/init.py draws the weights, by name. Memory is left as it is, on the CPU: DeepSpeed moves the model.
CONFIG = {"config": ModelParallelConfig(use_cpu_initialization=True, perform_initialization=False), "init_method": None}


class _WithoutExtraState(nn.Module):
    """Drops the empty entry for Transformer Engine that megatron-core's layers add to every state_dict."""

    get_extra_state = nn.Module.get_extra_state
    set_extra_state = nn.Module.set_extra_state


class Embedding(_WithoutExtraState, VocabParallelEmbedding):
    """A token embedding whose rows are divided among the ranks."""

    def __init__(self, rows: int, width: int):
        super().__init__(rows, width, **CONFIG, tp_group=parallel_state.get_tensor_model_parallel_group())


class Column(_WithoutExtraState, ColumnParallelLinear):
    """A linear layer whose output features are divided among the ranks; the parts are not gathered."""

    def __init__(self, in_features: int, out_features: int, bias: bool):
        group = parallel_state.get_tensor_model_parallel_group()
        super().__init__(in_features, out_features, **CONFIG, bias=bias, gather_output=False, tp_group=group)
        self.in_features, self.out_features = in_features, self.output_size_per_partition

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[0]


class Row(_WithoutExtraState, RowParallelLinear):
    """A linear layer whose input features are divided among the ranks; every rank gets the whole output."""

    def __init__(self, in_features: int, out_features: int, bias: bool):
        group = parallel_state.get_tensor_model_parallel_group()
        super().__init__(
            in_features, out_features, **CONFIG, bias=bias, input_is_parallel=True, skip_bias_add=False, tp_group=group
        )
        self.in_features, self.out_features = self.input_size_per_partition, out_features

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[0]


class ParallelLayers(Layers):
    """A factory of layers that tensor parallelism divides; each rank's layer has its part of the weights. The layers
    multiply in the precision of their weights, since megatron-core has FP8 only through Transformer Engine."""

    def embedding(self, rows: int, width: int) -> nn.Module:
        return Embedding(rows, width)

    def column(self, in_features: int, out_features: int, bias: bool) -> nn.Module:
        return Column(in_features, out_features, bias)

    def row(self, in_features: int, out_features: int, bias: bool) -> nn.Module:
        return Row(in_features, out_features, bias)


class TensorParallel(RankGroup):
    """The tensor parallel group of this process: the `size` ranks that hold one copy of the model together. The process
    group must be initialised. Raises ValueError where the number of ranks is no multiple of `size`, or groups of
    another size exist."""

    layers = ParallelLayers()

    def __init__(self, size: int):
        if dist.get_world_size() % size:
            raise ValueError(f"{dist.get_world_size()} ranks are no multiple of layout.tp={size}")
        if not parallel_state.model_parallel_is_initialized():
            parallel_state.initialize_model_parallel(size, create_gloo_process_groups=False)
        self.group = parallel_state.get_tensor_model_parallel_group()
        self.rank, self.size = dist.get_rank(self.group), dist.get_world_size(self.group)
        if self.size != size:
            raise ValueError(f"the ranks are already in groups of {self.size}, not {size}")

    def loss(self, x_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
        logits_NV = linear_with_grad_accumulation_and_async_allreduce(
            x_ND,
            weight_VD,
            None,
            gradient_accumulation_fusion=False,
            allreduce_dgrad=True,
            sequence_parallel=False,
            tp_group=self.group,
        )
        return vocab_parallel_cross_entropy(logits_NV, targets_N).mean()

    @torch.no_grad()
    def project(self, x: Tensor, weight_VD: Tensor) -> Tensor:
        """Logits of the whole vocabulary, [..., D] -> [..., V], without a gradient. `weight_VD`: this rank's rows of
        the output matrix. The parts are gathered here because megatron-core's gathering needs a GPU."""
        return torch.cat(self._parts(linear(x, weight_VD)), dim=-1)

    def draw_dropout_by_rank(self, attend: Any) -> Any:
        def attend_with_seed_of_rank(q: Tensor, *rest: Tensor, **named: Any) -> Tensor:
            # drawn from the numbers that all ranks share, so that these stay in step, and other in each call
            seed = int(torch.randint(2**62, ()))
            with torch.random.fork_rng([q.device] if q.is_cuda else []):
                torch.manual_seed(seed + self.rank)
                return attend(q, *rest, **named)

        return attend_with_seed_of_rank

    def gather(self, name: str, part: Tensor) -> Tensor:
        return unshard(name, self._parts(part)) if shard_dimension(name) is not None else part

    def gather_objects(self, value: Any) -> list[Any]:
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.group)
        return values

    def _parts(self, part: Tensor) -> list[Tensor]:
        part = part.detach().contiguous()
        parts = [torch.empty_like(part) for _ in range(self.size)]
        dist.all_gather(parts, part, group=self.group)
        return parts


class MPU:
    """The argument `mpu` of DeepSpeed, by which it finds the parallel groups: megatron-core's parallel state, with
    three functions under the names that DeepSpeed expects. On creation, marks the parameters of `model` that tensor
    parallelism divides."""

    def __init__(self, model: nn.Module):
        for name, p in model.named_parameters():
            p.tensor_model_parallel = shard_dimension(name) is not None  # type: ignore[attr-defined]

    get_model_parallel_rank = staticmethod(parallel_state.get_tensor_model_parallel_rank)
    get_model_parallel_world_size = staticmethod(parallel_state.get_tensor_model_parallel_world_size)
    get_model_parallel_group = staticmethod(parallel_state.get_tensor_model_parallel_group)

    def __getattr__(self, name: str) -> Any:
        return getattr(parallel_state, name)
