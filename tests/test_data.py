"""Corpora: what is read, what is refused, what is held out. Packages and files here are made for the test."""

import dataclasses
import datetime
import gzip
import importlib.metadata
import inspect
import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path
from types import FunctionType

import pytest
import zstandard

from data import corpus, documents, readers, sources

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared" / "data"


def write(path, texts):
    """JSON lines, packed as the name of the file says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = "".join(json.dumps({"text": text, "url": "x"}) + "\n" for text in texts).encode()
    pack = {".gz": gzip.compress, ".zst": lambda data: zstandard.ZstdCompressor().compress(data)}
    path.write_bytes(pack.get(path.suffix, bytes)(data))
    return str(path)


def read(name):
    spec = corpus.load_specification(str(name))
    units = sources.source_files(spec)
    return [(name, text) for unit in units for name, text, _ in documents.read_documents(spec, unit)]


def specify(monkeypatch, tmp_path, text, name="some"):
    (tmp_path / "specs").mkdir(exist_ok=True)
    (tmp_path / "specs" / f"{name}.yaml").write_text(text)
    monkeypatch.setattr(corpus, "CORPORA", tmp_path / "specs")


# Files on disk


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.zst", ".json", ".json.gz", ".json.zst"])
def test_json_lines_in_every_packing(tmp_path, suffix):
    texts = ["one", "two\n\nthree\n", " \u2581é\U0001f600\0"]
    assert [text for _, text in read(write(tmp_path / f"a{suffix}", texts))] == texts


def test_zstd_files_of_several_frames(tmp_path):
    frame = zstandard.ZstdCompressor().compress(b'{"text": "one"}\n' * 50_000)
    (tmp_path / "a.jsonl.zst").write_bytes(frame * 3)
    assert len(read(tmp_path / "a.jsonl.zst")) == 150_000


def test_blank_lines_and_empty_documents_are_no_documents(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": ""}\n\n{"text": " \\n"}\n{"text": "one"}')
    assert read(tmp_path / "a.jsonl") == [("a.jsonl:4", "one")]


def test_half_a_surrogate_pair_is_replaced_and_a_whole_one_joined(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a\\ud800b"}\n{"text": "\\ud83d\\ude00"}\n')
    assert [text for _, text in read(tmp_path / "a.jsonl")] == ["a\ufffdb", "\U0001f600"]


def test_oscar_documents_are_separated_by_blank_lines(tmp_path):
    data = "\n\none\ntwo\n\nthree\n \n\nfour\r\nfive"
    (tmp_path / "en_part_1.txt").write_bytes(data.encode())
    (tmp_path / "en_part_2.txt.gz").write_bytes(gzip.compress(data.encode()))
    expected = ["one\ntwo", "three", "four\nfive"]
    assert [text for _, text in read(tmp_path)] == expected * 2
    assert [name.rsplit(":", 1)[1] for name, _ in read(tmp_path / "en_part_1.txt")] == ["3", "6", "9"]


@pytest.mark.parametrize("what", ["file", "folder", "glob"])
def test_names_of_documents_do_not_depend_on_the_place(tmp_path, what):
    found = []
    for place in ("here", "elsewhere/deep"):
        for domain in ("b", "a"):
            write(tmp_path / place / domain / "00.jsonl.zst", [f"{domain} {i}" for i in range(2)])
        pattern = {"file": "a/00.jsonl.zst", "folder": "", "glob": "*/*.jsonl.zst"}[what]
        found.append(read(tmp_path / place / pattern))
    assert found[0] == found[1] == sorted(found[0]) and len(found[0]) == (2 if what == "file" else 4)


def test_a_folder_is_searched_for_text_only(tmp_path):
    write(tmp_path / "deep" / "a.jsonl", ["one"])
    for other in ("README.md", "en_sha256.txt", "x.csv"):
        (tmp_path / other).write_text("no document")
    assert [text for _, text in read(tmp_path)] == ["one"]


def test_linked_folders_are_read_once_and_a_link_to_nothing_is_an_error(tmp_path):
    write(tmp_path / "disk/part/a.jsonl", ["één"])
    write(tmp_path / "data/b.jsonl", ["zwei"])
    (tmp_path / "data/part").symlink_to(tmp_path / "disk/part")
    (tmp_path / "data/same").symlink_to(tmp_path / "disk/part")
    (tmp_path / "data/loop").symlink_to(tmp_path / "data")
    assert read(tmp_path / "data") == [("b.jsonl:1", "zwei"), ("part/a.jsonl:1", "één")]
    (tmp_path / "data/c.jsonl").symlink_to(tmp_path / "blobs/that/were/removed")
    for name in (tmp_path / "data", tmp_path / "data/*.jsonl"):
        with pytest.raises(ValueError, match="c.jsonl is a symbolic link to a file that is not there"):
            read(name)


@pytest.mark.parametrize(
    "pattern", ["**/*.jsonl", "**/a.jsonl", "d[a]ta/**/*.jsonl", "*/**/a.jsonl", "**/disk/**/*.jsonl"]
)
def test_a_glob_finds_each_file_once_and_goes_around_in_no_link(tmp_path, pattern):
    """glob.glob would read the file a hundred times and more: each link leads to a folder above it."""
    write(tmp_path / "data/disk/[1]/a.jsonl", ["один"])
    write(tmp_path / "data/disk/.hidden/b.jsonl", ["zwei"])
    (tmp_path / "data/loop").symlink_to(tmp_path / "data")
    (tmp_path / "data/disk/[1]/loop").symlink_to(tmp_path / "data")
    (tmp_path / "data/disk/again.jsonl").symlink_to(tmp_path / "data/disk/[1]/a.jsonl")
    assert [text for _, text in read(tmp_path / pattern)] == ["один"]


@pytest.mark.parametrize(
    "name", ["b.JSONL", "b.ndjson", "b.jsonl.bz2", "b.json.xz", "b.jsonl.gz.part", "b.jsonl.crdownload"]
)
def test_data_of_a_kind_that_is_not_read_is_not_passed_over(tmp_path, name):
    write(tmp_path / "data/a.jsonl", ["één"])
    for note in ("README.TXT", "LICENSE.JSON", ".b.jsonl.part", "a.jsonl.md5", "notes.docx"):
        (tmp_path / "data" / note).write_bytes(b"?")
    assert read(tmp_path / "data") == [("a.jsonl:1", "één")]
    (tmp_path / "data" / name).write_bytes(b"?")
    with pytest.raises(ValueError, match="data of a kind that is not read, or not all there"):
        read(tmp_path / "data")
    assert read(tmp_path / "data/*.jsonl") == [("a.jsonl:1", "één")]


@pytest.mark.parametrize("content", ["ein Text\n\nnoch einer\n".encode("utf-16-le"), b"ein Text\n\n" + bytes(512)])
def test_plain_text_has_no_zero_bytes(tmp_path, content):
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(ValueError, match="zero bytes: damaged, or another encoding than UTF-8"):
        read(tmp_path / "a.txt")


def test_zstd_files_with_a_long_window(tmp_path):
    """As `zstd --long=31` writes them."""
    settings = zstandard.ZstdCompressionParameters.from_level(1, window_log=31)
    packer = zstandard.ZstdCompressor(compression_params=settings).compressobj()
    (tmp_path / "a.jsonl.zst").write_bytes(packer.compress('{"text": "één"}\n'.encode()) + packer.flush())
    assert read(tmp_path / "a.jsonl.zst") == [("a.jsonl.zst:1", "één")]


@pytest.mark.parametrize("name", ["a\nb.jsonl", "\x1b[2J.jsonl"])
def test_a_file_with_control_characters_in_its_name_is_not_passed_over(tmp_path, name):
    write(tmp_path / "data/a.jsonl", ["one"])
    write(tmp_path / "data" / name, ["two"])
    with pytest.raises(ValueError, match="has control characters: rename the file"):
        read(tmp_path / "data")


def test_a_folder_that_cannot_be_read_is_not_passed_over(tmp_path, monkeypatch):
    write(tmp_path / "data/a.jsonl", ["one"])
    write(tmp_path / "data/closed/b.jsonl", ["two"])
    scandir = os.scandir

    def refused(path):  # root may read every folder
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refused)
    with pytest.raises(ValueError, match="closed cannot be read: Permission denied"):
        read(tmp_path / "data")


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data with real files")
def test_real_files():
    assert len(read(SHARED / "pretrain_samples/c4/c4-train.00000-of-01024.json.gz")) == 667
    assert len(read(SHARED / "pretrain_samples/the_pile/*.zst")) > 1
    for path in SHARED.glob("pretrain_samples/oscar_v1/*/*.txt.gz"):
        plain = gzip.decompress(path.read_bytes()).decode()
        expected = [text.strip("\n") for text in re.split(r"\n[ \t]*\n", plain) if text.strip()]
        assert [text.strip("\n") for _, text in read(path)] == expected
    with zstandard.open(SHARED / "corpora/books/00.jsonl.zst", "rt", encoding="utf-8") as file:
        expected = [json.loads(line)["text"] for line in file]
    assert [text for _, text in read(SHARED / "corpora/books")] == expected


@pytest.mark.parametrize(
    "name, content, match",
    [
        ("a.jsonl", b'{"text": "x"}\n{"content": "x", "url": 1}\n', r"a.jsonl:2: .*\['content', 'url'\]"),
        ("a.jsonl", b'{"text": ["x"]}\n', r'a.jsonl:1: "text" is a list, not a string'),
        ("a.jsonl", b'{"text": null}\n', r'a.jsonl:1: "text" is null, not a string'),
        ("a.jsonl", b'["x"]\n', r"a.jsonl:1: .* has list"),
        ("a.jsonl", b'{"text": "x"}\n{"text": "x\n', r"a.jsonl:2: not JSON"),
        ("a.jsonl", b'{"text": "\xff"}\n', "a.jsonl:1: not UTF-8"),
        ("a.jsonl", b'{"text": "x", "meta": ' + b"[" * 10**5 + b"]" * 10**5 + b"}\n", "a.jsonl:1: not JSON"),
        ("a.txt", b"x\n\xff\n", "a.txt:2: not UTF-8"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "x"}\n' * 9, mtime=0)[:-12], "a.jsonl.gz: damaged or cut short"),
        ("a.jsonl.gz", b"plain", "a.jsonl.gz: damaged"),
        ("a.jsonl.zst", b"plain", "a.jsonl.zst: damaged"),
    ],
)
def test_damaged_files_are_named_with_the_line(tmp_path, name, content, match):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=match):
        read(tmp_path / name)


def test_a_cut_zstd_file_is_not_taken_for_whole(tmp_path):
    random.seed(0)
    whole = Path(write(tmp_path / "a.jsonl.zst", [random.randbytes(2000).hex() for _ in range(200)])).read_bytes()
    paragraphs = zstandard.ZstdCompressor().compress(b"a document\n\n" * 200_000)
    for name, content in (
        ("cut.jsonl.zst", whole[:-1000]),
        ("cut.txt.zst", paragraphs[:-1]),
        ("cut.txt.zst", paragraphs * 2 + paragraphs[:7]),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name}.*cut short"):
            read(tmp_path / name)
    (tmp_path / "a.txt.zst").write_bytes(b"\x50\x2a\x4d\x18\2\0\0\0hi" + paragraphs)  # after a frame to be skipped
    assert len(read(tmp_path / "a.txt.zst")) == 200_000


def test_columns_of_parquet_with_the_same_name_are_refused(tmp_path):
    import pyarrow
    from pyarrow import parquet

    columns = [pyarrow.array(["one"]), pyarrow.array(["two"])]
    parquet.write_table(pyarrow.table(columns, names=["text", "text"]), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match='a.parquet: several columns are called "text"'):
        read(tmp_path / "a.parquet")


def test_a_row_of_parquet_whose_date_python_cannot_hold_is_named_and_the_others_are_read(tmp_path):
    import pyarrow
    from pyarrow import parquet

    dates = pyarrow.array([0, 10**18, 0], pyarrow.timestamp("us"))  # the second is in the year 33,658
    texts = pyarrow.array(["one", "zwei", "drei"]).dictionary_encode()
    parquet.write_table(pyarrow.table({"text": texts, "date": dates}), tmp_path / "a.parquet")
    ledger = readers.Ledger(1)
    where = {"date": [datetime.datetime(1970, 1, 1)]}
    file = readers.SourceFile(tmp_path / "a.parquet", "a.parquet", "", 0)
    rows = readers.read_documents(file, "auto", ledger, where=where)
    assert [text for _, text, _ in rows] == ["one", "drei"]
    assert "a.parquet:2: a value cannot be read" in ledger.problems[0]


def test_a_damaged_name_of_a_column_of_parquet_is_damage_of_the_file(tmp_path):
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"text": ["one"], "weather": [1]}), tmp_path / "a.parquet", store_schema=False)
    content = (tmp_path / "a.parquet").read_bytes().replace(b"weather", b"weath\xffr")
    (tmp_path / "a.parquet").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.parquet: damaged or cut short: 'utf-8' codec"):
        read(tmp_path / "a.parquet")


def test_a_row_of_parquet_that_is_not_utf8_is_named_and_the_others_are_read(tmp_path):
    import pyarrow
    from pyarrow import parquet

    texts = pyarrow.array([b"one", b"\xff", b"three"], pyarrow.binary()).view(pyarrow.string())
    parquet.write_table(pyarrow.table({"text": texts}), tmp_path / "a.parquet")
    ledger = readers.Ledger(1)
    file = readers.SourceFile(tmp_path / "a.parquet", "a.parquet", "", 0)
    found = [text for _, text, _ in readers.read_documents(file, "auto", ledger)]
    assert found == ["one", "three"] and "a.parquet:2: not UTF-8" in ledger.problems[0]


@pytest.mark.parametrize(
    "name, match",
    [
        ("pydoc", "unknown corpus 'pydoc': known are bookcorpus, .* pydocs, wikipedia; or give .*jsonl.zst"),
        ("", "unknown corpus ''"),
        ("../corpora/pydocs", "no file matches"),
        ("{}/a,b.jsonl", "without a comma"),
        ("{}/*.txt", r"no file matches .*; looked for \.jsonl, .*\.txt\.zst"),
        ("{}/a.csv", r"a\.csv: unknown kind of file; allowed are \.jsonl, "),
        ("{}/a.parquet", "a.parquet: damaged"),
        ("{}/empty.jsonl", "holds no document"),
        ("{}/other.jsonl", 'no string under "text"'),
    ],
)
def test_check_refuses(tmp_path, name, match):
    (tmp_path / "a.parquet").touch()
    (tmp_path / "a.csv").touch()
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "other.jsonl").write_text('{"content": "x"}')
    with pytest.raises(ValueError, match=match):
        corpus.check(name.format(tmp_path))


def test_check_is_light():
    code = """if True:
        import sys
        import data.prepare
        from data.corpus import check
        for name in ("pydocs", "pycode", "pyblend"):
            check(name)
        heavy = {"torch", "numpy", "datatrove", "sentencepiece", "megatron", "rich"} & set(sys.modules)
        assert not heavy, heavy"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


# Files of a numbered family


@pytest.mark.parametrize(
    "names, said",
    [
        (["c4-train.00000-of-01024.json.gz"], ["1 of the 1,024 files c4-train.*-of-01024 is there"]),
        ([f"{i}-of-3.jsonl" for i in range(3)], []),
        ([f"{i}-of-3.jsonl" for i in range(1, 4)], []),
        (["en/0-of-3.jsonl", "en/2-of-3.jsonl", "fr/0-of-1.jsonl"], ["2 of the 3 files en/*-of-3 are there"]),
        (["0-of-2.jsonl", "1-of-2.jsonl.zst"], []),  # one of them unpacked
        (["0-of-2.jsonl", "0-of-2.jsonl.zst"], ["1 of the 2 files *-of-2 is there"]),
        (
            ["x_1_of_4.txt", "x_1_of_2.txt"],
            ["1 of the 2 files x_*_of_2 is there", "1 of the 4 files x_*_of_4 is there"],
        ),
        (["00.jsonl.zst", "en_part_1.txt", "office2.txt", "list-of-3.txt"], []),
    ],
)
def test_what_is_missing_of_a_numbered_family_is_counted(names, said):
    assert readers.missing_numbered_files(names) == said


def test_an_incomplete_corpus_is_said_once_and_before_any_work(tmp_path):
    """FROM with 2 of C4's 1,024 shards, a glob and a blend of them; a vocabulary that is refused ends each at once."""
    for number in range(2):
        write(tmp_path / "shards" / f"c4-train.{number:05d}-of-01024.json.gz", [f"one {number}"])
    write(tmp_path / "whole" / "0-of-1.jsonl", ["one"])
    (tmp_path / "some.yaml").write_text(f"blend: {{c4: 1, {tmp_path}/whole/*.jsonl: 1}}")

    def call(corpus, *more):
        command = [sys.executable, "-m", "data.prepare", corpus, "--vocab", "9", "--store", tmp_path / "store", *more]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert not list((tmp_path / "store").glob("*-*"))
        return done.stderr.splitlines()

    said = ": 2 of the 1,024 files c4-train.*-of-01024 are there; what is missing is not read"
    refused = "error: model.vocab=9 is too small: at least 258"
    assert call("c4", "--from", str(tmp_path / "shards")) == [f"warning: c4{said}", refused]
    assert call("c4") == [f"warning: c4{said}", refused]  # remembered in the store
    assert call("c4", "--told") == [refused]
    path = str(tmp_path / "shards" / "*.gz")
    assert call(str(tmp_path / "whole"), "--tokenizer", path) == [f"warning: {path}{said}", refused]
    for tokenizer in (str(tmp_path / "whole"), "c4"):
        assert call(str(tmp_path / "some.yaml"), "--tokenizer", tokenizer) == [f"warning: c4{said}", refused]
    assert call(str(tmp_path / "whole")) == [refused]


def test_a_study_says_an_incomplete_corpus_once(tmp_path, capfd):
    from ablations.config import ConfigError
    from ablations.study import from_args
    from launch.local import prepare_missing_data

    path = Path(write(tmp_path / "0-of-2.jsonl", ["one"]))
    study = from_args(["POS=alibi", f"DATA={path}", "SET=model.vocab=9", f"OUT={tmp_path / 'out'}"])
    with pytest.raises(ConfigError, match="cannot be prepared"):
        prepare_missing_data(study, study.cells)
    said = capfd.readouterr().err.splitlines()
    assert said == [
        f"warning: {path}: 1 of the 2 files *-of-2 is there; what is missing is not read",
        "error: model.vocab=9 is too small: at least 258",
    ]


# Packages

NUMPY, PYYAML = (importlib.metadata.version(name) for name in ("numpy", "pyyaml"))
GOOD = f"text: source\npackages: {{numpy: '{NUMPY}', pyyaml: '{PYYAML}'}}\nheld_out: [pyyaml]\n"


@pytest.mark.parametrize(
    "change, match",
    [
        (("text: source", "text: sauce"), "text is 'sauce'; allowed are docstrings, source"),
        (("held_out: [pyyaml]", "held_out: [pyaml]"), r"not among the packages: \['pyaml'\]"),
        (("held_out: [pyyaml]", ""), "none or all"),
        (("[pyyaml]", "[numpy, pyyaml]"), "none or all"),
        (("held_out", "heldout"), r"unknown \['heldout'\]; allowed are \['held_out', 'minimum', 'packages'"),
        (("text", "minimum: many\ntext"), "number of characters"),
        ((f"'{PYYAML}'", "6.0"), "must be quoted"),
        (("numpy: ", "numpy: }"), "some.yaml, line 2 is no YAML"),
        (("held_out: [pyyaml]", "held_out: pyyaml"), "held_out is a list"),
        (("held_out: [pyyaml]", "held_out: [[pyyaml]]"), "held_out is a list"),
        (("numpy: '", "numpy: '0."), r"reads numpy 0\.\S+, but \S+ is installed; .*requirements.txt"),
        (("numpy", "nunpy"), "reads nunpy .* not installed here; .*requirements.txt"),
        (("packages", "package"), "needs a mapping `blend` or `packages`"),
    ],
)
def test_specifications_are_checked(monkeypatch, tmp_path, change, match):
    specify(monkeypatch, tmp_path, GOOD)
    corpus.check("some")
    specify(monkeypatch, tmp_path, GOOD.replace(*change))
    with pytest.raises(ValueError, match=match):
        corpus.check("some")


@pytest.mark.parametrize(
    "lines, match",
    [
        ("files: ['*.jsonl']\npath: 5", "path is '5', and must be text"),
        ("files: ['/etc/*']", "files is a list of globs below"),
        ("files: [5]", "files is a list of globs below"),
        ("files: ['a{}.jsonl']\nvariant: 3", "variant is '3', and must be text"),
        ("files: ['*.jsonl']\ntext: 3", "text is '3', and must be text"),
        ("files: ['*.jsonl']\nhub: 3\nrevision: \"" + "a" * 40 + '"', "hub is '3', and must be text"),
        ("files: ['*.jsonl']\nwhere: {1: [2]}", "line 2: a name must be text"),
        ("files: ['*.jsonl']\nshare: .nan", "line 2: .nan is no decimal number"),
        ("files: ['*.jsonl']\nfiles: ['*.txt']", "the key 'files' stands twice"),
        ("files: ['é']".encode("latin-1"), "some.yaml is not UTF-8"),
        ("files: " + "[" * 3000, "nested deeper than"),
        ("files: !!timestamp x", "tags"),
        ("[files]", "must hold `name: value` lines"),
    ],
)
def test_a_specification_of_files_is_checked(monkeypatch, tmp_path, lines, match):
    specify(monkeypatch, tmp_path, "")
    (tmp_path / "specs/some.yaml").write_bytes(lines if isinstance(lines, bytes) else lines.encode())
    with pytest.raises(ValueError, match=match):
        corpus.load_specification("some")


@pytest.mark.parametrize("content", ["", "[]", '{"some": 5}', '{"some"', "\xff"])
def test_a_damaged_note_of_where_corpora_lie_is_named(monkeypatch, tmp_path, content):
    specify(monkeypatch, tmp_path, "files: ['*.jsonl']")
    write(tmp_path / "texts/a.jsonl", ["one"])
    corpus.record_folder("some", str(tmp_path / "texts"), tmp_path)
    assert corpus.load_specification("some", tmp_path)["root"] == tmp_path / "texts"
    (tmp_path / "sources.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match="sources.json is damaged: remove it"):
        corpus.load_specification("some", tmp_path)


def test_blends_are_checked(monkeypatch, tmp_path):
    specify(monkeypatch, tmp_path, GOOD, "one")
    specify(monkeypatch, tmp_path, GOOD.replace("[pyyaml]", "[numpy]"), "two")
    specify(monkeypatch, tmp_path, "blend: {one: 1}", "mixed")
    write(tmp_path / "a.jsonl", ["one"])
    monkeypatch.chdir(tmp_path)
    for text, match in [
        ("blend: {one: 1, two: 1}", "held out in one component and trained on in another"),
        ("blend: {one: 0}", "weights are positive"),
        ("blend: {one: true}", "weights are positive"),
        ("blend: {three: 1}", "unknown corpus 'three'"),
        ("blend: {mixed: 1}", "itself a blend"),
        ("blend: [one]", "alpha gives the weights"),
        ("blend: {one: 1}\nalpha: 1", "alpha gives"),
        ("blend: [one]\nalpha: 2", "alpha is 2"),
        ("blend: one", "needs a mapping"),
        ("blend: {no/*.jsonl: 1}", "no file matches 'no/"),
        ("blend: {some: 1}", "some is itself a blend"),
        ("blend: {one: .inf}", "no decimal number"),
        ("blend: {one: 1.0e-15, a.jsonl: 1}", "the weight of one is less than"),
        ("blend: [[one]]\nalpha: 1", "a component is the name or path"),
        ("blend: &a {one: 1}\nlicence: *a", "aliases"),
    ]:
        specify(monkeypatch, tmp_path, text)
        with pytest.raises(ValueError, match=match):
            corpus.check("some")


def test_weights_are_shares(monkeypatch, tmp_path):
    specify(monkeypatch, tmp_path, GOOD, "one")
    specify(monkeypatch, tmp_path, GOOD, "two")
    specify(monkeypatch, tmp_path, "blend: {one: 3, two: 1}")
    assert corpus.load_specification("some")["blend"] == {"one": 0.75, "two": 0.25}


@pytest.mark.parametrize("module", ["click.core", "click.utils", "more_itertools.recipes", "sympy.ntheory.factor_"])
def test_docstrings_are_those_that_python_sees(module):
    """Against the imported module: each function and class that has a docstring there has it in the
    documents."""
    spec = corpus.load_specification("pydocs") | {"minimum": 0}
    unit = next(unit for unit in sources.source_files(spec) if unit.name == module.replace(".", "/") + ".py")
    found = {name: text for name, text, _ in documents.read_documents(spec, unit)}
    expected = {}
    for member in vars(importlib.import_module(module)).values():
        if getattr(member, "__module__", "") == module and isinstance(member, type | FunctionType):
            inner = vars(member).values() if inspect.isclass(member) else ()
            for each in (member, *filter(inspect.isfunction, inner)):
                if each.__doc__ and each.__module__ == module and not dataclasses.is_dataclass(each):
                    expected[f"{module}.{each.__qualname__}"] = inspect.cleandoc(each.__doc__)
    text = "\n\n".join(found.values())
    missing = [name for name, doc in expected.items() if f"{name}\n\n{doc}" not in text]
    assert len(expected) > 10 and not missing


def test_the_embedded_corpora_hold_out_the_same_packages():
    docs, code = corpus.load_specification("pydocs"), corpus.load_specification("pycode")
    assert set(docs["held_out"]) == set(code["held_out"])
    packages = [unit.package for unit in sources.source_files(docs)]
    turn = sum(package in docs["held_out"] for package in packages)
    assert set(packages[:turn]) == set(docs["held_out"])  # read first: of copies they stay
    assert set(packages) == set(docs["packages"])


def test_pins_agree_with_the_requirements():
    path = ROOT / "requirements.txt"
    if not path.is_file():
        pytest.skip("no requirements.txt")
    pins = dict(re.findall(r"^([\w.-]+)==([^\s;]+)", path.read_text(), re.MULTILINE))
    pins = {re.sub("[-_.]+", "-", name).lower(): version for name, version in pins.items()}
    for name in ("pydocs", "pycode"):
        for package, version in corpus.load_specification(name)["packages"].items():
            assert pins[re.sub("[-_.]+", "-", package).lower()] == version


def test_no_file_that_differs_between_machines_is_read():
    names = [
        unit.name for name in ("pydocs", "pycode") for unit in sources.source_files(corpus.load_specification(name))
    ]
    differing = r"(^|/)(tests?|__pycache__)/|__config__|\b_?version\.py$"
    assert names and not [name for name in names if re.search(differing, name)]


def test_held_out_share_of_files():
    texts = [f"document {i}" for i in range(20_000)]
    held = [text for text in texts if corpus.is_held_out({"files": []}, "", text)]
    expected = corpus.VALID_SHARE * len(texts)
    assert abs(len(held) - expected) < 5 * expected**0.5
    assert held == [text for text in texts if corpus.is_held_out({"files": []}, "", text)]
