"""What a report says of runs that do not match: missing, other, evaluated differently, or without effect."""

import gzip
import json
import shutil

import numpy as np
import pytest

from ablations.run import ABSENT
from eval.report.__main__ import main
from eval.report.comparison.comparable import exclude_misplaced_runs
from eval.report.comparison.gather import gather_findings
from eval.report.comparison.mismatches import find_mismatches
from eval.report.reading.runs import read_run
from eval.report.request import parse_request
from tests.made_study import ARMS, TASK, Cell, Study, change, make, report, rescore, rewrite, section, study  # noqa: F401  # a fixture


def test_a_run_that_failed_is_said_to_have_failed(study, tmp_path):
    folder = study.cell("pos=alibi", 2).dir
    for name in ("done", "eval.json"):
        (folder / name).unlink()
    (folder / "failed").write_text("step 12: loss 11.4, above log(vocab) + train.divergence = 10.3\n")
    assert report(study, tmp_path / "out").splitlines()[2].endswith("; 1 of 3 runs missing, 1 failed")
    page = section((tmp_path / "out" / "report.md").read_text(), "What does not match")
    assert "pos=alibi, seed 2: failed (step 12: loss 11.4, above log(vocab)" in page
    (folder / "run.json").unlink()  # a factor that does nothing stops a run before it has one
    assert report(study, tmp_path / "out").splitlines()[2].endswith("; 1 of 3 runs missing, 1 failed")


def test_one_proof_may_be_of_several_factors(study, monkeypatch):
    key, folder = "model.qkv_bias", study.cell("pos=alibi", 2).dir
    monkeypatch.setitem(ARMS, "pos=alibi", {key: False})
    cells = {(arm, seed): read_run(study.cell(arm, seed).dir) for arm in study.arms for seed in study.seeds}
    lacking = f"there is no activity proof of {key}"
    assert any(lacking in line for line in find_mismatches(study, cells))
    for seed in study.seeds:
        change(folder.parent / f"pos=alibi,seed={seed}/run.json", "proofs", 1, "factor", to=f"{key}, model.linear_bias")
    cells = {(arm, seed): read_run(study.cell(arm, seed).dir) for arm in study.arms for seed in study.seeds}
    assert not any(lacking in line for line in find_mismatches(study, cells))


def idle(study: Study, arm: str, other: str) -> None:
    """As when an arm computes what another does: the same training, and the same model judged."""
    for seed in study.seeds:
        for name in ("metrics.jsonl", "eval.json", "samples.jsonl.gz"):
            shutil.copy(study.cell(other, seed).dir / name, study.cell(arm, seed).dir / name)


def test_a_switch_that_did_nothing_is_said_at_the_top_and_is_no_result(tmp_path):
    study = make(Study(tmp_path / "runs", arms=list(ARMS)))
    report(study, tmp_path / "without")
    text = (tmp_path / "without/report.md").read_text()
    assert "did nothing" not in text and "bit for bit" not in text
    idle(study, "pos=none", "pos=learned")
    screen = report(study, tmp_path / "out")
    text = (tmp_path / "out/report.md").read_text()
    assert text.index("**pos=none did nothing.**") < text.index("| arm | ") and "pos=none did nothing. Its" in screen
    assert "same losses and gradient norms as those of pos=learned" in text
    line = next(line for line in text.splitlines() if line.startswith("| pos=none | "))
    assert line.endswith("| **the same as pos=learned, bit for bit** |") and "within noise" not in text.split("##")[0]
    record = json.loads((tmp_path / "out/run.json").read_text())
    assert record["bit_for_bit_the_same"] == {"pos=none": "pos=learned"}
    # the others are judged as if it were not there: a run that is there twice is no second measurement
    report(make(Study(tmp_path / "two")), tmp_path / "alone")
    alone = json.loads((tmp_path / "alone/run.json").read_text())
    assert record["comparisons"] == alone["comparisons"] and record["noise"] == alone["noise"]

    path = study.cell("pos=none", 3).dir / "metrics.jsonl"  # one digit at one step of one seed is something
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[-1]["loss"] = float(np.nextafter(rows[-1]["loss"], 9))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert "did nothing" not in report(study, tmp_path / "out")
    (path.parent / "done").unlink()  # what goes on may still differ; seeds 1 and 2 are enough to know
    assert "did nothing" in report(study, tmp_path / "out")
    for seed in (1, 2):
        (study.cell("pos=none", seed).dir / "done").unlink()
    assert "did nothing" not in report(study, tmp_path / "out")


def test_two_arms_that_did_the_same_are_no_two_results(tmp_path):
    study = make(Study(tmp_path / "runs", arms=list(ARMS)))
    idle(study, "pos=none", "pos=alibi")
    report(study, tmp_path / "out")
    assert "as those of pos=alibi" in (tmp_path / "out/report.md").read_text()
    idle(study, "pos=alibi", "pos=learned")
    idle(study, "pos=none", "pos=learned")
    assert (
        report(study, tmp_path / "out").count(
            "did nothing. Its runs logged the same losses and gradient norms as those of pos=learned"
        )
        == 2
    )
    only = make(Study(tmp_path / "only"))
    idle(only, "pos=alibi", "pos=learned")
    assert "pos=alibi did nothing." in report(only, tmp_path / "out")
    text = (tmp_path / "out/report.md").read_text()
    assert "No arm can be compared with the baseline: see above." in text and "yet" not in text


def test_missing_and_unfinished_cells_are_named(study, tmp_path):
    shutil.rmtree(study.cell("pos=alibi", 1).dir)
    (study.cell("pos=alibi", 2).dir / "eval.json").unlink()
    log = study.cell("pos=learned", 3).dir / "metrics.jsonl"
    log.write_text(log.read_text()[:-30])  # killed in the middle of a line
    (study.cell("pos=learned", 3).dir / "done").unlink()
    text = report(study, tmp_path / "out")
    assert text.splitlines()[1].endswith("1 of 3 runs missing")
    assert text.splitlines()[2].endswith("2 of 3 runs missing")  # and no seed in common: no verdict
    assert "3 things do not match" in text
    page = section((tmp_path / "out" / "report.md").read_text(), "What does not match")
    assert page.splitlines() == [
        "* pos=learned, seed 3: not finished, so not among the results",
        "* pos=alibi, seed 1: not started, so not among the results",
        "* pos=alibi, seed 2: not evaluated, so not among the results",
    ]
    (study.cell("pos=alibi", 3).dir / "samples.jsonl.gz").unlink()  # sent without
    assert report(study, tmp_path / "out").splitlines()[2].endswith("3 of 3 runs missing")
    shutil.rmtree(study.root)
    assert "-    " in report(study, tmp_path / "nothing")


@pytest.mark.parametrize(
    "file, keys, to, line",
    [
        ("run.json", ["commit", "sha"], "fff", "commit.sha differs: 0123abc ("),
        ("run.json", ["commit", "dirty"], True, "pos=alibi, seed 2: ran from a working tree with changes"),
        ("run.json", ["versions", "torch"], "2.12.0", "versions.torch differs: 2.13.0 ("),
        ("run.json", ["hardware", "threads"], 2, "hardware.threads differs: 1 ("),
        ("run.json", ["config", "layout", "processes"], 2, "layout.processes differs: 1 ("),
        ("run.json", ["execution"], {"compiled": "always"}, "layout.compile differs: none ("),
        (
            "run.json",
            ["continued"],
            [{"commit": {"sha": "fff", "dirty": False}, "versions": {}, "hardware": {}}],
            "pos=alibi, seed 2, when it was continued: commit.sha differs: 0123abc (begun); fff (continued)",
        ),
        ("run.json", ["data", "sha256"], "other", "text of pydocs differs: text ("),
        ("run.json", ["data", "mismatch"], ["numpy 1.0"], "pos=alibi, seed 2, text: numpy 1.0"),
        ("run.json", ["data", "tokenizer", "sha256"], "x", "tokenizer of pydocs with 4096 pieces differs: pieces ("),
        (
            "run.json",
            ["config", "train", "lr"],
            1e-3,
            "pos=alibi, seed 2: differs from the baseline in more than its line: train.lr=0.001",
        ),
        (
            "run.json",
            ["config", "train", "lr"],
            1e-3,
            "pos=alibi, seed 2: ran with another configuration than the study has now: train.lr=0.001",
        ),
        (
            "run.json",
            ["effective", "train.batch"],
            16,
            "pos=alibi, seed 2: differs in effect from the baseline in more than its line: train.batch=16",
        ),
        ("run.json", ["proofs", 0, "passed"], False, "pos=alibi, seed 2: the activity proof of model.pos failed"),
        ("run.json", ["proofs"], [], "pos=alibi, seed 2: there is no activity proof of model.pos"),
        (
            "run.json",
            ["rollbacks"],
            [{"why": "step 70: loss 9.1", "back_to": 64, "samples_left_out": [512, 600]}],
            "pos=alibi, seed 2: went back to step 64, and left out samples 512 to 600: step 70: loss 9.1",
        ),
        ("eval.json", ["version"], 2, "evaluation.version differs: 1 ("),
        ("eval.json", ["lm_eval"], "0.5", "evaluation.lm_eval differs: 0.4.13 ("),
        ("eval.json", ["omitted"], ["pydocs/copy_inside"], "pydocs/copy_inside: left out, the held-out text"),
    ],
)
def test_everything_that_does_not_match_is_said(study, file, keys, to, line):
    change(study.cell("pos=alibi", 2).dir / file, *keys, to=to)
    sentences = find_mismatches(
        study, {(arm, seed): read_run(study.cell(arm, seed).dir) for arm in study.arms for seed in study.seeds}
    )
    assert [sentence for sentence in sentences if sentence.startswith(line)], sentences


def test_a_run_that_was_compiled_only_when_it_was_continued_is_named(study):
    run = study.cell("pos=alibi", 2).dir / "run.json"
    launch = {key: json.loads(run.read_text())[key] for key in ("commit", "versions", "hardware")}
    modes = [{"execution": {"compiled": mode}} for mode in ("never", "always", "never")]
    change(run, "execution", to=modes[0]["execution"])
    change(run, "continued", to=[launch | mode for mode in modes[1:]])
    cells = {(arm, seed): read_run(study.cell(arm, seed).dir) for arm in study.arms for seed in study.seeds}
    said = "pos=alibi, seed 2, when it was continued: layout.compile differs: never (begun); always (continued)"
    assert [line for line in find_mismatches(study, cells) if "continued" in line] == [said]


def test_folders_of_another_arm_that_were_renamed_are_not_among_the_results(tmp_path):
    study = make(Study(tmp_path / "runs", ["pos=learned", "pos=alibi", "pos=none"]))
    for seed in study.seeds:
        shutil.rmtree(study.cell("pos=none", seed).dir)
        study.cell("pos=alibi", seed).dir.rename(study.cell("pos=none", seed).dir)
    study.arms.remove("pos=alibi")
    screen = report(study, tmp_path / "out")
    record = json.loads((tmp_path / "out/run.json").read_text())
    assert record["comparisons"] == [] and "better by" not in screen
    assert screen.splitlines()[2].endswith("3 of 3 runs missing")
    said = section((tmp_path / "out/report.md").read_text(), "What does not match")
    what = "its folder holds a run with model.pos=alibi, where the study has model.pos=none, so not among the results"
    assert said == f"* {' + '.join(f'pos=none, seed {seed}' for seed in study.seeds)}: {what}"


def test_a_folder_of_another_seed_that_was_renamed_is_not_among_the_results(study, tmp_path):
    study.cell("pos=alibi", 3).dir.rename(tmp_path / "kept")
    shutil.copytree(tmp_path / "kept", study.cell("pos=alibi", 4).dir)
    study.seeds = [1, 2, 4]
    make(Study(tmp_path / "runs", ["pos=learned"], [4]))
    findings = gather_findings(study)
    assert findings.results["bits/byte"]["pos=alibi"].keys() == {1, 2}
    said = "its folder holds a run with seed=3, where the study has seed=4, so not among the results"
    assert findings.mismatches == [f"pos=alibi, seed 4: {said}"]


def test_a_run_of_before_a_varied_setting_existed_has_what_was_in_effect_then(study, monkeypatch):
    arms = {"pos=learned": {}, "pos=alibi": {"train.schedule": "linear"}}
    cells = {(arm, seed): read_run(study.cell(arm, seed).dir) for arm in study.arms for seed in study.seeds}
    planned = study.cell

    def cell(arm, seed):
        config = planned(arm, seed).config
        config["train"]["schedule"] = arms[arm].get("train.schedule", ABSENT["train.schedule"])
        return Cell(planned(arm, seed).dir, config, arms[arm])

    monkeypatch.setattr(study, "cell", cell)
    states = {run: cell["state"] for run, cell in exclude_misplaced_runs(study, cells).items()}
    assert {arm for (arm, _), state in states.items() if state} == {"pos=alibi"}
    assert f"with train.schedule={ABSENT['train.schedule']}, where" in states["pos=alibi", 1]


def test_what_all_runs_share_is_said_once(study):
    for arm in study.arms:
        for seed in study.seeds:
            change(study.cell(arm, seed).dir / "run.json", "commit", "dirty", to=True)
    cells = {(arm, seed): read_run(study.cell(arm, seed).dir) for arm in study.arms for seed in study.seeds}
    assert find_mismatches(study, cells) == ["all runs: ran from a working tree with changes that are in no commit"]


@pytest.mark.filterwarnings("error::RuntimeWarning")  # a rank of runs without a task in common was NaN
def test_a_comparison_that_is_refused_is_said_last_and_in_the_exit_code(study, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([f"RUNS={study.root}", f"OUT={tmp_path}"]) == 0 and not capsys.readouterr().err
    change(study.cell("pos=alibi", 2).dir / "eval.json", "precision", to="bf16")
    assert main([f"RUNS={study.root}", f"OUT={tmp_path}"]) == 3
    error = capsys.readouterr().err
    assert error.startswith("refused: ") and error.endswith("the report is written, and says which\n")
    assert list(tmp_path.rglob("report.md"))


def test_an_arm_that_was_asked_other_questions_is_not_compared(study, tmp_path):
    path = study.cell("pos=alibi", 2).dir / "samples.jsonl.gz"
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()).replace(b'"d7"', b'"other"'), mtime=0))
    text = report(study, tmp_path / "out")
    assert text.splitlines()[2].endswith("evaluated differently: not compared")
    assert "Evaluated differently, so not compared: pos=alibi (seed 2): pydocs/bits_per_byte: items" in text
    comparisons = json.loads((tmp_path / "out" / "run.json").read_text())["comparisons"]
    assert [c["metric"] for c in comparisons] == ["zero_shot"]  # on which both were asked the same


@pytest.mark.parametrize(
    "key, to, why",
    [
        ("data", {"sha256": "beef"}, "data beef, not unknown"),
        ("version", 3, "version 3, not unknown"),
        ("chance", 0.3, "chance 0.3, not 0.05"),
        ("mean", False, "mean false, not true"),
        ("higher_is_better", False, "higher_is_better false, not true"),
        ("metric", "acc_norm", "metric acc_norm, not acc"),
        ("shots", 5, "shots 5, not unknown"),
        ("prompts_sha256", "beef", "prompts beef, not cafe"),
        ("items_sha256", "beef", "items' text beef, not cafe"),
    ],
)
def test_a_task_that_differs_is_left_out_of_the_comparison(study, tmp_path, key, to, why):
    """Its mean is compared over the tasks that both were asked in the same way, and what is left out is said."""
    for arm in study.arms:
        for seed in study.seeds:
            folder = study.cell(arm, seed).dir
            if key.endswith("sha256"):
                change(folder / "eval.json", "tasks", TASK, key, to="cafe")
            if arm == "pos=alibi" and seed == 2:
                change(folder / "eval.json", "tasks", TASK, key, to=to)
                rescore(folder)
    text = report(study, tmp_path / "out")
    assert f"{TASK}: {why}" in text
    record = {c["metric"]: c for c in json.loads((tmp_path / "out/run.json").read_text())["comparisons"]}
    assert "without" not in record["bits_per_byte"] and record["zero_shot"]["without"] == [TASK]
    assert "without 1 task that differ" in record["zero_shot"]["verdict"]
    value = {
        arm: np.mean(
            [
                json.loads((study.cell(arm, seed).dir / "eval.json").read_text())["tasks"]["pydocs/continuation"][
                    "value"
                ]
                for seed in study.seeds
            ]
        )
        for arm in study.arms
    }
    assert record["zero_shot"]["difference"] == pytest.approx(100 * (value["pos=alibi"] - value["pos=learned"]))
    assert (
        f"zero-shot: compared with pos=learned on what both were asked in the same way**, without {TASK}"
        in (tmp_path / "out/report.md").read_text()
    )


def test_a_run_that_was_asked_more_is_compared_on_what_both_were_asked(study, tmp_path):
    report(study, tmp_path / "before")
    before = json.loads((tmp_path / "before/run.json").read_text())["comparisons"]
    for seed in study.seeds:  # one more corpus: another held-out loss, and a task in the mean
        folder = study.cell("pos=alibi", seed).dir
        rows = gzip.decompress((folder / "samples.jsonl.gz").read_bytes()).decode().splitlines()
        more = [json.loads(row) for row in rows if '"nats"' in row or '"pydocs/last_word"' in row]
        more = [row | {"task": row["task"].replace("pydocs", "ünïcode")} for row in more]
        text = "".join(row + "\n" for row in [*rows, *map(json.dumps, more)])
        (folder / "samples.jsonl.gz").write_bytes(gzip.compress(text.encode(), mtime=0))
        tasks = json.loads((folder / "eval.json").read_text())["tasks"]
        for name in ("bits_per_byte", "last_word"):
            change(folder / "eval.json", "tasks", f"ünïcode/{name}", to=tasks[f"pydocs/{name}"])
        rewrite(folder, lambda row: row | {"nats": 9 * row["nats"]}, "ünïcode/bits_per_byte")
        change(folder / "eval.json", "corpora", to=["pydocs", "ünïcode"])
    report(study, tmp_path / "out")
    after = json.loads((tmp_path / "out/run.json").read_text())["comparisons"]
    assert [c["without"] for c in after] == [["ünïcode/bits_per_byte"], ["ünïcode/last_word"]]
    for one, other in zip(before, after, strict=True):
        assert {k: other[k] for k in ("difference", "noise", "p")} == pytest.approx(
            {k: one[k] for k in ("difference", "noise", "p")}
        )


@pytest.mark.parametrize("key, what", [(["data", "sha256"], "text"), (["data", "tokenizer", "sha256"], "tokenizer")])
def test_arms_that_read_another_text_under_the_same_name_are_not_compared(study, tmp_path, key, what):
    """A corpus that lost documents between two commands: no verdict, also where one seed alone read the other text."""
    change(study.cell("pos=alibi", 3).dir / "run.json", *key, to="another")
    screen = report(study, tmp_path / "out")
    assert screen.splitlines()[2].endswith("read another text under the same name: not compared")
    assert json.loads((tmp_path / "out/run.json").read_text())["comparisons"] == []
    assert f"{what} of pydocs" in section((tmp_path / "out/report.md").read_text(), "What does not match")
    places = parse_request([f"RUNS={study.root}"]).study
    assert "better" not in report(places, tmp_path / "places").split("±:")[0].replace("is better", "")
    # another recipe is another text by intention
    for seed in study.seeds:
        change(study.cell("pos=alibi", seed).dir / "run.json", "config", "data", "dedup", to="exact")
        change(study.cell("pos=alibi", seed).dir / "run.json", *key, to="another")
    if what == "text":
        report(study, tmp_path / "out")
        assert len(json.loads((tmp_path / "out/run.json").read_text())["comparisons"]) == 2
