"""WordPiece, BERT's kind of tokenizer, by Hugging Face's library: trained here as Cramming's, or read from a file.

It loses text: text is lower-cased, accents are dropped, and a word with a character that has no piece becomes [UNK].
`WordPiece.coverage` counts these words and their bytes, which do not count in the loss per byte (see `Coverage`).
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from data.coverage import Coverage
from data.tokenizer_base import TokenizerJSON, encode_utf8

SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")  # BERT's names, with the ids 0 to 4 where trained here
CRAMMING_SPECIALS = ("<pad>", "<unk>", "<cls>", "<sep>", "<mask>")  # the names in Cramming's published tokenizers
MIN_VOCAB = 64  # pieces: the special ones and some letters
# How many characters, the most frequent ones, get a piece of their own: at most MAX_ALPHABET (Hugging Face's number for
# BERT), and at most this share of the vocabulary (untuned; it matters for small vocabularies of Chinese text only).
MAX_ALPHABET, MAX_ALPHABET_SHARE = 1000, 0.25
PREFIX = "##"  # the beginning of a piece that continues a word


class WordPiece(TokenizerJSON):
    """A WordPiece tokenizer from the content of a tokenizer.json; Hugging Face's tokenizers encode text. The
    end-of-document token is [SEP]. `pad`, `unk`, `cls`, `sep` and `mask` are the ids of the special tokens."""

    kind = "wordpiece"
    lossless = False

    def __init__(self, path: str | Path, content: bytes):
        super().__init__(path, content)
        vocab = self._hugging_face.get_vocab(with_added_tokens=True)
        for names in (SPECIALS, CRAMMING_SPECIALS):
            if all(name in vocab for name in names):
                break
        else:
            raise ValueError(f"{path} lacks some of the pieces {', '.join(SPECIALS)}")
        self.pad, self.unk, self.cls, self.sep, self.mask = (vocab[name] for name in names)
        self.eod = self.sep
        self.specials = sorted(vocab[name] for name in names)
        self.vocab_size: int = max(vocab.values()) + 1

    def encode_batch(self, texts: Sequence[str], threads: int = 1) -> list[list[int]]:
        """The token ids of each text. `threads` has no effect: the library's threads depend on the environment variable
        TOKENIZERS_PARALLELISM alone."""
        encode_utf8(texts)
        return self._hugging_face_ids(texts)

    def decode(self, ids: Sequence[int]) -> str:
        """The words of a sequence of token ids, separated by spaces. Special tokens and ids beyond the vocabulary give
        no text."""
        return self._hugging_face.decode([int(i) for i in ids if i < self.vocab_size])

    def coverage(self, texts: Sequence[str]) -> Coverage:
        encode_utf8(texts)
        total = Coverage(0, 0, 0, 0)
        encodings = self._hugging_face.encode_batch(list(texts), add_special_tokens=False)
        for text, encoding in zip(texts, encodings, strict=True):
            spans = [span for span, token in zip(encoding.offsets, encoding.ids, strict=True) if token == self.unk]
            lost = sum(len(text[begin:end].encode()) for begin, end in spans)
            total += Coverage(len(encoding.ids), len(spans), len(text.encode()), lost)
        return total


def train(sample: Iterable[str], vocab: int) -> bytes:
    """Train a WordPiece tokenizer; returns the content of its tokenizer.json. `sample`: the texts to train on; `vocab`:
    the exact number of pieces. Raises ValueError where the texts allow no such vocabulary; the message names the
    smallest or largest possible one.

    As in Cramming, text is normalised (quotation marks unified, NFD, lower case, accents stripped, repeated spaces
    merged), words and punctuation are split, and pieces are merged by frequency. Cramming deletes all characters that
    are not ASCII; here they are kept and get pieces.

    Hugging Face's WordPieceTrainer numbers the pieces that continue a word in the order of a hash table, so that two
    trainings differ. Hugging Face's BPE trainer, used here, learns the same merges; here the pieces of a single letter,
    with and without PREFIX, are numbered first.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    if vocab < MIN_VOCAB:
        raise ValueError(f"model.vocab={vocab} is too small: at least {MIN_VOCAB}")
    normalizer, splitter = _normalizer(), pre_tokenizers.Whitespace()  # \w+|[^\w\s]+
    words: Counter[str] = Counter()
    for text in sample:
        words.update(word for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)))
    letters: Counter[str] = Counter()
    for word, times in words.items():
        for letter in word:
            letters[letter] += times
    alphabet_size = min(MAX_ALPHABET, int((vocab - len(SPECIALS)) * MAX_ALPHABET_SHARE))
    alphabet = sorted(sorted(letters, key=lambda letter: (-letters[letter], letter))[:alphabet_size])
    backend = tokenizers.Tokenizer(models.BPE(continuing_subword_prefix=PREFIX))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        show_progress=False,
        special_tokens=[*SPECIALS, *alphabet, *(PREFIX + letter for letter in alphabet)],
        limit_alphabet=len(alphabet),
        initial_alphabet=alphabet,
        continuing_subword_prefix=PREFIX,
    )
    known = set(alphabet)
    backend.train_from_iterator(
        # each word as often as it occurs; a word with a letter outside the alphabet becomes [UNK] and is left out
        (" ".join([word] * words[word]) for word in sorted(words) if known.issuperset(word)),
        trainer,
    )
    pieces = backend.get_vocab(with_added_tokens=True)
    if len(pieces) != vocab:
        size = f"at most {len(pieces)}" if len(pieces) < vocab else f"at least {len(pieces)}"
        raise ValueError(f"model.vocab={vocab} does not fit this text: {size}")
    trained = tokenizers.Tokenizer(
        models.WordPiece(vocab=pieces, unk_token=SPECIALS[1], continuing_subword_prefix=PREFIX)
    )
    trained.normalizer, trained.pre_tokenizer = normalizer, splitter
    trained.decoder = decoders.WordPiece(prefix=PREFIX, cleanup=False)
    trained.add_special_tokens(list(SPECIALS))
    return trained.to_str(pretty=False).encode()


def _normalizer() -> Any:
    from tokenizers import Regex, normalizers

    return normalizers.Sequence(
        [
            normalizers.Replace("``", '"'),
            normalizers.Replace("''", '"'),
            normalizers.NFD(),
            normalizers.Lowercase(),
            normalizers.StripAccents(),
            normalizers.Replace(Regex(" {2,}"), " "),
        ]
    )
