"""The recipe of a corpus' training text: filters that remove documents, and the order in which the remaining documents
are read.

By default nothing is filtered and the order is random. A filter is a function of a document that returns the reason why
the document is removed, or "" where it is kept. Held-out documents are not filtered, so that arms that differ in a
filter are judged on the same text.
"""

from __future__ import annotations

import gzip
import json
import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args, get_type_hints

from data.substrings import MIN_LENGTH

if TYPE_CHECKING:
    import numpy as np

# words in a row, shared with an evaluation task, that make a document contaminated: as for GPT-3 (Brown et al. 2020,
# appendix C)
NGRAM = 13
EXCERPT_CHARACTERS = 300  # characters that the report shows of a removed document
EXAMPLES = 3  # removed documents that the report shows for each reason


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
SENTENCE_ENDS = ".!?。！？।؟"  # each of these characters ends a sentence; a text without them is one sentence


class Recipe(NamedTuple):
    """How the documents of a corpus become training text. The fields are the settings data.dedup, data.quality and so
    on of a run.

    Args:
        dedup: which duplicates within a corpus are removed: "near" (near and exact ones), "exact" or "none". A training
            document that resembles a held-out one is always removed.
        quality: the rules by which documents are removed: C4's (Raffel et al. 2020) or Gopher's (Rae et al. 2021, table
            A1 and section A.1), as datatrove implements them.
        decontaminate: a folder of evaluation tasks; documents that share NGRAM words in a row with a task are removed.
            "none": nothing is compared.
        compress: the tokens per character from which on a document is removed (Cramming: 0.25); 0: no limit.
        order: the order in which documents are read: "random", or sorted. short-first: by the number of tokens.
            prevalent-first: by the mean log-probability of a document's tokens under the corpus' unigram model
            (Cramming), the likeliest first. short-sentences-first: by the characters per sentence, as in Cramming's
            released recipe, which counts full stops. long-first, rare-first and long-sentences-first are the reverse.
        allow_errors: how many problems in the files (a bad line, a damaged file ...) are tolerated.
        substring: a stretch of text of this many characters or more is cut where it occurred before
            (data/substrings.py; Lee et al. 2022; Cramming: 50 to 100); 0: nothing is cut.
    """

    dedup: Dedup = "near"
    quality: Quality = "none"
    decontaminate: str = "none"
    compress: float = 0.0
    order: Order = "random"
    allow_errors: int = 0
    substring: int = 0


DEFAULT_RECIPE = Recipe()


def check_recipe(recipe: Recipe) -> None:
    """Raise ValueError where a setting of a corpus' recipe is wrong; the message names what is allowed. No document is
    read."""
    for name, kind in get_type_hints(Recipe).items():
        value, allowed = getattr(recipe, name), get_args(kind)
        if allowed and value not in allowed:
            raise ValueError(f"data.{name}={value} is not one of {', '.join(allowed)}")
    if not 0 <= recipe.compress < 10:
        raise ValueError(f"data.compress={recipe.compress}: tokens per character, such as 0.25; 0 for no limit")
    if recipe.substring and recipe.substring < MIN_LENGTH:
        raise ValueError(
            f"data.substring={recipe.substring}: {MIN_LENGTH} characters or more, such as 75; 0 for no cuts"
        )
    if recipe.allow_errors < 0:
        raise ValueError(f"data.allow_errors={recipe.allow_errors}: must not be negative")
    if recipe.decontaminate != "none" and not task_files(recipe.decontaminate):
        raise ValueError(f"data.decontaminate={recipe.decontaminate}: no .jsonl or .jsonl.gz below that folder")


def filter_names(recipe: Recipe) -> list[str]:
    """The names of the filters that a recipe applies to documents as they are read, in the order of their application:
    "c4", "gopher" and "decontaminate", or some of these."""
    filters = [] if recipe.quality == "none" else recipe.quality.split("+")
    return filters if recipe.decontaminate == "none" else [*filters, "decontaminate"]


class FilterStep:
    """A filter as a step of datatrove's pipeline. It removes training documents; held-out documents pass unchanged,
    except in the filter "duplicates". Each task of the pipeline reads one shard of the corpus, and writes its
    `step_report` to `folder`/<number of the task>.json.

    Args:
        name: the name of the filter.
        make: a function from the number of a task to the filter for that task.
        folder: the folder for the reports.
    """

    def __init__(self, name: str, make: Callable[[int], Callable[[Any], str]], folder: Path):
        self.name, self.make, self.folder = name, make, folder

    def __call__(self, documents: Any, rank: int, _: int) -> Iterator[Any]:
        reason_to_remove = self.make(rank)
        sizes_before, sizes_after = array("q"), array("q")  # UTF-8 bytes of each training document
        reasons: Counter[str] = Counter()
        examples, changed = [], 0
        for document in documents:
            if document.metadata["split"] == "valid" and self.name != "duplicates":
                yield document
                continue
            before, size = document.text, len(document.text.encode())
            training = document.metadata["split"] == "train"
            if training:  # held-out documents are not counted; they come here as duplicates only
                sizes_before.append(size)
            reason = reason_to_remove(document)
            if not reason:
                new_size = size if document.text is before else len(document.text.encode())
                changed += int(new_size != size)
                if training:
                    sizes_after.append(new_size)
                yield document
                continue
            reason += "" if training else ", held out"
            reasons[reason] += 1
            if reasons[reason] <= EXAMPLES:
                examples.append({"id": document.id, "why": reason, "text": before[:EXCERPT_CHARACTERS]})
        self.folder.mkdir(parents=True, exist_ok=True)
        report = step_report(self.name, sizes_before, sizes_after, reasons, examples, changed)
        (self.folder / f"{rank:05d}.json").write_text(json.dumps(report), "utf-8")


def step_report(
    step: str,
    sizes_before: Any,
    sizes_after: Any,
    reasons: dict[str, int] | None = None,
    examples: list[dict[str, str]] | None = None,
    changed: int = 0,
) -> dict[str, Any]:
    """The report on a step that removes or shortens training documents, as a JSON object.

    Args:
        step: the name of the step.
        sizes_before, sizes_after: [documents], the UTF-8 bytes of each training document before and after the step.
        reasons: {reason: number of documents removed for it}; None: no document was removed.
        examples: removed documents, each {"id", "why": the reason, "text": the beginning of the text}; None: no
            example.
        changed: the number of documents that were shortened.

    Returns {"step", "in" and "out": [documents, bytes], "changed", "reasons", "examples", "lengths": {"in" and "out":
    the `length_histogram` of the bytes}}. "in" means before the step, and "out" after it.
    """
    import numpy as np

    sides = {"in": sizes_before, "out": sizes_after}
    return {
        "step": step,
        **{side: [len(sizes), int(np.sum(sizes))] for side, sizes in sides.items()},
        "changed": changed,
        "reasons": reasons or {},
        "examples": examples or [],
        "lengths": {side: length_histogram(sizes) for side, sizes in sides.items()},
    }


def length_histogram(lengths: Any) -> dict[int, int]:
    """A histogram of positive lengths, {k: number of lengths from 2^k to 2^(k+1) - 1}. `lengths`: [documents]."""
    import numpy as np

    powers, counts = np.unique(np.frexp(lengths)[1] - 1, return_counts=True)
    return dict(zip(powers.tolist(), counts.tolist(), strict=True))


def summed_report(folder: Path) -> dict[str, Any]:
    """The sum of the reports that the tasks of a `FilterStep` have written to a folder, in the form of `step_report`.
    It has the first EXAMPLES examples of each reason."""
    import numpy as np

    reports = [json.loads(path.read_text("utf-8")) for path in sorted(folder.glob("*.json"))]
    reasons: Counter[str] = sum((Counter(report["reasons"]) for report in reports), Counter())
    examples: list[dict[str, str]] = []
    for example in (example for report in reports for example in report["examples"]):
        if sum(example["why"] == other["why"] for other in examples) < EXAMPLES:
            examples.append(example)
    lengths = {side: sum((Counter(report["lengths"][side]) for report in reports), Counter()) for side in ("in", "out")}
    return {
        "step": reports[0]["step"],
        **{side: np.sum([report[side] for report in reports], axis=0).tolist() for side in ("in", "out")},
        "changed": sum(report["changed"] for report in reports),
        "reasons": dict(sorted(reasons.items())),
        "examples": examples,
        "lengths": {
            side: {key: count for key, count in sorted(tally.items(), key=lambda item: int(item[0])) if count}
            for side, tally in lengths.items()
        },
    }


# Quality


def quality_filter(name: str, _: int) -> Callable[[Any], str]:
    """The filter with C4's rules (name="c4") or Gopher's (name="gopher"), made of datatrove's filters. The second
    argument, the number of the task, is not used."""
    from datatrove.pipeline.filters import C4QualityFilter, GopherQualityFilter, GopherRepetitionFilter
    from datatrove.pipeline.filters.base_filter import get_filter_result

    english = _english_tokenizer()
    if name == "c4":
        # 3 sentences and 5 words: with datatrove's 5 and 3, the paper's first version's, 96 of 667 genuine documents of
        # C4 would not have passed their own rules; with these 1 does not, and with 6 words 60 lose a line (measured).
        blocks = [C4QualityFilter(min_num_sentences=3, min_words_per_line=5, language=english)]
    else:
        blocks = [GopherRepetitionFilter(language=english), GopherQualityFilter(language=english)]

    def reason_to_remove(document: Any) -> str:
        for block in blocks:
            passes, reason = get_filter_result(block.filter(document))
            if not passes:
                return f"{name}: {reason}"
        return ""

    return reason_to_remove


def _english_tokenizer() -> Any:
    """A tokenizer for datatrove's filters, which splits English text into words and sentences by punctuation alone. It
    replaces datatrove's own tokenizers, which need spaCy, or NLTK with a download."""
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


def task_files(folder: str) -> dict[str, list[Path]]:
    """The files of each evaluation task below a folder: {task: paths}, sorted by the name of the task. The files are
    <task>/<split>.jsonl or .jsonl.gz; those whose names begin with "train" are left out."""
    root = Path(folder)
    files: dict[str, list[Path]] = {}
    for path in sorted([*root.rglob("*.jsonl"), *root.rglob("*.jsonl.gz")]):
        if not path.name.startswith("train"):
            files.setdefault(path.parent.relative_to(root).as_posix(), []).append(path)
    return dict(sorted(files.items()))  # paths are in another order than names: glue/cola before glue-x


def index_tasks(folder: str, index: Path) -> dict[str, Any]:
    """Write the hashes of the n-grams (NGRAM words in a row) of all evaluation tasks, to find them in a corpus.

    For each task a file of hashes is written, which datatrove's filter reads. The file rows.npy is for all tasks,
    uint64 [n-grams, 3]: the hash, the number of the task, and the number of the row in the task. A row is a line of the
    task's files, which is one evaluation item.

    Args:
        folder: the folder with the evaluation tasks, as for `task_files`.
        index: the folder for the hashes.

    Returns {task: {"rows": number of rows, "short": number of rows with fewer than NGRAM words}}. Short rows cannot be
    found in a corpus.
    """
    import numpy as np

    ngram_hashes = _ngram_hasher()
    index.mkdir(parents=True, exist_ok=True)
    row_counts, owners = {}, []
    for number, (task, paths) in enumerate(task_files(folder).items()):
        rows = short = 0
        hashes: set[int] = set()
        for path in paths:
            with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as file:  # type: ignore[operator]
                for line in file:
                    row_hashes = set(ngram_hashes(" ".join(_strings_in_json(json.loads(line)))))
                    owners += [(key, number, rows) for key in row_hashes]
                    hashes |= row_hashes
                    rows, short = rows + 1, short + int(not row_hashes)
        row_counts[task] = {"rows": rows, "short": short}
        np.array(sorted(hashes), np.uint64).tofile(index / f"{task.replace('/', '|')}.index.hashes")
    np.save(index / "rows.npy", np.array(owners, np.uint64).reshape(-1, 3))
    return row_counts


def count_contaminated(row_counts: dict[str, Any], index: Path) -> dict[str, Any]:
    """Count the rows of each evaluation task that the corpus contains. `row_counts`: the result of `index_tasks`;
    `index`: the folder with the files of `index_tasks` and `decontamination_filter`.

    Returns `row_counts` with two further entries for each task: "found", the number of its rows that occur in the
    corpus; and "documents", the number of documents that contain such a row.
    """
    import numpy as np

    hits = [json.loads(path.read_text("utf-8")) for path in sorted(index.glob("hits-*.json"))]
    shared = np.array(sorted({key for hit in hits for key in hit["keys"]}), np.uint64)
    owners = np.load(index / "rows.npy")
    found_rows = np.unique(owners[np.isin(owners[:, 0], shared)][:, 1:], axis=0)
    documents: Counter[str] = sum((Counter(hit["documents"]) for hit in hits), Counter())
    return {
        task: counts | {"found": int((found_rows[:, 0] == number).sum()), "documents": documents[task]}
        for number, (task, counts) in enumerate(row_counts.items())
    }


def decontamination_filter(index: Path, rank: int) -> Callable[[Any], str]:
    """The filter that removes documents that share an n-gram with an evaluation task. The reason that it returns is the
    names of these tasks. It also writes the hashes of all shared n-grams to hits-<rank>.json, for `count_contaminated`.
    `index`: the folder with the hashes that `index_tasks` has written; `rank`: the number of the pipeline's task."""
    import numpy as np
    from datatrove.pipeline.decont.n_grams import NGramsDecontConfig, NGramsDecontFilter

    block = NGramsDecontFilter(str(index), config=NGramsDecontConfig(n_grams=NGRAM), language=_english_tokenizer())
    block.load_index_hashes()
    owners = np.load(index / "rows.npy")
    names = sorted(path.name.removesuffix(".index.hashes").replace("|", "/") for path in index.glob("*.index.hashes"))
    order = np.argsort(owners[:, 0], kind="stable")
    keys, task_numbers = owners[order, 0], owners[order, 1]
    ngram_hashes = _ngram_hasher()
    hits: set[int] = set()
    documents: Counter[str] = Counter()
    hits_file = index / f"hits-{rank:05d}.json"
    hits_file.write_text(json.dumps({"keys": [], "documents": {}}), "utf-8")

    def reason_to_remove(document: Any) -> str:
        shared = {key for key in ngram_hashes(document.text) if key in block._index_hashes}
        if not shared:
            return ""
        hashes = np.array(list(shared), np.uint64)
        first, last = np.searchsorted(keys, hashes), np.searchsorted(keys, hashes, "right")
        tasks = sorted({names[number] for a, b in zip(first, last, strict=True) for number in task_numbers[a:b]})
        hits.update(shared)
        documents.update(tasks)
        hits_file.write_text(json.dumps({"keys": sorted(hits), "documents": documents}), "utf-8")
        return ", ".join(tasks)

    return reason_to_remove


def _ngram_hasher() -> Callable[[str], list[int]]:
    """A function from a text to the hashes of its n-grams of NGRAM words, as datatrove's filter computes them."""
    from datatrove.pipeline.decont.n_grams import NGramsDecontConfig
    from datatrove.utils.hashing import create_hash_func
    from datatrove.utils.text import ngrams, simplify_text

    config = NGramsDecontConfig(n_grams=NGRAM)
    hash_of = create_hash_func(config.hash_config)
    return lambda text: [
        hash_of(" ".join(ngram)) for ngram in ngrams(simplify_text(text, config.norm_config).split(), NGRAM)
    ]


def _strings_in_json(value: Any) -> Iterator[str]:
    """Yield all strings within a JSON value, except the keys of objects."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for element in value.values() if isinstance(value, dict) else value:
            yield from _strings_in_json(element)


# Filter and order of tokenized documents


def dense_documents(tokens: np.ndarray, characters: np.ndarray, limit: float) -> np.ndarray:
    """Whether each document has `limit` tokens per character or more (Cramming's filter): bool [documents]; all False
    for limit=0. `tokens`, `characters`: [documents], the number of tokens and of characters of each document."""
    import numpy as np

    return tokens >= limit * characters if limit else np.zeros(len(tokens), bool)


def document_order(
    order: str, flat: np.ndarray, starts: np.ndarray, lengths: np.ndarray, sentence_lengths: np.ndarray
) -> np.ndarray:
    """The order in which documents are to be read: int64 [documents], their indices in `starts` and `lengths`, the
    first one to read first. Documents with equal sort keys keep their order.

    Args:
        order: the setting data.order, see `Recipe`.
        flat: the tokens of all documents, one after another.
        starts: [documents], where each document begins in `flat`.
        lengths: [documents], the number of tokens of each document.
        sentence_lengths: [documents], the mean number of characters of a document's sentences.
    """
    import numpy as np

    if order == "random":
        return np.arange(len(lengths))
    if order in ("short-first", "long-first"):
        keys = lengths.astype(np.float64)
    elif order in ("short-sentences-first", "long-sentences-first"):
        keys = sentence_lengths
    else:
        vocab = int(flat.max()) + 1 if len(flat) else 1
        block = 1 << 24
        counts = sum(
            (np.bincount(flat[i : i + block], minlength=vocab) for i in range(0, len(flat), block)),
            np.zeros(vocab, np.int64),
        )
        logs = np.log(np.maximum(counts, 1) / counts.sum())
        keys = -np.array([logs[flat[a : a + n]].mean() for a, n in zip(starts, lengths, strict=True)])
    descending = order in ("long-first", "rare-first", "long-sentences-first")
    return np.argsort(-keys if descending else keys, kind="stable")
