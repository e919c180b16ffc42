"""layout.compile=auto on a CPU: all runs of a study are compiled where they are long enough, else none."""

from pathlib import Path
from typing import Any

import pytest

from ablations import compilation, safe_files
from ablations.compilation import choose_compilation
from ablations.config import ConfigError, resolve
from ablations.run import Run
from ablations.study import Study, from_args
from launch import local, train
from tests.test_bench import TINY

LONG = "TOKENS=200M"  # of a nano run, for which compiling pays


@pytest.fixture(autouse=True)
def cpu_with_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEGAHOUR_GPU", "0")
    monkeypatch.setattr(compilation, "missing_for_compiler", lambda: "")


def nano(**change: Any) -> Run:
    settings = {"size": "nano", "train.precision": "bf16", "train.tokens": "200M"}
    return resolve((settings | {key.replace("__", "."): value for key, value in change.items()}).items())


def modes(study: Study) -> set[str]:
    return {study.base.layout.compile, *(cell.run.layout.compile for cell in study.cells)}


def begin(study: Study, cell: int, compile: str) -> None:
    """Write the run.json of a run whose layout.compile was `compile`."""
    run = study.cells[cell]
    config = run.config | {"layout": run.config["layout"] | {"compile": compile}}
    run.dir.mkdir(parents=True)
    safe_files.write_json(run.dir / "run.json", {"fingerprint": run.run.fingerprint, "config": config})


def test_the_first_command_is_not_compiled_and_a_long_study_is_in_all_its_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    from ablations.__main__ import main

    words = ["POS=alibi", "SIZE=nano", "SET=train.precision=bf16", f"OUT={tmp_path}"]
    short, long = from_args(words), from_args([*words, LONG, "SEEDS=3"])
    assert modes(short) == {"never"} and modes(long) == {"always"} and len(long.cells) == 6
    assert [cell.run.fingerprint for cell in short.cells] == [
        resolve(cell.run.flat().items()).fingerprint for cell in short.cells
    ]
    for study in (short, long):
        assert main(["plan", *study.words]) == 0
        assert f"\n{study.compiled_why}\n" in capsys.readouterr().out
    assert short.compiled_why.startswith("not compiled: that would take about ")
    assert long.compiled_why.startswith("compiled: that takes about ")


def test_seeds_and_learning_rates_share_a_graph_and_positions_do_not() -> None:
    one = [nano()]
    again = [nano(), nano(seed=2), nano(train__lr=1e-3)]
    warm = compilation.compile_seconds(again) - compilation.compile_seconds(one)
    assert warm == pytest.approx(2 * 4 * compilation.WARM_COMPILE_SECONDS)
    other = compilation.compile_seconds([nano(), nano(model__pos="alibi")])
    assert other == pytest.approx(2 * compilation.compile_seconds(one))


def test_the_decision_is_where_what_is_saved_equals_what_compiling_takes() -> None:
    saved_by_token = compilation.seconds_saved(nano()) / nano().tokens
    even = compilation.compile_seconds([nano()]) / saved_by_token
    below, above = (choose_compilation([nano(train__tokens=round(share * even))]).mode for share in (0.99, 1.01))
    assert (below, above) == ("never", "always")
    both = [nano(seed=seed, train__tokens=round(0.99 * even)) for seed in (1, 2)]  # the second finds the first's code
    assert choose_compilation(both).mode == "always"
    assert compilation.seconds_saved(nano(layout__threads=2)) == compilation.seconds_saved(nano())  # CPU seconds of all


@pytest.mark.parametrize(
    "change",
    [{"train.precision": "fp16"}, {"train.budget": "24h"}, {"layout.processes": 2}, {"model.objective": "prefix"}],
    ids=str,
)
def test_what_was_not_measured_is_not_compiled_and_no_run_beside_it(change: dict[str, Any]) -> None:
    other = resolve((nano().flat() | change).items())
    assert choose_compilation([nano()]).mode == "always"
    assert choose_compilation([nano(), other]).mode == "never"


def test_a_later_arm_or_seed_is_executed_as_the_baseline_was(tmp_path: Path) -> None:
    words = ["SIZE=nano", LONG, f"OUT={tmp_path}"]
    begin(from_args(["POS=alibi", *words]), 0, "never")
    later = from_args(["POS=rotary", "SEEDS=20", *words])
    assert modes(later) == {"never"} and "as in the runs of the study that have begun" in later.compiled_why
    begin(later, 3, "always")  # an arm that was forced to: the baseline counts
    assert modes(from_args(["POS=rotary", *words])) == {"never"}


def test_a_study_begun_compiled_goes_on_compiled_where_that_would_not_pay(tmp_path: Path) -> None:
    words = ["POS=alibi", "SIZE=nano", f"OUT={tmp_path}"]
    begin(from_args(words), 1, "always")
    assert modes(from_args(words)) == {"always"}
    assert modes(from_args([*words, "SET=layout.compile=never"])) == {"never"}


def test_a_study_begun_by_an_earlier_version_stays_as_it_was(tmp_path: Path) -> None:
    """There auto compiled nothing on a CPU, and auto is what the engine is given now."""
    words = ["POS=alibi", "SIZE=nano", LONG, f"OUT={tmp_path}"]
    begin(from_args(words), 0, "auto")
    assert modes(from_args(words)) == {"auto"}


def test_with_a_gpu_the_engine_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEGAHOUR_GPU", "1")
    study = from_args(["POS=alibi", "SIZE=nano", LONG, f"OUT={tmp_path}"])
    assert modes(study) == {"auto"} and not study.compiled_why


def test_without_a_compiler_auto_does_without_and_always_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("MEGAHOUR_GPU", "0")
    monkeypatch.setenv("CXX", "g++-of-nobody")
    words = ["POS=alibi", "SIZE=nano", f"OUT={tmp_path / 'runs'}"]
    study = from_args([*words, LONG])
    assert modes(study) == {"never"}
    assert study.compiled_why.startswith("not compiled, which would save ")
    assert study.compiled_why.endswith(" CPU seconds: there is no C++ compiler (g++-of-nobody)")
    always = [*words, "SET=layout.compile=always"]
    for command, argv in ((local.main, always), (train.main, ["--cell", "0", *always])):
        code, said = command(argv), capsys.readouterr().err
        assert code == 2 and "layout.compile=always, and there is no C++ compiler (g++-of-nobody)" in said
        assert "layout.compile=never" in said and not (tmp_path / "runs").exists()


def test_python_without_headers_cannot_compile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("MEGAHOUR_GPU", "0")
    monkeypatch.setattr(compilation.sysconfig, "get_path", lambda name: str(tmp_path / "größe"))
    with pytest.raises(ConfigError, match="headers are not installed .*größe"):
        compilation.check_compiler(nano(layout__compile="always"))
    compilation.check_compiler(nano(layout__compile="never"))


def test_a_model_that_torch_cannot_compile_fails_with_what_helps(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    import torch

    from launch import deepspeed_setup, engine, manifest, run_model

    def broken(*args: Any) -> None:
        raise NameError("größer is no type")

    compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda *args, **options: compile(*args, **options, backend=broken))
    torch._dynamo.reset()
    run = resolve([*TINY, ("train.precision", "bf16"), ("layout.compile", "always")])
    deepspeed_setup.initialise_process(run)
    with pytest.raises(manifest.RunFailed, match="torch.compile: NameError: größer is no type. layout.compile=never"):
        engine.build_engine(run_model.build_model(run), run, 1)
    assert "Traceback" in capsys.readouterr().err
