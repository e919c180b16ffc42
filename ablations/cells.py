"""A `Study`: one question, the baseline and its one-line arms as runs, and the directory of each run."""

import hashlib
import re
import shlex
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ablations import compilation, registration
from ablations.config import ConfigError, Run, bundles, parse, resolve, without_effect
from ablations.criteria import Criteria
from ablations.factorial import Factorial, factorial
from ablations.machine import has_gpu
from ablations.parts import PARTS, settings_of_part
from ablations.prediction import Prediction
from ablations.run import ABSENT
from ablations.rundir import read_run
from ablations.safe_files import Damaged
from ablations.tuning import Tuning
from ablations.values import difference, flatten, human

FOLLOWS = ("data.tokenizer", "eval.corpora")  # the corpus of all runs, where SET says nothing else
MAX_NAME = 120  # bytes of a study's name and of a run's folders; file systems end at 255, and endings are added
MAX_SHOWN = 3  # factors of a study, up to which the baseline is named after its values of them
MAX_VALUE = 100  # characters of a value in such a name


@dataclass(frozen=True)
class Cell:
    """One run of a study: an arm at a seed. `dir` is its run directory, `delta` the settings in which it differs from
    the baseline."""

    arm: str
    seed: int
    run: Run
    delta: dict[str, Any]  # what makes the arm: one key, or those of a part of a recipe; none for the baseline
    dir: Path

    @property
    def config(self) -> dict[str, Any]:
        return asdict(self.run)

    @property
    def name(self) -> str:
        return f"{self.arm}, seed {self.seed}"

    def recorded(self) -> dict[str, Any] | None:
        """The content of run.json in the run directory, or None before the first launch.

        Raises:
            Damaged: the file is incomplete, or is not that of a run.
        """
        return read_run(self.dir, "The same command repairs it where there is a checkpoint; or rename that folder.")

    def check_recorded(self) -> None:
        """Check that the run directory, where it exists, holds this run.

        Raises:
            ConfigError: the directory holds a run of another configuration.
            Damaged: its run.json is damaged.
        """
        recorded = self.recorded()
        if recorded and recorded["fingerprint"] != self.run.fingerprint:
            before, now = ABSENT | flatten(recorded["config"]), self.run.flat()
            changed = [k for k in difference(before, now) if not k.startswith("layout.") and k != "size"]
            lines = "\n  ".join(f"{k}: {before.get(k)} there, {now.get(k)} now" for k in changed)
            raise ConfigError(
                f"{self.dir} holds a run that means something else:\n  {lines}\n"
                "Remove or rename that folder, or choose another OUT."
            )


def _typed(words: Sequence[str]) -> str:
    """The command `make ablation` with the NAME=VALUE words in `words`, quoted for a shell."""
    pairs = [word.partition("=") for word in words]
    return " ".join(["make ablation", *(f"{name}={shlex.quote(value)}" for name, _, value in pairs)])


@dataclass(frozen=True)
class Study:
    """One question, and all runs that answer it: the arms at every seed. The index of a run in `cells` does not depend
    on which runs are trained already."""

    factor: str  # "position"
    question: str
    expect: str
    base: Run
    arms: list[str]  # labels, the baseline first
    cells: list[Cell]
    seeds: list[int]
    stage: str  # names what all runs share beyond the baseline: "nano", "nano,tokens=2M"
    out: Path
    jobs: int | None
    words: list[str] = field(default_factory=list)  # the command line that made it
    criteria: Criteria = field(default_factory=Criteria)  # what it is decided by, named before the runs
    factorial: Factorial | None = None  # arms are combinations of factors
    tuning: Tuning | None = None  # arms are factors at several learning rates
    predictions: list[Prediction] = field(default_factory=list)  # what is expected, in a form that can be checked
    compiled_why: str = ""  # whether layout.compile=auto compiles the runs, and why; "" where that was not the question

    @property
    def name(self) -> str:
        """A name of the study for files and folders: "position-alibi-nano"."""
        labels = self.arms[1:]
        design = ""
        if self.factorial:
            labels, runs = list(self.factorial.factors), len(self.factorial.combinations)
            design = f"crossed-{runs}-of-{2 ** len(labels)}" if self.factorial.generators else "crossed"
        if self.tuning:
            labels, design = self.tuning.factors[1:], "tuned"
        values = [*(_slug(a.split("=", 1)[1]) for a in labels), *([design] if design else [])]
        return _shortened("-".join([self.factor, *values, self.stage.replace(",", "-").replace("=", "-")]))

    @property
    def compared(self) -> list[str]:
        """The labels of the arms that are compared with the baseline one by one; where the learning rate is tuned, of
        the arms at the common rate."""
        return self.tuning.factors[1:] if self.tuning else self.arms[1:]

    @property
    def max_runs(self) -> int:
        """The largest possible number of runs, with all seeds that MORE=auto may add."""
        return len(self.arms) * max(self.criteria.seeds, len(self.seeds))

    @property
    def tests(self) -> int:
        """The number of comparisons for which the tests of a metric are corrected: one for each arm, and in a
        factorial one for each effect."""
        return len(self.compared) + (len(self.factorial.effects) if self.factorial else 0)

    @property
    def design(self) -> str:
        """The design of a study whose arms differ in several settings, as text, such as "crossed: all 4 combinations
        of 2 factors"; "" where each arm differs in one."""
        if self.factorial:
            return f"crossed: {self.factorial.in_words}"
        return f"tuned: {self.tuning.in_words}" if self.tuning else ""

    @property
    def title(self) -> str:
        seeds = "1 seed" if len(self.seeds) == 1 else f"{len(self.seeds)} seeds"
        budget = self.base.train.budget
        length = f"{human(self.base.tokens)} tokens" if budget == "tokens" else budget
        design = f" {self.design.partition(':')[0]}" if self.design else ""
        return f"{self.factor}{design}, {self.base.size}, {length} each, {seeds}"

    @property
    def command(self) -> str:
        """The command that makes the same study on any machine: without the words for the places of files (OUT,
        EVAL_DATA, GLUE) and for the number of runs at a time (JOBS)."""
        return _typed([w for w in self.words if not w.startswith(("OUT=", "JOBS=", "EVAL_DATA=", "GLUE="))])

    @property
    def command_here(self) -> str:
        """The command that makes this study on this machine, as it was typed, with the places of its files."""
        return _typed(self.words)

    @property
    def registration(self) -> dict[str, Any]:
        """What each run registers before its first step: the study's question, expectation, criteria and plan, {name:
        value}; see ablations/registration.py."""
        return registration.content(self)

    @property
    def eval_options(self) -> list[str]:
        """Options of `python -m eval` for the tasks on which the runs are evaluated besides held-out text; empty where
        there are no tasks. A finished run can be evaluated on other tasks later, since tasks do not change the run."""
        values = dict(word.split("=", 1) for word in self.words)
        tasks, shots = values.get("TASKS", "").strip(), values.get("SHOTS", "").strip()
        if not tasks:
            return []
        options = ["--tasks", tasks, "--data", values.get("EVAL_DATA") or str(self.out / "eval-data")]
        return options + (["--shots", shots] if shots else [])

    @property
    def glue_options(self) -> list[str]:
        """Options of `python -m eval.finetune` for fine-tuning the finished runs on GLUE; empty where the study names
        no data of GLUE."""
        values = dict(word.split("=", 1) for word in self.words)
        folder, seeds = values.get("GLUE", "").strip(), values.get("GLUE_SEEDS", "").strip()
        folders = [part for name in folder.split(",") if name.strip() for part in ("--data", name.strip())]
        tasks = values.get("GLUE_TASKS", "").strip()
        return [*folders, *(["--tasks", tasks] if tasks else []), *(["--seeds", seeds] if seeds else [])]

    @property
    def exports(self) -> bool:
        """Whether the study was asked to export every run as a Hugging Face checkpoint when it ends."""
        return any(word.startswith("EXPORT=") for word in self.words)

    @cached_property
    def _cells(self) -> dict[tuple[str, int], Cell]:
        return {(c.arm, c.seed): c for c in self.cells}

    def cell(self, arm: str, seed: int) -> Cell:
        return self._cells[arm, seed]


def build(
    factor: str,
    question: str,
    expect: str,
    setting: list[tuple[str, Any]],
    arm_values: list[tuple[str, Any]],
    seeds: list[int],
    out: Path,
    jobs: int | None = None,
    words: list[str] | None = None,
    criteria: Criteria | None = None,
    cross: str = "",
    multiples: tuple[float, ...] = (),
    recipe: tuple[str, dict[str, Any]] | None = None,
) -> Study:
    """Make a study of the baseline and of one arm for each pair in `arm_values`, each at every seed.

    Args:
        factor: the name of what is varied, such as "position".
        question: the question of the study.
        expect: what was expected before any run.
        setting: (key, value) of the settings of all runs.
        arm_values: (key, value) of the setting that makes each arm, or a part of a recipe and the preset to take it
            from.
        seeds: the seeds of each arm.
        out: the output root.
        jobs: how many runs to train at a time; None: as many as the machine allows.
        words: the NAME=VALUE words of the command line that asked for the study.
        criteria: what the study is decided by.
        cross: "1": the arms are all combinations of the pairs in `arm_values`; "1/2", "1/4" or "1/8": a fraction of
            these; "": each pair is an arm.
        multiples: factors of the baseline's learning rate, at each of which every arm is run; empty: the baseline's
            alone.
        recipe: (name, settings) of a recipe whose settings are among `setting`: in names of folders the name stands for
            them.

    Raises:
        ConfigError: a setting is not allowed or has no effect, or two runs would be equal.
    """
    if any(k == "seed" for k, _ in setting + arm_values):
        raise ConfigError("seed is not a setting of a study: use SEEDS")
    values = [(k, parse(k, v)) for k, v in setting]
    base = resolve(values)
    stage, base = _stage_of_begun_study(base, values, recipe, seeds, out)
    for corpus in base.corpora:
        check_corpus(corpus)
    keys = list(dict.fromkeys(k for k, _ in arm_values))
    deltas: dict[str, dict[str, Any]] = {}
    flat = base.flat()
    shown = keys if len(keys) <= MAX_SHOWN else []
    baseline = ",".join(f"{k.split('.')[-1]}={_text(flat[k])}" for k in shown if k in flat) or "baseline"
    deltas[baseline] = {}
    for key, value in arm_values:
        if key in PARTS:
            deltas[f"{key}={value}"] = settings_of_part(key, value, base.size, flat)
            continue
        value = parse(key, value)
        if key.startswith(("layout.", "eval.")) or key == "size":
            raise ConfigError(f"{key} cannot make an arm: it is no part of what is trained, or many lines at once")
        if missing := without_effect(key, flat):
            raise ConfigError(f"{key} does nothing without {missing}: an arm of it would be the baseline")
        label = f"{key.split('.')[-1]}={_text(value)}"
        if value == flat[key] or label in deltas:
            raise ConfigError(
                f"two equal runs: {key}={_text(value)} is {'the baseline' if value == flat[key] else 'there twice'}"
            )
        if key == "data.corpus":
            check_corpus(value)
        deltas[label] = {key: value}

    if cross and any(key in PARTS for key in keys):
        raise ConfigError("CROSS combines single settings, and a part of a preset is several")
    design = _crossed(deltas, cross) if cross else None
    tuning = _tuned(deltas, multiples, flat["train.lr"]) if multiples else None
    cells = []
    names: dict[str, str] = {}  # of the cells by fingerprint
    for seed in seeds:
        common = [*values, ("size", base.size), ("train.precision", base.train.precision), ("seed", seed)]
        reference = resolve(common).flat()
        for arm, delta in deltas.items():
            run = resolve([*common, *delta.items()])
            if difference(reference, run.flat()) != delta:
                raise ConfigError(f"{arm} differs from the baseline in {difference(reference, run.flat())}")
            name = "baseline" if not delta else _slug(arm)
            cell = Cell(arm, seed, run, delta, out / stage / f"{name},seed={seed}")
            if delta.keys() & ROUNDED_SETTINGS and _rounded(run) == _rounded(base):
                raise ConfigError(
                    f"two equal runs: {arm} comes to the same budget, batch sizes, number of steps, and rows of the "
                    "embedding as the baseline"
                )
            if run.fingerprint in names:
                raise ConfigError(f"two equal runs: {cell.name} and {names[run.fingerprint]}")
            names[run.fingerprint] = cell.name
            cells.append(cell)
    compiled_why = ""
    if base.layout.compile == "auto" and not has_gpu():
        mode, compiled_why = compilation.choose([cell.run for cell in cells], _compile_of_begun_runs(cells))
        base = _with_compile(base, mode)
        cells = [replace(cell, run=_with_compile(cell.run, mode)) for cell in cells]
    criteria = criteria or Criteria(seeds=len(seeds))
    arms, typed = list(deltas), list(words or [])
    study = Study(
        factor,
        question,
        expect,
        base,
        arms,
        cells,
        seeds,
        stage,
        out,
        jobs,
        typed,
        criteria,
        design,
        tuning,
        compiled_why=compiled_why,
    )
    _check_edges(study)
    return study


def _crossed(deltas: dict[str, dict[str, Any]], cross: str) -> Factorial:
    """Make a factorial of arms that differ in one setting each.

    Args:
        deltas: {label of an arm: {setting: value}}, the baseline first. Changed in place: afterwards it has an arm for
            each combination of the factorial.
        cross: the value of the word CROSS, such as "1/2".

    Raises:
        ConfigError: a factor has two values, or the factors do not allow this fraction.
    """
    baseline, *labels = deltas
    singles = [deltas[label] for label in labels]
    keys = [key for delta in singles for key in delta]
    if repeated := next((key for key in keys if keys.count(key) > 1), ""):
        raise ConfigError(f"CROSS takes one value of each factor, and {repeated} has {keys.count(repeated)}")
    design = factorial(labels, cross)
    deltas.clear()
    for combination in design.combinations:
        lines = [single for i, single in enumerate(singles) if combination >> i & 1]
        deltas[design.label(combination) or baseline] = {k: v for line in lines for k, v in line.items()}
    return design


def _tuned(deltas: dict[str, dict[str, Any]], multiples: tuple[float, ...], common: float) -> Tuning:
    """Run every arm at several learning rates.

    Args:
        deltas: {label of an arm: {setting: value}}, the baseline first. Changed in place: each arm at the other rates
            is added.
        multiples: factors of the baseline's learning rate.
        common: the baseline's learning rate.

    Raises:
        ConfigError: an arm changes train.lr itself.
    """
    if any("train.lr" in delta for delta in deltas.values()):
        raise ConfigError("LR runs every arm at several learning rates: train.lr cannot be an arm too")
    rates = {multiple: common if multiple == 1 else float(f"{common * multiple:.6g}") for multiple in multiples}
    arms = {}
    for factor, delta in list(deltas.items()):
        for multiple, rate in rates.items():
            label = factor
            if multiple != 1:
                label = f"{factor}+lr={_text(rate)}" if delta else f"lr={_text(rate)}"
                deltas[label] = delta | {"train.lr": rate}
            arms[label] = (factor, rate)
    return Tuning(tuple(rates.values()), common, {label: arms[label] for label in deltas})


def _check_edges(study: Study) -> None:
    """Check that any two combinations of a factorial that differ in one factor differ in the setting of that factor
    alone.

    Raises:
        ConfigError: two such combinations differ in other settings too.
    """
    if not (design := study.factorial):
        return
    for combination, changed, number in design.edges:
        first, second = (design.label(c) or study.arms[0] for c in (combination, changed))
        (key,) = study.cell(design.factors[number], study.seeds[0]).delta
        for seed in study.seeds:
            changes = difference(study.cell(first, seed).run.flat(), study.cell(second, seed).run.flat())
            if changes.keys() != {key}:
                raise ConfigError(f"{first} and {second} differ in {', '.join(changes)}, and not in {key} alone")


def _stage_of_begun_study(
    base: Run, values: list[tuple[str, Any]], recipe: tuple[str, dict[str, Any]] | None, seeds: list[int], out: Path
) -> tuple[str, Run]:
    """The stage (the name of the folder) and the baseline of a study that may have begun on another machine.

    Where no setting names the precision, it depends on the machine; the study then keeps the precision that it began
    with. Where a setting names the precision that the study began with, the stage's name does not mention it, so that
    the same run directories are found.

    Args:
        base: the baseline as this machine would run it.
        values: (key, value) of the settings of all runs.
        recipe: (name, settings) of a recipe among `values`, or None.
        seeds: the seeds of the study.
        out: the output root.
    """
    stage = _stage(base, values, recipe)
    if "train.precision" not in {**bundles()[base.size]["set"], **dict(values)}:
        precision = _recorded_precision(out / stage, seeds)
        return stage, resolve([*values, ("train.precision", precision)]) if precision else base
    unsaid = _stage(base, [(key, value) for key, value in values if key != "train.precision"], recipe)
    return unsaid if _recorded_precision(out / unsaid, seeds) == base.train.precision else stage, base


def _recorded_precision(folder: Path, seeds: list[int]) -> str:
    """The precision of the baseline's runs at `seeds` in the folder of a stage, according to their run.json; "" where
    no baseline run has begun."""
    for seed in seeds:
        with suppress(Damaged, ConfigError, KeyError, TypeError):
            if recorded := read_run(folder / f"baseline,seed={seed}"):
                return parse("train.precision", recorded["config"]["train"]["precision"])
    return ""


def _compile_of_begun_runs(cells: list[Cell]) -> str:
    """layout.compile of the first of a study's runs that has begun, by its run.json, the baseline's runs before others;
    "" where none has begun."""
    for cell in sorted(cells, key=lambda cell: bool(cell.delta)):
        with suppress(Damaged, ConfigError, KeyError, TypeError):
            if recorded := read_run(cell.dir):
                return parse("layout.compile", recorded["config"]["layout"]["compile"])
    return ""


def _with_compile(run: Run, mode: str) -> Run:
    return replace(run, layout=replace(run.layout, compile=parse("layout.compile", mode)))


# Settings of which another number may have the same effect: with the values that follow from them.
ROUNDED_SETTINGS = {"train.tokens", "train.budget", "train.decay_tokens", "train.ramp_share", "model.vocab_multiple"}


def _rounded(run: Run) -> tuple[Any, ...]:
    by_clock = run.train.ramp_share if run.by_clock else 0.0  # else it is part of the batch sizes
    return run.length, run.budget, run.batch_sizes, run.model.padded_vocab, by_clock


def check_corpus(corpus: str) -> None:
    """Check that a corpus is defined or its files exist.

    Args:
        corpus: the name of a corpus, or a path or glob of its files.

    Raises:
        ConfigError: there is no such corpus, or its files cannot be read.
    """
    from data.corpus import check

    try:
        check(corpus)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    except OSError as error:
        raise ConfigError(f"data.corpus={corpus}: {error.filename or corpus}: {error.strerror}") from None


def _stage(base: Run, setting: list[tuple[str, Any]], recipe: tuple[str, dict[str, Any]] | None) -> str:
    """The name of the folder that the run directories of a study are in, made from what all its runs set: the size,
    the recipe, and settings that differ from the size's and the recipe's, such as "nano,cram,budget=60s".

    Args:
        base: the baseline.
        setting: (key, value) of the settings of all runs.
        recipe: (name, settings) of a recipe among `setting`, or None.
    """
    name, settings = recipe or ("", {})
    plain = resolve([("size", base.size)]).flat() | {key: parse(key, value) for key, value in settings.items()}
    flat = base.flat()
    values = {}
    for key, _ in setting:
        if key in FOLLOWS and flat["data.corpus"] != plain["data.corpus"]:
            differs = _text(flat[key]) != base.data.corpus
        else:
            differs = flat[key] != plain[key]
        if differs and key != "size" and not key.startswith("layout."):
            values[key] = _slug(human(flat[key]) if key == "train.tokens" else _text(flat[key]))
    names = [base.size, name] if recipe else [base.size]
    return _shortened(",".join([*names, *(f"{k.split('.')[-1]}={v}" for k, v in sorted(values.items()))]))


def _shortened(name: str) -> str:
    """`name`, shortened where it is too long for a file system; a hash keeps shortened names distinct."""
    return name if len(name) <= MAX_NAME else f"{name[:100]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return "+".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _slug(text: str) -> str:
    """`text` with the characters replaced that do not suit a path, and shortened to its end where it is long. A hash
    is added where anything was changed, so that different texts stay different."""
    plain = re.sub(r"[^A-Za-z0-9.=+_-]+", "_", text)
    if plain == text and len(text) <= MAX_VALUE:
        return text
    return f"{plain.strip('_')[-40:].strip('_')}_{hashlib.sha256(text.encode()).hexdigest()[:6]}"
