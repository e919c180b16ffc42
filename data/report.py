"""Writes the report on the preparation of a corpus, report.md and report.json: how much text each step kept, which
documents it removed, and why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from data.coverage import Coverage
from data.dedup import SHINGLE
from data.filters import NGRAM, Recipe, length_histogram

EXAMPLES_SHOWN = 6  # removed documents of each step in report.md; report.json has all examples
NOTED_SHARE = 0.01  # the largest share, of documents without a signature or of unknown tokens, without a note; untuned


def notes(
    name: str, recipe: Recipe, steps: list[dict[str, Any]], text: dict[str, Any], covered: Coverage, lost: int
) -> list[str]:
    """Sentences that the user should read: on settings without effect, tolerated problems, records that are no
    documents, documents too short to be compared, and text for which the tokenizer has no pieces.

    Args:
        name: the name of the corpus.
        recipe: the recipe of the corpus.
        steps: the `filters.step_report` of each step.
        text: the manifest of the text, from `prepared_text`.
        covered: the coverage of the held-out text by the tokenizer.
        lost: a lower bound of the bytes of held-out text that the tokenizer changes or drops before it splits the text
            into pieces.
    """
    sentences = []
    for step in steps:
        setting = f"dedup={recipe.dedup}" if step["step"] == "duplicates" else step["step"]
        if setting != "dedup=none" and step["in"] == step["out"] and not step["changed"] and not step.get("moved"):
            sentences.append(f"{name}: {setting} {'moved' if 'moved' in step else 'removed'} nothing")
    if text["problems"]:
        sentences.append(
            f"{name}: {len(text['problems'])} problems in the files, allowed by data.allow_errors; the report "
            "names them"
        )
    sentences += [f"{name}: {count} records were {kind} and are no documents" for kind, count in text["read"].items()]
    if text["unsigned"] > NOTED_SHARE * compared_documents(text):
        sentences.append(f"{name}: {_unsigned_sentence(text)}")
    if covered.unknown_share > NOTED_SHARE:
        sentences.append(
            f"{name}: {covered.unknown_share:.1%} of the tokens of held-out text are unknown, for "
            f"{covered.unknown_byte_share:.1%} of its bytes: the tokenizer has no pieces for them, and a model that "
            "predicts an unknown token has not predicted the text"
        )
    if (share := lost / max(covered.bytes, 1)) > NOTED_SHARE:
        sentences.append(
            f"{name}: the tokenizer changes or drops at least {share:.1%} of the bytes of held-out text (case, "
            "accents, line ends, repeated spaces). Bits per byte are over all bytes, and so too low: compare them with "
            "those of runs with this tokenizer alone"
        )
    return sentences


def compared_documents(text: dict[str, Any]) -> int:
    """The number of documents that were compared with each other to find duplicates, removed copies included. `text`:
    the manifest of the text, from `prepared_text`."""
    return sum(text[split]["documents"] for split in ("train", "valid")) + sum(text["duplicates"].values())


def _unsigned_sentence(text: dict[str, Any]) -> str:
    """A sentence on the number of documents that are too short for a MinHash signature. `text`: the manifest of the
    text, from `prepared_text`."""
    return (
        f"{text['unsigned']:,} of {compared_documents(text):,} documents are shorter than {SHINGLE} words, or "
        "characters where there are no spaces: of these only copies to the letter are found"
    )


def write_report(
    folder: Path, name: str, recipe: Recipe, text: dict[str, Any], tokens: dict[str, Any], lengths: Any, source: Path
) -> None:
    """Write report.md and report.json about the preparation of a corpus.

    Args:
        folder: the folder for the two files.
        name: the name of the corpus.
        recipe: the recipe of the corpus.
        text: the manifest of the text, from `prepared_text`.
        tokens: the manifest of the token files, from `encode.prepared_tokens`.
        lengths: [documents], the number of tokens of each training document.
        source: the folder of the text.
    """
    rate = tokens["train"] / tokens["bytes"]  # tokens per byte of the training text that is left
    content = {
        "corpus": name,
        "recipe": recipe._asdict(),
        "text": source.name,
        "sha256": text["sha256"],
        "problems": text["problems"],
        "read": text["read"],
        "notes": tokens["notes"],
        "unsigned": _unsigned_sentence(text),
        "covered": tokens["covered"],
        "steps": [
            step | {"tokens": {side: _token_count(tokens, step[side], rate) for side in ("in", "out")}}
            for step in tokens["steps"]
        ],
        "left": {"documents": tokens["documents"], "bytes": tokens["bytes"], "tokens": tokens["train"]},
        "valid": text["valid"] | {"tokens": tokens["valid"]},
        "domains": tokens["domains"],
        "tasks": text["tasks"],
        "tokens_per_document": length_histogram(lengths),
    }
    (folder / "report.json").write_text(json.dumps(content, indent=1), "utf-8")
    (folder / "report.md").write_text(_markdown(content), "utf-8")


def _token_count(manifest: dict[str, Any], counts: list[int], rate: float) -> dict[str, Any]:
    """The number of tokens of the training text before or after a step: {"count": int, "estimated": bool}. The count of
    the final text is exact. The count of an earlier text is estimated from its bytes, since removed text is never
    tokenized.

    `manifest`: the manifest of the token files; `counts`: [documents, bytes] of the text; `rate`: tokens per byte.
    """
    exact = counts == [manifest["documents"], manifest["bytes"]]
    return {"count": manifest["train"] if exact else round(counts[1] * rate), "estimated": not exact}


def _markdown(content: dict[str, Any]) -> str:
    recipe = ", ".join(f"{key}={value}" for key, value in content["recipe"].items())
    lines = [f"# {content['corpus']}", "", f"Recipe: {recipe}.", ""]
    lines += [f"Text: {content['text']}, sha256 {content['sha256']}.", ""]
    if content["notes"]:
        lines += [*(f"* {note}" for note in content["notes"]), ""]
    lines += [*_steps_table(content), *_left_out_sentences(content)]
    if content["problems"]:
        lines += ["## Problems in the files", "", *(f"* {problem}" for problem in content["problems"]), ""]
    if content["tasks"]:
        lines += _evaluation_tasks_table(content)
    lines += [*_domains_table(content), *_lengths_table(content), *_removed_examples(content)]
    return "\n".join(lines) + "\n"


# The sections of report.md. Each function returns lines of Markdown, made from the content of report.json.


def _steps_table(content: dict[str, Any]) -> list[str]:
    """A table of the documents that each step kept, and of its reasons for removing documents."""
    lines = [
        "## Steps",
        "",
        "Training documents. Tokens with ≈ are bytes times the tokens per byte of what is left.",
        "",
        "| step | documents in | out | bytes in | out | tokens in | out | why |",
        "|---|--:|--:|--:|--:|--:|--:|---|",
    ]
    for step in content["steps"]:
        tokens = [
            ("≈ " if step["tokens"][side]["estimated"] else "") + f"{step['tokens'][side]['count']:,}"
            for side in ("in", "out")
        ]
        changes = [f"{reason}: {count:,}" for reason, count in step["reasons"].items()]
        changes += [f"{step['changed']:,} documents shortened"] if step["changed"] else []
        changes += [f"{step['moved']:,} documents moved"] if "moved" in step else []
        lines.append(
            f"| {step['step']} | {step['in'][0]:,} | {step['out'][0]:,} | {step['in'][1]:,} | "
            f"{step['out'][1]:,} | {tokens[0]} | {tokens[1]} | {'; '.join(changes) or 'nothing'} |"
        )
    return [*lines, ""]


def _left_out_sentences(content: dict[str, Any]) -> list[str]:
    """Sentences on how much text is left for training, and how much is held out."""
    left, valid, covered = content["left"], content["valid"], content["covered"]
    return [
        f"Left for training: {left['documents']:,} documents, {left['bytes']:,} bytes, {left['tokens']:,} tokens.",
        f"Held out: {valid['documents']:,} documents, {valid['bytes']:,} bytes, {valid['tokens']:,} tokens, "
        f"{covered['unknown']:,} of them unknown, for {covered['unknown_bytes']:,} bytes.",
        f"Near duplicates: {content['unsigned']}.",
        "",
    ]


def _evaluation_tasks_table(content: dict[str, Any]) -> list[str]:
    """A table of how many rows of each evaluation task the corpus contains."""
    rows = [
        f"| {task} | {row['rows']:,} | {row['short']:,} | {row['found']:,} | {row['documents']:,} |"
        for task, row in content["tasks"].items()
    ]
    return [
        "## Evaluation tasks",
        "",
        f"Rows that share {NGRAM} words in a row with a training document.",
        "",
        "| task | rows | too short to tell | found | documents removed |",
        "|---|--:|--:|--:|--:|",
        *rows,
        "",
    ]


def _domains_table(content: dict[str, Any]) -> list[str]:
    """A table of the documents, bytes and tokens of each domain."""
    rows = [
        f"| {domain or 'all'} | {documents:,} | {size:,} | {tokens:,} | {tokens / max(size, 1):.4f} | "
        f"{tokens / max(words, 1):.3f} |"
        for domain, (documents, size, words, tokens) in sorted(content["domains"].items())
    ]
    head = ["| domain | documents | bytes | tokens | per byte | per word |", "|---|--:|--:|--:|--:|--:|"]
    return ["## Tokens", "", *head, *rows, ""]


def _lengths_table(content: dict[str, Any]) -> list[str]:
    """A table with the histograms of the training documents' lengths, before and after all steps."""
    first = content["steps"][0]["lengths"]["in"] if content["steps"] else {}
    results = [step["lengths"]["out"] for step in content["steps"] if step["lengths"]["out"]]
    last: dict[Any, int] = results[-1] if results else {}
    before, after = ({int(key): count for key, count in histogram.items()} for histogram in (first, last))
    tokens = content["tokens_per_document"]
    rows = [
        f"| {2**key:,} | {before.get(key, 0):,} | {after.get(key, 0):,} | {tokens.get(key, 0):,} |"
        for key in sorted(before.keys() | after.keys() | tokens.keys())
    ]
    return [
        "## Lengths",
        "",
        "Training documents by their length, before and after the steps.",
        "",
        "| from | bytes, before | bytes, after | tokens |",
        "|--:|--:|--:|--:|",
        *rows,
    ]


def _removed_examples(content: dict[str, Any]) -> list[str]:
    """A list of some of the documents that each step removed, with the beginning of their text."""
    lines = []
    for step in content["steps"]:
        if step["examples"]:
            lines += ["", f"## Removed by {step['step']}", ""]
            for example in step["examples"][:EXAMPLES_SHOWN]:
                start = " ".join(example["text"].split())[:160]
                lines.append(f"* `{example['id']}` ({example['why']}): {start}")
    return lines
