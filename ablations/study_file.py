"""Study files: a question, what was expected before any run, and the arms. One in ablations/studies is one study."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ablations.strict_yaml import read_yaml
from ablations.values import ConfigError, did_you_mean

STUDIES = Path(__file__).parent / "studies"
FORM = """a study file holds
  question: text
  expect: text, written before any run
  arms: a list of lines such as `- model.pos: alibi`
  base: maybe, settings for all runs such as {train.lr: 1.0e-3}; not used where SIZE is a preset"""


@dataclass(frozen=True)
class StudyFile:
    """What a study file says; the values are not yet compared with the settings."""

    name: str
    question: str
    expect: str
    arms: list[tuple[str, Any]]  # (key, value), a line each
    base: list[tuple[str, Any]]  # settings of all runs


def study_names() -> list[str]:
    return sorted(path.stem for path in STUDIES.glob("*.yaml"))


def read_study(name: str) -> StudyFile:
    """The file ablations/studies/`name`.yaml.

    Raises:
        ConfigError: when there is none, or it is not a study's; the message names the file and what it must hold.
    """
    names = study_names()
    if name not in names:
        raise ConfigError(f"STUDY={_short(name)} is not one of {', '.join(names)}{did_you_mean(name[:100], names)}")
    path = STUDIES / f"{name}.yaml"
    content = read_yaml(path)
    if unknown := content.keys() - {"question", "expect", "arms", "base"}:
        raise ConfigError(f"{path.name} has {', '.join(sorted(unknown))}: {FORM}")
    for key in ("question", "expect"):
        text = content.get(key)
        if not isinstance(text, str) or not text.strip():
            raise ConfigError(f"{path.name}: {key} is {text!r}, and must be text, in quotes where in doubt: {FORM}")
    arms, base = content.get("arms"), content.get("base") or {}
    if not isinstance(arms, list) or not all(_is_line(arm) for arm in arms):
        raise ConfigError(f"{path.name}: each arm is one line, such as `- model.pos: alibi`: {FORM}")
    if not isinstance(base, dict) or not all(isinstance(key, str) for key in base):
        raise ConfigError(f"{path.name}: base must be settings and their values: {FORM}")
    lines = [next(iter(arm.items())) for arm in arms]
    return StudyFile(name, content["question"].strip(), content["expect"].strip(), lines, list(base.items()))


def _is_line(arm: Any) -> bool:
    return isinstance(arm, dict) and len(arm) == 1 and isinstance(next(iter(arm)), str)


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:60]}..."
