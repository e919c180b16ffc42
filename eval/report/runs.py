"""Run directories as the report reads them."""

import gzip
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ablations.values import difference, flatten, human
from eval.statistics import LN2

Cells = dict[tuple[str, int], dict[str, Any]]  # {(arm, seed): what `read` gives}


@dataclass(frozen=True)
class Place:
    """A run that somebody made: where it lies, and what it was."""

    dir: Path
    config: dict[str, Any]
    delta: dict[str, Any]


@dataclass(frozen=True)
class Collection:
    """Runs compared: what the report asks of a study.

    controlled: the arms differ in one line, as a study promises; else runs are compared as they are, of several studies
    or of others.
    """

    name: str
    title: str
    arms: list[str]
    seeds: list[int]
    places: dict[tuple[str, int], Any]  # Place, or a study's Cell
    command: str
    question: str = "How do these runs compare?"
    expect: str = "Nothing was written down before the runs."
    controlled: bool = False

    def cell(self, arm: str, seed: int) -> Any:
        return self.places.get((arm, seed))


NEEDED = ("seed", "config", "commit", "versions", "hardware", "data", "parameters", "proofs", "effective")


def manifest(directory: Path) -> dict[str, Any]:
    """run.json.

    Raises:
        ValueError: when it is not that of a run, or of a run of a version that wrote less.
    """
    path = directory / "run.json"
    try:
        run = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    if lacking := [key for key in NEEDED if key not in run]:
        raise ValueError(f"{path} is not that of a run, or of another version: it has no {', '.join(lacking)}")
    return run


def read(directory: Path) -> dict[str, Any]:
    """What a run directory holds, as far as the run has come: {"state", "run", "metrics", "eval", "samples",
    "checkpoints"}."""
    why = directory / "failed"
    failed = f"failed ({' '.join(why.read_text().split())})" if why.exists() else ""
    if not (directory / "run.json").exists():
        return {"state": failed or "not started"}
    cell: dict[str, Any] = {"state": failed or "not finished", "run": manifest(directory)}
    if (directory / "metrics.jsonl").exists():
        lines = (directory / "metrics.jsonl").read_text().splitlines()
        whole = [json.loads(line) for line in lines if line.endswith("}")]  # a kill may leave half a line
        cell["metrics"] = list({row["step"]: row for row in whole if "loss" in row}.values())
    # checkpoints that were evaluated on the way
    on_the_way = [json.loads(path.read_text()) for path in sorted(directory.glob("eval-*.json"))]
    cell["checkpoints"] = sorted((e for e in on_the_way if "tokens" in e), key=lambda e: e["tokens"])
    if not (directory / "done").exists():
        return cell
    if not all((directory / name).exists() for name in ("eval.json", "samples.jsonl.gz")):
        return cell | {"state": "not evaluated"}
    samples: dict[str, dict[str, tuple[float, float]]] = {}
    with gzip.open(directory / "samples.jsonl.gz", "rt") as stream:
        for row in map(json.loads, stream):
            value = (row["nats"] / LN2, row["bytes"]) if "nats" in row else (row["value"], 1)
            samples.setdefault(row["task"], {})[str(row["id"])] = value
    return cell | {"state": "", "eval": json.loads((directory / "eval.json").read_text()), "samples": samples}


def read_all(study: Any) -> Cells:
    """Every cell of a study; of a collection those there are."""
    found = {(arm, seed): study.cell(arm, seed) for arm in study.arms for seed in study.seeds}
    return {key: read(cell.dir) for key, cell in found.items() if cell}


def collect_runs(directories: list[tuple[str, Path]], command: str) -> Collection:
    """Runs by arm and seed. Two runs are one arm when their configurations differ in nothing but seed and layout.

    directories: (a name for what it came from or "", the directory of a run).

    Raises:
        ValueError: for a directory that is no run, and when two runs are the same.
    """
    groups: dict[str, dict[int, Place]] = {}
    origin: dict[str, str] = {}
    for name, directory in directories:
        if not (directory / "run.json").exists():
            raise ValueError(f"{directory} is no run directory: it has no run.json")
        run = manifest(directory)
        what = {k: v for k, v in flatten(run["config"]).items() if is_setting(k)}
        arm = hashlib.sha256(json.dumps([what, run["data"]["sha256"]], sort_keys=True).encode()).hexdigest()
        seed = run["seed"]
        places = groups.setdefault(arm, {})
        origin.setdefault(arm, name)
        if seed in places:
            if places[seed].dir.resolve() == directory.resolve():
                continue  # studies share their baseline
            raise ValueError(f"{places[seed].dir} and {directory} are the same run: one configuration, seed {seed}")
        places[seed] = Place(directory, run["config"], {})
    if not groups:
        raise ValueError("no run was given")
    names = label(groups, origin)
    first = next(iter(groups.values()))
    base = next(iter(first.values())).config
    found = {}
    for arm, runs in groups.items():
        for seed, place in runs.items():
            found[names[arm], seed] = Place(place.dir, place.config, changed(base, place.config))
    digest = hashlib.sha256("".join(sorted(groups)).encode()).hexdigest()[:6]
    seeds = sorted({seed for runs in groups.values() for seed in runs})
    count = f"{len(groups)} configurations, {len(found)} runs"
    return Collection(f"comparison-{digest}", f"Comparison of {count}", list(names.values()), seeds, found, command)


def changed(base: dict, config: dict) -> dict[str, Any]:
    """The lines that make one configuration of another; a run is the same run at another seed or layout."""
    return {key: value for key, value in difference(flatten(base), flatten(config)).items() if is_setting(key)}


def is_setting(key: str) -> bool:
    """Whether a key makes a run another run than its neighbour of the same arm."""
    return not key.startswith("layout.") and key not in ("seed", "size")


def label(groups: dict[str, dict[int, Place]], origin: dict[str, str]) -> dict[str, str]:
    """A short name for each arm: as few as possible of the settings that differ, those first that differ most often."""
    configs = {arm: flatten(next(iter(runs.values())).config) for arm, runs in groups.items()}
    every = list(configs.values())
    keys = [
        key
        for key in every[0]
        if (is_setting(key) or key == "size") and not key.startswith("eval.") and all(key in config for config in every)
    ]
    values = {key: [plain(config[key]) for config in every] for key in keys}
    apart = sorted((key for key in keys if len(set(values[key])) > 1), key=lambda key: (key != "size", interest(key)))
    chosen: list[str] = []
    for key in apart:
        before = len(set(zip(*(values[k] for k in chosen), strict=True))) if chosen else 1
        if len(set(zip(*(values[k] for k in [*chosen, key]), strict=True))) > before:
            chosen.append(key)
    names: dict[str, str] = {}
    for arm, config in configs.items():
        name = ", ".join(short(key, config[key]) for key in chosen) or origin[arm] or "runs"
        same = sum(other.split(" #")[0] == name for other in names.values())
        names[arm] = f"{name} #{same + 1}" if same else name  # they differ in what only one of them knows
    return names


def short(key: str, value: Any) -> str:
    """A setting in a few letters; its key only where the value does not tell it."""
    if key == "train.tokens":
        return human(value)
    return str(value) if isinstance(value, str) else f"{key.split('.')[-1]}={plain(value)}"


def interest(key: str) -> int:
    """What a reader looks for first."""
    first = ("model.pos", "model.act", "model.norm", "model.embnorm", "data.corpus", "train.tokens")
    return first.index(key) if key in first else len(first)


def run_directories(name: str) -> list[Path]:
    """A run directory, or those that lie in a folder.

    Raises:
        ValueError: when there is none, or one is no run's.
    """
    folder = Path(name)
    found = sorted(
        path.parent
        for path in [*folder.glob("*/run.json"), *folder.glob("*/*/run.json")]
        if path.parent.parent != folder / "records"
    )  # reports lie there (eval/report/__main__.py)
    found = [folder] if (folder / "run.json").exists() else found
    if not found:
        raise ValueError(f"{name} is no run directory and holds none: a run directory has a run.json")
    for directory in found:
        manifest(directory)
    return found


def plain(value: Any) -> str:
    """A value of run.json as a few words."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return ", ".join(f"{key} {plain(entry)}" for key, entry in value.items())
    return ", ".join(map(plain, value)) or "none" if isinstance(value, list) else str(value)


def curve(cell: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and training loss, [lines of the log]."""
    rows = cell["metrics"]
    return np.array([row["tokens"] for row in rows]), np.array([row["loss"] for row in rows])


def named(runs: list[tuple[str, int]]) -> str:
    seeds: dict[str, list[str]] = {}
    for arm, seed in runs:
        seeds.setdefault(arm, []).append(str(seed))
    return "; ".join(f"{arm} (seed{'s' * (len(s) > 1)} {', '.join(s)})" for arm, s in seeds.items())
