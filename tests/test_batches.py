"""A batch depends on the token files, the weights, the seed and the samples' numbers, and on nothing else."""

import hashlib
import struct
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ablations.config import resolve
from data.batches import Batches
from tests.test_parallel import on

SEQ, BATCH = 16, 6
STEPS = (0, 3, 40, 1, 17)


def at(step, size=BATCH):
    """The samples of a step, where all batches are of one size."""
    return range(step * size, (step + 1) * size)


def write(prefix, documents):
    """Megatron's format, written by hand from its description: an oracle for the reader used by the code."""
    lengths = np.array([len(document) for document in documents], np.int32)
    Path(f"{prefix}.bin").write_bytes(np.concatenate(documents).astype(np.uint16).tobytes())
    offsets = (np.cumsum(lengths, dtype=np.int64) - lengths) * 2
    Path(f"{prefix}.idx").write_bytes(
        b"MMIDIDX\0\0"
        + struct.pack("<QBQQ", 1, 8, len(lengths), len(lengths) + 1)
        + lengths.tobytes()
        + offsets.tobytes()
        + np.arange(len(lengths) + 1, dtype=np.int64).tobytes()
    )
    return str(prefix)


def make(folder, name, count, first):
    """Documents of 1 to 40 tokens; every token of every source is another number."""
    lengths = np.random.default_rng(first).integers(1, 40, count)
    tokens = np.arange(first, first + lengths.sum())
    return write(folder / name, np.split(tokens, np.cumsum(lengths)[:-1]))


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokens")
    return [(make(folder, "large", 300, 0), 0.7), (make(folder, "small", 20, 30_000), 0.3)]


def tokens_of(source):
    return np.fromfile(f"{source[0]}.bin", np.uint16).astype(np.int64)


@pytest.fixture
def batches(sources):
    return Batches(sources, SEQ, seed=1)


def test_shape_and_overlap(batches):
    batch = batches.batch(at(0))
    assert batch.shape == (BATCH, SEQ + 1) and batch.dtype == torch.int64


def test_same_whatever_was_asked_before(sources, batches):
    forward = [batches.batch(at(step)) for step in range(41)]
    for step in STEPS:
        again = Batches(sources, SEQ, seed=1)  # as after a restart
        assert torch.equal(again.batch(at(step)), forward[step])
    for step in reversed(range(41)):
        assert torch.equal(batches.batch(at(step)), forward[step])
    batches.batch(range(5000, 5001))  # the blend grows
    assert torch.equal(batches.batch(at(40)), forward[40])


def test_rows_are_rows_of_the_global_batch(sources, batches):
    for step in STEPS:
        whole = batches.batch(at(step))
        for size in (1, 2, 3, 4):  # micro-batches, also such that do not divide the batch
            parts = [Batches(sources, SEQ, seed=1).batch(at(step)[row : row + size]) for row in range(0, BATCH, size)]
            assert torch.equal(torch.cat(parts), whole)
        assert torch.equal(batches.batch(at(step)[1::2]), whole[1::2])
    assert batches.batch(range(3, 3)).shape == (0, SEQ + 1)


def test_batch_size_regroups_the_same_samples(batches):
    """So that a ramp of the batch size sees what a run without one sees."""
    cut, sizes = [], [1, 1, 2, 5, 6, 9]
    for size in sizes:
        cut.append(batches.batch(range(sum(map(len, cut)), sum(map(len, cut)) + size)))
    assert torch.equal(torch.cat(cut), torch.cat([batches.batch(at(step)) for step in range(4)]))


def test_folder_does_not_matter(tmp_path, sources, batches):
    moved = []
    for index, (prefix, weight) in enumerate(sources):
        for suffix in (".bin", ".idx"):
            (tmp_path / f"{index}{suffix}").write_bytes(Path(prefix + suffix).read_bytes())
        moved.append((str(tmp_path / str(index)), weight))
    assert torch.equal(Batches(moved, SEQ, seed=1).batch(at(9)), batches.batch(at(9)))


def rank_rows(run, step, rank, world):
    """The numbers of a rank's samples, as launch/train.py chooses them."""
    batch = run.samples(step)
    return range(batch.start + rank * len(batch) // world, batch.start + (rank + 1) * len(batch) // world)


@pytest.mark.parametrize("world", [1, 2, 3, 8])
@pytest.mark.parametrize("micro", [1, 3])
def test_ranks_micro_batches_resume_and_budget(sources, world, micro):
    """A step's batch is the same for any number of ranks and micro-batches, after a resume, with a larger budget."""
    keys = [("train.batch", 24), ("train.ramp", []), ("layout.micro_batch", 1), ("model.seq", SEQ)]
    short, long = (resolve([*keys, ("train.tokens", tokens)]) for tokens in (24 * SEQ * 10, 24 * SEQ * 300))
    assert (short.steps, long.steps) == (10, 300)
    whole = Batches(sources, SEQ, seed=1)
    expected = {step: whole.batch(short.samples(step)) for step in range(short.steps)}
    for first in (0, 7):  # from the start, and as a resumed run: new processes, beginning later
        ranks = [Batches(sources, SEQ, seed=1) for _ in range(world)]
        for step in range(first, short.steps):
            parts = []
            for rank, batches in enumerate(ranks):
                mine = rank_rows(long, step, rank, world)
                parts += [batches.batch(mine[row : row + micro]) for row in range(0, len(mine), micro)]
            assert torch.equal(torch.cat(parts), expected[step])


def test_epochs_are_those_of_megatrons_dataset(sources):
    """GPTDataset itself, of one epoch and with the epoch's seed."""
    from megatron.core.datasets import gpt_dataset, indexed_dataset
    from megatron.core.datasets.utils import Split

    for prefix, _ in sources:
        tokens, batches = indexed_dataset.IndexedDataset(prefix), Batches([(prefix, 1.0)], SEQ, seed=1)
        length = (len(tokens_of((prefix, 1))) - 1) // SEQ
        for epoch in range(3):
            config = gpt_dataset.GPTDatasetConfig(
                random_seed=int(np.random.SeedSequence([1, epoch]).generate_state(1)[0]),
                sequence_length=SEQ,
                create_attention_mask=False,
                reset_position_ids=False,
                reset_attention_mask=False,
                eod_mask_loss=False,
                tokenizer=SimpleNamespace(vocab_size=None, eod=None, unique_identifiers={}),
            )
            theirs = gpt_dataset.GPTDataset(
                tokens, prefix, np.arange(len(tokens), dtype=np.int32), None, Split.train, config
            )
            ours = batches.batch(range(epoch * length, (epoch + 1) * length))
            assert len(theirs) == length
            for i in range(length):
                assert torch.equal(ours[i, :-1], theirs[i]["tokens"]) and torch.equal(ours[i, 1:], theirs[i]["labels"])


def test_nothing_is_written_beside_the_tokens(sources, batches):
    batches.batch(at(5))
    assert {path.suffix for path in Path(sources[0][0]).parent.rglob("*")} == {".bin", ".idx"}


def test_rewritten_tokens_are_seen(tmp_path):
    prefix = make(tmp_path, "tokens", 50, 0)
    before = Batches([(prefix, 1.0)], SEQ, seed=1).batch(at(0))
    make(tmp_path, "tokens", 50, 20_000)  # megatron's own index cache would be keyed by the name alone
    assert Batches([(prefix, 1.0)], SEQ, seed=1).batch(at(0)).min() >= 20_000 > before.max()


@pytest.mark.parametrize("which", [0, 1])
def test_each_epoch_uses_every_token_once(sources, which):
    source = sources[which]
    tokens = tokens_of(source)
    length = (len(tokens) - 1) // SEQ
    batches = Batches([source], SEQ, seed=1)
    orders = []
    for epoch in range(3):
        samples = torch.cat([batches.batch(range(epoch * length + i, epoch * length + i + 1)) for i in range(length)])
        used = Counter(samples[:, :-1].flatten().tolist())
        left = set(tokens.tolist()) - set(used)
        assert set(used.values()) == {1} and set(used) < set(tokens.tolist())
        assert len(left) == len(tokens) - length * SEQ <= SEQ
        orders.append(samples[:, 0].tolist())
    assert orders[0] != orders[1] != orders[2]


def test_samples_are_documents_end_to_end(sources):
    """Packed again by plain numpy: whole documents, one after the other, cut every `seq` tokens."""
    lengths = np.frombuffer(Path(sources[0][0] + ".idx").read_bytes()[34 : 34 + 4 * 300], np.int32)
    first = dict(zip((np.cumsum(lengths) - lengths).tolist(), lengths.tolist(), strict=True))
    length = (lengths.sum() - 1) // SEQ
    batches = Batches([sources[0]], SEQ, seed=1)
    following = {}
    for row in batches.batch(range(length)).tolist():
        following.update(zip(row[:-1], row[1:], strict=True))
    ends = {start + size - 1 for start, size in first.items()}
    for token, after in following.items():
        assert after in first if token in ends else after == token + 1


def test_blend_keeps_the_weights(sources, batches):
    for steps in (10, 200):
        tokens = torch.cat([batches.batch(at(step))[:, 0] for step in range(steps)])
        share = (tokens < 30_000).double().mean().item()
        assert abs(share - 0.7) <= 1 / (steps * BATCH) + 1e-9  # never off by more than a sample


def test_seeds_and_epochs_differ(sources, batches):
    assert not torch.equal(Batches(sources, SEQ, seed=2).batch(at(0)), batches.batch(at(0)))


def _read(folder, sources):
    """What a rank of several reads, into a file."""
    rank, ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
    batches = Batches(sources, SEQ, seed=1)
    rows = slice(rank * BATCH // ranks, (rank + 1) * BATCH // ranks)
    torch.save([batches.batch(at(step))[rows] for step in STEPS], folder / f"{rank}.pt")


def test_two_processes_read_what_one_reads(tmp_path, sources, batches):
    on(2, _read, tmp_path, sources)
    read = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for step, halves in zip(STEPS, zip(*read, strict=True), strict=True):
        assert torch.equal(torch.cat(halves), batches.batch(at(step)))


def test_the_order_is_the_recorded_one(sources):
    """A new order would silently change what every finished run was trained on."""
    batches = Batches(sources, SEQ, seed=1)
    digest = hashlib.sha256(b"".join(batches.batch(at(step)).numpy().tobytes() for step in range(40))).hexdigest()
    assert digest[:16] == "714fbb16de23bdaa"


@pytest.mark.parametrize(
    "change, match",
    [
        ({"sources": []}, "positive weight"),
        ({"sources": [("x", 0.0)]}, "positive weight"),
        ({"seq": 0}, "at least 1"),
        ({"seed": -1}, "at least 0"),
        ({"sources": [("/nowhere/x", 1.0)]}, "no token file /nowhere/x.bin"),
        ({"seq": 100_000}, "one sample of seq=100000 takes 100001"),
    ],
)
def test_bad_input_is_refused(sources, change, match):
    with pytest.raises(ValueError, match=match):
        Batches(**{"sources": sources, "seq": SEQ, "seed": 1, **change})


def test_shortest_possible_source(tmp_path):
    prefix = write(tmp_path / "short", [np.arange(SEQ + 1)])
    assert torch.equal(Batches([(prefix, 1.0)], SEQ, seed=1).batch(range(7, 9)), torch.arange(SEQ + 1).repeat(2, 1))
    with pytest.raises(ValueError, match="holds 16 tokens"):
        Batches([(write(tmp_path / "shorter", [np.arange(SEQ)]), 1.0)], SEQ, seed=1)


def test_samples_are_counted_from_zero(batches):
    with pytest.raises(ValueError, match="counted from 0"):
        batches.batch(range(-1, 3))
