"""What to train with a budget of machines for a time: the model shape, the number of tokens, and the ablations to run
first. Counterpart of the last section of "What Language Model to Train if You Have One Million GPU Hours?"
(BigScience). decision_report.py writes the document.

The document gives the kind of source of every number. Measured: on this site. Published: in a source that was read.
Secondary: as others quote the source. Unverified: recalled, not read. Assumed: chosen by this project. Computed: from
other numbers.
"""

import math
from dataclasses import dataclass
from typing import Any

from ablations.plan import affordable, published_laws, shapes
from ablations.plan.first_studies import STUDY_SHARE, first_studies
from ablations.plan.reliability import ASSUMED, NODE_MTBF, UnreliableCluster, simulate
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
    """How a long training job on a cluster with failures spends its time, by simulation. `shares`: {use: mean share of
    the time} for the uses "trained", "saving", "waiting" ..., and the mean number of "failures"; `low`, `high`: the
    10th and 90th percentile of the share that is trained."""

    shares: dict[str, float]
    interval: float  # seconds between saves
    low: float
    high: float
    histories: int  # the number of simulated histories


def simulate_timeline(machines: Cluster, spare: int) -> Timeline:
    """Simulate a long training job on a cluster that fails at BLOOM's published rate. `machines`: the cluster and the
    time; `spare`: the number of spare nodes, in place of `machines.spare`; all other nodes train."""
    working = machines.nodes - spare
    cluster = UnreliableCluster(nodes=working, spares=spare, node_mtbf=NODE_MTBF["BLOOM"], **ASSUMED)
    failure_interval = cluster.mtbf + cluster.detect + cluster.restart
    histories = max(LEAST_HISTORIES, min(HISTORIES, int(MOST_FAILURES / (machines.seconds / failure_interval))))
    seconds = min(machines.seconds, MOST_FAILURES / LEAST_HISTORIES * failure_interval)
    runs = [simulate(cluster, seconds, cluster.save_interval, seed) for seed in range(histories)]
    trained = sorted(run["trained"] for run in runs)
    shares = {key: sum(run[key] for run in runs) / histories for key in runs[0]}
    shares["failures"] *= machines.seconds / seconds
    return Timeline(shares, cluster.save_interval, trained[histories // 10], trained[-histories // 10 - 1], histories)


@dataclass(frozen=True)
class PlannedTraining:
    """The time that training on a number of tokens takes on the whole cluster, failures included, with the ends of its
    interval."""

    tokens: float
    seconds: float  # the mean
    slow: float  # seconds at the low end of `Decision.tokens_in_time`
    fast: float  # seconds at its high end
    gpu_hours: float  # for the mean time


@dataclass(frozen=True)
class Optimum:
    """The numbers of parameters and tokens with the least loss at the budget's compute, by one published law. `low`,
    `high`: the range of the number of parameters that follows from the rounding of the law's printed constants."""

    law: published_laws.PublishedLaw
    parameters: float
    tokens: float
    low: float
    high: float


@dataclass(frozen=True)
class Decision:
    """What to train with a budget, and the numbers that led to it. `decide` makes it; ablations/plan/decision_report.py
    writes the document."""

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
    studies: list[dict[str, Any]]  # the rows of `first_studies.first_studies`
    study_basis: str  # where the GPU-hours of `studies` are from, as text

    @property
    def chosen(self) -> shapes.ShapeCandidate | None:
        """The fastest candidate shape that is not rejected; None where every candidate is rejected, there are no
        candidates, or failures leave no time to train."""
        if not self.timeline.shares["trained"]:
            return None
        return next((candidate for candidate in self.candidates if not candidate.rejected), None)

    def tokens_in_time(self, candidate: shapes.ShapeCandidate) -> tuple[float, float, float]:
        """The number of tokens on which the candidate can train in the whole time of the budget, at its predicted speed
        and with simulated failures: (mean, low end, high end). The ends combine the 80% interval of the step time with
        the 10th and 90th percentile of the simulated share of time that is trained."""
        step = candidate.step
        token_seconds = candidate.layout.batch * shapes.SEQ * self.machines.seconds
        return (
            token_seconds / step.seconds * self.timeline.shares["trained"],
            token_seconds / step.high * self.timeline.low,
            token_seconds / step.low * self.timeline.high,
        )

    def planned_tokens(self, candidate: shapes.ShapeCandidate) -> float:
        """The number of tokens to train the candidate on: the number that the planned FLOPs allow at its size, limited
        to what it can train on in the time that the ablations leave, with the safety margin SAFETY_FACTOR."""
        ablations = sum(entry["gpu_hours"] for entry in [*self.first_studies, *self.unknown_studies])
        time_share = SAFETY_FACTOR * (1 - ablations / self.machines.gpu_hours)
        return min(self.compute / (6 * candidate.shape.parameters), self.tokens_in_time(candidate)[0] * time_share)

    def training(self, candidate: shapes.ShapeCandidate) -> PlannedTraining:
        """The time that the candidate takes to train on its `planned_tokens`."""
        tokens = self.planned_tokens(candidate)
        mean, slow, fast = (
            tokens / possible * self.machines.seconds if possible else math.inf
            for possible in self.tokens_in_time(candidate)
        )
        return PlannedTraining(tokens, mean, slow, fast, mean / self.machines.seconds * self.machines.gpu_hours)

    @property
    def first_studies(self) -> list[dict[str, Any]]:
        """The studies to run first: those that can detect their published effect, and that the share STUDY_SHARE of the
        budget still pays for after the rows before them. Rows of `first_studies.first_studies`."""
        return [entry for entry in self.studies if entry["within"] and entry["sees"]]

    @property
    def unknown_studies(self) -> list[dict[str, Any]]:
        """The studies without a published effect that the share STUDY_SHARE of the budget still pays for after the rows
        before them. Rows of `first_studies.first_studies`."""
        return [entry for entry in self.studies if entry["within"] and entry["effect"] is None]

    @property
    def study_hours(self) -> float:
        """The most GPU-hours that all ablations together may take: the share STUDY_SHARE of the budget."""
        return STUDY_SHARE * self.machines.gpu_hours

    @property
    def device(self) -> affordable.Device:
        """The device for studies at sizes below STUDY_SIZE: one GPU of the cluster, or a whole node where a run does
        not fit on one."""
        return affordable.gpu_device(self.machines.gpu, self.machines.per_node, self.machines.seconds)

    @property
    def smaller_studies(self) -> list[affordable.AffordableStudy]:
        """The studies that cost more than `study_hours` at STUDY_SIZE, each at the largest size at which it costs less.
        Studies that cost more at every size are left out."""
        too_expensive = {entry["study"] for entry in self.studies if not entry["gpu_hours"] <= self.study_hours}
        if not too_expensive:
            return []
        affordable_studies = affordable.affordable_studies(self.device, self.study_hours)
        return [study for study in affordable_studies if study.study in too_expensive]

    @property
    def gpu_hours_by_use(self) -> dict[str, float]:
        """The GPU-hours of the budget by use: {"training", "ablations first", "ablations of unknown effect", "left":
        GPU-hours}. The four add up to the budget."""
        hours = {
            "training": self.training(self.chosen).gpu_hours if self.chosen else 0.0,
            "ablations first": sum(entry["gpu_hours"] for entry in self.first_studies),
            "ablations of unknown effect": sum(entry["gpu_hours"] for entry in self.unknown_studies),
        }
        return hours | {"left": self.machines.gpu_hours - sum(hours.values())}


def decide(budget: Budget, tokens: tuple[float, float] | None = None) -> Decision:
    """Decide what to train with a budget.

    Args:
        budget: a cluster for a time.
        tokens: (least, most) training tokens that the model needs; None: the range from `default_token_range`.

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
        *first_studies(machines),
    )


def default_token_range(compute: float) -> tuple[tuple[float, float], str]:
    """The range of training tokens for a budget whose user names none: ((least, most), source in words). It is
    BigScience's range. Beyond BigScience's compute the range grows as the square root of the compute; for models below
    MIN_SIZE it is around 20 tokens per parameter. `compute`: the planned FLOPs."""
    if compute / (6 * DEFAULT_TOKENS[0]) < MIN_SIZE:
        optimum, spread = published_laws.fixed_ratio(compute)[1], math.sqrt(DEFAULT_TOKENS[1] / DEFAULT_TOKENS[0])
        return (optimum / spread, optimum * spread), "around 20 a parameter: secondary"
    growth = compute / (BIGSCIENCE_PF_DAYS * PF_DAY)
    if growth < 1.001:  # BigScience's own budget, which is rounded
        return DEFAULT_TOKENS, "what BigScience needed for languages with little text: published"
    least, most = DEFAULT_TOKENS
    source = "what BigScience needed, grown as the root of the compute beyond its budget: assumed"
    return (least * math.sqrt(growth), most * math.sqrt(growth)), source


def fewer_nodes_hint(sizes: tuple[float, float], machines: Cluster) -> str:
    """The end of the error message where no model shape fits on the cluster: the largest smaller number of nodes on
    which a shape fits. "" where no shape fits on any number that is tried, see MIN_NODE_SHARE and MAX_TRIES. `sizes`:
    the least and the largest number of parameters; `machines`: the cluster."""
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
        "tokens_in_time": decision.tokens_in_time(chosen) if chosen else None,
        "training": _training_as_json(decision, chosen) if chosen else None,
        "gpu_hours_by_use": {use: finite_or_none(hours) for use, hours in decision.gpu_hours_by_use.items()},
        "goodput": decision.timeline.shares,
        "smaller_studies": [
            study._asdict() | {"command": affordable.study_command(study)} for study in decision.smaller_studies
        ],
        "studies": [{key: finite_or_none(value) for key, value in entry.items()} for entry in decision.studies],
    }


def _training_as_json(decision: Decision, chosen: shapes.ShapeCandidate) -> dict[str, Any]:
    training, layout = decision.training(chosen), chosen.layout
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
