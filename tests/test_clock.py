"""A budget by the wall clock, with a clock that the test turns: stop, learning rate, batch sizes, resume, ranks."""

import json
from pathlib import Path
from typing import Any

import pytest

from ablations import rundir, safe_files
from ablations.__main__ import main
from ablations.budget import learning_rate
from ablations.build_study import build_study
from ablations.cells import Cell
from ablations.config import ConfigError, resolve
from ablations.plan.epochs import describe_epochs
from ablations.study import from_args
from launch import local
from launch import train as training
from launch.clock import Clock
from tests.test_parallel import on

TINY = {
    "size": "nano",
    "model.layers": 1,
    "model.hidden": 32,
    "model.heads": 2,
    "model.seq": 32,
    "model.vocab": 512,
    "layout.micro_batch": 1,
    "layout.log_every": 1,
    "layout.save_every": 1,
    "layout.wandb": "disabled",
    "train.precision": "fp32",
    "train.batch": 4,
    "train.schedule": "budget-triangle2",
    "train.min_lr": 0.0,
    "train.budget": "10s",
}


class Turned:
    """Seconds that pass only when the clock is read: one each time, so that a step takes one."""

    def __init__(self, step: float = 1.0, until: float = 1e9):
        self.time, self.step, self.until = 100.0, step, until

    def __call__(self) -> float:
        now = self.time
        self.time += self.step
        if now > self.until:
            raise KeyboardInterrupt
        return now


def a_cell(corpus: str, folder: Path, store: Path, **change: Any) -> Cell:
    names = {"data.corpus": corpus, "data.tokenizer": corpus, "eval.corpora": [corpus]}
    setting = TINY | names | {key.replace("__", "."): value for key, value in change.items()}
    folder.mkdir(exist_ok=True)
    if not (folder / "data").exists():
        (folder / "data").symlink_to(store / "data")
    cell = build_study("t", "?", "?", list(setting.items()), [("train.beta1", 0.8)], [1], folder).cells[0]
    cell.dir.mkdir(parents=True, exist_ok=True)
    return cell


def trained(cell: Cell, clock: Turned, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    monkeypatch.setattr(training, "Clock", lambda before: Clock(before, clock))
    training.train(cell, folder)
    return safe_files.read_json_lines(cell.dir / rundir.METRICS)[0]


def test_a_clock_goes_on_from_where_it_stood() -> None:
    turned = Turned(2.0)
    clock = Clock(30.0, turned)
    assert [clock.read() for _ in range(3)] == [32.0, 34.0, 36.0]


def test_a_run_ends_with_the_first_step_past_its_time_and_follows_the_clock(
    corpus: str, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = a_cell(corpus, tmp_path, store, train__ramp=[1, 1], train__ramp_share=0.6)
    rows = trained(cell, Turned(0.7), tmp_path, monkeypatch)
    assert [row["seconds"] for row in rows] == pytest.approx([0.7 * (i + 1) for i in range(15)])
    assert rows[-2]["seconds"] < 10 <= rows[-1]["seconds"]
    starts = [0.07 * i for i in range(15)]  # t at the start of each step
    assert [row["lr"] for row in rows] == pytest.approx([cell.run.train.lr * min(0.25 + t, 4 - 4 * t) for t in starts])
    sizes = [1 + min(3, int(t / 0.2)) for t in starts]  # 1, 2, 3 and 4 sequences, a third of 0.6 each
    assert [row["tokens"] for row in rows] == [32 * sum(sizes[: i + 1]) for i in range(15)]
    done = rundir.read_done(cell.dir)
    assert done and (done["steps"], done["tokens"]) == (15, 32 * sum(sizes))
    assert done["budget_seconds"] == 10.0 and done["compile_seconds"] == 0.0


def test_the_clock_survives_a_kill(corpus: str, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calm = trained(a_cell(corpus, tmp_path / "calm", store), Turned(), tmp_path / "calm", monkeypatch)
    cell = a_cell(corpus, tmp_path / "killed", store)
    with pytest.raises(KeyboardInterrupt):
        trained(cell, Turned(until=104.5), tmp_path / "killed", monkeypatch)
    rows = trained(cell, Turned(), tmp_path / "killed", monkeypatch)
    assert len(rows) == len(calm) == 10 and [row["seconds"] for row in rows] == [row["seconds"] for row in calm]
    assert [row["loss"] for row in rows] == [row["loss"] for row in calm]
    assert [row["lr"] for row in rows] == [row["lr"] for row in calm]


@pytest.mark.parametrize("budget", ["10s", "tokens"])
def test_a_masked_language_model_that_is_killed_ends_bit_for_bit_as_one_that_is_not(
    budget: str, corpus: str, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With dropout, masks and a growing batch; the clock of the test passes at the same speed before and after."""
    change: dict[str, Any] = {"model__objective": "mlm", "model__mask_rate": 0.25, "model__dropout": 0.1}
    change |= {"train__budget": budget, "train__ramp": [1, 1], "train__ramp_share": 0.6, "train__tokens": 25 * 32}
    calm = a_cell(corpus, tmp_path / "calm", store, **change)
    rows = trained(calm, Turned(), tmp_path / "calm", monkeypatch)
    cell = a_cell(corpus, tmp_path / "killed", store, **change)
    with pytest.raises(KeyboardInterrupt):
        trained(cell, Turned(until=104.5), tmp_path / "killed", monkeypatch)
    assert len(safe_files.read_json_lines(cell.dir / rundir.METRICS)[0]) == 4
    again = trained(cell, Turned(), tmp_path / "killed", monkeypatch)
    keys = ("step", "tokens", "loss", "grad_norm", "lr", "seconds")
    assert [[row[key] for key in keys] for row in again] == [[row[key] for key in keys] for row in rows]
    assert len({row["loss"] for row in rows}) == len(rows) > 5
    weights = [(one.dir / "weights.safetensors").read_bytes() for one in (calm, cell)]
    assert weights[0] == weights[1]


def test_runs_by_the_clock_do_not_share_processors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEGAHOUR_GPU", "0")
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1})
    clock = ["STUDY=cram_schedule", "SIZE=nano", "SET=train.budget=10m", f"OUT={tmp_path}"]
    assert local.runs_at_a_time(from_args(clock)) == local.runs_at_a_time(from_args([*clock, "JOBS=2"])) == 2
    assert local.runs_at_a_time(from_args([*clock, "JOBS=1"])) == 1
    with pytest.raises(ConfigError, match="JOBS=3: a wall clock ends these runs.*2 cores can train 2 at a time"):
        local.runs_at_a_time(from_args([*clock, "JOBS=3"]))
    assert local.runs_at_a_time(from_args(["POS=alibi", "SIZE=nano", "JOBS=3", f"OUT={tmp_path}"])) == 3
    monkeypatch.setenv("MEGAHOUR_GPU", "1")
    with pytest.raises(ConfigError, match="a GPU machine can train 1 at a time"):
        local.runs_at_a_time(from_args([*clock, "JOBS=2"]))


def test_compiling_counts_and_a_budget_of_tokens_does_not_see_the_clock(
    corpus: str, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from launch import engine

    build_engine = engine.build_engine

    def compiled(*args: Any) -> engine.Engine:
        live = build_engine(*args)
        live.compile_seconds = 4.0
        return live

    monkeypatch.setattr(engine, "build_engine", compiled)
    cell = a_cell(corpus, tmp_path, store)
    assert [row["seconds"] for row in trained(cell, Turned(), tmp_path, monkeypatch)] == [5, 6, 7, 8, 9, 10]
    done = rundir.read_done(cell.dir)
    assert done and done["compile_seconds"] == 4.0
    tokens = a_cell(corpus, tmp_path, store, train__budget="tokens", train__tokens=5 * 4 * 32)
    rows = trained(tokens, Turned(50.0), tmp_path, monkeypatch)
    assert [row["seconds"] for row in rows] == [50, 100, 150, 200, 250]
    assert [row["lr"] for row in rows] == [learning_rate(tokens.run.train, (i + 1) / 5) for i in range(5)]


def test_what_is_left_and_how_far_a_run_is_are_told_by_the_clock() -> None:
    run = resolve([("size", "nano"), ("train.budget", "10m")])
    metric = {"step": 3, "seconds": 150.0, "tokens": 999, "tokens_per_second": 10.0}
    assert (run.length, run.progress(metric), run.seconds_left(metric)) == (600.0, 150.0, 450.0)
    assert run.seconds_left({"seconds": 700.0}) == 0.0 and run.step_text(3) == "3"
    tokens = resolve([("size", "nano"), ("train.tokens", 8 * 256 * 10)])
    assert (tokens.length, tokens.progress(metric), tokens.step_text(3)) == (10, 3.0, "3/10")
    assert tokens.seconds_left(metric) == (20480 - 999) / 10 and tokens.seconds_left({}) is None


def test_nobody_says_how_many_tokens_a_clock_allows(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    """Of a budget that is a time, a plan says so; with hardware named, what is expected there."""
    run = resolve([("size", "nano"), ("train.budget", "10m"), ("train.tokens", 7_000_000)])
    for name in ("steps", "tokens"):
        with pytest.raises(ValueError, match="the clock decides how many"):
            getattr(run, name)
    words = ["STUDY=cram", "SIZE=crammed-v2", "SEEDS=1", f"OUT={tmp_path}"]
    assert main(["plan", *words]) == 0
    plan = capsys.readouterr().out
    assert "1 runs of 24h of wall clock each, of as many steps and tokens as it allows" in plan
    assert "5.13B" not in plan and " 5127000000" not in plan and "by clock" in plan
    assert "under a budget of 24h" in plan
    assert main(["plan", *words, "ON=a100", "FORMAT=json"]) == 0
    cost = json.loads(capsys.readouterr().out)
    assert cost["runs"][0]["hours"] == 24 and cost["runs"][0]["tokens"] > 1e10
    assert main(["diff", "A=crammed-v2", "B=bert-normal"]) == 0
    lines = {line.split("  ")[0]: line for line in capsys.readouterr().out.splitlines()}
    assert lines["steps"].count("by clock") == lines["FLOPs"].count("by clock") == 2


def test_how_often_text_is_read_under_a_clock_is_not_said(
    corpus: str, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = a_cell(corpus, tmp_path, store)
    trained(cell, Turned(), tmp_path, monkeypatch)
    record = json.loads((cell.dir / "run.json").read_text())
    (source,) = record["data"]["epochs"]
    assert record["data"]["corpora"].keys() == {corpus, *record["config"]["eval"]["corpora"]}
    assert record["data"]["corpora"][corpus]["sources"][corpus] == record["data"]["sources"][corpus]
    assert source.keys() == {"corpus", "share", "tokens", "unused"} and source["unused"] == (source["tokens"] - 1) % 32
    names = {"data.corpus": corpus, "data.tokenizer": corpus, "eval.corpora": [corpus]}
    study = build_study("t", "?", "?", list((TINY | names).items()), [("train.beta1", 0.8)], [1], tmp_path)
    (line,) = describe_epochs(study)
    assert "100.0% of as many tokens as 10s allow, of its " in line and "epochs" not in line
    assert f"{source['unused']:,} tokens at its end fill no sequence of 32" in line
    tokens = TINY | names | {"train.budget": "tokens", "train.tokens": 12800}
    (line,) = describe_epochs(build_study("t", "?", "?", list(tokens.items()), [("train.beta1", 0.8)], [1], tmp_path))
    assert f"12.8K tokens is {12800 / source['tokens']:.3g} epochs" in line and "fill no sequence" in line
    other = tokens | {"data.tokenizer": "pycode"}
    *_, line = describe_epochs(build_study("t", "?", "?", list(other.items()), [("train.beta1", 0.8)], [1], tmp_path))
    assert line == "NOTE: the tokenizer is trained on pycode, which no run reads (data.tokenizer)"
    other = tokens | {"eval.corpora": ["pydocs"]}  # as `base: {data.corpus: ...}` alone in a study file leaves it
    *_, line = describe_epochs(build_study("t", "?", "?", list(other.items()), [("train.beta1", 0.8)], [1], tmp_path))
    assert line.startswith(f"NOTE: runs of {corpus} are judged on the held-out text of pydocs alone (eval.corpora)")
    both = tokens | {"eval.corpora": ["pydocs", corpus]}
    lines = describe_epochs(build_study("t", "?", "?", list(both.items()), [("train.beta1", 0.8)], [1], tmp_path))
    assert not [line for line in lines if "judged" in line]


def _disagree(folder: Path) -> None:
    """Ranks whose clocks say other things; what each has been told goes to a file."""
    import torch
    import torch.distributed as dist

    from launch import deepspeed_setup, engine
    from model.gpt import GPT

    settings = {key: value for key, value in TINY.items() if key != "layout.micro_batch"}
    run = resolve([*settings.items(), ("layout.processes", 2), ("layout.micro_batch", 2)])
    rank, world = deepspeed_setup.initialise_process(run)
    live = engine.build_engine(GPT(run.model, 1), run, world)
    rows = torch.randint(512, (2, 33), generator=torch.Generator().manual_seed(rank))
    batch = live.model.objective.batch(rows)
    seconds = [live.step(batch, 1e-3, clock=lambda: 7.25 if rank == 0 else 99.0).seconds for _ in range(2)]
    (folder / f"{dist.get_rank()}.json").write_text(json.dumps(seconds))


def test_all_ranks_go_by_the_clock_of_the_first(tmp_path: Path) -> None:
    on(2, _disagree, tmp_path)
    assert [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)] == [[7.25, 7.25]] * 2
