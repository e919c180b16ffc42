"""Zero-shot tasks: where their data lies, the requests they make of a model, and how these are scored."""
