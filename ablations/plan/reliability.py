"""Checkpoint intervals and the cost of failures: by formula where there is one, else by simulation.

python -m ablations.plan.reliability        # prints the cost for the clusters of docs/reliability.md
"""

import heapq
import math
import random
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ablations.rundir import read_checkpoint
from ablations.safe_files import Damaged


def feasible_save_interval(stall: float, write: float, mtbf: float) -> float:
    """The training time between two checkpoints in seconds: `optimal_save_interval`, but at least twice the duration of
    a save, so that a save is complete before the next one begins.

    Args:
        stall: the seconds for which training stops during a save.
        write: the seconds from the beginning of a save until it is complete.
        mtbf: the mean seconds between two failures of the whole job.
    """
    return max(optimal_save_interval(stall, mtbf), 2 * write)


def optimal_save_interval(stall: float, mtbf: float) -> float:
    """The training time between two checkpoints, in seconds, that loses the least time to saves and failures. It is
    Daly's formula (2006, eq. 37), whose first term is Young's formula (1974).

    Args:
        stall: the seconds for which training stops during a save.
        mtbf: the mean seconds between two failures of the whole job (a node's, divided by the number of nodes).
    """
    if stall <= 0:
        return 0.0
    if stall >= 2 * mtbf:
        return mtbf
    x = stall / (2 * mtbf)
    return math.sqrt(2 * stall * mtbf) * (1 + math.sqrt(x) / 3 + x / 9) - stall


def describe_saves(checkpoints: Iterable[Path], mtbf: float, nodes: int) -> str:
    """A line of the plan on how often a run will save checkpoints, from the measured duration of an earlier save.

    Args:
        checkpoints: checkpoint folders of earlier runs, of which the newest undamaged one counts; where there is none,
            the line says that the first save will measure the duration.
        mtbf: the mean hours between two failures of a node.
        nodes: the number of nodes of the run.
    """
    save = None
    for folder in sorted(checkpoints, key=lambda folder: folder.stat().st_mtime, reverse=True):
        with suppress(Damaged):
            save = read_checkpoint(folder)
            break
    if save is None:
        return "checkpoints: the first after 30 s, which measures what a save costs; then at Daly's interval for it"
    seconds = feasible_save_interval(save["stall"], save["seconds"], mtbf * 3600 / nodes)
    basis = f"a stall of {save['stall']:.3g} s (measured) and {mtbf:g} h between failures of a node"
    return f"checkpoints: every {seconds:.0f} s, at Daly's interval for {basis}"


@dataclass(frozen=True)
class UnreliableCluster:
    """A cluster with failures, for the simulation of a long job. All times are in seconds.

    `nodes` are in use, `spares` stand by. Failures of a node are `node_mtbf` apart on average (exponentially
    distributed). `broken` is the share of failures that make the node unusable for the time `repair`; the others only
    end the job. `detect` is the time until a failure is noticed, and `restart` the duration of a restart. A save stops
    training for the time `stall`, and takes the time `write` in all.
    """

    nodes: int
    spares: int
    node_mtbf: float
    broken: float
    repair: float
    detect: float
    restart: float
    stall: float
    write: float

    @property
    def mtbf(self) -> float:
        """The mean seconds between two failures of the whole job."""
        return self.node_mtbf / self.nodes

    @property
    def save_interval(self) -> float:
        return feasible_save_interval(self.stall, self.write, self.mtbf)


def simulate_job(cluster: UnreliableCluster, seconds: float, interval: float, seed: int) -> dict[str, float]:
    """Simulate one history of a training job on a cluster with failures. After each failure the job restarts from the
    last complete checkpoint.

    Args:
        cluster: the cluster.
        seconds: the simulated time.
        interval: the training time between two saves, in seconds.
        seed: the seed of the random failures.

    Returns:
        {use: share of the time} for "trained" (work that was kept), "saving", "redone" (work since the last complete
        save that a failure lost), "detecting", "restarting" and "waiting" (for a node to be repaired); and "failures":
        their number.
    """
    rng = random.Random(seed)
    spent = dict.fromkeys(("trained", "saving", "redone", "detecting", "restarting", "waiting"), 0.0)
    now, failures = 0.0, 0
    intact = cluster.nodes + cluster.spares  # nodes
    repairs: list[float] = []  # a heap of the times at which broken nodes will be repaired

    def spend(use: str, duration: float) -> None:
        """Add to a use a duration, or the rest of the simulated time if that is shorter."""
        nonlocal now
        duration = max(0.0, min(duration, seconds - now))
        spent[use] += duration
        now += duration

    while now < seconds:
        while repairs and repairs[0] <= now:
            heapq.heappop(repairs)
            intact += 1
        if intact < cluster.nodes:
            spend("waiting", repairs[0] - now)
            continue
        uptime = min(rng.expovariate(1 / cluster.mtbf), seconds - now)  # until the next failure, or the end
        cycle = interval + cluster.stall
        saves = int(uptime // cycle)
        ended = now + uptime >= seconds
        # a save that is incomplete when the job fails is lost
        last_save_lost = saves and uptime - saves * cycle < cluster.write - cluster.stall
        work = uptime - saves * cluster.stall
        trained = work if ended else (saves - 1 if last_save_lost else saves) * interval
        spend("trained", trained)
        spend("redone", work - trained)
        spend("saving", saves * cluster.stall)
        if ended:
            break
        failures += 1
        if rng.random() < cluster.broken:
            intact -= 1
            heapq.heappush(repairs, now + cluster.repair)
        spend("detecting", cluster.detect)
        spend("restarting", cluster.restart)
    return {use: duration / seconds for use, duration in spent.items()} | {"failures": failures}


WEEK = 7 * 86400.0
# BLOOM's 384 A100 in 48 nodes lost one or two GPUs a week (its paper, section 3.4); Llama 3's 16,384 H100, in 2,048
# nodes of 8, had 419 unexpected interruptions in 54 days (its paper, table 5).
NODE_MTBF = {"BLOOM": 48 * WEEK / 1.5, "Llama 3": 2048 * 54 * 86400 / 419}
# Fields of `UnreliableCluster` that are assumed, not published. Repair takes days on a shared cluster. The others are
# cautious guesses: a hang noticed by the watchdog, a start with a warm cache, 20 GB a node to a parallel file system.
ASSUMED = {"broken": 0.5, "repair": 2 * 86400.0, "detect": 300.0, "restart": 300.0, "stall": 1.0, "write": 60.0}
CLUSTERS = [
    ("52 nodes (48 + 4 spares), BLOOM's rate", UnreliableCluster(48, 4, NODE_MTBF["BLOOM"], **ASSUMED)),
    ("52 nodes (52 + 0 spares), BLOOM's rate", UnreliableCluster(52, 0, NODE_MTBF["BLOOM"], **ASSUMED)),
    ("52 nodes (48 + 4 spares), Llama 3's rate", UnreliableCluster(48, 4, NODE_MTBF["Llama 3"], **ASSUMED)),
    ("1,000 nodes + 20 spares, BLOOM's rate", UnreliableCluster(1000, 20, NODE_MTBF["BLOOM"], **ASSUMED)),
    ("1,000 nodes + 20 spares, Llama 3's rate", UnreliableCluster(1000, 20, NODE_MTBF["Llama 3"], **ASSUMED)),
]


def main() -> None:
    histories, weeks = 200, 18
    print(f"{weeks} weeks, mean of {histories} simulated histories, checkpoints at Daly's interval")
    print(f"{'':44} saves every  failures  trained  saving  redone   down  waiting")
    for name, cluster in CLUSTERS:
        runs = [simulate_job(cluster, weeks * WEEK, cluster.save_interval, seed) for seed in range(histories)]
        mean = {use: sum(run[use] for run in runs) / histories for use in runs[0]}
        down, minutes = mean["detecting"] + mean["restarting"], cluster.save_interval / 60
        print(
            f"{name:44}{minutes:8.1f} min{mean['failures']:10.1f}{mean['trained']:9.2%}{mean['saving']:8.2%}"
            f"{mean['redone']:8.2%}{down:7.2%}{mean['waiting']:9.2%}"
        )


if __name__ == "__main__":
    main()
