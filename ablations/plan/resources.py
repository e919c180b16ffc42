"""Budgets of resources, parsed from text such as "18 weeks, 52x8 A100-80, 4 spare" or "4500 PF-days", and converted to
GPU-hours.

A budget is a cluster for a time, or an amount: of GPU-hours or money (on given hardware), of core-hours, of FLOPs (of
the model, or of the hardware at its peak), of tokens, or of optimizer steps. An amount does not say how long it takes.
"""

import math
import re
from dataclasses import dataclass, field

from ablations.plan.hardware import GPU, find_gpu
from ablations.values import ConfigError, did_you_mean, parse_number

HOUR = 3600.0
PF_DAY = 1e15 * 86400
TIMES = {
    "second": 1.0,
    "minute": 60.0,
    "hour": HOUR,
    "day": 24 * HOUR,
    "week": 7 * 24 * HOUR,
    "year": 365.25 * 24 * HOUR,
}
SHORT_TIMES = {"s": "second", "min": "minute", "h": "hour", "d": "day", "w": "week"}
SCALES = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}
FLOPS = {"flop": 1.0, "pf-day": PF_DAY, "ef-day": 1e3 * PF_DAY, "zflop": 1e21}
UNITS = "weeks, days, hours; NODESxGPUS HARDWARE; spare; GPU-hours; core-hours; PF-days, FLOP; tokens; steps; EUR, USD"

# Amounts out of these bounds are taken for typing errors.
SHORTEST, LONGEST, MOST_GPUS = TIMES["minute"], 20 * TIMES["year"], 1_000_000
MOST_TOKENS = 1e15  # the indexed web has some 5e14 (recalled)
MOST = {  # {kind of budget: largest amount, in the base unit of the kind}
    "gpu-hours": MOST_GPUS * LONGEST / HOUR,
    "core-hours": MOST_GPUS * LONGEST / HOUR,
    "model-flops": 1e31,  # MOST_GPUS for LONGEST, each with the highest peak of the hardware table
    "peak-flops": 1e31,
    "tokens": MOST_TOKENS,
    "steps": 1e9,
    "money": 1e13,
}
LEAST = 1e-6  # the least amount of every kind
MOST_CHARACTERS = 200  # of a budget as text

PUBLISHED_HOURS = 1_161_261  # BigScience's own total for 18 weeks of 384 A100; 18 x 7 x 24 x 384 is 1,161,216


@dataclass(frozen=True)
class Cluster:
    """Nodes with GPUs for a time. `nodes`: the number of all nodes; `per_node`: the GPUs of each; `spare`: the number
    of nodes that only stand by to replace broken ones; `seconds`: the time."""

    gpu: GPU
    nodes: int
    per_node: int
    spare: int
    seconds: float

    @property
    def working(self) -> int:
        """The number of GPUs that train: those of all nodes but the spare ones."""
        return (self.nodes - self.spare) * self.per_node

    @property
    def gpu_hours(self) -> float:
        return self.working * self.seconds / HOUR

    @property
    def reserved_gpu_hours(self) -> float:
        """The GPU-hours, including those of spare nodes."""
        return self.nodes * self.per_node * self.seconds / HOUR

    def flops(self, per_gpu: float) -> float:
        """The floating-point operations that all working GPUs do in the whole time. `per_gpu`: the FLOP/s of a GPU."""
        return self.working * self.seconds * per_gpu

    def __str__(self) -> str:
        spare = f", {self.spare} spare" if self.spare else ""
        return f"{duration_in_words(self.seconds)} on {self.nodes} x {self.per_node} {self.gpu.name}{spare}"


@dataclass(frozen=True)
class Budget:
    """A budget of resources: an amount of one kind. `cluster` is None unless the budget is a cluster for a time; `gpu`
    is None where no hardware is named; `text` is what the user wrote."""

    kind: str  # cluster | gpu-hours | core-hours | model-flops | peak-flops | tokens | steps | money
    amount: float
    text: str
    cluster: Cluster | None = None
    gpu: GPU | None = None

    def gpu_hours(self, price: float | None = None) -> float:
        """The GPU-hours of the budget, without those of spare nodes. `price`: the price of a GPU-hour in the budget's
        currency, needed where the budget is money. Raises ConfigError where GPU-hours do not follow from the budget;
        the message says what is missing."""
        if self.cluster:
            return self.cluster.gpu_hours
        if self.kind == "gpu-hours":
            return self.amount
        if self.kind == "peak-flops" and self.gpu:
            return self.amount / self.gpu.peak / HOUR
        if self.kind == "money":
            if not price:
                raise ConfigError(f"BUDGET={self.text!r} is money: PRICE= of one GPU-hour is missing, e.g. PRICE=1.8")
            return self.amount / price
        raise ConfigError(
            f"BUDGET={self.text!r} has no GPU-hours: a number of them, or a cluster for a time, is needed"
        )


def duration_in_words(seconds: float) -> str:
    """A duration as text in the largest unit of which there is at least one, such as "3.5 days" or "20 hours". Weeks
    are used only for whole numbers of weeks: "18 weeks"."""
    for unit in ("week", "day", "hour", "minute"):
        count = seconds / TIMES[unit]
        if count >= 1 and (unit != "week" or abs(count - round(count)) < 1e-9):
            return f"{count:.3g} {unit}{'' if f'{count:.3g}' == '1' else 's'}"
    return f"{seconds:.3g} second{'' if f'{seconds:.3g}' == '1' else 's'}"


def weeks_text(seconds: float) -> str:
    """A duration in weeks as text without the unit, such as "15.2"; "endless" where it is infinite."""
    return f"{seconds / TIMES['week']:.1f}" if math.isfinite(seconds) else "endless"


def amount_text(number: float) -> str:
    """A number as text: "11,963" without decimals from 100 on, "0.188" with three significant digits below."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def parse_positive_number(text: str, word: str) -> float:
    """Parse a number such as "18", "4500", "1e21" or "1_000". Raises ConfigError where the text is no number in the
    digits 0 to 9, is not above 0, or is too large for a floating-point number. `word`: the NAME=VALUE word that
    contains the text, for the error message."""
    number = _parse_finite_number(text, word)
    if not number > 0:
        raise ConfigError(f"{word}: {text} must be above 0")
    return number


def _parse_finite_number(text: str, word: str) -> float:
    """Parse a finite number. Raises ConfigError for any other text. `word`: the NAME=VALUE word that contains the text,
    for the error message."""
    try:
        number = parse_number(text)
    except ValueError:
        number = math.nan
    if math.isnan(number):
        raise ConfigError(f"{word}: {text!r} is no number in the digits 0 to 9")
    if math.isinf(number):
        raise ConfigError(f"{word}: {text} is no number that is finite")
    return number


def check_word_value(text: str, name: str) -> None:
    """Check the value of a NAME=VALUE word. Raises ConfigError where it has more than MOST_CHARACTERS characters, or
    digits other than 0 to 9 (which Python would read as numbers too). `text`: the value; `name`: the NAME, for the
    error message."""
    if len(text) > MOST_CHARACTERS:
        raise ConfigError(f"{name}={text[:40]}... has more than {MOST_CHARACTERS} characters")
    if digits := [character for character in text if character.isnumeric() and not character.isascii()]:
        raise ConfigError(f"{name}={text!r}: {digits[0]!r} is no digit from 0 to 9")


# what BUDGET= accepts, for error messages
FORM = "machines for a time, e.g. '18 weeks, 52x8 A100-80', or hours of some, e.g. '500 GPU-hours, a100'"
_NUMBER = r"(?P<number>-?[\d][\d_]*(?:\.\d+)?(?:e[+-]?\d+)?)"


def parse_budget(text: str) -> Budget:
    """Parse a budget such as "18 weeks, 52x8 A100-80, 4 spare" or "4500 PF-days". Raises ConfigError where a number has
    no unit, a unit or the hardware is unknown, an amount is out of bounds, or a part is missing; the message says
    which."""
    check_word_value(text, "BUDGET")
    if with_comma := re.search(r"(?<![\w-])\d[\d_]*(?:,\d{3})+(?!\d)", text):
        raise ConfigError(
            f"BUDGET={text!r}: a comma stands between parts and is no part of a number: "
            f"{with_comma[0].replace(',', '')}, or {with_comma[0].replace(',', ', ')}"
        )
    if re.fullmatch(r"\s*\d+(\.\d+)?\s*[smhd]\s*", text):
        raise ConfigError(
            f"BUDGET={text!r} is a time alone, as `make cram` takes it (in a study: SET=train.budget={text.strip()}). "
            f"A plan needs {FORM}"
        )
    parts = [part.strip() for part in re.split("[,;]", text) if part.strip()]
    if not parts:
        raise ConfigError(f"BUDGET={text!r} is empty: a plan needs {FORM}")
    parsed = _BudgetParts(text)
    for part in parts:
        parsed.add(part)
    return parsed.budget()


@dataclass
class _BudgetParts:
    """The parts of a budget that were read from its text so far."""

    text: str
    seconds: float | None = None
    nodes: tuple[int, int] | None = None  # (number of nodes, GPUs in each)
    spare: int | None = None
    gpu: GPU | None = None
    amounts: list[tuple[str, float]] = field(default_factory=list)  # as `_amount_in_base_unit` returns them

    @property
    def word(self) -> str:
        """The whole budget as a word BUDGET='...', for error messages."""
        return f"BUDGET={self.text!r}"

    def add(self, part: str) -> None:
        """Read one part of a budget, such as "18 weeks", "52x8 A100-80" or "4 spare", into the fields of this object.
        Raises ConfigError where the text is no part of a budget, or a part of this kind was read before."""
        machines = re.fullmatch(r"(-?\d+)\s*(?:nodes?\s*)?[x×*]\s*(-?\d+)\s+(?:GPUs?\s+)?(\S.*)", part, re.I)
        if machines:
            if self.nodes or self.gpu:
                raise ConfigError(f"{self.word} names {'machines' if self.nodes else 'hardware'} twice")
            self.nodes, self.gpu = (int(machines[1]), int(machines[2])), find_gpu(machines[3])
            if min(self.nodes) < 1:
                raise ConfigError(f"{self.word}: {part!r} has no GPU: both numbers must be above 0")
            return
        if re.match(r"[+-]?(inf|nan)", part, re.I):
            raise ConfigError(f"{self.word}: {part!r} has no number that is finite")
        match = re.fullmatch(_NUMBER + r"\s*(?P<unit>[^\d\s-].*)?", part, re.I)
        if not match:
            try:
                gpu = find_gpu(part)
            except ConfigError as error:
                raise ConfigError(f"{self.word}: {error}; a plan needs {FORM}") from None
            if self.gpu:
                raise ConfigError(f"{self.word} names hardware twice")
            self.gpu = gpu
            return
        unit = (match["unit"] or "").strip()
        if not unit:
            raise ConfigError(f"{self.word}: the unit of {part} is missing; units: {UNITS}")
        self._add_number(match["number"], unit)

    def _add_number(self, text: str, unit: str) -> None:
        """Read a number with a unit: a duration, spare nodes, or an amount."""
        word = unit.lower()
        if word in ("spare", "spares", "spare nodes", "spare node"):
            number = _parse_finite_number(text, self.word)
            if self.spare is not None or not number.is_integer() or number < 0:
                raise ConfigError(f"{self.word}: one whole number of spare nodes is needed, 0 or more")
            self.spare = int(number)
            return
        number = parse_positive_number(text, self.word)
        if (time := SHORT_TIMES.get(word, word.removesuffix("s"))) in TIMES:
            if self.seconds is not None:
                raise ConfigError(f"{self.word} says a time twice")
            self.seconds = number * TIMES[time]
        else:
            self.amounts.append(_amount_in_base_unit(number, unit, self.text))

    def budget(self) -> Budget:
        """The budget that the parts make up. Raises ConfigError where parts are missing, or cannot be combined."""
        if len(self.amounts) > 1 or (self.amounts and (self.seconds is not None or self.nodes)):
            raise ConfigError(f"{self.word} is two budgets: a cluster for a time, or one amount")
        return self._amount_budget() if self.amounts else self._cluster_budget()

    def _amount_budget(self) -> Budget:
        if self.spare is not None:
            raise ConfigError(f"{self.word}: spare nodes belong to a cluster, e.g. 52x8 A100-80, 4 spare")
        kind, amount = self.amounts[0]
        if not LEAST <= amount <= MOST[kind]:
            raise ConfigError(f"{self.word}: {kind} from {LEAST:g} to {MOST[kind]:g} can be planned with")
        if kind == "peak-flops" and not self.gpu:
            raise ConfigError(f"{self.word}: FLOPs at the peak need the hardware, e.g. '1e22 peak FLOP, A100-80'")
        return Budget(kind, amount, self.text, None, self.gpu)

    def _cluster_budget(self) -> Budget:
        if self.seconds is None or not self.nodes or not self.gpu:
            parts = (("a time, e.g. 18 weeks", self.seconds), ("machines, e.g. 52x8 A100-80", self.nodes))
            missing = [part for part, value in parts if not value]
            raise ConfigError(f"{self.word} lacks {' and '.join(missing)}")
        nodes, per_node = self.nodes
        if (self.spare or 0) >= nodes:
            raise ConfigError(f"{self.word}: of {nodes} nodes {self.spare} cannot be spare")
        if self.seconds < SHORTEST:
            raise ConfigError(f"{self.word}: {self.seconds:.3g} seconds are less than a minute")
        if self.seconds > LONGEST:
            years, most = self.seconds / TIMES["year"], LONGEST / TIMES["year"]
            raise ConfigError(f"{self.word}: {years:.3g} years are more than {most:g}")
        if nodes * per_node > MOST_GPUS:
            raise ConfigError(f"{self.word}: more than {MOST_GPUS:,} GPUs")
        cluster = Cluster(self.gpu, nodes, per_node, self.spare or 0, self.seconds)
        return Budget("cluster", cluster.gpu_hours, self.text, cluster, self.gpu)


def _amount_in_base_unit(number: float, unit: str, text: str) -> tuple[str, float]:
    """Convert an amount to the base unit of its kind. Returns (kind of the budget, amount). `number`, `unit`: such as
    4500 and "PF-days"; `text`: the whole budget, for the error message. Raises ConfigError where the unit is
    unknown."""
    word = re.sub(r"\s+", " ", unit.lower()).strip()
    kind = "model-flops"
    if word.startswith(("peak ", "model ", "hardware ")):
        first, word = word.split(" ", 1)
        kind = "model-flops" if first == "model" else "peak-flops"
    if (flops := word.removesuffix("s")) in FLOPS:
        return kind, number * FLOPS[flops]
    if kind == "peak-flops":
        raise ConfigError(f"BUDGET={text!r}: {unit!r} is no unit of FLOPs: {', '.join(FLOPS)}")
    scaled = re.fullmatch(r"([kmbt]?)\s*(tokens?|steps?|gpu[- ]?hours?|gpu[- ]?h|core[- ]?hours?|core[- ]?h)", word)
    if scaled:
        kinds = {"t": "tokens", "s": "steps", "g": "gpu-hours", "c": "core-hours"}
        return kinds[scaled[2][0]], number * SCALES[scaled[1]]
    if money := re.fullmatch(r"([kmb]?)\s*(eur|usd|euros?|dollars?|€|\$)", word):
        return "money", number * SCALES[money[1]]
    words = [*TIMES, *FLOPS, "tokens", "steps", "gpu-hours", "core-hours", "EUR", "USD", "spare"]
    raise ConfigError(f"BUDGET={text!r}: {unit!r} is no unit; units: {UNITS}{did_you_mean(word, words)}")
