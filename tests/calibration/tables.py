"""`make calibrate`: makes the tables of docs/statistics.md anew, on the error rates and the power of the verdicts
(error_rates.py). The text between the tables is written by hand.

tests/test_calibration.py checks the page.
"""

import sys
from collections.abc import Callable, Iterable
from itertools import product
from pathlib import Path

from ablations import answers
from ablations.document.blocks import Table
from ablations.document.formats import markdown_table
from ablations.factorial import parse_factorial
from ablations.safe_files import write_text
from eval.report.sections import published
from eval.statistics.parts import LEVEL
from eval.statistics.sequential import alpha_share
from tests.calibration.error_rates import (
    EFFECTS,
    LADDER_KINDS,
    MARGINS,
    decisions_on_published_checkpoints,
    factorial_rates,
    fixed_seed_rates,
    ladder_rates,
    noise_floor_rates,
    power_rates,
    sequential_rates,
    share_with_wrong_verdict,
    simulated_results,
    wrong_verdicts_with_clusters,
    wrong_verdicts_with_few_groups,
)
from tests.calibration.simulation import BETTER, EQUIVALENT, simulate_sequential

PAGE = Path("docs/statistics.md")
STUDIES = 20_000  # of each kind: a rate of 5 % has a standard error of 0.15 %
ARMS, SEEDS, MOST_SEEDS = (2, 5), (2, 3, 5, 10), (2, 3, 5, 10, 20)
STUDIES_OF_ITEMS = 4000  # of each kind: five times as many numbers each; standard error 0.35 %
DESIGNS = ((2, "1"), (3, "1"), (4, "1/2"), (4, "1"))  # factors, and which fraction of their combinations
SEEDS_OF_DESIGNS = (2, 3, 5)
LADDERS = 2000  # of each kind, three arms each
LADDER_SEEDS = (2, 3, 5)
DEGREES_OF_FREEDOM = (1, 2, 3, 4, 6, 10, 20, 60)  # of the table of a verdict's words


def percent(rate: float) -> str:
    return f"{100 * rate:.1f} %"


def ratio_table() -> Table:
    """A table of how many times its standard error a difference has to be for p = 5 %, by the degrees of freedom of
    that standard error."""
    from scipy.special import stdtrit

    ratios = [f"{-float(stdtrit(dof, LEVEL / 2)):.2f}" for dof in DEGREES_OF_FREEDOM]
    return Table(["degrees of freedom", *map(str, DEGREES_OF_FREEDOM)], [["times the noise", *ratios]])


def stopping_table() -> Table:
    rows = []
    for most in MOST_SEEDS:
        line = [str(most)]
        for effect in (0.0, *EFFECTS, 10.0):
            x = simulated_results((4, most), STUDIES, 2, most)
            x[:, 1] += effect
            ended = simulate_sequential(x, 2.0)
            kind = EQUIVALENT if effect == 0 else BETTER
            line.append(f"{percent(float((ended.decisions == kind).mean()))}, {ended.seeds.mean():.1f} seeds")
        rows.append(line)
    return Table(["most seeds", "equal: equivalent", *(f"sees {effect:g}" for effect in (*EFFECTS, 10.0))], rows)


def factorial_table() -> Table:
    rates = ["any wrong verdict", "three families", "only main effects", "covered", "sees a main effect", "interaction"]
    rows = []
    for factors, fraction in DESIGNS:
        design = parse_factorial([f"f{i}=x" for i in range(factors)], fraction)
        for n in SEEDS_OF_DESIGNS:
            name = design.in_words.partition(",")[0].removeprefix("all ")
            rows.append([name, str(n), *map(percent, factorial_rates(factors, fraction, n, STUDIES))])
    return Table(["combinations", "seeds", *rates], rows)


def saves_table() -> Table:
    rows = []
    for seeds in SEEDS:
        verdicts = decisions_on_published_checkpoints(seeds)
        rate = share_with_wrong_verdict(verdicts)
        error = (rate * (1 - rate) / len(verdicts)) ** 0.5
        rows.append([str(seeds), f"{len(verdicts):,}", f"{100 * rate:.1f} ± {100 * error:.1f} %"])
    return Table(["seeds", "studies", "wrong verdicts"], rows)


def cluster_table() -> Table:
    rows = [
        [
            str(n),
            "log-normal" if unequal else "equal",
            str(seeds),
            *map(percent, wrong_verdicts_with_clusters(n, unequal, seeds, STUDIES_OF_ITEMS)),
        ]
        for n in (3, 4, 10, 40)
        for unequal in (False, True)
        for seeds in (2, 5)
    ]
    return Table(["passages", "sizes", "seeds", "any wrong verdict", "questions alone"], rows)


def published_table() -> Table:
    rows = [[pair, points, noise, words, ends] for pair, points, noise, ends, words in published.compared_corpora("−")]
    return Table(["", "points", "noise of the items", "verdict", "95 % over tasks"], rows)


def spending_table() -> Table:
    """A table of the significance level of each interim analysis in a study of two arms that adds seeds until it is
    decided; a row for each largest number of seeds."""
    rows = [
        [str(most), *(f"{100 * LEVEL * alpha_share(n, most):.2f} %" if n <= most else "" for n in range(2, 11))]
        for most in (3, 5, 10)
    ]
    return Table(["most seeds", *(f"look at {n}" for n in range(2, 11))], rows, "Level of each look, two arms")


def rates_table(head: list[str], rates: Callable[..., list[float]], *cases: Iterable, studies: int = 0) -> Table:
    """A table of rates in percent, with a row for each combination of cases. `rates`: a function of a case and the
    number of studies; `cases`: the values of each of its other arguments; `studies`: how many are simulated of each
    kind; 0: STUDIES."""
    rows = [[*map(str, case), *map(percent, rates(*case, studies or STUDIES))] for case in product(*cases)]
    return Table(head, rows)


def make_tables() -> dict[str, list[Table]]:
    """The tables of the page, {title of the section: its tables in order}."""
    wrong = "any wrong verdict"
    margins = (f"wrongly equivalent, margin {margin:g}" for margin in MARGINS)
    fixed = ["arms", "seeds", wrong, *margins, "covered"]
    power = ["arms", "seeds", *(f"sees {effect:g}" for effect in EFFECTS), "all equivalent within 2"]
    looks = ["arms", "most seeds", wrong, "with a margin", "without alpha spending", "wrongly equivalent"]
    groups = ["groups", "arms", "seeds", wrong, "off the groups always"]
    floor = ["seeds", "A/A runs", "all alike", "shared seeds", "arm noisier", "arm noisier, no floor"]
    kinds = [f"{rule}: {kind}" for rule in ("line", "largest size") for kind in ("right", "wrong", "undecided")]
    few_groups = rates_table(
        groups, wrong_verdicts_with_few_groups, (3, 4, 10), (2, 6), (2, 5), studies=STUDIES_OF_ITEMS
    )
    return {
        "The words of a verdict": [ratio_table()],
        "How often a verdict is wrong": [rates_table(fixed, fixed_seed_rates, ARMS, SEEDS)],
        "What a study sees": [rates_table(power, power_rates, ARMS, SEEDS)],
        "Seeds added until it is decided": [
            rates_table(looks, sequential_rates, ARMS, MOST_SEEDS),
            stopping_table(),
            spending_table(),
        ],
        "Factorials": [factorial_table()],
        "Items that share a passage": [cluster_table()],
        "Few groups of items": [few_groups],
        "A stored noise floor": [
            rates_table([*floor, "sees 3", "sees 3, no floor"], noise_floor_rates, (2, 3, 5), (3, 5, 10))
        ],
        "A ladder of sizes": [
            rates_table(
                ["truth", "seeds", *kinds, "covered"], ladder_rates, LADDER_KINDS, LADDER_SEEDS, studies=LADDERS
            )
        ],
        "On numbers that others published": [published_table(), saves_table()],
    }


def with_tables(page: str, tables: dict[str, list[Table]]) -> str:
    """A page of Markdown with its tables replaced by new ones. `tables`: {title of a section: its tables in order}.
    Raises ValueError where a section of the page has another number of tables."""
    blocks, section, unplaced = page.rstrip("\n").split("\n\n"), "", {title: list(of) for title, of in tables.items()}
    for i, block in enumerate(blocks):
        if block.startswith("## "):
            section = block.removeprefix("## ")
        elif block.startswith("|"):
            if not unplaced.get(section):
                raise ValueError(f"{PAGE} has more tables under {section!r} than are made")
            blocks[i] = markdown_table(unplaced[section].pop(0))
    if lacking := [title for title, rows in unplaced.items() if rows]:
        raise ValueError(f"{PAGE} has fewer tables than are made under {', '.join(map(repr, lacking))}")
    return "\n\n".join(blocks) + "\n"


def main(argv: list[str] | None = None) -> int:
    parser = answers.Parser(prog="python -m tests.calibration.tables", description=__doc__)
    answers.add_format_option(parser)
    args = parser.parse_args(argv)
    tables = make_tables()
    write_text(PAGE, with_tables(PAGE.read_text(encoding="utf-8"), tables))
    if args.format == "json":
        rows = [{"section": title, **table._asdict()} for title, of in tables.items() for table in of]
        print(answers.json_answer("calibration", {"written": str(PAGE), "tables": rows}))
    else:
        print(PAGE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
