"""Every setting explains itself, and its range is checked from that explanation."""

import contextlib
import io
from dataclasses import dataclass, replace
from typing import Literal, get_args, get_origin

import pytest
import yaml

from ablations import reference
from ablations.__main__ import main
from ablations.config import KEYS, SETTINGS, ConfigError, resolve
from ablations.run import SECTIONS
from ablations.schedule import SCHEDULES
from ablations.words import HELP
from model.setting import check_ranges, setting, settings_of

NANO = resolve([("size", "nano")])
VALUES = {name: getattr(NANO, name) for name in ("model", "data", "train", "layout")}  # eval has no numbers


@dataclass
class Example:
    share: float = setting("a share", at_least=0, below=1)
    rate: float = setting("a rate", above=0)
    marks: list[float] = setting("shares", above=0, below=1)
    power: int = setting("a power", at_least=0, at_most=32)
    name: str = setting("a name")


GOOD = Example(0.0, 0.1, [0.5, 0.9], 32, "ä")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"share": 1.0}, "x.share=1: must be at least 0 and below 1 (a share)"),
        ({"share": -0.1}, "x.share=-0.1: must be"),
        ({"rate": 0.0}, "x.rate=0: must be above 0 (a rate)"),
        ({"marks": [0.5, 1.0]}, "x.marks=1: must be above 0 and below 1"),
        ({"power": 33}, "x.power=33: must be between 0 and 32"),
        ({"share": float("nan")}, "x.share=nan: must be"),
    ],
)
def test_a_number_outside_its_range_is_refused(change: dict[str, object], message: str) -> None:
    check_ranges("x", GOOD)
    with pytest.raises(ValueError) as error:
        check_ranges("x", replace(GOOD, **change))  # type: ignore[arg-type]
    assert str(error.value).startswith(message)


def test_every_section_is_a_section() -> None:
    assert VALUES.keys() | {"eval"} == SECTIONS.keys()


def test_a_field_without_an_explanation_is_an_error() -> None:
    @dataclass
    class Silent:
        width: int

    with pytest.raises(TypeError, match="Silent.width needs setting"):
        settings_of(Silent)


@pytest.mark.parametrize("section", VALUES)
def test_every_range_of_every_setting_is_enforced(section: str) -> None:
    """Just outside each limit, through the same door as a user's words."""
    step = {int: 1, float: 1e-9}
    tried = 0
    for name, explanation in settings_of(type(VALUES[section])).items():
        kind = KEYS[f"{section}.{name}"]
        kind = get_args(kind)[0] if get_origin(kind) is list else kind
        outside = []
        if explanation.at_least is not None:
            outside.append(explanation.at_least - step.get(kind, 1e-9))
        if explanation.at_most is not None:
            outside.append(explanation.at_most + step.get(kind, 1e-9))
        outside += [limit for limit in (explanation.above, explanation.below) if limit is not None]
        for number in outside:
            text = f"{number:.12g}"
            with pytest.raises(ConfigError, match=f"{section}.{name}=.*: must be {explanation.range}"):
                resolve([("size", "nano"), (f"{section}.{name}", text)])
            tried += 1
    assert tried


# ------------------------------------------------------------------------------------------------ what is made of it


def test_the_comments_of_the_baseline_are_those_of_the_settings() -> None:
    """If this fails: .venv/bin/python -m ablations reference --write"""
    text = reference.BASELINE.read_text(encoding="utf-8")
    assert reference.update_comments(text) == text
    bare = "\n".join(line.split("#")[0].rstrip() for line in text.splitlines())
    assert yaml.safe_load(bare) == yaml.safe_load(text)
    again = reference.update_comments("\n".join(line for line in bare.splitlines() if line))
    assert yaml.safe_load(again) == yaml.safe_load(text)


def test_a_comment_that_contradicts_its_setting_is_made_anew() -> None:
    line = reference.update_comments(
        "model:\n  pos: learned  # none | learned | fourier\n    # and more\n"
    ).splitlines()
    assert line[0].startswith("model: ") and len(line) == 2
    assert line[1].startswith("  pos: learned ") and "none | learned | rotary | alibi" in line[1]
    assert "fourier" not in line[1]


def test_the_reference_page_has_every_setting_with_what_is_allowed() -> None:
    page = reference.reference_page()
    rows = {row.split("`")[1]: row for row in page.splitlines() if row.startswith("| `")}
    assert KEYS.keys() <= rows.keys()
    for key, kind in KEYS.items():
        if get_origin(kind) is Literal:
            assert all(str(choice) in rows[key] for choice in get_args(kind)), key
        assert SETTINGS[key].meaning in rows[key].replace("\\|", "|") and SETTINGS[key].range in rows[key]
    assert all(name in rows for name in SCHEDULES) and "1,315,819,520" in rows["1b3"]
    assert len({len(row.replace("\\|", "").split("|")) for key, row in rows.items() if key.startswith("train.")}) == 1
    assert not [word for word in ("/work", "/tmp") if word in page]


def test_help_and_errors_say_what_a_setting_means() -> None:
    with pytest.raises(SystemExit), contextlib.redirect_stdout(io.StringIO()) as output:
        main(["--help"])
    assert "position scheme (none, learned, rotary" in " ".join(output.getvalue().split())
    assert all(f"  {name} " in output.getvalue() for name in HELP)
    with pytest.raises(ConfigError, match=r"a number such as 3e-4 is needed \(peak learning rate\)"):
        resolve([("train.lr", "fast")])


def test_a_default_of_the_model_is_what_runs_recorded_without_the_setting_have() -> None:
    from dataclasses import MISSING, fields

    from model.config import ModelConfig

    explanations = settings_of(ModelConfig)
    for field in fields(ModelConfig):
        absent = explanations[field.name].absent
        assert field.default == (MISSING if absent is None else absent), field.name
