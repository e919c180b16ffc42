"""Evaluates the weights of a run: loads the model, runs the tasks, and writes scores and samples (eval/results.py)."""

import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from ablations import safe_files
from eval import entries, location, results
from eval.held_out import HeldOutText, held_out_text, masked_outcomes
from eval.tasks import position
from eval.tasks.choice import TaskRequest, available_tasks
from eval.weights import Weights

UNFINISHED = ".parts"  # eval.parts in a run directory, while it is evaluated: outcomes so far (eval/tasks/journal.py)
NO_LIKELIHOOD = (
    "model.objective=mlm gives no likelihood of a text from left to right, which TASKS need. Its held-out loss on "
    "masked tokens is always measured; fine-tuning on GLUE is possible: make glue"
)


class Outcomes(NamedTuple):
    """The results of all tasks of an evaluation, from which the scores in eval.json are computed.

    held_out: {task made from held-out text: result of `harness.run_held_out_tasks`}.
    domains: {"corpus/domain": result of `harness.run_held_out_tasks` on the held-out text of the domain}.
    lm_eval: {task of lm-eval: result of `harness.run_lm_eval_tasks`}.
    failed: {task of lm-eval: why it failed}.
    curves: for each corpus the loss by number of context tokens, from `position.loss_by_position`; [] if not measured.
    """

    held_out: dict[str, dict]
    domains: dict[str, dict]
    lm_eval: dict[str, dict] = {}  # noqa: RUF012
    failed: dict[str, str] = {}  # noqa: RUF012
    curves: list[dict | None] = []  # noqa: RUF012


def evaluate_weights(
    directory: Path,
    weights: Weights,
    requested: TaskRequest | None = None,
    store: Path | None = None,
    precision: str | None = None,
    processes: int = 0,
    rank: int = 0,
) -> dict[str, Any]:
    """Evaluate the weights of a run, and write the result into the run directory. Returns the content of eval.json, or
    of eval-step_N.json for weights of step N.

    Args:
        directory: the run directory.
        weights: the weights at the end of training, or those saved at a step.
        requested: tasks of lm-eval to run besides those made from held-out text; None: no such tasks.
        store: the store of prepared data; None: that of the run's OUT folder.
        precision: "fp32" or "bf16"; None: bf16 on a GPU, fp32 elsewhere.
        processes: how many processes share the work, each with a GPU of its own where there are GPUs; 0: one for each
            GPU, or one without GPUs.
        rank: the number of this process. Number 0 starts all others and writes the result; the others return {}.

    Raises:
        ValueError: the run cannot be evaluated, or a score is NaN. Nothing is written then. A task of lm-eval that
            fails does not raise; the result names it under "lm_eval_tasks", "failed".
    """
    start = time.monotonic()
    run = location.read_run_json(directory)
    store = location.data_store(directory, store)
    text = held_out_text(run, store)
    is_masked = run["config"]["model"]["objective"] == "mlm"
    if is_masked and requested:
        raise ValueError(NO_LIKELIHOOD)

    from eval.tasks.journal import Journal
    from eval.tasks.scorer import Scorer

    tasks, missing = available_tasks(requested, tell=not rank) if requested else ({}, [])
    model, tokenizer, precision, gpus = load_model(directory, weights, run, store, precision, rank)
    processes = processes or max(1, gpus)
    folder = safe_files.path_inside(directory, weights.name + UNFINISHED)
    other_ranks = [] if rank else start_ranks(directory, weights, requested, store, precision, processes)
    journal = Journal(
        folder,
        results.result_conditions(run, weights)
        | {"precision": precision},  # the requests themselves are the journal's keys
        rank,
        processes,
        lambda: all(process.poll() is None for process in other_ranks),
    )
    with progress_bar(run["cell"]) as advance:
        if is_masked:
            text = text.with_masked_loss(model.cfg.mask_rate)
            losses = masked_outcomes(model, tokenizer, text.tasks, advance)
            outcomes = Outcomes(losses, domains=masked_outcomes(model, tokenizer, text.domains, advance))
        else:
            scorer = Scorer(model, tokenizer, window=model.cfg.seq, progress=advance, journal=journal)
            outcomes = run_tasks(scorer, tokenizer, text, tasks, requested, by_position=weights.step is None)
    journal.close()
    if rank:
        return {}
    scores, rows = scores_and_samples(text, outcomes)
    scores |= {"precision": precision, "seconds": round(time.monotonic() - start, 1)}
    scores |= optional_entries(scores, rows, outcomes, requested, missing)
    at_step = {"step": weights.step, "tokens": weights.tokens} if weights.step is not None else {}
    result = results.result_conditions(run, weights) | at_step | scores
    results.write_result(directory, weights, result, rows)
    for process in other_ranks:
        process.wait()
    shutil.rmtree(folder, ignore_errors=True)  # another process may do the same
    return result


def run_tasks(
    scorer: Any,
    tokenizer: Any,
    text: HeldOutText,
    tasks: dict[str, Any],
    requested: TaskRequest | None,
    by_position: bool,
) -> Outcomes:
    """Run all tasks of an evaluation on a model that gives likelihoods of text.

    Args:
        scorer: the model (eval/tasks/scorer.py).
        tokenizer: the tokenizer of the run.
        text: the held-out text and the tasks made from it.
        tasks: {task of lm-eval that can be run: definition}.
        requested: the request for lm-eval's tasks, which says where their data is; None: no such tasks.
        by_position: whether the loss by number of context tokens is measured too.
    """
    from eval.tasks import harness

    held_out = harness.run_held_out_tasks(scorer, {name: task for name, task in text.tasks.items() if task[1]})
    lm_eval, failed = harness.run_lm_eval_tasks(scorer, tasks, requested.data) if requested else ({}, {})
    domains = harness.run_held_out_tasks(scorer, text.domains) if text.domains else {}
    curves = []
    for documents in text.documents.values() if by_position else ():
        pieces = position.cut_pieces(documents, tokenizer, scorer.window)
        curves.append(position.loss_by_position(pieces, scorer.window, scorer.model.max_length, scorer.score))
    return Outcomes(held_out, domains, lm_eval, failed, curves)


def scores_and_samples(text: HeldOutText, outcomes: Outcomes) -> tuple[dict[str, Any], entries.Samples]:
    """The scores of an evaluation: (the entries of eval.json with the score of each task and the means over tasks; the
    lines of samples.jsonl.gz)."""
    tasks, rows = entries.held_out_entries(text.tasks, outcomes.held_out)
    others, other_rows = entries.lm_eval_entries(outcomes.lm_eval)
    tasks, rows = tasks | others, rows + other_rows
    result = {
        "tasks": tasks,
        "omitted": text.omitted,
        "bits_per_byte": entries.mean_loss(tasks, rows),
        "by_domain": entries.losses_by_domain(text.documents, outcomes.domains),
        "zero_shot": entries.zero_shot_mean(tasks, rows),
    }
    return result, rows


def optional_entries(
    scores: dict[str, Any], rows: entries.Samples, outcomes: Outcomes, requested: TaskRequest | None, missing: list[str]
) -> dict[str, Any]:
    """The entries of eval.json that not every evaluation has.

    Args:
        scores: the other entries of eval.json.
        rows: the lines of samples.jsonl.gz.
        outcomes: the results of all tasks.
        requested: the request for lm-eval's tasks; None: no such tasks.
        missing: the requested tasks whose data is missing.

    Returns:
        unknown_bytes: the fraction of held-out bytes that the tokenizer encodes as unknown tokens. Left out where it is
            0.
        by_position: the loss by number of context tokens. Left out where it was not measured.
        lm_eval_tasks: the names and failures of the requested tasks. Left out without a request.
        suite: the scores of BigScience's suite. Left out without a request.
    """
    additional: dict[str, Any] = {}
    if unknown := sum(row.get("unknown_bytes", 0) for row in rows):
        sizes = [entry["bytes"] for entry in scores["tasks"].values() if entry["metric"] == "bits_per_byte"]
        additional["unknown_bytes"] = unknown / sum(sizes)
    if outcomes.curves:
        additional["by_position"] = position.mean_curve(outcomes.curves)
    if requested:
        request = {"asked": requested.names, "missing": missing, "failed": outcomes.failed, "shots": requested.shots}
        additional["lm_eval_tasks"] = request
        additional["suite"] = entries.suite_scores(scores | additional, rows)
    return additional


def load_model(
    directory: Path, weights: Weights, run: dict[str, Any], store: Path, precision: str | None, rank: int
) -> tuple[Any, Any, str, int]:
    """Load a run's model with trained weights: (the model, its tokenizer, the precision in which it computes ("fp32" or
    "bf16"), the number of GPUs of this machine).

    Args:
        directory: the run directory.
        weights: the weights at the end of training, or those saved at a step.
        run: the content of run.json.
        store: the store of prepared data, with the tokenizer.
        precision: "fp32" or "bf16"; None: bf16 on a GPU, fp32 elsewhere.
        rank: the number of this process, which picks its GPU.

    Raises:
        ValueError: the weights do not fit the configuration, or a file is damaged.
    """
    import torch

    from model.allocator import keep_freed_memory
    from model.gpt import GPT

    tokenizer = location.load_tokenizer(directory, run, store)
    if not rank and (note := weights.verify_hash()):
        print(f"note: {note}", file=sys.stderr)
    cfg = location.model_config(directory, run)
    weights.check_size(cfg)
    try:
        model = GPT(cfg)
        model.load_state_dict(weights.state_dict(run, model), strict=True)
    except (TypeError, RuntimeError) as error:
        raise ValueError(
            f"{directory}: the weights are not those of its configuration, or of another version: {error}"
        ) from error
    gpus = torch.cuda.device_count()
    precision = precision or ("bf16" if gpus else "fp32")
    device = f"cuda:{rank % gpus}" if gpus else "cpu"
    if not gpus:
        keep_freed_memory()
    return model.to(device, torch.bfloat16 if precision == "bf16" else torch.float32), tokenizer, precision, gpus


def start_ranks(
    directory: Path, weights: Weights, requested: TaskRequest | None, store: Path, precision: str, processes: int
) -> list[subprocess.Popen]:
    """Start the other processes of an evaluation, numbers 1 to `processes` - 1, which share the work. Returns them.

    Args:
        directory: the run directory.
        weights: the weights to evaluate.
        requested: tasks of lm-eval to run besides those made from held-out text; None: no such tasks.
        store: the store of prepared data.
        precision: "fp32" or "bf16".
        processes: the number of all processes, with this one.
    """
    options = ["--precision", precision, "--processes", str(processes), "--weights", weights.name]
    options += ["--store", str(store)]
    if requested:
        options += ["--tasks", ",".join(requested.names), "--data", str(requested.data.folder)]
        options += ["--shots", str(requested.shots)] if requested.shots is not None else []
    command = [sys.executable, "-m", "eval", str(directory), *options]
    return [
        subprocess.Popen([*command, "--rank", str(rank)], stderr=subprocess.DEVNULL) for rank in range(1, processes)
    ]


@contextmanager
def progress_bar(name: str) -> Iterator[Callable[[int, int], None]]:
    """A context with a progress bar on the terminal. Yields a function that moves the bar; its arguments are the number
    of finished tokens and of all tokens. `name`: what is evaluated, shown beside the bar."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    rate, console = TextColumn("{task.fields[rate]} tokens/s"), Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), rate, TimeRemainingColumn())
    bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    task = bar.add_task(safe_files.printable(f"evaluate {name}"), total=None, rate="-")

    def advance(done: int, total: int) -> None:
        speed = bar.tasks[0].speed
        bar.update(task, completed=done, total=total, rate=f"{speed:,.0f}" if speed else "-")

    with bar:
        yield advance
