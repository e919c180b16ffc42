"""Stop, batch size and learning rate against the published runs, and presets through the real engine."""

import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from ablations import budget
from ablations.build_study import build_study
from ablations.config import FOLDER, ConfigError, resolve, setting_needed_for_effect, sizes_and_presets
from ablations.strict_yaml import read_yaml
from ablations.values import flatten

ROOT = Path(__file__).parents[1]
PRESETS = sorted(path.stem for path in (FOLDER / "presets").glob("*.yaml"))
BIGSCIENCE = resolve([("size", "bigscience-1b3")])


# ------------------------------------------------------------------------------------------------ the ramp


def megatron(first: int, more: int, last: int, ramp: int, steps: int) -> list[tuple[int, int]]:
    """(samples seen before, batch size) of each step, as Megatron's RampupBatchsizeNumMicroBatches goes along."""
    found, consumed = [], 0
    each = ramp / ((last - first) // more)
    for _ in range(steps):
        size = last if consumed > ramp else min(last, first + int(consumed / each) * more)
        found.append((consumed, size))
        consumed += size
    return found


@pytest.mark.parametrize(
    "ramp, batch",
    [((32, 32, 2_000_000), 512), ((16, 16, 10_000), 64), ((1, 1, 7), 4), ((2, 3, 1), 11), ((192, 16, 97_656), 2048)],
)
def test_the_ramp_is_megatrons(ramp: tuple[int, int, int], batch: int) -> None:
    train = dataclasses.replace(BIGSCIENCE.train, ramp=list(ramp), batch=batch)
    sizes = dataclasses.replace(BIGSCIENCE, train=train).batch_sizes
    expected = megatron(*ramp[:2], batch, ramp[2], 15_000)
    got = [sizes.samples(step) for step in range(0, 15_000, 7 if ramp[2] > 100 else 1)]
    assert [(r.start, len(r)) for r in got] == expected[:: 7 if ramp[2] > 100 else 1]
    assert {len(r) for r in got} <= set(sizes.sizes)
    for count in (1, 2, 6, 7, 1000, 54_321, 2_000_320):
        done = sizes.whole_steps(count)
        assert sizes.samples(done).start <= count < sizes.samples(done).stop


def test_bigsciences_ramp_and_budget() -> None:
    stages = BIGSCIENCE.batch_sizes.stages
    assert len(stages) == 16 and stages[-1] == (13_828, 2_000_320, 512)
    assert BIGSCIENCE.steps == 117_000 and BIGSCIENCE.tokens == 112_280_338_432
    assert BIGSCIENCE.batch_sizes.whole_steps(73_242_187) == 152_972
    none = budget.BatchSizes((512,))
    assert none.samples(10) == range(5120, 5632) and none.whole_steps(5119) == 9


@pytest.mark.parametrize(
    "change, says",
    [
        ({"train.ramp": "2,2"}, "needs three numbers"),
        ({"train.ramp": "0,2,8"}, "must be at least 1"),
        ({"train.ramp": "3,2,100", "layout.micro_batch": 1}, "no whole number of increments of 2 above 3"),
        ({"train.ramp": "8,8,100"}, "no whole number of increments"),
        ({"train.ramp": "a,2,3"}, "whole numbers"),
        ({"train.ramp": "3,1,100", "layout.processes": 2}, "train.ramp: a batch of 3 is no multiple"),
        ({"train.ramp": "2,2,100", "layout.micro_batch": 2, "layout.processes": 4}, "train.ramp: a batch of 2"),
        ({"train.decay_tokens": -1}, "train.decay_tokens"),
        ({"train.loss_scale_power": 40}, "between 0 and 32"),
        ({"train.budget": "999999999d"}, "at most 366d of a wall clock"),
        ({"train.budget": "366.5d"}, "at most 366d of a wall clock"),
    ],
)
def test_what_does_not_fit_is_refused_before_any_work(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        resolve([("size", "nano"), *change.items()])


# ------------------------------------------------------------------------------------------------ the learning rate


def test_bigsciences_learning_rate() -> None:
    """As Megatron's AnnealingLR has it, in samples; and flat at a twentieth of the peak once it has decayed."""
    train, horizon, warmup, peak, least = BIGSCIENCE.train, 73_242_187, 183_105, 2e-4, 1e-5
    for samples in (512, 100_000, 183_105, 200_000, 54_824_384, 73_000_000, 73_242_187, 100_000_000):
        ratio = min(1.0, (samples - warmup) / (horizon - warmup))
        cosine = least + (peak - least) * (math.cos(math.pi * ratio) + 1) / 2
        expected = peak * samples / warmup if samples <= warmup else cosine
        assert budget.learning_rate(train, samples * 2048 / BIGSCIENCE.horizon) == pytest.approx(expected, rel=1e-5)
    last = budget.learning_rate(train, BIGSCIENCE.tokens / BIGSCIENCE.horizon)
    assert last == pytest.approx(3.83e-5, rel=1e-3)  # in the middle of the schedule, not at its end


def test_the_horizon_is_the_budget_unless_it_is_given() -> None:
    plain = resolve([("size", "nano")])
    assert plain.horizon == plain.tokens
    assert budget.learning_rate(plain.train, 1.0) == pytest.approx(plain.train.lr * plain.train.min_lr)
    assert resolve([("size", "nano"), ("train.decay_tokens", "2M")]).horizon == 2_000_000


# ------------------------------------------------------------------------------------------------ presets


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_sets_all_that_decides_what_is_trained(name: str) -> None:
    """So that a change of the baseline is not a silent change of the preset."""
    given = sizes_and_presets()[name]["set"].keys()
    flat = flatten(read_yaml(FOLDER / "baseline.yaml"))
    free = {"model.rotary_base", "train.divergence", "train.spike", "train.skip", "train.rollbacks"}
    free |= {"train.loss_scale_" + word for word in ("power", "window", "hysteresis", "min")}
    free |= {k for k in flat if setting_needed_for_effect(k, resolve([("size", name)]).flat())}
    wanted = {k for k in flat if k.startswith(("model.", "train."))} - free
    assert wanted <= given, wanted - given
    if name.startswith("bigscience"):
        assert "train.loss_scale_power" in given


def test_the_published_parameter_count() -> None:
    from model.count import count_parameters

    assert count_parameters(BIGSCIENCE.model) == 1_315_819_520


def test_diff_prints_what_differs_and_no_more() -> None:
    command = [sys.executable, "-m", "ablations", "diff", "A=bigscience-1b3", "B=modern-1b3"]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    rows = {line.split()[0]: line.split() for line in printed.splitlines()}
    a, b = BIGSCIENCE.flat(), resolve([("size", "modern-1b3")]).flat()
    assert {k for k in rows if k in a} == {k for k in a if a[k] != b[k]}
    assert rows["train.beta2"] == ["train.beta2", "0.999", "0.95"]
    assert rows["parameters"] == ["parameters", "1,315,819,520", "1,310,296,064"]


TINY = {
    "model.layers": 2,
    "model.hidden": 32,
    "model.heads": 2,
    "model.seq": 32,
    "model.vocab": 512,
    "layout.micro_batch": 1,
    "layout.log_every": 1,
    "layout.wandb": "disabled",
}


def shrunk(preset: str) -> dict[str, Any]:
    """The recipe at a tiny shape, with batches of 4 for 512; what counts tokens or samples is as much shorter."""
    train = resolve([("size", preset)]).train
    tokens = 10 * 4 * 32
    scale = tokens / train.tokens
    return TINY | {
        "train.batch": 4,
        "train.tokens": tokens,
        "train.decay_tokens": int(train.decay_tokens * scale),
        "train.ramp": [1, 1, 6] if train.ramp else [],
        "train.ramp_share": 0.0,
        "train.budget": "tokens",
        "data.compress": 0.0,  # so small a vocabulary has many tokens per character
        "train.lr": 1e-3,
    }


@pytest.fixture
def out(store: Path, tmp_path: Path) -> Path:
    """Where runs go; prepared data are shared."""
    (tmp_path / "data").symlink_to(store / "data")
    return tmp_path


def trained(setting: dict[str, Any], corpus: str, folder: Path) -> tuple[Any, list[dict[str, Any]], dict[str, Any]]:
    from launch.train import train

    names = {"data.corpus": corpus, "data.tokenizer": corpus, "eval.corpora": [corpus]}
    cell = build_study("t", "?", "?", list((setting | names).items()), [("train.beta1", 0.8)], [1], folder).cells[0]
    cell.dir.mkdir(parents=True)
    train(cell, folder)
    rows = [json.loads(line) for line in (cell.dir / "metrics.jsonl").read_text().splitlines()]
    return cell, rows, json.loads((cell.dir / "done").read_text())


@pytest.mark.parametrize("preset", PRESETS)
def test_a_shrunk_preset_trains_through_the_engine(preset: str, corpus: str, out: Path) -> None:
    cell, rows, done = trained({"size": preset} | shrunk(preset), corpus, out)
    assert [r["tokens"] for r in rows] == [cell.run.tokens_after(r["step"]) for r in rows]
    assert done["tokens"] == cell.run.tokens and all(math.isfinite(r["loss"]) for r in rows)
    assert rows[-1]["lr"] == budget.learning_rate(cell.run.train, cell.run.tokens / cell.run.horizon)
    effective = json.loads((cell.dir / "run.json").read_text())["effective"]
    assert effective["train.precision"] == cell.run.train.precision
    if preset == "bigscience-1b3":
        sizes = [len(cell.run.samples(step)) for step in range(cell.run.steps)]
        assert sizes[:8] == [1, 1, 2, 3, 4, 4, 4, 4]
        assert rows[-1]["lr"] > 1.5 * 0.05 * 1e-3  # the cosine has not ended
        assert {r["loss_scale"] for r in rows} == {2.0**12} and effective["train.loss_scale_power"] == 12


def test_a_ramp_trains_on_each_sample_once_and_takes_the_mean_of_each_batch(corpus: str, out: Path) -> None:
    """Against a bare torch loop: batches of 1, 2, 3 and 4 sequences, cut into micro-batches of one."""
    from data.batches import Batches
    from model.gpt import GPT

    setting = TINY | {
        "size": "nano",
        "train.batch": 4,
        "train.ramp": [1, 1, 6],
        "train.tokens": 20 * 32,
        "train.precision": "fp32",
        "train.clip": 1e9,
        "train.warmup": 0.0,
    }
    cell, rows, _ = trained(setting, corpus, out)
    run = cell.run
    data = json.loads((cell.dir / "run.json").read_text())["data"]
    batches = Batches([(s["prefix"], s["weight"]) for s in data["train"]], 32, 1)
    model, seen = GPT(run.model, 1), 0
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
        betas=(0.9, 0.95),
        eps=1e-8,
    )
    for row, size in zip(rows, [1, 1, 2, 3, 4, 4, 4], strict=True):
        for group in optimizer.param_groups:
            group["lr"] = row["lr"]
        optimizer.zero_grad()
        loss = model.loss(model.objective.batch(batches.batch(range(seen, seen + size))))
        loss.backward()
        norm = math.sqrt(sum(float(p.grad.square().sum()) for p in model.parameters() if p.grad is not None))
        optimizer.step()
        seen += size
        assert row["tokens"] == seen * 32
        assert row["loss"] == pytest.approx(loss.item(), rel=1e-5)
        assert row["grad_norm"] == pytest.approx(norm, rel=1e-4)


# ------------------------------------------------------------------------------------------------ fp16


def test_an_overflow_is_skipped_counted_and_uses_up_its_batch(corpus: str, out: Path) -> None:
    setting = TINY | {
        "size": "nano",
        "train.precision": "fp16",
        "train.batch": 2,
        "train.tokens": 24 * 2 * 32,
        "train.loss_scale_power": 32,
        "train.loss_scale_hysteresis": 1,
    }
    _, rows, done = trained(setting, corpus, out)
    skipped = [r["grad_norm"] is None for r in rows]
    assert skipped[0] and not skipped[-1]
    assert [r["overflows"] for r in rows] == [sum(skipped[: i + 1]) for i in range(24)]
    assert done["overflows"] == sum(skipped) and done["loss_scale"] == 2.0 ** (32 - sum(skipped))
    first = skipped.index(False)
    assert all(s for s in skipped[:first])
    assert [r["tokens"] for r in rows] == [64 * (i + 1) for i in range(24)]


def test_an_overflow_at_the_least_scale_ends_the_run(corpus: str, out: Path) -> None:
    setting = TINY | {
        "size": "nano",
        "train.precision": "fp16",
        "train.batch": 2,
        "train.tokens": 24 * 2 * 32,
        "train.loss_scale_power": 32,
        "train.loss_scale_min": 2**31,
    }
    with pytest.raises(Exception, match="overflow in fp16 even at train.loss_scale_min=2147483648"):
        trained(setting, corpus, out)


def test_a_resumed_fp16_engine_goes_on_as_if_it_had_not_stopped() -> None:
    """The loss scale, its hysteresis and its window included."""
    from launch import deepspeed_setup, engine
    from model.gpt import GPT

    small = {
        "size": "nano",
        **TINY,
        "train.batch": 2,
        "train.precision": "fp16",
        "train.loss_scale_power": 26,
        "train.loss_scale_window": 3,
    }
    run = resolve(small.items())
    deepspeed_setup.initialise_process(run)
    rows = torch.randint(512, (16, 2, 33), generator=torch.Generator().manual_seed(0))

    def fresh() -> Any:
        return engine.build_engine(GPT(run.model, 1), run, 1)

    calm = fresh()
    states = []
    for batch in rows:
        states.append(calm.loss_scaling_state)
        calm.step(
            calm.model.objective.batch(batch), 0.0
        )  # the weights stay, so that the scale alone tells where it goes on
    other = fresh()
    other.loss_scaling_state = states[9]
    for i in range(9, 16):
        assert other.loss_scaling_state == states[i]
        other.step(other.model.objective.batch(rows[i]), 0.0)
    assert states[9]["overflows"] > 0 and other.loss_scaling_state == calm.loss_scaling_state
