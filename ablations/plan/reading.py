"""How often the runs of a study read their text: the epochs of each source."""

from ablations.study import Study
from ablations.values import human


def reading(study: Study) -> list[str]:
    """A line for each source of each corpus: how often the runs read it. Of corpora that are prepared."""
    from data.corpus import Missing
    from data.prepare import epochs
    from data.prepare import prepare as find

    lines = {}
    distinct = {repr((run.data, run.model.vocab, run.tokens)): run for run in (cell.run for cell in study.cells)}
    for run in distinct.values():
        data, store = run.data, study.out / "data"
        try:
            manifest = find(
                data.corpus, data.tokenizer, run.model.vocab, store, data.tokenizer_kind, data.recipe, build=False
            )
        except Missing:
            lines[f"{data.corpus} is not prepared yet: how often it is read is said before the first run"] = 0
            continue
        for source in epochs(manifest, run.tokens):
            of = "" if source["corpus"] == data.corpus else f" of {data.corpus}"
            read = f"{source['share']:.1%} of {human(run.tokens)} tokens is {source['epochs']:.3g} epochs"
            often = "; NOTE: more than one epoch, so text is repeated" if source["epochs"] > 1 else ""
            lines[f"{source['corpus']}{of}: {read} of its {human(source['tokens'])}{often}"] = 0
        plain = data.recipe == type(data.recipe)()
        lines |= {f"note: {note}": 0 for note in manifest["notes"] if not (plain and "removed nothing" in note)}
    return list(lines)
