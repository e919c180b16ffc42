"""Every setting of a run by section, with its type and meaning. The settings of the model are in model/config.py. The
values are in baseline.yaml, whose comments are made from the declarations here."""

from dataclasses import dataclass
from typing import Literal

from ablations.schedule import SCHEDULES, WITH_WARMUP
from data import filters
from model.setting import setting

FP16 = {"train.precision": ("fp16",)}


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The corpus and the tokenizer, and how the corpus becomes training text."""

    corpus: str = setting("a file of data/corpora, or a file, folder or glob of text such as my/*.jsonl.zst")
    tokenizer: str = setting(
        "the corpus on whose training split the tokenizer is trained; with kind file, the path of a tokenizer"
    )
    tokenizer_kind: Literal["bpe", "unigram", "byte-bpe", "wordpiece", "file"] = setting(
        "bpe and unigram: SentencePiece; byte-bpe: GPT-2's; wordpiece: BERT's; file: a tokenizer that exists"
    )
    dedup: filters.Dedup = setting("which copies within the corpus are removed; near: by MinHash (data/filters.py)")
    quality: filters.Quality = setting("the filters that remove documents and lines")
    decontaminate: str = setting(
        "a folder of evaluation tasks: documents that share 13 words in a row with one are removed; none: no check",
        source="GPT-3",
    )
    compress: float = setting(
        "documents with at least this many tokens per character are removed; 0: none",
        "tokens per character",
        "Cramming had 0.25",
        at_least=0,
        below=10,
    )
    order: filters.Order = setting(
        "the order in which documents are read, each once; prevalent-first and short-sentences-first are Cramming's"
    )
    substring: int = setting(
        "stretches of at least this many characters that occur earlier in the corpus too are cut; 0: none",
        "characters",
        "Cramming tried 50, 75 and 100",
        at_least=0,
        absent=0,
    )
    allow_errors: int = setting(
        "number of bad lines, damaged files and the like that are tolerated in a corpus on disk", at_least=0
    )

    @property
    def recipe(self) -> filters.Recipe:
        """The settings that determine how the corpus becomes training text."""
        return filters.Recipe(*(getattr(self, name) for name in filters.Recipe._fields))


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The budget, the optimizer, and what happens when training goes wrong."""

    tokens: int = setting(
        "the budget, rounded down to whole steps", "tokens", at_least=1, only_with={"train.budget": ("tokens",)}
    )
    budget: str = setting(
        "what ends a run: tokens (train.tokens), or a wall clock such as 90s, 10m or 24h, compiling included and "
        "preparing data not",
        absent="tokens",
    )
    batch: int = setting("sequences per optimizer step", "sequences", at_least=1)
    ramp: list[int] = setting(
        "[first batch, increment, samples]: the batch grows up to train.batch over this many samples "
        "(Megatron); [first batch, increment] with train.ramp_share; []: no ramp",
        at_least=1,
    )
    ramp_share: float = setting(
        "share of the budget over which the batch grows up to train.batch, for a train.ramp without samples; "
        "0: train.ramp gives the samples",
        source="Cramming had 0.6",
        absent=0.0,
        at_least=0,
        at_most=1,
    )
    lr: float = setting("peak learning rate", above=0)
    schedule: str = setting(
        "the learning rate over the budget (ablations/schedule.py)",
        source="GPT-3",
        choices=tuple(SCHEDULES),
        absent="cosine",
    )
    min_lr: float = setting(
        "lowest learning rate, where a schedule would reach 0, as a share of the peak",
        source="GPT-3",
        at_least=0,
        at_most=1,
        only_with={"train.schedule": tuple(name for name in SCHEDULES if name != "constant")},
    )
    decay_tokens: int = setting(
        "where the schedule ends; the learning rate is constant afterwards; 0: at the end of the budget",
        "tokens",
        at_least=0,
        only_with={"train.budget": ("tokens",)},
    )
    warmup: float = setting(
        "linear warm-up, as a share of the schedule; one-cycle, ramp and budget-... rise by themselves",
        source="untuned",
        at_least=0,
        at_most=1,
        only_with={"train.schedule": tuple(WITH_WARMUP)},
    )
    beta1: float = setting("AdamW's decay of the mean gradient", source="GPT-3", at_least=0, at_most=1)
    beta2: float = setting("AdamW's decay of the mean squared gradient", source="GPT-3", at_least=0, at_most=1)
    eps: float = setting("AdamW's epsilon", source="GPT-3", above=0)
    weight_decay: float = setting(
        "on matrices and embeddings, not on biases and norm gains", source="GPT-3", at_least=0
    )
    decay_embnorm: bool = setting(
        "weight decay on the gain of the embedding norm too, which BigScience's first runs had by mistake",
        absent=False,
        only_with={"model.embnorm": ("true",)},
    )
    clip: float = setting("largest global gradient norm", source="GPT-3", above=0)
    precision: Literal["auto", "bf16", "fp16", "fp32", "fp8"] = setting(
        "auto: bf16 where the processor has it, else fp32; bf16 and fp16 keep fp32 master weights; fp8: bf16 but "
        "for the blocks' linear layers (model/fp8.py)"
    )
    loss_scale_power: int = setting(
        "the loss is first scaled by two to this power", "", "BigScience", at_least=0, at_most=32, only_with=FP16
    )
    loss_scale_window: int = setting(
        "the scale doubles after this many steps without an overflow", "steps", "BigScience", at_least=1, only_with=FP16
    )
    loss_scale_hysteresis: int = setting(
        "the scale halves at this many overflows; a step that overflows uses up its batch and updates nothing",
        source="BigScience",
        at_least=1,
        only_with=FP16,
    )
    loss_scale_min: int = setting("below this scale the run stops", "", "BigScience", at_least=1, only_with=FP16)
    divergence: float = setting(
        "the run stops when the loss exceeds that of a uniform guess, log(vocab), by more than this",
        "nats",
        "untuned",
        above=0,
    )
    spike: float = setting(
        "a loss this far above the median of the last 64 steps counts as divergence too; 0: none does",
        "nats",
        at_least=0,
    )
    rollbacks: int = setting(
        "how many times, at most, a run goes back to a checkpoint after a divergence; 0: it stops", at_least=0
    )
    skip: int = setting(
        "a rollback goes back at least this many steps, and leaves out this many batches after the bad one",
        "steps",
        at_least=0,
    )


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """How a finished run is evaluated."""

    corpora: list[str] = setting("corpora on whose held-out documents the finished run is evaluated")


@dataclass(frozen=True, kw_only=True)
class LayoutConfig:
    """How a run is executed (ranks, checkpoints, logs). These settings may change between launches, and do not
    determine the result."""

    processes: int = setting("ranks on this machine; 0: one for each GPU", at_least=0)
    tp: int = setting(
        "tensor parallelism: how many neighbouring ranks hold one copy of the model together", "ranks", at_least=1
    )
    threads: int = setting("CPU threads per process", "threads", at_least=1)
    micro_batch: int = setting(
        "sequences per forward pass and rank, at most; 0: as many as the device's memory holds by estimate, up to "
        "64 on a GPU and 8 on a CPU",
        "sequences",
        at_least=0,
    )
    zero: Literal[1, 2] = setting("ZeRO stage")
    log_every: int = setting("steps between lines of the log", "steps", at_least=1)
    save_every: int = setting(
        "steps between checkpoints; 0: by the clock, at Daly's interval for what a save is measured to cost and "
        "layout.mtbf (ablations/plan/reliability.py)",
        "steps",
        at_least=0,
    )
    keep: int = setting("how many checkpoints are kept, the newest ones", "checkpoints", at_least=1)
    eval_at: list[float] = setting(
        "shares of the budget, such as 0.25,0.5,0.75, at which the weights are saved too, for `python -m eval` to "
        "evaluate them; the report then draws scores against tokens",
        above=0,
        below=1,
        only_with={"train.budget": ("tokens",)},
    )
    mtbf: float = setting(
        "mean time until a job on one node ends early: by a failure, its time limit or preemption",
        "hours",
        "untuned",
        above=0,
    )
    hang: float = setting("a step that takes this many times the median counts as a hang", "", "untuned", above=0)
    patience: float = setting("shortest time of a step that counts as a hang", "seconds", "untuned", above=0)
    compile: Literal["auto", "always", "never", "reduce-overhead"] = setting(
        "torch.compile the model; auto: on a GPU without tensor parallelism, and on a CPU where a study's runs are "
        "long enough to pay for it (ablations/compilation.py); reduce-overhead: with CUDA graphs, for small models "
        "on a GPU, in bf16 or fp8 at ZeRO stage 1"
    )
    wandb: Literal["offline", "online", "disabled"] = setting("logging to Weights & Biases")
