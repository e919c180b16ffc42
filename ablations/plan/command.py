"""`make plan` with ON= or BUDGET=: what a study costs on given hardware, and what a budget can train.

make plan STUDY=position SIZE=1b3 ON=a100             the cost of a study with one node for each run
make plan STUDY=position SIZE=1b3 ON="8x8 a100"       the same with eight nodes of eight GPUs for each run
make plan STUDY=position SIZE=1b3 ON=a100 BUDGET="18 weeks, 52x8 A100-80, 4 spare"    also the share of the budget
make plan BUDGET="18 weeks, 52x8 A100-80, 4 spare" TO=folder      what to train, as report.md and report.html
make plan BUDGET="..." NEED=300B-400B                 the tokens to train on; by default BigScience's number
make plan BUDGET="500 GPU-hours, a100"                the studies that it pays for, and their sizes
make plan BUDGET="40 core-hours"                      the same for CPU cores
"""

import os
import re
import shlex
import sys
from pathlib import Path

from ablations import answers
from ablations.plan.checks import check_study_inputs
from ablations.plan.hardware import GPU, find_gpu
from ablations.plan.resources import (
    MOST_GPUS,
    MOST_TOKENS,
    SCALES,
    Budget,
    amount_text,
    check_word_value,
    parse_budget,
    parse_positive_number,
)
from ablations.study import from_args
from ablations.values import ConfigError, short_number, unknown_choice_error
from ablations.words import FACTORS

OPTIONS = ("ON", "BUDGET", "FORMAT", "PRICE", "TO", "NEED")
FORMATS = ("table", "json", "svg")
PRICES = (1e-3, 1e5)  # the least and the highest price of a GPU-hour; others are taken for a typing error
LEAST_TOKENS = 1e6  # fewer are taken for a typing error: a missing unit


def split_plan_options(words: list[str]) -> tuple[dict[str, str], list[str]]:
    """Separate the plan's own options from the words that describe the study. Returns ({name in OPTIONS: value}, the
    study's words, unchanged). Raises ConfigError where an option is given twice or has no value."""
    options: dict[str, str] = {}
    study_words = []
    for word in words:
        name, _, value = word.partition("=")
        if name in OPTIONS:
            if name in options:
                raise ConfigError(f"{name} is given twice")
            if not value.strip():
                raise ConfigError(f"{name}= is empty")
            options[name] = value.strip()
        else:
            study_words.append(word)
    return options, study_words


def parse_hardware(text: str) -> tuple[GPU, int]:
    """Parse the value of ON=, the hardware of one run. Returns (the kind of GPU, the total number of GPUs). "a100" is
    one node of A100s, "8x8 a100" eight nodes of eight GPUs, "4 h100" four H100s. Raises ConfigError where the hardware
    is unknown, or a number is not above 0 or too large."""
    check_word_value(text, "ON")
    match = re.fullmatch(r"(?:(-?\d+)\s*[x×*]\s*)?(?:(-?\d+)\s+)?(\S.*)", text.strip())
    assert match  # any text without spaces around it is at least a name
    gpu = find_gpu(match[3])
    nodes, per_node = int(match[1] or 1), int(match[2] or gpu.node)
    if min(nodes, per_node) < 1:
        raise ConfigError(f"ON={text!r}: numbers of nodes and GPUs must be above 0")
    if nodes * per_node > MOST_GPUS:
        raise ConfigError(f"ON={text!r}: more than {MOST_GPUS:,} GPUs")
    return gpu, nodes * per_node


def plan_for_other_hardware(words: list[str]) -> int | None:
    """Print the plan for the hardware in ON= or the budget in BUDGET=. Returns the exit code; None where `words` have
    none of the OPTIONS, and the plan is for this machine. Raises ConfigError where a word or value is not allowed.
    `words`: the NAME=VALUE words of the command."""
    options, study_words = split_plan_options(words)
    if not options:
        return None
    answer_format = options.get("FORMAT", "table")
    if answer_format not in FORMATS:
        raise unknown_choice_error("FORMAT", answer_format, FORMATS)
    budget = parse_budget(options["BUDGET"]) if "BUDGET" in options else None
    price = None
    if "PRICE" in options:
        price = parse_positive_number(options["PRICE"], "PRICE")
        if not PRICES[0] <= price <= PRICES[1]:
            raise ConfigError(f"PRICE={options['PRICE']}: a GPU-hour costs {PRICES[0]:g} to {PRICES[1]:g} here")
        if budget is None or budget.kind != "money":
            raise ConfigError("PRICE, of a GPU-hour, belongs to a budget of money: BUDGET='200k EUR' PRICE=1.8")
    unused = [name for name in ("NEED", "TO") if name in options]
    if unused and (budget is None or "ON" in options):
        raise ConfigError(
            f"{' and '.join(unused)}: only for what to train with a budget, such as "
            "BUDGET='18 weeks, 52x8 A100-80, 4 spare', without ON and a study"
        )
    if "ON" not in options:
        if budget is None:
            raise ConfigError(f"{', '.join(options)} needs ON=hardware with a study, or BUDGET=")
        names = [word.partition("=")[0] for word in study_words]
        if study_words and not any(name in (*FACTORS, "ARM", "STUDY") for name in names):
            raise ConfigError(
                f"{', '.join(names)}: not used with BUDGET= alone, which takes FORMAT, NEED, PRICE and TO, the folder "
                "of its report"
            )
        if study_words:
            raise ConfigError(f"a study on a budget needs ON=, the hardware of a run: {' '.join(study_words)} ON=a100")
        return _plan_budget(budget, options, answer_format, price)
    from ablations.plan import study_cost

    gpu, gpus = parse_hardware(options["ON"])
    hours = budget.gpu_hours(price) if budget else None
    os.environ["MEGAHOUR_GPU"] = "1"  # precision and size are resolved as on a machine with a GPU
    study = from_args(study_words)
    check_study_inputs(study)
    answer = study_cost.study_cost(study, gpu, gpus)
    if hours is not None and answer.most_gpu_hours > hours:
        cost, limit = amount_text(answer.most_gpu_hours), amount_text(hours)
        seeds = f" with all {answer.study.criteria.seeds} seeds (MAX_SEEDS)" if answer.at_most else ""
        answer.refused.append(f"the study needs {cost} GPU-hours{seeds}, and the budget has {limit}")
    if answer_format == "json":
        print(answers.json_answer("study-cost", answer.as_json(hours)))
    elif answer_format == "svg":
        from ablations.drawing import combined_figures
        from ablations.plan.schedules import learning_rate_figure

        print(combined_figures([study_cost.cost_figure(answer), learning_rate_figure(answer.study)]), end="")
    else:
        print(*study_cost.cost_lines(answer, hours), sep="\n")
    if answer_format != "table":  # a table ends with them
        for reason in answer.refused:
            print(f"refused: {reason}", file=sys.stderr)
    return 2 if answer.refused else 0


def _plan_budget(budget: Budget, options: dict[str, str], answer_format: str, price: float | None) -> int:
    """Write and print the document on what to train with a budget. For an amount of hours or money on named hardware,
    the document is on the studies that it pays for. Returns the exit code, 0.

    Args:
        budget: the budget.
        options: {name in OPTIONS: value}.
        answer_format: the value of FORMAT; with "json" an object is printed, and no file is written.
        price: the price of a GPU-hour where the budget is money, else None.
    """
    from ablations.plan import affordable, decision, decision_report
    from ablations.plan.document import make_folder

    if answer_format == "svg":
        raise ConfigError("FORMAT=svg is for a study on hardware; the figures of a decision are written with it")
    token_range = _parse_token_range(options["NEED"]) if "NEED" in options else None
    if answer_format == "json" and "TO" in options:
        raise ConfigError("TO is where the report is written; FORMAT=json writes none")
    device = affordable.budget_device(budget)
    if device and token_range:
        raise ConfigError("NEED= is for machines for a time: this budget says which studies it pays, not what to train")
    folder = Path(options.get("TO", "runs/plan"))
    if answer_format == "table":
        make_folder(folder)  # before anything is computed
    words = [f"{name}={shlex.quote(options[name])}" for name in ("BUDGET", "NEED", "PRICE") if name in options]
    command = {"command": " ".join(["make plan", *words])}
    if device:
        hours = budget.amount if budget.kind == "core-hours" else budget.gpu_hours(price)
        if answer_format == "json":
            print(answers.json_answer("budget-studies", command | affordable.as_json(budget, device, hours)))
            return 0
        document = affordable.document(budget, device, hours)
    else:
        answer = decision.decide_what_to_train(budget, token_range)
        if answer_format == "json":
            print(answers.json_answer("budget-plan", command | decision.as_json(answer)))
            return 0
        document = decision_report.document(answer)
    written = document.write(folder)
    print(document.to_markdown())
    print(f"written: {', '.join(map(str, written))}")
    return 0


def _parse_token_range(text: str) -> tuple[float, float]:
    """Parse the value of NEED=, a range of training tokens such as "300B-400B". Returns (least, most). A single number
    stands for the range from number / 1.1 to number x 1.1. Raises ConfigError for other texts, and for numbers out of
    bounds."""
    check_word_value(text, "NEED")
    parts = [part.strip() for part in text.split("-")]
    if len(parts) > 2 or not all(re.fullmatch(r"\d[\d._]*(e\+?\d+)?\s*[kmbt]?", part, re.I) for part in parts):
        raise ConfigError(f"NEED={text!r}: tokens are needed, from and to or one number, e.g. NEED=300B-400B")
    amounts = [_parse_tokens(part, f"NEED={text!r}") for part in parts]
    if max(amounts) > MOST_TOKENS:
        raise ConfigError(
            f"NEED={text!r}: more than {short_number(MOST_TOKENS)} tokens, which is more text than there is"
        )
    if min(amounts) < LEAST_TOKENS:
        raise ConfigError(
            f"NEED={text!r}: fewer than {short_number(LEAST_TOKENS)} tokens; is a unit missing, as in 300B?"
        )
    return (min(amounts), max(amounts)) if len(parts) == 2 else (amounts[0] / 1.1, amounts[0] * 1.1)


def _parse_tokens(text: str, word: str) -> float:
    """Parse a number of tokens such as "300B". `word`: the NAME=VALUE word that contains the text, for the error
    message. Raises ConfigError where the text has no number above 0."""
    number = text.rstrip("kmbtKMBT ")
    return parse_positive_number(number, word) * SCALES[text[len(number) :].strip().lower()]
