"""What is read is what was meant, and what was prepared is what is taken: files that changed, damage, a full disk."""

import gzip
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ablations.config import ConfigError
from ablations.study import from_args
from data import corpus, prepare, store, text
from data.filters import DEFAULT_RECIPE
from data.store import Store
from data.text import prepared_text
from tests.test_data_prepare import VOCAB, prose, save, train_documents, valid_documents

ROOT = Path(__file__).parents[1]
WORKABLE = [prose(f"w{i}") for i in range(200)]


def rewrite(path, content):
    """In place, with size and times kept, as an editor or `touch -r` may leave them."""
    state = path.stat()
    with open(path, "r+b") as file:
        assert len(content) == state.st_size
        file.write(content)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (state.st_size, state.st_mtime_ns)


# Files of a corpus


def test_a_file_changed_in_place_with_size_and_time_kept_is_another_one(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "RACY_SECONDS", -1e9)  # as if all were old: a young file is read again anyway
    path = Path(save(tmp_path / "a.jsonl", WORKABLE))
    where = Store(tmp_path / "store")
    old = path.read_bytes()
    for _ in range(2):  # remembered the second time
        before = store.content_hash(path, where)
    rewrite(path, old.replace(b"m\\u00e9", b"m\\u00e8"))
    assert path.read_bytes() != old and store.content_hash(path, where) != before
    rewrite(path, old)
    assert store.content_hash(path, where) == before
    for content in (b"", b"\xff", before.encode()[:-1], before.upper().encode()):  # a damaged note is not taken
        for note in (where.path / "hashes").iterdir():
            note.write_bytes(content)
        assert store.content_hash(path, where) == before


def test_a_young_file_is_read_again(tmp_path, monkeypatch):
    """Two writes within a tick of the clock leave the same times; here the time is given back with the inode's."""
    path = Path(save(tmp_path / "a.jsonl", WORKABLE))
    where = Store(tmp_path / "store")
    monkeypatch.setattr(store, "_file_state", lambda path: [str(path)])  # nothing tells that it changed
    before = store.content_hash(path, where)
    path.write_bytes(path.read_bytes().replace(b"m\\u00e9", b"m\\u00e8"))
    assert store.content_hash(path, where) != before
    monkeypatch.setattr(store, "RACY_SECONDS", -1e9)
    changed = store.content_hash(path, where)
    path.write_bytes(path.read_bytes()[:-9])
    assert store.content_hash(path, where) == changed  # an old one is remembered


def begun(study, made):
    """As if the first run of a study had been trained on this."""
    cell = study.cells[0]
    cell.dir.mkdir(parents=True, exist_ok=True)
    record = {"fingerprint": cell.run.fingerprint, "config": cell.config, "data": made}
    (cell.dir / "run.json").write_text(json.dumps(record))


@pytest.mark.parametrize("lost", ["training documents", "files", "the record of files"])
def test_a_corpus_that_changed_between_two_commands_is_refused_before_any_work(tmp_path, lost):
    """The held-out text is the same: without this the new arm would be compared with the finished baseline."""
    from launch.local import prepare_missing_data as prepare_study

    folder = tmp_path / "corpus"
    save(folder / "a.jsonl", WORKABLE[:150])
    save(folder / "b.jsonl", WORKABLE[150:])
    out = tmp_path / "runs"
    study = from_args(["POS=rotary", f"DATA={folder}", f"SET=model.vocab={VOCAB}", f"OUT={out}"])
    made = prepare.prepare(str(folder), str(folder), VOCAB, out / "data")
    if lost == "the record of files":  # of a run of an earlier version
        del made["sources"]
    begun(study, made)
    prepare_study(study, study.cells)
    before = {path for path in (out / "data").iterdir() if path.name != "hashes"}
    if lost == "files":
        (folder / "b.jsonl").unlink()
        sentence = r"the files of .*corpus changed: 2 files of [\d,]+ bytes \(sha256 \w{16}.*1 file of"
    else:
        held = [text for text in WORKABLE[:150] if corpus.is_held_out({"files": []}, "", text)]
        save(folder / "a.jsonl", held + WORKABLE[:60])
        sentence = "the (files|text) of .*corpus changed: .* then, .* now"
    with pytest.raises(ConfigError, match=sentence) as error:
        prepare_study(study, study.cells)
    assert str(study.cells[0].dir) in str(error.value) and "choose another OUT" in str(error.value)
    if lost != "the record of files":
        assert {path for path in (out / "data").iterdir() if path.name != "hashes"} == before


def test_another_tokenizer_under_the_same_name_is_refused_too(tmp_path):
    from launch.local import prepare_missing_data as prepare_study

    path = save(tmp_path / "a.jsonl", WORKABLE)
    study = from_args(["POS=rotary", f"DATA={path}", f"SET=model.vocab={VOCAB}", f"OUT={tmp_path / 'runs'}"])
    made = prepare.prepare(path, path, VOCAB, tmp_path / "runs" / "data", "byte-bpe")
    begun(study, made)
    with pytest.raises(ConfigError, match="the tokenizer of .*a.jsonl changed: sha256 .* then, .* now"):
        prepare_study(study, study.cells)


def test_a_folder_is_its_data_without_hidden_files_and_notes(tmp_path):
    folder = tmp_path / "d"
    save(folder / "a.jsonl", WORKABLE)
    save(folder / ".ipynb_checkpoints" / "a-checkpoint.jsonl", ["An old draft."])
    save(folder / "deep" / ".hidden.jsonl", ["Hidden."])
    save(folder / "_temporary" / "0" / "part.jsonl", ["Of a job that was killed."])
    save(folder / "deep" / "b.jsonl.copy", ["No data file."])
    (folder / "LICENSE.txt").write_text("Permission is hereby granted.\n\nNo warranty.\n")
    (folder / "thoughts.txt").write_text("To be cleaned.\n")
    (folder / "config.json").write_text('{"rows": 300}')
    spec = corpus.load_specification(str(folder))
    assert [path.name for path in spec["files"]] == ["a.jsonl"]
    made = prepare.prepare(str(folder), str(folder), VOCAB, tmp_path / "store")
    said = [note for note in made["notes"] if "not read" in note]
    left_out = ("a-checkpoint", ".hidden", "part", "LICENSE.txt", "thoughts.txt", "config.json")
    assert [name for name in left_out if name not in " ".join(said)] == []
    assert {d["text"] for d in train_documents(made) + valid_documents(made)} <= set(WORKABLE)
    (tmp_path / "own.yaml").write_text(f"files: ['**/*.jsonl']\npath: {folder}\n")
    assert [path.name for path in corpus.load_specification(str(tmp_path / "own.yaml"))["files"]] == ["a.jsonl"]


def test_two_kinds_of_data_in_a_folder_are_refused_with_a_glob(tmp_path):
    save(tmp_path / "d" / "a.jsonl", WORKABLE)
    (tmp_path / "d" / "poems.txt").write_text("\n\n".join(WORKABLE))
    with pytest.raises(ValueError, match=r"holds 1 .jsonl files \(.*\) and 1 .txt files .*/\*\*/\*.txt'"):
        corpus.load_specification(str(tmp_path / "d"))
    shutil.move(tmp_path / "d" / "a.jsonl", tmp_path / "a.jsonl")  # a folder of text alone, as OSCAR's
    assert [path.name for path in corpus.load_specification(str(tmp_path / "d"))["files"]] == ["poems.txt"]


def test_a_file_that_is_there_packed_too_is_read_once(tmp_path):
    save(tmp_path / "d" / "büro" / "a.jsonl", WORKABLE)
    save(tmp_path / "d" / "b.jsonl.gz", WORKABLE)
    assert len(corpus.load_specification(str(tmp_path / "d"))["files"]) == 2
    save(tmp_path / "d" / "büro" / "a.jsonl.gz", WORKABLE)
    with pytest.raises(ValueError, match=r"holds büro/a.jsonl and büro/a.jsonl.gz, .* such as '.*/\*\*/\*.jsonl.gz'"):
        corpus.load_specification(str(tmp_path / "d"))
    assert [path.name for path in corpus.load_specification(f"{tmp_path}/d/**/*.jsonl.gz")["files"]] == [
        "b.jsonl.gz",
        "a.jsonl.gz",
    ]


def test_a_name_that_is_no_utf8_is_said(tmp_path):
    name = os.fsdecode(bytes(tmp_path) + b"/caf\xe9.jsonl")
    save(Path(name), WORKABLE)
    with pytest.raises(ValueError, match="is not UTF-8: rename"):
        corpus.check(name)
    with pytest.raises(ValueError, match="is not UTF-8: rename"):
        corpus.check(str(tmp_path))


# Which documents


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_selected_documents_may_begin_in_any_file_and_format(tmp_path, form):
    import pyarrow
    from pyarrow import parquet

    for name, kind, begin in (("0-web", "Web", 0), ("1-books", "Books", 100)):
        rows = [{"text": text, "meta": {"pile_set_name": kind}} for text in WORKABLE[begin : begin + 100]]
        if form == "jsonl":
            (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
        else:
            parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / f"{name}.parquet")
    own = tmp_path / "own.yaml"
    own.write_text(f"files: ['*.{form}']\npath: {tmp_path}\nwhere: {{meta.pile_set_name: [Books]}}\nshare: 0.1\n")
    corpus.check(str(own))
    folder, about = prepared_text(str(own), DEFAULT_RECIPE, Store(tmp_path / "store"))
    texts = [json.loads(line) for path in folder.glob("train/*.jsonl") for line in open(path, encoding="utf-8")]
    assert texts and {d["text"] for d in texts} <= set(WORKABLE[100:]) and about["read"] == {"not selected": 100}
    assert {d["metadata"]["domain"] for d in texts} == {"Books"}
    own.write_text(own.read_text().replace("[Books]", "[Poems]"))
    with pytest.raises(ValueError, match=r"no document is selected by where=\{'meta.pile_set_name': \['Poems'\]\}"):
        prepared_text(str(own), DEFAULT_RECIPE, Store(tmp_path / "store"))


def test_a_column_that_parquet_lacks_is_named(tmp_path):
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"text": ["one", None], "kind": ["a", "b"]}), tmp_path / "a.parquet")
    own = tmp_path / "own.yaml"
    own.write_text(f"files: ['*.parquet']\npath: {tmp_path}\nwhere: {{meta.source: [a]}}\n")
    with pytest.raises(ValueError, match=r"no column \"meta\"; the columns are \['text', 'kind'\]"):
        prepared_text(str(own), DEFAULT_RECIPE, Store(tmp_path / "store"))
    with pytest.raises(ValueError, match=r'a.parquet:2: "text" is null'):
        prepared_text(str(tmp_path / "a.parquet"), DEFAULT_RECIPE, Store(tmp_path / "store"))


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_line_ends_of_every_system_and_a_byte_order_mark(tmp_path, end, mark):
    from tests.test_data import read

    content = mark + end.join([b"one", "zw\u00f6lf \ufeff".encode(), b"", b"", b"three", b" ", b"four"])
    (tmp_path / "a.txt").write_bytes(content)
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(content + end))
    for name in ("a.txt", "b.txt.gz"):
        assert read(tmp_path / name) == [
            (f"{name}:1", "one\nzw\u00f6lf \ufeff"),
            (f"{name}:5", "three"),
            (f"{name}:7", "four"),
        ]
    (tmp_path / "c.jsonl").write_bytes(mark + b'{"text": "one"}' + end.replace(b"\r", b"") + b'\n{"text": "two"}')
    assert [text for _, text in read(tmp_path / "c.jsonl")] == ["one", "two"]
    (tmp_path / "one.yaml").write_text(f"files: ['a.txt']\npath: {tmp_path}\nlayout: one-per-file\n")
    assert read(tmp_path / "one.yaml") == [("a.txt", "one\nzw\u00f6lf \ufeff\n\n\nthree\n \nfour")]


def test_a_small_corpus_is_refused_with_a_way_out_that_works(tmp_path):
    texts = [text for text in WORKABLE if not corpus.is_held_out({"files": []}, "", text)][:20]
    save(tmp_path / "small.jsonl", texts)
    with pytest.raises(ValueError, match=r"(?s)of 20 documents 0.02 are held out.*share: 0.25") as error:
        prepared_text(str(tmp_path / "small.jsonl"), DEFAULT_RECIPE, Store(tmp_path / "store"))
    lines = [line.strip() for line in str(error.value).splitlines() if line.startswith("  ")]
    (tmp_path / "small.yaml").write_text("\n".join(lines))
    _, about = prepared_text(str(tmp_path / "small.yaml"), DEFAULT_RECIPE, Store(tmp_path / "store"))
    assert 0 < about["valid"]["documents"] < 15 and about["share"] == 0.25
    for share in (0, 1, "half", True):
        (tmp_path / "small.yaml").write_text(f"files: ['*.jsonl']\npath: {tmp_path}\nshare: {share}")
        with pytest.raises(ValueError, match="share is"):
            corpus.load_specification(str(tmp_path / "small.yaml"))


# Damage


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A store, and what was prepared there; each test takes a copy."""
    folder = tmp_path_factory.mktemp("whole")
    path = save(folder / "a.jsonl", WORKABLE)
    prepare.prepare(path, path, VOCAB, folder / "store")
    return folder


def flip(path, at):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    rewrite(path, bytes(content))


DAMAGES = {
    "a byte of the tokens": lambda found: flip(found("*-tokens-*/train.bin"), 777),
    "a length in the index": lambda found: flip(found("*-tokens-*/train.idx"), 34),
    "a byte of the held-out text": lambda found: flip(found("*/valid.jsonl.gz"), 500),
    "a byte of the training text": lambda found: flip(found("*/train/00000.jsonl"), 30),
    "a byte of the tokenizer": lambda found: flip(found("*/tokenizer.model"), 999),
    "half of the held-out text": lambda found: os.truncate(path := found("*/valid.jsonl.gz"), path.stat().st_size // 2),
    "a file": lambda found: found("*/train/00000.jsonl").unlink(),
    "a figure of the manifest": lambda found: flip(
        path := found("*-tokens-*/manifest.json"), path.read_bytes().index(b'"train": ') + 9
    ),
    "half of the manifest": lambda found: os.truncate(found("*-tokens-*/manifest.json"), 400),
    "a manifest that is a list": lambda found: found("*-tokens-*/manifest.json").write_bytes(b"[]"),
    "a manifest nested too deep": lambda found: found("*-tokens-*/manifest.json").write_bytes(b"[" * 100_000),
    "an emptied manifest": lambda found: found("*-tokens-*/manifest.json").write_bytes(b""),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named_with_what_helps(tmp_path, whole, damage):
    shutil.copytree(whole / "store", tmp_path / "store")
    path = str(whole / "a.jsonl")
    made = prepare.prepare(path, path, VOCAB, tmp_path / "store")  # a copy is read once, and is whole
    damaged = []

    def found(pattern):
        (path,) = (tmp_path / "store").glob(pattern)
        damaged.append(path)
        return path

    DAMAGES[damage](found)
    with pytest.raises(ValueError, match=f"{damaged[0]} is damaged: .* Remove {tmp_path}/store/[^/]*, and it") as error:
        prepare.prepare(path, path, VOCAB, tmp_path / "store")
    shutil.rmtree(str(error.value).rpartition("Remove ")[2].partition(",")[0])
    assert prepare.prepare(path, path, VOCAB, tmp_path / "store") == made


@pytest.mark.parametrize("damage", ["half of the held-out text", "a byte of the held-out text"])
def test_judging_does_not_read_damaged_text(tmp_path, whole, damage):
    shutil.copytree(whole / "store", tmp_path / "store")
    DAMAGES[damage](lambda pattern: next((tmp_path / "store").glob(pattern)))
    with pytest.raises(ValueError, match="valid.jsonl.gz is damaged"):
        prepare.validation_files(str(whole / "a.jsonl"), tmp_path / "store")


def test_what_nobody_touched_is_not_read_again(tmp_path, whole, monkeypatch):
    shutil.copytree(whole / "store", tmp_path / "store")
    path = str(whole / "a.jsonl")
    monkeypatch.setattr(store, "RACY_SECONDS", -1e9)  # as if all were old
    prepare.prepare(path, path, VOCAB, tmp_path / "store")
    read = []
    monkeypatch.setattr(store, "_sha256", lambda path: read.append(path) or "")
    prepare.prepare(path, path, VOCAB, tmp_path / "store")
    assert read == []


def command(path, folder, *more, env=None):
    words = [sys.executable, "-m", "data.prepare", path, "--vocab", "300", "--store", str(folder), *more]
    words += ["--format", "json"]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, env=env, timeout=120)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount a small disk")
def test_a_full_disk_and_one_that_is_read_only(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    path = save(tmp_path / "a.jsonl", [prose(f"f{i}") for i in range(1500)])
    mount = ["mount", "-t", "tmpfs", "-o"]
    if subprocess.run([*mount, "size=900k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("this machine mounts nothing")
    try:
        full = command(path, disk / "store")
        assert full.returncode == 1 and full.stderr.splitlines()[-1].startswith("error: the disk that holds")
        assert "is full" in full.stderr and "Traceback" not in full.stderr
        assert not [p for p in (disk / "store").glob("*-*") if not p.name.startswith("partial-")]
        subprocess.run(["mount", "-o", "remount,size=200m", disk], check=True)
        assert command(path, disk / "store").returncode == 0  # the same command goes on
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        assert command(path, disk / "store").returncode == 0  # all is there
        refused = command(save(tmp_path / "b.jsonl", WORKABLE), disk / "store")
        assert refused.returncode == 1 and "mounted read-only" in refused.stderr
        assert "Traceback" not in refused.stderr
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_the_locale_does_not_matter(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in WORKABLE), "utf-8")
    ascii_only = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = command(str(path), tmp_path / "one", "--set", "data.dedup=exact", env=ascii_only)
    assert done.returncode == 0, done.stderr[-2000:]
    other = command(str(path), tmp_path / "two", "--set", "data.dedup=exact")
    assert json.loads(done.stdout)["sha256"] == json.loads(other.stdout)["sha256"]
    assert json.loads(done.stdout)["tokenizer"]["sha256"] == json.loads(other.stdout)["tokenizer"]["sha256"]


def test_where_all_documents_are_copies_that_is_said():
    message = text._no_documents_message({"name": "größe", "files": []}, "valid", 0.02, 300, {}, 299)
    assert "of 300 documents, 299 of which are copies or near copies of others, 0.02 are held out" in message
    assert "copies" not in text._no_documents_message({"name": "größe", "files": []}, "valid", 0.02, 300, {}, 0)
