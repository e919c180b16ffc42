"""Corpora that are paths, by the ends of their paths: the name of a corpus in all tables and figures of a report."""

import re
from collections.abc import Iterable
from glob import has_magic
from pathlib import Path
from typing import Any

from eval.report.runs import Cells, Collection


def brief(names: Iterable[str]) -> dict[str, str]:
    """{name: as few of the last parts of that path as no other name ends in}; one part at least has no wildcard."""
    every = {name: Path(name).parts for name in names}
    found = {}
    for name, parts in every.items():
        ends = [parts[-n:] for n in range(1, len(parts)) if not all(map(has_magic, parts[-n:]))]
        own = (end for end in ends if sum(other[-len(end) :] == end for other in every.values()) == 1)
        found[name] = "/".join(next(own, ())) or name
    return found


def shortened(study: Any, cells: Cells) -> tuple[Collection, Cells]:
    """A study and its cells, with the brief names of corpora (of tokenizers, of folders of tasks) in the names of arms,
    tasks and domains. Configurations keep the whole paths: the table of what differs has both."""
    given: set[str] = set()
    for key, cell in cells.items():
        config = study.cell(*key).config
        told = [*config["data"].values(), *config["eval"]["corpora"], *cell.get("eval", {}).get("corpora", [])]
        given |= {value for value in told if isinstance(value, str)}
    names = {name: short for name, short in brief(given).items() if short != name}
    whole = "|".join(map(re.escape, sorted(names, key=len, reverse=True))) or "(?!)"  # matches nowhere
    path = re.compile(rf"(?<![^=, ])({whole})")  # as in "corpus=PATH" of an arm, "PATH/last_word" of a task

    def short(text: str) -> str:
        return path.sub(lambda match: names[match[0]], text)

    found = {(short(arm), seed): _shortened(cell, short) for (arm, seed), cell in cells.items()}
    about = {key: getattr(study, key) for key in ("name", "title", "seeds", "command", "question", "expect")}
    runs = {(short(arm), seed): study.cell(arm, seed) for arm, seed in cells}
    controlled = getattr(study, "controlled", True)
    return Collection(**about, arms=[*map(short, study.arms)], places=runs, controlled=controlled), found


def _shortened(cell: dict[str, Any], short: Any) -> dict[str, Any]:
    if "eval" not in cell:
        return cell
    result = dict(cell["eval"])
    for key in result.keys() & {"tasks", "by_domain"}:
        result[key] = {short(name): entry for name, entry in result[key].items()}
    result["omitted"] = [short(name) for name in result["omitted"]]
    return cell | {"eval": result, "samples": {short(name): rows for name, rows in cell["samples"].items()}}
