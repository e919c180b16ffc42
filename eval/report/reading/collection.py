"""Collections: runs that a report compares (RUNS=) although they were not planned as one study, grouped into arms."""

import hashlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ablations import rundir
from ablations.criteria import Criteria
from ablations.factorial import Factorial
from ablations.prediction import Prediction
from ablations.registration import NOTHING_EXPECTED
from ablations.safe_files import Damaged, json_digest
from ablations.tuning import Tuning
from ablations.values import difference, flatten, short_number
from eval.report.reading.runs import in_one_line, read_evaluation, read_manifest

FAMILIAR_SETTINGS = ("size", "model.pos", "model.act", "model.norm", "model.embnorm", "data.corpus", "train.tokens")


@dataclass(frozen=True)
class CollectedRun:
    """A run of a collection: its directory, its configuration, and the settings in which its arm differs from the first
    arm."""

    dir: Path
    config: dict[str, Any]
    delta: dict[str, Any] = field(default_factory=dict)  # {setting: value}: what differs from the baseline


@dataclass(frozen=True)
class Collection:
    """The runs that a report compares, with the properties of a study (arms, seeds, criteria ...) that the report
    needs. A study becomes a Collection too (`short_names.with_short_names`)."""

    name: str
    title: str
    arms: list[str]
    seeds: list[int]
    runs: dict[tuple[str, int], Any]  # CollectedRun, or a study's Cell
    command: str
    question: str = "How do these runs compare?"
    expect: str = NOTHING_EXPECTED
    controlled: bool = False  # whether each arm differs from the baseline in one line, as in a study
    damaged: list[str] = field(default_factory=list)  # a sentence for each run directory that could not be read
    criteria: Criteria = field(default_factory=Criteria)
    factorial: Factorial | None = None  # ablations/factorial.py
    tuning: Tuning | None = None  # ablations/tuning.py
    predictions: list[Prediction] = field(default_factory=list)  # ablations/prediction.py
    registration: dict[str, Any] = field(default_factory=dict)  # what the study says today; {} of a collection
    left_out_of_command: str = ""  # a sentence on folders that `command` does not name, or not by their whole path

    @property
    def compared_arms(self) -> list[str]:
        """The arms that are compared with the baseline; where the learning rate was tuned, those at the common rate."""
        return self.tuning.factors[1:] if self.tuning else self.arms[1:]

    @property
    def number_of_tests(self) -> int:
        """The number of comparisons on a metric for which p-values are corrected: one for each arm but the baseline,
        and one for each effect of a factorial."""
        return len(self.compared_arms) + (len(self.factorial.effects) if self.factorial else 0)

    def cell(self, arm: str, seed: int) -> Any:
        """The planned run of an arm and a seed, a CollectedRun or a Cell; None where there is none."""
        return self.runs.get((arm, seed))


def collect_runs(directories: list[tuple[str, Path]], command: str) -> Collection:
    """Group runs by arm and seed into a Collection. Runs belong to one arm if their text is the same and their
    configurations differ only in seed, layout and name of the size.

    If two directories have the same arm, seed and results, the first counts.

    Args:
        directories: pairs (origin, run directory). An origin is a name for the arm, such as that of a study, or "".
        command: the command that made the report.

    Raises:
        ValueError: no directory is that of a run, or two directories have the same arm and seed but other results.
    """
    groups: dict[str, dict[int, CollectedRun]] = {}
    origins: dict[str, str] = {}
    damaged = []
    for origin, directory in directories:
        try:
            run = read_manifest(directory)
        except Damaged as error:
            damaged.append((str(error), directory))
            continue
        settings = {key: value for key, value in flatten(run["config"]).items() if is_setting(key)}
        arm = json_digest([settings, run["data"]["sha256"]])
        seed = run["seed"]
        runs = groups.setdefault(arm, {})
        origins.setdefault(arm, origin)
        if seed in runs:
            first = runs[seed].dir
            if first.resolve() == directory.resolve() or _have_equal_results(first, directory):
                continue  # studies share their baseline
            raise ValueError(
                f"{first} and {directory} are the same run, one configuration and seed {seed}, with different results, "
                f"or not both are judged. Name the runs that count, and one of these two alone, as in RUNS='"
                f"{first.parent} {directory.parent}/ARM,seed=*' with an arm in place of ARM"
            )
        runs[seed] = CollectedRun(directory, run["config"])
    if not groups:
        raise ValueError("; ".join(message for message, _ in damaged) or "no run was given")
    names = short_arm_names(groups, origins)
    first_group = next(iter(groups.values()))
    base = flatten(next(iter(first_group.values())).config)
    runs_by_name = {}
    for arm, runs in groups.items():
        for seed, collected in runs.items():
            changes = difference(base, flatten(collected.config))
            delta = {key: value for key, value in changes.items() if is_setting(key)}
            runs_by_name[names[arm], seed] = replace(collected, delta=delta)
    digest = hashlib.sha256("".join(sorted(groups)).encode()).hexdigest()[:6]
    return Collection(
        name=f"comparison-{digest}",
        title=f"Comparison of {len(groups)} configurations, {len(runs_by_name)} runs",
        arms=list(names.values()),
        seeds=sorted({seed for runs in groups.values() for seed in runs}),
        runs=runs_by_name,
        command=command,
        damaged=[
            f"{directory.name}: left out: {message.replace(f'{directory}/', '')}" for message, directory in damaged
        ],
    )


def _have_equal_results(first: Path, second: Path) -> bool:
    """Whether two run directories hold the same weights with the same evaluation. Their times may differ."""
    results = []
    for directory in (first, second):
        try:
            results.append(read_evaluation(directory / rundir.EVAL) | {"seconds": None})
        except Damaged:
            return False
    return results[0] == results[1]


def is_setting(key: str) -> bool:
    """Whether a key of the configuration tells arms apart. False only for the seed, the layout and the name of the
    size."""
    return not key.startswith("layout.") and key not in ("seed", "size")


def short_arm_names(groups: dict[str, dict[int, CollectedRun]], origins: dict[str, str]) -> dict[str, str]:
    """A short name for each arm: {hash of the arm: name}. The name has as few as possible of the settings in which the
    arms differ, the most familiar ones first. Where no setting differs, it is the origin of the arm.

    Args:
        groups: {hash of the arm: {seed: run}}.
        origins: {hash of the arm: name of the study that its runs come from, or ""}.
    """
    configs = {arm: flatten(next(iter(runs.values())).config) for arm, runs in groups.items()}
    flat_configs = list(configs.values())
    keys = [
        key
        for key in flat_configs[0]
        if (is_setting(key) or key == "size")
        and not key.startswith("eval.")
        and all(key in config for config in flat_configs)
    ]
    values = {key: [in_one_line(config[key]) for config in flat_configs] for key in keys}
    differing = [key for key in keys if len(set(values[key])) > 1]
    rank = {key: number for number, key in enumerate(FAMILIAR_SETTINGS)}
    differing.sort(key=lambda key: rank.get(key, len(rank)))

    def distinct(chosen: list[str]) -> int:
        """The number of arms that can be told apart by the chosen settings alone."""
        return len(set(zip(*(values[key] for key in chosen), strict=True))) if chosen else 1

    chosen: list[str] = []
    for key in differing:
        if distinct([*chosen, key]) > distinct(chosen):
            chosen.append(key)
    names: dict[str, str] = {}
    for arm, config in configs.items():
        name = ", ".join(short_setting(key, config[key]) for key in chosen) or origins[arm] or "runs"
        namesakes = sum(earlier.split(" #")[0] == name for earlier in names.values())
        # they differ in a setting that only one of them has, or in their text
        names[arm] = f"{name} #{namesakes + 1}" if namesakes else name
    return names


def short_setting(key: str, value: Any) -> str:
    """A setting as part of an arm's name, such as "alibi" or "layers=4". Text values and the number of tokens stand
    without their key. `key`: the full name of the setting, such as "model.pos"."""
    if key == "train.tokens":
        return short_number(value)
    return in_one_line(value) if isinstance(value, str) else f"{key.split('.')[-1]}={in_one_line(value)}"


def run_directories(name: str) -> list[Path]:
    """The run directories at a path. That is the path itself if it is a run directory; else all run directories that
    lie in it, directly or one folder deeper. Raises ValueError where there is none."""
    folder = Path(name)
    if (folder / rundir.RUN).exists():
        return [folder]
    directories = sorted(
        path.parent
        for path in [*folder.glob(f"*/{rundir.RUN}"), *folder.glob(f"*/*/{rundir.RUN}")]
        if path.parent.parent != folder / "records"  # reports lie there (eval/report/record.py)
    )
    if not directories:
        raise ValueError(f"{name} is no run directory and holds none: a run directory has a {rundir.RUN}")
    return directories
