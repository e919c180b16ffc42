"""Text in, batches out: corpora, tokenizer, preparation, `batch(step)`. Imports nothing else of this project."""
