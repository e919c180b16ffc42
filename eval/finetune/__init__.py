"""Fine-tuning on GLUE: its tasks and metrics, a classifier on top of a model, its training, and the command."""
