"""Every hand-written kernel and its gradients against the plain formula beside it, evaluated in float64."""

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from model.kernels import attention, cross_entropy, fp8, gelu, linear, rotation
from tests.test_fp8 import NEEDS_FP8

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])


def relative(x: Tensor, exact: Tensor) -> float:
    return float((x.detach().double() - exact.detach().double()).norm() / exact.detach().double().norm())


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def measured(f: Callable[..., Tensor], *inputs: Tensor) -> list[Tensor]:
    """The output, and the gradients of all inputs that have one, for a fixed gradient of the output."""
    copies = [x.detach().clone().requires_grad_(x.is_floating_point()) for x in inputs]
    y = f(*copies)
    wanted = [x for x in copies if x.requires_grad]
    return [y.detach(), *torch.autograd.grad(y, wanted, random(*y.shape, seed=9).to(y.dtype))]


def errors(kernel: Any, formula: Any, dtype: torch.dtype, *inputs: Tensor) -> tuple[list[float], list[float]]:
    """Of the output and each gradient: the kernel's error, and that of the formula in the same precision; both against
    the formula in float64, on inputs that this precision can hold."""
    held = [x.to(dtype) if x.is_floating_point() else x for x in inputs]
    exact = measured(formula, *(x.double() if x.is_floating_point() else x for x in held))
    ours, plain = measured(kernel, *held), measured(formula, *held)
    return [relative(a, b) for a, b in zip(ours, exact, strict=True)], [
        relative(a, b) for a, b in zip(plain, exact, strict=True)
    ]


def assert_as_exact(kernel: Any, formula: Any, dtype: torch.dtype, *inputs: Tensor, slack: float = 1.15) -> None:
    ours, plain = errors(kernel, formula, dtype, *inputs)
    floor = 1e-6 if dtype == torch.float32 else 4e-3  # one rounding of the result
    assert all(a <= max(slack * b, floor) for a, b in zip(ours, plain, strict=True)), (ours, plain)


def test_every_kernel_has_its_formula_and_is_tested_here() -> None:
    modules = (attention, cross_entropy, fp8, gelu, linear, rotation)
    files = {path.stem for path in Path(linear.__file__).parent.glob("*.py")} - {"__init__"}
    assert {module.__name__.rpartition(".")[2] for module in modules} == files
    assert all(callable(module.formula) for module in modules)


@DTYPES
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5, 3), (3, 5)], ids=str)
def test_linear(shape: tuple[int, int], bias: bool, dtype: torch.dtype) -> None:
    F, D = shape
    inputs = [random(2, 7, D), random(F, D, seed=1), *([random(F, seed=2)] if bias else [])]
    assert_as_exact(linear.linear, linear.formula, dtype, *inputs)
    if dtype == torch.float32:
        x, w, b = (t.float() for t in (*inputs, torch.zeros(F))[:3])
        fused = linear.gelu_product(x.flatten(0, 1), w, b)
        assert relative(fused, gelu.formula(linear.formula(x.double(), w.double(), b.double())).flatten(0, 1)) < 1e-6


@DTYPES
def test_gelu(dtype: torch.dtype) -> None:
    """Over more numbers than are computed at a time, and at its ends."""
    x = torch.cat((torch.linspace(-12, 12, 3 * gelu.CHUNK // 2), torch.tensor([-1e4, 0.0, 1e4]))).double()
    for kernel in (gelu.gelu, gelu._sigmoid_gelu):
        assert_as_exact(kernel, gelu.formula, dtype, x)
    assert gelu.gelu(x.to(dtype)).dtype == dtype
    torch_s = functools.partial(torch.nn.functional.gelu, approximate="tanh")
    assert relative(gelu.formula(x), torch_s(x)) < 1e-15  # the formula itself, against torch


@DTYPES
def test_rotation(dtype: torch.dtype) -> None:
    angle = random(6, 4).repeat(1, 2)
    cos, sin = angle.cos().to(dtype), angle.sin().to(dtype)
    x = random(2, 3, 6, 8, seed=1)

    def kernel(x: Tensor) -> Tensor:
        return rotation.rotate(x, cos.to(x.dtype), sin.to(x.dtype))

    def formula(x: Tensor) -> Tensor:
        return rotation.formula(x, cos.to(x.dtype), sin.to(x.dtype))

    assert_as_exact(kernel, formula, dtype, x)


@DTYPES
@pytest.mark.parametrize("layer", [1, 7])
@pytest.mark.parametrize("ahead", [False, True], ids=["causal", "all"])
def test_attention(ahead: bool, layer: int, dtype: torch.dtype) -> None:
    """In blocks of three queries, the last one short, where nothing ahead is seen; else in one."""
    T = 8
    unseen = torch.zeros(T, T, dtype=torch.bool) if ahead else torch.ones(T, T, dtype=torch.bool).triu(1)

    def kernel(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        return attention.attend(q, k, v, bias.masked_fill(unseen, -math.inf), T if ahead else 3, layer)

    def formula(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        return attention.formula(q, k, v, bias.masked_fill(unseen, -math.inf))

    bias = random(6, T, T, seed=3)  # as of a scheme that trains it
    assert_as_exact(kernel, formula, dtype, *(random(6, T, 4, seed=i) for i in range(3)), bias, slack=1.5)


def test_attention_drops_probabilities_and_their_gradients() -> None:
    q, k, v = (random(6, 8, 4, seed=i).requires_grad_() for i in range(3))
    bias = torch.zeros(6, 8, 8, dtype=torch.float64).masked_fill(torch.ones(8, 8, dtype=torch.bool).triu(1), -math.inf)

    def attend(*qkv: Tensor) -> Tensor:
        torch.manual_seed(5)  # the same are dropped each time
        return attention.attend(*qkv, bias, 3, 1, 0.3)

    assert torch.autograd.gradcheck(attend, (q, k, v), fast_mode=True)
    torch.manual_seed(0)
    runs = torch.stack([attention.attend(q, k, v, bias, 3, 1, 0.3).detach() for _ in range(4000)])
    error = (runs.mean(0) - attention.formula(q, k, v, bias)).abs() / (runs.std(0) / math.sqrt(4000) + 1e-12)
    assert error.max() < 5  # standard errors


@DTYPES
@pytest.mark.parametrize("rows", [512, 128])  # all 300 at once, and in blocks
def test_cross_entropy(rows: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cross_entropy, "ROWS_CPU", rows)
    monkeypatch.setattr(cross_entropy, "SOFTMAX_CPU", 50)
    targets = torch.randint(50, (300,), generator=torch.Generator().manual_seed(3))

    def in_fp32(x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:  # as torch's cross-entropy of fp32 logits
        logits = x @ weight.mT
        return torch.nn.functional.cross_entropy(logits if x.dtype == torch.float64 else logits.float(), targets)

    inputs = random(300, 24), random(50, 24, seed=1), targets
    assert_as_exact(cross_entropy.cross_entropy, in_fp32, dtype, *inputs)
    assert relative(in_fp32(*inputs), cross_entropy.formula(*inputs)) < 1e-14
    assert cross_entropy.cross_entropy(*(x.to(dtype) for x in inputs[:2]), targets).dtype == torch.float32


def test_a_loss_beyond_fp32_s_exponents_stays_finite() -> None:
    x, weight = torch.tensor([[1000.0, 0.0]]), torch.eye(2)
    assert 80 < cross_entropy.cross_entropy(x, weight, torch.tensor([1])) < 1001


@NEEDS_FP8
@pytest.mark.parametrize("bias", [True, False])
def test_fp8(bias: bool) -> None:
    """tests/test_fp8.py rounds the operands number by number, and has the gradients."""
    x, w, b = random(16, 48).bfloat16(), random(80, 48, seed=1).bfloat16(), random(80, seed=2).bfloat16()
    given = b if bias else None
    exact = fp8.formula(x, w, given)
    size = x.double().abs() @ w.double().abs().T
    assert ((fp8.linear(x, w, given).double() - exact).abs() <= 2**-8 * exact.abs() + 1e-6 * size).all()
    assert relative(exact, x.double() @ w.double().T + (b.double() if bias else 0.0)) > 0.01  # it does round
