"""One cluster for all tests of this folder, and copies of the code to run on it."""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from cluster import Cluster, cannot, cluster  # noqa: E402

ROOT = Path(__file__).parents[2]
CODE = ["ablations", "data", "eval", "launch", "model", "Makefile"]


@pytest.fixture(scope="session")
def slurm() -> Iterator[Cluster]:
    reason = cannot()
    if reason:
        pytest.skip(reason)
    with cluster(4) as c:
        yield c


@pytest.fixture(autouse=True)
def quiet(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test leaves no job and no broken node behind."""
    yield
    if "slurm" in request.fixturenames:
        request.getfixturevalue("slurm").tidy()


def copy_code(to: Path) -> Path:
    for name in CODE:
        if (ROOT / name).is_dir():
            ignore = shutil.ignore_patterns("__pycache__", "records", "site.sh")
            shutil.copytree(ROOT / name, to / name, ignore=ignore)
        else:
            shutil.copy(ROOT / name, to / name)
    (to / ".venv").symlink_to(sys.prefix)
    return to


@pytest.fixture
def code(tmp_path: Path) -> Path:
    """The project's code in a fresh folder, with a stand-in for training that takes seconds and needs no data."""
    folder = copy_code(tmp_path / "a folder")
    shutil.copy(Path(__file__).parent / "stand_in.py", folder / "launch/train.py")
    prepare = folder / "data/prepare.py"
    main = 'if __name__ == "__main__":\n'
    prepare.write_text(prepare.read_text().replace(main, main + "    sys.exit()\n"))
    return folder
