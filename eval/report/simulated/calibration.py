"""`make calibrate`: writes docs/statistics.md, on the error rates and the power of the verdicts (error_rates.py).

tests/test_calibration.py checks the page.
"""

import sys
from pathlib import Path
from typing import Any

from ablations import answers
from ablations.factorial import parse_factorial
from ablations.safe_files import write_text
from eval.report.document.blocks import Section, Table
from eval.report.document.formats import markdown
from eval.report.sections import published
from eval.report.simulated.error_rates import (
    EFFECTS,
    ITEMS_PER_CLUSTER,
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
from eval.statistics.bootstrap import bootstrap, interval
from eval.statistics.comparison import FEWEST_ITEMS
from eval.statistics.parts import LEVEL
from eval.statistics.sequential import alpha_share
from eval.statistics.simulation import BETTER, EQUIVALENT, simulate_sequential
from eval.statistics.verdicts import verdict

PAGE = Path("docs/statistics.md")
STUDIES = 20_000  # of each kind: a rate of 5 % has a standard error of 0.15 %
ARMS, SEEDS, MOST_SEEDS = (2, 5), (2, 3, 5, 10), (2, 3, 5, 10, 20)
STUDIES_OF_ITEMS = 4000  # of each kind: five times as many numbers each; standard error 0.35 %

DESIGNS = ((2, "1"), (3, "1"), (4, "1/2"), (4, "1"))  # factors, and which fraction of their combinations
SEEDS_OF_DESIGNS = (2, 3, 5)
LADDERS = 2000  # of each kind, three arms each
LADDER_SEEDS = (2, 3, 5)

HEAD = """\
One of four verdicts: **better**, **worse**, **equivalent** within a margin that was named before the runs, or
**undecided**, with what is missing in seeds and hours. One seed decides nothing. Formulas and sources stand at the head
of each file in `eval/statistics`: `seeds.py`, `items.py`, `parts.py`, `comparison.py`, `verdicts.py`, `sequential.py`.

**The rule**, in five steps:

1. **The difference** of an arm from the baseline is the mean over the seeds that both have. Arms of one seed saw the
   same batches in the same order and were asked the same items, so what they share cancels.
2. **Its noise** has two parts. That of the *seeds* is the variance that remains when the means of arms and of seeds
   are taken out, pooled over all arms: with two arms the paired t-test, with two arms and two seeds the ordinary one.
   That of the *items* is the jackknife's variance over held-out documents and questions; what shares a passage, a
   document or the document's source (a package) counts as one item: the corpus `pydocs` has four. With so few, t is
   large, and more seeds do not make up for it: see "More groups of held-out text". The interaction of seeds and
   items is in both variances and is subtracted from one of them: see "Few groups of items". Tasks that are made from
   the same documents share their groups: what a group adds to the difference is summed over the tasks.
3. **Better or worse**: the difference is larger than sqrt(t1² v1 + t2² v2), where v are the two variances and t the
   97.5 % quantiles of Student's t with the degrees of freedom of each. Of several arms the p-values are corrected by
   Holm's method.
4. **Equivalent**: two one-sided tests of 5 % each say that the difference lies within the margin.
5. **Undecided**: all else. The report then says how many seeds would decide, if difference and noise stay as they are,
   or that only more groups of items would. For this it uses the same noise estimate as `make plan`.

This page is made by `make calibrate`: studies are simulated with fixed seeds and judged by the same rules as real ones
(`eval/statistics/simulation.py`; `tests/test_calibration.py` holds that it judges as the report does, and compares
rates here with studies of its own). Results are normal: an arm's mean, what the arms of a seed share (standard
deviation 1), and the scatter of one run (standard deviation 1, the unit of effects and margins below). Most tables have
the noise of seeds alone, and say so: a real study has that of its items besides, which is in "Items that share a
passage"."""

WORDS = """\
"better by 0.161 (8 × noise, p = 0.0095)": the difference is 0.161 in the unit of the metric, in the direction that is
better for the metric; it is 8 times its standard error, which is what **× noise** refers to; and **p** is the
two-sided p-value: how often arms that do not differ would differ by as much, corrected for the number of arms. The
ratio alone misleads: a standard error that was estimated from few seeds or few groups of items (its **degrees of
freedom**, d.o.f.) is itself badly known, and 8 times it can be p = 0.01. How many times its noise a single difference
has to be for 5 %, by the degrees of freedom of that noise:"""

ANSWER = """\
A report opens with a sentence such as "of 6 arms pos=alibi has the lowest bits/byte, 0.174 below the baseline; it
cannot be told from pos=rotary and is ahead of every other arm". Against the baseline it repeats the verdicts. Whether
the leading arm is ahead of another one is a claim of its own, and the leader was chosen by its result, so these
p-values are multiplied by the number of all pairs of arms. Of simulated studies of equal arms (2,000 each of 3, 4 and 6
arms with 3 or 5 seeds; `eval/report/comparison/leading.py`) 0.8 to 3.1 % called the leader better than another arm, 3.2
to 23 % would have without the correction; in 4.1 to 6.2 % table and answer together had any wrong claim."""

DEGREES_OF_FREEDOM = (1, 2, 3, 4, 6, 10, 20, 60)  # of the table beside WORDS

GROUPS = """\
Where most of a difference's noise is that of the items ("from the items" in the report's table), seeds do not help:
four groups of held-out text give at most three degrees of freedom, however many runs there are, and fewer where the
groups differ in size (Kish's effective number of groups, less one). What does help, before the runs:

* **Your own text**, `DATA='my/*.jsonl.zst'`: 2 % of the documents are held out, and each is a group of its own, unless
  its metadata name a `package`, `repository` or `repo_name`. The loss is measured on 80,000 bytes, cut into pieces of
  at most 4,096 bytes; the first piece of every document is used before the second of any. That gives about 20 groups
  if documents are long and hundreds if they are short.
* **A larger share**: `share: 0.05` in a corpus file (a file of `data/corpora`, or a `.yaml` of yours that DATA names)
  holds out 5 % of its documents.
* **More packages** of a corpus of packages: its `held_out:` lists them. A copy of `data/corpora/pydocs.yaml` with ten
  names there and without its `sha256` is such a corpus; it is a different text from `pydocs`, and results on the two
  are not compared.
* **More corpora to be judged on**, `SET=eval.corpora=pydocs,pycode`: the loss is then the mean over them.

How many groups a run was judged on is in its report, under "Task by task"; what a study sees with them `make plan` says
when a record of the same baseline is there."""

FIXED = f"""\
A fixed number of seeds; {STUDIES:,} studies of each kind. Noise of seeds only: no item scatters.
**Any wrong verdict**: all arms are equal, and at least one is called better or worse: at most {LEVEL:.0%} by design.
With several arms it is lower, because Holm's correction is conservative there.
**Wrongly equivalent**: every arm differs from the baseline by exactly the margin, and at least one is called
equivalent. **Covered**: the 95 % interval of one arm holds its true difference."""

POWER = """\
Noise of seeds only, so that a real study sees less. One arm differs by so many standard deviations of a run, the
others not at all: how often it is called better. Last: how often all arms of a study without differences are called
equivalent, within 2 standard deviations."""

SEQUENTIAL = """\
`MORE=auto`: a look after every seed from the second on, until every arm is decided or the most seeds are there. Noise
of seeds only: where only more groups of items would decide, a study stops earlier, undecided (docs/studies.md).
**Any wrong verdict**, at any of the looks, of equal arms; with a margin too, which makes studies stop early.
**Without alpha spending**: the same, if every look had the whole level. **Wrongly equivalent**, at any look, of arms
that differ by exactly the margin of 2. Then how often an arm that differs by so much is called better in the end, and
the mean number of seeds at which the study stopped (2 arms; margin 2)."""

FACTORIALS = """\
`CROSS=`: every combination of two values of each factor, or a fraction. **Any wrong verdict**: all combinations are
equal, and any of them, any main effect or any interaction is called better or worse. Holm's correction is for all of
these together, as one family. **Three families**: the same, if combinations, main effects and interactions had 5 %
each. **Only main effects**: the factors have effects of 4, 3, 2 ... and do not interact: how often any interaction is
called one. **Covered**: the 95 % interval of the first interaction holds its true value. Then how often a main effect
of 2 is called better, and an interaction of 4 (of two factors), where there is nothing else."""

SAVES = """\
And a check of plausibility on numbers that nobody simulated: the accuracies of each task at all saves of these three
runs (63, 34 and 63 saves; `eval/report/sections/published_saves.csv`). Neighbouring saves of a
run are taken as pairs, and so many pairs in a row as the seeds of two arms, in the order one-two, two-one, two-one,
one-two ..., so that progress favours neither. Both arms are the same run, so any verdict is a wrong one; each of the 27
tasks is a study. These scores are no normal numbers: some tasks have 71 questions, some answer everything alike. Saves
of one run are not runs of other seeds: neighbours have most of their training in common. Nor are the studies
independent: the 27 tasks of a save are answered by the same weights, so that the standard error after ±, which is that
of independent studies, is too small. So it shows no more than that the rates are not far off."""

CLUSTERS = f"""\
Two equal arms, {ITEMS_PER_CLUSTER} questions to a passage; passages, questions and seeds each have a standard
deviation of one. Each passage counts as one item (the sum of its questions). Sizes of passages are equal or
log-normal (sigma 1). A passage stands for any group of items: the four packages of `pydocs` are four. **Questions
alone**: what it would be
if every question were taken as independent. {STUDIES_OF_ITEMS:,} studies of each kind; fewer than {FEWEST_ITEMS}
independent items decide nothing."""

FEW_GROUPS = f"""\
Equal arms on few groups of held-out text, as the four of `pydocs`. Groups have a standard deviation of 1, and so has
what is left of a run on a single group; that interaction of seeds and groups shows in both parts of the noise, and
is to be counted once. With few groups, subtracting it from the groups' variance often leaves an estimate that is not
above zero, although the groups do add noise. So it is subtracted from whichever variance leaves the wider interval.
**Off the groups always**: the rate if it were always subtracted from the groups' variance. {STUDIES_OF_ITEMS:,}
studies of each kind."""

FLOOR = """\
Two arms, judged by their own noise and that of a stored noise floor (`NOISE_FLOOR=`) of so many A/A runs, which are
runs of the baseline that differ in the seed alone; noise of seeds only. The first four columns are how often two equal
arms have a wrong verdict. **All alike**: all runs have the same noise. **Shared seeds**: what the arms of a seed share
is in the floor's noise as well (standard deviation 1), which makes the verdicts careful. **Arm noisier**: the new arm
scatters twice as much as the baseline, of which the floor knows nothing; then it errs more often than without a floor,
which is the next column. The last two columns are how often an arm that differs by 3 is called better, with the floor
and without."""

LADDER = f"""\
`make ladder`: three sizes, the largest with 5 % of the target's compute, three arms, a run's loss with a standard
deviation of 0.4 %; {LADDERS:,} simulated ladders of each kind (`ablations/plan/simulated_ladders.py`), each arm a
verdict. **Line**: by the line through all sizes, read at the target. **Largest size**: by the runs of that size, taken
for the target. **Right**, **wrong**: called better or worse, and it is so at the target or is not. The first kind of
arms has the baseline's scaling law with other constants; the second a difference that changes its sign beyond the
largest size: half of them before the target, half after it. **Covered**: the line's 90 % interval holds the true
difference at the target."""

PUBLISHED = """\
The accuracies of 27 tasks that BigScience stored for its 1.3B models of OSCAR, C4 and The Pile at 112B tokens (read
from `eval/report/sections/published.yaml`, which has the source). Their answers to single questions are not public, and
there is one run of each: so the items' part is that of independent samples, and of the seeds nothing is known. The
verdict is therefore undecided for all three pairs, whatever the difference. The last column takes the 27 tasks as a
sample of tasks there could be."""


def percent(rate: float) -> str:
    return f"{100 * rate:.1f} %"


def ratio_table() -> Table:
    """A table of how many times its standard error a difference has to be for p = 5 %, by the degrees of freedom of
    that standard error."""
    from scipy.special import stdtrit

    ratios = [f"{-float(stdtrit(dof, LEVEL / 2)):.2f}" for dof in DEGREES_OF_FREEDOM]
    return Table(["degrees of freedom", *map(str, DEGREES_OF_FREEDOM)], [["times the noise", *ratios]])


def fixed_seeds_table() -> Table:
    head = ["arms", "seeds", "any wrong verdict", *(f"wrongly equivalent, margin {m:g}" for m in MARGINS), "covered"]
    rows = [[str(a), str(n), *map(percent, fixed_seed_rates(a, n, STUDIES))] for a in ARMS for n in SEEDS]
    return Table(head, rows)


def power_table() -> Table:
    head = ["arms", "seeds", *(f"sees {effect:g}" for effect in EFFECTS), "all equivalent within 2"]
    rows = [[str(a), str(n), *map(percent, power_rates(a, n, STUDIES))] for a in ARMS for n in SEEDS]
    return Table(head, rows)


def sequential_table() -> Table:
    head = ["arms", "most seeds", "any wrong verdict", "with a margin", "without alpha spending", "wrongly equivalent"]
    rows = [[str(a), str(n), *map(percent, sequential_rates(a, n, STUDIES))] for a in ARMS for n in MOST_SEEDS]
    return Table(head, rows)


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


def few_groups_table() -> Table:
    rows = [
        [
            str(groups),
            str(arms),
            str(n),
            *map(percent, wrong_verdicts_with_few_groups(groups, arms, n, STUDIES_OF_ITEMS)),
        ]
        for groups in (3, 4, 10)
        for arms in (2, 6)
        for n in (2, 5)
    ]
    return Table(["groups", "arms", "seeds", "any wrong verdict", "off the groups always"], rows)


def noise_floor_table() -> Table:
    head = [
        "seeds",
        "A/A runs",
        "all alike",
        "shared seeds",
        "arm noisier",
        "arm noisier, no floor",
        "sees 3",
        "sees 3, no floor",
    ]
    rows = [[str(n), str(aa), *map(percent, noise_floor_rates(n, aa, STUDIES))] for n in (2, 3, 5) for aa in (3, 5, 10)]
    return Table(head, rows)


def ladder_table() -> Table:
    kinds = ("right", "wrong", "undecided")
    head = ["truth", "seeds", *(f"{rule}: {kind}" for rule in ("line", "largest size") for kind in kinds), "covered"]
    rows = [
        [name, str(n), *map(percent, ladder_rates(name, n, LADDERS))] for name in LADDER_KINDS for n in LADDER_SEEDS
    ]
    return Table(head, rows)


def published_table() -> Table:
    names = published.load_published()["per_task"]["columns"][1:]
    rows = []
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            c, strata = published.task_difference(one, other)
            low, high = interval(bootstrap(strata, tasks=True), len(strata))
            ends = f"{low:+.2f} to {high:+.2f}"
            rows.append([f"{one} − {other}", f"{c.difference:+.2f}", f"{c.noise:.2f}", verdict(c, True, 2).words, ends])
    return Table(["", "points", "noise of the items", "verdict", "95 % over tasks"], rows)


def sections() -> list[Section]:
    return [
        Section("", [HEAD]),
        Section("The words of a verdict", [WORDS, ratio_table()]),
        Section("The answer of a report", [ANSWER]),
        Section("More groups of held-out text", [GROUPS]),
        Section("How often a verdict is wrong", [FIXED, fixed_seeds_table()]),
        Section("What a study sees", [POWER, power_table()]),
        Section(
            "Seeds added until it is decided", [SEQUENTIAL, sequential_table(), stopping_table(), spending_table()]
        ),
        Section("Factorials", [FACTORIALS, factorial_table()]),
        Section("Items that share a passage", [CLUSTERS, cluster_table()]),
        Section("Few groups of items", [FEW_GROUPS, few_groups_table()]),
        Section("A stored noise floor", [FLOOR, noise_floor_table()]),
        Section("A ladder of sizes", [LADDER, ladder_table()]),
        Section("On numbers that others published", [PUBLISHED, published_table(), SAVES, saves_table()]),
    ]


def spending_table() -> Table:
    """A table of the significance level of each interim analysis in a study of two arms that adds seeds until it is
    decided; a row for each largest number of seeds."""
    rows = [
        [str(most), *(f"{100 * LEVEL * alpha_share(n, most):.2f} %" if n <= most else "" for n in range(2, 11))]
        for most in (3, 5, 10)
    ]
    return Table(["most seeds", *(f"look at {n}" for n in range(2, 11))], rows, "Level of each look, two arms")


def tables(parts: list[Section]) -> list[dict[str, Any]]:
    """The tables of a page as JSON, for programs: [{"section": title of the section, "title", "head": titles of the
    columns, "rows"}]. `parts`: the sections of the page."""
    return [
        {"section": section.title, "title": block.title, "head": block.head, "rows": block.rows}
        for section in parts
        for block in section.blocks
        if isinstance(block, Table)
    ]


def main(argv: list[str] | None = None) -> int:
    parser = answers.Parser(prog="python -m eval.report.simulated.calibration", description=__doc__)
    answers.add_format(parser)
    args = parser.parse_args(argv)
    parts = sections()
    write_text(PAGE, markdown("How the statistics decide", parts))
    if args.format == "json":
        print(answers.answer("calibration", {"written": str(PAGE), "tables": tables(parts)}))
    else:
        print(PAGE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
