"""Makes a study: the baseline and its arms, each at every seed. The arms are checked to differ from the baseline in
nothing but the settings that they declare."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from ablations import compilation, rundir
from ablations.cells import Cell, Study
from ablations.config import ConfigError, Run, parse_setting, resolve, setting_needed_for_effect
from ablations.criteria import Criteria
from ablations.factorial import Factorial, parse_factorial
from ablations.machine import has_gpu
from ablations.parts import PARTS, settings_of_part
from ablations.stage import Recipe, path_part, recorded_setting, stage_of_begun_study, value_text
from ablations.tuning import Tuning
from ablations.values import difference

MOST_LABEL_SETTINGS = 3  # with more settings varied, the baseline's label is not made of its values of them
Deltas = dict[str, dict[str, Any]]  # {label of an arm: {setting: value} in which it differs}, the baseline first
# Settings that are rounded, so that different values may have the same effect (`_values_after_rounding`).
ROUNDED_SETTINGS = {"train.tokens", "train.budget", "train.decay_tokens", "train.ramp_share", "model.vocab_multiple"}


def build_study(
    factor: str,
    question: str,
    expect: str,
    common_settings: list[tuple[str, Any]],
    arm_values: list[tuple[str, Any]],
    seeds: list[int],
    out: Path,
    cross: str = "",
    multiples: tuple[float, ...] = (),
    recipe: Recipe | None = None,
) -> Study:
    """Make a study of the baseline and of one arm for each pair in `arm_values`, each at every seed.

    Args:
        factor: the name of what is varied, such as "position".
        question: the question of the study, as text.
        expect: what was expected before any run, as text.
        common_settings: (key, value) of the settings of all runs.
        arm_values: for each arm the (key, value) of the setting that makes it. For an arm that takes a part of a
            recipe: (the part, the preset to take it from), such as ("training", "bert-normal").
        seeds: the seeds of each arm.
        out: the output root.
        cross: "1": the arms are all combinations of the pairs in `arm_values`; "1/2", "1/4" or "1/8": a fraction of
            these; "": each pair is an arm.
        multiples: every arm is run at the baseline's learning rate times each of these numbers; empty: only at the
            baseline's learning rate.
        recipe: (name, {setting: value}) of a recipe whose settings are among `common_settings`. Names of folders
            contain its name in place of these settings. None: no recipe.

    Raises:
        ConfigError: a setting is not allowed or has no effect, or two runs would be equal.
    """
    if any(k == "seed" for k, _ in common_settings + arm_values):
        raise ConfigError("seed is not a setting of a study: use SEEDS")
    values = [(k, parse_setting(k, v)) for k, v in common_settings]
    base = resolve(values)
    stage, base = stage_of_begun_study(base, values, recipe, seeds, out)
    for corpus in base.corpora:
        check_corpus(corpus)
    deltas = _deltas(base, arm_values)
    if cross and any(key in PARTS for key, _ in arm_values):
        raise ConfigError("CROSS combines single settings, and a part of a preset is several")
    design = _cross_arms(deltas, cross) if cross else None
    tuning = _add_learning_rates(deltas, multiples, base.train.lr) if multiples else None
    cells = _cells(base, values, deltas, seeds, out / stage)
    criteria = Criteria(seeds=len(seeds))
    study = Study(factor, question, expect, base, list(deltas), cells, seeds, stage, out, criteria, design, tuning)
    _check_single_changes(study)
    return study if base.layout.compile != "auto" or has_gpu() else _with_compilation_decided(study)


def _with_compilation_decided(study: Study) -> Study:
    """The study with layout.compile=auto replaced by the mode that `choose_compilation` chooses for all of its runs."""
    begun = [cell for cell in study.cells if (cell.dir / rundir.RUN).is_file()]
    begun.sort(key=lambda cell: bool(cell.delta))  # the baseline's first, since other studies share them
    mode_of_begun_runs = recorded_setting([cell.dir for cell in begun], "layout.compile")
    mode, reason = compilation.choose_compilation([cell.run for cell in study.cells], mode_of_begun_runs)

    def decided(run: Run) -> Run:
        return replace(run, layout=replace(run.layout, compile=parse_setting("layout.compile", mode)))

    cells = [replace(cell, run=decided(cell.run)) for cell in study.cells]
    return replace(study, base=decided(study.base), cells=cells, compiled_why=reason)


def _deltas(base: Run, arm_values: list[tuple[str, Any]]) -> Deltas:
    """The deltas of the baseline and of one arm for each pair in `arm_values` (see `build_study`): {label: {setting:
    value}}. The baseline's delta is empty. Raises ConfigError if a setting cannot make an arm, has no effect, or gives
    the same run as the baseline or another arm."""
    flat = base.flat()
    keys = list(dict.fromkeys(key for key, _ in arm_values))
    shown = [key for key in keys if key in flat] if len(keys) <= MOST_LABEL_SETTINGS else []
    baseline = ",".join(f"{key.split('.')[-1]}={value_text(flat[key])}" for key in shown) or "baseline"
    deltas: Deltas = {baseline: {}}
    for key, value in arm_values:
        if key in PARTS:
            deltas[f"{key}={value}"] = settings_of_part(key, value, base.size, flat)
            continue
        value = parse_setting(key, value)
        if key.startswith(("layout.", "eval.")) or key == "size":
            raise ConfigError(f"{key} cannot make an arm: it is no part of what is trained, or many lines at once")
        if missing := setting_needed_for_effect(key, flat):
            raise ConfigError(f"{key} does nothing without {missing}: an arm of it would be the baseline")
        label = f"{key.split('.')[-1]}={value_text(value)}"
        if value == flat[key] or label in deltas:
            equal = "the baseline" if value == flat[key] else "there twice"
            raise ConfigError(f"two equal runs: {key}={value_text(value)} is {equal}")
        if key == "data.corpus":
            check_corpus(value)
        deltas[label] = {key: value}
    return deltas


def _cells(base: Run, values: list[tuple[str, Any]], deltas: Deltas, seeds: list[int], folder: Path) -> list[Cell]:
    """The runs of a study: all arms at the first seed, then all arms at the next seed, and so on.

    Args:
        base: the baseline.
        values: (key, value) of the settings of all runs.
        deltas: {label of an arm: {setting: value} in which the arm differs}.
        seeds: the seeds of each arm.
        folder: the folder in which the run directories are.

    Raises:
        ConfigError: an arm differs from the baseline in more than its delta, or two runs are equal.
    """
    cells = []
    names: dict[str, str] = {}  # {fingerprint of a run: name of its cell}
    for seed in seeds:
        common = [*values, ("size", base.size), ("train.precision", base.train.precision), ("seed", seed)]
        reference = resolve(common).flat()
        for arm, delta in deltas.items():
            run = resolve([*common, *delta.items()])
            if difference(reference, run.flat()) != delta:
                raise ConfigError(f"{arm} differs from the baseline in {difference(reference, run.flat())}")
            name = path_part(arm) if delta else "baseline"
            cell = Cell(arm, seed, run, delta, folder / f"{name},seed={seed}")
            if delta.keys() & ROUNDED_SETTINGS and _values_after_rounding(run) == _values_after_rounding(base):
                raise ConfigError(
                    f"two equal runs: {arm} comes to the same budget, batch sizes, number of steps, and rows of the "
                    "embedding as the baseline"
                )
            if run.fingerprint in names:
                raise ConfigError(f"two equal runs: {cell.name} and {names[run.fingerprint]}")
            names[run.fingerprint] = cell.name
            cells.append(cell)
    return cells


def _cross_arms(deltas: Deltas, cross: str) -> Factorial:
    """Replace the arms of a study by combinations of their settings. Returns the design of this factorial. Raises
    ConfigError if a factor has two values, or the factors do not allow this fraction.

    `deltas`: the deltas of the baseline and the arms, as `_deltas` returns them, which are changed here; `cross`: the
    value of CROSS=, such as "1/2".
    """
    baseline, *labels = deltas
    singles = [deltas[label] for label in labels]
    keys = [key for delta in singles for key in delta]
    if repeated := next((key for key in keys if keys.count(key) > 1), ""):
        raise ConfigError(f"CROSS takes one value of each factor, and {repeated} has {keys.count(repeated)}")
    design = parse_factorial(labels, cross)
    deltas.clear()
    for combination in design.combinations:
        lines = [single for i, single in enumerate(singles) if combination >> i & 1]
        deltas[design.arm_label(combination) or baseline] = {k: v for line in lines for k, v in line.items()}
    return design


def _add_learning_rates(deltas: Deltas, multiples: tuple[float, ...], common: float) -> Tuning:
    """Add copies of every arm at other learning rates to a study. Returns the design. Raises ConfigError if an arm
    changes train.lr itself.

    Args:
        deltas: the deltas of the baseline and the arms, as `_deltas` returns them; the copies are added to them.
        multiples: the learning rates as multiples of the baseline's, 1 among them.
        common: the baseline's learning rate.
    """
    if any("train.lr" in delta for delta in deltas.values()):
        raise ConfigError("LR runs every arm at several learning rates: train.lr cannot be an arm too")
    rates = {multiple: common if multiple == 1 else float(f"{common * multiple:.6g}") for multiple in multiples}
    arms = {}
    for factor, delta in list(deltas.items()):
        for multiple, rate in rates.items():
            label = factor
            if multiple != 1:
                label = f"{factor}+lr={value_text(rate)}" if delta else f"lr={value_text(rate)}"
                deltas[label] = delta | {"train.lr": rate}
            arms[label] = (factor, rate)
    return Tuning(tuple(rates.values()), common, {label: arms[label] for label in deltas})


def _check_single_changes(study: Study) -> None:
    """Check a factorial: combinations that differ in one factor must differ in the setting of this factor alone. Raises
    ConfigError if they differ in other settings. A study that is no factorial passes."""
    if not (design := study.factorial):
        return
    for combination, changed, number in design.single_changes:
        first, second = (design.arm_label(c) or study.arms[0] for c in (combination, changed))
        (key,) = study.cell(design.factors[number], study.seeds[0]).delta
        for seed in study.seeds:
            changes = difference(study.cell(first, seed).run.flat(), study.cell(second, seed).run.flat())
            if changes.keys() != {key}:
                raise ConfigError(f"{first} and {second} differ in {', '.join(changes)}, and not in {key} alone")


def _values_after_rounding(run: Run) -> tuple[Any, ...]:
    """The values of a run that follow from ROUNDED_SETTINGS by rounding: its length, budget, batch sizes, rows of the
    embedding, and the share of the budget in which a ramp by the clock ends. If these values are equal, two runs that
    differ only in ROUNDED_SETTINGS train alike."""
    by_clock = run.train.ramp_share if run.ends_by_clock else 0.0  # under a budget in tokens the batch sizes have it
    return run.length, run.budget, run.batch_sizes, run.model.padded_vocab, by_clock


def check_corpus(corpus: str) -> None:
    """Check a corpus, given by its name or by a path or glob of its files. Raises ConfigError where it is missing or
    unreadable."""
    from data.corpus import check

    try:
        check(corpus)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    except OSError as error:
        where = str(error.filename or corpus)
        raise ConfigError(f"data.corpus={corpus[:200]}: {where[:200]}: {error.strerror}") from None
