"""What runs on a GPU alone, tried on a CPU: tensors that say they are on a GPU take its branches.

Kernels, streams and speed are not tested here; docs/gpu.md says what was not run.
"""

from dataclasses import replace
from typing import Any

import pytest
import torch

from launch import attention_kernel
from launch.manifest import RunFailed
from model import attention, proof
from model.gpt import GPT
from model.objective import OBJECTIVES, Objective, Prefix, SpecialTokens
from model.position import POSITIONS
from model.proofs import probe
from tests.small_models import SMALL, scrambled, tokens

BIASED = [name for name, scheme in POSITIONS.items() if scheme(SMALL).has_bias]
UNBIASED = sorted(set(POSITIONS) - set(BIASED))


class OnGPU(torch.Tensor):
    """A tensor of a CPU that says otherwise, as does all that is computed from it."""

    is_cuda = True  # type: ignore[assignment]


def on_gpu(x: torch.Tensor) -> torch.Tensor:
    return x.as_subclass(OnGPU)  # type: ignore[return-value]


# ------------------------------------------------------------------------------------------------ attention


@pytest.mark.parametrize("kernel", [None, "flash"])  # a CPU has flash and the plain one
@pytest.mark.parametrize("objective", ["causal", "mlm"])
@pytest.mark.parametrize("pos", UNBIASED)
def test_attention_without_a_bias_is_the_formula_and_so_are_its_gradients(
    pos: str, objective: str, kernel: Any
) -> None:
    cfg = replace(SMALL, pos=pos, objective=objective)
    position, sees = POSITIONS[pos](cfg), OBJECTIVES[objective](cfg)
    q, k, v, grad = torch.randn(4, 2, 6, 32, 8, generator=torch.Generator().manual_seed(0)).unbind(0)
    x = torch.empty(2, 32, cfg.hidden)

    def outputs(attend: attention.Attend) -> list[torch.Tensor]:
        inputs = [t.clone().requires_grad_() for t in (q, k, v)]
        out = attend(*inputs)
        return [out, *torch.autograd.grad(out, inputs, grad)]

    expected = outputs(attention.plain_attention(position, 6, x, sees))
    found = outputs(attention.make_attention(position, 6, on_gpu(x), objective=sees, kernel_name=kernel))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kernel", [None, "flash", attention.FLEX])
@pytest.mark.parametrize("pos", POSITIONS)
def test_what_has_a_bias_goes_to_flex_and_so_does_what_is_asked_for(
    pos: str, kernel: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = replace(SMALL, pos=pos)
    called: list[str] = []
    for name in ("maskless_attention", "flexattention", "plain_attention", "masked_attention"):
        monkeypatch.setattr(attention, name, lambda *args, name=name: called.append(name))
    x = on_gpu(torch.empty(2, 32, cfg.hidden, dtype=torch.bfloat16))
    attention.make_attention(POSITIONS[pos](cfg), 6, x, objective=Objective(cfg), kernel_name=kernel)
    attention.make_attention(POSITIONS[pos](cfg), 6, x, objective=Prefix(cfg), extents_B=torch.tensor([1, 5]))
    assert called == [
        "flexattention" if pos in BIASED or kernel == attention.FLEX else "maskless_attention",
        "flexattention",
    ]


@pytest.mark.parametrize("pos", POSITIONS)
def test_flex_is_given_a_score_modification_only_where_there_is_a_bias(
    pos: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def flex(q: Any, k: Any, v: Any, score_mod: Any, block_mask: Any, kernel_options: Any) -> Any:
        seen.append(score_mod)
        # the kernel of training, for the proofs' short inputs too; not the one that torch has for decoding
        assert kernel_options == {"BACKEND": "TRITON"}
        return v

    monkeypatch.setattr("torch.nn.attention.flex_attention.flex_attention", flex)
    cfg = replace(SMALL, pos=pos)
    position, q = POSITIONS[pos](cfg), torch.zeros(2, 6, 32, 8)
    attention.flexattention(position, 6, torch.empty(2, 32, cfg.hidden), Objective(cfg))(q, q, q)
    assert [s is not None for s in seen] == [pos in BIASED]


@pytest.mark.parametrize(("pos", "kernel"), [("none", "flash"), ("learned", "efficient"), ("rotary", "cudnn")])
def test_the_proofs_judge_the_kernel_that_trains(pos: str, kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that was told a kernel is proved with it; where it sees what is to come, or a bias, the proofs fail."""
    model = GPT(replace(SMALL, pos=pos)).bfloat16()
    model.attention_kernel = kernel
    honest, called = attention.maskless_attention, []

    def watched(*args: Any) -> attention.Attend:
        called.append(args[2])
        return honest(*args)

    real = probe.increasing_tokens
    monkeypatch.setattr(probe, "increasing_tokens", lambda *args: on_gpu(real(*args)))
    monkeypatch.setattr(attention, "maskless_attention", watched)
    assert proof.prove_position(model).passed and proof.prove_objective(model).passed and set(called) == {kernel}
    monkeypatch.setattr(
        attention, "maskless_attention", lambda position, objective, name: watched(position, SeesAll, name)
    )
    assert not proof.prove_position(model).passed and not proof.prove_objective(model).passed


def model_on_gpu(**change: Any) -> GPT:
    """A model that says it is on a GPU."""
    model = GPT(replace(SMALL, **change)).bfloat16()
    model.embed.weight = torch.nn.Parameter(on_gpu(model.embed.weight.detach()))
    return model


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """A GPU that has the kernels cudnn, flash and Flex, in this order, and the seconds that each of them takes."""
    seconds = {"cudnn": 3.0, "flash": 1.0, attention.FLEX: 2.0}
    names = list(seconds)
    torch_kernels = {name: attention.TORCH_KERNELS["flash"] for name in ("cudnn", "flash")}  # a CPU has flash
    monkeypatch.setattr(attention, "TORCH_KERNELS", torch_kernels)
    monkeypatch.setattr(attention, "flexattention", attention.plain_attention)
    monkeypatch.setattr(attention_kernel.dist, "get_world_size", lambda: 1)

    def step_seconds(attend: Any, inputs: Any, grad: torch.Tensor) -> float:
        assert [x.shape for x in (*inputs, grad)] == [(2, 6, 32, 8)] * 4 and all(x.requires_grad for x in inputs)
        return seconds[names.pop(0)]

    monkeypatch.setattr(attention_kernel, "_forward_backward_seconds", step_seconds)
    return seconds


def test_kernels_that_a_device_lacks_are_left_out() -> None:
    """Of these a CPU has flash; Flex has no backward there."""
    model = GPT(replace(SMALL, pos="rotary")).bfloat16()
    assert list(attention_kernel.time_kernels(model, 2)) == ["flash"]
    assert attention_kernel.choose_kernel(model, 2) == {} and model.attention_kernel is None  # a CPU has no choice


def test_the_fastest_kernel_is_taken(timed: dict[str, float]) -> None:
    model = model_on_gpu(pos="rotary")
    expected = [("flash", 1.0), (attention.FLEX, 2.0), ("cudnn", 3.0)]
    assert list(attention_kernel.choose_kernel(model, 2).items()) == expected
    assert model.attention_kernel == "flash"


def test_a_kernel_whose_gradients_are_wrong_is_not_taken(
    timed: dict[str, float], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real, wrong_kernels = attention.maskless_attention, ["flash"]

    def wrong(position: Any, objective: Any, kernel: str, allow_plain: bool) -> attention.Attend:
        attend = real(position, objective, "flash", allow_plain)
        if kernel not in wrong_kernels:
            return attend
        return lambda q, k, v: attend(q, k, v) + 0.3 * (v - v.detach())  # right output

    monkeypatch.setattr(attention, "maskless_attention", wrong)
    model = model_on_gpu(pos="rotary")
    assert list(attention_kernel.choose_kernel(model, 2)) == [attention.FLEX, "cudnn"]
    assert model.attention_kernel == attention.FLEX
    assert "attention by flash is left out: its results are off by " in capsys.readouterr().out


@pytest.mark.parametrize("change", [{"pos": "rotary"}, {"pos": "alibi"}], ids=str)
def test_a_run_without_any_right_kernel_is_refused(
    change: dict[str, str], timed: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention_kernel, "TOLERANCE", 0.0)
    if change["pos"] == "alibi":
        monkeypatch.setattr(attention_kernel, "_forward_backward_seconds", lambda *_: 1.0)
    with pytest.raises(RunFailed, match="computes attention and its gradients right"):
        attention_kernel.choose_kernel(model_on_gpu(**change), 2)


def test_with_a_bias_flex_alone_is_tried(timed: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_kernel, "_forward_backward_seconds", lambda *_: 2.5)
    model = model_on_gpu(pos="alibi")
    assert attention_kernel.choose_kernel(model, 2) == {attention.FLEX: 2.5}
    assert model.attention_kernel == attention.FLEX


def test_kernels_are_timed_on_the_memory_layout_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch 2.11 keeps what cuDNN has compiled for a layout of queries, keys and values, and takes it for any layout of
    the output's gradient: a kernel that was timed on another one computes wrong gradients from then on."""
    real = attention.maskless_attention
    layouts: list[Any] = []

    def watched(*args: Any, **named: Any) -> attention.Attend:
        attend = real(*args, **named)

        def watch(*inputs: torch.Tensor) -> torch.Tensor:
            out = attend(*inputs)
            strides = [x.stride() for x in inputs]
            out.register_hook(lambda grad: layouts.append((*strides, grad.stride())))
            return out

        return watch

    monkeypatch.setattr(attention, "maskless_attention", watched)
    model = GPT(replace(SMALL, pos="none", layers=1)).bfloat16()
    attention_kernel.time_kernels(model, 2)
    x_BTD = on_gpu(torch.zeros(2, SMALL.seq, SMALL.hidden, dtype=torch.bfloat16))
    attend = attention.make_attention(model.position, SMALL.heads, x_BTD, objective=model.objective)
    model.blocks[0](x_BTD.as_subclass(torch.Tensor), attend).sum().backward()
    assert len(layouts) > 2 and len(set(layouts)) == 1


@pytest.mark.parametrize("change", [{"objective": "prefix"}, {"attn_dropout": 0.1}, {"qk_scaling": True}], ids=str)
def test_where_one_executor_alone_is_right_nothing_is_timed(change: dict[str, Any]) -> None:
    model = model_on_gpu(**change)
    assert attention_kernel.choose_kernel(model, 2) == {} and model.attention_kernel is None


class SeesAll:
    causal = False


def test_the_mask_of_blocks_is_made_before_a_graph_and_not_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Made in the graph it is a hundred operations in every forward pass."""
    torch._dynamo.reset()
    monkeypatch.setattr(attention, "BLOCK_MASKS", {})
    cfg = replace(SMALL, pos="alibi", seq=256)
    model = GPT(cfg).requires_grad_(False)
    batch = model.objective.batch(tokens(cfg, 257, B=2), tokens=SpecialTokens(0))
    monkeypatch.setattr(attention, "make_attention", lambda *args: attention.flexattention(*args[:3], *args[5:7]))
    sizes: list[int] = []

    def count(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        sizes.append(sum(node.op.startswith("call") for node in graph.graph.nodes))
        return graph.forward

    def compiled() -> torch.Tensor:
        torch._dynamo.reset()
        return torch.compile(model.hidden_states, fullgraph=True, backend=count)(batch.inputs_BT)

    late = compiled()
    assert attention.BLOCK_MASKS == {}  # nothing of a graph is kept
    attention.shared_block_mask(model.objective, 256, torch.device("cpu"))
    assert torch.equal(compiled(), late)
    assert sizes[1] < sizes[0] - 50


def test_a_mask_of_blocks_is_made_once_for_each_objective_length_and_device() -> None:
    causal, device = Objective(SMALL), torch.device("cpu")
    first = attention.shared_block_mask(causal, 128, device)
    assert attention.shared_block_mask(Objective(SMALL), 128, device) is first
    assert attention.shared_block_mask(causal, 256, device) is not first
    masked = replace(SMALL, objective="mlm")
    other = attention.shared_block_mask(OBJECTIVES["mlm"](masked), 128, device)
    assert other is not first and other.sparsity() < first.sparsity() + 1e-9


def test_a_whole_model_trains_alike_on_both_branches() -> None:
    """Losses and gradients in fp32, with the GPU's attention and GELU."""
    for pos in UNBIASED:
        model = scrambled(GPT(replace(SMALL, pos=pos)))
        rows = tokens(SMALL, 33)
        readings = []
        for x in (rows, on_gpu(rows)):
            loss = model.loss(model.objective.batch(x))
            grads = torch.autograd.grad(loss, list(model.parameters()))
            readings.append([loss.detach(), *grads])
        for ours, theirs in zip(*readings, strict=True):
            torch.testing.assert_close(
                ours.as_subclass(torch.Tensor), theirs.as_subclass(torch.Tensor), rtol=1e-3, atol=1e-5
            )
