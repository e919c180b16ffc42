"""The identity card of a run directory: the run's settings, its data, and the versions of the metrics of its
evaluation.

Only the directory is read, which may be from an unknown source. Missing parts are null; damaged files are named.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ablations import rundir, safe_files
from ablations.safe_files import Damaged

SCORE_KEYS = ("metric", "value", "stderr", "n", "shots", "version", "chance", "items_sha256")


def identity_card(run_dir: Path) -> dict[str, Any]:
    """The identity card of a run directory, as an object for JSON: what the run is, its data, code, hardware, proofs
    and scores. Parts that are missing are None; damaged files are named under "damaged". Raises Damaged where the
    directory has no readable run.json."""
    run = rundir.read_run(run_dir)
    if run is None:
        raise Damaged(f"{run_dir} has no {rundir.RUN}: it is no run directory")
    damaged: list[str] = []  # messages about damaged files

    def read(reader: Callable[[], Any]) -> Any:
        try:
            return reader()
        except Damaged as error:
            damaged.append(str(error))
            return None

    done = read(lambda: rundir.read_done(run_dir))
    scores = read(lambda: safe_files.read_json(run_dir / rundir.EVAL, types={"tasks": dict}))
    registered, problem = rundir.read_registrations(run_dir)
    if problem:
        damaged.append(problem)
    return {
        "directory": run_dir.name,
        "run": {key: run.get(key) for key in ("arm", "seed", "delta", "fingerprint", "config")},
        "parameters": dict_at(run, "parameters").get("count"),
        "registered": [
            {"study": line["content"].get("study"), **{key: line[key] for key in ("time", "step", "sha256")}}
            for line in registered
        ],
        "data": training_data_of(run),
        "code": {key: run.get(key) for key in ("commit", "versions")},
        "hardware": run.get("hardware"),
        "proofs": [
            {key: proof.get(key) for key in ("factor", "value", "passed")}
            for proof in (run["proofs"] if isinstance(run.get("proofs"), list) else [])
            if isinstance(proof, dict)
        ],
        "trained": done,
        "evaluation": evaluation_of(scores) if scores else None,
        "damaged": [message.replace(f"{run_dir}/", "") for message in damaged],
    }


def dict_at(value: dict[str, Any], key: str) -> dict[str, Any]:
    """The dictionary value[key]; {} if `value` has no such key, or no dictionary there."""
    inner = value.get(key)
    return inner if isinstance(inner, dict) else {}


def training_data_of(run: dict[str, Any]) -> dict[str, Any]:
    """The names and hashes of the text and the tokenizer that a run was trained on, and the recipe of the text; None
    for what was not recorded. `run`: the content of run.json."""
    data = dict_at(run, "data")
    tokenizer = dict_at(data, "tokenizer")
    return {
        "corpus": data.get("corpus"),
        "sha256": data.get("sha256"),
        "recipe": data.get("recipe"),
        "tokenizer": {key: tokenizer.get(key) for key in ("corpus", "kind", "vocab", "sha256")},
    }


def evaluation_of(scores: dict[str, Any]) -> dict[str, Any]:
    """Select from eval.json a run's scores, and the versions and hashes that decide whether the scores may be compared
    with those of another run. Entries that eval.json lacks are None. `scores`: the content of eval.json."""
    versions = ("version", "lm_eval", "precision", "weights_sha256", "samples_sha256", "corpora")
    summary_scores = ("bits_per_byte", "zero_shot", "suite")
    tasks = {
        name: {key: entry[key] for key in SCORE_KEYS if key in entry}
        for name, entry in dict_at(scores, "tasks").items()
        if isinstance(entry, dict)
    }
    return {**{key: scores.get(key) for key in (*versions, *summary_scores)}, "tasks": tasks}
