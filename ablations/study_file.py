"""Study files (ablations/studies): the question of a study, what was expected before any run, and the arms."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ablations.criteria import PRIMARY, check_metric, margins_from_file
from ablations.parts import PARTS
from ablations.run import SETTINGS
from ablations.strict_yaml import read_yaml
from ablations.values import ConfigError, did_you_mean, unknown_choice_error

STUDIES = Path(__file__).parent / "studies"
FORM = """a study file holds
  question: text
  expect: text, written before any run
  predictions: maybe, the same in a form that a report can check: a list of lines such as `- alibi < learned`
  arms: a list of lines such as `- model.pos: alibi`, or `- training: bert-normal` (ablations/parts.py)
  base: maybe, settings for all runs such as {train.lr: 1.0e-3}, after those of the base of another study, such as
    {study: cram}; not used where SIZE is a preset
  tasks: maybe, what TASKS would say, such as hellaswag,gsm8k
  shots: maybe, what SHOTS would say: examples in each prompt of the tasks
  metric: maybe, the primary metric: bits/byte (default), zero-shot or suite
  margin: maybe, a difference that does not matter: a number of the primary metric, or {bits/byte: 0.01, zero-shot: 1}
  max_seeds: maybe, adds seeds until every arm is decided, at most to so many"""
KEYS = ("question", "expect", "arms", "base", "metric", "margin", "max_seeds", "predictions", "tasks", "shots")


@dataclass(frozen=True)
class StudyFile:
    """The content of a study file. Whether the settings allow its values is checked later, when the study is made."""

    name: str
    question: str
    expect: str
    arms: list[tuple[str, Any]]  # (key, value) of the setting that makes each arm
    base: list[tuple[str, Any]]  # (key, value) of the settings of all runs
    metric: str = PRIMARY
    margins: dict[str, float] = field(default_factory=dict)  # {metric: a difference that does not matter}
    max_seeds: int | None = None  # seeds are added until every arm is decided; None: SEEDS says how many
    predictions: list[str] = field(default_factory=list)  # as texts; see ablations/prediction.py
    words: dict[str, str] = field(default_factory=dict)  # {NAME: VALUE} of the words TASKS and SHOTS
    recipe: tuple[str, dict[str, Any]] | None = None  # (study, {setting: value} of its base) that `base` begins with


def study_names() -> list[str]:
    return sorted(path.stem for path in STUDIES.glob("*.yaml"))


def read_study(name: str) -> StudyFile:
    """Read the study file ablations/studies/`name`.yaml. Raises ConfigError if there is no such file, or it is not a
    study file; the message says what a study file contains."""
    names = study_names()
    if name not in names:
        raise unknown_choice_error("STUDY", name, names)
    path = STUDIES / f"{name}.yaml"
    content = read_yaml(path)
    if unknown := content.keys() - set(KEYS):
        raise ConfigError(f"{path.name} has {', '.join(sorted(unknown))}: {FORM}")
    for key in ("question", "expect"):
        text = content.get(key)
        if not isinstance(text, str) or not text.strip():
            raise ConfigError(f"{path.name}: {key} is {text!r}, and must be text, in quotes where in doubt: {FORM}")
    arms, base = content.get("arms"), content.get("base") or {}
    if not isinstance(arms, list) or not all(_is_single_setting(arm) for arm in arms):
        raise ConfigError(f"{path.name}: each arm is one line, such as `- model.pos: alibi`: {FORM}")
    if not isinstance(base, dict) or not all(isinstance(key, str) for key in base):
        raise ConfigError(f"{path.name}: base must be settings and their values: {FORM}")
    for key in [*(next(iter(arm)) for arm in arms), *base]:
        if key not in (*SETTINGS, *PARTS, "study"):
            raise ConfigError(f"{path.name}: there is no setting {key!r}{did_you_mean(key, SETTINGS)}")
    origin = str(base.get("study", name))
    shared = _base_or_named_base(base, path.name)
    base = shared | {key: value for key, value in base.items() if key != "study"}
    predictions = content.get("predictions") or []
    if not isinstance(predictions, list) or not all(isinstance(line, str) for line in predictions):
        raise ConfigError(f"{path.name}: predictions are a list of lines such as `- alibi < learned`: {FORM}")
    lines = [next(iter(arm.items())) for arm in arms]
    metric = check_metric(content.get("metric", PRIMARY), f"{path.name}: metric")
    margins = margins_from_file(content["margin"], metric, path.name) if "margin" in content else {}
    seeds = content.get("max_seeds")
    if "max_seeds" in content and (isinstance(seeds, bool) or not isinstance(seeds, int) or not 2 <= seeds <= 100):
        raise ConfigError(f"{path.name}: max_seeds is {seeds!r}: a number of seeds from 2 to 100 is needed")
    question, expect = content["question"].strip(), content["expect"].strip()
    return StudyFile(
        name,
        question,
        expect,
        lines,
        list(base.items()),
        metric,
        margins,
        seeds,
        predictions,
        words=_evaluation_words(path.name, content),
        recipe=(origin, shared) if shared else None,
    )


def _evaluation_words(file: str, content: dict[str, Any]) -> dict[str, str]:
    """The NAME=VALUE words that the entries `tasks` and `shots` of a study file stand for: {"TASKS": text, "SHOTS":
    text}, without a word whose entry is missing. `file`: the name of the file, for error messages; `content`: its
    content. Raises ConfigError if an entry is of the wrong type."""
    words = {}
    if (tasks := content.get("tasks")) is not None:
        if not isinstance(tasks, str) or not tasks.strip():
            raise ConfigError(f"{file}: tasks is {tasks!r}, and must be names with commas between them: {FORM}")
        words["TASKS"] = tasks.strip()
    if (shots := content.get("shots")) is not None:
        if not isinstance(shots, int) or isinstance(shots, bool):
            raise ConfigError(f"{file}: shots is {shots!r}, and must be a number of examples: {FORM}")
        words["SHOTS"] = str(shots)
    return words


def _base_or_named_base(base: dict[str, Any], file: str) -> dict[str, Any]:
    """The settings from which the base of a study file starts, {setting: value}. If `base` has an entry "study", they
    are the base of the study of that name; else `base` itself.

    `base`: the entry "base" of the file; `file`: the name of the file, for error messages. Raises ConfigError if there
    is no study of that name, or its base has no settings of its own.
    """
    if "study" not in base:
        return base
    other = str(base["study"])
    if other not in study_names():
        raise unknown_choice_error(f"{file}: base: study", other, study_names())
    shared = read_yaml(STUDIES / f"{other}.yaml").get("base")
    if not isinstance(shared, dict) or "study" in shared:
        raise ConfigError(f"{file}: base: study={other} has no settings of its own in its base")
    return shared


def _is_single_setting(arm: Any) -> bool:
    return isinstance(arm, dict) and len(arm) == 1 and isinstance(next(iter(arm)), str)
