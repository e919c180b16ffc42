"""The registration of a study, which is written into each of its run directories before the first step, and the changes
to it since.

A line of registered.jsonl (ablations/rundir.py) holds all registered values, so that a report can quote earlier ones.
The hash of a line covers the hash of the line before it, and run.json holds the hash of the first line.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ablations.criteria import METRICS
from ablations.values import join_names

Content = dict[str, Any]  # a registration: {one of FIELDS or "study": value}

# {key of a registered value: what a report calls it}, in the order of the report.
FIELDS = {
    "question": "the question",
    "expected": "the expectation",
    "predictions": "the predictions",
    "arms": "the arms",
    "seeds": "the seeds",
    "design": "the design",
    "tasks": "the tasks",
    "metric": "the metric",
    "margin": "the margin",
    "stopping": "the stopping rule",
    "noise_floor": "the noise floor",
}

NOTHING_EXPECTED = "Nothing was written down before the runs."  # the expectation where the user gave none

# The questions that `question_about` makes, and those that earlier versions made.
GENERATED_QUESTION = re.compile(
    r"Does \w[\w.]*=.* beat the baseline\?|Which \w+\.\w+ is best: .*\?|Which of these beats the baseline: .*\?"
)
MOST_ARMS_NAMED = 8  # arms that a generated question names
NAME_CHARACTERS = 60  # characters of an arm's name in it, the last ones

FIXED_SEEDS = "a fixed number of seeds"
UNTIL_DECIDED = "seeds are added until every arm is decided, or there are no more"


def question_about(arms: Sequence[tuple[str, Any]], base: Mapping[str, Any]) -> str:
    """A question for a study for which the user gave none, made from its arms. `arms`: (key, value) of the setting that
    makes each arm; `base`: {setting: value} of the baseline."""
    keys = list(dict.fromkeys(key for key, _ in arms))
    if len(arms) <= 2 or (len(keys) == 1 and keys[0] not in base):
        return f"Does {' or '.join(f'{key}={value}' for key, value in arms)} beat the baseline?"
    single_key = keys[0] if len(keys) == 1 else ""
    names = [str(value) if single_key else f"{key}={value}" for key, value in arms]
    names = [name if len(name) <= NAME_CHARACTERS else f"...{name[-NAME_CHARACTERS:]}" for name in names]
    if len(names) > MOST_ARMS_NAMED:
        names = [*names[: MOST_ARMS_NAMED - 1], f"{len(names) - MOST_ARMS_NAMED + 1} others"]
    if not single_key:
        return f"Which of these beats the baseline: {join_names(names, 'or')}?"
    return f"Which {single_key} is best: {join_names([f'{base[single_key]} (the baseline)', *names], 'or')}?"


def registration_of(study: Any) -> Content:
    """The registration of a study, an ablations.cells.Study, as an object for JSON: its question, expectation, criteria
    and plan under the keys of FIELDS. The entry "study" names the study, since several studies may share a run."""
    criteria = study.criteria
    return {
        "study": study.factor,
        "question": study.question,
        "expected": study.expect,
        "predictions": [prediction.text for prediction in study.predictions],
        "arms": {arm: study.cell(arm, study.seeds[0]).delta for arm in study.arms},
        "seeds": [study.seeds[0], study.seeds[0] + criteria.seeds - 1],
        "design": study.design,
        "tasks": study.word_value("TASKS"),
        "metric": criteria.metric,
        "margin": {metric: f"{margin:g} {METRICS[metric]}" for metric, margin in criteria.margins.items()},
        "stopping": UNTIL_DECIDED if criteria.sequential else FIXED_SEEDS,
        "noise_floor": criteria.noise_floor.identity if criteria.noise_floor else "",
    }


def value_in_words(key: str, value: Any) -> str:
    """A registered value as text for a report; "none" where it is empty. `key`: the key of the value, one of FIELDS."""
    if key == "seeds" and isinstance(value, list) and len(value) == 2:
        return f"{value[0]} to {value[1]}"
    if key == "margin" and isinstance(value, Mapping):
        return ", ".join(f"{metric} {margin}" for metric, margin in value.items()) or "none"
    if isinstance(value, Mapping):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, list):
        return "; ".join(map(str, value)) or "none"
    return str(value) if value not in ("", None) else "none"


def describe_changes(present: Content, registered: Mapping[str, Content], planned: int) -> list[str]:
    """A sentence for each registered value of a study that was changed after runs of the study had begun.

    Args:
        present: the present registration.
        registered: {name of a run: the first registration of the study in that run}, the earliest first.
        planned: the number of runs of the study.
    """
    sentences = []
    for key, name in FIELDS.items():
        runs_by_change: dict[tuple[str, str], int] = {}  # {(value before, present value): number of runs}
        for earlier in registered.values():
            old, new = earlier.get(key), present.get(key)
            if key == "question" and earlier.get("arms") == present.get("arms") and _are_generated(old, new):
                continue  # another version of this program words the question of the same arms differently
            change = value_in_words(key, old), value_in_words(key, new)
            if change[0] == change[1] and old and new and old != new:  # arms of the same names, of other settings
                change = json.dumps(old, ensure_ascii=False), json.dumps(new, ensure_ascii=False)
            if change[0] != change[1]:
                runs_by_change[change] = runs_by_change.get(change, 0) + 1
        for (old, new), runs in runs_by_change.items():
            verb = "were" if name.endswith("s") else "was"
            sentences.append(
                f"{name} {verb} changed after {runs} of {planned} runs had begun: then `{old}`, now `{new}`"
            )
    return sentences


def _are_generated(*questions: Any) -> bool:
    """Whether all of these questions were made by `question_about`, by this version or an earlier one."""
    return all(isinstance(question, str) and GENERATED_QUESTION.fullmatch(question) for question in questions)
