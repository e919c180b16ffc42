"""megahour: controlled ablations of decoder language models.

A study is one question; a run is the baseline plus one line; nothing else differs, and the code proves it.
"""

import argparse
import json
import os
import sys
import textwrap
from pathlib import Path

from ablations import answers, rundir, safe_files
from ablations.budget import learning_rate
from ablations.config import ConfigError, Run, resolve, sizes_and_presets
from ablations.site import read_site
from ablations.status import status_table, watch
from ablations.study import Study, from_args
from ablations.values import unknown_choice_error
from ablations.words import COMMON_SETTINGS, FACTORS, HELP, change_to_checkout

COMMANDS = {
    "plan": "list the runs of a study and what they cost; ON=a100: on that hardware; BUDGET=...: what to train with it",
    "status": "where every run of a study stands",
    "show": "the complete configuration of every arm, and the line that makes it",
    "reference": "what every setting means, as Markdown; --write makes the comments of baseline.yaml anew",
    "card": "the identity card of a run directory, as JSON: what it is, which data, which metrics: RUN=folder",
    "diff": "what two sizes or presets set differently, line by line: A=bigscience-1b3 B=modern-1b3",
}


def main(argv: list[str]) -> int:
    args = _parser().parse_args(argv)
    as_json = answers.asks_for_json(argv)
    try:
        return _run(args, as_json)
    except ConfigError as error:
        answers.print_error(str(error), as_json)
        return rundir.Exit.INVALID
    except KeyboardInterrupt:
        print("\ninterrupted; the same command continues", file=sys.stderr)
        return rundir.Exit.INTERRUPTED
    except OSError as error:
        reason = safe_files.storage_error_message(error)
        if not isinstance(error, BrokenPipeError) and not reason:
            raise
        # the reader has closed the pipe, as `| head` does, or the disk is full: at exit Python would write the buffer
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if reason:
            print(f"error: {reason}", file=sys.stderr)
        return rundir.Exit.FAILED


def _parser() -> answers.Parser:
    parser = answers.Parser(
        prog="python -m ablations",
        description=__doc__,
        epilog=f"NAME=VALUE:\n{words_help()}\n\nexample: python -m ablations plan POS=alibi SEEDS=3 TOKENS=2M\n"
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
    return parser


def _run(args: argparse.Namespace, as_json: bool) -> int:
    """Run the command that the user typed. Returns its exit code. `args`: the parsed command line; `as_json`: whether
    the answer is to be one JSON object (FORMAT=json). Raises ConfigError where a word or a value is not allowed."""
    on_hardware = args.command == "plan" and any(word.startswith(("ON=", "BUDGET=")) for word in args.words)
    if not on_hardware:  # ablations/plan/command.py has formats of its own
        as_json, args.words = answers.extract_format(args.words)
    if args.command == "reference":
        return reference_command(args, as_json)
    if args.command == "card":
        return card_command(args.words)
    args.words = change_to_checkout(args.words)
    if "SBATCH_GPUS_PER_NODE" in read_site():
        os.environ.setdefault("MEGAHOUR_GPU", "1")  # the study runs on nodes with GPUs, not on this login node
    if args.command == "diff":
        return diff_command(args.words, as_json)
    if args.command == "plan":
        return plan_command(args.words, as_json)
    study = from_args(args.words)
    if args.command == "status" and args.watch:
        if as_json:
            raise ConfigError("a live view has no FORMAT=json: leave WATCH out, and ask again")
        watch(study)
        return 0
    if as_json and args.command == "status":
        print(answers.json_answer("status", answers.status_answer(study)))
    elif as_json:
        print(answers.json_answer("configuration", answers.configuration_answer(study)))
    elif args.command == "status":
        print(status_table(study))
    else:
        print_configurations(study)
    return 0


def words_help() -> str:
    """The help text about the NAME=VALUE words. For each word a line or more: its name, the setting that it stands for,
    its meaning, and the setting's choices."""
    from ablations.reference import setting_choices

    lines = []
    for name, text in HELP.items():
        key = FACTORS[name][0] if name in FACTORS else COMMON_SETTINGS.get(name, "")
        options = f" ({', '.join(setting_choices(key))})" if key and setting_choices(key) else ""
        lines += textwrap.wrap(f"{name:11} {key:13} {text}{options}", 116, subsequent_indent=" " * 26)
    return "\n".join(f"  {line}" for line in lines)


def plan_command(words: list[str], as_json: bool) -> int:
    from ablations.plan.checks import check_study_inputs
    from ablations.plan.command import plan_for_other_hardware
    from ablations.plan.here import plan_on_this_machine

    code = plan_for_other_hardware(words)
    if code is not None:
        return code
    study = from_args(words)
    check_study_inputs(study)
    if as_json:
        print(answers.json_answer("plan", answers.plan_answer(study)))
    else:
        print(*plan_on_this_machine(study), sep="\n")
    return 0


def print_configurations(study: Study) -> None:
    """Print the complete configuration of the baseline as JSON, and for each arm the settings in which it differs and
    its fingerprint."""
    content = answers.configuration_answer(study)
    print(json.dumps(content["baseline"], indent=2))
    for name, arm in content["arms"].items():
        print(
            f"{name}: {json.dumps(arm['delta']) if arm['delta'] else 'the baseline'}  fingerprint {arm['fingerprint']}"
        )


def reference_command(args: argparse.Namespace, as_json: bool) -> int:
    from ablations.reference import BASELINE, reference_page, update_comments

    if args.words:
        raise ConfigError(f"reference takes no words, only --write: {' '.join(args.words)}")
    if as_json and args.write:
        raise ConfigError("--write has no FORMAT=json: it writes a file, and says nothing")
    if as_json:
        print(answers.json_answer("reference", answers.reference_answer(resolve([("size", "nano")]))))
    elif args.write:
        BASELINE.write_text(update_comments(BASELINE.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        print(reference_page(), end="")
    return 0


def card_command(words: list[str]) -> int:
    from ablations.card import identity_card

    values = dict(word.partition("=")[::2] for word in words)
    if values.keys() != {"RUN"} or len(words) != 1 or not values["RUN"]:
        raise ConfigError("card needs RUN=, a run directory such as runs/nano/baseline,seed=1")
    print(answers.json_answer("card", identity_card(Path(values["RUN"]))))
    return 0


def diff_command(words: list[str], as_json: bool) -> int:
    names = dict(word.partition("=")[::2] for word in words)
    if names.keys() != {"A", "B"} or len(words) != 2:
        raise ConfigError(f"diff needs A= and B=, each one of {', '.join(sizes_and_presets())}")
    for side in "AB":
        if names[side] not in sizes_and_presets():
            raise unknown_choice_error(side, names[side], sizes_and_presets())
    runs = [resolve([("size", names[side])]) for side in "AB"]
    content = answers.difference_answer(names["A"], names["B"], *runs)
    if as_json:
        print(answers.json_answer("difference", content))
        return 0
    derived = content["derived"]
    rows = [(key, *map(json.dumps, values)) for key, values in content["settings"].items()]
    for name, values, number_format in (
        ("parameters", derived["parameters"], ","),
        ("steps", derived["steps"], ","),
        ("the last learning rate", map(last_learning_rate, runs), ".3g"),
        ("FLOPs", derived["flops"], ".3g"),
    ):
        # None: a wall clock ends the run, and the number is not known beforehand
        rows.append((name, *("by clock" if value is None else format(value, number_format) for value in values)))
    for key, left, right in rows:
        print(f"{key:28} {left:>20} {right:>20}")
    return 0


def last_learning_rate(run: Run) -> float:
    """The learning rate when the run has used up its budget."""
    return learning_rate(run.train, 1.0 if run.ends_by_clock else run.tokens / run.horizon)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
