"""What a study registers in the directory of each of its runs before their first step, and what was changed since.

A line of registered.jsonl (ablations/rundir.py) holds all registered values, so that a report can quote the earlier
ones. The hash of a line covers the hash of the line before it, and run.json holds the hash of the first line.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ablations.criteria import METRICS
from ablations.values import listed

Content = dict[str, Any]

# What is registered, and how a change of it is told. The order is that of the report.
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


NOTHING_EXPECTED = "Nothing was written down before the runs."  # the expectation of a study that nobody wrote down

# The question of a study that was typed without one (`question_about`), in today's form and in earlier ones.
GENERATED_QUESTION = re.compile(
    r"Does \w[\w.]*=.* beat the baseline\?|Which \w+\.\w+ is best: .*\?|Which of these beats the baseline: .*\?"
)
MOST_NAMED = 8  # arms that a generated question names
MOST_OF_NAME = 60  # characters of each, its last

FIXED_SEEDS = "a fixed number of seeds"
UNTIL_DECIDED = "seeds are added until every arm is decided, or there are no more"


def question_about(arms: Sequence[tuple[str, Any]], base: Mapping[str, Any]) -> str:
    """The question of a study that was typed without one, made from its arms. `arms`: (key, value) of each arm; `base`:
    {key: value} of the baseline's settings."""
    keys = list(dict.fromkeys(key for key, _ in arms))
    if len(arms) <= 2 or (len(keys) == 1 and keys[0] not in base):
        return f"Does {' or '.join(f'{key}={value}' for key, value in arms)} beat the baseline?"
    one = keys[0] if len(keys) == 1 else ""
    names = [str(value) if one else f"{key}={value}" for key, value in arms]
    names = [name if len(name) <= MOST_OF_NAME else f"...{name[-MOST_OF_NAME:]}" for name in names]
    if len(names) > MOST_NAMED:
        names = [*names[: MOST_NAMED - 1], f"{len(names) - MOST_NAMED + 1} others"]
    if not one:
        return f"Which of these beats the baseline: {listed(names, 'or')}?"
    return f"Which {one} is best: {listed([f'{base[one]} (the baseline)', *names], 'or')}?"


def content(study: Any) -> Content:
    """The registration of a study: its question, expectation, criteria and plan, under the keys of FIELDS, as an object
    for JSON. The entry "study" names the study, since several studies may share a run. `study`: an
    ablations.cells.Study."""
    criteria = study.criteria
    return {
        "study": study.factor,
        "question": study.question,
        "expected": study.expect,
        "predictions": [prediction.text for prediction in study.predictions],
        "arms": {arm: study.cell(arm, study.seeds[0]).delta for arm in study.arms},
        "seeds": [study.seeds[0], study.seeds[0] + criteria.seeds - 1],
        "design": study.design,
        "tasks": study.value("TASKS"),
        "metric": criteria.metric,
        "margin": {metric: f"{margin:g} {METRICS[metric]}" for metric, margin in criteria.margins.items()},
        "stopping": UNTIL_DECIDED if criteria.sequential else FIXED_SEEDS,
        "noise_floor": criteria.noise_floor.identity if criteria.noise_floor else "",
    }


def in_words(key: str, value: Any) -> str:
    """A registered value as text for a report; "none" where it is empty. `key`: one of FIELDS; `value`: the value under
    this key of a registration."""
    if key == "seeds" and isinstance(value, list) and len(value) == 2:
        return f"{value[0]} to {value[1]}"
    if key == "margin" and isinstance(value, Mapping):
        return ", ".join(f"{metric} {margin}" for metric, margin in value.items()) or "none"
    if isinstance(value, Mapping):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, list):
        return "; ".join(map(str, value)) or "none"
    return str(value) if value not in ("", None) else "none"


def changes(now: Content, then: Mapping[str, Content], planned: int) -> list[str]:
    """A sentence for each value in which the present registration of a study differs from the registrations that were
    written before its runs. `now`: the present registration of the study; `then`: {name of a run: the study's first
    registration in that run}, the earliest registration first; `planned`: the number of runs of the study."""
    sentences = []
    for key, name in FIELDS.items():
        earlier: dict[tuple[str, str], int] = {}  # {(what was registered then, what it is now): runs}
        for registered in then.values():
            was, today = registered.get(key), now.get(key)
            if key == "question" and registered.get("arms") == now.get("arms") and _are_generated(was, today):
                continue  # the words of another version about the same arms
            words = in_words(key, was), in_words(key, today)
            if words[0] == words[1] and was and today and was != today:  # arms of the same names, of other settings
                words = json.dumps(was, ensure_ascii=False), json.dumps(today, ensure_ascii=False)
            if words[0] != words[1]:
                earlier[words] = earlier.get(words, 0) + 1
        for (was, today), runs in earlier.items():
            verb = "were" if name.endswith("s") else "was"
            sentences.append(
                f"{name} {verb} changed after {runs} of {planned} runs had begun: then `{was}`, now `{today}`"
            )
    return sentences


def _are_generated(*questions: Any) -> bool:
    """Whether all of these questions were made by `question_about`, and none was written by a person."""
    return all(isinstance(question, str) and GENERATED_QUESTION.fullmatch(question) for question in questions)
