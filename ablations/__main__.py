"""megahour: controlled ablations of decoder language models.

A study is one question; a run is the baseline plus one line; nothing else differs, and the code proves it.
"""

import argparse
import json
import os
import sys
import textwrap
from contextlib import suppress

from ablations import answers, rundir, safe_files
from ablations.budget import learning_rate
from ablations.config import ConfigError, Run, bundles, resolve, spread
from ablations.machine import has_gpu
from ablations.plan.checks import check_request
from ablations.plan.command import run as plan_ahead
from ablations.safe_files import Damaged
from ablations.site import site
from ablations.status import state, table, watch
from ablations.study import FACTORS, FOR_ALL_RUNS, HELP, Study, from_anywhere, from_args, left_out
from ablations.values import did_you_mean, human

COMMANDS = {
    "plan": "list the runs of a study and what they cost; ON=a100: on that hardware; BUDGET=...: what to train with it",
    "status": "where every run of a study stands",
    "show": "the complete configuration of every arm, and the line that makes it",
    "reference": "what every setting means, as Markdown; --write makes the comments of baseline.yaml anew",
    "card": "the identity card of a run directory, as JSON: what it is, which data, which metrics: RUN=folder",
    "diff": "what two sizes or presets set differently, line by line: A=bigscience-1b3 B=modern-1b3",
}


def main(argv: list[str]) -> int:
    parser = answers.Parser(
        prog="python -m ablations",
        description=__doc__,
        epilog=f"NAME=VALUE:\n{variables()}\n\nexample: python -m ablations plan POS=alibi SEEDS=3 TOKENS=2M\n"
        "every setting: python -m ablations reference",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    sub = parser.add_subparsers(dest="command", required=True, metavar="|".join(COMMANDS))
    for name, text in COMMANDS.items():
        command = sub.add_parser(
            name,
            help=text,
            description=text,
            epilog=parser.epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_argument("words", nargs="*", metavar="NAME=VALUE", help="the study; see below")
        if name == "status":
            command.add_argument("--watch", action="store_true", help="a live view")
        if name == "reference":
            command.add_argument("--write", action="store_true", help="make the comments of baseline.yaml anew")
    args = parser.parse_args(argv)
    as_json = answers.asks_for_json(argv)
    try:
        on_hardware = args.command == "plan" and any(word.startswith(("ON=", "BUDGET=")) for word in args.words)
        if not on_hardware:  # ablations/plan/command.py has formats of its own
            as_json, args.words = answers.take_format(args.words)
        if args.command == "reference":
            if args.words:
                raise ConfigError(f"reference takes no words, only --write: {' '.join(args.words)}")
            if as_json and args.write:
                raise ConfigError("--write has no FORMAT=json: it writes a file, and says nothing")
            if as_json:
                print(answers.answer("reference", answers.reference(resolve([("size", "nano")]))))
                return 0
            return reference(args.write)
        if args.command == "card":
            return identity(args.words)
        args.words = from_anywhere(args.words)
        if "SBATCH_GPUS_PER_NODE" in site():
            os.environ.setdefault("MEGAHOUR_GPU", "1")  # what is asked about runs there, not on this login node
        if args.command == "diff":
            return diff(args.words, as_json)
        if args.command == "plan" and (code := plan_ahead(args.words)) is not None:
            return code
        study = from_args(args.words)
        if args.command == "status" and args.watch:
            if as_json:
                raise ConfigError("a live view has no FORMAT=json: leave WATCH out, and ask again")
            watch(study)
            return 0
        if args.command == "plan":
            check_request(study)
        if as_json:
            kind, content = {
                "plan": ("plan", answers.plan),
                "status": ("status", answers.status),
                "show": ("configuration", answers.configuration),
            }[args.command]
            print(answers.answer(kind, content(study)))
            return 0
        return {"plan": plan, "status": status, "show": show}[args.command](study)
    except ConfigError as error:
        if as_json:
            print(answers.error(str(error)))
        print(f"error: {safe_files.printable(str(error))}", file=sys.stderr)
        return rundir.Exit.INVALID
    except KeyboardInterrupt:
        print("\ninterrupted; the same command continues", file=sys.stderr)
        return rundir.Exit.INTERRUPTED
    except OSError as error:
        reason = safe_files.storage_error(error)
        if not isinstance(error, BrokenPipeError) and not reason:
            raise
        # who reads has enough, as `| head` has, or the disk is full; what is left must not be written at exit either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if reason:
            print(f"error: {reason}", file=sys.stderr)
        return rundir.Exit.FAILED


def variables() -> str:
    """The help text about the NAME=VALUE words: for each word the setting behind it, its meaning and its choices."""
    from ablations.reference import choices

    lines = []
    for name, text in HELP.items():
        key = FACTORS[name][0] if name in FACTORS else FOR_ALL_RUNS.get(name, "")
        options = f" ({', '.join(choices(key))})" if key and choices(key) else ""
        lines += textwrap.wrap(f"{name:11} {key:13} {text}{options}", 116, subsequent_indent=" " * 26)
    return "\n".join(f"  {line}" for line in lines)


def plan(study: Study) -> int:
    from ablations.plan.reading import reading
    from ablations.plan.reliability import saves
    from ablations.plan.schedules import drawn_schedules
    from ablations.plan.study_cost import detectable_text
    from model.count import flops_per_token, parameters
    from model.memory import estimate

    print(f"{study.title}\n  question  {study.question}\n  expected  {study.expect}")
    if already := left_out(study):
        print(f"  left out, the baseline has it already: {', '.join(already)}")
    print()
    if study.design:
        aliasing = study.factorial.aliasing if study.factorial else []
        heading = ["What is told together, and how much of the other is in it:"] if aliasing else []
        print(study.design, *heading, *(f"  {line}" for line in aliasing), "", sep="\n")
    names = {
        cell.arm: cell.arm if cell.delta or cell.arm == "baseline" else f"{cell.arm} (baseline)" for cell in study.cells
    }
    width = max(map(len, names.values()))
    print(f"{'cell':>4}  {'arm':{width}} {'seed':>4}  {'parameters':>12}  {'tokens':>8}  {'FLOPs':>8}  directory")
    total = 0.0
    for i, cell in enumerate(study.cells):
        with suppress(Damaged):  # the state says so
            cell.check_recorded()
        run = cell.run
        tokens, flops = "by clock", "by clock"  # only training tells
        if not run.by_clock:
            tokens, flops = human(run.tokens), f"{run.tokens * flops_per_token(run.model):.1e}"
            total += run.tokens * flops_per_token(run.model)
        print(
            f"{i:4}  {names[cell.arm]:{width}} {cell.seed:4}  "
            f"{parameters(run.model):12,}  {tokens:>8}  {flops:>8}  {cell.dir}  [{state(cell)['state']}]"
        )
    layout = study.base.layout
    replicas = max(layout.processes // layout.tp, 1)
    base = spread(study.base, replicas)
    layout = base.layout
    accumulate = base.train.batch // (layout.micro_batch * replicas)
    shape = (layout.zero, replicas, accumulate, has_gpu(), layout.tp)
    memory = max(
        estimate(cell.run.model, layout.micro_batch, cell.run.train.precision, *shape)["total"] for cell in study.cells
    )
    length = f"{base.train.budget} of wall clock each, of as many steps and tokens as it allows"
    if not base.by_clock:
        length = f"{base.steps} steps, {total:.2e} FLOPs in all"
    print(
        f"\n{len(study.cells)} runs of {length}, {base.train.precision}, "
        f"size {base.size}; at most {memory / 1e9:.3g} GB of tensors on each rank, by estimate"
    )
    if study.criteria.sequential:
        flops = "" if base.by_clock else f", {total * study.max_runs / len(study.cells):.2e} FLOPs in all"
        print(
            f"MORE=auto: seeds are added until every arm is decided, at most {study.criteria.seeds} of each arm "
            f"(MAX_SEEDS): {study.max_runs} runs{flops}"
        )
    if study.compiled_why:
        print(study.compiled_why)
    every = layout.save_every
    known = [folder for cell in study.cells for folder in rundir.checkpoints(cell.dir / rundir.CHECKPOINTS)]
    print(f"checkpoints: every {every} steps" if every else saves(known, layout.mtbf, 1))
    if at := study.base.milestones:
        print(f"weights are kept, and judged, at {', '.join(map(human, at.values()))} tokens too")
    print(*drawn_schedules(study), sep="\n")
    print(*reading(study), sep="\n")
    print(detectable_text(study))
    return 0


def status(study: Study) -> int:
    print(table(study))
    return 0


def show(study: Study) -> int:
    base = study.base.flat()
    print(json.dumps(base, indent=2))
    for arm in study.arms:
        cell = study.cell(arm, study.seeds[0])
        print(f"{arm}: {json.dumps(cell.delta) if cell.delta else 'the baseline'}  fingerprint {cell.run.fingerprint}")
    return 0


def reference(write: bool) -> int:
    from ablations.reference import page, write_comments

    if write:
        write_comments()
    else:
        print(page(), end="")
    return 0


def identity(words: list[str]) -> int:
    from pathlib import Path

    from ablations.card import card

    names = dict(word.partition("=")[::2] for word in words)
    if names.keys() != {"RUN"} or len(words) != 1 or not names["RUN"]:
        raise ConfigError("card needs RUN=, a run directory such as runs/nano/baseline,seed=1")
    print(answers.answer("card", card(Path(names["RUN"]))))
    return 0


def diff(words: list[str], as_json: bool = False) -> int:
    from model.count import flops_per_token, parameters

    names = dict(word.partition("=")[::2] for word in words)
    if names.keys() != {"A", "B"} or len(words) != 2:
        raise ConfigError(f"diff needs A= and B=, each one of {', '.join(bundles())}")
    for side in "AB":
        if names[side] not in bundles():
            known = ", ".join(bundles())
            raise ConfigError(f"{side}={names[side]} is not one of {known}{did_you_mean(names[side], bundles())}")
    a, b = (resolve([("size", names[side])]) for side in "AB")
    if as_json:
        print(answers.answer("difference", answers.difference(names["A"], names["B"], a, b)))
        return 0
    by_clock = "by clock"  # how many there are, only training tells
    derived = {
        "parameters": lambda run: f"{parameters(run.model):,}",
        "steps": lambda run: by_clock if run.by_clock else f"{run.steps:,}",
        "the last learning rate": lambda run: f"{last_learning_rate(run):.3g}",
        "FLOPs": lambda run: by_clock if run.by_clock else f"{run.tokens * flops_per_token(run.model):.3g}",
    }
    flat_a, flat_b = a.flat(), b.flat()
    rows = [(key, json.dumps(flat_a[key]), json.dumps(flat_b[key])) for key in flat_a if flat_a[key] != flat_b[key]]
    for key, left, right in [*rows, *((name, of(a), of(b)) for name, of in derived.items())]:
        print(f"{key:28} {left:>20} {right:>20}")
    return 0


def last_learning_rate(run: Run) -> float:
    """The learning rate of a run at the end of its budget."""
    return learning_rate(run.train, 1.0 if run.by_clock else run.tokens / run.horizon)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
