"""Evaluates the weights of a run: loads the model, runs the tasks, and writes scores and samples (eval/results.py)."""

import math
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ablations import safe_files
from eval import location, results
from eval.statistics.items import LN2, ratio_stderr, stderr_of_mean
from eval.tasks import mirror, position, probes
from eval.tasks.choice import available
from eval.tasks.suite import suite
from eval.weights import Weights

PARTS = ".parts"  # eval.parts in a run directory, while it is evaluated: outcomes so far (eval/tasks/journal.py)
NO_LIKELIHOOD = (
    "model.objective=mlm gives no likelihood of a text from left to right, which TASKS need. Its held-out loss on "
    "masked tokens is always measured; fine-tuning on GLUE is possible: make glue"
)
Tasks = dict[str, tuple[dict, list[dict]]]  # {name: (its entry in tasks.yaml, items)}


def judge(
    directory: Path,
    weights: Weights,
    tasks: list[str],
    data: mirror.Mirror | None,
    shots: int | None = None,
    store: Path | None = None,
    precision: str | None = None,
    processes: int = 0,
    rank: int = 0,
) -> dict[str, Any]:
    """Evaluate the weights of a run; returns what is written to eval.json, or to eval-step_N.json.

    Args:
        directory: the run directory.
        weights: the weights, those at the end of training or those of a step.
        tasks: names of tasks of lm-eval.
        data: the folder with the data of these tasks; None: they are not run.
        shots: the number of examples in each prompt of these tasks; None: as each task's definition says.
        store: the store of prepared data; None: that of the run's OUT folder.
        precision: fp32 or bf16; None: bf16 on a GPU, fp32 elsewhere.
        processes: how many processes share the work, each with a GPU of its own where there are GPUs; 0: one per GPU.
        rank: the number of this process. Number 0 starts the others, and writes the result; the others return {}.

    Raises:
        ValueError: the run cannot be evaluated, or a score is NaN. Nothing is written then. A task of lm-eval that
            fails does not raise; the result names it under "lm_eval_tasks", "failed".
    """
    start = time.monotonic()
    run = location.read_run(directory)
    store = location.data_store(directory, store)
    seq = run["config"]["model"]["seq"]
    tasks_of_text, domains, texts = held_out_tasks(run, store)
    masks = run["config"]["model"]["objective"] == "mlm"
    if masks and tasks:
        raise ValueError(NO_LIKELIHOOD)

    from eval.tasks import harness
    from eval.tasks.journal import Journal
    from eval.tasks.scorer import Scorer

    named, missing = available(tasks, data, shots, tell=not rank) if data else ({}, [])
    model, tokenizer, precision, gpus = load(directory, weights, run, store, precision, rank)
    processes = processes or max(1, gpus)
    journal_folder = directory / (weights.name + PARTS)
    safe_files.inside(directory, journal_folder.name)
    helpers: list[subprocess.Popen] = []
    if not rank:
        words = ["--precision", precision, "--processes", str(processes), "--weights", weights.name]
        words += ["--store", str(store)]
        if data:
            words += ["--tasks", ",".join(tasks), "--data", str(data.folder)]
            words += ["--shots", str(shots)] if shots is not None else []
        helpers = [start_rank(directory, words, number) for number in range(1, processes)]
    journal = Journal(
        journal_folder,
        results.identity(run, weights) | {"precision": precision},  # the requests themselves are the journal's keys
        rank,
        processes,
        lambda: all(helper.poll() is None for helper in helpers),
    )
    with progress(run["cell"]) as advance:
        theirs: dict[str, Any] = {}
        failed: dict[str, str] = {}
        curves = []
        if masks:
            tasks_of_text, domains = masked_tasks(tasks_of_text, model), masked_tasks(domains, model)
            ours = {
                name: masked_outcome(model, tokenizer, items, advance) for name, (_, items) in tasks_of_text.items()
            }
            by_domain = {name: masked_outcome(model, tokenizer, items, advance) for name, (_, items) in domains.items()}
        else:
            scorer = Scorer(model, tokenizer, window=seq, progress=advance, journal=journal)
            ours = harness.evaluate(
                scorer, {name: (spec, items) for name, (spec, items) in tasks_of_text.items() if items}
            )
            theirs, failed = harness.evaluate_named(scorer, named, data) if data else ({}, {})
            by_domain = harness.evaluate(scorer, domains) if domains else {}
            for documents in texts.values() if weights.step is None else ():
                pieces = position.pieces(documents, tokenizer, seq)
                curves.append(position.curve(pieces, seq, model.max_length, scorer.score))
    journal.close()
    if rank:
        return {}

    entries, rows = {}, []
    for name, outcome in ours.items():
        entries[name], samples = our_entry(*tasks_of_text[name], outcome)
        rows += [{"task": name, **sample} for sample in samples]
    for name, outcome in theirs.items():
        samples = outcome.pop("samples")
        rows += [{"task": name, **sample} for sample in samples]
        stderr = task_stderr(samples) if outcome["metric"] in ("acc", "exact_match") else None
        entries[name] = {**outcome, "stderr": stderr, "mean": False, "suite": name in mirror.suite()}
    losses = [entries[name] for name in ours if entries[name]["metric"] == "bits_per_byte"]
    counted = [entry for entry in entries.values() if entry["mean"]]
    unknown = sum(row.get("unknown_bytes", 0) for row in rows)
    result = {
        **results.identity(run, weights),
        **({"step": weights.step, "tokens": weights.tokens} if weights.step is not None else {}),
        "tasks": entries,
        "omitted": [name for name, (_, items) in tasks_of_text.items() if not items],
        "bits_per_byte": {key: mean(losses, key) for key in ("value", "stderr")},
        "by_domain": {
            corpus: {
                name.removeprefix(f"{corpus}/"): loss(outcome["samples"])
                for name, outcome in by_domain.items()
                if name.startswith(f"{corpus}/")
            }
            for corpus in texts
        },
        "zero_shot": {key: scaled(mean(counted, key)) for key in ("value", "stderr", "chance")} if counted else None,
        "precision": precision,
        "seconds": round(time.monotonic() - start, 1),
    }
    if unknown:
        result["unknown_bytes"] = unknown / sum(entry["bytes"] for entry in losses)
    if curves:
        result["by_position"] = position.mean(curves)
    if data:
        result["lm_eval_tasks"] = {"asked": tasks, "missing": missing, "failed": failed, "shots": shots}
        result["suite"] = known_or_none(suite([result]))
    results.write(directory, weights, result, rows)
    for helper in helpers:
        helper.wait()
    shutil.rmtree(journal_folder, ignore_errors=True)  # another process may do the same
    return result


def held_out_tasks(run: dict[str, Any], store: Path) -> tuple[Tasks, Tasks, dict[str, list[str]]]:
    """The tasks made from the held-out text of the corpora in eval.corpora.

    Args:
        run: the content of run.json.
        store: the store of prepared data.

    Returns three dictionaries:
        {"corpus/task": (its entry in tasks.yaml, items)}: the tasks.
        {"corpus/domain": (the entry of bits_per_byte, items)}: tasks for the held-out loss of each domain.
        {corpus: its held-out documents}.
    """
    spec = probes.specification()["tasks"]
    tasks: Tasks = {}
    domains: Tasks = {}
    texts: dict[str, list[str]] = {}
    for corpus in run["config"]["eval"]["corpora"]:
        files = location.held_out_files(corpus, run, store)
        sources = probes.sources(files)
        texts[corpus] = list(sources)
        for name, items in probes.items(texts[corpus], run["config"]["model"]["seq"], sources).items():
            tasks[f"{corpus}/{name}"] = (spec[name], items)
        for name, items in probes.held_out_by_domain(files, spec["bits_per_byte"]["domain_bytes"]).items():
            domains[f"{corpus}/{name}"] = (spec["bits_per_byte"], items)
    return tasks, domains, texts


def masked_tasks(tasks: Tasks, model: Any) -> Tasks:
    """The held-out loss tasks among `tasks`, renamed for a masked language model: {name with the mask rate: task}. The
    text is the same; the names contain the mask rate, since losses at different rates cannot be compared."""
    rate = f"masked_{model.cfg.mask_rate:.0%}"
    return {f"{name}_{rate}": task for name, task in tasks.items() if task[0]["metric"] == "bits_per_byte"}


def masked_outcome(
    model: Any, tokenizer: Any, items: list[dict], advance: Callable[[int, int], None]
) -> dict[str, Any]:
    """The held-out loss on masked tokens, as a dictionary in the form in which `harness.evaluate` returns a task.

    Args:
        model: a GPT with objective mlm.
        tokenizer: its tokenizer.
        items: pieces of held-out text.
        advance: called with the number of finished tokens and of all tokens.
    """
    from eval.tasks.harness import sha256
    from eval.tasks.masked import masked_loss

    texts = [item["target"] for item in items]
    outcome = masked_loss(model, texts, tokenizer, tokenizer.mask, tokenizer.specials, advance)
    samples = [
        {"id": item["id"], "cluster": item["cluster"], **sample}
        for item, sample in zip(items, outcome.pop("samples"), strict=True)
    ]
    digest = sha256([item["id"] for item in items])
    return {"value": outcome.pop("bits_per_byte"), **outcome, "items_sha256": digest, "samples": samples}


def load(
    directory: Path, weights: Weights, run: dict[str, Any], store: Path, precision: str | None, rank: int
) -> tuple[Any, Any, str, int]:
    """The model with its trained weights, its tokenizer, the precision in which it computes ("fp32" or "bf16"), and the
    number of GPUs.

    Args:
        directory: the run directory.
        weights: the weights to load.
        run: the content of run.json.
        store: the store of prepared data.
        precision: fp32 or bf16; None: bf16 on a GPU, fp32 elsewhere.
        rank: the number of this process, which decides on its GPU.

    Raises:
        ValueError: the weights do not fit the configuration, or a file is damaged.
    """
    import torch

    from model.allocator import keep_freed_memory
    from model.config import ModelConfig
    from model.gpt import GPT

    tokenizer = location.load_tokenizer(directory, run, store)
    if not rank and (note := weights.check()):
        print(f"note: {note}", file=sys.stderr)
    try:
        model = GPT(ModelConfig(**run["config"]["model"]))
        model.load_state_dict(weights.read(run, model), strict=True)
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


def start_rank(directory: Path, words: list[str], rank: int) -> subprocess.Popen:
    """Start the evaluation of the run directory in another process, number `rank`, which shares the work with this
    process. `words`: its command-line options."""
    command = [sys.executable, "-m", "eval", str(directory), *words, "--rank", str(rank)]
    return subprocess.Popen(command, stderr=subprocess.DEVNULL)


# ------------------------------------------------------------------------------------------------ numbers


def our_entry(spec: dict[str, Any], items: list[dict], outcome: dict[str, Any]) -> tuple[dict[str, Any], list[dict]]:
    """The entry in eval.json of a task made from held-out text, and the samples of the task, which are taken out of
    `outcome`.

    Args:
        spec: the task's entry in tasks.yaml.
        items: the items of the task.
        outcome: the result of the task from `harness.evaluate`.
    """
    samples = outcome.pop("samples")
    if spec["metric"] == "bits_per_byte":
        loss_ = loss(samples)
        outcome |= {"bytes": loss_["bytes"], "stderr": loss_["stderr"], "chance": None, "guess": None}
    else:
        chance = probes.chance(items, spec["chance"])
        guess = max(chance, probes.chance(items, "commonest"))
        outcome |= {"stderr": task_stderr(samples), "chance": chance, "guess": guess}
    entry = {
        "metric": spec["metric"],
        **outcome,
        "n": len(items),
        "version": probes.specification()["version"],
        "shots": 0,
        "higher_is_better": spec["higher_is_better"],
        "mean": spec.get("mean", False),
        "suite": False,
    }
    return entry, samples


def loss(samples: list[dict]) -> dict[str, Any]:
    """The loss over documents: {"value": bits per byte, "stderr", "bytes", "n": number of documents}. `samples`:
    [{"nats", "bytes"}] of the documents.

    The value is the ratio of the sums, in which each byte has the same weight, and not the mean of the documents'
    ratios.
    """
    nats, sizes = (np.array([sample[key] for sample in samples], float) for key in ("nats", "bytes"))
    return {
        "value": float(nats.sum() / LN2 / sizes.sum()),
        "stderr": number(ratio_stderr(nats / LN2, sizes)),
        "bytes": round(sizes.sum()),
        "n": len(samples),
    }


def task_stderr(samples: list[dict]) -> float | None:
    return number(stderr_of_mean(np.array([sample["value"] for sample in samples], float)))


def number(value: float) -> float | None:
    """`value`, or None where it is NaN or infinite, since JSON has no NaN. The standard error of a single item is
    NaN."""
    return value if math.isfinite(value) else None


def scaled(value: float | None) -> float | None:
    """A fraction as a percentage; None for None."""
    return None if value is None else 100 * value


def known_or_none(scores: dict[str, Any] | None) -> dict[str, Any] | None:
    """The scores of the suite with None in place of NaN, which JSON does not have; None for None."""
    if scores is None:
        return None
    return {key: number(value) if isinstance(value, float) else value for key, value in scores.items()}


def mean(entries: list[dict], key: str) -> float | None:
    """The unweighted mean over tasks of the values under `key` in their entries of eval.json; for key="stderr" the
    standard error of a mean over independent tasks. None where one of the values is None."""
    if any(entry[key] is None for entry in entries):
        return None
    values = np.array([entry[key] for entry in entries])
    return float(np.sqrt((values**2).sum()) if key == "stderr" else values.sum()) / len(values)


@contextmanager
def progress(name: str) -> Iterator[Callable[[int, int], None]]:
    """A context with a progress bar on the terminal. Yields the function that moves the bar, whose arguments are the
    number of finished tokens and of all tokens. `name`: what is evaluated."""
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
