"""Reads YAML files of settings, studies and corpora strictly: a fault in a file is an error whose message names the
file."""

import re
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

MAX_BYTES = 1_000_000  # of a file; untuned, ours have some 12,000
MAX_DEPTH = 20  # of nested lists and mappings; untuned, ours have 3
DECIMAL = r"[+-]?(0|[1-9][0-9_]*)(\.[0-9_]*)?([eE][+-]?[0-9]{1,3})?"
TEXT = "tag:yaml.org,2002:str"
LARGEST = 2**53  # whole numbers up to this one are exact as floating-point numbers too
# Characters that could act on a terminal, and halves of surrogate pairs, which are no text. Tabs and newlines are
# allowed.
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


class StrictLoader(yaml.SafeLoader):
    """A SafeLoader that raises ValueError for features of YAML that these files do not need:

    * two equal keys in a mapping, and keys that are not text;
    * aliases, with which a small file can expand to gigabytes, and tags such as !!timestamp;
    * deep nesting, and control characters;
    * numbers that are not finite, or not decimal: 010 would be 8, and 1:30 would be 90.
    """

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        line = event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent):
            raise ValueError(f"line {line}: aliases (*name) are not allowed")
        if event.tag is not None:
            raise ValueError(f"line {line}: tags (!name) are not allowed")
        if isinstance(event, yaml.ScalarEvent) and CONTROL.search(event.value):
            raise ValueError(f"line {line}: control characters are not allowed: {event.value[:60]!r}")
        if self.depth >= MAX_DEPTH:
            raise ValueError(f"nested deeper than {MAX_DEPTH} lists and mappings")
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def _construct_mapping(loader: StrictLoader, node: yaml.MappingNode) -> dict[str, Any]:
    line = node.start_mark.line + 1
    names: Counter[str] = Counter()
    for key, _ in node.value:
        if key.tag != TEXT:
            name = repr(key.value) if isinstance(key, yaml.ScalarNode) else "a list or mapping"
            raise ValueError(f"line {line}: a name must be text, in quotes where in doubt, and not {name[:60]}")
        names[key.value] += 1
    if repeated := [name for name, number in names.items() if number > 1]:
        raise ValueError(f"line {line}: the key {repeated[0]!r} stands twice")
    return {str(name): value for name, value in loader.construct_mapping(node, deep=True).items()}


def _construct_number(loader: StrictLoader, node: yaml.ScalarNode) -> int | float:
    text = str(node.value)
    if not re.fullmatch(DECIMAL, text):
        raise ValueError(f"line {node.start_mark.line + 1}: {text[:60]} is no decimal number; text needs quotes")
    number = (
        loader.construct_yaml_int(node) if re.fullmatch(r"[+-]?[0-9_]+", text) else loader.construct_yaml_float(node)
    )
    if abs(number) > LARGEST:
        raise ValueError(f"line {node.start_mark.line + 1}: {text[:60]} is beyond ±{LARGEST:,}")
    return number


StrictLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _construct_mapping)
for kind in ("int", "float"):
    StrictLoader.add_constructor(f"tag:yaml.org,2002:{kind}", _construct_number)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds a mapping. Returns it as a dictionary; all keys, of nested mappings too, are text.
    Raises ValueError where the file cannot be read, is not YAML, or holds no mapping; the message names the file."""
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise ValueError(f"larger than {MAX_BYTES:,} bytes")
        tree = yaml.load(content.decode("utf-8"), Loader=StrictLoader)  # a SafeLoader
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8 text") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or getattr(error, "reason", "") or "it cannot be parsed"
        raise ValueError(
            f"{path}{line} is no YAML: {problem}. Indent with spaces; text with a colon needs quotes"
        ) from None
    except (ValueError, ArithmeticError) as error:  # of StrictLoader; or an impossible date or number
        raise ValueError(f"{path}: {error}") from None
    if not isinstance(tree, dict):
        raise ValueError(f"{path} must hold `name: value` lines, not {_type_in_words(tree)}")
    return tree


def _type_in_words(tree: Any) -> str:
    return "nothing" if tree is None else f"a {type(tree).__name__}"
