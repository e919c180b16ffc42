"""eval/tasks/harness.py against lm-eval's own Hugging Face backend; eval/tasks/probes.py; eval/evaluation.py and its
command on a run directory."""

import copy
import gzip
import hashlib
import json
import math
import os
import random
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from lm_eval.api.instance import Instance
from safetensors.torch import save_file

from ablations import rundir, safe_files
from eval import results
from eval.__main__ import main
from eval.tasks import harness, position, probes
from eval.tasks.score import is_likeliest
from eval.tasks.scorer import Scorer
from eval.weights import weights_to_evaluate
from model.config import ModelConfig
from model.gpt import GPT
from model.position import POSITIONS

SHAPE = dict(
    vocab_multiple=128,
    objective="causal",
    mask_rate=0.25,
    qk_scaling=False,
    layers=2,
    hidden=32,
    heads=4,
    seq=24,
    act="gelu",
    norm="layernorm",
    block="pre-ln",
    embnorm=False,
    qkv_bias=True,
    linear_bias=True,
    tied=True,
    dropout=0.0,
    attn_dropout=0.0,
    rotary_base=10000.0,
    init_std=0.2,
    norm_eps=1e-5,
)
WORDS = "the graph of a node is an edge in the path and each number has one value that was set by its name"


class Letters:
    """A tokenizer of one character each: 0 to 255, and 256 begins a document."""

    eod = 256

    def encode(self, text: str) -> list[int]:
        return list(text.encode("latin-1"))

    def decode(self, ids: list[int]) -> str:
        return bytes(i for i in ids if i != self.eod).decode("latin-1")


def model(pos: str = "learned", seq: int = 24) -> GPT:
    torch.manual_seed(0)
    return GPT(ModelConfig(**{**SHAPE, "seq": seq}, vocab=257, pos=pos), seed=3)  # type: ignore[arg-type]


def requests(kind: str, arguments: list[tuple]) -> list[Instance]:
    return [
        Instance(request_type=kind, doc={}, arguments=each, idx=0, metadata=("t", i, 1))
        for i, each in enumerate(arguments)
    ]


def gpt2_with_our_weights(ours: GPT):
    """Our learned + GELU + LayerNorm model is GPT-2; transformers' weights are the transposes."""
    transformers = pytest.importorskip("transformers")
    theirs = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=ours.cfg.padded_vocab,
            n_positions=ours.cfg.seq,
            n_embd=ours.cfg.hidden,
            n_layer=ours.cfg.layers,
            n_head=ours.cfg.heads,
            activation_function="gelu_new",
            bos_token_id=256,
            eos_token_id=256,
        )
    ).eval()
    with torch.no_grad():
        for p in ours.parameters():  # else biases and gains are 0 and 1, where mistakes would not show
            p.add_(0.1 * torch.randn_like(p))
    w = ours.state_dict()
    state = {
        "transformer.wte.weight": w["embed.weight"],
        "lm_head.weight": w["embed.weight"],
        "transformer.wpe.weight": w["position.table"],
        "transformer.ln_f.weight": w["norm.weight"],
        "transformer.ln_f.bias": w["norm.bias"],
    }
    names = {
        "ln_1": "norm1",
        "ln_2": "norm2",
        "attn.c_attn": "attn.qkv",
        "attn.c_proj": "attn.proj",
        "mlp.c_fc": "mlp.up",
        "mlp.c_proj": "mlp.down",
    }
    for layer in range(ours.cfg.layers):
        for hf, own in names.items():
            for kind in ("weight", "bias"):
                value = w[f"blocks.{layer}.{own}.{kind}"]
                state[f"transformer.h.{layer}.{hf}.{kind}"] = value.T if value.dim() == 2 else value
    theirs.load_state_dict(state, strict=True)
    return theirs


def characters():
    """The tokenizer of `Letters` as transformers wants it."""
    import tokenizers
    from transformers import PreTrainedTokenizerFast

    tok = tokenizers.Tokenizer(tokenizers.models.WordLevel({chr(i): i for i in range(256)}, unk_token=" "))
    tok.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex(r"[\s\S]"), "isolated")
    tok.add_special_tokens([tokenizers.AddedToken("<eod>", special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=tok, eos_token="<eod>", bos_token="<eod>", pad_token="<eod>")


def text(rng: random.Random, words: int) -> str:
    return " ".join(rng.choice(WORDS.split()) for _ in range(words))


def test_scores_equal_those_of_lm_eval_for_the_same_gpt2():
    """Log-likelihood, greediness and rolling log-likelihood, also of contexts that must be cut from the
    left."""
    from lm_eval.models.huggingface import HFLM

    ours = model()
    # logits_cache off: with it, 0.4.13 scores a short continuation at the first position of a longer one that
    # has the same input ("a" * 25 and "a" * 48 below)
    reference = HFLM(
        pretrained=gpt2_with_our_weights(ours),
        tokenizer=characters(),
        max_length=24,
        device="cpu",
        dtype="float32",
        batch_size=3,
        prefix_token_id=256,
        logits_cache=False,
    )
    scorer = Scorer(ours, Letters(), window=24, batch=100)
    rng = random.Random(0)
    asked = [(text(rng, n), " " + rng.choice(WORDS.split())) for n in (1, 2, 3, 4, 5, 8, 20)]
    asked += [(asked[1][0], choice) for choice in (" a", " an", " ane")]
    asked += [("", "the graph"), ("in the ", "path")]
    for words in range(1, 9):  # and the likeliest token itself, so that not every answer to "greedy?" is no
        context = text(rng, words)
        with torch.no_grad():
            likeliest = int(ours(torch.tensor([Letters().encode(context)[-24:]]))[0, -1].argmax())
        if likeliest < 256:
            asked += [(context, chr(likeliest)), (context, chr(likeliest) + "~")]
    theirs = reference.loglikelihood(requests("loglikelihood", asked), disable_tqdm=True)
    mine = scorer.loglikelihood(requests("loglikelihood", asked))
    assert [g for _, g in mine] == [g for _, g in theirs]
    assert {g for _, g in mine} == {True, False}
    np.testing.assert_allclose([x for x, _ in mine], [x for x, _ in theirs], atol=1e-4)

    whole = [(text(rng, n),) for n in (1, 3, 4, 5, 20, 60)] + [("a" * n,) for n in (23, 24, 25, 48, 49)]
    theirs = reference.loglikelihood_rolling(requests("loglikelihood_rolling", whole), disable_tqdm=True)
    mine = scorer.loglikelihood_rolling(requests("loglikelihood_rolling", whole))
    np.testing.assert_allclose(mine, theirs, rtol=1e-6, atol=1e-4)


def one_by_one(gpt: GPT, given: list[int], scored: list[int]) -> tuple[float, bool]:
    """What `score` should give, from the model's forward pass alone and nothing shared."""
    ids = given + scored
    with torch.no_grad():
        logp = gpt(torch.tensor([ids[:-1]]))[0, len(given) - 1 :].log_softmax(-1)
    greedy = logp.argmax(-1).tolist() == scored
    return sum(logp[i, token].item() for i, token in enumerate(scored)), greedy


def test_of_equally_likely_tokens_greedy_decoding_takes_the_first():
    """As argmax, in a loop over the targets: 5 outputs, and several targets for some of them."""
    logp = torch.tensor([[-1.0, -1, -9], [-2, -1, -1], [-3, -3, -3], [-5, -4, -1], [-1, -2, -2]])
    n, v = torch.cartesian_prod(torch.arange(5), torch.arange(3)).T
    expected = [int(logp[output].argmax()) == token for output, token in zip(n.tolist(), v.tolist(), strict=True)]
    assert is_likeliest(logp, n, v).tolist() == expected and sum(expected) == 5


@pytest.mark.parametrize("pos", ["none", "rotary", "alibi"])
def test_nothing_is_cut_where_the_model_has_no_longest_input(pos):
    gpt, rng = model(pos), random.Random(1)
    pairs = [
        ([rng.randrange(257) for _ in range(n)], [rng.randrange(257) for _ in range(k)])
        for n in (1, 24, 25, 100)
        for k in (1, 3)
    ]
    pairs += [(pairs[-1][0], [7]), (pairs[-1][0], [8, 9]), (pairs[-1][0], [8, 10, 11]), (pairs[-1][0][:50], [1])]
    seen = []
    got = Scorer(gpt, Letters(), 24, batch=120, progress=lambda *now: seen.append(now)).score(pairs)
    expected = [one_by_one(gpt, *pair) for pair in pairs]
    np.testing.assert_allclose([x for x, _ in got], [x for x, _ in expected], atol=2e-4)
    assert [g for _, g in got] == [g for _, g in expected]
    assert seen[-1][0] == seen[-1][1] < sum(len(given) + len(scored) - 1 for given, scored in pairs)


def test_an_input_that_begins_another_is_not_run_again():
    context, seen = list(b"the path of the node"), []
    scorer = Scorer(model("alibi"), Letters(), 24, progress=lambda *now: seen.append(now))
    scorer.score([(context, [i]) for i in range(4)] + [(context, [5, 6]), (context[:9], [context[9]])])
    assert seen == [(len(context) + 1, len(context) + 1)]


def test_what_cannot_be_scored_is_refused():
    scorer = Scorer(model(), Letters(), 24)
    with pytest.raises(ValueError, match="no token to the continuation"):
        scorer.loglikelihood(requests("loglikelihood", [("the", "")]))
    with pytest.raises(ValueError, match="only greedy"):
        scorer.generate_until(requests("generate_until", [("the", {"until": ["."], "do_sample": True})]))


def test_tasks_go_through_lm_eval_as_they_are_written():
    """Contexts with odd ends, digits and braces arrive unchanged; results are what the scores say."""
    gpt = model("alibi")
    asked = []

    class Recording(Scorer):
        def loglikelihood(self, requests, disable_tqdm=True):
            asked.extend(request.args for request in requests)
            return super().loglikelihood(requests)

    scorer, spec = Recording(gpt, Letters(), 24), probes.load_specification()["tasks"]
    choices = [" 1", " {{x}}", " [a]", " node"]
    items = {
        "bits_per_byte": [
            {"id": "a", "context": "", "target": "the node\n \n"},
            {"id": "b", "context": "", "target": "[1, 2]"},
        ],
        "last_word": [{"id": f"{i}", "context": f"{{{{n}}}} {i}.\n\nof:", "target": " a"} for i in range(3)],
        "continuation": [{"id": f"{i}", "context": f"path {i}", "choices": choices, "target": i} for i in range(4)],
    }
    got = harness.run_held_out_tasks(scorer, {name: (spec[name], rows) for name, rows in items.items()})

    expected = [(item["context"], item["target"]) for item in items["last_word"]]
    for item in items["continuation"]:
        expected += [(context, choice) for context in (item["context"], "") for choice in choices]
    assert asked == expected

    def ll(context: str, text: str) -> float:
        return one_by_one(gpt, Letters().encode(context) or [256], Letters().encode(text))[0]

    rolling = [sample["nats"] for sample in got["bits_per_byte"]["samples"]]
    assert rolling[0] == pytest.approx(-ll("", "the node\n \n"), abs=1e-3)
    assert [sample["bytes"] for sample in got["bits_per_byte"]["samples"]] == [11, 6]
    assert got["bits_per_byte"]["value"] == pytest.approx(sum(rolling) / math.log(2) / 17)
    words = [ll(item["context"], " a") for item in items["last_word"]]
    assert got["last_word"]["perplexity"] == pytest.approx(math.exp(-np.mean(words)), rel=1e-4)
    raised = [np.argmax([ll(item["context"], c) - ll("", c) for c in choices]) for item in items["continuation"]]
    plain = [np.argmax([ll(item["context"], c) for c in choices]) for item in items["continuation"]]
    hits = [sample["value"] for sample in got["continuation"]["samples"]]
    assert hits == [int(best == i) for i, best in enumerate(raised)]
    assert got["continuation"]["value"] == np.mean(hits)
    assert got["continuation"]["acc"] == np.mean([best == i for i, best in enumerate(plain)])
    assert got["continuation"]["context_tokens"] == [6, 6]


# ------------------------------------------------------------------------------------------------ items


def prose(documents: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    return [
        " ".join(text(rng, rng.randint(6, 14)).capitalize() + "." for _ in range(rng.randint(5, 12)))
        for _ in range(documents)
    ]


def stored(path, texts: list[str]):
    with gzip.open(path, "wt") as file:
        file.writelines(json.dumps({"text": each, "id": str(i), "metadata": {}}) + "\n" for i, each in enumerate(texts))
    return path


@pytest.fixture(scope="module")
def made() -> tuple[list[str], dict[str, list[dict]]]:
    texts = sorted(prose(150), key=probes.short_hash)
    return texts, probes.make_items(texts, seq=256)


def test_items_follow_from_the_texts_alone(tmp_path, made):
    """Not from their order, the files they lie in, or copies."""
    texts = list(made[0])
    random.Random(3).shuffle(texts)
    files = [stored(tmp_path / "a.gz", texts[:40] + texts[:3]), stored(tmp_path / "b.gz", [*texts[40:], " \n"])]
    assert probes.make_items(probes.sorted_texts(files), seq=256) == made[1]


def test_items_of_this_version_do_not_change(made):
    """If this fails, results are not comparable any more: raise `version` in tasks.yaml, renew the hash."""
    texts = {task: [{k: v for k, v in row.items() if k != "cluster"} for row in rows] for task, rows in made[1].items()}
    content = hashlib.sha256(json.dumps(texts, sort_keys=True).encode()).hexdigest()
    # of this text, which is ASCII and has no document of more than 4,096 bytes, version 2 made the same items
    assert (probes.load_specification()["version"], content[:12]) == (4, "5b42cdbf768d")


def test_the_held_out_loss_has_as_much_of_a_small_source_as_of_a_large_one():
    large, small = [f"{i} of much: é" * 200 for i in range(90)], [f"{i} of little: é" * 60 for i in range(9)]
    clusters = dict.fromkeys(large, "large") | dict.fromkeys(small, "small")
    rows = probes.held_out_items([*large, *small], max_bytes=12_000, clusters=clusters, piece_bytes=1000)
    sizes = {
        name: sum(len(row["target"].encode()) for row in rows if row["cluster"] == name) for name in clusters.values()
    }
    assert sizes.keys() == {"large", "small"} and abs(sizes["large"] - sizes["small"]) <= 1000
    everything = probes.held_out_items([*large, *small], max_bytes=10**9, clusters=clusters, piece_bytes=1000)
    parts = {text: "" for text in clusters}
    for row in everything:  # each text is there whole, piece by piece
        text = next(t for t in parts if clusters[t] == row["cluster"] and t.startswith(parts[t] + row["target"]))
        parts[text] += row["target"]
    assert all(text == part for text, part in parts.items())


def test_numbers_and_ids(made):
    for name, spec in probes.load_specification()["tasks"].items():
        rows = made[1][name]
        assert len({row["id"] for row in rows}) == len(rows) >= probes.MIN_ITEMS
        assert name == "bits_per_byte" or len(rows) <= spec["items"]
    assert probes.chance_accuracy(made[1]["continuation"], 0.25) == 0.25
    assert probes.chance_accuracy([{"target": "a"}, {"target": "b"}, {"target": "a"}], "commonest") == pytest.approx(
        2 / 3
    )


def test_a_task_that_stands_in_one_of_its_two_places_alone_is_named(monkeypatch):
    tasks = probes.load_specification()["tasks"]
    cloze = {"cloze": tasks["cloze"]}
    others = {name: spec for name, spec in tasks.items() if name != "cloze"}
    for name, changed in (("word_order", others | cloze | {"word_order": tasks["cloze"]}), ("cloze", others)):
        monkeypatch.setattr(probes, "load_specification", lambda changed=changed: {"version": 1, "tasks": changed})
        with pytest.raises(ValueError, match=f"^{name}: in one of eval/tasks/tasks.yaml"):
            probes.make_items([], 64)


@pytest.mark.parametrize("key, names", [("items", "chanse, items"), ("chance", "chance, chanse")])
def test_an_entry_that_lacks_a_key_is_refused_before_training(monkeypatch, capsys, key, names):
    assert probes.main() == 0
    tasks = copy.deepcopy(probes.load_specification()["tasks"])
    tasks["cloze"]["chanse"] = tasks["cloze"].pop(key)
    monkeypatch.setattr(probes, "load_specification", lambda: {"version": 1, "tasks": tasks})
    assert probes.main() == 2
    assert f"eval/tasks/tasks.yaml, cloze: {names}: missing or not known" in capsys.readouterr().err


def test_a_study_whose_own_tasks_are_wrong_is_not_begun(monkeypatch, tmp_path):
    """The command that checks them is the real one, of a copy whose tasks.yaml has a task that nobody makes."""
    root = Path(probes.__file__).parents[2]
    for folder in ("ablations", "data", "eval", "launch", "model"):
        shutil.copytree(root / folder, tmp_path / folder, ignore=shutil.ignore_patterns("records", "__pycache__"))
    yaml_file = tmp_path / "eval/tasks/tasks.yaml"
    text = yaml_file.read_text(encoding="utf-8")
    cloze = re.search(r"  cloze:\n(?:    .*\n)+", text)[0]
    yaml_file.write_text(text.replace(cloze, cloze + cloze.replace("cloze:", "word_order:")), encoding="utf-8")
    begin = (
        "from ablations.study import from_args; from launch.local import check_evaluation; check_evaluation(from_args("
        "['POS=alibi', 'SIZE=atto', 'OUT=out']))"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    child = subprocess.run(
        [sys.executable, "-c", begin], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert child.returncode and "word_order: in one of eval/tasks/tasks.yaml" in child.stderr
    assert "the runs cannot be judged; the reason stands above" in child.stderr


def test_held_out_text_is_cut_but_not_changed():
    texts = ["é" * 3000, "x" * 50, "", "y" * 5000]
    rows = probes.held_out_items([each for each in texts if each], max_bytes=4200)
    assert [row["target"] for row in rows] == ["é" * 2048, "x" * 50]
    assert probes.held_out_items(["z" * 9000], max_bytes=10)[0]["target"] == "z" * 4096  # one document at least


def test_last_words_have_occurred_and_are_not_all_the_same(made):
    rows = made[1]["last_word"]
    for row in rows:
        assert row["target"][0] == " " and row["target"][1:] in row["context"].replace(".", " ").split()
        assert 90 < len(row["context"]) <= 250 and not row["context"][-1].isspace()
        assert any(row["context"] + row["target"] in each for each in made[0])
    assert probes.chance_accuracy(rows, "commonest") <= 0.05 + 1e-9


def test_continuations_are_of_one_length_and_one_is_true(made):
    for row in made[1]["continuation"]:
        sizes = [len(choice.encode()) for choice in row["choices"]]
        true = row["choices"][row["target"]]
        assert len(set(row["choices"])) == 4 and max(abs(size - len(true)) for size in sizes) <= len(true) / 10
        assert any(row["context"] + true in each for each in made[0])
        wrong = [choice for choice in row["choices"] if choice != true]
        assert not any(row["context"] + choice in each for each in made[0] for choice in wrong)
    places = [row["target"] for row in made[1]["continuation"]]
    assert max(places.count(i) for i in range(4)) < 0.4 * len(places)


def test_a_left_out_word_is_told_from_others_of_its_document_by_all_that_stands_around_it(made):
    for row in made[1]["cloze"]:
        words = [choice.split()[0] for choice in row["choices"]]
        rest = {choice[len(word) + 1 :] for choice, word in zip(row["choices"], words, strict=True)}
        assert len(set(words)) == 4 and len(rest) == 1 and 20 < len(rest.pop()) < 42
        whole = row["context"] + row["choices"][row["target"]]
        (document,) = [each for each in made[0] if whole in each][:1]
        assert all(f" {word} " in document for word in words)
    assert max(Counter(row["target"] for row in made[1]["cloze"]).values()) < 60


def test_how_common_a_word_is_does_not_tell_the_one_left_out():
    rng, words = random.Random(2), [a + b + c for a in "bdfgk" for b in "aei" for c in "lmn"]
    texts = [" ".join(rng.choices(words, [1 / rank for rank in range(1, 46)], k=300)) for _ in range(40)]
    count = Counter(" ".join(texts).split())
    items, away = probes.make_items(sorted(texts, key=probes.short_hash), 256)["cloze"], []
    for row in items:
        said = [count[choice.split()[0]] for choice in row["choices"]]
        away += [abs(math.log(n / said[row["target"]])) for n in said]
    everyone = [abs(math.log(a / b)) for a in count.values() for b in count.values()]
    assert len(items) == 160 and np.mean(away) < 0.8 * np.mean(everyone)


@pytest.mark.parametrize("task", ["copy_inside", "copy_beyond"])
def test_copying_needs_the_place_of_a_word(made, task):
    seq = 256
    for row in made[1][task]:
        snippet, between, beginning = row["context"].split("\n\n")
        words = [choice[1:] for choice in row["choices"]]
        assert all(row["context"].split().count(word) == 1 for word in words)
        assert f"{beginning} {words[row['target']]} " in snippet + " "
        assert not any(f"{beginning} {word}" in snippet for i, word in enumerate(words) if i != row["target"])
        if task == "copy_inside":
            assert len(row["context"].encode()) + max(map(len, row["choices"])) <= probes.FEW_BYTES * seq
        else:
            assert len(between.encode()) >= probes.MANY_BYTES * seq - 1
    if task == "copy_inside":
        alone = made[1]["copy_absent"]
        assert [row["context"].split("\n\n")[2] for row in made[1][task]][:20] == [row["context"] for row in alone][:20]


def test_a_model_that_copies_passes_the_copying_tasks_and_no_other_does(made):
    """A stand-in that knows nothing but induction: what followed when these last words were last seen?"""
    right = {}
    for task in ("copy_inside", "copy_beyond", "copy_absent"):
        hits = []
        for row in made[1][task]:
            last = row["context"].split()[-3:]
            scores = [
                (" ".join([*last, choice[1:]]) in row["context"].replace("\n\n", " ")) for choice in row["choices"]
            ]
            hits.append(int(np.argmax(scores)) == row["target"])
        right[task] = np.mean(hits)
    assert right["copy_inside"] > 0.95 and right["copy_beyond"] > 0.95 and right["copy_absent"] < 0.45


def test_too_little_text_leaves_tasks_out():
    assert [name for name, rows in probes.make_items(prose(1), seq=256).items() if rows] == ["bits_per_byte", "cloze"]
    assert {name for name, rows in probes.make_items(prose(60), seq=16).items() if not rows} == {
        "copy_inside",
        "copy_absent",
    }


# ------------------------------------------------------------------------------------------------ domains, positions


def test_domains_are_those_that_the_corpus_names_or_the_corpora_of_a_blend(tmp_path):
    texts = prose(12)
    (tmp_path / "pile-0123abcd").mkdir()
    (tmp_path / "my-code-4567abcd").mkdir()
    with gzip.open(tmp_path / "pile-0123abcd/valid.jsonl.gz", "wt") as file:
        for i, text in enumerate(texts[:8]):
            labels = {"domain": ("Github", "ArXiv")[i % 2]} if i < 6 else {}
            file.write(json.dumps({"text": text, "id": str(i), "metadata": labels}) + "\n")
    blend = [tmp_path / "pile-0123abcd/valid.jsonl.gz", stored(tmp_path / "my-code-4567abcd/valid.jsonl.gz", texts[8:])]
    found = probes.held_out_items_by_domain(blend, 10**6)
    assert {name: len(rows) for name, rows in found.items()} == {"ArXiv": 3, "Github": 3, "my-code": 4, "pile": 2}
    assert {row["target"] for row in found["Github"]} == set(texts[:6:2])
    assert len(probes.held_out_items_by_domain(blend, 600)["my-code"]) == 1
    assert probes.held_out_items_by_domain(blend[1:], 10**6) == {}  # one domain is the whole


@pytest.mark.parametrize("pos", [*POSITIONS])
def test_loss_by_position_against_a_plain_loop_in_float64(pos):
    """Of the same tokens at every position; nothing but what comes before them is more and more."""
    seq, w = 8, 4
    gpt, letters = model(pos, seq), Letters()
    texts = [text(random.Random(i), 30) for i in range(6)]
    pieces = position.cut_pieces(texts, letters, seq)
    assert len(pieces) == 6 and all(len(piece.ids) == position.tokens_per_piece(seq) == 45 for piece in pieces)
    assert all("".join(map(chr, piece.ids)) in each for piece, each in zip(pieces, texts, strict=True))
    asked = []

    def score(pairs):
        asked.extend(pairs)
        return Scorer(gpt, letters, seq, batch=200).score(pairs)

    got = position.loss_by_position(pieces, seq, gpt.max_length, score)
    bins = 2 if pos == "learned" else 8  # there are no learned positions beyond
    assert got["positions"] == [2.0 + 4 * b for b in range(bins)]

    exact = GPT(gpt.cfg, seed=3).double().eval()
    expected = np.zeros((bins, len(pieces)))
    for p, piece in enumerate(pieces):
        for target in range(29, 45):
            for b in range(bins):
                start = (target - 1) // w * w - b * w
                with torch.no_grad():
                    logits = exact(torch.tensor([piece.ids[start:target]]))[0, -1]
                expected[b, p] -= logits.log_softmax(-1)[piece.ids[target]].item()
    size = 16 * len(pieces)  # of one byte each
    assert got["bytes"] == got["tokens"] == size
    np.testing.assert_allclose(got["bits_per_byte"], expected.sum(1) / size / math.log(2), rtol=1e-4)
    by_bin: dict[int, list] = {}
    for given, scored in asked:
        by_bin.setdefault(len(given), []).append(tuple(scored))
    assert [n for n in sorted(by_bin)] == [1 + w * b for b in range(bins)]
    assert len({tuple(sorted(scored)) for scored in by_bin.values()}) == 1


def test_text_for_positions_is_long_documents_first_and_others_joined():
    letters, n = Letters(), position.tokens_per_piece(8)
    short, long = ["a" * 20, "b" * 30, "c" * 5], ["d" * 400, "e" * 225]
    found = position.cut_pieces([*short, *long], letters, 8)
    assert [bytes(i % 256 for i in piece.ids) for piece in found] == [
        b"d" * n,
        b"e" * n,
        b"a" * 20 + b"\0" + b"b" * (n - 21),
    ]
    assert [piece.size for piece in found] == [16, 16, 16]
    assert (
        position.cut_pieces(short[2:], letters, 8) == []
        and position.loss_by_position([], 8, None, lambda pairs: []) is None
    )
    assert set(position.BEYOND_TRAINING_LENGTH) == set(POSITIONS)
    one, two = ({"positions": [2.0], "bits_per_byte": [x], "stderr": [x], "tokens": 8, "bytes": 9} for x in (3.0, 4.0))
    assert position.mean_curve([one, None, two]) == {
        "positions": [2.0],
        "bits_per_byte": [3.5],
        "stderr": [2.5],
        "tokens": 16,
        "bytes": 18,
    }
    assert position.mean_curve([None]) is None


# ------------------------------------------------------------------------------------------------ the command


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A corpus on disk, prepared for real: the folder and the manifest."""
    from data.prepare import prepare

    folder = tmp_path_factory.mktemp("corpus")
    (folder / "prose.jsonl").write_text("".join(json.dumps({"text": each}) + "\n" for each in prose(1000)))
    corpus = str(folder / "prose.jsonl")
    return folder, corpus, prepare(corpus, corpus, 300, folder / "data")


@pytest.fixture
def run(prepared, tmp_path):
    """A finished run directory with an untrained model, in an OUT with a copy of the prepared data."""
    folder, corpus, manifest = prepared
    shutil.copytree(folder / "data", tmp_path / "out/data")
    run = tmp_path / "out/nano/a cell"
    run.mkdir(parents=True)
    shape = {**SHAPE, "seq": 64, "vocab": 300, "pos": "learned"}
    record = {
        "cell": "a cell",
        "fingerprint": "of the test",
        "seed": 1,
        "data": manifest,
        "data_store": str(folder / "data"),
        "config": {
            "model": shape,
            "data": {"corpus": corpus, "tokenizer": corpus, "tokenizer_kind": "bpe"},
            "eval": {"corpora": [corpus]},
        },
    }
    safe_files.write_json(run / rundir.RUN, record)
    gpt = GPT(ModelConfig(**shape), seed=1)
    save_weights(run, {name: value.to(torch.bfloat16) for name, value in gpt.state_dict().items()})
    return run


def save_weights(run, state):
    """Weights as training leaves them, with their hash in `done`."""
    save_file(state, run / rundir.WEIGHTS)
    rundir.write_done(run, {"steps": 1})


@pytest.mark.parametrize("missing", ["run.json", "done", "weights.safetensors"])
def test_only_a_finished_run_is_evaluated(run, missing, capsys):
    (run / missing).unlink()
    assert main([str(run)]) == 2
    why = "weights.safetensors is missing" if missing == "weights.safetensors" else f"has no {missing}"
    assert why in capsys.readouterr().err and not (run / "eval.json").exists()


def test_a_run_is_evaluated_once_for_its_weights(run, prepared, capsys):
    assert main([str(run)]) == 0
    assert capsys.readouterr().out.startswith("a cell: ")
    result, samples = json.loads((run / "eval.json").read_text()), (run / "samples.jsonl.gz").read_bytes()
    assert sorted(path.name for path in run.iterdir()) == [
        "done",
        "eval.json",
        "run.json",
        "samples.jsonl.gz",
        "weights.safetensors",
    ]

    # held-out loss, once more: document by document, from the model's forward pass
    from data.tokenizer import load_tokenizer

    _, corpus, manifest = prepared
    tokenizer = load_tokenizer(manifest["tokenizer"]["path"])
    from safetensors.torch import load_file

    gpt = GPT(ModelConfig(**json.loads((run / "run.json").read_text())["config"]["model"]), seed=2)
    gpt.load_state_dict(load_file(run / "weights.safetensors"))
    nats = size = 0.0
    for item in probes.held_out_items(probes.sorted_texts(manifest["valid"]), 80_000):
        ids = [tokenizer.eod, *tokenizer.encode(item["target"])]
        for start in range(0, len(ids) - 1, 64):
            scored = ids[start + 1 : start + 65]
            given = ids[max(0, start + len(scored) - 64) : start + 1]  # the last window is a full one too
            nats -= one_by_one(gpt, given, scored)[0]
        size += len(item["target"].encode())
    assert result["bits_per_byte"]["value"] == pytest.approx(nats / math.log(2) / size, rel=1e-5)
    assert result["tasks"][f"{corpus}/bits_per_byte"]["bytes"] == size

    assert result["by_position"]["positions"] == [16.0, 48.0] and result["by_domain"] == {corpus: {}}

    rows = [json.loads(line) for line in gzip.decompress(samples).splitlines()]
    for name, task in result["tasks"].items():
        own = [row for row in rows if row["task"] == name]
        assert len(own) == task["n"] == len({row["id"] for row in own})
        if task["metric"] != "bits_per_byte":
            assert task["value"] == pytest.approx(np.mean([row["value"] for row in own]))
            assert 0 < task["chance"] < 0.3
    counted = [task["value"] for task in result["tasks"].values() if task["mean"]]
    assert result["zero_shot"]["value"] == pytest.approx(100 * np.mean(counted))
    assert result["omitted"] == [f"{corpus}/copy_inside", f"{corpus}/copy_absent"]  # 64 tokens are too short for it

    record = json.loads((run / "run.json").read_text())
    stamp = (run / "eval.json").stat().st_mtime_ns
    assert main([str(run)]) == 0 and (run / "eval.json").stat().st_mtime_ns == stamp
    for stale in ({"version": 0}, {"weights_sha256": "others"}, {"corpora": []}):
        (run / "eval.json").write_text(json.dumps({**result, **stale}))
        assert results.current_result(run, record, *weights_to_evaluate(run)) is None
    (run / "eval.json").write_text(json.dumps(result))
    (run / "samples.jsonl.gz").unlink()
    assert results.current_result(run, record, *weights_to_evaluate(run)) is None
    (run / "eval.json").unlink()
    for words in (["--processes", "-1"], ["--processes", "2", "--rank", "2"]):
        with pytest.raises(SystemExit):  # shares of the work that leave some of it to nobody
            main([str(run), *words])
    assert main([str(run)]) == 0
    again = json.loads((run / "eval.json").read_text())
    assert {**again, "seconds": 0} == {**result, "seconds": 0}
    assert (run / "samples.jsonl.gz").read_bytes() == samples
    assert main([str(run), "--precision", "bf16"]) == 0  # another is there: it is not taken for this one
    assert json.loads((run / "eval.json").read_text())["precision"] == "bf16"


def test_another_tokenizer_than_trained_with_is_refused(run, capsys):
    record = json.loads((run / "run.json").read_text())
    record["data"]["tokenizer"]["sha256"] = "0" * 64
    (run / "run.json").write_text(json.dumps(record))
    assert main([str(run)]) == 1
    assert "is not the tokenizer" in capsys.readouterr().err and not (run / "eval.json").exists()
