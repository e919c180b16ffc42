"""Text in, batches out: corpora, tokenizer, preparation, `batch(step)`."""
