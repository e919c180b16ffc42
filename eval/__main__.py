"""python -m eval RUN_DIR ...: judges finished runs; writes samples.jsonl.gz, then eval.json, into each."""

import argparse
import gzip
import hashlib
import importlib.metadata
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from eval import probes
from eval.statistics import LN2, mean_stderr, ratio_stderr


def main(argv: list[str] | None = None) -> int:
    about = "Evaluate finished runs. One whose eval.json is of the same weights and tasks is left as it is."
    parser = argparse.ArgumentParser(prog="python -m eval", description=about)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN_DIR", help="of a finished run")
    args = parser.parse_args(argv)
    try:
        for directory in args.runs:
            for name in ("run.json", "done", "weights.safetensors"):
                if not (directory / name).exists():
                    raise ValueError(f"{directory} has no {name}: only a finished run can be evaluated")
        for directory in args.runs:
            result = current(directory) or evaluate(directory)
            print(f"{json.loads((directory / 'run.json').read_text())['cell']}: {summary(result)}")
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def identity(directory: Path) -> dict:
    """What the result of an evaluation depends on, besides the items that follow from it."""
    with open(directory / "weights.safetensors", "rb") as file:
        weights = hashlib.file_digest(file, "sha256").hexdigest()
    config = json.loads((directory / "run.json").read_text())["config"]
    return {"version": probes.specification()["version"], "lm_eval": importlib.metadata.version("lm_eval"),
            "weights_sha256": weights, "corpora": config["eval"]["corpora"]}


def current(directory: Path) -> dict | None:
    """The evaluation that is there already, when it is of these weights by these tasks."""
    try:
        result = json.loads((directory / "eval.json").read_text())
    except FileNotFoundError:
        return None
    return result if identity(directory).items() <= result.items() else None


def evaluate(directory: Path) -> dict:
    """Evaluates one run; returns what it writes to eval.json."""
    start = time.monotonic()
    run = json.loads((directory / "run.json").read_text())
    seq, vocab = run["config"]["model"]["seq"], run["config"]["model"]["vocab"]

    from data.prepare import prepare

    spec = probes.specification()["tasks"]
    tasks: dict[str, tuple[dict, list[dict]]] = {}
    for corpus in run["config"]["eval"]["corpora"]:
        manifest = prepare(corpus, run["config"]["data"]["tokenizer"], vocab, Path(run["data_store"]))
        held_out = manifest["valid"]
        for name, items in probes.items(probes.documents(held_out), seq).items():
            tasks[f"{corpus}/{name}"] = (spec[name], items)
    omitted = [name for name, (_, items) in tasks.items() if not items]

    from eval import harness

    with progress(run["cell"]) as advance:
        model, tokenizer = load(directory, run)
        scorer = harness.Scorer(model, tokenizer, window=seq, progress=advance)
        found = harness.evaluate(scorer, {name: each for name, each in tasks.items() if each[1]})

    results, rows = {}, []
    for name, outcome in found.items():
        entry, items = tasks[name]
        samples = outcome.pop("samples")
        rows += [{"task": name, **sample} for sample in samples]
        if entry["metric"] == "bits_per_byte":
            nats, sizes = (np.array([sample[key] for sample in samples], float) for key in ("nats", "bytes"))
            stderr, chance = ratio_stderr(nats / LN2, sizes), None
            outcome["bytes"] = int(sizes.sum())
        else:
            stderr = mean_stderr(np.array([sample["value"] for sample in samples], float))
            chance = probes.chance(items, entry["chance"])
        results[name] = {
            "metric": entry["metric"], **outcome, "stderr": stderr, "n": len(items), "chance": chance,
            "higher_is_better": entry["higher_is_better"], "mean": entry.get("mean", False),
        }  # fmt: skip
    losses = [r for r in results.values() if r["metric"] == "bits_per_byte"]
    scores = [r for r in results.values() if r["mean"]]
    zero_shot = {key: 100 * mean(scores, key) for key in ("value", "stderr", "chance")} if scores else None
    result = {
        **identity(directory),
        "tasks": results,
        "omitted": omitted,
        "bits_per_byte": {key: mean(losses, key) for key in ("value", "stderr")},
        "zero_shot": zero_shot,
        "seconds": round(time.monotonic() - start, 1),
    }
    write(directory / "samples.jsonl.gz", gzip.compress("".join(map(line, rows)).encode(), mtime=0))
    write(directory / "eval.json", json.dumps(result, indent=1).encode())
    return result


def load(directory: Path, run: dict) -> tuple[Any, Any]:
    """The model with its trained weights, and its tokenizer: fp32 on a CPU, bf16 on a GPU."""
    import torch
    from safetensors.torch import load_file

    from data.tokenizer import Tokenizer
    from model.config import ModelConfig
    from model.gpt import GPT

    tokenizer = Tokenizer(run["data"]["tokenizer"]["path"])
    if tokenizer.sha256 != run["data"]["tokenizer"]["sha256"]:
        raise ValueError(f"{tokenizer.path} is not the tokenizer that {directory} was trained with")
    model = GPT(ModelConfig(**run["config"]["model"]))
    model.load_state_dict(load_file(directory / "weights.safetensors"), strict=True)
    if torch.cuda.is_available():
        model.to("cuda", torch.bfloat16)
    return model, tokenizer


@contextmanager
def progress(name: str) -> Iterator[Callable[[int, int], None]]:
    """One line while it lasts: what is evaluated, tokens per second, time left."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    rate, console = TextColumn("{task.fields[rate]} tokens/s"), Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), rate, TimeRemainingColumn())
    bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    task = bar.add_task(f"evaluate {name}", total=None, rate="-")

    def advance(done: int, total: int) -> None:
        speed = bar.tasks[0].speed
        bar.update(task, completed=done, total=total, rate=f"{speed:,.0f}" if speed else "-")

    with bar:
        yield advance


def mean(results: list[dict], key: str) -> float:
    """Unweighted over tasks; standard errors of independent tasks in quadrature."""
    values = np.array([result[key] for result in results])
    return float(np.sqrt((values**2).sum()) if key == "stderr" else values.sum()) / len(values)


def summary(result: dict) -> str:
    loss, score = result["bits_per_byte"], result["zero_shot"]
    text = f"{loss['value']:.3f} ± {loss['stderr']:.3f} bits/byte"
    if score:
        text += f", zero-shot {score['value']:.1f} ± {score['stderr']:.1f} % (chance {score['chance']:.1f} %)"
    return f"{text}, {result['seconds']:.0f} s"


def line(row: dict) -> str:
    return json.dumps(row) + "\n"


def write(path: Path, content: bytes) -> None:
    """The whole file or none of it."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)


if __name__ == "__main__":
    sys.exit(main())
