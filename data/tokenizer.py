"""SentencePiece: train, load, hash. The only file that knows the library."""
from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

SPACE = "\u2581"  # what SentencePiece writes for a space; one that is in the text has to go in as bytes
SAMPLE_BYTES = 100_000_000  # text read for training at most; untuned
SMALLEST = 258  # pieces: the 256 bytes, <unk>, </s>
OPTIONS: dict[str, Any] = {
    "model_type": "bpe", "unk_id": 0, "eos_id": 1, "bos_id": -1, "pad_id": -1, "split_digits": True,
    # Lossless: nothing is normalised, added or removed; what has no piece falls back to its bytes.
    "byte_fallback": True, "normalization_rule_name": "identity", "add_dummy_prefix": False,
    "remove_extra_whitespaces": False, "allow_whitespace_only_pieces": True,
    "max_sentence_length": 1 << 30, "num_threads": 1,  # the number is written into the model
}


class Tokenizer:
    """A trained tokenizer, read from `path`. `decode(encode(text)) == text` for every valid string.

    Raises ValueError when the file is not a SentencePiece model or the text is not valid Unicode.
    """

    def __init__(self, path: str | Path):
        import sentencepiece

        self.path = Path(path)
        self._model = self.path.read_bytes()
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=self._model)
        except RuntimeError as error:
            raise ValueError(f"{self.path} is not a SentencePiece model: {error}") from error
        self.vocab_size: int = self._processor.get_piece_size()
        self.eod: int = self._processor.eos_id()
        self._space = [self._processor.piece_to_id(f"<0x{byte:02X}>") for byte in SPACE.encode()]

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self._model).hexdigest()

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, without an end-of-document token."""
        return self.encode_batch([text], threads=1)[0]

    def encode_batch(self, texts: Sequence[str], threads: int = 1) -> list[list[int]]:
        """Token ids of each text. `threads` changes the time, not the result."""
        try:
            parts = [part.encode() for text in texts for part in text.split(SPACE)]
        except UnicodeEncodeError as error:
            raise ValueError(f"not valid Unicode (a lone surrogate): {error}") from error
        encoded = iter(self._processor.encode(parts, num_threads=threads))
        batch = []
        for text in texts:
            ids = list(next(encoded))
            for _ in range(text.count(SPACE)):
                ids += self._space + next(encoded)
            batch.append(ids)
        return batch

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`; end-of-document is "", bytes that are no UTF-8 become U+FFFD."""
        return self._processor.decode(list(map(int, ids)))


def train(documents: Iterable[str], size: int, vocab: int) -> bytes:
    """Train a BPE model of exactly `vocab` pieces on documents of `size` bytes in all; returns the model.

    Among the pieces are the 256 bytes, <unk> and </s>, the end of document; a newline is always its byte.
    More text than SAMPLE_BYTES is thinned to every n-th document. Raises ValueError naming the smallest or
    largest vocabulary that the text allows.
    """
    import sentencepiece

    every = -(-size // SAMPLE_BYTES) or 1
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_lines(text for i, text in enumerate(documents) if i % every == 0),
            model_writer=model, vocab_size=vocab, minloglevel=2, **OPTIONS)
    except RuntimeError as error:
        raise ValueError(_explain(str(error), vocab)) from error
    return model.getvalue()


def _lines(documents: Iterable[str]) -> Iterator[str]:
    for text in documents:  # by lines, so that no piece spans two
        yield from (line for line in text.split("\n") if line)


def _explain(error: str, vocab: int) -> str:
    if "too high" in error:
        most = error.rsplit("<= ", 1)[1].strip(" .")
        return f"vocab={vocab} is more than this text can fill: at most {most}"
    if "smaller than required_chars" in error:
        least = error.rsplit(" vs ", 1)[1].split(".")[0]
        return f"vocab={vocab} is too small for the characters of this text: at least {least}"
    return f"the tokenizer could not be trained: {error}"
