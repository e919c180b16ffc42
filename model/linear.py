"""The layers of which a model is made, embedding and linear, for a single rank and in the precision of the weights."""

from torch import Tensor, nn

from model.kernels.linear import linear


class Linear(nn.Linear):
    """torch.nn.Linear, computed by model/kernels/linear.py."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class Layers:
    """A factory that makes a model's embedding and linear layers. Other factories make layers for tensor parallelism
    (model/parallel.py) and for FP8 (model/fp8.py)."""

    def embedding(self, rows: int, width: int) -> nn.Module:
        return nn.Embedding(rows, width)

    def column(self, in_features: int, out_features: int, bias: bool) -> nn.Module:
        """Make a linear layer. Under tensor parallelism its output features are divided among the ranks."""
        return Linear(in_features, out_features, bias)

    def row(self, in_features: int, out_features: int, bias: bool) -> nn.Module:
        """Make a linear layer that reads the output of a `column` layer. Under tensor parallelism its input features
        are divided among the ranks; all ranks get the whole output."""
        return Linear(in_features, out_features, bias)


LAYERS = Layers()
