"""Every entry of the table in tests/mutations names code and tests that exist: moved code moves its entries too."""

import ast

from ablations.config import resolve
from tests.mutations import MUTATIONS, ROOT, SMALL


def test_every_mutation_has_a_name_of_its_own() -> None:
    names = [mutation.name for mutation in MUTATIONS]
    assert sorted(set(names)) == sorted(names)


def test_every_mutation_applies() -> None:
    faults = []
    for mutation in MUTATIONS:
        texts = {file: (ROOT / file).read_text() for file, _, _ in mutation.edits}
        for file, old, new in mutation.edits:
            if texts[file].count(old) != 1 or old == new:
                faults.append(f"{mutation.name}: {file} has {texts[file].count(old)} times: {old}")
            texts[file] = texts[file].replace(old, new)
        for file, text in texts.items():
            try:
                if file.endswith(".py"):
                    ast.parse(text)
            except SyntaxError as error:  # any test would notice it, and show nothing
                faults.append(f"{mutation.name}: {file} is no Python any more: {error}")
    assert not faults, "\n".join(faults)


def test_every_mutation_concerns_a_run_that_can_be_configured() -> None:
    for setting in {mutation.setting for mutation in MUTATIONS}:
        words = [word.partition("=") for word in f"{SMALL} {setting}".split()]
        resolve([(key, value) for key, _, value in words])


def test_every_mutation_names_tests_that_exist() -> None:
    for mutation in MUTATIONS:
        for test in mutation.tests.split():
            if test.startswith("tests/"):
                file, _, name = test.partition("::")
                text = (ROOT / file).read_text()
                assert not name or f"def {name.partition('[')[0]}(" in text, f"{mutation.name}: {test}"
