"""python -m eval.report.undecided POS=alibi ...: which arms more seeds may decide, a line each.

By the primary metric, as the report judges it. Exit codes: 0, none; 3, some; 2, bad request.
"""

import sys

from ablations.rundir import Exit, printable
from eval.report import request
from eval.report.findings import Findings, gather


def undecided(f: Findings) -> dict[str, str]:
    """{arm: its verdict} of the arms that are undecided for lack of seeds; those that have too few items are left
    out.

    Raises:
        ValueError: when the baseline has no result in the primary metric.
    """
    if not f.results[f.primary][f.baseline]:
        raise ValueError(f"no run of {f.baseline} has a result in {f.primary}, which decides")
    compared = f.compared.get(f.primary, {})
    return {
        arm: f.decision(arm, f.primary).words
        for arm, comparison in compared.items()
        if not f.decision(arm, f.primary).decided and comparison.enough_items
    }


def main(words: list[str]) -> int:
    try:
        requested = request.parse(words)
        arms = undecided(gather(requested.study, requested.noise, requested.beside))
    except ValueError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return Exit.INVALID
    for arm, verdict in arms.items():
        print(printable(f"{arm}: {verdict}"))
    return Exit.UNDECIDED if arms else Exit.FINISHED


if __name__ == "__main__":
    from ablations.study import from_anywhere

    sys.exit(main(from_anywhere(sys.argv[1:])))
