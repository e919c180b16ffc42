"""A factorial: runs with every combination of several factors, or with a fraction of the combinations.

A factor has two levels, the baseline's and another one. A combination is a whole number whose bits say which factors
have the other level: 0 is the baseline, 0b101 has the first and the third factor changed. An effect is such a number
too: 0b001 the main effect of the first factor, 0b011 the interaction of the first two.

A fraction 1/2**p keeps the combinations in which, for each of p sets of factors (the generators) and all that are
combinations of these (the defining sets), an even number of the set's factors is changed. The baseline is among them.
Effects that differ by a defining set cannot be told from each other: they are aliased (Box, Hunter & Hunter, Statistics
for Experimenters, ch. 6; Montgomery, Design and Analysis of Experiments, ch. 8).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations

from ablations.values import ConfigError

MOST_FACTORS = 8  # 256 combinations; untuned
ALL_ORDERS = 3  # factors up to which interactions of all of them are reported; of more, those of two factors


def order(effect: int) -> int:
    """How many factors an effect is of: 1 a main effect, 2 and more an interaction."""
    return effect.bit_count()


def spanned(generators: Sequence[int]) -> set[int]:
    """All sums of generators but 0: the defining sets."""
    sums = {0}
    for generator in generators:
        sums |= {generator ^ other for other in sums}
    return sums - {0}


@dataclass(frozen=True)
class Factorial:
    """Which combinations of factors are run, and what they can tell."""

    factors: tuple[str, ...]  # the label of each: "pos=alibi"
    generators: tuple[int, ...] = ()  # of a fraction

    @cached_property
    def defining(self) -> frozenset[int]:
        return frozenset(spanned(self.generators))

    @property
    def resolution(self) -> int | None:
        """The smallest number of factors in a defining set; None of a whole factorial. With 3, main effects are aliased
        with interactions of two factors; with 4, those with each other; with 5, neither."""
        return min(map(order, self.defining), default=None)

    @property
    def combinations(self) -> list[int]:
        """Those that are run: by the number of changed factors, the baseline first."""
        every = range(2 ** len(self.factors))
        fraction = [c for c in every if all(order(c & generator) % 2 == 0 for generator in self.generators)]
        return sorted(fraction, key=lambda c: (order(c), c))

    @property
    def edges(self) -> list[tuple[int, int, int]]:
        """(combination, the same with one more factor changed, the number of that factor)."""
        combinations = set(self.combinations)
        return [
            (c, c | 1 << i, i)
            for c in self.combinations
            for i in range(len(self.factors))
            if not c >> i & 1 and c | 1 << i in combinations
        ]

    @property
    def effects(self) -> list[int]:
        """One of each class of aliased effects, that of the fewest factors: main effects, then interactions."""
        covered: set[int] = set(self.defining) | {0}
        effects = []
        most = len(self.factors) if len(self.factors) <= ALL_ORDERS else 2
        for effect in sorted(range(1, 2 ** len(self.factors)), key=lambda e: (order(e), e)):
            if effect not in covered and order(effect) <= most:
                effects.append(effect)
                covered |= {effect} | {effect ^ other for other in self.defining}
        return effects

    def aliases(self, effect: int) -> dict[int, float]:
        """{other effect: how much of it is in the estimate of this one}; see `coefficients` for the units."""
        shares = {}
        for defining in self.defining:
            other = effect ^ defining
            sign = (-1) ** order(defining)  # of the product of the defining set's factors, coded -1 and 1
            shares[other] = sign * 2.0 ** (order(effect) - order(other))
        return dict(sorted(shares.items(), key=lambda item: (order(item[0]), item[0])))

    def coefficients(self, effect: int) -> dict[int, float]:
        """{combination: its weight in the estimate of an effect}.

        A main effect is what changing the factor does, averaged over the other factors' levels. An interaction of two
        is the difference that the second makes to the effect of the first: y11 - y10 - y01 + y00 where there are no
        other factors. Of three and more likewise.
        """
        combinations = self.combinations
        unchanged = {
            c: order(effect & ~c) for c in combinations
        }  # factors of the effect that the combination does not change
        return {c: (-1) ** unchanged[c] * 2.0 ** order(effect) / len(combinations) for c in combinations}

    def name(self, effect: int) -> str:
        """ "pos=alibi × act=swiglu" """
        return " × ".join(label for i, label in enumerate(self.factors) if effect >> i & 1)

    def label(self, combination: int) -> str:
        """The label of an arm: "pos=alibi+act=swiglu"; "" of the baseline."""
        return "+".join(label for i, label in enumerate(self.factors) if combination >> i & 1)

    @property
    def in_words(self) -> str:
        """Which combinations are run: "8 of 16 combinations of 4 factors, resolution 4"."""
        runs, factors = len(self.combinations), len(self.factors)
        if not self.generators:
            return f"all {runs} combinations of {factors} factors"
        return f"{runs} of {2**factors} combinations of {factors} factors, resolution {self.resolution}"

    @property
    def aliasing(self) -> list[str]:
        """What cannot be told apart in a fraction, a line for each effect that is estimated."""
        return [
            f"{self.name(effect)}: with {self.aliases_in_words(effect)}" for effect in self.effects if self.generators
        ]

    def aliases_in_words(self, effect: int) -> str:
        """ "+0.5 of b × c, -1 of d", those of the fewest factors; effects of more are left to a reader."""
        shares = self.aliases(effect)
        least = min(map(order, shares))
        return ", ".join(
            f"{share:+g} of {self.name(other)}" for other, share in shares.items() if order(other) == least
        )


def factorial(factors: Sequence[str], text: str) -> Factorial:
    """The design that CROSS asks for: "1" all combinations, "1/2", "1/4" or "1/8" a fraction of them.

    Raises:
        ConfigError: naming the fractions that these factors allow.
    """
    number = len(factors)
    if not 2 <= number <= MOST_FACTORS:
        raise ConfigError(f"CROSS crosses 2 to {MOST_FACTORS} factors, one value each, and here are {number}")
    allowed = {"1": 0} | {f"1/{2**p}": p for p in (1, 2, 3) if choices(number, p) >= p}
    if text not in allowed:
        raise ConfigError(
            f"CROSS={text[:60]} is not one of {', '.join(allowed)}, which {number} factors allow: with less, main "
            "effects could not be told from each other"
        )
    return Factorial(tuple(factors), best_generators(number, allowed[text]))


def choices(factors: int, p: int) -> int:
    """How many sets of two and more of the first factors - p factors there are."""
    base = factors - p
    return 2**base - 1 - base if base > 0 else 0


def best_generators(factors: int, p: int) -> tuple[int, ...]:
    """The generators of the fraction 1/2**p that aliases least: of the highest resolution, and of these with the fewest
    short defining sets (minimum aberration: Fries & Hunter 1980, Technometrics 22). All are tried."""
    base = factors - p
    sets = [s for s in range(2**base) if order(s) >= 2]
    candidates = [tuple(s | 1 << (base + i) for i, s in enumerate(chosen)) for chosen in combinations(sets, p)]

    def aberration(generators: tuple[int, ...]) -> list[int]:
        lengths = [order(word) for word in spanned(generators)]
        return [lengths.count(length) for length in range(1, factors + 1)]

    return min(candidates, key=aberration)
