"""Checks of `make plan` that need other packages: whether a study's tokenizers and evaluation tasks exist, and whether
its arms can be exported.

The commands of evaluation and export do the checks in processes of their own, because planning imports neither torch
nor lm-eval.
"""

import subprocess
import sys

from ablations.noise_floor import check_same_baseline
from ablations.study import ROOT, Study
from ablations.values import ConfigError


def check_study_inputs(study: Study) -> None:
    """Check what a study needs besides its configuration. Raises ConfigError with the reason where a check fails.

    The checks: NOISE_FLOOR is of the study's baseline, tokenizer files can be read, the tasks in TASKS and GLUE_TASKS
    exist, and with EXPORT every arm can be exported. The data of the tasks is not checked, since the plan may be for
    another machine.
    """
    from data.tokenizer import read_tokenizer

    check_same_baseline(study.criteria.noise_floor, study.base)
    for path in {cell.run.data.tokenizer for cell in study.cells if cell.run.data.tokenizer_kind == "file"}:
        try:
            read_tokenizer(path)
        except ValueError as error:
            raise ConfigError(str(error)) from None
    if tasks := study.word_value("TASKS"):
        _run_check("-m", "eval", "--tasks", tasks)
    if tasks := study.word_value("GLUE_TASKS"):
        _run_check("-m", "eval.finetune", "--tasks", tasks)
    if study.exports:
        _run_check("-m", "eval.exportable", *study.words)


def _run_check(*words: str) -> None:
    """Run `python WORDS` as a child process. Raises ConfigError with the child's error message where it exits with an
    error."""
    process = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True)
    if process.returncode:
        lines = process.stderr.splitlines()
        start = next((i for i, line in enumerate(lines) if line.startswith("error: ")), 0)
        raise ConfigError("\n".join(line.removeprefix("error: ") for line in lines[start:]))
