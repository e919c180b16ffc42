"""How often the runs of a study read their text: the epochs of each source, and the tokens that fill no sequence."""

from ablations.run import Run
from ablations.study import Study
from ablations.values import ConfigError, human


def epochs_of_text(study: Study) -> list[str]:
    """How often the runs of a study read their text: a line for each source with the number of epochs. Corpora that
    are not prepared are named.

    Raises:
        ConfigError: the prepared data are damaged, or cannot be used as the study asks.
    """
    from data.corpus import Missing
    from data.prepare import epochs
    from data.prepare import prepare as find

    lines = {}
    distinct = {
        repr((run.data, run.model.vocab, run.model.seq, _tokens(run))): run
        for run in (cell.run for cell in study.cells)
    }
    for run in distinct.values():
        data, store, tokens = run.data, study.out / "data", _tokens(run)
        what = (data.corpus, data.tokenizer, run.model.vocab, store, data.tokenizer_kind, data.recipe)
        try:
            manifest = find(*what, build=False, mask=run.model.masks)
        except Missing:
            lines[f"{data.corpus} is not prepared yet: how often it is read is said before the first run"] = 0
            continue
        except ValueError as error:
            raise ConfigError(str(error)) from None
        for source in epochs(manifest, tokens, run.model.seq):
            of = "" if source["corpus"] == data.corpus else f" of {data.corpus}"
            text = f"{source['corpus']}{of}: {source['share']:.1%} of"
            left = f"; {source['unused']:,} tokens at its end fill no sequence of {run.model.seq}"
            if tokens is None:
                read = f"as many tokens as {run.train.budget} allow, of its {human(source['tokens'])}"
                lines[f"{text} {read}{left if source['unused'] else ''}"] = 0
                continue
            read = f"{human(tokens)} tokens is {source['epochs']:.3g} epochs of its {human(source['tokens'])}"
            often = "; NOTE: more than one epoch, so text is repeated" if source["epochs"] > 1 else ""
            lines[f"{text} {read}{often}{left if source['unused'] else ''}"] = 0
        plain = data.recipe == type(data.recipe)()
        lines |= {f"note: {note}": 0 for note in manifest["notes"] if not (plain and "removed nothing" in note)}
    return list(lines)


def _tokens(run: Run) -> int | None:
    """The tokens that a run is trained on; None where a wall clock ends the run."""
    return None if run.by_clock else run.tokens
