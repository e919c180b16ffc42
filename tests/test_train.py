"""What training computes: the seed, dropout, the optimizer written out, no trace of the layout, and what it records."""

import dataclasses
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ablations import rundir
from ablations.budget import learning_rate
from ablations.config import resolve
from ablations.study import from_args
from tests.conftest import Launch
from tests.tiny_run import TINY, in_process, result, same_initial_weights, study, words

ROOT = Path(__file__).parents[1]
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
    assert len({*one, *two}) > 40  # of 48: two of them may be equal by chance
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


def test_two_ranks_train_what_one_does(launch: Callable[..., Launch], corpus: str, store: Path, tmp_path: Path) -> None:
    losses = {}
    for ranks in (1, 2):
        out = tmp_path / str(ranks)
        out.mkdir()
        (out / "data").symlink_to(store / "data")
        change = {"layout.processes": ranks, "layout.micro_batch": 2}
        argv = words(corpus, out, **change)
        cell = from_args(argv).cells[1]
        process = launch(["--cell", "1", *argv], out / "log", ranks)
        assert process.wait() == 0, process.output
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


def test_training_does_without_packages_that_only_preparation_needs() -> None:
    from launch.manifest import package_version

    # without the local part, such as +cpu: the wheel's metadata has it for some builds only
    assert package_version("no-such-package") == "not installed"
    assert package_version("torch").partition("+")[0] == torch.__version__.partition("+")[0]


def test_the_manifest_says_what_was_proved(corpus: str, store: Path, tmp_path: Path) -> None:
    cell = dataclasses.replace(study(corpus, tmp_path).cells[1], dir=tmp_path / "run")
    cell.dir.mkdir()
    rundir.append_registration(cell.dir, study(corpus, tmp_path).registration, 0)  # as launch.train does before
    in_process(cell, store)
    record = json.loads((cell.dir / "run.json").read_text())
    assert record["registered"] == rundir.read_registrations(cell.dir)[0][0]["sha256"]
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


def test_our_adamw_is_torchs() -> None:
    from launch import engine

    weights = [torch.nn.Parameter(torch.randn(5, 3, generator=torch.Generator().manual_seed(1))) for _ in range(2)]
    options: dict[str, Any] = {"lr": 0.1, "betas": (0.8, 0.9), "eps": 1e-3, "weight_decay": 0.3, "fused": True}
    ours, theirs = engine.AdamW([weights[0]], **options), torch.optim.AdamW([weights[1]], **options)
    random = torch.Generator().manual_seed(2)
    for _ in range(4):
        gradient = torch.randn(5, 3, generator=random)
        for weight, optimizer in zip(weights, (ours, theirs), strict=True):
            weight.grad = gradient.clone()
            optimizer.step()
            optimizer.zero_grad()
            assert weight.grad is None
    assert torch.equal(*weights)


def test_a_run_that_is_not_compiled_does_not_load_the_compiler() -> None:
    """It takes seconds: DeepSpeed, megatron-core and decorators of ours would load it as they are imported, and torch's
    optimizers when they are called. Nor does it load sympy for gradients, or more of megatron-core than its compiled
    helpers."""
    code = (
        "import sys, torch\nfrom launch import deepspeed_setup, engine\n"
        "from data import batches\nfrom model import gpt\n"
        "deepspeed_setup.import_deepspeed()\nbatches._megatron_index_functions()\n"
        "weight = torch.nn.Parameter(torch.ones(2))\nadamw = engine.AdamW([weight], fused=True)\n"
        "weight.grad = torch.ones(2)\nadamw.step()\nadamw.zero_grad()\n"
        "from ablations.config import resolve\nfrom model import proof\n"
        "proof.prove_factors(gpt.GPT(resolve([('size', 'atto')]).model))\n"
        "unwanted = {'torch._dynamo', 'torch._inductor.compile_fx', 'sympy', 'megatron.core'}\n"
        "print(sorted(sys.modules.keys() & unwanted))"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert printed.splitlines()[-1] == "[]"
