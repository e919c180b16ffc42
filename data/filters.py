"""What a preparation may leave out, and in which order the rest is read: factors of a study, each off unless asked for.

A filter is `(document) -> why it is removed, or ""`. Held-out documents pass all of them: arms that differ in a filter
are judged on the same text.
"""

from __future__ import annotations

import gzip
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args, get_type_hints

from data.substrings import SHORTEST

if TYPE_CHECKING:
    import numpy as np

NGRAM = 13  # words that a document and a task have in common: GPT-3's choice (Brown et al. 2020, appendix C)
EXCERPT, EXAMPLES = 300, 3  # characters of a removed document in the report; removed documents shown for each reason


Dedup = Literal["near", "exact", "none"]
Quality = Literal["none", "c4", "gopher", "c4+gopher"]
Order = Literal[
    "random",
    "short-first",
    "long-first",
    "prevalent-first",
    "rare-first",
    "short-sentences-first",
    "long-sentences-first",
]
SENTENCE_ENDS = ".!?。！？।؟"  # a sentence ends with one of them; a text without has one sentence


class Recipe(NamedTuple):
    """How the documents of a corpus become training text; a field each of the `data` section of a run.

    dedup: what goes of the duplicates within a corpus. A training document that resembles a held-out one goes always.
    quality: C4's rules (Raffel et al. 2020) and Gopher's (Rae et al. 2021, table A1 and section A.1), datatrove's.
    decontaminate: a folder of evaluation tasks; documents that share NGRAM words in a row with one go. none: no check.
    compress: documents of as many tokens per character or more go (Cramming: 0.25); 0: none.
    order: random, or sorted and read in that order: short-first by tokens; prevalent-first by the mean log-probability
        of a document's tokens under the corpus' unigram model (Cramming), the likeliest first; short-sentences-first by
        the characters per sentence, as Cramming's released recipe does by counting full stops; or in reverse:
        long-first, rare-first, long-sentences-first.
    substring: stretches of so many characters or more that stood before are cut (data/substrings.py; Lee et al. 2022;
        Cramming: 50 to 100); 0: none.
    allow_errors: problems of the files (a bad line, a damaged file ...) up to which the preparation goes on.
    """

    dedup: Dedup = "near"
    quality: Quality = "none"
    decontaminate: str = "none"
    compress: float = 0.0
    order: Order = "random"
    allow_errors: int = 0
    substring: int = 0


PLAIN = Recipe()


def check(recipe: Recipe) -> None:
    """Raise ValueError, naming what is allowed. Reads no document."""
    for name, kind in get_type_hints(Recipe).items():
        value, allowed = getattr(recipe, name), get_args(kind)
        if allowed and value not in allowed:
            raise ValueError(f"data.{name}={value} is not one of {', '.join(allowed)}")
    if not 0 <= recipe.compress < 10:
        raise ValueError(f"data.compress={recipe.compress}: tokens per character, such as 0.25; 0 for no limit")
    if recipe.substring and recipe.substring < SHORTEST:
        raise ValueError(f"data.substring={recipe.substring}: {SHORTEST} characters or more, such as 75; 0 for no cuts")
    if recipe.allow_errors < 0:
        raise ValueError(f"data.allow_errors={recipe.allow_errors}: must not be negative")
    if recipe.decontaminate != "none" and not tasks(recipe.decontaminate):
        raise ValueError(f"data.decontaminate={recipe.decontaminate}: no .jsonl or .jsonl.gz below that folder")


def steps(recipe: Recipe) -> list[str]:
    """The filters of documents as read, in the order in which they act."""
    asked = [] if recipe.quality == "none" else recipe.quality.split("+")
    return asked + ["decontaminate"] * (recipe.decontaminate != "none")


class Step:
    """One filter in datatrove's pipeline: takes out training documents, and says so in `folder`/<rank>.json.

    The file: {"in", "out": [documents, bytes], "changed": documents, "reasons": {why: documents}, "examples": [...],
    "lengths": {"in", "out": {k: documents of 2^k bytes and more}}}.
    """

    def __init__(self, name: str, make: Callable[[int], Callable[[Any], str]], folder: Path):
        self.name, self.make, self.folder = name, make, folder

    def __call__(self, documents: Any, rank: int, _: int) -> Iterator[Any]:
        import numpy as np

        why = self.make(rank)
        counts = np.zeros((2, 2), np.int64)
        lengths: list[Counter[int]] = [Counter(), Counter()]
        reasons: Counter[str] = Counter()
        examples, changed = [], 0
        for document in documents:
            if document.metadata["split"] == "valid" and self.name != "duplicates":
                yield document
                continue
            before, size = document.text, len(document.text.encode())
            training = document.metadata["split"] == "train"
            counts[0] += (training, size * training)
            lengths[0][size.bit_length() - 1] += training
            reason = why(document)
            if not reason:
                left = size if document.text is before else len(document.text.encode())
                changed += left != size
                counts[1] += (training, left * training)
                lengths[1][left.bit_length() - 1] += training
                yield document
                continue
            reason += "" if training else ", held out"
            reasons[reason] += 1
            if reasons[reason] <= EXAMPLES:
                examples.append({"id": document.id, "why": reason, "text": before[:EXCERPT]})
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / f"{rank:05d}.json").write_text(
            json.dumps(
                {
                    "in": counts[0].tolist(),
                    "out": counts[1].tolist(),
                    "changed": int(changed),
                    "reasons": dict(reasons),
                    "examples": examples,
                    "lengths": {"in": dict(lengths[0]), "out": dict(lengths[1])},
                }
            ),
            "utf-8",
        )


def summary(name: str, folder: Path) -> dict[str, Any]:
    """What all tasks of a step reported, added up; the examples are the first of each reason."""
    import numpy as np

    found = [json.loads(path.read_text("utf-8")) for path in sorted(folder.glob("*.json"))]
    reasons: Counter[str] = sum((Counter(each["reasons"]) for each in found), Counter())
    examples: list[dict[str, str]] = []
    for example in (example for each in found for example in each["examples"]):
        if sum(example["why"] == other["why"] for other in examples) < EXAMPLES:
            examples.append(example)
    lengths = {side: sum((Counter(each["lengths"][side]) for each in found), Counter()) for side in ("in", "out")}
    return {
        "step": name,
        **{side: np.sum([each[side] for each in found], axis=0).tolist() for side in ("in", "out")},
        "changed": sum(each["changed"] for each in found),
        "reasons": dict(sorted(reasons.items())),
        "examples": examples,
        "lengths": {
            side: {key: count for key, count in sorted(tally.items(), key=lambda item: int(item[0])) if count}
            for side, tally in lengths.items()
        },
    }


# Quality


def quality(name: str, _: int) -> Callable[[Any], str]:
    """C4's or Gopher's rules, by datatrove's blocks."""
    from datatrove.pipeline.filters import C4QualityFilter, GopherQualityFilter, GopherRepetitionFilter
    from datatrove.pipeline.filters.base_filter import get_filter_result

    english = _english()
    if name == "c4":
        # 3 sentences and 5 words: with datatrove's 5 and 3, the paper's first version's, 96 of 667 genuine documents of
        # C4 would not have passed their own rules; with these 1 does not, and with 6 words 60 lose a line (measured).
        blocks = [C4QualityFilter(min_num_sentences=3, min_words_per_line=5, language=english)]
    else:
        blocks = [GopherRepetitionFilter(language=english), GopherQualityFilter(language=english)]

    def why(document: Any) -> str:
        for block in blocks:
            kept, reason = get_filter_result(block.filter(document))
            if not kept:
                return f"{name}: {reason}"
        return ""

    return why


def _english() -> Any:
    """Words and sentences by their punctuation. datatrove's own, spaCy's and NLTK's, want packages or a download."""
    from datatrove.utils.word_tokenizers import WordTokenizer

    class English(WordTokenizer):
        def word_tokenize(self, text: str) -> list[str]:
            return re.findall(r"\w+(?:['’.-]\w+)*|[^\w\s]+", text)

        def sent_tokenize(self, text: str) -> list[str]:
            return [text[start:end] for start, end in self.span_tokenize(text)]

        def span_tokenize(self, text: str) -> list[tuple[int, int]]:
            ends = [match.end() for match in re.finditer(r"[.!?]+[\"'”’)\]]*(?=\s|$)", text)]
            if text[ends[-1] if ends else 0 :].strip():
                ends.append(len(text))
            return list(zip([0, *ends[:-1]], ends, strict=True))

    return English()


# Decontamination


def tasks(folder: str) -> dict[str, list[Path]]:
    """{task: files} of a folder of <task>/<split>.jsonl or .jsonl.gz, without the splits that are for training."""
    root = Path(folder)
    found: dict[str, list[Path]] = {}
    for path in sorted([*root.rglob("*.jsonl"), *root.rglob("*.jsonl.gz")]):
        if not path.name.startswith("train"):
            found.setdefault(path.parent.relative_to(root).as_posix(), []).append(path)
    return found


def index(folder: str, to: Path) -> dict[str, Any]:
    """Write the n-grams of all tasks where datatrove's filter finds them, and whose rows they are.

    Returns {task: {"rows", "short": rows of fewer words, which cannot be found}}.
    """
    import numpy as np

    grams = _grams()
    to.mkdir(parents=True, exist_ok=True)
    about, owners = {}, []
    for number, (task, paths) in enumerate(tasks(folder).items()):
        rows = short = 0
        hashes: set[int] = set()
        for path in paths:
            with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as file:  # type: ignore[operator]
                for line in file:
                    own = {key for _, key in grams(" ".join(_strings(json.loads(line))))}
                    owners += [(key, number, rows) for key in own]
                    hashes |= own
                    rows, short = rows + 1, short + (not own)
        about[task] = {"rows": rows, "short": short}
        np.array(sorted(hashes), np.uint64).tofile(to / f"{task.replace('/', '|')}.index.hashes")
    np.save(to / "rows.npy", np.array(owners, np.uint64).reshape(-1, 3))
    return about


def contamination(about: dict[str, Any], to: Path) -> dict[str, Any]:
    """`about` of `index`, with the numbers of rows found in the corpus, and of documents that held them."""
    import numpy as np

    hits = [json.loads(path.read_text("utf-8")) for path in sorted(to.glob("hits-*.json"))]
    seen = np.array(sorted({key for each in hits for key in each["keys"]}), np.uint64)
    owners = np.load(to / "rows.npy")
    found = np.unique(owners[np.isin(owners[:, 0], seen)][:, 1:], axis=0)
    documents: Counter[str] = sum((Counter(each["documents"]) for each in hits), Counter())
    return {
        task: row | {"found": int((found[:, 0] == number).sum()), "documents": documents[task]}
        for number, (task, row) in enumerate(about.items())
    }


def decontaminate(to: Path, rank: int) -> Callable[[Any], str]:
    """datatrove's filter with the index of `index`; it names the first task, and here all of them are wanted."""
    import numpy as np
    from datatrove.pipeline.decont.n_grams import NGramsDecontConfig, NGramsDecontFilter

    block = NGramsDecontFilter(str(to), config=NGramsDecontConfig(n_grams=NGRAM), language=_english())
    block.load_index_hashes()
    owners = np.load(to / "rows.npy")
    names = sorted(path.name.removesuffix(".index.hashes").replace("|", "/") for path in to.glob("*.index.hashes"))
    order = np.argsort(owners[:, 0], kind="stable")
    keys, numbers = owners[order, 0], owners[order, 1]
    grams = _grams()
    hits: set[int] = set()
    documents: Counter[str] = Counter()
    (to / f"hits-{rank:05d}.json").write_text(json.dumps({"keys": [], "documents": {}}), "utf-8")

    def why(document: Any) -> str:
        shared = {key: gram for gram, key in grams(document.text) if key in block._index_hashes}
        if not shared:
            return ""
        found = np.array(list(shared), np.uint64)
        first, last = np.searchsorted(keys, found), np.searchsorted(keys, found, "right")
        named = sorted({names[number] for a, b in zip(first, last, strict=True) for number in numbers[a:b]})
        hits.update(shared)
        documents.update(named)
        (to / f"hits-{rank:05d}.json").write_text(json.dumps({"keys": sorted(hits), "documents": documents}), "utf-8")
        return ", ".join(named)

    return why


def _grams() -> Callable[[str], list[tuple[str, int]]]:
    """text -> [(n-gram of simplified words, its hash), ...], as datatrove's filter has them."""
    from datatrove.pipeline.decont.n_grams import NGramsDecontConfig
    from datatrove.utils.hashing import create_hash_func
    from datatrove.utils.text import ngrams, simplify_text

    config = NGramsDecontConfig(n_grams=NGRAM)
    key = create_hash_func(config.hash_config)
    return lambda text: [
        (gram, key(gram)) for gram in map(" ".join, ngrams(simplify_text(text, config.norm_config).split(), NGRAM))
    ]


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _strings(each)


# Of documents as tokens


def too_dense(tokens: np.ndarray, characters: np.ndarray, limit: float) -> np.ndarray:
    """Which documents have `limit` tokens per character or more (Cramming's filter); bool [documents]. 0: none."""
    import numpy as np

    return tokens >= limit * characters if limit else np.zeros(len(tokens), bool)


def sequence(
    order: str, flat: np.ndarray, starts: np.ndarray, lengths: np.ndarray, sentence_lengths: np.ndarray
) -> np.ndarray:
    """The documents, given by `starts` and `lengths` in the tokens `flat`, in their order: int64 [documents].

    sentence_lengths: mean characters of the sentences of each document. Of equal documents the first one comes first.
    """
    import numpy as np

    if order == "random":
        return np.arange(len(lengths))
    if order in ("short-first", "long-first"):
        keys = lengths.astype(np.float64)
    elif order in ("short-sentences-first", "long-sentences-first"):
        keys = sentence_lengths
    else:
        most = int(flat.max()) + 1 if len(flat) else 1
        block = 1 << 24
        counts = sum(
            (np.bincount(flat[i : i + block], minlength=most) for i in range(0, len(flat), block)),
            np.zeros(most, np.int64),
        )
        logs = np.log(np.maximum(counts, 1) / counts.sum())
        keys = -np.array([logs[flat[a : a + n]].mean() for a, n in zip(starts, lengths, strict=True)])
    descending = order in ("long-first", "rare-first", "long-sentences-first")
    return np.argsort(-keys if descending else keys, kind="stable")
