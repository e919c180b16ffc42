"""A step as a GPU takes it, on a CPU: what launch/bf16.py does with gradients, against DeepSpeed's own way; and losses
that are read a step late."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from ablations.config import ConfigError, Run, resolve
from ablations.rundir import checkpoints
from launch import deepspeed_setup, engine, manifest, preflight, run_model
from launch import train as training
from launch.bf16 import install_gpu_update
from launch.step import PendingStep, Step
from model.count import count_parameters
from model.memory import estimate_memory, gradient_bytes
from tests.test_bench import TINY
from tests.test_parallel import on
from tests.tiny_run import in_process, study

SHAPE = {
    "size": "nano",
    "model.layers": 2,
    "model.hidden": 32,
    "model.heads": 2,
    "model.seq": 32,
    "model.vocab": 512,
    "train.batch": 8,
    "train.lr": 1e-2,
    "train.precision": "bf16",
}


def live(run: Run, world: int, ours: bool) -> engine.Engine:
    """An engine whose bf16 optimizer is DeepSpeed's own, or as on a GPU."""
    deepspeed_setup.initialise_process(run)
    honest = deepspeed_setup.deepspeed_config
    with pytest.MonkeyPatch.context() as patch:
        # otherwise it rounds each rank's sums to bf16 before it adds them
        patch.setattr(engine, "deepspeed_config", lambda *args: honest(*args) | {"communication_data_type": "fp32"})
        patch.setattr(engine, "free_fp32_gradients_between_steps", lambda optimizer: None)
        built = engine.build_engine(run_model.build_model(run), run, world)
    if ours:
        install_gpu_update(built.ds)
    return built


def steps(folder: Path, run: Run, ours: bool, spoilt: int | None = None) -> None:
    """Five steps of this rank; (loss, norm), and all that its optimizer keeps after each."""
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    built = live(run, world, ours)
    share = run.train.batch // world
    readings, states = [], []
    for step in range(5):
        rows = torch.randint(512, (run.train.batch, 33), generator=torch.Generator().manual_seed(step))
        if step == spoilt:
            with torch.no_grad():
                built.ds.optimizer.bf16_groups[1][0][0] = math.nan  # until the weights are written anew
        batch = built.model.objective.batch(rows[rank * share : (rank + 1) * share])
        readings.append(built.step(batch, run.train.lr)[:2])
        states.append([piece.data.clone() for piece in built.fragments()])
        adam_steps = {float(adam["step"]) for adam in built.ds.optimizer.state.values() if adam}
        states[-1].append(torch.tensor(sorted(adam_steps)))
    torch.save((readings, states), folder / f"{ours}{rank}")


def compared(folder: Path, run: Run, ranks: int) -> None:
    """The first step must be the same but for the order of sums; from then on bf16 weights may be rounded otherwise."""
    for ours in (True, False):
        if ranks == 1:
            steps(folder, run, ours)
        else:
            on(ranks, steps, folder, run, ours)
    for rank in range(ranks):
        (read, states), (expected, those) = (torch.load(folder / f"{ours}{rank}") for ours in (True, False))
        assert read[0] == pytest.approx(expected[0], rel=1e-5)
        assert read == [pytest.approx(e, rel=0.02) for e in expected]
        for mine, theirs in zip(states[0], those[0], strict=True):
            assert (mine - theirs).norm() <= 1e-5 * theirs.norm()


@pytest.mark.parametrize(("micro", "clip"), [(8, 0.05), (2, 1e9)], ids=["clipped", "not clipped"])
def test_one_rank_updates_as_deepspeed_does(micro: int, clip: float, tmp_path: Path) -> None:
    run = resolve((SHAPE | {"layout.micro_batch": micro, "train.clip": clip}).items())
    compared(tmp_path, run, 1)


def test_two_ranks_do_with_sums_in_fp32(tmp_path: Path) -> None:
    run = resolve((SHAPE | {"layout.micro_batch": 2, "layout.processes": 2, "train.clip": 0.05}).items())
    compared(tmp_path, run, 2)


def test_an_update_that_is_no_number_is_left_out_and_said(tmp_path: Path) -> None:
    run = resolve((SHAPE | {"layout.micro_batch": 4}).items())
    steps(tmp_path, run, True, spoilt=2)
    readings, states = torch.load(tmp_path / "True0")
    assert [math.isfinite(norm) for _, norm in readings] == [True, True, False, True, True]
    assert readings[2][1] == math.inf and math.isnan(readings[2][0])
    assert all(torch.equal(a, b) for a, b in zip(states[1], states[2], strict=True))  # weights, moments, step count
    assert not any(torch.equal(a, b) for a, b in zip(states[2][:3], states[3][:3], strict=True))
    assert all(state.isfinite().all() for states_ in states for state in states_)


# ------------------------------------------------------------------------------------------------ read a step late


def run(corpus: str, store: Path, folder: Path, change: dict[str, Any], patch: Any, late: bool) -> list[Any]:
    """What a run whose steps are read late, or at once, leaves behind: why it stopped, its checkpoints' steps, its
    rollbacks, its weights and losses."""
    patch.setattr(training, "reads_loss_a_step_late", lambda engine, run: late)
    folder = folder / f"late {late}"
    folder.mkdir()
    cell = dataclasses.replace(study(corpus, folder, change).cells[0], dir=folder)
    why, left = "", None
    try:
        left = in_process(cell, store)
    except manifest.Diverged as error:
        why = str(error)
    saved = [int(path.name.removeprefix("step_")) for path in checkpoints(folder / "checkpoints")]
    return [why, saved, json.loads((folder / "run.json").read_text())["rollbacks"], left]


@pytest.mark.parametrize("every", [1, 4])
def test_losses_that_are_read_late_are_the_same(
    every: int, corpus: str, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change = {"layout.log_every": every, "layout.save_every": 5, "train.precision": "bf16"}
    at_once, late = (run(corpus, store, tmp_path, change, monkeypatch, late) for late in (False, True))
    assert at_once == late and at_once[3] is not None


@pytest.mark.parametrize("bad", [3, 5, 6])
@pytest.mark.parametrize("rollbacks", [0, 1])
def test_a_loss_that_is_no_number_is_found_late_and_never_saved(
    rollbacks: int, bad: int, corpus: str, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At every other step a checkpoint is due: after step 3 and 5 the bad loss is read when the next step, which is
    followed by one, is under way."""
    read, readings = PendingStep.read, []

    def spoilt(self: PendingStep) -> Step:
        readings.append(step := read(self))
        return step._replace(loss=math.nan) if len(readings) == bad else step

    monkeypatch.setattr(PendingStep, "read", spoilt)
    change = {"layout.log_every": 100, "layout.save_every": 2, "layout.keep": 99}
    change |= {"train.rollbacks": 1, "train.skip": 1} if rollbacks else {}
    left = []
    for late in (False, True):
        readings.clear()
        left.append(run(corpus, store, tmp_path, change, monkeypatch, late))
    (why, _, went_back, trained), (late_why, saved, late_went_back, late_trained) = left
    assert (why, went_back, trained) == (late_why, late_went_back, late_trained)
    if rollbacks:
        assert not why and len(went_back) == 1 and trained is not None
    else:
        assert f"step {bad}: the loss is nan" in why and max(saved, default=0) < bad


# ------------------------------------------------------------------------------------------------ CUDA graphs


def test_cuda_graphs_are_asked_for_where_no_gradient_outlives_its_micro_batch() -> None:
    """On a CPU the mode compiles without them; the losses are those of the eager model. Its kernels are those of
    tests/test_bench.py, which are compiled once for both."""
    losses = []
    for compiled in ("reduce-overhead", "never"):
        torch._dynamo.reset()
        change = {"model.pos": "rotary", "model.block": "parallel", "train.precision": "bf16", "train.batch": 4}
        run = resolve([*TINY, *change.items(), ("layout.compile", compiled)])
        built = live(run, 1, True)
        rows = torch.randint(100, (4, 17), generator=torch.Generator().manual_seed(1))
        losses.append([built.step(built.model.objective.batch(rows), 1e-2).loss for _ in range(3)])
        assert built.execution["compiled"] == compiled
        assert all(p.grad is None for p in built.model.parameters())
    assert losses[0] == pytest.approx(losses[1], rel=5e-3)


@pytest.mark.parametrize("change", [{"train.precision": "fp32"}, {"layout.zero": 2}], ids=str)
def test_where_one_does_they_are_refused(change: dict[str, Any]) -> None:
    run = resolve((SHAPE | {"layout.compile": "reduce-overhead"} | change).items())
    deepspeed_setup.initialise_process(run)
    with pytest.raises(ConfigError, match="reduce-overhead needs train.precision=bf16"):
        engine.build_engine(run_model.build_model(run), run, 1)


# ------------------------------------------------------------------------------------------------ the micro-batch


@pytest.mark.parametrize("gigabytes", [40, 80, 141])
def test_a_micro_batch_that_is_left_to_the_card_is_the_largest_that_fits(
    gigabytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(preflight, "device_memory", lambda: int(gigabytes * 1e9))
    asked = resolve([("size", "1b3"), ("train.precision", "bf16"), ("layout.micro_batch", 4)])
    assert preflight.choose_micro_batch(asked, 8) == asked
    left = resolve([("size", "1b3"), ("train.precision", "bf16"), ("layout.micro_batch", 0)])
    micro = preflight.choose_micro_batch(left, 8).layout.micro_batch

    def fits(rows: int) -> bool:
        return estimate_memory(left.model, rows, "bf16", 1, 8, 64 // rows, True)["total"] <= 0.95 * gigabytes * 1e9

    assert fits(micro) and 64 % micro == 0 and (micro == 64 or not fits(2 * micro))
    assert left.fingerprint == asked.fingerprint


def test_on_a_cpu_and_in_a_small_batch_it_is_no_more_than_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    left = resolve([("size", "nano"), ("layout.micro_batch", 0), ("train.batch", 6)])
    assert preflight.choose_micro_batch(left, 1).layout.micro_batch == 6
    monkeypatch.setattr(preflight, "device_memory", lambda: 1000)
    with pytest.raises(ConfigError, match="no micro-batch does"):
        preflight.check_fits_memory(preflight.choose_micro_batch(left, 1), 1)


@pytest.mark.parametrize("accumulate", [1, 16])
def test_a_gpu_keeps_no_gradients_between_micro_batches_and_reduces_in_place(accumulate: int) -> None:
    """Beside the fp32 sums, bf16 gradients of one backward pass; DeepSpeed's own way needs copies of all."""
    model = resolve([("size", "1b3")]).model
    sums, own = 4 * count_parameters(model), 2 * count_parameters(model)
    assert gradient_bytes(model, "bf16", 1, 8, accumulate, True) == (sums, sums, sums + own, sums, sums)
    assert max(gradient_bytes(model, "bf16", 1, 8, accumulate, True, tp=2)) * 2 > sums + own
