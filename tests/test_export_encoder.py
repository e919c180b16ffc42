"""An encoder with a WordPiece tokenizer as a Hugging Face checkpoint: the ids, the joining of pairs, a whole run."""

import inspect
import random
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from data.tokenizer import PARITY_TEXTS, WordPiece, load_tokenizer, train
from eval import export, export_tokenizer
from eval.finetune.classifier import input_encoder
from tests.test_hub import ENCODER, LLAMA, run_directory

TEXTS = [
    *(inspect.getsource(module) for module in (textwrap, random)),
    "Über ``die'' Brücke läuft der Hund; кот сидит на мате, и 漢字 (ça va?) it's [MASK]ed!!  3.14",
] * 2


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> WordPiece:
    path = tmp_path_factory.mktemp("wordpiece") / "tokenizer.json"
    path.write_bytes(train(TEXTS, sum(map(len, TEXTS)), 600, "wordpiece"))
    tokenizer = load_tokenizer(path)
    assert isinstance(tokenizer, WordPiece)
    return tokenizer


@pytest.fixture(scope="module")
def theirs(ours: WordPiece, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("converted")
    export_tokenizer.convert_tokenizer(ours, 24, causal=False).save_pretrained(folder)
    return transformers.AutoTokenizer.from_pretrained(folder)


@settings(deadline=None, max_examples=200)
@given(st.lists(st.text() | st.sampled_from([*PARITY_TEXTS, *TEXTS[2].split(" ")])).map("".join))
def test_the_same_ids_for_every_text(ours: WordPiece, theirs: Any, text: str) -> None:
    ids = ours.encode(text)
    assert theirs(text, add_special_tokens=False, split_special_tokens=True).input_ids == ids
    assert theirs.decode(ids, skip_special_tokens=True) == ours.decode(ids)


def test_texts_and_pairs_are_joined_as_in_fine_tuning(ours: WordPiece, theirs: Any) -> None:
    encode = input_encoder(ours, 10_000)
    for a, b in [("der Hund", ""), ("der Hund", "кот"), (TEXTS[2], "[SEP] 漢字"), (" ", "x")]:
        assert theirs(a, b or None, split_special_tokens=True).input_ids == encode(a, b), (a, b)
    assert set(theirs("a", "b")) == {"input_ids", "attention_mask"}  # the model has one kind of token
    assert theirs(["a", "a b c"], padding=True).input_ids[0][-1] == ours.pad


def test_special_tokens_are_found_in_a_text_to_be_filled_in(ours: WordPiece, theirs: Any) -> None:
    assert theirs("the [MASK]").input_ids == [ours.cls, *ours.encode("the"), ours.mask, ours.sep]
    assert ours.mask not in theirs("the [MASK]", split_special_tokens=True).input_ids


def test_a_tokenizer_that_differs_is_seen(ours: WordPiece) -> None:
    texts = ["der Hund läuft", "漢字"]
    theirs = export_tokenizer.convert_tokenizer(ours, causal=False)
    export_tokenizer.compare_tokenizers(ours, theirs, texts, ours.encode_batch(texts))
    theirs.backend_tokenizer.normalizer = None
    with pytest.raises(ValueError, match="gives other ids, after 'der"):
        export_tokenizer.compare_tokenizers(ours, theirs, texts, ours.encode_batch(texts))


def test_bert_tokenizer_fast_would_give_other_ids(ours: WordPiece, tmp_path: Path) -> None:
    """Why it is not that class: loaded again, it splits and normalises as BERT's own vocabulary wants it."""
    theirs = export_tokenizer.convert_tokenizer(ours, causal=False)
    transformers.BertTokenizerFast(tokenizer_object=theirs.backend_tokenizer).save_pretrained(tmp_path)
    again = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert type(again).__name__.startswith("BertTokenizer")
    text = "it's!!"
    assert again(text, add_special_tokens=False).input_ids != ours.encode(text)


def test_a_run_is_exported_and_fills_in_masks(
    ours: WordPiece, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_directory(tmp_path / "out", replace(ENCODER, vocab=ours.vocab_size), ours, TEXTS)
    to = tmp_path / "exported"
    assert export.main([str(run), "--to", str(to)]) == 0
    told = capsys.readouterr().out
    assert "BERT; its logits differ by" in told and "generates" not in told
    assert {path.name for path in to.iterdir()} == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    fill = transformers.pipeline("fill-mask", model=str(to), tokenizer=str(to))
    answers = fill("der [MASK] läuft", top_k=3)
    assert len(answers) == 3 and all(isinstance(answer["token_str"], str) for answer in answers)
    # as a classifier: everything is there but the head, which transformers begins anew
    _, info = transformers.AutoModelForSequenceClassification.from_pretrained(to, output_loading_info=True)
    assert {name.split(".")[0] if "pooler" not in name else "pooler" for name in info["missing_keys"]} == {
        "classifier",
        "pooler",
    }
    config = transformers.AutoConfig.from_pretrained(to)
    assert (config.pad_token_id, config.vocab_size) == (ours.pad, 640)
    states = transformers.AutoModel.from_pretrained(to)(torch.tensor([[2, 7, 3]])).last_hidden_state
    assert states.shape == (1, 3, 48)


@pytest.mark.parametrize(
    "cfg", [replace(ENCODER, block="pre-ln"), replace(LLAMA, objective="mlm")], ids=["pre", "llama"]
)
def test_an_encoder_without_a_class_is_refused_with_the_reason(
    cfg: Any, ours: WordPiece, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_directory(tmp_path / "out", replace(cfg, vocab=ours.vocab_size), ours, TEXTS)
    assert export.main([str(run), "--to", str(tmp_path / "exported")]) == 2
    assert "the nearest, BERT, has not model." in capsys.readouterr().err
    assert not (tmp_path / "exported").exists()
