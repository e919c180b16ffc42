"""Prepares a corpus for training, as folders of three kinds in the store (data/store.py).

    text       train/*.jsonl, valid.jsonl.gz      read, filtered, deduplicated and split (data/text.py)
    tokenizer  tokenizer.model or .json           trained on the training text, or a copy (data/encode.py)
    tokens     train.bin, train.idx, report.md    in Megatron's format, with end-of-document tokens (data/encode.py)

As a command: python -m data.prepare --help
"""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Collection
from pathlib import Path
from typing import Any, NoReturn

from data import answers, execute, filters
from data import corpus as corpora
from data.coverage import Coverage
from data.disk import explained_write_errors, unwritable_message
from data.encode import prepared_tokenizer, prepared_tokens
from data.execute import THIS_MACHINE, Executor
from data.filters import DEFAULT_RECIPE, Recipe
from data.readers import EXTENSIONS
from data.sources import MissingData
from data.store import Store, digest
from data.text import prepared_text, source_identity
from data.tokenizer import KINDS, SMALLEST_VOCAB
from data.wordpiece import MIN_VOCAB

INTERRUPTED = 130  # exit code after Ctrl-C, as a shell has it

STEP_KEYS = ("step", "in", "out", "changed", "moved", "reasons")  # entries of a report on a step that run.json records


def prepare(
    corpus: str,
    tokenizer: str,
    vocab: int,
    store: Path,
    kind: str = "bpe",
    recipe: Recipe = DEFAULT_RECIPE,
    executor: Executor = THIS_MACHINE,
    build: bool = True,
    mask: bool = False,
) -> dict[str, Any]:
    """Prepare a corpus for training: its text, a tokenizer, and token files. What the store already has is not built
    again. Several processes may prepare data in the same store at once.

    Of duplicate documents a held-out one is kept, or the first where none is held out. Duplicates are searched for
    within each component of a blend.

    Args:
        corpus: the name of a corpus, or a file, folder or glob, as for `data.corpus.load_specification`.
        tokenizer: the corpus on whose training text the tokenizer is trained, given like `corpus`; with kind="file" the
            path of an existing tokenizer, as for `data.tokenizer.read_tokenizer`.
        vocab: the number of the tokenizer's pieces.
        store: the folder of prepared data.
        kind: the kind of tokenizer, one of `data.tokenizer.KINDS`.
        recipe: filters and order of the corpus. The text that the tokenizer is trained on is prepared by the default
            recipe, so that arms with different recipes share the tokenizer.
        executor: where the tasks run.
        build: whether missing data may be built.
        mask: whether the tokenizer must have an id for a masked token (`data.tokenizer.mask_id`); kind="byte-bpe" is
            then trained with one, the other kinds have one anyway.

    Returns a manifest, a dictionary that can be written as JSON. A component is a corpus of a blend, or the corpus
    itself where it is no blend.
        corpus, recipe: the arguments
        sha256: a hash of the training and validation text, and of the recipe's changes to the token files
        train: [{prefix (path of .bin and .idx without extension), weight, corpus, tokens, documents, bytes}], an entry
            for each component; the weights add up to 1
        valid: [path of the .jsonl.gz file of each component, a line {text, id, metadata} for each held-out document]
        sources: {component: {files, bytes, sha256, names} of its files, see `source_identities`}
        tokenizer: {path, sha256, vocab, corpus, kind, lossless, eod, mask, specials}, see `tokenizer_base.Tokenizer`
        counts: train and valid: {documents, bytes (of UTF-8), tokens (end-of-document tokens included)}; duplicates:
            {exact, near}, the documents removed as copies; unsigned: the number of documents too short for a MinHash
            signature; covered: the `Coverage` of the validation text
        steps: [{corpus, step, in, out, ...}], the entries STEP_KEYS of each `filters.step_report`
        reports: [path of the report.md of each component]
        notes: [a sentence for each thing that the user should know, such as a filter that removed nothing]
        mismatch: [a sentence for each component whose text has another sha256 than its specification records]

    Raises:
        ValueError: an argument is wrong; where possible this is found before any work. The message names what is
            allowed.
        MissingData: something is not in the store, and `build` is false.
        Unwritable: the store cannot be written.
    """
    with explained_write_errors(Path(store)):
        return _prepare(corpus, tokenizer, vocab, Store(Path(store), executor, build), kind, recipe, mask)


def _prepare(
    corpus: str, tokenizer: str, vocab: int, store: Store, kind: str, recipe: Recipe, mask: bool
) -> dict[str, Any]:
    _check_request(corpus, tokenizer, vocab, store, kind, recipe)
    default_recipe = Recipe(allow_errors=recipe.allow_errors)
    model, trained = prepared_tokenizer(tokenizer, vocab, kind, default_recipe, store, mask)
    spec = corpora.load_specification(corpus, store.path)
    weights = spec.get("blend", {corpus: 1.0})
    texts = {name: prepared_text(name, recipe, store) for name in weights}
    token_files = {
        name: prepared_tokens(name, folder, manifest, model, trained["sha256"], recipe, store)
        for name, (folder, manifest) in texts.items()
    }
    text_manifests = {name: manifest for name, (_, manifest) in texts.items()}
    token_manifests = {name: manifest for name, (_, manifest) in token_files.items()}
    if spec.get("alpha") is not None:
        sizes = {name: manifest["train"] ** spec["alpha"] for name, manifest in token_manifests.items()}
        weights = {name: size / sum(sizes.values()) for name, size in sizes.items()}
    shas = [manifest["sha256"] for manifest in text_manifests.values()]
    if recipe.compress or recipe.order != "random":
        shas = [digest([sha, recipe.compress, recipe.order]) for sha in shas]
    mismatch = [manifest["mismatch"] for manifest in text_manifests.values() if manifest["mismatch"]]
    for sentence in mismatch:
        warnings.warn(sentence, stacklevel=2)
    return {
        "corpus": corpus,
        "recipe": recipe._asdict(),
        "sha256": shas[0] if len(shas) == 1 else digest([shas, list(weights.values())]),
        "train": [
            {
                "prefix": str(folder / "train"),
                "weight": weights[name],
                "corpus": name,
                "tokens": manifest["train"],
                "documents": manifest["documents"],
                "bytes": manifest["bytes"],
            }
            for name, (folder, manifest) in token_files.items()
        ],
        "valid": [str(folder / "valid.jsonl.gz") for folder, _ in texts.values()],
        "sources": {name: manifest["source"] for name, manifest in text_manifests.items()},
        "tokenizer": {
            "path": str(model),
            "sha256": trained["sha256"],
            "vocab": vocab,
            "corpus": tokenizer,
            "kind": kind,
            **{name: trained[name] for name in ("lossless", "eod", "mask", "specials")},
        },
        "counts": _counts(text_manifests.values(), token_manifests.values()),
        "steps": [
            {"corpus": name, **{key: step[key] for key in STEP_KEYS if key in step}}
            for name, manifest in token_manifests.items()
            for step in manifest["steps"]
        ],
        "reports": [str(folder / "report.md") for folder, _ in token_files.values()],
        "notes": _notes(text_manifests, token_manifests, trained["unexportable"]),
        "mismatch": mismatch,
    }


def _notes(texts: dict[str, dict[str, Any]], token_files: dict[str, dict[str, Any]], unexportable: str) -> list[str]:
    """The entry "notes" of the manifest of `prepare`. `texts`, `token_files`: {component: manifest} of its text and of
    its token files; `unexportable`: why a run with the tokenizer cannot be exported, or ""."""
    return [
        *(f"{name}: {sentence}" for name, manifest in texts.items() for sentence in manifest["left_out"]),
        *(note for manifest in token_files.values() for note in manifest["notes"]),
        *([f"a run cannot be exported: {unexportable}"] if unexportable else []),
    ]


def _check_request(corpus: str, tokenizer: str, vocab: int, store: Store, kind: str, recipe: Recipe) -> None:
    """Check the arguments of `prepare` as far as is possible without preparing anything. Raises ValueError where an
    argument is wrong."""
    for name in (corpus, tokenizer) if kind != "file" else (corpus,):
        corpora.check(name, store.path)
    if kind not in KINDS:
        raise ValueError(f"a tokenizer of kind {kind!r}: there are {', '.join(KINDS)}")
    filters.check_recipe(recipe)
    execute.check_executor(store.executor)
    smallest = {"file": 0, "wordpiece": MIN_VOCAB}.get(kind, SMALLEST_VOCAB)
    if vocab < smallest:
        raise ValueError(f"model.vocab={vocab} is too small: at least {smallest}")


def _counts(texts: Collection[dict[str, Any]], token_files: Collection[dict[str, Any]]) -> dict[str, Any]:
    """The entry "counts" of the manifest of `prepare`, summed over all components. `texts`: the manifests of their
    texts; `token_files`: the manifests of their token files."""
    coverage = sum((Coverage(**tokens["covered"]) for tokens in token_files), Coverage(0, 0, 0, 0))
    return {
        "train": {  # of the token files: data.compress leaves out documents once they are tokens
            "documents": sum(tokens["documents"] for tokens in token_files),
            "bytes": sum(tokens["bytes"] for tokens in token_files),
            "tokens": sum(tokens["train"] for tokens in token_files),
        },
        "valid": {
            "documents": sum(text["valid"]["documents"] for text in texts),
            "bytes": sum(text["valid"]["bytes"] for text in texts),
            "tokens": sum(tokens["valid"] for tokens in token_files),
        },
        "unsigned": sum(text["unsigned"] for text in texts),
        "covered": coverage._asdict(),
        "duplicates": {kind: sum(text["duplicates"][kind] for text in texts) for kind in ("exact", "near")},
    }


def source_identities(corpus: str, store: Path) -> dict[str, Any]:
    """The identity of the files of a corpus as they are now, to find out whether they changed. `corpus`: as for
    `prepare`; `store`: the folder of prepared data, which keeps the hashes of files. Nothing is prepared, and only
    files are read that changed since they were last hashed.

    Returns {component: {"files": number of files, "bytes": their total size, "sha256", "names": the names of the first
    files}}, with None for a component of installed packages. "sources" in a manifest of `prepare` has the same form.
    """
    return {name: source_identity(name, Store(store)) for name in corpora.components(corpus, store)}


def corpus_composition(corpus: str, store: Path) -> dict[str, Any]:
    """The components of a corpus and the identity of their files, for run.json. No file is read. `corpus`: as for
    `prepare`; `store`: the folder of prepared data.

    Returns a dictionary:
        sources: {component: identity}, as `source_identities` returns it, without components whose files have no hash
            in the store or do not exist.
        blend: only for a blend: {component: weight}; or a list of the components, where "alpha" is a number.
        alpha: only for a blend: None, or the exponent from which the weights follow. "blend" and "alpha" are written as
            in a specification file, from which the same blend can be made.
    """
    result: dict[str, Any] = {"sources": {}}
    spec: dict[str, Any] = {}
    with contextlib.suppress(ValueError, OSError):
        spec = corpora.load_specification(corpus, store)
    for name in spec.get("blend", [corpus]):
        with contextlib.suppress(MissingData, ValueError, OSError):
            result["sources"][name] = source_identity(name, Store(store, build=False))
    if "blend" in spec:
        alpha = spec["alpha"]
        result |= {"blend": spec["blend"] if alpha is None else list(spec["blend"]), "alpha": alpha}
    return result


def describe_data_changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Compare the data of two runs: a sentence for each difference in their source files, their text or their
    tokenizer. A changed text is reported only if no source files changed. A changed tokenizer is reported only if
    neither source files nor text changed.

    `before`, `now`: the manifests of `prepare` for the earlier and for the later run. Entries that one of them lacks
    are not compared.
    """
    sentences = []
    for name, old in before.get("sources", {}).items():
        new = now.get("sources", {}).get(name)
        if old and new and old["sha256"] != new["sha256"]:
            sentences.append(f"the files of {name} changed: {_source_in_words(old)} then, {_source_in_words(new)} now")
    if not sentences and "sha256" in before and "sha256" in now and before["sha256"] != now["sha256"]:
        old, new = (manifest["counts"]["train"]["documents"] for manifest in (before, now))
        sentences.append(
            f"the text of {before['corpus']} changed: sha256 {before['sha256']} with {old:,} training documents then, "
            f"{now['sha256']} with {new:,} now"
        )
    if not sentences and "tokenizer" in before and "tokenizer" in now:
        old, new = before["tokenizer"]["sha256"], now["tokenizer"]["sha256"]
        if old != new:
            sentences.append(f"the tokenizer of {before['corpus']} changed: sha256 {old} then, {new} now")
    return sentences


def _source_in_words(source: dict[str, Any]) -> str:
    files = "1 file" if source["files"] == 1 else f"{source['files']:,} files"
    return f"{files} of {source['bytes']:,} bytes (sha256 {source['sha256'][:16]}...)"


def os_error_message(error: OSError) -> str:
    """The message for an OSError; where a file or folder cannot be written, with what the user can do about it."""
    return unwritable_message(error, Path(error.filename or ".").parent) or str(error)


def validation_files(corpus: str, store: Path, allow_errors: int = 0, build: bool = True) -> list[str]:
    """The paths of the files with the validation text of a corpus: a .jsonl.gz file for each component. The text is
    prepared by the default recipe, and therefore the same for all arms of a study.

    Args:
        corpus: as for `prepare`.
        store: the folder of prepared data.
        allow_errors: how many problems in the files of the corpus are tolerated.
        build: whether missing text is prepared.

    Raises:
        MissingData: the text is not prepared, and `build` is false.
    """
    recipe, prepared_data = Recipe(allow_errors=allow_errors), Store(Path(store), build=build)
    return [
        str(prepared_text(name, recipe, prepared_data)[0] / "valid.jsonl.gz")
        for name in corpora.components(corpus, prepared_data.path)
    ]


def epochs_by_component(manifest: dict[str, Any], tokens: int | None, seq: int = 0) -> list[dict[str, Any]]:
    """How often a run reads the token files of each component of its data. Returns a list with a dictionary for each
    component: {"corpus", "share": its weight in the blend, "tokens": the number of its tokens, "epochs": how often they
    are read}.

    Args:
        manifest: the manifest of the data, from `prepare`.
        tokens: the number of tokens that the run trains on. None: a wall clock ends the run; there is then no entry
            "epochs".
        seq: the length of a training sequence in tokens. Unless it is 0, there is a further entry "unused": the number
            of tokens at the end of each epoch that do not fill a sequence.
    """
    return [
        {
            "corpus": source["corpus"],
            "share": source["weight"],
            "tokens": source["tokens"],
            **({} if tokens is None else {"epochs": tokens * source["weight"] / source["tokens"]}),
            **({"unused": (source["tokens"] - 1) % seq} if seq else {}),
        }
        for source in manifest["train"]
    ]


def main(argv: list[str] | None = None) -> None:
    parser = _parser()
    args = parser.parse_args(argv)

    def exit_with(code: int, problem: str) -> NoReturn:
        if args.format == "json":
            print(answers.json_error(problem), flush=True)
        parser.exit(code, f"error: {problem}\n")

    try:
        if args.held_out and args.format == "json":
            raise ValueError(
                "--held-out has no answer in JSON: it prints the files of the validation text, a line each"
            )
        options = dict(_key_and_value(word) for word in args.options)
        executor = Executor(args.executor, args.workers, options)
        recipe = _recipe(dict(_key_and_value(word.removeprefix("data.")) for word in args.set))
        if args.folder:
            corpora.record_folder(args.corpus, args.folder, args.store)
        needed = [args.corpus, *([args.tokenizer] if args.tokenizer and args.kind != "file" else [])]
        for sentence in [] if args.told else corpora.missing_files(needed, args.store):
            print(f"warning: {sentence}", file=sys.stderr)
        if args.held_out:
            print("\n".join(validation_files(args.corpus, args.store, recipe.allow_errors)))
            return
        tokenizer = args.tokenizer or args.corpus
        manifest = prepare(args.corpus, tokenizer, args.vocab, args.store, args.kind, recipe, executor, mask=args.mask)
    except ValueError as error:
        exit_with(2, str(error))
    except RuntimeError as error:
        exit_with(1, str(error))
    except OSError as error:
        exit_with(1, os_error_message(error))
    except KeyboardInterrupt:
        parser.exit(INTERRUPTED, "\ninterrupted; the same command continues\n")
    for note in manifest["notes"]:
        print(note, file=sys.stderr)
    print(answers.json_answer("data", manifest) if args.format == "json" else manifest_text(manifest))


def manifest_text(manifest: dict[str, Any]) -> str:
    """A summary of the prepared data, as lines of text for the terminal. `manifest`: from `prepare`."""
    counts, tokenizer = manifest["counts"], manifest["tokenizer"]
    amounts = {
        split: f"{of['documents']:,} documents, {of['bytes']:,} bytes, {of['tokens']:,} tokens"
        for split, of in ((split, counts[split]) for split in ("train", "valid"))
    }
    copies = counts["duplicates"]
    lines = [
        f"{manifest['corpus']}, sha256 {manifest['sha256']}",
        f"  training    {amounts['train']}",
        f"  held out    {amounts['valid']}",
        f"  removed     {copies['exact']:,} exact and {copies['near']:,} near copies",
        f"  tokenizer   {tokenizer['kind']}, {tokenizer['vocab']:,} pieces, of {tokenizer['corpus']}",
        f"              {tokenizer['path']}",
    ]
    for source in manifest["train"]:
        share = f"{source['weight']:.1%} of {source['corpus']}: " if len(manifest["train"]) > 1 else ""
        lines.append(f"  tokens      {share}{source['prefix']}.bin and .idx")
    lines += [f"  held out    {path}" for path in manifest["valid"]]
    return "\n".join([*lines, *(f"  report      {path}" for path in manifest["reports"])])


def _parser() -> answers.Parser:
    fields = ", ".join(Recipe._fields)
    parser = answers.Parser(
        prog="python -m data.prepare",
        description="Prepare a corpus for training: read, filter, deduplicate, tokenize. Prints what was "
        "made; --format json: the whole manifest.",
        epilog=f"Corpora: {', '.join(corpora.corpus_names())}; or a file, folder or quoted glob of "
        f'{", ".join(EXTENSIONS)}: JSON lines with "text", as in C4 and The Pile, or '
        "documents separated by blank lines, as in OSCAR v1.",
    )
    add = parser.add_argument
    add("corpus", help="name, or path on disk")
    add("--tokenizer", metavar="CORPUS", help="what the tokenizer is trained on (the corpus itself)")
    add("--vocab", type=int, metavar="N", default=4096, help="pieces of the tokenizer (%(default)s)")
    add("--kind", choices=KINDS, default="bpe", help="of tokenizer; file: --tokenizer is one that exists (%(default)s)")
    add("--mask", action="store_true", help="the tokenizer gets a mask token where its kind has none (byte-bpe)")
    add("--store", type=Path, metavar="DIR", default=Path("runs/data"), help="where to write (%(default)s)")
    add("--from", dest="folder", metavar="DIR", help="where the files of a named corpus lie; remembered in the store")
    add("--set", metavar="data.KEY=VALUE", nargs="*", default=[], help=f"of {fields}: see data/filters.py")
    add("--held-out", action="store_true", help="no more than the validation text; prints its files")
    add("--told", action="store_true", help="say nothing of files that are missing in a numbered family")
    add("--executor", choices=execute.KINDS, default="local", help="what runs the tasks (%(default)s)")
    add("--workers", type=int, metavar="N", default=0, help="tasks at a time (one for each core; a cluster: all)")
    add(
        "--options",
        metavar="KEY=VALUE",
        nargs="*",
        default=[],
        help="of the executor: Slurm's partition, time, mem_per_cpu_gb, account ...; Ray's address ...",
    )
    answers.add_format_option(parser)
    return parser


def _key_and_value(word: str) -> tuple[str, str]:
    name, equals, value = word.partition("=")
    if not equals:
        raise ValueError(f"{word!r}: KEY=VALUE is needed")
    return name, value


def _recipe(values: dict[str, str]) -> Recipe:
    if unknown := set(values) - set(Recipe._fields):
        raise ValueError(f"there is no data.{sorted(unknown)[0]}; there are {', '.join(Recipe._fields)}")
    try:
        return Recipe(**{name: type(getattr(Recipe(), name))(value) for name, value in values.items()})  # type: ignore
    except ValueError:
        raise ValueError(f"data.{', data.'.join(f'{n}={v}' for n, v in values.items())}: a number is needed") from None


if __name__ == "__main__":
    main()
