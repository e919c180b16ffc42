"""Resolves the settings of a run: the baseline's settings, overridden by those of a size, overridden by what the user
types. Imports no torch."""

import functools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ablations import rules
from ablations.machine import has_bf16, has_gpu
from ablations.run import KEYS, SECTIONS, SETTINGS, Run, fit_micro_batch
from ablations.safe_files import first_misfit
from ablations.strict_yaml import read_yaml
from ablations.values import ConfigError, convert_value, did_you_mean, flatten, unknown_choice_error
from model import count
from model.config import ModelConfig
from model.setting import check_ranges

__all__ = [
    "KEYS",
    "SETTINGS",
    "ConfigError",
    "Run",
    "sizes_and_presets",
    "fit_micro_batch",
    "parse_setting",
    "resolve",
    "setting_needed_for_effect",
]

FOLDER = Path(__file__).parent


def parse_setting(key: str, value: Any) -> Any:
    """Convert a value, given as text or read from YAML, to the type of the setting `key`. Raises ConfigError where
    there is no such setting, or the value has the wrong type or is not one of the setting's choices."""
    if key not in KEYS:
        raise ConfigError(f"there is no setting {key!r}{did_you_mean(key, KEYS)}. Settings: {', '.join(sorted(KEYS))}")
    return convert_value(key, KEYS[key], value, SETTINGS[key].meaning)


def resolve(overrides: Iterable[tuple[str, Any]] = ()) -> Run:
    """Make a run with the baseline's settings, replaced by those of its size, and then by `overrides` in order.

    Args:
        overrides: (key, value) pairs, such as ("model.pos", "alibi"); a value may be text as typed on a command line.

    Raises:
        ConfigError: a key, type or value is not allowed, or settings do not fit together; the message says what is.
    """
    typed_values = [(key, parse_setting(key, value)) for key, value in overrides]
    flat = _baseline()
    size = dict(typed_values).get("size", flat["size"])
    if size == "auto":
        size = "14m" if has_gpu() else "nano"
    sizes = sizes_and_presets()
    if size not in sizes:
        raise unknown_choice_error("size", size, sizes)
    bundle = [(key, parse_setting(key, value)) for key, value in sizes[size]["set"].items()]
    flat = flat | dict(bundle) | dict(typed_values) | {"size": size}
    if flat["train.precision"] == "auto":
        flat["train.precision"] = "bf16" if has_bf16() else "fp32"
    _check_declared_parameters(size, sizes[size]["params"], bundle)
    return _run_with_settings(flat)


@functools.cache
def _baseline() -> dict[str, Any]:
    """The settings in ablations/baseline.yaml, {setting: value of its type}."""
    flat = flatten(read_yaml(FOLDER / "baseline.yaml"))
    for key in sorted(KEYS.keys() | flat.keys()):
        if key not in KEYS or key not in flat:
            raise ConfigError(f"ablations/baseline.yaml must hold exactly the keys of a run: see {key}")
    return {key: parse_setting(key, value) for key, value in flat.items()}


def setting_needed_for_effect(key: str, flat: dict[str, Any]) -> str:
    """The settings without which the setting `key` has no effect, as text such as "model.pos=rotary"; "" if `key` has
    an effect. `flat`: {setting: value} of the run."""
    texts = {name: str(flat[name]).lower() for name in SETTINGS[key].only_with}  # true, not True
    missing = {name: values for name, values in SETTINGS[key].only_with.items() if texts[name] not in values}
    return " and ".join(f"{name}={' or '.join(values)}" for name, values in missing.items())


def presets() -> list[str]:
    """The names of the presets, the files of ablations/presets. A preset is a size that sets a whole recipe."""
    return sorted(path.stem for path in (FOLDER / "presets").glob("*.yaml"))


def sizes_and_presets() -> dict[str, dict[str, Any]]:
    """The settings of every size and preset: {name: {"params": declared number of parameters, "set": {key: value}}}.
    Raises ConfigError where a file of ablations/presets is not a preset; the message names it."""
    bundles = dict(read_yaml(FOLDER / "sizes.yaml"))
    for path in sorted((FOLDER / "presets").glob("*.yaml")):
        tree = dict(read_yaml(path))
        bundles[path.stem] = {"params": tree.pop("params", None), "set": flatten(tree)}
    for name, bundle in bundles.items():
        if first_misfit(bundle, {"params": int, "set": dict}):
            raise ConfigError(f"size {name} in ablations needs params, the number of its parameters, and its settings")
    return bundles


def _run_with_settings(flat: dict[str, Any]) -> Run:
    """The run with the settings `flat`, {setting: value of its type}. Raises ConfigError if a number is outside its
    range, or settings do not fit together."""
    sections: dict[str, Any] = {}
    try:
        for name, cls in SECTIONS.items():
            values = {key.partition(".")[2]: value for key, value in flat.items() if key.startswith(f"{name}.")}
            sections[name] = cls(**values)
            check_ranges(name, sections[name])
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(str(error)) from None
    run = Run(size=flat["size"], seed=flat["seed"], **sections)
    rules.check_rules(run)
    return run


def _check_declared_parameters(name: str, declared: int, bundle: list[tuple[str, Any]]) -> None:
    """Check that a size has the number of parameters that its file declares: BigScience's "104B" had 58B for five
    experiments. Raises ConfigError where the numbers differ. `name`: the size; `declared`: the number in its file;
    `bundle`: (key, value) of the settings in its file."""
    flat = _baseline() | dict(bundle)
    model = ModelConfig(**{key.removeprefix("model."): v for key, v in flat.items() if key.startswith("model.")})
    if count.count_parameters(model) != declared:
        raise ConfigError(f"size {name} declares {declared:,} parameters and counts {count.count_parameters(model):,}")
