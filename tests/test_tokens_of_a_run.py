"""A run does not start on tokens of another tokenizer, however they came to lie in its store."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from ablations.study import from_args
from data.prepare import prepare
from launch import manifest
from launch.train import main, train
from tests.tiny_run import TINY, study, words


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Of this module alone: its tests damage copies of all that is in it."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def run(corpus, store, tmp_path):
    """A cell, a store of its own with what it reads, and what that is."""
    cell = study(corpus, tmp_path).cells[0]
    cell.dir.mkdir(parents=True)
    prepare(corpus, corpus, TINY["model.vocab"], store / "data")
    shutil.copytree(store / "data", tmp_path / "data", dirs_exist_ok=True)
    return SimpleNamespace(
        cell=cell, store=tmp_path, corpus=corpus, made=prepare(corpus, corpus, TINY["model.vocab"], tmp_path / "data")
    )


def another(run):
    """The same text by a tokenizer of another kind with as many pieces."""
    return prepare(run.corpus, run.corpus, TINY["model.vocab"], run.store / "data", "unigram")


def stops(run, match):
    with pytest.raises(manifest.RunFailed, match=match):
        train(run.cell, run.store)
    assert not (run.cell.dir / "run.json").exists() and not (run.cell.dir / "metrics.jsonl").exists()


def test_tokens_of_another_tokenizer_in_the_folder(run):
    theirs, ours = (Path(made["train"][0]["prefix"]).parent for made in (another(run), run.made))
    shutil.rmtree(ours)
    theirs.rename(ours)
    stops(run, f"{ours} was made from something else: remove it")


def test_token_files_of_another_tokenizer_in_the_folder(run):
    theirs, ours = (made["train"][0]["prefix"] for made in (another(run), run.made))
    for end in (".bin", ".idx"):
        shutil.copy(theirs + end, ours + end)
    stops(run, rf"{ours}\.(bin|idx) is damaged: it has [\d,]+ bytes, and [\d,]+ were written\. Remove")


def test_another_tokenizer_in_the_folder(run, capsys):
    shutil.copy(another(run)["tokenizer"]["path"], run.made["tokenizer"]["path"])
    stops(run, r"tokenizer\.model is damaged: it has [\d,]+ bytes, and [\d,]+ were written\. Remove")
    cell = from_args(argv := words(run.corpus, run.store)).cells[0]
    assert main(["--cell", "0", *argv]) == 1  # as it is launched: a line, and the same for `make status`
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"error: {cell.name}: {run.store}/data/")
    assert "tokenizer.model is damaged" in (cell.dir / "failed").read_text()


def test_it_is_made_again_as_the_message_says_and_then_the_run_starts(run):
    before = {path: path.read_bytes() for path in (run.store / "data").rglob("*.model")}
    (path,) = before
    path.write_bytes(before[path][:-1])
    with pytest.raises(manifest.RunFailed, match=f"Remove {path.parent}"):
        train(run.cell, run.store)
    shutil.rmtree(path.parent)
    train(run.cell, run.store)
    assert (run.cell.dir / "done").exists() and path.read_bytes() == before[path]


def test_a_tokenizer_file_that_changed_under_its_name_stops_a_continued_run(run, tmp_path):
    """data.tokenizer=FILE: its content is part of what the run began with."""
    file = tmp_path / "tokenizer.model"
    change = {"data.tokenizer": str(file), "data.tokenizer_kind": "file"}
    cell = study(run.corpus, tmp_path / "other", change).cells[0]
    cell.dir.mkdir(parents=True)
    shutil.copy(run.made["tokenizer"]["path"], file)
    train(cell, run.store)
    record = json.loads((cell.dir / "run.json").read_text())
    assert record["data"]["tokenizer"]["sha256"] == run.made["tokenizer"]["sha256"]
    (cell.dir / "done").unlink()
    shutil.copy(another(run)["tokenizer"]["path"], file)
    with pytest.raises(manifest.Mismatch, match="the tokenizer is not the one that the run began with"):
        train(cell, run.store)
    assert json.loads((cell.dir / "run.json").read_text()) == record


@pytest.mark.parametrize("vocab", [511, 513])
def test_a_file_with_another_number_of_pieces_than_the_model(run, tmp_path, vocab):
    change = {"data.tokenizer": run.made["tokenizer"]["path"], "data.tokenizer_kind": "file", "model.vocab": vocab}
    cell = study(run.corpus, tmp_path / "other", change).cells[0]
    cell.dir.mkdir(parents=True)
    with pytest.raises(manifest.RunFailed, match=f"512 pieces.*model.vocab={vocab}"):
        train(cell, run.store)
