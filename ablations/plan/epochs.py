"""How often the runs of a study read their text: the number of epochs of each source, and the tokens left over at its
end, which do not fill a sequence."""

from contextlib import suppress
from typing import Any

from ablations.run import Run
from ablations.rundir import DATA
from ablations.study import Study
from ablations.values import ConfigError, join_names, short_number


def describe_epochs(study: Study) -> list[str]:
    """Sentences on the text that the runs of a study read: the number of epochs of each source, or that its data is not
    prepared yet.

    There are also notes where a tokenizer is trained on text that no run reads, and where runs are evaluated only on
    text that they do not read. Raises ConfigError where prepared data is damaged, or does not fit the study.
    """
    from data.corpus import MissingData
    from data.prepare import epochs_by_component, prepare

    lines: list[str] = []
    distinct = {repr((run.data_request, run.model.seq, run.known_tokens)): run for run in (c.run for c in study.cells)}
    for run in distinct.values():
        data = run.data
        try:
            manifest = prepare(**run.data_request, store=study.out / DATA, build=False)
        except MissingData:
            lines.append(f"{data.corpus} is not prepared yet: how often it is read is said before the first run")
            continue
        except ValueError as error:
            raise ConfigError(str(error)) from None
        lines += [
            _epochs_sentence(source, run) for source in epochs_by_component(manifest, run.known_tokens, run.model.seq)
        ]
        is_default_recipe = data.recipe == type(data.recipe)()
        lines += [
            f"note: {note}" for note in manifest["notes"] if not (is_default_recipe and "removed nothing" in note)
        ]
    tokenizer_corpora = {run.data.tokenizer for run in distinct.values() if run.data.tokenizer_kind != "file"}
    unread = tokenizer_corpora - {run.data.corpus for run in distinct.values()}
    lines += [
        f"NOTE: the tokenizer is trained on {name}, which no run reads (data.tokenizer)" for name in sorted(unread)
    ]
    lines += [_evaluation_note(run) for run in distinct.values()]
    return list(dict.fromkeys(filter(None, lines)))


def training_text_hashes(study: Study) -> dict[str, str]:
    """The training texts of a study: {corpus: sha256 of the text, or "" where it is not prepared yet}."""
    from data.corpus import MissingData
    from data.prepare import prepare

    texts = {}
    for run in {repr(cell.run.data_request): cell.run for cell in study.cells}.values():
        texts[run.data.corpus] = ""
        with suppress(MissingData, ValueError):
            texts[run.data.corpus] = prepare(**run.data_request, store=study.out / DATA, build=False)["sha256"]
    return texts


def _evaluation_note(run: Run) -> str:
    """A sentence where a run is evaluated only on held-out text of corpora that it does not read; "" for other runs."""
    from data.corpus import components

    evaluated = {part for corpus in run.eval.corpora for part in components(corpus)}
    if evaluated & components(run.data.corpus).keys():
        return ""
    corpus, others = run.data.corpus, join_names(run.eval.corpora)
    return (
        f"NOTE: runs of {corpus} are judged on the held-out text of {others} alone (eval.corpora); to judge them on "
        f"their own: SET=eval.corpora={corpus}, or eval.corpora: [{corpus}] in the base of a study file"
    )


def _epochs_sentence(source: dict[str, Any], run: Run) -> str:
    """A sentence on how often a run reads one source of its text. `source`: an entry of the result of
    `data.prepare.epochs_by_component`, with the source's "corpus", "tokens", "epochs", "share" of the run's text, and
    "unused" tokens at its end."""
    tokens = run.known_tokens
    blend = "" if source["corpus"] == run.data.corpus else f" of {run.data.corpus}"
    text = f"{source['corpus']}{blend}: {source['share']:.1%} of"
    unused = f"; {source['unused']:,} tokens at its end fill no sequence of {run.model.seq}" if source["unused"] else ""
    if tokens is None:
        return f"{text} as many tokens as {run.train.budget} allow, of its {short_number(source['tokens'])}{unused}"
    repeated = "; NOTE: more than one epoch, so text is repeated" if source["epochs"] > 1 else ""
    epochs = f"{source['epochs']:.3g} epochs of its {short_number(source['tokens'])}"
    return f"{text} {short_number(tokens)} tokens is {epochs}{repeated}{unused}"
