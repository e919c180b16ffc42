"""Resources, and the model of step times and memory: against published measurements that the fit has not seen."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ablations.config import resolve
from ablations.plan import calibrate
from ablations.plan.hardware import GPUS, find_gpu
from ablations.plan.pipeline_memory import memory_verdict, peak_memory
from ablations.plan.resources import PF_DAY, PUBLISHED_HOURS, parse_budget
from ablations.plan.throughput import CALIBRATION, Layout, Shape, predict_step
from ablations.values import ConfigError
from model.count import count_parameters, flops_per_token

GPT3_1B3 = Shape(24, 2048, 16, 2048, 50304, 8192)


def test_the_budget_of_the_study() -> None:
    budget = parse_budget("18 weeks, 52x8 A100-80, 4 spare")
    assert budget.gpu_hours() == 1_161_216 == 18 * 7 * 24 * 48 * 8
    assert budget.cluster and budget.cluster.reserved_gpu_hours == 1_257_984
    assert round(budget.cluster.flops(100e12) / PF_DAY) == 4838
    assert parse_budget("18 weeks, 48x8 A100-80, 0 spare").gpu_hours() == 1_161_216
    assert sorted(str(PUBLISHED_HOURS)) == sorted("1161216")  # the source has two digits swapped


@pytest.mark.parametrize(
    "text, kind, amount",
    [
        ("4_500 PF-days", "model-flops", 4500 * PF_DAY),
        ("4500 model PF-days", "model-flops", 4500 * PF_DAY),
        ("1e22 peak FLOP, A100-80", "peak-flops", 1e22),
        ("1.2M GPU-hours, H100", "gpu-hours", 1.2e6),
        ("300B tokens", "tokens", 300e9),
        ("10k steps", "steps", 10e3),
        ("2M EUR", "money", 2e6),
        ("3 days, 2 nodes x 4 V100-32", "cluster", 3 * 24 * 8),
    ],
)
def test_budgets_in_every_unit(text: str, kind: str, amount: float) -> None:
    budget = parse_budget(text)
    assert (budget.kind, budget.amount) == (kind, pytest.approx(amount))


def test_what_one_unit_is_in_another_and_what_is_missing() -> None:
    assert parse_budget("312e12 peak FLOP, a100").gpu_hours() == pytest.approx(1 / 3600)
    assert parse_budget("900 EUR").gpu_hours(price=1.8) == pytest.approx(500)
    with pytest.raises(ConfigError, match="PRICE"):
        parse_budget("900 EUR").gpu_hours()
    with pytest.raises(ConfigError, match="no GPU-hours"):
        parse_budget("300B tokens").gpu_hours()


@pytest.mark.parametrize(
    "text, said",
    [
        ("-3 weeks, 52x8 A100", "above 0"),
        ("18, 52x8 A100-80", "unit of 18 is missing"),
        ("300", "unit of 300 is missing"),
        ("18 weeks", "lacks machines"),
        ("4,500 PF-days", "is no part of a number: 4500, or 4, 500"),
        ("1,200,000 GPU-hours, H100", "1200000, or"),
        ("24h", "a time alone, as `make cram` takes it"),
        ("10m", "a time alone, as `make cram` takes it"),
        ("52x8 A100", "lacks a time"),
        ("18 weeks, 52x8 A99", "v100-pcie, v100-16, v100-32, a100-pcie, a100-40, a100-80, h100-pcie, "),
        ("18 weeks, 0x8 A100", "above 0"),
        ("18 weeks, 4x8 A100, 4 spare", "cannot be spare"),
        ("18 weeks, 4x8 A100, 3 PF-days", "two budgets"),
        ("1 week, 2 weeks, 4x8 A100", "time twice"),
        ("1e22 peak FLOP", "need the hardware"),
        ("12 parsecs", "no unit"),
        ("2000 weeks, 1x8 a100", "years are more than 20"),
        ("2 weeks, 999999x8 a100", "more than 1,000,000 GPUs"),
        ("1e999 weeks, 1x8 a100", "finite"),
        ("1e-300 weeks, 1x8 a100", "less than a minute"),
        ("18 weeks, 4x8 A100, -1 spare", "0 or more"),
        ("18 weeks, 4x8 A100, 1.5 spare", "whole number"),
        ("१८ weeks, 52x8 A100", "'१' is no digit from 0 to 9"),
        ("18 weeks, ५२x8 A100", "'५' is no digit"),
        ("18 weeks, 52x8 A100, ４ spare", "'４' is no digit"),
        ("1e308 GPU-hours", "can be planned with"),
        ("1e308B tokens", "can be planned with"),
        ("1e-308 GPU-hours", "can be planned with"),
        ("h100, 52x8 A100, 18 weeks", "hardware twice"),
        ("9" * 5000 + "x8 A100, 18 weeks", "more than 200 characters"),
        ("", "empty"),
    ],
)
def test_a_budget_that_is_none_is_refused(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse_budget(text)


@settings(max_examples=200, deadline=None)
@given(
    st.one_of(
        st.text(max_size=40),
        st.lists(
            st.sampled_from(
                [
                    "18 weeks",
                    "52x8 A100-80",
                    "4 spare",
                    "300B tokens",
                    "-1",
                    "1e999",
                    "PF-days",
                    "h100",
                    "NaN days",
                    "1e300 weeks",
                    "1e-300 weeks",
                    "1e308B tokens",
                    "२ weeks",
                    "0 spare",
                    "9" * 5000 + "x8 h100",
                    "0x0 h100",
                ]
            )
        ).map(", ".join),
    )
)
def test_whatever_is_typed_is_a_budget_or_refused(text: str) -> None:
    try:
        budget = parse_budget(text)
    except ConfigError as error:
        assert str(error)
        return
    assert 0 < budget.amount < math.inf


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 900), st.integers(1, 2000), st.integers(1, 16), st.integers(0, 5))
def test_gpu_hours_grow_with_time_and_machines(weeks: int, nodes: int, each: int, spare: int) -> None:
    def hours(weeks: int, nodes: int, spare: int) -> float:
        return parse_budget(f"{weeks} weeks, {nodes + spare}x{each} h100, {spare + 1} spare").gpu_hours()

    if nodes > 1:
        once = hours(weeks, nodes, spare)
        assert once == pytest.approx(weeks * 168 * (nodes - 1) * each)
        assert hours(weeks + 1, nodes, spare) > once and hours(weeks, nodes + 1, spare) > once


def test_the_shape_counts_as_the_model_does() -> None:
    for size in ("nano", "125m", "1b3"):
        for act in ("gelu", "swiglu"):
            cfg = resolve([("size", size), ("model.act", act), ("model.pos", "none")]).model
            shape = Shape.of(cfg)
            assert shape.parameters == pytest.approx(count_parameters(cfg), rel=1e-3)
            assert shape.flops_per_token() == flops_per_token(cfg)


def test_the_logged_speed_of_the_176b_run_is_reproduced() -> None:
    """150.05 TFLOP/s at 104.50 s for a batch of 2048 on 384 GPUs, recomputation counted (BigScience's log)."""
    shape = Shape(70, 14336, 112, 2048, 250880, 4 * 14336)
    # Megatron counts the output matrix as if it were recomputed too: 96 B s L h^2 (1 + s / 6h + V / 16Lh)
    flops = 2048 * 2048 * shape.flops_per_token(recompute=True)
    assert flops / 104.50 / 384 / 1e12 == pytest.approx(150.05, abs=0.01)


def test_what_is_written_is_what_the_published_rows_say() -> None:
    written, anew = json.loads(CALIBRATION.read_text()), calibrate.calibrate()
    assert written.keys() == anew.keys()
    for group, values in written.items():
        for name, value in values.items():
            # weights to 1%: another scipy may round otherwise
            expected = anew[group][name]
            assert value == (expected if name == "sources" else pytest.approx(expected, rel=0.01))


def test_the_manual_shows_this_calibration() -> None:
    """docs/planning.md adds to the names in the first column what the rows are of."""
    lines = (Path(__file__).parents[1] / "docs/planning.md").read_text("utf-8").splitlines()
    head, _, *rows = calibrate.markdown_table(json.loads(CALIBRATION.read_text()))
    assert head in lines and len(rows) == len(calibrate.HOLD_OUT)
    for row in rows:
        name, values = row.removeprefix("| ").split(" | ", 1)
        assert [line for line in lines if line.startswith(f"| {name}") and line.endswith(f"| {values}")], row


def test_the_coverage_of_an_interval_is_that_of_rows_which_had_no_part_in_it() -> None:
    rng = np.random.default_rng(1)
    ratio = rng.normal(1, 0.1, 400)
    assert calibrate._held_out_coverage(range(400), ratio) == pytest.approx(0.8, abs=0.05)
    # two groups that lie apart: each is outside of what the other shows, though one interval of both holds four in five
    apart = np.concatenate([rng.normal(1, 0.01, 50), rng.normal(2, 0.01, 50)])
    assert calibrate._held_out_coverage([0] * 50 + [1] * 50, apart) == 0


def test_final_round_shapes_are_predicted_by_weights_that_never_saw_them() -> None:
    group = "Megatron-DeepSpeed, a100-80"
    rows = [
        row for row in calibrate.published_rows() if row.seconds and row.stack_and_gpu == group and not row.is_check
    ]
    predicted = calibrate.held_out_predictions(rows, calibrate.HOLD_OUT[group])
    errors = sorted(abs(p / (row.seconds or 1) - 1) for p, row in zip(predicted, rows, strict=True))
    assert len(rows) == 17 and errors[8] < 0.02 and errors[-1] < 0.10
    order, actual = ([sorted(v).index(x) for x in v] for v in (predicted, [row.seconds for row in rows]))
    n = len(rows)
    rank = 1 - 6 * sum((a - b) ** 2 for a, b in zip(order, actual, strict=True)) / (n * (n * n - 1))
    assert rank > 0.9


def test_rows_of_other_layouts_and_days_are_within_a_tenth_and_make_the_interval() -> None:
    """29 rows of tensor parallel 1 to 8 and pipelines of 1 to 48 stages, which no fit has seen."""
    rows = [row for row in calibrate.published_rows() if row.is_check]
    ratios = []
    for row in rows:
        prediction = predict_step(row.shape, row.layout, find_gpu(row.gpu), row.stack)
        ratios.append((row.seconds or 0) / prediction.seconds)
    assert len(rows) == 29 and sorted(abs(1 / ratio - 1) for ratio in ratios)[14] < 0.10
    low, high = json.loads(CALIBRATION.read_text())["Megatron-DeepSpeed, a100-80"]["interval"]
    assert 0.7 < sum(low <= ratio <= high for ratio in ratios) / 29 < 0.9


def test_every_group_is_predicted_within_a_tenth_in_the_median() -> None:
    told = json.loads(CALIBRATION.read_text())
    for group in calibrate.HOLD_OUT:
        assert told[group]["median error"] < 0.10 and told[group]["rank correlation"] > 0.9
    assert told["memory"]["median error"] < 0.10


def test_two_gpus_of_a_node_without_a_switch_have_the_links_between_them_alone() -> None:
    """NVLink 2: 25 GB/s a link, two of six to each other GPU of four. MI300X: 64 GB/s to each of seven."""
    assert GPUS["v100-32"].group_bandwidth(2) == 50e9 and GPUS["v100-32"].group_bandwidth(4) == 150e9
    assert GPUS["mi300x"].group_bandwidth(2) == pytest.approx(64e9) and GPUS["mi300x"].group_bandwidth(8) == 448e9
    assert GPUS["a100-80"].group_bandwidth(2) == GPUS["a100-80"].group_bandwidth(8) == 300e9
    layout = Layout(8, 2, 1, 1, 512, 1, False)
    pair = predict_step(GPT3_1B3, layout, GPUS["v100-32"])
    assert pair.seconds == pytest.approx(39, rel=0.1)  # bigscience experiments/tr3m-1B3.md; 32 by a link of 150 GB/s


@pytest.mark.parametrize(
    "shape, layout, gpu, tokens_per_second, tolerance",
    [  # none of them is among the rows of the fit
        # flash-attention's training/README.md; Megatron-LM's README
        (GPT3_1B3, Layout(8, 1, 1, 16, 512, 1, False), "a100-80", 21_100, 0.05),
        (
            Shape(24, 2048, 16, 4096, 131072, 8192),
            Layout(48, 1, 1, 4, 384, 1, False),
            "h100",
            36_300,
            0.12,
        ),  # Megatron-LM
    ],
)
def test_other_stacks_are_near(shape, layout, gpu, tokens_per_second, tolerance) -> None:
    seconds = predict_step(shape, layout, find_gpu(gpu)).seconds
    assert layout.batch * shape.seq / seconds / layout.gpus == pytest.approx(tokens_per_second, rel=tolerance)


def test_memory_of_published_layouts_and_those_that_ran_out() -> None:
    rows = [row for row in calibrate.published_rows() if row.gib or not row.fits]
    told = {}
    for row in rows:
        told[row] = memory_verdict(peak_memory(row.shape, row.layout, row.flash, row.fp32_sums), GPUS[row.gpu])
    ran_out = [row for row in rows if not row.fits]
    assert len(ran_out) == 7
    # 82 x 14336 is not: the published 94 x 13312, as large, took 67 GB in the same layout
    missed = [row for row in ran_out if told[row] == "fits"]
    assert [(row.shape.layers, row.shape.hidden) for row in missed] == [(82, 14336)]
    assert not [row for row in rows if row.fits and told[row] == "does not fit"]


@settings(max_examples=60, deadline=None)
@given(
    gpu=st.sampled_from(sorted(GPUS)),
    layers=st.integers(2, 80),
    heads=st.sampled_from([8, 16, 64]),
    micro=st.sampled_from([1, 2, 4]),
    tp=st.sampled_from([1, 2, 4]),
)
def test_more_work_takes_longer(gpu: str, layers: int, heads: int, micro: int, tp: int) -> None:
    layout = Layout(16, tp, 1, micro, 512, 1, False)
    times = [
        predict_step(Shape(count, heads * 128, heads, 2048, 50304, heads * 512), layout, find_gpu(gpu))
        for count in (layers, layers + 1)
    ]
    assert 0 < times[0].seconds < times[1].seconds and times[0].low < times[0].seconds < times[0].high
    assert math.isclose(sum(times[0].parts.values()), times[0].seconds)


def test_none_of_this_imports_torch_numpy_or_scipy() -> None:
    code = (
        "import sys; import ablations.plan.throughput as t, ablations.plan.resources, ablations.plan.pipeline_memory;"
        "t.calibration(); assert not {'torch', 'numpy', 'scipy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
