"""`make laws`: a scaling law fitted to finished runs, and drawn.

python -m ablations.plan.laws RUN_DIR ...        # fits to parameters, tokens and held-out bits per byte of each run
"""

import argparse
import math
import sys
from collections.abc import Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

from ablations import answers, rundir, safe_files
from ablations.drawing import SERIES, Line, combined_figures, line_plot
from ablations.plan.best_size import fit_envelope, fit_isoflop
from ablations.plan.held_out_loss import HeldOutLoss, evaluation_differences, read_held_out_loss
from ablations.plan.law_fit import COVERAGE, FittedLaw, Point, UndeterminedLaw, error_on_largest_size, fit_law
from ablations.schedule import DECAY_ENDS
from ablations.values import ConfigError, short_number, unknown_choice_error
from model.config import ModelConfig
from model.count import count_parameters

SEVERAL_DECAYS = "warmup-stable-decay-stable"  # the schedule that falls at each of DECAY_ENDS
FORMS = ("hoffmann", "kaplan", "compute")  # see law_fit.py
NO_FLOOR_SHARE = 0.01  # of the least loss; an irreducible loss whose interval begins below it may be 0; untuned
SAME_MOMENT = 1e-3  # relative tolerance of the moment of a decay: one step after it the learning rate is high again


def read_points(folders: Sequence[Path]) -> list[Point]:
    """Read the points of finished runs for fitting a scaling law, in the order of `folders`. Each run gives a point:
    its number of parameters, its training tokens, and its held-out loss in bits per byte.

    A run with the schedule warmup-stable-decay-stable also gives a point at the end of each earlier decay of the
    learning rate, if its weights were kept and evaluated (layout.eval_at). Other kept weights are left out, since the
    learning rate had not decayed then.

    Args:
        folders: the run directories, each with run.json and eval.json.

    Raises:
        ConfigError: a folder cannot be used; the message names it. It is given twice, has no finished and evaluated
            run, has a run whose budget is a time, or was evaluated differently from the first.
    """
    resolved = [folder.resolve() for folder in folders]
    if repeated := [folder for i, folder in enumerate(folders) if resolved[i] in resolved[:i]]:
        raise ConfigError(f"{repeated[0]} is named twice")
    points: list[Point] = []
    first_corpora = ""
    first: HeldOutLoss | None = None
    for folder in folders:
        run = rundir.read_run(folder)
        if not run or not (folder / rundir.EVAL).exists():
            raise ConfigError(
                f"{folder} is no run that is finished and judged: {rundir.RUN} or {rundir.EVAL} is missing"
            )
        try:
            model = ModelConfig(**run["config"]["model"])
            corpora = str(run["config"]["eval"]["corpora"])
            train = run["config"]["train"]
            budget = train.get("budget", "tokens")
            tokens, schedule = float(train["tokens"]), str(train.get("schedule", "cosine"))
            loss = _required_loss(folder / rundir.EVAL)
            losses = {tokens: loss.value}
            if schedule == SEVERAL_DECAYS:
                for path in sorted(folder.glob(rundir.eval_file_name().replace(".json", "-step_*.json"))):
                    scores = safe_files.read_json(path) or {}
                    share = float(scores["tokens"]) / (float(train.get("decay_tokens") or 0) or tokens)
                    if any(math.isclose(share, end, rel_tol=SAME_MOMENT) for end in DECAY_ENDS):
                        losses[float(scores["tokens"])] = _required_loss(path).value
        except safe_files.Damaged:
            raise
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ConfigError(f"{folder}: {rundir.RUN} or {rundir.EVAL} lacks {error}") from None
        if budget != "tokens":
            raise ConfigError(f"{folder} ended by a wall clock: laws are fitted to runs of a budget in tokens")
        if first_corpora and corpora != first_corpora:
            raise ConfigError(
                f"{folder} was judged on {corpora}, the runs before it on {first_corpora}: no common loss"
            )
        first_corpora, first = corpora, first or loss
        if differs := evaluation_differences(first, loss):
            raise ConfigError(f"{folder} was evaluated differently from {folders[0]}: {differs}: no common loss")
        if not tokens > 0:
            raise ConfigError(f"{folder}: train.tokens in {rundir.RUN} is {tokens:g}")
        points += [Point(count_parameters(model), d, loss, str(folder)) for d, loss in sorted(losses.items())]
    return points


def _required_loss(path: Path) -> HeldOutLoss:
    """The held-out loss in the file eval.json, or eval-step_N.json, at `path`. Raises Damaged where the file is missing
    or damaged."""
    loss = read_held_out_loss(path)
    if loss is None:
        raise safe_files.Damaged(f"{path} is missing")
    return loss


def _write(path: Path, text: str) -> None:
    """Write a text file. Raises ConfigError where the file cannot be written."""
    try:
        safe_files.write_text(path, text)
    except OSError as error:
        raise ConfigError(f"TO={path}: {safe_files.storage_error_message(error) or error.strerror}") from None


def describe_law(law: FittedLaw) -> list[str]:
    """A fitted law as lines of text: each constant with its bootstrap interval."""
    out = []
    for name, value in law.values.items():
        low, high = law.interval(itemgetter(name))
        out.append(f"{name:6} {value:.4g}  ({low:.4g} to {high:.4g}, {COVERAGE:.0%} of {len(law.samples)} resamples)")
    return out


def law_svg(law: FittedLaw) -> str:
    """Draw the measured and the fitted losses against tokens, for the largest SERIES sizes: points for the runs, a line
    for each size. Returns SVG text."""
    curves = []
    for colour, n in enumerate(sorted({point.n for point in law.points})[-SERIES:]):
        same_size = sorted((point for point in law.points if point.n == n), key=lambda point: point.d)
        tokens = [same_size[0].d * (same_size[-1].d / same_size[0].d) ** (i / 24) for i in range(25)]
        curves += [
            Line("", colour, [point.d for point in same_size], [point.loss for point in same_size], "point"),
            Line(f"{short_number(n)} parameters", colour, tokens, [law.loss(n, d) for d in tokens]),
        ]
    return line_plot(f"Fitted loss ({law.form})", curves, "tokens", "loss", logx=True, logy=True)


def size_laws_by_approaches_1_and_2(points: Sequence[Point]) -> dict[str, tuple[float, float] | str]:
    """Fit the compute-optimal number of parameters, N = a C^b for C FLOPs, by Hoffmann's approaches 1 and 2. Returns
    {name of the approach: (a, b)}. In place of (a, b) is a sentence with the reason, where the runs do not determine
    them."""
    out: dict[str, tuple[float, float] | str] = {}
    for name, approach in (("way 1, envelope", fit_envelope), ("way 2, equal compute", fit_isoflop)):
        try:
            out[name] = approach(points)
        except UndeterminedLaw as error:
            out[name] = str(error)
    return out


def describe_size_laws(size_laws: dict[str, tuple[float, float] | str]) -> list[str]:
    """The power laws of the compute-optimal number of parameters as lines of text. `size_laws`: the result of
    `size_laws_by_approaches_1_and_2`."""
    return [
        f"{name}: cannot be told: {law}" if isinstance(law, str) else f"{name}: N = {law[0]:.3g} C^{law[1]:.3f}"
        for name, law in size_laws.items()
    ]


def irreducible_loss_may_be_zero(law: FittedLaw) -> bool:
    """Whether the irreducible loss E of a fitted law may be 0: its interval begins below NO_FLOOR_SHARE of the least
    loss. False for laws without an E, whose form is not "hoffmann"."""
    least = min(point.loss for point in law.points)
    return law.form == "hoffmann" and law.interval(itemgetter("E"))[0] < NO_FLOOR_SHARE * least


def laws_content(law: FittedLaw, left_out: Sequence[Point], errors: Sequence[float]) -> dict[str, Any]:
    """The answer of `make laws` as an object for JSON.

    Args:
        law: the law fitted to all runs.
        left_out: the points of the largest size, from `error_on_largest_size`.
        errors: the relative error at each of these points, of the law fitted to the smaller sizes.
    """
    intervals = {name: law.interval(itemgetter(name)) for name in law.values}
    size_laws = size_laws_by_approaches_1_and_2(law.points) if law.form == "hoffmann" else {}
    return {
        "form": law.form,
        "points": [vars(point) for point in law.points],
        "values": {
            name: {"value": value, "low": intervals[name][0], "high": intervals[name][1]}
            for name, value in law.values.items()
        },
        "coverage": COVERAGE,
        "resamples": len(law.samples),
        "may_have_no_floor": irreducible_loss_may_be_zero(law),
        "other_ways": {
            name: {"problem": fitted} if isinstance(fitted, str) else {"coefficient": fitted[0], "exponent": fitted[1]}
            for name, fitted in size_laws.items()
        },
        "without_largest": {"parameters": left_out[0].n, "relative_errors": list(errors)},
    }


def main(argv: list[str] | None = None) -> int:
    parser = answers.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN_DIR", help="of a finished run")
    parser.add_argument("--form", default="hoffmann", help=", ".join(FORMS))
    parser.add_argument("--figure", type=Path, help="an SVG to write")
    parser.add_argument("--format", default="text", help="text or json")
    args = parser.parse_args(argv)
    as_json = args.format == "json"
    try:
        answers.extract_format([f"FORMAT={args.format}"])
        if args.form not in FORMS:
            raise unknown_choice_error("FORM", args.form, FORMS)
        if args.figure and not args.figure.absolute().parent.is_dir():
            raise ConfigError(f"TO={args.figure}: there is no folder {args.figure.parent}")
        if not args.runs:
            raise ConfigError("no runs are named: RUNS='folder folder ...', finished runs")
        points = read_points(args.runs)
        law = fit_law(points, args.form)
        if not as_json:
            print(f"{args.form}, {len(points)} points of {len(args.runs)} runs", *describe_law(law), sep="\n")
            if irreducible_loss_may_be_zero(law):
                print(
                    "E may be 0: these runs do not show a loss that stays, and beyond them the law is not to be trusted"
                )
            if args.form == "hoffmann":
                print(*describe_size_laws(size_laws_by_approaches_1_and_2(points)), sep="\n")
        if args.figure:
            _write(args.figure, combined_figures([law_svg(law)]))
        try:
            left_out, errors = error_on_largest_size(points, args.form)
        except UndeterminedLaw as error:
            raise UndeterminedLaw(
                f"the law cannot be checked at its largest size, as the others are too few: {error}"
            ) from None
        if as_json:
            print(answers.json_answer("laws", laws_content(law, left_out, errors)))
            return 0
        worst = max(errors, key=abs)
        print(
            f"without its largest size, {short_number(left_out[0].n)} parameters, it is off there "
            f"by {worst:+.2%} at most"
        )
    except ConfigError as error:
        answers.print_error(str(error), as_json)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
