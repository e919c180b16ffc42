"""Evaluation of finished runs and reports of studies: reads run directories, writes eval.json and records.

`from eval import harness, mirror`: lm-eval's tasks, and the folder that their data is read from, for those who fill
such a folder by a program of their own. They are loaded when they are asked for, since lm-eval takes seconds to import.
"""

import importlib
from types import ModuleType

PUBLIC = {"harness": "eval.tasks.harness", "mirror": "eval.tasks.mirror"}


def __getattr__(name: str) -> ModuleType:
    if name not in PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return importlib.import_module(PUBLIC[name])
