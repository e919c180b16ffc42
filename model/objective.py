"""Objectives, one class each: which tokens of a sequence see each other, and which outputs the loss is of. The base
class is causal."""

from collections.abc import Sequence
from typing import NamedTuple, get_args, get_type_hints

import numpy as np
import torch
from torch import Tensor

from model.config import ModelConfig


class SpecialTokens(NamedTuple):
    """Ids of a tokenizer's special tokens (data/tokenizer.py).

    mask: stands for a masked token; None where the tokenizer has none. specials: all ids that no text is encoded as,
    such as the end of a document.
    """

    mask: int | None = None
    specials: Sequence[int] = ()


NO_SPECIAL_TOKENS = SpecialTokens()


class Batch(NamedTuple):
    """B sequences of T tokens, and what is to be predicted of them.

    inputs_BT: the token ids that the model reads.
    targets_BT: the token id that the output at each position is to predict.
    predicted: the outputs that the loss is of: None, all of them; bool [B, T], these; or int64 [B, M], the positions of
        M outputs in each sequence, where M is the same in every batch, so that shapes are static.
    extents_B: what `Objective.sees` has to know of each sequence; None, where it has to know nothing.
    """

    inputs_BT: Tensor
    targets_BT: Tensor
    predicted: Tensor | None = None
    extents_B: Tensor | None = None

    def select(self, x_BT: Tensor) -> Tensor:
        """From values [B, T, ...] those at the outputs that the loss is of, [N, ...], sequence by sequence."""
        if self.predicted is None:
            return x_BT.flatten(0, 1)
        if self.predicted.dtype == torch.bool:
            return x_BT[self.predicted]
        B, T = self.inputs_BT.shape
        first_B1 = T * torch.arange(B, device=x_BT.device)[:, None]
        return x_BT.flatten(0, 1)[(self.predicted + first_B1).flatten()]

    @property
    def even(self) -> bool:
        """Whether every sequence, of any batch, has the same number of outputs that the loss is of."""
        return self.predicted is None or self.predicted.dtype != torch.bool

    @property
    def predictions(self) -> int:
        """The number of outputs that the loss is of."""
        if self.predicted is None:
            return self.inputs_BT.numel()
        return int(self.predicted.sum()) if self.predicted.dtype == torch.bool else self.predicted.numel()

    def to(self, device: torch.device) -> "Batch":
        """To a GPU without waiting: a copy from ordinary memory would wait for all that the GPU was told before."""

        def there(x: Tensor | None) -> Tensor | None:
            if x is None or device.type != "cuda" or x.is_cuda:
                return None if x is None else x.to(device)
            return x.pin_memory().to(device, non_blocking=True)

        return Batch(*(there(x) for x in self))  # type: ignore[arg-type]

    def split(self, rows: int) -> list["Batch"]:
        """The batch divided into batches of `rows` sequences; the last one has the rest."""
        parts = [[None] * -(-len(self.inputs_BT) // rows) if x is None else x.split(rows) for x in self]
        return [Batch(*fields) for fields in zip(*parts, strict=True)]


class Objective:
    """Causal: each token sees those before it and itself, and each output predicts the next token (GPT)."""

    causal = True  # no token sees a later one: the executors of attention leave out what lies ahead
    masks = False  # whether `batch` needs the id of a mask token
    has_extents = False  # whether sequences differ in what is seen: see `Batch.extents_B`

    def __init__(self, cfg: ModelConfig):
        self.cfg = cfg

    def batch(
        self,
        rows_BS: Tensor,
        seed: int = 0,
        numbers: Sequence[int] | None = None,
        tokens: SpecialTokens = NO_SPECIAL_TOKENS,
    ) -> Batch:
        """The training batch made of rows of seq + 1 token ids.

        Args:
            seed, numbers: the run's seed, and the number of each row, counted from the first of the run. All that is
                random is drawn from these two alone, so that no resume, rank, micro-batch or batch size changes it. By
                default rows are numbered from 0.
            tokens: the tokenizer's special tokens.
        """
        return Batch(rows_BS[:, :-1], rows_BS[:, 1:])

    @staticmethod
    def sees(extents_B: Tensor | None, b: Tensor, q: Tensor, k: Tensor) -> Tensor:
        """Whether position `q` of sequence `b` of the batch sees position `k`: integer tensors that broadcast."""
        return k <= q

    def check(self, extents_B: Tensor | None) -> None:
        """Raises ValueError when extents are missing, or are given to an objective that has none: the model would not
        be the one that was trained."""
        if extents_B is not None:
            raise ValueError(f"model.objective={self.cfg.objective} has no extents: all sequences are seen alike")

    def extent(self, context: int) -> int:
        """The extent of a sequence whose first `context` tokens are the context of what is scored.

        Raises:
            ValueError: when this objective gives no left-to-right likelihood.
        """
        return 0


class Prefix(Objective):
    """Prefix-LM (Raffel et al. 2020, section 3.2): the tokens of a prefix see each other both ways, and are not
    predicted; the rest is causal. The extent of a sequence is the length of its prefix."""

    causal = False
    has_extents = True

    def batch(
        self,
        rows_BS: Tensor,
        seed: int = 0,
        numbers: Sequence[int] | None = None,
        tokens: SpecialTokens = NO_SPECIAL_TOKENS,
    ) -> Batch:
        """The length of each prefix is uniform from 1 (the same as causal) to T (a single token is predicted)."""
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

    def check(self, extents_B: Tensor | None) -> None:
        if extents_B is None:
            raise ValueError("model.objective=prefix: give the length of each sequence's prefix (1: causal)")

    def extent(self, context: int) -> int:
        return context


class MaskedLM(Objective):
    """Masked language modelling (Devlin et al. 2019, section 3.1): all tokens see each other, some are replaced, and
    the outputs at their positions predict what they were.

    Each sequence has the same number of them, `ModelConfig.masked`, so that shapes are static. Of them MASKED in ten
    become the mask token and RANDOM in ten a random one, rounded; the others stay (of 32: 26, 3 and 3, as in Cramming).
    """

    causal = False
    masks = True
    MASKED, RANDOM = 0.8, 0.1  # Devlin et al. 2019

    def batch(
        self,
        rows_BS: Tensor,
        seed: int = 0,
        numbers: Sequence[int] | None = None,
        tokens: SpecialTokens = NO_SPECIAL_TOKENS,
    ) -> Batch:
        """The inputs are the first seq tokens of each row. Special tokens are masked only where a row has too few
        others, and are no random replacement.

        Raises:
            ValueError: when there is no mask token.
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
            chosen = np.argsort(draw.random(T) + held_back[row], kind="stable")[
                :M
            ]  # in random order, special ones last
            inputs_BT[row, torch.from_numpy(chosen[:replaced])] = tokens.mask
            others = torch.from_numpy(draw.choice(ordinary, random)).to(inputs_BT)
            inputs_BT[row, torch.from_numpy(chosen[replaced : replaced + random])] = others
            positions_BM[row] = torch.from_numpy(np.sort(chosen))
        return Batch(inputs_BT, targets_BT, positions_BM)

    @staticmethod
    def sees(extents_B: Tensor | None, b: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (k <= q) | (k > q)

    def extent(self, context: int) -> int:
        raise ValueError(
            "model.objective=mlm gives no likelihood of a text from left to right: every token sees those after it. "
            "Held-out loss on masked tokens (eval/tasks/masked.py) and fine-tuning are possible"
        )


OBJECTIVES: dict[str, type[Objective]] = {"causal": Objective, "prefix": Prefix, "mlm": MaskedLM}
assert set(OBJECTIVES) == set(get_args(get_type_hints(ModelConfig)["objective"]))
