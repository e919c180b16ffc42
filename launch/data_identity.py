"""Checks that the data of a study have not changed since its runs were trained: a corpus may change between two
commands.

The text is part of a run's configuration: an arm that is trained on a changed text would differ from the baseline in
two things.
"""

import contextlib
from typing import Any

from ablations import rundir, safe_files
from ablations.config import ConfigError
from ablations.study import Cell, Study


def check_files(study: Study) -> None:
    """Compare the source files of each corpus with those that the study's runs were trained on, before anything is
    prepared. The files' hashes are stored, and only files that changed since then are read again. Raises
    ConfigError where the content of a file has changed, or the corpus cannot be read."""
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
    """Compare the prepared text and tokenizer of each run with those that the run was trained on; what is not prepared
    is passed over. Raises ConfigError where the store now has another text or tokenizer under the same name."""
    from data.corpus import MissingData
    from data.prepare import describe_data_changes, prepare

    store = study.out / rundir.DATA
    for cell, recorded in _begun_runs(study):
        try:
            current = prepare(**cell.run.data_request, store=store, build=False)
        except MissingData:
            continue  # nothing that is about to be trained reads it
        except ValueError as error:
            raise ConfigError(str(error)) from None
        _raise_if_changed(cell, describe_data_changes(recorded, current))


def _begun_runs(study: Study) -> list[tuple[Cell, dict[str, Any]]]:
    """The runs that have begun, each with what its run.json records of its data: [(cell, run.json's "data")]."""
    pairs = []
    for cell in study.cells:
        with contextlib.suppress(safe_files.Damaged):  # the run that is continued from its checkpoint writes it anew
            record = cell.run_json()
            if record and isinstance(record.get("data"), dict):
                pairs.append((cell, record["data"]))
    return pairs


def _raise_if_changed(cell: Cell, sentences: list[str]) -> None:
    """Raise ConfigError where the data of a run have changed since the run began. `sentences`: what has changed; empty
    where nothing has."""
    if sentences:
        raise ConfigError(
            f"{'; '.join(sentences)}. {cell.dir} was trained on what was there then, and runs on another text cannot "
            "be compared with it: restore the data, or choose another OUT"
        )
