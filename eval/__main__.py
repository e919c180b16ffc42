"""python -m eval RUN_DIR ...: judges runs; writes samples.jsonl.gz, then eval.json, into each that is finished.

Where weights were kept on the way (layout.eval_at), they are judged too, also while the run goes on: eval-step_N.json.
Always by what held-out text gives (eval/tasks/probes.py); with --tasks also by lm-eval's tasks, on data that is on this
machine (eval/tasks/mirror.py). Without a run, says whether those tasks could be run.
"""

import argparse
import gzip
import importlib.metadata
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from eval.statistics import LN2, mean_stderr, ratio_stderr
from eval.tasks import mirror, position, probes
from eval.tasks.suite import suite
from eval.weights import Weights, found, write

PARTS = ".parts"  # eval.parts in a run directory, while it is evaluated: outcomes so far (eval/tasks/score.py)


def main(argv: list[str] | None = None) -> int:
    about = (
        "Evaluate finished runs, and the weights that a run has kept so far. What has an eval.json of the same "
        "weights with the tasks is left as it is."
    )
    parser = argparse.ArgumentParser(prog="python -m eval", description=about)
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN_DIR", help="of a run")
    parser.add_argument(
        "--tasks", default="", metavar="NAMES", help="suite, multilingual, or any of lm-eval's, with commas between"
    )
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="where their data is (make eval-data)")
    parser.add_argument("--precision", choices=("fp32", "bf16"), help="default: bf16 on a GPU, fp32 elsewhere")
    parser.add_argument("--processes", type=int, default=0, help="default: one for each GPU, or one")
    parser.add_argument("--rank", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--weights", default="", help=argparse.SUPPRESS)  # of a rank: those of `Weights.name`
    args = parser.parse_args(argv)
    tasks = [name.strip() for name in args.tasks.split(",") if name.strip()]
    if not args.runs and not tasks:
        parser.error("give the directory of a run, or --tasks")
    if args.processes < 0 or not 0 <= args.rank <= max(0, args.processes - 1):
        parser.error(f"--processes {args.processes}: a number of processes, or 0 for one on each GPU")
    try:
        if tasks and not args.data:
            raise ValueError("--tasks needs --data, the folder that `make eval-data` has filled")
        for directory in args.runs:
            for name in ("run.json", "done", "weights.safetensors"):
                if not (directory / name).exists() and (name == "run.json" or not found(directory)):
                    raise ValueError(
                        f"{directory} has no {name}: only a finished run can be evaluated, or one that "
                        "has kept weights on the way (layout.eval_at)"
                    )
        data = mirror.Mirror(args.data) if tasks else None
        if data and not args.runs:
            print(f"{len(available(tasks, data)[0])} tasks can be run")
        for directory, weights in [(each, weights) for each in args.runs for weights in found(each)]:
            if args.weights not in ("", weights.name):
                continue
            result = None if args.rank else current(directory, weights, tasks, data, args.precision)
            asked = tasks if result or args.rank else with_those_before(directory, weights, tasks, data)
            result = result or evaluate(directory, weights, asked, data, args.precision, args.processes, args.rank)
            if not args.rank:
                at = f" at {weights.tokens:,} tokens" if weights.tokens else ""
                print(f"{json.loads((directory / 'run.json').read_text())['cell']}{at}: {summary(result)}")
    except (ValueError, FileNotFoundError) as error:  # the latter when training goes back to an earlier step meanwhile
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def with_those_before(directory: Path, weights: Weights, tasks: list[str], data: mirror.Mirror | None) -> list[str]:
    """`tasks`, and those by which the run was judged before and can be now: no result goes because more is asked."""
    path = directory / f"{weights.name}.json"
    had = json.loads(path.read_text()).get("lm_eval_tasks", {"asked": []})["asked"] if path.exists() else []
    if not data:
        return tasks
    again = []
    for name in had:
        try:
            available([name], data, tell=False)
            again.append(name)
        except ValueError as error:
            print(f"judged before by {name}, and no longer: {error}", file=sys.stderr)
    return list(dict.fromkeys([*again, *tasks]))


def available(tasks: list[str], data: mirror.Mirror, tell: bool = True) -> tuple[dict, list[str]]:
    """lm-eval's definitions of the tasks whose data is here and whole, and the names of the others, which are told.

    Raises:
        ValueError: when a task that was asked for by its own name cannot be run, or none of a group.
    """
    from eval.tasks import harness

    asked = {name: harness.definitions(mirror.names([name])) for name in tasks}
    found = {name: each for own in asked.values() for name, each in own.items()}
    lacking = {name: why for name, each in found.items() if (why := data.lacks(each.source))}
    unable = [f"{name}: {lacking[name]}" for name in asked if name in lacking]
    unable += [
        f"{name}: {data.folder} has the data of none of its {len(own)} tasks"
        for name, own in asked.items()
        if name not in own and own.keys() <= lacking.keys()
    ]
    if unable:
        raise ValueError("these tasks cannot be run:\n  " + "\n  ".join(unable))
    for name, why in lacking.items() if tell else ():
        print(f"missing: {name}: {why}", file=sys.stderr)
    return {name: each for name, each in found.items() if name not in lacking}, list(lacking)


def identity(directory: Path, weights: Weights) -> dict:
    """What the result of an evaluation depends on, besides the items that follow from it."""
    config = json.loads((directory / "run.json").read_text())["config"]
    return {
        "version": probes.specification()["version"],
        "lm_eval": importlib.metadata.version("lm_eval"),
        "weights_sha256": weights.sha256,
        "corpora": config["eval"]["corpora"],
    }


def current(
    directory: Path,
    weights: Weights,
    tasks: Iterable[str] = (),
    data: mirror.Mirror | None = None,
    precision: str | None = None,
) -> dict | None:
    """The evaluation that is there already, when it is of these weights, in the precision that is asked for, if one is,
    and `has` the tasks."""
    try:
        result = json.loads((directory / f"{weights.name}.json").read_text())
    except FileNotFoundError:
        return None
    if not weights.step and not (directory / "samples.jsonl.gz").exists():
        return None
    asked = identity(directory, weights) | ({"precision": precision} if precision else {})
    return result if asked.items() <= result.items() and (not data or has(result, tasks, data)) else None


def has(result: dict, tasks: Iterable[str], data: mirror.Mirror) -> bool:
    """Whether an evaluation has the tasks, but for those whose data is still lacking, and none of data that is another
    by now. Data sets of other tasks may come and go."""
    had = result.get("lm_eval_tasks")
    if not had or not set(tasks) <= set(had["asked"]):
        return False
    if any(data.changed(entry["data"]) for entry in result["tasks"].values() if "data" in entry):
        return False
    if not had["missing"]:
        return True
    from eval.tasks import harness

    asked = harness.definitions(mirror.names(tasks))
    return all(data.lacks(asked[name].source) for name in had["missing"] if name in asked)


def evaluate(
    directory: Path,
    weights: Weights,
    tasks: list[str],
    data: mirror.Mirror | None,
    precision: str | None = None,
    processes: int = 0,
    rank: int = 0,
) -> dict:
    """Evaluates one model of a run; returns what it writes to eval.json, or to eval-step_N.json.

    precision: fp32 or bf16. processes: how many share the work, each with a GPU of its own where there are GPUs; this
    one is number `rank`, and 0 starts the others and writes.
    """
    start = time.monotonic()
    run = json.loads((directory / "run.json").read_text())
    seq = run["config"]["model"]["seq"]

    from data.prepare import held_out

    spec = probes.specification()["tasks"]
    made: dict[str, tuple[dict, list[dict]]] = {}
    domains: dict[str, tuple[dict, list[dict]]] = {}
    read: dict[str, list[str]] = {}
    for corpus in run["config"]["eval"]["corpora"]:
        text = held_out(corpus, Path(run["data_store"]), run["config"]["data"].get("allow_errors", 0))
        read[corpus] = probes.documents(text)
        for name, items in probes.items(read[corpus], seq).items():
            made[f"{corpus}/{name}"] = (spec[name], items)
        for name, items in probes.by_domain(text, spec["bits_per_byte"]["domain_bytes"]).items():
            domains[f"{corpus}/{name}"] = (spec["bits_per_byte"], items)
    omitted = [name for name, (_, items) in made.items() if not items]

    from eval.tasks import harness, score

    named, missing = available(tasks, data) if data else ({}, [])
    model, tokenizer, precision, gpus = load(directory, weights, run, precision, rank)
    processes = processes or max(1, gpus)
    others = (
        []
        if rank
        else [
            subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "eval",
                    str(directory),
                    "--precision",
                    precision,
                    "--processes",
                    str(processes),
                    "--rank",
                    str(other),
                    "--weights",
                    weights.name,
                    *(["--tasks", ",".join(tasks)] if data else []),
                    *(["--data", str(data.folder)] if data else []),
                ],
                stderr=subprocess.DEVNULL,
            )
            for other in range(1, processes)
        ]
    )
    depends = identity(directory, weights) | {"precision": precision}  # what was asked is in each line
    journal = score.Journal(
        directory / (weights.name + PARTS),
        depends,
        rank,
        processes,
        lambda: all(other.poll() is None for other in others),
    )
    with progress(run["cell"]) as advance:
        scorer = harness.Scorer(model, tokenizer, window=seq, progress=advance, journal=journal)
        ours = harness.evaluate(scorer, {name: each for name, each in made.items() if each[1]})
        theirs = harness.evaluate_named(scorer, named, data) if data else {}
        apart = harness.evaluate(scorer, domains) if domains else {}
        reach = (
            {}
            if weights.step
            else {
                corpus: position.curve(position.pieces(texts, tokenizer, seq), seq, model.max_length, scorer.score)
                for corpus, texts in read.items()
            }
        )
    journal.close()
    if rank:
        return {}

    results, rows = {}, []
    for name, outcome in ours.items():
        entry, items = made[name]
        samples = outcome.pop("samples")
        rows += [{"task": name, **sample} for sample in samples]
        if entry["metric"] == "bits_per_byte":
            error, chance = loss(samples)["stderr"], None
            outcome["bytes"] = loss(samples)["bytes"]
        else:
            error = mean_stderr(np.array([sample["value"] for sample in samples], float))
            chance = probes.chance(items, entry["chance"])
        results[name] = {
            "metric": entry["metric"],
            **outcome,
            "stderr": error,
            "n": len(items),
            "chance": chance,
            "higher_is_better": entry["higher_is_better"],
            "mean": entry.get("mean", False),
        }
    for name, outcome in theirs.items():
        rows += [{"task": name, **sample} for sample in outcome["samples"]]
        values = np.array([sample["value"] for sample in outcome.pop("samples")], float)
        stderr = mean_stderr(values) if outcome["metric"] in ("acc", "exact_match") else None
        results[name] = {**outcome, "stderr": stderr, "mean": False, "suite": name in mirror.suite()}
    losses = [r for r in results.values() if r["metric"] == "bits_per_byte"]
    scores = [r for r in results.values() if r["mean"]]
    zero_shot = {key: 100 * mean(scores, key) for key in ("value", "stderr", "chance")} if scores else None
    result = {
        **identity(directory, weights),
        **({"step": weights.step, "tokens": weights.tokens} if weights.step else {}),
        "tasks": results,
        "omitted": omitted,
        "bits_per_byte": {key: mean(losses, key) for key in ("value", "stderr")},
        "by_domain": {
            corpus: {
                name.removeprefix(f"{corpus}/"): loss(outcome["samples"])
                for name, outcome in apart.items()
                if name.startswith(f"{corpus}/")
            }
            for corpus in read
        },
        "zero_shot": zero_shot,
        "precision": precision,
        "seconds": round(time.monotonic() - start, 1),
    }
    if not weights.step:
        result["by_position"] = position.mean(list(reach.values()))
    if data:
        result["lm_eval_tasks"] = {"asked": tasks, "missing": missing}
        result["suite"] = suite([result])
    if not weights.step:
        write(directory / "samples.jsonl.gz", gzip.compress("".join(map(line, rows)).encode(), mtime=0))
    write(directory / f"{weights.name}.json", json.dumps(result, indent=1).encode())
    for other in others:
        other.wait()
    shutil.rmtree(directory / (weights.name + PARTS), ignore_errors=True)  # another process may do the same
    return result


def loss(samples: list[dict]) -> dict:
    """Of documents [{"nats", "bytes"}]: {"value": bits per byte, "stderr", "bytes", "n": documents}."""
    nats, sizes = (np.array([sample[key] for sample in samples], float) for key in ("nats", "bytes"))
    return {
        "value": float(nats.sum() / LN2 / sizes.sum()),
        "stderr": ratio_stderr(nats / LN2, sizes),
        "bytes": int(sizes.sum()),
        "n": len(samples),
    }


def load(directory: Path, weights: Weights, run: dict, precision: str | None, rank: int) -> tuple[Any, Any, str, int]:
    """The model with its trained weights, its tokenizer, the precision it has, and how many GPUs there are."""
    import torch

    from data.tokenizer import load_tokenizer
    from model.config import ModelConfig
    from model.gpt import GPT

    tokenizer = load_tokenizer(run["data"]["tokenizer"]["path"])
    if tokenizer.sha256 != run["data"]["tokenizer"]["sha256"]:
        raise ValueError(f"{tokenizer.path} is not the tokenizer that {directory} was trained with")
    model = GPT(ModelConfig(**run["config"]["model"]))
    model.load_state_dict(weights.read(run, model), strict=True)
    gpus = torch.cuda.device_count()
    precision = precision or ("bf16" if gpus else "fp32")
    device = f"cuda:{rank % gpus}" if gpus else "cpu"
    return model.to(device, torch.bfloat16 if precision == "bf16" else torch.float32), tokenizer, precision, gpus


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
    bits, score = result["bits_per_byte"], result["zero_shot"]
    text = f"{bits['value']:.3f} ± {bits['stderr']:.3f} bits/byte"
    if score:
        text += f", zero-shot {score['value']:.1f} ± {score['stderr']:.1f} % (chance {score['chance']:.1f} %)"
    if found := result.get("suite"):
        some = "" if found["tasks"] == found["of"] else f" ONLY {found['tasks']} OF"
        text += (
            f", suite{some} {found['of']} tasks {found['value']:.2f} ± {found['stderr']:.2f} % "
            f"(chance {found['chance']:.1f} %)"
        )
    return f"{text}, {result['seconds']:.0f} s"


def line(row: dict) -> str:
    return json.dumps(row) + "\n"


if __name__ == "__main__":
    sys.exit(main())
