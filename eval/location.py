"""Finds the files of a run in its run directory and in the store of prepared data, wherever these are now.

The absolute paths in run.json must not be opened: the run directory may have been copied, or come from somebody else.
Only the last two names of such a path are used, folder and file, and looked up in the store. That is the store of the
OUT folder with the run directory (OUT/STAGE/RUN, and OUT/data), or the one that the command line names.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from ablations import rundir, safe_files
from model.config import ModelConfig

# What evaluation reads of run.json (the form: `safe_files.first_misfit`).
RUN_FORM = {
    "cell": str,
    "config": {"model": dict, "eval": {"corpora": list}},
    "data": {"tokenizer": {"path": str, "sha256": str}},
}


def read_run_json(directory: Path) -> dict[str, Any]:
    """The content of run.json in a run directory. Raises ValueError where the file is missing or damaged, or describes
    a model that this version of the code does not know."""
    path = directory / rundir.RUN
    run = safe_files.read_json(path, types=rundir.RUN_TYPES)
    if run is None:
        raise ValueError(f"{directory} has no {rundir.RUN}: it is not the directory of a run")
    wrong = safe_files.first_misfit(run, RUN_FORM)
    if not wrong and not all(isinstance(corpus, str) for corpus in run["config"]["eval"]["corpora"]):
        wrong = "config.eval.corpora"
    if wrong:
        raise safe_files.Damaged(f"{path} is damaged, or of another version: {wrong} is not what a run has there")
    model_config(directory, run)
    return run


def model_config(directory: Path, run: dict[str, Any]) -> ModelConfig:
    """The configuration of the model that a run trained. `directory`: the run directory, for the error message; `run`:
    the content of run.json. Raises Damaged where this version cannot make such a model, or a setting has another type
    or is out of its range."""
    try:
        return ModelConfig(**run["config"]["model"])
    except (TypeError, ValueError) as error:
        path = directory / rundir.RUN
        raise safe_files.Damaged(f"{path} is damaged, or of another version: {error}") from None


def data_store(directory: Path, store: Path | None = None) -> Path:
    """The folder with the store of prepared data (data/store.py) of a run, with symbolic links resolved.

    Args:
        directory: the run directory.
        store: the folder that the command line names, which may be anywhere; None: the folder `data` of the output
            root, which is two levels above the run directory.

    Raises:
        ValueError: the folder is missing, or without `store` it is a link to a place outside the output root.
    """
    out = directory.resolve().parent.parent
    folder = store or out / "data"
    advice = "Say where the prepared data of this run is: --store FOLDER"
    if not folder.is_dir():
        raise ValueError(f"{folder} is not there, or not a folder. {advice}")
    if not store and not folder.resolve().is_relative_to(out):
        raise ValueError(f"{folder} is a link that leaves {out}, and is not followed. {advice}")
    return folder.resolve()


def path_in_store(store: Path, recorded: str) -> Path:
    """The present path of a file of prepared data in `store`. `recorded`: its path when the run was trained, of which
    only the last two names count. Raises ValueError where the present path is a link that leads out of the store."""
    path = Path(recorded)
    return safe_files.path_inside(store, Path(path.parent.name, path.name)).resolve()


def load_tokenizer(directory: Path, run: dict[str, Any], store: Path) -> Any:
    """The tokenizer that a run was trained with.

    Args:
        directory: the run directory, for error messages.
        run: the content of run.json.
        store: the store of prepared data, which has the tokenizer.

    Raises:
        ValueError: the tokenizer is not in the store, or its file differs from the one that the run was trained with.
    """
    from data import tokenizer as tokenizers

    recorded = run["data"]["tokenizer"]
    path = path_in_store(store, recorded["path"])
    if not path.is_file():
        raise ValueError(f"the tokenizer of {directory} is not in {store}: {path} is not there")
    _, content = tokenizers.read_tokenizer(path)
    if hashlib.sha256(content).hexdigest() != recorded["sha256"]:  # before anything is made of a damaged one
        raise ValueError(f"{path} is not the tokenizer that {directory} was trained with: its sha256 differs")
    return tokenizers.load_tokenizer(path)


def validation_files(directory: Path, run: dict[str, Any], store: Path) -> list[Path]:
    """The files in the store with the held-out text of the corpus on which a run was trained.

    Args:
        directory: the run directory, for error messages.
        run: the content of run.json.
        store: the store of prepared data.

    Raises:
        ValueError: run.json does not name such files, or the store does not have them.
    """
    recorded = run["data"].get("valid")
    if not isinstance(recorded, list) or not all(isinstance(path, str) for path in recorded):
        raise safe_files.Damaged(f"{directory / rundir.RUN} is damaged: data.valid is no list of paths")
    paths = [path_in_store(store, path) for path in recorded]
    if missing := [path for path in paths if not path.is_file()]:
        raise ValueError(f"the held-out text of {directory} is not in {store}: {missing[0]} is not there")
    return paths


def held_out_files(corpus: str, run: dict[str, Any], store: Path) -> list[str]:
    """The .jsonl.gz files in the store with the held-out text of any corpus. The text must be prepared already.

    If OUT was copied, the source files of the corpus may not be on this machine. Prepared text with the name of the
    corpus is then used, if the store has only one such text.

    Args:
        corpus: the name or path of the corpus.
        run: the content of run.json.
        store: the store of prepared data.

    Raises:
        ValueError: the store does not have this text.
    """
    from data.corpus import MissingData
    from data.prepare import validation_files
    from data.store import folder_label

    try:
        files = validation_files(corpus, store, run["config"]["data"].get("allow_errors", 0), build=False)
    except (MissingData, ValueError, OSError) as error:
        folders = [path.parent for path in store.glob(f"{folder_label(corpus)}-????????/valid.jsonl.gz")]
        candidates = [folder for folder in folders if _is_default_text(folder)]
        if len(candidates) != 1:
            several = f"; {len(candidates)} prepared texts carry its name" if candidates else ""
            raise ValueError(
                f"the held-out text of {corpus} is not in {store} ({error}{several}). Prepare it: "
                f"python -m data.prepare {corpus} --held-out --store {store}"
            ) from None
        files = [str(candidates[0] / "valid.jsonl.gz")]
    return [str(safe_files.path_inside(store, file).resolve()) for file in files]


def _is_default_text(folder: Path) -> bool:
    """Whether a folder of the store has text that was prepared with the default cleaning recipe (data/filters.py), as
    held-out text always is."""
    from data.filters import DEFAULT_RECIPE

    try:
        inputs = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["inputs"]
        named = all(inputs[key] == getattr(DEFAULT_RECIPE, key) for key in ("dedup", "quality", "decontaminate"))
        return named and not inputs.get("substring")
    except (OSError, ValueError, KeyError, TypeError):
        return False
