"""The layers of which a model is made, embedding and linear, on a single rank and in the precision of the weights."""

from torch import Tensor, nn

from model.kernels.linear import linear


class Linear(nn.Linear):
    """torch.nn.Linear, computed by model/kernels/linear.py."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class Layers:
    """A factory of a model's embedding and linear layers. Other factories make layers that tensor parallelism divides
    (model/parallel.py), or that multiply in FP8 (model/fp8.py)."""

    def embedding(self, rows: int, width: int) -> nn.Module:
        return nn.Embedding(rows, width)

    def column(self, into: int, out: int, bias: bool) -> nn.Module:
        """A linear layer [..., into] -> [..., out], with a bias if `bias`. Under tensor parallelism each rank computes
        a part of `out`."""
        return Linear(into, out, bias)

    def row(self, into: int, out: int, bias: bool) -> nn.Module:
        """A linear layer [..., into] -> [..., out] that reads the output of a `column` layer, with a bias if `bias`.
        Under tensor parallelism each rank reads its part of `into`, and all get the whole output."""
        return Linear(into, out, bias)


LAYERS = Layers()
