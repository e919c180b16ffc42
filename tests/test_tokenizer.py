"""Tokenizers: lossless for every string, deterministic, and clear about what they cannot do."""

import argparse
import hashlib
import inspect
import io
import json
import os
import pickle
import random
import re
import subprocess
import sys
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import tokenizer as module
from data.sentencepiece_model import SPACE
from data.tokenizer import SMALLEST_VOCAB, load_tokenizer, read_tokenizer, train

ROOT = Path(__file__).parents[1]
TEXTS = [inspect.getsource(module) for module in (argparse, inspect)]  # real text that is everywhere
TEXTS.append("2026-11-23\n" * 200)
SIZE = sum(map(len, TEXTS))
AWKWARD = [
    SPACE,
    SPACE * 3,
    " ",
    "   ",
    "\n",
    "\r\n",
    "\t",
    "\0",
    "</s>",
    "<unk>",
    "<0x0A>",
    "<|endoftext|>",
    "é",
    "e\u0301",
    "\U0001f469\u200d\U0001f680",
    "\ufeff",
    "\ufffd",
    "\U0010ffff",
    "the",
    "'ll",
    "\u2028",
    "\x85",
    "²",
]
TRAINED = ("bpe", "unigram", "byte-bpe")


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    found = {kind: folder / (kind + (".json" if kind == "byte-bpe" else ".model")) for kind in TRAINED}
    for kind, path in found.items():
        path.write_bytes(train(TEXTS, SIZE, 600, kind))
    return found


@pytest.fixture(scope="module", params=TRAINED)
def tokenizer(request, paths):
    return load_tokenizer(paths[request.param])


@pytest.fixture(scope="module")
def bpe(paths):
    return load_tokenizer(paths["bpe"])


@pytest.fixture(scope="module")
def byte_bpe(paths):
    return load_tokenizer(paths["byte-bpe"])


strings = st.lists(st.text() | st.sampled_from(AWKWARD)).map("".join)


@settings(deadline=None)
@given(strings)
def test_round_trip_is_lossless(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    unknown = 0 if tokenizer.eod == 1 else None  # SentencePiece's
    assert all(0 <= token < tokenizer.vocab_size and token not in (tokenizer.eod, unknown) for token in ids)


@pytest.mark.parametrize(
    "text",
    [*AWKWARD, "", f" {SPACE} ", f"a{SPACE}", "x" * 100_000, " " * 50_000, TEXTS[0]],
    ids=lambda text: ascii(text[:12]),
)
def test_round_trip_of_awkward_strings(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


@settings(deadline=None)
@given(st.lists(st.text() | st.sampled_from(AWKWARD), max_size=6))
def test_batch_equals_one_by_one(tokenizer, texts):
    single = [tokenizer.encode(text) for text in texts]
    assert tokenizer.encode_batch(texts, threads=2) == single
    ids, counts = tokenizer.token_arrays(texts)
    assert ids.tolist() == [token for text in single for token in text] and counts.tolist() == list(map(len, single))


@settings(deadline=None, max_examples=300)
@given(strings)
def test_byte_bpe_gives_the_ids_of_hugging_face(byte_bpe, text):
    """The library that encodes is young; the reference is built here, without our class."""
    assert byte_bpe.encode(text) == _reference(byte_bpe.path).encode(text, add_special_tokens=False).ids


def _reference(path):
    from tokenizers import Tokenizer

    return Tokenizer.from_str(path.read_text(encoding="utf-8"))


def test_byte_bpe_is_compared_with_its_reference(byte_bpe, monkeypatch):
    byte_bpe.check_against_reference(TEXTS)
    monkeypatch.setattr(type(byte_bpe), "encode_batch", lambda self, texts: [[0] for _ in texts])
    with pytest.raises(RuntimeError, match="different ids for a text that begins '# Author"):
        byte_bpe.check_against_reference(TEXTS[:1])


def test_a_new_encoder_gives_the_same_ids(byte_bpe, monkeypatch):
    before = [byte_bpe.encode(text) for text in TEXTS]
    monkeypatch.setattr("data.byte_bpe.MAX_CACHE_BYTES", 1)
    byte_bpe._bytes_left = 0
    coders = []
    for text, ids in zip(TEXTS, before, strict=True):
        assert byte_bpe.encode(text) == ids
        coders.append(byte_bpe._encoder)
    assert len(set(map(id, coders))) == len(TEXTS)


def test_newlines_and_digits_stand_alone(bpe):
    pieces = [bpe.decode([token]) for token in bpe.encode(TEXTS[0] + "2026-11-23\n")]
    assert all(len(piece) == 1 for piece in pieces if set(piece) & set("\n0123456789"))
    assert Counter(pieces)["\n"] == TEXTS[0].count("\n") + 1
    assert "    " in pieces  # runs of spaces are pieces, or indentation would be most of a text


def test_it_compresses(tokenizer):
    assert len(tokenizer.encode(TEXTS[0])) < len(TEXTS[0].encode()) / 2


@pytest.mark.parametrize("kind", TRAINED)
def test_training_is_deterministic(paths, kind):
    assert train(iter(TEXTS), SIZE, 600, kind) == paths[kind].read_bytes()


def test_training_does_not_depend_on_threads(paths, tmp_path):
    """Hugging Face's trainer uses all cores."""
    (tmp_path / "texts").write_text(json.dumps(TEXTS))
    code = (
        "import json, sys; sys.path.insert(0, sys.argv[1]); from data.tokenizer import train; "
        "sys.stdout.buffer.write(train(json.load(open(sys.argv[2])), 1, 600, 'byte-bpe'))"
    )
    one = subprocess.run(
        [sys.executable, "-c", code, ROOT, tmp_path / "texts"],
        capture_output=True,
        check=True,
        env=os.environ | {"RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
    )
    assert one.stdout == paths["byte-bpe"].read_bytes()


def test_hash_is_of_the_file(paths, bpe, tmp_path):
    other = tmp_path / "other.model"
    other.write_bytes(train(TEXTS[:1], SIZE, 600))
    assert bpe.sha256 == hashlib.sha256(paths["bpe"].read_bytes()).hexdigest() != load_tokenizer(other).sha256


@pytest.mark.parametrize("kind", ["bpe", "byte-bpe"])
def test_a_large_corpus_is_thinned_evenly(monkeypatch, kind):
    monkeypatch.setattr("data.tokenizer.SAMPLE_BYTES", -(-SIZE // 2))
    mixed = [text for line in TEXTS[0].splitlines() for text in (line, "~" * 9)]
    assert train(mixed, SIZE, 600, kind) == train(mixed[::2], 0, 600, kind)


def test_vocabulary_limits_are_named(tmp_path):
    texts = ["some words, and some more words"]
    with pytest.raises(ValueError, match=r"^model.vocab=5000 \(VOCAB=\) is more .* at most (\d+)$") as caught:
        train(texts, 1, 5000)
    most = int(str(caught.value).rsplit(" ", 1)[1])
    with pytest.raises(ValueError, match=f"at most {most}"):
        train(texts, 1, most + 1)
    (tmp_path / "m").write_bytes(train(texts, 1, most))
    assert load_tokenizer(tmp_path / "m").vocab_size == most
    with pytest.raises(ValueError, match=r"vocab=260 is too small .* at least \d+$"):
        train(texts, 1, SMALLEST_VOCAB + 2)


def test_vocabulary_limits_of_byte_bpe(tmp_path):
    with pytest.raises(ValueError, match=r"^model.vocab=5000 \(VOCAB=\) is more .* at most (\d+)$") as caught:
        train(["some words, and some more words"], 1, 5000, "byte-bpe")
    most = int(str(caught.value).rsplit(" ", 1)[1])
    (tmp_path / "m.json").write_bytes(train(["some words, and some more words"], 1, most, "byte-bpe"))
    assert load_tokenizer(tmp_path / "m.json").vocab_size == most
    (tmp_path / "m.json").write_bytes(train(["a"], 1, 257, "byte-bpe"))  # nothing but bytes and the end of document
    assert load_tokenizer(tmp_path / "m.json").encode("é\n") == [127, 102, 198]  # as GPT-2 numbers the bytes
    with pytest.raises(ValueError, match="at least 257"):
        train(["a"], 1, 256, "byte-bpe")


def test_end_of_document_is_no_text(tokenizer):
    assert tokenizer.decode([*tokenizer.encode("a"), tokenizer.eod]) == "a"


# Tokenizers that exist


def gpt2_files(path, folder, names):
    """A trained vocabulary written as GPT-2's two files: the original format, with a vocabulary of ours."""
    spec = json.loads(path.read_text(encoding="utf-8"))["model"]
    folder.mkdir()
    (folder / names[0]).write_text(json.dumps(spec["vocab"]), encoding="utf-8")
    merges = [" ".join(merge) if isinstance(merge, list) else merge for merge in spec["merges"]]
    (folder / names[1]).write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
    return folder


@pytest.mark.parametrize("names", [("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe")])
def test_gpt2s_two_files(byte_bpe, tmp_path, names):
    folder = gpt2_files(byte_bpe.path, tmp_path / "gpt2", names)
    loaded = load_tokenizer(folder)
    assert (loaded.vocab_size, loaded.eod) == (600, 599)
    assert loaded.encode_batch(TEXTS) == byte_bpe.encode_batch(TEXTS)
    for other in (folder / names[0], folder / names[1]):
        assert load_tokenizer(other).sha256 == loaded.sha256
    name, content = read_tokenizer(folder)  # the copy that a run keeps
    (tmp_path / name).write_bytes(content)
    assert name == "tokenizer.json" and load_tokenizer(tmp_path / name).sha256 == loaded.sha256


@pytest.mark.skipif("GPT2" not in os.environ, reason="GPT2 names a folder with GPT-2's original files")
def test_gpt2_itself():
    gpt2 = load_tokenizer(os.environ["GPT2"])
    assert (gpt2.vocab_size, gpt2.eod) == (50257, 50256)
    assert gpt2.encode("Hello world, it's 2026!\n\n  def f(x):") == [
        15496,
        995,
        11,
        340,
        338,
        1160,
        2075,
        0,
        628,
        220,
        825,
        277,
        7,
        87,
        2599,
    ]


def t5_model(path, pieces=500):
    """A model in the layout of T5's spiece.model, not that file: unigram, ids of <pad>, </s>, <unk>, Unicode normal
    forms, no bytes. Beyond 500 it is filled up with pieces that no text has."""
    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2

    made = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS[0].splitlines()),
        model_writer=made,
        vocab_size=500,
        model_type="unigram",
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        normalization_rule_name="nmt_nfkc",
        minloglevel=2,
    )
    model = sentencepiece_model_pb2.ModelProto.FromString(made.getvalue())
    for number in range(500, pieces):
        model.pieces.add(piece=f"\ue000{number}", score=-100.0)
    path.write_bytes(model.SerializeToString())
    return path


def test_t5s_file(tmp_path):
    import sentencepiece

    loaded = load_tokenizer(t5_model(tmp_path / "spiece.model"))
    own = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "spiece.model"))
    assert (loaded.vocab_size, loaded.eod, loaded.lossless, loaded.kind) == (500, 1, False, "unigram")
    for text in [*TEXTS, *AWKWARD]:
        assert loaded.encode(text) == own.encode(text)  # as its library does, with all that it changes
    assert load_tokenizer(tmp_path).sha256 == loaded.sha256


def prepared(tmp_path, tokenizer, vocab):
    """What the preparation of a corpus with a tokenizer that exists says."""
    from data.prepare import prepare

    lines = [json.dumps({"text": part}) for part in TEXTS[0].split("\n\n") if len(part) > 60]
    (tmp_path / "corpus.jsonl").write_text("\n".join(lines))
    return prepare(str(tmp_path / "corpus.jsonl"), str(tokenizer), vocab, tmp_path / "store", "file")


def test_what_a_tokenizer_drops_is_said_in_bytes(tmp_path, bpe):
    """One that makes a space of line ends has less to predict, and its bits per byte are of all bytes."""
    t5 = load_tokenizer(t5_model(tmp_path / "spiece.model"))
    assert t5.lost_bytes("the\n\nthe") == 2 and t5.lost_bytes("the the") == 0
    assert t5.lost_bytes("theｅ") == len("ｅ".encode())  # NFKC makes another letter of it
    notes = prepared(tmp_path, tmp_path / "spiece.model", 500)["notes"]
    (said,) = [note for note in notes if "changes or drops at least" in note]
    share = float(re.search(r"at least ([0-9.]+)%", said)[1])
    assert 1 < share < 30
    assert bpe.lossless and bpe.lost_bytes("théorie\n\n  ｅ") == 0


def test_t5s_vocabulary_with_and_without_its_extra_ids(tmp_path):
    """T5's models have 32,100 ids, 100 more than its file has pieces, and 32,128 rows, the next multiple of 128."""
    from ablations.config import resolve
    from data import tokens

    t5 = t5_model(tmp_path / "spiece.model", 32000)
    made = {vocab: prepared(tmp_path, t5, vocab) for vocab in (32000, 32100)}
    assert resolve([("model.vocab", 32100)]).model.padded_vocab == 32128
    prefix = made[32100]["train"][0]["prefix"]
    assert made[32000]["train"][0]["prefix"] == prefix  # the same tokens
    assert made[32100]["tokenizer"]["vocab"] == 32100
    flat = np.fromfile(f"{prefix}.bin", tokens.read_index(prefix)[0])
    loaded = load_tokenizer(made[32100]["tokenizer"]["path"])
    assert loaded.vocab_size == 32000 and flat.max() < 500 and (flat == 1).sum() == len(tokens.read_index(prefix)[1])
    ids = loaded.encode("def a word")
    assert loaded.decode([*ids, 32099, 32000]) == loaded.decode(ids) == "def a word"  # a model may say an extra id
    for vocab in (31999, 32001, 32128):
        with pytest.raises(ValueError, match=f"32000 pieces: model.vocab={vocab} must be that, or 32100 with T5's"):
            prepared(tmp_path, t5, vocab)


def test_no_extra_ids_for_others(byte_bpe, bpe, tmp_path):
    for loaded, more in ((byte_bpe, ", or 601 with an id for a masked token"), (bpe, "")):
        with pytest.raises(ValueError, match=rf"600 pieces: model.vocab=700 must be that{more}$"):
            prepared(tmp_path, loaded.path, 700)


def test_a_vocabulary_of_250000(byte_bpe, tmp_path):
    """GPT-2's two files with ids beyond 16 bits: merged pieces come last, after pieces that no text has."""
    from data import tokens

    spec = json.loads(byte_bpe.path.read_text(encoding="utf-8"))["model"]
    order = sorted(spec["vocab"], key=spec["vocab"].get)
    vocab = {piece: at if at < 256 else at + 250_000 - len(order) for at, piece in enumerate(order)}
    vocab |= {f"!{number}": number for number in range(256, 250_000 - len(order) + 256)}
    (tmp_path / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    (tmp_path / "merges.txt").write_text("\n".join(" ".join(merge) for merge in spec["merges"]), encoding="utf-8")
    large = load_tokenizer(tmp_path)
    assert (large.vocab_size, large.eod) == (250_000, 249_999)
    tokens.write_token_file(
        tmp_path / "train", [(text, "") for text in TEXTS], large
    )  # compares ids with Hugging Face's
    kind, lengths = tokens.read_index(tmp_path / "train")
    flat = np.fromfile(tmp_path / "train.bin", kind)
    ours = [[vocab[order[token]] for token in ids] + [249_999] for ids in byte_bpe.encode_batch(TEXTS)]
    assert kind.itemsize == 4 and flat.tolist() == sum(ours, []) and lengths.tolist() == list(map(len, ours))
    assert large.decode(ours[0]) == TEXTS[0] and 65536 < max(ours[0][:-1]) < 249_999


@pytest.mark.parametrize("kind", TRAINED)
def test_the_smallest_vocabulary_of_a_study(kind, tmp_path):
    """2 ** 11 pieces, exactly, and a text of all of them."""
    (tmp_path / "tokenizer").write_bytes(train(TEXTS, SIZE, 2048, kind))
    (tmp_path / "tokenizer").rename(path := tmp_path / ("tokenizer.json" if kind == "byte-bpe" else "tokenizer.model"))
    loaded = load_tokenizer(path)
    assert loaded.vocab_size == 2048
    for text in [*TEXTS, *AWKWARD]:
        assert loaded.decode(loaded.encode(text)) == text and max(loaded.encode(text)) < 2048


def test_text_is_never_the_end_of_document(byte_bpe, tmp_path):
    """An added token of a tokenizer.json is found in any text by the libraries; a document must not hold one."""
    spec = json.loads(byte_bpe.path.read_text(encoding="utf-8"))
    spec["added_tokens"] = [
        {
            "id": 599,
            "content": "<|endoftext|>",
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
    ]
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    loaded = load_tokenizer(tmp_path)
    assert _reference(tmp_path / "tokenizer.json").encode("a<|endoftext|>").ids[-1] == 599  # so it would be
    assert loaded.encode("a<|endoftext|>") == byte_bpe.encode("a<|endoftext|>") and loaded.eod == 599
    assert 599 not in loaded.encode("a<|endoftext|>") and loaded.decode([*loaded.encode("a"), 599]) == "a"


def test_bad_input_is_refused(tokenizer, tmp_path):
    with pytest.raises(ValueError, match="surrogate"):
        tokenizer.encode("a\ud800")
    (tmp_path / "model").write_bytes(b"no model")
    with pytest.raises(ValueError, match="not a SentencePiece model"):
        load_tokenizer(tmp_path / "model")
    for content in ("no json", "{}", '{"model": {"vocab": []}, "pre_tokenizer": 0}'):
        (tmp_path / "tokenizer.json").write_text(content)
        with pytest.raises(ValueError, match=r"tokenizer\.json is not a"):
            load_tokenizer(tmp_path / "tokenizer.json")
    whole = {"model": {"vocab": {"a": 0}}, "pre_tokenizer": {"type": "ByteLevel"}}
    for vocab in ({"a": "0"}, {"a": -1}, {"a": 1e9}, {"a": 10**12}, {"a": True}, {"a": None}, {"a": 0, "b": 0}):
        (tmp_path / "tokenizer.json").write_text(json.dumps(whole | {"model": {"vocab": vocab}}))
        with pytest.raises(ValueError, match=r"tokenizer\.json is not a"):
            load_tokenizer(tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer.json").write_text('{"model": ' + "[" * 100_000)
    with pytest.raises(ValueError, match=r"tokenizer\.json is not a"):
        load_tokenizer(tmp_path / "tokenizer.json")
    with pytest.raises(ValueError, match=r"holds no tokenizer: needed is .* vocab\.json and merges\.txt"):
        load_tokenizer(tmp_path / "nothing")


def test_a_tokenizer_without_end_of_document_is_refused(byte_bpe, tmp_path):
    spec = json.loads(byte_bpe.path.read_text(encoding="utf-8"))
    del spec["model"]["vocab"]["<|endoftext|>"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    with pytest.raises(ValueError, match=r"no piece <\|endoftext\|> or </s>"):
        load_tokenizer(tmp_path)


def test_pieces_are_the_vocabulary(bpe):
    assert len(bpe.pieces) == 600 and Counter(piece.kind for piece in bpe.pieces)["byte"] == 256
    assert [bpe.pieces[i].kind for i in (0, 1)] == ["unknown", "control"]
    word = bpe.encode("the")
    assert "".join(bpe.pieces[token].text for token in word) == "the"


@pytest.mark.parametrize("kind", ["bpe", "byte-bpe"])
def test_exported_to_hugging_face(paths, kind):
    from eval import export, export_tokenizer

    tokenizer = load_tokenizer(paths[kind])
    texts = [*TEXTS, *AWKWARD, *export.PARITY_TEXTS]
    export_tokenizer.compare_tokenizers(
        tokenizer, export_tokenizer.convert_tokenizer(tokenizer), texts, tokenizer.encode_batch(texts)
    )


def test_what_is_not_exported_is_refused(paths, tmp_path):
    from eval import export_tokenizer

    with pytest.raises(ValueError, match="unigram is not exported"):
        export_tokenizer.convert_tokenizer(load_tokenizer(paths["unigram"]))


def test_width_of_the_arrays(byte_bpe):
    ids, counts = byte_bpe.token_arrays([])
    assert len(ids) == len(counts) == 0 and ids.dtype.kind in "iu" and np.issubdtype(counts.dtype, np.integer)


# Added tokens, WordPiece, masks, and what has no piece

CODE = [
    "def f(x):\n        return  x\n" * 3 + "    " * k + "é語 <|endoftext|> [X] a[X]b  [X]  <mask>" for k in range(9)
]


def with_added(tmp_path, *added, pre_tokenizer=None):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizer or pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<|endoftext|>", "<mask>"], show_progress=False, initial_alphabet=alphabet
    )
    backend.train_from_iterator(CODE, trainer)
    backend.add_tokens(list(added))
    backend.save(str(tmp_path / "tokenizer.json"))
    backend.encode_special_tokens = True  # as in an export: the name of a special token in a text is text
    return load_tokenizer(tmp_path / "tokenizer.json"), backend


@pytest.mark.parametrize("kind", ["spaces", "words", "greedy", "letters"])
def test_added_tokens_are_those_of_hugging_face(tmp_path, kind):
    from tokenizers import AddedToken

    added = {
        "spaces": [AddedToken(" " * n, normalized=False) for n in range(16, 1, -1)],  # as models of code have them
        "words": [AddedToken("ab", single_word=True), AddedToken("[X]", normalized=False)],
        "greedy": [AddedToken("[X]", lstrip=True, rstrip=True, normalized=False)],
        "letters": [AddedToken("ab"), AddedToken("abc"), AddedToken("語")],
    }[kind]
    ours, theirs = with_added(tmp_path, *added)
    rng = random.Random(0)
    parts = [
        " ",
        "  ",
        "\n",
        "\t",
        "a",
        "b",
        "ab",
        "abc",
        "é",
        "語",
        "[X]",
        "<|endoftext|>",
        "<mask>",
        "0",
        ".",
        "\u00a0",
    ]
    texts = [*CODE, *module.PARITY_TEXTS, *("".join(rng.choices(parts, k=rng.randrange(1, 40))) for _ in range(2000))]
    expected = [encoding.ids for encoding in theirs.encode_batch(texts, add_special_tokens=False)]
    assert ours.encode_batch(texts) == expected
    ids, counts = ours.token_arrays(texts)
    assert ids.tolist() == [token for each in expected for token in each] and counts.tolist() == list(
        map(len, expected)
    )
    assert ours.lossless == (kind != "greedy")
    if ours.lossless:
        assert [ours.decode(each) for each in expected] == texts
    assert any(token >= 300 for each in expected for token in each)
    assert ours.mask == theirs.token_to_id("<mask>") and not {ours.mask, ours.eod} & set(ids.tolist())
    module.check_parity(ours)


@pytest.mark.parametrize("kind", ["a space before", "digit by digit"])
def test_other_ways_to_split_text_are_those_of_hugging_face(tmp_path, kind):
    """RoBERTa's space before a text stays when it is decoded; gigatoken does not know StarCoder's single digits."""
    from tokenizers import pre_tokenizers

    from eval import export_tokenizer

    spaced = kind == "a space before"
    split = pre_tokenizers.ByteLevel(add_prefix_space=spaced)
    if not spaced:
        split = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), split])
    ours, theirs = with_added(tmp_path, pre_tokenizer=split)
    texts = [*CODE, "12345 straße 2024", "语言", *module.PARITY_TEXTS]
    expected = [encoding.ids for encoding in theirs.encode_batch(texts, add_special_tokens=False)]
    assert ours.encode_batch(texts) == expected == pickle.loads(pickle.dumps(ours)).encode_batch(texts)
    assert ours.token_arrays(texts)[0].tolist() == [token for ids in expected for token in ids]
    assert ours.lossless == (not spaced) == ([ours.decode(ids) for ids in expected] == texts)
    module.check_parity(ours)
    export_tokenizer.compare_tokenizers(ours, export_tokenizer.convert_tokenizer(ours), texts, expected)


def test_a_tokenizer_that_is_not_hugging_faces_is_refused_before_training(tmp_path, monkeypatch):
    from tokenizers import AddedToken

    ours, _ = with_added(tmp_path, AddedToken("  ", normalized=False))
    monkeypatch.setattr(ours, "_spec", json.dumps(json.loads(ours._spec) | {"added_tokens": []}))
    with pytest.raises(ValueError, match="different ids"):
        module.check_parity(ours)


def test_bytes_without_a_piece_are_refused(tmp_path):
    _, backend = with_added(tmp_path)
    spec = json.loads(backend.to_str())
    del spec["model"]["vocab"]["¡"]  # the byte 0xA1
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    with pytest.raises(ValueError, match="no piece for 1 of the bytes of text, such as 161"):
        load_tokenizer(tmp_path)


@pytest.fixture(scope="module")
def wordpiece(tmp_path_factory):
    path = tmp_path_factory.mktemp("wordpiece") / "tokenizer.json"
    path.write_bytes(train(TEXTS, sum(map(len, TEXTS)), 512, "wordpiece"))
    return load_tokenizer(path)


def test_wordpiece_is_lower_case_without_accents_and_no_text_becomes_a_special_token(wordpiece):
    assert wordpiece.vocab_size == 512 and wordpiece.eod == wordpiece.sep and not wordpiece.lossless
    assert [wordpiece.pad, wordpiece.unk, wordpiece.cls, wordpiece.sep, wordpiece.mask] == wordpiece.specials
    assert wordpiece.encode("The FUNCTION  Rétürns") == wordpiece.encode("the function returns")
    special = {wordpiece.pad, wordpiece.cls, wordpiece.sep, wordpiece.mask}
    for text in [*TEXTS, *AWKWARD, "[MASK] [SEP][CLS] [PAD]"]:
        ids = wordpiece.encode(text)
        assert not special & set(ids) and all(0 <= token < 512 for token in ids)
    ids, counts = wordpiece.token_arrays(TEXTS)
    assert ids.tolist() == [token for text in TEXTS for token in wordpiece.encode(text)] and counts.sum() == len(ids)


def test_wordpiece_is_berts_with_the_same_pieces(wordpiece, tmp_path):
    """The longest piece first, as a loop written out here."""
    pieces = json.loads(wordpiece.definition)["model"]["vocab"]

    def word_ids(word):
        ids, at = [], 0
        while at < len(word):
            for end in range(len(word), at, -1):
                piece = ("##" if at else "") + word[at:end]
                if piece in pieces:
                    ids.append(pieces[piece])
                    at = end
                    break
            else:
                return [pieces["[UNK]"]]
        return ids

    for text in [*TEXTS[:40], "Zwölf Boxkämpfer, jagen ``Viktor''!", "語語 abc_def x2 12.5"]:
        plain = unicodedata.normalize("NFD", text.replace("``", '"').replace("''", '"')).lower()
        plain = "".join(letter for letter in plain if unicodedata.category(letter) != "Mn")
        words = re.findall(r"\w+|[^\w\s]+", plain)
        if max(map(len, words)) <= 100:  # longer words are [UNK] to the library
            assert wordpiece.encode(text) == [token for word in words for token in word_ids(word)], text


def test_wordpiece_is_the_same_in_every_process(wordpiece):
    script = (
        "import json, sys, hashlib\nfrom data.tokenizer import train\ntexts = json.load(sys.stdin)\n"
        "print(hashlib.sha256(train(texts, sum(map(len, texts)), 512, 'wordpiece')).hexdigest())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], input=json.dumps(TEXTS), capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == wordpiece.sha256


@pytest.mark.parametrize("vocab, match", [(10, "at least 64"), (1 << 17, r"at most \d+")])
def test_wordpiece_vocabulary_out_of_range(vocab, match):
    with pytest.raises(ValueError, match=match):
        train(TEXTS, 1, vocab, "wordpiece")


def test_a_mask_is_an_id_that_no_text_becomes(wordpiece, bpe, byte_bpe, tmp_path):
    (tmp_path / "tokenizer.json").write_bytes(train(TEXTS, 1, 400, "byte-bpe", mask=True))
    masked = load_tokenizer(tmp_path)
    assert masked.vocab_size == 400 and masked.eod == 398 and masked.mask == 399
    for loaded in (wordpiece, bpe, masked):
        mask = module.mask_id(loaded, loaded.vocab_size)
        texts = [*TEXTS, *AWKWARD, "<mask>", "[MASK]", "<unk>"]
        assert mask in loaded.specials and not any(mask in ids for ids in loaded.encode_batch(texts))
    with pytest.raises(ValueError, match="model.vocab=601 there is one"):
        module.mask_id(byte_bpe, 600)
    assert module.mask_id(byte_bpe, 601) == 600


def test_what_has_no_piece_is_counted(wordpiece, bpe, byte_bpe, tmp_path):
    """Half of a text in a script that the tokenizer has never seen, one word a token."""
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(line for text in TEXTS for line in text.split("\n") if line),
        model_writer=model,
        vocab_size=300,
        minloglevel=2,
        hard_vocab_limit=False,
    )
    (tmp_path / "lossy.model").write_bytes(model.getvalue())
    lossy = load_tokenizer(tmp_path / "lossy.model")
    assert not lossy.lossless and lossy.mask is None
    text = " ".join(["the", "река"] * 50)
    for loaded in (lossy, wordpiece):
        counts = loaded.coverage([text, "the"])
        assert counts.unknown == 50 and counts.unknown_bytes == 50 * len("река".encode())
        assert counts.bytes == len(text.encode()) + 3 and counts.tokens == len(loaded.encode(text)) + len(
            loaded.encode("the")
        )
        assert loaded.count_unknown(text) == (50, 400)
    for loaded in (bpe, byte_bpe):
        assert loaded.coverage([text])[1:] == (0, len(text.encode()), 0) and loaded.lossless
