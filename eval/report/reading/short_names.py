"""Short names for corpora that are paths: the end of the path, used in all tables and figures of a report."""

import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from glob import has_magic
from pathlib import Path
from typing import Any

from eval.report.reading.collection import Collection
from eval.report.reading.runs import Cells

COPIED_PROPERTIES = ("name", "title", "seeds", "command", "question", "expect", "criteria")  # of a study, as they are


def shortest_ends(names: Iterable[str]) -> dict[str, str]:
    """Shorten paths: {path: its shortest end that is not an end of another path}. An end counts only if it has a part
    without wildcards. A path without such an end stays whole."""
    parts_of = {name: Path(name).parts for name in names}
    short_names = {}
    for name, parts in parts_of.items():
        endings = [parts[-n:] for n in range(1, len(parts)) if not all(map(has_magic, parts[-n:]))]
        unique = (end for end in endings if sum(path[-len(end) :] == end for path in parts_of.values()) == 1)
        short_names[name] = "/".join(next(unique, ())) or name
    return short_names


def with_short_names(study: Any, cells: Cells) -> tuple[Collection, Cells]:
    """Shorten paths of corpora, tokenizers and task folders in the names of arms, tasks and domains. Returns (the study
    as a Collection, the contents of its run directories). Configurations keep the whole paths. `cells`: {(arm, seed):
    content of the run directory}."""
    corpora: set[str] = set()
    for key, cell in cells.items():
        config = study.cell(*key).config
        values = [*config["data"].values(), *config["eval"]["corpora"], *cell.get("eval", {}).get("corpora", [])]
        corpora |= {value for value in values if isinstance(value, str)}
    short_names = {name: short for name, short in shortest_ends(corpora).items() if short != name}
    alternatives = "|".join(map(re.escape, sorted(short_names, key=len, reverse=True))) or "(?!)"  # matches nowhere
    path = re.compile(rf"(?<![^=, ])({alternatives})")  # as in "corpus=PATH" of an arm, "PATH/last_word" of a task

    def shorten(text: str) -> str:
        return path.sub(lambda match: short_names[match[0]], text)

    factorial, tuning = getattr(study, "factorial", None), getattr(study, "tuning", None)
    collection = Collection(
        **{key: getattr(study, key) for key in COPIED_PROPERTIES},
        arms=[*map(shorten, study.arms)],
        runs={(shorten(arm), seed): study.cell(arm, seed) for arm, seed in cells},
        controlled=getattr(study, "controlled", True),
        damaged=getattr(study, "damaged", []),
        factorial=factorial and replace(factorial, factors=tuple(map(shorten, factorial.factors))),
        tuning=tuning
        and replace(tuning, arms={shorten(label): (shorten(arm), rate) for label, (arm, rate) in tuning.arms.items()}),
        predictions=[
            prediction._replace(arms=tuple(map(shorten, prediction.arms)))
            for prediction in getattr(study, "predictions", [])
        ],
        registration=getattr(study, "registration", {}),
        left_out_of_command=getattr(study, "left_out_of_command", ""),
    )
    return collection, {
        (shorten(arm), seed): cell_with_short_names(cell, shorten) for (arm, seed), cell in cells.items()
    }


def cell_with_short_names(cell: dict[str, Any], shorten: Callable[[str], str]) -> dict[str, Any]:
    if "eval" not in cell:
        return cell
    result = dict(cell["eval"])
    for key in ("tasks", "by_domain"):
        if result.get(key):
            result[key] = {shorten(name): entry for name, entry in result[key].items()}
    result["omitted"] = [shorten(name) for name in result["omitted"]]
    return cell | {"eval": result, "samples": {shorten(name): rows for name, rows in cell["samples"].items()}}
