"""The documentation of every setting, made from its declaration: the reference page, `make help`, and the comments of
baseline.yaml.

python -m ablations reference             prints the page, as Markdown
python -m ablations reference --write     updates the comments of ablations/baseline.yaml
"""

import json
import re
import textwrap
from collections.abc import Sequence
from typing import get_args, get_origin

from ablations.config import FOLDER, KEYS, SETTINGS, resolve, sizes_and_presets
from ablations.document.blocks import Section, Table
from ablations.document.formats import markdown
from ablations.run import SECTIONS
from ablations.schedule import SCHEDULES, WITH_WARMUP
from model.count import count_parameters

BASELINE = FOLDER / "baseline.yaml"
COLUMN, WIDTH = 26, 120  # characters of a line of baseline.yaml before its comment, and in all
TYPES = {bool: "true or false", int: "whole number", float: "number", str: "text"}


def setting_choices(key: str) -> tuple[str, ...]:
    """The values among which a setting chooses, as texts; () where any value of a type or range is allowed. `key`: the
    name of the setting, such as "model.pos"."""
    return tuple(map(str, get_args(KEYS[key]))) if get_origin(KEYS[key]) is not list else ()


def allowed_values(key: str) -> str:
    """The allowed values of a setting as text: its choices, or its type and range."""
    kind = KEYS[key]
    if setting_choices(key):
        return ", ".join(setting_choices(key))
    words = f"list of {TYPES[get_args(kind)[0]]}s" if get_origin(kind) is list else TYPES[kind]
    return " ".join(filter(None, (words.replace("texts", "names"), SETTINGS[key].range)))


def setting_comment(key: str) -> str:
    """The text of a setting's comment in baseline.yaml: the setting's choices, meaning and unit, the settings that it
    needs to have an effect, and the source of its value."""
    setting = SETTINGS[key]
    options = f"{' | '.join(setting_choices(key))}: " if setting_choices(key) else ""
    unit = f" [{setting.unit}]" if setting.unit and setting.unit not in setting.meaning else ""
    only = "".join(f"; only with {k}={' or '.join(values)}" for k, values in setting.only_with.items())
    only = only if len(only) < 60 else ""
    return options + setting.meaning + unit + only + (f" ({setting.source})" if setting.source else "")


def update_comments(text: str) -> str:
    """The text of baseline.yaml with the comments of all settings replaced by those of their declarations; header and
    values stay. `text`: the present text of baseline.yaml."""
    lines: list[str] = []
    section = ""
    for line in text.splitlines():
        match = re.fullmatch(r"( *)(\w+):( +[^#]*?)?(?: *#.*)?", line)
        if not match:
            if not (lines and re.match(r" +#", line)):  # the later lines of an old comment are left out
                lines.append(line)
            continue
        indent, name, value = match[1], match[2], (match[3] or "").strip()
        if not indent:
            section = name
        key = f"{section}.{name}" if indent else name
        content = f"{indent}{name}: {value}".rstrip()
        words = setting_comment(key) if key in SETTINGS else (SECTIONS[name].__doc__ or "").splitlines()[0].rstrip(".")
        column = max(COLUMN, len(content) + 2)
        first, *rest = textwrap.wrap(words, WIDTH - column - 2, break_long_words=False, break_on_hyphens=False)
        lines.append(f"{content:{column}}# {first}")
        lines += [f"{'':{column}}# {part}" for part in rest]
    return "\n".join(lines) + "\n"


def reference_page() -> str:
    """The reference page: every setting, size and schedule, as Markdown."""
    baseline = resolve([("size", "nano")]).flat()
    sections = [
        Section(
            "",
            [
                "Made by `python -m ablations reference` from ablations/settings.py and model/config.py. "
                '`SET="key=value ..."` sets one for all runs, `ARM=key=value` makes it the question. '
                "The values are the baseline's at size nano."
            ],
        )
    ]
    for section, cls in {"": None, **SECTIONS}.items():
        keys = [key for key in SETTINGS if key.rpartition(".")[0] == section]
        summary = " ".join((cls.__doc__ or "").split("\n\n")[0].split()) if cls else "What the others depend on."
        rows = []
        for key in keys:
            value = baseline[key] if isinstance(baseline[key], str) else json.dumps(baseline[key])
            rows.append(
                (f"`{key}`", f"`{value}`", allowed_values(key), SETTINGS[key].unit, _meaning(key), SETTINGS[key].source)
            )
        head = ("setting", "value", "allowed", "unit", "meaning", "source")
        sections.append(Section(section or "The run", [summary, _table(head, rows)]))
    schedules = [
        (f"`{name}`", "yes" if name in WITH_WARMUP else "rises by itself", " ".join((shape.__doc__ or "").split()))
        for name, shape in SCHEDULES.items()
    ]
    sections.append(Section("Schedules", [_table(("train.schedule", "warm-up", "shape"), schedules)]))
    sizes = [(f"`{name}`", f"{count_parameters(resolve([('size', name)]).model):,}") for name in sizes_and_presets()]
    sections.append(Section("Sizes", [_table(("size", "parameters"), sizes)]))
    return markdown("Settings", sections)


def _meaning(key: str) -> str:
    only = [f"`{name}` is {' or '.join(values)}" for name, values in SETTINGS[key].only_with.items()]
    return SETTINGS[key].meaning + (f". Has an effect only where {' and '.join(only)}" if only else "")


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Table:
    """A table with the column names `head`. Columns whose cells are all empty are left out."""
    used = [i for i in range(len(head)) if any(row[i] for row in rows)]
    return Table([head[i] for i in used], [[row[i] for i in used] for row in rows])
