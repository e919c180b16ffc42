"""Zero-shot items, made from held-out documents: text only, so that all arms and tokenizers see the same.

An item is {"id", "cluster", "context", "target"} or {"id", "cluster", "context", "choices", "target": index};
tasks.yaml says in words what each task asks. `cluster` names what items have in common that makes them depend on one
another: the document they are made from, or where the corpus says so what several documents belong to.

Nothing is drawn at run time: the order of documents and every choice follow from hashes of the text, so the same
documents give the same items wherever they lie and in whatever order they come. An id is a hash of its item: two runs
have an id in common exactly when they were asked the same question.

Words are found by Unicode's rules, in every script that puts spaces between them. Text without spaces (Chinese,
Japanese, Thai) has held-out loss and continuations; the tasks that ask for a word are left out there.
"""

import gzip
import hashlib
import heapq
import json
import math
import random
import zlib
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import regex
import yaml

TASKS = Path(__file__).with_name("tasks.yaml")
FEWEST = 20  # a task with fewer items is left out: its standard error would be above ten points

# Bytes per token of running text, at the least and at the most, for any tokenizer one might use: "inside" the
# training length must hold at the one and "beyond" at the other. 4,096 SentencePiece pieces make 2.1 to 3.8
# of these items (measured); 1.5 allows for text unlike that of the tokenizer, 5 for a vocabulary of 50,000
# and more.
FEW_BYTES, MANY_BYTES = 1.5, 5.0

PIECE_BYTES = 4096  # of a document, of which the held-out loss is taken at a time; untuned
# Labels of a document (its metadata in the corpus) that name what several documents belong to.
GROUPS = ("package", "repository", "repo_name")

LETTER = r"[\p{L}\p{M}]"  # of any script, with the signs that belong to it
SMALL = r"\p{Ll}\p{Lo}\p{M}"  # inside a set: the same without capitals; scripts without capitals have all
UNSPACED = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]"
WORD = regex.compile(rf"{LETTER}{{3,}}")
# two words and what may follow them, at each first one
PAIR = regex.compile(rf"(?<!{LETTER})(?=({LETTER}+[,،]?) ({LETTER}{{2,}})[\s.,:;)»”।،؛؟…])")
# a word of running text, and what follows
HOLE = regex.compile(rf"(?<=[{SMALL},،]) ([{SMALL}]{{3,}})(?= [{SMALL}]) [^\n]{{20,40}}(?= )")
# between two words of running text, or between two letters where there are no spaces
GAP = regex.compile(rf"(?<=[{SMALL},،]) (?=[{SMALL}])|(?<={UNSPACED})(?={UNSPACED})")


def specification() -> dict:
    """tasks.yaml: {"version": int, "tasks": {name: {...}}}."""
    return yaml.safe_load(TASKS.read_text(encoding="utf-8"))


def documents(paths: Iterable[str | Path]) -> list[str]:
    """The texts of .jsonl.gz files, without repetitions, in an order that depends on the texts alone."""
    return list(sources(paths))


def sources(paths: Iterable[str | Path]) -> dict[str, str]:
    """{text: cluster} of the documents of .jsonl.gz files, in the order of `documents`.

    Raises:
        ValueError: when a file is damaged, naming it.
    """
    clusters: dict[str, str] = {}
    for document in read(paths):
        text, labels = document["text"], document.get("metadata") or {}
        group = next((f"{label} {labels[label]}" for label in GROUPS if labels.get(label)), digest(text))
        clusters[text] = min(group, clusters.get(text, group))
    return {text: clusters[text] for text in sorted((text for text in clusters if text.strip()), key=digest)}


def read(paths: Iterable[str | Path]) -> Iterator[dict[str, Any]]:
    """The documents {"text", "metadata", ...} of .jsonl.gz files. Raises ValueError for one that is damaged."""
    for path in paths:
        try:
            with gzip.open(path, "rt", encoding="utf-8") as lines:
                for line in lines:
                    document = json.loads(line)
                    document["text"].strip()
                    yield document
        except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is damaged, or no held-out text: {error!r}") from None


def by_domain(paths: Iterable[str | Path], most: int) -> dict[str, list[dict]]:
    """Documents for the held-out loss of each domain, `most` bytes of each: {domain: as `held_out`}.

    A document's domain is the one that its corpus names (The Pile's pile_set_name); in a blend of corpora without such
    names, the corpus: its files lie in a folder NAME-HASH. Nothing where all is of one domain.
    """
    texts: dict[str, set[str]] = {}
    for path in paths:
        corpus = Path(path).parent.name.rpartition("-")[0]
        for document in read([path]):
            if document["text"].strip():
                domain = (document.get("metadata") or {}).get("domain") or corpus
                texts.setdefault(domain, set()).add(document["text"])
    rows = {domain: held_out(sorted(texts[domain], key=digest), most) for domain in sorted(texts)}
    return rows if len(rows) > 1 else {}


def items(texts: list[str], seq: int, clusters: dict[str, str] | None = None) -> dict[str, list[dict]]:
    """The items of every task of tasks.yaml, from documents in the order of `documents`.

    seq: the training length in tokens, on which only the copying tasks depend.
    clusters: as of `sources`; None: each document is one.
    A task of which fewer than FEWEST items can be made (little text, or a very short seq) has an empty list.
    """
    tasks = specification()["tasks"]
    inside = {"longest": int(FEW_BYTES * seq)}
    drawn = {
        "last_word": last_word(texts, tasks["last_word"]["items"]),
        "continuation": continuation(texts),
        "cloze": cloze(texts),
        "copy_inside": copying(texts, **inside),
        "copy_beyond": copying(texts, between=int(MANY_BYTES * seq)),
        "copy_absent": ((text, without_source(item)) for text, item in copying(texts, **inside)),
    }
    made = {name: distinct(rows, tasks[name]["items"], clusters) for name, rows in drawn.items()}
    return {
        "bits_per_byte": held_out(texts, tasks["bits_per_byte"]["bytes"], clusters),
        **{name: rows if len(rows) >= FEWEST else [] for name, rows in made.items()},
    }


def held_out(
    texts: list[str], most: int, clusters: dict[str, str] | None = None, piece: int = PIECE_BYTES
) -> list[dict]:
    """Text for the held-out loss: pieces of at most `piece` bytes, up to `most` bytes in all.

    The next piece is of the cluster that has the fewest bytes so far, so that no large source stands for all: how far
    another source could have given another result is told from the differences between clusters. Within a cluster it is
    the first piece of one document after another, then the second of each that goes on, and so forth. So few long
    documents are many items. A piece ends with a whole character.
    """
    rows: list[dict] = []
    seen: Counter[str] = Counter()
    waiting: dict[str, deque[tuple[bytes, int]]] = {}
    for text in texts:
        waiting.setdefault(cluster(text, clusters), deque()).append((text.encode(), 0))
    order = {name: number for number, name in enumerate(waiting)}
    fewest = [(0, number, name) for name, number in order.items()]  # a heap of (bytes so far, order, cluster)
    total = 0
    while fewest:
        size, number, name = heapq.heappop(fewest)
        content, start = waiting[name].popleft()
        part = content[start : start + piece].decode(errors="ignore")
        end = start + len(part.encode())
        total += end - start
        if rows and total > most:
            return rows
        key = digest(part)
        seen[key] += 1
        again = f"-{seen[key]}" if seen[key] > 1 else ""  # the same words again are another item
        rows.append({"id": key + again, "cluster": name, "context": "", "target": part})
        if end < len(content):
            waiting[name].append((content, end))
        if waiting[name]:
            heapq.heappush(fewest, (size + end - start, number, name))
    return rows


def cluster(text: str, clusters: dict[str, str] | None) -> str:
    return (clusters or {}).get(text) or digest(text)


def last_word(texts: list[str], n: int) -> Iterator[tuple[str, dict]]:
    """LAMBADA's properties (Paperno et al. 2016): the last word occurs before, and it can be guessed.

    People chose LAMBADA's passages; here the pair of the last two words must stand in one document in a
    hundred. No word is the answer of more than one item in twenty, so that always giving the commonest earns
    little.
    """
    known: Counter[tuple[str | Any, ...]] = Counter()
    for text in texts:
        known.update({pair.groups() for pair in PAIR.finditer(text)})
    often, answers = max(2, len(texts) / 100), Counter[str]()
    for text, rng in passes(texts):
        usable = []
        for pair in PAIR.finditer(text):
            word, context = pair[2], whole_words(text[: pair.end(1)], 250)
            if len(context) > 100 and known[pair.groups()] >= often and answers[word] < n // 20:
                if regex.search(rf"\b{word}\b", context):
                    usable.append((context, word))
        if usable:
            context, word = rng.choice(usable)
            answers[word] += 1
            yield text, {"context": context, "target": " " + word}


def continuation(texts: list[str]) -> Iterator[tuple[str, dict]]:
    """The true continuation, and three of its length in bytes (within a tenth) from other documents."""
    pieces = {
        text: [
            (gap.start(), end)
            for gap in GAP.finditer(text)
            if gap.start() > 100
            for end in [piece_end(text, gap)]
            if 0 < end < gap.start() + 64
        ]
        for text in texts
    }
    usable = [text for text in texts if pieces[text]]
    for text, rng in passes(usable):
        start, end = rng.choice(pieces[text])
        true, wrong = text[start:end], list[str]()
        size = len(true.encode())
        for other in rng.sample(usable, min(len(usable), 40)):
            piece = other[slice(*rng.choice(pieces[other]))]
            if other != text and abs(len(piece.encode()) - size) <= size / 10 and piece not in [true, *wrong]:
                wrong.append(piece)
        if len(wrong) >= 3:
            yield text, question(whole_words(text[:start], 120), true, wrong[:3], rng)


def piece_end(text: str, gap: Any) -> int:
    """Where a piece of 48 characters or a little more ends that begins at a gap; -1: nowhere."""
    if gap.end() > gap.start():
        return text.find(" ", gap.start() + 48)
    return gap.start() + 48 if gap.start() + 48 <= len(text) else -1  # no spaces: after any character


def cloze(texts: list[str]) -> Iterator[tuple[str, dict]]:
    """A word left out of running text: it and what follows, against the same with another word in its place.

    As in the Children's Book Test (Hill et al. 2015) the wrong words are from the same document; here they are about as
    common as the true one. What comes after the gap is the same in all choices.
    """
    common: Counter[str] = Counter()
    for text in texts:
        common.update(WORD.findall(text))
    for text, rng in passes(texts):
        gaps = [gap for gap in HOLE.finditer(text) if gap.start() > 100]
        words = {gap[1] for gap in gaps}
        if len(words) < 8:
            continue
        gap = rng.choice(gaps)
        near = sorted(words - {gap[1]}, key=lambda word: (abs(math.log(common[word] / common[gap[1]])), word))  # noqa: B023
        wrong, rest = rng.sample(near[:6], 3), text[gap.end(1) : gap.end()]
        context = whole_words(text[: gap.start()], 250)
        yield text, question(context, f" {gap[1]}{rest}", [f" {word}{rest}" for word in wrong], rng)


def copying(texts: list[str], longest: int = 0, between: int = 0) -> Iterator[tuple[str, dict]]:
    """Induction (Olsson et al. 2022): ... A B ... A, what comes next? In running text, not in random tokens.

    The four words stand in the snippet, each once, and nowhere in the text between: to have seen a word does
    not help, to have seen its place does. `longest`: bytes of a whole item; or `between`: bytes from snippet
    to question.
    """
    for text, rng in passes(texts):
        words = text.split()
        if len(words) < 40:
            continue
        at = rng.randrange(len(words) - 16)
        snippet, beginning = words[at : at + 16], words[at : at + 6]
        once = [word for word in snippet[6:] if WORD.fullmatch(word) and snippet.count(word) == 1]
        if len(once) < 4 or once[0] != snippet[6]:
            continue
        true, wrong = once[0], rng.sample(once[1:], 3)
        asked = len(" ".join(snippet + beginning).encode()) + 4
        room = longest - asked - 64 if longest else between  # the last word between may have 59 bytes
        filler = other_text(texts, text, {true, *wrong}, room, rng)
        if filler:
            context = "\n\n".join([" ".join(snippet), filler, " ".join(beginning)])
            yield text, question(context, " " + true, [" " + word for word in wrong], rng)


def other_text(texts: list[str], but: str, without: set[str], size: int, rng: random.Random) -> str:
    """Words of other documents, `size` bytes and at most a word more; "" where under 40 are asked for."""
    avoided = {word.lower() for word in without}
    kept: list[str] = []
    for other in rng.choices(texts, k=100 if size >= 40 else 0):
        for word in other.split() if other != but else []:
            if len(word) < 60 and word.strip(".,:;()`'\"").lower() not in avoided:
                kept.append(word)
                size -= len(word.encode()) + 1
            if size <= 0:
                return " ".join(kept)
    return ""


def without_source(item: dict) -> dict:
    """The same question, its snippet and the text between taken away."""
    return {**item, "context": item["context"].split("\n\n")[2]}


def question(context: str, true: str, wrong: list[str], rng: random.Random) -> dict:
    choices = [*wrong, true]
    rng.shuffle(choices)
    return {"context": context, "choices": choices, "target": choices.index(true)}


def passes(texts: list[str], most: int = 20) -> Iterator[tuple[str, random.Random]]:
    """Every document, then every document again: one item of each at a time, so that many are drawn on."""
    for turn in range(most):
        for text in texts:
            yield text, random.Random(f"{turn}/{digest(text)}")


def distinct(rows: Iterator[tuple[str, dict]], most: int, clusters: dict[str, str] | None) -> list[dict]:
    """The first so many different items, with their ids, and the clusters of the documents that they are from."""
    kept: dict[str, dict] = {}
    for text, row in rows:
        key = digest(json.dumps(row, sort_keys=True))
        kept.setdefault(key, {"id": key, "cluster": cluster(text, clusters), **row})
        if len(kept) == most:
            break
    return list(kept.values())


def whole_words(text: str, most: int) -> str:
    """The end of a text, at most so many characters, beginning with a whole word."""
    return text if len(text) <= most else text[-most:].split(maxsplit=1)[-1]


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def chance(rows: list[dict], rule: float | str) -> float:
    """The accuracy of guessing: the rule's number, or the share of the commonest answer."""
    if rule == "commonest":
        return Counter(row["target"] for row in rows).most_common(1)[0][1] / len(rows)
    return float(rule)
