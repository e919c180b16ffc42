"""Evaluation of finished runs and reports of studies: reads run directories, writes eval.json and records.

Programs that fill a folder of task data may use `from eval import harness, mirror`: harness has the definitions of
lm-eval's tasks, mirror the format of the folder. Both modules are loaded on first use, since lm-eval takes seconds to
import.
"""

import importlib
from types import ModuleType

PUBLIC = {"harness": "eval.tasks.harness", "mirror": "eval.tasks.mirror"}


def __getattr__(name: str) -> ModuleType:
    if name not in PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return importlib.import_module(PUBLIC[name])
