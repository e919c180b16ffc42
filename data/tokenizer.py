"""Tokenizers: train, load, hash. The only file that knows sentencepiece, tokenizers and gigatoken.

bpe, unigram    SentencePiece, trained here: lossless, one file tokenizer.model
byte-bpe        GPT-2's byte-level BPE, trained here, one file tokenizer.json (Hugging Face's format)
wordpiece       BERT's, trained here as Cramming did, one file tokenizer.json (data/wordpiece.py)
file            one that exists already: see `read`

Of every kind: `eod`, the id that ends a document; `specials`, ids that no text becomes; `mask`, the one of them that
can stand for a masked token, or None (see `mask_id`); `lossless`, whether decoding gives the text back; `coverage`.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from data import wordpiece
from data.coverage import Coverage
from data.wordpiece import WordPiece, valid_unicode

if TYPE_CHECKING:
    import numpy as np

KINDS = ("bpe", "unigram", "byte-bpe", "wordpiece", "file")
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
MASKS = ("<mask>", "[MASK]")  # how RoBERTa and BERT call a masked token
UTF8_BYTES = {*range(0xF5)} - {0xC0, 0xC1}  # that occur in text
# Texts on which tokenizers differ; a file's ids must be Hugging Face's on these, and on its added tokens.
AWKWARD = (
    "",
    " ",
    "   ",
    "\n",
    "\r\n\t\0",
    "</s>",
    "<unk>",
    "<0x0A>",
    "\u2581",
    " \u2581a\u2581 ",
    "\u00e9e\u0301",
    "\U0001f469\u200d\U0001f680",
    "\ufeff\ufffd\U0010ffff",
    "0123456789",
    "x" * 999,
    "def f(x):\n        if x:\n\t\treturn  x   # \u8a9e\n\n\n",
)
FILES = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))  # Hugging Face's and OpenAI's names
# gigatoken 0.10 remembers every word that it met and never forgets one (its issue 36). It is begun anew after so many
# bytes of text, which takes 0.1 s; untuned.
FORGET = 1 << 28


class Piece(NamedTuple):
    """An entry of a SentencePiece vocabulary. A space is U+2581, a byte <0x0A>; of joined pieces BPE takes the best."""

    text: str
    score: float
    kind: str  # normal | byte | control | unknown


AnyTokenizer: TypeAlias = "SentencePiece | ByteBPE | WordPiece"


def load_tokenizer(path: str | Path) -> AnyTokenizer:
    """The tokenizer in `path`. Raises ValueError when there is none that can be read: see `read`."""
    name, content = read(path)
    if not name.endswith(".json"):
        return SentencePiece(path, content)
    return WordPiece(path, content) if _model_type(content) == "WordPiece" else ByteBPE(path, content)


def _model_type(content: bytes) -> str:
    """Of a tokenizer.json; "" where it does not say, or is none."""
    try:
        return str(json.loads(content)["model"].get("type", ""))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return ""


def read(path: str | Path) -> tuple[str, bytes]:
    """A tokenizer as one file: (name, content), from which `load_tokenizer` makes the same one again.

    `path` is a SentencePiece model such as T5's spiece.model; a tokenizer.json of Hugging Face's with byte-level BPE
    or WordPiece; or the folder, or either of the files, of GPT-2's vocabulary: vocab.json and merges.txt, also by
    OpenAI's names encoder.json and vocab.bpe. Raises ValueError, naming these, for anything else.
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
        self.lossless = model.trainer_spec.byte_fallback and not (
            norm.precompiled_charsmap or norm.add_dummy_prefix or norm.remove_extra_whitespaces
        )
        p = self._processor
        self.specials = [i for i in range(self.vocab_size) if p.is_control(i) or p.is_unknown(i)]
        # what has no piece becomes its bytes, so that no text becomes <unk>
        self.mask: int | None = p.unk_id() if self.lossless else None

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, without an end-of-document token."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str], threads: int = 1) -> list[list[int]]:
        """Token ids of each text. `threads` changes the time, not the result."""
        parts = valid_unicode(part for text in texts for part in (text.split(SPACE) if self.lossless else (text,)))
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

    def coverage(self, texts: Sequence[str]) -> Coverage:
        """Tokens and bytes of the texts, and those of them that are <unk>."""
        valid_unicode(texts)
        if self.lossless:
            return Coverage(sum(map(len, self.encode_batch(texts))), 0, sum(len(text.encode()) for text in texts), 0)
        total, unknown = Coverage(0, 0, 0, 0), self._processor.unk_id()
        for text in texts:
            tokens = self._processor.encode(text, return_type="proto").pieces
            lost = [len(token.surface.encode()) for token in tokens if token.id == unknown]
            total += Coverage(len(tokens), len(lost), len(text.encode()), sum(lost))
        return total

    def unknown(self, text: str) -> tuple[int, int]:
        """How many tokens of `text` are unknown, and how many bytes of UTF-8 they stand for."""
        counts = self.coverage([text])
        return counts.unknown, counts.unknown_bytes

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
    """Byte-level BPE in Hugging Face's format. No text is the end of a document or another special token, whatever it
    contains; added tokens that are not special, such as the runs of spaces of code models, are found in the text.

    Encoded by gigatoken, 30 times as fast as Hugging Face's tokenizers with the same ids; `check` compares the two.
    gigatoken takes an added token of whole words for one that may stand within a word: a file that has such is encoded
    by Hugging Face's. Raises ValueError when the content is something else or the text is not valid Unicode.
    """

    kind = "byte-bpe"

    def __init__(self, path: str | Path, content: bytes):
        self.path = Path(path)
        self.sha256 = hashlib.sha256(content).hexdigest()
        self.definition = content.decode("utf-8", "replace")
        try:
            spec = json.loads(content)
            pieces = spec["model"]["vocab"]
            bpe = spec["model"].get("type", "BPE") == "BPE"
            byte_level = bpe and "ByteLevel" in str(spec["pre_tokenizer"])
            added = {token["content"]: token for token in spec.get("added_tokens") or ()}
            vocab = pieces | {name: token["id"] for name, token in added.items()}
            merges = spec["model"].get("merges") or ()
            merged = {"".join(pair) if isinstance(pair, list) else pair.replace(" ", "") for pair in merges}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is not a tokenizer.json: {error!r}") from error
        if not byte_level or spec.get("normalizer"):
            raise ValueError(
                f"{path} is not a byte-level BPE without normalisation or a WordPiece, the only kinds of "
                "tokenizer.json that are read here"
            )
        if not (ends := [vocab[name] for name in EODS if name in vocab]):
            raise ValueError(f"{path} has no piece {' or '.join(EODS)} to end a document with")
        byte_of = _byte_of_character()
        if lacking := UTF8_BYTES - {byte_of[piece] for piece in pieces if piece in byte_of}:
            raise ValueError(
                f"{path} has no piece for {len(lacking)} of the bytes of text, such as {min(lacking)}: such text would "
                "be lost without a word"
            )
        self.eod: int = ends[0]
        self.vocab_size: int = max(vocab.values()) + 1
        self.in_text = [name for name, token in added.items() if not token.get("special")]
        masks = [vocab[name] for name in MASKS if name in vocab and name not in merged and name not in self.in_text]
        self.mask: int | None = masks[0] if masks else None
        special = [token["id"] for token in added.values() if token.get("special")]
        self.specials = sorted({self.eod, *special, *masks})
        greedy = [name for name in self.in_text if added[name].get("lstrip") or added[name].get("rstrip")]
        self.lossless = not greedy  # such a token takes the spaces beside it
        # Without the special tokens, so that "<|endoftext|>" in a text is 13 characters, not the end of the document.
        plain = [token for name, token in added.items() if name in set(self.in_text)]
        self._spec = json.dumps(spec | {"added_tokens": plain, "post_processor": None})
        self._by_reference = any(token.get("single_word") for token in plain)
        self._bytes = _bytes_of({index: piece for piece, index in vocab.items()}, self.vocab_size, set(added))
        self._coder: Any = None
        self._left = 0

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, without an end-of-document token."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str], threads: int = 1) -> list[list[int]]:
        """Token ids of each text. More than one thread means as many as there are cores; the result is the same."""
        parts = valid_unicode(texts)
        if self._by_reference:
            return self._reference_ids(texts)
        return self._gigatoken(parts).encode_batch_list(parts, parallel=threads > 1)

    def arrays(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """The ids of all texts in one array, and the number of each text's."""
        import numpy as np

        if self._by_reference:
            batch = self.encode_batch(texts)
            counts = np.fromiter(map(len, batch), np.int64, len(batch))
            return np.fromiter((token for ids in batch for token in ids), np.int32, counts.sum()), counts
        parts = valid_unicode(texts)
        layout = self._gigatoken(parts).encode_batch(parts, parallel=False).layout
        ends = np.asarray(layout.offsets.data)
        return np.asarray(layout.content.data)[ends[0] : ends[-1]], np.diff(ends)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`; end-of-document and ids beyond the vocabulary are "", bytes that are no UTF-8 become
        U+FFFD."""
        known = (int(i) for i in ids if int(i) != self.eod and i < self.vocab_size)
        return b"".join(self._bytes[i] for i in known).decode("utf-8", "replace")

    def coverage(self, texts: Sequence[str]) -> Coverage:
        """Tokens and bytes of the texts; none is unknown, as every byte has a piece."""
        return Coverage(sum(map(len, self.encode_batch(texts))), 0, sum(len(text.encode()) for text in texts), 0)

    def unknown(self, text: str) -> tuple[int, int]:
        """How many tokens of `text` are unknown, and how many bytes of UTF-8 they stand for."""
        counts = self.coverage([text])
        return counts.unknown, counts.unknown_bytes

    def check(self, texts: Sequence[str]) -> None:
        """Raises RuntimeError unless Hugging Face's tokenizers, given the file as it is, give the same ids."""
        for text, ids, theirs in zip(texts, self.encode_batch(texts), self._reference_ids(texts), strict=True):
            if ids != theirs:
                raise RuntimeError(
                    f"{self.path}: gigatoken and Hugging Face's tokenizers give different ids for a "
                    f"text that begins {text[:40]!r}; please report it to gigatoken"
                )

    def _reference_ids(self, texts: Sequence[str]) -> list[list[int]]:
        encodings = self._reference.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    @cached_property
    def _reference(self) -> Any:
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # its threads do not survive a fork
        import tokenizers

        reference = tokenizers.Tokenizer.from_str(self.definition)
        reference.encode_special_tokens = True
        reference.no_padding()
        reference.no_truncation()
        return reference

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
        state = {name: value for name, value in self.__dict__.items() if name != "_reference"}
        return state | {"_coder": None, "_left": 0}


def check_parity(tokenizer: AnyTokenizer) -> None:
    """Raises ValueError unless a tokenizer gives the ids of Hugging Face's tokenizers on AWKWARD texts and on its added
    tokens: what an export would find at the end is found before training."""
    added = tokenizer.in_text if isinstance(tokenizer, ByteBPE) else []
    around = [text.replace("@", name) for name in added for text in ("@", "a@b", " @ ", "@@", "\n@.", "é@é")]
    try:
        tokenizer.check([*AWKWARD, *around])
    except RuntimeError as error:
        raise ValueError(str(error)) from error


def unexportable(tokenizer: AnyTokenizer) -> str:
    """Why a run with this tokenizer cannot be exported as a Hugging Face checkpoint, or ""."""
    if isinstance(tokenizer, SentencePiece) and tokenizer.kind != "bpe":
        return (
            f"a tokenizer of the kind {tokenizer.kind} is not exported: Hugging Face's adds up scores in "
            "another precision and cuts some words in another way"
        )
    if isinstance(tokenizer, SentencePiece) and not tokenizer.lossless:
        return (
            f"{tokenizer.path} changes texts before it cuts them, which is not exported: use the Hugging "
            "Face tokenizer that comes with it"
        )
    return ""


def mask_id(tokenizer: AnyTokenizer, vocab: int) -> int:
    """The id that stands for a masked token in a model of `vocab` ids, which no text becomes: the tokenizer's own, or
    the first one beyond its pieces.

    Its own: [MASK] of WordPiece; <unk> of SentencePiece as trained here, where no text becomes it; <mask> or [MASK] of
    a file that has it. Raises ValueError, saying what helps, where there is none.
    """
    if tokenizer.mask is not None:
        return tokenizer.mask
    if vocab > tokenizer.vocab_size:
        return tokenizer.vocab_size
    raise ValueError(
        f"{tokenizer.path} has no id for a masked token. The kinds wordpiece, bpe and unigram have one; of a file "
        f"with model.vocab={tokenizer.vocab_size + 1} there is one beyond its pieces"
    )


def vocabularies(tokenizer: AnyTokenizer) -> list[int]:
    """What model.vocab may be with a tokenizer that exists: its pieces; of a unigram model, as T5's is, EXTRA_IDS more;
    of another one without an id for a masked token one more."""
    sizes = [tokenizer.vocab_size]
    if isinstance(tokenizer, SentencePiece) and tokenizer.kind == "unigram":
        sizes.append(tokenizer.vocab_size + EXTRA_IDS)
    elif tokenizer.mask is None:
        sizes.append(tokenizer.vocab_size + 1)
    return sizes


def train(documents: Iterable[str], size: int, vocab: int, kind: str = "bpe", mask: bool = False) -> bytes:
    """Train a tokenizer of exactly `vocab` pieces on documents of `size` bytes in all; returns its file's content.

    Among the pieces of SentencePiece are the 256 bytes, <unk> and </s>, the end of document; a newline is always its
    byte. Those of byte-bpe are the 256 bytes, what merging them gave, and last <|endoftext|>, as in GPT-2; with `mask`
    <mask> follows, for which the other kinds have an id anyway (see `mask_id`). Those of wordpiece begin with [PAD],
    [UNK], [CLS], [SEP], the end of document, and [MASK]. More text than SAMPLE_BYTES is thinned to every n-th document,
    n = `stride(size)`. Raises ValueError naming the smallest or largest vocabulary that the text allows.
    """
    every = stride(size)
    sample = (text for i, text in enumerate(documents) if i % every == 0)
    if kind == "wordpiece":
        return wordpiece.train(sample, vocab)
    if kind == "byte-bpe":
        return _train_byte_bpe(sample, vocab, [EODS[0], *MASKS[:1]] if mask else [EODS[0]])
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


def _train_byte_bpe(sample: Iterable[str], vocab: int, specials: list[str]) -> bytes:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    merged = vocab - len(specials)
    if merged < 256:
        raise ValueError(
            f"vocab={vocab} is too small: at least {256 + len(specials)}, the bytes and the end of document"
        )
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.train_from_iterator(
        sample,
        trainers.BpeTrainer(
            vocab_size=merged, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
        ),
    )
    model = json.loads(backend.to_str())["model"]
    if len(model["vocab"]) < merged:
        most = len(model["vocab"]) + len(specials)
        raise ValueError(f"vocab={vocab} is more than this text can fill: at most {most}")
    pieces = model["vocab"] | {name: merged + number for number, name in enumerate(specials)}
    return _byte_bpe_json(pieces, [tuple(pair) for pair in model["merges"]])


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
    """The bytes of each id."""
    byte_of = _byte_of_character()
    return [
        pieces[i].encode() if pieces.get(i, "") in added else bytes(byte_of[c] for c in pieces.get(i, ""))
        for i in range(size)
    ]


def _byte_of_character() -> dict[str, int]:
    """Byte-level BPE writes each byte as a printable character: itself, or one from U+0100 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


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
