"""Weights kept on the way (layout.eval_at): what they are, what they survive, and who judges them."""

import json
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ablations import rundir
from ablations.config import ConfigError, resolve
from ablations.rundir import steps_to_evaluate
from ablations.status import run_state, status_table
from ablations.study import from_args
from eval.__main__ import main
from eval.weights import Weights, weights_to_evaluate
from launch import local
from model import hub
from model.config import ModelConfig
from model.gpt import GPT
from tests.conftest import Launch
from tests.forked import Command
from tests.made_study import report
from tests.moments import after_outcomes, after_save, in_save
from tests.test_checkpoint import load, on, pieces, save  # noqa: F401
from tests.test_resume import begin, folder, text, train
from tests.tiny_run import TINY, words

Start = Callable[..., Launch]
STEP = 4 * 32  # tokens
WAY = {"layout.eval_at": "0.25,0.7", "layout.keep": 1, "layout.save_every": 3, "model.dropout": 0.1}
KEPT = [6, 17]  # of 24 steps: 0.7 is reached in the 17th


def weights(run: Path, step: int) -> dict[str, torch.Tensor]:
    record = json.loads((run / "run.json").read_text())
    kept = next(kept for kept in weights_to_evaluate(run) if kept.step == step)
    return kept.state_dict(record, GPT(ModelConfig(**record["config"]["model"])))


def files(run: Path) -> dict[str, bytes]:
    return {str(path.relative_to(run)): path.read_bytes() for path in run.glob("checkpoints/weights_*/*.safetensors")}


@pytest.mark.parametrize(
    "shares,expected",
    [("0.25,0.5", {6: 6, 12: 12}), ("0.26,0.99", {7: 7}), ("0.001", {1: 1}), ("0.5,0.5", {12: 12}), ("", {})],
)
def test_the_step_at_which_a_share_of_the_budget_is_trained(shares: str, expected: dict[int, int]) -> None:
    run = resolve([*TINY.items(), ("layout.eval_at", shares)])
    assert run.milestones == {step: n * STEP for step, n in expected.items()}


def test_with_a_ramp_shares_are_of_tokens_and_not_of_steps() -> None:
    run = resolve([*TINY.items(), ("train.ramp", "2,1,12"), ("layout.micro_batch", 1), ("layout.eval_at", "0.25")])
    tokens = [run.tokens_after(step) for step in range(run.steps + 1)]
    step = next(i for i, n in enumerate(tokens) if n >= run.tokens / 4)
    assert run.milestones == {step: tokens[step]} and step > run.steps / 4


@pytest.mark.parametrize("shares", ["0", "1", "-0.5", "25", "x"])
def test_no_share_of_a_budget(shares: str) -> None:
    with pytest.raises(ConfigError, match="layout.eval_at"):
        resolve([*TINY.items(), ("layout.eval_at", shares)])


def test_a_run_is_the_same_run_whatever_is_kept() -> None:
    assert resolve(TINY.items()).fingerprint == resolve([*TINY.items(), ("layout.eval_at", "0.5")]).fingerprint


@pytest.mark.parametrize("precision,ranks,tp", [("bf16", 1, 1), ("bf16", 2, 1), ("fp32", 2, 2)])
def test_what_is_kept_is_what_a_run_that_ends_there_ends_with(
    launch: Start, corpus: str, store: Path, tmp_path: Path, precision: str, ranks: int, tp: int
) -> None:
    """A run with a smaller budget and the same schedule (train.decay_tokens) writes weights.safetensors by itself."""
    change = WAY | {
        "train.precision": precision,
        "layout.processes": ranks,
        "layout.tp": tp,
        "layout.micro_batch": 2,
        "train.decay_tokens": 24 * STEP,
    }
    long = train(launch, words(corpus, folder(tmp_path / "long", store), **change), ranks)
    assert [each.step for each in weights_to_evaluate(long)] == [*KEPT, None]
    assert [each.tokens for each in weights_to_evaluate(long)][:2] == [step * STEP for step in KEPT]
    for step in KEPT:
        argv = words(corpus, folder(tmp_path / str(step), store), **change, **{"train.tokens": step * STEP})
        end = load_file(train(launch, argv, ranks) / "weights.safetensors")
        kept = weights(long, step)
        assert kept.keys() == end.keys()
        for name, value in end.items():
            assert torch.equal(kept[name], value) and kept[name].dtype == value.dtype, name


def test_what_is_kept_survives_kills_and_stays_when_checkpoints_go(
    launch: Start, corpus: str, store: Path, tmp_path: Path
) -> None:
    calm = train(launch, words(corpus, folder(tmp_path / "calm", store), **WAY))
    assert len(files(calm)) == 2 and [p.name for p in (calm / "checkpoints").glob("step_*")] == ["step_24"]
    argv = words(corpus, folder(tmp_path / "stormy", store), **WAY)
    run = from_args(argv).cells[1].dir
    for moment in (
        partial(in_save, "weights_6", tensors_written=False),
        partial(after_save, "weights_6"),  # its checkpoint may not be
        partial(after_save, "step_9"),
        partial(in_save, "weights_17", tensors_written=False),
        partial(in_save, "weights_17", tensors_written=True),
    ):
        begin(launch, argv, prepare=moment).wait_for_kill()
    assert train(launch, argv) == run
    assert files(run) == files(calm)
    # and a run that is continued elsewhere keeps them too, now on two ranks
    (run / "done").unlink()
    train(launch, words(corpus, tmp_path / "stormy", **WAY | {"layout.processes": 2, "layout.micro_batch": 2}), 2)
    assert files(run) == files(calm)


def test_a_past_that_did_not_happen_is_not_judged(tmp_path: Path) -> None:
    on(2, keep, tmp_path)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == [
        "step_10",
        "step_9",
        "weights_10",
        "weights_2",
    ]
    order = (tmp_path / "order").read_text().split()
    assert order == ["weights_2", "step_2", "step_9", "weights_10", "step_10"]  # else a kill between two would lose one
    on(1, load, tmp_path, 9, 10)  # back to step 9
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step_9", "weights_2"]


def keep(rank: int, ranks: int, where: Path) -> None:
    from launch.checkpoint import Checkpoints
    from tests.test_checkpoint import state as made

    write_checkpoint = rundir.write_checkpoint

    def noted(path: Path, index: dict[str, Any]) -> None:
        write_checkpoint(path, index)
        with open(where / "order", "a") as file:
            file.write(path.name + "\n")

    rundir.write_checkpoint = noted
    checkpoints = Checkpoints(where / "checkpoints", keep=2, milestones={2: 20, 10: 100})
    for step in (2, 9, 10):
        checkpoints.save(step, pieces(made(step), rank, ranks), {"losses": [0.1, 1 / 3], "step": step})
    checkpoints.wait()


SHAPE = {k[6:]: v for k, v in resolve(TINY.items()).flat().items() if k.startswith("model.")}


def cut(rank: int, ranks: int, where: Path) -> None:
    """Even shares of all parameters one after another, cut anywhere."""
    from launch.checkpoint import Checkpoints, Fragment

    total, found_, at = sum(p.numel() for p in GPT(ModelConfig(**SHAPE)).parameters()), [], 0
    low, high = rank * total // ranks, (rank + 1) * total // ranks
    for name, p in GPT(ModelConfig(**SHAPE), seed=5).named_parameters():
        a, b = max(at, low), min(at + p.numel(), high)
        if a < b:
            found_.append(Fragment(name, "weight", a - at, p.detach().flatten()[a - at : b - at]))
        at += p.numel()
    checkpoints = Checkpoints(where / "checkpoints", keep=1, milestones={1: 9})
    checkpoints.save(1, found_, {})
    checkpoints.wait()


@pytest.mark.parametrize("ranks", [1, 2, 3, 11])
def test_any_width_is_read(tmp_path: Path, ranks: int) -> None:
    on(ranks, cut, tmp_path)
    (kept,) = weights_to_evaluate(tmp_path)
    assert (kept.name, kept.tokens) == ("eval-step_1", 9)
    got = kept.state_dict({"config": {"train": {"precision": "fp32"}}}, GPT(ModelConfig(**SHAPE)))
    for name, p in GPT(ModelConfig(**SHAPE), seed=5).named_parameters():
        assert torch.equal(got[name], p), name


# ------------------------------------------------------------------------------------------------ judging


@pytest.fixture(scope="module")
def trained(launch: Start, corpus: str, store: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The words and the directory of a finished run."""
    argv = words(corpus, folder(tmp_path_factory.mktemp("trained") / "out", store), **WAY)
    return argv, train(launch, argv)


def results(run: Path) -> dict[str, dict]:
    return {path.name: {**json.loads(path.read_text()), "seconds": 0} for path in run.glob("eval*.json")}


def test_a_run_is_judged_at_what_it_has_kept_while_it_goes_on(trained: Any, capsys: pytest.CaptureFixture) -> None:
    argv, run = trained
    cell = from_args(argv).cells[1]
    (run / "done").rename(run / "not done")
    assert steps_to_evaluate(run) == KEPT and run_state(cell)["on_the_way"] == [0, 2]
    assert main([str(run), "--store", str(run.parents[1] / "data")]) == 0
    assert f"at {6 * STEP} tokens" in capsys.readouterr().out and steps_to_evaluate(run) == []
    got = results(run)
    assert sorted(got) == ["eval-step_17.json", "eval-step_6.json"] and not (run / "samples.jsonl.gz").exists()
    assert [got[f"eval-step_{step}.json"]["tokens"] for step in KEPT] == [step * STEP for step in KEPT]

    # the same weights as the end of a run
    (run / "not done").rename(run / "done")
    end = (run / "weights.safetensors").read_bytes()
    from safetensors.torch import save_file

    done = (run / "done").read_bytes()
    save_file(weights(run, 6), run / "weights.safetensors")
    rundir.write_done(run, json.loads(done))
    assert main([str(run), "--store", str(run.parents[1] / "data")]) == 0
    as_end = results(run)["eval.json"]
    assert {**got["eval-step_6.json"], "weights_sha256": ""} == {
        **{k: v for k, v in as_end.items() if k not in ("by_position", "samples_sha256")},
        "weights_sha256": "",
        "step": 6,
        "tokens": 6 * STEP,
    }
    (run / "weights.safetensors").write_bytes(end)
    (run / "done").write_bytes(done)

    # once; again where the weights are others
    stamps = {path: path.stat().st_mtime_ns for path in run.glob("eval-*.json")}
    (run / "eval-step_6.json").write_text(json.dumps(got["eval-step_6.json"] | {"weights_sha256": "of another past"}))
    assert main([str(run), "--store", str(run.parents[1] / "data")]) == 0
    assert (run / "eval-step_17.json").stat().st_mtime_ns == stamps[run / "eval-step_17.json"]
    assert results(run)["eval-step_6.json"] == got["eval-step_6.json"]
    assert results(run)["eval.json"]["bits_per_byte"] != as_end["bits_per_byte"]
    assert run_state(cell)["state"] == "finished" and run_state(cell)["on_the_way"] == [2, 2]


def test_an_evaluation_that_is_killed_is_continued(trained: Any, tmp_path: Path) -> None:
    _, run = trained
    assert main([str(run), "--store", str(run.parents[1] / "data")]) == 0
    expected = results(run)
    for path in run.glob("eval*.json"):
        path.unlink()
    words = [run, "--store", run.parents[1] / "data"]
    process = Command(tmp_path / "printed", "eval", words, prepare=partial(after_outcomes, "eval-step_17.parts", 2))
    assert process.wait().returncode == -signal.SIGKILL
    (part,) = run.glob("eval-step_17.parts/*")
    assert len(part.read_bytes().splitlines()) == 3  # the first names the weights
    assert "eval-step_17.json" not in results(run)
    assert main([str(run), "--store", str(run.parents[1] / "data")]) == 0
    assert results(run) == expected and not list(run.glob("*.parts"))


def test_damaged_or_half_of_it_is_refused(trained: Any, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    _, run = trained
    record = json.loads((run / "run.json").read_text())
    model = GPT(ModelConfig(**record["config"]["model"]))
    for name, change, why in [("sha256", lambda f: f[:-4] + b"\0\1\2\3", "is damaged"), ("none", None, "")]:
        copy = tmp_path / name / "checkpoints/weights_6"
        copy.mkdir(parents=True)
        for path in (run / "checkpoints/weights_6").iterdir():
            (copy / path.name).write_bytes(path.read_bytes())
        if change:
            file = copy / "rank_0.safetensors"
            file.write_bytes(change(file.read_bytes()))
            with pytest.raises(ValueError, match=why):
                Weights(copy, 6, 6 * STEP).state_dict(record, model)
        else:
            (copy / "checkpoint.json").unlink()  # it was being written
            assert weights_to_evaluate(tmp_path / name) == []
    deeper = GPT(ModelConfig(**record["config"]["model"] | {"layers": 3}))
    with pytest.raises(ValueError, match="lacks blocks.2"):
        weights_to_evaluate(run)[0].state_dict(record, deeper)


def test_a_study_is_judged_on_the_way_exported_and_drawn(
    corpus: str, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `make ablation` does, each in a process of its own."""
    _, *typed = words(corpus, folder(tmp_path / "out", store), **{"layout.eval_at": "0.25,0.5"})
    study = from_args(["POS=rotary", *typed, "EXPORT=1"])
    assert local.run_study(study) == []
    for cell in study.cells:
        assert steps_to_evaluate(cell.dir) == [] and f"at {6 * STEP} tokens" in text(cell.dir / "eval.log")
        assert rundir.is_exported(cell.dir) and (cell.dir / rundir.EVAL).exists()
        assert not list(cell.dir.glob(f".{rundir.HUB}*"))
        _, exported = hub.load_checkpoint(cell.dir / rundir.HUB)
        trained = load_file(cell.dir / rundir.WEIGHTS)
        assert all(exported[name].equal(trained[name]) for name in trained) and exported.keys() == trained.keys()
    assert status_table(study).count("2 of 2 on the way") == 2
    report(study, tmp_path / "report")
    drawn = (tmp_path / "report/report.html").read_text()
    assert "Score against tokens" in drawn and "bits/byte against tokens" in drawn

    # what is there is not made again
    begun: list[str] = []
    monkeypatch.setattr(local, "_python_succeeds", lambda *_: True)
    monkeypatch.setattr(local, "prepare_missing_data", lambda *_: None)
    monkeypatch.setattr(local, "finish_run", lambda study, cell, *_: begun.append(cell.name))
    assert local.run_study(study) == [] and begun == []
    (study.cells[1].dir / rundir.HUB / "config.json").unlink()
    assert local.run_study(from_args(study.words[:-1])) == [] and begun == []
    assert local.run_study(study) == [] and begun == [study.cells[1].name]

    # what was evaluated differently than the end is no point of its curve
    for cell in study.cells:
        for path in cell.dir.glob("eval-*.json"):
            path.write_text(json.dumps(json.loads(path.read_text()) | {"version": 0}))
    report(study, tmp_path / "again")
    again = (tmp_path / "again/report.html").read_text()
    figures: list[str] = [html.split("bits/byte against tokens")[-1].split("</figure>")[0] for html in (drawn, again)]
    assert [svg.count("<circle") for svg in figures] == [6, 2], figures
