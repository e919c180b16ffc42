"""Training batches from token files. The tokens of a sample depend only on the files, their weights, the seed and the
number of the sample.

megatron-core's GPTDataset shuffles documents, packs them into samples, and shuffles the samples. All of that depends on
the number of samples that a run needs: a longer run would see other data from its first step on. Here each epoch of a
source equals a GPTDataset of exactly one epoch with a seed of its own. A blend of sources chooses the source of each
sample from the weights and the choices before it, so that it can be extended without changing its beginning.

The compiled functions of megatron-core that build GPTDataset's index are used here too. The class GPTDataset itself is
not: it takes four times the memory and twice the time. No other file of data/ uses megatron-core.
"""

from __future__ import annotations

import os
from functools import cache as cached
from functools import lru_cache
from importlib.machinery import PathFinder
from importlib.util import find_spec, module_from_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from data import tokens


class Batches:
    """Training batches from several sources, blended by their weights.

    A sample has `seq` + 1 tokens. Documents are put end to end in random order and cut every `seq` tokens; the samples
    are then shuffled. Each epoch of a source has an order of its own and uses every token once as input. Only the last
    tokens, at most `seq`, are left out, as they do not fill a sample.

    The order of documents and samples is kept in memory: 12 bytes per sample and 4 per document of an epoch. A blend of
    several sources takes 10 further bytes per sample, up to the last sample that was read. No file is written.

    Args:
        sources: [(path of a .bin and .idx file without the extension, weight), ...].
        seq: the number of input tokens of a sample.
        seed: the seed of the order of documents and samples.
        in_order: leave documents and samples in the order of the files, in every epoch.

    Raises:
        ValueError: there is no source, a weight is not positive, `seq` is below 1, `seed` is negative, a token file is
            missing, or a source is shorter than a sample.
    """

    def __init__(self, sources: list[tuple[str, float]], seq: int, seed: int, in_order: bool = False):
        if not sources or not all(weight > 0 for _, weight in sources):
            raise ValueError(f"each source needs a positive weight: {sources}")
        if seq < 1 or seed < 0:
            raise ValueError(f"seq is at least 1, seed at least 0: {seq}, {seed}")
        self.seq = seq
        self._sources = [_Source(str(prefix), seq, seed, in_order) for prefix, _ in sources]
        weights = np.array([weight for _, weight in sources], np.float64)
        self._weights = weights / weights.sum()
        self._blend = np.empty(0, np.int16), np.empty(0, np.int64)  # of each sample its source, and its number there
        self._last = self._next = range(0)
        self._spans: list[tuple[_Source, list[tuple[int, int]]]] = []  # the spans of self._next

    def batch(self, numbers: range) -> torch.Tensor:
        """The samples with the given numbers, counted from 0: int64 tokens [samples, seq + 1].

        [:, :-1] are the inputs, [:, 1:] the targets. How samples are grouped into batches does not change the samples.
        Raises ValueError where a number is negative.
        """
        if numbers and min(numbers) < 0:
            raise ValueError(f"samples are counted from 0: {numbers}")
        if numbers != self._next:
            self._prefetch(numbers)
        rows = np.empty((len(numbers), self.seq + 1), np.int64)
        for row, (source, spans) in zip(rows, self._spans, strict=True):
            filled = 0
            for begin, end in spans:
                row[filled : filled + end - begin] = source.flat[begin:end]
                filled += end - begin
        distance = numbers.start - self._last.start
        if numbers and self._last and distance > 0:  # the next call is likely to be as far from this one
            self._prefetch(range(numbers.start + distance, numbers.stop + distance, numbers.step))
        self._last = numbers
        return torch.from_numpy(rows)

    def _token_spans(self, numbers: range) -> list[tuple[_Source, list[tuple[int, int]]]]:
        """For each sample number a pair (source, spans): the source of the sample, and where its tokens lie in the
        source's token file. `spans`: [(begin, end), ...], counted in tokens; the sample is these stretches, joined."""
        if len(self._sources) == 1:
            return [(self._sources[0], self._sources[0].token_spans(number)) for number in numbers]
        end = max(numbers, default=-1) + 1
        if end > len(self._blend[0]):
            unit = 1 << max(end.bit_length() - 3, 10)  # at most a quarter more than asked for
            self._blend = _choose_sources(self._weights, -(-end // unit) * unit)
        chosen = [self._sources[self._blend[0][number]] for number in numbers]
        return [
            (source, source.token_spans(int(self._blend[1][number])))
            for source, number in zip(chosen, numbers, strict=True)
        ]

    def _prefetch(self, numbers: range) -> None:
        """Find the token spans of the samples with the given numbers, and keep them for the next call of `batch`. The
        operating system is asked to read these tokens into its page cache in the background."""
        self._next, self._spans = numbers, self._token_spans(numbers)
        if hasattr(os, "posix_fadvise"):
            for source, spans in self._spans:
                size, file = source.flat.itemsize, source.file.fileno()
                for begin, end in spans:
                    os.posix_fadvise(file, begin * size, (end - begin) * size, os.POSIX_FADV_WILLNEED)


class _Epoch(NamedTuple):
    """The order of documents and samples in one epoch of a source. megatron-core's GPTDataset calls the three arrays
    document index, sample index and shuffle index."""

    documents: np.ndarray  # int32 [documents]: the documents in the order in which they are put end to end
    cuts: np.ndarray  # int32 or int64 [samples + 1, 2]: where samples begin, see `_sample_boundaries`
    samples: np.ndarray  # uint32 [samples]: the samples in the order in which they are read


class _Source:
    """The samples of one source (a token file), epoch after epoch: with n samples in an epoch, sample i is sample i % n
    of epoch i // n.

    Args:
        prefix: the path of the .bin and .idx file, without extension.
        seq: the number of input tokens of a sample.
        seed: the seed of the order of documents and samples.
        in_order: leave documents and samples in the order of the file.

    Raises:
        ValueError: a file is missing, or has fewer tokens than a sample.
    """

    def __init__(self, prefix: str, seq: int, seed: int, in_order: bool):
        for suffix in (".bin", ".idx"):
            if not Path(prefix + suffix).is_file():
                raise ValueError(f"no token file {prefix + suffix}")
        dtype, self.lengths = tokens.read_index(prefix)
        self.offsets = tokens.sequence_offsets(prefix)
        self.token_count = int(self.lengths.sum(dtype=np.int64))
        if self.token_count < seq + 1:
            raise ValueError(f"{prefix} holds {self.token_count} tokens, but one sample of seq={seq} takes {seq + 1}")
        self.file = open(prefix + ".bin", "rb")
        self.flat = np.memmap(self.file, dtype, "r")
        self.samples_per_epoch = (self.token_count - 1) // seq
        self.seq, self.seed, self.in_order = seq, seed, in_order
        self._epoch = lru_cache(maxsize=2)(self._build_epoch)  # a batch lies in one epoch, or across the end of one

    def token_spans(self, sample_number: int) -> list[tuple[int, int]]:
        """Where the tokens of a sample lie in the .bin file: [(begin, end), ...], counted in tokens. The sample is
        these stretches, joined. `sample_number`: the number of the sample, from 0, counted over all epochs."""
        epoch, sample = divmod(sample_number, self.samples_per_epoch)
        if self.in_order:
            return [(sample * self.seq, (sample + 1) * self.seq + 1)]
        documents, cuts, samples = self._epoch(epoch)
        (first, skipped), (last, taken) = cuts[(at := int(samples[sample])) : at + 2].tolist()
        chosen = documents[first : last + 1]
        begins = (self.offsets[chosen] // self.flat.itemsize).tolist()
        ends = [begin + length for begin, length in zip(begins, self.lengths[chosen].tolist(), strict=True)]
        ends[-1] = begins[-1] + taken + 1  # the first token of the next sample is the last target of this one
        begins[0] += skipped
        return list(zip(begins, ends, strict=True))

    def _build_epoch(self, epoch: int) -> _Epoch:
        """Shuffle the documents, cut them into samples, and shuffle the samples. `epoch`: the number of the epoch, from
        0."""
        random = np.random.RandomState(int(np.random.SeedSequence([self.seed, epoch]).generate_state(1)[0]))
        documents = np.arange(len(self.lengths), dtype=np.int32)
        random.shuffle(documents)
        cuts = _sample_boundaries(self.lengths, documents, self.seq, self.token_count)
        samples = np.arange(self.samples_per_epoch, dtype=np.uint32)
        random.shuffle(samples)
        return _Epoch(documents, cuts, samples)


def _choose_sources(weights: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Choose the source of each of the first `size` samples of a blend: the source whose share so far is furthest below
    its weight. Returns two arrays [size]: the index of each sample's source, and the sample's number within that
    source. `weights`: [sources], which add up to 1."""
    sources, numbers = np.zeros(size, np.int16), np.zeros(size, np.int64)
    _megatron_index_functions().build_blending_indices(sources, numbers, weights, len(weights), size, False)
    return sources, numbers


def _sample_boundaries(lengths: np.ndarray, documents: np.ndarray, seq: int, token_count: int) -> np.ndarray:
    """Where the samples of an epoch begin: int32 or int64 [samples + 1, 2]. The first column is an index of the array
    `documents`, the second the number of tokens of that document that come before the sample.

    Args:
        lengths: [documents], the number of tokens of each document.
        documents: [documents], the documents in the order in which they are put end to end.
        seq: the number of input tokens of a sample.
        token_count: the number of tokens of all documents.
    """
    functions = _megatron_index_functions()
    fits_int32 = max(len(documents), int(lengths.max())) <= np.iinfo(np.int32).max
    build = functions.build_sample_idx_int32 if fits_int32 else functions.build_sample_idx_int64
    one_epoch, drop_last, further_token = 1, True, 1  # each sample has a token more, the last target
    return build(np.asarray(lengths), documents, seq, one_epoch, token_count, drop_last, further_token)


@cached
def _megatron_index_functions() -> Any:
    """The module with megatron-core's compiled functions that build indices. Its file is loaded by path, since an
    import by name would import all of megatron-core, which takes a second."""
    package = find_spec("megatron.core")  # finds the package without importing it
    folder = Path(package.origin).parent / "datasets" if package and package.origin else Path()
    spec = PathFinder.find_spec("helpers_cpp", [str(folder)])
    if spec is None or spec.loader is None:
        raise ImportError(f"megatron-core is not installed with its compiled helpers (looked for in {folder})")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
