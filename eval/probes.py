"""Zero-shot items, made from held-out documents: text only, so that every arm and every tokenizer sees the same.

An item is {"id", "context", "target"} or {"id", "context", "choices", "target": index}; the rules are in words in
tasks.yaml. Nothing is drawn at run time: the order of documents and every choice follow from hashes of the text, so
the same documents give the same items wherever they lie and in whatever order they come. An id is a hash of its item:
two runs have an id in common exactly when they were asked the same question.
"""

import gzip
import hashlib
import json
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import yaml

TASKS = Path(__file__).with_name("tasks.yaml")
FEWEST = 20  # a task with fewer items than this is left out: its standard error would be above ten points

# Bytes per token between which the tokenizers used here lie, on prose. "Inside the training length" must hold for the
# least economical of them, "beyond" for the most: SentencePiece with 4,096 pieces takes 3.2 bytes of documentation to
# a token, with 32,000 about 4 (measured); below 1.5 is text a tokenizer was not trained on.
FEW_BYTES, MANY_BYTES = 1.5, 5.0

WORD = re.compile(r"[A-Za-z]{3,}")
LAST_WORD = re.compile(r"(?<=[a-z,] )[A-Za-z]{3,}(?=[.:;!?](?:\s|$)|\n\s*\n)")  # ends a sentence or a paragraph
GAP = re.compile(r"(?<=[a-z,]) (?=[a-z])")  # between two words of running text


def specification() -> dict:
    """tasks.yaml: {"version": int, "tasks": {name: {...}}}."""
    return yaml.safe_load(TASKS.read_text(encoding="utf-8"))


def documents(paths: Iterable[str | Path]) -> list[str]:
    """The texts of .jsonl.gz files, without repetitions, in an order that depends on the texts alone."""
    texts = set()
    for path in paths:
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            texts.update(json.loads(line)["text"] for line in lines)
    return sorted(filter(str.strip, texts), key=digest)


def items(texts: list[str], seq: int) -> dict[str, list[dict]]:
    """The items of every task of tasks.yaml, from documents in the order of `documents`.

    seq: the training length in tokens, on which only the copying tasks depend.
    A task of which fewer than FEWEST items can be made (little text, or a very short seq) has an empty list.
    """
    tasks = specification()["tasks"]
    makers: dict[str, Callable[[int], Iterator[dict]]] = {
        "last_word": lambda n: last_word(texts, n),
        "continuation": lambda n: continuation(texts),
        "copy_inside": lambda n: copy(texts, longest=int(FEW_BYTES * seq)),
        "copy_beyond": lambda n: copy(texts, filler=int(MANY_BYTES * seq)),
        "copy_absent": lambda n: map(without_source, copy(texts, longest=int(FEW_BYTES * seq))),
    }
    made = {"bits_per_byte": held_out(texts, tasks["bits_per_byte"]["bytes"])}
    for name, make in makers.items():
        made[name] = distinct(make(tasks[name]["items"]), tasks[name]["items"])
    return {name: rows if name == "bits_per_byte" or len(rows) >= FEWEST else [] for name, rows in made.items()}


def held_out(texts: list[str], most: int, each: int = 4096) -> list[dict]:
    """Documents for the held-out loss: the first `each` bytes of one after another, `most` bytes in all."""
    rows, total = [], 0
    for text in texts:
        text = text.encode()[:each].decode(errors="ignore")
        total += len(text.encode())
        if rows and total > most:
            break
        rows.append({"id": digest(text), "context": "", "target": text})
    return rows


def last_word(texts: list[str], n: int) -> Iterator[dict]:
    """LAMBADA's property (Paperno et al. 2016): the word that ends the passage has occurred earlier in it.

    No word is the answer of more than one item in a hundred, so that always giving the commonest earns little.
    """
    answers: Counter[str] = Counter()
    for text, rng in passes(texts):
        found = [m for m in LAST_WORD.finditer(text) if m.start() > 100]
        if not found:
            continue
        word = rng.choice(found)
        context = whole_words(text[: word.start() - 1], 400)
        if re.search(rf"\b{word[0]}\b", context) and answers[word[0]] < max(1, n // 100):
            answers[word[0]] += 1
            yield {"context": context, "target": " " + word[0]}


def continuation(texts: list[str]) -> Iterator[dict]:
    """The true continuation, and three of the same length in bytes (within a tenth) from other documents."""
    pieces = {text: [(gap.start(), end) for gap in GAP.finditer(text) if gap.start() > 120
                     for end in [text.find(" ", gap.start() + 64)] if 0 < end < gap.start() + 80]
              for text in texts}
    others = [text for text in texts if pieces[text]]
    for text, rng in passes(others):
        start, end = rng.choice(pieces[text])
        true = text[start:end]
        wrong: list[str] = []
        for other in rng.sample(others, min(len(others), 40)):
            piece = slice(*rng.choice(pieces[other]))
            same = abs(len(other[piece].encode()) - len(true.encode())) <= len(true.encode()) / 10
            if other != text and same and other[piece] not in [true, *wrong]:
                wrong.append(other[piece])
        if len(wrong) >= 3:
            yield among(whole_words(text[:start], 200), true, wrong[:3], rng)


def copy(texts: list[str], longest: int | None = None, filler: int = 0) -> Iterator[dict]:
    """Induction (Olsson et al. 2022): ... A B ... A, what comes next? In running text, not in random tokens.

    The four words all stand in the snippet, each once and nowhere else in the context, so that having seen a word
    does not help: its place does. `longest`: bytes of a whole item; or `filler`: bytes between snippet and question.
    """
    for text, rng in passes(texts):
        words = text.split()
        if len(words) < 40:
            continue
        at = rng.randrange(len(words) - 16)
        snippet, beginning = words[at : at + 16], words[at : at + 6]
        once = [w for w in snippet[6:] if WORD.fullmatch(w) and snippet.count(w) == 1]
        if len(once) < 4 or once[0] != snippet[6]:
            continue
        true, wrong = once[0], rng.sample(once[1:], 3)
        room = longest - len(" ".join(snippet + beginning).encode()) - 4 if longest else filler
        between, size = [], 0
        for other in rng.sample(texts, min(len(texts), 60)):
            for word in other.split() if other != text else []:
                if word.strip(".,:;()`'\"").lower() not in {w.lower() for w in [true, *wrong]}:
                    size += len(word.encode()) + 1
                    between.append(word)
                if size > room:
                    break
            if size > room:
                break
        if longest:
            between.pop()
        if room >= 40 and size > room:
            yield among("\n\n".join(map(" ".join, [snippet, between, beginning])), " " + true,
                        [" " + w for w in wrong], rng)


def without_source(item: dict) -> dict:
    return {**item, "context": item["context"].split("\n\n")[2]}


def among(context: str, true: str, wrong: list[str], rng: random.Random) -> dict:
    choices = [*wrong, true]
    rng.shuffle(choices)
    return {"context": context, "choices": choices, "target": choices.index(true)}


def passes(texts: list[str], most: int = 20) -> Iterator[tuple[str, random.Random]]:
    """Every document, then every document again: one item of each at a time, so that many are drawn on."""
    for turn in range(most):
        for text in texts:
            yield text, random.Random(f"{turn}/{digest(text)}")


def distinct(rows: Iterator[dict], most: int) -> list[dict]:
    kept: dict[str, dict] = {}
    for row in rows:
        key = digest(json.dumps(row, sort_keys=True))
        kept.setdefault(key, {"id": key, **row})
        if len(kept) == most:
            break
    return list(kept.values())


def whole_words(text: str, most: int) -> str:
    """The end of a text, at most so many characters, beginning with a whole word."""
    return text if len(text) <= most else text[-most:].split(maxsplit=1)[-1]


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def chance(rows: list[dict], rule: float | str | None) -> float | None:
    """The accuracy of guessing: the rule's number, or the share of the commonest answer."""
    if rule == "commonest":
        return Counter(row["target"] for row in rows).most_common(1)[0][1] / len(rows)
    return rule  # type: ignore[return-value]
