"""Rules between the settings of a run. A rule is a function that returns an error message, or "" where a run obeys it.

The range of a single setting is declared with the setting, in ablations/settings.py or model/config.py.
"""

from collections.abc import Callable

from ablations.budget import clock_seconds
from ablations.run import Run, fit_micro_batch
from ablations.values import ConfigError
from data import filters

FP8_MULTIPLE = 16  # GPUs multiply in FP8 matrices whose sides are multiples of this


def check_rules(run: Run) -> None:
    """Check the settings of a run against every rule. Raises ConfigError with the message of the first rule that is
    broken."""
    for rule in RULES:
        if complaint := rule(run):
            raise ConfigError(complaint)
    try:
        filters.check_recipe(run.data.recipe)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    fit_micro_batch(run, max(run.layout.processes, run.layout.tp) // run.layout.tp)


def rollbacks_and_skip_need_each_other(run: Run) -> str:
    if run.train.rollbacks and not run.train.skip:
        return "train.rollbacks without train.skip: the same batches would lead to the same spike"
    if run.train.skip and not run.train.rollbacks:
        return "train.skip without train.rollbacks: nothing is skipped unless the run goes back"
    return ""


def qk_scaling_needs_fp16(run: Run) -> str:
    if run.model.qk_scaling and run.train.precision != "fp16":
        return (
            f"model.qk_scaling=true does nothing in {run.train.precision}: it keeps scores within the range of fp16, "
            "so it needs train.precision=fp16"
        )
    return ""


def fp8_has_no_tensor_parallelism(run: Run) -> str:
    if run.train.precision == "fp8" and run.layout.tp > 1:
        return (
            f"layout.tp={run.layout.tp} has no layers in fp8: train.precision=fp8 needs layout.tp=1, and "
            "tensor parallelism bf16, fp16 or fp32"
        )
    return ""


def fp8_needs_multiples(run: Run) -> str:
    """An error message if a side of the matrices that are multiplied in FP8 is no multiple of FP8_MULTIPLE, else "".
    One side is the number of tokens in a micro-batch, a multiple of model.seq. So model.seq itself is checked, and the
    rule does not depend on the layout."""
    if run.train.precision != "fp8":
        return ""
    model = run.model
    inner = f"the inner width of model.act={model.act} (of a multiple of 48 as model.hidden it is one)"
    for name, number in {"model.hidden": model.hidden, "model.seq": model.seq, inner: model.mlp_width}.items():
        if number % FP8_MULTIPLE:
            return f"train.precision=fp8 needs multiples of {FP8_MULTIPLE}, and {number} is {name}"
    return ""


def ramp_lists_the_right_numbers(run: Run) -> str:
    ramp, share = run.train.ramp, run.train.ramp_share
    if not ramp and share:
        return "train.ramp_share without train.ramp: give the first batch and the increment, such as train.ramp=32,32"
    if ramp and len(ramp) != (2 if share else 3):
        return (
            "train.ramp needs three numbers: the first batch, the increment, and the samples that the ramp takes, such "
            "as 32,32,2M; or the first two and train.ramp_share; or [] for no ramp"
        )
    return ""


def ramp_ends_at_the_batch_size(run: Run) -> str:
    if not run.train.ramp:
        return ""
    first, increment = run.train.ramp[:2]
    if first >= run.train.batch or (run.train.batch - first) % increment:
        return (
            f"train.ramp={first},{increment},...: train.batch={run.train.batch} is no whole number of "
            f"increments of {increment} above {first}"
        )
    return ""


def inverse_sqrt_needs_a_warmup(run: Run) -> str:
    if run.train.schedule == "inverse-sqrt" and not run.train.warmup:
        return "train.schedule=inverse-sqrt falls from the end of the warm-up: it needs train.warmup above 0"
    return ""


def budget_is_tokens_or_a_time(run: Run) -> str:
    try:
        clock_seconds(run.train.budget)
    except ValueError as error:
        return str(error)
    return ""


def clock_budget_excludes_token_counts(run: Run) -> str:
    """An error message where a run that a wall clock ends has a setting in tokens or samples, else "". The number of
    tokens of such a run is not known beforehand."""
    if run.train.budget == "tokens":
        return ""
    for key, value, instead in (
        ("train.decay_tokens", run.train.decay_tokens, "the schedule ends with the budget"),
        ("train.ramp", run.train.ramp[2:], "give its first two numbers and train.ramp_share"),
        ("layout.eval_at", run.layout.eval_at, "leave it out (the end is always judged), or give TOKENS and no time"),
    ):
        if value:
            return f"{key} is counted in tokens or samples, and train.budget={run.train.budget} is a time: {instead}"
    return ""


def budget_covers_a_step(run: Run) -> str:
    if not run.ends_by_clock and run.steps < 1:
        step = run.batch_sizes.sizes[0] * run.model.seq
        return f"train.tokens={run.train.tokens} is less than one step of {step} tokens"
    return ""


def tensor_parallelism_divides(run: Run) -> str:
    tp, model = run.layout.tp, run.model
    for name, number in {
        "layout.processes": run.layout.processes,
        "model.heads": model.heads,
        "the MLP's inner width": model.mlp_width,
        "the padded vocabulary (model.vocab_multiple)": model.padded_vocab,
    }.items():
        if number % tp:
            more = " (0: one for each GPU)" if name == "layout.processes" else ""
            return f"layout.tp={tp} does not divide {name}, {number}{more}"
    return ""


def evaluation_corpus_is_named(run: Run) -> str:
    return "" if run.eval.corpora else "eval.corpora names no corpus"


# The order matters: a rule may rely on the rules above it.
RULES: tuple[Callable[[Run], str], ...] = (
    rollbacks_and_skip_need_each_other,
    qk_scaling_needs_fp16,
    fp8_has_no_tensor_parallelism,
    fp8_needs_multiples,
    ramp_lists_the_right_numbers,
    ramp_ends_at_the_batch_size,
    inverse_sqrt_needs_a_warmup,
    budget_is_tokens_or_a_time,
    clock_budget_excludes_token_counts,
    budget_covers_a_step,
    tensor_parallelism_divides,
    evaluation_corpus_is_named,
)
