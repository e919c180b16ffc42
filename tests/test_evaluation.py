"""Judging runs (eval/evaluation.py, results.py, location.py): damage, strangers' directories, copies of OUT, other
scripts, lossy tokenizers, tasks that fail."""

import gzip
import hashlib
import io
import json
import math
import os
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file

from eval import results
from eval.__main__ import main
from eval.tasks import choice, harness, mirror, position, probes
from eval.tasks.choice import TaskRequest
from eval.tasks.definitions import definitions
from eval.tasks.journal import Journal
from eval.tasks.scorer import Scorer
from eval.weights import weights_to_evaluate
from model.config import ModelConfig
from model.gpt import GPT
from tests.test_eval import SHAPE, Letters, model, one_by_one, prepared, prose, run, save_weights  # noqa: F401  # fixtures


def scores(run: Path) -> dict:
    return {**json.loads((run / "eval.json").read_text()), "seconds": 0}


def state(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "weights.safetensors")


# ------------------------------------------------------------------------------------------------ damage


def test_one_flipped_bit_in_the_weights_is_not_judged(run, capsys):
    content = bytearray((run / "weights.safetensors").read_bytes())
    content[len(content) // 2] ^= 64
    (run / "weights.safetensors").write_bytes(content)
    assert main([str(run)]) == 1
    assert "weights.safetensors is damaged" in capsys.readouterr().err
    assert not (run / "eval.json").exists() and not (run / "samples.jsonl.gz").exists()


def test_weights_of_an_earlier_version_are_judged_with_a_note(run, capsys):
    (run / "done").write_text('{"steps": 1}')
    assert main([str(run)]) == 0 and "has no sha256 of the weights" in capsys.readouterr().err


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_scores_that_are_no_numbers_are_never_written(run, capsys, value):
    weights = state(run)
    weights["norm.weight"] = torch.full_like(weights["norm.weight"], value)
    save_weights(run, weights)  # whole, with the right hash
    assert main([str(run)]) == 1
    assert "are not numbers" in capsys.readouterr().err
    assert not list(run.glob("eval.json")) and not list(run.glob("samples*"))


OF_ANOTHER_FORM = ({"bits_per_byte": 5}, {"lm_eval_tasks": []}, {"tasks": {"é": 5}}, {"tasks": {"é": {"data": {}}}})


def test_what_is_damaged_counts_as_not_judged(run, capsys):
    assert main([str(run)]) == 0
    expected, result, samples = scores(run), *((run / name).read_bytes() for name in ("eval.json", "samples.jsonl.gz"))
    damaged = {
        "eval.json": [result[: len(result) // 2], b"", b"[]", b"\xff\xfe", b"{}", result.replace(b"0.", b"NaN", 1)]
        + [json.dumps(json.loads(result) | other).encode() for other in OF_ANOTHER_FORM],
        "samples.jsonl.gz": [samples[:-9], b"", samples[:40] + bytes([samples[40] ^ 1]) + samples[41:]],
    }
    record = json.loads((run / "run.json").read_text())
    for name, contents in damaged.items():
        whole = (run / name).read_bytes()
        for content in contents:
            (run / name).write_bytes(content)
            (weights,) = weights_to_evaluate(run)
            assert results.current_result(run, record, weights) is None, content[:20]
            (run / name).write_bytes(whole)
            assert results.current_result(run, record, weights) is not None
        (run / name).write_bytes(contents[-1])
        assert main([str(run)]) == 0
        assert scores(run) == expected and (run / "samples.jsonl.gz").read_bytes() == samples
    assert "damaged" in capsys.readouterr().err
    assert hashlib.sha256(samples).hexdigest() == expected["samples_sha256"]


def test_a_full_disk_is_said_and_leaves_no_result(run, tmp_path, capsys):
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() or os.system(f"mount -t tmpfs -o size=16m tmpfs {disk}"):
        pytest.skip("needs root to mount a file system")
    try:
        shutil.copytree(run.parents[1], disk / "out")
        copy = disk / "out" / run.relative_to(run.parents[1])
        with pytest.raises(OSError), open(disk / "full", "wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        assert main([str(copy)]) == 1
        said = capsys.readouterr().err
        assert said.startswith("error: ") and "No space left" in said and str(copy) in said and "Make room" in said
        assert not list(copy.glob("eval.json*")) and not list(copy.glob("samples*"))
        (disk / "full").unlink()
        assert main([str(copy)]) == 0 and scores(copy)["bits_per_byte"]["value"] > 0
    finally:
        os.system(f"umount {disk}")


def test_a_run_that_fails_is_named_and_keeps_no_other_from_its_evaluation(run, capsys):
    for name, change in {"unfinished": "done", "of nobody": "run.json", "broken": "weights.safetensors"}.items():
        shutil.copytree(run, run.parent / name)
        (run.parent / name / change).unlink()
    (run.parent / "broken/weights.safetensors").write_bytes((run / "weights.safetensors").read_bytes()[:-1] + b"?")
    shutil.copytree(run, run.parent / "half")
    (run.parent / "half/run.json").write_text("[]")
    names = ["unfinished", "of nobody", "broken", "half", run.name]
    assert main([str(run.parent / name) for name in names]) == 2
    told = capsys.readouterr()
    assert told.out.count("\n") == 1 and (run / "eval.json").exists()
    for name in names[:-1]:
        assert name in told.err and not (run.parent / name / "eval.json").exists()
    assert main([str(run.parent / "broken"), str(run)]) == 1


# ------------------------------------------------------------------------------------------------ where things lie


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_strangers_run_json_names_no_place_to_read_or_write(run, tmp_path, capsys):
    assert main([str(run)]) == 0
    expected = scores(run)
    record = json.loads((run / "run.json").read_text())
    private = tmp_path / "private"
    private.mkdir()
    (private / "diary.jsonl").write_text("".join(json.dumps({"text": f"secret {text}"}) + "\n" for text in prose(300)))
    before = snapshot(private)
    # elsewhere by its run.json, here by where it lies: nothing is read or made elsewhere
    tokenizer = record["data"]["tokenizer"]
    recorded = Path(tokenizer["path"])
    elsewhere = tmp_path / "of the stranger"
    tokenizer["path"] = str(elsewhere / recorded.parent.name / recorded.name)
    (run / "run.json").write_text(json.dumps({**record, "data_store": str(elsewhere)}))
    (run / "eval.json").unlink()
    assert main([str(run)]) == 0 and scores(run) == expected and not elsewhere.exists()
    # a corpus of mine that is not prepared for it: not read, and where to say it is named
    for asked in (str(private / "diary.jsonl"), str(private), f"{private}/*.jsonl"):
        record["config"]["eval"]["corpora"] = [asked]
        (run / "run.json").write_text(json.dumps(record))
        (run / "eval.json").unlink(missing_ok=True)
        store = snapshot(run.parents[1])
        assert main([str(run)]) == 1
        assert "--held-out --store" in capsys.readouterr().err
        assert snapshot(private) == before and snapshot(run.parents[1]) == store
    # nor a path that climbs out of the store
    record["data"]["tokenizer"]["path"] = "/x/../tokenizer.model"
    (run / "run.json").write_text(json.dumps(record))
    assert main([str(run)]) == 1 and not (run / "eval.json").exists()


@pytest.mark.parametrize("name", ["weights.safetensors", "run.json", "done", "eval.parts", "../../data"])
def test_links_out_of_the_directory_are_not_followed(run, tmp_path, capsys, name):
    target = tmp_path / "elsewhere"
    if (run / name).exists():
        shutil.move(run / name, target)
    else:
        target.mkdir()
    (run / name).symlink_to(target)
    before = snapshot(tmp_path)
    assert main([str(run)]) in (1, 2)
    assert "link" in (told := capsys.readouterr().err) or "leads out" in told
    assert snapshot(tmp_path) == before
    if name == "../../data":  # it can be said that it is meant
        assert "--store" in told and main([str(run), "--store", str(target)]) == 0


@pytest.mark.parametrize(
    ("keys", "to", "why"),
    [
        (["config", "model", "layers"], 10**9, "parameters"),
        (["config", "model", "layers"], "2", "model.layers cannot be '2'"),
        (["config", "model", "layers"], True, "model.layers cannot be 'True'"),
        (["config", "model", "pos"], "höher", "model.pos cannot be 'höher' (none, learned"),
        (["config", "model", "pos"], ["none"], "model.pos cannot be"),
        (["config", "model", "norm_eps"], "1e-5", "model.norm_eps cannot be '1e-5'"),
        (["config", "model", "tied"], 1, "model.tied cannot be '1'"),
        (["config", "model", "größe"], 1, "unexpected keyword argument 'größe'"),
        (["config", "model"], {}, "missing"),
        (["config", "model"], 5, "config.model is not what a run has there"),
        (["config"], [], "the value of config is of another type"),
        (["config", "eval", "corpora"], [5], "config.eval.corpora is not"),
        (["data"], {}, "data.tokenizer is not"),
        (["data", "tokenizer", "path"], None, "data.tokenizer.path is not"),
        (["data", "tokenizer", "sha256"], 5, "data.tokenizer.sha256 is not"),
        (["cell"], ["a"], "cell is not"),
    ],
)
def test_a_run_json_of_another_form_is_named(run, capsys, keys, to, why):
    """A stranger's run.json may say anything: it is an error, and no memory is taken for a model of that size."""
    record = json.loads((run / "run.json").read_text())
    inner = record
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = to
    (run / "run.json").write_text(json.dumps(record))
    assert main([str(run)]) in (1, 2)
    told = capsys.readouterr().err
    assert why in told and str(run) in told and not (run / "eval.json").exists()


def test_a_damaged_line_of_the_journal_is_scored_again(tmp_path):
    identity, known = {"weights": "größe"}, {"a": [-1.5, True], "b": [-2.5, False]}
    journal = Journal(tmp_path / "whole", identity)
    for key, outcome in known.items():
        journal.add({key: outcome})
    journal.close()
    content = next((tmp_path / "whole").iterdir()).read_bytes()
    folder = tmp_path / "damaged"
    folder.mkdir()
    left = []
    for at in range(len(content)):
        (folder / "0-1.jsonl").write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        again = Journal(folder, identity)
        again.close()
        left.append(again.known.keys() & known.keys())
        assert all(again.known[key] == known[key] for key in left[-1]), at
        (folder / f"0-{os.getpid()}.jsonl").unlink()
    assert left.count(set()) and left.count({"a"}) and left.count({"b"})
    # what is no file is not opened, which for a pipe would take forever
    os.mkfifo(folder / "1-1.jsonl")
    (folder / "2-2.jsonl").mkdir()
    (folder / "0-1.jsonl").write_bytes(content)
    (folder / f"0-{os.getpid()}.jsonl").symlink_to(tmp_path / "mine")
    with pytest.raises(OSError):
        Journal(folder, identity)
    assert not (tmp_path / "mine").exists()


def test_out_can_be_moved_and_its_corpus_be_gone(run, prepared, tmp_path, capsys):  # noqa: F811
    assert main([str(run)]) == 0
    expected = scores(run)
    (run / "eval.json").unlink()
    shutil.copytree(run.parents[1], tmp_path / "copy")
    shutil.rmtree(run.parents[1])
    moved = tmp_path / "copy/nano/a cell"
    corpus = Path(prepared[1])
    corpus.rename(corpus.with_suffix(".gone"))
    try:
        assert main([str(moved)]) == 0
    finally:
        corpus.with_suffix(".gone").rename(corpus)
    assert scores(moved) == expected and not run.exists()


# ------------------------------------------------------------------------------------------------ what is measured


class Utf8(Letters):
    """A token for each byte: 0 to 255, and 256 begins a document."""

    def encode(self, text):
        return list(text.encode())

    def decode(self, ids):
        return bytes(i for i in ids if i != self.eod).decode("utf-8", "replace")


RUSSIAN = "граф узла это ребро пути каждого числа одно значение которое было задано именем вершины дерева".split()
GREEK = "το γράφημα ενός κόμβου είναι ακμή στη διαδρομή και κάθε αριθμός έχει μία τιμή που ορίστηκε από".split()
HINDI = "यह हिन्दी भाषा का एक उदाहरण वाक्य है जिसमें कई शब्द बार आते हैं और पाठ लम्बा होता जाता".split()


def written(words: list[str], stop: str = ".") -> list[str]:
    rng = random.Random(1)

    def sentence() -> str:
        return " ".join(rng.choice(words) for _ in range(rng.randint(6, 14))).capitalize() + stop

    texts = {" ".join(sentence() for _ in range(rng.randint(5, 12))) for _ in range(150)}
    return sorted(texts, key=probes.short_hash)


@pytest.mark.parametrize("words,stop", [(RUSSIAN, "."), (GREEK, "."), (HINDI, "।")], ids=["ru", "el", "hi"])
def test_every_task_is_made_of_other_scripts_too(words, stop):
    texts = written(words, stop)
    made = probes.make_items(texts, 256)
    assert all(len(rows) >= probes.MIN_ITEMS for rows in made.values()), {
        name: len(rows) for name, rows in made.items()
    }
    known = {word.casefold() for word in words}
    for row in made["last_word"]:
        assert row["target"].strip().casefold() in known  # whole words, also with vowel signs
    for task in ("cloze", "copy_inside"):
        for row in made[task]:
            assert {choice_.split()[0].casefold() for choice_ in row["choices"]} <= known
    for row in made["copy_inside"]:  # bytes and not characters count against the training length
        assert len(row["context"].encode()) <= probes.FEW_BYTES * 256
    for row in made["copy_beyond"]:
        assert len(row["context"].split("\n\n")[1].encode()) >= probes.MANY_BYTES * 256 - 1


def test_text_without_spaces_has_loss_and_continuations():
    rng = random.Random(2)
    letters = "的一是不了人我在有他这为之大来以个中上们到说国和地也子时道出而要于就下得可你年生"
    texts = ["".join("".join(rng.choices(letters, k=rng.randint(8, 20))) + "。" for _ in range(20)) for _ in range(60)]
    made = probes.make_items(sorted(texts, key=probes.short_hash), 256)
    assert {name for name, rows in made.items() if rows} == {"bits_per_byte", "continuation"}
    for row in made["continuation"]:
        assert {len(choice_) for choice_ in row["choices"]} == {48}
        assert any(row["context"] + row["choices"][row["target"]] in text for text in texts)


def test_few_long_documents_are_many_items_of_their_own_clusters():
    long = ["é" * 5000 + "a", "ж" * 9000]
    rows = probes.held_out_items(long, max_bytes=80_000)
    assert {row["cluster"] for row in rows} == {probes.short_hash(text) for text in long}
    assert len({row["id"] for row in rows}) == len(rows) == 3 + 5
    assert [len(row["target"].encode()) for row in rows][:4] == [4096] * 4  # the first of each before any second
    for text in long:
        assert "".join(row["target"] for row in rows if row["cluster"] == probes.short_hash(text)) == text
    assert len(probes.held_out_items(long, max_bytes=4096 * 3)) == 3


def test_documents_of_one_package_are_one_cluster(tmp_path):
    texts = prose(30)
    with gzip.open(tmp_path / "valid.jsonl.gz", "wt") as file:
        for i, text in enumerate(texts):
            labels = {"package": f"p{i % 3}"} if i < 20 else {}
            file.write(json.dumps({"text": text, "id": str(i), "metadata": labels}) + "\n")
    clusters = probes.clusters_of([tmp_path / "valid.jsonl.gz"])
    assert list(clusters) == probes.sorted_texts([tmp_path / "valid.jsonl.gz"]) and len(set(clusters.values())) == 13
    made = probes.make_items(list(clusters), 256, clusters)
    assert {row["cluster"] for row in made["bits_per_byte"]} == set(clusters.values())
    for row in made["continuation"]:
        (text,) = [text for text in texts if row["context"] + row["choices"][row["target"]] in text][:1]
        assert row["cluster"] == clusters[text]


def test_bytes_are_counted_and_not_characters():
    """Bits per byte and loss by position, of text whose letters have two bytes."""
    gpt, seq = GPT(ModelConfig(**{**SHAPE, "seq": 8}, vocab=257, pos="alibi"), seed=3), 8
    texts = ["жёлтый узел графа " * 4, "привет, мир и дерево " * 4]
    scorer = Scorer(gpt, Utf8(), window=seq)
    spec = probes.load_specification()["tasks"]["bits_per_byte"]
    items = probes.held_out_items(texts, 10_000)
    got = harness.run_held_out_tasks(scorer, {"loss": (spec, items)})["loss"]
    sizes = [len(text.encode()) for text in texts]
    assert [sample["bytes"] for sample in got["samples"]] == sizes > [len(text) for text in texts]
    assert got["value"] == pytest.approx(
        sum(sample["nats"] for sample in got["samples"]) / math.log(2) / sum(sizes)
    )  # a ratio of sums, and not the mean of the documents' ratios
    pieces = position.cut_pieces(texts, Utf8(), seq)
    # 16 tokens of one byte each, about 9 characters; a character that is cut decodes to another of three bytes
    assert len(pieces) == 2 and all(abs(piece.size - 16) <= 4 for piece in pieces)
    curve = position.loss_by_position(pieces, seq, None, scorer.score)
    assert curve is not None and curve["bytes"] == sum(piece.size for piece in pieces)


def test_a_model_is_judged_without_dropout():
    cfg = ModelConfig(**{**SHAPE, "dropout": 0.5, "attn_dropout": 0.5}, vocab=257, pos="alibi")
    gpt = GPT(cfg, seed=3).train()
    pairs = [([1, 2, 3], [4, 5]), ([7] * 9, [8])]
    got = Scorer(gpt, Letters(), 24).score(pairs)
    without = GPT(ModelConfig(**SHAPE, vocab=257, pos="alibi"), seed=3)
    for (given, scored), (nats, _) in zip(pairs, got, strict=True):
        assert nats == pytest.approx(one_by_one(without.eval(), given, scored)[0], abs=1e-4)


def lossy(tmp_path: Path):
    """A SentencePiece model of Latin letters alone, in which nothing stands for a byte."""
    import sentencepiece

    from data.sentencepiece_model import OPTIONS
    from data.tokenizer import load_tokenizer

    content = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(prose(50)),
        model_writer=content,
        vocab_size=60,
        minloglevel=2,
        **OPTIONS | {"byte_fallback": False},
    )
    (tmp_path / "tokenizer.model").write_bytes(content.getvalue())
    return load_tokenizer(tmp_path / "tokenizer.model")


def test_bytes_that_a_tokenizer_does_not_know_are_charged(tmp_path):
    tokenizer = lossy(tmp_path)
    scorer = Scorer(model("alibi"), tokenizer, window=24)
    spec = probes.load_specification()["tasks"]["bits_per_byte"]
    text = "the path узла of"  # a word of four letters and eight bytes has no pieces
    items = probes.held_out_items([text, "the path of"], 10_000)
    got = harness.run_held_out_tasks(scorer, {"loss": (spec, items)})["loss"]
    first, second = got["samples"]
    assert first["unknown_bytes"] == 8 and "unknown_bytes" not in second
    ids = tokenizer.encode(text)
    scored = one_by_one(scorer.model, [tokenizer.eod], ids)[0]
    assert first["nats"] == pytest.approx(-scored + 8 * 8 * math.log(2), abs=1e-4)
    # a text that is unknown as a whole costs as much as to write it out, whatever the model believes
    whole = harness.run_held_out_tasks(scorer, {"loss": (spec, probes.held_out_items(["узел" * 50], 10_000))})["loss"]
    assert whole["value"] >= 8
    assert position.cut_pieces(["узел the path " * 99], tokenizer, 8) == []


# ------------------------------------------------------------------------------------------------ lm-eval's tasks

GSM8K = [
    {"question": f"Ana has {i} pears and buys 4. How many has she?", "answer": f"She has {i}+4.\n#### {i + 4}"}
    for i in range(9)
]
PIQA = {"goal": "Wash a jar", "sol1": "use soap", "sol2": "use sand", "label": 0}


def task_data(folder: Path, rows: dict[tuple[str, str, str], list[dict]]) -> mirror.Mirror:
    """A folder as `make eval-data` fills it: {(path, config, split): rows}."""
    entries = []
    for (path, config, split), table in rows.items():
        file = Path(path.replace("/", "__")) / config / f"{split}.jsonl.gz"
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        packed = gzip.compress("".join(json.dumps(row) + "\n" for row in table).encode(), mtime=0)
        (folder / file).write_bytes(packed)
        entry = {"dataset_path": path, "config": config, "split": split, "file": str(file), "rows": len(table)}
        features = Dataset.from_list(table).features.to_dict() if table else {}
        entries.append(entry | {"sha256": hashlib.sha256(packed).hexdigest(), "revision": None, "features": features})
    (folder / "manifest.json").write_text(json.dumps(entries))
    return mirror.Mirror(folder)


def test_examples_are_in_the_prompt_as_the_definition_says_or_as_asked(tmp_path):
    """gsm8k has five; against lm-eval's own task, made by its own loader of the same rows."""
    data = task_data(tmp_path, {("openai/gsm8k", "main", s): GSM8K for s in ("train", "test")})
    for shots, expected in ((None, 5), (0, 0), (2, 2)):
        (definition,) = definitions(["gsm8k"], shots).values()
        assert definition.shots == expected and len(definition.sources) == (2 if expected else 1)
        built = harness.build_task(definition, data)
        built.build_all_requests(rank=0, world_size=1)
        prompts = [instance.args[0] for instance in built.instances]
        assert {prompt.count("Question:") for prompt in prompts} == {expected + 1}
        config = {**definition.config, "num_fewshot": expected, "dataset_kwargs": None}
        tables = {split: Dataset.from_list(GSM8K) for split in ("train", "test")}
        theirs = harness.ConfigurableTask(config={**config, "custom_dataset": lambda tables=tables, **_: tables})
        theirs.set_fewshot_seed(1234)
        theirs.build_all_requests(rank=0, world_size=1)
        assert prompts == [instance.args[0] for instance in theirs.instances]
    (tmp_path / "openai__gsm8k/main/train.jsonl.gz").unlink()
    with pytest.raises(ValueError, match="train.jsonl.gz is gone"):
        choice.available_tasks(TaskRequest(["gsm8k"], data))
    assert choice.available_tasks(TaskRequest(["gsm8k"], data, shots=0))


def test_the_number_of_examples_is_in_the_result_and_another_number_is_another_evaluation(run, tmp_path):
    data = task_data(tmp_path / "tasks", {("openai/gsm8k", "main", s): GSM8K[:3] for s in ("train", "test")})
    words = ["--tasks", "gsm8k", "--data", str(data.folder)]
    assert main([str(run), *words, "--shots", "1"]) == 0
    task = scores(run)["tasks"]["gsm8k"]
    assert task["shots"] == 1 and task["examples"]["split"] == "train" and task["data"]["split"] == "test"
    stamp = (run / "eval.json").stat().st_mtime_ns
    assert main([str(run), *words, "--shots", "1"]) == 0 and (run / "eval.json").stat().st_mtime_ns == stamp
    assert main([str(run), *words, "--shots", "0"]) == 0
    other = scores(run)["tasks"]["gsm8k"]
    assert other["shots"] == 0 and "examples" not in other and other["prompts_sha256"] != task["prompts_sha256"]
    assert other["items_sha256"] == task["items_sha256"] and other["version"] == task["version"]


def test_what_the_evaluation_would_refuse_is_refused_before_training(tmp_path, capsys):
    folders = {
        "gsm8k_cot_self_consistency": {("openai/gsm8k", "main", s): GSM8K for s in ("train", "test")},
        "piqa": {("baber/piqa", "default", "validation"): []},
        "openbookqa": {("allenai/openbookqa", "main", "test"): [{"question_stem": "A jar is"}]},
    }
    why = {"gsm8k_cot_self_consistency": "sampled", "piqa": "has no rows", "openbookqa": "openbookqa: "}
    for name, rows in folders.items():
        task_data(tmp_path / name, rows)
        assert main(["--tasks", name, "--data", str(tmp_path / name)]) == 2
        assert why[name] in (told := capsys.readouterr().err) and "Traceback" not in told


def test_a_manifest_without_hashes_is_refused_in_a_sentence(tmp_path, capsys):
    task_data(tmp_path, {("baber/piqa", "default", "validation"): [PIQA]})
    (entry,) = json.loads((tmp_path / "manifest.json").read_text())
    del entry["sha256"]
    for content in (json.dumps([entry]), "{}", "[1]", "[", '{"a": 1}'):
        (tmp_path / "manifest.json").write_text(content)
        assert main(["--tasks", "piqa", "--data", str(tmp_path)]) == 2
        assert "manifest" in (told := capsys.readouterr().err) and told.startswith("error: ")


def test_a_task_that_fails_costs_no_other_its_result(run, tmp_path, capsys):
    """The last row asks what the task's code does not know: the check of the first rows passes."""
    copa = {"premise": "It rained.", "choice1": "It is wet.", "choice2": "It is dry.", "question": "effect", "label": 0}
    broken = [{**copa, "idx": i} for i in range(5)] + [{**copa, "idx": 5, "question": "why"}]
    rows = {
        ("baber/piqa", "default", "validation"): [{**PIQA, "goal": f"Wash {i}"} for i in range(4)],
        ("aps/super_glue", "copa", "validation"): broken,
    }
    data = task_data(tmp_path / "tasks", rows)
    assert main(["--tasks", "copa,piqa", "--data", str(data.folder)]) == 0
    assert main([str(run), "--tasks", "copa,piqa", "--data", str(data.folder)]) == 1
    assert "these tasks failed:\n  copa: KeyError: 'why'" in capsys.readouterr().err
    result = scores(run)
    assert result["tasks"]["piqa"]["n"] == 4 and "copa" not in result["tasks"]
    assert list(result["lm_eval_tasks"]["failed"]) == ["copa"]
    assert result["bits_per_byte"]["value"] > 0 and result["zero_shot"]["value"] > 0


def test_items_of_one_passage_are_one_cluster(run, tmp_path):
    passages = ["Рим стоит на холмах.", "Paris  liegt an der Seine."]
    rows = [
        {
            "paragraph": passages[i // 3],
            "question": f"Was {i}?",
            "answer": "x",
            "idx": {"paragraph": i // 3},
            "label": i % 2,
        }
        for i in range(6)
    ]
    data = task_data(tmp_path / "tasks", {("aps/super_glue", "multirc", "validation"): rows})
    assert main([str(run), "--tasks", "multirc", "--data", str(data.folder)]) == 0
    samples = [json.loads(row) for row in gzip.decompress((run / "samples.jsonl.gz").read_bytes()).splitlines()]
    clusters = [row["cluster"] for row in samples if row["task"] == "multirc"]
    assert len(set(clusters)) == 2 and clusters == sorted(clusters, key=clusters.index) and len(clusters) == 6
    assert all(row["cluster"] for row in samples if row["task"] != "multirc")
    for name in ("article", "passage", "context", "premise"):
        assert (
            harness.passage_cluster({name: "a  text"})
            == harness.passage_cluster({name: "a text"})
            != harness.passage_cluster({name: "b"})
        )
    assert harness.passage_cluster({"goal": "Wash a jar"}) == {} == harness.passage_cluster({"context": None})


def test_everything_that_makes_two_results_comparable_is_written(run):
    assert main([str(run)]) == 0
    for entry in scores(run)["tasks"].values():
        needed = {"version", "metric", "chance", "guess", "mean", "suite", "higher_is_better", "shots"}
        assert needed | {"prompts_sha256", "items_sha256"} <= entry.keys() and entry["shots"] == 0
        assert entry["chance"] is None or entry["guess"] >= entry["chance"]


@pytest.mark.parametrize(
    "name,why",
    [
        ("coqa", ""),
        ("ifeval", ""),
        ("graphwalks", ""),
        ("scrolls_quality", ""),
        ("slr_bench_basic", ""),  # ends the process where Prolog is not installed
        ("longbench_2wikimqa", ""),
        ("tinyArc", ""),
        ("squadv2", "code of its own"),
        ("blimp_nl", "changes its tasks"),
        ("cieacova_choice", "names no data set of the hub"),
        ("french_bench_orangesum_abstract", "is not on the hub"),
        ("mmlu_nonesuch*", "no task of lm-eval has a name like"),
    ],
)
def test_a_name_of_lm_eval_runs_or_is_refused_in_a_sentence(name, why):
    try:
        assert definitions([name])
    except ValueError as error:
        assert why in str(error) and "\n" not in str(error)
    else:
        assert not why


def test_a_pattern_names_all_that_it_matches():
    found = definitions(["blimp_a*", "copa"])
    assert "copa" in found and len(found) > 5
    assert all(name.startswith("blimp_a") for name in found if name != "copa")


def test_standard_errors_that_are_not_known_are_none(run):
    """Of a single item there is none, and NaN is no JSON."""
    from eval.entries import document_loss, stderr_of_mean

    assert document_loss([{"id": "é", "nats": 3.0, "bytes": 4}])["stderr"] is None
    assert stderr_of_mean([[{"id": "é", "value": 1}], [{"id": "é", "value": 1}, {"id": "è", "value": 0}]]) is None
    assert stderr_of_mean([[]]) is None and stderr_of_mean([]) is None
    two = document_loss([{"id": "é", "nats": math.log(2) * 8, "bytes": 1}, {"id": "è", "nats": 0.0, "bytes": 3}])
    assert two["value"] == 2.0 and np.isfinite(two["stderr"])  # 8 bits of 4 bytes; the mean of the ratios would be 4


def test_the_errors_of_an_evaluation_are_those_of_its_documents_as_in_a_report(run):
    """Its tasks are made from the same documents, each of which is left out of all of them at once."""
    from eval.report.reading.runs import read_samples
    from eval.report.reading.scores import checked_scores

    assert main([str(run)]) == 0
    result = scores(run)
    rows = [json.loads(line) for line in gzip.decompress((run / "samples.jsonl.gz").read_bytes()).splitlines()]
    counted = [name for name, entry in result["tasks"].items() if entry["mean"]]
    documents = sorted({row["cluster"] for row in rows if row["task"] in counted})
    assert len(counted) > 1 and len(documents) < sum(row["task"] in counted for row in rows)

    def mean(names: list[str], left_out: str = "") -> float:
        values = [[r["value"] for r in rows if r["task"] == name and r["cluster"] != left_out] for name in names]
        return sum(100 * sum(of_task) / len(of_task) for of_task in values) / len(names)

    def jackknife(names: list[str]) -> float:
        moved = [mean(names, document) - mean(names) for document in documents]
        present = [name for name in documents if any(r["task"] in names and r["cluster"] == name for r in rows)]
        return math.sqrt((len(present) - 1) / len(present) * sum(x * x for x in moved))

    assert result["zero_shot"]["stderr"] == pytest.approx(jackknife(counted))
    for name in counted:
        assert 100 * result["tasks"][name]["stderr"] == pytest.approx(jackknife([name]))
    reported = checked_scores(result, read_samples(run / "samples.jsonl.gz"))
    assert [reported[key]["stderr"] for key in ("zero_shot", "bits_per_byte")] == pytest.approx(
        [result[key]["stderr"] for key in ("zero_shot", "bits_per_byte")]
    )


def test_loss_by_position_is_a_ratio_of_sums_over_pieces_of_different_sizes():
    """A piece of nine times as many bytes counts nine times as much."""
    seq = 8
    ids = list(range(position.tokens_per_piece(seq)))
    pieces = [position.Piece(ids, 100), position.Piece(ids, 900)]
    curve = position.loss_by_position(pieces, seq, None, lambda pairs: [(-math.log(2), False)] * len(pairs))
    assert curve["bits_per_byte"] == pytest.approx([2 * position.SCORED_BLOCKS / 1000] * len(curve["positions"]))
