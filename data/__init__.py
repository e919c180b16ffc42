"""From text to training batches: corpora, their preparation, tokenizers, token files, and `batch(step)`."""
