"""A `Run`: the resolved configuration of one training run. Loading is strict and needs neither torch nor time."""

import bisect
import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, get_type_hints

from ablations import budget
from ablations.machine import has_bf16, has_gpu
from ablations.settings import DataConfig, EvalConfig, LayoutConfig, TrainConfig
from ablations.values import ConfigError, did_you_mean, flatten, read_yaml, typed
from data import filters
from model import count
from model.config import ModelConfig

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Run:
    """Everything that determines a run, and under `layout` what must not."""

    size: str
    seed: int
    model: ModelConfig
    data: DataConfig
    train: TrainConfig
    eval: EvalConfig
    layout: LayoutConfig

    def flat(self) -> dict[str, Any]:
        """{"model.pos": "alibi", ...}, layout included."""
        return flatten(asdict(self))

    @property
    def corpora(self) -> list[str]:
        """What is read: to train on, to be judged by, and for the tokenizer unless that one exists."""
        tokenizer = [] if self.data.tokenizer_kind == "file" else [self.data.tokenizer]
        return list(dict.fromkeys([self.data.corpus, *tokenizer, *self.eval.corpora]))

    @property
    def steps(self) -> int:
        """Optimizer steps: the budget in tokens, rounded down to whole steps."""
        return budget.steps(self.train, self.train.tokens // self.model.seq)

    @property
    def tokens(self) -> int:
        """Tokens of all steps."""
        return self.tokens_after(self.steps)

    @property
    def horizon(self) -> int:
        """Tokens at which the learning rate has reached its least."""
        return self.train.decay_tokens or self.tokens

    def tokens_after(self, step: int) -> int:
        """Tokens of the first `step` steps."""
        return budget.samples(self.train, step).start * self.model.seq

    @property
    def milestones(self) -> dict[int, int]:
        """{step: tokens} of layout.eval_at: the first step at which each of these shares of the budget is trained. The
        last step is none: the end is evaluated in any case."""
        reached = {share: self._first(share * self.tokens) for share in self.layout.eval_at}
        return {step: self.tokens_after(step) for step in sorted(reached.values()) if step < self.steps}

    def _first(self, tokens: float) -> int:
        return bisect.bisect_left(range(self.steps), tokens, key=self.tokens_after)

    @property
    def fingerprint(self) -> str:
        """Identifies what the run is: a hash of its configuration without the layout and the size's name."""
        what = {k: v for k, v in self.flat().items() if not k.startswith("layout.") and k != "size"}
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]


KEYS: dict[str, Any] = {}  # every key of a run -> its type


def _collect(cls: type, prefix: str = "") -> None:
    hints = get_type_hints(cls)
    for f in fields(cls):
        if is_dataclass(hints[f.name]):
            _collect(hints[f.name], f"{prefix}{f.name}.")  # type: ignore[arg-type]
        else:
            KEYS[prefix + f.name] = hints[f.name]


_collect(Run)


def parse(key: str, value: Any) -> Any:
    """`value`, as text or as YAML read it, in the type of `key`.

    Raises:
        ConfigError: unknown key, wrong type, or a variant that does not exist.
    """
    if key not in KEYS:
        raise ConfigError(f"there is no setting {key!r}{did_you_mean(key, KEYS)}. Settings: {', '.join(sorted(KEYS))}")
    return typed(key, KEYS[key], value)


def resolve(overrides: Iterable[tuple[str, Any]] = ()) -> Run:
    """The baseline, the size that is asked for, then `overrides` in order.

    Args:
        overrides: (key, value) pairs; a value may be text as typed on a command line.

    Raises:
        ConfigError: for a key, type or value that is not allowed, naming what is.
    """
    given = [(key, parse(key, value)) for key, value in overrides]
    flat = flatten(read_yaml(HERE / "baseline.yaml"))
    for key in sorted(KEYS.keys() | flat.keys()):
        if key not in KEYS or key not in flat:
            raise ConfigError(f"ablations/baseline.yaml must hold exactly the keys of a run: see {key}")
    size = dict(given).get("size", flat["size"])
    if size == "auto":
        size = "14m" if has_gpu() else "nano"
    sizes = bundles()
    if size not in sizes:
        raise ConfigError(f"size={size} is not one of {', '.join(sizes)}{did_you_mean(size, sizes)}")
    bundle = [(key, parse(key, value)) for key, value in sizes[size]["set"].items()]
    flat = {key: parse(key, value) for key, value in flat.items()} | dict(bundle) | dict(given) | {"size": size}
    if flat["train.precision"] == "auto":
        flat["train.precision"] = "bf16" if has_bf16() else "fp32"
    _check_size(size, sizes[size]["params"], bundle)
    return _build(flat)


def bundles() -> dict[str, dict[str, Any]]:
    """What `size` may be: {name: {"params": count, "set": {key: value}}} of sizes.yaml and of each file of presets/."""
    found = dict(read_yaml(HERE / "sizes.yaml"))
    for path in sorted((HERE / "presets").glob("*.yaml")):
        tree = dict(read_yaml(path))
        found[path.stem] = {"params": tree.pop("params"), "set": flatten(tree)}
    return found


def _build(flat: dict[str, Any]) -> Run:
    hints = get_type_hints(Run)
    parts: dict[str, Any] = {}
    try:
        for f in fields(Run):
            kind = hints[f.name]
            if is_dataclass(kind):
                own = {g.name: flat[f"{f.name}.{g.name}"] for g in fields(kind)}
                parts[f.name] = kind(**own)  # type: ignore[operator]
            else:
                parts[f.name] = flat[f.name]
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(str(error)) from None
    run = Run(**parts)
    for key in (
        "train.tokens",
        "train.batch",
        "layout.micro_batch",
        "layout.threads",
        "layout.log_every",
        "layout.keep",
        "layout.tp",
        "train.loss_scale_window",
        "train.loss_scale_hysteresis",
        "train.loss_scale_min",
    ):
        if flat[key] < 1:
            raise ConfigError(f"{key}={flat[key]}: must be at least 1")
    for key in (
        "train.lr",
        "train.eps",
        "train.clip",
        "model.init_std",
        "model.norm_eps",
        "train.divergence",
        "layout.mtbf",
        "layout.hang",
        "layout.patience",
    ):
        if not flat[key] > 0:
            raise ConfigError(f"{key}={flat[key]}: must be above 0")
    for key in ("train.min_lr", "train.warmup", "train.beta1", "train.beta2"):
        if not 0 <= flat[key] <= 1:
            raise ConfigError(f"{key}={flat[key]}: must lie between 0 and 1")
    if run.train.weight_decay < 0:
        raise ConfigError(f"train.weight_decay={run.train.weight_decay}: must not be negative")
    if run.layout.processes < 0:
        raise ConfigError("layout.processes: a number of ranks, or 0 for one on each GPU")
    for key in ("train.spike", "train.skip", "train.rollbacks", "layout.save_every"):
        if flat[key] < 0:
            raise ConfigError(f"{key}={flat[key]}: must not be negative")
    for share in run.layout.eval_at:
        if not 0 < share < 1:
            raise ConfigError(f"layout.eval_at={share:g}: shares of the budget, above 0 and below 1, are needed")
    if run.train.rollbacks and not run.train.skip:
        raise ConfigError("train.rollbacks without train.skip: the same batches would lead to the same spike")
    if run.train.skip and not run.train.rollbacks:
        raise ConfigError("train.skip without train.rollbacks: nothing is skipped unless the run goes back")
    if run.train.decay_tokens < 0:
        raise ConfigError("train.decay_tokens: a number of tokens, or 0 for the budget")
    if not 0 <= run.train.loss_scale_power <= 32:
        raise ConfigError(f"train.loss_scale_power={run.train.loss_scale_power}: must lie between 0 and 32")
    if run.model.qk_scaling and run.train.precision != "fp16":
        raise ConfigError(
            f"model.qk_scaling=true does nothing in {run.train.precision}: it keeps scores within the range of fp16, "
            "so it needs train.precision=fp16"
        )
    _check_fp8(run)
    _check_ramp(run.train)
    if run.steps < 1:
        step = budget.batch_sizes(run.train)[0] * run.model.seq
        raise ConfigError(f"train.tokens={run.train.tokens} is less than one step of {step} tokens")
    _check_tensor_parallel(run)
    spread(run, max(run.layout.processes, run.layout.tp) // run.layout.tp)
    try:
        filters.check(run.data.recipe)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if not run.eval.corpora:
        raise ConfigError("eval.corpora names no corpus")
    return run


def _check_ramp(train: TrainConfig) -> None:
    if not train.ramp:
        return
    form = "train.ramp needs three numbers: the first batch, the increment, and the samples that the ramp takes"
    if len(train.ramp) != 3 or min(train.ramp) < 1:
        raise ConfigError(f"{form}, such as 32,32,2M; or [] for no ramp")
    first, more, _ = train.ramp
    if first >= train.batch or (train.batch - first) % more:
        raise ConfigError(
            f"train.ramp={first},{more},...: train.batch={train.batch} is no whole number of "
            f"increments of {more} above {first}"
        )


def _check_fp8(run: Run) -> None:
    """GPUs multiply in FP8 matrices whose sides are multiples of 16. The length of a sequence stands for the tokens of
    a micro-batch: how a run is cut must not decide whether it can be."""
    if run.train.precision != "fp8":
        return
    if run.layout.tp > 1:
        raise ConfigError(
            f"layout.tp={run.layout.tp} has no layers in fp8: train.precision=fp8 needs layout.tp=1, and "
            "tensor parallelism bf16, fp16 or fp32"
        )
    model = run.model
    inner = f"the inner width of model.act={model.act} (of a multiple of 48 as model.hidden it is one)"
    for name, number in {"model.hidden": model.hidden, "model.seq": model.seq, inner: model.ffn}.items():
        if number % 16:
            raise ConfigError(f"train.precision=fp8 needs multiples of 16, and {number} is {name}")


def _check_tensor_parallel(run: Run) -> None:
    tp, model = run.layout.tp, run.model
    for name, number in {
        "layout.processes": run.layout.processes,
        "model.heads": model.heads,
        "the MLP's inner width": model.ffn,
        "the padded vocabulary (model.vocab_multiple)": model.padded_vocab,
    }.items():
        if number % tp:
            more = " (0: one for each GPU)" if name == "layout.processes" else ""
            raise ConfigError(f"layout.tp={tp} does not divide {name}, {number}{more}")


def spread(run: Run, ranks: int) -> Run:
    """`run` on so many data-parallel ranks: its micro-batch is no larger than a rank's share of the smallest batch.

    Raises:
        ConfigError: when a batch of the run cannot be spread over the ranks in whole micro-batches.
    """
    sizes = budget.batch_sizes(run.train)
    micro = max(1, min(run.layout.micro_batch, min(sizes) // ranks))
    for size in sizes:
        if size % (ranks * micro):
            name = f"train.batch={size}" if size == run.train.batch else f"train.ramp: a batch of {size}"
            raise ConfigError(f"{name} is no multiple of ranks x layout.micro_batch = {ranks} x {micro}")
    return replace(run, layout=replace(run.layout, micro_batch=micro))


def _check_size(name: str, declared: int, bundle: list[tuple[str, Any]]) -> None:
    """A size that does not count what it says stops here (BigScience's "104B" was 58B for five experiments)."""
    flat = flatten(read_yaml(HERE / "baseline.yaml")) | dict(bundle)
    model = ModelConfig(**{key[6:]: parse(key, v) for key, v in flat.items() if key.startswith("model.")})
    if count.parameters(model) != declared:
        raise ConfigError(f"size {name} declares {declared:,} parameters and counts {count.parameters(model):,}")
