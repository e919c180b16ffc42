"""How much of a text a tokenizer can represent, and how much of it becomes unknown tokens."""

from __future__ import annotations

from typing import Any, NamedTuple


class Coverage(NamedTuple):
    """Counts of the tokens and bytes of a text, and of its unknown tokens. An unknown token stands for text that the
    vocabulary cannot represent: a model that predicts the token correctly has not predicted the bytes of that text."""

    tokens: int
    unknown: int  # the number of unknown tokens
    bytes: int  # of the text in UTF-8
    unknown_bytes: int  # the number of bytes that unknown tokens stand for

    def __add__(self, other: Any) -> Coverage:
        return Coverage(*(a + b for a, b in zip(self, other, strict=True)))

    @property
    def unknown_share(self) -> float:
        """The share of the tokens that are unknown."""
        return self.unknown / max(self.tokens, 1)

    @property
    def unknown_byte_share(self) -> float:
        return self.unknown_bytes / max(self.bytes, 1)
