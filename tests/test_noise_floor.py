"""The stored noise floor of a baseline: what is stored, where a study may use it, and what it then gives."""

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ablations.__main__ import main as command
from ablations.config import ConfigError
from ablations.criteria import Criteria
from ablations.noise_floor import NoiseFloor, read_noise_floor
from ablations.study import from_args
from eval.report import noise
from eval.report.comparison.gather import gather_findings
from eval.report.record import write_record_files
from eval.statistics.parts import Variance
from eval.statistics.seeds import combine_with_noise_floor
from launch import local
from tests import made_study
from tests.made_study import Study, change, make, section, values

ROOT = Path(__file__).parents[1]
SEEDS = [1001, 1002, 1003, 1004, 1005]  # that no study has


@pytest.fixture
def floor(tmp_path: Path) -> NoiseFloor:
    """Five runs of the baseline."""
    runs = make(Study(tmp_path / "noise", arms=["pos=learned"], seeds=SEEDS))
    path = tmp_path / "baseline-nano.json"
    path.write_text(json.dumps(noise.noise_floor_content(gather_findings(runs))))
    return read_noise_floor(str(path))


def judged_with(study: Study, floor: NoiseFloor | None) -> Any:
    return gather_findings(replace(study, criteria=Criteria(seeds=len(study.seeds), noise_floor=floor)))


def test_a_floor_is_the_variance_of_its_runs_and_says_what_it_is_of(floor: NoiseFloor, tmp_path: Path) -> None:
    content = floor.content
    row = values(Study(tmp_path / "noise", arms=["pos=learned"], seeds=SEEDS), "bits_per_byte")
    assert content["metrics"]["bits/byte"]["sd"] == pytest.approx(row[0].std(ddof=1))
    assert (content["metrics"]["bits/byte"]["dof"], content["metrics"]["zero-shot"]["unit"]) == (4, "points")
    assert (content["size"], content["tokens"], content["commit"]["sha"]) == ("nano", 1048576, "0123abc")
    assert content["settings"]["data.corpus"] == "pydocs" and "seed" not in content["settings"]
    few = make(Study(tmp_path / "few", arms=["pos=learned"], seeds=[1, 2]))
    with pytest.raises(ValueError, match="2 runs of pos=learned are finished and judged: 3 are needed"):
        noise.noise_floor_content(gather_findings(few))


def test_a_floor_of_two_seeds_is_refused_before_any_run(tmp_path: Path) -> None:
    """As make does it: nothing is trained, and it takes a moment."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    command = ["make", "-o", ".venv/ready", "noise", "SEEDS=2", "SIZE=nano", f"OUT={tmp_path}/außen"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "SEEDS=2: a noise floor is measured by 3 runs or more" in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_floor_names_the_code_of_all_its_runs(tmp_path: Path) -> None:
    runs = make(Study(tmp_path / "noise", arms=["pos=learned"], seeds=SEEDS))
    for seed, key, value in ((1003, "sha", "4567def89"), (1004, "sha", "4567def89"), (1005, "dirty", True)):
        change(runs.cell("pos=learned", seed).dir / "run.json", "commit", key, to=value)
    path = tmp_path / "baseline-nano.json"
    path.write_text(json.dumps(noise.noise_floor_content(gather_findings(runs))))
    several = read_noise_floor(str(path))
    code = "0123abc and 4567def and 0123abc with changes that are in no commit"
    assert several.code == code
    found = judged_with(make(Study(tmp_path / "runs", seeds=[1, 2])), several)
    write_record_files(found, tmp_path / "out")
    assert f"code {code}, " in section((tmp_path / "out/report.md").read_text(), "Differences from the baseline")
    change(path, "commits", to=[1])
    with pytest.raises(ConfigError, match="commits is not what"):
        read_noise_floor(str(path))


def test_a_study_borrows_the_degrees_of_freedom_of_its_floor(floor: NoiseFloor, tmp_path: Path) -> None:
    study = make(Study(tmp_path / "runs", seeds=[1, 2]))
    alone, borrowed = (judged_with(study, f).comparisons["bits/byte"]["pos=alibi"] for f in (None, floor))
    sd = floor.content["metrics"]["bits/byte"]["sd"]
    assert (alone.seeds.dof, borrowed.seeds.dof) == (2, 6)
    assert borrowed.seeds.variance == pytest.approx((2 * alone.seeds.variance + 4 * sd**2) / 6)
    assert borrowed.difference == alone.difference and borrowed.p < alone.p
    found = judged_with(study, floor)
    assert found.verdict_in_words("pos=alibi", "bits/byte").startswith("exploratory: better by")
    write_record_files(found, tmp_path / "out")
    text = section((tmp_path / "out/report.md").read_text(), "Differences from the baseline")
    assert f"Noise floor: {floor.identity}, 5 runs" in text and "chosen after the runs" in text


def test_a_floor_that_was_registered_decides(floor: NoiseFloor, tmp_path: Path) -> None:
    study = make(Study(tmp_path / "runs", seeds=[1, 2]))
    criteria = Criteria(seeds=2, noise_floor=floor)
    made_study.register(study, criteria)
    assert (
        gather_findings(made_study.registered(study, criteria))
        .verdict_in_words("pos=alibi", "bits/byte")
        .startswith("better by")
    )


@pytest.mark.parametrize(
    ("place", "to", "reason"),
    [
        ("config.size", "mini", "size: nano there, mini here"),
        ("config.train.tokens", 2097152, "train.tokens: 1048576 there, 2097152 here"),
        ("config.data.corpus", "pycode", "data.corpus: pydocs there, pycode here"),
        ("config.model.pos", "none", "model.pos: learned there, none here"),
        ("data.sha256", "other text", "the text: text there, other text here"),
    ],
)
def test_a_floor_of_another_baseline_is_refused_with_the_reason(
    place: str, to: Any, reason: str, floor: NoiseFloor, tmp_path: Path
) -> None:
    study = make(Study(tmp_path / "runs", seeds=[1, 2]))
    for arm in study.arms:
        for seed in study.seeds:
            change(study.cell(arm, seed).dir / "run.json", *place.split("."), to=to)
    with pytest.raises(ValueError, match="the noise floor baseline-nano.json is not that of this study") as error:
        judged_with(study, floor)
    assert reason in str(error.value)


def test_a_floor_of_another_baseline_is_refused_before_any_run(
    floor: NoiseFloor, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "baseline-nano.json"
    settings = json.loads(json.dumps(from_args(["POS=alibi", "SIZE=nano"]).base.flat()))
    change(path, "settings", to=settings)
    words = ["POS=alibi", f"NOISE_FLOOR={path}", f"OUT={tmp_path / 'out'}", "SEEDS=2"]
    assert command(["plan", "SIZE=nano", *words]) == 0
    capsys.readouterr()
    for other, reason in (
        (["SIZE=nano", "DATA=pycode"], "data.corpus: pydocs there, pycode here"),
        (["SIZE=pico"], "size: nano there, pico here"),
        (["SIZE=nano", "SET=train.lr=1e-3"], "train.lr: 0.002 there, 0.001 here"),
    ):
        assert command(["plan", *words, *other]) == 2 and local.main([*words, *other]) == 2
        said = capsys.readouterr().err
        assert said.count("NOISE_FLOOR=baseline-nano.json is of another baseline") == said.count(reason) == 2
    assert not (tmp_path / "out").exists()


def test_a_floor_that_was_judged_otherwise_is_refused(floor: NoiseFloor, tmp_path: Path) -> None:
    study = make(Study(tmp_path / "runs", seeds=[1, 2]))
    for arm in study.arms:
        for seed in study.seeds:
            change(study.cell(arm, seed).dir / "eval.json", "lm_eval", to="0.5.0")
    with pytest.raises(ValueError, match=r"lm_eval: .* there, 0\.5\.0 here"):
        judged_with(study, floor)


def test_a_setting_that_came_later_refuses_no_floor(floor: NoiseFloor, tmp_path: Path) -> None:
    """Runs from before it have the value that it had then; any other is another baseline."""
    study = make(Study(tmp_path / "runs", seeds=[1, 2]))
    for arm in study.arms:
        for seed in study.seeds:
            change(study.cell(arm, seed).dir / "run.json", "config", "data", "substring", to=0)
    assert judged_with(study, floor).comparisons["bits/byte"]["pos=alibi"].seeds.dof == 6
    for arm in study.arms:
        for seed in study.seeds:
            change(study.cell(arm, seed).dir / "run.json", "config", "data", "substring", to=50)
    with pytest.raises(ValueError, match="data.substring: 0 there, 50 here"):
        judged_with(study, floor)


def test_runs_of_the_floor_that_are_the_studys_own_are_counted_once(floor: NoiseFloor, tmp_path: Path) -> None:
    """Else the noise would be told by the runs that are compared, twice."""
    study = make(Study(tmp_path / "runs", seeds=SEEDS[:2]))
    c = judged_with(study, floor).comparisons["bits/byte"]["pos=alibi"]
    assert c.seeds and c.seeds.dof == 2 + 2


def test_nothing_is_borrowed_where_the_study_scatters_more_than_the_floor() -> None:
    part, share = Variance(2 * 1.0 / 2, 2), 2 / 2
    assert combine_with_noise_floor(part, share, Variance(0.01, 4)) == part
    assert combine_with_noise_floor(part, share, Variance(1.0, 4)) == Variance(pytest.approx(1.0), 6)
    assert combine_with_noise_floor(part, share, Variance(4.0, 4)) == Variance(
        pytest.approx((2 * 1.0 + 4 * 4.0) / 6), 6
    )  # only too careful
    assert (
        combine_with_noise_floor(part, share, Variance(0.0, 4)) == part
        and combine_with_noise_floor(Variance(0.0, 2), 1.0, Variance(0.0, 4)).dof == 6
    )


def test_a_file_that_is_no_floor_is_named(floor: NoiseFloor, tmp_path: Path) -> None:
    study = ["POS=alibi", "SIZE=nano", f"OUT={tmp_path}"]
    assert from_args([*study, f"NOISE_FLOOR={tmp_path / 'baseline-nano.json'}"]).criteria.noise_floor == floor
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "nan.json").write_text(json.dumps(floor.content | {"metrics": {"bits/byte": {"unit": "bits/byte"}}}))
    for name, words in (("none", "no such file"), ("list", "list.json"), ("nan", "not what a noise floor has")):
        with pytest.raises(ConfigError, match=words):
            from_args([*study, f"NOISE_FLOOR={tmp_path / name}.json"])
