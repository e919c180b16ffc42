"""Tensor parallelism against the model that one rank holds whole: the same weights, losses, gradients and steps."""

import gc
import json
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import multiprocessing

from ablations.config import ConfigError, resolve
from model.count import count_parameters
from model.gpt import GPT
from model.objective import SpecialTokens
from model.shard import SINGLE_RANK, full_shape, shard, shard_dimension, unshard
from tests.small_models import SMALL, VARIANTS, name, tokens
from tests.tiny_run import result, study

ROOT = Path(__file__).parents[1]
FOUR = [replace(v, heads=12) for v in VARIANTS[::13]]  # six heads cannot be shared by four
EDGES = [
    replace(SMALL, pos="alibi", act="swiglu", norm="rmsnorm", embnorm=True, tied=False),
    replace(SMALL, pos="learned", act="gelu", dropout=0.1, attn_dropout=0.1),
    replace(SMALL, pos="rotary", act="geglu", block="parallel", qkv_bias=False),
    replace(SMALL, pos="scaled-sinusoidal", block="post-ln", linear_bias=False),
    replace(SMALL, pos="alibi", objective="prefix"),
    replace(SMALL, pos="scaled-sinusoidal", act="geglu", objective="mlm", mask_rate=0.25),
    replace(SMALL, block="post-ln", sumnorm=True, head_transform="bert", output_bias=True, objective="mlm"),
]


def _rank(rank: int, ranks: int, work: Callable[..., None], folder: Path, args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(str(folder / "store"), ranks), rank=rank, world_size=ranks)
    work(folder, *args)
    dist.barrier()


def on(ranks: int, work: Callable[..., None], folder: Path, *args: Any) -> None:
    """`work` in so many processes; what fails in one of them fails here."""
    import deepspeed  # noqa: F401  # once, for all that are forked from here

    import model.parallel  # noqa: F401

    method = "forkserver" if dist.is_initialized() else "fork"  # what is forked would have the group of another test
    gc.collect()
    gc.freeze()  # what is shared is not searched, and so copied, in each process
    try:
        multiprocessing.start_processes(_rank, (ranks, work, folder, args), nprocs=ranks, start_method=method)
    finally:
        (folder / "store").unlink(missing_ok=True)


def scrambled(model: Any) -> Any:
    """Every parameter moved off its initial value, by what does not depend on who holds it."""
    generator, tp = torch.Generator().manual_seed(1), model.tp
    with torch.no_grad():
        for n, p in model.named_parameters():
            noise = torch.randn(full_shape(n, p.shape, tp.size), generator=generator) * 0.1
            p.add_(shard(n, noise, tp.rank, tp.size))
    return model


def relative(x: torch.Tensor, right: torch.Tensor) -> float:
    assert x.shape == right.shape
    return float((x - right).norm() / right.norm())


def run(cfg: Any, **change: Any) -> Any:
    """A run of that model, on as many ranks as one copy needs."""
    shape = {f"model.{k}": v for k, v in asdict(cfg).items()}
    few = {"train.batch": 8, "layout.micro_batch": 2, "train.precision": "fp32", "train.clip": 0.3, "train.lr": 3e-3}
    return resolve((shape | few | change).items())


# ------------------------------------------------------------------------------------------------ cutting


@pytest.mark.parametrize("size", [1, 2, 3, 6])
def test_parts_are_whole_heads_and_the_same_rows_of_gate_and_up(size: int) -> None:
    H, K, D, F = 6, 8, 48, 96
    for kind, tail in (("weight", (D,)), ("bias", ())):
        full = torch.randn(3 * H * K, *tail)
        by_head = full.view(3, H, K, *tail)
        parts = [shard(f"blocks.0.attn.qkv.{kind}", full, r, size) for r in range(size)]
        for r, part in enumerate(parts):
            mine = part.view(3, H // size, K, *tail)
            for i in range(H // size):
                assert torch.equal(mine[:, i], by_head[:, r * H // size + i])
        assert torch.equal(unshard(f"blocks.0.attn.qkv.{kind}", parts), full)
    up, down = torch.randn(F, D), torch.randn(D, F)
    x = torch.randn(5, D)
    names = [f"blocks.1.mlp.{n}.weight" for n in ("gate", "up", "down")]
    summed = torch.zeros(5, D)
    for r in range(size):
        gate, mine = shard(names[0], up, r, size), shard(names[1], 2 * up, r, size)
        summed += (torch.sigmoid(x @ gate.T) * (x @ mine.T)) @ shard(names[2], down, r, size).T
    assert relative(summed, (torch.sigmoid(x @ up.T) * (x @ (2 * up).T)) @ down.T) < 1e-5


def test_every_parameter_comes_back() -> None:
    for cfg in [*VARIANTS[::5], *EDGES]:
        for n, p in GPT(cfg).named_parameters():
            parts = [shard(n, p, r, 2) for r in range(2)]
            assert torch.equal(unshard(n, parts), p), n
            assert full_shape(n, parts[0].shape, 2) == list(p.shape)
            matrix = p.dim() == 2 and n not in ("position.table", "transform.dense.weight")
            assert (parts[0].numel() * 2 == p.numel()) == (
                matrix or n.split(".")[-2] in ("qkv", "up", "gate", "output")
            ), n


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"layout.tp": 2}, "layout.tp=2 does not divide layout.processes, 1"),
        ({"layout.tp": 4, "layout.processes": 4}, "model.heads, 6"),
        ({"layout.tp": 3, "layout.processes": 3, "model.heads": 6}, r"padded vocabulary \(model.vocab_multiple\), 128"),
        (
            {
                "layout.tp": 3,
                "layout.processes": 3,
                "model.vocab_multiple": 3,
                "model.act": "swiglu",
                "model.hidden": 30,
            },
            "inner width, 80",
        ),
        ({"layout.tp": 0}, "layout.tp=0: must be at least 1"),
        ({"layout.tp": 2, "layout.processes": 4, "train.batch": 3}, "2 x "),
    ],
)
def test_what_cannot_be_cut_is_refused_before_any_work(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        run(SMALL, **change)


def test_a_model_of_one_rank_needs_no_megatron() -> None:
    code = "import sys, model.gpt, launch.checkpoint; print([m for m in sys.modules if m.startswith('megatron')])"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True).stdout == "[]\n"


# ------------------------------------------------------------------------------------------------ the model


def gathered(mine: dict[str, torch.Tensor]) -> dict[str, torch.Tensor] | None:
    """Whole parameters, gradients or outputs, on the first rank. What is not cut stays the same on all ranks only if it
    is so bit for bit."""
    by_rank: list[Any] | None = None if dist.get_rank() else [None] * dist.get_world_size()
    dist.gather_object({n: x.detach().numpy() for n, x in mine.items()}, by_rank)  # tensors are slow to pickle
    if by_rank is None:
        return None
    parts = {n: [torch.from_numpy(arrays[n]) for arrays in by_rank] for n in mine}
    for n in mine:
        assert shard_dimension(n) is not None or all(torch.equal(parts[n][0], part) for part in parts[n]), n
    return {n: unshard(n, parts[n]) for n in mine}


def _same_model(folder: Path, variants: list[Any]) -> None:
    """Each variant cut among all ranks; the first rank has it whole too, and compares."""
    from model.parallel import TensorParallel

    tp = TensorParallel(dist.get_world_size())
    for cfg in variants:
        cfg = replace(cfg, dropout=0.0, attn_dropout=0.0)
        mine = GPT(cfg, tp=tp)
        batch = mine.objective.batch(tokens(cfg, 29), tokens=SpecialTokens(119))
        assert sum(p.numel() for p in mine.parameters()) == count_parameters(cfg, tp.size)
        drawn = gathered(dict(mine.named_parameters()))
        loss = scrambled(mine).loss(batch)
        loss.backward()
        with torch.no_grad():
            logits = mine(batch.inputs_BT, batch.extents_B)
        outputs = gathered({"model.loss": loss[None], "model.logits": logits})
        cut = gathered({n: p.grad for n, p in mine.named_parameters() if p.grad is not None})
        if drawn is None or outputs is None or cut is None:
            continue
        dense = GPT(cfg)
        for (n, p), (m, q) in zip(dense.named_parameters(), drawn.items(), strict=True):
            assert n == m and torch.equal(q, p), f"{name(cfg)}: {n} is drawn otherwise"
        right = scrambled(dense).loss(batch)
        assert relative(outputs["model.loss"][0], right.detach()) < 1e-6, name(cfg)
        right.backward()
        with torch.no_grad():
            assert relative(outputs["model.logits"], dense(batch.inputs_BT, batch.extents_B)) < 1e-6, name(cfg)
        grads = {n: p.grad for n, p in dense.named_parameters() if p.grad is not None}
        norm = torch.stack([g.norm() for g in grads.values()]).norm()
        assert cut.keys() == grads.keys()
        for n, grad in grads.items():
            # the gradient of the single number position.scale is a sum that almost cancels
            scale = norm if n == "position.scale" else grad.norm()
            error = float((cut[n] - grad).norm() / scale)
            assert error < 1e-5, f"{name(cfg)}: {n}, {error:.1e}"


def test_every_variant_is_the_same_model_on_two_ranks(tmp_path: Path) -> None:
    on(2, _same_model, tmp_path, [*VARIANTS, *EDGES])


def test_and_on_four(tmp_path: Path) -> None:
    on(4, _same_model, tmp_path, [*FOUR, *(replace(v, heads=12) for v in EDGES)])


def _bf16(folder: Path) -> None:
    from model.parallel import TensorParallel

    tp = TensorParallel(2)
    for cfg in (SMALL, EDGES[0]):
        x = tokens(cfg, 32)
        with torch.no_grad():
            right = scrambled(GPT(cfg))(x)
            dense, mine = (scrambled(GPT(cfg, tp=t)).bfloat16()(x).float() for t in (SINGLE_RANK, tp))
        assert 0 < relative(mine, right) < 1.2 * relative(dense, right)


def test_in_bf16_the_error_is_no_larger_than_without(tmp_path: Path) -> None:
    on(2, _bf16, tmp_path)


def _proofs(folder: Path, variants: list[Any]) -> None:
    from model import proof
    from model.parallel import TensorParallel

    tp = TensorParallel(2)
    for cfg in variants:
        for dtype in (torch.float32, torch.bfloat16):
            assert [p.detail for p in proof.prove_factors(GPT(cfg, tp=tp).to(dtype)) if not p.passed] == [], name(cfg)

    def failing(model: Any) -> dict[str, str]:
        found = tp.gather_objects([p for p in proof.prove_factors(model) if not p.passed])
        assert found[0] == found[1]  # all ranks must agree to stop
        return {p.factor: p.detail for p in found[0]}

    model: Any = GPT(variants[0], tp=tp)  # BigScience's second fault: every rank used the first heads' slopes
    model.position.first_head = 0
    assert "heads [3, 4, 5]" in failing(model)["model.pos"]
    model = GPT(SMALL, tp=tp)
    down = model.blocks[1].mlp.down
    down.forward = lambda x: _eager(tp, x, down)
    assert "the bias of blocks.1.mlp.down does nothing" in failing(model)["model.qkv_bias, model.linear_bias"]


def _eager(tp: Any, x: torch.Tensor, layer: Any) -> torch.Tensor:
    """A row-parallel layer that adds its bias on every rank."""
    y = torch.nn.functional.linear(x, layer.weight, layer.bias)
    dist.all_reduce(y, group=tp.group)
    return y


def test_proofs_hold_on_every_rank_and_fire_on_one(tmp_path: Path) -> None:
    on(2, _proofs, tmp_path, EDGES)


# ------------------------------------------------------------------------------------------------ training


def _train(folder: Path, told: Any, steps: range, into: str) -> None:
    """Optimizer steps from the newest checkpoint, or from the beginning; weights, losses and norms go to files."""
    from launch import deepspeed_setup, engine, run_model
    from launch import effective as held
    from launch.checkpoint import Checkpoints

    rank, world = deepspeed_setup.initialise_process(told)
    tp = run_model.tensor_parallel_group(told)
    live = engine.build_engine(run_model.build_model(told), told, world)
    checkpoints = Checkpoints(folder / "checkpoints", keep=9)
    if steps.start:
        assert live.load(checkpoints, before=steps.start + 1) == {"at": 1}
    replica, replicas = rank // tp.size, world // tp.size
    rows = torch.randint(120, (steps.stop, told.train.batch, told.model.seq + 1), generator=torch.manual_seed(0))
    done = []
    for step in steps:
        mine = range(replica * told.train.batch // replicas, (replica + 1) * told.train.batch // replicas)
        numbers = [step * told.train.batch + n for n in mine]
        batch = live.model.objective.batch(rows[step, mine.start : mine.stop], told.seed, numbers, SpecialTokens(119))
        done.append(live.step(batch, told.train.lr, step * replicas + replica)[:2])
    live.save(checkpoints, steps.stop, {"at": 1})
    checkpoints.wait()
    live.write_weights(folder / f"{into}.safetensors")
    assert (
        held.settings_in_effect(live)["layout.tp"] == tp.size
        and held.settings_in_effect(live)["model.heads"] == told.model.heads
    )
    if rank == 0:
        (folder / f"{into}.json").write_text(json.dumps(done))


def trained(folder: Path, told: Any, steps: range, into: str) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """(loss, gradient norm) of each step, [steps, 2], and the final weights of the whole model."""
    on(told.layout.processes, _train, folder, told, steps, into)
    weights = load_file(folder / f"{into}.safetensors")
    assert {n: list(w.shape) for n, w in weights.items()} == {
        n: list(p.shape) for n, p in GPT(told.model).state_dict().items()
    }
    return torch.tensor(json.loads((folder / f"{into}.json").read_text()), dtype=torch.float64), weights


@pytest.mark.parametrize("cfg", [*EDGES[:1], *EDGES[2:]], ids=lambda cfg: f"{cfg.pos}-{cfg.act}-{cfg.objective}")
def test_steps_of_adamw_with_clipping_are_those_of_one_rank(tmp_path: Path, cfg: Any) -> None:
    right, weights = trained(tmp_path, run(cfg), range(4), "dense")
    assert (right[:, 1] > 0.3).all()  # so that all are clipped
    for ranks, zero in ((2, 1), (4, 2)) if cfg is EDGES[0] else ((4, 1),):
        layout = {"layout.tp": 2, "layout.processes": ranks, "layout.zero": zero}
        got, others = trained(tmp_path, run(cfg, **layout), range(4), "cut")
        assert ((got - right).abs() <= 1e-5 * right).all()
        for n, w in weights.items():
            assert relative(others[n], w) < 1e-3, n


def test_steps_in_bf16(tmp_path: Path) -> None:
    change = {"train.precision": "bf16"}
    exact, _ = trained(tmp_path, run(EDGES[0]), range(4), "exact")
    right, _ = trained(tmp_path, run(EDGES[0], **change), range(4), "dense")
    got, _ = trained(tmp_path, run(EDGES[0], **change, **{"layout.tp": 2, "layout.processes": 4}), range(4), "cut")
    assert ((got - exact).abs() / exact).max() < 2 * ((right - exact).abs() / exact).max()


def test_a_checkpoint_of_one_cut_loads_at_another(tmp_path: Path) -> None:
    cfg = replace(EDGES[0], heads=12, dropout=0.1)  # with dropout, so that random numbers must be the same as well
    widths = {"1": (1, 1), "2": (2, 2), "2x2": (2, 4), "4": (4, 4)}
    told = {k: run(cfg, **{"layout.tp": tp, "layout.processes": ranks}) for k, (tp, ranks) in widths.items()}
    calm, weights = trained(tmp_path, told["2"], range(6), "calm")
    trained(tmp_path, told["2"], range(3), "half")
    got, others = trained(tmp_path, told["2"], range(3, 6), "again")
    assert torch.equal(got, calm[3:]) and all(torch.equal(others[n], w) for n, w in weights.items())
    # one after the other, each from the checkpoint of the one before; of one data-parallel rank: its noise is the same
    for step, k in enumerate(("1", "4", "2"), start=3):
        got, _ = trained(tmp_path, told[k], range(step, step + 1), k)
        assert ((got - calm[step]).abs() <= 1e-5 * calm[step]).all(), k


def _launch(folder: Path, cell: Any, store: Path) -> None:
    from launch.train import train

    train(cell, store)


def test_a_whole_run_from_its_proofs_to_its_weights(corpus: str, store: Path, tmp_path: Path) -> None:
    # all that is dropped here is dropped alike on all ranks, so that the losses must be the same as well
    change = {"model.dropout": 0.1, "model.act": "swiglu", "model.tied": False}
    losses = {}
    for ranks in (1, 2):
        layout = {"layout.tp": ranks, "layout.processes": ranks}
        cell = replace(study(corpus, tmp_path, change | layout).cells[1], dir=tmp_path / str(ranks))
        cell.dir.mkdir()
        on(ranks, _launch, tmp_path, cell, store)
        losses[ranks] = [row[2] for row in result(cell.dir)[1]]
        record = json.loads((cell.dir / "run.json").read_text())
        assert record["parameters"]["count"] == count_parameters(cell.run.model)
        assert all(p["passed"] for p in record["proofs"])
        GPT(cell.run.model).load_state_dict(load_file(cell.dir / "weights.safetensors"))
    assert losses[2] == pytest.approx(losses[1], rel=2e-5)


def _drop(folder: Path) -> None:
    from model.parallel import TensorParallel

    tp = TensorParallel(2)
    cfg = replace(SMALL, dropout=0.25, attn_dropout=0.25)
    model: Any = GPT(cfg, tp=tp).train()
    into: list[torch.Tensor] = []
    heads: list[torch.Tensor] = []
    for block in model.blocks:
        block.register_forward_pre_hook(lambda m, a: into.append(a[0]))
        block.attn.qkv.register_forward_hook(lambda m, a, out: torch.ones_like(out))
        block.attn.proj.register_forward_pre_hook(lambda m, a: heads.append(a[0]))
    torch.manual_seed(3)
    batch = model.objective.batch(tokens(cfg, 33, B=8))
    loss = model.loss(batch)
    assert tp.gather_objects(float(loss))[0] == tp.gather_objects(float(loss))[1]
    for x in into:  # what is on all ranks is dropped alike
        assert torch.equal(*tp.gather_objects(x))
    for x in heads:  # no two ranks, layers or heads drop the same
        first, second = tp.gather_objects(x)
        assert not torch.equal(first, second)
        # a probability of 1 at the first token: kept and enlarged, or dropped
        kept = (first[:, 0] > 0).double().mean(), (second[:, 0] > 0).double().mean()
        assert all(abs(k - 0.75) < 5 * math.sqrt(0.25 * 0.75 / 24) for k in kept)
    assert not torch.equal(heads[0], heads[1])
    torch.manual_seed(3)
    assert float(model.loss(batch)) == float(loss)  # and all of it follows from the seed


def test_ranks_drop_the_same_where_they_hold_the_same(tmp_path: Path) -> None:
    on(2, _drop, tmp_path)


def _drift(folder: Path) -> None:
    from launch import deepspeed_setup, engine, run_model
    from launch.checkpoint import CheckpointError, Checkpoints

    told = run(SMALL, **{"layout.tp": 2, "layout.processes": 4})
    rank, world = deepspeed_setup.initialise_process(told)
    live = engine.build_engine(GPT(told.model, told.seed, run_model.tensor_parallel_group(told)), told, world)
    rows = torch.randint(120, (4, 33), generator=torch.manual_seed(0))
    live.step(live.model.objective.batch(rows), 1e-3)
    for which, odd in (("blocks.1.norm1.weight", 3), ("blocks.0.attn.qkv.weight", 2)):
        with torch.no_grad():
            p = live.model.get_parameter(which)
            before = p.clone()
            if rank == odd:
                p.view(-1)[5] *= 1.001
            with pytest.raises(CheckpointError, match="the weights of rank"):
                live.save(Checkpoints(folder / "checkpoints", 1), 1, {})
            p.copy_(before)
    live.save(Checkpoints(folder / "checkpoints", 1), 1, {})


def test_weights_that_drift_apart_are_noticed(tmp_path: Path) -> None:
    """Megatron-DeepSpeed: LayerNorms that all tensor-parallel ranks held grew different."""
    on(4, _drift, tmp_path)
