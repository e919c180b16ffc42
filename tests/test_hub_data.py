"""Corpora and task data from a hub: the real clients against a server of the hub's API on this machine."""

import gzip
import io
import json
import os
import random
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import zstandard

from data import corpus, sources
from data.corpus import MissingData
from data.prepare import prepare
from data.tokenizer import load_tokenizer
from eval.__main__ import main
from eval.tasks import fetch, mirror
from tests.forked import Command, without_pauses
from tests.hub_server import Hub
from tests.test_data_prepare import VOCAB, contents, prose
from tests.test_eval import prepared, run  # noqa: F401  # fixtures

ROOT = Path(__file__).parents[1]
NOWHERE = "http://127.0.0.1:9"  # the port that discards: nothing listens there
PINNED = "ba9859b96b35e568abafa59cbff44dcfccea2c3b"  # of data/corpora/c4.yaml


def shard(number):
    """In C4's layout. Words at random: the file does not shrink to a few bytes."""
    rng = random.Random(number)
    lines = [
        json.dumps(
            {
                "text": f"{prose(f'{number}.{i}', 90)} {rng.getrandbits(512):x}",
                "timestamp": "2019-04-25",
                "url": "http://x",
            }
        )
        + "\n"
        for i in range(40)
    ]
    return gzip.compress("".join(lines).encode(), mtime=0)


@pytest.fixture(scope="module")
def files():
    found = {f"en/c4-train.{i:05d}-of-01024.json.gz": shard(i) for i in range(5)}
    return found | {
        "en/c4-validation.00000-of-00008.json.gz": shard(9),
        "README.md": b"# C4\n",
        "multilingual/c4-af.tfrecord-00000-of-00064.json.gz": shard(8),
    }


@pytest.fixture
def hub(files):
    with Hub() as hub:
        hub.alias("allenai/c4", PINNED, hub.add("allenai/c4", files))
        hub.add("allenai/c4", {name: shard(7) for name in files}, "main")  # what is newest is something else
        yield hub


def call(module, hub, home, *arguments):
    address = hub if isinstance(hub, str) else hub.address
    env = {"HF_ENDPOINT": address, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "OMP_NUM_THREADS": "1"}
    answer = ("--format", "json") if module == "data.prepare" else ()
    return Command(home.parent / "printed", module, (*arguments, *answer), env, without_pauses).wait()


def c4(hub, store, *more):
    return call("data.prepare", hub, store / "home", "c4", "--vocab", VOCAB, "--store", store / "store", *more)


@pytest.fixture(scope="module")
def local(tmp_path_factory, files):
    """The same files on disk, given with FROM."""
    place = tmp_path_factory.mktemp("local")
    for name, content in files.items():
        (place / "c4" / name).parent.mkdir(parents=True, exist_ok=True)
        (place / "c4" / name).write_bytes(content)
    done = c4(NOWHERE, place, "--from", place / "c4")
    assert done.returncode == 0, done.stderr
    return place


def built(place):
    return {
        name: content
        for name, content in contents(place / "store").items()
        if not name.startswith(("hashes/", "hub/", "sources.json"))
    }


def test_c4_from_the_hub_is_the_pinned_one_and_the_same_bytes_as_from_disk(hub, tmp_path, local):
    done = c4(hub, tmp_path)
    assert done.returncode == 0, done.stderr
    assert built(tmp_path) == built(local) and len(built(tmp_path)) > 10
    asked = {path for _, path, _ in hub.asked}
    assert not [path for path in asked if "/main" in path] and any("cursor" in path for path in asked)
    assert not [path for path in asked if "validation" in path or "multilingual" in path]
    made = json.loads(done.stdout)
    assert load_tokenizer(made["tokenizer"]["path"]).vocab_size == VOCAB
    before = len(hub.asked)
    assert json.loads(c4(hub, tmp_path).stdout) == made
    assert not [path for _, path, _ in hub.asked[before:] if "/resolve/" in path]  # nothing is read twice


def test_a_connection_that_breaks_is_made_again(hub, tmp_path, local, files):
    name = "en/c4-train.00002-of-01024.json.gz"
    hub.cut = {name: len(files[name]) // 2}
    done = c4(hub, tmp_path)
    assert done.returncode == 0, done.stderr
    assert hub.cuts == 0 and built(tmp_path) == built(local)


@pytest.mark.parametrize("fault", ["dies", "gone", "changed", "cut short"])
def test_a_hub_that_fails_in_the_middle_is_said_and_what_is_done_stays(hub, tmp_path, local, files, fault):
    name = "en/c4-train.00003-of-01024.json.gz"
    flipped = bytearray(files[name])
    flipped[len(flipped) // 2] ^= 1
    if fault == "dies":
        hub.cut, hub.cuts = {name: len(files[name]) // 2}, 1000
    elif fault == "gone":
        hub.missing = {name}
    else:
        hub.changed = {name: bytes(flipped) if fault == "changed" else files[name][:-300]}
    done = c4(hub, tmp_path, "--workers", 1, "--set", "allow_errors=5")  # no fault of the corpus: not allowed
    assert done.returncode == 1 and json.loads(done.stdout)["kind"] == "error", done.stderr
    error = done.stderr[done.stderr.index("error: ") :]
    assert name in error and "The same command goes on" in error and "FROM=folder" in error
    assert {
        "dies": "RemoteProtocolError",
        "gone": "Entry Not Found",
        "changed": "but the hub lists",
        "cut short": "the hub",
    }[fault] in error
    assert [path.name[:8] for path in (tmp_path / "store").glob("*-*")] == ["partial-"]
    finished = len(list((tmp_path / "store").glob("partial-*/logs/reading/completions/*")))
    assert finished >= 3
    hub.cut, hub.missing, hub.changed, before = {}, set(), {}, len(hub.asked)
    done = c4(hub, tmp_path)
    assert done.returncode == 0, done.stderr
    assert built(tmp_path) == built(local)
    read = {path.rsplit("/", 1)[1] for _, path, _ in hub.asked[before:] if "/resolve/" in path}
    assert name.removeprefix("en/") in read and len(read) <= 2  # of five


def test_a_hub_that_is_not_there(tmp_path):
    done = c4(NOWHERE, tmp_path)
    assert done.returncode == 2 and "the hub cannot be read" in done.stderr
    assert "make data CORPUS=c4 FROM=folder" in done.stderr and not list(tmp_path.glob("store/*-*"))


@pytest.mark.parametrize(
    "repository, match",
    [({}, "the hub cannot be read"), ({"README.md": b"#"}, f"no file of allenai/c4 at {PINNED} matches")],
)
def test_a_repository_or_a_revision_without_the_files(tmp_path, repository, match):
    with Hub() as hub:
        commit = hub.add("allenai/c4", repository or {"en/c4-train.00000-of-01024.json.gz": shard(0)}, "main")
        if repository:
            hub.alias("allenai/c4", PINNED, commit)
        done = c4(hub, tmp_path)
    assert done.returncode == 2 and match in done.stderr


def test_parquet_from_the_hub(tmp_path):
    """As OpenWebText and Wikipedia lie there. What seeks is read right."""
    import pyarrow
    from pyarrow import parquet

    texts = [prose(f"p{i}") for i in range(150)]
    parquet.write_table(pyarrow.table({"text": texts}), tmp_path / "0.parquet", row_group_size=40)
    (tmp_path / "some.yaml").write_text(f"hub: some/one\nrevision: {PINNED}\nfiles: ['*.parquet']\nlayout: parquet\n")
    with Hub() as hub:
        hub.alias("some/one", PINNED, hub.add("some/one", {"0.parquet": (tmp_path / "0.parquet").read_bytes()}))
        done = call(
            "data.prepare",
            hub,
            tmp_path / "home",
            tmp_path / "some.yaml",
            "--vocab",
            VOCAB,
            "--set",
            "dedup=none",
            "--store",
            tmp_path / "store",
        )
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout)["counts"]
    assert counts["train"]["documents"] + counts["valid"]["documents"] == len(texts)


def test_what_is_prepared_needs_no_hub(hub, tmp_path):
    """A compute node has no network, and every rank of a run asks for its data."""
    first = c4(hub, tmp_path)
    again = c4(NOWHERE, tmp_path)
    assert (first.returncode, again.returncode) == (0, 0), again.stderr
    assert json.loads(again.stdout) == json.loads(first.stdout)
    other = c4(NOWHERE, tmp_path, "--vocab", "450")  # nor does another tokenizer of the same text
    assert other.returncode == 0, other.stderr


def test_only_the_folders_that_hold_the_corpus_are_listed_once(hub, tmp_path):
    """C4's repository has more than a hundred languages beside English."""
    assert c4(hub, tmp_path).returncode == 0
    listed = [path for _, path, _ in hub.asked if "/tree/" in path]
    of = f"/api/datasets/allenai/c4/tree/{PINNED}"
    assert {path.partition("?")[0] for path in listed} == {of, f"{of}/en"}
    assert not [path for path in listed if "recursive=true" in path.lower()]
    assert len([path for _, path, _ in hub.asked if "/revision/" in path]) == 1  # by all processes together
    assert sum("/tree/" in path and "cursor" not in path for _, path, _ in hub.asked) == 2
    ours = list((tmp_path / "store" / "hub").iterdir())
    assert [path.name.rpartition("-")[0] for path in ours] == ["allenai__c4"]
    assert [name for name, _, _ in json.loads(ours[0].read_text())] == [
        f"en/c4-train.{i:05d}-of-01024.json.gz" for i in range(5)
    ]


def test_planning_never_asks_the_hub(tmp_path, monkeypatch):
    def refuse(*_):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    corpus.check("c4", tmp_path)
    with pytest.raises(MissingData, match="the files of allenai/c4 were not listed yet"):
        prepare("c4", "c4", VOCAB, tmp_path, build=False)


@pytest.mark.parametrize(
    "pattern, folder",
    [
        ("en/c4-train.*-of-01024.json.gz", ("en", False)),
        ("*.parquet", ("", False)),
        ("**/*.parquet", ("", True)),
        ("data/*/x.jsonl", ("data", True)),
        ("a/b/c.txt", ("a/b", False)),
        ("train/[0-9][0-9].txt", ("train", False)),
    ],
)
def test_the_folder_of_a_pattern(pattern, folder):
    assert sources._fixed_folder(pattern) == folder


def test_the_pile_from_the_hub_is_the_same_as_from_disk(tmp_path):
    """pile_uncopyrighted: shards of zstd, in a folder, with the domain of each document."""
    spec = corpus.load_specification("pile_uncopyrighted")
    place, content = tmp_path / "disk" / "train", {}
    place.mkdir(parents=True)
    for shard in range(3):
        lines = [
            json.dumps({"text": prose(f"{shard}.{i}"), "meta": {"pile_set_name": ("Github", "ArXiv")[i % 2]}})
            for i in range(60)
        ]
        packed_lines = zstandard.ZstdCompressor().compress("\n".join(lines).encode())
        content[f"train/{shard:02d}.jsonl.zst"] = packed_lines
        (place / f"{shard:02d}.jsonl.zst").write_bytes(packed_lines)

    def make(hub, store, *more):
        return call(
            "data.prepare",
            hub,
            tmp_path / "home",
            "pile_uncopyrighted",
            "--vocab",
            VOCAB,
            "--store",
            tmp_path / store / "store",
            *more,
        )

    with Hub() as hub:
        commit = hub.add(spec["hub"], content | {"val.jsonl.zst": b"no text"})
        hub.alias(spec["hub"], spec["revision"], commit)
        theirs = make(hub, "hub")
        half = "train/01.jsonl.zst"
        hub.changed = {half: content[half][:-40]}  # zstd itself does not see that the end is missing
        cut = make(hub, "cut")
    ours = make(NOWHERE, "disk", "--from", tmp_path / "disk")
    assert (theirs.returncode, ours.returncode) == (0, 0), theirs.stderr + ours.stderr
    assert built(tmp_path / "hub") == built(tmp_path / "disk")
    assert "Github" in Path(json.loads(theirs.stdout)["reports"][0]).read_text()
    assert cut.returncode == 1 and half in cut.stderr and not list((tmp_path / "cut" / "store").glob("*-tokens-*"))


def test_make_data_streams_from_the_hub(hub, tmp_path, local):
    """The command as people type it."""
    env = os.environ | {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
    done = subprocess.run(
        [
            "make",
            "--silent",
            "--old-file=.venv/ready",
            f"PY={sys.executable}",
            "data",
            "CORPUS=c4",
            f"VOCAB={VOCAB}",
            f"OUT={tmp_path}",
        ],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (tmp_path / "store").symlink_to(tmp_path / "data")
    assert built(tmp_path) == built(local)


# Task data: make eval-data


def packed(rows):
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(rows), out := io.BytesIO())
    return out.getvalue()


COPA = [
    {
        "premise": f"{prose(i, 5)}.",
        "choice1": f"{prose(i + 50, 4)}.",
        "choice2": f"{prose(i + 90, 4)}.",
        "question": ("cause", "effect")[i % 2],
        "idx": i,
        "label": i % 2,
    }
    for i in range(8)
]
PROST = [
    {
        **dict(zip("ABCD", prose(i, 4).split(), strict=True)),
        "context": prose(i, 9),
        "question": "The [MASK].",
        "ex_question": "Which is it?",
        "group": "rolling",
        "label": i % 4,
        "example_idx": i,
        "name": f"n{i}",
    }
    for i in range(6)
]
PUBMED = [
    {
        "QUESTION": prose(i, 9),
        "CONTEXTS": [prose(i, 20), prose(i + 9, 20)],
        "LABELS": ["A"],
        "MESHES": ["B"],
        "YEAR": "2026",
        "reasoning_required_pred": "yes",
        "reasoning_free_pred": "yes",
        "LONG_ANSWER": prose(i, 5),
        "final_decision": ("yes", "no", "maybe")[i % 3],
    }
    for i in range(6)
]
CARD = b"""---
configs:
- {config_name: copa, data_files: [{split: validation, path: copa/validation-*}]}
- {config_name: boolq, data_files: [{split: validation, path: boolq/validation-*}]}
---
# SuperGLUE
"""


def test_a_folder_that_cannot_be_written_is_said_in_a_line(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    (tmp_path / "copies").mkdir()
    words = ["--to", str(tmp_path / "file" / "mirror"), "--from", str(tmp_path / "copies"), "--tasks", "copa"]
    assert fetch.main(words) == 2
    assert "Choose another OUT" in capsys.readouterr().err


def test_without_a_network_the_hub_is_asked_once(tmp_path, monkeypatch):
    """Thousands of data sets, as of mmlu_*, would each be tried again and again."""
    asked = []
    monkeypatch.setattr(fetch, "why_unreachable", lambda: asked.append(1) or "no network")
    monkeypatch.setattr(fetch, "read_split", lambda source, *rest: pytest.fail(f"{source} was tried"))
    splits = {f"task{i}": (mirror.Source(f"org/set{i}", "default", "test"), {}) for i in range(1000)}
    assert fetch.write_mirror(splits, tmp_path) == dict.fromkeys(splits, "no network") and asked == [1]
    done = call("eval.tasks.fetch", NOWHERE, tmp_path / "home", "--to", tmp_path, "--tasks", "copa,boolq,piqa")
    errors = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert done.returncode == 1
    assert errors[0].startswith(f"error: copa, boolq, piqa: {NOWHERE} cannot be reached from this machine (")


def test_task_data_from_the_hub_and_a_run_judged_on_it(tmp_path, run):
    """The three ways to a data set: by name at a pinned commit, by its files at the newest one, and by a branch."""
    to, tasks = tmp_path / "to", ["copa", "prost", "pubmedqa"]
    with Hub() as hub:
        files = {"README.md": CARD, "copa/validation-00000-of-00001.parquet": packed(COPA)}
        pinned = mirror.suite()["copa"]["revision"]
        hub.alias("aps/super_glue", pinned, hub.add("aps/super_glue", files))
        hub.add("aps/super_glue", {**files, "copa/validation-00000-of-00001.parquet": packed(COPA[:3])}, "main")
        lines = "".join(json.dumps(row) + "\n" for row in PROST)
        newest = hub.add("corypaik/prost", {"data/default.jsonl": lines.encode()}, "main")
        path = "pubmed_qa_labeled_fold0_source/test/0000.parquet"
        branch = hub.add("bigbio/pubmed_qa", {path: packed(PUBMED)}, "refs/convert/parquet")

        def fill(*names):
            return call("eval.tasks.fetch", hub, tmp_path / "home", "--to", to, "--tasks", ",".join(names))

        done = fill(*tasks, "piqa")  # the last is not there
        assert done.returncode == 1 and "error: piqa: baber/piqa" in done.stderr and "3 of 4 tasks" in done.stdout
        before = len(hub.asked)
        assert fill(*tasks).returncode == 0 and not [a for a in hub.asked[before:] if "/api/datasets" in a[1]]
    made = mirror.Mirror(to)
    found = {entry["task"]: (entry["revision"], made.table(source).to_list()) for source, entry in made.entries.items()}
    assert found == {"copa": (pinned, COPA), "prost": (newest, PROST), "pubmedqa": (branch, PUBMED)}
    assert main([str(run), "--tasks", ",".join(tasks), "--data", str(to)]) == 0
    results = json.loads((run / "eval.json").read_text())["tasks"]
    assert {name: (results[name]["n"], results[name]["data"]["revision"]) for name in tasks} == {
        "copa": (8, pinned),
        "prost": (6, newest),
        "pubmedqa": (6, branch),
    }


def fill(hub, tmp_path):
    return call("eval.tasks.fetch", hub, tmp_path / "home", "--to", tmp_path / "to", "--tasks", "copa")


@pytest.mark.parametrize("fault", ["not there", "no such revision", "dies", "cut short"])
def test_task_data_that_cannot_be_had_is_said_and_tried_again(tmp_path, fault):
    pinned, name = mirror.suite()["copa"]["revision"], "copa/validation-00000-of-00001.parquet"
    content = packed(COPA)
    with Hub() as hub:
        commit = hub.add("aps/super_glue", {"README.md": CARD, name: content}, "main")
        if fault != "no such revision":
            hub.alias("aps/super_glue", pinned, commit)
        if fault == "dies":
            hub.cut, hub.cuts = {name: len(content) // 2}, 1000
        elif fault == "cut short":
            hub.changed = {name: content[:-200]}
        done = fill(NOWHERE if fault == "not there" else hub, tmp_path)
        assert done.returncode == 1 and "0 of 1 tasks" in done.stdout, done.stderr
        why = "cannot be reached from this machine" if fault == "not there" else "error: copa: aps/super_glue"
        error = done.stderr[done.stderr.index(why) :]
        assert "--from" in error and "Traceback" not in error
        assert not (tmp_path / "to" / "manifest.json").exists() and not list((tmp_path / "to").rglob("*.gz"))
        hub.cut, hub.changed = {}, {}
        hub.alias("aps/super_glue", pinned, commit)
        done = fill(hub, tmp_path)
    assert done.returncode == 0, done.stderr
    made = mirror.Mirror(tmp_path / "to")
    (source,) = made.entries
    assert made.table(source).to_list() == COPA
