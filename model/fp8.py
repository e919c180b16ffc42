"""FP8: the linear layers of a bf16 model's blocks, multiplying in eight bits (model/kernels/fp8.py).

Embeddings, norms, the products within attention, the output matrix and the loss are not in FP8. Weights are bf16 (with
fp32 masters, as in bf16): they are evaluated and exported like those of a bf16 run.
"""

import torch
from torch import Tensor, nn

from model.kernels import fp8
from model.linear import Layers


class FP8Linear(nn.Linear):
    """torch.nn.Linear in FP8.

    Raises:
        TypeError: the input is not bf16.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype != torch.bfloat16:
            raise TypeError(f"layers in fp8 belong to a bf16 model, and were given {x.dtype}")
        return fp8.linear(x.flatten(0, -2), self.weight, self.bias).view(*x.shape[:-1], -1)


class FP8Layers(Layers):
    """Makes linear layers that multiply in FP8. The output matrix is made here too, but its product is in bf16, since
    the loss uses only its weight."""

    def column(self, into: int, out: int, bias: bool) -> nn.Module:
        return FP8Linear(into, out, bias)

    row = column


FP8_LAYERS = FP8Layers()
