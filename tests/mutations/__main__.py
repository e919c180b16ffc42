"""Breaks the code in each of the ways on record and shows what notices: `make mutations`, ARGS="rotary bias" for a few.

A mutation is a replacement of text in a copy of the sources. The mutant is asked what every run is asked before its
first step (the proofs, the audit of parameter groups, the engine's effective settings), and tested. The exit code is 1
when a mutant passes the tests, or passes the proof that should see it; when its text is no longer in the sources; and
when the code is at fault before it is broken.
"""

import argparse
import datetime
import gc
import importlib
import json
import multiprocessing
import multiprocessing.connection
import os
import random
import shutil
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

from tests.mutations import AREAS, MUTATIONS, ROOT, SMALL
from tests.mutations.mutation import MODEL, Mutation

PACKAGES = ("ablations", "data", "eval", "launch", "model")
FOREIGN = (
    "numpy",
    "torch",
    "deepspeed",
    "pytest",
    "transformers.models.bloom.modeling_bloom",
    "transformers.models.gpt2.modeling_gpt2",
    "transformers.models.gpt_neox.modeling_gpt_neox",
    "transformers.models.llama.modeling_llama",
    "megatron.core.datasets.gpt_dataset",
    "datatrove",
)
CONTROL_TESTS = dict.fromkeys(f"{MODEL} {' '.join(area.CONTROL for area in AREAS)}".split())
CONTROL = Mutation("(nothing broken)", "", "", "", [], " ".join(CONTROL_TESTS))


# ------------------------------------------------------------------------------------------------ the mutant's process


def judge(mutation: Mutation, copy: Path) -> None:
    """Writes what notices the mutant in `copy`: {"proofs": [key, ...], "test": the first that fails, or None}."""
    with open(copy / "output", "w") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    os.chdir(copy)
    os.environ["PYTHONPATH"] = str(copy)  # for the processes that tests start
    sys.path[0] = str(copy)
    for name in [name for name in sys.modules if name.partition(".")[0] == "tests"]:
        del sys.modules[name]  # the tests of the copy are imported instead
    for name in PACKAGES:  # an editable installation would lead back to the sources that are whole
        found = importlib.import_module(name).__file__
        assert found and Path(found).is_relative_to(copy), f"{name} comes from {found}, not from {copy}"

    import pytest

    settings = dict.fromkeys(m.setting for m in MUTATIONS) if mutation is CONTROL else [mutation.setting]
    proofs = [key for setting in settings for key in unproved(f"{SMALL} {setting}".split())]
    failed: list[str] = []

    class Failures:
        def pytest_runtest_logreport(self, report: Any) -> None:
            if report.failed:
                failed.append(report.nodeid)

    options = ["-x", "-q", "--no-header", "-p", "no:cacheprovider", "-p", "no:xdist", *mutation.tests.split()]
    code = pytest.main(options, plugins=[Failures()])
    assert code == (pytest.ExitCode.TESTS_FAILED if failed else pytest.ExitCode.OK), f"pytest: {code!r}"
    (copy / "verdict.json").write_text(json.dumps({"proofs": proofs, "test": failed[0] if failed else None}))


def unproved(words: list[str]) -> list[str]:
    """The keys over which a run so set would be stopped before its first step (launch/manifest.py)."""
    from ablations.config import ConfigError, resolve
    from launch import deepspeed_setup, engine, run_model
    from launch import effective as held
    from model import proof

    try:
        run = resolve([(key, value) for key, _, value in (word.partition("=") for word in words)])
    except ConfigError as error:
        return [str(error).partition(" ")[0]]
    deepspeed_setup.start(run)
    live = engine.build(run_model.build_model(run), run, 1)
    _, groups = proof.parameter_groups(live.model, live.parameter_groups, run.train.decay_embnorm)
    failed = [p.factor for p in [*proof.prove(live.model), groups, *live.proofs] if not p.passed]
    declared = run.flat()
    return failed + [key for key, value in held.settings_in_effect(live).items() if value != declared[key]]


# ------------------------------------------------------------------------------------------------ outside


def break_a_copy(mutation: Mutation, copy: Path) -> str:
    """Copies the sources and applies the mutation. Returns what is at fault with it (empty: nothing)."""
    for name in (*PACKAGES, "tests"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "Makefile"):  # commands refuse to run where there is no Makefile
        shutil.copy(ROOT / name, copy)
    for file, old, new in mutation.edits:
        text = (copy / file).read_text()
        if text.count(old) != 1:
            return f"does not apply: {file} has {text.count(old)} times: {old}"
        (copy / file).write_text(text.replace(old, new))
    return ""


def verdict(mutation: Mutation, copy: Path) -> tuple[dict[str, Any], str]:
    """What `judge` wrote, and what is at fault (empty: the mutant was noticed)."""
    output = (copy / "output").read_text()
    if not (copy / "verdict.json").exists():
        return {}, "does not run:\n" + output[-2000:]
    seen = json.loads((copy / "verdict.json").read_text())
    if mutation is CONTROL:
        return seen, "" if seen == {"proofs": [], "test": None} else f"fails, {seen['proofs']}:\n{output[-3000:]}"
    faults = [] if seen["test"] else ["no test notices"]
    if mutation.proof and not any(mutation.proof in key for key in seen["proofs"]):
        faults.append(f"the proof of {mutation.proof} does not notice")
    return seen, " and ".join(faults)


def run(
    mutations: list[Mutation], jobs: int, folder: Path, limit: float = float("inf")
) -> list[tuple[dict[str, Any], str] | None]:
    """Each in a process of its own, forked when everything foreign is imported; what `verdict` says, in order. None of
    those that had not begun after `limit` seconds."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in FOREIGN:
            importlib.import_module(name)
    gc.freeze()  # what is shared by all is not searched again in each
    began, done = time.perf_counter(), 0
    results: list[tuple[dict[str, Any], str] | None] = [None] * len(mutations)
    running: dict[Any, tuple[int, Any]] = {}
    todo = list(enumerate(mutations))
    while todo or running:
        if time.perf_counter() - began > limit:
            todo = []
        if todo and len(running) < jobs:
            i, mutation = todo.pop(0)
            copy = folder / str(i)
            fault = break_a_copy(mutation, copy)
            results[i] = {}, fault
            if fault:
                done += 1
                print(f"{mutation.name}: {fault}", file=sys.stderr, flush=True)
            else:
                process = multiprocessing.get_context("fork").Process(target=judge, args=(mutation, copy))
                process.start()
                running[process.sentinel] = i, process
            continue
        for sentinel in multiprocessing.connection.wait(list(running)):
            i, process = running.pop(sentinel)
            process.join()
            result = results[i] = verdict(mutations[i], folder / str(i))
            shutil.rmtree(folder / str(i))
            done += 1
            at = f"{done}/{len(mutations)} {time.perf_counter() - began:.0f} s"
            print(f"{at}  {mutations[i].name}: {result[1] or 'noticed'}", file=sys.stderr, flush=True)
    return results


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="only mutations with one of these in the name")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--limit", type=float, default=float("inf"), metavar="SECONDS", help="begin none after so long")
    parser.add_argument("--seed", type=int, help="the order in which they are tried (default: another each day)")
    args = parser.parse_args(argv)
    os.environ |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    sys.dont_write_bytecode = True
    chosen = [m for m in MUTATIONS if not args.words or any(w in m.name for w in args.words)]
    if args.limit < float("inf"):  # so that in some days all have had their turn
        seed = args.seed if args.seed is not None else datetime.date.today().toordinal()
        random.Random(seed).shuffle(chosen)
        print(f"in the order of --seed {seed}", file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="mutants") as folder:
        control, *tried = run([CONTROL, *chosen], args.jobs, Path(folder), args.limit)
    assert control is not None
    fault = control[1]
    left = [mutation.name for mutation, result in zip(chosen, tried, strict=True) if result is None]
    chosen = [mutation for mutation, result in zip(chosen, tried, strict=True) if result is not None]
    results = [result for result in tried if result is not None]
    print("| mutation | on record | proof | first test |\n|---|---|---|---|")
    for mutation, (seen, _) in zip(chosen, results, strict=True):
        if seen:
            proofs, test = ", ".join(seen["proofs"]) or "–", (seen["test"] or "**none**").replace("tests/", "")
            print(f"| {mutation.name} | {mutation.record or '–'} | {proofs} | {test} |")
    faults = [f"{m.name}: {fault}" for m, (_, fault) in zip(chosen, results, strict=True) if fault]
    faults += [f"{CONTROL.name}: {fault}"] if fault else []
    print("\n" + ("\n".join(faults) if faults else f"{len(chosen)} of {len(chosen)} noticed"))
    if left:
        print(f"no time for {len(left)}: {'; '.join(left)}")
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
