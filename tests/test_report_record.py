"""The record that a report writes: which one gives way, where it is written, and on a full disk."""

import errno
import hashlib
import json
import os
import re
import shlex
import shutil
from pathlib import Path

import pytest

from ablations import safe_files
from ablations.study import from_args
from eval.report.__main__ import main
from eval.report.reading.collection import run_directories
from eval.report.request import Request
from tests.made_study import ARMS, Study, change, make, shift, study  # noqa: F401  # a fixture

ROOT = Path(__file__).parents[1]
DOMAINS = [
    f"corpora/{name}" for name in ("books", "qa_medquad", "technical_peps", "web_digitalgov", "wikinews", "wikipedia")
]
BLENDS = {  # of the record of corpora, by their paths in its command
    "blends/equal.yaml": {"blend": dict.fromkeys(DOMAINS, 1)},
    "blends/by_size.yaml": {"blend": DOMAINS, "alpha": 1},
}


def test_nothing_is_written_over_a_record_when_no_run_has_begun(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["POS=alibi", f"OUT={tmp_path / 'none'}"]) == 2
    assert "no run of this study has begun under" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_record_gives_way_only_to_a_report_that_has_its_runs(tmp_path, capsys, monkeypatch):
    made = make(Study(tmp_path / "runs", arms=list(ARMS)))
    monkeypatch.chdir(tmp_path)
    record, elsewhere = (tmp_path / folder / made.name for folder in ("ablations/records", "out/records"))

    def reported(arms: list[str], seeds: list[int], root: Path = made.root, *words: str) -> tuple[bool, bool]:
        """Whether each of the two was written."""
        for folder in (record, elsewhere):
            if folder.exists():
                (folder / "report.md").write_text("before")
        monkeypatch.setattr("eval.report.request.parse_request", lambda _: Request(Study(root, arms=arms, seeds=seeds)))
        assert main(["POS=alibi", "OUT=out", *words]) == 0
        return tuple(
            (folder / "report.md").exists() and (folder / "report.md").read_text() != "before"
            for folder in (record, elsewhere)
        )

    two = ["pos=learned", "pos=alibi"]
    assert reported(two, [1, 2]) == (True, False)  # there was none
    left = record / ".report.md.7.tmp"  # by a report that was killed
    left.write_text("hal")
    os.utime(left, (0, 0))
    assert reported(two, [1, 2]) == (True, False) and "stays" not in capsys.readouterr().out and not left.exists()
    assert reported(two, [1, 2, 3]) == (True, False)  # more
    assert reported(two, [1, 2]) == (False, True)  # fewer
    printed = capsys.readouterr().out
    assert f"{Path('out/records', made.name, 'report.md')}\n" in printed
    assert "it has runs that this report lacks: pos=learned (seed 3); pos=alibi (seed 3)." in printed
    again = make(Study(tmp_path / "again"))
    assert reported(two, [1, 2, 3], again.root) == (True, False)  # the same runs, made again
    of_alibi = {seed: again.cell("pos=alibi", seed).dir / "run.json" for seed in (2, 3)}
    fingerprints = {seed: json.loads(path.read_text())["fingerprint"] for seed, path in of_alibi.items()}
    (again.cell("pos=alibi", 2).dir / "done").unlink()
    assert reported(two, [1, 2, 3], again.root) == (False, True)  # not all of them are finished
    change(again.cell("pos=alibi", 2).dir / "run.json", "fingerprint", to="other")
    (again.cell("pos=alibi", 2).dir / "done").write_text("{}")
    assert reported(two, [1, 2, 3], again.root) == (False, True)  # a run of the same name that is another
    for seed in (2, 3):
        change(again.cell("pos=alibi", seed).dir / "run.json", "fingerprint", to=fingerprints[seed])
    assert reported(two, [1, 2, 3], again.root) == (True, False)
    capsys.readouterr()
    for arm in two:  # another text under the same path
        for seed in (1, 2, 3):
            change(again.cell(arm, seed).dir / "run.json", "data", "sha256", to="of größer")
    assert reported(two, [1, 2, 3], again.root) == (False, True)
    assert "it has runs that this report lacks: pos=learned (seeds 1, 2, 3); pos=alibi" in capsys.readouterr().out
    for runs in ([1], [{"arm": "a"}], [{"arm": "a", "seed": "1", "state": "finished"}]):  # which runs, is not known
        (record / "run.json").write_text(json.dumps({"runs": runs}))
        assert reported(two, [1, 2, 3], again.root) == (False, True)
    shutil.rmtree(record)
    assert reported(two, [1, 2, 3], again.root) == (True, False)
    shutil.copytree(again.root, "out/nano")
    assert len(run_directories("out")) == 6  # the reports that lie there are no runs


@pytest.mark.parametrize("path", sorted((ROOT / "ablations/records").glob("*/run.json")), ids=lambda p: p.parent.name)
def test_the_command_of_a_record_makes_its_runs(path, monkeypatch, tmp_path):
    """Else the command writes its report elsewhere: the record is of another baseline, and to be made again."""
    record = json.loads(path.read_text())
    if "corpora/" in record["command"]:  # typed beside a folder of corpora
        if not (corpora := ROOT.parent / "shared/data/corpora").is_dir():
            pytest.skip("needs ../shared/data/corpora")
        monkeypatch.chdir(tmp_path)
        Path("corpora").symlink_to(corpora)
        Path("blends").mkdir()
        for name, blend in BLENDS.items():
            Path(name).write_text(json.dumps(blend))  # JSON is YAML
    monkeypatch.setattr("ablations.config.has_gpu", lambda: False)
    monkeypatch.setattr("ablations.config.has_bf16", lambda: True)
    words = shlex.split(record["command"])[2:]
    planned = from_args(words + [f"SIZE={record['size']}"] * (not any(w.startswith("SIZE=") for w in words)))
    assert {cell.run.fingerprint for cell in planned.cells} == {run["fingerprint"] for run in record["runs"]}
    assert planned.name == path.parent.name


def test_no_record_is_of_data_at_a_place_of_one_machine():
    """As that of a trial is, which was committed with others once."""
    records = sorted((ROOT / "ablations/records").glob("*/run.json"))
    assert records
    for path in records:
        assert not re.search(r'[\s"=,:]/\w', path.read_text(encoding="utf-8")), path


def test_a_study_of_many_long_arms_has_a_short_name_of_its_own(tmp_path):
    """The folders of its runs are a format, and keep their names."""
    files = [tmp_path / f"корпус-{number}-{'x' * 40}.txt" for number in range(6)]
    for file in files:
        file.write_text("one\n\ntwo")
    words = ["SIZE=nano", f"OUT={tmp_path / 'out'}"]
    study, other = (from_args([f"DATA={','.join(map(str, chosen))}", *words]) for chosen in (files, files[1:]))
    assert re.fullmatch(r"corpus-6-arms-nano-[0-9a-f]{8}", study.name)
    assert re.fullmatch(r"corpus-5-arms-nano-[0-9a-f]{8}", other.name) and study.name[-8:] != other.name[-8:]
    arm = study.arms[1]
    assert study.cell(arm, 1).dir.name.endswith(f".txt_{hashlib.sha256(arm.encode()).hexdigest()[:6]},seed=1")
    assert len(study.question) < 600 and all(f"{'x' * 40}.txt" in name for name in study.question.split(", ")[1:])
    assert from_args(["POS=alibi", *words]).name == "position-alibi-nano"


@pytest.mark.parametrize(
    ("when", "number"), [("written", errno.ENOSPC), ("renamed", errno.ENOSPC), ("renamed", errno.EDQUOT)]
)
def test_a_full_disk_leaves_the_record_as_it_was(study, tmp_path, monkeypatch, capsys, when, number):
    monkeypatch.chdir(tmp_path)
    assert main([f"RUNS={study.root}"]) == 0
    (folder,) = (tmp_path / "ablations/records").iterdir()
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    shift(study.cell("pos=alibi", 1).dir, 0.5)
    calls = []

    def full(*args, **kwargs):
        calls.append(args)
        if len(calls) >= 3:
            raise OSError(number, os.strerror(number), str(args[0]))
        return real(*args, **kwargs)

    name = "os.fsync" if when == "written" else "ablations.safe_files.write_bytes"
    real = os.fsync if when == "written" else safe_files.write_bytes
    monkeypatch.setattr(name, full)
    capsys.readouterr()
    assert main([f"RUNS={study.root}"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: the report cannot be written: ") and "Make room" in error
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_read_only_checkout_has_its_report_in_out(study, tmp_path, monkeypatch, capsys):
    """As a checkout that another user owns, or that a container mounts read-only."""
    monkeypatch.chdir(tmp_path)
    real = Path.mkdir

    def mkdir(self, *args, **kwargs):
        if str(self).startswith("ablations"):
            raise OSError(errno.EROFS, "Read-only file system", str(self))
        real(self, *args, **kwargs)

    monkeypatch.setattr(Path, "mkdir", mkdir)
    assert main([f"RUNS={study.root}", "OUT=elsewhere"]) == 0
    printed = capsys.readouterr().out
    (folder,) = Path("elsewhere/records").iterdir()
    assert "the report is in elsewhere/records instead" in printed and (folder / "report.md").exists()
