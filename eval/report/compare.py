"""Runs compared: which may be, and what the differences are, paired by seed and by item."""

import hashlib
import json
from collections.abc import Iterable
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np

from eval.report.figure import SERIES
from eval.report.runs import Cells, Collection, named, plain
from eval.statistics import (
    Comparison,
    Part,
    Results,
    Stratum,
    compare,
    family,
    item_part,
    noise_floor,
    places,
    seed_part,
    verdict,
    welch,
)

TEXT_DIFFERS = """\
The arms read different text or tokens: their training losses cannot be compared, the held-out bits per byte can."""

Compared = dict[str, dict[str, Comparison]]  # {metric: {arm: against the baseline}}


class Metric(NamedTuple):
    key: str  # in eval.json
    higher_is_better: bool
    digits: int
    scale: float  # from the outcome of an item to the unit of the metric
    unit: str


METRICS = {
    "bits/byte": Metric("bits_per_byte", False, 3, 1.0, "bits/byte"),
    "zero-shot": Metric("zero_shot", True, 1, 100.0, "points"),
    "suite": Metric("suite", True, 1, 100.0, "points"),
}


class Found(NamedTuple):
    """All that a report says, before it is said."""

    study: Collection
    cells: Cells
    results: dict[str, Results]  # of METRICS, those that any run has
    compared: Compared
    wrong: list[str]
    refused: list[str]
    noise: str = ""  # other runs that tell the noise between seeds, in words
    same: dict[str, str] = {}  # of `same_runs`; those arms are not compared  # noqa: RUF012

    @property
    def baseline(self) -> str:
        return self.study.arms[0]

    @property
    def controlled(self) -> bool:
        return self.study.controlled

    def colour(self, arm: str) -> int:
        return self.study.arms.index(arm) % SERIES

    def kind(self, arm: str) -> str:
        """How its lines are drawn: dashes where the colours begin again."""
        return "dash" if self.study.arms.index(arm) >= SERIES else ""

    def told(self, name: str) -> Results:
        """The results that tell the noise: each run once."""
        return {arm: row for arm, row in self.results[name].items() if arm not in self.same}

    def having(self, key: str) -> dict[str, dict[int, dict]]:
        """{arm: {seed: cell}} of the cells that have something."""
        found = {
            arm: {seed: self.cells[arm, seed] for seed in self.study.seeds if self.cells.get((arm, seed), {}).get(key)}
            for arm in self.study.arms
        }
        return {arm: seeds for arm, seeds in found.items() if seeds}


def collect(study: Any, cells: Cells, key: str) -> Results:
    """A number of eval.json, of the cells that have it."""
    return {
        arm: {
            seed: cells[arm, seed]["eval"][key]["value"]
            for seed in study.seeds
            if cells.get((arm, seed), {}).get("eval", {}).get(key)
        }
        for arm in study.arms
    }


def tasks(cells: Cells, name: str | None = None) -> list[str]:
    """The tasks that a metric is the mean of, or all of them, in the order of evaluation."""
    found: dict[str, None] = {}
    for cell in cells.values():
        for task, entry in cell.get("eval", {}).get("tasks", {}).items():
            counted = {
                "zero-shot": entry.get("mean"),
                "suite": entry.get("suite"),
                "bits/byte": entry["metric"] == "bits_per_byte",
                None: True,
            }
            if counted[name]:
                found[task] = None
    return list(found)


def table_of(cells: Cells, arm: str, seeds: Iterable[int], task: str) -> dict[str, tuple[np.ndarray, float]]:
    """{item: (outcomes [seeds], weight)}, of the items that all these cells have."""
    each = [cells[arm, seed]["samples"].get(task, {}) for seed in seeds]
    common = sorted(set.intersection(*map(set, each))) if each else []
    return {item: (np.array([row[item][0] for row in each]), each[0][item][1]) for item in common}


# ------------------------------------------------------------------------------------------------ what is comparable


def evaluation(cell: dict[str, Any]) -> dict[str, Any]:
    """How a run was evaluated, flat: what has to be equal where numbers are compared."""
    result = cell["eval"]
    found = {key: result.get(key) for key in ("version", "lm_eval", "corpora", "precision")}
    for task, entry in result["tasks"].items():
        items = [(item, weight) for item, (_, weight) in sorted(cell["samples"].get(task, {}).items())]
        found |= {f"{task}: {key}": entry[key] for key in ("metric", "version") if key in entry}
        found |= {f"{task}: data": entry["data"]["sha256"]} if "data" in entry else {}
        found[f"{task}: items"] = hashlib.sha256(json.dumps(items).encode()).hexdigest()[:12]
    return found


def classes(cells: Cells) -> list[dict[str, Any]]:
    """Evaluated runs, in classes that were evaluated in the same way: [{"how", "runs": [(arm, seed), ...]}]. Runs of
    two classes are not compared."""
    found: list[dict[str, Any]] = []
    for key, cell in cells.items():
        if "eval" in cell:
            how = evaluation(cell)
            own = next((c for c in found if c["how"] == how), None)
            if own is None:
                found.append(own := {"how": how, "runs": []})
            own["runs"].append(key)
    return found


def refusals(cells: Cells) -> list[str]:
    """Why runs are not compared: a line for each class beyond the first, with everything that differs."""
    lines: list[str] = []
    all_ = classes(cells)
    for other in all_[1:]:
        first, how = all_[0]["how"], other["how"]
        apart: list[str] = []
        without: list[str] = []
        more: list[str] = []
        for key in dict.fromkeys([*first, *how]):
            task, _, what = key.rpartition(": ")
            if task and (f"{task}: items" in first) != (f"{task}: items" in how):  # a task that only one of them has
                (without if key in first else more).extend([task] * (what == "items"))
            elif first.get(key) != how.get(key):
                apart.append(f"{key} {plain(how.get(key, 'unknown'))}, not {plain(first.get(key, 'unknown'))}")
        apart += [f"without {', '.join(without)}"] if without else []
        apart += [f"with {', '.join(more)}"] if more else []
        lines.append(f"{named(other['runs'])}: {'; '.join(apart)}")
    return lines


def same_runs(cells: Cells) -> dict[str, str]:
    """{arm: one before it whose finished runs logged the same losses and gradient norms, to the last digit at every
    step, at every seed that both have}: what sets the two apart has changed nothing."""
    logs: dict[str, dict[int, list]] = {}
    for (arm, seed), cell in cells.items():
        if cell["state"] in ("", "not evaluated") and cell.get("metrics"):
            rows = [(row["step"], row["loss"], row.get("grad_norm")) for row in cell["metrics"]]
            logs.setdefault(arm, {})[seed] = rows
    found: dict[str, str] = {}
    for one, other in combinations(logs, 2):
        shared = logs[one].keys() & logs[other].keys()
        if shared and not {one, other} & found.keys() and all(logs[one][s] == logs[other][s] for s in shared):
            found[other] = one
    return found


# ------------------------------------------------------------------------------------------------ comparing


def strata(cells: Cells, arm: str, baseline: str, seeds: tuple[list[int], list[int]], name: str) -> list[Stratum]:
    """Per task, differences of two arms [seeds, items] and weights; averaged over seeds where they are not
    the same."""
    found = []
    for task in tasks(cells, name):
        ours, theirs = table_of(cells, arm, seeds[0], task), table_of(cells, baseline, seeds[1], task)
        common = sorted(ours.keys() & theirs.keys())
        if not common:
            continue
        a_SN, b_SN = (np.stack([each[item][0] for item in common], 1) for each in (ours, theirs))
        d_SN = a_SN - b_SN if seeds[0] == seeds[1] else (a_SN.mean(0) - b_SN.mean(0))[None]
        found.append((METRICS[name].scale * d_SN, np.array([ours[item][1] for item in common], float)))
    return found


def pair(
    cells: Cells, results: Results, arm: str, baseline: str, name: str, controlled: bool, floor: Part | None
) -> Comparison | None:
    """Two arms, over the seeds that they share; over all, unpaired, where they share fewer than two but have them.
    None: either has no result, or they were evaluated differently.

    controlled: whether other arms of `results` may help to tell the noise.
    """
    ours, theirs = results[arm], results[baseline]
    shared = sorted(ours.keys() & theirs.keys())
    apart = not ours or not theirs or (len(shared) < 2 and min(len(ours), len(theirs)) > 1) or not shared
    seeds = (sorted(ours), sorted(theirs)) if apart else (shared, shared)
    if not (seeds[0] and seeds[1]):
        return None
    how = [evaluation(cells[a, seed]) for a, s in zip((arm, baseline), seeds, strict=True) for seed in s]
    if any(each != how[0] for each in how):
        return None
    mean = float(np.mean([ours[s] for s in seeds[0]]) - np.mean([theirs[s] for s in seeds[1]]))
    own = results if controlled else {arm: ours, baseline: theirs}
    part = welch(ours.values(), theirs.values()) if apart else seed_part(own, arm, baseline)
    items = item_part(strata(cells, arm, baseline, seeds, name))
    if part is None and floor:
        share = 1 / len(seeds[0]) + 1 / len(seeds[1])
        return compare(mean, Part(floor.variance * share, floor.dof), items, replicated=False)
    return compare(mean, part, items)


def comparisons(
    study: Any, cells: Cells, results: Results, name: str, noise: Results | None = None
) -> dict[str, Comparison]:
    """Every arm of `results` against the baseline, corrected for being several.

    noise: results of runs that differ in the seed alone, by group.
    """
    floor = noise_floor({**(noise or {}), **{f"own {arm}": row for arm, row in results.items()}})
    found = {
        arm: pair(cells, results, arm, study.arms[0], name, study.controlled, floor)
        for arm in study.arms[1:]
        if arm in results
    }
    return family({arm: c for arm, c in found.items() if c})


def ranking(study: Any, cells: Cells, results: Results, name: str) -> list[dict[str, str]]:
    """{arm: its place, or its places}, for each class of arms that were evaluated in the same way: every pair of them
    compared and corrected for being several."""
    floor, found, done = noise_floor(results), [], set()
    for first in study.arms:
        if first in done or not results[first]:
            continue
        same = [
            arm
            for arm in study.arms
            if arm not in done
            and results[arm]
            and (arm == first or pair(cells, results, arm, first, name, False, floor))
        ]
        done |= set(same)
        pairs = {(a, b): pair(cells, results, a, b, name, False, floor) for a, b in combinations(same, 2)}
        adjusted = family({f"{i}": c for i, c in enumerate(pairs.values()) if c})
        counts = {key: adjusted[f"{i}"].counts if c else False for i, (key, c) in enumerate(pairs.items())}
        means = {arm: float(np.mean(list(results[arm].values()))) for arm in same}
        found.append(places(means, counts, METRICS[name].higher_is_better))
    return found


def own_items(cells: Cells, arm: str, seeds: list[int], name: str) -> Part:
    """The variance that the items give to an arm's own number."""
    found = []
    for task in tasks(cells, name):
        if items := table_of(cells, arm, seeds, task):
            values = np.stack([value for value, _ in items.values()], 1)
            found.append((METRICS[name].scale * values, np.array([w for _, w in items.values()], float)))
    return item_part([(values.mean(0, keepdims=True), weights) for values, weights in found])


def words_of(f: Found, arm: str, name: str) -> str:
    return verdict(f.compared[name][arm], METRICS[name].higher_is_better, METRICS[name].digits)


def bold(f: Found, arm: str, name: str) -> str:
    """The verdict; bold only where the difference is more than noise."""
    c = f.compared[name][arm]
    return f"**{words_of(f, arm, name)}**" if c.counts else words_of(f, arm, name)


def factors(f: Found) -> set[str]:
    """The settings that make the arms."""
    return {
        key for arm in f.study.arms for seed in f.study.seeds if (cell := f.study.cell(arm, seed)) for key in cell.delta
    }


def caution(f: Found) -> list[str]:
    differs = any(key.startswith("data.") or key == "model.vocab" for key in factors(f))
    return [TEXT_DIFFERS] if differs else []


def same_batches(f: Found) -> bool:
    """Whether arms with the same seed see the same batches in the same order."""
    return not caution(f) and not factors(f) & {"train.batch", "train.ramp", "train.tokens", "model.seq"}


def noise_of(f: Found) -> dict[str, dict[str, Any]]:
    """{metric: what ablations/plan/power.py needs to say what a study can see}, of metrics that several seeds have."""
    found = {}
    for name, compared in f.compared.items():
        results = f.results[name]
        parts = []  # (comparison, what the seeds give to it, seeds)
        for arm, c in compared.items():
            shared = len(results[arm].keys() & results[f.baseline].keys())
            if c.seeds and c.replicated and shared > 1:
                parts.append((c, c.seeds, shared))
        if not parts or not f.controlled:
            continue
        items = float(np.median([c.items.variance**0.5 for c, _, _ in parts]))
        # what seeds give to a difference of two single runs, halved: without what the arms of a seed share
        sd = float(np.sqrt(np.median([seeds.variance * shared / 2 for _, seeds, shared in parts])))
        found[name] = {"seed_sd": sd, "dof": parts[0][1].dof, "items": items, "unit": METRICS[name].unit}
    return found
