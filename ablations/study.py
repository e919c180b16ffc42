"""Makes a study from the NAME=VALUE words typed after `make ablation`."""

from dataclasses import replace
from pathlib import Path
from typing import Any, get_origin

from ablations.build_study import build_study
from ablations.cells import Cell, Study
from ablations.config import KEYS, ConfigError, Run, parse_setting, presets, resolve, setting_needed_for_effect
from ablations.criteria import MAX_SEEDS, PRIMARY, Criteria, check_metric, margins_from_word
from ablations.noise_floor import read_noise_floor
from ablations.parts import PARTS
from ablations.prediction import Prediction, parse_prediction, predictions_about
from ablations.registration import NOTHING_EXPECTED, question_about
from ablations.stage import FOLLOW_CORPUS
from ablations.study_file import STUDIES, StudyFile, read_study, study_names
from ablations.tuning import MOST_SEEDS, parse_multiples
from ablations.words import (
    COMMON_SETTINGS,
    FACTORS,
    ROOT,
    check_folder,
    check_words,
    parse_assignments,
    parse_whole_number,
    parse_words,
)
from model.count import count_parameters

# Tokens for each parameter below which a run that is shorter than that of its size is a trial; untuned: half of the 20
# (Hoffmann) with which `make plan` fits studies into a budget
TRIAL_TOKENS = 10
TRIAL_NOTE = (
    f"a trial: fewer tokens than its size has, and than {TRIAL_TOKENS} for each parameter. The predictions of the "
    "study file are not registered; those of PREDICT= are"
)

__all__ = ["ROOT", "STUDIES", "Cell", "Study", "from_args"]


def from_args(words: list[str]) -> Study:
    """Make the study that NAME=VALUE words ask for, as they are typed after `make ablation`. Creates no file. Raises
    ConfigError if a word or a value is not allowed; the message names what is allowed."""
    values = parse_words(words)
    set_words = parse_assignments("SET", values.get("SET", ""))
    factor, arms, corpus = _arms_and_corpus(values)
    common_settings = _settings_of_all_runs(values, set_words, corpus)
    file, recipe = None, None
    if "STUDY" in values:
        if arms:
            raise ConfigError("a study file has its own arms: give STUDY, or a factor, not both")
        file = read_study(values["STUDY"])
        question, expect, arms, factor = file.question, file.expect, file.arms, file.name
        values |= {name: value for name, value in file.words.items() if name not in values}
        if dict(common_settings).get("size") not in presets():  # a preset is a whole recipe
            common_settings, recipe = file.base + common_settings, file.recipe
        arms = _without_baseline(arms, common_settings)
    elif arms:
        question, expect, file = _question_and_expectation(arms, common_settings)
        if file is None and "PREDICT" in values:
            expect = values["PREDICT"]
    else:
        factors = ", ".join(f"{name}=" for name in FACTORS)
        raise ConfigError(f"no question asked: give one of {factors} ARM=, or STUDY= one of {', '.join(study_names())}")

    if "TOKENS" in values and (budget := resolve(common_settings).train.budget) != "tokens":
        raise ConfigError(f"TOKENS={values['TOKENS']} and train.budget={budget}: one of the two ends a run, give one")
    count = parse_whole_number("SEEDS", values.get("SEEDS", "2"), 100, "seeds")
    first = parse_whole_number("FIRST_SEED", values.get("FIRST_SEED", "1"), 1_000_000, "the first seed")
    criteria = _criteria(values, file, count, bool(arms))
    cross, rates = _parse_cross_and_lr(values, criteria)
    jobs = parse_whole_number("JOBS", values["JOBS"], 10_000, "runs at a time") if "JOBS" in values else None
    check_words(values)
    out = Path(values.get("OUT", "runs"))
    check_folder(out)
    corpora = [str(value) for key, value in arms if key == "data.corpus"]
    if corpora and not any(key == "eval.corpora" for key, _ in common_settings):
        # arms that read different text are judged on the held-out text of all of it
        judged = resolve(common_settings).eval.corpora
        common_settings.append(("eval.corpora", judged + [c for c in dict.fromkeys(corpora) if c not in judged]))
    words = [f"{name}={value}" for name, value in values.items()]

    def study_with_seeds(number: int) -> Study:
        seeds = list(range(first, first + number))
        built = build_study(factor, question, expect, common_settings, arms, seeds, out, cross, rates, recipe)
        predictions = _predictions(values, file, built)
        note = TRIAL_NOTE if file and file.predictions and _is_trial(built.base, file.base) else ""
        return replace(built, jobs=jobs, words=words, criteria=criteria, predictions=predictions, trial_note=note)

    planned = study_with_seeds(count)
    _check_used(planned, dict(set_words))
    if "TASKS" in values and any(cell.run.model.objective == "mlm" for cell in planned.cells):
        raise ConfigError(
            "model.objective=mlm gives no likelihood of a text from left to right, which TASKS need: leave TASKS out; "
            "its held-out loss on masked tokens is always measured, and fine-tuning on GLUE is possible (make glue)"
        )
    more = _seeds_added(planned, criteria.seeds - count) if criteria.sequential else 0
    return study_with_seeds(count + more) if more else planned


def _settings_of_all_runs(
    values: dict[str, str], set_words: list[tuple[str, str]], corpus: str
) -> list[tuple[str, Any]]:
    """The settings that the words of a command give to all runs, as (key, value).

    Args:
        values: {name: value} of all words.
        set_words: (key, value) of the settings in SET=.
        corpus: the corpus of all runs; "": no word names it, or the study compares corpora.

    Raises:
        ConfigError: two words set the same key.
    """
    common_settings: list[tuple[str, Any]] = [
        (key, values[name]) for name, key in COMMON_SETTINGS.items() if name in values
    ]
    if corpus:
        common_settings.append(("data.corpus", corpus))
        common_settings += [(key, corpus) for key in FOLLOW_CORPUS if key not in dict(set_words)]
    common_settings += set_words
    keys = [key for key, _ in common_settings]
    if repeated := [key for key in dict.fromkeys(keys) if keys.count(key) > 1]:
        words_of = COMMON_SETTINGS | ({"DATA": "data.corpus"} if corpus else {})
        names = [name for name, key in words_of.items() if name in values and key in repeated]
        names += ["SET"] if dict(set_words).keys() & set(repeated) else []
        raise ConfigError(f"{', '.join(repeated)} is set twice by {' and '.join(names)}: say it once")
    return common_settings


def _arms_and_corpus(values: dict[str, str]) -> tuple[str, list[tuple[str, Any]], str]:
    """The arms and the corpus that the words for factors (POS, ACT, ...), ARM and DATA ask for.

    Returns (the names of the factors, joined by hyphens; the (key, value) of each arm; the corpus of all runs). DATA
    with another factor names the corpus of all runs, and is then no factor; otherwise the corpus is "".

    `values`: {name: value} of all words. Raises ConfigError if DATA names several corpora for all runs, or is combined
    with an arm of data.corpus.
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
    for key, text in parse_assignments("ARM", values.get("ARM", "")):
        if corpus and key == "data.corpus":
            raise ConfigError("DATA beside ARM is the corpus of all runs: to compare corpora give DATA alone")
        names.append(key.split(".")[-1])
        # a comma separates arms, as in POS=rotary,alibi, except in values that are lists themselves
        arms += [(key, value) for value in ([text] if get_origin(KEYS.get(key)) is list else text.split(","))]
    return "-".join(dict.fromkeys(names)), arms, corpus


def _check_used(study: Study, settings: dict[str, str]) -> None:
    """Check that each setting of SET= has an effect in at least one run. Raises ConfigError where one has none.
    `settings`: {key: value} of SET=."""
    for key in settings:
        missing = [setting_needed_for_effect(key, cell.run.flat()) for cell in study.cells]
        if all(missing):
            raise ConfigError(f"SET: {key} does nothing without {missing[0]}: leave it out")


def _parse_cross_and_lr(values: dict[str, str], criteria: Criteria) -> tuple[str, tuple[float, ...]]:
    """The design that the words CROSS and LR ask for: (the value of CROSS, or ""; the multiples of the learning rate,
    or ()). `values`: {name: value} of all words. Raises ConfigError if CROSS and LR are combined with each other or
    with MORE=auto, or a value is not allowed."""
    if "CROSS" in values and "LR" in values:
        raise ConfigError("CROSS and LR are two designs: give one of them")
    for name in ("CROSS", "LR"):
        if name in values and criteria.sequential:
            raise ConfigError(f"{name} has a fixed number of seeds, SEEDS: MORE=auto and max_seeds look at arms alone")
    if "LR" in values and criteria.seeds > MOST_SEEDS:
        raise ConfigError(
            f"LR: SEEDS={criteria.seeds} is more than {MOST_SEEDS}, up to which its verdicts are calibrated"
        )
    return values.get("CROSS", ""), parse_multiples(values["LR"]) if "LR" in values else ()


def _predictions(values: dict[str, str], file: StudyFile | None, study: Study) -> list[Prediction]:
    """The predictions of a study: first those in its file, then those of PREDICT=. If the runs are trials, those in the
    file are left out. If STUDY= did not name the file, its predictions about arms that are not run are left out.

    Args:
        values: {name: value} of all words.
        file: the study file; None: there is none.
        study: the study, without its predictions.

    Raises:
        ConfigError: a text is no prediction, or names an arm that is not run.
    """
    arms = study.arms
    lines = file.predictions if file and not _is_trial(study.base, file.base) else []
    of_file = [parse_prediction(line, arms) for line in lines] if "STUDY" in values else predictions_about(lines, arms)
    typed = [line.strip() for line in values.get("PREDICT", "").split(";") if line.strip()]
    return [*of_file, *(parse_prediction(line, arms) for line in typed)]


def _is_trial(run: Run, base: list[tuple[str, Any]]) -> bool:
    """Whether a run is a trial of a study, too short for its predictions: it has fewer tokens than its size and the
    study file give it, and fewer than TRIAL_TOKENS for each parameter. `base`: (key, value) of the file's settings for
    all runs."""
    tokens, usual = run.known_tokens, resolve([*base, ("size", run.size)]).train.tokens
    return tokens is not None and tokens < min(usual, TRIAL_TOKENS * count_parameters(run.model))


def _criteria(values: dict[str, str], file: StudyFile | None, seeds: int, has_arms: bool) -> Criteria:
    """The criteria by which a study is decided: those of the words, else those of its file.

    Args:
        values: {name: value} of all words.
        file: the study file; None: there is none.
        seeds: the number of seeds of each arm, before any are added.
        has_arms: whether there are arms beside the baseline.

    Raises:
        ConfigError: a word that names a criterion is not valid, or MORE=auto cannot add seeds.
    """
    metric = check_metric(values.get("METRIC", file.metric if file else PRIMARY), "METRIC")
    margins = margins_from_word(values["MARGIN"]) if "MARGIN" in values else file.margins if file else {}
    floor = read_noise_floor(values["NOISE_FLOOR"]) if "NOISE_FLOOR" in values else None
    most_of_file = file.max_seeds if file and "STUDY" in values else None
    more = values.get("MORE", "auto" if most_of_file else "none")
    if more not in ("auto", "none"):
        raise ConfigError(f"MORE={more[:60]}: auto adds seeds until every arm is decided; none (default) does not")
    if more == "none":
        if "MAX_SEEDS" in values:
            raise ConfigError("MAX_SEEDS says how many seeds MORE=auto may come to: give that too")
        return Criteria(metric, margins, seeds, noise_floor=floor)
    most = parse_whole_number("MAX_SEEDS", values.get("MAX_SEEDS", str(most_of_file or MAX_SEEDS)), 100, "seeds")
    if not has_arms:
        raise ConfigError("MORE=auto adds seeds until the arms are decided: this study has none beside the baseline")
    if most < max(2, seeds):
        raise ConfigError(f"MAX_SEEDS={most} is less than SEEDS={seeds}, or than the two that any verdict needs")
    return Criteria(metric, margins, most, sequential=True, noise_floor=floor)


def _seeds_added(study: Study, most: int) -> int:
    """The number of seeds that MORE=auto has added to a study so far, according to its run directories; at most `most`.
    MORE=auto adds seeds until the study is decided.

    Seeds are added in order, so a run directory of any arm for a later seed shows that the earlier ones were added too.
    Directories of the baseline do not count, since other studies share them.
    """
    folders = {cell.dir.parent / cell.dir.name.rpartition(",seed=")[0] for cell in study.cells if cell.delta}
    last = study.seeds[-1]
    begun = [
        more for more in range(1, most + 1) if any(Path(f"{folder},seed={last + more}").exists() for folder in folders)
    ]
    return max(begun, default=0)


def _without_baseline(arms: list[tuple[str, Any]], common_settings: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """The arms of a study file that differ from the baseline. A file is written for several sizes, and the value that
    makes an arm may be the default of a size. `arms`, `common_settings`: (key, value) of the arms and of the settings
    of all runs. Raises ConfigError where no arm remains."""
    flat = resolve(common_settings).flat()
    changed = [
        (key, value) for key, value in arms if key in PARTS or key == "seed" or parse_setting(key, value) != flat[key]
    ]
    if arms and not changed:
        raise ConfigError("two equal runs: all arms of the study are the baseline under these settings")
    return changed


def arms_left_out(study: Study) -> list[str]:
    """The arms of the study's file that are not run since they equal the baseline, as texts such as
    "model.layers=4"."""
    name = study.word_value("STUDY")
    flat = study.base.flat()
    arms = read_study(name).arms if name else []
    return [f"{key}={value}" for key, value in arms if key not in PARTS and parse_setting(key, value) == flat[key]]


def _question_and_expectation(
    arms: list[tuple[str, Any]], common_settings: list[tuple[str, Any]]
) -> tuple[str, str, StudyFile | None]:
    """The question and the expectation of a study whose arms are typed without STUDY=. They come from the first study
    file that contains all of the arms and has no settings of its own. Returns (question, expectation, this file).

    If there is no such file, the question is made from the arms, the expectation is NOTHING_EXPECTED, and the file is
    None. The expectation then names the study files that cannot be read, since one of them may contain the arms.

    `arms`, `common_settings`: (key, value) of the arms and of the settings of all runs.
    """
    typed_arms = {_arm_as_text(key, value) for key, value in arms}
    unread = []
    for name in study_names():
        try:
            file = read_study(name)
            # an expectation under other settings does not apply here
            if not file.base and typed_arms <= {_arm_as_text(key, value) for key, value in file.arms}:
                return file.question, file.expect, file
        except ConfigError:
            unread.append(f"ablations/studies/{name}.yaml")
    expect = NOTHING_EXPECTED
    if unread:
        expect += f" (Not readable: {', '.join(unread)}.)"
    return question_about(arms, resolve(common_settings).flat()), expect, None


def _arm_as_text(key: str, value: Any) -> tuple[str, str]:
    """An arm as (key, value as text), for comparing it with other arms."""
    return key, str(value if key in PARTS else parse_setting(key, value))
