"""The findings of a study, from which the sections of a report are made: its runs, compared on every metric."""

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ablations.criteria import PRIMARY
from ablations.drawing import SERIES
from eval.report.collection import Collection, collect_runs
from eval.report.comparable import other_text, refusals, same_runs
from eval.report.compare import METRICS, comparisons, pairing, strata
from eval.report.contrasts import effects
from eval.report.criteria import criteria_of, noise_floor_was_registered, registered_metric, seeds_planned
from eval.report.expense import spent
from eval.report.external import External
from eval.report.floor import mismatch, noise_floor_part
from eval.report.runs import Cells, in_one_line, named, read_all
from eval.report.sections.mismatches import mismatches
from eval.report.short_names import shortened
from eval.statistics.comparison import Comparison, family
from eval.statistics.items import item_part_with_rest
from eval.statistics.parts import Part
from eval.statistics.seeds import Results
from eval.statistics.verdicts import MOST_SEEDS, Verdict, seeds_to_decide, verdict

TEXT_DIFFERS = """\
The arms read different text or tokens: their training losses cannot be compared, the held-out bits per byte can."""


class Findings(NamedTuple):
    study: Collection
    cells: Cells
    results: dict[str, Results]  # by metric, of METRICS those that any run has
    compared: dict[str, dict[str, Comparison]]  # {metric: {arm: against the baseline}}
    mismatches: list[str]  # what is not as a controlled comparison wants it
    refusals: list[str]  # what is not compared, because it was evaluated differently
    noise: str = ""  # other runs that tell the noise between seeds, in words
    same: dict[str, str] = {}  # of `same_runs`; these arms are not compared  # noqa: RUF012
    other_text: list[str] = []  # of `other_text`; nor are these  # noqa: RUF012
    beside: str = "checked"  # which published numbers are shown: request.BESIDE
    external: list[External] = []  # checkpoints beside the runs, on GLUE  # noqa: RUF012
    named_before: frozenset[str] = frozenset()  # the metrics whose margin was registered before the runs
    primary_before: str = PRIMARY  # the primary metric that was
    floor_before: bool = False  # whether the stored noise floor was
    seeds_planned: int | None = None  # of a study to which seeds were added by hand, see criteria.seeds_planned
    effects: dict[str, dict[int, Comparison]] = {}  # {metric: {effect of a factorial: its estimate}}  # noqa: RUF012

    @property
    def baseline(self) -> str:
        return self.study.arms[0]

    @property
    def primary(self) -> str:
        """The name of the primary metric, which decides the study."""
        return self.study.criteria.metric

    @property
    def margins(self) -> dict[str, float]:
        """The margins within which two arms count as equivalent: {metric: margin}."""
        return self.study.criteria.margins

    @property
    def controlled(self) -> bool:
        return self.study.controlled

    def colour(self, arm: str) -> int:
        return self.study.arms.index(arm) % SERIES

    def line_style(self, arm: str) -> str:
        """The line style of an arm in figures: "dash" where its colour is used a second time, else ""."""
        return "dash" if self.study.arms.index(arm) >= SERIES else ""

    def distinct_results(self, name: str) -> Results:
        """The results on a metric, {arm: {seed: result}}, without arms whose setting had no effect, since their runs
        would otherwise enter the noise between seeds twice. `name`: the metric."""
        return {arm: row for arm, row in self.results[name].items() if arm not in self.same}

    def cells_with(self, key: str) -> dict[str, dict[int, dict]]:
        """The contents of those run directories that have an entry `key`, such as "eval": {arm: {seed: content}}."""
        cells = {
            arm: {seed: self.cells[arm, seed] for seed in self.study.seeds if self.cells.get((arm, seed), {}).get(key)}
            for arm in self.study.arms
        }
        return {arm: seeds for arm, seeds in cells.items() if seeds}

    def left_out(self, arm: str, name: str) -> list[str]:
        """The tasks of a metric that are left out of the comparison of an arm with the baseline. `name`: the metric."""
        pairs = pairing(self.cells, self.results[name], arm, self.baseline, name)
        return pairs.left_out if pairs else []

    def decision(self, arm: str, name: str) -> Verdict:
        """The verdict on an arm by a metric, from its comparison with the baseline. `name`: the metric."""
        metric, comparison = METRICS[name], self.compared[name][arm]
        return verdict(
            comparison,
            metric.higher_is_better,
            metric.digits,
            self.margins.get(name),
            metric.unit,
            self.missing(arm, name),
        )

    def verdict(self, arm: str, name: str) -> str:
        """The verdict on an arm by a metric in words, with the number of tasks that are left out, and whether the
        verdict is exploratory. `name`: the metric."""
        decision = self.decision(arm, name)
        words = f"exploratory: {decision.words}" if self.exploratory(arm, name) else decision.words
        count = len(self.left_out(arm, name))
        return f"{words}, without {count} {'task' if count == 1 else 'tasks'} that differ" if count else words

    def exploratory(self, arm: str, name: str) -> bool:
        """Whether the verdict on an arm by the metric `name` is exploratory: it depends on something that was not named
        before the runs, which may be a metric other than the primary one, a margin, or a stored noise floor."""
        return self.chosen_late(self.decision(arm, name).kind, name)

    def chosen_late(self, kind: str, name: str) -> bool:
        """Whether a verdict of this kind ("better", "equivalent" ...) by the metric `name` would depend on something
        that was not named before the runs had begun."""
        if kind == "undecided":
            return False
        is_primary = name == self.primary == self.primary_before
        late_floor = self.study.criteria.noise_floor is not None and not self.floor_before
        return not is_primary or late_floor or (kind == "equivalent" and name not in self.named_before)

    def missing(self, arm: str, name: str) -> str:
        """A sentence on how many more seeds would decide the comparison of an arm with the baseline by the metric
        `name`, if the difference and the noise stay the same, and what the seeds would cost. "" where this is unknown,
        as for runs that were not planned as one study."""
        comparison, results = self.compared[name][arm], self.results[name]
        seeds = len(results[arm].keys() & results[self.baseline].keys())
        if not self.controlled or not comparison.seeds or not comparison.replicated or seeds < 2:
            return ""
        criteria = self.study.criteria
        most = criteria.seeds if criteria.sequential else None
        total = seeds_to_decide(comparison, 1 + len(self.study.compared), seeds, self.margins.get(name), most)
        if total is None:
            return f"no number of seeds up to {most or MOST_SEEDS} would tell"
        more = total - seeds
        return f"about {more} more {'seed' if more == 1 else 'seeds'} of each arm would tell{self.price(more)}"

    def price(self, seeds: int) -> str:
        """The cost of `seeds` more seeds of every arm as text, such as ", 12 GPU-hours", from the mean hours of
        finished runs; "" where no run is finished."""
        costs = [spent(cell) for cell in self.cells.values() if cell.get("metrics") and not cell["state"]]
        if not costs or len({cost["unit"] for cost in costs}) > 1:
            return ""
        hours = float(np.mean([cost["hours"] for cost in costs])) * seeds * len(self.study.arms)
        return f", {hours:.2g} {costs[0]['unit']}-hours"

    def marked_verdict(self, arm: str, name: str) -> str:
        """The result of `verdict`, the verdict on an arm in words, in bold where it is better or worse."""
        words = self.verdict(arm, name)
        return f"**{words}**" if self.decision(arm, name).kind in ("better", "worse") else words

    def factors(self) -> set[str]:
        """The names of the settings in which the arms differ from the baseline."""
        planned = [self.study.cell(arm, seed) for arm in self.study.arms for seed in self.study.seeds]
        return {key for cell in planned if cell for key in cell.delta}

    def caution(self) -> list[str]:
        """A list with the sentence to read before training losses are compared; empty where they can be compared."""
        differs = any(key.startswith("data.") or key == "model.vocab" for key in self.factors())
        return [TEXT_DIFFERS] if differs else []

    def same_batches(self) -> bool:
        """Whether arms with the same seed see the same batches in the same order."""
        return not self.caution() and not self.factors() & {"train.batch", "train.ramp", "train.tokens", "model.seq"}


def length(train: dict[str, Any]) -> str:
    """The length of a run in words, such as "1,000,000 tokens". `train`: the training part of its configuration."""
    budget = train.get("budget", "tokens")
    return f"{train['tokens']:,} tokens" if budget == "tokens" else in_one_line(budget)


def collect(study: Any, cells: Cells, key: str) -> Results:
    """The results of a study on a metric, {arm: {seed: result}}, of the runs that have one.

    Args:
        study: an ablations.study.Study, or a Collection.
        cells: {(arm, seed): content of the run directory}.
        key: the entry of the metric in eval.json.
    """
    return {
        arm: {
            seed: cells[arm, seed]["eval"][key]["value"]
            for seed in study.seeds
            if cells.get((arm, seed), {}).get("eval", {}).get(key)
        }
        for arm in study.arms
    }


def gather(
    study: Any,
    noise: list[Path] = [],  # noqa: B006
    beside: str = "checked",
    external: list[External] = [],  # noqa: B006
) -> Findings:
    """Read the runs of a study and compare them.

    Args:
        study: an ablations.study.Study, or a Collection.
        noise: directories of other runs that differ only in the seed, for the noise between seeds.
        beside: which published results to show, one of `eval.report.request.BESIDE`.
        external: GLUE results of external checkpoints.

    Raises:
        ValueError: a directory in `noise` is damaged, or the stored noise floor is not that of this study.
    """
    cells = read_all(study)
    criteria, named_before = criteria_of(study, cells)
    primary_before, floor_before = registered_metric(study, cells), noise_floor_was_registered(study, cells)
    planned = seeds_planned(study, cells)
    study, cells = shortened(study, cells)
    study = replace(study, criteria=criteria)
    objectives = {cell["run"]["config"]["model"].get("objective") for cell in cells.values() if "run" in cell}
    zero_shot = set() if objectives == {"mlm"} else {"zero-shot"}  # an encoder has no likelihood of a continuation
    expected = {"bits/byte", study.criteria.metric} | zero_shot
    results = {name: collect(study, cells, metric.key) for name, metric in METRICS.items()}
    results = {name: rows for name, rows in results.items() if any(rows.values()) or name in expected}
    noise_results: dict[str, Results] = {}
    noise_words = ""
    if noise:
        group = collect_runs([("", path) for path in noise], "")
        if group.damaged:
            raise ValueError("; ".join(group.damaged))
        sizes = dict.fromkeys(
            f"{place.config.get('size')}, {length(place.config['train'])}" for place in group.places.values()
        )
        noise_words = f"{named(list(group.places))}; {' and '.join(sizes)}"
        noise_cells = read_all(group)
        noise_results = {name: collect(group, noise_cells, METRICS[name].key) for name in results}
    findings = Findings(
        study,
        cells,
        results,
        compared={},
        mismatches=[
            *mismatches(study, cells),
            *(f"{row.name} (external): {row.damage}" for row in external if row.damage),
        ],
        refusals=refusals(cells),
        noise=noise_words,
        same=same_runs(cells),
        other_text=other_text(cells, study.arms[0]),
        beside=beside,
        external=external,
        named_before=named_before,
        primary_before=primary_before,
        floor_before=floor_before,
        seeds_planned=planned,
    )
    borrowed = noise_floor_parts(study, cells, list(results))
    compared, of_factorial = {}, {}
    for name in results:
        distinct = findings.distinct_results(name)
        arms = comparisons(study, cells, distinct, name, noise_results.get(name), borrowed.get(name))
        estimates = effects(study.factorial, study.arms[0], cells, distinct, name)
        compared[name], of_factorial[name] = corrected(arms, estimates)
    return findings._replace(compared=compared, effects=of_factorial)


def corrected(
    arms: dict[str, Comparison], effects: dict[int, Comparison]
) -> tuple[dict[str, Comparison], dict[int, Comparison]]:
    """All comparisons of a study on a metric after multiple-comparison correction together, as one family: arms against
    the baseline, and in a factorial main effects and interactions. With three families of 5 % each, 8 to 12 % of
    factorials whose combinations do not differ would have a wrong verdict (docs/statistics.md).

    Args:
        arms: {arm: comparison with the baseline}.
        effects: {bit mask of the effect's factors: comparison with 0}; empty where the study is not a factorial.

    Returns: the two dictionaries with corrected comparisons.
    """
    both = family(arms | effects)
    return {arm: both[arm] for arm in arms}, {effect: both[effect] for effect in effects}


def noise_floor_parts(study: Collection, cells: Cells, names: list[str]) -> dict[str, Part]:
    """The variance of single runs by the study's stored noise floor, {metric: variance}, for the metrics that the floor
    has. Empty where the study uses no noise floor.

    Args:
        study: the study.
        cells: {(arm, seed): content of the run directory}.
        names: the metrics.

    Raises:
        ValueError: the floor was measured with another baseline, text, budget or evaluation.
    """
    floor = study.criteria.noise_floor
    if floor is None:
        return {}
    if reason := mismatch(floor, cells, study.arms[0]):
        raise ValueError(f"the noise floor {floor.name} is not that of this study: {reason}")
    parts = {name: noise_floor_part(floor, cells, study.arms[0], name) for name in names}
    return {name: part for name, part in parts.items() if part}


def recorded_noise(f: Findings) -> dict[str, dict[str, Any]]:
    """The noise of a study for each metric with several seeds, in the form that ablations/plan/power.py reads: {metric:
    {"seed_sd", "dof", "items", "unit"}}.

    Where the variance from the items cannot be estimated separately from the interaction of items and seeds, the sum of
    the two is used, since a plan without noise from the items would be too optimistic.
    """
    recorded = {}
    for name, compared in f.compared.items():
        results = f.results[name]
        pairs = []  # (what the seeds give, their number, the variance that the items give)
        for arm, c in compared.items():
            shared = len(results[arm].keys() & results[f.baseline].keys())
            if c.seeds and c.replicated and c.enough_items and shared > 1:
                pairs.append((c.seeds, shared, c.items.variance or items_with_seeds(f, arm, name)))
        if not pairs or not f.controlled:
            continue
        items = float(np.median([variance**0.5 for _, _, variance in pairs]))
        # what seeds give to a difference of two single runs, halved: without what the arms of a seed share
        sd = float(np.sqrt(np.median([seeds.variance * shared / 2 for seeds, shared, _ in pairs])))
        recorded[name] = {"seed_sd": sd, "dof": pairs[0][0].dof, "items": items, "unit": METRICS[name].unit}
    return recorded


def items_with_seeds(f: Findings, arm: str, name: str) -> float:
    """The part of the variance of arm minus baseline, in the metric `name`, that comes from sampling the evaluation
    items, with the interaction of items and seeds."""
    pairs = pairing(f.cells, f.results[name], arm, f.baseline, name)
    whole, _ = item_part_with_rest(strata(f.cells, arm, f.baseline, pairs, name) if pairs else [])
    return whole.variance
