"""A study from the words typed after `make ablation`: NAME=VALUE."""

import os
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any, get_origin

from ablations.cells import FOLLOWS, Cell, Study, build
from ablations.config import KEYS, SETTINGS, ConfigError, parse, presets, resolve
from ablations.prediction import predict, predictions_about
from ablations.study_file import STUDIES, read_study, study_names
from ablations.values import did_you_mean

__all__ = ["ROOT", "STUDIES", "Cell", "Study", "build", "from_anywhere", "from_args"]

ROOT = Path(__file__).parent.parent

# What the command line may set: a variable, the setting that it stands for, and its help.
FACTORS = {  # the question: each value is an arm, compared with the baseline
    "POS": ("model.pos", "position"),
    "ACT": ("model.act", "activation"),
    "NORM": ("model.norm", "norm"),
    "EMBNORM": ("model.embnorm", "embedding-norm"),
    "DATA": ("data.corpus", "corpus"),
}
FOR_ALL_RUNS = {  # the same for every arm
    "SIZE": "size",
    "TOKENS": "train.tokens",
}
HELP = {
    "STUDY": "a file of ablations/studies: all of its arms",
    **{name: f"arm(s): {SETTINGS[key].meaning}" for name, (key, _) in FACTORS.items()},
    "DATA": "alone: arm(s), corpora against the baseline's. With another factor: the corpus of all runs",
    **{name: f"for all runs: {SETTINGS[key].meaning}" for name, key in FOR_ALL_RUNS.items()},
    "SEEDS": "how many seeds per arm (default 2)",
    "SET": 'settings for all runs, e.g. "train.lr=3e-4 train.batch=16"',
    "ARM": 'any one setting as an arm, e.g. "train.beta2=0.999"',
    "TASKS": "judge also by lm-eval's tasks: suite (the study's 27), multilingual, or names such as hellaswag,blimp",
    "EVAL_DATA": "where the data of TASKS is (default: OUT/eval-data, which `make eval-data` fills)",
    "GLUE": "fine-tune each finished run on the GLUE tasks whose data is in this folder, or in several with commas",
    "GLUE_SEEDS": "fine-tuning seeds per task, of which the median counts (default 5)",
    "PREDICT": 'what is expected, to be checked: "alibi < learned; alibi - learned in [-0.3, -0.05]"',
    "JOBS": "runs at a time (default: as many as fit the CPU cores; 1 on a GPU)",
    "OUT": "where runs and prepared data are kept (default runs)",
}


def from_args(words: list[str]) -> Study:
    """A study from NAME=VALUE words as typed after `make ablation`. Creates nothing.

    Raises:
        ConfigError: for anything that is not allowed, naming what is.
    """
    values = _values(words)
    setting: list[tuple[str, Any]] = [(key, values[name]) for name, key in FOR_ALL_RUNS.items() if name in values]
    set_words = [_assignment(word) for word in values.get("SET", "").split()]
    factor, arms, corpus = _arms(values)
    if corpus:
        setting.append(("data.corpus", corpus))
        setting += [(key, corpus) for key in FOLLOWS if key not in dict(set_words)]
    setting += set_words
    keys = [key for key, _ in setting]
    if repeated := [key for key in dict.fromkeys(keys) if keys.count(key) > 1]:
        names = ", ".join(name for name in (*FOR_ALL_RUNS, "DATA", "SET") if name in values)
        raise ConfigError(f"{', '.join(repeated)} is set twice by {names}: say it once")

    if "STUDY" in values:
        if arms:
            raise ConfigError("a study file has its own arms: give STUDY, or a factor, not both")
        file = read_study(values["STUDY"])
        question, expect, arms, factor = file.question, file.expect, file.arms, file.name
        predicted = file.predictions
        if dict(setting).get("size") not in presets():  # a preset is a whole recipe
            setting = file.base + setting
    elif arms:
        question, expect, predicted = _expectation(arms)
    else:
        factors = ", ".join(f"{name}=" for name in FACTORS)
        raise ConfigError(f"no question asked: give one of {factors} ARM=, or STUDY= one of {', '.join(study_names())}")

    if "TOKENS" in values and (budget := resolve(setting).train.budget) != "tokens":
        raise ConfigError(f"TOKENS={values['TOKENS']} and train.budget={budget}: one of the two ends a run, give one")
    seeds = _count("SEEDS", values.get("SEEDS", "2"), 100, "seeds")
    jobs = _count("JOBS", values["JOBS"], 10_000, "runs at a time") if "JOBS" in values else None
    if "EVAL_DATA" in values and "TASKS" not in values:
        raise ConfigError("EVAL_DATA says where the data of evaluation tasks is: name them, e.g. TASKS=suite")
    if "GLUE_SEEDS" in values:
        if "GLUE" not in values:
            raise ConfigError("GLUE_SEEDS counts seeds of fine-tuning: say where GLUE's data is, GLUE=folder")
        _count("GLUE_SEEDS", values["GLUE_SEEDS"], 100, "seeds")
    out = Path(values.get("OUT", "runs"))
    _check_out(out)

    corpora = [str(value) for key, value in arms if key == "data.corpus"]
    if corpora and not any(key == "eval.corpora" for key, _ in setting):
        # arms that read different text are judged on the held-out text of all of it
        judged = resolve(setting).eval.corpora
        setting.append(("eval.corpora", judged + [c for c in dict.fromkeys(corpora) if c not in judged]))
    study = build(factor, question, expect, setting, arms, list(range(1, seeds + 1)), out, jobs, words)
    about = predictions_about(predicted, study.arms)
    if "STUDY" in values:
        about = [predict(text, study.arms) for text in predicted]
    asked = [text for text in values.get("PREDICT", "").split(";") if text.strip()]
    return replace(study, predictions=[*about, *(predict(text.strip(), study.arms) for text in asked)])


def _values(words: list[str]) -> dict[str, str]:
    """{name: value} of the words; a name without a value counts as not typed."""
    values: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or name not in HELP:
            raise ConfigError(f"{word[:200]!r} is no NAME=VALUE of {', '.join(HELP)}{did_you_mean(name[:100], HELP)}")
        if name in values:
            raise ConfigError(f"{name} is given twice")
        if not _is_text(value):
            raise ConfigError(f"{name}={value[:200]!r}: characters that are no text, or no UTF-8")
        if value.strip():
            values[name] = value.strip()
    return values


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", value)


def _arms(values: dict[str, str]) -> tuple[str, list[tuple[str, Any]], str]:
    """The name of the question, its arms as (key, value), and the corpus of all runs where DATA is no factor."""
    factors = [name for name in FACTORS if name in values]
    corpus = ""
    if "DATA" in values and (factors != ["DATA"] or "ARM" in values or "STUDY" in values):
        factors.remove("DATA")
        corpus = values["DATA"]
        if "," in corpus:
            raise ConfigError("DATA with another factor is the corpus of all runs: give one, not several")
    names = [FACTORS[name][1] for name in factors]
    arms: list[tuple[str, Any]] = [(FACTORS[name][0], value) for name in factors for value in values[name].split(",")]
    for word in values.get("ARM", "").split():
        key, text = _assignment(word)
        if corpus and key == "data.corpus":
            raise ConfigError("DATA beside ARM is the corpus of all runs: to compare corpora give DATA alone")
        names.append(key.split(".")[-1])
        # a comma separates arms, as in POS=rotary,alibi, but for settings that are lists themselves
        arms += [(key, value) for value in ([text] if is_list(key) else text.split(","))]
    return "-".join(dict.fromkeys(names)), arms, corpus


def is_list(key: str) -> bool:
    """Whether a setting is a list of values, with commas between them."""
    return get_origin(KEYS.get(key)) is list


def _expectation(arms: list[tuple[str, Any]]) -> tuple[str, str, list[str]]:
    """The question, the expectation and the predictions written down for these arms in a study file, where there is
    one.

    A file that cannot be read is left out, and named, since the expectation may be in it.
    """
    wanted = {(key, str(parse(key, value))) for key, value in arms}
    unread = []
    for name in study_names():
        try:
            file = read_study(name)
            if wanted <= {(key, str(parse(key, value))) for key, value in file.arms}:
                return file.question, file.expect, file.predictions
        except ConfigError:
            unread.append(f"ablations/studies/{name}.yaml")
    expect = "Nothing was written down before the runs."
    if unread:
        expect += f" (Not readable: {', '.join(unread)}.)"
    return f"Does {' or '.join(f'{key}={value}' for key, value in arms)} beat the baseline?", expect, []


def _count(name: str, text: str, most: int, things: str) -> int:
    """A number of things, from 1 to `most`."""
    if not re.fullmatch(r"[0-9]{1,9}", text) or not 1 <= int(text) <= most:
        raise ConfigError(f"{name}={text[:60]}: a number of {things} from 1 to {most} is needed")
    return int(text)


def _check_out(out: Path) -> None:
    """Raises ConfigError where no folder can be at `out`. Creates nothing."""
    try:
        folder = out
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
        problem = "" if folder.is_dir() else f"{folder} is no folder"
    except OSError as error:
        problem = str(error.strerror)
    if problem:
        raise ConfigError(f"OUT={str(out)[:200]}: {problem}; a folder is needed, which may not exist yet")


def folders(text: str) -> list[str]:
    """The folders that RUNS or NOISE name, with spaces between them; a name with a space needs quotes, or is alone."""
    if _exists(text):
        return [text]
    try:
        return shlex.split(text)
    except ValueError as error:
        raise ConfigError(f"{text!r}: {error}") from None


def _exists(name: str) -> bool:
    try:
        return bool(name) and Path(name).exists()
    except OSError:  # a name that is too long
        return False


def from_anywhere(words: list[str]) -> list[str]:
    """The words as they read from the checkout, where everything that is started runs; goes there itself."""
    here = Path.cwd()
    if here == ROOT:
        return words
    absolute = []
    for word in words:
        name, equals, value = word.partition("=")
        if name in ("RUNS", "NOISE"):
            value = shlex.join(str(here / folder) for folder in folders(value))
        elif name == "GLUE":
            value = ",".join(str(here / part.strip()) for part in value.split(",") if part.strip())
        elif name in ("OUT", "EVAL_DATA") and value.strip():
            value = str(here / value.strip())
        absolute.append(name + equals + value)
    os.chdir(ROOT)
    return absolute


def _assignment(word: str) -> tuple[str, str]:
    key, equals, value = word.partition("=")
    if not equals:
        raise ConfigError(
            f"{word[:200]!r}: key=value is needed, e.g. train.lr=3e-4. Settings: {', '.join(sorted(KEYS))}"
        )
    return key, value
