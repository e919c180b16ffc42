"""Every size and preset, planned and built without a weight: nothing that is shipped may fail before its first step."""

from pathlib import Path

import pytest
import torch

from ablations.__main__ import main
from ablations.config import resolve, sizes_and_presets
from model.count import count_parameters
from model.gpt import GPT


@pytest.mark.parametrize("size", sizes_and_presets())
def test_the_model_of_a_size_has_the_parameters_that_are_counted_and_declared(size: str) -> None:
    run = resolve([("size", size)])
    with torch.device("meta"):
        model = GPT(run.model)
    count = sum(p.numel() for p in model.parameters())
    assert count == count_parameters(run.model) == sizes_and_presets()[size]["params"]


@pytest.mark.parametrize("size", sizes_and_presets())
def test_a_study_of_a_size_can_be_planned(size: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, printed = main(["plan", "POS=alibi", f"SIZE={size}", f"OUT={tmp_path}"]), capsys.readouterr()
    # a preset whose position is ALiBi already has no such arm, and the plan says so
    assert code == 0 or (code == 2 and "is the baseline" in printed.err), printed.err
