"""The benchmarks say what they measure: bench_gpu's comparison on what a CPU runs, and torch.compile in the engine."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from ablations.config import resolve
from launch import deepspeed_setup, engine, run_model
from model import attention, position
from model.gpt import GPT
from model.kernels import fp8, rotation
from tests import bench_gpu, bench_gpu_check
from tests.bench_gpu_check import POSITIONS, cases, kernels, wrong, wrong_by_kernel, wrong_in_fp8
from tests.bench_minimal import MinimalGPT
from tests.test_fp8 import NEEDS_FP8

TINY = [
    ("size", "nano"),
    ("model.layers", 1),
    ("model.hidden", 32),
    ("model.heads", 2),
    ("model.seq", 16),
    ("model.vocab", 100),
    ("train.batch", 2),
    ("layout.micro_batch", 2),
]


@pytest.mark.parametrize("pos", POSITIONS)
def test_what_runs_here_passes_the_comparison_of_bench_gpu(pos: str) -> None:
    assert wrong(pos, "cpu") == []


def test_kernels_that_are_not_there_are_not_compared() -> None:
    """Of these a CPU has flash; Flex has no backward there."""
    assert kernels("cpu") == ["flash"]
    assert wrong_by_kernel("cudnn", "cpu") is None


@pytest.mark.parametrize("case", ["mlm, alibi", "prefix, rotary", "fp16, rotary", "fp32, rotary"])
def test_objectives_and_precisions_that_are_not_timed_are_compared_too(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At a smaller shape than a GPU: fp16 is slow on a CPU."""
    smaller = {"model.hidden": 128, "model.heads": 2, "model.seq": 128}
    monkeypatch.setattr(bench_gpu_check, "SMALL", [*bench_gpu_check.SMALL, *smaller.items()])
    assert cases("cpu", POSITIONS, fp8=False, everything=True)[case]() == []


def checked(case_names: str, outcomes: dict[str, Any], path: Path, patch: pytest.MonkeyPatch) -> list[str]:
    """The cases that `bench_gpu.check` finds wrong, where each of the cases (a letter each) has the outcome given:
    faults, None, or an error that it raises."""

    def compare(case: str) -> Any:
        ran.append(case)
        if isinstance(outcomes[case], Exception):
            raise outcomes[case]
        return outcomes[case]

    ran: list[str] = []
    patch.setattr(bench_gpu, "cases", lambda *args: {case: lambda case=case: compare(case) for case in case_names})
    patch.setattr(sys, "argv", ["bench_gpu", "--check", "--rehearse", "--results", str(path)])
    wrong_cases = bench_gpu.check(bench_gpu.arguments(), "cpu")
    return ["".join(ran), "".join(wrong_cases)]


def test_a_case_that_fails_is_recorded_and_the_others_are_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """The next call compares first what was not compared yet, then what was wrong, and nothing else again."""
    path = tmp_path / "rows.jsonl"
    outcomes: dict[str, Any] = {
        "a": RuntimeError("größer als erlaubt\nmore"),
        "b": [],
        "c": None,
        "d": ["off"],
        "e": [],
    }
    assert checked("abcd", outcomes, path, monkeypatch) == ["abcd", "ad"]
    printed = capsys.readouterr().out.splitlines()
    assert printed == [
        "check: a: RuntimeError: größer als erlaubt",
        "check: b: equals the reference",
        "check: c: torch has none for this device and shape",
        "check: d: off",
    ]
    outcomes["d"] = []
    assert checked("abcde", outcomes, path, monkeypatch) == ["ead", "a"]


def test_a_gpu_that_takes_no_more_work_ends_the_check_and_the_next_one_begins_behind_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def poisoned() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    path, outcomes = tmp_path / "rows.jsonl", {"a": ["off"], "b": [], "c": []}
    with monkeypatch.context() as patch:
        patch.setattr(bench_gpu, "wait", poisoned)
        assert checked("abc", outcomes, path, patch) == ["a", "a"]
        assert "give the same command again" in capsys.readouterr().out
    assert checked("abc", outcomes, path, monkeypatch) == ["bca", "a"]


def test_every_case_of_the_check_is_compiled_however_many_there_are() -> None:
    """torch compiles a function for eight shapes, and runs it as it is for others."""
    compiled: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        compiled.append(len(inputs))
        return graph.forward

    def double(x: torch.Tensor) -> torch.Tensor:
        return 2 * x

    def compare(rows: int) -> list[str]:
        torch.compile(double, backend=backend, dynamic=False)(torch.ones(rows))
        return []

    for rows in range(2, 12):
        assert bench_gpu.compared(lambda rows=rows: compare(rows)) == []
    assert len(compiled) == 10


@NEEDS_FP8
def test_so_does_fp8_and_what_is_wrong_with_it_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    assert wrong_in_fp8("cpu") == []
    honest = fp8.fp8_scale
    for by in ({fp8.FORWARD: 64, fp8.BACKWARD: 1}, {fp8.FORWARD: 1, fp8.BACKWARD: 2**16}):  # all overflows
        monkeypatch.setattr(fp8, "fp8_scale", lambda x, kind, by=by: by[kind] * honest(x, kind))
        product, *gradients = wrong_in_fp8("cpu")
        assert "neither" in product and any("mlp.up.weight is off" in fault for fault in gradients)


def test_a_wrong_result_is_seen_by_bench_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The exact model runs in fp32, what is compared in bf16: here only that goes wrong."""
    honest, rotate = attention.masked_bias, rotation.rotate

    def lost(p: position.Position, heads: int, x: torch.Tensor, *rest: Any) -> torch.Tensor:
        return honest(p if x.dtype == torch.float32 else position.Position(resolve(TINY).model), heads, x, *rest)

    monkeypatch.setattr(attention, "masked_bias", lost)
    faults = wrong("alibi", "cpu")
    assert any("qkv.weight" in fault for fault in faults) and any("proof of model.pos" in fault for fault in faults)
    monkeypatch.setattr(attention, "masked_bias", honest)
    monkeypatch.setattr(rotation, "rotate", lambda x, *table: rotate(x, *table) if x.dtype == torch.float32 else x)
    assert any("qkv.weight" in fault for fault in wrong("rotary", "cpu"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_bench_gpu_says_so_in_one_line() -> None:
    command = [sys.executable, "-m", "tests.bench_gpu"]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and not done.stdout
    assert done.stderr == "error: make bench-gpu needs an NVIDIA GPU, and torch sees none\n"


@pytest.mark.parametrize(
    ("precision", "block"), [("fp32", "pre-ln"), ("bf16", "parallel"), pytest.param("fp8", "pre-ln", marks=NEEDS_FP8)]
)
def test_a_compiled_engine_trains_as_an_eager_one(precision: str, block: str) -> None:
    from deepspeed.accelerator import get_accelerator

    rows = torch.randint(100, (2, 17), generator=torch.Generator().manual_seed(0))

    def losses(compiled: str) -> list[float]:
        change = {"model.pos": "rotary", "model.block": block, "train.precision": precision, "layout.compile": compiled}
        run = resolve([*TINY, *change.items()])
        deepspeed_setup.initialise_process(run)
        built = engine.build_engine(run_model.build_model(run), run, 1)
        assert (built.compile_seconds > 0) == (compiled == "always")
        assert [proof.passed for proof in built.proofs] == ([True] if compiled == "always" else []), built.proofs
        waits: list[int] = []
        with pytest.MonkeyPatch.context() as patch, torch._dynamo.config.patch(error_on_recompile=True):
            # DeepSpeed's timer, which begins at the third step, made the host wait for a GPU, and compiled anew
            patch.setattr(type(get_accelerator()), "synchronize", lambda *args: waits.append(1))
            pairs = [built.step(built.model.objective.batch(rows), 1e-2)[:2] for _ in range(4)]
        assert not waits
        return [x for pair in pairs[:3] for x in pair]

    # in fp8 what is rounded otherwise is a sixteenth off, and the third gradient's norm has seen two such steps
    tolerance = {"fp32": 1e-5, "bf16": 2e-2, "fp8": 0.1}[precision]
    assert losses("always") == pytest.approx(losses("never"), rel=tolerance)


def test_batches_that_predict_more_or_fewer_tokens_are_not_each_compiled_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a prefix; torch would run the ninth as it is, uncompiled."""
    compile_module = torch.nn.Module.compile
    monkeypatch.setattr(engine.Loss, "compile", lambda self, **words: compile_module(self, **words, backend="eager"))
    torch._dynamo.reset()
    run = resolve([*TINY, ("model.pos", "rotary"), ("model.objective", "prefix"), ("layout.compile", "always")])
    deepspeed_setup.initialise_process(run)
    built = engine.build_engine(run_model.build_model(run), run, 1)
    rows = torch.randint(100, (2, 17), generator=torch.Generator().manual_seed(0))
    batches = [built.model.objective.batch(rows, seed) for seed in range(12)]
    assert len({batch.prediction_count for batch in batches}) > 8
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        for batch in batches:
            built.step(batch, 1e-2)


def test_a_row_that_is_there_is_not_measured_again_and_half_a_line_is_no_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    path = tmp_path / "rows.jsonl"
    words = ["--rehearse", "--positions", "rotary", "alibi", "--micro-batch", "1", "--results", str(path)]
    monkeypatch.setattr(sys, "argv", ["bench_gpu", *words])
    args = bench_gpu.arguments()
    numbers = dict.fromkeys(("tokens_per_second", "flops_per_second", "gigabytes", "estimated_gigabytes"), 7.0)
    for row in bench_gpu.rows(args):
        bench_gpu.append(path, row | numbers | {"mfu": None, "compile_seconds": 0.0})
    assert bench_gpu.table(args, [])  # else it would train for a minute
    assert capsys.readouterr().out.count("| 7 | 7e-12 TFLOP/s |") == len(bench_gpu.rows(args)) == 6
    path.write_text(path.read_text()[:-20])  # killed while it wrote
    args.limit = 0.0
    assert len(bench_gpu.results(path)) == 5 and not bench_gpu.table(args, [])
    assert "no time for rotary, fp8, bare, 1" in capsys.readouterr().out


def test_the_minimal_peer_computes_what_our_model_does() -> None:
    """With the same weights: else it would not do the same work."""
    model = GPT(resolve(TINY).model).double()
    m = model.cfg
    peer = MinimalGPT(m.padded_vocab, m.seq, m.layers, m.heads, m.hidden, m.mlp_width).double()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())), alpha=0.1)
    renamed = {re.sub("attn[.]|mlp[.]|position[.]", "", name): p for name, p in model.state_dict().items()}
    peer.load_state_dict(renamed, strict=True)
    tokens_BT = torch.randint(100, (2, m.seq), generator=torch.Generator().manual_seed(0))
    # our GELU computes in fp32
    torch.testing.assert_close(peer(tokens_BT), model(tokens_BT), rtol=1e-3, atol=1e-6)
