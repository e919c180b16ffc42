"""The tokenizer: lossless for every string, deterministic, and clear about what it cannot do."""
import argparse
import hashlib
import inspect
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.tokenizer import SMALLEST, SPACE, Tokenizer, train

TEXTS = [inspect.getsource(module) for module in (argparse, inspect)]  # real text that is everywhere
TEXTS.append("2026-11-23\n" * 200)
SIZE = sum(map(len, TEXTS))
AWKWARD = [SPACE, SPACE * 3, " ", "   ", "\n", "\r\n", "\t", "\0", "</s>", "<unk>", "<0x0A>", "é", "e\u0301",
           "\U0001f469\u200d\U0001f680", "\ufeff", "\ufffd", "\U0010ffff", "the"]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    path.write_bytes(train(TEXTS, SIZE, 600))
    return path


@pytest.fixture(scope="module")
def tokenizer(path):
    return Tokenizer(path)


@settings(deadline=None)
@given(st.lists(st.text() | st.sampled_from(AWKWARD)).map("".join))
def test_round_trip_is_lossless(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert all(0 < token < tokenizer.vocab_size and token != tokenizer.eod for token in ids)  # 0 is <unk>


@pytest.mark.parametrize("text", [
    *AWKWARD, "", f" {SPACE} ", f"a{SPACE}", "x" * 100_000, " " * 50_000, TEXTS[0]],
    ids=lambda text: ascii(text[:12]))
def test_round_trip_of_awkward_strings(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


@settings(deadline=None)
@given(st.lists(st.text() | st.sampled_from(AWKWARD), max_size=6))
def test_batch_equals_one_by_one(tokenizer, texts):
    assert tokenizer.encode_batch(texts, threads=2) == [tokenizer.encode(text) for text in texts]


def test_newlines_and_digits_stand_alone(tokenizer):
    pieces = [tokenizer.decode([token]) for token in tokenizer.encode(TEXTS[0] + "2026-11-23\n")]
    assert all(len(piece) == 1 for piece in pieces if set(piece) & set("\n0123456789"))
    assert Counter(pieces)["\n"] == TEXTS[0].count("\n") + 1
    assert "    " in pieces  # runs of spaces are pieces, or indentation would be most of a text


def test_it_compresses(tokenizer):
    assert len(tokenizer.encode(TEXTS[0])) < len(TEXTS[0].encode()) / 2


def test_training_is_deterministic(path):
    assert train(iter(TEXTS), SIZE, 600) == path.read_bytes()


def test_hash_is_of_the_file(path, tokenizer, tmp_path):
    other = tmp_path / "other.model"
    other.write_bytes(train(TEXTS[:1], SIZE, 600))
    assert tokenizer.sha256 == hashlib.sha256(path.read_bytes()).hexdigest() != Tokenizer(other).sha256


def test_a_large_corpus_is_thinned_evenly(monkeypatch):
    monkeypatch.setattr("data.tokenizer.SAMPLE_BYTES", -(-SIZE // 2))
    mixed = [text for line in TEXTS[0].splitlines() for text in (line, "~" * 9)]
    assert train(mixed, SIZE, 600) == train(mixed[::2], 0, 600)


def test_vocabulary_limits_are_named(tmp_path):
    texts = ["some words, and some more words"]
    with pytest.raises(ValueError, match=r"at most (\d+)") as caught:
        train(texts, 1, 5000)
    most = int(str(caught.value).rsplit(" ", 1)[1])
    with pytest.raises(ValueError, match=f"at most {most}"):
        train(texts, 1, most + 1)
    (tmp_path / "m").write_bytes(train(texts, 1, most))
    assert Tokenizer(tmp_path / "m").vocab_size == most
    with pytest.raises(ValueError, match=r"vocab=260 is too small .* at least \d+$"):
        train(texts, 1, SMALLEST + 2)


def test_end_of_document_is_no_text(tokenizer):
    assert tokenizer.decode([*tokenizer.encode("a"), tokenizer.eod]) == "a"


def test_bad_input_is_refused(tokenizer, tmp_path):
    with pytest.raises(ValueError, match="surrogate"):
        tokenizer.encode("a\ud800")
    (tmp_path / "model").write_bytes(b"no model")
    with pytest.raises(ValueError, match="not a SentencePiece model"):
        Tokenizer(tmp_path / "model")
