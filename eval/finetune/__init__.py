"""Fine-tuning on GLUE: its tasks and metrics, a classifier on top of a model, training, and the command."""
