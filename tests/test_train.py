"""Training on a tiny corpus on disk: exact resume, no dead switch, no layout in the result, and stops that say why."""

import dataclasses
import errno
import fcntl
import inspect
import json
import math
import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ablations import rundir
from ablations.budget import learning_rate
from ablations.build_study import build_study
from ablations.config import KEYS, resolve
from ablations.safe_files import Damaged
from ablations.status import state
from ablations.study import Study, from_args
from data.disk import locked, write_whole
from tests.conftest import Launch

ROOT = Path(__file__).parents[1]
TINY = {
    "model.layers": 2,
    "model.hidden": 32,
    "model.heads": 2,
    "model.seq": 32,
    "model.vocab": 512,
    "train.tokens": 24 * 4 * 32,
    "train.batch": 4,
    "train.precision": "fp32",
    "train.lr": 1e-3,
    "layout.micro_batch": 4,
    "layout.log_every": 1,
    "layout.save_every": 8,
    "layout.wandb": "disabled",
}


@pytest.fixture(scope="session")
def corpus(shared: Path) -> str:
    """Docstrings of numpy, as C4 would hold them."""
    import numpy

    path = shared / "numpy" / "docs.jsonl"
    with locked(shared / "numpy.lock"):
        if not path.exists():
            docs = {inspect.getdoc(getattr(numpy, n)) for n in dir(numpy)}
            lines = [json.dumps({"text": d}) + "\n" for d in sorted(d for d in docs if d and len(d) > 300)]
            write_whole(path, "".join(lines))
    return str(path)


@pytest.fixture(scope="session")
def store(shared: Path) -> Path:
    """A folder for runs, with a store of prepared data for all of them: what one test prepares, others find."""
    (shared / "runs" / "data").mkdir(parents=True, exist_ok=True)
    return shared / "runs"


def words(corpus: str, out: Path, **change: Any) -> list[str]:
    setting = " ".join(f"{k}={v}" for k, v in (TINY | change).items())
    return ["POS=alibi", f"DATA={corpus}", "SEEDS=1", f"OUT={out}", f"SET={setting}"]


def study(corpus: str, out: Path, change: dict[str, Any] | None = None) -> Study:
    """One arm beside the baseline; the data store lies in `out`."""
    setting = list((TINY | {"data.corpus": corpus, "data.tokenizer": corpus, "eval.corpora": [corpus]}).items())
    return build_study("t", "?", "?", setting + list((change or {}).items()), [("model.pos", "alibi")], [1], out)


def result(folder: Path) -> tuple[bytes, list[tuple]]:
    """Final weights, and the metrics that do not depend on the clock."""
    rows = [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]
    return (folder / "weights.safetensors").read_bytes(), [
        (r["step"], r["tokens"], r["loss"], r["lr"], r["grad_norm"]) for r in rows
    ]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_kill_9_at_any_moment_and_the_same_command_ends_in_the_same_bits(
    launch: Callable[..., Launch], corpus: str, store: Path, tmp_path: Path, precision: str
) -> None:
    # with dropout, so that random numbers must be resumed as well
    change = {"train.precision": precision, "model.dropout": 0.1, "model.attn_dropout": 0.1}
    calm = words(corpus, tmp_path / "calm", **change)
    (tmp_path / "calm").mkdir()
    (tmp_path / "calm/data").symlink_to(store / "data")
    process = launch(["--cell", "1", *calm], tmp_path / "log")
    assert process.wait() == 0, process.said

    stormy = words(corpus, tmp_path / "stormy", **change)
    (tmp_path / "stormy").mkdir()
    (tmp_path / "stormy/data").symlink_to(store / "data")
    folder = from_args(stormy).cells[1].dir
    rng = random.Random(precision)

    def at_step(n: int) -> Any:
        return lambda: (folder / "metrics.jsonl").exists() and (folder / "metrics.jsonl").read_text().count("\n") >= n

    moments = [
        at_step(rng.randrange(1, 8)),  # before there is a checkpoint
        # inside a save
        lambda: (at8 := folder / "checkpoints/step_8").exists() and not (at8 / "checkpoint.json").exists(),
        at_step(rng.randrange(9, 24)),
        lambda: (folder / "checkpoints/step_24").exists(),  # around the last save, the weights and `done`
    ]
    for moment in moments:
        process = launch(["--cell", "1", *stormy], tmp_path / "log")
        while process.running() and not moment():
            time.sleep(0.0005)
        process.kill()
        assert not (folder / "done").exists() or moment is moments[-1]
    process = launch(["--cell", "1", *stormy], tmp_path / "log")
    assert process.wait() == 0, process.said
    weights, metrics = result(folder)
    calm_weights, calm_metrics = result(from_args(calm).cells[1].dir)
    assert metrics == calm_metrics and len(metrics) == 24
    assert weights == calm_weights
    record = json.loads((folder / "run.json").read_text())
    assert len(record["continued"]) >= 3
    assert all(launch["execution"]["compiled"] == "never" for launch in (record, *record["continued"]))


def in_process(cell: Any, store: Path) -> tuple[bytes, list[tuple]]:
    from launch.train import train

    train(cell, store)
    return result(cell.dir)


# at so low a learning rate the loss is noise, and above the median of the steps before it soon
SPIKES = {"train.lr": 1e-5, "train.spike": 1e-4, "train.rollbacks": 1, "train.skip": 2, "layout.save_every": 2}
CHANGES: dict[str, tuple[Any, dict[str, Any]]] = {  # key -> another value, and what must be set for it to matter
    "seed": (2, {}),
    "model.layers": (1, {}),
    "model.hidden": (64, {}),
    "model.heads": (4, {}),
    "model.seq": (16, {}),
    "model.vocab": (384, {}),
    "model.pos": ("rotary", {}),
    "model.act": ("swiglu", {}),
    "model.norm": ("rmsnorm", {}),
    "model.block": ("parallel", {}),
    "model.qkv_bias": (False, {}),
    "model.linear_bias": (False, {}),
    "model.tied": (False, {}),
    "model.dropout": (0.1, {}),
    "model.attn_dropout": (0.1, {}),
    "model.embnorm": (True, {}),
    "model.objective": ("prefix", {}),
    "model.mask_rate": (0.3, {"model.objective": "mlm"}),
    "model.ffn_width": (96, {}),
    "model.sumnorm": (True, {}),
    "model.final_norm": (False, {}),
    "model.head_transform": ("bert", {}),
    "model.output_bias": (True, {}),
    # divided by 1 and 2 and multiplied back, fp16 is what it was: the third layer's scores are rounded
    "model.qk_scaling": (True, {"train.precision": "fp16", "model.layers": 3}),
    "model.vocab_multiple": (384, {}),
    "model.rotary_base": (100.0, {"model.pos": "rotary"}),
    "model.init_std": (0.03, {}),
    "model.norm_eps": (1e-3, {}),
    "data.corpus": ("OTHER", {}),
    "data.tokenizer": ("OTHER", {}),
    "data.tokenizer_kind": ("unigram", {}),
    "data.dedup": ("none", {"data.corpus": "OTHER"}),  # which holds copies
    "data.quality": ("gopher", {}),
    "data.decontaminate": ("TASKS", {}),  # a folder with a document of the corpus
    "data.substring": (20, {"data.corpus": "OTHER"}),  # which holds copies
    "data.compress": (0.5, {}),
    "data.order": ("short-first", {}),
    "data.allow_errors": (1, {"data.corpus": "BROKEN"}),  # which holds a bad line
    "train.tokens": (12 * 4 * 32, {}),
    "train.batch": (8, {}),
    "train.ramp": ([2, 1, 12], {"layout.micro_batch": 1}),
    "train.ramp_share": (0.9, {"layout.micro_batch": 1, "train.ramp": [2, 1], "train.ramp_share": 0.3}),
    "train.budget": ("1s", {}),
    "train.schedule": ("linear", {}),
    "train.lr": (2e-3, {}),
    "train.min_lr": (0.5, {}),
    "train.decay_tokens": (48 * 4 * 32, {}),
    "train.warmup": (0.5, {}),
    "train.beta1": (0.8, {}),
    "train.beta2": (0.9, {}),
    "train.eps": (1e-3, {}),
    "train.weight_decay": (0.5, {}),
    "train.clip": (0.1, {}),
    "train.precision": ("bf16", {}),
    "train.loss_scale_power": (8, {"train.precision": "fp16"}),
    "train.loss_scale_window": (4, {"train.precision": "fp16"}),
    "train.loss_scale_hysteresis": (1, {"train.precision": "fp16", "train.loss_scale_power": 32}),
    "train.loss_scale_min": (2**31, {"train.precision": "fp16", "train.loss_scale_power": 32}),
    "train.spike": (1e-4, {"train.lr": 1e-5}),
    "train.rollbacks": (2, SPIKES),
    "train.skip": (3, SPIKES),
    "train.divergence": (1000.0, {"model.init_std": 1.0}),  # so wide a start counts as divergence by default
}


def same_initial_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Initial weights are drawn from seed 1 whatever a run's seed is."""
    from model import gpt

    draw = gpt.initialise
    monkeypatch.setattr(gpt, "initialise", lambda model, cfg, seed, *rest: draw(model, cfg, 1, *rest))


def test_no_switch_is_dead(corpus: str, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every key that is part of what a run is changes what is trained. A new key must be added to CHANGES.

    Initial weights are the same in all runs, so that none of them passes by other weights alone.
    """
    from launch.manifest import Diverged, Failed

    same_initial_weights(monkeypatch)

    assert CHANGES.keys() == {k for k in KEYS if not k.startswith(("layout.", "eval.")) and k != "size"}
    other, broken, tasks = tmp_path / "other.jsonl", tmp_path / "broken.jsonl", tmp_path / "tasks"
    lines = Path(corpus).read_text().splitlines(keepends=True)
    other.write_text("".join(lines[::2] + lines[:20:2]))
    broken.write_text("".join([*lines, "no JSON"]))
    tasks.mkdir()
    (tasks / "test.jsonl").write_text("".join(lines[:20]))
    paths = {"OTHER": str(other), "BROKEN": str(broken), "TASKS": str(tasks)}
    results: dict[str, Any] = {}

    def run(setting: dict[str, Any]) -> Any:
        key = json.dumps(setting, sort_keys=True)
        if key not in results:
            run = resolve((TINY | {"data.corpus": corpus, "data.tokenizer": corpus} | setting).items())
            cell = dataclasses.replace(study(corpus, tmp_path).cells[0], run=run, dir=tmp_path / str(len(results)))
            cell.dir.mkdir()
            try:
                results[key] = in_process(cell, store)
            except Diverged as error:
                results[key] = f"diverged: {error}"
            except Failed as error:
                assert "not JSON" in str(error)
                results[key] = "refused"
        return results[key]

    for key, (value, needs) in CHANGES.items():
        needs = {k: paths.get(v, v) if isinstance(v, str) else v for k, v in needs.items()}
        value = paths.get(value, value) if isinstance(value, str) else value
        assert run(needs) != run(needs | {key: value}), f"{key} changes nothing"


DROPS = {"model.dropout": 0.1, "model.attn_dropout": 0.1}
STILL = {"train.lr": 1e-30}  # so low a learning rate that no weight changes


def losses_of(corpus: str, store: Path, folder: Path, change: dict[str, Any]) -> list[float]:
    """The loss of each step."""
    run = resolve((TINY | {"data.corpus": corpus, "data.tokenizer": corpus} | change).items())
    cell = dataclasses.replace(
        study(corpus, folder).cells[0], run=run, dir=folder / "-".join(map(str, change.values()))
    )
    cell.dir.mkdir()
    return [row[2] for row in in_process(cell, store)[1]]


def test_the_seed_draws_the_order_of_the_data(
    corpus: str, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With initial weights that never change, and nothing dropped, only the order of the data is left of the seed."""
    same_initial_weights(monkeypatch)
    one, two = (losses_of(corpus, store, tmp_path, STILL | {"seed": seed}) for seed in (1, 2))
    assert len(set(one)) == len(set(two)) == 24 and not set(one) & set(two)


def test_a_masked_language_model_trains_and_is_recorded(corpus: str, store: Path, tmp_path: Path) -> None:
    losses = losses_of(corpus, store, tmp_path, {"model.objective": "mlm", "model.mask_rate": 0.25, "train.lr": 3e-3})
    assert losses[0] > 6 and sum(losses[-4:]) / 4 < losses[0] - 0.3
    (record,) = tmp_path.glob("*/run.json")
    proofs = {proof["factor"]: proof for proof in json.loads(record.read_text())["proofs"]}
    assert proofs["model.objective"]["value"] == "mlm" and "outputs predict" in proofs["model.objective"]["detail"]


def test_a_masked_language_model_trains_with_a_tokenizer_whose_kind_has_no_mask_token(
    corpus: str, store: Path, tmp_path: Path
) -> None:
    losses_of(corpus, store, tmp_path, {"model.objective": "mlm", "data.tokenizer_kind": "byte-bpe"})
    (record,) = tmp_path.glob("*/run.json")
    assert json.loads(record.read_text())["data"]["tokenizer"]["mask"] == 511


def test_what_is_dropped_differs_by_step_and_by_seed(
    corpus: str, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the same weights and the same batch at every step, only noise makes losses differ."""
    from data.batches import Batches

    same_initial_weights(monkeypatch)
    real = Batches.batch
    rows: list[torch.Tensor] = []

    def first(self: Batches, numbers: range) -> torch.Tensor:
        rows.append(real(self, numbers))
        return rows[0]

    monkeypatch.setattr(Batches, "batch", first)
    one, two = (losses_of(corpus, store, tmp_path, STILL | DROPS | {"seed": seed}) for seed in (1, 2))
    assert len({*one, *two}) == 48
    assert len(set(losses_of(corpus, store, tmp_path, STILL))) == 1


def test_the_layout_leaves_no_trace(corpus: str, store: Path, tmp_path: Path) -> None:
    def run(change: dict[str, Any], folder: str) -> Any:
        cell = dataclasses.replace(study(corpus, tmp_path, change).cells[1], dir=tmp_path / folder)
        cell.dir.mkdir()
        return in_process(cell, store)

    plain = run({}, "plain")
    assert run({"layout.save_every": 5, "layout.zero": 2}, "exact")[0] == plain[0]
    for change in ({"layout.micro_batch": 1}, {"layout.micro_batch": 2}):
        losses = [r[2] for r in run(change, f"micro{change['layout.micro_batch']}")[1]]
        assert losses == pytest.approx([r[2] for r in plain[1]], rel=2e-5)
    # a line of the log is about all steps since the line before: the mean of their losses, and the tokens so far
    weights, rows = run({"layout.log_every": 5}, "seldom")
    losses = [r[2] for r in plain[1]]
    spans = [(0, 5), (5, 10), (10, 15), (15, 20), (20, 24)]
    assert weights == plain[0] and [(r[0], r[1]) for r in rows] == [plain[1][end - 1][:2] for _, end in spans]
    assert [r[2] for r in rows] == pytest.approx([sum(losses[a:b]) / (b - a) for a, b in spans], rel=1e-12)


def test_two_ranks_train_what_one_does(corpus: str, store: Path, tmp_path: Path) -> None:
    from launch.processes import Processes

    losses = {}
    for ranks in (1, 2):
        out = tmp_path / str(ranks)
        out.mkdir()
        (out / "data").symlink_to(store / "data")
        change = {"layout.processes": ranks, "layout.micro_batch": 2}
        argv = words(corpus, out, **change)
        cell = from_args(argv).cells[1]
        cell.dir.mkdir(parents=True)
        command = [sys.executable, "-m", "launch.train", "--cell", "1", *argv]
        Processes().run(command, cell.dir / "train.log", ranks, threads=1)
        losses[ranks] = [r[2] for r in result(cell.dir)[1]]
        assert json.loads((cell.dir / "done").read_text())["ranks"] == ranks
    assert losses[2] == pytest.approx(losses[1], rel=2e-5)


def test_the_engine_is_adamw_with_clipping_and_the_schedule(corpus: str, store: Path, tmp_path: Path) -> None:
    """Against a bare torch loop with the formulas written out: same losses, same gradient norms."""
    from data.batches import Batches
    from model.gpt import GPT

    cell = dataclasses.replace(study(corpus, tmp_path, {"train.clip": 0.5}).cells[1], dir=tmp_path / "run")
    cell.dir.mkdir()
    _, rows = in_process(cell, store)
    run = cell.run
    data = json.loads((cell.dir / "run.json").read_text())["data"]
    sources = [(s["prefix"], s["weight"]) for s in data["train"]]
    batches = Batches(sources, run.model.seq, 1)
    model = GPT(run.model, seed=1)
    m = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
    v = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
    for step in range(1, 13):
        loss = model.loss(model.objective.batch(batches.batch(range(4 * step - 4, 4 * step))))
        model.zero_grad()
        loss.backward()
        norm = math.sqrt(sum(float(p.grad.detach().double().square().sum()) for p in model.parameters()))
        t = step / 24
        peak, floor, warm = 1e-3, 1e-4, 0.05
        lr = (
            peak * t / warm
            if t < warm
            else floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * (t - warm) / (1 - warm)))
        )
        with torch.no_grad():
            for n, p in model.named_parameters():
                g = p.grad * min(1.0, 0.5 / (norm + 1e-6))
                m[n] = 0.9 * m[n] + 0.1 * g
                v[n] = 0.95 * v[n] + 0.05 * g * g
                decay = 0.1 if p.dim() > 1 else 0.0
                update = (m[n] / (1 - 0.9**step)) / ((v[n] / (1 - 0.95**step)).sqrt() + 1e-8)
                p.mul_(1 - lr * decay).sub_(lr * update)
        assert rows[step - 1][2] == pytest.approx(loss.item(), rel=1e-5)
        assert rows[step - 1][3] == pytest.approx(lr, rel=1e-9)
        assert rows[step - 1][4] == pytest.approx(norm, rel=1e-3)


def test_the_schedule_is_a_function_of_the_fraction() -> None:
    short, long = (resolve([("train.tokens", n)]).train for n in ("1M", "100M"))
    for t in (0.01, 0.05, 0.5, 1.0):
        assert learning_rate(short, t) == learning_rate(long, t)
    assert learning_rate(short, 0.05) == pytest.approx(short.lr)
    assert learning_rate(short, 1.0) == pytest.approx(short.lr * short.min_lr)


# ------------------------------------------------------------------------------------------------ stops


def test_a_diverging_run_stops_and_says_why(
    launch: Callable[..., Launch], corpus: str, store: Path, tmp_path: Path
) -> None:
    argv = words(corpus, store, **{"train.lr": 1000.0, "train.warmup": 0.0})
    process = launch(["--cell", "1", *argv], tmp_path / "log")
    assert process.wait() == 1 and "Try a lower train.lr" in process.said
    cell = from_args(argv).cells[1]
    assert state(cell)["state"] == "failed" and "train.lr" in state(cell)["why"]
    assert not (cell.dir / "done").exists()
    lines, _ = rundir.read_registered(cell.dir)  # before the first step, whatever became of the run
    assert [(line["step"], line["content"]) for line in lines] == [(0, from_args(argv).registration)]


def test_a_run_whose_factor_is_inactive_stops_before_the_first_step(
    corpus: str, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from launch.train import main
    from model import attention
    from model.position import Position

    prepare = attention.prepare
    monkeypatch.setattr(attention, "prepare", lambda p, *args: prepare(Position(p), *args))
    argv = words(corpus, store, **{"train.lr": 1.1e-3})
    assert main(["--cell", "1", *argv]) == 1
    cell = from_args(argv).cells[1]
    assert "model.pos=alibi" in (cell.dir / "failed").read_text()
    assert not (cell.dir / "run.json").exists() and not (cell.dir / "metrics.jsonl").exists()


@pytest.mark.parametrize(("key", "lost"), [("train.clip", "gradient_clipping"), ("train.batch", "train_batch_size")])
def test_a_setting_lost_on_its_way_to_the_engine_stops_the_run(
    corpus: str, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, lost: str
) -> None:
    from launch import deepspeed_setup, engine
    from launch.manifest import Mismatch

    whole = deepspeed_setup.deepspeed_config

    def without(run: Any, world: int) -> dict[str, Any]:
        config = whole(run, world)
        del config[lost]
        if lost == "train_batch_size":
            config["gradient_accumulation_steps"] = 2
        return config

    monkeypatch.setattr(engine, "deepspeed_config", without)
    change = {"train.clip": 0.5}  # DeepSpeed's own default is 1
    cell = dataclasses.replace(study(corpus, tmp_path, change).cells[0], dir=tmp_path / "run")
    cell.dir.mkdir()
    with pytest.raises(Mismatch, match=key):
        in_process(cell, store)


def test_a_decayed_norm_gain_stops_the_run(
    corpus: str, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through DeepSpeed, in whose own groups the audit looks."""
    from launch.manifest import Mismatch

    adamw = torch.optim.AdamW

    def careless(groups: list[dict[str, Any]], **kw: Any) -> torch.optim.Optimizer:
        moved = groups[1]["params"].pop(0)
        groups[0]["params"].append(moved)
        return adamw(groups, **kw)

    monkeypatch.setattr(torch.optim, "AdamW", careless)
    cell = dataclasses.replace(study(corpus, tmp_path).cells[0], dir=tmp_path / "run")
    cell.dir.mkdir()
    with pytest.raises(Mismatch, match="blocks.0.norm1.weight is decayed"):
        in_process(cell, store)


def test_other_data_under_the_same_name_stop_a_continued_run(corpus: str, store: Path, tmp_path: Path) -> None:
    from launch.manifest import Mismatch

    cell = dataclasses.replace(study(corpus, tmp_path).cells[0], dir=tmp_path / "run")
    cell.dir.mkdir()
    in_process(cell, store)
    record = json.loads((cell.dir / "run.json").read_text())
    record["data"]["sha256"] = "0" * 64
    (cell.dir / "run.json").write_text(json.dumps(record))
    with pytest.raises(Mismatch, match="not the one that the run began with"):
        in_process(cell, store)


def test_one_process_owns_a_run(tmp_path: Path) -> None:
    from ablations.config import ConfigError
    from launch.lock import locked

    with locked(tmp_path), pytest.raises(ConfigError, match="another process is training"), locked(tmp_path):
        pass


def test_who_looks_whether_a_run_is_locked_is_no_other_trainer(tmp_path: Path) -> None:
    """A shared lock for a moment, as in ablations/status.py."""
    from launch.lock import locked

    look = open(tmp_path / "lock", "w")  # noqa: SIM115
    fcntl.flock(look, fcntl.LOCK_SH)
    threading.Timer(0.3, look.close).start()
    with locked(tmp_path):
        pass


def test_a_file_system_without_locks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is none here to try it on; this is what flock(2) says on Lustre, as it was mounted by default for long."""
    from ablations.config import ConfigError
    from data import disk
    from launch.lock import locked

    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr(fcntl, "lockf", refuse)
    with pytest.raises(ConfigError, match=r"cannot be locked \(Function not implemented\)"), locked(tmp_path):
        pass
    with pytest.raises(ValueError, match="cannot be locked"), disk.locked(tmp_path / "store/.lock"):
        pass


def test_training_does_without_packages_that_only_preparation_needs() -> None:
    from launch.manifest import version

    assert version("no-such-package") == "not installed" and version("torch") == torch.__version__


SLOW_DISK = """
import os, sys, time
from launch import checkpoint, train, watch
save = checkpoint.save_file
def slowly(*what):
    if os.environ.get("RANK", "0") == "0":
        time.sleep(4)
    save(*what)
checkpoint.save_file = slowly
sys.exit(train.main(sys.argv[1:]))
"""


def on_a_slow_disk(argv: list[str], rank: int = 0, ranks: int = 1, port: int = 0) -> subprocess.Popen:
    env = {"RANK": rank, "WORLD_SIZE": ranks, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return subprocess.Popen(
        [sys.executable, "-c", SLOW_DISK, "--cell", "1", *argv],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=os.environ | ({k: str(v) for k, v in env.items()} if ranks > 1 else {}),
    )


def test_a_storage_slower_than_patience_is_no_hang(corpus: str, store: Path, tmp_path: Path) -> None:
    (tmp_path / "data").symlink_to(store / "data")
    change = {"layout.patience": 1, "layout.hang": 2, "layout.save_every": 8}
    process = on_a_slow_disk(words(corpus, tmp_path, **change))
    said = process.communicate(timeout=120)[0]
    assert process.returncode == 0 and "hang" not in said, said


def test_ranks_leave_when_the_checkpoint_of_all_is_whole(corpus: str, store: Path, tmp_path: Path) -> None:
    """Under Slurm the first one to leave ends the others."""
    (tmp_path / "data").symlink_to(store / "data")
    argv = words(
        corpus, tmp_path, **{"train.tokens": 2000 * 4 * 32, "layout.micro_batch": 2, "layout.save_every": 10000}
    )
    run = from_args(argv).cells[1].dir
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    both = [on_a_slow_disk(argv, rank, 2, port) for rank in range(2)]
    end = time.monotonic() + 100
    while not ((run / "metrics.jsonl").exists() and (run / "metrics.jsonl").read_text().count("\n") > 5):
        assert time.monotonic() < end and all(p.poll() is None for p in both)
        time.sleep(0.02)
    (run / "stop").write_text("leave")
    while all(p.poll() is None for p in both):
        time.sleep(0.01)
    assert list(run.glob("checkpoints/step_*/checkpoint.json"))
    assert [(p.communicate(timeout=60), p.returncode)[1] for p in both] == [75, 75]


def test_under_slurm_a_run_that_another_job_holds_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ablations.rundir import Exit
    from launch.lock import locked
    from launch.watch import Stop

    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setattr("launch.lock.time.sleep", lambda _: None)
    with locked(tmp_path), pytest.raises(Stop, match="another process is training") as stop, locked(tmp_path):
        pass
    assert stop.value.code == Exit.RESUBMIT


@pytest.mark.parametrize(
    ("said", "slurm", "given_up"),
    [("Input/output error", True, False), (os.strerror(errno.ENOSPC), True, True), ("Input/output error", False, True)],
)
def test_what_may_go_better_is_tried_again_under_slurm(
    said: str, slurm: bool, given_up: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """A storage that hiccups while a checkpoint is written; a full disk waits for somebody to make room."""
    from launch import train
    from launch.checkpoint import Checkpoints
    from launch.slurm.attempts import last_configuration_error

    def training(cell: Any, out: Path) -> None:
        checkpoints = Checkpoints(cell.dir / "checkpoints", 2)
        checkpoints.error = OSError(said)
        checkpoints.check()

    if slurm:
        monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setattr(train, "train", training)
    cell = from_args(["POS=alibi", "SIZE=nano", f"OUT={tmp_path}"]).cells[0]
    assert train.main(["--cell", "0", "POS=alibi", "SIZE=nano", f"OUT={tmp_path}"]) == 1
    error = capsys.readouterr().err
    assert said in error and (cell.dir / "failed").exists() == given_up
    (cell.dir / "train.log").write_text(f"0: {error}")
    assert bool(last_configuration_error(cell.dir, "7")) == given_up


def test_lines_that_a_power_loss_has_torn_are_written_anew(tmp_path: Path) -> None:
    """A file system may have the end of what was written last, and zeros or old blocks in place of its beginning."""
    from launch.log import Log

    whole = [json.dumps({"step": step, "loss": 1.5}) + "\n" for step in (1, 2, 3)]
    (tmp_path / "metrics.jsonl").write_bytes("".join(whole).encode() + b"\0" * 9 + b'\xff": 1.5}\n{"step": 5}\n{"st')
    Log(tmp_path, resolve(), "a run", 3).close()
    assert (tmp_path / "metrics.jsonl").read_text() == "".join(whole)


def test_a_strangers_links_are_not_followed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from launch.log import Log
    from launch.processes import Processes
    from launch.train import main
    from launch.watch import Watch, event

    words = ["POS=alibi", "SIZE=nano", f"OUT={tmp_path}"]
    run, mine = from_args(words).cells[1].dir, tmp_path / "mine"
    run.mkdir(parents=True)
    mine.write_text("private")
    for name in ("lock", "metrics.tmp", "metrics.jsonl.tmp", "heartbeat.json", "heartbeat.json.tmp", "events.jsonl"):
        (run / name).symlink_to(mine)
    (run / "train.log").symlink_to(mine)
    assert main(["--cell", "1", *words]) == 1
    assert f"{run / 'lock'}'. Files here are not written through symbolic links" in capsys.readouterr().err
    (run / "metrics.jsonl").symlink_to(mine)
    with pytest.raises(Damaged, match="metrics.jsonl is a symbolic link"):
        Log(run, resolve(), "a run", 0)
    (run / "metrics.jsonl").unlink()
    Log(run, resolve(), "a run", 0).close()
    with Watch(run, tmp_path, 9, 0, ["a"], hang=100, patience=100):
        event(run, 1, "slow", "said")
    with pytest.raises(OSError):
        Processes().run([sys.executable, "-c", "print('overwritten')"], run / "train.log", 1, threads=1)
    assert mine.read_text() == "private"


def test_two_output_roots_are_two_runs_to_wandb(tmp_path: Path) -> None:
    from launch.log import _wandb_id

    one, other = (_wandb_id(tmp_path / root / "nano" / "baseline,seed=1") for root in "ab")
    assert one != other and one == _wandb_id(tmp_path / "b/../a/nano/baseline,seed=1")
    assert one.startswith("nano-baseline-seed-1-")


def test_a_node_that_cannot_write_gets_as_far_as_preflight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which names it. On a real file system that is read-only."""
    from launch import preflight
    from launch.lock import locked

    if os.geteuid() or os.system(f"mount -t tmpfs -o ro tmpfs {tmp_path}"):
        pytest.skip("needs root to mount a file system")
    try:
        monkeypatch.setenv("RANK", "3")
        with locked(tmp_path):
            assert preflight._write(tmp_path) == "Read-only file system"
    finally:
        os.system(f"umount {tmp_path}")


def test_what_counts_is_on_the_disk_first(
    corpus: str, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lines of the log before the checkpoint that comes after them; `done` before W&B, which may wait for long."""
    cell = dataclasses.replace(study(corpus, tmp_path).cells[1], dir=tmp_path / "run")
    cell.dir.mkdir()
    settled: dict[str, str] = {}
    seen, finished, fsync, replace = [], [], os.fsync, os.replace

    def spy(file: int) -> None:
        name = os.readlink(f"/proc/self/fd/{file}")
        settled[name] = Path(name).read_text() if name.endswith("metrics.jsonl") else ""
        fsync(file)

    def check(old: Any, new: Any) -> None:
        if Path(new).name == "checkpoint.json":
            lines = settled.get(str(cell.dir / "metrics.jsonl"), "").count("\n")
            seen.append((json.loads(Path(old).read_text())["step"], lines))
        replace(old, new)

    class Mirror:
        def log(self, *_: Any, **__: Any) -> None: ...

        def finish(self) -> None:
            finished.append((cell.dir / "done").exists())

    monkeypatch.setattr(os, "fsync", spy)
    monkeypatch.setattr(os, "replace", check)
    monkeypatch.setattr("launch.log._wandb", lambda *_: Mirror())
    in_process(cell, store)
    assert seen == [(8, 8), (16, 16), (24, 24)] and finished == [True]


def test_the_manifest_says_what_was_proved(corpus: str, store: Path, tmp_path: Path) -> None:
    cell = dataclasses.replace(study(corpus, tmp_path).cells[1], dir=tmp_path / "run")
    cell.dir.mkdir()
    rundir.register(cell.dir, study(corpus, tmp_path).registration, 0)  # as launch.train does before
    in_process(cell, store)
    record = json.loads((cell.dir / "run.json").read_text())
    assert record["registered"] == rundir.read_registered(cell.dir)[0][0]["sha256"]
    assert record["fingerprint"] == cell.run.fingerprint and record["delta"] == {"model.pos": "alibi"}
    assert {p["factor"] for p in record["proofs"]} == {
        "model.pos",
        "model.objective",
        "model.qk_scaling",
        "model.embnorm",
        "model.norm",
        "model.block",
        "model.act",
        "model.qkv_bias, model.linear_bias",
        "model.head_transform, model.output_bias",
        "model.tied",
        "model.dropout, model.attn_dropout",
        "train.weight_decay",
        "train.precision",
    }
    assert all(p["passed"] for p in record["proofs"])
    groups = {g["name"]: g["decayed"] for g in record["parameters"]["groups"]}
    assert groups["embed.weight"] and not groups["blocks.0.norm1.weight"] and not groups["blocks.1.mlp.up.bias"]
    assert len(record["data"]["tokenizer"]["sha256"]) == 64
    assert os.path.getsize(cell.dir / "weights.safetensors") > 4 * record["parameters"]["count"]


def test_a_run_that_is_not_compiled_does_not_load_the_compiler() -> None:
    """It takes seconds: DeepSpeed, megatron-core and decorators of ours would load it as they are imported."""
    code = (
        "import sys\nfrom launch import deepspeed_setup, engine\nfrom data import batches\nfrom model import gpt\n"
        "deepspeed_setup.import_deepspeed()\nbatches._megatron()\n"
        "print(sorted(sys.modules.keys() & {'torch._dynamo', 'torch._inductor.compile_fx'}))"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert printed.splitlines()[-1] == "[]"
