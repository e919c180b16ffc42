"""FP8 training: the linear layers of a bf16 model's blocks multiply in eight bits (model/kernels/fp8.py).

Embeddings, norms, the products within attention, the output matrix and the loss are not in FP8. Weights are bf16 with
fp32 masters, and are evaluated and exported like those of a bf16 run.

All micro-batches between two updates of the optimizer see the same weights. The context `fp8_weight_copies` therefore
casts the weights once, when it is entered. The copies are read only inside the context, so that they never outlast a
change of the weights.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from model.kernels import fp8
from model.linear import Layers


class FP8Linear(nn.Linear):
    """torch.nn.Linear with its three products (output, gradients of input and weight) in FP8. Operands are rounded to
    e4m3, the gradient of the output to e5m2. Input [..., D], output [..., F], weight and bias are bf16. Raises
    TypeError for another input."""

    w8_FD: Tensor  # this and the next two are the result of `fp8.cast_weight`; they exist after the first cast
    w8_DF: Tensor
    scale: Tensor
    is_cast = False  # whether they are those of the weight as it is now; see `fp8_weight_copies`

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype != torch.bfloat16:
            raise TypeError(f"layers in fp8 belong to a bf16 model, and were given {x.dtype}")
        weight = fp8.Weight(self.w8_FD, self.w8_DF, self.scale) if self.is_cast else None
        return fp8.linear(x.flatten(0, -2), self.weight, self.bias, weight).view(*x.shape[:-1], -1)

    @torch.no_grad()
    def cast_weight(self) -> None:
        """Cast the weight as it is now to FP8, for `forward` to multiply with. The copy keeps its place in memory, as
        CUDA graphs require."""
        weight = fp8.cast_weight(self.weight)
        for name, tensor in weight._asdict().items():
            before = self._buffers.get(name)
            if before is None or (before.dtype, before.device) != (tensor.dtype, tensor.device):
                self.register_buffer(name, tensor, persistent=False)
            else:
                before.copy_(tensor)
        self.is_cast = True


@contextmanager
def fp8_weight_copies(model: Any) -> Iterator[None]:
    """A context in which the FP8 layers of a model (model.gpt.GPT) multiply with copies of their weights, cast to FP8
    once on entering. Inside, do not run the model again after its weights have changed. Without effect on a model of
    another precision.

    The copies take two bytes for each weight, and stay allocated after the context.
    """
    layers = [layer for layer in model.blocks.modules() if isinstance(layer, FP8Linear)]
    for layer in layers:
        layer.cast_weight()
    try:
        yield
    finally:
        for layer in layers:
            layer.is_cast = False


class FP8Layers(Layers):
    """A factory of linear layers that multiply in FP8. It also makes the output matrix, whose layer is never called:
    the loss reads its weight, so that logits are products in bf16."""

    def column(self, in_features: int, out_features: int, bias: bool) -> nn.Module:
        return FP8Linear(in_features, out_features, bias)

    row = column


FP8_LAYERS = FP8Layers()
