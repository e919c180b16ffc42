"""Trains tokenizers, and reads files as tokenizers. The kinds of tokenizers (KINDS) are:

    bpe, unigram: SentencePiece, trained here: lossless, one file tokenizer.model (data/sentencepiece_model.py)
    byte-bpe: GPT-2's byte-level BPE, trained here, one file tokenizer.json (data/byte_bpe.py)
    wordpiece: BERT's, trained here as Cramming did, one file tokenizer.json (data/wordpiece.py)
    file: an existing tokenizer, in a format of `read_tokenizer`

Each is a subclass of `Tokenizer` (data/tokenizer_base.py).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from data import byte_bpe, sentencepiece_model, wordpiece
from data.byte_bpe import EOD_NAMES, MASK_NAMES, ByteBPE
from data.sentencepiece_model import SentencePiece
from data.tokenizer_base import Tokenizer
from data.wordpiece import WordPiece

KINDS = ("bpe", "unigram", "byte-bpe", "wordpiece", "file")
SAMPLE_BYTES = 100_000_000  # bytes of text, at most, that a tokenizer is trained on; untuned
SMALLEST_VOCAB = 258  # the smallest vocabulary: the 256 bytes, <unk>, </s>
EXTRA_IDS = 100  # ids of T5 beyond the 32,000 pieces of its tokenizer; no text is encoded as one (arXiv:1910.10683)
# Texts on which implementations of tokenizers differ, for `check_parity`.
PARITY_TEXTS = (
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
NOT_EXPORTABLE = (
    "a tokenizer of the kind {} is not exported: Hugging Face's adds up scores in another precision and cuts some "
    "words in another way"
)
GPT2_FILES = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))  # Hugging Face's and OpenAI's names


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Load the tokenizer in a file or folder, in a format of `read_tokenizer`. Raises ValueError if there is no such
    tokenizer."""
    name, content = read_tokenizer(path)
    if not name.endswith(".json"):
        return SentencePiece(path, content)
    return WordPiece(path, content) if _model_type(content) == "WordPiece" else ByteBPE(path, content)


def _model_type(content: bytes) -> str:
    """The type of the model in a tokenizer.json, such as "BPE"; "" if there is none, or `content` is no tokenizer.json.
    `content`: the bytes of the file."""
    try:
        return str(json.loads(content)["model"].get("type", ""))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return ""


def read_tokenizer(path: str | Path) -> tuple[str, bytes]:
    """Read the files of an existing tokenizer. Returns (file name, content) of a single file with the same tokenizer:
    "tokenizer.json" or "tokenizer.model", and its bytes. `load_tokenizer` can load this file.

    Args:
        path: a SentencePiece model such as T5's spiece.model; a tokenizer.json of Hugging Face's tokenizers with
            byte-level BPE or WordPiece; one of GPT-2's two files, vocab.json and merges.txt, or encoder.json and
            vocab.bpe by OpenAI's names; or a folder with one of these.

    Raises:
        ValueError: there is no such tokenizer at `path`; the message names the formats.
    """
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    for names in GPT2_FILES:
        if (path.is_dir() or path.name in names) and all((folder / name).is_file() for name in names):
            return "tokenizer.json", byte_bpe.from_gpt2_files(
                *((folder / name).read_text(encoding="utf-8") for name in names)
            )
    for name in ("tokenizer.json", "tokenizer.model", "spiece.model"):
        if path.is_dir() and (path / name).is_file():
            path = path / name
    if not path.is_file():
        raise ValueError(
            f"{path} holds no tokenizer: needed is a SentencePiece model, a tokenizer.json, or a folder "
            f"with {' or '.join(' and '.join(names) for names in GPT2_FILES)}"
        )
    return ("tokenizer.json" if path.suffix == ".json" else "tokenizer.model"), path.read_bytes()


def check_parity(tokenizer: Tokenizer) -> None:
    """Raise ValueError where a tokenizer gives other ids than Hugging Face's tokenizers, on PARITY_TEXTS or on texts
    with the tokenizer's added tokens. An export after training needs equal ids, so they are compared before
    training."""
    added = tokenizer.added_in_text if isinstance(tokenizer, ByteBPE) else []
    with_added = [text.replace("@", name) for name in added for text in ("@", "a@b", " @ ", "@@", "\n@.", "é@é")]
    try:
        tokenizer.check_against_reference([*PARITY_TEXTS, *with_added])
    except RuntimeError as error:
        raise ValueError(str(error)) from error


def reason_not_exportable(tokenizer: Tokenizer) -> str:
    """The reason why a run with a tokenizer cannot be exported as a Hugging Face checkpoint; "" where it can."""
    if isinstance(tokenizer, SentencePiece) and tokenizer.kind != "bpe":
        return NOT_EXPORTABLE.format(tokenizer.kind)
    if isinstance(tokenizer, SentencePiece) and not tokenizer.lossless:
        return (
            f"{tokenizer.path} changes texts before it cuts them, which is not exported: use the Hugging "
            "Face tokenizer that comes with it"
        )
    return ""


def reason_settings_not_exportable(kind: str, path: str) -> str:
    """The reason why a run with these settings cannot be exported as a Hugging Face checkpoint; "" if it can. This is
    known before the tokenizer is trained. `kind`, `path`: the settings data.tokenizer_kind and data.tokenizer. Raises
    ValueError if kind="file" and there is no tokenizer at `path`."""
    if kind == "file":
        return reason_not_exportable(load_tokenizer(path))
    return NOT_EXPORTABLE.format(kind) if kind == "unigram" else ""


def mask_id(tokenizer: Tokenizer, vocab: int) -> int:
    """The token id that stands for a masked position in a model with a vocabulary of `vocab` ids. No text is encoded as
    this id.

    It is `tokenizer.mask`, if that is not None: the id of [MASK] for WordPiece, the id of <unk> for a SentencePiece
    model trained here, and the id of <mask> or [MASK] for a file with such a piece. Else it is the first id beyond the
    tokenizer's pieces. Raises ValueError if `vocab` leaves no such id; the message says what the user can do.
    """
    if tokenizer.mask is not None:
        return tokenizer.mask
    if vocab > tokenizer.vocab_size:
        return tokenizer.vocab_size
    raise ValueError(
        f"{tokenizer.path} has no id for a masked token. The kinds wordpiece, bpe and unigram have one; of a file "
        f"with model.vocab={tokenizer.vocab_size + 1} there is one beyond its pieces"
    )


def allowed_vocab_sizes(tokenizer: Tokenizer) -> list[int]:
    """The values of model.vocab that are allowed with a tokenizer from a file: n, the number of its pieces, and
    possibly a larger one. This is n + EXTRA_IDS for a unigram model, as in T5, and n + 1 for another tokenizer without
    an id for a masked token."""
    sizes = [tokenizer.vocab_size]
    if isinstance(tokenizer, SentencePiece) and tokenizer.kind == "unigram":
        sizes.append(tokenizer.vocab_size + EXTRA_IDS)
    elif tokenizer.mask is None:
        sizes.append(tokenizer.vocab_size + 1)
    return sizes


def train(documents: Iterable[str], size: int, vocab: int, kind: str = "bpe", mask: bool = False) -> bytes:
    """Train a tokenizer of exactly `vocab` pieces; returns the content of its file. Where the text has more than
    SAMPLE_BYTES, the tokenizer is trained on every n-th document, with n = `sampling_stride(size)`.

    Each kind has special pieces:
        bpe, unigram: the 256 bytes, <unk>, and </s> (the end of a document); a line end is encoded as its byte
        byte-bpe: the 256 bytes first and <|endoftext|> last, as in GPT-2; with `mask` also <mask>
        wordpiece: [PAD], [UNK], [CLS], [SEP] (the end of a document) and [MASK] first

    Args:
        documents: the texts.
        size: the number of bytes of all documents together.
        vocab: the number of pieces.
        kind: "bpe", "unigram", "byte-bpe" or "wordpiece".
        mask: whether a byte-bpe gets an id for a masked token; the other kinds have one anyway.

    Raises:
        ValueError: the text allows no such vocabulary; the message names the smallest or largest one.
    """
    interval = sampling_stride(size)
    sample = (text for i, text in enumerate(documents) if i % interval == 0)
    if kind == "wordpiece":
        return wordpiece.train(sample, vocab)
    if kind == "byte-bpe":
        return byte_bpe.train(sample, vocab, [EOD_NAMES[0], *MASK_NAMES[:1]] if mask else [EOD_NAMES[0]])
    return sentencepiece_model.train(sample, vocab, kind)


def sampling_stride(size: int) -> int:
    """The interval n between the documents that a tokenizer is trained on: every n-th one; 1 means all. These documents
    have at most about SAMPLE_BYTES together. `size`: the number of bytes of all documents."""
    return -(-size // SAMPLE_BYTES) or 1
