"""Decides under layout.compile=auto whether the runs of a study are compiled on a CPU. Either all of them are, or none:
they are compiled if this takes less time in all than it saves."""

import os
import shutil
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ablations.machine import has_gpu
from ablations.run import Run
from ablations.values import ConfigError

# CPU seconds that torch.compile and the proof of its graph take before the first step, for each layer of the model: in
# the first run of a graph on a machine; and in later ones, which find its code in torch's cache, a folder that all runs
# of a user share (TORCHINDUCTOR_CACHE_DIR, by default in /tmp). Measured at four layers (docs/performance.md).
COLD_COMPILE_SECONDS, WARM_COMPILE_SECONDS = 22.0, 4.0
# CPU seconds that a compiled run saves for each token, layer and column of the model's width, by precision: the least
# that was measured, on the same processor (docs/performance.md). In fp32 nothing is saved with learned positions.
SECONDS_SAVED = {"bf16": 4e-9}
COMPILING_MODES = ("always", "reduce-overhead")  # values of layout.compile with which a CPU compiles


class Compilation(NamedTuple):
    """How the runs of a study are executed: a value of layout.compile, and the reason for it as a sentence."""

    mode: str
    reason: str


def choose_compilation(runs: Sequence[Run], begun_mode: str = "") -> Compilation:
    """Choose whether the runs of a study are compiled, on a CPU and under layout.compile=auto.

    Args:
        runs: all runs of the study.
        begun_mode: the value of layout.compile in runs of the study that have begun, which the others take over; "": no
            run has begun.
    """
    if begun_mode:
        return Compilation(begun_mode, f"layout.compile={begun_mode}, as in the runs of the study that have begun")
    if unknown := next(filter(None, map(reason_gain_is_unknown, runs)), ""):
        return Compilation("never", f"not compiled: {unknown}")
    saved, taken = sum(map(seconds_saved, runs)), compile_seconds(runs)
    if saved <= taken:
        why = f"that would take about {taken:,.0f} CPU seconds in all, and save {saved:,.0f}"
        return Compilation("never", f"not compiled: {why}")
    if missing := missing_for_compiler():
        return Compilation("never", f"not compiled, which would save {saved - taken:,.0f} CPU seconds: {missing}")
    return Compilation("always", f"compiled: that takes about {taken:,.0f} CPU seconds in all, and saves {saved:,.0f}")


def reason_gain_is_unknown(run: Run) -> str:
    """The reason why it is not known whether compiling a run saves time; "" where there are measurements of it."""
    if run.ends_by_clock:  # the first run would compile, and have less of its budget left for training than others
        return "compiling would take a different share of each run's time"
    if run.train.precision not in SECONDS_SAVED:
        return f"no gain was measured in {run.train.precision}"
    if run.model.objective != "causal":
        return f"no gain was measured with model.objective={run.model.objective}"
    if run.layout.processes != 1 or run.layout.tp > 1:
        return "no gain was measured with several processes"
    return ""


def seconds_saved(run: Run) -> float:
    """The CPU seconds of training, over all threads, that compiling saves in a run. The seconds of compiling itself are
    not subtracted."""
    model = run.model
    return SECONDS_SAVED[run.train.precision] * run.tokens * model.layers * model.hidden


def compile_seconds(runs: Sequence[Run]) -> float:
    """The CPU seconds that compiling takes in all runs together. Runs that differ only in seed, data or optimizer share
    a graph: the first of them compiles it, and the others find the code in torch's cache."""
    first_seconds: dict[str, float] = {}  # {settings that determine a graph: extra seconds of the first run with it}
    for run in runs:
        first_seconds[repr((run.model, run.train.precision, run.layout.micro_batch))] = (
            COLD_COMPILE_SECONDS - WARM_COMPILE_SECONDS
        ) * run.model.layers
    return sum(first_seconds.values()) + sum(WARM_COMPILE_SECONDS * run.model.layers for run in runs)


def missing_for_compiler() -> str:
    """A clause that names what is missing on this machine for torch to compile for a CPU: a C++ compiler or Python's
    headers; "" if nothing is missing."""
    compiler = os.environ.get("CXX", "g++")  # as torch chooses it
    if not shutil.which(compiler):
        return f"there is no C++ compiler ({compiler})"
    header = Path(sysconfig.get_path("include")) / "Python.h"
    return "" if header.exists() else f"Python's headers are not installed ({header})"


def check_compiler(run: Run) -> None:
    """Check that this machine can compile a run for a CPU, where the run asks for that. Raises ConfigError where
    something that torch needs is missing."""
    if run.layout.compile in COMPILING_MODES and not has_gpu() and (missing := missing_for_compiler()):
        raise ConfigError(
            f"layout.compile={run.layout.compile}, and {missing}. Install it (Debian: g++ and python3-dev), or set "
            "layout.compile=never, in all runs of the study"
        )
