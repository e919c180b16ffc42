"""Checks that the data of a study have not changed since its runs began: a corpus may change between two commands.

An arm that is trained on a changed text would differ from the baseline in two things: its delta and the text.
"""

import contextlib
from typing import Any

from ablations import rundir, safe_files
from ablations.config import ConfigError
from ablations.study import Cell, Study


def check_files(study: Study) -> None:
    """Compare the source files of each corpus with those that the study's runs were trained on, before anything is
    prepared. The files' hashes are stored: a file is read again only if it was written since. Raises ConfigError where
    the content of a file has changed, or the corpus cannot be read."""
    from data.prepare import describe_data_changes, source_identities

    store = study.out / rundir.DATA
    current: dict[str, dict[str, Any]] = {}
    for cell, recorded in _begun_runs(study):
        corpus = cell.run.data.corpus
        if corpus not in current and any(recorded.get("sources", {}).values()):
            try:
                current[corpus] = source_identities(corpus, store)
            except ValueError as error:
                raise ConfigError(str(error)) from None
        _raise_if_changed(
            cell, describe_data_changes({"sources": recorded.get("sources", {})}, {"sources": current.get(corpus, {})})
        )


def check_prepared(study: Study) -> None:
    """Compare the prepared text and tokenizer of each run with those that the run was trained on. Runs whose data are
    not prepared are skipped. Raises ConfigError where the store now has another text or tokenizer under the same name.
    """
    from data.corpus import MissingData
    from data.prepare import describe_data_changes, prepare

    store = study.out / rundir.DATA
    for cell, recorded in _begun_runs(study):
        try:
            current = prepare(**cell.run.data_request, store=store, build=False)
        except MissingData:
            continue  # no run that is about to be trained reads these data
        except ValueError as error:
            raise ConfigError(str(error)) from None
        _raise_if_changed(cell, describe_data_changes(recorded, current))


def _begun_runs(study: Study) -> list[tuple[Cell, dict[str, Any]]]:
    """The runs of a study that have begun, with the record of their data: [(cell, the entry "data" of run.json)]."""
    pairs = []
    for cell in study.cells:
        with contextlib.suppress(safe_files.Damaged):  # of a damaged run.json, which the continued run writes anew
            record = cell.run_json()
            if record and isinstance(record.get("data"), dict):
                pairs.append((cell, record["data"]))
    return pairs


def _raise_if_changed(cell: Cell, sentences: list[str]) -> None:
    """Raise ConfigError where `sentences`, which say what has changed in a run's data since it began, are not empty."""
    if sentences:
        raise ConfigError(
            f"{'; '.join(sentences)}. {cell.dir} was trained on what was there then, and runs on another text cannot "
            "be compared with it: restore the data, or choose another OUT"
        )
