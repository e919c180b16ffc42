"""Makes the names of a study's folders from the settings in which its runs differ from the baseline:
`nano,tokens=2M/pos=alibi,seed=1`."""

import hashlib
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ablations.config import ConfigError, Run, parse_setting, resolve, sizes_and_presets
from ablations.rundir import read_run
from ablations.safe_files import Damaged
from ablations.values import short_number

FOLLOW_CORPUS = ("data.tokenizer", "eval.corpora")  # settings that are the corpus of all runs unless SET names others
MAX_NAME = 120  # bytes in the name of a study or folder; file systems allow 255, and suffixes are added
MAX_VALUE = 100  # characters of a value in such a name
Recipe = tuple[str, dict[str, Any]]  # (its name, {setting: value})


def stage_of_begun_study(
    base: Run, values: list[tuple[str, Any]], recipe: Recipe | None, seeds: list[int], out: Path
) -> tuple[str, Run]:
    """(the stage of a study, which may have begun on another machine; its baseline). The stage is the name of the
    folder of the study's runs (see `stage_name`).

    If no setting names the precision, the study keeps the precision that its runs began with; a new study takes the one
    that suits this machine. If a setting names the precision with which the runs began without one, the stage does not
    contain it. So the same run directories are found.

    Args:
        base: the baseline as this machine would run it.
        values: (key, value) of the settings of all runs.
        recipe: a recipe whose settings are among `values`; None: no recipe.
        seeds: the seeds of the study.
        out: the output root.
    """

    def begun_with(stage: str) -> str:
        return recorded_setting([out / stage / f"baseline,seed={seed}" for seed in seeds], "train.precision")

    stage = stage_name(base, values, recipe)
    if "train.precision" not in {**sizes_and_presets()[base.size]["set"], **dict(values)}:
        precision = begun_with(stage)
        return stage, resolve([*values, ("train.precision", precision)]) if precision else base
    unnamed = stage_name(base, [(key, value) for key, value in values if key != "train.precision"], recipe)
    return unnamed if begun_with(unnamed) == base.train.precision else stage, base


def recorded_setting(run_dirs: Sequence[Path], key: str) -> str:
    """The value of a setting in the first readable run.json of these run directories; "" if no run has begun. `key`:
    the setting, whose value is text, such as "train.precision"."""
    section, name = key.split(".")
    for run_dir in run_dirs:
        with suppress(Damaged, ConfigError, KeyError, TypeError):
            if recorded := read_run(run_dir):
                return parse_setting(key, recorded["config"][section][name])
    return ""


def stage_name(base: Run, common_settings: list[tuple[str, Any]], recipe: Recipe | None) -> str:
    """The stage of a study, which names the folder of its runs, such as "nano,cram,budget=60s". It consists of the
    size, the name of the recipe, and the settings of all runs that differ from those of the size and the recipe.

    Args:
        base: the baseline.
        common_settings: (key, value) of the settings of all runs.
        recipe: (name, {setting: value}) of a recipe; None: no recipe.
    """
    name, settings = recipe or ("", {})
    plain = resolve([("size", base.size)]).flat() | {key: parse_setting(key, value) for key, value in settings.items()}
    flat = base.flat()
    values = {}
    for key, _ in common_settings:
        if key in FOLLOW_CORPUS and flat["data.corpus"] != plain["data.corpus"]:
            differs = value_text(flat[key]) != base.data.corpus
        else:
            differs = flat[key] != plain[key]
        if differs and key != "size" and not key.startswith("layout."):
            values[key] = path_part(short_number(flat[key]) if key == "train.tokens" else value_text(flat[key]))
    names = [base.size, name] if recipe else [base.size]
    return shortened_name(",".join([*names, *(f"{k.split('.')[-1]}={v}" for k, v in sorted(values.items()))]))


def shortened_name(name: str) -> str:
    """`name`, shortened where it is too long for a file system; a hash keeps shortened names distinct."""
    return name if len(name) <= MAX_NAME else f"{name[:100]}-{hash_of_name(name)}"


def hash_of_name(name: str) -> str:
    """The hash that stands at the end of a shortened name: 8 hexadecimal digits."""
    return hashlib.sha256(name.encode()).hexdigest()[:8]


def value_text(value: Any) -> str:
    """A setting's value as text in a label, such as "true" or "c4+pile"."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return "+".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def path_part(text: str) -> str:
    """A text in a form that can be part of a path. Characters that are not allowed in paths are replaced, and of a long
    text only the end is kept. A hash is appended if the text was changed, so that different texts stay different."""
    plain = re.sub(r"[^A-Za-z0-9.=+_-]+", "_", text)
    if plain == text and len(text) <= MAX_VALUE:
        return text
    return f"{plain.strip('_')[-40:].strip('_')}_{hashlib.sha256(text.encode()).hexdigest()[:6]}"
