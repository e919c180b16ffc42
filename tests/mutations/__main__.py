"""Breaks the code in each recorded way, and shows which proof and which test notice: `make mutations`. With
ARGS="rotary bias" only a few are tried.

A mutation replaces text in a copy of the sources, which is then called a mutant. Each mutant goes through the checks
that every run makes before its first step (the proofs, the parameter groups, the settings in effect), and through
tests. The exit code is 1 where a mutant passes its tests, or the proof that should fail; where the text to replace is
no longer in the sources; and where the unbroken code fails.
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
    """Run the checks and tests of a mutant in this process, and write the result into verdict.json of the folder
    `copy`: {"proofs": [setting whose proof fails, ...], "test": the first test that fails, or None}."""
    with open(copy / "output", "w") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    os.chdir(copy)
    os.environ["PYTHONPATH"] = str(copy)  # for the processes that tests start
    sys.path[0] = str(copy)
    for name in [name for name in sys.modules if name.partition(".")[0] == "tests"]:
        del sys.modules[name]  # the tests of the copy are imported instead
    for name in PACKAGES:  # an editable installation would import the unbroken sources
        file = importlib.import_module(name).__file__
        assert file and Path(file).is_relative_to(copy), f"{name} comes from {file}, not from {copy}"

    import pytest

    settings = dict.fromkeys(m.setting for m in MUTATIONS) if mutation is CONTROL else [mutation.setting]
    proofs = [key for setting in settings for key in failed_checks(f"{SMALL} {setting}".split())]
    failed: list[str] = []

    class Failures:
        def pytest_runtest_logreport(self, report: Any) -> None:
            if report.failed:
                failed.append(report.nodeid)

    options = ["-x", "-q", "--no-header", "-p", "no:cacheprovider", "-p", "no:xdist", *mutation.tests.split()]
    code = pytest.main(options, plugins=[Failures()])
    assert code == (pytest.ExitCode.TESTS_FAILED if failed else pytest.ExitCode.OK), f"pytest: {code!r}"
    (copy / "verdict.json").write_text(json.dumps({"proofs": proofs, "test": failed[0] if failed else None}))


def failed_checks(words: list[str]) -> list[str]:
    """The settings and factors for which launch/manifest.py would stop a run before its first step, because a proof
    fails or the value in effect is not the configured one. `words`: the run's settings, as KEY=VALUE."""
    from ablations.config import ConfigError, resolve
    from launch import deepspeed_setup, engine, run_model
    from launch.effective import settings_in_effect
    from model import proof

    try:
        run = resolve([(key, value) for key, _, value in (word.partition("=") for word in words)])
    except ConfigError as error:
        return [str(error).partition(" ")[0]]
    deepspeed_setup.initialise_process(run)
    live = engine.build_engine(run_model.build_model(run), run, 1)
    _, groups = proof.prove_weight_decay(live.model, live.parameter_groups, run.train.decay_embnorm)
    failed = [p.factor for p in [*proof.prove_factors(live.model), groups, *live.proofs] if not p.passed]
    declared = run.flat()
    return failed + [key for key, value in settings_in_effect(live).items() if value != declared[key]]


# ------------------------------------------------------------------------------------------------ outside


def break_a_copy(mutation: Mutation, copy: Path) -> str:
    """Copy the sources into the folder `copy` and apply the mutation. Returns why it cannot be applied; "" where it is
    applied."""
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
    """The result of a mutant that has run. Returns (the dictionary that `judge` wrote, empty where the mutant does not
    run; the fault, "" where the mutant was noticed)."""
    output = (copy / "output").read_text()
    if not (copy / "verdict.json").exists():
        return {}, "does not run:\n" + output[-2000:]
    failures = json.loads((copy / "verdict.json").read_text())
    if mutation is CONTROL:
        passed = failures == {"proofs": [], "test": None}
        return failures, "" if passed else f"fails, {failures['proofs']}:\n{output[-3000:]}"
    faults = [] if failures["test"] else ["no test notices"]
    if mutation.proof and not any(mutation.proof in key for key in failures["proofs"]):
        faults.append(f"the proof of {mutation.proof} does not notice")
    return failures, " and ".join(faults)


def run(
    mutations: list[Mutation], jobs: int, folder: Path, limit: float = float("inf")
) -> list[tuple[dict[str, Any], str] | None]:
    """Try mutations, each in a process of its own, forked from this one, which has imported the foreign libraries.

    Args:
        mutations: the mutations to try.
        jobs: the number of mutants that run at a time.
        folder: an empty folder for the copies of the sources.
        limit: seconds after which no further mutant is begun.

    Returns:
        For each mutation, in order, what `verdict` returned; None where it was not begun.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in FOREIGN:
            importlib.import_module(name)
    gc.freeze()  # no mutant's process searches these modules for garbage
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
            progress = f"{done}/{len(mutations)} {time.perf_counter() - began:.0f} s"
            print(f"{progress}  {mutations[i].name}: {result[1] or 'noticed'}", file=sys.stderr, flush=True)
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
    if args.limit < float("inf"):  # another order each day: within some days every mutation is tried
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
    for mutation, (failures, _) in zip(chosen, results, strict=True):
        if failures:
            proofs, test = ", ".join(failures["proofs"]) or "–", (failures["test"] or "**none**").replace("tests/", "")
            print(f"| {mutation.name} | {mutation.record or '–'} | {proofs} | {test} |")
    faults = [f"{m.name}: {fault}" for m, (_, fault) in zip(chosen, results, strict=True) if fault]
    faults += [f"{CONTROL.name}: {fault}"] if fault else []
    print("\n" + ("\n".join(faults) if faults else f"{len(chosen)} of {len(chosen)} noticed"))
    if left:
        print(f"no time for {len(left)}: {'; '.join(left)}")
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
