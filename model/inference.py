"""Whether the model is scoring text, in which case operations without a gradient may be used."""

import torch


def is_scoring() -> bool:
    """Whether torch is in inference mode, as it is in evaluation but not in training and proofs. False while
    torch.compile traces the model, since asking torch for the mode would break the graph."""
    return not torch.compiler.is_compiling() and torch.is_inference_mode_enabled()
