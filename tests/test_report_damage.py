"""A report of damaged run directories, and of those of a stranger."""

import gzip
import json
import os
import re
import shutil
import subprocess
import sys
import xml.dom.minidom

import pytest

from ablations import drawing
from ablations.document.blocks import Section, Table
from ablations.document.formats import latex, markdown, plain_text, to_csv
from ablations.document.page import page
from eval.report.__main__ import main
from tests.made_study import FILES, change, report, section, study  # noqa: F401  # a fixture


def test_what_is_no_run_is_refused_by_name(study, tmp_path, capsys):
    path = study.cell("pos=alibi", 2).dir / "run.json"
    run = path.read_text()
    whole = json.loads(run)
    for content, words in (
        (json.dumps({k: v for k, v in whole.items() if k != "config"}), "it lacks config"),
        (json.dumps(whole | {"config": {"model": {}}}), "config.model.pos is not what a run has there"),
        (json.dumps(whole | {"hardware": {"device": 5}}), "hardware.device is not what"),
        (json.dumps(whole | {"proofs": [{"factor": 5}]}), "proofs.factor is not what"),
        (json.dumps(whole | {"proofs": [0]}), "proofs is not what"),
        (json.dumps(whole | {"rollbacks": [{"back_to": 8, "samples_left_out": [1], "why": ""}]}), "rollbacks is not"),
        (run[:99], "is not a JSON object"),
        ("[]", "is not a JSON object"),
        (run.replace("1350400", "NaN"), "is not a JSON object"),
    ):
        path.write_text(content)
        for request in ([f"RUNS={path.parent}"], ["POS=alibi", f"NOISE={path.parent}"]):
            if "NOISE" in request[-1]:
                request = [f"RUNS={study.root}", request[-1]]
            assert main(request) == 2
            message = capsys.readouterr().err
            assert str(path) in message and words in message


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("setpriv"), reason="needs root, to give up its rights")
@pytest.mark.parametrize("module", ["eval.report", "eval.report.noise", "eval.report.undecided"])
def test_runs_of_another_user_that_cannot_be_read_are_named(study, tmp_path, module):
    """As on a shared disk, where a colleague works with `umask 077`."""
    shutil.copytree(study.root, tmp_path / "shared/nano")
    folder = tmp_path / "shared/nano" / study.cell("pos=alibi", 2).dir.name
    os.chown(folder, 65534, 65534)
    folder.chmod(0o700)
    command = [sys.executable, "-m", module, "POS=alibi", "SEEDS=3", f"OUT={tmp_path}/shared"]
    process = subprocess.run(
        ["setpriv", "--inh-caps=-all", "--bounding-set=-all", *command], capture_output=True, text=True
    )
    assert process.returncode == 2 and "Traceback" not in process.stderr, process.stderr
    assert f"error: [Errno 13] Permission denied: '{folder}" in process.stderr


@pytest.mark.parametrize(
    "keys, to, why",
    [
        (
            ["bits_per_byte", "value"],
            1.0,
            "eval.json has 1 for bits_per_byte, and the items in samples.jsonl.gz give 2.39",
        ),
        (["zero_shot", "value"], 99.0, "eval.json has 99 for zero_shot, and the items"),
        (["zero_shot", "chance"], 5.0, "eval.json has a chance of 5 for zero_shot, and its tasks give"),
        (["tasks", "pydocs/last_word", "value"], 0.99, "eval.json has 0.99 for pydocs/last_word, and the items"),
        (
            ["tasks", "pydocs/other"],
            {"metric": "acc", "value": 0.99, "stderr": 0.1, "n": 9},
            "has no items of pydocs/other",
        ),
        (["tasks", "pydocs/last_word", "value"], float("nan"), "eval.json is damaged"),
        (["bits_per_byte", "value"], float("inf"), "eval.json is damaged"),
        (["tasks", "pydocs/last_word", "stderr"], "1e400", "tasks.pydocs/last_word.stderr is not what"),
        (["tasks"], [], "tasks is not what an evaluation has there"),
        (["corpora"], 1e30, "corpora is not what an evaluation has there"),
        (["lm_eval_tasks"], {"missing": 5}, "lm_eval_tasks.missing is not what an evaluation has there"),
        (["samples_sha256"], "beef", "samples.jsonl.gz is not the file that eval.json was written with"),
        (["tasks", "pydocs/last_word", "suite"], True, "tasks.pydocs/last_word.guess is not what"),
        (["by_domain"], {"pydocs": {"Github": 5}}, "by_domain.pydocs.Github is not what"),
    ],
)
def test_scores_that_are_not_those_of_the_items_are_refused(study, tmp_path, keys, to, why):
    change(study.cell("pos=alibi", 2).dir / "eval.json", *keys, to=to)
    assert report(study, tmp_path / "out").splitlines()[2].endswith("; 1 of 3 runs missing, 1 damaged")
    mismatches = section((tmp_path / "out/report.md").read_text(), "What does not match")
    assert mismatches.startswith("* pos=alibi, seed 2: damaged (") and why in mismatches


def test_numbers_that_no_run_has_are_left_out_of_the_curves(study, tmp_path):
    path = study.cell("pos=alibi", 2).dir / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row, wrong in zip(rows[-4:], ({"tokens": 0}, {"tokens": -0.0}, {"step": -1}, {"seconds": -1}), strict=True):
        row |= wrong
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    report(study, tmp_path / "out")
    mismatches = section((tmp_path / "out/report.md").read_text(), "What does not match")
    assert "pos=alibi, seed 2: metrics.jsonl is damaged: 4 lines have numbers that no run has" in mismatches


@pytest.mark.parametrize(
    ("edit", "why"),
    [
        (lambda rows: [*rows, rows[-1]], "the item 'copy_absent49' stands twice"),
        (
            lambda rows: [*rows[:-1], rows[-1] | {"value": 2}],
            "an item of pydocs/copy_absent that is not between 0 and 1",
        ),
        (lambda rows: [*rows[:-1], rows[-1] | {"value": -1}], "an item of pydocs/copy_absent that is not between 0"),
    ],
)
def test_items_that_stand_twice_or_are_no_scores_are_refused(study, tmp_path, edit, why):
    """Though the score is the one that they give."""
    folder = study.cell("pos=alibi", 2).dir
    rows = edit([json.loads(line) for line in gzip.decompress((folder / "samples.jsonl.gz").read_bytes()).splitlines()])
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "samples.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    values = [row["value"] for row in rows if row["task"] == "pydocs/copy_absent"]
    change(folder / "eval.json", "tasks", "pydocs/copy_absent", "value", to=sum(values) / len(values))
    report(study, tmp_path / "out")
    mismatches = section((tmp_path / "out/report.md").read_text(), "What does not match")
    assert mismatches.startswith("* pos=alibi, seed 2: damaged (") and why in mismatches


@pytest.mark.parametrize(
    "file", ["eval.json", "samples.jsonl.gz", "run.json", "metrics.jsonl", "failed", "eval-step_8.json"]
)
@pytest.mark.parametrize("damage", ["cut", "empty", "bytes", "list"])
def test_a_damaged_file_takes_no_other_run_with_it(study, tmp_path, monkeypatch, file, damage):
    """The run and its file are named, whatever it is, and the other five are reported."""
    folder = study.cell("pos=alibi", 2).dir
    path = folder / file
    if file == "failed":
        path.write_text("step 12: überlauf")
    if file == "eval-step_8.json":
        path.write_text((folder / "eval.json").read_text())
    content = path.read_bytes()
    middle = len(content) // 2
    damaged = {
        "cut": content[:middle],
        "empty": b"",
        "bytes": content[:middle] + b"\xff\xfe\x00\x1b[2J" + content[middle:],
        "list": b"[]\n",
    }
    path.write_bytes(damaged[damage])
    screen = report(study, tmp_path / "out")
    text = (tmp_path / "out/report.md").read_text()
    assert "pos=learned (baseline)" in screen and "pos=alibi" in screen and "better by 0.0" in screen
    mismatches = section(text, "What does not match")
    if not (file == "metrics.jsonl" and damage in ("cut", "empty")) and file != "failed":  # as a kill leaves them
        line = next(line for line in mismatches.splitlines() if line.startswith("* pos=alibi, seed 2: "))
        assert file in line and "damaged" in line
    assert str(tmp_path) not in text
    for name in FILES:
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f]", (tmp_path / "out" / name).read_text()), name
    monkeypatch.chdir(tmp_path)
    assert main([f"RUNS={study.root}", f"OUT={tmp_path}"]) == 0


HOSTILE = "\x1b[2J\x1b]0;owned\x07\u202ereversed\x00<script>\r\n## Heading"


def test_a_strangers_names_cannot_steer_a_terminal_or_a_page(study, tmp_path, capsys, monkeypatch):
    """Control codes in every text of a run directory: none reaches a file or the screen raw."""
    for arm in study.arms:
        for seed in study.seeds:
            folder = study.cell(arm, seed).dir
            for keys in (["commit", "sha"], ["versions", "torch"], ["hardware", "device"], ["proofs", 0, "detail"]):
                change(folder / "run.json", *keys, to=HOSTILE)
            change(folder / "run.json", "data", "mismatch", to=[HOSTILE])
            change(folder / "run.json", "config", "data", "corpus", to=f"{arm}{HOSTILE}")
            change(folder / "eval.json", "omitted", to=[HOSTILE])
            text = (folder / "eval.json").read_text().replace("last_word", json.dumps(f"last{HOSTILE}")[1:-1])
            (folder / "eval.json").write_text(text)
            rows = gzip.decompress((folder / "samples.jsonl.gz").read_bytes()).decode()
            rows = rows.replace("/last_word", f"/{json.dumps(f'last{HOSTILE}')[1:-1]}")
            (folder / "samples.jsonl.gz").write_bytes(gzip.compress(rows.encode(), mtime=0))
    (study.cell("pos=alibi", 3).dir / "done").unlink()
    (study.cell("pos=alibi", 3).dir / "failed").write_text(HOSTILE)
    monkeypatch.chdir(tmp_path)
    assert main([f"RUNS={study.root}"]) == 0
    printed = capsys.readouterr()
    (folder,) = (tmp_path / "ablations/records").iterdir()
    assert "last\\x1b[2J" in (folder / "report.md").read_text()
    texts = {"screen": printed.out + printed.err, **{path.name: path.read_text() for path in folder.iterdir()}}
    for name, text in texts.items():
        assert not re.findall("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", text), name
        assert not re.search("^## Heading", text, re.M), name
    xml.dom.minidom.parse(str(folder / "figure.svg"))
    assert "<script>##" not in (folder / "report.html").read_text()


def test_every_format_is_printable_whatever_it_is_given():
    table = Table(["arm", HOSTILE, "verdict"], [[HOSTILE, "1", f"**{HOSTILE}**"]], HOSTILE)
    sections = [Section("Head", [HOSTILE, table])]
    effect = (HOSTILE, 0.1, 0.2, "same", HOSTILE)
    line = drawing.Line(HOSTILE, 1, [1, 2], [1, 2])
    figures = [
        drawing.forest_plot(HOSTILE, [effect], HOSTILE),
        drawing.line_plot(HOSTILE, [line, line._replace(label="other")], HOSTILE, HOSTILE, marks={HOSTILE: 1.5}),
        drawing.heat_map(HOSTILE, [HOSTILE], [HOSTILE], [[(HOSTILE, 0.5, HOSTILE)]]),
    ]
    documents = [page(HOSTILE, sections), markdown(HOSTILE, sections), latex(table, HOSTILE), plain_text(table)]
    for text in [*documents, to_csv([[HOSTILE, 1]]), *figures]:
        assert "\\x1b[2J" in text or "textbackslash{}x1b[2J" in text
        assert not re.findall("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", text)
    for figure in figures:
        xml.dom.minidom.parseString(figure)
