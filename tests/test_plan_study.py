"""`make plan` of a study on hardware: layouts that fit, sums that add up, refusals, and the forms of its answer."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ablations.__main__ import main
from ablations.config import resolve
from ablations.plan import power, site_speed
from ablations.plan.command import parse_hardware, split_plan_options
from ablations.plan.hardware import GPUS, find_gpu, gpu_of_device
from ablations.plan.layouts import layouts_that_fit, layouts_to_show, memory_of_rank
from ablations.plan.study_cost import cost_figure, detectable_text, study_cost
from ablations.plan.throughput import Layout, Shape, predict_step
from ablations.study import from_args
from ablations.values import ConfigError
from model.memory import estimate_memory

WORDS = ["POS=alibi,none", "SIZE=1b3", "SET=train.precision=bf16", "SEEDS=2"]


@pytest.fixture(autouse=True)
def no_disk_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ablations.plan.study_cost._free_gigabytes", lambda out: None)
    monkeypatch.setenv("MEGAHOUR_GPU", "1")


def test_the_layouts_of_the_1b3_are_those_that_were_found_best() -> None:
    """BigScience on 8 V100 of 32 GB: tensor parallel 1, no recomputation, 23 s; with recomputation 28 s; TP 2 39 s."""
    run = resolve([("size", "1b3"), ("train.precision", "fp16")])
    found, _ = layouts_that_fit([run], find_gpu("v100-32"), 8)
    assert found[0].layout.tp == 1 and not found[0].layout.recompute
    one = next(c for c in found if c.layout.micro_batch == 1 and c.layout.tp == 1 and not c.layout.recompute)
    assert one.seconds == pytest.approx(23, rel=0.1)
    again = min(candidate.seconds for candidate in found if candidate.layout.recompute and candidate.layout.tp == 1)
    assert again == pytest.approx(28, rel=0.12)
    assert min(candidate.seconds for candidate in found if candidate.layout.tp == 2) > 1.2 * found[0].seconds
    assert not layouts_that_fit([run], find_gpu("v100-16"), 1)[0]


@settings(max_examples=25, deadline=None)
@given(
    size=st.sampled_from(["125m", "350m", "1b3", "bigscience-1b3"]),
    gpu=st.sampled_from(sorted(GPUS)),
    gpus=st.sampled_from([1, 2, 8, 32, 64]),
)
def test_layouts_that_are_shown_fit_and_divide_the_batch(size: str, gpu: str, gpus: int) -> None:
    overrides = [("size", size)] if size.startswith("big") else [("size", size), ("train.precision", "bf16")]
    run = resolve(overrides)
    found, reasons = layouts_that_fit([run], find_gpu(gpu), gpus)
    assert found or reasons
    for candidate in layouts_to_show(found):
        layout = candidate.layout
        assert memory_of_rank(run, layout) == candidate.gib < find_gpu(gpu).memory
        assert layout.dp * layout.tp == gpus and run.train.batch % (layout.dp * layout.micro_batch) == 0
        if run.train.ramp:
            assert run.train.ramp[0] % (layout.dp * layout.micro_batch) == 0
    assert [c.seconds for c in found] == sorted(c.seconds for c in found)


def test_recomputation_keeps_less_and_a_step_costs_a_third_more_products() -> None:
    model = resolve([("size", "1b3")]).model
    kept = [
        estimate_memory(model, 8, "bf16", 1, 8, 4, True, 1, recompute)["activations"] for recompute in (False, True)
    ]
    assert kept[1] < kept[0] / 5
    layouts = [Layout(8, 1, 1, 8, 512, 1, recompute) for recompute in (False, True)]
    slow = [predict_step(Shape.of(model), layout, find_gpu("a100")).parts["matmul"] for layout in layouts]
    assert 1.25 < slow[1] / slow[0] <= 4 / 3


def test_gpu_hours_add_up_and_shares_follow_the_budget(capsys: pytest.CaptureFixture) -> None:
    words = [*WORDS, "ON=8x8 a100", "FORMAT=json"]
    assert main(["plan", *words, "BUDGET=18 weeks, 52x8 A100-80, 4 spare"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert len(told["runs"]) == 6
    for run in told["runs"]:
        assert run["gpu_hours"] == pytest.approx(run["hours"] * told["gpus_per_run"])
        assert run["low"] < run["hours"] < run["high"]
        assert run["tokens"] == pytest.approx(run["tokens_per_second"] * 3600 * run["hours"])
        assert run["kwh"] == pytest.approx(run["gpu_hours"] * 0.4)
    total = sum(run["gpu_hours"] + run["evaluation_gpu_hours"] for run in told["runs"])
    assert told["gpu_hours"] == pytest.approx(total)
    assert told["share_of_budget"] == pytest.approx(total / 1_161_216)
    assert main(["plan", *words, "BUDGET=100 GPU-hours"]) == 2
    assert "the budget has 100" in json.loads(capsys.readouterr().out)["refused"][0]


def test_more_seeds_and_more_tokens_cost_more() -> None:
    def hours(*words: str) -> float:
        return study_cost(from_args([*words, "SIZE=125m", "SET=train.precision=bf16"]), find_gpu("a100"), 8).gpu_hours

    once = hours("POS=alibi", "SEEDS=1", "TOKENS=1B")
    assert hours("POS=alibi", "SEEDS=3", "TOKENS=1B") == pytest.approx(3 * once)
    assert hours("POS=alibi", "SEEDS=1", "TOKENS=2B") > 1.9 * once


def test_a_clock_gives_the_hours_and_the_speed_the_tokens() -> None:
    words = ["POS=alibi", "SIZE=125m", "SET=train.precision=bf16 train.budget=3h"]
    found = study_cost(from_args(words), find_gpu("a100"), 8)
    for run in found.runs:
        assert run.hours == run.low == run.high == 3
        assert run.tokens == pytest.approx(run.tokens_per_second * 3 * 3600, rel=1e-3)
        assert run.steps * 512 * 2048 == run.tokens and run.gpu_hours == 24
    assert any("clock" in note for note in found.notes)


def refused(*words: str, on: str = "a100", gpus: int = 8) -> str:
    return "\n".join(study_cost(from_args(list(words)), find_gpu(on), gpus).refused)


def test_what_speaks_against_a_study_is_said() -> None:
    bf16 = "SET=train.precision=bf16"
    assert not refused("POS=alibi", "SIZE=1b3", bf16)
    assert "does not fit" in refused("POS=alibi", "SIZE=1b3", bf16, on="v100-16", gpus=1)
    assert "no bf16" in refused("POS=alibi", "SIZE=125m", bf16, on="v100-32")
    # 3 GPUs cannot share 512 sequences
    assert "512, is no multiple of 3 replicas" in refused("POS=alibi", "SIZE=125m", bf16, gpus=3)
    # a wider MLP is said by its name; more layers are the question; another vocabulary multiple is neither
    assert not refused("ACT=swiglu-unmatched", "SIZE=125m", bf16)
    assert "parameters of the baseline, and its factor is not size" in refused(
        "ARM=model.vocab_multiple=32768", "SIZE=125m", bf16
    )
    slip = "SET=train.precision=bf16 train.tokens=400B train.decay_tokens=34B"  # tr5b's misplaced underscore
    assert "decays over 34B tokens, the budget is 400B" in refused("POS=alibi", "SIZE=125m", slip)


def test_a_full_disk_is_refused_where_the_runs_will_be(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("ablations.plan.study_cost._free_gigabytes", lambda out: 10.0)
    words = ["POS=alibi", "SIZE=1b3", "SET=train.precision=bf16"]
    assert "has 10 GB free" in refused(*words, f"OUT={tmp_path}")
    # from a laptop a plan for a cluster is not refused for the laptop's disk, but says what is needed
    monkeypatch.setattr("ablations.plan.study_cost.sees_gpu", lambda: False)
    monkeypatch.setattr("ablations.plan.study_cost.find_site_file", lambda: None)
    planned = study_cost(from_args(words), find_gpu("a100"), 8)
    assert not planned.refused and any("has 10 GB free" in note for note in planned.notes)
    for where in ("sees_gpu", "find_site_file"):
        with monkeypatch.context() as here:
            here.setattr(f"ablations.plan.study_cost.{where}", lambda: tmp_path)
            assert "has 10 GB free" in refused(*words)


def test_at_1b3_published_noise_says_what_the_27_tasks_see() -> None:
    """Three standard errors of 41 hundredths of a point are not seen with two seeds; encoders and clocks have none."""
    study = from_args(["STUDY=position", "SIZE=1b3"])
    least = power.detectable_difference(0.27, 0.41, 4, 2)
    assert f"it would see {least:.2g} points of their mean" in detectable_text(study) and "(assumed" in detectable_text(
        study
    )
    for words in (
        ["POS=alibi", "SIZE=125m"],
        ["STUDY=cram_schedule", "SIZE=1b3"],
        ["POS=alibi", "SIZE=1b3", "SEEDS=1"],
    ):
        assert "27 tasks" not in detectable_text(from_args(words))


def measured(path: Path, factor: float) -> None:
    """What make bench-gpu would write on a machine `factor` times as slow as is predicted."""
    shape, gpu = Shape.of(resolve([("size", "1b3")]).model), find_gpu("h100")
    lines: list[dict[str, Any]] = [{"case": "alibi, head 64", "faults": [], "device": "NVIDIA H100 80GB HBM3"}]
    for micro, loop, slower in ((8, "engine", factor), (16, "engine", factor), (16, "bare torch", 9 * factor)):
        layout = Layout(1, 1, 1, micro, 16 * micro, 1, False)
        speed = layout.batch * shape.seq / predict_step(shape, layout, gpu).seconds / slower
        row = {"size": "1b3", "position": "alibi", "precision": "bf16", "loop": loop, "micro_batch": micro}
        lines.append(row | {"accumulate": 16, "device": "NVIDIA H100 80GB HBM3", "tokens_per_second": speed})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"size": "1b')


def test_a_sites_own_measurements_replace_the_published_ones(tmp_path: Path) -> None:
    path = tmp_path / "bench-gpu.jsonl"
    study = from_args(["POS=alibi", "SIZE=350m", "SET=train.precision=bf16"])
    published = study_cost(study, find_gpu("h100"), 8, path)
    measured(path, 1.25)
    here = study_cost(study, find_gpu("h100"), 8, path)
    assert here.runs[0].hours == pytest.approx(1.25 * published.runs[0].hours)
    assert "measured here: 2 rows" in here.candidates[0].steps[0].basis
    assert site_speed.read_site_speed(find_gpu("a100"), path) is None


@pytest.mark.parametrize(
    "content",
    ["{\n", "[]\n", '{"tokens_per_second": 3}\n', "\xff\n"]
    + ['{"tokens_per_second": 0, "loop": "engine", "precision": "bf16", "device": "H100", "micro_batch": 1}\n']
    + ["[" * 100_000 + "\n"]
    + ['{"tokens_per_second": 3, "loop": "engine", "precision": "bf16", "device": "H100", "micro_batch": 1e999}\n'],
)
def test_damaged_measurements_are_named(content: str, tmp_path: Path) -> None:
    (tmp_path / "bench-gpu.jsonl").write_text(content, encoding="latin-1")
    with pytest.raises(ConfigError, match="bench-gpu.jsonl"):
        site_speed.read_site_speed(find_gpu("h100"), tmp_path / "bench-gpu.jsonl")


def test_devices_are_known_by_what_torch_calls_them() -> None:
    names = {
        "NVIDIA A100-SXM4-80GB": "a100-80",
        "NVIDIA A100-SXM4-40GB": "a100-40",
        "NVIDIA A100 80GB PCIe": "a100-pcie",
        "Tesla V100-SXM2-32GB": "v100-32",
        "Tesla V100-SXM2-16GB": "v100-16",
        "Tesla V100-PCIE-16GB": "v100-pcie",
        "NVIDIA H100 80GB HBM3": "h100",
        "NVIDIA H100 PCIe": "h100-pcie",
        "NVIDIA H100 NVL": "h100-nvl",
        "NVIDIA H200": "h200",
        "NVIDIA H200 NVL": "h200-nvl",
        "NVIDIA B200": "b200",
        "NVIDIA GB200": "gb200",
        "NVIDIA L40S": "l40s",
        "Tesla T4": "t4",
        "AMD Instinct MI300X": "mi300x",
        "NVIDIA GeForce RTX 2080 Ti": "2080ti",
        "NVIDIA RTX A6000": "a6000",
    }
    assert {name: gpu.name for name in names if (gpu := gpu_of_device(name))} == names
    unknown = ["cpu", "AMD EPYC 7763 64-Core Processor", "NVIDIA GH200 480GB", "NVIDIA T400", "NVIDIA RTX 6000 Ada"]
    assert not any(map(gpu_of_device, unknown))
    assert {gpu.name for gpu in GPUS.values()} - set(names.values()) == {"a4000"}


def test_the_picture_says_what_costs_what() -> None:
    drawn = cost_figure(study_cost(from_args(WORDS), find_gpu("a100"), 64))
    for words in ("pos=alibi", "matrix products", "communication", "evaluation", "GPU-hours, all seeds"):
        assert words in drawn
    widths = [float(width) for width in re.findall(r'width="([\d.]+)" height="12"', drawn)]
    assert len(widths) == 3 * 6 and max(sum(widths[i : i + 6]) for i in (0, 6, 12)) == pytest.approx(372, abs=0.5)


@pytest.mark.parametrize("how", ["json", "svg"])
def test_a_refusal_is_said_in_every_format(how: str, capsys: pytest.CaptureFixture) -> None:
    assert main(["plan", *WORDS, "ON=1 v100-16", f"FORMAT={how}"]) == 2
    assert "refused: " in capsys.readouterr().err


def test_hardware_is_named_in_several_ways() -> None:
    assert parse_hardware("a100") == (GPUS["a100-80"], 8)
    assert parse_hardware("8x4 v100") == (GPUS["v100-32"], 32)
    assert parse_hardware("4 H100") == (GPUS["h100"], 4)
    for text in ("0 h100", "-2x8 a100", "abacus", "8x8"):
        with pytest.raises(ConfigError):
            parse_hardware(text)
    assert split_plan_options(["ON=a100", "POS=alibi"]) == ({"ON": "a100"}, ["POS=alibi"])
    with pytest.raises(ConfigError, match="twice"):
        split_plan_options(["ON=a100", "ON=h100"])


@pytest.mark.parametrize(
    "words, said",
    [
        (["POS=alibi", "ON=abacus"], "v100-16"),
        (["POS=alibi", "ON=a100", "FORMAT=pdf"], "table, json, svg"),
        (["POS=alibi", "BUDGET=3 weeks, 2x8 a100"], "ON="),
        (["POS=alibi", "ON=a100", "BUDGET=18"], "unit of 18 is missing"),
        (["POS=alibi", "ON=a100", "PRICE=-1"], "above 0"),
        (["POS=alibi", "ON=a100", "BUDGET=1000 EUR", "PRICE=1e-300"], "a GPU-hour costs"),
        (["POS=alibi", "ON=a100", "BUDGET=1000 EUR", "PRICE=1e300"], "a GPU-hour costs"),
        (["POS=alibi", "ON=२x8 a100"], "no digit from 0 to 9"),
        (["POS=alibi", f"ON={'9' * 5000}x8 a100"], "more than 200 characters"),
        (["FORMAT=json"], "no question asked"),
        (["POS=alibi", "ON="], "empty"),
        (["POS=alibi", "ON=a100", "NEED=3B"], "NEED: only for what to train"),
        (["POS=alibi", "ON=a100", "TO=x", "NEED=3B"], "NEED and TO: only"),
        (["POS=alibi", "NEED=3B"], "NEED: only for what to train with a budget, such as BUDGET='18 weeks"),
        (["POS=alibi", "ON=a100", "PRICE=2"], "belongs to a budget of money"),
        (["POS=alibi", "ON=99999999999x8 a100"], "more than 1,000,000 GPUs"),
        (["POS=alibi", "ON=a100", "BUDGET=300B tokens"], "has no GPU-hours"),
        (["POS=alibi", "ON=a100", "BUDGET=1000 EUR"], "PRICE= of one GPU-hour is missing"),
    ],
)
def test_bad_words_end_with_2_and_say_what_is_allowed(
    words: list[str], said: str, capsys: pytest.CaptureFixture
) -> None:
    assert main(["plan", *words]) == 2
    assert said in capsys.readouterr().err


def test_plans_import_no_torch_and_little_else() -> None:
    """What decides how long the command takes, whatever the machine is busy with."""
    code = """
import contextlib, io, sys
from ablations.__main__ import main
with contextlib.redirect_stdout(io.StringIO()):
    main(["plan", *sys.argv[1:]])
heavy = {"torch", "transformers", "scipy.stats", "scipy.optimize", "pandas", "datatrove", "deepspeed"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""
    for words in (["STUDY=position", "SIZE=1b3", "ON=a100"], ["BUDGET=18 weeks, 52x8 A100-80, 4 spare", "FORMAT=json"]):
        subprocess.run([sys.executable, "-c", code, *words], check=True)
