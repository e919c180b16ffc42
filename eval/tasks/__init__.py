"""Zero-shot tasks: their data, the requests that they make to a model, and the scoring of its answers."""

import os

# Evaluation never reads the hub (eval/tasks/fetch.py does, and says so there): asking it takes 25 s. `datasets` and
# transformers read these variables once, when they are imported, so they are set before any file of this package is.
os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TRANSFORMERS_OFFLINE="1")
os.environ.setdefault("TQDM_DISABLE", "1")  # lm-eval shows a bar for every step
