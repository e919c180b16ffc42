"""The commands of docs/gpu.md (tests/gpu.sh) are ones that the programs accept; what they do is rehearsed by hand."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ablations.study import from_args
from tests import bench_gpu

ROOT = Path(__file__).parents[1]
SLICES = "abcdefghi"


def commands(slice_: str, **environment: str) -> list[list[str]]:
    """What a slice would run."""
    env = os.environ | {"DRY": "1"} | environment
    done = subprocess.run(
        ["bash", "tests/gpu.sh", slice_], cwd=ROOT, env=env, capture_output=True, text=True, check=True
    )
    return [line.removeprefix("+ ").split(" ") for line in done.stdout.splitlines()]


@pytest.mark.parametrize("rehearse", ["", "1"])
@pytest.mark.parametrize("slice_", SLICES)
def test_what_a_slice_runs_is_accepted(
    slice_: str, rehearse: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    text, programs = tmp_path / "docs.jsonl", []
    text.write_text('{"text": "größer"}\n')  # the one of runs/carry is there once it was packed
    for python, option, module, *words in commands(slice_, REHEARSE=rehearse, PY="a-python"):
        assert python == "a-python"
        if option == "-m":
            programs.append(module)
        if module == "tests.bench_gpu":
            monkeypatch.setattr(sys, "argv", [module, *words])
            args = bench_gpu.arguments()
            assert args.rehearse == bool(rehearse) and args.limit <= 500
            assert args.check or bench_gpu.rows(args)
        if module.startswith("launch."):
            line = re.sub(r" (SET=)", r"\n\1", " ".join(words[words.index("POS=alibi") :]))
            settings, set_words = line.split("\n")
            study = [word for word in settings.split(" ") if not word.startswith("DATA=")]
            assert len(from_args([*study, f"DATA={text}", set_words]).cells) >= 2
    expected = {
        "a": ["tests.bench_gpu"] * 4,
        "g": ["launch.train", "eval"],
        "h": ["launch.local"],
        "i": ["tests.bench_gpu"] * 2,
    }
    assert programs == expected.get(slice_, ["tests.bench_gpu"])


def test_what_is_no_slice_is_refused() -> None:
    done = subprocess.run(["bash", "tests/gpu.sh", "z"], cwd=ROOT, env=os.environ | {"DRY": "1"}, capture_output=True)
    assert done.returncode == 2 and b"none of pack, a, b" in done.stderr


@pytest.mark.parametrize("name", ["größer.txt", "missing.jsonl"])
def test_text_that_is_no_file_of_documents_is_refused_before_anything_is_packed(name: str, tmp_path: Path) -> None:
    (tmp_path / "größer.txt").write_text("{}")
    command = ["bash", "tests/gpu.sh", "pack", str(tmp_path / name), str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and f"not {tmp_path / name} and" in done.stderr
