"""This project's own zero-shot tasks. Their items are made from held-out documents as text, so they are the same for
every tokenizer.

An item is {"id", "cluster", "context", "target": text} or {"id", "cluster", "context", "choices", "target": index of
the right choice}; tasks.yaml describes each task. Items of the same cluster are statistically dependent: they are made
from the same document, or from documents of the same package or repository.

The order of documents and all random choices depend only on hashes of the text. So the same documents always give the
same items. An item's id is its hash: two runs with an id in common answered the same question.

Words are recognised by Unicode's rules, in every script with spaces between words. Text without spaces (Chinese,
Japanese, Thai) gives items of held-out loss and continuations, but none of the tasks about single words.
"""

import functools
import gzip
import hashlib
import heapq
import json
import math
import random
import sys
import zlib
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import regex
import yaml

TASKS = Path(__file__).with_name("tasks.yaml")
MIN_ITEMS = 20  # a task with fewer items is left out: its standard error would be above ten points

# The fewest and the most bytes per token of running text, over all tokenizers: an item of copy_inside fits into the
# training length even at the fewest, one of copy_beyond exceeds it even at the most. A SentencePiece vocabulary of
# 4,096 has 2.1 to 3.8 on these items (measured); 1.5 allows for text unlike that of the tokenizer, 5 for a vocabulary
# of 50,000 and more.
FEW_BYTES, MANY_BYTES = 1.5, 5.0

MAX_PASSES = 20  # over the documents, at most, to make items; untuned
PIECE_BYTES = 4096  # of a document, of which the held-out loss is taken at a time; untuned
# Labels of a document (its metadata in the corpus) that name a group of documents, which is then their cluster.
CLUSTER_LABELS = ("package", "repository", "repo_name")

LETTER = r"[\p{L}\p{M}]"  # of any script, with the signs that belong to it
SMALL_LETTERS = r"\p{Ll}\p{Lo}\p{M}"  # inside a set: the same without capitals; scripts without capitals have all
UNSPACED_LETTER = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]"
WORD = regex.compile(rf"{LETTER}{{3,}}")
# two words and what may follow them, at each first one
WORD_PAIR = regex.compile(rf"(?<!{LETTER})(?=({LETTER}+[,،]?) ({LETTER}{{2,}})[\s.,:;)»”।،؛؟…])")
# a word of running text, and what follows
CLOZE_GAP = regex.compile(
    rf"(?<=[{SMALL_LETTERS},،]) ([{SMALL_LETTERS}]{{3,}})(?= [{SMALL_LETTERS}]) [^\n]{{20,40}}(?= )"
)
# between two words of running text, or between two letters where there are no spaces
CONTINUATION_START = regex.compile(
    rf"(?<=[{SMALL_LETTERS},،]) (?=[{SMALL_LETTERS}])|(?<={UNSPACED_LETTER})(?={UNSPACED_LETTER})"
)


@functools.cache
def load_specification() -> dict:
    """The content of tasks.yaml: {"version": int, "tasks": {task made from held-out text: its entry}, ...}."""
    return yaml.safe_load(TASKS.read_text(encoding="utf-8"))


def sorted_texts(paths: Iterable[str | Path]) -> list[str]:
    """The distinct texts of the documents in .jsonl.gz files, sorted by their hashes. Empty texts are left out. Raises
    ValueError where a file is damaged; the message names the file."""
    return list(clusters_of(paths))


def clusters_of(paths: Iterable[str | Path]) -> dict[str, str]:
    """Assign each document in .jsonl.gz files to a cluster. Documents of one cluster are not independent, which
    standard errors have to take into account. Returns {text of the document: cluster}: the document's package or
    repository, or the hash of the text where neither is known. The texts are sorted by their hashes; empty ones are
    left out. Raises ValueError where a file is damaged; the message names the file."""
    clusters: dict[str, str] = {}
    for document in read_documents(paths):
        text, labels = document["text"], document.get("metadata") or {}
        group = next((f"{label} {labels[label]}" for label in CLUSTER_LABELS if labels.get(label)), short_hash(text))
        clusters[text] = min(group, clusters.get(text, group))
    return {text: clusters[text] for text in sorted((text for text in clusters if text.strip()), key=short_hash)}


def read_documents(paths: Iterable[str | Path]) -> Iterator[dict[str, Any]]:
    """The documents in .jsonl.gz files, each {"text", maybe "metadata", ...}. Raises ValueError where a file is
    damaged; the message names the file."""
    for path in paths:
        try:
            with gzip.open(path, "rt", encoding="utf-8") as lines:
                for line in lines:
                    document = json.loads(line)
                    document["text"].strip()
                    yield document
        except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is damaged, or no held-out text: {error!r}") from None


def held_out_items_by_domain(paths: Iterable[str | Path], max_bytes: int) -> dict[str, list[dict]]:
    """The items for the held-out loss of each domain: {domain: items from `held_out_items`}; {} where there is only one
    domain.

    A domain is a part of the text with one origin. It is named in the metadata of a document (The Pile's
    pile_set_name), or else is the corpus, whose name begins the name of the file's folder (NAME-HASH).

    Args:
        paths: .jsonl.gz files with held-out documents.
        max_bytes: the largest number of bytes of each domain.
    """
    texts: dict[str, set[str]] = {}
    for path in paths:
        corpus = Path(path).parent.name.rpartition("-")[0]
        for document in read_documents([path]):
            if document["text"].strip():
                domain = (document.get("metadata") or {}).get("domain") or corpus
                texts.setdefault(domain, set()).add(document["text"])
    rows = {domain: held_out_items(sorted(texts[domain], key=short_hash), max_bytes) for domain in sorted(texts)}
    return rows if len(rows) > 1 else {}


def make_items(texts: list[str], seq: int, clusters: dict[str, str] | None = None) -> dict[str, list[dict]]:
    """The items of every task of tasks.yaml that is made from held-out text, {task: items}. A task for which fewer than
    MIN_ITEMS could be made, because there is little text or `seq` is very short, gets [].

    Args:
        texts: documents in the order of `sorted_texts`.
        seq: the training length in tokens, on which only the copying tasks depend.
        clusters: {text of a document: its cluster}; None: each document is a cluster.

    Raises:
        ValueError: tasks.yaml has a task without code in this function, or lacks a task that is made here.
    """
    tasks = load_specification()["tasks"]
    check_entries(tasks)
    inside = {"max_bytes": int(FEW_BYTES * seq)}
    drawn = {
        "last_word": last_word_items(texts, tasks["last_word"]["items"]),
        "continuation": continuation_items(texts),
        "cloze": cloze_items(texts),
        "copy_inside": copying_items(texts, **inside),
        "copy_beyond": copying_items(texts, gap_bytes=int(MANY_BYTES * seq)),
        "copy_absent": ((text, without_snippet(item)) for text, item in copying_items(texts, **inside)),
    }
    if differing := sorted(tasks.keys() ^ {"bits_per_byte", *drawn}):
        raise ValueError(
            f"{', '.join(differing)}: in one of eval/tasks/tasks.yaml and `make_items` of probes.py, not in both"
        )
    by_task = {name: distinct_items(rows, tasks[name]["items"], clusters) for name, rows in drawn.items()}
    return {
        "bits_per_byte": held_out_items(texts, tasks["bits_per_byte"]["bytes"], clusters),
        **{name: rows if len(rows) >= MIN_ITEMS else [] for name, rows in by_task.items()},
    }


def check_entries(tasks: dict[str, dict[str, Any]]) -> None:
    """Check that the entries of tasks.yaml for tasks made from held-out text have exactly the keys that are needed.
    Raises ValueError where a key is missing or not known; the message names the entry. `tasks`: {task: entry}."""
    for name, entry in tasks.items():
        sizes = {"bytes", "domain_bytes"} if name == "bits_per_byte" else {"chance", "items", "mean"}
        allowed = {"output_type", "metric", "higher_is_better", "prompt", *sizes}
        if differing := sorted(entry.keys() ^ allowed):
            raise ValueError(
                f"eval/tasks/tasks.yaml, {name}: {', '.join(differing)}: missing or not known; "
                f"an entry has {', '.join(sorted(allowed))}"
            )


def held_out_items(
    texts: list[str], max_bytes: int, clusters: dict[str, str] | None = None, piece_bytes: int = PIECE_BYTES
) -> list[dict]:
    """The items of the held-out loss: pieces of documents, cut between characters.

    The next piece always comes from the cluster with the fewest bytes so far, so that no large cluster dominates.
    Within a cluster, the first pieces of all documents come first, then the second pieces, and so on. So a few long
    documents also give many items. The standard error is estimated over clusters.

    Args:
        texts: documents in the order of `sorted_texts`.
        max_bytes: the largest number of bytes of all pieces together.
        clusters: {text of a document: its cluster}; None: each document is a cluster.
        piece_bytes: the largest number of bytes of a piece.
    """
    rows: list[dict] = []
    repeats: Counter[str] = Counter()
    waiting: dict[str, deque[tuple[bytes, int]]] = {}
    for text in texts:
        waiting.setdefault(cluster_of(text, clusters), deque()).append((text.encode(), 0))
    order = {name: number for number, name in enumerate(waiting)}
    fewest = [(0, number, name) for name, number in order.items()]  # a heap of (bytes so far, order, cluster)
    total = 0
    while fewest:
        size, number, name = heapq.heappop(fewest)
        content, start = waiting[name].popleft()
        piece = content[start : start + piece_bytes].decode(errors="ignore")
        end = start + len(piece.encode())
        total += end - start
        if rows and total > max_bytes:
            return rows
        key = short_hash(piece)
        repeats[key] += 1
        repetition = f"-{repeats[key]}" if repeats[key] > 1 else ""  # the same words again are another item
        rows.append({"id": key + repetition, "cluster": name, "context": "", "target": piece})
        if end < len(content):
            waiting[name].append((content, end))
        if waiting[name]:
            heapq.heappush(fewest, (size + end - start, number, name))
    return rows


def cluster_of(text: str, clusters: dict[str, str] | None) -> str:
    """The cluster of the document with this text; a document without an entry in `clusters` is a cluster by itself,
    named by the hash of its text. `clusters`: {text of a document: its cluster}; None: no document has an entry."""
    return (clusters or {}).get(text) or short_hash(text)


def last_word_items(texts: list[str], n: int) -> Iterator[tuple[str, dict]]:
    """Make items: predict the last word of a passage, which occurs earlier in it, as in LAMBADA (Paperno et al. 2016).
    Yields pairs (document, item).

    People selected LAMBADA's passages so that the word can be guessed. Here instead the last two words must occur as a
    pair in at least 1 % of documents. No word may answer more than 5 % of the items, so that always giving the
    commonest answer scores little.

    Args:
        texts: documents in the order of `sorted_texts`.
        n: the number of items that will be used.
    """
    pair_documents: Counter[tuple[str | Any, ...]] = Counter()
    for text in texts:
        pair_documents.update(set(WORD_PAIR.findall(text)))
    least_documents, answers = max(2, len(texts) / 100), Counter[str]()
    for text, rng in repeated_passes(texts):
        usable = []
        for pair in WORD_PAIR.finditer(text):
            word = pair[2]
            if pair_documents[pair.groups()] < least_documents or answers[word] >= n // 20:
                continue
            context = whole_words(text[: pair.end(1)], 250)
            if len(context) > 100 and word in context and regex.search(rf"\b{word}\b", context):
                usable.append((context, word))
        if usable:
            context, word = rng.choice(usable)
            answers[word] += 1
            yield text, {"context": context, "target": " " + word}


def continuation_items(texts: list[str]) -> Iterator[tuple[str, dict]]:
    """Make items: choose the true continuation of a text among four. Yields pairs (document, item). The wrong choices
    are pieces of other documents, whose lengths in bytes differ by at most 10 % from the true one's. `texts`: documents
    in the order of `sorted_texts`."""
    pieces = {text: list(piece_spans(text)) for text in texts}
    usable = [text for text in texts if pieces[text]]
    for text, rng in repeated_passes(usable):
        start, end = rng.choice(pieces[text])
        right, wrong = text[start:end], list[str]()
        size = len(right.encode())
        for other_text in rng.sample(usable, min(len(usable), 40)):
            piece = other_text[slice(*rng.choice(pieces[other_text]))]
            if other_text != text and abs(len(piece.encode()) - size) <= size / 10 and piece not in [right, *wrong]:
                wrong.append(piece)
        if len(wrong) >= 3:
            yield text, multiple_choice_item(whole_words(text[:start], 120), right, wrong[:3], rng)


def piece_spans(text: str) -> Iterator[tuple[int, int]]:
    """The start and end, in characters, of each piece of a text that can be a choice of `continuation_items`. A piece
    starts between two words after the first 100 characters, and ends at the first space between its 48th and 64th
    character. In scripts without spaces it has 48 characters."""
    for gap in CONTINUATION_START.finditer(text):
        start, end = gap.span()
        if start <= 100:
            continue
        earliest_end = start + 48
        if end == start:  # no spaces: after any character
            if earliest_end <= len(text):
                yield start, earliest_end
        elif 0 < (space := text.find(" ", earliest_end)) < start + 64:
            yield start, space


def cloze_items(texts: list[str]) -> Iterator[tuple[str, dict]]:
    """Make items: choose the word that is left out of a text. Yields pairs (document, item). Each choice is a candidate
    word, followed by the text after the gap. `texts`: documents in the order of `sorted_texts`.

    As in the Children's Book Test (Hill et al. 2015), the wrong words are from the same document. Here they are also
    about as common as the right one.
    """
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(WORD.findall(text))
    for text, rng in repeated_passes(texts):
        gaps = [gap for gap in CLOZE_GAP.finditer(text) if gap.start() > 100]
        words = {gap[1] for gap in gaps}
        if len(words) < 8:
            continue
        gap = rng.choice(gaps)
        similar = sorted(words - {gap[1]}, key=lambda word: (abs(math.log(counts[word] / counts[gap[1]])), word))  # noqa: B023
        wrong, after = rng.sample(similar[:6], 3), text[gap.end(1) : gap.end()]
        context = whole_words(text[: gap.start()], 250)
        yield text, multiple_choice_item(context, f" {gap[1]}{after}", [f" {word}{after}" for word in wrong], rng)


def copying_items(texts: list[str], max_bytes: int = 0, gap_bytes: int = 0) -> Iterator[tuple[str, dict]]:
    """Make items of the copying tasks. The context is a snippet of a document, then text of other documents, then the
    first six words of the snippet again. The task is to choose the next word. This is induction, ... A B ... A -> B
    (Olsson et al. 2022), in running text instead of random tokens. Yields pairs (document, item).

    All four choices occur exactly once in the snippet, and not after it. So only a word's place in the snippet shows
    which choice is right. Either `max_bytes` or `gap_bytes` is given.

    Args:
        texts: documents in the order of `sorted_texts`.
        max_bytes: the largest number of bytes of a whole item; 0: not limited.
        gap_bytes: the number of bytes between the snippet and its repetition; 0: as many as `max_bytes` allows.
    """
    for text, rng in repeated_passes(texts):
        words = text.split()
        if len(words) < 40:
            continue
        start = rng.randrange(len(words) - 16)
        snippet, beginning = words[start : start + 16], words[start : start + 6]
        once = [word for word in snippet[6:] if WORD.fullmatch(word) and snippet.count(word) == 1]
        if len(once) < 4 or once[0] != snippet[6]:
            continue
        right, wrong = once[0], rng.sample(once[1:], 3)
        question_bytes = len(" ".join(snippet + beginning).encode()) + 4
        # the last word of the filler may have 59 bytes
        filler_bytes = max_bytes - question_bytes - 64 if max_bytes else gap_bytes
        filler = text_of_other_documents(texts, text, {right, *wrong}, filler_bytes, rng)
        if filler:
            context = "\n\n".join([" ".join(snippet), filler, " ".join(beginning)])
            yield text, multiple_choice_item(context, " " + right, [" " + word for word in wrong], rng)


def text_of_other_documents(texts: list[str], excluded: str, omit: set[str], size: int, rng: random.Random) -> str:
    """Running text from other documents, of `size` bytes or up to a word more; "" where `size` is below 40, or the
    documents have too little text.

    Args:
        texts: the documents to take text from.
        excluded: the text of the one document that is not used.
        omit: words that are left out of the text, in upper or lower case.
        size: the length in bytes.
        rng: the random numbers that choose the documents.
    """
    omitted = {word.lower() for word in omit}
    chosen: list[str] = []
    for text in rng.choices(texts, k=100 if size >= 40 else 0):
        for word in text.split() if text != excluded else []:
            if len(word) < 60 and word.strip(".,:;()`'\"").lower() not in omitted:
                chosen.append(word)
                size -= len(word.encode()) + 1
            if size <= 0:
                return " ".join(chosen)
    return ""


def without_snippet(item: dict) -> dict:
    """The control for an item of `copying_items`: the same item without the snippet and the text of other documents.
    Its answer can only be guessed."""
    return {**item, "context": item["context"].split("\n\n")[2]}


def multiple_choice_item(context: str, right: str, wrong: list[str], rng: random.Random) -> dict:
    """An item {"context", "choices", "target": index of `right`}, with the choices `right` and `wrong` in random order.
    `rng`: the random number generator for the order."""
    choices = [*wrong, right]
    rng.shuffle(choices)
    return {"context": context, "choices": choices, "target": choices.index(right)}


def repeated_passes(texts: list[str]) -> Iterator[tuple[str, random.Random]]:
    """Pass over all documents MAX_PASSES times. Yields pairs (document, random generator seeded for document and pass).
    So every document gives one item before any gives a second one."""
    for turn in range(MAX_PASSES):
        for text in texts:
            yield text, random.Random(f"{turn}/{short_hash(text)}")


def distinct_items(rows: Iterator[tuple[str, dict]], max_items: int, clusters: dict[str, str] | None) -> list[dict]:
    """The first `max_items` distinct items, with "id" and "cluster" added. `rows`: pairs (text of a document, item made
    from it); `clusters`: {text of a document: its cluster}; None: each document is a cluster."""
    items_by_id: dict[str, dict] = {}
    for text, row in rows:
        key = short_hash(json.dumps(row, sort_keys=True))
        items_by_id.setdefault(key, {"id": key, "cluster": cluster_of(text, clusters), **row})
        if len(items_by_id) == max_items:
            break
    return list(items_by_id.values())


def whole_words(text: str, max_characters: int) -> str:
    """The end of a text, of at most `max_characters` characters, beginning with a whole word."""
    return text if len(text) <= max_characters else text[-max_characters:].split(maxsplit=1)[-1]


def short_hash(text: str) -> str:
    """The first 64 bits of a text's sha256, as 16 hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def chance_accuracy(rows: list[dict], rule: float | str) -> float:
    """The accuracy of guessing on multiple-choice items, as a fraction of 1. `rows`: the items; `rule`: the accuracy
    itself, as tasks.yaml states it, or "commonest" for always choosing the index that is right most often."""
    if rule == "commonest":
        return Counter(row["target"] for row in rows).most_common(1)[0][1] / len(rows)
    return float(rule)


def main() -> int:
    """Check that each task made from held-out text has both an entry in tasks.yaml and code in `make_items`. Returns
    the exit code, 0 or 2. A study runs `python -m eval.tasks.probes` before anything is trained."""
    try:
        make_items([], seq=1)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
