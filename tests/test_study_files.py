"""Study files and the words of a study: whatever is wrong with them is an error that says what is allowed."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ablations import strict_yaml, study_file
from ablations.config import KEYS, ConfigError, resolve
from ablations.criteria import Criteria
from ablations.study import Study, from_args
from ablations.study_file import StudyFile, read_study
from ablations.values import did_you_mean, difference
from ablations.words import FACTORS, HELP, change_to_checkout, expand_home, parse_folders
from data.strict_yaml import MAX_BYTES

ROOT = Path(__file__).parents[1]
GOOD = "question: Besser?\nexpect: Ja, über 2 %.\narms:\n  - model.pos: alibi\n"
BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{b}: &{b} [{','.join(['*' + a] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
MALFORMED = {
    "syntax": b"question: [",
    "latin-1": "question: überall\nexpect: a\narms: []\n".encode("latin-1"),
    "empty": b"",
    "only a comment": b"# nothing\n",
    "a list": b"- model.pos: alibi\n",
    "text": b"alibi",
    "a list as question": b"question: [1]\nexpect: a\narms: []\n",
    "a number as question": b"question: 1\nexpect: a\narms: []\n",
    "expect: no": b"question: a\nexpect: no\narms: []\n",
    "no expectation": b"question: a\narms: []\n",
    "a colon in the question": b"question: Which is better: alibi?\nexpect: a\narms: []\n",
    "a tab": b"question: a\nexpect: b\narms:\n\t- model.pos: alibi\n",
    "depth 3,000": b"question: " + b"[" * 3000 + b"]" * 3000,
    "depth by indent": b"\n".join(b" " * i + b"a:" for i in range(300)),
    "an alias": b"question: &q a\nexpect: *q\narms: []\n",
    "a bomb": BOMB.encode(),
    "a key twice": b"question: a\nquestion: b\nexpect: a\narms: []\n",
    "an unknown key": GOOD.encode() + b"seeds: 3\n",
    "two lines in an arm": b"question: a\nexpect: b\narms: [{model.pos: alibi, model.act: geglu}]\n",
    "an arm of text": b"question: a\nexpect: b\narms: [alibi]\n",
    "an arm of no setting": b"question: a\nexpect: b\narms: [{model.pso: alibi}]\n",
    "a base of no setting": GOOD.encode() + b"base: {train.lrate: 1.0e-3}\n",
    "a number as key": b"question: a\nexpect: b\narms: [{1: 2}]\n",
    "arms as a mapping": b"question: a\nexpect: b\narms: {model.pos: alibi}\n",
    "base as a list": GOOD.encode() + b"base: [1]\n",
    "a date that cannot be": b"question: 2024-13-45\nexpect: a\narms: []\n",
    "no margin": GOOD.encode() + b"margin: 0\n",
    "a margin that is true": GOOD.encode() + b"margin: yes\n",
    "a margin without end": GOOD.encode() + b"margin: .inf\n",
    "a margin of 400 digits": GOOD.encode() + b"margin: " + b"9" * 400 + b"\n",
    "a margin of no metric": GOOD.encode() + b"margin: {loss: 0.01}\n",
    "a metric that is none": GOOD.encode() + b"metric: loss\n",
    "a list as metric": GOOD.encode() + b"metric: [bits/byte]\n",
    "one seed at most": GOOD.encode() + b"max_seeds: 1\n",
    "no number of seeds": GOOD.encode() + b"max_seeds: many\n",
    "a tag": b"question: !!python/object/apply:os.system [ls]\nexpect: a\narms: []\n",
    "a number of 5,000 digits": b"question: " + b"9" * 5000 + b"\nexpect: a\narms: []\n",
    "a date that is none": b"question: !!timestamp x\nexpect: a\narms: []\n",
    "an empty number": b"question: !!int ''\nexpect: a\narms: []\n",
    "a truth that is none": b"question: !!bool maybe\nexpect: a\narms: []\n",
    "an octal number": GOOD.encode() + b"max_seeds: 010\n",
    "minutes and seconds": GOOD.encode() + b"margin: 1:30\n",
    "a margin that is no number": GOOD.encode() + b"margin: .nan\n",
    "a hexadecimal number of 5,000 digits": GOOD.encode() + b"base: {train.tokens: 0x" + b"f" * 5000 + b"}\n",
    "a number of 400 digits": GOOD.encode() + b"base: {train.tokens: 1" + b"0" * 400 + b"}\n",
    "a truth as a name": GOOD.encode() + b"base: {yes: 1}\n",
    "a merged mapping": GOOD.encode() + b"base: {<<: {train.lr: 1.0e-3}}\n",
    "a control character": b'question: "\\e[2J"\nexpect: a\narms: []\n',
    "half a surrogate pair": b'question: "\\ud800"\nexpect: a\narms: []\n',
    "a null byte": b"question: a\0\nexpect: b\narms: []\n",
    "two documents": GOOD.encode() + b"---\n" + GOOD.encode(),
    "two megabytes": GOOD.encode() + b"# " + b"x" * 2_000_000,
    "a mapping as key": b"? {a: b}\n: c\n",
}


@pytest.fixture
def studies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(study_file, "STUDIES", tmp_path)
    return tmp_path


@pytest.mark.parametrize("kind", MALFORMED)
def test_a_malformed_study_file_is_named_and_refused(kind: str, studies: Path) -> None:
    (studies / "broken.yaml").write_bytes(MALFORMED[kind])
    with pytest.raises(ConfigError, match="broken.yaml"):
        from_args(["STUDY=broken", "SIZE=nano"])


@pytest.mark.parametrize("kind", MALFORMED)
def test_a_broken_study_file_does_not_break_another_question(kind: str, studies: Path) -> None:
    (studies / "broken.yaml").write_bytes(MALFORMED[kind])
    (studies / "whole.yaml").write_text(GOOD)
    study = from_args(["POS=alibi", "SIZE=nano"])
    assert study.expect == "Ja, über 2 %." and study.question == "Besser?"
    other = from_args(["POS=none", "SIZE=nano"])
    assert other.expect.startswith("Nothing was written down") and "broken.yaml" in other.expect
    assert from_args(["STUDY=whole", "SIZE=nano"]).arms == ["pos=learned", "pos=alibi"]


def test_an_unreadable_study_file_is_named(studies: Path) -> None:
    (studies / "loop.yaml").symlink_to("loop.yaml")
    (studies / "folder.yaml").mkdir()
    for name in ("loop", "folder"):
        with pytest.raises(ConfigError, match=f"{name}.yaml cannot be read"):
            read_study(name)


def test_the_limits_of_a_file_hold_what_is_ours_many_times() -> None:
    for path in ROOT.glob("ablations/**/*.yaml"):
        assert path.stat().st_size < MAX_BYTES / 50
        strict_yaml.read_yaml(path)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["POS=alibi", "JOBS=²"], "JOBS=²: a number of runs"),
        (["POS=alibi", "JOBS=0"], "from 1 to"),
        (["POS=alibi", "JOBS=" + "9" * 5000], "from 1 to"),
        (["POS=alibi", "SEEDS=²"], "SEEDS=²: a number of seeds"),
        (["POS=alibi", "SEEDS=-1"], "a number of seeds"),
        (["POS=alibi", "OUT= "], "OUT= is empty: give a value or leave it out. OUT: where runs and prepared data"),
        (["STUDY=" + "x" * 300], "is not one of activation,"),
        (["STUDY=../studies/position"], "is not one of activation,"),
        (["STUDY=position.yaml"], "did you mean position?"),
        (["POS=alibi", "OUT=/dev/null/x"], "/dev/null is no folder"),
        (["POS=alibi", "OUT=/tmp/" + "x" * 300], "name too long"),
        (["POS=alibi", "OUT=a\0b"], "no text"),
        (["POS=alibi", "OUT=caf\udce9"], "no UTF-8"),
        (["POS=alibi", "TOKENS=1,5M"], "a whole number such as 512, 2M or 10B"),
        (["POS=alibi", "TOKENS=1.000.000"], "a whole number"),
        (["POS=alibi", "TOKENS=10**20"], "a whole number"),
        (["POS=alibi", "TOKENS=1e300"], "a whole number"),
        (["POS=alibi", "TOKENS=１２８K"], "a whole number"),
        (["POS=alibi", "SET=model.layers=2,4"], "model.layers=2,4: a whole number"),
        (["POS=alibi", "SET=train.lr=1,5e-4"], "a number such as 3e-4"),
        (["POS=alibi", "SET=eval.corpora=,"], "names with commas between them"),
        (["DATA=pycode", "ARM=data.corpus=pydocs"], "give DATA alone"),
        (["POS=alibi", "METRIC=loss"], "METRIC: 'loss' is not one of bits/byte, zero-shot, suite"),
        (["POS=alibi", "MARGIN=0.01,1,2"], "a number above 0, in bits per byte"),
        (["POS=alibi", "MORE=yes"], "auto adds seeds"),
        (["POS=alibi", "MAX_SEEDS=5"], "MAX_SEEDS says how many seeds MORE=auto may come to"),
        (["POS=alibi", "MORE=auto", "MAX_SEEDS=1", "SEEDS=1"], "the two that any verdict needs"),
        (["POS=alibi", "MORE=auto", "MAX_SEEDS=3", "SEEDS=4"], "less than SEEDS=4"),
        (["STUDY=baseline", "MORE=auto"], "none beside the baseline"),
        (["POS=alibi", "ACT=swiglu", "CROSS=1", "MORE=auto"], "has a fixed number of seeds"),
        (["POS=alibi", "FIRST_SEED=0"], "a number of the first seed from 1"),
        (["ARM=model.rotary_base=1000", "SET=model.pos=alibi"], "does nothing without model.pos=rotary"),
        (["POS=alibi", "SET=model.mask_rate=0.3"], "model.mask_rate does nothing without model.objective=mlm"),
        (["POS=alibi", "SET=model.rotary_base=500"], "model.rotary_base does nothing without model.pos=rotary"),
        (["STUDY=cram", "SET=model.mask_rate=0.1"], "model.mask_rate=0.1: must be between 0.15 and 0.6"),
        (["STUDY=cram", "SET=model.mask_rate=0.7"], "must be between 0.15 and 0.6"),
        (["STUDY=cram", "TASKS=piqa"], "no likelihood of a text from left to right, which TASKS need"),
        (["POS=alibi", "TOKENS=1M", "SET=train.tokens=2M"], "train.tokens is set twice by TOKENS and SET: say"),
        (["POS=alibi", "DATA=pycode", "SET=data.corpus=pydocs"], "data.corpus is set twice by DATA and SET: say"),
        (["POS=alibi", "SET=train.lr=1e-3 train.lr=2e-3"], "train.lr is set twice by SET: say"),
        (["POS=alibi", "TOKENS=-3M"], "train.tokens=-3000000: must be at least 1"),
        (["POS=alibi", "SET=train.budget=10 m"], "A value has no spaces: is train.budget=10m meant?"),
        (["POS=alibi", "SET=train.budget=10M"], "M counts tokens, as in TOKENS=10M; minutes are 10m"),
        (["POS=alibi", "SET=layout.eval_at=0.5 train.budget=10m"], "or give TOKENS and no time"),
        (["POS=alibi", "OUT=/proc/x"], "OUT=/proc/x: no folder can be made in /proc"),
    ],
)
def test_words_that_are_no_study_are_refused(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        from_args([*words, "SIZE=nano"])
    assert message in str(error.value)
    assert len(str(error.value)) < 2500


def test_a_setting_that_one_arm_uses_may_be_set_for_all() -> None:
    study = from_args(["POS=rotary", "SET=model.rotary_base=500", "SIZE=nano"])
    assert {cell.run.model.rotary_base for cell in study.cells} == {500.0}


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["ablations", "diff", "A=nnano", "B=nano"], "A=nnano is not one of nano, "),
        (["ablations", "diff", "A=nano"], "diff needs A= and B=, each one of nano, "),
        (["ablations", "reference", "foo"], "reference takes no words, only --write: foo"),
        (["ablations", "plan", "STUDY=position", "ON=1x1"], "which are v100-pcie, "),
        (["eval.report", "foo"], "'foo' is no NAME=VALUE of STUDY, POS,"),
        (["eval.report", "POS=alibi", "NOISES=x"], "RUNS, NOISE, "),
        (["launch.local"], "no question asked: give one of POS=,"),
    ],
)
def test_a_command_says_which_words_it_takes(command: list[str], message: str) -> None:
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 1 and not done.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["TASKS=helaswag"], "no task 'helaswag' in lm-eval (did you mean hellaswag?)"),
        (["GLUE=folder", "GLUE_TASKS=CoLA"], "no task 'CoLA' in GLUE (did you mean cola?)"),
        (["EXPORT=1"], "pos=alibi: "),
        (["SET=data.tokenizer_kind=file data.tokenizer=nirgends/ä.json"], "nirgends/ä.json holds no tokenizer"),
    ],
)
def test_plan_refuses_what_ablation_would_refuse(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    from ablations.__main__ import main

    words = ["plan", "POS=alibi", "SIZE=nano", f"OUT={tmp_path}/out", *words]
    assert main(words) == 2
    said = capsys.readouterr()
    assert not said.out and said.err.startswith("error: ") and message in said.err and "Traceback" not in said.err
    assert not list(tmp_path.iterdir())
    if "GLUE_TASKS=CoLA" not in words:  # the others take seconds
        return
    assert main([*words, "FORMAT=json"]) == main([*words, "ON=a100"]) == 2
    answer, line = capsys.readouterr()
    assert message in json.loads(answer)["error"] and line.count(message) == 2


def test_plan_knows_the_tasks_that_there_are(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    from ablations.__main__ import main

    words = ["plan", "POS=alibi", "SIZE=nano", f"OUT={tmp_path}/out"]
    assert main([*words, "TASKS=suite, hellaswag,xcopa_zh", f"EVAL_DATA={tmp_path}/none"]) == 0
    assert main([*words, f"GLUE={tmp_path}/none", "GLUE_TASKS=cola, rte"]) == 0


def test_a_name_is_proposed_whatever_its_case_or_section() -> None:
    assert did_you_mean("ALiBi", ["none", "alibi"]) == " (did you mean alibi?)"
    assert did_you_mean("pos", ["POS", "OUT"]) == " (did you mean POS?)"
    assert did_you_mean("lr", ["train.lr", "model.layers"]) == " (did you mean train.lr?)"
    assert did_you_mean("größe", ["none"]) == did_you_mean("x", ["a.x", "b.x"]) == ""


@pytest.mark.parametrize(("typed", "value"), [("~/läufe", "{}/läufe"), ("a/~b", "a/~b"), ("~you/x", "~you/x")])
def test_a_home_that_the_shell_has_left_is_the_users(typed: str, value: str) -> None:
    expected = value.format(Path.home())
    assert expand_home(typed) == expected and expand_home(f"{typed},~") == f"{expected},{Path.home()}"
    assert str(from_args(["POS=alibi", f"OUT={typed}"]).out) == expected


def test_a_user_without_a_home_needs_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container that is started with a number for its user."""

    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", nowhere)
    assert expand_home("/data/läufe,a") == "/data/läufe,a"
    with pytest.raises(ConfigError, match="~/läufe: the home of this user is not known"):
        expand_home("~/läufe")


def test_arms_may_have_spaces_between_them() -> None:
    assert from_args(["POS= alibi , rotary", "SIZE=nano"]).arms == from_args(["POS=alibi,rotary", "SIZE=nano"]).arms


def test_a_baseline_alone_is_not_called_so_twice(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    from ablations.__main__ import main

    assert main(["plan", "STUDY=baseline", "SIZE=nano", f"OUT={tmp_path}"]) == 0
    assert "(baseline)" not in capsys.readouterr().out
    assert main(["plan", "POS=alibi", "SIZE=nano", f"OUT={tmp_path}"]) == 0
    assert "pos=learned (baseline)" in capsys.readouterr().out


def test_what_decides_comes_from_the_words_and_else_from_the_study_file(studies: Path, tmp_path: Path) -> None:
    """Also where the words ask what a file asks, as its expectation does; but only STUDY= makes a study add seeds."""
    (studies / "asked.yaml").write_text(GOOD + "metric: zero-shot\nmargin: 1.5\nmax_seeds: 7\n")
    said = from_args(["STUDY=asked", "SIZE=nano", f"OUT={tmp_path}"]).criteria
    assert said == Criteria("zero-shot", {"zero-shot": 1.5}, seeds=7, sequential=True)
    assert from_args(["STUDY=asked", "MORE=none", "SEEDS=3", "SIZE=nano"]).criteria == Criteria(
        "zero-shot", {"zero-shot": 1.5}, seeds=3
    )
    assert from_args(["POS=alibi", "SIZE=nano"]).criteria == Criteria("zero-shot", {"zero-shot": 1.5})
    words = ["STUDY=asked", "METRIC=suite", "MARGIN=0.02,3", "MAX_SEEDS=4", "MORE=auto", "SIZE=nano", f"OUT={tmp_path}"]
    margins = {"bits/byte": 0.02, "zero-shot": 3.0, "suite": 3.0}
    assert from_args(words).criteria == Criteria("suite", margins, seeds=4, sequential=True)
    (studies / "later.yaml").write_text(GOOD + "margin: {bits/byte: 0.01, zero-shot: 2}\n")
    assert from_args(["STUDY=later", "SIZE=nano"]).criteria.margins == {"bits/byte": 0.01, "zero-shot": 2.0}
    assert from_args(["POS=none", "SIZE=nano"]).criteria == Criteria()


def test_a_study_that_adds_seeds_has_those_that_have_begun(tmp_path: Path) -> None:
    """What it has is the same however it is asked for; the baseline's runs are other studies' too and do not count."""
    words = ["POS=alibi,none", "SIZE=nano", "SEEDS=2", f"OUT={tmp_path}"]
    sequential = [*words, "MORE=auto", "MAX_SEEDS=5"]
    plan = from_args(sequential)
    assert plan.seeds == [1, 2] and (plan.criteria.seeds, plan.criteria.sequential) == (5, True)
    (tmp_path / "nano/baseline,seed=4").mkdir(parents=True)
    (tmp_path / "nano/pos=alibi,seed=6").mkdir()  # beyond what it may come to
    assert from_args(sequential).seeds == [1, 2]
    (tmp_path / "nano/pos=none,seed=3").mkdir()
    grown = from_args(sequential)
    assert grown.seeds == [1, 2, 3] and grown.cells[: len(plan.cells)] == plan.cells
    assert from_args(words).seeds == [1, 2]
    late = from_args([*words, "FIRST_SEED=101"])
    assert late.seeds == [101, 102] and {cell.run.seed for cell in late.cells} == {101, 102}


@pytest.mark.parametrize("root", ["/", "//", "/proc/self/root", "/.."])
def test_the_root_folder_is_no_corpus(root: str) -> None:
    """And the whole disk is not searched for that."""
    with pytest.raises(ConfigError, match="is the whole machine"):
        from_args(["POS=alibi", f"DATA={root}"])


def test_a_comma_in_a_whole_number_makes_several_arms_as_it_does_in_words() -> None:
    several = from_args(["ARM=model.layers=2,3", "SIZE=nano"])
    assert several.arms == ["layers=4", "layers=2", "layers=3"]
    assert [c.run.model.layers for c in several.cells if c.seed == 1] == [4, 2, 3]
    ramp = from_args(["ARM=train.ramp=2,2,99", "SIZE=nano", "SET=layout.micro_batch=2"])
    assert [c.run.train.ramp for c in ramp.cells if c.seed == 1] == [[], [2, 2, 99]]


def test_a_study_that_shares_the_recipe_of_another_is_named_after_it() -> None:
    """The runs of all studies of one recipe lie in one folder. Its name says what else is set, and which setting of the
    recipe was put back to the baseline's."""
    alone, study = from_args(["STUDY=cram"]), from_args(["STUDY=cram_schedule"])
    assert alone.stage == study.stage == "nano,cram"
    assert study.name == "cram_schedule-one-cycle-constant-nano-cram"
    changed = from_args(["STUDY=cram_schedule", "SET=train.budget=60s model.act=gelu train.beta1=0.8"])
    assert changed.base.model.act == from_args(["POS=alibi"]).base.model.act
    assert changed.stage == "nano,cram,act=gelu,beta1=0.8,budget=60s"


def test_names_of_folders_stay_within_what_file_systems_take(tmp_path: Path) -> None:
    long = "SET=eval.corpora=" + ",".join(["pydocs", "pycode"] * 50)
    study = from_args(["POS=alibi", long, "SIZE=nano", f"OUT={tmp_path}"])
    for cell in study.cells:
        cell.dir.mkdir(parents=True)
    assert len(study.name.encode()) < 200
    other = from_args(["POS=alibi", long + ",pydocs", "SIZE=nano", f"OUT={tmp_path}"])
    assert other.stage != study.stage


def test_runs_are_named_by_a_glob_or_from_home_and_not_with_commas(tmp_path: Path) -> None:
    for name in ("pos=alibi,seed=1", "pos=alibi,seed=2", "größe [2]"):
        (tmp_path / name).mkdir()
    assert parse_folders(f"{tmp_path}/pos=* x") == [*(f"{tmp_path}/pos=alibi,seed={seed}" for seed in (1, 2)), "x"]
    assert parse_folders(f"{tmp_path}/pos=alibi,seed=1") == [f"{tmp_path}/pos=alibi,seed=1"]
    assert parse_folders(f"'{tmp_path}/größe [2]' {tmp_path}/none*") == [f"{tmp_path}/größe [2]", f"{tmp_path}/none*"]
    assert parse_folders("~/läufe") == [f"{Path.home()}/läufe"]
    with pytest.raises(ConfigError, match="spaces between them, and no commas"):
        parse_folders(f"x {tmp_path},{tmp_path}")


def test_runs_may_lie_in_folders_with_spaces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "my runs é"
    folder.mkdir()
    assert parse_folders(str(folder)) == [str(folder)]
    assert parse_folders(f'"{folder}" other') == [str(folder), "other"]
    assert parse_folders("a b") == ["a", "b"]
    with pytest.raises(ConfigError, match="closing quotation"):
        parse_folders('"a b')
    monkeypatch.chdir(tmp_path)
    (word,) = change_to_checkout(["RUNS='my runs é' b"])
    assert parse_folders(word.removeprefix("RUNS=")) == [str(folder), str(tmp_path / "b")]


# ------------------------------------------------------------------------------------------------ fuzzing

TEXT = st.text(max_size=30)
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | TEXT | st.dates() | st.binary(max_size=5)
TREES = st.recursive(LEAVES, lambda x: st.lists(x, max_size=3) | st.dictionaries(TEXT, x, max_size=3), max_leaves=8)
VALUES = st.one_of(
    TEXT,
    st.integers().map(str),
    st.floats().map(str),
    st.sampled_from(["alibi", "none", "rotary,alibi", "1,5M", "²", "3M", "1e400", "auto", "-1", "[", "true", "24h"]),
)
ASSIGNMENTS = st.builds(lambda key, value: f"{key}={value}", st.sampled_from(sorted(KEYS)) | TEXT, VALUES)
# not DATA and OUT: a fuzzed folder may hold anything
NAMES = st.sampled_from(sorted(HELP.keys() - {"DATA", "OUT", "ARM", "SET"})) | TEXT
WORDS = st.one_of(
    st.builds(lambda name, value: f"{name}={value}", NAMES, VALUES),
    st.builds(lambda name, word: f"{name}={word}", st.sampled_from(["ARM", "SET"]), ASSIGNMENTS),
    st.builds(lambda name, value: f"{name}={value}", st.sampled_from(sorted(FACTORS.keys() - {"DATA"})), VALUES),
)
FUZZ = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@given(st.lists(WORDS, max_size=4))
@FUZZ
def test_words_make_a_study_or_an_error_that_says_why(words: list[str]) -> None:
    try:
        assert isinstance(from_args([*words]), Study)
    except ConfigError as error:
        assert str(error)


@given(st.one_of(st.binary(max_size=200), TEXT.map(str.encode), TREES.map(lambda tree: yaml.dump(tree).encode())))
@FUZZ
def test_a_file_makes_a_study_or_an_error_that_names_it(studies: Path, content: bytes) -> None:
    (studies / "fuzzed.yaml").write_bytes(content)
    strict_yaml.read_yaml.cache_clear()
    try:
        assert isinstance(read_study("fuzzed"), StudyFile)
    except ConfigError as error:
        assert "fuzzed.yaml" in str(error)


@given(st.sampled_from(sorted(KEYS)) | TEXT, TREES, TREES)
@FUZZ
def test_any_arm_and_base_of_a_study_file_make_a_study_or_an_error(
    studies: Path, key: str, arm: object, base: object
) -> None:
    tree = {"question": "?", "expect": "!", "arms": [{key: arm}], "base": base}
    (studies / "fuzzed.yaml").write_bytes(yaml.dump(tree, sort_keys=False).encode())
    strict_yaml.read_yaml.cache_clear()
    try:
        assert isinstance(from_args(["STUDY=fuzzed", "SIZE=nano"]), Study)
    except ConfigError as error:
        assert str(error)


def test_make_passes_a_folder_with_a_space_and_quotes_as_typed() -> None:
    for typed in ("my runs", "'my runs' other", '"my runs" it\'s'):
        command = ["make", "-n", "-o", ".venv/ready", "report", f"RUNS={typed}"]
        env = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
        printed = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=True).stdout
        assert shlex.split(printed)[-1] == f"RUNS={typed}"


def test_a_preset_brings_its_whole_recipe_and_a_plain_size_takes_the_studys() -> None:
    plain = from_args(["STUDY=cram", "SIZE=nano", "SET=train.budget=10m"]).base
    assert (plain.train.batch, plain.model.objective, plain.train.min_lr, plain.model.sumnorm) == (64, "mlm", 0.0, True)
    for name in ("crammed-v1", "crammed-v2", "bert-normal", "izsak"):
        run = from_args(["STUDY=cram", f"SIZE={name}", "SET=train.budget=24h"]).base
        assert difference(resolve([("size", name)]).flat(), run.flat()).keys() <= {
            "train.budget",
            "layout.compile",
        }  # auto in one


def test_tokens_beside_a_clock_are_refused() -> None:
    with pytest.raises(ConfigError, match="TOKENS=4M and train.budget=24h: one of the two ends a run"):
        from_args(["STUDY=cram", "SIZE=nano", "TOKENS=4M"])


def test_shots_belong_to_what_the_runs_are_asked_and_not_to_what_they_are() -> None:
    plain = from_args(["POS=alibi", "SIZE=nano", "TASKS=gsm8k"])
    five = from_args(["POS=alibi", "SIZE=nano", "TASKS=gsm8k", "SHOTS=5"])
    assert five.eval_options == [*plain.eval_options, "--shots", "5"] and "SHOTS=5" in five.command
    assert [(cell.dir, cell.run.fingerprint) for cell in five.cells] == [
        (cell.dir, cell.run.fingerprint) for cell in plain.cells
    ]
    assert from_args(["POS=alibi", "SIZE=nano", "TASKS=gsm8k", "SHOTS=0"]).eval_options[-2:] == ["--shots", "0"]


def test_the_command_for_any_machine_is_accepted_and_what_it_lacks_is_said() -> None:
    words = ["POS=alibi", "SIZE=nano", "OUT=/some/where", "GLUE=/glue", "GLUE_TASKS=rte", "GLUE_SEEDS=3", "JOBS=1"]
    study = from_args(words)
    again = from_args(shlex.split(study.command)[2:])
    assert again.command == study.command == "make ablation POS=alibi SIZE=nano" and not again.left_out_of_command
    assert study.left_out_of_command.startswith("It was given OUT=, GLUE=, GLUE_TASKS=rte, GLUE_SEEDS=3 too: folders")
    assert "/" not in study.left_out_of_command


@pytest.mark.parametrize("shots", ["-1", "two", "1.5", "101", "5,0", "²", "1e1"])
def test_shots_are_a_number_of_examples_and_need_tasks(shots: str) -> None:
    with pytest.raises(ConfigError, match="from 0 to 100"):
        from_args(["POS=alibi", "SIZE=nano", "TASKS=gsm8k", f"SHOTS={shots}"])
    with pytest.raises(ConfigError, match="name them, e.g. TASKS="):
        from_args(["POS=alibi", "SIZE=nano", "SHOTS=5"])


def test_a_study_file_says_by_which_tasks_its_runs_are_judged(studies: Path) -> None:
    (studies / "few.yaml").write_text(GOOD + "tasks: gsm8k\nshots: 5\n")
    study = from_args(["STUDY=few", "SIZE=nano"])
    assert study.eval_options == ["--tasks", "gsm8k", "--data", "runs/eval-data", "--shots", "5"]
    assert from_args(study.words).eval_options == study.eval_options  # what its runs are started with
    typed = from_args(["STUDY=few", "SIZE=nano", "TASKS=rte", "SHOTS=1"])
    assert typed.eval_options[1] == "rte" and typed.eval_options[-1] == "1"
    wrong = {"list": "tasks: [gsm8k]", "truth": "tasks: gsm8k\nshots: true", "text": "tasks: gsm8k\nshots: five"}
    for name, lines in wrong.items():
        (studies / f"{name}.yaml").write_text(f"{GOOD}{lines}\n")
        with pytest.raises(ConfigError, match=f"{name}.yaml"):
            from_args([f"STUDY={name}", "SIZE=nano"])
    (studies / "alone.yaml").write_text(GOOD + "shots: 5\n")
    with pytest.raises(ConfigError, match="SHOTS"):
        from_args(["STUDY=alone", "SIZE=nano"])
