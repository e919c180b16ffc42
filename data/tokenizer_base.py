"""The base class of all tokenizers, and the base class of tokenizers whose file is a tokenizer.json."""

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
    contains. Methods that encode raise ValueError where a text is not valid Unicode.

    Args:
        path: the path of the file, for error messages.
        content: the bytes of the file.

    Raises:
        ValueError: the content is not a tokenizer of this kind.
    """

    kind: str  # such as "bpe" or "wordpiece"
    path: Path
    sha256: str  # of the content
    vocab_size: int  # the largest id, plus 1
    eod: int  # the id of the end-of-document token
    specials: list[int]  # the ids of special tokens, which no text is encoded as
    mask: int | None  # the special token that can stand for a masked position, if any; see data.tokenizer.mask_id
    lossless: bool  # whether decoding the ids of a text always gives the text back

    def __init__(self, path: str | Path, content: bytes):
        raise NotImplementedError

    def encode(self, text: str) -> list[int]:
        """The token ids of a text, without an end-of-document token."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str], threads: int = 1) -> list[list[int]]:
        """The token ids of each text, without end-of-document tokens. `threads` changes how long this takes, not the
        result."""
        raise NotImplementedError

    def token_arrays(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """The token ids of all texts as two arrays: the ids, end to end [tokens]; and the number of tokens of each text
        [texts]."""
        import numpy as np  # here, since commands that only plan need no numpy

        batch = self.encode_batch(texts)
        counts = np.fromiter(map(len, batch), np.int64, len(batch))
        ids = np.empty(counts.sum(), np.int32)
        for end, text in zip(accumulate(counts.tolist()), batch, strict=True):
            ids[end - len(text) : end] = text
        return ids, counts

    def decode(self, ids: Sequence[int]) -> str:
        """The text of a sequence of token ids. The end-of-document token and ids beyond the vocabulary give no text;
        bytes that are not UTF-8 become U+FFFD."""
        raise NotImplementedError

    def coverage(self, texts: Sequence[str]) -> Coverage:
        """Count the tokens and bytes of texts, the unknown tokens, and the bytes that unknown tokens stand for."""
        raise NotImplementedError

    def count_unknown(self, text: str) -> tuple[int, int]:
        """(the number of unknown tokens in a text, the number of UTF-8 bytes that they stand for)."""
        if self.lossless:
            return 0, 0
        counts = self.coverage([text])
        return counts.unknown, counts.unknown_bytes

    def lost_bytes(self, text: str) -> int:
        """A lower bound of the number of UTF-8 bytes of a text that are lost when the text is encoded and decoded; 0
        for a lossless tokenizer. It is the number of bytes that the decoded text lacks, whatever their order.

        Lost are the bytes of unknown tokens, and what the tokenizer changes or drops before it splits the text: case,
        accents, line ends, repeated spaces.
        """
        if self.lossless:
            return 0
        back = self.decode(self.encode(text))
        return (Counter(text.encode()) - Counter(back.encode())).total()

    def check_against_reference(self, texts: Sequence[str]) -> None:
        """Raise RuntimeError if the ids of a text differ from those of Hugging Face's tokenizers. Only `ByteBPE` can
        differ, since another library encodes its texts; other tokenizers do nothing here."""


class TokenizerJSON(Tokenizer):
    """A tokenizer whose file is a tokenizer.json, the format of Hugging Face's library "tokenizers"."""

    definition: str  # the text of the file

    def __init__(self, path: str | Path, content: bytes):
        self.path = Path(path)
        self.sha256 = hashlib.sha256(content).hexdigest()
        self.definition = content.decode("utf-8", "replace")

    @cached_property
    def _hugging_face(self) -> Any:
        # preparation runs a process for each core already, and the library's threads do not survive a fork
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        import tokenizers

        try:
            backend = tokenizers.Tokenizer.from_str(self.definition)
        except Exception as error:  # the library raises plain Exception
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


def encode_utf8(texts: Iterable[str]) -> list[bytes]:
    """Encode texts as UTF-8. Raises ValueError if a text is not valid Unicode because it has one half of a surrogate
    pair."""
    try:
        return [text.encode() for text in texts]
    except UnicodeEncodeError as error:
        raise ValueError(f"not valid Unicode (a lone surrogate): {error}") from error
