"""`batch(step)`: a pure function of token files, weights, seed and step. megatron-core is known here only.

megatron-core's GPTDataset shuffles documents, packs them into samples and shuffles these, all depending on
the number of samples asked for: a longer run would see other data from its first step on. Here each epoch of
a source is a GPTDataset of exactly one epoch with its own seed; and the blend, whose greedy choice looks at
the weights and the past alone, is extended when a step beyond its end is asked for.
"""
from __future__ import annotations

import logging
import warnings
from functools import cache as cached
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch


class Batches:
    """Training batches from `sources`, [(prefix of .bin and .idx, weight), ...], blended by the weights.

    A sample is `seq` + 1 tokens: documents in random order end to end, cut every `seq` tokens, samples in
    random order. Each epoch of a source has its own order and uses every token once as input, but for the
    last tokens, `seq` at most, which fill no sample. Raises ValueError when a source is shorter than a
    sample. Indices are kept in memory (20 bytes per sample and 4 per document); no file is written.
    """

    def __init__(self, sources: list[tuple[str, float]], seq: int, batch: int, seed: int):
        if not sources or not all(weight > 0 for _, weight in sources):
            raise ValueError(f"each source needs a positive weight: {sources}")
        if seq < 1 or batch < 1 or seed < 0:
            raise ValueError(f"seq and batch are at least 1, seed at least 0: {seq}, {batch}, {seed}")
        self.seq, self.batch_size = seq, batch
        self._sources = [_Endless(str(prefix), seq, seed) for prefix, _ in sources]
        self._weights = [float(weight) for _, weight in sources]
        self._blend: Any = ()

    def batch(self, step: int, rows: slice = slice(None)) -> torch.Tensor:
        """The global batch of `step`, counted from 0, or some of its rows: int64 tokens [rows, seq + 1].

        [:, :-1] are the inputs, [:, 1:] the targets. Only what is asked for is read.
        """
        if step < 0:
            raise ValueError(f"steps are counted from 0: {step}")
        end = (step + 1) * self.batch_size
        if end > len(self._blend):
            size = 1 << (end - 1).bit_length()
            config = self._sources[0].config
            self._blend = _megatron().BlendedDataset(self._sources, self._weights, size, config)
        samples = [self._blend[index] for index in range(end - self.batch_size, end)[rows]]
        if not samples:
            return torch.empty(0, self.seq + 1, dtype=torch.int64)
        return torch.stack([torch.cat([sample["tokens"], sample["labels"][-1:]]) for sample in samples])


class _Endless:
    """A source without end: sample i is sample i % length of epoch i // length."""

    def __init__(self, prefix: str, seq: int, seed: int):
        mcore = _megatron()
        for suffix in (".bin", ".idx"):
            if not Path(prefix + suffix).is_file():
                raise ValueError(f"no token file {prefix + suffix}")
        self.tokens = mcore.IndexedDataset(prefix)
        count = int(self.tokens.sequence_lengths.sum())
        if count < seq + 1:
            raise ValueError(f"{prefix} holds {count} tokens, but one sample of seq={seq} takes {seq + 1}")
        self.length = (count - 1) // seq
        self.prefix, self.seq, self.seed = prefix, seq, seed
        self.config = self._config(seed)
        self.index_split = mcore.Split.train            # these two are read by BlendedDataset
        self.unique_identifiers = {"prefix": prefix}
        self._epoch = lru_cache(maxsize=2)(self._build)  # a batch lies in one epoch, or across the end of one

    def __len__(self) -> int:
        return 1 << 62

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        epoch, sample = divmod(int(index), self.length)
        return self._epoch(epoch)[sample]

    def _build(self, epoch: int) -> Any:
        mcore = _megatron()
        seed = int(np.random.SeedSequence([self.seed, epoch]).generate_state(1)[0])
        documents = np.arange(len(self.tokens), dtype=np.int32)
        config = self._config(seed)
        return mcore.GPTDataset(self.tokens, self.prefix, documents, None, self.index_split, config)

    def _config(self, seed: int) -> Any:
        # With neither `blend` nor `path_to_cache` the indices stay in memory. In files they would be found
        # again by the prefix but not the content, be built by rank 0 alone, and be taken for whole after a
        # kill in between.
        return _megatron().GPTDatasetConfig(
            random_seed=seed, sequence_length=self.seq, create_attention_mask=False, reset_position_ids=False,
            reset_attention_mask=False, eod_mask_loss=False,
            tokenizer=SimpleNamespace(vocab_size=None, eod=None, unique_identifiers={}))


@cached
def _megatron() -> SimpleNamespace:
    """The classes used. The import takes seconds and warns of what is absent and not needed here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from megatron.core.datasets import blended_dataset, gpt_dataset, indexed_dataset, utils
    logging.getLogger("megatron.core").setLevel(logging.ERROR)
    return SimpleNamespace(BlendedDataset=blended_dataset.BlendedDataset, GPTDataset=gpt_dataset.GPTDataset,
                           GPTDatasetConfig=gpt_dataset.GPTDatasetConfig, Split=utils.Split,
                           IndexedDataset=indexed_dataset.IndexedDataset)
