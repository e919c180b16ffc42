"""Training objectives, one class each: which tokens of a sequence see each other, and which outputs enter the loss. The
base class is causal language modelling."""

from collections.abc import Sequence
from typing import NamedTuple, get_args, get_type_hints

import numpy as np
import torch
from torch import Tensor

from model.config import ModelConfig


class SpecialTokens(NamedTuple):
    """Ids of a tokenizer's special tokens (data/tokenizer.py).

    mask: the mask token; None where the tokenizer has none.
    specials: all special tokens, such as the end of a document. The encoding of a text never contains them.
    """

    mask: int | None = None
    specials: Sequence[int] = ()


NO_SPECIALS = SpecialTokens()


class Batch(NamedTuple):
    """B sequences of T tokens, and the tokens to predict.

    inputs_BT: the token ids that the model reads.
    targets_BT: for the output at each position, the token id to predict.
    predicted: the outputs that enter the loss. None: all. bool [B, T]: those that are True. int64 [B, M]: the positions
        of M outputs in each sequence; M is the same in every batch, so that shapes are static.
    extents_B: [B], the length of each sequence's prefix under the prefix objective; None under the others.
    """

    inputs_BT: Tensor
    targets_BT: Tensor
    predicted: Tensor | None = None
    extents_B: Tensor | None = None

    def select(self, x_BT: Tensor) -> Tensor:
        """Select, from values [B, T, ...] at all outputs, those at the N outputs that enter the loss: [N, ...], in the
        order of sequences."""
        if self.predicted is None:
            return x_BT.flatten(0, 1)
        if self.predicted.dtype == torch.bool:
            return x_BT[self.predicted]
        B, T = self.inputs_BT.shape
        first_B1 = T * torch.arange(B, device=x_BT.device)[:, None]
        return x_BT.flatten(0, 1)[(self.predicted + first_B1).flatten()]

    @property
    def has_equal_counts(self) -> bool:
        """Whether the number of outputs that enter the loss is the same in every sequence of every batch. Micro-batches
        then have equal weights in the mean loss."""
        return self.predicted is None or self.predicted.dtype != torch.bool

    @property
    def prediction_count(self) -> int:
        """The number of outputs that enter the loss."""
        if self.predicted is None:
            return self.inputs_BT.numel()
        return int(self.predicted.sum()) if self.predicted.dtype == torch.bool else self.predicted.numel()

    def to(self, device: torch.device) -> "Batch":
        """The batch on a device. On the way to a GPU tensors are copied from pinned memory: a copy from ordinary memory
        would wait until the GPU has finished all earlier work."""

        def copied(x: Tensor | None) -> Tensor | None:
            if x is None or device.type != "cuda" or x.is_cuda:
                return None if x is None else x.to(device)
            return x.pin_memory().to(device, non_blocking=True)

        return Batch(*(copied(x) for x in self))  # type: ignore[arg-type]

    def split(self, rows: int) -> list["Batch"]:
        """Split the batch into batches of `rows` sequences; the last one may be smaller."""
        parts = [[None] * -(-len(self.inputs_BT) // rows) if x is None else x.split(rows) for x in self]
        return [Batch(*fields) for fields in zip(*parts, strict=True)]


class Objective:
    """The causal objective: each token sees itself and all earlier tokens, and each output predicts the next token
    (GPT)."""

    causal = True  # no token sees a later one, so that attention need not compute the scores of later keys
    needs_mask_token = False  # whether `batch` needs the id of a mask token
    has_extents = False  # whether what tokens see differs between sequences: see `Batch.extents_B`

    def __init__(self, cfg: ModelConfig):
        self.cfg = cfg

    def batch(
        self, rows_BS: Tensor, seed: int = 0, numbers: Sequence[int] | None = None, tokens: SpecialTokens = NO_SPECIALS
    ) -> Batch:
        """Make a training batch from sequences of token ids.

        Args:
            rows_BS: token ids, S = seq + 1 in each row.
            seed: the run's seed.
            numbers: the number of each row in the run; None: 0, 1, 2, ... Random choices in a row depend on the seed
                and this number alone, not on resumes, ranks, micro-batch or batch size.
            tokens: the tokenizer's special tokens.
        """
        return Batch(rows_BS[:, :-1], rows_BS[:, 1:])

    @staticmethod
    def sees(extents_B: Tensor | None, b: Tensor, q: Tensor, k: Tensor) -> Tensor:
        """Whether the token at position `q` sees the token at position `k` in sequence `b` of the batch. `b`, `q` and
        `k` are integer tensors that broadcast; the result is a bool tensor. `extents_B`: [B], the length of each
        sequence's prefix under the prefix objective; None under the others."""
        return k <= q

    def check_extents(self, extents_B: Tensor | None) -> None:
        """Check that prefix lengths, `extents_B`, are given under the prefix objective and no other. Raises ValueError
        where they are missing or superfluous: attention would differ from that in training."""
        if extents_B is not None:
            raise ValueError(f"model.objective={self.cfg.objective} has no extents: all sequences are seen alike")

    def evaluation_extent(self, context: int) -> int:
        """The prefix length in evaluation of a text whose first `context` tokens are given and whose rest is scored:
        `context` under the prefix objective, 0 under the causal one. Raises ValueError under the MLM objective, which
        has no left-to-right likelihood."""
        return 0


class Prefix(Objective):
    """Prefix-LM (Raffel et al. 2020, section 3.2). The tokens of a prefix see each other in both directions and are not
    predicted; later tokens are causal. A sequence's extent is the length of its prefix."""

    causal = False
    has_extents = True

    def batch(
        self, rows_BS: Tensor, seed: int = 0, numbers: Sequence[int] | None = None, tokens: SpecialTokens = NO_SPECIALS
    ) -> Batch:
        """Make a training batch from rows of T + 1 token ids. The length of each prefix is drawn uniformly from 1 (all
        tokens are causal) to T (one token is predicted). Arguments as for `Objective.batch`; `tokens` is ignored."""
        B, T = len(rows_BS), rows_BS.shape[1] - 1
        draws = [np.random.default_rng([seed, n]) for n in (range(B) if numbers is None else numbers)]
        extents_B = torch.tensor([draw.integers(1, T, endpoint=True) for draw in draws])
        # the last token of the prefix is the first to predict one that is not in it
        predicted_BT = torch.arange(T) >= extents_B[:, None] - 1
        return Batch(rows_BS[:, :-1], rows_BS[:, 1:], predicted_BT, extents_B)

    @staticmethod
    def sees(extents_B: Tensor | None, b: Tensor, q: Tensor, k: Tensor) -> Tensor:
        assert extents_B is not None
        return (k <= q) | (k < extents_B[b])

    def check_extents(self, extents_B: Tensor | None) -> None:
        if extents_B is None:
            raise ValueError("model.objective=prefix: give the length of each sequence's prefix (1: causal)")

    def evaluation_extent(self, context: int) -> int:
        return context


class MaskedLM(Objective):
    """Masked language modelling (Devlin et al. 2019, section 3.1): all tokens see each other. At randomly drawn
    positions the input token is replaced, and the output predicts the original token.

    Each sequence has the same number of these positions, `ModelConfig.masked_per_sequence`, so that shapes are static.
    The share MASKED of them gets the mask token, the share RANDOM a random token; the rest keep their token (of 32
    positions: 26, 3 and 3, as in Cramming).
    """

    causal = False
    needs_mask_token = True
    MASKED, RANDOM = 0.8, 0.1  # Devlin et al. 2019

    def batch(
        self, rows_BS: Tensor, seed: int = 0, numbers: Sequence[int] | None = None, tokens: SpecialTokens = NO_SPECIALS
    ) -> Batch:
        """Make a training batch from rows of T + 1 token ids. Targets are the first T tokens of each row; inputs are
        these tokens with some replaced. `predicted` has the M = round(mask_rate x T) positions drawn in each row, [B,
        M].

        Special tokens are masked only where a row has too few ordinary tokens, and no random token is a special one.
        Arguments as for `Objective.batch`. Raises ValueError where `tokens` has no mask token.
        """
        if tokens.mask is None:
            raise ValueError("model.objective=mlm needs a tokenizer with a mask token, such as one of kind wordpiece")
        B, T = len(rows_BS), rows_BS.shape[1] - 1
        M = round(self.cfg.mask_rate * T)
        replaced, random = round(self.MASKED * M), round(self.RANDOM * M)
        special = np.unique([tokens.mask, *tokens.specials])
        ordinary = np.setdiff1d(np.arange(self.cfg.vocab), special)
        targets_BT = rows_BS[:, :-1]
        inputs_BT, positions_BM = targets_BT.clone(), torch.empty(B, M, dtype=torch.int64)
        held_back = np.isin(targets_BT.cpu().numpy(), special)
        for row, number in enumerate(range(B) if numbers is None else numbers):
            draw = np.random.default_rng([seed, number])
            # M positions in random order; special tokens would come last
            chosen = np.argsort(draw.random(T) + held_back[row], kind="stable")[:M]
            inputs_BT[row, torch.from_numpy(chosen[:replaced])] = tokens.mask
            others = torch.from_numpy(draw.choice(ordinary, random)).to(inputs_BT)
            inputs_BT[row, torch.from_numpy(chosen[replaced : replaced + random])] = others
            positions_BM[row] = torch.from_numpy(np.sort(chosen))
        return Batch(inputs_BT, targets_BT, positions_BM)

    @staticmethod
    def sees(extents_B: Tensor | None, b: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (k <= q) | (k > q)

    def evaluation_extent(self, context: int) -> int:
        raise ValueError(
            "model.objective=mlm gives no likelihood of a text from left to right: every token sees those after it. "
            "Held-out loss on masked tokens (eval/tasks/masked.py) and fine-tuning are possible"
        )


OBJECTIVES: dict[str, type[Objective]] = {"causal": Objective, "prefix": Prefix, "mlm": MaskedLM}
assert set(OBJECTIVES) == set(get_args(get_type_hints(ModelConfig)["objective"]))
