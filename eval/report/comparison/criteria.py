"""The criteria by which a report decides. Criteria that the runs registered before their first step take precedence
over later ones.

Studies share their baseline, so its runs may be older than the study and lack its registration. A criterion therefore
still counts as registered if the runs of only one arm lack it.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from ablations.criteria import METRICS, PRIMARY, Criteria
from ablations.registration import FIXED_SEEDS, UNTIL_DECIDED
from eval.report.reading.runs import Cells


def criteria_in_effect(study: Any, cells: Cells) -> tuple[Criteria, frozenset[str]]:
    """The criteria by which a study is decided. Returns (criteria, the metrics whose margin of equivalence was
    registered before the runs).

    A margin that the report was given (MARGIN=) is used, else the registered margins, whatever the study file says now.
    If the runs registered that seeds are added until the study is decided (MORE=), it is always judged by sequential
    testing. `study`: a Study or a Collection; `cells`: {(arm, seed): content of the run directory}.
    """
    criteria: Criteria = study.criteria
    registered = registered_contents(study, cells)
    margins = {run: registered_margins(content) for run, content in registered.items()}
    typed = any(word.startswith("MARGIN=") for word in getattr(study, "words", ()))
    if margins and not typed:
        criteria = replace(criteria, margins=next(iter(margins.values())))
    late = {
        metric: arms_registered_late(study, cells, partial(registers_margin, metric=metric, margin=margin))
        for metric, margin in criteria.margins.items()
    }
    before = {metric for metric, arms in late.items() if margins and len(arms) <= 1}
    most = [seeds for content in registered.values() if (seeds := registered_max_seeds(content))]
    if most:
        criteria = replace(criteria, sequential=True, seeds=max(most))
    return criteria, frozenset(before)


def noise_floor_was_registered(study: Any, cells: Cells) -> bool:
    """Whether the runs registered the study's noise floor before their first step; the runs of one arm may lack it.
    `study`: a Study or a Collection; `cells`: {(arm, seed): content of the run directory}."""
    floor = study.criteria.noise_floor
    late = arms_registered_late(
        study, cells, lambda content: floor is not None and content.get("noise_floor") == floor.identity
    )
    return bool(registered_contents(study, cells)) and len(late) <= 1


def registered_metric(study: Any, cells: Cells) -> str:
    """The primary metric that the runs registered before their first step; "bits/byte" where no run registered
    anything; "" where runs registered different metrics. `study`: a Study or a Collection; `cells`: {(arm, seed):
    content of the run directory}."""
    metrics = {str(content.get("metric")) for content in registered_contents(study, cells).values()} or {PRIMARY}
    return metrics.pop() if len(metrics) == 1 else ""


def criteria_chosen_late(study: Any, cells: Cells) -> list[str]:
    """The criteria that were chosen after the runs had begun: a list of "metric", "margin" and "noise floor", or [].
    Verdicts that depend on them are exploratory, even if seeds are added later. `study`: a Study or a Collection;
    `cells`: {(arm, seed): content of the run directory}."""
    criteria: Criteria = study.criteria
    margin = criteria.margins.get(criteria.metric)
    floor = criteria.noise_floor.identity if criteria.noise_floor else None
    checks: dict[str, Callable[[dict[str, Any]], bool]] = {
        "metric": lambda content: content.get("metric", PRIMARY) == criteria.metric,
        "margin": lambda content: not margin or registers_margin(content, criteria.metric, margin),
        "noise floor": lambda content: not floor or content.get("noise_floor") == floor,
    }
    return [name for name, holds in checks.items() if len(arms_registered_late(study, cells, holds)) > 1]


def exceeded_seed_plan(study: Any, cells: Cells) -> int | None:
    """The registered number of seeds, if the study has since evaluated more seeds without a registered rule for adding
    them; else None. None also for a plan of one seed, which decides nothing. `study`: a Study or a Collection; `cells`:
    {(arm, seed): content of the run directory}."""
    last_seeds: dict[str, int] = {}
    numbers: dict[int, int] = {}
    for (arm, _), content in registered_contents(study, cells).items():
        ends = content.get("seeds")
        if content.get("stopping") == FIXED_SEEDS and isinstance(ends, list) and len(ends) == 2:
            first, last = ends
            if isinstance(first, int) and isinstance(last, int):
                last_seeds[arm] = min(last, last_seeds.get(arm, last))
                numbers[last] = last - first + 1
    late = {arm for (arm, seed), cell in cells.items() if "eval" in cell and seed > last_seeds.get(arm, seed)}
    planned = numbers[min(last_seeds[arm] for arm in late)] if len(late) > 1 else 1
    return planned if planned > 1 else None


def first_registrations(study: Any, cells: Cells) -> dict[tuple[str, int], dict[str, Any]]:
    """The first registration of a study in each of its runs: {(arm, seed): parsed line of registered.jsonl}. Studies
    that share a run each write their own lines. Runs without a line of this study are left out. `study`: a Study or a
    Collection; `cells`: {(arm, seed): content of the run directory}."""
    name = getattr(study, "registration", {}).get("study")
    first = {
        run: next((line for line in cell.get("registered", []) if line["content"].get("study") == name), None)
        for run, cell in cells.items()
    }
    return {run: line for run, line in first.items() if line}


def registered_contents(study: Any, cells: Cells) -> dict[tuple[str, int], dict[str, Any]]:
    """What each run registered about a study before its first step: {(arm, seed): entry "content" of the registration}.
    Runs that registered nothing, or only later, are left out. `study`: a Study or a Collection; `cells`: {(arm, seed):
    content of the run directory}."""
    lines = first_registrations(study, cells)
    return {run: line["content"] for run, line in lines.items() if line["step"] == 0}


def arms_registered_late(study: Any, cells: Cells, holds: Callable[[dict[str, Any]], bool]) -> set[str]:
    """The arms with a run that has begun without a certain registration. `study`: a Study or a Collection; `cells`:
    {(arm, seed): content of the run directory}; `holds`: a function of a registration's content that returns whether it
    has the criterion in question; it gets {} for a run that registered nothing before its first step."""
    registered = registered_contents(study, cells)
    begun = [run for run, cell in cells.items() if "run" in cell or "registered" in cell]
    return {run[0] for run in begun if not holds(registered.get(run, {}))}


def registers_margin(content: dict[str, Any], metric: str, margin: float) -> bool:
    """Whether a registration has this margin of equivalence for a metric. `content`: the content of the
    registration."""
    return registered_margins(content).get(metric) == margin


def registered_margins(content: dict[str, Any]) -> dict[str, float]:
    """The margins of equivalence in a registration, {metric: margin}. Entries that are not numbers are left out.
    `content`: the content of the registration."""
    margins, numbers = content.get("margin"), {}
    if not isinstance(margins, dict):
        return {}
    for metric in METRICS:
        try:
            numbers[metric] = float(str(margins[metric]).split()[0])
        except (KeyError, ValueError, IndexError):
            continue
    return numbers


def registered_max_seeds(content: dict[str, Any]) -> int | None:
    """The largest number of seeds, if the registration says that seeds are added until the study is decided; None where
    the number of seeds is fixed. `content`: the content of the registration."""
    seeds = content.get("seeds")
    if content.get("stopping") != UNTIL_DECIDED or not isinstance(seeds, list) or len(seeds) != 2:
        return None
    first, last = seeds
    return last - first + 1 if isinstance(first, int) and isinstance(last, int) and 0 < last - first < 100 else None
