"""The form of a mutation, a deliberate fault in the code, and constants that several files of the table use."""

from typing import NamedTuple

MODEL = "tests/test_model.py tests/test_mutants.py tests/test_proof.py::test_every_variant_proves_itself"
TRAIN = "tests/test_mutants.py tests/test_train.py::test_the_engine_is_adamw_with_clipping_and_the_schedule"
STUDY_FILES = "tests/test_study_files.py"
OBJECTIVE = "tests/test_objective.py"
BUDGET = "tests/test_budget.py"
FP8 = "tests/test_fp8.py"
IDENTITY = (
    "tests/test_data_identity.py::test_a_file_changed_in_place_with_size_and_time_kept_is_another_one "
    "tests/test_data_identity.py::test_a_corpus_that_changed_between_two_commands_is_refused_before_any_work "
    "tests/test_data_identity.py::test_damage_is_named_with_what_helps"
)
POSITION = "model/position.py"
MDS = "Megatron-DeepSpeed"


class Mutation(NamedTuple):
    """A deliberate fault in the code, which tests, and for some faults a proof, must notice."""

    name: str
    record: str  # where this fault has happened; "" where we know of no case
    setting: str  # settings of the run that it concerns, as on the command line
    proof: str  # the setting whose proof must fail; "" where no proof can see the fault
    edits: list[tuple[str, str, str]]  # (file, text that occurs once in it, its replacement)
    tests: str = MODEL  # arguments of pytest: the tests of which one must fail


def one(
    name: str, record: str, setting: str, proof: str, file: str, old: str, new: str, tests: str = MODEL
) -> Mutation:
    """A mutation that replaces one text in one file. The arguments are the fields of `Mutation`."""
    return Mutation(name, record, setting, proof, [(file, old, new)], tests)
