"""launch/manifest.py: the commit that a run says it ran from."""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from launch import manifest

IDENTITY = {f"GIT_{who}_{what}": "someone" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}


def git(folder: Path, *words: str) -> str:
    env = os.environ | IDENTITY | {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null"}
    return subprocess.run(["git", *words], cwd=folder, env=env, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small repository that has the folders of this one."""
    root = tmp_path / "checkout"
    for name in ("launch/manifest.py", "model/gpt.py", "ablations/records/one/run.json", "README.md"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("straße\n")
    git(root, "init", "-q")
    git(root, "add", ".")
    git(root, "commit", "-q", "-m", "first")
    monkeypatch.setattr(manifest, "ROOT", root)
    return root


def add(name: str) -> Callable[[Path], Any]:
    def change(root: Path) -> None:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        with open(root / name, "a") as file:
            file.write("more\n")

    return change


@pytest.mark.parametrize(
    ("name", "dirty"),
    [
        ("my/a.jsonl", False),  # the user's data
        ("data/mine.jsonl.gz", False),
        ("notes.py", False),
        ("ablations/records/two/run.json", False),
        ("ablations/records/one/run.json", False),
        ("model/gpt.py", True),
        ("README.md", True),
        ("model/mine-too.py", True),  # code that no commit holds
        ("ablations/presets/mine-too.yaml", True),
    ],
)
def test_what_makes_a_working_tree_differ_from_its_commit(checkout: Path, name: str, dirty: bool) -> None:
    sha = git(checkout, "rev-parse", "HEAD").strip()
    assert manifest.current_commit() == {"sha": sha, "dirty": False}
    add(name)(checkout)
    assert manifest.current_commit() == {"sha": sha, "dirty": dirty}


def test_a_checkout_of_somebody_else_has_its_commit_too(checkout: Path) -> None:
    """git refuses a folder of another owner, unless it is told that it is safe."""
    if os.geteuid():
        pytest.skip("needs root to give a folder away")
    sha = git(checkout, "rev-parse", "HEAD").strip()
    for path in [checkout, *checkout.rglob("*")]:
        os.chown(path, 1000, 1000)
    with pytest.raises(subprocess.CalledProcessError):
        git(checkout, "rev-parse", "HEAD")
    assert manifest.current_commit() == {"sha": sha, "dirty": False}


def test_what_is_not_known_is_not_a_change(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unknown = {"sha": "unknown", "dirty": None}
    inner = checkout / "unpacked"  # an archive of this project, in the folder of another one
    shutil.copytree(checkout / "launch", inner / "launch")
    monkeypatch.setattr(manifest, "ROOT", inner)
    assert manifest.current_commit() == unknown
    monkeypatch.setattr(manifest, "ROOT", checkout)
    monkeypatch.setenv("GIT_DIR", str(inner))  # as in a hook of another repository
    assert manifest.current_commit()["sha"] == git_without(checkout)
    monkeypatch.setenv("PATH", str(inner))
    assert manifest.current_commit() == unknown
    monkeypatch.undo()
    shutil.rmtree(checkout / ".git")
    monkeypatch.setattr(manifest, "ROOT", checkout)
    assert manifest.current_commit() == unknown


def git_without(folder: Path) -> str:
    return (folder / ".git" / (folder / ".git/HEAD").read_text().split()[1]).read_text().strip()
