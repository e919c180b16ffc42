"""A `Study`: one question, the baseline and its one-line arms as runs, and the directory of each run."""

import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ablations import registration
from ablations.config import ConfigError, Run
from ablations.criteria import Criteria
from ablations.factorial import Factorial
from ablations.prediction import Prediction
from ablations.run import ABSENT
from ablations.rundir import EVAL_DATA, read_run
from ablations.stage import MAX_NAME, hash_of_name, path_part, shortened_name
from ablations.tuning import Tuning
from ablations.values import difference, flatten, short_number

MANY_ARMS = 4  # the title of a study with more arms says how many there are
LONGEST_FACTOR = 60  # characters; for a longer name of what is varied the title says how many settings are varied


@dataclass(frozen=True)
class Cell:
    """One run of a study: an arm at a seed, its settings, and its run directory."""

    arm: str
    seed: int
    run: Run
    delta: dict[str, Any]  # {setting: value} in which the arm differs from the baseline: one, or a part of a recipe
    dir: Path  # its run directory

    @property
    def config(self) -> dict[str, Any]:
        return asdict(self.run)

    @property
    def name(self) -> str:
        return f"{self.arm}, seed {self.seed}"

    def run_json(self) -> dict[str, Any] | None:
        """The content of run.json in the run directory; None before the first launch. Raises Damaged where the file is
        incomplete, or is not one that training wrote."""
        return read_run(self.dir, "The same command repairs it where there is a checkpoint; or rename that folder.")

    def check_same_configuration(self) -> None:
        """Check that the run directory, where it exists, holds a run of this configuration. Raises ConfigError where
        the configuration is another one, and Damaged where run.json is damaged."""
        recorded = self.run_json()
        if recorded and recorded["fingerprint"] != self.run.fingerprint:
            before, now = ABSENT | flatten(recorded["config"]), self.run.flat()
            changed = [k for k in difference(before, now) if not k.startswith("layout.") and k != "size"]
            lines = "\n  ".join(f"{k}: {before.get(k)} there, {now.get(k)} now" for k in changed)
            raise ConfigError(
                f"{self.dir} holds a run that means something else:\n  {lines}\n"
                "Remove or rename that folder, or choose another OUT."
            )


def _command(words: Sequence[str]) -> str:
    """The command `make ablation` with these NAME=VALUE words, quoted for a shell."""
    pairs = [word.partition("=") for word in words]
    return " ".join(["make ablation", *(f"{name}={shlex.quote(value)}" for name, _, value in pairs)])


@dataclass(frozen=True)
class Study:
    """One question, and all runs that answer it: every arm at every seed. A run is addressed by its index in `cells`,
    which does not change as runs are trained."""

    factor: str  # what is varied: "position"
    question: str
    expect: str
    base: Run
    arms: list[str]  # labels such as "pos=alibi", the baseline first
    cells: list[Cell]
    seeds: list[int]
    stage: str  # the folder of the run directories, named after what all runs set: "nano", "nano,tokens=2M"
    out: Path  # the output root, in which that folder is
    criteria: Criteria  # by which the study is decided, named before the runs
    factorial: Factorial | None = None  # the design, where arms are combinations of factors
    tuning: Tuning | None = None  # the design, where every arm is run at several learning rates
    jobs: int | None = None  # how many runs to train at a time; None: as many as the machine allows
    words: list[str] = field(default_factory=list)  # the NAME=VALUE words that made the study
    predictions: list[Prediction] = field(default_factory=list)  # what is expected, in a form that can be checked
    trial_note: str = ""  # a sentence where the runs are trials, which make none of the study file's predictions
    compiled_why: str = ""  # why layout.compile=auto compiles the runs or not; "" for other values, and on a GPU

    @property
    def name(self) -> str:
        """A name of the study for files and folders, such as "position-alibi-nano". A name that would be too long is
        replaced by one with the number of arms and a hash of the long name: "corpus-7-arms-nano-3a1c9716"."""
        labels = self.arms[1:]
        design = ""
        if self.factorial:
            labels, runs = list(self.factorial.factors), len(self.factorial.combinations)
            design = f"crossed-{runs}-of-{2 ** len(labels)}" if self.factorial.generators else "crossed"
        if self.tuning:
            labels, design = self.tuning.factors[1:], "tuned"
        values = [*(path_part(a.split("=", 1)[1]) for a in labels), *([design] if design else [])]
        name = "-".join([self.factor, *values, self.stage.replace(",", "-").replace("=", "-")])
        arms = f"{len(labels)}-arm{'' if len(labels) == 1 else 's'}"
        parts = [self.factor, arms, *([design] if design else []), self.base.size]
        return name if len(name) <= MAX_NAME else shortened_name("-".join([*parts, hash_of_name(name)]))

    @property
    def compared_arms(self) -> list[str]:
        """The labels of the arms that are compared with the baseline one by one. Where the learning rate is tuned,
        these are the arms at the baseline's learning rate."""
        return self.tuning.factors[1:] if self.tuning else self.arms[1:]

    @property
    def max_runs(self) -> int:
        """The largest possible number of runs of the study, with all seeds that MORE=auto may add."""
        return len(self.arms) * max(self.criteria.seeds, len(self.seeds))

    @property
    def number_of_tests(self) -> int:
        """The number of hypothesis tests on one metric, by which its p-values are corrected for multiple testing. There
        is one test for each compared arm, and in a factorial one for each effect."""
        return len(self.compared_arms) + (len(self.factorial.effects) if self.factorial else 0)

    @property
    def design(self) -> str:
        """The design of a study whose arms differ in several settings, as text, such as "crossed: all 4 combinations of
        2 factors"; "" where each arm differs in one setting."""
        if self.factorial:
            return f"crossed: {self.factorial.in_words}"
        return f"tuned: {self.tuning.in_words}" if self.tuning else ""

    @property
    def title(self) -> str:
        seeds = "1 seed" if len(self.seeds) == 1 else f"{len(self.seeds)} seeds"
        budget = self.base.train.budget
        length = f"{short_number(self.base.tokens)} tokens" if budget == "tokens" else budget
        design = f" {self.design.partition(':')[0]}" if self.design else ""
        arms = f", {len(self.arms)} arms" if len(self.arms) > MANY_ARMS and not design else ""
        factor = self.factor if len(self.factor) <= LONGEST_FACTOR else f"{self.factor.count('-') + 1} settings"
        return f"{factor}{design}{arms}, {self.base.size}, {length} each, {seeds}"

    @property
    def command(self) -> str:
        """The command that makes the same study on any machine. It lacks the words for paths of files (OUT, EVAL_DATA,
        GLUE), the words that need these (GLUE_TASKS, GLUE_SEEDS), and the number of runs at a time (JOBS)."""
        return _command([w for w in self.words if not w.startswith(("OUT=", "JOBS=", "EVAL_DATA=", "GLUE"))])

    @property
    def left_out_of_command(self) -> str:
        """A sentence on the words that `command` leaves out because they name folders of one machine; "" if there are
        none."""
        given = {word.partition("=")[0]: word for word in self.words if word.partition("=")[2]}
        shown = [f"{name}=" for name in ("OUT", "EVAL_DATA", "GLUE") if name in given]
        shown += [given[name] for name in ("GLUE_TASKS", "GLUE_SEEDS") if name in given]
        return f"It was given {', '.join(shown)} too: folders of one machine are not named here." if shown else ""

    @property
    def command_here(self) -> str:
        """The command that makes this study on this machine, as it was typed, with the paths of its files."""
        return _command(self.words)

    @property
    def registration(self) -> dict[str, Any]:
        """The study's question, expectation, criteria and plan, as each run registers them before its first step:
        {name: value}. See ablations/registration.py."""
        return registration.registration_of(self)

    @property
    def eval_options(self) -> list[str]:
        """Command-line options of `python -m eval` that name the tasks of TASKS=; empty where only held-out text is
        used. A finished run can be evaluated on other tasks later, since tasks do not change the run."""
        tasks, shots = self.word_value("TASKS"), self.word_value("SHOTS")
        if not tasks:
            return []
        options = ["--tasks", tasks, "--data", self.word_value("EVAL_DATA") or str(self.out / EVAL_DATA)]
        return options + (["--shots", shots] if shots else [])

    @property
    def glue_options(self) -> list[str]:
        """Command-line options of `python -m eval.finetune` for fine-tuning the finished runs on GLUE; empty where the
        study has no word GLUE=."""
        names, tasks, seeds = self.word_value("GLUE"), self.word_value("GLUE_TASKS"), self.word_value("GLUE_SEEDS")
        folders = [part for name in names.split(",") if name.strip() for part in ("--data", name.strip())]
        return [*folders, *(["--tasks", tasks] if tasks else []), *(["--seeds", seeds] if seeds else [])]

    @property
    def exports(self) -> bool:
        """Whether every finished run is to be exported as a Hugging Face checkpoint (EXPORT=1)."""
        return bool(self.word_value("EXPORT"))

    def word_value(self, name: str) -> str:
        """The value of the NAME=VALUE word `name`; "" where it is not among the words of the study."""
        return dict(word.split("=", 1) for word in self.words).get(name, "").strip()

    @cached_property
    def _cell_by_arm_and_seed(self) -> dict[tuple[str, int], Cell]:
        return {(c.arm, c.seed): c for c in self.cells}

    def cell(self, arm: str, seed: int) -> Cell:
        return self._cell_by_arm_and_seed[arm, seed]
