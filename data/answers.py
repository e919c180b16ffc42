"""Answers of commands for programs: one JSON object on standard output, whose "kind" names its schema in docs/schema.

All commands answer in this form when they are asked to (FORMAT=json; ablations/answers.py has what the words of a study
need besides). This module lies in data/ because `data.prepare` is such a command, and `data` imports no other package
of ours.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

VERSION = 1  # of the format of answers; increased when a field is removed or changes its meaning
FORMATS = ("text", "json")


def answer(kind: str, content: dict[str, Any]) -> str:
    """An answer of a command as JSON text: {"kind", "version", and the entries of `content`}. `kind`: the name of the
    answer's schema in docs/schema."""
    return json.dumps({"kind": kind, "version": VERSION, **content}, indent=1, allow_nan=False)


def error(problem: str) -> str:
    """The answer, as JSON text, to a request that is refused or that failed. `problem`: the error message."""
    return answer("error", {"error": problem})


def asks_for_json(words: Sequence[str]) -> bool:
    """Whether a command line, split into `words`, asks for JSON, so that an error has to be reported as JSON too.
    Command lines ask by FORMAT=json, as in the words of a study, or by the option --format json."""
    options = zip(words, words[1:], strict=False)
    return "FORMAT=json" in words or "--format=json" in words or ("--format", "json") in options


class Parser(argparse.ArgumentParser):
    """An argument parser whose error messages are JSON where the command line asks for JSON."""

    as_json = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        self.as_json = self.as_json or asks_for_json(sys.argv[1:] if args is None else args)
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Print the message about what is wrong with the command line, and exit with code 2."""
        if self.as_json:
            print(error(message), flush=True)
        super().error(message)


def add_format(parser: argparse.ArgumentParser) -> None:
    """Add the option --format (text or json) to the parser of a command that has no NAME=VALUE words."""
    parser.add_argument("--format", choices=FORMATS, default="text", help="of the answer (%(default)s)")
