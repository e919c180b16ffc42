"""Byte-level BPE, GPT-2's kind of tokenizer, in Hugging Face's format: trained here, or read from a file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.coverage import Coverage
from data.tokenizer_base import TokenizerJSON, encode_utf8

if TYPE_CHECKING:
    import numpy as np

EOD_NAMES = ("<|endoftext|>", "</s>")  # names of the end-of-document token: GPT-2's and BLOOM's
MASK_NAMES = ("<mask>", "[MASK]")  # names of the token for a masked position: RoBERTa's and BERT's
UTF8_BYTES = {*range(0xF5)} - {0xC0, 0xC1}  # the values of bytes that occur in UTF-8
MAX_IDS = 10_000_000  # ids of a vocabulary; larger ids mean damage (untuned: published vocabularies have some 250,000)
# gigatoken 0.10 caches every word for good (its issue 36), so its memory grows. After this many bytes of text it is
# created anew, which takes 0.1 s; untuned.
MAX_CACHE_BYTES = 1 << 28


class ByteBPE(TokenizerJSON):
    """A byte-level BPE tokenizer from the content of a tokenizer.json.

    Added tokens that are not special are recognised in text, such as the runs of spaces of code models. The attribute
    `added_in_text` is the list of their names.

    Texts are encoded by the library gigatoken, 30 times as fast as by Hugging Face's tokenizers. Where gigatoken cannot
    encode, Hugging Face's library does: for added tokens that match whole words only, and for some ways of splitting
    text, such as digit by digit.
    """

    kind = "byte-bpe"

    def __init__(self, path: str | Path, content: bytes):
        super().__init__(path, content)
        try:
            spec = json.loads(content)
            bpe = spec["model"].get("type", "BPE") == "BPE"
            byte_level = bpe and "ByteLevel" in str(spec["pre_tokenizer"])
            adds_space = byte_level and _adds_space(spec["pre_tokenizer"])
            pieces = dict(spec["model"]["vocab"]) if bpe else {}
            added = {token["content"]: token for token in spec.get("added_tokens") or ()}
            vocab = pieces | {name: token["id"] for name, token in added.items()}
            merges = spec["model"].get("merges") or ()
            merged = {"".join(pair) if isinstance(pair, list) else pair.replace(" ", "") for pair in merges}
            if wrong := [
                name for name, number in vocab.items() if type(number) is not int or not 0 <= number < MAX_IDS
            ]:
                raise ValueError(f"the id of {wrong[0]!r} is {vocab[wrong[0]]!r}")
            if len(set(vocab.values())) < len(vocab):
                raise ValueError("two pieces have the same id")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"{path} is not a tokenizer.json: {error!r}") from error
        if not byte_level or spec.get("normalizer"):
            raise ValueError(
                f"{path} is not a byte-level BPE without normalisation or a WordPiece, the only kinds of "
                "tokenizer.json that are read here"
            )
        if not (ends := [vocab[name] for name in EOD_NAMES if name in vocab]):
            raise ValueError(f"{path} has no piece {' or '.join(EOD_NAMES)} to end a document with")
        byte_of = _byte_of_character()
        if lacking := UTF8_BYTES - {byte_of[piece] for piece in pieces if piece in byte_of}:
            raise ValueError(
                f"{path} has no piece for {len(lacking)} of the bytes of text, such as {min(lacking)}: such text would "
                "be lost without a word"
            )
        self.eod: int = ends[0]
        self.vocab_size: int = max(vocab.values()) + 1
        self.added_in_text = [name for name, token in added.items() if not token.get("special")]
        masks = [
            vocab[name]
            for name in MASK_NAMES
            if name in vocab and name not in merged and name not in self.added_in_text
        ]
        self.mask: int | None = masks[0] if masks else None
        special = [token["id"] for token in added.values() if token.get("special")]
        self.specials = sorted({self.eod, *special, *masks})
        # such a token swallows the spaces beside it, and decoding does not give them back
        swallows_spaces = [
            name for name in self.added_in_text if added[name].get("lstrip") or added[name].get("rstrip")
        ]
        # decoding does not remove a space that was added either
        self.lossless = not swallows_spaces and not adds_space
        # Without the special tokens, so that "<|endoftext|>" in a text is 13 characters, not the end of the document.
        plain = [token for name, token in added.items() if name in set(self.added_in_text)]
        self._spec = json.dumps(spec | {"added_tokens": plain, "post_processor": None})
        self._has_whole_words = any(token.get("single_word") for token in plain)
        self._bytes = _bytes_of_pieces({index: piece for piece, index in vocab.items()}, self.vocab_size, set(added))
        self._encoder: Any = None  # gigatoken's tokenizer
        self._bytes_left = 0  # bytes of text to encode before the encoder is created anew, see MAX_CACHE_BYTES

    def encode_batch(self, texts: Sequence[str], threads: int = 1) -> list[list[int]]:
        """The token ids of each text. `threads`: 1, or any larger number for as many threads as there are cores."""
        encoded = encode_utf8(texts)
        if self._needs_hugging_face:
            return self._hugging_face_ids(texts)
        return self._gigatoken_encoder(encoded).encode_batch_list(encoded, parallel=threads > 1)

    def token_arrays(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        import numpy as np

        if self._needs_hugging_face:
            return super().token_arrays(texts)
        encoded = encode_utf8(texts)
        layout = self._gigatoken_encoder(encoded).encode_batch(encoded, parallel=False).layout
        ends = np.asarray(layout.offsets.data)
        return np.asarray(layout.content.data)[ends[0] : ends[-1]], np.diff(ends)

    def decode(self, ids: Sequence[int]) -> str:
        known = (int(i) for i in ids if int(i) != self.eod and i < self.vocab_size)
        return b"".join(self._bytes[i] for i in known).decode("utf-8", "replace")

    def coverage(self, texts: Sequence[str]) -> Coverage:
        """Count the tokens and bytes of the texts. No token is unknown, as every byte has a piece."""
        return Coverage(sum(map(len, self.encode_batch(texts))), 0, sum(len(text.encode()) for text in texts), 0)

    def count_unknown(self, text: str) -> tuple[int, int]:
        return 0, 0

    def check_against_reference(self, texts: Sequence[str]) -> None:
        batch, reference_batch = self.encode_batch(texts), self._hugging_face_ids(texts)
        for text, ids, reference in zip(texts, batch, reference_batch, strict=True):
            if ids != reference:
                raise RuntimeError(
                    f"{self.path}: gigatoken and Hugging Face's tokenizers give different ids for a "
                    f"text that begins {text[:40]!r}; please report it to gigatoken"
                )

    @cached_property
    def _needs_hugging_face(self) -> bool:
        """Whether Hugging Face's tokenizers have to encode texts, because gigatoken cannot use this tokenizer.json."""
        if self._has_whole_words:
            return True
        try:
            self._new_gigatoken()
        except (RuntimeError, ValueError):  # gigatoken has no exception of its own
            return True
        return False

    def _new_gigatoken(self) -> Any:
        import gigatoken

        return gigatoken.Tokenizer.from_json(self._spec)

    def _gigatoken_encoder(self, texts: list[bytes]) -> Any:
        if self._bytes_left <= 0:
            self._encoder = self._new_gigatoken()
            self._bytes_left = MAX_CACHE_BYTES
        self._bytes_left -= sum(map(len, texts))
        return self._encoder

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_encoder": None, "_bytes_left": 0}


def train(sample: Iterable[str], vocab: int, specials: list[str]) -> bytes:
    """Train a byte-level BPE tokenizer; returns the content of its tokenizer.json. `sample`: the texts to train on;
    `vocab`: the number of pieces, special tokens included; `specials`: the names of the special tokens, which get the
    last ids. Raises ValueError where `vocab` is too small, or larger than the texts can fill."""
    import tokenizers
    from tokenizers import models, pre_tokenizers, trainers

    trained_pieces = vocab - len(specials)
    if trained_pieces < 256:
        raise ValueError(
            f"model.vocab={vocab} is too small: at least {256 + len(specials)}, the bytes and the end of document"
        )
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.train_from_iterator(
        sample,
        trainers.BpeTrainer(
            vocab_size=trained_pieces, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
        ),
    )
    model = json.loads(backend.to_str())["model"]
    if len(model["vocab"]) < trained_pieces:
        largest = len(model["vocab"]) + len(specials)
        raise ValueError(f"model.vocab={vocab} (VOCAB=) is more than this text can fill: at most {largest}")
    pieces = model["vocab"] | {name: trained_pieces + number for number, name in enumerate(specials)}
    return _tokenizer_json(pieces, [tuple(pair) for pair in model["merges"]])


def from_gpt2_files(vocab: str, merges: str) -> bytes:
    """The content of a tokenizer.json, made from the contents of GPT-2's two files. `vocab`: the vocabulary, a JSON
    object {piece: id}; `merges`: a line with the version, and below it a line for each merge. Raises ValueError where
    the vocabulary and the merges do not fit together."""
    lines = [line for line in merges.split("\n") if line and not line.startswith("#version")]
    return _tokenizer_json(json.loads(vocab), [tuple(line.split(" ")) for line in lines])


def _tokenizer_json(vocab: dict[str, int], merges: list[tuple[str, ...]]) -> bytes:
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers

    try:
        model = models.BPE(vocab=vocab, merges=merges)  # type: ignore[arg-type]  # refused below if no pairs
    except Exception as error:  # the library raises plain Exception
        raise ValueError(f"the vocabulary and the merges do not fit together: {error}") from error
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return backend.to_str().encode()


def _adds_space(pre_tokenizer: Any) -> bool:
    """Whether a pre-tokenizer puts a space before a text that does not begin with one. `pre_tokenizer`: the entry
    "pre_tokenizer" of a tokenizer.json."""
    parts = [pre_tokenizer, *(pre_tokenizer.get("pretokenizers") or ())]
    return any(part.get("add_prefix_space") for part in parts if part["type"] == "ByteLevel")


def _bytes_of_pieces(pieces: dict[int, str], size: int, added: set[str]) -> list[bytes]:
    """The bytes of each piece: a list with the piece's id as index, b"" for an id without a piece.

    Args:
        pieces: {id: piece}.
        size: the length of the list.
        added: the added tokens, which are written as plain text. In other pieces a character stands for a byte (see
            `_byte_of_character`).
    """
    byte_of = _byte_of_character()
    return [
        pieces[i].encode() if pieces.get(i, "") in added else bytes(byte_of[c] for c in pieces.get(i, ""))
        for i in range(size)
    ]


def _byte_of_character() -> dict[str, int]:
    """The characters in which byte-level BPE writes bytes: {character: byte} for all 256 bytes. A printable byte is the
    character with that code; the others are characters from U+0100 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}
