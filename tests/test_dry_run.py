"""Every size and preset, planned and built without a weight: nothing that is shipped may fail before its first step."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ablations.config import bundles, resolve
from model.count import parameters
from model.gpt import GPT

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("size", bundles())
def test_the_model_of_a_size_has_the_parameters_that_are_counted_and_declared(size: str) -> None:
    run = resolve([("size", size)])
    with torch.device("meta"):
        model = GPT(run.model)
    count = sum(p.numel() for p in model.parameters())
    assert count == parameters(run.model) == bundles()[size]["params"]


@pytest.mark.parametrize("size", bundles())
def test_a_study_of_a_size_can_be_planned(size: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ablations", "plan", "POS=alibi", f"SIZE={size}", f"OUT={tmp_path}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    # a preset whose position is ALiBi already has no such arm, and the plan says so
    assert done.returncode == 0 or "is the baseline" in done.stderr, done.stderr
