"""python -m eval.finetune RUN_DIR --data FOLDER: a run fine-tuned on GLUE; or with --external FOLDER --to FOLDER a
checkpoint of Hugging Face's, as a row beside it.

Writes glue/TASK-SEED.json as each is done, with the outcome of every item, and glue/glue.json, the table. After a kill
the same command goes on with what is not there. Nothing is tuned for a task: one setting for all.
"""

import argparse
import multiprocessing
import os
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from ablations import rundir
from eval import location

SEEDS = 5  # the median of so many counts, as in "Cramming"
FOLDER = rundir.GLUE  # of results, in a run directory


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m eval.finetune", description="Fine-tune a model on GLUE.")
    parser.add_argument("run", nargs="?", type=Path, metavar="RUN_DIR", help="of a finished run")
    parser.add_argument(
        "--external", type=Path, metavar="FOLDER", help="a checkpoint of Hugging Face's, in place of a run"
    )
    parser.add_argument("--to", type=Path, metavar="FOLDER", help="where the results of --external go")
    parser.add_argument(
        "--data", type=Path, metavar="FOLDER", action="append", default=[], help="of GLUE; may be repeated"
    )
    parser.add_argument(
        "--store", type=Path, metavar="FOLDER", help="the run's prepared data (default: data in its OUT)"
    )
    parser.add_argument(
        "--tasks", default="", metavar="NAMES", help="with commas between (default: those whose data is there)"
    )
    parser.add_argument("--seeds", type=int, default=SEEDS, metavar="N", help="%(default)s")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="tasks and seeds at a time (%(default)s)")
    parser.add_argument(
        "--pooling", choices=("first", "mean", "last"), help="default: last for decoders, first for encoders"
    )
    parser.add_argument("--epochs", type=int, metavar="N", help="5 at most (default)")
    args = parser.parse_args(argv)
    try:
        return command(args)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def command(args: argparse.Namespace) -> int:
    from eval.finetune.train import Setting, identity, names_of, summarise

    if args.run is None and args.external is None and args.data:
        return check(args.data, list(names_of(args.tasks)), every=bool(args.tasks))
    if (args.run is None) == (args.external is None):
        raise ValueError("give the directory of a run, or --external and --to")
    if args.external and not args.to:
        raise ValueError("--external needs --to, a folder for its results")
    if args.seeds < 1 or args.jobs < 1:
        raise ValueError("--seeds and --jobs are numbers from 1 on")
    source = Source(args.run, args.external, args.store)
    setting = Setting(pooling=args.pooling or source.pooling())
    if args.epochs is not None:
        setting = replace(setting, epochs=args.epochs)
    setting = replace(setting, longest=min(setting.longest, source.longest() or setting.longest))
    sha256 = source.sha256()
    identities: dict[str, dict[str, Any]] = {}
    for name in names_of(args.tasks):
        try:
            identities[name] = identity(name, args.data, setting, sha256)
        except ValueError as error:
            if args.tasks:
                raise
            print(f"missing: {error}", file=sys.stderr)
    if not identities:
        raise ValueError("there is data of no task: --data names a folder of GLUE's files")
    if args.run:
        rundir.inside(args.run, FOLDER)
    folder = args.to if args.external else args.run / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    results: dict[tuple[str, int], dict[str, Any]] = {}
    todo = []
    for name, depends in identities.items():
        for seed in range(1, args.seeds + 1):
            if (result := finished(folder / f"{name}-{seed}.json", depends | {"seed": seed})) is None:
                todo.append((name, seed, depends))
            else:
                results[name, seed] = result
    failed = run_all(folder, source, args.data, setting, todo, args.jobs, results)
    by_task = {
        name: [results[name, seed] for seed in range(1, args.seeds + 1) if (name, seed) in results]
        for name in identities
    }
    for why in failed:
        print(f"error: {why}", file=sys.stderr)
    if not results:
        raise ValueError("no task could be fine-tuned; the reasons stand above")
    table = summarise({name: seeds for name, seeds in by_task.items() if seeds})
    rundir.write_json(
        folder / rundir.GLUE_TABLE, {"model_sha256": sha256, "setting": asdict(setting), **table}, indent=1
    )
    print(text(table))
    return 1 if failed else 0


def check(folders: list[Path], names: list[str], every: bool = False) -> int:
    """Without a run: says on which tasks one could be fine-tuned.

    Args:
        every: the tasks were named, so that each must have its data.

    Raises:
        ValueError: when there is data of none, or not of each that was named.
    """
    from eval.finetune.tasks import TASKS, find, load

    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"{folder}: no such folder; one with GLUE's files is needed, such as CoLA/train.tsv")
    there = [name for name in names if all(find(name, split, folders) for split in ("train", *TASKS[name].splits))]
    if not there:
        raise ValueError(
            f"{', '.join(map(str, folders))}: no data of any of {', '.join(names)}, such as CoLA/train.tsv "
            "and CoLA/dev.tsv"
        )
    if every and (missing := [name for name in names if name not in there]):
        raise ValueError(f"{', '.join(map(str, folders))}: no data of {', '.join(missing)}")
    for name in there:  # what is damaged is said before anything is trained
        for split in ("train", *TASKS[name].splits):
            load(name, split, folders)
    print(f"fine-tuning: {', '.join(there)}")
    return 0


class Source:
    """The pretrained model: a run of ours, or a folder of Hugging Face's. Picklable, for processes."""

    def __init__(self, run: Path | None, external: Path | None, store: Path | None):
        self.run, self.external, self.store = run, external, store
        if external and not (external / "config.json").is_file():
            raise ValueError(f"{external} has no config.json: it is no checkpoint of Hugging Face's")
        if run:
            self.record = location.read_run(run)
            if rundir.read_done(run) is None:
                raise ValueError(f"{run} has no {rundir.DONE}: only a finished run can be fine-tuned")
            self.store = location.data_store(run, store)

    def sha256(self) -> str:
        """Of the weights. Raises ValueError when those of a run are damaged."""
        if self.run:
            from eval.weights import Weights

            weights = Weights(self.run / rundir.WEIGHTS)
            if note := weights.check():
                print(f"note: {note}", file=sys.stderr)
            return weights.sha256
        from eval.finetune.train import digest

        assert self.external
        return digest([[path.name, rundir.sha256(path)] for path in sorted(self.external.glob("*.safetensors"))])

    def pooling(self) -> str:
        """A decoder's last token alone has seen all of a text."""
        if self.run:
            return "last" if self.record["config"]["model"]["objective"] == "causal" else "first"
        assert self.external
        config = rundir.read_json(self.external / "config.json") or {}
        return (
            "last"
            if any("CausalLM" in str(name) or "LMHead" in str(name) for name in config.get("architectures") or [])
            else "first"
        )

    def longest(self) -> int | None:
        """The longest input, in tokens; None where nothing limits it."""
        if self.run:
            model = self.record["config"]["model"]
            return model["seq"] if model["pos"] == "learned" else None
        assert self.external
        config = rundir.read_json(self.external / "config.json") or {}
        return config.get("max_position_embeddings") or config.get("n_positions")

    def encoder(self, longest: int) -> Callable[[str, str], list[int]]:
        from eval.finetune import classifier

        if self.run:
            assert self.store
            return classifier.encoder(location.load_tokenizer(self.run, self.record, self.store), longest)
        assert self.external
        return classifier.external_encoder(self.external, longest)

    def backbone(self, dropout: float, seed: int) -> Any:
        """A fresh model with the pretrained weights."""
        from eval.finetune import classifier

        if not self.run:
            assert self.external
            return classifier.External(self.external)
        from eval.weights import Weights
        from model.config import ModelConfig
        from model.gpt import GPT

        cfg = replace(ModelConfig(**self.record["config"]["model"]), dropout=dropout)
        model = GPT(cfg, seed=seed)
        model.load_state_dict(Weights(self.run / rundir.WEIGHTS).read(self.record, model), strict=True)
        return classifier.Ours(model.float())


def finished(path: Path, depends: dict[str, Any]) -> dict[str, Any] | None:
    """The result of a task and seed, when it is there, whole, and of the same model, data and setting."""
    try:
        result = rundir.read_json(path, ["sets", "task", "seed"], {"sets": dict})
    except rundir.Damaged as error:
        print(f"{error} It is made again.", file=sys.stderr)
        return None
    return result if result is not None and depends.items() <= result.items() else None


def one(
    folder: Path, source: Source, data: list[Path], setting: Any, name: str, seed: int, depends: dict[str, Any]
) -> dict[str, Any]:
    """Fine-tune on one task with one seed, and write the result."""
    import torch

    from eval.finetune.train import finetune

    make = partial(source.backbone, setting.dropout)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    result = finetune(name, data, make, source.encoder(setting.longest), setting, seed, device)
    result = depends | {"seed": seed} | result
    rundir.write_json(folder / f"{name}-{seed}.json", result)
    return result


def run_all(
    folder: Path,
    source: Source,
    data: list[Path],
    setting: Any,
    todo: list[tuple[str, int, dict[str, Any]]],
    jobs: int,
    results: dict[tuple[str, int], dict[str, Any]],
) -> list[str]:
    """Fine-tune on all tasks and seeds that `results` lacks, some at a time, with a progress bar. Returns a sentence
    for each failure."""
    from rich.console import Console
    from rich.progress import Progress

    failed: list[str] = []
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        line = bar.add_task("fine-tuning", total=len(todo))

        def done(name: str, seed: int, make: Callable[[], dict[str, Any]]) -> None:
            try:
                results[name, seed] = make()
            except (ValueError, RuntimeError) as error:
                failed.append(f"{name}, seed {seed}: {error}")
            bar.advance(line)

        if jobs == 1:
            for name, seed, depends in todo:
                bar.update(line, description=f"{name}, seed {seed}")
                done(name, seed, partial(one, folder, source, data, setting, name, seed, depends))
            return failed
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // jobs)))
        with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
            started = {pool.submit(one, folder, source, data, setting, *item): item for item in todo}
            for future in as_completed(started):
                name, seed, _ = started[future]
                done(name, seed, future.result)
    return failed


def text(table: dict[str, Any]) -> str:
    """The table for a terminal: medians, the spread over seeds, and both means by both metrics."""
    lines = []
    for name, entry in table["scores"].items():
        study = entry["study"]
        line = (
            f"{name:8} {study['metric']:9} {study['median']:6.1f}  ({study['lowest']:.1f} to {study['highest']:.1f}, "
        )
        line += f"{study['seeds']} seeds; chance {study['chance']:.1f})"
        if entry["collapsed"]:
            line += f"  {entry['collapsed']} COLLAPSED: the same answer to every item"
        lines.append(line)
    for kind in ("study", "leaderboard"):
        means = table[kind]
        some = "" if means["numbers"] == 9 else f" ONLY {means['numbers']} OF"
        lines.append(
            f"{kind} metrics: mean of{some} nine numbers {means['nine_numbers']:.1f}, of the eight tasks "
            f"{means['eight_tasks']:.1f}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
