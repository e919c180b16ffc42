"""What an entry of the table of mutations is, and names that several files of the table use."""

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
    name: str
    record: str  # where it happened; empty: nowhere that we know of
    setting: str  # the run that it concerns, as on the command line
    proof: str  # the key whose proof must fail; empty: not a thing that proofs look at, or beyond what they resolve
    edits: list[tuple[str, str, str]]  # file, text, its replacement
    tests: str = MODEL


def one(
    name: str, record: str, setting: str, proof: str, file: str, old: str, new: str, tests: str = MODEL
) -> Mutation:
    return Mutation(name, record, setting, proof, [(file, old, new)], tests)
