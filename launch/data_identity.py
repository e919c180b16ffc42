"""Checks that the data of a study have not changed since its runs began, since runs on another text cannot be
compared."""

import contextlib
from typing import Any

from ablations import rundir, safe_files
from ablations.config import ConfigError
from ablations.study import Cell, Study


def check_source_files(study: Study) -> None:
    """Check, before anything is prepared, that each corpus still has the source files on which the study's runs were
    trained. A file is hashed again only if it was written since its last hash. Raises ConfigError where the content of
    a file has changed, or the corpus cannot be read."""
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


def check_prepared_data(study: Study) -> None:
    """Check that the prepared text and tokenizer of each run are those on which it was trained. Runs without prepared
    data are skipped. Raises ConfigError where the store has another text or tokenizer under the same name."""
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
    """The runs of a study that have begun, as [(cell, the entry "data" of its run.json)]."""
    pairs = []
    for cell in study.cells:
        with contextlib.suppress(safe_files.Damaged):  # of a damaged run.json, which the continued run writes anew
            record = cell.run_json()
            if record and isinstance(record.get("data"), dict):
                pairs.append((cell, record["data"]))
    return pairs


def _raise_if_changed(cell: Cell, sentences: list[str]) -> None:
    """Raise ConfigError unless `sentences` is empty. Each says what has changed in a run's data since the run began."""
    if sentences:
        raise ConfigError(
            f"{'; '.join(sentences)}. {cell.dir} was trained on what was there then, and runs on another text cannot "
            "be compared with it: restore the data, or choose another OUT"
        )
