"""The held-out loss of a masked language model: some tokens of held-out text are masked, and predicted from all other
tokens.

As in training, texts are joined, each after an end-of-document token, and cut into sequences of the training length.
The last sequence is padded with end-of-document tokens. The mask rate is that of training; the positions depend only on
the number of the sequence.

All masked tokens are replaced by the mask token. In training one in ten is left unchanged, so the training loss is
somewhat lower.

Bits per byte are the loss per byte of masked text. These bytes are estimated as the bytes of the text times the mask
rate. Bytes that the tokenizer cannot represent count 8 bits each. The result can be compared between tokenizers, but
not between mask rates, since more masked tokens leave less context.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from eval.statistics.items import LN2
from model.config import ModelConfig

SEED = 20  # of the masked positions, for every model
ROWS_CPU, ROWS_GPU = 16, 256  # sequences of a forward pass; untuned


@torch.inference_mode()
def masked_loss(
    model: Any,
    texts: Sequence[str],
    tokenizer: Any,
    mask: int,
    specials: Sequence[int],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """The held-out loss of a masked language model on the masked tokens of texts.

    Args:
        model: a GPT with objective mlm, in evaluation mode, on any device.
        texts: the held-out texts.
        tokenizer: the tokenizer of the model.
        mask: the id of the mask token.
        specials: the ids of special tokens, to which no text is encoded; they are never masked.
        progress: a function that is called after every forward pass with the number of finished tokens and of all
            tokens.

    Returns:
        nats: the loss per masked token.
        bits_per_byte: the loss per byte of masked text.
        mask_rate: the share of tokens that are masked.
        masked: the number of tokens that were predicted.
        bytes: the bytes of the masked text, estimated as the bytes of the texts times the mask rate, so that they are
            the same for models with different tokenizers.
        samples: {"nats", "bytes"} of each text, with "unknown_bytes" where there are any.

    Raises:
        ValueError: the model has another objective, or there is no text.
    """
    cfg = model.cfg
    if cfg.objective != "mlm":
        raise ValueError(f"loss on masked tokens needs model.objective=mlm; this model has {cfg.objective}")
    rows, owners = join_into_sequences(texts, tokenizer, cfg.seq)
    if not len(rows):
        raise ValueError("there is no held-out text to predict masked tokens of")
    step = ROWS_GPU if next(model.parameters()).is_cuda else ROWS_CPU
    nats_of_text, predicted = np.zeros(len(texts)), 0
    for first in range(0, len(rows), step):
        batch = slice(first, first + step)
        positions_N = positions_in_batch(cfg, rows[batch], first, specials)
        if not len(positions_N):
            continue
        nats_N = masked_token_losses(model, rows[batch], positions_N, mask)
        np.add.at(nats_of_text, owners[batch].flatten()[positions_N], nats_N)
        predicted += len(nats_N)
        progress(min(first + step, len(rows)) * cfg.seq, rows.size)
    ordinary = int(np.isin(rows, list(specials), invert=True).sum())
    share = predicted / ordinary if ordinary else 1.0  # the mask rate, but for rounding
    samples = []
    for text, nats in zip(texts, nats_of_text.tolist(), strict=True):
        unknown = tokenizer.count_unknown(text)[1] if hasattr(tokenizer, "count_unknown") else 0
        samples.append(text_sample(text, nats * cfg.mask_rate / share, unknown, cfg.mask_rate))
    size = sum(sample["bytes"] for sample in samples)
    return {
        "nats": float(nats_of_text.sum()) / predicted if predicted else 0.0,
        "bits_per_byte": sum(sample["nats"] for sample in samples) / LN2 / size,
        "mask_rate": cfg.mask_rate,
        "masked": predicted,
        "bytes": size,
        "samples": samples,
    }


def positions_in_batch(cfg: ModelConfig, rows: np.ndarray, first: int, specials: Sequence[int]) -> np.ndarray:
    """The masked positions of a batch of sequences, as ascending indices into the flattened batch: int64 [N].

    Args:
        cfg: the configuration of the model, with the mask rate.
        rows: token ids, [sequences, seq].
        first: the number of the batch's first sequence among all sequences.
        specials: the ids of special tokens, which are not masked.
    """
    positions = []
    for i, row in enumerate(rows):
        ordinary = int(np.isin(row, list(specials), invert=True).sum())
        count = min(cfg.masked_per_sequence, ordinary, max(1, round(cfg.mask_rate * ordinary)))
        positions.append(masked_positions(row, first + i, count, specials) + cfg.seq * i)
    return np.concatenate(positions)


def masked_token_losses(model: Any, rows: np.ndarray, positions_N: np.ndarray, mask: int) -> np.ndarray:
    """The loss of each masked token in nats, float64 [N].

    Args:
        rows: token ids, [sequences, seq].
        positions_N: the masked positions, as indices into the flattened rows.
        mask: the id of the mask token.
    """
    device = next(model.parameters()).device
    tokens_BT, index_N = torch.from_numpy(rows), torch.from_numpy(positions_N)
    inputs_BT = tokens_BT.flatten().index_fill(0, index_N, mask).view_as(tokens_BT).to(device)
    logits_NV = model.project(model.hidden_states(inputs_BT, rows_N=index_N.to(device))).float()
    targets_N = tokens_BT.flatten()[index_N].to(device)
    return torch.nn.functional.cross_entropy(logits_NV, targets_N, reduction="none").double().cpu().numpy()


def text_sample(text: str, nats: float, unknown: int, mask_rate: float) -> dict[str, float]:
    """The outcome of one text: {"nats", "bytes"} of the masked share of the text, and "unknown_bytes" where there are
    any.

    Args:
        text: the text.
        nats: the loss of its masked tokens, in nats.
        unknown: the number of bytes of the text that the tokenizer cannot represent, which count 8 bits each.
        mask_rate: the share of the text that is masked.
    """
    sample = {"nats": nats, "bytes": len(text.encode()) * mask_rate}
    if unknown:
        sample["nats"] += 8 * LN2 * unknown * mask_rate
        sample["unknown_bytes"] = unknown * mask_rate
    return sample


def join_into_sequences(texts: Sequence[str], tokenizer: Any, seq: int) -> tuple[np.ndarray, np.ndarray]:
    """Join texts, each after an end-of-document token, and cut them into sequences of `seq` tokens: (token ids, for
    each token the number of its text), both int64 [sequences, seq]. End-of-document tokens and padding have the number
    -1."""
    ids: list[int] = []
    owners: list[int] = []
    for number, encoded in enumerate(tokenizer.encode_batch(list(texts))):
        ids += [tokenizer.eod, *encoded]
        owners += [-1, *[number] * len(encoded)]
    missing = -len(ids) % seq
    ids += [tokenizer.eod] * missing
    owners += [-1] * missing
    return np.array(ids, np.int64).reshape(-1, seq), np.array(owners, np.int64).reshape(-1, seq)


def masked_positions(row: np.ndarray, number: int, count: int, specials: Sequence[int]) -> np.ndarray:
    """The positions of a sequence that are masked, in ascending order: random, but equal for every model. Special
    tokens are masked only where there are fewer than `count` other tokens.

    Args:
        row: the token ids of the sequence.
        number: the number of the sequence, which seeds the random choice.
        count: the number of positions to mask.
        specials: the ids of special tokens.
    """
    keys = np.random.default_rng([SEED, number]).random(len(row)) + np.isin(row, list(specials))
    return np.sort(np.argsort(keys, kind="stable")[:count])
