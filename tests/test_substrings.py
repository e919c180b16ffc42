"""Repeated stretches against a loop over all pairs of windows, and the whole preparation with them."""

import gzip
import json
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import substrings
from data.corpus import is_held_out
from data.filters import Recipe
from data.prepare import prepare


def encoded(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    codes = [np.frombuffer(text.encode("utf-32-le"), np.uint32) for text in texts]
    return np.concatenate([*codes, np.zeros(0, np.uint32)]), np.cumsum([len(text) for text in texts])


def oracle(texts: list[str], length: int) -> list[bool]:
    """A character goes if a window with it, within its document, stood before: every window against all before it."""
    seen: set[str] = set()
    gone: list[bool] = []
    for text in texts:
        own = [False] * len(text)
        for start in range(len(text) - length + 1):
            window = text[start : start + length]
            if window in seen:
                own[start : start + length] = [True] * length
            seen.add(window)
        gone += own
    return gone


TEXTS = st.lists(st.text(alphabet="abß文\U0001f600", max_size=40), max_size=8)


@settings(max_examples=150, deadline=None)
@given(texts=TEXTS, length=st.integers(1, 9), at_once=st.sampled_from([3, 17, 1 << 26]))
def test_what_is_cut_is_what_a_loop_over_windows_finds(texts: list[str], length: int, at_once: int) -> None:
    codes, ends = encoded(texts)
    assert substrings.repeated_characters(codes, ends, length, at_once).tolist() == oracle(texts, length)


@pytest.mark.parametrize("modulus", [1, 3, 2**63])
def test_texts_that_share_a_hash_are_told_apart(monkeypatch: pytest.MonkeyPatch, modulus: int) -> None:
    true = substrings.window_hashes
    monkeypatch.setattr(substrings, "window_hashes", lambda codes, length: true(codes, length) % np.uint64(modulus))
    monkeypatch.setattr(substrings, "CHUNK", 64)
    draw = random.Random(1)
    texts = ["".join(draw.choice("abc文") for _ in range(60)) for _ in range(12)]
    codes, ends = encoded(texts)
    assert substrings.repeated_characters(codes, ends, 5).tolist() == oracle(texts, 5)


@pytest.mark.parametrize("length", [1, 2, 3, 7, 64, 75, 100])
def test_a_hash_is_that_of_the_window_alone(length: int) -> None:
    """Every window's hash is that of the same text elsewhere, and no two of many windows share one."""
    codes = np.random.default_rng(length).integers(0, 0x10FFFF, 4000).astype(np.uint32)
    hashes = substrings.window_hashes(codes, length)
    assert len(hashes) == 4000 - length + 1
    for start in (0, 1, 1234, len(hashes) - 1):
        assert substrings.window_hashes(codes[start : start + length], length).tolist() == [hashes[start]]
    windows = {tuple(codes[i : i + length]) for i in range(len(hashes))}
    assert len(set(hashes.tolist())) == len(windows)


SENTENCE = "Straße und Größe: diese Zeile stand schon einmal in einem anderen Text, Wort für Wort, 文字どおり. "


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    draw = random.Random(3)
    words = ["alpha", "βήτα", "gamma", "Größe", "delta", "文書", "epsilon", "zeta", "eta", "theta", "iota", "kappa"]
    texts = [" ".join(draw.choice(words) + str(draw.randrange(999)) for _ in range(60)) for _ in range(80)]
    texts = [text[:150] + SENTENCE + text[150:] if i % 4 == 0 else text for i, text in enumerate(texts)]
    parts = [SENTENCE[start:90] for start in range(10)]
    texts.append(next(part for part in parts if not is_held_out({"files": []}, "", part, 0.1)))  # nothing is left of it
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), "utf-8")
    spec = tmp_path / "corpus.yaml"
    spec.write_text(f"files: ['texts.jsonl']\npath: {tmp_path}\nshare: 0.1\n")
    return spec


def texts_of(manifest: dict, split: str) -> list[str]:
    if split == "valid":
        with gzip.open(manifest["valid"][0], "rt", encoding="utf-8") as file:
            return [json.loads(line)["text"] for line in file]
    folder = Path(manifest["valid"][0]).parent / "train"
    return [json.loads(line)["text"] for path in sorted(folder.glob("*.jsonl")) for line in path.open(encoding="utf-8")]


def test_a_preparation_cuts_what_stood_before_and_says_so(corpus: Path, tmp_path: Path) -> None:
    def made(length: int) -> dict:
        what = (str(corpus), str(corpus), 300, tmp_path / "store", "byte-bpe")
        return prepare(*what, recipe=Recipe(dedup="none", substring=length))

    plain, cut = made(0), made(75)
    valid, before = texts_of(plain, "valid"), texts_of(plain, "train")
    assert texts_of(cut, "valid") == valid  # arms are judged on the same text
    gone = oracle([*valid, *before], 75)
    at, expected = sum(map(len, valid)), []
    for text in before:
        expected.append("".join(c for c, g in zip(text, gone[at : at + len(text)], strict=True) if not g))
        at += len(text)
    after = texts_of(cut, "train")
    assert after == [text for text in expected if text.strip()] and len(after) < len(before)
    copies = sum(text.count(SENTENCE[:75]) for text in [*valid, *before])
    assert copies > 15 and sum(text.count(SENTENCE[:75]) for text in [*valid, *after]) == 1
    assert cut["tokenizer"]["sha256"] == plain["tokenizer"]["sha256"] and cut["sha256"] != plain["sha256"]
    step = cut["steps"][-1]
    assert step["step"] == "substring" and "substring" not in [step["step"] for step in plain["steps"]]
    size = [len("".join(texts).encode()) for texts in (before, after)]
    assert (step["in"], step["out"]) == ([len(before), size[0]], [len(after), size[1]])
    assert step["reasons"] == {"nothing but stretches that stood before": len(before) - len(after)}
    assert step["changed"] == sum(a != b for a, b in zip(before, expected, strict=True) if b.strip())
    assert cut["counts"]["train"] == plain["counts"]["train"] | {
        "documents": len(after),
        "bytes": size[1],
        "tokens": cut["counts"]["train"]["tokens"],
    }
    assert made(75) == cut
    assert any("substring removed nothing" in note for note in made(900)["notes"])


def test_a_stretch_is_no_phrase(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data.substring=5: 20 characters or more"):
        prepare(str(corpus), str(corpus), 300, tmp_path, recipe=Recipe(substring=5))
