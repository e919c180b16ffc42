"""Converts this project's tokenizers to Hugging Face's format, and compares the results with the originals."""

import os
from typing import Any

from data.tokenizer import reason_not_exportable


def convert_tokenizer(tokenizer: Any, longest: int | None = None, causal: bool = True) -> Any:
    """Convert a tokenizer to a transformers.PreTrainedTokenizerFast that gives the same ids for every text.

    The name of a special token within a text is encoded as ordinary characters (`split_special_tokens`). WordPiece is
    the exception: as in every BERT, a text may contain [MASK].

    Ids whose bytes are not valid UTF-8 are decoded differently: the converted tokenizer gives U+FFFD for each byte, the
    original only for the invalid ones. No text is encoded to such ids.

    Args:
        tokenizer: a tokenizer of data/tokenizer.py.
        longest: the longest input of the model, in tokens; None: unlimited.
        causal: whether the model is a decoder. For an encoder the mask token is declared, where the tokenizer has one.
    """
    from tokenizers import Tokenizer as Backend
    from transformers import PreTrainedTokenizerFast

    if hasattr(tokenizer, "definition"):  # byte-level BPE is in Hugging Face's format already
        backend = Backend.from_str(tokenizer.definition)
        end = backend.id_to_token(tokenizer.eod)
    else:
        backend, end = from_sentencepiece(tokenizer), tokenizer.pieces[tokenizer.eod].text
    if tokenizer.kind == "wordpiece":
        return from_wordpiece(tokenizer, backend, longest)
    names = {} if causal or tokenizer.mask is None else {"mask_token": backend.id_to_token(tokenizer.mask)}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=end,
        split_special_tokens=True,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
        **names,
        **({"model_max_length": longest} if longest else {}),
    )


def from_wordpiece(tokenizer: Any, backend: Any, longest: int | None) -> Any:
    """Convert a WordPiece tokenizer to a transformers.PreTrainedTokenizerFast. The result encodes a text as [CLS] text
    [SEP], and a pair as [CLS] text [SEP] second text [SEP], as eval/finetune does, without token types.

    BertTokenizerFast is not used: when it is loaded, it replaces the file's normaliser and word splitting by BERT's
    own, which gives other ids (transformers 5.23).

    Args:
        tokenizer: the WordPiece tokenizer of data/wordpiece.py.
        backend: the same tokenizer as a tokenizers.Tokenizer, which is changed in place.
        longest: the longest input of the model, in tokens; None: unlimited.
    """
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    pad, unk, cls, sep, mask = (
        backend.id_to_token(i) for i in (tokenizer.pad, tokenizer.unk, tokenizer.cls, tokenizer.sep, tokenizer.mask)
    )
    backend.no_padding()
    backend.no_truncation()
    backend.post_processor = processors.TemplateProcessing(
        single=f"{cls} $A {sep}",
        pair=f"{cls} $A {sep} $B {sep}",
        special_tokens=[(cls, tokenizer.cls), (sep, tokenizer.sep)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=pad,
        unk_token=unk,
        cls_token=cls,
        sep_token=sep,
        mask_token=mask,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
        **({"model_max_length": longest} if longest else {}),
    )


def from_sentencepiece(tokenizer: Any) -> Any:
    """Convert a SentencePiece tokenizer trained by this project to a tokenizers.Tokenizer with a BPE model of the same
    vocabulary.

    The pieces contain spaces themselves, and U+2581 is encoded as bytes like any character without a piece, so no pre-
    or post-processing is needed. Raises ValueError where the tokenizer cannot be exported.
    """
    from tokenizers import Regex, Tokenizer, decoders, models

    if why := reason_not_exportable(tokenizer):
        raise ValueError(why)
    pieces = [piece._replace(text=piece.text.replace("\u2581", " ")) for piece in tokenizer.pieces]
    scores = {piece.text: piece.score for piece in pieces if piece.kind == "normal"}
    vocab = {piece.text: i for i, piece in enumerate(pieces)}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=bpe_merges(scores), byte_fallback=True))
    newline = decoders.Replace(Regex("^<0x0A>$"), "\n")  # always a byte; a broken character after it leaves it whole
    backend.decoder = decoders.Sequence([newline, decoders.ByteFallback(), decoders.Fuse()])
    return backend


def bpe_merges(scores: dict[str, float]) -> list[tuple[str, str]]:
    """The BPE merges, best first, of a vocabulary with scores (SentencePiece). Every division of a piece into two
    pieces of the vocabulary becomes a merge. `scores`: {piece: score}, a higher score for a piece that is joined
    earlier.

    SentencePiece joins the two neighbours whose union has the best score, the leftmost pair among equals. Until a span
    of text becomes a piece, nothing was joined across its borders. So the same two parts always make a piece, whatever
    its context. Other divisions of a piece never occur, and their order does not matter.
    """
    best = sorted(scores, key=lambda piece: -scores[piece])
    cuts = ((piece[:i], piece[i:]) for piece in best for i in range(1, len(piece)))
    return [(left, right) for left, right in cuts if left in scores and right in scores]


def compare_tokenizers(ours: Any, theirs: Any, texts: list[str], encoded: list[list[int]]) -> None:
    """Check that an exported tokenizer encodes texts to the same ids as the original, and decodes them to the same
    texts as the original.

    Args:
        ours: the original tokenizer, of data/tokenizer.py.
        theirs: the exported one, a transformers tokenizer.
        texts: the texts to encode.
        encoded: the ids of each text by the original tokenizer.

    Raises:
        ValueError: the two differ; the message shows where.
    """
    name, end = (
        ("separator", theirs.sep_token_id) if ours.kind == "wordpiece" else ("end of document", theirs.eos_token_id)
    )
    if end != ours.eod:
        raise ValueError(f"the tokenizer's {name} is {end}, not {ours.eod}")
    options = {"add_special_tokens": False, "split_special_tokens": True} if ours.kind == "wordpiece" else {}
    for text, ids, their_ids in zip(texts, encoded, theirs(texts, **options).input_ids, strict=True):
        if ids != their_ids:
            common = os.path.commonprefix([ids, their_ids])
            raise ValueError(f"the converted tokenizer gives other ids, after {ours.decode(common)[-40:]!r}")
        decoded = text if ours.lossless else ours.decode(ids)  # which leaves out what is unknown
        if theirs.decode(ids, skip_special_tokens=not ours.lossless) != decoded:
            raise ValueError(f"the converted tokenizer does not give back {text[:40]!r}")
