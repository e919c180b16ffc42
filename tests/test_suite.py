"""The suite of 27 tasks: its data (eval/tasks/mirror.py), its speed without loss (eval/tasks/score.py), its results
(eval/evaluation.py)."""

import gzip
import hashlib
import json
import random
import shutil
import signal
import socket
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml

from eval.__main__ import main
from eval.tasks import fetch, harness, mirror, rows, score
from eval.tasks.definitions import _index, definitions
from eval.tasks.journal import Journal
from eval.tasks.scorer import Scorer
from eval.tasks.suite import mean_suite_scores
from model.config import ModelConfig
from model.gpt import GPT
from model.position import POSITIONS
from tests.forked import Command
from tests.moments import after_outcomes
from tests.schemas import checked
from tests.test_eval import (  # noqa: F401  # fixtures
    SHAPE,
    WORDS,
    Letters,
    characters,
    gpt2_with_our_weights,
    prepared,
    requests,
    run,
    save_weights,
)

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared" / "data" / "zero_shot"
shared = pytest.mark.skipif(not SHARED.exists(), reason="no ../shared/data/zero_shot here")
MODELS = [*((pos, "causal") for pos in POSITIONS), ("learned", "prefix"), ("alibi", "prefix"), ("rotary", "prefix")]


def model(pos: str, objective: str, seq: int = 24) -> GPT:
    cfg = ModelConfig(**{**SHAPE, "seq": seq, "objective": objective}, vocab=257, pos=pos)  # type: ignore[arg-type]
    return GPT(cfg, seed=3).eval()


def alone(gpt: GPT, given: list[int], ids: list[int]) -> torch.Tensor:
    """Logits after each token of given + ids, from the plain forward pass."""
    told = {"extents_B": torch.tensor([len(given)])} if gpt.cfg.objective == "prefix" else {}
    with torch.no_grad():
        return gpt(torch.tensor([[*given, *ids]]), **told)[0]


def questions(rng: random.Random, number: int = 12) -> list[tuple[list[int], list[int]]]:
    """Contexts that begin alike in many ways, each with several continuations of several lengths."""

    def some(n: int) -> list[int]:
        return [rng.randrange(257) for _ in range(n)]

    passage, pairs = some(9), []
    for i in range(number):
        context = (passage if i % 2 else passage[:4]) + some(rng.randrange(1, 6))
        first = some(1)
        choices = [some(1), some(1), some(2), [*first, *some(2)], [*first, *some(3)], some(5)]
        pairs += [(context, choice) for choice in choices]
    return pairs + [(passage, [7]), (passage, [7, 8]), ([256], some(3)), ([256], some(3))]


@pytest.mark.parametrize("pos,objective", MODELS)
def test_shared_rows_compute_what_each_input_would_alone(pos, objective):
    gpt, pairs = model(pos, objective), questions(random.Random(0))
    for given, _ in list(pairs):  # and what the model would say, so that "greedy" is not always no
        pairs.append((given, [int(alone(gpt, given, [])[-1].argmax())]))
    got = score.score_pairs(gpt, pairs, batch=150)
    for (given, scored), (nats, greedy) in zip(pairs, got, strict=True):
        logp = alone(gpt, given, scored[:-1])[len(given) - 1 :].log_softmax(-1)
        assert nats == pytest.approx(sum(logp[i, v].item() for i, v in enumerate(scored)), abs=1e-4)
        assert greedy == (logp.argmax(-1).tolist() == scored)
    assert {greedy for _, greedy in got} == {True, False}


def test_a_context_is_computed_once_for_its_choices_and_longer_stems_for_several():
    rng = random.Random(1)
    context = tuple(rng.randrange(257) for _ in range(50))
    inputs = [rows.Input((*context, i, i + 1, i + 2), 0) for i in range(4)]
    assert [(row.stem, len(row)) for row in rows.pack_rows(inputs, 384, 4096)] == [(50, 62)]
    unlike = [rows.Input((*inputs[0].tokens[:2], *(rng.randrange(257) for _ in range(48))), 0) for _ in range(4)]
    assert [len(row.inputs) for row in rows.pack_rows(unlike, 384, 4096)] == [
        1,
        1,
        1,
        1,
    ]  # two tokens are not worth a row
    assert max(len(row) for row in rows.pack_rows(inputs + unlike, 384, 55)) <= 55
    prefixed = [rows.Input(sequence.tokens, n) for sequence, n in zip(inputs, (50, 50, 49, 51), strict=True)]
    assert sorted(len(row.inputs) for row in rows.pack_rows(prefixed, 384, 4096)) == [1, 1, 2]


def test_more_to_score_than_the_longest_input_is_scored_in_pieces():
    gpt, ids = model("learned", "causal"), [random.Random(2).randrange(257) for _ in range(70)]
    nats, _ = score.score_pairs(gpt, [(ids[:5], ids[5:])])[0]
    parts = [score.score_pairs(gpt, [(ids[:at], ids[at : at + 12])])[0][0] for at in range(5, 70, 12)]
    assert nats == pytest.approx(sum(parts), abs=1e-4) and not score.split_to_fit([1], [2] * 24, 24)[1:]


@pytest.mark.parametrize("pos,objective", MODELS)
def test_continuations_are_the_likeliest_token_again_and_again(pos, objective):
    gpt, rng = model(pos, objective), random.Random(3)
    contexts = [[rng.randrange(257) for _ in range(n)] for n in (1, 3, 7, 7, 16, 30)]

    def ended(ids: list[int]) -> bool:
        return len(ids) >= 2 + sum(ids) % 7

    got = score.greedy_continuations(gpt, contexts, 8, ended, batch=60)
    for context, made in zip(contexts, got, strict=True):
        given = context[-16:] if gpt.max_length else context
        expected: list[int] = []
        while len(expected) < 8 and not (expected and ended(expected)):
            expected.append(int(alone(gpt, given, expected)[-1, :257].argmax()))
        assert made == expected


def test_written_answers_equal_those_of_lm_evals_backend():
    from lm_eval.models.huggingface import HFLM
    from tokenizers import decoders

    class Spelled(Letters):
        def decode(self, ids):
            return bytes(ids).decode("latin-1")

    tokenizer = characters()
    tokenizer.backend_tokenizer.decoder = decoders.Fuse()
    # without padding: lm-eval's backend may say a token that is none
    ours = GPT(ModelConfig(**{**SHAPE, "vocab_multiple": 1}, vocab=257, pos="learned"), seed=3)  # type: ignore[arg-type]
    theirs = HFLM(
        pretrained=gpt2_with_our_weights(ours),
        tokenizer=tokenizer,
        max_length=24,
        device="cpu",
        dtype="float32",
        batch_size=3,
        prefix_token_id=256,
    )
    rng = random.Random(5)
    texts = [" ".join(rng.choice(WORDS.split()) for _ in range(n)) for n in (1, 2, 3, 4, 5, 9)]
    scorer = Scorer(ours, Spelled(), window=24)
    stops: list[str] = []
    for _ in range(2):
        settings = {"until": stops, "max_gen_toks": 12, "do_sample": False}
        asked = requests("generate_until", [(text, settings) for text in texts])
        free = scorer.generate_until(asked)
        stops = sorted({text[4] for text in free if len(text) > 4})[:2]
        assert scorer.generate_until(asked) == theirs.generate_until(asked, disable_tqdm=True)


# ------------------------------------------------------------------------------------------------ data


def test_the_suite_is_that_of_the_installed_lm_eval():
    found = definitions(mirror.names(["suite"]))
    assert len(found) == 27
    for name, (config, source) in found.items():  # definitions() has compared versions and splits
        spec = mirror.suite()[name]
        assert spec["since"] and spec["metric"] in [each["metric"] for each in config["metric_list"]]
        assert (
            config["num_fewshot"] == 0
            and config["dataset_path"] in (spec["path"], "json")
            and source.split == spec["split"]
        )
        assert (config.get("dataset_name") or "default") == spec["config"]
    assert 100 * np.mean([spec["chance"] for spec in mirror.suite().values()]) == pytest.approx(34.4, abs=0.1)


def test_the_group_of_other_languages():
    found = definitions(mirror.names(["multilingual"]))
    study = {"ar", "bn", "ca", "en", "es", "eu", "fr", "hi", "id", "pt", "ur", "vi", "zh"}
    assert {name.rpartition("_")[2] for name in found} <= study and len(found) == 19
    xnli = {name.rpartition("_")[2] for name in found if name.startswith("xnli")}
    assert xnli == {"en", "zh", "es", "fr", "vi", "ar", "hi", "ur"}  # the columns of the study's table
    assert mirror.names(["copa", "multilingual", "copa"]) == ["copa", *mirror.groups()["multilingual"]]


@pytest.mark.parametrize("name", ["{0}/task.yaml", "{0}/task", "task", "../{0}/task", "{0}/*"])
def test_no_task_of_a_stranger_is_loaded(name, tmp_path, monkeypatch):
    """A definition of lm-eval may name code, which is imported. A command and the eval.json of a stranger's run name
    tasks; a name that is a path leads nowhere."""
    text = "task: task\noutput_type: multiple_choice\ndoc_to_text: !function code.run\n"
    (tmp_path / "task.yaml").write_text(text)
    (tmp_path / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\ndef run(doc): pass\n")
    load_yaml(tmp_path / "task.yaml")
    assert (tmp_path / "ran").exists()  # lm-eval itself would
    (tmp_path / "ran").unlink()
    (tmp_path / "code.py").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="no task"):
        definitions([name.format(tmp_path)])
    assert not (tmp_path / "ran").exists()


def test_any_task_of_lm_eval_by_name():
    with pytest.raises(ValueError, match="no task 'helaswag' .*did you mean hellaswag"):
        definitions(["helaswag"])
    index = TaskManager().task_index
    for entry in index.values():
        entry.yaml_path = entry.yaml_path and entry.yaml_path.resolve()
    assert _index() == index and len(index) > 10_000
    found = definitions(["blimp", "copa"])
    assert len(found) == 68 and {each.source.path for each in found.values()} == {"nyu-mll/blimp", "aps/super_glue"}


@shared
def test_the_shared_mirror_has_every_task_whole(tmp_path, capsys):
    assert main(["--tasks", "suite", "--data", str(SHARED)]) == 0
    assert "27 tasks can be run" in capsys.readouterr().out

    part = tmp_path / "part"
    shutil.copytree(SHARED / "aps__super_glue", part / "aps__super_glue")
    kept = [e for e in json.loads((SHARED / "manifest.json").read_text()) if e["dataset_path"] == "aps/super_glue"]
    (part / "manifest.json").write_text(json.dumps(kept))
    (part / "aps__super_glue" / "copa" / "validation.jsonl.gz").write_bytes(b"another file")
    assert main(["--tasks", "suite", "--data", str(part)]) == 0
    said = capsys.readouterr()
    assert "4 tasks can be run" in said.out  # boolq, multirc, wic, wsc
    assert "missing: hellaswag" in said.err and "copa/validation.jsonl.gz is not the file of the manifest" in said.err
    assert main(["--tasks", "boolq,copa", "--data", str(part)]) == 2  # asked for by name: nothing less will do
    assert "cannot be run:\n  copa" in capsys.readouterr().err
    assert main(["--tasks", "boolq,multilingual", "--data", str(part)]) == 2  # nor nothing of a group
    assert "multilingual: " in (said := capsys.readouterr().err) and "the data of none of its 19 tasks" in said
    assert main(["--tasks", "suite", "--data", str(tmp_path)]) == 2
    assert "make eval-data" in capsys.readouterr().err


@shared
def test_a_mirror_of_repositories_gives_the_same_rows(tmp_path):
    """From copies of the hub's repositories on disk, in a process of its own as `make eval-data` is."""
    to = tmp_path / "to"

    def fill():
        words = ["--to", to, "--tasks", "copa,triviaqa", "--from", SHARED]
        done = Command(tmp_path / "printed", "eval.tasks.fetch", words, {"HF_HOME": str(tmp_path / "cache")}).wait()
        assert done.returncode == 0, done.stderr

    fill()
    theirs, ours = mirror.Mirror(SHARED), mirror.Mirror(to)
    assert len(ours.entries) == 2
    for source in ours.entries:
        a, b = theirs.table(source), ours.table(source)
        assert a.features == b.features and a.to_list() == b.to_list() and len(a) > 50
    before = {path: path.stat().st_mtime_ns for path in to.rglob("*.gz")}
    (to / ours.entries[min(ours.entries)]["file"]).write_bytes(b"harmed")
    fill()
    after = {path: path.stat().st_mtime_ns for path in to.rglob("*.gz")}
    assert sum(before[path] != after[path] for path in before) == 1  # the harmed one is made again, the other kept
    assert not mirror.Mirror(to).why_unusable(min(ours.entries))


def test_logiqa_is_read_as_the_hubs_script_did():
    block = "\n{}\nA fact.Another one.\nWhich follows?\nA.First.Second\nB.One\nC.Two\nD.Three\n"
    assert fetch.parse_logiqa(block.format("c") + block.format("a")) == [
        {
            "label": label,
            "context": "A fact. Another one.",
            "question": "Which follows?",
            "options": ["First. Second", "One", "Two", "Three"],
        }
        for label in "ca"
    ]


# ------------------------------------------------------------------------------------------------ results


def test_headline_numbers():
    def task(value, stderr, chance, guess):
        return {"value": value, "stderr": stderr, "chance": chance, "guess": guess, "suite": True}

    first = {
        "tasks": {
            "boolq": task(0.6, 0.03, 0.5, 0.62),
            "hellaswag": task(0.4, 0.04, 0.25, 0.25),
            "lambada_openai": task(0.1, 0.0, 0.0, 0.0),
            "other": {"value": 0.9},
        }
    }
    got = mean_suite_scores([first])
    assert got["value"] == pytest.approx(100 * 1.1 / 3) and got["chance"] == pytest.approx(25)
    assert got["stderr"] == pytest.approx(100 * 0.05 / 3)
    assert got["corrected"] == pytest.approx(100 * (0.2 + 0.2 + 0.1) / 3)
    assert (got["tasks"], got["of"]) == (3, 27)
    assert got["able"] == ["hellaswag", "lambada_openai"] and got["able_value"] == pytest.approx(25)
    second = {"tasks": {"boolq": task(0.7, 0.03, 0.5, 0.62), "hellaswag": task(0.25, 0.04, 0.25, 0.25)}}
    both = mean_suite_scores(
        [first, second]
    )  # only what both have; all runs together choose: 0.65 and 0.325 are not enough
    assert (both["tasks"], both["runs"], both["able"], both["able_value"]) == (2, 2, [], None)
    assert mean_suite_scores([{"tasks": {}}]) is None


def test_guesses():
    def row(n, target, answers=("yes", "no")):
        return {"arguments": [("q", answers[i % len(answers)]) for i in range(n)], "target": target}

    yes_no = [row(2, 0), row(2, 0), row(2, 0), row(2, 1)]
    assert harness.scores_without_knowledge("multiple_choice", "acc", yes_no) == {"chance": 0.5, "guess": 0.75}
    # MultiRC: yes and no are written out differently in each item
    written_out = [row(2, each["target"], [f"{i} yes", f"{i} no"]) for i, each in enumerate(yes_no)]
    assert harness.scores_without_knowledge("multiple_choice", "acc", written_out) == {"chance": 0.5, "guess": 0.75}
    own = [row(4, 3, "abcd"), row(5, 2, "efghi")]
    assert harness.scores_without_knowledge("multiple_choice", "acc", own) == {"chance": 0.225, "guess": 0.5}
    several = [{**row(4, 0), "target": [0, 2]}, {**row(4, 0), "target": [2]}]  # any of several answers is right
    assert harness.scores_without_knowledge("multiple_choice", "acc", several) == {"chance": 0.375, "guess": 1.0}
    twice = [{"arguments": [("q", "a"), ("q", "b"), ("", "a"), ("", "b")], "target": 0}]  # with acc_mutual_info
    assert harness.scores_without_knowledge("multiple_choice", "acc", twice)["chance"] == 0.5
    answers = [{"arguments": [("q", {})], "target": target} for target in (["Paris", "paris"], "Rome", "Paris")]
    assert harness.scores_without_knowledge("generate_until", "exact_match", answers) == {"chance": 0.0, "guess": 2 / 3}
    words = [{"arguments": [("q", " a")], "target": target} for target in (" a", " b", " a", " c")]
    assert harness.scores_without_knowledge("loglikelihood", "acc", words) == {"chance": 0.0, "guess": 0.5}
    assert harness.scores_without_knowledge("multiple_choice", "f1", yes_no) == {"chance": None, "guess": None}


@pytest.fixture
def offline(monkeypatch):
    connect = socket.socket.connect

    def refuse(*args, **kwargs):
        raise AssertionError("the network was asked")

    def local_alone(self, address):
        return connect(self, address) if self.family == socket.AF_UNIX else refuse()  # tests/forked.py has one

    monkeypatch.setattr(socket.socket, "connect", local_alone)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


TASKS = ["--tasks", "copa,wnli,wsc,race", "--data", str(SHARED)]


def outcome(directory: Path) -> tuple[dict, bytes]:
    result = json.loads((directory / "eval.json").read_text())
    assert not (directory / "eval.parts").exists()
    return {**result, "seconds": 0}, (directory / "samples.jsonl.gz").read_bytes()


@shared
def test_a_run_is_judged_without_a_network_and_only_when_asked_more(run, offline, capsys):
    assert main([str(run), *TASKS]) == 0
    assert "suite ONLY 4 OF 27 tasks" in capsys.readouterr().out
    result, _ = outcome(run)
    for name in ("copa", "wnli", "wsc", "race"):
        task = result["tasks"][name]
        assert task["suite"] and task["data"]["sha256"] and task["version"] == mirror.suite()[name]["version"]
        assert task["guess"] >= task["chance"]
    counted = [result["tasks"][name]["value"] for name in ("copa", "race", "wnli", "wsc")]
    assert result["suite"]["value"] == pytest.approx(100 * np.mean(counted))
    assert result["lm_eval"] and result["precision"] == "fp32" and result["zero_shot"]["value"] > 0

    stamp = (run / "eval.json").stat().st_mtime_ns
    for words in ([], TASKS, ["--tasks", "copa", *TASKS[2:]]):  # nothing of these is new
        assert main([str(run), *words]) == 0 and (run / "eval.json").stat().st_mtime_ns == stamp
    assert main([str(run), "--tasks", "wic", *TASKS[2:]]) == 0 and (run / "eval.json").stat().st_mtime_ns != stamp
    more, samples = outcome(run)
    assert more["lm_eval_tasks"]["asked"] == ["copa", "wnli", "wsc", "race", "wic"]  # what was there is not lost
    assert {name: more["tasks"][name] for name in result["tasks"]} == result["tasks"] and "wic" in more["tasks"]
    assert {json.loads(row)["task"] for row in gzip.decompress(samples).splitlines()} == set(more["tasks"])


@shared
def test_a_run_is_judged_again_when_the_data_of_its_own_tasks_has_changed_and_not_otherwise(run, tmp_path, capsys):
    entries = json.loads((SHARED / "manifest.json").read_text())
    for folder in {Path(entry["file"]).parts[0] for entry in entries}:
        (tmp_path / folder).symlink_to(SHARED / folder)

    def judged_again(task: str, *kept: dict) -> bool:
        before = (run / "eval.json").stat().st_mtime_ns if (run / "eval.json").exists() else 0
        (tmp_path / "manifest.json").write_text(json.dumps(kept))
        assert main([str(run), "--tasks", task, "--data", str(tmp_path)]) == 0
        return (run / "eval.json").stat().st_mtime_ns != before

    suite_ = mirror.suite()
    of = {
        name: next(
            e
            for e in entries
            if (e["dataset_path"], e["config"], e["split"])
            == (suite_[name]["path"], suite_[name]["config"], suite_[name]["split"])
        )
        for name in ("copa", "wnli", "wsc")
    }
    copa, wnli, wsc = of.values()
    assert judged_again("copa", copa)
    assert not judged_again("copa", copa, wnli)  # one more data set in the folder
    assert not judged_again("copa", copa, {**wnli, "sha256": "other"})
    other = tmp_path / "copa.jsonl.gz"  # the same questions but the last, in another file
    lines = gzip.decompress((SHARED / copa["file"]).read_bytes()).splitlines(keepends=True)[:-1]
    other.write_bytes(gzip.compress(b"".join(lines)))
    changed = {**copa, "file": other.name, "sha256": hashlib.sha256(other.read_bytes()).hexdigest()}
    assert judged_again("copa", changed, wnli)
    assert judged_again("suite", changed) and "missing: wnli" in capsys.readouterr().err
    assert not judged_again("suite", changed)
    assert judged_again("suite", changed, wnli)  # can be had by now
    assert "wnli" in json.loads((run / "eval.json").read_text())["tasks"]
    assert not judged_again("copa", changed, wnli, wsc) and judged_again("suite", changed, wnli, wsc)
    assert not judged_again("copa", changed)  # what is gone is no reason: its results are not made again


NLI = [  # in XNLI's schema; rows of our own
    {"premise": "Le chat dort sur la table.", "hypothesis": "Le chat est sur la table.", "label": 0},
    {"premise": "Le chat dort sur la table.", "hypothesis": "Le chat est noir.", "label": 1},
    {"premise": "Le chat dort sur la table.", "hypothesis": "Le chat court.", "label": 2},
    {"premise": "Il pleut depuis hier, dit-elle.", "hypothesis": "Il a fait sec hier.", "label": 2},
]
CARD = """---
dataset_info:
- config_name: fr
  features:
  - {name: premise, dtype: string}
  - {name: hypothesis, dtype: string}
  - name: label
    dtype: {class_label: {names: {'0': entailment, '1': neutral, '2': contradiction}}}
configs:
- config_name: fr
  data_files: [{split: validation, path: fr/validation.jsonl}]
---
"""


def test_tasks_of_other_languages_are_mirrored_and_scored_as_written(run, tmp_path, offline, capsys):
    """From the hub's file to the accuracy; against one forward pass of the model for each choice."""
    from safetensors.torch import load_file

    from data.tokenizer import load_tokenizer

    hub, to = tmp_path / "hub", tmp_path / "to"
    (hub / "facebook__xnli/fr").mkdir(parents=True)
    (hub / "facebook__xnli/README.md").write_text(CARD)
    (hub / "facebook__xnli/fr/validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in NLI))
    words = ["--to", to, "--tasks", "multilingual", "--from", hub, "--format", "json"]
    done = Command(tmp_path / "printed", "eval.tasks.fetch", words, {"HF_HOME": str(tmp_path / "cache")}).wait()
    answer = checked(done.stdout)
    assert answer["tasks"] == ["xnli_fr"] and len(answer["failed"]) == 18 and "error: xnli_zh" in done.stderr

    # the model sees more than its 64 tokens of training, which learned positions would not
    record = json.loads((run / "run.json").read_text())
    record["config"]["model"]["pos"] = "alibi"
    gpt = GPT(ModelConfig(**record["config"]["model"]), seed=4)
    (run / "run.json").write_text(json.dumps(record))
    save_weights(run, gpt.state_dict())
    assert main([str(run), "--tasks", "multilingual", "--data", str(to)]) == 0
    assert "missing: xnli_zh" in capsys.readouterr().err
    result = json.loads((run / "eval.json").read_text())
    gpt.load_state_dict(load_file(run / "weights.safetensors"))
    tokenizer, hits = load_tokenizer(record["data"]["tokenizer"]["path"]), []
    for row in NLI:
        said = []
        for word in ("Oui", "Aussi", "Non"):
            # with lm-eval's delimiter before it, though nothing stands before that
            ids = tokenizer.encode(f" {row['premise']}, correct? {word}, {row['hypothesis']}")
            logp = alone(gpt.eval(), [tokenizer.eod], ids[:-1]).log_softmax(-1)
            said.append(sum(logp[i, token].item() for i, token in enumerate(ids)))
        hits.append(int(np.argmax(said)) == row["label"])
    task = result["tasks"]["xnli_fr"]
    assert task["value"] == np.mean(hits) and task["chance"] == pytest.approx(1 / 3) and task["n"] == 4
    assert result["lm_eval_tasks"]["asked"] == ["multilingual"] and len(result["lm_eval_tasks"]["missing"]) == 18
    assert result["suite"] is None and not task["suite"]


@shared
def test_killed_and_divided_evaluations_end_the_same(run, tmp_path):
    assert main([str(run), *TASKS]) == 0
    expected = outcome(run)
    (run / "eval.json").unlink()
    killed = partial(after_outcomes, "eval.parts", 3)
    assert Command(tmp_path / "printed", "eval", [run, *TASKS], prepare=killed).wait().returncode == -signal.SIGKILL
    assert not (run / "eval.json").exists()
    part = next((run / "eval.parts").glob("*"))
    part.write_bytes(part.read_bytes()[:-7])  # a kill may cut a line
    known = Journal(run / "eval.parts", json.loads(part.read_bytes().splitlines()[0].partition(b" ")[2])["identity"])
    assert len(known.known) > 10
    known.close()
    assert main([str(run), *TASKS]) == 0
    assert outcome(run) == expected

    (run / "eval.json").unlink()
    assert Command(tmp_path / "printed", "eval", [run, *TASKS, "--processes", "2"]).wait().returncode == 0
    assert outcome(run) == expected


def test_what_another_model_left_is_not_read(tmp_path):
    first = Journal(tmp_path, {"weights": "a"})
    first.add({"key": [1.0, True]})
    first.close()
    assert "key" in Journal(tmp_path, {"weights": "a"}) and "key" not in Journal(tmp_path, {"weights": "b"})


def test_what_nobody_scored_is_an_error_and_no_zero(tmp_path):
    journal = Journal(tmp_path, {})
    with pytest.raises(KeyError):
        journal.get("key", (0.0, False))
    assert Journal(tmp_path, {}, rank=1, ranks=2).get("key", (0.0, False)) == (0.0, False)
