"""Learning-rate schedules and the two kinds of budget against closed forms, and the batch sizes that follow them."""

import dataclasses
import math

import pytest

from ablations import schedule
from ablations.budget import BatchSizes, ClockBudget, TokenBudget, clock_seconds, learning_rate
from ablations.config import ConfigError, resolve
from ablations.study import from_args

TRAIN = dataclasses.replace(resolve([("size", "nano")]).train, lr=3e-3, min_lr=0.0, warmup=0.2)

# {schedule: {t: share of the peak}} with a warm-up of 0.2, worked out by hand
POINTS = {
    "cosine": {0.1: 0.5, 0.2: 1.0, 0.6: 0.5, 1.0: 0.0},
    "linear": {0.1: 0.5, 0.2: 1.0, 0.4: 0.75, 0.6: 0.5, 1.0: 0.0},
    "constant": {0.1: 0.5, 0.2: 1.0, 0.9: 1.0, 1.0: 1.0},
    "inverse-sqrt": {0.1: 0.5, 0.2: 1.0, 0.8: 0.5},
    "dive": {0.1: 0.5, 0.2: 1.0, 0.5: 1.0, 0.75: 0.5, 1.0: 0.0},
    "dive-slow": {0.1: 0.5, 0.25: 1.0, 0.625: 0.5, 1.0: 0.0},
    "warmup-stable-decay": {0.1: 0.5, 0.2: 1.0, 0.8: 1.0, 0.85: 0.5, 1.0: 0.0},
    "warmup-stable-decay-stable": {
        0.1: 0.5,
        0.2: 1.0,
        0.2125: 0.5,
        0.25: 0.0,
        0.26: 1.0,
        0.4: 1.0,
        0.425: 0.5,
        0.5: 0.0,
    }
    | {0.51: 1.0, 0.8: 1.0, 0.85: 0.5, 1.0: 0.0},
    "one-cycle": {0.0: 0.0, 0.25: 0.5, 0.5: 1.0, 0.75: 0.5, 1.0: 0.0},
    "budget-triangle2": {0.0: 0.25, 0.25: 0.5, 0.75: 1.0, 0.875: 0.5, 1.0: 0.0},
    "budget-inverse-sqrt": {0.0: 0.0, 0.025: 0.5, 0.05: 1.0, 0.2: 0.5, 0.8: 0.25},
    "ramp": {0.0: 0.0, 0.3: 0.3, 1.0: 1.0},
}


def test_every_schedule_has_its_points() -> None:
    assert POINTS.keys() == schedule.SCHEDULES.keys()
    assert not schedule.WITH_WARMUP.keys() & schedule.WITHOUT_WARMUP.keys()


@pytest.mark.parametrize("name", schedule.SCHEDULES)
def test_a_schedule_passes_through_its_points(name: str) -> None:
    train = dataclasses.replace(TRAIN, schedule=name)
    for t, share in POINTS[name].items():
        assert learning_rate(train, t) == pytest.approx(3e-3 * share, abs=1e-12), (name, t)
    raised = dataclasses.replace(train, min_lr=0.1)
    assert learning_rate(raised, 0.875) == pytest.approx(3e-4 + 0.9 * learning_rate(train, 0.875))
    assert learning_rate(train, 1.7) == learning_rate(train, 1.0)


@pytest.mark.parametrize("name", schedule.SCHEDULES)
def test_a_schedule_stays_between_zero_and_the_peak_and_says_its_source(name: str) -> None:
    train = dataclasses.replace(TRAIN, schedule=name)
    rates = [learning_rate(train, i / 1000) for i in range(1001)]
    assert min(rates) >= 0 and max(rates) <= 3e-3 * (1 + 1e-12)
    steps = [b - a for a, b in zip(rates, rates[1:], strict=False)]
    jumps = [i for i, step in enumerate(steps) if abs(step) >= 3e-3 * 0.08]  # 1 - sqrt falls by 0.07 in a thousandth
    if name == "warmup-stable-decay-stable":  # falls twice and four times as fast, and is at the peak again at once
        assert [i for i in jumps if steps[i] > 0] == [250, 500] and min(steps) > -3e-3 * 0.15
    else:
        assert not jumps
    assert schedule.SCHEDULES[name].__doc__


def test_one_run_has_fallen_where_runs_of_several_lengths_end() -> None:
    """From each return of the peak on, the rate is that of a warmup-stable-decay run that ends at the next end."""
    train = dataclasses.replace(TRAIN, schedule="warmup-stable-decay-stable", warmup=0.01, min_lr=0.1)
    shorter = dataclasses.replace(train, schedule="warmup-stable-decay")
    for end, before in zip(schedule.DECAY_ENDS, (0.01, *schedule.DECAY_ENDS), strict=False):
        for i in range(101):
            t = before + (end - before) * (i + 1e-9) / (100 + 1e-9)
            assert learning_rate(train, t) == pytest.approx(learning_rate(shorter, t / end), abs=1e-9), (end, t)
        assert learning_rate(train, end) == pytest.approx(3e-4)
    # the steps of nano and of the sizes of ladders can be divided so, and the weights kept are those at the ends
    for size in ("atto", "femto", "pico", "nano", "mini", "small", "14m"):
        run = resolve([("size", size), ("train.schedule", train.schedule), ("layout.eval_at", "0.25,0.5")])
        assert [learning_rate(run.train, tokens / run.horizon) for tokens in run.milestones.values()] == pytest.approx(
            [run.train.lr * run.train.min_lr] * 2
        )


def test_the_cosine_is_bit_for_bit_what_it_was() -> None:
    def before(lr: float, least: float, warmup: float, t: float) -> float:
        if t < warmup:
            return lr * t / warmup
        share = min(1.0, (t - warmup) / (1 - warmup))
        cosine = (1 + math.cos(math.pi * share)) / 2
        return lr * (least + (1 - least) * cosine)

    for warmup, least, lr in ((0.05, 0.1, 2e-3), (0.0025, 0.05, 2e-4), (0.0, 0.0, 1e-3)):
        train = dataclasses.replace(TRAIN, schedule="cosine", warmup=warmup, min_lr=least, lr=lr)
        for i in range(1, 1300):
            assert learning_rate(train, i / 1237) == before(lr, least, warmup, i / 1237)


# ------------------------------------------------------------------------------------------------ budgets


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90.0), ("10m", 600.0), ("24h", 86400.0), ("1.5h", 5400.0), ("2d", 172800.0)]
)
def test_a_wall_clock_has_a_unit(text: str, seconds: float) -> None:
    assert clock_seconds(text) == seconds
    run = resolve([("size", "nano"), ("train.budget", text)])
    assert run.budget == ClockBudget(seconds) and run.budget.used_share(10**9, seconds / 4) == 0.25


@pytest.mark.parametrize("text", ["24", "0h", "-1h", "h", "24 hours", "24H", "１０m", "1e3s", "nan", "auto", "1,5h"])
def test_a_budget_that_is_none_is_refused_with_the_units(text: str) -> None:
    with pytest.raises(ConfigError, match="one of s, m, h and d, such as 90s, 10m or 24h"):
        resolve([("size", "nano"), ("train.budget", text)])
    if text == "24":
        with pytest.raises(ConfigError, match="has no unit"):
            resolve([("train.budget", text)])


def test_a_budget_of_tokens_counts_tokens() -> None:
    run = resolve([("size", "nano")])
    assert run.budget == TokenBudget(run.tokens) and run.budget.used_share(run.tokens // 4, 1e9) == 0.25
    assert resolve([("train.decay_tokens", "4M")]).budget.used_share(1_000_000, 0.0) == 0.25


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train.decay_tokens": "2M"}, "train.decay_tokens is counted in tokens"),
        ({"train.ramp": "2,2,100", "layout.micro_batch": 2}, "train.ramp is counted in tokens or samples"),
        ({"layout.eval_at": "0.5"}, "layout.eval_at is counted in tokens"),
    ],
)
def test_a_clock_refuses_what_is_counted_in_tokens(change: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve([("size", "nano"), ("train.budget", "10m"), *change.items()])
    assert resolve([("size", "nano"), *change.items()])


def test_a_share_of_the_budget_as_ramp() -> None:
    """The same ramp said in samples and as a share of the tokens; and by the clock, where sizes come from t."""
    samples = resolve([("size", "nano"), ("train.ramp", "2,2,2457"), ("layout.micro_batch", 2)])
    share = resolve([("size", "nano"), ("train.ramp", "2,2"), ("train.ramp_share", "0.6"), ("layout.micro_batch", 2)])
    assert 0.6 * samples.train.tokens / samples.model.seq == pytest.approx(2457, abs=1)
    assert [share.samples(i) for i in range(900)] == [samples.samples(i) for i in range(900)]
    assert share.batch_sizes == BatchSizes((2, 4, 6, 8), 2458) or share.batch_sizes == samples.batch_sizes
    sizes = resolve(
        [
            ("size", "nano"),
            ("train.budget", "10m"),
            ("train.ramp", "2,2"),
            ("train.ramp_share", "0.6"),
            ("layout.micro_batch", 2),
        ]
    ).batch_sizes
    assert [sizes.size_at(t / 0.6) for t in (0.0, 0.19, 0.21, 0.41, 0.59, 0.61, 1.0)] == [2, 2, 4, 6, 6, 8, 8]
    assert BatchSizes((8,)).size_at(0.5) == 8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train.ramp_share": "0.6"}, "train.ramp_share without train.ramp"),
        ({"train.ramp": "2,2,9", "train.ramp_share": "0.6"}, "first two and train.ramp_share"),
        ({"train.schedule": "inverse-sqrt", "train.warmup": "0"}, "needs train.warmup above 0"),
        ({"train.schedule": "cosin"}, "did you mean cosine?"),
    ],
)
def test_what_does_not_fit_a_schedule_or_ramp_is_refused(change: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        resolve([("size", "nano"), *change.items()])
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ARM=train.warmup=0.1", "SET=train.schedule=one-cycle"], "does nothing without train.schedule=cosine or"),
        (["ARM=train.min_lr=0.2", "SET=train.schedule=constant"], "does nothing without train.schedule="),
        (["ARM=train.tokens=2M", "SET=train.budget=10m"], "does nothing without train.budget=tokens"),
        (["ARM=train.budget=600s", "SET=train.budget=10m"], "two equal runs"),
    ],
)
def test_a_setting_without_effect_makes_no_arm(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        from_args(words)
    assert message in str(error.value)
