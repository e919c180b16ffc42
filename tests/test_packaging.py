"""What is packed: a wheel has every package and every file that one of them reads; a source distribution has all."""

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

from tests.schemas import checked

ROOT = Path(__file__).parents[1]
PACKAGES = ("ablations", "data", "eval", "launch", "model")


def tracked(*folders: str) -> set[str]:
    """The names of all files under version control, or of those below some folders."""
    command = ["git", "ls-files", "-z", *folders]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split("\0")) - {""}


def built(kind: str, names: set[str], folder: Path) -> Path:
    """The wheel or the source distribution (`kind`: "wheel", "sdist") of a copy of the named files."""
    copy = folder / "copy"
    for name in names:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes((ROOT / name).read_bytes())
    code = f"from setuptools.build_meta import build_{kind}; build_{kind}('dist')"
    subprocess.run([sys.executable, "-c", code], cwd=copy, check=True, capture_output=True)
    (package,) = (copy / "dist").iterdir()
    return package


def test_a_wheel_holds_every_module_and_every_file_that_they_read(tmp_path: Path) -> None:
    expected = {name for name in tracked(*PACKAGES) if not name.startswith("ablations/records/")}
    wheel = built("wheel", tracked(*PACKAGES) | {"pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"}, tmp_path)
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert packed == expected
    installed = tmp_path / "installed"
    zipfile.ZipFile(wheel).extractall(installed)
    command = [sys.executable, "-m", "ablations", "plan", "POS=alibi", "FORMAT=json"]
    env = os.environ | {"PYTHONPATH": str(installed)}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 2 and checked(done.stdout)["error"] in done.stderr and "checkout" in done.stderr
    assert not (installed / "runs").exists()


def test_a_source_distribution_holds_every_file_of_the_repository(tmp_path: Path) -> None:
    with tarfile.open(built("sdist", tracked(), tmp_path)) as archive:
        packed = {member.name.partition("/")[2] for member in archive if member.isfile()}
    made = {name for name in packed if ".egg-info/" in name} | {"PKG-INFO", "setup.cfg"}
    assert packed - made == tracked()
