"""What the server that tests fork processes from imports, once for all of them. Nothing of Hugging Face, which reads
the environment as it is imported."""

import gc
import importlib

MODULES = ["torch", "deepspeed", "launch.train", "launch.engine", "model.gpt", "model.proof", "model.parallel"]
MODULES += ["sklearn.metrics", "pandas"]  # lm-eval's
MODULES += ["pytest", "tests.conftest", "tests.test_checkpoint", "tests.tiny_run"]

for module in MODULES:
    importlib.import_module(module)
gc.collect()
gc.freeze()  # else Python searches all of it for garbage, and so copies it, in each process
