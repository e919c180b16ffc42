"""Attempts to bring a study to a verdict by other means than its runs: each is said in the report."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ablations import rundir
from ablations.criteria import Criteria
from ablations.document.formats import markdown
from ablations.registration import FIXED_SEEDS, UNTIL_DECIDED, describe_changes
from eval.report.comparison.criteria import exceeded_seed_plan
from eval.report.comparison.gather import gather_findings
from eval.report.contents import make_sections
from eval.report.record import terminal_text
from tests import made_study

REGISTERED: dict[str, Any] = {
    "study": "position",
    "question": "Hilft ALiBi?",
    "expected": "ALiBi first.",
    "predictions": ["alibi < learned"],
    "arms": {"pos=learned": {}, "pos=alibi": {"model.pos": "alibi"}},
    "seeds": [1, 3],
    "design": "",
    "tasks": "",
    "metric": "bits/byte",
    "margin": {"bits/byte": "0.01 bits/byte"},
    "stopping": FIXED_SEEDS,
    "noise_floor": "",
}


def study_with(root: Path, contents_by_run: dict[tuple[str, int], dict[str, Any]] | None = None, **now: Any) -> Any:
    """A study of tests/made_study.py whose runs have REGISTERED, or what is given for a run, and which says `now`."""
    study = made_study.make(made_study.Study(root))
    for arm in study.arms:
        for seed in study.seeds:
            content = (contents_by_run or {}).get((arm, seed), REGISTERED)
            rundir.append_registration(study.cell(arm, seed).dir, content, 0)
    study = replace(study, criteria=Criteria(margins={"bits/byte": 0.01}, seeds=3))
    study.registration = REGISTERED | now
    return study


def report_of(study: Any) -> str:
    return markdown("t", make_sections(gather_findings(study)))


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("question", "Schadet ALiBi?", "the question was changed after 6 of 6 runs had begun"),
        ("expected", "ALiBi last.", "the expectation was changed"),
        ("predictions", ["learned < alibi"], "the predictions were changed"),
        ("arms", {"pos=learned": {}, "pos=none": {"model.pos": "none"}}, "the arms were changed"),
        ("seeds", [1, 9], "the seeds were changed"),
        ("design", "crossed: all 4 combinations of 2 factors", "the design was changed"),
        ("tasks", "suite", "the tasks were changed"),
        ("metric", "zero-shot", "the metric was changed"),
        ("margin", {"bits/byte": "0.5 bits/byte"}, "the margin was changed"),
        ("stopping", UNTIL_DECIDED, "the stopping rule was changed"),
        ("noise_floor", "quiet.json, sha256 0123", "the noise floor was changed"),
    ],
)
def test_what_is_said_otherwise_after_the_runs_is_told(tmp_path: Path, key: str, value: Any, told: str) -> None:
    assert told in report_of(study_with(tmp_path, **{key: value}))


def test_arms_of_the_same_names_and_other_settings_are_told() -> None:
    """As when a preset is edited: `training=bert-normal` is another recipe then."""
    then = REGISTERED | {"arms": {"baseline": {}, "training=größer": {"train.lr": 0.001}}}
    now = REGISTERED | {"arms": {"baseline": {}, "training=größer": {"train.lr": 0.002}}}
    (line,) = describe_changes(now, {"training=größer, seed 1": then}, 4)
    assert line.startswith("the arms were changed after 1 of 4 runs") and "0.001" in line and "0.002" in line
    assert describe_changes(then, {"baseline, seed 1": json.loads(json.dumps(then))}, 4) == []


def test_a_registration_that_was_deleted_is_told(tmp_path: Path) -> None:
    study = study_with(tmp_path)
    for arm in study.arms:
        folder = study.cell(arm, 2).dir
        first = rundir.read_registrations(folder)[0][0]["sha256"]
        made_study.change(folder / rundir.RUN, "registered", to=first)
        (folder / rundir.REGISTERED).unlink()
    text = report_of(study)
    assert "registered.jsonl does not begin with what run.json says was registered first" in text
    assert "registered before the first step in 4 of 6 runs" in text
    assert "not registered: pos=learned (seed 2); pos=alibi (seed 2)" in text
    assert "nothing was changed since" not in text and "cannot be told of every run" in text


def test_a_run_of_another_study_is_told(tmp_path: Path) -> None:
    """Copied over one of this study: of another configuration, and registered for another question."""
    study = study_with(tmp_path / "runs")
    folder = study.cell("pos=alibi", 3).dir
    made_study.change(folder / rundir.RUN, "config", "train", "lr", to=1e-2)
    (folder / rundir.REGISTERED).unlink()
    rundir.append_registration(folder, REGISTERED | {"study": "activation"}, 0)
    text = report_of(study)
    assert "pos=alibi, seed 3: ran with another configuration than the study has now: train.lr=0.01" in text
    assert "not registered: pos=alibi (seed 3)" in text


@pytest.mark.parametrize("kept", ["metrics.jsonl", "eval.json"])
def test_a_copied_run_is_no_second_seed(tmp_path: Path, kept: str) -> None:
    """Its run.json says another seed, and its losses or its weights those of the first."""
    study = study_with(tmp_path)
    assert "is a copy of the other" not in report_of(study)
    one, other = (study.cell("pos=alibi", seed).dir for seed in (1, 2))
    shutil.copy(one / kept, other / kept)
    if kept == "eval.json":
        shutil.copy(one / "samples.jsonl.gz", other / "samples.jsonl.gz")
    text = report_of(study)
    assert "pos=alibi, seed 2: trained exactly as pos=alibi, seed 1, to the last digit: one is a copy" in text
    assert gather_findings(study).results["bits/byte"]["pos=alibi"].keys() == {1, 3}
    for name in ("metrics.jsonl", "eval.json", "samples.jsonl.gz"):  # nor do two copies make a verdict without noise
        shutil.copy(one / name, study.cell("pos=alibi", 3).dir / name)
    assert gather_findings(study).verdict("pos=alibi", "bits/byte").kind == "undecided"


def test_seeds_that_were_added_by_hand_after_a_look_are_told(tmp_path: Path) -> None:
    two, three = REGISTERED | {"seeds": [1, 2]}, REGISTERED | {"seeds": [1, 3]}
    first = {(arm, seed): two for arm in ("pos=learned", "pos=alibi") for seed in (1, 2)}
    study = study_with(tmp_path / "added", first)
    findings = gather_findings(study)
    assert findings.seeds_planned == 2
    said = terminal_text(findings)
    assert "Seeds were added after the first 2, which were all that was planned" in said
    assert "the seeds were changed after 4 of 6 runs had begun: then `1 to 2`, now `1 to 3`" in report_of(study)

    older = {(arm, seed): content for (arm, seed), content in first.items() if arm == "pos=learned"}
    cases = {
        "as planned": {},
        "an older baseline": older,  # which another study has left
        "one seed is no look": {run: three | {"seeds": [1, 1]} for run in first if run[1] == 1},
        "by MORE=auto": dict.fromkeys(first, two | {"stopping": UNTIL_DECIDED, "seeds": [1, 10]}),
        "of a stranger": dict.fromkeys(first, two | {"seeds": ["1", None]}),
    }
    for name, contents_by_run in cases.items():
        made = study_with(tmp_path / name, contents_by_run)
        assert gather_findings(made).seeds_planned is None, name
        assert "Seeds were added after" not in terminal_text(gather_findings(made)), name
    assert exceeded_seed_plan(made, {}) is None
