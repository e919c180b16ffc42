"""Names the folders of a study's runs after the settings in which it differs from the baseline:
`nano,tokens=2M/pos=alibi,seed=1`."""

import hashlib
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from ablations.config import ConfigError, Run, parse, resolve, sizes_and_presets
from ablations.rundir import read_run
from ablations.safe_files import Damaged
from ablations.values import short_number

FOLLOW_CORPUS = ("data.tokenizer", "eval.corpora")  # the corpus of all runs, where SET says nothing else
MAX_NAME = 120  # bytes of a study's name and of a run's folders; file systems end at 255, and endings are added
MAX_VALUE = 100  # characters of a value in such a name
Recipe = tuple[str, dict[str, Any]]  # its name, and its settings


def stage_of_begun_study(
    base: Run, values: list[tuple[str, Any]], recipe: Recipe | None, seeds: list[int], out: Path
) -> tuple[str, Run]:
    """The stage of a study, which may have begun on another machine, and its baseline. The stage is the name of the
    folder of the study's runs (see `stage_name`).

    Where no setting names the precision, it depends on the machine; the study then keeps the precision that it began
    with. Where a setting names the precision that the study began with, the stage does not mention it, so that the same
    run directories are found.

    Args:
        base: the baseline as this machine would run it.
        values: (key, value) of the settings of all runs.
        recipe: a recipe whose settings are among `values`, or None.
        seeds: the seeds of the study.
        out: the output root.
    """
    stage = stage_name(base, values, recipe)
    if "train.precision" not in {**sizes_and_presets()[base.size]["set"], **dict(values)}:
        precision = _recorded_precision(out / stage, seeds)
        return stage, resolve([*values, ("train.precision", precision)]) if precision else base
    unnamed = stage_name(base, [(key, value) for key, value in values if key != "train.precision"], recipe)
    return unnamed if _recorded_precision(out / unnamed, seeds) == base.train.precision else stage, base


def _recorded_precision(folder: Path, seeds: list[int]) -> str:
    """The precision (train.precision) of the baseline's runs in the folder of a stage, by their run.json; "" where none
    has begun. `seeds`: the seeds of the study."""
    for seed in seeds:
        with suppress(Damaged, ConfigError, KeyError, TypeError):
            if recorded := read_run(folder / f"baseline,seed={seed}"):
                return parse("train.precision", recorded["config"]["train"]["precision"])
    return ""


def stage_name(base: Run, setting: list[tuple[str, Any]], recipe: Recipe | None) -> str:
    """The stage of a study, which names the folder of its runs, such as "nano,cram,budget=60s". It has the size, the
    name of the recipe, and the settings of all runs that differ from those of the size and the recipe. `base`: the
    baseline; `setting`: (key, value) of the settings of all runs; `recipe`: (name, settings), or None."""
    name, settings = recipe or ("", {})
    plain = resolve([("size", base.size)]).flat() | {key: parse(key, value) for key, value in settings.items()}
    flat = base.flat()
    values = {}
    for key, _ in setting:
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
    """`text` as a part of a path: characters that are not allowed in paths are replaced, and of a long text only the
    end is kept. Where the text was changed, a hash is appended, so that different texts stay different."""
    plain = re.sub(r"[^A-Za-z0-9.=+_-]+", "_", text)
    if plain == text and len(text) <= MAX_VALUE:
        return text
    return f"{plain.strip('_')[-40:].strip('_')}_{hashlib.sha256(text.encode()).hexdigest()[:6]}"
