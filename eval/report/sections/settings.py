"""Section: the settings in which the arms differ, and those that are the same in all runs."""

from typing import Any

from ablations.document.blocks import Section, Table
from ablations.values import flatten
from eval.report.comparison.findings import Findings
from eval.report.reading.collection import is_setting
from eval.report.reading.runs import in_one_line


def differing_settings(findings: Findings) -> Section:
    """A table of the settings in which the arms differ, with a row for each arm."""
    title, configs = "What differs", configurations(findings)
    if not configs:
        return Section(title, ["No run has begun."])
    shared = shared_settings(configs)
    keys = [key for key in dict.fromkeys(key for config in configs.values() for key in config) if key not in shared]
    words = "One setting makes an arm; everything else is held fixed, and listed below."
    if findings.study.factorial:
        words = "The settings of its name make an arm; everything else is held fixed, and listed below."
    if findings.study.tuning:
        words = (
            "One setting makes an arm, and the declared learning rate; everything else is held fixed, as listed below."
        )
    if not findings.controlled:
        words = "These runs were not planned as a controlled comparison." if len(keys) > 1 else "One setting differs."
    lines = [[arm, *(in_one_line(config.get(key, "-")) for key in keys)] for arm, config in configs.items()]
    return Section(title, [words, Table(["arm", *(f"`{key}`" for key in keys)], lines)])


def fixed_settings(findings: Findings) -> Section:
    values = shared_settings(configurations(findings))
    table = Table(["setting", "in all runs"], [[f"`{key}`", value] for key, value in values.items()])
    return Section("Held fixed", [table] if values else [], folded=True)


def configurations(findings: Findings) -> dict[str, dict[str, Any]]:
    """The settings of each arm that has a run: {arm: {setting: value}}, without the seed, the layout and the name of
    the size."""
    configs = {
        arm: flatten(next(c["run"]["config"] for c in seeds.values()))
        for arm, seeds in findings.cells_with_entry("run").items()
    }
    return {arm: {key: value for key, value in config.items() if is_setting(key)} for arm, config in configs.items()}


def shared_settings(configs: dict[str, dict[str, Any]]) -> dict[str, str]:
    """The settings that have the same value in all configurations: {setting: value as text}. `configs`: {arm: {setting:
    value}}."""
    first, *others = configs.values() or [{}]
    return {
        key: in_one_line(value)
        for key, value in first.items()
        if all(key in config and config[key] == value for config in others)
    }
