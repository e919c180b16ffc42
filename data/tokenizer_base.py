"""What tokenizers of every kind have in common."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.coverage import Coverage

if TYPE_CHECKING:
    import numpy as np


class Tokenizer:
    """A tokenizer, read from the content of one file. No text is encoded as a special token, whatever the text
    contains. `path`: where the file is, for error messages; `content`: the bytes of the file. Raises ValueError where
    the content is not a tokenizer of this kind. Methods that encode raise ValueError where a text is not valid
    Unicode."""

    kind: str
    path: Path
    sha256: str  # of the content
    vocab_size: int  # the largest id, plus 1
    eod: int  # the id that ends a document
    specials: list[int]  # the ids that no text is encoded as
    mask: int | None  # the one of them that can stand for a masked token; see data.tokenizer.mask_id
    lossless: bool  # whether decoding gives every text back

    def __init__(self, path: str | Path, content: bytes):
        raise NotImplementedError

    def encode(self, text: str) -> list[int]:
        """The token ids of a text, without an end-of-document token."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str], threads: int = 1) -> list[list[int]]:
        """The token ids of each text. The number of threads changes the time, not the result."""
        raise NotImplementedError

    def token_arrays(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Two arrays: the token ids of all texts, end to end [tokens], and the number of tokens of each text
        [texts]."""
        import numpy as np  # not by those who only plan

        batch = self.encode_batch(texts)
        counts = np.fromiter(map(len, batch), np.int64, len(batch))
        ids = np.empty(counts.sum(), np.int32)
        for end, text in zip(accumulate(counts.tolist()), batch, strict=True):
            ids[end - len(text) : end] = text
        return ids, counts

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids. The end-of-document token and ids beyond the vocabulary give no text."""
        raise NotImplementedError

    def coverage(self, texts: Sequence[str]) -> Coverage:
        """Count the tokens and bytes of the texts, the unknown tokens among them, and the bytes that the unknown tokens
        stand for."""
        raise NotImplementedError

    def unknown(self, text: str) -> tuple[int, int]:
        """The number of unknown tokens in a text, and the number of UTF-8 bytes that they stand for."""
        if self.lossless:
            return 0, 0
        counts = self.coverage([text])
        return counts.unknown, counts.unknown_bytes

    def bytes_not_given_back(self, text: str) -> int:
        """A lower bound of the number of UTF-8 bytes of a text that decoding its tokens does not give back. These are
        the bytes of unknown tokens, and what the tokenizer changes or drops before (case, accents, line ends, repeated
        spaces). Only how often each byte value occurs is compared. 0 for a lossless tokenizer."""
        if self.lossless:
            return 0
        back = self.decode(self.encode(text))
        return (Counter(text.encode()) - Counter(back.encode())).total()

    def check(self, texts: Sequence[str]) -> None:
        """Compare the ids of the texts with those of Hugging Face's tokenizers, in tokenizers that another library
        encodes; in others do nothing. Raises RuntimeError where the ids differ for a text."""


class TokenizerJSON(Tokenizer):
    """A tokenizer whose file is a tokenizer.json, which Hugging Face's library reads. `definition`: the text of that
    file."""

    definition: str

    def __init__(self, path: str | Path, content: bytes):
        self.path = Path(path)
        self.sha256 = hashlib.sha256(content).hexdigest()
        self.definition = content.decode("utf-8", "replace")

    @cached_property
    def _hugging_face(self) -> Any:
        # Preparation runs a process for each core already; and the library's threads do not survive a fork.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        import tokenizers

        try:
            backend = tokenizers.Tokenizer.from_str(self.definition)
        except Exception as error:  # of no class of its own
            raise ValueError(f"{self.path} is not a tokenizer.json: {error}") from error
        backend.encode_special_tokens = True  # "[SEP]" in a text is five characters
        backend.no_padding()
        backend.no_truncation()
        return backend

    def _hugging_face_ids(self, texts: Sequence[str]) -> list[list[int]]:
        encodings = self._hugging_face.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_hugging_face"}


def valid_unicode(texts: Iterable[str]) -> list[bytes]:
    """The texts as UTF-8 bytes. Raises ValueError for half of a surrogate pair, which is not valid Unicode."""
    try:
        return [text.encode() for text in texts]
    except UnicodeEncodeError as error:
        raise ValueError(f"not valid Unicode (a lone surrogate): {error}") from error
