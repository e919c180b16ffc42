"""What to train with a budget of machines for a time: the model shape, the number of tokens, and the ablations to run
first. It answers the question of BigScience's paper "What Language Model to Train if You Have One Million GPU Hours?".
decision_report.py writes the document.

The document names the kind of source of every number. Measured: on this site. Published: in a source that was read.
Secondary: as others quote the source. Unverified: recalled, not read. Assumed: chosen by this project. Computed: from
other numbers.
"""

import math
from dataclasses import dataclass
from typing import Any

from ablations.plan import affordable, published_laws, shapes
from ablations.plan.first_studies import STUDY_SHARE, ranked_studies
from ablations.plan.reliability import ASSUMED, NODE_MTBF, UnreliableCluster, simulate_job
from ablations.plan.resources import PF_DAY, TIMES, Budget, Cluster
from ablations.values import ConfigError

PLANNED_SHARE = 100 / 312  # of the peak: BigScience planned with 100 model TFLOP/s on an A100 (unverified)
SAFETY_FACTOR = 4500 / 4838.4  # the share of its PF-days that BigScience planned to use (unverified)
DEFAULT_TOKENS = (300e9, 400e9)  # the least that BigScience needed, for low-resource languages (published: its blog)
BIGSCIENCE_PF_DAYS = 4500
MIN_NODE_SHARE = 0.75  # of the working nodes, down to which `fewer_nodes_hint` looks for a model shape
MAX_TRIES = 32  # the most numbers of nodes that it tries
MIN_SIZE = 20e9  # parameters; smaller models get 20 tokens per parameter, and need no pipeline: assumed
HISTORIES = 40  # simulated; their mean and 10th to 90th percentile are shown
LEAST_HISTORIES = 4
MOST_FAILURES = 20_000  # in all histories together; large clusters get fewer and shorter histories, to save time


@dataclass(frozen=True)
class Timeline:
    """The simulated use of the time of a long training job on a cluster with failures.

    `shares`: the mean share of the time for "trained", "saving", "redone", "detecting", "restarting" and "waiting"; and
    under "failures" their mean number. `low`, `high`: the 10th and 90th percentile of the share "trained".
    """

    shares: dict[str, float]
    interval: float  # seconds between saves
    low: float
    high: float
    histories: int  # the number of simulated histories


def simulate_timeline(machines: Cluster, spare: int) -> Timeline:
    """Simulate a long training job on a cluster that fails at BLOOM's published rate. `machines`: the cluster and the
    time; `spare`: the number of spare nodes, in place of the cluster's own. All other nodes train."""
    working = machines.nodes - spare
    cluster = UnreliableCluster(nodes=working, spares=spare, node_mtbf=NODE_MTBF["BLOOM"], **ASSUMED)
    failure_interval = cluster.mtbf + cluster.detect + cluster.restart
    histories = max(LEAST_HISTORIES, min(HISTORIES, int(MOST_FAILURES / (machines.seconds / failure_interval))))
    seconds = min(machines.seconds, MOST_FAILURES / LEAST_HISTORIES * failure_interval)
    runs = [simulate_job(cluster, seconds, cluster.save_interval, seed) for seed in range(histories)]
    trained = sorted(run["trained"] for run in runs)
    shares = {key: sum(run[key] for run in runs) / histories for key in runs[0]}
    shares["failures"] *= machines.seconds / seconds
    return Timeline(shares, cluster.save_interval, trained[histories // 10], trained[-histories // 10 - 1], histories)


@dataclass(frozen=True)
class PlannedTraining:
    """The predicted time of training on the planned tokens with the whole cluster, failures included."""

    tokens: float
    seconds: float  # the mean
    slow: float  # seconds at the low end of `Decision.trainable_tokens`
    fast: float  # seconds at its high end
    gpu_hours: float  # for the mean time


@dataclass(frozen=True)
class Optimum:
    """The numbers of parameters and tokens with the least loss at the budget's compute, by one published law. `low`,
    `high`: the range of `parameters` when the law's constants vary within the rounding of their printed digits."""

    law: published_laws.PublishedLaw
    parameters: float
    tokens: float
    low: float
    high: float


@dataclass(frozen=True)
class Decision:
    """What to train with a budget, and the numbers that led to it. `decide_what_to_train` makes it."""

    budget: Budget
    machines: Cluster
    compute: float  # the FLOPs that are planned to be used
    optima: list[Optimum]  # by several published laws
    tokens: tuple[float, float]  # (least, most) training tokens
    tokens_source: str  # where `tokens` is from, as text "SOURCE: KIND", with a KIND of the module's docstring
    sizes: tuple[float, float]  # (least, most) parameters, which follow from `compute` and `tokens`
    candidates: list[shapes.ShapeCandidate]  # the fastest first
    reason: str  # why there are no candidates; "" where there are some
    timeline: Timeline
    timeline_without_spares: Timeline  # if all nodes worked
    studies: list[dict[str, Any]]  # the rows of `ranked_studies`
    study_basis: str  # where the GPU-hours of `studies` are from, as text

    @property
    def chosen(self) -> shapes.ShapeCandidate | None:
        """The fastest candidate shape that is not rejected. None where there is no such candidate, or failures leave no
        time to train."""
        if not self.timeline.shares["trained"]:
            return None
        return next((candidate for candidate in self.candidates if not candidate.rejected), None)

    def trainable_tokens(self, candidate: shapes.ShapeCandidate) -> tuple[float, float, float]:
        """The number of tokens on which a candidate can train in the whole time of the budget, failures included:
        (mean, low end, high end). The ends combine the 80% interval of the step time with the 10th and 90th percentile
        of the simulated share of time that is trained."""
        step = candidate.step
        token_seconds = candidate.layout.batch * shapes.SEQ * self.machines.seconds
        return (
            token_seconds / step.seconds * self.timeline.shares["trained"],
            token_seconds / step.high * self.timeline.low,
            token_seconds / step.low * self.timeline.high,
        )

    def planned_tokens(self, candidate: shapes.ShapeCandidate) -> float:
        """The number of tokens to train a candidate on. It is what the planned FLOPs allow, or what the time after the
        ablations allows (with the safety margin SAFETY_FACTOR), whichever is less."""
        ablations = sum(entry["gpu_hours"] for entry in [*self.studies_to_run_first, *self.studies_of_unknown_effect])
        time_share = SAFETY_FACTOR * (1 - ablations / self.machines.gpu_hours)
        return min(self.compute / (6 * candidate.shape.parameters), self.trainable_tokens(candidate)[0] * time_share)

    def planned_training(self, candidate: shapes.ShapeCandidate) -> PlannedTraining:
        """The time that a candidate takes to train on its `planned_tokens`."""
        tokens = self.planned_tokens(candidate)
        mean, slow, fast = (
            tokens / possible * self.machines.seconds if possible else math.inf
            for possible in self.trainable_tokens(candidate)
        )
        return PlannedTraining(tokens, mean, slow, fast, mean / self.machines.seconds * self.machines.gpu_hours)

    @property
    def studies_to_run_first(self) -> list[dict[str, Any]]:
        """The studies that can detect their published effect and fit into the share of the budget for ablations: rows
        of `ranked_studies`."""
        return [entry for entry in self.studies if entry["within"] and entry["sees"]]

    @property
    def studies_of_unknown_effect(self) -> list[dict[str, Any]]:
        """The studies without a published effect that fit into the share of the budget for ablations: rows of
        `ranked_studies`."""
        return [entry for entry in self.studies if entry["within"] and entry["effect"] is None]

    @property
    def study_gpu_hours_limit(self) -> float:
        """The most GPU-hours that all ablations together may take: the share STUDY_SHARE of the budget."""
        return STUDY_SHARE * self.machines.gpu_hours

    @property
    def device(self) -> affordable.Device:
        """The device for studies at sizes below STUDY_SIZE: one GPU of the cluster, or a whole node where a run does
        not fit on one."""
        return affordable.gpu_device(self.machines.gpu, self.machines.per_node, self.machines.seconds)

    @property
    def smaller_studies(self) -> list[affordable.AffordableStudy]:
        """The studies that cost more than `study_gpu_hours_limit` at STUDY_SIZE, each at the largest size that costs
        less. Studies that cost more at every size are left out."""
        too_expensive = {
            entry["study"] for entry in self.studies if not entry["gpu_hours"] <= self.study_gpu_hours_limit
        }
        if not too_expensive:
            return []
        affordable_studies = affordable.affordable_studies(self.device, self.study_gpu_hours_limit)
        return [study for study in affordable_studies if study.study in too_expensive]

    @property
    def gpu_hours_by_use(self) -> dict[str, float]:
        """The GPU-hours of the budget by use, {use: GPU-hours}. The uses are "training", "ablations first", "ablations
        of unknown effect" and "left"; they add up to the budget."""
        hours = {
            "training": self.planned_training(self.chosen).gpu_hours if self.chosen else 0.0,
            "ablations first": sum(entry["gpu_hours"] for entry in self.studies_to_run_first),
            "ablations of unknown effect": sum(entry["gpu_hours"] for entry in self.studies_of_unknown_effect),
        }
        return hours | {"left": self.machines.gpu_hours - sum(hours.values())}


def decide_what_to_train(budget: Budget, tokens: tuple[float, float] | None = None) -> Decision:
    """Decide what to train with a budget.

    Args:
        budget: a cluster for a time.
        tokens: (least, most) training tokens that the model needs; None: `default_token_range`.

    Raises:
        ConfigError: the budget is an amount, not a cluster for a time.
    """
    machines = budget.cluster
    if machines is None:
        raise ConfigError(
            f"BUDGET={budget.text!r} says how much, not how fast: what to train needs machines for a time, "
            "e.g. '18 weeks, 52x8 A100-80, 4 spare'; which studies it pays is said of core-hours, or of GPU-hours on "
            "hardware that is named, e.g. '500 GPU-hours, a100'"
        )
    compute = machines.flops(PLANNED_SHARE * machines.gpu.peak) * SAFETY_FACTOR
    optima = [Optimum(law, *law.optimum(compute), *law.size_range(compute)) for law in published_laws.LAWS]
    tokens, tokens_source = (tokens, "asked for: NEED") if tokens else default_token_range(compute)
    sizes = (compute / (6 * tokens[1]), compute / (6 * tokens[0]))
    candidates: list[shapes.ShapeCandidate] = []
    reason = ""
    if sizes[1] < MIN_SIZE:
        reason = f"models below {MIN_SIZE / 1e9:g}B parameters need no pipeline, and the rules are for those that do"
    else:
        try:
            candidates = shapes.candidate_shapes(*sizes, machines.gpu, machines.working, machines.per_node)
        except ConfigError as error:
            reason = str(error) + fewer_nodes_hint(sizes, machines)
    return Decision(
        budget,
        machines,
        compute,
        optima,
        tokens,
        tokens_source,
        sizes,
        candidates,
        reason,
        simulate_timeline(machines, machines.spare),
        simulate_timeline(machines, 0),
        *ranked_studies(machines),
    )


def default_token_range(compute: float) -> tuple[tuple[float, float], str]:
    """The range of training tokens where the user names none: ((least, most), source in words). It is the range that
    BigScience needed. Beyond BigScience's compute it grows as the square root of the compute. For models below MIN_SIZE
    it is around 20 tokens per parameter. `compute`: the planned FLOPs."""
    if compute / (6 * DEFAULT_TOKENS[0]) < MIN_SIZE:
        optimum, spread = (
            published_laws.fixed_ratio_optimum(compute)[1],
            math.sqrt(DEFAULT_TOKENS[1] / DEFAULT_TOKENS[0]),
        )
        return (optimum / spread, optimum * spread), "around 20 a parameter: secondary"
    growth = compute / (BIGSCIENCE_PF_DAYS * PF_DAY)
    if growth < 1.001:  # BigScience's own budget, which is rounded
        return DEFAULT_TOKENS, "what BigScience needed for languages with little text: published"
    least, most = DEFAULT_TOKENS
    source = "what BigScience needed, grown as the root of the compute beyond its budget: assumed"
    return (least * math.sqrt(growth), most * math.sqrt(growth)), source


def fewer_nodes_hint(sizes: tuple[float, float], machines: Cluster) -> str:
    """The end of the error message where no model shape fits on the cluster: the nearest smaller number of nodes on
    which a shape fits. "" where none is found (see MIN_NODE_SHARE and MAX_TRIES).

    Args:
        sizes: (least, most) parameters.
        machines: the cluster.
    """
    working = machines.nodes - machines.spare
    for nodes in range(working - 1, max(math.ceil(MIN_NODE_SHARE * working), working - MAX_TRIES) - 1, -1):
        try:
            candidates = shapes.candidate_shapes(*sizes, machines.gpu, nodes * machines.per_node, machines.per_node)
        except ConfigError:
            continue
        if any(not candidate.rejected for candidate in candidates):
            return f"; on {nodes} nodes there is one: {machines.nodes - nodes} spare"
    return ""


def finite_or_none(value: Any) -> Any:
    """The value, with None in place of an infinite number, which JSON cannot represent."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def as_json(decision: Decision) -> dict[str, Any]:
    """The decision as an object for FORMAT=json."""
    chosen = decision.chosen
    return {
        "budget": decision.budget.text,
        "gpu_hours": decision.machines.gpu_hours,
        "pf_days": decision.compute / PF_DAY,
        "optima": [
            {
                "law": optimum.law.name,
                "parameters": optimum.parameters,
                "low": optimum.low,
                "high": optimum.high,
                "tokens": optimum.tokens,
                "status": optimum.law.status,
            }
            for optimum in decision.optima
        ],
        "tokens": decision.tokens,
        "sizes": decision.sizes,
        "shapes": [
            {
                "layers": c.shape.layers,
                "hidden": c.shape.hidden,
                "heads": c.shape.heads,
                "parameters": c.shape.parameters,
                "seconds_per_step": c.step.seconds,
                "low": c.step.low,
                "high": c.step.high,
                "gib": c.gib,
                "against": c.rejected,
            }
            for c in decision.candidates
        ],
        "chosen": chosen.label if chosen else None,
        "tokens_in_time": decision.trainable_tokens(chosen) if chosen else None,
        "training": _training_as_json(decision, chosen) if chosen else None,
        "gpu_hours_by_use": {use: finite_or_none(hours) for use, hours in decision.gpu_hours_by_use.items()},
        "goodput": decision.timeline.shares,
        "smaller_studies": [
            study._asdict() | {"command": affordable.study_command(study)} for study in decision.smaller_studies
        ],
        "studies": [{key: finite_or_none(value) for key, value in entry.items()} for entry in decision.studies],
    }


def _training_as_json(decision: Decision, chosen: shapes.ShapeCandidate) -> dict[str, Any]:
    """The chosen shape's training and parallel layout as an object for FORMAT=json. The times are in weeks, None where
    they are infinite."""
    training, layout = decision.planned_training(chosen), chosen.layout
    return {
        "tokens": training.tokens,
        "weeks": finite_or_none(training.seconds / TIMES["week"]),
        "weeks_low": finite_or_none(training.fast / TIMES["week"]),
        "weeks_high": finite_or_none(training.slow / TIMES["week"]),
        "gpus": layout.gpus,
        "data_parallel": layout.dp,
        "tensor_parallel": layout.tp,
        "pipeline_parallel": layout.pp,
        "micro_batch": layout.micro_batch,
        "batch": layout.batch,
        "sequence": shapes.SEQ,
    }
