"""The three parts of a recipe: architecture, training and data. One line of a study can take a whole part from a
preset: `training: bert-normal` takes the training of BERT.

"Cramming" compares recipes in this way (Geiping & Goldstein 2023, table 5). The settings of a size and the budget are
not taken from the preset.
"""

from typing import Any

from ablations.config import parse_setting, presets, setting_needed_for_effect, sizes_and_presets
from ablations.values import ConfigError, unknown_choice_error

# {setting: its part} of settings whose part is not that of their section. In the configuration files of "Cramming"
# dropout and masks belong to training, the vocabulary and the length of sequences to data.
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
# settings of no part, since they are the same for all arms: the length of a run, and the precision of the machine
SETTINGS_OF_NO_PART = ("train.budget", "train.tokens", "train.decay_tokens", "train.precision")


def part_of_recipe(key: str) -> str:
    """The part of a recipe, one of PARTS, that the setting `key` belongs to; "" if it belongs to none."""
    return "" if key in SETTINGS_OF_NO_PART else OTHER_PARTS.get(key) or SECTIONS.get(key.partition(".")[0], "")


def settings_of_part(part: str, preset: str, size: str, flat: dict[str, Any]) -> dict[str, Any]:
    """The settings that an arm takes from a preset: {setting: value in the preset}, for those settings of one part that
    differ from the baseline.

    Args:
        part: one of PARTS.
        preset: the name of the preset.
        size: the size of the baseline, whose settings are not taken from the preset.
        flat: {setting: value} of the baseline.

    Raises:
        ConfigError: there is no such preset, or nothing differs.
    """
    names = presets()
    if preset not in names:
        raise unknown_choice_error(part, preset, names)
    size_settings = {} if size in names else sizes_and_presets()[size]["set"]
    values = {key: parse_setting(key, value) for key, value in sizes_and_presets()[preset]["set"].items()}
    part_settings = {
        key: value for key, value in values.items() if part_of_recipe(key) == part and key not in size_settings
    }
    differing = {key: value for key, value in part_settings.items() if value != flat[key]}
    differing = {key: value for key, value in differing.items() if not setting_needed_for_effect(key, flat | differing)}
    if not differing:
        raise ConfigError(f"two equal runs: {part}={preset} is the baseline")
    return differing
