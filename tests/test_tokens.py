"""Token files: Megatron's format, the same bytes as Megatron-LM's own tool writes, and what is counted on the way."""

import filecmp
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data import tokens
from data.tokenizer import load_tokenizer, train

ROOT = Path(__file__).parents[1]
# Made by tools/preprocess_data.py of Megatron-LM (commit d98e8a64dd) from our text.jsonl and tokenizer.json:
# --tokenizer-type HuggingFaceTokenizer --append-eod --workers 1
RECORDED = Path(__file__).parent / "megatron"
TEXTS = [json.loads(line)["text"] for line in (RECORDED / "text.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(RECORDED / "tokenizer.json")


def same(a, b):
    return all(filecmp.cmp(f"{a}{end}", f"{b}{end}", shallow=False) for end in (".bin", ".idx"))


def test_the_bytes_are_those_of_megatron_lm(tmp_path, tokenizer):
    tokens.write_token_file(tmp_path / "ours", [(text, "") for text in TEXTS], tokenizer)
    assert same(tmp_path / "ours", RECORDED / "theirs")


def test_megatron_lms_own_file_loads(tokenizer):
    from data.batches import Batches

    kind, lengths = tokens.read_index(RECORDED / "theirs")
    flat = np.fromfile(RECORDED / "theirs.bin", kind)
    documents = np.split(flat, np.cumsum(lengths)[:-1])
    assert [tokenizer.decode(document[:-1]) for document in documents] == TEXTS
    assert {int(document[-1]) for document in documents} == {tokenizer.eod}
    rows = Batches([(str(RECORDED / "theirs"), 1.0)], 8, seed=1).batch(range((len(flat) - 1) // 8))
    assert set(rows.flatten().tolist()) <= set(flat.tolist())


def test_megatron_core_reads_ours(tmp_path, tokenizer):
    indexed_dataset = pytest.importorskip("megatron.core.datasets.indexed_dataset")
    tokens.write_token_file(tmp_path / "ours", [(text, "") for text in TEXTS], tokenizer)
    read = indexed_dataset.IndexedDataset(str(tmp_path / "ours"))
    assert [read[i].tolist() for i in range(len(read))] == [[*tokenizer.encode(text), tokenizer.eod] for text in TEXTS]
    assert read.document_indices.tolist() == list(range(len(TEXTS) + 1))


@pytest.mark.skipif("MEGATRON_LM" not in os.environ, reason="MEGATRON_LM names a checkout of Megatron-LM")
def test_against_megatron_lms_tool(tmp_path, tokenizer):
    from eval.export_tokenizer import convert_tokenizer

    converted = convert_tokenizer(tokenizer)
    converted.split_special_tokens = False
    converted.save_pretrained(tmp_path / "hf")
    checkout = Path(os.environ["MEGATRON_LM"])
    subprocess.run(
        [
            sys.executable,
            checkout / "tools" / "preprocess_data.py",
            "--input",
            RECORDED / "text.jsonl",
            "--tokenizer-type",
            "HuggingFaceTokenizer",
            "--tokenizer-model",
            tmp_path / "hf",
            "--append-eod",
            "--workers",
            "1",
            "--output-prefix",
            tmp_path / "theirs",
        ],
        check=True,
        env=os.environ | {"PYTHONPATH": str(checkout), "HF_HUB_OFFLINE": "1"},
    )
    tokens.tokenize(str(RECORDED / "text.jsonl"), RECORDED / "tokenizer.json", tmp_path / "ours")
    assert same(tmp_path / "ours", tmp_path / "theirs_text_document")


@pytest.mark.parametrize("kind", ["bpe", "byte-bpe"])
def test_batches_and_parts_do_not_show(tmp_path, monkeypatch, kind):
    path = tmp_path / ("t.json" if kind == "byte-bpe" else "t.model")
    path.write_bytes(train(TEXTS * 9, 1, 300 if kind == "byte-bpe" else 320, kind))
    tokenizer, pairs = load_tokenizer(path), [(text, "") for text in TEXTS * 3]
    tokens.write_token_file(tmp_path / "whole", pairs, tokenizer)
    monkeypatch.setattr(tokens, "BATCH_CHARACTERS", 60)
    monkeypatch.setattr(tokens, "CHUNK", 2)
    parts = [tmp_path / f"part{i}" for i in range(4)]
    for part, chosen in zip(parts, (pairs[:4], pairs[4:5], [], pairs[5:]), strict=True):  # one part is empty
        tokens.write_token_file(part, chosen, tokenizer)
    tokens.join_files(parts, tmp_path / "joined")
    assert same(tmp_path / "whole", tmp_path / "joined")


def test_workers_do_not_show(tmp_path):
    for i in range(5):
        lines = [json.dumps({"text": f"{i} {text}", "meta": {"pile_set_name": f"domain {i % 2}"}}) for text in TEXTS]
        (tmp_path / "corpus").mkdir(exist_ok=True)
        (tmp_path / "corpus" / f"{i}.jsonl").write_text("\n".join(lines))
    counts = [
        tokens.tokenize(str(tmp_path / "corpus"), RECORDED / "tokenizer.json", tmp_path / f"by{n}", n) for n in (1, 2)
    ]
    assert same(tmp_path / "by1", tmp_path / "by2") and counts[0] == counts[1]
    assert {name: count.documents for name, count in counts[0].items()} == {"domain 0": 15, "domain 1": 10}
    assert {path.suffix for path in tmp_path.iterdir()} == {"", ".bin", ".idx"}


def test_counts(tmp_path, tokenizer):
    texts = [*TEXTS, " begins and ends with a space ", "\n\n\n", "nbsp\u00a0is no gap"]
    found = tokens.write_token_file(tmp_path / "x", [(text, str(i % 2)) for i, text in enumerate(texts)], tokenizer)
    for domain in ("0", "1"):
        own = [text.encode() for i, text in enumerate(texts) if str(i % 2) == domain]
        assert found[domain] == (
            len(own),
            sum(map(len, own)),
            sum(len(text.split()) for text in own),
            sum(len(tokenizer.encode(text.decode())) + 1 for text in own),
        )


def test_width_follows_the_vocabulary():
    assert [tokens.token_dtype(size).itemsize for size in (65_499, 65_500, 250_680)] == [2, 4, 4]  # Megatron's rule


def test_damaged_files_are_refused(tmp_path, tokenizer):
    tokens.write_token_file(tmp_path / "x", [(text, "") for text in TEXTS], tokenizer)
    (tmp_path / "x.bin").write_bytes((tmp_path / "x.bin").read_bytes()[:-2])
    with pytest.raises(ValueError, match="but its index says 270"):
        tokens.read_index(tmp_path / "x")
    (tmp_path / "x.idx").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="is not an index of Megatron's"):
        tokens.join_files([tmp_path / "x"], tmp_path / "y")
    assert not (tmp_path / "y.bin").exists()


def test_a_wrong_encoder_is_noticed(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(type(tokenizer), "encode_batch", lambda self, texts: [[0] for _ in texts])
    with pytest.raises(RuntimeError, match="different ids"):
        tokens.write_token_file(tmp_path / "x", [(TEXTS[0], "")], tokenizer)
    assert not (tmp_path / "x.bin").exists() and not (tmp_path / "x.idx").exists()
