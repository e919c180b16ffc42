"""Reads YAML files of settings and studies (data/strict_yaml.py does the work). A fault in a file is a ConfigError."""

import functools
from pathlib import Path
from typing import Any

from ablations.values import ConfigError
from data import strict_yaml


@functools.cache
def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds a mapping. Returns the mapping as a dictionary, whose keys are text.

    Raises:
        ConfigError: the file cannot be read, is not YAML, or holds no mapping; the message names the file.
    """
    try:
        return strict_yaml.read_yaml(path)
    except ValueError as error:
        raise ConfigError(str(error)) from None
