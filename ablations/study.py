"""A study from the words typed after `make ablation`: NAME=VALUE."""

import os
import re
import shlex
import sys
from dataclasses import replace
from glob import glob
from pathlib import Path
from typing import Any, get_origin

from ablations.cells import FOLLOWS, Cell, Study, build
from ablations.config import KEYS, SETTINGS, ConfigError, parse, presets, resolve, without_effect
from ablations.criteria import MAX_SEEDS, PRIMARY, Criteria, check_metric, margins_of_word
from ablations.noise_floor import read_noise_floor
from ablations.parts import PARTS
from ablations.prediction import Prediction, predict, predictions_about
from ablations.registration import NOTHING_EXPECTED
from ablations.study_file import STUDIES, StudyFile, read_study, study_names
from ablations.tuning import MOST_SEEDS, multiples
from ablations.values import did_you_mean
from data.answers import asks_for_json, error

__all__ = ["ROOT", "STUDIES", "Cell", "Study", "build", "from_anywhere", "from_args"]

ROOT = Path(__file__).parent.parent
PATHS = ("DATA", "EVAL_DATA", "GLUE", "NOISE_FLOOR", "OUT")
MOST_SHOTS = 100  # examples in a prompt; the most that a definition of lm-eval's asks for is 25

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
    "GLUE_TASKS": "those of GLUE alone, such as cola,rte (default: all whose data is there)",
    "GLUE_SEEDS": "fine-tuning seeds per task, of which the median counts (default 5)",
    "EXPORT": "1: each finished run as a Hugging Face checkpoint too; refused before training where there can be none",
    "PREDICT": 'what is expected, to be checked: "alibi < learned; alibi - learned in [-0.3, -0.05]"',
    "JOBS": "runs at a time (default: as many as fit the CPU cores; 1 on a GPU)",
    "OUT": "where runs and prepared data are kept (default runs)",
}


def from_args(words: list[str]) -> Study:
    """Make the study that NAME=VALUE words ask for, as they are typed after `make ablation`. No file is created.

    Raises:
        ConfigError: a word or a value is not allowed; the message names what is.
    """
    values = _values(words)
    setting: list[tuple[str, Any]] = [(key, values[name]) for name, key in FOR_ALL_RUNS.items() if name in values]
    set_words = _assignments("SET", values.get("SET", ""))
    factor, arms, corpus = _arms(values)
    if corpus:
        setting.append(("data.corpus", corpus))
        setting += [(key, corpus) for key in FOLLOWS if key not in dict(set_words)]
    setting += set_words
    keys = [key for key, _ in setting]
    if repeated := [key for key in dict.fromkeys(keys) if keys.count(key) > 1]:
        words_of = FOR_ALL_RUNS | ({"DATA": "data.corpus"} if corpus else {})
        names = [name for name, key in words_of.items() if name in values and key in repeated]
        names += ["SET"] if dict(set_words).keys() & set(repeated) else []
        raise ConfigError(f"{', '.join(repeated)} is set twice by {' and '.join(names)}: say it once")

    file, recipe = None, None
    if "STUDY" in values:
        if arms:
            raise ConfigError("a study file has its own arms: give STUDY, or a factor, not both")
        file = read_study(values["STUDY"])
        question, expect, arms, factor = file.question, file.expect, file.arms, file.name
        values |= {name: value for name, value in file.words.items() if name not in values}
        if dict(setting).get("size") not in presets():  # a preset is a whole recipe
            setting, recipe = file.base + setting, file.recipe
        arms = without_baseline(arms, setting)
    elif arms:
        question, expect, file = _expectation(arms)
        if file is None and "PREDICT" in values:
            expect = values["PREDICT"]
    else:
        factors = ", ".join(f"{name}=" for name in FACTORS)
        raise ConfigError(f"no question asked: give one of {factors} ARM=, or STUDY= one of {', '.join(study_names())}")

    if "TOKENS" in values and (budget := resolve(setting).train.budget) != "tokens":
        raise ConfigError(f"TOKENS={values['TOKENS']} and train.budget={budget}: one of the two ends a run, give one")
    count = _count("SEEDS", values.get("SEEDS", "2"), 100, "seeds")
    first = _count("FIRST_SEED", values.get("FIRST_SEED", "1"), 1_000_000, "the first seed")
    criteria = _criteria(values, file, count, bool(arms))
    cross, rates = _design(values, criteria)
    jobs = _count("JOBS", values["JOBS"], 10_000, "runs at a time") if "JOBS" in values else None
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
        _count("SHOTS", values["SHOTS"], MOST_SHOTS, "examples in each prompt", least=0)
    for name in ("GLUE_SEEDS", "GLUE_TASKS"):
        if name in values and "GLUE" not in values:
            raise ConfigError(f"{name} is about fine-tuning on GLUE: say where its data is, GLUE=folder")
    if "GLUE_SEEDS" in values:
        _count("GLUE_SEEDS", values["GLUE_SEEDS"], 100, "seeds")
    if values.get("EXPORT", "1") != "1":
        raise ConfigError(f"EXPORT={values['EXPORT'][:60]}: 1, or leave it out")
    out = Path(values.get("OUT", "runs"))
    _check_out(out)

    corpora = [str(value) for key, value in arms if key == "data.corpus"]
    if corpora and not any(key == "eval.corpora" for key, _ in setting):
        # arms that read different text are judged on the held-out text of all of it
        judged = resolve(setting).eval.corpora
        setting.append(("eval.corpora", judged + [c for c in dict.fromkeys(corpora) if c not in judged]))
    words = [f"{name}={value}" for name, value in values.items()]

    def study(count: int) -> Study:
        seeds = list(range(first, first + count))
        built = build(factor, question, expect, setting, arms, seeds, out, jobs, words, criteria, cross, rates, recipe)
        return replace(built, predictions=_predictions(values, file, built.arms))

    planned = study(count)
    _check_used(planned, dict(set_words))
    if "TASKS" in values and any(cell.run.model.objective == "mlm" for cell in planned.cells):
        raise ConfigError(
            "model.objective=mlm gives no likelihood of a text from left to right, which TASKS need: leave TASKS out; "
            "its held-out loss on masked tokens is always measured, and fine-tuning on GLUE is possible (make glue)"
        )
    more = _more_begun(planned, criteria.seeds - count) if criteria.sequential else 0
    return study(count + more) if more else planned


def _check_used(study: Study, settings: dict[str, str]) -> None:
    """Check that every setting of the word SET, the keys of `settings`, has an effect in at least one run.

    Raises:
        ConfigError: a setting has no effect in any run.
    """
    for key in settings:
        missing = [without_effect(key, cell.run.flat()) for cell in study.cells]
        if all(missing):
            raise ConfigError(f"SET: {key} does nothing without {missing[0]}: leave it out")


def _design(values: dict[str, str], criteria: Criteria) -> tuple[str, tuple[float, ...]]:
    """The designs that the words CROSS and LR ask for: (the value of CROSS or "", the multiples of the learning rate
    or ()).

    Args:
        values: {name: value} of the words.
        criteria: the criteria of the study.

    Raises:
        ConfigError: the two are combined with each other or with MORE=auto, or a value is not allowed.
    """
    if "CROSS" in values and "LR" in values:
        raise ConfigError("CROSS and LR are two designs: give one of them")
    for name in ("CROSS", "LR"):
        if name in values and criteria.sequential:
            raise ConfigError(f"{name} has a fixed number of seeds, SEEDS: MORE=auto and max_seeds look at arms alone")
    if "LR" in values and criteria.seeds > MOST_SEEDS:
        raise ConfigError(
            f"LR: SEEDS={criteria.seeds} is more than {MOST_SEEDS}, up to which its verdicts are calibrated"
        )
    return values.get("CROSS", ""), multiples(values["LR"]) if "LR" in values else ()


def _predictions(values: dict[str, str], file: StudyFile | None, arms: list[str]) -> list[Prediction]:
    """The predictions of a study: those of its file and those of the word PREDICT.

    Args:
        values: {name: value} of the words.
        file: the study file, or None. Where the word STUDY does not name it, its predictions about arms that are not
            run are left out.
        arms: the labels of the arms that are run, the baseline first.

    Raises:
        ConfigError: a text is no prediction, or names an arm that is not run.
    """
    lines = file.predictions if file else []
    of_file = [predict(line, arms) for line in lines] if "STUDY" in values else predictions_about(lines, arms)
    typed = [line.strip() for line in values.get("PREDICT", "").split(";") if line.strip()]
    return [*of_file, *(predict(line, arms) for line in typed)]


def _criteria(values: dict[str, str], file: StudyFile | None, seeds: int, arms: bool) -> Criteria:
    """The criteria by which a study is decided: those in the words, else those in its file.

    Args:
        values: {name: value} of the words.
        file: the study file, or None.
        seeds: the number of seeds of each arm, before any are added.
        arms: whether the study has arms beside the baseline.

    Raises:
        ConfigError: a word that names a criterion is not valid, or MORE=auto cannot add seeds.
    """
    metric = check_metric(values.get("METRIC", file.metric if file else PRIMARY), "METRIC")
    margins = margins_of_word(values["MARGIN"]) if "MARGIN" in values else file.margins if file else {}
    floor = read_noise_floor(values["NOISE_FLOOR"]) if "NOISE_FLOOR" in values else None
    most_of_file = file.max_seeds if file and "STUDY" in values else None
    more = values.get("MORE", "auto" if most_of_file else "none")
    if more not in ("auto", "none"):
        raise ConfigError(f"MORE={more[:60]}: auto adds seeds until every arm is decided; none (default) does not")
    if more == "none":
        if "MAX_SEEDS" in values:
            raise ConfigError("MAX_SEEDS says how many seeds MORE=auto may come to: give that too")
        return Criteria(metric, margins, seeds, noise_floor=floor)
    most = _count("MAX_SEEDS", values.get("MAX_SEEDS", str(most_of_file or MAX_SEEDS)), 100, "seeds")
    if not arms:
        raise ConfigError("MORE=auto adds seeds until the arms are decided: this study has none beside the baseline")
    if most < max(2, seeds):
        raise ConfigError(f"MAX_SEEDS={most} is less than SEEDS={seeds}, or than the two that any verdict needs")
    return Criteria(metric, margins, most, sequential=True, noise_floor=floor)


def _more_begun(study: Study, most: int) -> int:
    """How many seeds MORE=auto has already added to a study: those beyond the study's seeds for which the directory of
    an arm exists. The baseline's directories do not count, since other studies share them.

    Args:
        study: the study with the seeds that its words ask for.
        most: how many seeds may be added.
    """
    folders = {cell.dir.parent / cell.dir.name.rpartition(",seed=")[0] for cell in study.cells if cell.delta}
    last = study.seeds[-1]
    begun = [
        more for more in range(1, most + 1) if any(Path(f"{folder},seed={last + more}").exists() for folder in folders)
    ]
    return max(begun, default=0)


def without_baseline(arms: list[tuple[str, Any]], setting: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """Leave out the arms of a study file that equal the baseline at the size of the study, since a file is written for
    several sizes.

    Args:
        arms: (key, value) of each arm.
        setting: (key, value) of the settings of all runs.

    Returns:
        (key, value) of the remaining arms.

    Raises:
        ConfigError: no arm remains.
    """
    flat = resolve(setting).flat()
    left = [(key, value) for key, value in arms if key in PARTS or key == "seed" or parse(key, value) != flat[key]]
    if arms and not left:
        raise ConfigError("two equal runs: all arms of the study are the baseline under these settings")
    return left


def left_out(study: Study) -> list[str]:
    """The arms of the study's file that are not run because they equal the baseline at this size, as text such as
    "model.layers=4"."""
    name = dict(word.split("=", 1) for word in study.words).get("STUDY", "").strip()
    flat = study.base.flat()
    arms = read_study(name).arms if name else []
    return [f"{key}={value}" for key, value in arms if key not in PARTS and parse(key, value) == flat[key]]


def _values(words: list[str]) -> dict[str, str]:
    """Split NAME=VALUE words. Returns {name: value}, without names whose value is empty.

    Raises:
        ConfigError: a word is no NAME=VALUE of a known name, or a name is given twice.
    """
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
            values[name] = at_home(value.strip()) if name in PATHS else value.strip()
    return values


def at_home(paths: str) -> str:
    """`paths`, separated by commas, with ~ replaced by the user's home: some shells leave ~ in a word such as
    OUT=~/runs, and a folder of that name would be made."""
    return re.sub(r"(?<![^,])~(?=[/,]|$)", str(Path.home()), paths)


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", value)


def _arms(values: dict[str, str]) -> tuple[str, list[tuple[str, Any]], str]:
    """The arms that the words for factors (POS, ACT, ...) and ARM ask for.

    Args:
        values: {name: value} of the words.

    Returns:
        (the name of the factor, (key, value) of each arm, the corpus of all runs). The corpus is "" unless DATA is
        given beside another factor.

    Raises:
        ConfigError: DATA names several corpora for all runs, or is combined with an arm of data.corpus.
    """
    factors = [name for name in FACTORS if name in values]
    corpus = ""
    if "DATA" in values and (factors != ["DATA"] or "ARM" in values or "STUDY" in values):
        factors.remove("DATA")
        corpus = values["DATA"]
        if "," in corpus:
            raise ConfigError("DATA with another factor is the corpus of all runs: give one, not several")
    names = [FACTORS[name][1] for name in factors]
    arms: list[tuple[str, Any]] = [
        (FACTORS[name][0], value.strip()) for name in factors for value in values[name].split(",")
    ]
    for key, text in _assignments("ARM", values.get("ARM", "")):
        if corpus and key == "data.corpus":
            raise ConfigError("DATA beside ARM is the corpus of all runs: to compare corpora give DATA alone")
        names.append(key.split(".")[-1])
        # a comma separates arms, as in POS=rotary,alibi, but for settings that are lists themselves
        arms += [(key, value) for value in ([text] if is_list(key) else text.split(","))]
    return "-".join(dict.fromkeys(names)), arms, corpus


def is_list(key: str) -> bool:
    """Whether a setting is a list of values, with commas between them."""
    return get_origin(KEYS.get(key)) is list


def _expectation(arms: list[tuple[str, Any]]) -> tuple[str, str, StudyFile | None]:
    """The question and the expectation of arms that are typed without a study file: those of a study file whose arms
    include them.

    A file that cannot be read is named in the expectation, since the expectation may be in that file.

    Args:
        arms: (key, value) of each arm.

    Returns:
        (question, expectation, the file). A default question, NOTHING_EXPECTED and None where no file has these arms.
    """
    typed_arms = {_arm(key, value) for key, value in arms}
    unread = []
    for name in study_names():
        try:
            file = read_study(name)
            # what is expected under other settings says nothing of these
            if not file.base and typed_arms <= {_arm(key, value) for key, value in file.arms}:
                return file.question, file.expect, file
        except ConfigError:
            unread.append(f"ablations/studies/{name}.yaml")
    expect = NOTHING_EXPECTED
    if unread:
        expect += f" (Not readable: {', '.join(unread)}.)"
    return f"Does {' or '.join(f'{key}={value}' for key, value in arms)} beat the baseline?", expect, None


def _arm(key: str, value: Any) -> tuple[str, str]:
    """An arm as (key, value as text), for comparing it with other arms."""
    return key, str(value if key in PARTS else parse(key, value))


def _count(name: str, text: str, most: int, things: str, least: int = 1) -> int:
    """The whole number in the value of a NAME=VALUE word.

    Args:
        name: the name of the word, for the message.
        text: its value.
        most: the largest number that is allowed.
        things: what the word counts, such as "seeds", for the message.
        least: the smallest number that is allowed.

    Raises:
        ConfigError: the text is no number from `least` to `most`.
    """
    if not re.fullmatch(r"[0-9]{1,9}", text) or not least <= int(text) <= most:
        raise ConfigError(f"{name}={text[:60]}: a number of {things} from {least} to {most} is needed")
    return int(text)


def _check_out(out: Path) -> None:
    """Check that a folder exists or can be created at `out`, without creating it.

    Raises:
        ConfigError: there is something else, or no permission to create a folder.
    """
    try:
        folder = out
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
        problem = "" if folder.is_dir() else f"{folder} is no folder"
        if folder != out and not problem:
            kernel = {*folder.resolve().parts[1:2]} & {"proc", "sys"}  # the kernel's own, without place for files
            problem = f"no folder can be made in {folder}" if kernel or not os.access(folder, os.W_OK) else ""
    except OSError as error:
        problem = str(error.strerror)
    if problem:
        raise ConfigError(f"OUT={str(out)[:200]}: {problem}; a folder is needed, which may not exist yet")


def folders(text: str) -> list[str]:
    """The folders that the word RUNS, NOISE or EXTERNAL names, as paths.

    Args:
        text: the value of the word: names or globs with spaces between them. A name with a space has to be quoted or to
            be the only one.

    Raises:
        ConfigError: a quote is not closed, or the names are separated by commas.
    """
    if _exists(text):
        return [text]
    try:
        names = [at_home(name) for name in shlex.split(text)]
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


def from_anywhere(words: list[str]) -> list[str]:
    """Change to the folder of the checkout, where all commands run, from whatever folder the command was given in.
    Returns the NAME=VALUE words with absolute paths. An installed package, which has no checkout, is refused: the
    program ends with exit code 2."""
    if not (ROOT / "Makefile").exists():
        why = (
            "megahour works in a checkout of its repository or in an unpacked source distribution, where its runs, "
            f"records, study files and site file are; {ROOT} has the installed package alone"
        )
        if asks_for_json(sys.argv):
            print(error(why))
        print(f"error: {why}", file=sys.stderr)
        raise SystemExit(2)
    here = Path.cwd()
    if here == ROOT:
        return words
    absolute = []
    for word in words:
        name, equals, value = word.partition("=")
        if name in ("RUNS", "NOISE", "EXTERNAL"):
            value = shlex.join(str(here / folder) for folder in folders(value))
        elif name == "GLUE":
            value = ",".join(str(here / part.strip()) for part in value.split(",") if part.strip())
        elif name in ("OUT", "EVAL_DATA", "NOISE_FLOOR") and value.strip():
            value = str(here / value.strip())
        absolute.append(name + equals + value)
    os.chdir(ROOT)
    return absolute


def _assignments(name: str, text: str) -> list[tuple[str, str]]:
    """Split the value of the word SET or ARM into its settings.

    Args:
        name: SET or ARM, for the message.
        text: key=value pairs with spaces between them.

    Returns:
        (key, value) of each setting.

    Raises:
        ConfigError: a part of the text is no key=value.
    """
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
