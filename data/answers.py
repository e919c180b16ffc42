"""Prints the answers of commands as JSON (FORMAT=json), for programs that read them. An answer is one object on
standard output. Its entry "kind" names its schema in docs/schema.

ablations/answers.py builds on this module: it makes the answers about studies. This module is in data/ because
`data.prepare` answers in JSON too, and `data` imports no other package of ours.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

VERSION = 1  # of the format of answers; increased when a field is removed or changes its meaning
FORMATS = ("text", "json")


def json_answer(kind: str, content: dict[str, Any]) -> str:
    """The answer of a command as JSON text: an object with "kind", "version" (VERSION) and the entries of `content`.
    `kind`: the name of the answer's schema in docs/schema."""
    return json.dumps({"kind": kind, "version": VERSION, **content}, indent=1, allow_nan=False)


def json_error(problem: str) -> str:
    """The answer, as JSON text, to a request that was refused or failed. `problem`: the error message."""
    return json_answer("error", {"error": problem})


def asks_for_json(words: Sequence[str]) -> bool:
    """Whether a command line asks for an answer in JSON, by FORMAT=json or --format json. `words`: the command line,
    split at spaces."""
    options = zip(words, words[1:], strict=False)
    return "FORMAT=json" in words or "--format=json" in words or ("--format", "json") in options


class Parser(argparse.ArgumentParser):
    """An argument parser that prints its error messages as JSON where the command line asks for JSON."""

    as_json = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        self.as_json = self.as_json or asks_for_json(sys.argv[1:] if args is None else args)
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Print the message about what is wrong with the command line, and exit with code 2."""
        if self.as_json:
            print(json_error(message), flush=True)
        super().error(message)


def add_format_option(parser: argparse.ArgumentParser) -> None:
    """Add the option --format (text or json) to the parser of a command that has no NAME=VALUE words."""
    parser.add_argument("--format", choices=FORMATS, default="text", help="of the answer (%(default)s)")
