"""The files that an evaluation writes into a run directory: eval.json (or eval-step_N.json) and samples.jsonl.gz.

eval.json           scores of each task and means over tasks; written last, so that a whole one implies whole samples
eval-step_N.json    such scores for weights saved at step N of training, without samples
samples.jsonl.gz    a line for each item: {"task", "id", "value"} or {"task", "id", "nats", "bytes"}; with "cluster"
                    where items share a passage, a document or another source, so that they are not independent

A damaged file counts as missing: the run is then evaluated again.
"""

import gzip
import hashlib
import importlib.metadata
import json
import math
import sys
from pathlib import Path
from typing import Any

from ablations import rundir, safe_files
from eval.tasks import mirror, probes
from eval.tasks.choice import TaskRequest, available_tasks
from eval.weights import Weights

REQUIRED_KEYS = ("version", "weights_sha256", "tasks", "bits_per_byte", "precision", "seconds")
SCORE_FORM = {"value": rundir.NUMBER, "stderr?": rundir.NUMBER, "chance?": rundir.NUMBER}
RESULT_FORM = {  # of what is used of a stored result (see `safe_files.first_misfit`)
    "tasks": dict,
    "bits_per_byte": SCORE_FORM,
    "zero_shot?": SCORE_FORM | {"chance": rundir.NUMBER},
    "suite?": SCORE_FORM | {"tasks": int, "of": int},
    "unknown_bytes?": rundir.NUMBER,
    "seconds": rundir.NUMBER,
    "lm_eval_tasks?": {"asked": list, "missing": list, "failed": dict},
}
SOURCE_FORM = {"path": str, "config": str, "split": str, "sha256": str}  # of a task's entries "data" and "examples"


def result_conditions(run: dict[str, Any], weights: Weights) -> dict[str, Any]:
    """The conditions under which a stored result stays valid, besides the requested tasks and the precision. `run`: the
    content of run.json; `weights`: the evaluated weights.

    Returns:
        version: the version of this project's tasks.
        lm_eval: the version of lm-eval.
        weights_sha256: the hash of the weights.
        corpora: the names of the held-out texts.
    """
    return {
        "version": probes.load_specification()["version"],
        "lm_eval": importlib.metadata.version("lm_eval"),
        "weights_sha256": weights.sha256,
        "corpora": run["config"]["eval"]["corpora"],
    }


def read_result(directory: Path, weights: Weights) -> dict[str, Any] | None:
    """Read the stored result of an evaluation (eval.json, or eval-step_N.json); None where files are missing or
    damaged. The result may be of other tasks, or of weights that were replaced since. `directory`: the run directory;
    `weights`: their step says which file is read."""
    try:
        result = safe_files.read_json(directory / rundir.eval_file_name(weights.step), REQUIRED_KEYS, {"tasks": dict})
        if result is None:
            return None
        wrong = safe_files.first_misfit(result, RESULT_FORM)
        for name, entry in result["tasks"].items() if not wrong else ():
            wrong = wrong or safe_files.first_misfit(
                entry, {"data?": SOURCE_FORM, "examples?": SOURCE_FORM}, f"tasks.{name}"
            )
        if wrong:
            path = directory / rundir.eval_file_name(weights.step)
            raise safe_files.Damaged(f"{path} is damaged: {wrong} is not what an evaluation has there.")
        if weights.step is not None:
            return result
        samples = safe_files.read_bytes(directory / rundir.SAMPLES)
        if samples is None:
            return None
        if "samples_sha256" in result:
            return result if hashlib.sha256(samples).hexdigest() == result["samples_sha256"] else None
        for _ in safe_files.read_gzip_json_lines(directory / rundir.SAMPLES, ("task", "id")):
            pass  # of an earlier version, without the hash: read as a whole
        return result
    except safe_files.Damaged as error:
        print(f"{error} The run is judged again.", file=sys.stderr)
        return None


def current_result(
    directory: Path,
    run: dict[str, Any],
    weights: Weights,
    requested: TaskRequest | None = None,
    precision: str | None = None,
) -> dict[str, Any] | None:
    """The stored result of an evaluation, if it is still valid and has all that is asked for; else None.

    Args:
        directory: the run directory.
        run: the content of run.json.
        weights: the evaluated weights.
        requested: tasks of lm-eval that the result must have, on unchanged data; None: no such tasks.
        precision: the precision that the result must have, "fp32" or "bf16"; None: any.
    """
    result = read_result(directory, weights)
    if result is None:
        return None
    expected = result_conditions(run, weights) | ({"precision": precision} if precision else {})
    return result if expected.items() <= result.items() and (not requested or has_tasks(result, requested)) else None


def has_tasks(result: dict[str, Any], requested: TaskRequest) -> bool:
    """Whether a stored result has all requested tasks of lm-eval that can be run now. A task counts only with the
    requested number of examples in the prompt, and if its data has not changed since. `result`: the content of
    eval.json; `requested`: the tasks."""
    earlier = result.get("lm_eval_tasks")
    if not earlier or not set(requested.names) <= set(earlier["asked"]) or earlier.get("shots") != requested.shots:
        return False
    sources = [entry[key] for entry in result["tasks"].values() for key in ("data", "examples") if key in entry]
    if any(map(requested.data.changed, sources)):
        return False
    if not earlier["missing"]:
        return True
    from eval.tasks.definitions import definitions

    defined = definitions(mirror.names(requested.names), requested.shots)
    return all(requested.data.why_any_unusable(defined[name].sources) for name in earlier["missing"] if name in defined)


def add_earlier_tasks(directory: Path, weights: Weights, requested: TaskRequest) -> TaskRequest:
    """Add the tasks of lm-eval in the stored result to a request, and return the new request. Without this, an
    evaluation on other tasks would lose them, since it writes eval.json anew. Earlier tasks that can no longer be run
    are left out, and named on the terminal."""
    names = (read_result(directory, weights) or {}).get("lm_eval_tasks", {"asked": []})["asked"]
    still_possible = []
    for name in names:
        try:
            available_tasks(requested._replace(names=[name]), tell=False)
            still_possible.append(name)
        except ValueError as error:
            print(f"judged before by {name}, and no longer: {error}", file=sys.stderr)
    return requested._replace(names=list(dict.fromkeys([*still_possible, *requested.names])))


def write_result(directory: Path, weights: Weights, result: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """Write samples.jsonl.gz and then eval.json; for weights of an earlier step only eval-step_N.json.

    Args:
        directory: the run directory.
        weights: the evaluated weights.
        result: the content of eval.json; the hash of samples.jsonl.gz is added to it.
        rows: the lines of samples.jsonl.gz.

    Raises:
        ValueError: a number is NaN or infinite; the message says where. Nothing is written then.
    """
    if wrong := paths_of_non_finite({"scores": result, "items": rows}):
        raise ValueError(f"{directory}: not a number, and therefore not written: {', '.join(wrong[:5])}")
    if weights.step is None:
        lines = "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows)
        samples = gzip.compress(lines.encode(), mtime=0)
        safe_files.write_bytes(directory / rundir.SAMPLES, samples)
        result["samples_sha256"] = hashlib.sha256(samples).hexdigest()
    safe_files.write_json(directory / rundir.eval_file_name(weights.step), result, indent=1)


def paths_of_non_finite(value: Any, path: str = "") -> list[str]:
    """The places of NaN and infinite numbers in a JSON value, as paths such as "scores/tasks/lambada". `path`: the path
    of `value` itself, in recursive calls."""
    if isinstance(value, dict):
        return [place for key, entry in value.items() for place in paths_of_non_finite(entry, f"{path}/{key}")]
    if isinstance(value, list):
        return [place for i, entry in enumerate(value) for place in paths_of_non_finite(entry, f"{path}/{i}")]
    return [path.lstrip("/")] if isinstance(value, float) and not math.isfinite(value) else []


def summary_line(result: dict[str, Any]) -> str:
    """The result of an evaluation in one line for the terminal: held-out loss, zero-shot mean, score of the suite,
    seconds. `result`: the content of eval.json."""
    bits, zero_shot = result["bits_per_byte"], result["zero_shot"]
    text = f"{bits['value']:.3f}{stderr_text(bits['stderr'], 3)} bits/byte"
    if share := result.get("unknown_bytes", 0):
        text += f" ({100 * share:.1f} % of the bytes are unknown to the tokenizer and charged 8 bits each)"
    if zero_shot:
        text += f", zero-shot {zero_shot['value']:.1f}{stderr_text(zero_shot['stderr'], 1)} %"
        text += f" (chance {zero_shot['chance']:.1f} %)"
    if scores := result.get("suite"):
        only = "" if scores["tasks"] == scores["of"] else f" ONLY {scores['tasks']} OF"
        text += (
            f", suite{only} {scores['of']} tasks {scores['value']:.2f}{stderr_text(scores['stderr'], 2)} % "
            f"(chance {scores['chance']:.1f} %)"
        )
    return f"{text} (±: one standard error), {result['seconds']:.0f} s"


def stderr_text(stderr: float | None, digits: int) -> str:
    """A standard error as text, such as " ± 0.012"; "" where it is None. `digits`: the number of decimals."""
    return "" if stderr is None else f" ± {stderr:.{digits}f}"
