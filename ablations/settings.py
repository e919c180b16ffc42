"""Every setting of a run by section, with its type. Those of the model: model/config.py; the numbers: baseline.yaml."""

from dataclasses import dataclass
from typing import Literal

from data import filters


@dataclass(frozen=True)
class DataConfig:
    corpus: str
    tokenizer: str
    tokenizer_kind: Literal["bpe", "unigram", "byte-bpe", "wordpiece", "file"]
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
    precision: Literal["auto", "bf16", "fp16", "fp32", "fp8"]
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
