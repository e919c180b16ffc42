"""The NAME=VALUE words of a command line: which there are, and how they are read and checked."""

import os
import re
import shlex
import sys
from glob import glob
from pathlib import Path

from ablations.config import KEYS, SETTINGS, ConfigError
from ablations.criteria import MAX_SEEDS
from ablations.values import did_you_mean
from data.answers import asks_for_json, json_error

ROOT = Path(__file__).parent.parent
PATHS = ("DATA", "EVAL_DATA", "GLUE", "NOISE_FLOOR", "OUT")
MOST_SHOTS = 100  # examples in a prompt; no task of lm-eval asks for more than 25

FACTORS = {  # {word of which each value is an arm: (the setting, its name in the names of studies)}
    "POS": ("model.pos", "position"),
    "ACT": ("model.act", "activation"),
    "NORM": ("model.norm", "norm"),
    "EMBNORM": ("model.embnorm", "embedding-norm"),
    "DATA": ("data.corpus", "corpus"),
}
COMMON_SETTINGS = {  # {word that sets something for all runs: the setting}
    "SIZE": "size",
    "TOKENS": "train.tokens",
}
HELP = {  # {every NAME: its help text}
    "STUDY": "a file of ablations/studies: all of its arms",
    **{name: f"arm(s): {SETTINGS[key].meaning}" for name, (key, _) in FACTORS.items()},
    "DATA": "alone: arm(s), corpora against the baseline's. With another factor: the corpus of all runs",
    **{name: f"for all runs: {SETTINGS[key].meaning}" for name, key in COMMON_SETTINGS.items()},
    "SEEDS": "how many seeds per arm (default 2)",
    "FIRST_SEED": "the first of these seeds (default 1): other seeds are other runs of the same arms",
    "METRIC": "the primary metric, named before the runs (default bits/byte; zero-shot, suite); others are exploratory",
    "MARGIN": "differences that do not matter, named before the runs: in bits per byte, and after a comma in points. "
    "MARGIN=0.01,1: arms that surely differ by less are equivalent. Default: that of the study file",
    "NOISE_FLOOR": "a file of `make noise` of the same baseline: verdicts with few seeds borrow its degrees of freedom",
    "MORE": "auto: adds seeds until every arm is better, worse or equivalent; looking often makes no winners",
    "MAX_SEEDS": f"how many seeds MORE=auto may come to (default {MAX_SEEDS})",
    "CROSS": "1: all combinations of the factors, for their interactions; 1/2, 1/4, 1/8: a fraction of these",
    "LR": "tune: every arm at 0.5, 1 and 2 times the baseline's learning rate, judged at its best; or LR=0.25,0.5,1,2",
    "SET": 'settings for all runs, e.g. "train.lr=3e-4 train.batch=16"',
    "ARM": 'any one setting as an arm, e.g. "train.beta2=0.999"; or a part of a preset, e.g. "training=bert-normal"',
    "TASKS": "judge also by lm-eval's tasks: suite (the study's 27), multilingual, or names such as hellaswag,blimp",
    "SHOTS": "with TASKS: examples in each prompt (default: as many as each task's definition says)",
    "EVAL_DATA": "where the data of TASKS is (default: OUT/eval-data, which `make eval-data` fills)",
    "GLUE": "fine-tune each finished run on the GLUE tasks whose data is in this folder, or in several with commas",
    "GLUE_TASKS": "those of GLUE alone, such as cola,rte or 'cola rte' (default: all whose data is there)",
    "GLUE_SEEDS": "fine-tuning seeds per task, of which the median counts (default 5)",
    "EXPORT": "1: each finished run as a Hugging Face checkpoint too; refused before training where there can be none",
    "PREDICT": 'what is expected, to be checked: "alibi < learned; alibi - learned in [-0.3, -0.05]"',
    "JOBS": "runs at a time (default: as many as fit the CPU cores; 1 on a GPU)",
    "OUT": "where runs and prepared data are kept (default runs)",
}


def parse_words(words: list[str]) -> dict[str, str]:
    """Split NAME=VALUE words. Returns {name: value}. Raises ConfigError where a word is no NAME=VALUE or its name is
    unknown, a name is given twice, or a value is empty, has control characters or is not UTF-8."""
    values: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or name not in HELP:
            raise ConfigError(f"{word[:200]!r} is no NAME=VALUE of {', '.join(HELP)}{did_you_mean(name[:100], HELP)}")
        if name in values:
            raise ConfigError(f"{name} is given twice")
        if not _is_text(value) or (name in PATHS and re.search(r"[\t\n]", value.strip())):
            raise ConfigError(f"{name}={value[:200]!r}: characters that are no text, or no UTF-8")
        values[name] = expand_home(value.strip()) if name in PATHS else value.strip()
    check_not_empty(values, HELP)
    return values


def check_not_empty(values: dict[str, str], meanings: dict[str, str]) -> None:
    """Check that no NAME=VALUE word has an empty value. `values`: {name: value}; `meanings`: {name: its help text}.
    Raises ConfigError where a value is empty."""
    for name, value in values.items():
        if not value.strip():
            raise ConfigError(f"{name}= is empty: give a value or leave it out. {name}: {meanings[name]}")


def parse_assignments(name: str, text: str) -> list[tuple[str, str]]:
    """The settings in the value of the word SET or ARM, as (key, value) texts. `name`: SET or ARM, for error messages;
    `text`: key=value pairs with spaces between them. Raises ConfigError where a part of the text is no key=value."""
    pairs: list[tuple[str, str]] = []
    for word in text.split():
        key, equals, value = word.partition("=")
        if not equals and pairs:
            before = "=".join(pairs[-1])[:200]
            raise ConfigError(
                f"{name}: {word[:200]!r} is no key=value. A value has no spaces: is {before}{word[:200]} meant?"
            )
        if not equals:
            raise ConfigError(
                f"{name}: {word[:200]!r}: key=value is needed, e.g. train.lr=3e-4. Settings: {', '.join(sorted(KEYS))}"
            )
        pairs.append((key, value))
    return pairs


def parse_whole_number(name: str, text: str, most: int, things: str, least: int = 1) -> int:
    """The whole number that a NAME=VALUE word gives.

    Args:
        name, text: the name and the value of the word.
        most, least: the largest and the smallest allowed number.
        things: what the word counts, in the plural, for the error message.

    Raises:
        ConfigError: the text is no whole number in this range.
    """
    if not re.fullmatch(r"[0-9]{1,9}", text) or not least <= int(text) <= most:
        raise ConfigError(f"{name}={text[:60]}: a number of {things} from {least} to {most} is needed")
    return int(text)


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", value)


def check_words(values: dict[str, str]) -> None:
    """Check the words about evaluation tasks, GLUE and export. `values`: {name: value} of all words. Raises ConfigError
    where a word names no task, lacks the word that it depends on, or has a value that is not allowed."""
    for name in ("TASKS", "GLUE", "GLUE_TASKS"):
        if name in values and not values[name].replace(",", "").strip():
            raise ConfigError(f"{name}={values[name]} names nothing: names are needed, with commas between")
    if "EVAL_DATA" in values and "TASKS" not in values:
        raise ConfigError("EVAL_DATA says where the data of evaluation tasks is: name them, e.g. TASKS=suite")
    if "SHOTS" in values:
        if "TASKS" not in values:
            raise ConfigError(
                "SHOTS counts the examples in the prompts of evaluation tasks: name them, e.g. TASKS=gsm8k"
            )
        parse_whole_number("SHOTS", values["SHOTS"], MOST_SHOTS, "examples in each prompt", least=0)
    for name in ("GLUE_SEEDS", "GLUE_TASKS"):
        if name in values and "GLUE" not in values:
            raise ConfigError(f"{name} is about fine-tuning on GLUE: say where its data is, GLUE=folder")
    if "GLUE_SEEDS" in values:
        parse_whole_number("GLUE_SEEDS", values["GLUE_SEEDS"], 100, "seeds")
    if values.get("EXPORT", "1") != "1":
        raise ConfigError(f"EXPORT={values['EXPORT'][:60]}: 1, or leave it out")


def check_folder(out: Path) -> None:
    """Check that `out` is a folder, or that a folder can be created there; nothing is created. Raises ConfigError where
    it is something else, or there is no permission."""
    try:
        folder = out
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
        problem = "" if folder.is_dir() else f"{folder} is no folder"
        if folder != out and not problem:
            kernel = {*folder.resolve().parts[1:2]} & {"proc", "sys"}  # the kernel's file systems take no files
            problem = f"no folder can be made in {folder}" if kernel or not os.access(folder, os.W_OK) else ""
    except OSError as error:
        problem = str(error.strerror)
    if problem:
        raise ConfigError(f"OUT={str(out)[:200]}: {problem}; a folder is needed, which may not exist yet")


def expand_home(paths: str) -> str:
    """Replace ~ in paths by the user's home, which some shells do not do in OUT=~/runs. `paths`: a path, or several
    with commas between them. Raises ConfigError if the home is not known, as in a container whose user has no
    account."""

    def home(_: re.Match[str]) -> str:
        try:
            return str(Path.home())
        except RuntimeError:
            raise ConfigError(f"{paths[:200]}: the home of this user is not known: give the whole path") from None

    return re.sub(r"(?<![^,])~(?=[/,]|$)", home, paths)


def parse_folders(text: str) -> list[str]:
    """The paths of the folders that the word RUNS, NOISE or EXTERNAL names. Raises ConfigError if a quote is not
    closed, or paths are separated by commas.

    `text`: the value of the word: paths or globs with spaces between them. A path that contains spaces is in quotes, or
    is the only one.
    """
    if _exists(text):
        return [text]
    try:
        names = [expand_home(name) for name in shlex.split(text)]
    except ValueError as error:
        raise ConfigError(f"{text!r}: {error}") from None
    if commas := next((name for name in names if "," in name and all(map(_exists, name.split(",")))), ""):
        raise ConfigError(f"{commas}: folders have spaces between them, and no commas")
    return [path for name in names for path in ([name] if _exists(name) else sorted(glob(name)) or [name])]


def _exists(name: str) -> bool:
    try:
        return bool(name) and Path(name).exists()
    except OSError:  # a name that is too long
        return False


def change_to_checkout(words: list[str]) -> list[str]:
    """Change to the folder of the checkout, in which all commands run. Returns the NAME=VALUE words, in which relative
    paths are made absolute where the command was given in another folder. Where only the package is installed, without
    a checkout, the program ends with an error message and exit code 2."""
    if not (ROOT / "Makefile").exists():
        why = (
            "megahour works in a checkout of its repository or in an unpacked source distribution, where its runs, "
            f"records, study files and site file are; {ROOT} has the installed package alone"
        )
        if asks_for_json(sys.argv):
            print(json_error(why))
        print(f"error: {why}", file=sys.stderr)
        raise SystemExit(2)
    here = Path.cwd()
    if here == ROOT:
        return words
    absolute = []
    for word in words:
        name, equals, value = word.partition("=")
        if name in ("RUNS", "NOISE", "EXTERNAL"):
            value = shlex.join(str(here / folder) for folder in parse_folders(value))
        elif name == "GLUE":
            value = ",".join(str(here / part.strip()) for part in value.split(",") if part.strip())
        elif name in ("OUT", "EVAL_DATA", "NOISE_FLOOR") and value.strip():
            value = str(here / value.strip())
        absolute.append(name + equals + value)
    os.chdir(ROOT)
    return absolute
