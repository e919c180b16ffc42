"""A `Run`: the resolved configuration of one training run. Loading is strict and needs neither torch nor time."""

import difflib
import functools
import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml

from model import count
from model.config import ModelConfig

HERE = Path(__file__).parent


class ConfigError(ValueError):
    """The user asked for something that does not exist or does not fit; the message says what would."""


@dataclass(frozen=True)
class DataConfig:
    corpus: str
    tokenizer: str


@dataclass(frozen=True)
class TrainConfig:
    tokens: int
    batch: int
    lr: float
    min_lr: float
    warmup: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    clip: float
    precision: Literal["auto", "bf16", "fp32"]
    divergence: float


@dataclass(frozen=True)
class EvalConfig:
    corpora: list[str]


@dataclass(frozen=True)
class LayoutConfig:
    processes: int
    threads: int
    micro_batch: int
    zero: Literal[1, 2]
    log_every: int
    save_every: int
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
        return self.train.tokens // (self.train.batch * self.model.seq)

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
    sizes = read_yaml(HERE / "sizes.yaml")
    if size not in sizes:
        raise ConfigError(f"size={size} is not one of {', '.join(sizes)}{did_you_mean(size, sizes)}")
    bundle = [(key, parse(key, value)) for key, value in sizes[size]["set"].items()]
    flat = {key: parse(key, value) for key, value in flat.items()} | dict(bundle) | dict(given) | {"size": size}
    if flat["train.precision"] == "auto":
        flat["train.precision"] = "bf16" if has_bf16() else "fp32"
    _check_size(size, sizes[size]["params"], bundle)
    return _build(flat)


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
                "layout.save_every"):  # fmt: skip
        if flat[key] < 1:
            raise ConfigError(f"{key}={flat[key]}: must be at least 1")
    for key in ("train.lr", "train.eps", "train.clip", "model.init_std", "model.norm_eps", "train.divergence"):
        if not flat[key] > 0:
            raise ConfigError(f"{key}={flat[key]}: must be above 0")
    for key in ("train.min_lr", "train.warmup", "train.beta1", "train.beta2"):
        if not 0 <= flat[key] <= 1:
            raise ConfigError(f"{key}={flat[key]}: must lie between 0 and 1")
    if run.train.weight_decay < 0:
        raise ConfigError(f"train.weight_decay={run.train.weight_decay}: must not be negative")
    if run.layout.processes < 0:
        raise ConfigError("layout.processes: a number of ranks, or 0 for one on each GPU")
    if run.steps < 1:
        step = run.train.batch * run.model.seq
        raise ConfigError(f"train.tokens={run.train.tokens} is less than one step of {step} tokens")
    ranks = max(run.layout.processes, 1)
    if run.train.batch % (ranks * run.layout.micro_batch):
        raise ConfigError(
            f"train.batch={run.train.batch} is no multiple of layout.processes x layout.micro_batch = "
            f"{ranks} x {run.layout.micro_batch}"
        )
    if not run.eval.corpora:
        raise ConfigError("eval.corpora names no corpus")
    return run


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
        return [str(v).strip() for v in items]
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
    """Whether an NVIDIA GPU is visible, without torch. CUDA_VISIBLE_DEVICES="" hides it."""
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
