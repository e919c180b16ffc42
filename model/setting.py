"""Explanations of settings: meaning, unit, range and source, attached to the fields of a settings dataclass.

    dropout: float = setting("dropout probability of the residual stream", at_least=0, below=1)

The range checks, the error messages, `python -m ablations reference` and the comments of ablations/baseline.yaml use
these explanations. Choices are taken from the field's type (`Literal`), or from a table.
"""

import functools
import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints


@dataclass(frozen=True)
class Setting:
    """The explanation of a setting. The range applies to its value, or to each element of a list."""

    meaning: str
    unit: str = ""  # of the number: "tokens", "hours"; empty for ratios and text
    source: str = ""  # of the baseline's value: a paper, a program, a measurement, or "untuned"
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    choices: tuple[str, ...] = ()  # of text, where they come from a table; else the type says them
    absent: Any = None  # of a setting added later: the value of runs that were recorded without it
    only_with: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # {setting: values as text}: else no effect

    @property
    def range(self) -> str:
        """The range in words, such as "at least 0 and below 1"; "" where every number is allowed."""
        limits = {"at least": self.at_least, "above": self.above, "at most": self.at_most, "below": self.below}
        if self.at_least is not None and self.at_most is not None:
            return f"between {self.at_least:g} and {self.at_most:g}"
        return " and ".join(f"{word} {limit:g}" for word, limit in limits.items() if limit is not None)

    def contains(self, number: float) -> bool:
        """Whether the number lies in the range."""
        return (
            (self.at_least is None or number >= self.at_least)
            and (self.above is None or number > self.above)
            and (self.at_most is None or number <= self.at_most)
            and (self.below is None or number < self.below)
        )


def setting(meaning: str, unit: str = "", source: str = "", absent: Any = None, **rest: Any) -> Any:
    """A dataclass field with an explanation, a `Setting` made of these arguments, in its metadata.

    `absent`: for a field that was added later, the value of runs that were recorded without it; it is also the field's
    default. None: the field has no default. `rest`: further attributes of the `Setting`, such as a range.
    """
    explanation = Setting(meaning, unit, source, absent=absent, **rest)
    return field(default=MISSING if absent is None else absent, metadata={"setting": explanation})


@functools.cache
def settings_of(cls: type) -> dict[str, Setting]:
    """The explanations of a settings dataclass: {field: Setting}. Raises TypeError where a field is not declared by
    `setting`."""
    if silent := [field.name for field in fields(cls) if "setting" not in field.metadata]:
        raise TypeError(f"{cls.__name__}.{silent[0]} needs setting(...): what it means, its unit, range and source")
    return {field.name: field.metadata["setting"] for field in fields(cls)}


def check_types(section: str, values: Any) -> None:
    """Check that every value of a settings dataclass has the type of its field: bool, int, float, str or a Literal.

    Args:
        values: an instance of the dataclass.
        section: the name of the section, for the message: "model", "train", ...

    Raises:
        ValueError: a value has another type, is not a finite number, or is none of the choices; the message names the
            first such setting.
    """
    for name, kind in _types_of(type(values)).items():  # type: ignore[arg-type]
        value = getattr(values, name)
        if get_origin(kind) is Literal:
            fits = value in get_args(kind)
        elif kind is float:
            fits = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        else:
            fits = type(value) is kind
        if not fits:
            choices = f" ({', '.join(map(str, get_args(kind)))})" if get_origin(kind) is Literal else ""
            raise ValueError(f"{section}.{name} cannot be {str(value)[:60]!r}{choices}")


@functools.cache
def _types_of(cls: type) -> dict[str, Any]:
    """The type of each field of a settings dataclass."""
    return get_type_hints(cls)


def check_ranges(section: str, values: Any) -> None:
    """Check that every number of a settings dataclass lies in the range of its field.

    Args:
        values: an instance of the dataclass.
        section: the name of the section, for the message: "model", "train", ...

    Raises:
        ValueError: a number is out of range; the message names the first such setting, its range and its meaning.
    """
    for name, setting in settings_of(type(values)).items():  # type: ignore[arg-type]
        value = getattr(values, name)
        for number in value if isinstance(value, list) else [value]:
            if not setting.contains(number):
                text = f"{number:g}" if isinstance(number, float) else number
                raise ValueError(f"{section}.{name}={text}: must be {setting.range} ({setting.meaning})")
