"""SentencePiece tokenizers (BPE or unigram): trained here such that they lose no text, or read from a file."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from data.coverage import Coverage
from data.tokenizer_base import Tokenizer, encode_utf8

SPACE = "\u2581"  # SentencePiece's sign for a space; where a text itself has this character, it is encoded as bytes
OPTIONS: dict[str, Any] = {
    "model_type": "bpe",
    "unk_id": 0,
    "eos_id": 1,
    "bos_id": -1,
    "pad_id": -1,
    "split_digits": True,
    # Lossless: nothing is normalised, added or removed; a character without a piece is encoded as its bytes.
    "byte_fallback": True,
    "normalization_rule_name": "identity",
    "add_dummy_prefix": False,
    "remove_extra_whitespaces": False,
    "allow_whitespace_only_pieces": True,
    "max_sentence_length": 1 << 30,
    "num_threads": 1,  # the number is written into the model
}


class Piece(NamedTuple):
    """An entry of a SentencePiece vocabulary."""

    text: str  # a space is written as U+2581, and a piece that stands for a byte as, for example, <0x0A>
    score: float  # BPE merges the pair whose piece has the highest score first
    kind: str  # "normal", "byte", "control" or "unknown"


class SentencePiece(Tokenizer):
    """A SentencePiece tokenizer. Models trained here are lossless. A model from elsewhere, such as T5's, normalises
    text in its own way (Unicode normal forms, repeated spaces merged)."""

    def __init__(self, path: str | Path, content: bytes):
        import sentencepiece
        from sentencepiece import sentencepiece_model_pb2

        self.path = Path(path)
        self.sha256 = hashlib.sha256(content).hexdigest()
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=content)
        except RuntimeError as error:
            raise ValueError(f"{self.path} is not a SentencePiece model: {error}") from error
        self.vocab_size: int = self._processor.get_piece_size()
        self.eod: int = self._processor.eos_id()
        if self.eod < 0:
            raise ValueError(f"{self.path} has no piece </s> to end a document with")
        self._space = [self._processor.piece_to_id(f"<0x{byte:02X}>") for byte in SPACE.encode()]
        model = sentencepiece_model_pb2.ModelProto.FromString(content)  # type: ignore[attr-defined]  # made at run time
        self.kind = {1: "unigram", 2: "bpe"}.get(model.trainer_spec.model_type, "word or char")
        norm = model.normalizer_spec
        self.lossless = model.trainer_spec.byte_fallback and not (
            norm.precompiled_charsmap or norm.add_dummy_prefix or norm.remove_extra_whitespaces
        )
        processor = self._processor
        self.specials = [i for i in range(self.vocab_size) if processor.is_control(i) or processor.is_unknown(i)]
        # a lossless model encodes no text as <unk>, as a character without a piece is encoded as its bytes
        self.mask: int | None = processor.unk_id() if self.lossless else None

    def encode_batch(self, texts: Sequence[str], threads: int = 1) -> list[list[int]]:
        parts = encode_utf8(part for text in texts for part in (text.split(SPACE) if self.lossless else (text,)))
        encoded = iter(self._processor.encode(parts, num_threads=threads))
        batch = []
        for text in texts:
            ids = next(encoded)
            for _ in range(text.count(SPACE) if self.lossless else 0):
                ids += self._space + next(encoded)
            batch.append(ids)
        return batch

    def decode(self, ids: Sequence[int]) -> str:
        return self._processor.decode([int(i) for i in ids if i < self.vocab_size])

    def coverage(self, texts: Sequence[str]) -> Coverage:
        encode_utf8(texts)
        if self.lossless:
            return Coverage(sum(map(len, self.encode_batch(texts))), 0, sum(len(text.encode()) for text in texts), 0)
        total, unknown = Coverage(0, 0, 0, 0), self._processor.unk_id()
        for text in texts:
            tokens = self._processor.encode(text, return_type="proto").pieces
            lost = [len(token.surface.encode()) for token in tokens if token.id == unknown]
            total += Coverage(len(tokens), len(lost), len(text.encode()), sum(lost))
        return total

    @cached_property
    def pieces(self) -> list[Piece]:
        """The entries of the vocabulary, in the order of their ids."""
        p = self._processor
        kinds = (("byte", p.is_byte), ("control", p.is_control), ("unknown", p.is_unknown), ("normal", lambda _: True))
        return [
            Piece(p.id_to_piece(i), p.get_score(i), next(kind for kind, is_kind in kinds if is_kind(i)))
            for i in range(self.vocab_size)
        ]


def train(sample: Iterable[str], vocab: int, kind: str) -> bytes:
    """Train a SentencePiece model; returns the content of its file. `sample`: the texts to train on; `vocab`: the
    number of pieces; `kind`: "bpe" or "unigram". Raises ValueError where the texts are too few for so large a
    vocabulary, or have too many characters for so small a one; the message names the limit."""
    import sentencepiece

    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_lines(sample),
            model_writer=model,
            vocab_size=vocab,
            minloglevel=2,
            **OPTIONS | {"model_type": kind},
        )
    except RuntimeError as error:
        raise ValueError(_training_error_message(str(error), vocab)) from error
    return model.getvalue()


def _lines(documents: Iterable[str]) -> Iterator[str]:
    """Yield the lines of all documents, except empty ones. The model is trained on lines so that no piece contains a
    line end."""
    for text in documents:
        yield from (line for line in text.split("\n") if line)


def _training_error_message(error: str, vocab: int) -> str:
    """The message for an error in SentencePiece's training, in the project's words. `error`: SentencePiece's own
    message; `vocab`: the number of pieces that was requested."""
    if "too high" in error:
        largest = error.rsplit("<= ", 1)[1].strip(" .")
        return f"model.vocab={vocab} (VOCAB=) is more than this text can fill: at most {largest}"
    if "smaller than required_chars" in error:
        smallest = error.rsplit(" vs ", 1)[1].split(".")[0]
        return f"model.vocab={vocab} is too small for the characters of this text: at least {smallest}"
    return f"the tokenizer could not be trained: {error}"
