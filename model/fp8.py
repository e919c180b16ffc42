"""FP8: the linear layers of a bf16 model's blocks, multiplying in eight bits (model/kernels/fp8.py).

Embeddings, norms, the products within attention, the output matrix and the loss are not in FP8. Weights are bf16 (with
fp32 masters, as in bf16): they are evaluated and exported like those of a bf16 run.

Between two updates of the optimizer all micro-batches see the same weights, so the context `weights_cast` casts the
weights once. It casts on each entry, and the copies are read only inside the context: after an update, after a
checkpoint is loaded, or after any other change, no layer multiplies with earlier weights.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from model.kernels import fp8
from model.linear import Layers


class FP8Linear(nn.Linear):
    """torch.nn.Linear whose three products (output, gradients of input and weight) have operands rounded to FP8: e4m3,
    and e5m2 for the gradient of the output. Input [..., D] and output [..., F] are bf16, as are weight and bias. Raises
    TypeError where the input is not bf16."""

    w8_FD: Tensor  # this and the next two are the result of `fp8.cast_weight`; they exist after the first cast
    w8_DF: Tensor
    scale: Tensor
    is_cast = False  # whether they are those of the weight as it is now; see `weights_cast`

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype != torch.bfloat16:
            raise TypeError(f"layers in fp8 belong to a bf16 model, and were given {x.dtype}")
        weight = fp8.Weight(self.w8_FD, self.w8_DF, self.scale) if self.is_cast else None
        return fp8.linear(x.flatten(0, -2), self.weight, self.bias, weight).view(*x.shape[:-1], -1)

    @torch.no_grad()
    def cast_weight(self) -> None:
        """Cast the weight as it is now to FP8, and have `forward` multiply with that copy. The copy keeps its place in
        memory, as CUDA graphs need it."""
        weight = fp8.cast_weight(self.weight)
        for name, tensor in weight._asdict().items():
            before = self._buffers.get(name)
            if before is None or (before.dtype, before.device) != (tensor.dtype, tensor.device):
                self.register_buffer(name, tensor, persistent=False)
            else:
                before.copy_(tensor)
        self.is_cast = True


@contextmanager
def weights_cast(model: Any) -> Iterator[None]:
    """A context in which the FP8 layers of a model (model.gpt.GPT) multiply with copies of their weights that are cast
    once, on entering. Code inside that changes the weights must not run the model again before the context ends. In a
    model of another precision nothing is changed.

    The copies take two bytes for each weight, and stay allocated when the context has ended.
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
    """A factory of linear layers that multiply in FP8. The output matrix is made as such a layer too, but never
    called: the loss reads its bf16 weight, so that logits are products in bf16."""

    def column(self, in_features: int, out_features: int, bias: bool) -> nn.Module:
        return FP8Linear(in_features, out_features, bias)

    row = column


FP8_LAYERS = FP8Layers()
