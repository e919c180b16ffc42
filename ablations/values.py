"""Values of settings: from text or YAML to their type, flat by key, and what differs between two."""

import difflib
import functools
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml


class ConfigError(ValueError):
    """The user asked for something that does not exist or does not fit; the message says what would."""


def typed(key: str, kind: Any, value: Any) -> Any:
    """`value`, as text or as YAML read it, in the type `kind`; `key` is for the message.

    Raises:
        ConfigError: wrong type, or a variant that does not exist.
    """
    if get_origin(kind) is Literal:
        allowed = get_args(kind)
        for option in allowed:
            if value == option and type(value) is type(option) or str(value) == str(option):
                return option
        listed = ", ".join(map(str, allowed))
        raise ConfigError(f"{key}={value} is not one of {listed}{did_you_mean(str(value), map(str, allowed))}")
    if get_origin(kind) is list:
        items = value if isinstance(value, list) else [v for v in str(value).strip("[]").split(",") if v.strip()]
        if get_args(kind) == (str,):
            return [str(v).strip() for v in items]
        each, what = (_float, "numbers") if get_args(kind) == (float,) else (_int, "whole numbers")
        try:
            return [each(v) for v in items]
        except (ValueError, TypeError):
            raise ConfigError(f"{key}={value}: {what} with commas between them are needed") from None
    reader = {bool: _bool, int: _int, float: _float, str: _str}[kind]
    try:
        return reader(value)
    except (ValueError, TypeError):
        example = {bool: "true or false", int: "a whole number such as 512, 2M or 10B", float: "a number such as 3e-4"}
        raise ConfigError(f"{key}={value}: {example.get(kind, 'text')} is needed") from None


def _bool(value: Any) -> bool:
    words = {"true": True, "on": True, "yes": True, "1": True, "false": False, "off": False, "no": False, "0": False}
    if str(value).lower() not in words:
        raise ValueError
    return words[str(value).lower()]


def _int(value: Any) -> int:
    if isinstance(value, bool):
        raise ValueError
    text = str(value).replace(",", "").replace("_", "")
    scale = {"K": 10**3, "M": 10**6, "B": 10**9}.get(text[-1:].upper(), 1)
    number = float(text[:-1] if scale > 1 else text) * scale
    if not number.is_integer():  # nor are nan and inf
        raise ValueError
    return int(number)


def _float(value: Any) -> float:
    if isinstance(value, bool):
        raise ValueError
    number = float(value)
    if number != number or number in (float("inf"), float("-inf")):
        raise ValueError
    return number


def _str(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError
    return value.strip()


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"model": {"pos": "none"}} -> {"model.pos": "none"}."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def difference(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    """What `b` holds where it differs from `a`; both flat. A key that one of them lacks differs too."""
    nothing = object()
    return {k: b.get(k) for k in sorted(a.keys() | b.keys()) if a.get(k, nothing) != b.get(k, nothing)}


def did_you_mean(word: str, options: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(options), n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def human(number: float) -> str:
    """1048576 -> "1.05M"; 4.1e21 -> "4.1e21"."""
    if number and not 1e-3 <= abs(number) < 1e15:
        mantissa, _, power = f"{number:.2g}".partition("e")
        return f"{mantissa}e{int(power)}" if power else mantissa
    units = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K"))
    unit, suffix = next((u for u in units if abs(number) >= 0.9995 * u[0]), (1, ""))  # 999,999 is 1M
    return f"{number / unit:.3g}{suffix}".replace("-", "−")


class _UniqueKeys(yaml.SafeLoader):
    """YAML keeps the last of two equal keys and says nothing; here that is an error."""


def _mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    names = [k.value for k, _ in node.value]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"{node.start_mark.name}: the key {name!r} stands twice")
    return loader.construct_mapping(node, deep=True)


_UniqueKeys.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


@functools.cache
def read_yaml(path: Path) -> dict[str, Any]:
    with open(path, encoding="utf-8") as f:
        return yaml.load(f, Loader=_UniqueKeys)  # a SafeLoader
