"""Factorial designs: runs with every combination of several factors, or with a fraction of the combinations.

A factor has two levels, that of the baseline and a changed one. A combination is an integer whose bits say which
factors are changed: 0 is the baseline, 0b101 has the first and the third factor changed. An effect is such an integer
too: 0b001 is the main effect of the first factor, 0b011 the interaction of the first two.

A fraction 1/2**p is defined by p sets of factors, the generators. The defining sets are the generators and all their
symmetric differences. The fraction consists of the combinations in which an even number of the factors of every
defining set is changed; the baseline is one of them. Two effects whose symmetric difference is a defining set are
aliased: they cannot be estimated separately (Box, Hunter & Hunter, Statistics for Experimenters, ch. 6; Montgomery,
Design and Analysis of Experiments, ch. 8).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations

from ablations.values import ConfigError

MOST_FACTORS = 8  # 256 combinations; untuned
ALL_ORDERS = 3  # with more factors only interactions of two are estimated, else interactions of any number


def effect_order(effect: int) -> int:
    """The number of factors in an effect: 1 for a main effect, 2 or more for an interaction. `effect`: an integer whose
    bits stand for factors."""
    return effect.bit_count()


def defining_relation(generators: Sequence[int]) -> set[int]:
    """All defining sets of a fraction: its generators and their symmetric differences, as bit masks of factors."""
    sums = {0}
    for generator in generators:
        sums |= {generator ^ other for other in sums}
    return sums - {0}


@dataclass(frozen=True)
class Factorial:
    """A factorial design: which combinations of factors are run, and which effects can be estimated from them.
    Combinations and effects are integers whose bits stand for factors (see the top of this file)."""

    factors: tuple[str, ...]  # the label of each factor's changed level: "pos=alibi"
    generators: tuple[int, ...] = ()  # of a fraction, as bit masks of factors; empty: all combinations are run

    @cached_property
    def defining_sets(self) -> frozenset[int]:
        return frozenset(defining_relation(self.generators))

    @property
    def resolution(self) -> int | None:
        """The resolution of a fraction, the smallest number of factors in a defining set; None where all combinations
        are run. With 3, main effects are aliased with interactions of two factors; with 4, these interactions are
        aliased with each other; with 5, neither."""
        return min(map(effect_order, self.defining_sets), default=None)

    @property
    def combinations(self) -> list[int]:
        """The combinations that are run, ordered by the number of changed factors, the baseline first."""
        every = range(2 ** len(self.factors))
        fraction = [c for c in every if all(effect_order(c & generator) % 2 == 0 for generator in self.generators)]
        return sorted(fraction, key=lambda c: (effect_order(c), c))

    @property
    def single_changes(self) -> list[tuple[int, int, int]]:
        """The pairs of combinations that differ in one factor only: [(combination with this factor unchanged,
        combination with it changed, index of the factor), ...]."""
        combinations = set(self.combinations)
        return [
            (c, c | 1 << i, i)
            for c in self.combinations
            for i in range(len(self.factors))
            if not c >> i & 1 and c | 1 << i in combinations
        ]

    @property
    def effects(self) -> list[int]:
        """The effects that are estimated, main effects first. Of a group of aliased effects only the one with the
        fewest factors is estimated. With more than ALL_ORDERS factors, interactions of three or more are left out."""
        covered: set[int] = set(self.defining_sets) | {
            0
        }  # effects that are aliased with an estimated one, or with the mean
        effects = []
        most = len(self.factors) if len(self.factors) <= ALL_ORDERS else 2
        for effect in sorted(range(1, 2 ** len(self.factors)), key=lambda e: (effect_order(e), e)):
            if effect not in covered and effect_order(effect) <= most:
                effects.append(effect)
                covered |= {effect} | {effect ^ other for other in self.defining_sets}
        return effects

    def aliases(self, effect: int) -> dict[int, float]:
        """The effects that are aliased with `effect`: {aliased effect: its weight in the estimate of `effect`}. Effects
        are defined as in `coefficients`."""
        weights = {}
        for defining in self.defining_sets:
            other = effect ^ defining
            sign = (-1) ** effect_order(defining)  # of the product of the defining set's factors, coded -1 and 1
            weights[other] = sign * 2.0 ** (effect_order(effect) - effect_order(other))
        return dict(sorted(weights.items(), key=lambda item: (effect_order(item[0]), item[0])))

    def coefficients(self, effect: int) -> dict[int, float]:
        """The weights of the combinations' results in the estimate of `effect`, {combination: weight}.

        A main effect is the change that the factor makes, averaged over the levels of the other factors. An interaction
        of two factors is the change that the second factor makes to the effect of the first: y11 - y10 - y01 + y00
        where there are no other factors. An interaction of more factors is defined in the same way.
        """
        combinations = self.combinations
        # factors of the effect that the combination does not change
        unchanged = {c: effect_order(effect & ~c) for c in combinations}
        return {c: (-1) ** unchanged[c] * 2.0 ** effect_order(effect) / len(combinations) for c in combinations}

    def effect_name(self, effect: int) -> str:
        """The name of an effect, such as "pos=alibi × act=swiglu"."""
        return " × ".join(label for i, label in enumerate(self.factors) if effect >> i & 1)

    def arm_label(self, combination: int) -> str:
        """The label of a combination's arm, such as "pos=alibi+act=swiglu"; "" for the baseline."""
        return "+".join(label for i, label in enumerate(self.factors) if combination >> i & 1)

    @property
    def in_words(self) -> str:
        """The design as text for the plan, such as "8 of 16 combinations of 4 factors, resolution 4"."""
        runs, factors = len(self.combinations), len(self.factors)
        if not self.generators:
            return f"all {runs} combinations of {factors} factors"
        return f"{runs} of {2**factors} combinations of {factors} factors, resolution {self.resolution}"

    @property
    def aliasing(self) -> list[str]:
        """For a fraction, a line of text for each estimated effect that names the effects aliased with it; [] where all
        combinations are run."""
        return [
            f"{self.effect_name(effect)}: with {self.aliases_in_words(effect)}"
            for effect in self.effects
            if self.generators
        ]

    def aliases_in_words(self, effect: int) -> str:
        """The aliases of an effect as text, such as "+0.5 of b × c, -1 of d". Only the aliases with the fewest factors
        are named."""
        weights = self.aliases(effect)
        fewest = min(map(effect_order, weights))
        return ", ".join(
            f"{weight:+g} of {self.effect_name(other)}"
            for other, weight in weights.items()
            if effect_order(other) == fewest
        )


def parse_factorial(factors: Sequence[str], text: str) -> Factorial:
    """The factorial design that CROSS= asks for.

    Args:
        factors: for each factor the label of its changed level, such as "pos=alibi".
        text: the value of CROSS: "1" for all combinations; "1/2", "1/4" or "1/8" for a fraction of these.

    Raises:
        ConfigError: the text is none of these, or the factors are too few or too many for it; the message names what is
            possible.
    """
    number = len(factors)
    if not 2 <= number <= MOST_FACTORS:
        raise ConfigError(f"CROSS crosses 2 to {MOST_FACTORS} factors, one value each, and here are {number}")
    allowed = {"1": 0} | {f"1/{2**p}": p for p in (1, 2, 3) if generator_choices(number, p) >= p}
    if text not in allowed:
        raise ConfigError(
            f"CROSS={text[:60]} is not one of {', '.join(allowed)}, which {number} factors allow: with less, main "
            "effects could not be told from each other"
        )
    return Factorial(tuple(factors), best_generators(number, allowed[text]))


def generator_choices(factors: int, p: int) -> int:
    """The number of sets of factors from which the p generators of a fraction 1/2**p are chosen: the sets of two or
    more of the first `factors` - p factors. `factors`: the number of factors."""
    base = factors - p
    return 2**base - 1 - base if base > 0 else 0


def best_generators(factors: int, p: int) -> tuple[int, ...]:
    """The generators of the best fraction 1/2**p of a factorial, as bit masks of factors, found by exhaustive search.
    `factors`: the number of factors. The best fraction has the highest resolution and, among such, the fewest defining
    sets of the smallest size (minimum aberration: Fries & Hunter 1980, Technometrics 22)."""
    base = factors - p
    sets = [s for s in range(2**base) if effect_order(s) >= 2]
    candidates = [tuple(s | 1 << (base + i) for i, s in enumerate(chosen)) for chosen in combinations(sets, p)]

    def aberration(generators: tuple[int, ...]) -> list[int]:
        lengths = [effect_order(word) for word in defining_relation(generators)]
        return [lengths.count(length) for length in range(1, factors + 1)]

    return min(candidates, key=aberration)
