"""Every setting of a run by section, with its type and meaning. The settings of the model are in model/config.py, the
values in baseline.yaml, whose comments are made from here."""

from dataclasses import dataclass
from typing import Annotated, Literal

from ablations.schedule import SCHEDULES, WITH_WARMUP
from data import filters
from model.setting import Setting

FP16 = {"train.precision": ("fp16",)}


@dataclass(frozen=True)
class DataConfig:
    """The corpus and the tokenizer, and how the corpus becomes training text."""

    corpus: Annotated[str, Setting("a file of data/corpora, or a file, folder or glob of text such as my/*.jsonl.zst")]
    tokenizer: Annotated[
        str,
        Setting("the corpus on whose training split the tokenizer is trained; with kind file, the path of a tokenizer"),
    ]
    tokenizer_kind: Annotated[
        Literal["bpe", "unigram", "byte-bpe", "wordpiece", "file"],
        Setting("bpe and unigram: SentencePiece; byte-bpe: GPT-2's; wordpiece: BERT's; file: a tokenizer that exists"),
    ]
    dedup: Annotated[
        filters.Dedup, Setting("which copies within the corpus are removed; near: by MinHash (data/filters.py)")
    ]
    quality: Annotated[filters.Quality, Setting("whose rules remove documents and lines")]
    decontaminate: Annotated[
        str,
        Setting(
            "a folder of evaluation tasks: documents that share 13 words in a row with one are removed; none: no check",
            source="GPT-3",
        ),
    ]
    compress: Annotated[
        float,
        Setting(
            "documents of so many tokens per character or more are removed; 0: none",
            "tokens per character",
            "Cramming had 0.25",
            at_least=0,
            below=10,
        ),
    ]
    order: Annotated[
        filters.Order,
        Setting(
            "in which order documents are read, once; prevalent-first and short-sentences-first as Cramming sorted"
        ),
    ]
    substring: Annotated[
        int,
        Setting(
            "stretches of so many characters or more that stood before in the corpus are cut; 0: none",
            "characters",
            "Cramming tried 50, 75 and 100",
            at_least=0,
            absent=0,
        ),
    ]
    allow_errors: Annotated[
        int, Setting("how many bad lines, damaged files and the like are tolerated in a corpus on disk", at_least=0)
    ]

    @property
    def recipe(self) -> filters.Recipe:
        """The settings that say how the corpus becomes training text."""
        return filters.Recipe(*(getattr(self, name) for name in filters.Recipe._fields))


@dataclass(frozen=True)
class TrainConfig:
    """The budget, the optimizer, and what happens when training goes wrong."""

    tokens: Annotated[
        int,
        Setting(
            "the budget, rounded down to whole steps", "tokens", at_least=1, only_with={"train.budget": ("tokens",)}
        ),
    ]
    budget: Annotated[
        str,
        Setting(
            "what ends a run: tokens (train.tokens), or a wall clock such as 90s, 10m or 24h, compiling included and "
            "preparing data not",
            absent="tokens",
        ),
    ]
    batch: Annotated[int, Setting("sequences per optimizer step", "sequences", at_least=1)]
    ramp: Annotated[
        list[int],
        Setting(
            "[first batch, increment, samples]: the batch grows up to train.batch while so many samples are trained "
            "(Megatron); [first batch, increment] with train.ramp_share; []: no ramp",
            at_least=1,
        ),
    ]
    ramp_share: Annotated[
        float,
        Setting(
            "share of the budget over which the batch grows up to train.batch, for a train.ramp without samples; "
            "0: train.ramp gives the samples",
            source="Cramming had 0.6",
            absent=0.0,
            at_least=0,
            at_most=1,
        ),
    ]
    lr: Annotated[float, Setting("peak learning rate", above=0)]
    schedule: Annotated[
        str,
        Setting(
            "the learning rate over the budget (ablations/schedule.py)",
            source="GPT-3",
            choices=tuple(SCHEDULES),
            absent="cosine",
        ),
    ]
    min_lr: Annotated[
        float,
        Setting(
            "lowest learning rate, where a schedule would reach 0, as a share of the peak",
            source="GPT-3",
            at_least=0,
            at_most=1,
            only_with={"train.schedule": tuple(name for name in SCHEDULES if name != "constant")},
        ),
    ]
    decay_tokens: Annotated[
        int,
        Setting(
            "where the schedule ends; the learning rate is constant afterwards; 0: at the end of the budget",
            "tokens",
            at_least=0,
            only_with={"train.budget": ("tokens",)},
        ),
    ]
    warmup: Annotated[
        float,
        Setting(
            "linear warm-up, as a share of the schedule; one-cycle, ramp and budget-... rise by themselves",
            source="untuned",
            at_least=0,
            at_most=1,
            only_with={"train.schedule": tuple(WITH_WARMUP)},
        ),
    ]
    beta1: Annotated[float, Setting("AdamW's decay of the mean gradient", source="GPT-3", at_least=0, at_most=1)]
    beta2: Annotated[
        float, Setting("AdamW's decay of the mean squared gradient", source="GPT-3", at_least=0, at_most=1)
    ]
    eps: Annotated[float, Setting("AdamW's epsilon", source="GPT-3", above=0)]
    weight_decay: Annotated[
        float, Setting("on matrices and embeddings, not on biases and norm gains", source="GPT-3", at_least=0)
    ]
    decay_embnorm: Annotated[
        bool,
        Setting(
            "weight decay on the gain of the embedding norm too, which BigScience's first runs had by mistake",
            absent=False,
            only_with={"model.embnorm": ("true",)},
        ),
    ]
    clip: Annotated[float, Setting("largest global gradient norm", source="GPT-3", above=0)]
    precision: Annotated[
        Literal["auto", "bf16", "fp16", "fp32", "fp8"],
        Setting(
            "auto: bf16 where the processor has it, else fp32; bf16 and fp16 keep fp32 master weights; fp8: bf16 but "
            "for the blocks' linear layers (model/fp8.py)"
        ),
    ]
    loss_scale_power: Annotated[
        int,
        Setting(
            "the loss is first scaled by two to this power", "", "BigScience", at_least=0, at_most=32, only_with=FP16
        ),
    ]
    loss_scale_window: Annotated[
        int,
        Setting(
            "the scale doubles after this many steps without an overflow",
            "steps",
            "BigScience",
            at_least=1,
            only_with=FP16,
        ),
    ]
    loss_scale_hysteresis: Annotated[
        int,
        Setting(
            "the scale halves at this many overflows; a step that overflows uses up its batch and updates nothing",
            source="BigScience",
            at_least=1,
            only_with=FP16,
        ),
    ]
    loss_scale_min: Annotated[
        int, Setting("below this scale the run stops", "", "BigScience", at_least=1, only_with=FP16)
    ]
    divergence: Annotated[
        float,
        Setting(
            "the run stops when the loss exceeds that of a uniform guess, log(vocab), by more than this",
            "nats",
            "untuned",
            above=0,
        ),
    ]
    spike: Annotated[
        float,
        Setting(
            "a loss this far above the median of the last 64 steps counts as divergence too; 0: none does",
            "nats",
            at_least=0,
        ),
    ]
    rollbacks: Annotated[
        int,
        Setting("how many times, at most, a run goes back to a checkpoint after a divergence; 0: it stops", at_least=0),
    ]
    skip: Annotated[
        int,
        Setting(
            "a rollback goes back at least this many steps, and leaves out this many batches after the bad one",
            "steps",
            at_least=0,
        ),
    ]


@dataclass(frozen=True)
class EvalConfig:
    """How a finished run is evaluated."""

    corpora: Annotated[list[str], Setting("corpora on whose held-out documents the finished run is evaluated")]


@dataclass(frozen=True)
class LayoutConfig:
    """How a run is executed (ranks, checkpoints, logs). These settings may change between launches, and do not
    determine the result."""

    processes: Annotated[int, Setting("ranks on this machine; 0: one for each GPU", at_least=0)]
    tp: Annotated[
        int,
        Setting(
            "tensor parallelism: how many neighbouring ranks hold one copy of the model together", "ranks", at_least=1
        ),
    ]
    threads: Annotated[int, Setting("CPU threads per process", "threads", at_least=1)]
    micro_batch: Annotated[
        int,
        Setting(
            "sequences per forward pass and rank, at most; 0: as many as the device's memory holds by estimate, up to "
            "64 on a GPU and 8 on a CPU",
            "sequences",
            at_least=0,
        ),
    ]
    zero: Annotated[Literal[1, 2], Setting("ZeRO stage")]
    log_every: Annotated[int, Setting("steps between lines of the log", "steps", at_least=1)]
    save_every: Annotated[
        int,
        Setting(
            "steps between checkpoints; 0: by the clock, at Daly's interval for what a save is measured to cost and "
            "layout.mtbf (ablations/plan/reliability.py)",
            "steps",
            at_least=0,
        ),
    ]
    keep: Annotated[int, Setting("how many checkpoints are kept, the newest ones", "checkpoints", at_least=1)]
    eval_at: Annotated[
        list[float],
        Setting(
            "shares of the budget, such as 0.25,0.5,0.75, at which the weights are saved too, for `python -m eval` to "
            "evaluate them; the report then draws scores against tokens",
            above=0,
            below=1,
            only_with={"train.budget": ("tokens",)},
        ),
    ]
    mtbf: Annotated[
        float,
        Setting(
            "mean time until a job on one node ends early: by a failure, its time limit or preemption",
            "hours",
            "untuned",
            above=0,
        ),
    ]
    hang: Annotated[
        float, Setting("a step that takes this many times the median counts as a hang", "", "untuned", above=0)
    ]
    patience: Annotated[float, Setting("shortest time of a step that counts as a hang", "seconds", "untuned", above=0)]
    compile: Annotated[
        Literal["auto", "always", "never", "reduce-overhead"],
        Setting(
            "torch.compile the model; auto: on a GPU without tensor parallelism, and on a CPU where a study's runs are "
            "long enough to pay for it (ablations/compilation.py); reduce-overhead: with CUDA graphs, for small models "
            "on a GPU, in bf16 or fp8 at ZeRO stage 1"
        ),
    ]
    wandb: Annotated[Literal["offline", "online", "disabled"], Setting("logging to Weights & Biases")]
