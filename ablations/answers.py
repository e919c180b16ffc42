"""The answers of the commands as JSON, for programs (FORMAT=json). docs/schema has a schema for each "kind" of answer.

Nothing but the answer is printed to standard output. A request that is refused gives {"kind": "error", "error": why},
and exit code 2, as without FORMAT. The form of an answer is in data/answers.py.
"""

import sys
from contextlib import suppress
from typing import Any, TextIO

from ablations import safe_files
from ablations.config import KEYS, SETTINGS, Run
from ablations.safe_files import Damaged
from ablations.status import run_state
from ablations.study import Study
from ablations.values import ConfigError, unknown_choice_error
from data import answers as data_answers
from data.answers import FORMATS, Parser, add_format_option, asks_for_json, json_answer

__all__ = ["Parser", "add_format_option", "json_answer", "json_error", "asks_for_json", "print_error", "extract_format"]


def extract_format(words: list[str]) -> tuple[bool, list[str]]:
    """Extract FORMAT= from NAME=VALUE words. Returns (whether FORMAT=json is among the words, the words without
    FORMAT). Raises ConfigError where the format is unknown, or is given twice; the message names the formats."""
    formats = [word.partition("=")[2] for word in words if word.startswith("FORMAT=")]
    if len(formats) > 1:
        raise ConfigError("FORMAT is given twice")
    if formats and formats[0] not in FORMATS:
        raise unknown_choice_error("FORMAT", formats[0], FORMATS)
    return formats == ["json"], [word for word in words if not word.startswith("FORMAT=")]


def json_error(problem: str) -> str:
    """The answer, as JSON text, to a request that was refused or failed. Control characters of the error message
    `problem`, which could act on a terminal, are escaped."""
    return data_answers.json_error(safe_files.printable(problem))


def print_error(problem: str, as_json: bool, answers_to: TextIO | None = None) -> None:
    """Print the error message `problem` to standard error. With `as_json` the JSON text of `json_error` is printed too,
    to the stream `answers_to`; None: to standard output."""
    if as_json:
        print(json_error(problem), file=answers_to, flush=True)
    print(f"error: {safe_files.printable(problem)}", file=sys.stderr)


def study_entries(study: Study) -> dict[str, Any]:
    """The entries that all answers about a study contain: its name, title, command and registration, {entry: value}."""
    head = {"name": study.name, "title": study.title, "command": study.command_here}
    return head | {"registration": study.registration}


def plan_answer(study: Study) -> dict[str, Any]:
    """The answer of the command `plan`, as an object for JSON (docs/schema/plan.json): the runs of a study and what
    they cost. FLOPs and tokens are null where a wall clock ends the runs.

    The entry "at_most" holds the largest numbers of seeds, runs, FLOPs and tokens where seeds are added until the study
    is decided (MORE=auto); it is null where the number of seeds is fixed. The entry "aliased" holds, for a fraction of
    a factorial, {effect: {effect aliased with it: weight}}; it is empty for other studies.
    """
    from model.count import count_parameters

    cells: list[dict[str, Any]] = []
    for i, cell in enumerate(study.cells):
        run = cell.run
        with suppress(Damaged):  # the entry "state" reports damage
            cell.check_same_configuration()
        cells.append(
            {
                "index": i,
                "arm": cell.arm,
                "seed": cell.seed,
                "delta": cell.delta,
                "fingerprint": run.fingerprint,
                "parameters": count_parameters(run.model),
                "tokens": run.known_tokens,
                "steps": run.known_steps,
                "flops": run.known_flops,
                "directory": str(cell.dir),
                "state": str(run_state(cell)["state"]),
            }
        )
    aliased = {}
    if (design := study.factorial) and design.generators:
        aliased = {
            design.effect_name(effect): {
                design.effect_name(alias): weight for alias, weight in design.aliases(effect).items()
            }
            for effect in design.effects
        }
    at_most = None
    if study.criteria.sequential:
        growth = study.max_runs / len(cells)
        at_most = {"seeds": study.criteria.seeds, "runs": study.max_runs, "flops": None, "tokens": None}
        if not study.base.ends_by_clock:
            at_most |= {key: growth * sum(cell[key] for cell in cells) for key in ("flops", "tokens")}
    return study_entries(study) | {"size": study.base.size, "aliased": aliased, "at_most": at_most, "cells": cells}


def status_answer(study: Study) -> dict[str, Any]:
    """The answer of the command `status`, as an object for JSON (docs/schema/status.json): for every run its state and
    the other facts of `ablations.status.run_state`, and under "counts" the number of runs in each state."""
    runs = []
    for i, cell in enumerate(study.cells):
        facts = {key: value for key, value in run_state(cell).items() if value is not None}
        facts["state"] = str(facts["state"])
        runs.append({"index": i, "arm": cell.arm, "seed": cell.seed, "directory": str(cell.dir), **facts})
    states = [run["state"] for run in runs]
    return study_entries(study) | {"counts": {name: states.count(name) for name in dict.fromkeys(states)}, "runs": runs}


def configuration_answer(study: Study) -> dict[str, Any]:
    """The answer of the command `show`, as an object for JSON (docs/schema/configuration.json): all settings of the
    baseline, and for each arm its fingerprint and the settings in which it differs."""
    cells = {arm: study.cell(arm, study.seeds[0]) for arm in study.arms}
    arms = {arm: {"delta": cell.delta, "fingerprint": cell.run.fingerprint} for arm, cell in cells.items()}
    return study_entries(study) | {"baseline": study.base.flat(), "arms": arms}


def difference_answer(a: str, b: str, run_a: Run, run_b: Run) -> dict[str, Any]:
    """The answer of the command `diff`, as an object for JSON (docs/schema/difference.json): the settings in which the
    baselines of two sizes or presets differ, and their numbers of parameters, steps and FLOPs. Each entry is a list of
    two values, the first for `a`.

    Args:
        a, b: the names of the two sizes or presets.
        run_a, run_b: the baselines with the settings of `a` and of `b`.
    """
    from model.count import count_parameters

    first, second = run_a.flat(), run_b.flat()
    settings = {key: [first[key], second[key]] for key in first if first[key] != second[key]}
    derived = {
        "parameters": [count_parameters(run.model) for run in (run_a, run_b)],
        "steps": [run.known_steps for run in (run_a, run_b)],
        "flops": [run.known_flops for run in (run_a, run_b)],
    }
    return {"a": a, "b": b, "settings": settings, "derived": derived}


def reference_answer(baseline: Run) -> dict[str, Any]:
    """The answer of the command `reference`, as an object for JSON (docs/schema/reference.json): for each setting its
    meaning, unit, source and allowed values, and its value in the run `baseline`."""
    from ablations.reference import allowed_values, setting_choices

    flat = baseline.flat()
    settings = {
        key: {
            "value": flat[key],
            "allowed": allowed_values(key),
            "choices": list(setting_choices(key)),
            "unit": SETTINGS[key].unit,
            "meaning": SETTINGS[key].meaning,
            "source": SETTINGS[key].source,
        }
        for key in KEYS
    }
    return {"size": baseline.size, "settings": settings}
