"""A `Run`: the resolved configuration of one training run. Loading is strict and needs neither torch nor time."""

import bisect
import difflib
import functools
import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml

from ablations import budget
from data import filters
from model import count
from model.config import ModelConfig

HERE = Path(__file__).parent


class ConfigError(ValueError):
    """The user asked for something that does not exist or does not fit; the message says what would."""


@dataclass(frozen=True)
class DataConfig:
    corpus: str
    tokenizer: str
    tokenizer_kind: Literal["bpe", "unigram", "byte-bpe", "file"]
    dedup: filters.Dedup
    quality: filters.Quality
    decontaminate: str
    compress: float
    order: filters.Order
    allow_errors: int

    @property
    def recipe(self) -> filters.Recipe:
        """How the corpus becomes training text."""
        return filters.Recipe(*(getattr(self, name) for name in filters.Recipe._fields))


@dataclass(frozen=True)
class TrainConfig:
    tokens: int
    batch: int
    ramp: list[int]
    lr: float
    min_lr: float
    decay_tokens: int
    warmup: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    clip: float
    precision: Literal["auto", "bf16", "fp16", "fp32"]
    loss_scale_power: int
    loss_scale_window: int
    loss_scale_hysteresis: int
    loss_scale_min: int
    divergence: float
    spike: float
    skip: int
    rollbacks: int


@dataclass(frozen=True)
class EvalConfig:
    corpora: list[str]


@dataclass(frozen=True)
class LayoutConfig:
    processes: int
    tp: int
    threads: int
    micro_batch: int
    zero: Literal[1, 2]
    log_every: int
    save_every: int
    keep: int
    eval_at: list[float]
    mtbf: float
    hang: float
    patience: float
    compile: Literal["auto", "always", "never"]
    wandb: Literal["offline", "online", "disabled"]


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
    for key in ("train.tokens", "train.batch", "layout.micro_batch", "layout.threads", "layout.log_every",
                "layout.keep", "layout.tp", "train.loss_scale_window", "train.loss_scale_hysteresis",
                "train.loss_scale_min"):  # fmt: skip
        if flat[key] < 1:
            raise ConfigError(f"{key}={flat[key]}: must be at least 1")
    for key in ("train.lr", "train.eps", "train.clip", "model.init_std", "model.norm_eps", "train.divergence",
                "layout.mtbf", "layout.hang", "layout.patience"):  # fmt: skip
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
        raise ConfigError(f"{form}, such as 32,32,2M; or none for no ramp")
    first, more, _ = train.ramp
    if first >= train.batch or (train.batch - first) % more:
        raise ConfigError(f"train.ramp={first},{more},...: train.batch={train.batch} is no whole number of "
                          f"increments of {more} above {first}")  # fmt: skip


def _check_tensor_parallel(run: Run) -> None:
    tp, model = run.layout.tp, run.model
    for name, number in {
        "layout.processes": run.layout.processes, "model.heads": model.heads, "the MLP's inner width": model.ffn,
        "the padded vocabulary (model.vocab_multiple)": model.padded_vocab,
    }.items():  # fmt: skip
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


# ------------------------------------------------------------------------------------------------ values


def parse(key: str, value: Any) -> Any:
    """`value`, as text or as YAML read it, in the type of `key`.

    Raises:
        ConfigError: unknown key, wrong type, or a variant that does not exist.
    """
    if key not in KEYS:
        raise ConfigError(f"there is no setting {key!r}{did_you_mean(key, KEYS)}. Settings: {', '.join(sorted(KEYS))}")
    kind = KEYS[key]
    if get_origin(kind) is Literal:
        allowed = get_args(kind)
        for option in allowed:
            if value == option and type(value) is type(option) or str(value) == str(option):
                return option
        listed = ", ".join(map(str, allowed))
        raise ConfigError(f"{key}={value} is not one of {listed}{did_you_mean(str(value), map(str, allowed))}")
    if get_origin(kind) is list:
        items = value if isinstance(value, list) else [v for v in str(value).strip("[]").split(",") if v.strip()]
        if get_args(kind) == (str,):
            return [str(v).strip() for v in items]
        each, what = (_float, "numbers") if get_args(kind) == (float,) else (_int, "whole numbers")
        try:
            return [each(v) for v in items]
        except (ValueError, TypeError):
            raise ConfigError(f"{key}={value}: {what} with commas between them are needed") from None
    reader = {bool: _bool, int: _int, float: _float, str: _str}[kind]
    try:
        return reader(value)
    except (ValueError, TypeError):
        example = {bool: "true or false", int: "a whole number such as 512, 2M or 10B", float: "a number such as 3e-4"}
        raise ConfigError(f"{key}={value}: {example.get(kind, 'text')} is needed") from None


def _bool(value: Any) -> bool:
    words = {"true": True, "on": True, "yes": True, "1": True, "false": False, "off": False, "no": False, "0": False}
    if str(value).lower() not in words:
        raise ValueError
    return words[str(value).lower()]


def _int(value: Any) -> int:
    if isinstance(value, bool):
        raise ValueError
    text = str(value).replace(",", "").replace("_", "")
    scale = {"K": 10**3, "M": 10**6, "B": 10**9}.get(text[-1:].upper(), 1)
    number = float(text[:-1] if scale > 1 else text) * scale
    if number != int(number):
        raise ValueError
    return int(number)


def _float(value: Any) -> float:
    if isinstance(value, bool):
        raise ValueError
    number = float(value)
    if number != number or number in (float("inf"), float("-inf")):
        raise ValueError
    return number


def _str(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError
    return value.strip()


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"model": {"pos": "none"}} -> {"model.pos": "none"}."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def difference(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    """What `b` holds where it differs from `a`; both flat. A key that one of them lacks differs too."""
    nothing = object()
    return {k: b.get(k) for k in sorted(a.keys() | b.keys()) if a.get(k, nothing) != b.get(k, nothing)}


def did_you_mean(word: str, options: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(options), n=1)
    return f" (did you mean {close[0]}?)" if close else ""


class _UniqueKeys(yaml.SafeLoader):
    """YAML keeps the last of two equal keys and says nothing; here that is an error."""


def _mapping(loader: yaml.SafeLoader, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
    names = [k.value for k, _ in node.value]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"{node.start_mark.name}: the key {name!r} stands twice")
    return loader.construct_mapping(node, deep=True)


_UniqueKeys.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


@functools.cache
def read_yaml(path: Path) -> dict[str, Any]:
    with open(path, encoding="utf-8") as f:
        return yaml.load(f, Loader=_UniqueKeys)  # a SafeLoader


# ------------------------------------------------------------------------------------------------ the machine


def has_gpu() -> bool:
    """Whether an NVIDIA GPU is visible, without torch. CUDA_VISIBLE_DEVICES="" hides it; MEGAHOUR_GPU=1 says that the
    runs will have one, which a login node cannot see."""
    if os.environ.get("MEGAHOUR_GPU"):
        return os.environ["MEGAHOUR_GPU"] == "1"
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return False
    return any(Path("/proc/driver/nvidia/gpus").glob("*"))


def has_bf16() -> bool:
    """Whether bf16 is fast here: on any GPU that DeepSpeed still supports, on CPUs with AVX512-BF16, AMX or Arm's."""
    if has_gpu():
        return True
    try:
        flags = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return False
    return bool(flags & {"avx512_bf16", "amx_bf16", "bf16"})
