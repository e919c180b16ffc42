"""The layers that a model is made of, in the precision of its weights."""

from torch import Tensor, nn

from model.kernels.linear import linear


class Linear(nn.Linear):
    """torch.nn.Linear through our kernel."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class Layers:
    """Makes the layers that have matrices. Tensor parallelism cuts them (model/parallel.py), FP8 multiplies in another
    format (model/fp8.py)."""

    def embedding(self, rows: int, width: int) -> nn.Module:
        return nn.Embedding(rows, width)

    def column(self, into: int, out: int, bias: bool) -> nn.Module:
        """A linear layer [..., into] -> [..., out]. Under tensor parallelism each rank computes a part of `out`."""
        return Linear(into, out, bias)

    def row(self, into: int, out: int, bias: bool) -> nn.Module:
        """A linear layer that reads what `column` computes. Under tensor parallelism each rank reads its part of
        `into`, and all get the whole output."""
        return Linear(into, out, bias)


LAYERS = Layers()
