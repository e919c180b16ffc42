"""Studies that a small budget pays: each at the largest size at which it fits, and what that is said to tell."""

import json
import math
import shlex
from pathlib import Path

import pytest

from ablations.__main__ import main
from ablations.config import resolve
from ablations.plan import affordable, decision, decision_report
from ablations.plan.first_studies import STUDY_SHARE, STUDY_SIZE
from ablations.plan.hardware import find_gpu
from ablations.plan.resources import parse_budget
from ablations.study import from_args
from tests.schemas import checked


def planned(capsys: pytest.CaptureFixture, *words: str) -> dict:
    assert main(["plan", *words, "FORMAT=json"]) == 0
    return checked(capsys.readouterr().out)


@pytest.mark.parametrize(
    "budget", ["3 core-hours", "40 core-hours", "60 GPU-hours, a100", "9000 GPU-hours, h100", "500 GPU-hours, v100-32"]
)
def test_each_study_fits_and_its_next_larger_size_does_not(budget: str) -> None:
    parsed = parse_budget(budget)
    device, hours = affordable.budget_device(parsed), parsed.amount
    assert device
    runs = affordable.candidate_runs(device)
    found = affordable.affordable_studies(device, hours)
    assert found and [offer.hours for offer in found] == sorted(offer.hours for offer in found)
    for offer in found:
        assert offer.runs == offer.arms * offer.seeds and offer.hours <= hours
        place = next(i for i, run in enumerate(runs) if (run.size, run.train.tokens) == (offer.size, offer.tokens))
        assert offer.hours == pytest.approx(device.hours(runs[place]) * offer.runs)
        assert place == 0 or device.hours(runs[place - 1]) * offer.runs > hours or offer.study == "corpus"
        assert offer.study != "corpus" or offer.tokens < 1e8  # its corpora are small
    assert [run.size for run in runs] == sorted((run.size for run in runs), key=[*device.sizes].index)


def test_the_hours_of_a_core_are_those_of_the_first_command() -> None:
    """README: four runs of nano in 4 minutes 20 seconds on two cores."""
    nano = resolve([("size", "nano")])
    assert 4 * affordable.core_device().hours(nano) == pytest.approx(2 * 260 / 3600, rel=0.01)


def test_the_commands_of_what_is_offered_make_those_runs(tmp_path: Path) -> None:
    for budget in ("3 core-hours", "500 GPU-hours, a100"):
        parsed = parse_budget(budget)
        device = affordable.budget_device(parsed)
        assert device
        for offer in affordable.affordable_studies(device, parsed.amount):
            study = from_args([*shlex.split(affordable.study_command(offer))[2:], f"OUT={tmp_path}"])
            assert (study.base.size, len(study.cells)) == (offer.size, offer.runs), offer
            assert study.base.train.tokens == offer.tokens, offer


def test_a_small_cluster_is_told_which_studies_fit_and_a_large_one_is_not() -> None:
    made = decision.decide_what_to_train(parse_budget("2 weeks, 1x8 h100"))
    text = decision_report.document(made).to_markdown()
    assert not made.studies_to_run_first and made.smaller_studies and "## Ablations at a size that fits" in text
    assert {offer.size for offer in made.smaller_studies} < set(affordable.GPU_SIZES)
    assert all(offer.hours <= STUDY_SHARE * made.machines.gpu_hours for offer in made.smaller_studies)
    assert f"or cost more than 10% of the budget at {STUDY_SIZE}; at {made.smaller_studies[0].size}" in text
    assert "nor that it has the same sign there" in text and "make ladder" in text and "make laws" in text
    large = decision.decide_what_to_train(parse_budget("18 weeks, 52x8 A100-80, 4 spare"))
    assert not large.smaller_studies
    assert "at a size that fits" not in decision_report.document(large).to_markdown()


def test_a_run_takes_no_longer_than_there_is() -> None:
    gpu, run = find_gpu("a100"), resolve([("size", "350m"), ("train.tokens", 7_100_000_000)])
    alone = affordable.gpu_device(gpu, 8).hours(run)
    assert alone > 24 and affordable.gpu_device(gpu, 8, 24 * 3600.0).hours(run) == pytest.approx(alone, rel=0.3)
    assert math.isinf(affordable.gpu_device(gpu, 8, 60.0).hours(run))


def test_what_is_seen_is_by_the_noise_of_a_record_or_unknown(capsys: pytest.CaptureFixture) -> None:
    rows = planned(capsys, "BUDGET=2 core-hours")["studies"]
    nano = [row for row in rows if row["size"] == "nano"]
    assert nano and all((row["least"] or 0) > 0 and row["record"] for row in nano if row["study"] != "corpus")
    assert all(row["least"] is None for row in nano if row["study"] == "corpus")  # no record is of its texts
    rows = planned(capsys, "BUDGET=500 GPU-hours, a100")["studies"]
    assert rows and all(row["least"] is None and row["record"] == "" for row in rows)


def test_an_amount_of_hours_is_a_document_of_studies_alone(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["plan", "BUDGET=40 core-hours", f"TO={tmp_path}"]) == 0
    text = (tmp_path / "report.md").read_text("utf-8")
    assert text in capsys.readouterr().out and "SIZES=nano,mini,small TARGET=14m" in text
    (tmp_path / "mine.svg").write_text("<svg/>")
    (tmp_path / "report.md").write_text("![loss](loss.svg)\n\n![mine](other.svg)\n")  # an earlier plan's
    for name in ("loss", "other"):
        (tmp_path / f"{name}.svg").write_text("<svg/>")
    assert main(["plan", "BUDGET=40 core-hours", f"TO={tmp_path}"]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"report.md", "report.html", "mine.svg", "other.svg"}
    capsys.readouterr()
    assert planned(capsys, "BUDGET=1k EUR, a100", "PRICE=2")["hours"] == 500
    assert planned(capsys, "BUDGET=500 GPU-hours, a100")["unit"] == "GPU-hours"
    assert planned(capsys, "BUDGET=0.0001 core-hours")["studies"] == []
    assert main(["plan", "BUDGET=0.0001 core-hours", f"TO={tmp_path}"]) == 0
    assert "No study of ablations/studies with 3 seeds fits" in (tmp_path / "report.md").read_text("utf-8")


@pytest.mark.parametrize(
    "words, said",
    [
        (["BUDGET=500 GPU-hours"], "on hardware that is named"),
        (["BUDGET=1k EUR, a100"], "PRICE= of one GPU-hour is missing"),
        (["BUDGET=40 core-hours", "NEED=1B"], "NEED= is for machines for a time"),
        (["BUDGET=40 core-hours, 2 spare"], "spare nodes belong to a cluster"),
    ],
)
def test_an_amount_that_is_not_enough_is_told_what_is_missing(
    words: list[str], said: str, capsys: pytest.CaptureFixture
) -> None:
    assert main(["plan", *words]) == 2
    assert said in capsys.readouterr().err


def test_core_hours_do_not_pay_a_study_on_a_gpu(capsys: pytest.CaptureFixture) -> None:
    assert main(["plan", "POS=alibi", "SIZE=14m", "ON=a100", "BUDGET=40 core-hours"]) == 2
    assert json.dumps("40 core-hours").strip('"') in capsys.readouterr().err
