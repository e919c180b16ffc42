"""Section: the sources of the training texts, where a corpus is a blend or lies in the user's own files.

It is made from run.json and eval.json alone. With it a reader who has the source files can make the same training text
again. Absolute paths are cut to their ends.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from ablations.document.blocks import Block, Code, Section, Table
from ablations.safe_files import first_misfit
from ablations.values import join_names
from eval.report.comparison.findings import Findings
from eval.report.reading.runs import NUMBER, in_one_line
from eval.report.reading.short_names import shortest_ends

TITLE = "Corpora"
PART = {"corpus": str, "weight": NUMBER, "tokens": int, "documents?": int}
SOURCE = {"files": int, "bytes": int, "sha256": str, "names?": list}
BLEND_FILE = {"blend?": (list, dict), "alpha?": NUMBER, "sources?": dict}
SHOWN_DIGITS = 16  # of a sha256 in a table; the record's run.json has all
NAMED = re.compile(r"\w+(:\w+)?")  # a corpus of data/corpora: all copies of this code have its specification
WORDS = """\
What the training text was made of. Share: of the tokens of a run. Documents and tokens are those there are to read,
after duplicates and filters; epochs say how often a run reads them. sha256: of the source's files, by their names and
contents ("packages": installed packages, by their versions)."""


class Part(NamedTuple):
    """One source of a training text."""

    source: str  # its name or path
    share: float  # of the tokens of a run
    tokens: int  # that there are
    documents: int | None  # None where it was not recorded
    epochs: float | None  # how often a run reads it; None where a wall clock ended the run
    identity: dict[str, Any] | None  # its files: {"files", "bytes", "sha256", "names"}; None: packages, or unknown
    packages: bool  # whether it is read from installed packages


class Text(NamedTuple):
    """A training text, its parts, and the arms that read it."""

    corpus: str
    sha256: str
    arms: list[str]
    parts: list[Part]


def composition_section(findings: Findings) -> Section:
    texts = training_texts(findings)
    corpora = {name for text in texts for name in [text.corpus, *(part.source for part in text.parts)]}
    corpora |= set(evaluated_corpora(findings)) | {name for name, _ in trained_tokenizers(findings)}
    if all(NAMED.fullmatch(name) for name in corpora) and all(len(text.parts) < 2 for text in texts):
        return Section(TITLE, [])
    rows = [row for text in texts for row in rows_of_sources(text)]
    blocks: list[Block] = []
    if rows:
        head = ["trained on", "made of", "share", "documents", "tokens", "epochs", "files", "sha256"]
        blocks += [WORDS, Table(head, rows)]
    hashes = [f"* {text.corpus}, in {join_names(text.arms)}: {text.sha256}" for text in texts]
    blocks += ["sha256 of each training text, as it was prepared:", "\n".join(hashes)] if hashes else []
    if tokenizers := trained_tokenizers(findings):
        blocks.append("\n".join(f"* Tokenizer: {words}" for _, words in tokenizers))
    if files := blend_files(findings, texts):
        blocks += ["The blends as files, with which the same text can be made again:", Code("\n\n".join(files))]
    if table := held_out_table(findings):
        blocks += ["Held-out text, on which all runs were judged:", table]
    return Section(TITLE, blocks)


def names_shown(findings: Findings) -> Callable[[str], str]:
    """Make a function that shortens names for the report: absolute paths of corpora and tokenizers are cut to their
    ends, other names stay."""
    names: set[str] = set()
    for run in findings.runs:
        config, data = run["config"], run["data"]
        values = [*config["data"].values(), *config["eval"]["corpora"], data["tokenizer"]["corpus"]]
        values += [entry["corpus"] for entry in list_or_empty(data, "train") if not first_misfit(entry, PART)]
        for key in ("sources", "corpora"):
            values += data[key] if isinstance(data.get(key), dict) else ()
        names |= {value for value in values if isinstance(value, str)}
    ends = shortest_ends(sorted(names))
    return lambda name: in_one_line(ends.get(name, name) if Path(name).is_absolute() else name)


def training_texts(findings: Findings) -> list[Text]:
    """The training texts of a study, each with the arms that read it, in the order of the arms."""
    shown = names_shown(findings)
    texts: dict[tuple[str, str], Text] = {}
    for arm, seeds in findings.cells_with_entry("run").items():
        for cell in seeds.values():
            data = cell["run"]["data"]
            corpus = shown(cell["run"]["config"]["data"]["corpus"])
            text = texts.setdefault(
                (corpus, data["sha256"]), Text(corpus, data["sha256"], [], parts_of_text(data, shown))
            )
            if arm not in text.arms:
                text.arms.append(arm)
    return list(texts.values())


def parts_of_text(data: dict[str, Any], shown: Callable[[str], str]) -> list[Part]:
    """The sources of a run's training text; [] where run.json lists none. `data`: the entry "data" of run.json;
    `shown`: a function from `names_shown`."""
    entries = [entry for entry in list_or_empty(data, "train") if not first_misfit(entry, PART)]
    epochs = {
        entry["corpus"]: entry.get("epochs")
        for entry in list_or_empty(data, "epochs")
        if not first_misfit(entry, {"corpus": str, "epochs?": NUMBER})
    }
    sources = data.get("sources")
    sources = sources if isinstance(sources, dict) else {}
    parts = []
    for entry in entries:
        name = entry["corpus"]
        identity = sources.get(name)
        documents = entry.get("documents", documents_after_steps(data, name))
        known = identity if not first_misfit(identity, SOURCE) else None
        packages = name in sources and identity is None
        source = shown(name)
        parts.append(Part(source, entry["weight"], entry["tokens"], documents, epochs.get(name), known, packages))
    return parts


def documents_after_steps(data: dict[str, Any], source: str) -> int | None:
    """The number of documents of a source that were left after its preparation, in the form that earlier versions
    record; None where it is unknown. `data`: the entry "data" of run.json; `source`: the name of the source in
    `data`."""
    steps = [step for step in list_or_empty(data, "steps") if not first_misfit(step, {"corpus": str, "out": list})]
    counts = [step["out"][0] for step in steps if step["corpus"] == source and step["out"]]
    return counts[-1] if counts and isinstance(counts[-1], int) else None


def list_or_empty(data: dict[str, Any], key: str) -> list[Any]:
    """The list under a key of a dictionary from an untrusted file; [] where there is no list."""
    value = data.get(key)
    return value if isinstance(value, list) else []


def rows_of_sources(text: Text) -> list[list[str]]:
    """The rows of the table of sources for one training text, a row for each source."""
    rows = []
    for part in text.parts:
        identity = part.identity or {}
        files = "packages" if part.packages else f"{identity['files']:,}" if identity else "unknown"
        rows.append(
            [
                text.corpus,
                "itself" if part.source == text.corpus else part.source,
                f"{part.share:.2%}",
                "unknown" if part.documents is None else f"{part.documents:,}",
                f"{part.tokens:,}",
                "-" if part.epochs is None else f"{part.epochs:.3g}",
                files,
                in_one_line(identity.get("sha256", "-"))[:SHOWN_DIGITS],
            ]
        )
    return rows


def trained_tokenizers(findings: Findings) -> list[tuple[str, str]]:
    """The distinct tokenizers of the runs: [(corpus that it was trained on, or its file; description)]."""
    shown = names_shown(findings)
    tokenizers: dict[str, tuple[str, str]] = {}
    for run in findings.runs:
        tokenizer, data = run["data"]["tokenizer"], run["config"]["data"]
        name, kind = shown(tokenizer["corpus"]), in_one_line(data.get("tokenizer_kind", "bpe"))
        origin = f"the file {name}" if kind == "file" else f"{kind}, trained on {name}"
        words = f"{origin}, {tokenizer['vocab']:,} pieces, sha256 {in_one_line(tokenizer['sha256'])}"
        tokenizers.setdefault(words, (name, words))
    return list(tokenizers.values())


def evaluated_corpora(findings: Findings) -> list[str]:
    """The distinct corpora on which the runs are evaluated (setting eval.corpora), by the names that the report
    shows."""
    shown = names_shown(findings)
    names = (name for run in findings.runs for name in run["config"]["eval"]["corpora"])
    return list(dict.fromkeys(shown(str(name)) for name in names))


def blend_files(findings: Findings, texts: list[Text]) -> list[str]:
    """The blends of corpora that the runs read, each as the text of a blend file. The text has the weights as they were
    declared, where run.json has these; else the shares of the tokens that they came to. `texts`: the training texts of
    the study."""
    shown = names_shown(findings)
    files: dict[str, str] = {}
    for run in findings.runs:
        recorded = run["data"].get("corpora")
        for name, entry in recorded.items() if isinstance(recorded, dict) else ():
            if not first_misfit(entry, BLEND_FILE) and (blend := entry.get("blend")):
                parts = {shown(str(part)): blend[part] for part in blend} if isinstance(blend, dict) else None
                content = parts or [shown(str(part)) for part in blend]
                files.setdefault(shown(name), blend_file(shown(name), content, entry.get("alpha")))
    for text in texts:
        if len(text.parts) > 1:
            weights = {part.source: part.share for part in text.parts}
            files.setdefault(text.corpus, blend_file(text.corpus, weights, None, "with the weights that it came to"))
    return list(files.values())


def blend_file(name: str, blend: Any, alpha: Any, remark: str = "") -> str:
    """The text of a blend's file, whose entries are JSON, which YAML contains. `blend`: {source: weight}, or a list of
    sources; `alpha`: the entry "alpha", None where the blend has none; `remark`: a comment."""
    lines = [
        f"# {in_one_line(name)}{f', {remark}' if remark else ''}",
        f"blend: {json.dumps(blend, ensure_ascii=False)}",
    ]
    return "\n".join([*lines, *([] if alpha is None else [f"alpha: {json.dumps(alpha)}"])])


def held_out_table(findings: Findings) -> Table | None:
    """A table of the held-out text of each corpus, from the evaluations; None where no run is evaluated."""
    rows: dict[str, list[str]] = {}
    for seeds in findings.cells_with_entry("eval").values():
        for cell in seeds.values():
            for task, entry in cell["eval"]["tasks"].items():
                if entry["metric"] == "bits_per_byte":
                    groups = entry.get("clusters")
                    items = f"{entry['n']:,}{f' in {groups:,} groups' if isinstance(groups, int) else ''}"
                    size = f"{entry['bytes']:,}" if isinstance(entry.get("bytes"), int) else "unknown"
                    digest = in_one_line(entry.get("items_sha256", "unknown"))[:SHOWN_DIGITS]
                    rows.setdefault(f"{task} {digest}", [task.rpartition("/")[0], items, size, digest])
    head = ["held out of", "items (documents, long ones in parts)", "bytes", "sha256 of the items"]
    return Table(head, list(rows.values())) if rows else None


def texts_for_record(findings: Findings) -> list[dict[str, Any]]:
    """The training texts of a study and their sources for the record's run.json, a dictionary for each text."""
    return [
        {
            "corpus": text.corpus,
            "sha256": text.sha256,
            "arms": text.arms,
            "sources": [
                part._asdict() | {"identity": part.identity or ("packages" if part.packages else None)}
                for part in text.parts
            ],
        }
        for text in training_texts(findings)
    ]
