"""Whether torch is in inference mode, in which operations without a gradient may be used."""

import torch


def in_inference_mode() -> bool:
    """Whether torch is in inference mode: true in evaluation, false in training and in proofs. False while
    torch.compile traces the model, since the query would break the graph."""
    return not torch.compiler.is_compiling() and torch.is_inference_mode_enabled()
