"""`make plan` with ON= or BUDGET=: what a study costs on hardware, and what a budget can train.

make plan STUDY=position SIZE=1b3 ON=a100             one node for each run; ON="8x8 a100": eight nodes of eight
make plan STUDY=position SIZE=1b3 ON=a100 BUDGET="18 weeks, 52x8 A100-80, 4 spare"      and its share of the budget
make plan BUDGET="18 weeks, 52x8 A100-80, 4 spare" TO=folder      report.md and report.html: what to train
make plan BUDGET="..." NEED=300B-400B                 tokens that the model must see; by default as BigScience's
make plan BUDGET="500 GPU-hours, a100"                the studies that it pays for, and their sizes; "40 core-hours" too
"""

import os
import re
import shlex
import sys
from pathlib import Path

from ablations import answers
from ablations.plan.checks import check_request
from ablations.plan.hardware import GPU, hardware
from ablations.plan.resources import (
    MOST_GPUS,
    MOST_TOKENS,
    SCALES,
    Budget,
    amount_text,
    check_text,
    parse_budget,
    positive_number,
)
from ablations.study import from_args
from ablations.values import ConfigError, short_number, unknown_choice
from ablations.words import FACTORS

OPTIONS = ("ON", "BUDGET", "FORMAT", "PRICE", "TO", "NEED")
FORMATS = ("table", "json", "svg")
PRICES = (1e-3, 1e5)  # of a GPU-hour; beyond them a slip is likelier than a plan
LEAST_TOKENS = 1e6  # below them a slip is likelier than a plan: a unit is missing


def split_words(words: list[str]) -> tuple[dict[str, str], list[str]]:
    """Divide NAME=VALUE words into the words that only the plan uses (OPTIONS) and the words that describe the study.
    Returns ({name: value} of the plan's words, the study's words unchanged). Raises ConfigError where a word of the
    plan is given twice or has no value."""
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
    """Parse the value of ON=, the hardware of one run: (the GPU, the total number of GPUs). "a100" is one node of
    A100s, "8x8 a100" eight nodes of eight GPUs, "4 h100" four H100s. Raises ConfigError where the hardware is unknown,
    or a number is not above 0 or too large."""
    check_text(text, "ON")
    match = re.fullmatch(r"(?:(-?\d+)\s*[x×*]\s*)?(?:(-?\d+)\s+)?(\S.*)", text.strip())
    assert match  # any text without spaces around it is at least a name
    gpu = hardware(match[3])
    nodes, per_node = int(match[1] or 1), int(match[2] or gpu.node)
    if min(nodes, per_node) < 1:
        raise ConfigError(f"ON={text!r}: numbers of nodes and GPUs must be above 0")
    if nodes * per_node > MOST_GPUS:
        raise ConfigError(f"ON={text!r}: more than {MOST_GPUS:,} GPUs")
    return gpu, nodes * per_node


def plan_elsewhere(words: list[str]) -> int | None:
    """Print the plan for the hardware (ON) or the budget (BUDGET) that the NAME=VALUE words name. Returns the exit
    code; None where no word is one of OPTIONS, so that the plan is for this machine. Raises ConfigError where a word or
    value is not allowed; the message says what is allowed."""
    options, study_words = split_words(words)
    if not options:
        return None
    answer_format = options.get("FORMAT", "table")
    if answer_format not in FORMATS:
        raise unknown_choice("FORMAT", answer_format, FORMATS)
    budget = parse_budget(options["BUDGET"]) if "BUDGET" in options else None
    price = None
    if "PRICE" in options:
        price = positive_number(options["PRICE"], "PRICE")
        if not PRICES[0] <= price <= PRICES[1]:
            raise ConfigError(f"PRICE={options['PRICE']}: a GPU-hour costs {PRICES[0]:g} to {PRICES[1]:g} here")
        if budget is None or budget.kind != "money":
            raise ConfigError("PRICE, of a GPU-hour, belongs to a budget of money: BUDGET='200k EUR' PRICE=1.8")
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
    if unused := [name for name in ("NEED", "TO") if name in options]:
        raise ConfigError(f"{' and '.join(unused)}: only for what to train with a BUDGET, without ON and a study")
    from ablations.plan import study_cost

    gpu, gpus = parse_hardware(options["ON"])
    hours = budget.gpu_hours(price) if budget else None
    os.environ["MEGAHOUR_GPU"] = "1"  # what is asked about runs there: precision and size follow
    study = from_args(study_words)
    check_request(study)
    answer = study_cost.study_cost(study, gpu, gpus)
    if hours is not None and answer.most_gpu_hours > hours:
        need, limit = amount_text(answer.most_gpu_hours), amount_text(hours)
        seeds = f" with all {answer.study.criteria.seeds} seeds (MAX_SEEDS)" if answer.at_most else ""
        answer.refused.append(f"the study needs {need} GPU-hours{seeds}, and the budget has {limit}")
    if answer_format == "json":
        print(answers.answer("study-cost", answer.as_json(hours)))
    elif answer_format == "svg":
        from ablations.drawing import combined_figures
        from ablations.plan.schedules import figure

        print(combined_figures([study_cost.figure(answer), figure(answer.study)]), end="")
    else:
        print(*study_cost.cost_lines(answer, hours), sep="\n")
    if answer_format != "table":  # whose last lines they are
        for reason in answer.refused:
            print(f"refused: {reason}", file=sys.stderr)
    return 2 if answer.refused else 0


def _plan_budget(budget: Budget, options: dict[str, str], answer_format: str, price: float | None) -> int:
    """Write and print the document on what to train with a budget. For a budget of hours or money on a device the
    document says instead for which studies it pays.

    Args:
        options: {name: value} of the words that only the plan uses.
        answer_format: the value of FORMAT; "json": only an object is printed.
        price: the price of a GPU-hour, where the budget is money; else None.

    Returns:
        The exit code, 0.
    """
    from ablations.plan import affordable, decision, decision_report
    from ablations.plan.document import make_folder

    if answer_format == "svg":
        raise ConfigError("FORMAT=svg is for a study on hardware; the figures of a decision are written with it")
    need = _token_range(options["NEED"]) if "NEED" in options else None
    if answer_format == "json" and "TO" in options:
        raise ConfigError("TO is where the report is written; FORMAT=json writes none")
    device = affordable.device_of(budget)
    if device and need:
        raise ConfigError("NEED= is for machines for a time: this budget says which studies it pays, not what to train")
    folder = Path(options.get("TO", "runs/plan"))
    if answer_format == "table":
        make_folder(folder)  # before anything is computed
    words = [f"{name}={shlex.quote(options[name])}" for name in ("BUDGET", "NEED", "PRICE") if name in options]
    command = {"command": " ".join(["make plan", *words])}
    if device:
        hours = budget.amount if budget.kind == "core-hours" else budget.gpu_hours(price)
        if answer_format == "json":
            print(answers.answer("budget-studies", command | affordable.as_json(budget, device, hours)))
            return 0
        document = affordable.document(budget, device, hours)
    else:
        answer = decision.decide(budget, need)
        if answer_format == "json":
            print(answers.answer("budget-plan", command | decision.as_json(answer)))
            return 0
        document = decision_report.document(answer)
    written = document.write(folder)
    print(document.markdown())
    print(f"written: {', '.join(map(str, written))}")
    return 0


def _token_range(text: str) -> tuple[float, float]:
    """The range of tokens (least, most) in the value of NEED=: from "300B-400B", or from a single number, which stands
    for the number / 1.1 to the number x 1.1. Raises ConfigError for other texts, and for numbers out of bounds."""
    check_text(text, "NEED")
    parts = [part.strip() for part in text.split("-")]
    if len(parts) > 2 or not all(re.fullmatch(r"\d[\d._]*(e\+?\d+)?\s*[kmbt]?", part, re.I) for part in parts):
        raise ConfigError(f"NEED={text!r}: tokens are needed, from and to or one number, e.g. NEED=300B-400B")
    amounts = [_tokens(part, f"NEED={text!r}") for part in parts]
    if max(amounts) > MOST_TOKENS:
        raise ConfigError(
            f"NEED={text!r}: more than {short_number(MOST_TOKENS)} tokens, which is more text than there is"
        )
    if min(amounts) < LEAST_TOKENS:
        raise ConfigError(
            f"NEED={text!r}: fewer than {short_number(LEAST_TOKENS)} tokens; is a unit missing, as in 300B?"
        )
    return (min(amounts), max(amounts)) if len(parts) == 2 else (amounts[0] / 1.1, amounts[0] * 1.1)


def _tokens(text: str, whole: str) -> float:
    """The number of tokens that a text such as "300B" stands for. `whole`: the whole word NEED=..., for the error
    message. Raises ConfigError where the text is no number above 0."""
    number = text.rstrip("kmbtKMBT ")
    return positive_number(number, whole) * SCALES[text[len(number) :].strip().lower()]
