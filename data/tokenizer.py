"""Tokenizers: train, load, hash. The only file that knows sentencepiece, tokenizers and gigatoken.

bpe, unigram    SentencePiece, trained here: lossless, one file tokenizer.model
byte-bpe        GPT-2's byte-level BPE, trained here, one file tokenizer.json (Hugging Face's format)
file            one that exists already: see `read`
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np

KINDS = ("bpe", "unigram", "byte-bpe", "file")
SPACE = "\u2581"  # what SentencePiece writes for a space; one that is in the text has to go in as bytes
SAMPLE_BYTES = 100_000_000  # text read for training at most; untuned
SMALLEST = 258  # pieces: the 256 bytes, <unk>, </s>
EXTRA_IDS = 100  # of T5's models, beyond the 32,000 pieces of its file: no text becomes one (arXiv:1910.10683)
OPTIONS: dict[str, Any] = {
    "model_type": "bpe",
    "unk_id": 0,
    "eos_id": 1,
    "bos_id": -1,
    "pad_id": -1,
    "split_digits": True,
    # Lossless: nothing is normalised, added or removed; what has no piece falls back to its bytes.
    "byte_fallback": True,
    "normalization_rule_name": "identity",
    "add_dummy_prefix": False,
    "remove_extra_whitespaces": False,
    "allow_whitespace_only_pieces": True,
    "max_sentence_length": 1 << 30,
    "num_threads": 1,  # the number is written into the model
}
EODS = ("<|endoftext|>", "</s>")  # how GPT-2 and BLOOM call the end of a document
FILES = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))  # Hugging Face's and OpenAI's names
# gigatoken 0.10 remembers every word that it met and never forgets one (its issue 36). It is begun anew after so many
# bytes of text, which takes 0.1 s; untuned.
FORGET = 1 << 28


class Piece(NamedTuple):
    """An entry of a SentencePiece vocabulary. A space is U+2581, a byte <0x0A>; of joined pieces BPE takes the best."""

    text: str
    score: float
    kind: str  # normal | byte | control | unknown


def load_tokenizer(path: str | Path) -> SentencePiece | ByteBPE:
    """The tokenizer in `path`. Raises ValueError when there is none that can be read: see `read`."""
    name, content = read(path)
    return (ByteBPE if name.endswith(".json") else SentencePiece)(path, content)


def read(path: str | Path) -> tuple[str, bytes]:
    """A tokenizer as one file: (name, content), from which `load_tokenizer` makes the same one again.

    `path` is a SentencePiece model such as T5's spiece.model; a tokenizer.json of Hugging Face's with byte-level BPE;
    or the folder, or either of the files, of GPT-2's vocabulary: vocab.json and merges.txt, also by OpenAI's names
    encoder.json and vocab.bpe. Raises ValueError, naming these, for anything else.
    """
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    for names in FILES:
        if (path.is_dir() or path.name in names) and all((folder / name).is_file() for name in names):
            return "tokenizer.json", _byte_bpe(*((folder / name).read_text(encoding="utf-8") for name in names))
    for name in ("tokenizer.json", "tokenizer.model", "spiece.model"):
        if path.is_dir() and (path / name).is_file():
            path = path / name
    if not path.is_file():
        raise ValueError(
            f"{path} holds no tokenizer: needed is a SentencePiece model, a tokenizer.json, or a folder "
            f"with {' or '.join(' and '.join(names) for names in FILES)}"
        )
    return ("tokenizer.json" if path.suffix == ".json" else "tokenizer.model"), path.read_bytes()


class SentencePiece:
    """A SentencePiece model. One that was trained here is lossless: `decode(encode(text)) == text` for every valid
    string. Another one, such as T5's, does to a text what it was made to do (Unicode normal forms, one space for many).

    Raises ValueError when the content is not a SentencePiece model or the text is not valid Unicode.
    """

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
        self._has_bytes = model.trainer_spec.byte_fallback
        self.lossless = model.trainer_spec.byte_fallback and not (
            norm.precompiled_charsmap or norm.add_dummy_prefix or norm.remove_extra_whitespaces
        )

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, without an end-of-document token."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str], threads: int = 1) -> list[list[int]]:
        """Token ids of each text. `threads` changes the time, not the result."""
        parts = _utf8(part for text in texts for part in (text.split(SPACE) if self.lossless else (text,)))
        encoded = iter(self._processor.encode(parts, num_threads=threads))
        batch = []
        for text in texts:
            ids = next(encoded)
            for _ in range(text.count(SPACE) if self.lossless else 0):
                ids += self._space + next(encoded)
            batch.append(ids)
        return batch

    def arrays(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """The ids of all texts in one array, and the number of each text's."""
        batch = self.encode_batch(texts)
        import numpy as np  # not by those who only plan

        counts = np.fromiter(map(len, batch), np.int64, len(batch))
        ids = np.empty(counts.sum(), np.int32)
        for end, text in zip(accumulate(counts.tolist()), batch, strict=True):
            ids[end - len(text) : end] = text
        return ids, counts

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`; end-of-document and extra ids are "", bytes that are no UTF-8 become U+FFFD."""
        return self._processor.decode([int(i) for i in ids if i < self.vocab_size])

    def unknown(self, text: str) -> tuple[int, int]:
        """How many tokens of `text` are the unknown one, and how many bytes of UTF-8 they stand for. None where bytes
        have pieces, as in models that were trained here."""
        if self._has_bytes:
            return 0, 0
        encoded = self._processor.encode(text, out_type="proto")
        surfaces = [piece.surface for piece in encoded.pieces if piece.id == self._processor.unk_id()]
        return len(surfaces), sum(len(surface.encode()) for surface in surfaces)

    @cached_property
    def pieces(self) -> list[Piece]:
        """The vocabulary, in the order of the ids."""
        p = self._processor
        kinds = (("byte", p.is_byte), ("control", p.is_control), ("unknown", p.is_unknown), ("normal", lambda _: True))
        return [
            Piece(p.id_to_piece(i), p.get_score(i), next(kind for kind, holds in kinds if holds(i)))
            for i in range(self.vocab_size)
        ]

    def check(self, texts: Sequence[str]) -> None:
        """Nothing: the library that made the model is the one that encodes."""


class ByteBPE:
    """Byte-level BPE in Hugging Face's format: lossless, and no text is the end of a document, whatever it contains.

    Encoded by gigatoken, 30 times as fast as Hugging Face's tokenizers with the same ids; `check` compares the two.
    Raises ValueError when the content is something else or the text is not valid Unicode.
    """

    def __init__(self, path: str | Path, content: bytes):
        self.path = Path(path)
        self.sha256 = hashlib.sha256(content).hexdigest()
        self.definition = content.decode("utf-8", "replace")
        try:
            self._spec = json.loads(content)
            vocab = self._spec["model"]["vocab"]
            bpe = self._spec["model"].get("type", "BPE") == "BPE"
            byte_level = bpe and "ByteLevel" in str(self._spec["pre_tokenizer"])
            added = {token["content"]: token["id"] for token in self._spec.get("added_tokens") or ()}
            vocab = vocab | added
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is not a tokenizer.json: {error!r}") from error
        if not byte_level or self._spec.get("normalizer"):
            raise ValueError(
                f"{path} is not a byte-level BPE without normalisation, the only kind of tokenizer.json "
                "that is read here"
            )
        if not (ends := [vocab[name] for name in EODS if name in vocab]):
            raise ValueError(f"{path} has no piece {' or '.join(EODS)} to end a document with")
        self.eod: int = ends[0]
        self.vocab_size: int = max(vocab.values()) + 1
        # Without the added tokens, so that "<|endoftext|>" in a text is 13 characters, not the end of the document.
        self._spec = json.dumps(self._spec | {"added_tokens": [], "post_processor": None})
        self._bytes = _bytes_of({index: piece for piece, index in vocab.items()}, self.vocab_size, set(added))
        self._coder: Any = None
        self._left = 0

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, without an end-of-document token."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str], threads: int = 1) -> list[list[int]]:
        """Token ids of each text. More than one thread means as many as there are cores; the result is the same."""
        return self._gigatoken(parts := _utf8(texts)).encode_batch_list(parts, parallel=threads > 1)

    def arrays(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """The ids of all texts in one array, and the number of each text's."""
        layout = self._gigatoken(parts := _utf8(texts)).encode_batch(parts, parallel=False).layout
        import numpy as np

        ends = np.asarray(layout.offsets.data)
        return np.asarray(layout.content.data)[ends[0] : ends[-1]], np.diff(ends)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`; end-of-document is "", bytes that are no UTF-8 become U+FFFD."""
        return b"".join(self._bytes[int(i)] for i in ids if int(i) != self.eod).decode("utf-8", "replace")

    def check(self, texts: Sequence[str]) -> None:
        """Raises RuntimeError unless Hugging Face's tokenizers give the same ids."""
        ours = self.encode_batch(texts)
        for text, ids, theirs in zip(texts, ours, self._reference.encode_batch_fast(list(texts)), strict=True):
            if ids != theirs.ids:
                raise RuntimeError(
                    f"{self.path}: gigatoken and Hugging Face's tokenizers give different ids for a "
                    f"text that begins {text[:40]!r}; please report it to gigatoken"
                )

    @cached_property
    def _reference(self) -> Any:
        import tokenizers

        return tokenizers.Tokenizer.from_str(self._spec)

    def _gigatoken(self, texts: list[bytes]) -> Any:
        if self._left <= 0:
            import gigatoken

            try:
                self._coder = gigatoken.Tokenizer.from_json(self._spec)
            except ValueError as error:
                raise ValueError(f"{self.path}: gigatoken cannot read it: {error}") from error
            self._left = FORGET
        self._left -= sum(map(len, texts))
        return self._coder

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_coder": None, "_left": 0}


def vocabularies(tokenizer: SentencePiece | ByteBPE) -> list[int]:
    """What model.vocab may be with a tokenizer: its pieces, or of a unigram model, as T5's is, EXTRA_IDS more."""
    unigram = isinstance(tokenizer, SentencePiece) and tokenizer.kind == "unigram"
    return [tokenizer.vocab_size, *[tokenizer.vocab_size + EXTRA_IDS] * unigram]


def train(documents: Iterable[str], size: int, vocab: int, kind: str = "bpe") -> bytes:
    """Train a tokenizer of exactly `vocab` pieces on documents of `size` bytes in all; returns its file's content.

    Among the pieces of SentencePiece are the 256 bytes, <unk> and </s>, the end of document; a newline is always its
    byte. Those of byte-bpe are the 256 bytes, what merging them gave, and last <|endoftext|>, as in GPT-2. More text
    than SAMPLE_BYTES is thinned to every n-th document, n = `stride(size)`. Raises ValueError naming the smallest or
    largest vocabulary that the text allows.
    """
    every = stride(size)
    sample = (text for i, text in enumerate(documents) if i % every == 0)
    if kind == "byte-bpe":
        return _train_byte_bpe(sample, vocab)
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
        raise ValueError(_explain(str(error), vocab)) from error
    return model.getvalue()


def stride(size: int) -> int:
    """Of a text of `size` bytes, every so many-th document is read for training."""
    return -(-size // SAMPLE_BYTES) or 1


def _train_byte_bpe(sample: Iterable[str], vocab: int) -> bytes:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    if vocab < 257:
        raise ValueError(f"vocab={vocab} is too small: at least 257, the bytes and the end of document")
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.train_from_iterator(
        sample,
        trainers.BpeTrainer(
            vocab_size=vocab - 1, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
        ),
    )
    model = json.loads(backend.to_str())["model"]
    if len(model["vocab"]) < vocab - 1:
        raise ValueError(f"vocab={vocab} is more than this text can fill: at most {len(model['vocab']) + 1}")
    return _byte_bpe_json(model["vocab"] | {EODS[0]: vocab - 1}, [tuple(pair) for pair in model["merges"]])


def _byte_bpe(vocab: str, merges: str) -> bytes:
    """GPT-2's two files as one: a JSON object of the pieces, and a line for each merge below a line of the version."""
    lines = [line for line in merges.split("\n") if line and not line.startswith("#version")]
    return _byte_bpe_json(json.loads(vocab), [tuple(line.split(" ")) for line in lines])


def _byte_bpe_json(vocab: dict[str, int], merges: list[tuple[str, ...]]) -> bytes:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    try:
        backend = Tokenizer(models.BPE(vocab=vocab, merges=merges))  # type: ignore[arg-type]  # refused below if no pairs
    except Exception as error:  # of no class of its own
        raise ValueError(f"the vocabulary and the merges do not fit together: {error}") from error
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return backend.to_str().encode()


def _bytes_of(pieces: dict[int, str], size: int, added: set[str]) -> list[bytes]:
    """The bytes of each id. Byte-level BPE writes each byte as a printable character: itself, or one from U+0100 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    byte = {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}
    return [
        pieces[i].encode() if pieces.get(i, "") in added else bytes(byte[c] for c in pieces.get(i, ""))
        for i in range(size)
    ]


def _utf8(texts: Iterable[str]) -> list[bytes]:
    try:
        return [text.encode() for text in texts]
    except UnicodeEncodeError as error:
        raise ValueError(f"not valid Unicode (a lone surrogate): {error}") from error


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
