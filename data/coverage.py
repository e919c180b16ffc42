"""What of a text a tokenizer has pieces for."""

from __future__ import annotations

from typing import Any, NamedTuple


class Coverage(NamedTuple):
    """Of a text as tokens: how many tokens, how many of them stand for text without a piece ("unknown"), how many UTF-8
    bytes, how many of them unknown tokens stand for. A model that predicts an unknown token has not said its bytes."""

    tokens: int
    unknown: int
    bytes: int
    unknown_bytes: int

    def __add__(self, other: Any) -> Coverage:
        return Coverage(*(a + b for a, b in zip(self, other, strict=True)))

    @property
    def unknown_share(self) -> float:
        """Of the tokens."""
        return self.unknown / max(self.tokens, 1)

    @property
    def unknown_byte_share(self) -> float:
        return self.unknown_bytes / max(self.bytes, 1)
