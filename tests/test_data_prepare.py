"""Preparation from end to end, on packages and files made for the test, through the real pipeline."""

import contextlib
import gzip
import hashlib
import json
import os
import pty
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from data import corpus, dedup, execute, filters, prepare
from data.store import Store
from data.text import prepared_text
from data.tokenizer import load_tokenizer
from tests.schemas import checked

ROOT = Path(__file__).parents[1]
VOCAB = 400
SYLLABLES = "bä dö kí łu mé nø pi rå 語 тэ".split()  # not ASCII: bytes are not characters
WORDS = [a + b for a in SYLLABLES for b in SYLLABLES]


def prose(seed, words=80):
    generator = random.Random(seed)
    return " ".join(generator.choice(WORDS) for _ in range(words))


def install(folder, package, functions):
    """A package of one module, whose functions have these docstrings, as pip would leave it."""
    info = folder / f"{package}-1.0.dist-info"
    info.mkdir(parents=True)
    (folder / package).mkdir()
    source = "\n\n".join(f'def {name}():\n    """{text}"""' for name, text in functions.items())
    (folder / package / "__init__.py").write_text(source)
    (info / "METADATA").write_text(f"Name: {package}\nVersion: 1.0\n\n{prose(package)}\n")
    (info / "RECORD").write_text(f"{package}/__init__.py,,\n{info.name}/METADATA,,\n{info.name}/RECORD,,\n")


SPEC = "text: docstrings\npackages: {alpha: '1.0', beta: '1.0', gamma: '1.0'}\nheld_out: [gamma]\n"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Packages alpha and beta, for training, hold copies of a document of gamma, which is held out."""
    place = tmp_path_factory.mktemp("place")
    shared, near = prose("shared"), prose("shared").split()
    near[7] = "changed"
    install(place / "site", "alpha", {f"f{i}": prose(f"a{i}") for i in range(30)} | {"copy": " ".join(near)})
    install(place / "site", "beta", {f"f{i}": prose(f"b{i}") for i in range(30)} | {"copy": shared})
    install(place / "site", "gamma", {f"f{i}": prose(f"c{i}") for i in range(5)} | {"origin": shared})
    (place / "specs").mkdir()
    (place / "specs" / "some.yaml").write_text(SPEC)
    (place / "specs" / "code.yaml").write_text(SPEC.replace("docstrings", "source"))
    (place / "specs" / "mixed.yaml").write_text("blend: {some: 3, code: 1}")
    return place


@pytest.fixture(autouse=True)
def installed(monkeypatch, place):
    monkeypatch.syspath_prepend(place / "site")
    monkeypatch.setattr(corpus, "CORPORA", place / "specs")
    monkeypatch.setattr("data.text.MIN_SHARDS", 16)  # as it is for users: tests/conftest.py has others take fewer


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tmp_path_factory.mktemp("store")


@pytest.fixture
def made(store):
    return prepare.prepare("some", "some", VOCAB, store)


def tokens(prefix):
    """Each document's tokens, by plain numpy from the description of the format."""
    index = Path(f"{prefix}.idx").read_bytes()
    assert index[:9] == b"MMIDIDX\0\0" and index[17] == 8  # uint16
    count = int.from_bytes(index[18:26], "little")
    lengths = np.frombuffer(index, np.int32, count, 34)
    flat = np.fromfile(f"{prefix}.bin", np.uint16)
    assert lengths.sum() == len(flat)
    return np.split(flat, np.cumsum(lengths)[:-1])


def train_documents(made):
    key = Path(made["valid"][0]).parent
    return [json.loads(line) for path in sorted(key.glob("train/*.jsonl")) for line in open(path)]


def valid_documents(made):
    return [json.loads(line) for path in made["valid"] for line in gzip.open(path)]


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in (".lock", "prepare.log") and path.parent.name != "hashes"
    }


def test_tokens_are_the_text(made):
    tokenizer = load_tokenizer(made["tokenizer"]["path"])
    documents = train_documents(made)
    stored = tokens(made["train"][0]["prefix"])
    assert [tokenizer.decode(ids[:-1]) for ids in stored] == [document["text"] for document in documents]
    assert all(ids[-1] == tokenizer.eod and tokenizer.eod not in ids[:-1] for ids in stored)


def test_counts_and_hashes(made):
    train, valid = train_documents(made), valid_documents(made)
    tokenizer = load_tokenizer(made["tokenizer"]["path"])
    for split, documents in [("train", train), ("valid", valid)]:
        assert made["counts"][split] == {
            "documents": len(documents),
            "bytes": sum(len(document["text"].encode()) for document in documents),
            "tokens": sum(len(tokenizer.encode(document["text"])) + 1 for document in documents),
        }
    assert made["tokenizer"] | {"path": ""} == {
        "path": "",
        "sha256": hashlib.sha256(Path(tokenizer.path).read_bytes()).hexdigest(),
        "vocab": VOCAB,
        "corpus": "some",
        "kind": "bpe",
        **{"lossless": True, "eod": 1, "mask": 0, "specials": [0, 1]},
    }
    assert tokenizer.vocab_size == VOCAB and made["mismatch"] == [] and made["train"][0]["weight"] == 1
    json.dumps(made)


def test_whole_packages_are_held_out_and_keep_their_copy(made):
    train, valid = train_documents(made), valid_documents(made)
    assert {document["metadata"]["package"] for document in train} == {"alpha", "beta"}
    assert {document["metadata"]["package"] for document in valid} == {"gamma"}
    names = {document["id"] for document in train + valid}
    assert "gamma.origin" in names and not {"alpha.copy", "beta.copy"} & names
    assert made["counts"]["duplicates"] == {"exact": 0, "near": 2}  # each is headed by its own name
    assert len(names) == len(train + valid) == 30 + 30 + 6 + 3  # with three descriptions


def test_second_call_builds_nothing(made, store):
    def times():
        files = (path for path in store.rglob("*") if path.is_file() and path.parent.name != "hashes")
        return {path: path.stat().st_mtime_ns for path in files}

    before = times()
    assert prepare.prepare("some", "some", VOCAB, store) == made
    assert times() == before


def test_bytes_do_not_depend_on_store_or_cores(made, store, tmp_path, monkeypatch):
    monkeypatch.setattr(execute, "usable_cores", lambda: 3)
    prepare.prepare("some", "some", VOCAB, tmp_path)
    built = contents(tmp_path)
    assert built and built.items() <= contents(store).items()


def test_another_vocabulary_shares_the_text(made, store):
    other = prepare.prepare("some", "some", VOCAB + 10, store)
    assert other["valid"] == made["valid"] and other["sha256"] == made["sha256"]
    assert other["train"] != made["train"] and other["tokenizer"]["sha256"] != made["tokenizer"]["sha256"]


def test_blend(made, store):
    mixed = prepare.prepare("mixed", "some", VOCAB, store)
    assert [source["weight"] for source in mixed["train"]] == [0.75, 0.25]
    assert mixed["train"][0]["prefix"] == made["train"][0]["prefix"]
    assert mixed["tokenizer"] == made["tokenizer"] and len(mixed["valid"]) == 2
    code = prepare.prepare("code", "some", VOCAB, store)
    assert mixed["counts"]["train"]["tokens"] == sum(x["counts"]["train"]["tokens"] for x in (made, code))
    assert len({mixed["sha256"], made["sha256"], code["sha256"]}) == 3
    own = prepare.prepare("mixed", "mixed", VOCAB, store)
    assert own["tokenizer"]["sha256"] != made["tokenizer"]["sha256"]


def test_another_text_than_recorded_is_said(made, store, place):
    spec = place / "specs" / "some.yaml"
    try:
        spec.write_text(SPEC + f"sha256: '{made['sha256']}'\n")
        assert prepare.prepare("some", "some", VOCAB, store) == made
        spec.write_text(SPEC + f"sha256: '{'0' * 64}'\n")
        with pytest.warns(UserWarning, match="cannot be compared"):
            told = prepare.prepare("some", "some", VOCAB, store)
        assert len(told["mismatch"]) == 1 and made["sha256"] in told["mismatch"][0]
    finally:
        spec.write_text(SPEC)


# Files


def shingles(text, n=5):
    words = text.split()
    return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}


def save(path, texts):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


@pytest.fixture(scope="module")
def texts():
    """Documents with planted exact copies, near copies and half copies, short ones among them."""
    generator = random.Random(0)
    texts = [prose(i, 120) for i in range(300)] + ["Hi.", "Yes.", "Hi."]
    texts += [texts[i] for i in range(0, 20)]
    for i in range(20, 60):
        words = texts[i].split()
        words[generator.randrange(len(words))] = "changed"
        texts.append(" ".join(words))
    texts += [" ".join(texts[i].split()[:60] + prose(f"h{i}", 60).split()) for i in range(60, 100)]
    order = list(range(len(texts)))
    generator.shuffle(order)
    return [texts[i] for i in order]


def test_duplicates_against_brute_force(tmp_path, store, texts):
    made = prepare.prepare(save(tmp_path / "a.jsonl", texts), "some", VOCAB, store)
    kept = [document["text"] for document in train_documents(made) + valid_documents(made)]
    assert len(set(kept)) == len(kept)  # no exact copy is left, in either split or across them
    sets = [shingles(text) for text in kept]
    for i, a in enumerate(sets):
        for b in sets[:i]:
            assert not a or not b or len(a & b) / len(a | b) < 0.85
    gone = set(texts) - set(kept)
    assert made["counts"]["duplicates"] == {"exact": 21, "near": len(gone)}
    for text in gone:  # nothing went that has no like among the kept
        assert max(len(shingles(text) & other) / len(shingles(text) | other) for other in sets if other) > 0.6
    assert 38 <= len(gone) <= 41
    assert {"Hi.", "Yes."} <= set(kept)


def test_validation_is_by_the_text(tmp_path, store, texts):
    made = prepare.prepare(save(tmp_path / "a.jsonl", texts), "some", VOCAB, store)
    assert all(corpus.is_held_out({"files": []}, "", document["text"]) for document in valid_documents(made))
    assert not any(corpus.is_held_out({"files": []}, "", document["text"]) for document in train_documents(made))


def test_key_is_the_content(tmp_path, store, texts):
    first = prepare.prepare(save(tmp_path / "d" / "a.jsonl", texts), "some", VOCAB, store)
    os.utime(tmp_path / "d" / "a.jsonl", (1, 1))
    assert prepare.prepare(str(tmp_path / "d" / "a.jsonl"), "some", VOCAB, store) == first
    shutil.move(tmp_path / "d", tmp_path / "deep" / "d")
    moved = prepare.prepare(str(tmp_path / "deep" / "d" / "a.jsonl"), "some", VOCAB, store)
    for made in (moved, first):  # but for the name
        assert made.pop("corpus") == made["train"][0].pop("corpus") == made["steps"][0].pop("corpus")
        made.pop("notes")
        (made["source"],) = made.pop("sources").values()
    assert moved == first
    save(tmp_path / "deep" / "d" / "a.jsonl", [text.replace("bä", "bö") for text in texts])  # as long
    changed = prepare.prepare(str(tmp_path / "deep" / "d" / "a.jsonl"), "some", VOCAB, store)
    assert changed["sha256"] != first["sha256"] and changed["train"] != first["train"]


def test_the_tokenizer_has_not_seen_the_validation_text(tmp_path, store):
    """Held-out documents repeat a word that is nowhere else: as a piece it would save most of their
    tokens."""
    rare = "zyxwvq" * 20
    numbered = (f"{prose(f'v{i}')} {rare}" for i in range(10_000))
    held = [text for text in numbered if corpus.is_held_out({"files": []}, "", text)][:40]
    train = [text for text in map(prose, range(200)) if not corpus.is_held_out({"files": []}, "", text)]
    name = save(tmp_path / "a.jsonl", train + held)
    made = prepare.prepare(name, name, VOCAB, store)
    assert made["counts"]["valid"]["documents"] == len(held)
    tokenizer = load_tokenizer(made["tokenizer"]["path"])
    assert len(tokenizer.encode(rare)) == len(rare)
    assert len(tokenizer.encode(WORDS[0] + " " + WORDS[1])) < 6


@pytest.mark.parametrize(
    "texts, match",
    [
        (["one document alone"], "no document is left for (train|valid)"),
        ([prose(i) for i in range(100)] + [None], r'a.jsonl:101: "text" is null'),
    ],
)
def test_failures_leave_nothing_behind(tmp_path, store, texts, match):
    before = {path.name for path in store.iterdir()} - {"prepare.log", ".lock"}
    name = save(tmp_path / "a.jsonl", texts)
    with pytest.raises(ValueError, match=match):
        prepare.prepare(name, "some", VOCAB, store)
    assert {path.name for path in store.iterdir()} - {"prepare.log", ".lock", "hashes"} <= before


def test_an_empty_file_is_named_wherever_it_stands(tmp_path, store):
    for name in ("0.jsonl", "5.jsonl", "9.jsonl"):
        save(tmp_path / name / "5.jsonl", [prose(i) for i in range(40)])
        (tmp_path / name / name).write_bytes(b"")
        with pytest.raises(ValueError, match=f"{name}: holds no document"):
            prepared_text(str(tmp_path / name), filters.DEFAULT_RECIPE, Store(store))


def test_what_was_lost_between_two_stages_is_missed(tmp_path, monkeypatch):
    """The disk comes back, after the power went, with half a file of a task that is noted as finished."""
    save(tmp_path / "a.jsonl", [prose(i) for i in range(200)])
    where = Store(tmp_path / "store")

    def power_fails(*_):
        raise RuntimeError("no power")

    for name in ("00000.jsonl", "00000.digests"):
        with monkeypatch.context() as dark, pytest.raises(RuntimeError, match="no power"):
            dark.setattr(dedup, "choose_removals", power_fails)
            prepared_text(str(tmp_path / "a.jsonl"), filters.DEFAULT_RECIPE, where)
        (half,) = where.path.glob(f"partial-*/scratch/read/{name}")
        os.truncate(half, half.stat().st_size // 34 * 17)
        with pytest.raises(ValueError, match="of 200 documents .* was lost"):
            prepared_text(str(tmp_path / "a.jsonl"), filters.DEFAULT_RECIPE, where)
    _, about = prepared_text(str(tmp_path / "a.jsonl"), filters.DEFAULT_RECIPE, where)
    assert about["train"]["documents"] + about["valid"]["documents"] == 200


def test_what_is_whole_is_on_the_disk(tmp_path, monkeypatch):
    settled, fsync, replace = set(), os.fsync, os.replace

    def spy(file):
        settled.add(os.readlink(f"/proc/self/fd/{file}"))
        fsync(file)

    def check(old, new):
        if Path(old).is_dir():
            seen.append({str(path) for path in [old, *Path(old).rglob("*")]} - settled)
        replace(old, new)

    seen = []
    monkeypatch.setattr(os, "fsync", spy)
    monkeypatch.setattr(os, "replace", check)
    prepare.prepare("some", "some", VOCAB, tmp_path)
    assert seen == [set()] * 3 and str(tmp_path) in settled


def test_what_makes_an_export_impossible_is_said_with_the_data(store):
    """Before training. No error: a run asks for no export, and everything else can be done with it."""
    unigram = prepare.prepare("some", "some", 300, store, "unigram")
    assert [
        note for note in unigram["notes"] if note.startswith("a run cannot be exported: a tokenizer of the kind uni")
    ]
    assert "exported" not in " ".join(prepare.prepare("some", "some", VOCAB, store)["notes"])


@pytest.mark.parametrize("vocab, match", [(257, "at least 258"), (100_000, r"at most \d+")])
def test_vocabulary_out_of_range(store, vocab, match):
    with pytest.raises(ValueError, match=match):
        prepare.prepare("some", "some", vocab, store)


# Processes

CALL = """
import json, sys
from pathlib import Path
from data import corpus, prepare
corpus.CORPORA = Path(sys.argv[1])  # with no guard on __name__: the workers must not run this again
if sys.argv[3:]:  # the task of this number, and each after it, waits to be killed
    from time import sleep
    from datatrove.executor import LocalPipelineExecutor as Tasks
    run = Tasks._run_for_rank
    Tasks._run_for_rank = lambda self, rank, *rest: sleep(240) if rank >= int(sys.argv[3]) else run(self, rank, *rest)
print(json.dumps(prepare.prepare("some", "some", 400, Path(sys.argv[2]))))
"""


def start(place, store, *waits_from_task, stderr=subprocess.PIPE):
    environment = os.environ | {"PYTHONPATH": f"{place / 'site'}{os.pathsep}{ROOT}"}
    (place / "call.py").write_text(CALL)
    return subprocess.Popen(
        [sys.executable, place / "call.py", place / "specs", store, *map(str, waits_from_task)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
    )


@pytest.mark.parametrize("letter", ["x", "語"])
def test_a_corpus_may_have_as_long_a_name_as_a_file(tmp_path, letter):
    name = (letter * 240).encode()[:240].decode(errors="ignore") + ".txt"
    (tmp_path / name).write_text("\n\n".join(prose(n) for n in range(100)))
    assert prepare.prepare(str(tmp_path / name), str(tmp_path / name), 300, tmp_path / "store")["counts"]


def test_processes_at_once_build_once(made, store, place, tmp_path):
    calls = [start(place, tmp_path) for _ in range(2)]
    outs = [call.communicate(timeout=240) for call in calls]
    assert [call.returncode for call in calls] == [0, 0]
    assert json.loads(outs[0][0]) == json.loads(outs[1][0])
    assert contents(tmp_path).items() <= contents(store).items()
    assert (tmp_path / "prepare.log").read_text().count("All 16 tasks") == 2  # reading and writing, once each


def test_a_killed_process_leaves_neither_lock_nor_process(made, store, place, tmp_path):
    killed = start(place, tmp_path, 3)
    while len(list(tmp_path.glob("partial-*/logs/reading/completions/*"))) < 3:
        assert killed.poll() is None
        time.sleep(0.005)
    killed.send_signal(signal.SIGKILL)
    killed.communicate(timeout=240)  # returns only when no child holds the pipes any more
    (tmp_path / "prepare.log").unlink()
    again = start(place, tmp_path)
    out, err = again.communicate(timeout=240)
    assert again.returncode == 0, err
    assert "Skipping 3 already completed tasks" in (tmp_path / "prepare.log").read_text()
    assert json.loads(out)["sha256"] == made["sha256"]
    assert contents(tmp_path).items() <= contents(store).items()


def test_what_another_version_of_the_code_has_begun_is_not_gone_on_with(made, store, place, tmp_path):
    killed = start(place, tmp_path, 0)
    while not (left := list(tmp_path.glob("partial-*/scratch"))):
        assert killed.poll() is None
        time.sleep(0.005)
    killed.send_signal(signal.SIGKILL)
    killed.communicate(timeout=240)
    (work,) = {path.parent for path in left}
    assert len((work / "code").read_text()) == 64
    (work / "code").write_text("of last week")
    with pytest.raises(RuntimeError, match=f"{work} was begun by another version of the code. Remove it"):
        prepare.prepare("some", "some", VOCAB, tmp_path)
    assert work.exists()
    shutil.rmtree(work)
    assert prepare.prepare("some", "some", VOCAB, tmp_path)["sha256"] == made["sha256"]
    assert not list(tmp_path.glob("*/code"))


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("setpriv"), reason="needs root, to give up its rights")
def test_a_store_of_somebody_else_is_named_with_what_helps(tmp_path):
    (tmp_path / "docs.txt").write_text("\n\n".join(prose(n) for n in range(100)))
    (store := tmp_path / "store").mkdir()
    (store / ".lock").touch(0o644)
    os.chown(store / ".lock", 65534, 65534)
    call = [
        "setpriv",
        "--bounding-set=-dac_override,-dac_read_search",
        sys.executable,
        "-m",
        "data.prepare",
        tmp_path / "docs.txt",
        "--vocab",
        "300",
        "--store",
        store,
    ]
    done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert f"{store}/.lock is not yours to write" in done.stderr and "umask 002" in done.stderr


def test_two_places_of_corpora_that_are_said_at_once_are_both_remembered(tmp_path):
    names = {"c4": "c4-train.00000-of-01024.json.gz", "pile": "00.jsonl.zst"}
    for name, file in names.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / file).touch()
    script = """
import sys, time
from pathlib import Path
from data import corpus
write = corpus.write_text
def slowly(*what):
    time.sleep(1)
    write(*what)
corpus.write_text = slowly
corpus.record_folder(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
"""
    calls = [
        subprocess.Popen([sys.executable, "-c", script, name, tmp_path / name, tmp_path / "store"], cwd=ROOT)
        for name in names
    ]
    assert [call.wait(240) for call in calls] == [0, 0]
    assert json.loads((tmp_path / "store/sources.json").read_text()).keys() == names.keys()


def test_a_terminal_shows_progress_and_nothing_else(made, place, tmp_path):
    main, terminal = pty.openpty()
    call = start(place, tmp_path, stderr=terminal)
    os.close(terminal)
    shown = b""
    with contextlib.suppress(OSError):  # how Linux says that the other end is closed
        while more := os.read(main, 4096):
            shown += more
    assert call.wait(240) == 0
    lines = re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode()))
    assert any("data: some, reading" in line for line in lines)
    assert [line for line in lines if line.strip() and "data: some" not in line] == []
    there = {"train": 0, "valid": 0, "tokenizer": 0, "reports": 0}
    assert json.loads(call.communicate()[0]) | there == made | there


def test_command_line(place, store):
    def call(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "data.prepare", *arguments], cwd=ROOT, timeout=240, capture_output=True, text=True
        )

    assert "pydocs" in call("--help").stdout
    wrong = call("pydoc")
    assert wrong.returncode == 2 and "known are" in wrong.stderr and wrong.stderr.count("\n") == 1


def test_prepared_data_is_an_answer_in_json(store, capsys):
    words = ["some", "--store", str(store), "--vocab", str(VOCAB), "--format", "json"]
    prepare.main(words)
    answer = checked(capsys.readouterr().out)
    assert answer["kind"] == "data" and Path(answer["tokenizer"]["path"]).exists()
    manifest = prepare.prepare("some", "some", VOCAB, store)
    assert {key: answer[key] for key in manifest} == json.loads(json.dumps(manifest))
    for wrong in (["--vocab", "3"], ["--set", "data.größe=1"], ["--held-out"]):
        with pytest.raises(SystemExit) as ended:
            prepare.main([*words, *wrong])
        said = capsys.readouterr()
        assert ended.value.code == 2 and checked(said.out)["error"] in said.err


def test_prepared_data_is_told_in_lines_unless_json_is_asked_for(store, capsys):
    prepare.main(["some", "--store", str(store), "--vocab", str(VOCAB)])
    first, *lines = capsys.readouterr().out.splitlines()
    manifest = prepare.prepare("some", "some", VOCAB, store)
    assert first == f"some, sha256 {manifest['sha256']}" and all(line.startswith("  ") for line in lines)
    counts = manifest["counts"]["train"]
    words = f"{counts['documents']:,} documents, {counts['bytes']:,} bytes, {counts['tokens']:,} tokens"
    assert lines[0].split(maxsplit=1) == ["training", words]
    assert any(line.endswith(f"{manifest['train'][0]['prefix']}.bin and .idx") for line in lines)
    assert lines[-1].split() == ["report", manifest["reports"][0]]


@pytest.mark.parametrize("change", ["a document more", "another file", "a file less"])
def test_a_corpus_that_changes_while_it_is_read_is_not_taken_for_what_it_was(change, tmp_path, monkeypatch):
    """Its folder would bear the hash of the text that was there before."""
    from data import text

    folder, store = tmp_path / "füße", tmp_path / "store"
    for number in range(2):
        save(folder / f"{number}.jsonl", [prose(f"{number} ä{i}") for i in range(100)])
    remove_duplicates = text._remove_duplicates

    def meanwhile(*arguments):
        if change == "a document more":
            with open(folder / "1.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps({"text": prose("ö")}) + "\n")
        elif change == "another file":
            save(folder / "2.jsonl", [prose("ö")])
        else:
            (folder / "1.jsonl").unlink()
        return remove_duplicates(*arguments)

    with monkeypatch.context() as during:
        during.setattr(text, "_remove_duplicates", meanwhile)
        with pytest.raises(ValueError, match="changed while they were read: give the same command again"):
            prepared_text(str(folder), filters.DEFAULT_RECIPE, Store(store))
    assert not list(store.glob("*/manifest.json"))
    _, about = prepared_text(str(folder), filters.DEFAULT_RECIPE, Store(store))
    documents = about["train"]["documents"] + about["valid"]["documents"]
    assert documents == {"a document more": 201, "another file": 201, "a file less": 100}[change]


# The embedded corpus itself


def test_pydocs_is_the_recorded_text(monkeypatch, tmp_path):
    monkeypatch.setattr(corpus, "CORPORA", ROOT / "data" / "corpora")
    _, about = prepared_text("pydocs", filters.Recipe(), Store(tmp_path))
    assert not about["mismatch"]
    assert about["train"]["bytes"] > 10e6 and 1e6 < about["valid"]["bytes"] < 4e6
