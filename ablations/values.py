"""Values of settings: converted from text or YAML to their type, flattened to {"model.pos": value}, and compared."""

import difflib
import math
import re
from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import Any, Literal, get_args, get_origin


class ConfigError(ValueError):
    """The user asked for something that does not exist or is not possible. The message says what is allowed."""


DIGITS = r"(?:\d{1,3}(?:_\d{3})+|\d+)"  # 1024 or 1_024, but not 1_0, which may be meant as 1.0
NUMBER = rf"([+-]?{DIGITS}(?:\.\d+)?(?:E[+-]?\d{{1,3}})?)([KMB]?)"  # 512, 1_024, 1.5M, 1E6
LARGEST = 2**53  # whole numbers up to this one are exact as floating-point numbers too
SHOWN_CHARACTERS = 200  # characters of a value that an error message shows
EXAMPLES = {  # {type of a setting: the values it takes, for error messages}
    bool: "true or false",
    int: "a whole number such as 512, 2M or 10B",
    float: "a number such as 3e-4",
    str: "text",
    list[int]: "whole numbers with commas between them",
    list[float]: "numbers with commas between them",
    list[str]: "names with commas between them",
}


def convert_value(key: str, kind: Any, value: Any, meaning: str = "") -> Any:
    """Convert the value of a setting, given as text or read from YAML, to the setting's type.

    Args:
        key: the name of the setting, for the error message.
        kind: the type: bool, int, float, str, a list of one of these, or a Literal of the allowed values.
        value: the value.
        meaning: the meaning of the setting, for the error message.

    Raises:
        ConfigError: the value has the wrong type, or is not one of the allowed values.
    """
    if get_origin(kind) is Literal:
        choices = get_args(kind)
        for choice in choices:
            if value == choice and type(value) is type(choice) or str(value) == str(choice):
                return choice
        raise unknown_choice_error(key, value, [str(choice) for choice in choices])
    try:
        return _convert(kind, value)
    except (ValueError, TypeError, ArithmeticError):
        explanation = f" ({meaning})" if meaning else ""
        verb, text = "are" if get_origin(kind) is list else "is", str(value)[:SHOWN_CHARACTERS]
        raise ConfigError(f"{key}={text}: {EXAMPLES[kind]} {verb} needed{explanation}") from None


def _convert(kind: Any, value: Any) -> Any:
    """Convert `value` to the type `kind`. Raises ValueError, TypeError or ArithmeticError if that is impossible."""
    if get_origin(kind) is list:
        if isinstance(value, str):
            text = value.strip()
            text = text[1:-1] if text.startswith("[") and text.endswith("]") else text
            value = text.split(",") if text.strip() else []
        if not isinstance(value, list):
            value = [value]
        return [_convert(get_args(kind)[0], item) for item in value]
    return {bool: _bool, int: _int, float: _float, str: _str}[kind](value)


def _bool(value: Any) -> bool:
    words = {"true": True, "on": True, "yes": True, "1": True, "false": False, "off": False, "no": False, "0": False}
    if str(value).lower() not in words:
        raise ValueError
    return words[str(value).lower()]


def _int(value: Any) -> int:
    """The integer in a text such as 512, 2M or 1E6. Raises ValueError where the text is no integer, the number is too
    large, or it contains a comma, which may be meant as a decimal point or as a separator."""
    if isinstance(value, bool):
        raise ValueError
    match = re.fullmatch(NUMBER, str(value).strip().upper(), re.ASCII)
    if not match:
        raise ValueError
    number = Decimal(match[1]) * {"": 1, "K": 10**3, "M": 10**6, "B": 10**9}[match[2]]
    if abs(number) > LARGEST or number % 1:
        raise ValueError
    return int(number)


def _float(value: Any) -> float:
    if isinstance(value, bool):
        raise ValueError
    number = parse_number(value) if isinstance(value, str) else float(value)
    if not math.isfinite(number):
        raise ValueError
    return number


def parse_number(text: str) -> float:
    """The number in a text that a user typed, such as 3e-4, 1_000 or -inf. Raises ValueError where the text is no
    number, has digits other than 0 to 9, or an underscore that may be meant as a decimal point (1_0)."""
    if not text.isascii() or ("_" in text and not re.fullmatch(rf"\s*[+-]?{DIGITS}(?:\.\d+)?\s*", text)):
        raise ValueError(text)
    return float(text)


def _str(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError
    return value.strip()


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten a nested dictionary: {"model": {"pos": "none"}} becomes {"model.pos": "none"}. `prefix`: the beginning of
    all keys."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def difference(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    """The keys in which two flat dictionaries differ: {key: value in `b`}. The value is None where `b` lacks the
    key."""
    nothing = object()
    return {k: b.get(k) for k in sorted(a.keys() | b.keys()) if a.get(k, nothing) != b.get(k, nothing)}


def unknown_choice_error(name: str, value: Any, options: Iterable[str]) -> ConfigError:
    """The error about a value that is not one of the `options`, which its message lists. `name`: the word or setting
    that has the value."""
    text, names = str(value)[:SHOWN_CHARACTERS], list(options)
    return ConfigError(f"{name}={text} is not one of {', '.join(names)}{did_you_mean(text, names)}")


def did_you_mean(word: str, options: Iterable[str]) -> str:
    """The end of an error message about an unknown word: " (did you mean ...?)", or "" if no known word is similar. The
    suggestion is the option that is spelled most like `word`, whatever its case, or the setting whose name ends with
    `word`. `word`: the unknown word; `options`: the known ones."""
    by_lower_case = {option.lower(): option for option in options}
    word = word.lower()
    close = [name for name in by_lower_case if name.endswith(f".{word}")]
    close = close or difflib.get_close_matches(word, list(by_lower_case), n=1)
    return f" (did you mean {by_lower_case[close[0]]}?)" if len(close) == 1 else ""


def join_names(names: Sequence[str], last: str = "and") -> str:
    """A list of names as text, such as "a, b and c". `last`: the word before the last name."""
    return f" {last} ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def short_number(number: float) -> str:
    """A number as short text with three digits: "1.05M" for 1048576; with two digits and an exponent where it is very
    large or small: "4.1e21"."""
    if number and not 1e-3 <= abs(number) < 1e15:
        mantissa, _, power = f"{number:.2g}".partition("e")
        return f"{mantissa}e{int(power)}" if power else mantissa
    units = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K"))
    unit, suffix = next((u for u in units if abs(number) >= 0.9995 * u[0]), (1, ""))  # 999,999 is 1M
    return f"{number / unit:.3g}{suffix}".replace("-", "−")
