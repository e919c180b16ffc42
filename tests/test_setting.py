"""Every setting explains itself, and its range is checked from that explanation."""

from dataclasses import dataclass, replace
from typing import Annotated

import pytest

from ablations.config import ConfigError, resolve
from model.setting import Setting, check_ranges, settings_of

NANO = resolve([("size", "nano")])
SECTIONS = {name: getattr(NANO, name) for name in ("model",)}


@dataclass
class Example:
    share: Annotated[float, Setting("a share", at_least=0, below=1)]
    rate: Annotated[float, Setting("a rate", above=0)]
    marks: Annotated[list[float], Setting("shares", above=0, below=1)]
    power: Annotated[int, Setting("a power", at_least=0, at_most=32)]
    name: Annotated[str, Setting("a name")]


GOOD = Example(0.0, 0.1, [0.5, 0.9], 32, "ä")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"share": 1.0}, "x.share=1 must be at least 0 and below 1: a share"),
        ({"share": -0.1}, "x.share=-0.1 must be"),
        ({"rate": 0.0}, "x.rate=0 must be above 0: a rate"),
        ({"marks": [0.5, 1.0]}, "x.marks=1 must be above 0 and below 1"),
        ({"power": 33}, "x.power=33 must be between 0 and 32"),
        ({"share": float("nan")}, "x.share=nan must be"),
    ],
)
def test_a_number_outside_its_range_is_refused(change: dict[str, object], message: str) -> None:
    check_ranges("x", GOOD)
    with pytest.raises(ValueError) as error:
        check_ranges("x", replace(GOOD, **change))  # type: ignore[arg-type]
    assert str(error.value).startswith(message)


def test_a_field_without_an_explanation_is_an_error() -> None:
    @dataclass
    class Silent:
        width: int

    with pytest.raises(TypeError, match="Silent.width needs one Setting"):
        settings_of(Silent)


@pytest.mark.parametrize("section", SECTIONS)
def test_every_range_of_every_setting_is_enforced(section: str) -> None:
    """Just outside each limit, through the same door as a user's words."""
    step = {int: 1, float: 1e-9}
    tried = 0
    for name, setting in settings_of(type(SECTIONS[section])).items():
        value = getattr(SECTIONS[section], name)
        outside = []
        kind = type(value[0] if isinstance(value, list) and value else value)
        if setting.at_least is not None:
            outside.append(setting.at_least - step.get(kind, 1e-9))
        if setting.at_most is not None:
            outside.append(setting.at_most + step.get(kind, 1e-9))
        outside += [limit for limit in (setting.above, setting.below) if limit is not None]
        for number in outside:
            text = f"{number:.12g}"
            with pytest.raises(ConfigError, match=f"{section}.{name}=.* must be {setting.range}"):
                resolve([("size", "nano"), (f"{section}.{name}", text)])
            tried += 1
    assert tried
