"""YAML files of settings and studies, read strictly: whatever is wrong with a file is an error that names the file."""

import functools
from pathlib import Path
from typing import Any

import yaml

from ablations.values import ConfigError

MAX_BYTES = 1_000_000  # untuned; ours have some 8,000
MAX_DEPTH = 20  # of nested lists and mappings; untuned, ours have 3


class StrictLoader(yaml.SafeLoader):
    """A SafeLoader that refuses what YAML allows and settings never need: two equal keys in a mapping, aliases (with
    which a small file can expand to gigabytes), and deep nesting."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise ConfigError(f"line {self.peek_event().start_mark.line + 1}: aliases (*name) are not allowed")
        if self.depth >= MAX_DEPTH:
            raise ConfigError(f"nested deeper than {MAX_DEPTH} lists and mappings")
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def _mapping(loader: StrictLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    names = [str(key.value) for key, _ in node.value]
    if repeated := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise ConfigError(f"line {node.start_mark.line + 1}: the key {repeated[0]!r} stands twice")
    return loader.construct_mapping(node, deep=True)


StrictLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


@functools.cache
def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds a mapping. Returns the mapping as a dictionary; its keys are text. Raises ConfigError
    where the file cannot be read, is no YAML, or holds no such mapping; the message names the file."""
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise ConfigError(f"larger than {MAX_BYTES:,} bytes")
        tree = yaml.load(content.decode("utf-8"), Loader=StrictLoader)  # a SafeLoader
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not UTF-8 text") from None
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f", line {where.line + 1}" if where else ""
        problem = getattr(error, "problem", None) or getattr(error, "reason", "") or "it cannot be parsed"
        raise ConfigError(
            f"{path}{line} is no YAML: {problem}. Indent with spaces; text with a colon needs quotes"
        ) from None
    except (ValueError, ArithmeticError) as error:  # a date or a number that cannot be
        raise ConfigError(f"{path}: {error}") from None
    if not isinstance(tree, dict) or not all(isinstance(key, str) for key in tree):
        raise ConfigError(f"{path} must hold `name: value` lines, not {_kind(tree)}")
    return tree


def _kind(tree: Any) -> str:
    if tree is None:
        return "nothing"
    return "names that are no text" if isinstance(tree, dict) else f"a {type(tree).__name__}"
