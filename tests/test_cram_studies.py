"""The studies of "Cramming": every file makes a plan at a plain size and on its preset; parts of a recipe as arms."""

import io
import sys
from pathlib import Path

import pytest

from ablations import study_file
from ablations.__main__ import main
from ablations.config import ConfigError, presets, resolve, sizes_and_presets
from ablations.parts import PARTS, SETTINGS_OF_NO_PART, part_of_recipe
from ablations.plan.schedules import learning_rate_figure, schedule_drawings
from ablations.run import KEYS
from ablations.schedule import SCHEDULES
from ablations.study import from_args
from ablations.study_file import read_study, study_names
from ablations.values import difference

CRAM = [name for name in study_names() if name.startswith("cram")]


@pytest.mark.parametrize("size", ["nano", "crammed-v2"])
@pytest.mark.parametrize("name", CRAM)
def test_every_study_of_cramming_makes_a_plan(
    name: str, size: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    words = [f"STUDY={name}", f"SIZE={size}", "SEEDS=1", f"OUT={tmp_path}"]
    study = from_args(words)
    file = read_study(name)
    already = {(key, value) for key, value in file.arms if study.base.flat().get(key) == value}
    assert len(study.cells) == 1 + len(file.arms) - len(already)
    assert study.base.ends_by_clock and study.base.model.needs_mask_token and study.base.model.dropout == 0
    assert main(["plan", *words]) == 0
    plan = capsys.readouterr().out
    assert all(f"{key}={value}" in plan.split("left out")[1].splitlines()[0] for key, value in already)
    assert "learning rate over the budget" in plan and "runs of 24h of wall clock each" in plan
    # one place, one budget, one order of the seeds' text: nothing but the line differs
    base = study.cells[0].run.flat()
    for cell in study.cells:
        assert difference(base, cell.run.flat()) == cell.delta


def test_the_figures_have_their_arms() -> None:
    """The published ranges (Geiping & Goldstein 2022 and 2023), each at crammed-v2."""

    def values(name: str, key: str) -> set[object]:
        study = from_args([f"STUDY={name}", "SIZE=crammed-v2", "SEEDS=1"])
        return {cell.run.flat()[key] for cell in study.cells}

    assert values("cram_architecture", "model.layers") >= {4, 6, 8, 10, 12, 16, 18, 24}
    assert values("cram_architecture", "model.pos") >= {"learned", "sinusoidal", "rotary", "scaled-sinusoidal"}
    nine = values("cram_nine_schedules", "train.schedule")
    assert len(nine) == 9 and nine == SCHEDULES.keys() - {
        "inverse-sqrt",
        "warmup-stable-decay",
        "warmup-stable-decay-stable",
    }
    assert values("cram_peak", "train.lr") == {1e-4, 5e-4, 1e-3, 5e-3}
    assert values("cram_vocab", "model.vocab") == {2**power for power in range(11, 18)}
    assert values("cram_mask", "model.mask_rate") == {0.15, 0.2, 0.25, 0.4, 0.6}
    assert values("cram_batch", "train.batch") >= {256, 1536, 4096, 8192, 12288}
    assert values("cram_data", "data.substring") == {0, 50, 75, 100}
    study = from_args(["STUDY=cram_mask", "SIZE=crammed-v2", "SEEDS=1"])
    assert {(cell.run.train.batch, cell.run.model.dropout) for cell in study.cells} == {(8192, 0.0)}


def test_figure_2_is_nine_schedules_at_four_peaks() -> None:
    study = from_args(["STUDY=cram_nine_schedules", "SIZE=crammed-v2", "LR=0.1,0.5,1,5", "SEEDS=1"])
    pairs = {(cell.run.train.schedule, cell.run.train.lr) for cell in study.cells}
    assert len(study.cells) == len(pairs) == 36 and {lr for _, lr in pairs} == {1e-4, 5e-4, 1e-3, 5e-3}


def test_the_three_parts_are_all_that_two_presets_differ_in() -> None:
    study = from_args(["STUDY=cram_groups", "SIZE=crammed-v2", "SEEDS=1"])
    assert study.arms == ["baseline", *(f"{part}=bert-normal" for part in PARTS)]
    crammed, bert = (resolve([("size", name)]).flat() for name in ("crammed-v2", "bert-normal"))
    everything: dict[str, object] = {}
    for cell in study.cells[1:]:
        assert not everything.keys() & cell.delta.keys() and len(cell.delta) > 1
        everything |= cell.delta
    expected = {key: value for key, value in difference(crammed, bert).items() if part_of_recipe(key)}
    assert everything == expected
    outside = difference(crammed, bert).keys() - expected.keys()
    assert outside <= {"size", *SETTINGS_OF_NO_PART, *(key for key in KEYS if key.startswith("layout."))}
    training = study.cell("training=bert-normal", 1)
    assert training.delta["model.mask_rate"] == 0.15 and training.delta["model.dropout"] == 0.1
    assert training.delta["train.batch"] == 512 and training.dir.name == "training=bert-normal,seed=1"


def test_arms_of_unequal_size_are_no_fault_where_the_clock_makes_them_equal(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ablations.plan.study_cost._free_gigabytes", lambda out: None)
    words = ["STUDY=cram_architecture", "SIZE=crammed-v2", "SEEDS=1", f"OUT={tmp_path}", "ON=1 a6000"]
    assert main(["plan", *words]) == 0
    plan = capsys.readouterr().out
    assert "act=gelu has -15.8% parameters of the baseline: the clock makes the arms equal in time" in plan
    assert "a whole part of the recipe is the variant" in plan and "refused" not in plan


def test_at_a_plain_size_a_part_leaves_what_the_size_says() -> None:
    study = from_args(["STUDY=cram_groups", "SIZE=nano", "SEEDS=1", "SET=train.budget=10m"])
    size = sizes_and_presets()["nano"]["set"]
    for cell in study.cells:
        assert not cell.delta.keys() & size.keys() and cell.run.train.budget == "10m"
    assert study.cell("architecture=bert-normal", 1).run.model.block == "post-ln"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ARM=training=bert"], "training=bert is not one of bert-normal, "),
        (["ARM=training=crammed-v2", "SIZE=crammed-v2"], "two equal runs: training=crammed-v2 is the baseline"),
        (["ARM=train=bert-normal"], "there is no setting 'train'"),
        (["ARM=training=bert-normal", "ACT=swiglu", "CROSS=1", "SIZE=nano"], "CROSS combines single settings"),
    ],
)
def test_a_part_that_is_none_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        from_args(words)
    assert message in str(error.value)


def test_a_part_is_an_arm_in_words_too() -> None:
    study = from_args(["ARM=training=bert-normal", "SIZE=crammed-v2", "SEEDS=1"])
    assert study.cells[1].delta == from_args(["STUDY=cram_groups", "SIZE=crammed-v2"]).cells[2].delta
    assert set(presets()) >= {"bert-normal", "izsak", "crammed-v1", "crammed-v2"}


def test_what_a_study_expects_under_other_settings_is_not_what_words_expect() -> None:
    """cram_architecture has these arms too, for encoders under a wall clock."""
    for words in (["POS=alibi"], ["ARM=model.act=swiglu"]):
        assert "encoder" not in from_args([*words, "SIZE=nano"]).question


def test_a_base_may_name_another_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "one.yaml").write_text("question: a\nexpect: b\narms: []\nbase: {train.lr: 1.0e-3, train.beta2: 0.9}\n")
    (tmp_path / "two.yaml").write_text("question: a\nexpect: b\narms: []\nbase: {study: one, train.lr: 2.0e-3}\n")
    (tmp_path / "three.yaml").write_text("question: a\nexpect: b\narms: []\nbase: {study: two}\n")
    (tmp_path / "four.yaml").write_text("question: a\nexpect: b\narms: []\nbase: {study: five}\n")
    monkeypatch.setattr(study_file, "STUDIES", tmp_path)
    assert dict(read_study("two").base) == {"train.lr": 2e-3, "train.beta2": 0.9}
    for name, message in (("three", "two has no settings of its own"), ("four", "five is not one of four, one")):
        with pytest.raises(ConfigError, match=message):
            read_study(name)


def test_a_file_of_which_every_arm_is_the_baseline_is_no_study() -> None:
    with pytest.raises(ConfigError, match="all arms of the study are the baseline"):
        from_args(["STUDY=norm", "SET=model.norm=rmsnorm", "SIZE=nano"])


def test_schedules_are_drawn_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    study = from_args(["STUDY=cram_nine_schedules", "SIZE=crammed-v2", "SEEDS=1"])
    head, triangle, *others = schedule_drawings(study)
    assert head == "learning rate over the budget, each against its own peak:" and len(others) == 8
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="latin-1"))
    plain = schedule_drawings(study)
    monkeypatch.undo()
    assert triangle.endswith("schedule=budget-triangle2: 0.00025 to 0.001 to 0") and "█" in triangle
    digits = plain[1].split()[0]
    shares = [min(0.25 + i / 48, 4 - i / 12) for i in range(49)]  # 49 columns: t = i / 48
    assert len(digits) == 49 and all(abs(int(d) - 9 * t) < 0.5 + 1e-6 for d, t in zip(digits, shares, strict=True))
    assert learning_rate_figure(study).count("<path") > 9 and "schedule=dive-slow" in learning_rate_figure(study)
    same = schedule_drawings(from_args(["POS=alibi", "SIZE=nano", "SEEDS=1"]))
    assert len(same) == 2 and same[1].endswith("cosine: 0 to 0.002 to 0.0002")
    peaks = schedule_drawings(from_args(["STUDY=cram_peak", "SIZE=crammed-v2", "SEEDS=1"]))
    assert len(peaks) == 2 and all(f"to {peak} to 0" in peaks[1] for peak in ("0.0001", "0.0005", "0.001", "0.005"))
