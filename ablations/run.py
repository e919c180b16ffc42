"""The class `Run`: all settings that determine one training run, and the quantities that follow from them."""

import bisect
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cached_property
from typing import Any, Literal, get_type_hints

from ablations.budget import BatchSizes, Budget, ClockBudget, TokenBudget, clock_seconds
from ablations.safe_files import json_digest
from ablations.settings import DataConfig, EvalConfig, LayoutConfig, TrainConfig
from ablations.values import ConfigError
from model.config import ModelConfig
from model.count import flops_per_token
from model.setting import Setting, setting, settings_of


@dataclass(frozen=True, kw_only=True)
class Run:
    """All settings of a run. The settings under `layout` say how the run is executed and must not change its result;
    all other settings determine the result."""

    size: str = setting(
        "a bundle of ablations/sizes.yaml or a file of ablations/presets; auto: nano on a CPU, 14m where there is a GPU"
    )
    seed: int = setting("draws the weights (by name) and the order of the data")
    model: ModelConfig
    data: DataConfig
    train: TrainConfig
    eval: EvalConfig
    layout: LayoutConfig

    def flat(self) -> dict[str, Any]:
        """{setting: value} of all settings, such as {"model.pos": "alibi"}, including the layout."""
        flat: dict[str, Any] = {}
        for name, value in vars(self).items():
            if name in SECTIONS:
                flat |= {f"{name}.{field}": setting for field, setting in vars(value).items()}
            elif name in KEYS:
                flat[name] = value
        return flat

    @property
    def corpora(self) -> list[str]:
        """The corpora that the run reads: for training, for a tokenizer that is trained, and for evaluation."""
        tokenizer = [] if self.data.tokenizer_kind == "file" else [self.data.tokenizer]
        return list(dict.fromkeys([self.data.corpus, *tokenizer, *self.eval.corpora]))

    @property
    def data_request(self) -> dict[str, Any]:
        """{name: value} of the arguments of `data.prepare.prepare` that determine the data of the run."""
        return {
            "corpus": self.data.corpus,
            "tokenizer": self.data.tokenizer,
            "vocab": self.model.vocab,
            "kind": self.data.tokenizer_kind,
            "recipe": self.data.recipe,
            "mask": self.model.needs_mask_token,
        }

    @cached_property
    def batch_sizes(self) -> BatchSizes:
        """The batch sizes of the run, constant or a ramp. Under a budget in tokens `BatchSizes.samples` gives the batch
        of each step; under a wall clock `BatchSizes.size_at` gives the batch size at each moment."""
        train = self.train
        if not train.ramp:
            return BatchSizes((train.batch,))
        first, increment = train.ramp[:2]
        sizes = (*range(first, train.batch, increment), train.batch)
        if len(train.ramp) == 3:
            return BatchSizes(sizes, train.ramp[2])
        by_clock = clock_seconds(train.budget) is not None
        return BatchSizes(sizes, 0 if by_clock else round(train.ramp_share * (train.tokens // self.model.seq)))

    def samples(self, step: int) -> range:
        """The indices of the samples (sequences) in the batch of a step, under a budget in tokens. Steps and samples
        are counted from 0."""
        return self.batch_sizes.samples(step)

    @property
    def ends_by_clock(self) -> bool:
        """Whether the run ends by a wall clock; the number of its steps and tokens is then not known beforehand."""
        return clock_seconds(self.train.budget) is not None

    @property
    def steps(self) -> int:
        """The number of optimizer steps: the budget in tokens, rounded down to whole steps. Raises ValueError where a
        wall clock ends the run."""
        if self.ends_by_clock:
            raise ValueError(f"train.budget={self.train.budget}: the clock decides how many steps and tokens there are")
        return self.batch_sizes.whole_steps(self.train.tokens // self.model.seq)

    @property
    def tokens(self) -> int:
        """The number of tokens of all steps. Raises ValueError where a wall clock ends the run."""
        return self.tokens_after(self.steps)

    @property
    def known_tokens(self) -> int | None:
        """The number of tokens of all steps; None where a wall clock ends the run."""
        return None if self.ends_by_clock else self.tokens

    @property
    def known_steps(self) -> int | None:
        """The number of optimizer steps; None where a wall clock ends the run."""
        return None if self.ends_by_clock else self.steps

    @property
    def known_flops(self) -> float | None:
        """The FLOPs of all steps; None where a wall clock ends the run."""
        return None if self.ends_by_clock else self.tokens * flops_per_token(self.model)

    @property
    def horizon(self) -> int:
        """The number of tokens at which the schedule of the learning rate ends: train.decay_tokens, or all tokens of
        the run. Raises ValueError where a wall clock ends the run and train.decay_tokens is 0."""
        return self.train.decay_tokens or self.tokens

    @property
    def budget(self) -> Budget:
        """The budget of the run: a TokenBudget or a ClockBudget."""
        seconds = clock_seconds(self.train.budget)
        return TokenBudget(self.horizon) if seconds is None else ClockBudget(seconds)

    def tokens_after(self, step: int) -> int:
        """The number of tokens in the first `step` steps."""
        return self.samples(step).start * self.model.seq

    @property
    def length(self) -> float:
        """The length of the run: its seconds if the budget is a time, else its number of steps."""
        return self.budget.seconds if isinstance(self.budget, ClockBudget) else self.steps

    def progress(self, metric: Mapping[str, Any]) -> float:
        """How much of the run is trained: in seconds if the budget is a time, else in steps. `metric`: the last row of
        metrics.jsonl, {} if there is none."""
        return float(metric.get("seconds" if isinstance(self.budget, ClockBudget) else "step", 0))

    def seconds_left(self, metric: Mapping[str, Any]) -> float | None:
        """The estimated seconds to the end of the run; None where they are not known. `metric`: the last row of
        metrics.jsonl, {} where there is none."""
        if isinstance(self.budget, ClockBudget):
            return max(0.0, self.budget.seconds - metric.get("seconds", 0.0))
        if metric.get("tokens_per_second", 0) > 0 and "tokens" in metric:
            return (self.tokens - metric["tokens"]) / metric["tokens_per_second"]
        return None

    def step_text(self, step: int) -> str:
        """The number of a step as text, with the number of all steps: "12/4096"; "12" where a wall clock ends the
        run."""
        return str(step) if isinstance(self.budget, ClockBudget) else f"{step}/{self.steps}"

    @property
    def milestones(self) -> dict[int, int]:
        """The steps at which weights are saved for evaluation, {step: tokens trained by then}: for each share of the
        budget in layout.eval_at the first step that reaches it. The last step is left out, since the trained weights
        are evaluated anyway."""
        reached = {
            bisect.bisect_left(range(self.steps), share * self.tokens, key=self.tokens_after)
            for share in self.layout.eval_at  # empty where a wall clock ends the run
        }
        return {step: self.tokens_after(step) for step in sorted(reached) if step < self.steps}

    @property
    def fingerprint(self) -> str:
        """A hash of all settings that determine the result of the run, 16 hexadecimal digits. The layout and the name
        of the size are not among them.

        A setting that was added in a later version is not hashed if it has the value that was in effect before. So
        earlier runs keep their fingerprints.
        """
        identity = {
            key: value
            for key, value in self.flat().items()
            if not key.startswith("layout.") and key != "size" and value != ABSENT.get(key)
        }
        return json_digest(identity)[:16]


def fit_micro_batch(run: Run, ranks: int) -> Run:
    """The run with a layout.micro_batch (sequences per forward pass) that fits the number of data-parallel ranks. It is
    the run's own, or a rank's share of the smallest batch if that is smaller. Raises ConfigError if a batch of the run
    cannot be split among `ranks` ranks in whole micro-batches."""
    sizes = run.batch_sizes.sizes
    micro = max(1, min(run.layout.micro_batch, min(sizes) // ranks))
    for size in sizes:
        if size % (ranks * micro):
            name = f"train.batch={size}" if size == run.train.batch else f"train.ramp: a batch of {size}"
            raise ConfigError(f"{name} is no multiple of ranks x layout.micro_batch = {ranks} x {micro}")
    return replace(run, layout=replace(run.layout, micro_batch=micro))


SECTIONS: dict[str, type] = {}  # {section of the settings: its dataclass}, such as {"model": ModelConfig}
SETTINGS: dict[str, Setting] = {}  # {setting, such as "model.pos": its declaration}
KEYS: dict[str, Any] = {}  # {setting: its type}
for _field in fields(Run):
    _type = get_type_hints(Run)[_field.name]
    if isinstance(_type, type) and is_dataclass(_type):
        SECTIONS[_field.name] = _type
        SETTINGS |= {f"{_field.name}.{name}": setting for name, setting in settings_of(_type).items()}
        KEYS |= {f"{_field.name}.{name}": hint for name, hint in get_type_hints(_type).items()}
    else:
        SETTINGS[_field.name] = _field.metadata["setting"]
        KEYS[_field.name] = _type
KEYS |= {key: Literal[setting.choices] for key, setting in SETTINGS.items() if setting.choices}
# {setting that was added later: the value that was in effect before}
ABSENT = {key: setting.absent for key, setting in SETTINGS.items() if setting.absent is not None}
