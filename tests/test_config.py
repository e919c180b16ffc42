"""The configuration is strict, complete, and says what is allowed."""

import subprocess
import sys
from pathlib import Path

import pytest

from ablations import config, study
from ablations.config import ConfigError, resolve
from ablations.parts import PARTS, part_of_recipe
from ablations.strict_yaml import read_yaml
from ablations.study import from_args
from ablations.values import difference, flatten

ROOT = Path(__file__).parents[1]


def test_baseline_is_complete_and_every_size_resolves() -> None:
    assert flatten(read_yaml(config.FOLDER / "baseline.yaml")).keys() == config.KEYS.keys()
    for size in read_yaml(config.FOLDER / "sizes.yaml"):
        assert resolve([("size", size)]).size == size


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("train.lr", "3e-4", 3e-4),
        ("train.tokens", "2M", 2_000_000),
        ("train.tokens", "1e6", 1_000_000),
        ("train.tokens", "1_048_576", 1_048_576),
        ("model.embnorm", "true", True),
        ("eval.corpora", "pydocs,pycode", ["pydocs", "pycode"]),
        ("layout.zero", "2", 2),
        ("train.ramp", "[]", []),
    ],
)
def test_values_are_read_in_the_type_of_their_key(key: str, text: str, value: object) -> None:
    assert resolve([(key, text)]).flat()[key] == value


@pytest.mark.parametrize(
    ("key", "text", "says"),
    [
        ("model.pos", "alibbi", "none, learned, rotary, alibi, sinusoidal, scaled-sinusoidal (did you mean alibi?)"),
        ("model.po", "alibi", "did you mean model.pos?"),
        ("train.lr", "fast", "a number such as 3e-4"),
        ("train.lr", "nan", "a number such as 3e-4"),
        ("train.lr", "-1", "above 0"),
        ("train.lr", "1_5e-3", "a number such as 3e-4"),  # 1.5e-3?
        ("train.lr", "٠.٠١", "a number such as 3e-4"),
        ("train.tokens", "1_5M", "a whole number"),
        ("train.tokens", "1__000", "a whole number"),
        ("train.tokens", "1.5", "a whole number"),
        ("train.tokens", "true", "a whole number"),
        ("train.tokens", "inf", "a whole number"),
        ("train.ramp", "32,32", "or [] for no ramp"),
        ("model.embnorm", "maybe", "true or false"),
        ("layout.zero", "3", "1, 2"),
        ("size", "1b4", "did you mean 1b3?"),
        ("model.heads", "3", "near it, 1, 2, 4, 8"),
        ("train.warmup", "2", "between 0 and 1"),
        ("train.batch", "12", "no multiple"),
        ("train.tokens", "100", "less than one step"),
    ],
)
def test_what_is_wrong_is_refused_and_what_is_allowed_is_named(key: str, text: str, says: str) -> None:
    with pytest.raises(ConfigError) as error:
        resolve([(key, text)])
    assert says in str(error.value)


@pytest.mark.parametrize(
    "word",
    [
        "MARGIN=٠.٠١",
        "MARGIN=0_1",
        "LR=٠.٥,1",
        "LR=1,1_5",
        "PREDICT=alibi - learned in [-٠.٣, 0]",
        "OUT=a\nb",
        "OUT=a\tb",
    ],
)
def test_numbers_have_ascii_digits_and_paths_one_line(word: str) -> None:
    says = {"OUT": "characters that are no text", "LR": "tune, or 2 to 9 multiples", "PREDICT": "two numbers"}
    with pytest.raises(ConfigError, match=says.get(word.partition("=")[0], "a number above 0")):
        from_args(["POS=alibi", word])


def test_a_size_that_does_not_count_what_it_declares_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"104b": {"params": 104_000_000_000, "set": {"model.layers": 2}}}
    monkeypatch.setattr(config, "read_yaml", lambda path: sizes if path.name == "sizes.yaml" else read_yaml(path))
    with pytest.raises(ConfigError, match="declares 104,000,000,000 parameters and counts"):
        resolve([("size", "104b")])


@pytest.mark.parametrize("content", [{}, {"params": "many", "set": {}}, {"params": 1, "set": []}, [1], None])
def test_a_size_that_is_no_bundle_is_named(content: object, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = read_yaml(config.FOLDER / "sizes.yaml")
    sizes = whole | {"größe": content}
    monkeypatch.setattr(config, "read_yaml", lambda path: sizes if path.name == "sizes.yaml" else read_yaml(path))
    with pytest.raises(ConfigError, match="size größe in ablations needs params"):
        resolve([("size", "nano")])


def test_a_key_that_stands_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "twice.yaml").write_text("a: 1\nb: 2\na: 3\n")
    with pytest.raises(ConfigError, match="'a' stands twice"):
        read_yaml(tmp_path / "twice.yaml")


def test_the_layout_is_no_part_of_what_a_run_is() -> None:
    plain = resolve().fingerprint
    assert resolve([("layout.micro_batch", 2), ("layout.zero", 2)]).fingerprint == plain
    assert resolve([("train.lr", 1e-3)]).fingerprint != plain


@pytest.mark.parametrize("path", sorted(study.STUDIES.glob("*.yaml")), ids=lambda p: p.stem)
def test_every_study_plans_and_each_arm_is_the_baseline_plus_one_line(path: Path) -> None:
    plan = from_args([f"STUDY={path.stem}"])
    assert plan.question and plan.expect
    for cell in plan.cells:
        reference = plan.cell(plan.arms[0], cell.seed)
        assert difference(reference.run.flat(), cell.run.flat()) == cell.delta
        if (part := cell.arm.partition("=")[0]) in PARTS:  # the one line names a part of a preset
            assert cell.delta and {part_of_recipe(key) for key in cell.delta} == {part}
            continue
        assert len(cell.delta) == (0 if cell.arm == plan.arms[0] else 1)
    assert len({c.run.fingerprint for c in plan.cells}) == len(plan.cells) == len({c.dir for c in plan.cells})


def test_variables_and_general_settings_map_to_the_same_runs() -> None:
    a = from_args(["POS=alibi", "SIZE=nano", "TOKENS=2M"])
    b = from_args(["ARM=model.pos=alibi", "SET=train.tokens=2000000 size=nano"])
    assert [c.run.fingerprint for c in a.cells] == [c.run.fingerprint for c in b.cells]


def test_studies_share_the_baseline_and_different_circumstances_do_not() -> None:
    pos, act = from_args(["POS=alibi"]), from_args(["ACT=swiglu"])
    assert pos.cells[0].dir == act.cells[0].dir and pos.cells[0].run == act.cells[0].run
    assert from_args(["POS=alibi", "SET=train.lr=1e-3"]).cells[0].dir != pos.cells[0].dir


def test_a_corpus_is_the_question_alone_and_the_circumstance_beside_another_factor() -> None:
    question = from_args(["DATA=pycode"])
    assert question.cells[1].delta == {"data.corpus": "pycode"}
    assert question.base.data.tokenizer == "pydocs"  # a second difference otherwise
    assert question.base.eval.corpora == ["pydocs", "pycode"]
    circumstance = from_args(["POS=alibi", "DATA=pycode"])
    assert {c.run.data.corpus for c in circumstance.cells} == {"pycode"}
    assert circumstance.cells[1].delta == {"model.pos": "alibi"}
    assert circumstance.base.data.tokenizer == "pycode" and circumstance.base.eval.corpora == ["pycode"]
    words = ["POS=alibi", "DATA=pycode", "SET=data.tokenizer=pydocs eval.corpora=pydocs,pycode"]
    said = from_args(words)  # what SET says is not lost, and these runs lie elsewhere
    assert said.base.data.tokenizer == "pydocs" and said.base.eval.corpora == ["pydocs", "pycode"]
    assert said.stage == "nano,corpus=pycode,tokenizer=pydocs,corpora=pydocs+pycode" != circumstance.stage
    assert from_args([*words[:2], "SET=data.tokenizer=pydocs"]).stage == "nano,corpus=pycode,tokenizer=pydocs"


def test_what_was_expected_of_other_arms_is_not_said_of_these() -> None:
    assert "ALiBi" in from_args(["POS=alibi"]).expect and "SwiGLU" in from_args(["ARM=model.act=geglu"]).expect
    assert from_args(["ARM=train.beta2=0.9", "PREDICT=0.9 < 0.95"]).expect == "0.9 < 0.95"
    for words in (["POS=alibi", "ARM=train.beta2=0.9"], ["ARM=train.lr=1e-3"]):
        assert from_args(words).expect == "Nothing was written down before the runs."


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["POS=learned"], "two equal runs"),
        (["POS=alibi,alibi"], "two equal runs"),
        (["POS=alibi", "SET=model.pos=alibi"], "two equal runs"),
        ([], "no question asked"),
        (["POZ=alibi"], "did you mean POS?"),
        (["STUDY=positions"], "did you mean position?"),
        (["POS=alibi", "SEEDS=none"], "1 to 100"),
        (["POS=alibi", "POS=none"], "given twice"),
        (["POS=alibi", "SET=train.lrr=1"], "did you mean train.lr?"),
        (["ARM=layout.zero=2"], "cannot make an arm"),
        (["ARM=size=14m"], "cannot make an arm"),
        (["ARM=model.rotary_base=500"], "does nothing without model.pos=rotary"),
        (["ARM=train.loss_scale_window=9", "SET=train.precision=bf16"], "does nothing without train.precision=fp16"),
        (["POS=alibi", "SET=seed=3"], "use SEEDS"),
        (["POS=alibi", "SET=train.lr=1e-3 train.lr=2e-3"], "train.lr is set twice"),
        (["POS=alibi", "TOKENS=2M", "SET=train.tokens=4M"], "train.tokens is set twice by TOKENS and SET"),
        (["POS=alibi", "SIZE=nano", "SET=size=14m"], "size is set twice"),
        (["POS=alibi", "DATA=pycode", "SET=data.corpus=pydocs"], "data.corpus is set twice"),
        (["ARM=train.tokens=1048577"], "two equal runs"),  # 512 steps, as many as the baseline
        (["ARM=train.decay_tokens=1048576"], "two equal runs"),
        (["ARM=model.vocab_multiple=256"], "two equal runs"),
        (["POS=alibi", "DATA=no/such/*.jsonl.zst"], "no/such"),
    ],
)
def test_a_bad_study_is_refused(words: list[str], says: str) -> None:
    with pytest.raises(ConfigError) as error:
        from_args(words)
    assert says in str(error.value)


def test_a_directory_keeps_its_meaning(tmp_path: Path) -> None:
    import dataclasses
    import json

    cell = from_args(["POS=alibi", f"OUT={tmp_path}"]).cells[1]
    other = resolve([("train.lr", 1e-3), ("model.pos", "alibi")])
    cell.dir.mkdir(parents=True)
    (cell.dir / "run.json").write_text(
        json.dumps({"fingerprint": other.fingerprint, "config": dataclasses.asdict(other)})
    )
    with pytest.raises(ConfigError, match="train.lr: 0.001 there, 0.002 now"):
        cell.check_same_configuration()
    for damaged in ("{}", '{"fingerprint": "ab'):
        (cell.dir / "run.json").write_text(damaged)
        with pytest.raises(ConfigError, match="is damaged, or of another version"):
            cell.check_same_configuration()


def test_make_refuses_a_misspelt_variant_at_once_with_exit_code_2_and_creates_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "launch.local", "POS=alibbi", f"OUT={tmp_path / 'out'}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "none, learned, rotary, alibi" in done.stderr
    assert not (tmp_path / "out").exists()
    imported = {line.split("|")[-1].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "launch.processes" in imported and not {"torch", "numpy", "scipy", "rich", "datatrove"} & imported


def test_planning_imports_no_torch() -> None:
    plan = "from ablations.__main__ import main; main(['plan', 'POS=alibi'])"
    code = f"import sys; {plan}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def test_runs_recorded_before_a_setting_existed_keep_their_fingerprint(tmp_path: Path) -> None:
    import dataclasses
    import json

    from ablations.run import ABSENT

    cell = from_args(["POS=alibi", f"OUT={tmp_path}", "SIZE=nano"]).cells[1]
    assert ABSENT and all(cell.run.flat()[key] == value for key, value in ABSENT.items())
    config = dataclasses.asdict(cell.run)
    for key in ABSENT:
        section, name = key.split(".")
        del config[section][name]
    cell.dir.mkdir(parents=True)
    (cell.dir / "run.json").write_text(json.dumps({"fingerprint": "of another", "config": config}))
    with pytest.raises(ConfigError) as error:
        cell.check_same_configuration()
    assert not any(key in str(error.value) for key in ABSENT)
    for key, value in {"train.schedule": "linear", "train.budget": "10m"}.items():
        changed = resolve([("size", "nano"), ("model.pos", "alibi"), (key, value)])
        assert changed.fingerprint != resolve([("size", "nano"), ("model.pos", "alibi")]).fingerprint


def test_a_reader_that_closes_the_pipe_costs_no_traceback() -> None:
    command = [sys.executable, "-m", "ablations", "plan", "POS=alibi"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1) as process:
        assert process.stdout and process.stderr
        process.stdout.close()  # before the first line
        assert process.stderr.read() == ""
