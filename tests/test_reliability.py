"""Checkpoint intervals and the simulated cluster, against closed forms for exponential failures."""

import math
from pathlib import Path

import pytest

from ablations import rundir
from ablations.plan.reliability import UnreliableCluster, describe_saves, optimal_save_interval, simulate_job


def kept(interval: float, stall: float, mtbf: float) -> float:
    """The share of the time that is kept work: whole cycles survive, and a failure costs the cycle it falls into.

    E[whole cycles before a failure] = 1 / (e^(cycle/M) - 1), each worth `interval`; a life lasts M on average.
    """
    return interval / (mtbf * math.expm1((interval + stall) / mtbf))


@pytest.mark.parametrize(("stall", "mtbf"), [(1.0, 3600.0), (40.0, 7200.0), (300.0, 36000.0)])
def test_no_other_interval_keeps_more(stall: float, mtbf: float) -> None:
    best = max((stall * 1.01**i for i in range(-500, 1000)), key=lambda t: kept(t, stall, mtbf))
    assert optimal_save_interval(stall, mtbf) == pytest.approx(best, rel=0.02)


def test_extremes_of_the_interval() -> None:
    assert optimal_save_interval(0.0, 1000.0) == 0.0  # a save that costs nothing: always
    assert optimal_save_interval(5000.0, 1000.0) == 1000.0  # one that takes longer than the machine lives: Daly's bound
    assert optimal_save_interval(1.0, 1e6) > optimal_save_interval(1.0, 1e4)


def test_the_plan_says_how_often_by_what_a_save_has_cost(tmp_path: Path) -> None:
    assert "measures what a save costs" in describe_saves([], 24.0, 1)

    def checkpoint(name: str, seconds: float) -> Path:
        folder = tmp_path / name / "step_1"
        folder.mkdir(parents=True)
        rundir.write_checkpoint(folder, {"step": 1, "files": {}, "state": {}, "stall": 0.5, "seconds": seconds})
        return folder

    quick = checkpoint("quick", 3.0)
    assert f"every {optimal_save_interval(0.5, 86400):.0f} s" in describe_saves([quick], 24.0, 1)
    assert f"every {optimal_save_interval(0.5, 86400 / 4):.0f} s" in describe_saves([quick], 24.0, 4)
    assert "every 6000 s" in describe_saves([checkpoint("slow", 3000.0)], 24.0, 1)  # never before the last one is whole
    damaged = checkpoint("damaged", 9.0)
    (damaged / rundir.CHECKPOINT).write_text("{")
    assert f"every {optimal_save_interval(0.5, 86400):.0f} s" in describe_saves([damaged, quick], 24.0, 1)


PERFECT = {"broken": 0.0, "repair": 0.0, "detect": 0.0, "restart": 0.0, "write": 0.0}


@pytest.mark.parametrize("interval", [200.0, 1000.0, 5000.0])
def test_the_simulation_keeps_what_the_closed_form_says(interval: float) -> None:
    c = UnreliableCluster(nodes=10, spares=0, node_mtbf=36000.0, stall=20.0, **PERFECT)
    share = sum(simulate_job(c, 3e6, interval, seed)["trained"] for seed in range(10)) / 10
    assert share == pytest.approx(kept(interval, 20.0, 3600.0), rel=0.02)


def test_every_second_is_accounted_for_and_failures_come_at_their_rate() -> None:
    c = UnreliableCluster(
        nodes=20, spares=1, node_mtbf=2e6, broken=0.5, repair=2e5, detect=300, restart=300, stall=5, write=60
    )
    for seed in range(5):
        shares = simulate_job(c, 2e7, 900.0, seed)
        failures = shares.pop("failures")
        assert sum(shares.values()) == pytest.approx(1.0)
        trained = shares["trained"] + shares["saving"] + shares["redone"]
        assert failures == pytest.approx(trained * 2e7 / c.mtbf, rel=0.3)
        assert shares["detecting"] == pytest.approx(failures * 300 / 2e7, rel=0.01)


def test_spares_save_the_waiting_and_a_slow_write_loses_work() -> None:
    base = {"nodes": 50, "node_mtbf": 3e7, "broken": 1.0, "repair": 2e5, "detect": 0.0, "restart": 0.0, "stall": 1.0}
    none, some = (simulate_job(UnreliableCluster(spares=n, write=1.0, **base), 1e8, 1000.0, 1) for n in (0, 5))
    assert none["waiting"] > 0.1 and some["waiting"] < 0.01
    slow = simulate_job(UnreliableCluster(spares=5, write=900.0, **base), 1e8, 1000.0, 1)
    assert slow["redone"] > 1.5 * some["redone"]
