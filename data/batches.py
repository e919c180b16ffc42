"""`batch(step)`: a pure function of (token files, weights, seed, step). The only file of data/ that knows megatron-core.

megatron-core's GPTDataset shuffles documents, packs them into samples and shuffles those; its order depends on the
number of samples asked for, so that a longer run would see other data from its first step on. Here each epoch of a
source is a GPTDataset of its own, of exactly one epoch and with its own seed, and the blend, whose greedy choice
depends on the weights and the past alone, is extended when a step beyond it is asked for.
"""
from __future__ import annotations

import logging
import warnings
from functools import cache, lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch


class Batches:
    """Training batches drawn from `sources`, [(prefix of .bin and .idx, weight), ...], in proportion to the weights.

    A sample is `seq` + 1 consecutive tokens of documents in random order; consecutive samples share one token. Each
    epoch of a source uses every token once, up to `seq` left over at its end, in an order of its own. Indices are kept
    in memory and no file is written. Raises ValueError when a source is shorter than one sample.
    """

    def __init__(self, sources: list[tuple[str, float]], seq: int, batch: int, seed: int,
                 cache: Path | None = None):
        if not sources or not all(weight > 0 for _, weight in sources):
            raise ValueError(f"sources need a positive weight each: {sources}")
        if min(seq, batch) < 1 or seed < 0:
            raise ValueError(f"seq and batch are at least 1 and seed at least 0: {seq}, {batch}, {seed}")
        self.seq, self.batch_size = seq, batch
        self._sources = [_Endless(str(prefix), seq, seed) for prefix, _ in sources]
        self._weights = [float(weight) for _, weight in sources]
        self._blend: Any = ()

    def batch(self, step: int, rows: slice = slice(None)) -> torch.Tensor:
        """Tokens of the global batch of `step`, counted from 0, or of some of its rows: int64 [rows, seq + 1].

        Columns [:-1] are the inputs and [1:] the targets.
        """
        if step < 0:
            raise ValueError(f"steps are counted from 0: {step}")
        start = step * self.batch_size
        wanted = range(start, start + self.batch_size)[rows]
        if start + self.batch_size > len(self._blend):
            self._blend = self._blended(1 << (start + self.batch_size - 1).bit_length())
        samples = [self._blend[index] for index in wanted]
        if not samples:
            return torch.empty(0, self.seq + 1, dtype=torch.int64)
        return torch.stack([torch.cat([sample["tokens"], sample["labels"][-1:]]) for sample in samples])

    def _blended(self, size: int) -> Any:
        return _megatron().BlendedDataset(self._sources, self._weights, size, self._sources[0].config)


class _Endless:
    """One source, epoch after epoch: sample i is sample i % length of epoch i // length."""

    def __init__(self, prefix: str, seq: int, seed: int):
        mcore = _megatron()
        for suffix in (".bin", ".idx"):
            if not Path(prefix + suffix).is_file():
                raise ValueError(f"no token file {prefix + suffix}")
        self.tokens = mcore.IndexedDataset(prefix)
        self.length = (int(self.tokens.sequence_lengths.sum()) - 1) // seq
        if self.length < 1:
            raise ValueError(f"{prefix} holds {int(self.tokens.sequence_lengths.sum())} tokens, "
                             f"but one sample of seq={seq} needs {seq + 1}")
        self.prefix, self.seq, self.seed = prefix, seq, seed
        self.config = self._config(seed)
        self.index_split = mcore.Split.train            # BlendedDataset reads these two
        self.unique_identifiers = {"prefix": prefix}
        self._epoch = lru_cache(maxsize=2)(self._build)  # a batch lies in one epoch or astride two

    def __len__(self) -> int:
        return 1 << 62

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        epoch, sample = divmod(int(index), self.length)
        return self._epoch(epoch)[sample]

    def _build(self, epoch: int) -> Any:
        mcore = _megatron()
        seed = int(np.random.SeedSequence([self.seed, epoch]).generate_state(1)[0])
        documents = np.arange(len(self.tokens), dtype=np.int32)
        return mcore.GPTDataset(self.tokens, self.prefix, documents, None, mcore.Split.train, self._config(seed))

    def _config(self, seed: int) -> Any:
        # Without `blend` and `path_to_cache` the indices stay in memory. Files would be keyed by the prefix but not by
        # the content, be built by rank 0 alone, and be taken for whole when a run was killed while writing them.
        return _megatron().GPTDatasetConfig(
            random_seed=seed, sequence_length=self.seq, tokenizer=SimpleNamespace(vocab_size=None, eod=None, unique_identifiers={}),
            reset_position_ids=False, reset_attention_mask=False, eod_mask_loss=False, create_attention_mask=False)


@cache
def _megatron() -> SimpleNamespace:
    """The four classes used; the import takes seconds and warns of the absence of what is not needed here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from megatron.core.datasets.blended_dataset import BlendedDataset
        from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
        from megatron.core.datasets.indexed_dataset import IndexedDataset
        from megatron.core.datasets.utils import Split
    logging.getLogger("megatron.core").setLevel(logging.ERROR)
    return SimpleNamespace(BlendedDataset=BlendedDataset, GPTDataset=GPTDataset, GPTDatasetConfig=GPTDatasetConfig,
                           IndexedDataset=IndexedDataset, Split=Split)
