"""What to train with a budget of hardware: the counterpart of the last section of "What Language Model to Train if You
Have One Million GPU Hours?". decision_report.py makes the document, which says of every number where it is from:

measured: here, on this site. published: in a source that was read. secondary: as others quote the source. unverified:
recalled, not read. assumed: by us. computed: from other numbers.
"""

import math
from dataclasses import dataclass
from typing import Any

from ablations.plan import affordable, published_laws, shapes
from ablations.plan.first_studies import STUDY_SHARE, first_studies
from ablations.plan.reliability import ASSUMED, NODE_MTBF, UnreliableCluster, simulate
from ablations.plan.resources import PF_DAY, TIMES, Budget, Cluster
from ablations.values import ConfigError

PLANNED_SHARE = 100 / 312  # of the peak: 100 model TFLOP/s on an A100, which BigScience planned with (unverified)
SAFETY_FACTOR = 4500 / 4838.4  # of its PF-days that it planned to use (unverified)
DEFAULT_TOKENS = (300e9, 400e9)  # BigScience's least number of tokens, for low-resource languages (published: its blog)
BIGSCIENCE_PF_DAYS = 4500
MIN_NODE_SHARE = 0.75  # of the working nodes, down to which a number is looked for that has a shape
MAX_TRIES = 32  # numbers of nodes that are looked at
MIN_SIZE = 20e9  # parameters below which 20 tokens for each are taken instead, and no pipeline is needed: assumed
HISTORIES = 40  # simulated; their mean and 10th to 90th percentile are shown
LEAST_HISTORIES = 4
MOST_FAILURES = 20_000  # in all histories together: of large clusters fewer and shorter ones, to answer in a second


@dataclass(frozen=True)
class Timeline:
    """How a long job with failures spends its time, by simulation. `shares`: the mean share of the time for each use
    (trained, saving, waiting ...), and the mean number of "failures"; `low`, `high`: the 10th and 90th percentile of
    the share that is trained."""

    shares: dict[str, float]
    interval: float  # seconds between saves
    low: float  # of the trained share, 10th percentile of the histories
    high: float
    histories: int  # that were simulated


def simulate_timeline(machines: Cluster, spare: int) -> Timeline:
    """Simulate how a job spends the time of a cluster, at BLOOM's published failure rate. `spare`: the number of the
    cluster's nodes that are spare, in place of its own number; all other nodes work."""
    working = machines.nodes - spare
    cluster = UnreliableCluster(nodes=working, spares=spare, node_mtbf=NODE_MTBF["BLOOM"], **ASSUMED)
    between = cluster.mtbf + cluster.detect + cluster.restart  # failures
    histories = max(LEAST_HISTORIES, min(HISTORIES, int(MOST_FAILURES / (machines.seconds / between))))
    seconds = min(machines.seconds, MOST_FAILURES / LEAST_HISTORIES * between)
    runs = [simulate(cluster, seconds, cluster.save_interval, seed) for seed in range(histories)]
    trained = sorted(run["trained"] for run in runs)
    shares = {key: sum(run[key] for run in runs) / histories for key in runs[0]}
    shares["failures"] *= machines.seconds / seconds
    return Timeline(shares, cluster.save_interval, trained[histories // 10], trained[-histories // 10 - 1], histories)


@dataclass(frozen=True)
class PlannedTraining:
    """The time that training on a number of tokens takes on the whole cluster, failures included: the mean, and the
    slow and fast ends of its range, in seconds."""

    tokens: float
    seconds: float
    slow: float  # seconds at the low end of the training speed, see Decision.tokens_in_time
    fast: float
    gpu_hours: float  # of the mean


@dataclass(frozen=True)
class Optimum:
    """The numbers of parameters and tokens with the least loss at the budget's compute, by one published law. `low` and
    `high`: the range of parameters that the rounding of the law's printed constants allows."""

    law: published_laws.PublishedLaw
    parameters: float
    tokens: float
    low: float
    high: float


@dataclass(frozen=True)
class Decision:
    """What to train with a budget, with the numbers that it follows from. `decide` makes it;
    ablations/plan/decision_report.py writes the document."""

    budget: Budget
    machines: Cluster
    compute: float  # FLOPs that are planned with
    optima: list[Optimum]
    tokens: tuple[float, float]
    tokens_why: str  # where the range is from, a colon, and the kind of number, such as "published"
    sizes: tuple[float, float]
    candidates: list[shapes.ShapeCandidate]
    reason: str  # why there are no shapes; ""
    goodput: Timeline
    without_spares: Timeline
    studies: list[dict[str, Any]]
    study_basis: str

    @property
    def chosen(self) -> shapes.ShapeCandidate | None:
        """The fastest candidate shape that nothing speaks against (`rejected` is ""); None where there is none, or
        where failures leave no time to train."""
        if not self.goodput.shares["trained"]:
            return None
        return next((candidate for candidate in self.candidates if not candidate.rejected), None)

    def tokens_in_time(self, candidate: shapes.ShapeCandidate) -> tuple[float, float, float]:
        """The number of tokens on which the candidate can train in the whole time of the budget, at its predicted speed
        and with simulated failures: (mean, low end, high end). Low and high combine the ends of the step time's 80%
        interval with the 10th and 90th percentile of the simulated training time."""
        step = candidate.step
        token_seconds = candidate.layout.batch * shapes.SEQ * self.machines.seconds
        return (
            token_seconds / step.seconds * self.goodput.shares["trained"],
            token_seconds / step.high * self.goodput.low,
            token_seconds / step.low * self.goodput.high,
        )

    def planned_tokens(self, candidate: shapes.ShapeCandidate) -> float:
        """The number of tokens to train the candidate on. It is what the planned FLOPs allow at the candidate's size,
        but no more than the share SAFETY_FACTOR of what can be trained in the time that the ablations leave."""
        ablations = sum(entry["gpu_hours"] for entry in [*self.first_studies, *self.unknown_studies])
        time = SAFETY_FACTOR * (1 - ablations / self.machines.gpu_hours)
        return min(self.compute / (6 * candidate.shape.parameters), self.tokens_in_time(candidate)[0] * time)

    def training(self, candidate: shapes.ShapeCandidate) -> PlannedTraining:
        """The time that the candidate takes to train on its `planned_tokens`."""
        tokens = self.planned_tokens(candidate)
        mean, slow, fast = (
            tokens / reached * self.machines.seconds if reached else math.inf
            for reached in self.tokens_in_time(candidate)
        )
        return PlannedTraining(tokens, mean, slow, fast, mean / self.machines.seconds * self.machines.gpu_hours)

    @property
    def first_studies(self) -> list[dict[str, Any]]:
        """The studies to run first, as rows of `first_studies.first_studies`: those that can detect their published
        effect, and whose cost, summed in the order of the rows, stays within the share STUDY_SHARE of the budget."""
        return [entry for entry in self.studies if entry["within"] and entry["sees"]]

    @property
    def unknown_studies(self) -> list[dict[str, Any]]:
        """The studies without a published effect that the share STUDY_SHARE of the budget pays for besides those in
        `first_studies`, as rows of `first_studies.first_studies`."""
        return [entry for entry in self.studies if entry["within"] and entry["effect"] is None]

    @property
    def study_hours(self) -> float:
        """The GPU-hours that all ablations together may take: the share STUDY_SHARE of the budget."""
        return STUDY_SHARE * self.machines.gpu_hours

    @property
    def device(self) -> affordable.Device:
        """The device for studies at a size below STUDY_SIZE: one GPU of the cluster, or a whole node where one is not
        enough."""
        return affordable.gpu_device(self.machines.gpu, self.machines.per_node, self.machines.seconds)

    @property
    def smaller_studies(self) -> list[affordable.Offer]:
        """The studies that are too expensive at STUDY_SIZE for `study_hours`, each at the largest size at which
        `study_hours` pay for it. Studies that are too expensive at every size are left out."""
        too_dear = {entry["study"] for entry in self.studies if not entry["gpu_hours"] <= self.study_hours}
        if not too_dear:
            return []
        return [offer for offer in affordable.offers(self.device, self.study_hours) if offer.study in too_dear]

    @property
    def gpu_hours_by_use(self) -> dict[str, float]:
        """The GPU-hours of the budget by use: {"training", "ablations first", "ablations of unknown effect", "left"}.
        The four add up to the whole budget."""
        hours = {
            "training": self.training(self.chosen).gpu_hours if self.chosen else 0.0,
            "ablations first": sum(entry["gpu_hours"] for entry in self.first_studies),
            "ablations of unknown effect": sum(entry["gpu_hours"] for entry in self.unknown_studies),
        }
        return hours | {"left": self.machines.gpu_hours - sum(hours.values())}


def decide(budget: Budget, tokens: tuple[float, float] | None = None) -> Decision:
    """Decide what to train with a budget. `budget`: must be a cluster for a time, or ConfigError is raised; `tokens`:
    (least, most) tokens that the model must be trained on; None: the range from `needed_tokens`."""
    machines = budget.cluster
    if machines is None:
        raise ConfigError(
            f"BUDGET={budget.text!r} says how much, not how fast: what to train needs machines for a time, "
            "e.g. '18 weeks, 52x8 A100-80, 4 spare'; which studies it pays is said of core-hours, or of GPU-hours on "
            "hardware that is named, e.g. '500 GPU-hours, a100'"
        )
    compute = machines.flops(PLANNED_SHARE * machines.gpu.peak) * SAFETY_FACTOR
    optima = [Optimum(law, *law.optimum(compute), *law.size_range(compute)) for law in published_laws.LAWS]
    tokens, why = (tokens, "asked for: NEED") if tokens else needed_tokens(compute)
    sizes = (compute / (6 * tokens[1]), compute / (6 * tokens[0]))
    candidates: list[shapes.ShapeCandidate] = []
    reason = ""
    if sizes[1] < MIN_SIZE:
        reason = f"models below {MIN_SIZE / 1e9:g}B parameters need no pipeline, and the rules are for those that do"
    else:
        try:
            candidates = shapes.candidate_shapes(*sizes, machines.gpu, machines.working, machines.per_node)
        except ConfigError as error:
            reason = str(error) + hint_of_fewer_nodes(sizes, machines)
    return Decision(
        budget,
        machines,
        compute,
        optima,
        tokens,
        why,
        sizes,
        candidates,
        reason,
        simulate_timeline(machines, machines.spare),
        simulate_timeline(machines, 0),
        *first_studies(machines),
    )


def needed_tokens(compute: float) -> tuple[tuple[float, float], str]:
    """The range of tokens to train on where the user names none: ((least, most), the reason in words). It is
    BigScience's range; for more compute than BigScience's it grows as the root of the compute, and where the models
    would be small it is around 20 tokens a parameter. `compute`: the planned FLOPs."""
    if compute / (6 * DEFAULT_TOKENS[0]) < MIN_SIZE:
        optimum, spread = published_laws.fixed_ratio(compute)[1], math.sqrt(DEFAULT_TOKENS[1] / DEFAULT_TOKENS[0])
        return (optimum / spread, optimum * spread), "around 20 a parameter: secondary"
    growth = compute / (BIGSCIENCE_PF_DAYS * PF_DAY)
    if growth < 1.001:  # its own budget is rounded
        return DEFAULT_TOKENS, "what BigScience needed for languages with little text: published"
    least, most = DEFAULT_TOKENS
    why = "what BigScience needed, grown as the root of the compute beyond its budget: assumed"
    return (least * math.sqrt(growth), most * math.sqrt(growth)), why


def hint_of_fewer_nodes(sizes: tuple[float, float], machines: Cluster) -> str:
    """A hint to append to the message that no shape of these sizes fits on the cluster: the largest smaller number of
    nodes on which a shape fits. "" where there is none down to the share MIN_NODE_SHARE of the working nodes, or among
    the first MAX_TRIES numbers. `sizes`: the least and the largest number of parameters; `machines`: the cluster."""
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
    """`value`, or None where it is an infinite number, which JSON does not have."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def as_json(decision: Decision) -> dict[str, Any]:
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
        "chosen": chosen.words if chosen else None,
        "tokens_in_time": decision.tokens_in_time(chosen) if chosen else None,
        "training": _training_as_json(decision, chosen) if chosen else None,
        "gpu_hours_by_use": {use: finite_or_none(hours) for use, hours in decision.gpu_hours_by_use.items()},
        "goodput": decision.goodput.shares,
        "smaller_studies": [
            offer._asdict() | {"command": affordable.command_of(offer)} for offer in decision.smaller_studies
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
