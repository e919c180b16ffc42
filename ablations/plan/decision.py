"""What to train with a budget of hardware: the counterpart of the last section of "What Language Model to Train if You
Have One Million GPU Hours?". The document of it is in decision_report.py, and says of every number where it is from:

measured: here, on this site. published: in a source that was read. secondary: as others quote it. unverified: recalled,
not read. assumed: by us. computed: from the others.
"""

import bisect
import functools
import math
from dataclasses import dataclass
from typing import Any

from ablations.config import resolve
from ablations.plan import power, published_laws, shapes, site_speed
from ablations.plan.layouts import search
from ablations.plan.reliability import GUESS, NODE_MTBF, Cluster, save_interval, simulate
from ablations.plan.resources import HOUR, PF_DAY, Budget
from ablations.plan.resources import Cluster as Machines
from ablations.study_file import read_study, study_names
from ablations.values import ConfigError

PLANNED_SHARE = 100 / 312  # of the peak: 100 model TFLOP/s on an A100, which BigScience planned with (unverified)
SAFETY = 4500 / 4838.4  # of its PF-days that it planned to use (unverified)
NEED = (300e9, 400e9)  # tokens that it wanted at least, for languages of few resources (published: its blog)
LEAST_SIZE = 20e9  # parameters below which 20 tokens for each are taken instead, and no pipeline is needed: assumed
HISTORIES = 40  # simulated; their mean and 10th to 90th percentile are shown
MOST_FAILURES = 20_000  # in all histories together: of large clusters fewer are simulated, to answer in a second
STUDY_SIZE, STUDY_SEEDS, STUDY_SHARE = "1b3", 2, 0.1  # ablations: size, seeds at least, share of the budget (assumed)
MOST_SEEDS = 8  # more are not considered; with so many the items of the tasks decide
# Effects in points of the mean of 27 tasks (tables 2 to 4 of the paper: unverified) say which study is worth its cost
# first: one whose expected effect can be seen.
EFFECTS = {"position": 2.0, "embedding_norm": 1.2, "corpus": 1.1, "activation": 0.16}
TASK_ERROR = 0.41  # standard error of the mean of 27 tasks, computed from published results of each task
SEED_SD = 0.27  # of the same mean from checkpoint to checkpoint; stands for that between seeds (assumed)


@dataclass(frozen=True)
class Timeline:
    """Mean shares of the time by use (training, saving, waiting ...), and the number of failures."""

    shares: dict[str, float]
    interval: float  # seconds between saves
    low: float  # of the trained share, 10th percentile of the histories
    high: float
    histories: int  # that were simulated


def timeline(machines: Machines, spare: int) -> Timeline:
    """The use of the time by a job on all working nodes, from simulations with BLOOM's failure rate (published)."""
    working = machines.nodes - spare
    cluster = Cluster(nodes=working, spares=spare, node_mtbf=NODE_MTBF["BLOOM"], **GUESS)
    every = max(save_interval(cluster.stall, cluster.mtbf), 2 * cluster.write)
    histories = max(4, min(HISTORIES, int(MOST_FAILURES / (machines.seconds / cluster.mtbf))))
    runs = [simulate(cluster, machines.seconds, every, seed) for seed in range(histories)]
    trained = sorted(run["trained"] for run in runs)
    shares = {key: sum(run[key] for run in runs) / histories for key in runs[0]}
    return Timeline(shares, every, trained[histories // 10], trained[-histories // 10 - 1], histories)


@dataclass(frozen=True)
class Optimum:
    """The parameters and tokens of least loss by one law. low, high: the range of parameters that the rounding of its
    published constants allows."""

    law: published_laws.PublishedLaw
    parameters: float
    tokens: float
    low: float
    high: float


@dataclass(frozen=True)
class Decision:
    """The result of `decide`; decision_report.py makes the document of it."""

    budget: Budget
    machines: Machines
    compute: float  # FLOPs that are planned with
    optima: list[Optimum]
    tokens: tuple[float, float]
    tokens_why: str
    sizes: tuple[float, float]
    candidates: list[shapes.Candidate]
    reason: str  # why there are no shapes; ""
    goodput: Timeline
    without_spares: Timeline
    studies: list[dict[str, Any]]
    study_basis: str

    @property
    def chosen(self) -> shapes.Candidate | None:
        """The fastest candidate to which no rule objects."""
        return next((candidate for candidate in self.candidates if not candidate.rejected), None)

    def tokens_in_time(self, candidate: shapes.Candidate) -> tuple[float, float, float]:
        """The tokens that the candidate trains in the whole time at its predicted speed and with the simulated
        failures, and their lower and upper end."""
        step = candidate.step
        token_seconds = candidate.layout.batch * shapes.SEQ * self.machines.seconds
        return (
            token_seconds / step.seconds * self.goodput.shares["trained"],
            token_seconds / step.high * self.goodput.low,
            token_seconds / step.low * self.goodput.high,
        )


def decide(budget: Budget, tokens: tuple[float, float] | None = None) -> Decision:
    """Decide what to train with a budget.

    Args:
        budget: a cluster for a time.
        tokens: the range of tokens that the model must be trained on; None: BigScience's.

    Raises:
        ConfigError: the budget is not a cluster for a time.
    """
    machines = budget.cluster
    if machines is None:
        raise ConfigError(
            f"BUDGET={budget.text!r} says how much, not how fast: what to train needs machines for a time, "
            "e.g. '18 weeks, 52x8 A100-80, 4 spare'"
        )
    compute = machines.flops(PLANNED_SHARE * machines.gpu.peak) * SAFETY
    optima = [Optimum(law, *law.optimum(compute), *law.rounding(compute)) for law in published_laws.LAWS]
    why = "asked for: NEED"
    if tokens is None:
        tokens, why = NEED, "what BigScience needed for languages with little text: published"
        if compute / (6 * tokens[0]) < LEAST_SIZE:
            optimum = published_laws.fixed_ratio(compute)[1]
            tokens, why = (optimum / math.sqrt(2), optimum * math.sqrt(2)), "around 20 a parameter: secondary"
    sizes = (compute / (6 * tokens[1]), compute / (6 * tokens[0]))
    candidates: list[shapes.Candidate] = []
    reason = ""
    if sizes[1] < LEAST_SIZE:
        reason = f"models below {LEAST_SIZE / 1e9:g}B parameters need no pipeline, and the rules are for those that do"
    else:
        try:
            candidates = shapes.candidates(*sizes, machines.gpu, machines.working)
        except ConfigError as error:
            reason = str(error)
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
        timeline(machines, machines.spare),
        timeline(machines, 0),
        *first_studies(machines),
    )


def first_studies(machines: Machines) -> tuple[list[dict[str, Any]], str]:
    """The studies of ablations/studies at STUDY_SIZE, with one node for each run; and the basis of their hours.

    Each has its number of runs, GPU-hours, the least difference that it detects, and, where an effect was published,
    that effect and the seeds that are needed to detect it. Studies that can detect their effect come first, the
    cheapest of them at the top; those for which MOST_SEEDS would not be enough come last.
    """
    gpu = machines.gpu
    precision = "bf16" if gpu.bf16 else "fp16"
    run = resolve([("size", STUDY_SIZE), ("train.precision", precision)])
    layouts, _ = search([run], gpu, machines.per_node, site_speed.read(gpu))
    usable = [candidate for candidate in layouts if not candidate.layout.recompute]
    hours, basis = math.inf, f"{STUDY_SIZE} does not fit on {machines.per_node} {gpu.name}"
    if usable:
        step = usable[0].steps[0]
        hours = run.tokens / (run.train.batch * run.model.seq) * step.seconds / HOUR * machines.per_node
        basis = step.basis
    result: list[dict[str, Any]] = []
    for name in study_names():
        arms = 1 + len(read_study(name).arms)
        if arms < 2:
            continue
        effect = EFFECTS.get(name)
        seeds = seeds_needed(effect, arms) if effect else None
        runs = arms * (seeds or STUDY_SEEDS)
        least = least_detectable(arms, seeds or STUDY_SEEDS)
        result.append(
            {"study": name, "arms": arms, "seeds": seeds or STUDY_SEEDS, "runs": runs, "gpu_hours": runs * hours}
            | {"least": least, "effect": effect, "sees": seeds is not None}
        )
    result.sort(key=lambda entry: (not entry["sees"], entry["effect"] is not None, entry["gpu_hours"]))
    spent = 0.0
    for entry in result:
        spent += entry["gpu_hours"]
        entry["within"] = spent <= STUDY_SHARE * machines.gpu_hours
    return result, basis


@functools.cache
def least_detectable(arms: int, seeds: int) -> float:
    """The least difference, in points, that a study with so many arms and seeds detects."""
    return power.detectable(SEED_SD, TASK_ERROR, arms, seeds)


def seeds_needed(effect: float, arms: int) -> int | None:
    """The number of seeds with which a study detects such an effect; None where MOST_SEEDS are not enough."""
    counts = range(STUDY_SEEDS, MOST_SEEDS + 1)
    if least_detectable(arms, MOST_SEEDS) > effect:
        return None
    # more seeds see smaller effects, so that the first that are enough can be found by halving
    return counts[bisect.bisect_left(counts, -effect, key=lambda seeds: -least_detectable(arms, seeds))]


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
        "goodput": decision.goodput.shares,
        "studies": [
            {k: (None if isinstance(v, float) and not math.isfinite(v) else v) for k, v in entry.items()}
            for entry in decision.studies
        ],
    }
