"""What a preparation removes, reorders and refuses, against plain loops over the same documents."""

import gzip
import json
import random
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from data import corpus, filters, prepare, readers, sources
from data.dedup import MERSENNE, SHINGLES_AT_ONCE, minhashes, signature_step
from data.filters import Recipe
from data.text import checksum_problems
from data.tokenizer import load_tokenizer
from tests.test_data_prepare import VOCAB, prose, save, tokens, train_documents, valid_documents

SHARED = Path(__file__).parents[2] / "shared" / "data"
real = pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data with real files")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def texts():
    return [prose(f"t{i}", 60) for i in range(300)]


def run(name, store, **recipe):
    return prepare.prepare(str(name), str(name), VOCAB, store, recipe=Recipe(**recipe))


def train(made):
    return [document["text"] for document in train_documents(made)]


def step(made, name):
    return next(each for each in made["steps"] if each["step"] == name)


def report(made):
    return json.loads(Path(made["reports"][0]).with_suffix(".json").read_text())


# Duplicates


@pytest.mark.parametrize("dedup", ["none", "exact", "near"])
def test_dedup_takes_what_it_says_and_never_spares_what_resembles_held_out_text(tmp_path, store, texts, dedup):
    """Copies to the letter and copies with one word changed, of documents for training and of held-out ones."""
    held = [text for text in texts if corpus.is_held_out({"files": []}, "", text)]
    train_on = [text for text in texts if text not in held]
    assert len(held) > 2
    near = [text.replace(" ", " changed ", 1) for text in train_on[:20]]
    leaks = [text.replace(" ", " changed ", 1) for text in held]
    near, leaks = ([x for x in each if not corpus.is_held_out({"files": []}, "", x)] for each in (near, leaks))
    assert leaks
    name = save(tmp_path / "a.jsonl", texts + train_on[20:50] + near + leaks)
    made = run(name, store, dedup=dedup)
    kept = Counter(train(made))
    assert not set(leaks) & set(kept)
    assert set(train_on) <= set(kept) and [d["text"] for d in valid_documents(made)] == held
    assert (sum(kept.values()) - len(kept) == 30) == (dedup == "none")
    assert (set(near) <= set(kept)) == (dedup != "near")
    gone = {"none": len(leaks), "exact": 30 + len(leaks), "near": 30 + len(near) + len(leaks)}[dedup]
    counted = step(made, "duplicates")
    assert counted["in"][0] - counted["out"][0] == gone == sum(counted["reasons"].values())
    assert counted["out"] == [sum(kept.values()), sum(len(text.encode()) for text in kept.elements())]


def test_a_switch_that_did_nothing_is_said(tmp_path, store, texts):
    made = run(save(tmp_path / "b.jsonl", texts), store, compress=9.0, order="short-first")
    said = [note.partition(": ")[2] for note in made["notes"]]
    assert said == ["dedup=near removed nothing", "compress removed nothing"]
    assert "removed nothing" in Path(made["reports"][0]).read_text()


# Quality


def test_quality_rules_by_hand(tmp_path, store):
    """Documents that break one rule each, by the papers."""
    rng = random.Random(0)
    sentence = "The people of this town have to be with that person and see what it was like."

    def spoken(seed):
        return f"The {prose(f'{seed}a', 4)} of {prose(f'{seed}b', 4)} that {prose(f'{seed}c', 4)}."

    good = [" ".join(spoken(f"g{i}.{j}") for j in range(8)) for i in range(124)]
    good, spare = good[:120], good[120:]  # a copy of a document could be held out, and take the document with it
    bad = {
        "c4": {
            "lorem": spare[0] + " Lorem ipsum dolor sit amet.",
            "curly": spare[1] + " { x }.",
            "short": "It has one sentence alone.",
        },
        "gopher": {
            "few": "Only a few words that are of the kind to be there.",
            "repeated": " ".join([sentence] * 20),
            "symbols": " ".join(f"{word} #" for word in spare[2].split()),
            "no stop words": " ".join(prose(f"n{j}", 12) + "." for j in range(8)),
            "numbers": " ".join(f"{word} 12 34 5.6 7 8 9 10 11" for word in spare[3].split()),
        },
    }
    every = good + [text for kind in bad.values() for text in kind.values()]
    rng.shuffle(every)
    shares = {"files": []}
    for quality in ("c4", "gopher", "c4+gopher"):
        made = run(save(tmp_path / "q.jsonl", every), store, quality=quality, dedup="none")
        broken = {text for kind in quality.split("+") for text in bad[kind].values()}
        if "c4" in quality:  # of one sentence, or with no full stop at the end
            broken |= {bad["gopher"][name] for name in ("few", "symbols", "numbers")}
        if "gopher" in quality:  # fewer than 50 words
            broken |= {bad["c4"]["short"]}
        expected = {text for text in every if text not in broken and not corpus.is_held_out(shares, "", text)}
        missing, extra = expected - set(train(made)), set(train(made)) - expected
        # C4 takes lines; these documents have one each
        assert not extra and not missing, (quality, missing, extra)


def test_c4_takes_lines_and_says_how_many_documents_it_shortened(tmp_path, store):
    line = "It is a line of a few words. It has two sentences."
    with_menu = [
        f"Menu | Home | About\n{line} {prose(i, 9)}.\n{line}\nPlease enable Javascript now." for i in range(150)
    ]
    made = run(save(tmp_path / "l.jsonl", with_menu), store, quality="c4", dedup="none")
    assert made["counts"]["train"]["documents"] == step(made, "c4")["changed"] == step(made, "c4")["in"][0]
    assert not [text for text in train(made) if "Menu" in text or "Javascript" in text]
    assert all("Menu" in document["text"] for document in valid_documents(made))  # judged on what it was


@real
def test_real_c4_passes_c4s_rules():
    """It went through them once, with another sentence splitter. Rules a word or a sentence stricter cut much more."""
    why = filters.quality_filter("c4", 0)
    from datatrove.data import Document

    path = SHARED / "pretrain_samples/c4/c4-train.00000-of-01024.json.gz"
    file = readers.SourceFile(path, path.name, "", 0)
    found = [Document(text, name) for name, text, _ in readers.read_documents(file, "jsonl", readers.Ledger())]
    before = sum(len(document.text) for document in found)
    refused = [document for document in found if why(document)]
    assert len(found) == 667 and len(refused) <= 2
    assert sum(len(document.text) for document in found) > 0.9999 * before


# Decontamination


def grams(text):
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[i : i + 13]) for i in range(len(words) - 12)}


def test_decontamination_finds_what_a_loop_over_words_finds(tmp_path, store, texts):
    """Task rows, some of which stand in documents, with other capitals and punctuation; short rows cannot be found."""
    rng = random.Random(1)
    rows = {"one/test": [], "two/validation": []}
    for number, text in enumerate(texts[:40]):
        words = text.split()
        at = rng.randrange(len(words) - 14)
        length = 13 if number % 2 else 12  # twelve words in common are not enough
        rows[sorted(rows)[number % 4 // 2]].append(f"Is it so? {' '.join(words[at : at + length]).title()}, yes!")
    rows["one/test"].append("Too short.")
    rows["one/train"] = [texts[200]]  # not checked: models may train on it
    for name, each in rows.items():
        (tmp_path / "tasks" / name).parent.mkdir(parents=True, exist_ok=True)
        lines = "".join(json.dumps({"question": text, "answers": {"label": ["a"], "n": 1}}) + "\n" for text in each)
        (tmp_path / "tasks" / f"{name}.jsonl.gz").write_bytes(gzip.compress(lines.encode()))

    checked = {"one": rows["one/test"], "two": rows["two/validation"]}
    index = {task: set().union(*(grams(text + " a") for text in each)) for task, each in checked.items()}
    dirty = {text for text in texts if any(grams(text) & each for each in index.values())}
    made = run(save(tmp_path / "d.jsonl", texts), store, decontaminate=str(tmp_path / "tasks"))
    held = {text for text in texts if corpus.is_held_out({"files": []}, "", text)}
    assert 15 < len(dirty - held) <= 20
    assert set(train(made)) == set(texts) - dirty - held and {d["text"] for d in valid_documents(made)} == held
    for task, each in report(made)["tasks"].items():
        assert each["rows"] == len(checked[task])
        rows_found = (any(grams(row) & grams(text) for text in set(texts) - held) for row in checked[task])
        assert each["found"] == sum(rows_found)
        assert each["documents"] == sum(bool(grams(text) & index[task]) for text in set(texts) - held)
    assert report(made)["tasks"]["one"]["short"] == 1


def test_a_task_in_a_nested_folder_is_named_as_itself(tmp_path):
    """glue/cola comes before glue-x as a path, and after it as text."""
    from datatrove.data import Document

    items = {"glue/cola": " ".join(prose(1.5, 40)), "glue-x": " ".join(prose(2.5, 40)) + " každý řádek"}
    for task, text in items.items():
        save(tmp_path / "tasks" / task / "validation.jsonl", [text])
    filters.index_tasks(str(tmp_path / "tasks"), tmp_path / "index")
    why = filters.decontamination_filter(tmp_path / "index", 0)
    assert {task: why(Document(text, "0")) for task, text in items.items()} == {task: task for task in items}


@real
def test_real_overlap_is_found(tmp_path):
    """Rows of RTE and BoolQ whose words stand in wikinews or wikipedia, against a loop; the words are cut alike but for
    numbers and hyphens."""
    import shutil

    rows, expected = {}, {}
    for task in ("rte", "boolq"):
        source = SHARED / "zero_shot/aps__super_glue" / task / "validation.jsonl.gz"
        (tmp_path / "tasks" / task).mkdir(parents=True)
        shutil.copy(source, tmp_path / "tasks" / task)
        with gzip.open(source, "rt") as file:
            rows[task] = [grams(" ".join(v for v in json.loads(line).values() if isinstance(v, str))) for line in file]
    about = filters.index_tasks(str(tmp_path / "tasks"), tmp_path / "index")
    from datatrove.data import Document

    why = filters.decontamination_filter(tmp_path / "index", 0)
    wanted, seen = {gram for each in rows.values() for row in each for gram in row}, set()
    for domain in ("wikinews", "wikipedia"):
        file = readers.SourceFile(SHARED / "corpora" / domain / "00.jsonl.zst", "00.jsonl.zst", "", 0)
        for name, text, _ in readers.read_documents(file, "jsonl", readers.Ledger()):
            why(Document(text, name))
            seen |= grams(text) & wanted
    found = filters.count_contaminated(about, tmp_path / "index")
    for task, each in rows.items():
        expected[task] = sum(bool(row & seen) for row in each)
        assert expected[task] <= found[task]["found"] <= expected[task] + 2
    assert sum(expected.values()) > 8


# Tokens: density and order


def test_density_and_order_are_those_of_a_loop(tmp_path, store, texts):
    rare = ["zq" * 20 + f" {i}" for i in range(20)]  # many tokens per character
    name = save(tmp_path / "o.jsonl", texts + rare)
    plain = run(name, store)
    tokenizer = load_tokenizer(plain["tokenizer"]["path"])
    documents = [(text, tokenizer.encode(text)) for text in train(plain)]
    limit = float(np.median([len(ids) / len(text) for text, ids in documents]))
    kept = [ids for text, ids in documents if len(ids) < limit * len(text)]
    made = run(name, store, compress=limit)
    assert [each.tolist()[:-1] for each in tokens(made["train"][0]["prefix"])] == kept
    assert step(made, "compress")["in"][0] == len(documents) and step(made, "compress")["out"][0] == len(kept)
    assert made["counts"]["train"]["documents"] == len(kept) and made["sha256"] != plain["sha256"]
    assert made["counts"]["train"]["tokens"] == sum(len(ids) + 1 for ids in kept) == made["train"][0]["tokens"]

    made = run(name, store, order="short-first")
    lengths = [len(each) for each in tokens(made["train"][0]["prefix"])]
    assert lengths == sorted(len(ids) + 1 for _, ids in documents)

    made = run(name, store, order="prevalent-first")
    every = [[*ids, tokenizer.eod] for _, ids in documents]
    count = Counter(token for ids in every for token in ids)
    total = sum(count.values())
    score = [np.mean([np.log(count[token] / total) for token in ids]) for ids in every]
    expected = [every[i] for i in np.argsort(-np.array(score), kind="stable")]
    assert [each.tolist() for each in tokens(made["train"][0]["prefix"])] == expected
    assert step(made, "prevalent-first")["moved"] > 0 and made["sha256"] != plain["sha256"]


def test_orders_and_their_reverses(tmp_path, store):
    """By documents that a reader puts in order at sight; none is a copy, and ties keep the order of the file."""
    rng = random.Random(5)
    sentences = [" ".join(prose(rng.random(), 1 + rng.randrange(20)) + "。" for _ in range(20)) for _ in range(120)]
    name = save(tmp_path / "r.jsonl", sentences)
    plain = run(name, store)
    tokenizer = load_tokenizer(plain["tokenizer"]["path"])
    documents = train(plain)

    def ids(made):
        return [each.tolist() for each in tokens(made["train"][0]["prefix"])]

    by = {"sentences": lambda text: len(text) / text.count("。"), "": lambda text: len(tokenizer.encode(text))}
    for kind, key in by.items():
        for first, sign in (("short", 1), ("long", -1)):
            order = "-".join(filter(None, (first, kind, "first")))
            expected = sorted(documents, key=lambda text, key=key, sign=sign: sign * key(text))
            assert ids(run(name, store, order=order)) == [[*tokenizer.encode(text), tokenizer.eod] for text in expected]
    assert ids(run(name, store, order="rare-first")) == ids(run(name, store, order="prevalent-first"))[::-1]


def test_the_density_is_by_the_runs_own_tokenizer(tmp_path, store, texts):
    """The same limit leaves other documents with another tokenizer: none that was trained elsewhere decides."""
    name = save(tmp_path / "w.jsonl", texts)
    for kind, vocab in (("bpe", 300), ("wordpiece", 140)):
        plain = prepare.prepare(name, name, vocab, store, kind)
        tokenizer = load_tokenizer(plain["tokenizer"]["path"])
        rates = {text: len(tokenizer.encode(text)) / len(text) for text in train(plain)}
        limit = float(np.median(list(rates.values())))
        made = prepare.prepare(name, name, vocab, store, kind, Recipe(compress=limit))
        kept = [tokenizer.encode(text) for text, rate in rates.items() if rate < limit]
        assert [each.tolist()[:-1] for each in tokens(made["train"][0]["prefix"])] == kept


def test_what_fills_no_sample_is_counted(tmp_path, store, texts):
    from data.batches import Batches

    made = run(save(tmp_path / "p.jsonl", texts), store)
    for seq in (31, 64):
        (source,) = prepare.epochs_by_component(made, 10**6, seq)
        samples = Batches([(made["train"][0]["prefix"], 1.0)], seq, 1)._sources[0].samples_per_epoch
        assert source["unused"] == made["train"][0]["tokens"] - 1 - samples * seq < seq


def test_samples_in_order_are_the_file(tmp_path, store, texts):
    from data.batches import Batches

    made = run(save(tmp_path / "o2.jsonl", texts), store, order="short-first")
    flat = np.fromfile(made["train"][0]["prefix"] + ".bin", np.uint16)
    prefix = [(made["train"][0]["prefix"], 1.0)]
    got = Batches(prefix, 32, 1, in_order=True).batch(range(50)).numpy()
    assert (got == np.stack([flat[i * 32 : i * 32 + 33] for i in range(50)])).all()
    assert (got == Batches(prefix, 32, 2, in_order=True).batch(range(50)).numpy()).all()
    length = (len(flat) - 1) // 32
    again = Batches(prefix, 32, 1, in_order=True).batch(range(length, length + 3)).numpy()
    assert (again == got[:3]).all()  # a second epoch


# Refusals


@pytest.mark.parametrize(
    "change, match",
    [
        ({"dedup": "fuzzy"}, "data.dedup=fuzzy is not one of near, exact, none"),
        ({"quality": "good"}, "data.quality=good is not one of none, c4"),
        ({"compress": -1.0}, "tokens per character"),
        ({"allow_errors": -1}, "must not be negative"),
        ({"decontaminate": "nowhere"}, "no .jsonl or .jsonl.gz below"),
        ({"compress": 0.001}, "removes all of"),
    ],
)
def test_recipes_are_checked(tmp_path, store, texts, change, match):
    with pytest.raises(ValueError, match=match):
        run(save(tmp_path / "r.jsonl", texts), store, **change)


def test_problems_are_named_counted_and_fail_unless_allowed(tmp_path, store, texts):
    """A bad line, text that is no UTF-8, a cut file, an empty one: four problems in four files."""
    folder = tmp_path / "shards"
    for number in range(6):
        save(folder / f"{number}.jsonl", texts[number * 50 : (number + 1) * 50])
    (folder / "1.jsonl").write_text((folder / "1.jsonl").read_text() + '{"text": \n')
    (folder / "2.jsonl").write_bytes(b'{"text": "\xff\xfe"}\n' + (folder / "2.jsonl").read_bytes())
    cut = gzip.compress((folder / "3.jsonl").read_bytes())
    (folder / "3.jsonl").unlink()
    (folder / "3.jsonl.gz").write_bytes(cut[:-20])
    (folder / "4.jsonl").write_text("")
    for allowed in (0, 3):
        with pytest.raises(ValueError, match=r"(1.jsonl:51: not JSON|2.jsonl:1: not UTF-8|3.jsonl.gz: damaged)"):
            run(folder, store, allow_errors=allowed)
    made = run(folder, store, allow_errors=4)
    problems = report(made)["problems"]
    assert [re.sub(r":? .*", "", re.sub(r".*/", "", problem)) for problem in problems] == [
        "1.jsonl:51",
        "2.jsonl:1",
        "3.jsonl.gz",
        "4.jsonl",
    ]
    assert "4 problems" in made["notes"][-1] and "1.jsonl:51" in Path(made["reports"][0]).read_text()
    kept = set(train(made)) | {document["text"] for document in valid_documents(made)}
    assert set(texts[:150] + texts[250:]) <= kept and not set(texts[200:250]) & kept
    with pytest.raises(ValueError, match=r"4 problems, data.allow_errors=3:"):
        run(folder, store, allow_errors=3)  # what is there was made with them: it is not taken for whole


def test_checksums_of_oscar(tmp_path, store, texts):
    """OSCAR v1 lists name, then hash; sha256sum the hash first."""
    import hashlib

    folder = tmp_path / "en"
    folder.mkdir()
    lines = []
    for number in (1, 2):
        path = folder / f"en_part_{number}.txt.gz"
        path.write_bytes(gzip.compress("\n\n".join(texts[number * 100 : number * 100 + 100]).encode(), mtime=0))
        lines.append((path.name, hashlib.sha256(path.read_bytes()).hexdigest()))
    (folder / "en_sha256.txt").write_text("".join(f"{name}\t{sha}\n" for name, sha in lines))
    assert run(folder, store)["counts"]["train"]["documents"] > 150
    (folder / "en_sha256.txt").write_text("".join(f"{sha}  {name}\n" for name, sha in lines))
    run(folder, store)
    (folder / "en_sha256.txt").write_text("".join(f"{name}\t{'0' * 64}\n" for name, _ in lines))
    with pytest.raises(ValueError, match=r"2 problems, .*\n.*en_part_1.txt.gz: its sha256 is [0-9a-f]+"):
        run(folder, store)
    (folder / "en_sha256.txt").write_text(f"{lines[0][0]}\t{lines[0][1]}\nen_part_3.txt.gz\tinsert\n")
    with pytest.raises(ValueError, match="lists en_part_3.txt.gz, which is not there"):
        run(folder, store)


@real
def test_the_placeholders_of_the_oscar_samples_are_no_hashes():
    spec = corpus.load_specification(str(SHARED / "pretrain_samples/oscar_v1/en_dedup"))
    assert checksum_problems(spec, sources.source_files(spec), ["0" * 64])[0].endswith(
        "the list beside it says insert_hash_here"
    )


# Blends


def blend(tmp_path, text):
    (tmp_path / "blend.yaml").write_text(text)
    return str(tmp_path / "blend.yaml")


@pytest.mark.parametrize("alpha", [0, 0.3, 1])
def test_alpha_weighs_by_size(tmp_path, store, texts, alpha):
    save(tmp_path / "large.jsonl", texts[:220])
    save(tmp_path / "small.jsonl", texts[220:])
    made = prepare.prepare(
        blend(tmp_path, f"blend: [large.jsonl, small.jsonl]\nalpha: {alpha}"),
        str(tmp_path / "large.jsonl"),
        VOCAB,
        store,
    )
    sizes = [each["tokens"] for each in made["train"]]
    for size, each in zip(sizes, made["train"], strict=True):
        assert each["weight"] == pytest.approx(size**alpha / sum(other**alpha for other in sizes))
    budget = 3 * sum(sizes)
    for size, each in zip(sizes, prepare.epochs_by_component(made, budget), strict=True):
        assert each["epochs"] == pytest.approx(budget * each["share"] / size)
        assert alpha != 1 or each["epochs"] == pytest.approx(3)


def test_domains_are_counted_and_chosen(tmp_path, store, texts, monkeypatch):
    """Files in The Pile's layout: each source counted apart, and a specification that takes one of them."""
    lines = [json.dumps({"text": text, "meta": {"pile_set_name": "BA"[i % 3 == 0]}}) for i, text in enumerate(texts)]
    (tmp_path / "00.jsonl").write_text("\n".join(lines))
    made = run(tmp_path / "00.jsonl", store)
    left = Counter(document["metadata"]["domain"] for document in train_documents(made))
    assert {name: row[0] for name, row in report(made)["domains"].items()} == left and set(left) == {"A", "B"}
    (tmp_path / "b.yaml").write_text(
        f"files: ['*.jsonl']\nlayout: jsonl\nwhere: {{meta.pile_set_name: [B]}}\npath: {tmp_path}"
    )
    made = run(tmp_path / "b.yaml", store)
    assert {document["metadata"]["domain"] for document in train_documents(made)} == {"B"}
    assert made["notes"][-1].endswith("100 records were not selected and are no documents")


# Near duplicates in any script

HAN = "山水火木金土日月星辰風雨雷電春夏秋冬天地人心手足花鳥魚虫草石路橋門窓書画歌舞茶酒米塩油車馬船刀弓箭"
KANA = "かきくけこさしすせそたちつてとなにぬねのまみむめもやゆよらりるれろ"
THAI = ["แม่น้ำ", "ภูเขา", "บ้าน", "ต้นไม้", "หนังสือ", "ดวงดาว", "ทะเล", "ลมหนาว", "ดอกไม้", "นกน้อย", "ข้าว", "ถนน", "สะพาน"]
UNSPACED = {
    "chinese": lambda rng, size: "".join(rng.choice(HAN) + ("。" if k % 23 == 22 else "") for k in range(size)),
    "japanese": lambda rng, size: "".join(rng.choice(HAN) + rng.choice(KANA) for _ in range(size // 2)),
    "thai": lambda rng, size: "".join(rng.choice(THAI) for _ in range(size // 5)),
    "mixed": lambda rng, size: "".join(rng.choice(HAN) for _ in range(size)) + " GPU " + rng.choice(HAN),
}


@pytest.mark.parametrize("script", UNSPACED)
def test_near_duplicates_where_there_are_no_spaces(tmp_path, store, script):
    """Twins with a few letters changed, of documents for training and of held-out ones; in the file before or after
    them. No document goes that resembles none, and the held-out one always stays."""
    rng = random.Random(script)
    originals = [UNSPACED[script](rng, 600) for _ in range(150)]

    def twin(text, number):
        at = 50 + 7 * number % 400
        return text[:at] + "変" + text[at + 1 :]

    is_held = [corpus.is_held_out({"files": []}, "", text, 0.2) for text in originals]
    twins = [twin(text, number) for number, text in enumerate(originals[:80])]
    after = [text for number, text in enumerate(twins) if number % 2]
    before = [text for number, text in enumerate(twins) if not number % 2]
    save(tmp_path / "a.jsonl", before + originals + after)
    (tmp_path / "own.yaml").write_text(f"files: ['a.jsonl']\npath: {tmp_path}\nshare: 0.2\n")
    for dedup in ("near", "none"):
        made = run(tmp_path / "own.yaml", store, dedup=dedup)
        kept, held = set(train(made)), {d["text"] for d in valid_documents(made)}
        for number, (text, copy) in enumerate(zip(originals, [*twins, *[None] * 70], strict=True)):
            if copy is None:
                assert text in held | kept
                continue
            copy_held = corpus.is_held_out({"files": []}, "", copy, 0.2)
            if is_held[number] or copy_held:  # whichever is held out stays, and nothing like it is trained on
                assert not {text, copy} & kept and {text, copy} & held
                assert is_held[number] <= (text in held) or copy in held
            elif dedup == "near":
                assert len({text, copy} & kept) == 1
            else:
                assert {text, copy} <= kept
        assert 10 < sum(is_held[:80]) < 30 and made["counts"]["unsigned"] == 0


def test_the_held_out_one_of_a_pair_stays_wherever_it_stands(tmp_path, store, texts):
    held = [text for text in texts if corpus.is_held_out({"files": []}, "", text)]
    near = [f"{text} zusätzlich" for text in held]
    near = [text for text in near if not corpus.is_held_out({"files": []}, "", text)]
    assert near
    made = run(save(tmp_path / "k.jsonl", near + texts), store)
    assert [d["text"] for d in valid_documents(made)] == held and not set(near) & set(train(made))
    assert made["counts"]["duplicates"]["near"] == len(near)


def test_a_corpus_of_copies_alone_is_said_to_be_that(tmp_path, store, texts):
    held = next(text for text in texts if corpus.is_held_out({"files": []}, "", text))
    name = save(tmp_path / "c.jsonl", [held, *(f"{held} {word}" for word in prose("c", 20).split())])
    with pytest.raises(ValueError, match="left for train: of 21 documents 20 are copies or near copies of others"):
        run(name, store)


def test_documents_without_a_signature_are_counted(tmp_path, store, texts):
    short = [f"ja {i}" for i in range(30)] + [
        "山水火木",
        "山水火木金",
    ]  # four characters have no shingle of five, five have
    made = run(save(tmp_path / "s.jsonl", texts + short), store)
    assert made["counts"]["unsigned"] == 31
    said = f"31 of {len(texts + short)} documents are shorter than 5 words"
    assert any(said in note for note in made["notes"]) and said in Path(made["reports"][0]).read_text("utf-8")


@pytest.mark.parametrize("language", ["ascii", "accents", "Chinese"])
def test_a_signature_is_that_of_datatrove(tmp_path, language):
    from datatrove.pipeline.dedup.minhash import MinhashDedupSignature

    words = prose(language, 700)  # more shingles than are hashed at once
    text = {"ascii": words, "accents": words.replace("e", "é"), "Chinese": "".join(map(chr, range(0x4E00, 0x5100)))}
    step = signature_step(tmp_path)
    shingles = step.get_shingles(text[language])
    np.testing.assert_array_equal(shingles, MinhashDedupSignature.get_shingles(step, text[language]))
    assert len(shingles) > 2 * SHINGLES_AT_ONCE
    a, b = (parameter.astype(object) for parameter in step.parameters)
    edges = [0, 2**64 - 1, MERSENNE, MERSENNE - 1, 2**61]
    for some in (shingles, shingles[:1], shingles[:300], np.array(edges, np.uint64).reshape(-1, 1)):
        least = ((some.astype(object) * a + b) % 2**64 % MERSENNE).min(axis=0)  # in whole numbers of any size
        assert np.ravel(step.get_signature(some)).tolist() == least.tolist()
        assert step.get_signature(some) == MinhashDedupSignature.get_signature(step, some)
    one, zero = (np.full((1, 1), value, np.uint64) for value in (1, 0))
    for x in edges:  # alone, and not only where another hash is smaller
        assert minhashes(np.full((1, 1), x, np.uint64), one, zero).tolist() == [x % MERSENNE]


def test_tables_of_numbers_are_told_apart_by_their_numbers(tmp_path, store, texts):
    rng = random.Random(3)
    tables = ["note " + " ".join(str(rng.randrange(10**6)) for _ in range(80)) for _ in range(100)]
    near = [f"{table} {i}" for i, table in enumerate(tables[:10])]
    made = run(save(tmp_path / "n.jsonl", texts + tables + near), store)
    assert made["counts"]["duplicates"] == {"exact": 0, "near": 10}


def test_bytes_are_not_characters(tmp_path, store):
    """Every count of bytes, of text whose characters have two and three of them."""
    texts = [f"{prose(i)} Ünïcödé 語語語" for i in range(120)]
    made = run(save(tmp_path / "u.jsonl", texts), store, decontaminate="none", compress=9.0, order="short-first")
    size = {
        split: sum(len(text.encode()) for text in part)
        for split, part in (("train", train(made)), ("valid", [d["text"] for d in valid_documents(made)]))
    }
    assert {split: made["counts"][split]["bytes"] for split in size} == size
    assert size["train"] > 1.2 * sum(map(len, train(made)))
    for each in made["steps"]:
        assert each["in"][1] == each["out"][1] == size["train"], each["step"]
    (counts,) = report(made)["domains"].values()
    assert counts[:2] == [made["counts"]["train"]["documents"], size["train"]]
    assert made["counts"]["covered"]["bytes"] == size["valid"]
