"""The three parts of a recipe: architecture, training and data. An arm may take a part from a preset, such as the part
`training` from the preset `bert-normal` by the line `training: bert-normal`.

So one line of a study can take a whole group of settings from another recipe, as in "Cramming" (Geiping & Goldstein
2023, table 5: architecture, training and data). The settings of a size and the budget are not taken from the preset.
"""

from typing import Any

from ablations.config import parse, presets, setting_needed_for_effect, sizes_and_presets
from ablations.values import ConfigError, unknown_choice

# Of settings that lie in another section than their part: as in the study, whose training configuration has dropout
# and the masks, and whose data configuration has the vocabulary and the length of sequences.
OTHER_PARTS = {
    "model.mask_rate": "training",
    "model.dropout": "training",
    "model.attn_dropout": "training",
    "model.vocab": "data",
    "model.vocab_multiple": "data",
    "model.seq": "data",
}
SECTIONS = {"model": "architecture", "train": "training", "data": "data"}
PARTS = tuple(SECTIONS.values())
# the same for all arms: how long a run is, and what the machine decides
EXCLUDED = ("train.budget", "train.tokens", "train.decay_tokens", "train.precision")


def part_of(key: str) -> str:
    """The part of a recipe, one of PARTS, that a setting belongs to; "" where it belongs to none."""
    return "" if key in EXCLUDED else OTHER_PARTS.get(key) or SECTIONS.get(key.partition(".")[0], "")


def settings_of_part(part: str, preset: str, size: str, flat: dict[str, Any]) -> dict[str, Any]:
    """The settings that an arm takes from a preset: those of one part of the preset that differ from the baseline,
    {setting: value in the preset}. `part`: one of PARTS; `preset`: the name of the preset; `size`: the size of the
    baseline, whose settings are not taken from the preset; `flat`: {setting: value} of the baseline. Raises ConfigError
    where there is no such preset, or nothing differs."""
    names = presets()
    if preset not in names:
        raise unknown_choice(part, preset, names)
    size_settings = {} if size in names else sizes_and_presets()[size]["set"]
    values = {key: parse(key, value) for key, value in sizes_and_presets()[preset]["set"].items()}
    part_settings = {key: value for key, value in values.items() if part_of(key) == part and key not in size_settings}
    differing = {key: value for key, value in part_settings.items() if value != flat[key]}
    differing = {key: value for key, value in differing.items() if not setting_needed_for_effect(key, flat | differing)}
    if not differing:
        raise ConfigError(f"two equal runs: {part}={preset} is the baseline")
    return differing
