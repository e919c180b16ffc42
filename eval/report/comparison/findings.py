"""The findings of a study, from which the sections of a report are made: its runs, compared on every metric."""

from typing import Any, NamedTuple

import numpy as np

from ablations.criteria import PRIMARY
from ablations.drawing import SERIES
from eval.report.comparison.compare import METRICS, choose_pairing
from eval.report.reading.collection import Collection
from eval.report.reading.expense import cost_so_far
from eval.report.reading.external import External
from eval.report.reading.runs import Cells
from eval.statistics.comparison import Comparison
from eval.statistics.seeds import Results
from eval.statistics.verdicts import MAX_SEEDS_NAMED, Verdict, items_alone_leave_undecided, seeds_to_decide, verdict

TEXT_DIFFERS = """\
The arms read different text or tokens: their training losses cannot be compared, the held-out bits per byte can."""


class Findings(NamedTuple):
    """All that a report is made from: the runs of a study, and their comparisons on every metric that any run has."""

    study: Collection
    cells: Cells
    results: dict[str, Results]  # {metric: {arm: {seed: result}}}
    comparisons: dict[str, dict[str, Comparison]]  # {metric: {arm: comparison with the baseline}}
    mismatches: list[str]  # sentences on what a controlled comparison should not have
    refusals: list[str]  # sentences on runs that are not compared, because they were evaluated differently
    noise: str = ""  # the further runs that the noise between seeds is estimated from, in words
    copies: dict[str, str] = {}  # {arm without effect: the arm whose runs it repeats}; not compared  # noqa: RUF012
    other_text: list[str] = []  # arms that read another text under the same name; not compared  # noqa: RUF012
    published_shown: str = "checked"  # which published numbers are shown, one of request.BESIDE
    external: list[External] = []  # GLUE results of external checkpoints  # noqa: RUF012
    registered_margins: frozenset[str] = frozenset()  # the metrics whose margin was registered before the runs
    registered_metric: str = PRIMARY  # the primary metric that was registered before the runs
    noise_floor_registered: bool = False  # whether the stored noise floor was registered before the runs
    seeds_planned: int | None = None  # where seeds were added without a rule: how many were planned (criteria.py)
    leader_compared: dict[str, Comparison] = {}  # by the primary metric, {other arm: leader minus it}  # noqa: RUF012
    effects: dict[str, dict[int, Comparison]] = {}  # {metric: {effect of a factorial: its estimate}}  # noqa: RUF012

    @property
    def baseline(self) -> str:
        return self.study.arms[0]

    @property
    def primary(self) -> str:
        """The metric that decides the study."""
        return self.study.criteria.metric

    @property
    def margins(self) -> dict[str, float]:
        """{metric: the margin within which two arms count as equivalent}."""
        return self.study.criteria.margins

    @property
    def controlled(self) -> bool:
        """Whether each arm differs from the baseline in one line of configuration, as in a study."""
        return self.study.controlled

    @property
    def runs(self) -> list[dict[str, Any]]:
        """The contents of run.json of all runs that have begun."""
        return [cell["run"] for cell in self.cells.values() if "run" in cell]

    def colour(self, arm: str) -> int:
        """The number of an arm's colour in figures."""
        return self.study.arms.index(arm) % SERIES

    def line_style(self, arm: str) -> str:
        """The line style of an arm in figures: "dash" where its colour is used a second time, else ""."""
        return "dash" if self.study.arms.index(arm) >= SERIES else ""

    def distinct_results(self, metric: str) -> Results:
        """The results on a metric, {arm: {seed: result}}, without arms that had no effect: their runs repeat those of
        another arm, and would count twice in the noise."""
        return {arm: row for arm, row in self.results[metric].items() if arm not in self.copies}

    def cells_with_entry(self, key: str) -> dict[str, dict[int, dict]]:
        """The runs whose directories have some content: {arm: {seed: content of the run directory}}. Arms without such
        a run are left out. `key`: the entry that must not be empty, such as "eval"."""
        cells = {
            arm: {seed: self.cells[arm, seed] for seed in self.study.seeds if self.cells.get((arm, seed), {}).get(key)}
            for arm in self.study.arms
        }
        return {arm: seeds for arm, seeds in cells.items() if seeds}

    def tasks_left_out(self, arm: str, metric: str) -> list[str]:
        """The tasks of a metric that are left out of the comparison of an arm with the baseline; [] where the two are
        not compared at all."""
        pairs = choose_pairing(self.cells, self.results[metric], arm, self.baseline, metric)
        return pairs.left_out if pairs else []

    def judge(self, comparison: Comparison, metric: str, missing: str = "") -> Verdict:
        """The verdict on a comparison. `missing`: for an undecided verdict, a phrase on what would decide it."""
        of = METRICS[metric]
        return verdict(comparison, of.higher_is_better, of.digits, self.margins.get(metric), of.unit, missing)

    def verdict(self, arm: str, metric: str) -> Verdict:
        """The verdict on an arm, from its comparison with the baseline on a metric."""
        return self.judge(self.comparisons[metric][arm], metric, self.missing_seeds_in_words(arm, metric))

    def verdict_in_words(self, arm: str, metric: str) -> str:
        """The verdict on an arm as text. It says whether the verdict is exploratory, and how many tasks the comparison
        leaves out."""
        decision = self.verdict(arm, metric)
        words = f"exploratory: {decision.words}" if self.is_exploratory(arm, metric) else decision.words
        count = len(self.tasks_left_out(arm, metric))
        return f"{words}, without {count} {'task' if count == 1 else 'tasks'} that differ" if count else words

    def is_exploratory(self, arm: str, metric: str) -> bool:
        """Whether the verdict on an arm depends on a criterion that was not registered before the runs: on the metric,
        a margin or a stored noise floor. False for an undecided verdict."""
        return self.is_exploratory_if(self.verdict(arm, metric).kind, metric)

    def is_exploratory_if(self, kind: str, metric: str) -> bool:
        """Whether a verdict of some kind would be exploratory on a metric, because the metric, the margin or the noise
        floor was chosen after the runs. `kind`: "better", "worse", "equivalent" or "undecided"; False for the last."""
        if kind == "undecided":
            return False
        is_primary = metric == self.primary == self.registered_metric
        late_floor = self.study.criteria.noise_floor is not None and not self.noise_floor_registered
        return not is_primary or late_floor or (kind == "equivalent" and metric not in self.registered_margins)

    def missing_seeds_in_words(self, arm: str, metric: str) -> str:
        """A sentence on how many more seeds would decide the comparison of an arm with the baseline, and what they
        would cost, if difference and noise stayed the same. "" where this is unknown, as in a Collection."""
        comparison, results = self.comparisons[metric][arm], self.results[metric]
        seeds = len(results[arm].keys() & results[self.baseline].keys())
        if not self.controlled or not comparison.seeds or not comparison.replicated or seeds < 2:
            return ""
        criteria = self.study.criteria
        most = criteria.seeds if criteria.sequential else None
        total = seeds_to_decide(comparison, 1 + len(self.study.compared_arms), seeds, self.margins.get(metric), most)
        if total is None and items_alone_leave_undecided(comparison, self.margins.get(metric)):
            groups = f" than these {comparison.independent}" if comparison.independent else ""
            return f"more seeds would not tell, more groups of items{groups} would"
        if total is None:
            return f"no number of seeds up to {most or MAX_SEEDS_NAMED} would tell"
        more = total - seeds
        seeds_text = f"{more} more {'seed' if more == 1 else 'seeds'}"
        return f"about {seeds_text} of each arm would tell{self.seed_cost_in_words(more)}"

    def seed_cost_in_words(self, seeds: int) -> str:
        """The cost of more seeds of every arm as text, such as ", 12 GPU-hours", from the mean hours of finished runs.
        "" where no run is finished, or some runs count GPU-hours and others core-hours. `seeds`: how many more."""
        costs = [cost_so_far(cell) for cell in self.cells.values() if cell.get("metrics") and not cell["state"]]
        if not costs or len({cost["unit"] for cost in costs}) > 1:
            return ""
        hours = float(np.mean([cost["hours"] for cost in costs])) * seeds * len(self.study.arms)
        return f", {hours:.2g} {costs[0]['unit']}-hours"

    def verdict_in_markup(self, arm: str, metric: str) -> str:
        """The text of `verdict_in_words`, in bold where the arm is better or worse."""
        words = self.verdict_in_words(arm, metric)
        return f"**{words}**" if self.verdict(arm, metric).kind in ("better", "worse") else words

    def factors(self) -> set[str]:
        """The settings in which at least one arm differs from the baseline."""
        planned = [self.study.cell(arm, seed) for arm in self.study.arms for seed in self.study.seeds]
        return {key for cell in planned if cell for key in cell.delta}

    def warning_on_losses(self) -> list[str]:
        """A list with one sentence, if the training losses of the arms cannot be compared since their text or tokens
        differ; else []."""
        differs = any(key.startswith("data.") or key == "model.vocab" for key in self.factors())
        return [TEXT_DIFFERS] if differs else []

    def same_batches(self) -> bool:
        """Whether arms with the same seed see the same batches in the same order."""
        return not self.warning_on_losses() and not self.factors() & {
            "train.batch",
            "train.ramp",
            "train.tokens",
            "model.seq",
        }


def noise_for_planning(findings: Findings) -> dict[str, dict[str, Any]]:
    """The noise of a study, for planning further studies (ablations/plan/power.py): {metric: entry}. Metrics without
    arms that share several seeds with the baseline are left out.

    Returns for each metric:
        seed_sd, dof: the standard deviation of a single run between seeds, and its degrees of freedom. The part that
            all arms of a seed share is removed, since it cancels in differences.
        items, items_dof: the standard error of a difference of two arms from the choice of items, and its degrees of
            freedom; None for the latter where the items give no noise.
        unit: the unit of the metric.
    """
    recorded = {}
    for name, compared in findings.comparisons.items():
        results = findings.results[name]
        pairs = []  # (what the seeds give, their number, what the items give)
        for arm, c in compared.items():
            shared = len(results[arm].keys() & results[findings.baseline].keys())
            if c.seeds and c.replicated and c.has_enough_items and shared > 1:
                of_seeds, of_items = c.planning_variances
                pairs.append((of_seeds, shared, of_items))
        if not pairs or not findings.controlled:
            continue
        items = float(np.median([part.variance**0.5 for _, _, part in pairs]))
        items_dof = float(np.median([part.dof for _, _, part in pairs]))
        # what seeds give to a difference of two single runs, halved: without what the arms of a seed share
        sd = float(np.sqrt(np.median([seeds.variance * shared / 2 for seeds, shared, _ in pairs])))
        recorded[name] = {
            "seed_sd": sd,
            "dof": pairs[0][0].dof,
            "items": items,
            "items_dof": items_dof if np.isfinite(items_dof) else None,
            "unit": METRICS[name].unit,
        }
    return recorded
