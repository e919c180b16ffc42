"""eval/finetune: GLUE's files and metrics, padding and pooling, the schedule, the command; and Hugging Face's Trainer
on the same checkpoint, task and order."""

import gzip
import json
import math
import os
import random
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from ablations import rundir
from ablations.safe_files import Damaged
from eval.finetune import __main__ as command
from eval.finetune import classifier, metrics, results, tasks, train
from eval.finetune.classifier import Classifier, GPTBackbone, HuggingFaceBackbone, pad
from eval.finetune.source import PretrainedModel
from eval.report.reading.external import conditions_to_compare, read_external, reason_not_comparable
from eval.report.reading.runs import read_glue_table
from model.config import ModelConfig
from model.gpt import GPT
from tests.test_answers import checked
from tests.test_eval import SHAPE, Letters, model, prepared, run  # noqa: F401  # fixtures

WORDS = "красный кот sat on the mat und der Hund è bello".split()


def pairs(number: int, seed: int = 0) -> list[tuple[str, str, int]]:
    """Pairs of texts; the label says whether the second begins as the first does."""
    rng, rows = random.Random(seed), []
    for _ in range(number):
        a = " ".join(rng.choices(WORDS, k=rng.randint(2, 5)))
        same = rng.random() < 0.5
        b = a.split()[0] if same else rng.choice([word for word in WORDS if word != a.split()[0]])
        rows.append((a, b + ' "quoted', int(same)))
    return rows


@pytest.fixture
def glue(tmp_path: Path) -> Path:
    """Tiny files in GLUE's own formats, and in those in which it is passed on."""
    folder = tmp_path / "glue"
    for name in ("CoLA", "RTE", "MRPC", "MNLI", "STS-B", "nyu-mll__glue/qnli"):
        (folder / name).mkdir(parents=True)
    for split, number, seed in (("train", 40, 1), ("dev", 16, 2)):
        rows = pairs(number, seed)
        (folder / f"CoLA/{split}.tsv").write_text("".join(f"gj04\t{y}\t\t{a}\n" for a, _, y in rows))
        lines = [f"{i}\t{a}\t{b}\t{('not_entailment', 'entailment')[y]}" for i, (a, b, y) in enumerate(rows)]
        with gzip.open(folder / f"RTE/{split}.tsv.gz", "wt") as file:
            file.write("\n".join(["index\tsentence1\tsentence2\tlabel", *lines]) + "\n")
        lines = [json.dumps({"text_a": a, "text_b": b, "label": str(y)}) for a, b, y in rows]
        (folder / f"MRPC/{split}.jsonl").write_text("\n".join(lines))
        lines = [json.dumps({"text_a": a, "text_b": b, "label": f"{5 * y}.000"}) for a, b, y in rows]
        with gzip.open(folder / f"STS-B/{split}.jsonl.gz", "wt") as file:
            file.write("\n".join(lines))
        hub = {"train": "train", "dev": "validation"}[split]
        with gzip.open(folder / f"nyu-mll__glue/qnli/{hub}.jsonl.gz", "wt") as file:
            lines = [json.dumps({"question": a, "sentence": b, "label": 1 - y, "idx": 3}) for a, b, y in rows]
            file.write("\n".join(lines) + "\n")
    names = ("entailment", "neutral", "contradiction")
    for split in ("train", "dev_matched", "dev_mismatched"):
        lines = [f"{i}\t{a}\t{b}\t{names[i % 3]}" for i, (a, b, _) in enumerate(pairs(12, 5))]
        (folder / f"MNLI/{split}.tsv").write_text("\n".join(["index\tsentence1\tsentence2\tgold_label", *lines]))
    return folder


# ------------------------------------------------------------------------------------------------ data and metrics


def test_every_format_gives_the_rows_that_were_written(glue: Path) -> None:
    rows = pairs(16, 2)
    for name in ("rte", "mrpc", "qnli", "stsb"):
        got = tasks.load_split(name, "dev", [glue])
        assert [(item.text_a, item.text_b) for item in got] == [(a, b) for a, b, _ in rows], name
        # entailment is class 0 in RTE and QNLI, the paraphrase class 1 in MRPC
        expected = {"rte": [1 - y for *_, y in rows], "qnli": [1 - y for *_, y in rows]}
        scores = {"mrpc": [y for *_, y in rows], "stsb": [5.0 * y for *_, y in rows]}
        assert [item.label for item in got] == (expected | scores)[name], name
        assert len({item.id for item in got}) == 16
    assert [item.text_b for item in tasks.load_split("cola", "dev", [glue])] == [""] * 16
    assert [item.label for item in tasks.load_split("mnli", "dev_mismatched", [glue])] == [0.0, 1.0, 2.0] * 4
    assert tasks.find_split("qnli", "dev", [glue / "nyu-mll__glue"]) == tasks.find_split(
        "qnli", "dev", [glue]
    )  # either folder
    assert tasks.find_split("sst2", "dev", [glue]) is None and tasks.find_split("rte", "dev", [glue / "no", glue])


def test_a_byte_order_mark_is_no_part_of_the_first_column(glue: Path) -> None:
    whole = tasks.load_split("rte", "dev", [glue])
    with gzip.open(glue / "RTE/dev.tsv.gz", "rt", encoding="utf-8") as file:
        content = file.read().replace("index\tsentence1", "sentence1\tindex", 1)
    (glue / "RTE/dev.tsv").write_text(f"\ufeff{content}", encoding="utf-8")
    swapped = tasks.load_split("rte", "dev", [glue])  # the first column, a number, is now the first sentence
    assert [item.text_b for item in swapped] == [item.text_b for item in whole]


@pytest.mark.parametrize(
    "file,content,why",
    [
        ("RTE/dev.tsv", "index\tsentence1\tlabel\n", "no column sentence2"),
        ("RTE/dev.tsv", "index\tsentence1\tsentence2\tlabel\n1\ta\tb\tmaybe\n", "row 1: the label 'maybe'"),
        ("RTE/dev.tsv", "index\tsentence1\tsentence2\tlabel\n1\ta\n", "row 1: too few columns"),
        ("RTE/dev.tsv", "index\tsentence1\tsentence2\tlabel\n", "no rows"),
        ("MRPC/dev.jsonl", '{"text_a": "x"', "row 1"),
        ("MRPC/dev.jsonl", '{"text_a": "x", "text_b": "y", "label": -1}', "label '-1'"),
        ("STS-B/dev.jsonl", '{"text_a": "x", "text_b": "y", "label": "?"}', "is no number"),
        ("STS-B/dev.jsonl", '{"text_a": "x", "text_b": "y", "label": "nan"}', "is no number"),
        ("STS-B/dev.jsonl", '{"text_a": "x", "text_b": "y", "label": Infinity}', "is no number"),
        ("STS-B/dev.jsonl", '{"text_a": "x", "text_b": "y", "label": 1' + "0" * 400 + "}", "is no number"),
        ("STS-B/dev.jsonl", '{"text_a": "x", "text_b": "y", "label": true}', "is no number"),
        ("MRPC/dev.jsonl", '{"text_a": "x", "text_b": "y", "label": true}', "label 'True'"),
        ("MRPC/dev.jsonl", '{"text_a": "x", "label": 1}', "needed are text_a, text_b, label"),
        ("MRPC/dev.jsonl", '{"text_a": "x", "text_b": null, "label": 1}', "row 1: text_a and text_b must be text"),
        ("MRPC/dev.jsonl", '{"text_a": ["x"], "text_b": "y", "label": 1}', "row 1: text_a and text_b must be text"),
        ("MRPC/dev.jsonl", "[" * 100_000, "row 1"),
    ],
)
def test_a_file_of_another_kind_is_named(glue: Path, file: str, content: str, why: str) -> None:
    (glue / file).write_text(content)
    name = {"RTE": "rte", "MRPC": "mrpc", "STS-B": "stsb"}[file.split("/")[0]]
    with pytest.raises(ValueError, match=why) as error:
        tasks.load_split(name, "dev", [glue])
    assert file in str(error.value)


def test_metrics_against_sklearn_and_scipy() -> None:
    from scipy.stats import pearsonr, spearmanr
    from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(200, 2)), rng.integers(0, 2, 200)
    made = logits.argmax(1)
    expected = {
        "accuracy": accuracy_score(labels, made),
        "f1": f1_score(labels, made),
        "mcc": matthews_corrcoef(labels, made),
    }
    assert metrics.classification_metrics(logits, labels) == pytest.approx(expected)
    x, y = rng.normal(size=100).round(1), rng.normal(size=100).round(1)  # with ties
    expected = {"pearson": pearsonr(x, y)[0], "spearman": spearmanr(x, y)[0]}
    assert metrics.regression_metrics(x, y) == pytest.approx(expected)


@pytest.mark.parametrize("classes,number", [(2, 10), (2, 7), (3, 12)])
def test_constant_outputs_score_exactly_chance_and_count_as_collapsed(classes: int, number: int) -> None:
    labels = np.array([i % classes for i in range(number)] + [0, 0])  # not balanced
    got = metrics.classification_metrics(np.full((len(labels), classes), 0.3), labels)
    assert got["accuracy"] == pytest.approx(1 / classes) and got == metrics.chance_metrics(labels, classes)
    if classes == 2:
        share = (labels == 1).mean()  # a coin: half of the true ones, and as many of the others
        assert got["mcc"] == 0 and got["f1"] == pytest.approx(share / (share + 0.5))
    assert metrics.is_collapsed(np.full((9, classes), 0.3)) and metrics.is_collapsed(np.eye(classes)[[1] * 9])
    assert not metrics.is_collapsed(np.eye(classes)[[0, 1] * 4])
    always = metrics.classification_metrics(np.eye(2)[[1] * 8], np.array([1, 0] * 4))
    assert always["mcc"] == 0 and metrics.regression_metrics(np.ones(4), np.arange(4)) == {"pearson": 0, "spearman": 0}


def test_both_means_have_their_name_and_mnli_its_weight() -> None:
    scores = dict.fromkeys(metrics.NINE_SCORES, 50.0) | {"mnli": 80.0, "mnli-mm": 60.0}
    got = metrics.glue_means(scores)
    assert got == {"nine_numbers": pytest.approx(490 / 9), "eight_tasks": pytest.approx(420 / 8), "numbers": 9}
    assert metrics.glue_means({})["nine_numbers"] is None


def test_the_table_is_of_medians_with_the_spread_and_the_collapsed() -> None:
    def result(mcc: float, collapsed: bool = False) -> dict:
        return {"sets": {"dev": {"metrics": {"mcc": mcc}, "chance": {"mcc": 0.0}, "collapsed": collapsed, "items": []}}}

    table = results.summarise_over_seeds(
        {"cola": [result(0.5), result(0.0, True), result(0.1), result(0.4), result(0.3)]}
    )
    study = table["scores"]["cola"]["study"]
    assert (study["median"], study["lowest"], study["highest"]) == (30.0, 0.0, 50.0)
    assert table["scores"]["cola"]["collapsed"] == 1 and "1 COLLAPSED" in command.table_text(table)
    assert "ONLY 1 OF nine numbers 30.0" in command.table_text(table)


# ------------------------------------------------------------------------------------------------ models


def test_the_schedule_is_the_tasks_own() -> None:
    for steps in (10, 100, 12_345):
        rates = [train.learning_rate_factor(step, steps, 0.1) for step in range(steps)]
        top = int(0.1 * steps)
        assert rates[0] == 0 and rates[top] == 1 == max(rates) and rates[-1] < 0.06
        middle = top + (steps - top) // 2
        assert rates[middle] == pytest.approx(0.5, abs=0.1) and rates[top // 2] == pytest.approx(top // 2 / top)


def test_batches_hold_every_item_once_by_length_and_follow_from_seed_and_epoch() -> None:
    rng = random.Random(0)
    lengths = [rng.randint(3, 90) for _ in range(2003)]
    made = train.epoch_batches(lengths, 16, 1, 0)
    assert sorted(i for batch in made for i in batch) == list(range(2003)) and max(map(len, made)) == 16
    padded = sum(len(batch) * max(lengths[i] for i in batch) for batch in made)
    assert padded < 1.1 * sum(lengths)
    assert made == train.epoch_batches(lengths, 16, 1, 0)
    assert made not in (train.epoch_batches(lengths, 16, 2, 0), train.epoch_batches(lengths, 16, 1, 1))
    assert [len(batch) for batch in made] != sorted(len(batch) for batch in made)
    first = [min(lengths[i] for i in batch) for batch in made]
    assert first != sorted(first)


@pytest.mark.parametrize("objective", ["causal", "prefix"])
@pytest.mark.parametrize("pos", ["learned", "rotary", "alibi"])
@pytest.mark.parametrize("pooling", classifier.POOLINGS)
def test_padding_on_either_side_gives_what_each_text_gives_alone(objective: str, pos: str, pooling: str) -> None:
    cfg = ModelConfig(**{**SHAPE, "objective": objective}, vocab=257, pos=pos)  # type: ignore[arg-type]
    model_ = Classifier(GPTBackbone(GPT(cfg, seed=3)), 3, pooling, 0.1, 1)
    rng = random.Random(1)
    rows = [[rng.randrange(257) for _ in range(n)] for n in (1, 3, 8, 20)]
    alone = np.concatenate([train.predict_logits(model_, [row]) for row in rows])
    for side in ("left", "right"):
        np.testing.assert_allclose(train.predict_logits(model_, rows, side), alone, atol=1e-5)
    assert np.ptp(alone, 0).min() > 1e-4  # what is read matters


def test_what_each_pooling_reads() -> None:
    x_BTD = torch.arange(24.0).view(2, 4, 3)

    class States(torch.nn.Module):
        width = 3

        def forward(self, batch: classifier.PaddedBatch) -> torch.Tensor:
            return x_BTD

    for side, places in (("right", [(0, 2), (0, 4)]), ("left", [(2, 4), (0, 4)])):
        batch = pad([[7, 7], [7] * 4], side)
        for pooling in classifier.POOLINGS:
            made = Classifier(States(), 2, pooling, 0.0, 1).eval()
            expected = []
            for x_TD, (start, end) in zip(x_BTD, places, strict=True):
                real_TD = x_TD[start:end]
                expected.append({"first": real_TD[0], "last": real_TD[-1], "mean": real_TD.mean(0)}[pooling])
            with torch.no_grad():
                np.testing.assert_allclose(made(batch), made.out(torch.tanh(made.dense(torch.stack(expected)))))


def test_texts_are_joined_as_in_training_and_the_longer_one_is_cut() -> None:
    encode = classifier.input_encoder(Letters(), 12)
    assert encode("ab", "") == [256, 97, 98, 256]
    assert encode("ab", "c") == [256, 97, 98, 256, 99, 256]
    assert encode("a" * 99, "bc") == [256, *[97] * 7, 256, 98, 99, 256] and len(encode("a" * 99, "b" * 99)) == 12
    # a room of 9: the longer text keeps the odd token, the second one of two that are as long
    kept = [(row.count(97), row.count(98)) for row in (encode("a" * m, "b" * n) for m, n in ((8, 7), (7, 8), (9, 9)))]
    assert kept == [(5, 4), (4, 5), (4, 5)]

    class WordPieces(Letters):
        cls, sep = 0, 1

    assert classifier.input_encoder(WordPieces(), 12)("ab", "c") == [0, 97, 98, 1, 99, 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_dropout_of_attention_among_padding(dtype: torch.dtype) -> None:
    """A token that sees itself alone gets its value, times 1/(1 - p), or nothing; and only in training."""
    from model import attention
    from model.position import Position

    cfg = ModelConfig(**SHAPE, vocab=257, pos="none")  # type: ignore[arg-type]
    x_BTD, positions_BT = torch.zeros(500, 1, cfg.hidden, dtype=dtype), torch.zeros(500, 1, dtype=torch.int64)
    arrangement = attention.Arrangement(positions_BT, torch.ones(500, 1, 1, dtype=torch.bool))
    q = torch.ones(500, 4, 1, 8, dtype=dtype)
    torch.manual_seed(0)
    for share in (0.0, 0.25):
        out = attention.make_attention(Position(cfg), 4, x_BTD, share, arrangement)(q, q, q)
        expected = [0.0, 4 / 3] if share else [1.0]
        assert sorted(set(out.flatten().float().tolist())) == pytest.approx(expected, rel=1e-2)
        assert float((out == 0).float().mean()) == pytest.approx(share, abs=0.05)
    encoder = ModelConfig(**{**SHAPE, "objective": "mlm", "attn_dropout": 0.3}, vocab=257, pos="rotary")  # type: ignore[arg-type]
    ours, batch = GPTBackbone(GPT(encoder, seed=3)), pad([[5, 6, 7], [8, 9]])
    assert not torch.equal(ours(batch), ours(batch))
    ours.eval()
    assert torch.equal(ours(batch), ours(batch))


@pytest.mark.parametrize("change", [{"epochs": 6}, {"epochs": 0}, {"batch": 0}, {"warmup": 1.0}, {"pooling": "max"}])
def test_rules_and_ranges(change: dict) -> None:
    with pytest.raises(ValueError):
        setting = train.Setting(**change)
        Classifier(GPTBackbone(model()), 2, setting.pooling, 0.0, 1)


def test_against_hugging_faces_trainer(tmp_path: Path) -> None:
    """The same tiny BERT, rows, order of batches, optimizer and schedule give the same weights and predictions."""
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=258,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    torch.manual_seed(0)
    transformers.BertModel(config).save_pretrained(tmp_path / "bert")
    rng = random.Random(3)
    labels = [rng.randrange(2) for _ in range(70)]
    rows = [[256, *[rng.randrange(40 * y, 40 * y + 120) for _ in range(rng.randint(2, 30))], 256] for y in labels]
    setting = train.Setting(epochs=2, batch=8, lr=5e-3, dropout=0.0, pooling="first")
    ours = Classifier(HuggingFaceBackbone(tmp_path / "bert"), 2, "first", 0.0, seed=5)
    before = train.predict_logits(ours, rows)
    train.train(ours, rows, labels, setting, seed=5)

    theirs = Classifier(HuggingFaceBackbone(tmp_path / "bert"), 2, "first", 0.0, seed=5)

    class Wrapped(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = theirs

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor) -> dict:
            logits = self.model(classifier.PaddedBatch(input_ids, attention_mask.bool()))
            return {"loss": torch.nn.functional.cross_entropy(logits, labels), "logits": logits}

    lengths = [len(row) for row in rows]

    class InOurOrder(transformers.Trainer):
        def get_train_dataloader(self) -> list:
            class Epochs:
                epoch = -1

                def __len__(self) -> int:
                    return len(train.epoch_batches(lengths, 8, 5, 0))

                def __iter__(self):
                    self.epoch += 1
                    for items in train.epoch_batches(lengths, 8, 5, self.epoch):
                        batch = pad([rows[i] for i in items])
                        told = torch.tensor([labels[i] for i in items])
                        yield {"input_ids": batch.tokens_BT, "attention_mask": batch.real_BT.long(), "labels": told}

            return Epochs()  # type: ignore[return-value]

    steps = 2 * len(train.epoch_batches(lengths, 8, 5, 0))
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path / "out"),
        num_train_epochs=2,
        max_steps=steps,
        learning_rate=5e-3,
        adam_beta2=0.98,
        adam_epsilon=1e-6,
        weight_decay=0.0,
        max_grad_norm=0.0,
        lr_scheduler_type="cosine",
        warmup_steps=int(0.1 * steps),
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
    )
    InOurOrder(model=Wrapped(), args=arguments, train_dataset=[{"labels": 0}] * 70).train()
    got, expected = train.predict_logits(ours, rows), train.predict_logits(theirs, rows)
    np.testing.assert_allclose(got, expected, atol=2e-4)
    assert np.abs(got - before).max() > 0.05
    labels_N = np.array(labels)
    assert metrics.classification_metrics(got, labels_N) == metrics.classification_metrics(expected, labels_N)


# ------------------------------------------------------------------------------------------------ the command


def arguments(run: Path, glue: Path, *more: str) -> list[str]:
    return [str(run), "--data", str(glue), "--seeds", "2", "--epochs", "1", *more]


def test_a_run_is_fine_tuned_and_what_is_there_is_kept(run: Path, glue: Path, capsys) -> None:  # noqa: F811
    assert command.main(arguments(run, glue, "--tasks", "cola,rte,mnli")) == 0
    told = capsys.readouterr().out
    assert "mnli-mm" in told and "mean of ONLY 4 OF nine numbers" in told
    folder = run / "glue"
    assert {path.name for path in folder.iterdir()} == {
        "glue.json",
        *(f"{name}-{seed}.json" for name in ("cola", "rte", "mnli") for seed in (1, 2)),
    }
    result = json.loads((folder / "rte-1.json").read_text())
    assert result["setting"]["pooling"] == "last" and len(result["sets"]["dev"]["items"]) == 16
    assert np.mean([item["value"] for item in result["sets"]["dev"]["items"]]) == pytest.approx(
        result["sets"]["dev"]["metrics"]["accuracy"]
    )
    first, second = (json.loads((folder / f"cola-{seed}.json").read_text())["sets"] for seed in (1, 2))
    assert first.keys() == second.keys() and first["dev"]["chance"] == second["dev"]["chance"]

    content = {path.name: path.read_bytes() for path in folder.iterdir()}
    stamps = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    (folder / "rte-2.json").unlink()  # as after a kill
    (folder / "cola-1.json").write_bytes(content["cola-1.json"][:-30])  # damaged
    assert command.main(arguments(run, glue, "--tasks", "cola,rte,mnli")) == 0
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == content  # and again bit for bit
    assert {n for n, stamp in stamps.items() if (folder / n).stat().st_mtime_ns != stamp} == {
        "rte-2.json",
        "cola-1.json",
        "glue.json",
    }
    with open(glue / "CoLA/dev.tsv", "a") as file:
        file.write("gj04\t1\t\tone more\n")
    assert command.main(arguments(run, glue, "--tasks", "cola")) == 0  # other data: made again
    assert len(json.loads((folder / "cola-1.json").read_text())["sets"]["dev"]["items"]) == 17


@pytest.mark.parametrize(
    "keys, value",
    [
        (["sets"], {}),
        (["sets", "dev"], []),
        (["sets", "dev", "metrics"], {}),
        (["sets", "dev", "metrics", "mcc"], "1"),
        (["sets", "dev", "chance"], None),
        (["sets", "dev", "collapsed"], 3),
        (["sets", "dev", "constant"], [{"mcc": "1"}]),
    ],
)
def test_a_result_of_another_form_is_made_again(keys: list[str], value: Any, run: Path, glue: Path, capsys) -> None:  # noqa: F811
    assert command.main(arguments(run, glue, "--tasks", "cola")) == 0
    path = run / "glue/cola-1.json"
    before = path.read_bytes()
    content = json.loads(before)
    *above, last = keys
    at = content
    for key in above:
        at = at[key]
    at[last] = value
    path.write_text(json.dumps(content))
    assert command.main(arguments(run, glue, "--tasks", "cola")) == 0
    assert "cola-1.json is damaged: sets" in capsys.readouterr().err and path.read_bytes() == before


def test_data_that_changes_while_it_is_fine_tuned_on_gives_no_result(
    run: Path,  # noqa: F811
    glue: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A result says on which data it was made, by the hashes at the beginning of the command."""
    training = train.train

    def meanwhile(*arguments: Any) -> list[float]:
        with open(glue / "CoLA/dev.tsv", "a", encoding="utf-8") as file:
            file.write("gj04\t1\t\tещё одна\n")
        return training(*arguments)

    with monkeypatch.context() as during:
        during.setattr(train, "train", meanwhile)
        assert command.main([str(run), "--data", str(glue), "--seeds", "1", "--epochs", "1", "--tasks", "cola"]) == 2
    assert "its data changed while it was fine-tuned on" in capsys.readouterr().err
    assert not (run / "glue/cola-1.json").exists()


def test_results_of_inputs_made_otherwise_are_made_again(run: Path, glue: Path) -> None:  # noqa: F811
    """As after the odd token of a pair that is cut went to the other text: nothing else of a result shows it."""
    from launch.repair import is_fine_tuned

    cell: Any = SimpleNamespace(dir=run)
    assert not is_fine_tuned(cell, ["cola"], 2)
    assert command.main(arguments(run, glue, "--tasks", "cola")) == 0
    file, table = run / "glue/cola-1.json", run / "glue" / rundir.GLUE_TABLE
    now = file.read_bytes()
    assert is_fine_tuned(cell, ["cola"], 2)
    for version in (None, rundir.GLUE_INPUTS_VERSION - 1):  # without one: results of before there were versions
        for path in (file, table):
            content = json.loads(path.read_text()) | {"inputs_version": version, "train_items": -1}
            path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
        assert not is_fine_tuned(cell, ["cola"], 2)
        assert command.main(arguments(run, glue, "--tasks", "cola")) == 0
        assert file.read_bytes() == now and is_fine_tuned(cell, ["cola"], 2)
    table.write_bytes(table.read_bytes()[:-9])
    assert not is_fine_tuned(cell, ["cola"], 2)


def test_results_of_other_tasks_stay_in_the_table_while_they_are_valid(run: Path, glue: Path, capsys) -> None:  # noqa: F811
    """The table after a command for each task is that of one command for all: whatever was asked for before."""
    from launch.repair import is_fine_tuned

    folder, cell = run / "glue", SimpleNamespace(dir=run)

    def table() -> dict[str, Any]:
        return json.loads((folder / rundir.GLUE_TABLE).read_text())

    assert command.main(arguments(run, glue, "--tasks", "cola,mrpc,rte")) == 0
    together = table()
    stamps = {path.name: path.stat().st_mtime_ns for path in folder.glob("*-*.json")}
    assert command.main(arguments(run, glue, "--tasks", "rte")) == 0
    assert command.main([*arguments(run, glue, "--tasks", "rte,cola"), "--seeds", "1"]) == 0  # fewer than are there
    assert table() == together and list(together["scores"]) == list(together["data_sha256"]) == ["cola", "mrpc", "rte"]
    (glue / "MRPC").rename(glue / "elsewhere")  # data that is not there cannot have changed
    (folder / rundir.GLUE_TABLE).write_bytes(b"{")  # and a lost table is made of all results
    (folder / "cola-x.json").write_text("{}")
    assert command.main(arguments(run, glue, "--tasks", "cola")) == 0
    assert table() == together
    assert stamps == {name: (folder / name).stat().st_mtime_ns for name in stamps}

    for asked, seeds, there in ((["cola", "mrpc", "rte"], 2, True), (["cola", "qnli"], 2, False), (["rte"], 3, False)):
        assert is_fine_tuned(cell, asked, seeds) == there, (asked, seeds)  # type: ignore[arg-type]

    capsys.readouterr()
    with open(glue / "CoLA/dev.tsv", "a") as file:
        file.write("gj04\t1\t\tone more\n")
    assert command.main(arguments(run, glue, "--tasks", "rte")) == 0  # other data: no longer the same task
    assert list(table()["scores"]) == list(table()["data_sha256"]) == ["mrpc", "rte"]
    assert "cola was in glue.json, with other weights, settings or data: left out" in capsys.readouterr().err
    assert command.main([*arguments(run, glue, "--tasks", "rte"), "--epochs", "2"]) == 0  # other settings
    assert list(table()["scores"]) == ["rte"] and table()["setting"]["epochs"] == 2


def test_a_table_that_is_not_that_of_the_results_beside_it_is_damage(run: Path, glue: Path) -> None:  # noqa: F811
    assert command.main(arguments(run, glue, "--tasks", "cola,rte")) == 0
    path, result = run / "glue" / rundir.GLUE_TABLE, run / "glue/cola-2.json"
    whole, stored = json.loads(path.read_text()), result.read_text()
    assert read_glue_table(path) == whole

    forged = json.loads(path.read_text())
    for kind in ("study", "leaderboard"):
        forged["scores"]["cola"][kind] |= {"median": 55.0, "highest": 99.0}
        forged[kind] = metrics.glue_means({name: entry[kind]["median"] for name, entry in forged["scores"].items()})
    path.write_text(json.dumps(forged))
    with pytest.raises(Damaged, match="glue.json is damaged: the median of cola is not that of cola-1.json and cola-2"):
        read_glue_table(path)
    forged = json.loads(json.dumps(whole))
    forged["scores"]["rte"]["collapsed"] += 1
    path.write_text(json.dumps(forged))
    with pytest.raises(Damaged, match="the number of seeds of rte that collapsed is not that of rte-1.json and rte-2"):
        read_glue_table(path)
    path.write_text(json.dumps(whole))
    result.write_text(stored.replace('"mcc": ', '"mcc": 1', 1))
    with pytest.raises(Damaged, match="the median of cola is not that of"):
        read_glue_table(path)
    result.write_text(stored[:-9])
    with pytest.raises(Damaged, match="cola-2.json is damaged"):
        read_glue_table(path)
    for content in (stored.replace('"epochs": 1', '"epochs": 2'), None):  # made otherwise, or missing
        result.unlink() if content is None else result.write_text(content)
        assert read_glue_table(path) == whole


def test_bad_input_is_named_before_any_work(run: Path, glue: Path, tmp_path: Path, capsys) -> None:  # noqa: F811
    for words, why in (
        ([str(run), "--data", str(tmp_path / "empty")], "data of no task: GLUE_DATA="),
        (arguments(run, glue, "--tasks", "colla"), "no task 'colla' in GLUE (did you mean cola?); there are cola"),
        (arguments(run, glue, "--tasks", "sst2"), "SST-2/train.tsv"),
        ([str(run), "--data", str(glue), "--epochs", "6"], "from 1 to 5"),
        ([str(run), "--data", str(glue), "--seeds", "0"], "numbers from 1 on"),
        (["--external", str(glue), "--to", str(tmp_path / "to"), "--data", str(glue)], "no config.json"),
        (["--external", str(glue), "--to", str(glue), "--data", str(glue)], "need a folder of their own"),
        ([], "give the directory of a run"),
    ):
        assert command.main(words) == 2
        assert why in capsys.readouterr().err
    content = bytearray((run / "weights.safetensors").read_bytes())
    content[-1] ^= 1
    (run / "weights.safetensors").write_bytes(content)
    assert command.main(arguments(run, glue)) == 2 and "is damaged" in capsys.readouterr().err
    (run / rundir.DONE).unlink()
    assert command.main(arguments(run, glue)) == 2 and "only a finished run" in capsys.readouterr().err
    assert not (run / "glue").exists()


def test_labels_that_a_text_tells_are_learned(glue: Path) -> None:
    """Not only that it runs: whether the second text begins as the first does is learned from the files as they are."""
    rows = [(f"{a} {'zz' if y else 'qq'}", b, y) for a, b, y in pairs(120, 7)]
    for split, part in (("train", rows[:80]), ("dev", rows[80:])):
        lines = [json.dumps({"text_a": a, "text_b": b, "label": str(y)}) for a, b, y in part]
        (glue / f"MRPC/{split}.jsonl").write_text("\n".join(lines))

    class Bytes(Letters):
        def encode(self, text: str) -> list[int]:
            return list(text.encode())

    cfg = ModelConfig(**{**SHAPE, "seq": 128}, vocab=257, pos="rotary")  # type: ignore[arg-type]
    setting = train.Setting(lr=3e-3, epochs=5, batch=8, dropout=0.0, pooling="mean")
    encode = classifier.input_encoder(Bytes(), 128)
    made = train.finetune("mrpc", [glue], lambda seed: GPTBackbone(GPT(cfg, seed=seed)), encode, setting, 1)
    # 40 items: a coin has 0.75 or more once in a thousand times
    scores = made["sets"]["dev"]["metrics"]
    assert scores["accuracy"] >= 0.75 and math.isfinite(scores["mcc"])


def trees(folder: Path) -> dict[str, dict]:
    return {path.name: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


@pytest.mark.parametrize("jobs", [1, 2])
def test_without_a_terminal_there_are_lines_about_the_steps(
    run: Path,  # noqa: F811
    glue: Path,
    jobs: int,
    capfd,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And a study shows the last one in the run's log, and at its end the scores."""
    from eval.finetune import work
    from launch.progress import fine_tuning_text, glue_text

    monkeypatch.setattr(work, "SHORTEST_PAUSE", -1.0)
    monkeypatch.setattr(work, "PAUSE_SHARE", 0.0)
    assert command.main(arguments(run, glue, "--tasks", "cola,rte", "--jobs", str(jobs))) == 0
    told = capfd.readouterr().err
    lines = [line for line in told.splitlines() if " done" in line]
    assert lines[0] == "all tasks, step 0 of 12: 0 of 4 done"  # 40 items in batches of 16, two tasks, two seeds
    assert re.fullmatch(r"(cola|rte), seed \d: 4 of 4 done, 0:00 left", [line for line in lines if "seed" in line][-1])
    if jobs == 1:
        steps = [line for line in lines if line.startswith("rte, seed 2, step")]
        assert [line.partition(":")[0] for line in steps] == [f"rte, seed 2, step {step} of 3" for step in (1, 2, 3)]
        assert all(re.search(r": 3 of 4 done, \d+:\d\d left$", line) for line in steps)
    else:
        assert re.search(r"^all tasks, step 12 of 12: 4 of 4 done, 0:00 left$", told, re.MULTILINE)

    cell: Any = SimpleNamespace(dir=run)
    assert fine_tuning_text(cell) == ""
    (run / rundir.GLUE_LOG).write_text(f"{told}a warning: 3 of 4 words\n")
    assert fine_tuning_text(cell) == lines[-1]
    table = json.loads((run / "glue/glue.json").read_text())
    cola, rte = (table["scores"][name]["study"]["median"] for name in ("cola", "rte"))
    assert glue_text(cell) == f"cola {cola:.1f}  rte {rte:.1f}  mean of 2 of nine numbers {(cola + rte) / 2:.1f}"
    for damage in ("{", '{"scores": {"cola": 1}, "study": {"nine_numbers": 1.0, "numbers": 1}}'):
        (run / "glue/glue.json").write_text(damage)
        assert glue_text(cell) == ""


def test_killed_it_continues_and_nothing_is_lost(run: Path, glue: Path) -> None:  # noqa: F811
    """SIGKILL, which nothing can catch, of two processes' parent once a result is there: they die with it, each file
    that is there is whole and stays, and the finished table is that of an undisturbed single process."""
    words = [sys.executable, "-m", "eval.finetune", *arguments(run, glue, "--tasks", "cola,rte,mrpc", "--jobs", "2")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    folder = run / "glue"
    process = subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    children: set[int] = set()
    while not (folder.is_dir() and list(folder.glob("*.json"))) and process.poll() is None:
        tasks_of = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        children |= {int(child) for child in tasks_of.read_text().split()} if tasks_of.exists() else set()
        time.sleep(0.005)
    process.kill()
    _, told = process.communicate()
    assert process.returncode == -9, told.decode()
    deadline = time.monotonic() + 60
    while any(running(child) for child in children) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(children) >= 2 and not [child for child in children if running(child)]
    there = trees(folder)  # all of them whole
    assert there and rundir.GLUE_TABLE not in there
    kept = {name: (folder / name).stat().st_mtime_ns for name in there}

    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    left = 6 - len(there)
    assert f"{left} of {left} done, 0:00 left" in done.stderr
    assert {name: (folder / name).stat().st_mtime_ns for name in kept} == kept
    continued = trees(folder)
    for path in folder.iterdir():
        path.unlink()
    assert command.main(arguments(run, glue, "--tasks", "cola,rte,mrpc")) == 0
    assert continued == trees(folder) and len(continued) == 7


def running(pid: int) -> bool:
    """Whether a process is there, and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_an_external_checkpoint_is_fine_tuned_like_a_run(glue: Path, tmp_path: Path, capsys) -> None:
    """A folder of Hugging Face's, model and tokenizer as transformers writes them."""
    transformers = pytest.importorskip("transformers")
    folder, to = tmp_path / "bert", tmp_path / "external"
    config = transformers.BertConfig(
        vocab_size=258, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
    )
    torch.manual_seed(0)
    transformers.BertModel(config).save_pretrained(folder)
    letters = {
        name: i for i, name in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *map(chr, range(33, 127))])
    }
    vocab = letters | {f"##{chr(c)}": len(letters) + i for i, c in enumerate(range(33, 127))}
    transformers.BertTokenizerFast(vocab=vocab).save_pretrained(folder)
    words = ["--external", str(folder), "--to", str(to), "--data", str(glue), "--seeds", "2", "--epochs", "1"]
    assert command.main([*words, "--tasks", "rte,stsb,mnli"]) == 0
    assert "mean of ONLY 4 OF nine numbers" in capsys.readouterr().out
    made = trees(to)
    assert command.main([*words, "--tasks", "rte,stsb,mnli", "--format", "json"]) == 0
    answer = checked(capsys.readouterr().out)
    assert answer["kind"] == "glue" and answer["failed"] == [] and answer["study"]["numbers"] == 4
    assert answer["scores"] == json.loads((to / "glue.json").read_text())["scores"]
    assert set(made) == {
        rundir.GLUE_TABLE,
        *(f"{name}-{seed}.json" for name in ("rte", "stsb", "mnli") for seed in (1, 2)),
    }
    assert (
        made["rte-1.json"]["setting"]["pooling"] == "first" and len(made["stsb-2.json"]["sets"]["dev"]["items"]) == 16
    )
    assert made["stsb-1.json"]["sets"] != made["stsb-2.json"]["sets"]
    row = read_external(to)  # and a report can show it beside another model that was asked the same
    assert row.name == "external" and set(row.table["scores"]) == {"rte", "stsb", "mnli", "mnli-mm"}
    assert conditions_to_compare(row.table, "mnli-mm")["sha256 of the data"] == made["mnli-1.json"]["data_sha256"]
    assert (
        reason_not_comparable(row.table, [json.loads(json.dumps(row.table)) | {"model_sha256": "another"}], "rte") == ""
    )
    torch.manual_seed(1)  # other weights are another model
    transformers.BertModel(config).save_pretrained(folder)
    assert command.main([*words, "--tasks", "rte"]) == 0
    assert trees(to)["rte-1.json"]["model_sha256"] != made["rte-1.json"]["model_sha256"]


def test_an_external_checkpoint_is_its_weights_settings_and_tokenizer_and_a_decoder_is_read_at_its_end(
    tmp_path: Path,
) -> None:
    """Also a decoder that was saved without its head, whose architecture does not say that it is one."""
    transformers = pytest.importorskip("transformers")
    for name, config, pooling in (
        ("bare", transformers.GPT2Config(architectures=["GPT2Model"]), "last"),
        ("head", transformers.GPT2Config(architectures=["GPT2LMHeadModel"]), "last"),
        ("bert", transformers.BertConfig(architectures=["BertModel"]), "first"),
        ("causal", transformers.BertConfig(architectures=["BertModel"], is_decoder=True), "last"),
    ):
        config.save_pretrained(tmp_path / name)
        assert PretrainedModel(None, tmp_path / name, None).pooling() == pooling
    folder, seen = tmp_path / "bert", set()
    for file in ("model.safetensors", "pytorch_model.bin", "vocab.txt", "tokenizer.json", "merges.txt", "spiece.model"):
        for content in ("one", "two"):
            (folder / file).write_text(content)
            seen.add(PretrainedModel(None, folder, None).sha256())
    assert len(seen) == 12
    (folder / "README.md").write_text("a word about it")
    assert PretrainedModel(None, folder, None).sha256() in seen


def test_a_study_names_its_glue_tasks_and_where_they_are(
    tmp_path: Path, glue: Path, capsys: pytest.CaptureFixture
) -> None:
    from ablations.config import ConfigError
    from ablations.study import from_args
    from launch import local

    words = ["STUDY=cram", "SIZE=nano", f"OUT={tmp_path}", f"GLUE={glue}", "GLUE_TASKS=cola,rte", "GLUE_SEEDS=2"]
    fine_tuned = from_args(words).glue_options
    assert fine_tuned == ["--data", str(glue), "--tasks", "cola,rte", "--seeds", "2"]
    for text in ("cola rte", "cola,rte", " cola , rte,cola "):
        assert tasks.parse_task_names(text) == ["cola", "rte"]
    assert command.main(["--data", str(glue), "--tasks", "cola colla"]) == 2
    assert "there is no task 'colla' in GLUE (did you mean cola?)" in capsys.readouterr().err
    assert command.main(["--data", str(glue), "--tasks", "cola"]) == 0
    assert "fine-tuning: cola\n" in capsys.readouterr().out
    assert command.main(["--data", str(glue), "--format", "json"]) == 2
    assert "FORMAT=json is of results" in json.loads(capsys.readouterr().out)["error"]
    assert command.main(["--data", str(glue), "--tasks", "cola,sst2"]) == 2
    assert "no data of sst2 (train, dev)" in capsys.readouterr().err
    # what a study asks for, as it is compared with a run's table
    assert local.check_evaluation(from_args(words)) == ["cola", "rte"]
    assert local.check_evaluation(from_args([*words[:4], "GLUE_TASKS=rte, cola mrpc"])) == ["rte", "cola", "mrpc"]
    assert local.check_evaluation(from_args(words[:4])) == ["cola", "mrpc", "stsb", "mnli", "qnli", "rte"]
    assert local.check_evaluation(from_args(words[:3])) == []
    with pytest.raises(ConfigError, match="GLUE_TASKS is about fine-tuning on GLUE"):
        from_args(["STUDY=cram", "SIZE=nano", "GLUE_TASKS=cola"])


def test_data_is_read_before_anything_is_trained(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    from eval.finetune.__main__ import main

    assert main(["--data", str(tmp_path / "nowhere")]) == 2
    assert "no such folder" in capsys.readouterr().err
    assert main(["--data", str(tmp_path)]) == 2 and "such as CoLA/train.tsv" in capsys.readouterr().err
    (tmp_path / "CoLA").mkdir()
    for split in ("train", "dev"):
        (tmp_path / f"CoLA/{split}.tsv").write_text("junk\n")
    assert main(["--data", str(tmp_path)]) == 2 and "CoLA/train.tsv" in capsys.readouterr().err
    for split in ("train", "dev"):
        (tmp_path / f"CoLA/{split}.tsv").write_text(
            "gj04\t1\t\tÜber alles.\ngj04\t0\t*\tThis not is.\n", encoding="utf-8"
        )
    assert main(["--data", str(tmp_path)]) == 0 and capsys.readouterr().out == "fine-tuning: cola\n"
