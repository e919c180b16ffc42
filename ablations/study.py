"""A `Study`: one question, the baseline and its one-line arms, and where each of their runs lives."""

import hashlib
import os
import re
import shlex
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ablations.config import KEYS, ConfigError, Run, parse, resolve
from ablations.rundir import read_run
from ablations.values import did_you_mean, difference, flatten, human, read_yaml

STUDIES = Path(__file__).parent / "studies"
ROOT = Path(__file__).parent.parent

# What the command line may set. One table: a variable, what it stands for, and its help.
FACTORS = {  # the question: each value is an arm, compared with the baseline
    "POS": ("model.pos", "position"),
    "ACT": ("model.act", "activation"),
    "NORM": ("model.norm", "norm"),
    "EMBNORM": ("model.embnorm", "embedding-norm"),
    "DATA": ("data.corpus", "corpus"),
}
SETTINGS = {  # the circumstances, the same for every arm
    "SIZE": "size",
    "TOKENS": "train.tokens",
}
FOLLOWS = ("data.tokenizer", "eval.corpora")  # the corpus of all runs, where SET says nothing else
HELP = {
    "STUDY": "a file of ablations/studies: all of its arms",
    "POS": "arm(s): position scheme, e.g. alibi or rotary,none",
    "ACT": "arm(s): activation",
    "NORM": "arm(s): normalisation",
    "EMBNORM": "arm(s): true adds a LayerNorm after the token lookup",
    "DATA": "alone: arm(s), corpora against the baseline's. With another factor: the corpus of all runs",
    "SIZE": "model size for all runs (ablations/sizes.yaml)",
    "TOKENS": "budget per run, e.g. 2M",
    "SEEDS": "how many seeds per arm (default 2)",
    "SET": 'settings for all runs, e.g. "train.lr=3e-4 train.batch=16"',
    "ARM": 'any one setting as an arm, e.g. "train.beta2=0.999"',
    "TASKS": "judge also by lm-eval's tasks: suite (the study's 27), multilingual, or names such as hellaswag,blimp",
    "EVAL_DATA": "where the data of TASKS is (default: OUT/eval-data, which `make eval-data` fills)",
    "JOBS": "runs at a time (default: as many as fit the CPU cores; 1 on a GPU)",
    "OUT": "where runs and prepared data are kept (default runs)",
}


@dataclass(frozen=True)
class Cell:
    """One run of a study: an arm at a seed."""

    arm: str
    seed: int
    run: Run
    delta: dict[str, Any]  # what makes the arm: one key, or none for the baseline
    dir: Path

    @property
    def config(self) -> dict[str, Any]:
        return asdict(self.run)

    @property
    def name(self) -> str:
        return f"{self.arm}, seed {self.seed}"

    def recorded(self) -> dict[str, Any] | None:
        """run.json, or None before the first launch.

        Raises:
            Damaged: when it is half a file, or no run's.
        """
        return read_run(self.dir, "The same command repairs it where there is a checkpoint; or rename that folder.")

    def check_recorded(self) -> None:
        """A directory keeps its meaning.

        Raises:
            ConfigError: when the directory holds a run of another configuration.
            Damaged: when its run.json is damaged.
        """
        recorded = self.recorded()
        if recorded and recorded["fingerprint"] != self.run.fingerprint:
            was, now = flatten(recorded["config"]), self.run.flat()
            changed = [k for k in difference(was, now) if not k.startswith("layout.") and k != "size"]
            lines = "\n  ".join(f"{k}: {was.get(k)} there, {now.get(k)} now" for k in changed)
            raise ConfigError(
                f"{self.dir} holds a run that means something else:\n  {lines}\n"
                "Remove or rename that folder, or choose another OUT."
            )


@dataclass(frozen=True)
class Study:
    """All runs that answer one question. `cells` is the plan; a cell's index in it never depends on what has run."""

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

    @property
    def name(self) -> str:
        """For file names: "position-alibi-nano"."""
        values = [_slug(a.split("=", 1)[1]) for a in self.arms[1:]]
        name = "-".join([self.factor, *values, self.stage.replace(",", "-").replace("=", "-")])
        # file systems end at 255 bytes; corpora that are paths get there
        return name if len(name) <= 120 else f"{name[:100]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"

    @property
    def title(self) -> str:
        n = len(self.seeds)
        tokens = human(self.base.tokens)
        return f"{self.factor}, {self.base.size}, {tokens} tokens each, {n} seed{'s' * (n > 1)}"

    @property
    def command(self) -> str:
        """What makes the same study anywhere: where it is kept and how many run at a time do not matter."""
        named = [w.partition("=") for w in self.words if not w.startswith(("OUT=", "JOBS=", "EVAL_DATA="))]
        return " ".join(["make ablation", *(f"{n}={shlex.quote(v)}" for n, _, v in named)])

    @property
    def judged(self) -> list[str]:
        """By what the runs are judged besides held-out text, as arguments of `python -m eval`. Not part of what a run
        is: a finished run can be asked more."""
        given = dict(word.split("=", 1) for word in self.words)
        tasks = given.get("TASKS", "").strip()
        return ["--tasks", tasks, "--data", given.get("EVAL_DATA") or str(self.out / "eval-data")] if tasks else []

    @cached_property
    def _cells(self) -> dict[tuple[str, int], Cell]:
        return {(c.arm, c.seed): c for c in self.cells}

    def cell(self, arm: str, seed: int) -> Cell:
        return self._cells[arm, seed]


def from_args(words: list[str]) -> Study:
    """A study from NAME=VALUE words as typed after `make ablation`. Creates nothing.

    Raises:
        ConfigError: for anything that is not allowed, naming what is.
    """
    given: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or name not in HELP:
            raise ConfigError(f"{word!r} is no NAME=VALUE of {', '.join(HELP)}{did_you_mean(name, HELP)}")
        if name in given:
            raise ConfigError(f"{name} is given twice")
        if value.strip():
            given[name] = value.strip()

    setting: list[tuple[str, Any]] = [(key, given[name]) for name, key in SETTINGS.items() if name in given]
    own = [_assignment(word) for word in given.get("SET", "").split()]
    asked = [(name, v) for name in FACTORS if name in given for v in given[name].split(",")]
    arm_values = [(FACTORS[name][0], v) for name, v in asked]
    arm_values += [_assignment(word) for word in given.get("ARM", "").split()]
    names = [FACTORS[n][1] for n, _ in asked] + [k.split(".")[-1] for k, _ in arm_values[len(asked) :]]
    factor = "-".join(dict.fromkeys(names))

    if "DATA" in given and (len({n for n, _ in asked}) > 1 or "ARM" in given or "STUDY" in given):
        if "," in given["DATA"]:
            raise ConfigError("DATA with another factor is the corpus of all runs: give one, not several")
        arm_values = [(k, v) for k, v in arm_values if k != "data.corpus"]
        factor = "-".join(p for p in factor.split("-") if p != "corpus") if factor != "corpus" else ""
        setting.append(("data.corpus", given["DATA"]))
        setting += [(key, given["DATA"]) for key in FOLLOWS if key not in dict(own)]
    setting += own
    keys = [key for key, _ in setting]
    if twice := [key for key in dict.fromkeys(keys) if keys.count(key) > 1]:
        where = ", ".join(name for name in (*SETTINGS, "DATA", "SET") if name in given)
        raise ConfigError(f"{', '.join(twice)} is set twice by {where}: say it once")

    question = f"Does {' or '.join(f'{k}={v}' for k, v in arm_values)} beat the baseline?"
    expect = "Nothing was written down before the runs."
    if "STUDY" in given:
        if arm_values:
            raise ConfigError("a study file has its own arms: give STUDY, or a factor, not both")
        question, expect, arm_values, factor, base = _read_study(given["STUDY"])
        setting = base + setting
    else:
        arms = {(k, str(parse(k, v))) for k, v in arm_values}
        for path in sorted(STUDIES.glob("*.yaml")):  # the expectation written down for these arms, where there is one
            q, e, planned, _, _ = _read_study(path.stem)
            if arms and arms <= {(k, str(parse(k, v))) for k, v in planned}:
                question, expect = q, e
                break
    if not arm_values and "STUDY" not in given:
        factors = ", ".join(f"{n}=" for n in FACTORS)
        studies = ", ".join(p.stem for p in sorted(STUDIES.glob("*.yaml")))
        raise ConfigError(f"no question asked: give one of {factors} ARM=, or STUDY= one of {studies}")

    try:
        count = int(given.get("SEEDS", "2"))
    except ValueError:
        count = 0
    if not 1 <= count <= 100:
        raise ConfigError(f"SEEDS={given['SEEDS']}: a number of seeds from 1 to 100 is needed")
    if "EVAL_DATA" in given and "TASKS" not in given:
        raise ConfigError("EVAL_DATA says where the data of evaluation tasks is: name them, e.g. TASKS=suite")
    if "JOBS" in given and not (given["JOBS"].isdigit() and int(given["JOBS"]) > 0):
        raise ConfigError(f"JOBS={given['JOBS']}: a number of runs at a time is needed")

    corpora = [v for k, v in arm_values if k == "data.corpus"]
    if corpora and not any(k == "eval.corpora" for k, _ in setting):
        # arms that read different text are judged on the held-out text of all of it
        judged = resolve(setting).eval.corpora
        setting.append(("eval.corpora", judged + [c for c in dict.fromkeys(corpora) if c not in judged]))
    return build(
        factor,
        question,
        expect,
        setting,
        arm_values,
        list(range(1, count + 1)),
        Path(given.get("OUT", "runs")),
        int(given["JOBS"]) if "JOBS" in given else None,
        words,
    )


def from_anywhere(words: list[str]) -> list[str]:
    """The words as they read from the checkout, where everything that is started runs; goes there itself."""
    here = Path.cwd()
    if here == ROOT:
        return words
    os.chdir(ROOT)
    found = []
    for word in words:
        name, equals, value = word.partition("=")
        if name in ("RUNS", "NOISE"):  # several
            value = " ".join(str(here / each) for each in value.split())
        elif name in ("OUT", "EVAL_DATA") and value.strip():
            value = str(here / value.strip())
        found.append(name + equals + value)
    return found


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
) -> Study:
    """The baseline under `setting`, and one arm for each (key, value), at every seed. See `from_args`."""
    if any(k == "seed" for k, _ in setting + arm_values):
        raise ConfigError("seed is not a setting of a study: use SEEDS")
    base = resolve(setting)
    for corpus in base.corpora:
        check_corpus(corpus)
    keys = list(dict.fromkeys(k for k, _ in arm_values))
    deltas: dict[str, dict[str, Any]] = {}
    flat = base.flat()
    baseline = ",".join(f"{k.split('.')[-1]}={_text(flat[k])}" for k in keys if k in flat) or "baseline"
    deltas[baseline] = {}
    for key, value in arm_values:
        value = parse(key, value)
        if key.startswith(("layout.", "eval.")) or key == "size":
            raise ConfigError(f"{key} cannot make an arm: it is no part of what is trained, or many lines at once")
        if lacking := [f"{k}={v}" for k, v in needs(key).items() if flat[k] != v]:
            raise ConfigError(f"{key} does nothing without {' and '.join(lacking)}: an arm of it would be the baseline")
        label = f"{key.split('.')[-1]}={_text(value)}"
        if value == flat[key] or label in deltas:
            raise ConfigError(
                f"two equal runs: {key}={_text(value)} is {'the baseline' if value == flat[key] else 'there twice'}"
            )
        if key == "data.corpus":
            check_corpus(value)
        deltas[label] = {key: value}

    given = [(k, parse(k, v)) for k, v in setting]
    stage = _stage(base, given)
    cells = []
    seen: dict[str, str] = {}
    for seed in seeds:
        reference = resolve([*given, ("size", base.size), ("seed", seed)]).flat()
        for arm, delta in deltas.items():
            run = resolve(
                [*given, ("size", base.size), ("train.precision", base.train.precision), *delta.items(), ("seed", seed)]
            )
            if difference(reference, run.flat()) != delta:
                raise ConfigError(f"{arm} differs from the baseline in {difference(reference, run.flat())}")
            name = "baseline" if not delta else _slug(arm)
            cell = Cell(arm, seed, run, delta, out / stage / f"{name},seed={seed}")
            if delta.keys() & ROUNDED and _rounded(run) == _rounded(base):
                raise ConfigError(
                    f"two equal runs: {arm} comes to the same number of steps, tokens to the end of the "
                    "learning rate's decay, and rows of the embedding as the baseline"
                )
            if run.fingerprint in seen:
                raise ConfigError(f"two equal runs: {cell.name} and {seen[run.fingerprint]}")
            seen[run.fingerprint] = cell.name
            cells.append(cell)
    return Study(factor, question, expect, base, list(deltas), cells, seeds, stage, out, jobs, list(words or []))


ROUNDED = ("train.tokens", "train.decay_tokens", "model.vocab_multiple")  # another number may have the same effect


def _rounded(run: Run) -> tuple[int, ...]:
    return run.steps, run.horizon, run.model.padded_vocab


def needs(key: str) -> dict[str, Any]:
    """What must be set for a setting to have an effect."""
    if key.startswith("train.loss_scale_"):
        return {"train.precision": "fp16"}
    return {"model.rotary_base": {"model.pos": "rotary"}}.get(key, {})


def _read_study(name: str) -> tuple[str, str, list[tuple[str, Any]], str, list[tuple[str, Any]]]:
    """question, expectation, arms, factor, base settings of ablations/studies/`name`.yaml."""
    path = STUDIES / f"{name}.yaml"
    if not path.exists():
        names = [p.stem for p in sorted(STUDIES.glob("*.yaml"))]
        raise ConfigError(f"STUDY={name} is not one of {', '.join(names)}{did_you_mean(name, names)}")
    content = read_yaml(path)
    keys = {"question", "expect", "base", "arms"}
    if content.keys() - keys or not {"question", "expect", "arms"} <= content.keys():
        raise ConfigError(f"{path.name} must hold question, expect, arms and maybe base, not {sorted(content)}")
    if not isinstance(content["arms"], list) or not all(isinstance(a, dict) and len(a) == 1 for a in content["arms"]):
        raise ConfigError(f"{path.name}: each arm is one line, such as `- model.pos: alibi`")
    arms = [next(iter(arm.items())) for arm in content["arms"]]
    base = list((content.get("base") or {}).items())
    return content["question"].strip(), content["expect"].strip(), arms, path.stem, base


def check_corpus(corpus: str) -> None:
    """Raises:
    ConfigError: when no such corpus is defined and no file matches.
    """
    from data.corpus import check

    try:
        check(corpus)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _assignment(word: str) -> tuple[str, str]:
    key, equals, value = word.partition("=")
    if not equals:
        raise ConfigError(f"{word!r}: key=value is needed, e.g. train.lr=3e-4. Settings: {', '.join(sorted(KEYS))}")
    return key, value


def _stage(base: Run, setting: list[tuple[str, Any]]) -> str:
    """The size, and whatever else all runs set that the size does not: part of every run's path."""
    plain = resolve([("size", base.size)]).flat()
    flat = base.flat()
    named = {}
    for key, _ in setting:
        if key in FOLLOWS and flat["data.corpus"] != plain["data.corpus"]:
            said = _text(flat[key]) != base.data.corpus
        else:
            said = flat[key] != plain[key]
        if said and key != "size" and not key.startswith("layout."):
            named[key] = _slug(human(flat[key]) if key == "train.tokens" else _text(flat[key]))
    return ",".join([base.size, *(f"{k.split('.')[-1]}={v}" for k, v in sorted(named.items()))])


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return "+".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _slug(text: str) -> str:
    """Readable in a path; a hash keeps apart what the readable part does not."""
    plain = re.sub(r"[^A-Za-z0-9.=+_-]+", "_", text)
    if plain == text:
        return text
    return f"{plain.strip('_')[-40:].strip('_')}_{hashlib.sha256(text.encode()).hexdigest()[:6]}"
