"""`make laws`: a scaling law fitted to finished runs, and drawn.

python -m ablations.plan.laws RUN_DIR ...        # parameters, tokens, held-out bits per byte of each
"""

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from ablations import rundir
from ablations.drawing import SERIES, Line, sheet
from ablations.drawing import lines as draw
from ablations.plan.best_size import envelope, isoflop
from ablations.plan.law_fit import COVERAGE, CannotTell, Fit, Point, fit, without_largest
from ablations.schedule import DECAY_ENDS
from ablations.values import ConfigError, human
from model.config import ModelConfig
from model.count import parameters

SEVERAL_FALLS = "warmup-stable-decay-stable"  # the schedule that falls at each of DECAY_ENDS
NO_FLOOR = 0.01  # of the least loss, below which the irreducible loss is not told from 0; untuned
SAME_SHARE = 1e-3  # of the budget's share at which weights were kept: one step after a fall the rate is high again


def read_points(folders: Sequence[Path]) -> list[Point]:
    """Parameters, tokens and held-out bits per byte of finished runs.

    A run of the schedule warmup-stable-decay-stable gives a point for each of its falls whose weights were kept and
    judged (layout.eval_at); other weights on the way are those of a rate that has not fallen, and are left out.

    Raises:
        ConfigError: for a folder that is no finished and judged run, or one that was judged on other text, by name.
    """
    resolved = [folder.resolve() for folder in folders]
    if repeated := [folder for i, folder in enumerate(folders) if resolved[i] in resolved[:i]]:
        raise ConfigError(f"{repeated[0]} is named twice")
    points: list[Point] = []
    judged = ""
    for folder in folders:
        run = rundir.read_run(folder)
        if not run or not (folder / rundir.EVAL).exists():
            raise ConfigError(
                f"{folder} is no run that is finished and judged: {rundir.RUN} or {rundir.EVAL} is missing"
            )
        try:
            model = ModelConfig(**run["config"]["model"])
            text = str(run["config"]["eval"]["corpora"])
            train = run["config"]["train"]
            budget = train.get("budget", "tokens")
            tokens, schedule = float(train["tokens"]), str(train.get("schedule", "cosine"))
            losses = {tokens: _loss(folder / rundir.EVAL)}
            if schedule == SEVERAL_FALLS:
                for path in sorted(folder.glob(rundir.eval_name().replace(".json", "-step_*.json"))):
                    scores = rundir.read_json(path) or {}
                    share = float(scores["tokens"]) / (float(train.get("decay_tokens") or 0) or tokens)
                    if any(math.isclose(share, end, rel_tol=SAME_SHARE) for end in DECAY_ENDS):
                        losses[float(scores["tokens"])] = _loss(path)
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"{folder}: {rundir.RUN} or {rundir.EVAL} lacks {error}") from None
        if budget != "tokens":
            raise ConfigError(f"{folder} ended by a wall clock: laws are fitted to runs of a budget in tokens")
        if judged and text != judged:
            raise ConfigError(f"{folder} was judged on {text}, the runs before it on {judged}: no common loss")
        judged = text
        points += [Point(parameters(model), count, loss, str(folder)) for count, loss in sorted(losses.items())]
    return points


def _loss(path: Path) -> float:
    """The bits per byte of an evaluation."""
    scores = rundir.read_json(path) or {}
    return float(scores["bits_per_byte"]["value"])


def describe(law: Fit) -> list[str]:
    """The fit as text."""
    out = []
    for name, value in law.values.items():
        low, high = law.interval(lambda values, name=name: values[name])  # type: ignore[misc]
        out.append(f"{name:6} {value:.4g}  ({low:.4g} to {high:.4g}, {COVERAGE:.0%} of {len(law.samples)} resamples)")
    return out


def figure(law: Fit) -> str:
    """Every run and the fitted loss, by tokens, a line for each size (the largest SERIES of them)."""
    curves = []
    for colour, n in enumerate(sorted({point.n for point in law.points})[-SERIES:]):
        same_size = sorted((point for point in law.points if point.n == n), key=lambda point: point.d)
        tokens = [same_size[0].d * (same_size[-1].d / same_size[0].d) ** (i / 24) for i in range(25)]
        curves += [
            Line("", colour, [point.d for point in same_size], [point.loss for point in same_size], "point"),
            Line(f"{human(n)} parameters", colour, tokens, [law.loss(n, d) for d in tokens]),
        ]
    return draw(f"Fitted loss ({law.form})", curves, "tokens", "loss", logx=True, logy=True)


def other_ways(points: Sequence[Point]) -> list[str]:
    """Hoffmann's first two ways, as far as finished runs allow them."""
    out = []
    for name, way in (("way 1, envelope", envelope), ("way 2, equal compute", isoflop)):
        try:
            coefficient, exponent = way(points)
            out.append(f"{name}: N = {coefficient:.3g} C^{exponent:.3f}")
        except CannotTell as error:
            out.append(f"{name}: cannot be told: {error}")
    return out


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN_DIR", help="of a finished run")
    parser.add_argument("--form", choices=["hoffmann", "kaplan", "compute"], default="hoffmann")
    parser.add_argument("--figure", type=Path, help="an SVG to write")
    args = parser.parse_args(argv)
    try:
        if args.figure and not args.figure.absolute().parent.is_dir():
            raise ConfigError(f"TO={args.figure}: there is no folder {args.figure.parent}")
        if not args.runs:
            raise ConfigError("no runs are named: RUNS='folder folder ...', finished runs")
        points = read_points(args.runs)
        law = fit(points, args.form)
        print(f"{args.form}, {len(points)} points of {len(args.runs)} runs", *describe(law), sep="\n")
        if args.form == "hoffmann":
            if law.interval(lambda values: values["E"])[0] < NO_FLOOR * min(point.loss for point in points):
                print(
                    "E may be 0: these runs do not show a loss that stays, and beyond them the law is not to be trusted"
                )
            print(*other_ways(points), sep="\n")
        if args.figure:
            rundir.write_text(args.figure, sheet([figure(law)]))
        try:
            left_out, errors = without_largest(points, args.form)
        except CannotTell as error:
            raise CannotTell(
                f"the law cannot be checked at its largest size, as the others are too few: {error}"
            ) from None
        worst = max(errors, key=abs)
        print(f"without its largest size, {human(left_out[0].n)} parameters, it is off there by {worst:+.2%} at most")
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
