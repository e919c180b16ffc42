"""Verdicts on comparisons: better, worse, equivalent within a margin, or undecided.

With one seed nothing is decided. A difference that is not better, worse or equivalent is called undecided. It is not
called "within noise", which would be read as "equal"; only a margin can show equality.
"""

from math import inf, isinf
from typing import NamedTuple

import numpy as np

from eval.statistics.comparison import Comparison
from eval.statistics.items import FEWEST_ITEMS
from eval.statistics.parts import LEVEL, Variance, interval_half_width
from eval.statistics.sequential import alpha_share

KINDS = ("better", "worse", "equivalent", "undecided")
SMALLEST_P = 1e-4  # smaller ones are "p < 0.0001" in the words of a verdict
MAX_SEEDS_NAMED = (
    20  # beyond which it is not said how many would tell: by then another question is the better use of them
)


class Verdict(NamedTuple):
    """A verdict on a comparison, and its text."""

    kind: str  # one of KINDS
    words: str  # the kind first

    @property
    def label(self) -> str:
        """A short form of the verdict for figures, such as "better by 0.062" or "undecided"."""
        return self.words.split(" (")[0] if self.decided else self.kind

    @property
    def decided(self) -> bool:
        return self.kind != "undecided"


def seeds_to_decide(
    c: Comparison, arms: int, seeds: int, margin: float | None = None, most: int | None = None
) -> int | None:
    """The least number of seeds with which a study would find a difference significant or equivalent, if the difference
    and the noise stay the same. None where no allowed number would be enough, the noise is unknown, or there is a
    single seed.

    Args:
        c: the comparison of an arm with the baseline.
        arms: the number of arms of the study, with the baseline.
        seeds: the number of seeds of the comparison.
        margin: differences within it count as equivalent; None: only significance decides.
        most: the largest number of seeds of a study that adds seeds until it is decided. None for a study with a fixed
            number of seeds; up to MAX_SEEDS_NAMED are then tried.
    """
    if not c.seeds or not c.has_enough_items or seeds < 2:
        return None
    of_seeds, of_items = c.planning_variances
    borrowed = max(0.0, of_seeds.dof - degrees_of_freedom(arms, seeds))  # of a noise floor
    for n in range(seeds + 1, (most or MAX_SEEDS_NAMED) + 1):
        level = LEVEL / c.family * (alpha_share(n, most, c.family) if most else 1.0)
        part = Variance(of_seeds.variance * seeds / n, degrees_of_freedom(arms, n) + borrowed)
        size = abs(c.difference)
        if size > interval_half_width(level, part, of_items):
            return n
        if margin is not None and size + interval_half_width(2 * level, part, of_items) <= margin:
            return n
    return None


def items_alone_leave_undecided(c: Comparison, margin: float | None = None) -> bool:
    """Whether the noise of the items alone leaves the comparison `c` undecided, so that no number of seeds would decide
    it. `margin`: differences within it count as equivalent; None: only significance decides."""
    no_seeds, (_, items), level = Variance(0.0, inf), c.planning_variances, LEVEL / c.family
    size = abs(c.difference)
    equivalent = margin is not None and size + interval_half_width(2 * level, no_seeds, items) <= margin
    return size <= interval_half_width(level, no_seeds, items) and not equivalent


def seeds_cannot_decide(c: Comparison, margin: float | None) -> bool:
    """Whether a study may stop adding seeds, because only more items could decide the comparison `c`.

    True if the items alone would leave every difference in its 95 % interval undecided. That interval counts the noise
    of the seeds only. The interaction of seeds and items does not count as noise of the items here, since more seeds
    average it out. False where the noise is unknown. `margin`: differences within it count as equivalent; None: only
    significance decides.
    """
    if not c.seeds or not c.replicated or not c.has_enough_items or not c.items_alone:
        return False
    no_noise, level = Variance(0.0, inf), LEVEL / c.family
    size, reach = abs(c.difference), interval_half_width(LEVEL, c.planning_variances[0], no_noise)
    if size + reach > interval_half_width(level, no_noise, c.items_alone):
        return False
    return margin is None or max(0.0, size - reach) + interval_half_width(2 * level, no_noise, c.items_alone) > margin


def degrees_of_freedom(arms: int, seeds: int) -> int:
    """The degrees of freedom of the variance between seeds in a study where every arm has every seed. The formula is
    explained in seeds.py."""
    return 2 if arms == seeds == 2 else (arms - 1) * (seeds - 1)


def verdict(
    comparison: Comparison,
    higher_is_better: bool,
    digits: int = 3,
    margin: float | None = None,
    unit: str = "",
    missing: str = "",
) -> Verdict:
    """The verdict on a comparison of an arm with the baseline, with its text. The text has the difference, its ratio to
    its standard error ("× noise") and the p-value, or the reason why it is undecided.

    Args:
        comparison: the comparison.
        higher_is_better: whether a positive difference is an improvement.
        digits: the decimals of the difference in the text.
        margin: differences within it count as equivalent; None: no verdict is equivalent.
        unit: the unit of the margin, for the text, such as "points".
        missing: what would decide an undecided comparison, for the text. Not used with one seed or with fewer than
            FEWEST_ITEMS independent items, which the text then names as the reason.
    """
    count = comparison.independent
    if not comparison.has_enough_items:
        items = "item" if count == 1 else "items"
        return Verdict("undecided", f"undecided: {count} independent {items}, {FEWEST_ITEMS} are needed")
    p = comparison.p if np.isnan(comparison.adjusted) else comparison.adjusted
    if not comparison.replicated:
        return Verdict("undecided", f"undecided: one seed, {'not replicated' if p <= LEVEL else 'within noise'}")
    equivalent = comparison.is_equivalent(margin)
    if not comparison.is_significant and equivalent and margin is not None:
        return Verdict("equivalent", f"equivalent within {margin_text(margin, unit)}")
    if not comparison.is_significant:
        return Verdict("undecided", f"undecided: {missing or 'within noise'}")
    kind = "better" if (comparison.difference > 0) == higher_is_better else "worse"
    size = abs(comparison.difference)
    times = size / comparison.noise if comparison.noise else inf
    ratio = "∞" if isinf(times) else f"{times:.0f}"
    words = f"{kind} by {size:.{digits}f} ({ratio} × noise, {p_value_text(p)})"
    return Verdict(kind, f"{words}, less than the margin" if equivalent else words)


def margin_text(margin: float, unit: str) -> str:
    """A margin with its unit as text, such as "0.01 bits/byte", "1 point" or "2 points". `unit`: in the plural."""
    return f"{margin:g} {unit.removesuffix('s') if margin == 1 else unit}".rstrip()


def p_value_text(p: float) -> str:
    """A p-value as text, such as "p = 0.012" or "p < 0.0001"."""
    return f"p < {SMALLEST_P:.4f}" if p < SMALLEST_P else f"p = {p:.2g}"


def possible_ranks(
    results: dict[str, float], counts: dict[tuple[str, str], bool], higher_is_better: bool
) -> dict[str, str]:
    """The possible ranks of each arm: {arm: one rank such as "1", or a range such as "2–4"}. An arm ranks ahead of
    another for sure only if it is significantly better.

    Args:
        results: {arm: its result}.
        counts: {(arm, another arm): whether the two differ significantly}, each pair once.
        higher_is_better: whether a higher result is better.
    """

    def beats(a: str, b: str) -> bool:
        """Whether `a` is significantly better than `b`."""
        return counts[(a, b) if (a, b) in counts else (b, a)] and (results[a] > results[b]) == higher_is_better

    place_of = {}
    for a in results:
        first = 1 + sum(beats(b, a) for b in results if b != a)
        last = len(results) - sum(beats(a, b) for b in results if b != a)
        place_of[a] = str(first) if first == last else f"{first}–{last}"
    return place_of
